//! The log of one server: entries in memory, and how far they are on disk.
//!
//! Decides: what is where, which voters the log puts in force, what is to be written next
//! and what a finished write has made safe. Leaves to others: which entries may be added,
//! cut off, applied or replaced by a snapshot.
//!
//! On disk the log begins with the snapshot, where there is one. In memory it begins after
//! `offset`, which lies a little before: a server that lags a little gets entries.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::types::{Index, Server, Term};
use crate::wire::consensus::{Entry, Payload, Snapshot};

/// What a write is to put on disk. See [`super::LogWrite`].
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    pub(super) snapshot: Option<Arc<Snapshot>>,
    pub(super) truncate_from: Option<Index>,
    pub(super) entries: Vec<Entry>,
}

/// A write that the driver has been given and not yet reported as done.
#[derive(Debug)]
struct Outstanding {
    ticket: u64,
    /// Entries up to here are safe when it is done; lowered when they are cut off meanwhile.
    through: Index,
}

/// Entries after `offset`, without gap, terms never falling.
#[derive(Debug, Default)]
pub(super) struct Log {
    offset: Index,
    offset_term: Term,
    entries: Vec<Entry>,
    /// What replaces the entries up to its own index.
    snapshot: Option<Arc<Snapshot>>,
    /// The disk has an older snapshot, or none.
    rewrite: bool,
    /// The entries that named voters, oldest first: at most one of them up to `offset`.
    voters: Vec<(Index, Vec<Server>)>,
    /// Up to here the entries have been handed to the driver.
    written: Index,
    /// Up to here the entries are on disk.
    persisted: Index,
    /// What the next write must cut off first.
    truncate_from: Option<Index>,
    outstanding: VecDeque<Outstanding>,
}

impl Log {
    /// The log that the disk gave back.
    pub(super) fn recovered(snapshot: Option<Arc<Snapshot>>, entries: Vec<Entry>) -> Log {
        let mut log = Log::default();
        if let Some(snapshot) = snapshot {
            log.reset(snapshot);
        }
        for entry in entries {
            assert!(
                entry.index.0 == log.last_index().0 + 1 && entry.term >= log.last_term(),
                "the journal gave back entry {:?} of {:?} after {:?} of {:?}: it is damaged; \
                 remove this node's data directory and let it join anew",
                entry.index,
                entry.term,
                log.last_index(),
                log.last_term(),
            );
            log.append(entry);
        }
        log.written = log.last_index();
        log.persisted = log.last_index();
        log
    }

    /// Begins anew with `snapshot`, which is on disk.
    pub(super) fn reset(&mut self, snapshot: Arc<Snapshot>) {
        let index = snapshot.index;
        self.offset = index;
        self.offset_term = snapshot.term;
        self.entries.clear();
        self.rewrite = false;
        self.voters = vec![(index, snapshot.voters.clone())];
        self.written = index;
        self.persisted = index;
        self.truncate_from = None;
        for write in &mut self.outstanding {
            write.through = index;
        }
        self.snapshot = Some(snapshot);
    }

    /// Puts `state`, the state machines after the entry at `index`, in the place of the entries
    /// up to there. Those of the last `retained` bytes are kept in memory.
    pub(super) fn compact(&mut self, index: Index, state: Arc<[u8]>, retained: usize) {
        let Some(term) = self.term(index) else {
            return;
        };
        debug_assert!(index <= self.persisted);
        self.snapshot = Some(Arc::new(Snapshot {
            index,
            term,
            voters: self.voters_at(index).to_vec(),
            state,
        }));
        self.rewrite = true;
        let place = (index.0 - self.offset.0) as usize;
        let mut kept = 0;
        let fits = |entry: &&Entry| {
            kept += bytes_of(entry);
            kept <= retained
        };
        let fitting = self.entries[..place].iter().rev().take_while(fits).count();
        let Some(dropped) = (place - fitting).checked_sub(1) else {
            return;
        };
        let last = &self.entries[dropped];
        (self.offset, self.offset_term) = (last.index, last.term);
        self.entries.drain(..=dropped);
        let offset = self.offset;
        let before = self.voters.partition_point(|(index, _)| *index <= offset);
        self.voters.drain(..before.saturating_sub(1));
    }

    /// Entries up to here are not in memory.
    pub(super) fn offset(&self) -> Index {
        self.offset
    }

    /// Term of the last entry that is not in memory.
    pub(super) fn offset_term(&self) -> Term {
        self.offset_term
    }

    pub(super) fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    pub(super) fn last_index(&self) -> Index {
        Index(self.offset.0 + self.entries.len() as u64)
    }

    pub(super) fn last_term(&self) -> Term {
        self.entries.last().map_or(self.offset_term, |e| e.term)
    }

    /// Up to here the entries are on disk.
    pub(super) fn persisted(&self) -> Index {
        self.persisted
    }

    /// Writes that the driver has not yet reported as done.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    pub(super) fn get(&self, index: Index) -> Option<&Entry> {
        let place = index.0.checked_sub(self.offset.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// Term at `index`; 0 before the first entry, `None` where nothing is known.
    pub(super) fn term(&self, index: Index) -> Option<Term> {
        if index == self.offset {
            return Some(self.offset_term);
        }
        self.get(index).map(|entry| entry.term)
    }

    /// Entries from `from` on: as many as fit into `bytes_max`, and at least one.
    pub(super) fn batch(&self, from: Index, bytes_max: usize) -> Vec<Entry> {
        let mut bytes = 0;
        let mut batch = Vec::new();
        let mut index = from;
        while let Some(entry) = self.get(index) {
            bytes += bytes_of(entry);
            if bytes > bytes_max && !batch.is_empty() {
                break;
            }
            batch.push(entry.clone());
            index.0 += 1;
        }
        batch
    }

    /// The last place up to `bound` whose term is at most `term`, and its term.
    pub(super) fn last_at_most(&self, bound: Index, term: Term) -> (Index, Term) {
        let end = bound.0.saturating_sub(self.offset.0);
        let end = end.min(self.entries.len() as u64) as usize;
        let count = self.entries[..end].partition_point(|entry| entry.term <= term);
        let index = Index(self.offset.0 + count as u64);
        (index, self.term(index).unwrap_or_default())
    }

    /// Whether a log that ends with `index` of `term` lacks nothing that this one may have
    /// committed (Raft, section 5.4.1).
    pub(super) fn is_matched_by(&self, index: Index, term: Term) -> bool {
        (term, index) >= (self.last_term(), self.last_index())
    }

    /// Adds the next entry.
    pub(super) fn append(&mut self, entry: Entry) {
        debug_assert_eq!(entry.index.0, self.last_index().0 + 1);
        debug_assert!(entry.term >= self.last_term());
        if let Payload::Voters(voters) = &entry.payload {
            self.voters.push((entry.index, voters.clone()));
        }
        self.entries.push(entry);
    }

    /// Cuts off `from` and everything after it; the voters fall back with it.
    pub(super) fn truncate(&mut self, from: Index) {
        debug_assert!(from > self.offset);
        let before = Index(from.0 - 1);
        self.entries.truncate((before.0 - self.offset.0) as usize);
        self.voters.retain(|(index, _)| *index < from);
        if from <= self.written {
            self.truncate_from = Some(self.truncate_from.map_or(from, |old| old.min(from)));
            self.written = before;
        }
        self.persisted = self.persisted.min(before);
        for write in &mut self.outstanding {
            write.through = write.through.min(before);
        }
    }

    /// The voters in force: those that the newest entry about them names, committed or not
    /// (thesis, section 4.1). Sorted.
    pub(super) fn voters(&self) -> &[Server] {
        self.voters.last().map_or(&[], |(_, voters)| voters)
    }

    /// The voters in force at `index`, which lies after `offset`.
    pub(super) fn voters_at(&self, index: Index) -> &[Server] {
        let before = self.voters.partition_point(|(at, _)| *at <= index);
        before.checked_sub(1).map_or(&[], |at| &self.voters[at].1)
    }

    /// Place of the entry that named the voters in force, 0 where there is none.
    pub(super) fn voters_index(&self) -> Index {
        self.voters.last().map_or(Index(0), |(index, _)| *index)
    }

    /// Whether the disk lacks something that has not been handed out yet.
    pub(super) fn has_unwritten(&self) -> bool {
        self.rewrite || self.truncate_from.is_some() || self.written < self.last_index()
    }

    /// Hands out what the disk lacks, as the write `ticket`.
    pub(super) fn take_unwritten(&mut self, ticket: u64) -> Unwritten {
        let snapshot = self.snapshot.clone().filter(|_| self.rewrite);
        let after = snapshot.as_ref().map_or(self.written, |new| new.index);
        let entries = self.entries[(after.0 - self.offset.0) as usize..].to_vec();
        let truncate_from = self.truncate_from.take().filter(|_| snapshot.is_none());
        self.rewrite = false;
        self.written = self.last_index();
        self.note_write(ticket);
        Unwritten {
            snapshot,
            truncate_from,
            entries,
        }
    }

    /// The write `ticket` is handed out: once it is done, all that was handed out so far is safe.
    pub(super) fn note_write(&mut self, ticket: u64) {
        self.outstanding.push_back(Outstanding {
            ticket,
            through: self.written,
        });
    }

    /// The writes up to `ticket` are on disk.
    pub(super) fn finish_writes(&mut self, ticket: u64) {
        while let Some(write) = self
            .outstanding
            .pop_front_if(|write| write.ticket <= ticket)
        {
            self.persisted = self.persisted.max(write.through);
        }
    }

    /// Panics where the log contradicts itself.
    pub(super) fn check_invariants(&self) {
        let mut term = self.offset_term;
        let mut voters = Vec::new();
        for (place, entry) in self.entries.iter().enumerate() {
            assert_eq!(entry.index.0, self.offset.0 + place as u64 + 1);
            assert!(entry.term >= term, "terms of the log fall");
            term = entry.term;
            if let Payload::Voters(named) = &entry.payload {
                voters.push((entry.index, named.clone()));
            }
        }
        let before = self.voters.partition_point(|(at, _)| *at <= self.offset);
        assert!(
            before <= 1 && voters == self.voters[before..],
            "the voters are not those of the log"
        );
        assert!(self.offset <= self.persisted);
        if let Some(snapshot) = &self.snapshot {
            assert!(self.offset <= snapshot.index && snapshot.index <= self.persisted);
            assert_eq!(self.term(snapshot.index), Some(snapshot.term));
        } else {
            assert_eq!(self.offset, Index(0));
        }
        assert!(self.persisted <= self.written && self.written <= self.last_index());
        let mut through = self.persisted;
        for write in &self.outstanding {
            assert!(write.through <= self.written);
            through = through.max(write.through);
        }
        assert_eq!(through, self.written, "an entry is in no write");
    }
}

/// Bytes that an entry takes, roughly.
pub(super) fn bytes_of(entry: &Entry) -> usize {
    entry.payload.size() + ENTRY_OVERHEAD
}

/// Bytes that an entry takes beside its payload, roughly.
const ENTRY_OVERHEAD: usize = 24;
