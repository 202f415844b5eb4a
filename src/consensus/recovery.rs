//! Going on without a majority, where the cluster's owner has asked for it.
//!
//! Decides: when the live members may elect a leader though most voters are gone, and what a
//! server does whose decisions contradict those of such a leader. Leaves to others: which members
//! are live, and what is to be read from the disks of those that are left (`node`).
//!
//! Nothing here is Raft. There are three occasions, of which only the last comes unasked:
//!
//! - *crash-stop* ([`Config::crash_stop`](super::Config)): whoever is gone from the members has
//!   crashed, and was not merely cut off. With at most [`VOTERS_MAX`] voters, so with at most four
//!   members, every live member has every answered entry on its disk, so that any one of them can
//!   go on with nothing lost, once the members have told it that the missing voters failed. Who
//!   has just started does not know what was answered in its absence: until it has heard a leader
//!   it is elected only with the votes of all voters, who are all members that were there at last,
//!   and of all that are live.
//! - *founding anew* ([`Consensus::found_anew`]): a person says that the missing voters will not
//!   come back. What only they had is lost.
//! - *forming anew* ([`Consensus::form_anew`]): the only voter died before its first entry was
//!   safe, so that nothing was committed and nobody else votes.
//!
//! In all, all live members must agree, which chooses the longest log among them; the voters are
//! then those that agreed, or the new leader alone.
//!
//! Where the owner was wrong, two leaders have decided without each other. Their terms differ:
//! each such election skips a random number of terms, the greater the more members took part. Once
//! they meet the higher term wins, so the side with more members, mostly; a server of the other
//! side finds its own decisions contradicted, gives them up and takes the whole log anew. Forming
//! skips none, so that it gives way to what a person has asked for meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::quorum::majority;
use super::snapshots::Installing;
use super::{Consensus, Entry, Role, Snapshot};
use crate::types::{Index, Server, Term, Time};

/// Most voters with whom a crash-stop cluster goes on alone: in one of four members all vote.
const VOTERS_MAX: usize = 4;
/// How long the live members are asked to found the cluster's log anew.
const FOUNDING_TIME: Duration = Duration::from_secs(5);
/// A forced election skips up to so many terms, and as many more for each live member.
const TERMS_SKIPPED: u64 = 1 << 32;

/// See [`Consensus::found_anew`].
#[derive(Debug)]
pub(super) struct Founding {
    deadline: Time,
    /// The first command of the reign.
    pub(super) first: Arc<[u8]>,
}

impl Consensus {
    /// Asks all live members to follow this server from now on, without the voters that are gone.
    /// `first` is the first command of the reign. Only for a person who knows that the missing
    /// ones never come back. Another member's log may be longer: then it refuses, and should be
    /// the one that asks.
    pub fn found_anew(&mut self, now: Time, first: Arc<[u8]>) {
        if self.role == Role::Leader || self.installing.is_some() {
            return;
        }
        let deadline = now + FOUNDING_TIME;
        self.founding = Some(Founding { deadline, first });
        self.leader = None;
        self.leader_heard = None;
        self.start_pre_vote(now);
    }

    /// Whether [`Consensus::found_anew`] is still asking.
    pub fn is_founding(&self) -> bool {
        self.founding.is_some()
    }

    pub(super) fn end_late_founding(&mut self, now: Time) {
        self.founding = self.founding.take_if(|founding| now < founding.deadline);
    }

    /// This server formed the cluster and died before its log's first entry was safe. It begins
    /// the log again once no live member knows better; where it has a log after all, or gave one
    /// up for another, this does nothing.
    pub fn form_anew(&mut self) {
        self.forming = true;
    }

    /// Whether [`Consensus::form_anew`] is still to be done. Who has heard of a term in which it
    /// did not vote for itself waits for that term's log.
    pub(super) fn may_form(&self) -> bool {
        let began = self.log.last_index() > Index(0) || self.log.snapshot().is_some();
        let is_another = self.term > Term(0) && self.vote.as_ref() != Some(&self.me);
        let is_asked = self.founding.is_some() || self.installing.is_some();
        self.forming && !began && !is_another && !is_asked && self.live.contains(&self.me)
    }

    /// Whether the live members may elect a leader among themselves, whoever votes by the log.
    pub(super) fn may_force(&self) -> bool {
        self.founding.is_some() || self.insists() || self.may_form()
    }

    /// Whether this server may have missed what a crash-stop cluster answered without it.
    pub(super) fn needs_all(&self) -> bool {
        self.config.crash_stop && !self.complete && self.founding.is_none()
    }

    /// Whether a crash-stop cluster's voters have crashed and this server can take their place.
    pub(super) fn insists(&self) -> bool {
        // A change that is not committed may be known to this server alone.
        let voters = self.log.voters_at(self.commit);
        let gone = voters.iter().filter(|voter| !self.live.contains(*voter));
        let left = voters.len() - gone.clone().count();
        self.config.crash_stop
            && self.complete
            && voters.contains(&self.me)
            && (1..=VOTERS_MAX).contains(&voters.len())
            && left < majority(voters.len())
            && gone.clone().all(|voter| self.lost.contains(voter))
    }

    /// Whether this server asks to be elected when it hears no leader. Where a crash-stop cluster
    /// needs all votes, the one with the longest log must, voter or not.
    pub(super) fn may_stand(&self) -> bool {
        self.is_voter() || self.may_be_needed() || self.config.crash_stop || self.may_force()
    }

    /// Whether the change that took this server out of the voters may be in no other log: then
    /// nobody else can be elected while this log is longer (thesis, section 4.2.2).
    pub(super) fn may_be_needed(&self) -> bool {
        let at = self.log.voters_index();
        let before = Index(at.0.saturating_sub(1));
        at > self.commit && self.log.voters_at(before).contains(&self.me)
    }

    /// With whom a leader begins that was elected without the voters: all that elected it, so that
    /// none of them goes on later without the others' knowing. One that founds the log anew
    /// begins alone.
    pub(super) fn forced_voters(&self, founds: bool) -> Vec<Server> {
        match founds || self.live.len() > VOTERS_MAX {
            true => vec![self.me.clone()],
            false => self.live.iter().cloned().collect(),
        }
    }

    /// Notes which voters are gone; whether one of them has just been lost.
    pub(super) fn note_losses(&mut self, live: &BTreeSet<Server>) -> bool {
        let voters = [self.log.voters(), self.log.voters_at(self.commit)].concat();
        let lost = self.live.difference(live);
        let lost: Vec<Server> = lost.filter(|it| voters.contains(it)).cloned().collect();
        self.lost
            .retain(|server| !live.contains(server) && voters.contains(server));
        let any = !lost.is_empty();
        self.lost.extend(lost);
        any
    }

    /// The term of the election that this server begins.
    pub(super) fn next_term(&mut self) -> Term {
        let mut term = self.term.0 + 1;
        if self.config.crash_stop || self.may_force() {
            let members = self.live.len() as u64;
            term += members * TERMS_SKIPPED + self.rng.below(TERMS_SKIPPED);
        }
        Term(term)
    }

    /// Whether a leader's entry at `index`, of `term`, is not the one that is committed here.
    pub(super) fn contradicts(&self, index: Index, term: Term) -> bool {
        index <= self.commit
            && match self.log.term(index) {
                Some(own) => own != term,
                // Not in memory any more; terms never fall along the log.
                None => self.log.offset_term() < term,
            }
    }

    /// Whether an append has an entry that [contradicts](Consensus::contradicts) this server's.
    pub(super) fn is_contradicted(&self, previous: (Index, Term), entries: &[Entry]) -> bool {
        let mut entries = entries.iter().map(|entry| (entry.index, entry.term));
        self.contradicts(previous.0, previous.1)
            || entries.any(|(index, term)| self.contradicts(index, term))
    }

    /// Gives up everything that was decided here: an empty log takes its place on disk, and then
    /// the leader's does.
    pub(super) fn give_way(&mut self) {
        self.incoming = None;
        self.verified = Index(0);
        self.acknowledged = Index(0);
        self.complete = false;
        self.installing = Some(Installing {
            snapshot: Arc::new(Snapshot {
                index: Index(0),
                term: Term(0),
                voters: Vec::new(),
                state: Arc::new([]),
            }),
            ticket: None,
        });
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
