//! Files that are none, that change while they are put, that do not fit; and a target that takes
//! a connection and never reads.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Cluster, executable, wait_until};

/// `dlc put LOCAL SDFS`, running.
fn begin_put(cluster: &Cluster, node: &str, local: &str, name: &str) -> Child {
    let command = Command::new(executable("dlc"))
        .current_dir(&cluster.dir)
        .args(["--node", &cluster.nodes[node].addr.to_string()])
        .arg("--cluster-key")
        .arg(cluster.dir.join("cluster.key"))
        .args(["--json", "put", local, name])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    command.unwrap()
}

/// Whether bytes of an upload have come to the node.
fn receives(cluster: &Cluster, node: &str) -> bool {
    let incoming = std::fs::read_dir(cluster.dir.join(node).join("incoming"));
    let mut files = incoming.unwrap().flatten();
    files.any(|file| file.metadata().is_ok_and(|it| it.len() > 0))
}

#[test]
fn a_pipe_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 1);
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let pipe = dir.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    // To open it would wait for a writer.
    let begun = Instant::now();
    let error = cluster.refused("n1", &["put", "pipe", "f"]);
    assert!(
        error.contains("pipe") && error.contains("no regular file"),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_file_that_changes_while_it_is_put() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 1);
    let length = 400_000_000;
    let source = std::fs::File::create(dir.join("source")).unwrap();
    source.set_len(length).unwrap();

    // Longer: what it was at the start is stored.
    let put = begin_put(&cluster, "n1", "source", "grows");
    wait_until("bytes arrive", Duration::from_secs(20), || {
        receives(&cluster, "n1")
    });
    source.set_len(length + 5_000_000).unwrap();
    let said = put.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let receipt: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(receipt["bytes"], length);

    // Shorter: nothing is.
    let put = begin_put(&cluster, "n1", "source", "shrinks");
    wait_until("bytes arrive", Duration::from_secs(20), || {
        receives(&cluster, "n1")
    });
    source.set_len(1000).unwrap();
    let said = put.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{error}");
    assert!(
        error.contains("source") && error.contains("shorter"),
        "{error}"
    );
    assert!(
        cluster
            .refused("n1", &["ls", "shrinks"])
            .contains("no file")
    );
    wait_until("nothing is left of it", Duration::from_secs(20), || {
        !receives(&cluster, "n1") && cluster.json("n1", &["fsck"])["orphaned"] == 0
    });
}

#[test]
fn a_target_that_never_reads_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 6);
    std::fs::write(dir.join("source"), vec![7; 20_000_000]).unwrap();
    let holders = |receipt: serde_json::Value| -> Vec<String> {
        let ids = receipt["replicas"].as_array().unwrap().clone();
        let name = |id: &serde_json::Value| id.as_str().unwrap().split(':').next().unwrap().into();
        ids.iter().map(name).collect()
    };
    let first = holders(cluster.json("n1", &["put", "source", "f"]));
    let leader = cluster.coordinator("n1").unwrap();
    let target = first.iter().find(|name| **name != leader && *name != "n1");
    let target = target.expect("one of four").clone();
    // Its kernel goes on accepting, and nobody reads.
    cluster.nodes[&target].signal(Signal::STOP);
    let second = holders(cluster.json("n1", &["put", "source", "f"]));
    cluster.nodes[&target].signal(Signal::CONT);
    assert_eq!(second.len(), 4);
    assert!(!second.contains(&target), "{second:?}");
    cluster.wait_for_members(6);
}

/// A disk of its own, of so many MiB; none where this user may not mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: &Path, mebibytes: u64) -> Option<SmallDisk> {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: this user may not mount a small disk");
            return None;
        }
        Some(SmallDisk(path.into()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_at_either_end_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(_own) = SmallDisk::new(&dir.join("small"), 1) else {
        return;
    };
    let Some(_node) = SmallDisk::new(&dir.join("n1"), 128) else {
        return;
    };
    let cluster = Cluster::with_nodes(dir, 1);
    std::fs::write(dir.join("fits"), vec![1; 3_000_000]).unwrap();
    std::fs::write(dir.join("large"), vec![2; 100_000_000]).unwrap();

    // The node's: refused with the path and the bytes, and the node goes on.
    let error = cluster.refused("n1", &["put", "large", "large"]);
    let path = dir.join("n1").display().to_string();
    assert!(
        error.contains(&path) && error.contains("100000000 bytes"),
        "{error}"
    );
    cluster.ok("n1", &["put", "fits", "fits"]);

    // The client's: the file is named, and nothing is left of it.
    let error = cluster.refused("n1", &["get", "fits", "small/out"]);
    assert!(
        error.contains("small/out") && error.contains("space"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.join("small")).unwrap().count(), 0);
    let error = cluster.refused("n1", &["download_data", "fits", "small"]);
    assert!(
        error.contains("small/fits") && error.contains("space"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.join("small")).unwrap().count(), 0);
    cluster.ok("n1", &["get", "fits", "out"]);
}

#[test]
fn a_data_set_is_downloaded_whole_though_a_node_dies_and_a_copy_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 5);
    let count: usize = 1_500;
    std::fs::create_dir(dir.join("set")).unwrap();
    for number in 0..count {
        let content = format!("{number} ").repeat(20);
        std::fs::write(dir.join(format!("set/x{number}.txt")), content).unwrap();
    }
    cluster.ok("n1", &["upload_data", "set/x.txt", &count.to_string()]);
    // One that dies, unnoticed yet, and one whose copies are not what they were.
    let leader = cluster.coordinator("n1").unwrap();
    let mut others = ["n2", "n3", "n4", "n5"].into_iter();
    let mut others = others.by_ref().filter(|name| *name != leader);
    let (wrong, dead) = (others.next().unwrap(), others.next().unwrap());
    let mut spoilt = 0;
    for folder in std::fs::read_dir(dir.join(wrong).join("blobs")).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap().take(1) {
            let path = file.unwrap().path();
            let mut content = std::fs::read(&path).unwrap();
            content[0] ^= 1;
            std::fs::write(&path, content).unwrap();
            spoilt += 1;
        }
    }
    assert!(spoilt > 100);
    cluster.kill(dead);
    let said = cluster.json("n1", &["download_data", "x.txt", "got"]);
    assert_eq!(said["downloaded"], count);
    for number in 0..count {
        let name = format!("x{number}.txt");
        let got = std::fs::read(dir.join("got").join(&name)).unwrap();
        assert!(got == std::fs::read(dir.join("set").join(&name)).unwrap());
    }
    assert_eq!(std::fs::read_dir(dir.join("got")).unwrap().count(), count);
    let error = cluster.refused("n1", &["download_data", "y.txt", "got"]);
    assert!(error.contains("y.txt"), "{error}");
    let error = cluster.refused("n1", &["download_data", "x.txt", "no/such/folder"]);
    assert!(error.contains("no/such/folder"), "{error}");
}
