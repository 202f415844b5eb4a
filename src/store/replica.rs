//! A node's own copies: which it holds, which it fetches, and which it may throw away.
//!
//! Decides: when a copy on this disk is an orphan, which ordered copies are fetched, and
//! what is reported to the leader. Leaves to others: moving the bytes (the driver), what
//! ought to be copied (`repair`), and sending reports again (`node`).
//!
//! A copy that the catalog does not name with this server may be one that the leader is
//! about to name, so it is swept only where no such entry can come any more:
//!
//! - The *guard* is the term of the leader that may name it: the uploading one's or the
//!   ordering one's. Terms never fall along the log, so once an entry of a higher term is
//!   applied, everything that the guard's leader could get into the log is applied too.
//! - The catalog knew the blob and has forgotten it (deleted): ids are never used again.
//! - It was uploaded here and the catalog knows it without this server: the upload ended.
//! - It was named with this server and is no longer (surplus, or taken for lost). This
//!   holds only while it is *sure* which entry named it: after a restart the log is
//!   replayed from the start, and of two orders one may be named after the other's
//!   removal, so such copies wait for the guard, or for the leader's word.
//! - The leader says so: it knows whether anything of it that names the copy can still come. Its
//!   answer holds only until another order for the blob arrives, however late it is itself.
//!
//! A node accepts orders only of the term that its own log knows as the newest, so a guard
//! is never higher than a term that it has on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use super::catalog::Catalog;
use crate::planted::{self, Bug};
use crate::types::{BlobId, Server, Term};
use crate::wire::store::Located;

/// Most ordered copies in flight; orders beyond it are refused and come again.
pub const FETCHES_MAX: usize = 128;
/// Abandoned uploads that are remembered; the oldest is forgotten, and what comes of it after that
/// waits for the leader's word.
const DROPPED_MAX: usize = 10_000;
/// Most blobs in one report of missing copies, and in one question about unnamed ones.
pub const MISSING_MAX: usize = 100;

/// How a copy came to be on this disk, as far as that decides when it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Sent by a client; its upload goes on.
    Uploaded,
    /// Fetched by order of a leader, or found on disk at the start.
    Ordered,
    /// Seen in the catalog with this server.
    Named,
}

/// A copy on this disk.
#[derive(Clone, Debug)]
struct Held {
    guard: Term,
    phase: Phase,
    /// Whether the entry that names it is told apart from earlier ones for certain.
    sure: bool,
    /// Whether the catalog has known the blob at some time.
    known: bool,
    /// Whether the catalog names it with this server.
    mine: bool,
}

/// An ordered copy on its way.
#[derive(Clone, Debug)]
struct Fetch {
    guard: Term,
    sure: bool,
    known: bool,
}

/// What becomes of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullAnswer {
    /// To fetch now.
    pub fetch: Vec<Located>,
    /// On disk already: report them as stored.
    pub stored: Vec<BlobId>,
    /// How many were refused, because the order is old or too much is in flight.
    pub refused: usize,
}

/// What to report of finished fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchReport {
    /// On disk, fsynced, with the right digest.
    pub stored: Vec<BlobId>,
    /// Could not be copied from any source.
    pub missing: Vec<BlobId>,
}

/// The copies of one node.
#[derive(Clone, Debug)]
pub struct Replica {
    me: Server,
    /// Highest term of a leader that gave an order.
    term: Term,
    /// Highest term of an applied entry.
    applied: Term,
    held: BTreeMap<BlobId, Held>,
    /// Held and not named with this server: what a higher term may sweep.
    unnamed: BTreeSet<BlobId>,
    /// The last question about them, without those that were ordered since.
    asked: (u64, BTreeSet<BlobId>),
    in_flight: BTreeMap<BlobId, Fetch>,
    /// Abandoned uploads of which nothing was here when the leader said so.
    dropped: BTreeSet<BlobId>,
    /// Named with this server and not on its disk.
    lost: BTreeSet<BlobId>,
    /// To be looked at: came to the disk of late, or a higher term may sweep it.
    fresh: BTreeSet<BlobId>,
    /// The catalog's revision up to which its changes are taken in.
    revision: u64,
    /// The last blob reported missing, so that the next report goes on after it.
    cursor: Option<BlobId>,
}

impl Replica {
    /// The copies of `me`, which found `held` whole on its disk. `guard` is the highest
    /// term that this node's log on disk knows.
    pub fn new(me: Server, held: Vec<BlobId>, guard: Term) -> Replica {
        let found = |blob: BlobId| {
            let held = Held {
                guard: guard.max(blob.term),
                phase: Phase::Ordered,
                sure: false,
                known: false,
                mine: false,
            };
            (blob, held)
        };
        Replica {
            me,
            term: Term(0),
            applied: Term(0),
            unnamed: held.iter().copied().collect(),
            held: held.into_iter().map(found).collect(),
            asked: (0, BTreeSet::new()),
            in_flight: BTreeMap::new(),
            dropped: BTreeSet::new(),
            lost: BTreeSet::new(),
            fresh: BTreeSet::new(),
            revision: 0,
            cursor: None,
        }
    }

    /// Whether a whole copy of `blob` is on this disk.
    pub fn holds(&self, blob: &BlobId) -> bool {
        self.held.contains_key(blob)
    }

    /// The blobs on this disk.
    pub fn held(&self) -> impl Iterator<Item = BlobId> + '_ {
        self.held.keys().copied()
    }

    /// Copies that the catalog names with this server and that are not on its disk.
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    /// Ordered copies on their way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// An uploaded blob, or one that this node wrote itself, is fsynced on this disk.
    ///
    /// An upload that comes late may meet an order to fetch the same blob: then the leader is
    /// about to name the copy, and it counts as ordered. One that was abandoned while its last bytes
    /// went to the disk is named by nobody, and is an orphan.
    pub fn handle_stored(&mut self, blob: BlobId) {
        let order = self.in_flight.get(&blob);
        let uploader = match self.dropped.remove(&blob) {
            true => Term(0),
            false => blob.term,
        };
        let held = Held {
            guard: order.map_or(uploader, |order| order.guard),
            phase: order.map_or(Phase::Uploaded, |_| Phase::Ordered),
            sure: order.is_none(),
            known: order.is_some_and(|order| order.known),
            mine: self.lost.contains(&blob),
        };
        self.insert(blob, held);
    }

    /// An entry of `term` has been applied to `catalog`; to be called for each one, of
    /// whatever kind. Returns the copies that are orphans now: they are no longer held,
    /// and the driver removes them from the disk.
    #[must_use]
    pub fn handle_applied(&mut self, term: Term, catalog: &Catalog) -> Vec<BlobId> {
        if term > self.applied {
            self.applied = term;
            self.fresh.extend(&self.unnamed);
        }
        self.look(catalog)
    }

    /// The same where no entry has been applied: copies came to the disk.
    #[must_use]
    pub fn look(&mut self, catalog: &Catalog) -> Vec<BlobId> {
        let mut look = std::mem::take(&mut self.fresh);
        match catalog.changed_since(self.revision) {
            Some(changed) => look.extend(changed),
            None => {
                look.extend(self.held.keys());
                look.extend(self.in_flight.keys());
                look.extend(&self.lost);
                look.extend(catalog.held_by(&self.me).map(|record| record.blob));
            }
        }
        self.revision = catalog.revision();
        let orphans = look.into_iter().filter(|blob| self.look_at(*blob, catalog));
        orphans.collect()
    }

    /// Copies that the catalog does not name stay until an entry of a higher term than `term` is
    /// applied.
    pub fn keep_unnamed(&mut self, term: Term) {
        for blob in &self.unnamed {
            if let Some(held) = self.held.get_mut(blob) {
                held.guard = held.guard.max(term);
                held.phase = Phase::Ordered;
                held.sure = false;
                held.known = false;
            }
        }
        self.asked.1.clear();
        // Which of them the catalog knows is seen when the next entry is applied.
        self.fresh.extend(&self.unnamed);
        for fetch in self.in_flight.values_mut() {
            fetch.guard = fetch.guard.max(term);
        }
    }

    /// The catalog begins anew, empty: what it will name is not known before an entry of a higher
    /// term than `term` is applied.
    pub fn begin_anew(&mut self, term: Term) {
        for held in self.held.values_mut() {
            held.mine = false;
        }
        self.unnamed = self.held.keys().copied().collect();
        self.lost.clear();
        self.fresh.clear();
        self.revision = 0;
        self.keep_unnamed(term);
    }

    /// The leader of `term` orders copies of `blobs`.
    #[must_use]
    pub fn handle_pull(&mut self, term: Term, blobs: Vec<Located>) -> PullAnswer {
        let mut answer = PullAnswer::default();
        if term < self.term {
            answer.refused = blobs.len();
            return answer;
        }
        self.term = term;
        for located in blobs {
            let blob = located.blob;
            self.asked.1.remove(&blob);
            if let Some(held) = self.held.get_mut(&blob) {
                // Named here in this node's catalog and not in the leader's: one of the two
                // is behind, so nothing is promised until both agree.
                if !held.mine {
                    held.guard = held.guard.max(term);
                    held.phase = Phase::Ordered;
                    held.sure = false;
                    answer.stored.push(blob);
                }
            } else if let Some(fetch) = self.in_flight.get_mut(&blob) {
                fetch.guard = fetch.guard.max(term);
            } else if self.in_flight.len() >= FETCHES_MAX {
                answer.refused += 1;
            } else {
                let fetch = Fetch {
                    guard: term.max(blob.term),
                    sure: !self.lost.contains(&blob),
                    known: false,
                };
                self.in_flight.insert(blob, fetch);
                answer.fetch.push(located);
            }
        }
        answer
    }

    /// Ordered copies are on disk (`true`), or no source gave them.
    #[must_use]
    pub fn handle_fetched(&mut self, results: Vec<(BlobId, bool)>) -> FetchReport {
        let mut report = FetchReport::default();
        for (blob, done) in results {
            let Some(fetch) = self.in_flight.remove(&blob) else {
                continue;
            };
            if done {
                let held = Held {
                    guard: fetch.guard,
                    phase: Phase::Ordered,
                    sure: fetch.sure,
                    known: fetch.known,
                    mine: self.lost.contains(&blob),
                };
                self.insert(blob, held);
            }
            if self.holds(&blob) {
                report.stored.push(blob);
            } else {
                report.missing.push(blob);
            }
        }
        report
    }

    /// The leader of `term` says that these uploads were abandoned. Returns the copies
    /// that the driver is to remove from the disk.
    #[must_use]
    pub fn handle_drop(&mut self, term: Term, blobs: &[BlobId]) -> Vec<BlobId> {
        if term < self.term {
            return Vec::new();
        }
        self.term = term;
        let abandoned = |held: &Held| !held.known && !held.mine;
        let mut orphans = Vec::new();
        for blob in blobs {
            match self.held.get(blob) {
                Some(held) if abandoned(held) => {
                    self.forget(blob);
                    orphans.push(*blob);
                }
                Some(_) => {}
                None => drop(self.dropped.insert(*blob)),
            }
        }
        while self.dropped.len() > DROPPED_MAX {
            self.dropped.pop_first();
        }
        orphans
    }

    /// The copy of `blob` failed its check: it does not count any more, and is reported by
    /// [`Replica::missing`] where it should be here. Whether it was held until now; the
    /// driver then removes it from the disk.
    pub fn handle_corrupt(&mut self, blob: BlobId) -> bool {
        let Some(held) = self.held.get(&blob) else {
            return false;
        };
        if held.mine {
            self.lost.insert(blob);
        }
        self.forget(&blob);
        true
    }

    /// Up to [`MISSING_MAX`] blobs that the catalog names with this server and that are
    /// neither on its disk nor on their way; the next call goes on after them.
    #[must_use]
    pub fn missing(&mut self) -> Vec<BlobId> {
        let absent = |blob: &BlobId| !self.in_flight.contains_key(blob);
        let after = self.cursor.map_or(0, |cursor| {
            self.lost.iter().take_while(|blob| **blob <= cursor).count()
        });
        let round = self
            .lost
            .iter()
            .skip(after)
            .chain(self.lost.iter().take(after));
        let missing: Vec<BlobId> = round.copied().filter(absent).take(MISSING_MAX).collect();
        self.cursor = missing.last().copied();
        missing
    }

    /// Whether this disk has copies that the catalog does not name with this server: surplus ones,
    /// those of uploads that go on, and those of uploads that were given up.
    pub fn has_unnamed(&self) -> bool {
        !self.unnamed.is_empty()
    }

    /// Up to [`MISSING_MAX`] of those copies, to ask the leader about as question number `ask`,
    /// a number that was not used before; the next call goes on after them.
    #[must_use]
    pub fn ask_of_unnamed(&mut self, ask: u64) -> Vec<BlobId> {
        let last = self.asked.1.last().copied();
        let behind = last.map(|last| self.unnamed.range((Excluded(last), Unbounded)));
        let behind = behind.into_iter().flatten();
        let blobs: Vec<BlobId> = behind.copied().take(MISSING_MAX).collect();
        let blobs = match blobs.is_empty() {
            true => self.unnamed.iter().copied().take(MISSING_MAX).collect(),
            false => blobs,
        };
        self.asked = (ask, blobs.iter().copied().collect());
        blobs
    }

    /// The leader of `term` answers question `ask`: these copies may go. Returns those that the
    /// driver is to remove from the disk.
    #[must_use]
    pub fn handle_release(&mut self, term: Term, ask: u64, blobs: &[BlobId]) -> Vec<BlobId> {
        if term < self.term || ask != self.asked.0 {
            return Vec::new();
        }
        self.term = term;
        let goes = |blob: &BlobId| self.asked.1.contains(blob) && self.unnamed.contains(blob);
        let orphans: Vec<BlobId> = blobs.iter().copied().filter(goes).collect();
        orphans.iter().for_each(|blob| self.forget(blob));
        orphans
    }

    /// Panics where the sets disagree. For tests and the simulator.
    pub fn check_invariants(&self) {
        assert!(self.in_flight.len() <= FETCHES_MAX);
        assert!(self.dropped.len() <= DROPPED_MAX);
        for blob in &self.lost {
            assert!(!self.holds(blob), "{blob} is held and lost");
        }
        for (blob, held) in &self.held {
            assert_eq!(!held.mine, self.unnamed.contains(blob), "{blob} {held:?}");
        }
        assert!(self.unnamed.iter().all(|blob| self.holds(blob)));
    }

    fn insert(&mut self, blob: BlobId, held: Held) {
        self.lost.remove(&blob);
        self.asked.1.remove(&blob);
        self.fresh.insert(blob);
        match self.held.get_mut(&blob) {
            None => drop(self.held.insert(blob, held)),
            Some(present) if present.mine || held.phase != Phase::Ordered => {}
            // Uploaded and ordered: see `handle_stored`.
            Some(present) => {
                present.guard = present.guard.max(held.guard);
                present.phase = Phase::Ordered;
                present.sure = false;
            }
        }
        self.index(blob);
    }

    fn forget(&mut self, blob: &BlobId) {
        self.held.remove(blob);
        self.unnamed.remove(blob);
    }

    fn index(&mut self, blob: BlobId) {
        match self.held.get(&blob).is_some_and(|held| !held.mine) {
            true => self.unnamed.insert(blob),
            false => self.unnamed.remove(&blob),
        };
    }

    /// Takes in what the catalog says of `blob` now; whether its copy is an orphan, and
    /// has been forgotten here.
    fn look_at(&mut self, blob: BlobId, catalog: &Catalog) -> bool {
        let known = catalog.record(&blob).is_some();
        let mine = catalog.names(&blob, &self.me);
        if let Some(fetch) = self.in_flight.get_mut(&blob) {
            fetch.known |= known;
        }
        let Some(held) = self.held.get_mut(&blob) else {
            if mine {
                self.lost.insert(blob);
            } else {
                self.lost.remove(&blob);
            }
            return false;
        };
        let passed = self.applied > held.guard || planted::is(Bug::SweptInHaste);
        let ended = known && held.phase != Phase::Ordered;
        let orphan = !mine && (passed || ended || (held.known && !known));
        if orphan {
            self.forget(&blob);
            return true;
        }
        held.known |= known;
        held.mine = mine;
        if mine && (held.sure || passed) {
            held.phase = Phase::Named;
            held.sure = true;
        }
        self.index(blob);
        false
    }
}
