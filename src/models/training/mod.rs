//! Training networks, without a cluster, and counting how many test images a network
//! gets right.
//!
//! Decides what all runs share: where randomness comes from (one seed through
//! [`Rng`](crate::types::Rng), never libtorch's), the schedule of the step size, and that
//! a file appears whole or not at all. Leaves to others: the recipes (`lenet`,
//! `resnet50`), what changes an image before it is learnt (`augment`), how a killed run
//! is gone on with (`checkpoint`), and the command line (`bin/train.rs`).

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use tch::Device;

use super::engine::Engine;
use super::error::ModelError;
use super::manifest::{Manifest, ManifestError};
use super::mnist::MnistError;
use super::photographs::PhotographError;
use super::prepare::ImageError;
use crate::types::{Digest, Rng};

mod adam;
mod augment;
pub mod calibrate;
mod checkpoint;
pub mod evaluate;
pub mod lenet;
mod loader;
pub mod resnet50;

/// Share of the steps during which the step size rises.
const WARM_UP: f64 = 0.05;

/// Why there are no new weights, or no count of right answers.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// MNIST.
    #[error(transparent)]
    Mnist(#[from] MnistError),
    /// A folder of photographs.
    #[error(transparent)]
    Photographs(#[from] PhotographError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The network.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An image was not accepted.
    #[error("{image}: {cause}")]
    Image {
        /// Which image of the data set.
        image: String,
        /// Why.
        cause: ImageError,
    },
    /// The network answered NaN or infinity.
    #[error("{0}: the network gave no finite answer to it: train the model again")]
    Answer(String),
    /// The folders of the data set are not the labels of the manifest.
    #[error(
        "{}: the labels are {labels:?}, the folders of the data set {folders:?}: make them the same, in this order", path.display()
    )]
    Labels {
        /// The manifest.
        path: PathBuf,
        /// Its labels.
        labels: Vec<String>,
        /// The folders, sorted.
        folders: Vec<String>,
    },
    /// The manifest describes another kind of network than the recipe trains.
    #[error("{}: architecture is not {wanted}: name a model of that architecture", path.display())]
    Architecture {
        /// The manifest.
        path: PathBuf,
        /// What the recipe trains.
        wanted: &'static str,
    },
    /// Integers would cost too much.
    #[error(
        "model {model}: {after} of {total} test images right in int8, {before} in floats: more than half a point is lost, no manifest is written; more calibration images may help"
    )]
    Int8 {
        /// The model.
        model: String,
        /// Right answers in floats.
        before: usize,
        /// Right answers in integers.
        after: usize,
        /// Test images.
        total: usize,
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
    /// The checkpoint cannot be read as one.
    #[error("{}: a damaged checkpoint: delete it to start anew", path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Another process trains this model.
    #[error("{}: another run is training this model: wait for it, or train another model", path.display())]
    Busy {
        /// The manifest.
        path: PathBuf,
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
    #[error(
        "epoch {epoch}: the loss is not finite: the step size is too large, or the training data is damaged, or the weights that it started from"
    )]
    Diverged {
        /// Epoch, from 1.
        epoch: u32,
    },
}

/// New weights.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The weights file.
    pub weights: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Other manifests of the same file, which describe the weights that were there before.
    pub stale: Vec<PathBuf>,
}

/// The manifest of a model that is to be trained, and the right to do so: as long as this
/// lives, no other process has it.
struct Claim {
    path: PathBuf,
    manifest: Manifest,
    _lock: fs::File,
}

impl Claim {
    /// *Errors*: the manifest cannot be read, or another run has the model.
    fn new(path: PathBuf) -> Result<Claim, TrainingError> {
        let failed = |cause| TrainingError::File {
            path: path.clone(),
            cause,
        };
        // Read first: its errors are for people.
        Manifest::read(&path)?;
        let lock = fs::File::open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(TrainingError::Busy { path }),
            Err(fs::TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        // Again, since another run may have ended in between.
        let (manifest, _) = Manifest::read(&path)?;
        Ok(Claim {
            path,
            manifest,
            _lock: lock,
        })
    }

    /// What a run of these images learns from: two runs with other words are not the same.
    fn data(&self, images: Digest) -> String {
        let mut manifest = self.manifest.clone();
        manifest.digest = None;
        let text = toml::to_string(&manifest).expect("a manifest can be written as TOML");
        let short = |digest: Digest| digest.to_string()[..8].to_string();
        let manifest = Digest::of(text.as_bytes());
        format!("data {}, manifest {}", short(images), short(manifest))
    }

    /// Writes the weights beside the manifest, and their digest into it where it holds one.
    /// They are loaded first: what cannot be used does not replace what can.
    fn publish(&self, bytes: &[u8]) -> Result<Trained, TrainingError> {
        let digest = Digest::of(bytes);
        let mut manifest = self.manifest.clone();
        manifest.digest = None;
        Engine::load(&manifest, bytes, digest, Device::Cpu, 1)?;
        let weights = self.path.with_file_name(&manifest.weights);
        let stale = match fs::read(&weights) {
            Ok(old) if Digest::of(&old) != digest => self.stale(),
            _ => Vec::new(),
        };
        replace(&weights, bytes)?;
        seal(&self.path, digest)?;
        Ok(Trained {
            weights,
            digest,
            stale,
        })
    }

    /// The other manifests in the folder that name the same weights.
    fn stale(&self) -> Vec<PathBuf> {
        let folder = self.path.parent().map(fs::read_dir);
        let Some(Ok(entries)) = folder else {
            return Vec::new();
        };
        let manifests = entries.flatten().map(|entry| entry.path());
        let others = manifests.filter(|path| {
            path.extension().is_some_and(|kind| kind == "toml")
                && *path != self.path
                && Manifest::read(path)
                    .is_ok_and(|(other, _)| other.weights == self.manifest.weights)
        });
        others.collect()
    }
}

/// Step size at step `step` of `total`: rises to `peak`, then falls along a cosine to 0.
///
/// *Source*: Loshchilov and Hutter, "SGDR", 2016, equation 5, without restarts.
fn learning_rate(peak: f64, step: usize, total: usize) -> f64 {
    let done = step as f64 / total.max(1) as f64;
    if done < WARM_UP {
        return peak * (done + 1.0 / total as f64).min(WARM_UP) / WARM_UP;
    }
    let angle = std::f64::consts::PI * (done - WARM_UP) / (1.0 - WARM_UP);
    peak * 0.5 * (1.0 + angle.cos())
}

/// A number in 0 to 1, evenly.
fn unit(rng: &mut Rng) -> f32 {
    (rng.next_u64() >> 40) as f32 / (1u64 << 24) as f32
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

/// The stream of randomness of one epoch, so that a checkpoint need not hold one.
fn epoch_rng(seed: u64, epoch: u32) -> Rng {
    Rng::new(seed ^ ((u64::from(epoch) + 1) << 32))
}

/// Loss and right answers so far in an epoch, shown on a terminal.
struct Progress {
    bar: ProgressBar,
    loss: f64,
    right: i64,
    seen: usize,
}

impl Progress {
    fn new(steps: usize, epoch: u32, epochs: u32) -> Progress {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {eta} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Progress {
            bar: ProgressBar::new(steps as u64)
                .with_style(style)
                .with_prefix(format!("epoch {epoch}/{epochs}")),
            loss: 0.0,
            right: 0,
            seen: 0,
        }
    }

    /// Counts a step over `count` images with that mean loss and so many right answers.
    fn step(&mut self, loss: f64, right: i64, count: usize) {
        self.loss += loss * count as f64;
        self.right += right;
        self.seen += count;
        let (loss, accuracy) = self.means();
        self.bar.set_message(format!(
            "loss {loss:.4}, accuracy {:.2} %",
            100.0 * accuracy
        ));
        self.bar.inc(1);
    }

    /// Mean loss and share of right answers.
    fn means(&self) -> (f64, f64) {
        let seen = self.seen.max(1) as f64;
        (self.loss / seen, self.right as f64 / seen)
    }

    /// The means at the end of epoch `epoch` (from 1). *Errors*: the loss is not finite.
    fn finish(self, epoch: u32) -> Result<(f64, f64), TrainingError> {
        self.bar.finish_and_clear();
        let means = self.means();
        match means.0.is_finite() {
            true => Ok(means),
            false => Err(TrainingError::Diverged { epoch }),
        }
    }
}

/// Writes the file whole or not at all: temporary file, fsync, rename.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainingError> {
    let failed = |cause| TrainingError::File {
        path: path.into(),
        cause,
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let written = fs::File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|cause| {
        // Its bytes may be what fills the disk.
        let _ = fs::remove_file(&temporary);
        failed(cause)
    })
}

/// Puts the digest of new weights into the manifest file, where it holds one now.
fn seal(path: &Path, digest: Digest) -> Result<(), TrainingError> {
    let (manifest, _) = Manifest::read(path)?;
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
mod tests {
    use super::*;

    #[test]
    fn the_step_size_rises_then_falls_to_nothing() {
        let rates: Vec<f64> = (0..1000)
            .map(|step| learning_rate(0.1, step, 1000))
            .collect();
        assert!(rates[0] > 0.0 && rates[0] < 0.1 / 40.0);
        assert!(rates[..50].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[50..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!((rates[50] - 0.1).abs() < 1e-9);
        assert!(rates[999] < 0.1 / 1000.0);
    }
}
