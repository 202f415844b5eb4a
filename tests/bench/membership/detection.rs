//! How soon a failure is known to every live member, in virtual time.

use std::net::SocketAddr;
use std::time::Duration;

use dlc::types::Rng;

use crate::harness::{Cluster, millis, secs};
use crate::{in_parallel, percentiles, verdict, wish};

/// Members in the simulated clusters.
const SIZES: [usize; 3] = [10, 100, 1000];

#[derive(Clone, Copy)]
enum Failure {
    Killed,
    Silent,
}

#[derive(Clone, Copy)]
enum Who {
    One,
    ThreeAdjacent,
    ThreeAnywhere,
}

struct Line {
    size: usize,
    failure: Failure,
    who: Who,
}

pub fn run() {
    let events = wish("EVENTS", 200);
    println!("Failures known to every live member, virtual time, {events} each (seconds)");
    println!("members  failure                          p50    p99    max   bar");
    let mut lines = Vec::new();
    for size in SIZES {
        for failure in [Failure::Killed, Failure::Silent] {
            for who in [Who::One, Who::ThreeAdjacent, Who::ThreeAnywhere] {
                lines.push(Line { size, failure, who });
            }
        }
    }
    let results = in_parallel(lines.len(), |index| measure(index, &lines[index], events));
    for (line, mut spans) in lines.iter().zip(results) {
        let [p50, p99, max] = percentiles(&mut spans);
        let who = match line.who {
            Who::One => "one",
            Who::ThreeAdjacent => "three, adjacent on the ring",
            Who::ThreeAnywhere => "three, anywhere",
        };
        let (how, bar, met) = match line.failure {
            Failure::Killed => ("killed", "p99 1.0", p99 <= 1.0),
            Failure::Silent => ("silent", "p99 3.0, max 5.0", p99 <= 3.0 && max <= 5.0),
        };
        println!(
            "{:7}  {how} {who:27} {p50:6.2} {p99:6.2} {max:6.2}   {bar}: {}",
            line.size,
            verdict(met)
        );
    }
}

/// `events` failures in one cluster, each mended before the next.
fn measure(index: usize, line: &Line, events: u64) -> Vec<Duration> {
    let mut rng = Rng::new(index as u64);
    let mut cluster = Cluster::new(7000 + index as u64);
    cluster.metered = line.size <= 100;
    cluster.form(line.size);
    let order = cluster.in_ring_order();
    let mut spans = Vec::new();
    for _ in 0..events {
        cluster.run(rng.span(secs(2), secs(4)));
        cluster.seen.clear();
        let victims = choose(&order, line.who, &mut rng);
        for victim in &victims {
            match line.failure {
                Failure::Killed => cluster.crash(*victim),
                Failure::Silent => cluster.silence(*victim),
            }
        }
        let span = cluster.detection(&victims, secs(20));
        spans.push(span.expect("known to all within 20 s"));
        cluster.run(millis(500));
        for victim in &victims {
            cluster.restart(*victim, false);
        }
        assert!(
            cluster.return_of(&victims, secs(30)).is_some(),
            "whoever is started again is seen by all"
        );
    }
    spans
}

fn choose(order: &[SocketAddr], who: Who, rng: &mut Rng) -> Vec<SocketAddr> {
    let count = order.len();
    let mut pick = || rng.below(count as u64) as usize;
    match who {
        Who::One => vec![order[pick()]],
        Who::ThreeAdjacent => {
            let first = pick();
            (0..3)
                .map(|offset| order[(first + offset) % count])
                .collect()
        }
        Who::ThreeAnywhere => {
            let mut chosen = Vec::new();
            while chosen.len() < 3 {
                let addr = order[pick()];
                if !chosen.contains(&addr) {
                    chosen.push(addr);
                }
            }
            chosen
        }
    }
}
