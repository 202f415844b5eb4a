//! How long queries took and how many came lately: pure statistics in bounded memory.
//!
//! Decides: what the columns of `job_stats` mean. A query's time is the time of the task
//! that it was part of, from dispatch to acknowledgement: a task of `n` queries that
//! took `t` seconds gives `n` samples of `t`. The seed's own table settles this against
//! `t / n`: its job of 10 queries in batches of 2 lasted 10 / 0.489572 = 20.4 s and has a
//! 99th percentile of 13.4 s; divided by two, one task would have taken 26.8 s, longer
//! than the job. Leaves to others: who measures the times.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::types::WallTime;

/// Longest time that is told apart, about 19 hours, so that sums of squares fit.
const MICROS_MAX: u64 = 1 << 36;
/// Times are told apart by their seven highest bits: they are known to 0.8 %.
const BITS: u32 = 7;
/// The window of the recent rate.
const WINDOW_MILLIS: u64 = 10_000;
/// Rows are counted together that come within this time.
const BUCKET_MILLIS: u64 = 50;

/// Tasks whose times are kept one by one; of a job with more there is a histogram.
const EXACT_MAX: usize = 500;

/// Times of a job's queries: exact sums, and, from [`EXACT_MAX`] tasks on, a histogram of at
/// most some thousand bins whose width is a fixed share of the time (as in HdrHistogram).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timing {
    /// Microseconds of a task, and its queries; empty once there are bins.
    samples: Vec<(u64, u64)>,
    /// Queries by the bin of their time.
    bins: BTreeMap<u16, u64>,
    queries: u64,
    sum: u128,
    squares: u128,
    shortest: u64,
    longest: u64,
}

impl Timing {
    /// A task of `queries` queries took `elapsed` nanoseconds.
    pub(super) fn add(&mut self, elapsed: u64, queries: u64) {
        let micros = (elapsed / 1_000).min(MICROS_MAX);
        let (wide, count) = (u128::from(micros), u128::from(queries));
        let first = self.queries == 0;
        self.shortest = if first {
            micros
        } else {
            self.shortest.min(micros)
        };
        self.longest = self.longest.max(micros);
        self.queries += queries;
        self.sum += wide * count;
        self.squares += wide * wide * count;
        self.samples.push((micros, queries));
        if self.samples.len() > EXACT_MAX || !self.bins.is_empty() {
            for (micros, queries) in self.samples.drain(..) {
                *self.bins.entry(bin(micros)).or_default() += queries;
            }
        }
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
        let hundredths = percent.min(100) * (self.queries - 1);
        let (rank, fraction) = (hundredths / 100, hundredths % 100);
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        let low = self.at_rank(&sorted, rank);
        let high = self.at_rank(&sorted, (rank + 1).min(self.queries - 1));
        (low + (high - low) * fraction as f64 / 100.0) / 1e6
    }

    /// Microseconds of query number `rank`, from 0, in the order of their times: its own, or
    /// the middle of its bin, within what has occurred.
    fn at_rank(&self, sorted: &[(u64, u64)], rank: u64) -> f64 {
        let mut seen = 0;
        let found = sorted.iter().find(|(_, queries)| {
            seen += queries;
            rank < seen
        });
        if let Some((micros, _)) = found {
            return *micros as f64;
        }
        let found = self.bins.iter().find(|(_, queries)| {
            seen += **queries;
            rank < seen
        });
        let middle = found.map_or(0.0, |(bin, _)| middle(*bin));
        middle.clamp(self.shortest as f64, self.longest as f64)
    }
}

/// The bin of a time: its highest bits, and how far they are shifted.
fn bin(micros: u64) -> u16 {
    let length = u64::BITS - micros.leading_zeros();
    let shift = length.saturating_sub(BITS + 1);
    ((shift << BITS) + (micros >> shift) as u32) as u16
}

/// The middle of a bin, in microseconds.
fn middle(bin: u16) -> f64 {
    let bin = u64::from(bin);
    let shift = (bin >> BITS).saturating_sub(1);
    let first = (bin - (shift << BITS)) << shift;
    first as f64 + ((1u64 << shift) - 1) as f64 / 2.0
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
