//! What a node does about what it believes: merge, accuse, remove, refute, tell.
//!
//! Decides: when a suspicion becomes a removal, how this node answers beliefs about
//! itself, and who is told directly. Leaves to others: the order of beliefs
//! (`members`) and the finding of silence (`detector`).

use std::net::SocketAddr;

use super::evidence::{EventKind, Ground, Miss};
use super::members::{Change, Record, is_live, life};
use super::{Eviction, INCARNATION_MAX, Membership, Output, Phase, Purpose, UPDATES_MAX};
use crate::planted::{self, Bug};
use crate::types::{Incarnation, Member, MemberState, NodeId, SUCCESSORS, Server, Time};
use crate::wire::datagram::{Message, Update};

impl Membership {
    /// Takes in news of others, bounded.
    pub(super) fn take_updates(&mut self, now: Time, updates: Vec<Update>) {
        for (index, update) in updates.into_iter().enumerate() {
            if index >= UPDATES_MAX || update.member.incarnation >= INCARNATION_MAX {
                self.stats.invalid += 1;
                continue;
            }
            self.apply(now, update);
        }
    }

    fn apply(&mut self, now: Time, update: Update) {
        if !matches!(self.phase, Phase::Member) {
            return;
        }
        if update.member.node == self.me.node {
            self.apply_about_me(now, update);
            return;
        }
        // Who was removed has no say about others: it may be the one that hears nobody.
        if update.member.state == MemberState::Suspect && self.members.live(&update.by).is_none() {
            return;
        }
        let node = update.member.node.clone();
        if let Some(change) = self.merge(now, update, Ground::Told)
            && matches!(change, Change::Suspected | Change::Accused)
        {
            self.handle_accusation(now, &node);
        }
    }

    /// Merges an update about another member and does what follows from any change:
    /// spread, evidence, new successors.
    fn merge(&mut self, now: Time, update: Update, ground: Ground) -> Option<Change> {
        let (member, by) = (update.member.clone(), update.by.clone());
        let holder = self.members.live(&member.node).cloned();
        let unknown = holder.is_none();
        let Some(change) = self.members.merge(now, update.clone()) else {
            let full = self.members.view().members.len() >= self.config.members_max;
            if unknown && full && is_live(member.state) {
                self.stats.refused_members += 1;
            }
            return None;
        };
        self.gossip.push(now, update);
        let kind = match change {
            Change::Appeared => Some(match holder.map(|holder| holder.addr) {
                Some(addr) if addr != member.addr => EventKind::TookOver(addr),
                _ => EventKind::Joined,
            }),
            Change::Refuted => Some(EventKind::Refuted),
            Change::Returned => Some(EventKind::Returned),
            Change::Suspected | Change::Accused => Some(EventKind::Suspected),
            Change::Failed => Some(EventKind::Removed(ground)),
            Change::Left => Some(EventKind::Left),
            Change::Buried => None,
        };
        match change {
            Change::Failed => self.stats.removals += 1,
            Change::Returned => self.stats.flaps += 1,
            _ => {}
        }
        if let Some(kind) = kind {
            self.record(now, &member, by, kind);
        }
        self.choose_successors(now);
        Some(change)
    }

    /// The members that this node monitors.
    pub(super) fn successors(&self) -> impl Iterator<Item = Server> {
        let after = self.members.ring().after(&self.me.node);
        let live = after.filter_map(|name| self.members.live(name));
        live.map(Member::server).take(SUCCESSORS)
    }

    pub(super) fn choose_successors(&mut self, now: Time) {
        let successors: Vec<Server> = self.successors().collect();
        self.detector.monitor(now, &successors, &mut self.rng);
    }

    /// Another member accuses `node`: two accusers remove it; who missed it lately agrees;
    /// who monitors it probes it at once.
    fn handle_accusation(&mut self, now: Time, node: &NodeId) {
        let Some(record) = self.members.record(node) else {
            return;
        };
        if record.accusers.len() >= 2 {
            self.remove_agreed(now, node);
        } else if self.detector.missed_lately(now, node) {
            self.accuse(now, node);
        } else if self.detector.regular().any(|name| name == node) {
            let server = record.member.server();
            self.detector.probe_now(now, &server, false, None);
        }
    }

    /// The detector found `node` silent. A miss found for others only supports an
    /// accusation that is there, or comes soon.
    pub(super) fn handle_miss(&mut self, now: Time, node: &NodeId, miss: Miss, accuse: bool) {
        let Some(record) = self.members.record(node) else {
            return;
        };
        if !is_live(record.member.state) {
            return;
        }
        let member = record.member.clone();
        self.record(now, &member, self.me.node.clone(), EventKind::Missed(miss));
        if accuse || member.state == MemberState::Suspect {
            self.accuse(now, node);
        }
    }

    /// Accuses `node` before everyone, itself included, which may refute.
    fn accuse(&mut self, now: Time, node: &NodeId) {
        let Some(member) = self.members.live(node) else {
            return;
        };
        let mut member = member.clone();
        member.state = MemberState::Suspect;
        let (addr, own) = (member.addr, self.me.node.clone());
        let update = Update { member, by: own };
        if self.merge(now, update.clone(), Ground::Told).is_none() {
            // Accused by this node before: the target may not have heard of it.
            let to = Some(node.clone());
            self.transmit(addr, to, Message::News, vec![update]);
            return;
        }
        self.stats.accusations += 1;
        self.spread(&update);
        let accusers = self.members.record(node).map(|r| r.accusers.len());
        if accusers.is_some_and(|count| count >= 2 || planted::is(Bug::RemovalWithoutAgreement)) {
            self.remove_agreed(now, node);
        }
    }

    fn remove_agreed(&mut self, now: Time, node: &NodeId) {
        let record = self.members.record(node);
        let accusers = record.map(|record| record.accusers.iter().cloned().collect());
        self.remove(now, node, Ground::Agreement(accusers.unwrap_or_default()));
    }

    /// Removes `node`. Only its accusers tell everyone; the others heard the same accusations.
    fn remove(&mut self, now: Time, node: &NodeId, ground: Ground) {
        let Some(record) = self.members.record(node) else {
            return;
        };
        let accuser = record.accusers.contains(&self.me.node);
        let mut member = record.member.clone();
        member.state = MemberState::Failed;
        let update = Update {
            member,
            by: self.me.node.clone(),
        };
        let changed = self.merge(now, update.clone(), ground).is_some();
        if changed && accuser {
            self.spread(&update);
        }
    }

    /// When the suspicion of a member removes it, unless it is refuted before.
    pub(super) fn suspicion_end(&self, record: &Record) -> Time {
        let node = &record.member.node;
        let certain = self.members.unsuspected() <= 1 || self.detector.was_refused(node);
        let span = match certain {
            true => self.config.suspicion_span_lone,
            false => self.config.suspicion_span,
        };
        // Who still answers here only has not heard that it must refute.
        let answered = self.detector.answered_at(node);
        record.since.max(answered.unwrap_or(record.since)) + span
    }

    pub(super) fn expire_suspicions(&mut self, now: Time) {
        let expired: Vec<NodeId> = self
            .members
            .suspects()
            .filter(|record| self.suspicion_end(record) <= now)
            .map(|record| record.member.node.clone())
            .collect();
        for node in expired {
            self.remove(now, &node, Ground::Expired);
        }
    }

    /// Beliefs about this very node.
    ///
    /// What is worse than alive, or newer than this life, is outlived. A process that is live in a
    /// greater life, on another disk or on a copy of this one, has the name: this one gives way,
    /// for two must not duel. One that is gone is outlived.
    fn apply_about_me(&mut self, now: Time, update: Update) {
        let news = &update.member;
        let newer = life(news) > life(&self.me);
        let worse = life(news) == life(&self.me) && news.state != MemberState::Alive;
        if !newer && !worse {
            return;
        }
        // At this very address no other process is: it is an earlier join of this one that was
        // let in late, or one that ended before this one started.
        let other_process = news.addr != self.me.addr;
        if other_process && newer && is_live(news.state) {
            let reason = Eviction {
                node: self.me.node.clone(),
                addr: news.addr,
            };
            self.record(now, &update.member, update.by, EventKind::Evicted);
            self.phase = Phase::Gone;
            self.exchanges.clear();
            self.outputs.push_back(Output::Evicted { reason });
            return;
        }
        let kind = match is_live(news.state) {
            true => EventKind::Refuted,
            false => EventKind::Returned,
        };
        self.stats.refutations += 1;
        self.raise(now, Incarnation(news.incarnation.0 + 1));
        let me = self.me.clone();
        self.record(now, &me, update.by, kind);
    }

    fn raise(&mut self, now: Time, incarnation: Incarnation) {
        self.me.incarnation = incarnation;
        self.outputs.push_back(Output::Incarnation(incarnation));
        let own = self.own_update();
        self.members.merge(now, own.clone());
        self.gossip.push(now, own.clone());
        self.spread(&own);
    }

    /// Tells everyone directly: the other live members, the one that it is about, and the introducers.
    pub(super) fn spread(&mut self, update: &Update) {
        let others = self.members.view().members.values();
        let mut to: Vec<(Option<NodeId>, SocketAddr)> = others
            .filter(|member| member.node != self.me.node)
            .map(|member| (Some(member.node.clone()), member.addr))
            .collect();
        if update.member.state == MemberState::Failed {
            to.push((Some(update.member.node.clone()), update.member.addr));
        }
        to.extend(self.introducers.iter().map(|addr| (None, *addr)));
        for (node, addr) in to {
            self.transmit(addr, node, Message::News, vec![update.clone()]);
        }
    }

    pub(super) fn has_join_under_way(&self) -> bool {
        let mut pending = self.exchanges.values();
        pending.any(|pending| matches!(pending.purpose, Purpose::Join { .. }))
    }
}
