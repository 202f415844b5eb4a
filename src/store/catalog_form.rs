//! The catalog as it stands in a snapshot: each server once, each name once.

use std::collections::VecDeque;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Catalog, FileRecord, Replicas, VersionRecord};
use crate::types::{BlobId, Digest, FileName, Server, Version};

#[derive(Serialize, Deserialize)]
struct Form {
    servers: Vec<Server>,
    files: Vec<FileForm>,
    /// Versions of deleted files that jobs still read.
    pinned: Vec<(FileName, Version, VersionForm)>,
    revision: u64,
    keep: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct FileForm {
    name: FileName,
    next: Version,
    /// Oldest first; the last one is version `next` - 1.
    versions: Vec<VersionForm>,
}

#[derive(Serialize, Deserialize)]
struct VersionForm {
    blob: BlobId,
    bytes: u64,
    digest: Digest,
    /// Places in `servers`.
    replicas: Vec<u32>,
    pins: u32,
}

impl Serialize for Catalog {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let servers: Vec<Server> = self.servers.iter().cloned().collect();
        let version = |blob: &BlobId| {
            let record = &self.blobs[blob];
            let place = |server: &Server| servers.binary_search(server).expect("interned") as u32;
            VersionForm {
                blob: *blob,
                bytes: record.bytes,
                digest: record.digest,
                replicas: record.replicas.iter().map(place).collect(),
                pins: record.pins,
            }
        };
        let file = |(name, file): (&FileName, &FileRecord)| FileForm {
            name: name.clone(),
            next: file.next,
            versions: file.versions.iter().map(version).collect(),
        };
        let deleted = self.blobs.values().filter(|record| !record.named);
        let pinned = |record: &VersionRecord| {
            let form = version(&record.blob);
            (record.name.clone(), record.version, form)
        };
        let form = Form {
            files: self.files.iter().map(file).collect(),
            pinned: deleted.map(pinned).collect(),
            revision: self.revision,
            keep: self.keep,
            servers: servers.clone(),
        };
        form.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Catalog {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Catalog, D::Error> {
        let form = Form::deserialize(from)?;
        let broken = || D::Error::custom("a catalog that contradicts itself");
        let mut catalog = Catalog {
            servers: form.servers.iter().cloned().collect(),
            revision: form.revision,
            keep: form.keep,
            recent: VecDeque::new(),
            ..Catalog::default()
        };
        for FileForm {
            name,
            next,
            versions,
        } in form.files
        {
            let count = versions.len() as u64;
            let first = next.0.checked_sub(count).ok_or_else(broken)?;
            let mut file = FileRecord {
                next,
                versions: Vec::with_capacity(versions.len()),
            };
            for (number, version) in (first..).zip(versions) {
                file.versions.push(version.blob);
                let record = version.record(&name, Version(number), true, &form.servers);
                catalog.take(record.ok_or_else(broken)?);
            }
            catalog.files.insert(name, file);
        }
        for (name, number, version) in form.pinned {
            let record = version.record(&name, number, false, &form.servers);
            catalog.take(record.ok_or_else(broken)?);
        }
        Ok(catalog)
    }
}

impl VersionForm {
    /// None where it names a server that is not among `servers`.
    fn record(
        self,
        name: &FileName,
        version: Version,
        named: bool,
        servers: &[Server],
    ) -> Option<VersionRecord> {
        let server = |place: &u32| servers.get(*place as usize).cloned();
        Some(VersionRecord {
            name: name.clone(),
            version,
            blob: self.blob,
            bytes: self.bytes,
            digest: self.digest,
            replicas: Replicas(self.replicas.iter().map(server).collect::<Option<_>>()?),
            named,
            pins: self.pins,
        })
    }
}

impl Catalog {
    fn take(&mut self, record: VersionRecord) {
        self.blobs.insert(record.blob, record);
    }
}
