//! ResNet-50 as torchvision builds it: the stride of a bottleneck in its 3 x 3.
//!
//! Decides: the layers, their order and their names, so that torchvision's weights drop
//! in unchanged. This is the plain network, operator by operator, that any faster route
//! must agree with, and the one that is trained. Leaves to others: fused operators
//! (`fused`), recipes of training, weights.
//!
//! *Source*: He et al., "Deep Residual Learning for Image Recognition", 2015, table 1;
//! torchvision's `resnet50` (version 1.5 of the network).

use tch::{Device, Kind, Tensor};

use super::error::ModelError;
use super::folded::{Bottleneck, Convolution, Folded, channels_last};
use super::weights::Weights;

/// Blocks in each of the four stages.
const BLOCKS: [usize; 4] = [3, 4, 6, 3];
/// Channels within the blocks of the first stage; doubled in each later stage.
const WIDTH: i64 = 64;
/// Output channels of a block for each channel within it.
const EXPANSION: i64 = 4;
/// Added to the variance in batch norms.
const EPSILON: f64 = 1e-5;
/// Share of the stored statistics that a batch replaces in training.
const FOLLOWING: f64 = 0.1;

/// A convolution without bias and the batch norm after it.
struct Layer {
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    variance: Tensor,
    stride: i64,
    padding: i64,
}

/// Where a layer's tensors are and what they look like.
struct LayerShape {
    conv: String,
    norm: String,
    outputs: i64,
    inputs: i64,
    kernel: i64,
    stride: i64,
}

impl Layer {
    fn load(
        weights: &mut Weights,
        shape: &LayerShape,
        device: Device,
    ) -> Result<Layer, ModelError> {
        let LayerShape {
            conv,
            norm,
            outputs,
            inputs,
            kernel,
            stride,
        } = shape;
        let mut take = |name: String, shape: &[i64]| {
            weights
                .take(&name, shape)
                .map(|tensor| tensor.to_device(device))
        };
        Ok(Layer {
            weight: take(
                format!("{conv}.weight"),
                &[*outputs, *inputs, *kernel, *kernel],
            )?,
            scale: take(format!("{norm}.weight"), &[*outputs])?,
            shift: take(format!("{norm}.bias"), &[*outputs])?,
            mean: take(format!("{norm}.running_mean"), &[*outputs])?,
            variance: take(format!("{norm}.running_var"), &[*outputs])?,
            stride: *stride,
            padding: kernel / 2,
        })
    }

    /// `training`: norms by the batch's own statistics, which the stored ones follow.
    fn forward(&self, batch: &Tensor, training: bool) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        let weight = self.weight.to_kind(batch.kind());
        batch
            .conv2d(&weight, None::<&Tensor>, stride, padding, [1, 1], 1)
            .batch_norm(
                Some(&self.scale),
                Some(&self.shift),
                Some(&self.mean),
                Some(&self.variance),
                training,
                FOLLOWING,
                EPSILON,
                true,
            )
    }
}

impl Layer {
    fn on(&self, device: Device) -> Layer {
        Layer {
            weight: self.weight.to_device(device),
            scale: self.scale.to_device(device),
            shift: self.shift.to_device(device),
            mean: self.mean.to_device(device),
            variance: self.variance.to_device(device),
            ..*self
        }
    }

    /// The convolution that does the batch norm too.
    fn fold(&self) -> Convolution {
        let factor = &self.scale / (&self.variance + EPSILON).sqrt();
        Convolution {
            weight: channels_last(&(&self.weight * factor.view([-1, 1, 1, 1]))),
            bias: &self.shift - &self.mean * &factor,
            stride: self.stride,
            padding: self.padding,
        }
    }
}

/// A bottleneck: 1 x 1, 3 x 3, 1 x 1, and the shortcut around them.
struct Block {
    layers: [Layer; 3],
    shortcut: Option<Layer>,
}

impl Block {
    fn forward(&self, batch: &Tensor, training: bool) -> Tensor {
        let [reduce, spatial, expand] = &self.layers;
        let inner = reduce.forward(batch, training).relu();
        let inner = spatial.forward(&inner, training).relu();
        let inner = expand.forward(&inner, training);
        match &self.shortcut {
            Some(shortcut) => (inner + shortcut.forward(batch, training)).relu(),
            None => (inner + batch).relu(),
        }
    }
}

/// The network.
pub struct ResNet50 {
    stem: Layer,
    blocks: Vec<Block>,
    weight: Tensor,
    bias: Tensor,
}

/// A block's three layers and its shortcut.
struct BlockShape {
    layers: [LayerShape; 3],
    shortcut: Option<LayerShape>,
}

/// The layers before the last one: the stem, then the blocks.
fn layer_shapes() -> (LayerShape, Vec<BlockShape>) {
    let stem = LayerShape {
        conv: "conv1".into(),
        norm: "bn1".into(),
        outputs: WIDTH,
        inputs: 3,
        kernel: 7,
        stride: 2,
    };
    let mut blocks = Vec::new();
    let mut inputs = WIDTH;
    for (stage, count) in BLOCKS.into_iter().enumerate() {
        let width = WIDTH << stage;
        for block in 0..count {
            let prefix = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let layer = |number: usize, outputs, inputs, kernel, stride| LayerShape {
                conv: format!("{prefix}.conv{number}"),
                norm: format!("{prefix}.bn{number}"),
                outputs,
                inputs,
                kernel,
                stride,
            };
            let layers = [
                layer(1, width, inputs, 1, 1),
                layer(2, width, width, 3, stride),
                layer(3, width * EXPANSION, width, 1, 1),
            ];
            let shortcut = (block == 0).then(|| LayerShape {
                conv: format!("{prefix}.downsample.0"),
                norm: format!("{prefix}.downsample.1"),
                outputs: width * EXPANSION,
                inputs,
                kernel: 1,
                stride,
            });
            blocks.push(BlockShape { layers, shortcut });
            inputs = width * EXPANSION;
        }
    }
    (stem, blocks)
}

/// Inputs of the last layer.
const FEATURES: i64 = (WIDTH << 3) * EXPANSION;

impl ResNet50 {
    /// Takes the tensors from `weights`, which must hold nothing else but the counters
    /// that torchvision stores beside batch norms. The last layer may have any number of
    /// outputs.
    ///
    /// *Errors*: those of [`Weights::take`] and [`Weights::finish`].
    pub fn load(mut weights: Weights, device: Device) -> Result<ResNet50, ModelError> {
        let (stem, shapes) = layer_shapes();
        let stem = Layer::load(&mut weights, &stem, device)?;
        let mut blocks = Vec::with_capacity(shapes.len());
        for BlockShape { layers, shortcut } in &shapes {
            let mut load = |shape: &LayerShape| Layer::load(&mut weights, shape, device);
            let [reduce, spatial, expand] = layers;
            blocks.push(Block {
                layers: [load(reduce)?, load(spatial)?, load(expand)?],
                shortcut: shortcut.as_ref().map(load).transpose()?,
            });
        }
        let weight = weights
            .take("fc.weight", &[-1, FEATURES])?
            .to_device(device);
        let bias = weights
            .take("fc.bias", &[weight.size()[0]])?
            .to_device(device);
        weights.finish()?;
        Ok(ResNet50 {
            stem,
            blocks,
            weight,
            bias,
        })
    }

    /// The same network on another device.
    pub(super) fn on(&self, device: Device) -> ResNet50 {
        let layer = |layer: &Layer| layer.on(device);
        let blocks = self.blocks.iter().map(|block| Block {
            layers: block.layers.each_ref().map(layer),
            shortcut: block.shortcut.as_ref().map(layer),
        });
        ResNet50 {
            stem: self.stem.on(device),
            blocks: blocks.collect(),
            weight: self.weight.to_device(device),
            bias: self.bias.to_device(device),
        }
    }

    /// The same network with its batch norms folded into its convolutions.
    pub(super) fn fold(&self) -> Folded {
        let blocks = self.blocks.iter().map(|block| Bottleneck {
            layers: block.layers.each_ref().map(Layer::fold),
            shortcut: block.shortcut.as_ref().map(Layer::fold),
        });
        Folded {
            stem: self.stem.fold(),
            blocks: blocks.collect(),
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
        }
    }

    /// Logits of a batch.
    ///
    /// *Shape*: `[n, 3, h, w]` f32 to `[n, classes]` f32.
    pub fn forward(&self, batch: &Tensor) -> Tensor {
        self.run(batch, false)
    }

    /// Logits of a batch that is learnt from: norms by the batch's own statistics, which
    /// the stored ones follow.
    ///
    /// *Shape*: `[n, 3, h, w]`, f32 or bf16, to `[n, classes]` f32.
    pub fn forward_training(&self, batch: &Tensor) -> Tensor {
        self.run(batch, true)
    }

    fn run(&self, batch: &Tensor, training: bool) -> Tensor {
        let stem = self.stem.forward(batch, training).relu();
        let mut maps = stem.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        for block in &self.blocks {
            maps = block.forward(&maps, training);
        }
        maps.mean_dim([2i64, 3].as_slice(), false, Kind::Float)
            .linear(&self.weight, Some(&self.bias))
    }
}

/// Names and shapes of all tensors of a network with `classes` outputs.
pub fn tensor_shapes(classes: i64) -> Vec<(String, Vec<i64>)> {
    let mut shapes = Vec::new();
    let mut layer = |shape: &LayerShape| {
        let LayerShape { conv, norm, .. } = shape;
        let kernel = vec![shape.outputs, shape.inputs, shape.kernel, shape.kernel];
        shapes.push((format!("{conv}.weight"), kernel));
        for tensor in ["weight", "bias", "running_mean", "running_var"] {
            shapes.push((format!("{norm}.{tensor}"), vec![shape.outputs]));
        }
    };
    let (stem, blocks) = layer_shapes();
    layer(&stem);
    for BlockShape { layers, shortcut } in &blocks {
        layers.iter().chain(shortcut).for_each(&mut layer);
    }
    shapes.push(("fc.weight".into(), vec![classes, FEATURES]));
    shapes.push(("fc.bias".into(), vec![classes]));
    shapes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::models::noise::Noise;
    use crate::models::weights::to_safetensors;

    /// Random tensors of a ResNet-50 with `classes` outputs, drawn so that the numbers
    /// stay in range through all layers.
    pub(crate) fn random_tensors(classes: i64) -> Vec<(String, Tensor)> {
        let mut noise = Noise::new(5);
        let options = (Kind::Float, Device::Cpu);
        let mut draw = |name: &str, shape: &[i64]| match shape {
            [_, inputs, kernel, _] => {
                let fan_in = (inputs * kernel * kernel) as f64;
                noise.tensor(shape) * (2.0 / fan_in).sqrt()
            }
            [_, _] => noise.tensor(shape) * 0.02,
            _ if name.ends_with(".weight") => Tensor::full(shape, 0.5, options),
            _ if name.ends_with("running_var") => Tensor::ones(shape, options),
            _ => Tensor::zeros(shape, options),
        };
        let shapes = tensor_shapes(classes).into_iter();
        shapes
            .map(|(name, shape)| {
                let tensor = draw(&name, &shape);
                (name, tensor)
            })
            .collect()
    }

    #[test]
    fn it_has_the_tensors_and_parameters_of_torchvision() {
        let tensors = random_tensors(1000);
        let parameters: usize = tensors
            .iter()
            .filter(|(name, _)| !name.contains("running_"))
            .map(|(_, tensor)| tensor.numel())
            .sum();
        assert_eq!(parameters, 25_557_032);
        // 53 convolutions with 4 tensors of their batch norm each, and the last layer.
        assert_eq!(tensors.len(), 53 * 5 + 2);
        for name in [
            "layer1.0.downsample.1.running_var",
            "layer4.2.conv3.weight",
            "bn1.bias",
        ] {
            assert!(tensors.iter().any(|(known, _)| known == name), "{name}");
        }
    }

    #[test]
    fn it_loads_and_maps_images_to_logits() {
        let mut tensors = random_tensors(5);
        tensors.push((
            "bn1.num_batches_tracked".into(),
            Tensor::zeros([1], (Kind::Float, Device::Cpu)),
        ));
        let bytes = to_safetensors(&tensors, Kind::Float, None);
        let weights = Weights::from_safetensors("resnet50", &bytes).expect("valid file");
        let network = ResNet50::load(weights, Device::Cpu).expect("valid weights");
        let batch = Noise::new(6).tensor(&[2, 3, 64, 64]);
        let stem = network.stem.forward(&batch, false);
        assert_eq!(stem.size(), [2, 64, 32, 32]);
        let logits = tch::no_grad(|| network.forward(&batch));
        assert_eq!(logits.size(), [2, 5]);
        assert_eq!(logits.isfinite().all().int64_value(&[]), 1);
        // An image's logits do not depend on its neighbours in the batch.
        let alone = tch::no_grad(|| network.forward(&batch.narrow(0, 1, 1)));
        let difference = (alone - logits.narrow(0, 1, 1))
            .abs()
            .max()
            .double_value(&[]);
        assert!(difference < 1e-3, "{difference}");
    }

    #[test]
    fn a_missing_block_is_named() {
        let mut tensors = random_tensors(5);
        tensors.retain(|(name, _)| name != "layer3.5.bn2.running_mean");
        let bytes = to_safetensors(&tensors, Kind::Float, None);
        let weights = Weights::from_safetensors("resnet50", &bytes).expect("valid file");
        let Err(error) = ResNet50::load(weights, Device::Cpu) else {
            panic!("a tensor is missing")
        };
        assert!(
            error.to_string().contains("layer3.5.bn2.running_mean"),
            "{error}"
        );
    }
}
