//! `dlc`: runs one command on a running node.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage or no such node.

use std::io::Write;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dlc::config::KeyArgument;
use dlc::console::client::{Client, ClientError};
use dlc::console::{command, place, run, stdin};

/// Runs one command on a running node of the cluster. `dlc help` lists the commands.
#[derive(Parser)]
#[command(name = "dlc", version, disable_help_subcommand = true)]
struct Arguments {
    /// The node to ask; default: $DLC_NODE, else the first node found under run/.
    #[arg(long, value_name = "HOST:PORT", env = "DLC_NODE")]
    node: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: KeyArgument,
    /// The command and its words.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    words: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let command = match command::parse(&arguments.words) {
        Ok(Some(command)) => command,
        Ok(None) => return fail(2, "no command given: `dlc help` lists them"),
        Err(error) => return fail(2, &error.to_string()),
    };
    if let Err(error) = arguments.key.ensure() {
        return fail(2, &error.to_string());
    }
    let addr = match node_address(arguments.node.as_deref(), Path::new("run")) {
        Ok(addr) => addr,
        // `help` needs no node.
        Err(_) if matches!(command, command::Command::Help(_)) => {
            SocketAddr::from(([127, 0, 0, 1], 0))
        }
        Err(why) => return fail(2, &why),
    };
    // What is not whole yet goes; a node that hears no more of this client ends its uploads.
    let interrupted = || {
        place::abandon_all();
        std::process::exit(130);
    };
    if let Err(error) = ctrlc::set_handler(interrupted) {
        return fail(1, &format!("cannot handle signals: {error}"));
    }
    match run::run(&mut Client::new(addr), &command, &mut ask) {
        Ok(answer) if arguments.json => say(&answer.json.to_string()),
        Ok(answer) => say(&answer.text),
        Err(error @ ClientError::NoNode { .. }) => return fail(2, &error.to_string()),
        Err(error) => return fail(1, &error.to_string()),
    }
    ExitCode::SUCCESS
}

/// Asks on stderr; the answer is a line of stdin, of a person or of a script.
fn ask(text: &str) -> bool {
    eprint!("{text}\nyes or no> ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && stdin::is_yes(&answer)
}

/// Prints an answer. Whoever has closed our stdout (`| head`) wants no more of it.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn fail(status: u8, why: &str) -> ExitCode {
    eprintln!("dlc: {why}");
    ExitCode::from(status)
}

/// The address given, or that of the first node under `run` that answers.
fn node_address(given: Option<&str>, run: &Path) -> Result<SocketAddr, String> {
    let Some(text) = given else {
        let none = "no running node found under run/: name one with --node HOST:PORT or $DLC_NODE";
        return first_running(run).ok_or(none.into());
    };
    let mut addresses = text
        .to_socket_addrs()
        .map_err(|error| format!("{text:?} is no HOST:PORT: {error}"))?;
    addresses
        .next()
        .ok_or_else(|| format!("{text:?} has no address"))
}

/// The first data directory, by name, whose node answers at the address it left there.
fn first_running(run: &Path) -> Option<SocketAddr> {
    let mut directories: Vec<PathBuf> = std::fs::read_dir(run)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    directories.sort();
    let addresses = directories
        .iter()
        .filter_map(|directory| dlc::disk::last_address(directory));
    let mut answering = addresses
        .filter(|addr| TcpStream::connect_timeout(addr, Duration::from_millis(200)).is_ok());
    answering.next()
}
