//! The Distributed Learning Cluster.
#![warn(missing_docs)]
pub mod schedule;
pub mod types;
pub mod wire;
