//! How long queries took and how many came lately: pure statistics in bounded memory.
//!
//! Decides: what the columns of `job_stats` mean. A query's time is the time of the task
//! that it was part of, from dispatch to acknowledgement: a task of `n` queries that
//! took `t` seconds gives `n` samples of `t`. The seed's own table settles this against
//! `t / n`: its job of 10 queries in batches of 2 lasted 10 / 0.489572 = 20.4 s and has a
//! 99th percentile of 13.4 s; divided by two, one task would have taken 26.8 s, longer
//! than the job. Leaves to others: who measures the times.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::types::WallTime;

/// Distinct task times that are kept exactly; beyond, neighbours are merged in pairs.
const SAMPLES_MAX: usize = 100_000;
/// Longest time that is told apart, about 19 hours, so that sums of squares fit.
const MICROS_MAX: u64 = 1 << 36;
/// The window of the recent rate.
const WINDOW_MILLIS: u64 = 10_000;
/// Rows are counted together that come within this time.
const BUCKET_MILLIS: u64 = 10;

/// Times of a job's queries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timing {
    /// Microseconds of a task, and its queries.
    samples: Vec<(u64, u64)>,
    queries: u64,
    sum: u128,
    squares: u128,
}

impl Timing {
    /// A task of `queries` queries took `elapsed` nanoseconds.
    pub(super) fn add(&mut self, elapsed: u64, queries: u64) {
        let micros = (elapsed / 1_000).min(MICROS_MAX);
        let (wide, count) = (u128::from(micros), u128::from(queries));
        self.queries += queries;
        self.sum += wide * count;
        self.squares += wide * wide * count;
        self.samples.push((micros, queries));
        if self.samples.len() > SAMPLES_MAX {
            self.merge_neighbours();
        }
    }

    /// Halves the samples: mean and deviation stay exact, percentiles move by at most
    /// the gap between neighbours among 100,000.
    fn merge_neighbours(&mut self) {
        self.samples.sort_unstable();
        let merge = |pair: &[(u64, u64)]| {
            let queries: u64 = pair.iter().map(|sample| sample.1).sum();
            let weighted = |sample: &(u64, u64)| u128::from(sample.0) * u128::from(sample.1);
            let total: u128 = pair.iter().map(weighted).sum();
            ((total / u128::from(queries.max(1))) as u64, queries)
        };
        self.samples = self.samples.chunks(2).map(merge).collect();
    }

    /// Mean in seconds; 0 without samples.
    pub(super) fn mean(&self) -> f64 {
        self.sum as f64 / self.queries.max(1) as f64 / 1e6
    }

    /// Standard deviation of the population in seconds.
    pub(super) fn std(&self) -> f64 {
        let count = u128::from(self.queries.max(1));
        // n * sum(x^2) - sum(x)^2 is exact and not negative: no cancellation in floats.
        let spread = (count * self.squares).saturating_sub(self.sum * self.sum);
        (spread as f64).sqrt() / count as f64 / 1e6
    }

    /// The percentile `percent` in seconds, linear between neighbouring queries.
    pub(super) fn percentile(&self, percent: u64) -> f64 {
        if self.queries == 0 {
            return 0.0;
        }
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        let hundredths = percent.min(100) * (self.queries - 1);
        let (rank, fraction) = (hundredths / 100, hundredths % 100);
        let low = at_rank(&sorted, rank) as f64;
        let high = at_rank(&sorted, (rank + 1).min(self.queries - 1)) as f64;
        (low + (high - low) * fraction as f64 / 100.0) / 1e6
    }
}

/// The value of query number `rank`, from 0, in samples sorted by time.
fn at_rank(sorted: &[(u64, u64)], rank: u64) -> u64 {
    let mut seen = 0;
    for (micros, queries) in sorted {
        seen += queries;
        if rank < seen {
            return *micros;
        }
    }
    sorted.last().map_or(0, |sample| sample.0)
}

/// Rows of the last 10 seconds by the leaders' wall clock stamps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecentRows {
    /// Start of a bucket in milliseconds, ascending, and its rows.
    buckets: VecDeque<(u64, u64)>,
}

impl RecentRows {
    /// `rows` rows were committed `at`; stamps must not go backwards.
    pub(super) fn add(&mut self, at: WallTime, rows: u64) {
        let start = at.0 / BUCKET_MILLIS * BUCKET_MILLIS;
        match self.buckets.back_mut() {
            Some(last) if last.0 >= start => last.1 += rows,
            _ => self.buckets.push_back((start, rows)),
        }
        let oldest = start.saturating_sub(WINDOW_MILLIS);
        while self.buckets.front().is_some_and(|first| first.0 < oldest) {
            self.buckets.pop_front();
        }
    }

    /// Rows a second over the 10 seconds before `now`.
    pub(super) fn rate(&self, now: WallTime) -> f64 {
        let recent = |bucket: &&(u64, u64)| bucket.0 + WINDOW_MILLIS > now.0;
        let rows: u64 = self.buckets.iter().filter(recent).map(|b| b.1).sum();
        rows as f64 * 1_000.0 / WINDOW_MILLIS as f64
    }
}
