//! Local files that appear whole or not at all.
//!
//! Decides: that a file is made beside its place and renamed, with the permissions of the one whose
//! place it takes, and that devices and pipes are no places. Leaves to others: what it holds.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::client::ClientError;

/// Writes `bytes` to the file `local`, which appears whole or not at all.
pub fn write_whole(local: &str, bytes: &[u8]) -> Result<(), ClientError> {
    let place = Place::new(local)?;
    let mut file = place.create()?;
    file.write_all(bytes).map_err(|error| place.error(error))?;
    place.keep(file)
}

/// Files that are being made, beside their places.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes all files that are not whole yet: the process ends before they can be.
pub fn abandon_all() {
    for path in std::mem::take(&mut *UNFINISHED.lock()) {
        let _ = std::fs::remove_file(path);
    }
}

/// A local file that is being made beside its final place.
pub(super) struct Place {
    /// As the user named it.
    named: String,
    /// Where it goes: what a link points at.
    path: PathBuf,
    temporary: PathBuf,
    /// Of the file that it takes the place of.
    permissions: Option<Permissions>,
}

impl Place {
    /// The place of the file `local`. Its folder is looked at when it is created.
    pub(super) fn new(local: &str) -> Result<Place, ClientError> {
        let error = |why: &str| ClientError::Local {
            path: format!("{local:?}"),
            why: why.into(),
        };
        let named = PathBuf::from(local);
        if named.is_dir() || local.ends_with('/') {
            return Err(error("is a folder: name a file in it"));
        }
        if named.file_name().is_none() {
            return Err(error("is no file name"));
        }
        let is_link = std::fs::symlink_metadata(&named).is_ok_and(|it| it.is_symlink());
        let path = match std::fs::canonicalize(&named) {
            Ok(path) if is_link => path,
            Err(_) if is_link => return Err(error("is a link to a file that is not there")),
            _ => named,
        };
        let found = std::fs::metadata(&path).ok();
        if found.as_ref().is_some_and(|found| !found.is_file()) {
            return Err(error("is no regular file: name another"));
        }
        // A short name of its own: the wanted one may be as long as names can be.
        static PLACES: AtomicU64 = AtomicU64::new(0);
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".dlc.{}.{number}.part", std::process::id()));
        Ok(Place {
            named: local.into(),
            path,
            temporary,
            permissions: found.map(|found| found.permissions()),
        })
    }

    /// The error with the file's name.
    pub(super) fn error(&self, error: std::io::Error) -> ClientError {
        let advice = match error.kind() {
            ErrorKind::StorageFull => ": free some, or name a place on another disk",
            _ => "",
        };
        ClientError::Local {
            path: self.named.clone(),
            why: format!("{error}{advice}"),
        }
    }

    /// The file, empty, beside its final place.
    pub(super) fn create(&self) -> Result<File, ClientError> {
        let create = || {
            UNFINISHED.lock().insert(self.temporary.clone());
            let file = File::create(&self.temporary)?;
            if let Some(permissions) = &self.permissions {
                file.set_permissions(permissions.clone())?;
            }
            Ok(file)
        };
        create().map_err(|error| self.error(error))
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
        UNFINISHED.lock().remove(&self.temporary);
    }
}
