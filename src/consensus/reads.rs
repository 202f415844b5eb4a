//! Reads that see everything answered before, without writing (thesis, section 6.4).
//!
//! Decides: when a read may be served. Leaves to others: what is read.

use super::quorum::{majority, reached_by};
use super::{Consensus, NotLeader, Output, ReadId, Role};
use crate::planted::{self, Bug};
use crate::types::{Index, Time};

/// A read that waits.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub(super) id: ReadId,
    /// What must be applied before.
    index: Index,
    /// The round that must be confirmed: it began after the read.
    round: u64,
}

impl Consensus {
    /// Begins a read, as leader. [`Output::ReadReady`] follows once a majority has confirmed
    /// that this server still led after now, and once everything is applied that was committed
    /// by then; [`Output::ReadFailed`] where it stops leading before. The reads of one turn
    /// share one round of messages. The caller bounds how many reads wait.
    pub fn read(&mut self, _now: Time) -> Result<ReadId, NotLeader> {
        if self.role != Role::Leader {
            return Err(self.not_leader());
        }
        if !self.round_unsent {
            self.round += 1;
            self.round_unsent = true;
        }
        for voter in self.log.voters() {
            if let Some(progress) = self.peers.get_mut(voter) {
                progress.want_append();
            }
        }
        let id = ReadId(self.next_read);
        self.next_read += 1;
        self.reads.push_back(PendingRead {
            id,
            // Where nothing of this reign is committed yet, what the predecessors committed
            // is not known, but it ends before the reign's first entry.
            index: self.commit.max(self.reign_start),
            round: self.round,
        });
        Ok(id)
    }

    /// The newest round that a majority of the voters has answered.
    fn confirmed_round(&self) -> u64 {
        let voters = self.log.voters();
        let rounds = voters.iter().map(|voter| match self.peers.get(voter) {
            Some(progress) => progress.round,
            None if *voter == self.me => self.round,
            None => 0,
        });
        reached_by(majority(voters.len()), rounds).unwrap_or(0)
    }

    pub(super) fn next_failed_read(&mut self) -> Option<Output> {
        let id = self.failed_reads.pop_front()?;
        Some(Output::ReadFailed { id })
    }

    pub(super) fn next_read_ready(&mut self) -> Option<Output> {
        if self.reads.is_empty() {
            return None;
        }
        let (round, applied) = (self.confirmed_round(), self.applied);
        let unasked = planted::is(Bug::ReadWithoutConfirmation);
        let read = self
            .reads
            .pop_front_if(|read| (read.round <= round || unasked) && read.index <= applied)?;
        Some(Output::ReadReady { id: read.id })
    }
}
