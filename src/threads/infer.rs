//! Thread `infer`: the single owner of the networks.
//!
//! Decides: one thing at a time, so that a node runs one task by construction. Leaves to
//! others: reading and decoding (`prepare`), and the networks themselves (`models`),
//! which come in as a [`Classifier`] so that the threads can be tested without libtorch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::Shared;
use super::counters::count;
use super::priority::Priority;
use crate::models::manifest::Manifest;
use crate::models::route::Route;
use crate::node::io::{Input, LoadFailure};
use crate::types::{Digest, Time};
use crate::wire::schedule::{AssignmentId, Outcome, TaskTimes};

/// A label number and its confidence for each input, or none.
pub type Answers = Vec<Option<(u32, f32)>>;

/// Loads networks and runs them. Used by one thread.
pub trait Classifier: Send {
    /// A loaded and warm network, or why there is none.
    fn load(
        &mut self,
        manifest: &Manifest,
        weights: &[u8],
        digest: Digest,
    ) -> Result<Box<dyn Network>, String>;
}

/// A loaded network. Used by the thread that loaded it.
pub trait Network {
    /// Label number and confidence of each of the `count` inputs in `numbers`; none for
    /// an input whose answer is not finite.
    ///
    /// *Shape*: `[count, channels, height, width]` f32.
    fn classify(&mut self, numbers: &[f32], count: usize) -> Result<Answers, String>;

    /// The way through the network that the last batch took.
    fn route(&self) -> Route;
}

/// What the thread does.
pub(super) enum Work {
    /// Classify the inputs of a task.
    Batch {
        /// The task.
        id: AssignmentId,
        /// Name of the network and its digest.
        model: (String, Digest),
        /// Input numbers, in the order of the numbers.
        indices: Vec<u32>,
        /// The inputs, one after the other.
        numbers: Vec<f32>,
        /// Rows of the inputs that could not be prepared.
        errors: Vec<(u32, Outcome)>,
        /// When the task came.
        ordered: Time,
        /// What is known of its times so far.
        times: TaskTimes,
    },
    /// Load a network.
    Load {
        /// Its name.
        name: String,
        /// Its digest: of manifest and weights.
        digest: Digest,
        /// Its manifest.
        manifest: Arc<Manifest>,
        /// Its weights.
        weights: Vec<u8>,
        /// Digest of the weights alone.
        weights_digest: Digest,
        /// Names and digests of the networks that stay beside it.
        keep: BTreeSet<(String, Digest)>,
    },
}

struct Loaded {
    network: Box<dyn Network>,
    manifest: Arc<Manifest>,
}

/// Works until the channel closes.
pub(super) fn run(
    mut classifier: Box<dyn Classifier>,
    work: Receiver<Work>,
    results: Sender<Input>,
    shared: &Shared,
) -> Result<(), String> {
    Priority::Computing.take();
    let mut networks: BTreeMap<(String, Digest), Loaded> = BTreeMap::new();
    for item in work {
        let result = match item {
            Work::Load {
                name,
                digest,
                manifest,
                weights,
                weights_digest,
                keep,
            } => {
                // First, so that their memory is there for the new one.
                networks.retain(|key, _| keep.contains(key));
                let result = classifier.load(&manifest, &weights, weights_digest);
                let result = result.map(|network| {
                    networks.insert((name.clone(), digest), Loaded { network, manifest });
                });
                let result = result.map_err(LoadFailure::Refused);
                Input::ModelLoaded {
                    name,
                    digest,
                    result,
                }
            }
            Work::Batch {
                id,
                model,
                indices,
                numbers,
                errors,
                ordered,
                mut times,
            } => {
                let begun = shared.clock.now();
                shared.busy.begin();
                let answers = match networks.get_mut(&model) {
                    Some(loaded) => {
                        let answers = classify(loaded, &numbers, indices.len());
                        count_route(shared, loaded.network.route());
                        answers
                    }
                    None => Err(format!("model {} is not loaded on this node", model.0)),
                };
                let ended = shared.clock.now();
                shared.busy.end(ended);
                times.waited = begun.since(ordered).as_nanos() as u64;
                times.inference = ended.since(begun).as_nanos() as u64;
                let rows = rows(&indices, answers, errors);
                Input::BatchDone { id, rows, times }
            }
        };
        if results.send(result).is_err() {
            break;
        }
    }
    Ok(())
}

/// For `stats`.
fn count_route(shared: &Shared, route: Route) {
    let counters = &shared.counters;
    count(match route {
        Route::Int8 => &counters.batches_int8,
        Route::Fused => &counters.batches_fused,
        Route::Folded => &counters.batches_folded,
        Route::Plain => &counters.batches_plain,
        Route::Script => &counters.batches_script,
    });
}

fn classify(loaded: &mut Loaded, numbers: &[f32], count: usize) -> Result<Vec<Outcome>, String> {
    let answers = loaded.network.classify(numbers, count)?;
    if answers.len() != count {
        return Err(format!("{} answers to {count} inputs", answers.len()));
    }
    let labels = &loaded.manifest.labels;
    let name = &loaded.manifest.name;
    let outcome = |answer: Option<(u32, f32)>| match answer {
        None => Outcome::Error(format!("model {name} gave no finite answer to this image")),
        Some((label, confidence)) => match labels.get(label as usize) {
            Some(label) => Outcome::Label {
                label: label.clone(),
                confidence,
            },
            None => Outcome::Error(format!("the network answered {label}, which has no label")),
        },
    };
    Ok(answers.into_iter().map(outcome).collect())
}

/// One row for each input, in the order of the inputs' numbers.
fn rows(
    indices: &[u32],
    answers: Result<Vec<Outcome>, String>,
    errors: Vec<(u32, Outcome)>,
) -> Vec<(u32, Outcome)> {
    let mut rows = errors;
    match answers {
        Ok(answers) => rows.extend(indices.iter().copied().zip(answers)),
        Err(error) => {
            let row = |index: &u32| (*index, Outcome::Error(error.clone()));
            rows.extend(indices.iter().map(row));
        }
    }
    rows.sort_by_key(|(index, _)| *index);
    rows
}

/// The networks of `models`, on libtorch.
#[cfg(feature = "torch")]
pub mod torch {
    use super::{Answers, Classifier, Network};
    use crate::models::engine::{self, Engine};
    use crate::models::manifest::{Architecture, Manifest};
    use crate::models::route::Route;
    use crate::models::trial;
    use crate::types::Digest;

    /// Loads [`Engine`]s on one device.
    #[derive(Debug)]
    pub struct Torch {
        device: tch::Device,
        threads: usize,
    }

    impl Torch {
        /// On the device that `--device` names, with so many threads for one operator.
        pub fn new(device: &str, threads: usize) -> Result<Torch, String> {
            let device = engine::device(device).map_err(|error| error.to_string())?;
            Ok(Torch { device, threads })
        }
    }

    impl Classifier for Torch {
        fn load(
            &mut self,
            manifest: &Manifest,
            weights: &[u8],
            digest: Digest,
        ) -> Result<Box<dyn Network>, String> {
            if manifest.architecture == Architecture::Torchscript {
                trial::run(manifest, weights, self.device).map_err(|error| error.to_string())?;
            }
            let engine = Engine::load(manifest, weights, digest, self.device, self.threads)
                .map_err(|error| error.to_string())?;
            Ok(Box::new(engine))
        }
    }

    impl Network for Engine {
        fn classify(&mut self, numbers: &[f32], count: usize) -> Result<Answers, String> {
            let answers = Engine::classify(self, numbers, count).map_err(|e| e.to_string())?;
            let pair = |answer: engine::Prediction| (answer.label, answer.confidence);
            Ok(answers.into_iter().map(|answer| answer.map(pair)).collect())
        }

        fn route(&self) -> Route {
            Engine::route(self)
        }
    }
}
