//! `introducer`: the place where newcomers ask for the members.
fn main() {}
