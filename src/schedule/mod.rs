//! CORE 4: what runs where.
//!
//! Decides: which node runs which inputs of which job (the leader's [`Scheduler`]), when a
//! node takes a task ([`Worker`](worker::Worker)), and what the jobs are
//! ([`Jobs`](jobs::Jobs), on the log). Leaves to others: which files a data set has, where
//! bytes are, who leads, and running a network.
//!
//! Takes: the live members, the workers' statuses and results, the applied jobs. Emits:
//! messages to workers, and finished tasks for the log. Everything here is volatile: the
//! next leader builds its own from the nodes' reports and the log.
//!
//! Invariants, asserted by [`Scheduler::check_invariants`] and by the tests:
//! - One task per node (P8): a node has a place for one task; an assignment consumes the
//!   token that the node gave with its last result, and the worker accepts it only while
//!   idle. A copy that was given up counts for its node until it has ended.
//! - Each input without a row is waiting, in a task on time, or proposed (P7 follows, as
//!   a row counts once when it is applied).
//! - The passes of compared jobs differ by at most the bound in [`fair`] (P9). Compared
//!   are jobs that have inputs left which any node may take, and whose network is loaded
//!   on every node that works for any such job.
//!
//! Data is early, tasks are not queued: an assignment carries hints of what the node is likely
//! to be given next, so that it can read and decode that while it computes.

mod arrivals;
mod backlog;
mod choice;
#[cfg(test)]
mod cluster_tests;
pub mod fair;
#[cfg(test)]
mod harness;
pub mod jobs;
#[cfg(test)]
mod jobs_tests;
mod profile;
pub mod rows;
mod tail;
#[cfg(test)]
mod tail_tests;
#[cfg(test)]
mod tests;
mod timing;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use backlog::Backlog;
use fair::Share;
use jobs::{BATCH_MAX, Job, Jobs};
use profile::Profiles;
use worker::LIFE_SHIFT;

use crate::types::{Digest, JobId, NodeId, Term, Time};
use crate::wire::client::NodeProfile;
use crate::wire::schedule::{
    Assignment, AssignmentId, FinishedTask, Input, ScheduleMessage, WorkerStatus,
};
use crate::wire::store::Target;

/// Queries are repeated, and statuses and results sent, after this time.
pub const REPEAT: Duration = Duration::from_millis(500);
/// Assignments are repeated after this time: a status could have shown them by then.
const ASSIGN_REPEAT: Duration = Duration::from_millis(750);
/// Finished tasks wait for others for this long before they go to the log together.
const GATHER: Duration = Duration::from_millis(10);
/// A new leader waits so long for the reports of all live nodes before its first
/// assignment, lest it hands out what a node that it has not heard yet is running.
const REPORT_GRACE: Duration = Duration::from_millis(200);
/// Shortest time after which a task is given to another node as well.
const DEADLINE_MIN: Duration = Duration::from_secs(10);
/// The same before any task of the job has been measured.
const DEADLINE_UNMEASURED: Duration = Duration::from_secs(120);
/// A task is late after so many times what the job's slowest query would have needed.
const DEADLINE_FACTOR: u64 = 8;
/// `assigned_nodes` looks back so far.
const ASSIGNED_WINDOW: Duration = Duration::from_secs(10);
/// Longest label or error text that is taken from a worker, in bytes; cut beyond.
pub const TEXT_MAX: usize = 1_024;
/// Tasks taken from dead nodes whose dispatch is remembered; the oldest is forgotten, and
/// a late result of it counts as dispatched when this leader began.
const LOST_MAX: usize = 1_024;
/// Rows in one proposal; more are proposed by another one in the same turn.
const PROPOSAL_ROWS_MAX: usize = 8_192;

/// What the scheduler asks about the files of inputs.
pub trait Holders {
    /// Places in `table` of the live holders of an input's bytes; those that are not in it yet
    /// are added.
    fn sources(&self, input: &Input, table: &mut Vec<Target>) -> Vec<u16>;

    /// Whether `node` is one of them.
    fn holds(&self, node: &NodeId, input: &Input) -> bool;
}

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleOutput {
    /// Send to the worker of that node (perhaps this one).
    Send {
        /// Whose worker.
        to: NodeId,
        /// `Query`, `Assign` or `DoneAck`.
        message: ScheduleMessage,
    },
    /// Append to the log as `JobCommand::Finished`.
    Propose(Vec<FinishedTask>),
}

/// The one task of a node.
#[derive(Clone, Debug)]
struct Task {
    id: AssignmentId,
    token: u64,
    job: JobId,
    inputs: Vec<u32>,
    dispatched: Time,
    /// When the node's last result came, if there has been work for it since.
    freed: Option<Time>,
    /// A status has shown it, or a former leader gave it.
    confirmed: bool,
    /// Its inputs have been released to other nodes.
    late: bool,
    /// Another node has been given the same as well.
    copied: bool,
    /// To be sent again, until it is confirmed.
    assignment: Option<Assignment>,
    repeat_at: Time,
    /// When it becomes late.
    deadline: Time,
}

/// A live node.
#[derive(Clone, Debug)]
struct Node {
    /// Whether it has reported in this term.
    reported: bool,
    query_at: Time,
    token: u64,
    models: BTreeSet<(String, Digest)>,
    task: Option<Task>,
    /// Its last result, if it has not been told yet that it arrived.
    arrived: Option<AssignmentId>,
    /// When that came, if there has been work for the node since.
    freed: Option<Time>,
}

/// The volatile side of an unfinished job.
#[derive(Clone, Debug)]
struct Active {
    model: (String, Digest),
    batch: u32,
    share: Share,
    backlog: Backlog,
    counted: u64,
    in_flight: u64,
    /// Longest time per query of a finished task, in nanoseconds.
    slowest: u64,
    started: bool,
    assigned: BTreeMap<NodeId, Time>,
    profiles: Profiles,
    /// A user holds it: nothing more of it is handed out.
    paused: bool,
    /// Has work for all, and a node for it.
    open: bool,
    /// Open, and no working node lacks its network.
    compared: bool,
}

impl Active {
    /// Brings the share in line with what is completed and in flight.
    fn settle(&mut self) {
        let served = self.counted + self.backlog.proposed() + self.in_flight;
        self.share.settle(served);
    }

    /// Whether there is something that any node may do.
    fn has_work_for_all(&mut self, job: &Job) -> bool {
        // Also where it is paused: what it draws it will need.
        self.backlog.has_work_for_all(job) && !self.paused
    }

    /// Whether there is something that `node` may do; `usable` are all who could.
    fn has_work_for<'a>(&self, node: &NodeId, usable: impl Fn() -> Vec<&'a NodeId>) -> bool {
        let may_retry =
            || self.backlog.has_failed_inputs() && self.backlog.is_open_to(node, &usable());
        !self.paused && (self.backlog.is_open_to_all() || may_retry())
    }

    /// Whether it may be open where it is not thought to be, or the other way round.
    fn is_open_otherwise(&self) -> bool {
        let has_work = self.backlog.is_open_to_all() || self.backlog.has_fresh();
        self.open != (has_work && !self.paused)
    }

    fn deadline(&self, queries: u64) -> Duration {
        if self.slowest == 0 {
            return DEADLINE_UNMEASURED;
        }
        let slow = self.slowest.saturating_mul(queries);
        Duration::from_nanos(slow.saturating_mul(DEADLINE_FACTOR)).max(DEADLINE_MIN)
    }
}

/// The leader's side of scheduling, for one term.
#[derive(Clone, Debug)]
pub struct Scheduler {
    term: Term,
    began: Time,
    counter: u64,
    revision: Option<u64>,
    nodes: BTreeMap<NodeId, Node>,
    jobs: BTreeMap<JobId, Active>,
    ended: profile::Ended,
    lost: BTreeMap<AssignmentId, Time>,
    finished: VecDeque<FinishedTask>,
    finished_rows: usize,
    /// When those go to the log at the latest.
    gathered: Time,
    outbox: VecDeque<ScheduleOutput>,
    /// Which jobs are open or compared may have changed.
    reshape: bool,
    /// No free node can be given anything until something happens.
    stalled: bool,
    /// When a free node may be given a copy of a running task.
    speculate_at: Option<Time>,
    /// When inputs that could not be read are tried again, at the earliest.
    again_at: Option<Time>,
}

impl Scheduler {
    /// The scheduler of the leader of `term`, knowing nothing.
    pub fn new(term: Term, now: Time) -> Scheduler {
        Scheduler {
            term,
            began: now,
            counter: 0,
            revision: None,
            nodes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            ended: profile::Ended::default(),
            lost: BTreeMap::new(),
            finished: VecDeque::new(),
            finished_rows: 0,
            gathered: now,
            outbox: VecDeque::new(),
            reshape: true,
            stalled: false,
            speculate_at: None,
            again_at: None,
        }
    }

    /// Whether a task of `job` has been handed out, or found running, in this term.
    pub fn started(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|active| active.started)
    }

    /// Queries of `job` that are finished or in tasks; `None` where it has ended.
    pub fn served(&self, job: JobId) -> Option<u64> {
        self.jobs.get(&job).map(|active| active.share.served())
    }

    /// Nodes that were given a task of `job` in the last 10 s.
    pub fn assigned_recently(&self, job: JobId, now: Time) -> Vec<NodeId> {
        let Some(active) = self.jobs.get(&job) else {
            return Vec::new();
        };
        let recent = |at: &Time| now.since(*at) < ASSIGNED_WINDOW;
        let nodes = active.assigned.iter().filter(|(_, at)| recent(at));
        nodes.map(|(node, _)| node.clone()).collect()
    }

    /// What is known of the tasks of `job` in this term: where their time went, by node, how
    /// many queries are in tasks, and the weights of all jobs that have work left.
    pub fn profile(&self, job: JobId) -> (Vec<NodeProfile>, u64, u64) {
        let active = self.jobs.get(&job);
        let profiles = active.map(|active| &active.profiles);
        let profiles = profiles.or_else(|| self.ended.get(job));
        let nodes = profiles.map(|it| it.values().cloned().collect());
        let served = self.jobs.iter().filter(|(id, it)| it.open || **id == job);
        let weights = served.map(|(_, it)| u64::from(it.share.weight())).sum();
        let in_flight = active.map_or(0, |active| active.in_flight);
        (nodes.unwrap_or_default(), in_flight, weights)
    }

    /// Live nodes whose worker has reported in this term and has this network loaded.
    pub fn nodes_with_model(&self, name: &str, digest: Digest) -> Vec<NodeId> {
        let usable = usable(&self.nodes, &(name.into(), digest));
        usable.into_iter().cloned().collect()
    }

    /// The live members have changed. Those who left lose their task.
    pub fn handle_members(&mut self, now: Time, jobs: &Jobs, live: &BTreeSet<NodeId>) {
        self.sync(jobs);
        let gone: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for node in gone.iter().filter(|node| !live.contains(*node)) {
            self.drop_task(now, jobs, node, true);
            self.nodes.remove(node);
            self.forget_hints(node);
        }
        for node in live {
            self.nodes.entry(node.clone()).or_insert_with(|| Node {
                reported: false,
                query_at: now,
                token: 0,
                models: BTreeSet::new(),
                task: None,
                arrived: None,
                freed: None,
            });
        }
        self.wake(true);
        self.handle_timeout(now, jobs);
    }

    /// What a worker says of itself.
    fn handle_status(&mut self, now: Time, jobs: &Jobs, node: &NodeId, status: WorkerStatus) {
        self.sync(jobs);
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        if status.term != self.term || (known.reported && is_stale(known, &status)) {
            return;
        }
        let models: BTreeSet<(String, Digest)> = status.models.into_iter().collect();
        let reshape = !known.reported || known.models != models;
        known.models = models;
        known.reported = true;
        known.token = status.token;
        match status.running {
            Some((id, job, inputs)) => self.handle_running(now, jobs, node, id, job, inputs),
            None => self.handle_idle(now, jobs, node),
        }
        self.wake(reshape);
    }

    /// `node` runs this. It is what it was given, or it is taken into account instead.
    fn handle_running(
        &mut self,
        now: Time,
        jobs: &Jobs,
        node: &NodeId,
        id: AssignmentId,
        job: JobId,
        inputs: Vec<u32>,
    ) {
        let known = self.nodes.get_mut(node);
        let task = known.and_then(|known| known.task.as_mut());
        if let Some(task) = task.filter(|task| task.id == id) {
            task.confirmed = true;
            task.assignment = None;
            return;
        }
        self.drop_task(now, jobs, node, false);
        let distinct: BTreeSet<u32> = inputs.into_iter().take(BATCH_MAX as usize).collect();
        let inputs: Vec<u32> = distinct.into_iter().collect();
        let queries = inputs.len() as u64;
        let mut deadline = now + DEADLINE_UNMEASURED;
        if let Some(active) = self.jobs.get_mut(&job) {
            active.started = true;
            active.in_flight += queries;
            inputs.iter().for_each(|i| active.backlog.activate(*i));
            active.settle();
            deadline = now + active.deadline(queries);
        }
        self.reshape = true;
        if let Some(known) = self.nodes.get_mut(node) {
            known.task = Some(Task {
                id,
                token: known.token,
                job,
                inputs,
                dispatched: now,
                freed: None,
                confirmed: true,
                late: false,
                copied: false,
                assignment: None,
                repeat_at: Time::MAX,
                deadline,
            });
        }
    }

    /// `node` runs nothing. A task of an older token is over without a result; one that
    /// the node has refused for want of its network is not repeated for ever.
    fn handle_idle(&mut self, now: Time, jobs: &Jobs, node: &NodeId) {
        let Some(known) = self.nodes.get(node) else {
            return;
        };
        let Some(task) = &known.task else { return };
        let ended = known.token > task.token;
        let model = self.jobs.get(&task.job).map(|active| &active.model);
        let lacking = model.is_none_or(|model| !known.models.contains(model));
        if ended || (lacking && now.since(task.dispatched) >= REPEAT) {
            // Else another leader has its result.
            let died = known.token >> LIFE_SHIFT > task.token >> LIFE_SHIFT;
            self.drop_task(now, jobs, node, ended && died);
        }
    }

    /// A message from the worker of `node`, which a connection of its has proved.
    pub fn handle_message(
        &mut self,
        now: Time,
        jobs: &Jobs,
        node: &NodeId,
        message: ScheduleMessage,
    ) {
        match message {
            ScheduleMessage::Status(status) => self.handle_status(now, jobs, node, status),
            ScheduleMessage::Done {
                id,
                job,
                rows,
                times,
                status,
            } => {
                self.handle_done(now, jobs, node, id, (job, rows), times);
                self.handle_status(now, jobs, node, status);
            }
            // For the worker's side: another leader's mistake, of no consequence here.
            ScheduleMessage::Query { .. }
            | ScheduleMessage::Assign { .. }
            | ScheduleMessage::DoneAck { .. } => {}
        }
    }

    /// Log entries have changed `jobs`: new jobs, rows, ended jobs.
    pub fn handle_applied(&mut self, jobs: &Jobs) {
        self.sync(jobs);
    }

    /// The clock has reached `poll_timeout`.
    pub fn handle_timeout(&mut self, now: Time, jobs: &Jobs) {
        self.sync(jobs);
        let mut late = Vec::new();
        for (name, node) in &mut self.nodes {
            let mut message = None;
            if !node.reported && node.query_at <= now {
                node.query_at = now + REPEAT;
                message = Some(ScheduleMessage::Query { term: self.term });
            }
            if let Some(task) = &mut node.task {
                if task.repeat_at <= now
                    && let Some(assignment) = &task.assignment
                {
                    task.repeat_at = now + ASSIGN_REPEAT;
                    let (term, assignment) = (self.term, assignment.clone());
                    message = Some(ScheduleMessage::Assign { term, assignment });
                }
                if !task.late && task.deadline <= now {
                    task.late = true;
                    late.push((task.job, task.inputs.clone()));
                }
            }
            if let Some(message) = message {
                let to = name.clone();
                self.outbox.push_back(ScheduleOutput::Send { to, message });
            }
        }
        for (job, inputs) in &late {
            self.release(jobs, *job, inputs, true);
        }
        let again = self.again_at.is_some_and(|at| at <= now) && self.try_again(now, jobs);
        if again || !late.is_empty() {
            self.wake(true);
        } else if self.speculate_at.is_some_and(|at| at <= now) {
            self.wake(false);
        }
    }

    /// The next output, or `None` where nothing is left to do now.
    pub fn poll_output(
        &mut self,
        now: Time,
        jobs: &Jobs,
        holders: &dyn Holders,
    ) -> Option<ScheduleOutput> {
        self.sync(jobs);
        if let Some(tasks) = self.next_proposal(now) {
            return Some(ScheduleOutput::Propose(tasks));
        }
        if !self.stalled && !self.is_waiting_for_reports(now) {
            if let Some(output) = self.assign(now, jobs, holders) {
                return Some(output);
            }
            self.stalled = true;
            let nodes = self.nodes.values_mut();
            nodes.for_each(|node| node.freed = None);
        }
        self.acknowledge_all();
        self.outbox.pop_front()
    }

    /// Gives the next free node a task, if there is one.
    fn assign(&mut self, now: Time, jobs: &Jobs, holders: &dyn Holders) -> Option<ScheduleOutput> {
        self.reshape(jobs);
        let free = |node: &&Node| node.reported && node.task.is_none();
        let nodes = self.nodes.iter().filter(|(_, node)| free(node));
        let found = nodes
            .filter_map(|(name, node)| Some((name.clone(), self.choose(name, node)?)))
            .next();
        match found {
            Some((node, job)) => self.dispatch(now, jobs, &node, job, holders),
            None => self.speculate(now, jobs, holders),
        }
    }

    /// When [`Scheduler::handle_timeout`] is due, if ever.
    pub fn poll_timeout(&self) -> Option<Time> {
        let grace = (!self.all_reported()).then_some(self.began + REPORT_GRACE);
        let grace = grace.filter(|_| self.stalled_by_grace());
        let of_node = |node: &Node| {
            let query = (!node.reported).then_some(node.query_at);
            let task = node.task.as_ref();
            let repeat = task.filter(|task| task.assignment.is_some());
            let deadline = task.filter(|task| !task.late);
            [
                query,
                repeat.map(|task| task.repeat_at),
                deadline.map(|task| task.deadline),
            ]
        };
        let nodes = self.nodes.values().flat_map(of_node).flatten();
        let gathered = self.gathered_at();
        nodes
            .chain(grace)
            .chain(self.again_at)
            .chain(gathered)
            .chain(self.speculate_at)
            .min()
    }

    /// Checks what must hold between calls, and says what does not.
    pub fn check_invariants(&self, jobs: &Jobs) -> Result<(), String> {
        for (id, active) in &self.jobs {
            let of_job = |node: &&Task| node.job == *id;
            let tasks = self.nodes.values().filter_map(|node| node.task.as_ref());
            let mut in_flight = 0;
            let mut on_time: BTreeMap<u32, u32> = BTreeMap::new();
            for task in tasks.filter(of_job) {
                in_flight += task.inputs.len() as u64;
                let inputs = task.inputs.iter().filter(|_| !task.late);
                inputs.for_each(|input| *on_time.entry(*input).or_default() += 1);
            }
            let served = active.counted + active.backlog.proposed() + in_flight;
            if in_flight != active.in_flight || served != active.share.served() {
                return Err(format!("job {id}: served {served}, {active:?}"));
            }
            if let Some(job) = jobs.job(*id) {
                active.backlog.check(job, &on_time)?;
            }
        }
        self.check_bound()
    }

    /// The bound of [`fair`], between all compared jobs.
    fn check_bound(&self) -> Result<(), String> {
        let compared = || self.jobs.iter().filter(|(_, active)| active.compared);
        for (ahead, high) in compared() {
            for (behind, low) in compared() {
                if !self.reshape && !high.share.is_within_bound(&low.share) {
                    let (high, low) = (&high.share, &low.share);
                    return Err(format!(
                        "job {ahead} is too far ahead of job {behind}: {high:?}, {low:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    // Members of the next group change or read the state for those above.

    fn wake(&mut self, reshape: bool) {
        self.stalled = false;
        self.speculate_at = None;
        self.reshape |= reshape;
    }

    /// Hands out again what could not be read some time ago; whether there was any.
    fn try_again(&mut self, now: Time, jobs: &Jobs) -> bool {
        let mut found = false;
        for (id, active) in &mut self.jobs {
            if let Some(job) = jobs.job(*id)
                && active.backlog.try_again(now, job)
            {
                active.settle();
                found = true;
            }
        }
        let jobs = self.jobs.values();
        let next = jobs.filter_map(|active| active.backlog.poll_timeout());
        self.again_at = next.min();
        found
    }

    fn all_reported(&self) -> bool {
        self.nodes.values().all(|node| node.reported)
    }

    fn stalled_by_grace(&self) -> bool {
        !self.stalled && self.nodes.values().any(|node| node.reported)
    }

    fn is_waiting_for_reports(&self, now: Time) -> bool {
        now < self.began + REPORT_GRACE && !self.all_reported()
    }

    /// Takes over what the log has decided since the last time.
    fn sync(&mut self, jobs: &Jobs) {
        if self.revision == Some(jobs.revision()) {
            return;
        }
        self.revision = Some(jobs.revision());
        let open = || jobs.unfinished().filter(|job| !job.is_cancelled());
        let unfinished: BTreeSet<JobId> = open().map(|job| job.id).collect();
        let known = self.jobs.len();
        let gone = self.jobs.extract_if(.., |id, _| !unfinished.contains(id));
        for (id, active) in gone {
            self.ended.add(id, active.profiles);
        }
        let mut reshape = self.jobs.len() < known;
        for job in open() {
            let known = self.jobs.entry(job.id);
            let active = known.or_insert_with(|| Active::new(job));
            active.paused = job.is_paused();
            if active.share.weight() != job.weight {
                // It enters anew, so that its old lead or lag is not weighed anew.
                active.share.set_weight(job.weight);
                (active.open, active.compared) = (false, false);
            }
            if active.counted != job.counted() {
                active.counted = job.counted();
                active.backlog.forget_rows(job);
                active.settle();
            }
            reshape |= active.is_open_otherwise();
        }
        self.wake(reshape);
    }

    /// What `node` has prepared is lost.
    fn forget_hints(&mut self, node: &NodeId) {
        let jobs = self.jobs.values_mut();
        jobs.for_each(|active| active.backlog.forget_hints(node));
    }

    /// Takes the task off `node`, if it is there and `which` holds of it.
    fn end_task(&mut self, node: &NodeId, which: impl Fn(&Task) -> bool) -> Option<Task> {
        let known = self.nodes.get_mut(node)?;
        let task = known.task.take_if(|task| which(task))?;
        if let Some(active) = self.jobs.get_mut(&task.job) {
            active.in_flight -= task.inputs.len() as u64;
            let on_time = task.inputs.iter().filter(|_| !task.late);
            on_time.for_each(|input| active.backlog.deactivate(*input));
        }
        Some(task)
    }

    /// The task of `node` has ended without a result: its inputs are handed out again, those of
    /// a node that has `died` alone and after all others.
    fn drop_task(&mut self, now: Time, jobs: &Jobs, node: &NodeId, died: bool) {
        let Some(task) = self.end_task(node, |_| true) else {
            return;
        };
        if died {
            self.blame(now, jobs, node, &task);
        }
        self.release(jobs, task.job, &task.inputs, false);
        self.lost.insert(task.id, task.dispatched);
        if self.lost.len() > LOST_MAX {
            self.lost.pop_first();
        }
    }

    fn release(&mut self, jobs: &Jobs, job: JobId, inputs: &[u32], deactivate: bool) {
        if let (Some(active), Some(found)) = (self.jobs.get_mut(&job), jobs.job(job)) {
            for input in inputs {
                if deactivate {
                    active.backlog.deactivate(*input);
                }
                active.backlog.release(found, *input);
            }
            active.settle();
        }
        self.reshape = true;
    }
}

/// Live nodes that have reported and have `model` loaded.
fn usable<'a>(nodes: &'a BTreeMap<NodeId, Node>, model: &(String, Digest)) -> Vec<&'a NodeId> {
    let has = |node: &&Node| node.reported && node.models.contains(model);
    let nodes = nodes.iter().filter(|(_, node)| has(node));
    nodes.map(|(name, _)| name).collect()
}

impl Active {
    fn new(job: &Job) -> Active {
        Active {
            model: (job.model.name.clone(), job.model.digest),
            batch: job.batch,
            share: Share::new(job.batch, job.weight, job.counted()),
            backlog: Backlog::new(job),
            counted: job.counted(),
            in_flight: 0,
            slowest: 0,
            started: false,
            assigned: BTreeMap::new(),
            profiles: Profiles::new(),
            paused: job.is_paused(),
            open: false,
            compared: false,
        }
    }
}

/// Whether `status` is older than what is known of the node. Within one token a node is
/// first idle, then running.
fn is_stale(known: &Node, status: &WorkerStatus) -> bool {
    let confirmed = |task: &Task| task.confirmed && task.token == status.token;
    let superseded = status.running.is_none() && known.task.as_ref().is_some_and(confirmed);
    status.token < known.token || superseded
}
