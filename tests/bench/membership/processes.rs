//! How soon real nodes on this machine know of failures: ten processes on loopback.

use std::time::Duration;

use dlc::membership::ring::position;
use dlc::types::{NodeId, Rng};
use rustix::process::Signal;

use crate::real::Cluster;
use crate::sighting::{Observer, agree, known_to_all, total};
use crate::traffic::{AUTHENTICATION, STEADY_MAX};
use crate::{percentiles, verdict, wish};

const NODES: usize = 10;
/// Longer than any bar, so that a miss is seen as one.
const LIMIT: Duration = Duration::from_secs(20);
const REJOIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
enum Failure {
    Killed,
    Stopped,
}

pub fn run() {
    let rounds = wish("ROUNDS", 20);
    let dir = tempfile::tempdir().expect("a folder for the cluster");
    println!(
        "Failures known to every live member, {NODES} real processes on this machine, {rounds} each (seconds)"
    );
    let mut cluster = Cluster::new(dir.path());
    cluster.models = dir.path().join("no-models");
    std::fs::create_dir_all(&cluster.models).expect("an empty folder");
    let names: Vec<String> = (1..=NODES).map(|number| format!("n{number}")).collect();
    for name in &names {
        cluster.start(name);
    }
    assert!(
        agree(&observers(&cluster, &[]), &names, REJOIN),
        "the cluster forms"
    );
    steady(&observers(&cluster, &[]));
    println!("failure                                         p50    p99    max   bar");
    let mut rng = Rng::new(4);
    for (failure, count) in [
        (Failure::Killed, 1),
        (Failure::Killed, 3),
        (Failure::Stopped, 1),
        (Failure::Stopped, 3),
    ] {
        let mut spans: Vec<Duration> = (0..rounds)
            .map(|_| round(&mut cluster, &names, failure, count, &mut rng))
            .collect();
        report(failure, count, &mut spans);
    }
    let all = observers(&cluster, &[]);
    let [flaps, pauses] = ["flaps", "pauses"].map(|name| total(&all, name));
    println!(
        "flaps seen, all of stopped processes that went on: {flaps}; pauses noticed: {pauses}"
    );
}

/// What the nodes send while nothing happens.
fn steady(nodes: &[Observer]) {
    std::thread::sleep(Duration::from_secs(15));
    let count = || ["datagrams_sent", "datagram_bytes_sent"].map(|name| total(nodes, name));
    let before = count();
    let span = Duration::from_secs(20);
    std::thread::sleep(span);
    let after = count();
    let [datagrams, bytes]: [u64; 2] = std::array::from_fn(|index| after[index] - before[index]);
    let each = |sum: u64| sum as f64 / span.as_secs_f64() / nodes.len() as f64;
    let rate = each(bytes + AUTHENTICATION * datagrams);
    println!(
        "sent by each in the steady state: {rate:.0} bytes/s, {:.1} datagrams/s   {STEADY_MAX} bytes/s: {}",
        each(datagrams),
        verdict(rate <= STEADY_MAX)
    );
}

fn report(failure: Failure, count: usize, spans: &mut [Duration]) {
    let [p50, p99, max] = percentiles(spans);
    let who = match count {
        1 => "one",
        _ => "three, adjacent on the ring",
    };
    let (how, bar, met) = match failure {
        Failure::Killed => ("killed (kill -9)", "p99 1.0", p99 <= 1.0),
        Failure::Stopped => (
            "silent (SIGSTOP)",
            "p99 3.0, max 5.0",
            p99 <= 3.0 && max <= 5.0,
        ),
    };
    let verdict = verdict(met);
    println!("{how} {who:27} {p50:6.2} {p99:6.2} {max:6.2}   {bar}: {verdict}");
}

fn observers(cluster: &Cluster, without: &[String]) -> Vec<Observer> {
    let nodes = cluster
        .nodes
        .iter()
        .filter(|(name, _)| !without.contains(name));
    let observer = |(name, process): (&String, &crate::real::Process)| Observer {
        name: name.clone(),
        addr: process.addr,
    };
    nodes.map(observer).collect()
}

/// One failure of `count` neighbours on the ring, mended before it returns.
fn round(
    cluster: &mut Cluster,
    names: &[String],
    failure: Failure,
    count: usize,
    rng: &mut Rng,
) -> Duration {
    let mut ring: Vec<String> = names.to_vec();
    ring.sort_by_key(|name| position(&NodeId::new(name).expect("valid name")));
    let first = rng.below(ring.len() as u64) as usize;
    let victims: Vec<String> = (0..count)
        .map(|offset| ring[(first + offset) % ring.len()].clone())
        .collect();
    // At any moment of the pinging.
    std::thread::sleep(rng.span(Duration::ZERO, Duration::from_secs(1)));
    let others = observers(cluster, &victims);
    let signal = match failure {
        Failure::Killed => Signal::KILL,
        Failure::Stopped => Signal::STOP,
    };
    let span = known_to_all(&others, &victims, LIMIT, || {
        for victim in &victims {
            cluster.nodes[victim].signal(signal);
        }
    });
    let left: Vec<String> = others.iter().map(|it| it.name.clone()).collect();
    assert!(
        agree(&others, &left, Duration::from_secs(2)),
        "nobody else is removed"
    );
    for victim in &victims {
        match failure {
            Failure::Killed => {
                cluster.kill(victim);
                cluster.start(victim);
            }
            Failure::Stopped => cluster.nodes[victim].signal(Signal::CONT),
        }
    }
    assert!(
        agree(&observers(cluster, &[]), names, REJOIN),
        "all are back"
    );
    span.unwrap_or(LIMIT)
}
