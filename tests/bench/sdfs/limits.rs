//! What the disk does without us. The files stay until [`clear`].

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use super::timed;

/// Writes four copies of `source` at once, each to a folder of its own, and syncs; seconds.
pub fn four_copies(dir: &Path, source: &Path) -> f64 {
    timed(|| {
        std::thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    let to = dir.join(format!("limit-{number}"));
                    std::fs::copy(source, &to).expect("copied");
                    File::open(&to)
                        .and_then(|it| it.sync_all())
                        .expect("synced");
                });
            }
        });
    })
}

/// A warm copy of `source` without sync, and its digest; seconds.
pub fn copy_and_hash(dir: &Path, source: &Path) -> f64 {
    let to = dir.join("limit-7");
    timed(|| {
        std::fs::copy(source, &to).expect("copied");
        let mut hasher = blake3::Hasher::new();
        let mut file = File::open(&to).expect("opened");
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).expect("read") {
                0 => break,
                count => hasher.update(&buffer[..count]),
            };
        }
        hasher.finalize();
    })
}

/// A warm copy of each file in `folder`, and its digest; seconds.
pub fn copy_folder(dir: &Path, folder: &Path) -> f64 {
    let to = dir.join("limit-7");
    std::fs::create_dir_all(&to).expect("made");
    timed(|| {
        for entry in std::fs::read_dir(folder).expect("listed") {
            let entry = entry.expect("listed");
            let content = std::fs::read(entry.path()).expect("read");
            blake3::hash(&content);
            std::fs::write(to.join(entry.file_name()), content).expect("written");
        }
    })
}

/// Writes `count` files of `bytes` bytes in each of `copies` folders at once, then one syncfs.
pub fn small_files(dir: &Path, count: usize, bytes: usize, copies: usize) -> Duration {
    let seconds = timed(|| {
        std::thread::scope(|scope| {
            for number in 0..copies {
                scope.spawn(move || {
                    let folder = dir.join(format!("limit-{number}"));
                    std::fs::create_dir_all(&folder).expect("made");
                    let content = vec![7; bytes];
                    for file in 0..count {
                        let mut file = File::create(folder.join(file.to_string())).expect("made");
                        file.write_all(&content).expect("written");
                    }
                });
            }
        });
        let opened = File::open(dir).expect("opened");
        rustix::fs::syncfs(&opened).expect("synced");
    });
    Duration::from_secs_f64(seconds)
}

/// Removes what the other functions wrote into `dir`.
pub fn clear(dir: &Path) {
    for number in 0..8 {
        let path = dir.join(format!("limit-{number}"));
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(&path);
    }
}
