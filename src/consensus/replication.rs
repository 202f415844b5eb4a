//! How the log gets to the others, and what has become of it there.
//!
//! Decides: what to append, to send and to send again, what is committed, what is safe to
//! answer. Leaves to others: who leads (`election`), where entries lie (`log`).
//!
//! A server is either *probed*, one empty append at each heartbeat until the place is found where
//! its log agrees, or *streamed* to, several appends at once, or sent a snapshot (`snapshots`),
//! where the entry that it needs next is not in memory any more. Nothing is resent by a timer of its
//! own: a heartbeat names the entry before the next one, and a server that lacks it says so.

use super::progress::Progress;
use super::quorum::{copies, majority, reached_by};
use super::{Consensus, Content, Entry, Message, Output, Payload, Role};
use crate::planted::{self, Bug};
use crate::types::{Index, Server, Term, Time};

/// The leader's side.
impl Consensus {
    /// Begins a reign with an empty entry (Raft, section 8).
    pub(super) fn become_leader(&mut self, now: Time) {
        self.role = Role::Leader;
        self.leader = Some(self.me.clone());
        self.leader_lost = None;
        let regular = self.is_voter() || self.may_be_needed() && !self.config.crash_stop;
        let forced = !self.has_enough() || !regular;
        let founding = self.founding.take();
        self.complete = true;
        self.ballots.clear();
        self.round = 0;
        self.round_unsent = false;
        self.durable = Index(0);
        self.next_heartbeat = now + self.config.heartbeat;
        self.reign_start = Index(self.log.last_index().0 + 1);
        self.sync_peers(now);
        if forced {
            let voters = self.forced_voters(founding.is_some());
            self.append_as_leader(Payload::Voters(voters));
        }
        if let Some(founding) = founding {
            self.append_as_leader(Payload::Command(founding.first));
        }
        self.append_as_leader(Payload::Empty);
    }

    /// Sends the log to all voters and live members, and to nobody else.
    pub(super) fn sync_peers(&mut self, now: Time) {
        if self.role != Role::Leader {
            return;
        }
        let voters = self.log.voters();
        let (live, me) = (&self.live, &self.me);
        self.peers
            .retain(|server, _| live.contains(server) || voters.contains(server));
        let next = Index(self.log.last_index().0 + 1);
        for server in voters.iter().chain(live).filter(|server| *server != me) {
            self.peers
                .entry(server.clone())
                .or_insert_with(|| Progress::new(next, now));
        }
    }

    pub(super) fn append_as_leader(&mut self, payload: Payload) -> Index {
        let index = Index(self.log.last_index().0 + 1);
        self.log.append(Entry {
            term: self.term,
            index,
            payload,
        });
        index
    }

    /// The next append, to the first server that is owed one.
    pub(super) fn next_append(&mut self) -> Option<Output> {
        if self.role != Role::Leader {
            return None;
        }
        let (offset, last) = (self.log.offset(), self.log.last_index());
        let in_flight_max = self.config.in_flight_max;
        // Nobody else could lead with the first entry of a reign that one server alone may forget.
        let is_safe = self.log.voters().len() > 1 || self.log.persisted() >= self.reign_start;
        let has_room = |progress: &Progress| {
            let is_there = is_safe && offset < progress.next && progress.next <= last;
            progress.streaming && is_there && progress.in_flight.len() < in_flight_max
        };
        let (to, progress) = self
            .peers
            .iter_mut()
            .find(|(_, progress)| progress.append_wanted || has_room(progress))?;
        let (to, term, round) = (to.clone(), self.term, self.round);
        self.round_unsent = false;
        if progress.next <= offset
            && let Some(newest) = self.log.snapshot()
        {
            progress.append_wanted = false;
            let part_bytes = self.config.part_bytes;
            let content = Self::snapshot_for(progress, newest, part_bytes, round);
            let message = Message { term, content };
            return Some(Output::Send { to, message });
        }
        let previous_index = Index(progress.next.0 - 1);
        let mut entries = Vec::new();
        if has_room(progress) {
            entries = self.log.batch(progress.next, self.config.entries_bytes_max);
            progress.next.0 += entries.len() as u64;
            progress.in_flight.push_back(Index(progress.next.0 - 1));
        }
        progress.append_wanted = false;
        let content = Content::Append {
            previous_index,
            previous_term: self.log.term(previous_index).unwrap_or_default(),
            entries,
            commit: self.commit,
            round,
        };
        let message = Message { term, content };
        Some(Output::Send { to, message })
    }

    pub(super) fn handle_appended(
        &mut self,
        now: Time,
        from: &Server,
        term: Term,
        matched: Index,
        verified: Index,
        round: u64,
    ) {
        if !self.is_answer_to_leader(now, term) {
            return;
        }
        let last = self.log.last_index();
        if matched > verified || verified > last || round > self.round {
            self.dropped += 1;
            return;
        }
        let Some(progress) = self.peers.get_mut(from) else {
            return;
        };
        progress.has_answered(now, round);
        progress.matched = progress.matched.max(matched);
        if verified.0 + 1 >= progress.next.0 {
            progress.streaming = true;
        }
        if verified >= self.log.offset() {
            progress.transfer = None;
        }
        progress.next = Index(progress.next.0.max(verified.0 + 1));
        while progress
            .in_flight
            .pop_front_if(|sent| *sent <= verified)
            .is_some()
        {}
        self.advance_commit(now);
    }

    pub(super) fn handle_rejected(
        &mut self,
        now: Time,
        from: &Server,
        term: Term,
        previous_index: Index,
        hint: (Index, Term),
        round: u64,
    ) {
        if !self.note_answer(now, from, term, round) {
            return;
        }
        let Some(progress) = self.peers.get_mut(from) else {
            return;
        };
        if previous_index == Index(0) {
            // Nothing comes before the first entry that could differ: its log begins anew.
            *progress = Progress::new(Index(1), now);
            return;
        }
        // What a delayed message refuses may have been settled since.
        if previous_index <= progress.matched || previous_index >= progress.next {
            return;
        }
        let bound = hint.0.min(Index(previous_index.0 - 1));
        let place = match bound < self.log.offset() {
            true => bound,
            false => self.log.last_at_most(bound, hint.1).0,
        };
        progress.probe(place);
    }

    /// Notes that a server which gets the log has answered in this reign; false where it has not.
    pub(super) fn note_answer(&mut self, now: Time, from: &Server, term: Term, round: u64) -> bool {
        if !self.is_answer_to_leader(now, term) {
            return false;
        }
        if round > self.round {
            self.dropped += 1;
            return false;
        }
        let progress = self.peers.get_mut(from);
        progress.is_some_and(|progress| {
            progress.has_answered(now, round);
            true
        })
    }

    /// Whether an answer of `term` is one to this server's reign. A newer term ends it.
    fn is_answer_to_leader(&mut self, now: Time, term: Term) -> bool {
        if term > self.term {
            self.enter_term(now, term);
        }
        term == self.term && self.role == Role::Leader
    }

    /// Up to where `server` has the leader's entries on disk.
    fn matched(&self, server: &Server) -> Index {
        if *server == self.me {
            return self.log.persisted();
        }
        self.peers
            .get(server)
            .map_or(Index(0), |progress| progress.matched)
    }

    /// Commits what a majority of the voters has on disk, once an entry of this term is among
    /// it (Raft, section 5.4.2). A leader that has committed its own removal stops.
    pub(super) fn advance_commit(&mut self, now: Time) {
        let voters = self.log.voters();
        let on_disk = voters.iter().map(|voter| self.matched(voter));
        let reached = reached_by(majority(voters.len()), on_disk).unwrap_or_default();
        let is_own = self.log.term(reached) == Some(self.term);
        if reached <= self.commit || !(is_own || planted::is(Bug::OldEntryByCounting)) {
            return;
        }
        self.commit = reached;
        // Standbys learn it now, not with the next heartbeat.
        self.peers.values_mut().for_each(Progress::want_append);
        if !self.is_voter() && self.log.voters_index() <= self.commit {
            self.become_follower(now, None);
        }
    }

    /// Leader: what may be answered.
    pub(super) fn next_durable(&mut self) -> Option<Output> {
        if self.role != Role::Leader || self.durable == self.applied {
            return None;
        }
        let on_disk = self.live.iter().map(|member| self.matched(member));
        let copied = reached_by(copies(self.live.len()), on_disk)?;
        let durable = copied.min(self.applied);
        if durable <= self.durable {
            return None;
        }
        self.durable = durable;
        Some(Output::Durable(durable))
    }

    /// Leader: whether `server` answers and lacks so little that it may become a voter.
    pub fn caught_up(&self, server: &Server) -> bool {
        if *server == self.me {
            return self.role == Role::Leader;
        }
        self.peers.get(server).is_some_and(|progress| {
            progress.streaming
                && progress.matched.0 + self.config.caught_up_entries >= self.log.last_index().0
        })
    }
}

/// The follower's side.
impl Consensus {
    pub(super) fn handle_append(&mut self, now: Time, from: Server, term: Term, content: Content) {
        let Content::Append {
            previous_index,
            previous_term,
            entries,
            commit,
            round,
        } = content
        else {
            return;
        };
        if !is_well_formed(term, previous_index, previous_term, &entries) {
            self.dropped += 1;
            return;
        }
        if !self.accept_leader(now, &from, term, previous_index, round) {
            return;
        }
        if self.installing.is_some() {
            return;
        }
        if self.is_contradicted((previous_index, previous_term), &entries) {
            return self.give_way();
        }
        // What is not in memory any more is committed, so that it is the leader's.
        let is_gone = previous_index < self.log.offset();
        if !is_gone && self.log.term(previous_index) != Some(previous_term) {
            let (bound, _) = self.log.last_at_most(previous_index, previous_term);
            self.reject(from, previous_index, bound);
            return;
        }
        let verified = Index(previous_index.0 + entries.len() as u64);
        if !entries.is_empty() {
            self.entries_taken = now;
        }
        if !self.take_entries(entries) {
            self.dropped += 1;
            return;
        }
        self.verified = self.verified.max(verified);
        self.commit = self.commit.max(commit.min(self.verified));
        self.complete |= self.verified >= commit;
        let is_quiet = now.since(self.entries_taken) >= self.config.heartbeat;
        self.commit_due = is_quiet && self.commit > self.written_commit;
        self.acknowledge(from);
    }

    /// Follows `from` as the leader of `term`, which it says to be with a message about the place
    /// `index`. False where it is not; an old leader is told so.
    pub(super) fn accept_leader(
        &mut self,
        now: Time,
        from: &Server,
        term: Term,
        index: Index,
        round: u64,
    ) -> bool {
        if term < self.term {
            // The old leader learns from it that its reign is over.
            self.reject(from.clone(), index, Index(0));
            return false;
        }
        if term > self.term {
            self.enter_term(now, term);
        }
        // Two leaders in one term cannot be: one of them is a forger.
        if self.role == Role::Leader || self.leader.as_ref().is_some_and(|known| known != from) {
            self.dropped += 1;
            return false;
        }
        self.become_follower(now, Some(from.clone()));
        self.leader_heard = Some(now);
        self.leader_lost = None;
        self.founding = None;
        self.rearm_election(now);
        self.round = self.round.max(round);
        true
    }

    /// Adds what is new; where an entry contradicts, it and all after it go. Refuses to cut
    /// off what is committed or came from this very leader: no leader asks for that.
    fn take_entries(&mut self, entries: Vec<Entry>) -> bool {
        let offset = self.log.offset();
        for entry in entries.into_iter().filter(|entry| entry.index > offset) {
            match self.log.term(entry.index) {
                Some(term) if term == entry.term => continue,
                Some(_) if entry.index <= self.commit.max(self.verified) => return false,
                Some(_) => self.log.truncate(entry.index),
                None => {}
            }
            self.log.append(entry);
        }
        true
    }

    pub(super) fn reject(&mut self, to: Server, previous_index: Index, hint_index: Index) {
        let hint_term = self.log.term(hint_index).unwrap_or_default();
        let round = self.round;
        self.send(
            to,
            Content::Rejected {
                previous_index,
                hint_index,
                hint_term,
                round,
            },
        );
    }

    /// Tells the leader at once that it was heard, and of what is on disk by now.
    pub(super) fn acknowledge(&mut self, leader: Server) {
        self.acknowledged = match planted::is(Bug::AckBeforeFsync) {
            true => self.verified,
            false => self.verified.min(self.log.persisted()),
        };
        self.send(
            leader,
            Content::Appended {
                matched: self.acknowledged,
                verified: self.verified,
                round: self.round,
            },
        );
    }

    /// Tells the leader of more that is on disk.
    pub(super) fn acknowledge_persisted(&mut self) {
        if self.verified.min(self.log.persisted()) > self.acknowledged
            && let Some(leader) = self.leader.clone()
        {
            self.acknowledge(leader);
        }
    }
}

/// Whether the entries follow one another as a leader of `term` would have them.
fn is_well_formed(
    term: Term,
    previous_index: Index,
    previous_term: Term,
    entries: &[Entry],
) -> bool {
    let mut last = (previous_index.0, previous_term);
    entries.iter().all(|entry| {
        let follows = last.0.checked_add(1) == Some(entry.index.0)
            && entry.term >= last.1
            && entry.term <= term;
        last = (entry.index.0, entry.term);
        follows
    }) && previous_term <= term
}
