//! Thread `files`, and one thread `files-N` for each connection that comes in.
//!
//! Decides: how many connections there may be, how long each may keep its thread waiting,
//! and how they end when the process stops. Leaves to others: what is said on them
//! ([`Service`]).

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, BufWriter};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use super::Shared;
use super::counters::count;
use crate::types::Time;
use crate::wire::peer::{Hello, Purpose};
use crate::wire::{PROTOCOL_VERSION, WireError, prepare, read_message};

/// Connections at once; a further one is closed at once, unread.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// A connection must say what it is for within this time.
const HELLO: Duration = Duration::from_secs(5);
/// A frame that has begun must come to its end, and a reply must be taken, within this time.
pub(super) const FRAME: Duration = Duration::from_secs(30);
const BUFFER: usize = 64 << 10;
/// Larger than a chunk with its header, so that each goes out in one call.
const WRITE_BUFFER: usize = 512 << 10;
/// Between two warnings of the same.
const WARNING_GAP: Duration = Duration::from_secs(10);
/// Pause after the system refused to give a connection (out of descriptors).
const PAUSE: Duration = Duration::from_millis(50);

/// What a process says on its connections.
pub(super) trait Service: Send + Sync + 'static {
    /// Serves one connection to its end. Errors are counted and logged; they end the connection.
    fn serve(&self, connection: &mut Connection<'_>, purpose: Purpose) -> Result<(), WireError>;
}

/// A connection that has introduced itself.
pub(super) struct Connection<'a> {
    stream: &'a TcpStream,
    pub(super) reader: BufReader<&'a TcpStream>,
    pub(super) writer: BufWriter<&'a TcpStream>,
    pub(super) from: SocketAddr,
    /// Place among the open connections, from 0; places are used again.
    pub(super) place: usize,
}

impl<'a> Connection<'a> {
    fn new(stream: &'a TcpStream, from: SocketAddr, place: usize) -> Connection<'a> {
        Connection {
            stream,
            reader: BufReader::with_capacity(BUFFER, stream),
            writer: BufWriter::with_capacity(WRITE_BUFFER, stream),
            from,
            place,
        }
    }

    /// Waits for the next frame without a limit. False when the other side has ended.
    /// From then on the frame must come within [`FRAME`].
    pub(super) fn wait_for_frame(&mut self) -> io::Result<bool> {
        if !self.reader.buffer().is_empty() {
            return Ok(true);
        }
        self.stream.set_read_timeout(None)?;
        let more = !self.reader.fill_buf()?.is_empty();
        self.stream.set_read_timeout(Some(FRAME))?;
        Ok(more)
    }

    /// For [`super::wake::is_closed`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The open connections, so that they can be ended.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<BTreeMap<usize, Arc<TcpStream>>>,
    /// When it was last said that there are too many.
    warned: Mutex<Option<Time>>,
}

impl Connections {
    /// Says that `from` was refused, but not for each of many.
    fn warn(&self, now: Time, from: SocketAddr) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|warned| warned + WARNING_GAP <= now) {
            *warned = Some(now);
            log::warn!(
                "{from} refused: {CONNECTIONS_MAX} connections are open (`stats` counts further refusals)"
            );
        }
    }

    /// Gives `stream` the lowest free place; none where all are taken.
    fn enter(&self, stream: &Arc<TcpStream>) -> Option<usize> {
        let mut open = self.open.lock();
        let place = (0..CONNECTIONS_MAX).find(|place| !open.contains_key(place))?;
        open.insert(place, stream.clone());
        Some(place)
    }

    /// Lets no connection read any more; what is being answered can still be written.
    pub(super) fn end_reading(&self) {
        for stream in self.open.lock().values() {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Ends all connections.
    pub(super) fn end(&self) {
        for stream in self.open.lock().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Frees a connection's place when its thread ends, by a panic too.
struct Place {
    shared: Arc<Shared>,
    place: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.open.lock().remove(&self.place);
        let open = &self.shared.counters.connections_open;
        open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts connections until the process stops; a connection to oneself wakes it for that.
pub(super) fn run<S: Service>(
    listener: TcpListener,
    shared: Arc<Shared>,
    service: Arc<S>,
) -> Result<(), String> {
    loop {
        let accepted = listener.accept();
        if shared.crew.is_stopping() {
            return Ok(());
        }
        match accepted {
            Ok((stream, from)) => start(stream, from, &shared, &service)?,
            // The caller has gone, or the system is out of something: others may still come.
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn start<S: Service>(
    stream: TcpStream,
    from: SocketAddr,
    shared: &Arc<Shared>,
    service: &Arc<S>,
) -> Result<(), String> {
    let stream = Arc::new(stream);
    let Some(place) = shared.connections.enter(&stream) else {
        count(&shared.counters.connections_refused);
        shared.connections.warn(shared.clock.now(), from);
        return Ok(());
    };
    count(&shared.counters.connections_accepted);
    count(&shared.counters.connections_open);
    let entered = Place {
        shared: shared.clone(),
        place,
    };
    let (shared, service) = (shared.clone(), service.clone());
    let crew = shared.crew.clone();
    crew.spawn_passing(&format!("files-{place}"), move || {
        // Moved in, so that it is dropped when this thread ends.
        let entered = entered;
        if let Err(error) = serve(&stream, from, entered.place, &*service) {
            match error {
                WireError::Io(error) => log::debug!("connection from {from}: {error}"),
                error => {
                    count(&shared.counters.frames_bad);
                    log::warn!("connection from {from} closed: {error}");
                }
            }
        }
        Ok(())
    })
}

fn serve(
    stream: &TcpStream,
    from: SocketAddr,
    place: usize,
    service: &impl Service,
) -> Result<(), WireError> {
    prepare(stream)?;
    stream.set_read_timeout(Some(HELLO))?;
    stream.set_write_timeout(Some(FRAME))?;
    let mut connection = Connection::new(stream, from, place);
    let hello: Hello = read_message(&mut connection.reader)?;
    if hello.version != PROTOCOL_VERSION {
        return Err(WireError::Version(hello.version));
    }
    service.serve(&mut connection, hello.purpose)
}
