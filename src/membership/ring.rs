//! The ring: live members in an order that is the same everywhere.
//!
//! Decides: who comes after whom. Leaves to others: who is live (`members`) and
//! what neighbours do for one another (`detector`).

use std::collections::BTreeSet;

use crate::types::NodeId;

/// Place of a name on the ring: the first eight bytes of its BLAKE3 digest, so that
/// names given in sequence are spread, and every node computes the same order.
pub fn position(node: &NodeId) -> u64 {
    let digest = blake3::hash(node.as_str().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// Live members in ring order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    order: BTreeSet<(u64, NodeId)>,
}

impl Ring {
    /// Adds `node`; it may be there already.
    pub fn insert(&mut self, node: &NodeId) {
        self.order.insert((position(node), node.clone()));
    }

    /// Takes `node` out; it may be gone already.
    pub fn remove(&mut self, node: &NodeId) {
        self.order.remove(&(position(node), node.clone()));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether `node` is on the ring.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.order.contains(&(position(node), node.clone()))
    }

    /// The members after `node` (on the ring or not), nearest first, going once round.
    pub fn after<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a NodeId> + use<'a> {
        let place = (position(node), node.clone());
        let own = place.clone();
        let behind = self.order.range(place.clone()..);
        behind
            .chain(self.order.range(..place))
            .filter(move |entry| **entry != own)
            .map(|(_, name)| name)
    }

    /// The members before `node` (on the ring or not), nearest first, going once round.
    pub fn before<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a NodeId> + use<'a> {
        let place = (position(node), node.clone());
        let own = place.clone();
        let ahead = self.order.range(..place.clone()).rev();
        ahead
            .chain(self.order.range(place..).rev())
            .filter(move |entry| **entry != own)
            .map(|(_, name)| name)
    }
}
