//! This node's own copies: read to their end to see whether they are whole, by thread `scrub`
//! all the time and for `fsck` at once; who finds a lost one tells the core.
//!
//! Decides: how the scrub is spread over its period, and which errors of a disk mean that a copy
//! is lost. Leaves to others: how a copy is checked (`disk`), and its repair (`store`).

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::Shared;
use super::ask::Ask;
use super::counters::{add, count};
use super::priority::Priority;
use crate::disk::{Blobs, DiskError};
use crate::types::{BlobId, Time};
use crate::wire::CHUNK_MAX;
use crate::wire::client::{Held, Reply, Request, SURVEY_FOLDERS};

/// Room in a queue that is full must come within this time.
const ROOM: Duration = Duration::from_secs(1);
/// The core must list its copies within this time.
const LISTED: Duration = Duration::from_secs(10);
/// How often a waiting scrub looks whether the process stops.
const LOOK: Duration = Duration::from_millis(250);

/// The copies of this node, and whom to tell of them.
#[derive(Clone)]
pub(super) struct Copies {
    pub(super) blobs: Arc<Blobs>,
    pub(super) shared: Arc<Shared>,
    pub(super) asks: Sender<Ask>,
}

impl Copies {
    /// The copies in one folder; none where the core does not answer.
    pub(super) fn held(&self, folder: u8) -> Option<Held> {
        let (reply, answers) = bounded(1);
        let request = Request::Held(folder);
        self.asks
            .send_timeout(Ask::Request { request, reply }, ROOM)
            .ok()?;
        match answers.recv_timeout(LISTED) {
            Ok(Reply::Held(held)) => Some(held),
            _ => None,
        }
    }

    /// Reads a copy from the disk and checks it; tells the core where it is lost. `step` hears
    /// how many bytes were read since it was last called, and may break off with an error.
    pub(super) fn check<E>(
        &self,
        blob: BlobId,
        mut step: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<Result<(), DiskError>, E> {
        let mut reader = match self.blobs.open_checked(blob) {
            Ok(reader) => reader,
            // Deleted since it was listed.
            Err(DiskError::NoBlob(_)) if !self.is_listed(blob) => return Ok(Ok(())),
            Err(error) => return Ok(Err(self.report(blob, error))),
        };
        reader.forget_cached();
        let mut buffer = vec![0; CHUNK_MAX.min(reader.left() as usize)];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => step(count as u64)?,
                Err(error) => return Ok(Err(self.report(blob, error))),
            }
        }
        // What nobody else needs in memory must not push out what others do.
        reader.forget_cached();
        count(&self.shared.counters.copies_checked);
        add(
            &self.shared.counters.copy_bytes_checked,
            reader.trailer().bytes,
        );
        Ok(Ok(()))
    }

    /// Whether the core has `blob` among its copies.
    fn is_listed(&self, blob: BlobId) -> bool {
        let folder = (blob.counter % u64::from(SURVEY_FOLDERS)) as u8;
        let listed = self.held(folder);
        listed.is_some_and(|listed| listed.copies.iter().any(|(held, _)| *held == blob))
    }

    /// Tells the core where `error` means that the copy is lost. Gives the error back.
    pub(super) fn report(&self, blob: BlobId, error: DiskError) -> DiskError {
        if error.is_loss() {
            // Whoever asks for a blob that was deleted finds none, and nothing is wrong then.
            if !matches!(error, DiskError::NoBlob(_)) {
                count(&self.shared.counters.blobs_corrupt);
                log::error!("{error}");
            }
            // The core has the copy made anew; where it has gone, nobody needs to know.
            let _ = self.asks.send_timeout(Ask::Corrupt(blob), ROOM);
        }
        error
    }

    /// Thread `scrub`: checks every copy once in each `period`, until the process stops.
    pub(super) fn scrub(self, period: Duration, start: u8) -> Result<(), String> {
        Priority::Computing.take();
        let slot = period / u32::from(SURVEY_FOLDERS);
        let mut folder = start;
        let mut begun = self.shared.clock.now();
        while self.scrub_folder(folder, begun, slot).is_ok() {
            folder = folder.wrapping_add(1);
            // A disk that is too slow for the period is checked without a break.
            begun = self.shared.clock.now().max(begun + slot);
        }
        Ok(())
    }

    /// Checks the copies of one folder, spread over `slot`. An error means to stop.
    fn scrub_folder(&self, folder: u8, begun: Time, slot: Duration) -> Result<(), Stopping> {
        let copies = self.held(folder).unwrap_or_default().copies;
        let total: u64 = copies.iter().map(|(_, bytes)| bytes).sum();
        let mut done = 0;
        for (blob, _) in copies {
            let checked = self.check(blob, |bytes| {
                done += bytes;
                let part = done as f64 / total.max(1) as f64;
                self.wait_until(begun + slot.mul_f64(part.min(1.0)))
            })?;
            if let Err(error) = checked
                && !matches!(error, DiskError::Corrupt { .. })
            {
                log::warn!("scrub: {error}");
            }
        }
        self.wait_until(begun + slot)
    }

    fn wait_until(&self, due: Time) -> Result<(), Stopping> {
        loop {
            if self.shared.crew.is_stopping() {
                return Err(Stopping);
            }
            let left = due.since(self.shared.clock.now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

/// The process stops.
struct Stopping;
