//! `make demo`: the main job on real processes. An introducer and five nodes classify
//! all 10,000 MNIST test digits and the test part of the flowers, both at once, while a
//! worker and the coordinator are killed; the results are checked against the labels.
//! Exits 0 only if every check held.

#[path = "../cluster/harness.rs"]
#[allow(dead_code)]
mod harness;

mod data_sets;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use data_sets::DataSet;
use dlc::console::client::Client;
use dlc::console::command::{self, Command};
use dlc::console::{Answer, run};
use harness::Cluster;
use serde_json::Value;

const NODES: usize = 5;
const BATCH: &str = "4";
/// Share of the flowers, in percent, at which a worker and then the coordinator are
/// killed: nearly all of the work is theirs.
const KILLS: [u64; 2] = [20, 60];

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
    run::run(client, &command.context("a command")?, &mut |_| false)
        .with_context(|| line.to_string())
}

fn demo() -> Result<()> {
    let started = Instant::now();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("run/demo");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).context("the last demo's directory")?;
    }
    let sets = [
        data_sets::digits(root, &dir.join("digits"))?,
        data_sets::flowers(root, &dir.join("flowers"))?,
    ];
    println!("an introducer and {NODES} nodes on this machine:");
    let mut cluster = Cluster::with_nodes(&dir, NODES);
    let mut client = Client::new(cluster.nodes["n1"].addr);
    show(&mut client, "list_mem")?;
    show(&mut client, "list_self")?;
    show(&mut client, "train")?;
    for (set, folder) in sets.iter().zip(["digits", "flowers"]) {
        let (before, count) = (Instant::now(), set.labels.len());
        let folder = dir.join(folder);
        let upload = format!("upload_data {}/{} {count}", folder.display(), set.name);
        show(&mut client, &upload)?;
        println!(
            "({:.0} files/s, 4 copies each)\n",
            count as f64 / before.elapsed().as_secs_f64()
        );
    }
    show(&mut client, "ls digit0.png")?;

    let before = Instant::now();
    let mut jobs = Vec::new();
    for set in &sets {
        let line = format!("infer {} {} {BATCH}", set.model, set.name);
        let answer = show(&mut client, &line)?;
        let id = answer.json["job"].as_u64().context("a job id")?;
        jobs.push(Job { id, set });
    }
    let mut client = kill_in_mid_job(&mut cluster, client, &jobs)?;
    for job in &jobs {
        wait_for_completion(&mut client, job.id)?;
    }
    println!(
        "(classified in {:.1} s, both kills included)\n",
        before.elapsed().as_secs_f64()
    );

    show(&mut client, "job_info")?;
    show(&mut client, "job_stats")?;
    show(&mut client, "list_mem")?;
    for job in &jobs {
        show(&mut client, &format!("tail {} 3", job.id))?;
        let result = dir.join(format!("{}.csv", job.id));
        let get = format!("get {}.csv {}", job.id, result.display());
        show(&mut client, &get)?;
        job.set.check(&std::fs::read_to_string(&result)?)?;
        println!();
    }
    println!("demo passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// A data set that is being classified.
struct Job<'a> {
    id: u64,
    set: &'a DataSet,
}

impl Job<'_> {
    /// Finished queries.
    fn count(&self, client: &mut Client) -> Result<u64> {
        stats(client, self.id)?["count"].as_u64().context("a count")
    }

    fn total(&self) -> u64 {
        self.set.labels.len() as u64
    }
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

/// A node other than the coordinator `leader`.
fn worker(cluster: &Cluster, leader: &str) -> Result<String> {
    let mut names = cluster.nodes.keys().rev();
    let worker = names.find(|name| *name != leader);
    Ok(worker.context("a worker")?.clone())
}

/// Kills a worker and then the coordinator at the shares of [`KILLS`] of the last job,
/// the others being in progress too; gives a client of a survivor.
fn kill_in_mid_job(cluster: &mut Cluster, mut client: Client, jobs: &[Job<'_>]) -> Result<Client> {
    let measured = jobs.last().context("a job")?;
    for (what, percent) in ["worker", "coordinator"].into_iter().zip(KILLS) {
        let leader = coordinator(&mut client)?;
        let victim = match what {
            "worker" => worker(cluster, &leader)?,
            _ => leader,
        };
        let mut others = cluster.nodes.iter().filter(|(name, _)| **name != victim);
        client = Client::new(others.next().context("a survivor")?.1.addr);
        while measured.count(&mut client)? * 100 < percent * measured.total() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let before: Vec<u64> = jobs
            .iter()
            .map(|job| job.count(&mut client))
            .collect::<Result<_>>()?;
        cluster.kill(&victim);
        let shown: Vec<String> = jobs
            .iter()
            .zip(&before)
            .map(|(job, count)| format!("{count} of {} {}", job.total(), job.set.name))
            .collect();
        println!("kill -9 of the {what} {victim} at {}", shown.join(" and "));
        for (job, before) in jobs.iter().zip(before) {
            let count = job.count(&mut client)?;
            let name = &job.set.name;
            ensure!(
                count < job.total(),
                "the kill of {victim} was not in mid-job: {name} had ended"
            );
            ensure!(
                count >= before,
                "{name}: finished queries were forgotten: {before}, then {count}"
            );
        }
    }
    println!();
    Ok(client)
}

fn wait_for_completion(client: &mut Client, job: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(300);
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
