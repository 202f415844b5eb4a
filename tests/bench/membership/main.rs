//! Membership against its bars: how soon failures are known, whom it removes wrongly, what it
//! sends. Run by `make bench-membership`.
//!
//! Parts, all of them without arguments: `detection`, `accuracy`, `traffic` and `churn` in
//! virtual time; `processes` on ten real nodes on this machine; `links` on six in network
//! namespaces, with links that are cut and lossy (needs root, `ip` and `nft`, and is skipped
//! plainly without). `HOURS` (100) are the virtual node-hours for each cell of the accuracy
//! table, `EVENTS` (200) the simulated failures for each line, `SEEDS` (5000) those of churn,
//! `ROUNDS` (20) the real failures for each line, `SPAN` (120) the seconds of each real loss.

mod accuracy;
#[path = "../../membership/churn.rs"]
mod churn;
mod detection;
#[path = "../../membership/harness/mod.rs"]
mod harness;
mod links;
#[path = "../namespaces.rs"]
mod namespaces;
mod processes;
#[path = "../../cluster/harness.rs"]
#[allow(dead_code)]
mod real;
mod sighting;
mod traffic;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The number that the environment gives for `name`, or else `default`.
fn wish(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} is no number")),
        _ => default,
    }
}

/// Carries out `work` for 0 to `count` on all processors; the results in order.
fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
        let worker = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return done;
                }
                done.push((index, work(index)));
            }
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let results = handles.into_iter();
        results.flat_map(|h| h.join().expect("no panic")).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The median, the 99th percentile and the greatest of `spans`, in seconds.
fn percentiles(spans: &mut [Duration]) -> [f64; 3] {
    spans.sort();
    let at = |share: f64| {
        let index = (spans.len() as f64 * share).ceil() as usize;
        spans[index.clamp(1, spans.len()) - 1].as_secs_f64()
    };
    [at(0.5), at(0.99), at(1.0)]
}

/// How a figure stands to its bar, in a word.
fn verdict(met: bool) -> &'static str {
    match met {
        true => "met",
        false => "MISSED",
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted == [links::INSIDE] {
        return links::run_inside();
    }
    let parts: [(&str, fn()); 6] = [
        ("detection", detection::run),
        ("accuracy", accuracy::run),
        ("traffic", traffic::run),
        ("churn", churned),
        ("processes", processes::run),
        ("links", links::run),
    ];
    for part in &wanted {
        if parts.iter().all(|(name, _)| name != part) {
            let names = parts.map(|(name, _)| name).join(", ");
            eprintln!("error: no part {part:?}; there are {names}");
            std::process::exit(2);
        }
    }
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|part| part == name) {
            run();
            println!();
        }
    }
}

fn churned() {
    let seeds = wish("SEEDS", 5000) as usize;
    println!(
        "Churn: joins, leaves, restarts, moves, pauses, cuts and loss for a minute, then peace"
    );
    let wrong: Vec<(usize, String)> = in_parallel(seeds, |seed| churn::churn(seed as u64, false))
        .into_iter()
        .enumerate()
        .filter_map(|(seed, result)| result.err().map(|what| (seed, what)))
        .collect();
    for (seed, what) in &wrong {
        println!("seed {seed}: {what}");
    }
    let verdict = verdict(wrong.is_empty());
    println!(
        "{seeds} seeds, {} end with unequal views (bar 0: {verdict})",
        wrong.len()
    );
}
