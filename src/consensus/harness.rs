//! A cluster of [`Consensus`] cores under virtual time, with a bad network, bad disks and
//! watchers. For the tests of this module only; everything follows from one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::quorum::{copies, majority};
use super::{
    Config, Consensus, Content, Entry, HardState, LogWrite, Message, Output, Payload, ReadId,
    Recovered, Role, Snapshot,
};
use crate::types::{Index, NodeId, Rng, Server, StorageId, Term, Time};

pub(super) fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// The server of slot `slot`. From slot 7 on they have the names of the first ones, and other
/// disks: nodes that came back with nothing.
pub(super) fn server(slot: usize) -> Server {
    Server {
        node: NodeId::new(&format!("n{}", slot % 7)).unwrap(),
        storage: StorageId(slot as u128 + 1),
    }
}

fn slot_of(server: &Server) -> usize {
    server.storage.0 as usize - 1
}

/// The state machine: a digest of all entries up to `index`, and as many bytes more as it says.
fn state_after(chosen: &[(Entry, Term)], index: Index) -> Arc<[u8]> {
    let mut hasher = blake3::Hasher::new();
    for (entry, _) in &chosen[..index.0 as usize] {
        hasher.update(&crate::wire::encode(entry));
    }
    let mut state = vec![0; hasher.clone().finalize().as_bytes()[0] as usize];
    hasher.finalize_xof().fill(&mut state);
    state.into()
}

/// What is on a server's disk, and what is on the way there.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) state: Recovered,
    queue: VecDeque<(Time, LogWrite)>,
}

impl Disk {
    fn write(&mut self, write: LogWrite) {
        if let Some(hard_state) = write.hard_state {
            assert!(
                hard_state.term >= self.state.hard_state.term,
                "a term fell on disk"
            );
            self.state.hard_state = hard_state;
        }
        if let Some(snapshot) = write.snapshot {
            let old = self.first().0 - 1;
            assert!(
                snapshot.index.0 > old || snapshot.index == Index(0),
                "a snapshot of {:?} took the place of one of {old}",
                snapshot.index
            );
            self.state.commit = snapshot.index;
            self.state.snapshot = Some(snapshot);
            self.state.entries.clear();
        }
        let first = self.first();
        if let Some(from) = write.truncate_from {
            self.state.entries.truncate((from.0 - first.0) as usize);
        }
        for entry in write.entries {
            assert_eq!(
                entry.index.0,
                first.0 + self.state.entries.len() as u64,
                "gap on disk"
            );
            self.state.entries.push(entry);
        }
        self.state.commit = write.commit.unwrap_or(self.state.commit);
    }

    /// Of the entries that are there one by one.
    fn first(&self) -> Index {
        Index(
            1 + self
                .state
                .snapshot
                .as_ref()
                .map_or(0, |snapshot| snapshot.index.0),
        )
    }

    fn after(&self, first: Index) -> &[Entry] {
        let skipped = (first.0 - self.first().0) as usize;
        self.state.entries.get(skipped..).unwrap_or_default()
    }

    fn entry(&self, index: Index) -> Option<&Entry> {
        let place = index.0.checked_sub(self.first().0)?;
        self.state.entries.get(place as usize)
    }

    /// A crash: a beginning of what was on the way may have arrived.
    fn crash(&mut self, rng: &mut Rng) {
        let arrived = rng.below(self.queue.len() as u64 + 1) as usize;
        let mut queue = std::mem::take(&mut self.queue);
        for (_, write) in queue.drain(..arrived) {
            self.write(write);
        }
        if let Some((_, mut write)) = queue.pop_front() {
            write.commit = write.commit.filter(|_| write.snapshot.is_some());
            match rng.below(4) {
                // A new file takes the old one's place, or not.
                2.. if write.snapshot.is_some() => {}
                _ if write.snapshot.is_some() => return,
                0 => return,
                1 => {
                    write.truncate_from = None;
                    write.entries.clear();
                }
                2 => write.entries.clear(),
                _ => {
                    let kept = rng.below(write.entries.len() as u64 + 1) as usize;
                    write.entries.truncate(kept);
                }
            }
            self.write(write);
        }
    }

    /// Whether the entry is there, or in the snapshot, whose content is watched elsewhere.
    pub(super) fn holds(&self, entry: &Entry) -> bool {
        entry.index < self.first() || self.entry(entry.index) == Some(entry)
    }
}

/// One server, up or down.
pub(super) struct Slot {
    pub(super) core: Option<Consensus>,
    pub(super) disk: Disk,
    /// Counts its starts.
    pub(super) life: u64,
    pub(super) live: BTreeSet<Server>,
    /// The last entry applied, or in a snapshot that was restored.
    pub(super) applied: u64,
    /// Most entries that a leader here called durable in this life.
    pub(super) durable: u64,
    /// Pauses: nothing is handled before.
    pub(super) paused_until: Time,
}

enum Event {
    Deliver(Server, usize, Message),
    StoodStill(usize, u64, Duration),
    DiskDone(usize, u64),
}

/// What the network and the disks do at the moment.
#[derive(Clone)]
pub(super) struct Weather {
    /// Percent of messages lost.
    pub(super) loss: u64,
    /// Percent of messages that come up to 3 s late.
    pub(super) late: u64,
    /// Percent of messages that come twice.
    pub(super) twice: u64,
    pub(super) delay: (Duration, Duration),
    pub(super) disk: (Duration, Duration),
}

impl Weather {
    pub(super) fn fair() -> Weather {
        Weather {
            loss: 0,
            late: 0,
            twice: 0,
            delay: (Duration::from_micros(200), ms(2)),
            disk: (Duration::from_micros(500), ms(5)),
        }
    }
}

pub(super) struct Cluster {
    pub(super) now: Time,
    pub(super) rng: Rng,
    pub(super) slots: Vec<Slot>,
    pub(super) weather: Weather,
    /// Directed links that carry nothing.
    pub(super) cut: BTreeSet<(usize, usize)>,
    config: Config,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    /// Every entry ever applied anywhere, with the term of who first did. In a crash-stop cluster
    /// those that nobody was told of may go again.
    pub(super) chosen: Vec<(Entry, Term)>,
    /// Up to here entries have been durable at some leader.
    pub(super) answered: u64,
    /// Two sides decide for themselves: the watchers look away.
    pub(super) split: bool,
    leaders: BTreeMap<Term, (usize, u64)>,
    /// Reads that wait, with how much was chosen when they began.
    reads: BTreeMap<(usize, u64, ReadId), usize>,
    pub(super) reads_ready: u64,
    pub(super) reads_failed: u64,
    /// Snapshots that came from a leader.
    pub(super) restored: u64,
    /// How often a server gave up what it had decided.
    pub(super) given_way: u64,
    pub(super) next_command: u64,
    steps: u64,
    /// Everything that was put out, where asked for.
    pub(super) trace: Option<String>,
}

impl Cluster {
    /// `count` servers, all live, the first one founding the cluster.
    pub(super) fn new(count: usize, seed: u64) -> Cluster {
        Cluster::with(Config::default(), count, seed)
    }

    /// The same with bounds of its own.
    pub(super) fn with(config: Config, count: usize, seed: u64) -> Cluster {
        let mut cluster = Cluster {
            now: Time(0),
            rng: Rng::new(seed),
            slots: Vec::new(),
            weather: Weather::fair(),
            cut: BTreeSet::new(),
            config,
            events: BTreeMap::new(),
            sequence: 0,
            chosen: Vec::new(),
            answered: 0,
            split: false,
            leaders: BTreeMap::new(),
            reads: BTreeMap::new(),
            reads_ready: 0,
            reads_failed: 0,
            restored: 0,
            given_way: 0,
            next_command: 0,
            steps: 0,
            trace: None,
        };
        for slot in 0..count {
            cluster.slots.push(Slot {
                core: None,
                disk: Disk::default(),
                life: 0,
                live: (0..count).map(server).collect(),
                applied: 0,
                durable: 0,
                paused_until: Time(0),
            });
            cluster.start(slot);
        }
        cluster.act(0, |core, now| core.bootstrap(now));
        cluster
    }

    /// The same with `voters` voters, grown one at a time.
    pub(super) fn grown(count: usize, voters: usize, seed: u64) -> Cluster {
        let mut cluster = Cluster::new(count, seed);
        for size in 1..=voters {
            cluster.grow_to(size);
        }
        cluster
    }

    /// Makes the first `size` servers the voters, which is one more or fewer than before.
    pub(super) fn grow_to(&mut self, size: usize) {
        let wanted: Vec<Server> = (0..size).map(server).collect();
        for _ in 0..1000 {
            self.run(ms(20));
            let Some(leader) = self.leader() else {
                continue;
            };
            let core = self.core(leader);
            if core.voters() == wanted && core.commit() == core.last_index() {
                return;
            }
            self.change_voters(leader, wanted.clone());
        }
        panic!("the voters did not become {wanted:?}");
    }

    pub(super) fn change_voters(&mut self, slot: usize, voters: Vec<Server>) -> bool {
        let mut accepted = false;
        self.act(slot, |core, now| {
            accepted = core.propose_voters(now, voters).is_ok();
        });
        accepted
    }

    pub(super) fn core(&self, slot: usize) -> &Consensus {
        self.slots[slot].core.as_ref().expect("the server is down")
    }

    pub(super) fn is_up(&self, slot: usize) -> bool {
        self.slots[slot].core.is_some()
    }

    /// The leader of the newest term that has one up.
    pub(super) fn leader(&self) -> Option<usize> {
        (0..self.slots.len())
            .filter(|slot| self.is_up(*slot) && self.core(*slot).role() == Role::Leader)
            .max_by_key(|slot| self.core(*slot).term())
    }

    pub(super) fn start(&mut self, slot: usize) {
        assert!(!self.is_up(slot));
        let seed = self.rng.next_u64();
        let (config, now) = (self.config.clone(), self.now);
        let place = &mut self.slots[slot];
        place.life += 1;
        place.applied = place.disk.first().0 - 1;
        place.durable = 0;
        let recovered = place.disk.state.clone();
        if let Some(snapshot) = &recovered.snapshot
            && !self.config.crash_stop
        {
            self.watch_snapshot(snapshot);
        }
        let place = &mut self.slots[slot];
        place.core = Some(Consensus::new(config, server(slot), recovered, seed, now));
        let live = place.live.clone();
        self.act(slot, |core, now| core.handle_members(now, live));
    }

    pub(super) fn crash(&mut self, slot: usize) {
        let place = &mut self.slots[slot];
        place.core = None;
        place.disk.crash(&mut self.rng);
    }

    /// Tells all servers that are up that `live` are.
    pub(super) fn tell_members(&mut self, live: &BTreeSet<Server>) {
        for slot in 0..self.slots.len() {
            let mut live = live.clone();
            live.insert(server(slot));
            self.slots[slot].live = live.clone();
            self.act(slot, |core, now| core.handle_members(now, live));
        }
    }

    /// Cuts `slots` off from all others.
    pub(super) fn isolate(&mut self, slots: &[usize]) {
        for inside in slots.iter().copied() {
            for outside in (0..self.slots.len()).filter(|slot| !slots.contains(slot)) {
                self.cut.insert((inside, outside));
                self.cut.insert((outside, inside));
            }
        }
    }

    pub(super) fn propose(&mut self, slot: usize) -> Option<Index> {
        self.next_command += 1;
        let command: Arc<[u8]> = self.next_command.to_le_bytes().as_slice().into();
        let mut index = None;
        self.act(slot, |core, now| index = core.propose(now, command).ok());
        index
    }

    pub(super) fn read(&mut self, slot: usize) -> Option<ReadId> {
        let place = &mut self.slots[slot];
        let id = place.core.as_mut()?.read(self.now).ok()?;
        let known = match self.config.crash_stop {
            true => self.answered as usize,
            false => self.chosen.len(),
        };
        self.reads.insert((slot, place.life, id), known);
        self.drain(slot);
        Some(id)
    }

    /// Puts a snapshot in the place of what `slot` has applied.
    pub(super) fn compact(&mut self, slot: usize) {
        let index = Index(self.slots[slot].applied);
        let state = state_after(&self.chosen, index);
        self.act(slot, |core, _| core.compact(index, state));
    }

    /// Calls the core of `slot`, where it is up, and does what it puts out.
    pub(super) fn act(&mut self, slot: usize, call: impl FnOnce(&mut Consensus, Time)) {
        let now = self.now;
        if let Some(core) = self.slots[slot].core.as_mut() {
            call(core, now);
            self.drain(slot);
        }
    }

    fn drain(&mut self, slot: usize) {
        self.watch_leader(slot);
        while let Some(output) = self.slots[slot].core.as_mut().unwrap().poll_output() {
            if let Some(trace) = &mut self.trace {
                writeln!(trace, "{} {slot} {output:?}", self.now).unwrap();
            }
            match output {
                Output::Send { to, message } => self.transmit(slot, to, message),
                Output::Persist(write) => self.persist(slot, write),
                Output::Apply(entry) => self.watch_apply(slot, entry),
                Output::Restore(snapshot) => self.watch_restore(slot, &snapshot),
                Output::Durable(index) => self.watch_durable(slot, index),
                Output::ReadReady { id } => {
                    let key = (slot, self.slots[slot].life, id);
                    let known = self.reads.remove(&key).expect("a read was answered twice");
                    assert!(
                        self.slots[slot].applied >= known as u64,
                        "stale read at {slot}"
                    );
                    self.reads_ready += 1;
                }
                Output::ReadFailed { id } => {
                    let key = (slot, self.slots[slot].life, id);
                    self.reads.remove(&key).expect("a read was answered twice");
                    self.reads_failed += 1;
                }
                Output::Leader { term, leader } => {
                    assert!(self.slots[slot].disk.state.hard_state.term >= term);
                    assert!(leader.is_none() || self.leaders.contains_key(&term));
                }
            }
        }
        self.watch_leader(slot);
        self.steps += 1;
        if self.steps.is_multiple_of(16) {
            self.core(slot).check_invariants();
        }
    }

    fn persist(&mut self, slot: usize, write: LogWrite) {
        let (low, high) = self.weather.disk;
        let after = match self.slots[slot].disk.queue.back() {
            Some((done, _)) => *done,
            None => self.now,
        };
        let done = after + self.rng.span(low, high);
        self.slots[slot].disk.queue.push_back((done, write));
        let life = self.slots[slot].life;
        self.schedule(done, Event::DiskDone(slot, life));
    }

    fn transmit(&mut self, slot: usize, to: Server, message: Message) {
        self.watch_send(slot, &to, &message);
        let target = slot_of(&to);
        let copies = 1 + u64::from(self.rng.chance(self.weather.twice));
        for _ in 0..copies {
            if self.rng.chance(self.weather.loss) || self.cut.contains(&(slot, target)) {
                continue;
            }
            let (low, high) = self.weather.delay;
            let mut at = self.now + self.rng.span(low, high);
            if self.rng.chance(self.weather.late) {
                at = at + self.rng.span(Duration::ZERO, ms(3000));
            }
            self.schedule(at, Event::Deliver(server(slot), target, message.clone()));
        }
    }

    fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Runs for `span` of virtual time.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.next_time().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.step();
        }
        self.now = end;
    }

    /// The server is at work for `span`; nothing is handled before.
    pub(super) fn stall(&mut self, slot: usize, span: Duration) {
        let (until, life) = (self.now + span, self.slots[slot].life);
        self.slots[slot].paused_until = until;
        self.schedule(until, Event::StoodStill(slot, life, span));
    }

    fn timer(&self, slot: usize) -> Option<Time> {
        let place = &self.slots[slot];
        let at = place.core.as_ref()?.poll_timeout()?;
        Some(at.max(place.paused_until))
    }

    fn next_time(&self) -> Option<Time> {
        let timers = (0..self.slots.len()).filter_map(|slot| self.timer(slot));
        let event = self.events.keys().next().map(|(at, _)| *at);
        timers.chain(event).min()
    }

    /// Messages and finished writes first, then timeouts, as the real driver does.
    fn step(&mut self) {
        if let Some(entry) = self.events.first_entry()
            && entry.key().0 <= self.now
        {
            let event = entry.remove();
            self.handle(event);
            return;
        }
        for slot in 0..self.slots.len() {
            if self.timer(slot).is_some_and(|at| at <= self.now) {
                self.act(slot, |core, now| core.handle_timeout(now));
                return;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver(from, slot, message) => {
                if self.slots[slot].paused_until > self.now {
                    let at = self.slots[slot].paused_until;
                    self.schedule(at, Event::Deliver(from, slot, message));
                } else if !self.cut.contains(&(slot_of(&from), slot)) {
                    self.act(slot, |core, now| core.handle_message(now, from, message));
                }
            }
            Event::StoodStill(slot, life, span) => {
                if self.slots[slot].life == life && self.is_up(slot) {
                    self.act(slot, |core, now| core.handle_standstill(now, span));
                }
            }
            Event::DiskDone(slot, life) => {
                if self.slots[slot].life != life || !self.is_up(slot) {
                    return;
                }
                let (_, write) = self.slots[slot].disk.queue.pop_front().unwrap();
                let ticket = write.ticket;
                self.slots[slot].disk.write(write);
                self.act(slot, |core, now| core.handle_persisted(now, ticket));
            }
        }
    }
}

/// The watchers.
impl Cluster {
    /// One leader in each term; it has all that was committed before (Raft, section 5.4.3).
    fn watch_leader(&mut self, slot: usize) {
        let core = self.slots[slot].core.as_ref().unwrap();
        if core.role() != Role::Leader {
            return;
        }
        let (term, me) = (core.term(), (slot, self.slots[slot].life));
        let known = *self.leaders.entry(term).or_insert(me);
        assert_eq!(known, me, "two leaders in {term:?}");
        if self.split {
            return;
        }
        let is_lacking = |(entry, committed): &(Entry, Term)| {
            let held = core.entry(entry.index);
            let is_held =
                held == Some(entry) || held.is_none() && entry.index <= core.snapshot_index();
            *committed < term && !is_held
        };
        let Some(lacking) = self.chosen.iter().position(is_lacking) else {
            return;
        };
        assert!(
            self.config.crash_stop && lacking as u64 >= self.answered,
            "the leader of {term:?} lacks a committed entry"
        );
        self.chosen.truncate(lacking);
    }

    /// All servers apply the same entries, each from its own disk, and the leader only what is
    /// on a majority of its voters' disks.
    fn watch_apply(&mut self, slot: usize, entry: Entry) {
        let place = &mut self.slots[slot];
        place.applied += 1;
        assert_eq!(place.applied, entry.index.0, "applied out of order");
        assert!(place.disk.holds(&entry), "applied before it was on disk");
        let core = place.core.as_ref().unwrap();
        let term = core.term();
        if self.split {
            return;
        }
        if core.role() == Role::Leader {
            let voters = core.voters().to_vec();
            let held = voters
                .iter()
                .filter(|voter| self.slots[slot_of(voter)].disk.holds(&entry));
            assert!(
                held.count() >= majority(voters.len()),
                "{:?} committed without a majority's disks",
                entry.index
            );
        }
        match self.chosen.get(entry.index.0 as usize - 1) {
            Some((chosen, _)) => assert_eq!(*chosen, entry, "two entries at one index"),
            None => self.chosen.push((entry, term)),
        }
    }

    /// A snapshot is what the chosen entries up to its index come to.
    fn watch_snapshot(&self, snapshot: &Snapshot) {
        let Snapshot {
            index,
            term,
            voters,
            state,
        } = snapshot;
        let entries = self.chosen[..index.0 as usize].iter();
        let mut entries = entries.map(|(entry, _)| entry).rev();
        assert_eq!(entries.clone().next().map(|last| last.term), Some(*term));
        let named = entries.find_map(|entry| match &entry.payload {
            Payload::Voters(voters) => Some(voters),
            _ => None,
        });
        assert_eq!(named, Some(voters), "not the voters at {index:?}");
        assert!(*state == state_after(&self.chosen, *index), "another state");
    }

    /// A snapshot that came from a leader is the state after that many chosen entries.
    fn watch_restore(&mut self, slot: usize, snapshot: &Snapshot) {
        if snapshot.index == Index(0) && (self.config.crash_stop || self.split) {
            self.slots[slot].applied = 0;
            self.given_way += 1;
            return;
        }
        if !self.split {
            self.watch_snapshot(snapshot);
        }
        let index = &snapshot.index;
        let place = &mut self.slots[slot];
        assert!(place.applied < index.0, "a snapshot took the state back");
        let held = place.disk.state.snapshot.as_ref().map(|held| held.index);
        assert_eq!(held, Some(*index), "restored before it was on disk");
        place.applied = index.0;
        self.restored += 1;
    }

    /// What may be answered is committed and on min(4, n) live disks.
    fn watch_durable(&mut self, slot: usize, index: Index) {
        if self.split {
            self.slots[slot].durable = index.0;
            return;
        }
        let (entry, _) = self.chosen[index.0 as usize - 1].clone();
        let live = &self.slots[slot].live;
        let held = live
            .iter()
            .filter(|member| self.slots[slot_of(member)].disk.holds(&entry))
            .count();
        assert!(
            held >= copies(live.len()),
            "{index:?} is on {held} disks of {}",
            live.len()
        );
        assert!(self.slots[slot].applied >= index.0);
        let durable = &mut self.slots[slot].durable;
        *durable = index.0.max(*durable);
        self.answered = self.answered.max(index.0);
    }

    /// Nothing is said that a crash could make untrue.
    fn watch_send(&self, slot: usize, to: &Server, message: &Message) {
        if self.split {
            return;
        }
        let disk = &self.slots[slot].disk.state;
        let HardState { term, vote } = &disk.hard_state;
        assert!(*term >= message.term, "a term left before it was on disk");
        let is_vote_on_disk = |whom: &Server| *term > message.term || vote.as_ref() == Some(whom);
        match &message.content {
            Content::Vote(_) => assert!(is_vote_on_disk(&server(slot))),
            Content::VoteReply { granted: true } => {
                assert!(is_vote_on_disk(to), "a vote left before it was on disk");
            }
            Content::Appended { matched, .. } => {
                let core = self.core(slot);
                let disk = &self.slots[slot].disk;
                for index in disk.first().0..=matched.0 {
                    let held = disk.entry(Index(index));
                    // Of what a snapshot takes the place of, the core may have forgotten it.
                    let chosen = self.chosen.get(index as usize - 1).map(|(entry, _)| entry);
                    let known = core.entry(Index(index));
                    let wanted = known.or(chosen.filter(|_| index <= core.snapshot_index().0));
                    assert!(
                        held.is_some() && held == wanted,
                        "entry {index} was acknowledged before it was on disk"
                    );
                }
            }
            _ => {}
        }
    }

    /// Logs that agree at an index agree on all before it (Raft, section 5.3).
    pub(super) fn check_log_matching(&self) {
        for a in &self.slots {
            for b in &self.slots {
                let first = a.disk.first().max(b.disk.first());
                let pairs = a.disk.after(first).iter().zip(b.disk.after(first));
                let agree: Vec<bool> = pairs
                    .clone()
                    .map(|(left, right)| left.term == right.term)
                    .collect();
                let last = agree.iter().rposition(|same| *same).map_or(0, |at| at + 1);
                for (left, right) in pairs.take(last) {
                    assert_eq!(left, right, "logs differ before a place where they agree");
                }
            }
        }
    }

    /// After all is healed, a new command reaches everyone within a time.
    pub(super) fn heal_and_check(&mut self) {
        self.cut.clear();
        self.weather = Weather::fair();
        let live: BTreeSet<Server> = (0..self.slots.len()).map(server).collect();
        for slot in 0..self.slots.len() {
            if !self.is_up(slot) {
                self.start(slot);
            }
        }
        self.tell_members(&live);
        self.run(ms(6000));
        let leader = self
            .leader()
            .expect("no leader 6 s after the network healed");
        let index = self.propose(leader).unwrap();
        let ready = self.reads_ready;
        let read = self.read(leader);
        self.run(ms(1000));
        assert!(read.is_some() && self.reads_ready > ready, "a read hangs");
        for slot in 0..self.slots.len() {
            self.core(slot).check_invariants();
            assert!(
                self.slots[slot].applied >= index.0,
                "{slot} did not apply {index:?}"
            );
        }
        assert!(self.slots[leader].durable >= index.0, "not durable in 1 s");
        let command = self.next_command.to_le_bytes();
        let (entry, _) = &self.chosen[index.0 as usize - 1];
        assert!(matches!(&entry.payload, Payload::Command(bytes) if **bytes == command));
        self.check_log_matching();
    }
}
