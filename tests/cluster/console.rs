//! The stdin console through a pipe, table by table.

use std::time::Duration;

use crate::harness::Cluster;

#[test]
fn the_console_speaks_the_seeds_words() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = Cluster::new(dir);
    for name in ["n1", "n2", "n3", "n4"] {
        // Not joined: the console does that.
        cluster.start_with(name, &[]).unwrap();
    }
    let patience = Duration::from_secs(30);
    let say = |cluster: &mut Cluster, node: &str, line: &str, lines: usize| -> Vec<String> {
        let process = cluster.nodes.get_mut(node).unwrap();
        process.type_line(line);
        (0..lines)
            .map(|_| {
                process
                    .line(patience)
                    .unwrap_or_else(|| panic!("{node}: {line}"))
            })
            .collect()
    };
    let early = say(&mut cluster, "n1", "list_mem", 1);
    assert!(
        early[0].contains("not joined") && early[0].contains("join"),
        "{early:?}"
    );
    for name in ["n1", "n2", "n3", "n4"] {
        let joined = say(&mut cluster, name, "join", 1);
        assert!(
            joined[0].starts_with(&format!("Joined as {name}:")),
            "{joined:?}"
        );
    }
    cluster.wait_for_members(4);
    let own = say(&mut cluster, "n1", "list_self", 1);
    assert!(
        own[0].starts_with("n1:") && own[0].len() == "n1:23:04:40".len(),
        "{own:?}"
    );
    let members = say(&mut cluster, "n1", "list_mem", 8 + 4);
    assert_eq!(members[1], "| Process IDs |");
    assert_eq!(members[3], format!("| {} |", own[0]));
    assert!(members[8].starts_with("n1 at 127.0.0.1:"), "{members:?}");
    assert!(
        members[8].contains(": alive, incarnation 1, "),
        "{members:?}"
    );

    std::fs::write(dir.join("vm1.log"), "hello\n").unwrap();
    let local = dir.join("vm1.log").display().to_string();
    let put = say(&mut cluster, "n1", &format!("put {local} vm1.log"), 2);
    assert_eq!(put[0], "File uploaded successfully");
    assert!(put[1].starts_with("version 0, 6 bytes"), "{put:?}");
    assert_eq!(
        say(&mut cluster, "n2", &format!("get vm1.log {local}.copy"), 1),
        ["File downloaded successfully"]
    );
    let versions = say(
        &mut cluster,
        "n2",
        &format!("get-versions vm1.log 1 {local}"),
        2,
    );
    assert!(versions[1].contains("vm1_v0.log"), "{versions:?}");
    assert_eq!(std::fs::read(dir.join("vm1_v0.log")).unwrap(), b"hello\n");
    assert_eq!(
        say(&mut cluster, "n3", "ls vm1.log", 8)[1],
        "| Process IDs |"
    );
    let store = say(&mut cluster, "n3", "store", 5);
    assert_eq!(
        (store[1].as_str(), store[3].as_str()),
        ("| SDFS File Names |", "|   vm1_v0.log    |")
    );
    assert_eq!(
        say(&mut cluster, "n4", "job_info", 4)[1],
        "| Job ID | Job Type | Job Status | Batch_size | Dataset |"
    );
    assert!(
        say(&mut cluster, "n4", "job_stats", 4)[1]
            .contains("| 10_sec_rate | total_rate | assigned_nodes |")
    );
    assert_eq!(
        say(&mut cluster, "n4", "delete vm1.log", 1),
        ["File deleted successfully"]
    );

    for (bad, says) in [
        ("frobnicate", "unknown command"),
        ("grep x", "unknown command"),
        ("cancel 0", "no job 0"),
        ("put onlyone", "usage: put LOCAL SDFS"),
        ("get vm1.log x", "vm1.log"),
        ("infer lenet digit.png 0", "BATCH"),
        ("infer lenet digit.png five", "BATCH"),
        ("put 'open quote", "quote"),
    ] {
        let error = say(&mut cluster, "n1", bad, 1);
        assert!(
            error[0].starts_with("error: ") && error[0].contains(says),
            "{bad}: {error:?}"
        );
    }
    // The end of the input leaves the node running.
    cluster.nodes.get_mut("n1").unwrap().close_stdin();
    cluster.ok("n1", &["list_self"]);
    assert_eq!(say(&mut cluster, "n2", "leave", 1), ["Left the cluster"]);
    let status = cluster
        .nodes
        .get_mut("n2")
        .unwrap()
        .wait(Duration::from_secs(15));
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}
