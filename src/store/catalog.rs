//! The catalog: which versions of which files exist, and who holds their bytes.
//!
//! A deterministic state machine on the replicated log; every member has the whole of it.
//! Decides: version numbers (given when a put is applied), what a delete leaves behind,
//! and what stays known because a job has pinned it. Leaves to others: whether an upload
//! may be named (`uploads`), which copies to add or remove (`repair`), and when a pin is
//! set (the jobs).

#[path = "catalog_form.rs"]
mod form;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::names::{Pattern, compare_natural};
use crate::planted::{self, Bug};
use crate::types::{BlobId, Digest, FileName, Server, Version};
use crate::wire::store::{CatalogCommand, ReplicaChange, Upload};

/// How many touched blobs are remembered for [`Catalog::changed_since`]; who is further
/// behind looks at all of them.
const RECENT_MAX: usize = 8192;

/// Servers that hold a copy, in order, without repeats. A sorted vector: at four entries
/// it takes a third of a tree's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas(Vec<Server>);

impl Replicas {
    /// Whether `server` is among them.
    pub fn contains(&self, server: &Server) -> bool {
        self.0.binary_search(server).is_ok()
    }

    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, Server> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody holds a copy: the version is lost.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds `server`; whether it was new.
    fn insert(&mut self, server: Server) -> bool {
        match self.0.binary_search(&server) {
            Ok(_) => false,
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, server);
                true
            }
        }
    }

    /// Takes `server` out; whether it was there.
    fn remove(&mut self, server: &Server) -> bool {
        let found = self.0.binary_search(server);
        found.is_ok_and(|at| {
            self.0.remove(at);
            true
        })
    }
}

impl<'a> IntoIterator for &'a Replicas {
    type Item = &'a Server;
    type IntoIter = std::slice::Iter<'a, Server>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One version of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRecord {
    /// The SDFS name.
    pub name: FileName,
    /// The version.
    pub version: Version,
    /// Its bytes.
    pub blob: BlobId,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// Who holds a copy, dead members included.
    pub replicas: Replicas,
    /// Whether the file names it still; a deleted version is known only while pinned.
    pub named: bool,
    /// How many jobs keep the bytes.
    pub pins: u32,
}

/// What is known of a name that was put once, deleted or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FileRecord {
    /// The next version's number; goes on after a delete.
    next: Version,
    /// The bytes of the versions since the last delete, oldest first.
    versions: Vec<BlobId>,
}

/// What a command changed, for the answer to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The version of each upload, in order.
    Put(Vec<Version>),
    /// How many versions were deleted; 0 where there was no such file.
    Deleted(u64),
    /// Replica sets were changed.
    Replicas,
    /// No file or copy was touched, or only such as are not asked for by name.
    Done,
}

/// The state machine. Equal logs give equal catalogs.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    files: BTreeMap<FileName, FileRecord>,
    blobs: BTreeMap<BlobId, VersionRecord>,
    /// How many of the newest versions of each file are kept; none: all.
    keep: Option<u64>,
    /// One allocation for each server's name, however many records hold it.
    servers: BTreeSet<Server>,
    /// Blobs touched so far, counted.
    revision: u64,
    /// The last touched blobs, newest last.
    recent: VecDeque<BlobId>,
}

impl Catalog {
    /// A catalog without files.
    pub fn new() -> Catalog {
        Catalog::default()
    }

    /// Applies one command of the log.
    pub fn apply(&mut self, command: &CatalogCommand) -> Applied {
        match command {
            CatalogCommand::Put(uploads) | CatalogCommand::Adopt(uploads) => {
                Applied::Put(uploads.iter().map(|upload| self.put(upload)).collect())
            }
            CatalogCommand::Delete(name) => Applied::Deleted(self.delete(name)),
            CatalogCommand::Replicas(changes) => {
                changes.iter().for_each(|change| self.change(change));
                Applied::Replicas
            }
            CatalogCommand::Founded => Applied::Done,
            CatalogCommand::Keep(newest) => {
                self.keep = *newest;
                let names: Vec<FileName> = self.files.keys().cloned().collect();
                names.iter().for_each(|name| self.trim(name));
                Applied::Done
            }
        }
    }

    /// How many of the newest versions of each file are kept; none: all.
    pub fn kept(&self) -> Option<u64> {
        self.keep
    }

    /// Whether `name` was ever put, deleted since or not.
    pub fn has_been_put(&self, name: &FileName) -> bool {
        self.files.contains_key(name)
    }

    /// The newest version of `name`.
    pub fn newest(&self, name: &FileName) -> Option<&VersionRecord> {
        self.record(self.files.get(name)?.versions.last()?)
    }

    /// Up to `newest` versions of `name`, newest first; empty where there is no such file.
    pub fn versions(&self, name: &FileName, newest: u64) -> Vec<&VersionRecord> {
        let count = usize::try_from(newest).unwrap_or(usize::MAX);
        let versions = self.files.get(name).map_or(&[][..], |file| &file.versions);
        let records = versions.iter().rev().take(count);
        records.filter_map(|blob| self.record(blob)).collect()
    }

    /// The bytes of the newest version of each file that the data set `pattern` means, in
    /// natural order. Result files of jobs and deleted files never match.
    pub fn matching(&self, pattern: &str) -> Vec<BlobId> {
        let numbers = Pattern::new(pattern);
        let files = || self.files_after(pattern, None);
        let numbered = files().map(|(name, blob)| Some((numbers.number(name.as_str())?, *blob)));
        // Mostly they are nothing but numbered.
        if let Some(mut numbered) = numbered.collect::<Option<Vec<(u64, _)>>>() {
            numbered.sort_unstable_by_key(|(number, _)| *number);
            return numbered.into_iter().map(|(_, blob)| blob).collect();
        }
        let mut found: Vec<(&FileName, &BlobId)> = files().collect();
        found.sort_by(|(a, _), (b, _)| compare_natural(a.as_str(), b.as_str()));
        found.into_iter().map(|(_, blob)| *blob).collect()
    }

    /// The same in the order of the names' bytes, from the first one after `after` on.
    pub fn matching_after<'a>(
        &'a self,
        pattern: &str,
        after: Option<&FileName>,
    ) -> impl Iterator<Item = &'a VersionRecord> {
        let files = self.files_after(pattern, after);
        files.filter_map(|(_, blob)| self.record(blob))
    }

    /// The names of the data set `pattern` after `after`, and the bytes of their newest versions.
    fn files_after<'a>(
        &'a self,
        pattern: &str,
        after: Option<&FileName>,
    ) -> impl Iterator<Item = (&'a FileName, &'a BlobId)> {
        let pattern = Pattern::new(pattern);
        // Names are sorted, so those with the stem stand together.
        let start = match FileName::new(pattern.stem()) {
            Ok(stem) => Some(Included(stem)),
            // An empty stem means every name, one that is no name none.
            Err(_) => pattern.stem().is_empty().then_some(Unbounded),
        };
        let start = match after {
            Some(name) if name.as_str() >= pattern.stem() => Some(Excluded(name.clone())),
            _ => start,
        };
        let from = start.map(|start| self.files.range((start, Unbounded)));
        from.into_iter()
            .flatten()
            .take_while(move |(name, _)| name.as_str().starts_with(pattern.stem()))
            .filter(move |(name, _)| pattern.matches(name.as_str()) && !name.is_reserved())
            .filter_map(|(name, file)| Some((name, file.versions.last()?)))
    }

    /// Keeps these blobs known, though their files be deleted, until as many
    /// [`Catalog::unpin`]s, and gives what `of` makes of each. Unknown ones are left out.
    pub fn pin<T>(&mut self, blobs: &[BlobId], of: impl Fn(&VersionRecord) -> T) -> Vec<T> {
        let mut made = Vec::with_capacity(blobs.len());
        self.each(blobs, |record| {
            record.pins += 1;
            made.push(of(record));
        });
        made
    }

    /// Takes back one [`Catalog::pin`] of each of these blobs.
    pub fn unpin(&mut self, blobs: &[BlobId]) {
        let mut forgotten = Vec::new();
        self.each(blobs, |record| {
            record.pins = record.pins.saturating_sub(1);
            if record.pins == 0 && !record.named {
                forgotten.push(record.blob);
            }
        });
        for blob in forgotten {
            self.blobs.remove(&blob);
            self.touch(blob);
        }
    }

    /// Visits what is known of `blobs`. Those of a data set mostly came one after another, and
    /// then stand so: a run of them is walked, which takes a third of the time of finding each.
    fn each(&mut self, blobs: &[BlobId], mut visit: impl FnMut(&mut VersionRecord)) {
        let mut rest = blobs;
        while let Some(first) = rest.first() {
            let mut run = 0;
            for (wanted, (blob, record)) in rest.iter().zip(self.blobs.range_mut(first..)) {
                if wanted != blob {
                    break;
                }
                visit(record);
                run += 1;
            }
            // An unknown one is passed over.
            rest = &rest[run.max(1)..];
        }
    }

    /// What is known of `blob`: a version of a file, or a pinned one of a deleted file.
    pub fn record(&self, blob: &BlobId) -> Option<&VersionRecord> {
        self.blobs.get(blob)
    }

    /// All that is known, by blob.
    pub fn records(&self) -> impl Iterator<Item = &VersionRecord> {
        self.blobs.values()
    }

    /// The versions of which `server` holds a copy, pinned ones of deleted files included
    /// (see [`VersionRecord::named`]).
    pub fn held_by<'a>(&'a self, server: &'a Server) -> impl Iterator<Item = &'a VersionRecord> {
        let held = |record: &&VersionRecord| record.replicas.contains(server);
        self.blobs.values().filter(held)
    }

    /// Whether `server`'s copy of `blob` is recorded: by a file or by a pin.
    pub fn names(&self, blob: &BlobId, server: &Server) -> bool {
        self.record(blob)
            .is_some_and(|record| record.replicas.contains(server))
    }

    /// The last blob that is known.
    pub fn newest_blob(&self) -> Option<BlobId> {
        self.blobs.keys().next_back().copied()
    }

    /// How many files have a version.
    pub fn file_count(&self) -> usize {
        let live = |file: &&FileRecord| !file.versions.is_empty();
        self.files.values().filter(live).count()
    }

    /// Whether any file has a version.
    pub fn has_files(&self) -> bool {
        let mut files = self.files.values();
        files.any(|file| !file.versions.is_empty())
    }

    /// Grows with each touched blob: put, deleted, forgotten or with other replicas.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The blobs touched since [`Catalog::revision`] was `revision`, or `None` where that
    /// is too long ago: look at all.
    pub fn changed_since(&self, revision: u64) -> Option<impl Iterator<Item = BlobId> + '_> {
        let behind = self.revision.checked_sub(revision)?;
        let behind = usize::try_from(behind).ok()?;
        let start = self.recent.len().checked_sub(behind)?;
        Some(self.recent.range(start..).copied())
    }

    /// Panics where the indexes disagree. For tests and the simulator.
    pub fn check_invariants(&self) {
        let mut named = 0;
        for (name, file) in &self.files {
            let first = file.next.0 - file.versions.len() as u64;
            for (version, blob) in (first..).zip(&file.versions) {
                let record = &self.blobs[blob];
                assert!(record.named && record.name == *name && record.blob == *blob);
                assert_eq!(record.version.0, version, "{name} has a gap");
                named += 1;
            }
            assert!(name.job().is_none() || file.next.0 <= 1, "{name} put twice");
        }
        for record in self.blobs.values() {
            assert!(record.named || record.pins > 0, "{} kept", record.blob);
            assert!(record.replicas.0.is_sorted_by(|a, b| a < b));
            named -= usize::from(record.named);
        }
        assert_eq!(named, 0, "a blob is named that no file has");
        assert!(self.recent.len() <= RECENT_MAX);
    }

    fn put(&mut self, upload: &Upload) -> Version {
        // A leader may propose the same upload twice; the second changes nothing.
        if let Some(record) = self.blobs.get(&upload.blob) {
            return record.version;
        }
        let next = self.files.get(&upload.name).map_or(0, |file| file.next.0);
        // Two leaders in turn may each have made the result file: the first one counts.
        if upload.name.job().is_some() && next > 0 {
            return Version(0);
        }
        let mut replicas = Replicas(Vec::with_capacity(upload.replicas.len()));
        for server in &upload.replicas {
            replicas.insert(self.interned(server));
        }
        let file = self.files.entry(upload.name.clone()).or_default();
        let version = file.next;
        file.next.0 += 1;
        file.versions.reserve_exact(1);
        file.versions.push(upload.blob);
        let record = VersionRecord {
            name: upload.name.clone(),
            version,
            blob: upload.blob,
            bytes: upload.bytes,
            digest: upload.digest,
            replicas,
            named: true,
            pins: 0,
        };
        self.blobs.insert(upload.blob, record);
        self.touch(upload.blob);
        self.trim(&upload.name);
        version
    }

    /// Drops the versions of `name` beyond those that are kept.
    fn trim(&mut self, name: &FileName) {
        let (Some(keep), Some(file)) = (self.keep, self.files.get_mut(name)) else {
            return;
        };
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let surplus = file.versions.len().saturating_sub(keep);
        let old: Vec<BlobId> = file.versions.drain(..surplus).collect();
        self.unname(&old);
    }

    /// No file has these versions any more; those that are pinned stay known.
    fn unname(&mut self, versions: &[BlobId]) {
        for blob in versions {
            if let Some(record) = self.blobs.get_mut(blob) {
                record.named = false;
                if record.pins == 0 {
                    self.blobs.remove(blob);
                }
            }
            self.touch(*blob);
        }
    }

    fn delete(&mut self, name: &FileName) -> u64 {
        // The file's record stays as the tombstone: it keeps the numbering.
        let Some(file) = self.files.get_mut(name) else {
            return 0;
        };
        let versions = std::mem::take(&mut file.versions);
        if planted::is(Bug::NumberedAnew) {
            self.files.remove(name);
        }
        self.unname(&versions);
        versions.len() as u64
    }

    fn change(&mut self, change: &ReplicaChange) {
        if !self.blobs.contains_key(&change.blob) {
            return;
        }
        let add: Vec<Server> = change.add.iter().map(|s| self.interned(s)).collect();
        let Some(record) = self.blobs.get_mut(&change.blob) else {
            return;
        };
        let mut changed = false;
        for server in &change.remove {
            changed |= record.replicas.remove(server);
        }
        for server in add {
            changed |= record.replicas.insert(server);
        }
        if changed {
            self.touch(change.blob);
        }
    }

    fn touch(&mut self, blob: BlobId) {
        self.revision += 1;
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(blob);
    }

    fn interned(&mut self, server: &Server) -> Server {
        if let Some(known) = self.servers.get(server) {
            return known.clone();
        }
        self.servers.insert(server.clone());
        server.clone()
    }
}
