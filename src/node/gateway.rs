//! Commands that only the coordinator can carry out, on their way there and back.
//!
//! Decides: when a command is sent to the leader, when it is sent again, and when its
//! client is told that no coordinator can be reached. Repeating is safe because every
//! changing command carries a request id. Leaves to others: what the leader answers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::io::RequestToken;
use crate::types::Time;
use crate::wire::client::Request;

/// How long a client waits at most for a coordinator.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits while no leader is known at all: several elections.
const LEADERLESS_PATIENCE: Duration = Duration::from_secs(4);
/// After this, a command without answer is sent again: it or its answer was lost.
const RESEND: Duration = Duration::from_millis(1000);
/// After this, a leader that was not ready is asked again.
const NOT_READY: Duration = Duration::from_millis(50);
/// Most commands that wait at one node; further ones are refused as busy.
const PENDING_MAX: usize = 1024;

#[derive(Clone, Debug)]
struct Pending {
    client: RequestToken,
    request: Request,
    deadline: Time,
    send_at: Time,
}

/// The commands of this node's clients that wait for the leader.
#[derive(Clone, Debug)]
pub struct Gateway {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    leaderless_since: Option<Time>,
}

impl Gateway {
    /// Nothing waits and no leader is known. The first token follows `base`, which must be
    /// another one in each life of the process: answers to the former life may still come.
    pub fn new(base: u64, now: Time) -> Gateway {
        Gateway {
            next: base,
            pending: BTreeMap::new(),
            leaderless_since: Some(now),
        }
    }

    /// Takes a command; false where too many wait.
    pub fn submit(&mut self, now: Time, client: RequestToken, request: Request) -> bool {
        if self.pending.len() >= PENDING_MAX {
            return false;
        }
        self.next = self.next.wrapping_add(1);
        self.pending.insert(
            self.next,
            Pending {
                client,
                request,
                deadline: now + PATIENCE,
                send_at: now,
            },
        );
        true
    }

    /// The leader has changed, or has been lost: everything is sent again.
    pub fn handle_leader(&mut self, now: Time, known: bool) {
        self.leaderless_since = if known {
            None
        } else {
            self.leaderless_since.or(Some(now))
        };
        for pending in self.pending.values_mut() {
            pending.send_at = now;
        }
    }

    /// The receiver was no leader, or not ready.
    pub fn handle_not_leader(&mut self, now: Time, token: u64) {
        if let Some(pending) = self.pending.get_mut(&token) {
            pending.send_at = now + NOT_READY;
        }
    }

    /// The client of an answered command; none where the answer is a repetition.
    pub fn handle_answer(&mut self, token: u64) -> Option<RequestToken> {
        self.pending.remove(&token).map(|pending| pending.client)
    }

    /// The commands to send to the leader now. Call it only while one is known.
    pub fn due(&mut self, now: Time) -> Vec<(u64, Request)> {
        let mut due = Vec::new();
        for (token, pending) in &mut self.pending {
            if pending.send_at <= now {
                pending.send_at = now + RESEND;
                due.push((*token, pending.request.clone()));
            }
        }
        due
    }

    /// The clients whose patience has ended.
    pub fn expired(&mut self, now: Time) -> Vec<RequestToken> {
        let leaderless = self
            .leaderless_since
            .is_some_and(|since| since + LEADERLESS_PATIENCE <= now);
        let expired: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| {
                let waited = (pending.deadline - PATIENCE) + LEADERLESS_PATIENCE <= now;
                pending.deadline <= now || (leaderless && waited)
            })
            .map(|(token, _)| *token)
            .collect();
        expired
            .iter()
            .filter_map(|token| self.handle_answer(*token))
            .collect()
    }

    /// When to look again.
    pub fn poll_timeout(&self) -> Option<Time> {
        let leaderless = self.leaderless_since;
        self.pending
            .values()
            .map(|pending| match leaderless {
                // Nothing is sent without a leader; only patience runs.
                Some(since) => {
                    let patience = (since + LEADERLESS_PATIENCE)
                        .max((pending.deadline - PATIENCE) + LEADERLESS_PATIENCE);
                    pending.deadline.min(patience)
                }
                None => pending.deadline.min(pending.send_at),
            })
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::FileName;

    fn locate(name: &str) -> Request {
        let name = FileName::new(name).unwrap();
        Request::Locate { name, newest: 1 }
    }

    #[test]
    fn an_answer_to_a_former_life_is_not_taken_for_one_to_this() {
        let mut former = Gateway::new(1 << 40, Time(0));
        let mut this = Gateway::new(u64::MAX, Time(0));
        former.submit(Time(0), RequestToken(1), locate("old"));
        this.submit(Time(0), RequestToken(1), locate("new"));
        let (sent, _) = former.due(Time(0)).remove(0);
        assert_eq!(this.handle_answer(sent), None);
        let (sent, _) = this.due(Time(0)).remove(0);
        assert_eq!(this.handle_answer(sent), Some(RequestToken(1)));
    }
}
