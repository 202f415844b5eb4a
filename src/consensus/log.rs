//! The log of one server: entries in memory, and how far they are on disk.
//!
//! Decides: what is where, which voters the log puts in force, what is to be written next
//! and what a finished write has made safe. Leaves to others: which entries may be added,
//! cut off or applied. Entries up to `offset` are the place for a snapshot; nothing raises it yet.

use std::collections::VecDeque;

use crate::types::{Index, Server, Term};
use crate::wire::consensus::{Entry, Payload};

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
    /// Each entry that named voters, oldest first.
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
    pub(super) fn recovered(entries: Vec<Entry>) -> Log {
        let mut log = Log::default();
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
            bytes += entry.payload.size() + ENTRY_OVERHEAD;
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

    /// Place of the entry that named the voters in force, 0 where there is none.
    pub(super) fn voters_index(&self) -> Index {
        self.voters.last().map_or(Index(0), |(index, _)| *index)
    }

    /// Whether the disk lacks something that has not been handed out yet.
    pub(super) fn has_unwritten(&self) -> bool {
        self.truncate_from.is_some() || self.written < self.last_index()
    }

    /// Hands out what the disk lacks, as the write `ticket`: what to cut off, then what to add.
    pub(super) fn take_unwritten(&mut self, ticket: u64) -> (Option<Index>, Vec<Entry>) {
        let start = (self.written.0 - self.offset.0) as usize;
        let entries = self.entries[start..].to_vec();
        self.written = self.last_index();
        self.outstanding.push_back(Outstanding {
            ticket,
            through: self.written,
        });
        (self.truncate_from.take(), entries)
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
        assert_eq!(voters, self.voters, "the voters are not those of the log");
        assert!(self.offset <= self.persisted);
        assert!(self.persisted <= self.written && self.written <= self.last_index());
        let mut through = self.persisted;
        for write in &self.outstanding {
            assert!(write.through <= self.written);
            through = through.max(write.through);
        }
        assert_eq!(through, self.written, "an entry is in no write");
    }
}

/// Bytes that an entry takes beside its payload, roughly.
const ENTRY_OVERHEAD: usize = 24;
