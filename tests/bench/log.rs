//! Entries of the replicated log in a second, on one machine, against what one sync for each
//! write allows. Run by `make bench-log`; `SPAN` (5) are the seconds of each figure.
//!
//! Clients ask the coordinator to delete files that are not there, each as soon as it has its
//! last answer: every request is an entry that is answered once it is on the disks of
//! min(4, n) nodes. All nodes share this machine's disk. The limit beside each figure is
//! measured right before it: as many threads as there are nodes write as many bytes as a write of
//! the log had, each to a file of its own, and sync.

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

use dlc::console::client::{Client, ClientError};
use dlc::types::FileName;
use dlc::wire::client::{Refusal, Reply, Request};
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
