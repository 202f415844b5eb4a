//! A loaded network: numbers in, labels with confidences out.
//!
//! Decides: that weights are what the manifest says before they are used (digest, names,
//! shapes, finite numbers, number of labels), and that a network is warm and has answered
//! once before anyone sees it. Leaves to others: decoding images (`prepare`), batching
//! and threads; an [`Engine`] is owned by one thread at a time.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use tch::{CModule, Cuda, Device, Kind, Tensor};

use super::lenet::LeNet;
use super::manifest::{Architecture, Input, Manifest};
use super::resnet50::ResNet50;
use super::weights::{Weights, check_finite};
use crate::types::Digest;

/// A network that cannot be loaded or that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The bytes are not those that were published or trained.
    #[error(
        "model {model}: the weights have digest {found} instead of {wanted}: fetch or train them again"
    )]
    Digest {
        /// The model.
        model: String,
        /// Of the bytes at hand.
        found: String,
        /// As the manifest or the publisher says.
        wanted: String,
    },
    /// The weights file cannot be read as what it should be.
    #[error("model {model}: {problem}: fetch or train the weights again")]
    Weights {
        /// The model.
        model: String,
        /// What is wrong.
        problem: String,
    },
    /// A tensor of the architecture is not in the file.
    #[error(
        "model {model}: tensor {tensor} is missing: the weights belong to another architecture"
    )]
    MissingTensor {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor in the file is not in the architecture.
    #[error(
        "model {model}: tensor {tensor} is unknown: the weights belong to another architecture"
    )]
    UnknownTensor {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the architecture wants (-1: any length).
    #[error(
        "model {model}: tensor {tensor} has shape {found:?} instead of {wanted:?}: the weights belong to another architecture"
    )]
    Shape {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
        /// In the file.
        found: Vec<i64>,
        /// In the architecture.
        wanted: Vec<i64>,
    },
    /// A weight is NaN or infinite.
    #[error("model {model}: tensor {tensor} holds NaN or infinite numbers: train the model again")]
    NotFinite {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
    },
    /// The manifest names more or fewer labels than the network has outputs.
    #[error(
        "model {model}: {labels} labels for {outputs} outputs: correct `labels` in the manifest"
    )]
    Labels {
        /// The model.
        model: String,
        /// In the manifest.
        labels: usize,
        /// Of the network.
        outputs: i64,
    },
    /// The batch has another length than its count of inputs says.
    #[error("model {model}: a batch of {numbers} numbers for {count} inputs of {each}")]
    Batch {
        /// The model.
        model: String,
        /// Numbers given.
        numbers: usize,
        /// Inputs promised.
        count: usize,
        /// Numbers in one input.
        each: usize,
    },
    /// The network answered NaN or infinity.
    #[error("model {model}: input {item} of the batch gave no finite answer")]
    Answer {
        /// The model.
        model: String,
        /// Index in the batch.
        item: usize,
    },
    /// libtorch refused.
    #[error("model {model}: libtorch: {problem}")]
    Torch {
        /// The model.
        model: String,
        /// The first line of libtorch's words.
        problem: String,
    },
    /// No such device.
    #[error("device {0:?}: use auto, cpu, or cuda:N with the number of a GPU that libtorch sees")]
    Device(String),
}

/// What a network says of one input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Index of the label.
    pub label: u32,
    /// Softmax of its logit, 0 to 1.
    pub confidence: f32,
}

/// The architectures.
enum Network {
    LeNet(LeNet),
    ResNet50(ResNet50),
    Script(CModule),
}

/// A network that is loaded, checked and warm.
pub struct Engine {
    name: String,
    digest: Digest,
    labels: usize,
    input: Input,
    device: Device,
    network: Network,
}

impl Engine {
    /// Builds the network that `manifest` describes from the bytes of its weights file,
    /// and runs it once.
    ///
    /// `digest` is that of the weights as published; where the manifest fixes one too,
    /// both must hold. `threads` is how many threads one operator may use, in this whole
    /// process; see [`use_threads`].
    ///
    /// *Errors*: [`ModelError`] that names the model and the tensor or field.
    pub fn load(
        manifest: &Manifest,
        weights: &[u8],
        digest: Digest,
        device: Device,
        threads: usize,
    ) -> Result<Engine, ModelError> {
        let found = Digest::of(weights);
        for wanted in [Some(digest), manifest.weights_digest()]
            .into_iter()
            .flatten()
        {
            if wanted != found {
                return Err(ModelError::Digest {
                    model: manifest.name.clone(),
                    found: found.to_string(),
                    wanted: wanted.to_string(),
                });
            }
        }
        use_threads(threads);
        let engine = Engine {
            name: manifest.name.clone(),
            digest,
            labels: manifest.labels.len(),
            input: manifest.input,
            device,
            network: network(manifest, weights, device)?,
        };
        // Warm, and the number of outputs and the answers' finiteness are checked with it.
        engine.classify(&vec![0.0; engine.input.len()], 1)?;
        Ok(engine)
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Digest of its weights.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Classifies `count` inputs that stand one after the other in `batch`, each as
    /// [`super::prepare::prepare`] makes it.
    ///
    /// *Shape*: `[count, channels, height, width]` f32.
    /// *Errors*: a batch of another length; an answer that is not finite; whatever
    /// libtorch says of a TorchScript network.
    pub fn classify(&self, batch: &[f32], count: usize) -> Result<Vec<Prediction>, ModelError> {
        let each = self.input.len();
        if batch.len() != count * each {
            return Err(ModelError::Batch {
                model: self.name.clone(),
                numbers: batch.len(),
                count,
                each,
            });
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let logits = tch::no_grad(|| self.logits(batch, count))?;
        let outputs = logits.size().last().copied().unwrap_or(0);
        if logits.size() != [count as i64, self.labels as i64] {
            return Err(ModelError::Labels {
                model: self.name.clone(),
                labels: self.labels,
                outputs,
            });
        }
        let mut numbers = vec![0f32; count * self.labels];
        let length = numbers.len();
        logits
            .f_copy_data(&mut numbers, length)
            .map_err(|error| torch(&self.name, &error))?;
        let rows = numbers.chunks(self.labels).enumerate();
        rows.map(|(item, logits)| {
            predict(logits).ok_or_else(|| ModelError::Answer {
                model: self.name.clone(),
                item,
            })
        })
        .collect()
    }

    fn logits(&self, batch: &[f32], count: usize) -> Result<Tensor, ModelError> {
        let failed = |error| torch(&self.name, &error);
        let Input {
            channels,
            height,
            width,
            ..
        } = self.input;
        let shape = [count as i64, channels.into(), height.into(), width.into()];
        let batch = Tensor::f_from_slice(batch)
            .and_then(|batch| batch.f_view(shape))
            .and_then(|batch| batch.f_to_device(self.device))
            .map_err(failed)?;
        let logits = match &self.network {
            Network::LeNet(network) => network.forward(&batch),
            Network::ResNet50(network) => network.forward(&batch),
            Network::Script(module) => module.forward_ts(&[batch]).map_err(failed)?,
        };
        logits
            .f_to_device(Device::Cpu)
            .and_then(|logits| logits.f_to_kind(Kind::Float))
            .and_then(|logits| logits.f_contiguous())
            .map_err(failed)
    }
}

/// The network that `manifest` describes, without having run it.
fn network(manifest: &Manifest, bytes: &[u8], device: Device) -> Result<Network, ModelError> {
    let model = &manifest.name;
    Ok(match manifest.architecture {
        Architecture::Lenet => Network::LeNet(LeNet::load(
            Weights::from_safetensors(model, bytes)?,
            device,
        )?),
        Architecture::Resnet50 => Network::ResNet50(ResNet50::load(
            Weights::from_safetensors(model, bytes)?,
            device,
        )?),
        Architecture::Torchscript => {
            let failed = |error| torch(model, &error);
            let mut module = CModule::load_data_on_device(&mut io::Cursor::new(bytes), device)
                .map_err(failed)?;
            module.f_set_eval().map_err(failed)?;
            for (name, tensor) in module.named_parameters().map_err(failed)? {
                check_finite(model, &name, &tensor)?;
            }
            Network::Script(module)
        }
    })
}

/// libtorch's error for people: its first line, without the C++ stack under it.
fn torch(model: &str, error: &tch::TchError) -> ModelError {
    let words = error.to_string();
    let line = words
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("unknown error");
    ModelError::Torch {
        model: model.into(),
        problem: line.trim().chars().take(300).collect(),
    }
}

/// The label with the largest logit (the first of equal ones) and its softmax; none
/// where a logit is not finite.
fn predict(logits: &[f32]) -> Option<Prediction> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    let mut label = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[label] {
            label = index;
        }
    }
    let largest = logits[label];
    let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    Some(Prediction {
        label: label as u32,
        confidence: 1.0 / sum,
    })
}

/// The device of `--device auto|cpu|cuda:N`: `auto` is the first GPU that libtorch can
/// use, else the CPU.
pub fn device(text: &str) -> Result<Device, ModelError> {
    let unknown = || ModelError::Device(text.into());
    match text {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(Device::cuda_if_available()),
        _ => {
            let number = text.strip_prefix("cuda:").ok_or_else(unknown)?;
            let number: usize = number.parse().map_err(|_| unknown())?;
            if !Cuda::is_available() || number as i64 >= Cuda::device_count() {
                return Err(unknown());
            }
            Ok(Device::Cuda(number))
        }
    }
}

/// Lets one operator use `threads` threads (at least 1), in this whole process. One is
/// right where several nodes share a machine.
pub fn use_threads(threads: usize) {
    let threads = i32::try_from(threads.max(1)).unwrap_or(i32::MAX);
    if tch::get_num_threads() != threads {
        tch::set_num_threads(threads);
    }
}

/// Makes operator threads sleep while they wait for work instead of spinning, which
/// halves the speed of several processes on the same cores. Call it first in `main`.
///
/// OpenMP reads its setting once, when the process is loaded, and only from the
/// environment; so this starts the same executable anew in the same process, with the
/// setting. It does nothing where one thread computes (nobody waits) or where the
/// setting was given. *Errors*: the executable could not be started anew; the process
/// goes on as it was, only slower in company.
pub fn wait_passively(threads: usize) -> io::Result<()> {
    const SETTING: &str = "OMP_WAIT_POLICY";
    if threads <= 1 || std::env::var_os(SETTING).is_some() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    Err(command.args(arguments).env(SETTING, "passive").exec())
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
