//! A connection to one node, for commands: one request, one reply at a time.
//!
//! Decides: how long to wait, and the words when a node is not there. Leaves to
//! others: what the commands mean, and the bytes of files (`transfer`).

use std::io::{ErrorKind, IsTerminal, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::store::upload::ATTEMPTS_MAX;
use crate::types::RequestId;
use crate::wire::client::{Refusal, Reply, Request};
use crate::wire::peer::Purpose;
use crate::wire::{WireError, dial, read_message, write_message};

/// How long a node may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node may take to answer: longer than it waits for a coordinator itself.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// A person is told after this long, and again, that there is no answer yet.
const NOTICE: Duration = Duration::from_secs(3);

/// Why a command failed. `dlc` exits with 2 for `NoNode`, with 1 for the others.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error("no node answers at {addr} ({why}): start one, or name another with --node HOST:PORT")]
    NoNode {
        /// Where.
        addr: SocketAddr,
        /// What the connection said.
        why: String,
    },
    /// The node went away, or does not speak our protocol.
    #[error(
        "the node at {addr} broke off ({why}): if this was to change something, look whether it has \
         before you repeat it; another node may be asked with --node"
    )]
    BrokenOff {
        /// Where.
        addr: SocketAddr,
        /// What the connection said.
        why: String,
    },
    /// The cluster refused.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A file on this side.
    #[error("{path}: {why}")]
    Local {
        /// The file.
        path: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The node answered something else than was asked.
    #[error(
        "the node at {addr} gave an answer that does not fit the question: is it of another version?"
    )]
    Protocol {
        /// Where.
        addr: SocketAddr,
    },
    /// Anything that has its own words.
    #[error("{0}")]
    Other(String),
}

/// Waits until a reply begins. A person is told of a long wait, and what it may be for.
fn wait_for_reply(stream: &TcpStream, addr: SocketAddr) -> Result<(), WireError> {
    let begun = Instant::now();
    loop {
        let left = REPLY_TIMEOUT.saturating_sub(begun.elapsed());
        stream.set_read_timeout(Some(NOTICE.min(left).max(Duration::from_millis(1))))?;
        match stream.peek(&mut [0]) {
            Ok(_) => break,
            Err(error) if is_timeout(&error) && left > NOTICE => {
                if std::io::stderr().is_terminal() {
                    let (waited, patience) = (begun.elapsed().as_secs(), REPLY_TIMEOUT.as_secs());
                    eprintln!(
                        "waiting for {addr} since {waited} s of at most {patience}: it may be \
                         starting, be without a coordinator, or stand still"
                    );
                }
            }
            Err(error) if is_timeout(&error) => {
                let why = format!(
                    "no answer within {} s, as while it starts and reads its disk",
                    REPLY_TIMEOUT.as_secs()
                );
                return Err(std::io::Error::new(ErrorKind::TimedOut, why).into());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(stream.set_read_timeout(Some(REPLY_TIMEOUT))?)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A client of one node.
pub struct Client {
    addr: SocketAddr,
    stream: Option<TcpStream>,
    /// Random, so that no two clients share request ids.
    id: u128,
    sequence: u64,
}

impl Client {
    /// A client of the node at `addr`; connects with the first request.
    pub fn new(addr: SocketAddr) -> Client {
        let mut id = [0; 16];
        // The kernel's generator does not fail once the machine has booted.
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .expect("kernel randomness");
        Client {
            addr,
            stream: None,
            id: u128::from_le_bytes(id),
            sequence: 0,
        }
    }

    /// The node's address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A fresh request id.
    pub fn request_id(&mut self) -> RequestId {
        // An upload uses up to three numbers: one for each time that it starts over.
        self.sequence += ATTEMPTS_MAX;
        RequestId {
            client: self.id,
            sequence: self.sequence,
        }
    }

    fn connect(&mut self) -> Result<&mut TcpStream, ClientError> {
        if self.stream.is_none() {
            let stream = dial(self.addr, Purpose::Client, CONNECT_TIMEOUT, REPLY_TIMEOUT);
            let stream = stream.map_err(|error| ClientError::NoNode {
                addr: self.addr,
                why: error.to_string(),
            })?;
            self.stream = Some(stream);
        }
        Ok(self.stream.as_mut().expect("set above"))
    }

    /// The node's reply to `request`; a refusal is an error.
    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let addr = self.addr;
        let stream = self.connect()?;
        let mut exchange = || -> Result<Reply, WireError> {
            write_message(stream, request)?;
            stream.flush()?;
            wait_for_reply(stream, addr)?;
            read_message(stream)
        };
        let exchanged = exchange();
        self.take(exchanged)
    }

    /// A further reply to the last request, where it has several.
    pub fn further(&mut self) -> Result<Reply, ClientError> {
        let addr = self.addr;
        let stream = self.connect()?;
        let mut read = || -> Result<Reply, WireError> {
            wait_for_reply(stream, addr)?;
            read_message(stream)
        };
        let read = read();
        self.take(read)
    }

    fn take(&mut self, reply: Result<Reply, WireError>) -> Result<Reply, ClientError> {
        match reply {
            Ok(Reply::Refused(refusal)) => Err(refusal.into()),
            Ok(reply) => Ok(reply),
            Err(error) => {
                self.stream = None;
                Err(ClientError::BrokenOff {
                    addr: self.addr,
                    why: error.to_string(),
                })
            }
        }
    }

    /// The error for a reply of the wrong kind.
    pub fn unexpected(&self) -> ClientError {
        ClientError::Protocol { addr: self.addr }
    }
}
