//! Arithmetic of majorities and of copies. Pure: numbers in, numbers out.
//!
//! Decides: how many are enough and what so many have reached. Leaves to others: who counts.

use crate::types::REPLICAS;

/// The smallest number of servers out of `count` that meets every other such number.
pub(super) fn majority(count: usize) -> usize {
    count / 2 + 1
}

/// How many live members must have an entry on disk before it may be answered.
pub(super) fn copies(live: usize) -> usize {
    live.min(REPLICAS)
}

/// The greatest value that at least `needed` of `values` have reached; `None` where
/// `needed` is 0 or there are fewer values.
pub(super) fn reached_by<T: Ord + Copy>(
    needed: usize,
    values: impl Iterator<Item = T>,
) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    if needed == 0 {
        return None;
    }
    values.sort_unstable();
    values.len().checked_sub(needed).map(|place| values[place])
}
