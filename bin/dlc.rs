//! `dlc`: one command on a running node.
fn main() {}
