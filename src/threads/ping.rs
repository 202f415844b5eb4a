//! Thread `ping`: owns the UDP socket and a membership core, a member's or an introducer's.
//!
//! Decides: that what waits in the socket is heard before a timer fires, so that a process
//! which was stalled does not take its neighbours for dead. Leaves to others: the
//! protocol (`membership`), connections (`dial`), and the view's consequences (`coord`).

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};

use super::Shared;
use super::counters::{add, count};
use super::wake::Waker;
use crate::membership::{ExchangeError, ExchangeId};
use crate::types::{NodeId, Time};
use crate::wire::datagram::{Datagram, MembershipReply, MembershipRequest};
use crate::wire::{DATAGRAM_MAX, decode_datagram, encode_datagram};

/// Commands that wait for the thread; further senders wait or drop theirs.
pub(super) const COMMANDS_MAX: usize = 256;
/// Datagrams and commands that are taken in one turn, before timers may fire.
const TURN_MAX: usize = 1000;
/// The thread looks at least this often for what it has to hand on.
const NAP: Duration = Duration::from_millis(500);

/// What other threads want of the core.
pub(super) enum Command {
    /// To become a member.
    Join,
    /// To leave.
    Leave,
    /// A request that came over TCP.
    Request {
        /// The request.
        request: MembershipRequest,
        /// For the answer; room for one.
        reply: Sender<MembershipReply>,
    },
    /// A TCP exchange has ended.
    Exchanged {
        /// Which.
        id: ExchangeId,
        /// How.
        result: Result<MembershipReply, ExchangeError>,
    },
    /// The control connection to this member closed.
    ConnectionClosed(NodeId),
    /// What is known of a member: one line for each event.
    Why {
        /// The member's name.
        name: String,
        /// For the answer; room for one.
        reply: Sender<Vec<String>>,
    },
    /// The core's counters.
    Stats {
        /// For the answer; room for one.
        reply: Sender<Vec<(&'static str, u64)>>,
    },
}

/// The way to the thread.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) commands: Sender<Command>,
    pub(super) waker: Waker,
}

impl Handle {
    /// Hands a hint over; it is lost where the thread has too many commands.
    pub(super) fn hint(&self, command: Command) {
        if self.commands.try_send(command).is_ok() {
            self.waker.wake();
        }
    }

    /// Hands `command` over, waiting for room. Whether that came in time.
    pub(super) fn send(&self, command: Command, patience: Duration) -> bool {
        let sent = self.commands.send_timeout(command, patience).is_ok();
        self.waker.wake();
        sent
    }
}

/// One exchange over TCP, for the threads `dial`.
pub(super) struct Exchange {
    /// For the report.
    pub(super) id: ExchangeId,
    /// Where to.
    pub(super) to: SocketAddr,
    /// What.
    pub(super) request: MembershipRequest,
}

/// What a core wants done, after its own outputs have been sorted.
pub(super) enum Step {
    /// Send a datagram.
    Transmit(SocketAddr, Datagram),
    /// Make a TCP exchange.
    Exchange(Exchange),
    /// Done already, or handed to another thread.
    Nothing,
}

/// A membership core together with what its other outputs lead to.
pub(super) trait Core: Send {
    /// A datagram came.
    fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: Datagram);
    /// Another thread wants something.
    fn handle_command(&mut self, now: Time, command: Command);
    /// A timer is due.
    fn handle_timeout(&mut self, now: Time);
    /// When `handle_timeout` is due.
    fn poll_timeout(&self) -> Option<Time>;
    /// The next thing to do, until none. An error ends the process.
    fn poll_step(&mut self) -> Result<Option<Step>, String>;
    /// Hands on what a full channel did not take; called once a turn.
    fn retry(&mut self);
}

/// The thread's own state.
pub(super) struct Ping<C> {
    pub(super) core: C,
    pub(super) socket: UdpSocket,
    pub(super) waker: Waker,
    pub(super) commands: Receiver<Command>,
    pub(super) exchanges: Sender<Exchange>,
    /// Closed when the thread is to end.
    pub(super) stop: Receiver<()>,
    pub(super) shared: Arc<Shared>,
}

impl<C: Core> Ping<C> {
    /// Runs until the process stops.
    pub(super) fn run(mut self) -> Result<(), String> {
        let clock = self.shared.clock;
        let failed = |error: io::Error| format!("the UDP socket failed: {error}");
        while self.stop.try_recv() != Err(TryRecvError::Disconnected) {
            let longest = clock.until(self.core.poll_timeout(), NAP);
            self.waker
                .wait(Some(self.socket.as_fd()), longest)
                .map_err(failed)?;
            self.drain_socket().map_err(failed)?;
            self.carry_out()?;
            for _ in 0..TURN_MAX {
                let Ok(command) = self.commands.try_recv() else {
                    break;
                };
                self.core.handle_command(clock.now(), command);
                self.carry_out()?;
            }
            let now = clock.now();
            if self.core.poll_timeout().is_some_and(|due| due <= now) {
                self.core.handle_timeout(now);
                self.carry_out()?;
            }
            self.core.retry();
        }
        Ok(())
    }

    fn drain_socket(&mut self) -> io::Result<()> {
        // One byte more than allowed, so that a longer datagram is not taken for a whole one.
        let mut buffer = [0; DATAGRAM_MAX + 1];
        let counters = &self.shared.counters;
        for _ in 0..TURN_MAX {
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // An earlier datagram of ours found no receiver.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            count(&counters.datagrams_received);
            add(&counters.datagram_bytes_received, length as u64);
            match decode_datagram(&buffer[..length]) {
                Ok(datagram) => {
                    let now = self.shared.clock.now();
                    self.core.handle_datagram(now, from, datagram);
                }
                Err(error) => {
                    count(&counters.datagrams_bad);
                    log::debug!("datagram from {from} dropped: {error}");
                }
            }
        }
        Ok(())
    }

    fn carry_out(&mut self) -> Result<(), String> {
        while let Some(step) = self.core.poll_step()? {
            match step {
                Step::Transmit(to, datagram) => self.transmit(to, &datagram),
                Step::Exchange(exchange) => {
                    let id = exchange.id;
                    if self.exchanges.try_send(exchange).is_err() {
                        // As good as no answer; the core tries again or asks somebody else.
                        count(&self.shared.counters.orders_refused);
                        let result = Err(ExchangeError::TimedOut);
                        let now = self.shared.clock.now();
                        let command = Command::Exchanged { id, result };
                        self.core.handle_command(now, command);
                    }
                }
                Step::Nothing => {}
            }
        }
        Ok(())
    }

    fn transmit(&self, to: SocketAddr, datagram: &Datagram) {
        let counters = &self.shared.counters;
        let sent = encode_datagram(datagram)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                self.socket
                    .send_to(&bytes, to)
                    .map_err(|error| error.to_string())
            });
        match sent {
            Ok(bytes) => {
                count(&counters.datagrams_sent);
                add(&counters.datagram_bytes_sent, bytes as u64);
            }
            Err(error) => {
                count(&counters.datagrams_unsent);
                log::debug!("datagram to {to} not sent: {error}");
            }
        }
    }
}

/// The newest value for a slow reader: what it has not taken yet is replaced.
pub(super) fn conflate<T>(sender: &Sender<T>, receiver: &Receiver<T>, mut value: T) {
    while let Err(TrySendError::Full(back)) = sender.try_send(value) {
        let _ = receiver.try_recv();
        value = back;
    }
}

/// Hands on what waits in `queue`, oldest first, as far as `sender` takes it.
pub(super) fn hand_on<T>(queue: &mut VecDeque<T>, sender: &Sender<T>) {
    while let Some(next) = queue.pop_front() {
        match sender.try_send(next) {
            Ok(()) => {}
            Err(TrySendError::Full(back)) => return queue.push_front(back),
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}
