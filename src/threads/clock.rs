//! The only reader of clocks.
//!
//! Decides: where time comes from. Leaves to others: everything that depends on it;
//! cores and the other threads get [`Time`] as a value.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::types::{Time, WallTime};

/// Monotonic time since the process started its clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that shows zero now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> Time {
        Time(self.0.elapsed().as_nanos() as u64)
    }

    /// How long to wait for `due`, at most `longest`; zero where it has passed.
    pub fn until(&self, due: Option<Time>, longest: Duration) -> Duration {
        due.map_or(longest, |due| due.since(self.now()).min(longest))
    }

    /// The wall clock, for people.
    pub fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        WallTime(since.map_or(0, |since| since.as_millis() as u64))
    }
}
