//! The replicated state: what the log, applied in order, makes of an empty cluster.
//!
//! Decides: how one command changes catalog and jobs together, and that a repeated
//! request is not carried out twice. The same on every member. Leaves to others: what
//! may be proposed (the leader's parts), and how entries get here (`consensus`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::consensus::{Entry, Payload};
use crate::planted::{self, Bug};
use crate::schedule::jobs::{INPUTS_MAX, Jobs, MODELS_MAX, UNFINISHED_INPUTS_MAX, UNFINISHED_MAX};
use crate::store::catalog::{Applied, Catalog, VersionRecord};
use crate::types::{BlobId, FileName, Index, JobId, RequestId, Term, Version};
use crate::wire::WireError;
use crate::wire::client::{JobStatus, Refusal};
use crate::wire::peer::{Change, Command};
use crate::wire::schedule::{Input, JobCommand, Model};
use crate::wire::store::CatalogCommand;

/// Most answers kept for repeated requests, counted in files; the oldest go first. A
/// client repeats a request for some tens of seconds, not for this many others.
const ANSWERS_MAX: usize = 100_000;

/// What an applied command came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Of a put: each file's bytes and version.
    Put(Vec<(FileName, BlobId, Version)>),
    /// Of a delete: how many versions there were.
    Deleted(u64),
    /// Of a submission.
    Submitted(JobId),
    /// Of what a user did with a job: its status.
    Controlled(JobStatus),
    /// Of a change that has nothing to tell.
    Done,
    /// Not carried out.
    Refused(Refusal),
}

impl Outcome {
    fn weight(&self) -> usize {
        if let Outcome::Put(files) = self {
            files.len().max(1)
        } else {
            1
        }
    }
}

/// Catalog, jobs and the answers to repeated requests.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Files.
    pub catalog: Catalog,
    /// Models and jobs.
    pub jobs: Jobs,
    /// Position of the last applied entry.
    pub applied: Index,
    /// Term of the last applied entry.
    pub term: Term,
    /// Reign that began without most of the voters (`rebuild`), the last one.
    pub founded: Term,
    answers: BTreeMap<RequestId, (Index, Outcome)>,
    order: VecDeque<RequestId>,
    weight: usize,
}

impl State {
    /// As it stands in a snapshot.
    pub fn encode(&self) -> Arc<[u8]> {
        crate::wire::encode(self).into()
    }

    /// The state in a snapshot.
    pub fn decode(bytes: &[u8]) -> Result<State, WireError> {
        crate::wire::decode_large(bytes)
    }

    /// Applies the next entry; the outcome where it was a command, with the client's request.
    pub fn apply(&mut self, entry: &Entry) -> Option<(Option<RequestId>, Outcome)> {
        self.applied = entry.index;
        self.term = entry.term;
        let Payload::Command(bytes) = &entry.payload else {
            return None;
        };
        // Only members write to the log, all of this version; what they cannot read they
        // all skip alike.
        let command: Command = match crate::wire::decode(bytes) {
            Ok(command) => command,
            Err(error) => {
                log::error!(
                    "log entry {} cannot be read and is skipped: {error}",
                    entry.index.0
                );
                return None;
            }
        };
        if let Some((_, outcome)) = command.request.and_then(|id| self.answer(&id)) {
            return Some((command.request, outcome.clone()));
        }
        let outcome = match command.change {
            Change::Catalog(change) => self.apply_catalog(&change),
            Change::Job(change) => self.apply_job(change),
        };
        if let Some(id) = command.request {
            self.remember(id, entry.index, outcome.clone());
        }
        Some((command.request, outcome))
    }

    /// The outcome of an earlier request and the entry that carried it out.
    pub fn answer(&self, id: &RequestId) -> Option<&(Index, Outcome)> {
        let forgotten = planted::is(Bug::RequestTwice);
        self.answers.get(id).filter(|_| !forgotten)
    }

    fn remember(&mut self, id: RequestId, index: Index, outcome: Outcome) {
        self.weight += outcome.weight();
        self.order.push_back(id);
        self.answers.insert(id, (index, outcome));
        while self.weight > ANSWERS_MAX && self.order.len() > 1 {
            if let Some((_, outcome)) = self
                .order
                .pop_front()
                .and_then(|id| self.answers.remove(&id))
            {
                self.weight -= outcome.weight();
            }
        }
    }

    fn apply_catalog(&mut self, change: &CatalogCommand) -> Outcome {
        let applied = self.catalog.apply(change);
        match (change, applied) {
            (CatalogCommand::Put(uploads), Applied::Put(versions)) => {
                let files = uploads.iter().zip(versions);
                Outcome::Put(
                    files
                        .map(|(upload, version)| (upload.name.clone(), upload.blob, version))
                        .collect(),
                )
            }
            (CatalogCommand::Adopt(files), _) => {
                // The files of lost jobs keep their names.
                files
                    .iter()
                    .filter_map(|file| file.name.job())
                    .for_each(|job| {
                        self.jobs.skip(job);
                    });
                Outcome::Done
            }
            (CatalogCommand::Founded, _) => {
                self.founded = self.term;
                Outcome::Done
            }
            (_, Applied::Deleted(0)) => match change {
                CatalogCommand::Delete(name) => Outcome::Refused(Refusal::NotFound(name.clone())),
                _ => Outcome::Done,
            },
            (_, Applied::Deleted(versions)) => Outcome::Deleted(versions),
            _ => Outcome::Done,
        }
    }

    fn apply_job(&mut self, change: JobCommand) -> Outcome {
        match change {
            JobCommand::Publish(model) => self.publish(model),
            JobCommand::Submit {
                model,
                dataset,
                batch,
                weight,
                at,
                unloadable,
            } => {
                let Some(published) = self
                    .jobs
                    .model(&model)
                    .map(|published| published.model.clone())
                else {
                    return Outcome::Refused(self.unknown_model(&model));
                };
                if let Some(why) = unloadable {
                    return Outcome::Refused(Refusal::ModelNotLoaded(model, why));
                }
                if !self.jobs.has_room() {
                    return Outcome::Refused(too_many_jobs());
                }
                let blobs = match self.files_of(&dataset) {
                    Ok(blobs) => blobs,
                    Err(refusal) => return Outcome::Refused(refusal),
                };
                if !self.jobs.has_room_for(blobs.len() as u64) {
                    return Outcome::Refused(too_many_inputs(blobs.len()));
                }
                // Whoever brings a list pins it, and who reads it last gives it up.
                let inputs = match self.jobs.list_of(&blobs) {
                    Some(list) => list,
                    None => self.catalog.pin(&blobs, input).into(),
                };
                let jobs = &mut self.jobs;
                Outcome::Submitted(jobs.submit(&published, &dataset, batch, weight, at, inputs))
            }
            JobCommand::Finished { tasks, at } => {
                for task in &tasks {
                    self.jobs.finish(task, at);
                }
                Outcome::Done
            }
            JobCommand::Control { job, control } => match self.jobs.control(job, control) {
                Ok(status) => Outcome::Controlled(status),
                Err(refusal) => Outcome::Refused(refusal),
            },
            JobCommand::Completed { job, at, accuracy } => {
                let blobs: Vec<BlobId> = self.jobs.pinned_blobs(job).collect();
                let models = self.jobs.model_blobs();
                if self.jobs.complete(job, at, accuracy) {
                    self.catalog.unpin(&blobs);
                    self.pin_models(&models);
                }
                Outcome::Done
            }
        }
    }

    fn publish(&mut self, model: Model) -> Outcome {
        let files = [&model.manifest, &model.weights];
        let gone = |(_, blob): &&&(FileName, BlobId)| self.catalog.record(blob).is_none();
        if let Some((name, _)) = files.iter().find(gone) {
            return Outcome::Refused(Refusal::NotFound(name.clone()));
        }
        let before = self.jobs.model_blobs();
        if self.jobs.publish(model).is_none() {
            let why = format!("{MODELS_MAX} models are published, which is the limit");
            return Outcome::Refused(Refusal::BadArgument(why));
        }
        self.pin_models(&before);
        Outcome::Done
    }

    /// Pins the networks' bytes that may be loaded now and not `before`, and gives up the others:
    /// neither a deletion nor a newer version takes a network from those that start again.
    fn pin_models(&mut self, before: &BTreeSet<BlobId>) {
        let now = self.jobs.model_blobs();
        let new: Vec<BlobId> = now.difference(before).copied().collect();
        self.catalog.pin(&new, |_| ());
        let gone: Vec<BlobId> = before.difference(&now).copied().collect();
        self.catalog.unpin(&gone);
    }

    /// The refusal for a model that is not published.
    pub fn unknown_model(&self, model: &str) -> Refusal {
        let known = self
            .jobs
            .models()
            .map(|published| published.model.name.clone())
            .collect();
        Refusal::UnknownModel {
            model: model.into(),
            known,
        }
    }

    /// The bytes of the files that `dataset` means now, in natural order of their names.
    fn files_of(&self, dataset: &str) -> Result<Vec<BlobId>, Refusal> {
        let found = self.catalog.matching(dataset);
        if found.is_empty() {
            return Err(Refusal::EmptyDataset(dataset.into()));
        }
        if found.len() > INPUTS_MAX {
            return Err(Refusal::DatasetTooLarge(
                dataset.into(),
                found.len() as u64,
                INPUTS_MAX as u64,
            ));
        }
        Ok(found)
    }
}

fn input(record: &VersionRecord) -> Input {
    Input {
        name: record.name.clone(),
        blob: record.blob,
        bytes: record.bytes,
        digest: record.digest,
    }
}

/// The refusal where no further job may be started.
fn too_many_jobs() -> Refusal {
    Refusal::BadArgument(format!(
        "{UNFINISHED_MAX} jobs have not ended yet, which is the limit: wait for one"
    ))
}

/// The refusal where a job of `count` inputs is too much beside those that have not ended.
fn too_many_inputs(count: usize) -> Refusal {
    Refusal::BadArgument(format!(
        "with these {count} inputs the jobs that have not ended would have more than \
         {UNFINISHED_INPUTS_MAX}, which is the limit: wait for one to end"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Digest, WallTime};
    use crate::wire::schedule::JobControl;
    use crate::wire::store::Upload;

    const FILES: u64 = 3;

    fn blob(counter: u64) -> BlobId {
        let term = Term(1);
        BlobId { term, counter }
    }

    /// A state with a published network and some files.
    fn stocked() -> State {
        let mut state = State::default();
        let file = |name: &str| FileName::new(name).expect("a name");
        state.jobs.publish(Model {
            name: "m".into(),
            manifest: (file("m.toml"), blob(100)),
            weights: (file("m.safetensors"), blob(101)),
            digest: Digest::of(b"m"),
        });
        let upload = |counter: u64| Upload {
            name: file(&format!("x{counter}.png")),
            blob: blob(counter),
            bytes: 1,
            digest: Digest::of(b"x"),
            replicas: Vec::new(),
        };
        let uploads = (0..FILES).map(upload).collect();
        state.apply_catalog(&CatalogCommand::Put(uploads));
        state
    }

    fn submit(state: &mut State) -> JobId {
        let outcome = state.apply_job(JobCommand::Submit {
            model: "m".into(),
            dataset: "x.png".into(),
            batch: 1,
            weight: 1,
            at: WallTime(0),
            unloadable: None,
        });
        match outcome {
            Outcome::Submitted(job) => job,
            other => panic!("{other:?}"),
        }
    }

    fn end(state: &mut State, job: JobId) {
        let control = JobControl::Cancel;
        state.apply_job(JobCommand::Control { job, control });
        let (at, accuracy) = (WallTime(0), None);
        state.apply_job(JobCommand::Completed { job, at, accuracy });
    }

    #[test]
    fn deleted_files_stay_known_until_the_last_job_over_them_has_ended() {
        let mut state = stocked();
        let jobs = [(); 3].map(|()| submit(&mut state));
        for counter in 0..FILES {
            let name = FileName::new(&format!("x{counter}.png")).expect("a name");
            state.apply_catalog(&CatalogCommand::Delete(name));
        }
        let known = |state: &State| state.catalog.records().count() as u64;
        // In another order than they came, and through a snapshot.
        end(&mut state, jobs[1]);
        assert_eq!(known(&state), FILES);
        let mut state = State::decode(&state.encode()).expect("what was encoded");
        end(&mut state, jobs[0]);
        assert_eq!(known(&state), FILES);
        end(&mut state, jobs[2]);
        assert_eq!(known(&state), 0);
    }

    #[test]
    fn a_network_keeps_its_files_for_as_long_as_it_may_be_loaded() {
        let mut state = stocked();
        state.apply_catalog(&CatalogCommand::Keep(Some(1)));
        let file = |name: &str| FileName::new(name).expect("a name");
        // One more version of each of its files, and a publication.
        let publish = |state: &mut State, first: u64| {
            let files = [
                (file("m.toml"), blob(first)),
                (file("m.pt"), blob(first + 1)),
            ];
            let upload = |(name, blob): &(FileName, BlobId)| Upload {
                name: name.clone(),
                blob: *blob,
                bytes: 1,
                digest: Digest::of(b"x"),
                replicas: Vec::new(),
            };
            let uploads = files.iter().map(upload).collect();
            state.apply_catalog(&CatalogCommand::Put(uploads));
            let [manifest, weights] = files;
            state.apply_job(JobCommand::Publish(Model {
                name: "m".into(),
                manifest,
                weights,
                digest: Digest::of(&first.to_le_bytes()),
            }))
        };
        let is_known = |state: &State, first: u64| {
            let records = [first, first + 1].map(|counter| state.catalog.record(&blob(counter)));
            records.iter().all(|record| record.is_some())
        };
        assert!(matches!(publish(&mut state, 10), Outcome::Done));
        let old = state.jobs.model("m").map(|it| it.model.clone());
        let job = submit(&mut state);
        assert!(matches!(publish(&mut state, 20), Outcome::Done));
        // It can take its place again, though `keep` leaves one version.
        state.apply_job(JobCommand::Publish(old.expect("published")));
        assert!(is_known(&state, 10) && is_known(&state, 20));
        for first in [30, 40] {
            publish(&mut state, first);
        }
        assert!(is_known(&state, 10), "a job needs it");
        assert!(!is_known(&state, 20));
        let mut state = State::decode(&state.encode()).expect("what was encoded");
        end(&mut state, job);
        assert!(!is_known(&state, 10));
        assert!(is_known(&state, 30) && is_known(&state, 40));
        let gone = Model {
            name: "m".into(),
            manifest: (file("m.toml"), blob(20)),
            weights: (file("m.pt"), blob(21)),
            digest: Digest::of(b"gone"),
        };
        let refused = state.apply_job(JobCommand::Publish(gone));
        assert!(matches!(refused, Outcome::Refused(Refusal::NotFound(_))));
    }

    #[test]
    fn who_comes_after_the_last_job_pins_the_files_anew() {
        let mut state = stocked();
        for _ in 0..2 {
            let job = submit(&mut state);
            assert_eq!(state.catalog.record(&blob(0)).map(|it| it.pins), Some(1));
            end(&mut state, job);
            assert_eq!(state.catalog.record(&blob(0)).map(|it| it.pins), Some(0));
        }
    }
}
