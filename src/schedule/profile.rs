//! Where the time of a job goes, by node: what `explain` tells.
//!
//! Decides: how the parts of a task are told apart. A task lasts from its dispatch to its
//! result, both by the leader's clock; waiting for inputs and inference are the worker's own
//! measurements, and what is left is the way there and back. A node's *turn* lasts from one
//! result to the next, where there was work for it all the time; what is not inference in a
//! turn is time in which the node idled. Leaves to others: the rows, and the log: a profile
//! is the leader's own and begins with its reign.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::types::{JobId, NodeId};
use crate::wire::client::NodeProfile;
use crate::wire::schedule::TaskTimes;

/// Ended jobs whose profiles are remembered; the oldest is forgotten.
const ENDED_MAX: usize = 100;

/// One job's profiles.
pub(super) type Profiles = BTreeMap<NodeId, NodeProfile>;

/// One task.
pub(super) struct Finished {
    pub(super) queries: u64,
    /// From dispatch to result.
    pub(super) elapsed: Duration,
    pub(super) times: TaskTimes,
    /// How long ago the node's last result came, where there has been work for it since.
    pub(super) turn: Option<Duration>,
}

/// Adds a task of `node`.
pub(super) fn add(profiles: &mut Profiles, node: &NodeId, task: &Finished) {
    let profile = profiles.entry(node.clone()).or_insert_with(|| NodeProfile {
        node: node.clone(),
        tasks: 0,
        queries: 0,
        elapsed: 0,
        times: TaskTimes::default(),
        turns: 0,
        idle: 0,
    });
    profile.tasks += 1;
    profile.queries += task.queries;
    profile.elapsed += nanos(task.elapsed);
    let (sum, times) = (&mut profile.times, &task.times);
    for (sum, part) in [
        (&mut sum.fetch, times.fetch),
        (&mut sum.decode, times.decode),
        (&mut sum.waited, times.waited),
        (&mut sum.inference, times.inference),
    ] {
        *sum = sum.saturating_add(part);
    }
    if let Some(turn) = task.turn.map(nanos) {
        profile.turns += turn;
        profile.idle += turn.saturating_sub(times.inference);
    }
}

fn nanos(span: Duration) -> u64 {
    span.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// The profiles of ended jobs.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended(VecDeque<(JobId, Profiles)>);

impl Ended {
    pub(super) fn add(&mut self, job: JobId, profiles: Profiles) {
        self.0.push_back((job, profiles));
        if self.0.len() > ENDED_MAX {
            self.0.pop_front();
        }
    }

    pub(super) fn get(&self, job: JobId) -> Option<&Profiles> {
        self.0.iter().find(|(id, _)| *id == job).map(|(_, it)| it)
    }
}
