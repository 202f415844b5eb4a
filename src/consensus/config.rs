//! Times and bounds of the replicated log.
//!
//! Decides: the defaults, and which values fit together. Leaves to others: what they mean.

use std::time::Duration;

/// Times and bounds of the group. The same in all its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How often a leader is heard, and how often it retries. Default 100 ms.
    pub heartbeat: Duration,
    /// Silence of the leader after which the first server asks to be elected; until then
    /// nobody helps to depose it. Default 600 ms.
    pub election_timeout_min: Duration,
    /// Silence after which the last server asks, and after which a leader that no majority
    /// answers gives up. Default 1200 ms.
    pub election_timeout_max: Duration,
    /// Wait before the first standby asks to be elected once the leader has failed as far as the
    /// members know; the next one waits as much longer. Default 50 ms: a vote with its write.
    pub succession_step: Duration,
    /// Bytes of entries in one append; one larger entry goes alone. Default 1 MiB.
    pub entries_bytes_max: usize,
    /// Appends on their way to one server; further ones wait for its answers. Default 16.
    pub in_flight_max: usize,
    /// Writes given to the driver and not done; what comes meanwhile goes into one next
    /// write. Default 2.
    pub writes_max: usize,
    /// How many entries a server may lack and still be made a voter. Default 64.
    pub caught_up_entries: u64,
    /// Bytes of entries that stay in memory though a snapshot contains them, for servers that
    /// lag a little. Default 4 MiB.
    pub retained_bytes: usize,
    /// Bytes of a snapshot in one message. Default 256 KiB.
    pub part_bytes: usize,
    /// A part that is not answered is sent again after this. Default 2 s.
    pub part_timeout: Duration,
    /// Members that are gone have crashed: the rest of a small cluster goes on without a majority
    /// (`recovery`). Default false.
    pub crash_stop: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            heartbeat: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(600),
            election_timeout_max: Duration::from_millis(1200),
            succession_step: Duration::from_millis(50),
            entries_bytes_max: 1 << 20,
            in_flight_max: 16,
            writes_max: 2,
            caught_up_entries: 64,
            retained_bytes: 4 << 20,
            part_bytes: 256 << 10,
            part_timeout: Duration::from_secs(2),
            crash_stop: false,
        }
    }
}

impl Config {
    /// Whether the values fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.heartbeat.is_zero() || self.heartbeat * 3 > self.election_timeout_min {
            return Err(ConfigError::Heartbeat(
                self.heartbeat,
                self.election_timeout_min,
            ));
        }
        if self.election_timeout_min >= self.election_timeout_max {
            return Err(ConfigError::ElectionTimeout(
                self.election_timeout_min,
                self.election_timeout_max,
            ));
        }
        let counts = [self.in_flight_max, self.writes_max];
        if counts.contains(&0) || self.entries_bytes_max.min(self.part_bytes) == 0 {
            return Err(ConfigError::Zero);
        }
        Ok(())
    }
}

/// Values of [`Config`] that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A leader would be taken for silent after one lost message.
    #[error(
        "consensus: a heartbeat of {0:?} must be above 0 and at most a third of election_timeout_min, {1:?}"
    )]
    Heartbeat(Duration, Duration),
    /// Nothing would keep two candidates from asking at the same moment for ever.
    #[error("consensus: election_timeout_min {0:?} must be below election_timeout_max {1:?}")]
    ElectionTimeout(Duration, Duration),
    /// Nothing would ever be sent or written.
    #[error(
        "consensus: entries_bytes_max, in_flight_max, writes_max and part_bytes must be above 0"
    )]
    Zero,
}
