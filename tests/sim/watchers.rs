//! The promises, watched from outside the cores while a seed runs.
//!
//! Decides: what is a violation of P1, P2, P3, P8 and P10, and under which faults each
//! promise is given. P4 is in `history`, P8 on one node in `devices`, P5, P7 and the end of P3
//! and P4 in `convergence`. Leaves to others: what is broken when (`faults`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dlc::consensus::{Payload, Role};
use dlc::types::{
    BlobId, Incarnation, Index, JobId, Member, REPLICAS, Server, Term, Time, View, WallTime,
};
use dlc::wire::consensus::Content;
use dlc::wire::peer::{Change, Command, PeerMessage};
use dlc::wire::schedule::{Assignment, AssignmentId, Input as JobInput};
use dlc::wire::store::CatalogCommand;
use dlc::wire::{decode, encode};

use crate::clients::Content as FileContent;
use crate::cluster::{Life, Sim};
use crate::history::PutId;
use crate::host::Process;
use crate::network::HostId;
use crate::workload::HEAL_AT;

/// P1: a failure is known to every live member within this, the drift of clocks and the hops
/// between threads included.
const DETECTION_MAX: Duration = Duration::from_millis(5_300);
/// P1: the same for the crash of a process, whose connections close.
const CRASH_DETECTION_MAX: Duration = Duration::from_millis(1_300);
/// P2: a disturbance beyond what the promise covers is excused for this long after it ended.
const EXCUSED: Duration = Duration::from_secs(12);
/// P2: pauses up to this are covered.
const PAUSE_COVERED: Duration = Duration::from_secs(1);
/// A node's cores check themselves every so many turns of its coord thread.
const CHECK_TURNS: u64 = 32;
/// P1: more simultaneous failures than this are not promised.
const FAILURES_MAX: usize = 3;

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When.
    pub at: Time,
    /// Which promise.
    pub watcher: &'static str,
    /// What happened.
    pub what: String,
}

/// What is known of one node from outside.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// When this life became a member.
    joined: Option<Time>,
    leaving: bool,
    /// When it last failed, paused or went on; `None` where it never did.
    troubled: Option<Time>,
    /// The newest view that membership gave.
    view: View,
    /// Sizes of the views that the coord thread had.
    sizes: Vec<(Time, usize)>,
    /// When it led.
    led: Vec<(Time, Option<Time>)>,
}

/// The watchers' memory.
pub struct Watchers {
    nodes: Vec<Seen>,
    /// Since when all ways have been open; `None` while one is not.
    whole_since: Option<Time>,
    /// Since when the weather has been the usual one.
    fair_since: Option<Time>,
    /// Each time that ways were blocked: from, to, and who may be wrong then.
    cuts: Vec<(Time, Option<Time>, Vec<HostId>)>,
    leaders: BTreeMap<Term, Server>,
    applied: Vec<Option<u64>>,
    runs: BTreeMap<AssignmentId, HostId>,
    /// How often inputs were handed out.
    handed: BTreeMap<(JobId, u32), u32>,
    /// The inputs of each job, by its number and the time of its submission.
    pub inputs: BTreeMap<(JobId, WallTime), Arc<[JobInput]>>,
    /// A fault has struck.
    pub struck: bool,
    /// Disks wiped and nodes that left, so far.
    pub burned: u64,
    /// When disks were wiped.
    pub burned_at: Vec<Time>,
    /// Nothing breaks any more.
    pub healed: bool,
    /// The last checks are under way.
    pub auditing: usize,
    /// How many failures were timed.
    pub timed: u64,
    /// What happened, counted: a story in which it never does shows nothing of it.
    pub seen: BTreeMap<&'static str, u64>,
}

impl Watchers {
    /// Watchers of a cluster of `nodes`.
    pub fn new(nodes: usize) -> Watchers {
        Watchers {
            nodes: vec![Seen::default(); nodes],
            whole_since: Some(Time(0)),
            fair_since: Some(Time(0)),
            cuts: Vec::new(),
            leaders: BTreeMap::new(),
            applied: Vec::new(),
            runs: BTreeMap::new(),
            handed: BTreeMap::new(),
            inputs: BTreeMap::new(),
            struck: false,
            burned: 0,
            burned_at: Vec::new(),
            healed: false,
            auditing: 0,
            seen: BTreeMap::new(),
            timed: 0,
        }
    }

    /// A process started.
    pub fn started(&mut self, now: Time, id: HostId) {
        let seen = &mut self.nodes[id];
        seen.joined = None;
        seen.leaving = false;
        seen.view = View::default();
        seen.troubled = Some(now);
    }

    /// A process died.
    pub fn stopped(&mut self, now: Time, id: HostId, _server: &Server) {
        let seen = &mut self.nodes[id];
        seen.troubled = Some(now);
        if let Some((_, end @ None)) = seen.led.last_mut() {
            *end = Some(now);
        }
    }

    /// A process became a member.
    pub fn joined(&mut self, now: Time, id: HostId) {
        self.nodes[id].joined = Some(now);
    }

    /// A process has left, or is about to.
    pub fn left(&mut self, now: Time, id: HostId) {
        self.nodes[id].leaving = true;
        self.nodes[id].troubled = Some(now);
    }

    /// A process is paused for `span`.
    pub fn paused(&mut self, now: Time, id: HostId, span: Duration) {
        let seen = &mut self.nodes[id];
        seen.troubled = Some(now);
        if span > PAUSE_COVERED {
            self.cuts.push((now, Some(now + span), vec![id]));
        }
    }

    /// It goes on.
    pub fn resumed(&mut self, now: Time, id: HostId) {
        self.nodes[id].troubled = Some(now);
    }

    /// Ways were blocked or opened.
    pub fn network_disturbed(&mut self, now: Time, disturbed: bool) {
        self.whole_since = if disturbed {
            None
        } else {
            self.whole_since.or(Some(now))
        };
    }

    /// Ways are blocked from now on; see `faults` for the culprits.
    pub fn cut_began(&mut self, now: Time, culprits: Vec<HostId>) -> usize {
        self.cuts.push((now, None, culprits));
        self.cuts.len() - 1
    }

    /// Those ways are open again.
    pub fn cut_ended(&mut self, now: Time, cut: usize) {
        self.cuts[cut].1.get_or_insert(now);
    }

    /// All ways are open and everybody goes on.
    pub fn all_mended(&mut self, now: Time) {
        for (_, end, _) in &mut self.cuts {
            *end = Some(end.map_or(now, |end| end.min(now)));
        }
    }

    /// How often an input of `job` was handed out, whichever of its reigns gave it which number.
    pub fn times_handed(&self, job: JobId, input: &JobInput) -> u32 {
        let lists = self.inputs.iter().filter(|((id, _), _)| *id == job);
        let places = lists.filter_map(|(_, list)| list.iter().position(|it| it == input));
        let handed = places.filter_map(|place| self.handed.get(&(job, place as u32)));
        handed.copied().max().unwrap_or(0)
    }

    /// Whether cuts and long pauses since `from` explain that `by` dropped `removed`. One that
    /// is over explains everything: who was cut off brings its beliefs back with it. One that is
    /// in force explains only what concerns its culprits: nobody else has a second accuser, as
    /// long as the weather is fair.
    fn a_cut_explains(&self, from: Time, now: Time, by: HostId, removed: HostId) -> bool {
        let recent = |(begin, end, _): &&(Time, Option<Time>, Vec<HostId>)| {
            *begin <= now && end.is_none_or(|end| end >= from)
        };
        let recent: Vec<_> = self.cuts.iter().filter(recent).collect();
        match recent[..] {
            [] => false,
            [(_, end, culprits)] => {
                let fair = self
                    .fair_since
                    .is_some_and(|at| at <= from || at == Time(0));
                !fair
                    || end.is_some_and(|end| end <= now)
                    || culprits.is_empty()
                    || culprits.contains(&by)
                    || culprits.contains(&removed)
            }
            _ => true,
        }
    }

    fn a_cut_is_recent(&self, from: Time) -> bool {
        let recent = |end: &Option<Time>| end.is_none_or(|end| end >= from);
        self.cuts.iter().any(|(_, end, _)| recent(end))
    }

    /// Loss or delay changed.
    pub fn weather(&mut self, now: Time, fair: bool) {
        self.fair_since = if fair {
            self.fair_since.or(Some(now))
        } else {
            None
        };
    }

    /// Whether nothing was broken since `from`, a node that starts included.
    pub fn is_calm(&self, from: Time) -> bool {
        self.whole_since.is_some_and(|since| since <= from)
            && self
                .nodes
                .iter()
                .all(|seen| seen.troubled.is_none_or(|at| at <= from))
    }

    /// The smallest membership that a leader held between `from` and `to`.
    fn smallest_membership(&self, from: Time, to: Time) -> Option<usize> {
        let led = |seen: &&Seen| {
            seen.led
                .iter()
                .any(|(begin, end)| *begin <= to && end.is_none_or(|end| end >= from))
        };
        let sizes = self.nodes.iter().filter(led).flat_map(|seen| {
            let before = seen.sizes.iter().rev().find(|(at, _)| *at <= from);
            let within = seen
                .sizes
                .iter()
                .filter(move |(at, _)| *at > from && *at <= to);
            before.into_iter().chain(within).map(|(_, size)| *size)
        });
        sizes.min()
    }

    /// The latest view of `id`.
    pub fn view(&self, id: HostId) -> &View {
        &self.nodes[id].view
    }
}

fn fold(hash: u64, bytes: &[u8]) -> u64 {
    let multiply =
        |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let folded = bytes.chunks(8).fold(hash, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        multiply(hash, u64::from_le_bytes(word))
    });
    multiply(folded, bytes.len() as u64)
}

/// Entries that were applied since the last look, as hashes.
fn freshly_applied(process: &Process) -> Vec<(u64, u64)> {
    let applied = process.node.state().applied.0;
    let mut fresh = Vec::new();
    for index in process.applied_seen + 1..=applied {
        // A snapshot has taken the place of the entry, here or at the leader that sent it.
        let Some(entry) = process.node.consensus().entry(Index(index)) else {
            continue;
        };
        let hash = fold(entry.term.0, &[]);
        let hash = match &entry.payload {
            Payload::Empty => fold(hash, b"empty"),
            Payload::Voters(voters) => fold(hash, &encode(voters)),
            Payload::Command(bytes) => fold(hash, bytes),
        };
        fresh.push((index, hash));
    }
    fresh
}

impl Sim {
    /// P1: the process of `id` is about to crash; every live member must know soon.
    pub fn watch_crash(&mut self, id: HostId) {
        self.watch_detection(id, CRASH_DETECTION_MAX);
    }

    /// P1: `id` is about to fall silent; every live member must know in time.
    pub fn watch_silence(&mut self, id: HostId) {
        self.watch_detection(id, DETECTION_MAX);
    }

    fn watch_detection(&mut self, id: HostId, limit: Duration) {
        let Some(process) = self.hosts[id].process() else {
            return;
        };
        let (server, incarnation) = (process.server.clone(), process.membership.me().incarnation);
        if self.watchers.nodes[id].joined.is_none() || !self.hosts[id].is_active() {
            return;
        }
        let began = self.now;
        let observers: Vec<Life> = (0..self.nodes)
            .filter(|other| *other != id && self.hosts[*other].is_active())
            .filter(|other| self.watchers.view(*other).server(&server).is_some())
            .map(|other| self.life(other))
            .collect();
        self.after(limit, move |sim| {
            sim.check_detection(began, id, &server, incarnation, &observers);
        });
    }

    fn check_detection(
        &mut self,
        began: Time,
        id: HostId,
        server: &Server,
        incarnation: Incarnation,
        observers: &[Life],
    ) {
        // What was to stay dead is healed as well.
        if self.now > Time(0) + HEAL_AT {
            return;
        }
        let calm_from = began - Duration::from_secs(3);
        let calm = |since: Option<Time>| since.is_some_and(|since| since <= calm_from);
        let troubled = self
            .watchers
            .nodes
            .iter()
            .filter(|seen| seen.troubled.is_some_and(|at| at >= calm_from));
        if !calm(self.watchers.whole_since)
            || !calm(self.watchers.fair_since)
            || troubled.count() > FAILURES_MAX
        {
            return;
        }
        self.watchers.timed += 1;
        for life in observers {
            let seen = &self.watchers.nodes[life.0];
            let same = self.life(life.0) == *life && self.hosts[life.0].is_active();
            if !same || seen.troubled.is_some_and(|at| at >= calm_from) {
                continue;
            }
            let still = seen
                .view
                .server(server)
                .filter(|member| member.incarnation <= incarnation);
            if let Some(member) = still {
                let what = format!(
                    "node-{id} failed at {began} and node-{} still has it as {:?}#{}",
                    life.0, member.state, member.incarnation.0
                );
                return self.violate("P1", what);
            }
        }
    }

    /// P2: whoever is missing in the new view must have given a reason.
    pub fn watch_view(&mut self, id: HostId, view: &View) {
        let old = std::mem::replace(&mut self.watchers.nodes[id].view, view.clone());
        let gone = old
            .members
            .values()
            .filter(|member| view.server(&member.server()).is_none());
        let gone: Vec<(HostId, Member)> = gone
            .filter_map(|member| Some((self.host_at(member.addr)?, member.clone())))
            .collect();
        for (removed, member) in gone {
            if removed != id && !self.removal_is_excused(id, removed, &member) {
                let what = format!("node-{id} dropped node-{removed}, which is live and reachable");
                return self.violate("P2", what);
            }
        }
    }

    fn removal_is_excused(&self, by: HostId, removed: HostId, member: &Member) -> bool {
        let from = self.now - EXCUSED;
        let seen = &self.watchers.nodes[removed];
        let host = &self.hosts[removed];
        let settled = seen
            .joined
            .is_some_and(|at| at + Duration::from_secs(3) <= self.now);
        let lives = host.is_active()
            && host
                .process()
                .is_some_and(|process| process.server == member.server());
        // While somebody cannot be refuted, who missed the refutation may believe it.
        let outlived = host
            .process()
            .is_some_and(|process| process.membership.me().incarnation > member.incarnation);
        !lives
            || !settled
            || seen.leaving
            || (outlived && self.watchers.a_cut_is_recent(from))
            || self.watchers.a_cut_explains(from, self.now, by, removed)
    }

    /// P3: a put was answered: its copies must be safe at this instant.
    pub fn watch_put(&mut self, content: &FileContent, blob: BlobId, put: PutId) {
        let (began, now) = (self.clients.histories.began(put), self.now);
        if self.watchers.burned_at.iter().any(|at| *at >= began) {
            return;
        }
        let history = self.clients.histories.of(&content.name).expect("put there");
        if history.deleted_since(began) {
            return;
        }
        let Some(members) = self.watchers.smallest_membership(began, now) else {
            return self.violate("P10", "a put was answered and nobody led".into());
        };
        let disks = (0..self.nodes).filter(|id| self.hosts[*id].disk.keeps(blob, content.digest));
        let (copies, wanted) = (disks.count(), members.min(REPLICAS));
        if copies < wanted {
            let what = format!(
                "{} was answered with {copies} safe copies of {wanted} ({blob})",
                content.name
            );
            return self.violate("P3", what);
        }
        if let Some(what) = self.unsafe_entry(blob, wanted) {
            self.violate("P3", what);
        }
    }

    /// The entry that names `blob` must be on the disks of `wanted` members.
    fn unsafe_entry(&self, blob: BlobId, wanted: usize) -> Option<String> {
        let names_it = |bytes: &[u8]| {
            matches!(
                decode::<Command>(bytes),
                Ok(Command { change: Change::Catalog(CatalogCommand::Put(uploads)), .. })
                    if uploads.iter().any(|upload| upload.blob == blob)
            )
        };
        let disks = (0..self.nodes).map(|id| self.hosts[id].disk.entries());
        // Where it is not among the last ones it is so old that everybody has it.
        let recent = disks.flat_map(|entries| entries.iter().rev().take(40));
        let mut naming = recent.filter_map(|entry| match &entry.payload {
            Payload::Command(bytes) if names_it(bytes) => Some((entry.index, entry.term)),
            _ => None,
        });
        let (index, term) = naming.next()?;
        let has_it = |id: &HostId| {
            let disk = &self.hosts[*id].disk;
            disk.has_entry(index, term)
        };
        let disks = (0..self.nodes).filter(has_it).count();
        (disks < wanted).then(|| {
            format!(
                "a put was answered with its entry {} on {disks} disks of {wanted}",
                index.0
            )
        })
    }

    /// P10, after each turn of a node's coord thread.
    pub fn watch_node(&mut self, id: HostId) {
        let now = self.now;
        let Some(process) = self.hosts[id].process_mut() else {
            return;
        };
        let consensus = process.node.consensus();
        let (term, leads) = (consensus.term(), consensus.role() == Role::Leader);
        let applied = process.node.state().applied.0;
        let fresh = freshly_applied(process);
        let taken_back = applied < process.applied_seen;
        process.applied_seen = applied;
        process.turns += 1;
        if process.turns.is_multiple_of(CHECK_TURNS) {
            process.node.check_invariants();
            process.membership.check_invariants();
            for job in process.node.state().jobs.unfinished() {
                let inputs = 0..job.total() as u32;
                let rows = inputs.filter(|input| job.has_row(*input)).count() as u64;
                assert_eq!(rows, job.counted(), "rows and count of job {}", job.id);
            }
        }
        for job in process.node.state().jobs.unfinished() {
            let known = self.watchers.inputs.entry((job.id, job.submitted));
            known.or_insert_with(|| job.inputs.clone());
        }
        let (server, size) = (process.server.clone(), process.view.members.len());
        let crash_stop = self.plan.crash_stop;
        if taken_back {
            self.count("decisions taken back");
        }
        if taken_back && !crash_stop {
            return self.violate("P10", format!("node-{id} took back what it had applied"));
        }
        for (index, hash) in fresh {
            let place = index as usize - 1;
            if self.watchers.applied.len() <= place {
                self.watchers.applied.resize(place + 1, None);
            }
            match self.watchers.applied[place] {
                None => self.watchers.applied[place] = Some(hash),
                Some(known) if known == hash => {}
                // Decided and not answered; what was answered is P3's and P4's.
                Some(_) if crash_stop => self.watchers.applied[place] = Some(hash),
                Some(_) => {
                    return self.violate("P10", format!("node-{id} applied another entry {index}"));
                }
            }
        }
        let seen = &mut self.watchers.nodes[id];
        if seen.sizes.last().is_none_or(|(_, last)| *last != size) {
            seen.sizes.push((now, size));
        }
        let leading = seen.led.last().is_some_and(|(_, end)| end.is_none());
        match (leads, leading) {
            (true, false) => seen.led.push((now, None)),
            (false, true) => seen.led.last_mut().expect("leads").1 = Some(now),
            _ => {}
        }
        if leads && !leading {
            self.count("reigns");
            if crash_stop {
                self.count("reigns of crash-stop clusters");
            }
            self.trace
                .story(now, "leader", || format!("node-{id} in term {}", term.0));
        }
        if leads {
            let first = self
                .watchers
                .leaders
                .entry(term)
                .or_insert_with(|| server.clone())
                .clone();
            if first != server {
                self.violate(
                    "P10",
                    format!("{first:?} and {server:?} lead in term {}", term.0),
                );
            }
        }
    }

    /// Counts something that happened.
    pub fn count(&mut self, what: &'static str) {
        *self.watchers.seen.entry(what).or_default() += 1;
    }

    /// P3, durability before words: what a node acknowledges is safe on its disk.
    pub fn watch_send(&mut self, id: HostId, message: &PeerMessage) {
        let PeerMessage::Consensus(message) = message else {
            return;
        };
        match &message.content {
            Content::Snapshot { part, .. } if !part.is_empty() => self.count("snapshot parts"),
            Content::Vote(_) => self.count("votes asked for"),
            _ => {}
        }
        let safe = self.hosts[id].disk.last_safe();
        if let Content::Appended { matched, .. } = message.content
            && matched > safe
        {
            let what = format!(
                "node-{id} acknowledges entry {} with {} on its disk",
                matched.0, safe.0
            );
            self.violate("P3", what);
        }
    }

    /// P8 across the cluster: no hand-out runs at two places; and while nothing has ever
    /// been broken, no input runs twice.
    pub fn watch_run(&mut self, id: HostId, assignment: &Assignment) {
        for input in &assignment.inputs {
            let input_of_job = (assignment.job, input.index);
            let runs = self.watchers.handed.entry(input_of_job).or_default();
            *runs += 1;
            // A free node may repeat what a slow one runs, once.
            let again = *runs > 2;
            if *runs == 2 {
                self.count("inputs repeated");
            }
            let failed = self.devices.failed_inputs.contains_key(&input.blob);
            if again && !failed && !self.watchers.struck {
                let what = format!(
                    "input {} of job {} runs a third time on node-{id}, and nothing had failed",
                    input.index, assignment.job
                );
                return self.violate("P8", what);
            }
        }
        if let Some(other) = self.watchers.runs.insert(assignment.id, id) {
            let what = format!(
                "{:?} runs on node-{id} and ran on node-{other}",
                assignment.id
            );
            self.violate("P8", what);
        }
    }

    /// Names of the nodes that are members by their own account.
    pub fn members_now(&self) -> BTreeSet<HostId> {
        (0..self.nodes)
            .filter(|id| {
                self.hosts[*id]
                    .process()
                    .is_some_and(|p| p.membership.is_member())
            })
            .collect()
    }
}
