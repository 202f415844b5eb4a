//! `train`: trains and evaluates networks, without a cluster.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dlc::models::engine::{device, wait_passively};
use dlc::models::manifest::canonical;
use dlc::models::mnist::{self, Split};
use dlc::models::training::evaluate::{self, Evaluation};
use dlc::models::training::{Trained, calibrate, lenet, resnet50};
use tch::{Device, Kind};

/// Train and evaluate networks, without a cluster.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Train LeNet on MNIST; a killed run resumes when it is started again
    Lenet(Lenet),
    /// Train ResNet-50 on a folder of photographs for each class; a killed run resumes when
    /// it is started again
    Resnet50(Resnet50),
    /// Make a model of 8-bit integers, MODEL-int8, out of a ResNet-50 of floats: several times
    /// as fast; written only where it loses at most half a point on the test images
    Int8 {
        /// The model's name
        model: String,
        /// Folder with a folder of photographs for each class
        #[arg(long, default_value = "data/flowers")]
        data: PathBuf,
        /// Folder of the model's manifest and weights
        #[arg(long, default_value = "models")]
        models: PathBuf,
        /// Training images that the ranges are measured on
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
        images: u16,
        /// Threads of one operator
        #[arg(long, default_value_t = 1, value_parser = threads)]
        threads: usize,
    },
    /// Count what a model says of test images: MNIST's, or the test part of photographs
    Evaluate {
        /// The model's name
        model: String,
        /// Folder of MNIST's files, or with a folder of photographs for each class
        /// [default: data/mnist for lenet, data/flowers for others]
        #[arg(long)]
        data: Option<PathBuf>,
        /// Folder of the model's manifest and weights
        #[arg(long, default_value = "models")]
        models: PathBuf,
        /// Where the network runs: auto, cpu or cuda:N
        #[arg(long, default_value = "auto")]
        device: String,
        /// Threads of one operator
        #[arg(long, default_value_t = 1, value_parser = threads)]
        threads: usize,
    },
    /// Write the MNIST test images as digit0.png, digit1.png, … with labels.csv
    Digits {
        /// Folder to write into
        output: PathBuf,
        /// Folder of MNIST's files
        #[arg(long, default_value = "data/mnist")]
        data: PathBuf,
    },
}

#[derive(Args)]
struct Lenet {
    /// Folder of MNIST's files
    #[arg(long, default_value = "data/mnist")]
    data: PathBuf,
    /// Folder of lenet.toml, where the weights go
    #[arg(long, default_value = "models")]
    models: PathBuf,
    /// Passes over the training images
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Source of all randomness
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads of one operator; the committed weights were made with 1
    #[arg(long, default_value_t = 1, value_parser = threads)]
    threads: usize,
}

#[derive(Args)]
struct Resnet50 {
    /// Folder with a folder of photographs for each class
    #[arg(long, default_value = "data/flowers")]
    data: PathBuf,
    /// Folder of the model's manifest, where the weights go
    #[arg(long, default_value = "models")]
    models: PathBuf,
    /// The model; its manifest has architecture = "resnet50", and the folders as its labels
    #[arg(long, default_value = "resnet50")]
    model: String,
    /// Weights under torchvision's names (.safetensors) to start from
    #[arg(long)]
    from: Option<PathBuf>,
    /// Passes over the training images
    #[arg(long, default_value_t = 72, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Side of the training images in the last epochs, in pixels; smaller ones come before
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(32..=1024))]
    side: u32,
    /// Images in a step
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(2..=4096))]
    batch: u16,
    /// Largest step size; a tenth of it suits weights to start from
    #[arg(long, default_value_t = 0.0004, value_parser = rate)]
    rate: f64,
    /// Source of all randomness
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads of one operator on the CPU
    #[arg(long, default_value_t = cores(), value_parser = threads)]
    threads: usize,
    /// Threads that decode images [default: 1 on the CPU, all cores on a GPU]
    #[arg(long)]
    loaders: Option<usize>,
    /// Where the network is trained: auto, cpu or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Numbers of the convolutions' inputs
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    precision: Precision,
}

/// Numbers of the convolutions' inputs.
#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    /// bf16 on a GPU and on processors that have instructions for it, else f32
    Auto,
    /// 32 bits
    F32,
    /// 16 bits (bfloat16), with weights and sums in 32
    Bf16,
}

impl Precision {
    fn kind(self, device: Device) -> Kind {
        match self {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
            Precision::Auto if device.is_cuda() || has_bf16() => Kind::BFloat16,
            Precision::Auto => Kind::Float,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_bf16() -> bool {
    false
}

/// A number of threads that a machine can have.
fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("use 1 to 1024".into()),
    }
}

/// A step size.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("use a number above 0, such as 0.0004".into()),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("train: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let arguments = Arguments::parse();
    let threads = match &arguments.command {
        Task::Lenet(Lenet { threads, .. })
        | Task::Resnet50(Resnet50 { threads, .. })
        | Task::Int8 { threads, .. }
        | Task::Evaluate { threads, .. } => *threads,
        Task::Digits { .. } => 1,
    };
    // Failing this costs speed only.
    if let Err(error) = wait_passively(threads) {
        eprintln!("threads spin while they wait: cannot start anew: {error}");
    }
    match arguments.command {
        Task::Lenet(arguments) => train_lenet(arguments),
        Task::Resnet50(arguments) => train_resnet50(arguments),
        Task::Int8 {
            model,
            data,
            models,
            images,
            threads,
        } => {
            let model = canonical(&model);
            let made = calibrate::calibrate(model, &models, &data, images.into(), threads)?;
            print_count(&format!("{model} in floats"), &made.before);
            print_count(&format!("{model}-int8"), &made.after);
            println!("{}: written", made.manifest.display());
            Ok(())
        }
        Task::Evaluate {
            model,
            data,
            models,
            device: place,
            threads,
        } => {
            let model = canonical(&model);
            let data = data.unwrap_or_else(|| match model {
                "lenet" => "data/mnist".into(),
                _ => "data/flowers".into(),
            });
            let said = evaluate::evaluate(model, &models, &data, device(&place)?, threads)?;
            print!("{}", said.table());
            print_count(model, &said);
            Ok(())
        }
        Task::Digits { output, data } => {
            let digits = mnist::read(&data, Split::Test)?;
            let written = mnist::write_digits(&digits, &output)?;
            println!(
                "{}: {} digits, {written} written now",
                output.display(),
                digits.len()
            );
            Ok(())
        }
    }
}

fn print_count(model: &str, said: &Evaluation) {
    let (right, total) = (said.right(), said.total());
    let percent = 100.0 * right as f64 / total as f64;
    println!("{model}: {right} of {total} test images right ({percent:.2} %)");
}

fn train_lenet(arguments: Lenet) -> anyhow::Result<()> {
    let started = Instant::now();
    let recipe = lenet::Recipe {
        data: arguments.data,
        models: arguments.models,
        epochs: arguments.epochs,
        seed: arguments.seed,
        threads: arguments.threads,
    };
    let trained = lenet::train(&recipe, |line| println!("{line}"))?;
    print_trained(&trained);
    println!("trained in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn train_resnet50(arguments: Resnet50) -> anyhow::Result<()> {
    let started = Instant::now();
    let device = device(&arguments.device)?;
    let loaders = match device.is_cuda() {
        true => cores(),
        false => 1,
    };
    let recipe = resnet50::Recipe {
        data: arguments.data,
        models: arguments.models,
        model: canonical(&arguments.model).into(),
        from: arguments.from,
        epochs: arguments.epochs,
        side: arguments.side,
        batch: arguments.batch.into(),
        rate: arguments.rate,
        seed: arguments.seed,
        threads: arguments.threads,
        loaders: arguments.loaders.unwrap_or(loaders),
        device,
        precision: arguments.precision.kind(device),
    };
    let trained = resnet50::train(&recipe, |line| {
        println!("{line} ({:.0} s)", started.elapsed().as_secs_f64());
    })?;
    print_trained(&trained);
    Ok(())
}

fn print_trained(trained: &Trained) {
    println!("{}: digest {}", trained.weights.display(), trained.digest);
    for manifest in &trained.stale {
        println!(
            "{}: describes the weights that were there before: make it again, by `train int8` where it has 8-bit integers",
            manifest.display()
        );
    }
}
