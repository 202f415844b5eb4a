//! What is said about jobs: log commands of the jobs' state machine, and assignments
//! and reports between the leader and the workers.

use serde::{Deserialize, Serialize};

use super::store::{Located, Target};
use crate::types::{BlobId, Digest, FileName, JobId, NodeId, Term, WallTime};

/// A network that `train` has published. The newest publication under a name holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Its name, as in `infer NAME …`.
    pub name: String,
    /// SDFS file of the manifest (`models/NAME.toml`), and the bytes of the version that is meant.
    pub manifest: (FileName, BlobId),
    /// SDFS file of the weights, and the bytes of the version that is meant.
    pub weights: (FileName, BlobId),
    /// Of the manifest and the weights: [`Model::digest_of`]. Nodes load a model anew when
    /// either changes.
    pub digest: Digest,
}

impl Model {
    /// Digest of a model: BLAKE3 of the digest of its manifest and that of its weights.
    pub fn digest_of(manifest: Digest, weights: Digest) -> Digest {
        Digest::of(&[manifest.0, weights.0].concat())
    }
}

/// One input of a job, frozen when the job is submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The SDFS name; the row's first column.
    pub name: FileName,
    /// The bytes.
    pub blob: BlobId,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
}

/// What became of one input: its row in the result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The network's answer.
    Label {
        /// One of the manifest's labels.
        label: String,
        /// Softmax probability of that label, 0 to 1.
        confidence: f32,
    },
    /// Why there is no answer.
    Error(String),
    /// No copy of the input could be read now, and why. Only in reports: the coordinator has it
    /// tried again, and gives a row with an error where that goes on for too long.
    Unread(String),
}

/// Rows that a worker has computed for one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedTask {
    /// The job.
    pub job: JobId,
    /// Who ran it.
    pub node: NodeId,
    /// Nanoseconds from dispatch to acknowledgement, by the leader's clock.
    pub elapsed: u64,
    /// Input numbers and their rows. Only inputs without a row count.
    pub rows: Vec<(u32, Outcome)>,
}

/// A change of the jobs. Applied in log order, the same on every member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobCommand {
    /// Makes a network available to jobs.
    Publish(Model),
    /// Starts a job; its inputs are listed from the catalog when this is applied.
    Submit {
        /// Name of a published model.
        model: String,
        /// Data set pattern, as the user typed it.
        dataset: String,
        /// Inputs in one task.
        batch: u32,
        /// Share relative to other jobs; 1 is usual.
        weight: u32,
        /// When, by the leader's wall clock.
        at: WallTime,
        /// Why no node can run it, as far as the leader knows: it is refused. In the log, so
        /// that a repeated request has the same answer.
        unloadable: Option<String>,
    },
    /// Rows of finished tasks.
    Finished {
        /// The tasks.
        tasks: Vec<FinishedTask>,
        /// When, by the leader's wall clock.
        at: WallTime,
    },
    /// A user holds a job, lets it go on, ends it, or gives it another share.
    Control {
        /// The job.
        job: JobId,
        /// What is to be done.
        control: JobControl,
    },
    /// The result file is committed.
    Completed {
        /// The job.
        job: JobId,
        /// When, by the leader's wall clock.
        at: WallTime,
        /// How many answers are right, where the data set has labels.
        accuracy: Option<Accuracy>,
    },
}

/// How many answers of a job are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Rows with the right label.
    pub right: u64,
    /// Rows whose right label is known, those with an error among them.
    pub labelled: u64,
}

impl Accuracy {
    /// Right answers of those that can be judged, 0 to 1; none where there are none.
    pub fn share(self) -> Option<f64> {
        (self.labelled > 0).then(|| self.right as f64 / self.labelled as f64)
    }
}

/// What a user may do with a job that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobControl {
    /// Hand out no more of its tasks; those that run are finished.
    Pause,
    /// Hand out its tasks again.
    Resume,
    /// End it: the rows that it has are its result.
    Cancel,
    /// Its share relative to other jobs from now on.
    Weight(u32),
}

/// Names one hand-out of one task: unique in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AssignmentId {
    /// Term of the leader that made it.
    pub term: Term,
    /// That leader's counter.
    pub counter: u64,
}

/// An input as a worker needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedInput {
    /// Its number in the job.
    pub index: u32,
    /// What to read.
    pub blob: BlobId,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// Places of live holders in [`Assignment::holders`]; the worker's own disk comes first.
    pub sources: Vec<u16>,
}

/// Inputs that the worker is likely to be given next: it may read and decode them ahead. They are
/// no task: another node may be given them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Name of the network.
    pub model: String,
    /// Its digest.
    pub digest: Digest,
    /// The inputs.
    pub inputs: Vec<AssignedInput>,
}

/// Where the time of one task went, in nanoseconds by the worker's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTimes {
    /// Reading the inputs, also where that was done ahead.
    pub fetch: u64,
    /// Decoding, scaling and normalising them, also where that was done ahead.
    pub decode: u64,
    /// From the assignment to the beginning of the inference.
    pub waited: u64,
    /// The inference.
    pub inference: u64,
}

/// A task for one node. A node accepts it only while idle and only with its current token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its name.
    pub id: AssignmentId,
    /// The worker's token that this consumes.
    pub token: u64,
    /// The job.
    pub job: JobId,
    /// Name of the network.
    pub model: String,
    /// Its digest.
    pub digest: Digest,
    /// The inputs, at most the job's batch size.
    pub inputs: Vec<AssignedInput>,
    /// What the worker may be given next, as far as it has not been told before.
    pub hints: Vec<Hint>,
    /// Who holds what is to be read.
    pub holders: Vec<Target>,
}

/// What a worker says of itself: on change, and every half second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The highest leader's term that this worker has seen.
    pub term: Term,
    /// Consumed by the next assignment; raised with each result.
    pub token: u64,
    /// What it runs now.
    pub running: Option<(AssignmentId, JobId, Vec<u32>)>,
    /// Networks that are loaded and warm: name and digest of the model.
    pub models: Vec<(String, Digest)>,
    /// Networks that could not be loaded.
    pub failed_models: Vec<FailedModel>,
}

/// A network that a node could not load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedModel {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: Digest,
    /// The newest publication under that name when the node tried.
    pub publication: u64,
    /// Why not.
    pub reason: String,
}

/// Between the leader and the workers, one way each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ScheduleMessage {
    /// Leader to worker: say what you run. Sent by a new leader before it assigns.
    Query {
        /// Term of the leader; lower ones than known are refused.
        term: Term,
    },
    /// Leader to worker: run this. Repeated until the status shows it.
    Assign {
        /// Term of the leader; lower ones than known are refused.
        term: Term,
        /// The task.
        assignment: Assignment,
    },
    /// Worker to leader.
    Status(WorkerStatus),
    /// Worker to leader: repeated with each status until `DoneAck` or the next assignment.
    Done {
        /// Which assignment.
        id: AssignmentId,
        /// The job.
        job: JobId,
        /// Input numbers and outcomes, one for each input of the assignment.
        rows: Vec<(u32, Outcome)>,
        /// Where its time went.
        times: TaskTimes,
        /// The status after it, with the raised token.
        status: WorkerStatus,
    },
    /// Leader to worker: the result arrived.
    DoneAck {
        /// Which assignment.
        id: AssignmentId,
    },
}

/// A published model as a node must load it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFiles {
    /// Its name.
    pub name: String,
    /// Digest of the model.
    pub digest: Digest,
    /// The manifest's bytes and their holders.
    pub manifest: Located,
    /// The weights' bytes and their holders.
    pub weights: Located,
}
