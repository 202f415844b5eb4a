//! One question of a client to its node at a time, asked again while the node is busy.
//!
//! Decides: how long an answer is waited for. Leaves to others: what is asked and what
//! the answers mean (`upload`, `download`).

use std::time::Duration;

use crate::types::Time;
use crate::wire::client::{Refusal, Request};

/// A node that has not answered after so long is given up; it answers `NoQuorum` itself
/// long before.
pub const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Wait before a busy node is asked again.
const BUSY_TIME: Duration = Duration::from_millis(200);
/// How often a busy node is asked again.
const BUSY_MAX: u32 = 50;

/// The question that waits for its answer.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    request: Option<Request>,
    deadline: Time,
    again: Option<Time>,
    busy: u32,
}

impl Ask {
    /// Whether an answer is waited for.
    pub fn is_open(&self) -> bool {
        self.request.is_some()
    }

    /// Notes that `request` is sent now; gives it back for sending.
    pub fn open(&mut self, now: Time, request: Request) -> Request {
        *self = Ask {
            request: Some(request.clone()),
            deadline: now + ANSWER_TIME,
            again: None,
            busy: 0,
        };
        request
    }

    /// The answer has come, and needs no repetition.
    pub fn close(&mut self) {
        self.request = None;
        self.again = None;
    }

    /// The node is busy; whether it will be asked again.
    pub fn put_off(&mut self, now: Time) -> bool {
        self.busy += 1;
        self.again = Some(now + BUSY_TIME);
        self.busy <= BUSY_MAX
    }

    /// The question, where it is to be asked again now; or the refusal where no answer came
    /// in time.
    pub fn handle_timeout(&mut self, now: Time) -> Result<Option<Request>, Refusal> {
        if self.again.is_some_and(|again| again <= now) {
            self.again = None;
            self.deadline = now + ANSWER_TIME;
            return Ok(self.request.clone());
        }
        if self.is_open() && self.again.is_none() && self.deadline <= now {
            self.close();
            return Err(Refusal::NoQuorum(Vec::new()));
        }
        Ok(None)
    }

    /// When [`Ask::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.is_open().then(|| self.again.unwrap_or(self.deadline))
    }
}
