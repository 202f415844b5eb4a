//! What a datagram from another means, and how one is addressed.
//!
//! Decides: from whom a datagram is, which are foreign, what each message leads to, and when
//! the brief form is enough. Leaves to others: the probes that answers belong to (`detector`),
//! the news that ride along (`belief`), and the bytes (`wire`).
//!
//! The brief form serves the steady state: no news to carry, nothing bad to say of the
//! receiver, equal digests. It names the sender by a tag alone. Who does not know the tag asks
//! who it is, and is told in full; until then such a ping counts as lost.

use std::net::SocketAddr;

use super::members::Record;
use super::{Membership, Output, Phase};
use crate::types::{MemberState, NodeId, Server, Time};
use crate::wire::datagram::{
    Address, Brief, DATAGRAM_PAYLOAD, Datagram, Full, Message, Sender, Tag, Update, Word,
};

impl Membership {
    /// Takes one received datagram. Broken or foreign ones are counted and dropped.
    pub fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: Datagram) {
        self.observe(now);
        self.stats.received += 1;
        if !matches!(self.phase, Phase::Member | Phase::Leaving(_)) {
            self.stats.not_member += 1;
            return;
        }
        match datagram {
            Datagram::Full(full) => self.handle_full(now, from, full),
            Datagram::Brief(brief) => self.handle_brief(now, from, brief),
        }
        self.flush(now);
    }

    fn handle_full(&mut self, now: Time, from: SocketAddr, full: Full) {
        if full.to.as_ref().is_some_and(|to| *to != self.me.node) {
            self.stats.wrong_destination += 1;
            return;
        }
        let foreign = match full.from {
            Some(_) => full.cluster != self.cluster,
            None => full.cluster.is_some() && full.cluster != self.cluster,
        };
        if foreign {
            self.stats.wrong_cluster += 1;
            return;
        }
        if full.cluster.is_some() {
            self.take_updates(now, full.updates);
        }
        match full.from {
            None => self.handle_introducer(from, full.message),
            Some(sender) if sender.node == self.me.node => self.handle_namesake(from, &sender),
            Some(sender) => self.handle_member(now, from, &sender, full.message),
        }
    }

    fn handle_brief(&mut self, now: Time, from: SocketAddr, brief: Brief) {
        let own = |cluster| Address::of(cluster, Some(&self.me.node));
        if self.cluster.map(own) != Some(brief.to) {
            self.stats.wrong_destination += 1;
            return;
        }
        let Some(record) = self.members.tagged(brief.from) else {
            self.stats.unknown_senders += 1;
            self.transmit(from, None, Message::Who, Vec::new());
            return;
        };
        let sender = Sender {
            node: record.member.node.clone(),
            storage: record.member.storage,
            incarnation: brief.incarnation,
        };
        let message = match brief.word {
            Word::Ping { sequence, digest } => {
                let digest = u64::from_be_bytes(digest);
                Message::Ping { sequence, digest }
            }
            Word::Same { sequence } => {
                let digest = self.members.digest();
                Message::Ack { sequence, digest }
            }
            Word::Announce { .. } => {
                self.stats.invalid += 1;
                return;
            }
        };
        self.handle_member(now, from, &sender, message);
    }

    fn handle_introducer(&mut self, from: SocketAddr, message: Message) {
        match message {
            Message::Ping { sequence, .. } => {
                let digest = self.members.digest();
                self.transmit(from, None, Message::Ack { sequence, digest }, Vec::new());
            }
            Message::Who => self.introduce(from, None),
            Message::News => {}
            _ => self.stats.invalid += 1,
        }
    }

    /// A datagram under this node's own name: from a process on another disk, which is told
    /// of this one, so that the two settle who goes.
    fn handle_namesake(&mut self, from: SocketAddr, sender: &Sender) {
        self.stats.invalid += 1;
        if sender.storage != self.me.storage {
            let own = self.own_update();
            self.transmit(from, Some(sender.node.clone()), Message::News, vec![own]);
        }
    }

    fn handle_member(&mut self, now: Time, from: SocketAddr, sender: &Sender, message: Message) {
        self.detector.heard(now, &sender.node);
        match message {
            Message::Ping { sequence, digest } => {
                self.compare_digest(now, from, sender, digest);
                self.acknowledge(from, sender, sequence, Some(digest));
            }
            Message::Ack { sequence, digest } => {
                self.compare_digest(now, from, sender, digest);
                let server = Server {
                    node: sender.node.clone(),
                    storage: sender.storage,
                };
                let mut actions = Vec::new();
                self.detector.answered(now, &server, sequence, &mut actions);
                self.carry_out(now, actions);
            }
            Message::PingReq {
                sequence,
                target,
                connect,
            } => {
                self.acknowledge(from, sender, sequence, None);
                if target != self.me.node
                    && let Some(member) = self.members.live(&target)
                {
                    let requester = (sender.node.clone(), from, sequence);
                    let server = member.server();
                    self.detector
                        .probe_now(now, &server, connect, Some(requester));
                }
            }
            Message::Answered { sequence, target } => {
                let mut actions = Vec::new();
                self.detector.answered(now, &target, sequence, &mut actions);
                self.carry_out(now, actions);
            }
            Message::Who => self.introduce(from, Some(sender.node.clone())),
            Message::Announce { member, digest } if member.node == sender.node => {
                let by = member.node.clone();
                self.take_updates(now, vec![Update { member, by }]);
                self.compare_digest(now, from, sender, digest);
                let correction = self.correction(sender);
                if !correction.is_empty() {
                    let node = Some(sender.node.clone());
                    self.transmit(from, node, Message::News, correction);
                }
            }
            Message::Announce { .. } => self.stats.invalid += 1,
            Message::News => {}
        }
    }

    /// Tells somebody who asked who this node is.
    fn introduce(&mut self, to: SocketAddr, node: Option<NodeId>) {
        let message = Message::Announce {
            member: self.me.clone(),
            digest: self.members.digest(),
        };
        self.transmit(to, node, message, Vec::new());
    }

    /// News for a sender that the others hold for suspect, removed or replaced.
    fn correction(&self, sender: &Sender) -> Vec<Update> {
        let record = self.members.record(&sender.node);
        let stale = record.filter(|record| is_stale(record, sender));
        stale.map(Record::update).into_iter().collect()
    }

    /// Answers a ping that had digest `asked`, and corrects the sender's idea of itself.
    fn acknowledge(&mut self, to: SocketAddr, sender: &Sender, sequence: u64, asked: Option<u64>) {
        let mut extra = self.correction(sender);
        if matches!(self.phase, Phase::Leaving(_)) {
            extra.push(self.own_update());
        }
        let digest = self.members.digest();
        if extra.is_empty() && asked == Some(digest) && self.gossip.is_empty() {
            self.transmit_brief(to, Some(&sender.node), Word::Same { sequence });
            return;
        }
        let node = Some(sender.node.clone());
        self.transmit(to, node, Message::Ack { sequence, digest }, extra);
    }

    /// Pings a live or removed member, telling it what is believed of it where that is bad.
    pub(super) fn ping(&mut self, target: &NodeId, sequence: u64) {
        let Some(record) = self.members.record(target) else {
            return;
        };
        let addr = record.member.addr;
        let digest = self.members.digest();
        let bad = record.member.state != MemberState::Alive;
        if !bad && self.gossip.is_empty() {
            let digest = digest.to_be_bytes();
            self.transmit_brief(addr, Some(target), Word::Ping { sequence, digest });
            return;
        }
        let extra = bad.then(|| record.update()).into_iter().collect();
        let to = Some(target.clone());
        self.transmit(addr, to, Message::Ping { sequence, digest }, extra);
    }

    pub(super) fn transmit_brief(&mut self, to: SocketAddr, node: Option<&NodeId>, word: Word) {
        let Some(cluster) = self.cluster else {
            return;
        };
        let brief = Brief {
            to: Address::of(cluster, node),
            from: Tag::of(&self.me.server()),
            incarnation: self.me.incarnation,
            word,
        };
        self.stats.sent += 1;
        let datagram = Datagram::Brief(brief);
        self.outputs.push_back(Output::Transmit { to, datagram });
    }

    /// Sends a datagram in full with `extra` and, on pings and acks, what waits for a ride.
    pub(super) fn transmit(
        &mut self,
        to: SocketAddr,
        node: Option<NodeId>,
        message: Message,
        extra: Vec<Update>,
    ) {
        let rides = matches!(message, Message::Ping { .. } | Message::Ack { .. }) && node.is_some();
        let mut full = Full {
            cluster: self.cluster,
            from: Some(self.sender()),
            to: node,
            message,
            updates: extra,
        };
        if rides {
            self.gossip.fill(&mut full);
        }
        debug_assert!(full.size_bound() <= DATAGRAM_PAYLOAD);
        self.stats.sent += 1;
        let datagram = Datagram::Full(full);
        self.outputs.push_back(Output::Transmit { to, datagram });
    }
}

/// Whether the others believe worse, or newer, of the sender than it does itself.
fn is_stale(record: &Record, sender: &Sender) -> bool {
    let believed = &record.member;
    let newer = (believed.incarnation, believed.storage) > (sender.incarnation, sender.storage);
    let worse = believed.incarnation == sender.incarnation
        && believed.storage == sender.storage
        && believed.state != MemberState::Alive;
    newer || worse
}
