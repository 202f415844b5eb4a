//! What workers bring back: results, their rows on the way to the log, and the words that
//! they arrived.
//!
//! Decides: which rows of a result are wanted, which errors another node is to try, and how
//! long finished tasks wait for others so that one log entry has them all. Leaves to others:
//! what the node is given next (`choice`).

use super::backlog::{LOSSES_MAX, Verdict};
use super::jobs::{BATCH_MAX, Job, Jobs};
use super::{
    Active, GATHER, PROPOSAL_ROWS_MAX, ScheduleOutput, Scheduler, TEXT_MAX, Task, profile, usable,
};
use crate::types::{JobId, NodeId, Time};
use crate::wire::schedule::{AssignmentId, FinishedTask, Outcome, ScheduleMessage, TaskTimes};

impl Scheduler {
    /// A result. It counts whenever it comes; the log takes each input's row once.
    /// The status that comes with it is to be handled after it.
    pub(super) fn handle_done(
        &mut self,
        now: Time,
        jobs: &Jobs,
        node: &NodeId,
        id: AssignmentId,
        (job, mut rows): (JobId, Vec<(u32, Outcome)>),
        times: TaskTimes,
    ) {
        self.sync(jobs);
        let own = self.end_task(node, |task| task.id == id);
        self.note_arrival(now, node, id);
        let lost = self.lost.remove(&id);
        let dispatched = own.as_ref().map(|task| task.dispatched).or(lost);
        let elapsed = now.since(dispatched.unwrap_or(self.began));
        self.wake(false);
        let (Some(active), Some(found)) = (self.jobs.get_mut(&job), jobs.job(job)) else {
            return;
        };
        rows.truncate(BATCH_MAX as usize);
        let is_answer = |(_, outcome): &(u32, Outcome)| matches!(outcome, Outcome::Label { .. });
        let usable = match rows.iter().all(is_answer) {
            true => Vec::new(),
            false => usable(&self.nodes, &active.model),
        };
        let rows = judge_rows(now, active, found, node, id, rows, &usable);
        if let Some(task) = &own {
            let queries = task.inputs.len().max(1) as u64;
            let nanos = elapsed.as_nanos() as u64;
            active.slowest = active.slowest.max(nanos / queries).max(1);
            let finished = profile::Finished {
                queries,
                elapsed,
                times,
                turn: task.freed.map(|since| now.since(since)),
            };
            profile::add(&mut active.profiles, node, &finished);
        }
        let inputs = own.iter().flat_map(|task| &task.inputs);
        inputs.for_each(|input| active.backlog.release(found, *input));
        active.settle();
        // None is later than any time.
        let again = [self.again_at, active.backlog.poll_timeout()];
        self.again_at = again.into_iter().flatten().min();
        let decided = active.counted + active.backlog.proposed();
        self.reshape |= active.is_open_otherwise();
        if !rows.is_empty() {
            let is_last = decided == found.inputs.len() as u64;
            let (node, elapsed) = (node.clone(), elapsed.as_nanos() as u64);
            let task = FinishedTask {
                job,
                node,
                elapsed,
                rows,
            };
            self.gather(now, task, is_last);
        }
    }

    /// The worker is told that its result arrived: by its next assignment, which has the token
    /// of that result, or else by a word of its own.
    fn note_arrival(&mut self, now: Time, node: &NodeId, id: AssignmentId) {
        match self.nodes.get_mut(node) {
            Some(known) => {
                known.arrived = Some(id);
                known.freed = Some(now);
            }
            None => self.acknowledge(node.clone(), id),
        }
    }

    fn acknowledge(&mut self, to: NodeId, id: AssignmentId) {
        let message = ScheduleMessage::DoneAck { id };
        self.outbox.push_back(ScheduleOutput::Send { to, message });
    }

    /// Nobody is given anything now: tells those who wait that their results arrived.
    pub(super) fn acknowledge_all(&mut self) {
        let nodes = self.nodes.iter_mut();
        let arrived = nodes.filter_map(|(name, node)| Some((name.clone(), node.arrived.take()?)));
        for (to, id) in arrived.collect::<Vec<_>>() {
            self.acknowledge(to, id);
        }
    }

    /// `node` died while it ran `task`: an input that this has happened to too often gets its
    /// row, lest it takes one node after the other down.
    pub(super) fn blame(&mut self, now: Time, jobs: &Jobs, node: &NodeId, task: &Task) {
        let (Some(active), Some(job)) = (self.jobs.get_mut(&task.job), jobs.job(task.job)) else {
            return;
        };
        let mut rows = Vec::new();
        for input in &task.inputs {
            if active.backlog.lose(*input) && active.backlog.wants(job, *input) {
                active.backlog.propose(*input);
                let why = format!(
                    "{LOSSES_MAX} nodes failed while they classified it, the last one {node}"
                );
                rows.push((*input, Outcome::Error(why)));
            }
        }
        if !rows.is_empty() {
            let task = FinishedTask {
                job: task.job,
                node: node.clone(),
                elapsed: now.since(task.dispatched).as_nanos() as u64,
                rows,
            };
            self.gather(now, task, true);
        }
    }

    fn gather(&mut self, now: Time, task: FinishedTask, is_last: bool) {
        if self.finished.is_empty() {
            self.gathered = now + GATHER;
        }
        self.finished_rows += task.rows.len();
        if is_last || self.finished_rows >= PROPOSAL_ROWS_MAX {
            self.gathered = now;
        }
        self.finished.push_back(task);
    }

    /// When finished tasks go to the log.
    pub(super) fn gathered_at(&self) -> Option<Time> {
        (!self.finished.is_empty()).then_some(self.gathered)
    }

    /// The tasks finished since the last time, as far as they fit into one proposal.
    pub(super) fn next_proposal(&mut self, now: Time) -> Option<Vec<FinishedTask>> {
        self.gathered_at().filter(|at| *at <= now)?;
        let mut tasks = Vec::new();
        let mut rows = 0;
        while let Some(task) = self.finished.front() {
            rows += task.rows.len();
            if rows > PROPOSAL_ROWS_MAX && !tasks.is_empty() {
                break;
            }
            tasks.extend(self.finished.pop_front());
        }
        self.finished_rows = self.finished.iter().map(|task| task.rows.len()).sum();
        (!tasks.is_empty()).then_some(tasks)
    }
}

/// Splits a result into the rows for the log, which are now proposed, and errors that
/// another node is to try, which are not.
fn judge_rows(
    now: Time,
    active: &mut Active,
    job: &Job,
    node: &NodeId,
    id: AssignmentId,
    rows: Vec<(u32, Outcome)>,
    usable: &[&NodeId],
) -> Vec<(u32, Outcome)> {
    let backlog = &mut active.backlog;
    let mut proposed = Vec::new();
    for (input, outcome) in rows {
        if !backlog.wants(job, input) {
            continue;
        }
        if matches!(outcome, Outcome::Unread(_)) && backlog.put_off(now, job, input) {
            continue;
        }
        if matches!(outcome, Outcome::Error(_)) {
            match backlog.judge(input, node, id, usable) {
                Verdict::Row => {}
                Verdict::Known => continue,
                Verdict::Retry => {
                    backlog.release(job, input);
                    continue;
                }
            }
        }
        backlog.propose(input);
        proposed.push((input, shortened(outcome)));
    }
    proposed
}

/// The outcome with its text cut to [`TEXT_MAX`].
fn shortened(outcome: Outcome) -> Outcome {
    let cut = |mut text: String| {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text
    };
    match outcome {
        Outcome::Label { label, confidence } => Outcome::Label {
            label: cut(label),
            confidence,
        },
        Outcome::Error(reason) | Outcome::Unread(reason) => Outcome::Error(cut(reason)),
    }
}
