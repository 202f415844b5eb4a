//! How fairly two jobs share the nodes of a real cluster: ResNet-50 on photographs, and LeNet on
//! digits, which comes when the first one is at work. Run by `make bench-fairness`; `NODES`
//! (4,10), `BATCHES` (1,2,5,10). Draws the rates over time, as the seed's plot had them, into
//! `target/fairness`.
//!
//! Four figures for each: when the second job's first task started, as a client saw it, against
//! one running task and 50 ms; how far the queries handed out to either ran apart, of which
//! their passes differ by at most a batch; when the rates since the second job came agreed
//! within 10 % for good; and in which share of the samples they did, once both had ten batches
//! for each node behind them.

#[path = "../../cluster/harness.rs"]
#[allow(dead_code)]
mod real;

mod plot;

use std::path::Path;
use std::time::{Duration, Instant};

use dlc::console::client::Client;
use dlc::models::mnist::{self, Split};
use dlc::models::photographs::Photographs;
use dlc::wire::client::{JobStats, Reply, Request};
use real::Cluster;

/// Inputs of either job: more than are done while it is watched.
const INPUTS: usize = 6_000;
/// Between two looks.
const GAP: Duration = Duration::from_millis(10);
/// The first job runs alone for this long.
const ALONE: Duration = Duration::from_secs(8);
/// Batches for each node until the rates must agree, and until the watching ends.
const SETTLED: u64 = 10;
const WATCHED: u64 = 15;
/// What a client may be late in seeing a task start.
const GRACE: f64 = 0.05;
const PATIENCE: Duration = Duration::from_secs(300);

/// One look at both jobs.
pub struct Sample {
    /// Seconds since the second job was submitted.
    at: f64,
    /// Finished queries.
    counts: [u64; 2],
    /// Finished or handed out.
    served: [u64; 2],
}

fn main() {
    let dir = tempfile::tempdir().expect("a folder");
    if images(dir.path()).is_none() {
        return;
    }
    println!("ResNet-50 first, LeNet {} s later", ALONE.as_secs());
    println!(
        "nodes batch | first task s (one task + 0.05) | handed out apart (2 batches) | agree from s | agree then"
    );
    for nodes in numbers("NODES", &[4, 10]) {
        let home = dir.path().join(format!("cluster-{nodes}"));
        let cluster = Cluster::with_nodes(&home, nodes);
        for model in ["resnet50", "lenet"] {
            cluster.ok("n1", &["train", model]);
        }
        for name in ["flower.jpg", "digit.png"] {
            let pattern = dir.path().join(name).display().to_string();
            cluster.ok("n1", &["upload_data", &pattern, &INPUTS.to_string()]);
        }
        for batch in numbers("BATCHES", &[1, 2, 5, 10]) {
            let found = watch(&cluster, nodes, batch);
            report(nodes, batch, &found);
        }
    }
}

/// Numbers in the environment, separated by commas, or these.
fn numbers(name: &str, usual: &[usize]) -> Vec<usize> {
    let given = std::env::var(name).ok().filter(|text| !text.is_empty());
    let parse = |word: &str| word.parse().expect("numbers, separated by commas");
    given.map_or(usual.to_vec(), |text| text.split(',').map(parse).collect())
}

/// Writes digits and photographs as files; none where one of them is missing.
fn images(dir: &Path) -> Option<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let digits = mnist::read(&root.join("data/mnist"), Split::Test);
    let flowers = Photographs::read(&root.join("data/flowers"), Split::Test);
    let (Ok(mut digits), Ok(flowers)) = (digits, flowers) else {
        println!("SKIPPED: data/mnist or data/flowers is missing; `make data` fetches them");
        return None;
    };
    digits.images.truncate(1_000 * mnist::IMAGE_BYTES);
    digits.labels.truncate(1_000);
    mnist::write_digits(&digits, dir).expect("the digits are written");
    for number in 0..flowers.len() {
        let bytes = flowers.bytes(number).expect("a photograph");
        std::fs::write(dir.join(format!("flower{number}.jpg")), bytes).expect("written");
    }
    Some(())
}

/// What was seen.
struct Found {
    /// Seconds until the second job was seen to have started.
    started: f64,
    /// The longest task of the first job until then, in seconds.
    task: f64,
    samples: Vec<Sample>,
}

fn watch(cluster: &Cluster, nodes: usize, batch: usize) -> Found {
    let mut client = Client::new(cluster.nodes["n1"].addr);
    let infer = |model: &str, set: &str| -> usize {
        let said = cluster.json("n1", &["infer", model, set, &batch.to_string()]);
        said["job"].as_u64().expect("a number") as usize
    };
    let first = infer("resnet50", "flower.jpg");
    std::thread::sleep(ALONE);
    let from = Instant::now();
    let second = infer("lenet", "digit.png");
    let (mut started, mut task, mut samples) = (None, 0.0, Vec::new());
    let wanted = WATCHED * (nodes * batch) as u64;
    let mut came = None;
    loop {
        std::thread::sleep(GAP);
        let at = from.elapsed();
        assert!(at < PATIENCE, "the jobs stand still");
        let stats = stats(&mut client);
        let jobs = [&stats[first], &stats[second]];
        if started.is_none() && jobs[1].served > 0 {
            started = Some(at.as_secs_f64());
            task = jobs[0].p99;
        }
        let counts = jobs.map(|job| job.count);
        let base = *came.get_or_insert(counts);
        let served = jobs.map(|job| job.served);
        let at = at.as_secs_f64();
        samples.push(Sample { at, counts, served });
        let done = [counts[0] - base[0], counts[1] - base[1]];
        let out = jobs.iter().any(|job| job.served >= job.total);
        if out || done.iter().all(|done| *done >= wanted) {
            break;
        }
    }
    for job in [first, second] {
        cluster.ok("n1", &["cancel", &job.to_string()]);
    }
    real::wait_until("both have ended", PATIENCE, || {
        let stats = stats(&mut client);
        stats.iter().all(|job| job.assigned_nodes.is_empty())
    });
    // Tasks that run when their job is cancelled are finished all the same.
    std::thread::sleep(Duration::from_secs(3));
    Found {
        started: started.expect("it has run"),
        task,
        samples,
    }
}

fn stats(client: &mut Client) -> Vec<JobStats> {
    match client.request(&Request::JobStats) {
        Ok(Reply::JobStats(jobs)) => jobs,
        other => panic!("{other:?}"),
    }
}

fn report(nodes: usize, batch: usize, found: &Found) {
    let samples = &found.samples;
    let base = samples[0].counts;
    let done = |sample: &Sample| [0, 1].map(|job| sample.counts[job] - base[job]);
    let agree = |sample: &Sample| {
        let [a, b] = done(sample).map(|done| done as f64);
        (a - b).abs() <= 0.1 * a.max(b)
    };
    let settled = SETTLED * (nodes * batch) as u64;
    let is_settled = |sample: &&Sample| done(sample).iter().all(|done| *done >= settled);
    let after: Vec<&Sample> = samples.iter().filter(is_settled).collect();
    let agreeing = after.iter().filter(|sample| agree(sample)).count();
    let share = agreeing as f64 / after.len().max(1) as f64;
    let last_apart = samples.iter().rposition(|sample| !agree(sample));
    let from = last_apart.map_or(0.0, |place| samples[place].at);
    // Passes differ by at most a batch one way or the other, so these by two batches in all.
    let running = samples.iter().filter(|sample| sample.served[1] > 0);
    let apart: Vec<i64> = running
        .map(|sample| sample.served[0] as i64 - sample.served[1] as i64)
        .collect();
    let spread = apart.iter().max().unwrap_or(&0) - apart.iter().min().unwrap_or(&0);
    let allowed = found.task + GRACE;
    let verdict = |met: bool| if met { "met" } else { "MISSED" };
    println!(
        "{nodes:>5} {batch:>5} | {:>6.2} ({allowed:.2}) {:<6} | {spread:>4} ({}) {:<6} | {from:>6.1} (both {settled} at {:.1}) | {:.1} % of {} {}",
        found.started,
        verdict(found.started <= allowed),
        2 * batch,
        verdict(spread <= 2 * batch as i64),
        after.first().map_or(f64::NAN, |sample| sample.at),
        share * 100.0,
        after.len(),
        verdict(share >= 0.99),
    );
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fairness");
    let path = folder.join(format!("{nodes}-nodes-batch-{batch}.svg"));
    let title = format!("{nodes} nodes, batch {batch}: queries/s of the last 10 s");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&path, plot::rates(&title, samples)))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    eprintln!("  rates over time: {}", path.display());
}
