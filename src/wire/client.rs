//! What a client (`dlc`, or the console of a node) asks of a node, and the answers.
//!
//! Requests of the first group are answered by the node asked; those of the second by
//! the coordinator, to which the node forwards them and repeats them across a take-over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::schedule::{Accuracy, JobControl, Model, Outcome, TaskTimes};
use super::store::{Located, Target, Upload};
use crate::types::{
    BlobId, Digest, FileName, Incarnation, Index, JobId, MemberState, NodeId, RequestId, Server,
    Term, Version,
};

/// One command to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    // Answered by the node asked.
    /// Join the cluster. Answered when this has happened or is refused.
    Join,
    /// Leave the cluster in order and stop the process: others get copies of what this node holds
    /// first. Answered when they know that it leaves; before, every few seconds, with what is
    /// left to do: then it is to be asked again.
    Leave,
    /// The members as this node sees them.
    Members,
    /// This node's process id.
    Identity,
    /// What this node holds on its disk.
    Holdings,
    /// Counters of this node.
    Stats,
    /// What this node knows of the suspicions and removals of a member.
    Why(String),
    /// The model files in this node's model directory.
    LocalModels,
    /// Bytes of this node's model file, from an offset, at most [`super::CHUNK_MAX`].
    ReadLocalModel {
        /// The model's name.
        name: String,
        /// The manifest, or the weights.
        weights: bool,
        /// First byte.
        offset: u64,
    },
    /// Where versions of a file can be read, as this node knows it, perhaps out of date.
    LocateStale {
        /// The SDFS name.
        name: FileName,
        /// How many of the newest versions.
        newest: u64,
    },

    /// How much of the cluster's log this node has.
    LogState,
    /// The blobs in one of the folders of this node's disk; below [`SURVEY_FOLDERS`].
    Survey(u8),
    /// Go on with this node's log and without the voters that are gone, for good.
    FoundAnew,
    /// The copies in one of the folders of this node's disk, as its core knows them; below
    /// [`SURVEY_FOLDERS`].
    Held(u8),
    /// Read all copies on this node's disk and check them. Answered by `Verifying` at least every
    /// few seconds, and then by `Verified`.
    Verify,

    // Answered by the coordinator.
    /// Where the newest versions of a file can be read; newest first.
    Locate {
        /// The SDFS name.
        name: FileName,
        /// How many of the newest versions.
        newest: u64,
    },
    /// Where the newest versions of the files of a data set can be read: the first
    /// [`LOCATED_MAX`] of them in the order of their names' bytes.
    LocateData {
        /// Data set pattern.
        dataset: String,
        /// Only those that come after this name.
        after: Option<FileName>,
    },
    /// Blob ids and targets for files that the client is about to upload.
    PutBegin(Vec<FileName>),
    /// Another target for each of these blobs in place of one that failed.
    PutReplace {
        /// The blobs.
        blobs: Vec<BlobId>,
        /// The target that failed.
        failed: Server,
    },
    /// The bytes are stored as said: name them. Answered when the log has it.
    PutCommit {
        /// Names this command.
        request: RequestId,
        /// Which bytes, and who has them.
        files: Vec<Upload>,
    },
    /// The client gives these uploads up.
    PutAbort(Vec<BlobId>),
    /// Delete all versions of a file.
    Delete {
        /// Names this command.
        request: RequestId,
        /// The SDFS name.
        name: FileName,
    },
    /// Name files that lie on the nodes' disks and are in no catalog any more.
    Adopt {
        /// Names this command.
        request: RequestId,
        /// Which bytes, and who has them; at most [`PUT_FILES_MAX`].
        files: Vec<Upload>,
    },
    /// The live nodes that hold the newest version of a file.
    Replicas(FileName),
    /// The versions that have fewer copies than they should.
    Under,
    /// How many versions of each file are kept.
    Kept,
    /// Keep so many of the newest versions of each file, from now on; none: all.
    Keep {
        /// Names this command.
        request: RequestId,
        /// How many, at least 1.
        newest: Option<u64>,
    },
    /// Make a model (whose files are in SDFS) available to jobs.
    Publish {
        /// Names this command.
        request: RequestId,
        /// The model.
        model: Model,
    },
    /// Which live nodes have these models loaded.
    ModelStatus(Vec<String>),
    /// Start a job.
    Submit {
        /// Names this command.
        request: RequestId,
        /// Model name or alias.
        model: String,
        /// Data set pattern.
        dataset: String,
        /// Inputs in one task.
        batch: u32,
        /// Share relative to other jobs.
        weight: u32,
    },
    /// Hold a job, let it go on, end it, or give it another share.
    Control {
        /// Names this command.
        request: RequestId,
        /// The job.
        job: JobId,
        /// What is to be done.
        control: JobControl,
    },
    /// All jobs.
    Jobs,
    /// Statistics of all jobs.
    JobStats,
    /// Result rows of a job in the order of its inputs, those without a row left out.
    Rows {
        /// The job.
        job: JobId,
        /// First input number.
        from: u32,
        /// How many inputs to look at, at most [`ROWS_MAX`].
        count: u32,
    },
    /// The newest result rows of a job, in the order in which they were committed.
    Tail {
        /// The job.
        job: JobId,
        /// How many, at most [`ROWS_MAX`].
        count: u32,
    },
    /// Where the time of a job goes.
    Explain(JobId),
}

/// Most rows in one answer.
pub const ROWS_MAX: u32 = 10_000;
/// Most files in the answer to `Under`.
pub const UNDER_MAX: usize = 10_000;
/// Folders of blobs that each node has.
pub const SURVEY_FOLDERS: u16 = 256;
/// Most files in the answer to `LocateData`.
pub const LOCATED_MAX: usize = 1_000;
/// Most files in one `PutBegin`, `PutCommit` or `Adopt`.
pub const PUT_FILES_MAX: usize = 1_000;

impl Request {
    /// Whether only the coordinator can answer.
    pub fn is_for_leader(&self) -> bool {
        use Request::*;
        !matches!(
            self,
            Join | Leave
                | Members
                | Identity
                | Holdings
                | Stats
                | Why(_)
                | LocalModels
                | ReadLocalModel { .. }
                | LocateStale { .. }
                | LogState
                | Survey(_)
                | FoundAnew
                | Held(_)
                | Verify
        )
    }
}

/// A member as `list_mem` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// `NAME:HH:MM:SS`.
    pub id: String,
    /// The node's name.
    pub name: NodeId,
    /// `HOST:PORT`.
    pub addr: String,
    /// Alive or suspect.
    pub state: MemberState,
    /// Its life.
    pub incarnation: Incarnation,
    /// Part that it plays.
    pub role: Role,
}

/// Part that a member plays in the coordinator group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The leader of the log.
    Coordinator,
    /// Another voter.
    Standby,
    /// Neither.
    Member,
}

/// Where one file of an upload goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Id of the bytes.
    pub blob: BlobId,
    /// Where a copy must be stored; all of them at once.
    pub targets: Vec<Target>,
}

/// What a committed upload became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The SDFS name.
    pub file: FileName,
    /// The version.
    pub version: Version,
    /// Its bytes.
    pub blob: BlobId,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// Process ids of the nodes that have fsynced it.
    pub replicas: Vec<String>,
}

/// One version on a node's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The SDFS name.
    pub file: FileName,
    /// The version.
    pub version: Version,
    /// Length in bytes.
    pub bytes: u64,
}

/// The versions that have fewer copies than they should.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Under {
    /// The first of them in the order of their uploads, at most [`UNDER_MAX`].
    pub files: Vec<UnderFile>,
    /// How many there are.
    pub total: u64,
    /// Bytes of the copies that are missing.
    pub bytes: u64,
    /// Bytes a second that are copied at present.
    pub rate: u64,
}

/// A version with too few copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderFile {
    /// The SDFS name.
    pub file: FileName,
    /// The version.
    pub version: Version,
    /// Copies on live members that stay.
    pub copies: u64,
    /// How many there should be.
    pub wanted: u64,
}

/// The copies in one folder of a node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Those that the catalog names, and their lengths in bytes.
    pub copies: Vec<(BlobId, u64)>,
    /// How many others there are.
    pub orphaned: u64,
    /// How many copies in all folders were found to be wrong or gone since the node started.
    pub lost: u64,
}

/// What a check of all copies on a node found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Copies that were read.
    pub copies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// [`Held::lost`] at the end.
    pub lost: u64,
    /// Copies that the catalog does not name: of uploads under way or broken off. They go by
    /// themselves.
    pub orphaned: u64,
}

/// How much of the cluster's log a node has. The greater one has more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogState {
    /// Term of the last entry.
    pub last_term: Term,
    /// The last entry.
    pub last_index: Index,
    /// Files in its catalog.
    pub files: u64,
    /// The last blob that its catalog names.
    pub newest: Option<BlobId>,
    /// Whether enough voters are there, as far as it knows.
    pub has_quorum: bool,
    /// Voters that are no live members.
    pub missing: Vec<NodeId>,
}

/// A blob on a node's disk, by what its file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The bytes.
    pub blob: BlobId,
    /// The SDFS name that it was uploaded under.
    pub name: FileName,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
}

/// A model in a node's model directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalModel {
    /// Its name.
    pub name: String,
    /// File name of the weights, and lengths of manifest and weights in bytes; or why it cannot be published.
    pub files: Result<(String, u64, u64), String>,
}

/// How far a published model is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelState {
    /// The publication.
    pub model: Model,
    /// Its publications so far, minus one.
    pub version: u64,
    /// Live nodes that have it loaded and warm.
    pub ready: Vec<NodeId>,
    /// Live nodes that have not, yet.
    pub waiting: Vec<NodeId>,
    /// Live nodes that could not load it, and why.
    pub failed: Vec<(NodeId, String)>,
}

/// Status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStatus {
    /// No task has been handed out yet.
    Queued,
    /// Tasks are handed out.
    InProgress,
    /// Held by the user.
    Paused,
    /// The result file is final.
    Completed,
    /// Ended by the user.
    Cancelled,
    /// Ended by a fault that no retry mends.
    Failed,
}

impl JobStatus {
    /// As the tables and JSON show it.
    pub fn as_str(self) -> &'static str {
        match self {
            JobStatus::Queued => "QUEUED",
            JobStatus::InProgress => "IN_PROGRESS",
            JobStatus::Paused => "PAUSED",
            JobStatus::Completed => "COMPLETED",
            JobStatus::Cancelled => "CANCELLED",
            JobStatus::Failed => "FAILED",
        }
    }
}

/// A row of `job_info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// The job.
    pub job: JobId,
    /// Its model's name.
    pub model: String,
    /// Its status.
    pub status: JobStatus,
    /// Inputs in one task.
    pub batch: u32,
    /// Data set pattern.
    pub dataset: String,
    /// How many of its answers are right, once it has ended and where its data set has labels.
    pub accuracy: Option<Accuracy>,
}

/// A row of `job_stats`. Times in seconds from a task's dispatch to its
/// acknowledgement, per query; rates in queries a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStats {
    /// The job.
    pub job: JobId,
    /// Finished queries, error rows included.
    pub count: u64,
    /// Inputs of the job.
    pub total: u64,
    /// Queries that are finished or in tasks now; those of a job that has ended are finished.
    pub served: u64,
    /// Error rows.
    pub errors: u64,
    /// Mean time.
    pub mean: f64,
    /// Standard deviation of the times (of the population).
    pub std: f64,
    /// 25th percentile.
    pub p25: f64,
    /// 75th percentile.
    pub p75: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Rate of the last 10 seconds.
    pub rate_10s: f64,
    /// Rate since the job's submission, until its last row where it has ended.
    pub rate_total: f64,
    /// Nodes that were given one of its tasks in the last 10 s; empty once it has ended.
    pub assigned_nodes: Vec<NodeId>,
}

/// What the coordinator knows of a job's tasks since it took over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The job.
    pub job: JobId,
    /// Its status.
    pub status: JobStatus,
    /// Inputs of the job.
    pub total: u64,
    /// Finished queries, error rows included.
    pub count: u64,
    /// Error rows.
    pub errors: u64,
    /// Queries in tasks.
    pub in_flight: u64,
    /// Its share relative to other jobs.
    pub weight: u64,
    /// The shares of all jobs that have work left now, its own among them.
    pub weights: u64,
    /// Inputs in one task.
    pub batch: u32,
    /// By node, those that brought a result.
    pub nodes: Vec<NodeProfile>,
    /// Live nodes that have its network loaded.
    pub able: u64,
    /// Live nodes that could not load it, and why.
    pub failed: Vec<(NodeId, String)>,
}

impl Explanation {
    /// Inputs that no node has and that have no row.
    pub fn queued(&self) -> u64 {
        self.total.saturating_sub(self.count + self.in_flight)
    }
}

/// Sums over the tasks of one job on one node, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProfile {
    /// The node.
    pub node: NodeId,
    /// Tasks that brought a result.
    pub tasks: u64,
    /// Their inputs.
    pub queries: u64,
    /// From dispatch to result, by the coordinator's clock.
    pub elapsed: u64,
    /// The parts that the worker measured.
    pub times: TaskTimes,
    /// From one result to the next, where there was work for the node all the time.
    pub turns: u64,
    /// What was not inference in those turns.
    pub idle: u64,
}

impl NodeProfile {
    /// Nanoseconds on the way from and to the coordinator, and there.
    pub fn reply(&self) -> u64 {
        let used = self.times.waited.saturating_add(self.times.inference);
        self.elapsed.saturating_sub(used)
    }

    /// Mean of a task's part in seconds, `nanos` being its sum.
    pub fn mean(&self, nanos: u64) -> f64 {
        nanos as f64 / self.tasks.max(1) as f64 / 1e9
    }

    /// Mean seconds of a query: those of its task, divided by the task's queries.
    pub fn per_query(&self) -> f64 {
        self.elapsed as f64 / self.queries.max(1) as f64 / 1e9
    }

    /// Share of its time in which the node's inference idled although there was work.
    pub fn idle_share(&self) -> Option<f64> {
        (self.turns > 0).then(|| self.idle as f64 / self.turns as f64)
    }
}

/// A result row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The input's SDFS name.
    pub file: FileName,
    /// The answer or the error.
    pub outcome: Outcome,
}

impl Row {
    /// First line of a result file.
    pub const CSV_HEADER: &str = "file,label,confidence,error\n";

    /// The row as a line of the result file, with its line break (RFC 4180 quoting).
    pub fn to_csv(&self) -> String {
        let file = quoted(self.file.as_str());
        match &self.outcome {
            Outcome::Label { label, confidence } => {
                format!("{file},{},{confidence:.6},\n", quoted(label))
            }
            Outcome::Error(error) | Outcome::Unread(error) => {
                format!("{file},,,{}\n", quoted(error))
            }
        }
    }
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}

/// A node's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Joined, or asked for its identity: the process id.
    Identity(String),
    /// Done; nothing more to say.
    Done,
    /// To `Leave`: the node has left.
    Left {
        /// Versions that have too few copies now.
        short: u64,
    },
    /// To `Leave`: not yet; ask again.
    Leaving {
        /// Versions that others must get copies of first.
        left: u64,
    },
    /// To `Members`.
    Members(Vec<MemberInfo>),
    /// To `Holdings`.
    Holdings(Vec<Holding>),
    /// To `Stats`.
    Stats(BTreeMap<String, u64>),
    /// To `Why`: one line for each event, oldest first.
    Events(Vec<String>),
    /// To `LocalModels`.
    LocalModels(Vec<LocalModel>),
    /// To `LogState`.
    LogState(LogState),
    /// To `Survey`: the node's name and disk, and its blobs.
    Survey(Server, Vec<Found>),
    /// To `Held`.
    Held(Held),
    /// To `Verify`, before its end: how many of the folders are done.
    Verifying(u64),
    /// To `Verify`.
    Verified(Verified),
    /// To `Under`.
    Under(Under),
    /// To `Kept`.
    Kept(Option<u64>),
    /// To `ReadLocalModel`: bytes from the offset; empty at the end.
    Bytes(Vec<u8>),
    /// To `Locate` and `LocateStale`: newest first. To `LocateData`: empty after the last file.
    Located(Vec<Located>),
    /// To `Locate` of the result file of a job that has not completed: its rows are read by `Rows`.
    LocatedJob {
        /// The job.
        job: JobId,
        /// Its number of inputs.
        inputs: u32,
    },
    /// To `PutBegin`, in the order of the names.
    Placements(Vec<Placement>),
    /// To `PutReplace`, in the order of the blobs; none where no other member is left.
    Replacements(Vec<Option<Target>>),
    /// To `PutCommit`, in the order of the files.
    Receipts(Vec<Receipt>),
    /// To `Delete`: how many versions there were.
    Deleted(u64),
    /// To `Replicas`: newest version and the process ids.
    Replicas(Version, Vec<String>),
    /// To `ModelStatus`.
    Models(Vec<ModelState>),
    /// To `Submit`.
    Submitted(JobId),
    /// To `Control`: the job's status after it.
    Status(JobStatus),
    /// To `Jobs`.
    Jobs(Vec<JobInfo>),
    /// To `JobStats`.
    JobStats(Vec<JobStats>),
    /// To `Rows` and `Tail`.
    Rows(Vec<Row>),
    /// To `Rows` and `Tail` of a job that has ended: its result file has the rows.
    RowsFiled,
    /// To `Explain`.
    Explained(Explanation),
    /// Refused or failed.
    Refused(Refusal),
}

/// Why a command was not carried out. Codes, so that every side words them alike;
/// nothing was changed unless the variant says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The node is not in a cluster.
    #[error("this node has not joined a cluster yet: type `join` first")]
    NotJoined,
    /// The node is joining, which takes its time.
    #[error("this node has not joined a cluster yet: {0}")]
    Joining(String),
    /// The node could not join.
    #[error("cannot join: {0}")]
    JoinRefused(String),
    /// No coordinator with a majority answered in time. Whether the command was carried
    /// out is not known where it had been sent before; repeat it with the same request id.
    #[error("no coordinator with a majority of the voters is reachable{}: start the missing nodes, or wait; where they are lost for good, `rebuild` goes on without them", missing(.0))]
    NoQuorum(Vec<NodeId>),
    /// The log needs no rebuilding.
    #[error(
        "enough voters are there for a coordinator: there is nothing to rebuild. Without one, wait some seconds"
    )]
    HasQuorum,
    /// The live members did not all agree to go on with this node's log.
    #[error(
        "not every live node agreed within 5 s to go on with this node's log: try again, and stop a node that does not answer"
    )]
    NotAgreed,
    /// No such file, or it is deleted.
    #[error("no file {0:?} in SDFS: `store` lists what a node holds")]
    NotFound(FileName),
    /// Every holder of the version is down or has lost it.
    #[error(
        "no live node has a copy of {name:?} version {}: start one of {}; where none of these has it \
         any more it is lost, and can only be put again", .version.0, names(.holders)
    )]
    NoCopies {
        /// The file.
        name: FileName,
        /// The version.
        version: Version,
        /// Nodes that hold it and are down.
        holders: Vec<NodeId>,
    },
    /// The name belongs to jobs.
    #[error(
        "{0:?} is reserved for the result file of a job: names of digits and `.csv` are neither put nor deleted"
    )]
    Reserved(FileName),
    /// The coordinator does not know this upload (it has changed, or gave it up): start it over.
    #[error("the upload was interrupted by a change of coordinator: put the file again")]
    UnknownUpload,
    /// Fewer copies are on disk than the promise needs.
    #[error("only {stored} of {wanted} copies of {name:?} are on disk: put the file again")]
    TooFewCopies {
        /// The file.
        name: FileName,
        /// Copies fsynced on live members.
        stored: u64,
        /// Copies that an answer needs.
        wanted: u64,
    },
    /// Not a published model.
    #[error("no model {model:?} is published{}: run `train {model}` first", published(.known))]
    UnknownModel {
        /// As the user named it.
        model: String,
        /// The published ones.
        known: Vec<String>,
    },
    /// No live node could load the model.
    #[error("model {0:?} is not loaded on any node: {1}")]
    ModelNotLoaded(String, String),
    /// The pattern matches no file.
    #[error("data set {0:?} matches no file in SDFS: upload it with `upload_data`")]
    EmptyDataset(String),
    /// Too many inputs.
    #[error("data set {0:?} matches {1} files, the limit is {2}")]
    DatasetTooLarge(String, u64, u64),
    /// Batch size or weight out of range.
    #[error("{0}")]
    BadArgument(String),
    /// No such job.
    #[error("no job {0}: `job_info` lists the jobs")]
    UnknownJob(JobId),
    /// The job has all its rows or was cancelled: nothing is left to be done with it.
    #[error("job {0} has ended: its rows are final")]
    JobEnded(JobId),
    /// More requests than the node takes at once.
    #[error("the node is busy: try again")]
    Busy,
    /// The node is leaving or stopping.
    #[error("the node is stopping")]
    Stopping,
    /// A fault of this node's own disk or files.
    #[error("{0}")]
    Failed(String),
}

fn names(nodes: &[NodeId]) -> String {
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    names.join(", ")
}

fn missing(nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        String::new()
    } else {
        format!(" (missing: {})", names(nodes))
    }
}

fn published(models: &[String]) -> String {
    if models.is_empty() {
        String::new()
    } else {
        format!(" (published: {})", models.join(", "))
    }
}
