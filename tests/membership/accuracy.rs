//! Nobody is removed who lives (promise P2).

use dlc::membership::*;
use dlc::types::*;

use crate::harness::*;

#[test]
fn nobody_is_removed_at_ten_percent_loss() {
    for (seed, count) in [(1, 2), (2, 3), (3, 6), (4, 10), (5, 10)] {
        let mut cluster = Cluster::formed(500 + seed, count);
        cluster.loss = 10;
        cluster.duplicates = 5;
        cluster.delay = (millis(0), millis(40));
        cluster.run(secs(1800));
        assert_eq!(cluster.removals(), Vec::<&Seen>::new(), "{count} nodes");
        cluster.loss = 0;
        cluster.run(secs(10));
        assert!(cluster.agreed(count));
    }
}

#[test]
fn nobody_is_removed_at_thirty_percent_loss_without_tcp() {
    let mut cluster = Cluster::formed(510, 10);
    cluster.loss = 30;
    cluster.probes_connect = false;
    cluster.run(secs(1800));
    assert_eq!(cluster.removals(), Vec::<&Seen>::new());
}

#[test]
fn pauses_of_a_second_remove_nobody() {
    let mut cluster = Cluster::formed(520, 6);
    for round in 0..400 {
        cluster.pause(Cluster::addr(round % 6), millis(950));
        cluster.run(millis(1300 + (round as u64 * 97) % 700));
    }
    assert_eq!(cluster.removals(), Vec::<&Seen>::new());
}

#[test]
fn pauses_of_a_second_remove_nobody_where_packets_are_lost_too() {
    for seed in 0..4 {
        let mut cluster = Cluster::formed(525 + seed, 6);
        cluster.loss = 10;
        let mut rng = Rng::new(seed);
        for _ in 0..2000 {
            let addr = Cluster::addr(rng.below(6) as usize);
            if cluster.nodes[&addr].paused_until < cluster.now {
                cluster.pause(addr, rng.span(millis(0), millis(1000)));
            }
            cluster.run(rng.span(millis(0), millis(3000)));
        }
        assert_eq!(cluster.removals(), Vec::<&Seen>::new(), "seed {seed}");
    }
}

#[test]
fn who_was_paused_long_blames_itself_and_comes_back() {
    let mut cluster = Cluster::formed(530, 6);
    let paused = Cluster::addr(2);
    cluster.pause(paused, secs(20));
    cluster
        .detection(&[], secs(1))
        .expect("known to all in time");
    cluster.run(secs(10));
    let gone: Vec<NodeId> = cluster.removals().iter().map(|s| s.node.clone()).collect();
    assert_eq!(gone, vec![name("n2"); 5], "the five others removed it");
    cluster.run(secs(15));
    assert!(cluster.agreed(6), "it is back");
    let blamed: Vec<&Seen> = cluster
        .seen
        .iter()
        .filter(|seen| seen.gone && seen.observer == paused)
        .collect();
    assert!(blamed.is_empty(), "it removed nobody: {blamed:?}");
    assert_eq!(cluster.core(paused).stats().pauses, 1, "noticed once");
    assert!(cluster.put_out(paused, |output| matches!(output, Output::Incarnation(_))));
}

#[test]
fn one_way_links_and_a_deaf_member_remove_nobody_else() {
    // A does not reach B, though B reaches A: the helpers do.
    let mut cluster = Cluster::formed(540, 6);
    cluster.probes_connect = false;
    let order = cluster.in_ring_order();
    cluster.cut.insert((order[0], order[1]));
    cluster.run(secs(120));
    assert_eq!(cluster.removals(), Vec::<&Seen>::new());
    let accusations = cluster.nodes.values().map(|p| p.core.stats().accusations);
    assert_eq!(accusations.sum::<u64>(), 0, "nor is anybody suspected");
    // A member that hears nobody accuses everyone: it alone goes.
    let mut cluster = Cluster::formed(541, 6);
    let deaf = Cluster::addr(3);
    for addr in cluster.running() {
        cluster.cut.insert((addr, deaf));
    }
    cluster.run(secs(60));
    for seen in cluster.removals() {
        let own_doing = seen.observer == deaf;
        assert!(own_doing || seen.node == name("n3"), "{seen:?}");
    }
    cluster.cut.clear();
    cluster.run(secs(20));
    assert!(cluster.agreed(6));
}
