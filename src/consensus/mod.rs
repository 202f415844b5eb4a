//! Core 2: one log for all members, and one leader who appends to it.
//!
//! Decides: who leads (`election`), which entries are appended, sent, committed, applied and
//! safe to answer (`replication`), which reads are current (`reads`), who votes. It is Raft
//! (Ongaro and Ousterhout, 2014) with these parts of Ongaro's thesis (2014): pre-vote (9.6),
//! leader stickiness (4.2.3), voters changed one at a time (4.1), a leader's disk written while
//! it sends (10.2.1), read index (6.4), snapshots (5).
//!
//! Takes: messages, timeouts, the live members, finished writes, commands. Emits: [`Output`].
//!
//! Holds: at most one leader in a term; logs that agree on an entry agree on all before it; a
//! committed entry is in the log of every later leader; no message leaves before the writes
//! that it speaks of are on disk; all servers apply the same entries in the same order.
//!
//! Not here: what commands mean, what a snapshot contains and when one is made, which voters to
//! choose, sockets, files, clocks.
//!
//! A server counts for a vote, or for a commit, where the *candidate's or leader's* log names it
//! a voter; the asked server does not consult its own log about that (thesis, section 4.1): a
//! fresh voter may be asked before the entry that made it one reaches it.

mod config;
mod election;
#[cfg(test)]
mod harness;
mod log;
mod progress;
mod quorum;
mod reads;
mod recovery;
mod replication;
mod snapshots;
#[cfg(test)]
mod storms;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::planted::{self, Bug};
use crate::types::{Index, Rng, Server, Term, Time};
pub use crate::wire::consensus::{
    Candidacy, Content, Entry, HardState, Message, Payload, Snapshot,
};

pub use config::{Config, ConfigError};
use log::{Log, Unwritten};
use progress::Progress;
use reads::PendingRead;
use recovery::Founding;
use snapshots::{Incoming, Installing};

/// A term beyond any that a cluster reaches; a message from there is broken.
const TERM_MAX: Term = Term(u64::MAX / 2);
/// Messages that may wait for one write; the oldest is dropped beyond, as if lost.
const WITHHELD_MAX: usize = 1024;

/// What the disk gave back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The newest that was written.
    pub hard_state: HardState,
    /// What the log begins with.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The log, from the entry after the snapshot (from index 1 where there is none) without gap.
    pub entries: Vec<Entry>,
    /// Up to here entries were known to be committed when something was last written; 0: unknown.
    pub commit: Index,
}

/// To be written in the order of the fields, then one fsync, then
/// [`Consensus::handle_persisted`]. A crash may leave any beginning of it on the disk, but of
/// one with a snapshot all or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWrite {
    /// Names the write; each is one more than the last.
    pub ticket: u64,
    /// This write replaces everything that is on disk: a new log that begins with the snapshot,
    /// has the hard state and continues with the entries.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Replaces the one on disk.
    pub hard_state: Option<HardState>,
    /// This entry and all after it are to be cut off.
    pub truncate_from: Option<Index>,
    /// To be added after what is then the last.
    pub entries: Vec<Entry>,
    /// Up to here entries are committed, those of this write included. Nothing is promised on it:
    /// a server that starts knows so much at once, and not only once a leader tells it. It goes
    /// with other writes, and alone when nothing has been written for a while.
    pub commit: Option<Index>,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send it; it may get lost.
    Send {
        /// To this server with that very disk.
        to: Server,
        /// What to send.
        message: Message,
    },
    /// Write it, after the earlier ones.
    Persist(LogWrite),
    /// The entry is committed and on this server's disk: apply it. In order, without gap,
    /// each once in the life of the process.
    Apply(Entry),
    /// This server's log now begins with the leader's snapshot, on disk already: its state takes
    /// the place of what was applied. Entries after it follow. One of index 0 has no state: this
    /// server's decisions were contradicted (`recovery`), and its state begins anew.
    Restore(Arc<Snapshot>),
    /// Leader: up to here entries are applied, committed and on the disks of min(4, n) of the
    /// n live members: they may be answered. Counted anew, from the first entry, in each reign.
    Durable(Index),
    /// Everything committed when the read began has been applied: read now.
    ReadReady {
        /// Which read.
        id: ReadId,
    },
    /// This server stopped leading: the read is to be tried at the next leader.
    ReadFailed {
        /// Which read.
        id: ReadId,
    },
    /// The term or its leader, as far as known, changed. On disk already.
    Leader {
        /// The newest term.
        term: Term,
        /// Who leads, as far as this server knows.
        leader: Option<Server>,
    },
}

/// Names one read of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// What a server is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes entries from the leader, where there is one. Learners are followers.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks to be elected.
    Candidate,
    /// Appends.
    Leader,
}

/// Only the leader takes commands and reads. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node does not lead in term {}; ask {}", .term.0, name_of(.leader))]
pub struct NotLeader {
    /// The newest term known.
    pub term: Term,
    /// Who leads in it, as far as known.
    pub leader: Option<Server>,
}

fn name_of(leader: &Option<Server>) -> &str {
    leader
        .as_ref()
        .map_or("again when a leader is known", |l| l.node.as_str())
}

/// Why the voters stay as they are. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedChange {
    /// Only the leader changes the voters.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// The last change is not committed.
    #[error("the change of voters at entry {} is not committed yet", .0.0)]
    Pending(Index),
    /// The leader does not know yet what its predecessors committed (Ongaro's correction of 2015).
    #[error("no entry of term {} is committed yet", .0.0)]
    NoEntryOfThisTerm(Term),
    /// Two majorities might not meet.
    #[error("voters are added or removed one at a time, and one must stay")]
    NotOneServer,
    /// It would hold up every commit.
    #[error("{} does not have enough of the log yet to vote", .0.node)]
    NotCaughtUp(Server),
}

/// One server of the replicated log. See the module for its promises.
#[derive(Debug)]
pub struct Consensus {
    config: Config,
    me: Server,
    rng: Rng,

    term: Term,
    vote: Option<Server>,
    /// The hard state differs from what was handed out for writing.
    hard_state_dirty: bool,
    /// Once this write is done the hard state is on disk.
    hard_state_ticket: u64,
    next_ticket: u64,
    persisted_ticket: u64,
    log: Log,

    role: Role,
    leader: Option<Server>,
    /// When the leader of the current term was last heard.
    leader_heard: Option<Time>,
    election_deadline: Time,
    /// Since when the leader has failed as far as the members know; until another one is heard.
    leader_lost: Option<Time>,
    /// Who has granted what this server asks for.
    ballots: BTreeSet<Server>,
    /// When each voter and live member was last heard.
    heard: BTreeMap<Server, Time>,
    /// Live members with this one; empty until the driver has told them.
    live: BTreeSet<Server>,
    /// Voters that were live in this server's life and are not any more.
    lost: BTreeSet<Server>,
    /// A leader has said in this server's life that nothing is committed which it lacks.
    complete: bool,
    /// The live members are asked to do without the missing voters.
    founding: Option<Founding>,
    /// It formed the cluster, and may have to do so again.
    forming: bool,

    commit: Index,
    /// What the disk has of `commit`, or will have.
    written_commit: Index,
    /// Nothing has been written for a while, so that `commit` gets a write of its own.
    commit_due: bool,
    /// When entries last came from the leader.
    entries_taken: Time,
    applied: Index,
    /// Of the entries that were applied since the snapshot, roughly.
    applied_bytes: usize,
    /// Follower: up to here the log is the leader's.
    verified: Index,
    /// Follower: up to here the leader has been told that it is on disk.
    acknowledged: Index,
    /// Follower: the newest round of the leader. Leader: its newest round.
    round: u64,

    /// Leader: the other servers that get the log.
    peers: BTreeMap<Server, Progress>,
    /// Leader: the first entry of its reign.
    reign_start: Index,
    next_heartbeat: Time,
    /// Leader: entries that may be answered.
    durable: Index,
    /// Leader: no append has carried `round` yet.
    round_unsent: bool,
    reads: VecDeque<PendingRead>,
    failed_reads: VecDeque<ReadId>,
    next_read: u64,

    /// Follower: a snapshot that comes from the leader.
    incoming: Option<Incoming>,
    /// Follower: a whole one that goes to the disk.
    installing: Option<Installing>,
    /// Follower: one that is on disk and has not been put out.
    installed: Option<Arc<Snapshot>>,

    /// Messages with the write that each waits for.
    withheld: VecDeque<(u64, Server, Message)>,
    announced: (Term, Option<Server>),
    dropped: u64,
}

impl Consensus {
    /// The server `me` with what its disk gave back. It waits for a leader, for its election
    /// timeout, or for [`Consensus::bootstrap`].
    ///
    /// # Panics
    /// Where `recovered` has a gap: the journal must not give back a damaged log.
    pub fn new(
        config: Config,
        me: Server,
        recovered: Recovered,
        seed: u64,
        now: Time,
    ) -> Consensus {
        let start = recovered.snapshot.as_ref().map_or(Index(0), |s| s.index);
        let last = recovered.entries.last().map_or(start, |last| last.index);
        let commit = recovered.commit.min(last).max(start);
        let mut consensus = Consensus {
            config,
            me,
            rng: Rng::new(seed),
            term: recovered.hard_state.term,
            vote: recovered.hard_state.vote,
            hard_state_dirty: false,
            hard_state_ticket: 0,
            next_ticket: 1,
            persisted_ticket: 0,
            log: Log::recovered(recovered.snapshot, recovered.entries),
            role: Role::Follower,
            leader: None,
            leader_heard: None,
            election_deadline: now,
            leader_lost: None,
            ballots: BTreeSet::new(),
            heard: BTreeMap::new(),
            live: BTreeSet::new(),
            lost: BTreeSet::new(),
            complete: false,
            founding: None,
            forming: false,
            commit,
            written_commit: commit,
            commit_due: false,
            entries_taken: now,
            applied: start,
            applied_bytes: 0,
            verified: Index(0),
            acknowledged: Index(0),
            round: 0,
            peers: BTreeMap::new(),
            reign_start: Index(0),
            next_heartbeat: now,
            durable: Index(0),
            round_unsent: false,
            reads: VecDeque::new(),
            failed_reads: VecDeque::new(),
            next_read: 0,
            incoming: None,
            installing: None,
            installed: None,
            withheld: VecDeque::new(),
            announced: (recovered.hard_state.term, None),
            dropped: 0,
        };
        assert!(
            consensus.term >= consensus.log.last_term(),
            "the journal gave back {:?} with entries of {:?}: it is damaged; \
             remove this node's data directory and let it join anew",
            consensus.term,
            consensus.log.last_term(),
        );
        // Alone there is nobody whose reign could be disturbed, where nobody goes on without it.
        let is_alone = consensus.log.voters() == std::slice::from_ref(&consensus.me);
        if !is_alone || consensus.config.crash_stop {
            consensus.rearm_election(now);
        }
        consensus
    }

    /// Founds a cluster: the log begins with this server as the only voter, which then elects
    /// itself. Does nothing where there is a log already.
    pub fn bootstrap(&mut self, now: Time) {
        if self.log.last_index() > Index(0) {
            return;
        }
        let term = Term(self.term.0 + 1);
        self.log.append(Entry {
            term,
            index: Index(1),
            payload: Payload::Voters(vec![self.me.clone()]),
        });
        self.campaign_in(now, term);
    }

    /// The live members, this one included: those who do not vote get the log too, and their
    /// number decides how many disks an answer needs.
    pub fn handle_members(&mut self, now: Time, live: BTreeSet<Server>) {
        let was_live = |leader: &Server| self.live.contains(leader) && !live.contains(leader);
        let is_lost = self.leader.as_ref().is_some_and(was_live);
        let has_losses = self.note_losses(&live);
        if self.config.crash_stop && !self.complete && !live.is_subset(&self.live) {
            // One of them may lead.
            self.rearm_election(now);
        }
        self.live = live;
        if is_lost && self.role == Role::Follower {
            self.handle_lost_leader(now);
        }
        if has_losses && self.config.crash_stop && self.role == Role::Leader {
            // The others may do the same: see `recovery` about the terms of both.
            self.campaign(now);
        }
        self.sync_peers(now);
        let voters = self.log.voters();
        let live = &self.live;
        self.heard
            .retain(|server, _| live.contains(server) || voters.contains(server));
    }

    /// A message from `from`. A broken one is counted and dropped.
    pub fn handle_message(&mut self, now: Time, from: Server, message: Message) {
        let Message { term, content } = message;
        if from == self.me || term > TERM_MAX {
            self.dropped += 1;
            return;
        }
        if self.live.contains(&from) || self.log.voters().contains(&from) {
            self.heard.insert(from.clone(), now);
        }
        match content {
            Content::PreVote(candidacy) => self.handle_pre_vote(now, from, term, candidacy),
            Content::PreVoteReply { asked, granted } => {
                self.handle_pre_vote_reply(now, from, term, asked, granted);
            }
            Content::Vote(candidacy) => self.handle_vote(now, from, term, candidacy),
            Content::VoteReply { granted } => self.handle_vote_reply(now, from, term, granted),
            content @ Content::Append { .. } => self.handle_append(now, from, term, content),
            content @ Content::Snapshot { .. } => self.handle_snapshot(now, from, term, content),
            Content::SnapshotReceived {
                index,
                offset,
                round,
            } => self.handle_snapshot_received(now, &from, term, index, offset, round),
            Content::Appended {
                matched,
                verified,
                round,
            } => self.handle_appended(now, &from, term, matched, verified, round),
            Content::Rejected {
                previous_index,
                hint_index,
                hint_term,
                round,
            } => {
                let hint = (hint_index, hint_term);
                self.handle_rejected(now, &from, term, previous_index, hint, round);
            }
        }
    }

    /// The write `ticket`, and with it all earlier ones, is on disk.
    pub fn handle_persisted(&mut self, now: Time, ticket: u64) {
        if ticket <= self.persisted_ticket || ticket >= self.next_ticket {
            return;
        }
        self.persisted_ticket = ticket;
        self.log.finish_writes(ticket);
        self.finish_installing(ticket);
        match self.role {
            Role::Candidate => self.count_own_vote(now),
            Role::Leader => self.advance_commit(now),
            Role::Follower | Role::PreCandidate => self.acknowledge_persisted(),
        }
    }

    /// Does what is due. Harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.role == Role::Leader {
            if now >= self.quorum_deadline() {
                self.become_follower(now, None);
            } else if now >= self.next_heartbeat {
                self.next_heartbeat = now + self.config.heartbeat;
                self.peers.values_mut().for_each(Progress::want_append);
                self.commit_due = self.commit > self.written_commit;
            }
        } else if now >= self.election_deadline {
            self.leader = None;
            self.end_late_founding(now);
            let is_early = self.config.crash_stop && self.live.is_empty();
            let is_unwritten = self.role == Role::Candidate && !self.hard_state_is_persisted();
            if self.installing.is_some() || is_early || is_unwritten {
                // Its log is about to be another, perhaps; the vote of a further term would have
                // to wait for the slow disk even longer.
                self.rearm_election(now);
            } else if self.may_stand() {
                self.start_pre_vote(now);
            }
        }
    }

    /// When [`Consensus::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.role {
            Role::Leader if self.peers.is_empty() => None,
            Role::Leader => Some(self.next_heartbeat.min(self.quorum_deadline())),
            _ if self.may_stand() || self.leader.is_some() => Some(self.election_deadline),
            _ => None,
        }
    }

    /// The next thing to do; to be called until `None` after each `handle_*`, `propose*`,
    /// `read` and `bootstrap`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.next_announcement()
            .or_else(|| self.next_failed_read())
            .or_else(|| self.next_write())
            .or_else(|| self.next_withheld())
            .or_else(|| self.next_append())
            .or_else(|| self.next_restore())
            .or_else(|| self.next_apply())
            .or_else(|| self.next_durable())
            .or_else(|| self.next_read_ready())
    }

    fn next_announcement(&mut self) -> Option<Output> {
        if self.announced.0 == self.term && self.announced.1 == self.leader {
            return None;
        }
        if !self.hard_state_is_persisted() {
            return None;
        }
        self.announced = (self.term, self.leader.clone());
        Some(Output::Leader {
            term: self.term,
            leader: self.leader.clone(),
        })
    }

    fn next_write(&mut self) -> Option<Output> {
        // While another log takes the place of this one, nothing more of it is written.
        let install = self.installing.as_mut();
        let is_wanted = match &install {
            Some(installing) => installing.ticket.is_none(),
            None => self.log.has_unwritten(),
        };
        let commit_due = self.commit_due && install.is_none();
        if !self.hard_state_dirty && !is_wanted && !commit_due {
            return None;
        }
        if self.log.outstanding() >= self.config.writes_max {
            return None;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        // The place of this log is taken by another, in which `commit` may mean something else.
        let is_another = install.is_some();
        let unwritten = match install {
            Some(installing) => {
                self.log.note_write(ticket);
                Unwritten {
                    snapshot: installing.hand_out(ticket),
                    ..Unwritten::default()
                }
            }
            None => self.log.take_unwritten(ticket),
        };
        let replaces = unwritten.snapshot.is_some();
        let hard_state = (self.hard_state_dirty || replaces).then(|| HardState {
            term: self.term,
            vote: self.vote.clone(),
        });
        self.hard_state_dirty = false;
        self.commit_due = false;
        if replaces {
            self.written_commit = Index(0);
        }
        let commit = (self.commit > self.written_commit).then_some(self.commit);
        let commit = commit.filter(|_| !is_another);
        self.written_commit = commit.unwrap_or(self.written_commit);
        let hard_state = hard_state.filter(|_| !planted::is(Bug::TermNotPersisted));
        Some(Output::Persist(LogWrite {
            ticket,
            snapshot: unwritten.snapshot,
            hard_state,
            truncate_from: unwritten.truncate_from,
            entries: unwritten.entries,
            commit,
        }))
    }

    fn next_withheld(&mut self) -> Option<Output> {
        let (_, to, message) = self
            .withheld
            .pop_front_if(|(ticket, _, _)| *ticket <= self.persisted_ticket)?;
        Some(Output::Send { to, message })
    }

    fn next_apply(&mut self) -> Option<Output> {
        if self.applied >= self.commit.min(self.log.persisted()) {
            return None;
        }
        let entry = self.log.get(Index(self.applied.0 + 1))?.clone();
        self.applied = entry.index;
        self.applied_bytes += log::bytes_of(&entry);
        Some(Output::Apply(entry))
    }

    /// Changes what must not be forgotten; what was to be said in an older term is left unsaid.
    fn set_hard_state(&mut self, term: Term, vote: Option<Server>) {
        if term > self.term {
            self.withheld.clear();
        }
        self.term = term;
        self.vote = vote;
        self.hard_state_dirty = true;
        self.hard_state_ticket = self.next_ticket;
    }

    fn hard_state_is_persisted(&self) -> bool {
        self.hard_state_ticket <= self.persisted_ticket
    }

    /// Sends once the hard state is on disk.
    fn send(&mut self, to: Server, content: Content) {
        if self.withheld.len() >= WITHHELD_MAX {
            self.withheld.pop_front();
            self.dropped += 1;
        }
        let message = Message {
            term: self.term,
            content,
        };
        self.withheld
            .push_back((self.hard_state_ticket, to, message));
    }

    fn not_leader(&self) -> NotLeader {
        NotLeader {
            term: self.term,
            leader: self.leader.clone(),
        }
    }

    fn is_voter(&self) -> bool {
        self.log.voters().contains(&self.me)
    }

    /// Appends a command, as leader. Whether and where it stays is known when it is applied:
    /// another leader may put another entry at that index. The entries of one turn are written
    /// and sent together. The caller bounds how many commands wait for their answers.
    pub fn propose(&mut self, _now: Time, command: Arc<[u8]>) -> Result<Index, NotLeader> {
        if self.role != Role::Leader {
            return Err(self.not_leader());
        }
        Ok(self.append_as_leader(Payload::Command(command)))
    }

    /// Adds or removes one voter, as leader. The new voters count from now on, committed or not.
    pub fn propose_voters(
        &mut self,
        now: Time,
        voters: Vec<Server>,
    ) -> Result<Index, RefusedChange> {
        if self.role != Role::Leader {
            return Err(self.not_leader().into());
        }
        let hasty = planted::is(Bug::VotersInHaste);
        if self.log.voters_index() > self.commit && !hasty {
            return Err(RefusedChange::Pending(self.log.voters_index()));
        }
        if self.commit < self.reign_start && !hasty {
            return Err(RefusedChange::NoEntryOfThisTerm(self.term));
        }
        let wanted: BTreeSet<Server> = voters.iter().cloned().collect();
        let present: BTreeSet<Server> = self.log.voters().iter().cloned().collect();
        if wanted.is_empty()
            || wanted.len() != voters.len()
            || wanted.symmetric_difference(&present).count() != 1
        {
            return Err(RefusedChange::NotOneServer);
        }
        if let Some(added) = wanted.difference(&present).next()
            && !self.caught_up(added)
        {
            return Err(RefusedChange::NotCaughtUp(added.clone()));
        }
        let index = self.append_as_leader(Payload::Voters(wanted.into_iter().collect()));
        self.sync_peers(now);
        Ok(index)
    }

    /// The newest term that this server has heard of.
    pub fn term(&self) -> Term {
        self.term
    }

    /// What this server is at the moment.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Who leads in this term, as far as this server knows.
    pub fn leader(&self) -> Option<&Server> {
        self.leader.as_ref()
    }

    /// The voters in force here, sorted; empty before the first entry.
    pub fn voters(&self) -> &[Server] {
        self.log.voters()
    }

    /// Up to here entries are committed, as far as this server knows.
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The last entry of this server's log, committed or not.
    pub fn last_index(&self) -> Index {
        self.log.last_index()
    }

    /// Term of the last entry of this server's log.
    pub fn last_term(&self) -> Term {
        self.log.last_term()
    }

    /// The entry at `index` of this server's log, committed or not.
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        self.log.get(index)
    }

    /// The last entry in the snapshot that this server's log begins with, 0 without one.
    pub fn snapshot_index(&self) -> Index {
        self.log
            .snapshot()
            .map_or(Index(0), |snapshot| snapshot.index)
    }

    /// Broken messages dropped, and messages given up because a write took too long.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Panics where the state contradicts itself.
    pub fn check_invariants(&self) {
        self.log.check_invariants();
        assert!(self.term >= self.log.last_term());
        assert!(self.commit <= self.log.last_index());
        assert!(self.applied <= self.commit && self.applied <= self.log.persisted());
        assert!(self.verified <= self.log.last_index());
        assert!(self.acknowledged <= self.verified.max(self.log.persisted()));
        assert!(self.persisted_ticket < self.next_ticket);
        assert!(self.withheld.len() <= WITHHELD_MAX);
        if self.role == Role::Leader {
            assert_eq!(self.leader.as_ref(), Some(&self.me));
            assert!(self.hard_state_is_persisted() && self.durable <= self.applied);
            assert!(
                self.reign_start <= self.log.offset()
                    || self.log.term(self.reign_start) == Some(self.term)
            );
            assert!(self.installing.is_none());
            for progress in self.peers.values() {
                progress.check_invariants(self.log.last_index(), self.config.in_flight_max);
            }
        } else {
            assert!(self.peers.is_empty() && self.reads.is_empty());
            assert_ne!(self.leader.as_ref(), Some(&self.me));
        }
    }
}
