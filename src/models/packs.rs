//! Weights packed for batch sizes: which sizes, how many, and what a batch of another
//! size does.
//!
//! Decides: a size that is seen for the first time goes the unpacked way and is packed
//! when it comes again; at most [`PACKED_MAX`] sizes are kept, the one used longest ago
//! goes; a batch that is only a little smaller than a packed one (a job's remainder, or a
//! task some of whose images could not be read) is padded instead. Each newly packed size
//! is compared with the unpacked way on its first batch, and is not used where they
//! differ. Leaves to others: the operators (`fused`).

use tch::{TchError, Tensor};

use super::error::words;
use super::fused::Packable;
use super::route::Route;

/// Packed sizes that are kept; each takes as much memory as the weights.
const PACKED_MAX: usize = 3;
/// Sizes that are remembered as seen once.
const SEEN_MAX: usize = 16;
/// A batch is padded to a packed size that is at most this many times as large: more
/// would cost more time than the unpacked way.
const PADDING_MAX: f64 = 1.25;
/// Largest difference between two ways, for each unit of the largest logit.
const TOLERANCE: f64 = 1e-3;

/// Which sizes are packed, and which were seen.
#[derive(Debug, Default)]
struct Sizes {
    /// The packed ones, used longest ago first.
    packed: Vec<usize>,
    /// Seen once and not packed, longest ago first.
    seen: Vec<usize>,
    /// Packed once, but with other answers or an error.
    refused: Vec<usize>,
}

/// What a batch does.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// Runs on the weights packed for that size.
    Packed(usize),
    /// Runs unpacked, and the packed way beside it is compared.
    Pack,
    /// Runs unpacked.
    Unpacked,
}

impl Sizes {
    /// What a batch of `count` inputs does.
    fn choose(&mut self, count: usize) -> Choice {
        let fits = |size: &&usize| **size >= count && **size as f64 <= count as f64 * PADDING_MAX;
        if let Some(size) = self.packed.iter().filter(fits).min().copied() {
            self.packed.retain(|other| *other != size);
            self.packed.push(size);
            return Choice::Packed(size);
        }
        if self.refused.contains(&count) {
            return Choice::Unpacked;
        }
        if self.seen.contains(&count) {
            self.seen.retain(|other| *other != count);
            return Choice::Pack;
        }
        if self.seen.len() == SEEN_MAX {
            self.seen.remove(0);
        }
        self.seen.push(count);
        Choice::Unpacked
    }

    /// Takes a packed size in; the size that has to go for it.
    fn keep(&mut self, count: usize) -> Option<usize> {
        self.packed.push(count);
        (self.packed.len() > PACKED_MAX).then(|| self.packed.remove(0))
    }

    fn refuse(&mut self, count: usize) {
        if self.refused.len() == SEEN_MAX {
            self.refused.remove(0);
        }
        self.refused.push(count);
    }
}

/// A network with the weights packed for some batch sizes.
pub(super) struct Packs {
    network: Box<dyn Packable + Send>,
    sizes: Sizes,
    weights: Vec<(usize, Vec<Tensor>)>,
}

impl Packs {
    /// With weights packed for the size of `probe`, whose logits are `expected`.
    ///
    /// *Errors*: what libtorch says, or that the logits differ.
    pub(super) fn new(
        network: Box<dyn Packable + Send>,
        probe: &Tensor,
        expected: &Tensor,
    ) -> Result<Packs, TchError> {
        let mut packs = Packs {
            network,
            sizes: Sizes::default(),
            weights: Vec::new(),
        };
        match packs.try_packed(probe, expected)? {
            true => Ok(packs),
            false => Err(TchError::Shape("its logits differ".into())),
        }
    }

    /// Logits of a batch, and the way it took.
    ///
    /// *Shape*: `[count, channels, height, width]` f32 to `[count, classes]` f32.
    pub(super) fn forward(&mut self, batch: &Tensor) -> Result<(Tensor, Route), TchError> {
        let count = batch.size()[0] as usize;
        match self.sizes.choose(count) {
            Choice::Packed(size) => {
                let logits = self
                    .network
                    .forward(self.packed(size), &padded(batch, size)?)?;
                let logits = logits.f_narrow(0, 0, count as i64)?;
                Ok((logits, Route::Fused))
            }
            Choice::Pack => {
                let (logits, route) = self.network.unpacked(batch)?;
                // The answers are there already: what goes wrong here costs speed only.
                let reason = match self.try_packed(batch, &logits) {
                    Ok(true) => return Ok((logits, route)),
                    Ok(false) => "they give other answers".into(),
                    Err(error) => words(&error),
                };
                self.sizes.refuse(count);
                log::warn!("batches of {count} go without fused operators: {reason}");
                Ok((logits, route))
            }
            Choice::Unpacked => self.network.unpacked(batch),
        }
    }

    fn packed(&self, size: usize) -> &[Tensor] {
        let pack = self.weights.iter().find(|(packed, _)| *packed == size);
        &pack.expect("a packed size has weights").1
    }

    /// Packs for the size of `batch` and keeps that where it gives the logits that are
    /// `expected`. Whether it does.
    fn try_packed(&mut self, batch: &Tensor, expected: &Tensor) -> Result<bool, TchError> {
        let shape: [i64; 4] = batch.size().try_into().expect("a batch of images");
        let count = shape[0] as usize;
        let weights = self.network.pack(shape)?;
        if !agree(&self.network.forward(&weights, batch)?, expected) {
            return Ok(false);
        }
        if let Some(gone) = self.sizes.keep(count) {
            self.weights.retain(|(size, _)| *size != gone);
        }
        self.weights.push((count, weights));
        Ok(true)
    }
}

/// The batch with inputs of zeros after it, up to `size`.
fn padded(batch: &Tensor, size: usize) -> Result<Tensor, TchError> {
    let mut shape = batch.size();
    let missing = size as i64 - shape[0];
    if missing == 0 {
        return Ok(batch.shallow_clone());
    }
    shape[0] = missing;
    let zeros = Tensor::f_zeros(shape, (batch.kind(), batch.device()))?;
    Tensor::f_cat(&[batch, &zeros], 0)
}

/// Whether two ways gave the same logits, but for rounding.
pub(super) fn agree(found: &Tensor, expected: &Tensor) -> bool {
    if found.size() != expected.size() {
        return false;
    }
    let difference = (found - expected).abs().max().double_value(&[]);
    let largest = expected.abs().max().double_value(&[]);
    // Not true for NaN.
    difference <= TOLERANCE * largest + f64::from(f32::EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// A network that doubles, and cannot be packed for more than one input.
    struct Fragile;

    impl Packable for Fragile {
        fn pack(&self, shape: [i64; 4]) -> Result<Vec<Tensor>, TchError> {
            match shape[0] {
                1 => Ok(Vec::new()),
                _ => Err(TchError::Shape("no such packing".into())),
            }
        }

        fn forward(&self, _: &[Tensor], batch: &Tensor) -> Result<Tensor, TchError> {
            Ok(batch.flatten(1, -1) * 2.0)
        }

        fn unpacked(&self, batch: &Tensor) -> Result<(Tensor, Route), TchError> {
            Ok((self.forward(&[], batch)?, Route::Plain))
        }
    }

    #[test]
    fn a_size_that_cannot_be_packed_loses_no_answers() {
        let batch = |count: i64| Tensor::ones([count, 1, 2, 2], (Kind::Float, Device::Cpu));
        let expected = batch(1).flatten(1, -1) * 2.0;
        let mut packs = Packs::new(Box::new(Fragile), &batch(1), &expected).expect("packed");
        for _ in 0..4 {
            let (logits, route) = packs.forward(&batch(3)).expect("answers");
            assert_eq!((logits.size(), route), (vec![3, 4], Route::Plain));
        }
        assert_eq!(packs.sizes.refused, [3]);
        assert_eq!(packs.forward(&batch(1)).expect("answers").1, Route::Fused);
    }

    /// What batches of these sizes do, every packing being kept.
    fn choices(sizes: &mut Sizes, counts: &[usize]) -> Vec<Choice> {
        let choose = |count: &usize| {
            let choice = sizes.choose(*count);
            if choice == Choice::Pack {
                sizes.keep(*count);
            }
            choice
        };
        counts.iter().map(choose).collect()
    }

    #[test]
    fn a_size_is_packed_when_it_comes_again() {
        let mut sizes = Sizes::default();
        let all = choices(&mut sizes, &[4, 4, 4, 8, 4, 8]);
        let expected = [
            Choice::Unpacked,
            Choice::Pack,
            Choice::Packed(4),
            Choice::Unpacked,
            Choice::Packed(4),
            Choice::Pack,
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_little_smaller_batch_is_padded_and_a_much_smaller_one_is_not() {
        let mut sizes = Sizes::default();
        choices(&mut sizes, &[32, 32, 28, 28]);
        let padded = choices(&mut sizes, &[31, 27, 26, 25, 33]);
        let expected = [
            Choice::Packed(32),
            Choice::Packed(32),
            Choice::Packed(32),
            Choice::Unpacked,
            Choice::Unpacked,
        ];
        assert_eq!(padded, expected);
    }

    #[test]
    fn the_size_used_longest_ago_goes() {
        let mut sizes = Sizes::default();
        choices(&mut sizes, &[1, 1, 10, 10, 20, 20, 1]);
        assert_eq!(sizes.packed, [10, 20, 1]);
        assert_eq!(sizes.choose(40), Choice::Unpacked);
        assert_eq!(sizes.choose(40), Choice::Pack);
        assert_eq!(sizes.keep(40), Some(10));
        assert_eq!(sizes.choose(10), Choice::Unpacked);
    }

    #[test]
    fn a_refused_size_stays_unpacked_and_memory_stays_bounded() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.choose(5), Choice::Unpacked);
        assert_eq!(sizes.choose(5), Choice::Pack);
        sizes.refuse(5);
        assert_eq!(
            choices(&mut sizes, &[5, 5, 5]),
            [const { Choice::Unpacked }; 3]
        );
        for count in 100..1000 {
            sizes.choose(count);
            sizes.refuse(count);
        }
        assert!(sizes.seen.len() <= SEEN_MAX && sizes.refused.len() <= SEEN_MAX);
    }
}
