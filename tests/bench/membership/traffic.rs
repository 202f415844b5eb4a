//! What membership sends: in the steady state, and for one join, leave or failure.

use crate::harness::{Cluster, Traffic, secs};
use crate::{in_parallel, verdict};

/// Bytes that authentication adds to a datagram.
pub const AUTHENTICATION: u64 = 16;
/// Most bytes that a node may send in a second.
pub const STEADY_MAX: f64 = 300.0;
const SIZES: [usize; 4] = [6, 10, 100, 1000];

struct Result {
    steady: Traffic,
    span: u64,
    /// Beyond the steady state: a join, a leave, a failure.
    costs: [i64; 3],
}

pub fn run() {
    println!(
        "Sent by each node in the steady state, UDP payload with {AUTHENTICATION} bytes of authentication a datagram"
    );
    println!(
        "and datagrams that one event costs beyond it, all nodes together, divided by the members"
    );
    println!(
        "members   bytes/s  datagrams/s  exchanges     join  leave  failure   bar {STEADY_MAX} bytes/s"
    );
    let results = in_parallel(SIZES.len(), |index| measure(SIZES[index]));
    for (size, result) in SIZES.iter().zip(results) {
        let Traffic {
            datagrams,
            bytes,
            exchanges,
        } = result.steady;
        let each = |sum: u64| sum as f64 / (result.span * *size as u64) as f64;
        let rate = each(bytes + AUTHENTICATION * datagrams);
        let [join, leave, failure] = result.costs.map(|cost| cost as f64 / *size as f64);
        println!(
            "{size:7} {rate:9.1} {:12.2} {exchanges:10} {join:8.1} {leave:6.1} {failure:8.1}   {}",
            each(datagrams),
            verdict(rate <= STEADY_MAX)
        );
    }
}

fn measure(size: usize) -> Result {
    let mut cluster = Cluster::new(8000 + size as u64);
    cluster.form(size);
    cluster.run(secs(60));
    let span = 60;
    let before = cluster.traffic;
    cluster.run(secs(span));
    let steady = since(&cluster, before);
    let rate = steady.datagrams / span;
    let newcomer = Cluster::addr(size);
    let with_newcomer = rate + rate / size as u64;
    let join = cost(&mut cluster, with_newcomer, |cluster| {
        cluster.start_node(size);
    });
    let leave = cost(&mut cluster, rate, |cluster| cluster.leave(newcomer));
    cluster.restart(newcomer, false);
    cluster.run(secs(30));
    let failure = cost(&mut cluster, rate, |cluster| cluster.silence(newcomer));
    Result {
        steady,
        span,
        costs: [join, leave, failure],
    }
}

fn since(cluster: &Cluster, before: Traffic) -> Traffic {
    let now = cluster.traffic;
    Traffic {
        datagrams: now.datagrams - before.datagrams,
        bytes: now.bytes - before.bytes,
        exchanges: now.exchanges - before.exchanges,
    }
}

/// Datagrams beyond `rate` a second within 30 s of `event`.
fn cost(cluster: &mut Cluster, rate: u64, event: impl Fn(&mut Cluster)) -> i64 {
    let before = cluster.traffic;
    event(cluster);
    cluster.run(secs(30));
    since(cluster, before).datagrams as i64 - 30 * rate as i64
}
