use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::harness::{Cluster, Disk, Weather, ms, server};
use super::super::tests::{append, entry, message, one_of_three, outputs};
use super::super::{
    Config, Consensus, Content, HardState, Message, Output, Payload, Recovered, Role, Snapshot,
};
use crate::types::{Index, Server, Term, Time};

fn crash_stop(count: usize, voters: usize, seed: u64) -> Cluster {
    let config = Config {
        crash_stop: true,
        ..Config::default()
    };
    let mut cluster = Cluster::with(config, count, seed);
    for size in 1..=voters {
        cluster.grow_to(size);
    }
    cluster.run(ms(500));
    cluster
}

fn servers(slots: impl IntoIterator<Item = usize>) -> BTreeSet<Server> {
    slots.into_iter().map(server).collect()
}

/// Proposes at the leader and waits until it may be answered.
fn answer(cluster: &mut Cluster) -> u64 {
    let leader = cluster.leader().expect("a leader");
    let index = cluster.propose(leader).expect("it leads");
    cluster.run(ms(300));
    let durable = cluster.slots[leader].durable;
    assert!(durable >= index.0, "{index:?} is not durable in 300 ms");
    index.0
}

#[test]
fn the_last_of_four_goes_on_with_everything_answered() {
    let mut cluster = crash_stop(4, 4, 1);
    let answered = answer(&mut cluster);
    for slot in 0..3 {
        cluster.crash(slot);
    }
    cluster.tell_members(&servers([3]));
    cluster.run(ms(2000));
    assert_eq!(cluster.leader(), Some(3));
    assert_eq!(cluster.core(3).voters(), [server(3)]);
    assert!(answer(&mut cluster) > answered);
    cluster.heal_and_check();
}

#[test]
fn without_being_asked_nobody_goes_on() {
    let mut cluster = Cluster::grown(3, 3, 2);
    cluster.run(ms(500));
    for slot in 0..2 {
        cluster.crash(slot);
    }
    cluster.tell_members(&servers([2]));
    cluster.run(ms(5000));
    assert_eq!(cluster.leader(), None);
}

/// It does not know what the others answered while it was down.
#[test]
fn who_has_just_started_waits_for_the_others() {
    let mut cluster = crash_stop(2, 2, 3);
    // Whoever leads is gone first, and the other one goes on alone.
    let first = cluster.leader().expect("one leads");
    let last = 1 - first;
    cluster.crash(first);
    cluster.tell_members(&servers([last]));
    cluster.run(ms(2000));
    answer(&mut cluster);
    cluster.crash(last);
    cluster.slots[first].live = servers([first]);
    cluster.start(first);
    cluster.run(ms(3000));
    // The members take the dead one for live at first, and then find it dead.
    cluster.tell_members(&servers([0, 1]));
    cluster.run(ms(3000));
    cluster.tell_members(&servers([first]));
    cluster.run(ms(5000));
    assert_eq!(cluster.leader(), None);
    // The other one would be right to go on, and does.
    cluster.slots[last].live = servers([last]);
    cluster.crash(first);
    cluster.start(last);
    cluster.run(ms(3000));
    assert_eq!(cluster.leader(), Some(last));
    cluster.heal_and_check();
}

/// What a crash-stop cluster must not meet: each side goes on, and once they meet all have the
/// decisions of the larger one.
#[test]
fn two_sides_that_meet_become_one_again() {
    for seed in 0..50 {
        let mut cluster = crash_stop(3, 3, seed);
        answer(&mut cluster);
        let alone = seed as usize % 3;
        cluster.split = true;
        cluster.isolate(&[alone]);
        let pair: Vec<usize> = (0..3).filter(|slot| *slot != alone).collect();
        for slot in 0..3 {
            let live = match slot == alone {
                true => servers([alone]),
                false => servers(pair.iter().copied()),
            };
            cluster.slots[slot].live = live.clone();
            cluster.act(slot, |core, now| core.handle_members(now, live));
        }
        cluster.run(ms(3000));
        assert_eq!(cluster.core(alone).role(), Role::Leader);
        for _ in 0..1 + seed {
            cluster.propose(alone);
        }
        let leads = |slot: &&usize| cluster.core(**slot).role() == Role::Leader;
        let leader = *pair.iter().find(leads).expect("two of three lead");
        let kept = cluster.propose(leader).expect("it leads");
        let command = cluster.next_command.to_le_bytes();
        cluster.run(ms(500));
        // The lone one has a snapshot of its own decisions, perhaps.
        if seed % 2 == 0 {
            let index = cluster.core(alone).applied();
            let state = [7_u8; 100].as_slice().into();
            cluster.act(alone, |core, _| core.compact(index, state));
            cluster.run(ms(100));
        }
        cluster.cut.clear();
        cluster.tell_members(&servers(0..3));
        cluster.run(ms(3000));
        assert_eq!(cluster.given_way, 1, "seed {seed}");
        let leader = cluster.leader().expect("one leads");
        let last = cluster.core(leader).commit();
        for slot in 0..3 {
            let core = cluster.core(slot);
            core.check_invariants();
            assert_eq!(core.commit(), last, "seed {seed}: slot {slot}");
            for index in 1..=last.0 {
                let index = crate::types::Index(index);
                assert_eq!(core.entry(index), cluster.core(leader).entry(index));
            }
            let entry = core.entry(kept).expect("in memory");
            assert!(matches!(&entry.payload, Payload::Command(bytes) if **bytes == command));
        }
    }
}

#[test]
fn a_log_is_founded_anew_by_the_longest_that_is_left() {
    let mut cluster = Cluster::grown(7, 7, 4);
    cluster.run(ms(500));
    let leader = cluster.leader().expect("a leader");
    let [short, long] = [(leader + 1) % 7, (leader + 2) % 7];
    cluster.isolate(&[short]);
    let index = cluster.propose(leader).expect("it leads");
    cluster.run(ms(300));
    for slot in (0..7).filter(|slot| ![short, long].contains(slot)) {
        cluster.crash(slot);
    }
    cluster.cut.clear();
    cluster.tell_members(&servers([short, long]));
    cluster.run(ms(3000));
    assert_eq!(cluster.leader(), None);
    cluster.act(short, |core, now| {
        core.found_anew(now, [7].as_slice().into())
    });
    cluster.run(ms(7000));
    assert_eq!(
        cluster.leader(),
        None,
        "what the other one has would be lost"
    );
    cluster.act(long, |core, now| {
        core.found_anew(now, [7].as_slice().into())
    });
    cluster.run(ms(1000));
    assert_eq!(cluster.leader(), Some(long));
    assert!(cluster.core(long).commit() > index);
    assert!(cluster.core(short).commit() > index);
    cluster.heal_and_check();
}

/// Moves the voters towards all live members, as a node does.
fn keep_size(cluster: &mut Cluster) {
    let Some(leader) = cluster.leader() else {
        return;
    };
    let live = cluster.slots[leader].live.clone();
    let voters: BTreeSet<Server> = cluster.core(leader).voters().iter().cloned().collect();
    let mut next = voters.clone();
    if let Some(gone) = voters.difference(&live).next() {
        next.remove(gone);
    } else if let Some(new) = live.difference(&voters).next() {
        next.insert(new.clone());
    }
    if next != voters {
        cluster.change_voters(leader, next.into_iter().collect());
    }
}

/// Whether a voter that knows what was answered has a majority, or goes on without.
fn may_lead(cluster: &Cluster) -> bool {
    let up = (0..cluster.slots.len()).filter(|slot| cluster.is_up(*slot));
    let live: BTreeSet<Server> = up.clone().map(server).collect();
    up.map(|slot| cluster.core(slot)).any(|core| {
        let voters = core.voters();
        let there = voters.iter().filter(|voter| live.contains(voter)).count();
        core.complete && core.is_voter() && (2 * there > voters.len() || core.insists())
    })
}

/// Crashes of any of two to four members, and of all at once, with a snapshot now and then.
fn crashes(seed: u64) -> (u64, u64) {
    let count = 2 + (seed % 3) as usize;
    let mut cluster = crash_stop(count, 1, seed);
    let mut answered = 0;
    for _ in 0..40 {
        let up: Vec<usize> = (0..count).filter(|slot| cluster.is_up(*slot)).collect();
        let down: Vec<usize> = (0..count).filter(|slot| !cluster.is_up(*slot)).collect();
        match cluster.rng.below(8) {
            0 => {
                up.iter().for_each(|slot| cluster.crash(*slot));
                let all = servers(0..count);
                for slot in 0..count {
                    cluster.slots[slot].live = all.clone();
                    cluster.start(slot);
                }
            }
            1..=4 => {
                let dying = cluster.rng.below(up.len() as u64 + 1) as usize;
                let first = cluster.rng.below(up.len().max(1) as u64) as usize;
                for place in 0..dying {
                    cluster.crash(up[(first + place) % up.len()]);
                }
            }
            _ => {
                for slot in down {
                    if cluster.rng.chance(60) {
                        cluster.slots[slot].live = servers([slot]);
                        cluster.start(slot);
                    }
                }
            }
        }
        let unknown = cluster.rng.below(300);
        cluster.run(ms(unknown));
        let live = servers((0..count).filter(|slot| cluster.is_up(*slot)));
        cluster.tell_members(&live);
        let patience = cluster.rng.below(3000);
        for _ in 0..patience / 100 {
            cluster.run(ms(100));
            keep_size(&mut cluster);
            let slot = cluster.rng.below(count as u64) as usize;
            cluster.propose(slot);
            cluster.read(slot);
            if cluster.rng.chance(3) && cluster.is_up(slot) {
                cluster.compact(slot);
            }
        }
        if patience > 2500 && may_lead(&cluster) {
            answer(&mut cluster);
            answered += 1;
        }
    }
    cluster.heal_and_check();
    (answered, cluster.given_way)
}

#[test]
fn nothing_answered_is_lost_in_whatever_order_members_die_and_start() {
    let seeds: u64 = std::env::var("CONSENSUS_SEEDS").map_or(300, |n| n.parse().unwrap());
    let (mut answered, mut given_way) = (0, 0);
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| crashes(seed));
        let run = run.unwrap_or_else(|_| panic!("seed {seed} failed"));
        answered += run.0;
        given_way += run.1;
    }
    println!("{seeds} seeds: {answered} times answered, {given_way} gave way");
    assert!(answered > 2 * seeds);
}

/// So that a node that starts in a minority knows its files.
#[test]
fn what_is_committed_is_written_when_all_is_quiet_and_known_at_the_start() {
    let mut core = one_of_three(1);
    let entries = vec![entry(1, 2, Payload::Empty), entry(1, 3, Payload::Empty)];
    core.handle_message(Time(1), server(0), message(1, append((1, 1), entries, 1)));
    let is_write = |output: Output| match output {
        Output::Persist(write) => Some(write),
        _ => None,
    };
    let mut writes: Vec<_> = outputs(&mut core)
        .into_iter()
        .filter_map(is_write)
        .collect();
    let first = writes.pop().expect("the entries are written");
    assert_eq!(first.commit, Some(Index(1)));
    core.handle_persisted(Time(2), first.ticket);
    // Soon after it, more entries may come, and take it along.
    let heartbeat = || message(1, append((3, 1), vec![], 2));
    core.handle_message(Time(0) + ms(50), server(0), heartbeat());
    assert!(
        outputs(&mut core)
            .into_iter()
            .filter_map(is_write)
            .next()
            .is_none()
    );
    core.handle_message(Time(0) + ms(150), server(0), heartbeat());
    let mut writes = outputs(&mut core).into_iter().filter_map(is_write);
    let late = writes.next().expect("a write of its own");
    assert_eq!((late.commit, late.entries), (Some(Index(2)), vec![]));

    let recovered = Recovered {
        entries: [1, 2, 3]
            .map(|index| entry(1, index, Payload::Empty))
            .into(),
        commit: Index(2),
        hard_state: HardState {
            term: Term(1),
            vote: None,
        },
        snapshot: None,
    };
    let mut core = Consensus::new(Config::default(), server(1), recovered, 7, Time(0));
    let applied = |output: &Output| matches!(output, Output::Apply(_));
    assert_eq!(
        outputs(&mut core).iter().filter(|it| applied(it)).count(),
        2
    );
}

#[test]
fn a_cluster_is_formed_anew_only_where_no_log_ever_was() {
    let role = |recovered: Recovered, live: &[usize]| {
        let mut core = Consensus::new(Config::default(), server(0), recovered, 1, Time(0));
        core.form_anew();
        assert_eq!(core.poll_timeout(), None, "it does not know whom to ask");
        core.handle_members(Time(0), servers(live.iter().copied()));
        core.handle_timeout(Time(0) + ms(2000));
        core.role()
    };
    let torn = |vote: Option<usize>| Recovered {
        hard_state: HardState {
            term: Term(2),
            vote: vote.map(server),
        },
        ..Recovered::default()
    };
    assert_eq!(role(Recovered::default(), &[0]), Role::Candidate);
    assert_eq!(role(torn(Some(0)), &[0]), Role::Candidate);
    assert_eq!(role(torn(Some(0)), &[0, 1]), Role::PreCandidate, "it asks");
    assert_eq!(role(torn(Some(0)), &[1]), Role::Follower, "it is no member");
    assert_eq!(role(torn(Some(1)), &[0]), Role::Follower, "another log is");
    assert_eq!(role(torn(None), &[0]), Role::Follower, "another log may be");
    // It had a log, and gave it up for that of a later leader.
    let given_up = Recovered {
        snapshot: Some(Arc::new(Snapshot {
            index: Index(0),
            term: Term(0),
            voters: Vec::new(),
            state: Arc::new([]),
        })),
        ..torn(Some(0))
    };
    assert_eq!(role(given_up, &[0]), Role::Follower);
    let began = Recovered {
        entries: vec![entry(1, 1, Payload::Voters(vec![server(1)]))],
        ..torn(Some(0))
    };
    assert_eq!(role(began, &[0]), Role::Follower);
}

/// Server 0 dies again and again while it begins the cluster, on a disk that takes seconds for a
/// write; the others are there, or not yet.
#[test]
fn a_cluster_whose_beginning_is_torn_again_and_again_begins() {
    let mut torn = 0;
    for seed in 0..200 {
        let config = Config {
            crash_stop: seed % 2 == 1,
            ..Config::default()
        };
        let mut cluster = Cluster::with(config, 3, seed);
        cluster.weather.disk = (ms(1), ms(8000));
        for _ in 0..4 {
            cluster.crash(0);
            torn += u64::from(cluster.slots[0].disk.state.entries.is_empty());
            let others = cluster.rng.chance(50);
            cluster.slots[0].live = servers(0..if others { 3 } else { 1 });
            cluster.start(0);
            cluster.act(0, |core, _| core.form_anew());
            let span = cluster.rng.below(9000);
            cluster.run(ms(span));
        }
        cluster.tell_members(&servers(0..3));
        if seed % 2 == 1 {
            // The others must have it on their disks that they agree, before the next election.
            cluster.weather = Weather::fair();
        }
        cluster.run(ms(30_000));
        assert!(cluster.leader().is_some(), "seed {seed}");
        cluster.weather = Weather::fair();
        cluster.run(ms(10_000));
        answer(&mut cluster);
        cluster.heal_and_check();
    }
    assert!(torn > 100, "only {torn} beginnings were torn");
}

/// While the server that formed the cluster is away, a person lets another one found the log. It
/// comes back while that one is away in turn.
#[test]
fn who_forms_anew_gives_way_to_a_log_that_was_founded_meanwhile() {
    for seed in 0..100 {
        let mut cluster = Cluster::new(2, seed);
        cluster.split = true;
        cluster.crash(0);
        cluster.slots[0].disk = Disk::default();
        cluster.tell_members(&servers([1]));
        cluster.act(1, |core, now| core.found_anew(now, [7].as_slice().into()));
        cluster.run(ms(1000));
        let kept = cluster.propose(1).expect("it leads");
        let command = cluster.next_command.to_le_bytes();
        cluster.run(ms(1000));
        cluster.crash(1);
        cluster.slots[0].live = servers([0]);
        cluster.start(0);
        cluster.act(0, |core, _| core.form_anew());
        cluster.run(ms(3000));
        assert_eq!(
            cluster.leader(),
            Some(0),
            "seed {seed}: it knows of nothing"
        );
        cluster.propose(0);
        cluster.run(ms(1000));
        cluster.start(1);
        cluster.tell_members(&servers([0, 1]));
        cluster.run(ms(5000));
        for slot in 0..2 {
            let entry = cluster.core(slot).entry(kept).expect("in memory");
            let Payload::Command(bytes) = &entry.payload else {
                panic!("seed {seed}: slot {slot} has {entry:?}");
            };
            assert_eq!(**bytes, command, "seed {seed}: slot {slot}");
        }
    }
}

/// Others could not be elected with it, and whoever forgot it could not against them.
#[test]
fn who_founds_alone_tells_nobody_before_its_own_disk_has_it() {
    let mut core = Consensus::new(
        Config::default(),
        server(0),
        Recovered::default(),
        1,
        Time(0),
    );
    core.handle_members(Time(0), servers([0, 1]));
    core.found_anew(Time(0), [7].as_slice().into());
    let mut now = Time(0);
    let mut tickets = Vec::new();
    let mut told = false;
    let disk_done = 6;
    for turn in 0..=disk_done + 1 {
        now = now + ms(1);
        for output in outputs(&mut core) {
            match output {
                Output::Persist(write) => tickets.push((write.ticket, write.entries.len())),
                Output::Send { message, .. } => match message.content {
                    Content::PreVote(_) => {
                        let (asked, granted) = (message.term, true);
                        let content = Content::PreVoteReply { asked, granted };
                        core.handle_message(now, server(1), Message { content, ..message });
                    }
                    Content::Vote(_) => {
                        let content = Content::VoteReply { granted: true };
                        core.handle_message(now, server(1), Message { content, ..message });
                    }
                    Content::Append {
                        previous_index: at,
                        entries,
                        round,
                        ..
                    } => {
                        told |= !entries.is_empty();
                        let content = Content::Appended {
                            matched: at,
                            verified: at,
                            round,
                        };
                        core.handle_message(now, server(1), Message { content, ..message });
                    }
                    other => panic!("{other:?} was said"),
                },
                _ => {}
            }
        }
        assert!(!told || turn > disk_done, "told in turn {turn}");
        // The disk is done with the vote at once, and with the entries only in the end.
        if let Some((ticket, entries)) = tickets.last().copied()
            && (entries == 0 || turn == disk_done)
        {
            core.handle_persisted(now, ticket);
        }
    }
    assert!(told);
}
