//! Files that are none, that change while they are put, that do not fit; and a target that takes
//! a connection and never reads.

use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Cluster, executable, wait_until};

/// `dlc`, running.
fn begin(cluster: &Cluster, node: &str, words: &[&str]) -> Child {
    let command = Command::new(executable("dlc"))
        .current_dir(&cluster.dir)
        .args(["--node", &cluster.nodes[node].addr.to_string()])
        .arg("--cluster-key")
        .arg(cluster.dir.join("cluster.key"))
        .arg("--json")
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    command.unwrap()
}

/// Whether the process has ended, without waiting for it.
fn put_ends(put: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", put.id())).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.trim_start().starts_with('Z'))
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
    let put = begin(&cluster, "n1", &["put", "source", "grows"]);
    wait_until("bytes arrive", Duration::from_secs(20), || {
        receives(&cluster, "n1")
    });
    source.set_len(length + 5_000_000).unwrap();
    let said = put.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let receipt: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(receipt["bytes"], length);

    // Others in its place: nothing is, and it is said.
    let put = begin(&cluster, "n1", &["put", "source", "changes"]);
    let mut writes = 0u8;
    while !put_ends(&put) {
        writes = writes.wrapping_add(1);
        for at in [0, length / 2, length - 1] {
            source.write_all_at(&[writes], at).unwrap();
        }
    }
    let said = put.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{error}");
    assert!(error.contains("changed while it was read"), "{error}");

    // Shorter: nothing is.
    let put = begin(&cluster, "n1", &["put", "source", "shrinks"]);
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

#[test]
fn a_download_takes_the_place_of_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 1);
    std::fs::write(dir.join("source"), "new").unwrap();
    cluster.ok("n1", &["put", "source", "f"]);
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let pipe = dir.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    std::os::unix::fs::symlink("absent", dir.join("dangling")).unwrap();
    for (place, says) in [
        ("pipe", "no regular file"),
        ("dangling", "not there"),
        ("folder/", "folder"),
        ("", "no file name"),
    ] {
        let error = cluster.refused("n1", &["get", "f", place]);
        assert!(error.contains(says), "{place}: {error}");
    }
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    // A link stays, and what it points at is written, with its permissions.
    let private = dir.join("private");
    std::fs::write(&private, "old").unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink("private", dir.join("link")).unwrap();
    cluster.ok("n1", &["get", "f", "link"]);
    assert_eq!(std::fs::read(&private).unwrap(), b"new");
    assert!(
        std::fs::symlink_metadata(dir.join("link"))
            .unwrap()
            .is_symlink()
    );
    let mode = std::fs::metadata(&private).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn who_breaks_off_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 4);
    let source = std::fs::File::create(dir.join("source")).unwrap();
    source.set_len(400_000_000).unwrap();
    // Some targets have all of it, others not yet.
    let mut put = begin(&cluster, "n1", &["put", "source", "f"]);
    let stored = |node: &&str| {
        let folders = std::fs::read_dir(cluster.dir.join(node).join("blobs")).unwrap();
        let mut folders = folders
            .flatten()
            .map(|folder| std::fs::read_dir(folder.path()));
        folders.any(|folder| folder.unwrap().count() > 0)
    };
    wait_until("a copy is whole", Duration::from_secs(30), || {
        ["n1", "n2", "n3", "n4"].iter().any(stored)
    });
    put.kill().unwrap();
    put.wait().unwrap();
    wait_until("nothing is left of it", Duration::from_secs(30), || {
        cluster.json("n1", &["fsck"])["orphaned"] == 0
            && !["n1", "n2", "n3", "n4"].iter().any(stored)
    });

    cluster.ok("n1", &["put", "source", "f"]);
    let parts = || {
        let entries = std::fs::read_dir(dir).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".part")).count()
    };
    let mut get = begin(&cluster, "n1", &["get", "f", "got"]);
    wait_until("the download begins", Duration::from_secs(30), || {
        parts() > 0
    });
    let pid = rustix::process::Pid::from_child(&get);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(get.wait().unwrap().code(), Some(130));
    assert_eq!(parts(), 0);
    assert!(!dir.join("got").exists());
}

#[test]
fn what_is_wrong_on_the_disks_is_counted_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 4);
    std::fs::write(dir.join("source"), vec![3; 3_000_000]).unwrap();
    for name in ["a", "b", "c"] {
        cluster.ok("n1", &["put", "source", name]);
    }
    let spoil = |node: &str| {
        for folder in std::fs::read_dir(dir.join(node).join("blobs")).unwrap() {
            let files = std::fs::read_dir(folder.unwrap().path()).unwrap();
            files.for_each(|file| std::fs::remove_file(file.unwrap().path()).unwrap());
        }
    };
    ["n1", "n2", "n3"].iter().for_each(|node| spoil(node));
    let found = cluster.json("n1", &["fsck"]);
    assert_eq!(found["corrupt"], 9, "{found}");
    wait_until("the copies are made anew", Duration::from_secs(20), || {
        cluster.json("n1", &["under"])["total"] == 0
    });

    // What does not belong among the copies stops no node.
    std::fs::write(dir.join("n1/blobs/stray"), "x").unwrap();
    cluster.kill("n1");
    cluster.start("n1");
    cluster.wait_for_members(4);

    // All copies of everything: nobody is told to start a node that runs.
    ["n1", "n2", "n3", "n4"].iter().for_each(|node| {
        let _ = std::fs::remove_file(dir.join("n1/blobs/stray"));
        spoil(node);
    });
    let error = cluster.refused("n1", &["get", "a", "out"]);
    assert!(error.contains("\"a\"") || error.contains("lost"), "{error}");
    cluster.ok("n1", &["fsck"]);
    let error = cluster.refused("n1", &["get", "a", "out"]);
    assert!(error.contains("can only be put again"), "{error}");
    assert!(
        cluster
            .ok("n1", &["under"])
            .contains("no copy on a live node")
    );
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
