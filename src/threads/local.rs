//! The model directory of a node, as its handlers show it to clients.
//!
//! Decides: that a client names a model and never a path. Leaves to others: what a valid
//! model is (`models`), and publishing (`console`).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use crate::models::manifest::{ManifestError, ModelFiles, Skipped, available};
use crate::wire::CHUNK_MAX;
use crate::wire::client::{LocalModel, Refusal, Reply};

/// The directory that `--models` names.
#[derive(Clone, Debug)]
pub(super) struct LocalModels(pub(super) PathBuf);

impl LocalModels {
    /// Its models, those that cannot be published with the reason.
    pub(super) fn list(&self) -> Reply {
        match available(&self.0) {
            Ok(models) => Reply::LocalModels(models.into_iter().map(entry).collect()),
            Err(error) => failed(&error),
        }
    }

    /// Bytes of a model's manifest or weights from `offset` on; empty at the end.
    pub(super) fn read(&self, name: &str, weights: bool, offset: u64) -> Reply {
        let files = match available(&self.0) {
            Ok(models) => models.into_iter().find(|model| match model {
                Ok(files) => files.manifest.name == name,
                Err(skipped) => skipped.name == name,
            }),
            Err(error) => return failed(&error),
        };
        match files {
            Some(Ok(files)) if weights => read_weights(&files, offset),
            Some(Ok(files)) => {
                let bytes = files.manifest_bytes;
                let from = bytes
                    .len()
                    .min(usize::try_from(offset).unwrap_or(usize::MAX));
                let to = bytes.len().min(from.saturating_add(CHUNK_MAX));
                Reply::Bytes(bytes[from..to].to_vec())
            }
            Some(Err(skipped)) => Reply::Refused(Refusal::Failed(skipped.reason)),
            None => {
                let directory = self.0.display();
                let reason = format!("no model {name:?} in {directory}: add {name}.toml there");
                Reply::Refused(Refusal::Failed(reason))
            }
        }
    }
}

fn failed(error: &ManifestError) -> Reply {
    Reply::Refused(Refusal::Failed(error.to_string()))
}

fn entry(model: Result<ModelFiles, Skipped>) -> LocalModel {
    match model {
        Ok(files) => {
            let length = files.manifest_bytes.len() as u64;
            LocalModel {
                name: files.manifest.name,
                files: Ok((files.manifest.weights, length, files.weights_bytes)),
            }
        }
        Err(Skipped { name, reason }) => LocalModel {
            name,
            files: Err(reason),
        },
    }
}

fn read_weights(files: &ModelFiles, offset: u64) -> Reply {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(&files.weights)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(CHUNK_MAX as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Reply::Bytes(bytes),
        Err(error) => {
            let path = files.weights.display();
            Reply::Refused(Refusal::Failed(format!("{path}: {error}")))
        }
    }
}
