//! Tests of the scheduling core in whole clusters under virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::harness::{Plan, Setting, World, label_of, node};
use crate::types::{JobId, NodeId, Rng, Time, WallTime};

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
        trouble_until: Duration::ZERO,
        deaths: 0,
        leader_changes: 0,
    }
}

/// Every input has one row, the right one.
fn check_rows(world: &World, plans: &[Plan]) {
    let total: u64 = plans.iter().map(|plan| u64::from(plan.inputs)).sum();
    assert_eq!(world.counted, total);
    for (job, plan) in world.jobs.jobs().zip(plans) {
        let stats = job.stats(WallTime(0), Vec::new());
        assert_eq!(
            (stats.count, stats.total),
            (stats.total, u64::from(plan.inputs))
        );
        let text = String::from_utf8(job.csv()).unwrap();
        assert_eq!(text.lines().count(), plan.inputs as usize + 1);
        for (index, line) in text.lines().skip(1).enumerate() {
            let index = index as u32;
            let expected = if plan.bad.contains(&index) {
                format!("digit{index}.png,,,not an image")
            } else {
                format!("digit{index}.png,{},0.500000,", label_of(job.id, index))
            };
            if !line.ends_with("not an image") || !plan.bad_on_first.contains(&index) {
                assert_eq!(line, expected);
            }
        }
    }
}

/// A world with everything that may go wrong, drawn from the seed.
fn rough(seed: u64) -> Setting {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let nodes = 1 + rng.below(8) as usize;
    let mut jobs = Vec::new();
    for _ in 0..1 + rng.below(4) {
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
        trouble_until: Duration::from_secs(40),
        deaths: rng.below(6),
        leader_changes: rng.below(5),
    }
}

#[test]
fn every_input_has_one_row_whatever_fails() {
    for seed in 0..400 {
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
