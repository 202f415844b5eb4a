//! Queries a second of a cluster on this machine, against as many plain processes of the same
//! engine over the same files, and against ONNX Runtime in two; scheduling alone; and many jobs.
//! Run by `make bench-jobs`; `PARTS` (scheduler, many, lenet, onnx, resnet50), `NODES` (1,2,4),
//! `BATCHES`, `ROUNDS` (5).
//!
//! Both clocks hold reading, decoding, classifying and the rows. The plain processes and the
//! cluster take turns, and the median of their ratios counts.

#[path = "../../cluster/harness.rs"]
#[allow(dead_code)]
mod real;

mod alone;
mod many;
mod scheduler;

use std::path::Path;
use std::time::{Duration, Instant};

use alone::Plain;
use dlc::console::client::Client;
use dlc::models::mnist::{self, Split};
use dlc::models::photographs::Photographs;
use dlc::wire::client::{JobStats, Reply, Request};
use real::{Cluster, wait_until};

const PATIENCE: Duration = Duration::from_secs(300);
const GAP: Duration = Duration::from_millis(10);

/// What is classified.
pub struct Task {
    model: &'static str,
    stem: &'static str,
    extension: &'static str,
    count: usize,
    /// Jobs over the same files, at once; the plain processes go round as often.
    jobs: usize,
    batches: &'static [usize],
    bar: f64,
}

const LENET: Task = Task {
    model: "lenet",
    stem: "digit",
    extension: "png",
    count: 60_000,
    jobs: 4,
    batches: &[1, 5, 10, 32],
    bar: 0.9,
};

const RESNET: Task = Task {
    model: "resnet50",
    stem: "flower",
    extension: "jpg",
    count: 240,
    jobs: 4,
    batches: &[1, 4, 10],
    bar: 0.95,
};

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|it| it == part);
    let dir = tempfile::tempdir().expect("a folder");
    if wanted("scheduler") {
        scheduler::measure();
    }
    if wanted("many") {
        many::measure(dir.path());
    }
    if wanted("onnx") && digits(&dir.path().join("files")).is_some() {
        against_onnx(dir.path());
    }
    if wanted("lenet") && digits(&dir.path().join("files")).is_some() {
        compare(&LENET, dir.path());
    }
    if wanted("resnet50") && flowers(&dir.path().join("files"), RESNET.count).is_some() {
        compare(&RESNET, dir.path());
    }
}

/// Numbers in the environment, separated by commas, or these.
fn numbers(name: &str, usual: &[usize]) -> Vec<usize> {
    let given = std::env::var(name).ok().filter(|text| !text.is_empty());
    let parse = |word: &str| word.parse().expect("numbers, separated by commas");
    given.map_or(usual.to_vec(), |text| text.split(',').map(parse).collect())
}

/// LeNet on two nodes, against ONNX Runtime in two plain processes, and against what Ray's
/// actors did on such a machine.
fn against_onnx(dir: &Path) {
    const NODES: usize = 2;
    /// Batch, Ray's queries a second, and what is to be reached of either.
    const BARS: [(usize, f64, f64, f64); 4] = [
        (1, 681.0, 10.0, 1.0),
        (5, 2_673.0, 10.0, 1.0),
        (10, 4_126.0, 5.0, 2.0),
        (32, 7_099.0, 5.0, 2.0),
    ];
    let Some(python) = std::env::var_os("PEERS_PYTHON").filter(|path| !path.is_empty()) else {
        println!("SKIPPED: no Python with ONNX Runtime (PEERS_PYTHON)");
        return;
    };
    let (task, files) = (Task { jobs: 1, ..LENET }, dir.join("files"));
    let (command, home) = (alone::onnx(python, &task), dir.join("onnx"));
    let cluster = start_cluster(&task, dir, &home, NODES);
    println!("lenet on {NODES} nodes, queries/s, against ONNX Runtime in as many plain processes");
    println!("batch    cluster       onnx   ratio          of Ray's");
    for (batch, ray, of_ray, of_onnx) in BARS {
        let mut peer = Plain::start(&command, &task, &files, batch, NODES, &home);
        let mut found = Vec::new();
        for _ in 0..numbers("ROUNDS", &[3])[0] {
            let (ours, theirs) = (run_jobs(&cluster, &task, batch), peer.run(&task));
            found.push((ours / theirs, ours, theirs));
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, ours, theirs) = found[found.len() / 2];
        let verdict = |met: bool| if met { "met" } else { "MISSED" };
        println!(
            "{batch:>5} {ours:>10.0} {theirs:>10.0} {ratio:>7.2} {:<6} {:>9.1} {}",
            verdict(ratio >= of_onnx),
            ours / ray,
            verdict(ours / ray >= of_ray)
        );
    }
}

/// A cluster that has the model loaded and the files in SDFS.
fn start_cluster(task: &Task, dir: &Path, home: &Path, nodes: usize) -> Cluster {
    let cluster = Cluster::with_nodes(home, nodes);
    cluster.ok("n1", &["train", task.model]);
    let files = dir.join("files");
    let pattern = format!("{}/{}.{}", files.display(), task.stem, task.extension);
    cluster.ok("n1", &["upload_data", &pattern, &task.count.to_string()]);
    cluster
}

fn compare(task: &Task, dir: &Path) {
    println!(
        "{}: {} files, {} times, queries/s, the cluster against plain processes (median of the ratios; at least {})",
        task.model, task.count, task.jobs, task.bar
    );
    println!("nodes  batch    cluster      plain   ratio");
    for nodes in numbers("NODES", &[1, 2, 4]) {
        let home = dir.join(format!("{}-{nodes}", task.model));
        let cluster = start_cluster(task, dir, &home, nodes);
        for batch in numbers("BATCHES", task.batches) {
            let files = dir.join("files");
            let command = alone::engine(task);
            let mut plain = Plain::start(&command, task, &files, batch, nodes, &home);
            let mut found = Vec::new();
            for _ in 0..numbers("ROUNDS", &[5])[0] {
                let ours = run_jobs(&cluster, task, batch);
                let theirs = plain.run(task);
                eprintln!("  {nodes} nodes, batch {batch}: {ours:.0} {theirs:.0}");
                found.push((ours / theirs, ours, theirs));
            }
            found.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (ratio, ours, theirs) = found[found.len() / 2];
            let verdict = if ratio >= task.bar { "met" } else { "MISSED" };
            println!("{nodes:>5} {batch:>6} {ours:>10.0} {theirs:>10.0} {ratio:>7.2} {verdict}");
        }
    }
}

/// Queries a second of the jobs from the first submission to the last row.
fn run_jobs(cluster: &Cluster, task: &Task, batch: usize) -> f64 {
    let mut client = Client::new(cluster.nodes["n1"].addr);
    let dataset = format!("{}.{}", task.stem, task.extension);
    let from = Instant::now();
    let submit = || {
        let submitted = cluster.json("n1", &["infer", task.model, &dataset, &batch.to_string()]);
        submitted["job"].as_u64().expect("a number")
    };
    let submitted: Vec<u64> = (0..task.jobs).map(|_| submit()).collect();
    let mut took = Duration::ZERO;
    wait_until("the job has its rows", PATIENCE, || {
        std::thread::sleep(GAP);
        took = from.elapsed();
        match client.request(&Request::JobStats) {
            Ok(Reply::JobStats(jobs)) => {
                let mine = jobs.iter().filter(|job| submitted.contains(&job.job.0));
                let done = |job: &JobStats| job.errors == 0 && job.count == job.total;
                mine.filter(|job| done(job)).count() == submitted.len()
            }
            other => panic!("{other:?}"),
        }
    });
    wait_until("the job completes", PATIENCE, || {
        let shown = cluster.json("n1", &["job_info"]);
        let jobs = shown["jobs"].as_array().expect("a list");
        jobs.iter().all(|job| job["status"] == "COMPLETED")
    });
    (task.count * task.jobs) as f64 / took.as_secs_f64()
}

/// Writes the training digits as files; none where the data is missing.
fn digits(files: &Path) -> Option<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Ok(set) = mnist::read(&folder, Split::Training) else {
        println!("SKIPPED: data/mnist is missing; `make data` fetches it");
        return None;
    };
    mnist::write_digits(&set, files).expect("the digits are written");
    Some(())
}

/// Writes `count` photographs as files; none where there are none.
fn flowers(files: &Path, count: usize) -> Option<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/flowers");
    let Ok(set) = Photographs::read(&folder, Split::Test) else {
        println!("SKIPPED: data/flowers is missing; `make data` fetches it");
        return None;
    };
    std::fs::create_dir_all(files).expect("a folder");
    for number in 0..count {
        let bytes = set.bytes(number % set.len()).expect("a photograph");
        std::fs::write(files.join(format!("flower{number}.jpg")), bytes).expect("written");
    }
    Some(())
}
