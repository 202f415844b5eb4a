//! Seven real nodes in network namespaces are cut into five and two: the five go on, the two
//! refuse, and after the cut all agree. Run by `make bench-partition`; `ROUNDS` (10) are the cuts.
//!
//! In every second round the coordinator is among the two. Packets between the sides are dropped
//! where they arrive; the introducer is with the five.

#[allow(dead_code)]
mod namespaces;
#[path = "../cluster/harness.rs"]
#[allow(dead_code)]
mod real;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use namespaces::{addr, filter, run_in_hub, start_all};
use real::{Said, dlc, wait_until};
use serde_json::Value;

/// The argument with which this program starts itself again inside the hub.
const INSIDE: &str = "partition-inside-the-hub";
const NODES: usize = 7;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the sides are apart after the two have refused.
const APART: Duration = Duration::from_secs(5);
const AGREED_MAX: f64 = 5.0;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(INSIDE) => run(),
        _ => run_in_hub("A cluster cut in two", INSIDE, NODES),
    }
}

fn run() {
    let rounds = std::env::var("ROUNDS").ok().filter(|text| !text.is_empty());
    let rounds: usize = rounds.map_or(10, |text| text.parse().expect("ROUNDS is a number"));
    let dir = tempfile::tempdir().expect("a folder for the cluster");
    let dir = dir.path();
    let models = dir.join("no-models");
    std::fs::create_dir_all(&models).expect("an empty folder");
    let _processes = start_all(dir, NODES, &models);
    wait_until("all agree and vote", PATIENCE, || agreed(dir).is_some());
    println!(
        "Seven nodes cut into five and two, {rounds} rounds (seconds)          p50    max   bar"
    );
    let mut figures: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        let found = cut(dir, round);
        figures
            .iter_mut()
            .zip(found)
            .for_each(|(all, one)| all.push(one));
    }
    let names = [
        "the five answer a put after the cut",
        "the two have refused a put",
        "all agree after the mending",
    ];
    for ((name, spans), bar) in names
        .iter()
        .zip(&mut figures)
        .zip([None, None, Some(AGREED_MAX)])
    {
        spans.sort_by(f64::total_cmp);
        let (median, max) = (spans[spans.len() / 2], spans[spans.len() - 1]);
        let bar = bar.map_or(String::new(), |bar| {
            format!(
                "   max {bar}: {}",
                if max <= bar { "met" } else { "MISSED" }
            )
        });
        println!("{name:<58} {median:>6.2} {max:>6.2}{bar}");
    }
}

fn say(dir: &Path, node: usize, words: &[&str]) -> Said {
    dlc(addr(node), dir, words)
}

/// The coordinator, where all nodes see the same one and all others as standbys.
fn agreed(dir: &Path) -> Option<usize> {
    let mut seen = BTreeSet::new();
    for node in 1..=NODES {
        let shown: Value =
            serde_json::from_str(&say(dir, node, &["--json", "list_mem"]).stdout).ok()?;
        let members = shown["members"].as_array()?.clone();
        let of = |role: &str| {
            members
                .iter()
                .filter(|member| member["role"] == role)
                .count()
        };
        if members.len() != NODES || of("coordinator") != 1 || of("standby") != NODES - 1 {
            return None;
        }
        let leader = members
            .into_iter()
            .find(|member| member["role"] == "coordinator")?;
        seen.insert(leader["name"].as_str()?[1..].parse().ok()?);
    }
    (seen.len() == 1).then(|| seen.into_iter().next())?
}

/// Drops what arrives from the other side, at both; or nothing any more.
fn set_cut(two: &[usize], is_cut: bool) {
    for node in 0..=NODES {
        let others = (0..=NODES).filter(|other| two.contains(other) != two.contains(&node));
        let drop = |other: usize| format!("ip saddr {} drop", addr(other).ip());
        let rules: Vec<String> = others.filter(|_| is_cut).map(drop).collect();
        filter(node, &rules.join("\n ")).expect("nft works");
    }
}

/// One cut: when the five answered, when the two refused, and when all agreed again.
fn cut(dir: &Path, round: usize) -> [f64; 3] {
    let leader = agreed(dir).expect("all agreed before");
    let other = 1 + (leader + round) % NODES;
    let other = if other == leader {
        1 + other % NODES
    } else {
        other
    };
    let third = (1..=NODES)
        .find(|node| ![leader, other].contains(node))
        .expect("seven");
    let two = if round.is_multiple_of(2) {
        [leader, other]
    } else {
        [other, third]
    };
    let five: Vec<usize> = (1..=NODES).filter(|node| !two.contains(node)).collect();
    std::fs::write(dir.join("in"), format!("before {round}")).expect("written");
    assert_eq!(say(dir, two[0], &["put", "in", "file"]).status, 0);
    let before = versions(dir, five[0]);

    set_cut(&two, true);
    let begun = Instant::now();
    let since = |begun: Instant| begun.elapsed().as_secs_f64();
    std::fs::write(dir.join("in"), format!("apart {round}")).expect("written");
    let (went_on, refused) = std::thread::scope(|scope| {
        let refusing = scope.spawn(|| {
            let said = say(dir, two[1], &["put", "in", "other"]);
            assert_eq!(said.status, 1, "the two took a put: {said:?}");
            assert!(said.stderr.contains("majority"), "{said:?}");
            since(begun)
        });
        wait_until("the five go on", PATIENCE, || {
            say(dir, five[0], &["put", "in", "file"]).status == 0
        });
        (since(begun), refusing.join().expect("it refused"))
    });
    let read = say(dir, two[0], &["get", "file", "out"]);
    assert_eq!(
        read.status, 1,
        "the two read as if nothing were wrong: {read:?}"
    );
    let stale = say(dir, two[0], &["get", "--stale", "file", "stale"]);
    // All copies may be with the five.
    let is_elsewhere = stale.stderr.contains("no live node holds a copy");
    assert!(stale.status == 0 || is_elsewhere, "{stale:?}");
    std::thread::sleep(APART);

    let newest = versions(dir, five[0]);
    assert!(newest > before);
    set_cut(&two, false);
    let mended = Instant::now();
    wait_until("all agree", PATIENCE, || {
        agreed(dir).is_some() && (1..=NODES).all(|node| versions(dir, node) == newest)
    });
    let agreed = since(mended);
    let other = say(dir, five[0], &["get", "other", "out"]);
    assert_eq!(other.status, 1, "a refused put is there: {other:?}");
    [went_on, refused, agreed]
}

/// How many versions `node` is told that `file` has; 0 where it is told nothing.
fn versions(dir: &Path, node: usize) -> u64 {
    let said = say(dir, node, &["--json", "ls", "file"]);
    let shown: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
    shown["version"].as_u64().map_or(0, |version| version + 1)
}
