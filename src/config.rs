//! What a process is told on its command line.
//!
//! Decides: arguments, their defaults, and that a wrong one ends the process with status
//! 2 before anything is opened; where the cluster key is and how it is made. Leaves to
//! others: what the values do. The parts of the cluster that must agree (periods,
//! limits) are constants of their modules, not arguments.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::types::NodeId;

/// Length of the cluster key, in bytes.
const KEY_LENGTH: usize = 32;

/// Arguments of the executable `node`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "node",
    about = "One member of the cluster. Commands come from standard input; `help` lists them.",
    version
)]
pub struct NodeArguments {
    /// Name of this node: 1 to 63 of the characters A-Z a-z 0-9 . _ -
    #[arg(long, value_parser = node_name)]
    pub name: NodeId,
    /// Where to listen, TCP and UDP on the same port; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0", value_parser = address)]
    pub listen: SocketAddr,
    /// Introducers, separated by commas; the first one may permit a new cluster
    #[arg(
        long,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:6000",
        value_delimiter = ',',
        value_parser = introducer
    )]
    pub introducer: Vec<Introducer>,
    /// Everything that this node must not forget [default: run/NAME]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Join the cluster at once instead of waiting for the command `join`
    #[arg(long)]
    pub join: bool,
    /// Threads for one inference; more than one only where a node has the machine for itself
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// Where networks run: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: Device,
    /// Directory with NAME.toml and weights that `train` publishes
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// Metrics over HTTP; not available yet, and refused
    #[arg(long, value_name = "HOST:PORT", value_parser = not_there_yet)]
    pub http: Option<String>,
    /// Hours in which every copy on this disk is read and checked once; 0: never
    #[arg(long, value_name = "HOURS", default_value_t = 24.0, value_parser = hours)]
    pub scrub: f64,
    /// Percent of its time that a thread copies files for repair while this node computes
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repair_share: u32,
    /// In a cluster of 2 to 4 nodes: take nodes that are gone for crashed, and go on without a
    /// majority. For all nodes or none. After a cut of the network one side's changes are lost
    #[arg(long)]
    pub crash_stop: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub key: KeyArgument,
}

impl NodeArguments {
    /// The data directory: as given, or `run/NAME`.
    pub fn data_directory(&self) -> PathBuf {
        let default = || Path::new("run").join(self.name.as_str());
        self.data_dir.clone().unwrap_or_else(default)
    }

    /// Time in which every copy is checked once; none: never.
    pub fn scrub_period(&self) -> Option<Duration> {
        (self.scrub > 0.0).then(|| Duration::from_secs_f64(self.scrub * 3600.0))
    }

    /// The introducers that have an address, in their order, and whether the one named first
    /// is among them. Those without are named in a warning: any other one will do.
    ///
    /// *Errors*: none has an address.
    pub fn introducers(&self) -> Result<(Vec<SocketAddr>, bool), clap::Error> {
        let mut found = Vec::new();
        let mut errors = Vec::new();
        for introducer in &self.introducer {
            match &introducer.address {
                Ok(addr) => found.push(*addr),
                Err(error) => errors.push(format!("introducer {}: {error}", introducer.text)),
            }
        }
        if found.is_empty() {
            let errors = errors.join("\n");
            return Err(Self::command().error(ErrorKind::ValueValidation, errors));
        }
        for error in errors {
            log::warn!("{error}; it is left out until this node is started again");
        }
        let first = self.introducer.first();
        Ok((found, first.is_some_and(|first| first.address.is_ok())))
    }
}

/// An introducer as the user named it.
#[derive(Clone, Debug)]
pub struct Introducer {
    /// `HOST:PORT`.
    text: String,
    /// Its address, or why there is none.
    address: Result<SocketAddr, String>,
}

/// Arguments of the executable `introducer`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "introducer",
    about = "The place where newcomers ask for the members. It holds nothing that cannot be rebuilt.",
    version
)]
pub struct IntroducerArguments {
    /// Where to listen, TCP and UDP on the same port; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6000", value_parser = address)]
    pub listen: SocketAddr,
    /// Kept for later: it learns everything from the members and stores nothing yet
    #[arg(long, value_name = "DIR", default_value = "run/introducer")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub key: KeyArgument,
}

/// The argument `--cluster-key`, the same for all executables.
#[derive(Clone, Debug, clap::Args)]
pub struct KeyArgument {
    /// File with the cluster's key, 32 random bytes, made if missing. The traffic is NOT
    /// encrypted or authenticated with it yet: anyone who reaches the ports can join
    /// [default: dlc/cluster.key in your configuration folder]
    #[arg(long, value_name = "FILE")]
    pub cluster_key: Option<PathBuf>,
}

impl KeyArgument {
    /// Checks the key file, making it where it is missing. Its path.
    pub fn ensure(&self) -> Result<PathBuf, KeyError> {
        let path = match &self.cluster_key {
            Some(path) => path.clone(),
            None => default_key_path().ok_or(KeyError::NoHome)?,
        };
        ensure_key(&path)?;
        Ok(path)
    }
}

/// Why there is no usable cluster key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Neither `XDG_CONFIG_HOME` nor `HOME` says where it would be.
    #[error("no configuration folder (HOME is not set): give --cluster-key FILE")]
    NoHome,
    /// The file could not be read or made.
    #[error("cluster key {path}: {cause}: give another --cluster-key, or mend its permissions")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The file is something else.
    #[error(
        "cluster key {path} has {found} bytes instead of 32: give another --cluster-key, or remove it to have a new one made"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
    },
}

/// Where networks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(u16),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

fn node_name(text: &str) -> Result<NodeId, String> {
    NodeId::new(text).map_err(|error| error.to_string())
}

fn device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|number| number.parse().ok())
            .map(Device::Cuda)
            .ok_or_else(|| "use auto, cpu, or cuda:N with the number of a GPU".into()),
    }
}

/// The first address that `HOST:PORT` stands for, IPv4 before IPv6.
fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}: use HOST:PORT, as in 127.0.0.1:6000"))?;
    let mut all: Vec<SocketAddr> = found.collect();
    all.sort_by_key(SocketAddr::is_ipv6);
    all.first()
        .copied()
        .ok_or_else(|| "the host has no address: use HOST:PORT".into())
}

/// An introducer. A host without an address is no wrong argument: it may be down.
fn introducer(text: &str) -> Result<Introducer, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port
        .and_then(|(_, port)| port.parse::<u16>().ok())
        .is_none()
    {
        return Err("use HOST:PORT, as in 127.0.0.1:6000".into());
    }
    Ok(Introducer {
        text: text.into(),
        address: address(text),
    })
}

fn hours(text: &str) -> Result<f64, String> {
    let hours: f64 = text.parse().map_err(|_| "give a number of hours")?;
    match (0.0..=1e5).contains(&hours) {
        true => Ok(hours),
        false => Err("give 0 to 100000 hours".into()),
    }
}

fn not_there_yet(_: &str) -> Result<String, String> {
    Err("this is not available yet: leave it out".into())
}

fn default_key_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = match set("XDG_CONFIG_HOME").map(PathBuf::from) {
        // The specification says that relative paths are to be ignored.
        Some(folder) if folder.is_absolute() => folder,
        _ => Path::new(&set("HOME")?).join(".config"),
    };
    Some(folder.join("dlc").join("cluster.key"))
}

/// Makes the key in a file of its own and links it to its name, so that of several
/// processes that start at once one wins and none reads half a key.
fn ensure_key(path: &Path) -> Result<(), KeyError> {
    let failed = |cause| KeyError::Io {
        path: path.into(),
        cause,
    };
    loop {
        match fs::metadata(path) {
            Ok(metadata) if metadata.len() == KEY_LENGTH as u64 => {
                return fs::read(path).map(drop).map_err(failed);
            }
            Ok(metadata) => {
                let (path, found) = (path.into(), metadata.len());
                return Err(KeyError::Length { path, found });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        match make_key(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
    }
}

fn make_key(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut key = [0; KEY_LENGTH];
    random(&mut key)?;
    let mut suffix = [0; 8];
    random(&mut suffix)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}", u64::from_le_bytes(suffix)));
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let made = file
        .write_all(&key)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    made
}

/// Fills `bytes` from the operating system's generator.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::error::ErrorKind;

    use super::*;

    fn node(arguments: &[&str]) -> Result<NodeArguments, clap::Error> {
        let own = ["node", "--name", "n1"];
        NodeArguments::try_parse_from(own.iter().chain(arguments))
    }

    #[test]
    fn the_defaults_are_those_of_the_interface() {
        let arguments = node(&[]).expect("valid");
        assert_eq!(arguments.listen.to_string(), "127.0.0.1:0");
        assert_eq!(arguments.introducer.len(), 1);
        assert_eq!(arguments.data_directory(), Path::new("run/n1"));
        assert_eq!(arguments.device, Device::Auto);
        assert!(!arguments.join);
        let introducer = IntroducerArguments::try_parse_from(["introducer"]).expect("valid");
        assert_eq!(introducer.listen.to_string(), "127.0.0.1:6000");
        assert_eq!(introducer.data_dir, Path::new("run/introducer"));
    }

    #[test]
    fn values_are_taken_over() {
        let arguments = node(&[
            "--introducer",
            "127.0.0.1:1,[::1]:2",
            "--device",
            "cuda:3",
            "--data-dir",
            "x/y",
            "--threads",
            "2",
            "--join",
        ])
        .expect("valid");
        let (introducers, first) = arguments.introducers().expect("both are addresses");
        let introducers: Vec<String> = introducers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(
            (introducers, first),
            (vec!["127.0.0.1:1".into(), "[::1]:2".into()], true)
        );
        assert_eq!(arguments.device, Device::Cuda(3));
        assert_eq!(arguments.data_directory(), Path::new("x/y"));
        assert_eq!(arguments.threads, 2);
        assert!(arguments.join);
    }

    #[test]
    fn an_introducer_without_an_address_is_left_out_where_another_has_one() {
        // `.invalid` never resolves (RFC 2606).
        let (last, none) = ("a.invalid:1,127.0.0.1:2", "a.invalid:1,b.invalid:2");
        let arguments = node(&["--introducer", last]).expect("valid");
        let (introducers, first) = arguments.introducers().expect("one is left");
        assert_eq!((introducers.len(), first), (1, false));
        let arguments = node(&["--introducer", none]).expect("valid");
        let error = arguments.introducers().expect_err("none is left");
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(
            error.contains("a.invalid:1") && error.contains("b.invalid:2"),
            "{error}"
        );
    }

    #[test]
    fn wrong_arguments_are_usage_errors() {
        for wrong in [
            &["--nmae", "x"][..],
            &["surplus"],
            &["--listen", "127.0.0.1"],
            &["--listen", "127.0.0.1:99999"],
            &["--introducer", "127.0.0.1"],
            &["--introducer", ":6000"],
            &["--introducer", "127.0.0.1:1,127.0.0.1:99999"],
            &["--device", "gpu"],
            &["--threads", "0"],
            &["--http", "127.0.0.1:80"],
        ] {
            let error = node(wrong).expect_err("refused");
            assert_eq!(error.exit_code(), 2, "{wrong:?}: {error}");
        }
        let error = NodeArguments::try_parse_from(["node", "--name", "a b"]).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ValueValidation);
        let error = node(&["--http", "127.0.0.1:80"]).expect_err("refused");
        assert!(error.to_string().contains("not available yet"), "{error}");
    }

    #[test]
    fn a_missing_key_is_made_once_for_its_owner_only() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("deep/cluster.key");
        let key = KeyArgument {
            cluster_key: Some(path.clone()),
        };
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let key = key.clone();
                std::thread::spawn(move || {
                    let path = key.ensure().expect("made");
                    fs::read(path).expect("read")
                })
            })
            .collect();
        let keys: Vec<Vec<u8>> = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect();
        assert!(keys.iter().all(|found| found == &keys[0]));
        assert_eq!(keys[0].len(), 32);
        assert_ne!(keys[0], [0; 32]);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = fs::read_dir(path.parent().expect("a folder")).expect("listed");
        assert_eq!(files.count(), 1);
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("key");
        fs::write(&path, "short").expect("written");
        let cluster_key = Some(path.clone());
        let error = KeyArgument { cluster_key }.ensure().expect_err("refused");
        assert!(error.to_string().contains(&path.display().to_string()));
        assert_eq!(fs::read(&path).expect("read"), b"short");
    }
}
