//! A minute of everything that can happen to members, and then peace.
//!
//! Decides: from one seed, 4 to 9 nodes, one or two introducers, a lossy or a good network, and
//! a dozen or more faults. Claims: after all is mended, everyone sees everyone, alive and in the
//! newest life, within 30 s, and stays seen.

use std::net::SocketAddr;

use dlc::membership::Output;
use dlc::types::Rng;

use crate::harness::{Cluster, Power, Trace, millis, secs};

/// Virtual time in which faults happen.
const SPAN: u64 = 60;

/// Runs `seed`, printing what happens where `story`; what is wrong at the end.
pub fn churn(seed: u64, story: bool) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x0063_6875_726e);
    let count = 4 + rng.below(6) as usize;
    let mut cluster = Cluster::new(seed);
    if story {
        cluster.trace = Trace::Story;
    }
    cluster.metered = seed.is_multiple_of(8);
    cluster.delay.1 = millis(1 + rng.below(60));
    cluster.duplicates = rng.below(10);
    if rng.chance(30) {
        cluster.start_introducer(1);
    }
    cluster.form(count);
    cluster.loss = rng.below(4) * 10;
    let mut addrs: Vec<SocketAddr> = (0..count).map(Cluster::addr).collect();
    let end = cluster.now + secs(SPAN);
    while cluster.now < end {
        disturb(&mut cluster, &mut rng, &mut addrs);
        cluster.run(millis(rng.below(5000)));
    }
    mend(&mut cluster, &mut rng, &mut addrs);
    if !cluster.until(secs(30), |cluster| cluster.agreed(count)) {
        return Err(differences(&cluster));
    }
    cluster.run(secs(5));
    match cluster.agreed(count) {
        true => Ok(()),
        false => Err(format!("not for long: {}", differences(&cluster))),
    }
}

/// One fault, or the end of one.
fn disturb(cluster: &mut Cluster, rng: &mut Rng, addrs: &mut [SocketAddr]) {
    // The first two stay, though they may be cut off: where nobody is left, or an introducer that
    // starts hears nobody, the next node with an empty disk rightly begins another cluster.
    let index = 2 + rng.below(addrs.len() as u64 - 2) as usize;
    let other = rng.below(addrs.len() as u64) as usize;
    let addr = addrs[index];
    let process = &cluster.nodes[&addr];
    let on = process.power == Power::On;
    let acts = on && process.paused_until <= cluster.now;
    match rng.below(12) {
        0 | 1 if on => cluster.crash(addr),
        2 if on => cluster.silence(addr),
        3 if acts => cluster.leave(addr),
        4 if on => cluster.pause(addr, millis(rng.below(8000))),
        5 => {
            let (left, right) = addrs.split_at(1 + rng.below(addrs.len() as u64 - 1) as usize);
            cluster.part(left, right);
        }
        6 if other != index => {
            cluster.cut.insert((addr, addrs[other]));
        }
        7 => cluster.cut.clear(),
        8 => match rng.chance(50) {
            true => cluster.stop_introducer(0),
            false => cluster.start_introducer(0),
        },
        9 if on && rng.chance(50) => {
            // It hangs, and somebody starts another under its name: one of the two goes.
            cluster.pause(addr, secs(3));
            cluster.run(millis(rng.below(3000)));
            let twin = Cluster::addr(100 + cluster.nodes.len());
            cluster.move_to(addr, twin, rng.chance(50));
            addrs[index] = twin;
        }
        _ if !on => start_again(cluster, rng, &mut addrs[index]),
        _ => {}
    }
}

/// Starts a node that does not run, mostly where and as it was, sometimes with an empty disk,
/// sometimes elsewhere.
fn start_again(cluster: &mut Cluster, rng: &mut Rng, addr: &mut SocketAddr) {
    let wiped = rng.chance(20);
    let new = match rng.chance(20) {
        true => Cluster::addr(100 + cluster.nodes.len()),
        false => *addr,
    };
    cluster.move_to(*addr, new, wiped);
    *addr = new;
}

/// Ends every fault and starts whoever does not run.
fn mend(cluster: &mut Cluster, rng: &mut Rng, addrs: &mut [SocketAddr]) {
    cluster.cut.clear();
    cluster.loss = 0;
    // Whoever is leaving has left then.
    let paused = cluster.nodes.values().map(|process| process.paused_until);
    let last = paused.max().expect("nodes").max(cluster.now);
    cluster.run(last.since(cluster.now) + secs(1));
    if !cluster.introducers[&Cluster::meeting(0)].up {
        cluster.start_introducer(0);
    }
    for addr in addrs {
        if cluster.nodes[addr].power != Power::On {
            start_again(cluster, rng, addr);
        }
    }
}

/// Who sees what.
fn differences(cluster: &Cluster) -> String {
    let of = |(addr, process): (&SocketAddr, &crate::harness::Process)| {
        let view = process.core.view().members.values();
        let seen: Vec<String> = view
            .map(|m| format!("{}#{}{:?}", m.node, m.incarnation.0, m.state))
            .collect();
        let refused = process
            .outcome
            .iter()
            .rev()
            .find_map(|output| match output {
                Output::JoinRefused { reason } => Some(reason.to_string()),
                Output::Evicted { reason } => Some(reason.to_string()),
                _ => None,
            });
        let me = &process.core.me().node;
        format!(
            "\n{me} at {addr} ({:?}, {:?}, {refused:?}) sees {}",
            process.power,
            process.core.status(),
            seen.join(" ")
        )
    };
    cluster.nodes.iter().map(of).collect()
}
