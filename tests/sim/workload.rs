//! What a seed does: how large its cluster is, which commands its clients run and when.
//!
//! Decides: the size of a seed (60 virtual seconds, 4 to 9 nodes, at least 100 client
//! commands and 5 faults) and the mix. Leaves to others: what breaks (`faults`), what a command
//! is (`clients`).

use std::time::Duration;

use dlc::types::{FileName, Rng, Time};
use dlc::wire::schedule::JobControl;

use crate::clients::Content;
use crate::cluster::Sim;
use crate::controls;
use crate::faults::Fault;
use crate::network::HostId;

/// Clients begin here: by then the cluster has formed.
pub const OPERATIONS_FROM: Duration = Duration::from_secs(8);
/// Everything is healed here.
pub const HEAL_AT: Duration = Duration::from_secs(42);
/// A run lasts at least this long.
pub const END: Duration = Duration::from_secs(60);
/// By then everything must have converged.
pub const DEADLINE: Duration = Duration::from_secs(110);
/// Events of one seed; more means that something floods.
const EVENTS_MAX: u64 = 20_000_000;
/// Names that clients put, get and delete.
const NAMES: u64 = 8;

/// A client's command.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Put so many bytes under the name of that number.
    Put(u64, u64),
    /// Get.
    Get(u64),
    /// Get the newest versions.
    GetVersions(u64, u64),
    /// Delete.
    Delete(u64),
    /// The holders.
    List(u64),
    /// Upload so many files of a data set at once.
    Upload(String, u64),
    /// Start a job with a batch size and a weight.
    Infer(String, u32, u32),
    /// Do that with one of the jobs.
    Control(u64, JobControl),
    /// The jobs.
    JobInfo,
    /// Their statistics.
    JobStats,
}

/// Everything that a seed draws before it starts.
pub struct Plan {
    /// Nodes, those that come later included.
    pub nodes: usize,
    /// Introducers.
    pub introducers: usize,
    /// When each node starts.
    pub starts: Vec<Duration>,
    /// Commands with their times.
    pub operations: Vec<(Duration, Operation)>,
    /// Faults with their times.
    pub faults: Vec<(Duration, Fault)>,
    /// Least time that the fastest machine needs for one input.
    pub service: Duration,
    /// The nodes take whoever is gone for crashed, and nothing else happens to them.
    pub crash_stop: bool,
    /// How many times slower than the usual one every disk syncs.
    pub disk_slowness: u32,
    /// More events than this are a flood.
    pub events_max: u64,
    /// The step at which three nodes die; see `steps`.
    pub deaths_at: Option<u64>,
}

/// The SDFS name of number `number`.
pub fn name(number: u64) -> FileName {
    FileName::new(&format!("dir/file {number}.bin")).expect("a name")
}

fn between(random: &mut Rng, low: Duration, high: Duration) -> Duration {
    random.span(low, high)
}

fn operation(random: &mut Rng) -> Operation {
    let file = random.below(NAMES);
    match random.below(100) {
        0..30 => {
            let bytes = match random.below(10) {
                0 => random.below(2),
                1 => 100_000 + random.below(400_000),
                _ => random.below(8_000),
            };
            Operation::Put(file, bytes)
        }
        30..62 => Operation::Get(file),
        62..68 => Operation::GetVersions(file, 1 + random.below(4)),
        68..76 => Operation::Delete(file),
        76..84 => Operation::List(file),
        84..92 => Operation::JobInfo,
        _ => Operation::JobStats,
    }
}

impl Plan {
    /// Draws a seed's plan.
    pub fn draw(random: &mut Rng, faults: &mut Rng) -> Plan {
        let nodes = 4 + random.below(6) as usize;
        let introducers = 1 + random.below(2) as usize;
        let mut starts: Vec<Duration> = (0..nodes)
            .map(|_| between(random, Duration::ZERO, Duration::from_secs(4)))
            .collect();
        // Some come only when the others are at work.
        if nodes > 4 && random.chance(40) {
            starts[nodes - 1] = between(random, Duration::from_secs(12), Duration::from_secs(35));
        }
        let mut operations = Vec::new();
        for _ in 0..100 + random.below(40) {
            operations.push((between(random, OPERATIONS_FROM, HEAL_AT), operation(random)));
        }
        let sets = 1 + random.below(2);
        for set in 0..sets {
            let at = between(random, OPERATIONS_FROM, Duration::from_secs(11));
            let files = 20 + random.below(60);
            operations.push((at, Operation::Upload(format!("set{set}.png"), files)));
            for _ in 0..1 + random.below(2) {
                let at = between(random, Duration::from_secs(12), Duration::from_secs(38));
                let batch = match random.below(8) {
                    0 => 64,
                    drawn => drawn as u32,
                };
                let weight = 1 + random.below(3) as u32;
                operations.push((at, Operation::Infer(format!("set{set}.png"), batch, weight)));
            }
        }
        for _ in 0..random.below(8) {
            let at = between(random, Duration::from_secs(13), HEAL_AT);
            operations.push((
                at,
                Operation::Control(random.below(8), controls::draw(random)),
            ));
        }
        // Slower ones are in the worlds of the scheduler's own tests.
        let service = match random.below(8) {
            0 => Duration::from_micros(100),
            _ => Duration::from_millis(1 + random.below(150)),
        };
        let crash_stop = nodes == 4 && faults.chance(50);
        let faults = match crash_stop {
            true => Fault::draw_crashes(faults, nodes, introducers),
            false => Fault::draw(faults, nodes, introducers),
        };
        operations.extend(Plan::bursts(random, &faults));
        operations.sort_by_key(|(at, _)| *at);
        let disk_slowness = [1, 1, 1, 5, 30][random.below(5) as usize];
        Plan {
            nodes,
            introducers,
            starts,
            operations,
            faults,
            service,
            crash_stop,
            disk_slowness,
            events_max: EVENTS_MAX,
            deaths_at: None,
        }
    }
}

impl Plan {
    /// While somebody leads who should not, clients write and read one file in short order.
    fn bursts(random: &mut Rng, faults: &[(Duration, Fault)]) -> Vec<(Duration, Operation)> {
        let mut operations = Vec::new();
        for (at, fault) in faults {
            if !matches!(
                fault,
                Fault::IsolateLeader(_) | Fault::PauseLeader(_) | Fault::Deaf(..)
            ) {
                continue;
            }
            let file = random.below(NAMES);
            for _ in 0..8 {
                let put = between(random, Duration::ZERO, Duration::from_secs(4));
                operations.push((*at + put, Operation::Put(file, 100)));
                for _ in 0..3 {
                    let get = between(random, Duration::ZERO, Duration::from_secs(5));
                    operations.push((*at + get, Operation::Get(file)));
                }
            }
        }
        operations
    }
}

impl Sim {
    /// Puts everything that was drawn into the queue.
    pub fn schedule_plan(&mut self) {
        for id in self.nodes..self.hosts.len() {
            self.after(Duration::from_millis(10), move |sim| sim.start(id));
        }
        for (id, at) in self.plan.starts.clone().into_iter().enumerate() {
            self.after(at, move |sim| sim.start(id));
        }
        for model in ["lenet", "resnet50"] {
            self.after(Duration::from_secs(7), move |sim| sim.publish_model(model));
        }
        for (at, operation) in self.plan.operations.clone() {
            self.after(at, move |sim| sim.operate(operation));
        }
        for (at, fault) in self.plan.faults.clone() {
            self.after(at, move |sim| sim.strike(fault));
        }
        self.after(HEAL_AT, Sim::heal);
        // A command that was sent before may still be carried out for a while.
        for seconds in [1, 5, 15, 40] {
            self.after(HEAL_AT + Duration::from_secs(seconds), Sim::resume_all);
        }
        self.after(
            END.saturating_sub(Duration::from_secs(8)),
            Sim::look_for_convergence,
        );
    }

    /// Runs a client's command on some member.
    pub fn operate(&mut self, operation: Operation) {
        let Some(host) = self.some_member() else {
            return;
        };
        self.trace.story(self.now, "client", || {
            format!("at node-{host}: {operation:?}")
        });
        match operation {
            Operation::Put(number, bytes) => {
                let content = self.content(name(number), bytes);
                self.begin("put");
                self.put(
                    host,
                    vec![content],
                    Box::new(|sim, receipts| {
                        if receipts.is_some() {
                            sim.succeed("put");
                        }
                    }),
                );
            }
            Operation::Get(number) => {
                self.begin("get");
                self.get(host, name(number), 1, |sim, done| {
                    if done {
                        sim.succeed("get");
                    }
                });
            }
            Operation::GetVersions(number, newest) => {
                self.begin("get-versions");
                self.get(host, name(number), newest, |sim, done| {
                    if done {
                        sim.succeed("get-versions");
                    }
                });
            }
            Operation::Delete(number) => self.delete(host, name(number)),
            Operation::List(number) => self.list(host, name(number)),
            Operation::Upload(dataset, count) => self.upload(host, dataset, count),
            Operation::Infer(dataset, batch, weight) => {
                let model = if batch % 2 == 0 { "lenet" } else { "resnet50" };
                self.infer(host, model, dataset, batch, weight);
            }
            Operation::Control(pick, control) => self.control(host, pick, control),
            Operation::JobInfo => self.job_info(host),
            Operation::JobStats => self.job_stats(host),
        }
    }

    fn upload(&mut self, host: HostId, dataset: String, count: u64) {
        self.begin("upload_data");
        let stem = dataset.trim_end_matches(".png").to_string();
        let files = (0..count)
            .map(|number| {
                let name = FileName::new(&format!("{stem}-{number}.png")).expect("a name");
                self.content(name, 200)
            })
            .collect();
        self.put(
            host,
            files,
            Box::new(move |sim, receipts| {
                if receipts.is_some() {
                    return sim.succeed("upload_data");
                }
                if sim.now < Time(0) + HEAL_AT {
                    let pause = Duration::from_secs(1);
                    let host = sim.some_member();
                    sim.after(pause, move |sim| {
                        if let Some(host) = host {
                            sim.upload(host, dataset, count);
                        }
                    });
                }
            }),
        );
    }

    /// A file with bytes that no other put has.
    fn content(&mut self, name: FileName, bytes: u64) -> Content {
        let mut content = Vec::with_capacity(bytes as usize);
        while (content.len() as u64) < bytes {
            let word = self.streams.workload.next_u64().to_le_bytes();
            let room = (bytes - content.len() as u64).min(8) as usize;
            content.extend_from_slice(&word[..room]);
            if content.len() >= 64 {
                // Unique enough; the rest is filler.
                content.resize(bytes as usize, 0);
            }
        }
        Content::new(name, content)
    }
}
