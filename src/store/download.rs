//! The client's side of a get: asks where versions are, reads them from one holder after
//! another, and checks what it read.
//!
//! [`BlobRead`] reads one version. [`Download`] locates the newest versions of a file and reads
//! each. Decides: which source is read, when one has failed, whether the bytes are right, and
//! who is to look at its copy. Leaves to others: moving and
//! writing the bytes (the driver), and which versions exist (the catalog).
//!
//! Contract: after each `handle_*` call the driver drains `poll_output`, then waits for
//! `poll_timeout`. Events of a read that was cancelled are ignored.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use super::ask::Ask;
use crate::types::{BlobId, Digest, FileName, JobId, NodeId, Time};
use crate::wire::client::{Refusal, Reply, Request};
use crate::wire::store::{Located, Target};

/// A source without progress for so long has failed.
const STALL_TIME: Duration = Duration::from_secs(1);
/// How often one source is tried in one [`BlobRead`].
const TRIES_MAX: u32 = 2;
/// How often a file is located anew because no source gave it.
const LOCATE_MAX: u32 = 3;
/// Wait before it is located anew.
const LOCATE_TIME: Duration = Duration::from_millis(500);

/// How many versions may be put while a file is read, if it has to be located anew.
const NEWER_MAX: u64 = 100;

/// Names one reading from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// What the driver of a [`BlobRead`] is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadOutput {
    /// Read the blob from this source, from this offset to its end. What was written
    /// before stays up to the offset and is cut off after it.
    Read {
        /// For the reports.
        id: ReadId,
        /// Where from.
        source: Target,
        /// The bytes.
        blob: BlobId,
        /// First byte.
        offset: u64,
    },
    /// Break this reading off.
    Cancel(ReadId),
    /// All bytes came from this source and were wrong: tell it to look at its copy.
    Complain {
        /// Whom.
        source: Target,
        /// The bytes.
        blob: BlobId,
    },
    /// The end: all bytes are there with the right digest, or why not.
    Done(Result<(), Refusal>),
}

#[derive(Clone, Debug)]
struct Source {
    target: Target,
    tries: u32,
    /// Gave the whole of the bytes, and they were wrong.
    corrupt: bool,
}

/// Reads one blob from its sources.
#[derive(Clone)]
pub struct BlobRead {
    located: Located,
    sources: Vec<Source>,
    hasher: blake3::Hasher,
    offset: u64,
    /// Index of the source that is read now, its reading, and its deadline.
    reading: Option<(usize, ReadId, Time)>,
    /// Sources of the bytes up to the offset.
    contributors: BTreeSet<usize>,
    /// Whether the bytes must all come from one source, because a mixture was wrong.
    whole: bool,
    next_read: u64,
    outputs: VecDeque<ReadOutput>,
}

impl fmt::Debug for BlobRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read of {} at {}", self.located.blob, self.offset)
    }
}

impl BlobRead {
    /// Starts to read `located`, from the node `local` first where that is a source, then
    /// in the order given.
    pub fn new(located: Located, local: Option<&NodeId>, now: Time) -> BlobRead {
        let mut targets = located.sources.clone();
        targets.sort_by_key(|target| Some(&target.server.node) != local);
        let source = |target| Source {
            target,
            tries: 0,
            corrupt: false,
        };
        let mut read = BlobRead {
            sources: targets.into_iter().map(source).collect(),
            located,
            hasher: blake3::Hasher::new(),
            offset: 0,
            reading: None,
            contributors: BTreeSet::new(),
            whole: false,
            next_read: 0,
            outputs: VecDeque::new(),
        };
        if read.located.bytes == 0 {
            read.check(now);
        } else {
            read.next_source(now);
        }
        read
    }

    /// Bytes came from the source of `id`. Returns how many of them, from the start of
    /// `bytes`, belong to the blob and are to be written at [`BlobRead::offset`] as it was
    /// before the call: all, or none where they are of no use.
    pub fn handle_chunk(&mut self, now: Time, id: ReadId, bytes: &[u8]) -> usize {
        let Some((source, _, _)) = self.current(id) else {
            return 0;
        };
        if bytes.len() as u64 > self.located.bytes - self.offset {
            self.handle_failed(now, id);
            return 0;
        }
        if !bytes.is_empty() {
            self.contributors.insert(source);
            self.hasher.update(bytes);
            self.offset += bytes.len() as u64;
            self.reading = Some((source, id, now + STALL_TIME));
        }
        if self.offset == self.located.bytes {
            self.reading = None;
            self.check(now);
        }
        bytes.len()
    }

    /// The source of `id` refused, its connection broke, or it ended too early.
    pub fn handle_failed(&mut self, now: Time, id: ReadId) {
        if self.current(id).is_some() {
            self.outputs.push_back(ReadOutput::Cancel(id));
            self.next_source(now);
        }
    }

    /// Deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if let Some((_, id, deadline)) = self.reading
            && deadline <= now
        {
            self.handle_failed(now, id);
        }
    }

    /// What is to be done next; `None` where nothing is.
    pub fn poll_output(&mut self) -> Option<ReadOutput> {
        self.outputs.pop_front()
    }

    /// When [`BlobRead::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.reading.map(|(_, _, deadline)| deadline)
    }

    /// Bytes that are there.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn current(&self, id: ReadId) -> Option<(usize, ReadId, Time)> {
        self.reading.filter(|(_, current, _)| *current == id)
    }

    /// All bytes are there: are they right?
    fn check(&mut self, now: Time) {
        let digest = Digest(*self.hasher.finalize().as_bytes());
        if digest == self.located.digest {
            self.finish(Ok(()));
            return;
        }
        if let (1, Some(source)) = (self.contributors.len(), self.contributors.first()) {
            let source = &mut self.sources[*source];
            source.corrupt = true;
            self.outputs.push_back(ReadOutput::Complain {
                source: source.target.clone(),
                blob: self.located.blob,
            });
        } else if !self.whole {
            // One of several gave wrong bytes: each alone will show which.
            self.whole = true;
            self.sources.iter_mut().for_each(|source| source.tries = 0);
        }
        self.start_over();
        self.next_source(now);
    }

    fn start_over(&mut self) {
        self.hasher.reset();
        self.offset = 0;
        self.contributors.clear();
    }

    /// Goes on with the source that was tried least, in order, at the same offset.
    fn next_source(&mut self, now: Time) {
        self.reading = None;
        if self.whole {
            self.start_over();
        }
        let left = self.sources.iter_mut().enumerate();
        let left = left.filter(|(_, source)| !source.corrupt && source.tries < TRIES_MAX);
        let Some((index, source)) = left.min_by_key(|(_, source)| source.tries) else {
            let refusal = self.no_source();
            self.finish(Err(refusal));
            return;
        };
        source.tries += 1;
        let id = ReadId(self.next_read);
        self.next_read += 1;
        self.reading = Some((index, id, now + STALL_TIME));
        self.outputs.push_back(ReadOutput::Read {
            id,
            source: source.target.clone(),
            blob: self.located.blob,
            offset: self.offset,
        });
    }

    fn no_source(&self) -> Refusal {
        let (name, version) = (&self.located.name, self.located.version);
        if self.located.bytes == 0 || self.sources.iter().any(|source| source.corrupt) {
            let wrong = format!(
                "no whole copy of {name:?} version {} can be read: some copies are corrupt, try again after their repair",
                version.0
            );
            return Refusal::Failed(wrong);
        }
        let nodes = self
            .sources
            .iter()
            .map(|source| source.target.server.node.clone());
        Refusal::NoCopies {
            name: name.clone(),
            version,
            holders: nodes.collect(),
        }
    }

    fn finish(&mut self, end: Result<(), Refusal>) {
        self.reading = None;
        self.outputs.push_back(ReadOutput::Done(end));
    }
}

/// What the driver of a [`Download`] is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum DownloadOutput {
    /// Ask the node; then `handle_reply`. Never a second one before the answer.
    Request(Request),
    /// Make a temporary file, empty, for this version: the reads that follow are its
    /// bytes. It may come twice for one version, where its reading starts over.
    Start(Located),
    /// Read; see [`ReadOutput::Read`].
    Read {
        /// For the reports.
        id: ReadId,
        /// Where from.
        source: Target,
        /// The bytes.
        blob: BlobId,
        /// First byte.
        offset: u64,
    },
    /// Break this reading off.
    Cancel(ReadId),
    /// Tell a source to look at its copy; see [`ReadOutput::Complain`].
    Complain {
        /// Whom.
        source: Target,
        /// The bytes.
        blob: BlobId,
    },
    /// The end: the files of all `Start`s are whole, or why not.
    Done(Result<Downloaded, Refusal>),
}

/// What a get found.
#[derive(Clone, Debug, PartialEq)]
pub enum Downloaded {
    /// The versions, newest first.
    Versions(Vec<Located>),
    /// The result file of a job that is not complete: its rows are asked for by `Rows`.
    Job {
        /// The job.
        job: JobId,
        /// Its number of inputs.
        inputs: u32,
    },
}

/// Locates a file and reads its newest versions.
#[derive(Clone, Debug)]
pub struct Download {
    name: FileName,
    newest: u64,
    stale: bool,
    local: Option<NodeId>,
    ask: Ask,
    located: u32,
    locate_at: Option<Time>,
    /// Versions that are read, and those that are to be read, newest first.
    finished: Vec<Located>,
    waiting: VecDeque<Located>,
    read: Option<BlobRead>,
    /// Readings of former [`BlobRead`]s, so that no id comes twice.
    reads: u64,
    outputs: VecDeque<DownloadOutput>,
    done: bool,
}

impl Download {
    /// Starts to get the `newest` versions of `name`; `stale`: as the node itself knows
    /// them, without a coordinator. `local` is the node asked, which is read first.
    pub fn new(
        name: FileName,
        newest: u64,
        stale: bool,
        local: Option<NodeId>,
        now: Time,
    ) -> Download {
        let mut download = Download {
            name,
            newest,
            stale,
            local,
            ask: Ask::default(),
            located: 0,
            locate_at: None,
            finished: Vec::new(),
            waiting: VecDeque::new(),
            read: None,
            reads: 0,
            outputs: VecDeque::new(),
            done: false,
        };
        download.locate(now);
        download
    }

    /// The node's answer. A connection that broke is a `Refused` that says so.
    pub fn handle_reply(&mut self, now: Time, reply: Reply) {
        if self.done || !self.ask.is_open() {
            return;
        }
        if reply == Reply::Refused(Refusal::Busy) && self.ask.put_off(now) {
            return;
        }
        self.ask.close();
        match reply {
            Reply::Located(versions) if versions.is_empty() => {
                self.finish(Err(Refusal::NotFound(self.name.clone())));
            }
            Reply::Located(versions) if self.located == 1 => {
                self.waiting = versions.into();
                self.next_version(now);
            }
            Reply::Located(versions) => self.find_again(now, versions),
            Reply::LocatedJob { job, inputs } => {
                self.finish(Ok(Downloaded::Job { job, inputs }));
            }
            Reply::Refused(refusal) => self.finish(Err(refusal)),
            _ => {
                let other = "the node gave an answer of another kind";
                self.finish(Err(Refusal::Failed(other.into())));
            }
        }
    }

    /// Bytes came; see [`BlobRead::handle_chunk`].
    pub fn handle_chunk(&mut self, now: Time, id: ReadId, bytes: &[u8]) -> usize {
        let used = self.with_read(id, |read, id| read.handle_chunk(now, id, bytes));
        self.forward(now);
        used.unwrap_or(0)
    }

    /// The source of `id` refused, its connection broke, or it ended too early.
    pub fn handle_failed(&mut self, now: Time, id: ReadId) {
        self.with_read(id, |read, id| read.handle_failed(now, id));
        self.forward(now);
    }

    /// Deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.done {
            return;
        }
        match self.ask.handle_timeout(now) {
            Ok(Some(request)) => self.outputs.push_back(DownloadOutput::Request(request)),
            Ok(None) => {}
            Err(refusal) => return self.finish(Err(refusal)),
        }
        if self.locate_at.is_some_and(|due| due <= now) {
            self.locate(now);
        }
        if let Some(read) = &mut self.read {
            read.handle_timeout(now);
        }
        self.forward(now);
    }

    /// What is to be done next; `None` where nothing is.
    pub fn poll_output(&mut self) -> Option<DownloadOutput> {
        self.outputs.pop_front()
    }

    /// When [`Download::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        let read = self.read.as_ref().and_then(BlobRead::poll_timeout);
        let times = read.into_iter().chain(self.ask.poll_timeout());
        times.chain(self.locate_at).min()
    }

    /// Bytes that are there of the version that is read now; where the next chunk goes.
    pub fn offset(&self) -> u64 {
        self.read.as_ref().map_or(0, BlobRead::offset)
    }

    fn locate(&mut self, now: Time) {
        self.locate_at = None;
        self.located += 1;
        // Newer versions may have pushed those that are wanted down the list by now.
        let newer = if self.located > 1 { NEWER_MAX } else { 0 };
        let (name, newest) = (self.name.clone(), self.newest.saturating_add(newer));
        let request = match self.stale {
            true => Request::LocateStale { name, newest },
            false => Request::Locate { name, newest },
        };
        let request = self.ask.open(now, request);
        self.outputs.push_back(DownloadOutput::Request(request));
    }

    /// New sources for the versions that are not read yet; a version that was deleted in
    /// the meantime is not found.
    fn find_again(&mut self, now: Time, versions: Vec<Located>) {
        for wanted in &mut self.waiting {
            let same = versions.iter().find(|located| located.blob == wanted.blob);
            let Some(located) = same else {
                return self.finish(Err(Refusal::NotFound(self.name.clone())));
            };
            wanted.sources.clone_from(&located.sources);
        }
        self.next_version(now);
    }

    fn next_version(&mut self, now: Time) {
        let Some(located) = self.waiting.front() else {
            let versions = std::mem::take(&mut self.finished);
            return self.finish(Ok(Downloaded::Versions(versions)));
        };
        self.outputs
            .push_back(DownloadOutput::Start(located.clone()));
        self.read = Some(BlobRead::new(located.clone(), self.local.as_ref(), now));
        self.forward(now);
    }

    fn with_read<T>(
        &mut self,
        id: ReadId,
        handle: impl FnOnce(&mut BlobRead, ReadId) -> T,
    ) -> Option<T> {
        let id = ReadId(id.0.checked_sub(self.reads)?);
        Some(handle(self.read.as_mut()?, id))
    }

    /// Passes on what the reading wants; goes on once it has ended.
    fn forward(&mut self, now: Time) {
        let base = self.reads;
        while let Some(output) = self.read.as_mut().and_then(BlobRead::poll_output) {
            let output = match output {
                ReadOutput::Read {
                    id,
                    source,
                    blob,
                    offset,
                } => DownloadOutput::Read {
                    id: ReadId(base + id.0),
                    source,
                    blob,
                    offset,
                },
                ReadOutput::Cancel(id) => DownloadOutput::Cancel(ReadId(base + id.0)),
                ReadOutput::Complain { source, blob } => DownloadOutput::Complain { source, blob },
                ReadOutput::Done(end) => return self.read_ended(now, end),
            };
            self.outputs.push_back(output);
        }
    }

    fn read_ended(&mut self, now: Time, end: Result<(), Refusal>) {
        self.reads += self.read.take().map_or(0, |read| read.next_read);
        match end {
            Ok(()) => {
                self.finished.extend(self.waiting.pop_front());
                self.next_version(now);
            }
            // Copies move: the catalog may know better sources by now.
            Err(_) if self.located < LOCATE_MAX => self.locate_at = Some(now + LOCATE_TIME),
            Err(refusal) => self.finish(Err(refusal)),
        }
    }

    fn finish(&mut self, end: Result<Downloaded, Refusal>) {
        self.done = true;
        self.ask.close();
        self.locate_at = None;
        self.outputs.push_back(DownloadOutput::Done(end));
    }
}
