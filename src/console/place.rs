//! Local files that appear whole or not at all.
//!
//! Decides: that a file is made beside its place and renamed. Leaves to others: what it holds.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::client::ClientError;

/// Writes `bytes` to the file `local`, which appears whole or not at all.
pub fn write_whole(local: &str, bytes: &[u8]) -> Result<(), ClientError> {
    let place = Place::new(local)?;
    let mut file = place.create()?;
    file.write_all(bytes).map_err(|error| place.error(error))?;
    place.keep(file)
}

/// A local file that is being made beside its final place.
pub(super) struct Place {
    path: PathBuf,
    temporary: PathBuf,
}

impl Place {
    /// The place of the file `local`. Its folder is looked at when it is created.
    pub(super) fn new(local: &str) -> Result<Place, ClientError> {
        let path = PathBuf::from(local);
        let error = |why: &str| ClientError::Local {
            path: local.into(),
            why: why.into(),
        };
        if path.is_dir() {
            return Err(error("is a folder: name a file in it"));
        }
        if path.file_name().is_none() {
            return Err(error("is no file name"));
        }
        // A short name of its own: the wanted one may be as long as names can be.
        static PLACES: AtomicU64 = AtomicU64::new(0);
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".dlc.{}.{number}.part", std::process::id()));
        Ok(Place { path, temporary })
    }

    /// The error with the file's name.
    pub(super) fn error(&self, error: std::io::Error) -> ClientError {
        ClientError::Local {
            path: self.path.display().to_string(),
            why: error.to_string(),
        }
    }

    /// The file, empty, beside its final place.
    pub(super) fn create(&self) -> Result<File, ClientError> {
        File::create(&self.temporary).map_err(|error| self.error(error))
    }

    /// Whole, so put in place. Not synced: SDFS still has the bytes.
    pub(super) fn keep(&self, file: File) -> Result<(), ClientError> {
        drop(file);
        std::fs::rename(&self.temporary, &self.path).map_err(|error| self.error(error))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Gone already where the file was kept.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
