//! A node's data directory: the one place for the format of what is on disk.
//!
//! ```text
//! DIR/lock            held by the process that uses the directory
//! DIR/format          version of this layout
//! DIR/identity.json   storage id, incarnation, cluster, whether its log has begun, known members
//! DIR/log             the replicated log (journal)
//! DIR/blobs/XX/T-C    file bytes and a trailer; XX is the low byte of the counter
//! DIR/incoming/       blobs that are being written; emptied at start
//! DIR/corrupt/        blobs that failed their check, kept for people
//! ```
//!
//! Decides: how values become durable (temp file, fsync, rename, fsync of the
//! directory) and what a damaged file leads to. Leaves to others: what is worth
//! keeping, when to write, and what a lost copy means. Nothing here retries: after an
//! error of a sync the bytes are taken as lost (Rebello et al., "Can Applications
//! Recover from fsync Failures?", USENIX ATC 2020).

mod blobs;
mod identity;
mod journal;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::types::BlobId;

pub use blobs::{BlobBatch, BlobReader, BlobWriter, Blobs, FREE_BYTES_MIN, Trailer};
pub use identity::{DataDirectory, Identity, last_address};
pub use journal::Journal;

/// Why something is not on disk, or not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The disk is full, or too full to take this. What was being written is removed.
    #[error("{path}: no space left on this disk: free some, or use another --data-dir")]
    Full {
        /// File that was being written.
        path: PathBuf,
    },
    /// The disk has too little left for a file, which has not been begun.
    #[error(
        "{path}: no room for {wanted} bytes on this disk, which has {free} beside those that stay \
         free: free some, or use another --data-dir"
    )]
    TooFull {
        /// File or folder that was to hold them.
        path: PathBuf,
        /// Bytes of the file.
        wanted: u64,
        /// Bytes that it may have.
        free: u64,
    },
    /// The operating system refused. What was being written is taken as lost.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Another process holds the directory's lock. Nothing was changed.
    #[error("{0} is used by another process: stop that one or give another --data-dir")]
    InUse(PathBuf),
    /// A file is not what this program wrote. Nothing was changed.
    #[error("{path}: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// This disk holds no whole copy.
    #[error("blob {0} is not on this disk")]
    NoBlob(BlobId),
    /// A copy failed its check; it was moved aside and no longer counts.
    #[error("blob {blob} failed its check and was moved to {path}")]
    Corrupt {
        /// The blob.
        blob: BlobId,
        /// Where its file is now.
        path: PathBuf,
    },
}

impl DiskError {
    /// Whether another write may succeed later, once there is space.
    pub fn is_full(&self) -> bool {
        matches!(self, DiskError::Full { .. } | DiskError::TooFull { .. })
    }

    /// Whether it says that a copy is lost, rather than that it could not be read just now.
    pub fn is_loss(&self) -> bool {
        match self {
            DiskError::NoBlob(_) | DiskError::Corrupt { .. } => true,
            // The disk itself could not read it (EIO).
            DiskError::Io { cause, .. } => {
                cause.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
            }
            _ => false,
        }
    }
}

/// Names the path and the action in an error of the operating system.
fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DiskError + 'a {
    move |cause| match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DiskError::Full { path: path.into() }
        }
        _ => DiskError::Io {
            action,
            path: path.into(),
            cause,
        },
    }
}

/// Makes the names in `directory` durable.
fn sync_directory(directory: &Path) -> Result<(), DiskError> {
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(at("sync the directory", directory))
}

/// Replaces the file `path` by `bytes`, so that after a crash it is the old or the new one.
fn replace_file(path: &Path, parts: &[&[u8]]) -> Result<(), DiskError> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).map_err(at("create", &temporary))?;
    let written = parts.iter().try_for_each(|part| file.write_all(part));
    if let Err(error) = written.and_then(|()| file.sync_all()) {
        // A full disk needs the room; elsewhere it does no harm.
        let _ = std::fs::remove_file(&temporary);
        return Err(at("write", &temporary)(error));
    }
    std::fs::rename(&temporary, path).map_err(at("rename to", path))?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests;
