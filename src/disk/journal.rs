//! The replicated log of this node on disk: an append-only file of checked frames.
//!
//! ```text
//! file:   HEADER, frame, frame, ...
//! frame:  MAGIC: u32, length(payload): u32, crc32(offset of the frame, payload): u32, payload
//! payload: for each record, length: u32 and the record's bytes
//! ```
//!
//! One [`LogWrite`] is one frame, one write and one sync, so that a crash tears at most
//! the last frame, and a torn frame is a write that nobody was told of. A broken frame
//! with a whole one after it is no torn write but damage, and is never cut off: this
//! server may have voted or acknowledged on what would be lost.
//!
//! A write with a snapshot makes a new file that takes the old one's place: its first frame
//! has the snapshot, the hard state and the entries that follow.
//!
//! Decides: how log writes become durable and how they are found again. Leaves to
//! others: what is in the log, and when it is replaced.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DiskError, at, replace_file};
use crate::consensus::{LogWrite, Recovered, Snapshot};
use crate::types::Index;
use crate::wire::consensus::{Entry, HardState};

const HEADER: [u8; 8] = *b"DLCLOG01";
const MAGIC: [u8; 4] = *b"\x01fr\x02";
const FRAME_HEADER: usize = 12;
/// Buffers are given back above this size, in bytes.
const BUFFER_MAX: usize = 4 << 20;

/// One change of what is on disk.
#[derive(Debug, Serialize, Deserialize)]
enum Record {
    /// Replaces the older one.
    HardState(HardState),
    /// This entry and all after it are gone.
    Truncate(Index),
    /// Comes after what is then the last.
    Entry(Entry),
    /// The log begins with it.
    Snapshot(Arc<Snapshot>),
    /// Entries up to here are committed.
    Commit(Index),
}

/// The log file, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// End of the last whole frame, in bytes.
    end: u64,
    buffer: Vec<u8>,
    /// A write has failed: what is on disk is not known any more.
    failed: bool,
}

impl Journal {
    /// Opens the log in the data directory `directory`, making it where there is none,
    /// and gives back what it holds. A torn end is cut off.
    ///
    /// *Errors*: [`DiskError::Damaged`] with the offset of a broken frame that is not the
    /// end, or where the log of a directory that had one is gone: this server may have
    /// voted on what was in it.
    pub fn open(directory: &Path) -> Result<(Journal, Recovered), DiskError> {
        let path = directory.join("log");
        if !path.exists() && directory.join("format").exists() {
            return Err(damaged(&path, 0, "the file is missing"));
        }
        create(directory)?;
        // Of a replacement that a crash interrupted.
        let _ = std::fs::remove_file(path.with_extension("new"));
        let file = open(&path)?;
        let size = file.metadata().map_err(at("read", &path))?.len();
        let mut reader = Frames::new(&path, &file, size)?;
        let mut recovered = Recovered::default();
        while let Some((offset, payload)) = reader.next()? {
            replay(payload, &mut recovered).map_err(|problem| damaged(&path, offset, &problem))?;
        }
        let end = reader.offset;
        if end < size {
            reader.refuse_damage()?;
            log::warn!(
                "{}: cut off {} bytes of a write that a crash had torn",
                path.display(),
                size - end
            );
            file.set_len(end)
                .and_then(|()| file.sync_all())
                .map_err(at("cut", &path))?;
        }
        let journal = Journal {
            path,
            file,
            end,
            buffer: Vec::new(),
            failed: false,
        };
        Ok((journal, recovered))
    }

    /// Makes `write` durable: it is on disk when this returns. Where the disk was full the same
    /// write may be tried again; after any other error every later call fails too, because the
    /// file's contents are not known.
    pub fn append(&mut self, write: &LogWrite) -> Result<(), DiskError> {
        if self.failed {
            return Err(DiskError::Damaged {
                path: self.path.clone(),
                problem: "an earlier write failed: restart this node".into(),
            });
        }
        self.failed = true;
        let end = match write.snapshot {
            Some(_) => HEADER.len() as u64,
            None => self.end,
        };
        self.fill(write, end)?;
        let written = match write.snapshot {
            Some(_) => self.replace(),
            None => self
                .file
                .seek(SeekFrom::Start(end))
                .and_then(|_| self.file.write_all(&self.buffer))
                .map_err(at("write", &self.path)),
        };
        if let Err(error) = written {
            // What is there of the frame is overwritten, or cut off at the next start.
            self.failed = !error.is_full();
            return Err(error);
        }
        if write.snapshot.is_none() {
            self.file.sync_data().map_err(at("sync", &self.path))?;
        }
        self.end = end + self.buffer.len() as u64;
        self.failed = false;
        if self.buffer.capacity() > BUFFER_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Makes the buffer a frame with the records of `write`, to stand at `offset`.
    fn fill(&mut self, write: &LogWrite, offset: u64) -> Result<(), DiskError> {
        self.buffer.clear();
        self.buffer.resize(FRAME_HEADER, 0);
        if let Some(snapshot) = &write.snapshot {
            self.add(&Record::Snapshot(snapshot.clone()));
        }
        if let Some(state) = &write.hard_state {
            self.add(&Record::HardState(state.clone()));
        }
        if let Some(index) = write.truncate_from {
            self.add(&Record::Truncate(index));
        }
        for entry in &write.entries {
            self.add(&Record::Entry(entry.clone()));
        }
        if let Some(index) = write.commit {
            self.add(&Record::Commit(index));
        }
        let payload = &self.buffer[FRAME_HEADER..];
        let length = u32::try_from(payload.len()).map_err(|_| DiskError::Damaged {
            path: self.path.clone(),
            problem: "a log write of more than 4 GiB".into(),
        })?;
        let crc = checksum(offset, payload);
        self.buffer[..4].copy_from_slice(&MAGIC);
        self.buffer[4..8].copy_from_slice(&length.to_le_bytes());
        self.buffer[8..12].copy_from_slice(&crc.to_le_bytes());
        Ok(())
    }

    /// Puts a new file, with the frame in the buffer as its first, in the place of the old one.
    fn replace(&mut self) -> Result<(), DiskError> {
        replace_file(&self.path, &[&HEADER, &self.buffer])?;
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    fn add(&mut self, record: &Record) {
        let bytes = crate::wire::encode(record);
        self.buffer
            .extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&bytes);
    }
}

fn open(path: &Path) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.open(path).map_err(at("open", path))
}

/// Makes an empty log in `directory` where there is none.
pub(super) fn create(directory: &Path) -> Result<(), DiskError> {
    let path = directory.join("log");
    match path.exists() {
        true => Ok(()),
        false => replace_file(&path, &[&HEADER]),
    }
}

/// With the offset in it, bytes of a frame that are found elsewhere are no frame.
fn checksum(offset: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&offset.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn damaged(path: &Path, offset: u64, problem: &str) -> DiskError {
    DiskError::Damaged {
        path: path.into(),
        problem: format!(
            "damaged at byte {offset} ({problem}): this copy of the log cannot be trusted; \
             move `log` and `format` out of the data directory: then this node joins as a new \
             one, and keeps what it has in `blobs`"
        ),
    }
}

/// Applies the records of one frame.
fn replay(mut payload: &[u8], recovered: &mut Recovered) -> Result<(), String> {
    while !payload.is_empty() {
        let (length, rest) = payload
            .split_first_chunk::<4>()
            .ok_or("a record without length")?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > rest.len() {
            return Err("a record longer than its frame".into());
        }
        let (record, rest) = rest.split_at(length);
        payload = rest;
        let entries = &mut recovered.entries;
        let first = recovered.snapshot.as_ref().map_or(1, |s| s.index.0 + 1);
        match crate::wire::decode_large(record).map_err(|error| error.to_string())? {
            Record::HardState(state) => recovered.hard_state = state,
            Record::Truncate(index) => entries.truncate(index.0.saturating_sub(first) as usize),
            Record::Entry(entry) if entry.index.0 == entries.len() as u64 + first => {
                entries.push(entry);
            }
            Record::Snapshot(snapshot) => {
                entries.clear();
                recovered.commit = snapshot.index;
                recovered.snapshot = Some(snapshot);
            }
            Record::Commit(index) => recovered.commit = index,
            Record::Entry(entry) => {
                let (found, wanted) = (entry.index.0, entries.len() as u64 + first);
                return Err(format!("entry {found} where {wanted} was due"));
            }
        }
    }
    Ok(())
}

/// Reads whole frames up to the first that is not.
struct Frames<'a> {
    path: &'a Path,
    file: &'a File,
    reader: BufReader<&'a File>,
    size: u64,
    /// Of the next frame.
    offset: u64,
    payload: Vec<u8>,
}

impl<'a> Frames<'a> {
    fn new(path: &'a Path, file: &'a File, size: u64) -> Result<Self, DiskError> {
        let mut reader = BufReader::with_capacity(256 << 10, file);
        let mut header = [0; HEADER.len()];
        if size < HEADER.len() as u64 {
            return Err(damaged(path, 0, "too short"));
        }
        reader.read_exact(&mut header).map_err(at("read", path))?;
        if header != HEADER {
            return Err(damaged(path, 0, "not a log of this format"));
        }
        Ok(Frames {
            path,
            file,
            reader,
            size,
            offset: HEADER.len() as u64,
            payload: Vec::new(),
        })
    }

    /// Offset and payload of the next frame; none where no whole one follows.
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, DiskError> {
        let left = self.size - self.offset;
        let mut header = [0; FRAME_HEADER];
        if left < FRAME_HEADER as u64 {
            return Ok(None);
        }
        self.reader
            .read_exact(&mut header)
            .map_err(at("read", self.path))?;
        let Some((length, crc)) = frame_header(&header) else {
            return Ok(None);
        };
        if length > left - FRAME_HEADER as u64 {
            return Ok(None);
        }
        self.payload.resize(length as usize, 0);
        self.reader
            .read_exact(&mut self.payload)
            .map_err(at("read", self.path))?;
        if checksum(self.offset, &self.payload) != crc {
            return Ok(None);
        }
        let offset = self.offset;
        self.offset += FRAME_HEADER as u64 + length;
        Ok(Some((offset, &self.payload)))
    }

    /// An error where a whole frame lies anywhere after the broken one at `self.offset`.
    fn refuse_damage(&mut self) -> Result<(), DiskError> {
        let mut rest = Vec::new();
        let mut file = self.file;
        file.seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.read_to_end(&mut rest))
            .map_err(at("read", self.path))?;
        for start in 1..rest.len().saturating_sub(FRAME_HEADER) {
            let header = rest[start..start + FRAME_HEADER]
                .try_into()
                .expect("of that length");
            let Some((length, crc)) = frame_header(&header) else {
                continue;
            };
            let from = start + FRAME_HEADER;
            let payload = rest.get(from..from.saturating_add(length as usize));
            let offset = self.offset + start as u64;
            if payload.is_some_and(|payload| checksum(offset, payload) == crc) {
                let problem = format!("a whole frame follows at byte {offset}");
                return Err(damaged(self.path, self.offset, &problem));
            }
        }
        Ok(())
    }
}

/// Length and checksum of the payload.
fn frame_header(header: &[u8; FRAME_HEADER]) -> Option<(u64, u32)> {
    let word = |at: usize| {
        u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes of twelve"))
    };
    (header[..4] == MAGIC).then(|| (u64::from(word(4)), word(8)))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
