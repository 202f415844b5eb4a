//! Tests of what is run again: late tasks, copies at a job's tail, and what nodes died of.

use std::time::Duration;

use super::backlog::LOSSES_MAX;
use super::harness::node;
use super::jobs::Jobs;
use super::tests::{answer, assigned, busy_scheduler, done, drain, indexes, live, one_job, status};
use super::{ScheduleOutput, Scheduler};
use crate::types::{JobId, NodeId, Time};
use crate::wire::schedule::{Assignment, Outcome};

#[test]
fn a_late_task_is_given_to_another_node_but_keeps_its_own_busy() {
    let jobs = one_job(4, 2);
    let (mut scheduler, given) = busy_scheduler(&jobs, &["a", "b"]);
    for (name, assignment) in &given {
        let running = Some((assignment.id, JobId(0), indexes(assignment)));
        scheduler.handle_message(Time(2), &jobs, name, status(0, running));
    }
    let due = scheduler.poll_timeout().unwrap();
    assert_eq!(due, Time(1) + super::DEADLINE_UNMEASURED);
    scheduler.handle_timeout(due, &jobs);
    assert!(assigned(&drain(&mut scheduler, due, &jobs)).is_empty());
    let rows = vec![(2, answer("2")), (3, answer("3"))];
    scheduler.handle_message(due, &jobs, &node("b"), done(&given[1].1, rows));
    let again = assigned(&drain(&mut scheduler, due, &jobs));
    assert_eq!((again.len(), &again[0].0), (1, &node("b")));
    assert_eq!(indexes(&again[0].1), [0, 1]);
}

/// Two nodes, four inputs, one in a task: `a` has taken so many milliseconds for its first one,
/// `b` 100, and both have been given the next one at that time. Which task is whose, and when
/// that was.
fn at_the_tail(slow: u64) -> (Jobs, Scheduler, Vec<(NodeId, Assignment)>, Time) {
    let jobs = one_job(4, 1);
    let (mut scheduler, given) = busy_scheduler(&jobs, &["a", "b"]);
    let after = |millis| Time(1) + Duration::from_millis(millis);
    let mut next = Vec::new();
    for (place, millis) in [(1, 100), (0, slow)] {
        let (name, task) = &given[place];
        let report = done(task, vec![(indexes(task)[0], answer("0"))]);
        scheduler.handle_message(after(millis), &jobs, name, report);
        next.extend(assigned(&drain(&mut scheduler, after(millis), &jobs)));
    }
    assert_eq!(next.len(), 2);
    (jobs, scheduler, next, after(slow))
}

#[test]
fn a_free_node_repeats_what_a_slow_one_runs_and_the_first_result_counts() {
    let (jobs, mut scheduler, given, now) = at_the_tail(500);
    let (fast, slow) = (&given[0].1, &given[1].1);
    let report = done(fast, vec![(indexes(fast)[0], answer("1"))]);
    scheduler.handle_message(now, &jobs, &node("b"), report);
    let copy = assigned(&drain(&mut scheduler, now, &jobs));
    assert_eq!(
        copy[0].0,
        node("b"),
        "400 ms would be left, a copy takes 100"
    );
    assert_eq!(indexes(&copy[0].1), indexes(slow));
    let rows = |label| vec![(indexes(slow)[0], answer(label))];
    let later = now + Duration::from_millis(100);
    let first = done(&copy[0].1, rows("copy"));
    scheduler.handle_message(later, &jobs, &node("b"), first);
    let outputs = drain(&mut scheduler, later, &jobs);
    let proposed = |outputs: &[ScheduleOutput]| {
        let is_it = |output: &&ScheduleOutput| matches!(output, ScheduleOutput::Propose(_));
        outputs.iter().filter(is_it).count()
    };
    assert_eq!(proposed(&outputs), 1, "{outputs:?}");
    assert!(assigned(&outputs).is_empty(), "nothing is left");
    scheduler.handle_message(later, &jobs, &node("a"), done(slow, rows("late")));
    let outputs = drain(&mut scheduler, later + super::GATHER, &jobs);
    assert_eq!(proposed(&outputs), 0, "{outputs:?}");
}

#[test]
fn a_task_is_repeated_only_once_it_takes_longer_than_it_should() {
    let (jobs, mut scheduler, given, now) = at_the_tail(110);
    let (fast, slow) = (&given[0].1, &given[1].1);
    let report = done(fast, vec![(indexes(fast)[0], answer("1"))]);
    let soon = now + Duration::from_millis(100);
    scheduler.handle_message(soon, &jobs, &node("b"), report);
    let outputs = drain(&mut scheduler, soon, &jobs);
    assert!(assigned(&outputs).is_empty(), "it may end any moment");
    drain(&mut scheduler, soon + super::GATHER, &jobs);
    let running = |at: Time, scheduler: &mut Scheduler| {
        let running = Some((slow.id, JobId(0), indexes(slow)));
        scheduler.handle_message(at, &jobs, &node("a"), status(1, running));
    };
    running(soon, &mut scheduler);
    assert!(assigned(&drain(&mut scheduler, soon, &jobs)).is_empty());
    // A quarter more than the 105 ms that b takes on the average.
    let due = now + Duration::from_micros(131_250);
    assert_eq!(scheduler.poll_timeout(), Some(due));
    scheduler.handle_timeout(due, &jobs);
    let copy = assigned(&drain(&mut scheduler, due, &jobs));
    assert_eq!(copy.len(), 1);
    assert_eq!(
        (&copy[0].0, indexes(&copy[0].1)),
        (&node("b"), indexes(slow))
    );
    // Once.
    let far = due + Duration::from_secs(5);
    let report = done(&copy[0].1, Vec::new());
    scheduler.handle_message(far, &jobs, &node("b"), report);
    running(far, &mut scheduler);
    scheduler.handle_timeout(far, &jobs);
    assert!(assigned(&drain(&mut scheduler, far, &jobs)).is_empty());
}

#[test]
fn an_input_whose_nodes_die_is_tried_alone_and_given_up_in_the_end() {
    let jobs = one_job(12, 2);
    let names = ["a", "b", "c", "d", "e", "f"];
    let (mut scheduler, given) = busy_scheduler(&jobs, &names);
    let now = Time(2);
    let rows = |task: &Assignment| {
        indexes(task)
            .into_iter()
            .map(|i| (i, answer("0")))
            .collect()
    };
    // One node after the other dies, and the next one becomes free.
    let next = |scheduler: &mut Scheduler, dead: usize| {
        scheduler.handle_members(now, &jobs, &live(&names[dead..]));
        let (name, task) = &given[dead];
        scheduler.handle_message(now, &jobs, name, done(task, rows(task)));
        let outputs = drain(scheduler, now, &jobs);
        let given = assigned(&outputs).into_iter().next();
        (given.map(|(_, task)| indexes(&task)), outputs)
    };
    for dead in 1..LOSSES_MAX.into() {
        let (alone, _) = next(&mut scheduler, dead);
        assert_eq!(alone, Some(vec![0]), "a had 0 and 1");
    }
    let (neighbour, outputs) = next(&mut scheduler, LOSSES_MAX.into());
    assert_eq!(neighbour, Some(vec![1]), "it is innocent");
    let given_up = outputs.iter().find_map(|output| match output {
        ScheduleOutput::Propose(tasks) => {
            let mut rows = tasks.iter().flat_map(|task| &task.rows);
            rows.find(|(input, _)| *input == 0).cloned()
        }
        _ => None,
    });
    let Some((_, Outcome::Error(why))) = given_up else {
        panic!("{outputs:?}");
    };
    assert!(why.contains("nodes failed"), "{why}");
}
