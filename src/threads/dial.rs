//! Threads `dial-N`: membership's exchanges over TCP.
//!
//! Decides: how long a connection and an answer may take, both together less than the
//! core's own patience. Leaves to others: what is asked and what the answer means.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::ping::{Command, Exchange, Handle};
use crate::membership::ExchangeError;
use crate::wire::datagram::{MembershipReply, MembershipRequest};
use crate::wire::peer::Purpose;
use crate::wire::{WireError, dial, read_message, write_message};

/// Threads; as many hosts may be unreachable at once without holding up the others.
pub(super) const DIALLERS: usize = 4;
/// Exchanges that wait for a thread; further ones count as not answered.
pub(super) const EXCHANGES_MAX: usize = 64;
const CONNECT: Duration = Duration::from_millis(800);
const ANSWER: Duration = Duration::from_millis(1000);
/// An introducer that is asked for a name in use probes its holder before it answers.
const ANSWER_JOIN: Duration = Duration::from_millis(1800);
const REPORT: Duration = Duration::from_secs(5);

/// Makes exchanges until the channel closes.
pub(super) fn run(exchanges: Receiver<Exchange>, ping: Handle) -> Result<(), String> {
    for Exchange { id, to, request } in exchanges {
        let result = exchange(to, &request);
        // Where the thread takes nothing for so long, the exchange has expired anyway.
        ping.send(Command::Exchanged { id, result }, REPORT);
    }
    Ok(())
}

fn exchange(to: SocketAddr, request: &MembershipRequest) -> Result<MembershipReply, ExchangeError> {
    let ask = || -> Result<MembershipReply, WireError> {
        let patience = match request {
            MembershipRequest::Join(_) => ANSWER_JOIN,
            MembershipRequest::Sync { .. } | MembershipRequest::Probe { .. } => ANSWER,
        };
        let mut stream = dial(to, Purpose::Membership, CONNECT, patience)?;
        write_message(&mut stream, request)?;
        read_message(&mut stream)
    };
    ask().map_err(|error| match error {
        WireError::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => ExchangeError::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ExchangeError::TimedOut,
            _ => ExchangeError::Unreachable,
        },
        _ => ExchangeError::Unreachable,
    })
}
