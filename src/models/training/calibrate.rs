//! Making a model of 8-bit integers out of one of floats.
//!
//! Decides: that the ranges of the network's maps are those of training images that lie
//! evenly in the data set, from the lowest to the highest number; and that a manifest is
//! written only where at most [`LOSS_MAX`] of the test images are lost by it. Leaves to
//! others: what is computed with the ranges (`models::quantised`).
//!
//! Percentiles instead of the extremes were tried: the logits came out farther from those
//! of floats.

use std::path::{Path, PathBuf};

use tch::{Device, Tensor};

use super::evaluate::{Evaluation, count, read};
use super::{TrainingError, replace};
use crate::models::engine::use_threads;
use crate::models::manifest::{Architecture, Manifest, ManifestError, Precision};
use crate::models::mnist::Split;
use crate::models::photographs::Photographs;
use crate::models::prepare::prepare;
use crate::models::resnet50::ResNet50;
use crate::models::weights::Weights;

/// Share of the test images that may be lost.
const LOSS_MAX: f64 = 0.005;

/// A model of 8-bit integers.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// Its manifest, beside that of the model it was made from.
    pub manifest: PathBuf,
    /// What the model of floats says of the test images.
    pub before: Evaluation,
    /// What this one says of them.
    pub after: Evaluation,
}

/// Measures the ranges of `model` of the folder `models` on so many training images of
/// the folder `data`, and writes the manifest `MODEL-int8.toml`. The weights are shared.
///
/// *Errors*: the model is no ResNet-50 of floats; images or weights cannot be read;
/// integers would cost too much.
pub fn calibrate(
    model: &str,
    models: &Path,
    data: &Path,
    images: usize,
    threads: usize,
) -> Result<Calibrated, TrainingError> {
    let (manifest, bytes) = read(model, models)?;
    let floats = manifest.precision == Precision::F32;
    if manifest.architecture != Architecture::Resnet50 || !floats {
        return Err(TrainingError::Architecture {
            path: models.join(format!("{model}.toml")),
            wanted: "resnet50 in floats",
        });
    }
    use_threads(threads);
    let mut quantised = manifest.clone();
    quantised.name = format!("{model}-int8");
    quantised.precision = Precision::Int8;
    let path = models.join(format!("{}.toml", quantised.name));
    quantised
        .check_name()
        .map_err(|problem| ManifestError::Field {
            path: path.display().to_string(),
            field: "name",
            problem,
        })?;
    let photographs = Photographs::read(data, Split::Training)?;
    quantised.ranges = ranges(&manifest, &bytes, &photographs, images)?;
    let before = count(&manifest, &bytes, data, Device::Cpu, threads)?;
    let after = count(&quantised, &bytes, data, Device::Cpu, threads)?;
    let total = before.total();
    if before.right() as f64 - after.right() as f64 > LOSS_MAX * total as f64 {
        return Err(TrainingError::Int8 {
            model: model.into(),
            before: before.right(),
            after: after.right(),
            total,
        });
    }
    let text = toml::to_string(&quantised).expect("a manifest can be written as TOML");
    let text = format!(
        "# {model} in 8-bit integers, by `train int8 {model}`: ranges of {images} training images.\n{text}"
    );
    replace(&path, text.as_bytes())?;
    Ok(Calibrated {
        manifest: path,
        before,
        after,
    })
}

/// The lowest and highest number of each map of the network.
fn ranges(
    manifest: &Manifest,
    bytes: &[u8],
    photographs: &Photographs,
    images: usize,
) -> Result<Vec<[f32; 2]>, TrainingError> {
    let weights = Weights::from_safetensors(&manifest.name, bytes)?;
    let network = tch::no_grad(|| Ok(ResNet50::load(weights, Device::Cpu)?.fold()));
    let network = network.map_err(TrainingError::Model)?;
    let (height, width) = (manifest.input.height, manifest.input.width);
    let shape = [1, 3, i64::from(height), i64::from(width)];
    let mut ranges: Vec<[f32; 2]> = Vec::new();
    let images = images.clamp(1, photographs.len());
    for number in 0..images {
        let index = number * photographs.len() / images;
        let numbers = prepare(&photographs.bytes(index)?, manifest);
        let numbers = numbers.map_err(|cause| TrainingError::Image {
            image: photographs.path(index).display().to_string(),
            cause,
        })?;
        let mut seen = 0;
        let mut see = |map: &Tensor| {
            let [low, high] = [map.min(), map.max()].map(|end| end.double_value(&[]) as f32);
            match ranges.get_mut(seen) {
                Some(range) => *range = [range[0].min(low), range[1].max(high)],
                None => ranges.push([low, high]),
            }
            seen += 1;
        };
        let image = Tensor::from_slice(&numbers).view(shape);
        let _ = tch::no_grad(|| network.observe(&image, &mut see));
    }
    Ok(ranges)
}
