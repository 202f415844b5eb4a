//! Membership alone under virtual time: the real cores, nothing else of a node.
//!
//! Decides: what a process is here, when it is started, killed, silenced, paused or cut off,
//! and what is recorded of it. Leaves to others: the way of datagrams and connections
//! (`network`), the whole system's simulation (`tests/sim`), and what must hold.
//!
//! Shared by the tests beside it and by `tests/bench/membership`; each uses a part.
#![allow(dead_code, missing_docs, reason = "two programs, each uses a part")]

mod network;
mod observers;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use dlc::membership::introducer::IntroducerConfig;
use dlc::membership::ring::position;
use dlc::membership::{Config, ExchangeId, Identity, Introducer, Membership, Output};
use dlc::types::{
    ClusterId, Incarnation, Member, MemberState, NodeId, Rng, StorageId, Time, WallTime,
};

use network::{Happening, Planned};
pub use observers::Seen;

pub fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub fn name(text: &str) -> NodeId {
    NodeId::new(text).expect("valid name")
}

/// Who is in the view of another for so long has a control connection from it.
const CONNECTED_AFTER: Duration = Duration::from_millis(100);

/// What runs at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    On,
    /// The process is gone: its host refuses connections.
    Crashed,
    /// Nothing comes back at all.
    Silent,
}

/// One node.
pub struct Process {
    pub core: Membership,
    pub power: Power,
    pub paused_until: Time,
    /// Everything that it put out but traffic and views.
    pub outcome: Vec<Output>,
    /// Whom it saw last, in which life, and since when.
    view: BTreeMap<NodeId, (Incarnation, Time)>,
    boot: u64,
    persisted: Identity,
    wake: Option<Time>,
}

/// One introducer.
pub struct Meeting {
    pub core: Introducer,
    pub up: bool,
    tokens: BTreeMap<u64, (SocketAddr, ExchangeId, u64)>,
    next_token: u64,
    wake: Option<Time>,
}

/// What is kept of all that the processes put out.
#[derive(Default)]
pub enum Trace {
    #[default]
    Off,
    /// Its digest, for those who compare runs.
    Digest(Box<blake3::Hasher>),
    /// It is printed, but for what members say each second and for views.
    Story,
}

impl Trace {
    fn note(&mut self, now: Time, by: SocketAddr, what: &impl std::fmt::Debug) {
        match self {
            Trace::Off => {}
            Trace::Digest(digest) => {
                digest.update(format!("{now} {by} {what:?}\n").as_bytes());
            }
            Trace::Story => {
                let text = format!("{what:?}");
                if !text.contains("Brief") && text != "ViewChanged" {
                    println!("{now} {by} {text}");
                }
            }
        }
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub datagrams: u64,
    /// UDP payload, before authentication; counted while `Cluster::metered`.
    pub bytes: u64,
    /// Exchanges over TCP.
    pub exchanges: u64,
}

/// How the probes over TCP fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connects {
    pub tried: u64,
    /// In time, or refused.
    pub answered: u64,
}

impl std::ops::AddAssign for Connects {
    fn add_assign(&mut self, more: Self) {
        self.tried += more.tried;
        self.answered += more.answered;
    }
}

pub struct Cluster {
    pub now: Time,
    pub nodes: BTreeMap<SocketAddr, Process>,
    pub introducers: BTreeMap<SocketAddr, Meeting>,
    pub config: Config,
    /// One-way delay of a packet, between these.
    pub delay: (Duration, Duration),
    /// Percent of all packets, UDP and TCP, that are lost.
    pub loss: u64,
    /// Percent of the datagrams that come twice.
    pub duplicates: u64,
    /// Whether TCP works at all between members; joins and full exchanges always can.
    pub probes_connect: bool,
    /// Links that carry nothing, one way each.
    pub cut: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Changes of views, since the last time it was cleared.
    pub seen: Vec<Seen>,
    pub traffic: Traffic,
    pub connects: Connects,
    /// Datagrams are encoded, to know and check their size.
    pub metered: bool,
    pub trace: Trace,
    queue: BinaryHeap<Planned>,
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
            probes_connect: true,
            cut: BTreeSet::new(),
            seen: Vec::new(),
            traffic: Traffic::default(),
            connects: Connects::default(),
            metered: true,
            trace: Trace::Off,
            queue: BinaryHeap::new(),
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
        cluster.form(count);
        cluster
    }

    /// Starts one introducer and `count` nodes, and waits until all are members.
    pub fn form(&mut self, count: usize) {
        self.start_introducer(0);
        for index in 0..count {
            self.start_node(index);
        }
        let limit = secs(30) + millis(50) * count as u32;
        self.until(limit, |cluster| cluster.agreed(count));
        self.run(secs(2));
        assert!(self.agreed(count), "the cluster forms");
        self.seen.clear();
    }

    pub fn addr(index: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (index / 250) as u8, (index % 250) as u8], 7000))
    }

    pub fn meeting(index: usize) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, index as u8], 6000))
    }

    /// Starts an introducer that knows nothing, in place of the one that was there.
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

    pub fn stop_introducer(&mut self, index: usize) {
        let meeting = self.introducers.get_mut(&Self::meeting(index));
        meeting.expect("introducer exists").up = false;
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
        self.trace.note(self.now, addr, &identity);
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
            view: BTreeMap::new(),
            persisted: identity,
            wake: None,
        };
        self.nodes.insert(addr, process);
        self.settle(addr);
        addr
    }

    /// Starts a node again, on the same disk, or on an empty one.
    pub fn restart(&mut self, addr: SocketAddr, wiped: bool) {
        self.move_to(addr, addr, wiped);
    }

    /// Starts the node that was at `old` again at `new`, on the same disk or on an empty one.
    pub fn move_to(&mut self, old: SocketAddr, new: SocketAddr, wiped: bool) {
        let process = &self.nodes[&old];
        let known = process.core.known_addrs();
        let mut identity = process.persisted.clone();
        identity.addr = new;
        identity.incarnation.0 += 1;
        if wiped {
            identity.storage = StorageId(identity.storage.0 + 1);
            identity.incarnation = Incarnation(1);
            identity.cluster = None;
        }
        self.boot(identity, if wiped { Vec::new() } else { known });
    }

    pub fn silence(&mut self, addr: SocketAddr) {
        self.trace.note(self.now, addr, &Power::Silent);
        self.node(addr).power = Power::Silent;
    }

    /// Kills the process. Whoever is connected to it sees the connection close; who has not had it
    /// in view for long enough is refused when it connects.
    pub fn crash(&mut self, addr: SocketAddr) {
        self.trace.note(self.now, addr, &Power::Crashed);
        self.node(addr).power = Power::Crashed;
        let node = self.nodes[&addr].core.me().node.clone();
        let others: Vec<SocketAddr> = self.nodes.keys().copied().collect();
        for to in others {
            let since = self.nodes[&to].view.get(&node).map(|(_, since)| *since);
            let age = self.now.since(since.unwrap_or(self.now));
            if !self.cut.contains(&(addr, to)) {
                let node = node.clone();
                let delay = millis(1).max(CONNECTED_AFTER.saturating_sub(age));
                self.later(delay, Happening::Closed { to, node });
            }
        }
    }

    pub fn pause(&mut self, addr: SocketAddr, span: Duration) {
        let until = self.now + span;
        self.trace.note(self.now, addr, &("paused until", until));
        self.node(addr).paused_until = until;
    }

    /// The command `leave`.
    pub fn leave(&mut self, addr: SocketAddr) {
        let now = self.now;
        self.node(addr).core.handle_leave(now);
        self.settle(addr);
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

    /// A node that was silent goes on where it stopped.
    pub fn wake_up(&mut self, addr: SocketAddr) {
        let now = self.now;
        let process = self.node(addr);
        process.power = Power::On;
        process.paused_until = now;
        process.wake = None;
        self.settle(addr);
    }

    pub fn node(&mut self, addr: SocketAddr) -> &mut Process {
        self.nodes.get_mut(&addr).expect("node exists")
    }

    pub fn core(&self, addr: SocketAddr) -> &Membership {
        &self.nodes[&addr].core
    }

    /// Addresses of the nodes that run.
    pub fn running(&self) -> Vec<SocketAddr> {
        let on = self.nodes.iter().filter(|(_, p)| p.power == Power::On);
        on.map(|(addr, _)| *addr).collect()
    }

    /// Addresses of all nodes that ever ran, in the order of the ring.
    pub fn in_ring_order(&self) -> Vec<SocketAddr> {
        let place = |(addr, process): (&SocketAddr, &Process)| {
            let node = &process.core.me().node;
            (position(node), *addr)
        };
        let mut order: Vec<(u64, SocketAddr)> = self.nodes.iter().map(place).collect();
        order.sort();
        order.into_iter().map(|(_, addr)| addr).collect()
    }

    /// Whether `count` nodes are members and all of them see exactly those, alive.
    pub fn agreed(&self, count: usize) -> bool {
        let running = |p: &&Process| p.power == Power::On && p.core.is_member();
        let mut members = self.nodes.values().filter(running);
        let Some(first) = members.next() else {
            return count == 0;
        };
        let view = &first.core.view().members;
        let alive = |member: &Member| member.state == MemberState::Alive;
        view.len() == count
            && view.values().all(alive)
            && members.clone().count() + 1 == count
            && members.all(|p| p.core.view().members == *view)
            && self
                .nodes
                .values()
                .filter(running)
                .all(|p| view.get(&p.core.me().node) == Some(p.core.me()))
    }

    /// Whether `addr` gave out an output that `wanted` accepts.
    pub fn put_out(&self, addr: SocketAddr, wanted: impl Fn(&Output) -> bool) -> bool {
        self.nodes[&addr].outcome.iter().any(wanted)
    }

    /// The cluster id that the nodes agree on.
    pub fn id(&self) -> Option<ClusterId> {
        self.nodes
            .values()
            .find_map(|process| process.core.cluster())
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
}
