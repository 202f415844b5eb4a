use std::collections::BTreeSet;

use super::super::harness::{Cluster, ms, server};
use super::super::{Config, Payload, Role};
use crate::types::Server;

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
    let mut cluster = crash_stop(4, 3, 1);
    let answered = answer(&mut cluster);
    // Slot 3 has no vote.
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
    let mut cluster = crash_stop(2, 1, 3);
    cluster.crash(1);
    cluster.tell_members(&servers([0]));
    cluster.run(ms(500));
    answer(&mut cluster);
    cluster.crash(0);
    cluster.slots[1].live = servers([1]);
    cluster.start(1);
    cluster.run(ms(3000));
    // The members take the dead one for live at first, and then find it dead.
    cluster.tell_members(&servers([0, 1]));
    cluster.run(ms(3000));
    cluster.tell_members(&servers([1]));
    cluster.run(ms(5000));
    assert_eq!(cluster.leader(), None);
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

/// Moves the voters towards the largest odd number of live members, as a node does.
fn keep_size(cluster: &mut Cluster) {
    let Some(leader) = cluster.leader() else {
        return;
    };
    let live = cluster.slots[leader].live.clone();
    let voters: BTreeSet<Server> = cluster.core(leader).voters().iter().cloned().collect();
    let size = if live.len() > 2 { 3 } else { 1 };
    let mut next = voters.clone();
    let healthy = voters.intersection(&live).count();
    let (mut new, mut gone) = (live.difference(&voters), voters.difference(&live));
    if healthy < size {
        next.extend(new.next().cloned());
    } else if let Some(gone) = gone.next() {
        next.remove(gone);
    } else if healthy > size {
        let surplus = voters.iter().rev().find(|it| **it != server(leader));
        next.remove(surplus.expect("two voters"));
    }
    if next != voters {
        cluster.change_voters(leader, next.into_iter().collect());
    }
}

/// Crashes of all but one of two to four members, and of all at once, with a snapshot now and then.
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
                // Whoever was the last one alone is to be there until the others have met it.
                cluster.run(ms(3000));
                assert!(cluster.leader().is_some());
            }
            1..=4 => {
                let most = up.len() as u64 - 1;
                let dying = cluster.rng.below(most + 1) as usize;
                let first = cluster.rng.below(up.len() as u64) as usize;
                let order = |place: usize| up[(first + place) % up.len()];
                // One is left who knows what was answered: who has just started may not.
                let mut left = (dying..up.len()).map(order);
                if left.any(|slot| cluster.core(slot).complete) {
                    (0..dying).for_each(|place| cluster.crash(order(place)));
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
        let mut up = (0..count).filter(|slot| cluster.is_up(*slot));
        let knows = up.any(|slot| cluster.core(slot).complete);
        if patience > 2500 && knows {
            answer(&mut cluster);
            answered += 1;
        }
    }
    cluster.heal_and_check();
    (answered, cluster.given_way)
}

#[test]
fn nothing_answered_is_lost_while_one_is_left() {
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
