//! Jobs and published networks: the deterministic state machine on the replicated log.
//!
//! Decides: which network a name means, which rows a job has, and in which order they
//! were committed; each input gets exactly one row (promise P7), because a row counts
//! only for an input without one. Leaves to others: what runs where (the leader's
//! [`Scheduler`](super::Scheduler), volatile), which inputs a data set has, and the
//! storing of `JOB.csv`.
//!
//! Memory of an unfinished job: 72 bytes an input, once for all jobs over the same files, and 16
//! bytes a row. An ended one keeps neither.
//!
//! All methods that change it are called from log entries, in log order, on every member.

#[path = "jobs_form.rs"]
mod form;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::rows::Rows;
use super::timing::{RecentRows, Timing};
use crate::types::{BlobId, Digest, JobId, NodeId, WallTime};
use crate::wire::client::{JobInfo, JobStats, JobStatus, Refusal, Row};
use crate::wire::schedule::{Accuracy, FinishedTask, Input, JobControl, Model, Outcome};

/// Most inputs of one job; a data set with more is refused.
pub const INPUTS_MAX: usize = 1_000_000;
/// Largest batch: a larger one is refused by the node, and cut here.
pub const BATCH_MAX: u32 = 1_024;
/// Largest weight: a larger one is refused by the node, and cut here.
pub const WEIGHT_MAX: u32 = 1_000;
/// Most jobs that have not ended; with so many the node refuses to start another.
pub const UNFINISHED_MAX: usize = 1_000;
/// Most inputs of all jobs together that have not ended: 320 MB of rows.
pub const UNFINISHED_INPUTS_MAX: u64 = 20_000_000;
/// Ended jobs that are remembered; the oldest is forgotten, its result file stays in SDFS.
pub const HISTORY_MAX: usize = 1_000;
/// Most names of published networks; a publication under one more is refused.
pub const MODELS_MAX: usize = 1_000;

/// The newest publication under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The network.
    pub model: Model,
    /// Publications under this name so far, minus one.
    pub version: u64,
    /// The network that this one took the place of: it is published again where this one turns
    /// out to be none.
    pub previous: Option<Model>,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// The network, as it was published when the job was submitted.
    pub model: Model,
    /// Data set pattern, as the user typed it.
    pub dataset: String,
    /// Most inputs in one task, at least 1.
    pub batch: u32,
    /// Share relative to other jobs, at least 1.
    pub weight: u32,
    /// When it was submitted, by that leader's wall clock.
    pub submitted: WallTime,
    /// When its result file was committed.
    pub completed: Option<WallTime>,
    /// How many of its answers are right, once it has ended and where its data set has labels.
    pub accuracy: Option<Accuracy>,
    /// Whether a user holds it.
    paused: bool,
    /// Whether a user has ended it: it gets no further row.
    cancelled: bool,
    /// What to classify, in natural order of the names; empty once it has ended. One list for
    /// all jobs over the same files, which is why it stands elsewhere in a snapshot.
    #[serde(skip)]
    pub inputs: Arc<[Input]>,
    /// How many inputs it was submitted with.
    total: u64,
    /// The rows so far; empty once it has ended, as its result file has them then.
    rows: Rows,
    counted: u64,
    errors: u64,
    last_row: WallTime,
    timing: Timing,
    recent: RecentRows,
}

impl Job {
    /// Digest of the network's weights.
    pub fn digest(&self) -> Digest {
        self.model.digest
    }

    /// Inputs that have a row, error rows included.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// Its inputs.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Rows that are errors.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Whether input number `input` is one of the job's and has its row.
    pub fn has_row(&self, input: u32) -> bool {
        self.rows.has(input)
    }

    /// Whether every input has its row.
    pub fn rows_complete(&self) -> bool {
        self.counted == self.total
    }

    /// Whether a user holds it.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether a user has ended it.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// Whether its rows are final: all are there, or it was cancelled.
    pub fn is_final(&self) -> bool {
        self.cancelled || self.rows_complete()
    }

    /// The status; `started` says whether the leader has handed out one of its tasks,
    /// which the log does not know before the first row.
    pub fn status(&self, started: bool) -> JobStatus {
        if self.cancelled {
            JobStatus::Cancelled
        } else if self.completed.is_some() {
            JobStatus::Completed
        } else if self.paused {
            JobStatus::Paused
        } else if started || self.counted > 0 {
            JobStatus::InProgress
        } else {
            JobStatus::Queued
        }
    }

    /// Takes the rows that are new, and returns how many they were.
    fn finish(&mut self, task: &FinishedTask, at: WallTime) -> u64 {
        if self.cancelled {
            return 0;
        }
        let mut new = 0;
        for (input, outcome) in &task.rows {
            if self.rows.fill(*input, outcome) {
                self.errors += u64::from(!matches!(outcome, Outcome::Label { .. }));
                new += 1;
            }
        }
        self.counted += new;
        if new > 0 {
            // The stamps of two leaders may go backwards; the job's own time does not.
            self.last_row = self.last_row.max(at);
            self.timing.add(task.elapsed, new);
            self.recent.add(self.last_row, new);
        }
        new
    }

    fn row(&self, input: u32) -> Option<Row> {
        let outcome = self.rows.get(input)?;
        let file = self.inputs[input as usize].name.clone();
        Some(Row { file, outcome })
    }

    /// Statistics as of `now`, the leader's wall clock. `assigned` are the nodes that were
    /// given one of its tasks in the last 10 s; they are left out once its rows are final.
    pub fn stats(&self, now: WallTime, assigned: Vec<NodeId>) -> JobStats {
        let ended = self.is_final();
        let until = if ended { self.last_row } else { now };
        let lasted = until.0.saturating_sub(self.submitted.0).max(1);
        JobStats {
            job: self.id,
            count: self.counted(),
            total: self.total,
            served: self.counted,
            errors: self.errors,
            mean: self.timing.mean(),
            std: self.timing.std(),
            p25: self.timing.percentile(25),
            p75: self.timing.percentile(75),
            p99: self.timing.percentile(99),
            rate_10s: self.recent.rate(now),
            rate_total: self.counted() as f64 * 1_000.0 / lasted as f64,
            assigned_nodes: if ended { Vec::new() } else { assigned },
        }
    }

    /// The result file: a header, then the rows so far in the order of the inputs.
    pub fn csv(&self) -> Vec<u8> {
        let mut text = String::from(Row::CSV_HEADER);
        for input in 0..self.inputs.len() as u32 {
            if let Some(row) = self.row(input) {
                text.push_str(&row.to_csv());
            }
        }
        text.into_bytes()
    }
}

/// All networks and jobs of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Jobs {
    models: BTreeMap<String, Published>,
    jobs: BTreeMap<JobId, Job>,
    unfinished: BTreeSet<JobId>,
    /// Ended jobs, in the order in which they ended.
    history: VecDeque<JobId>,
    next: u64,
    revision: u64,
}

impl Jobs {
    /// No networks and no jobs.
    pub fn new() -> Jobs {
        Jobs::default()
    }

    /// Grows with every change; tells the scheduler whether there is anything new.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Makes `model` the one that its name means, and returns its version; nothing is
    /// changed and `None` is returned where [`MODELS_MAX`] other names are published.
    pub fn publish(&mut self, model: Model) -> Option<u64> {
        let known = self.models.get(&model.name);
        if known.is_none() && self.models.len() >= MODELS_MAX {
            return None;
        }
        let version = known.map_or(0, |published| published.version + 1);
        self.revision += 1;
        let previous = self.models.remove(&model.name);
        let previous = previous.and_then(|old| match old.model.digest == model.digest {
            true => old.previous,
            false => Some(old.model),
        });
        let published = Published {
            model,
            version,
            previous,
        };
        self.models.insert(published.model.name.clone(), published);
        Some(version)
    }

    /// The network that a user means by `name`; `resnet` is an alias of `resnet50`
    /// unless something is published under that very name.
    pub fn model(&self, name: &str) -> Option<&Published> {
        let alias = (name == "resnet").then_some("resnet50");
        let named = self.models.get(name);
        named.or_else(|| self.models.get(alias?))
    }

    /// All published networks by name.
    pub fn models(&self) -> impl Iterator<Item = &Published> {
        self.models.values()
    }

    /// The networks that nodes should have loaded: those published, and older
    /// publications that unfinished jobs were submitted with. By name, then digest.
    pub fn wanted_models(&self) -> Vec<Model> {
        let published = self.models.values().map(|published| &published.model);
        let used = self.unfinished().map(|job| &job.model);
        let wanted: BTreeMap<(&str, Digest), &Model> = published
            .chain(used)
            .map(|model| ((model.name.as_str(), model.digest), model))
            .collect();
        wanted.into_values().cloned().collect()
    }

    /// Changes whenever [`Jobs::wanted_models`] does, along one history of the log.
    pub fn wanted_since(&self) -> (u64, usize, u64) {
        let versions = self.models.values().map(|published| published.version + 1);
        (self.next, self.unfinished.len(), versions.sum())
    }

    /// The bytes of the networks that may have to be loaded: those published, those before them,
    /// and those of unfinished jobs.
    pub fn model_blobs(&self) -> BTreeSet<BlobId> {
        let published = self.models.values();
        let published = published.flat_map(|it| [Some(&it.model), it.previous.as_ref()]);
        let used = self.unfinished().map(|job| Some(&job.model));
        let models = published.chain(used).flatten();
        models
            .flat_map(|model| [model.manifest.1, model.weights.1])
            .collect()
    }

    /// Numbers the next job above `job`, of which only the result file is left.
    pub fn skip(&mut self, job: JobId) {
        self.next = self.next.max(job.0.saturating_add(1));
    }

    /// Starts a job over `inputs`, which are in natural order, and returns its number.
    pub fn submit(
        &mut self,
        model: &Model,
        dataset: &str,
        batch: u32,
        weight: u32,
        at: WallTime,
        inputs: Arc<[Input]>,
    ) -> JobId {
        let id = JobId(self.next);
        self.next += 1;
        self.revision += 1;
        let job = Job {
            id,
            model: model.clone(),
            dataset: dataset.into(),
            batch: batch.clamp(1, BATCH_MAX),
            weight: weight.clamp(1, WEIGHT_MAX),
            submitted: at,
            completed: None,
            accuracy: None,
            paused: false,
            cancelled: false,
            rows: Rows::new(inputs.len()),
            total: inputs.len() as u64,
            inputs,
            counted: 0,
            errors: 0,
            last_row: at,
            timing: Timing::default(),
            recent: RecentRows::default(),
        };
        self.jobs.insert(id, job);
        self.unfinished.insert(id);
        id
    }

    /// The list of an unfinished job over these very versions, which another one over them is to
    /// share.
    pub fn list_of(&self, blobs: &[BlobId]) -> Option<Arc<[Input]>> {
        let same = |job: &&Job| {
            let own = job.inputs.iter().map(|input| &input.blob);
            job.inputs.len() == blobs.len() && own.eq(blobs)
        };
        let found = self.unfinished().find(same);
        found.map(|job| Arc::clone(&job.inputs))
    }

    /// Takes a task's rows. Returns how many inputs have their row by it: those of an
    /// unknown job, of unknown inputs, and of inputs with a row do not count.
    pub fn finish(&mut self, task: &FinishedTask, at: WallTime) -> u64 {
        let new = match self.jobs.get_mut(&task.job) {
            Some(job) => job.finish(task, at),
            None => 0,
        };
        self.revision += u64::from(new > 0);
        new
    }

    /// Carries out what a user wants with `job`, and returns its status then, as in
    /// [`Job::status`] where the leader has handed out nothing; to do the same again changes
    /// nothing. An error where it does not exist or its rows are final.
    pub fn control(&mut self, job: JobId, control: JobControl) -> Result<JobStatus, Refusal> {
        let found = self.jobs.get_mut(&job).ok_or(Refusal::UnknownJob(job))?;
        let again = found.cancelled && control == JobControl::Cancel;
        if found.is_final() && !again {
            return Err(Refusal::JobEnded(job));
        }
        match control {
            JobControl::Pause => found.paused = true,
            JobControl::Resume => found.paused = false,
            JobControl::Cancel => found.cancelled = true,
            JobControl::Weight(weight) => found.weight = weight.clamp(1, WEIGHT_MAX),
        }
        self.revision += 1;
        Ok(found.status(false))
    }

    /// The result file of `job` is committed: the job has ended. Returns whether that is
    /// new. Beyond [`HISTORY_MAX`] ended jobs the one that ended first is forgotten.
    pub fn complete(&mut self, job: JobId, at: WallTime, accuracy: Option<Accuracy>) -> bool {
        let Some(found) = self.jobs.get_mut(&job) else {
            return false;
        };
        if found.completed.is_some() || !found.is_final() {
            return false;
        }
        found.completed = Some(at);
        found.accuracy = accuracy;
        // History is bounded: the result file has them.
        (found.inputs, found.rows) = (Arc::default(), Rows::default());
        self.unfinished.remove(&job);
        self.history.push_back(job);
        if self.history.len() > HISTORY_MAX
            && let Some(oldest) = self.history.pop_front()
        {
            self.jobs.remove(&oldest);
        }
        self.revision += 1;
        true
    }

    /// The job with this number.
    pub fn job(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job)
    }

    /// All remembered jobs by number.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// The jobs that have not ended, by number.
    pub fn unfinished(&self) -> impl Iterator<Item = &Job> {
        self.unfinished.iter().filter_map(|id| self.jobs.get(id))
    }

    /// Whether another job may be started ([`UNFINISHED_MAX`]).
    pub fn has_room(&self) -> bool {
        self.unfinished.len() < UNFINISHED_MAX
    }

    /// Whether a job of `count` inputs may be started ([`UNFINISHED_INPUTS_MAX`]).
    pub fn has_room_for(&self, count: u64) -> bool {
        let inputs: u64 = self.unfinished().map(Job::total).sum();
        inputs + count <= UNFINISHED_INPUTS_MAX
    }

    /// Whether `job` exists and all its inputs have their row.
    pub fn rows_complete(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(Job::rows_complete)
    }

    /// The table of `job_info`; `started` as in [`Job::status`].
    pub fn infos(&self, started: &dyn Fn(JobId) -> bool) -> Vec<JobInfo> {
        let info = |job: &Job| JobInfo {
            job: job.id,
            model: job.model.name.clone(),
            status: job.status(started(job.id)),
            batch: job.batch,
            dataset: job.dataset.clone(),
            accuracy: job.accuracy,
        };
        self.jobs.values().map(info).collect()
    }

    /// A row of `job_stats`; see [`Job::stats`].
    pub fn stats(&self, job: JobId, now: WallTime, assigned: Vec<NodeId>) -> Option<JobStats> {
        Some(self.jobs.get(&job)?.stats(now, assigned))
    }

    /// The rows of the inputs `from .. from + count` that have one, in that order; none once
    /// the job has ended.
    pub fn rows(&self, job: JobId, from: u32, count: u32) -> Option<Vec<Row>> {
        let job = self.jobs.get(&job)?;
        let until = from.saturating_add(count).min(job.inputs.len() as u32);
        Some((from..until).filter_map(|input| job.row(input)).collect())
    }

    /// The newest `count` rows, in the order in which they were committed; the last ones of
    /// the result file once all are there, and none once the job has ended.
    pub fn tail(&self, job: JobId, count: u32) -> Option<Vec<Row>> {
        let job = self.jobs.get(&job)?;
        if job.rows_complete() {
            let inputs = job.inputs.len() as u32;
            let last = inputs.saturating_sub(count)..inputs;
            return Some(last.filter_map(|input| job.row(input)).collect());
        }
        let newest = job.rows.newest(count as usize);
        Some(newest.filter_map(|input| job.row(input)).collect())
    }

    /// The bytes that `job` alone reads and that must outlive a deletion of their names: its
    /// inputs, until it has ended, if no other unfinished job has the same list.
    pub fn pinned_blobs(&self, job: JobId) -> impl Iterator<Item = BlobId> {
        let pinning = self.jobs.get(&job).filter(|job| job.completed.is_none());
        let pinning = pinning.filter(|job| self.readers(&job.inputs) == 1);
        let inputs = pinning.into_iter().flat_map(|job| job.inputs.iter());
        inputs.map(|input| input.blob)
    }

    /// How many unfinished jobs have this list.
    fn readers(&self, inputs: &Arc<[Input]>) -> usize {
        let reads = |job: &&Job| Arc::ptr_eq(&job.inputs, inputs);
        self.unfinished().filter(reads).count()
    }
}
