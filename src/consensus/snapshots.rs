//! Snapshots: the state in place of the entries that made it (Raft, section 7; thesis,
//! chapter 5).
//!
//! Decides: how a snapshot takes the place of entries in this server's log, how it gets part by
//! part to a server that lacks entries which are gone, and when it counts there. Leaves to
//! others: when one is made and what is in it (`node`).
//!
//! One part at a time is under way to a server; the next one is its answer to the answer. At
//! heartbeats an empty part asks how far the server is. While a whole snapshot goes to the disk
//! its server takes no entries and does not ask to be elected: its log is about to be another.

use std::sync::Arc;

use super::progress::{Progress, Transfer};
use super::{Consensus, Content, Output, Role, Snapshot};
use crate::planted::{self, Bug};
use crate::types::{Index, Server, Term, Time};

/// Largest state of a snapshot that is taken from a leader, in bytes.
const STATE_MAX: u64 = 4 << 30;

/// A snapshot that comes part by part.
#[derive(Debug)]
pub(super) struct Incoming {
    index: Index,
    last_term: Term,
    bytes: u64,
    state: Vec<u8>,
}

/// A whole snapshot on its way to the disk.
#[derive(Debug)]
pub(super) struct Installing {
    pub(super) snapshot: Arc<Snapshot>,
    /// Of the write, once it is handed out.
    pub(super) ticket: Option<u64>,
}

impl Installing {
    /// What the write `ticket` puts on disk: the snapshot, the first time.
    pub(super) fn hand_out(&mut self, ticket: u64) -> Option<Arc<Snapshot>> {
        if self.ticket.is_some() {
            return None;
        }
        self.ticket = Some(ticket);
        Some(self.snapshot.clone())
    }
}

impl Consensus {
    /// Puts `state`, the state machines after the entry at `index` was applied, in the place of
    /// the log up to there. Ignored where that is no progress.
    pub fn compact(&mut self, index: Index, state: Arc<[u8]>) {
        let newer = self.snapshot_index() < index;
        if newer && index <= self.applied && self.installing.is_none() {
            self.log.compact(index, state, self.config.retained_bytes);
            self.applied_bytes = 0;
        }
    }

    /// Bytes of the applied entries that the next snapshot takes the place of, and of the state in
    /// the last one.
    pub fn log_bytes(&self) -> (usize, usize) {
        let state = self
            .log
            .snapshot()
            .map_or(0, |snapshot| snapshot.state.len());
        (self.applied_bytes, state)
    }

    /// The last entry that was put out for applying, or that a restored snapshot contains.
    pub fn applied(&self) -> Index {
        self.applied
    }
}

/// The leader's side.
impl Consensus {
    /// The next message to a server that lacks entries which are gone.
    pub(super) fn snapshot_for(
        progress: &mut Progress,
        newest: &Arc<Snapshot>,
        part_bytes: usize,
        round: u64,
    ) -> Content {
        let transfer = progress
            .transfer
            .take_if(|transfer| transfer.snapshot.index >= progress.next)
            .unwrap_or_else(|| Transfer::new(newest.clone()));
        progress
            .transfer
            .insert(transfer)
            .content(part_bytes, round)
    }

    pub(super) fn handle_snapshot_received(
        &mut self,
        now: Time,
        from: &Server,
        term: Term,
        index: Index,
        offset: u64,
        round: u64,
    ) {
        if !self.note_answer(now, from, term, round) {
            return;
        }
        let Some(progress) = self.peers.get_mut(from) else {
            return;
        };
        let patience = self.config.part_timeout;
        if let Some(transfer) = &mut progress.transfer
            && transfer.snapshot.index == index
            && transfer.snapshot.state.len() as u64 >= offset
            && transfer.advance(now, offset, patience)
        {
            progress.want_append();
        }
    }
}

/// The follower's side.
impl Consensus {
    pub(super) fn handle_snapshot(
        &mut self,
        now: Time,
        from: Server,
        term: Term,
        content: Content,
    ) {
        let Content::Snapshot {
            index,
            last_term,
            voters,
            bytes,
            offset,
            part,
            round,
        } = content
        else {
            return;
        };
        let end = offset.checked_add(part.len() as u64);
        if last_term > term || bytes > STATE_MAX || end.is_none_or(|end| end > bytes) {
            self.dropped += 1;
            return;
        }
        if !self.accept_leader(now, &from, term, index, round) {
            return;
        }
        if self.installing.is_none() && self.contradicts(index, last_term) {
            return self.give_way();
        }
        let has_it = self.commit >= index || self.log.term(index) == Some(last_term);
        if has_it && self.installing.is_none() {
            // What is committed here is in the leader's log too, and what is in the snapshot is
            // committed. Entries after it stay: the leader may have counted them.
            self.commit = self.commit.max(index);
            self.verified = self.verified.max(self.commit);
            self.acknowledge(from);
            return;
        }
        if self.installing.is_none() {
            let is_same = |incoming: &mut Incoming| {
                (incoming.index, incoming.last_term, incoming.bytes) == (index, last_term, bytes)
            };
            let mut incoming = self.incoming.take_if(is_same).unwrap_or(Incoming {
                index,
                last_term,
                bytes,
                state: Vec::new(),
            });
            if offset == incoming.state.len() as u64 {
                incoming.state.extend_from_slice(&part);
            }
            if incoming.state.len() as u64 == bytes {
                self.install(incoming, voters);
            } else {
                self.incoming = Some(incoming);
            }
        }
        let coming = self.incoming.as_ref();
        let offset = coming.map_or(bytes, |incoming| incoming.state.len() as u64);
        let round = self.round;
        self.send(
            from,
            Content::SnapshotReceived {
                index,
                offset,
                round,
            },
        );
    }

    fn install(&mut self, incoming: Incoming, voters: Vec<Server>) {
        let snapshot = Snapshot {
            index: incoming.index,
            term: incoming.last_term,
            voters,
            state: incoming.state.into(),
        };
        self.installing = Some(Installing {
            snapshot: Arc::new(snapshot),
            ticket: planted::is(Bug::SnapshotBeforeFsync).then_some(0),
        });
        self.finish_installing(0);
    }

    /// The writes up to `ticket` are done, that of a snapshot among them perhaps: from now on the
    /// log begins with it.
    pub(super) fn finish_installing(&mut self, ticket: u64) {
        let is_done =
            |installing: &mut Installing| installing.ticket.is_some_and(|at| at <= ticket);
        let Some(Installing { snapshot, .. }) = self.installing.take_if(is_done) else {
            return;
        };
        debug_assert_ne!(self.role, Role::Leader);
        self.commit = snapshot.index;
        self.written_commit = snapshot.index;
        self.applied = snapshot.index;
        self.applied_bytes = 0;
        self.verified = self.verified.max(snapshot.index);
        self.acknowledged = Index(0);
        self.log.reset(snapshot.clone());
        let anew = snapshot.index == Index(0);
        self.installed = Some(snapshot);
        if anew && let Some(leader) = self.leader.clone() {
            self.reject(leader, Index(0), Index(0));
        }
    }

    /// A snapshot is to be put out.
    pub(super) fn next_restore(&mut self) -> Option<Output> {
        self.installed.take().map(Output::Restore)
    }
}

#[cfg(test)]
#[path = "snapshots_tests.rs"]
mod tests;
