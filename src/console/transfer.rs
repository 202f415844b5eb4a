//! The bytes of files, between this client and the nodes.
//!
//! Decides: how bytes are read, sent to all targets at once, received, checked and put
//! in place. Leaves to others: which targets and what next (`store::upload`,
//! `store::download`), and what a node does with the bytes (`threads::files`).

use std::fs::File;
use std::io::{BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use indicatif::ProgressBar;

use super::client::{CONNECT_TIMEOUT, Client, ClientError};
use super::place::Place;
use super::progress;
use crate::store::download::{Download, DownloadOutput, Downloaded};
use crate::store::upload::{TransferError, TransferId, Upload, UploadFile, UploadOutput};
use crate::types::{BlobId, Digest, FileName, REPLICAS, Time};
use crate::wire::client::{Receipt, Refusal, Reply, Request};
use crate::wire::peer::{BlobHeader, BlobReply, BlobRequest, Purpose};
use crate::wire::store::{Located, Target};
use crate::wire::{
    CHUNK_MAX, Frame, WireError, dial, read_frame, read_message, write_chunk, write_message,
};

/// A transfer that moves no byte for this long has failed.
const STALL: Duration = Duration::from_secs(1);
/// After this, a thread that waits for a target's disk gives up; its put has by then.
const SYNC: Duration = Duration::from_secs(120);
/// Events that may wait for the loop; a sender that finds it full waits.
const EVENTS: usize = 1024;
/// Runs that may wait for the disk; a reader that finds it full waits.
const WRITES: usize = 8;
/// Bytes read ahead of a frame.
const BUFFER: usize = 8 << 10;
/// A file shows a progress bar from this size on.
const BAR_BYTES: u64 = 8 << 20;

/// What is to be stored.
#[derive(Clone, Debug)]
pub enum Content {
    /// A local file with its length when it was looked at.
    File(PathBuf, u64),
    /// Bytes in memory.
    Bytes(Arc<[u8]>),
}

impl Content {
    /// The regular, readable file `path`.
    pub fn file(path: &Path) -> Result<Content, ClientError> {
        let local = |why: String| ClientError::Local {
            path: path.display().to_string(),
            why,
        };
        let metadata = std::fs::metadata(path).map_err(|error| local(error.to_string()))?;
        if metadata.is_dir() {
            return Err(local(
                "is a folder: `put` takes one file, `upload_data` many".into(),
            ));
        }
        if !metadata.is_file() {
            return Err(local(
                "is no regular file: copy what it gives to a file first".into(),
            ));
        }
        File::open(path).map_err(|error| local(error.to_string()))?;
        Ok(Content::File(path.into(), metadata.len()))
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Content::File(_, length) => *length,
            Content::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Gives the bytes, exactly as many as the length says, in runs to `take`.
    fn read(&self, mut take: impl FnMut(&[u8]) -> Result<(), WireError>) -> Result<(), ReadError> {
        match self {
            Content::Bytes(bytes) => Ok(take(bytes)?),
            Content::File(path, length) => {
                let local = |why: String| ReadError::Local(path.display().to_string(), why);
                let mut file = File::open(path)
                    .map_err(|error| local(error.to_string()))?
                    .take(*length);
                let mut buffer = vec![0; CHUNK_MAX.min(*length as usize + 1)];
                let mut left = *length;
                while left > 0 {
                    let got = file
                        .read(&mut buffer)
                        .map_err(|error| local(error.to_string()))?;
                    if got == 0 {
                        return Err(local(
                            "became shorter while it was read: put it again".into(),
                        ));
                    }
                    take(&buffer[..got])?;
                    left -= got as u64;
                }
                Ok(())
            }
        }
    }
}

enum ReadError {
    /// The local file: the whole put ends.
    Local(String, String),
    /// The connection: another target is found.
    Wire(WireError),
    /// The target: the same.
    Refused(String),
}

impl From<WireError> for ReadError {
    fn from(error: WireError) -> ReadError {
        ReadError::Wire(error)
    }
}

/// The newest version of `name`, and where it can be read.
pub fn locate(client: &mut Client, name: &FileName) -> Result<Located, ClientError> {
    match client.request(&Request::Locate {
        name: name.clone(),
        newest: 1,
    })? {
        Reply::Located(mut versions) if !versions.is_empty() => Ok(versions.remove(0)),
        _ => Err(client.unexpected()),
    }
}

/// Stores one local file.
pub fn put_one(client: &mut Client, local: &str, name: &FileName) -> Result<Receipt, ClientError> {
    let content = Content::file(Path::new(local))?;
    let bar = (content.bytes() >= BAR_BYTES).then(|| progress::bytes(content.bytes(), "upload"));
    let mut receipts = put(client, vec![(name.clone(), content)], bar.as_ref())?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    receipts.pop().ok_or_else(|| client.unexpected())
}

/// What the threads of a put tell its loop.
enum Event {
    /// The target of this exchange took this many more bytes.
    Progress(TransferId, u64),
    /// It has been sent everything.
    Sent(TransferId),
    /// It has everything on disk, or failed.
    Stored(TransferId, Result<Vec<Digest>, TransferError>),
    /// This client's own digest of a file.
    Hashed(usize, Digest, u64),
    /// A local file could not be read: the put ends.
    Local(String, String),
}

/// Stores `files`, at most [`crate::wire::client::PUT_FILES_MAX`], in one exchange with each target.
pub fn put(
    client: &mut Client,
    files: Vec<(FileName, Content)>,
    bar: Option<&ProgressBar>,
) -> Result<Vec<Receipt>, ClientError> {
    let started = Instant::now();
    let now = || Time(started.elapsed().as_nanos() as u64);
    let described = files.iter().map(|(name, content)| UploadFile {
        name: name.clone(),
        bytes: content.bytes(),
    });
    let mut putting = Putting {
        upload: Upload::new(described.collect(), client.request_id(), now()),
        bar,
        moved: 0,
        unreadable: None,
        failed: None,
        broken: None,
    };
    let files: Arc<[(FileName, Content)]> = files.into();
    let (sender, events) = bounded(EVENTS);
    spawn_hasher(files.clone(), sender.clone());
    loop {
        while let Some(output) = putting.upload.poll_output() {
            match output {
                UploadOutput::Request(request) => {
                    let reply = ask(client, &request, &mut putting.broken);
                    putting.upload.handle_reply(now(), reply);
                }
                UploadOutput::Abort(blobs) => drop(client.request(&Request::PutAbort(blobs))),
                UploadOutput::Transfer {
                    id,
                    target,
                    files: wanted,
                } => {
                    spawn_transfer(id, target, wanted, files.clone(), sender.clone());
                }
                // Its thread ends by its own time-outs, and is not listened to.
                UploadOutput::Cancel(_) => {}
                UploadOutput::Done(end) => return putting.end(end),
            }
        }
        let patience = putting
            .upload
            .poll_timeout()
            .map_or(STALL, |at| at.since(now()));
        if let Ok(event) = events.recv_timeout(patience) {
            putting.take(event, now());
        }
        // Everything that waits comes in before any deadline is looked at.
        while let Ok(event) = events.try_recv() {
            putting.take(event, now());
        }
        putting.upload.handle_timeout(now());
    }
}

/// The node's reply, refusals and broken connections included; the latter are left in `broken`.
fn ask(client: &mut Client, request: &Request, broken: &mut Option<ClientError>) -> Reply {
    *broken = None;
    match client.request(request) {
        Ok(reply) => reply,
        Err(ClientError::Refused(refusal)) => Reply::Refused(refusal),
        Err(error) => {
            let refusal = Refusal::Failed(error.to_string());
            *broken = Some(error);
            Reply::Refused(refusal)
        }
    }
}

/// Why a transfer ended without success: by the cluster, or because its node was not there.
fn failure(refusal: Refusal, broken: Option<ClientError>) -> ClientError {
    match (refusal, broken) {
        (Refusal::Failed(_), Some(error)) => error,
        (refusal, _) => refusal.into(),
    }
}

/// A put under way.
struct Putting<'a> {
    upload: Upload,
    bar: Option<&'a ProgressBar>,
    /// Bytes sent to all targets together.
    moved: u64,
    unreadable: Option<(String, String)>,
    /// What the last target that failed said.
    failed: Option<String>,
    /// How the connection to the node ended at last.
    broken: Option<ClientError>,
}

impl Putting<'_> {
    fn take(&mut self, event: Event, now: Time) {
        match event {
            Event::Progress(id, bytes) => {
                self.upload.handle_progress(now, id);
                self.moved += bytes;
                if let Some(bar) = self.bar {
                    // All copies move at once; the bar shows their mean.
                    bar.set_position(self.moved / REPLICAS as u64);
                }
            }
            Event::Sent(id) => self.upload.handle_sent(now, id),
            Event::Stored(id, end) => {
                if let Err(why) = &end {
                    log::info!("{why}");
                    self.failed = Some(why.to_string());
                }
                self.upload.handle_stored(now, id, end);
            }
            Event::Hashed(index, digest, bytes) => {
                self.upload.handle_digest(now, index, digest, bytes)
            }
            Event::Local(path, why) => {
                self.upload.abort(Refusal::Failed(why.clone()));
                self.unreadable.get_or_insert((path, why));
            }
        }
    }

    fn end(self, end: Result<Vec<Receipt>, Refusal>) -> Result<Vec<Receipt>, ClientError> {
        match (self.unreadable, end, self.failed) {
            (Some((path, why)), ..) => Err(ClientError::Local { path, why }),
            (None, Err(refusal @ Refusal::TooFewCopies { .. }), Some(why)) => {
                Err(ClientError::Other(format!("{refusal}; at last {why}")))
            }
            (None, end, _) => end.map_err(|refusal| failure(refusal, self.broken)),
        }
    }
}

fn spawn_hasher(files: Arc<[(FileName, Content)]>, events: Sender<Event>) {
    std::thread::spawn(move || {
        for (index, (_, content)) in files.iter().enumerate() {
            let mut hasher = blake3::Hasher::new();
            let read = content.read(|run| {
                hasher.update(run);
                Ok(())
            });
            let event = match read {
                Err(ReadError::Local(path, why)) => Event::Local(path, why),
                _ => Event::Hashed(index, Digest(*hasher.finalize().as_bytes()), hasher.count()),
            };
            // Nobody listens any more where the put has ended.
            if events.send(event).is_err() {
                return;
            }
        }
    });
}

fn spawn_transfer(
    id: TransferId,
    target: Target,
    wanted: Vec<(BlobId, usize)>,
    files: Arc<[(FileName, Content)]>,
    events: Sender<Event>,
) {
    std::thread::spawn(move || {
        let at_target = |why: String| format!("{}: {why}", target.server.node);
        let failed = |error| Event::Stored(id, Err(error));
        let event = match send(id, &target, &wanted, &files, &events) {
            Ok(digests) => Event::Stored(id, Ok(digests)),
            Err(ReadError::Local(path, why)) => Event::Local(path, why),
            Err(ReadError::Wire(error)) => {
                failed(TransferError::Broken(at_target(error.to_string())))
            }
            Err(ReadError::Refused(why)) => failed(TransferError::Refused(at_target(why))),
        };
        let _ = events.send(event);
    });
}

fn send(
    id: TransferId,
    target: &Target,
    wanted: &[(BlobId, usize)],
    files: &[(FileName, Content)],
    events: &Sender<Event>,
) -> Result<Vec<Digest>, ReadError> {
    let mut stream = open_blobs(target.addr)?;
    let header = |(blob, index): &(BlobId, usize)| BlobHeader {
        blob: *blob,
        name: files[*index].0.clone(),
        bytes: files[*index].1.bytes(),
    };
    write_message(
        &mut stream,
        &BlobRequest::Store(wanted.iter().map(header).collect()),
    )?;
    // Small files share chunks: a frame for each would cost more than its bytes.
    let mut chunk: Vec<u8> = Vec::with_capacity(CHUNK_MAX);
    let mut flush = |chunk: &mut Vec<u8>| -> Result<(), WireError> {
        write_chunk(&mut stream, chunk)?;
        let _ = events.send(Event::Progress(id, chunk.len() as u64));
        chunk.clear();
        Ok(())
    };
    for (_, index) in wanted {
        files[*index].1.read(|mut run| {
            while !run.is_empty() {
                let (taken, rest) = run.split_at(run.len().min(CHUNK_MAX - chunk.len()));
                chunk.extend_from_slice(taken);
                run = rest;
                if chunk.len() == CHUNK_MAX {
                    flush(&mut chunk)?;
                }
            }
            Ok(())
        })?;
    }
    if !chunk.is_empty() {
        flush(&mut chunk)?;
    }
    let _ = events.send(Event::Sent(id));
    // The machine knows better when this has taken too long; here only a thread ends.
    stream
        .set_read_timeout(Some(SYNC))
        .map_err(WireError::from)?;
    match read_message(&mut stream)? {
        BlobReply::Stored(digests) => Ok(digests),
        BlobReply::Refused(why) => Err(ReadError::Refused(why)),
        BlobReply::Sending(_) => {
            Err(WireError::Malformed("an answer that does not fit".into()).into())
        }
    }
}

fn open_blobs(addr: SocketAddr) -> Result<TcpStream, WireError> {
    dial(addr, Purpose::Blobs, CONNECT_TIMEOUT, STALL)
}

/// Downloads the `newest` versions of `name`, each to the file that `path` says. Each
/// appears whole and checked, or not at all.
pub fn get(
    client: &mut Client,
    name: &FileName,
    newest: u64,
    stale: bool,
    path: impl Fn(&Located) -> String,
) -> Result<Downloaded, ClientError> {
    let started = Instant::now();
    let now = || Time(started.elapsed().as_nanos() as u64);
    let mut download = Download::new(name.clone(), newest, stale, None, now());
    let mut files: Vec<Getting> = Vec::new();
    let mut broken = None;
    loop {
        match download.poll_output() {
            Some(DownloadOutput::Request(request)) => {
                let reply = ask(client, &request, &mut broken);
                let reply = nearest_first(reply, client.addr());
                download.handle_reply(now(), reply);
            }
            Some(DownloadOutput::Start(located)) => {
                let file = Getting::new(&located, &path(&located))?;
                files.retain(|other| other.located.version != located.version);
                files.push(file);
            }
            Some(DownloadOutput::Read {
                id,
                source,
                blob,
                offset,
            }) => {
                let mut end = Ok(());
                let read = read_from(&source, blob, offset, |mut run| {
                    let Some(file) = files.last_mut() else {
                        return Ok(());
                    };
                    let at = download.offset();
                    run.truncate(download.handle_chunk(now(), id, &run));
                    end = file.write(at, run);
                    // Whatever ends the reading here is told by `end`.
                    if end.is_err() {
                        Err(WireError::Malformed("local file".into()))
                    } else {
                        Ok(())
                    }
                });
                end?;
                if let Err(error) = read {
                    log::info!("{blob} from {}: {error}", source.server.node);
                    download.handle_failed(now(), id);
                }
            }
            Some(DownloadOutput::Cancel(_)) => {}
            Some(DownloadOutput::Complain { source, blob }) => complain(&source, blob),
            Some(DownloadOutput::Done(end)) => {
                let downloaded = end.map_err(|refusal| failure(refusal, broken))?;
                files.into_iter().try_for_each(Getting::keep)?;
                return Ok(downloaded);
            }
            None => {
                let patience = download.poll_timeout().map_or(STALL, |at| at.since(now()));
                std::thread::sleep(patience);
                download.handle_timeout(now());
            }
        }
    }
}

/// Puts the node that was asked first among the sources.
fn nearest_first(mut reply: Reply, addr: SocketAddr) -> Reply {
    if let Reply::Located(versions) = &mut reply {
        versions
            .iter_mut()
            .for_each(|located| located.sources.sort_by_key(|source| source.addr != addr));
    }
    reply
}

/// Has a source look at a copy that was wrong. It is no matter of this client whether it does.
fn complain(source: &Target, blob: BlobId) {
    let node = &source.server.node;
    log::warn!("{node} sent wrong bytes for {blob}: another copy is read, {node} checks its own");
    let told = open_blobs(source.addr)
        .and_then(|mut stream| write_message(&mut stream, &BlobRequest::Check(vec![blob])));
    if let Err(error) = told {
        log::info!("{node} could not be told: {error}");
    }
}

/// A version on its way to its local file, which a thread of its own writes.
struct Getting {
    located: Located,
    place: Place,
    writer: Option<Writer>,
    bar: Option<ProgressBar>,
}

/// Runs of bytes with their places in the file, and the thread that writes them.
struct Writer {
    runs: Sender<(u64, Vec<u8>)>,
    thread: JoinHandle<std::io::Result<File>>,
}

impl Writer {
    fn new(file: File) -> Writer {
        let (runs, taken) = bounded::<(u64, Vec<u8>)>(WRITES);
        let thread = std::thread::spawn(move || {
            for (at, run) in taken {
                file.write_all_at(&run, at)?;
            }
            Ok(file)
        });
        Writer { runs, thread }
    }

    /// The file when everything is written, or the first error.
    fn finish(self) -> std::io::Result<File> {
        drop(self.runs);
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| Err(std::io::Error::other("the writing thread panicked")))
    }
}

impl Getting {
    fn new(located: &Located, path: &str) -> Result<Getting, ClientError> {
        let place = Place::new(path)?;
        let writer = Some(Writer::new(place.create()?));
        let bar = (located.bytes >= BAR_BYTES).then(|| progress::bytes(located.bytes, "download"));
        Ok(Getting {
            located: located.clone(),
            place,
            writer,
            bar,
        })
    }

    fn write(&mut self, at: u64, run: Vec<u8>) -> Result<(), ClientError> {
        if let Some(bar) = &self.bar {
            bar.set_position(at + run.len() as u64);
        }
        match &self.writer {
            Some(writer) if writer.runs.send((at, run)).is_ok() => Ok(()),
            // The thread ends early only with an error.
            _ => self.written().map(drop),
        }
    }

    /// The file when everything is written.
    fn written(&mut self) -> Result<File, ClientError> {
        let file = match self.writer.take() {
            Some(writer) => writer.finish(),
            None => Err(std::io::Error::other("written already")),
        };
        file.map_err(|error| self.place.error(error))
    }

    fn keep(mut self) -> Result<(), ClientError> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let file = self.written()?;
        // What an earlier, broken-off source wrote beyond the end goes.
        file.set_len(self.located.bytes)
            .map_err(|error| self.place.error(error))?;
        self.place.keep(file)
    }
}

/// Reads a blob from `offset` on, in runs to `take`.
fn read_from(
    source: &Target,
    blob: BlobId,
    offset: u64,
    mut take: impl FnMut(Vec<u8>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let mut stream = open_blobs(source.addr)?;
    write_message(&mut stream, &BlobRequest::Read(vec![(blob, offset)]))?;
    // Small, so that most of a chunk goes past it, into its own memory at once.
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    let mut left = match read_message(&mut stream)? {
        BlobReply::Sending(bytes) => bytes,
        BlobReply::Refused(why) => return Err(WireError::Malformed(why)),
        BlobReply::Stored(_) => {
            return Err(WireError::Malformed("an answer that does not fit".into()));
        }
    };
    while left > 0 {
        match read_frame(&mut stream)? {
            Frame::Chunk(run) if run.len() as u64 <= left => {
                left -= run.len() as u64;
                take(run)?;
            }
            _ => return Err(WireError::Malformed("more bytes than announced".into())),
        }
    }
    Ok(())
}
