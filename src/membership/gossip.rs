//! News that wait for a ride on pings and acks.
//!
//! Decides: which updates go along, how often each, and that a datagram stays within
//! its size. Leaves to others: which updates there are (`members`), and what is sent
//! to everyone directly (`mod`).
//!
//! Source: SWIM, section 4.1 (infection-style spread by piggyback).

use std::collections::BTreeMap;

use crate::types::NodeId;
use crate::wire::datagram::{DATAGRAM_PAYLOAD, Full, Update};

#[derive(Clone, Debug)]
struct Waiting {
    update: Update,
    sent: u32,
}

/// The newest update about each member that has not been sent often enough.
/// Bounded by the number of members and tombstones, one entry for each.
#[derive(Clone, Debug, Default)]
pub struct Gossip {
    waiting: BTreeMap<NodeId, Waiting>,
}

impl Gossip {
    /// Starts to spread `update`; an older one about the same member is dropped.
    pub fn push(&mut self, update: Update) {
        let node = update.member.node.clone();
        self.waiting.insert(node, Waiting { update, sent: 0 });
    }

    /// Number of updates that are still to be sent.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How often an update is sent among `members` members.
    pub fn transmit_limit(factor: u32, members: usize) -> u32 {
        let magnitude = usize::BITS - members.leading_zeros();
        factor * magnitude.max(1)
    }

    /// Adds to `datagram` what fits, least sent first, and forgets what was sent
    /// `limit` times.
    pub fn fill(&mut self, datagram: &mut Full, limit: u32) {
        if self.waiting.is_empty() {
            return;
        }
        let mut size = datagram.size_bound();
        let mut order: Vec<(u32, NodeId)> = self
            .waiting
            .iter()
            .map(|(node, waiting)| (waiting.sent, node.clone()))
            .collect();
        order.sort();
        for (_, node) in order {
            let Some(waiting) = self.waiting.get_mut(&node) else {
                continue;
            };
            let already = datagram
                .updates
                .iter()
                .any(|other| other.member.node == node);
            let grown = size + waiting.update.size_bound();
            if already || grown > DATAGRAM_PAYLOAD {
                continue;
            }
            size = grown;
            datagram.updates.push(waiting.update.clone());
            waiting.sent += 1;
            if waiting.sent >= limit {
                self.waiting.remove(&node);
            }
        }
    }
}
