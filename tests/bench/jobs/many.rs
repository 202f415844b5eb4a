//! A job of a million inputs and a thousand jobs at once: what memory a node needs for them, and
//! how long commands take meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use dlc::models::mnist::{self, Split};

use super::real::{Cluster, wait_until};

const INPUTS: usize = 1_000_000;
/// Beside that one; together they are all that may be unfinished.
const JOBS: usize = 999;
const INPUTS_OF_EACH: usize = 1_000;
const LOOKS: usize = 20;
const COMMANDS: [&[&str]; 5] = [
    &["job_stats"],
    &["job_info"],
    &["explain", "0"],
    &["tail", "0", "10"],
    &["ls", "digit7.png"],
];
const PATIENCE: Duration = Duration::from_secs(900);

pub fn measure(dir: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Ok(mut digits) = mnist::read(&root, Split::Test) else {
        println!("SKIPPED: data/mnist is missing; `make data` fetches it");
        return;
    };
    digits.images.truncate(INPUTS_OF_EACH * mnist::IMAGE_BYTES);
    digits.labels.truncate(INPUTS_OF_EACH);
    let files = dir.join("many");
    mnist::write_digits(&digits, &files).expect("the digits are written");
    for number in 0..INPUTS_OF_EACH {
        let file = |stem: &str| files.join(format!("{stem}{number}.png"));
        std::fs::copy(file("digit"), file("small")).expect("copied");
    }
    let cluster = Cluster::with_nodes(&dir.join("many-cluster"), 1);
    cluster.ok("n1", &["train", "lenet"]);
    let upload = |stem: &str, count: usize| {
        let pattern = files.join(format!("{stem}.png")).display().to_string();
        let (memory, from) = (memory(&cluster), Instant::now());
        cluster.ok("n1", &["upload_data", &pattern, &count.to_string()]);
        report(
            &cluster,
            &format!("{count} files stored"),
            from,
            memory,
            count,
        );
    };
    upload("digit", INPUTS);
    upload("small", INPUTS_OF_EACH);
    let (before, from) = (memory(&cluster), Instant::now());
    infer(&cluster, "digit.png");
    report(
        &cluster,
        "the job of a million submitted",
        from,
        before,
        INPUTS,
    );
    look(&cluster, "with that job running");
    let (before, from) = (memory(&cluster), Instant::now());
    let mut each: Vec<Duration> = (0..JOBS).map(|_| infer(&cluster, "small.png")).collect();
    each.sort();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let what = format!(
        "{JOBS} jobs more: median {:.1} ms, slowest {:.1} ms; all",
        millis(each[JOBS / 2]),
        millis(each[JOBS - 1])
    );
    report(&cluster, &what, from, before, JOBS);
    look(&cluster, "with all jobs running");
    finish(&cluster);
}

/// Submits a job; how long that took, the start of the client's process included.
fn infer(cluster: &Cluster, dataset: &str) -> Duration {
    let from = Instant::now();
    cluster.ok("n1", &["infer", "lenet", dataset, "32"]);
    from.elapsed()
}

fn look(cluster: &Cluster, when: &str) {
    let mut slowest = Vec::new();
    for words in COMMANDS {
        let time = || {
            let from = Instant::now();
            cluster.ok("n1", words);
            from.elapsed()
        };
        let worst = (0..LOOKS).map(|_| time()).max().unwrap_or_default();
        slowest.push(format!("{} {} ms", words[0], worst.as_millis()));
    }
    println!("{when}, slowest of {LOOKS}: {}", slowest.join(", "));
}

/// Waits for the ends of all jobs, and counts what they did.
fn finish(cluster: &Cluster) {
    let (from, before) = (Instant::now(), counted(cluster));
    wait_until("all jobs complete", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(200));
        let shown = cluster.json("n1", &["job_info"]);
        let jobs = shown["jobs"].as_array().expect("a list");
        assert_eq!(jobs.len(), JOBS + 1, "all are remembered");
        jobs.iter().all(|job| job["status"] == "COMPLETED")
    });
    let (after, took) = (counted(cluster), from.elapsed().as_secs_f64());
    let wanted = (INPUTS + JOBS * INPUTS_OF_EACH) as u64;
    assert_eq!(after, wanted, "each input has its row");
    let rate = (after - before) as f64 / took;
    println!("all {wanted} inputs have their rows; {rate:.0} queries/s to the end");
    println!("{:.0} MB at the end", memory(cluster) / 1e6);
}

fn counted(cluster: &Cluster) -> u64 {
    let shown = cluster.json("n1", &["job_stats"]);
    let jobs = shown["jobs"].as_array().expect("a list");
    let errors = |job: &serde_json::Value| job["errors"].as_u64().expect("a number");
    assert_eq!(jobs.iter().map(errors).sum::<u64>(), 0);
    let count = |job: &serde_json::Value| job["count"].as_u64().expect("a number");
    jobs.iter().map(count).sum()
}

/// Bytes of the node's memory that are in use.
fn memory(cluster: &Cluster) -> f64 {
    let path = format!("/proc/{}/status", cluster.nodes["n1"].child.id());
    let text = std::fs::read_to_string(path).expect("a running process");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next());
    let kibibytes: f64 = kibibytes
        .and_then(|word| word.parse().ok())
        .expect("a number");
    kibibytes * 1_024.0
}

fn report(cluster: &Cluster, what: &str, from: Instant, before: f64, count: usize) {
    let (took, after) = (from.elapsed(), memory(cluster));
    println!(
        "{what} in {:.2} s; {:.0} MB, {:.0} bytes more for each",
        took.as_secs_f64(),
        after / 1e6,
        (after - before) / count as f64
    );
}
