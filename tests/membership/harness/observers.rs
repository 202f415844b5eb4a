//! What the nodes' views say over time, and what may be concluded from it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use dlc::types::{Incarnation, NodeId, Time, View};

use super::Cluster;

/// One change that a node saw in its view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub at: Time,
    pub observer: SocketAddr,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub gone: bool,
}

impl Cluster {
    pub(super) fn compare(&mut self, observer: SocketAddr, view: View) {
        let (at, old) = (self.now, std::mem::take(&mut self.node(observer).view));
        let seen = |node: &NodeId, of: &View, gone| Seen {
            at,
            observer,
            node: node.clone(),
            incarnation: of.members[node].incarnation,
            gone,
        };
        let gone = old.members.keys().filter(|n| !view.members.contains_key(n));
        let come = view.members.keys().filter(|n| !old.members.contains_key(n));
        let gone = gone.map(|node| seen(node, &old, true));
        let come = come.map(|node| seen(node, &view, false));
        self.seen.extend(gone.chain(come));
        self.node(observer).view = view;
    }

    /// Members that went from somebody's view.
    pub fn removals(&self) -> Vec<&Seen> {
        self.seen.iter().filter(|seen| seen.gone).collect()
    }

    /// Lives of members that were taken for failed by anybody.
    pub fn lives_removed(&self) -> BTreeSet<(NodeId, Incarnation)> {
        let removals = self.removals().into_iter();
        removals
            .map(|seen| (seen.node.clone(), seen.incarnation))
            .collect()
    }

    /// Runs until every running node has seen all of `victims` go, and says how long that took.
    pub fn detection(&mut self, victims: &[SocketAddr], limit: Duration) -> Option<Duration> {
        let (start, first) = (self.now, self.seen.len());
        let names: BTreeSet<NodeId> = victims
            .iter()
            .map(|addr| self.core(*addr).me().node.clone())
            .collect();
        let observers: BTreeSet<SocketAddr> = self.running().into_iter().collect();
        let end = start + limit;
        let (mut missing, mut looked) = (names.len() * observers.len(), first);
        while missing > 0 {
            if !self.step(end) {
                return None;
            }
            for seen in &self.seen[looked..] {
                let counts = seen.gone && names.contains(&seen.node);
                missing -= usize::from(counts && observers.contains(&seen.observer));
            }
            looked = self.seen.len();
        }
        Some(self.now.since(start))
    }
}
