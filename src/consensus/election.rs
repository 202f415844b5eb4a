//! Who leads: pre-votes, votes and the leader's own giving up.
//!
//! Decides: when to ask, whom to grant, when enough have granted, when to stop leading.
//! Leaves to others: what a leader does with its reign (`replication`).

use std::time::Duration;

use super::quorum::{majority, reached_by};
use super::{Candidacy, Consensus, Content, Role};
use crate::planted::{self, Bug};
use crate::types::{Index, Server, Term, Time};

impl Consensus {
    pub(super) fn rearm_election(&mut self, now: Time) {
        let config = &self.config;
        let wait = match self.succession_rank(now) {
            Some(rank) => {
                let step = config.succession_step;
                step * rank + self.rng.span(step / 2, step)
            }
            None => {
                let (min, max) = (config.election_timeout_min, config.election_timeout_max);
                self.rng.span(min, max)
            }
        };
        self.election_deadline = now + wait;
    }

    /// This server was at work for `span`, until now, and took in nothing. That it heard nobody
    /// meanwhile is nobody's silence: whoever it waits for gets as much longer.
    pub fn handle_standstill(&mut self, now: Time, span: Duration) {
        let later = |heard: Time| now.min(heard + span);
        self.leader_heard = self.leader_heard.map(later);
        for progress in self.peers.values_mut() {
            progress.answered = later(progress.answered);
        }
        if self.leader_lost.is_none() {
            let latest = now + self.config.election_timeout_max;
            let deadline = latest.min(self.election_deadline + span);
            self.election_deadline = self.election_deadline.max(deadline);
        }
    }

    /// The members know that the leader has failed: the standbys do not wait for its silence,
    /// and ask one after the other. Where that is wrong, the leader is heard again and nothing
    /// has changed: safety does not rest on it.
    pub(super) fn handle_lost_leader(&mut self, now: Time) {
        self.leader_lost = Some(now);
        self.leader_heard = None;
        self.rearm_election(now);
    }

    /// This server's place among the live voters while they hurry to replace a lost leader:
    /// for a while after its loss, since one of them may hear of it later.
    fn succession_rank(&self, now: Time) -> Option<u32> {
        let lost = self.leader_lost?;
        if now.since(lost) >= self.config.election_timeout_max {
            return None;
        }
        let (forced, voters) = (self.may_force(), self.log.voters());
        let live = self.live.iter();
        let mut live = live.filter(|member| forced || voters.contains(member));
        live.position(|member| *member == self.me)
            .map(|rank| rank as u32)
    }

    /// Whether a leader lives, so that nobody is helped to depose it (thesis, section 4.2.3).
    fn has_live_leader(&self, now: Time) -> bool {
        self.role == Role::Leader
            || self
                .leader_heard
                .is_some_and(|heard| now.since(heard) < self.config.election_timeout_min)
    }

    /// Asks whether an election would be won, without disturbing anyone (thesis, section 9.6).
    pub(super) fn start_pre_vote(&mut self, now: Time) {
        self.role = Role::PreCandidate;
        self.ballots = [self.me.clone()].into();
        self.rearm_election(now);
        if self.is_elected() {
            self.campaign(now);
            return;
        }
        self.ask_voters(Content::PreVote(self.candidacy()));
    }

    /// Begins a term and asks for its votes. Its own counts when it is on disk.
    pub(super) fn campaign(&mut self, now: Time) {
        if self.term >= super::TERM_MAX {
            return;
        }
        if self.may_form() {
            return self.bootstrap(now);
        }
        let term = self.next_term();
        self.campaign_in(now, term);
    }

    pub(super) fn campaign_in(&mut self, now: Time, term: Term) {
        self.enter_term(now, term);
        self.set_hard_state(self.term, Some(self.me.clone()));
        self.role = Role::Candidate;
        self.rearm_election(now);
        self.ask_voters(Content::Vote(self.candidacy()));
    }

    fn candidacy(&self) -> Candidacy {
        Candidacy {
            last_index: self.log.last_index(),
            last_term: self.log.last_term(),
            insists: self.insists(),
        }
    }

    /// Whether the candidate lacks nothing that this server may know to be committed.
    fn is_matched_by(&self, candidacy: Candidacy) -> bool {
        let (index, term) = (candidacy.last_index, candidacy.last_term);
        self.log.is_matched_by(index, term)
            || candidacy.insists && self.config.crash_stop && !self.complete
            || planted::is(Bug::VoteForShorterLog)
    }

    fn ask_voters(&mut self, question: Content) {
        let mut asked = self.log.voters().to_vec();
        if self.config.crash_stop || self.may_force() {
            asked.extend(self.live.iter().cloned());
            asked.sort();
            asked.dedup();
        }
        for voter in asked {
            if voter != self.me {
                let namesake = self.live.iter().find(|server| server.node == voter.node);
                let namesake = namesake.filter(|_| planted::is(Bug::WipedVoterVotes));
                let voter = namesake.cloned().unwrap_or(voter);
                self.send(voter, question.clone());
            }
        }
    }

    /// Whether the ballots suffice.
    fn is_elected(&self) -> bool {
        let is_agreed = self.live.is_subset(&self.ballots);
        let forced = self.may_force() && is_agreed;
        forced || self.has_enough() && (is_agreed || !self.needs_all())
    }

    /// Whether the ballots are those of enough voters: a majority, or all where
    /// [`Consensus::needs_all`].
    pub(super) fn has_enough(&self) -> bool {
        let voters = self.log.voters();
        let wiped = planted::is(Bug::WipedVoterVotes);
        let has_granted = |voter: &&Server| {
            let mut ballots = self.ballots.iter();
            self.ballots.contains(*voter) || wiped && ballots.any(|from| from.node == voter.node)
        };
        let granted = voters.iter().filter(has_granted).count();
        let twice = planted::is(Bug::VoteTwice) && self.ballots.len() > 1;
        granted + usize::from(twice) >= self.enough()
    }

    fn enough(&self) -> usize {
        let voters = self.log.voters().len();
        match self.needs_all() {
            true => voters.max(1),
            false => majority(voters),
        }
    }

    /// Moves to a newer term as a follower who has not voted in it.
    pub(super) fn enter_term(&mut self, now: Time, term: Term) {
        debug_assert!(term > self.term);
        self.set_hard_state(term, None);
        self.verified = Index(0);
        self.acknowledged = Index(0);
        self.incoming = None;
        self.leader_heard = None;
        self.become_follower(now, None);
        self.round = 0;
    }

    /// Follows `leader`, or nobody yet. A leader's reads fail.
    pub(super) fn become_follower(&mut self, now: Time, leader: Option<Server>) {
        if self.role == Role::Leader {
            self.failed_reads
                .extend(self.reads.drain(..).map(|read| read.id));
            self.peers.clear();
            self.rearm_election(now);
        }
        self.role = Role::Follower;
        self.leader = leader;
        self.ballots.clear();
    }

    pub(super) fn handle_pre_vote(
        &mut self,
        now: Time,
        from: Server,
        term: Term,
        candidacy: Candidacy,
    ) {
        // The term is not taken over: asking must change nothing.
        let granted =
            term >= self.term && !self.has_live_leader(now) && self.is_matched_by(candidacy);
        let asked = term;
        self.send(from, Content::PreVoteReply { asked, granted });
    }

    pub(super) fn handle_pre_vote_reply(
        &mut self,
        now: Time,
        from: Server,
        term: Term,
        asked: Term,
        granted: bool,
    ) {
        if term > self.term {
            self.enter_term(now, term);
            return;
        }
        if self.role != Role::PreCandidate || asked != self.term || !granted {
            return;
        }
        self.ballots.insert(from);
        if self.is_elected() {
            self.campaign(now);
        }
    }

    pub(super) fn handle_vote(
        &mut self,
        now: Time,
        from: Server,
        term: Term,
        candidacy: Candidacy,
    ) {
        // A leader that asks has ended its reign itself.
        if self.has_live_leader(now) && self.leader.as_ref() != Some(&from) {
            return;
        }
        if term > self.term {
            self.enter_term(now, term);
        }
        let free = self.vote.as_ref().is_none_or(|vote| *vote == from);
        let matched = self.is_matched_by(candidacy);
        let granted = term == self.term && free && matched;
        if granted {
            if self.vote.is_none() {
                self.set_hard_state(self.term, Some(from.clone()));
            }
            self.rearm_election(now);
        }
        self.send(from, Content::VoteReply { granted });
    }

    pub(super) fn handle_vote_reply(&mut self, now: Time, from: Server, term: Term, granted: bool) {
        if term > self.term {
            self.enter_term(now, term);
            return;
        }
        if self.role != Role::Candidate || term < self.term || !granted {
            return;
        }
        self.ballots.insert(from);
        self.win_if_elected(now);
    }

    /// A candidate's vote for itself is on disk, perhaps.
    pub(super) fn count_own_vote(&mut self, now: Time) {
        if self.hard_state_is_persisted() {
            self.ballots.insert(self.me.clone());
            self.win_if_elected(now);
        }
    }

    fn win_if_elected(&mut self, now: Time) {
        // A reign whose term could be forgotten is none.
        if self.hard_state_is_persisted() && self.is_elected() {
            self.become_leader(now);
        }
    }

    /// When a leader that hears nothing more has been without a majority for too long
    /// (thesis, section 6.2).
    pub(super) fn quorum_deadline(&self) -> Time {
        self.majority_heard()
            .map_or(Time::MAX, |heard| heard + self.config.election_timeout_max)
    }

    /// Leader: since when at the latest a majority has been silent.
    fn majority_heard(&self) -> Option<Time> {
        let voters = self.log.voters();
        let heard = voters.iter().map(|voter| self.voter_heard(voter));
        reached_by(majority(voters.len()), heard)
    }

    fn voter_heard(&self, voter: &Server) -> Time {
        if *voter == self.me {
            return Time::MAX;
        }
        self.peers
            .get(voter)
            .map_or(Time(0), |progress| progress.answered)
    }

    /// Whether enough voters to elect or commit have been heard lately, by this server or by
    /// the leader that it hears.
    pub fn quorum_reachable(&self, now: Time) -> bool {
        match self.role {
            Role::Leader => self
                .majority_heard()
                .is_some_and(|heard| now.since(heard) < self.config.election_timeout_min),
            _ if self.has_live_leader(now) || self.insists() => true,
            _ => {
                let silent = self.unreachable(now);
                let is_there =
                    |voter: &&Server| self.live.contains(*voter) && !silent.contains(*voter);
                let voters = self.log.voters().iter();
                voters.filter(is_there).count() >= self.enough()
            }
        }
    }

    /// The voters that this server has not heard lately, for people who ask why nothing
    /// goes on. A follower hears only its leader: ask it once no leader is known.
    pub fn unreachable(&self, now: Time) -> Vec<Server> {
        // Without a leader a voter is asked once in each election timeout.
        let patience = self.config.election_timeout_max * 2;
        let silent = |voter: &&Server| {
            **voter != self.me
                && self
                    .heard
                    .get(*voter)
                    .is_none_or(|heard| now.since(*heard) >= patience)
        };
        self.log.voters().iter().filter(silent).cloned().collect()
    }
}
