//! What a node says on the connections that come in: peers, membership, clients, bytes.
//!
//! Decides: which connections belong here, and that an upload is answered only when it is
//! on disk and the core has noted it. Leaves to others: everything that a message means;
//! handlers never dial out.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::Shared;
use super::ask::Ask;
use super::copies::Copies;
use super::counters::{add, count};
use super::fetch::SMALL_BYTES;
use super::listen::{CONNECTIONS_MAX, Connection, Service};
use super::local::LocalModels;
use super::ping::{Command, Handle};
use super::wake::is_closed;
use crate::disk::{BlobWriter, Blobs, DiskError, Trailer};
use crate::node::io::Input;
use crate::types::{BlobId, Digest};
use crate::wire::client::{
    Found, PUT_FILES_MAX, Refusal, Reply, Request, SURVEY_FOLDERS, Verified,
};
use crate::wire::datagram::MembershipRequest;
use crate::wire::peer::{BlobHeader, BlobReply, BlobRequest, CHECKS_MAX, PeerMessage, Purpose};
use crate::wire::{
    CHUNK_MAX, Frame, WireError, decode, read_frame, read_message, write_chunk, write_message,
};

/// Places that clients and their bytes do not get, so that members always find one.
const RESERVED: usize = 64;
/// Room in a queue that is full must come within this time.
const ROOM: Duration = Duration::from_secs(1);
/// The membership thread must answer within this time.
const MEMBERSHIP: Duration = Duration::from_secs(2);
/// The core must note stored blobs within this time.
const NOTED: Duration = Duration::from_secs(10);
/// How often a client is told how far the check of all copies has come.
const VERIFYING: Duration = Duration::from_secs(1);
/// How often a waiting handler looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(200);

/// What the handlers of a node need.
pub(super) struct Files {
    pub(super) shared: Arc<Shared>,
    pub(super) ping: Handle,
    pub(super) messages: Sender<Input>,
    pub(super) asks: Sender<Ask>,
    pub(super) blobs: Arc<Blobs>,
    pub(super) copies: Copies,
    pub(super) models: LocalModels,
}

impl Service for Files {
    fn serve(&self, connection: &mut Connection<'_>, purpose: Purpose) -> Result<(), WireError> {
        let crowded = connection.place >= CONNECTIONS_MAX - RESERVED;
        match purpose {
            Purpose::Peer { cluster, from, to } => {
                let own = *self.shared.cluster.read();
                if own != Some(cluster) || to != self.shared.me {
                    count(&self.shared.counters.peers_refused);
                    log::debug!("peer {from:?} refused: it means {to:?} in cluster {cluster:?}");
                    return Ok(());
                }
                self.serve_peer(connection, from)
            }
            Purpose::Membership => self.serve_membership(connection),
            Purpose::Client if crowded => {
                count(&self.shared.counters.requests_refused);
                answer(connection, &Reply::Refused(Refusal::Busy))
            }
            Purpose::Client => self.serve_client(connection),
            Purpose::Blobs if crowded => {
                count(&self.shared.counters.requests_refused);
                answer(connection, &BlobReply::Refused(Refusal::Busy.to_string()))
            }
            Purpose::Blobs => self.serve_blobs(connection),
        }
    }
}

fn answer<T: serde::Serialize>(
    connection: &mut Connection<'_>,
    reply: &T,
) -> Result<(), WireError> {
    write_message(&mut connection.writer, reply)?;
    Ok(connection.writer.flush()?)
}

impl Files {
    fn serve_peer(
        &self,
        connection: &mut Connection<'_>,
        from: crate::types::Server,
    ) -> Result<(), WireError> {
        while connection.wait_for_frame()? {
            let message: PeerMessage = match read_frame(&mut connection.reader)? {
                Frame::Message(bytes) => match decode(&bytes) {
                    Ok(message) => message,
                    Err(error) => {
                        // The frame is whole, so that the next one can be read.
                        count(&self.shared.counters.messages_bad);
                        log::warn!("message of {} dropped: {error}", from.node);
                        continue;
                    }
                },
                Frame::Chunk(_) => {
                    count(&self.shared.counters.messages_bad);
                    continue;
                }
            };
            let from = from.clone();
            let mut input = Input::Message { from, message };
            while let Err(error) = self.messages.send_timeout(input, ROOM) {
                if self.shared.crew.is_stopping() || error.is_disconnected() {
                    return Ok(());
                }
                input = error.into_inner();
            }
        }
        Ok(())
    }

    fn serve_membership(&self, connection: &mut Connection<'_>) -> Result<(), WireError> {
        let request: MembershipRequest = read_message(&mut connection.reader)?;
        let (reply, answers) = bounded(1);
        if self.ping.send(Command::Request { request, reply }, ROOM)
            && let Ok(reply) = answers.recv_timeout(MEMBERSHIP)
        {
            answer(connection, &reply)?;
        }
        Ok(())
    }

    /// Serves a client until its connection ends, and then gives up what it has begun to upload:
    /// nobody else can commit that.
    fn serve_client(&self, connection: &mut Connection<'_>) -> Result<(), WireError> {
        let mut begun = BTreeSet::new();
        let served = self.serve_requests(connection, &mut begun);
        let begun: Vec<BlobId> = begun.into_iter().collect();
        for blobs in begun.chunks(PUT_FILES_MAX) {
            let request = Request::PutAbort(blobs.to_vec());
            // Whether it is done is nobody's question; what is being committed stays.
            let (reply, _) = bounded(1);
            let _ = self
                .asks
                .send_timeout(Ask::Request { request, reply }, ROOM);
        }
        served
    }

    fn serve_requests(
        &self,
        connection: &mut Connection<'_>,
        begun: &mut BTreeSet<BlobId>,
    ) -> Result<(), WireError> {
        while connection.wait_for_frame()? {
            let request: Request = read_message(&mut connection.reader)?;
            let reply = match request {
                Request::Stats => Some(self.stats()),
                Request::Why(name) => Some(self.why(name)),
                Request::LocalModels => Some(self.models.list()),
                Request::Survey(folder) => Some(self.survey(folder)),
                Request::Verify => Some(self.verify(connection)?),
                Request::ReadLocalModel {
                    name,
                    weights,
                    offset,
                } => Some(self.models.read(&name, weights, offset)),
                request => {
                    let ended: Vec<BlobId> = match &request {
                        Request::PutCommit { files, .. } => {
                            files.iter().map(|it| it.blob).collect()
                        }
                        Request::PutAbort(blobs) => blobs.clone(),
                        _ => Vec::new(),
                    };
                    let reply = self.ask(connection, request);
                    if let Some(Reply::Placements(placements)) = &reply {
                        begun.extend(placements.iter().map(|placement| placement.blob));
                    }
                    if let Some(Reply::Receipts(_) | Reply::Done) = &reply {
                        begun.retain(|blob| !ended.contains(blob));
                    }
                    reply
                }
            };
            match reply {
                Some(reply) => answer(connection, &reply)?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn stats(&self) -> Reply {
        let mut all = self.shared.counters.snapshot();
        let (reply, answers) = bounded(1);
        if self.ping.send(Command::Stats { reply }, ROOM)
            && let Ok(stats) = answers.recv_timeout(MEMBERSHIP)
        {
            let named = stats.into_iter().map(|(name, value)| (name.into(), value));
            all.extend(named);
        }
        Reply::Stats(all)
    }

    fn survey(&self, folder: u8) -> Reply {
        let found = |trailer: Trailer| Found {
            blob: trailer.blob,
            name: trailer.name,
            bytes: trailer.bytes,
            digest: trailer.digest,
        };
        let blobs = self.blobs.survey(folder).into_iter().map(found).collect();
        Reply::Survey(self.shared.me.clone(), blobs)
    }

    /// Checks all copies; tells the client every second how far it has come.
    fn verify(&self, connection: &mut Connection<'_>) -> Result<Reply, WireError> {
        let mut verified = Verified::default();
        let clock = self.shared.clock;
        let mut told = clock.now();
        for folder in 0..SURVEY_FOLDERS {
            let Some(held) = self.copies.held(folder as u8) else {
                return Ok(Reply::Refused(Refusal::Busy));
            };
            verified.orphaned += held.orphaned;
            for (blob, bytes) in held.copies {
                // What is wrong with it is told to the core.
                let _ = self.copies.check(blob, |_| {
                    self.goes_on()?;
                    if told + VERIFYING <= clock.now() {
                        told = clock.now();
                        answer(connection, &Reply::Verifying(folder.into()))?;
                    }
                    Ok::<(), WireError>(())
                })?;
                verified.copies += 1;
                verified.bytes += bytes;
            }
        }
        let Some(held) = self.copies.held(0) else {
            return Ok(Reply::Refused(Refusal::Busy));
        };
        verified.lost = held.lost;
        Ok(Reply::Verified(verified))
    }

    fn why(&self, name: String) -> Reply {
        let (reply, answers) = bounded(1);
        let sent = self.ping.send(Command::Why { name, reply }, ROOM);
        match answers.recv_timeout(MEMBERSHIP) {
            Ok(events) if sent => Reply::Events(events),
            _ => Reply::Refused(Refusal::Busy),
        }
    }

    /// The core's answer; none where the client has gone or the process stops first.
    fn ask(&self, connection: &Connection<'_>, request: Request) -> Option<Reply> {
        let (reply, answers) = bounded(1);
        let ask = Ask::Request { request, reply };
        if let Err(error) = self.asks.send_timeout(ask, ROOM) {
            count(&self.shared.counters.requests_refused);
            let refusal = match error.is_timeout() {
                true => Refusal::Busy,
                false => Refusal::Stopping,
            };
            return Some(Reply::Refused(refusal));
        }
        loop {
            match answers.recv_timeout(LOOK) {
                Ok(reply) => return Some(reply),
                Err(RecvTimeoutError::Disconnected) => {
                    return Some(Reply::Refused(Refusal::Stopping));
                }
                // Stopping ends the reading side too; then the answer may still come.
                Err(RecvTimeoutError::Timeout) => {
                    if !self.shared.crew.is_stopping() && is_closed(connection.fd()) {
                        return None;
                    }
                }
            }
        }
    }

    fn serve_blobs(&self, connection: &mut Connection<'_>) -> Result<(), WireError> {
        while connection.wait_for_frame()? {
            match read_message(&mut connection.reader)? {
                BlobRequest::Store(headers) => self.store(connection, &headers)?,
                BlobRequest::Read(blobs) => {
                    for (blob, offset) in blobs {
                        if !self.read(connection, blob, offset)? {
                            return Ok(());
                        }
                    }
                    connection.writer.flush()?;
                }
                BlobRequest::Check(blobs) if blobs.len() <= CHECKS_MAX => self.check(&blobs)?,
                BlobRequest::Check(blobs) => {
                    return Err(WireError::TooLarge(blobs.len(), CHECKS_MAX));
                }
            }
        }
        Ok(())
    }

    /// Looks at copies that somebody read and found wrong.
    fn check(&self, blobs: &[BlobId]) -> Result<(), WireError> {
        for blob in blobs {
            // Whether they are right is told to the core.
            let _ = self.copies.check(*blob, |_| self.goes_on())?;
        }
        Ok(())
    }

    fn goes_on(&self) -> Result<(), WireError> {
        match self.shared.crew.is_stopping() {
            true => Err(std::io::Error::other("stopping").into()),
            false => Ok(()),
        }
    }

    /// Takes the bytes of an upload, and answers when they are on disk and noted.
    fn store(
        &self,
        connection: &mut Connection<'_>,
        headers: &[BlobHeader],
    ) -> Result<(), WireError> {
        let total = headers
            .iter()
            .try_fold(0u64, |sum, header| sum.checked_add(header.bytes));
        let Some(total) = total.filter(|_| headers.len() <= PUT_FILES_MAX) else {
            let limit = WireError::TooLarge(headers.len(), PUT_FILES_MAX);
            answer(connection, &BlobReply::Refused(limit.to_string()))?;
            return Err(limit);
        };
        let mut incoming = Incoming {
            connection,
            chunk: Vec::new(),
            taken: 0,
            left: total,
        };
        let stored = match receive(&self.blobs, &mut incoming, headers) {
            Ok(digests) => Ok(digests),
            Err(StoreError::Disk(error)) => {
                count(&self.shared.counters.uploads_refused);
                log::error!("upload from {}: {error}", incoming.connection.from);
                // The client sends all before it reads: without this it would see a broken
                // connection instead of the reason.
                incoming.skip()?;
                Err(error.to_string())
            }
            Err(StoreError::Wire(error)) => return Err(error),
        };
        let reply = match stored {
            Ok(digests) => {
                add(&self.shared.counters.blob_bytes_stored, total);
                self.note(headers, digests)
            }
            Err(reason) => BlobReply::Refused(reason),
        };
        answer(connection, &reply)
    }

    /// Tells the core of the blobs, and waits until it has them on its list.
    fn note(&self, headers: &[BlobHeader], digests: Vec<Digest>) -> BlobReply {
        let (noted, answers) = bounded(1);
        let blobs = headers.iter().map(|header| header.blob).collect();
        let sent = self.asks.send_timeout(Ask::Stored { blobs, noted }, ROOM);
        match sent.is_ok() && answers.recv_timeout(NOTED).is_ok() {
            true => BlobReply::Stored(digests),
            false => BlobReply::Refused(Refusal::Busy.to_string()),
        }
    }

    /// Sends a blob from `offset` on; who reads it checks it, and complains. False where the
    /// connection is of no more use.
    fn read(
        &self,
        connection: &mut Connection<'_>,
        blob: BlobId,
        offset: u64,
    ) -> Result<bool, WireError> {
        let mut reader = match self.blobs.open_from(blob, offset) {
            Ok(reader) => reader,
            Err(error) => {
                let error = self.copies.report(blob, error);
                let refused = BlobReply::Refused(error.to_string());
                write_message(&mut connection.writer, &refused)?;
                return Ok(true);
            }
        };
        write_message(&mut connection.writer, &BlobReply::Sending(reader.left()))?;
        add(&self.shared.counters.blob_bytes_read, reader.left());
        let mut buffer = vec![0; CHUNK_MAX.min(reader.left() as usize)];
        while reader.left() > 0 {
            match reader.read(&mut buffer) {
                Ok(count) => write_chunk(&mut connection.writer, &buffer[..count])?,
                Err(error) => {
                    // The bytes were promised: only the connection's end can take that back.
                    self.copies.report(blob, error);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

enum StoreError {
    Disk(DiskError),
    Wire(WireError),
}

impl From<DiskError> for StoreError {
    fn from(error: DiskError) -> StoreError {
        StoreError::Disk(error)
    }
}

impl From<WireError> for StoreError {
    fn from(error: WireError) -> StoreError {
        StoreError::Wire(error)
    }
}

/// The bytes of an upload, without regard to how they were cut into chunks.
struct Incoming<'c, 'a> {
    connection: &'c mut Connection<'a>,
    chunk: Vec<u8>,
    /// Bytes of the chunk that were used.
    taken: usize,
    /// Bytes of the upload that have not been read from the connection.
    left: u64,
}

impl Incoming<'_, '_> {
    /// The next bytes, at most `most`.
    fn next(&mut self, most: u64) -> Result<&[u8], WireError> {
        if self.taken == self.chunk.len() {
            let Frame::Chunk(chunk) = read_frame(&mut self.connection.reader)? else {
                return Err(WireError::Malformed("a message amid an upload".into()));
            };
            if chunk.is_empty() || chunk.len() as u64 > self.left {
                return Err(WireError::Malformed(
                    "more bytes than were announced".into(),
                ));
            }
            self.left -= chunk.len() as u64;
            self.chunk = chunk;
            self.taken = 0;
        }
        let rest = (self.chunk.len() - self.taken) as u64;
        let from = self.taken;
        self.taken += rest.min(most) as usize;
        Ok(&self.chunk[from..self.taken])
    }

    fn skip(&mut self) -> Result<(), WireError> {
        while self.left > 0 {
            self.taken = self.chunk.len();
            self.next(u64::MAX)?;
            self.taken = self.chunk.len();
        }
        Ok(())
    }
}

/// Writes an upload to disk: large files are synced one by one, small ones together.
fn receive(
    blobs: &Blobs,
    incoming: &mut Incoming<'_, '_>,
    headers: &[BlobHeader],
) -> Result<Vec<Digest>, StoreError> {
    let total: u64 = headers.iter().map(|header| header.bytes).sum();
    let free = blobs.free_bytes()?;
    if total > free {
        let too_full = DiskError::TooFull {
            path: blobs.path().into(),
            wanted: total,
            free,
        };
        return Err(too_full.into());
    }
    let mut batch = blobs.batch();
    let mut batched = false;
    let mut digests = Vec::with_capacity(headers.len());
    for header in headers {
        let mut writer = blobs.create(header.blob, &header.name, header.bytes)?;
        take(incoming, &mut writer, header.bytes)?;
        if headers.len() > 1 && header.bytes <= SMALL_BYTES {
            digests.push(batch.add(writer)?);
            batched = true;
        } else {
            digests.push(writer.finish()?);
        }
    }
    if batched {
        batch.finish()?;
    }
    Ok(digests)
}

fn take(
    incoming: &mut Incoming<'_, '_>,
    writer: &mut BlobWriter<'_>,
    bytes: u64,
) -> Result<(), StoreError> {
    let mut left = bytes;
    while left > 0 {
        let part = incoming.next(left)?;
        left -= part.len() as u64;
        writer.write(part)?;
    }
    Ok(())
}
