//! Failures are known to everyone in time (promise P1), and on what evidence.

use std::net::SocketAddr;

use dlc::membership::*;

use crate::harness::*;

#[test]
fn one_silent_failure_is_known_to_all_in_three_seconds() {
    let mut spans = Vec::new();
    for seed in 0..40 {
        let mut cluster = Cluster::formed(100 + seed, 10);
        cluster.run(millis(seed * 37));
        let victim = Cluster::addr(seed as usize % 10);
        cluster.silence(victim);
        spans.push(
            cluster
                .detection(&[victim], secs(5))
                .expect("known to all in time"),
        );
        cluster.run(secs(10));
        assert!(cluster.agreed(9));
        assert!(
            cluster
                .removals()
                .iter()
                .all(|seen| { seen.node == cluster.core(victim).me().node })
        );
    }
    spans.sort();
    println!("silent x1: median {:?} max {:?}", spans[20], spans[39]);
    assert!(spans[39] <= secs(3), "{:?}", spans[39]);
}

#[test]
fn three_adjacent_silent_failures_are_known_in_five_seconds() {
    let mut spans = Vec::new();
    for seed in 0..40 {
        let mut cluster = Cluster::formed(200 + seed, 10);
        cluster.run(millis(seed * 37));
        let order = cluster.in_ring_order();
        let victims: Vec<SocketAddr> = (0..3)
            .map(|offset| order[(seed as usize + offset) % 10])
            .collect();
        victims.iter().for_each(|addr| cluster.silence(*addr));
        spans.push(
            cluster
                .detection(&victims, secs(5))
                .expect("known to all in time"),
        );
        cluster.run(secs(10));
        assert!(cluster.agreed(7));
    }
    spans.sort();
    println!("silent x3: median {:?} max {:?}", spans[20], spans[39]);
    assert!(spans[36] <= secs(3), "usually: {:?}", spans[36]);
}

#[test]
fn the_last_of_four_notices_that_three_are_gone() {
    for seed in 0..20 {
        let mut cluster = Cluster::formed(300 + seed, 4);
        cluster.run(millis(seed * 53));
        let victims = [Cluster::addr(0), Cluster::addr(1), Cluster::addr(2)];
        victims.iter().for_each(|addr| cluster.silence(*addr));
        cluster
            .detection(&victims, secs(5))
            .expect("known to all in time");
    }
}

#[test]
fn a_killed_process_is_known_to_all_within_a_second() {
    for (seed, count) in (0..20).flat_map(|seed| [(seed, 2), (seed, 3), (seed, 4), (seed, 10)]) {
        let mut cluster = Cluster::formed(400 + seed, count);
        cluster.run(millis(seed * 41));
        let order = cluster.in_ring_order();
        let victims = match count {
            10 => vec![order[1], order[2], order[3]],
            _ => vec![order[0]],
        };
        victims.iter().for_each(|addr| cluster.crash(*addr));
        let span = cluster
            .detection(&victims, secs(1))
            .expect("known to all in time");
        assert!(span <= secs(1), "{count} nodes: {span:?}");
    }
}

#[test]
fn a_killed_process_is_known_in_a_second_where_the_others_who_could_agree_are_silent() {
    for seed in 0..20 {
        let mut cluster = Cluster::formed(450 + seed, 4);
        cluster.run(millis(seed * 41));
        let order = cluster.in_ring_order();
        cluster.silence(order[1]);
        cluster.silence(order[2]);
        cluster.crash(order[0]);
        let span = cluster.detection(&order[..1], secs(1));
        assert!(span.is_some(), "seed {seed}");
    }
}

#[test]
fn a_process_that_is_killed_right_after_it_joined_is_known_in_a_second() {
    for seed in 0..40 {
        let mut cluster = Cluster::formed(470 + seed, 5);
        cluster.run(millis(seed * 41));
        let newcomer = cluster.start_node(7);
        assert!(cluster.until(secs(5), |cluster| cluster.agreed(6)));
        cluster.run(millis(seed % 5 * 10));
        cluster.crash(newcomer);
        let span = cluster.detection(&[newcomer], secs(1));
        assert!(span.is_some(), "seed {seed}");
    }
}

#[test]
fn evidence_tells_why_a_member_went() {
    let mut cluster = Cluster::formed(1300, 5);
    cluster.silence(Cluster::addr(2));
    cluster.run(secs(6));
    let texts: Vec<String> = cluster
        .nodes
        .values()
        .filter(|process| process.power == Power::On)
        .flat_map(|process| process.core.events())
        .filter(|event| event.member == name("n2"))
        .map(Event::to_string)
        .collect();
    for part in ["missed n2: no answer to", "suspected n2", " missed it"] {
        assert!(
            texts.iter().any(|text| text.contains(part)),
            "{part}: {texts:?}"
        );
    }
}
