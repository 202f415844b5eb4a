//! All nodes are killed at once, at a random moment of uploads and jobs, and started again one by
//! one: every answered file is there, every job finishes. Run by `make bench-restart`; `ROUNDS`
//! (50) are the deaths, `SEED` draws the moments and the orders.

#[path = "../cluster/harness.rs"]
#[allow(dead_code)]
mod real;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dlc::models::mnist::{self, Split};
use dlc::types::{Digest, Rng};
use real::{Cluster, dlc, wait_until};

const NODES: usize = 7;
const INPUTS: usize = 1000;
const UPLOADERS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(120);
/// Files of earlier rounds that are read again in each.
const READ_AGAIN: usize = 20;

/// Name and content of each answered file.
type Answered = Mutex<BTreeMap<String, Digest>>;

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number"))
    })
}

fn main() {
    let rounds = number("ROUNDS", 50);
    let mut rng = Rng::new(number("SEED", 1));
    let dir = tempfile::tempdir().expect("a folder for the cluster");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Ok(mut set) = mnist::read(&folder, Split::Test) else {
        return println!("SKIPPED: data/mnist is missing; `make data` fetches it");
    };
    set.images.truncate(INPUTS * mnist::IMAGE_BYTES);
    set.labels.truncate(INPUTS);
    mnist::write_digits(&set, dir.path()).expect("the digits are written");
    let mut cluster = Cluster::with_nodes(dir.path(), NODES);
    cluster.ok("n1", &["train", "lenet"]);
    cluster.ok("n1", &["upload_data", "digit.png", &INPUTS.to_string()]);
    let answered = Answered::default();
    let (mut read, mut slowest) = (0, Duration::ZERO);
    for round in 0..rounds {
        die(&mut cluster, round, &answered, &mut rng);
        let begun = Instant::now();
        rise(&mut cluster, &mut rng);
        read += check_files(
            &cluster,
            round,
            &answered.lock().expect("no panic"),
            &mut rng,
        );
        check_jobs(&cluster, round);
        slowest = slowest.max(begun.elapsed());
    }
    println!(
        "{rounds} rounds: all {NODES} nodes killed and started again; {} answered files, {read} \
         reads of them all right, {rounds} jobs of {INPUTS} inputs finished with one row each; the \
         slowest round took {:.1} s from the first start to the last row",
        answered.lock().expect("no panic").len(),
        slowest.as_secs_f64()
    );
}

/// A job and uploads begin, and in the middle of them all nodes are killed.
fn die(cluster: &mut Cluster, round: u64, answered: &Answered, rng: &mut Rng) {
    let names: Vec<String> = cluster.nodes.keys().cloned().collect();
    cluster.ok(&names[0], &["infer", "lenet", "digit.png", "1"]);
    let addrs: Vec<SocketAddr> = cluster.nodes.values().map(|node| node.addr).collect();
    let stop = AtomicBool::new(false);
    let moment = Duration::from_millis(100 + rng.below(1500));
    let dir = cluster.dir.clone();
    std::thread::scope(|scope| {
        for uploader in 0..UPLOADERS {
            let (addr, seed) = (addrs[rng.below(NODES as u64) as usize], rng.next_u64());
            let name = format!("r{round}u{uploader}");
            let (stop, dir) = (&stop, dir.as_path());
            scope.spawn(move || upload(addr, dir, &name, seed, answered, stop));
        }
        std::thread::sleep(moment);
        names.iter().for_each(|name| cluster.kill(name));
        stop.store(true, Ordering::Relaxed);
    });
}

/// Puts one file after the other until it is told to stop.
fn upload(
    addr: SocketAddr,
    dir: &Path,
    name: &str,
    seed: u64,
    answered: &Answered,
    stop: &AtomicBool,
) {
    let mut rng = Rng::new(seed);
    for number in 0.. {
        let length = rng.below(200_000) as usize;
        let content: Vec<u8> = (0..length).map(|_| rng.below(256) as u8).collect();
        let (local, name) = (format!("{name}.local"), format!("{name}f{number}"));
        std::fs::write(dir.join(&local), &content).expect("written");
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if dlc(addr, dir, &["put", &local, &name]).status == 0 {
            let digest = Digest::of(&content);
            answered.lock().expect("no panic").insert(name, digest);
        }
    }
}

/// The nodes start again on their disks, in a random order.
fn rise(cluster: &mut Cluster, rng: &mut Rng) {
    let mut names: Vec<String> = (1..=NODES).map(|number| format!("n{number}")).collect();
    for place in (1..names.len()).rev() {
        names.swap(place, rng.below(place as u64 + 1) as usize);
    }
    for name in names {
        cluster.start(&name);
        std::thread::sleep(Duration::from_millis(rng.below(500)));
    }
    cluster.wait_for_members(NODES);
}

/// Reads the files of this round and some of the earlier ones; how many.
fn check_files(
    cluster: &Cluster,
    round: u64,
    answered: &BTreeMap<String, Digest>,
    rng: &mut Rng,
) -> usize {
    let new = format!("r{round}u");
    let (now, before): (Vec<_>, Vec<_>) = answered
        .iter()
        .partition(|(name, _)| name.starts_with(&new));
    let again =
        (0..READ_AGAIN.min(before.len())).map(|_| before[rng.below(before.len() as u64) as usize]);
    let files: Vec<_> = now.into_iter().chain(again).collect();
    for (name, digest) in &files {
        let node = format!("n{}", 1 + rng.below(NODES as u64));
        cluster.ok(&node, &["get", name, "out"]);
        let found = Digest::of(&std::fs::read(cluster.dir.join("out")).expect("read"));
        assert_eq!(found, **digest, "{name} in round {round}");
    }
    files.len()
}

/// The job of this round and all before it are complete, this one's rows each there once.
fn check_jobs(cluster: &Cluster, round: u64) {
    wait_until("all jobs complete", PATIENCE, || {
        let jobs = cluster.json("n1", &["job_info"])["jobs"]
            .as_array()
            .expect("a list")
            .clone();
        assert_eq!(jobs.len() as u64, round + 1, "jobs are lost or doubled");
        jobs.iter().all(|job| job["status"] == "COMPLETED")
    });
    cluster.ok("n1", &["get", &format!("{round}.csv"), "result.csv"]);
    let text = std::fs::read_to_string(cluster.dir.join("result.csv")).expect("read");
    let mut files: Vec<&str> = text
        .lines()
        .skip(1)
        .filter_map(|row| row.split(',').next())
        .collect();
    let rows = files.len();
    files.sort_unstable();
    files.dedup();
    assert_eq!((rows, files.len()), (INPUTS, INPUTS), "job {round}");
}
