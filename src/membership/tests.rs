//! The parts of this core one by one: order, ring, detector, bounds, introducer.

use super::detector::{Action, Detector};
use super::evidence::Miss;
use super::introducer::{IntroducerConfig, IntroducerOutput};
use super::members::supersedes;
use super::ring::Ring;
use super::*;
use crate::wire::datagram::{
    Address, Brief, DATAGRAM_MAX, Full, JoinRequest, Message, Tag, WaitReason, Word,
};
use crate::wire::encode_datagram;

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn name(text: &str) -> NodeId {
    NodeId::new(text).expect("valid name")
}

fn addr(index: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, index], 7000))
}

fn member(text: &str, storage: u128, incarnation: u64, state: MemberState) -> Member {
    Member {
        node: name(text),
        storage: StorageId(storage),
        incarnation: Incarnation(incarnation),
        addr: addr(1),
        joined: WallTime(0),
        state,
    }
}

fn server(text: &str) -> Server {
    member(text, 1, 1, MemberState::Alive).server()
}

/// The only member of a new cluster, named `own`.
fn lone(config: Config, now: Time) -> Membership {
    let me = Identity {
        node: name("own"),
        storage: StorageId(7),
        incarnation: Incarnation(1),
        addr: addr(0),
        cluster: None,
    };
    let mut core = Membership::new(config, me, vec![addr(99)], 1, now, WallTime(0));
    core.handle_join(now);
    let Some(Output::Exchange { id, .. }) = core.poll_output() else {
        panic!("it asks the introducer");
    };
    let incarnation = Incarnation(1);
    core.handle_exchanged(now, id, Ok(MembershipReply::Form { incarnation }));
    assert!(core.is_member());
    core
}

/// Tells `core` something in the name of an introducer.
fn tell(core: &mut Membership, now: Time, updates: Vec<Update>) {
    let cluster = core.cluster();
    let full = Full {
        cluster,
        from: None,
        to: None,
        message: Message::News,
        updates,
    };
    core.handle_datagram(now, addr(99), Datagram::Full(full));
}

/// News of a member in its own name.
fn news(member: Member) -> Update {
    let by = member.node.clone();
    Update { member, by }
}

#[test]
fn the_order_of_beliefs_is_total_and_follows_swim() {
    use MemberState::{Alive, Failed, Left, Suspect};
    let cases = [
        ((1, Alive), (1, Suspect), true),
        ((1, Suspect), (1, Alive), false),
        ((1, Alive), (1, Failed), true),
        ((1, Suspect), (1, Failed), true),
        ((1, Failed), (1, Suspect), false),
        ((1, Alive), (1, Left), true),
        ((1, Suspect), (2, Alive), true),
        ((1, Failed), (1, Alive), false),
        ((1, Failed), (2, Alive), true),
        ((2, Alive), (1, Failed), false),
        ((1, Failed), (1, Left), true),
        ((1, Left), (1, Failed), false),
        ((1, Alive), (1, Alive), false),
    ];
    for ((old, was), (new, is), expected) in cases {
        let old = member("a", 1, old, was);
        let new = member("a", 1, new, is);
        assert_eq!(supersedes(&old, &new), expected, "{old:?} -> {new:?}");
    }
    // Another disk under the same name: the greater life wins whatever the state; a tie goes
    // the same way everywhere.
    assert!(supersedes(
        &member("a", 9, 1, Left),
        &member("a", 1, 2, Alive)
    ));
    assert!(supersedes(
        &member("a", 1, 1, Left),
        &member("a", 2, 1, Alive)
    ));
    assert!(!supersedes(
        &member("a", 2, 1, Alive),
        &member("a", 1, 1, Left)
    ));
}

#[test]
fn the_ring_goes_once_round_both_ways() {
    let mut ring = Ring::default();
    let names: Vec<NodeId> = (0..7).map(|i| name(&format!("n{i}"))).collect();
    names.iter().for_each(|node| ring.insert(node));
    for node in &names {
        let after: Vec<&NodeId> = ring.after(node).collect();
        let mut before: Vec<&NodeId> = ring.before(node).collect();
        assert_eq!(after.len(), 6);
        assert!(!after.contains(&node));
        before.reverse();
        assert_eq!(after, before);
    }
    let outsider = name("somebody-else");
    assert_eq!(ring.after(&outsider).count(), 7);
}

#[test]
fn the_default_configuration_keeps_its_promises() {
    assert_eq!(Config::default().validate(), Ok(()));
    let slow = Config {
        suspicion_span: secs(4),
        ..Config::default()
    };
    assert!(matches!(slow.validate(), Err(ConfigError::Slow(_))));
    let upside_down = Config {
        ack_timeout: secs(2),
        ..Config::default()
    };
    assert!(matches!(
        upside_down.validate(),
        Err(ConfigError::Order("ack_timeout", "probe_window"))
    ));
}

#[test]
fn datagrams_stay_small_among_a_thousand_members_with_long_names() {
    let now = Time(0);
    let mut core = lone(Config::default(), now);
    let long = |index: usize| name(&format!("{index:0>63}"));
    let updates = |state| {
        (0..1000)
            .map(|index| Update {
                member: Member {
                    node: long(index),
                    storage: StorageId(u128::MAX - index as u128),
                    incarnation: Incarnation((1 << 61) + index as u64),
                    addr: format!(
                        "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:{}",
                        60000 - index
                    )
                    .parse()
                    .unwrap(),
                    joined: WallTime(u64::MAX),
                    state,
                },
                by: long(index),
            })
            .collect()
    };
    tell(&mut core, now, updates(MemberState::Alive));
    assert_eq!(core.view().members.len(), 1001);
    let mut largest = 0;
    let mut carried = 0;
    for _ in 0..200 {
        while let Some(output) = core.poll_output() {
            if let Output::Transmit { datagram, .. } = output {
                let size = encode_datagram(&datagram).unwrap().len();
                largest = largest.max(size);
                if let Datagram::Full(full) = datagram {
                    assert!(size <= full.size_bound() + 1);
                    carried += full.updates.len();
                }
            }
        }
        let now = core.poll_timeout().unwrap();
        core.handle_timeout(now);
    }
    println!("largest datagram {largest} bytes, {carried} updates carried");
    assert!(largest + 24 <= DATAGRAM_MAX && largest > 900, "{largest}");
    assert!(carried > 1000);
}

#[test]
fn tombstones_and_evidence_are_bounded() {
    let now = Time(0);
    let config = Config {
        events_max: 20,
        members_max: 30,
        ..Config::default()
    };
    let mut core = lone(config, now);
    for index in 0..100 {
        let state = match index % 2 {
            0 => MemberState::Failed,
            _ => MemberState::Alive,
        };
        let member = member(&format!("x{index}"), 1, 1, state);
        tell(&mut core, now, vec![news(member)]);
    }
    assert_eq!(core.view().members.len(), 30);
    assert_eq!(core.stats().refused_members, 21);
    assert_eq!(core.events().len(), 20);
    core.members.forget(now, 10, secs(60));
    assert_eq!(core.members.tombstones().count(), 10);
    core.check_invariants();
}

#[test]
fn an_introducer_lets_only_one_node_form_a_cluster() {
    let mut introducer = Introducer::new(IntroducerConfig::default(), 1, Time(0));
    let join = |node: &str| {
        MembershipRequest::Join(JoinRequest {
            member: member(node, 1, 1, MemberState::Alive),
            cluster: None,
            first: true,
        })
    };
    let ask = |introducer: &mut Introducer, now: Time, node: &str| {
        introducer.handle_request(now, 1, join(node));
        match introducer.poll_output() {
            Some(IntroducerOutput::Reply { reply, .. }) => reply,
            other => panic!("no reply but {other:?}"),
        }
    };
    let at = |count| Time(0) + millis(count);
    let wait = MembershipReply::Wait;
    assert_eq!(
        ask(&mut introducer, at(2999), "a"),
        wait(WaitReason::Starting)
    );
    let form = MembershipReply::Form {
        incarnation: Incarnation(1),
    };
    assert_eq!(ask(&mut introducer, at(3000), "a"), form);
    assert_eq!(
        ask(&mut introducer, at(3100), "b"),
        wait(WaitReason::Forming)
    );
    assert_eq!(
        ask(&mut introducer, at(3200), "a"),
        form,
        "its reply was lost"
    );
    // It never came: the next one may.
    assert_eq!(ask(&mut introducer, at(8300), "b"), form);
}

#[test]
fn new_successors_are_probed_at_once() {
    let now = Time(0) + secs(7);
    let mut rng = Rng::new(1);
    let mut detector = Detector::new(Config::default());
    let mut actions = Vec::new();
    detector.monitor(now, &[server("a")], &mut rng);
    detector.handle_timeout(now, true, &mut actions);
    detector.answered(now, &server("a"), 1, &mut actions);
    assert!(detector.poll_timeout() > Some(now), "within the period");
    actions.clear();
    detector.monitor(now, &[server("a"), server("b")], &mut rng);
    assert_eq!(detector.poll_timeout(), Some(now));
    detector.handle_timeout(now, true, &mut actions);
    let expected = Action::Ping {
        target: name("b"),
        sequence: 2,
    };
    assert_eq!(actions, [expected]);
}

#[test]
fn one_refused_connection_is_no_miss_and_two_are() {
    let now = Time(0) + secs(7);
    let mut detector = Detector::new(Config::default());
    let target = server("a");
    detector.probe_now(now, &target, true, None);
    let mut actions = Vec::new();
    detector.handle_timeout(now, true, &mut actions);
    let connects = |actions: &[Action]| {
        let connect = |action: &&Action| matches!(action, Action::Connect { .. });
        actions.iter().filter(connect).count()
    };
    assert_eq!(connects(&actions), 1, "over TCP too, and at once");
    actions.clear();
    detector.refused(now, &target, 1, &mut actions);
    assert_eq!(actions, []);
    detector.refused(now, &target, 99, &mut actions);
    assert_eq!(actions, [], "the result of another probe");
    detector.handle_timeout(now + millis(50), true, &mut actions);
    assert_eq!(connects(&actions), 1, "tried once more");
    actions.clear();
    detector.refused(now + millis(51), &target, 1, &mut actions);
    let expected = Action::Missed {
        target: name("a"),
        miss: Miss::Refused,
        accuse: true,
    };
    assert_eq!(actions, [expected]);
}

#[test]
fn an_answer_from_another_disk_is_no_answer() {
    let now = Time(0) + secs(7);
    let mut detector = Detector::new(Config::default());
    let target = server("a");
    let other = Server {
        storage: StorageId(2),
        ..target.clone()
    };
    detector.probe_now(now, &target, false, None);
    let mut actions = Vec::new();
    detector.answered(now, &other, 1, &mut actions);
    assert_eq!(detector.answered_at(&target.node), None);
    detector.answered(now, &target, 1, &mut actions);
    assert_eq!(detector.answered_at(&target.node), Some(now));
}

#[test]
fn a_removal_lets_the_next_successor_be_pinged_in_the_same_turn() {
    let now = Time(0) + secs(1);
    let mut core = lone(Config::default(), now);
    let mut ring = Ring::default();
    for text in ["a", "b", "c", "d"] {
        ring.insert(&name(text));
    }
    let order: Vec<NodeId> = ring.after(&core.me.node).cloned().collect();
    // The nearest first, so that the last one is no successor before the removal.
    for node in &order {
        let alive = member(node.as_str(), 1, 1, MemberState::Alive);
        tell(&mut core, now, vec![news(alive)]);
    }
    while core.poll_output().is_some() {}
    let failed = member(order[1].as_str(), 1, 1, MemberState::Failed);
    tell(&mut core, now, vec![news(failed)]);
    let mut pinged = Vec::new();
    while let Some(output) = core.poll_output() {
        if let Output::Transmit { datagram, .. } = output
            && let Datagram::Full(full) = datagram
            && matches!(full.message, Message::Ping { .. })
        {
            pinged.extend(full.to);
        }
    }
    assert!(
        pinged.contains(&order[3]),
        "{pinged:?} lacks {:?}",
        order[3]
    );
}

/// What `core` sends next.
fn sent(core: &mut Membership) -> Vec<Datagram> {
    std::iter::from_fn(|| core.poll_output())
        .filter_map(|output| match output {
            Output::Transmit { datagram, .. } => Some(datagram),
            _ => None,
        })
        .collect()
}

#[test]
fn a_brief_ping_is_answered_in_kind_and_an_unknown_sender_asked_who_it_is() {
    let now = Time(0) + secs(1);
    let mut core = lone(Config::default(), now);
    let cluster = core.cluster().unwrap();
    let alive = member("a", 1, 1, MemberState::Alive);
    tell(&mut core, now, vec![news(alive.clone())]);
    // Nothing is left to tell.
    core.gossip = Gossip::new(1);
    sent(&mut core);
    let ping = |to: &str, from: &Member, digest: u64| {
        Datagram::Brief(Brief {
            to: Address::of(cluster, Some(&name(to))),
            from: Tag::of(&from.server()),
            incarnation: from.incarnation,
            word: Word::Ping {
                sequence: 7,
                digest: digest.to_be_bytes(),
            },
        })
    };
    let digest = core.members.digest();
    core.handle_datagram(now, addr(1), ping("own", &alive, digest));
    let answer = sent(&mut core).pop().expect("an answer");
    let Datagram::Brief(brief) = &answer else {
        panic!("not in brief: {answer:?}");
    };
    assert_eq!(brief.word, Word::Same { sequence: 7 });
    assert!(encode_datagram(&answer).unwrap().len() <= 24);
    // Another digest is answered with the own one.
    core.handle_datagram(now, addr(1), ping("own", &alive, digest + 1));
    let answer = sent(&mut core).pop().expect("an answer");
    assert!(matches!(&answer, Datagram::Full(full)
        if full.message == Message::Ack { sequence: 7, digest }));
    // Meant for another member: no answer.
    core.handle_datagram(now, addr(1), ping("b", &alive, digest));
    assert_eq!(sent(&mut core), []);
    assert_eq!(core.stats().wrong_destination, 1);
    // Another disk under the name is somebody else.
    let stranger = member("a", 2, 1, MemberState::Alive);
    core.handle_datagram(now, addr(1), ping("own", &stranger, digest));
    let answer = sent(&mut core).pop().expect("a question");
    assert!(matches!(&answer, Datagram::Full(full) if full.message == Message::Who));
    // Who asks is told.
    let who = Datagram::Full(Full {
        cluster: None,
        from: None,
        to: None,
        message: Message::Who,
        updates: Vec::new(),
    });
    core.handle_datagram(now, addr(99), who);
    let answer = sent(&mut core).pop().expect("an answer");
    assert!(matches!(&answer, Datagram::Full(full)
        if matches!(&full.message, Message::Announce { member, .. } if *member == core.me)));
}

#[test]
fn news_ride_as_often_as_they_should_and_no_longer() {
    let mut gossip = Gossip::new(2);
    let empty = || Full {
        cluster: None,
        from: None,
        to: None,
        message: Message::News,
        updates: Vec::new(),
    };
    let update = |text: &str| news(member(text, 1, 1, MemberState::Alive));
    gossip.push(Time(0), update("a"));
    let carried = |gossip: &mut Gossip| {
        let mut full = empty();
        gossip.fill(&mut full);
        full.updates.len()
    };
    assert_eq!(carried(&mut gossip), 1);
    gossip.push(Time(0) + secs(5), update("b"));
    assert_eq!(carried(&mut gossip), 2);
    assert_eq!(carried(&mut gossip), 1, "b alone, for its second time");
    assert!(gossip.is_empty());
    gossip.push(Time(0) + secs(5), update("c"));
    gossip.push(Time(0) + secs(6), update("d"));
    gossip.forget(Time(0) + secs(6));
    assert_eq!(gossip.len(), 1, "d is young enough");
}

#[test]
fn a_suspicion_that_ends_at_once_is_no_pause_of_this_process() {
    let start = Time(0) + secs(1);
    let mut core = lone(Config::default(), start);
    let suspect = |text: &str, by: &str| Update {
        member: member(text, 1, 1, MemberState::Suspect),
        by: name(by),
    };
    let alive = ["b", "c"].map(|text| news(member(text, 1, 1, MemberState::Alive)));
    tell(&mut core, start, alive.to_vec());
    tell(&mut core, start, vec![suspect("b", "c")]);
    let run = |core: &mut Membership, end: Time| {
        let mut now = start;
        while core.poll_timeout().is_some_and(|due| due <= end) {
            now = now.max(core.poll_timeout().expect("just asked"));
            core.handle_timeout(now);
        }
    };
    // Within the span in which c could agree that b is gone, c falls silent itself: b goes at
    // once, and c after the span of who has nobody left to ask.
    let later = start + millis(1_000);
    run(&mut core, later);
    tell(&mut core, later, vec![suspect("c", "b")]);
    assert_eq!(core.view().members.len(), 3);
    core.handle_timeout(later);
    assert_eq!(core.view().members.len(), 2, "b is gone");
    run(&mut core, later + Config::default().suspicion_span_lone);
    assert_eq!(core.view().members.len(), 1, "c is gone");
    assert_eq!(core.stats().pauses, 0);
}

#[test]
fn a_cluster_that_is_shown_while_the_introducer_starts_is_known_when_it_has() {
    let mut introducer = Introducer::new(IntroducerConfig::default(), 1, Time(0));
    let mut ask = |milliseconds, node: &str, cluster| {
        let request = JoinRequest {
            member: member(node, 1, 1, MemberState::Alive),
            cluster,
            first: true,
        };
        let now = Time(0) + millis(milliseconds);
        introducer.handle_request(now, 1, MembershipRequest::Join(request));
        match introducer.poll_output() {
            Some(IntroducerOutput::Reply { reply, .. }) => reply,
            other => panic!("no reply but {other:?}"),
        }
    };
    let starting = MembershipReply::Wait(WaitReason::Starting);
    assert_eq!(ask(2_000, "old", Some(ClusterId(5))), starting);
    let silent = MembershipReply::Wait(WaitReason::MembersSilent);
    assert_eq!(ask(3_100, "new", None), silent, "it begins no second one");
    let old = ask(3_200, "old", Some(ClusterId(5)));
    assert!(matches!(old, MembershipReply::Welcome { cluster, .. } if cluster == ClusterId(5)));
}

#[test]
fn an_introducer_that_hears_of_an_unknown_member_lets_nobody_begin_a_cluster() {
    let mut introducer = Introducer::new(IntroducerConfig::default(), 1, Time(0));
    let at = |count| Time(0) + millis(count);
    let cluster = ClusterId(5);
    let old = member("old", 1, 4, MemberState::Alive);
    let announcement = Datagram::Brief(Brief {
        to: Address::of(cluster, None),
        from: Tag::of(&old.server()),
        incarnation: old.incarnation,
        word: Word::Announce { digest: [0; 8] },
    });
    introducer.handle_datagram(at(2900), addr(1), announcement);
    let asked = introducer.poll_output();
    assert!(
        matches!(&asked, Some(IntroducerOutput::Transmit { datagram: Datagram::Full(full), .. })
            if full.message == Message::Who),
        "{asked:?}"
    );
    let newcomer = || {
        MembershipRequest::Join(JoinRequest {
            member: member("new", 1, 1, MemberState::Alive),
            cluster: None,
            first: true,
        })
    };
    introducer.handle_request(at(3100), 1, newcomer());
    let waits = IntroducerOutput::Reply {
        token: 1,
        reply: MembershipReply::Wait(WaitReason::Starting),
    };
    assert_eq!(introducer.poll_output(), Some(waits));
    // It never says who it is: perhaps its cluster has another introducer.
    introducer.handle_request(at(5900), 2, newcomer());
    assert!(matches!(
        introducer.poll_output(),
        Some(IntroducerOutput::Reply {
            reply: MembershipReply::Form { .. },
            ..
        })
    ));
}

/// An introducer that `who` has announced itself to in full, at 4 s.
fn introducer_of(who: &Member) -> Introducer {
    let mut introducer = Introducer::new(IntroducerConfig::default(), 1, Time(0));
    let full = Full {
        cluster: Some(ClusterId(5)),
        from: Some(Sender {
            node: who.node.clone(),
            storage: who.storage,
            incarnation: who.incarnation,
        }),
        to: None,
        message: Message::Announce {
            member: who.clone(),
            digest: 0,
        },
        updates: Vec::new(),
    };
    introducer.handle_datagram(Time(0) + secs(4), who.addr, Datagram::Full(full));
    assert_eq!(introducer.poll_output(), None);
    introducer
}

#[test]
fn an_announcement_from_the_past_changes_nothing() {
    let now = member("a", 1, 4, MemberState::Alive);
    let mut introducer = introducer_of(&now);
    let old = Datagram::Brief(Brief {
        to: Address::of(ClusterId(5), None),
        from: Tag::of(&now.server()),
        incarnation: Incarnation(3),
        word: Word::Announce { digest: [0; 8] },
    });
    introducer.handle_datagram(Time(0) + secs(5), now.addr, old);
    assert_eq!(
        introducer.poll_output(),
        None,
        "nobody is told that it failed"
    );
}

#[test]
fn a_newcomer_that_members_could_not_reach_is_refused() {
    let mut introducer = introducer_of(&member("a", 1, 1, MemberState::Alive));
    let mut newcomer = member("b", 2, 1, MemberState::Alive);
    newcomer.addr = "[::1]:7000".parse().unwrap();
    let request = MembershipRequest::Join(JoinRequest {
        member: newcomer,
        cluster: None,
        first: true,
    });
    introducer.handle_request(Time(0) + secs(5), 1, request);
    assert!(matches!(
        introducer.poll_output(),
        Some(IntroducerOutput::Reply {
            reply: MembershipReply::Refused(JoinRefusal::OtherNetwork { .. }),
            ..
        })
    ));
}

#[test]
fn where_the_first_introducer_is_left_out_none_is_asked_as_the_first() {
    for first_permits in [true, false] {
        let config = Config {
            first_permits,
            ..Config::default()
        };
        let me = Identity {
            node: name("own"),
            storage: StorageId(7),
            incarnation: Incarnation(1),
            addr: addr(0),
            cluster: None,
        };
        let now = Time(0);
        let mut core = Membership::new(config, me, vec![addr(99)], 1, now, WallTime(0));
        core.handle_join(now);
        let Some(Output::Exchange { request, .. }) = core.poll_output() else {
            panic!("it asks the introducer");
        };
        let MembershipRequest::Join(request) = request else {
            panic!("to join");
        };
        assert_eq!(request.first, first_permits);
    }
}
