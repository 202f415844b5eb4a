//! Spans and bounds of membership.
//!
//! Decides: the defaults, and the relations between them that the promises P1 and P2
//! rest on. Leaves to others: what is done when one of them runs out.

use std::time::Duration;

use crate::types::SUCCESSORS;

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Longest time after which a silent failure must be known (promise P1).
pub const DETECTION_MAX: Duration = Duration::from_secs(5);

/// Spans and bounds of a member. All members of a cluster should have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Each of the successors is pinged this often. Default 1 s. Longer: less traffic,
    /// later detection by as much.
    pub probe_period: Duration,
    /// A ping that is not answered is sent again this often. Default 100 ms.
    pub retry_gap: Duration,
    /// After this long without an answer, helpers are asked to probe too. Default 300 ms; well
    /// above the round trip, below `probe_window`.
    pub ack_timeout: Duration,
    /// From the first unanswered ping to the accusation. Default 1,750 ms: a process that
    /// is paused for 1 s is not even suspected where the pings before its pause were lost.
    pub probe_window: Duration,
    /// From the first unanswered ping to the attempt over TCP, and from one to the next.
    /// Default 600 ms.
    pub connect_after: Duration,
    /// A member that heard nobody at all during its probe doubts itself and goes on
    /// probing for this long before it accuses. Default 300 ms.
    pub doubt_span: Duration,
    /// Each point of ill health (a pause, a probe during which nobody was heard) lengthens the
    /// probe window by this much. Default 100 ms. Source: Lifeguard, section 3.1.
    pub health_step: Duration,
    /// Most points of ill health. Default 3.
    pub health_max: u32,
    /// A suspicion that is neither refuted nor agreed with for this long removes. Default 1,500 ms.
    pub suspicion_span: Duration,
    /// The same where no third member is there to agree, or the suspect's own host said that the
    /// process is gone. Default 300 ms.
    pub suspicion_span_lone: Duration,
    /// Members asked in each round of indirect probes. Default 3.
    pub helpers: usize,
    /// Helpers are drawn from this many nearest predecessors of the target. Default 6; with it a
    /// member whose three monitors died with it still has somebody who probes it.
    pub helper_reach: usize,
    /// A timer that fires later than this was not late by chance: the process was paused
    /// and its evidence is void. Default 300 ms.
    pub pause_tolerance: Duration,
    /// Views that differ for this long are exchanged in full. Default 2 s.
    pub sync_after: Duration,
    /// A removed member is pinged this often, one at a time, so that who was cut off learns of it.
    /// Default 1 s, and five times as long once the last removal is older than a minute.
    pub reconnect_period: Duration,
    /// Each member announces itself to each introducer this often. Default 1 s.
    pub announce_period: Duration,
    /// The first of the introducers may permit a new cluster. Default true; false where the one
    /// that the user named first has no address and is not among them.
    pub first_permits: bool,
    /// First wait between two attempts to join; doubles. Default 100 ms.
    pub join_backoff: Duration,
    /// Longest wait between two attempts to join. Default 1 s.
    pub join_backoff_max: Duration,
    /// An exchange over TCP without a result for this long has failed, and a permission to form a
    /// cluster is void. Default 3 s; must stay below the introducer's `forming_span`.
    pub exchange_timeout: Duration,
    /// A leaving member tells everyone this many times, `leave_gap` apart. Default 3.
    pub leave_rounds: u32,
    /// Gap between those. Default 100 ms.
    pub leave_gap: Duration,
    /// Removed members that are remembered; the oldest is forgotten. Default 1,000.
    pub tombstones_max: usize,
    /// How long they are remembered. Default 24 h.
    pub tombstone_span: Duration,
    /// Live members that are admitted; further ones are ignored and counted. Default 4,096.
    pub members_max: usize,
    /// Targets probed for others at once; further requests are ignored and counted. Default 32.
    pub asked_max: usize,
    /// Entries of the evidence log; the oldest goes. Default 1,000.
    pub events_max: usize,
    /// An update rides on this many pings and acks of each member. Default 12: twice to each of
    /// the six neighbours on the ring.
    pub rides: u32,
    /// It rides no longer than this. Default 10 s.
    pub rides_span: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            probe_period: millis(1000),
            ack_timeout: millis(300),
            retry_gap: millis(100),
            probe_window: millis(1750),
            connect_after: millis(600),
            doubt_span: millis(300),
            health_step: millis(100),
            health_max: 3,
            suspicion_span: millis(1500),
            suspicion_span_lone: millis(300),
            helpers: 3,
            helper_reach: 2 * SUCCESSORS,
            pause_tolerance: millis(300),
            sync_after: millis(2000),
            reconnect_period: millis(1000),
            announce_period: millis(1000),
            first_permits: true,
            join_backoff: millis(100),
            join_backoff_max: millis(1000),
            exchange_timeout: millis(3000),
            leave_rounds: 3,
            leave_gap: millis(100),
            tombstones_max: 1000,
            tombstone_span: Duration::from_secs(24 * 3600),
            members_max: 4096,
            asked_max: 32,
            events_max: 1000,
            rides_span: millis(10_000),
            rides: 4 * SUCCESSORS as u32,
        }
    }
}

/// A configuration that cannot keep the promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A span or bound is zero that must not be.
    #[error("membership: {0} must not be zero")]
    Zero(&'static str),
    /// Two spans stand in the wrong order.
    #[error("membership: {0} must be shorter than {1}")]
    Order(&'static str, &'static str),
    /// A silent failure could stay unknown for more than [`DETECTION_MAX`].
    #[error("membership: a silent failure could stay unknown for {0:?}, more than 5 s")]
    Slow(Duration),
}

impl Config {
    /// The longest time after which a silent failure is known at its monitors.
    pub fn detection_bound(&self) -> Duration {
        self.probe_period
            + self.probe_window
            + self.health_step * self.health_max
            + self.doubt_span
            + self.suspicion_span.max(self.suspicion_span_lone)
    }

    /// Whether the relations hold that the promises rest on.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let spans = [
            ("probe_period", self.probe_period),
            ("ack_timeout", self.ack_timeout),
            ("retry_gap", self.retry_gap),
            ("suspicion_span", self.suspicion_span),
            ("reconnect_period", self.reconnect_period),
            ("announce_period", self.announce_period),
            ("join_backoff", self.join_backoff),
            ("exchange_timeout", self.exchange_timeout),
            ("leave_gap", self.leave_gap),
            ("sync_after", self.sync_after),
        ];
        if let Some((name, _)) = spans.iter().find(|(_, span)| span.is_zero()) {
            return Err(ConfigError::Zero(name));
        }
        let bounds = [
            ("helpers", self.helpers),
            ("members_max", self.members_max),
            ("events_max", self.events_max),
            ("rides", self.rides as usize),
        ];
        if let Some((name, _)) = bounds.iter().find(|(_, bound)| *bound == 0) {
            return Err(ConfigError::Zero(name));
        }
        if self.ack_timeout >= self.probe_window {
            return Err(ConfigError::Order("ack_timeout", "probe_window"));
        }
        if self.retry_gap >= self.ack_timeout {
            return Err(ConfigError::Order("retry_gap", "ack_timeout"));
        }
        if self.join_backoff > self.join_backoff_max {
            return Err(ConfigError::Order("join_backoff", "join_backoff_max"));
        }
        let bound = self.detection_bound();
        if bound > DETECTION_MAX {
            return Err(ConfigError::Slow(bound));
        }
        Ok(())
    }
}
