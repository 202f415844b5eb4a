//! `make demo`: the main job on real processes. An introducer and five nodes classify
//! all 10,000 MNIST test digits while a worker and the coordinator are killed; the
//! result is checked against the labels. Exits 0 only if every check held.

#[path = "../cluster/harness.rs"]
#[allow(dead_code)]
mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dlc::console::client::Client;
use dlc::console::command::{self, Command};
use dlc::console::{Answer, run};
use dlc::models::mnist::{self, Split};
use harness::Cluster;
use serde_json::Value;

const NODES: usize = 5;
const DIGITS: u64 = 10_000;
const BATCH: &str = "4";
/// Share of the job, in percent, at which a worker and then the coordinator are killed.
const KILLS: [u64; 2] = [20, 60];
/// Smallest accepted accuracy, in percent.
const ACCURACY: f64 = 98.9;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo FAILED: {error:#}\nlogs are under run/demo/");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command as typed at the console, and shows both.
fn show(client: &mut Client, line: &str) -> Result<Answer> {
    println!("$ {line}");
    let answer = quiet(client, line)?;
    println!("{}\n", answer.text);
    Ok(answer)
}

fn quiet(client: &mut Client, line: &str) -> Result<Answer> {
    let command: Option<Command> = command::parse(&command::words(line)?)?;
    run::run(client, &command.context("a command")?).with_context(|| line.to_string())
}

fn demo() -> Result<()> {
    let started = Instant::now();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("run/demo");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).context("the last demo's directory")?;
    }
    let labels = write_digits(root, &dir)?;
    println!("an introducer and {NODES} nodes on this machine:");
    let mut cluster = Cluster::with_nodes(&dir, NODES);
    let mut client = Client::new(cluster.nodes["n1"].addr);
    show(&mut client, "list_mem")?;
    show(&mut client, "list_self")?;
    show(&mut client, "train")?;

    let before = Instant::now();
    show(
        &mut client,
        &format!("upload_data {}/digits/digit.png {DIGITS}", dir.display()),
    )?;
    println!(
        "({:.0} files/s, 4 copies each)\n",
        DIGITS as f64 / before.elapsed().as_secs_f64()
    );
    show(&mut client, "ls digit0.png")?;

    let before = Instant::now();
    let answer = show(&mut client, &format!("infer lenet digit.png {BATCH}"))?;
    let job = answer.json["job"].as_u64().context("a job id")?;
    let mut client = kill_in_mid_job(&mut cluster, client, job)?;
    wait_for_completion(&mut client, job)?;
    println!(
        "(classified in {:.1} s, both kills included)\n",
        before.elapsed().as_secs_f64()
    );

    show(&mut client, "job_info")?;
    show(&mut client, "job_stats")?;
    show(&mut client, "list_mem")?;
    show(&mut client, "tail 0 3")?;
    let result = dir.join("result.csv");
    show(&mut client, &format!("get {job}.csv {}", result.display()))?;
    check(&result, &labels)?;
    println!("demo passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Writes the test digits as PNG files; their labels by number.
fn write_digits(root: &Path, dir: &Path) -> Result<Vec<u8>> {
    let digits =
        mnist::read(&root.join("data/mnist"), Split::Test).context("run `make data` first")?;
    mnist::write_digits(&digits, &dir.join("digits"))?;
    ensure!(
        digits.len() as u64 == DIGITS,
        "{} test digits",
        digits.len()
    );
    Ok(digits.labels)
}

fn stats(client: &mut Client, job: u64) -> Result<Value> {
    let answer = quiet(client, "job_stats")?;
    let jobs = answer.json["jobs"].as_array().cloned().unwrap_or_default();
    jobs.into_iter()
        .find(|shown| shown["job"] == job)
        .context("the job in job_stats")
}

fn coordinator(client: &mut Client) -> Result<String> {
    let answer = quiet(client, "list_mem")?;
    let members = answer.json["members"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let leader = members
        .into_iter()
        .find(|member| member["role"] == "coordinator");
    Ok(leader.context("a coordinator")?["name"]
        .as_str()
        .context("its name")?
        .into())
}

/// Kills a worker and then the coordinator at the shares of [`KILLS`]; gives a client of a survivor.
fn kill_in_mid_job(cluster: &mut Cluster, mut client: Client, job: u64) -> Result<Client> {
    for (at, percent) in KILLS.iter().enumerate() {
        let leader = coordinator(&mut client)?;
        let victim = if at == 0 {
            cluster
                .nodes
                .keys()
                .rev()
                .find(|name| **name != leader)
                .context("a worker")?
                .clone()
        } else {
            leader
        };
        let survivor = cluster
            .nodes
            .iter()
            .find(|(name, _)| **name != victim)
            .context("a survivor")?
            .1
            .addr;
        client = Client::new(survivor);
        let reached = loop {
            let count = stats(&mut client, job)?["count"]
                .as_u64()
                .context("a count")?;
            if count * 100 >= percent * DIGITS {
                break count;
            }
        };
        cluster.kill(&victim);
        let what = if at == 0 { "worker" } else { "coordinator" };
        println!("kill -9 of the {what} {victim} at {reached} of {DIGITS}");
        ensure!(reached < DIGITS, "the kill of {victim} was not in mid-job");
        let count = stats(&mut client, job)?["count"]
            .as_u64()
            .context("a count")?;
        ensure!(
            count < DIGITS,
            "the kill of {victim} was not in mid-job: the job had ended"
        );
        ensure!(
            count >= reached,
            "finished queries were forgotten: {reached}, then {count}"
        );
    }
    Ok(client)
}

fn wait_for_completion(client: &mut Client, job: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let jobs = quiet(client, "job_info")?.json;
        let jobs = jobs["jobs"].as_array().cloned().unwrap_or_default();
        let shown = jobs
            .iter()
            .find(|shown| shown["job"] == job)
            .context("the job in job_info")?;
        match shown["status"].as_str() {
            Some("COMPLETED") => return Ok(()),
            Some("FAILED" | "CANCELLED") => bail!("the job ended as {}", shown["status"]),
            _ => ensure!(
                Instant::now() < end,
                "the job does not end: {}",
                stats(client, job)?
            ),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Each input exactly once, and right often enough.
fn check(result: &PathBuf, labels: &[u8]) -> Result<()> {
    let text = std::fs::read_to_string(result)?;
    let mut lines = text.lines();
    ensure!(
        lines.next() == Some("file,label,confidence,error"),
        "the header of the result file"
    );
    let mut rows: BTreeMap<usize, String> = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let number = fields[0]
            .strip_prefix("digit")
            .and_then(|rest| rest.strip_suffix(".png"));
        let number: usize = number
            .and_then(|digits| digits.parse().ok())
            .with_context(|| line.to_string())?;
        ensure!(
            number < labels.len() && fields.len() == 4 && fields[3].is_empty(),
            "row {line:?}"
        );
        ensure!(
            rows.insert(number, fields[1].into()).is_none(),
            "digit{number}.png has two rows"
        );
    }
    ensure!(
        rows.len() == labels.len(),
        "{} rows for {} inputs",
        rows.len(),
        labels.len()
    );
    let right = rows
        .iter()
        .filter(|(number, label)| labels[**number].to_string() == **label)
        .count();
    let accuracy = right as f64 * 100.0 / labels.len() as f64;
    println!(
        "{} rows, each input exactly once; accuracy {accuracy:.2} %",
        rows.len()
    );
    ensure!(accuracy >= ACCURACY, "accuracy is below {ACCURACY} %");
    Ok(())
}
