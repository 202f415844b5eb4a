//! A node's disk: what is safe, what a crash takes, and what a wipe leaves.
//!
//! Decides: which writes survive which fault. Unsynced log writes are lost from some point
//! on, the order kept (the last one that survives is whole: a torn record fails its checksum,
//! which is the same as a lost one); one with a snapshot is there whole or not at all. A blob that is not synced is gone after a crash, or there
//! whole: it is renamed into place before its directory is synced. Leaves to others: how long
//! a sync takes.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use dlc::consensus::{LogWrite, Recovered};
use dlc::types::{BlobId, ClusterId, Digest, Incarnation, Index, Rng, StorageId, Term};
use dlc::wire::consensus::{Entry, HardState, Snapshot};

/// Bytes of one blob and whether they are synced.
#[derive(Clone, Debug)]
pub struct Held {
    /// The bytes.
    pub bytes: Arc<[u8]>,
    /// Their digest.
    pub digest: Digest,
    /// Survives a crash.
    pub synced: bool,
    /// Its bytes are others than those that were written; only who reads it knows.
    pub decayed: bool,
}

/// Everything that outlives a process.
#[derive(Debug)]
pub struct Disk {
    /// Drawn when the disk was made.
    pub storage: StorageId,
    /// Highest incarnation that was used.
    pub incarnation: Incarnation,
    /// The cluster that was joined.
    pub cluster: Option<ClusterId>,
    /// The node has formed it, and the log's first entry was not safe yet.
    pub forming: bool,
    /// Where the members were.
    pub members: Vec<SocketAddr>,
    hard_state: HardState,
    commit: Index,
    snapshot: Option<Arc<Snapshot>>,
    entries: Vec<Entry>,
    unsynced: VecDeque<LogWrite>,
    blobs: BTreeMap<BlobId, Held>,
}

impl Disk {
    /// An empty disk.
    pub fn new(random: &mut Rng) -> Disk {
        Disk {
            storage: StorageId(random.next_u128()),
            incarnation: Incarnation(0),
            cluster: None,
            forming: false,
            members: Vec::new(),
            hard_state: HardState::default(),
            commit: Index(0),
            snapshot: None,
            entries: Vec::new(),
            unsynced: VecDeque::new(),
            blobs: BTreeMap::new(),
        }
    }

    /// Accepts a log write; it is safe after [`Disk::log_synced`].
    pub fn write_log(&mut self, write: LogWrite) {
        self.unsynced.push_back(write);
    }

    /// Makes the writes up to `ticket` safe.
    pub fn log_synced(&mut self, ticket: u64) {
        while self
            .unsynced
            .front()
            .is_some_and(|write| write.ticket <= ticket)
        {
            let write = self.unsynced.pop_front().expect("looked at");
            self.apply(write);
        }
    }

    fn apply(&mut self, write: LogWrite) {
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(snapshot) = write.snapshot {
            self.snapshot = Some(snapshot);
            self.entries.clear();
        }
        if let Some(from) = write.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        self.entries.extend(write.entries);
        self.commit = write.commit.unwrap_or(self.commit);
    }

    /// What the log gives back after a restart.
    pub fn recovered(&self) -> Recovered {
        Recovered {
            hard_state: self.hard_state.clone(),
            snapshot: self.snapshot.clone(),
            entries: self.entries.clone(),
            commit: self.commit,
        }
    }

    /// Entries of the log that are safe.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The last entry of the log that is safe.
    pub fn last_safe(&self) -> Index {
        let snapshot = self.snapshot.as_ref().map_or(Index(0), |s| s.index);
        self.entries.last().map_or(snapshot, |entry| entry.index)
    }

    /// Whether the entry of `term` at `index` is safe, by itself or in the snapshot.
    pub fn has_entry(&self, index: Index, term: Term) -> bool {
        let is_it = |entry: &Entry| entry.index == index && entry.term == term;
        let snapshot = self.snapshot.as_ref();
        snapshot.is_some_and(|s| s.index >= index) || self.entries.iter().any(is_it)
    }

    /// Writes a blob; it is safe after [`Disk::blob_synced`].
    pub fn write_blob(&mut self, blob: BlobId, bytes: Arc<[u8]>, digest: Digest) {
        let held = Held {
            bytes,
            digest,
            synced: false,
            decayed: false,
        };
        self.blobs.insert(blob, held);
    }

    /// A bit of `blob` flips.
    pub fn decay(&mut self, blob: BlobId) {
        if let Some(held) = self.blobs.get_mut(&blob) {
            held.decayed = true;
        }
    }

    /// The copies that are not what was written.
    pub fn decayed(&self) -> Vec<BlobId> {
        let decayed = self.blobs.iter().filter(|(_, held)| held.decayed);
        decayed.map(|(blob, _)| *blob).collect()
    }

    /// Makes a blob safe.
    pub fn blob_synced(&mut self, blob: BlobId) {
        if let Some(held) = self.blobs.get_mut(&blob) {
            held.synced = true;
        }
    }

    /// Removes a blob.
    pub fn remove_blob(&mut self, blob: BlobId) {
        self.blobs.remove(&blob);
    }

    /// A blob that can be read.
    pub fn blob(&self, blob: BlobId) -> Option<&Held> {
        self.blobs.get(&blob)
    }

    /// Whether a safe copy with that digest is here.
    pub fn keeps(&self, blob: BlobId, digest: Digest) -> bool {
        self.blobs
            .get(&blob)
            .is_some_and(|held| held.synced && !held.decayed && held.digest == digest)
    }

    /// Blobs that are whole here.
    pub fn held(&self) -> Vec<BlobId> {
        self.blobs.keys().copied().collect()
    }

    /// The process or the machine died.
    pub fn crash(&mut self, random: &mut Rng) {
        let survivors = random.below(self.unsynced.len() as u64 + 1);
        for _ in 0..survivors {
            let write = self
                .unsynced
                .pop_front()
                .expect("at most as many as there are");
            self.apply(write);
        }
        // A torn write: some beginning of it, in the order of its fields.
        let torn = self.unsynced.pop_front();
        if let Some(mut write) = torn.filter(|write| write.snapshot.is_none()) {
            let fields = random.below(4);
            write.hard_state = write.hard_state.filter(|_| fields > 0);
            write.truncate_from = write.truncate_from.filter(|_| fields > 1);
            let whole = if fields > 2 {
                random.below(write.entries.len() as u64 + 1)
            } else {
                0
            };
            write.entries.truncate(whole as usize);
            write.commit = None;
            self.apply(write);
        }
        self.unsynced.clear();
        self.blobs
            .retain(|_, held| held.synced || random.chance(30));
        for held in self.blobs.values_mut() {
            held.synced = true;
        }
    }

    /// The disk is replaced by an empty one.
    pub fn wipe(&mut self, random: &mut Rng) {
        *self = Disk::new(random);
    }
}
