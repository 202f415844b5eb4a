//! The Distributed Learning Cluster.
#![warn(missing_docs)]
pub mod config;
pub mod consensus;
pub mod disk;
pub mod membership;
pub mod models;
pub mod types;
pub mod wire;
