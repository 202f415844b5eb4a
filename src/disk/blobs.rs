//! File bytes on disk, one self-describing file for each blob.
//!
//! ```text
//! content, payload of the trailer, crc32(payload): u32, length(payload): u32, MAGIC
//! ```
//!
//! The payload names the blob, the SDFS name and the content's length and digest, so
//! that a catalog can be rebuilt from the files alone. A file counts as held when it has
//! its final name and a valid trailer; a full read checks the digest.
//!
//! Decides: when bytes are durable, and that a copy which fails its check is moved
//! aside. Leaves to others: which blobs are kept, and telling anyone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::{DiskError, at, sync_directory};
use crate::types::{BlobId, Digest, FileName, Term};

/// Space that uploads must leave free, in bytes, so that the log can still be written.
pub const FREE_BYTES_MIN: u64 = 64 << 20;
/// Bytes after which the kernel is asked to start writing, so that the last sync is short.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// End of every blob file.
const MAGIC: [u8; 8] = *b"DLCBLOB1";
const FOOTER: u64 = 16;
/// Longest payload of a trailer, in bytes: a name of 1,024 and the rest.
const PAYLOAD_MAX: u64 = 2048;
const FOLDERS: u64 = 256;
/// Most files that are kept because they failed their check.
const ASIDE_MAX: usize = 100;

/// What a blob file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trailer {
    /// The blob.
    pub blob: BlobId,
    /// The SDFS name that it was uploaded under.
    pub name: FileName,
    /// Length of the content in bytes.
    pub bytes: u64,
    /// BLAKE3 of the content.
    pub digest: Digest,
}

/// The blobs of a data directory. Shared by threads; each call stands alone.
#[derive(Debug)]
pub struct Blobs {
    blobs: PathBuf,
    incoming: PathBuf,
    corrupt: PathBuf,
    /// Number of the next temporary file.
    next: AtomicU64,
    /// Which of the folders are there, durably.
    made: Vec<AtomicBool>,
}

impl Blobs {
    /// Opens the blobs of the data directory `directory` and lists those that are whole.
    /// Leftovers of uploads are removed: nobody was told that they are stored. Files without a
    /// valid trailer have decayed, and are moved aside.
    pub fn open(directory: &Path) -> Result<(Blobs, Vec<BlobId>), DiskError> {
        let blobs = Blobs {
            blobs: directory.join("blobs"),
            incoming: directory.join("incoming"),
            corrupt: directory.join("corrupt"),
            next: AtomicU64::new(0),
            made: (0..FOLDERS).map(|_| AtomicBool::new(false)).collect(),
        };
        for folder in [&blobs.blobs, &blobs.incoming, &blobs.corrupt] {
            fs::create_dir_all(folder).map_err(at("create the directory", folder))?;
        }
        sync_directory(directory)?;
        for entry in entries(&blobs.incoming)? {
            fs::remove_file(&entry).map_err(at("remove", &entry))?;
        }
        let held = blobs.scan()?;
        Ok((blobs, held))
    }

    fn scan(&self) -> Result<Vec<BlobId>, DiskError> {
        let mut held = Vec::new();
        for folder in entries(&self.blobs)? {
            if !folder.is_dir() {
                log::warn!(
                    "{} does not belong here and is left alone",
                    folder.display()
                );
                continue;
            }
            for path in entries(&folder)? {
                match self.opened(&path) {
                    Ok((_, trailer)) if self.file(trailer.blob) == path => held.push(trailer.blob),
                    Err(error @ DiskError::Io { .. }) => return Err(error),
                    _ => {
                        let moved = self.set_aside(&path);
                        log::error!("{moved}");
                    }
                }
            }
        }
        held.sort();
        Ok(held)
    }

    /// What the whole blobs in folder number `folder` say of themselves; those that cannot be
    /// read are left out.
    pub fn survey(&self, folder: u8) -> Vec<Trailer> {
        let folder = self.blobs.join(folder_name(folder.into()));
        let paths = entries(&folder).unwrap_or_default();
        let trailers = paths.iter().filter_map(|path| self.opened(path).ok());
        let mut found: Vec<Trailer> = trailers.map(|(_, trailer)| trailer).collect();
        found.sort_by_key(|trailer| trailer.blob);
        found
    }

    /// Free bytes for uploads, [`FREE_BYTES_MIN`] taken off.
    pub fn free_bytes(&self) -> Result<u64, DiskError> {
        let space = rustix::fs::statvfs(&self.blobs)
            .map_err(|errno| at("ask for the free space of", &self.blobs)(errno.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        Ok(free.saturating_sub(FREE_BYTES_MIN))
    }

    /// Starts the file of `blob`, whose content will have `bytes` bytes.
    ///
    /// *Errors*: [`DiskError::TooFull`] where they would not leave [`FREE_BYTES_MIN`] free.
    pub fn create(
        &self,
        blob: BlobId,
        name: &FileName,
        bytes: u64,
    ) -> Result<BlobWriter<'_>, DiskError> {
        let free = self.free_bytes()?;
        if free < bytes {
            return Err(DiskError::TooFull {
                path: self.file(blob),
                wanted: bytes,
                free,
            });
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.incoming.join(number.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(at("create", &path))?;
        Ok(BlobWriter {
            blobs: self,
            file,
            temporary: Temporary(path),
            blob,
            name: name.clone(),
            hasher: blake3::Hasher::new(),
            bytes: 0,
            started: 0,
        })
    }

    /// Starts a batch of blobs that become durable together.
    pub fn batch(&self) -> BlobBatch<'_> {
        BlobBatch {
            blobs: self,
            written: Vec::new(),
        }
    }

    /// The content of `blob`, checked at its end.
    pub fn open_checked(&self, blob: BlobId) -> Result<BlobReader<'_>, DiskError> {
        let mut reader = self.open_from(blob, 0)?;
        reader.hasher = Some(blake3::Hasher::new());
        Ok(reader)
    }

    /// The content of `blob` from byte `offset` on (from its end where `offset` is beyond it), for
    /// somebody who checks it.
    pub fn open_from(&self, blob: BlobId, offset: u64) -> Result<BlobReader<'_>, DiskError> {
        let path = self.file(blob);
        let (mut file, trailer) = match self.opened(&path) {
            Ok((file, trailer)) if trailer.blob == blob => (file, trailer),
            Ok(_) | Err(DiskError::Damaged { .. }) => return Err(self.set_aside(&path)),
            Err(error) => return Err(error),
        };
        let offset = offset.min(trailer.bytes);
        file.seek(SeekFrom::Start(offset))
            .map_err(at("seek in", &path))?;
        Ok(BlobReader {
            blobs: self,
            file,
            left: trailer.bytes - offset,
            hasher: None,
            trailer,
        })
    }

    /// The whole content of `blob`, checked.
    pub fn read(&self, blob: BlobId) -> Result<Vec<u8>, DiskError> {
        let mut reader = self.open_checked(blob)?;
        let mut content = vec![0; reader.left() as usize];
        let mut filled = 0;
        loop {
            let count = reader.read(&mut content[filled..])?;
            if count == 0 {
                return Ok(content);
            }
            filled += count;
        }
    }

    /// The content of `blob`, known to have `bytes` bytes and this digest. Cheaper than
    /// [`Blobs::read`] for small content, which is hashed once here.
    ///
    /// *Errors*: those of [`Blobs::read`], and `NoBlob` where it has another content.
    pub fn read_known(
        &self,
        blob: BlobId,
        bytes: u64,
        digest: Digest,
    ) -> Result<Vec<u8>, DiskError> {
        if let Ok(file) = File::open(self.file(blob)) {
            let mut content = Vec::with_capacity(bytes as usize);
            // What is wrong with it is found below.
            let _ = file.take(bytes).read_to_end(&mut content);
            if content.len() as u64 == bytes && Digest::of(&content) == digest {
                return Ok(content);
            }
        }
        let content = self.read(blob)?;
        match Digest::of(&content) == digest {
            true => Ok(content),
            false => Err(DiskError::NoBlob(blob)),
        }
    }

    /// Removes these blobs; one that is not there is fine. Not synced: a blob that a crash
    /// brings back is swept again.
    pub fn remove(&self, blobs: &[BlobId]) -> Result<(), DiskError> {
        for blob in blobs {
            let path = self.file(*blob);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether `blob` is here already, with this content.
    ///
    /// *Errors*: it is here with another content; an id names the same bytes for ever.
    fn holds_same(&self, blob: BlobId, digest: Digest) -> Result<bool, DiskError> {
        let path = self.file(blob);
        match self.opened(&path) {
            Ok((_, trailer)) if trailer.digest == digest => Ok(true),
            Ok(_) => Err(DiskError::Damaged {
                path,
                problem: "this blob is stored with another content already: start the upload over"
                    .into(),
            }),
            Err(DiskError::NoBlob(_) | DiskError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves a file that failed its check away, for people; the oldest of many goes.
    fn set_aside(&self, file: &Path) -> DiskError {
        let name = file.file_name().unwrap_or_default();
        let path = self.corrupt.join(name);
        let modified = |path: &PathBuf| fs::metadata(path).and_then(|it| it.modified()).ok();
        let mut aside = entries(&self.corrupt).unwrap_or_default();
        aside.sort_by_key(modified);
        let surplus = aside.len().saturating_sub(ASIDE_MAX - 1);
        for old in &aside[..surplus] {
            let _ = fs::remove_file(old);
        }
        if let Err(error) = fs::rename(file, &path) {
            return at("move aside to", &path)(error);
        }
        match name.to_str().and_then(parse_blob) {
            Some(blob) => DiskError::Corrupt { blob, path },
            None => DiskError::Damaged {
                path,
                problem: "this is no blob; it was moved here".into(),
            },
        }
    }

    /// Their directory.
    pub fn path(&self) -> &Path {
        &self.blobs
    }

    fn file(&self, blob: BlobId) -> PathBuf {
        let folder = folder_name(blob.counter % FOLDERS);
        self.blobs.join(folder).join(blob.to_string())
    }

    /// Makes the folder of `blob` durable, where this process has not done so yet.
    fn make_folder(&self, blob: BlobId) -> Result<(), DiskError> {
        let made = &self.made[(blob.counter % FOLDERS) as usize];
        if made.load(Ordering::Acquire) {
            return Ok(());
        }
        let path = self.file(blob);
        let folder = path.parent().expect("a blob is in a folder");
        fs::create_dir_all(folder).map_err(at("create the directory", folder))?;
        sync_directory(&self.blobs)?;
        made.store(true, Ordering::Release);
        Ok(())
    }

    /// The file at `path` and its trailer.
    ///
    /// *Errors*: `NoBlob` where there is no such file, `Damaged` where the trailer is not valid.
    fn opened(&self, path: &Path) -> Result<(File, Trailer), DiskError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = path.file_name().and_then(|name| name.to_str());
                let blob = name.and_then(parse_blob).unwrap_or(BlobId {
                    term: Term(0),
                    counter: 0,
                });
                return Err(DiskError::NoBlob(blob));
            }
            Err(error) => return Err(at("open", path)(error)),
        };
        let size = file.metadata().map_err(at("read", path))?.len();
        let trailer = read_trailer(&file, size).map_err(at("read", path))?;
        let trailer = trailer.ok_or_else(|| DiskError::Damaged {
            path: path.into(),
            problem: "no valid trailer: the copy is taken as lost".into(),
        })?;
        Ok((file, trailer))
    }
}

fn folder_name(number: u64) -> String {
    format!("{number:02x}")
}

/// `TERM-COUNTER`.
fn parse_blob(name: &str) -> Option<BlobId> {
    let (term, counter) = name.split_once('-')?;
    Some(BlobId {
        term: Term(term.parse().ok()?),
        counter: counter.parse().ok()?,
    })
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    list().map_err(at("list", folder))
}

/// The trailer of a file of `size` bytes; none where it is not whole.
fn read_trailer(file: &File, size: u64) -> io::Result<Option<Trailer>> {
    let mut footer = [0; FOOTER as usize];
    if size < FOOTER {
        return Ok(None);
    }
    file.read_exact_at(&mut footer, size - FOOTER)?;
    let [crc, length] = [0, 4].map(|at| {
        u32::from_le_bytes(
            footer[at..at + 4]
                .try_into()
                .expect("four bytes of sixteen"),
        )
    });
    let length = u64::from(length);
    if footer[8..] != MAGIC || length > PAYLOAD_MAX || length + FOOTER > size {
        return Ok(None);
    }
    let mut payload = vec![0; length as usize];
    file.read_exact_at(&mut payload, size - FOOTER - length)?;
    if crc32fast::hash(&payload) != crc {
        return Ok(None);
    }
    let trailer: Option<Trailer> = crate::wire::decode(&payload).ok();
    Ok(trailer.filter(|trailer| trailer.bytes == size - FOOTER - length))
}

fn encode_trailer(trailer: &Trailer) -> Vec<u8> {
    let mut bytes = crate::wire::encode(trailer);
    let (crc, length) = (crc32fast::hash(&bytes), bytes.len() as u32);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&MAGIC);
    bytes
}

/// A temporary file, removed when it is dropped before it got its name.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Temporary {
    fn rename(self, to: &Path) -> Result<(), DiskError> {
        fs::rename(&self.0, to).map_err(at("rename to", to))?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Where it cannot be removed, the next start does it.
        let _ = fs::remove_file(&self.0);
    }
}

/// A blob that is being written; dropped before its end, it leaves nothing behind.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    blobs: &'a Blobs,
    file: File,
    temporary: Temporary,
    blob: BlobId,
    name: FileName,
    hasher: blake3::Hasher,
    bytes: u64,
    /// Bytes that the kernel was asked to start writing.
    started: u64,
}

impl BlobWriter<'_> {
    /// Appends `chunk` to the content.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), DiskError> {
        self.file
            .write_all(chunk)
            .map_err(at("write", &self.temporary.0))?;
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
        if self.bytes - self.started >= WRITE_BACK_BYTES {
            start_write_back(&self.file, self.started, self.bytes - self.started);
            self.started = self.bytes;
        }
        Ok(())
    }

    /// Makes the blob durable under its name. Its digest.
    pub fn finish(mut self) -> Result<Digest, DiskError> {
        let digest = self.close()?;
        self.file
            .sync_all()
            .map_err(at("sync", &self.temporary.0))?;
        let path = self.blobs.file(self.blob);
        if !self.blobs.holds_same(self.blob, digest)? {
            self.blobs.make_folder(self.blob)?;
            self.temporary.rename(&path)?;
        }
        sync_directory(path.parent().expect("a blob is in a folder"))?;
        Ok(digest)
    }

    /// Writes the trailer.
    fn close(&mut self) -> Result<Digest, DiskError> {
        let trailer = Trailer {
            blob: self.blob,
            name: self.name.clone(),
            bytes: self.bytes,
            digest: Digest(*self.hasher.finalize().as_bytes()),
        };
        self.file
            .write_all(&encode_trailer(&trailer))
            .map_err(at("write", &self.temporary.0))?;
        Ok(trailer.digest)
    }
}

/// Asks the kernel to start writing a range, without waiting. A hint: what matters is the sync.
fn start_write_back(file: &File, offset: u64, bytes: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: a valid descriptor for the duration of the call, which touches no memory of ours.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset as i64,
            bytes as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

/// Many small blobs that become durable together, with two syncs for all of them:
/// the content is on disk before any file gets its name, and the names before `finish` returns.
#[derive(Debug)]
pub struct BlobBatch<'a> {
    blobs: &'a Blobs,
    written: Vec<(Temporary, PathBuf)>,
}

impl<'a> BlobBatch<'a> {
    /// Takes a blob whose content is complete. Its digest; not durable before `finish`.
    pub fn add(&mut self, mut writer: BlobWriter<'a>) -> Result<Digest, DiskError> {
        let digest = writer.close()?;
        if !self.blobs.holds_same(writer.blob, digest)? {
            self.blobs.make_folder(writer.blob)?;
            let path = self.blobs.file(writer.blob);
            self.written.push((writer.temporary, path));
        }
        Ok(digest)
    }

    /// Makes all of them durable. After an error none of them may be reported as stored.
    pub fn finish(self) -> Result<(), DiskError> {
        let folder = &self.blobs.blobs;
        let opened = File::open(folder).map_err(at("open", folder))?;
        let sync = || {
            rustix::fs::syncfs(&opened)
                .map_err(|errno| at("sync the file system of", folder)(errno.into()))
        };
        sync()?;
        for (temporary, path) in self.written {
            temporary.rename(&path)?;
        }
        sync()
    }
}

/// The content of a blob, from its file.
#[derive(Debug)]
pub struct BlobReader<'a> {
    blobs: &'a Blobs,
    file: File,
    left: u64,
    /// Set where the content is checked.
    hasher: Option<blake3::Hasher>,
    trailer: Trailer,
}

impl BlobReader<'_> {
    /// Bytes that are still to be read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Lets the kernel forget what it keeps of the file in memory: what is read then comes from
    /// the disk. A hint, as far as correctness goes.
    pub fn forget_cached(&self) {
        let all = std::num::NonZeroU64::new(self.trailer.bytes);
        let _ = rustix::fs::fadvise(&self.file, 0, all, rustix::fs::Advice::DontNeed);
    }

    /// What the file says of itself.
    pub fn trailer(&self) -> &Trailer {
        &self.trailer
    }

    /// The next bytes; 0 at the end. Where the content is checked and wrong,
    /// [`DiskError::Corrupt`] comes instead of the last bytes.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, DiskError> {
        if self.left == 0 && self.trailer.bytes > 0 {
            return Ok(0);
        }
        let limit = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let path = self.blobs.file(self.trailer.blob);
        let mut count = 0;
        while count < limit {
            match self.file.read(&mut buffer[count..limit]) {
                Ok(0) => return Err(self.blobs.set_aside(&path)),
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(at("read", &path)(error)),
            }
        }
        self.left -= count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
            if self.left == 0 && *hasher.finalize().as_bytes() != self.trailer.digest.0 {
                return Err(self.blobs.set_aside(&path));
            }
        }
        Ok(count)
    }
}
