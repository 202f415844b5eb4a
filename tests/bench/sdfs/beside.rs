//! A job while a dead node's files are copied: what it keeps of its rate.
//!
//! The rate during the repair beside that of the same survivors after it, in the same jobs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dlc::console::client::Client;
use dlc::models::mnist::{self, Split};
use dlc::wire::client::{Reply, Request};

use super::NODES;
use super::real::Cluster;

const INPUTS: usize = 60_000;
const JOBS: usize = 40;
const BATCH: &str = "1";
const LARGE_FILES: usize = 10;
const LARGE: usize = 25_000_000;
/// Between two looks at the repair, each of which costs the coordinator some milliseconds.
const GAP: Duration = Duration::from_secs(1);
/// How long the rate is measured after the repair.
const AFTER: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(120);
const BAR: f64 = 0.8;

pub fn measure(dir: &Path) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Ok(set) = mnist::read(&folder, Split::Training) else {
        println!("SKIPPED: data/mnist is missing; `make data` fetches it");
        return;
    };
    mnist::write_digits(&set, dir).expect("the digits are written");
    let mut cluster = Cluster::with_nodes(dir, NODES);
    cluster.ok("n1", &["train", "lenet"]);
    cluster.ok("n1", &["upload_data", "digit.png", &INPUTS.to_string()]);
    for number in 0..LARGE_FILES {
        std::fs::write(dir.join("large"), vec![number as u8; LARGE]).expect("written");
        cluster.ok("n1", &["put", "large", &format!("large{number}")]);
    }
    for _ in 0..JOBS {
        cluster.ok("n1", &["infer", "lenet", "digit.png", BATCH]);
    }
    std::thread::sleep(Duration::from_secs(2));
    let leader = cluster.coordinator("n1").expect("somebody leads");
    let names: Vec<String> = cluster.nodes.keys().cloned().collect();
    let victim = names.iter().find(|name| **name != leader).expect("others");
    let mut client = Client::new(cluster.nodes[&leader].addr);
    cluster.kill(victim);
    wait(|| missing(&mut client) > 0);
    let (copies, begun) = (missing(&mut client), count(&mut client));
    let from = Instant::now();
    wait(|| missing(&mut client) == 0);
    let (repaired, ended) = (from.elapsed(), count(&mut client));
    std::thread::sleep(AFTER);
    let during = (ended - begun) as f64 / repaired.as_secs_f64();
    let after = (count(&mut client) - ended) as f64 / AFTER.as_secs_f64();
    assert!(
        left(&mut client) > 0,
        "the jobs have outlived the measuring"
    );
    let (share, seconds) = (during / after, repaired.as_secs_f64());
    let verdict = if share >= BAR { "met" } else { "MISSED" };
    println!(
        "jobs while {copies} copies are made anew in {seconds:.1} s: {during:.0} queries/s, after it \
         {after:.0}: {share:.2} of it, at least {BAR}: {verdict}"
    );
}

fn wait(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "the repair does not end");
        std::thread::sleep(GAP);
    }
}

fn missing(client: &mut Client) -> u64 {
    match client.request(&Request::Under) {
        Ok(Reply::Under(under)) => under.total,
        other => panic!("{other:?}"),
    }
}

/// Finished queries of all jobs, and all that there are.
fn progress(client: &mut Client) -> (u64, u64) {
    match client.request(&Request::JobStats) {
        Ok(Reply::JobStats(jobs)) => jobs
            .iter()
            .fold((0, 0), |sum, job| (sum.0 + job.count, sum.1 + job.total)),
        other => panic!("{other:?}"),
    }
}

fn count(client: &mut Client) -> u64 {
    progress(client).0
}

fn left(client: &mut Client) -> u64 {
    let (count, total) = progress(client);
    total - count
}
