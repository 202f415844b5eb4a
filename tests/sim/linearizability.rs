//! Whether one order of all operations on a file explains everything that its clients were told.
//!
//! A file is a sequence of versions: a put adds the next one, a delete takes all away and the
//! numbers go on, a read tells the newest. An operation takes effect at one moment between its
//! begin and its end; one whose end its client does not know takes effect at some moment after
//! its begin, or never. The search is that of Wing and Gong ("Testing and Verifying Concurrent
//! Objects", 1993) with the memory of Lowe ("Testing for Linearizability", 2017): no set of
//! operations that leads to the same state is looked at twice.

use std::collections::HashSet;

use dlc::types::{Digest, Time, Version};

/// Steps of the search after which a history counts as undecided.
const STEPS_MAX: usize = 200_000;

/// What was asked, and told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Put of these bytes; the version, where it was answered.
    Put(Digest, Option<Version>),
    /// Delete of so many versions; none where the answer is not known.
    Deleted(Option<u64>),
    /// The newest version, and its bytes where they were read.
    Found(Version, Option<Digest>),
    /// There is no such file: told to a read or a delete.
    Nothing,
}

/// An operation on a file.
#[derive(Clone, Debug)]
pub struct Operation {
    /// When its client sent it.
    pub began: Time,
    /// When its client was answered; none where it was not, and it may take effect later or never.
    pub ended: Option<Time>,
    /// What it was told.
    pub told: Told,
}

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An order explains it.
    Linearizable,
    /// No order does.
    Broken,
    /// The search was given up.
    Undecided,
}

/// The file after some of its operations: the versions that a delete took away, and the bytes of
/// all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    first: u64,
    bytes: Vec<Digest>,
}

impl State {
    /// The state after an operation that was told `told`; none where it cannot be told that now.
    fn after(&self, told: &Told) -> Option<State> {
        let next = self.bytes.len() as u64;
        let exists = self.first < next;
        let mut state = self.clone();
        match told {
            Told::Put(digest, version) => {
                if version.is_some_and(|version| version.0 != next) {
                    return None;
                }
                state.bytes.push(*digest);
            }
            Told::Deleted(count) => {
                if !exists || count.is_some_and(|count| count != next - self.first) {
                    return None;
                }
                state.first = next;
            }
            Told::Found(version, digest) => {
                let newest = self.bytes.last().filter(|_| exists)?;
                if version.0 + 1 != next || digest.is_some_and(|digest| digest != *newest) {
                    return None;
                }
            }
            Told::Nothing if exists => return None,
            Told::Nothing => {}
        }
        Some(state)
    }
}

/// Whether the operations of one file can be put into an order.
pub fn check(operations: &[Operation]) -> Verdict {
    let mut search = Search {
        operations,
        done: vec![false; operations.len()],
        seen: HashSet::new(),
        steps: 0,
    };
    match search.go_on(&State::default()) {
        _ if search.steps > STEPS_MAX => Verdict::Undecided,
        true => Verdict::Linearizable,
        false => Verdict::Broken,
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    done: Vec<bool>,
    seen: HashSet<(Vec<bool>, State)>,
    steps: usize,
}

impl Search<'_> {
    /// Whether the operations that are not done can follow `state`.
    fn go_on(&mut self, state: &State) -> bool {
        let open = |(at, _): &(usize, &Operation)| !self.done[*at];
        let open: Vec<(usize, &Operation)> =
            self.operations.iter().enumerate().filter(open).collect();
        // Whatever began after an open one had ended comes after that one.
        let Some(until) = open
            .iter()
            .filter_map(|(_, operation)| operation.ended)
            .min()
        else {
            return true;
        };
        self.steps += 1;
        if self.steps > STEPS_MAX || !self.seen.insert((self.done.clone(), state.clone())) {
            return false;
        }
        // Those of unknown end are tried last: mostly they never took effect.
        let (known, unknown): (Vec<_>, Vec<_>) = open
            .into_iter()
            .filter(|(_, operation)| operation.began <= until)
            .partition(|(_, operation)| operation.ended.is_some());
        for (at, operation) in known.into_iter().chain(unknown) {
            if let Some(next) = state.after(&operation.told) {
                self.done[at] = true;
                if self.go_on(&next) {
                    return true;
                }
                self.done[at] = false;
            }
        }
        false
    }
}

/// Histories whose verdict is known; run with every hunt, for a checker that is wrong checks nothing.
pub fn check_itself() {
    let bytes = |number: u8| Digest([number; 32]);
    let operation = |began, ended: Option<u64>, told| Operation {
        began: Time(began),
        ended: ended.map(Time),
        told,
    };
    let put = |began, ended: Option<u64>, number: u8, version: u64| {
        let version = ended.map(|_| Version(version));
        operation(began, ended, Told::Put(bytes(number), version))
    };
    let found = |began, ended, version, number| {
        operation(
            began,
            Some(ended),
            Told::Found(Version(version), Some(bytes(number))),
        )
    };
    let gone = |began, ended| operation(began, Some(ended), Told::Nothing);
    let deleted = |began, ended: Option<u64>, count| {
        operation(began, ended, Told::Deleted(ended.map(|_| count)))
    };
    let cases = [
        ("nothing", vec![], true),
        (
            "one after the other",
            vec![put(0, Some(1), 7, 0), found(2, 3, 0, 7)],
            true,
        ),
        ("a lost put", vec![put(0, Some(1), 7, 0), gone(2, 3)], false),
        (
            "an overlap",
            vec![put(0, Some(9), 7, 0), gone(1, 2), found(3, 4, 0, 7)],
            true,
        ),
        (
            "back in time",
            vec![put(0, Some(9), 7, 0), found(1, 2, 0, 7), gone(3, 4)],
            false,
        ),
        (
            "other bytes",
            vec![put(0, Some(1), 7, 0), found(2, 3, 0, 8)],
            false,
        ),
        ("a gap", vec![put(0, Some(1), 7, 1)], false),
        (
            "an unknown put in the gap",
            vec![put(0, None, 6, 0), put(1, Some(2), 7, 1)],
            true,
        ),
        (
            "two in one place",
            vec![put(0, Some(5), 6, 0), put(1, Some(4), 7, 0)],
            false,
        ),
        (
            "an old version",
            vec![
                put(0, Some(1), 6, 0),
                put(2, Some(3), 7, 1),
                found(4, 5, 0, 6),
            ],
            false,
        ),
        (
            "an unknown delete takes effect late",
            vec![
                put(0, Some(1), 6, 0),
                deleted(2, None, 0),
                found(3, 4, 0, 6),
                gone(5, 6),
            ],
            true,
        ),
        (
            "back from the dead",
            vec![
                put(0, Some(1), 6, 0),
                deleted(2, Some(3), 1),
                found(4, 5, 0, 6),
            ],
            false,
        ),
        (
            "numbers go on",
            vec![
                put(0, Some(1), 6, 0),
                deleted(2, Some(3), 1),
                put(4, Some(5), 7, 1),
            ],
            true,
        ),
        (
            "more than there were",
            vec![put(0, Some(1), 6, 0), deleted(2, Some(3), 2)],
            false,
        ),
    ];
    for (name, operations, is_right) in cases {
        let wanted = if is_right {
            Verdict::Linearizable
        } else {
            Verdict::Broken
        };
        assert_eq!(check(&operations), wanted, "{name}");
    }
}
