//! How soon jobs go on after their coordinator, or a worker, has failed: seven real nodes, ten
//! jobs. Run by `make bench-takeover`; `ROUNDS` (20) are the failures of each kind, `KINDS` those
//! of killed, stopped, worker-killed, worker-stopped and cut that are wanted. Links are cut
//! between network namespaces, where those can be made.
//!
//! Two figures for each failure, both from the moment of the blow: when a client sees the count
//! of finished queries move again, and when the rate is back: the start of the first second in
//! which at least 95 % of what the survivors do in a second are finished. What they do is
//! measured in each round, from four to eight seconds after the blow.

#[allow(dead_code)]
mod namespaces;
#[path = "../cluster/harness.rs"]
#[allow(dead_code)]
mod real;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dlc::console::client::Client;
use dlc::models::mnist::{self, Split};
use dlc::wire::client::{Reply, Request};
use namespaces::{run_in_hub, set_link, start_all};
use real::{Cluster, wait_until};
use rustix::process::Signal;

/// The argument with which this program starts itself again inside the hub.
const INSIDE: &str = "takeover-inside-the-hub";
const NODES: usize = 7;
/// The whole training set.
const INPUTS: usize = 60_000;
/// Jobs over it at a time: they last for more than a round.
const JOBS: usize = 10;
const BATCH: &str = "2";
/// Between two looks at the count.
const GAP: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq)]
enum Failure {
    Killed,
    Stopped,
    WorkerKilled,
    WorkerStopped,
    Cut,
}

impl Failure {
    /// In words, and most seconds until the count moves and until the rate is back.
    fn describe(self) -> (&'static str, f64) {
        match self {
            Failure::Killed => ("killed (kill -9)", 1.5),
            Failure::Stopped => ("silent (SIGSTOP)", 4.0),
            Failure::WorkerKilled => ("a worker killed", 1.5),
            Failure::WorkerStopped => ("a worker silent", 3.5),
            Failure::Cut => ("its link is cut", 4.0),
        }
    }

    fn is_of_worker(self) -> bool {
        matches!(self, Failure::WorkerKilled | Failure::WorkerStopped)
    }

    fn strike(self, cluster: &mut Cluster, leader: &str) {
        match self {
            Failure::Killed | Failure::WorkerKilled => cluster.kill(leader),
            Failure::Stopped | Failure::WorkerStopped => cluster.nodes[leader].signal(Signal::STOP),
            Failure::Cut => set_link(number(leader), false),
        }
    }

    fn mend(self, cluster: &mut Cluster, leader: &str) {
        match self {
            Failure::Killed | Failure::WorkerKilled => cluster.start(leader),
            Failure::Stopped | Failure::WorkerStopped => cluster.nodes[leader].signal(Signal::CONT),
            Failure::Cut => set_link(number(leader), true),
        }
    }
}

fn number(node: &str) -> usize {
    node[1..].parse().expect("nodes are n1, n2, ...")
}

/// When a count was seen, and the count.
type Sample = (Instant, u64);

fn main() {
    let dir = tempfile::tempdir().expect("a folder for the cluster");
    let dir = dir.path();
    let Some(()) = digits(dir) else { return };
    if std::env::args().nth(1).as_deref() == Some(INSIDE) {
        return run(in_namespaces(dir), &[Failure::Cut]);
    }
    let cluster = Cluster::with_nodes(dir, NODES);
    println!(
        "One of {NODES} real nodes, the coordinator if nothing else is said, fails while ten jobs run (seconds)"
    );
    println!("                                    p50    max   bar");
    let wanted = std::env::var("KINDS").unwrap_or_default();
    let is_wanted = |kind: &str| wanted.is_empty() || wanted.split(',').any(|it| it == kind);
    let failures = [
        ("killed", Failure::Killed),
        ("stopped", Failure::Stopped),
        ("worker-killed", Failure::WorkerKilled),
        ("worker-stopped", Failure::WorkerStopped),
    ];
    let failures = failures.into_iter().filter(|(kind, _)| is_wanted(kind));
    run(
        cluster,
        &failures.map(|(_, failure)| failure).collect::<Vec<_>>(),
    );
    if is_wanted("cut") {
        run_in_hub("A cut link", INSIDE, NODES);
    }
}

/// The same cluster, each node in a namespace of its own.
fn in_namespaces(dir: &Path) -> Cluster {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut processes = start_all(dir, NODES, &models).into_iter();
    let introducer = processes.next().expect("the introducer");
    let names = (1..=NODES).map(|number| format!("n{number}"));
    let cluster = Cluster {
        dir: dir.into(),
        introducer,
        nodes: names.zip(processes).collect::<BTreeMap<_, _>>(),
        models,
    };
    cluster.wait_for_members(NODES);
    cluster
}

fn run(mut cluster: Cluster, failures: &[Failure]) {
    let rounds = std::env::var("ROUNDS").ok().filter(|text| !text.is_empty());
    let rounds: usize = rounds.map_or(20, |text| text.parse().expect("ROUNDS is a number"));
    cluster.ok("n1", &["train", "lenet"]);
    cluster.ok("n1", &["upload_data", "digit.png", &INPUTS.to_string()]);
    let mut jobs = 0;
    for failure in failures {
        let mut figures = Vec::new();
        let (what, bar) = failure.describe();
        for number in 1..=rounds {
            let found = round(&mut cluster, *failure, &mut jobs);
            eprintln!(
                "{what}, round {number}: count moves {:.2}, rate is back {:.2}",
                found[0], found[1]
            );
            figures.push(found);
        }
        for (place, name) in ["count moves", "rate is back"].iter().enumerate() {
            let mut spans: Vec<f64> = figures.iter().map(|found| found[place]).collect();
            spans.sort_by(f64::total_cmp);
            let (median, max) = (spans[spans.len() / 2], spans[spans.len() - 1]);
            let verdict = if max <= bar { "met" } else { "MISSED" };
            println!(
                "{what}: {name:<16} {median:>6.2} {max:>6.2}   max {bar}: {verdict} ({rounds} rounds)"
            );
        }
    }
    check_results(&cluster, jobs);
}

/// Writes the digits into `dir`; none where the data is missing.
fn digits(dir: &Path) -> Option<()> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Ok(set) = mnist::read(&folder, Split::Training) else {
        println!("SKIPPED: data/mnist is missing; `make data` fetches it");
        return None;
    };
    mnist::write_digits(&set, dir).expect("the digits are written");
    Some(())
}

/// One failure of the coordinator, and its end. When the count moved, and when the rate was back.
fn round(cluster: &mut Cluster, failure: Failure, jobs: &mut u64) -> [f64; 2] {
    let names: Vec<String> = cluster.nodes.keys().cloned().collect();
    keep_jobs_running(cluster, &names[0], jobs);
    let leader = cluster.coordinator(&names[0]).expect("somebody leads");
    let others: Vec<&String> = names.iter().filter(|name| **name != leader).collect();
    let witness = others[0].clone();
    let victim = match failure.is_of_worker() {
        true => others[others.len() - 1].clone(),
        false => leader,
    };
    let addr = cluster.nodes[&witness].addr;
    let (samples, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let blow = std::thread::scope(|scope| {
        scope.spawn(|| watch(Client::new(addr), &samples, &stop));
        std::thread::sleep(Duration::from_secs(2));
        let blow = Instant::now();
        failure.strike(cluster, &victim);
        std::thread::sleep(Duration::from_secs(9));
        stop.store(true, Ordering::Relaxed);
        blow
    });
    failure.mend(cluster, &victim);
    cluster.wait_for_members(NODES);
    // The one that came back has its network again, and its place among the standbys.
    std::thread::sleep(Duration::from_secs(2));
    let samples = samples.into_inner().expect("no panic");
    eprintln!(
        "queries in each second from 2 s before the blow on: {:?}",
        each_second(&samples, blow)
    );
    figures(&samples, blow)
}

/// The count as it was seen last at `moment`.
fn count_at(samples: &[Sample], moment: Instant) -> u64 {
    let before = samples.iter().rev().find(|(when, _)| *when <= moment);
    before.map_or(0, |(_, count)| *count)
}

fn each_second(samples: &[Sample], blow: Instant) -> Vec<u64> {
    let at = |moment: Instant| count_at(samples, moment);
    let start = blow - Duration::from_secs(2);
    let moments: Vec<u64> = (0..=10)
        .map(|n| at(start + Duration::from_secs(n)))
        .collect();
    moments
        .windows(2)
        .map(|pair| pair[1].saturating_sub(pair[0]))
        .collect()
}

/// Starts jobs where those that run have less than six tenths of their inputs left.
fn keep_jobs_running(cluster: &Cluster, node: &str, jobs: &mut u64) {
    if *jobs > 0 {
        let counts = counts(&mut Client::new(cluster.nodes[node].addr)).expect("an answer");
        let running = &counts[counts.len() - JOBS..];
        if running.iter().all(|count| *count < INPUTS as u64 * 4 / 10) {
            return;
        }
        wait_until("the jobs complete", PATIENCE, || {
            completed(cluster, node) == *jobs
        });
    }
    for _ in 0..JOBS {
        cluster.ok(node, &["infer", "lenet", "digit.png", BATCH]);
        *jobs += 1;
    }
}

fn completed(cluster: &Cluster, node: &str) -> u64 {
    let shown = cluster.json(node, &["job_info"]);
    let jobs = shown["jobs"].as_array().expect("a list").clone();
    jobs.iter()
        .filter(|job| job["status"] == "COMPLETED")
        .count() as u64
}

/// Finished queries of each job, by job.
fn counts(client: &mut Client) -> Option<Vec<u64>> {
    match client.request(&Request::JobStats) {
        Ok(Reply::JobStats(jobs)) => Some(jobs.iter().map(|job| job.count).collect()),
        _ => None,
    }
}

fn watch(mut client: Client, samples: &Mutex<Vec<Sample>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Some(counts) = counts(&mut client) {
            let total = counts.iter().sum();
            samples
                .lock()
                .expect("no panic")
                .push((Instant::now(), total));
        }
        std::thread::sleep(GAP);
    }
}

fn figures(samples: &[Sample], blow: Instant) -> [f64; 2] {
    let at = |moment: Instant| count_at(samples, moment);
    let since = |moment: Instant| moment.saturating_duration_since(blow).as_secs_f64();
    let before = at(blow);
    // Answers that were on their way at the blow may show a little more.
    let grace = blow + Duration::from_millis(50);
    let known = at(grace).max(before);
    let moved = samples
        .iter()
        .find(|(when, count)| *when > grace && *count > known);
    let moved = moved.map_or(f64::INFINITY, |(when, _)| since(*when));
    let second = Duration::from_secs(1);
    let (from, until) = (blow + 4 * second, blow + 8 * second);
    let each_second = (at(until) - at(from)) as f64 / 4.0;
    let later = samples.iter().map(|(when, _)| *when);
    let back = later
        .filter(|when| *when >= blow && *when <= until)
        .find(|when| (at(*when + second) - at(*when)) as f64 >= 0.95 * each_second);
    [moved, back.map_or(f64::INFINITY, since)]
}

/// Every job has each of its inputs once.
fn check_results(cluster: &Cluster, jobs: u64) {
    let node = cluster.nodes.keys().next().expect("some run");
    wait_until("all jobs complete", PATIENCE, || {
        completed(cluster, node) == jobs
    });
    for job in 0..jobs {
        cluster.ok(node, &["get", &format!("{job}.csv"), "result.csv"]);
        let text = std::fs::read_to_string(cluster.dir.join("result.csv")).expect("read");
        let mut files: Vec<&str> = text
            .lines()
            .skip(1)
            .filter_map(|row| row.split(',').next())
            .collect();
        let (rows, errors) = (
            files.len(),
            text.lines().filter(|row| row.contains(",,,")).count(),
        );
        files.sort_unstable();
        files.dedup();
        assert_eq!(
            (rows, files.len(), errors),
            (INPUTS, INPUTS, 0),
            "job {job}"
        );
    }
    println!("{jobs} jobs of {INPUTS} inputs: one row each, no input lost or doubled");
}
