//! Thread `prepare`: brings models and task inputs to the inference thread.
//!
//! Decides: where bytes are read from (this disk first), and that an input which cannot
//! be read or decoded gets an error row instead of stopping its task. Leaves to others:
//! decoding (`models::prepare`), inference (`infer`), and what an error row leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::Shared;
use super::copies::Copies;
use super::crew::Crew;
use super::infer::Work;
use crate::disk::DiskError;
use crate::models::manifest::Manifest;
use crate::models::prepare::prepare_into;
use crate::node::io::{Input, LoadFailure};
use crate::types::Digest;
use crate::wire::pull::{BLOBS_IN_REQUEST, PullError, Source, Want, by_source};
use crate::wire::schedule::{Assignment, ModelFiles, Outcome};

/// Orders that wait: one task and a few models.
pub(super) const ORDERS_MAX: usize = 8;
/// Largest input, in bytes; a larger one gets an error row.
const INPUT_BYTES_MAX: u64 = 64 << 20;
/// Largest file of a model, in bytes.
const MODEL_BYTES_MAX: u64 = 2 << 30;
/// Sources that are tried for one input.
const ATTEMPTS: usize = 4;

/// What the thread does.
pub(super) enum Order {
    /// Read and decode a task's inputs.
    Run(Assignment),
    /// Fetch a model; those named here stay beside it.
    Load(ModelFiles, BTreeSet<(String, Digest)>),
}

/// The thread's state.
pub(super) struct Prepare {
    pub(super) copies: Copies,
    pub(super) shared: Arc<Shared>,
    pub(super) results: Sender<Input>,
    pub(super) work: Sender<Work>,
    pub(super) manifests: BTreeMap<(String, Digest), Arc<Manifest>>,
}

impl Prepare {
    /// Works until the channel closes.
    pub(super) fn run(mut self, orders: Receiver<Order>) -> Result<(), String> {
        Crew::give_way();
        for order in orders {
            let sent = match order {
                Order::Run(assignment) => self.prepare(assignment),
                Order::Load(files, keep) => self.load(files, keep),
            };
            if !sent {
                break;
            }
        }
        Ok(())
    }

    /// Hands the task's numbers to the inference thread. False when the process stops.
    fn prepare(&self, assignment: Assignment) -> bool {
        let Assignment {
            id,
            model,
            digest,
            inputs,
            ..
        } = assignment;
        let key = (model, digest);
        let manifest = self.manifests.get(&key);
        let wants: Vec<Want> = inputs
            .iter()
            .map(|assigned| Want {
                blob: assigned.input.blob,
                bytes: assigned.input.bytes,
                digest: assigned.input.digest,
                sources: assigned.sources.clone(),
            })
            .collect();
        let contents = self.read(&wants, INPUT_BYTES_MAX);
        let mut errors = Vec::new();
        let mut indices = Vec::new();
        let mut numbers = Vec::new();
        for (assigned, content) in inputs.iter().zip(contents) {
            // One that is too large stays so; holders of the others may come back.
            let unread = |why| match assigned.input.bytes > INPUT_BYTES_MAX {
                true => Outcome::Error(why),
                false => Outcome::Unread(why),
            };
            let not_loaded = || format!("model {} is not loaded on this node", key.0);
            let manifest = manifest.ok_or_else(|| Outcome::Error(not_loaded()));
            let ready = manifest.and_then(|manifest| {
                prepare_into(&content.map_err(unread)?, manifest, &mut numbers)
                    .map_err(|error| Outcome::Error(error.to_string()))
            });
            match ready {
                Ok(()) => indices.push(assigned.index),
                Err(outcome) => errors.push((assigned.index, outcome)),
            }
        }
        if indices.is_empty() {
            let rows = errors;
            return self.results.send(Input::BatchDone { id, rows }).is_ok();
        }
        let batch = Work::Batch {
            id,
            model: key,
            indices,
            numbers,
            errors,
        };
        self.work.send(batch).is_ok()
    }

    /// Hands a model to the inference thread. False when the process stops.
    fn load(&mut self, files: ModelFiles, keep: BTreeSet<(String, Digest)>) -> bool {
        let name = files.name.clone();
        let digest = files.digest;
        match self.read_model(&files) {
            Ok((manifest, weights)) => {
                let manifest = Arc::new(manifest);
                self.manifests.retain(|key, _| keep.contains(key));
                self.manifests
                    .insert((name.clone(), digest), manifest.clone());
                let load = Work::Load {
                    name,
                    digest,
                    manifest,
                    weights,
                    weights_digest: files.weights.digest,
                    keep,
                };
                self.work.send(load).is_ok()
            }
            Err(reason) => {
                let loaded = Input::ModelLoaded {
                    name,
                    digest,
                    result: Err(LoadFailure::Unread(reason)),
                };
                self.results.send(loaded).is_ok()
            }
        }
    }

    fn read_model(&self, files: &ModelFiles) -> Result<(Manifest, Vec<u8>), String> {
        let wants = [Want::from(&files.manifest), Want::from(&files.weights)];
        let mut contents = self.read(&wants, MODEL_BYTES_MAX).into_iter();
        let mut next = || contents.next().expect("one for each want");
        let manifest = Manifest::parse(&next()?, files.manifest.name.as_str())
            .map_err(|error| error.to_string())?;
        Ok((manifest, next()?))
    }

    /// The content of each blob, checked, or why there is none.
    fn read(&self, wants: &[Want], longest: u64) -> Vec<Result<Vec<u8>, String>> {
        let mut contents: Vec<Result<Vec<u8>, String>> = wants
            .iter()
            .map(|want| match want.bytes > longest {
                true => Err(format!("{} bytes are too many", want.bytes)),
                false => self.read_here(want),
            })
            .collect();
        for attempt in 0..ATTEMPTS {
            let open = (0..wants.len())
                .filter(|number| contents[*number].is_err() && wants[*number].bytes <= longest);
            for (addr, group) in by_source(wants, open, attempt, Some(&self.shared.me)) {
                for part in group.chunks(BLOBS_IN_REQUEST) {
                    if let Err(error) = read_from(addr, part, wants, &mut contents) {
                        log::warn!("reading inputs from {addr}: {error}");
                        let missing = part.iter().filter(|n| contents[**n].is_err());
                        for number in missing.copied().collect::<Vec<_>>() {
                            contents[number] = Err(format!("no copy could be read: {error}"));
                        }
                    }
                }
            }
        }
        contents
    }

    fn read_here(&self, want: &Want) -> Result<Vec<u8>, String> {
        match self.copies.blobs.read(want.blob) {
            Ok(content) if Digest::of(&content) == want.digest => Ok(content),
            Ok(_) => Err("the copy here has another content".into()),
            Err(DiskError::NoBlob(_)) => Err("no copy could be read".into()),
            Err(error) => Err(self.copies.report(want.blob, error).to_string()),
        }
    }
}

fn read_from(
    addr: std::net::SocketAddr,
    part: &[usize],
    wants: &[Want],
    contents: &mut [Result<Vec<u8>, String>],
) -> Result<(), PullError> {
    let mut source = Source::open(addr)?;
    let ids: Vec<_> = part.iter().map(|number| wants[*number].blob).collect();
    source.request(&ids)?;
    let mut problem = None;
    for number in part {
        let want = &wants[*number];
        let mut content = Vec::new();
        let received = source.receive(want, |chunk| {
            content.extend_from_slice(chunk);
            Ok(())
        });
        match received {
            Ok(()) => contents[*number] = Ok(content),
            Err(error) if error.goes_on() => problem = Some(error),
            Err(error) => return Err(error),
        }
    }
    problem.map_or(Ok(()), Err)
}
