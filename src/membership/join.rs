//! Becoming a member, letting others in, and leaving.
//!
//! Decides: whom to ask, how often, what to answer a newcomer who asks this member, and how
//! a leave is told. Leaves to others: what an introducer answers (`introducer`).

use std::net::SocketAddr;

use super::evidence::EventKind;
use super::members::is_live;
use super::{Differing, ExchangeError, INCARNATION_MAX, Membership, Output, Phase, Purpose};
use crate::types::{ClusterId, Incarnation, Member, MemberState, Time};
use crate::wire::datagram::{
    JoinRefusal, JoinRequest, MembershipReply, MembershipRequest, Update, WaitReason,
};

/// A join under way: who was asked in vain, and when to ask again.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    next_at: Time,
    cursor: usize,
    rounds: u32,
    waiting: Option<(SocketAddr, WaitReason)>,
    /// One who was asked in this round serves another cluster; the next may not.
    foreign: Option<JoinRefusal>,
}

impl Joining {
    pub(super) fn next_at(&self) -> Time {
        self.next_at
    }
}

/// A leave under way.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    next_at: Time,
    rounds: u32,
}

impl Leaving {
    pub(super) fn next_at(&self) -> Time {
        self.next_at
    }
}

impl Membership {
    /// The command `join`. Goes on trying until somebody lets this node in or refuses it.
    /// Does nothing while joining, while a member, or after the end.
    pub fn handle_join(&mut self, now: Time) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        self.phase = Phase::Joining(Joining {
            next_at: now,
            cursor: 0,
            rounds: 0,
            waiting: None,
            foreign: None,
        });
        self.advance_join(now);
    }

    /// The command `leave`. The others are told several times, then `Output::Left` follows.
    pub fn handle_leave(&mut self, now: Time) {
        match self.phase {
            Phase::Member => {}
            Phase::Idle | Phase::Joining(_) => {
                self.phase = Phase::Gone;
                self.exchanges.clear();
                self.outputs.push_back(Output::Left);
                return;
            }
            Phase::Leaving(_) | Phase::Gone => return,
        }
        self.me.state = MemberState::Left;
        self.exchanges.clear();
        self.phase = Phase::Leaving(Leaving {
            next_at: now,
            rounds: 0,
        });
        self.advance_leave(now);
    }

    /// What a join is waiting for, in words for the user; `None` while no join is under way.
    pub fn status(&self) -> Option<String> {
        let Phase::Joining(joining) = &self.phase else {
            return None;
        };
        if self.introducers.is_empty() && self.known.is_empty() {
            return Some(
                "no introducer is given: start the node with --introducer HOST:PORT".into(),
            );
        }
        if let Some((addr, reason)) = joining.waiting {
            return Some(format!("waiting for the introducer at {addr}: {reason}"));
        }
        let list = |addrs: &[SocketAddr]| {
            let texts: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
            texts.join(", ")
        };
        let mut text = match self.introducers.is_empty() {
            true => String::from("waiting for a former member"),
            false => format!("waiting for an introducer at {}", list(&self.introducers)),
        };
        if !self.known.is_empty() {
            text += &format!(" (or a former member at {})", list(&self.known));
        }
        Some(text)
    }

    pub(super) fn advance_join(&mut self, now: Time) {
        let under_way = self.has_join_under_way();
        let Phase::Joining(joining) = &self.phase else {
            return;
        };
        if under_way || joining.next_at > now {
            return;
        }
        let cursor = joining.cursor;
        let mut candidates = self.introducers.iter().chain(&self.known);
        let Some(to) = candidates.nth(cursor).copied() else {
            // Nobody to ask yet; the known members may still be told to this node.
            if let Phase::Joining(joining) = &mut self.phase {
                joining.cursor = 0;
                joining.next_at = now + self.config.join_backoff_max;
            }
            return;
        };
        let first = cursor == 0 && self.config.first_permits && !self.introducers.is_empty();
        let mut member = self.me.clone();
        member.joined = self.wall(now);
        let request = MembershipRequest::Join(JoinRequest {
            member: member.clone(),
            cluster: self.cluster,
            first,
        });
        // Nothing more is due before this attempt has its result.
        self.postpone_join(now + self.config.exchange_timeout);
        self.exchange(now, to, request, Purpose::Join { first, member });
    }

    fn postpone_join(&mut self, until: Time) {
        if let Phase::Joining(joining) = &mut self.phase {
            joining.next_at = until;
        }
    }

    /// The answer to an attempt to join.
    pub(super) fn handle_joined(
        &mut self,
        now: Time,
        to: SocketAddr,
        first: bool,
        member: Member,
        result: Result<MembershipReply, ExchangeError>,
    ) {
        if !matches!(self.phase, Phase::Joining(_)) {
            return;
        }
        let waiting = match result {
            Ok(MembershipReply::Welcome {
                cluster,
                incarnation,
                updates,
            }) => {
                if let Some(own) = self.cluster.filter(|own| *own != cluster) {
                    let served = cluster;
                    self.pass_over(now, JoinRefusal::WrongCluster { own, served });
                } else {
                    self.become_member(now, member, cluster, incarnation, updates, false);
                }
                return;
            }
            Ok(MembershipReply::Form { incarnation }) if first && self.cluster.is_none() => {
                let cluster = ClusterId(self.rng.next_u128());
                self.become_member(now, member, cluster, incarnation, Vec::new(), true);
                return;
            }
            Ok(MembershipReply::Refused(reason @ JoinRefusal::WrongCluster { .. })) => {
                self.pass_over(now, reason);
                return;
            }
            Ok(MembershipReply::Refused(reason)) => {
                self.refuse_join(reason);
                return;
            }
            Ok(MembershipReply::Wait(reason)) => Some((to, reason)),
            Ok(_) | Err(_) => None,
        };
        self.retry_join(now, waiting);
    }

    /// Whoever was asked serves another cluster: introducers can be taken over by one. Final only
    /// where nobody else, a former member least of all, knows the own one.
    fn pass_over(&mut self, now: Time, reason: JoinRefusal) {
        if let Phase::Joining(joining) = &mut self.phase {
            joining.foreign = Some(reason);
        }
        self.retry_join(now, None);
    }

    fn refuse_join(&mut self, reason: JoinRefusal) {
        self.phase = Phase::Idle;
        self.outputs.push_back(Output::JoinRefused { reason });
    }

    /// Asks the next candidate at once; after the last one waits, twice as long each time.
    fn retry_join(&mut self, now: Time, waiting: Option<(SocketAddr, WaitReason)>) {
        let candidates = self.introducers.len() + self.known.len();
        let (base, longest) = (self.config.join_backoff, self.config.join_backoff_max);
        let Phase::Joining(joining) = &mut self.phase else {
            return;
        };
        let same = joining.waiting.is_some_and(|(addr, _)| {
            let mut asked = self.introducers.iter().chain(&self.known);
            asked.nth(joining.cursor) == Some(&addr)
        });
        if waiting.is_some() || same {
            joining.waiting = waiting;
        }
        joining.cursor = (joining.cursor + 1) % candidates.max(1);
        joining.next_at = now;
        if joining.cursor == 0 {
            let foreign = joining.foreign.take();
            // Who asks to wait may serve the own cluster, and has the last word.
            if joining.waiting.is_none()
                && let Some(reason) = foreign
            {
                self.refuse_join(reason);
                return;
            }
            let backoff = longest.min(base * (1 << joining.rounds.min(16)));
            joining.rounds += 1;
            // Spread, so that nodes started together do not ask in step.
            joining.next_at = now + self.rng.span(backoff / 2, backoff);
        }
        self.advance_join(now);
    }

    fn become_member(
        &mut self,
        now: Time,
        member: Member,
        cluster: ClusterId,
        incarnation: Incarnation,
        updates: Vec<Update>,
        formed: bool,
    ) {
        self.me = member;
        if incarnation > self.me.incarnation && incarnation < INCARNATION_MAX {
            self.me.incarnation = incarnation;
            self.outputs.push_back(Output::Incarnation(incarnation));
        }
        self.cluster = Some(cluster);
        self.phase = Phase::Member;
        self.announce_at = now;
        self.reconnect_at = now + self.config.reconnect_period;
        self.forget_at = now
            + self
                .config
                .tombstone_span
                .min(self.config.reconnect_period * 60);
        self.outputs.push_back(Output::Joined {
            member: self.me.clone(),
            cluster,
            formed,
        });
        let own = self.own_update();
        self.members.merge(now, own.clone());
        self.gossip.push(now, own.clone());
        let me = self.me.clone();
        self.record(now, &me, me.node.clone(), EventKind::Joined);
        self.take_updates(now, updates);
        if !self.is_member() {
            return;
        }
        let own = self.own_update();
        self.spread(&own);
        self.announce(now);
        self.sync_with_any(now);
    }

    /// What the introducer knows may be old: one of the members tells everything.
    fn sync_with_any(&mut self, now: Time) {
        let own = &self.me.node;
        let others = self.members.view().members.values();
        let others: Vec<&Member> = others.filter(|member| member.node != *own).collect();
        if others.is_empty() {
            return;
        }
        let chosen = others[self.rng.below(others.len() as u64) as usize];
        let differing = Differing {
            since: now - self.config.sync_after,
            digest: !self.members.digest(),
            addr: chosen.addr,
        };
        self.differing.insert(chosen.node.clone(), differing);
    }

    /// A newcomer that found no introducer asks this member to let it in.
    pub(super) fn admit(&mut self, now: Time, request: JoinRequest) -> MembershipReply {
        let JoinRequest {
            mut member,
            cluster: shown,
            ..
        } = request;
        let Some(cluster) = self.cluster else {
            return MembershipReply::Absent;
        };
        if member.state != MemberState::Alive || member.incarnation >= INCARNATION_MAX {
            self.stats.invalid += 1;
            return MembershipReply::Refused(JoinRefusal::Invalid);
        }
        if let Some(own) = shown.filter(|own| *own != cluster) {
            let served = cluster;
            return MembershipReply::Refused(JoinRefusal::WrongCluster { own, served });
        }
        if !self.me.reaches(&member) {
            return MembershipReply::Refused(JoinRefusal::OtherNetwork {
                own: member.addr,
                member: self.me.addr,
            });
        }
        if member.node == self.me.node {
            let holder = self.me.addr;
            return MembershipReply::Refused(JoinRefusal::NameInUse { holder });
        }
        if let Some(record) = self.members.record(&member.node) {
            let holder = record.member.clone();
            if is_live(holder.state) && holder.storage != member.storage {
                return self.probe_holder(now, &holder);
            }
            let next = Incarnation(holder.incarnation.0 + 1);
            member.incarnation = member.incarnation.max(next);
        }
        if self.members.view().members.len() >= self.config.members_max {
            return MembershipReply::Wait(WaitReason::Busy);
        }
        let incarnation = member.incarnation;
        let by = self.me.node.clone();
        self.take_updates(now, vec![Update { member, by }]);
        MembershipReply::Welcome {
            cluster,
            incarnation,
            updates: self.members.updates(),
        }
    }

    /// The name is held by another disk: refused if the holder answered within the last
    /// second, else it is probed and the newcomer asks again. A silent one is removed by then.
    fn probe_holder(&mut self, now: Time, holder: &Member) -> MembershipReply {
        let answered = self.detector.answered_at(&holder.node);
        if answered.is_some_and(|at| now.since(at) <= self.config.probe_period) {
            let holder = holder.addr;
            return MembershipReply::Refused(JoinRefusal::NameInUse { holder });
        }
        let server = holder.server();
        self.detector.probe_now(now, &server, false, None);
        MembershipReply::Wait(WaitReason::ProbingHolder)
    }

    pub(super) fn advance_leave(&mut self, now: Time) {
        let (rounds, gap) = (self.config.leave_rounds, self.config.leave_gap);
        let Phase::Leaving(leaving) = &mut self.phase else {
            return;
        };
        if leaving.next_at > now {
            return;
        }
        if leaving.rounds >= rounds {
            self.phase = Phase::Gone;
            self.outputs.push_back(Output::Left);
            return;
        }
        leaving.rounds += 1;
        leaving.next_at = now + gap;
        let own = self.own_update();
        self.spread(&own);
    }
}
