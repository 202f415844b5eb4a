//! What membership promises, seen from outside on small clusters in virtual time.

use std::net::SocketAddr;
use std::time::Duration;

use super::harness::*;
use super::ring::position;
use super::*;

/// Nodes in ring order.
fn in_ring_order(cluster: &Cluster) -> Vec<SocketAddr> {
    let mut order: Vec<(u64, SocketAddr)> = cluster
        .nodes
        .iter()
        .map(|(addr, process)| (position(&process.core.me().node), *addr))
        .collect();
    order.sort();
    order.into_iter().map(|(_, addr)| addr).collect()
}

/// Time until every running node has seen all of `victims` go.
fn detection(cluster: &mut Cluster, victims: &[SocketAddr], limit: Duration) -> Duration {
    let start = cluster.now;
    let names: Vec<NodeId> = victims
        .iter()
        .map(|addr| cluster.nodes[addr].core.me().node.clone())
        .collect();
    let known = cluster.until(limit, |cluster| {
        let running = cluster.running();
        running.iter().all(|addr| {
            let view = cluster.nodes[addr].core.view();
            names.iter().all(|node| !view.members.contains_key(node))
        })
    });
    assert!(known, "not known to all within {limit:?}");
    cluster.now.since(start)
}

fn removals(cluster: &Cluster) -> Vec<&Seen> {
    cluster.seen.iter().filter(|seen| seen.gone).collect()
}

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
    cluster
        .introducers
        .get_mut(&Cluster::meeting(0))
        .unwrap()
        .up = false;
    let node = cluster.start_node(0);
    cluster.run(secs(20));
    let status = cluster.nodes[&node].core.status().unwrap();
    assert_eq!(status, "waiting for an introducer at 10.1.0.0:6000");
    let asked = cluster.nodes[&node].core.stats();
    assert_eq!(asked.sent, 0);
    cluster.start_introducer(0);
    cluster.run(millis(1500));
    let status = cluster.nodes[&node].core.status().unwrap();
    assert!(status.contains("just started"), "{status}");
    assert!(cluster.until(secs(4), |cluster| cluster.agreed(1)));
}

#[test]
fn one_silent_failure_is_known_to_all_in_three_seconds() {
    let mut spans = Vec::new();
    for seed in 0..40 {
        let mut cluster = Cluster::formed(100 + seed, 10);
        cluster.run(millis(seed * 37));
        let victim = Cluster::addr(seed as usize % 10);
        cluster.silence(victim);
        spans.push(detection(&mut cluster, &[victim], secs(5)));
        cluster.run(secs(10));
        assert!(cluster.agreed(9));
        assert!(
            removals(&cluster)
                .iter()
                .all(|seen| { seen.node == cluster.nodes[&victim].core.me().node })
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
        let order = in_ring_order(&cluster);
        let victims: Vec<SocketAddr> = (0..3)
            .map(|offset| order[(seed as usize + offset) % 10])
            .collect();
        victims.iter().for_each(|addr| cluster.silence(*addr));
        spans.push(detection(&mut cluster, &victims, secs(5)));
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
        detection(&mut cluster, &victims, secs(5));
    }
}

#[test]
fn a_killed_process_is_known_to_all_within_a_second() {
    for (seed, count) in (0..20).flat_map(|seed| [(seed, 2), (seed, 3), (seed, 4), (seed, 10)]) {
        let mut cluster = Cluster::formed(400 + seed, count);
        cluster.run(millis(seed * 41));
        let order = in_ring_order(&cluster);
        let victims = match count {
            10 => vec![order[1], order[2], order[3]],
            _ => vec![order[0]],
        };
        victims.iter().for_each(|addr| cluster.crash(*addr));
        let span = detection(&mut cluster, &victims, secs(1));
        assert!(span <= secs(1), "{count} nodes: {span:?}");
    }
}

#[test]
fn nobody_is_removed_at_ten_percent_loss() {
    for (seed, count) in [(1, 2), (2, 3), (3, 6), (4, 10), (5, 10)] {
        let mut cluster = Cluster::formed(500 + seed, count);
        cluster.loss = 10;
        cluster.duplicates = 5;
        cluster.delay = (millis(0), millis(40));
        cluster.run(secs(1800));
        assert_eq!(removals(&cluster), Vec::<&Seen>::new(), "{count} nodes");
        cluster.loss = 0;
        cluster.run(secs(10));
        assert!(cluster.agreed(count));
    }
}

#[test]
fn nobody_is_removed_at_thirty_percent_loss_without_tcp() {
    let mut cluster = Cluster::formed(510, 10);
    cluster.loss = 30;
    cluster.exchanges_work = false;
    cluster.run(secs(1800));
    assert_eq!(removals(&cluster), Vec::<&Seen>::new());
}

#[test]
fn pauses_of_a_second_remove_nobody() {
    let mut cluster = Cluster::formed(520, 6);
    for round in 0..400 {
        cluster.pause(Cluster::addr(round % 6), millis(950));
        cluster.run(millis(1300 + (round as u64 * 97) % 700));
    }
    assert_eq!(removals(&cluster), Vec::<&Seen>::new());
}

#[test]
fn who_was_paused_long_blames_itself_and_comes_back() {
    let mut cluster = Cluster::formed(530, 6);
    let paused = Cluster::addr(2);
    cluster.pause(paused, secs(20));
    detection(&mut cluster, &[], secs(1));
    cluster.run(secs(10));
    let gone: Vec<NodeId> = removals(&cluster).iter().map(|s| s.node.clone()).collect();
    assert_eq!(gone, vec![name("n2"); 5], "the five others removed it");
    cluster.run(secs(15));
    assert!(cluster.agreed(6), "it is back");
    let blamed: Vec<&Seen> = cluster
        .seen
        .iter()
        .filter(|seen| seen.gone && seen.observer == paused)
        .collect();
    assert!(blamed.is_empty(), "it removed nobody: {blamed:?}");
    assert!(cluster.nodes[&paused].core.stats().pauses >= 1);
    assert!(cluster.put_out(paused, |output| matches!(output, Output::Incarnation(_))));
}

#[test]
fn one_way_links_and_a_deaf_member_remove_nobody_else() {
    // A does not reach B, though B reaches A: the helpers do.
    let mut cluster = Cluster::formed(540, 6);
    cluster.exchanges_work = false;
    let order = in_ring_order(&cluster);
    cluster.cut.insert((order[0], order[1]));
    cluster.run(secs(120));
    assert_eq!(removals(&cluster), Vec::<&Seen>::new());
    let accusations = cluster.nodes.values().map(|p| p.core.stats().accusations);
    assert_eq!(accusations.sum::<u64>(), 0, "nor is anybody suspected");
    // A member that hears nobody accuses everyone: it alone goes.
    let mut cluster = Cluster::formed(541, 6);
    let deaf = Cluster::addr(3);
    for addr in cluster.running() {
        cluster.cut.insert((addr, deaf));
    }
    cluster.run(secs(60));
    for seen in removals(&cluster) {
        let own_doing = seen.observer == deaf;
        assert!(own_doing || seen.node == name("n3"), "{seen:?}");
    }
    cluster.cut.clear();
    cluster.run(secs(20));
    assert!(cluster.agreed(6));
}

#[test]
fn a_cut_cluster_grows_together_again() {
    for seed in 0..10 {
        let mut cluster = Cluster::formed(600 + seed, 10);
        let all = cluster.running();
        let (left, right) = all.split_at(seed as usize % 5 + 1);
        cluster.part(left, right);
        cluster.run(secs(30));
        let sizes: Vec<usize> = [left[0], right[0]]
            .map(|addr| cluster.nodes[&addr].core.view().members.len())
            .to_vec();
        assert_eq!(sizes, [left.len(), right.len()]);
        cluster.cut.clear();
        // Without the introducer's help too.
        cluster
            .introducers
            .get_mut(&Cluster::meeting(0))
            .unwrap()
            .up = seed % 2 == 0;
        let healed = cluster.until(secs(20), |cluster| cluster.agreed(10));
        assert!(healed, "seed {seed}");
    }
}

#[test]
fn a_restarted_node_replaces_its_old_life_at_once() {
    let mut cluster = Cluster::formed(700, 5);
    let addr = Cluster::addr(1);
    let old = cluster.nodes[&addr].core.me().clone();
    cluster.crash(addr);
    cluster.run(millis(20));
    cluster.restart(addr, false);
    assert!(cluster.until(secs(2), |cluster| cluster.agreed(5)));
    let new = cluster.nodes[&addr].core.me().clone();
    assert!(new.incarnation > old.incarnation);
    assert_eq!(new.storage, old.storage);
    // The old life's news are stale now.
    cluster.run(secs(10));
    assert!(cluster.agreed(5));
}

#[test]
fn a_restarted_node_finds_former_members_without_an_introducer() {
    let mut cluster = Cluster::formed(710, 5);
    cluster
        .introducers
        .get_mut(&Cluster::meeting(0))
        .unwrap()
        .up = false;
    let addr = Cluster::addr(1);
    cluster.silence(addr);
    cluster.run(secs(10));
    assert!(cluster.agreed(4));
    cluster.restart(addr, false);
    assert!(cluster.until(secs(5), |cluster| cluster.agreed(5)));
}

#[test]
fn the_whole_cluster_restarts_into_the_same_cluster() {
    let mut cluster = Cluster::formed(720, 5);
    let id = cluster.nodes[&Cluster::addr(0)].core.cluster();
    for addr in cluster.running() {
        cluster.crash(addr);
    }
    cluster
        .introducers
        .get_mut(&Cluster::meeting(0))
        .unwrap()
        .up = false;
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
fn a_name_in_use_is_refused_and_a_silent_holder_replaced() {
    let mut cluster = Cluster::formed(730, 4);
    let twin = cluster.start_named(9, "n2", StorageId(77));
    cluster.run(secs(3));
    let holder = Cluster::addr(2);
    assert!(cluster.put_out(twin, |output| matches!(
        output,
        Output::JoinRefused { reason: JoinRefusal::NameInUse { holder: at } } if *at == holder
    )));
    assert!(cluster.agreed(4), "the holder is not disturbed");
    // The same name, while the holder is silent and not yet removed.
    cluster.silence(holder);
    cluster.run(millis(200));
    let twin = cluster.start_named(8, "n2", StorageId(78));
    assert!(cluster.until(secs(2), |cluster| cluster.agreed(4)));
    assert!(cluster.nodes[&twin].core.me().incarnation > Incarnation(1));
    // The holder wakes up, finds its name taken, and gives way.
    cluster.node(holder).power = Power::On;
    cluster.node(holder).paused_until = cluster.now;
    cluster.restart_timers(holder);
    cluster.run(secs(10));
    assert!(cluster.put_out(holder, |output| matches!(output, Output::Evicted { .. })));
    assert!(cluster.agreed(4));
}

#[test]
fn two_processes_on_copies_of_one_disk_do_not_duel() {
    let mut cluster = Cluster::formed(735, 4);
    let old = Cluster::addr(2);
    let disk = cluster.nodes[&old].core.me().storage;
    let new = cluster.start_named(9, "n2", disk);
    cluster.run(secs(5));
    assert!(cluster.put_out(old, |output| matches!(output, Output::Evicted { .. })));
    assert!(cluster.nodes[&new].core.is_member());
    assert!(cluster.nodes[&new].core.me().incarnation < Incarnation(4));
    assert!(cluster.agreed(4));
}

#[test]
fn former_members_guard_names_like_an_introducer() {
    let mut cluster = Cluster::formed(740, 4);
    let known: Vec<SocketAddr> = cluster.running();
    cluster
        .introducers
        .get_mut(&Cluster::meeting(0))
        .unwrap()
        .up = false;
    let twin = cluster.start_named(9, "n2", StorageId(77));
    cluster.node(twin).core.set_known(known);
    cluster.run(secs(8));
    let refused = |output: &Output| matches!(output, Output::JoinRefused { .. });
    assert!(cluster.put_out(twin, refused));
    assert!(cluster.agreed(4));
}

#[test]
fn leaving_is_no_failure() {
    let mut cluster = Cluster::formed(750, 6);
    let leaver = Cluster::addr(4);
    let now = cluster.now;
    cluster.node(leaver).core.handle_leave(now);
    cluster.wake(leaver);
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
    let id = cluster.nodes[&Cluster::addr(0)].core.cluster();
    cluster.start_introducer(0);
    let newcomer = cluster.start_node(7);
    assert!(cluster.until(secs(5), |cluster| cluster.agreed(6)));
    assert_eq!(cluster.nodes[&newcomer].core.cluster(), id);
    assert_eq!(removals(&cluster), Vec::<&Seen>::new());
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
    cluster
        .introducers
        .get_mut(&Cluster::meeting(0))
        .unwrap()
        .up = false;
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
    cluster
        .introducers
        .get_mut(&Cluster::meeting(0))
        .unwrap()
        .up = false;
    let node = cluster.start_node(0);
    cluster.run(secs(20));
    assert!(!cluster.nodes[&node].core.is_member());
    let status = cluster.nodes[&node].core.status().unwrap();
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
    let status = cluster.nodes[&newcomer].core.status().unwrap();
    assert!(status.contains("silent"), "{status}");
    // One of the old ones comes back: both are in.
    cluster.restart(Cluster::addr(1), false);
    assert!(cluster.until(secs(6), |cluster| cluster.agreed(2)));
}

#[test]
fn another_clusters_disk_and_datagrams_are_refused() {
    let mut cluster = Cluster::formed(800, 3);
    let other = Cluster::formed(801, 1);
    let mut stranger = other.nodes[&Cluster::addr(0)].core.me().clone();
    stranger.node = name("stranger");
    let request = |cluster| {
        MembershipRequest::Join(crate::wire::datagram::JoinRequest {
            member: stranger.clone(),
            cluster,
            first: true,
        })
    };
    let (now, foreign) = (cluster.now, Some(ClusterId(5)));
    let core = &mut cluster.node(Cluster::addr(0)).core;
    let reply = core.handle_request(now, request(foreign));
    assert!(matches!(
        reply,
        MembershipReply::Refused(JoinRefusal::WrongCluster { .. })
    ));
    let sender = core.sender();
    let mut datagram = Datagram {
        cluster: foreign,
        from: Some(Sender {
            node: name("stranger"),
            ..sender
        }),
        to: Some(core.me().node.clone()),
        message: Message::News,
        updates: vec![Update {
            member: stranger.clone(),
            by: stranger.node.clone(),
        }],
    };
    let before = core.stats();
    core.handle_datagram(now, Cluster::addr(9), datagram.clone());
    assert_eq!(core.stats().wrong_cluster, before.wrong_cluster + 1);
    datagram.cluster = core.cluster();
    datagram.to = Some(name("n1"));
    core.handle_datagram(now, Cluster::addr(9), datagram.clone());
    assert_eq!(core.stats().wrong_destination, before.wrong_destination + 1);
    assert_eq!(core.view().members.len(), 3);
    datagram.to = Some(core.me().node.clone());
    datagram.updates[0].member.incarnation = Incarnation(u64::MAX);
    core.handle_datagram(now, Cluster::addr(9), datagram);
    assert_eq!(core.stats().invalid, before.invalid + 1);
    assert_eq!(core.view().members.len(), 3);
}

#[test]
fn views_converge_after_churn() {
    for seed in 0..20 {
        let mut cluster = Cluster::formed(900 + seed, 8);
        cluster.loss = seed % 3 * 5;
        cluster.duplicates = 5;
        let mut rng = crate::types::Rng::new(seed);
        for _ in 0..12 {
            let addr = Cluster::addr(rng.below(8) as usize);
            match rng.below(5) {
                0 => cluster.silence(addr),
                1 => cluster.crash(addr),
                2 => cluster.pause(addr, millis(rng.below(6000))),
                3 => {
                    let all: Vec<SocketAddr> = (0..8).map(Cluster::addr).collect();
                    let (left, right) = all.split_at(rng.below(7) as usize + 1);
                    cluster.part(left, right);
                }
                _ => cluster.cut.clear(),
            }
            cluster.run(millis(rng.below(6000)));
            let down = |a: &SocketAddr| cluster.nodes[a].power != Power::On;
            let dead: Vec<SocketAddr> = (0..8).map(Cluster::addr).filter(down).collect();
            for addr in dead {
                let wiped = rng.chance(20);
                cluster.restart(addr, wiped);
            }
        }
        cluster.cut.clear();
        cluster.loss = 0;
        cluster.run(secs(60));
        for index in 0..8 {
            let addr = Cluster::addr(index);
            if cluster.nodes[&addr].power != Power::On {
                cluster.restart(addr, false);
            }
        }
        assert!(
            cluster.until(secs(30), |cluster| cluster.agreed(8)),
            "seed {seed}"
        );
    }
}

#[test]
fn runs_with_equal_seeds_are_equal_bit_for_bit() {
    let trace = |seed| {
        let mut cluster = Cluster::formed(seed, 6);
        cluster.loss = 15;
        cluster.duplicates = 10;
        cluster.silence(Cluster::addr(1));
        cluster.run(secs(10));
        cluster.restart(Cluster::addr(1), false);
        cluster.crash(Cluster::addr(2));
        cluster.run(secs(20));
        cluster.trace.finalize()
    };
    assert_eq!(trace(1100), trace(1100));
    assert_ne!(trace(1100), trace(1101));
}

#[test]
fn steady_traffic_is_small() {
    let mut cluster = Cluster::formed(1200, 6);
    cluster.run(secs(60));
    let (bytes, datagrams) = (cluster.bytes, cluster.datagrams);
    cluster.run(secs(100));
    let per_node = (cluster.bytes - bytes) / 600;
    println!(
        "{per_node} bytes and {} datagrams a second and node",
        (cluster.datagrams - datagrams) / 600
    );
    assert!(per_node <= 600, "{per_node} bytes a second");
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
    for part in [
        "missed n2: no answer to",
        "suspected n2",
        "n2 removed: two members",
    ] {
        assert!(
            texts.iter().any(|text| text.contains(part)),
            "{part}: {texts:?}"
        );
    }
}
