//! What the nodes' views say over time, and what may be concluded from it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use dlc::types::{Incarnation, NodeId, Time};

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
    /// Notes what is new in the view of `observer`. Both sides are in order, and mostly equal.
    pub(super) fn compare(&mut self, observer: SocketAddr) {
        let at = self.now;
        let process = self.nodes.get_mut(&observer).expect("node");
        let new = &process.core.view().members;
        let mut changes: Vec<(NodeId, Incarnation, bool)> = Vec::new();
        let mut raised: Vec<(NodeId, (Incarnation, Time))> = Vec::new();
        let (mut before, mut after) = (process.view.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let old = (order != Ordering::Greater)
                .then(|| before.next())
                .flatten();
            let new = (order != Ordering::Less).then(|| after.next()).flatten();
            match (old, new) {
                (Some((node, (incarnation, _))), None) => {
                    changes.push((node.clone(), *incarnation, true));
                }
                (None, Some((node, member))) => {
                    changes.push((node.clone(), member.incarnation, false));
                }
                (Some((node, (old, since))), Some((_, new))) if *old != new.incarnation => {
                    raised.push((node.clone(), (new.incarnation, *since)));
                }
                _ => {}
            }
        }
        process.view.extend(raised);
        for (node, incarnation, gone) in changes {
            match gone {
                true => process.view.remove(&node),
                false => process.view.insert(node.clone(), (incarnation, at)),
            };
            self.seen.push(Seen {
                at,
                observer,
                node,
                incarnation,
                gone,
            });
        }
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
        let observers: BTreeSet<SocketAddr> = self.running().into_iter().collect();
        self.change(victims, &observers, true, limit)
    }

    /// Runs until every node that ran has seen all of `nodes`, just started, come.
    pub fn return_of(&mut self, nodes: &[SocketAddr], limit: Duration) -> Option<Duration> {
        let running = self.running().into_iter();
        let others = running.filter(|addr| !nodes.contains(addr)).collect();
        self.change(nodes, &others, false, limit)
    }

    fn change(
        &mut self,
        about: &[SocketAddr],
        observers: &BTreeSet<SocketAddr>,
        gone: bool,
        limit: Duration,
    ) -> Option<Duration> {
        let (start, mut looked) = (self.now, self.seen.len());
        let names: BTreeSet<NodeId> = about
            .iter()
            .map(|addr| self.core(*addr).me().node.clone())
            .collect();
        let mut missing = names.len() * observers.len();
        while missing > 0 {
            if !self.step(start + limit) {
                return None;
            }
            for seen in &self.seen[looked..] {
                let counts = seen.gone == gone && names.contains(&seen.node);
                missing -= usize::from(counts && observers.contains(&seen.observer));
            }
            looked = self.seen.len();
        }
        Some(self.now.since(start))
    }
}
