//! The Distributed Learning Cluster.
#![warn(missing_docs)]

pub mod consensus;
pub mod console;
pub mod membership;
pub mod models;
pub mod node;
pub mod planted;
pub mod schedule;
pub mod store;
pub mod types;
pub mod wire;
