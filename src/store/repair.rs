//! The leader's planner that brings every blob back to four copies.
//!
//! Volatile: a new leader starts with an empty one and works from catalog and view alone.
//! Decides: which blobs want copies (those with the fewest first), who fetches them, when
//! an order is given up, and which copies are surplus. Leaves to others: writing the
//! changes to the log, sending the orders (both may be lost: everything here comes again
//! by deadline), and the bytes.
//!
//! Nothing is moved because of a join beyond what brings files to min(4, live) copies.
//! A copy is taken out of the catalog only while enough other live ones are named there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::catalog::{Catalog, VersionRecord};
use super::pace::Pace;
use super::placement::{Ring, target};
use crate::types::{BlobId, Member, MemberState, REPLICAS, Server, Term, Time, View};
use crate::wire::store::{Located, ReplicaChange};

/// Most blobs that one member fetches at a time.
pub const TARGET_BLOBS_MAX: usize = 64;
/// Most bytes that one member fetches at a time; a larger blob goes alone.
pub const TARGET_BYTES_MAX: u64 = 64 << 20;
/// Most replica changes in one turn; the rest follows in the next.
pub const CHANGES_MAX: usize = 1_000;
/// How many marked blobs, and how many waiting ones, one turn looks at: a turn stays short.
const ASSESS_MAX: usize = 4_096;
const LOOK_MAX: usize = 1_024;
/// A member that reports nothing for so long, beyond what its bytes take, has failed its orders.
const ORDER_TIME: Duration = Duration::from_secs(10);
/// Bytes a second that a fetch makes at the very least.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// A proposed change that the catalog does not show after so long is proposed again.
const CHANGE_TIME: Duration = Duration::from_secs(5);
/// A member that failed its orders is chosen last for so long.
const AVOID_TIME: Duration = Duration::from_secs(30);
/// For so long a copy that its holder misses is not counted, where it may not be taken out.
const DOUBT_TIME: Duration = Duration::from_secs(30);
/// First and longest wait before a copy that could not be made is tried again.
const RETRY_TIME: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));
/// A member that has not repeated for so long that it leaves has thought better of it.
const LEAVING_TIME: Duration = Duration::from_secs(5);

/// What the leader is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairOutput {
    /// Order `to` to copy these blobs.
    Pull {
        /// The member.
        to: Server,
        /// What, and from where.
        blobs: Vec<Located>,
    },
    /// Propose these changes to the log.
    Change(Vec<ReplicaChange>),
}

/// What one member fetches now.
#[derive(Clone, Debug)]
struct Orders {
    blobs: BTreeMap<BlobId, u64>,
    bytes: u64,
    deadline: Time,
}

/// Changes of one blob that are proposed and not applied yet.
#[derive(Clone, Debug, Default)]
struct Proposed {
    add: BTreeSet<Server>,
    remove: BTreeSet<Server>,
    deadline: Time,
}

/// The view and the catalog as they were when they were last looked at.
#[derive(Clone, Debug)]
struct Seen {
    view: u64,
    servers: BTreeSet<Server>,
    revision: u64,
}

/// A blob whose last copying failed.
#[derive(Clone, Debug)]
struct Retry {
    wait: Duration,
    due: Time,
}

/// The planner of one term.
#[derive(Clone, Debug)]
pub struct Repair {
    term: Term,
    /// What was last looked at.
    seen: Option<Seen>,
    /// Blobs to look at again.
    look: BTreeSet<BlobId>,
    /// Blobs that want an order, by their number of copies; and that number by blob.
    queue: BTreeSet<(usize, BlobId)>,
    copies: BTreeMap<BlobId, usize>,
    orders: BTreeMap<Server, Orders>,
    /// Who fetches a blob.
    ordered: BTreeMap<BlobId, BTreeSet<Server>>,
    proposed: BTreeMap<BlobId, Proposed>,
    retries: BTreeMap<BlobId, Retry>,
    avoided: BTreeMap<Server, Time>,
    doubted: BTreeMap<(BlobId, Server), Time>,
    /// Members that leave once their copies are elsewhere too (read from, and not counted), and
    /// when each is taken for one that stays.
    leaving: BTreeMap<Server, Time>,
    pace: Pace,
    /// Whether orders may be possible that were not before.
    dirty: bool,
}

impl Repair {
    /// The planner of the leader of `term`.
    pub fn new(term: Term) -> Repair {
        Repair {
            term,
            seen: None,
            look: BTreeSet::new(),
            queue: BTreeSet::new(),
            copies: BTreeMap::new(),
            orders: BTreeMap::new(),
            ordered: BTreeMap::new(),
            proposed: BTreeMap::new(),
            retries: BTreeMap::new(),
            avoided: BTreeMap::new(),
            doubted: BTreeMap::new(),
            leaving: BTreeMap::new(),
            pace: Pace::default(),
            dirty: true,
        }
    }

    /// The term that orders carry.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Blobs for which a copy is still to be ordered.
    pub fn waiting(&self) -> usize {
        self.copies.len()
    }

    /// Ordered copies that have not been reported.
    pub fn in_flight(&self) -> usize {
        self.orders.values().map(|orders| orders.blobs.len()).sum()
    }

    /// Members that leave once their copies are elsewhere too.
    pub fn leaving(&self) -> BTreeSet<Server> {
        self.leaving.keys().cloned().collect()
    }

    /// `from` says that it leaves, and will say so again until it has left.
    pub fn handle_leaving(&mut self, now: Time, from: Server) {
        if self.leaving.insert(from, now + LEAVING_TIME).is_none() {
            self.seen = None;
        }
    }

    /// Bytes a second that were copied of late.
    pub fn rate(&self, now: Time) -> u64 {
        self.pace.rate(now)
    }

    /// The versions that have fewer copies than they should, by file and version: how many
    /// count, and how many should.
    pub fn under<'a>(
        &'a self,
        catalog: &'a Catalog,
        view: &'a View,
    ) -> impl Iterator<Item = (&'a VersionRecord, usize, usize)> {
        let wanted = self.wanted(view);
        catalog.records().filter_map(move |record| {
            let copies = self.counted(record, view).count();
            (copies < wanted).then_some((record, copies, wanted))
        })
    }

    /// What is to be done now. Cheap where nothing changed, so it may be called in every
    /// turn; it must be called when [`Repair::poll_timeout`] is due and after the catalog,
    /// the view or a report may have changed something.
    #[must_use]
    pub fn plan(&mut self, now: Time, catalog: &Catalog, view: &View) -> Vec<RepairOutput> {
        let mut changes = self.expire(now);
        self.notice(catalog, view);
        let mut outputs = Vec::new();
        if self.dirty || !self.look.is_empty() {
            let leaving = self.leaving();
            let ring = Ring::new(view, &leaving);
            changes.extend(self.assess(now, catalog, view, &ring));
            if std::mem::take(&mut self.dirty) {
                outputs = self.order(now, catalog, view, &ring);
            }
        }
        if !changes.is_empty() {
            outputs.push(RepairOutput::Change(changes));
        }
        outputs
    }

    /// `from` says that it has these blobs. Returns the changes to propose: only blobs
    /// that were ordered from it count.
    #[must_use]
    pub fn handle_stored(
        &mut self,
        now: Time,
        from: &Server,
        blobs: &[BlobId],
        catalog: &Catalog,
        view: &View,
    ) -> Vec<ReplicaChange> {
        let mut changes = Vec::new();
        for blob in blobs {
            if !self.end_order(now, from, blob) || view.server(from).is_none() {
                continue;
            }
            self.retries.remove(blob);
            self.doubted.remove(&(*blob, from.clone()));
            let Some(record) = catalog.record(blob) else {
                continue;
            };
            if record.replicas.contains(from) {
                continue;
            }
            self.pace.note(now, record.bytes);
            let proposed = self.proposed.entry(*blob).or_default();
            proposed.add.insert(from.clone());
            proposed.deadline = now + CHANGE_TIME;
            let named = record.replicas.iter().chain(&proposed.add);
            let mut named: BTreeSet<&Server> = named.collect();
            named.retain(|server| !proposed.remove.contains(server));
            let dead = named.iter().find(|server| view.server(server).is_none());
            let dead = dead
                .filter(|_| named.len() > REPLICAS)
                .map(|s| (*s).clone());
            proposed.remove.extend(dead.clone());
            changes.push(ReplicaChange {
                blob: *blob,
                add: vec![from.clone()],
                remove: dead.into_iter().collect(),
            });
        }
        changes
    }

    /// `from` could not copy these blobs, or is named as their holder and has lost them.
    /// Returns the changes to propose. The last live copy stays named even so: the report
    /// may be an old one, and what is named nowhere is thrown away.
    #[must_use]
    pub fn handle_missing(
        &mut self,
        now: Time,
        from: &Server,
        blobs: &[BlobId],
        catalog: &Catalog,
        view: &View,
    ) -> Vec<ReplicaChange> {
        let mut changes = Vec::new();
        for blob in blobs {
            let failed = self.end_order(now, from, blob);
            if failed {
                self.put_off(now, *blob);
            }
            let Some(record) = catalog.record(blob) else {
                continue;
            };
            if !record.replicas.contains(from) || self.is_proposed(blob, from) {
                continue;
            }
            let others = self.live(record, view);
            if others.iter().all(|server| *server == from) {
                self.doubted.insert((*blob, from.clone()), now + DOUBT_TIME);
                self.look.insert(*blob);
                continue;
            }
            let proposed = self.proposed.entry(*blob).or_default();
            proposed.remove.insert(from.clone());
            proposed.deadline = now + CHANGE_TIME;
            self.look.insert(*blob);
            changes.push(ReplicaChange {
                blob: *blob,
                add: Vec::new(),
                remove: vec![from.clone()],
            });
        }
        changes
    }

    /// Which of these copies of `from`, which the catalog names without it, are not needed: there
    /// are enough others, and none of them is about to be named. Right only while all changes that
    /// were proposed are applied.
    #[must_use]
    pub fn releases(
        &self,
        from: &Server,
        blobs: &[BlobId],
        catalog: &Catalog,
        view: &View,
    ) -> Vec<BlobId> {
        let goes = |blob: &&BlobId| {
            let Some(record) = catalog.record(blob) else {
                return false;
            };
            let named = record.replicas.contains(from) || self.coming(record).contains(from);
            !named && self.counted(record, view).count() >= self.wanted(view)
        };
        blobs.iter().filter(goes).copied().collect()
    }

    /// When [`Repair::plan`] is due though nothing happens.
    pub fn poll_timeout(&self) -> Option<Time> {
        let orders = self.orders.values().map(|orders| orders.deadline);
        let proposed = self.proposed.values().map(|proposed| proposed.deadline);
        let retries = self.retries.values().map(|retry| retry.due);
        let retries = retries.filter(|due| *due != Time::MAX);
        let times = orders.chain(proposed).chain(retries);
        let times = times.chain(self.avoided.values().copied());
        let times = times.chain(self.leaving.values().copied());
        let left = (!self.look.is_empty() || self.dirty).then_some(Time(0));
        times
            .chain(self.doubted.values().copied())
            .chain(left)
            .min()
    }

    /// Panics where the tables disagree or a bound is passed. For tests and the simulator.
    pub fn check_invariants(&self) {
        for (server, orders) in &self.orders {
            assert!(!orders.blobs.is_empty() && orders.blobs.len() <= TARGET_BLOBS_MAX);
            assert_eq!(orders.blobs.values().sum::<u64>(), orders.bytes);
            assert!(orders.bytes <= TARGET_BYTES_MAX || orders.blobs.len() == 1);
            for blob in orders.blobs.keys() {
                assert!(
                    self.ordered[blob].contains(server),
                    "{blob} from {server:?}"
                );
            }
        }
        let ordered: usize = self.ordered.values().map(BTreeSet::len).sum();
        assert_eq!(ordered, self.in_flight());
        let queue: BTreeSet<_> = self.copies.iter().map(|(blob, n)| (*n, *blob)).collect();
        assert_eq!(queue, self.queue);
    }

    /// Marks what changed in the catalog and the view since the last look.
    fn notice(&mut self, catalog: &Catalog, view: &View) {
        let members = || view.members.values().map(Member::server).collect();
        let (servers, changed) = match self.seen.take() {
            Some(seen) if seen.view == view.number => (seen.servers, Some(seen.revision)),
            // Whether a member is suspected changes no count of copies.
            Some(seen) => {
                let servers: BTreeSet<Server> = members();
                let same = servers == seen.servers;
                (servers, same.then_some(seen.revision))
            }
            None => (members(), None),
        };
        let changed = changed.and_then(|revision| catalog.changed_since(revision));
        if let Some(changed) = changed {
            self.look.extend(changed);
        } else {
            self.look
                .extend(catalog.records().map(|record| record.blob));
            self.look.extend(self.copies.keys());
            let gone = |server: &&Server| !servers.contains(*server);
            let gone: Vec<Server> = self.orders.keys().filter(gone).cloned().collect();
            gone.iter().for_each(|server| self.cancel(server));
        }
        self.seen = Some(Seen {
            view: view.number,
            servers,
            revision: catalog.revision(),
        });
    }

    /// Gives up what has passed its deadline; changes that the catalog does not show are
    /// proposed again. They are not forgotten, because they may be in the log already.
    fn expire(&mut self, now: Time) -> Vec<ReplicaChange> {
        let leaving = self.leaving.len();
        self.leaving.retain(|_, until| *until > now);
        if leaving != self.leaving.len() {
            self.seen = None;
        }
        let late = self
            .orders
            .iter()
            .filter(|(_, orders)| orders.deadline <= now);
        let late: Vec<Server> = late.map(|(server, _)| server.clone()).collect();
        for server in late {
            self.cancel(&server);
            self.avoided.insert(server, now + AVOID_TIME);
        }
        let look = &mut self.look;
        self.doubted.retain(|(blob, _), until| {
            let keep = *until > now;
            if !keep {
                look.insert(*blob);
            }
            keep
        });
        for (blob, retry) in &mut self.retries {
            if retry.due <= now {
                // The wait is kept for a next failure; it is no deadline any more.
                retry.due = Time::MAX;
                look.insert(*blob);
            }
        }
        let avoided = self.avoided.len();
        self.avoided.retain(|_, until| *until > now);
        self.dirty |= avoided != self.avoided.len();
        let old = self.proposed.iter_mut().filter(|(_, p)| p.deadline <= now);
        let again = old.take(CHANGES_MAX).map(|(blob, proposed)| {
            proposed.deadline = now + CHANGE_TIME;
            ReplicaChange {
                blob: *blob,
                add: proposed.add.iter().cloned().collect(),
                remove: proposed.remove.iter().cloned().collect(),
            }
        });
        again.collect()
    }

    /// Looks at the marked blobs: those that want copies are queued, surplus copies go.
    fn assess(
        &mut self,
        now: Time,
        catalog: &Catalog,
        view: &View,
        ring: &Ring<'_>,
    ) -> Vec<ReplicaChange> {
        let mut changes = Vec::new();
        for _ in 0..ASSESS_MAX {
            if changes.len() >= CHANGES_MAX {
                break;
            }
            let Some(blob) = self.look.pop_first() else {
                break;
            };
            let Some(record) = catalog.record(&blob) else {
                self.forget(&blob);
                continue;
            };
            self.settle(record);
            let copies = self.counted(record, view).count();
            let wants = self.wants(record, view) > 0 && !self.waits(&blob);
            self.enqueue(blob, wants.then_some(copies));
            if copies > REPLICAS {
                changes.push(self.thin_out(now, record, view, ring));
            }
        }
        changes
    }

    /// Takes out the copies of `record` beyond four: suspects first, then those that come
    /// last in the order of the ring.
    fn thin_out(
        &mut self,
        now: Time,
        record: &VersionRecord,
        view: &View,
        ring: &Ring<'_>,
    ) -> ReplicaChange {
        let counted: Vec<&Server> = self.counted(record, view).collect();
        let mut ranked: Vec<(bool, Server)> = ring
            .after(record.name.as_str())
            .map(|member| (member.state == MemberState::Suspect, member.server()))
            .filter(|(_, server)| counted.contains(&server))
            .collect();
        ranked.sort_by_key(|(suspect, _)| *suspect);
        let surplus = ranked.into_iter().skip(REPLICAS);
        let remove: Vec<Server> = surplus.map(|(_, server)| server).collect();
        let proposed = self.proposed.entry(record.blob).or_default();
        proposed.remove.extend(remove.iter().cloned());
        proposed.deadline = now + CHANGE_TIME;
        ReplicaChange {
            blob: record.blob,
            add: Vec::new(),
            remove,
        }
    }

    /// Orders copies of queued blobs, those with the fewest first, as far as members have room.
    fn order(
        &mut self,
        now: Time,
        catalog: &Catalog,
        view: &View,
        ring: &Ring<'_>,
    ) -> Vec<RepairOutput> {
        let mut pulls: BTreeMap<Server, Vec<Located>> = BTreeMap::new();
        let mut open = self.open(view);
        if open.is_empty() {
            return Vec::new();
        }
        let queued: Vec<(usize, BlobId)> = self.queue.iter().take(LOOK_MAX).copied().collect();
        for (_, blob) in queued {
            if open.is_empty() {
                break;
            }
            let Some(record) = catalog.record(&blob) else {
                continue;
            };
            let count = self.wants(record, view);
            for server in self.choose(record, count, ring) {
                if open.contains(&server) && self.has_room(&server, record.bytes) {
                    self.note_order(now, &server, record);
                    if !self.has_room(&server, 0) {
                        open.remove(&server);
                    }
                    let located = self.locate(record, view);
                    pulls.entry(server).or_default().push(located);
                }
            }
            if self.wants(record, view) == 0 {
                self.enqueue(blob, None);
            }
        }
        let pull = |(to, blobs)| RepairOutput::Pull { to, blobs };
        pulls.into_iter().map(pull).collect()
    }

    /// Members that get a copy of `record`: neither its holders nor those that fetch it.
    fn choose(&self, record: &VersionRecord, count: usize, ring: &Ring<'_>) -> Vec<Server> {
        let mut exclude: BTreeSet<Server> = record.replicas.iter().cloned().collect();
        exclude.extend(self.coming(record));
        if let Some(proposed) = self.proposed.get(&record.blob) {
            // Not before its removal is in the log, so that a new copy is told from the old.
            exclude.extend(proposed.remove.iter().cloned());
        }
        let held = exclude.clone();
        exclude.extend(self.avoided.keys().cloned());
        let mut chosen = ring.targets(record.name.as_str(), &exclude, count);
        if chosen.len() < count {
            exclude = held;
            exclude.extend(chosen.iter().map(|target| target.server.clone()));
            let rest = ring.targets(record.name.as_str(), &exclude, count - chosen.len());
            chosen.extend(rest);
        }
        chosen.into_iter().map(|target| target.server).collect()
    }

    /// How many copies each version should have: min([`REPLICAS`], members that stay).
    fn wanted(&self, view: &View) -> usize {
        let leave = |server: &&Server| view.server(server).is_some();
        let stay = view.members.len() - self.leaving.keys().filter(leave).count();
        stay.min(REPLICAS)
    }

    /// How many more copies are to be ordered; none where no copy can be read.
    fn wants(&self, record: &VersionRecord, view: &View) -> usize {
        if self.live(record, view).is_empty() {
            return 0;
        }
        let copies = self.counted(record, view).count();
        let wanted = self.wanted(view);
        wanted.saturating_sub(copies + self.coming(record).len())
    }

    /// The live holders that stay.
    fn counted<'a>(
        &'a self,
        record: &'a VersionRecord,
        view: &View,
    ) -> impl Iterator<Item = &'a Server> {
        let live = self.live(record, view).into_iter();
        live.filter(|server| !self.leaving.contains_key(*server))
    }

    /// Whether the next try of a copy that could not be made is not due yet.
    fn waits(&self, blob: &BlobId) -> bool {
        let retry = self.retries.get(blob);
        retry.is_some_and(|retry| retry.due != Time::MAX)
    }

    /// Copies that are on their way or proposed.
    fn coming(&self, record: &VersionRecord) -> BTreeSet<Server> {
        let mut coming = self.ordered.get(&record.blob).cloned().unwrap_or_default();
        if let Some(proposed) = self.proposed.get(&record.blob) {
            coming.extend(proposed.add.iter().cloned());
        }
        coming.retain(|server| !record.replicas.contains(server));
        coming
    }

    /// Named holders that can be read: live, not doubted and not about to be taken out.
    fn live<'a>(&self, record: &'a VersionRecord, view: &View) -> Vec<&'a Server> {
        let proposed = self.proposed.get(&record.blob);
        let leaves = |server: &Server| proposed.is_some_and(|p| p.remove.contains(server));
        let counts = |server: &&Server| {
            view.server(server).is_some()
                && !leaves(server)
                && (self.doubted.is_empty()
                    || !self.doubted.contains_key(&(record.blob, (*server).clone())))
        };
        record.replicas.iter().filter(counts).collect()
    }

    /// Sources are the live copies, suspects last; which one is first goes round, so that
    /// the reading is shared.
    fn locate(&self, record: &VersionRecord, view: &View) -> Located {
        let live = self.live(record, view);
        let members = live.into_iter().filter_map(|server| view.server(server));
        let suspect = |member: &&Member| member.state == MemberState::Suspect;
        let (suspects, mut sources): (Vec<_>, Vec<_>) = members.partition(suspect);
        if !sources.is_empty() {
            let first = record.blob.counter % sources.len() as u64;
            sources.rotate_left(first as usize);
        }
        sources.extend(suspects);
        Located {
            name: record.name.clone(),
            version: record.version,
            blob: record.blob,
            bytes: record.bytes,
            digest: record.digest,
            sources: sources.into_iter().map(target).collect(),
        }
    }

    /// Members with room for half of what one fetches at a time. Who has less gets nothing yet:
    /// orders of a few blobs each would cost a look at the queue for every few copies.
    fn open(&self, view: &View) -> BTreeSet<Server> {
        let is_open = |server: &Server| {
            self.orders.get(server).is_none_or(|orders| {
                orders.blobs.len() <= TARGET_BLOBS_MAX / 2 && orders.bytes <= TARGET_BYTES_MAX / 2
            })
        };
        let members = view.members.values().map(Member::server);
        members.filter(is_open).collect()
    }

    fn has_room(&self, server: &Server, bytes: u64) -> bool {
        self.orders.get(server).is_none_or(|orders| {
            orders.blobs.len() < TARGET_BLOBS_MAX
                && orders.bytes.saturating_add(bytes) <= TARGET_BYTES_MAX
        })
    }

    fn note_order(&mut self, now: Time, server: &Server, record: &VersionRecord) {
        let orders = self.orders.entry(server.clone()).or_insert(Orders {
            blobs: BTreeMap::new(),
            bytes: 0,
            deadline: now,
        });
        orders.blobs.insert(record.blob, record.bytes);
        orders.bytes += record.bytes;
        orders.deadline = now + order_time(orders.bytes);
        let ordered = self.ordered.entry(record.blob).or_default();
        ordered.insert(server.clone());
    }

    /// Takes one order back; whether there was one. A report is a sign of life, so the
    /// member's other orders get their full time again.
    fn end_order(&mut self, now: Time, server: &Server, blob: &BlobId) -> bool {
        let Some(orders) = self.orders.get_mut(server) else {
            return false;
        };
        let Some(bytes) = orders.blobs.remove(blob) else {
            return false;
        };
        orders.bytes -= bytes;
        orders.deadline = now + order_time(orders.bytes);
        if orders.blobs.is_empty() {
            self.orders.remove(server);
        }
        self.unmark(server, blob);
        true
    }

    /// Takes all orders of `server` back.
    fn cancel(&mut self, server: &Server) {
        let Some(orders) = self.orders.remove(server) else {
            return;
        };
        for blob in orders.blobs.keys() {
            self.unmark(server, blob);
        }
    }

    fn unmark(&mut self, server: &Server, blob: &BlobId) {
        if let Some(ordered) = self.ordered.get_mut(blob) {
            ordered.remove(server);
            if ordered.is_empty() {
                self.ordered.remove(blob);
            }
        }
        self.look.insert(*blob);
        self.dirty = true;
    }

    /// The copying of `blob` failed: it is tried again later, and later still each time.
    fn put_off(&mut self, now: Time, blob: BlobId) {
        let first = Retry {
            wait: RETRY_TIME.0,
            due: now,
        };
        let retry = self.retries.entry(blob).or_insert(first);
        if retry.due <= now || retry.due == Time::MAX {
            retry.due = now + retry.wait;
            retry.wait = (retry.wait * 2).min(RETRY_TIME.1);
        }
    }

    /// Takes back the orders of `blob` to members of which `of` is true.
    fn release(&mut self, blob: &BlobId, of: impl Fn(&Server) -> bool) {
        let ordered = self.ordered.get(blob).into_iter().flatten();
        let ended: Vec<Server> = ordered.filter(|server| of(server)).cloned().collect();
        for server in ended {
            let deadline = self.orders.get(&server).map(|orders| orders.deadline);
            self.end_order(Time(0), &server, blob);
            if let (Some(orders), Some(deadline)) = (self.orders.get_mut(&server), deadline) {
                orders.deadline = deadline;
            }
        }
        self.look.remove(blob);
    }

    /// Changes that the catalog shows are no proposals any more, and copies that it names
    /// need no order.
    fn settle(&mut self, record: &VersionRecord) {
        self.release(&record.blob, |server| record.replicas.contains(server));
        let Some(proposed) = self.proposed.get_mut(&record.blob) else {
            return;
        };
        proposed
            .add
            .retain(|server| !record.replicas.contains(server));
        proposed
            .remove
            .retain(|server| record.replicas.contains(server));
        if proposed.add.is_empty() && proposed.remove.is_empty() {
            self.proposed.remove(&record.blob);
        }
    }

    fn is_proposed(&self, blob: &BlobId, server: &Server) -> bool {
        let proposed = self.proposed.get(blob);
        proposed.is_some_and(|proposed| proposed.remove.contains(server))
    }

    fn enqueue(&mut self, blob: BlobId, copies: Option<usize>) {
        let before = match copies {
            Some(copies) => self.copies.insert(blob, copies),
            None => self.copies.remove(&blob),
        };
        if let Some(before) = before {
            self.queue.remove(&(before, blob));
        }
        if let Some(copies) = copies {
            self.queue.insert((copies, blob));
            self.dirty = true;
        }
    }

    /// The catalog knows `blob` no more.
    fn forget(&mut self, blob: &BlobId) {
        self.release(blob, |_| true);
        self.enqueue(*blob, None);
        self.proposed.remove(blob);
        self.retries.remove(blob);
        self.doubted.retain(|(doubted, _), _| doubted != blob);
    }
}

fn order_time(bytes: u64) -> Duration {
    ORDER_TIME + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}
