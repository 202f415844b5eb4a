//! News that wait for a ride on pings and acks.
//!
//! Decides: which updates go along, how often each, and that a datagram stays within
//! its size. Leaves to others: which updates there are (`members`), and what is sent
//! to everyone directly (`belief`).
//!
//! Everyone is told directly, once. The rides repair what was lost of that: each of the six
//! neighbours on the ring, those that a member pings and those that ping it, hears the news
//! from it about twice. What still is missing somewhere is found by the digests.
//!
//! Source: SWIM, section 4.1 (infection-style spread by piggyback).

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{NodeId, Time};
use crate::wire::datagram::{DATAGRAM_PAYLOAD, Full, Update};

#[derive(Clone, Debug)]
struct Waiting {
    update: Update,
    since: Time,
    sent: u32,
}

/// The newest update about each member that has not been sent often enough.
/// Bounded by the number of members and tombstones, one entry for each.
#[derive(Clone, Debug)]
pub struct Gossip {
    waiting: BTreeMap<NodeId, Waiting>,
    /// The same, least sent first.
    order: BTreeSet<(u32, NodeId)>,
    rides: u32,
}

impl Gossip {
    /// Nothing to tell; each update will ride `rides` times.
    pub fn new(rides: u32) -> Gossip {
        Gossip {
            waiting: BTreeMap::new(),
            order: BTreeSet::new(),
            rides,
        }
    }

    /// Starts to spread `update`; an older one about the same member is dropped.
    pub fn push(&mut self, now: Time, update: Update) {
        let node = update.member.node.clone();
        let new = Waiting {
            update,
            since: now,
            sent: 0,
        };
        if let Some(old) = self.waiting.insert(node.clone(), new) {
            self.order.remove(&(old.sent, node.clone()));
        }
        self.order.insert((0, node));
    }

    /// Drops what has waited since before `since`: where so many joined or failed at once that it
    /// found no room, the digests find who missed it.
    pub fn forget(&mut self, since: Time) {
        self.waiting.retain(|node, waiting| {
            let kept = waiting.since >= since;
            if !kept {
                self.order.remove(&(waiting.sent, node.clone()));
            }
            kept
        });
    }

    /// Number of updates that are still to be sent.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds to `full` what fits, least sent first, and forgets what was sent often enough.
    pub fn fill(&mut self, full: &mut Full) {
        let mut size = full.size_bound();
        let mut taken = Vec::new();
        for (sent, node) in &self.order {
            let update = &self.waiting[node].update;
            let mut others = full.updates.iter();
            if others.any(|other| other.member.node == *node) {
                continue;
            }
            size += update.size_bound();
            if size > DATAGRAM_PAYLOAD {
                break;
            }
            full.updates.push(update.clone());
            taken.push((*sent, node.clone()));
        }
        for (sent, node) in taken {
            self.order.remove(&(sent, node.clone()));
            if sent + 1 >= self.rides {
                self.waiting.remove(&node);
            } else if let Some(waiting) = self.waiting.get_mut(&node) {
                waiting.sent += 1;
                self.order.insert((sent + 1, node));
            }
        }
    }
}
