//! What a user can get wrong: each gives an error to act on, and nothing else stops.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::harness::{Cluster, dlc, executable, introducer_command, start};

#[test]
fn each_mistake_gets_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 4);
    std::fs::create_dir(dir.join("folder")).unwrap();
    std::fs::write(dir.join("in"), "x").unwrap();
    for (words, says) in [
        (&["put", "absent", "f"][..], "absent"),
        (&["put", "folder", "f"], "folder"),
        (&["get", "absent", "out"], "no file \"absent\""),
        (
            &["get-versions", "absent", "2", "out"],
            "no file \"absent\"",
        ),
        (&["delete", "absent"], "no file \"absent\""),
        (&["ls", "absent"], "no file \"absent\""),
        (
            &["infer", "lenet", "x.png", "4"],
            "no model \"lenet\" is published",
        ),
        (&["tail", "7", "3"], "no job 7"),
        (&["pause", "7"], "no job 7"),
        (&["weight", "7", "2000"], "from 1 to 1000"),
        (&["upload_data", "absent/x.png", "3"], "absent"),
        (&["train", "vgg"], "vgg"),
    ] {
        let error = cluster.refused("n1", words);
        assert!(error.contains(says), "{words:?}: {error}");
    }
    for words in [
        &["frobnicate"][..],
        &["put", "a"],
        &["infer", "lenet", "x.png", "0"],
        &["grep"],
        &["pause", "x"],
        &["explain", "x"],
    ] {
        let said = cluster.dlc("n1", words);
        assert_eq!(said.status, 2, "{words:?}: {said:?}");
    }
    // A target folder that is not there: nothing appears, the error names it.
    cluster.ok("n1", &["put", "in", "f"]);
    assert!(
        cluster
            .refused("n1", &["get", "f", "no/such/folder/out"])
            .contains("no/such/folder")
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for words in [
        &["list_mem"][..],
        &["put", "in", "f"],
        &["get", "f", "out"],
        &["get-versions", "f", "2", "out"],
        &["upload_data", "in", "3"],
        &["download_data", "in", "."],
    ] {
        let said = dlc(free, dir, words);
        assert_eq!(said.status, 2, "no node there: {words:?}: {said:?}");
        assert!(said.stderr.contains("no node answers"), "{said:?}");
    }

    // A port in use, a data directory in use, a name in use.
    let taken = cluster.nodes["n1"].addr.to_string();
    let port = cluster.nodes["n1"].addr.port().to_string();
    let error = cluster.start_with("n9", &["--listen", &taken]).unwrap_err();
    let log = std::fs::read_to_string(dir.join("n9.log")).unwrap();
    assert!(
        log.contains(&port) && log.contains("in use"),
        "{error}: {log}"
    );
    let same = cluster.node_command_in("n1", &dir.join("other"), &["--join"]);
    let mut same = start(same, &dir.join("same.log")).expect("binds its sockets before it joins");
    let status = same.wait(Duration::from_secs(20));
    let log = std::fs::read_to_string(dir.join("same.log")).unwrap();
    assert!(
        status.is_none_or(|status| !status.success()) && log.contains("n1"),
        "{status:?}: {log}"
    );
    drop(same);
    let locked = std::process::Command::new(executable("node"))
        .args(["--name", "n1", "--data-dir"])
        .arg(dir.join("n1"))
        .arg("--cluster-key")
        .arg(dir.join("cluster.key"))
        .output()
        .unwrap();
    assert!(!locked.status.success() && String::from_utf8_lossy(&locked.stderr).contains("n1"));

    // All the while the cluster goes on.
    cluster.wait_for_members(4);
    cluster.ok("n4", &["get", "f", "out"]);
    assert_eq!(std::fs::read(dir.join("out")).unwrap(), b"x");
}

#[test]
fn an_introducer_that_is_not_there_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::new(dir);
    let introducer = cluster.introducer.addr.to_string();
    cluster.introducer.kill();
    cluster.start_with("n1", &[]).unwrap();
    let waits = format!("waiting for an introducer at {introducer}");
    let error = cluster.refused("n1", &["join"]);
    assert!(error.contains(&waits), "{error}");
    let error = cluster.refused("n1", &["list_mem"]);
    assert!(
        error.contains("not joined") && error.contains(&waits),
        "{error}"
    );
    assert!(cluster.ok("n1", &["why", "n9"]).contains("n9 is no member"));
    let log = std::fs::read_to_string(dir.join("n1.log")).unwrap();
    assert!(log.contains(&waits), "{log}");
    // It goes on trying: once the introducer is up, the node is in.
    let again = start(
        introducer_command(dir, &introducer),
        &dir.join("introducer.log"),
    )
    .unwrap();
    cluster.wait_for_members(1);
    drop(again);
}

#[test]
fn an_unreadable_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = Cluster::with_nodes(dir, 1);
    std::fs::write(dir.join("secret"), "x").unwrap();
    std::fs::set_permissions(dir.join("secret"), std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::read(dir.join("secret")).is_ok() {
        eprintln!("SKIPPED: this user may read everything");
        return;
    }
    assert!(
        cluster
            .refused("n1", &["put", "secret", "f"])
            .contains("secret")
    );
}
