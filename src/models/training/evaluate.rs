//! Counts what a network says of test images.
//!
//! Decides: that each image goes the same way as in a cluster (the file's bytes,
//! decoding, normalisation, engine), and which of the folder's images are the test
//! images: MNIST's own, or the test part of [`Photographs`]. Leaves to others: choosing
//! anything by the count.

use std::fs;
use std::path::Path;

use tch::Device;

use super::TrainingError;
use crate::models::engine::Engine;
use crate::models::manifest::Manifest;
use crate::models::mnist::{self, Digits, Split};
use crate::models::photographs::{PhotographError, Photographs};
use crate::models::prepare::prepare_into;
use crate::types::Digest;

/// Images classified at once.
const BATCH: usize = 16;

/// What a network said of the test images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// The labels, in the network's order.
    pub labels: Vec<String>,
    /// For each true label, how often the network gave each label.
    pub confusion: Vec<Vec<usize>>,
}

impl Evaluation {
    /// Images whose own label was given.
    pub fn right(&self) -> usize {
        (0..self.labels.len())
            .map(|label| self.confusion[label][label])
            .sum()
    }

    /// Images.
    pub fn total(&self) -> usize {
        self.confusion.iter().flatten().sum()
    }

    /// The confusion matrix as a Markdown table: a row for each true label.
    pub fn table(&self) -> String {
        let mut text = String::from("| is \\ was called |");
        self.labels
            .iter()
            .for_each(|label| text.push_str(&format!(" {label} |")));
        text.push_str(&format!("\n|{}\n", "---|".repeat(self.labels.len() + 1)));
        for (label, counts) in self.labels.iter().zip(&self.confusion) {
            text.push_str(&format!("| {label} |"));
            counts
                .iter()
                .for_each(|count| text.push_str(&format!(" {count} |")));
            text.push('\n');
        }
        text
    }
}

/// The test images of a folder.
enum TestImages {
    Digits(Digits),
    Photographs(Photographs),
}

impl TestImages {
    fn read(data: &Path) -> Result<TestImages, TrainingError> {
        let mnist = data.join("t10k-images-idx3-ubyte").exists();
        Ok(match mnist {
            true => TestImages::Digits(mnist::read(data, Split::Test)?),
            false => TestImages::Photographs(Photographs::read(data, Split::Test)?),
        })
    }

    fn len(&self) -> usize {
        match self {
            TestImages::Digits(digits) => digits.len(),
            TestImages::Photographs(photographs) => photographs.len(),
        }
    }

    /// File contents of image `index`.
    fn bytes(&self, index: usize) -> Result<Vec<u8>, PhotographError> {
        match self {
            TestImages::Digits(digits) => Ok(mnist::png(digits.image(index))),
            TestImages::Photographs(photographs) => photographs.bytes(index),
        }
    }

    /// Label of image `index`.
    fn label(&self, index: usize) -> String {
        match self {
            TestImages::Digits(digits) => digits.labels[index].to_string(),
            TestImages::Photographs(set) => set.classes[set.label(index)].clone(),
        }
    }

    fn name(&self, index: usize) -> String {
        match self {
            TestImages::Digits(_) => format!("test image {index}"),
            TestImages::Photographs(set) => set.path(index).display().to_string(),
        }
    }
}

/// A model's manifest and the bytes of its weights, from the folder `models`.
pub(super) fn read(model: &str, models: &Path) -> Result<(Manifest, Vec<u8>), TrainingError> {
    let path = models.join(format!("{model}.toml"));
    let (manifest, _) = Manifest::read(&path)?;
    let weights = models.join(&manifest.weights);
    let bytes = fs::read(&weights).map_err(|cause| TrainingError::Weights {
        path: weights,
        cause,
    })?;
    Ok((manifest, bytes))
}

/// Loads `model` of the folder `models` and counts what it says of the test images in
/// the folder `data`.
///
/// *Errors*: the model cannot be loaded, an image cannot be read, or one has a label that
/// the model does not know.
pub fn evaluate(
    model: &str,
    models: &Path,
    data: &Path,
    device: Device,
    threads: usize,
) -> Result<Evaluation, TrainingError> {
    let (manifest, bytes) = read(model, models)?;
    count(&manifest, &bytes, data, device, threads)
}

/// The same for the model with this manifest and these weights.
pub(super) fn count(
    manifest: &Manifest,
    bytes: &[u8],
    data: &Path,
    device: Device,
    threads: usize,
) -> Result<Evaluation, TrainingError> {
    let images = TestImages::read(data)?;
    let mut engine = Engine::load(manifest, bytes, Digest::of(bytes), device, threads)?;
    let classes = manifest.labels.len();
    let mut confusion = vec![vec![0; classes]; classes];
    let indices: Vec<usize> = (0..images.len()).collect();
    for chunk in indices.chunks(BATCH) {
        let mut batch = Vec::with_capacity(chunk.len() * manifest.input.len());
        for index in chunk {
            let bytes = images.bytes(*index)?;
            prepare_into(&bytes, manifest, &mut batch).map_err(|cause| TrainingError::Image {
                image: images.name(*index),
                cause,
            })?;
        }
        let predictions = engine.classify(&batch, chunk.len())?;
        for (index, prediction) in chunk.iter().zip(predictions) {
            let Some(prediction) = prediction else {
                return Err(TrainingError::Answer(images.name(*index)));
            };
            let label = images.label(*index);
            let known = manifest.labels.iter().position(|known| *known == label);
            let Some(truth) = known else {
                return Err(TrainingError::Labels {
                    path: format!("{}.toml", manifest.name).into(),
                    labels: manifest.labels.clone(),
                    folders: vec![label],
                });
            };
            confusion[truth][prediction.label as usize] += 1;
        }
    }
    Ok(Evaluation {
        labels: manifest.labels.clone(),
        confusion,
    })
}
