//! How threads share the cores while every core computes.
//!
//! Decides: that inference gives way to everything else, and that threads which answer others
//! are not kept waiting for the end of a time slice that inference has begun (a waking thread
//! interrupts one with a longer slice at once; Linux 6.12 and newer, without effect before).
//! Inference stays an ordinary thread otherwise: what else runs on the machine does not starve it.

use std::io;

/// What a thread does with a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// Answers others, in little time.
    Prompt,
    /// Prepares what a computing thread waits for.
    Preparing,
    /// Keeps a core busy.
    Computing,
}

/// Time slice of threads that do not compute; the shortest that Linux knows.
const SHORT_NANOS: u64 = 100_000;

impl Priority {
    /// Niceness, and nanoseconds of a time slice, 0 for the system's own choice.
    fn parameters(self) -> (i32, u64) {
        match self {
            Priority::Prompt => (0, SHORT_NANOS),
            Priority::Preparing => (2, SHORT_NANOS),
            Priority::Computing => (5, 0),
        }
    }

    /// Gives it to the calling thread, and to those that it starts. A system that refuses only
    /// loses the courtesy.
    pub(super) fn take(self) {
        if let Err(error) = self.set() {
            log::debug!("cannot set a thread's priority: {error}");
        }
    }

    fn set(self) -> io::Result<()> {
        let (niceness, slice) = self.parameters();
        let attributes = libc::sched_attr {
            size: size_of::<libc::sched_attr>() as u32,
            sched_policy: libc::SCHED_OTHER as u32,
            sched_flags: 0,
            // One that was started with a lower priority keeps it: only root may raise it.
            sched_nice: niceness.max(own_niceness()),
            sched_priority: 0,
            sched_runtime: slice,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: the call reads `attributes`, which outlives it, and zero is this thread.
        let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn own_niceness() -> i32 {
    rustix::process::getpriority_process(None).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_takes_its_priority_and_hands_it_on() {
        let of = |priority: Priority| {
            let thread = std::thread::spawn(move || {
                priority.set().expect("an ordinary thread may do that");
                std::thread::spawn(own_niceness).join().expect("no panic")
            });
            thread.join().expect("no panic")
        };
        let own = own_niceness();
        assert_eq!(of(Priority::Prompt), own);
        assert_eq!(of(Priority::Preparing), own.max(2));
        assert_eq!(of(Priority::Computing), own.max(5));
    }
}
