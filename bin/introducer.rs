//! `introducer`: the place where newcomers ask for the members.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use dlc::config::IntroducerArguments;
use dlc::threads;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(&IntroducerArguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("introducer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &IntroducerArguments) -> anyhow::Result<()> {
    arguments.key.ensure()?;
    let bound = threads::bind(arguments.listen)?;
    println!("listening {}", bound.addr());
    std::io::stdout().flush()?;
    let running = threads::start_introducer(bound)?;
    threads::stop_on_signals(running.stopper())?;
    running.wait().map_err(anyhow::Error::msg)
}
