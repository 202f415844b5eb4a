//! Training LeNet on MNIST, and counting how many test images a network gets right.
//!
//! Decides: initial weights, augmentation, optimiser, schedule and checkpoints. All
//! randomness comes from one seed through [`Rng`], not from libtorch, so that a run can
//! be repeated, and a killed run that resumes from its checkpoint ends with the very
//! weights of one that was not. Leaves to others: the layers (`lenet`), the files of the
//! data set (`mnist`), the command line (`bin/train.rs`).

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind, Reduction, Tensor};

use super::engine::{Engine, ModelError, use_threads};
use super::lenet::{LeNet, TENSORS};
use super::manifest::{Manifest, ManifestError};
use super::mnist::{self, Digits, MnistError, Split};
use super::prepare::{ImageError, prepare};
use super::weights::{Weights, to_safetensors};
use crate::types::{Digest, Rng};

/// Images in one step.
const BATCH: usize = 128;
/// Images classified at once when counting right answers.
const EVALUATION_BATCH: usize = 100;
/// Largest step size; it rises to this during the first [`WARM_UP`] of the steps and
/// falls along a cosine to 0.
const LEARNING_RATE: f64 = 3e-3;
/// Share of the steps.
const WARM_UP: f64 = 0.05;
/// Pull of the weights (not the biases) towards 0, for each unit of step size.
const WEIGHT_DECAY: f64 = 1e-2;
/// Decay of the running means of the gradient and of its square.
const BETAS: (f64, f64) = (0.9, 0.999);
/// Keeps Adam's division finite.
const EPSILON: f64 = 1e-8;
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
    /// Where an unfinished run is kept.
    fn checkpoint(&self) -> PathBuf {
        self.models.join("lenet.checkpoint")
    }

    /// What a checkpoint must have been made with to be gone on with.
    fn identity(&self, images: usize) -> String {
        format!(
            "lenet, seed {}, {} epochs, {images} images",
            self.seed, self.epochs
        )
    }
}

/// Why there are no new weights.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// The data set.
    #[error(transparent)]
    Data(#[from] MnistError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The network.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A digit was not accepted as an image.
    #[error("test image {index}: {cause}")]
    Image {
        /// Its index in the data set.
        index: usize,
        /// Why.
        cause: ImageError,
    },
    /// The weights of a model are not there.
    #[error("{}: {cause}: train the model or put its weights there", path.display())]
    Weights {
        /// The weights file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A file could not be read or written.
    #[error("{}: {cause}: check the folder's rights and free space", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The checkpoint is of another run.
    #[error("{}: made by another run ({found}), not by {wanted}: delete it or repeat that run", path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// The run in the file.
        found: String,
        /// The run that was asked for.
        wanted: String,
    },
    /// The loss is no number any more.
    #[error("epoch {epoch}: the loss is not finite: the training data is damaged")]
    Diverged {
        /// Epoch, from 1.
        epoch: u32,
    },
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The weights file.
    pub weights: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Test images classified correctly.
    pub right: usize,
    /// Test images.
    pub total: usize,
}

/// Trains LeNet on the training images, writes `lenet.safetensors` beside its manifest
/// (and the digest in the manifest, where that has one) and counts the right answers on
/// the test images. Shows its progress on stderr; `report` gets a line for each epoch.
///
/// A checkpoint after each epoch lets a killed run resume; it goes when the run is done.
pub fn train_lenet(
    recipe: &Recipe,
    mut report: impl FnMut(String),
) -> Result<Outcome, TrainingError> {
    let path = recipe.models.join("lenet.toml");
    let (manifest, _) = Manifest::read(&path)?;
    let training = mnist::read(&recipe.data, Split::Training)?;
    let test = mnist::read(&recipe.data, Split::Test)?;
    use_threads(recipe.threads);
    let mut run = Run::resume_or_start(recipe, training.len())?;
    if run.epoch > 0 {
        report(format!(
            "resumed after epoch {} of {}",
            run.epoch, recipe.epochs
        ));
    }
    while run.epoch < recipe.epochs {
        let (loss, accuracy) = run.train_epoch(recipe, &training, &manifest)?;
        run.save(recipe, training.len())?;
        let (epoch, epochs) = (run.epoch, recipe.epochs);
        report(format!(
            "epoch {epoch}/{epochs}: loss {loss:.4}, accuracy {:.2} % on augmented training images",
            100.0 * accuracy
        ));
    }
    let note = recipe.identity(training.len());
    let bytes = to_safetensors(&run.named(""), Some(("training", note)));
    let digest = Digest::of(&bytes);
    let mut unsealed = manifest.clone();
    unsealed.digest = None;
    let engine = Engine::load(&unsealed, &bytes, digest, Device::Cpu, recipe.threads)?;
    let right = count_right(&engine, &unsealed, &test)?;
    let weights = recipe.models.join(&manifest.weights);
    replace(&weights, &bytes)?;
    seal(&path, &manifest, digest)?;
    let checkpoint = recipe.checkpoint();
    fs::remove_file(&checkpoint).map_err(|cause| TrainingError::File {
        path: checkpoint,
        cause,
    })?;
    Ok(Outcome {
        weights,
        digest,
        right,
        total: test.len(),
    })
}

/// Loads `model` of the folder `models` and counts how many of MNIST's test images it
/// classifies correctly, each through the same way as in a cluster: PNG file, decoding,
/// normalisation, network. Returns the right ones and all.
pub fn evaluate(
    model: &str,
    models: &Path,
    data: &Path,
    threads: usize,
) -> Result<(usize, usize), TrainingError> {
    let (manifest, _) = Manifest::read(&models.join(format!("{model}.toml")))?;
    let weights = models.join(&manifest.weights);
    let bytes = fs::read(&weights).map_err(|cause| TrainingError::Weights {
        path: weights,
        cause,
    })?;
    let engine = Engine::load(&manifest, &bytes, Digest::of(&bytes), Device::Cpu, threads)?;
    let test = mnist::read(data, Split::Test)?;
    Ok((count_right(&engine, &manifest, &test)?, test.len()))
}

/// How many of `digits` the network gives their own label.
fn count_right(
    engine: &Engine,
    manifest: &Manifest,
    digits: &Digits,
) -> Result<usize, TrainingError> {
    let mut right = 0;
    let indices: Vec<usize> = (0..digits.len()).collect();
    for chunk in indices.chunks(EVALUATION_BATCH) {
        let mut batch = Vec::with_capacity(chunk.len() * manifest.input.len());
        for index in chunk {
            let image = prepare(&mnist::png(digits.image(*index)), manifest);
            batch.extend(image.map_err(|cause| TrainingError::Image {
                index: *index,
                cause,
            })?);
        }
        let predictions = engine.classify(&batch, chunk.len())?;
        right += chunk
            .iter()
            .zip(&predictions)
            .filter(|(index, prediction)| {
                manifest.labels[prediction.label as usize] == digits.labels[**index].to_string()
            })
            .count();
    }
    Ok(right)
}

/// A training run between two epochs.
struct Run {
    /// Epochs done.
    epoch: u32,
    /// The weights, in the order of [`TENSORS`].
    parameters: Vec<Tensor>,
    /// Adam's running means of the gradients and of their squares.
    means: Vec<Tensor>,
    squares: Vec<Tensor>,
}

impl Run {
    /// The run of the recipe's checkpoint, else a new one.
    fn resume_or_start(recipe: &Recipe, images: usize) -> Result<Run, TrainingError> {
        let path = recipe.checkpoint();
        match fs::read(&path) {
            Ok(bytes) => Run::resume(&bytes, recipe, images),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Run::start(recipe.seed)),
            Err(cause) => Err(TrainingError::File { path, cause }),
        }
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
        let zeros = || TENSORS.iter().map(|(_, shape)| zeros(shape)).collect();
        Run {
            epoch: 0,
            parameters: parameters.collect(),
            means: zeros(),
            squares: zeros(),
        }
    }

    fn resume(bytes: &[u8], recipe: &Recipe, images: usize) -> Result<Run, TrainingError> {
        let wanted = recipe.identity(images);
        let note = safetensors::SafeTensors::read_metadata(bytes)
            .ok()
            .and_then(|(_, header)| header.metadata().as_ref()?.get("training").cloned())
            .unwrap_or_else(|| "not a checkpoint".into());
        let epoch = note
            .strip_prefix(&wanted)
            .and_then(|rest| rest.strip_prefix(", epoch ")?.parse().ok());
        let Some(epoch) = epoch else {
            return Err(TrainingError::Checkpoint {
                path: recipe.checkpoint(),
                found: note,
                wanted,
            });
        };
        let mut weights = Weights::from_safetensors("lenet.checkpoint", bytes)?;
        let mut take = |prefix: &str| -> Result<Vec<Tensor>, ModelError> {
            let tensors = TENSORS.iter();
            tensors
                .map(|(name, shape)| weights.take(&format!("{prefix}{name}"), shape))
                .collect()
        };
        Ok(Run {
            epoch,
            parameters: take("")?,
            means: take("means.")?,
            squares: take("squares.")?,
        })
    }

    fn save(&self, recipe: &Recipe, images: usize) -> Result<(), TrainingError> {
        let mut tensors = self.named("");
        for (prefix, state) in [("means.", &self.means), ("squares.", &self.squares)] {
            let named = TENSORS.iter().zip(state);
            tensors
                .extend(named.map(|((name, _), tensor)| {
                    (format!("{prefix}{name}"), tensor.shallow_clone())
                }));
        }
        let note = format!("{}, epoch {}", recipe.identity(images), self.epoch);
        replace(
            &recipe.checkpoint(),
            &to_safetensors(&tensors, Some(("training", note))),
        )
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
        // A stream of its own for each epoch, so that a checkpoint need not hold one.
        let mut rng = Rng::new(recipe.seed ^ ((u64::from(self.epoch) + 1) << 32));
        let order = shuffled(digits.len(), &mut rng);
        let steps = digits.len().div_ceil(BATCH);
        let total = steps * recipe.epochs as usize;
        let bar = progress(steps, self.epoch + 1, recipe.epochs);
        let (mut loss_sum, mut right) = (0.0, 0);
        for (index, chunk) in order.chunks(BATCH).enumerate() {
            let (images, labels) = batch(digits, chunk);
            let images = augment(&images, &mut rng);
            let images = (images - f64::from(manifest.mean[0])) / f64::from(manifest.std[0]);
            let step = self.epoch as usize * steps + index;
            let (loss, correct) = self.step(&images, &labels, step, total);
            loss_sum += loss * chunk.len() as f64;
            right += correct;
            let seen = (index * BATCH + chunk.len()) as f64;
            bar.set_message(format!(
                "loss {:.4}, accuracy {:.2} %",
                loss_sum / seen,
                100.0 * right as f64 / seen
            ));
            bar.inc(1);
        }
        bar.finish_and_clear();
        self.epoch += 1;
        if !loss_sum.is_finite() {
            return Err(TrainingError::Diverged { epoch: self.epoch });
        }
        let count = digits.len() as f64;
        Ok((loss_sum / count, right as f64 / count))
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
        let rate = learning_rate(step, total);
        let (first, second) = BETAS;
        let turn = step as i32 + 1;
        tch::no_grad(|| {
            for (index, gradient) in gradients.iter().enumerate() {
                let parameter = &mut self.parameters[index];
                let (mean, square) = (&mut self.means[index], &mut self.squares[index]);
                *mean = &*mean * first + gradient * (1.0 - first);
                *square = &*square * second + gradient.square() * (1.0 - second);
                let spread = (&*square / (1.0 - second.powi(turn))).sqrt() + EPSILON;
                let update = &*mean / (1.0 - first.powi(turn)) / spread;
                let decay = if parameter.dim() > 1 {
                    WEIGHT_DECAY
                } else {
                    0.0
                };
                *parameter = &*parameter * (1.0 - rate * decay) - update * rate;
            }
        });
        let right = logits.argmax(1, false).eq_tensor(labels).sum(Kind::Int64);
        (loss.double_value(&[]), right.int64_value(&[]))
    }
}

/// Step size of step `step` of `total`.
fn learning_rate(step: usize, total: usize) -> f64 {
    let done = step as f64 / total.max(1) as f64;
    if done < WARM_UP {
        return LEARNING_RATE * (done + 1.0 / total as f64).min(WARM_UP) / WARM_UP;
    }
    let angle = std::f64::consts::PI * (done - WARM_UP) / (1.0 - WARM_UP);
    LEARNING_RATE * 0.5 * (1.0 + angle.cos())
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

/// A number in -1 to 1, evenly.
fn symmetric(rng: &mut Rng) -> f32 {
    (rng.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// 0 to `count` - 1 in random order (Fisher and Yates).
fn shuffled(count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, rng.below(last as u64 + 1) as usize);
    }
    order
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

fn progress(steps: usize, epoch: u32, epochs: u32) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {eta} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps as u64)
        .with_style(style)
        .with_prefix(format!("epoch {epoch}/{epochs}"))
}

/// Writes the file whole or not at all: temporary file, fsync, rename.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainingError> {
    let failed = |cause| TrainingError::File {
        path: path.into(),
        cause,
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let mut file = fs::File::create(&temporary).map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

/// Puts the digest of new weights into the manifest file, where it holds one.
fn seal(path: &Path, manifest: &Manifest, digest: Digest) -> Result<(), TrainingError> {
    let Some(old) = &manifest.digest else {
        return Ok(());
    };
    let text = fs::read_to_string(path).map_err(|cause| TrainingError::File {
        path: path.into(),
        cause,
    })?;
    let new = text.replace(old.as_str(), &digest.to_string());
    if new == text {
        return Ok(());
    }
    replace(path, new.as_bytes())
}

#[cfg(test)]
#[path = "training_tests.rs"]
mod tests;
