//! Which job a free node is given, and its assignment.
//!
//! Decides: which jobs are compared, where a job enters among them, and that the smallest
//! pass is served (promise P9; the bound is in [`fair`](super::fair)). Leaves to others:
//! which inputs of that job are taken ([`Backlog`](super::backlog::Backlog)).
//!
//! With each task go hints of inputs that the node may be given next. They bind nobody: the
//! job is chosen when the node is free, and another node takes them where nothing else is left.

use std::collections::BTreeSet;

use super::fair::{Pass, Share};
use super::jobs::{Job, Jobs};
use super::{
    ASSIGN_REPEAT, ASSIGNED_WINDOW, Active, Holders, Node, ScheduleOutput, Scheduler, Task, usable,
};
use crate::types::{JobId, NodeId, Time};
use crate::wire::schedule::{AssignedInput, Assignment, AssignmentId, Hint, ScheduleMessage};
use crate::wire::store::Target;

/// Jobs of which a node prepares a task ahead.
const HINTED_JOBS: usize = 4;

impl Scheduler {
    /// Finds out which jobs are open and compared, and lets those enter that became so.
    pub(super) fn reshape(&mut self, jobs: &Jobs) {
        if !std::mem::take(&mut self.reshape) {
            return;
        }
        let mut wanted = BTreeSet::new();
        for (id, active) in &mut self.jobs {
            let job = jobs.job(*id);
            if job.is_some_and(|job| active.has_work_for_all(job)) {
                wanted.insert(active.model.clone());
            }
        }
        let reported = self.nodes.values().filter(|node| node.reported);
        let working: Vec<&Node> = reported
            .filter(|node| !node.models.is_disjoint(&wanted))
            .collect();
        let mut entering = Vec::new();
        for (id, active) in &mut self.jobs {
            let job = jobs.job(*id);
            let has_work = job.is_some_and(|job| active.has_work_for_all(job));
            let mut loaded = working.iter().map(|n| n.models.contains(&active.model));
            let open = has_work && loaded.clone().any(|loaded| loaded);
            let compared = open && loaded.all(|loaded| loaded);
            if (open && !active.open) || (compared && !active.compared) {
                entering.push((*id, open, compared));
                (active.open, active.compared) = (false, false);
            } else {
                (active.open, active.compared) = (open, compared);
            }
        }
        for (id, open, compared) in entering {
            let smallest = self.smallest_share();
            if let Some(active) = self.jobs.get_mut(&id) {
                active.share.enter(smallest.as_ref());
                (active.open, active.compared) = (open, compared);
            }
        }
    }

    /// The share with the smallest pass among the compared jobs, else among the open ones.
    fn smallest_share(&self) -> Option<Share> {
        let least = |shares: &mut dyn Iterator<Item = &Active>| {
            let least = shares.min_by_key(|active| active.share.pass());
            least.map(|active| active.share.clone())
        };
        least(&mut self.jobs.values().filter(|active| active.compared))
            .or_else(|| least(&mut self.jobs.values().filter(|active| active.open)))
    }

    /// The job that is served next on `node`: the smallest pass, then the smallest number.
    pub(super) fn choose(&self, name: &NodeId, node: &Node) -> Option<JobId> {
        let mut best: Option<(JobId, &Active)> = None;
        for (id, active) in &self.jobs {
            let better = best.is_none_or(|(_, best)| active.share.pass() < best.share.pass());
            if better
                && node.models.contains(&active.model)
                && active.has_work_for(name, || usable(&self.nodes, &active.model))
            {
                best = Some((*id, active));
            }
        }
        best.map(|(id, _)| id)
    }

    /// Gives `node` a task of `job`.
    pub(super) fn dispatch(
        &mut self,
        now: Time,
        jobs: &Jobs,
        node: &NodeId,
        job: JobId,
        holders: &dyn Holders,
    ) -> Option<ScheduleOutput> {
        let active = self.jobs.get_mut(&job)?;
        let found = jobs.job(job)?;
        let held = |input: u32| holders.holds(node, &found.inputs[input as usize]);
        let count = active.batch as usize;
        let inputs = match active.backlog.has_failed_inputs() {
            false => active.backlog.take(node, &[], count, &held),
            true => {
                let usable = usable(&self.nodes, &active.model);
                active.backlog.take(node, &usable, count, &held)
            }
        };
        let queries = inputs.len() as u64;
        active.share.hand_out(queries);
        active.in_flight += queries;
        self.reshape |= !active.backlog.has_work_for_all(found);
        self.hand_over(now, jobs, node, job, inputs, holders)
    }

    /// Makes the assignment of `inputs`, which count as handed out already.
    pub(super) fn hand_over(
        &mut self,
        now: Time,
        jobs: &Jobs,
        node: &NodeId,
        job: JobId,
        inputs: Vec<u32>,
        holders: &dyn Holders,
    ) -> Option<ScheduleOutput> {
        let (token, active) = (self.nodes.get(node)?.token, self.jobs.get_mut(&job)?);
        let found = jobs.job(job)?;
        active.started = true;
        active.note_assigned(node, now);
        self.counter += 1;
        let mut table = Vec::new();
        let assigned = |input: &u32| assigned(*input, found, holders, &mut table);
        let mut assignment = Assignment {
            id: AssignmentId {
                term: self.term,
                counter: self.counter,
            },
            token,
            job,
            model: active.model.0.clone(),
            digest: active.model.1,
            inputs: inputs.iter().map(assigned).collect(),
            hints: Vec::new(),
            holders: Vec::new(),
        };
        let deadline = now + active.deadline(inputs.len() as u64);
        assignment.hints = self.hints(jobs, node, holders, &mut table);
        assignment.holders = table;
        let known = self.nodes.get_mut(node)?;
        // The token of this assignment says so.
        known.arrived = None;
        known.task = Some(Task {
            id: assignment.id,
            token,
            job,
            inputs,
            dispatched: now,
            freed: known.freed.take(),
            confirmed: false,
            late: false,
            copied: false,
            assignment: Some(assignment.clone()),
            repeat_at: now + ASSIGN_REPEAT,
            deadline,
        });
        let (to, term) = (node.clone(), self.term);
        let message = ScheduleMessage::Assign { term, assignment };
        Some(ScheduleOutput::Send { to, message })
    }

    /// What `node` should prepare beside what it was told before: a task of each of the jobs
    /// that are furthest behind now, as one of them is the next for it.
    fn hints(
        &mut self,
        jobs: &Jobs,
        node: &NodeId,
        holders: &dyn Holders,
        table: &mut Vec<Target>,
    ) -> Vec<Hint> {
        let Some(known) = self.nodes.get(node) else {
            return Vec::new();
        };
        let mut next: Vec<(Pass, JobId)> = Vec::with_capacity(HINTED_JOBS + 1);
        for (id, active) in self.jobs.iter().filter(|(_, active)| active.open) {
            let pass = active.share.pass();
            let place = next.partition_point(|(before, _)| *before <= pass);
            if place < HINTED_JOBS && known.models.contains(&active.model) {
                next.insert(place, (pass, *id));
                next.truncate(HINTED_JOBS);
            }
        }
        let mut hints = Vec::new();
        for (_, id) in next {
            let (Some(active), Some(job)) = (self.jobs.get_mut(&id), jobs.job(id)) else {
                continue;
            };
            active.backlog.has_work_for_all(job);
            let held = |input: u32| holders.holds(node, &job.inputs[input as usize]);
            let inputs = active.backlog.hint(node, &held);
            if !inputs.is_empty() {
                let assigned = |input: &u32| assigned(*input, job, holders, table);
                hints.push(Hint {
                    model: active.model.0.clone(),
                    digest: active.model.1,
                    inputs: inputs.iter().map(assigned).collect(),
                });
            }
        }
        hints
    }
}

impl Active {
    fn note_assigned(&mut self, node: &NodeId, now: Time) {
        let recent = |at: &Time| now.since(*at) < ASSIGNED_WINDOW;
        self.assigned.retain(|_, at| recent(at));
        self.assigned.insert(node.clone(), now);
    }
}

fn assigned(
    index: u32,
    job: &Job,
    holders: &dyn Holders,
    table: &mut Vec<Target>,
) -> AssignedInput {
    let input = &job.inputs[index as usize];
    AssignedInput {
        index,
        blob: input.blob,
        bytes: input.bytes,
        digest: input.digest,
        sources: holders.sources(input, table),
    }
}
