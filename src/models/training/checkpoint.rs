//! How a killed run is gone on with: its named tensors after each epoch, in one
//! safetensors file.
//!
//! Decides: that a checkpoint of another run (another seed, data set or number of epochs)
//! is refused instead of mixed in. Leaves to others: which tensors a run has.

use std::fs;
use std::io;
use std::path::PathBuf;

use tch::{Kind, Tensor};

use super::{TrainingError, replace};
use crate::models::weights::{Weights, to_safetensors};

/// Name of the note in the file's header.
pub(super) const NOTE: &str = "training";

/// Where the state of an unfinished run is kept.
pub(super) struct Checkpoint {
    /// The file.
    pub(super) path: PathBuf,
    /// What the run is made of, in words; the same words are the same run.
    pub(super) identity: String,
}

impl Checkpoint {
    /// The number of epochs done and the tensors, where there is a checkpoint.
    ///
    /// *Errors*: the file cannot be read, or is of another run.
    pub(super) fn load(&self) -> Result<Option<(u32, Weights)>, TrainingError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => {
                let path = self.path.clone();
                return Err(TrainingError::File { path, cause });
            }
        };
        let note = safetensors::SafeTensors::read_metadata(&bytes)
            .ok()
            .and_then(|(_, header)| header.metadata().as_ref()?.get(NOTE).cloned());
        let Some(note) = note else {
            let path = self.path.clone();
            return Err(TrainingError::Damaged { path });
        };
        let epoch = note
            .strip_prefix(&self.identity)
            .and_then(|rest| rest.strip_prefix(", epoch ")?.parse().ok());
        let Some(epoch) = epoch else {
            return Err(TrainingError::Checkpoint {
                path: self.path.clone(),
                found: note,
                wanted: self.identity.clone(),
            });
        };
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Some((epoch, Weights::from_safetensors(&name, &bytes)?)))
    }

    /// Keeps the state after `epoch` epochs in place of the one before.
    pub(super) fn save(
        &self,
        epoch: u32,
        tensors: &[(String, Tensor)],
    ) -> Result<(), TrainingError> {
        let note = format!("{}, epoch {epoch}", self.identity);
        let bytes = to_safetensors(tensors, Kind::Float, Some((NOTE, note)));
        replace(&self.path, &bytes)
    }

    /// Removes it: the run is done.
    pub(super) fn remove(&self) -> Result<(), TrainingError> {
        fs::remove_file(&self.path).map_err(|cause| TrainingError::File {
            path: self.path.clone(),
            cause,
        })
    }
}
