//! Thread `prepare`: brings models and task inputs to the inference thread.
//!
//! Decides: where bytes are read from (this disk first), that an input which cannot
//! be read or decoded gets an error row instead of stopping its task, and that what tasks are
//! likely to ask for next is prepared while nothing else is to be done. Leaves to others:
//! decoding (`models::prepare`), inference (`infer`), and what an error row leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use super::Shared;
use super::ahead::{Ahead, Fetched, Wanted};
use super::copies::Copies;
use super::grade::grade;
use super::infer::Work;
use super::priority::Priority;
use crate::disk::DiskError;
use crate::models::manifest::Manifest;
use crate::models::prepare::prepare_into;
use crate::node::io::{Input, LoadFailure};
use crate::types::{Digest, JobId, Time};
use crate::wire::pull::{BLOBS_IN_REQUEST, PullError, Source, Want, by_source};
use crate::wire::schedule::{AssignedInput, Assignment, ModelFiles, Outcome, TaskTimes};
use crate::wire::store::{Located, Target};

/// Orders that wait: one task and a few models.
pub(super) const ORDERS_MAX: usize = 8;
/// Largest input, in bytes; a larger one gets an error row.
const INPUT_BYTES_MAX: u64 = 64 << 20;
/// Largest file of a model, in bytes.
const MODEL_BYTES_MAX: u64 = 2 << 30;
/// Largest table of results or labels, in bytes.
const TABLE_BYTES_MAX: u64 = 1 << 30;
/// Sources that are tried for one input.
const ATTEMPTS: usize = 4;
/// Inputs that are read ahead at once.
const READ_AHEAD: usize = 16;

/// What the thread does.
pub(super) enum Order {
    /// Read and decode a task's inputs; ordered at that time.
    Run(Assignment, Time),
    /// Compare the result file of a job with labels.
    Grade {
        job: JobId,
        result: Located,
        labels: Located,
    },
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
    pub(super) ahead: Ahead,
}

impl Prepare {
    /// Works until the channel closes. Orders go before what is prepared ahead of them.
    pub(super) fn run(mut self, orders: Receiver<Order>) -> Result<(), String> {
        Priority::Preparing.take();
        loop {
            let order = match self.ahead.is_idle() {
                true => orders.recv().map_err(|_| TryRecvError::Disconnected),
                false => orders.try_recv(),
            };
            let sent = match order {
                Ok(Order::Run(assignment, ordered)) => self.prepare(assignment, ordered),
                Ok(Order::Grade {
                    job,
                    result,
                    labels,
                }) => self.grade(job, [&result, &labels]),
                Ok(Order::Load(files, keep)) => self.load(files, keep),
                Err(TryRecvError::Empty) => {
                    self.look_ahead();
                    true
                }
                Err(TryRecvError::Disconnected) => false,
            };
            if !sent {
                return Ok(());
            }
        }
    }

    /// Hands the task's numbers to the inference thread. False when the process stops.
    pub(super) fn prepare(&mut self, mut assignment: Assignment, ordered: Time) -> bool {
        let id = assignment.id;
        let key = (assignment.model.clone(), assignment.digest);
        let inputs = std::mem::take(&mut assignment.inputs);
        let begun = self.shared.clock.now();
        let ready = self.ahead.take(&key, &inputs);
        let mut times = TaskTimes {
            fetch: ready.fetch,
            decode: ready.decode,
            ..TaskTimes::default()
        };
        let missing = inputs
            .iter()
            .zip(&ready.which)
            .filter(|(_, ready)| !**ready);
        let missing: Vec<&AssignedInput> = missing.map(|(input, _)| input).collect();
        let contents = self.read_inputs(&missing, &assignment.holders);
        let read = self.shared.clock.now();
        times.fetch += read.since(begun).as_nanos() as u64;
        self.ahead.add(&mut assignment);
        let manifest = self.manifests.get(&key).cloned();
        let (mut errors, mut numbers) = (Vec::new(), ready.numbers);
        // Those that were prepared come first in the numbers, then the others.
        let mut indices: Vec<u32> = Vec::with_capacity(inputs.len());
        for (input, ready) in inputs.iter().zip(&ready.which) {
            match (ready, &manifest) {
                (true, Some(_)) => indices.push(input.index),
                (true, None) => errors.push((input.index, not_loaded(&key))),
                (false, _) => {}
            }
        }
        for (input, content) in missing.into_iter().zip(contents) {
            // One that is too large stays so; holders of the others may come back.
            let unread = |why| match input.bytes > INPUT_BYTES_MAX {
                true => Outcome::Error(why),
                false => Outcome::Unread(why),
            };
            let decoded = match &manifest {
                None => Err(not_loaded(&key)),
                Some(manifest) => content.map_err(unread).and_then(|content| {
                    prepare_into(&content, manifest, &mut numbers)
                        .map_err(|error| Outcome::Error(error.to_string()))
                }),
            };
            match decoded {
                Ok(()) => indices.push(input.index),
                Err(outcome) => errors.push((input.index, outcome)),
            }
        }
        times.decode += self.shared.clock.now().since(read).as_nanos() as u64;
        if indices.is_empty() {
            let rows = errors;
            let done = Input::BatchDone { id, rows, times };
            return self.results.send(done).is_ok();
        }
        let batch = Work::Batch {
            id,
            model: key,
            indices,
            numbers,
            errors,
            ordered,
            times,
        };
        self.work.send(batch).is_ok()
    }

    /// Reads some of the inputs that a task is likely to ask for, or decodes one of them.
    pub(super) fn look_ahead(&mut self) {
        let clock = self.shared.clock;
        let begun = clock.now();
        if let Some(fetched) = self.ahead.next_fetched() {
            let Some(manifest) = self.manifests.get(&fetched.wanted.model) else {
                return;
            };
            let content = &fetched.content;
            self.ahead.decode(&fetched, begun, |numbers| {
                // What is wrong with it is told by the task that asks for it.
                prepare_into(content, manifest, numbers).ok()?;
                Some(clock.now().since(begun).as_nanos() as u64)
            });
            return;
        }
        let wanted = self.ahead.next_wanted(begun, READ_AHEAD);
        let wants: Vec<Want> = wanted.iter().map(Want::from).collect();
        let mut contents: Vec<_> = wants.iter().map(|want| self.read_here(want)).collect();
        self.read_elsewhere(&wants, INPUT_BYTES_MAX, 1, &mut contents);
        let each = self.shared.clock.now().since(begun) / wanted.len().max(1) as u32;
        let fetched = wanted
            .into_iter()
            .zip(contents)
            .filter_map(|(wanted, content)| {
                Some(Fetched {
                    wanted,
                    content: content.ok()?,
                    nanos: each.as_nanos() as u64,
                })
            });
        self.ahead.add_fetched(fetched);
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

    /// Tells the core how many answers are right. False when the process stops.
    fn grade(&self, job: JobId, files: [&Located; 2]) -> bool {
        let mut contents = self
            .read(&files.map(Want::from), TABLE_BYTES_MAX)
            .into_iter();
        let mut next = || contents.next().expect("one for each want");
        let graded = next().and_then(|result| grade(&result, &next()?));
        let graded = graded.inspect_err(|why| {
            log::warn!("job {job} is not compared with {}: {why}", files[1].name);
        });
        let accuracy = graded.ok();
        self.results.send(Input::Graded { job, accuracy }).is_ok()
    }

    fn read_model(&self, files: &ModelFiles) -> Result<(Manifest, Vec<u8>), String> {
        let wants = [Want::from(&files.manifest), Want::from(&files.weights)];
        let mut contents = self.read(&wants, MODEL_BYTES_MAX).into_iter();
        let mut next = || contents.next().expect("one for each want");
        let manifest = Manifest::parse(&next()?, files.manifest.name.as_str())
            .map_err(|error| error.to_string())?;
        Ok((manifest, next()?))
    }

    /// The content of each input of a task, checked, or why there is none.
    fn read_inputs(
        &self,
        inputs: &[&AssignedInput],
        holders: &[Target],
    ) -> Vec<Result<Vec<u8>, String>> {
        let want = |input: &&AssignedInput| Want {
            blob: input.blob,
            bytes: input.bytes,
            digest: input.digest,
            sources: Vec::new(),
        };
        let mut wants: Vec<Want> = inputs.iter().map(want).collect();
        let mut contents: Vec<_> = wants
            .iter()
            .map(|want| self.read_short(want, INPUT_BYTES_MAX))
            .collect();
        if contents.iter().any(Result::is_err) {
            for (want, input) in wants.iter_mut().zip(inputs) {
                let source = |place: &u16| holders.get(usize::from(*place)).cloned();
                want.sources = input.sources.iter().filter_map(source).collect();
            }
            self.read_elsewhere(&wants, INPUT_BYTES_MAX, ATTEMPTS, &mut contents);
        }
        contents
    }

    fn read_short(&self, want: &Want, longest: u64) -> Result<Vec<u8>, String> {
        match want.bytes > longest {
            true => Err(format!("{} bytes are too many", want.bytes)),
            false => self.read_here(want),
        }
    }

    /// The files of a model, checked, or why there is one that cannot be read.
    fn read(&self, wants: &[Want], longest: u64) -> Vec<Result<Vec<u8>, String>> {
        let read = |want: &Want| self.read_short(want, longest);
        let mut contents: Vec<_> = wants.iter().map(read).collect();
        self.read_elsewhere(wants, longest, ATTEMPTS, &mut contents);
        contents
    }

    /// Asks up to `attempts` sources for each blob that is not in `contents` yet.
    fn read_elsewhere(
        &self,
        wants: &[Want],
        longest: u64,
        attempts: usize,
        contents: &mut [Result<Vec<u8>, String>],
    ) {
        for attempt in 0..attempts {
            let open = (0..wants.len())
                .filter(|number| contents[*number].is_err() && wants[*number].bytes <= longest);
            for (addr, group) in by_source(wants, open, attempt, Some(&self.shared.me)) {
                for part in group.chunks(BLOBS_IN_REQUEST) {
                    if let Err(error) = read_from(addr, part, wants, contents) {
                        log::warn!("reading inputs from {addr}: {error}");
                        let missing = part.iter().filter(|n| contents[**n].is_err());
                        for number in missing.copied().collect::<Vec<_>>() {
                            contents[number] = Err(format!("no copy could be read: {error}"));
                        }
                    }
                }
            }
        }
    }

    fn read_here(&self, want: &Want) -> Result<Vec<u8>, String> {
        let blobs = &self.copies.blobs;
        match blobs.read_known(want.blob, want.bytes, want.digest) {
            Ok(content) => Ok(content),
            Err(DiskError::NoBlob(_)) => Err("no copy could be read".into()),
            Err(error) => Err(self.copies.report(want.blob, error).to_string()),
        }
    }
}

fn not_loaded(model: &(String, Digest)) -> Outcome {
    Outcome::Error(format!("model {} is not loaded on this node", model.0))
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

impl From<&Wanted> for Want {
    fn from(wanted: &Wanted) -> Want {
        Want {
            blob: wanted.input.blob,
            bytes: wanted.input.bytes,
            digest: wanted.input.digest,
            sources: wanted.sources.clone(),
        }
    }
}
