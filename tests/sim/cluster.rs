//! The simulation: virtual time, its queue of events, and who is woken when.
//!
//! Decides: the order of events. They are taken by time, then in the order in which they
//! were planned; every delay is drawn from a seed, so that seeds explore orders. Leaves to
//! others: what an event does (`host`, `connections`, `devices`, `clients`, `faults`).
//!
//! An event is either of no process (the kernel's or the network's) or of one life of one
//! process: then it is dropped once that life has ended, and kept back while it is paused.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use dlc::node::io::Input;
use dlc::types::{NodeId, Rng, Time};

use crate::clients::Clients;
use crate::connections::Connections;
use crate::devices::Devices;
use crate::host::{Host, PingInput};
use crate::network::{HostId, Network};
use crate::trace::Trace;
use crate::watchers::{Violation, Watchers};
use crate::workload::Plan;

/// Something to be done later with the whole simulation at hand.
pub type Call = Box<dyn FnOnce(&mut Sim)>;

/// What an event does.
pub enum Action {
    /// The ping thread's deadline may have come.
    WakePing,
    /// The coord thread's deadline may have come.
    WakeCoord,
    /// The introducer's deadline may have come.
    WakeIntroducer,
    /// Something for the ping thread.
    Ping(Box<PingInput>),
    /// Something for the coord thread.
    Coord(Box<Input>),
    /// The newest view is there for the coord thread.
    ViewReady,
    /// A datagram, with the host it came from.
    Datagram(HostId, Arc<[u8]>),
    /// The head of a control connection's queue may arrive.
    Deliver(u64),
    /// Anything rarer.
    Call(Call),
}

/// One life of one process.
pub type Life = (HostId, u32);

struct Event {
    at: Time,
    order: u64,
    of: Option<Life>,
    action: Action,
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.order == other.order
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Event) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Separate streams of randomness, so that one draw more in one does not shift the others.
pub struct Streams {
    /// Hops between threads, and which of several replies comes first.
    pub hops: Rng,
    /// Seeds of cores, drift of clocks.
    pub processes: Rng,
    /// How long disks, models and transfers take; what a crash leaves.
    pub devices: Rng,
    /// What clients do.
    pub workload: Rng,
    /// What breaks.
    pub faults: Rng,
}

impl Streams {
    fn new(seed: u64) -> Streams {
        let mut root = Rng::new(seed);
        let mut stream = || Rng::new(root.next_u64());
        Streams {
            hops: stream(),
            processes: stream(),
            devices: stream(),
            workload: stream(),
            faults: stream(),
        }
    }
}

/// One simulated cluster with everything around it.
pub struct Sim {
    /// Virtual time.
    pub now: Time,
    queue: BinaryHeap<Reverse<Event>>,
    planned: u64,
    handled: u64,
    /// Nodes first, then introducers.
    pub hosts: Vec<Host>,
    /// How many of the hosts are nodes.
    pub nodes: usize,
    by_addr: BTreeMap<SocketAddr, HostId>,
    /// Ways between hosts.
    pub network: Network,
    /// Control connections.
    pub connections: Connections,
    /// Transfers, inference and exchanges under way.
    pub devices: Devices,
    /// Clients and what they were told.
    pub clients: Clients,
    /// What this seed does.
    pub plan: Plan,
    /// Randomness.
    pub streams: Streams,
    /// Record.
    pub trace: Trace,
    /// The promises.
    pub watchers: Watchers,
    /// Steps of the scenario so far; see `steps`.
    pub steps: u64,
    /// The first promise that was broken.
    pub violation: Option<Violation>,
    /// Everything has converged: the run is over.
    pub finished: bool,
}

impl Sim {
    /// The cluster of `seed`, nothing started yet.
    ///
    /// `step`: the scenario of `steps` instead, where three nodes die at that step.
    pub fn new(seed: u64, step: Option<u64>, shown: bool) -> Sim {
        let mut streams = Streams::new(seed);
        let mut plan = Plan::draw(&mut streams.workload, &mut streams.faults);
        if step.is_some() {
            crate::steps::make_scenario(&mut plan);
            plan.deaths_at = step;
        }
        let count = plan.nodes + plan.introducers;
        let mut hosts = Vec::new();
        let mut by_addr = BTreeMap::new();
        for id in 0..count {
            let addr = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, id as u8 + 1), 7000).into();
            let name = NodeId::new(&format!("node-{id}")).expect("a name");
            hosts.push(Host::new(name, addr, &mut streams.devices));
            by_addr.insert(addr, id);
        }
        let network = Network::new(count, Rng::new(streams.processes.next_u64()));
        Sim {
            now: Time(0),
            queue: BinaryHeap::new(),
            planned: 0,
            handled: 0,
            hosts,
            nodes: plan.nodes,
            by_addr,
            network,
            connections: Connections::default(),
            devices: Devices::default(),
            clients: Clients::default(),
            watchers: Watchers::new(plan.nodes),
            plan,
            streams,
            trace: Trace::new(shown),
            steps: 0,
            violation: None,
            finished: false,
        }
    }

    /// The host at `addr`.
    pub fn host_at(&self, addr: SocketAddr) -> Option<HostId> {
        self.by_addr.get(&addr).copied()
    }

    /// Addresses of the introducers.
    pub fn introducers(&self) -> Vec<SocketAddr> {
        self.hosts[self.nodes..]
            .iter()
            .map(|host| host.addr)
            .collect()
    }

    /// How many events were handled.
    pub fn handled(&self) -> u64 {
        self.handled
    }

    /// Plans `action` at `at`, of a process or of none.
    pub fn plan_at(&mut self, at: Time, of: Option<Life>, action: Action) {
        self.planned += 1;
        self.queue.push(Reverse(Event {
            at: at.max(self.now),
            order: self.planned,
            of,
            action,
        }));
    }

    /// Plans a call that is of no process.
    pub fn after(&mut self, delay: Duration, call: impl FnOnce(&mut Sim) + 'static) {
        self.plan_at(self.now + delay, None, Action::Call(Box::new(call)));
    }

    /// Plans a call of one life of a process.
    pub fn after_in(&mut self, delay: Duration, of: Life, call: impl FnOnce(&mut Sim) + 'static) {
        self.plan_at(self.now + delay, Some(of), Action::Call(Box::new(call)));
    }

    /// Delay of a hop between two threads: mostly short, seldom a scheduling hiccup.
    pub fn hop_delay(&mut self) -> Duration {
        let random = &mut self.streams.hops;
        let longest = match random.below(200) {
            0 => Duration::from_millis(20),
            1..=5 => Duration::from_millis(2),
            _ => Duration::from_micros(150),
        };
        random.span(Duration::from_micros(5), longest)
    }

    /// Records a broken promise; the first one counts.
    pub fn violate(&mut self, watcher: &'static str, what: String) {
        if self.violation.is_none() {
            self.trace
                .story(self.now, "VIOLATION", || format!("{watcher}: {what}"));
            self.violation = Some(Violation {
                at: self.now,
                watcher,
                what,
            });
        }
    }

    /// Runs to the end of the plan, to convergence or to the first violation.
    pub fn run(&mut self) {
        while !self.finished && self.violation.is_none() {
            let Some(Reverse(event)) = self.queue.pop() else {
                self.violate("simulator", "nothing is left to happen".into());
                return;
            };
            self.now = event.at;
            self.handled += 1;
            if self.handled > self.plan.events_max {
                let what = format!(
                    "more than {} events: something floods",
                    self.plan.events_max
                );
                self.violate("bounds", what);
                return;
            }
            self.step();
            match event.of {
                None => self.act(None, event.action),
                Some(life) => self.act_in(life, event.action),
            }
        }
    }

    /// Acts in one life of a process, or keeps the action back while it is paused.
    fn act_in(&mut self, life: Life, action: Action) {
        let host = &mut self.hosts[life.0];
        if host.life != life.1 || !host.is_running() {
            return;
        }
        if host.is_paused() {
            host.defer(action);
            return;
        }
        self.act(Some(life), action);
    }

    fn act(&mut self, of: Option<Life>, action: Action) {
        let host = of.map_or(usize::MAX, |life| life.0);
        match action {
            Action::WakePing => self.wake_ping(host),
            Action::WakeCoord => self.wake_coord(host),
            Action::WakeIntroducer => self.wake_introducer(host),
            Action::Ping(input) => self.handle_ping(host, *input),
            Action::Coord(input) => self.handle_coord(host, *input),
            Action::ViewReady => self.handle_view(host),
            Action::Datagram(from, bytes) => self.handle_datagram(host, from, &bytes),
            Action::Deliver(connection) => self.deliver(connection),
            Action::Call(call) => call(self),
        }
    }

    /// Lets a paused process go on: what waited is handled in order, timers last.
    pub fn catch_up(&mut self, life: Life) {
        loop {
            let host = &mut self.hosts[life.0];
            if host.life != life.1 || !host.is_running() || host.is_paused() {
                return;
            }
            let Some(action) = host.next_deferred() else {
                break;
            };
            self.act(Some(life), action);
        }
        let soon = self.hop_delay();
        let at = self.now + soon;
        if life.0 >= self.nodes {
            self.plan_at(at, Some(life), Action::WakeIntroducer);
        } else {
            self.plan_at(at, Some(life), Action::WakePing);
            self.plan_at(at, Some(life), Action::WakeCoord);
        }
    }
}
