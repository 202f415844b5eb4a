//! What is said about files: log commands of the catalog, and orders and reports
//! between the leader and the holders of copies.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::types::{BlobId, Digest, FileName, Server, Term, Version};

/// A member that bytes can be sent to or read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Name and disk.
    pub server: Server,
    /// Where it listens.
    pub addr: SocketAddr,
}

/// One file of a finished upload: which bytes, and who has fsynced them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// The SDFS name.
    pub name: FileName,
    /// The bytes.
    pub blob: BlobId,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// Exactly the servers that have the bytes on disk, fsynced.
    pub replicas: Vec<Server>,
}

/// Change of one blob's replica set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaChange {
    /// The bytes.
    pub blob: BlobId,
    /// Servers that have fsynced a copy.
    pub add: Vec<Server>,
    /// Servers whose copies no longer count (dead and replaced, lost, or surplus).
    pub remove: Vec<Server>,
}

/// A change of the catalog. Applied in log order, the same on every member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CatalogCommand {
    /// Names the uploads; each gets its version when this is applied.
    Put(Vec<Upload>),
    /// Deletes all versions; the numbering goes on after it.
    Delete(FileName),
    /// Changes of replica sets.
    Replicas(Vec<ReplicaChange>),
    /// The log goes on without most of its voters (`rebuild`): until the next reign nobody
    /// removes copies that the catalog does not name.
    Founded,
    /// Names files that lay on the members' disks and that the catalog may have lost.
    Adopt(Vec<Upload>),
    /// So many of the newest versions of each file are kept from now on; none: all.
    Keep(Option<u64>),
}

/// The bytes of one version, and where they can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
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
    /// Live holders.
    pub sources: Vec<Target>,
}

/// Between the leader and the members, one way each; repeated until the catalog shows the effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreMessage {
    /// Leader to member: copy these blobs to your disk and report.
    Pull {
        /// Term of the leader that orders it; lower ones than known are refused.
        term: Term,
        /// What to copy and from where.
        blobs: Vec<Located>,
    },
    /// Leader to member: these uploads were abandoned; drop what you have of them.
    Drop {
        /// Term of the leader that orders it.
        term: Term,
        /// The abandoned uploads.
        blobs: Vec<BlobId>,
    },
    /// Member to leader: these blobs are on my disk, fsynced and with the right digest.
    Stored(Vec<BlobId>),
    /// Member to leader: I leave as soon as others have enough copies of what I hold. Repeated
    /// until then.
    Leaving,
    /// Member to leader: I have these, and the catalog does not name them as mine. May they go?
    Unnamed {
        /// Names this question.
        ask: u64,
        /// The blobs.
        blobs: Vec<BlobId>,
    },
    /// Leader to member: these may go.
    Release {
        /// Term of the leader that says so.
        term: Term,
        /// The question.
        ask: u64,
        /// The blobs.
        blobs: Vec<BlobId>,
    },
    /// Member to leader: these could not be copied, or are named as mine and are not on my disk.
    Missing(Vec<BlobId>),
}
