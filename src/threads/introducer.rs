//! The introducer process: the same sockets and threads around another core.
//!
//! Decides: nothing but which threads there are (`ping`, `files`, `files-N`). Leaves to
//! others: the protocol (`membership::introducer`).

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use parking_lot::RwLock;

use super::busy::Busy;
use super::clock::Clock;
use super::counters::{Counters, count};
use super::crew::Crew;
use super::listen::{self, Connection, Connections, Service};
use super::net::Bound;
use super::ping::{COMMANDS_MAX, Command, Core, Exchange, Handle, Ping, Step};
use super::wake::Waker;
use super::{Running, Shared, StartError, random};
use crate::membership::introducer::{Introducer, IntroducerConfig, IntroducerOutput};
use crate::types::{NodeId, Server, StorageId, Time};
use crate::wire::client::{Refusal, Reply};
use crate::wire::datagram::{Datagram, MembershipReply, MembershipRequest};
use crate::wire::peer::Purpose;
use crate::wire::{WireError, read_message, write_message};

/// Room for a request must come within this time.
const ROOM: Duration = Duration::from_secs(1);
/// Longer than the core probes the holder of a name.
const ANSWER: Duration = Duration::from_secs(2);
/// Requests whose clients may still wait; the oldest is forgotten.
const WAITING_MAX: usize = 1024;
/// Between two warnings of the same.
const WARNING_GAP: Duration = Duration::from_secs(60);

/// An [`Introducer`] and those who wait for its answers.
struct Introducing {
    core: Introducer,
    waiting: BTreeMap<u64, Sender<MembershipReply>>,
    next: u64,
    outputs: VecDeque<(SocketAddr, Datagram)>,
    /// When another cluster was last warned of.
    warned: Option<Time>,
}

impl Introducing {
    /// Two clusters announce themselves here: someone should know, for newcomers are sent to the
    /// one that is known.
    fn warn_of_another_cluster(&mut self, now: Time, from: SocketAddr) {
        if self.warned.is_none_or(|warned| warned + WARNING_GAP <= now) {
            self.warned = Some(now);
            let known: Vec<String> = self
                .core
                .members(now)
                .take(3)
                .map(|member| member.addr.to_string())
                .collect();
            log::warn!(
                "{from} belongs to another cluster than {}: newcomers are sent to the latter; \
                 stop one cluster, or give its nodes an introducer of their own",
                known.join(", ")
            );
        }
    }

    /// Sorts the outputs: answers go at once, datagrams wait for `poll_step`.
    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                IntroducerOutput::Transmit { to, datagram } => {
                    self.outputs.push_back((to, datagram));
                }
                IntroducerOutput::Reply { token, reply } => {
                    if let Some(client) = self.waiting.remove(&token) {
                        // A client that has gone does not read it.
                        let _ = client.try_send(reply);
                    }
                }
            }
        }
    }
}

impl Core for Introducing {
    fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: Datagram) {
        let before = self.core.stats().wrong_cluster;
        self.core.handle_datagram(now, from, datagram);
        if self.core.stats().wrong_cluster > before {
            self.warn_of_another_cluster(now, from);
        }
        self.drain();
    }

    fn handle_command(&mut self, now: Time, command: Command) {
        if let Command::Request { request, reply } = command {
            self.next += 1;
            if self.waiting.len() >= WAITING_MAX {
                self.waiting.pop_first();
            }
            self.waiting.insert(self.next, reply);
            self.core.handle_request(now, self.next, request);
            self.drain();
        }
    }

    fn handle_timeout(&mut self, now: Time) {
        self.core.handle_timeout(now);
        self.drain();
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.core.poll_timeout()
    }

    fn poll_step(&mut self) -> Result<Option<Step>, String> {
        let next = self.outputs.pop_front();
        Ok(next.map(|(to, datagram)| Step::Transmit(to, datagram)))
    }

    fn retry(&mut self) {}
}

/// What an introducer says on its connections.
struct Doorman {
    shared: Arc<Shared>,
    ping: Handle,
}

impl Service for Doorman {
    fn serve(&self, connection: &mut Connection<'_>, purpose: Purpose) -> Result<(), WireError> {
        match purpose {
            Purpose::Membership => {
                let request: MembershipRequest = read_message(&mut connection.reader)?;
                let (reply, answers) = bounded(1);
                if self.ping.send(Command::Request { request, reply }, ROOM)
                    && let Ok(reply) = answers.recv_timeout(ANSWER)
                {
                    write_message(&mut connection.writer, &reply)?;
                }
            }
            Purpose::Client => {
                let reason = "this is an introducer, which takes no commands: name a node";
                let refused = Reply::Refused(Refusal::Failed(reason.into()));
                write_message(&mut connection.writer, &refused)?;
            }
            Purpose::Peer { .. } | Purpose::Blobs => count(&self.shared.counters.peers_refused),
        }
        Ok(connection.writer.flush()?)
    }
}

/// Starts an introducer on bound sockets.
pub fn start_introducer(bound: Bound) -> Result<Running, StartError> {
    let clock = Clock::start();
    let (crew, endings) = Crew::new(clock);
    let seed = u64::from_le_bytes(random()?);
    let me = Server {
        node: NodeId::new("introducer").expect("a valid name"),
        storage: StorageId(u128::from_le_bytes(random()?)),
    };
    let shared = Arc::new(Shared {
        clock,
        crew,
        counters: Counters::default(),
        busy: Busy::default(),
        connections: Connections::default(),
        me,
        cluster: RwLock::new(None),
    });
    let waker = Waker::new().map_err(|error| StartError::System(format!("no eventfd: {error}")))?;
    let (commands, commanded) = bounded(COMMANDS_MAX);
    let (stop, stopped) = bounded(0);
    // It makes no exchanges.
    let (exchanges, _) = bounded::<Exchange>(0);
    let core = Introducing {
        core: Introducer::new(IntroducerConfig::default(), seed, clock.now()),
        waiting: BTreeMap::new(),
        next: 0,
        outputs: VecDeque::new(),
        warned: None,
    };
    let pinging = Ping {
        core,
        socket: bound.socket,
        waker: waker.clone(),
        commands: commanded,
        exchanges,
        stop: stopped,
        shared: shared.clone(),
    };
    let service = Arc::new(Doorman {
        shared: shared.clone(),
        ping: Handle {
            commands,
            waker: waker.clone(),
        },
    });
    let (listener, own) = (bound.listener, shared.clone());
    let crew = &shared.crew;
    crew.spawn("ping", move || pinging.run())
        .and_then(|()| crew.spawn("files", move || listen::run(listener, own, service)))
        .map_err(StartError::System)?;
    Ok(Running {
        addr: bound.addr,
        shared: shared.clone(),
        endings,
        ping: waker,
        stop: Some(stop),
    })
}
