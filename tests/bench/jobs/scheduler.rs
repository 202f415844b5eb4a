//! The coordinator's scheduling alone, without sockets, disks and networks: results are decoded,
//! rows counted, tasks chosen and encoded, on one thread.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use dlc::schedule::jobs::Jobs;
use dlc::schedule::{Holders, ScheduleOutput, Scheduler};
use dlc::types::{BlobId, Digest, FileName, NodeId, Term, Time, WallTime};
use dlc::wire::schedule::{
    Assignment, Input, Model, Outcome, ScheduleMessage, TaskTimes, WorkerStatus,
};
use dlc::wire::store::Target;
use dlc::wire::{decode, encode};

/// Inputs of all jobs together.
const INPUTS: u64 = 400_000;
/// What a task takes on a worker.
const SERVICE: Duration = Duration::from_millis(1);

/// Everybody holds everything, as on four nodes and fewer.
struct All;

impl Holders for All {
    fn sources(&self, _: &Input, _: &mut Vec<Target>) -> Vec<u16> {
        Vec::new()
    }

    fn holds(&self, _: &NodeId, _: &Input) -> bool {
        true
    }
}

pub fn measure() {
    println!("Scheduling alone, one thread: decode, count, choose, encode");
    println!("   jobs workers  batch    tasks/s   us a task");
    for (count, batch) in [(2, 1), (2, 32), (1_000, 1), (1_000, 32)] {
        for workers in [4, 10, 30, 100] {
            let (tasks, took) = run(count, workers, batch);
            let each = took.as_secs_f64() * 1e6 / tasks as f64;
            let rate = tasks as f64 / took.as_secs_f64();
            println!("{count:>7} {workers:>7} {batch:>6} {rate:>10.0} {each:>11.1}");
        }
    }
}

fn model() -> Model {
    let (term, counter) = (Term(1), 0);
    let blob = BlobId { term, counter };
    let file = |name: &str| (FileName::new(name).expect("a name"), blob);
    Model {
        name: "lenet".into(),
        manifest: file("lenet.toml"),
        weights: file("lenet.safetensors"),
        digest: Digest::of(b"lenet"),
    }
}

fn jobs(count: u64, batch: u32) -> Jobs {
    let mut jobs = Jobs::new();
    jobs.publish(model());
    let input = |counter: u64| Input {
        name: FileName::new(&format!("digit{counter}.png")).expect("a name"),
        blob: BlobId {
            term: Term(1),
            counter,
        },
        bytes: 300,
        digest: Digest::of(&counter.to_le_bytes()),
    };
    for _ in 0..count {
        let inputs = (0..INPUTS / count).map(input).collect();
        jobs.submit(&model(), "digit.png", batch, 1, WallTime(0), inputs);
    }
    jobs
}

/// Runs all jobs to their ends; the tasks, and what they took of this thread.
fn run(count: u64, workers: usize, batch: u32) -> (u64, Duration) {
    let mut jobs = jobs(count, batch);
    let names: Vec<NodeId> = (0..workers)
        .map(|number| NodeId::new(&format!("n{number}")).expect("a name"))
        .collect();
    let mut scheduler = Scheduler::new(Term(1), Time(0));
    let live: BTreeSet<NodeId> = names.iter().cloned().collect();
    scheduler.handle_members(Time(0), &jobs, &live);
    let mut reports: VecDeque<(NodeId, Vec<u8>)> = names
        .iter()
        .map(|name| (name.clone(), encode(&ScheduleMessage::Status(status(0)))))
        .collect();
    let (mut now, mut tasks) = (Time(1), 0);
    let begun = Instant::now();
    while let Some((name, report)) = reports.pop_front() {
        now = now + SERVICE / workers as u32;
        let message = decode(&report).expect("as it was encoded");
        scheduler.handle_message(now, &jobs, &name, message);
        scheduler.handle_timeout(now, &jobs);
        while let Some(output) = scheduler.poll_output(now, &jobs, &All) {
            match output {
                ScheduleOutput::Send { to, message } => {
                    // What the worker does is its own.
                    let bytes = encode(&message);
                    if let ScheduleMessage::Assign { assignment, .. } = message {
                        std::hint::black_box(bytes);
                        tasks += 1;
                        reports.push_back((to, encode(&done(&assignment))));
                    }
                }
                ScheduleOutput::Propose(finished) => {
                    for task in &finished {
                        jobs.finish(task, WallTime(0));
                    }
                    scheduler.handle_applied(&jobs);
                }
            }
        }
        if reports.is_empty() {
            now = now + Duration::from_millis(20);
        }
    }
    let took = begun.elapsed();
    (tasks, took)
}

fn status(token: u64) -> WorkerStatus {
    WorkerStatus {
        term: Term(1),
        token,
        running: None,
        models: vec![("lenet".into(), model().digest)],
        failed_models: Vec::new(),
    }
}

fn done(assignment: &Assignment) -> ScheduleMessage {
    let label = || Outcome::Label {
        label: "7".into(),
        confidence: 0.9,
    };
    let inputs = assignment.inputs.iter();
    ScheduleMessage::Done {
        id: assignment.id,
        job: assignment.job,
        rows: inputs.map(|input| (input.index, label())).collect(),
        times: TaskTimes::default(),
        status: status(assignment.token + 1),
    }
}
