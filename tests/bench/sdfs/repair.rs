//! Re-replication after a crash: one large file, and ten thousand small ones.

use std::path::Path;
use std::time::{Duration, Instant};

use super::real::Cluster;
use super::{cluster, limits, poll};

const LARGE: usize = 40_000_000;
const SMALL: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(120);

pub fn measure(dir: &Path) {
    let mut cluster = cluster(dir);
    let source = dir.join("source");
    std::fs::write(&source, vec![5; LARGE]).expect("written");
    cluster.ok("n1", &["put", source.to_str().expect("text"), "large"]);
    let [known, repaired, _] = crash(&mut cluster, "large");
    let spent = repaired - known;
    let verdict = if spent <= 0.5 { "met" } else { "MISSED" };
    println!(
        "a 40 MB file after a crash: known after {known:.2} s, whole again {spent:.2} s later \
         (at most 0.5): {verdict}"
    );
    for number in 0..100 {
        let content = vec![number as u8; 300];
        std::fs::write(dir.join(format!("digit{number}.png")), content).expect("written");
    }
    cluster.ok("n1", &["upload_data", "digit.png", &SMALL.to_string()]);
    wait_for_repair(&cluster, "n1");
    let [known, repaired, copies] = crash(&mut cluster, "digit0.png");
    let rate = copies / (repaired - known);
    let limits = dir.join("limits");
    std::fs::create_dir_all(&limits).expect("made");
    let spent = limits::small_files(&limits, copies as usize, 300, 1);
    let limit = copies / spent.as_secs_f64();
    let verdict = if rate >= limit / 2.0 { "met" } else { "MISSED" };
    println!(
        "{copies:.0} copies of small files after a crash: {rate:.0} files/s (plain files and one \
         syncfs: {limit:.0}), at least half of it: {verdict}"
    );
}

/// Kills a holder of `file` that does not lead, and starts it again in the end. Seconds until
/// the members know, seconds until every file has its copies again, and copies that were missing.
fn crash(cluster: &mut Cluster, file: &str) -> [f64; 3] {
    let leader = cluster.coordinator("n1").expect("somebody leads");
    let held = cluster.json(&leader, &["ls", file]);
    let held = held["replicas"].as_array().expect("a list").clone();
    let names = held.iter().filter_map(|id| id.as_str()?.split(':').next());
    let mut others = names.filter(|name| *name != leader);
    let victim = others.next().expect("four copies").to_string();
    let begun = Instant::now();
    cluster.kill(&victim);
    let known = poll(PATIENCE, || {
        let members = cluster.json(&leader, &["list_mem"]);
        let members = members["members"].as_array().expect("a list").len();
        (members < super::NODES).then(|| begun.elapsed().as_secs_f64())
    });
    let missing = missing(cluster, &leader);
    let repaired = wait_for_repair(cluster, &leader);
    let repaired = repaired.duration_since(begun).as_secs_f64();
    cluster.start(&victim);
    cluster.wait_for_members(super::NODES);
    wait_for_repair(cluster, &leader);
    [known.expect("it is removed"), repaired, missing]
}

fn missing(cluster: &Cluster, node: &str) -> f64 {
    cluster.json(node, &["under"])["total"]
        .as_f64()
        .expect("a number")
}

fn wait_for_repair(cluster: &Cluster, node: &str) -> Instant {
    let whole = || (missing(cluster, node) == 0.0).then(Instant::now);
    poll(PATIENCE, whole).expect("the files are repaired")
}
