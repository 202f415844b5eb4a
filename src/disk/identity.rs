//! Who a data directory is: what a node must not forget between two starts.
//!
//! Decides: that a directory belongs to one node name and one running process, and
//! that its boot counter is on disk before anything is said with it. Leaves to others:
//! where fresh ids come from, and what the values mean.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{DiskError, at, replace_file};
use crate::types::{ClusterId, Incarnation, NodeId, StorageId};

const ADDRESS: &str = "address";
/// Content of the file `format`: the version of the layout.
const FORMAT: &str = "dlc data directory, format 4\n";
/// Most member addresses that are kept; the newest list replaces the older one.
const MEMBERS_MAX: usize = 1000;

/// What is remembered of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name that the directory belongs to.
    pub node: NodeId,
    /// Drawn when the directory was made.
    pub storage: StorageId,
    /// Highest incarnation that was ever used, that of this start included.
    pub incarnation: Incarnation,
    /// The cluster that the node is of, once it has joined one.
    pub cluster: Option<ClusterId>,
    /// It has begun that cluster, and the log's first entry was not safe yet.
    pub forming: bool,
    /// Members it knew last, to ask when no introducer is up.
    pub members: Vec<SocketAddr>,
}

/// The identity as JSON, so that people can read it. Ids are hexadecimal text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    node: String,
    storage: String,
    incarnation: u64,
    cluster: Option<String>,
    #[serde(default)]
    forming: bool,
    members: Vec<SocketAddr>,
}

/// A data directory that this process holds alone until it is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    identity: Identity,
    /// The lock is the open file description's: it goes with the process, however that ends.
    _lock: File,
}

/// Where the node of the data directory `path` said that it listens; it may have died since.
pub fn last_address(path: &Path) -> Option<SocketAddr> {
    fs::read_to_string(path.join(ADDRESS)).ok()?.parse().ok()
}

impl DataDirectory {
    /// Takes the directory `path` for node `node`, making it with storage id `fresh` where
    /// it is not there yet, and raises its incarnation, fsynced.
    ///
    /// *Errors*: used by another process, of another node or format, or damaged.
    pub fn open(path: &Path, node: &NodeId, fresh: StorageId) -> Result<Self, DiskError> {
        fs::create_dir_all(path).map_err(at("create the directory", path))?;
        let lock = lock(path)?;
        let mut identity = match read(path)? {
            Some(identity) if identity.node != *node => {
                return Err(DiskError::Damaged {
                    path: path.join("identity.json"),
                    problem: format!(
                        "this data directory belongs to node {}, not {node}: give another --data-dir",
                        identity.node
                    ),
                });
            }
            // Made and not used yet, or a person took a damaged log away: what was promised on it is
            // forgotten, so that this is a new server, with the blobs of the old one.
            Some(identity) if !path.join("format").exists() && !path.join("log").exists() => {
                Identity {
                    storage: fresh,
                    forming: false,
                    ..identity
                }
            }
            Some(identity) => identity,
            None => Identity {
                node: node.clone(),
                storage: fresh,
                incarnation: Incarnation(0),
                cluster: None,
                forming: false,
                members: Vec::new(),
            },
        };
        identity.incarnation.0 += 1;
        let directory = DataDirectory {
            path: path.into(),
            identity,
            _lock: lock,
        };
        directory.save()?;
        // Last, so that a directory with a format has an identity and a log.
        if !path.join("format").exists() {
            super::journal::create(path)?;
            replace_file(&path.join("format"), &[FORMAT.as_bytes()])?;
        }
        Ok(directory)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is remembered now.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Remembers an incarnation that membership uses; lower ones than known change nothing.
    pub fn set_incarnation(&mut self, incarnation: Incarnation) -> Result<(), DiskError> {
        if incarnation <= self.identity.incarnation {
            return Ok(());
        }
        self.identity.incarnation = incarnation;
        self.save()
    }

    /// Remembers the cluster that the node has joined, and where it has `formed` it that the log is
    /// still to begin.
    pub fn set_cluster(&mut self, cluster: ClusterId, formed: bool) -> Result<(), DiskError> {
        if self.identity.cluster == Some(cluster) {
            return Ok(());
        }
        self.identity.cluster = Some(cluster);
        self.identity.forming = formed;
        self.save()
    }

    /// The log has begun.
    pub fn set_formed(&mut self) -> Result<(), DiskError> {
        self.identity.forming = false;
        self.save()
    }

    /// Remembers where the members are, at most 1,000 of them.
    pub fn set_members(&mut self, mut members: Vec<SocketAddr>) -> Result<(), DiskError> {
        members.truncate(MEMBERS_MAX);
        if self.identity.members == members {
            return Ok(());
        }
        self.identity.members = members;
        self.save()
    }

    /// Says where the node listens while it runs, for clients on this machine.
    pub fn set_address(&self, addr: SocketAddr) -> Result<(), DiskError> {
        replace_file(&self.path.join(ADDRESS), &[addr.to_string().as_bytes()])
    }

    fn save(&self) -> Result<(), DiskError> {
        let record = Record {
            node: self.identity.node.to_string(),
            storage: format!("{:032x}", self.identity.storage.0),
            incarnation: self.identity.incarnation.0,
            cluster: self
                .identity
                .cluster
                .map(|cluster| format!("{:032x}", cluster.0)),
            forming: self.identity.forming,
            members: self.identity.members.clone(),
        };
        let mut text = serde_json::to_string_pretty(&record).expect("plain data");
        text.push('\n');
        replace_file(&self.path.join("identity.json"), &[text.as_bytes()])
    }
}

fn lock(path: &Path) -> Result<File, DiskError> {
    let name = path.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(at("open", &name))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DiskError::InUse(path.into())),
        Err(errno) => Err(at("lock", &name)(errno.into())),
    }
}

/// The identity in the directory; none where the directory is new.
fn read(path: &Path) -> Result<Option<Identity>, DiskError> {
    let format = read_text(&path.join("format"))?;
    let damaged = |file: &str, problem: String| DiskError::Damaged {
        path: path.join(file),
        problem,
    };
    if let Some(format) = &format
        && format != FORMAT
    {
        let problem = format!(
            "this program reads {FORMAT:?} and found {:?}: use the program that wrote it, or another --data-dir",
            format.chars().take(80).collect::<String>()
        );
        return Err(damaged("format", problem));
    }
    let Some(text) = read_text(&path.join("identity.json"))? else {
        if format.is_some() || path.join("log").exists() || path.join("blobs").exists() {
            let problem = "missing beside older data: restore it, or give another --data-dir";
            return Err(damaged("identity.json", problem.into()));
        }
        return Ok(None);
    };
    parse(&text).map(Some).map_err(|problem| {
        let remedy = "restore it, or give another --data-dir";
        damaged("identity.json", format!("{problem}: {remedy}"))
    })
}

fn parse(text: &str) -> Result<Identity, String> {
    let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let hexadecimal = |text: &str| {
        u128::from_str_radix(text, 16).map_err(|_| format!("{text:?} is not hexadecimal"))
    };
    Ok(Identity {
        node: NodeId::new(&record.node).map_err(|error| error.to_string())?,
        storage: StorageId(hexadecimal(&record.storage)?),
        incarnation: Incarnation(record.incarnation),
        cluster: match &record.cluster {
            Some(text) => Some(ClusterId(hexadecimal(text)?)),
            None => None,
        },
        forming: record.forming,
        members: record.members,
    })
}

fn read_text(path: &Path) -> Result<Option<String>, DiskError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("read", path)(error)),
    }
}
