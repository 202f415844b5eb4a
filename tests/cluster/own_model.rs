//! A network of one's own: a TorchScript file and a manifest in a model directory are all
//! that it takes.

use std::path::Path;
use std::time::Duration;

use dlc::models::script;
use image::{GrayImage, Luma};

use crate::harness::{Cluster, wait_until};
use crate::jobs::{result, wait_for_job};

/// Tells which column of a 4 x 4 image is the brightest.
const MANIFEST: &str = r#"
name = "columns"
architecture = "torchscript"
weights = "columns.pt"
input = { channels = 1, height = 4, width = 4 }
mean = [0.0]
std = [1.0]
labels = ["first", "second", "third", "fourth"]
"#;

/// It prints, as people's networks do while they are being made.
const FORWARD: &str = "def forward(self: __torch__.Network, x: Tensor) -> Tensor:\n  \
     print(\"columns\")\n  return torch.sum(x, [1, 2])\n";

/// Divides the smallest integer by -1 on a batch of one, which ends its process.
const DEADLY: &str = "def forward(self: __torch__.Network, x: Tensor) -> Tensor:\n  \
     least = torch.sub(-9223372036854775807, torch.size(x, 0))\n  \
     quotient = torch.floordiv(least, torch.sub(torch.size(x, 0), 2))\n  \
     return torch.mul(torch.sum(x, [1, 2]), quotient)\n";
/// Takes one image at a time.
const SINGLE: &str = "def forward(self: __torch__.Network, x: Tensor) -> Tensor:\n  \
     return torch.sum(torch.view(x, [1, 4, 4]), [1])\n";

const PATIENCE: Duration = Duration::from_secs(30);

/// A model directory with the network, and with one that has no weights.
fn models(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("columns.toml"), MANIFEST).unwrap();
    std::fs::write(dir.join("columns.pt"), script::archive(FORWARD)).unwrap();
    let absent = MANIFEST.replace("columns", "absent");
    std::fs::write(dir.join("absent.toml"), absent).unwrap();
}

/// Two nodes on that directory.
fn cluster(dir: &Path) -> Cluster {
    models(&dir.join("models"));
    let mut cluster = Cluster::new(dir);
    cluster.models = dir.join("models");
    for name in ["n1", "n2"] {
        cluster.start(name);
    }
    cluster.wait_for_members(2);
    cluster
}

#[test]
fn a_network_of_ones_own_is_published_and_served() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cluster = cluster(dir);
    let trained = cluster.json("n1", &["train"]);
    assert_eq!(trained["models"][0]["name"], "columns");
    assert_eq!(trained["skipped"][0], "absent");
    let again = cluster.json("n2", &["train", "columns"]);
    assert_eq!(again["models"][0]["digest"], trained["models"][0]["digest"]);

    for column in 0..4 {
        let image = GrayImage::from_fn(4, 4, |x, _| Luma([if x == column { 200 } else { 9 }]));
        image.save(dir.join(format!("bar{column}.png"))).unwrap();
    }
    cluster.ok("n1", &["upload_data", "bar.png", "40"]);
    cluster.ok("n2", &["infer", "columns", "bar.png", "3"]);
    wait_for_job(&cluster, "n1");
    let rows = result(&cluster, "n2");
    assert_eq!(rows.len(), 40);
    for (number, label) in ["first", "second", "third", "fourth"]
        .iter()
        .cycle()
        .take(40)
        .enumerate()
    {
        assert_eq!(rows[&format!("bar{number}.png")], Ok(label.to_string()));
    }
    // Counted where it ran: 14 batches on one of the nodes or the other.
    let batches = || -> u64 {
        let nodes = ["n1", "n2"].iter();
        let counts = nodes.map(|node| cluster.json(node, &["stats"])["batches_script"].as_u64());
        counts.map(Option::unwrap_or_default).sum()
    };
    wait_until("14 batches are counted", Duration::from_secs(5), || {
        batches() >= 14
    });

    // One that ends its process costs nobody a node; one that takes single images only is
    // refused before a job finds out.
    for (forward, reason) in [(DEADLY, "ended the process"), (SINGLE, "invalid for input")] {
        let name = if forward == DEADLY {
            "deadly"
        } else {
            "single"
        };
        let models = dir.join("models");
        let manifest = MANIFEST.replace("columns", name);
        std::fs::write(models.join(format!("{name}.toml")), manifest).unwrap();
        let archive = script::archive(forward);
        std::fs::write(models.join(format!("{name}.pt")), archive).unwrap();
        let refused = cluster.refused("n1", &["train", name]);
        assert!(refused.contains(reason), "{refused}");
    }
    cluster.wait_for_members(2);
}

#[test]
fn a_network_that_no_node_can_load_is_refused_until_a_good_one_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut cluster = cluster(dir);
    GrayImage::new(4, 4).save(dir.join("bar.png")).unwrap();
    cluster.ok("n1", &["upload_data", "bar.png", "4"]);

    // One whose outputs are not as many as its labels.
    let wrong = MANIFEST.replace("\"fourth\"", "\"fourth\", \"fifth\"");
    std::fs::write(dir.join("models/columns.toml"), wrong).unwrap();
    let refused = cluster.refused("n1", &["train", "columns"]);
    assert!(refused.contains("5 labels for 4 outputs"), "{refused}");
    let refused = until_refused(&cluster);
    assert!(refused.contains("5 labels for 4 outputs"), "{refused}");
    std::fs::write(dir.join("models/columns.toml"), MANIFEST).unwrap();
    cluster.ok("n1", &["train", "columns"]);
    cluster.ok("n2", &["infer", "columns", "bar.png", "2"]);
    wait_until("the job completes", PATIENCE, || completes(&cluster));

    // A worse one does not take its place.
    let archive = script::archive(FORWARD);
    std::fs::write(dir.join("models/columns.pt"), script::archive(SINGLE)).unwrap();
    // Twice, as people do: nobody may have loaded the good one again in between.
    for _ in 0..2 {
        let refused = cluster.refused("n1", &["train", "columns"]);
        assert!(refused.contains("before serves on"), "{refused}");
    }
    cluster.ok("n2", &["infer", "columns", "bar.png", "2"]);
    wait_until("the job completes", PATIENCE, || completes(&cluster));
    std::fs::write(dir.join("models/columns.pt"), archive).unwrap();

    // Its files are deleted, and nobody has them in memory any more: what serves, stays.
    for name in ["models/columns.pt", "models/columns.toml"] {
        cluster.ok("n1", &["delete", name]);
    }
    for name in ["n1", "n2"] {
        cluster.kill(name);
    }
    for name in ["n1", "n2"] {
        cluster.start(name);
    }
    cluster.wait_for_members(2);
    cluster.ok("n2", &["infer", "columns", "bar.png", "2"]);
    wait_until("the job completes", PATIENCE, || completes(&cluster));
    cluster.ok("n1", &["train", "columns"]);
    cluster.ok("n2", &["infer", "columns", "bar.png", "2"]);
    wait_until("the job completes", PATIENCE, || completes(&cluster));
}

/// Why `infer` is refused; a job that slips in before all nodes have failed says the same, and
/// is ended.
fn until_refused(cluster: &Cluster) -> String {
    let mut refusal = None;
    wait_until("the job is refused", PATIENCE, || {
        let said = cluster.dlc("n1", &["--json", "infer", "columns", "bar.png", "2"]);
        if said.status == 1 {
            refusal = Some(said.stderr);
            return true;
        }
        let said: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
        let job = said["job"].to_string();
        let mut explained = serde_json::Value::Null;
        wait_until("it is explained", PATIENCE, || {
            explained = cluster.json("n1", &["explain", &job]);
            explained["failed"][0]["reason"].is_string()
        });
        assert_eq!(explained["nodes_with_model"], 0);
        cluster.ok("n1", &["cancel", &job]);
        false
    });
    refusal.expect("a reason")
}

/// Whether the newest job is complete.
fn completes(cluster: &Cluster) -> bool {
    let shown = cluster.json("n1", &["job_info"]);
    let newest = shown["jobs"].as_array().and_then(|jobs| jobs.last());
    newest.is_some_and(|job| job["status"] == "COMPLETED")
}
