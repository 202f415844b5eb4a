//! Tables as the seed shows them, by prettytable.

use prettytable::format::{Alignment, consts::FORMAT_NO_LINESEP_WITH_TITLE};
use prettytable::{Cell, Row, Table};

use crate::types::Version;
use crate::wire::client::{JobInfo, JobStats};
use crate::wire::schedule::Accuracy;

/// A table with centred cells, without a final line break.
pub fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.set_format(*FORMAT_NO_LINESEP_WITH_TITLE);
    let centred = |text: &str| Cell::new_align(text, Alignment::CENTER);
    table.set_titles(Row::new(
        titles.iter().map(|title| centred(title)).collect(),
    ));
    for row in rows {
        table.add_row(Row::new(row.iter().map(|cell| centred(cell)).collect()));
    }
    table.to_string().trim_end().to_string()
}

/// `Process IDs`.
pub fn process_ids<'a>(ids: impl IntoIterator<Item = &'a String>) -> String {
    table(&["Process IDs"], ids.into_iter().map(|id| vec![id.clone()]))
}

/// `job_info`.
pub fn jobs(jobs: &[JobInfo]) -> String {
    // As the seed has it, unless there is something to show.
    let graded = jobs.iter().any(|job| job.accuracy.is_some());
    let row = |job: &JobInfo| {
        let mut cells = vec![
            job.job.to_string(),
            job.model.clone(),
            job.status.as_str().into(),
            job.batch.to_string(),
            job.dataset.clone(),
        ];
        if graded {
            let share = job.accuracy.and_then(Accuracy::share);
            cells.push(share.map_or(String::new(), |it| format!("{:.2} %", it * 100.0)));
        }
        cells
    };
    let mut titles = vec!["Job ID", "Job Type", "Job Status", "Batch_size", "Dataset"];
    if graded {
        titles.push("Accuracy");
    }
    table(&titles, jobs.iter().map(row))
}

/// `job_stats`.
pub fn job_stats(jobs: &[JobStats]) -> String {
    let titles = [
        "Job ID",
        "Count",
        "mean",
        "std",
        "25%",
        "75%",
        "99%",
        "10_sec_rate",
        "total_rate",
        "assigned_nodes",
    ];
    let row = |job: &JobStats| {
        let nodes: Vec<String> = job
            .assigned_nodes
            .iter()
            .map(|node| format!("'{node}'"))
            .collect();
        let mut cells = vec![job.job.to_string(), job.count.to_string()];
        let numbers = [
            job.mean,
            job.std,
            job.p25,
            job.p75,
            job.p99,
            job.rate_10s,
            job.rate_total,
        ];
        cells.extend(numbers.iter().map(|number| format!("{number:.6}")));
        cells.push(format!("[{}]", nodes.join(", ")));
        cells
    };
    table(&titles, jobs.iter().map(row))
}

/// `name` with `_vK` before the extension of its last path component.
pub fn versioned(name: &str, version: Version) -> String {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    // A leading dot starts a hidden file's name, not an extension.
    match name[base..].rfind('.').filter(|dot| *dot > 0) {
        Some(dot) => format!(
            "{}_v{}{}",
            &name[..base + dot],
            version.0,
            &name[base + dot..]
        ),
        None => format!("{name}_v{}", version.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_looks_like_the_seeds() {
        let shown = process_ids(&[
            "fa22-cs425-1902:23:04:12".to_string(),
            "fa22-cs425-1903:23:04:20".to_string(),
        ]);
        let expected = "\
+--------------------------+
|       Process IDs        |
+--------------------------+
| fa22-cs425-1902:23:04:12 |
| fa22-cs425-1903:23:04:20 |
+--------------------------+";
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_version_goes_before_the_extension() {
        for (name, expected) in [
            ("vm1.log", "vm1_v3.log"),
            ("plain", "plain_v3"),
            ("a.b/c", "a.b/c_v3"),
            ("d/.hidden", "d/.hidden_v3"),
            ("x.tar.gz", "x.tar_v3.gz"),
        ] {
            assert_eq!(versioned(name, Version(3)), expected);
        }
    }
}
