//! Tests of the jobs' state machine: rows, result files, statistics, publications, history.

use std::sync::Arc;
use std::time::Duration;

use super::harness::{inputs, model, node};
use super::jobs::{Jobs, MODELS_MAX, UNFINISHED_INPUTS_MAX};
use super::tests::{answer, finished, one_job};
use crate::types::{FileName, JobId, WallTime};
use crate::wire::client::JobStatus;
use crate::wire::schedule::{JobControl, Outcome};

#[test]
fn an_input_has_the_first_row_that_is_applied_and_counts_once() {
    let mut jobs = one_job(3, 2);
    let second = Duration::from_secs(1);
    let first = finished(0, second, vec![(0, answer("a")), (1, answer("b"))]);
    assert_eq!(jobs.finish(&first, WallTime(1_000)), 2);
    let again = finished(
        0,
        second,
        vec![(1, answer("c")), (2, answer("d")), (9, answer("x"))],
    );
    assert_eq!(jobs.finish(&again, WallTime(2_000)), 1);
    assert_eq!(jobs.finish(&again, WallTime(3_000)), 0);
    assert_eq!(
        jobs.finish(&finished(7, second, vec![(0, answer("a"))]), WallTime(0)),
        0
    );
    let labels: Vec<Outcome> = jobs
        .rows(JobId(0), 0, 9)
        .unwrap()
        .into_iter()
        .map(|r| r.outcome)
        .collect();
    assert_eq!(labels, [answer("a"), answer("b"), answer("d")]);
    assert!(jobs.rows_complete(JobId(0)));
    assert_eq!(
        jobs.stats(JobId(0), WallTime(9_000), vec![]).unwrap().count,
        3
    );
}

#[test]
fn the_result_file_is_quoted_ordered_and_holds_the_rows_so_far() {
    let mut jobs = Jobs::new();
    let mut list = inputs(4);
    list[0].name = FileName::new("a,\"b\".png").unwrap();
    jobs.submit(&model("lenet"), "x", 1, 1, WallTime(0), list.into());
    let rows = vec![
        (3, Outcome::Error("line 1\nline 2".into())),
        (0, answer("cat, tabby")),
        (2, answer("7")),
    ];
    jobs.finish(&finished(0, Duration::ZERO, rows), WallTime(0));
    let expected = "file,label,confidence,error\n\
        \"a,\"\"b\"\".png\",\"cat, tabby\",0.250000,\n\
        digit2.png,7,0.250000,\n\
        digit3.png,,,\"line 1\nline 2\"\n";
    assert_eq!(
        String::from_utf8(jobs.job(JobId(0)).unwrap().csv()).unwrap(),
        expected
    );
    let names = |rows: Vec<crate::wire::client::Row>| -> Vec<String> {
        rows.iter().map(|row| row.file.to_string()).collect()
    };
    assert_eq!(
        names(jobs.tail(JobId(0), 2).unwrap()),
        ["a,\"b\".png", "digit2.png"]
    );
    assert_eq!(
        names(jobs.rows(JobId(0), 1, 2).unwrap()),
        ["digit2.png"],
        "inputs without a row are left out"
    );
    assert_eq!(jobs.stats(JobId(0), WallTime(0), vec![]).unwrap().errors, 1);
}

#[test]
fn a_query_takes_as_long_as_its_task_as_in_the_seeds_table() {
    let mut jobs = one_job(10, 2);
    for (task, millis) in [13_404u64, 1_182, 1_182, 1_812, 1_180].iter().enumerate() {
        let first = task as u32 * 2;
        let rows = vec![(first, answer("0")), (first + 1, answer("0"))];
        let at = WallTime(4_000 * (task as u64 + 1));
        jobs.finish(&finished(0, Duration::from_millis(*millis), rows), at);
    }
    let nodes = vec![node("n0")];
    let stats = jobs
        .stats(JobId(0), WallTime(999_000), nodes.clone())
        .unwrap();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    near(stats.mean, 3.752);
    near(stats.p25, 1.182);
    near(stats.p75, 1.812);
    near(stats.p99, 13.404);
    near(
        stats.std,
        ((9.652f64.powi(2) + 2.0 * 2.57f64.powi(2) + 1.94f64.powi(2) + 2.572f64.powi(2)) / 5.0)
            .sqrt(),
    );
    near(stats.rate_total, 10.0 / 20.0);
    near(stats.rate_10s, 0.0);
    assert!(stats.assigned_nodes.is_empty(), "it has all its rows");
    near(
        jobs.stats(JobId(0), WallTime(20_000), nodes)
            .unwrap()
            .rate_10s,
        0.6,
    );
}

#[test]
fn a_percentile_lies_between_two_queries_and_one_query_is_every_percentile() {
    let mut jobs = one_job(3, 1);
    let ms = Duration::from_millis;
    jobs.finish(&finished(0, ms(100), vec![(0, answer("0"))]), WallTime(5));
    let stats = jobs.stats(JobId(0), WallTime(5), vec![]).unwrap();
    assert_eq!(
        (stats.mean, stats.std, stats.p25, stats.p99),
        (0.1, 0.0, 0.1, 0.1)
    );
    jobs.finish(&finished(0, ms(200), vec![(1, answer("0"))]), WallTime(6));
    let stats = jobs.stats(JobId(0), WallTime(6), vec![]).unwrap();
    assert!((stats.p75 - 0.175).abs() < 1e-9 && (stats.p99 - 0.199).abs() < 1e-9);
}

#[test]
fn times_of_very_many_tasks_stay_bounded_and_right() {
    let mut timing = super::timing::Timing::default();
    for number in 0..250_000u64 {
        timing.add((number * 7_919 % 250_000) * 1_000_000, 1);
    }
    assert!((timing.mean() - 124.9995).abs() < 1e-6);
    for percent in [25, 75, 99] {
        let exact = 250.0 * percent as f64 / 100.0;
        let found = timing.percentile(percent);
        assert!(
            (found / exact - 1.0).abs() < 0.005,
            "{found} is not {exact}"
        );
    }
    let bytes = crate::wire::encode(&timing).len();
    assert!(bytes < 30_000, "{bytes} bytes");
}

#[test]
fn a_job_is_queued_then_in_progress_then_completed() {
    let mut jobs = one_job(1, 1);
    let status = |jobs: &Jobs, started: bool| jobs.infos(&|_| started)[0].status;
    assert_eq!(status(&jobs, false), JobStatus::Queued);
    assert_eq!(status(&jobs, true), JobStatus::InProgress);
    assert!(
        !jobs.complete(JobId(0), WallTime(1), None),
        "a row is missing"
    );
    jobs.finish(
        &finished(0, Duration::ZERO, vec![(0, answer("0"))]),
        WallTime(1),
    );
    assert_eq!(status(&jobs, false), JobStatus::InProgress);
    assert_eq!(jobs.pinned_blobs(JobId(0)).count(), 1);
    assert_eq!(jobs.tail(JobId(0), 5).unwrap().len(), 1);
    assert!(jobs.complete(JobId(0), WallTime(2), None));
    assert!(!jobs.complete(JobId(0), WallTime(3), None));
    let ended = jobs.job(JobId(0)).unwrap();
    assert_eq!((ended.counted(), ended.total()), (1, 1));
    assert!(
        ended.inputs.is_empty() && !ended.has_row(0),
        "bounded history"
    );
    let late = finished(0, Duration::ZERO, vec![(0, answer("1"))]);
    assert_eq!(jobs.finish(&late, WallTime(3)), 0, "a late result");
    assert_eq!(status(&jobs, false), JobStatus::Completed);
    assert_eq!(jobs.pinned_blobs(JobId(0)).count(), 0);
    assert_eq!(jobs.unfinished().count(), 0);
}

#[test]
fn jobs_over_the_same_files_share_a_list_and_the_last_one_gives_up_their_bytes() {
    let mut jobs = Jobs::new();
    let submit = |jobs: &mut Jobs, count| {
        let inputs = inputs(count);
        let blobs: Vec<_> = inputs.iter().map(|input| input.blob).collect();
        let inputs = jobs.list_of(&blobs).unwrap_or(inputs.into());
        jobs.submit(&model("lenet"), "x", 1, 1, WallTime(0), inputs)
    };
    let ids = [300, 2, 300].map(|count| submit(&mut jobs, count));
    let list = |jobs: &Jobs, id: JobId| Arc::clone(&jobs.job(id).unwrap().inputs);
    assert!(Arc::ptr_eq(&list(&jobs, ids[0]), &list(&jobs, ids[2])));
    assert!(!Arc::ptr_eq(&list(&jobs, ids[0]), &list(&jobs, ids[1])));
    let snapshot = crate::wire::encode(&jobs);
    let mut restored: Jobs = crate::wire::decode_large(&snapshot).expect("what was encoded");
    assert_eq!(restored, jobs);
    assert!(Arc::ptr_eq(
        &list(&restored, ids[0]),
        &list(&restored, ids[2])
    ));
    let pinned = |jobs: &Jobs, id| jobs.pinned_blobs(id).count();
    assert_eq!(ids.map(|id| pinned(&restored, id)), [0, 2, 0]);
    restored.control(ids[0], JobControl::Cancel).unwrap();
    assert!(restored.complete(ids[0], WallTime(0), None));
    assert_eq!(ids.map(|id| pinned(&restored, id)), [0, 2, 300]);
    let without = crate::wire::encode(&restored).len();
    submit(&mut restored, 300);
    let more = crate::wire::encode(&restored).len() - without;
    assert!(
        more < 500,
        "a second job over the same files takes {more} bytes"
    );
}

#[test]
fn all_jobs_together_have_a_bounded_number_of_inputs() {
    let mut jobs = one_job(1_000, 1);
    assert!(jobs.has_room_for(UNFINISHED_INPUTS_MAX - 1_000));
    assert!(!jobs.has_room_for(UNFINISHED_INPUTS_MAX - 999));
    jobs.control(JobId(0), JobControl::Cancel).unwrap();
    jobs.complete(JobId(0), WallTime(0), None);
    assert!(jobs.has_room_for(UNFINISHED_INPUTS_MAX));
}

#[test]
fn the_newest_publication_holds_and_old_ones_stay_while_jobs_use_them() {
    let mut jobs = Jobs::new();
    assert_eq!(jobs.publish(model("resnet50")), Some(0));
    let old = jobs.model("resnet").unwrap().model.clone();
    jobs.submit(&old, "x", 1, 1, WallTime(0), inputs(1).into());
    let mut newer = model("resnet50");
    newer.digest = model("other").digest;
    assert_eq!(jobs.publish(newer.clone()), Some(1));
    assert_eq!(jobs.model("resnet50").unwrap().model, newer);
    assert_eq!(jobs.wanted_models().len(), 2);
    jobs.finish(
        &finished(0, Duration::ZERO, vec![(0, answer("0"))]),
        WallTime(0),
    );
    jobs.complete(JobId(0), WallTime(0), None);
    assert_eq!(jobs.wanted_models(), [newer]);
    assert!(jobs.model("alexnet").is_none());
    for number in 1..MODELS_MAX {
        assert!(jobs.publish(model(&format!("m{number}"))).is_some());
    }
    assert_eq!(jobs.publish(model("one-more")), None);
}

#[test]
fn history_is_bounded() {
    let mut jobs = Jobs::new();
    for _ in 0..super::jobs::HISTORY_MAX + 2 {
        let id = jobs.submit(&model("lenet"), "x", 1, 1, WallTime(0), Arc::default());
        assert!(jobs.complete(id, WallTime(0), None));
    }
    assert_eq!(jobs.jobs().next().unwrap().id, JobId(2));
    assert_eq!(jobs.jobs().count(), super::jobs::HISTORY_MAX);
}

// Shares.
