//! Result files: how the rows of a finished job become version 0 of `JOB.csv`.
//!
//! Decides: that the leader writes the file on its own disk, has it copied to the
//! members that the ring names, commits it like any put, and only then ends the job. A
//! new leader starts over; the catalog takes a result file only once. Leaves to
//! others: the rows (`schedule`), copying (`replica`, the driver).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Node;
use crate::store::placement;
use crate::types::{BlobId, Digest, FileName, JobId, REPLICAS, Server, Time, Version};
use crate::wire::peer::{Change, PeerMessage};
use crate::wire::schedule::{Accuracy, JobCommand};
use crate::wire::store::{CatalogCommand, Located, StoreMessage, Target, Upload};

/// After this, the order to copy is given again, to the members that are there then.
const REPEAT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum Stage {
    /// The leader's own disk is at it.
    Writing,
    /// Others copy it from those that have it.
    Copying {
        bytes: u64,
        digest: Digest,
        stored: BTreeSet<Server>,
        order_at: Time,
    },
    /// The log has it.
    Proposed,
}

/// The result files that are being made, by job.
#[derive(Clone, Debug, Default)]
pub struct Results {
    jobs: BTreeMap<JobId, (BlobId, Stage)>,
    /// Jobs whose end is proposed, or is once their answers have been compared with labels.
    ended: BTreeSet<JobId>,
}

impl Results {
    /// When copies are to be ordered again.
    pub fn poll_timeout(&self) -> Option<Time> {
        let order = |(_, stage): &(BlobId, Stage)| match stage {
            Stage::Copying { order_at, .. } => Some(*order_at),
            Stage::Writing | Stage::Proposed => None,
        };
        self.jobs.values().filter_map(order).min()
    }

    /// Whether this is a file that is being made.
    pub fn has(&self, blob: &BlobId) -> bool {
        self.jobs.values().any(|(of, _)| of == blob)
    }

    /// Notes copies of result files; gives back the blobs that are none.
    pub fn handle_stored(&mut self, from: &Server, mut blobs: Vec<BlobId>) -> Vec<BlobId> {
        for (blob, stage) in self.jobs.values_mut() {
            if let Stage::Copying { stored, .. } = stage
                && let Some(at) = blobs.iter().position(|reported| reported == blob)
            {
                blobs.swap_remove(at);
                stored.insert(from.clone());
            }
        }
        blobs
    }

    /// `from` has lost its copies of these blobs; result files are not named yet, so that nobody
    /// else would notice.
    pub fn handle_missing(&mut self, from: &Server, blobs: &[BlobId]) {
        for (blob, stage) in self.jobs.values_mut() {
            if let Stage::Copying { stored, .. } = stage
                && blobs.contains(blob)
            {
                stored.remove(from);
            }
        }
    }
}

impl Node {
    /// Brings every job whose rows are complete one step further.
    pub(super) fn publish_results(&mut self) {
        let complete = self.state.jobs.unfinished().filter(|job| job.is_final());
        for job in complete.map(|job| job.id).collect::<Vec<_>>() {
            let name = FileName::of_job(job);
            let Some(leading) = &mut self.leading else {
                return;
            };
            if self.state.catalog.has_been_put(&name) {
                if leading.results.ended.insert(job) {
                    self.grade(job, &name);
                }
                continue;
            }
            match leading.results.jobs.get(&job).cloned() {
                None => self.write_result(job, name),
                Some((
                    blob,
                    Stage::Copying {
                        bytes,
                        digest,
                        stored,
                        order_at,
                    },
                )) => {
                    let located = Located {
                        name,
                        version: Version(0),
                        blob,
                        bytes,
                        digest,
                        sources: Vec::new(),
                    };
                    self.copy_result(job, located, stored, order_at);
                }
                Some((_, Stage::Writing | Stage::Proposed)) => {}
            }
        }
    }

    /// Has the answers compared with the labels of the data set, where there are some; then the
    /// job is completed.
    fn grade(&mut self, job: JobId, name: &FileName) {
        let dataset = self.state.jobs.job(job).map(|job| job.dataset.as_str());
        let labels = dataset.and_then(|dataset| FileName::of_labels(dataset).ok());
        let newest = |name: &FileName| {
            let record = self.state.catalog.newest(name)?;
            Some(self.located(record))
        };
        match (newest(name), labels.as_ref().and_then(newest)) {
            (Some(result), Some(labels)) => {
                let order = super::io::Output::Grade {
                    job,
                    result,
                    labels,
                };
                self.outputs.push_back(order);
            }
            _ => self.complete_job(job, None),
        }
    }

    /// Proposes the end of a job whose result file is committed.
    pub(super) fn complete_job(&mut self, job: JobId, accuracy: Option<Accuracy>) {
        let at = self.wall_now();
        let completed = JobCommand::Completed { job, at, accuracy };
        // Who leads no more leaves it to the next one.
        if self.leading.is_some() {
            self.propose(None, Change::Job(completed));
        }
    }

    fn write_result(&mut self, job: JobId, name: FileName) {
        let Some(content) = self.state.jobs.job(job) else {
            return;
        };
        let content = Box::new(content.clone());
        let Some(leading) = &mut self.leading else {
            return;
        };
        let blob = leading.uploads.next_blob();
        leading.results.jobs.insert(job, (blob, Stage::Writing));
        let order = super::io::Output::Write {
            blob,
            name,
            job: content,
        };
        self.outputs.push_back(order);
    }

    /// The leader's own copy is written, or its disk failed.
    pub(super) fn handle_result_written(
        &mut self,
        blob: BlobId,
        result: Result<(Digest, u64), String>,
    ) {
        let me = self.me.clone();
        let now = self.now;
        let Some(leading) = &mut self.leading else {
            return;
        };
        let Some((job, (_, stage))) = leading
            .results
            .jobs
            .iter_mut()
            .find(|(_, (of, _))| *of == blob)
        else {
            return;
        };
        let job = *job;
        match result {
            Ok((digest, bytes)) => {
                *stage = Stage::Copying {
                    bytes,
                    digest,
                    stored: BTreeSet::from([me]),
                    order_at: now,
                };
            }
            Err(why) => {
                log::error!(
                    "the result file of job {job} could not be written: {why}; it is tried again"
                );
                leading.results.jobs.remove(&job);
            }
        }
    }

    fn copy_result(
        &mut self,
        job: JobId,
        located: Located,
        stored: BTreeSet<Server>,
        order_at: Time,
    ) {
        let now = self.now;
        let live: Vec<Server> = stored
            .into_iter()
            .filter(|server| self.view.server(server).is_some())
            .collect();
        let upload = Upload {
            name: located.name.clone(),
            blob: located.blob,
            bytes: located.bytes,
            digest: located.digest,
            replicas: live.clone(),
        };
        let Some(leading) = &mut self.leading else {
            return;
        };
        if live.is_empty() {
            leading.results.jobs.remove(&job);
            return;
        }
        let wanted = REPLICAS.min(self.view.members.len());
        if live.len() >= wanted {
            leading
                .results
                .jobs
                .insert(job, (located.blob, Stage::Proposed));
            return self.propose(None, Change::Catalog(CatalogCommand::Put(vec![upload])));
        }
        if order_at > now {
            return;
        }
        if let Some((_, Stage::Copying { order_at, .. })) = leading.results.jobs.get_mut(&job) {
            *order_at = now + REPEAT;
        }
        let term = leading.term;
        let holders = live.iter().filter_map(|server| self.view.server(server));
        let sources: Vec<Target> = holders.map(placement::target).collect();
        let have: BTreeSet<Server> = live.into_iter().collect();
        let lacking = wanted.saturating_sub(have.len());
        for target in placement::targets(located.name.as_str(), &self.view, &have, lacking) {
            let blobs = vec![Located {
                sources: sources.clone(),
                ..located.clone()
            }];
            self.send(
                target.server,
                PeerMessage::Store(StoreMessage::Pull { term, blobs }),
            );
        }
    }
}
