//! `node`: one member of the cluster.
fn main() {}
