//! Random tensors for tests, the same in every run. libtorch's own generator does not give
//! those: all threads of a process draw from it, tests run side by side, and which of them
//! draws first is chance, whatever the seed.

use tch::Tensor;

use crate::types::Rng;

/// A stream of numbers.
pub(crate) struct Noise(Rng);

impl Noise {
    /// The stream of `seed`.
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(Rng::new(seed))
    }

    /// Numbers of mean 0 and variance 1, evenly spread, f32.
    pub(crate) fn tensor(&mut self, shape: &[i64]) -> Tensor {
        let count: i64 = shape.iter().product();
        let mut numbers = Vec::with_capacity(count as usize);
        for _ in 0..count {
            // The 24 highest bits, as many as an f32 tells apart.
            let unit = (self.0.next_u64() >> 40) as f32 / (1 << 24) as f32;
            numbers.push((unit - 0.5) * 12_f32.sqrt());
        }
        Tensor::from_slice(&numbers).view(shape)
    }
}
