//! Tests of the scheduling core's parts, message by message.

use std::collections::BTreeSet;
use std::time::Duration;

use super::fair::Share;
use super::harness::{inputs, model, node};
use super::jobs::Jobs;
use super::worker::{Worker, WorkerOutput};
use super::{Holders, ScheduleOutput, Scheduler};
use crate::types::{Incarnation, JobId, NodeId, Rng, Term, Time, WallTime};
use crate::wire::client::{JobStatus, Refusal};
use crate::wire::schedule::{
    AssignedInput, Assignment, AssignmentId, FinishedTask, Input, JobControl, Outcome,
    ScheduleMessage, TaskTimes, WorkerStatus,
};
use crate::wire::store::Target;

pub fn answer(label: &str) -> Outcome {
    Outcome::Label {
        label: label.into(),
        confidence: 0.25,
    }
}

pub fn finished(job: u64, elapsed: Duration, rows: Vec<(u32, Outcome)>) -> FinishedTask {
    FinishedTask {
        job: JobId(job),
        node: node("n0"),
        elapsed: elapsed.as_nanos() as u64,
        rows,
    }
}

pub fn one_job(count: u32, batch: u32) -> Jobs {
    let mut jobs = Jobs::new();
    jobs.publish(model("lenet"));
    jobs.submit(
        &model("lenet"),
        "digit.png",
        batch,
        1,
        WallTime(0),
        inputs(count).into(),
    );
    jobs
}

// Jobs.

#[test]
fn passes_are_compared_by_weight_and_exactly() {
    let mut light = Share::new(3, 1, 0);
    let mut heavy = Share::new(3, 3, 0);
    light.hand_out(1);
    heavy.hand_out(2);
    assert!(heavy.pass() < light.pass(), "2/3 is less than 1");
    heavy.hand_out(1);
    assert_eq!(heavy.pass(), light.pass());
    // Floats of 53 bits could not tell these apart.
    let mut large = Share::new(1, 7, 0);
    large.hand_out((1 << 60) + 1);
    let mut larger = Share::new(1, 7, 0);
    larger.hand_out((1 << 60) + 2);
    assert!(large.pass() < larger.pass());
}

#[test]
fn the_bound_holds_through_any_history_of_shares() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut shares: Vec<Share> = Vec::new();
        for _ in 0..400 {
            let smallest = |shares: &[Share]| {
                let best = shares.iter().enumerate().min_by_key(|(_, s)| s.pass());
                best.map(|(number, _)| number)
            };
            match (rng.below(20), smallest(&shares)) {
                (0, found) if shares.len() < 5 => {
                    let batch = 1 + rng.below(64) as u32;
                    let weight = 1 + rng.below(7) as u32;
                    let mut share = Share::new(batch, weight, rng.below(1_000));
                    share.enter(found.map(|number| &shares[number]));
                    shares.push(share);
                }
                (1 | 2, Some(_)) => {
                    let number = rng.below(shares.len() as u64) as usize;
                    let served = shares[number].served() + rng.below(50);
                    shares[number].settle(served.saturating_sub(25));
                }
                (_, Some(number)) => {
                    let queries = 1 + rng.below(shares[number].batch_size().into());
                    shares[number].hand_out(queries);
                }
                _ => {}
            }
            for ahead in &shares {
                for behind in &shares {
                    assert!(ahead.is_within_bound(behind), "seed {seed}: {shares:?}");
                }
            }
        }
    }
}

#[test]
fn the_bound_is_one_batch_without_failures() {
    let mut ahead = Share::new(4, 2, 0);
    let behind = Share::new(4, 2, 0);
    ahead.hand_out(4);
    assert!(ahead.is_within_bound(&behind));
    ahead.hand_out(1);
    assert!(!ahead.is_within_bound(&behind));
}

// The worker.

fn as_assigned(index: u32) -> AssignedInput {
    let input = inputs(1).remove(0);
    AssignedInput {
        index,
        blob: input.blob,
        bytes: input.bytes,
        digest: input.digest,
        sources: Vec::new(),
    }
}

fn assignment(term: u64, counter: u64, token: u64) -> Assignment {
    Assignment {
        id: AssignmentId {
            term: Term(term),
            counter,
        },
        token,
        job: JobId(0),
        model: "lenet".into(),
        digest: model("lenet").digest,
        inputs: vec![as_assigned(4)],
        hints: Vec::new(),
        holders: Vec::new(),
    }
}

fn assign(term: u64, counter: u64, token: u64) -> ScheduleMessage {
    ScheduleMessage::Assign {
        term: Term(term),
        assignment: assignment(term, counter, token),
    }
}

fn loaded_worker() -> Worker {
    let mut worker = Worker::new(node("n0"), Time(0));
    worker.handle_model_loaded(Time(0), "lenet", model("lenet").digest, 0, Ok(()));
    worker.handle_leader(Time(0), Term(5), Some(node("n9")));
    outputs(&mut worker);
    worker
}

fn outputs(worker: &mut Worker) -> Vec<WorkerOutput> {
    std::iter::from_fn(|| worker.poll_output()).collect()
}

fn runs(worker: &mut Worker) -> usize {
    let outputs = outputs(worker);
    let is_run = |output: &&WorkerOutput| matches!(output, WorkerOutput::Run(_));
    outputs.iter().filter(is_run).count()
}

#[test]
fn a_worker_takes_one_task_with_the_right_token_and_model() {
    let mut worker = loaded_worker();
    let from = node("n9");
    worker.handle_message(Time(1), &from, assign(5, 1, 3));
    assert_eq!(runs(&mut worker), 0, "wrong token");
    let mut unknown = assignment(5, 1, 0);
    unknown.digest = model("other").digest;
    let message = ScheduleMessage::Assign {
        term: Term(5),
        assignment: unknown,
    };
    worker.handle_message(Time(1), &from, message);
    assert_eq!(runs(&mut worker), 0, "the network is not loaded");
    worker.handle_message(Time(1), &from, assign(5, 1, 0));
    assert_eq!(runs(&mut worker), 1);
    worker.handle_message(Time(1), &from, assign(5, 1, 0));
    worker.handle_message(Time(1), &from, assign(5, 2, 0));
    assert_eq!(runs(&mut worker), 0, "busy");
    let id = assignment(5, 1, 0).id;
    worker.handle_batch_done(Time(2), id, vec![(4, answer("4"))], TaskTimes::default());
    worker.handle_message(Time(2), &from, assign(5, 1, 0));
    assert_eq!(runs(&mut worker), 0, "finished");
    assert_eq!(worker.refused(), 4);
}

#[test]
fn a_worker_refuses_a_deposed_leader() {
    let mut worker = loaded_worker();
    worker.handle_message(Time(1), &node("old"), assign(4, 1, 0));
    assert_eq!((runs(&mut worker), worker.refused()), (0, 1));
    let query = ScheduleMessage::Query { term: Term(6) };
    worker.handle_message(Time(1), &node("new"), query);
    worker.handle_message(Time(1), &node("n9"), assign(5, 1, 0));
    assert_eq!(runs(&mut worker), 0);
    worker.handle_message(Time(1), &node("new"), assign(6, 1, 0));
    assert_eq!(runs(&mut worker), 1);
}

#[test]
fn a_result_is_repeated_until_the_leader_has_it() {
    let mut worker = loaded_worker();
    let from = node("n9");
    worker.handle_message(Time(1), &from, assign(5, 1, 0));
    outputs(&mut worker);
    let id = assignment(5, 1, 0).id;
    worker.handle_batch_done(Time(2), id, vec![(4, answer("4"))], TaskTimes::default());
    let is_done = |output: &WorkerOutput, leader: &str| {
        matches!(output, WorkerOutput::ToLeader { leader: to, message: ScheduleMessage::Done { id: of, status, .. } }
            if to.as_str() == leader && *of == id && status.token == 1)
    };
    assert!(is_done(&outputs(&mut worker)[0], "n9"));
    let due = worker.poll_timeout().unwrap();
    assert_eq!(due, Time(2) + super::REPEAT);
    worker.handle_timeout(due);
    assert!(is_done(&outputs(&mut worker)[0], "n9"));
    worker.handle_leader(due, Term(6), Some(node("n8")));
    assert!(
        is_done(&outputs(&mut worker)[0], "n8"),
        "at once to the next leader"
    );
    worker.handle_message(due, &node("n8"), ScheduleMessage::DoneAck { id });
    worker.handle_timeout(due + super::REPEAT);
    let last = outputs(&mut worker);
    assert!(matches!(
        &last[..],
        [WorkerOutput::ToLeader {
            message: ScheduleMessage::Status(_),
            ..
        }]
    ));
}

#[test]
fn the_raised_token_proves_that_the_leader_has_the_result() {
    let mut worker = loaded_worker();
    let from = node("n9");
    worker.handle_message(Time(1), &from, assign(5, 1, 0));
    worker.handle_batch_done(
        Time(2),
        assignment(5, 1, 0).id,
        vec![(4, answer("4"))],
        TaskTimes::default(),
    );
    outputs(&mut worker);
    worker.handle_message(Time(3), &from, assign(5, 2, 1));
    assert_eq!(runs(&mut worker), 1);
    worker.handle_batch_done(
        Time(4),
        assignment(5, 2, 1).id,
        Vec::new(),
        TaskTimes::default(),
    );
    let repeated = outputs(&mut worker);
    assert!(
        matches!(&repeated[..], [WorkerOutput::ToLeader { message: ScheduleMessage::Done { id, .. }, .. }] if id.counter == 2)
    );
}

// The scheduler, message by message.

const NEW: Term = Term(1);

pub fn status(token: u64, running: Option<(AssignmentId, JobId, Vec<u32>)>) -> ScheduleMessage {
    ScheduleMessage::Status(plain_status(token, running))
}

fn plain_status(token: u64, running: Option<(AssignmentId, JobId, Vec<u32>)>) -> WorkerStatus {
    WorkerStatus {
        term: NEW,
        token,
        running,
        models: vec![("lenet".into(), model("lenet").digest)],
        failed_models: Vec::new(),
    }
}

struct Nobody;

impl Holders for Nobody {
    fn sources(&self, _: &Input, _: &mut Vec<Target>) -> Vec<u16> {
        Vec::new()
    }

    fn holds(&self, _: &NodeId, _: &Input) -> bool {
        false
    }
}

pub fn drain(scheduler: &mut Scheduler, now: Time, jobs: &Jobs) -> Vec<ScheduleOutput> {
    let poll = || scheduler.poll_output(now, jobs, &Nobody);
    let outputs = std::iter::from_fn(poll).collect();
    scheduler.check_invariants(jobs).unwrap();
    outputs
}

/// The assignments among outputs.
pub fn assigned(outputs: &[ScheduleOutput]) -> Vec<(NodeId, Assignment)> {
    let pick = |output: &ScheduleOutput| match output {
        ScheduleOutput::Send {
            to,
            message: ScheduleMessage::Assign { assignment, .. },
        } => Some((to.clone(), assignment.clone())),
        _ => None,
    };
    outputs.iter().filter_map(pick).collect()
}

pub fn indexes(assignment: &Assignment) -> Vec<u32> {
    assignment.inputs.iter().map(|input| input.index).collect()
}

pub fn live(names: &[&str]) -> BTreeSet<NodeId> {
    names.iter().map(|name| node(name)).collect()
}

pub fn done(assignment: &Assignment, rows: Vec<(u32, Outcome)>) -> ScheduleMessage {
    ScheduleMessage::Done {
        id: assignment.id,
        job: assignment.job,
        rows,
        times: TaskTimes::default(),
        status: plain_status(assignment.token + 1, None),
    }
}

#[test]
fn a_new_leader_assigns_after_the_reports_and_not_what_is_running() {
    let jobs = one_job(6, 2);
    let mut scheduler = Scheduler::new(NEW, Time(0));
    scheduler.handle_members(Time(0), &jobs, &live(&["a", "b"]));
    let queries = drain(&mut scheduler, Time(0), &jobs);
    assert_eq!(queries.len(), 2);
    scheduler.handle_message(Time(1), &jobs, &node("a"), status(0, None));
    assert!(
        drain(&mut scheduler, Time(1), &jobs).is_empty(),
        "b may be running anything"
    );
    let old = AssignmentId {
        term: Term(0),
        counter: 7,
    };
    let running = Some((old, JobId(0), vec![0, 1]));
    scheduler.handle_message(Time(2), &jobs, &node("b"), status(4, running));
    let given = assigned(&drain(&mut scheduler, Time(2), &jobs));
    assert_eq!(given.len(), 1);
    assert_eq!(indexes(&given[0].1), [2, 3]);
    assert!(scheduler.started(JobId(0)));
}

#[test]
fn a_silent_node_does_not_hold_up_a_new_leader_for_long() {
    let jobs = one_job(6, 2);
    let mut scheduler = Scheduler::new(NEW, Time(0));
    scheduler.handle_members(Time(0), &jobs, &live(&["a", "b"]));
    scheduler.handle_message(Time(1), &jobs, &node("a"), status(0, None));
    drain(&mut scheduler, Time(1), &jobs);
    let due = scheduler.poll_timeout().unwrap();
    assert_eq!(due, Time(0) + super::REPORT_GRACE);
    scheduler.handle_timeout(due, &jobs);
    assert_eq!(assigned(&drain(&mut scheduler, due, &jobs)).len(), 1);
}

/// One node `a` with the first task of a job, given at time 1.
pub fn busy_scheduler(jobs: &Jobs, nodes: &[&str]) -> (Scheduler, Vec<(NodeId, Assignment)>) {
    let mut scheduler = Scheduler::new(NEW, Time(0));
    scheduler.handle_members(Time(0), jobs, &live(nodes));
    for name in nodes {
        scheduler.handle_message(Time(1), jobs, &node(name), status(0, None));
    }
    let given = assigned(&drain(&mut scheduler, Time(1), jobs));
    assert_eq!(given.len(), nodes.len());
    (scheduler, given)
}

#[test]
fn an_assignment_is_repeated_until_a_status_shows_it() {
    let jobs = one_job(4, 2);
    let (mut scheduler, given) = busy_scheduler(&jobs, &["a"]);
    let due = scheduler.poll_timeout().unwrap();
    assert_eq!(due, Time(1) + super::ASSIGN_REPEAT);
    // A status from before its arrival changes nothing.
    scheduler.handle_message(Time(2), &jobs, &node("a"), status(0, None));
    assert!(drain(&mut scheduler, Time(2), &jobs).is_empty());
    scheduler.handle_timeout(due, &jobs);
    assert_eq!(assigned(&drain(&mut scheduler, due, &jobs)), given);
    let running = Some((given[0].1.id, JobId(0), vec![0, 1]));
    scheduler.handle_message(due, &jobs, &node("a"), status(0, running));
    scheduler.handle_message(due, &jobs, &node("a"), status(0, None));
    scheduler.handle_timeout(due + super::ASSIGN_REPEAT, &jobs);
    assert!(drain(&mut scheduler, due + super::ASSIGN_REPEAT, &jobs).is_empty());
}

#[test]
fn a_result_is_followed_by_a_task_in_the_same_turn_and_proposed_with_others() {
    let jobs = one_job(5, 2);
    let (mut scheduler, given) = busy_scheduler(&jobs, &["a"]);
    let rows = vec![(0, answer("0")), (1, answer("1"))];
    let message = done(&given[0].1, rows.clone());
    scheduler.handle_message(Time(1_000), &jobs, &node("a"), message.clone());
    let outputs = drain(&mut scheduler, Time(1_000), &jobs);
    let next = assigned(&outputs);
    assert_eq!(
        (indexes(&next[0].1), next[0].1.token, outputs.len()),
        (vec![2, 3], 1, 1),
        "not what is finished, and with the new token, which is word enough of its arrival"
    );
    scheduler.handle_message(Time(2_000), &jobs, &node("a"), message);
    let outputs = drain(&mut scheduler, Time(2_000), &jobs);
    let is_ack = |output: &ScheduleOutput| {
        let ScheduleOutput::Send { message, .. } = output else {
            return false;
        };
        matches!(message, ScheduleMessage::DoneAck { .. })
    };
    assert!(outputs.len() == 1 && is_ack(&outputs[0]), "a repetition");
    let due = scheduler.poll_timeout().unwrap();
    assert_eq!(due, Time(1_000) + super::GATHER);
    let rows_next = vec![(2, answer("2")), (3, answer("3"))];
    let last = done(&next[0].1, rows_next.clone());
    scheduler.handle_message(due, &jobs, &node("a"), last);
    let task = |elapsed, rows| FinishedTask {
        job: JobId(0),
        node: node("a"),
        elapsed,
        rows,
    };
    let gathered = vec![task(999, rows), task(due.0 - 1_000, rows_next)];
    let outputs = drain(&mut scheduler, due, &jobs);
    assert_eq!(outputs[0], ScheduleOutput::Propose(gathered));
    // The last rows of a job wait for nothing.
    let last = assigned(&outputs).remove(0).1;
    let later = due + Duration::from_nanos(1);
    let rows = vec![(4, answer("4"))];
    scheduler.handle_message(later, &jobs, &node("a"), done(&last, rows.clone()));
    let expected = ScheduleOutput::Propose(vec![task(1, rows)]);
    assert_eq!(drain(&mut scheduler, later, &jobs)[0], expected);
}

#[test]
fn a_node_is_told_once_what_it_may_be_given_next_and_is_given_that() {
    let jobs = one_job(20, 2);
    let (mut scheduler, given) = busy_scheduler(&jobs, &["a", "b"]);
    let hinted = |assignment: &Assignment| -> Vec<u32> {
        let inputs = assignment.hints.iter().flat_map(|hint| &hint.inputs);
        inputs.map(|input| input.index).collect()
    };
    let told: Vec<_> = given.iter().map(|(_, task)| hinted(task)).collect();
    assert_eq!(told, [[2, 3], [6, 7]], "one task ahead, another for each");
    assert_eq!(indexes(&given[1].1), [4, 5], "not what the other prepares");
    let rows = |task: &Assignment| {
        indexes(task)
            .into_iter()
            .map(|i| (i, answer("0")))
            .collect()
    };
    let report = done(&given[1].1, rows(&given[1].1));
    scheduler.handle_message(Time(2), &jobs, &node("b"), report);
    let next = assigned(&drain(&mut scheduler, Time(2), &jobs)).remove(0).1;
    assert_eq!((indexes(&next), hinted(&next)), (vec![6, 7], vec![8, 9]));
    // What a dead node has prepared, others may prepare.
    scheduler.handle_members(Time(3), &jobs, &live(&["b"]));
    let report = done(&next, rows(&next));
    scheduler.handle_message(Time(3), &jobs, &node("b"), report);
    let next = assigned(&drain(&mut scheduler, Time(3), &jobs)).remove(0).1;
    assert_eq!((indexes(&next), hinted(&next)), (vec![8, 9], vec![2, 3]));
}

#[test]
fn a_dead_nodes_inputs_go_last_and_its_late_result_counts_once() {
    let jobs = one_job(8, 2);
    let (mut scheduler, given) = busy_scheduler(&jobs, &["a", "b"]);
    scheduler.handle_members(Time(2), &jobs, &live(&["b"]));
    let rows = vec![(2, answer("2")), (3, answer("3"))];
    scheduler.handle_message(Time(3), &jobs, &node("b"), done(&given[1].1, rows));
    let again = assigned(&drain(&mut scheduler, Time(3), &jobs));
    assert_eq!(indexes(&again[0].1), [4, 5], "not those of the dead node");
    let late = done(&given[0].1, vec![(0, answer("0")), (1, answer("1"))]);
    scheduler.handle_message(Time(4), &jobs, &node("a"), late);
    let proposed = |outputs: &[ScheduleOutput]| -> usize {
        let tasks = outputs.iter().filter_map(|output| match output {
            ScheduleOutput::Propose(tasks) => Some(tasks),
            _ => None,
        });
        tasks.flatten().map(|task| task.rows.len()).sum()
    };
    let due = Time(3) + super::GATHER;
    let proposed_then = proposed(&drain(&mut scheduler, due, &jobs));
    assert_eq!(proposed_then, 4, "those of the late result too");
    let second = done(&again[0].1, vec![(4, answer("4")), (5, answer("5"))]);
    scheduler.handle_message(due, &jobs, &node("b"), second);
    let third = assigned(&drain(&mut scheduler, due, &jobs)).remove(0).1;
    assert_eq!(indexes(&third), [6, 7]);
    let rows = vec![(0, answer("0")), (6, answer("6")), (7, answer("7"))];
    scheduler.handle_message(due, &jobs, &node("b"), done(&third, rows));
    let outputs = drain(&mut scheduler, due, &jobs);
    assert_eq!(proposed(&outputs), 4, "0 has been proposed");
    assert!(assigned(&outputs).is_empty(), "and so has 1");
}

#[test]
fn an_input_that_fails_on_two_nodes_gets_an_error_row() {
    let jobs = one_job(1, 1);
    let mut scheduler = Scheduler::new(NEW, Time(0));
    scheduler.handle_members(Time(0), &jobs, &live(&["a", "b"]));
    for name in ["a", "b"] {
        scheduler.handle_message(Time(1), &jobs, &node(name), status(0, None));
    }
    let first = assigned(&drain(&mut scheduler, Time(1), &jobs));
    let error = || vec![(0, Outcome::Error("truncated".into()))];
    let report = done(&first[0].1, error());
    scheduler.handle_message(Time(2), &jobs, &first[0].0, report.clone());
    let second = assigned(&drain(&mut scheduler, Time(2), &jobs));
    assert_eq!(second[0].0, node("b"), "another node tries");
    scheduler.handle_message(Time(3), &jobs, &first[0].0, report);
    assert_eq!(
        drain(&mut scheduler, Time(3), &jobs).len(),
        1,
        "a repetition of the first error is not the second error"
    );
    scheduler.handle_message(Time(4), &jobs, &node("b"), done(&second[0].1, error()));
    let outputs = drain(&mut scheduler, Time(4), &jobs);
    assert!(
        matches!(&outputs[0], ScheduleOutput::Propose(tasks) if tasks[0].rows == error()),
        "{outputs:?}"
    );
}

#[test]
fn an_input_without_a_readable_copy_is_tried_again_for_a_minute() {
    let jobs = one_job(2, 1);
    let (mut scheduler, first) = busy_scheduler(&jobs, &["a"]);
    assert_eq!(indexes(&first[0].1), [0]);
    let unread = || Outcome::Unread("no copy".into());
    let report = done(&first[0].1, vec![(0, unread())]);
    scheduler.handle_message(Time(2), &jobs, &node("a"), report);
    let second = assigned(&drain(&mut scheduler, Time(2), &jobs));
    assert_eq!(indexes(&second[0].1), [1], "the others go on");
    let report = done(&second[0].1, vec![(1, answer("0"))]);
    scheduler.handle_message(Time(3), &jobs, &node("a"), report);
    let outputs = drain(&mut scheduler, Time(3), &jobs);
    assert!(assigned(&outputs).is_empty(), "{outputs:?}");
    let mut tries = 0;
    let row = loop {
        let now = scheduler.poll_timeout().expect("it is tried again");
        scheduler.handle_timeout(now, &jobs);
        scheduler.check_invariants(&jobs).expect("sound");
        let given = assigned(&drain(&mut scheduler, now, &jobs));
        let Some((_, assignment)) = given.first() else {
            continue;
        };
        assert_eq!(indexes(assignment), [0]);
        tries += 1;
        let report = done(assignment, vec![(0, unread())]);
        scheduler.handle_message(now, &jobs, &node("a"), report);
        let outputs = drain(&mut scheduler, now, &jobs);
        let proposed = outputs.into_iter().find_map(|output| match output {
            ScheduleOutput::Propose(tasks) => Some(tasks[0].rows.clone()),
            ScheduleOutput::Send { .. } => None,
        });
        if let Some(rows) = proposed {
            assert!(now >= Time(0) + Duration::from_secs(60));
            break rows;
        }
    };
    assert_eq!(row, [(0, Outcome::Error("no copy".into()))]);
    assert!((20..=31).contains(&tries), "{tries} tries");
}

#[test]
fn a_node_alone_tries_twice() {
    let jobs = one_job(1, 1);
    let (mut scheduler, first) = busy_scheduler(&jobs, &["a"]);
    let error = || vec![(0, Outcome::Error("truncated".into()))];
    scheduler.handle_message(Time(2), &jobs, &node("a"), done(&first[0].1, error()));
    let second = assigned(&drain(&mut scheduler, Time(2), &jobs));
    assert_eq!(second.len(), 1);
    scheduler.handle_message(Time(3), &jobs, &node("a"), done(&second[0].1, error()));
    let outputs = drain(&mut scheduler, Time(3), &jobs);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, ScheduleOutput::Propose(_)))
    );
}

struct AllButTheFirst;

impl Holders for AllButTheFirst {
    fn sources(&self, _: &Input, _: &mut Vec<Target>) -> Vec<u16> {
        Vec::new()
    }

    fn holds(&self, _: &NodeId, input: &Input) -> bool {
        input.blob.counter != 0
    }
}

#[test]
fn inputs_that_the_node_holds_are_preferred_and_none_starves() {
    let jobs = one_job(5_000, 1);
    let mut scheduler = Scheduler::new(NEW, Time(0));
    scheduler.handle_members(Time(0), &jobs, &live(&["a"]));
    scheduler.handle_message(Time(1), &jobs, &node("a"), status(0, None));
    let mut order = Vec::new();
    for _ in 0..2_000 {
        let poll = || scheduler.poll_output(Time(1), &jobs, &AllButTheFirst);
        let given = assigned(&std::iter::from_fn(poll).collect::<Vec<_>>());
        let index = indexes(&given[0].1)[0];
        order.push(index);
        let report = done(&given[0].1, vec![(index, answer("0"))]);
        scheduler.handle_message(Time(1), &jobs, &node("a"), report);
    }
    assert_eq!(order[0], 1, "input 0 is not there");
    let waited = order.iter().position(|index| *index == 0);
    assert!(waited.is_some_and(|place| place <= 1_024), "{waited:?}");
}

#[test]
fn assigned_nodes_are_those_of_the_last_ten_seconds() {
    let jobs = one_job(9, 1);
    let (scheduler, _) = busy_scheduler(&jobs, &["a", "b"]);
    let recent = |seconds| {
        let now = Time(1) + Duration::from_secs(seconds);
        scheduler.assigned_recently(JobId(0), now).len()
    };
    assert_eq!((recent(9), recent(10)), (2, 0));
}

#[test]
fn a_restarted_worker_is_used_again() {
    let jobs = one_job(4, 2);
    let (mut scheduler, given) = busy_scheduler(&jobs, &["a"]);
    let running = Some((given[0].1.id, JobId(0), vec![0, 1]));
    scheduler.handle_message(Time(2), &jobs, &node("a"), status(0, running));
    let mut worker = loaded_worker();
    worker.handle_life(Time(3), Incarnation(2));
    let mut report = worker.status();
    report.term = NEW;
    scheduler.handle_message(Time(3), &jobs, &node("a"), ScheduleMessage::Status(report));
    let again = assigned(&drain(&mut scheduler, Time(3), &jobs));
    assert_eq!(indexes(&again[0].1), [2, 3]);
}

#[test]
fn a_job_is_held_goes_on_and_is_ended() {
    let mut jobs = one_job(6, 2);
    let (mut scheduler, given) = busy_scheduler(&jobs, &["a"]);
    assert_eq!(
        jobs.control(JobId(9), JobControl::Pause),
        Err(Refusal::UnknownJob(JobId(9)))
    );
    for _ in 0..2 {
        assert_eq!(
            jobs.control(JobId(0), JobControl::Pause),
            Ok(JobStatus::Paused)
        );
    }
    // What runs is finished and counts; nothing follows.
    let rows = vec![(0, answer("0")), (1, answer("1"))];
    let task = finished(0, Duration::ZERO, rows.clone());
    scheduler.handle_message(Time(2), &jobs, &node("a"), done(&given[0].1, rows));
    assert_eq!(assigned(&drain(&mut scheduler, Time(2), &jobs)), []);
    assert_eq!(jobs.finish(&task, WallTime(1)), 2);
    assert_eq!(assigned(&drain(&mut scheduler, Time(3), &jobs)), []);
    let running = Ok(JobStatus::InProgress);
    assert_eq!(jobs.control(JobId(0), JobControl::Resume), running);
    let next = assigned(&drain(&mut scheduler, Time(4), &jobs));
    assert_eq!(indexes(&next[0].1), [2, 3]);
    assert_eq!(jobs.control(JobId(0), JobControl::Weight(7)), running);
    assert_eq!(jobs.job(JobId(0)).unwrap().weight, 7);

    // Ended: it keeps its rows and gets no more, its result is made, and only then it is over.
    let ended = Ok(JobStatus::Cancelled);
    assert_eq!(jobs.control(JobId(0), JobControl::Cancel), ended);
    assert_eq!(jobs.control(JobId(0), JobControl::Cancel), ended);
    assert_eq!(
        jobs.control(JobId(0), JobControl::Resume),
        Err(Refusal::JobEnded(JobId(0)))
    );
    let rows = vec![(2, answer("2")), (3, answer("3"))];
    let task = finished(0, Duration::ZERO, rows.clone());
    scheduler.handle_message(Time(5), &jobs, &node("a"), done(&next[0].1, rows));
    let outputs = drain(&mut scheduler, Time(5), &jobs);
    assert_eq!(outputs.len(), 1, "the result is acknowledged: {outputs:?}");
    assert_eq!(jobs.finish(&task, WallTime(2)), 0);
    assert_eq!(jobs.job(JobId(0)).unwrap().counted(), 2);
    assert!(jobs.complete(JobId(0), WallTime(3), None));
    assert_eq!(jobs.unfinished().count(), 0);
    assert_eq!(
        jobs.job(JobId(0)).unwrap().status(true),
        JobStatus::Cancelled
    );
}
