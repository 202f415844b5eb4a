//! LeNet-5: two convolutions and three linear layers for digits of 28 x 28.
//!
//! Decides: the layers and their names. Differs from the paper as is usual today: ReLU
//! instead of tanh, maximum instead of trainable sub-sampling, full connections in the
//! second convolution, a linear output layer. Leaves to others: where the weights come
//! from (`weights`, `training`).
//!
//! *Source*: LeCun et al., "Gradient-Based Learning Applied to Document Recognition",
//! 1998, section II.B.

use tch::{Device, Tensor};

use super::error::ModelError;
use super::weights::Weights;

/// Output classes.
pub const CLASSES: i64 = 10;

/// Every tensor's name and shape.
pub const TENSORS: [(&str, &[i64]); 10] = [
    ("conv1.weight", &[6, 1, 5, 5]),
    ("conv1.bias", &[6]),
    ("conv2.weight", &[16, 6, 5, 5]),
    ("conv2.bias", &[16]),
    ("fc1.weight", &[120, 400]),
    ("fc1.bias", &[120]),
    ("fc2.weight", &[84, 120]),
    ("fc2.bias", &[84]),
    ("fc3.weight", &[CLASSES, 84]),
    ("fc3.bias", &[CLASSES]),
];

/// The network; its tensors stand in the order of [`TENSORS`].
pub struct LeNet {
    tensors: [Tensor; 10],
}

impl LeNet {
    /// Takes the tensors from `weights`, which must hold nothing else.
    ///
    /// *Errors*: those of [`Weights::take`] and [`Weights::finish`].
    pub fn load(mut weights: Weights, device: Device) -> Result<LeNet, ModelError> {
        let mut tensors = Vec::with_capacity(TENSORS.len());
        for (name, shape) in TENSORS {
            tensors.push(weights.take(name, shape)?.to_device(device));
        }
        weights.finish()?;
        Ok(LeNet::of(tensors.try_into().expect("as many as TENSORS")))
    }

    /// The network with these tensors, in the order and shapes of [`TENSORS`].
    pub fn of(tensors: [Tensor; 10]) -> LeNet {
        LeNet { tensors }
    }

    /// The tensors, in the order of [`TENSORS`].
    pub fn tensors(&self) -> &[Tensor; 10] {
        &self.tensors
    }

    /// Logits of a batch.
    ///
    /// *Shape*: `[n, 1, 28, 28]` f32 to `[n, 10]` f32.
    pub fn forward(&self, batch: &Tensor) -> Tensor {
        let [w1, b1, w2, b2, w3, b3, w4, b4, w5, b5] = &self.tensors;
        batch
            .conv2d(w1, Some(b1), [1, 1], [2, 2], [1, 1], 1)
            .relu()
            .max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
            .conv2d(w2, Some(b2), [1, 1], [0, 0], [1, 1], 1)
            .relu()
            .max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
            .flatten(1, -1)
            .linear(w3, Some(b3))
            .relu()
            .linear(w4, Some(b4))
            .relu()
            .linear(w5, Some(b5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::weights::to_safetensors;
    use tch::Kind;

    fn tensors(fill: f64) -> Vec<(String, Tensor)> {
        TENSORS
            .iter()
            .map(|(name, shape)| {
                let tensor = Tensor::full(*shape, fill, (Kind::Float, Device::Cpu));
                (name.to_string(), tensor)
            })
            .collect()
    }

    fn load(tensors: &[(String, Tensor)]) -> Result<LeNet, ModelError> {
        let bytes = to_safetensors(tensors, Kind::Float, None);
        LeNet::load(Weights::from_safetensors("lenet", &bytes)?, Device::Cpu)
    }

    fn refusal(tensors: &[(String, Tensor)]) -> String {
        let Err(error) = load(tensors) else {
            panic!("the weights must be refused")
        };
        error.to_string()
    }

    #[test]
    fn it_has_the_parameters_of_lenet_5() {
        let count: i64 = TENSORS
            .iter()
            .map(|(_, shape)| shape.iter().product::<i64>())
            .sum();
        assert_eq!(count, 61_706);
    }

    /// Computed by hand: with every weight 0.01, bias 0 and an image of ones, the centre
    /// of the first maps is 25 x 0.01, their maxima 0.25; then 6 x 25 x 0.25 x 0.01, and
    /// 400, 120, 84 equal inputs times 0.01.
    #[test]
    fn equal_weights_give_the_logits_computed_by_hand() {
        let mut tensors = tensors(0.01);
        for (name, tensor) in &mut tensors {
            if name.ends_with("bias") {
                let _ = tensor.zero_();
            }
        }
        let network = load(&tensors).expect("valid weights");
        let logits = network.forward(&Tensor::ones([2, 1, 28, 28], (Kind::Float, Device::Cpu)));
        assert_eq!(logits.size(), [2, CLASSES]);
        let expected = 0.25 * 1.5 * 4.0 * 1.2 * 0.84;
        for class in 0..CLASSES {
            let logit = logits.double_value(&[1, class]);
            assert!(
                (logit - expected).abs() < 1e-5,
                "{logit} instead of {expected}"
            );
        }
    }

    #[test]
    fn every_layer_but_the_last_cuts_off_negative_numbers() {
        for layer in ["conv1", "conv2", "fc1", "fc2"] {
            let mut tensors = tensors(0.01);
            for (name, tensor) in &mut tensors {
                if name.ends_with("bias") {
                    let below = if name.starts_with(layer) { -1e3 } else { 0.0 };
                    let _ = tensor.fill_(below);
                }
            }
            let network = load(&tensors).expect("valid weights");
            let logits = network.forward(&Tensor::ones([1, 1, 28, 28], (Kind::Float, Device::Cpu)));
            assert_eq!(logits.abs().max().double_value(&[]), 0.0, "{layer}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_weights_is_named() {
        assert!(load(&tensors(0.0)).is_ok());
        let mut missing = tensors(0.0);
        drop(missing.remove(4));
        assert!(refusal(&missing).contains("fc1.weight"));
        let mut shape = tensors(0.0);
        shape[4].1 = Tensor::zeros([120, 256], (Kind::Float, Device::Cpu));
        let text = refusal(&shape);
        assert!(
            text.contains("fc1.weight") && text.contains("256"),
            "{text}"
        );
        let mut nan = tensors(0.0);
        nan[7].1 = Tensor::full([84], f64::NAN, (Kind::Float, Device::Cpu));
        let text = refusal(&nan);
        assert!(text.contains("fc2.bias") && text.contains("NaN"), "{text}");
        let mut infinite = tensors(0.0);
        infinite[7].1 = Tensor::full([84], f64::INFINITY, (Kind::Float, Device::Cpu));
        assert!(refusal(&infinite).contains("fc2.bias"));
        let mut unknown = tensors(0.0);
        unknown.push((
            "fc4.bias".into(),
            Tensor::zeros([1], (Kind::Float, Device::Cpu)),
        ));
        assert!(refusal(&unknown).contains("fc4.bias"));
        let bytes = to_safetensors(&tensors(0.0), Kind::Float, None);
        let truncated = Weights::from_safetensors("lenet", &bytes[..bytes.len() - 1]);
        assert!(truncated.is_err());
        assert!(Weights::from_safetensors("lenet", b"").is_err());
    }

    #[test]
    fn half_precision_weights_are_widened() {
        let number = 0x3c00u16.to_le_bytes(); // 1.0
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![1], &number);
        let bytes = safetensors::serialize([("one", view.expect("valid"))], None).expect("valid");
        let mut weights = Weights::from_safetensors("net", &bytes).expect("valid");
        let one = weights.take("one", &[1]).expect("there");
        assert_eq!(one.kind(), Kind::Float);
        assert_eq!(one.double_value(&[0]), 1.0);
    }
}
