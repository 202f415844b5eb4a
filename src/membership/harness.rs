//! A small cluster under virtual time, for the tests of this core.
//!
//! Decides: when each datagram, exchange and timer happens, from one seed: delay, loss,
//! duplication, cuts, pauses, crashes. Leaves to others: the whole system's simulation
//! (`tests/sim`), and what must hold (`tests`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::introducer::{IntroducerConfig, IntroducerOutput};
use super::*;
use crate::types::Rng;
use crate::wire::datagram::{DATAGRAM_MAX, DATAGRAM_RESERVED};

pub(super) fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub(super) fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(super) fn name(text: &str) -> NodeId {
    NodeId::new(text).expect("valid name")
}

pub(super) fn member(text: &str, storage: u128, incarnation: u64, state: MemberState) -> Member {
    Member {
        node: name(text),
        storage: StorageId(storage),
        incarnation: Incarnation(incarnation),
        addr: Cluster::addr(1),
        joined: WallTime(0),
        state,
    }
}

/// Bytes of `datagram` on the wire.
pub(super) fn encoded(datagram: &Datagram) -> usize {
    let config = bincode::config::standard();
    bincode::serde::encode_to_vec(datagram, config)
        .expect("encodable")
        .len()
}

#[derive(Clone, Debug)]
enum Happening {
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        datagram: Datagram,
    },
    Request {
        from: SocketAddr,
        to: SocketAddr,
        id: ExchangeId,
        boot: u64,
        request: MembershipRequest,
    },
    Result {
        to: SocketAddr,
        id: ExchangeId,
        boot: u64,
        result: Result<MembershipReply, ExchangeError>,
    },
    Closed {
        to: SocketAddr,
        node: NodeId,
    },
    Wake(SocketAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    On,
    /// The process is gone: its host refuses connections.
    Crashed,
    /// Nothing comes back at all.
    Silent,
}

pub(super) struct Process {
    pub core: Membership,
    pub power: Power,
    pub paused_until: Time,
    pub boot: u64,
    pub outcome: Vec<Output>,
    pub view: View,
    persisted: Identity,
    wake: Option<Time>,
}

pub(super) struct Meeting {
    pub core: Introducer,
    pub up: bool,
    tokens: BTreeMap<u64, (SocketAddr, ExchangeId, u64)>,
    next_token: u64,
    wake: Option<Time>,
}

/// One change that a node saw in its view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub at: Time,
    pub observer: SocketAddr,
    pub node: NodeId,
    pub gone: bool,
}

pub(super) struct Cluster {
    pub now: Time,
    pub nodes: BTreeMap<SocketAddr, Process>,
    pub introducers: BTreeMap<SocketAddr, Meeting>,
    pub config: Config,
    pub delay: (Duration, Duration),
    pub loss: u64,
    pub duplicates: u64,
    pub exchanges_work: bool,
    pub cut: BTreeSet<(SocketAddr, SocketAddr)>,
    pub seen: Vec<Seen>,
    pub datagrams: u64,
    pub bytes: u64,
    pub trace: blake3::Hasher,
    queue: BTreeMap<(Time, u64), Happening>,
    tie: u64,
    rng: Rng,
    seed: u64,
    steps: u64,
    /// Events at the present instant: a core whose timer is due for ever is caught by it.
    at_once: (Time, u64),
}

impl Cluster {
    pub fn new(seed: u64) -> Cluster {
        Cluster {
            now: Time(0),
            nodes: BTreeMap::new(),
            introducers: BTreeMap::new(),
            config: Config::default(),
            delay: (millis(0), millis(2)),
            loss: 0,
            duplicates: 0,
            exchanges_work: true,
            cut: BTreeSet::new(),
            seen: Vec::new(),
            datagrams: 0,
            bytes: 0,
            trace: blake3::Hasher::new(),
            queue: BTreeMap::new(),
            tie: 0,
            rng: Rng::new(seed ^ 0x6e65_7477),
            seed,
            steps: 0,
            at_once: (Time(0), 0),
        }
    }

    /// A cluster with one introducer and `count` nodes, all members.
    pub fn formed(seed: u64, count: usize) -> Cluster {
        let mut cluster = Cluster::new(seed);
        cluster.start_introducer(0);
        for index in 0..count {
            cluster.start_node(index);
        }
        let limit = secs(30) + millis(50) * count as u32;
        cluster.until(limit, |cluster| cluster.agreed(count));
        cluster.run(secs(2));
        assert!(cluster.agreed(count), "the cluster forms");
        cluster.seen.clear();
        cluster
    }

    pub fn addr(index: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (index / 250) as u8, (index % 250) as u8], 7000))
    }

    pub fn meeting(index: usize) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, index as u8], 6000))
    }

    pub fn start_introducer(&mut self, index: usize) {
        let core = Introducer::new(IntroducerConfig::default(), self.seed, self.now);
        let meeting = Meeting {
            core,
            up: true,
            tokens: BTreeMap::new(),
            next_token: 0,
            wake: None,
        };
        self.introducers.insert(Self::meeting(index), meeting);
    }

    /// Starts node `n{index}` with a new data directory, and joins.
    pub fn start_node(&mut self, index: usize) -> SocketAddr {
        let storage = StorageId(u128::from(self.seed) << 64 | (index as u128 + 1) << 8);
        self.start_named(index, &format!("n{index}"), storage)
    }

    pub fn start_named(&mut self, index: usize, node: &str, storage: StorageId) -> SocketAddr {
        let identity = Identity {
            node: name(node),
            storage,
            incarnation: Incarnation(1),
            addr: Self::addr(index),
            cluster: None,
        };
        self.boot(identity, Vec::new())
    }

    fn boot(&mut self, identity: Identity, known: Vec<SocketAddr>) -> SocketAddr {
        let addr = identity.addr;
        let boot = self.nodes.get(&addr).map_or(0, |old| old.boot + 1);
        let seed = self.rng.next_u64();
        let introducers = self.introducers.keys().copied().collect();
        let wall = WallTime(1_700_000_000_000 + self.now.0 / 1_000_000);
        let config = self.config.clone();
        let mut core = Membership::new(config, identity.clone(), introducers, seed, self.now, wall);
        core.set_known(known);
        core.handle_join(self.now);
        let process = Process {
            core,
            power: Power::On,
            paused_until: Time(0),
            boot,
            outcome: Vec::new(),
            view: View::default(),
            persisted: identity,
            wake: None,
        };
        self.nodes.insert(addr, process);
        self.settle(addr);
        addr
    }

    /// Starts a node again, on the same disk, or on an empty one.
    pub fn restart(&mut self, addr: SocketAddr, wiped: bool) {
        let old = &self.nodes[&addr];
        let known = old.core.known_addrs();
        let mut identity = old.persisted.clone();
        identity.incarnation.0 += 1;
        if wiped {
            identity.storage = StorageId(identity.storage.0 + 1);
            identity.incarnation = Incarnation(1);
            identity.cluster = None;
        }
        self.boot(identity, if wiped { Vec::new() } else { known });
    }

    pub fn silence(&mut self, addr: SocketAddr) {
        self.node(addr).power = Power::Silent;
    }

    /// Kills the process; whoever is connected to it sees the connection close.
    pub fn crash(&mut self, addr: SocketAddr) {
        self.node(addr).power = Power::Crashed;
        let node = self.nodes[&addr].core.me().node.clone();
        let others: Vec<SocketAddr> = self.nodes.keys().copied().collect();
        for to in others {
            let node = node.clone();
            self.later(millis(1), Happening::Closed { to, node });
        }
    }

    pub fn pause(&mut self, addr: SocketAddr, span: Duration) {
        let until = self.now + span;
        self.node(addr).paused_until = until;
    }

    /// Cuts every link between the two groups, both ways.
    pub fn part(&mut self, left: &[SocketAddr], right: &[SocketAddr]) {
        for a in left {
            for b in right {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }

    /// Carries out what a direct call to a node's core has put out.
    pub fn wake(&mut self, addr: SocketAddr) {
        self.settle(addr);
    }

    /// A node that was silent goes on where it stopped.
    pub fn restart_timers(&mut self, addr: SocketAddr) {
        self.node(addr).power = Power::On;
        self.node(addr).wake = None;
        self.settle(addr);
    }

    pub fn node(&mut self, addr: SocketAddr) -> &mut Process {
        self.nodes.get_mut(&addr).expect("node exists")
    }

    /// Addresses of the nodes that run.
    pub fn running(&self) -> Vec<SocketAddr> {
        let on = self.nodes.iter().filter(|(_, p)| p.power == Power::On);
        on.map(|(addr, _)| *addr).collect()
    }

    /// Whether `count` nodes are members and all of them see exactly those, alive.
    pub fn agreed(&self, count: usize) -> bool {
        let members: Vec<&Process> = self
            .nodes
            .values()
            .filter(|p| p.power == Power::On && p.core.is_member())
            .collect();
        let view = |p: &Process| p.core.view().members.clone();
        let alive = |p: &&Process| {
            let mut states = p.core.view().members.values().map(|m| m.state);
            states.all(|state| state == MemberState::Alive)
        };
        members.len() == count
            && members.iter().all(alive)
            && members
                .iter()
                .all(|p| view(p) == view(members[0]) && p.core.view().members.len() == count)
    }

    /// Whether `addr` gave out an output that `wanted` accepts.
    pub fn put_out(&self, addr: SocketAddr, wanted: impl Fn(&Output) -> bool) -> bool {
        self.nodes[&addr].outcome.iter().any(wanted)
    }

    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`, at most for `span`; says whether it was reached.
    pub fn until(&mut self, span: Duration, done: impl Fn(&Cluster) -> bool) -> bool {
        let end = self.now + span;
        while !done(self) {
            let slice = self.now + millis(10);
            if slice > end {
                return false;
            }
            while self.step(slice) {}
            self.now = slice;
        }
        true
    }

    fn later(&mut self, delay: Duration, happening: Happening) {
        self.tie += 1;
        self.queue.insert((self.now + delay, self.tie), happening);
    }

    fn step(&mut self, end: Time) -> bool {
        let Some((&(at, tie), _)) = self.queue.first_key_value() else {
            return false;
        };
        if at > end {
            return false;
        }
        let happening = self.queue.remove(&(at, tie)).expect("there");
        self.now = self.now.max(at);
        self.at_once = match self.at_once {
            (time, count) if time == self.now => (time, count + 1),
            _ => (self.now, 0),
        };
        assert!(self.at_once.1 < 100_000, "time stands still: {happening:?}");
        self.happen(happening);
        true
    }

    fn happen(&mut self, happening: Happening) {
        let to = match &happening {
            Happening::Datagram { to, .. }
            | Happening::Request { to, .. }
            | Happening::Result { to, .. }
            | Happening::Closed { to, .. }
            | Happening::Wake(to) => *to,
        };
        if self.introducers.contains_key(&to) {
            self.happen_at_introducer(to, happening);
            return;
        }
        let now = self.now;
        let Some(process) = self.nodes.get_mut(&to) else {
            return;
        };
        if process.power == Power::On && process.paused_until > now {
            // What came in the meantime is read before timers fire.
            let timer = u64::from(matches!(happening, Happening::Wake(_)));
            self.tie += 1;
            let at = process.paused_until + Duration::from_nanos(timer);
            self.queue.insert((at, self.tie), happening);
            return;
        }
        let on = process.power == Power::On;
        match happening {
            Happening::Datagram { from, datagram, .. } if on => {
                process.core.handle_datagram(now, from, datagram);
            }
            Happening::Request {
                from,
                id,
                boot,
                request,
                ..
            } => {
                let result = match process.power {
                    Power::On => Ok(process.core.handle_request(now, request)),
                    Power::Crashed => Err(ExchangeError::Refused),
                    Power::Silent => Err(ExchangeError::TimedOut),
                };
                let delay = match process.power {
                    Power::Silent => secs(1),
                    _ => self.rng.span(self.delay.0, self.delay.1),
                };
                let to = from;
                let happening = Happening::Result {
                    to,
                    id,
                    boot,
                    result,
                };
                self.later(delay, happening);
            }
            Happening::Result {
                id, boot, result, ..
            } if on && boot == process.boot => process.core.handle_exchanged(now, id, result),
            Happening::Closed { node, .. } if on => {
                process.core.handle_connection_closed(now, &node);
            }
            Happening::Wake(_) if on && process.wake.is_some_and(|wake| wake <= now) => {
                process.wake = None;
                process.core.handle_timeout(now);
            }
            _ => return,
        }
        self.settle(to);
    }

    fn happen_at_introducer(&mut self, to: SocketAddr, happening: Happening) {
        let now = self.now;
        let meeting = self.introducers.get_mut(&to).expect("introducer");
        if !meeting.up {
            if let Happening::Request { from, id, boot, .. } = happening {
                let result = Err(ExchangeError::Refused);
                let happening = Happening::Result {
                    to: from,
                    id,
                    boot,
                    result,
                };
                self.later(millis(1), happening);
            }
            return;
        }
        match happening {
            Happening::Datagram { from, datagram, .. } => {
                meeting.core.handle_datagram(now, from, datagram);
            }
            Happening::Request {
                from,
                id,
                boot,
                request,
                ..
            } => {
                meeting.next_token += 1;
                let token = meeting.next_token;
                meeting.tokens.insert(token, (from, id, boot));
                meeting.core.handle_request(now, token, request);
            }
            Happening::Wake(_) => {
                meeting.wake = None;
                meeting.core.handle_timeout(now);
            }
            Happening::Result { .. } | Happening::Closed { .. } => {}
        }
        self.settle_introducer(to);
    }

    fn settle_introducer(&mut self, addr: SocketAddr) {
        loop {
            let meeting = self.introducers.get_mut(&addr).expect("introducer");
            meeting.core.check_invariants();
            let Some(output) = meeting.core.poll_output() else {
                break;
            };
            self.trace
                .update(format!("{} {addr} {output:?}\n", self.now).as_bytes());
            match output {
                IntroducerOutput::Transmit { to, datagram } => self.send(addr, to, datagram),
                IntroducerOutput::Reply { token, reply } => {
                    let asked = meeting.tokens.remove(&token);
                    let (to, id, boot) = asked.expect("each request is answered once");
                    let result = Ok(reply);
                    let delay = self.rng.span(self.delay.0, self.delay.1);
                    self.later(
                        delay,
                        Happening::Result {
                            to,
                            id,
                            boot,
                            result,
                        },
                    );
                }
            }
        }
        let meeting = self.introducers.get_mut(&addr).expect("introducer");
        let due = meeting.core.poll_timeout();
        if due.is_some() && meeting.wake.is_none_or(|wake| Some(wake) > due) {
            meeting.wake = due;
            let delay = due.unwrap_or(self.now).since(self.now);
            self.later(delay, Happening::Wake(addr));
        }
    }

    /// Drains the outputs of a node and arms its timer: the contract's second half.
    fn settle(&mut self, addr: SocketAddr) {
        self.steps += 1;
        let thorough = self.nodes.len() <= 16 || self.steps.is_multiple_of(64);
        loop {
            let process = self.nodes.get_mut(&addr).expect("node");
            let Some(output) = process.core.poll_output() else {
                break;
            };
            self.trace
                .update(format!("{} {addr} {output:?}\n", self.now).as_bytes());
            match output {
                Output::Transmit { to, datagram } => self.send(addr, to, datagram),
                Output::Exchange { id, to, request } => self.ask(addr, to, id, request),
                Output::View(view) => self.compare(addr, view),
                Output::Joined { cluster, .. } => {
                    process.persisted.cluster = Some(cluster);
                    process.outcome.push(output);
                }
                Output::Incarnation(incarnation) => {
                    assert!(incarnation > process.persisted.incarnation);
                    process.persisted.incarnation = incarnation;
                    process.outcome.push(output);
                }
                Output::Left | Output::Evicted { .. } => {
                    process.power = Power::Crashed;
                    process.outcome.push(output);
                }
                Output::JoinRefused { .. } => process.outcome.push(output),
            }
        }
        let process = self.nodes.get_mut(&addr).expect("node");
        if thorough {
            process.core.check_invariants();
        }
        let due = process.core.poll_timeout();
        if due.is_some() && process.wake.is_none_or(|wake| Some(wake) > due) {
            process.wake = due;
            let delay = due.unwrap_or(self.now).since(self.now);
            self.later(delay, Happening::Wake(addr));
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, datagram: Datagram) {
        let size = encoded(&datagram);
        assert!(
            size <= datagram.size_bound(),
            "the estimate is an upper bound"
        );
        assert!(size <= DATAGRAM_MAX - DATAGRAM_RESERVED, "{size} bytes");
        self.datagrams += 1;
        self.bytes += size as u64;
        if self.cut.contains(&(from, to)) || self.rng.chance(self.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(self.duplicates));
        for _ in 0..copies {
            let delay = self.rng.span(self.delay.0, self.delay.1);
            let datagram = datagram.clone();
            self.later(delay, Happening::Datagram { from, to, datagram });
        }
    }

    fn ask(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        id: ExchangeId,
        request: MembershipRequest,
    ) {
        let boot = self.nodes[&from].boot;
        let blocked = self.cut.contains(&(from, to)) || self.cut.contains(&(to, from));
        let probe = matches!(request, MembershipRequest::Probe { .. });
        if blocked || (probe && !self.exchanges_work) {
            let result = Err(ExchangeError::TimedOut);
            let happening = Happening::Result {
                to: from,
                id,
                boot,
                result,
            };
            self.later(secs(1), happening);
            return;
        }
        let delay = self.rng.span(self.delay.0, self.delay.1);
        let happening = Happening::Request {
            from,
            to,
            id,
            boot,
            request,
        };
        self.later(delay, happening);
    }

    fn compare(&mut self, observer: SocketAddr, view: View) {
        let (at, old) = (self.now, std::mem::take(&mut self.node(observer).view));
        let gone = old.members.keys().filter(|n| !view.members.contains_key(n));
        let come = view.members.keys().filter(|n| !old.members.contains_key(n));
        let seen = |node: &NodeId, gone| Seen {
            at,
            observer,
            node: node.clone(),
            gone,
        };
        let changes: Vec<Seen> = gone
            .map(|node| seen(node, true))
            .chain(come.map(|node| seen(node, false)))
            .collect();
        self.seen.extend(changes);
        self.node(observer).view = view;
    }
}
