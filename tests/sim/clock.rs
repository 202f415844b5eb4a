//! The clocks of the simulated machines: each runs a little fast or slow.
//!
//! Decides: how a node's own time follows from the simulation's. Leaves to others: pauses,
//! during which a node's clock goes on and the node does nothing (`cluster`).

use dlc::types::{Rng, Time, WallTime};

/// Largest drift, in parts per million: 1 %.
const DRIFT_PPM_MAX: u64 = 10_000;
const MILLION: i128 = 1_000_000;
/// Wall time at which every simulation starts: an arbitrary day.
const WALL_START: u64 = 1_700_000_000_000;

/// The clock of one life of a process: 0 at its start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Time,
    drift_ppm: i64,
}

impl Clock {
    /// A clock that starts at `now` with a drift drawn from `random`.
    pub fn start(now: Time, random: &mut Rng) -> Clock {
        let drift = random.below(2 * DRIFT_PPM_MAX + 1) as i64 - DRIFT_PPM_MAX as i64;
        Clock {
            started: now,
            drift_ppm: drift,
        }
    }

    /// What the process reads at the simulation's time `global`.
    pub fn local(&self, global: Time) -> Time {
        let span = i128::from(global.0.saturating_sub(self.started.0));
        Time((span * (MILLION + i128::from(self.drift_ppm)) / MILLION) as u64)
    }

    /// The first moment at which the process reads `local` or later.
    pub fn global(&self, local: Time) -> Time {
        let rate = MILLION + i128::from(self.drift_ppm);
        let span = (i128::from(local.0) * MILLION + rate - 1) / rate;
        let span = u64::try_from(span).unwrap_or(u64::MAX);
        Time(self.started.0.saturating_add(span))
    }

    /// The wall clock of every machine at `global`; only for people.
    pub fn wall(global: Time) -> WallTime {
        WallTime(WALL_START + global.0 / 1_000_000)
    }
}
