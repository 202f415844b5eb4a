//! The Distributed Learning Cluster.
#![warn(missing_docs)]

pub mod config;
pub mod consensus;
pub mod console;
pub mod disk;
pub mod membership;
pub mod models;
pub mod node;
pub mod planted;
pub mod schedule;
pub mod store;
pub mod threads;
pub mod types;
pub mod wire;
