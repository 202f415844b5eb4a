//! The Distributed Learning Cluster.
#![warn(missing_docs)]
pub mod types;
pub mod models;
