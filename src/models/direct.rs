//! LeNet-5 in one piece, without libtorch's operators: many times as fast on a network as
//! small as this one, where what is around an operator costs more than its arithmetic.
//!
//! Decides: the order of the arithmetic, so that the sums stay in registers. The lanes of
//! a vector are columns of the image in the first convolution, and outputs in all other
//! layers; maxima and ReLUs are taken before anything is stored. An input that is not
//! finite gives logits that are not numbers. Leaves to others: whether the answers are
//! right (`engine` compares them with the plain network's before it takes this way).

use std::array;

use fearless_simd::{Level, Simd, dispatch, prelude::*};
use tch::{TchError, Tensor};

use super::lenet::{CLASSES, LeNet};

/// Pixels of an image's side, and of the whole image.
const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
/// Side of the convolutions' kernels, and their taps.
const KERNEL: usize = 5;
const TAPS: usize = KERNEL * KERNEL;
/// Zeros around the image.
const PADDING: usize = 2;
/// Maps of the two convolutions, and sides of their maps after the maxima.
const MAPS1: usize = 6;
const MAPS2: usize = 16;
const SIDE1: usize = 14;
const SIDE2: usize = 5;
/// Numbers that go into the linear layers.
const FEATURES: usize = MAPS2 * SIDE2 * SIDE2;
const OUTPUTS: usize = CLASSES as usize;
/// Lanes of the widest vector.
const LANES: usize = 16;
/// Room for every other column of a padded row, and for a vector that starts two later.
const HALF_ROW: usize = 24;
/// Outputs of a linear layer in memory: a multiple of the outputs that are summed at once.
const WIDTH: usize = 128;
/// The padded image; each row as its even columns and its odd ones, so that the outputs at
/// even and at odd columns are vectors of their own and their maximum needs no shuffle.
type Rows = [[[f32; HALF_ROW]; 2]; SIDE + 2 * PADDING];
/// The first convolution's maps after the maxima; the last two columns mean nothing.
type Maps = [[[f32; LANES]; SIDE1]; MAPS1];
/// What goes into a linear layer or comes out of it.
type Features = [f32; FEATURES];

/// A linear layer, with its weights transposed.
struct Linear {
    /// A row for each input; zeros beyond `outputs`.
    weight: Vec<[f32; WIDTH]>,
    bias: [f32; WIDTH],
    outputs: usize,
}

impl Linear {
    /// From weights of shape `[outputs, inputs]`; this layer's input k is theirs at
    /// `place(k)`.
    fn new(weight: &[f32], bias: &[f32], place: impl Fn(usize) -> usize) -> Linear {
        let outputs = bias.len();
        let inputs = weight.len() / outputs;
        let row = |input: usize| {
            array::from_fn(|output| match output < outputs {
                true => weight[output * inputs + place(input)],
                false => 0.0,
            })
        };
        Linear {
            weight: (0..inputs).map(row).collect(),
            bias: array::from_fn(|output| bias.get(output).copied().unwrap_or(0.0)),
            outputs,
        }
    }
}

/// The network, its weights laid out for the arithmetic.
pub(super) struct DirectLeNet {
    level: Level,
    /// For each tap, the weights of all maps.
    weight1: [[f32; MAPS1]; TAPS],
    bias1: [f32; MAPS1],
    /// For each tap of each map of the first convolution, the weights of all maps.
    weight2: [[f32; MAPS2]; MAPS1 * TAPS],
    bias2: [f32; MAPS2],
    linear: [Linear; 3],
}

impl DirectLeNet {
    /// For the widest vectors that this processor has.
    ///
    /// *Errors*: what libtorch says when it hands the numbers over.
    pub(super) fn new(network: &LeNet) -> Result<DirectLeNet, TchError> {
        DirectLeNet::with(network, Level::new())
    }

    fn with(network: &LeNet, level: Level) -> Result<DirectLeNet, TchError> {
        let numbers = |tensor: &Tensor| Vec::<f32>::try_from(tensor.f_reshape(-1)?);
        let mut all = Vec::new();
        for tensor in network.tensors() {
            all.push(numbers(tensor)?);
        }
        let [w1, b1, w2, b2, w3, b3, w4, b4, w5, b5] = all
            .try_into()
            .map_err(|_| TchError::Shape("LeNet has ten tensors".into()))?;
        // The maps' numbers stand place by place here, and map by map in the weights.
        let place = |input: usize| (input % MAPS2) * SIDE2 * SIDE2 + input / MAPS2;
        Ok(DirectLeNet {
            level,
            weight1: array::from_fn(|tap| array::from_fn(|map| w1[map * TAPS + tap])),
            bias1: array::from_fn(|map| b1[map]),
            weight2: array::from_fn(|tap| array::from_fn(|map| w2[map * MAPS1 * TAPS + tap])),
            bias2: array::from_fn(|map| b2[map]),
            linear: [
                Linear::new(&w3, &b3, place),
                Linear::new(&w4, &b4, |input| input),
                Linear::new(&w5, &b5, |input| input),
            ],
        })
    }

    /// Logits of images of 28 x 28 that stand one after the other.
    ///
    /// *Shape*: `[n, 1, 28, 28]` to `[n, 10]`.
    pub(super) fn forward(&self, images: &[f32]) -> Vec<f32> {
        let mut logits = vec![0.0; images.len() / PIXELS * OUTPUTS];
        dispatch!(self.level, simd => Kernel { simd, network: self }.run(images, &mut logits));
        logits
    }
}

/// The arithmetic on one width of vectors. All of it is inlined into one function for
/// each width: only there may the compiler use that width's instructions. So it has loops
/// where elsewhere there were closures, which are not always inlined.
#[derive(Clone, Copy)]
struct Kernel<'a, S: Simd> {
    simd: S,
    network: &'a DirectLeNet,
}

impl<S: Simd> Kernel<'_, S> {
    #[inline(always)]
    fn splat(self, number: f32) -> S::f32s {
        S::f32s::splat(self.simd, number)
    }

    /// The vector that `numbers` start with.
    #[inline(always)]
    fn load(self, numbers: &[f32]) -> S::f32s {
        S::f32s::from_slice(self.simd, &numbers[..S::f32s::LEN])
    }

    /// The vectors that `numbers` start with.
    #[inline(always)]
    fn vectors<const VECTORS: usize>(self, numbers: &[f32]) -> [S::f32s; VECTORS] {
        let mut vectors = [self.splat(0.0); VECTORS];
        for (index, vector) in vectors.iter_mut().enumerate() {
            *vector = self.load(&numbers[index * S::f32s::LEN..]);
        }
        vectors
    }

    /// All images; as many sums at once as the registers hold (32 of 16 lanes, or 16).
    #[inline(always)]
    fn run(self, images: &[f32], logits: &mut [f32]) {
        match S::f32s::LEN {
            LANES => self.blocks::<8, 6, 10>(images, logits),
            _ => self.blocks::<4, 2, 2>(images, logits),
        }
    }

    /// All images, `IMAGES` at a time through the linear layers, and single ones at the
    /// end. `MAPS` and `COLUMNS`: see the convolutions.
    #[inline(always)]
    fn blocks<const IMAGES: usize, const MAPS: usize, const COLUMNS: usize>(
        self,
        images: &[f32],
        logits: &mut [f32],
    ) {
        let blocks = images.len() / PIXELS / IMAGES * IMAGES;
        let (images, last_images) = images.split_at(blocks * PIXELS);
        let (logits, last_logits) = logits.split_at_mut(blocks * OUTPUTS);
        let blocks = images.chunks_exact(IMAGES * PIXELS);
        for (images, logits) in blocks.zip(logits.chunks_exact_mut(IMAGES * OUTPUTS)) {
            self.block::<IMAGES, 2, MAPS, COLUMNS>(images, logits);
        }
        let singles = last_images.chunks_exact(PIXELS);
        for (image, logits) in singles.zip(last_logits.chunks_exact_mut(OUTPUTS)) {
            self.block::<1, 8, MAPS, COLUMNS>(image, logits);
        }
    }

    #[inline(always)]
    fn block<const IMAGES: usize, const VECTORS: usize, const MAPS: usize, const COLUMNS: usize>(
        self,
        images: &[f32],
        logits: &mut [f32],
    ) {
        let mut rows: Rows = [[[0.0; HALF_ROW]; 2]; SIDE + 2 * PADDING];
        let mut maps: Maps = [[[0.0; LANES]; SIDE1]; MAPS1];
        let mut features = [[0.0; FEATURES]; IMAGES];
        let mut hidden = [[0.0; FEATURES]; IMAGES];
        for (image, features) in images.chunks_exact(PIXELS).zip(&mut features) {
            split(image, &mut rows);
            self.convolution1::<MAPS>(&rows, &mut maps);
            self.convolution2::<COLUMNS>(&maps, features);
        }
        let [linear1, linear2, linear3] = &self.network.linear;
        let nothing = f32::NEG_INFINITY;
        self.linear::<IMAGES, VECTORS>(linear1, 0.0, &features, &mut hidden);
        self.linear::<IMAGES, VECTORS>(linear2, 0.0, &hidden, &mut features);
        self.linear::<IMAGES, VECTORS>(linear3, nothing, &features, &mut hidden);
        let answers = logits.chunks_exact_mut(OUTPUTS).zip(&hidden);
        for ((logits, hidden), image) in answers.zip(images.chunks_exact(PIXELS)) {
            logits.copy_from_slice(&hidden[..OUTPUTS]);
            // Maxima may lose what is not a number.
            if !is_finite(image) {
                logits.fill(f32::NAN);
            }
        }
    }

    /// The first convolution, its maxima and ReLU; `MAPS` maps at a time, of which 2 x 2
    /// outputs are summed at once: those that share a maximum.
    #[inline(always)]
    fn convolution1<const MAPS: usize>(self, rows: &Rows, maps: &mut Maps) {
        for first in (0..MAPS1).step_by(MAPS) {
            for y in 0..SIDE1 {
                for x in (0..SIDE1).step_by(S::f32s::LEN) {
                    let sums = self.sums1::<MAPS>(&rows[2 * y..][..KERNEL + 1], x, first);
                    for (map, [a, b, c, d]) in maps[first..].iter_mut().zip(sums) {
                        let largest = a.max(b).max(c.max(d)).max(self.splat(0.0));
                        largest.store_slice(&mut map[y][x..][..S::f32s::LEN]);
                    }
                }
            }
        }
    }

    /// The sums of two rows of outputs, at even and at odd columns, from the pair of
    /// columns x on, in `MAPS` maps from `first` on.
    #[inline(always)]
    fn sums1<const MAPS: usize>(
        self,
        rows: &[[[f32; HALF_ROW]; 2]],
        x: usize,
        first: usize,
    ) -> [[S::f32s; 4]; MAPS] {
        let bias = &self.network.bias1[first..][..MAPS];
        let mut sums = [[self.splat(0.0); 4]; MAPS];
        for map in 0..MAPS {
            sums[map] = [self.splat(bias[map]); 4];
        }
        for dy in 0..KERNEL {
            let [upper, lower] = [&rows[dy], &rows[dy + 1]];
            for dx in 0..KERNEL {
                let pixels = [
                    self.columns(upper, x, dx),
                    self.columns(upper, x, dx + 1),
                    self.columns(lower, x, dx),
                    self.columns(lower, x, dx + 1),
                ];
                let weights = &self.network.weight1[dy * KERNEL + dx][first..][..MAPS];
                for map in 0..MAPS {
                    let weight = self.splat(weights[map]);
                    for (sum, pixels) in sums[map].iter_mut().zip(pixels) {
                        *sum = weight.mul_add(pixels, *sum);
                    }
                }
            }
        }
        sums
    }

    /// Every other pixel of a row: those `dx` after the first of each pair from x on.
    #[inline(always)]
    fn columns(self, row: &[[f32; HALF_ROW]; 2], x: usize, dx: usize) -> S::f32s {
        self.load(&row[dx % 2][x + dx / 2..])
    }

    /// The second convolution, its maxima and ReLU; two rows of `COLUMNS` outputs at a
    /// time, in as many maps as a vector has lanes.
    #[inline(always)]
    fn convolution2<const COLUMNS: usize>(self, maps: &Maps, features: &mut Features) {
        for first in (0..MAPS2).step_by(S::f32s::LEN) {
            for y in 0..SIDE2 {
                for x in (0..2 * SIDE2).step_by(COLUMNS) {
                    let [upper, lower] = self.sums2::<COLUMNS>(maps, 2 * y, x, first);
                    for pair in 0..COLUMNS / 2 {
                        let largest = upper[2 * pair].max(upper[2 * pair + 1]);
                        let largest = largest.max(lower[2 * pair].max(lower[2 * pair + 1]));
                        let largest = largest.max(self.splat(0.0));
                        let place = (y * SIDE2 + x / 2 + pair) * MAPS2 + first;
                        largest.store_slice(&mut features[place..][..S::f32s::LEN]);
                    }
                }
            }
        }
    }

    /// The sums at rows y and y + 1, columns from x on, in the maps from `first` on.
    #[inline(always)]
    fn sums2<const COLUMNS: usize>(
        self,
        maps: &Maps,
        y: usize,
        x: usize,
        first: usize,
    ) -> [[S::f32s; COLUMNS]; 2] {
        let bias = self.load(&self.network.bias2[first..]);
        let mut sums = [[bias; COLUMNS]; 2];
        for (map, weights) in maps.iter().zip(self.network.weight2.chunks_exact(TAPS)) {
            for dy in 0..KERNEL {
                let rows = [&map[y + dy], &map[y + dy + 1]];
                for dx in 0..KERNEL {
                    let weight = self.load(&weights[dy * KERNEL + dx][first..]);
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        let pixels = &row[x + dx..][..COLUMNS];
                        for column in 0..COLUMNS {
                            let pixel = self.splat(pixels[column]);
                            sums[column] = weight.mul_add(pixel, sums[column]);
                        }
                    }
                }
            }
        }
        sums
    }

    /// A linear layer on `IMAGES` images at once, `VECTORS` vectors of outputs at a time;
    /// outputs below `least` become that.
    #[inline(always)]
    fn linear<const IMAGES: usize, const VECTORS: usize>(
        self,
        layer: &Linear,
        least: f32,
        inputs: &[Features; IMAGES],
        outputs: &mut [Features; IMAGES],
    ) {
        let lanes = S::f32s::LEN;
        let least = self.splat(least);
        for first in (0..layer.outputs).step_by(VECTORS * lanes) {
            let mut sums = [self.vectors::<VECTORS>(&layer.bias[first..]); IMAGES];
            for (input, row) in layer.weight.iter().enumerate() {
                let weights = self.vectors::<VECTORS>(&row[first..]);
                for (sums, inputs) in sums.iter_mut().zip(inputs) {
                    let number = self.splat(inputs[input]);
                    for v in 0..VECTORS {
                        sums[v] = weights[v].mul_add(number, sums[v]);
                    }
                }
            }
            for (sums, outputs) in sums.iter().zip(outputs.iter_mut()) {
                for (v, sum) in sums.iter().enumerate() {
                    let place = &mut outputs[first + v * lanes..][..lanes];
                    sum.max(least).store_slice(place);
                }
            }
        }
    }
}

/// Puts an image into the middle of `rows`, whose border stays as it is.
#[inline(always)]
fn split(image: &[f32], rows: &mut Rows) {
    for (row, pixels) in rows[PADDING..].iter_mut().zip(image.chunks_exact(SIDE)) {
        let [even, odd] = row;
        for (column, pair) in pixels.chunks_exact(2).enumerate() {
            even[PADDING / 2 + column] = pair[0];
            odd[PADDING / 2 + column] = pair[1];
        }
    }
}

/// Whether every number is finite.
#[inline(always)]
fn is_finite(numbers: &[f32]) -> bool {
    // Without an early end, so that the loop becomes vectors.
    numbers
        .iter()
        .fold(true, |finite, number| finite & number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::lenet::TENSORS;
    use crate::models::noise::Noise;

    fn network() -> LeNet {
        let mut noise = Noise::new(7);
        let tensors = TENSORS.map(|(_, shape)| noise.tensor(shape) * 0.2);
        LeNet::of(tensors)
    }

    /// Every width of vectors that this processor has.
    fn levels() -> Vec<Level> {
        let level = Level::new();
        let mut levels = vec![level];
        #[cfg(target_arch = "x86_64")]
        levels.extend(
            [
                level.as_avx2().map(Level::Avx2),
                level.as_sse4_2().map(Level::Sse4_2),
                level.as_sse2().map(Level::Sse2),
            ]
            .into_iter()
            .flatten(),
        );
        levels
    }

    #[test]
    fn every_width_of_vectors_gives_the_plain_networks_answers() {
        let plain = network();
        let mut noise = Noise::new(8);
        for level in levels() {
            let direct = DirectLeNet::with(&plain, level).expect("built");
            for count in [1, 3, 8, 77] {
                let images = noise.tensor(&[count, 1, 28, 28]);
                let expected = plain.forward(&images);
                let numbers = Vec::<f32>::try_from(images.reshape(-1)).expect("numbers");
                let largest = expected.abs().max().double_value(&[]);
                let found = Tensor::from_slice(&direct.forward(&numbers));
                let found = found.view([count, CLASSES]);
                let difference = (found - &expected).abs().max().double_value(&[]);
                assert!(
                    difference < 1e-5 * largest,
                    "{level:?}, {count} images: {difference:.1e}"
                );
            }
        }
    }

    #[test]
    fn an_image_that_is_not_finite_spoils_its_own_answer_only() {
        let direct = DirectLeNet::new(&network()).expect("built");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut images = vec![0.5; 11 * PIXELS];
            images[4 * PIXELS + 400] = bad;
            images[9 * PIXELS + 783] = bad;
            let logits = direct.forward(&images);
            for (image, logits) in logits.chunks(OUTPUTS).enumerate() {
                let spoilt = [4, 9].contains(&image);
                assert!(
                    logits.iter().all(|logit| logit.is_finite() != spoilt),
                    "{bad}: image {image}: {logits:?}"
                );
            }
        }
    }

    #[test]
    fn no_image_gives_no_logit() {
        let direct = DirectLeNet::new(&network()).expect("built");
        assert!(direct.forward(&[]).is_empty());
    }
}
