//! Going on without a majority: `--crash-stop` and `rebuild` on real processes.

use std::time::Duration;

use crate::harness::{Cluster, wait_until};

const CRASH_STOP: &[&str] = &["--join", "--crash-stop"];

#[test]
fn the_last_crash_stop_node_goes_on_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::new(dir);
    for name in ["n1", "n2"] {
        cluster.start_with(name, CRASH_STOP).unwrap();
    }
    cluster.wait_for_members(2);
    std::fs::write(dir.join("in"), "before").unwrap();
    cluster.ok("n1", &["put", "in", "file"]);
    let leader = cluster.coordinator("n1").unwrap();
    let other = if leader == "n1" { "n2" } else { "n1" };
    cluster.kill(&leader);
    cluster.ok(other, &["get", "file", "out"]);
    std::fs::write(dir.join("in"), "alone").unwrap();
    cluster.ok(other, &["put", "in", "file"]);
    // The one that died first does not know of that, and waits for the one that does.
    cluster.kill(other);
    cluster.start_with(&leader, CRASH_STOP).unwrap();
    let missing = format!("(missing: {other})");
    wait_until("it waits", Duration::from_secs(20), || {
        let error = cluster.refused(&leader, &["get", "file", "out"]);
        error.contains(&missing)
    });
    cluster.start_with(other, CRASH_STOP).unwrap();
    cluster.wait_for_members(2);
    wait_until("both hold both", Duration::from_secs(20), || {
        let held = cluster.json(&leader, &["store"]);
        held["files"].as_array().unwrap().len() == 2
    });
    cluster.kill(other);
    cluster.ok(&leader, &["get-versions", "file", "2", "out"]);
    assert_eq!(std::fs::read(dir.join("out_v0")).unwrap(), b"before");
    assert_eq!(std::fs::read(dir.join("out_v1")).unwrap(), b"alone");
}

#[test]
fn a_catalog_is_rebuilt_when_the_majority_is_gone_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 3);
    wait_until("all stand by", Duration::from_secs(20), || {
        let members = cluster.json("n1", &["list_mem"]);
        let members = members["members"].as_array().unwrap().clone();
        members.iter().all(|member| member["role"] != "member")
    });
    for (name, text) in [("a", "1"), ("b", "2"), ("b", "3")] {
        std::fs::write(dir.join("in"), text).unwrap();
        cluster.ok("n1", &["put", "in", name]);
    }
    let error = cluster.refused("n1", &["rebuild", "--yes"]);
    assert!(error.contains("nothing to rebuild"), "{error}");
    cluster.kill("n2");
    cluster.kill("n3");
    let error = cluster.refused("n1", &["put", "in", "c"]);
    assert!(error.contains("majority"), "{error}");
    let plan = cluster.refused("n1", &["rebuild"]);
    assert!(plan.contains("Voters that are gone: n"), "{plan}");
    assert!(plan.contains("files in its catalog: 2"), "{plan}");
    assert!(plan.contains("nothing was changed"), "{plan}");
    cluster.refused("n1", &["put", "in", "c"]);
    // Of a put without a majority it is not known whether it was carried out.
    let found = cluster.json("n1", &["rebuild", "--yes"])["files"].clone();
    assert!(found == 2 || found == 3, "{found}");
    cluster.ok("n1", &["put", "in", "c"]);
    cluster.ok("n1", &["get-versions", "b", "9", "out"]);
    assert_eq!(std::fs::read(dir.join("out_v0")).unwrap(), b"2");
    assert_eq!(std::fs::read(dir.join("out_v1")).unwrap(), b"3");
    // One that was thought lost follows the new log.
    cluster.start("n2");
    cluster.wait_for_members(2);
    cluster.ok("n2", &["get", "c", "out"]);
    wait_until("it has its copies", Duration::from_secs(20), || {
        let held = cluster.json("n2", &["store"]);
        held["files"].as_array().unwrap().len() >= 4
    });
}

#[test]
fn files_outlive_the_logs_of_all_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 3);
    for (name, text) in [("a", "1"), ("b", "2"), ("b", "3"), ("gone", "4")] {
        std::fs::write(dir.join("in"), text).unwrap();
        cluster.ok("n1", &["put", "in", name]);
    }
    cluster.ok("n1", &["delete", "gone"]);
    let names = ["n1", "n2", "n3"];
    names.iter().for_each(|name| cluster.kill(name));
    for name in names {
        for file in ["log", "format"] {
            std::fs::remove_file(dir.join(name).join(file)).unwrap();
        }
        cluster.start(name);
    }
    wait_until("all have joined", Duration::from_secs(30), || {
        let members = cluster.dlc("n2", &["--json", "list_mem"]).stdout;
        members.matches("\"alive\"").count() == 3
    });
    let error = cluster.refused("n1", &["get", "a", "out"]);
    assert!(error.contains("no coordinator"), "{error}");
    let found = cluster.json("n2", &["rebuild", "--yes"])["files"].clone();
    // The deleted one was removed from the disks, unless the kill came first.
    assert!(found == 2 || found == 3, "{found}");
    cluster.ok("n1", &["get", "a", "out"]);
    assert_eq!(std::fs::read(dir.join("out")).unwrap(), b"1");
    cluster.ok("n3", &["get-versions", "b", "9", "out"]);
    assert_eq!(std::fs::read(dir.join("out_v0")).unwrap(), b"2");
    assert_eq!(std::fs::read(dir.join("out_v1")).unwrap(), b"3");
    std::fs::write(dir.join("in"), "5").unwrap();
    assert_eq!(cluster.json("n1", &["put", "in", "b"])["version"], 2);
    wait_until("nothing was removed", Duration::from_secs(10), || {
        let held = cluster.json("n3", &["store"]);
        held["files"].as_array().unwrap().len() >= 4
    });
}

#[test]
fn who_dies_while_it_begins_a_cluster_begins_it_anew() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 1);
    let identity = dir.join("n1/identity.json");
    let remembered = || std::fs::read_to_string(&identity).unwrap();
    wait_until("the log has begun", Duration::from_secs(10), || {
        remembered().contains("\"forming\": false")
    });
    cluster.kill("n1");
    // As where the machine dies before the first write is safe: the file's header is all there is.
    let log = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.join("n1/log"))
        .unwrap();
    log.set_len(8).unwrap();
    let before = remembered().replace("\"forming\": false", "\"forming\": true");
    std::fs::write(&identity, before).unwrap();
    for name in ["n1", "n2"] {
        cluster.start(name);
    }
    cluster.wait_for_members(2);
    std::fs::write(dir.join("in"), "text").unwrap();
    cluster.ok("n2", &["put", "in", "file"]);
    cluster.ok("n1", &["get", "file", "out"]);
}
