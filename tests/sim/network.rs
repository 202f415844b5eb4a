//! The network: which ways are open, and how long, how often and in what order things arrive.
//!
//! Decides: loss, duplication, delay and partitions, from its own stream of randomness.
//! Leaves to others: what travels (`connections` for TCP, `cluster` for datagrams). TCP loses
//! nothing by itself: loss only delays it.

use std::time::Duration;

use dlc::types::Rng;

/// Index of a machine.
pub type HostId = usize;

/// What the network does to packets at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Chance that a datagram is lost, in percent.
    pub loss: u64,
    /// Chance that a datagram arrives twice, in percent.
    pub duplication: u64,
    /// Chance that a datagram is late by up to `late`, in percent.
    pub lateness: u64,
    /// Longest extra delay of a late datagram.
    pub late: Duration,
    /// Shortest and longest usual delay.
    pub delay: (Duration, Duration),
}

/// Ways between the machines.
pub struct Network {
    random: Rng,
    hosts: usize,
    /// `blocked[from * hosts + to]`: nothing gets through that way.
    blocked: Vec<bool>,
    /// What it does to packets now.
    pub weather: Weather,
    /// What it does when no fault is in force.
    pub usual: Weather,
}

impl Network {
    /// A network of `hosts` machines with all ways open.
    pub fn new(hosts: usize, mut random: Rng) -> Network {
        let low = Duration::from_micros(20 + random.below(300));
        let high = low + Duration::from_micros(50 + random.below(3000));
        let usual = Weather {
            loss: random.below(2),
            duplication: random.below(3),
            lateness: random.below(4),
            late: Duration::from_millis(1 + random.below(30)),
            delay: (low, high),
        };
        Network {
            random,
            hosts,
            blocked: vec![false; hosts * hosts],
            weather: usual,
            usual,
        }
    }

    /// Whether packets get from `from` to `to`.
    pub fn is_open(&self, from: HostId, to: HostId) -> bool {
        !self.blocked[from * self.hosts + to]
    }

    /// Whether packets get both ways between `a` and `b`.
    pub fn is_open_both_ways(&self, a: HostId, b: HostId) -> bool {
        self.is_open(a, b) && self.is_open(b, a)
    }

    /// Blocks or opens one way.
    pub fn set_blocked(&mut self, from: HostId, to: HostId, blocked: bool) {
        if from != to {
            self.blocked[from * self.hosts + to] = blocked;
        }
    }

    /// Opens all ways and ends every disturbance.
    pub fn heal(&mut self) {
        self.blocked.fill(false);
        self.weather = self.usual;
    }

    /// Whether all ways are open.
    pub fn is_whole(&self) -> bool {
        !self.blocked.contains(&true)
    }

    /// A usual one-way delay.
    pub fn delay(&mut self) -> Duration {
        let (low, high) = self.weather.delay;
        self.random.span(low, high)
    }

    /// One-way delay of a TCP segment: loss costs a retransmission.
    pub fn segment_delay(&mut self) -> Duration {
        let mut delay = self.delay();
        let mut wait = Duration::from_millis(200);
        while self.random.chance(self.weather.loss) && wait < Duration::from_secs(2) {
            delay += wait;
            wait *= 2;
        }
        delay
    }

    /// Delay of each copy of a datagram that arrives: none, one or two.
    pub fn datagram_delays(&mut self) -> [Option<Duration>; 2] {
        if self.random.chance(self.weather.loss) {
            return [None, None];
        }
        let first = Some(self.datagram_delay());
        let again = self.random.chance(self.weather.duplication);
        [first, again.then(|| self.datagram_delay())]
    }

    fn datagram_delay(&mut self) -> Duration {
        let mut delay = self.delay();
        if self.random.chance(self.weather.lateness) {
            delay += self.random.span(Duration::ZERO, self.weather.late);
        }
        delay
    }

    /// Time that `bytes` take on a connection at 100 MB/s, beside the delay.
    pub fn transfer(&mut self, bytes: u64) -> Duration {
        self.segment_delay() + Duration::from_nanos(bytes * 10)
    }
}
