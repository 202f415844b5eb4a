//! Core 1: who is alive.
//!
//! Decides: whether this node is a member, who else is, and when each of them is pinged,
//! suspected, removed and taken back. Takes: commands, datagrams, results of TCP exchanges
//! and time. Emits: datagrams, exchanges, and that the live members have changed. Leaves to
//! others: sockets, clocks and encoding (`threads`, `wire`), and everything that is done
//! with the view (`consensus`, `store`, `schedule` by way of `node`).
//!
//! Contract: call one `handle_*`, drain [`Membership::poll_output`] until it is `None`, in
//! order, then wait for the next input or for [`Membership::poll_timeout`]. Drain the socket
//! before [`Membership::handle_timeout`], so that answers which are there count first.
//!
//! How a silent member is removed: its monitors, the three members before it on the ring
//! ([`ring`]), ping it each second. A miss makes a monitor retry quickly and ask helpers to
//! probe too ([`detector`]). After the window it accuses: the member is suspect, everyone is
//! told, and the member may refute with a higher incarnation. A second accuser, who missed it
//! too, makes it removed; so does a suspicion that nobody refutes in time.
//!
//! Beliefs are merged by one total order ([`members`]), ride on pings and acks ([`gossip`]),
//! and are exchanged in full where two views stay different. While nothing changes, members
//! speak in brief (`datagrams`).
//!
//! A raised incarnation is used at once and persisted by the driver ([`Output::Incarnation`]).
//! It need not be on disk first: whoever joins after a crash is given an incarnation above all
//! that were seen of its name.
//!
//! Source: SWIM (Das, Gupta, Motivala 2002); Lifeguard (Dadgar, Phillips, Currey 2018).

mod belief;
pub mod config;
mod convergence;
mod datagrams;
pub mod detector;
pub mod evidence;
pub mod gossip;
pub mod introducer;
mod join;
pub mod members;
mod probing;
pub mod ring;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

pub use config::{Config, ConfigError};
pub use evidence::{Event, EventKind};
pub use introducer::Introducer;

use crate::types::{
    ClusterId, Incarnation, Member, MemberState, NodeId, Rng, Server, StorageId, Time, View,
    WallTime,
};
use crate::wire::datagram::{
    Datagram, JoinRefusal, MembershipReply, MembershipRequest, Sender, Update,
};
use convergence::Differing;
use detector::{Detector, ProbeCounts};
use evidence::Evidence;
use gossip::Gossip;
use join::{Joining, Leaving};
use members::{Members, is_live};

/// Highest incarnation that is believed; a greater one is not a count of lives.
pub(crate) const INCARNATION_MAX: Incarnation = Incarnation(1 << 62);
/// Updates that are read from one datagram or exchange; the rest is ignored and counted.
pub(crate) const UPDATES_MAX: usize = 8192;
/// Members whose digests are remembered as different; further ones wait for their turn.
const DIFFERING_MAX: usize = 64;
/// Who this process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub node: NodeId,
    /// Its data directory.
    pub storage: StorageId,
    /// Its boot counter, raised before this start.
    pub incarnation: Incarnation,
    /// Where the others reach it, TCP and UDP.
    pub addr: SocketAddr,
    /// The cluster that its data directory belongs to, where it has been in one.
    pub cluster: Option<ClusterId>,
}

/// Names one TCP exchange that membership asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

/// Why a TCP exchange brought no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeError {
    /// The host is there and nothing listens on the port.
    Refused,
    /// The host cannot be reached, or the connection broke.
    Unreachable,
    /// No reply in time.
    TimedOut,
}

/// Why this process must end: another one has its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name {node} was taken by a newer process at {addr}: this one ends and must not rejoin; start it under another --name"
)]
pub struct Eviction {
    /// The name.
    pub node: NodeId,
    /// Where the new holder listens.
    pub addr: SocketAddr,
}

/// What the driver is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram; it may be lost.
    Transmit {
        /// Where to.
        to: SocketAddr,
        /// What.
        datagram: Datagram,
    },
    /// Connect, send the request, and report by [`Membership::handle_exchanged`].
    Exchange {
        /// For the report.
        id: ExchangeId,
        /// Where to.
        to: SocketAddr,
        /// What.
        request: MembershipRequest,
    },
    /// The live members have changed: read [`Membership::view`].
    ViewChanged,
    /// This node has become a member. Persist the cluster id before carrying out what follows.
    Joined {
        /// This node as the others know it.
        member: Member,
        /// The cluster.
        cluster: ClusterId,
        /// This node is the first one and has just made the cluster's id.
        formed: bool,
    },
    /// The join was refused; the node is not joined and does not try again by itself.
    JoinRefused {
        /// Why.
        reason: JoinRefusal,
    },
    /// The others were told; the process may end.
    Left,
    /// The process must end and not rejoin.
    Evicted {
        /// Why.
        reason: Eviction,
    },
    /// Persist this incarnation: the next start must use a higher one.
    Incarnation(Incarnation),
}

/// Counters for the command `stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams received.
    pub received: u64,
    /// Dropped: this node was not a member.
    pub not_member: u64,
    /// Dropped: from another cluster.
    pub wrong_cluster: u64,
    /// Dropped: meant for another member, or a brief one of another cluster.
    pub wrong_destination: u64,
    /// Brief datagrams of senders that were not known, and were asked who they are.
    pub unknown_senders: u64,
    /// Dropped updates, datagrams and requests that make no sense.
    pub invalid: u64,
    /// Updates dropped because the cluster has as many members as it can have.
    pub refused_members: u64,
    /// Accusations by this node.
    pub accusations: u64,
    /// Suspicions of this node that it refuted, and removals that it undid.
    pub refutations: u64,
    /// Removals seen.
    pub removals: u64,
    /// Members seen to come back in the same process after they had been removed.
    pub flaps: u64,
    /// Full exchanges begun.
    pub syncs: u64,
    /// Pauses of this process noticed.
    pub pauses: u64,
    /// What the detector counted.
    pub probes: ProbeCounts,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Not joined.
    Idle,
    Joining(Joining),
    Member,
    Leaving(Leaving),
    /// Left or evicted; final.
    Gone,
}

#[derive(Clone, Debug)]
enum Purpose {
    Join { first: bool, member: Member },
    Sync,
    Probe { target: Server, sequence: u64 },
}

#[derive(Clone, Debug)]
struct Pending {
    purpose: Purpose,
    to: SocketAddr,
    expires: Time,
}

/// The membership core of one node.
#[derive(Clone, Debug)]
pub struct Membership {
    config: Config,
    me: Member,
    cluster: Option<ClusterId>,
    phase: Phase,
    introducers: Vec<SocketAddr>,
    known: Vec<SocketAddr>,
    rng: Rng,
    members: Members,
    detector: Detector,
    gossip: Gossip,
    evidence: Evidence,
    outputs: VecDeque<Output>,
    exchanges: BTreeMap<ExchangeId, Pending>,
    exchange_counter: u64,
    differing: BTreeMap<NodeId, Differing>,
    announce_at: Time,
    reconnect_at: Time,
    forget_at: Time,
    /// When the first timer is due, as it stood after the last input; one that was due by then is
    /// overdue since that input, or longer where an earlier one has found it so.
    due: Time,
    started: (Time, WallTime),
    view_sent: u64,
    no_view: View,
    stats: Stats,
}

impl Membership {
    /// A node that has not joined. `wall` is the wall clock at `now`.
    pub fn new(
        config: Config,
        me: Identity,
        introducers: Vec<SocketAddr>,
        seed: u64,
        now: Time,
        wall: WallTime,
    ) -> Membership {
        let member = Member {
            node: me.node,
            storage: me.storage,
            incarnation: me.incarnation,
            addr: me.addr,
            joined: wall,
            state: MemberState::Alive,
        };
        Membership {
            members: Members::new(config.members_max),
            detector: Detector::new(config.clone()),
            gossip: Gossip::new(config.rides),
            evidence: Evidence::new(config.events_max),
            config,
            me: member,
            cluster: me.cluster,
            phase: Phase::Idle,
            introducers,
            known: Vec::new(),
            rng: Rng::new(seed),
            outputs: VecDeque::new(),
            exchanges: BTreeMap::new(),
            exchange_counter: 0,
            differing: BTreeMap::new(),
            announce_at: now,
            reconnect_at: now,
            forget_at: now,
            due: Time::MAX,
            started: (now, wall),
            view_sent: 0,
            no_view: View::default(),
            stats: Stats::default(),
        }
    }

    /// Members known from before this start: asked to let this node in while no introducer is up.
    /// Call it before [`Membership::handle_join`].
    pub fn set_known(&mut self, known: Vec<SocketAddr>) {
        let own = self.me.addr;
        self.known = known.into_iter().filter(|addr| *addr != own).collect();
    }

    /// Answers a request that came over TCP.
    pub fn handle_request(&mut self, now: Time, request: MembershipRequest) -> MembershipReply {
        self.observe(now);
        let member = matches!(self.phase, Phase::Member);
        let reply = match request {
            _ if !member => MembershipReply::Absent,
            MembershipRequest::Join(request) => self.admit(now, request),
            MembershipRequest::Probe { cluster, target } => {
                match Some(cluster) == self.cluster && target == self.me.server() {
                    true => MembershipReply::Present,
                    false => MembershipReply::Absent,
                }
            }
            MembershipRequest::Sync { cluster, .. } if Some(cluster) != self.cluster => {
                self.stats.wrong_cluster += 1;
                MembershipReply::Absent
            }
            MembershipRequest::Sync { from, updates, .. } => {
                self.detector.heard(now, &from.node);
                self.take_updates(now, updates);
                MembershipReply::Synced {
                    updates: self.members.updates(),
                }
            }
        };
        self.flush(now);
        reply
    }

    /// The result of exchange `exchange`. Late or unknown ones are ignored.
    pub fn handle_exchanged(
        &mut self,
        now: Time,
        exchange: ExchangeId,
        result: Result<MembershipReply, ExchangeError>,
    ) {
        self.observe(now);
        if let Some(pending) = self.exchanges.remove(&exchange) {
            match pending.purpose {
                Purpose::Join { first, member } => {
                    self.handle_joined(now, pending.to, first, member, result);
                }
                Purpose::Sync => {
                    if let Ok(MembershipReply::Synced { updates }) = result {
                        self.take_updates(now, updates);
                    }
                }
                Purpose::Probe { target, sequence } => {
                    let mut actions = Vec::new();
                    match result {
                        Ok(MembershipReply::Present) => {
                            self.detector.heard(now, &target.node);
                            self.detector.answered(now, &target, sequence, &mut actions);
                        }
                        Ok(_) | Err(ExchangeError::Refused) => {
                            self.detector.refused(now, &target, sequence, &mut actions);
                        }
                        Err(ExchangeError::Unreachable | ExchangeError::TimedOut) => {}
                    }
                    self.carry_out(now, actions);
                }
            }
        }
        self.flush(now);
    }

    /// The control connection to `node` closed or was refused: its process may have died. Probed at once by
    /// those who are near it on the ring; the others are told by them.
    pub fn handle_connection_closed(&mut self, now: Time, node: &NodeId) {
        self.observe(now);
        if matches!(self.phase, Phase::Member) && *node != self.me.node {
            let server = self.members.live(node).map(Member::server);
            if self.is_near(node, self.config.helper_reach)
                && let Some(server) = server
            {
                self.detector.probe_now(now, &server, true, None);
                self.run_detector(now);
            }
        }
        self.flush(now);
    }

    /// Whether this node is one of the `count` members before `node` on the ring.
    fn is_near(&self, node: &NodeId, count: usize) -> bool {
        let mut near = self.members.ring().before(node).take(count);
        near.any(|name| *name == self.me.node)
    }

    /// Carries out what is due; harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Time) {
        self.observe(now);
        self.due = now;
        self.expire_exchanges(now);
        match self.phase {
            Phase::Idle | Phase::Gone => {}
            Phase::Joining(_) => self.advance_join(now),
            Phase::Leaving(_) => self.advance_leave(now),
            Phase::Member => {
                self.run_detector(now);
                self.expire_suspicions(now);
                self.synchronise(now);
                if self.announce_at <= now {
                    self.gossip.forget(now - self.config.rides_span);
                    self.announce(now);
                }
                if self.reconnect_at <= now {
                    self.reconnect(now);
                }
                if self.forget_at <= now {
                    let (count, span) = (self.config.tombstones_max, self.config.tombstone_span);
                    self.members.forget(now, count, span);
                    self.forget_at = now + Duration::from_secs(60);
                }
            }
        }
        self.flush(now);
    }

    /// The next thing to do, until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Membership::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let exchange = self.exchanges.values().map(|pending| pending.expires).min();
        let phase = match &self.phase {
            Phase::Idle | Phase::Gone => None,
            Phase::Joining(joining) => Some(joining.next_at()),
            Phase::Leaving(leaving) => Some(leaving.next_at()),
            Phase::Member => {
                let fixed = self.announce_at.min(self.reconnect_at).min(self.forget_at);
                let suspicion = self.members.suspects().map(|r| self.suspicion_end(r)).min();
                [
                    Some(fixed),
                    self.detector.poll_timeout(),
                    suspicion,
                    self.sync_due(),
                ]
                .into_iter()
                .flatten()
                .min()
            }
        };
        exchange.into_iter().chain(phase).min()
    }

    /// The live members; empty while this node is none.
    pub fn view(&self) -> &View {
        match self.phase {
            Phase::Member => self.members.view(),
            _ => &self.no_view,
        }
    }

    /// This node as the others know it.
    pub fn me(&self) -> &Member {
        &self.me
    }

    /// The cluster that this node belongs to.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// Whether this node is a member.
    pub fn is_member(&self) -> bool {
        matches!(self.phase, Phase::Member)
    }

    /// Addresses of the live members, for the next start's [`Membership::set_known`].
    pub fn known_addrs(&self) -> Vec<SocketAddr> {
        let others = self.members.view().members.values();
        let others = others.filter(|member| member.node != self.me.node);
        others.map(|member| member.addr).collect()
    }

    /// The evidence log, oldest first: the newest events, bounded.
    pub fn events(&self) -> &VecDeque<Event> {
        self.evidence.events()
    }

    /// How many events were ever recorded.
    pub fn events_recorded(&self) -> u64 {
        self.evidence.recorded()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            probes: self.detector.counts(),
            ..self.stats
        }
    }

    /// Panics where the parts contradict one another; for tests and simulation.
    pub fn check_invariants(&self) {
        self.members.check_invariants();
        if !self.is_member() {
            return;
        }
        let own = self.members.live(&self.me.node);
        assert_eq!(own, Some(&self.me), "a member is in its own view, alive");
        assert!(self.cluster.is_some());
        let mut successors: Vec<NodeId> = self.successors().map(|s| s.node).collect();
        successors.sort();
        let regular: Vec<NodeId> = self.detector.regular().cloned().collect();
        assert_eq!(regular, successors, "exactly the successors are monitored");
        assert!(self.evidence.events().len() <= self.config.events_max);
        assert!(self.differing.len() <= DIFFERING_MAX);
    }

    /// Notices that this process was paused: a timer is far too late. What it did not hear in
    /// that time says nothing about others.
    fn observe(&mut self, now: Time) {
        if !self.is_member() {
            self.due = now;
            return;
        }
        // Not by what is due now: a suspicion may end sooner than it was to, and before now, where
        // the last who could agree is suspected too.
        let late = now.since(self.due);
        if late > self.config.pause_tolerance {
            // One pause is noticed once, though much waits for this process after it.
            self.due = now;
            self.stats.pauses += 1;
            self.detector.restart(now);
            self.members.postpone_suspicions(late);
            self.differing.clear();
            let me = self.me.clone();
            self.record(now, &me, me.node.clone(), EventKind::Paused(late));
        }
    }

    fn exchange(
        &mut self,
        now: Time,
        to: SocketAddr,
        request: MembershipRequest,
        purpose: Purpose,
    ) {
        self.exchange_counter += 1;
        let id = ExchangeId(self.exchange_counter);
        let expires = now + self.config.exchange_timeout;
        let pending = Pending {
            purpose,
            to,
            expires,
        };
        self.exchanges.insert(id, pending);
        self.outputs.push_back(Output::Exchange { id, to, request });
    }

    fn expire_exchanges(&mut self, now: Time) {
        let late = |(id, pending): (&ExchangeId, &Pending)| (pending.expires <= now).then_some(*id);
        let late: Vec<ExchangeId> = self.exchanges.iter().filter_map(late).collect();
        for id in late {
            self.handle_exchanged(now, id, Err(ExchangeError::TimedOut));
        }
    }

    fn sender(&self) -> Sender {
        Sender {
            node: self.me.node.clone(),
            storage: self.me.storage,
            incarnation: self.me.incarnation,
        }
    }

    fn own_update(&self) -> Update {
        Update {
            member: self.me.clone(),
            by: self.me.node.clone(),
        }
    }

    fn wall(&self, now: Time) -> WallTime {
        let (start, wall) = self.started;
        WallTime(wall.0 + now.since(start).as_millis() as u64)
    }

    fn record(&mut self, now: Time, member: &Member, by: NodeId, kind: EventKind) {
        let at = self.wall(now);
        self.evidence.record(Event {
            at,
            member: member.node.clone(),
            incarnation: member.incarnation,
            by,
            kind,
        });
    }

    /// Ends each input.
    fn flush(&mut self, now: Time) {
        self.announce_view(now);
        let due = self.poll_timeout().unwrap_or(Time::MAX);
        self.due = match due > now {
            true => due,
            false => self.due.min(now),
        };
    }

    /// Announces a changed view, once for each input.
    fn announce_view(&mut self, now: Time) {
        if !self.is_member() || self.view_sent == self.members.view().number {
            return;
        }
        // A removal gave this node new successors: they are probed at once.
        self.run_detector(now);
        self.view_sent = self.members.view().number;
        self.differing.retain(|node, _| {
            self.members
                .record(node)
                .is_none_or(|r| is_live(r.member.state))
        });
        self.outputs.push_back(Output::ViewChanged);
    }
}
