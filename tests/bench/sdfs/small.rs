//! Many small files: ten thousand digits, four durable copies each, and all of them read.

use std::path::Path;

use super::{cluster, limits, median, rounds, timed};

const FILES: usize = 10_000;
/// Files a second.
const BAR: f64 = 2_000.0;

pub fn measure(dir: &Path) {
    let cluster = cluster(dir);
    for number in 0..100 {
        let content = vec![number as u8; 300];
        std::fs::write(dir.join(format!("digit{number}.png")), content).expect("written");
    }
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    let (mut reads, mut read_limits) = (Vec::new(), Vec::new());
    for _ in 0..rounds(5) {
        let folder = dir.join("limits");
        std::fs::create_dir_all(&folder).expect("made");
        let seconds = limits::small_files(&folder, FILES, 300, 4).as_secs_f64();
        limit.push(FILES as f64 / seconds);
        limits::clear(&folder);
        let count = FILES.to_string();
        let seconds = timed(|| drop(cluster.ok("n1", &["upload_data", "digit.png", &count])));
        ours.push(FILES as f64 / seconds);
        let seconds = timed(|| drop(cluster.ok("n1", &["download_data", "digit.png", "got"])));
        reads.push(FILES as f64 / seconds);
        let got = dir.join("got");
        assert_eq!(std::fs::read_dir(&got).expect("listed").count(), FILES);
        read_limits.push(FILES as f64 / limits::copy_folder(dir, &got));
        limits::clear(dir);
        std::fs::remove_dir_all(&got).expect("removed");
    }
    let (ours, limit) = (median(ours), median(limit));
    let verdict = if ours >= BAR { "met" } else { "MISSED" };
    println!(
        "upload of {FILES} small files, four copies: {ours:.0} files/s (plain files and one \
         syncfs: {limit:.0}), at least {BAR}: {verdict}"
    );
    let (reads, limit) = (median(reads), median(read_limits));
    println!(
        "download of {FILES} small files: {reads:.0} files/s (warm copy and hash of the files, one by \
         one: {limit:.0})"
    );
}
