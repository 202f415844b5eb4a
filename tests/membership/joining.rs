//! Joining, leaving and coming back, with introducers that come and go.

use dlc::membership::*;
use dlc::types::*;

use dlc::wire::datagram::{Datagram, Full, Message, Sender};

use crate::harness::*;

#[test]
fn ten_nodes_join_and_one_forms_the_cluster() {
    let cluster = Cluster::formed(1, 10);
    let formed = cluster.nodes.values().filter(|process| {
        let mut outcome = process.outcome.iter();
        outcome.any(|output| matches!(output, Output::Joined { formed: true, .. }))
    });
    assert_eq!(formed.count(), 1, "exactly one node makes the cluster id");
    let mut ids: Vec<_> = cluster.nodes.values().map(|p| p.core.cluster()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 1, "one cluster");
    assert!(cluster.now < Time(0) + secs(10));
}

#[test]
fn a_join_waits_with_a_message_while_no_introducer_is_up() {
    let mut cluster = Cluster::new(2);
    cluster.start_introducer(0);
    cluster.stop_introducer(0);
    let node = cluster.start_node(0);
    cluster.run(secs(20));
    let status = cluster.core(node).status().unwrap();
    assert_eq!(status, "waiting for an introducer at 10.1.0.0:6000");
    let asked = cluster.core(node).stats();
    assert_eq!(asked.sent, 0);
    cluster.start_introducer(0);
    cluster.run(millis(1500));
    let status = cluster.core(node).status().unwrap();
    assert!(status.contains("just started"), "{status}");
    assert!(cluster.until(secs(4), |cluster| cluster.agreed(1)));
}

#[test]
fn a_restarted_node_replaces_its_old_life_at_once() {
    let mut cluster = Cluster::formed(700, 5);
    let addr = Cluster::addr(1);
    let old = cluster.core(addr).me().clone();
    cluster.crash(addr);
    cluster.run(millis(20));
    cluster.restart(addr, false);
    assert!(cluster.until(secs(2), |cluster| cluster.agreed(5)));
    let new = cluster.core(addr).me().clone();
    assert!(new.incarnation > old.incarnation);
    assert_eq!(new.storage, old.storage);
    // The old life's news are stale now.
    cluster.run(secs(10));
    assert!(cluster.agreed(5));
}

#[test]
fn a_restarted_node_finds_former_members_without_an_introducer() {
    let mut cluster = Cluster::formed(710, 5);
    cluster.stop_introducer(0);
    let addr = Cluster::addr(1);
    cluster.silence(addr);
    cluster.run(secs(10));
    assert!(cluster.agreed(4));
    cluster.restart(addr, false);
    assert!(cluster.until(secs(5), |cluster| cluster.agreed(5)));
}

/// The first introducer starts again, and hears of another cluster first.
fn capture_introducer(cluster: &mut Cluster) {
    let other = Cluster::formed(716, 1);
    let stranger = other.core(Cluster::addr(0)).me().clone();
    cluster.start_introducer(0);
    let announcement = Full {
        cluster: other.id(),
        from: Some(Sender {
            node: stranger.node.clone(),
            storage: stranger.storage,
            incarnation: stranger.incarnation,
        }),
        to: None,
        message: Message::Announce {
            member: stranger,
            digest: 0,
        },
        updates: Vec::new(),
    };
    let now = cluster.now;
    let introducer = cluster.introducers.get_mut(&Cluster::meeting(0)).unwrap();
    introducer
        .core
        .handle_datagram(now, Cluster::addr(200), Datagram::Full(announcement));
}

#[test]
fn an_introducer_that_asks_to_wait_outweighs_one_of_another_cluster() {
    let mut cluster = Cluster::new(717);
    cluster.start_introducer(1);
    cluster.form(1);
    let (addr, id) = (Cluster::addr(0), cluster.id());
    cluster.crash(addr);
    capture_introducer(&mut cluster);
    cluster.start_introducer(1);
    cluster.restart(addr, false);
    assert!(cluster.until(secs(8), |cluster| cluster.agreed(1)));
    assert_eq!(cluster.id(), id);
}

#[test]
fn former_members_let_a_node_in_whose_introducer_serves_another_cluster() {
    let mut cluster = Cluster::formed(715, 4);
    capture_introducer(&mut cluster);
    cluster.run(secs(3));
    let addr = Cluster::addr(1);
    cluster.crash(addr);
    cluster.run(secs(2));
    assert!(cluster.agreed(3));
    cluster.restart(addr, false);
    assert!(cluster.until(secs(5), |cluster| cluster.agreed(4)));
}

#[test]
fn the_whole_cluster_restarts_into_the_same_cluster() {
    let mut cluster = Cluster::formed(720, 5);
    let id = cluster.core(Cluster::addr(0)).cluster();
    for addr in cluster.running() {
        cluster.crash(addr);
    }
    cluster.stop_introducer(0);
    cluster.run(secs(20));
    cluster.start_introducer(0);
    for index in 0..5 {
        cluster.restart(Cluster::addr(index), false);
    }
    assert!(cluster.until(secs(15), |cluster| cluster.agreed(5)));
    for process in cluster.nodes.values() {
        assert_eq!(process.core.cluster(), id);
        let formed = |o: &Output| matches!(o, Output::Joined { formed: true, .. });
        assert!(!process.outcome.iter().any(formed));
    }
}

#[test]
fn leaving_is_no_failure() {
    let mut cluster = Cluster::formed(750, 6);
    let leaver = Cluster::addr(4);
    cluster.leave(leaver);
    assert!(cluster.until(secs(1), |cluster| cluster.agreed(5)));
    cluster.run(secs(10));
    assert!(cluster.put_out(leaver, |output| *output == Output::Left));
    for process in cluster.nodes.values() {
        assert_eq!(process.core.stats().accusations, 0, "nobody suspects");
        assert_eq!(process.core.stats().removals, 0);
    }
    // It may come again.
    cluster.restart(leaver, false);
    assert!(cluster.until(secs(3), |cluster| cluster.agreed(6)));
}

#[test]
fn an_introducer_may_be_wiped_at_any_time() {
    let mut cluster = Cluster::formed(760, 5);
    let id = cluster.core(Cluster::addr(0)).cluster();
    cluster.start_introducer(0);
    let newcomer = cluster.start_node(7);
    assert!(cluster.until(secs(5), |cluster| cluster.agreed(6)));
    assert_eq!(cluster.core(newcomer).cluster(), id);
    assert_eq!(cluster.removals(), Vec::<&Seen>::new());
}

#[test]
fn a_newcomer_learns_from_a_member_what_its_introducer_does_not_know() {
    let mut cluster = Cluster::formed(765, 5);
    // The wiped introducer hears of one member only, and nobody but that one of the newcomer.
    for index in 1..5 {
        let link = (Cluster::addr(index), Cluster::meeting(0));
        cluster.cut.insert(link);
    }
    cluster.start_introducer(0);
    cluster.run(millis(1600));
    cluster.start_node(7);
    assert!(cluster.until(secs(4), |cluster| cluster.agreed(6)));
}

#[test]
fn several_introducers_serve_one_cluster() {
    let mut cluster = Cluster::new(770);
    cluster.start_introducer(0);
    cluster.start_introducer(1);
    (0..3).for_each(|index| {
        cluster.start_node(index);
    });
    assert!(cluster.until(secs(10), |cluster| cluster.agreed(3)));
    cluster.stop_introducer(0);
    (3..6).for_each(|index| {
        cluster.start_node(index);
    });
    assert!(cluster.until(secs(5), |cluster| cluster.agreed(6)));
}

#[test]
fn a_second_introducer_never_begins_a_cluster() {
    let mut cluster = Cluster::new(780);
    cluster.start_introducer(0);
    cluster.start_introducer(1);
    cluster.stop_introducer(0);
    let node = cluster.start_node(0);
    cluster.run(secs(20));
    assert!(!cluster.core(node).is_member());
    let status = cluster.core(node).status().unwrap();
    assert!(status.contains("not the first introducer"), "{status}");
}

#[test]
fn a_silent_cluster_is_not_replaced_by_a_new_one() {
    let mut cluster = Cluster::formed(790, 3);
    for addr in cluster.running() {
        cluster.silence(addr);
    }
    cluster.run(secs(12));
    let newcomer = cluster.start_node(7);
    cluster.run(secs(10));
    let status = cluster.core(newcomer).status().unwrap();
    assert!(status.contains("silent"), "{status}");
    // One of the old ones comes back: both are in.
    cluster.restart(Cluster::addr(1), false);
    assert!(cluster.until(secs(6), |cluster| cluster.agreed(2)));
}
