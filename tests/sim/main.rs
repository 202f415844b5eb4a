//! The deterministic simulation: seeds of 60 virtual seconds on the very cores that run under
//! real threads.
//!
//! `SEED=n` replays one seed with a readable trace. `SEEDS=n` hunts through n seeds from
//! `FROM` (0) on all processors. Neither: as many seeds as fit into the time of a test run.
//! Before that, three nodes die at `STEPS` (300) of the steps of a short scenario, spread over all of
//! it (`steps`); `SEED=0 STEP=n` replays one.
//!
//! `PLANT=name` (with the cargo feature `planted`) plants a bug and expects a watcher to catch it.
//! Each seed runs twice, and both traces must be equal; with `ONCE=1`, for long hunts, once.

mod bad_disks;
mod clients;
mod clock;
mod cluster;
mod connections;
mod controls;
mod convergence;
mod devices;
mod disk;
mod faults;
mod history;
mod host;
mod linearizability;
mod network;
mod steps;
mod trace;
mod transfers;
mod watchers;
mod workload;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::exit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dlc::planted::Bug;
use dlc::types::Time;

use cluster::Sim;
use watchers::Violation;

/// Wall time of a run without further wishes.
const TEST_TIME: Duration = Duration::from_secs(100);
/// Seeds that such a run takes at least.
const TEST_SEEDS_MIN: u64 = 200;

/// Steps of the scenario at which such a run lets three nodes die.
const TEST_STEPS: u64 = 300;

/// What came of one seed.
struct Verdict {
    hash: u64,
    events: u64,
    violation: Option<Violation>,
    begun: BTreeMap<&'static str, u64>,
    succeeded: BTreeMap<&'static str, u64>,
    tasks: u64,
    timed: u64,
    steps: u64,
    seen: BTreeMap<&'static str, u64>,
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic")
        .to_string()
}

fn run(seed: u64, step: Option<u64>, shown: bool, plant: Option<Bug>) -> Verdict {
    set_plant(plant);
    let mut sim = Sim::new(seed, step, shown);
    sim.schedule_plan();
    let end = catch_unwind(AssertUnwindSafe(|| sim.run()));
    if let Err(panic) = end {
        sim.violate("panic", panic_text(&*panic));
    }
    Verdict {
        hash: sim.trace.hash(),
        events: sim.handled(),
        violation: sim.violation.take(),
        begun: std::mem::take(&mut sim.clients.begun),
        succeeded: std::mem::take(&mut sim.clients.succeeded),
        tasks: sim.devices.tasks_run,
        timed: sim.watchers.timed,
        steps: sim.steps,
        seen: std::mem::take(&mut sim.watchers.seen),
    }
}

/// Runs a seed twice; different traces are a violation of their own.
fn run_twice(seed: u64, plant: Option<Bug>) -> Verdict {
    let mut first = run(seed, None, false, plant);
    let second = run(seed, None, false, plant);
    if first.hash != second.hash && first.violation.is_none() {
        first.violation = Some(Violation {
            at: Time(0),
            watcher: "determinism",
            what: "two runs of this seed differ".into(),
        });
    }
    first
}

#[cfg(feature = "planted")]
fn set_plant(plant: Option<Bug>) {
    dlc::planted::plant(plant);
}

#[cfg(not(feature = "planted"))]
fn set_plant(_plant: Option<Bug>) {}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => {
            eprintln!("error: {name}={text} is no number");
            exit(2);
        }
    }
}

fn planted() -> Option<Bug> {
    let name = std::env::var("PLANT")
        .ok()
        .filter(|name| !name.is_empty())?;
    if !cfg!(feature = "planted") {
        eprintln!("error: PLANT needs the cargo feature `planted`");
        exit(2);
    }
    match Bug::ALL.iter().find(|(known, _)| *known == name) {
        Some((_, bug)) => Some(*bug),
        None => {
            let known: Vec<&str> = Bug::ALL.iter().map(|(name, _)| *name).collect();
            eprintln!("error: no bug {name:?}; there are {}", known.join(", "));
            exit(2);
        }
    }
}

/// What a hunt found.
#[derive(Default)]
struct Hunt {
    seeds: u64,
    events: u64,
    tasks: u64,
    timed: u64,
    seen: BTreeMap<&'static str, u64>,
    begun: BTreeMap<&'static str, u64>,
    succeeded: BTreeMap<&'static str, u64>,
    violations: BTreeMap<u64, Violation>,
}

impl Hunt {
    fn add(&mut self, seed: u64, verdict: Verdict) {
        self.seeds += 1;
        self.events += verdict.events;
        self.tasks += verdict.tasks;
        self.timed += verdict.timed;
        for (what, count) in verdict.seen {
            *self.seen.entry(what).or_default() += count;
        }
        for (what, count) in verdict.begun {
            *self.begun.entry(what).or_default() += count;
        }
        for (what, count) in verdict.succeeded {
            *self.succeeded.entry(what).or_default() += count;
        }
        if let Some(violation) = verdict.violation {
            self.violations.insert(seed, violation);
        }
    }
}

/// Seeds from `from` on until `seeds` are done, or, where that is `None`, until the time of
/// a test run is over. Ends at the first violation unless `all`.
fn hunt(from: u64, seeds: Option<u64>, plant: Option<Bug>, all: bool) -> Hunt {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let hunt = Mutex::new(Hunt::default());
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    let once = is_once();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let enough = match seeds {
                        Some(seeds) => turn >= seeds,
                        None => turn >= TEST_SEEDS_MIN && started.elapsed() >= TEST_TIME,
                    };
                    if enough {
                        return;
                    }
                    let verdict = match once {
                        true => run(from + turn, None, false, plant),
                        false => run_twice(from + turn, plant),
                    };
                    if verdict.violation.is_some() && !all {
                        stop.store(true, Ordering::Relaxed);
                    }
                    hunt.lock()
                        .expect("no thread panics with it")
                        .add(from + turn, verdict);
                }
            });
        }
    });
    hunt.into_inner().expect("no thread panics with it")
}

fn is_once() -> bool {
    std::env::var_os("ONCE").is_some_and(|text| !text.is_empty())
}

fn replay(seed: u64, plant: Option<Bug>) -> ! {
    let shown = std::env::var_os("QUIET").is_none();
    let verdict = run(seed, number("STEP"), shown, plant);
    println!(
        "seed {seed}: {} events, hash {:016x}",
        verdict.events, verdict.hash
    );
    println!(
        "commands begun {:?}\ncommands done  {:?}",
        verdict.begun, verdict.succeeded
    );
    match verdict.violation {
        None => {
            println!("test result: ok. 1 passed; 0 failed; no promise was broken");
            exit(0);
        }
        Some(Violation { at, watcher, what }) => {
            println!("VIOLATION of {watcher} at {at}: {what}");
            println!("test result: FAILED. 0 passed; 1 failed; seed {seed}");
            exit(1);
        }
    }
}

/// Three nodes die at each of `count` steps of the scenario, spread over all that it has.
fn walk(count: u64) -> Result<String, String> {
    let next = AtomicU64::new(0);
    let found = Mutex::new(None);
    let last = run(0, Some(0), false, None).steps;
    let count = count.min(last);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while found.lock().expect("no panic").is_none() {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= count {
                        return;
                    }
                    let step = 1 + turn * last / count;
                    if let Some(violation) = run(0, Some(step), false, None).violation {
                        *found.lock().expect("no panic") = Some((step, violation));
                    }
                }
            });
        }
    });
    match found.into_inner().expect("no panic") {
        None => Ok(format!(
            "three nodes died at each of {count} of {last} steps of a put, a get, a delete, a repair \
             and a change of voters"
        )),
        Some((step, Violation { at, watcher, what })) => Err(format!(
            "VIOLATION of {watcher} at {at} after three deaths at step {step}: {what}\n  replay it \
             with: make sim SEED=0 STEP={step}"
        )),
    }
}

fn main() {
    let plant = planted();
    let from = number("FROM").unwrap_or(0);
    if let Some(seed) = number("SEED") {
        replay(seed, plant);
    }
    linearizability::check_itself();
    // A panic of a core is reported with its seed, once.
    std::panic::set_hook(Box::new(|_| ()));
    let started = Instant::now();
    let all = std::env::var_os("ALL").is_some();
    if plant.is_none() {
        match walk(number("STEPS").unwrap_or(TEST_STEPS)) {
            Ok(walked) => println!("{walked}: {:.1} s", started.elapsed().as_secs_f64()),
            Err(violation) => {
                println!("{violation}\ntest result: FAILED. 0 passed; 1 failed");
                exit(1);
            }
        }
    }
    let started = Instant::now();
    let found = hunt(from, number("SEEDS"), plant, all);
    let wall = started.elapsed().as_secs_f64();
    let runs = if is_once() { "once" } else { "twice" };
    println!(
        "{} seeds, each run {runs}, {} events, {} tasks, {} failures timed, {wall:.1} s",
        found.seeds, found.events, found.tasks, found.timed
    );
    println!(
        "happened {:?}\ncommands begun {:?}\ncommands done  {:?}",
        found.seen, found.begun, found.succeeded
    );
    for (seed, Violation { at, watcher, what }) in &found.violations {
        println!("VIOLATION of {watcher} in seed {seed} at {at}: {what}");
        println!("  replay it with: make sim SEED={seed}");
    }
    let failed = found.violations.len() as u64;
    match (plant, found.violations.first_key_value()) {
        (Some(bug), Some((seed, violation))) => {
            println!("{bug:?} was caught by {} at seed {seed}", violation.watcher);
            println!("test result: ok. 1 passed; 0 failed; the planted bug was caught");
        }
        (Some(bug), None) => {
            println!("{bug:?} was not caught within {} seeds", found.seeds);
            println!("test result: FAILED. 0 passed; 1 failed");
            exit(1);
        }
        (None, None) => println!(
            "test result: ok. {} passed; 0 failed; 0 ignored",
            found.seeds
        ),
        (None, Some(_)) => {
            println!(
                "test result: FAILED. {} passed; {failed} failed",
                found.seeds - failed
            );
            exit(1);
        }
    }
}
