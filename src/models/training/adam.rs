//! AdamW: steps of about equal size for all weights, and a pull towards 0 apart from them.
//!
//! Decides: one step of one tensor, in place as far as it goes, since a large network's
//! state is as large as itself several times over. Leaves to others: step sizes and what
//! is pulled (each recipe).
//!
//! *Source*: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017,
//! algorithm 2.

use tch::Tensor;

/// Decay of the running means of the gradient and of its square.
const BETAS: (f64, f64) = (0.9, 0.99);
/// Keeps the division finite.
const EPSILON: f64 = 1e-7;

/// The two running means of one tensor's gradients.
pub(super) struct Adam {
    /// Of the gradients.
    pub(super) mean: Tensor,
    /// Of their squares.
    pub(super) square: Tensor,
}

impl Adam {
    /// Before the first step of `tensor`.
    pub(super) fn new(tensor: &Tensor) -> Adam {
        Adam {
            mean: tensor.zeros_like(),
            square: tensor.zeros_like(),
        }
    }

    /// Moves `tensor` against its `gradient` by about `rate` and shrinks it by `rate`
    /// times `decay`. `turn` counts the steps, from 1. To be called without gradients.
    pub(super) fn step(
        &mut self,
        tensor: &mut Tensor,
        gradient: &Tensor,
        rate: f64,
        decay: f64,
        turn: i32,
    ) {
        let (first, second) = BETAS;
        let _ = self.mean.lerp_(gradient, 1.0 - first);
        let _ = self.square.lerp_(&gradient.square(), 1.0 - second);
        // Both means start at 0 and are too small by a known factor at first.
        let (lift, lift_square) = (1.0 - first.powi(turn), 1.0 - second.powi(turn));
        let mut step = &self.square / lift_square;
        let _ = step
            .sqrt_()
            .g_add_scalar_(EPSILON)
            .reciprocal_()
            .g_mul_(&self.mean)
            .g_mul_scalar_(rate / lift);
        if decay > 0.0 {
            let _ = tensor.g_mul_scalar_(1.0 - rate * decay);
        }
        let _ = tensor.g_sub_(&step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_first_step_is_the_rate_against_the_gradients_sign() {
        let options = (Kind::Float, Device::Cpu);
        let mut tensor = Tensor::full([2], 1.0, options);
        let gradient = Tensor::from_slice(&[0.5f32, -20.0]);
        Adam::new(&tensor).step(&mut tensor, &gradient, 0.01, 0.0, 1);
        assert!((tensor.double_value(&[0]) - 0.99).abs() < 1e-6);
        assert!((tensor.double_value(&[1]) - 1.01).abs() < 1e-6);
    }

    #[test]
    fn without_a_gradient_only_the_decay_acts() {
        let mut tensor = Tensor::full([1], 2.0, (Kind::Float, Device::Cpu));
        let gradient = tensor.zeros_like();
        Adam::new(&tensor).step(&mut tensor, &gradient, 0.1, 0.5, 1);
        assert!((tensor.double_value(&[0]) - 2.0 * 0.95).abs() < 1e-6);
    }

    #[test]
    fn it_finds_the_bottom_of_a_bowl() {
        let mut tensor = Tensor::from_slice(&[3.0f32, -2.0]);
        let mut adam = Adam::new(&tensor);
        for turn in 1..=400 {
            let gradient = &tensor * 2.0;
            let rate = 0.1 * (1.0 - f64::from(turn) / 401.0);
            adam.step(&mut tensor, &gradient, rate, 0.0, turn);
        }
        let distance = tensor.abs().max().double_value(&[]);
        assert!(distance < 1e-2, "{distance}");
    }
}
