//! The node's side of scheduling: when it takes a task and how its result gets home.
//!
//! Decides: one task at a time (P8). An assignment is accepted only from the newest known
//! leader's term (fencing, P10), only while idle, only with the current token, and only
//! with a network that is loaded. Leaves to others: fetching, decoding and classifying.
//!
//! One result at most is kept, and sent again until the leader has it: it says so, or it
//! uses the raised token, which it can know only from the result. While a result is kept
//! it travels in place of the status, so that a status with a raised token tells a leader
//! that nothing is outstanding.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::REPEAT;
use crate::planted::{self, Bug};
use crate::types::{Digest, Incarnation, JobId, NodeId, Term, Time};
use crate::wire::schedule::{
    Assignment, AssignmentId, FailedModel, Outcome, ScheduleMessage, TaskTimes, WorkerStatus,
};

/// Networks that a worker names in its status, loaded and failed each; further ones are
/// not named, and so not used.
pub const STATUS_MODELS_MAX: usize = 1_024;

/// The bits of a token from here on are the node's incarnation.
pub(super) const LIFE_SHIFT: u32 = 32;

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerOutput {
    /// Run this; then `handle_batch_done`. Never given while one runs.
    Run(Assignment),
    /// Send to the leader (perhaps this node).
    ToLeader {
        /// Who leads, as far as this worker knows.
        leader: NodeId,
        /// `Status` or `Done`.
        message: ScheduleMessage,
    },
}

#[derive(Clone, Debug)]
struct Finished {
    id: AssignmentId,
    job: JobId,
    rows: Vec<(u32, Outcome)>,
    times: TaskTimes,
}

/// The worker of one node.
#[derive(Clone, Debug)]
pub struct Worker {
    me: NodeId,
    now: Time,
    term: Term,
    leader: Option<NodeId>,
    token: u64,
    running: Option<(AssignmentId, JobId, Vec<u32>)>,
    result: Option<Finished>,
    loaded: BTreeSet<(String, Digest)>,
    failed: BTreeMap<(String, Digest), (u64, String)>,
    runs: VecDeque<Assignment>,
    report_due: bool,
    report_at: Time,
    refused: u64,
}

impl Worker {
    /// An idle worker without networks that knows no leader.
    pub fn new(me: NodeId, now: Time) -> Worker {
        Worker {
            me,
            now,
            term: Term(0),
            leader: None,
            token: 0,
            running: None,
            result: None,
            loaded: BTreeSet::new(),
            failed: BTreeMap::new(),
            runs: VecDeque::new(),
            report_due: false,
            report_at: now,
            refused: 0,
        }
    }

    /// The node has this incarnation. Must be called before the first leader is known, so
    /// that the tokens of this life are above those of the node's earlier lives, and a
    /// leader that missed the restart sees that the old task is over. Harmless at any time.
    pub fn handle_life(&mut self, now: Time, incarnation: Incarnation) {
        self.now = now;
        self.token = self.token.max(incarnation.0 << LIFE_SHIFT);
    }

    /// Whether a task runs now.
    pub fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// Messages that were refused: of a deposed leader, while busy, with a wrong token,
    /// or for a network that is not loaded.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Consensus has this term, and this leader if one is known.
    pub fn handle_leader(&mut self, now: Time, term: Term, leader: Option<NodeId>) {
        self.now = now;
        if term < self.term || (term == self.term && leader.is_none()) {
            return;
        }
        if term > self.term || leader != self.leader {
            self.term = term;
            self.leader = leader;
            self.report_due = true;
        }
    }

    /// A message from the scheduler of `from`.
    pub fn handle_message(&mut self, now: Time, from: &NodeId, message: ScheduleMessage) {
        self.now = now;
        match message {
            ScheduleMessage::Query { term } => {
                if self.admits(from, term) {
                    self.report_due = true;
                }
            }
            ScheduleMessage::Assign { term, assignment } => {
                if self.admits(from, term) {
                    self.handle_assign(assignment);
                }
            }
            ScheduleMessage::DoneAck { id } => {
                self.result.take_if(|result| result.id == id);
            }
            // For the leader's side.
            ScheduleMessage::Status(_) | ScheduleMessage::Done { .. } => self.refused += 1,
        }
    }

    /// Fencing: whether `term` is not below the highest one seen, which it may raise.
    fn admits(&mut self, from: &NodeId, term: Term) -> bool {
        if term < self.term {
            self.refused += 1;
            return false;
        }
        self.handle_leader(self.now, term, Some(from.clone()));
        true
    }

    fn handle_assign(&mut self, assignment: Assignment) {
        let model = (assignment.model.clone(), assignment.digest);
        let busy = self.running.is_some() || assignment.token != self.token;
        if busy && !planted::is(Bug::TwoTasksAtOnce)
            || assignment.inputs.is_empty()
            || !self.loaded.contains(&model)
        {
            let running = self.running.as_ref();
            let repeated = running.is_some_and(|(id, ..)| *id == assignment.id);
            self.refused += u64::from(!repeated);
            // The leader sees how things stand.
            self.report_due = true;
            return;
        }
        // The token was in the result: the leader has it.
        self.result = None;
        // The next report shows the task, or its result does before that.
        self.report_due = false;
        self.report_at = self.now + REPEAT;
        let inputs = assignment.inputs.iter().map(|input| input.index).collect();
        self.running = Some((assignment.id, assignment.job, inputs));
        self.runs.push_back(assignment);
    }

    /// The task that ran has ended, with a row for each of its inputs.
    pub fn handle_batch_done(
        &mut self,
        now: Time,
        id: AssignmentId,
        rows: Vec<(u32, Outcome)>,
        times: TaskTimes,
    ) {
        self.now = now;
        let Some((_, job, _)) = self.running.take_if(|running| running.0 == id) else {
            self.refused += 1;
            return;
        };
        self.token += 1;
        self.result = Some(Finished {
            id,
            job,
            rows,
            times,
        });
        self.report_due = true;
    }

    /// A network was loaded and warmed, or could not be, for this reason; `publication` is the
    /// newest one under its name when that was tried.
    pub fn handle_model_loaded(
        &mut self,
        now: Time,
        name: &str,
        digest: Digest,
        publication: u64,
        result: Result<(), String>,
    ) {
        self.now = now;
        let model = (name.to_string(), digest);
        match result {
            Ok(()) => {
                self.failed.remove(&model);
                self.loaded.insert(model);
            }
            Err(reason) => {
                self.loaded.remove(&model);
                self.failed.insert(model, (publication, reason));
            }
        }
        self.report_due = true;
    }

    /// A network is no longer loaded, or its failure is not of interest any more.
    pub fn handle_model_dropped(&mut self, now: Time, name: &str, digest: Digest) {
        self.now = now;
        let model = (name.to_string(), digest);
        let known = self.loaded.remove(&model) | self.failed.remove(&model).is_some();
        self.report_due |= known;
    }

    /// The clock has reached `poll_timeout`.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        self.report_due |= self.leader.is_some() && self.report_at <= now;
    }

    /// The next output.
    pub fn poll_output(&mut self) -> Option<WorkerOutput> {
        if let Some(assignment) = self.runs.pop_front() {
            return Some(WorkerOutput::Run(assignment));
        }
        let leader = self.leader.clone().filter(|_| self.report_due)?;
        self.report_due = false;
        self.report_at = self.now + REPEAT;
        let status = self.status();
        let message = match &self.result {
            Some(result) => ScheduleMessage::Done {
                id: result.id,
                job: result.job,
                rows: result.rows.clone(),
                times: result.times,
                status,
            },
            None => ScheduleMessage::Status(status),
        };
        Some(WorkerOutput::ToLeader { leader, message })
    }

    /// When [`Worker::handle_timeout`] is due, if ever.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.leader.as_ref().map(|_| self.report_at)
    }

    /// What this worker says of itself.
    pub fn status(&self) -> WorkerStatus {
        let loaded = self.loaded.iter().take(STATUS_MODELS_MAX);
        let failed = self.failed.iter().take(STATUS_MODELS_MAX);
        WorkerStatus {
            term: self.term,
            token: self.token,
            running: self.running.clone(),
            models: loaded.cloned().collect(),
            failed_models: failed
                .map(|((name, digest), (publication, reason))| FailedModel {
                    name: name.clone(),
                    digest: *digest,
                    publication: *publication,
                    reason: reason.clone(),
                })
                .collect(),
        }
    }

    /// This node's name.
    pub fn me(&self) -> &NodeId {
        &self.me
    }
}
