//! Directed stories: one rule of the core each. The random ones are in `storms`.

use std::collections::BTreeSet;
use std::time::Duration;

use super::harness::{Cluster, Weather, ms, server};
use super::quorum::{copies, majority, reached_by};
use super::{
    Candidacy, Config, ConfigError, Consensus, Content, Entry, HardState, Message, Output, Payload,
    Recovered, RefusedChange, Role,
};
use crate::types::{Index, Server, Term, Time};

#[test]
fn majorities_meet_and_copies_are_at_most_four() {
    assert_eq!([1, 2, 3, 4, 5, 7].map(majority), [1, 2, 2, 3, 3, 4]);
    assert_eq!([0, 1, 3, 4, 9].map(copies), [0, 1, 3, 4, 4]);
    assert_eq!(reached_by(2, [5, 9, 1].into_iter()), Some(5));
    assert_eq!(reached_by(3, [5, 9, 1].into_iter()), Some(1));
    assert_eq!(reached_by(4, [5, 9, 1].into_iter()), None);
    assert_eq!(reached_by(0, [5].into_iter()), None);
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let valid = Config::default();
    assert_eq!(valid.validate(), Ok(()));
    let mut config = valid.clone();
    config.heartbeat = ms(300);
    assert!(matches!(
        config.validate(),
        Err(ConfigError::Heartbeat(_, _))
    ));
    let mut config = valid.clone();
    config.election_timeout_max = config.election_timeout_min;
    assert!(matches!(
        config.validate(),
        Err(ConfigError::ElectionTimeout(_, _))
    ));
    let mut config = valid;
    config.in_flight_max = 0;
    assert_eq!(config.validate(), Err(ConfigError::Zero));
}

/// What one core puts out, until it has nothing more.
pub(super) fn outputs(core: &mut Consensus) -> Vec<Output> {
    std::iter::from_fn(|| core.poll_output()).collect()
}

pub(super) fn message(term: u64, content: Content) -> Message {
    Message {
        term: Term(term),
        content,
    }
}

pub(super) fn entry(term: u64, index: u64, payload: Payload) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        payload,
    }
}

pub(super) fn append(previous: (u64, u64), entries: Vec<Entry>, commit: u64) -> Content {
    Content::Append {
        previous_index: Index(previous.0),
        previous_term: Term(previous.1),
        entries,
        commit: Index(commit),
        round: 0,
    }
}

/// A voter among three, with an empty log but for their names.
pub(super) fn one_of_three(me: usize) -> Consensus {
    let voters = (0..3).map(server).collect();
    let recovered = Recovered {
        hard_state: HardState {
            term: Term(1),
            vote: None,
        },
        snapshot: None,
        entries: vec![entry(1, 1, Payload::Voters(voters))],
        commit: Index(0),
    };
    Consensus::new(Config::default(), server(me), recovered, 7, Time(0))
}

#[test]
fn a_founder_leads_once_its_vote_is_on_disk() {
    let mut core = Consensus::new(
        Config::default(),
        server(0),
        Recovered::default(),
        1,
        Time(0),
    );
    assert_eq!(core.poll_timeout(), None);
    core.bootstrap(Time(0));
    let [Output::Persist(write)] = &outputs(&mut core)[..] else {
        panic!("anything but the write was put out");
    };
    assert_eq!(write.hard_state.as_ref().unwrap().term, Term(1));
    assert_eq!(write.entries.len(), 1);
    assert_eq!(core.role(), Role::Candidate);
    core.handle_persisted(Time(1), write.ticket);
    assert_eq!(core.role(), Role::Leader);
    assert!(matches!(
        &outputs(&mut core)[..],
        [Output::Leader { .. }, Output::Persist(_)]
    ));
    core.handle_members(Time(1), [server(0)].into());
    core.handle_persisted(Time(2), 2);
    let end = outputs(&mut core);
    assert!(matches!(
        end[..],
        [
            Output::Apply(_),
            Output::Apply(_),
            Output::Durable(Index(2))
        ]
    ));
    core.bootstrap(Time(3));
    assert_eq!(core.last_index(), Index(2));
}

fn candidacy(last_index: Index, last_term: Term) -> Candidacy {
    Candidacy {
        last_index,
        last_term,
        insists: false,
    }
}

#[test]
fn a_vote_waits_for_the_disk_and_is_given_once() {
    let mut core = one_of_three(0);
    let ask = |core: &mut Consensus, who: usize| {
        let content = Content::Vote(candidacy(Index(1), Term(1)));
        core.handle_message(Time(5), server(who), message(2, content));
        outputs(core)
    };
    let first = ask(&mut core, 1);
    assert!(matches!(&first[..], [Output::Persist(_)]), "{first:?}");
    assert!(ask(&mut core, 2).is_empty());
    core.handle_persisted(Time(6), 1);
    let replies: Vec<(Server, Content)> = outputs(&mut core)
        .into_iter()
        .filter_map(|output| match output {
            Output::Send { to, message } => Some((to, message.content)),
            _ => None,
        })
        .collect();
    let expected = [
        (server(1), Content::VoteReply { granted: true }),
        (server(2), Content::VoteReply { granted: false }),
    ];
    assert_eq!(replies, expected);
}

#[test]
fn nobody_votes_for_a_log_that_may_lack_a_committed_entry() {
    for (last_index, last_term, expected) in
        [(0, 0, false), (9, 0, false), (1, 1, true), (1, 2, true)]
    {
        let mut core = one_of_three(0);
        let content = Content::Vote(candidacy(Index(last_index), Term(last_term)));
        core.handle_message(Time(5), server(1), message(2, content));
        outputs(&mut core);
        core.handle_persisted(Time(6), 1);
        let granted = Content::VoteReply { granted: expected };
        assert!(
            matches!(&outputs(&mut core)[..], [Output::Leader { .. }, Output::Send { message, .. }]
                if message.content == granted)
        );
    }
}

#[test]
fn a_voter_that_hears_a_leader_helps_nobody_to_depose_it() {
    let mut core = one_of_three(0);
    core.handle_message(Time(0), server(1), message(1, append((1, 1), vec![], 1)));
    outputs(&mut core);
    let pre_vote = Content::PreVote(candidacy(Index(9), Term(1)));
    let vote = Content::Vote(candidacy(Index(9), Term(1)));
    let early = Time(0) + ms(599);
    core.handle_message(early, server(2), message(1, pre_vote.clone()));
    core.handle_message(early, server(2), message(2, vote));
    assert_eq!(core.term(), Term(1));
    let refusal = Content::PreVoteReply {
        asked: Term(1),
        granted: false,
    };
    assert!(
        matches!(&outputs(&mut core)[..], [Output::Send { message, .. }] if message.content == refusal)
    );
    core.handle_message(Time(0) + ms(600), server(2), message(1, pre_vote));
    assert!(matches!(
        &outputs(&mut core)[..],
        [Output::Send { message, .. }]
            if matches!(message.content, Content::PreVoteReply { granted: true, .. })
    ));
}

#[test]
fn an_answer_to_append_speaks_only_of_what_is_on_disk() {
    let mut core = one_of_three(0);
    let entries = vec![entry(1, 2, Payload::Empty), entry(1, 3, Payload::Empty)];
    core.handle_message(Time(0), server(1), message(1, append((1, 1), entries, 3)));
    let answer = |outputs: &[Output]| {
        outputs.iter().find_map(|output| match output {
            Output::Send { message, .. } => match message.content {
                Content::Appended {
                    matched, verified, ..
                } => Some((matched.0, verified.0)),
                _ => None,
            },
            _ => None,
        })
    };
    let early = outputs(&mut core);
    assert_eq!(answer(&early), Some((1, 3)));
    let applied = |outputs: &[Output]| {
        let applies = outputs
            .iter()
            .filter(|output| matches!(output, Output::Apply(_)));
        applies.count()
    };
    assert_eq!(applied(&early), 1);
    core.handle_persisted(Time(1), 1);
    let late = outputs(&mut core);
    assert_eq!(answer(&late), Some((3, 3)));
    assert_eq!(applied(&late), 2);
}

#[test]
fn a_write_on_its_way_does_not_vouch_for_what_replaced_it() {
    let mut core = one_of_three(0);
    let old = vec![entry(1, 2, Payload::Empty), entry(1, 3, Payload::Empty)];
    core.handle_message(Time(0), server(1), message(1, append((1, 1), old, 1)));
    outputs(&mut core);
    let new = vec![entry(2, 2, Payload::Empty), entry(2, 3, Payload::Empty)];
    core.handle_message(Time(1), server(2), message(2, append((1, 1), new, 3)));
    let writes = outputs(&mut core);
    let [Output::Persist(write)] = &writes[..] else {
        panic!("{writes:?}");
    };
    assert_eq!(write.truncate_from, Some(Index(2)));
    assert_eq!(write.entries.len(), 2);
    core.handle_persisted(Time(2), 1);
    assert!(
        !outputs(&mut core)
            .iter()
            .any(|output| matches!(output, Output::Apply(entry) if entry.index > Index(1)))
    );
    core.check_invariants();
    core.handle_persisted(Time(3), 2);
    let applies = outputs(&mut core);
    assert!(
        applies
            .iter()
            .any(|output| matches!(output, Output::Apply(entry) if entry.index == Index(3)))
    );
}

#[test]
fn broken_messages_are_dropped_and_counted() {
    let mut core = one_of_three(0);
    let good = vec![entry(1, 2, Payload::Empty)];
    core.handle_message(
        Time(0),
        server(1),
        message(1, append((1, 1), good.clone(), 2)),
    );
    outputs(&mut core);
    let gap = vec![entry(1, 3, Payload::Empty), entry(1, 5, Payload::Empty)];
    let future = vec![entry(9, 3, Payload::Empty)];
    let falling = vec![entry(2, 3, Payload::Empty), entry(1, 4, Payload::Empty)];
    let recommit = vec![entry(0, 2, Payload::Empty)];
    let broken = [
        (server(1), message(1, append((2, 1), gap, 0))),
        (server(1), message(1, append((2, 1), future, 0))),
        (server(1), message(2, append((2, 1), falling, 0))),
        (server(1), message(1, append((u64::MAX, 1), good, 0))),
        (server(1), message(1, append((1, 1), recommit, 0))),
        (server(1), message(u64::MAX, append((1, 1), vec![], 0))),
        (server(0), message(1, append((1, 1), vec![], 0))),
        (server(2), message(1, append((1, 1), vec![], 0))),
    ];
    for (count, (from, message)) in broken.into_iter().enumerate() {
        core.handle_message(Time(1), from, message);
        assert_eq!(core.dropped(), count as u64 + 1);
        outputs(&mut core);
        core.check_invariants();
    }
    assert_eq!((core.last_index(), core.term()), (Index(2), Term(1)));
}

#[test]
fn a_leader_drops_answers_to_what_it_never_sent() {
    let mut cluster = Cluster::grown(3, 3, 5);
    let leader = cluster.leader().unwrap();
    let term = cluster.core(leader).term().0;
    let commit = cluster.core(leader).commit();
    let lies = [
        Content::Appended {
            matched: Index(99),
            verified: Index(99),
            round: 0,
        },
        Content::Appended {
            matched: Index(2),
            verified: Index(1),
            round: 0,
        },
        Content::Appended {
            matched: Index(1),
            verified: Index(1),
            round: 99,
        },
        Content::Rejected {
            previous_index: Index(1),
            hint_index: Index(u64::MAX),
            hint_term: Term(u64::MAX),
            round: 99,
        },
    ];
    let dropped = cluster.core(leader).dropped();
    for lie in lies {
        cluster.act(leader, |core, now| {
            core.handle_message(now, server((leader + 1) % 3), message(term, lie));
        });
    }
    assert_eq!(cluster.core(leader).dropped(), dropped + 4);
    assert_eq!(cluster.core(leader).commit(), commit);
}

#[test]
fn proposals_of_one_turn_make_one_write_and_one_append() {
    let mut cluster = Cluster::grown(3, 3, 3);
    let leader = cluster.leader().unwrap();
    let now = cluster.now;
    let core = cluster.slots[leader].core.as_mut().unwrap();
    for command in 0..100_u8 {
        core.propose(now, [command].as_slice().into()).unwrap();
    }
    let outputs = outputs(core);
    assert_eq!(outputs.len(), 3, "one write and two appends");
    let size = |output: &Output| match output {
        Output::Persist(write) => write.entries.len(),
        Output::Send { message, .. } => match &message.content {
            Content::Append { entries, .. } => entries.len(),
            _ => 0,
        },
        _ => 0,
    };
    assert!(outputs.iter().all(|output| size(output) == 100));
}

#[test]
fn appends_are_bounded_in_bytes_and_number() {
    let mut cluster = Cluster::grown(2, 2, 3);
    let leader = cluster.leader().unwrap();
    let now = cluster.now;
    let core = cluster.slots[leader].core.as_mut().unwrap();
    for _ in 0..40 {
        let command = vec![0; 600 << 10];
        core.propose(now, command.into()).unwrap();
    }
    let sent = outputs(core)
        .into_iter()
        .filter(|output| matches!(output, Output::Send { .. }));
    assert_eq!(sent.count(), Config::default().in_flight_max);
    core.check_invariants();
}

#[test]
fn three_voters_survive_the_loss_of_the_leader() {
    let mut cluster = Cluster::grown(3, 3, 11);
    let first = cluster.leader().unwrap();
    let index = cluster.propose(first).unwrap();
    cluster.run(ms(200));
    assert!(cluster.slots[first].durable >= index.0);
    cluster.crash(first);
    let died = cluster.now;
    while cluster.leader().is_none() {
        cluster.run(ms(10));
        assert!(cluster.now.since(died) < ms(3000), "no new leader in 3 s");
    }
    let second = cluster.leader().unwrap();
    assert!(cluster.core(second).last_index() > index);
    cluster.heal_and_check();
}

#[test]
fn a_leader_without_majority_refuses_within_a_timeout() {
    let mut cluster = Cluster::grown(5, 5, 13);
    let old = cluster.leader().unwrap();
    let friend = (old + 1) % 5;
    assert!(cluster.core(old).quorum_reachable(cluster.now));
    cluster.isolate(&[old, friend]);
    let lost = cluster.propose(old).unwrap();
    let (ready, failed) = (cluster.reads_ready, cluster.reads_failed);
    cluster.read(old).unwrap();
    cluster.run(Config::default().election_timeout_max + ms(100));
    assert!(cluster.propose(old).is_none() && cluster.read(old).is_none());
    assert_eq!(
        (cluster.reads_ready, cluster.reads_failed),
        (ready, failed + 1)
    );
    assert!(cluster.slots[old].durable < lost.0);
    cluster.run(ms(3000));
    assert!(!cluster.core(old).quorum_reachable(cluster.now));
    let silent: BTreeSet<Server> = cluster
        .core(old)
        .unreachable(cluster.now)
        .into_iter()
        .collect();
    let others = (0..5).filter(|slot| *slot != old && *slot != friend);
    assert_eq!(silent, others.map(server).collect());
    let new = cluster.leader().unwrap();
    assert!(new != old && new != friend);
    assert!(cluster.propose(new).is_some());
    // The pair has asked in vain meanwhile and must not disturb when it comes back.
    let term = cluster.core(new).term();
    cluster.heal_and_check();
    assert_eq!(cluster.leader(), Some(new));
    assert_eq!(cluster.core(new).term(), term);
}

#[test]
fn voters_grow_to_five_and_shrink_while_some_fail() {
    let mut cluster = Cluster::new(6, 17);
    for size in 1..=5 {
        cluster.grow_to(size);
        let leader = cluster.leader().unwrap();
        assert!(cluster.propose(leader).is_some());
    }
    for slot in [3, 4] {
        cluster.crash(slot);
    }
    for size in [4, 3] {
        cluster.grow_to(size);
    }
    cluster.crash(2);
    cluster.grow_to(2);
    cluster.grow_to(1);
    let leader = cluster.leader().unwrap();
    assert_eq!((leader, cluster.core(leader).voters().len()), (0, 1));
    cluster.heal_and_check();
}

#[test]
fn a_leader_that_removes_itself_stops_when_that_is_committed() {
    let mut cluster = Cluster::grown(3, 3, 19);
    let old = cluster.leader().unwrap();
    let rest: Vec<Server> = (0..3).filter(|slot| *slot != old).map(server).collect();
    assert!(cluster.change_voters(old, rest.clone()));
    assert_eq!(cluster.core(old).role(), Role::Leader);
    cluster.run(ms(5000));
    let new = cluster.leader().unwrap();
    assert_ne!(new, old);
    assert_eq!(cluster.core(new).voters(), rest);
    let term = cluster.core(new).term();
    cluster.run(ms(5000));
    assert_eq!(cluster.core(new).term(), term, "a removed voter campaigned");
    cluster.heal_and_check();
}

#[test]
fn a_voter_that_is_taken_out_is_elected_while_it_may_be_needed() {
    let mut survived = 0;
    for seed in 0..20 {
        let mut cluster = Cluster::grown(2, 2, seed);
        let old = cluster.leader().unwrap();
        cluster.weather.disk = (ms(300), ms(301));
        assert!(cluster.change_voters(old, vec![server(old)]));
        cluster.run(ms(50));
        assert_eq!(cluster.core(1 - old).voters(), [server(old)]);
        cluster.crash(old);
        cluster.weather = Weather::fair();
        cluster.start(old);
        survived += usize::from(cluster.core(old).voters().len() == 1);
        cluster.run(ms(5000));
        assert!(cluster.leader().is_some(), "seed {seed}: nobody leads");
        cluster.heal_and_check();
    }
    assert!(
        survived < 20,
        "the change was on the leader's disk each time"
    );
}

#[test]
fn changes_of_voters_that_could_split_are_refused() {
    let mut cluster = Cluster::grown(5, 3, 23);
    let leader = cluster.leader().unwrap();
    let now = cluster.now;
    let set = |slots: &[usize]| slots.iter().copied().map(server).collect::<Vec<_>>();
    let refused = |cluster: &mut Cluster, voters: Vec<Server>| {
        let core = cluster.slots[leader].core.as_mut().unwrap();
        core.propose_voters(now, voters).unwrap_err()
    };
    for wrong in [
        &[][..],
        &[0, 1, 2],
        &[0],
        &[0, 1, 2, 3, 4],
        &[0, 1, 3],
        &[0, 1, 2, 2],
    ] {
        assert_eq!(
            refused(&mut cluster, set(wrong)),
            RefusedChange::NotOneServer
        );
    }
    cluster.crash(4);
    cluster.run(ms(50));
    assert!(cluster.change_voters(leader, set(&[0, 1, 2, 3])));
    assert!(matches!(
        refused(&mut cluster, set(&[0, 1, 2])),
        RefusedChange::Pending(_)
    ));
    let follower = (leader + 1) % 3;
    let core = cluster.slots[follower].core.as_mut().unwrap();
    assert!(matches!(
        core.propose_voters(now, set(&[0, 1])),
        Err(RefusedChange::NotLeader(_))
    ));
    cluster.heal_and_check();
}

#[test]
fn a_server_without_the_log_is_not_made_a_voter() {
    let mut cluster = Cluster::grown(4, 3, 29);
    let leader = cluster.leader().unwrap();
    cluster.isolate(&[3]);
    cluster.crash(3);
    cluster.slots[3].disk = Default::default();
    cluster.start(3);
    for _ in 0..200 {
        cluster.propose(leader);
    }
    cluster.run(ms(500));
    let mut refusal = None;
    cluster.act(leader, |core, now| {
        let voters = (0..4).map(server).collect();
        refusal = core.propose_voters(now, voters).err();
    });
    assert_eq!(refusal, Some(RefusedChange::NotCaughtUp(server(3))));
}

#[test]
fn a_new_leader_changes_no_voters_before_it_has_committed() {
    let mut cluster = Cluster::grown(3, 3, 31);
    let old = cluster.leader().unwrap();
    cluster.crash(old);
    let mut refusal = None;
    while refusal.is_none() {
        cluster.run(Duration::from_micros(100));
        if let Some(leader) = cluster.leader() {
            cluster.act(leader, |core, now| {
                let voters = core.voters()[..2].to_vec();
                refusal = core.propose_voters(now, voters).err();
            });
            let term = cluster.core(leader).term();
            assert_eq!(refusal, Some(RefusedChange::NoEntryOfThisTerm(term)));
        }
    }
}

#[test]
fn learners_catch_up_count_for_copies_and_never_vote() {
    let mut cluster = Cluster::new(4, 37);
    cluster.run(ms(100));
    cluster.isolate(&[3]);
    let indexes: Vec<Index> = (0..500).filter_map(|_| cluster.propose(0)).collect();
    cluster.run(ms(1000));
    let last = *indexes.last().unwrap();
    assert!(cluster.core(0).commit() >= last, "one voter commits alone");
    assert!(
        cluster.slots[0].durable < last.0,
        "three disks are not four"
    );
    assert!(cluster.core(0).caught_up(&server(1)) && !cluster.core(0).caught_up(&server(3)));
    let live: BTreeSet<Server> = (0..3).map(server).collect();
    cluster.tell_members(&live);
    assert_eq!(cluster.slots[0].durable, last.0, "three of three have it");
    cluster.crash(0);
    cluster.run(ms(5000));
    assert!(cluster.leader().is_none(), "a learner made itself leader");
    cluster.heal_and_check();
}

#[test]
fn a_whole_cluster_starts_again_from_its_disks() {
    let mut cluster = Cluster::grown(5, 3, 41);
    let leader = cluster.leader().unwrap();
    let index = cluster.propose(leader).unwrap();
    cluster.run(ms(300));
    for slot in 0..5 {
        cluster.crash(slot);
    }
    for slot in 0..5 {
        cluster.start(slot);
    }
    cluster.run(ms(4000));
    for slot in 0..5 {
        assert!(cluster.slots[slot].applied > index.0);
    }
    cluster.heal_and_check();
}

#[test]
fn a_single_voter_leads_again_at_once() {
    let mut cluster = Cluster::new(1, 43);
    cluster.run(ms(100));
    cluster.crash(0);
    cluster.start(0);
    cluster.run(ms(20));
    assert_eq!(cluster.leader(), Some(0));
}

/// Raft's figure 8: an entry of an old term is on a majority's disks and still not committed.
#[test]
fn an_old_entry_is_not_committed_by_counting() {
    let voters: Vec<Server> = (0..3).map(server).collect();
    let recovered = Recovered {
        hard_state: HardState {
            term: Term(3),
            vote: Some(server(0)),
        },
        snapshot: None,
        entries: vec![
            entry(1, 1, Payload::Voters(voters)),
            entry(2, 2, Payload::Empty),
        ],
        commit: Index(0),
    };
    let mut core = Consensus::new(Config::default(), server(0), recovered, 7, Time(0));
    let due = core.poll_timeout().unwrap();
    core.handle_timeout(due);
    outputs(&mut core);
    let yes = Content::PreVoteReply {
        asked: Term(3),
        granted: true,
    };
    core.handle_message(due, server(1), message(3, yes));
    outputs(&mut core);
    core.handle_persisted(due, 1);
    let vote = Content::VoteReply { granted: true };
    core.handle_message(due, server(1), message(4, vote));
    assert_eq!((core.role(), core.term()), (Role::Leader, Term(4)));
    outputs(&mut core);
    let answer = |matched| Content::Appended {
        matched: Index(matched),
        verified: Index(matched),
        round: 0,
    };
    core.handle_message(due, server(1), message(4, answer(2)));
    assert_eq!(core.commit(), Index(0));
    core.handle_message(due, server(1), message(4, answer(3)));
    assert_eq!(core.commit(), Index(0), "its own disk does not have it yet");
    outputs(&mut core);
    core.handle_persisted(due, 2);
    assert_eq!(core.commit(), Index(3));
}

#[test]
fn an_answer_to_an_older_reign_counts_for_nothing() {
    let mut cluster = Cluster::grown(3, 3, 59);
    let leader = cluster.leader().unwrap();
    let others: Vec<usize> = (0..3).filter(|slot| *slot != leader).collect();
    cluster.isolate(&[leader]);
    let index = cluster.propose(leader).unwrap();
    cluster.run(ms(50));
    let term = cluster.core(leader).term().0;
    let stale = Content::Appended {
        matched: index,
        verified: index,
        round: 0,
    };
    for other in others {
        let stale = message(term - 1, stale.clone());
        cluster.act(leader, |core, now| {
            core.handle_message(now, server(other), stale);
        });
    }
    assert!(cluster.core(leader).commit() < index);
    cluster.heal_and_check();
}

#[test]
fn a_diverged_log_is_brought_back_in_few_messages() {
    let mut cluster = Cluster::grown(3, 3, 47);
    let old = cluster.leader().unwrap();
    cluster.isolate(&[old]);
    for _ in 0..300 {
        cluster.propose(old);
    }
    cluster.run(ms(4000));
    let new = cluster.leader().unwrap();
    assert_ne!(new, old);
    for _ in 0..300 {
        cluster.propose(new);
    }
    cluster.run(ms(200));
    cluster.cut.clear();
    cluster.run(ms(400));
    assert_eq!(
        cluster.core(old).commit(),
        cluster.core(new).commit(),
        "300 entries took more than four heartbeats"
    );
    cluster.heal_and_check();
}

/// All but `slot`, as its failure is confirmed.
fn tell_failed(cluster: &mut Cluster, slot: usize) {
    let live = (0..cluster.slots.len()).filter(|other| *other != slot);
    let live: BTreeSet<Server> = live.map(server).collect();
    cluster.tell_members(&live);
}

#[test]
fn a_leader_whose_failure_is_known_is_replaced_at_once() {
    for seed in 0..50 {
        let mut cluster = Cluster::grown(7, 7, 300 + seed);
        let old = cluster.leader().unwrap();
        cluster.crash(old);
        cluster.run(ms(30));
        tell_failed(&mut cluster, old);
        cluster.run(ms(150));
        let new = cluster.leader().expect("nobody leads 150 ms later");
        let terms = cluster.core(new).term().0;
        cluster.run(ms(3000));
        assert_eq!(
            cluster.leader(),
            Some(new),
            "a second election, seed {seed}"
        );
        assert_eq!(cluster.core(new).term().0, terms);
        cluster.heal_and_check();
    }
}

#[test]
fn a_living_leader_that_is_taken_for_failed_goes_on() {
    for seed in 0..50 {
        let mut cluster = Cluster::grown(5, 5, 400 + seed);
        let old = cluster.leader().unwrap();
        let term = cluster.core(old).term();
        tell_failed(&mut cluster, old);
        cluster.run(ms(3000));
        let new = cluster.leader().unwrap();
        // A standby may win before it hears the leader again; then there is one election.
        assert!(cluster.core(new).term().0 <= term.0 + 1, "seed {seed}");
        cluster.heal_and_check();
    }
}

/// Two of three voters have an entry; one of them comes back with an empty disk, and the other
/// is down: the third lacks the entry and must not be elected.
pub(super) fn wipe_a_voter(seed: u64) {
    let mut cluster = Cluster::with(Config::default(), 9, seed);
    for size in 1..=3 {
        cluster.grow_to(size);
    }
    for slot in 3..9 {
        cluster.crash(slot);
    }
    let leader = cluster.leader().unwrap();
    let others: Vec<usize> = (0..3).filter(|slot| *slot != leader).collect();
    cluster.isolate(&[others[1]]);
    let index = cluster.propose(leader).unwrap();
    cluster.run(ms(100));
    assert!(cluster.core(leader).commit() >= index);
    cluster.crash(leader);
    cluster.crash(others[0]);
    cluster.cut.clear();
    cluster.start(others[0] + 7);
    cluster.tell_members(&[server(others[1]), server(others[0] + 7)].into());
    cluster.run(ms(5000));
    assert!(cluster.leader().is_none(), "elected without a majority");
    // With the one that has the entry it goes on.
    cluster.start(leader);
    cluster.run(ms(5000));
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn a_voter_that_lost_its_disk_does_not_vote() {
    for seed in 0..20 {
        wipe_a_voter(seed);
    }
}
