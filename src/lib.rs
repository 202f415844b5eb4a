//! The Distributed Learning Cluster.
#![warn(missing_docs)]
pub mod models;
pub mod types;
