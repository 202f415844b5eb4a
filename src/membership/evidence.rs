//! Why members came and went: the log behind the command `why NAME`.
//!
//! Decides: what is recorded of each change, and how it reads. Leaves to others: the
//! decisions themselves (`mod`, `detector`).

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::types::{Incarnation, NodeId, WallTime};

/// How a member was found silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// No answer to any probe for this long, over so many rounds.
    Silent {
        /// From the first unanswered ping.
        span: Duration,
        /// Pings sent in that time.
        rounds: u32,
    },
    /// Its host refused the connection twice, or another process answered there.
    Refused,
}

/// Why a suspicion became a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ground {
    /// These missed it independently.
    Agreement(Vec<NodeId>),
    /// Nobody refuted the suspicion in time.
    Expired,
    /// Another member said that it was removed.
    Told,
}

/// What happened to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It became a member here, or started a new life.
    Joined,
    /// It has the name of a member that was at this address until then.
    TookOver(SocketAddr),
    /// This node missed it.
    Missed(Miss),
    /// `by` accused it.
    Suspected,
    /// It answered a suspicion with a new life.
    Refuted,
    /// It was removed and came back with a new life.
    Returned,
    /// It was removed.
    Removed(Ground),
    /// It left of its own will.
    Left,
    /// This process was paused for so long and dropped its own evidence.
    Paused(Duration),
    /// Its name was taken by another disk.
    Evicted,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the clock of the node that recorded it.
    pub at: WallTime,
    /// Whom it is about.
    pub member: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
    /// Who did it or said so.
    pub by: NodeId,
    /// What happened.
    pub kind: EventKind,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { member, by, .. } = self;
        write!(f, "{}.{:03} ", self.at.clock(), self.at.0 % 1000)?;
        match &self.kind {
            EventKind::Joined => write!(f, "{member} joined")?,
            EventKind::TookOver(old) => {
                write!(
                    f,
                    "{member} joined, and has the name of the process at {old}"
                )?;
            }
            EventKind::Missed(Miss::Silent { span, rounds }) => write!(
                f,
                "{by} missed {member}: no answer to {rounds} pings in {} ms",
                span.as_millis()
            )?,
            EventKind::Missed(Miss::Refused) => {
                write!(f, "{by} missed {member}: connection refused twice")?;
            }
            EventKind::Suspected => write!(f, "{by} suspected {member}")?,
            EventKind::Refuted => write!(f, "{member} refuted the suspicion")?,
            EventKind::Returned => write!(f, "{member} was removed and came back")?,
            EventKind::Removed(Ground::Agreement(accusers)) => {
                let names: Vec<&str> = accusers.iter().map(NodeId::as_str).collect();
                write!(f, "{member} removed: {} missed it", names.join(" and "))?;
            }
            EventKind::Removed(Ground::Expired) => {
                write!(f, "{member} removed: it did not refute the suspicion")?;
            }
            EventKind::Removed(Ground::Told) => write!(f, "{member} removed, as {by} said")?,
            EventKind::Left => write!(f, "{member} left")?,
            EventKind::Paused(span) => {
                write!(f, "{member} was paused for {} ms", span.as_millis())?;
            }
            EventKind::Evicted => write!(f, "{member} gave way to another disk of its name")?,
        }
        write!(f, " (incarnation {})", self.incarnation.0)
    }
}

/// The newest events; the oldest goes when the bound is reached.
#[derive(Clone, Debug)]
pub struct Evidence {
    events: VecDeque<Event>,
    bound: usize,
    recorded: u64,
}

impl Evidence {
    /// An empty log of at most `bound` events.
    pub fn new(bound: usize) -> Evidence {
        Evidence {
            events: VecDeque::new(),
            bound,
            recorded: 0,
        }
    }

    /// Appends `event`.
    pub fn record(&mut self, event: Event) {
        if self.events.len() >= self.bound {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.recorded += 1;
    }

    /// How many events there ever were.
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// The events, oldest first.
    pub fn events(&self) -> &VecDeque<Event> {
        &self.events
    }
}
