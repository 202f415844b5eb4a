//! Shares of jobs: stride scheduling in exact arithmetic.
//!
//! Decides: how far a job has been served relative to its weight, where it enters among
//! the others, and by how much two jobs may differ. A job's pass is
//! `(completed + in flight) / weight + offset`; whoever has the smallest is served next
//! (Waldspurger and Weihl, "Stride Scheduling", MIT/LCS/TM-528, 1995, section 2). The
//! offset is chosen when a job enters, so that it neither catches up for the time when it
//! was not there nor waits for the others. Leaves to others: which jobs are compared.
//!
//! **The bound.** For any two compared jobs `j`, `k`, whoever of them is ahead:
//!
//! `pass(j) - pass(k) <= batch(j)/weight(j) + surplus(j)/weight(j) + credit(k)/weight(k)`
//!
//! where `credit(k)` are queries of `k` that were handed out, failed, were given back and
//! have not been made up by later hand-outs, and `surplus(j)` are queries of `j` that were
//! finished without having been handed out (the late result of a node thought dead) since
//! its last hand-out. Without failures both are zero, and the passes differ by at most one
//! batch. Proof by induction: a hand-out goes to the smallest pass and adds at most
//! `batch/weight`; a credit lowers `pass(k)` and raises `credit(k)` by the same amount; a
//! surplus raises `pass(j)` and `surplus(j)` alike; who enters takes pass and credit of
//! the one with the smallest pass. [`Share::is_within_bound`] asserts it.

use std::cmp::Ordering;

/// Units of a pass in one query per weight 1. Offsets are rounded up to one unit.
const SCALE: i128 = 1 << 20;

/// How far a job has been served: a rational number, compared exactly.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    numerator: i128,
    weight: u32,
}

impl Ord for Pass {
    fn cmp(&self, other: &Pass) -> Ordering {
        let left = self.numerator * i128::from(other.weight);
        left.cmp(&(other.numerator * i128::from(self.weight)))
    }
}

impl PartialOrd for Pass {
    fn partial_cmp(&self, other: &Pass) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pass {
    fn eq(&self, other: &Pass) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pass {}

/// A job's account.
#[derive(Clone, Debug)]
pub struct Share {
    batch: u32,
    weight: u32,
    served: u64,
    offset: i128,
    credit: u64,
    surplus: u64,
}

impl Share {
    /// The account of a job that has been served `served` queries; its pass starts at zero
    /// (up to one unit of rounding).
    pub fn new(batch: u32, weight: u32, served: u64) -> Share {
        let weight = weight.max(1);
        let mut share = Share {
            batch,
            weight,
            served,
            offset: 0,
            credit: 0,
            surplus: 0,
        };
        share.offset = -(share.scaled() / i128::from(weight));
        share
    }

    /// The share relative to other jobs.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Gives another share. Its pass means nothing before it [enters](Share::enter) anew.
    pub fn set_weight(&mut self, weight: u32) {
        self.weight = weight.max(1);
    }

    /// Most queries in one hand-out.
    pub fn batch_size(&self) -> u32 {
        self.batch
    }

    /// Queries completed and in flight.
    pub fn served(&self) -> u64 {
        self.served
    }

    fn scaled(&self) -> i128 {
        i128::from(self.served) * SCALE
    }

    /// `(completed + in flight) / weight + offset`.
    pub fn pass(&self) -> Pass {
        Pass {
            numerator: self.offset * i128::from(self.weight) + self.scaled(),
            weight: self.weight,
        }
    }

    /// `queries` queries are handed out, at most one batch, because the pass is the smallest.
    pub fn hand_out(&mut self, queries: u64) {
        self.served += queries;
        self.credit = self.credit.saturating_sub(queries);
        self.surplus = 0;
    }

    /// Completed and in flight are `served` now, for another reason than a hand-out:
    /// fewer where a task failed, more where a lost task's result came after all.
    pub fn settle(&mut self, served: u64) {
        if served < self.served {
            self.credit += self.served - served;
        } else {
            let more = served - self.served;
            self.credit = self.credit.saturating_sub(more);
            self.surplus += more;
        }
        self.served = served;
    }

    /// Enters at the pass of `smallest`, or keeps its own where nobody is there.
    pub fn enter(&mut self, smallest: Option<&Share>) {
        (self.credit, self.surplus) = (0, 0);
        let Some(other) = smallest else { return };
        let (own, theirs) = (i128::from(self.weight), i128::from(other.weight));
        let difference = other.scaled() * own - self.scaled() * theirs;
        self.offset = other.offset + ceiling(difference, own * theirs);
        let credit = i128::from(other.credit) * own;
        self.credit = ceiling(credit, theirs) as u64;
    }

    /// Whether this job is ahead of `behind` by no more than the bound of this module.
    pub fn is_within_bound(&self, behind: &Share) -> bool {
        let allowed = i128::from(self.batch) + i128::from(self.surplus);
        let high = self.pass().numerator - allowed * SCALE;
        let low = behind.pass().numerator + i128::from(behind.credit) * SCALE;
        high * i128::from(behind.weight) <= low * i128::from(self.weight)
    }
}

/// `numerator / denominator` rounded up; the denominator is positive.
fn ceiling(numerator: i128, denominator: i128) -> i128 {
    numerator.div_euclid(denominator) + i128::from(numerator.rem_euclid(denominator) != 0)
}
