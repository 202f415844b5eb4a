//! SDFS against its bars: each figure beside what the disk does in the same run. Run by
//! `make bench-sdfs`; `PARTS` are those of files, sparse, small, repair, beside, catalog and
//! crashes that are wanted, `ROUNDS` the repetitions of a figure (5), of which the median is
//! printed, or of crashes (100).
//!
//! Six real nodes on this machine, all on its disk; commands run through `dlc`, so that its start
//! counts too.

#[path = "../../cluster/harness.rs"]
#[allow(dead_code)]
mod real;

mod beside;
mod catalog;
mod crashes;
mod files;
mod limits;
mod repair;
mod small;
mod sparse;

use std::path::Path;
use std::time::{Duration, Instant};

use real::Cluster;

const NODES: usize = 6;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|it| it == part);
    println!("what                                        ours     limit     ratio  bar");
    for part in [
        "files", "sparse", "small", "repair", "beside", "catalog", "crashes",
    ] {
        if !is_wanted(part) {
            continue;
        }
        let dir = tempfile::tempdir().expect("a folder for the cluster");
        match part {
            "files" => files::measure(dir.path()),
            "sparse" => sparse::measure(dir.path()),
            "small" => small::measure(dir.path()),
            "repair" => repair::measure(dir.path()),
            "beside" => beside::measure(dir.path()),
            "crashes" => crashes::measure(dir.path()),
            _ => catalog::measure(),
        }
    }
}

/// Nodes without networks.
fn cluster(dir: &Path) -> Cluster {
    let mut cluster = Cluster::new(dir);
    cluster.models = dir.join("no-models");
    std::fs::create_dir_all(&cluster.models).expect("an empty folder");
    for number in 1..=NODES {
        cluster.start(&format!("n{number}"));
    }
    cluster.wait_for_members(NODES);
    cluster
}

/// Repetitions, `default` where the user does not say.
fn rounds(default: usize) -> usize {
    let rounds = std::env::var("ROUNDS").ok().filter(|text| !text.is_empty());
    rounds.map_or(default, |text| text.parse().expect("ROUNDS is a number"))
}

/// How long `work` takes, in seconds.
fn timed(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A line of the table; `bar` is what `ours` may be at most.
fn report(what: &str, ours: f64, limit: f64, bar: f64) {
    let verdict = if ours <= bar { "met" } else { "MISSED" };
    println!(
        "{what:<40} {ours:>7.3} s {limit:>7.3} s {:>7.2}  at most {bar:.3} s: {verdict}",
        ours / limit
    );
}

/// The largest growth of a node's own memory (RssAnon) so far over what it was at `before`, MiB.
fn grown(cluster: &Cluster, before: &[u64]) -> u64 {
    let now = memory(cluster).into_iter().zip(before);
    now.map(|(now, before)| now.saturating_sub(*before))
        .max()
        .unwrap_or(0)
}

/// Own memory (RssAnon) of each node, MiB.
fn memory(cluster: &Cluster) -> Vec<u64> {
    let of = |node: &real::Process| own_memory(&node.child.id().to_string()) / 1024;
    cluster.nodes.values().map(of).collect()
}

/// Own memory (RssAnon) of a process, KiB.
fn own_memory(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|it| it.trim().trim_end_matches(" kB").parse().ok());
    kilobytes.unwrap_or(0)
}

/// Polls `figure` until it is there.
fn poll<T>(patience: Duration, mut figure: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(found) = figure() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}
