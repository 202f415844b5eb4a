//! The inputs of one job that have no row yet: which may be handed out, and to whom.
//!
//! Decides: where an input without a row stands. It is in exactly one of four places:
//! *waiting* (fresh, returned, failed once, or put off for want of a copy), *active* (in a task that is on time), or
//! *proposed* (its row is on the way into the log). Leaves to others: which job is
//! served, and every rule about nodes and time.
//!
//! Order: inputs that came back go first, then fresh ones: those that the node was told to
//! prepare, those that it holds, others, and then those that other nodes were told to prepare.
//! Last, and one by one, go those whose node died while it ran them: they may have killed it.
//! An input is overtaken by at most [`SPAN`] later ones (and sixteen batches), so none
//! starves. Memory: a fresh input costs nothing until it is in the window.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::jobs::Job;
use crate::planted::{self, Bug};
use crate::types::{NodeId, Time};
use crate::wire::schedule::AssignmentId;

/// Fresh inputs that are looked at for one task, and failed ones.
const WINDOW: usize = 256;
/// A fresh input is handed out only while the oldest waiting one is at most so far behind.
const SPAN: u32 = 1_024;
/// An input that was being run when its node died is tried alone from then on, so that its
/// neighbours in a task are not taken for it. After so many deaths in all it gets an error row:
/// three could be three innocent nodes of a bad network (simulated: one seed in 800).
pub(super) const LOSSES_MAX: u8 = 5;
/// Errors of one input after which its row is an error whatever nodes there are.
const ERRORS_MAX: usize = 3;

/// An input of which no copy can be read is tried again after so long,
const UNREAD_WAIT: Duration = Duration::from_secs(2);
/// and given an error row after so long: whoever has a copy may be back by then.
const UNREAD_PATIENCE: Duration = Duration::from_secs(60);

/// What to do about an error that a node reported for an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Let another node try.
    Retry,
    /// It is the input: give it an error row.
    Row,
    /// This report was counted before.
    Known,
}

/// The inputs of one job without a row.
#[derive(Clone, Debug, Default)]
pub(super) struct Backlog {
    total: u32,
    batch: u32,
    /// Fresh inputs that a node was told to prepare, and which node.
    hinted: BTreeMap<u32, NodeId>,
    hints: BTreeMap<NodeId, BTreeSet<u32>>,
    /// From here on nothing has been looked at.
    next: u32,
    window: BTreeSet<u32>,
    returned: BTreeSet<u32>,
    /// Inputs that are to be tried alone, after all others.
    suspects: BTreeSet<u32>,
    /// How often a node died that had the input in its task.
    losses: BTreeMap<u32, u8>,
    failed: BTreeSet<u32>,
    /// Inputs that could not be read, and when they are tried again.
    put_off: BTreeMap<u32, Time>,
    /// When an input could not be read for the first time.
    unread: BTreeMap<u32, Time>,
    /// Tasks on time that contain the input.
    active: BTreeMap<u32, u32>,
    proposed: BTreeSet<u32>,
    /// Who failed an input, in which assignment; at most [`ERRORS_MAX`] each.
    errors: BTreeMap<u32, Vec<(NodeId, AssignmentId)>>,
}

impl Backlog {
    pub(super) fn new(job: &Job) -> Backlog {
        Backlog {
            total: job.inputs.len() as u32,
            batch: job.batch,
            ..Backlog::default()
        }
    }

    /// Rows that are on their way into the log.
    pub(super) fn proposed(&self) -> u64 {
        self.proposed.len() as u64
    }

    /// Forgets the inputs that have a row by now.
    pub(super) fn forget_rows(&mut self, job: &Job) {
        let open = |input: &u32| !job.has_row(*input);
        let fresh = self.window.iter().chain(self.hinted.keys());
        let late: Vec<u32> = fresh.filter(|i| !open(i)).copied().collect();
        late.into_iter().for_each(|input| self.unqueue(input));
        self.returned.retain(open);
        self.suspects.retain(open);
        self.losses.retain(|input, _| open(input));
        self.failed.retain(open);
        self.put_off.retain(|input, _| open(input));
        self.unread.retain(|input, _| open(input));
        self.proposed.retain(open);
        self.errors.retain(|input, _| open(input));
    }

    /// Draws fresh inputs into the window; whether any node may be given something now.
    pub(super) fn has_work_for_all(&mut self, job: &Job) -> bool {
        let wanted = WINDOW.max(2 * self.batch as usize);
        while self.window.len() < wanted && self.next < self.total {
            let input = self.next;
            self.next += 1;
            let queued = self.returned.contains(&input)
                || self.suspects.contains(&input)
                || self.failed.contains(&input)
                || self.put_off.contains_key(&input);
            if self.wants(job, input) && !self.is_active(input) && !queued {
                self.window.insert(input);
            }
        }
        self.is_open_to_all()
    }

    /// Whether there is something that was not looked at yet.
    pub(super) fn has_fresh(&self) -> bool {
        self.next < self.total
    }

    /// Whether something waits that any node may do.
    pub(super) fn is_open_to_all(&self) -> bool {
        let fresh = !self.window.is_empty() || !self.hinted.is_empty();
        fresh || !self.returned.is_empty() || !self.suspects.is_empty()
    }

    /// Whether a failed input waits that `node` may try; `others` are all that could.
    pub(super) fn is_open_to(&self, node: &NodeId, others: &[&NodeId]) -> bool {
        self.failed_for(node, others).next().is_some()
    }

    /// Failed inputs that `node` may try: it has not failed them, or nobody else is left.
    fn failed_for<'a>(
        &'a self,
        node: &'a NodeId,
        others: &'a [&'a NodeId],
    ) -> impl Iterator<Item = u32> + 'a {
        let may_try = move |input: &u32| {
            !self.has_failed(*input, node) || !others.iter().any(|n| !self.has_failed(*input, n))
        };
        self.failed.iter().take(WINDOW).copied().filter(may_try)
    }

    /// Whether inputs wait that a node has failed.
    pub(super) fn has_failed_inputs(&self) -> bool {
        !self.failed.is_empty()
    }

    fn has_failed(&self, input: u32, node: &NodeId) -> bool {
        let errors = self.errors.get(&input);
        errors.is_some_and(|errors| errors.iter().any(|(who, _)| who == node))
    }

    fn is_active(&self, input: u32) -> bool {
        self.active.contains_key(&input)
    }

    /// Takes at most `count` inputs for `node` and makes them active; ascending.
    pub(super) fn take(
        &mut self,
        node: &NodeId,
        others: &[&NodeId],
        count: usize,
        holds: &dyn Fn(u32) -> bool,
    ) -> Vec<u32> {
        let mut taken: Vec<u32> = self.failed_for(node, others).take(count).collect();
        taken.extend(self.returned.iter().take(count - taken.len()));
        taken.extend(self.choose_fresh(node, count - taken.len(), holds));
        if taken.is_empty() {
            taken.extend(self.suspects.first());
        }
        taken.sort_unstable();
        for input in &taken {
            self.activate(*input);
        }
        if planted::is(Bug::TaskTwice) {
            self.returned.extend(&taken);
        }
        taken
    }

    /// Fresh inputs for `node`, in this module's order.
    fn choose_fresh(&self, node: &NodeId, count: usize, holds: &dyn Fn(u32) -> bool) -> Vec<u32> {
        let own = self.hints.get(node).into_iter().flatten();
        let mut chosen: Vec<u32> = own.take(count).copied().collect();
        chosen.extend(self.choose_unhinted(count - chosen.len(), holds));
        let hinted = self.hinted.range(..self.horizon());
        let others = hinted.filter(|(_, other)| *other != node);
        let missing = count - chosen.len();
        chosen.extend(others.map(|(input, _)| *input).take(missing));
        chosen
    }

    /// Fresh inputs that no node was told to prepare, those that the node holds first.
    fn choose_unhinted(&self, count: usize, holds: &dyn Fn(u32) -> bool) -> Vec<u32> {
        let free = || self.window.range(..self.horizon()).copied();
        let mut chosen: Vec<u32> = free().filter(|input| holds(*input)).take(count).collect();
        let missing = count - chosen.len();
        if missing > 0 {
            let held: BTreeSet<u32> = chosen.iter().copied().collect();
            chosen.extend(free().filter(|input| !held.contains(input)).take(missing));
        }
        chosen
    }

    /// Fresh inputs before this one may be handed out now.
    fn horizon(&self) -> u32 {
        let hinted = self.hinted.first_key_value().map(|(input, _)| *input);
        let oldest = hinted.into_iter().chain(self.window.first().copied()).min();
        let span = SPAN.max(16 * self.batch);
        oldest.unwrap_or(0).saturating_add(span)
    }

    /// Fresh inputs that `node` is to prepare beside those that it was told before, so that they
    /// are a whole task.
    pub(super) fn hint(&mut self, node: &NodeId, holds: &dyn Fn(u32) -> bool) -> Vec<u32> {
        let known = self.hints.get(node).map_or(0, BTreeSet::len);
        let missing = (self.batch as usize).saturating_sub(known);
        let mut chosen = self.choose_unhinted(missing, holds);
        chosen.sort_unstable();
        for input in &chosen {
            self.window.remove(input);
            self.hinted.insert(*input, node.clone());
        }
        if !chosen.is_empty() {
            self.hints.entry(node.clone()).or_default().extend(&chosen);
        }
        chosen
    }

    /// What `node` has prepared is lost.
    pub(super) fn forget_hints(&mut self, node: &NodeId) {
        for input in self.hints.remove(node).into_iter().flatten() {
            self.hinted.remove(&input);
            self.window.insert(input);
        }
    }

    /// A task on time contains `input`.
    pub(super) fn activate(&mut self, input: u32) {
        self.unqueue(input);
        *self.active.entry(input).or_default() += 1;
    }

    /// A task with `input` has ended or is late. [`Backlog::release`] decides what follows.
    pub(super) fn deactivate(&mut self, input: u32) {
        if let Some(copies) = self.active.get_mut(&input) {
            *copies -= 1;
            if *copies == 0 {
                self.active.remove(&input);
            }
        }
    }

    fn unqueue(&mut self, input: u32) {
        self.window.remove(&input);
        if let Some(node) = self.hinted.remove(&input)
            && let Some(hints) = self.hints.get_mut(&node)
        {
            hints.remove(&input);
        }
        self.returned.remove(&input);
        self.suspects.remove(&input);
        self.failed.remove(&input);
        self.put_off.remove(&input);
    }

    /// No copy of `input` could be read: it is tried again later, unless it has its row, or a
    /// task on time has it. False where this has gone on for too long.
    pub(super) fn put_off(&mut self, now: Time, job: &Job, input: u32) -> bool {
        let first = *self.unread.entry(input).or_insert(now);
        if first + UNREAD_PATIENCE <= now {
            return false;
        }
        if self.wants(job, input) && !self.is_active(input) {
            self.unqueue(input);
            self.put_off.insert(input, now + UNREAD_WAIT);
        }
        true
    }

    /// Lets those inputs be handed out again whose time has come; whether there are any.
    pub(super) fn try_again(&mut self, now: Time, job: &Job) -> bool {
        let due = self.put_off.extract_if(.., |_, at| *at <= now);
        let due: Vec<u32> = due.map(|(input, _)| input).collect();
        due.iter().for_each(|input| self.release(job, *input));
        !due.is_empty()
    }

    /// When [`Backlog::try_again`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.put_off.values().copied().min()
    }

    /// `input` is to be handed out again, unless it has its row, or a task on time has it.
    pub(super) fn release(&mut self, job: &Job, input: u32) {
        if input >= self.total
            || job.has_row(input)
            || self.proposed.contains(&input)
            || self.put_off.contains_key(&input)
            || self.is_active(input)
        {
            return;
        }
        self.unqueue(input);
        if self.errors.contains_key(&input) {
            self.failed.insert(input);
        } else if self.has_losses(input) {
            self.suspects.insert(input);
        } else {
            self.returned.insert(input);
        }
    }

    /// A node died that had `input` in its task: whether that has happened too often.
    pub(super) fn lose(&mut self, input: u32) -> bool {
        let losses = self.losses.entry(input).or_default();
        *losses = losses.saturating_add(1);
        *losses >= LOSSES_MAX
    }

    /// Whether a node has died that had `input` in its task.
    pub(super) fn has_losses(&self, input: u32) -> bool {
        self.losses.contains_key(&input)
    }

    /// Whether a row of `input` is still wanted.
    pub(super) fn wants(&self, job: &Job, input: u32) -> bool {
        let open = !job.has_row(input) && !self.proposed.contains(&input);
        input < self.total && (open || planted::is(Bug::RowTwice))
    }

    /// The row of `input` goes to the log.
    pub(super) fn propose(&mut self, input: u32) {
        self.unqueue(input);
        self.errors.remove(&input);
        self.losses.remove(&input);
        self.unread.remove(&input);
        self.proposed.insert(input);
    }

    /// `node` could not do `input`; `others` are the nodes that could try.
    pub(super) fn judge(
        &mut self,
        input: u32,
        node: &NodeId,
        id: AssignmentId,
        others: &[&NodeId],
    ) -> Verdict {
        let errors = self.errors.entry(input).or_default();
        if errors.iter().any(|(_, known)| *known == id) {
            return Verdict::Known;
        }
        errors.push((node.clone(), id));
        let by_two = errors.iter().any(|(who, _)| who != node);
        let repeated = errors.len() > 1;
        let exhausted = errors.len() >= ERRORS_MAX;
        let nobody_else = !others.iter().any(|other| !self.has_failed(input, other));
        if by_two || exhausted || (repeated && nobody_else) {
            return Verdict::Row;
        }
        Verdict::Retry
    }

    /// Checks that every input without a row is waiting, active or proposed, and in one
    /// waiting place at most; `active` is how often each one is in a task on time.
    pub(super) fn check(&self, job: &Job, active: &BTreeMap<u32, u32>) -> Result<(), String> {
        if self.active != *active {
            return Err(format!(
                "job {}: active {:?}, tasks {active:?}",
                job.id, self.active
            ));
        }
        let told = |(node, inputs): (&NodeId, &BTreeSet<u32>)| {
            let is_told = |input: &u32| self.hinted.get(input) == Some(node);
            inputs.iter().filter(|input| is_told(input)).count()
        };
        if self.hints.iter().map(told).sum::<usize>() != self.hinted.len() {
            return Err(format!("job {}: hints {:?}", job.id, self.hints));
        }
        for input in 0..self.total {
            let queues = [&self.window, &self.returned, &self.failed, &self.suspects];
            let mut places = queues.iter().filter(|set| set.contains(&input)).count();
            places += usize::from(self.hinted.contains_key(&input));
            places += usize::from(self.put_off.contains_key(&input));
            places += usize::from(self.is_active(input));
            places += usize::from(places == 0 && input >= self.next);
            if places > 1 || (places == 0 && self.wants(job, input)) {
                return Err(format!("job {}: input {input} in {places} places", job.id));
            }
        }
        Ok(())
    }
}
