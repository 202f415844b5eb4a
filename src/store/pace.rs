//! How fast something has gone of late: the rate that `under` shows.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Time;

/// Span over which the rate is taken.
const SPAN: Duration = Duration::from_secs(10);
/// Notes that are kept; where more come, the span is shorter.
const NOTES_MAX: usize = 10_000;

/// What was done, and when.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    done: VecDeque<(Time, u64)>,
}

impl Pace {
    /// `bytes` more are done.
    pub fn note(&mut self, now: Time, bytes: u64) {
        self.done.push_back((now, bytes));
        let is_old = |(at, _): &(Time, u64)| *at + SPAN < now;
        while self.done.len() > NOTES_MAX || self.done.front().is_some_and(is_old) {
            self.done.pop_front();
        }
    }

    /// Bytes a second, over the last 10 s.
    pub fn rate(&self, now: Time) -> u64 {
        let recent = self.done.iter().filter(|(at, _)| *at + SPAN >= now);
        let (mut first, mut bytes) = (now, 0u64);
        for (at, more) in recent {
            first = first.min(*at);
            bytes += more;
        }
        // A single note says nothing of the time that it took.
        let span = now.since(first).max(Duration::from_secs(1));
        (bytes as f64 / span.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_ten_seconds() {
        let second = |n| Time(0) + Duration::from_secs(n);
        let mut pace = Pace::default();
        assert_eq!(pace.rate(second(5)), 0);
        (0..=20).for_each(|n| pace.note(second(n), 100));
        assert_eq!(pace.rate(second(20)), 110);
        assert_eq!(pace.rate(second(28)), 30, "300 bytes in 10 s");
        assert_eq!(pace.rate(second(31)), 0);
    }
}
