//! What a leader knows of another server: how far its log agrees, and the snapshot on its way there.
//!
//! Decides: nothing; it keeps what `replication` and `snapshots` find out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{Content, Snapshot};
use crate::types::{Index, Time};

/// What the leader knows of another server's log.
#[derive(Debug)]
pub(super) struct Progress {
    /// Up to here the entries are the leader's and on that server's disk.
    pub(super) matched: Index,
    /// The first entry that has not been sent.
    pub(super) next: Index,
    /// Whether the server's log is known to reach `next`.
    pub(super) streaming: bool,
    /// The last index of each append that has not been answered, rising.
    pub(super) in_flight: VecDeque<Index>,
    /// An append is due even if it is empty.
    pub(super) append_wanted: bool,
    /// The snapshot that it gets before anything else.
    pub(super) transfer: Option<Transfer>,
    /// When the server last answered in this term; at first, when it was added.
    pub(super) answered: Time,
    /// The newest round that it answered.
    pub(super) round: u64,
}

impl Progress {
    pub(super) fn new(next: Index, now: Time) -> Progress {
        Progress {
            matched: Index(0),
            next,
            streaming: false,
            in_flight: VecDeque::new(),
            append_wanted: true,
            transfer: None,
            answered: now,
            round: 0,
        }
    }

    pub(super) fn want_append(&mut self) {
        self.append_wanted = true;
    }

    /// Goes back to finding out where the log agrees: perhaps at `place`.
    pub(super) fn probe(&mut self, place: Index) {
        self.next = Index(place.0.max(self.matched.0) + 1);
        self.streaming = false;
        self.in_flight.clear();
        self.append_wanted = true;
    }

    pub(super) fn has_answered(&mut self, now: Time, round: u64) {
        self.answered = now;
        self.round = self.round.max(round);
    }

    pub(super) fn check_invariants(&self, last: Index, in_flight_max: usize) {
        assert!(self.matched < self.next && self.next.0 <= last.0 + 1);
        assert!(self.in_flight.len() <= in_flight_max);
        assert!(self.streaming || self.in_flight.is_empty());
        assert!(self.in_flight.back().is_none_or(|sent| *sent < self.next));
    }
}

/// A snapshot on its way to another server.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) snapshot: Arc<Snapshot>,
    /// Bytes that have arrived.
    pub(super) offset: u64,
    /// The next message carries a part.
    part_due: bool,
    /// When the last part became due.
    sent: Option<Time>,
}

impl Transfer {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Transfer {
        Transfer {
            snapshot,
            offset: 0,
            part_due: false,
            sent: None,
        }
    }

    /// The server has `offset` bytes. Whether a part is due to it.
    pub(super) fn advance(&mut self, now: Time, offset: u64, patience: Duration) -> bool {
        let late = self.sent.is_none_or(|sent| now.since(sent) >= patience);
        if offset <= self.offset && !late {
            return false;
        }
        self.offset = offset;
        self.sent = Some(now);
        self.part_due = offset < self.snapshot.state.len() as u64;
        self.part_due
    }

    /// The next message.
    pub(super) fn content(&mut self, part_bytes: usize, round: u64) -> Content {
        let Snapshot {
            index,
            term,
            voters,
            state,
        } = &*self.snapshot;
        let start = self.offset as usize;
        let end = match self.part_due {
            true => state.len().min(start + part_bytes),
            false => start,
        };
        self.part_due = false;
        Content::Snapshot {
            index: *index,
            last_term: *term,
            voters: voters.clone(),
            bytes: state.len() as u64,
            offset: self.offset,
            part: state[start..end].into(),
            round,
        }
    }
}
