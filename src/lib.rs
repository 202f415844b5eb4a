//! The Distributed Learning Cluster.
#![warn(missing_docs)]
pub mod membership;
pub mod types;
pub mod wire;
