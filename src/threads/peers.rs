//! Threads `peer-N`: this node's control connections, one to each other member.
//!
//! Decides: that messages to a member which is down, or slow, are lost rather than kept
//! (the cores repeat what matters), and that the end of an established connection is told
//! to membership at once. Leaves to others: what is sent.

use std::io::{self, BufWriter, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::Shared;
use super::counters::{add, count};
use super::ping::{Command, Handle};
use super::wake::Waker;
use crate::types::{ClusterId, Server};
use crate::wire::peer::{PeerMessage, Purpose};
use crate::wire::{WireError, dial, write_message};

/// Messages that wait for one connection; further ones are lost.
pub(super) const MESSAGES_MAX: usize = 256;
const CONNECT: Duration = Duration::from_millis(800);
/// A peer that takes nothing for so long is taken for down.
const STALL: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const NAP: Duration = Duration::from_secs(1);
const BUFFER: usize = 64 << 10;

/// The way to one peer. Dropped, it ends the thread.
pub(super) struct Peer {
    pub(super) addr: SocketAddr,
    queue: Option<Sender<PeerMessage>>,
    waker: Waker,
}

impl Peer {
    /// Starts the thread of the connection to `to` at `addr`.
    pub(super) fn start(
        number: u64,
        to: Server,
        addr: SocketAddr,
        cluster: ClusterId,
        ping: Handle,
        shared: &Arc<Shared>,
    ) -> Result<Peer, String> {
        let (queue, messages) = bounded(MESSAGES_MAX);
        let waker = Waker::new().map_err(|error| format!("no eventfd: {error}"))?;
        let link = Link {
            to,
            addr,
            cluster,
            messages,
            waker: waker.clone(),
            ping,
            shared: shared.clone(),
        };
        // The number wraps, so that the name stays short enough for the system.
        shared
            .crew
            .spawn_passing(&format!("peer-{}", number % 100_000), move || link.run())?;
        Ok(Peer {
            addr,
            queue: Some(queue),
            waker,
        })
    }

    /// Sends `message`, or loses it where the queue is full.
    pub(super) fn send(&self, message: PeerMessage, shared: &Shared) {
        let queue = self.queue.as_ref().expect("set until dropped");
        if queue.try_send(message).is_err() {
            count(&shared.counters.messages_lost);
        }
        self.waker.wake();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.queue = None;
        self.waker.wake();
    }
}

struct Link {
    to: Server,
    addr: SocketAddr,
    cluster: ClusterId,
    messages: Receiver<PeerMessage>,
    waker: Waker,
    ping: Handle,
    shared: Arc<Shared>,
}

/// How a connection ended.
enum End {
    /// The way to this peer is not wanted any more.
    Unwanted,
    /// It broke, or the other side closed it.
    Closed,
}

impl Link {
    fn run(self) -> Result<(), String> {
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.connect() {
                Ok(stream) => {
                    let since = self.shared.clock.now();
                    match self.serve(&stream) {
                        End::Unwanted => return Ok(()),
                        End::Closed => {
                            log::debug!("connection to {} at {} closed", self.to.node, self.addr);
                            self.hint();
                        }
                    }
                    if self.shared.clock.now().since(since) > BACKOFF_MAX {
                        backoff = BACKOFF_MIN;
                    }
                }
                Err(error) => {
                    log::debug!("cannot connect to {}: {error}", self.to.node);
                    // It may have died before there was a connection that could close.
                    if let WireError::Io(error) = error
                        && error.kind() == io::ErrorKind::ConnectionRefused
                    {
                        self.hint();
                    }
                }
            }
            if self.lose_messages(backoff) {
                return Ok(());
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Tells membership that the peer's process may be gone; pings find out as well.
    fn hint(&self) {
        let closed = Command::ConnectionClosed(self.to.node.clone());
        self.ping.hint(closed);
    }

    fn connect(&self) -> Result<TcpStream, WireError> {
        let purpose = Purpose::Peer {
            cluster: self.cluster,
            from: self.shared.me.clone(),
            to: self.to.clone(),
        };
        dial(self.addr, purpose, CONNECT, STALL)
    }

    /// Sends what comes until the connection ends.
    fn serve(&self, stream: &TcpStream) -> End {
        let mut writer = BufWriter::with_capacity(BUFFER, stream);
        loop {
            let mut sent = 0;
            loop {
                match self.messages.try_recv() {
                    Ok(message) => {
                        if let Err(error) = write_message(&mut writer, &message) {
                            count(&self.shared.counters.messages_lost);
                            match error {
                                WireError::TooLarge(..) => {
                                    log::error!("message to {} dropped: {error}", self.to.node);
                                }
                                _ => return End::Closed,
                            }
                        }
                        sent += 1;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return End::Unwanted,
                }
            }
            if sent > 0 {
                add(&self.shared.counters.messages_sent, sent);
                if writer.flush().is_err() {
                    return End::Closed;
                }
            }
            // The other side never writes: readable means closed.
            match self.waker.wait(Some(stream.as_fd()), NAP) {
                Ok(false) => {}
                Ok(true) | Err(_) => return End::Closed,
            }
        }
    }

    /// Loses what is sent for `span`. Whether the peer is not wanted any more.
    fn lose_messages(&self, span: Duration) -> bool {
        let until = self.shared.clock.now() + span;
        loop {
            let left = until.since(self.shared.clock.now());
            match self.messages.recv_timeout(left) {
                Ok(_) => count(&self.shared.counters.messages_lost),
                Err(error) => return error.is_disconnected(),
            }
            if left.is_zero() {
                return false;
            }
        }
    }
}
