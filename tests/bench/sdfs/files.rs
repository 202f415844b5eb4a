//! Large files: put, get, get-versions, and the nodes' memory meanwhile.

use std::path::Path;
use std::time::Duration;

use super::{cluster, grown, limits, median, memory, report, rounds, timed};

const SMALL: usize = 25_000_000;
const LARGE: usize = 500_000_000;
/// What a `get` may take beside its limit: starting, asking, connecting.
const SLACK: f64 = 0.05;
/// After this, free memory has gone back to the host.
const SETTLING: Duration = Duration::from_secs(4);

pub fn measure(dir: &Path) {
    let cluster = cluster(dir);
    let before = memory(&cluster);
    let mut get_25 = 0.0;
    for (bytes, what) in [(SMALL, "25 MB"), (LARGE, "500 MB")] {
        let source = dir.join("source");
        write_random(&source, bytes);
        let path = source.to_str().expect("a path of text");
        let (mut puts, mut put_limits, mut gets, mut get_limits) = (vec![], vec![], vec![], vec![]);
        for round in 0..rounds(5) {
            let name = format!("{bytes}-{round}");
            // All begin with memory that was not just used: a virtual machine has to get it
            // from its host, which takes longer than the copying.
            put_limits.push(limits::four_copies(dir, &source));
            limits::clear(dir);
            std::thread::sleep(SETTLING);
            puts.push(timed(|| drop(cluster.ok("n1", &["put", path, &name]))));
            std::thread::sleep(SETTLING);
            get_limits.push(limits::copy_and_hash(dir, &source));
            limits::clear(dir);
            std::thread::sleep(SETTLING);
            gets.push(timed(|| drop(cluster.ok("n1", &["get", &name, "got"]))));
            assert_eq!(digest(&dir.join("got")), digest(&source), "the same bytes");
            cluster.ok("n1", &["delete", &name]);
            let _ = std::fs::remove_file(dir.join("got"));
            std::thread::sleep(SETTLING);
        }
        eprintln!("{what}: puts {puts:.3?} beside {put_limits:.3?}");
        eprintln!("{what}: gets {gets:.3?} beside {get_limits:.3?}");
        let (put, limit) = (median(puts), median(put_limits));
        report(
            &format!("put {what} (four copies, synced)"),
            put,
            limit,
            1.5 * limit,
        );
        let (get, limit) = (median(gets), median(get_limits));
        report(
            &format!("get {what} (warm copy and hash)"),
            get,
            limit,
            1.5 * limit + SLACK,
        );
        if bytes == SMALL {
            get_25 = get;
        }
    }
    println!(
        "memory of a node grew by {} MiB (bar 64)",
        grown(&cluster, &before)
    );
    let source = dir.join("source");
    let versions = rounds(5).max(5);
    for version in 0..versions {
        write_random(&source, SMALL + version);
        cluster.ok("n1", &["put", source.to_str().expect("text"), "versions"]);
    }
    for count in 1..=5 {
        let figures = (0..rounds(5)).map(|_| {
            let words = ["get-versions", "versions", &count.to_string(), "got"];
            let seconds = timed(|| drop(cluster.ok("n1", &words)));
            // To write over a file costs the removal of the old one.
            for version in 0..versions {
                let _ = std::fs::remove_file(dir.join(format!("got_v{version}")));
            }
            seconds
        });
        let figure = median(figures.collect());
        let what = format!("get-versions {count} x 25 MB (gets)");
        let limit = f64::from(count) * get_25;
        report(&what, figure, limit, limit.max(5.0 * get_25));
    }
}

fn digest(path: &Path) -> blake3::Hash {
    blake3::hash(&std::fs::read(path).expect("read"))
}

/// Bytes that no file system squeezes.
fn write_random(path: &Path, bytes: usize) {
    let mut content = vec![0; bytes];
    let mut output = blake3::Hasher::new_derive_key("bench-sdfs").finalize_xof();
    output.set_position(bytes as u64);
    output.fill(&mut content);
    std::fs::write(path, content).expect("written");
}
