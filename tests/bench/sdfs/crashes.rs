//! Nodes killed with SIGKILL in the middle of 500 puts and started again: every answered file is
//! there and right, none is there by half, and the disks hold nothing that the catalog does not
//! name.
//!
//! In every other round all nodes die, else two of six, with which the puts go on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dlc::console::client::{Client, ClientError};
use dlc::console::transfer::{self, Content};
use dlc::types::{Digest, FileName, Rng};
use dlc::wire::client::{Refusal, Reply, Request};

use super::real::Cluster;
use super::{NODES, cluster, poll, rounds};

const PUTS: u64 = 500;
const UPLOADERS: u64 = 4;
/// Files of each round that stay and are read again at the end.
const KEPT: usize = 10;
const PATIENCE: Duration = Duration::from_secs(120);

/// A file that was put: what it holds, and whether the put was answered.
struct Put {
    digest: Digest,
    answered: bool,
}

type Puts = BTreeMap<String, Put>;

pub fn measure(dir: &Path) {
    let mut cluster = cluster(dir);
    let mut rng = Rng::new(1);
    let mut kept = Puts::new();
    let (mut answered, mut unanswered, mut there) = (0, 0, 0);
    let rounds = rounds(100);
    let begun = Instant::now();
    for round in 0..rounds {
        let count = if round % 2 == 0 { NODES } else { 2 };
        let puts = die(&mut cluster, round, count, &mut rng);
        cluster.wait_for_members(NODES);
        let found = check(&cluster, &puts);
        let ok = puts.values().filter(|put| put.answered).count();
        answered += ok;
        unanswered += puts.len() - ok;
        there += found - ok;
        forget(&cluster, puts, &mut kept);
        wait_for_clean_disks(&cluster);
        eprintln!(
            "round {round}: {count} nodes killed, {ok} puts answered, {:.0} s",
            begun.elapsed().as_secs_f64()
        );
    }
    check(&cluster, &kept);
    println!(
        "{rounds} rounds of SIGKILL amid {PUTS} puts: {answered} answered files there and right; of \
         {unanswered} unanswered ones {there} are there, whole; no orphan is left after any round"
    );
}

/// Puts files and kills `count` nodes at some moment of it; they are started again.
fn die(cluster: &mut Cluster, round: usize, count: usize, rng: &mut Rng) -> Puts {
    let mut names: Vec<String> = cluster.nodes.keys().cloned().collect();
    for place in (1..names.len()).rev() {
        names.swap(place, rng.below(place as u64 + 1) as usize);
    }
    let addrs: Vec<SocketAddr> = cluster.nodes.values().map(|node| node.addr).collect();
    let puts = Mutex::new(Puts::new());
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let moment = rng.below(PUTS);
    std::thread::scope(|scope| {
        for _ in 0..UPLOADERS {
            scope.spawn(|| upload(round, &addrs, &next, &stop, &puts));
        }
        // So many puts have been begun when the nodes die.
        while next.load(Ordering::Relaxed) < moment {
            std::thread::sleep(Duration::from_micros(100));
        }
        names[..count].iter().for_each(|name| cluster.kill(name));
        stop.store(count == NODES, Ordering::Relaxed);
    });
    for name in &names[..count] {
        cluster.start(name);
    }
    puts.into_inner().expect("no uploader panicked")
}

fn upload(
    round: usize,
    addrs: &[SocketAddr],
    next: &AtomicU64,
    stop: &AtomicBool,
    puts: &Mutex<Puts>,
) {
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= PUTS {
            return;
        }
        let name = format!("r{round}f{number}");
        let mut rng = Rng::new(number + PUTS * round as u64);
        // Mostly small, some that are a while on their way.
        let longest = if number.is_multiple_of(10) {
            2_000_000
        } else {
            20_000
        };
        let content: Vec<u8> = (0..rng.below(longest))
            .map(|at| (at * (number + 3)) as u8)
            .collect();
        let digest = Digest::of(&content);
        let mut client = Client::new(addrs[number as usize % addrs.len()]);
        let files = vec![(file(&name), Content::Bytes(content.into()))];
        let answered = transfer::put(&mut client, files, None).is_ok();
        let mut puts = puts.lock().expect("no uploader panicked");
        puts.insert(name, Put { digest, answered });
    }
}

/// Reads all of `puts`; how many are there.
fn check(cluster: &Cluster, puts: &Puts) -> usize {
    let mut client = Client::new(cluster.nodes["n1"].addr);
    let out = cluster.dir.join("out");
    let mut there = 0;
    for (name, put) in puts {
        let path = |_: &_| out.display().to_string();
        match transfer::get(&mut client, &file(name), 1, false, path) {
            Ok(_) => {
                let found = Digest::of(&std::fs::read(&out).expect("read"));
                assert_eq!(found, put.digest, "{name} has other bytes");
                there += 1;
            }
            Err(ClientError::Refused(Refusal::NotFound(_))) => {
                assert!(!put.answered, "{name} was answered and is gone");
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
    there
}

/// Deletes all of `puts` but some answered ones, which are kept.
fn forget(cluster: &Cluster, puts: Puts, kept: &mut Puts) {
    let mut client = Client::new(cluster.nodes["n2"].addr);
    let mut left = KEPT;
    for (name, put) in puts {
        if put.answered && left > 0 {
            left -= 1;
            kept.insert(name, put);
            continue;
        }
        let (request, name) = (client.request_id(), file(&name));
        match client.request(&Request::Delete { request, name }) {
            Ok(Reply::Deleted(_)) | Err(ClientError::Refused(Refusal::NotFound(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Waits until the disks hold the copies that the catalog names, and nothing else.
fn wait_for_clean_disks(cluster: &Cluster) {
    let mut last = String::new();
    let clean = poll(PATIENCE, || {
        let found = cluster.json("n1", &["fsck"]);
        let files: usize = cluster
            .nodes
            .keys()
            .map(|name| count(&cluster.dir.join(name).join("blobs")))
            .sum();
        let aside: usize = cluster
            .nodes
            .keys()
            .flat_map(|name| ["incoming", "corrupt"].map(|it| cluster.dir.join(name).join(it)))
            .map(|folder| count(&folder))
            .sum();
        last = format!("{found}, {files} files in blobs, {aside} elsewhere");
        let zero = ["under", "corrupt", "orphaned"]
            .iter()
            .all(|it| found[it] == 0);
        (zero && found["checked"] == files && aside == 0).then_some(())
    });
    assert!(clean.is_some(), "the disks are not clean: {last}");
}

/// Files in `folder` and its folders.
fn count(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path().is_dir() {
            true => count(&entry.path()),
            false => 1,
        })
        .sum()
}

fn file(name: &str) -> FileName {
    FileName::new(name).expect("a valid name")
}
