//! One name, one process; one cluster, its own members.

use std::net::SocketAddr;

use dlc::membership::*;
use dlc::types::*;
use dlc::wire::datagram::{
    Datagram, Full, JoinRefusal, JoinRequest, MembershipReply, MembershipRequest, Message, Sender,
    Update,
};

use crate::harness::*;

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
    assert!(cluster.core(twin).me().incarnation > Incarnation(1));
    // The holder wakes up, finds its name taken, and gives way.
    cluster.wake_up(holder);
    cluster.run(secs(10));
    assert!(cluster.put_out(holder, |output| matches!(output, Output::Evicted { .. })));
    assert!(cluster.agreed(4));
}

#[test]
fn a_holder_that_is_paused_for_less_than_a_second_keeps_its_name() {
    for seed in 0..10 {
        let mut cluster = Cluster::formed(3_000 + seed, 4);
        cluster.run(millis(seed * 97));
        let holder = Cluster::addr(2);
        cluster.pause(holder, millis(950));
        let twin = cluster.start_named(9, "n2", StorageId(77));
        cluster.run(secs(5));
        let refused = |output: &Output| matches!(output, Output::JoinRefused { .. });
        assert!(cluster.put_out(twin, refused), "seed {seed}");
        assert!(cluster.agreed(4), "seed {seed}");
        assert!(!cluster.put_out(holder, |output| matches!(output, Output::Evicted { .. })));
    }
}

#[test]
fn two_processes_on_copies_of_one_disk_do_not_duel() {
    let mut cluster = Cluster::formed(735, 4);
    let old = Cluster::addr(2);
    let disk = cluster.core(old).me().storage;
    let new = cluster.start_named(9, "n2", disk);
    cluster.run(secs(5));
    assert!(cluster.put_out(old, |output| matches!(output, Output::Evicted { .. })));
    assert!(cluster.core(new).is_member());
    assert!(cluster.core(new).me().incarnation < Incarnation(4));
    assert!(cluster.agreed(4));
}

#[test]
fn former_members_guard_names_like_an_introducer() {
    let mut cluster = Cluster::formed(740, 4);
    let known: Vec<SocketAddr> = cluster.running();
    cluster.stop_introducer(0);
    let twin = cluster.start_named(9, "n2", StorageId(77));
    cluster.node(twin).core.set_known(known);
    cluster.run(secs(8));
    let refused = |output: &Output| matches!(output, Output::JoinRefused { .. });
    assert!(cluster.put_out(twin, refused));
    assert!(cluster.agreed(4));
}

#[test]
fn another_clusters_disk_and_datagrams_are_refused() {
    let mut cluster = Cluster::formed(800, 3);
    let other = Cluster::formed(801, 1);
    let mut stranger = other.nodes[&Cluster::addr(0)].core.me().clone();
    stranger.node = name("stranger");
    let request = |cluster| {
        MembershipRequest::Join(JoinRequest {
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
    let mut datagram = Full {
        cluster: foreign,
        from: Some(Sender {
            node: name("stranger"),
            storage: stranger.storage,
            incarnation: stranger.incarnation,
        }),
        to: Some(core.me().node.clone()),
        message: Message::News,
        updates: vec![Update {
            member: stranger.clone(),
            by: stranger.node.clone(),
        }],
    };
    let before = core.stats();
    core.handle_datagram(now, Cluster::addr(9), Datagram::Full(datagram.clone()));
    assert_eq!(core.stats().wrong_cluster, before.wrong_cluster + 1);
    datagram.cluster = core.cluster();
    datagram.to = Some(name("n1"));
    core.handle_datagram(now, Cluster::addr(9), Datagram::Full(datagram.clone()));
    assert_eq!(core.stats().wrong_destination, before.wrong_destination + 1);
    assert_eq!(core.view().members.len(), 3);
    datagram.to = Some(core.me().node.clone());
    datagram.updates[0].member.incarnation = Incarnation(u64::MAX);
    core.handle_datagram(now, Cluster::addr(9), Datagram::Full(datagram));
    assert_eq!(core.stats().invalid, before.invalid + 1);
    assert_eq!(core.view().members.len(), 3);
}
