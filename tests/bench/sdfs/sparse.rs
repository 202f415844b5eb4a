//! A sparse file of 10 GiB through one node: its memory meanwhile.

use std::path::Path;

use super::real::Cluster;
use super::{grown, memory, timed};

const BYTES: u64 = 10 << 30;
/// At most so many MiB more than before.
const BAR: u64 = 64;

pub fn measure(dir: &Path) {
    let mut cluster = Cluster::new(dir);
    cluster.models = dir.join("no-models");
    std::fs::create_dir_all(&cluster.models).expect("an empty folder");
    cluster.start("n1");
    cluster.wait_for_members(1);
    let before = memory(&cluster);
    let source = std::fs::File::create(dir.join("source")).expect("made");
    source.set_len(BYTES).expect("a sparse file");
    let mut receipt = serde_json::Value::Null;
    let put = timed(|| receipt = cluster.json("n1", &["put", "source", "sparse"]));
    let mut got = serde_json::Value::Null;
    let get = timed(|| got = cluster.json("n1", &["get", "sparse", "got"]));
    assert_eq!(
        (&receipt["bytes"], &receipt["digest"]),
        (&BYTES.into(), &got["digest"])
    );
    let length = std::fs::metadata(dir.join("got")).expect("there").len();
    assert_eq!(length, BYTES);
    let grown = grown(&cluster, &before);
    let verdict = if grown <= BAR { "met" } else { "MISSED" };
    println!(
        "a sparse file of 10 GiB, one copy: put {put:.1} s, get {get:.1} s; memory of the node grew \
         by {grown} MiB (at most {BAR}): {verdict}"
    );
}
