use super::super::harness::{Cluster, ms, server};
use super::super::tests::{append, entry, message, one_of_three, outputs};
use super::super::{Config, LogWrite, Payload};
use super::*;

fn part(bytes: u64, offset: u64, part: &[u8]) -> Content {
    Content::Snapshot {
        index: Index(5),
        last_term: Term(2),
        voters: (0..3).map(server).collect(),
        bytes,
        offset,
        part: part.into(),
        round: 0,
    }
}

/// The contents of what is sent, and the writes.
fn said_and_written(core: &mut Consensus) -> (Vec<Content>, Vec<LogWrite>) {
    let (mut said, mut written) = (Vec::new(), Vec::new());
    for output in outputs(core) {
        match output {
            Output::Send { message, .. } => said.push(message.content),
            Output::Persist(write) => written.push(write),
            _ => {}
        }
    }
    (said, written)
}

#[test]
fn a_snapshot_comes_in_parts_and_counts_once_it_is_on_disk() {
    let mut core = one_of_three(1);
    let received = |offset| Content::SnapshotReceived {
        index: Index(5),
        offset,
        round: 0,
    };
    core.handle_message(Time(1), server(0), message(3, part(6, 0, b"")));
    let (_, written) = said_and_written(&mut core);
    core.handle_persisted(Time(1), written[0].ticket);
    assert_eq!(
        said_and_written(&mut core).0,
        [received(0)],
        "the term first"
    );
    // Repeated and torn parts change nothing.
    for (offset, bytes, has) in [(0, "abc", 3), (0, "abc", 3), (4, "ef", 3), (1, "bcd", 3)] {
        let content = part(6, offset, bytes.as_bytes());
        core.handle_message(Time(2), server(0), message(3, content));
        assert_eq!(said_and_written(&mut core).0, [received(has)], "{offset}");
    }
    core.handle_message(Time(3), server(0), message(3, part(6, 3, b"def")));
    let (said, written) = said_and_written(&mut core);
    assert_eq!(said, [received(6)]);
    let [write] = &written[..] else {
        panic!("one write: {written:?}");
    };
    let snapshot = write.snapshot.clone().expect("with the snapshot");
    assert_eq!(
        (&*snapshot.state, snapshot.index),
        (&b"abcdef"[..], Index(5))
    );
    assert_eq!(
        write.hard_state.as_ref().map(|state| state.term),
        Some(Term(3))
    );
    // Meanwhile its log takes nothing, and it asks nobody for a vote.
    let entries = vec![entry(3, 6, Payload::Empty)];
    core.handle_message(Time(4), server(0), message(3, append((5, 2), entries, 6)));
    assert_eq!(said_and_written(&mut core), (vec![], vec![]));
    core.handle_timeout(Time(0) + ms(9000));
    assert_eq!(core.role(), Role::Follower);
    core.handle_persisted(Time(0) + ms(9001), write.ticket);
    let found = outputs(&mut core);
    assert!(found.contains(&Output::Restore(snapshot)), "{found:?}");
    assert_eq!((core.commit(), core.last_index()), (Index(5), Index(5)));
    core.handle_message(Time(0) + ms(9002), server(0), message(3, part(6, 6, b"")));
    let matched = Content::Appended {
        matched: Index(5),
        verified: Index(5),
        round: 0,
    };
    assert!(said_and_written(&mut core).0.contains(&matched));
    core.check_invariants();
}

#[test]
fn a_part_that_is_lost_is_sent_again_and_one_under_way_is_not() {
    let config = Config {
        part_bytes: 40,
        retained_bytes: 0,
        ..Config::default()
    };
    let mut cluster = Cluster::with(config, 3, 71);
    cluster.crash(1);
    cluster.crash(2);
    cluster.run(ms(200));
    for _ in 0..20 {
        cluster.propose(0);
        cluster.run(ms(20));
    }
    cluster.compact(0);
    cluster.run(ms(50));
    cluster.start(1);
    cluster.weather.loss = 30;
    cluster.run(ms(60_000));
    assert_eq!(cluster.restored, 1);
    // With answers that come later than the next heartbeats nothing is sent twice.
    cluster.weather.loss = 0;
    cluster.weather.delay = (ms(240), ms(250));
    cluster.trace = Some(String::new());
    cluster.start(2);
    cluster.run(ms(10_000));
    assert_eq!(cluster.restored, 2);
    let trace = cluster.trace.take().unwrap();
    let parts = trace.lines().filter(|line| line.contains("Snapshot {"));
    let full = parts.filter(|line| !line.contains("part: []"));
    let state = cluster.slots[2]
        .disk
        .state
        .snapshot
        .clone()
        .unwrap()
        .state
        .len();
    assert_eq!(full.count(), state.div_ceil(40), "{trace}");
}

/// Otherwise a server that lacks a majority would write the same snapshot over and over.
#[test]
fn entries_that_are_not_applied_do_not_call_for_a_snapshot() {
    let mut core = one_of_three(1);
    let command = |index| entry(2, index, Payload::Command([7; 1000].as_slice().into()));
    let entries = (2..12).map(command).collect();
    core.handle_message(Time(1), server(0), message(2, append((1, 1), entries, 4)));
    for _ in 0..3 {
        for write in said_and_written(&mut core).1 {
            core.handle_persisted(Time(2), write.ticket);
        }
    }
    assert_eq!((core.applied(), core.last_index()), (Index(4), Index(11)));
    let (log, _) = core.log_bytes();
    assert!((3000..4000).contains(&log), "{log}");
    core.compact(core.applied(), [1].as_slice().into());
    assert_eq!(core.log_bytes(), (0, 1));
    core.check_invariants();
}
