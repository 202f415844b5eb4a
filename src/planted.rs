//! Deliberate faults, to prove that the simulator's watchers catch what they are for.
//!
//! Without the cargo feature `planted` every question is answered `false` at compile
//! time. With it, the simulation sets one fault for the thread that runs it.

/// A fault that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A voter acknowledges log entries before they are on disk (against P3, P10).
    AckBeforeFsync,
    /// One monitor's suspicion removes a member (against P2).
    RemovalWithoutAgreement,
    /// Inputs that were handed out stay on the list of those to hand out.
    TaskTwice,
    /// A row is counted again when its task is reported again (against P7).
    RowTwice,
    /// A candidate counts one vote twice (against P10).
    VoteTwice,
    /// Term and vote are not written (against P10).
    TermNotPersisted,
    /// A vote is given to a candidate whose log lacks entries (against P3).
    VoteForShorterLog,
    /// An entry of an old term is committed by counting its copies (Raft's figure 8).
    OldEntryByCounting,
    /// The vote of a node counts although its disk is another than the voter's.
    WipedVoterVotes,
    /// A new leader changes the voters before it knows what its predecessors committed, and while
    /// another change is under way.
    VotersInHaste,
    /// A server counts for a snapshot that is not on its disk.
    SnapshotBeforeFsync,
    /// A repeated request is carried out again.
    RequestTwice,
    /// A leader answers reads without asking whether it still leads (against P4).
    ReadWithoutConfirmation,
    /// A worker takes a task while it runs one (against P8).
    TwoTasksAtOnce,
    /// The leader does not replace copies that died (against P5).
    NoRepair,
    /// A node that finds a copy of its own decayed keeps that to itself (against P5, P6).
    DecayIgnored,
    /// An upload is named whose copies are fewer than the promise needs (against P3).
    CommitShort,
    /// A node throws away what its catalog does not name yet (against P3).
    SweptInHaste,
    /// The versions of a file are numbered anew after a delete (against P4).
    NumberedAnew,
}

impl Bug {
    /// All of them, with the names that `PLANT=` takes.
    pub const ALL: &[(&str, Bug)] = &[
        ("ack-before-fsync", Bug::AckBeforeFsync),
        ("removal-without-agreement", Bug::RemovalWithoutAgreement),
        ("task-twice", Bug::TaskTwice),
        ("row-twice", Bug::RowTwice),
        ("vote-twice", Bug::VoteTwice),
        ("term-not-persisted", Bug::TermNotPersisted),
        ("vote-for-shorter-log", Bug::VoteForShorterLog),
        ("old-entry-by-counting", Bug::OldEntryByCounting),
        ("wiped-voter-votes", Bug::WipedVoterVotes),
        ("voters-in-haste", Bug::VotersInHaste),
        ("snapshot-before-fsync", Bug::SnapshotBeforeFsync),
        ("request-twice", Bug::RequestTwice),
        ("read-without-confirmation", Bug::ReadWithoutConfirmation),
        ("two-tasks-at-once", Bug::TwoTasksAtOnce),
        ("no-repair", Bug::NoRepair),
        ("decay-ignored", Bug::DecayIgnored),
        ("commit-short", Bug::CommitShort),
        ("swept-in-haste", Bug::SweptInHaste),
        ("numbered-anew", Bug::NumberedAnew),
    ];
}

#[cfg(feature = "planted")]
mod active {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants `bug` for the simulations of this thread.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Whether `bug` is planted.
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted")]
pub use active::{is, plant};

/// Whether `bug` is planted: never.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub fn is(_bug: Bug) -> bool {
    false
}
