//! `make bench-models`: milliseconds an image takes in our engine, in the plain network
//! operator by operator, and in ONNX Runtime and OpenVINO on the same weights.
//!
//! All take turns within one run, several rounds of each, and the median round counts, so
//! that a noisy machine slows all of them alike. The first image's logits of each peer
//! are compared with ours: it is the same network.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dlc::models::engine::{self, Engine};
use dlc::models::lenet::LeNet;
use dlc::models::manifest::{Architecture, INT8_RANGES, Manifest, Precision};
use dlc::models::resnet50::ResNet50;
use dlc::models::route::Route;
use dlc::models::weights::Weights;
use dlc::types::Digest;
use tch::{Device, Tensor};

/// What the engine is measured against, beside the plain network.
const PEERS: [&str; 2] = ["onnxruntime", "openvino"];
/// Rounds; the median of each runner's counts.
const ROUNDS: usize = 7;
/// Pause before each turn: pools of threads spin for a while after their last work.
const PAUSE: Duration = Duration::from_millis(30);
/// Side of ResNet-50's images, in pixels.
const SIDE: u32 = 224;
/// Largest difference of a peer's logits from ours, for each unit of the largest.
const TOLERANCE: f32 = 1e-3;

/// Something that classifies batches.
trait Runner {
    fn name(&self) -> &str;

    /// Median milliseconds of an image over `seconds` of batches of `count`, and the
    /// first image's logits where it gives them.
    fn run(&mut self, count: usize, seconds: f64) -> Result<(f64, Vec<f32>)>;
}

/// A batch whose number i is sin(i).
fn batch(count: usize, manifest: &Manifest) -> Vec<f32> {
    let length = count * manifest.input.len();
    (0..length).map(|i| (i as f64).sin() as f32).collect()
}

/// Calls `run` for `seconds`; the median milliseconds of one of `count` images.
fn time(count: usize, seconds: f64, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    let start = Instant::now();
    while times.is_empty() || start.elapsed().as_secs_f64() < seconds {
        let turn = Instant::now();
        run()?;
        times.push(turn.elapsed().as_secs_f64());
    }
    Ok(1e3 * median(times) / count as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Our engine, as the inference thread calls it: numbers in, labels out.
struct Ours {
    name: &'static str,
    engine: Engine,
    manifest: Manifest,
    route: Route,
}

impl Runner for Ours {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&mut self, count: usize, seconds: f64) -> Result<(f64, Vec<f32>)> {
        let batch = batch(count, &self.manifest);
        // A size is packed when it comes again.
        for _ in 0..3 {
            self.engine.classify(&batch, count)?;
        }
        let route = self.engine.route();
        ensure!(route == self.route, "batch {count} goes {route:?}");
        let milliseconds = time(count, seconds, || {
            self.engine.classify(&batch, count)?;
            Ok(())
        })?;
        Ok((milliseconds, Vec::new()))
    }
}

/// The plain network, operator by operator, as tch users write it.
struct Eager {
    network: Box<dyn Fn(&Tensor) -> Tensor>,
    manifest: Manifest,
}

impl Runner for Eager {
    fn name(&self) -> &str {
        "tch eager"
    }

    fn run(&mut self, count: usize, seconds: f64) -> Result<(f64, Vec<f32>)> {
        let numbers = batch(count, &self.manifest);
        let input = &self.manifest.input;
        let shape = [
            count as i64,
            input.channels.into(),
            input.height.into(),
            input.width.into(),
        ];
        let logits = tch::no_grad(|| (self.network)(&Tensor::from_slice(&numbers).view(shape)));
        let first = Vec::<f32>::try_from(logits.get(0))?;
        let milliseconds = time(count, seconds, || {
            let batch = Tensor::from_slice(&numbers).view(shape);
            let _ = tch::no_grad(|| (self.network)(&batch));
            Ok(())
        })?;
        Ok((milliseconds, first))
    }
}

/// ONNX Runtime or OpenVINO, in a Python process of its own.
struct Peer {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(
        python: &Path,
        name: &str,
        manifest: &Manifest,
        weights: &Path,
        threads: usize,
    ) -> Result<Peer> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/peers.py");
        let architecture = match manifest.architecture {
            Architecture::Lenet => "lenet",
            _ => "resnet50",
        };
        let mut child = Command::new(python)
            .arg(script)
            .args([name, architecture])
            .arg(weights)
            .args([manifest.input.height.to_string(), threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| python.display().to_string())?;
        let input = child.stdin.take().context("piped")?;
        let output = BufReader::new(child.stdout.take().context("piped")?);
        let mut peer = Peer {
            name: name.into(),
            child,
            input,
            output,
        };
        ensure!(peer.line()?.trim() == "ready", "{name} did not start");
        Ok(peer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Runner for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, count: usize, seconds: f64) -> Result<(f64, Vec<f32>)> {
        writeln!(self.input, "{count} {seconds}")?;
        let line = self.line()?;
        let mut numbers = line.split_whitespace();
        let milliseconds = numbers.next().context("it gave no time")?.parse()?;
        let logits = numbers.map(str::parse).collect::<Result<_, _>>()?;
        Ok((milliseconds, logits))
    }
}

/// Everything that is compared on one model with that many threads.
fn runners(
    manifest: &Manifest,
    weights: &Path,
    python: Option<&Path>,
    threads: usize,
) -> Result<Vec<Box<dyn Runner>>> {
    let bytes = std::fs::read(weights).with_context(|| weights.display().to_string())?;
    let mut manifest = manifest.clone();
    manifest.digest = None;
    let engine = Engine::load(&manifest, &bytes, Digest::of(&bytes), Device::Cpu, threads)?;
    let tensors = Weights::from_safetensors(&manifest.name, &bytes)?;
    let network: Box<dyn Fn(&Tensor) -> Tensor> = match manifest.architecture {
        Architecture::Lenet => {
            let network = LeNet::load(tensors, Device::Cpu)?;
            Box::new(move |batch| network.forward(batch))
        }
        _ => {
            let network = ResNet50::load(tensors, Device::Cpu)?;
            Box::new(move |batch| network.forward(batch))
        }
    };
    let ours = manifest.clone();
    let quantised = int8(&manifest, &bytes, threads)?;
    let mut runners: Vec<Box<dyn Runner>> = vec![
        Box::new(Ours {
            name: "ours",
            engine,
            manifest: ours,
            route: Route::Fused,
        }),
        Box::new(Eager {
            network,
            manifest: manifest.clone(),
        }),
    ];
    for name in PEERS {
        let Some(python) = python else { continue };
        match Peer::start(python, name, &manifest, weights, threads) {
            Ok(peer) => runners.push(Box::new(peer)),
            Err(error) => println!("{name} is left out: {error:#}"),
        }
    }
    runners.extend(quantised);
    Ok(runners)
}

/// Our engine in 8-bit integers, where the network and the processor can do that. The
/// ranges are made up: how long it takes does not depend on them.
fn int8(manifest: &Manifest, bytes: &[u8], threads: usize) -> Result<Option<Box<dyn Runner>>> {
    if manifest.architecture != Architecture::Resnet50 {
        return Ok(None);
    }
    let mut manifest = manifest.clone();
    manifest.precision = Precision::Int8;
    manifest.ranges = vec![[-4.0, 8.0]; INT8_RANGES];
    let engine = Engine::load(&manifest, bytes, Digest::of(bytes), Device::Cpu, threads)?;
    if engine.route() != Route::Int8 {
        println!("8-bit integers are left out: this machine cannot do them");
        return Ok(None);
    }
    Ok(Some(Box::new(Ours {
        name: "ours int8",
        engine,
        manifest,
        route: Route::Int8,
    })))
}

/// One row: milliseconds of each runner, and our speed as a multiple of the plain
/// network's and of the best peer's.
fn row(runners: &mut [Box<dyn Runner>], count: usize, seconds: f64) -> Result<String> {
    let mut times = vec![Vec::new(); runners.len()];
    let mut expected: Option<Vec<f32>> = None;
    for _ in 0..ROUNDS {
        for (runner, times) in runners.iter_mut().zip(&mut times) {
            std::thread::sleep(PAUSE);
            let (milliseconds, logits) = runner.run(count, seconds)?;
            times.push(milliseconds);
            match &expected {
                _ if logits.is_empty() => {}
                None => expected = Some(logits),
                Some(expected) => compare(runner.name(), &logits, expected)?,
            }
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    let peers = runners.iter().zip(&medians);
    let peers = peers.filter(|(runner, _)| PEERS.contains(&runner.name()));
    let best = peers.fold(f64::INFINITY, |best, (_, median)| best.min(*median));
    let mut text = format!("{count:>5}");
    medians
        .iter()
        .for_each(|milliseconds| text.push_str(&format!(" {milliseconds:>12.4}")));
    text.push_str(&format!(" {:>12.2}", medians[1] / medians[0]));
    if best.is_finite() {
        text.push_str(&format!(" {:>12.2}", best / medians[0]));
    }
    Ok(text)
}

fn compare(name: &str, logits: &[f32], expected: &[f32]) -> Result<()> {
    let largest = expected
        .iter()
        .fold(0f32, |largest, logit| largest.max(logit.abs()));
    let same = logits.len() == expected.len()
        && logits
            .iter()
            .zip(expected)
            .all(|(found, wanted)| (found - wanted).abs() <= TOLERANCE * largest);
    ensure!(
        same,
        "{name} gives other logits: {logits:?} instead of {expected:?}"
    );
    Ok(())
}

fn main() -> Result<()> {
    // As `node` does where one operator may use two threads.
    engine::wait_passively(2).ok();
    let python = std::env::var_os("PEERS_PYTHON").map(PathBuf::from);
    let only = std::env::args().nth(1);
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    for (model, counts, seconds) in [
        ("lenet", [1, 2, 4, 8, 16, 64, 256].as_slice(), 0.1),
        ("resnet50", [1, 2, 4, 8, 16].as_slice(), 0.5),
    ] {
        if only.as_ref().is_some_and(|only| only != model) {
            continue;
        }
        let (mut manifest, _) = Manifest::read(&models.join(format!("{model}.toml")))?;
        if manifest.architecture == Architecture::Resnet50 {
            (manifest.input.height, manifest.input.width) = (SIDE, SIDE);
            manifest.input.resize = None;
        }
        let weights = models.join(&manifest.weights);
        for threads in [1, 2] {
            let mut runners = runners(&manifest, &weights, python.as_deref(), threads)?;
            engine::use_threads(threads);
            let side = manifest.input.height;
            println!("\n{model}, {side} x {side}, threads: {threads}; milliseconds an image");
            print!("batch");
            runners
                .iter()
                .for_each(|runner| print!(" {:>12}", runner.name()));
            println!("    vs eager      vs best");
            for count in counts {
                println!("{}", row(&mut runners, *count, seconds)?);
            }
        }
    }
    Ok(())
}
