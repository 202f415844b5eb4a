//! The client's side of a put: asks for targets, sends to all of them at once, replaces
//! those that fail, and has the coordinator name what is stored.
//!
//! The same machine runs in `dlc`, on a node's console and in the simulation. Decides:
//! when a target has failed, who is named as a holder (exactly those whose digest is the
//! client's own), and when to start over. Leaves to others: reading the local files and
//! moving the bytes (the driver), and whether the copies suffice (`uploads`).
//!
//! Contract: after each `handle_*` call the driver drains [`Upload::poll_output`], then
//! waits for [`Upload::poll_timeout`]. Late or unknown events are ignored.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::ask::Ask;
use crate::types::{BlobId, Digest, FileName, RequestId, Server, Time};
use crate::wire::client::{PUT_FILES_MAX, Receipt, Refusal, Reply, Request};
use crate::wire::store::{Target, Upload as NamedUpload};

/// How often an upload is begun, at most; each time uses one request id.
pub const ATTEMPTS_MAX: u64 = 3;
/// A target without progress for so long has failed.
const STALL_TIME: Duration = Duration::from_secs(1);
/// Bytes a second, and time for each file, that a target's disk makes at the very least
/// once it has been sent everything.
const SYNC_RATE_MIN: u64 = 32 << 20;
const SYNC_TIME_PER_FILE: Duration = Duration::from_millis(5);

/// One local file that is to be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadFile {
    /// The SDFS name.
    pub name: FileName,
    /// Its length in bytes, as it was before it was read.
    pub bytes: u64,
}

/// How often a pause of this process is forgiven to the targets.
const PAUSES_MAX: u32 = 5;

/// Names one exchange with one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransferId(pub u64);

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum UploadOutput {
    /// Ask the node; then `handle_reply`. Never a second one before the answer.
    Request(Request),
    /// Tell the node `PutAbort`; its answer does not matter.
    Abort(Vec<BlobId>),
    /// Send these files, in one exchange, to this target; report progress and the end.
    Transfer {
        /// For the reports.
        id: TransferId,
        /// Where to.
        target: Target,
        /// The bytes' ids, and which of the upload's files they are.
        files: Vec<(BlobId, usize)>,
    },
    /// Break this exchange off; no more reports of it matter.
    Cancel(TransferId),
    /// The end: a receipt for each file in order, or why not.
    Done(Result<Vec<Receipt>, Refusal>),
}

/// Why a target has not stored what it was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Its connection broke: nobody knows how it is.
    #[error("{0}")]
    Broken(String),
    /// It said why; it is there.
    #[error("{0}")]
    Refused(String),
}

/// A question and what its answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Question {
    Begin,
    Replace { files: Vec<usize>, failed: Server },
    Commit,
}

#[derive(Clone, Debug)]
struct FileState {
    file: UploadFile,
    /// The client's own digest, once its bytes have been read.
    digest: Option<Digest>,
    blob: Option<BlobId>,
    /// What targets say they have stored, until the own digest is known.
    claimed: Vec<(Server, Digest)>,
    stored: Vec<Server>,
    /// Targets that stored other bytes than were read here, in all attempts.
    differing: u32,
    /// Targets that it was given at first.
    wanted: usize,
    /// What the last target said that refused it; none where one was lost besides.
    refusal: Option<String>,
    lost: bool,
}

impl FileState {
    fn new(file: UploadFile) -> FileState {
        FileState {
            file,
            digest: None,
            blob: None,
            claimed: Vec::new(),
            stored: Vec::new(),
            differing: 0,
            wanted: 0,
            refusal: None,
            lost: false,
        }
    }

    /// Why it cannot have enough copies: it changes, or all targets are there and some refuse it.
    fn hopeless(&self) -> Option<Refusal> {
        // One target may be wrong; two have got another file than was read here.
        if self.differing > 1 && self.stored.len() < self.wanted {
            return Some(self.changed());
        }
        let why = self.refusal.as_ref().filter(|_| !self.lost)?;
        let (stored, wanted, name) = (self.stored.len(), self.wanted, &self.file.name);
        let only = || format!("only {stored} of {wanted} copies of {name:?} have a place: {why}");
        (stored < wanted).then(|| Refusal::Failed(only()))
    }

    fn changed(&self) -> Refusal {
        Refusal::Failed(format!(
            "the local file of {:?} changed while it was read: put it again when nobody writes to it",
            self.file.name
        ))
    }
}

#[derive(Clone, Debug)]
struct Transfer {
    target: Target,
    files: Vec<usize>,
    deadline: Time,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Upload {
    request: RequestId,
    attempt: u64,
    files: Vec<FileState>,
    ask: Ask,
    asked: Option<Question>,
    questions: VecDeque<Question>,
    transfers: BTreeMap<TransferId, Transfer>,
    next_transfer: u64,
    pauses: u32,
    outputs: VecDeque<UploadOutput>,
    done: bool,
}

impl Upload {
    /// Starts to put `files`, at most [`PUT_FILES_MAX`]. `request` and the
    /// [`ATTEMPTS_MAX`] - 1 numbers after it are this upload's.
    pub fn new(files: Vec<UploadFile>, request: RequestId, now: Time) -> Upload {
        let mut upload = Upload {
            request,
            attempt: 0,
            files: files.into_iter().map(FileState::new).collect(),
            ask: Ask::default(),
            asked: None,
            questions: VecDeque::new(),
            transfers: BTreeMap::new(),
            next_transfer: 0,
            pauses: 0,
            outputs: VecDeque::new(),
            done: false,
        };
        if upload.files.is_empty() {
            upload.finish(Ok(Vec::new()));
        } else if upload.files.len() > PUT_FILES_MAX {
            let most = format!("at most {PUT_FILES_MAX} files in one upload");
            upload.finish(Err(Refusal::BadArgument(most)));
        } else {
            upload.questions.push_back(Question::Begin);
            upload.advance(now);
        }
        upload
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
        match (self.asked.take(), reply) {
            (Some(Question::Begin), Reply::Placements(placements))
                if placements.len() == self.files.len() =>
            {
                let mut targets = Vec::new();
                for (index, placement) in placements.into_iter().enumerate() {
                    self.files[index].blob = Some(placement.blob);
                    self.files[index].wanted = placement.targets.len();
                    targets.extend(placement.targets.into_iter().map(|t| (t, index)));
                }
                self.transfer(now, targets);
            }
            (Some(Question::Replace { files, .. }), Reply::Replacements(targets))
                if targets.len() == files.len() =>
            {
                let pairs = targets.into_iter().zip(files);
                let left = pairs.filter_map(|(target, index)| Some((target?, index)));
                let left = left.collect();
                self.transfer(now, left);
            }
            (Some(Question::Commit), Reply::Receipts(receipts))
                if receipts.len() == self.files.len() =>
            {
                self.finish(Ok(receipts));
            }
            (question, Reply::Refused(refusal)) => self.refused(now, question, refusal),
            _ => self.give_up(Refusal::Failed(
                "the node gave an answer of another kind".into(),
            )),
        }
        self.advance(now);
    }

    /// A local file has been read to its end: its digest and how many bytes there were.
    pub fn handle_digest(&mut self, now: Time, index: usize, digest: Digest, bytes: u64) {
        if self.done || index >= self.files.len() {
            return;
        }
        let state = &mut self.files[index];
        if state.file.bytes != bytes || state.digest.is_some_and(|known| known != digest) {
            let changed = state.changed();
            return self.give_up(changed);
        }
        state.digest = Some(digest);
        for (server, claimed) in std::mem::take(&mut state.claimed) {
            self.claim(index, server, claimed);
        }
        self.advance(now);
    }

    /// Bytes have gone to the target of this exchange.
    pub fn handle_progress(&mut self, now: Time, id: TransferId) {
        if let Some(transfer) = self.transfers.get_mut(&id) {
            transfer.deadline = now + STALL_TIME;
        }
    }

    /// All bytes have gone to the target of this exchange; its disk gets time to sync.
    pub fn handle_sent(&mut self, now: Time, id: TransferId) {
        if let Some(transfer) = self.transfers.get_mut(&id) {
            let bytes = transfer
                .files
                .iter()
                .map(|index| self.files[*index].file.bytes);
            let sync = Duration::from_millis(bytes.sum::<u64>() / (SYNC_RATE_MIN / 1000));
            let files = SYNC_TIME_PER_FILE * transfer.files.len() as u32;
            transfer.deadline = now + STALL_TIME + sync + files;
        }
    }

    /// The end of an exchange: the digests as the target computed them, in order, once all
    /// is on its disk; or why it failed.
    pub fn handle_stored(
        &mut self,
        now: Time,
        id: TransferId,
        end: Result<Vec<Digest>, TransferError>,
    ) {
        let Some(transfer) = self.transfers.remove(&id) else {
            return;
        };
        let server = transfer.target.server;
        match end {
            Ok(digests) if digests.len() == transfer.files.len() => {
                for (index, digest) in transfer.files.into_iter().zip(digests) {
                    self.claim(index, server.clone(), digest);
                }
            }
            end => {
                for index in &transfer.files {
                    let state = &mut self.files[*index];
                    match &end {
                        Err(TransferError::Refused(why)) => state.refusal = Some(why.clone()),
                        _ => state.lost = true,
                    }
                }
                self.replace(transfer.files, server);
            }
        }
        self.advance(now);
    }

    /// The driver cannot go on (a local file cannot be read, the user stopped it).
    pub fn abort(&mut self, why: Refusal) {
        if !self.done {
            self.give_up(why);
        }
    }

    /// Deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.done {
            return;
        }
        match self.ask.handle_timeout(now) {
            Ok(Some(request)) => self.outputs.push_back(UploadOutput::Request(request)),
            Ok(None) => {}
            Err(refusal) => {
                let question = self.asked.take();
                self.refused(now, question, refusal);
            }
        }
        let late = |transfer: &&Transfer| transfer.deadline + STALL_TIME / 2 <= now;
        if self.pauses < PAUSES_MAX && self.transfers.values().any(|transfer| late(&transfer)) {
            // This process itself stood still: nobody is judged by that.
            self.pauses += 1;
            for transfer in self.transfers.values_mut() {
                transfer.deadline = transfer.deadline.max(now + STALL_TIME);
            }
        }
        let stalled = self
            .transfers
            .iter()
            .filter(|(_, transfer)| transfer.deadline <= now);
        let stalled: Vec<TransferId> = stalled.map(|(id, _)| *id).collect();
        for id in stalled {
            if let Some(transfer) = self.transfers.remove(&id) {
                self.outputs.push_back(UploadOutput::Cancel(id));
                for index in &transfer.files {
                    self.files[*index].lost = true;
                }
                self.replace(transfer.files, transfer.target.server);
            }
        }
        self.advance(now);
    }

    /// What is to be done next; `None` where nothing is.
    pub fn poll_output(&mut self) -> Option<UploadOutput> {
        self.outputs.pop_front()
    }

    /// When [`Upload::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        let transfers = self.transfers.values().map(|transfer| transfer.deadline);
        transfers.chain(self.ask.poll_timeout()).min()
    }

    /// Asks the next question, or commits once everything has ended.
    fn advance(&mut self, now: Time) {
        if self.done || self.ask.is_open() {
            return;
        }
        let read = self.files.iter().all(|state| state.digest.is_some());
        let idle = self.transfers.is_empty() && self.questions.is_empty();
        if idle
            && read
            && let Some(why) = self.files.iter().find_map(FileState::hopeless)
        {
            return self.give_up(why);
        }
        let commit = (idle && read).then_some(Question::Commit);
        let Some(question) = self.questions.pop_front().or(commit) else {
            return;
        };
        let request = self.word(&question);
        self.asked = Some(question);
        let request = self.ask.open(now, request);
        self.outputs.push_back(UploadOutput::Request(request));
    }

    fn word(&self, question: &Question) -> Request {
        match question {
            Question::Begin => {
                let names = self.files.iter().map(|state| state.file.name.clone());
                Request::PutBegin(names.collect())
            }
            Question::Replace { files, failed } => Request::PutReplace {
                blobs: files
                    .iter()
                    .filter_map(|index| self.files[*index].blob)
                    .collect(),
                failed: failed.clone(),
            },
            Question::Commit => Request::PutCommit {
                request: RequestId {
                    client: self.request.client,
                    sequence: self.request.sequence + self.attempt,
                },
                files: self.files.iter().filter_map(FileState::named).collect(),
            },
        }
    }

    /// Starts one exchange with each of the targets, with all files that go there.
    fn transfer(&mut self, now: Time, targets: Vec<(Target, usize)>) {
        let mut groups: BTreeMap<Server, (Target, Vec<usize>)> = BTreeMap::new();
        for (target, index) in targets {
            let group = groups.entry(target.server.clone());
            group.or_insert((target, Vec::new())).1.push(index);
        }
        for (target, files) in groups.into_values() {
            let id = TransferId(self.next_transfer);
            self.next_transfer += 1;
            let blobs = files
                .iter()
                .filter_map(|index| Some((self.files[*index].blob?, *index)));
            self.outputs.push_back(UploadOutput::Transfer {
                id,
                target: target.clone(),
                files: blobs.collect(),
            });
            let transfer = Transfer {
                target,
                files,
                deadline: now + STALL_TIME,
            };
            self.transfers.insert(id, transfer);
        }
    }

    /// `server` says it stored the file; believed where the digests agree.
    fn claim(&mut self, index: usize, server: Server, claimed: Digest) {
        let state = &mut self.files[index];
        match state.digest {
            None => state.claimed.push((server, claimed)),
            Some(digest) if digest == claimed => state.stored.push(server),
            Some(_) => {
                state.differing += 1;
                self.replace(vec![index], server);
            }
        }
    }

    /// Asks for other targets in place of `failed`, in one question for all its files.
    fn replace(&mut self, files: Vec<usize>, failed: Server) {
        for question in &mut self.questions {
            if let Question::Replace {
                files: more,
                failed: same,
            } = question
                && *same == failed
                && more.len() + files.len() <= PUT_FILES_MAX
            {
                more.extend(files);
                return;
            }
        }
        self.questions
            .push_back(Question::Replace { files, failed });
    }

    fn refused(&mut self, now: Time, question: Option<Question>, refusal: Refusal) {
        let again = matches!(
            refusal,
            Refusal::UnknownUpload | Refusal::TooFewCopies { .. }
        );
        if again && self.attempt + 1 < ATTEMPTS_MAX {
            self.attempt += 1;
            self.withdraw();
            for state in &mut self.files {
                state.blob = None;
                state.claimed.clear();
                state.stored.clear();
                (state.refusal, state.lost) = (None, false);
            }
            self.questions.push_back(Question::Begin);
            self.advance(now);
        } else if question == Some(Question::Commit) && !again {
            // Whether it was carried out is not known: nothing is taken back.
            self.finish(Err(refusal));
        } else {
            self.give_up(refusal);
        }
    }

    /// Breaks everything off and has the coordinator drop what was stored.
    fn withdraw(&mut self) {
        self.questions.clear();
        for id in std::mem::take(&mut self.transfers).into_keys() {
            self.outputs.push_back(UploadOutput::Cancel(id));
        }
        let blobs: Vec<BlobId> = self.files.iter().filter_map(|state| state.blob).collect();
        if !blobs.is_empty() {
            self.outputs.push_back(UploadOutput::Abort(blobs));
        }
    }

    fn give_up(&mut self, why: Refusal) {
        self.withdraw();
        self.finish(Err(why));
    }

    fn finish(&mut self, end: Result<Vec<Receipt>, Refusal>) {
        self.done = true;
        self.ask.close();
        self.outputs.push_back(UploadOutput::Done(end));
    }
}

impl FileState {
    fn named(&self) -> Option<NamedUpload> {
        Some(NamedUpload {
            name: self.file.name.clone(),
            blob: self.blob?,
            bytes: self.file.bytes,
            digest: self.digest?,
            replicas: self.stored.clone(),
        })
    }
}
