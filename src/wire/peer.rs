//! What members say to each other on their control connections, how a connection
//! introduces itself, and the commands in the replicated log.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::client::{Reply, Request};
use super::consensus;
use super::schedule::{JobCommand, ScheduleMessage};
use super::store::{CatalogCommand, StoreMessage};
use crate::types::{BlobId, ClusterId, Digest, FileName, RequestId, Server};

/// First frame of every TCP connection, from the side that dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::PROTOCOL_VERSION`] of the dialling side.
    pub version: u8,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What a connection is for; fixes which frames may follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// [`PeerMessage`] frames, one way, from the member `from` to the member `to`.
    Peer {
        /// The cluster that both are of.
        cluster: ClusterId,
        /// Who dialled.
        from: Server,
        /// Who is meant; another server at this address closes the connection.
        to: Server,
    },
    /// One [`super::datagram::MembershipRequest`], one reply.
    Membership,
    /// [`Request`] frames, each answered by one [`Reply`].
    Client,
    /// [`BlobRequest`] frames with their chunks and answers.
    Blobs,
}

/// One-way message between members. May be lost, repeated or late.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Of the replicated log.
    Consensus(consensus::Message),
    /// Of the store.
    Store(StoreMessage),
    /// Of the scheduler.
    Schedule(ScheduleMessage),
    /// A client's command on its way to the leader.
    Forward {
        /// The forwarding node's number for it.
        token: u64,
        /// The command.
        request: Request,
    },
    /// The leader's answer on its way back.
    Answer {
        /// The forwarding node's number for it.
        token: u64,
        /// The answer; boxed because it is large.
        reply: Box<Reply>,
    },
    /// The receiver is not the leader, or not ready: ask again elsewhere or later.
    NotLeader {
        /// The forwarding node's number for the command.
        token: u64,
    },
}

/// A command in the replicated log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Set where a client waits: a repeated id is not carried out twice.
    pub request: Option<RequestId>,
    /// The change.
    pub change: Change,
}

/// A change of one of the two state machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Of the catalog.
    Catalog(CatalogCommand),
    /// Of the jobs.
    Job(JobCommand),
}

impl Command {
    /// As it stands in a log entry.
    pub fn encode(&self) -> Arc<[u8]> {
        super::encode(self).into()
    }
}

/// On a [`Purpose::Blobs`] connection, from the side that dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobRequest {
    /// The bytes of these blobs follow, one after the other, as chunks without regard to
    /// where one blob ends (an empty blob has none). Answered by one [`BlobReply::Stored`] when
    /// all are on disk, or [`BlobReply::Refused`].
    Store(Vec<BlobHeader>),
    /// Send the bytes of these blobs from these offsets on. Answered for each blob, in
    /// order, by [`BlobReply::Sending`] and then its chunks, or [`BlobReply::Refused`].
    Read(Vec<(BlobId, u64)>),
    /// What was sent of these blobs, at most [`CHECKS_MAX`], had another digest than it should:
    /// look at the copies. Not answered.
    Check(Vec<BlobId>),
}

/// Most blobs in one `Check`.
pub const CHECKS_MAX: usize = 1_000;

/// What precedes the bytes of an uploaded blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobHeader {
    /// The id that the leader gave.
    pub blob: BlobId,
    /// The SDFS name, kept with the bytes for a rebuild of the catalog.
    pub name: FileName,
    /// Length in bytes.
    pub bytes: u64,
}

/// On a [`Purpose::Blobs`] connection, from the side that was dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobReply {
    /// All blobs of the request are fsynced; their digests as computed on the way in, in order.
    Stored(Vec<Digest>),
    /// This many bytes follow as chunks.
    Sending(u64),
    /// Not done, and why (no such blob, disk full, …).
    Refused(String),
}
