//! The Distributed Learning Cluster: a ring failure detector, a replicated versioned
//! file system on that ring (SDFS), and a coordinator with hot standbys that hands out
//! inference tasks, one for each node at a time.
//!
//! # Map
//!
//! | module | what it is | promises kept there |
//! |---|---|---|
//! | [`types`] | names that all share: ids, time, versions, views | |
//! | [`wire`] | everything that crosses the network: how it becomes bytes, how a connection begins | |
//! | [`membership`] | core: who is alive; the ring, suspicion, the introducer | P1, P2 |
//! | [`consensus`] | core: the replicated log, its leader, its voters | P10, P11 |
//! | [`store`] | core: where files are; catalog, placement, repair, both ends of a put | P3, P4, P5, P6 |
//! | [`schedule`] | core: what runs where; jobs, tasks, fairness, the worker | P7, P8, P9 |
//! | [`node`] | the cores composed: the only place where they meet | |
//! | [`disk`] | device: the log, the blobs and the identity on disk | P3, P6, P11 |
//! | [`models`] | device: manifests, images, networks, training | |
//! | [`config`] | command lines and the key file | P12 (a later version) |
//! | [`console`] | the command language and its answers; the client's side | |
//! | [`threads`] | a node's threads, its listening sockets and its clocks | |
//! | [`planted`] | deliberate faults for the simulator's watchers | |
//!
//! Imports go up this list only: `types` → `wire` → the four cores, which never import
//! one another → `node` → `threads` → `bin`. `disk`, `models`, `config` and `console`
//! stand beside them and import what they need.
//!
//! # Cores
//!
//! A core is a state machine without sockets, files, clocks, threads, globals or hash
//! order. Inputs, the time and a seed are arguments; outputs are values. One contract for
//! all: `handle_*` calls, then `poll_output` until it is `None`, then `poll_timeout`. A core
//! withholds every message that depends on a write until it is told that the write is on
//! disk. The same cores run under [`threads`] and, thousands of times faster than real time,
//! under the deterministic simulation in `tests/sim`.
//!
//! # Threads and channels
//!
//! The table of both, with the room of each channel and what happens when it is full,
//! heads [`threads`].
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
