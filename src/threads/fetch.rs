//! Threads `fetch-N`: copy blobs from other nodes to this node's disk.
//!
//! Decides: in which order sources are tried, that small blobs share their syncs, and that
//! inference goes first.
//! Leaves to others: which blobs this node should have (`store`).

use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::Shared;
use super::busy::Throttle;
use crate::disk::{BlobBatch, BlobWriter, Blobs, DiskError};
use crate::node::io::Input;
use crate::types::FileName;
use crate::wire::CHUNK_MAX;
use crate::wire::pull::{BLOBS_IN_REQUEST, PullError, Source, Want, by_source};
use crate::wire::store::Located;

/// Threads.
pub(super) const FETCHERS: usize = 2;
/// Orders that wait for a thread; further ones are refused to the core, which repeats them.
pub(super) const FETCHES_MAX: usize = 64;
/// Blobs up to this length share their syncs.
pub(super) const SMALL_BYTES: u64 = 1 << 20;
/// Sources that are tried for one blob.
const ATTEMPTS: usize = 4;

/// Copies what is ordered until the channel closes.
pub(super) fn run(
    orders: Receiver<Vec<Located>>,
    blobs: Arc<Blobs>,
    shared: Arc<Shared>,
    share: u32,
    results: Sender<Input>,
) -> Result<(), String> {
    for order in orders {
        let mut throttle = Throttle::new(&shared, share);
        let fetched = copy(&order, &blobs, &shared, &mut throttle);
        let ids = order.iter().map(|located| located.blob);
        if results
            .send(Input::Fetched(ids.zip(fetched).collect()))
            .is_err()
        {
            break;
        }
    }
    Ok(())
}

/// Which of the blobs are on disk afterwards.
fn copy(
    order: &[Located],
    blobs: &Blobs,
    shared: &Shared,
    throttle: &mut Throttle<'_>,
) -> Vec<bool> {
    let wants: Vec<Want> = order.iter().map(Want::from).collect();
    let names: Vec<&FileName> = order.iter().map(|located| &located.name).collect();
    let mut stored = vec![false; wants.len()];
    for attempt in 0..ATTEMPTS {
        let open = (0..wants.len()).filter(|number| !stored[*number]);
        let groups = by_source(&wants, open, attempt, Some(&shared.me));
        for (addr, group) in groups {
            for part in group.chunks(BLOBS_IN_REQUEST) {
                if shared.crew.is_stopping() {
                    return stored;
                }
                let from = (addr, part);
                let disk = (blobs, &mut *throttle);
                let result = copy_from(from, (&wants, &names), disk, shared, &mut stored);
                throttle.pause();
                if let Err(error) = result {
                    log::warn!("copying files from {addr}: {error}");
                }
            }
        }
    }
    stored
}

/// Copies the blobs `part` from one source; marks those that are on disk.
fn copy_from(
    (addr, part): (SocketAddr, &[usize]),
    (wants, names): (&[Want], &[&FileName]),
    (blobs, throttle): (&Blobs, &mut Throttle<'_>),
    shared: &Shared,
    stored: &mut [bool],
) -> Result<(), PullError> {
    let mut source = Source::open(addr)?;
    let ids: Vec<_> = part.iter().map(|number| wants[*number].blob).collect();
    source.request(&ids)?;
    let mut batch = blobs.batch();
    let mut batched = Vec::new();
    let mut problem = None;
    for number in part {
        let (want, name) = (&wants[*number], names[*number]);
        let writer = blobs
            .create(want.blob, name, want.bytes)
            .map_err(|error| PullError::Sink(error.to_string()))?;
        match copy_one(&mut source, want, writer, (shared, throttle), &mut batch) {
            Ok(true) => batched.push(*number),
            Ok(false) => stored[*number] = true,
            Err(error) => {
                let goes_on = error.goes_on();
                problem = Some(error);
                if !goes_on {
                    break;
                }
            }
        }
    }
    if !batched.is_empty() {
        batch
            .finish()
            .map_err(|error| PullError::Sink(error.to_string()))?;
        for number in batched {
            stored[number] = true;
        }
    }
    problem.map_or(Ok(()), Err)
}

/// Copies one blob; whether it still waits for the batch's end.
fn copy_one<'a>(
    source: &mut Source,
    want: &Want,
    mut writer: BlobWriter<'a>,
    (shared, throttle): (&Shared, &mut Throttle<'_>),
    batch: &mut BlobBatch<'a>,
) -> Result<bool, PullError> {
    let sink = |error: DiskError| PullError::Sink(error.to_string());
    source.receive(want, |chunk| {
        if shared.crew.is_stopping() {
            return Err("the node is stopping".into());
        }
        writer.write(chunk).map_err(|error| error.to_string())?;
        if chunk.len() == CHUNK_MAX {
            throttle.pause();
        }
        Ok(())
    })?;
    if want.bytes <= SMALL_BYTES {
        batch.add(writer).map_err(sink)?;
        return Ok(true);
    }
    writer.finish().map_err(sink)?;
    Ok(false)
}
