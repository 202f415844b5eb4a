use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::disk::tests::kill_child;
use crate::types::{NodeId, Server, StorageId, Term};
use crate::wire::consensus::Payload;

fn entry(term: u64, index: u64) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        payload: Payload::Command(vec![index as u8; index as usize % 50].into()),
    }
}

fn state(term: u64) -> HardState {
    let vote = Server {
        node: NodeId::new("n1").expect("a valid name"),
        storage: StorageId(4),
    };
    HardState {
        term: Term(term),
        vote: Some(vote),
    }
}

/// Several kinds of writes, and what is recovered after each.
fn story() -> Vec<(LogWrite, Recovered)> {
    let write = |hard_state, truncate_from: Option<u64>, entries| LogWrite {
        ticket: 0,
        snapshot: None,
        hard_state,
        truncate_from: truncate_from.map(Index),
        entries,
        commit: None,
    };
    let all = |hard_state, entries| Recovered {
        hard_state,
        snapshot: None,
        entries,
        commit: Index(0),
    };
    vec![
        (
            write(Some(state(1)), None, vec![entry(1, 1), entry(1, 2)]),
            all(state(1), vec![entry(1, 1), entry(1, 2)]),
        ),
        (
            write(None, None, vec![entry(1, 3)]),
            all(state(1), vec![entry(1, 1), entry(1, 2), entry(1, 3)]),
        ),
        (
            write(Some(state(4)), Some(2), vec![entry(4, 2)]),
            all(state(4), vec![entry(1, 1), entry(4, 2)]),
        ),
        (write(None, Some(1), vec![]), all(state(4), vec![])),
        (
            write(None, None, vec![entry(5, 1)]),
            all(state(4), vec![entry(5, 1)]),
        ),
    ]
}

fn open(at: &Path) -> (Journal, Recovered) {
    Journal::open(at).expect("opened")
}

/// A log with the whole story, and the file's length after each write.
fn written(at: &Path) -> Vec<u64> {
    let (mut journal, recovered) = open(at);
    assert_eq!(recovered, Recovered::default());
    let mut lengths = vec![journal.bytes()];
    for (write, _) in story() {
        journal.append(&write).expect("appended");
        lengths.push(journal.bytes());
    }
    lengths
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn what_was_appended_comes_back_and_can_be_appended_to() {
    let at = folder();
    for (number, (write, wanted)) in story().into_iter().enumerate() {
        let (mut journal, _) = open(at.path());
        journal.append(&write).expect("appended");
        drop(journal);
        assert_eq!(open(at.path()).1, wanted, "after write {number}");
    }
}

#[test]
fn a_log_cut_at_any_byte_gives_back_the_whole_writes_before_it() {
    let at = folder();
    let lengths = written(at.path());
    let path = at.path().join("log");
    let whole = fs::read(&path).expect("read");
    assert_eq!(*lengths.last().expect("some"), whole.len() as u64);
    for length in HEADER.len()..whole.len() {
        fs::write(&path, &whole[..length]).expect("written");
        let writes = lengths.iter().filter(|l| **l <= length as u64).count() - 1;
        let wanted = match writes {
            0 => Recovered::default(),
            _ => story()[writes - 1].1.clone(),
        };
        let (mut journal, recovered) = open(at.path());
        assert_eq!(recovered, wanted, "cut at {length}");
        assert_eq!(journal.bytes(), lengths[writes]);
        let next = Recovered {
            hard_state: state(9),
            ..wanted
        };
        let write = LogWrite {
            ticket: 0,
            snapshot: None,
            hard_state: Some(state(9)),
            truncate_from: None,
            entries: vec![],
            commit: None,
        };
        journal.append(&write).expect("appended after a torn end");
        drop(journal);
        assert_eq!(open(at.path()).1, next, "cut at {length}, then appended");
    }
}

#[test]
fn a_last_write_whose_pages_are_missing_is_cut_off() {
    let at = folder();
    let lengths = written(at.path());
    let path = at.path().join("log");
    let mut bytes = fs::read(&path).expect("read");
    let last = lengths[lengths.len() - 2] as usize;
    for hole in [last..last + 4, last + 4..last + 12, last + 12..bytes.len()] {
        let before = bytes[hole.clone()].to_vec();
        bytes[hole.clone()].fill(0);
        fs::write(&path, &bytes).expect("written");
        assert_eq!(open(at.path()).1, story()[3].1, "without {hole:?}");
        bytes[hole].copy_from_slice(&before);
    }
}

#[test]
fn a_broken_byte_before_the_last_write_is_an_error_with_its_place() {
    let at = folder();
    let lengths = written(at.path());
    let path = at.path().join("log");
    let whole = fs::read(&path).expect("read");
    let last = lengths[lengths.len() - 2];
    for position in HEADER.len() as u64..last {
        let mut bytes = whole.clone();
        bytes[position as usize] ^= 16;
        fs::write(&path, &bytes).expect("written");
        let frame = lengths.iter().rfind(|l| **l <= position).expect("a frame");
        let error = Journal::open(at.path()).expect_err("damaged").to_string();
        assert!(
            error.contains(&format!("{}: damaged at byte {frame} ", path.display())),
            "byte {position}: {error}"
        );
        assert_eq!(fs::read(&path).expect("read"), bytes, "left as it was");
    }
}

#[test]
fn entries_with_a_gap_are_an_error() {
    let at = folder();
    let (mut journal, _) = open(at.path());
    let write = LogWrite {
        ticket: 0,
        snapshot: None,
        hard_state: None,
        truncate_from: None,
        entries: vec![entry(1, 2)],
        commit: None,
    };
    journal.append(&write).expect("appended");
    let error = Journal::open(at.path()).expect_err("a gap").to_string();
    assert!(error.contains("entry 2 where 1 was due"), "{error}");
}

#[test]
fn a_log_that_was_taken_away_is_an_error() {
    let at = folder();
    let node = NodeId::new("n1").expect("a valid name");
    let directory = crate::disk::DataDirectory::open(at.path(), &node, StorageId(1));
    drop(directory.expect("opened"));
    drop(open(at.path()));
    fs::remove_file(at.path().join("log")).expect("removed");
    let error = Journal::open(at.path()).expect_err("gone").to_string();
    assert!(error.contains("the file is missing"), "{error}");
}

fn snapshot(index: u64) -> Option<Arc<Snapshot>> {
    Some(Arc::new(Snapshot {
        index: Index(index),
        term: Term(3),
        voters: vec![],
        state: vec![index as u8; 100].into(),
    }))
}

#[test]
fn a_snapshot_takes_the_place_of_all_before_it() {
    let at = folder();
    written(at.path());
    let write = |snapshot, hard_state, truncate_from: Option<u64>, entries| LogWrite {
        ticket: 0,
        snapshot,
        hard_state,
        truncate_from: truncate_from.map(Index),
        entries,
        commit: None,
    };
    let all = |term, index, entries| Recovered {
        hard_state: state(term),
        snapshot: snapshot(index),
        entries,
        commit: Index(index),
    };
    let steps = [
        (
            write(snapshot(9), Some(state(6)), None, vec![entry(6, 10)]),
            all(6, 9, vec![entry(6, 10)]),
        ),
        (
            write(None, None, None, vec![entry(6, 11)]),
            all(6, 9, vec![entry(6, 10), entry(6, 11)]),
        ),
        (
            write(None, Some(state(7)), Some(11), vec![entry(7, 11)]),
            all(7, 9, vec![entry(6, 10), entry(7, 11)]),
        ),
        (
            write(snapshot(20), Some(state(8)), None, vec![]),
            all(8, 20, vec![]),
        ),
        (
            write(None, None, None, vec![entry(8, 21)]),
            all(8, 20, vec![entry(8, 21)]),
        ),
    ];
    let (mut journal, _) = open(at.path());
    for (number, (write, wanted)) in steps.into_iter().enumerate() {
        journal.append(&write).expect("appended");
        if number % 2 == 1 {
            drop(journal);
            // What an interrupted replacement leaves behind is no part of the log.
            fs::write(at.path().join("log.new"), b"half").expect("written");
            let (opened, found) = open(at.path());
            assert_eq!(found, wanted, "after step {number}");
            assert!(!at.path().join("log.new").exists());
            journal = opened;
        }
    }
    drop(journal);
    let size = fs::metadata(at.path().join("log")).expect("there").len();
    assert!(size < 700, "{size} bytes: the old log is still there");
}

fn last(recovered: &Recovered) -> u64 {
    let snapshot = recovered.snapshot.as_ref().map_or(0, |s| s.index.0);
    snapshot + recovered.entries.len() as u64
}

/// Runs in a child process that the next test kills.
#[test]
fn child_that_appends() {
    let Some(at) = std::env::var_os("DLC_TEST_APPENDS") else {
        return;
    };
    let (mut journal, recovered) = open(Path::new(&at));
    let mut index = last(&recovered);
    loop {
        let entries: Vec<Entry> = (1..=index % 7 + 1).map(|i| entry(3, index + i)).collect();
        index += entries.len() as u64;
        let mut write = LogWrite {
            ticket: 0,
            snapshot: None,
            hard_state: Some(state(index)),
            truncate_from: None,
            entries,
            commit: None,
        };
        if index.is_multiple_of(5) {
            write.snapshot = snapshot(index);
            write.entries.clear();
        }
        journal.append(&write).expect("appended");
        println!("stored {index}");
    }
}

#[test]
fn what_was_appended_before_a_kill_is_there() {
    let at = folder();
    for round in 0..4 {
        let lines = kill_child(
            "disk::journal::tests::child_that_appends",
            ("DLC_TEST_APPENDS", at.path()),
            Duration::from_millis(60 + 37 * round),
        );
        let told = lines.iter().filter_map(|line| line.split_once("stored "));
        let told: u64 = told
            .filter_map(|(_, number)| number.parse().ok())
            .max()
            .expect("something was stored");
        let (_, recovered) = open(at.path());
        let last = last(&recovered);
        assert!(last >= told, "{last} entries, {told} were told");
        assert_eq!(recovered.hard_state, state(last));
        let first = last - recovered.entries.len() as u64 + 1;
        for (entry_found, index) in recovered.entries.iter().zip(first..) {
            assert_eq!(*entry_found, entry(3, index));
        }
    }
}

#[test]
fn what_was_known_to_be_committed_is_found_again() {
    let at = folder();
    let (mut journal, _) = open(at.path());
    let write = |entries, commit: Option<u64>| LogWrite {
        ticket: 0,
        snapshot: None,
        hard_state: None,
        truncate_from: None,
        entries,
        commit: commit.map(Index),
    };
    for write in [
        write(vec![entry(1, 1), entry(1, 2)], Some(1)),
        write(vec![entry(1, 3)], None),
    ] {
        journal.append(&write).expect("appended");
    }
    drop(journal);
    assert_eq!(open(at.path()).1.commit, Index(1));
}

#[test]
fn a_write_that_found_the_disk_full_is_tried_again() {
    let at = tempfile::tempdir().expect("a temporary directory");
    let (mut journal, _) = Journal::open(at.path()).expect("opened");
    let story = story();
    journal.append(&story[0].0).expect("written");
    let full = File::options().write(true).open("/dev/full");
    let file = std::mem::replace(&mut journal.file, full.expect("opened"));
    for _ in 0..2 {
        let error = journal.append(&story[1].0).expect_err("no room");
        assert!(error.is_full(), "{error}");
    }
    journal.file = file;
    journal.append(&story[1].0).expect("written");
    drop(journal);
    assert_eq!(Journal::open(at.path()).expect("opened").1, story[1].1);
}
