//! Jobs on real processes: LeNet on digits, bad inputs among them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dlc::models::mnist::{self, Split};

use crate::harness::{Cluster, wait_until};

/// The first `count` test digits as `digit0.png`, … in `dir`, and their labels; none where the data set is missing.
pub fn digits(dir: &Path, count: usize) -> Option<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Ok(mut set) = mnist::read(&folder, Split::Test) else {
        eprintln!("SKIPPED: data/mnist is missing; `make data` fetches it");
        return None;
    };
    set.images.truncate(count * mnist::IMAGE_BYTES);
    set.labels.truncate(count);
    mnist::write_digits(&set, dir).unwrap();
    Some(set.labels)
}

/// Waits until job 0 is COMPLETED.
pub fn wait_for_job(cluster: &Cluster, node: &str) {
    wait_until("job 0 completes", Duration::from_secs(60), || {
        cluster.json(node, &["job_info"])["jobs"][0]["status"] == "COMPLETED"
    });
}

/// The rows of `0.csv`: file, and label or error.
pub fn result(cluster: &Cluster, node: &str) -> BTreeMap<String, Result<String, String>> {
    cluster.ok(node, &["get", "0.csv", "result.csv"]);
    let text = std::fs::read_to_string(cluster.dir.join("result.csv")).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.splitn(4, ',').collect();
        let outcome = if fields[3].is_empty() {
            Ok(fields[1].into())
        } else {
            Err(fields[3].into())
        };
        assert!(
            rows.insert(fields[0].to_string(), outcome).is_none(),
            "{} twice",
            fields[0]
        );
    }
    rows
}

#[test]
fn a_job_classifies_digits_and_names_bad_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(labels) = digits(dir, 200) else {
        return;
    };
    let cluster = Cluster::with_nodes(dir, 4);
    let trained = cluster.json("n2", &["train"]);
    assert_eq!(trained["models"][0]["name"], "lenet");
    assert_eq!(trained["models"][1]["name"], "resnet50");
    assert!(
        cluster
            .refused("n1", &["infer", "lenet", "digit.png", "5"])
            .contains("matches no file")
    );
    assert!(
        cluster
            .refused("n1", &["infer", "vgg", "digit.png", "5"])
            .contains("lenet")
    );
    let lines = (0..).zip(&labels);
    let lines = lines.map(|(number, label)| format!("digit{number}.png,{label}\n"));
    let text = format!("file,label\n{}", lines.collect::<String>());
    std::fs::write(dir.join("labels.csv"), text).unwrap();
    let uploaded = cluster.json("n1", &["upload_data", "digit.png", "200"]);
    assert_eq!(uploaded["labels"], 200, "{uploaded}");
    std::fs::write(dir.join("text"), "this is no picture").unwrap();
    cluster.ok("n1", &["put", "text", "digit900.png"]);
    let whole = std::fs::read(dir.join("digit0.png")).unwrap();
    std::fs::write(dir.join("cut"), &whole[..whole.len() / 2]).unwrap();
    cluster.ok("n1", &["put", "cut", "digit901.png"]);

    assert_eq!(
        cluster.json("n3", &["infer", "lenet", "digit.png", "8"])["job"],
        0
    );
    wait_for_job(&cluster, "n4");
    let rows = result(&cluster, "n1");
    assert_eq!(rows.len(), 202);
    let right = |(number, label): &(usize, &u8)| {
        rows[&format!("digit{number}.png")] == Ok(label.to_string())
    };
    let right = labels.iter().enumerate().filter(right).count();
    assert!(right >= 194, "{right} of 200 right");
    assert!(rows["digit900.png"].is_err() && rows["digit901.png"].is_err());

    let stats = cluster.json("n1", &["job_stats"])["jobs"][0].clone();
    assert_eq!(
        (&stats["count"], &stats["total"], &stats["errors"]),
        (&202.into(), &202.into(), &2.into())
    );
    assert_eq!(stats["assigned_nodes"].as_array().unwrap().len(), 0);
    let info = cluster.json("n1", &["job_info"])["jobs"][0].clone();
    let (accuracy, labelled) = (info["accuracy"].as_f64().unwrap(), &info["labelled"]);
    assert_eq!(labelled, 200, "{info}");
    assert!((accuracy * 200.0 - right as f64).abs() < 1e-6, "{info}");
    assert!(
        cluster
            .ok("n2", &["job_info"])
            .contains(&format!("{:.2} %", accuracy * 100.0))
    );
    let explained = cluster.json("n2", &["explain", "0"]);
    let queries = explained["nodes"].as_array().unwrap().iter();
    let queries: u64 = queries.map(|node| node["queries"].as_u64().unwrap()).sum();
    assert!(queries >= 202, "{explained}");
    assert!(
        cluster
            .refused("n1", &["explain", "7"])
            .contains("no job 7")
    );
    assert_eq!(
        (&info["type"], &info["batch_size"], &info["dataset"]),
        (&"lenet".into(), &8.into(), &"digit.png".into())
    );
    let tail = cluster.json("n1", &["tail", "0", "3"])["rows"].clone();
    let files: Vec<&str> = tail
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["file"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["digit199.png", "digit900.png", "digit901.png"]);
    assert!(
        tail[0]["error"].is_null() && tail[2]["label"].is_null(),
        "{tail}"
    );
}

#[test]
fn jobs_are_held_go_on_and_are_ended_by_whoever_asks() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    if digits(dir, 100).is_none() {
        return;
    }
    let cluster = Cluster::with_nodes(dir, 4);
    cluster.ok("n1", &["train", "lenet"]);
    cluster.ok("n1", &["upload_data", "digit.png", "20000"]);
    for job in ["0", "1"] {
        cluster.ok("n1", &["infer", "lenet", "digit.png", "1"]);
        let said = cluster.json("n2", &["pause", job]);
        assert_eq!(said["status"], "PAUSED", "{said}");
    }
    let job = |number: usize| cluster.json("n3", &["job_stats"])["jobs"][number].clone();
    // What ran is finished; from then on nothing moves.
    let mut before = job(0)["count"].clone();
    wait_until("the job stands", Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(500));
        let now = job(0)["count"].clone();
        std::mem::replace(&mut before, now.clone()) == now
    });
    let held = job(1)["count"].clone();
    assert_eq!(cluster.json("n4", &["weight", "0", "3"])["job"], 0);
    let going = cluster.json("n4", &["resume", "0"])["status"].clone();
    assert_eq!(going, "IN_PROGRESS");
    wait_until("it goes on", Duration::from_secs(20), || {
        job(0)["count"].as_u64() > before.as_u64()
    });
    assert_eq!(job(1)["count"], held, "the other is held");

    // Ended: its rows so far are its result, also after a while.
    assert_eq!(cluster.json("n1", &["cancel", "0"])["status"], "CANCELLED");
    let count = job(0)["count"].as_u64().unwrap();
    assert!(count < 20_000, "it was not in mid-job");
    wait_until("its file is made", Duration::from_secs(20), || {
        cluster.json("n2", &["get", "0.csv", "result.csv"])["version"] == 0
    });
    let text = std::fs::read_to_string(dir.join("result.csv")).unwrap();
    assert_eq!(text.lines().count() as u64, count + 1);
    assert_eq!(job(0)["count"], count);
    let shown = cluster.json("n1", &["job_info"]);
    assert_eq!(shown["jobs"][0]["status"], "CANCELLED");
    assert_eq!(shown["jobs"][1]["status"], "PAUSED");
    let error = cluster.refused("n1", &["resume", "0"]);
    assert!(error.contains("job 0 has ended"), "{error}");
    cluster.ok("n1", &["cancel", "1"]);
}
