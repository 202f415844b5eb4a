//! How a connection begins.
//!
//! Decides: the options of every connection, and that the side that dialled speaks first. Leaves
//! to others: what for, and how long to wait.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::TcpKeepalive;

use super::peer::{Hello, Purpose};
use super::{PROTOCOL_VERSION, WireError, write_message};

/// A host that has gone is noticed after this idle time and three probes.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Connects to `addr` and says what for. Reads and writes time out after `patience`.
pub fn dial(
    addr: SocketAddr,
    purpose: Purpose,
    connect: Duration,
    patience: Duration,
) -> Result<TcpStream, WireError> {
    let mut stream = TcpStream::connect_timeout(&addr, connect)?;
    prepare(&stream)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let hello = Hello {
        version: PROTOCOL_VERSION,
        purpose,
    };
    write_message(&mut stream, &hello)?;
    stream.flush()?;
    Ok(stream)
}

/// Options of every connection.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(Duration::from_secs(3))
        .with_retries(3);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
