//! What a node's core asks of its driver, and what the driver tells it.
//!
//! The driver is `threads` on real machines and `tests/sim` in the simulation. Each
//! arm is one device call or one send; the driver matches them without a wildcard.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::consensus::{LogWrite, Recovered};
use crate::schedule::jobs::Job;
use crate::types::{BlobId, ClusterId, Digest, JobId, Member, Server, View, WallTime};
use crate::wire::client::{Reply, Request};
use crate::wire::peer::PeerMessage;
use crate::wire::schedule::{Accuracy, Assignment, AssignmentId, ModelFiles, Outcome, TaskTimes};
use crate::wire::store::Located;

/// Names a client's request until its `Output::Reply`; given by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestToken(pub u64);

/// What a node starts from.
#[derive(Clone, Debug)]
pub struct Start {
    /// Name and disk.
    pub me: Server,
    /// Wall clock at the moment that is passed as `now`; for people only.
    pub wall: WallTime,
    /// What the log on disk gave back.
    pub recovered: Recovered,
    /// Blobs that are whole on disk.
    pub held: Vec<BlobId>,
    /// Seed of this core's randomness.
    pub seed: u64,
    /// Bytes of the log after which a snapshot takes its place. More: a longer start; fewer: the
    /// state is written more often.
    pub snapshot_bytes: usize,
    /// See [`crate::consensus::Config::crash_stop`].
    pub crash_stop: bool,
    /// At an earlier start this server formed the cluster, and [`Output::Formed`] did not follow.
    /// Without a log it forms it anew ([`crate::consensus::Consensus::form_anew`]).
    pub forming: bool,
}

/// Why a model was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadFailure {
    /// Its files could not be read now; their holders may come back.
    Unread(String),
    /// The network was refused, and will be again.
    Refused(String),
}

impl LoadFailure {
    /// The reason, for people.
    pub fn reason(&self) -> &str {
        match self {
            LoadFailure::Unread(reason) | LoadFailure::Refused(reason) => reason,
        }
    }
}

/// What happened outside; each is one `handle_*` call on the node.
#[derive(Clone, Debug)]
pub enum Input {
    /// Membership has a new view. `formed`: this node is the cluster's first and bootstraps the log.
    Joined {
        /// This node as a member.
        member: Member,
        /// The cluster.
        cluster: ClusterId,
        /// Whether this node made the cluster id just now.
        formed: bool,
    },
    /// Joining takes its time: what it waits for.
    JoinWaits(String),
    /// Joining was refused, for this reason.
    JoinRefused(String),
    /// Membership's newest view; views in between may be skipped.
    View(View),
    /// The members have been told that this node leaves: the process may end.
    Left,
    /// A message on a control connection.
    Message {
        /// Who sent it, as its connection proved.
        from: Server,
        /// The message.
        message: PeerMessage,
    },
    /// A client's command.
    Request {
        /// For the answer.
        token: RequestToken,
        /// The command.
        request: Request,
    },
    /// Uploaded blobs are fsynced on this node's disk. Answered by [`Output::StoredNoted`].
    Stored {
        /// For the answer.
        token: RequestToken,
        /// The blobs.
        blobs: Vec<BlobId>,
    },
    /// The log write with this ticket, and all before it, are fsynced.
    Persisted(u64),
    /// End of an [`Output::Fetch`]: each blob is on disk with the right digest, or not.
    Fetched(Vec<(BlobId, bool)>),
    /// End of an [`Output::Write`]: on disk, or the disk's error.
    Written {
        /// The blob.
        blob: BlobId,
        /// Digest and length of what was written.
        result: Result<(Digest, u64), String>,
    },
    /// A copy that this node should have failed its check when it was read.
    Corrupt(BlobId),
    /// End of an [`Output::Run`].
    BatchDone {
        /// Which assignment.
        id: AssignmentId,
        /// Input numbers and outcomes, one for each input.
        rows: Vec<(u32, Outcome)>,
        /// Where the time went.
        times: TaskTimes,
    },
    /// End of an [`Output::Grade`]; none where a file could not be read or is no such file.
    Graded {
        /// The job.
        job: JobId,
        /// What came of it.
        accuracy: Option<Accuracy>,
    },
    /// End of an [`Output::Load`].
    ModelLoaded {
        /// Its name.
        name: String,
        /// Digest of its weights.
        digest: Digest,
        /// Why not.
        result: Result<(), LoadFailure>,
    },
    /// For so long, until now, the driver took in nothing: what follows from the last inputs took
    /// that long. It comes before whatever has waited meanwhile.
    StoodStill(Duration),
    /// The clock has reached `poll_timeout`.
    Timeout,
}

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send on the control connection to `to`; dropped where that is not up or full.
    Send {
        /// Name and disk of the receiver.
        to: Server,
        /// The message.
        message: PeerMessage,
    },
    /// Answer a client.
    Reply {
        /// Its request.
        token: RequestToken,
        /// The answer.
        reply: Reply,
    },
    /// The blobs of an [`Input::Stored`] are noted: the uploading client may be told.
    StoredNoted {
        /// Its token.
        token: RequestToken,
    },
    /// Write to the log and fsync, in order; then `Persisted`.
    Persist(LogWrite),
    /// The log's first entry is safe: [`Start::forming`] is over.
    Formed,
    /// Copy these blobs from one of their sources to this node's disk, checked and fsynced; then `Fetched`.
    Fetch(Vec<Located>),
    /// Write the result file of this job ([`Job::csv`]) to this node's disk as a blob and fsync;
    /// then `Written`. To put its rows together is work for another thread too.
    Write {
        /// The blob's id.
        blob: BlobId,
        /// The SDFS name, kept beside the bytes.
        name: crate::types::FileName,
        /// The job with all its rows.
        job: Box<Job>,
    },
    /// Remove these blobs from this node's disk. No answer.
    Remove(Vec<BlobId>),
    /// Read, decode and classify the inputs of this task; then `BatchDone`. Never given while one runs.
    Run(Assignment),
    /// Compare the result file of a job with the labels of its data set; then `Graded`.
    Grade {
        /// The job.
        job: JobId,
        /// Its result file.
        result: Located,
        /// The labels.
        labels: Located,
    },
    /// Fetch this model, load and warm it; then `ModelLoaded`.
    Load {
        /// The model.
        files: ModelFiles,
        /// Names and digests of the models that stay loaded beside it. Others may be
        /// forgotten: no unfinished job needs them.
        keep: BTreeSet<(String, Digest)>,
    },
    /// Tell membership to join; then `Joined` or `JoinRefused`.
    Join,
    /// Tell membership to leave; then `Left`.
    Leave,
    /// This node has left: end the process in order, with exit status 0.
    Exit,
}
