//! Threads `log` and `disk`: the two that wait for syncs, so that nobody else has to.
//!
//! Decides: nothing; they do what they are told, in order. Leaves to others: what to
//! write, and what a failure means, except that a log waits for room on a full disk, and that
//! one which cannot be written otherwise ends the process, as an identity does: this copy is lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::Shared;
use crate::consensus::LogWrite;
use crate::disk::{Blobs, DataDirectory, DiskError, Journal};
use crate::node::io::Input;
use crate::schedule::jobs::Job;
use crate::types::{BlobId, ClusterId, Digest, FileName, Incarnation};

/// Log writes that wait; consensus never has more than two under way.
pub(super) const WRITES_MAX: usize = 4;
/// How often a log that found its disk full tries again.
const ROOM: Duration = Duration::from_secs(1);
/// Orders that wait for the disk thread.
pub(super) const KEEPS_MAX: usize = 64;

/// What the disk thread does.
pub(super) enum Keep {
    /// Write a job's result file, then report `Written`.
    Write {
        /// Its id.
        blob: BlobId,
        /// The SDFS name.
        name: FileName,
        /// The job with all its rows.
        job: Box<Job>,
    },
    /// Remove blobs.
    Remove(Vec<BlobId>),
    /// Note the cluster, and say when that is on disk.
    Cluster {
        /// The cluster.
        cluster: ClusterId,
        /// This node has formed it, and its log is still to begin.
        formed: bool,
        /// Told when it is noted; room for one.
        done: Sender<()>,
    },
    /// The log of a new cluster has begun.
    Formed,
    /// Note the incarnation.
    Incarnation(Incarnation),
    /// Note where the members are.
    Members(Vec<SocketAddr>),
}

/// Thread `log`: appends and syncs until the channel closes.
pub(super) fn run_log(
    mut journal: Journal,
    writes: Receiver<LogWrite>,
    shared: &Shared,
    results: Sender<Input>,
) -> Result<(), String> {
    for write in writes {
        while let Err(error) = journal.append(&write) {
            if !error.is_full() || shared.crew.is_stopping() {
                return Err(error.to_string());
            }
            log::error!("{error}. Until then this node writes no log, and others go on without it");
            std::thread::sleep(ROOM);
        }
        if results.send(Input::Persisted(write.ticket)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Thread `disk`: carries orders out until the channel closes. It holds the data
/// directory's lock.
pub(super) fn run_disk(
    mut directory: DataDirectory,
    blobs: Arc<Blobs>,
    orders: Receiver<Keep>,
    results: Sender<Input>,
) -> Result<(), String> {
    let noted = |result: Result<(), DiskError>| result.map_err(|error| error.to_string());
    for order in orders {
        match order {
            Keep::Write { blob, name, job } => {
                let written = write(&blobs, blob, &name, &job.csv());
                let result = written.map_err(|error| error.to_string());
                if results.send(Input::Written { blob, result }).is_err() {
                    break;
                }
            }
            Keep::Remove(gone) => {
                // What stays is swept after the next start.
                if let Err(error) = blobs.remove(&gone) {
                    log::warn!("{error}");
                }
            }
            Keep::Cluster {
                cluster,
                formed,
                done,
            } => {
                noted(directory.set_cluster(cluster, formed))?;
                let _ = done.try_send(());
            }
            Keep::Formed => noted(directory.set_formed())?,
            Keep::Incarnation(incarnation) => noted(directory.set_incarnation(incarnation))?,
            Keep::Members(members) => noted(directory.set_members(members))?,
        }
    }
    Ok(())
}

fn write(
    blobs: &Blobs,
    blob: BlobId,
    name: &FileName,
    bytes: &[u8],
) -> Result<(Digest, u64), DiskError> {
    let length = bytes.len() as u64;
    let mut writer = blobs.create(blob, name, length)?;
    writer.write(bytes)?;
    Ok((writer.finish()?, length))
}
