//! Tests of the scheduling core in whole clusters under virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::backlog::LOSSES_MAX;
use super::harness::{Plan, Setting, World, label_of, node};
use crate::types::{JobId, NodeId, Rng, Time, WallTime};
use crate::wire::schedule::JobControl;

fn plan(model: &'static str, at_ms: u64, inputs: u32, batch: u32, micros: u64) -> Plan {
    Plan {
        model,
        at: Duration::from_millis(at_ms),
        inputs,
        batch,
        weight: 1,
        per_query: Duration::from_micros(micros),
        bad: BTreeSet::new(),
        bad_on_first: BTreeSet::new(),
    }
}

fn calm(nodes: usize, jobs: Vec<Plan>) -> Setting {
    Setting {
        nodes,
        slowness: vec![1; nodes],
        delay: (Duration::from_micros(100), Duration::from_micros(200)),
        loss_percent: 0,
        duplicate_percent: 0,
        jobs,
        controls: Vec::new(),
        trouble_until: Duration::ZERO,
        deaths: 0,
        leader_changes: 0,
    }
}

/// Every input has one row, the right one; of a cancelled job some have none.
fn check_rows(world: &World, plans: &[Plan]) {
    let mut total = 0;
    for (job, plan) in world.jobs.jobs().zip(plans) {
        let stats = job.stats(WallTime(0), Vec::new());
        total += stats.count;
        assert_eq!(stats.total, u64::from(plan.inputs));
        assert!(stats.count == stats.total || job.is_cancelled());
        let text = String::from_utf8(job.csv()).unwrap();
        assert_eq!(text.lines().count() as u64, stats.count + 1);
        let with_row = (0..plan.inputs).filter(|index| job.has_row(*index));
        for (index, line) in with_row.zip(text.lines().skip(1)) {
            let expected = if plan.bad.contains(&index) {
                format!("digit{index}.png,,,not an image")
            } else {
                format!("digit{index}.png,{},0.500000,", label_of(job.id, index))
            };
            let bad_there = line.ends_with("not an image") && plan.bad_on_first.contains(&index);
            let handed = world.handed.get(&(job.id, index)).copied().unwrap_or(0);
            let blamed = line.contains("nodes failed") && handed >= LOSSES_MAX.into();
            if !bad_there && !blamed {
                assert_eq!(line, expected);
            }
        }
    }
    assert_eq!(world.counted, total);
}

/// A world with everything that may go wrong, drawn from the seed.
fn rough(seed: u64) -> Setting {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let nodes = 1 + rng.below(10) as usize;
    let mut jobs = Vec::new();
    for _ in 0..1 + rng.below(5) {
        let micros = [100, 1_000, 20_000, 300_000, 3_000_000][rng.below(5) as usize];
        let batch = [1, 2, 5, 10, 32, 64][rng.below(6) as usize];
        let count = (40_000_000 / micros).clamp(10, 400) as u32;
        let mut one = plan("lenet", rng.below(5_000), count, batch, micros);
        one.weight = 1 + rng.below(4) as u32;
        one.model = ["lenet", "resnet50"][rng.below(2) as usize];
        one.bad = (0..rng.below(5))
            .map(|_| rng.below(count.into()) as u32)
            .collect();
        one.bad_on_first = (0..rng.below(5))
            .map(|_| rng.below(count.into()) as u32)
            .collect();
        jobs.push(one);
    }
    jobs.sort_by_key(|plan| plan.at);
    let mut controls = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        for _ in 0..rng.below(4) {
            let at = job.at + Duration::from_millis(1 + rng.below(20_000));
            let later = at + Duration::from_millis(rng.below(20_000));
            match rng.below(8) {
                0 => controls.push((at, number, JobControl::Cancel)),
                1..4 => {
                    controls.push((at, number, JobControl::Pause));
                    controls.push((later, number, JobControl::Resume));
                }
                _ => {
                    let weight = 1 + rng.below(9) as u32;
                    controls.push((at, number, JobControl::Weight(weight)));
                }
            }
        }
    }
    // Whatever was paused twice goes on in the end.
    for number in 0..jobs.len() {
        controls.push((Duration::from_secs(50), number, JobControl::Resume));
    }
    Setting {
        nodes,
        slowness: (0..nodes)
            .map(|_| [1, 1, 1, 5][rng.below(4) as usize])
            .collect(),
        delay: (
            Duration::from_micros(100),
            Duration::from_millis(1 + rng.below(80)),
        ),
        loss_percent: rng.below(25),
        duplicate_percent: rng.below(25),
        jobs,
        controls,
        trouble_until: Duration::from_secs(40),
        deaths: rng.below(6),
        leader_changes: rng.below(5),
    }
}

#[test]
fn every_input_has_one_row_whatever_fails() {
    let seeds: u64 = std::env::var("SCHEDULE_SEEDS").map_or(400, |n| n.parse().unwrap());
    for seed in 0..seeds {
        let setting = rough(seed);
        let plans = setting.jobs.clone();
        let mut world = World::new(setting, seed);
        world.run(Duration::from_secs(20_000));
        check_rows(&world, &plans);
    }
}

#[test]
fn two_runs_of_a_seed_are_equal() {
    let trace = |seed| {
        let mut world = World::new(rough(seed), seed);
        world.run(Duration::from_secs(20_000));
        (world.now, world.events, world.trace.finalize())
    };
    for seed in 0..30 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_ne!(trace(0).2, trace(1).2);
}

#[test]
fn without_failures_no_input_runs_twice_and_no_node_idles() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let nodes = 1 + rng.below(8) as usize;
        let micros = [100, 1_000, 20_000][rng.below(3) as usize];
        let batch = 1 + rng.below(16) as u32;
        let plans = vec![
            plan("lenet", 300, 600, batch, micros),
            plan("resnet50", 400, 300, 1 + rng.below(8) as u32, 30_000),
        ];
        let mut world = World::new(calm(nodes, plans.clone()), seed);
        world.run(Duration::from_secs(1_000));
        check_rows(&world, &plans);
        assert!(
            world.runs.values().all(|runs| runs.len() == 1),
            "seed {seed}"
        );
        assert!(
            world.idle_most <= Duration::from_micros(400),
            "seed {seed}: idle for {:?}, a result and an assignment take 0.4 ms",
            world.idle_most
        );
    }
}

#[test]
fn a_slow_node_holds_up_the_tail_by_two_tasks_of_a_fast_one_at_most() {
    let took = |slowness: Vec<u32>, inputs| {
        let plans = vec![plan("lenet", 300, inputs, 4, 20_000)];
        let mut setting = calm(slowness.len(), plans.clone());
        setting.slowness = slowness;
        let mut world = World::new(setting, 1);
        world.run(Duration::from_secs(100));
        check_rows(&world, &plans);
        world.now
    };
    // A task takes 80 ms on a fast node and 400 ms on the slow one.
    for inputs in 100..160 {
        let (with, without) = (took(vec![1, 1, 1, 5], inputs), took(vec![1, 1, 1], inputs));
        let longer = with.since(without);
        assert!(longer <= Duration::from_millis(170), "{inputs}: {longer:?}");
    }
}

#[test]
fn errors_are_tried_by_two_nodes_and_no_more() {
    let mut one = plan("lenet", 300, 100, 8, 1_000);
    one.bad = [0, 50, 51, 99].into();
    one.bad_on_first = (20..40).collect();
    let plans = vec![one.clone()];
    let mut world = World::new(calm(3, plans.clone()), 1);
    world.run(Duration::from_secs(100));
    check_rows(&world, &plans);
    assert_eq!(world.jobs.jobs().next().unwrap().errors(), 4);
    for ((_, input), runs) in &world.runs {
        let distinct: BTreeSet<&NodeId> = runs.iter().collect();
        let failed_first = one.bad_on_first.contains(input) && runs[0] == node("n0");
        let expected = 1 + usize::from(one.bad.contains(input) || failed_first);
        assert_eq!(
            (runs.len(), distinct.len()),
            (expected, expected),
            "{input}"
        );
    }
}

/// Completed queries of two jobs at the end of the time when both had inputs left and ran,
/// counted from the moment when the second one came.
fn counts_side_by_side(world: &World, plans: &[Plan], nodes: usize) -> Vec<(u64, u64)> {
    let batch = plans.iter().map(|plan| plan.batch).max().unwrap();
    let least = 20 * (nodes as u64 + 1) * u64::from(batch);
    let came = Time(0) + plans[1].at;
    let mut now = BTreeMap::from([(JobId(0), 0), (JobId(1), 0)]);
    let mut base = 0;
    let mut samples = Vec::new();
    for (when, job, all) in &world.progress {
        now.insert(*job, *all);
        if *when <= came {
            base = now[&JobId(0)];
            continue;
        }
        let counts = (now[&JobId(0)] - base, now[&JobId(1)]);
        let left = |job: u64| {
            let margin = (nodes as u64 + 1) * u64::from(batch);
            now[&JobId(job)] + margin < u64::from(plans[job as usize].inputs)
        };
        let shares = [
            counts.0 / u64::from(plans[0].weight),
            counts.1 / u64::from(plans[1].weight),
        ];
        if left(0) && left(1) && shares.iter().all(|share| *share >= least) {
            samples.push(counts);
        }
    }
    samples
}

#[test]
fn rates_follow_the_weights_within_ten_percent() {
    for seed in 0..16 {
        let mut rng = Rng::new(seed);
        let nodes = 1 + rng.below(6) as usize;
        let batch = 1 + rng.below(5) as u32;
        let mut plans = vec![
            plan("lenet", 300, 4_000, batch, 2_000 + rng.below(5_000)),
            plan("resnet50", 500, 4_000, 1 + rng.below(5) as u32, 20_000),
        ];
        plans[0].weight = 1 + rng.below(3) as u32;
        plans[1].weight = 1 + rng.below(3) as u32;
        let mut setting = calm(nodes, plans.clone());
        setting.slowness[0] = 3;
        let mut world = World::new(setting, seed);
        world.run(Duration::from_secs(3_000));
        let samples = counts_side_by_side(&world, &plans, nodes);
        assert!(samples.len() > 20, "seed {seed}: {} samples", samples.len());
        for (first, second) in samples {
            let first = first as f64 / f64::from(plans[0].weight);
            let second = second as f64 / f64::from(plans[1].weight);
            let apart = (first - second).abs() / first.max(second);
            assert!(apart <= 0.1, "seed {seed}: {first} and {second}, {plans:?}");
        }
    }
}

#[test]
fn rates_follow_weights_that_change_and_a_job_that_was_held_does_not_catch_up() {
    let plans = vec![
        plan("lenet", 300, 6_000, 4, 5_000),
        plan("resnet50", 300, 6_000, 4, 5_000),
    ];
    let mut setting = calm(4, plans);
    let seconds = Duration::from_secs;
    setting.controls = vec![
        (seconds(2), 1, JobControl::Weight(3)),
        (seconds(4), 0, JobControl::Pause),
        (seconds(6), 0, JobControl::Resume),
    ];
    let mut world = World::new(setting, 1);
    let mut counts = Vec::new();
    for second in [1, 2, 3, 4, 5, 6, 7] {
        while world.now < Time(0) + seconds(second) {
            world.step();
        }
        let count = |job| world.jobs.job(JobId(job)).unwrap().counted() as f64;
        counts.push([count(0), count(1)]);
    }
    let gained = |second: usize, job: usize| counts[second][job] - counts[second - 1][job];
    let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 0.1, "{counts:?}");
    near(gained(1, 1) / gained(1, 0), 1.0);
    near(gained(2, 1) / gained(2, 0) / 3.0, 1.0);
    // What ran when it was held is finished.
    assert!(gained(4, 0) <= 16.0, "{counts:?}");
    near(gained(6, 1) / gained(6, 0) / 3.0, 1.0);
}
