//! ResNet-50 in 8-bit integers: weights of a sign and 7 bits with a scale for each output
//! channel, activations of 8 bits with a scale and a zero for each map.
//!
//! Decides: how ranges of activations become scales, how weights are rounded, and the
//! operators: oneDNN's quantised convolutions with bias, sum and ReLU in them, reached
//! through TorchScript. The last layer stays in floats. Leaves to others: which ranges the
//! maps have (`calibrate` measures them on training images, the manifest keeps them), and
//! whether the answers are good enough (`calibrate` counts before it writes a manifest).
//!
//! Weights are packed once: what oneDNN chooses depends on the maps' sides, not on the
//! batch.
//!
//! *Sources*: Jacob et al., "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference", 2017, sections 2 and 3; libtorch's
//! `aten/src/ATen/native/quantized/cpu/qconv.cpp` (the operators).

use std::fmt::Write as _;

use tch::{CModule, IValue, Kind, TchError, Tensor};

use super::folded::{Bottleneck, Convolution, Folded, channels_last};
use super::manifest::INT8_RANGES;
use super::script;

/// Largest number of an activation.
const STEPS: f64 = 255.0;
/// Largest number of a weight, in both directions.
const WEIGHT_STEPS: f64 = 127.0;
/// Smallest width of a range, so that a map that is always 0 has a scale.
const WIDTH_MIN: f64 = 1e-6;

/// Packs one weight. The scale and zero of the layer's inputs come with it.
const PREPACK: &str = "\
def prepack(self: __torch__.Network, w: Tensor, s: Tensor, xs: float, xz: int, stride: List[int], pad: List[int], shape: Optional[List[int]]) -> Tensor:
  return ops.onednn.qconv_prepack(w, s, xs, xz, stride, pad, [1, 1], 1, shape)
";

/// How the numbers of a map become integers: `value = scale * (integer - zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Quantised {
    scale: f64,
    zero: i64,
}

impl Quantised {
    /// For numbers from `low` to `high`; 0 is always within, and an integer.
    fn of([low, high]: [f32; 2]) -> Quantised {
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let scale = (high - low).max(WIDTH_MIN) / STEPS;
        Quantised {
            scale,
            zero: (-low / scale).round() as i64,
        }
    }
}

/// Whether this processor multiplies 8-bit integers without overflow: without such
/// instructions pairs of products are added up in 16 bits, which they exceed.
pub(super) fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512vnni")
        || std::arch::is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The network.
pub(super) struct QuantisedResNet50 {
    module: CModule,
    /// For each layer the packed weight, its scales, their zeros and its bias; then the
    /// last layer's weight and bias.
    weights: Vec<Tensor>,
    input: Quantised,
}

impl QuantisedResNet50 {
    /// The network `folded` for images of `height` x `width` pixels, with the ranges of
    /// its maps in the order of [`Folded::observe`].
    ///
    /// *Errors*: libtorch lacks the operators.
    /// *Panics* where there are not [`INT8_RANGES`] ranges.
    pub(super) fn new(
        folded: &Folded,
        ranges: &[[f32; 2]],
        (height, width): (i64, i64),
    ) -> Result<QuantisedResNet50, TchError> {
        assert_eq!(
            ranges.len(),
            INT8_RANGES,
            "a valid manifest has all of them"
        );
        let maps: Vec<Quantised> = ranges.iter().map(|range| Quantised::of(*range)).collect();
        let mut build = Build {
            source: format!(
                "{PREPACK}def forward(self: __torch__.Network, x: Tensor, w: List[Tensor]) -> Tensor:\n"
            ),
            layers: Vec::new(),
        };
        build.network(folded, &maps, (height, width));
        let module = script::module(&build.source)?;
        let mut weights = Vec::new();
        for layer in &build.layers {
            weights.extend(layer.pack(&module)?);
        }
        weights.push(folded.weight.shallow_clone());
        weights.push(folded.bias.shallow_clone());
        Ok(QuantisedResNet50 {
            module,
            weights,
            input: maps[0],
        })
    }

    /// Logits of a batch.
    ///
    /// *Shape*: `[n, 3, h, w]` f32 to `[n, classes]` f32.
    pub(super) fn forward(&self, batch: &Tensor) -> Result<Tensor, TchError> {
        let Quantised { scale, zero } = self.input;
        let integers = (batch / scale)
            .f_add_scalar_(zero as f64)?
            .f_round_()?
            .f_clamp_(0.0, STEPS)?
            .f_to_kind(Kind::Uint8)?;
        script::call(&self.module, &self.weights, &channels_last(&integers))
    }
}

/// A layer that waits to be packed.
struct Layer<'a> {
    convolution: &'a Convolution,
    input: Quantised,
    shape: [i64; 4],
}

impl Layer<'_> {
    /// Packed weight, scales, their zeros, bias.
    fn pack(&self, module: &CModule) -> Result<[Tensor; 4], TchError> {
        let Convolution {
            weight,
            bias,
            stride,
            padding,
        } = self.convolution;
        let largest = weight.f_abs()?.f_amax([1, 2, 3], false)?;
        let scales = largest.f_clamp_min(WIDTH_MIN)? / WEIGHT_STEPS;
        let integers = (weight / scales.f_view([-1, 1, 1, 1])?)
            .f_round_()?
            .f_clamp_(-WEIGHT_STEPS, WEIGHT_STEPS)?
            .f_to_kind(Kind::Int8)?
            .f_contiguous()?;
        let packed = module.method_is(
            "prepack",
            &[
                IValue::Tensor(integers),
                IValue::Tensor(scales.shallow_clone()),
                IValue::Double(self.input.scale),
                IValue::Int(self.input.zero),
                IValue::IntList(vec![*stride; 2]),
                IValue::IntList(vec![*padding; 2]),
                IValue::IntList(self.shape.to_vec()),
            ],
        )?;
        let IValue::Tensor(packed) = packed else {
            return Err(TchError::Kind(format!("prepack gave {packed:?}")));
        };
        let zeros = scales.f_zeros_like()?.f_to_kind(Kind::Int64)?;
        Ok([packed, scales, zeros, bias.shallow_clone()])
    }
}

/// The method `forward` while it is written, with the layers in its order.
struct Build<'a> {
    source: String,
    layers: Vec<Layer<'a>>,
}

/// A map within the method: its variable, its scale and its shape for one image.
#[derive(Clone, Copy)]
struct Map {
    name: &'static str,
    quantised: Quantised,
    shape: [i64; 4],
}

impl<'a> Build<'a> {
    fn network(&mut self, folded: &'a Folded, maps: &[Quantised], (height, width): (i64, i64)) {
        let mut maps = maps.iter().copied();
        let mut next = || maps.next().expect("as many as INT8_RANGES");
        let input = Map {
            name: "x",
            quantised: next(),
            shape: [1, 3, height, width],
        };
        let mut x = self.layer(&folded.stem, input, "x", next(), "relu");
        self.line("x = ops.quantized.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1], False)");
        for side in &mut x.shape[2..] {
            *side = (*side + 2 - 3) / 2 + 1;
        }
        for Bottleneck { layers, shortcut } in &folded.blocks {
            let [reduce, spatial, expand] = layers;
            let y = self.layer(reduce, x, "y", next(), "relu");
            let y = self.layer(spatial, y, "y", next(), "relu");
            let residual = match shortcut {
                Some(layer) => self.layer(layer, x, "x", next(), "none"),
                None => x,
            };
            x = self.sum(expand, y, residual, next());
        }
        let last = 4 * self.layers.len();
        let Quantised { scale, zero } = x.quantised;
        self.line("x = torch.mean(x, [2, 3], False, dtype=6)");
        self.line(&format!("x = torch.mul(torch.sub(x, {zero}), {scale:e})"));
        self.line(&format!(
            "return torch.linear(x, w[{last}], w[{}])",
            last + 1
        ));
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.source, "  {text}");
    }

    /// A convolution of `from` into the variable `to`.
    fn layer(
        &mut self,
        convolution: &'a Convolution,
        from: Map,
        to: &'static str,
        quantised: Quantised,
        then: &str,
    ) -> Map {
        let (inputs, geometry, shape) = self.arguments(convolution, from);
        let bias = 4 * self.layers.len() - 1;
        let Quantised { scale, zero } = quantised;
        self.line(&format!(
            "{to} = ops.onednn.qconv2d_pointwise({inputs}, w[{bias}], {geometry}, {scale:e}, {zero}, 0, \"{then}\", [], \"\")"
        ));
        Map {
            name: to,
            quantised,
            shape,
        }
    }

    /// A convolution of `from`, to which `residual` is added, into the variable of that.
    fn sum(
        &mut self,
        convolution: &'a Convolution,
        from: Map,
        residual: Map,
        quantised: Quantised,
    ) -> Map {
        let (inputs, geometry, shape) = self.arguments(convolution, from);
        let bias = 4 * self.layers.len() - 1;
        let Quantised { scale, zero } = quantised;
        let name = residual.name;
        let added = residual.quantised;
        self.line(&format!(
            "{name} = ops.onednn.qconv2d_pointwise({inputs}, {name}, w[{bias}], {geometry}, {scale:e}, {zero}, 0, {:e}, {}, \"sum\", 1., \"relu\", [], \"\")",
            added.scale, added.zero
        ));
        Map {
            name,
            quantised,
            shape,
        }
    }

    /// What every convolution is given: its inputs and weights; its geometry; and the
    /// shape of what comes out of it. Notes the layer.
    fn arguments(&mut self, convolution: &'a Convolution, from: Map) -> (String, String, [i64; 4]) {
        let first = 4 * self.layers.len();
        let Quantised { scale, zero } = from.quantised;
        let inputs = format!(
            "{}, {scale:e}, {zero}, w[{first}], w[{}], w[{}]",
            from.name,
            first + 1,
            first + 2
        );
        let Convolution {
            stride, padding, ..
        } = convolution;
        let geometry = format!("[{stride}, {stride}], [{padding}, {padding}], [1, 1], 1");
        self.layers.push(Layer {
            convolution,
            input: from.quantised,
            shape: from.shape,
        });
        (inputs, geometry, convolution.output_shape(from.shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::noise::Noise;
    use crate::models::resnet50::{ResNet50, tests::random_tensors};
    use crate::models::weights::Weights;
    use tch::Device;

    /// A random network and the ranges of its maps on `batch`.
    fn network(batch: &Tensor) -> (Folded, Vec<[f32; 2]>) {
        let weights = Weights::from_tensors("net", random_tensors(5));
        let folded = ResNet50::load(weights, Device::Cpu).expect("valid").fold();
        let mut ranges = Vec::new();
        let mut see = |map: &Tensor| {
            ranges.push([map.min(), map.max()].map(|end| end.double_value(&[]) as f32));
        };
        let _ = folded.observe(batch, &mut see);
        (folded, ranges)
    }

    #[test]
    fn integers_give_nearly_the_logits_of_floats() {
        if !is_supported() {
            println!("skipped: this processor has no instructions for 8-bit integers");
            return;
        }
        tch::no_grad(|| {
            let batch = Noise::new(6).tensor(&[6, 3, 96, 64]);
            let (folded, ranges) = network(&batch);
            let quantised = QuantisedResNet50::new(&folded, &ranges, (96, 64)).expect("built");
            let expected = folded.forward(&batch);
            let found = quantised.forward(&batch).expect("logits");
            assert_eq!(found.size(), [6, 5]);
            let error = (&found - &expected).norm().double_value(&[]);
            let size = expected.norm().double_value(&[]);
            assert!(error < 0.05 * size, "{error} of {size}");
            // An image alone is what it is among others.
            let alone = quantised.forward(&batch.narrow(0, 2, 1)).expect("logits");
            let difference = (alone - found.narrow(0, 2, 1))
                .abs()
                .max()
                .double_value(&[]);
            assert!(difference < 1e-4 * size, "{difference}");
            // Each map with the range of its neighbour is seen here.
            let mut wrong = ranges.clone();
            wrong[1..].rotate_left(1);
            let quantised = QuantisedResNet50::new(&folded, &wrong, (96, 64)).expect("built");
            let found = quantised.forward(&batch).expect("logits");
            let error = (&found - &expected).norm().double_value(&[]);
            assert!(error > 0.1 * size, "{error} of {size}");
        });
    }

    #[test]
    fn zero_is_always_an_integer_and_the_ends_are_reached() {
        for range in [
            [0.0, 5.1],
            [-2.0, 2.6],
            [-3.0, -1.0],
            [1.0, 2.0],
            [0.0, 0.0],
        ] {
            let Quantised { scale, zero } = Quantised::of(range);
            assert!(scale > 0.0 && (0..=255).contains(&zero), "{range:?}");
            for end in range {
                let integer = (f64::from(end) / scale).round() + zero as f64;
                assert!((0.0..=255.0).contains(&integer), "{range:?}");
                let back = scale * (integer - zero as f64);
                assert!(
                    (back - f64::from(end)).abs() <= scale / 2.0 + 1e-9,
                    "{range:?}"
                );
            }
        }
    }
}
