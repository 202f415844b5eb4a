//! Three nodes die at one step of a put, a get, a delete, a repair and a change of voters: each
//! step in a run of its own.
//!
//! Decides: the scenario, and that a step is one event of the simulation between
//! [`FROM`] and [`UNTIL`]. Leaves to others: what must hold then (`watchers`, `convergence`).

use std::time::Duration;

use dlc::types::{Rng, Time};

use crate::cluster::Sim;
use crate::faults::Fault;
use crate::workload::{Operation, Plan};

const NODES: usize = 6;
const FROM: Duration = Duration::from_secs(10);
const UNTIL: Duration = Duration::from_millis(12_500);
const DEATHS: usize = 3;

/// Makes `plan` the scenario: five nodes at work, one that joins, one that dies.
pub fn make_scenario(plan: &mut Plan) {
    let at = |milliseconds| FROM + Duration::from_millis(milliseconds);
    plan.crash_stop = false;
    plan.faults = vec![(at(900), Fault::Crash(4, Duration::from_secs(9)))];
    plan.operations = vec![
        (at(5), Operation::Put(0, 4_000)),
        (at(100), Operation::Put(0, 200_000)),
        (at(150), Operation::Get(0)),
        (at(250), Operation::GetVersions(0, 2)),
        (at(350), Operation::Delete(0)),
        (at(450), Operation::Put(0, 100)),
        (at(500), Operation::Upload("set0.png".into(), 20)),
        (at(1_000), Operation::Put(1, 4_000)),
        (at(1_100), Operation::Infer("set0.png".into(), 3, 1)),
        (at(1_300), Operation::Delete(1)),
        (at(1_500), Operation::Get(0)),
    ];
    plan.starts.resize(NODES, Duration::ZERO);
    plan.starts[..NODES - 1].fill(Duration::from_millis(300));
    plan.starts[NODES - 1] = at(600);
    plan.nodes = NODES;
}

impl Sim {
    /// Counts the steps; at the one that is meant three nodes die.
    pub fn step(&mut self) {
        if self.now < Time(0) + FROM || self.now >= Time(0) + UNTIL {
            return;
        }
        self.steps += 1;
        if self.plan.deaths_at == Some(self.steps) {
            let mut random = Rng::new(self.steps);
            let mut nodes: Vec<usize> = (0..NODES).collect();
            while nodes.len() > DEATHS {
                nodes.remove(random.below(nodes.len() as u64) as usize);
            }
            let span = random.span(Duration::from_millis(500), Duration::from_secs(10));
            self.strike(Fault::CrashMany(nodes, span));
        }
    }
}
