//! Entries of the replicated log in a second, on one machine, against what one sync for each
//! write allows. Run by `make bench-log`; `SPAN` (5) are the seconds of each figure.
//!
//! Clients ask the coordinator to delete files that are not there, each as soon as it has its
//! last answer: every request is an entry that is answered once it is on the disks of
//! min(4, n) nodes. All nodes share this machine's disk. The limit beside each figure is
//! measured right before it: as many threads as there are nodes write as many bytes as a write of
//! the log had, each to a file of its own, and sync.
//!
//! Last, what a snapshot of much costs: the thread that hears the others encodes it.

#[path = "../cluster/harness.rs"]
#[allow(dead_code)]
mod real;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dlc::consensus::{Entry, Payload};
use dlc::console::client::{Client, ClientError};
use dlc::node::state::State;
use dlc::types::{
    BlobId, Digest, FileName, Index, JobId, NodeId, Server, StorageId, Term, WallTime,
};
use dlc::wire::client::{Refusal, Reply, Request};
use dlc::wire::peer::{Change, Command};
use dlc::wire::schedule::{FinishedTask, JobCommand, Model, Outcome};
use dlc::wire::store::{CatalogCommand, Upload};
use real::{Cluster, wait_until};

const CLIENTS: [usize; 3] = [1, 16, 128];

fn main() {
    let span = std::env::var("SPAN").ok().filter(|text| !text.is_empty());
    let span = Duration::from_secs(span.map_or(5, |text| text.parse().expect("SPAN is a number")));
    println!("Entries of the log in a second, all nodes on this machine and its disk");
    println!(
        "voters  clients  entries/s  entries a write  writes/s of the coordinator  syncs/s of as many plain writers"
    );
    for voters in [3, 7] {
        let dir = tempfile::tempdir().expect("a folder for the cluster");
        let mut cluster = Cluster::new(dir.path());
        cluster.models = dir.path().join("no-models");
        std::fs::create_dir_all(&cluster.models).expect("an empty folder");
        for number in 1..=voters {
            cluster.start(&format!("n{number}"));
        }
        cluster.wait_for_members(voters);
        wait_until("all vote", Duration::from_secs(30), || {
            let members = cluster.json("n1", &["list_mem"]);
            let members = members["members"].as_array().expect("a list").clone();
            members.iter().all(|member| member["role"] != "member")
        });
        let leader = cluster.coordinator("n1").expect("somebody leads");
        let addr = cluster.nodes[&leader].addr;
        for clients in CLIENTS {
            let plain = plain_syncs(dir.path(), voters, 100 * clients, span / 2);
            let before = stats(addr);
            let answered = load(addr, clients, span);
            let after = stats(addr);
            let grown = |name: &str| (after[name] - before[name]) as f64;
            let (writes, entries) = (grown("log_writes"), grown("log_entries"));
            let seconds = span.as_secs_f64();
            println!(
                "{voters:>6}  {clients:>7}  {:>9.0}  {:>15.1}  {:>27.0}  {plain:>34.0}",
                answered as f64 / seconds,
                entries / writes,
                writes / seconds,
            );
        }
    }
    snapshots();
}

/// Time to encode and to restore a state with many files, and with a job over all of them.
fn snapshots() {
    println!("\nA snapshot of so much        MB  encoded in ms  restored in ms");
    for files in [100_000, 1_000_000] {
        let mut state = State::default();
        fill(&mut state, files);
        cost(&format!("{files} files"), &state);
        let at = WallTime(0);
        let submit = JobCommand::Submit {
            model: "m".into(),
            dataset: "digit.png".into(),
            batch: 1,
            weight: 1,
            at,
            unloadable: None,
        };
        apply(&mut state, Change::Job(submit));
        for first in (0..files).step_by(1000) {
            let row = |input| {
                let (label, confidence) = ("seven".into(), 0.9);
                (input, Outcome::Label { label, confidence })
            };
            let task = FinishedTask {
                job: JobId(0),
                node: NodeId::new("n1").expect("a name"),
                elapsed: 1_000_000,
                rows: (first..first + 1000).map(row).collect(),
            };
            let tasks = vec![task];
            apply(&mut state, Change::Job(JobCommand::Finished { tasks, at }));
        }
        cost(&format!("and {files} rows"), &state);
    }
}

fn cost(what: &str, state: &State) {
    let begun = Instant::now();
    let bytes = state.encode();
    let encoded = begun.elapsed();
    let begun = Instant::now();
    State::decode(&bytes).expect("its own bytes");
    let restored = begun.elapsed();
    println!(
        "{what:<24} {:>6.1} {:>14.0} {:>15.0}",
        bytes.len() as f64 / 1e6,
        encoded.as_secs_f64() * 1e3,
        restored.as_secs_f64() * 1e3
    );
}

/// `files` files, each with copies on four of seven nodes, and a model.
fn fill(state: &mut State, files: u32) {
    let server = |number: u32| Server {
        node: NodeId::new(&format!("n{}", number % 7)).expect("a name"),
        storage: StorageId(u128::from(number % 7)),
    };
    for first in (0..files).step_by(1000) {
        let upload = |number: u32| Upload {
            name: FileName::new(&format!("digit{number}.png")).expect("a name"),
            blob: BlobId {
                term: Term(1),
                counter: number.into(),
            },
            bytes: 300,
            digest: Digest::of(&number.to_le_bytes()),
            replicas: (number..number + 4).map(server).collect(),
        };
        let uploads = (first..first + 1000).map(upload).collect();
        apply(state, Change::Catalog(CatalogCommand::Put(uploads)));
    }
    let (term, counter) = (Term(1), 0);
    let blob = BlobId { term, counter };
    let file = (FileName::new("digit0.png").expect("a name"), blob);
    apply(
        state,
        Change::Job(JobCommand::Publish(Model {
            name: "m".into(),
            manifest: file.clone(),
            weights: file,
            digest: Digest::of(b"m"),
        })),
    );
}

fn apply(state: &mut State, change: Change) {
    let request = None;
    let index = Index(state.applied.0 + 1);
    let payload = Payload::Command(Command { request, change }.encode());
    state.apply(&Entry {
        term: Term(1),
        index,
        payload,
    });
}

fn stats(addr: SocketAddr) -> BTreeMap<String, u64> {
    match Client::new(addr).request(&Request::Stats) {
        Ok(Reply::Stats(stats)) => stats,
        other => panic!("no stats: {other:?}"),
    }
}

/// Requests that `clients` clients got answered within `span`.
fn load(addr: SocketAddr, clients: usize, span: Duration) -> u64 {
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = Client::new(addr);
                let name = FileName::new("no such file").expect("a name");
                while !stop.load(Ordering::Relaxed) {
                    let request = Request::Delete {
                        request: client.request_id(),
                        name: name.clone(),
                    };
                    match client.request(&request) {
                        Err(ClientError::Refused(Refusal::NotFound(_))) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        other => panic!("not the answer: {other:?}"),
                    }
                }
            });
        }
        std::thread::sleep(span);
        stop.store(true, Ordering::Relaxed);
    });
    answered.into_inner()
}

/// Writes with a sync each that one of `writers` threads does in a second, `bytes` at a time.
fn plain_syncs(dir: &Path, writers: usize, bytes: usize, span: Duration) -> f64 {
    let syncs = AtomicU64::new(0);
    let content = vec![7; bytes];
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (syncs, content) = (&syncs, &content);
            let path = dir.join(format!("plain{writer}"));
            scope.spawn(move || {
                let mut file = File::create(path).expect("a file");
                let begun = Instant::now();
                while begun.elapsed() < span {
                    file.write_all(content).expect("written");
                    file.sync_data().expect("synced");
                    syncs.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    syncs.into_inner() as f64 / writers as f64 / span.as_secs_f64()
}
