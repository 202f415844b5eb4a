//! The Distributed Learning Cluster.
#![warn(missing_docs)]

pub mod consensus;
pub mod planted;
pub mod store;
pub mod types;
pub mod wire;
