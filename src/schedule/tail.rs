//! The tail of jobs: what free nodes do when nothing is left to hand out.
//!
//! Decides: which running task is given to a free node as well, so that one slow node does not
//! hold up a job. The first result wins; the other one counts for nothing (P7: the log takes
//! each input's row once). A task has one copy at most, and only where the free node should end
//! it clearly sooner, by what tasks of the job have taken on each node so far. Leaves to others:
//! tasks beyond their deadline, whose inputs are handed out again whatever is known (`mod`).

use std::time::Duration;

use super::jobs::Jobs;
use super::{Active, Holders, Node, ScheduleOutput, Scheduler, Task};
use crate::types::{JobId, NodeId, Time};
use crate::wire::client::NodeProfile;

/// A task that is only as late as a busy machine makes one is not repeated.
const HICCUP: Duration = Duration::from_millis(50);

/// A running task that a free node may take as well.
struct Candidate {
    /// When that is worth it.
    at: Time,
    /// How much longer it would take where it runs, by then.
    left: Duration,
    job: JobId,
    /// Who runs it, and who would.
    slow: NodeId,
    free: NodeId,
}

impl Scheduler {
    /// Gives a free node a copy of the running task that would end last, where that is worth it
    /// now; else notes when it may be.
    pub(super) fn speculate(
        &mut self,
        now: Time,
        jobs: &Jobs,
        holders: &dyn Holders,
    ) -> Option<ScheduleOutput> {
        let candidates = self.candidates(now, jobs);
        let due = candidates.iter().filter(|candidate| candidate.at <= now);
        let Some(chosen) = due.max_by_key(|candidate| candidate.left) else {
            self.speculate_at = candidates.iter().map(|candidate| candidate.at).min();
            return None;
        };
        let task = self.nodes.get_mut(&chosen.slow)?.task.as_mut()?;
        task.copied = true;
        let (active, job) = (self.jobs.get_mut(&chosen.job)?, jobs.job(chosen.job)?);
        let wanted = task.inputs.iter().copied();
        let inputs: Vec<u32> = wanted.filter(|i| active.backlog.wants(job, *i)).collect();
        for input in &inputs {
            active.backlog.activate(*input);
        }
        active.in_flight += inputs.len() as u64;
        active.settle();
        let output = self.hand_over(now, jobs, &chosen.free, chosen.job, inputs, holders);
        let copy = self.nodes.get_mut(&chosen.free)?.task.as_mut()?;
        copy.copied = true;
        output
    }

    /// For each running task that may be repeated, the free node that would be the first to end
    /// it.
    fn candidates(&self, now: Time, jobs: &Jobs) -> Vec<Candidate> {
        let free: Vec<(&NodeId, &Node)> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.reported && node.task.is_none())
            .collect();
        if free.is_empty() {
            return Vec::new();
        }
        let tasks = self.nodes.iter();
        let tasks = tasks.filter_map(|(name, node)| Some((name, node.task.as_ref()?)));
        tasks
            .filter_map(|(name, task)| self.candidate(now, jobs, &free, name, task))
            .collect()
    }

    fn candidate(
        &self,
        now: Time,
        jobs: &Jobs,
        free: &[(&NodeId, &Node)],
        slow: &NodeId,
        task: &Task,
    ) -> Option<Candidate> {
        let (active, job) = (self.jobs.get(&task.job)?, jobs.job(task.job)?);
        let backlog = &active.backlog;
        let is_tail = !active.paused && !backlog.is_open_to_all() && !backlog.has_fresh();
        let wanted = task.inputs.iter().any(|i| backlog.wants(job, *i));
        let suspect = task.inputs.iter().any(|i| backlog.has_losses(*i));
        if task.late || task.copied || !is_tail || !wanted || suspect {
            return None;
        }
        let queries = task.inputs.len() as u32;
        let own = active.expected(slow, queries)?;
        let can = free
            .iter()
            .filter(|(_, node)| node.models.contains(&active.model));
        let ends = can.filter_map(|(name, _)| Some((active.expected(name, queries)?, *name)));
        let (copy, free) = ends.min()?;
        // A quarter more, as a copy is not free: it takes a node from whatever comes next.
        let copy = copy + copy / 4;
        let elapsed = now.since(task.dispatched);
        let (at, left) = if own.saturating_sub(elapsed) > copy {
            (now, own - elapsed)
        } else if elapsed >= own {
            // Beyond what was expected it may last as long again.
            (task.dispatched + own.max(copy).max(HICCUP), elapsed)
        } else {
            (task.dispatched + own.max(copy).max(HICCUP), copy)
        };
        Some(Candidate {
            at,
            left,
            job: task.job,
            slow: slow.clone(),
            free: free.clone(),
        })
    }
}

impl Active {
    /// How long `node` should take for a task of so many queries: as its tasks of this job took
    /// so far, else as those of all nodes did. None before the first.
    fn expected(&self, node: &NodeId, queries: u32) -> Option<Duration> {
        let mean = |elapsed: u64, of: u64| Duration::from_nanos(elapsed / of.max(1)) * queries;
        if let Some(own) = self.profiles.get(node) {
            return Some(mean(own.elapsed, own.queries));
        }
        let sum = |part: fn(&NodeProfile) -> u64| self.profiles.values().map(part).sum::<u64>();
        let all = sum(|node| node.queries);
        (all > 0).then(|| mean(sum(|node| node.elapsed), all))
    }
}
