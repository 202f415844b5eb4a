//! TCP: control connections between nodes, and exchanges of membership.
//!
//! Decides: that a control connection delivers in order or breaks, that a message is lost
//! where the connection is down or its queue is full, and what a dialler learns: refused at
//! once where no process listens, nothing for a while where no way is open. Leaves to others:
//! which members are connected (those of the view, as `peer-N` threads do).

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use dlc::membership::{ExchangeError, ExchangeId};
use dlc::node::io::Input;
use dlc::types::{Server, Time, View};
use dlc::wire::datagram::{MembershipReply, MembershipRequest};
use dlc::wire::peer::PeerMessage;
use dlc::wire::{decode, encode};

use crate::cluster::{Action, Life, Sim};
use crate::host::{PingInput, Running};
use crate::network::HostId;

/// Messages that wait for a connection to come up.
const QUEUE_MAX: usize = 64;
/// Messages in the kernels' buffers of one connection.
const BUFFER_MAX: usize = 512;
/// A connection attempt without an answer ends after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection on which nothing gets through for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(4);
/// An exchange without a reply ends after this.
const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(1500);

/// One outbound control connection, as its thread sees it.
#[derive(Debug)]
pub enum Peer {
    /// Not connected; the next attempt comes then.
    Down,
    /// Being connected, with what waits.
    Connecting(VecDeque<PeerMessage>),
    /// Up.
    Up(u64),
}

/// A connection that is up.
struct Connection {
    from: Life,
    from_server: Server,
    to: Life,
    to_server: Server,
    buffer: VecDeque<(Time, PeerMessage)>,
    stalled_since: Option<Time>,
    last: Time,
    planned: bool,
}

/// All connections that are up.
#[derive(Default)]
pub struct Connections {
    up: BTreeMap<u64, Connection>,
    next: u64,
    sent: u64,
}

impl Sim {
    /// Keeps one connection to each member of the view.
    pub fn keep_peers(&mut self, id: HostId, view: &View) {
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        let own = process.server.clone();
        let gone: Vec<Server> = process
            .peers
            .keys()
            .filter(|peer| view.server(peer).is_none())
            .cloned()
            .collect();
        for server in gone {
            if let Some(Peer::Up(connection)) = self.hosts[id]
                .process_mut()
                .and_then(|process| process.peers.remove(&server))
            {
                self.connections.up.remove(&connection);
            }
        }
        for member in view.members.values() {
            let server = member.server();
            let known = |sim: &Sim| {
                sim.hosts[id]
                    .process()
                    .is_some_and(|process| process.peers.contains_key(&server))
            };
            if server != own && !known(self) {
                let process = self.hosts[id].process_mut().expect("runs");
                process.peers.insert(server.clone(), Peer::Down);
                self.connect(self.life(id), server, member.addr);
            }
        }
    }

    fn connect(&mut self, from: Life, server: Server, addr: SocketAddr) {
        let Some(process) = self.hosts[from.0].process_mut() else {
            return;
        };
        match process.peers.get_mut(&server) {
            Some(peer @ Peer::Down) => *peer = Peer::Connecting(VecDeque::new()),
            _ => return,
        }
        let Some(to) = self.host_at(addr) else { return };
        let open = self.network.is_open_both_ways(from.0, to);
        let delay = if open {
            self.network.segment_delay() + self.network.segment_delay()
        } else {
            CONNECT_TIMEOUT
        };
        self.after_in(delay, from, move |sim| {
            sim.connected(from, server, addr, to, open)
        });
    }

    fn connected(&mut self, from: Life, server: Server, addr: SocketAddr, to: HostId, open: bool) {
        let accepts = self.hosts[to]
            .process()
            .is_some_and(|process| process.server == server);
        let to_life = self.life(to);
        let connection = self.connections.next;
        let now = self.now;
        let Some(process) = self.hosts[from.0].process_mut() else {
            return;
        };
        let from_server = process.server.clone();
        let Some(peer) = process.peers.get_mut(&server) else {
            return;
        };
        let Peer::Connecting(waiting) = peer else {
            return;
        };
        if !open || !accepts {
            *peer = Peer::Down;
            let pause = self
                .streams
                .hops
                .span(Duration::from_millis(50), Duration::from_millis(400));
            if open {
                // Refused, or closed by another server: it may have died.
                self.tell_ping(from, PingInput::Closed(server.node.clone()));
            }
            return self.after_in(pause, from, move |sim| sim.connect(from, server, addr));
        }
        let waiting = std::mem::take(waiting);
        *peer = Peer::Up(connection);
        self.connections.next += 1;
        self.connections.up.insert(
            connection,
            Connection {
                from,
                from_server,
                to: to_life,
                to_server: server,
                buffer: VecDeque::new(),
                stalled_since: None,
                last: now,
                planned: false,
            },
        );
        waiting
            .into_iter()
            .for_each(|message| self.push(connection, message));
    }

    /// A message from the coord thread to a peer thread; lost where that is down or full.
    pub fn send(&mut self, id: HostId, to: Server, message: PeerMessage) {
        self.trace
            .note(self.now, id, "send", || format!("to {to:?} {message:?}"));
        self.watch_send(id, &message);
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        match process.peers.get_mut(&to) {
            None | Some(Peer::Down) => {}
            Some(Peer::Connecting(waiting)) if waiting.len() < QUEUE_MAX => {
                waiting.push_back(message)
            }
            Some(Peer::Connecting(_)) => {}
            Some(Peer::Up(connection)) => {
                let connection = *connection;
                self.push(connection, message);
            }
        }
    }

    fn push(&mut self, id: u64, message: PeerMessage) {
        self.connections.sent += 1;
        let message = if self.connections.sent.is_multiple_of(64) {
            let bytes = encode(&message);
            self.trace.bytes(&bytes);
            match decode::<PeerMessage>(&bytes) {
                Ok(same) if same == message => same,
                Ok(other) => {
                    return self.violate("wire", format!("{message:?} came back as {other:?}"));
                }
                Err(error) => return self.violate("wire", format!("{message:?}: {error}")),
            }
        } else {
            message
        };
        let delay = self.network.segment_delay() + self.hop_delay();
        let now = self.now;
        let Some(connection) = self.connections.up.get_mut(&id) else {
            return;
        };
        if connection.buffer.len() >= BUFFER_MAX {
            return;
        }
        let at = (now + delay).max(connection.last + Duration::from_nanos(1));
        connection.last = at;
        connection.buffer.push_back((at, message));
        if !connection.planned {
            connection.planned = true;
            self.plan_at(at, None, Action::Deliver(id));
        }
    }

    /// The head of a connection's buffer may arrive now.
    pub fn deliver(&mut self, id: u64) {
        let now = self.now;
        let Some(connection) = self.connections.up.get_mut(&id) else {
            return;
        };
        connection.planned = false;
        let to = connection.to;
        let open = self.network.is_open_both_ways(connection.from.0, to.0);
        let alive = self.hosts[to.0].life == to.1 && self.hosts[to.0].is_running();
        if open && !alive {
            return self.close(id);
        }
        let blocked = !open || self.hosts[to.0].is_paused();
        let connection = self.connections.up.get_mut(&id).expect("is up");
        if blocked {
            let since = *connection.stalled_since.get_or_insert(now);
            if !open && now.since(since) > STALL_MAX {
                return self.close(id);
            }
            connection.planned = true;
            return self.plan_at(now + Duration::from_millis(100), None, Action::Deliver(id));
        }
        connection.stalled_since = None;
        let from = connection.from_server.clone();
        let message = match connection.buffer.front() {
            Some((at, _)) if *at <= now => connection.buffer.pop_front(),
            _ => None,
        };
        if let Some((at, _)) = connection.buffer.front() {
            let at = *at;
            connection.planned = true;
            self.plan_at(at, None, Action::Deliver(id));
        }
        if let Some((_, message)) = message {
            self.handle_coord(to.0, Input::Message { from, message });
        }
    }

    /// The connection broke: what was on its way is lost, the dialling side learns of it.
    fn close(&mut self, id: u64) {
        let Some(connection) = self.connections.up.remove(&id) else {
            return;
        };
        let (from, server) = (connection.from, connection.to_server);
        let delay = self.network.segment_delay();
        self.after_in(delay, from, move |sim| sim.closed(from, server, id));
    }

    fn closed(&mut self, from: Life, server: Server, id: u64) {
        let Some(process) = self.hosts[from.0].process_mut() else {
            return;
        };
        let member = process
            .view
            .server(&server)
            .or(process.membership.view().server(&server));
        let addr = member.map(|member| member.addr);
        match process.peers.get_mut(&server) {
            Some(peer @ Peer::Up(_)) => {
                if matches!(peer, Peer::Up(now) if *now != id) {
                    return;
                }
                *peer = Peer::Down;
            }
            _ => return,
        }
        self.trace
            .note(self.now, from.0, "closed", || format!("{server:?}"));
        self.tell_ping(from, PingInput::Closed(server.node.clone()));
        if let Some(addr) = addr {
            let pause = self
                .streams
                .hops
                .span(Duration::from_millis(1), Duration::from_millis(200));
            self.after_in(pause, from, move |sim| sim.connect(from, server, addr));
        }
    }

    /// A process died: its kernel closes its connections, unless nobody can hear that.
    pub fn connections_of_dead(&mut self, id: HostId) {
        let life = self.life(id);
        let of_it: Vec<u64> = self
            .connections
            .up
            .iter()
            .filter(|(_, connection)| connection.from == life || connection.to == life)
            .map(|(id, _)| *id)
            .collect();
        for id in of_it {
            let connection = self.connections.up.get_mut(&id).expect("listed");
            if connection.from == life {
                // What is in the kernel may still arrive, all or nothing of the rest.
                let sent = self.streams.hops.below(connection.buffer.len() as u64 + 1);
                connection.buffer.truncate(sent as usize);
            } else {
                self.close_when_heard(id);
            }
        }
    }

    fn close_when_heard(&mut self, id: u64) {
        let Some(connection) = self.connections.up.get(&id) else {
            return;
        };
        if self.network.is_open(connection.to.0, connection.from.0) {
            self.close(id);
        } else {
            self.after(Duration::from_millis(200), move |sim| {
                sim.close_when_heard(id)
            });
        }
    }

    /// An exchange of membership: dial, ask, report.
    pub fn exchange(
        &mut self,
        id: HostId,
        exchange: ExchangeId,
        to: SocketAddr,
        request: MembershipRequest,
    ) {
        self.trace
            .note(self.now, id, "exchange", || format!("{to} {request:?}"));
        let from = self.life(id);
        let done = move |sim: &mut Sim, result: Result<MembershipReply, ExchangeError>| {
            sim.tell_ping(from, PingInput::Exchanged(exchange, result));
        };
        let Some(to) = self.host_at(to) else {
            return done(self, Err(ExchangeError::Unreachable));
        };
        // The later of two reports is ignored by the core, as it is by a real dialler.
        self.after_in(EXCHANGE_TIMEOUT, from, move |sim| {
            done(sim, Err(ExchangeError::TimedOut))
        });
        if !self.network.is_open_both_ways(id, to) {
            return;
        }
        let delay = self.network.segment_delay() + self.network.segment_delay();
        self.after(delay, move |sim| {
            if matches!(sim.hosts[to].running, Running::Nothing) {
                return done(sim, Err(ExchangeError::Refused));
            }
            let life = sim.life(to);
            sim.after_in(Duration::ZERO, life, move |sim| {
                let answer = Box::new(move |sim: &mut Sim, reply: MembershipReply| {
                    if sim.network.is_open_both_ways(from.0, to) {
                        let delay = sim.network.segment_delay();
                        sim.after_in(delay, from, move |sim| done(sim, Ok(reply)));
                    }
                });
                sim.ask_membership(life, request, answer);
            });
        });
    }
}
