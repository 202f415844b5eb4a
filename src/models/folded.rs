//! ResNet-50 with each batch norm folded into the convolution before it: the same answers
//! from half the memory traffic, with ordinary operators only.
//!
//! Decides: the folding, and the layout (channels last). This is what runs on GPUs, on
//! batch sizes that nothing is packed for, and where the fused operators are missing.
//! Leaves to others: the fused operators (`fused`).
//!
//! *Source*: Jacob et al., "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference", 2017, section 3.2.

use tch::{Device, Kind, Tensor};

/// A convolution with the batch norm after it folded in.
pub(super) struct Convolution {
    /// `[outputs, inputs, kernel, kernel]`, channels last.
    pub(super) weight: Tensor,
    /// `[outputs]`.
    pub(super) bias: Tensor,
    pub(super) stride: i64,
    pub(super) padding: i64,
}

impl Convolution {
    fn forward(&self, batch: &Tensor) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        batch.conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1)
    }

    /// Shape of what comes out for inputs of that shape.
    pub(super) fn output_shape(&self, [count, _, height, width]: [i64; 4]) -> [i64; 4] {
        let [outputs, kernel] = [0, 2].map(|dimension| self.weight.size()[dimension]);
        let side = |pixels: i64| (pixels + 2 * self.padding - kernel) / self.stride + 1;
        [count, outputs, side(height), side(width)]
    }

    fn converted(&self, device: Device, kind: Kind) -> Convolution {
        Convolution {
            weight: channels_last(&self.weight.to_device(device).to_kind(kind)),
            bias: self.bias.to_device(device).to_kind(kind),
            ..*self
        }
    }
}

/// A bottleneck's three convolutions, and the one of its shortcut.
pub(super) struct Bottleneck {
    pub(super) layers: [Convolution; 3],
    pub(super) shortcut: Option<Convolution>,
}

impl Bottleneck {
    /// Number of its convolutions.
    pub(super) fn count(&self) -> usize {
        self.layers.len() + usize::from(self.shortcut.is_some())
    }
}

/// The folded network.
pub(super) struct Folded {
    pub(super) stem: Convolution,
    pub(super) blocks: Vec<Bottleneck>,
    /// Of the last layer: `[classes, features]`.
    pub(super) weight: Tensor,
    /// Of the last layer: `[classes]`.
    pub(super) bias: Tensor,
}

impl Folded {
    /// Logits of a batch.
    ///
    /// *Shape*: `[n, 3, h, w]` to `[n, classes]`, in the weights' kind of numbers.
    pub(super) fn forward(&self, batch: &Tensor) -> Tensor {
        self.observe(batch, &mut |_| ())
    }

    /// Logits of a batch; `see` gets each map that a quantised network has integers for:
    /// the batch, the stem, and for each block the first two layers, the shortcut where
    /// it has a layer, and the sum; each after its ReLU.
    pub(super) fn observe(&self, batch: &Tensor, see: &mut dyn FnMut(&Tensor)) -> Tensor {
        see(batch);
        let stem = self.stem.forward(&channels_last(batch)).relu_();
        see(&stem);
        let mut maps = stem.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        for Bottleneck { layers, shortcut } in &self.blocks {
            let [reduce, spatial, expand] = layers;
            let inner = reduce.forward(&maps).relu_();
            see(&inner);
            let inner = spatial.forward(&inner).relu_();
            see(&inner);
            let mut inner = expand.forward(&inner);
            let residual = shortcut.as_ref().map(|layer| layer.forward(&maps));
            residual.iter().for_each(&mut *see);
            maps = inner.g_add_(&residual.unwrap_or(maps)).relu_();
            see(&maps);
        }
        maps.mean_dim([2i64, 3].as_slice(), false, None)
            .linear(&self.weight, Some(&self.bias))
    }

    /// The same network on another device and in another kind of numbers.
    pub(super) fn converted(&self, device: Device, kind: Kind) -> Folded {
        let layer = |layer: &Convolution| layer.converted(device, kind);
        Folded {
            stem: layer(&self.stem),
            blocks: self
                .blocks
                .iter()
                .map(|block| Bottleneck {
                    layers: block.layers.each_ref().map(layer),
                    shortcut: block.shortcut.as_ref().map(layer),
                })
                .collect(),
            weight: self.weight.to_device(device).to_kind(kind),
            bias: self.bias.to_device(device).to_kind(kind),
        }
    }
}

/// The four-dimensional tensor with its channels innermost in memory.
pub(super) fn channels_last(tensor: &Tensor) -> Tensor {
    tensor
        .permute([0, 2, 3, 1])
        .contiguous()
        .permute([0, 3, 1, 2])
}
