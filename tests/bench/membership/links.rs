//! Six real nodes, each in a network namespace of its own, with links that are cut and lossy;
//! and the same in virtual time beside it.
//!
//! A cut takes the hub's end of a node's link down, so that the node's own end loses its
//! carrier. Loss is nftables' random drop of what arrives at a node or at the introducer,
//! TCP and UDP alike, but for what this program asks.

use std::net::SocketAddr;
use std::time::Duration;

use dlc::membership::ring::position;
use dlc::types::{NodeId, Rng};

use crate::harness::{self, Cluster, millis, secs};
use crate::namespaces::{addr, filter, run_in_hub, set_link, start_all};
use crate::sighting::{Observer, agree, known_to_all, total};
use crate::{percentiles, verdict, wish};

/// The argument with which this program starts itself again inside the hub.
pub const INSIDE: &str = "links-inside-the-hub";

const NODES: usize = 6;
const LIMIT: Duration = Duration::from_secs(20);
const REJOIN: Duration = Duration::from_secs(60);
/// Percent of packets, each way.
const LOSSES: [u64; 3] = [0, 10, 30];

pub fn run() {
    run_in_hub("Links between network namespaces", INSIDE, NODES);
}

fn set_loss(percent: u64) {
    for index in 0..=NODES {
        filter(index, &format!("numgen random mod 100 < {percent} drop")).expect("nft works");
    }
}

/// Starts everything and measures; runs inside the hub's namespace.
pub fn run_inside() {
    let rounds = wish("ROUNDS", 20);
    let span = wish("SPAN", 120);
    let dir = tempfile::tempdir().expect("a folder for the cluster");
    let models = dir.path().join("no-models");
    std::fs::create_dir_all(&models).expect("an empty folder");
    let _processes = start_all(dir.path(), NODES, &models);
    let observer = |index| Observer {
        name: format!("n{index}"),
        addr: addr(index),
    };
    let nodes: Vec<Observer> = (1..=NODES).map(observer).collect();
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    assert!(agree(&nodes, &names, REJOIN), "the cluster forms");
    println!("{NODES} real nodes in network namespaces, and in brackets the same in virtual time");
    println!(
        "known to every member that is left, {rounds} cuts each (seconds)   p50            p99            max"
    );
    let mut rng = Rng::new(6);
    for count in [1, 3] {
        let mut spans: Vec<Duration> = (0..rounds)
            .map(|_| cut(&nodes, &names, count, &mut rng))
            .collect();
        let [p50, p99, max] = percentiles(&mut spans);
        let [s50, s99, smax] = percentiles(&mut simulated_cuts(count, rounds));
        let verdict = verdict(p99 <= 3.0 && max <= 5.0);
        println!(
            "{count} link(s) cut {:44} {p50:4.2} ({s50:4.2})    {p99:4.2} ({s99:4.2})    {max:4.2} ({smax:4.2})   p99 3.0, max 5.0: {verdict}",
            ""
        );
    }
    println!(
        "loss each way, {span} s each:      pings repeated     unanswered        members removed"
    );
    for loss in LOSSES {
        set_loss(loss);
        lossy(&nodes, loss, span);
    }
    set_loss(0);
    one_way(&nodes, &names, span);
}

/// Cuts the links of `count` neighbours on the ring, and mends them.
fn cut(nodes: &[Observer], names: &[String], count: usize, rng: &mut Rng) -> Duration {
    let mut ring: Vec<usize> = (0..nodes.len()).collect();
    ring.sort_by_key(|index| position(&NodeId::new(&names[*index]).expect("valid name")));
    let first = rng.below(ring.len() as u64) as usize;
    let cut: Vec<usize> = (0..count)
        .map(|offset| ring[(first + offset) % ring.len()])
        .collect();
    let victims: Vec<String> = cut.iter().map(|index| names[*index].clone()).collect();
    let others: Vec<Observer> = nodes
        .iter()
        .filter(|node| !victims.contains(&node.name))
        .cloned()
        .collect();
    std::thread::sleep(rng.span(millis(0), millis(1000)));
    let span = known_to_all(&others, &victims, LIMIT, || {
        cut.iter().for_each(|index| set_link(index + 1, false));
    });
    let left: Vec<String> = others.iter().map(|it| it.name.clone()).collect();
    assert!(agree(&others, &left, secs(2)), "nobody else is removed");
    cut.iter().for_each(|index| set_link(index + 1, true));
    assert!(
        agree(nodes, names, REJOIN),
        "who was cut off comes back by itself"
    );
    span.unwrap_or(LIMIT)
}

fn simulated_cuts(count: usize, rounds: u64) -> Vec<Duration> {
    let mut rng = Rng::new(7);
    let mut cluster = Cluster::formed(66, NODES);
    let order = cluster.in_ring_order();
    let mut spans = Vec::new();
    for _ in 0..rounds {
        cluster.run(rng.span(secs(2), secs(4)));
        cluster.seen.clear();
        let first = rng.below(NODES as u64) as usize;
        let victims: Vec<SocketAddr> = (0..count)
            .map(|offset| order[(first + offset) % NODES])
            .collect();
        victims.iter().for_each(|victim| cluster.silence(*victim));
        spans.push(cluster.detection(&victims, LIMIT).unwrap_or(LIMIT));
        victims
            .iter()
            .for_each(|victim| cluster.restart(*victim, false));
        cluster
            .return_of(&victims, secs(30))
            .expect("they come back");
    }
    spans
}

/// What the detector counts while packets are lost.
fn lossy(nodes: &[Observer], loss: u64, span: u64) {
    let counters = ["pings", "pings_repeated", "pings_unanswered", "removals"];
    let count = || counters.map(|name| total(nodes, name));
    let before = count();
    std::thread::sleep(secs(span));
    let after = count();
    let [pings, repeated, unanswered, removed]: [u64; 4] =
        std::array::from_fn(|index| after[index] - before[index]);
    let [s_pings, s_repeated, s_unanswered, s_removed] = simulated_loss(loss);
    let share = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
    println!(
        "{loss:2} %  {:28} {:5.1} ({:5.1}) %   {:6.3} ({:6.3}) %   {removed} ({s_removed})   0 removed: {}",
        "",
        share(repeated, pings),
        share(s_repeated, s_pings),
        share(unanswered, pings),
        share(s_unanswered, s_pings),
        verdict(removed == 0)
    );
}

fn simulated_loss(loss: u64) -> [u64; 4] {
    let mut cluster = Cluster::new(67);
    cluster.metered = false;
    cluster.form(NODES);
    cluster.loss = loss;
    cluster.run(secs(3600));
    let stats = cluster.nodes.values().map(|process| process.core.stats());
    stats.fold([0; 4], |[pings, repeated, unanswered, removed], it| {
        [
            pings + it.probes.probes,
            repeated + it.probes.retried,
            unanswered + it.probes.missed,
            removed + it.removals,
        ]
    })
}

/// One node does not hear another, which hears it.
fn one_way(nodes: &[Observer], names: &[String], span: u64) {
    let before = total(nodes, "removals");
    for index in 1..=NODES {
        let deaf_to = addr(index % NODES + 1).ip();
        filter(index, &format!("ip saddr {deaf_to} drop")).expect("nft works");
        std::thread::sleep(secs(span) / NODES as u32);
        filter(index, "").expect("nft works");
    }
    let removed = total(nodes, "removals") - before;
    let agreed = agree(nodes, names, harness::secs(10));
    println!(
        "one link dead in one direction, six in turn, {span} s: {removed} removed; 0 removed: {}",
        verdict(removed == 0 && agreed)
    );
}
