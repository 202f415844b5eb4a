//! The commands about jobs, and their result rows.
//!
//! Decides: where rows are read from: the coordinator has them while the job runs, its result
//! file has them once it has ended.

use serde_json::json;

use super::client::{Client, ClientError};
use super::{Answer, answer, place, tables, transfer};
use crate::types::{FileName, JobId};
use crate::wire::client::{Explanation, JobStatus, NodeProfile, ROWS_MAX, Reply, Request, Row};
use crate::wire::schedule::{Accuracy, JobControl, Outcome};

/// `infer MODEL DATASET BATCH [--weight W]`
pub fn infer(
    client: &mut Client,
    model: &str,
    dataset: &str,
    batch: u32,
    weight: u32,
) -> Result<Answer, ClientError> {
    let request = client.request_id();
    let (model, dataset) = (model.to_string(), dataset.to_string());
    match client.request(&Request::Submit {
        request,
        model,
        dataset,
        batch,
        weight,
    })? {
        Reply::Submitted(job) => answer(
            format!("Inference job submitted\njob {job}"),
            json!({ "job": job.0 }),
        ),
        _ => Err(client.unexpected()),
    }
}

/// `cancel JOB`, `pause JOB`, `resume JOB`, `weight JOB W`
pub fn control_job(
    client: &mut Client,
    job: JobId,
    control: JobControl,
) -> Result<Answer, ClientError> {
    let request = client.request_id();
    let request = Request::Control {
        request,
        job,
        control,
    };
    let Reply::Status(status) = client.request(&request)? else {
        return Err(client.unexpected());
    };
    let text = match control {
        JobControl::Weight(weight) => format!("job {job} has weight {weight}"),
        _ => format!("job {job} is {}", status.as_str()),
    };
    answer(text, json!({ "job": job.0, "status": status.as_str() }))
}

/// `job_info`
pub fn job_info(client: &mut Client) -> Result<Answer, ClientError> {
    let Reply::Jobs(jobs) = client.request(&Request::Jobs)? else {
        return Err(client.unexpected());
    };
    let shown = jobs.iter().map(|job| {
        json!({
            "job": job.job.0, "type": job.model, "status": job.status.as_str(),
            "batch_size": job.batch, "dataset": job.dataset,
            "accuracy": job.accuracy.map(Accuracy::share),
            "labelled": job.accuracy.map(|accuracy| accuracy.labelled),
        })
    });
    answer(
        tables::jobs(&jobs),
        json!({ "jobs": shown.collect::<Vec<_>>() }),
    )
}

/// `job_stats`
pub fn job_stats(client: &mut Client) -> Result<Answer, ClientError> {
    let Reply::JobStats(jobs) = client.request(&Request::JobStats)? else {
        return Err(client.unexpected());
    };
    let shown = jobs.iter().map(|job| {
        let nodes: Vec<&str> = job
            .assigned_nodes
            .iter()
            .map(|node| node.as_str())
            .collect();
        json!({
            "job": job.job.0, "count": job.count, "total": job.total, "served": job.served, "errors": job.errors,
            "mean": job.mean, "std": job.std, "p25": job.p25, "p75": job.p75, "p99": job.p99,
            "rate_10s": job.rate_10s, "rate_total": job.rate_total, "assigned_nodes": nodes,
        })
    });
    answer(
        tables::job_stats(&jobs),
        json!({ "jobs": shown.collect::<Vec<_>>() }),
    )
}

/// The rows so far of a job that runs, as the file `local`; `None` where it has ended: its result
/// file is there then.
pub fn get_rows(
    client: &mut Client,
    name: &FileName,
    job: JobId,
    inputs: u32,
    local: &str,
) -> Result<Option<Answer>, ClientError> {
    let mut text = String::from(Row::CSV_HEADER);
    for from in (0..inputs).step_by(ROWS_MAX as usize) {
        match client.request(&Request::Rows {
            job,
            from,
            count: ROWS_MAX,
        })? {
            Reply::Rows(rows) => rows.iter().for_each(|row| text.push_str(&row.to_csv())),
            Reply::RowsFiled => return Ok(None),
            _ => return Err(client.unexpected()),
        }
    }
    let digest = crate::types::Digest::of(text.as_bytes());
    place::write_whole(local, text.as_bytes())?;
    let json = json!({
        "file": name.as_str(), "version": null, "bytes": text.len(), "digest": digest.to_string(),
    });
    let text =
        format!("File downloaded successfully (job {job} has no result file yet: the rows so far)");
    answer(text, json).map(Some)
}

/// `tail JOB N`
pub fn tail(client: &mut Client, job: JobId, count: u32) -> Result<Answer, ClientError> {
    let wanted = count.min(ROWS_MAX);
    let rows = match client.request(&Request::Tail { job, count: wanted })? {
        Reply::Rows(rows) => rows,
        Reply::RowsFiled => last_rows(client, job, count as usize)?,
        _ => return Err(client.unexpected()),
    };
    let lines: Vec<String> = rows
        .iter()
        .map(|row| row.to_csv().trim_end().to_string())
        .collect();
    let shown = rows.iter().map(|row| match &row.outcome {
        Outcome::Label { label, confidence } => {
            json!({ "file": row.file.as_str(), "label": label, "confidence": confidence, "error": null })
        }
        Outcome::Error(error) | Outcome::Unread(error) => {
            json!({ "file": row.file.as_str(), "label": null, "confidence": null, "error": error })
        }
    });
    let text = match lines.is_empty() && wanted > 0 {
        true => format!("no rows of job {job} so far"),
        false => lines.join("\n"),
    };
    answer(text, json!({ "rows": shown.collect::<Vec<_>>() }))
}

/// The last `count` rows of the result file of `job`.
fn last_rows(client: &mut Client, job: JobId, count: usize) -> Result<Vec<Row>, ClientError> {
    let name = FileName::of_job(job);
    let wrong = |why: String| ClientError::Other(format!("{name}: {why}"));
    let folder = tempfile::tempdir().map_err(|error| wrong(error.to_string()))?;
    let path = folder.path().join("rows.csv");
    transfer::get(client, &name, 1, false, |_| path.display().to_string())?;
    let mut reader = csv::Reader::from_path(&path).map_err(|error| wrong(error.to_string()))?;
    let mut rows = std::collections::VecDeque::new();
    for record in reader.records() {
        let record = record.map_err(|error| wrong(error.to_string()))?;
        rows.push_back(row(&record).ok_or_else(|| wrong(format!("the row {record:?}")))?);
        if rows.len() > count {
            rows.pop_front();
        }
    }
    Ok(rows.into())
}

/// A row of a result file.
fn row(record: &csv::StringRecord) -> Option<Row> {
    let file = FileName::new(record.get(0)?).ok()?;
    let (label, confidence, error) = (record.get(1)?, record.get(2)?, record.get(3)?);
    let outcome = match confidence.is_empty() {
        true => Outcome::Error(error.into()),
        false => Outcome::Label {
            label: label.into(),
            confidence: confidence.parse().ok()?,
        },
    };
    Some(Row { file, outcome })
}

/// `explain JOB`
pub fn explain(client: &mut Client, job: JobId) -> Result<Answer, ClientError> {
    let Reply::Explained(explained) = client.request(&Request::Explain(job))? else {
        return Err(client.unexpected());
    };
    let lines = [
        vec![queue(&explained)],
        table(&explained.nodes),
        reasons(&explained),
    ];
    let shown = explained.nodes.iter().map(|node| {
        json!({
            "node": node.node.as_str(), "tasks": node.tasks, "queries": node.queries,
            "seconds_per_query": node.per_query(), "idle_share": node.idle_share(),
            "task_seconds": {
                "wait": node.mean(node.times.waited), "fetch": node.mean(node.times.fetch),
                "decode": node.mean(node.times.decode),
                "inference": node.mean(node.times.inference), "reply": node.mean(node.reply()),
                "all": node.mean(node.elapsed),
            },
        })
    });
    let json = json!({
        "job": job.0, "status": explained.status.as_str(), "total": explained.total,
        "count": explained.count, "errors": explained.errors, "in_flight": explained.in_flight,
        "queued": explained.queued(), "weight": explained.weight, "batch": explained.batch,
        "weight_of_all": explained.weights, "nodes": shown.collect::<Vec<_>>(),
        "nodes_with_model": explained.able,
        "failed": explained.failed.iter().map(|(node, why)| {
            json!({ "node": node.as_str(), "reason": why })
        }).collect::<Vec<_>>(),
    });
    answer(lines.concat().join("\n"), json)
}

/// What is left, and who else is served.
fn queue(explained: &Explanation) -> String {
    let Explanation {
        job,
        status,
        total,
        count,
        in_flight,
        ..
    } = explained;
    let mut text = format!(
        "Job {job} is {}: {count} of {total} queries are finished, {in_flight} are on nodes, {} {}",
        status.as_str(),
        explained.queued(),
        match status {
            JobStatus::Cancelled => "were left",
            _ => "wait",
        }
    );
    if explained.errors > 0 {
        text += &format!("; {} of the rows are errors", explained.errors);
    }
    let is_open = matches!(status, JobStatus::Queued | JobStatus::InProgress);
    if is_open && explained.weights > explained.weight {
        text += &format!(
            "\nOther jobs are served too: its weight is {} of {}",
            explained.weight, explained.weights
        );
    }
    text
}

/// The parts of a mean task on each node, in milliseconds.
fn table(nodes: &[NodeProfile]) -> Vec<String> {
    if nodes.is_empty() {
        return Vec::new();
    }
    let titles = [
        "Node",
        "Tasks",
        "Queries",
        "Wait ms",
        "Fetch ms",
        "Decode ms",
        "Inference ms",
        "Reply ms",
        "Idle %",
    ];
    let millis = |seconds: f64| format!("{:.3}", seconds * 1e3);
    let rows = nodes.iter().map(|node| {
        vec![
            node.node.to_string(),
            node.tasks.to_string(),
            node.queries.to_string(),
            millis(node.mean(node.times.waited)),
            millis(node.mean(node.times.fetch)),
            millis(node.mean(node.times.decode)),
            millis(node.mean(node.times.inference)),
            millis(node.mean(node.reply())),
            node.idle_share()
                .map_or(String::new(), |share| format!("{:.1}", share * 100.0)),
        ]
    });
    vec![
        "A mean task on each node (fetch and decode are mostly done ahead, beside the inference \
         of the task before; wait is what the inference waited for them):"
            .into(),
        tables::table(&titles, rows),
    ]
}

/// Who has not got its network, if that matters still.
fn network(explained: &Explanation) -> Option<String> {
    let has_ended = matches!(
        explained.status,
        JobStatus::Completed | JobStatus::Cancelled
    );
    let (able, failed) = (explained.able, &explained.failed);
    match failed.first() {
        _ if has_ended => None,
        None if able == 0 => Some("No node has loaded its network yet".into()),
        None => None,
        Some((node, why)) if able == 0 => Some(format!(
            "No node could load its network. {node}: {why}. The job goes on once one has these \
             very files; `cancel {}` ends it",
            explained.job
        )),
        Some((node, why)) => Some(format!(
            "{able} nodes have its network; {} could not load it. {node}: {why}",
            failed.len()
        )),
    }
}

/// Where most of the time goes, and who is slow.
fn reasons(explained: &Explanation) -> Vec<String> {
    let sum = |part: fn(&NodeProfile) -> u64| explained.nodes.iter().map(part).sum::<u64>();
    let all = sum(|node| node.elapsed);
    if all == 0 {
        let began = "No task of it has brought a result since this coordinator began to lead";
        return network(explained)
            .into_iter()
            .chain([began.into()])
            .collect();
    }
    let parts = [
        ("inference", sum(|node| node.times.inference)),
        (
            "waiting for inputs to be read and decoded",
            sum(|node| node.times.waited),
        ),
        (
            "the way from and to the coordinator",
            sum(NodeProfile::reply),
        ),
    ];
    let largest = parts.iter().max_by_key(|(_, nanos)| *nanos);
    let mut lines: Vec<String> = network(explained).into_iter().collect();
    if let Some((what, nanos)) = largest {
        let percent = *nanos as f64 * 100.0 / all as f64;
        lines.push(format!("Most of a task's time is {what}: {percent:.0} %"));
    }
    let speed = |a: &&NodeProfile, b: &&NodeProfile| a.per_query().total_cmp(&b.per_query());
    let (fast, slow) = (
        explained.nodes.iter().min_by(speed),
        explained.nodes.iter().max_by(speed),
    );
    if let (Some(fast), Some(slow)) = (fast, slow)
        && slow.per_query() > 1.5 * fast.per_query()
    {
        let ratio = slow.per_query() / fast.per_query();
        lines.push(format!(
            "Slowest is {}: it takes {ratio:.1} times as long for a query as {}",
            slow.node, fast.node
        ));
    }
    lines
}
