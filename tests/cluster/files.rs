//! Files on real disks: put, get, versions, delete, listing, and odd names and sizes.

use std::path::Path;
use std::time::Duration;

use crate::harness::{Cluster, wait_until};

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut rng = dlc::types::Rng::new(seed);
    (0..length).map(|_| rng.next_u64() as u8).collect()
}

fn write(dir: &Path, name: &str, content: &[u8]) {
    std::fs::write(dir.join(name), content).unwrap();
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

#[test]
fn files_go_round() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 5);
    let versions: Vec<Vec<u8>> = (0..3)
        .map(|seed| bytes(3_000_000 + seed as usize, seed))
        .collect();
    for (number, content) in versions.iter().enumerate() {
        write(dir, "local.bin", content);
        let node = format!("n{}", number + 1);
        let receipt = cluster.json(&node, &["put", "local.bin", "data.bin"]);
        assert_eq!(receipt["version"], number);
        assert_eq!(receipt["bytes"], content.len());
        assert_eq!(
            receipt["digest"],
            blake3::hash(content).to_hex().to_string()
        );
        assert_eq!(receipt["replicas"].as_array().unwrap().len(), 4);
    }
    for node in ["n1", "n5"] {
        let got = cluster.json(node, &["get", "data.bin", "got.bin"]);
        assert_eq!(got["version"], 2);
        assert!(read(dir, "got.bin") == versions[2]);
    }
    let got = cluster.json("n2", &["get-versions", "data.bin", "2", "old.bin"]);
    assert_eq!(got["versions"].as_array().unwrap().len(), 2);
    assert!(read(dir, "old_v1.bin") == versions[1] && read(dir, "old_v2.bin") == versions[2]);
    assert_eq!(
        cluster.json("n3", &["get-versions", "data.bin", "99", "all.bin"])["versions"]
            .as_array()
            .unwrap()
            .len(),
        3
    );

    let holders = cluster.json("n1", &["ls", "data.bin"]);
    assert_eq!(holders["replicas"].as_array().unwrap().len(), 4);
    let held = |node: &str| {
        cluster.json(node, &["store"])["files"]
            .as_array()
            .unwrap()
            .len()
    };
    let total: usize = cluster.nodes.keys().map(|node| held(node)).sum();
    assert_eq!(total, 12, "three versions, four copies each");

    assert_eq!(cluster.json("n4", &["delete", "data.bin"])["versions"], 3);
    assert!(
        cluster
            .refused("n1", &["get", "data.bin", "gone.bin"])
            .contains("data.bin")
    );
    assert!(!dir.join("gone.bin").exists());
    wait_until("the copies are gone", Duration::from_secs(5), || {
        cluster.nodes.keys().map(|node| held(node)).sum::<usize>() == 0
    });
    write(dir, "local.bin", b"again");
    assert_eq!(
        cluster.json("n1", &["put", "local.bin", "data.bin"])["version"],
        3,
        "numbering goes on"
    );
}

#[test]
fn odd_names_and_sizes_work() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 4);
    let long = "x".repeat(300);
    let names = [
        "with space",
        "a/b/c.txt",
        "../up",
        "naïve-日本.png",
        &long,
        "-dash",
    ];
    for (number, name) in names.iter().enumerate() {
        // Empty, one byte, and a little.
        let content = bytes([0, 1, 70_000][number % 3], number as u64);
        write(dir, "in", &content);
        let receipt = cluster.json("n1", &["put", "in", name]);
        assert_eq!(
            (&receipt["file"], &receipt["bytes"]),
            (&(*name).into(), &content.len().into())
        );
        cluster.ok("n2", &["get", name, "out"]);
        assert!(read(dir, "out") == content, "{name}");
    }
    for bad in ["", "new\nline", &"y".repeat(1025)] {
        let said = cluster.dlc("n1", &["put", "in", bad]);
        assert_eq!(said.status, 2, "{bad:?}: {said:?}");
        assert!(said.stderr.contains("SDFS name"), "{said:?}");
    }
    assert!(
        cluster
            .refused("n1", &["put", "in", "17.csv"])
            .contains("reserved")
    );
}

#[test]
fn bulk_upload_goes_round_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 4);
    std::fs::create_dir(dir.join("set")).unwrap();
    for name in ["rose10.png", "rose2.png", "rose1.png", "tulip1.png"] {
        write(&dir.join("set"), name, name.as_bytes());
    }
    assert_eq!(
        cluster.json("n1", &["upload_data", "set/rose.png", "5"])["uploaded"],
        5
    );
    for (number, expected) in [
        "rose1.png",
        "rose2.png",
        "rose10.png",
        "rose1.png",
        "rose2.png",
    ]
    .iter()
    .enumerate()
    {
        cluster.ok("n3", &["get", &format!("rose{number}.png"), "out"]);
        assert_eq!(read(dir, "out"), expected.as_bytes());
    }
    assert!(
        cluster
            .refused("n1", &["upload_data", "set/daisy.png", "5"])
            .contains("daisy*.png")
    );
}
