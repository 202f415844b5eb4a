//! What one node believes of the others.
//!
//! Decides: which of two beliefs about a member holds, who counts as live, and which
//! removed members are remembered. Leaves to others: how beliefs come about
//! (`detector`), how they travel (`gossip`), and what a node does about itself (`mod`).
//!
//! Beliefs are totally ordered and merging takes the greater one, so that nodes that
//! have seen the same beliefs in any order believe the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::ring::Ring;
use crate::types::{Incarnation, Member, MemberState, NodeId, StorageId, Time, View, WallTime};
use crate::wire::datagram::{Tag, Update};

/// Accusers of one member that are remembered; two are enough to remove it.
const ACCUSERS_MAX: usize = 4;

/// Place of a belief in their order: the higher life wins; in one life
/// `Alive < Suspect < Failed < Left` (SWIM, section 4.2, with `Left` on top: it is the
/// member's own last word). Two processes under one name in equal lives are told apart by
/// the storage id, and two on copies of one disk by the address, the same way everywhere.
const fn rank(state: MemberState) -> u8 {
    match state {
        MemberState::Alive => 0,
        MemberState::Suspect => 1,
        MemberState::Failed => 2,
        MemberState::Left => 3,
    }
}

/// What one process is among all that ever had its name; the greatest has it. The join time
/// tells apart what one process asked for twice: the clock is that of one host.
pub(super) fn life(member: &Member) -> (Incarnation, StorageId, SocketAddr, WallTime) {
    let Member {
        incarnation,
        storage,
        addr,
        joined,
        ..
    } = *member;
    (incarnation, storage, addr, joined)
}

/// Whether the belief `new` replaces `old` about the same name.
pub fn supersedes(old: &Member, new: &Member) -> bool {
    (life(new), rank(new.state)) > (life(old), rank(old.state))
}

/// Whether a state counts as live.
pub const fn is_live(state: MemberState) -> bool {
    matches!(state, MemberState::Alive | MemberState::Suspect)
}

/// What a merged update changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A member that was not known, or another process under its name.
    Appeared,
    /// It refuted the suspicion with a new life.
    Refuted,
    /// The process was removed and is back with a new life.
    Returned,
    /// It is suspected for the first time in this life.
    Suspected,
    /// One more member accuses it.
    Accused,
    /// It was removed.
    Failed,
    /// It left.
    Left,
    /// A removed member that was not live here either.
    Buried,
}

/// What is believed of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The belief.
    pub member: Member,
    /// Who said so first here.
    pub by: NodeId,
    /// Since when it is believed.
    pub since: Time,
    /// Who accuses it in this life; empty unless it is suspect.
    pub accusers: BTreeSet<NodeId>,
}

impl Record {
    /// The belief as news.
    pub fn update(&self) -> Update {
        Update {
            member: self.member.clone(),
            by: self.by.clone(),
        }
    }
}

/// All beliefs of one node, removed members included.
#[derive(Clone, Debug, Default)]
pub struct Members {
    records: BTreeMap<NodeId, Record>,
    tags: BTreeMap<Tag, NodeId>,
    ring: Ring,
    view: View,
    suspects: BTreeSet<NodeId>,
    tombstones: BTreeSet<(Time, NodeId)>,
    digest: u64,
    members_max: usize,
}

impl Members {
    /// No beliefs; at most `members_max` live members will be admitted.
    pub fn new(members_max: usize) -> Members {
        Members {
            members_max,
            ..Members::default()
        }
    }

    /// Takes in `update`. `None`: it changed nothing, or the bound on live members is reached.
    pub fn merge(&mut self, now: Time, update: Update) -> Option<Change> {
        let Update { member, by } = update;
        let old = self.records.get_mut(&member.node);
        let (was_live, change) = match old {
            None => (false, first_change(member.state)),
            Some(old) if supersedes(&old.member, &member) => {
                let process = |m: &Member| (m.storage, m.addr, m.joined);
                let same = process(&old.member) == process(&member);
                (
                    is_live(old.member.state),
                    later_change(old.member.state, member.state, same),
                )
            }
            Some(old) => return accuse(old, &member, by),
        };
        if is_live(member.state) && !was_live && self.view.members.len() >= self.members_max {
            return None;
        }
        self.replace(now, member, by);
        Some(change)
    }

    fn replace(&mut self, now: Time, member: Member, by: NodeId) {
        let node = member.node.clone();
        let mut accusers = BTreeSet::new();
        if member.state == MemberState::Suspect {
            accusers.insert(by.clone());
        }
        let old = self.records.insert(
            node.clone(),
            Record {
                member: member.clone(),
                by,
                since: now,
                accusers,
            },
        );
        if let Some(old) = old {
            if is_live(old.member.state) {
                self.digest = self.digest.wrapping_sub(fingerprint(&old.member));
            }
            self.tombstones.remove(&(old.since, node.clone()));
            if old.member.storage != member.storage {
                self.tags.remove(&Tag::of(&old.member.server()));
                self.tags.insert(Tag::of(&member.server()), node.clone());
            }
        } else {
            self.tags.insert(Tag::of(&member.server()), node.clone());
        }
        self.suspects.remove(&node);
        self.view.number += 1;
        if is_live(member.state) {
            self.digest = self.digest.wrapping_add(fingerprint(&member));
            self.ring.insert(&node);
            if member.state == MemberState::Suspect {
                self.suspects.insert(node.clone());
            }
            self.view.members.insert(node, member);
        } else {
            self.ring.remove(&node);
            self.view.members.remove(&node);
            self.tombstones.insert((now, node));
        }
    }

    /// Forgets removed members beyond `count`, and those older than `span`, oldest first.
    pub fn forget(&mut self, now: Time, count: usize, span: Duration) {
        while let Some((since, node)) = self.tombstones.first().cloned() {
            if self.tombstones.len() <= count && now.since(since) < span {
                break;
            }
            self.tombstones.pop_first();
            if let Some(record) = self.records.remove(&node) {
                self.tags.remove(&Tag::of(&record.member.server()));
            }
        }
    }

    /// Moves the start of every suspicion by `span`: time during which this process was
    /// paused, and could hear no refutation, does not count against anyone.
    pub fn postpone_suspicions(&mut self, span: Duration) {
        for node in &self.suspects {
            if let Some(record) = self.records.get_mut(node) {
                record.since = record.since + span;
            }
        }
    }

    /// The live members.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The live members in ring order.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The belief about `node`, live or removed.
    pub fn record(&self, node: &NodeId) -> Option<&Record> {
        self.records.get(node)
    }

    /// The belief about the member with `tag`, live or removed.
    pub fn tagged(&self, tag: Tag) -> Option<&Record> {
        self.tags.get(&tag).and_then(|node| self.records.get(node))
    }

    /// The live member `node`.
    pub fn live(&self, node: &NodeId) -> Option<&Member> {
        self.view.members.get(node)
    }

    /// The suspected members.
    pub fn suspects(&self) -> impl Iterator<Item = &Record> {
        self.suspects
            .iter()
            .filter_map(|node| self.records.get(node))
    }

    /// Live members that nobody suspects.
    pub fn unsuspected(&self) -> usize {
        self.view.members.len() - self.suspects.len()
    }

    /// Removed members (failed or left) with the time of their removal, oldest first.
    pub fn tombstones(&self) -> impl DoubleEndedIterator<Item = &(Time, NodeId)> {
        self.tombstones.iter()
    }

    /// Everything believed, as news.
    pub fn updates(&self) -> Vec<Update> {
        self.records.values().map(Record::update).collect()
    }

    /// A number that is equal at nodes with the same live members in the same lives.
    /// Suspicion is left out: it passes within seconds either way.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Panics where the parts contradict one another; for tests and simulation.
    pub fn check_invariants(&self) {
        let mut digest = 0_u64;
        let mut live = 0;
        for (node, record) in &self.records {
            assert_eq!(node, &record.member.node);
            let suspect = record.member.state == MemberState::Suspect;
            assert_eq!(suspect, self.suspects.contains(node));
            assert_eq!(suspect, !record.accusers.is_empty());
            let is_live = is_live(record.member.state);
            assert_eq!(self.ring.contains(node), is_live, "ring and record differ");
            assert_eq!(
                self.tombstones.contains(&(record.since, node.clone())),
                !is_live
            );
            if is_live {
                live += 1;
                digest = digest.wrapping_add(fingerprint(&record.member));
                assert_eq!(self.view.members.get(node), Some(&record.member));
            }
        }
        assert_eq!(live, self.view.members.len());
        assert_eq!(live, self.ring.len());
        assert_eq!(self.tags.len(), self.records.len());
        assert_eq!(self.tombstones.len() + live, self.records.len());
        assert_eq!(digest, self.digest);
    }
}

fn first_change(state: MemberState) -> Change {
    match state {
        MemberState::Alive => Change::Appeared,
        MemberState::Suspect => Change::Suspected,
        MemberState::Failed | MemberState::Left => Change::Buried,
    }
}

fn later_change(old: MemberState, new: MemberState, same_process: bool) -> Change {
    match new {
        MemberState::Alive if !same_process => Change::Appeared,
        MemberState::Alive if old == MemberState::Suspect => Change::Refuted,
        MemberState::Alive if is_live(old) => Change::Appeared,
        MemberState::Alive => Change::Returned,
        MemberState::Suspect => Change::Suspected,
        MemberState::Failed | MemberState::Left if !is_live(old) => Change::Buried,
        MemberState::Failed => Change::Failed,
        MemberState::Left => Change::Left,
    }
}

/// Adds an accuser to a member that is suspect already, in that very life.
fn accuse(old: &mut Record, new: &Member, by: NodeId) -> Option<Change> {
    let same = life(&old.member) == life(new);
    let suspect =
        old.member.state == MemberState::Suspect && new.state == MemberState::Suspect && same;
    let room = old.accusers.len() < ACCUSERS_MAX;
    (suspect && room && old.accusers.insert(by)).then_some(Change::Accused)
}

/// What a live member adds to the digest.
fn fingerprint(member: &Member) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(member.node.as_str().as_bytes());
    hasher.update(&member.storage.0.to_be_bytes());
    hasher.update(&member.incarnation.0.to_be_bytes());
    hasher.update(member.addr.to_string().as_bytes());
    hasher.update(&member.joined.0.to_be_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_be_bytes(first)
}
