//! Carrying out what the detector asks for.
//!
//! Decides: who helps with an indirect probe. Leaves to others: when to probe (`detector`),
//! what a ping says (`datagrams`) and what a miss means (`belief`).

use std::net::SocketAddr;

use super::detector::Action;
use super::{Membership, Purpose};
use crate::types::{MemberState, NodeId, Server, Time};
use crate::wire::datagram::{MembershipRequest, Message};

impl Membership {
    pub(super) fn run_detector(&mut self, now: Time) {
        let company = self.members.unsuspected() > 2;
        let mut actions = Vec::new();
        self.detector.handle_timeout(now, company, &mut actions);
        self.carry_out(now, actions);
    }

    pub(super) fn carry_out(&mut self, now: Time, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ping { target, sequence } => self.ping(&target, sequence),
                Action::Ask {
                    target,
                    sequence,
                    round,
                    connect,
                } => self.ask_helpers(now, &target, sequence, round, connect),
                Action::Connect { target, sequence } => self.connect(now, target, sequence),
                Action::Missed {
                    target,
                    miss,
                    accuse,
                } => self.handle_miss(now, &target, miss, accuse),
                Action::Answered {
                    requester,
                    addr,
                    sequence,
                    target,
                } => {
                    let message = Message::Answered { sequence, target };
                    self.transmit(addr, Some(requester), message, Vec::new());
                }
            }
        }
    }

    pub(super) fn ask_helpers(
        &mut self,
        now: Time,
        target: &NodeId,
        sequence: u64,
        round: u32,
        connect: bool,
    ) {
        let near: Vec<(NodeId, SocketAddr)> = self
            .members
            .ring()
            .before(target)
            .filter(|name| **name != self.me.node && !self.detector.doubtful(now, name))
            .filter_map(|name| self.members.live(name))
            .filter(|member| member.state == MemberState::Alive)
            .take(self.config.helper_reach)
            .map(|member| (member.node.clone(), member.addr))
            .collect();
        if near.is_empty() {
            // Nobody can help: one more try of its own.
            self.ping(target, sequence);
        }
        let count = self.config.helpers.min(near.len());
        for turn in 0..count {
            let (helper, addr) = near[(round as usize * count + turn) % near.len()].clone();
            let message = Message::PingReq {
                sequence,
                target: target.clone(),
                connect,
            };
            self.transmit(addr, Some(helper), message, Vec::new());
        }
    }

    pub(super) fn connect(&mut self, now: Time, target: Server, sequence: u64) {
        let Some(addr) = self.members.live(&target.node).map(|member| member.addr) else {
            return;
        };
        let Some(cluster) = self.cluster else {
            return;
        };
        let request = MembershipRequest::Probe {
            cluster,
            target: target.clone(),
        };
        self.exchange(now, addr, request, Purpose::Probe { target, sequence });
    }
}
