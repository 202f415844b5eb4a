//! Which job a free node is given, and its assignment.
//!
//! Decides: which jobs are compared, where a job enters among them, and that the smallest
//! pass is served (promise P9; the bound is in [`fair`](super::fair)). Leaves to others:
//! which inputs of that job are taken ([`Backlog`](super::backlog::Backlog)).

use std::collections::BTreeSet;

use super::fair::Share;
use super::jobs::Jobs;
use super::{ASSIGNED_WINDOW, Active, Node, REPEAT, ScheduleOutput, Scheduler, Task};
use crate::types::{JobId, NodeId, Time};
use crate::wire::schedule::{AssignedInput, Assignment, AssignmentId, Input, ScheduleMessage};
use crate::wire::store::Target;

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
                && active.has_work_for(name, || self.usable(&active.model))
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
        sources: &dyn Fn(&Input) -> Vec<Target>,
        holds: &dyn Fn(&NodeId, &Input) -> bool,
    ) -> Option<ScheduleOutput> {
        let others: Vec<NodeId> = {
            let usable = self.usable(&self.jobs.get(&job)?.model);
            usable.into_iter().cloned().collect()
        };
        let others: Vec<&NodeId> = others.iter().collect();
        let found = jobs.job(job)?;
        let active = self.jobs.get_mut(&job)?;
        let input_of = |input: u32| &found.inputs[input as usize];
        let held = |input: u32| holds(node, input_of(input));
        let count = active.batch as usize;
        let inputs = active.backlog.take(node, &others, count, &held);
        let queries = inputs.len() as u64;
        active.share.hand_out(queries);
        active.in_flight += queries;
        active.started = true;
        active
            .assigned
            .retain(|_, at| now.since(*at) < ASSIGNED_WINDOW);
        active.assigned.insert(node.clone(), now);
        self.reshape |= !active.backlog.has_work_for_all(found);
        self.counter += 1;
        let known = self.nodes.get_mut(node)?;
        let assigned = |index: &u32| AssignedInput {
            index: *index,
            input: input_of(*index).clone(),
            sources: sources(input_of(*index)),
        };
        let assignment = Assignment {
            id: AssignmentId {
                term: self.term,
                counter: self.counter,
            },
            token: known.token,
            job,
            model: active.model.0.clone(),
            digest: active.model.1,
            inputs: inputs.iter().map(assigned).collect(),
        };
        known.task = Some(Task {
            id: assignment.id,
            token: known.token,
            job,
            inputs,
            dispatched: now,
            confirmed: false,
            late: false,
            assignment: Some(assignment.clone()),
            repeat_at: now + REPEAT,
            deadline: now + active.deadline(queries),
        });
        let (to, term) = (node.clone(), self.term);
        let message = ScheduleMessage::Assign { term, assignment };
        Some(ScheduleOutput::Send { to, message })
    }
}
