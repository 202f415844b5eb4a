//! Decodes and changes training images ahead of the network.
//!
//! Decides: how many threads do that, and that their number changes nothing but the
//! speed: each image draws its changes from a stream of its own, and batches arrive in
//! order. Leaves to others: the order of the images and what is learnt from them.

use std::thread;

use crossbeam_channel::{Receiver, bounded};

use super::augment::Augment;
use crate::models::photographs::{PhotographError, Photographs};
use crate::types::Rng;

/// Batches that a thread may be ahead.
const AHEAD: usize = 2;

/// One batch of training images.
pub(super) struct Batch {
    /// `[count, side, side, 3]` f32, normalised.
    pub(super) numbers: Vec<f32>,
    /// One label number for each image.
    pub(super) labels: Vec<i64>,
}

/// What the batches of one epoch are made of.
pub(super) struct Epoch<'a> {
    pub(super) photographs: &'a Photographs,
    /// Indices of photographs, in the order in which they are learnt.
    pub(super) order: &'a [usize],
    /// Images in a batch.
    pub(super) batch: usize,
    /// Pixels of a side.
    pub(super) side: u32,
    pub(super) mean: [f32; 3],
    pub(super) std: [f32; 3],
    /// Seed of the epoch's changes.
    pub(super) seed: u64,
}

impl Epoch<'_> {
    /// Calls `step` with each whole batch in order; what does not fill a batch at the end
    /// is left out, since a batch norm learns badly from a few. *Errors*: the first of an
    /// image or of `step`.
    pub(super) fn run<E: From<PhotographError>>(
        &self,
        threads: usize,
        mut step: impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        let threads = threads.max(1);
        let batches: Vec<&[usize]> = self.order.chunks_exact(self.batch).collect();
        thread::scope(|scope| {
            let mut channels: Vec<Receiver<Result<Batch, PhotographError>>> = Vec::new();
            for first in 0..threads {
                let (sender, receiver) = bounded(AHEAD);
                channels.push(receiver);
                let batches = &batches;
                thread::Builder::new()
                    .name(format!("load-{first}"))
                    .spawn_scoped(scope, move || {
                        let mut augment = Augment::new(self.side, self.mean, self.std);
                        for indices in batches.iter().skip(first).step_by(threads) {
                            if sender.send(self.load(indices, &mut augment)).is_err() {
                                break;
                            }
                        }
                    })
                    .expect("a thread can be started");
            }
            for number in 0..batches.len() {
                let batch = channels[number % threads].recv();
                step(batch.expect("each thread sends all its batches")?)?;
            }
            Ok(())
        })
    }

    fn load(&self, indices: &[usize], augment: &mut Augment) -> Result<Batch, PhotographError> {
        let mut batch = Batch {
            numbers: Vec::with_capacity(indices.len() * (self.side * self.side * 3) as usize),
            labels: Vec::with_capacity(indices.len()),
        };
        for index in indices {
            let image = self.photographs.decode(*index)?;
            let mut rng = Rng::new(self.seed.wrapping_add(*index as u64));
            augment.photograph(&image, &mut rng, &mut batch.numbers);
            batch.labels.push(self.photographs.label(*index) as i64);
        }
        Ok(batch)
    }
}
