//! Training ResNet-50 on a folder of photographs for each class, from scratch or from
//! weights that the user has.
//!
//! Decides: the recipe. Small images first and the full size for the last third of the
//! epochs (the early ones learn shapes that small images have too, at a quarter of the
//! work); AdamW, since the gradient of the last layer's 2,048 inputs is so much larger than
//! the others' that momentum alone does not find a common step size; smoothed labels; the
//! running average of the weights is what is kept. Leaves to others: the layers (`models::resnet50`), what
//! changes an image (`augment`), the files of the data set (`photographs`).
//!
//! *Sources*: He et al., "Deep Residual Learning for Image Recognition", 2015, section
//! 3.4; Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1 (zero last scale
//! of a block, no decay on scales and shifts); Szegedy et al., "Rethinking the Inception
//! Architecture", 2015, section 7 (smoothed labels); Touvron et al., "Fixing the
//! train-test resolution discrepancy", 2019 (images are tested larger than learnt).

use std::fs;
use std::path::PathBuf;

use tch::{Device, Kind, Reduction, Tensor};

use super::adam::Adam;
use super::checkpoint::{Checkpoint, NOTE};
use super::loader::{Batch, Epoch};
use super::{
    Claim, Progress, Trained, TrainingError, epoch_rng, learning_rate, shuffled, symmetric, unit,
};
use crate::models::engine::use_threads;
use crate::models::error::ModelError;
use crate::models::folded::channels_last;
use crate::models::manifest::{Architecture, Manifest};
use crate::models::mnist::Split;
use crate::models::photographs::Photographs;
use crate::models::resnet50::{self, ResNet50};
use crate::models::weights::{Weights, to_safetensors};
use crate::types::Rng;

/// Pull of the convolutions' and the last layer's weights towards 0, for each unit of
/// step size.
const WEIGHT_DECAY: f64 = 0.05;
/// Share of the labels' certainty that is spread over all classes.
const SMOOTHING: f64 = 0.1;
/// Share of the running average that one step replaces, once there were steps enough.
const AVERAGE_STEP: f64 = 0.002;
/// Sides of the images, as shares of the full one, each up to that share of the epochs.
const SIDES: [(f64, f64); 3] = [(0.35, 0.5), (0.7, 0.75), (1.0, 1.0)];
/// Sides are multiples of this many pixels.
const SIDE_STEP: u32 = 16;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Folder with a folder of photographs for each class.
    pub data: PathBuf,
    /// Folder of the manifest; the weights are written there.
    pub models: PathBuf,
    /// The model's name; its manifest has the architecture `resnet50`.
    pub model: String,
    /// Weights under torchvision's names to start from; with another number of classes
    /// the last layer starts anew.
    pub from: Option<PathBuf>,
    /// Passes over the training images.
    pub epochs: u32,
    /// Full side of the training images, in pixels.
    pub side: u32,
    /// Images in a step.
    pub batch: usize,
    /// Largest step size.
    pub rate: f64,
    /// Source of all randomness.
    pub seed: u64,
    /// Threads of one operator on the CPU.
    pub threads: usize,
    /// Threads that decode images.
    pub loaders: usize,
    /// Where the network is trained.
    pub device: Device,
    /// Numbers of the convolutions' inputs: `Float`, or `BFloat16` with weights and sums
    /// in `Float`, twice as fast on processors and GPUs that have instructions for it.
    pub precision: Kind,
}

impl Recipe {
    fn manifest_path(&self) -> PathBuf {
        self.models.join(format!("{}.toml", self.model))
    }

    fn checkpoint(&self, images: usize, data: &str) -> Checkpoint {
        let precision = match self.precision {
            Kind::BFloat16 => "bf16",
            _ => "f32",
        };
        let from = match &self.from {
            Some(path) => format!("from {}", path.display()),
            None => "from scratch".into(),
        };
        Checkpoint {
            path: self.models.join(format!("{}.checkpoint", self.model)),
            identity: format!(
                "{} {from}, seed {}, {} epochs, {images} images of {} pixels, batch {}, step size {}, {precision}, {data}",
                self.model, self.seed, self.epochs, self.side, self.batch, self.rate
            ),
        }
    }

    /// Side of the images in an epoch (from 0), in pixels.
    fn side_in(&self, epoch: u32) -> u32 {
        let done = (f64::from(epoch) + 0.5) / f64::from(self.epochs);
        let share = SIDES.iter().find(|(until, _)| done < *until);
        let side = f64::from(self.side) * share.map_or(1.0, |(_, share)| *share);
        ((side / f64::from(SIDE_STEP)).round() as u32).max(2) * SIDE_STEP
    }
}

/// Trains the model on the training images and writes its weights, in 16 bits, beside
/// its manifest (and the digest into the manifest, where that has one). Shows its
/// progress on stderr; `report` gets a line for each epoch.
///
/// A checkpoint after each epoch lets a killed run resume; it goes when the run is done.
///
/// *Errors*: [`TrainingError`].
pub fn train(recipe: &Recipe, mut report: impl FnMut(String)) -> Result<Trained, TrainingError> {
    let claim = Claim::new(recipe.manifest_path())?;
    let (path, manifest) = (claim.path.clone(), claim.manifest.clone());
    if manifest.architecture != Architecture::Resnet50 {
        let wanted = "resnet50";
        return Err(TrainingError::Architecture { path, wanted });
    }
    let photographs = Photographs::read(&recipe.data, Split::Training)?;
    if photographs.classes != manifest.labels {
        return Err(TrainingError::Labels {
            path,
            labels: manifest.labels,
            folders: photographs.classes,
        });
    }
    photographs.check()?;
    // What hours of training would be told of last.
    Photographs::read(&recipe.data, Split::Test)?.check()?;
    use_threads(recipe.threads);
    let data = claim.data(photographs.digest());
    let checkpoint = recipe.checkpoint(photographs.len(), &data);
    let mut run = Run::resume_or_start(recipe, &checkpoint, &manifest)?;
    let (images, start) = (photographs.len(), run.epoch);
    report(format!(
        "{images} training images, after epoch {start} of {}",
        recipe.epochs
    ));
    while run.epoch < recipe.epochs {
        let (loss, accuracy) = run.train_epoch(recipe, &photographs, &manifest)?;
        checkpoint.save(run.epoch, &run.state())?;
        report(format!(
            "epoch {}/{}: {} pixels, loss {loss:.4}, accuracy {:.2} % on changed training images",
            run.epoch,
            recipe.epochs,
            recipe.side_in(run.epoch - 1),
            100.0 * accuracy
        ));
    }
    let note = Some((NOTE, checkpoint.identity.clone()));
    let bytes = to_safetensors(&run.average, Kind::Half, note);
    let trained = claim.publish(&bytes)?;
    checkpoint.remove()?;
    Ok(trained)
}

/// A training run between two epochs.
struct Run {
    /// Epochs done.
    epoch: u32,
    /// All tensors of the network under torchvision's names; those that are learnt
    /// collect gradients.
    tensors: Vec<(String, Tensor)>,
    /// The optimiser's state, one for each tensor (unused for statistics).
    adam: Vec<Adam>,
    /// Running average of `tensors`.
    average: Vec<(String, Tensor)>,
}

/// Whether a tensor is learnt by gradients, not by counting.
fn is_learnt(name: &str) -> bool {
    !name.contains("running_")
}

impl Run {
    /// The run of the checkpoint, else a new one.
    fn resume_or_start(
        recipe: &Recipe,
        checkpoint: &Checkpoint,
        manifest: &Manifest,
    ) -> Result<Run, TrainingError> {
        let shapes = resnet50::tensor_shapes(manifest.labels.len() as i64);
        let place = |tensor: &Tensor| laid_out(&tensor.to_device(recipe.device).copy());
        let Some((epoch, mut state)) = checkpoint.load()? else {
            let start = initial(recipe, &shapes)?;
            let copies = || {
                let named = start.iter();
                named.map(|(name, tensor)| (name.clone(), place(tensor)))
            };
            return Ok(Run {
                epoch: 0,
                adam: copies().map(|(_, tensor)| Adam::new(&tensor)).collect(),
                tensors: learning(copies().collect()),
                average: copies().collect(),
            });
        };
        let mut take = |prefix: &str| -> Result<Vec<(String, Tensor)>, ModelError> {
            let named = shapes.iter();
            named
                .map(|(name, shape)| {
                    let tensor = state.take(&format!("{prefix}{name}"), shape)?;
                    Ok((name.clone(), place(&tensor)))
                })
                .collect()
        };
        let (means, squares) = (take("means.")?, take("squares.")?);
        let adam = means.into_iter().zip(squares);
        Ok(Run {
            epoch,
            adam: adam
                .map(|((_, mean), (_, square))| Adam { mean, square })
                .collect(),
            tensors: learning(take("")?),
            average: take("average.")?,
        })
    }

    /// Everything that a checkpoint holds.
    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::with_capacity(4 * self.tensors.len());
        for (index, (name, tensor)) in self.tensors.iter().enumerate() {
            state.push((name.clone(), tensor.detach()));
            let Adam { mean, square } = &self.adam[index];
            state.push((format!("means.{name}"), mean.shallow_clone()));
            state.push((format!("squares.{name}"), square.shallow_clone()));
            let average = self.average[index].1.shallow_clone();
            state.push((format!("average.{name}"), average));
        }
        state
    }

    /// One pass over the images in a new order. Returns the mean loss and the share of
    /// right answers, both on the changed images as they were seen.
    fn train_epoch(
        &mut self,
        recipe: &Recipe,
        photographs: &Photographs,
        manifest: &Manifest,
    ) -> Result<(f64, f64), TrainingError> {
        let mut rng = epoch_rng(recipe.seed, self.epoch);
        let order = shuffled(photographs.len(), &mut rng);
        let batch = recipe.batch.min(photographs.len());
        let steps = photographs.len() / batch;
        let channels = |values: &[f32]| values.try_into().expect("three channels");
        let epoch = Epoch {
            photographs,
            order: &order,
            batch,
            side: recipe.side_in(self.epoch),
            mean: channels(&manifest.mean),
            std: channels(&manifest.std),
            seed: rng.next_u64(),
        };
        let named = self.tensors.iter();
        let named = named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        // The network shares its tensors with this run.
        let weights = Weights::from_tensors(&recipe.model, named.collect());
        let network = ResNet50::load(weights, recipe.device)?;
        let mut progress = Progress::new(steps, self.epoch + 1, recipe.epochs);
        let mut number = self.epoch as usize * steps;
        epoch.run(recipe.loaders, |batch| -> Result<(), TrainingError> {
            let rate = learning_rate(recipe.rate, number, recipe.epochs as usize * steps);
            let (loss, right) = self.step(recipe, &network, &batch, rate, number);
            progress.step(loss, right, batch.labels.len());
            number += 1;
            Ok(())
        })?;
        self.epoch += 1;
        progress.finish(self.epoch)
    }

    /// One step. Returns the batch's mean loss and its number of right answers, both
    /// before the step.
    fn step(
        &mut self,
        recipe: &Recipe,
        network: &ResNet50,
        batch: &Batch,
        rate: f64,
        number: usize,
    ) -> (f64, i64) {
        let count = batch.labels.len() as i64;
        let side = ((batch.numbers.len() / batch.labels.len() / 3) as f64).sqrt() as i64;
        let images = Tensor::from_slice(&batch.numbers)
            .view([count, side, side, 3])
            .permute([0, 3, 1, 2])
            .to_device(recipe.device)
            .to_kind(recipe.precision);
        let labels = Tensor::from_slice(&batch.labels).to_device(recipe.device);
        let logits = network.forward_training(&images).to_kind(Kind::Float);
        let weight = None::<&Tensor>;
        let loss = logits.cross_entropy_loss(&labels, weight, Reduction::Mean, -100, SMOOTHING);
        let learnt: Vec<usize> = (0..self.tensors.len())
            .filter(|index| is_learnt(&self.tensors[*index].0))
            .collect();
        let leaves: Vec<&Tensor> = learnt.iter().map(|index| &self.tensors[*index].1).collect();
        let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
        tch::no_grad(|| {
            for (index, gradient) in learnt.iter().zip(&gradients) {
                let tensor = &mut self.tensors[*index].1;
                let decay = if tensor.dim() > 1 { WEIGHT_DECAY } else { 0.0 };
                self.adam[*index].step(tensor, gradient, rate, decay, number as i32 + 1);
            }
            self.follow(number);
        });
        let right = logits.argmax(1, false).eq_tensor(&labels);
        let right = right.sum(Kind::Int64).int64_value(&[]);
        (loss.double_value(&[]), right)
    }

    /// Lets the average follow the tensors.
    fn follow(&mut self, number: usize) {
        // Early on it follows faster, so as not to remember the first, random weights.
        let share = AVERAGE_STEP.max(10.0 / (number as f64 + 20.0));
        for ((_, tensor), (_, average)) in self.tensors.iter().zip(&mut self.average) {
            let _ = average.lerp_(&tensor.detach(), share);
        }
    }
}

/// The tensors, those that are learnt collecting gradients from now on.
fn learning(tensors: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    let tensors = tensors.into_iter();
    tensors
        .map(|(name, tensor)| {
            let tensor = tensor.set_requires_grad(is_learnt(&name));
            (name, tensor)
        })
        .collect()
}

/// Convolution weights in the layout that the fast convolutions want; others as they are.
fn laid_out(tensor: &Tensor) -> Tensor {
    match tensor.dim() {
        4 => channels_last(tensor),
        _ => tensor.contiguous(),
    }
}

/// The tensors that a run starts from: those of the recipe's file, or random ones.
fn initial(
    recipe: &Recipe,
    shapes: &[(String, Vec<i64>)],
) -> Result<Vec<(String, Tensor)>, TrainingError> {
    let mut rng = Rng::new(recipe.seed);
    let Some(path) = &recipe.from else {
        let drawn = shapes.iter();
        let drawn = drawn.map(|(name, shape)| (name.clone(), draw(name, shape, &mut rng)));
        return Ok(drawn.collect());
    };
    let bytes = fs::read(path).map_err(|cause| TrainingError::Weights {
        path: path.clone(),
        cause,
    })?;
    let mut weights = Weights::from_safetensors(&path.display().to_string(), &bytes)?;
    let classes = weights.shape("fc.bias").map(|shape| shape.to_vec());
    let mut tensors = Vec::with_capacity(shapes.len());
    for (name, shape) in shapes {
        let other = name.starts_with("fc.") && classes.as_deref() != shapes_of(shapes, "fc.bias");
        let tensor = match other {
            true => {
                weights.discard(name);
                draw(name, shape, &mut rng)
            }
            false => weights.take(name, shape)?,
        };
        tensors.push((name.clone(), tensor));
    }
    weights.finish()?;
    Ok(tensors)
}

fn shapes_of<'a>(shapes: &'a [(String, Vec<i64>)], wanted: &str) -> Option<&'a [i64]> {
    let found = shapes.iter().find(|(name, _)| name == wanted);
    found.map(|(_, shape)| shape.as_slice())
}

/// A random tensor: convolutions as He et al., 2015, "Delving Deep into Rectifiers",
/// equation 14, by their outputs; scales 1, but 0 for the last of a block; shifts 0.
fn draw(name: &str, shape: &[i64], rng: &mut Rng) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    if shape.len() == 1 {
        let ones = name.ends_with("running_var")
            || (name.ends_with(".weight") && !name.ends_with("bn3.weight"));
        return Tensor::full(shape, if ones { 1.0 } else { 0.0 }, options);
    }
    let count: i64 = shape.iter().product();
    let numbers: Vec<f32> = if shape.len() == 4 {
        let deviation = (2.0 / (shape[0] * shape[2] * shape[3]) as f32).sqrt();
        (0..count).map(|_| deviation * normal(rng)).collect()
    } else {
        let bound = 1.0 / (shape[1] as f32).sqrt();
        (0..count).map(|_| bound * symmetric(rng)).collect()
    };
    Tensor::from_slice(&numbers).view(shape)
}

/// A number of mean 0 and deviation 1 (Box and Muller, 1958).
fn normal(rng: &mut Rng) -> f32 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    radius * (std::f32::consts::TAU * unit(rng)).cos()
}

#[cfg(test)]
#[path = "resnet50_tests.rs"]
mod tests;
