//! When to probe whom, and when silence is enough to accuse.
//!
//! Decides: the timing of pings, retries, indirect probes and the attempt over TCP; when
//! a target was missed; and whether this node should rather doubt itself. Leaves to
//! others: who is monitored and who helps (`mod`, from the ring), and what follows from
//! an accusation (`mod`, `members`).
//!
//! A *regular* watch is on a ring successor: pinged each period, and missed when it and
//! all helpers have been silent for the window. An *asked* watch is on somebody else's
//! target: probed at once and without helpers, and what it finds only supports or
//! contradicts the one who asked.
//!
//! Sources: SWIM, section 3.1 (indirect probes); Lifeguard, section 3.1 (a member that hears
//! little trusts itself less).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::config::Config;
use super::evidence::Miss;
use crate::types::{NodeId, Rng, Server, Time};

/// How long what was found for others is kept: a miss supports a later accusation.
const MISS_KEPT: Duration = Duration::from_secs(2);
/// Gap between the two attempts that a refused connection takes to count.
const RECONNECT_GAP: Duration = Duration::from_millis(50);
/// Members that wait for news of one target; further ones are ignored.
const REQUESTERS_MAX: usize = 8;
/// Round trips that are remembered.
const ROUND_TRIPS_KEPT: usize = 256;

/// What the owner is to do for a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a ping.
    Ping {
        /// To whom.
        target: NodeId,
        /// Its number.
        sequence: u64,
    },
    /// Ask the next helpers to probe the target too.
    Ask {
        /// Whom they are to probe.
        target: NodeId,
        /// The probe's number.
        sequence: u64,
        /// Counts from 0 within a probe, so that each round asks others.
        round: u32,
        /// The target's connection was closed: they are to connect at once.
        connect: bool,
    },
    /// Try to reach the target over TCP.
    Connect {
        /// Whom.
        target: Server,
        /// The probe's number, for the result.
        sequence: u64,
    },
    /// The target was silent for the whole window or refused.
    Missed {
        /// Who.
        target: NodeId,
        /// How.
        miss: Miss,
        /// This node may accuse it of its own accord: it monitors it, or was refused twice.
        accuse: bool,
    },
    /// The target answered; tell the one who asked.
    Answered {
        /// Who asked.
        requester: NodeId,
        /// Where it is.
        addr: SocketAddr,
        /// Its number for the request.
        sequence: u64,
        /// Who answered.
        target: Server,
    },
}

#[derive(Clone, Debug)]
struct Probe {
    sequence: u64,
    started: Time,
    next_attempt: Time,
    deadline: Time,
    connect_at: Time,
    rounds: u32,
    refused: u32,
    urgent: bool,
    extended: bool,
    requesters: BTreeMap<NodeId, (SocketAddr, u64)>,
}

#[derive(Clone, Debug)]
struct Watch {
    server: Server,
    regular: bool,
    next_ping: Time,
    /// When it is pinged after its first answer, whenever that is.
    second_ping: Option<Time>,
    probe: Option<Probe>,
    missed_at: Option<Time>,
    /// The miss was a refusal: the host is there, and the process is not.
    refused: bool,
    answered_at: Option<Time>,
}

/// What the detector counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounts {
    /// Probes begun.
    pub probes: u64,
    /// Probes whose ping had to be repeated: it, or its answer, was lost or late.
    pub retried: u64,
    /// Probes that found silence to the end.
    pub missed: u64,
    /// Requests of others that were ignored because too many were under way.
    pub ignored: u64,
    /// Median of the last round trips, zero before the first.
    pub round_trip_median: Duration,
    /// The longest of them.
    pub round_trip_max: Duration,
}

/// The probes of one node.
#[derive(Clone, Debug)]
pub struct Detector {
    config: Config,
    watches: BTreeMap<NodeId, Watch>,
    sequence: u64,
    health: u32,
    /// The two members heard last, newest first: enough to know when anyone but a
    /// given one was heard.
    heard: [Option<(NodeId, Time)>; 2],
    counts: ProbeCounts,
    /// The newest round trips, oldest first.
    round_trips: VecDeque<Duration>,
}

impl Detector {
    /// No watches.
    pub fn new(config: Config) -> Detector {
        Detector {
            config,
            watches: BTreeMap::new(),
            sequence: 0,
            health: 0,
            heard: [None, None],
            counts: ProbeCounts::default(),
            round_trips: VecDeque::new(),
        }
    }

    /// What was counted.
    pub fn counts(&self) -> ProbeCounts {
        let mut sorted: Vec<Duration> = self.round_trips.iter().copied().collect();
        sorted.sort();
        ProbeCounts {
            round_trip_median: sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
            round_trip_max: sorted.last().copied().unwrap_or_default(),
            ..self.counts
        }
    }

    /// Points of ill health; 0 is well.
    pub fn health(&self) -> u32 {
        self.health
    }

    /// The targets that are pinged each period.
    pub fn regular(&self) -> impl Iterator<Item = &NodeId> {
        let regular = |(_, watch): &(&NodeId, &Watch)| watch.regular;
        self.watches.iter().filter(regular).map(|(node, _)| node)
    }

    /// Monitors exactly `successors`. New ones are pinged at once: they may have been without a
    /// monitor, or be gone already.
    pub fn monitor(&mut self, now: Time, successors: &[Server], rng: &mut Rng) {
        for server in successors {
            let known = self.watches.get_mut(&server.node);
            if let Some(watch) = known.filter(|watch| watch.server == *server) {
                if !watch.regular {
                    watch.regular = true;
                    watch.next_ping = now;
                }
                continue;
            }
            let mut watch = Watch::new(server.clone(), true, now);
            // From the second on, at a random time in the period: the monitors of one member
            // should not all ping it at the same moment.
            watch.second_ping = Some(now + rng.span(Duration::ZERO, self.config.probe_period));
            self.watches.insert(server.node.clone(), watch);
        }
        let chosen: BTreeSet<&NodeId> = successors.iter().map(|server| &server.node).collect();
        for (node, watch) in &mut self.watches {
            watch.regular &= chosen.contains(node);
        }
        self.sweep(now);
    }

    /// Probes `server` at once, for `requester` or of this node's own accord; over TCP too
    /// where `connect`.
    pub fn probe_now(
        &mut self,
        now: Time,
        server: &Server,
        connect: bool,
        requester: Option<(NodeId, SocketAddr, u64)>,
    ) {
        let asked = self.watches.values().filter(|watch| !watch.regular).count();
        let known = self.watches.get(&server.node);
        if known.is_none_or(|watch| watch.server != *server) {
            if known.is_none() && asked >= self.config.asked_max {
                self.counts.ignored += 1;
                return;
            }
            let regular = known.is_some_and(|watch| watch.regular);
            let watch = Watch::new(server.clone(), regular, now);
            self.watches.insert(server.node.clone(), watch);
        }
        let sequence = self.next_sequence();
        let health = self.health;
        let Some(watch) = self.watches.get_mut(&server.node) else {
            return;
        };
        let regular = watch.regular;
        if watch.probe.is_none() {
            self.counts.probes += 1;
        }
        let probe = watch
            .probe
            .get_or_insert_with(|| Probe::new(&self.config, now, sequence, regular, health));
        if connect && !probe.urgent {
            // An answer to an earlier ping may still be on its way, from before it died.
            probe.sequence = sequence;
            probe.urgent = true;
            probe.connect_at = now;
            probe.next_attempt = now;
        }
        if let Some((node, addr, sequence)) = requester
            && (probe.requesters.len() < REQUESTERS_MAX || probe.requesters.contains_key(&node))
        {
            probe.requesters.insert(node, (addr, sequence));
        }
    }

    /// A datagram of member `node` was received: this node is not deaf.
    pub fn heard(&mut self, now: Time, node: &NodeId) {
        match &mut self.heard {
            [Some((newest, at)), _] if newest == node => *at = now,
            [first, second] => *second = first.replace((node.clone(), now)),
        }
    }

    /// `server` answered probe `sequence`, itself or through a helper or over TCP.
    pub fn answered(
        &mut self,
        now: Time,
        server: &Server,
        sequence: u64,
        actions: &mut Vec<Action>,
    ) {
        let period = self.config.probe_period;
        let Some(watch) = self.watches.get_mut(&server.node) else {
            return;
        };
        let current = watch.probe.as_ref();
        if watch.server != *server || current.is_none_or(|probe| probe.sequence != sequence) {
            return;
        }
        let Some(probe) = watch.probe.take() else {
            return;
        };
        watch.missed_at = None;
        watch.refused = false;
        watch.answered_at = Some(now);
        let due = watch.second_ping.take().unwrap_or(probe.started + period);
        watch.next_ping = now.max(due);
        let span = now.since(probe.started);
        if span < self.config.ack_timeout {
            self.health = self.health.saturating_sub(1);
            if self.round_trips.len() >= ROUND_TRIPS_KEPT {
                self.round_trips.pop_front();
            }
            self.round_trips.push_back(span);
        }
        for (requester, (addr, sequence)) in probe.requesters {
            actions.push(Action::Answered {
                requester,
                addr,
                sequence,
                target: server.clone(),
            });
        }
        self.sweep(now);
    }

    /// The host of `server` refused the connection of probe `sequence`, or another process
    /// answered there. Twice is a miss: its process is gone.
    pub fn refused(
        &mut self,
        now: Time,
        server: &Server,
        sequence: u64,
        actions: &mut Vec<Action>,
    ) {
        let watch = self.watches.get_mut(&server.node);
        let Some(watch) = watch.filter(|watch| watch.server == *server) else {
            return;
        };
        let Some(probe) = &mut watch.probe else {
            return;
        };
        if probe.sequence != sequence {
            return;
        }
        probe.refused += 1;
        if probe.refused == 1 {
            probe.connect_at = now + RECONNECT_GAP;
            return;
        }
        self.counts.missed += 1;
        watch.missed_at = Some(now);
        watch.refused = true;
        watch.probe = None;
        watch.next_ping = now + self.config.retry_gap;
        actions.push(Action::Missed {
            target: server.node.clone(),
            miss: Miss::Refused,
            accuse: true,
        });
    }

    /// When `node` answered a probe of this node last, as far as that is still known.
    pub fn answered_at(&self, node: &NodeId) -> Option<Time> {
        self.watches.get(node).and_then(|watch| watch.answered_at)
    }

    /// Whether this node found `node` silent lately, and has not heard it since.
    pub fn missed_lately(&self, now: Time, node: &NodeId) -> bool {
        let missed_at = self.watches.get(node).and_then(|watch| watch.missed_at);
        missed_at.is_some_and(|at| now.since(at) < MISS_KEPT)
    }

    /// Whether the host of `node` said that its process is gone, and `node` has not answered since.
    pub fn was_refused(&self, node: &NodeId) -> bool {
        self.watches.get(node).is_some_and(|watch| watch.refused)
    }

    /// Whether `node` has left a ping unanswered for longer than the ack timeout.
    pub fn doubtful(&self, now: Time, node: &NodeId) -> bool {
        let probe = self
            .watches
            .get(node)
            .and_then(|watch| watch.probe.as_ref());
        probe.is_some_and(|probe| now.since(probe.started) >= self.config.ack_timeout)
            || self.missed_lately(now, node)
    }

    /// This process was paused: nothing that it failed to hear counts.
    pub fn restart(&mut self, now: Time) {
        self.health = (self.health + 1).min(self.config.health_max);
        for watch in self.watches.values_mut() {
            watch.missed_at = None;
            watch.refused = false;
            let Some(old) = watch.probe.take() else {
                continue;
            };
            let mut probe = Probe::new(&self.config, now, old.sequence, watch.regular, self.health);
            probe.requesters = old.requesters;
            watch.probe = Some(probe);
        }
    }

    /// Carries out what is due. `company`: this node has members besides the target in its view.
    pub fn handle_timeout(&mut self, now: Time, company: bool, actions: &mut Vec<Action>) {
        let due: Vec<NodeId> = self
            .watches
            .iter()
            .filter(|(_, watch)| watch.due() <= now)
            .map(|(node, _)| node.clone())
            .collect();
        for node in due {
            self.advance(now, &node, company, actions);
        }
        self.sweep(now);
    }

    /// When something is due next.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.watches.values().map(Watch::due).min()
    }

    fn advance(&mut self, now: Time, node: &NodeId, company: bool, actions: &mut Vec<Action>) {
        let fresh = self.next_sequence();
        let heard_other = self.heard_besides(node);
        let Some(watch) = self.watches.get_mut(node) else {
            return;
        };
        if watch.probe.is_none() && watch.regular && watch.next_ping <= now {
            self.counts.probes += 1;
            watch.probe = Some(Probe::new(&self.config, now, fresh, true, self.health));
        }
        let Some(probe) = &mut watch.probe else {
            return;
        };
        if probe.deadline <= now {
            let deaf = company && heard_other < probe.started;
            if watch.regular && deaf && !probe.extended {
                probe.extended = true;
                probe.deadline = now + self.config.doubt_span;
                self.health = (self.health + 1).min(self.config.health_max);
            } else {
                self.counts.missed += 1;
                actions.push(Action::Missed {
                    target: node.clone(),
                    miss: Miss::Silent {
                        span: now.since(probe.started),
                        rounds: probe.rounds,
                    },
                    accuse: watch.regular,
                });
                watch.missed_at = Some(now);
                watch.refused = false;
                watch.probe = None;
                watch.next_ping = now;
                return;
            }
        }
        if probe.next_attempt <= now {
            if probe.rounds == 1 {
                self.counts.retried += 1;
            }
            probe.attempt(now, node, watch.regular, &self.config, actions);
        }
        if probe.connect_at <= now {
            probe.connect_at = now + self.config.connect_after;
            actions.push(Action::Connect {
                target: watch.server.clone(),
                sequence: probe.sequence,
            });
        }
    }

    fn heard_besides(&self, node: &NodeId) -> Time {
        let mut heard = self.heard.iter().flatten();
        let other = heard.find(|(name, _)| name != node);
        other.map_or(Time(0), |(_, at)| *at)
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Drops what is watched for nobody any more.
    fn sweep(&mut self, now: Time) {
        self.watches.retain(|_, watch| {
            let kept = |at: Time| now.since(at) < MISS_KEPT;
            let found = watch.missed_at.or(watch.answered_at);
            watch.regular || watch.probe.is_some() || found.is_some_and(kept)
        });
    }
}

impl Watch {
    fn new(server: Server, regular: bool, next_ping: Time) -> Watch {
        Watch {
            server,
            regular,
            next_ping,
            second_ping: None,
            probe: None,
            missed_at: None,
            refused: false,
            answered_at: None,
        }
    }

    fn due(&self) -> Time {
        match (&self.probe, self.missed_at.or(self.answered_at)) {
            (Some(probe), _) => probe.next_attempt.min(probe.deadline).min(probe.connect_at),
            (None, _) if self.regular => self.next_ping,
            (None, Some(found)) => found + MISS_KEPT,
            (None, None) => Time::MAX,
        }
    }
}

impl Probe {
    fn new(config: &Config, now: Time, sequence: u64, regular: bool, health: u32) -> Probe {
        // Who asks has been waiting for the ack timeout already.
        let window = match regular {
            true => config.probe_window + config.health_step * health,
            false => config.probe_window.saturating_sub(config.ack_timeout),
        };
        Probe {
            sequence,
            started: now,
            next_attempt: now,
            deadline: now + window,
            connect_at: now + config.connect_after,
            rounds: 0,
            refused: 0,
            urgent: false,
            extended: false,
            requesters: BTreeMap::new(),
        }
    }

    /// One round: a ping, and once the answer is overdue helpers too.
    fn attempt(
        &mut self,
        now: Time,
        target: &NodeId,
        regular: bool,
        config: &Config,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Ping {
            target: target.clone(),
            sequence: self.sequence,
        });
        let overdue = now.since(self.started) >= config.ack_timeout;
        if regular && (overdue || self.urgent) {
            actions.push(Action::Ask {
                target: target.clone(),
                sequence: self.sequence,
                round: self.rounds,
                connect: self.urgent,
            });
        }
        self.next_attempt = now + config.retry_gap;
        self.rounds += 1;
    }
}
