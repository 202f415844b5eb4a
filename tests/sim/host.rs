//! One machine: its disk, its clock, its process, and the driver of the cores in it.
//!
//! Decides: how each output of a core becomes a send or a device call, as `threads` does on
//! real machines: the ping thread owns `Membership`, the coord thread owns `Node`, and
//! what passes between them hops over a channel, in order and a little late; of views only
//! the newest. Leaves to others: the network and the devices.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dlc::membership::introducer::{IntroducerConfig, IntroducerOutput};
use dlc::membership::{self, Config, ExchangeError, ExchangeId, Identity, Introducer, Membership};
use dlc::node::Node;
use dlc::node::io::{Input, Output, RequestToken, Start};
use dlc::types::{Digest, Incarnation, NodeId, Rng, Server, Time, View, WallTime};
use dlc::wire::client::{Reply, Request};
use dlc::wire::datagram::{Datagram, MembershipReply, MembershipRequest};
use dlc::wire::schedule::AssignmentId;
use dlc::wire::{decode_datagram, encode_datagram};

use crate::clock::Clock;
use crate::cluster::{Action, Life, Sim};
use crate::connections::Peer;
use crate::disk::Disk;
use crate::network::HostId;

/// Datagrams and other events that a paused process's kernel keeps for it.
const DEFERRED_MAX: usize = 2000;

/// Gets the reply of a node, or `None` where the connection to it broke.
pub type Waiter = Box<dyn FnOnce(&mut Sim, Option<Reply>)>;
/// Hears that an upload is noted.
pub type Noted = Box<dyn FnOnce(&mut Sim)>;
/// Hears whether a transfer is done.
pub type Done = Box<dyn FnOnce(&mut Sim, bool)>;
/// Gets the reply of membership at the other end.
pub type Answer = Box<dyn FnOnce(&mut Sim, MembershipReply)>;

/// What the ping thread hears from other threads.
pub enum PingInput {
    /// From coord: join.
    Join,
    /// From coord: leave.
    Leave,
    /// From a handler: a request over TCP.
    Request(MembershipRequest, Answer),
    /// From the dialler: the end of an exchange.
    Exchanged(ExchangeId, Result<MembershipReply, ExchangeError>),
    /// From a peer thread: its connection closed.
    Closed(NodeId),
}

/// Channels of a node whose order matters.
#[derive(Clone, Copy)]
pub enum Channel {
    /// ping to coord.
    PingToCoord,
    /// coord to ping.
    CoordToPing,
    /// log to coord.
    LogToCoord,
}

/// A process of a node.
pub struct Process {
    /// The ping thread's core.
    pub membership: Membership,
    /// The coord thread's core.
    pub node: Node,
    /// Name and disk.
    pub server: Server,
    /// The newest view that ping has sent and coord has not taken.
    view_slot: Option<View>,
    /// The view that coord has.
    pub view: View,
    /// Outbound control connections.
    pub peers: BTreeMap<Server, Peer>,
    /// Clients that wait.
    pub requests: BTreeMap<RequestToken, Waiter>,
    /// Handlers that wait for an upload to be noted.
    pub uploads: BTreeMap<RequestToken, Noted>,
    next_token: u64,
    /// What the infer thread runs.
    pub running: Option<AssignmentId>,
    /// Networks that it has loaded.
    pub networks: BTreeSet<(String, Digest)>,
    /// Blobs that are being fetched.
    pub fetching: usize,
    ping_armed: Option<Time>,
    coord_armed: Option<Time>,
    channels: [Time; 3],
    /// When the log thread is free again.
    pub log_free: Time,
    /// Entries that the watchers have seen applied.
    pub applied_seen: u64,
    /// Turns of the coord thread.
    pub turns: u64,
}

impl Process {
    /// A fresh token.
    pub fn token(&mut self) -> RequestToken {
        self.next_token += 1;
        RequestToken(self.next_token)
    }
}

/// What runs on a machine.
pub enum Running {
    /// Nothing.
    Nothing,
    /// A node.
    Node(Box<Process>),
    /// An introducer, with the exchanges that wait for its answer.
    Introducer(Box<Introducer>, BTreeMap<u64, Answer>, u64),
}

/// A machine.
pub struct Host {
    /// Its node's name.
    pub name: NodeId,
    /// Its address.
    pub addr: SocketAddr,
    /// Its disk.
    pub disk: Disk,
    /// Raised with each start.
    pub life: u32,
    /// Its process.
    pub running: Running,
    /// The clock of this life.
    pub clock: Clock,
    /// Since when it is paused.
    paused: Option<Time>,
    deferred: VecDeque<Action>,
    /// Evicted or left for good: not started again.
    pub retired: bool,
    /// How many percent of the writes of copies fail, and until when.
    pub full: (u64, Time),
    /// How much slower than the fastest machine it computes, in percent.
    pub slowness: u64,
}

impl Host {
    /// A machine with an empty disk.
    pub fn new(name: NodeId, addr: SocketAddr, random: &mut Rng) -> Host {
        Host {
            name,
            addr,
            disk: Disk::new(random),
            life: 0,
            running: Running::Nothing,
            clock: Clock::start(Time(0), random),
            paused: None,
            deferred: VecDeque::new(),
            retired: false,
            full: (0, Time(0)),
            slowness: 100 + random.below(4) * 100,
        }
    }

    /// Whether a process runs, paused or not.
    pub fn is_running(&self) -> bool {
        !matches!(self.running, Running::Nothing)
    }

    /// Whether the process is paused.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Whether a process runs and is not paused.
    pub fn is_active(&self) -> bool {
        self.is_running() && self.paused.is_none()
    }

    /// Keeps an event for when the process goes on; timers are looked at anew then.
    pub fn defer(&mut self, action: Action) {
        let timer = matches!(
            action,
            Action::WakePing | Action::WakeCoord | Action::WakeIntroducer
        );
        let datagram = matches!(action, Action::Datagram(..));
        let lost = datagram && self.deferred.len() > DEFERRED_MAX;
        if !timer && !lost {
            self.deferred.push_back(action);
        }
    }

    /// The next event that was kept.
    pub fn next_deferred(&mut self) -> Option<Action> {
        self.deferred.pop_front()
    }

    /// The node's process.
    pub fn process(&self) -> Option<&Process> {
        match &self.running {
            Running::Node(process) => Some(process),
            _ => None,
        }
    }

    /// The node's process.
    pub fn process_mut(&mut self) -> Option<&mut Process> {
        match &mut self.running {
            Running::Node(process) => Some(process),
            _ => None,
        }
    }
}

impl Sim {
    /// The present life of `host`.
    pub fn life(&self, host: HostId) -> Life {
        (host, self.hosts[host].life)
    }

    /// Hosts that are nodes with an active process.
    pub fn active_nodes(&self) -> Vec<HostId> {
        (0..self.nodes)
            .filter(|id| self.hosts[*id].is_active())
            .collect()
    }

    /// Starts the process of `host` from what its disk holds, and lets it join.
    pub fn start(&mut self, id: HostId) {
        let introducers = self.introducers();
        let (now, wall) = (self.now, Clock::wall(self.now));
        let host = &self.hosts[id];
        if host.is_running() || host.retired {
            return;
        }
        if self.would_begin_a_second_cluster(id) {
            return self.after(Duration::from_secs(1), move |sim| sim.start(id));
        }
        let random = &mut self.streams.processes;
        let host = &mut self.hosts[id];
        host.life += 1;
        host.paused = None;
        host.deferred.clear();
        host.clock = Clock::start(now, random);
        let seed = random.next_u64();
        self.trace
            .note(now, id, "start", || format!("life {}", self.hosts[id].life));
        let host = &mut self.hosts[id];
        if id >= self.nodes {
            let first = id == self.nodes;
            let config = IntroducerConfig {
                permits_new_cluster: first,
                ..Default::default()
            };
            let core = Introducer::new(config, seed, Time(0));
            host.running = Running::Introducer(Box::new(core), BTreeMap::new(), 0);
            return;
        }
        self.start_node(id, seed, introducers, wall);
    }

    /// A new node that finds no member begins a cluster. Users are told to start an old node first
    /// where all are down.
    fn would_begin_a_second_cluster(&self, id: HostId) -> bool {
        let is_old = |host: &&Host| host.disk.cluster.is_some() && !host.retired;
        let mut old = self.hosts[..self.nodes].iter().filter(is_old).peekable();
        let is_new = id < self.nodes && self.hosts[id].disk.cluster.is_none();
        is_new && old.peek().is_some() && !old.any(Host::is_running)
    }

    fn start_node(&mut self, id: HostId, seed: u64, introducers: Vec<SocketAddr>, wall: WallTime) {
        let now = self.now;
        let host = &mut self.hosts[id];
        host.disk.incarnation = Incarnation(host.disk.incarnation.0 + 1);
        let server = Server {
            node: host.name.clone(),
            storage: host.disk.storage,
        };
        let identity = Identity {
            node: host.name.clone(),
            storage: host.disk.storage,
            incarnation: host.disk.incarnation,
            addr: host.addr,
            cluster: host.disk.cluster,
        };
        let mut membership = Membership::new(
            Config::default(),
            identity,
            introducers,
            seed,
            Time(0),
            wall,
        );
        membership.set_known(host.disk.members.clone());
        let start = Start {
            me: server.clone(),
            wall,
            recovered: host.disk.recovered(),
            held: host.disk.held(),
            seed: seed ^ 1,
            snapshot_bytes: [600, 5_000, 40_000, usize::MAX / 2][seed as usize % 4],
            crash_stop: self.plan.crash_stop,
            forming: host.disk.forming,
        };
        host.running = Running::Node(Box::new(Process {
            membership,
            node: Node::new(start, Time(0)),
            server,
            view_slot: None,
            view: View::default(),
            peers: BTreeMap::new(),
            requests: BTreeMap::new(),
            uploads: BTreeMap::new(),
            next_token: 0,
            running: None,
            networks: BTreeSet::new(),
            fetching: 0,
            ping_armed: None,
            coord_armed: None,
            channels: [now; 3],
            log_free: now,
            applied_seen: 0,
            turns: 0,
        }));
        self.watchers.started(now, id);
        let life = self.life(id);
        self.scrub(life);
        self.submit(id, Request::Join, Box::new(|_, _| ()));
    }

    /// Ends the process at once. What was not synced is lost, connections close.
    pub fn crash(&mut self, id: HostId, kind: &'static str) {
        if !self.hosts[id].is_running() {
            return;
        }
        self.trace.note(self.now, id, kind, String::new);
        let process = std::mem::replace(&mut self.hosts[id].running, Running::Nothing);
        let host = &mut self.hosts[id];
        host.paused = None;
        host.deferred.clear();
        host.disk.crash(&mut self.streams.devices);
        self.connections_of_dead(id);
        if let Running::Node(process) = process {
            self.watchers.stopped(self.now, id, &process.server);
            for (_, waiter) in process.requests {
                self.after(Duration::from_millis(1), |sim| waiter(sim, None));
            }
        }
    }

    /// Stops the process without a word; its machine goes on answering for its kernel.
    pub fn pause(&mut self, id: HostId) {
        if self.hosts[id].is_active() {
            self.trace.note(self.now, id, "pause", String::new);
            self.hosts[id].paused = Some(self.now);
        }
    }

    /// Lets the process go on. It may have been stopped while it worked: then it knows for how long.
    pub fn resume(&mut self, id: HostId) {
        if let Some(since) = self.hosts[id].paused.take() {
            self.trace.note(self.now, id, "resume", String::new);
            if id < self.nodes && self.streams.processes.chance(50) {
                self.handle_coord(id, Input::StoodStill(self.now.since(since)));
            }
            let life = self.life(id);
            self.catch_up(life);
        }
    }

    /// Time of the next hop on `channel`: never before the last one.
    fn hop_at(&mut self, id: HostId, channel: Channel) -> Time {
        let at = self.now + self.hop_delay();
        let Some(process) = self.hosts[id].process_mut() else {
            return at;
        };
        let last = &mut process.channels[channel as usize];
        *last = at.max(*last + Duration::from_nanos(1));
        *last
    }

    /// Sends `input` to the coord thread over `channel`.
    pub fn hop_to_coord(&mut self, id: HostId, channel: Channel, input: Input) {
        let (at, life) = (self.hop_at(id, channel), self.life(id));
        self.plan_at(at, Some(life), Action::Coord(Box::new(input)));
    }

    /// Sends `input` to the ping thread from a thread whose order does not matter.
    pub fn tell_ping(&mut self, life: Life, input: PingInput) {
        let at = self.now + self.hop_delay();
        self.plan_at(at, Some(life), Action::Ping(Box::new(input)));
    }

    /// A client's command to the node on `id`.
    pub fn submit(&mut self, id: HostId, request: Request, waiter: Waiter) {
        let (delay, life) = (self.hop_delay(), self.life(id));
        self.after_in(delay, life, move |sim| {
            let Some(process) = sim.hosts[id].process_mut() else {
                return;
            };
            let token = process.token();
            process.requests.insert(token, waiter);
            sim.handle_coord(id, Input::Request { token, request });
        });
    }

    // The ping thread.

    /// The ping thread's timer.
    pub fn wake_ping(&mut self, id: HostId) {
        let now = self.hosts[id].clock.local(self.now);
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        process.ping_armed = None;
        if process
            .membership
            .poll_timeout()
            .is_some_and(|at| at <= now)
        {
            process.membership.handle_timeout(now);
        }
        self.drain_ping(id);
    }

    /// Something for the ping thread.
    pub fn handle_ping(&mut self, id: HostId, input: PingInput) {
        let now = self.hosts[id].clock.local(self.now);
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        let membership = &mut process.membership;
        match input {
            PingInput::Join => membership.handle_join(now),
            PingInput::Leave => membership.handle_leave(now),
            PingInput::Request(request, answer) => {
                let reply = membership.handle_request(now, request);
                answer(self, reply);
            }
            PingInput::Exchanged(id, result) => membership.handle_exchanged(now, id, result),
            PingInput::Closed(node) => membership.handle_connection_closed(now, &node),
        }
        self.drain_ping(id);
    }

    /// A datagram for a node or an introducer.
    pub fn handle_datagram(&mut self, id: HostId, from: HostId, bytes: &[u8]) {
        let datagram = match decode_datagram(bytes) {
            Ok(datagram) => datagram,
            Err(error) => return self.violate("wire", format!("own datagram: {error}")),
        };
        self.trace.bytes(bytes);
        self.trace.note(self.now, id, "datagram", || {
            format!("from node-{from} {datagram:?}")
        });
        let now = self.hosts[id].clock.local(self.now);
        let addr = self.hosts[from].addr;
        match &mut self.hosts[id].running {
            Running::Nothing => {}
            Running::Node(process) => {
                process.membership.handle_datagram(now, addr, datagram);
                self.drain_ping(id);
            }
            Running::Introducer(core, ..) => {
                core.handle_datagram(now, addr, datagram);
                self.drain_introducer(id);
            }
        }
    }

    fn drain_ping(&mut self, id: HostId) {
        while let Some(output) = self.hosts[id]
            .process_mut()
            .and_then(|process| process.membership.poll_output())
        {
            match output {
                membership::Output::Transmit { to, datagram } => self.transmit(id, to, &datagram),
                membership::Output::Exchange {
                    id: exchange,
                    to,
                    request,
                } => {
                    self.exchange(id, exchange, to, request);
                }
                membership::Output::ViewChanged => {
                    let process = self.hosts[id].process_mut();
                    if let Some(view) = process.map(|it| it.membership.view().clone()) {
                        self.publish_view(id, view);
                    }
                }
                membership::Output::Joined {
                    member,
                    cluster,
                    formed,
                } => {
                    let disk = &mut self.hosts[id].disk;
                    disk.forming |= formed;
                    disk.cluster = Some(cluster);
                    self.watchers.joined(self.now, id);
                    let input = Input::Joined {
                        member,
                        cluster,
                        formed,
                    };
                    self.hop_to_coord(id, Channel::PingToCoord, input);
                }
                membership::Output::JoinRefused { reason } => {
                    let input = Input::JoinRefused(reason.to_string());
                    self.hop_to_coord(id, Channel::PingToCoord, input);
                }
                membership::Output::Left => {
                    self.hop_to_coord(id, Channel::PingToCoord, Input::Left);
                }
                membership::Output::Evicted { reason } => {
                    self.violate("P2", format!("node-{id} was evicted: {reason}"));
                }
                membership::Output::Incarnation(incarnation) => {
                    let disk = &mut self.hosts[id].disk;
                    disk.incarnation = disk.incarnation.max(incarnation);
                }
            }
        }
        let Some(process) = self.hosts[id].process() else {
            return;
        };
        let due = process.membership.poll_timeout();
        if let Some(at) = self.wake_at(id, due, process.ping_armed) {
            self.hosts[id].process_mut().expect("runs").ping_armed = Some(at);
            let life = self.life(id);
            self.plan_at(at, Some(life), Action::WakePing);
        }
    }

    /// When to wake for a deadline by the process's clock; `None` where it is armed already.
    fn wake_at(&self, id: HostId, due: Option<Time>, armed: Option<Time>) -> Option<Time> {
        let due = due.filter(|due| *due < Time::MAX)?;
        let at = self.hosts[id]
            .clock
            .global(due)
            .max(self.now + Duration::from_micros(50));
        armed.is_none_or(|armed| at < armed).then_some(at)
    }

    fn publish_view(&mut self, id: HostId, view: View) {
        self.trace.note(self.now, id, "view", || {
            let members = view.members.values();
            let names: Vec<String> = members
                .map(|m| format!("{}#{}{:?}", m.node, m.incarnation.0, m.state))
                .collect();
            names.join(" ")
        });
        self.watch_view(id, &view);
        let disk = &mut self.hosts[id].disk;
        if view.members.len() > 1 {
            disk.members = view.members.values().map(|member| member.addr).collect();
        }
        self.keep_peers(id, &view);
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        // Conflated: where one is on its way already, coord finds this one instead.
        if process.view_slot.replace(view).is_none() {
            let (at, life) = (self.hop_at(id, Channel::PingToCoord), self.life(id));
            self.plan_at(at, Some(life), Action::ViewReady);
        }
    }

    fn transmit(&mut self, from: HostId, to: SocketAddr, datagram: &Datagram) {
        let bytes: Arc<[u8]> = match encode_datagram(datagram) {
            Ok(bytes) => bytes.into(),
            Err(error) => return self.violate("wire", format!("node-{from} sends: {error}")),
        };
        let Some(to) = self.host_at(to) else { return };
        let delays = self.network.datagram_delays();
        if !self.network.is_open(from, to) {
            return;
        }
        for delay in delays.into_iter().flatten() {
            let life = self.life(to);
            let action = Action::Datagram(from, bytes.clone());
            self.plan_at(self.now + delay, Some(life), action);
        }
    }

    // The introducer.

    /// The introducer's timer.
    pub fn wake_introducer(&mut self, id: HostId) {
        let now = self.hosts[id].clock.local(self.now);
        if let Running::Introducer(core, ..) = &mut self.hosts[id].running {
            core.handle_timeout(now);
        }
        self.drain_introducer(id);
    }

    /// A request over TCP to whatever runs on `life`.
    pub fn ask_membership(&mut self, life: Life, request: MembershipRequest, answer: Answer) {
        let now = self.hosts[life.0].clock.local(self.now);
        match &mut self.hosts[life.0].running {
            Running::Nothing => {}
            Running::Node(_) => self.tell_ping(life, PingInput::Request(request, answer)),
            Running::Introducer(core, waiting, next) => {
                *next += 1;
                waiting.insert(*next, answer);
                core.handle_request(now, *next, request);
                self.drain_introducer(life.0);
            }
        }
    }

    fn drain_introducer(&mut self, id: HostId) {
        while let Running::Introducer(core, waiting, _) = &mut self.hosts[id].running
            && let Some(output) = core.poll_output()
        {
            match output {
                IntroducerOutput::Transmit { to, datagram } => self.transmit(id, to, &datagram),
                IntroducerOutput::Reply { token, reply } => {
                    if let Some(answer) = waiting.remove(&token) {
                        answer(self, reply);
                    }
                }
            }
        }
        if let Running::Introducer(core, ..) = &self.hosts[id].running
            && let Some(at) = self.wake_at(id, core.poll_timeout(), None)
        {
            let life = self.life(id);
            self.plan_at(at, Some(life), Action::WakeIntroducer);
        }
    }

    // The coord thread.

    /// The coord thread's timer.
    pub fn wake_coord(&mut self, id: HostId) {
        let now = self.hosts[id].clock.local(self.now);
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        process.coord_armed = None;
        if process.node.poll_timeout().is_some_and(|at| at <= now) {
            process.node.handle(now, Input::Timeout);
        }
        self.drain_coord(id);
    }

    /// The newest view for the coord thread.
    pub fn handle_view(&mut self, id: HostId) {
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        if let Some(view) = process.view_slot.take() {
            process.view = view.clone();
            self.handle_coord(id, Input::View(view));
        }
    }

    /// Something for the coord thread.
    pub fn handle_coord(&mut self, id: HostId, input: Input) {
        self.trace.note(self.now, id, "in", || format!("{input:?}"));
        let now = self.hosts[id].clock.local(self.now);
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        process.node.handle(now, input);
        self.drain_coord(id);
    }

    fn drain_coord(&mut self, id: HostId) {
        while let Some(output) = self.hosts[id]
            .process_mut()
            .and_then(|process| process.node.poll_output())
        {
            self.obey(id, output);
        }
        self.watch_node(id);
        let Some(process) = self.hosts[id].process() else {
            return;
        };
        let due = process.node.poll_timeout();
        if let Some(at) = self.wake_at(id, due, process.coord_armed) {
            self.hosts[id].process_mut().expect("runs").coord_armed = Some(at);
            let life = self.life(id);
            self.plan_at(at, Some(life), Action::WakeCoord);
        }
    }

    fn obey(&mut self, id: HostId, output: Output) {
        match output {
            Output::Send { to, message } => self.send(id, to, message),
            Output::Reply { token, reply } => {
                self.trace
                    .note(self.now, id, "reply", || format!("{reply:?}"));
                let process = self.hosts[id].process_mut();
                if let Some(waiter) = process.and_then(|process| process.requests.remove(&token)) {
                    let delay = self.hop_delay();
                    self.after(delay, |sim| waiter(sim, Some(reply)));
                }
            }
            Output::StoredNoted { token } => {
                let process = self.hosts[id].process_mut();
                if let Some(noted) = process.and_then(|process| process.uploads.remove(&token)) {
                    noted(self);
                }
            }
            Output::Persist(write) => self.write_log(id, write),
            Output::Formed => self.hosts[id].disk.forming = false,
            Output::Fetch(blobs) => self.fetch(id, blobs),
            Output::Write { blob, name: _, job } => self.write_result(id, blob, job.csv()),
            Output::Remove(blobs) => {
                self.trace
                    .note(self.now, id, "remove", || format!("{blobs:?}"));
                blobs
                    .into_iter()
                    .for_each(|blob| self.hosts[id].disk.remove_blob(blob));
            }
            Output::Run(assignment) => self.run_task(id, assignment),
            // Nobody uploads labels here.
            Output::Grade { job, .. } => {
                let accuracy = None;
                self.hop_to_coord(id, Channel::LogToCoord, Input::Graded { job, accuracy });
            }
            Output::Load { files, keep } => self.load_model(id, files, keep),
            Output::Join => self.hop_to_ping(id, PingInput::Join),
            Output::Leave => self.hop_to_ping(id, PingInput::Leave),
            Output::Exit => self.exit(id),
        }
    }

    fn hop_to_ping(&mut self, id: HostId, input: PingInput) {
        let (at, life) = (self.hop_at(id, Channel::CoordToPing), self.life(id));
        self.plan_at(at, Some(life), Action::Ping(Box::new(input)));
    }

    /// An orderly end: the log is flushed, nothing is lost.
    fn exit(&mut self, id: HostId) {
        self.hosts[id].disk.log_synced(u64::MAX);
        self.watchers.left(self.now, id);
        self.crash(id, "exit");
    }

    /// Names of the nodes in `view`.
    pub fn names(view: &View) -> BTreeSet<NodeId> {
        view.members.keys().cloned().collect()
    }
}
