//! Where the time of a job goes, by node: what `explain` tells.
//!
//! Decides: how the parts of a task are told apart. A task lasts from its dispatch to its
//! result, both by the leader's clock; waiting for inputs and inference are the worker's own
//! measurements, and what is left is the way there and back. A node's *turn* lasts from one
//! result to the next, where there was work for it all the time; what is not inference in a
//! turn is time in which the node idled. Leaves to others: the rows, and the log: a profile
//! is the leader's own and begins with its reign.

use std::time::Duration;

use crate::types::Time;
use crate::wire::schedule::TaskTimes;

/// Sums over the tasks of one job on one node, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Tasks that brought a result.
    pub tasks: u64,
    /// Their inputs.
    pub queries: u64,
    /// From dispatch to result.
    pub elapsed: u64,
    /// The parts that the worker measured.
    pub times: TaskTimes,
    /// Turns between two results with work all the time.
    pub turns: u64,
    /// What was not inference in those turns.
    pub idle: u64,
}

impl Profile {
    /// Adds one task. `turn` is how long ago the node's last result came, where there has been
    /// work for it since.
    pub(super) fn add(
        &mut self,
        queries: u64,
        elapsed: Duration,
        times: TaskTimes,
        turn: Option<Duration>,
    ) {
        self.tasks += 1;
        self.queries += queries;
        self.elapsed += nanos(elapsed);
        let sum = &mut self.times;
        for (sum, part) in [
            (&mut sum.fetch, times.fetch),
            (&mut sum.decode, times.decode),
            (&mut sum.waited, times.waited),
            (&mut sum.inference, times.inference),
        ] {
            *sum = sum.saturating_add(part);
        }
        if let Some(turn) = turn.map(nanos) {
            self.turns += turn;
            self.idle += turn.saturating_sub(times.inference);
        }
    }

    /// Nanoseconds on the way from and to the coordinator, and there.
    pub fn reply(&self) -> u64 {
        let used = self.times.waited.saturating_add(self.times.inference);
        self.elapsed.saturating_sub(used)
    }
}

fn nanos(span: Duration) -> u64 {
    span.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// How long ago `since` was, if it was.
pub(super) fn turn(now: Time, since: Option<Time>) -> Option<Duration> {
    since.map(|since| now.since(since))
}
