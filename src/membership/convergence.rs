//! How views that differ become equal again.
//!
//! Decides: when two members exchange all that they believe, how the parts of a cut
//! cluster find one another, and what the introducers are told. Leaves to others: the
//! merging (`members`) and the ordinary spread (`gossip`, `belief`).

use std::net::SocketAddr;
use std::time::Duration;

use super::{DIFFERING_MAX, Membership, Purpose};
use crate::types::{MemberState, NodeId, SUCCESSORS, Time};
use crate::wire::datagram::{MembershipRequest, Sender, Word};

/// While the newest removal is younger than this, removed members are pinged more often.
const RECONNECT_EAGER: Duration = Duration::from_secs(60);

/// A member whose view has another digest than this node's.
#[derive(Clone, Debug)]
pub(super) struct Differing {
    pub(super) since: Time,
    pub(super) digest: u64,
    pub(super) addr: SocketAddr,
}

impl Membership {
    pub(super) fn compare_digest(
        &mut self,
        now: Time,
        from: SocketAddr,
        sender: &Sender,
        digest: u64,
    ) {
        let record = self.members.record(&sender.node);
        let unknown = record.is_none_or(|record| {
            let believed = &record.member;
            (believed.incarnation, believed.storage) < (sender.incarnation, sender.storage)
        });
        let leaving = record.is_some_and(|record| record.member.state == MemberState::Left);
        if !unknown && (leaving || digest == self.members.digest()) {
            self.differing.remove(&sender.node);
            return;
        }
        let room = self.differing.len() < DIFFERING_MAX;
        // Who is not known here at all is asked at once.
        let since = match unknown {
            true => now - self.config.sync_after,
            false => now,
        };
        match self.differing.get_mut(&sender.node) {
            Some(differing) => {
                differing.digest = digest;
                differing.addr = from;
            }
            None if room => {
                let differing = Differing {
                    since,
                    digest,
                    addr: from,
                };
                self.differing.insert(sender.node.clone(), differing);
            }
            None => {}
        }
    }

    pub(super) fn sync_due(&self) -> Option<Time> {
        let mut pending = self.exchanges.values();
        if pending.any(|pending| matches!(pending.purpose, Purpose::Sync)) {
            return None;
        }
        let since = self.differing.values().map(|differing| differing.since);
        since.min().map(|since| since + self.config.sync_after)
    }

    /// Exchanges everything with the member whose view has differed longest, one at a time.
    pub(super) fn synchronise(&mut self, now: Time) {
        if self.sync_due().is_none_or(|due| due > now) {
            return;
        }
        let digest = self.members.digest();
        self.differing.retain(|_, peer| peer.digest != digest);
        let longest = self.differing.iter().min_by_key(|(_, peer)| peer.since);
        let due = longest.filter(|(_, peer)| peer.since + self.config.sync_after <= now);
        let Some((node, addr)) = due.map(|(node, peer)| (node.clone(), peer.addr)) else {
            return;
        };
        let Some(cluster) = self.cluster else {
            return;
        };
        // Where it fails, the next ping or ack that differs begins anew.
        self.differing.remove(&node);
        self.stats.syncs += 1;
        let request = MembershipRequest::Sync {
            cluster,
            from: self.sender(),
            updates: self.members.updates(),
        };
        self.exchange(now, addr, request, Purpose::Sync);
    }

    /// Pings one removed member, so that the parts of a cut cluster find one another. Each of them
    /// is left to those who would be its monitors, so that this costs the same at any size.
    pub(super) fn reconnect(&mut self, now: Time) {
        let failed: Vec<NodeId> = self
            .members
            .tombstones()
            .filter_map(|(_, node)| self.members.record(node))
            .filter(|record| record.member.state == MemberState::Failed)
            .filter(|record| self.is_near(&record.member.node, SUCCESSORS))
            .map(|record| record.member.node.clone())
            .collect();
        let newest = self.members.tombstones().next_back().map(|(at, _)| *at);
        let eager = newest.is_none_or(|at| now.since(at) < RECONNECT_EAGER);
        let factor = if eager { 1 } else { 5 };
        self.reconnect_at = now + self.config.reconnect_period * factor;
        if !failed.is_empty() {
            let chosen = self.rng.below(failed.len() as u64) as usize;
            self.ping(&failed[chosen], 0);
        }
    }

    pub(super) fn announce(&mut self, now: Time) {
        self.announce_at = now + self.config.announce_period;
        let digest = self.members.digest().to_be_bytes();
        for introducer in self.introducers.clone() {
            self.transmit_brief(introducer, None, Word::Announce { digest });
        }
    }
}
