//! Training LeNet on MNIST.
//!
//! Decides: initial weights, augmentation and optimiser. A killed run that resumes from
//! its checkpoint ends with the very weights of one that was not. Leaves to others: the
//! layers (`models::lenet`), the files of the data set (`mnist`).

use std::path::PathBuf;

use tch::{Kind, Reduction, Tensor};

use super::adam::Adam;
use super::checkpoint::{Checkpoint, NOTE};
use super::{
    Claim, Progress, Trained, TrainingError, epoch_rng, learning_rate, shuffled, symmetric,
};
use crate::models::engine::use_threads;
use crate::models::error::ModelError;
use crate::models::lenet::{LeNet, TENSORS};
use crate::models::manifest::Manifest;
use crate::models::mnist::{self, Digits, Split};
use crate::models::weights::to_safetensors;
use crate::types::Rng;

/// Images in one step.
const BATCH: usize = 128;
/// Largest step size.
const LEARNING_RATE: f64 = 3e-3;
/// Pull of the weights (not the biases) towards 0, for each unit of step size.
const WEIGHT_DECAY: f64 = 1e-2;
/// Largest rotation, in degrees.
const ROTATION: f32 = 10.0;
/// Largest change of size, as a share.
const SCALING: f32 = 0.1;
/// Largest slant, as a share.
const SHEAR: f32 = 0.1;
/// Largest shift, in pixels.
const SHIFT: f32 = 2.0;

/// What a run is made of. The same values give the same weights on the same machine.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Folder of MNIST's files.
    pub data: PathBuf,
    /// Folder of `lenet.toml`; the weights are written there.
    pub models: PathBuf,
    /// Passes over the training images.
    pub epochs: u32,
    /// Source of all randomness.
    pub seed: u64,
    /// Threads of one operator. Another number sums in another order, so the weights
    /// then differ in the last digits.
    pub threads: usize,
}

impl Recipe {
    /// Where an unfinished run of so many images is kept; `data`: see [`Claim::data`].
    fn checkpoint(&self, images: usize, data: &str) -> Checkpoint {
        Checkpoint {
            path: self.models.join("lenet.checkpoint"),
            identity: format!(
                "lenet, seed {}, {} epochs, {images} images, {data}",
                self.seed, self.epochs
            ),
        }
    }
}

/// Trains LeNet on the training images and writes `lenet.safetensors` beside its manifest
/// (and the digest in the manifest, where that has one). Shows its progress on stderr;
/// `report` gets a line for each epoch.
///
/// A checkpoint after each epoch lets a killed run resume; it goes when the run is done.
///
/// *Errors*: [`TrainingError`].
pub fn train(recipe: &Recipe, mut report: impl FnMut(String)) -> Result<Trained, TrainingError> {
    let claim = Claim::new(recipe.models.join("lenet.toml"))?;
    let training = mnist::read(&recipe.data, Split::Training)?;
    use_threads(recipe.threads);
    let data = claim.data(training.digest());
    let checkpoint = recipe.checkpoint(training.len(), &data);
    let mut run = Run::resume_or_start(recipe.seed, &checkpoint)?;
    if run.epoch > 0 {
        report(format!(
            "resumed after epoch {} of {}",
            run.epoch, recipe.epochs
        ));
    }
    while run.epoch < recipe.epochs {
        let (loss, accuracy) = run.train_epoch(recipe, &training, &claim.manifest)?;
        checkpoint.save(run.epoch, &run.state())?;
        let (epoch, epochs) = (run.epoch, recipe.epochs);
        report(format!(
            "epoch {epoch}/{epochs}: loss {loss:.4}, accuracy {:.2} % on augmented training images",
            100.0 * accuracy
        ));
    }
    let note = Some((NOTE, checkpoint.identity.clone()));
    let bytes = to_safetensors(&run.named(""), Kind::Float, note);
    let trained = claim.publish(&bytes)?;
    checkpoint.remove()?;
    Ok(trained)
}

/// A training run between two epochs.
struct Run {
    /// Epochs done.
    epoch: u32,
    /// The weights, in the order of [`TENSORS`].
    parameters: Vec<Tensor>,
    /// The optimiser's state, one for each tensor.
    adam: Vec<Adam>,
}

impl Run {
    /// The run of the checkpoint, else a new one.
    fn resume_or_start(seed: u64, checkpoint: &Checkpoint) -> Result<Run, TrainingError> {
        let Some((epoch, mut weights)) = checkpoint.load()? else {
            return Ok(Run::start(seed));
        };
        let mut take = |prefix: &str| -> Result<Vec<Tensor>, ModelError> {
            let tensors = TENSORS.iter();
            tensors
                .map(|(name, shape)| weights.take(&format!("{prefix}{name}"), shape))
                .collect()
        };
        let adam = take("means.")?.into_iter().zip(take("squares.")?);
        Ok(Run {
            epoch,
            adam: adam.map(|(mean, square)| Adam { mean, square }).collect(),
            parameters: take("")?,
        })
    }

    /// He's initialisation: uniform, variance 2 / inputs; biases 0.
    fn start(seed: u64) -> Run {
        let mut rng = Rng::new(seed);
        let parameters = TENSORS.iter().map(|(_, shape)| {
            let count: i64 = shape.iter().product();
            let inputs: i64 = shape[1..].iter().product();
            let bound = if shape.len() > 1 {
                (6.0 / inputs as f32).sqrt()
            } else {
                0.0
            };
            let numbers: Vec<f32> = (0..count).map(|_| bound * symmetric(&mut rng)).collect();
            Tensor::from_slice(&numbers).view(*shape)
        });
        let parameters: Vec<Tensor> = parameters.collect();
        Run {
            epoch: 0,
            adam: parameters.iter().map(Adam::new).collect(),
            parameters,
        }
    }

    /// Everything that a checkpoint holds.
    fn state(&self) -> Vec<(String, Tensor)> {
        let mut tensors = self.named("");
        for ((name, _), adam) in TENSORS.iter().zip(&self.adam) {
            tensors.push((format!("means.{name}"), adam.mean.shallow_clone()));
            tensors.push((format!("squares.{name}"), adam.square.shallow_clone()));
        }
        tensors
    }

    /// The weights under their names, each with `prefix` before it.
    fn named(&self, prefix: &str) -> Vec<(String, Tensor)> {
        let named = TENSORS.iter().zip(&self.parameters);
        named
            .map(|((name, _), tensor)| (format!("{prefix}{name}"), tensor.shallow_clone()))
            .collect()
    }

    /// One pass over the images in a new order. Returns the mean loss and the share of
    /// right answers, both on the augmented images as they were seen.
    fn train_epoch(
        &mut self,
        recipe: &Recipe,
        digits: &Digits,
        manifest: &Manifest,
    ) -> Result<(f64, f64), TrainingError> {
        let mut rng = epoch_rng(recipe.seed, self.epoch);
        let order = shuffled(digits.len(), &mut rng);
        let steps = digits.len().div_ceil(BATCH);
        let total = steps * recipe.epochs as usize;
        let mut progress = Progress::new(steps, self.epoch + 1, recipe.epochs);
        for (index, chunk) in order.chunks(BATCH).enumerate() {
            let (images, labels) = batch(digits, chunk);
            let images = augment(&images, &mut rng);
            let images = (images - f64::from(manifest.mean[0])) / f64::from(manifest.std[0]);
            let step = self.epoch as usize * steps + index;
            let (loss, right) = self.step(&images, &labels, step, total);
            progress.step(loss, right, chunk.len());
        }
        self.epoch += 1;
        progress.finish(self.epoch)
    }

    /// One step of AdamW (Loshchilov and Hutter, 2017, algorithm 2). Returns the batch's
    /// mean loss and its number of right answers, both before the step.
    fn step(&mut self, images: &Tensor, labels: &Tensor, step: usize, total: usize) -> (f64, i64) {
        let leaves: Vec<Tensor> = self
            .parameters
            .iter()
            .map(|tensor| tensor.detach().set_requires_grad(true))
            .collect();
        let network = leaves.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        let network = LeNet::of(network.try_into().expect("as many as TENSORS"));
        let logits = network.forward(images);
        let loss = logits.cross_entropy_loss(labels, None::<&Tensor>, Reduction::Mean, -100, 0.0);
        let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
        let rate = learning_rate(LEARNING_RATE, step, total);
        tch::no_grad(|| {
            for (index, gradient) in gradients.iter().enumerate() {
                let tensor = &mut self.parameters[index];
                let decay = if tensor.dim() > 1 { WEIGHT_DECAY } else { 0.0 };
                self.adam[index].step(tensor, gradient, rate, decay, step as i32 + 1);
            }
        });
        let right = logits.argmax(1, false).eq_tensor(labels).sum(Kind::Int64);
        (loss.double_value(&[]), right.int64_value(&[]))
    }
}

/// The images `[n, 1, 28, 28]` in 0 to 1 and the labels `[n]` of these digits.
fn batch(digits: &Digits, indices: &[usize]) -> (Tensor, Tensor) {
    let side = mnist::SIDE as i64;
    let mut pixels: Vec<u8> = Vec::with_capacity(indices.len() * mnist::IMAGE_BYTES);
    indices
        .iter()
        .for_each(|index| pixels.extend(digits.image(*index)));
    let labels: Vec<i64> = indices
        .iter()
        .map(|index| digits.labels[*index].into())
        .collect();
    let images = Tensor::from_slice(&pixels).view([-1, 1, side, side]);
    (
        images.to_kind(Kind::Float) / 255.0,
        Tensor::from_slice(&labels),
    )
}

/// Each image turned, scaled, slanted and shifted a little, by its own random amounts.
fn augment(images: &Tensor, rng: &mut Rng) -> Tensor {
    let count = images.size()[0];
    // Sampling positions run from -1 to 1 across the image.
    let unit = 2.0 / mnist::SIDE as f32;
    let mut maps = Vec::with_capacity(6 * count as usize);
    for _ in 0..count {
        let (sine, cosine) = (ROTATION * symmetric(rng)).to_radians().sin_cos();
        let scale = 1.0 + SCALING * symmetric(rng);
        let shear = SHEAR * symmetric(rng);
        let (right, down) = (SHIFT * symmetric(rng), SHIFT * symmetric(rng));
        maps.extend([scale * cosine, scale * (shear - sine), right * unit]);
        maps.extend([scale * sine, scale * cosine, down * unit]);
    }
    let maps = Tensor::from_slice(&maps).view([count, 2, 3]);
    let grid = Tensor::affine_grid_generator(&maps, images.size(), false);
    const BILINEAR: i64 = 0;
    const ZEROS_OUTSIDE: i64 = 0;
    images.grid_sampler(&grid, BILINEAR, ZEROS_OUTSIDE, false)
}

#[cfg(test)]
#[path = "lenet_tests.rs"]
mod tests;
