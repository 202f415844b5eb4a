//! Waiting for a socket and for another thread at once.
//!
//! Decides: how a thread that sleeps on a socket is woken when something was put into its
//! channel (an eventfd beside the socket). Leaves to others: the channels.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Wakes the thread that waits on it. A wake before the wait is not lost.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker that has not been used.
    pub fn new() -> io::Result<Waker> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Waker(Arc::new(eventfd(0, flags)?)))
    }

    /// Ends the current wait, or the next one.
    pub fn wake(&self) {
        // It fails only where the counter is full, and then the thread wakes anyway.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Waits until woken, until `socket` can be read or was closed by the other side, or for `longest`.
    /// Whether the socket is ready.
    pub fn wait(&self, socket: Option<BorrowedFd<'_>>, longest: Duration) -> io::Result<bool> {
        let own = PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN);
        let mut fds = vec![own];
        fds.extend(socket.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::RDHUP)));
        let longest = Timespec {
            tv_sec: longest.as_secs() as i64,
            tv_nsec: longest.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&longest)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !fds[0].revents().is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.0, &mut count);
        }
        Ok(fds.get(1).is_some_and(|fd| !fd.revents().is_empty()))
    }
}

/// Whether the other side of `socket` has closed its connection.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}
