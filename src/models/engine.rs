//! A loaded network: numbers in, labels with confidences out.
//!
//! Decides: that weights are what the manifest says before they are used (digest, names,
//! shapes, finite numbers, number of labels); that a network is warm and has answered
//! once before anyone sees it; and the way that batches take: the fastest one that gives
//! the plain network's answers. Leaves to others: decoding images (`prepare`), batching
//! and threads; an [`Engine`] is owned by one thread at a time.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use tch::{CModule, Cuda, Device, Kind, TchError, Tensor};

use super::direct::DirectLeNet;
use super::error::{ModelError, torch, words};
use super::folded::Folded;
use super::fused::FusedResNet50;
use super::lenet::{CLASSES, LeNet};
use super::manifest::{Architecture, Input, Manifest, Precision};
use super::packs::{Packs, agree};
use super::quantised::{self, QuantisedResNet50};
use super::resnet50::ResNet50;
use super::route::Route;
use super::weights::{Weights, check_finite};
use crate::types::{Digest, Rng};

/// What a network says of one input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Index of the label.
    pub label: u32,
    /// Softmax of its logit, 0 to 1.
    pub confidence: f32,
}

/// Seed of the batch on which the ways through a network are compared.
const PROBE_SEED: u64 = 50;

/// A network, in the way that it runs.
enum Network {
    /// In one piece, on the CPU.
    Direct(Box<DirectLeNet>),
    /// By libtorch's operators.
    Operators(Operators),
}

/// A network of libtorch's operators.
enum Operators {
    /// In 8-bit integers; on the CPU.
    Quantised(QuantisedResNet50),
    /// Packed for batch sizes; on the CPU.
    Packs(Packs),
    /// Folded, in half precision on a GPU.
    Folded(Folded),
    LeNet(LeNet),
    ResNet50(ResNet50),
    /// The network's own code.
    Script(CModule),
}

impl Operators {
    /// Logits of a batch, and the way it took.
    fn forward(&mut self, batch: Tensor) -> Result<(Tensor, Route), TchError> {
        Ok(match self {
            Operators::Quantised(network) => (network.forward(&batch)?, Route::Int8),
            Operators::Packs(packs) => packs.forward(&batch)?,
            Operators::Folded(network) => {
                let batch = batch.f_to_kind(network.weight.kind())?;
                (network.forward(&batch), Route::Folded)
            }
            Operators::LeNet(network) => (network.forward(&batch), Route::Plain),
            Operators::ResNet50(network) => (network.forward(&batch), Route::Plain),
            Operators::Script(module) => (module.forward_ts(&[batch])?, Route::Script),
        })
    }
}

/// A network that is loaded, checked and warm.
pub struct Engine {
    name: String,
    digest: Digest,
    labels: usize,
    input: Input,
    device: Device,
    network: Network,
    /// The way that the last batch took.
    route: Route,
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
        keep_memory();
        let mut engine = Engine {
            name: manifest.name.clone(),
            digest,
            labels: manifest.labels.len(),
            input: manifest.input,
            device,
            network: tch::no_grad(|| network(manifest, weights, device))?,
            route: Route::Plain,
        };
        engine.warm()?;
        log::info!(
            "model {}: loaded on {device:?}, {threads} threads, {} operators",
            engine.name,
            engine.route.name()
        );
        Ok(engine)
    }

    /// Runs once, with which the number of outputs and their finiteness are checked; a
    /// network of one's own also on two inputs, since it may take no more than one.
    fn warm(&mut self) -> Result<(), ModelError> {
        let each = self.input.len();
        let answers = self.classify(&vec![0.0; each], 1)?;
        if answers.contains(&None) {
            let model = self.name.clone();
            return Err(ModelError::Answer { model });
        }
        if matches!(self.network, Network::Operators(Operators::Script(_))) {
            let mut two = vec![0.0; each];
            two.extend(random(each));
            let answers = self.classify(&two, 2);
            answers.map_err(|error| ModelError::Two {
                model: self.name.clone(),
                problem: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// The way that the last batch took.
    pub fn route(&self) -> Route {
        self.route
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
    /// [`super::prepare::prepare`] makes it; none for an input whose answer is not finite.
    ///
    /// *Shape*: `[count, channels, height, width]` f32.
    /// *Errors*: a batch of another length; whatever libtorch says of a TorchScript network.
    pub fn classify(
        &mut self,
        batch: &[f32],
        count: usize,
    ) -> Result<Vec<Option<Prediction>>, ModelError> {
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
        let numbers = tch::no_grad(|| self.logits(batch, count))?;
        if numbers.len() != count * self.labels {
            return Err(ModelError::Labels {
                model: self.name.clone(),
                labels: self.labels,
                outputs: numbers.len() / count,
            });
        }
        Ok(numbers.chunks(self.labels).map(predict).collect())
    }

    /// Logits of `count` inputs.
    ///
    /// *Shape*: as [`Engine::classify`] to `[count, outputs]`.
    fn logits(&mut self, batch: &[f32], count: usize) -> Result<Vec<f32>, ModelError> {
        let operators = match &mut self.network {
            Network::Direct(network) => {
                self.route = Route::Fused;
                return Ok(network.forward(batch));
            }
            Network::Operators(operators) => operators,
        };
        let name = &self.name;
        let failed = |error| torch(name, &error);
        let batch = Tensor::f_from_slice(batch)
            .and_then(|batch| batch.f_view(shape(&self.input, count)))
            .and_then(|batch| batch.f_to_device(self.device))
            .map_err(failed)?;
        let (logits, route) = operators.forward(batch).map_err(failed)?;
        self.route = route;
        // A network of one's own may give anything.
        let found = logits.size();
        if found.len() != 2 || found[0] != count as i64 {
            return Err(ModelError::Output {
                model: name.clone(),
                count,
                found,
            });
        }
        logits
            .f_to_device(Device::Cpu)
            .and_then(|logits| logits.f_to_kind(Kind::Float))
            .and_then(|logits| logits.f_contiguous()?.f_view(-1))
            .and_then(|logits| Vec::try_from(&logits))
            .map_err(failed)
    }
}

/// Shape of a batch of `count` inputs.
fn shape(input: &Input, count: usize) -> [i64; 4] {
    let Input {
        channels,
        height,
        width,
        ..
    } = *input;
    [count as i64, channels.into(), height.into(), width.into()]
}

/// The network that `manifest` describes, in the fastest way that gives the answers of
/// the plain one.
fn network(manifest: &Manifest, bytes: &[u8], device: Device) -> Result<Network, ModelError> {
    let model = &manifest.name;
    let weights = || Weights::from_safetensors(model, bytes);
    Ok(Network::Operators(match manifest.architecture {
        Architecture::Lenet => {
            let plain = LeNet::load(weights()?, device)?;
            if !device.is_cuda() {
                match direct(manifest, &plain) {
                    Ok(network) => return Ok(Network::Direct(Box::new(network))),
                    Err(error) => {
                        log::warn!("{}: it runs operator by operator", torch(model, &error));
                    }
                }
            }
            Operators::LeNet(plain)
        }
        Architecture::Resnet50 => {
            fastest(manifest, ResNet50::load(weights()?, Device::Cpu)?, device)
        }
        Architecture::Torchscript => {
            let failed = |error| torch(model, &error);
            let mut module = CModule::load_data_on_device(&mut io::Cursor::new(bytes), device)
                .map_err(|error| ModelError::Script {
                    model: model.clone(),
                    problem: words(&error),
                })?;
            module.f_set_eval().map_err(failed)?;
            for (name, tensor) in module.named_parameters().map_err(failed)? {
                check_finite(model, &name, &tensor)?;
            }
            Operators::Script(module)
        }
    }))
}

/// LeNet in one piece, which gives the answers of the plain one.
fn direct(manifest: &Manifest, plain: &LeNet) -> Result<DirectLeNet, TchError> {
    let network = DirectLeNet::new(plain)?;
    let probe = probe(manifest);
    let numbers = Vec::<f32>::try_from(probe.f_view(-1)?)?;
    let logits = Tensor::f_from_slice(&network.forward(&numbers))?.f_view([1, CLASSES])?;
    match agree(&logits, &plain.forward(&probe)) {
        true => Ok(network),
        false => Err(TchError::Shape("its logits differ".into())),
    }
}

/// The fastest way through ResNet-50 that gives the answers of the plain one.
fn fastest(manifest: &Manifest, plain: ResNet50, device: Device) -> Operators {
    let model = &manifest.name;
    let probe = probe(manifest);
    let expected = plain.forward(&probe);
    let folded = plain.fold();
    if !agree(&folded.forward(&probe), &expected) {
        log::warn!("model {model}: its batch norms cannot be folded: it runs operator by operator");
        return Operators::ResNet50(plain.on(device));
    }
    drop(plain);
    if manifest.precision == Precision::Int8 {
        match quantised(manifest, &folded, device) {
            Ok(network) => return Operators::Quantised(network),
            Err(reason) => log::warn!("model {model}: {reason}: it runs in floats instead"),
        }
    }
    if device.is_cuda() {
        return Operators::Folded(folded.converted(device, Kind::Half));
    }
    let unfused = folded.converted(device, Kind::Float);
    let packs =
        FusedResNet50::new(folded).and_then(|fused| Packs::new(Box::new(fused), &probe, &expected));
    match packs {
        Ok(packs) => Operators::Packs(packs),
        Err(error) => {
            log::warn!("{}: it runs without fused operators", torch(model, &error));
            Operators::Folded(unfused)
        }
    }
}

/// ResNet-50 in 8-bit integers, or why there is none.
fn quantised(
    manifest: &Manifest,
    folded: &Folded,
    device: Device,
) -> Result<QuantisedResNet50, String> {
    if device.is_cuda() {
        return Err("8-bit integers are for the CPU".into());
    }
    if !quantised::is_supported() {
        return Err("this processor has no instructions for 8-bit integers (VNNI)".into());
    }
    let Input { height, width, .. } = manifest.input;
    let sides = (height.into(), width.into());
    QuantisedResNet50::new(folded, &manifest.ranges, sides).map_err(|error| words(&error))
}

/// One input of random numbers such as normalised pixels have.
fn probe(manifest: &Manifest) -> Tensor {
    let numbers = random(manifest.input.len());
    Tensor::from_slice(&numbers).view(shape(&manifest.input, 1))
}

/// So many random numbers, from -2 to 2, always the same.
fn random(count: usize) -> Vec<f32> {
    let mut rng = Rng::new(PROBE_SEED);
    let mut number = || (rng.next_u64() >> 40) as f32 / (1u64 << 22) as f32 - 2.0;
    (0..count).map(|_| number()).collect()
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
        "auto" => {
            let device = Device::cuda_if_available();
            if !device.is_cuda() {
                log::info!("no GPU that this libtorch can use: networks run on the CPU");
            }
            Ok(device)
        }
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

/// Makes operator threads sleep while they wait for work instead of spinning for long,
/// which halves the speed of several processes on the same cores. Call it first in `main`.
///
/// They still spin for some microseconds, the time between two operators of a small
/// batch: that makes ResNet-50 a tenth faster on two threads, and two such processes on
/// two cores 2 to 6 % slower.
///
/// OpenMP reads its settings once, when the process is loaded, and only from the
/// environment; so this starts the same executable anew in the same process, with the
/// settings. It does nothing where one thread computes (nobody waits) or where the
/// policy was given. *Errors*: the executable could not be started anew; the process
/// goes on as it was, only slower in company.
pub fn wait_passively(threads: usize) -> io::Result<()> {
    const POLICY: &str = "OMP_WAIT_POLICY";
    if threads <= 1 || std::env::var_os(POLICY).is_some() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(POLICY, "passive");
    if std::env::var_os("GOMP_SPINCOUNT").is_none() {
        command.env("GOMP_SPINCOUNT", "1000");
    }
    Err(command.exec())
}

/// Keeps the memory of one batch's maps for the next instead of giving it back to the
/// system each time, which costs a network of ordinary operators up to a sixth of its
/// speed; at most 256 MiB stay.
fn keep_memory() {
    #[cfg(target_env = "gnu")]
    {
        const MIB: libc::c_int = 1 << 20;
        // SAFETY: it takes two integers, at any time and from any thread.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * MIB);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 256 * MIB);
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
