//! Whether this node computes, so that the repair of files can give way to that.
//!
//! Decides: for which part of its time a thread that copies works while the node computes.
//! Leaves to others: what is copied.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Shared;
use crate::types::Time;

/// A node that has computed computes again, as a rule, if its last batch is not older than this.
const RECENT: Duration = Duration::from_secs(1);
/// Longest pause at once; a sender waits for longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What the inference thread does.
#[derive(Debug, Default)]
pub(super) struct Busy {
    runs: AtomicBool,
    ended: AtomicU64,
}

impl Busy {
    /// A batch begins.
    pub(super) fn begin(&self) {
        self.runs.store(true, Ordering::Relaxed);
    }

    /// A batch has ended.
    pub(super) fn end(&self, now: Time) {
        self.ended.store(now.0.max(1), Ordering::Relaxed);
        self.runs.store(false, Ordering::Relaxed);
    }

    fn is_busy(&self, now: Time) -> bool {
        let ended = Time(self.ended.load(Ordering::Relaxed));
        self.runs.load(Ordering::Relaxed) || (ended.0 > 0 && ended + RECENT > now)
    }
}

/// Makes the calling thread pause while the node computes.
pub(super) struct Throttle<'a> {
    shared: &'a Shared,
    /// Percent of its time in which the thread works then.
    share: u32,
    since: Time,
}

impl<'a> Throttle<'a> {
    /// Work begins; `share` is 1 to 100.
    pub(super) fn new(shared: &'a Shared, share: u32) -> Throttle<'a> {
        let since = shared.clock.now();
        Throttle {
            shared,
            share,
            since,
        }
    }

    /// A piece of work is done: pauses for as long as the share demands.
    pub(super) fn pause(&mut self) {
        let now = self.shared.clock.now();
        if self.share < 100 && self.shared.busy.is_busy(now) && !self.shared.crew.is_stopping() {
            let worked = now.since(self.since);
            let pause = worked * (100 - self.share) / self.share;
            std::thread::sleep(pause.min(PAUSE_MAX));
        }
        self.since = self.shared.clock.now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_busy_while_a_batch_runs_and_for_a_second_after_it() {
        let second = |n| Time(0) + Duration::from_secs(n);
        let busy = Busy::default();
        assert!(!busy.is_busy(second(0)));
        busy.begin();
        assert!(busy.is_busy(second(9)));
        busy.end(second(10));
        assert!(busy.is_busy(second(10)) && !busy.is_busy(second(11)));
    }
}
