//! The introducer: the place where newcomers ask for the members.
//!
//! Decides: who may join under which name, whether a new cluster may begin, and which
//! members it names to a newcomer. Leaves to others: membership itself. The introducer is
//! no member; it holds nothing on disk, and learns everything again from the members'
//! announcements, so that it may be restarted or wiped at any time.
//!
//! The cluster's id is made by the first node, never here. An introducer that has just
//! started waits, so that members of a cluster that is there can announce themselves
//! before a second cluster begins. It forgets a cluster only when all its members left of
//! their own will: silent ones may come back with their data.
//!
//! Contract as in `membership`: one `handle_*`, drain [`Introducer::poll_output`], wait for
//! [`Introducer::poll_timeout`]. A reply may come later than its request; the token ties them.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::members::{is_live, supersedes};
use super::{INCARNATION_MAX, UPDATES_MAX};
use crate::types::{ClusterId, Incarnation, Member, MemberState, NodeId, Rng, Server, Time};
use crate::wire::datagram::{
    Address, Brief, Datagram, Full, JoinRefusal, JoinRequest, MembershipReply, MembershipRequest,
    Message, Sender, Tag, Update, WaitReason, Word,
};

/// A member heard more recently than this is not believed to have failed.
const CONTRADICTION_SPAN: Duration = Duration::from_secs(2);

/// Spans and bounds of an introducer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntroducerConfig {
    /// This introducer may permit a new cluster, where it is also the first in the newcomer's list.
    pub permits_new_cluster: bool,
    /// After its start, an introducer without members lets nobody in for this long. Default 3 s.
    pub startup_span: Duration,
    /// The same once members have announced themselves: long enough that all of them have. Default 1.5 s.
    pub startup_span_known: Duration,
    /// A member that did not announce itself for this long is not named any more. Default 10 s.
    pub silence_span: Duration,
    /// The holder of a name is probed for this long. Default 1,250 ms: one that is paused for 1 s
    /// keeps its name. (The design has 500 ms, which would take it away.)
    pub probe_span: Duration,
    /// Gap between those pings. Default 100 ms.
    pub probe_gap: Duration,
    /// Nobody else may form a cluster for this long after a permission. Default 5 s; above the members'
    /// `exchange_timeout`, after which a permission is void.
    pub forming_span: Duration,
    /// Joins that wait for a probe at once; further ones are told to ask again. Default 256.
    pub pending_max: usize,
    /// Names that are remembered; the longest silent one goes. Default 5,096.
    pub records_max: usize,
    /// Members named to one whose view differs from others', in answer to an announcement. Default 3.
    pub hints: usize,
}

impl Default for IntroducerConfig {
    fn default() -> IntroducerConfig {
        IntroducerConfig {
            permits_new_cluster: true,
            startup_span: Duration::from_secs(3),
            startup_span_known: Duration::from_millis(1500),
            silence_span: Duration::from_secs(10),
            probe_span: Duration::from_millis(1250),
            probe_gap: Duration::from_millis(100),
            forming_span: Duration::from_secs(5),
            pending_max: 256,
            records_max: 5096,
            hints: 3,
        }
    }
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntroducerOutput {
    /// Send a datagram; it may be lost.
    Transmit {
        /// Where to.
        to: SocketAddr,
        /// What.
        datagram: Datagram,
    },
    /// Answer the request that came with `token`.
    Reply {
        /// Of the request.
        token: u64,
        /// The answer.
        reply: MembershipReply,
    },
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntroducerStats {
    /// Announcements taken.
    pub announcements: u64,
    /// Newcomers let in.
    pub welcomed: u64,
    /// Newcomers refused.
    pub refused: u64,
    /// Datagrams of another cluster, dropped.
    pub wrong_cluster: u64,
    /// Datagrams and requests that make no sense, dropped or refused.
    pub invalid: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    member: Member,
    heard: Option<Time>,
    /// Others say that it failed, since it was heard.
    doubted: bool,
    digest: Option<u64>,
}

#[derive(Clone, Debug)]
struct Pending {
    request: JoinRequest,
    holder: Member,
    sequence: u64,
    next_ping: Time,
    deadline: Time,
}

enum Decision {
    Reply(MembershipReply),
    Probe(Member),
}

/// The introducer core.
#[derive(Clone, Debug)]
pub struct Introducer {
    config: IntroducerConfig,
    started: Time,
    cluster: Option<ClusterId>,
    entries: BTreeMap<NodeId, Entry>,
    tags: BTreeMap<Tag, NodeId>,
    forming: Option<(Server, Time)>,
    /// When somebody unknown said that it is a member of some cluster.
    stranger_at: Option<Time>,
    pending: BTreeMap<u64, Pending>,
    sequence: u64,
    rng: Rng,
    outputs: VecDeque<IntroducerOutput>,
    stats: IntroducerStats,
}

impl Introducer {
    /// An introducer that knows nothing.
    pub fn new(config: IntroducerConfig, seed: u64, now: Time) -> Introducer {
        Introducer {
            config,
            started: now,
            cluster: None,
            entries: BTreeMap::new(),
            tags: BTreeMap::new(),
            forming: None,
            stranger_at: None,
            pending: BTreeMap::new(),
            sequence: 0,
            rng: Rng::new(seed),
            outputs: VecDeque::new(),
            stats: IntroducerStats::default(),
        }
    }

    /// Takes a request; its reply follows as an output with the same token.
    pub fn handle_request(&mut self, now: Time, token: u64, request: MembershipRequest) {
        match request {
            MembershipRequest::Join(request) => self.consider(now, token, request),
            MembershipRequest::Sync { .. } | MembershipRequest::Probe { .. } => {
                self.reply(token, MembershipReply::Absent);
            }
        }
    }

    /// Takes a datagram: announcements, answers of probed holders, news.
    pub fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: Datagram) {
        match datagram {
            Datagram::Full(full) => self.handle_full(now, from, full),
            Datagram::Brief(brief) => self.handle_brief(now, from, &brief),
        }
        self.forget_dissolved();
    }

    fn handle_full(&mut self, now: Time, from: SocketAddr, full: Full) {
        let (Some(sender), Some(cluster)) = (full.from, full.cluster) else {
            self.stats.invalid += 1;
            return;
        };
        if self.cluster.is_some_and(|own| own != cluster) {
            self.stats.wrong_cluster += 1;
            return;
        }
        self.cluster = Some(cluster);
        self.forming = None;
        for update in full.updates.into_iter().take(UPDATES_MAX) {
            self.learn(now, update.member);
        }
        match full.message {
            Message::Announce { member, digest } if member.node == sender.node => {
                self.handle_announcement(now, from, member, digest);
            }
            Message::Ack { sequence, .. } => self.handle_ack(&sender, sequence),
            Message::News => {}
            _ => self.stats.invalid += 1,
        }
    }

    /// A member announces itself in brief. One that is not known in this life is asked who it is.
    fn handle_brief(&mut self, now: Time, from: SocketAddr, brief: &Brief) {
        let own = self.cluster.map(|cluster| Address::of(cluster, None));
        if own.is_some_and(|own| own != brief.to) {
            self.stats.wrong_cluster += 1;
            return;
        }
        let Word::Announce { digest } = brief.word else {
            self.stats.invalid += 1;
            return;
        };
        let node = self.tags.get(&brief.from);
        let entry = node.and_then(|node| self.entries.get(node));
        let known = entry.filter(|entry| entry.member.incarnation >= brief.incarnation);
        match known.map(|entry| entry.member.clone()) {
            Some(mut member) => {
                member.incarnation = brief.incarnation;
                self.handle_announcement(now, from, member, u64::from_be_bytes(digest));
            }
            None => {
                self.stranger_at = Some(now);
                self.transmit(from, None, Message::Who, Vec::new());
            }
        }
    }

    /// Carries out what is due; harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Time) {
        let due: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.next_ping.min(pending.deadline) <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in due {
            let Some(mut pending) = self.pending.remove(&token) else {
                continue;
            };
            if pending.deadline > now {
                self.ping_holder(now, &mut pending);
                self.pending.insert(token, pending);
                continue;
            }
            if let Some(entry) = self.entries.get_mut(&pending.holder.node)
                && entry.member.storage == pending.holder.storage
            {
                entry.heard = None;
            }
            self.consider(now, token, pending.request);
        }
    }

    /// The next thing to do, until `None`.
    pub fn poll_output(&mut self) -> Option<IntroducerOutput> {
        self.outputs.pop_front()
    }

    /// When [`Introducer::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let due = |pending: &Pending| pending.next_ping.min(pending.deadline);
        self.pending.values().map(due).min()
    }

    /// The cluster that it serves, where it knows one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The members that it would name to a newcomer.
    pub fn members(&self, now: Time) -> impl Iterator<Item = &Member> {
        let live = move |entry: &&Entry| self.is_live(now, entry);
        self.entries
            .values()
            .filter(live)
            .map(|entry| &entry.member)
    }

    /// Counters.
    pub fn stats(&self) -> IntroducerStats {
        self.stats
    }

    /// Panics where the parts contradict one another; for tests and simulation.
    pub fn check_invariants(&self) {
        assert!(self.entries.len() <= self.config.records_max);
        assert!(self.pending.len() <= self.config.pending_max);
        for (node, entry) in &self.entries {
            assert_eq!(*node, entry.member.node);
        }
        assert_eq!(self.tags.len(), self.entries.len());
        assert!(self.forming.is_none() || self.cluster.is_none());
    }

    fn is_live(&self, now: Time, entry: &Entry) -> bool {
        let span = match entry.doubted {
            true => CONTRADICTION_SPAN,
            false => self.config.silence_span,
        };
        let fresh = |heard: Time| now.since(heard) < span;
        is_live(entry.member.state) && entry.heard.is_some_and(fresh)
    }

    fn reply(&mut self, token: u64, reply: MembershipReply) {
        match reply {
            MembershipReply::Welcome { .. } | MembershipReply::Form { .. } => {
                self.stats.welcomed += 1;
            }
            MembershipReply::Refused(_) => self.stats.refused += 1,
            _ => {}
        }
        let output = IntroducerOutput::Reply { token, reply };
        self.outputs.push_back(output);
    }

    fn consider(&mut self, now: Time, token: u64, request: JoinRequest) {
        let holder = match self.decide(now, &request) {
            Decision::Reply(reply) => {
                self.reply(token, reply);
                return;
            }
            Decision::Probe(holder) => holder,
        };
        if self.pending.len() >= self.config.pending_max {
            self.reply(token, MembershipReply::Wait(WaitReason::Busy));
            return;
        }
        self.sequence += 1;
        let mut pending = Pending {
            request,
            holder,
            sequence: self.sequence,
            next_ping: now,
            deadline: now + self.config.probe_span,
        };
        self.ping_holder(now, &mut pending);
        self.pending.insert(token, pending);
    }

    fn decide(&mut self, now: Time, request: &JoinRequest) -> Decision {
        let refused = |reason| Decision::Reply(MembershipReply::Refused(reason));
        let wait = |reason| Decision::Reply(MembershipReply::Wait(reason));
        let member = &request.member;
        if member.state != MemberState::Alive || member.incarnation >= INCARNATION_MAX {
            self.stats.invalid += 1;
            return refused(JoinRefusal::Invalid);
        }
        if let (Some(own), Some(served)) = (request.cluster, self.cluster)
            && own != served
        {
            return refused(JoinRefusal::WrongCluster { own, served });
        }
        // Whoever asks first after the start may be new: what was shown before must be known then.
        self.cluster = self.cluster.or(request.cluster);
        if let Some(other) = self.members(now).find(|it| !it.reaches(member)) {
            return refused(JoinRefusal::OtherNetwork {
                own: member.addr,
                member: other.addr,
            });
        }
        let any = self.members(now).next().is_some();
        let span = match any {
            true => self.config.startup_span_known,
            false => self.config.startup_span,
        };
        let stranger = self.stranger_at.filter(|_| self.cluster.is_none());
        let since = stranger.map_or(self.started, |at| at.max(self.started));
        if now < since + span {
            return wait(WaitReason::Starting);
        }
        if any {
            let held = self.entries.get(&member.node);
            let other = held.filter(|entry| entry.member.storage != member.storage);
            if let Some(entry) = other.filter(|entry| self.is_live(now, entry)) {
                return Decision::Probe(entry.member.clone());
            }
        }
        match (self.cluster, request.cluster) {
            (Some(cluster), _) if any => Decision::Reply(self.welcome(now, member, cluster)),
            (_, Some(cluster)) if !self.is_forming(now, member) => {
                Decision::Reply(self.welcome(now, member, cluster))
            }
            (_, Some(_)) => wait(WaitReason::Forming),
            (Some(_), None) => wait(WaitReason::MembersSilent),
            (None, None) if !request.first || !self.config.permits_new_cluster => {
                wait(WaitReason::NoMembers)
            }
            (None, None) if self.is_forming(now, member) => wait(WaitReason::Forming),
            (None, None) => {
                let until = now + self.config.forming_span;
                self.forming = Some((member.server(), until));
                let incarnation = self.grant(member);
                Decision::Reply(MembershipReply::Form { incarnation })
            }
        }
    }

    /// Whether a node other than `member` was permitted to form the cluster just now.
    fn is_forming(&self, now: Time, member: &Member) -> bool {
        let forming = self.forming.as_ref();
        forming.is_some_and(|(server, until)| *until > now && *server != member.server())
    }

    /// An incarnation above all that were seen of the name.
    fn grant(&self, member: &Member) -> Incarnation {
        let seen = self.entries.get(&member.node);
        let next = seen.map(|entry| Incarnation(entry.member.incarnation.0 + 1));
        next.map_or(member.incarnation, |next| next.max(member.incarnation))
    }

    fn welcome(&mut self, now: Time, member: &Member, cluster: ClusterId) -> MembershipReply {
        let incarnation = self.grant(member);
        self.cluster = Some(cluster);
        self.forming = None;
        let named = |entry: &&Entry| {
            entry.member.node != member.node
                && (!is_live(entry.member.state) || self.is_live(now, entry))
        };
        let updates: Vec<Update> = self
            .entries
            .values()
            .filter(named)
            .map(|entry| own_word(&entry.member))
            .collect();
        let newcomer = Member {
            incarnation,
            ..member.clone()
        };
        self.learn(now, newcomer.clone());
        for update in &updates {
            if is_live(update.member.state) {
                let (to, node) = (update.member.addr, update.member.node.clone());
                self.tell(to, node, vec![own_word(&newcomer)]);
            }
        }
        MembershipReply::Welcome {
            cluster,
            incarnation,
            updates,
        }
    }

    /// Takes in what is said of a member, where it is newer than what is known.
    fn learn(&mut self, now: Time, mut member: Member) {
        if member.incarnation >= INCARNATION_MAX {
            self.stats.invalid += 1;
            return;
        }
        if member.state == MemberState::Suspect {
            member.state = MemberState::Alive;
        }
        let known = self.entries.get_mut(&member.node);
        if known
            .as_ref()
            .is_some_and(|entry| !supersedes(&entry.member, &member))
        {
            return;
        }
        // Whoever is cut off holds the others for failed. A member that announced itself just now
        // has the better word, until it is silent here too.
        if let Some(entry) = known
            && member.state == MemberState::Failed
            && entry
                .heard
                .is_some_and(|at| now.since(at) < CONTRADICTION_SPAN)
        {
            entry.doubted = true;
            return;
        }
        let known = self.entries.get(&member.node);
        if known.is_none() && !self.make_room(now) {
            return;
        }
        let entry = Entry {
            heard: is_live(member.state).then_some(now),
            doubted: false,
            member: member.clone(),
            digest: None,
        };
        self.forget(&member.node);
        self.tags
            .insert(Tag::of(&member.server()), member.node.clone());
        self.entries.insert(member.node, entry);
    }

    fn forget(&mut self, node: &NodeId) {
        if let Some(entry) = self.entries.remove(node) {
            self.tags.remove(&Tag::of(&entry.member.server()));
        }
    }

    /// Forgets the name that was silent longest where the bound is reached; false if all are live.
    fn make_room(&mut self, now: Time) -> bool {
        if self.entries.len() < self.config.records_max {
            return true;
        }
        let silent = self
            .entries
            .values()
            .filter(|entry| !self.is_live(now, entry));
        let longest = silent.min_by_key(|entry| entry.heard);
        let Some(node) = longest.map(|entry| entry.member.node.clone()) else {
            return false;
        };
        self.forget(&node);
        true
    }

    /// A member says that it is one. Where it is wrong about itself it is told; where its view
    /// differs from those of others it is told of some of them, which joins what was split.
    fn handle_announcement(&mut self, now: Time, from: SocketAddr, member: Member, digest: u64) {
        self.stats.announcements += 1;
        let node = member.node.clone();
        self.learn(now, member.clone());
        let Some(entry) = self.entries.get_mut(&node) else {
            return;
        };
        let same_life = entry.member.incarnation == member.incarnation
            && entry.member.storage == member.storage;
        if !same_life || !is_live(entry.member.state) {
            let entry = entry.clone();
            if self.is_live(now, &entry) {
                // Old, or of another process under the name: the members know which of two lives.
                return;
            }
            let mut correction = own_word(&entry.member);
            if is_live(entry.member.state) {
                // Who was not heard for long is outlived, and drives nobody away.
                correction.member.state = MemberState::Failed;
            }
            self.tell(from, node, vec![correction]);
            return;
        }
        entry.heard = Some(now);
        entry.doubted = false;
        entry.digest = Some(digest);
        let differs = |entry: &&Entry| {
            entry.member.node != node
                && entry.digest.is_some_and(|other| other != digest)
                && self.is_live(now, entry)
        };
        let mut others: Vec<Update> = self
            .entries
            .values()
            .filter(differs)
            .map(|entry| own_word(&entry.member))
            .collect();
        let mut hints = Vec::new();
        while !others.is_empty() && hints.len() < self.config.hints {
            let chosen = self.rng.below(others.len() as u64) as usize;
            hints.push(others.swap_remove(chosen));
        }
        if !hints.is_empty() {
            self.tell(from, node, hints);
        }
    }

    /// The holder of a name answers: the newcomer who wants it is refused.
    fn handle_ack(&mut self, sender: &Sender, sequence: u64) {
        let answered = |pending: &Pending| {
            pending.sequence == sequence
                && pending.holder.node == sender.node
                && pending.holder.storage == sender.storage
        };
        let tokens: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| answered(pending))
            .map(|(token, _)| *token)
            .collect();
        for token in tokens {
            if let Some(pending) = self.pending.remove(&token) {
                let holder = pending.holder.addr;
                let reason = JoinRefusal::NameInUse { holder };
                self.reply(token, MembershipReply::Refused(reason));
            }
        }
    }

    fn ping_holder(&mut self, now: Time, pending: &mut Pending) {
        pending.next_ping = now + self.config.probe_gap;
        let message = Message::Ping {
            sequence: pending.sequence,
            digest: 0,
        };
        let (to, node) = (pending.holder.addr, pending.holder.node.clone());
        self.transmit(to, Some(node), message, Vec::new());
    }

    fn tell(&mut self, to: SocketAddr, node: NodeId, updates: Vec<Update>) {
        self.transmit(to, Some(node), Message::News, updates);
    }

    fn transmit(
        &mut self,
        to: SocketAddr,
        node: Option<NodeId>,
        message: Message,
        updates: Vec<Update>,
    ) {
        let datagram = Datagram::Full(Full {
            cluster: self.cluster,
            from: None,
            to: node,
            message,
            updates,
        });
        self.outputs
            .push_back(IntroducerOutput::Transmit { to, datagram });
    }

    /// Forgets a cluster whose members all left of their own will.
    fn forget_dissolved(&mut self) {
        let left = |entry: &Entry| entry.member.state == MemberState::Left;
        if !self.entries.is_empty() && self.entries.values().all(left) {
            self.cluster = None;
            self.entries.clear();
            self.tags.clear();
        }
    }
}

/// News of a member in its own name.
fn own_word(member: &Member) -> Update {
    Update {
        member: member.clone(),
        by: member.node.clone(),
    }
}
