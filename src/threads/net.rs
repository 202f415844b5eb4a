//! Sockets: how they are bound.
//!
//! Decides: socket options, and that TCP and UDP share one port number. Leaves to
//! others: connections (`wire::dial`), and everything that is said.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Tries to find a port that is free on TCP and UDP.
const PORT_TRIES: u32 = 64;
/// Bytes of datagrams that wait while a process is paused.
const DATAGRAM_BUFFER: usize = 1 << 20;

/// The sockets of a process, bound and not yet used.
#[derive(Debug)]
pub struct Bound {
    pub(super) listener: TcpListener,
    pub(super) socket: UdpSocket,
    pub(super) addr: SocketAddr,
}

impl Bound {
    /// The address with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Why the process cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error(
        "{protocol} port {} is in use on {}: stop the process that uses it, or give another --listen (port 0 takes a free one)",
        .addr.port(), .addr.ip()
    )]
    InUse {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// As asked.
        addr: SocketAddr,
    },
    /// Any other reason.
    #[error("cannot listen on {protocol} {addr}: {cause}: give another --listen")]
    Refused {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// As asked.
        addr: SocketAddr,
        /// What the operating system said.
        cause: io::Error,
    },
}

/// Binds TCP and UDP to `addr`; port 0 takes a port that is free for both.
pub fn bind(addr: SocketAddr) -> Result<Bound, BindError> {
    let failed = |protocol, addr| {
        move |cause: io::Error| match cause.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { protocol, addr },
            _ => BindError::Refused {
                protocol,
                addr,
                cause,
            },
        }
    };
    let mut tries = 1;
    loop {
        let listener = listen(addr).map_err(failed("TCP", addr))?;
        let bound = listener.local_addr().map_err(failed("TCP", addr))?;
        match datagrams(bound).map_err(failed("UDP", bound)) {
            Ok(socket) => {
                return Ok(Bound {
                    listener,
                    socket,
                    addr: bound,
                });
            }
            Err(BindError::InUse { .. }) if addr.port() == 0 && tries < PORT_TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A node that is started again must not wait for the connections of its predecessor.
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn datagrams(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SockAddr::from(addr))?;
    // A hint: the kernel may give less.
    let _ = socket.set_recv_buffer_size(DATAGRAM_BUFFER);
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The address that others reach `bound` at: itself, or this host's address on the way to
/// `other` where it listens on all addresses.
pub fn reachable(bound: SocketAddr, other: Option<SocketAddr>) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let probe = || -> io::Result<SocketAddr> {
        let other = other.ok_or(io::ErrorKind::NotFound)?;
        let socket = UdpSocket::bind(SocketAddr::new(bound.ip(), 0))?;
        socket.connect(other)?;
        socket.local_addr()
    };
    SocketAddr::new(probe().map_or(bound.ip(), |addr| addr.ip()), bound.port())
}
