//! `train`: trains and evaluates networks, without a cluster.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use dlc::models::engine::wait_passively;
use dlc::models::mnist::{self, Split};
use dlc::models::training::{self, Recipe};

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
    Lenet {
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
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// Count the MNIST test images that a model classifies correctly
    Evaluate {
        /// The model's name
        model: String,
        /// Folder of MNIST's files
        #[arg(long, default_value = "data/mnist")]
        data: PathBuf,
        /// Folder of the model's manifest and weights
        #[arg(long, default_value = "models")]
        models: PathBuf,
        /// Threads of one operator
        #[arg(long, default_value_t = 1)]
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
    let started = Instant::now();
    let arguments = Arguments::parse();
    if let Task::Lenet { threads, .. } | Task::Evaluate { threads, .. } = &arguments.command {
        // Failing this costs speed only.
        if let Err(error) = wait_passively(*threads) {
            eprintln!("threads spin while they wait: cannot start anew: {error}");
        }
    }
    match arguments.command {
        Task::Lenet {
            data,
            models,
            epochs,
            seed,
            threads,
        } => {
            let recipe = Recipe {
                data,
                models,
                epochs,
                seed,
                threads,
            };
            let outcome = training::train_lenet(&recipe, |line| println!("{line}"))?;
            println!("{}: digest {}", outcome.weights.display(), outcome.digest);
            println!("trained in {:.0} s", started.elapsed().as_secs_f64());
            print_accuracy("lenet", outcome.right, outcome.total);
        }
        Task::Evaluate {
            model,
            data,
            models,
            threads,
        } => {
            let model = dlc::models::manifest::canonical(&model);
            let (right, total) = training::evaluate(model, &models, &data, threads)?;
            print_accuracy(model, right, total);
        }
        Task::Digits { output, data } => {
            let digits = mnist::read(&data, Split::Test)?;
            let written = mnist::write_digits(&digits, &output)?;
            println!(
                "{}: {} digits, {written} written now",
                output.display(),
                digits.len()
            );
        }
    }
    Ok(())
}

fn print_accuracy(model: &str, right: usize, total: usize) {
    let percent = 100.0 * right as f64 / total as f64;
    println!("{model}: {right} of {total} MNIST test images right ({percent:.2} %)");
}
