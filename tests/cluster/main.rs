//! `make cluster-test`: the few tests on real processes, which prove the threads, the
//! sockets and the disks. What the protocols do under faults is the simulator's part.

mod bad_input;
mod console;
mod failures;
mod files;
mod harness;
mod jobs;
mod odd_files;
mod own_model;
mod recovery;
mod upkeep;
