//! Trying a network of one's own in a process of its own, before it is let into this one.
//!
//! Decides: that code which ends its process, or never answers, costs its publisher an
//! error and nobody a node. What is tried is what loading does: load, and answer one input
//! and two. Leaves to others: networks of this project's architectures, which hold no
//! foreign code; and code that only misbehaves on some inputs.
//!
//! The process is the executable itself, told by its first argument: so `main` calls
//! [`child`] before anything else. It gets the manifest and the weights on standard input
//! and says on what was its standard output what is wrong, or that nothing is. What the
//! network itself prints goes nowhere.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use tch::Device;

use super::engine::{self, Engine};
use super::error::ModelError;
use super::manifest::Manifest;
use crate::types::Digest;

/// First argument of the process that tries a network.
const FLAG: &str = "--try-network";
/// What it says when nothing is wrong.
const FINE: &str = "fine";
/// How long a network may take to load and to answer.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Tries the network in a process of its own.
///
/// *Errors*: what [`Engine::load`] says there; or that the process ended or did not answer.
pub fn run(manifest: &Manifest, weights: &[u8], device: Device) -> Result<(), ModelError> {
    let failed = |problem: String| ModelError::Trial {
        model: manifest.name.clone(),
        problem,
    };
    let started = start(device).map_err(|e| failed(format!("it cannot be started: {e}")))?;
    let said = converse(started, manifest, weights)
        .map_err(|error| failed(format!("it cannot be talked to: {error}")))?;
    match said {
        Some((said, _)) if said == FINE => Ok(()),
        Some((said, status)) if said.is_empty() => Err(failed(format!(
            "its code ended the process that tried it ({status})"
        ))),
        Some((said, _)) => Err(ModelError::Tried(said)),
        None => Err(failed(format!(
            "it had not answered an image after {} s",
            TIME_MAX.as_secs()
        ))),
    }
}

fn start(device: Device) -> io::Result<Child> {
    // The very file that runs, also where it has been replaced meanwhile.
    let own = Path::new("/proc/self/exe");
    let own = match own.exists() {
        true => own.to_path_buf(),
        false => std::env::current_exe()?,
    };
    let place = match device {
        Device::Cuda(number) => format!("cuda:{number}"),
        _ => "cpu".into(),
    };
    Command::new(own)
        .args([FLAG, &place])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// Hands the network over and waits. What was said and how the process ended; none where
/// it took too long.
fn converse(
    mut child: Child,
    manifest: &Manifest,
    weights: &[u8],
) -> io::Result<Option<(String, ExitStatus)>> {
    let text = toml::to_string(manifest).map_err(io::Error::other)?;
    let (mut input, output) = (child.stdin.take(), child.stdout.take());
    let (sender, answer) = bounded(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            // A process that has ended takes no more: its status says why.
            let _ = input.as_mut().map(|input| {
                input.write_all(&(text.len() as u64).to_le_bytes())?;
                input.write_all(text.as_bytes())?;
                input.write_all(weights)
            });
            drop(input);
        });
        scope.spawn(move || {
            let mut said = String::new();
            let read = output.map(|mut output| output.read_to_string(&mut said));
            let _ = sender.send(read.transpose().map(|_| said));
        });
        match answer.recv_timeout(TIME_MAX) {
            Ok(said) => Ok(Some((said?, child.wait()?))),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                child.kill()?;
                child.wait()?;
                Ok(None)
            }
        }
    })
}

/// The other side: what the process does that was started to try a network; none where
/// this process was started for something else.
pub fn child() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(FLAG) {
        return None;
    }
    // It goes with the node that started it.
    let kill = rustix::process::Signal::KILL;
    let _ = rustix::process::set_parent_process_death_signal(Some(kill));
    let place = arguments.next().unwrap_or_default();
    let said = match take_over_output() {
        Ok(mut output) => {
            let answer = attempt(&place).err().unwrap_or_else(|| FINE.into());
            output.write_all(answer.as_bytes())
        }
        Err(error) => Err(error),
    };
    Some(match said {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

/// Standard output for this module alone: whoever else prints does so into nothing.
fn take_over_output() -> io::Result<File> {
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let nothing = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(nothing)?;
    Ok(output.into())
}

fn attempt(place: &str) -> Result<(), String> {
    let mut given = Vec::new();
    io::stdin()
        .read_to_end(&mut given)
        .map_err(|error| error.to_string())?;
    let short = "the network was not handed over whole";
    let (length, rest) = given.split_first_chunk().ok_or(short)?;
    let length = u64::from_le_bytes(*length) as usize;
    let (text, weights) = rest.split_at_checked(length).ok_or(short)?;
    let manifest = Manifest::parse(text, "the manifest").map_err(|error| error.to_string())?;
    let device = engine::device(place).map_err(|error| error.to_string())?;
    let loaded = Engine::load(&manifest, weights, Digest::of(weights), device, 1);
    loaded.map(|_| ()).map_err(|error| error.to_string())
}
