//! Networks: what a model directory holds, how an image becomes numbers, how numbers
//! become labels, and how LeNet is trained.
//!
//! `manifest`, `prepare` and `mnist` need no libtorch and serve every executable; the
//! others exist only with the feature `torch`. Deliberately not here: threads,
//! publishing models in the cluster, and the result files of jobs.

pub mod manifest;
pub mod mnist;
pub mod prepare;

#[cfg(feature = "torch")]
pub mod engine;
#[cfg(feature = "torch")]
pub mod lenet;
#[cfg(feature = "torch")]
pub mod resnet50;
#[cfg(feature = "torch")]
pub mod training;
#[cfg(feature = "torch")]
pub mod weights;
