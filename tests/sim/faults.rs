//! What breaks, and when it is mended.
//!
//! Decides: the kinds of faults and the budget within which the promises hold: a disk is
//! wiped, or a node leaves, only while every file has a copy elsewhere and a majority of the
//! voters keeps its disks. Leaves to others: what must hold meanwhile (`watchers`).

use std::collections::BTreeSet;
use std::time::Duration;

use dlc::consensus::Role;
use dlc::types::{Rng, Server, StorageId};
use dlc::wire::client::Request;

use crate::cluster::Sim;
use crate::network::HostId;
use crate::workload::{HEAL_AT, OPERATIONS_FROM};

/// A disk burns only after so long without another fault.
const SETTLED: Duration = Duration::from_secs(5);

/// How often is looked whether a node that leaves has left.
const LEAVING: Duration = Duration::from_millis(100);

/// One fault. Hosts are numbers of nodes.
#[derive(Clone, Debug)]
pub enum Fault {
    /// kill -9, started again after the span.
    Crash(HostId, Duration),
    /// The same for up to three nodes at once.
    CrashMany(Vec<HostId>, Duration),
    /// kill -9 of whoever leads.
    CrashLeader(Duration),
    /// Silent for the span, then it goes on.
    Pause(HostId, Duration),
    /// The leader is silent for the span.
    PauseLeader(Duration),
    /// Silent for the span, then it is dead and started again.
    Freeze(HostId, Duration),
    /// These nodes hear only each other for the span.
    Partition(Vec<HostId>, Duration),
    /// The leader hears nobody for the span.
    IsolateLeader(Duration),
    /// Nothing gets from the first to the second for the span.
    OneWay(HostId, HostId, Duration),
    /// It hears nobody for the span, and everybody hears it.
    Deaf(HostId, Duration),
    /// So many percent of the packets are lost for the span.
    Loss(u64, Duration),
    /// Datagrams are late by up to the second span for the first one.
    Delay(Duration, Duration),
    /// kill -9, an empty disk, started again after the span.
    Wipe(HostId, Duration),
    /// It leaves in order; started again after the span, or not before the end.
    Leave(HostId, Duration),
    /// An introducer is killed and started again.
    Introducer(HostId, Duration),
    /// All nodes are killed at once and started again.
    CrashAll(Duration),
    /// So many copies on its disk decay.
    Decay(HostId, u64),
    /// kill -9 of the machine, whose disk had said of up to so many copies that they are safe and
    /// has lost them; started again after the span.
    LostSync(HostId, u64, Duration),
    /// So many percent of the writes of copies fail on its disk for the span.
    Full(HostId, u64, Duration),
}

fn seconds(random: &mut Rng, low: u64, high: u64) -> Duration {
    random.span(Duration::from_secs(low), Duration::from_secs(high))
}

fn some(random: &mut Rng, nodes: usize, count: u64) -> Vec<HostId> {
    let mut chosen = BTreeSet::new();
    while (chosen.len() as u64) < count.min(nodes as u64) {
        chosen.insert(random.below(nodes as u64) as HostId);
    }
    chosen.into_iter().collect()
}

impl Fault {
    /// Draws a seed's faults: first which kinds it has at all, then when each strikes.
    pub fn draw(random: &mut Rng, nodes: usize, introducers: usize) -> Vec<(Duration, Fault)> {
        let mut kinds: Vec<u64> = (0..19).filter(|_| random.chance(50)).collect();
        if kinds.is_empty() {
            kinds = vec![0, 3, 6];
        }
        Fault::draw_of(&kinds, random, nodes, introducers)
    }

    /// Draws the faults of a crash-stop cluster: nothing but crashes.
    pub fn draw_crashes(
        random: &mut Rng,
        nodes: usize,
        introducers: usize,
    ) -> Vec<(Duration, Fault)> {
        Fault::draw_of(&[0, 1, 1, 2, 13, 15], random, nodes, introducers)
    }

    fn draw_of(
        kinds: &[u64],
        random: &mut Rng,
        nodes: usize,
        introducers: usize,
    ) -> Vec<(Duration, Fault)> {
        let mut faults = Vec::new();
        for _ in 0..5 + random.below(6) {
            let kind = kinds[random.below(kinds.len() as u64) as usize];
            let at = random.span(OPERATIONS_FROM + Duration::from_secs(2), HEAL_AT);
            faults.push((at, Fault::of_kind(kind, random, nodes, introducers)));
        }
        faults.sort_by_key(|(at, _)| *at);
        faults
    }

    fn of_kind(kind: u64, random: &mut Rng, nodes: usize, introducers: usize) -> Fault {
        let host = random.below(nodes as u64) as HostId;
        let other = (host + 1 + random.below(nodes as u64 - 1) as usize) % nodes;
        match kind {
            0 => Fault::Crash(host, seconds(random, 0, 12)),
            1 => {
                let count = 1 + random.below(3);
                Fault::CrashMany(some(random, nodes, count), seconds(random, 6, 12))
            }
            2 => Fault::CrashLeader(seconds(random, 0, 10)),
            3 => Fault::Pause(
                host,
                random.span(Duration::from_millis(50), Duration::from_secs(1)),
            ),
            4 => Fault::Pause(host, seconds(random, 1, 10)),
            5 => Fault::PauseLeader(seconds(random, 0, 8)),
            6 => {
                let count = 1 + random.below(nodes as u64 / 2);
                Fault::Partition(some(random, nodes, count), seconds(random, 1, 12))
            }
            7 => Fault::IsolateLeader(seconds(random, 1, 10)),
            8 => Fault::OneWay(host, other, seconds(random, 1, 10)),
            9 => Fault::Loss(3 + random.below(28), seconds(random, 2, 10)),
            10 => Fault::Delay(
                seconds(random, 2, 10),
                random.span(Duration::from_millis(20), Duration::from_millis(250)),
            ),
            11 => Fault::Wipe(host, seconds(random, 0, 6)),
            12 => Fault::Leave(host, seconds(random, 2, 30)),
            13 => Fault::Introducer(
                nodes + random.below(introducers as u64) as usize,
                seconds(random, 0, 8),
            ),
            14 => Fault::Deaf(host, seconds(random, 3, 10)),
            16 => Fault::Decay(host, 1 + random.below(20)),
            18 => Fault::LostSync(host, 1 + random.below(20), seconds(random, 0, 8)),
            17 => Fault::Full(host, 30 + random.below(71), seconds(random, 1, 15)),
            15 if random.chance(20) => Fault::CrashAll(seconds(random, 0, 3)),
            _ => Fault::Freeze(host, seconds(random, 4, 12)),
        }
    }
}

impl Sim {
    /// A fault strikes, unless it is beyond the budget.
    pub fn strike(&mut self, fault: Fault) {
        if self.network_is_healed() {
            return;
        }
        self.trace.story(self.now, "fault", || format!("{fault:?}"));
        self.watchers.struck = true;
        match fault {
            Fault::Crash(id, span) | Fault::Introducer(id, span) => self.crash_for(id, span),
            Fault::CrashMany(ids, span) => ids.into_iter().for_each(|id| self.crash_for(id, span)),
            Fault::CrashLeader(span) => {
                if let Some(id) = self.leader() {
                    self.crash_for(id, span);
                }
            }
            Fault::Pause(id, span) => self.pause_for(id, span),
            Fault::PauseLeader(span) => {
                if let Some(id) = self.leader() {
                    self.pause_for(id, span);
                }
            }
            Fault::Freeze(id, span) => {
                self.watch_silence(id);
                self.watchers.paused(self.now, id, span);
                self.pause(id);
                let life = self.life(id);
                self.after(span, move |sim| {
                    if sim.life(id) == life && sim.hosts[id].is_paused() {
                        sim.crash(id, "frozen dead");
                        sim.start(id);
                    }
                });
            }
            Fault::Partition(ids, span) => self.cut_for(&ids, span),
            Fault::IsolateLeader(span) => {
                if let Some(id) = self.leader() {
                    self.cut_for(&[id], span);
                }
            }
            Fault::OneWay(from, to, span) => {
                self.block_for(vec![(from, to)], vec![from, to], span);
            }
            Fault::Deaf(id, span) => {
                let others = (0..self.hosts.len()).filter(|other| *other != id);
                let ways = others.map(|other| (other, id)).collect();
                self.block_for(ways, vec![id], span);
            }
            Fault::Loss(percent, span) => {
                self.network.weather.loss = percent;
                self.watchers.weather(self.now, false);
                self.after(span, |sim| {
                    sim.network.weather = sim.network.usual;
                    let now = sim.now;
                    sim.watchers.weather(now, true);
                });
            }
            Fault::Delay(span, late) => {
                self.network.weather.lateness = 30;
                self.network.weather.late = late;
                self.watchers.weather(self.now, false);
                self.after(span, |sim| {
                    sim.network.weather = sim.network.usual;
                    let now = sim.now;
                    sim.watchers.weather(now, true);
                });
            }
            Fault::Wipe(id, span) => self.wipe(id, span),
            Fault::Leave(id, span) => self.leave(id, span),
            Fault::Decay(id, count) => self.decay(id, count),
            Fault::LostSync(id, count, span) => {
                self.crash_for(id, span);
                self.lose_syncs(id, count);
            }
            Fault::Full(id, percent, span) => self.fill_disk(id, percent, span),
            Fault::CrashAll(span) => (0..self.nodes).for_each(|id| self.crash_for(id, span)),
        }
    }

    fn network_is_healed(&self) -> bool {
        self.now >= dlc::types::Time(0) + HEAL_AT
    }

    /// The leader of the highest term, if any.
    pub fn leader(&self) -> Option<HostId> {
        let leads = |id: &HostId| {
            let node = &self.hosts[*id].process()?.node;
            (node.consensus().role() == Role::Leader).then(|| (node.consensus().term(), *id))
        };
        self.active_nodes()
            .iter()
            .filter_map(leads)
            .max()
            .map(|(_, id)| id)
    }

    fn crash_for(&mut self, id: HostId, span: Duration) {
        if !self.hosts[id].is_running() {
            return;
        }
        if id < self.nodes {
            self.watch_crash(id);
        }
        self.crash(id, "crash");
        self.after(span, move |sim| sim.start(id));
    }

    fn pause_for(&mut self, id: HostId, span: Duration) {
        if !self.hosts[id].is_active() {
            return;
        }
        self.watchers.paused(self.now, id, span);
        let life = self.life(id);
        self.pause(id);
        self.after(span, move |sim| {
            if sim.life(id) == life {
                sim.resume(id);
                let now = sim.now;
                sim.watchers.resumed(now, id);
            }
        });
    }

    fn cut_for(&mut self, ids: &[HostId], span: Duration) {
        let inside: BTreeSet<HostId> = ids.iter().copied().collect();
        let mut ways = Vec::new();
        for id in &inside {
            for other in (0..self.hosts.len()).filter(|other| !inside.contains(other)) {
                ways.push((*id, other));
                ways.push((other, *id));
            }
        }
        // Who is alone can blame nobody else but itself; of two groups each may be right.
        let culprits = if inside.len() == 1 {
            ids.to_vec()
        } else {
            Vec::new()
        };
        self.block_for(ways, culprits, span);
    }

    /// Blocks these ways for `span`. `culprits`: all who may be wrong about others, or others
    /// about them; empty where that is everybody.
    fn block_for(&mut self, ways: Vec<(HostId, HostId)>, culprits: Vec<HostId>, span: Duration) {
        for (from, to) in &ways {
            self.network.set_blocked(*from, *to, true);
        }
        self.watchers.network_disturbed(self.now, true);
        let cut = self.watchers.cut_began(self.now, culprits);
        self.after(span, move |sim| {
            for (from, to) in &ways {
                sim.network.set_blocked(*from, *to, false);
            }
            let (now, whole) = (sim.now, sim.network.is_whole());
            sim.watchers.cut_ended(now, cut);
            sim.watchers.network_disturbed(now, !whole);
        });
    }

    /// Whether the disk of `id` may burn: no file and no log entry goes with it.
    ///
    /// Only while nothing else is broken: a leader that loses sight of voters takes them
    /// out one by one, and between two steps the set is even and bears one loss less.
    fn may_burn(&self, id: HostId) -> bool {
        if !self.watchers.is_calm(self.now - SETTLED) || self.active_nodes().len() < self.nodes {
            return false;
        }
        let own = self.hosts[id].disk.storage;
        let kept = |storage: &StorageId| {
            *storage != own
                && self
                    .hosts
                    .iter()
                    .any(|host| host.disk.storage == *storage && !host.retired)
        };
        for host in (0..self.nodes).filter_map(|id| self.hosts[id].process()) {
            let voters: &[Server] = host.node.consensus().voters();
            let safe = voters.iter().filter(|voter| kept(&voter.storage)).count();
            if safe * 2 <= voters.len() {
                return false;
            }
        }
        let elsewhere = |blob, digest| {
            let others =
                (0..self.nodes).filter(|other| *other != id && !self.hosts[*other].retired);
            others
                .filter(|other| self.hosts[*other].disk.keeps(blob, digest))
                .count()
                > 0
        };
        self.clients.histories.iter().all(|(_, history)| {
            history
                .puts
                .iter()
                .filter(|put| history.must_exist(put))
                .all(|put| match put.end {
                    crate::history::PutEnd::Answered(_, _, blob) => elsewhere(blob, put.digest),
                    _ => true,
                })
        })
    }

    fn wipe(&mut self, id: HostId, span: Duration) {
        if !self.may_burn(id) || self.watchers.burned >= self.burns_max() {
            return self
                .trace
                .story(self.now, "fault", || "beyond the budget".into());
        }
        self.watchers.burned += 1;
        self.watchers.burned_at.push(self.now);
        self.watch_crash(id);
        self.crash(id, "crash");
        self.after(span, move |sim| sim.start_empty(id));
        self.hosts[id].disk.wipe(&mut self.streams.devices);
        self.trace.note(self.now, id, "wipe", String::new);
    }

    /// Starts a node whose disk is empty once it can find others: where nobody is there who
    /// remembers the cluster, such a node begins a new one.
    fn start_empty(&mut self, id: HostId) {
        let others = self.active_nodes();
        if others.iter().any(|other| *other != id) {
            self.start(id);
        } else {
            self.after(Duration::from_secs(1), move |sim| sim.start_empty(id));
        }
    }

    /// Burned disks and departures that a seed may have: a minority of the voters.
    fn burns_max(&self) -> u64 {
        if self.nodes >= 7 { 2 } else { 1 }
    }

    fn leave(&mut self, id: HostId, span: Duration) {
        if !self.hosts[id].is_active()
            || !self.may_burn(id)
            || self.watchers.burned >= self.burns_max()
        {
            return self
                .trace
                .story(self.now, "fault", || "beyond the budget".into());
        }
        self.watchers.burned += 1;
        self.watchers.left(self.now, id);
        self.ask(id, Request::Leave, |_, _| ());
        let life = self.life(id);
        self.after(span, move |sim| sim.start_once_left(id, life));
    }

    /// Starts who has left; who still hands its copies over in this `life` is waited for.
    fn start_once_left(&mut self, id: HostId, life: (HostId, u32)) {
        if !self.hosts[id].is_running() {
            self.start(id);
        } else if self.life(id) == life {
            self.after(LEAVING, move |sim| sim.start_once_left(id, life));
        }
    }

    /// Everything is mended: whoever is down starts, whoever is silent goes on.
    pub fn heal(&mut self) {
        self.trace.story(self.now, "heal", String::new);
        self.network.heal();
        self.watchers.all_mended(self.now);
        self.watchers.network_disturbed(self.now, false);
        self.watchers.weather(self.now, true);
        for id in 0..self.hosts.len() {
            if id < self.nodes && self.hosts[id].is_paused() {
                if self.plan.crash_stop {
                    // It has been gone on without: only the dead may be taken for dead there.
                    self.crash(id, "frozen dead");
                }
                self.watchers.resumed(self.now, id);
            }
            self.resume(id);
            self.start(id);
        }
        self.watchers.healed = true;
    }
}
