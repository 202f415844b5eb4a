//! `node`: one member of the cluster.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use dlc::config::NodeArguments;
use dlc::console::{place, stdin};
use dlc::models::{engine, trial};
use dlc::threads::{self, Settings, Torch};

/// Tasks and rows are thousands of small allocations a second.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(code) = trial::child() {
        return code;
    }
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let arguments = NodeArguments::parse();
    if let Err(error) = engine::wait_passively(arguments.threads.into()) {
        log::warn!("inference threads will spin while they wait: {error}");
    }
    let settings = Settings::new(&arguments).unwrap_or_else(|error| error.exit());
    match run(&arguments, settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("node {}: {error:#}", arguments.name);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &NodeArguments, settings: Settings) -> anyhow::Result<()> {
    arguments.key.ensure()?;
    let device = arguments.device.to_string();
    let torch = Torch::new(&device, arguments.threads.into()).map_err(anyhow::Error::msg)?;
    let bound = threads::bind(arguments.listen)?;
    println!("listening {}", bound.addr());
    std::io::stdout().flush()?;
    let running = threads::start(settings, bound, Box::new(torch))?;
    threads::stop_on_signals(running.stopper())?;
    let (addr, stopper, joining) = (running.addr(), running.stopper(), arguments.join);
    // Not joined at the end: it waits for a line that may never come.
    std::thread::Builder::new()
        .name("console".into())
        .spawn(move || {
            if stdin::run_stdin(addr, joining) == stdin::End::Interrupted {
                stopper.stop();
            }
        })?;
    let ended = running.wait().map_err(anyhow::Error::msg);
    // Downloads of its console.
    place::abandon_all();
    ended
}
