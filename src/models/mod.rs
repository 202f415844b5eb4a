//! Networks: what a model directory holds, how an image becomes numbers, how numbers
//! become labels, and how LeNet is trained.
//!
//! `manifest`, `prepare` and `mnist` need no libtorch and serve every executable; the
//! others exist only with the feature `torch`. Deliberately not here: threads,
//! publishing models in the cluster, and the result files of jobs.

pub mod error;
pub mod manifest;
pub mod mnist;
pub mod photographs;
pub mod prepare;
pub mod route;
pub mod script;
pub mod stand_ins;

#[cfg(feature = "torch")]
mod direct;
#[cfg(feature = "torch")]
pub mod engine;
#[cfg(feature = "torch")]
mod folded;
#[cfg(feature = "torch")]
mod fused;
#[cfg(feature = "torch")]
pub mod lenet;
#[cfg(all(test, feature = "torch"))]
mod noise;
#[cfg(feature = "torch")]
mod packs;
#[cfg(feature = "torch")]
mod quantised;
#[cfg(feature = "torch")]
pub mod resnet50;
#[cfg(feature = "torch")]
pub mod training;
#[cfg(feature = "torch")]
pub mod trial;
#[cfg(feature = "torch")]
pub mod weights;
