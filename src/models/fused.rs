//! The fast way through ResNet-50 on the CPU: oneDNN's operators with what comes after a
//! convolution fused into it, on weights packed for one batch size.
//!
//! Decides: which operators. Leaves to others: whether the answers are right (`engine`
//! compares them with the plain network's before it takes this way), and which batch
//! sizes are packed (`packs`).
//!
//! The fused operators are private to libtorch and reached through TorchScript: they may
//! be missing or change in another version, which is an error here and no more than a
//! slower node in the end.
//!
//! *Source*: libtorch's `aten/src/ATen/native/mkldnn/Conv.cpp` and `MKLDNNConversions.cpp`.

use std::fmt::Write as _;

use tch::{CModule, TchError, Tensor};

use super::folded::{Bottleneck, Convolution, Folded, channels_last};
use super::route::Route;
use super::script;

/// A network whose weights can be packed for a batch size.
pub(super) trait Packable {
    /// The weights packed for batches of that shape, in the order in which
    /// [`Packable::forward`] takes them.
    fn pack(&self, shape: [i64; 4]) -> Result<Vec<Tensor>, TchError>;

    /// Logits of a batch of the shape that `weights` were packed for.
    ///
    /// *Shape*: `[count, channels, height, width]` f32 to `[count, classes]` f32.
    fn forward(&self, weights: &[Tensor], batch: &Tensor) -> Result<Tensor, TchError>;

    /// Logits of a batch of any size, by ordinary operators, and which way that is.
    fn unpacked(&self, batch: &Tensor) -> Result<(Tensor, Route), TchError>;
}

/// The weight of a convolution as oneDNN wants it for inputs of that shape.
fn pack(weight: &Tensor, padding: i64, stride: i64, shape: [i64; 4]) -> Result<Tensor, TchError> {
    let (padding, stride) = ([padding; 2], [stride; 2]);
    weight
        .f_contiguous()?
        .f_to_mkldnn(weight.kind())?
        .f_mkldnn_reorder_conv2d_weight(padding, stride, [1, 1], 1, shape.as_slice())
}

/// ResNet-50: convolution, bias, sum and ReLU in one operator each, all of it in one
/// TorchScript method.
pub(super) struct FusedResNet50 {
    folded: Folded,
    module: CModule,
}

impl FusedResNet50 {
    /// *Errors*: libtorch lacks the operators.
    pub(super) fn new(folded: Folded) -> Result<FusedResNet50, TchError> {
        let module = script::module(&resnet50_source(&folded))?;
        Ok(FusedResNet50 { folded, module })
    }
}

impl Packable for FusedResNet50 {
    fn pack(&self, shape: [i64; 4]) -> Result<Vec<Tensor>, TchError> {
        let mut weights = Vec::new();
        // Packs a layer for maps of that shape; the shape of what comes out of it.
        let mut layer = |layer: &Convolution, shape: [i64; 4]| -> Result<[i64; 4], TchError> {
            let Convolution {
                weight,
                bias,
                stride,
                padding,
            } = layer;
            weights.push(pack(weight, *padding, *stride, shape)?);
            weights.push(bias.shallow_clone());
            Ok(layer.output_shape(shape))
        };
        let [count, channels, height, width] = layer(&self.folded.stem, shape)?;
        let pooled = |pixels: i64| (pixels + 2 - 3) / 2 + 1;
        let mut maps = [count, channels, pooled(height), pooled(width)];
        for Bottleneck { layers, shortcut } in &self.folded.blocks {
            let mut inner = maps;
            for part in layers {
                inner = layer(part, inner)?;
            }
            if let Some(part) = shortcut {
                layer(part, maps)?;
            }
            maps = inner;
        }
        weights.push(self.folded.weight.shallow_clone());
        weights.push(self.folded.bias.shallow_clone());
        Ok(weights)
    }

    fn forward(&self, weights: &[Tensor], batch: &Tensor) -> Result<Tensor, TchError> {
        script::call(&self.module, weights, &channels_last(batch))
    }

    fn unpacked(&self, batch: &Tensor) -> Result<(Tensor, Route), TchError> {
        Ok((self.folded.forward(batch), Route::Folded))
    }
}

/// The method `forward` of ResNet-50. Weights stand in the order of
/// [`FusedResNet50::pack`]: for each layer its weight and its bias.
fn resnet50_source(folded: &Folded) -> String {
    let mut source = String::from(
        "def forward(self: __torch__.Network, x: Tensor, w: List[Tensor]) -> Tensor:\n",
    );
    let mut number = 0;
    let mut arguments = |layer: &Convolution| {
        let Convolution {
            stride, padding, ..
        } = layer;
        let weights = format!("w[{number}], w[{}]", number + 1);
        number += 2;
        format!("{weights}, [{padding}, {padding}], [{stride}, {stride}], [1, 1], 1")
    };
    let mut line = |text: String| {
        let _ = writeln!(source, "  {text}");
    };
    let simple = |to: &str, from: &str, arguments: String, then: &str| {
        format!(
            "{to} = ops.mkldnn._convolution_pointwise({from}, {arguments}, \"{then}\", [], \"\")"
        )
    };
    line(simple("x", "x", arguments(&folded.stem), "relu"));
    line("x = torch.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1], False)".into());
    for Bottleneck { layers, shortcut } in &folded.blocks {
        let [reduce, spatial, expand] = layers;
        line(simple("y", "x", arguments(reduce), "relu"));
        line(simple("y", "y", arguments(spatial), "relu"));
        let expand = arguments(expand);
        if let Some(layer) = shortcut {
            line(simple("x", "x", arguments(layer), "none"));
        }
        // Writes the sum into x.
        line(format!(
            "x = ops.mkldnn._convolution_pointwise_(x, y, {expand}, \"add\", 1., \"relu\", [], \"\")"
        ));
    }
    let last = 2 * (1 + folded.blocks.iter().map(Bottleneck::count).sum::<usize>());
    line("x = torch.mean(x, [2, 3])".into());
    line(format!(
        "return torch.linear(x, w[{last}], w[{}])",
        last + 1
    ));
    source
}
