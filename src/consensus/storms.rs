//! Random stories with every fault at once, watched by the harness, each from one seed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::harness::{Cluster, Weather, ms, server};
use super::{Config, Entry, Payload, Role};
use crate::types::Server;

/// One random change of the world.
fn upset(cluster: &mut Cluster) {
    let count = cluster.slots.len();
    let slot = cluster.rng.below(count as u64) as usize;
    match cluster.rng.below(16) {
        0..=1 if cluster.is_up(slot) => cluster.crash(slot),
        0..=2 => {
            let down = (0..count).find(|slot| !cluster.is_up(*slot));
            if let Some(down) = down {
                cluster.start(down);
            }
        }
        3 => {
            let down: Vec<usize> = (0..count).filter(|slot| !cluster.is_up(*slot)).collect();
            for slot in down {
                cluster.start(slot);
            }
        }
        4 => {
            cluster.cut.clear();
            cluster.isolate(&[slot]);
        }
        5 => {
            let side: Vec<usize> = (0..count).filter(|_| cluster.rng.chance(50)).collect();
            cluster.cut.clear();
            cluster.isolate(&side);
        }
        6 => {
            let other = cluster.rng.below(count as u64) as usize;
            cluster.cut.insert((slot, other));
        }
        7 | 12 => cluster.cut.clear(),
        8 => {
            let rng = &mut cluster.rng;
            cluster.weather = Weather {
                loss: rng.below(30),
                late: rng.below(20),
                twice: rng.below(30),
                delay: (Duration::ZERO, ms(1 + rng.below(150))),
                disk: (Duration::ZERO, ms(1 + rng.below(100))),
            };
        }
        9 => cluster.weather = Weather::fair(),
        10 => {
            let mut live: BTreeSet<Server> = (0..count)
                .filter(|slot| cluster.is_up(*slot))
                .map(server)
                .collect();
            if cluster.rng.chance(30) {
                live.remove(&server(slot));
            }
            cluster.tell_members(&live);
        }
        11 => {
            let span = ms(cluster.rng.below(2000));
            match cluster.rng.chance(50) {
                true => cluster.stall(slot, span),
                false => cluster.slots[slot].paused_until = cluster.now + span,
            }
        }
        _ => {
            for _ in 0..4 {
                disturb_voters(cluster);
            }
        }
    }
}

/// Adds or removes a random voter at some leader, the old one of a partition perhaps.
fn disturb_voters(cluster: &mut Cluster) {
    let count = cluster.slots.len() as u64;
    let chosen = cluster.rng.below(count) as usize;
    let leader = (0..count as usize)
        .filter(|slot| cluster.is_up(*slot) && cluster.core(*slot).role() == Role::Leader)
        .max_by_key(|slot| (*slot == chosen, cluster.core(*slot).term()));
    let Some(leader) = leader else {
        return;
    };
    let mut voters: BTreeSet<Server> = cluster.core(leader).voters().iter().cloned().collect();
    let server = server(cluster.rng.below(count) as usize);
    let removed = voters.len() > 2 && cluster.rng.chance(50) && voters.remove(&server);
    if !removed {
        voters.insert(server);
    }
    cluster.change_voters(leader, voters.into_iter().collect());
}

/// A stretch of `rounds` random changes among commands and reads, then peace.
fn storm(seed: u64, rounds: usize, trace: bool) -> Cluster {
    let count = 3 + (seed % 4) as usize;
    let mut config = Config::default();
    if seed.is_multiple_of(3) {
        config.entries_bytes_max = 100;
        config.in_flight_max = 1 + (seed % 5) as usize;
        config.writes_max = 1 + (seed % 7) as usize;
        config.caught_up_entries = 4;
    }
    if seed % 2 == 1 {
        config.retained_bytes = [0, 200][seed as usize / 2 % 2];
        config.part_bytes = 1 + (seed % 100) as usize;
        config.part_timeout = ms(300);
    }
    let mut cluster = Cluster::with(config, count, seed);
    cluster.trace = trace.then(String::new);
    cluster.run(ms(100));
    for round in 0..rounds {
        if round < 2 * count {
            disturb_voters(&mut cluster);
        } else {
            upset(&mut cluster);
        }
        let length = cluster.rng.below(if round % 3 == 0 { 1500 } else { 200 });
        for _ in 0..4 {
            for slot in 0..count {
                if cluster.rng.chance(60) {
                    cluster.propose(slot);
                }
                if cluster.rng.chance(30) {
                    cluster.read(slot);
                }
                if seed % 2 == 1 && cluster.rng.chance(5) {
                    cluster.compact(slot);
                }
            }
            cluster.run(Duration::from_micros(250 * length));
        }
        if round % 8 == 0 {
            cluster.check_log_matching();
        }
    }
    cluster.heal_and_check();
    cluster
}

/// Leaders that die or vanish again and again with entries half way out: Raft's figure 8.
fn fall_of_leaders(seed: u64) {
    let config = Config {
        entries_bytes_max: 1,
        ..Config::default()
    };
    let mut cluster = Cluster::with(config, 5, seed);
    for size in 1..=5 {
        cluster.grow_to(size);
    }
    cluster.weather.delay = (Duration::ZERO, ms(20));
    for _ in 0..30 {
        for _ in 0..300 {
            cluster.run(ms(10));
            if cluster.leader().is_some() {
                break;
            }
        }
        let reign = cluster.rng.below(60);
        cluster.run(ms(reign));
        let Some(leader) = cluster.leader() else {
            continue;
        };
        for _ in 0..cluster.rng.below(3) {
            cluster.propose(leader);
        }
        let reign = cluster.rng.below(20);
        cluster.run(ms(reign));
        let down = (0..5)
            .filter(|slot| !cluster.is_up(*slot))
            .collect::<Vec<_>>();
        cluster.crash(leader);
        if let Some(back) = down.first() {
            cluster.start(*back);
        }
        if cluster.rng.chance(30) {
            cluster.start(leader);
        }
    }
    cluster.heal_and_check();
}

#[test]
fn nothing_is_lost_when_leaders_fall_one_after_another() {
    let seeds: u64 = std::env::var("CONSENSUS_SEEDS").map_or(200, |n| n.parse().unwrap());
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| fall_of_leaders(seed));
        assert!(run.is_ok(), "seed {seed} failed");
    }
}

/// Says which seed failed, so that it can be run alone with `CONSENSUS_SEED`.
fn named_storm(seed: u64) -> Cluster {
    let run = std::panic::catch_unwind(|| storm(seed, 80, false));
    run.unwrap_or_else(|_| panic!("seed {seed} failed; run it alone with CONSENSUS_SEED={seed}"))
}

#[test]
fn nothing_breaks_in_random_storms() {
    if let Ok(seed) = std::env::var("CONSENSUS_SEED") {
        named_storm(seed.parse().unwrap());
        return;
    }
    let seeds: u64 = std::env::var("CONSENSUS_SEEDS").map_or(600, |n| n.parse().unwrap());
    let (mut chosen, mut reads, mut voters, mut restored) = (0_u64, 0_u64, 0_u64, 0_u64);
    for seed in 0..seeds {
        let cluster = named_storm(seed);
        chosen += cluster.chosen.len() as u64;
        reads += cluster.reads_ready;
        restored += cluster.restored;
        let is_change = |entry: &Entry| matches!(entry.payload, Payload::Voters(_));
        voters += cluster.chosen.iter().filter(|(e, _)| is_change(e)).count() as u64;
    }
    let happened = format!(
        "{seeds} storms: {chosen} entries, {reads} reads, {voters} changes of voters, \
         {restored} snapshots restored"
    );
    println!("{happened}");
    // A storm in which nothing happens shows nothing.
    let enough = chosen > 100 * seeds && reads > 20 * seeds && voters > 3 * seeds;
    assert!(enough && 2 * restored > seeds, "{happened}");
}

/// Whether the leader goes on after an entry that takes everybody long to apply, its own machine a
/// little longer than the others.
fn survives_long_work(seed: u64, is_told: bool) -> bool {
    let mut cluster = Cluster::grown(5, 5, seed);
    let leader = cluster.leader().expect("a leader");
    let term = cluster.core(leader).term();
    let work = ms(300) + ms(cluster.rng.below(1500));
    for slot in 0..5 {
        let own = match slot == leader {
            true => work + ms(250),
            false => work - ms(cluster.rng.below(100)),
        };
        match is_told {
            true => cluster.stall(slot, own),
            false => cluster.slots[slot].paused_until = cluster.now + own,
        }
    }
    cluster.run(ms(5000));
    cluster.leader() == Some(leader) && cluster.core(leader).term() == term
}

#[test]
fn work_that_all_do_at_once_deposes_nobody() {
    let survived = |is_told| {
        (0..200)
            .filter(|seed| survives_long_work(*seed, is_told))
            .count()
    };
    assert_eq!(survived(true), 200);
    assert!(survived(false) < 150, "it would not be noticed");
}

#[test]
fn the_same_seed_gives_the_same_outputs() {
    for seed in 0..10 {
        let traces = [0, 1].map(|_| storm(seed, 20, true).trace.unwrap());
        assert!(!traces[0].is_empty());
        assert!(traces[0] == traces[1], "seed {seed} ran in two ways");
    }
}

/// The watchers catch what they are for: faults that the whole simulation meets too rarely.
#[cfg(feature = "planted")]
#[test]
fn planted_bugs_are_caught() {
    use crate::planted::{self, Bug};
    for bug in [
        Bug::AckBeforeFsync,
        Bug::VoteTwice,
        Bug::TermNotPersisted,
        Bug::VoteForShorterLog,
        Bug::OldEntryByCounting,
        Bug::VotersInHaste,
        Bug::SnapshotBeforeFsync,
        Bug::ReadWithoutConfirmation,
        Bug::WipedVoterVotes,
    ] {
        planted::plant(Some(bug));
        let caught = (0..2000).find(|seed| {
            let found = std::panic::catch_unwind(|| {
                fall_of_leaders(*seed);
                super::tests::wipe_a_voter(*seed);
                storm(*seed, 80, false);
            });
            found.is_err()
        });
        planted::plant(None);
        let seed = caught.unwrap_or_else(|| panic!("{bug:?} was not caught"));
        println!("{bug:?} was caught at seed {seed}");
    }
}
