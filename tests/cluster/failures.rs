//! kill -9 and restarts on real processes: nothing acknowledged is lost, jobs finish,
//! each input has one row.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Cluster, wait_until};
use crate::jobs::{digits, result, wait_for_job};

fn copies(cluster: &Cluster, node: &str, name: &str) -> usize {
    cluster.json(node, &["ls", name])["replicas"]
        .as_array()
        .unwrap()
        .len()
}

#[test]
fn a_job_survives_a_worker_and_the_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(_) = digits(dir, 500) else { return };
    let mut cluster = Cluster::with_nodes(dir, 5);
    cluster.ok("n1", &["train", "lenet"]);
    cluster.ok("n1", &["upload_data", "digit.png", "3000"]);
    let leader = cluster.coordinator("n1").unwrap();
    let mut others: Vec<String> = cluster
        .nodes
        .keys()
        .filter(|name| **name != leader)
        .cloned()
        .collect();
    let worker = others.pop().unwrap();
    let client = others[0].clone();
    cluster.ok(&client, &["infer", "lenet", "digit.png", "1"]);
    let count = |cluster: &Cluster| {
        cluster.json(&client, &["job_stats"])["jobs"][0]["count"]
            .as_u64()
            .unwrap()
    };
    wait_until("a tenth is done", Duration::from_secs(30), || {
        count(&cluster) >= 300
    });
    cluster.kill(&worker);
    assert!(count(&cluster) < 3000, "killed in mid-job");
    cluster.kill(&leader);
    wait_for_job(&cluster, &client);
    let rows = result(&cluster, &client);
    assert_eq!(rows.len(), 3000);
    assert!(rows.values().all(Result::is_ok));
    assert_eq!(count(&cluster), 3000);
    cluster.wait_for_members(3);
    assert_ne!(cluster.coordinator(&client).unwrap(), leader);
    wait_until(
        "three copies on three nodes",
        Duration::from_secs(30),
        || copies(&cluster, &client, "0.csv") == 3,
    );

    // The dead come back on their disks and take part again.
    cluster.start(&worker);
    cluster.start(&leader);
    cluster.wait_for_members(5);
    wait_until("four copies again", Duration::from_secs(30), || {
        copies(&cluster, &worker, "0.csv") == 4
    });
    assert_eq!(result(&cluster, &worker).len(), 3000);
}

#[test]
fn a_put_right_after_a_death_waits_until_it_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 3);
    let leader = cluster.coordinator("n1").unwrap();
    let mut others = cluster
        .nodes
        .keys()
        .filter(|name| **name != leader)
        .cloned();
    let (victim, client) = (others.next().unwrap(), others.next().unwrap());
    drop(others);
    std::fs::write(dir.join("in"), "soon").unwrap();
    cluster.kill(&victim);
    let receipt = cluster.json(&client, &["put", "in", "file"]);
    assert_eq!(receipt["replicas"].as_array().unwrap().len(), 2);
}

#[test]
fn a_whole_cluster_restarts_on_its_disks() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 4);
    for number in 0..20u8 {
        std::fs::write(dir.join("in"), vec![number; 1000 * number as usize]).unwrap();
        cluster.ok("n1", &["put", "in", &format!("file{number}")]);
    }
    for number in 1..=4 {
        cluster.kill(&format!("n{number}"));
    }
    for number in [3, 1, 4, 2] {
        cluster.start(&format!("n{number}"));
    }
    cluster.wait_for_members(4);
    for number in 0..20u8 {
        cluster.ok("n2", &["get", &format!("file{number}"), "out"]);
        assert_eq!(
            std::fs::read(dir.join("out")).unwrap(),
            vec![number; 1000 * number as usize]
        );
    }
    std::fs::write(dir.join("in"), "next").unwrap();
    assert_eq!(cluster.json("n3", &["put", "in", "file7"])["version"], 1);
}

#[test]
fn leave_and_signals_end_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 5);
    cluster.ok("n2", &["leave"]);
    let status = cluster
        .nodes
        .get_mut("n2")
        .unwrap()
        .wait(Duration::from_secs(15));
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    cluster.nodes.remove("n2");
    cluster.wait_for_members(4);
    for signal in [Signal::TERM, Signal::INT] {
        let name = cluster.nodes.keys().last().unwrap().clone();
        let mut node = cluster.nodes.remove(&name).unwrap();
        node.signal(signal);
        let status = node
            .wait(Duration::from_secs(15))
            .unwrap_or_else(|| panic!("{name} does not stop"));
        assert_eq!(status.code(), Some(0), "{name}");
    }
    cluster.introducer.signal(Signal::TERM);
    let status = cluster.introducer.wait(Duration::from_secs(10));
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}

#[test]
fn fewer_than_four_nodes_keep_what_they_can() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 1);
    std::fs::write(dir.join("in"), "alone").unwrap();
    assert_eq!(
        cluster.json("n1", &["put", "in", "file"])["replicas"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    for (count, name) in [(2, "n2"), (3, "n3"), (4, "n4"), (5, "n5")] {
        cluster.start(name);
        cluster.wait_for_members(count);
        let wanted = count.min(4);
        wait_until("copies follow", Duration::from_secs(20), || {
            copies(&cluster, "n1", "file") == wanted
        });
    }
    // Killed in the middle of the log's life, with the voters grown from one to five.
    cluster.kill("n1");
    wait_until(
        "the file outlives its first node",
        Duration::from_secs(20),
        || cluster.dlc("n2", &["get", "file", "out"]).status == 0,
    );
    assert_eq!(std::fs::read(dir.join("out")).unwrap(), b"alone");
}

#[test]
fn a_minority_says_who_is_missing_and_reads_only_what_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::with_nodes(dir, 3);
    std::fs::write(dir.join("in"), "kept").unwrap();
    cluster.ok("n1", &["put", "in", "file"]);
    // All three vote by then: otherwise one might be a majority.
    wait_until("all stand by", Duration::from_secs(20), || {
        let members = cluster.json("n1", &["list_mem"]);
        let members = members["members"].as_array().unwrap().clone();
        members.iter().all(|member| member["role"] != "member")
    });
    cluster.kill("n2");
    cluster.kill("n3");
    let mut error = String::new();
    for command in [
        &["put", "in", "file"][..],
        &["get", "file", "out"],
        &["delete", "file"],
    ] {
        error = cluster.refused("n1", command);
        // Whose death was known first may be no voter any more: then only the other one helps.
        let missing = ["(missing: n2)", "(missing: n3)", "(missing: n2, n3)"];
        let names_them = missing.iter().any(|names| error.contains(names));
        assert!(
            error.contains("majority") && names_them,
            "{command:?}: {error}"
        );
    }
    cluster.ok("n1", &["get", "--stale", "file", "out"]);
    assert_eq!(std::fs::read(dir.join("out")).unwrap(), b"kept");
    cluster.start(if error.contains("n3") { "n3" } else { "n2" });
    wait_until("two of three go on", Duration::from_secs(20), || {
        cluster.dlc("n1", &["put", "in", "file"]).status == 0
    });
}
