//! What keeps files whole on real disks: copies handed over, checked, made anew, bounded.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{Cluster, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster without networks.
fn cluster(dir: &Path, count: usize, arguments: &[&str]) -> Cluster {
    let mut cluster = Cluster::new(dir);
    cluster.models = dir.join("no-models");
    std::fs::create_dir_all(&cluster.models).unwrap();
    for number in 1..=count {
        let name = format!("n{number}");
        let arguments = [&["--join"], arguments].concat();
        cluster.start_with(&name, &arguments).unwrap();
    }
    cluster.wait_for_members(count);
    cluster
}

fn holders(cluster: &Cluster, node: &str, name: &str) -> Vec<String> {
    let held = cluster.json(node, &["ls", name]);
    let held = held["replicas"].as_array().unwrap().iter();
    held.map(|id| id.as_str().unwrap().split(':').next().unwrap().to_string())
        .collect()
}

/// The blob files of a node.
fn blobs(dir: &Path, node: &str) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(dir.join(node).join("blobs")).unwrap();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

fn flip_a_bit(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 4;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn who_leaves_hands_its_copies_over_first() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = cluster(dir, 5, &[]);
    std::fs::write(dir.join("local.bin"), vec![9; 2_000_000]).unwrap();
    for number in 0..6 {
        cluster.ok("n1", &["put", "local.bin", &format!("file{number}")]);
    }
    let leaver = holders(&cluster, "n1", "file0").pop().unwrap();
    let rest = cluster.nodes.keys().find(|name| **name != leaver);
    let rest = rest.unwrap().clone();
    let left = cluster.json(&leaver, &["leave"]);
    // At this very moment every file has four copies without it.
    assert_eq!(left["short"], 0);
    for number in 0..6 {
        let holders = holders(&cluster, &rest, &format!("file{number}"));
        let others = holders.iter().filter(|name| **name != leaver);
        assert_eq!(others.count(), 4, "file{number}: {holders:?}");
    }
    let status = cluster.nodes.get_mut(&leaver).unwrap().wait(PATIENCE);
    assert!(status.unwrap().success());
}

#[test]
fn fsck_finds_a_decayed_copy_which_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = cluster(dir, 5, &[]);
    std::fs::write(dir.join("local.bin"), vec![9; 300_000]).unwrap();
    cluster.ok("n1", &["put", "local.bin", "a"]);
    let whole = cluster.json("n2", &["fsck"]);
    assert_eq!((&whole["corrupt"], &whole["under"]), (&0.into(), &0.into()));
    assert_eq!(whole["checked"], 4);
    let holder = holders(&cluster, "n1", "a").remove(0);
    let file = blobs(dir, &holder).remove(0);
    flip_a_bit(&file);
    let found = cluster.json("n2", &["fsck"]);
    assert_eq!(found["corrupt"], 1, "{found}");
    wait_until("the copy is made anew", PATIENCE, || {
        cluster.json("n1", &["under"])["files"] == serde_json::json!([])
            && holders(&cluster, "n1", "a").len() == 4
    });
    assert_eq!(cluster.json("n3", &["fsck"])["corrupt"], 0);
    // A file that somebody has removed is a lost copy too.
    let holder = holders(&cluster, "n1", "a").remove(0);
    std::fs::remove_file(blobs(dir, &holder).remove(0)).unwrap();
    assert_eq!(cluster.json("n2", &["fsck"])["corrupt"], 1);
    wait_until("the copy is made anew", PATIENCE, || {
        cluster.json("n1", &["under"])["total"] == 0
    });
}

#[test]
fn the_scrub_finds_a_decayed_copy_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // All copies within 3.6 s.
    let cluster = cluster(dir, 4, &["--scrub", "0.001"]);
    std::fs::write(dir.join("local.bin"), vec![9; 300_000]).unwrap();
    cluster.ok("n1", &["put", "local.bin", "a"]);
    let file = blobs(dir, "n3").remove(0);
    flip_a_bit(&file);
    wait_until("the scrub finds it", PATIENCE, || {
        cluster.json("n3", &["stats"])["blobs_corrupt"] == 1
    });
    wait_until("the copy is made anew", PATIENCE, || {
        file.exists() && cluster.json("n1", &["under"])["total"] == 0
    });
    assert!(
        dir.join("n3/corrupt")
            .join(file.file_name().unwrap())
            .exists()
    );
}

#[test]
fn only_so_many_versions_are_kept_as_the_user_wants() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = cluster(dir, 4, &[]);
    let put = |number: usize| {
        std::fs::write(dir.join("local.bin"), vec![number as u8; 100 + number]).unwrap();
        cluster.json("n1", &["put", "local.bin", "a"])["version"].clone()
    };
    for number in 0..4 {
        assert_eq!(put(number), number);
    }
    assert_eq!(
        cluster.json("n2", &["keep-versions"])["keep"],
        serde_json::Value::Null
    );
    assert_eq!(cluster.json("n2", &["keep-versions", "2"])["keep"], 2);
    let versions = || {
        let got = cluster.json("n3", &["get-versions", "a", "9", "got"]);
        let got = got["versions"].as_array().unwrap().clone();
        got.iter()
            .map(|it| it["version"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(versions(), [3, 2]);
    assert_eq!(put(4), 4);
    assert_eq!(versions(), [4, 3]);
    wait_until("the old bytes are gone", PATIENCE, || {
        blobs(dir, "n1").len() == 2
    });
    assert_eq!(cluster.json("n4", &["keep-versions"])["keep"], 2);
    cluster.ok("n4", &["keep-versions", "all"]);
    put(5);
    assert_eq!(versions(), [5, 4, 3]);
}

#[test]
fn nothing_is_listed_once_a_newcomer_has_the_copies_that_it_brings() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = cluster(dir, 3, &[]);
    std::fs::write(dir.join("local.bin"), vec![9; 300_000]).unwrap();
    cluster.ok("n1", &["put", "local.bin", "a"]);
    assert_eq!(
        cluster.json("n1", &["under"])["files"],
        serde_json::json!([])
    );
    let text = cluster.ok("n1", &["under"]);
    assert!(text.contains("all its copies"), "{text}");
    cluster.start("n4");
    cluster.wait_for_members(4);
    wait_until("the fourth copy is made", PATIENCE, || {
        cluster.json("n1", &["under"])["total"] == 0 && holders(&cluster, "n1", "a").len() == 4
    });
}
