//! The coordinator's volatile side, while this node leads: what is proposed and who
//! waits for it.
//!
//! Decides: that a changing command is proposed once, answered when it is durable, and
//! that a read is answered only after the leadership was confirmed. All of it is
//! rebuilt from the log and the nodes' reports after a take-over. Leaves to others: the
//! rules of placement, repair, scheduling and voting (their own modules).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::results::Results;
use super::state::{Outcome, State};
use super::{Node, voters};
use crate::consensus::{Entry, Payload, ReadId, Role};
use crate::planted::{self, Bug};
use crate::schedule::jobs::{BATCH_MAX, Jobs, Published, WEIGHT_MAX};
use crate::schedule::{Holders, ScheduleOutput, Scheduler};
use crate::store::placement;
use crate::store::repair::{Repair, RepairOutput};
use crate::store::uploads::{Abandoned, Uploads};
use crate::types::{BlobId, Index, Member, NodeId, RequestId, Server, Term, Time, View};
use crate::wire::client::{PUT_FILES_MAX, Refusal, Reply, Request};
use crate::wire::peer::{Change, Command, PeerMessage};
use crate::wire::schedule::{FailedModel, Input, JobCommand, JobControl, Model, ScheduleMessage};
use crate::wire::store::{CatalogCommand, ReplicaChange, StoreMessage, Target};

/// Most commands that are proposed and wait for their answers; further ones are told
/// to come back.
const WAITING_MAX: usize = 10_000;

/// How long the death of a member may go unnoticed (P1).
const NOTICE_TIME: Duration = Duration::from_secs(6);

/// Who is to get an answer: a node, and its number for the command.
pub type ReplyTo = (Server, u64);

/// What a leader keeps besides the log.
pub struct Leading {
    /// The reign.
    pub term: Term,
    /// Its first entry is applied: it knows all that its predecessors committed.
    pub ready: bool,
    /// Who runs what.
    pub scheduler: Scheduler,
    /// Uploads between begin and commit.
    pub uploads: Uploads,
    /// Copies being made.
    pub repair: Repair,
    /// Where the last change of copies stands in the log.
    changed: Index,
    /// Result files being made.
    pub results: Results,
    /// What each node says it could not load: name, digest and reason.
    load_failures: BTreeMap<NodeId, Vec<FailedModel>>,
    /// Proposed commands of clients, until they are applied.
    waiting: BTreeMap<RequestId, (Request, Vec<ReplyTo>)>,
    /// Since when a commit has had fewer copies than the members ask for.
    short: BTreeMap<RequestId, Time>,
    /// Applied ones, until their entry is durable.
    answers: VecDeque<(Index, ReplyTo, Reply)>,
    durable: Index,
    /// Reads that began in this turn.
    new_reads: Vec<(ReplyTo, Request)>,
    /// Reads whose leadership is being confirmed.
    reads: BTreeMap<ReadId, Vec<(ReplyTo, Request)>>,
}

impl Leading {
    /// A reign as it begins: nothing is known but the log and the view.
    pub fn new(term: Term, now: Time, jobs: &Jobs, view: &View) -> Leading {
        let mut leading = Leading {
            term,
            ready: false,
            scheduler: Scheduler::new(term, now),
            uploads: Uploads::new(term),
            repair: Repair::new(term),
            changed: Index(0),
            results: Results::default(),
            load_failures: BTreeMap::new(),
            waiting: BTreeMap::new(),
            short: BTreeMap::new(),
            answers: VecDeque::new(),
            durable: Index(0),
            new_reads: Vec::new(),
            reads: BTreeMap::new(),
        };
        // There is no upload yet to give up.
        let _ = leading.handle_view(now, jobs, view);
        leading
    }

    /// Members have come or gone. Gives the uploads that end with them.
    #[must_use]
    pub fn handle_view(&mut self, now: Time, jobs: &Jobs, view: &View) -> Vec<Abandoned> {
        self.scheduler
            .handle_members(now, jobs, &view.members.keys().cloned().collect());
        self.load_failures
            .retain(|node, _| view.members.contains_key(node));
        self.uploads.handle_view(view)
    }

    /// A worker's status or result.
    pub fn handle_worker_report(
        &mut self,
        now: Time,
        jobs: &Jobs,
        node: &NodeId,
        report: ScheduleMessage,
    ) {
        if let ScheduleMessage::Status(status) | ScheduleMessage::Done { status, .. } = &report {
            self.load_failures
                .insert(node.clone(), status.failed_models.clone());
        }
        self.scheduler.handle_message(now, jobs, node, report);
    }

    /// The live nodes that could not load a network, and why: since `publication`, the newest
    /// one under its name, as they try again then.
    pub fn load_failures(&self, model: &Model, publication: u64) -> Vec<(NodeId, String)> {
        let is_it = |failure: &&FailedModel| {
            failure.name == model.name
                && failure.digest == model.digest
                && failure.publication >= publication
        };
        let of = |(node, failed): (&NodeId, &Vec<FailedModel>)| {
            let this = failed.iter().find(is_it)?;
            Some((node.clone(), this.reason.clone()))
        };
        self.load_failures.iter().filter_map(of).collect()
    }

    /// The earliest of its deadlines.
    pub fn poll_timeout(&self) -> Option<Time> {
        [
            self.scheduler.poll_timeout(),
            self.uploads.poll_timeout(),
            self.repair.poll_timeout(),
            self.results.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Panics where the volatile state contradicts the replicated one.
    pub fn check_invariants(&self, state: &State) {
        if let Err(broken) = self.scheduler.check_invariants(&state.jobs) {
            panic!("{broken}");
        }
        self.repair.check_invariants();
    }
}

impl Node {
    /// The leader's part of a turn.
    pub(super) fn lead(&mut self) {
        if !self.is_in_office() {
            return;
        }
        self.begin_reads();
        self.expire_uploads();
        self.publish_results();
        self.schedule();
        self.repair();
        self.change_voters();
    }

    /// Whether this node leads, knows all that its predecessors committed, and is a member. A
    /// sole voter leads as soon as it starts; until it has joined again it knows no members, and
    /// would take min(4, members) for 0.
    fn is_in_office(&self) -> bool {
        let ready = self.leading.as_ref().is_some_and(|leading| leading.ready);
        ready && self.view.server(&self.me).is_some()
    }

    /// One confirmation of the leadership for all reads of the turn.
    fn begin_reads(&mut self) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        if leading.new_reads.is_empty() {
            return;
        }
        let reads = std::mem::take(&mut leading.new_reads);
        match self.consensus.read(self.now) {
            Ok(id) => drop(leading.reads.insert(id, reads)),
            Err(_) => reads.into_iter().for_each(|(to, _)| self.not_leader(to)),
        }
    }

    fn expire_uploads(&mut self) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let abandoned = leading.uploads.handle_timeout(self.now);
        self.drop_abandoned(abandoned);
    }

    /// Whoever was to hold an upload that is given up drops what it has of it.
    pub(super) fn drop_abandoned(&mut self, abandoned: Vec<Abandoned>) {
        let term = self.consensus.term();
        for Abandoned { to, blobs } in abandoned {
            self.send(to, PeerMessage::Store(StoreMessage::Drop { term, blobs }));
        }
    }

    fn schedule(&mut self) {
        let (now, at) = (self.now, self.wall_now());
        let Some(leading) = &mut self.leading else {
            return;
        };
        let (state, view) = (&self.state, &self.view);
        leading.scheduler.handle_timeout(now, &state.jobs);
        let holders = LiveHolders { state, view };
        let mut outputs = Vec::new();
        while let Some(output) = leading.scheduler.poll_output(now, &state.jobs, &holders) {
            outputs.push(output);
        }
        for output in outputs {
            match output {
                ScheduleOutput::Send { to, message } => {
                    if let Some(to) = self.view.members.get(&to).map(|member| member.server()) {
                        self.send(to, PeerMessage::Schedule(message));
                    }
                }
                ScheduleOutput::Propose(tasks) => {
                    self.propose(None, Change::Job(JobCommand::Finished { tasks, at }));
                }
            }
        }
    }

    fn repair(&mut self) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let term = leading.term;
        for output in leading
            .repair
            .plan(self.now, &self.state.catalog, &self.view)
        {
            match output {
                RepairOutput::Pull { .. } if planted::is(Bug::NoRepair) => {}
                RepairOutput::Pull { to, blobs } => {
                    self.send(to, PeerMessage::Store(StoreMessage::Pull { term, blobs }));
                }
                RepairOutput::Change(changes) => self.propose_replicas(changes),
            }
        }
    }

    fn change_voters(&mut self) {
        let voters: BTreeSet<Server> = self.consensus.voters().iter().cloned().collect();
        let live = self
            .view
            .members
            .values()
            .map(|member| member.server())
            .collect();
        let caught_up = |server: &Server| self.consensus.caught_up(server);
        let leaving = self.leaving.is_some();
        let crash_stop = self.crash_stop;
        let next = voters::next(&voters, &live, &caught_up, &self.me, leaving, crash_stop);
        if let Some(next) = next {
            // Refused while another change is under way: asked again in a later turn.
            let _ = self
                .consensus
                .propose_voters(self.now, next.into_iter().collect());
        }
    }

    /// A member reports copies on its disk.
    pub(super) fn handle_stored_report(&mut self, from: Server, blobs: Vec<BlobId>) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let blobs = leading.results.handle_stored(&from, blobs);
        let changes =
            leading
                .repair
                .handle_stored(self.now, &from, &blobs, &self.state.catalog, &self.view);
        self.propose_replicas(changes);
    }

    /// A member reports copies that it lost or could not make.
    pub(super) fn handle_missing_report(&mut self, from: Server, blobs: Vec<BlobId>) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        leading.results.handle_missing(&from, &blobs);
        let changes =
            leading
                .repair
                .handle_missing(self.now, &from, &blobs, &self.state.catalog, &self.view);
        self.propose_replicas(changes);
    }

    fn propose_replicas(&mut self, changes: Vec<ReplicaChange>) {
        if !changes.is_empty() {
            self.propose(None, Change::Catalog(CatalogCommand::Replicas(changes)));
            let last = self.consensus.last_index();
            if let Some(leading) = &mut self.leading {
                leading.changed = last;
            }
        }
    }

    /// A member asks whether copies may go that the catalog does not name as its.
    pub(super) fn handle_unnamed(&mut self, from: Server, ask: u64, blobs: &[BlobId]) {
        let Some(leading) = &self.leading else {
            return;
        };
        // What this reign or a former one has written may name the copy still.
        if !leading.ready || leading.changed > self.state.applied {
            return;
        }
        let (repair, term) = (&leading.repair, leading.term);
        let mut released = repair.releases(&from, blobs, &self.state.catalog, &self.view);
        released.extend(blobs.iter().filter(|blob| self.never_names(leading, blob)));
        if !released.is_empty() {
            let blobs = released;
            let release = StoreMessage::Release { term, ask, blobs };
            self.send(from, PeerMessage::Store(release));
        }
    }

    /// Whether no file will ever be `blob`. Ids are given out once; what former reigns gave out
    /// is named in what they left in the log, or never.
    fn never_names(&self, leading: &Leading, blob: &BlobId) -> bool {
        // A catalog that names nothing may be about to be rebuilt, and one that was founded in
        // this reign is, from copies that it does not know.
        let is_rebuilt = self.state.founded == leading.term || !self.state.catalog.has_files();
        let coming = leading.uploads.has(blob) || leading.results.has(blob);
        let named = self.state.catalog.record(blob).is_some();
        !is_rebuilt && !coming && !named && blob.term <= leading.term
    }

    /// Whether a copy of `blob` that the catalog does not know is to be kept, as far as this node
    /// knows, which leads. For tests and the simulator.
    pub fn may_name(&self, blob: &BlobId) -> bool {
        let leading = self.leading.as_ref();
        leading.is_none_or(|leading| !self.never_names(leading, blob))
    }

    pub(super) fn propose(&mut self, request: Option<RequestId>, change: Change) {
        let command = Command { request, change };
        // Whoever has just stopped leading hears so from the consensus core.
        let _ = self.consensus.propose(self.now, command.encode());
    }

    /// A command for the leader, from this node or another.
    pub(super) fn handle_forwarded(&mut self, from: Server, token: u64, request: Request) {
        let to = (from, token);
        let in_office = self.is_in_office();
        let Some(leading) = &mut self.leading else {
            return self.not_leader(to);
        };
        let waiting = leading.waiting.len() + leading.new_reads.len() + leading.reads.len();
        if waiting >= WAITING_MAX || !in_office {
            return self.not_leader(to);
        }
        match request {
            Request::PutBegin(_) | Request::PutReplace { .. } | Request::PutAbort(_) => {
                let reply = self.place(&to.0, request);
                self.answer(to, reply);
            }
            Request::PutCommit { request: id, .. }
            | Request::Delete { request: id, .. }
            | Request::Adopt { request: id, .. }
            | Request::Keep { request: id, .. }
            | Request::Publish { request: id, .. }
            | Request::Submit { request: id, .. }
            | Request::Control { request: id, .. } => self.change(to, id, request),
            read => leading.new_reads.push((to, read)),
        }
    }

    /// The part of a put before its commit: needs no log, a deposed leader's words are
    /// refused at the commit.
    fn place(&mut self, from: &Server, request: Request) -> Reply {
        let Some(leading) = &mut self.leading else {
            return Reply::Refused(Refusal::Busy);
        };
        let (now, view) = (self.now, &self.view);
        let (uploads, leaving) = (&mut leading.uploads, &leading.repair.leaving());
        match request {
            Request::PutBegin(names) => match uploads.begin(now, names, from, view, leaving) {
                Ok(placements) => Reply::Placements(placements),
                Err(refusal) => Reply::Refused(refusal),
            },
            Request::PutReplace { blobs, failed } => {
                match uploads.replace(now, &blobs, &failed, view, leaving) {
                    Ok(targets) => Reply::Replacements(targets),
                    Err(refusal) => Reply::Refused(refusal),
                }
            }
            Request::PutAbort(blobs) => {
                let abandoned = uploads.abort(&blobs);
                self.drop_abandoned(abandoned);
                Reply::Done
            }
            _ => Reply::Refused(Refusal::Busy),
        }
    }

    /// Whether a commit lacks copies that it may soon not need: a target has just died, and
    /// the membership has not noticed yet. The forwarding node asks again.
    fn is_premature(&mut self, id: RequestId, request: &Request) -> bool {
        let (Some(leading), Request::PutCommit { files, .. }) = (&mut self.leading, request) else {
            return false;
        };
        let check = leading.uploads.check_commit(files, &self.view);
        if !matches!(check, Err(Refusal::TooFewCopies { .. })) {
            leading.short.remove(&id);
            return false;
        }
        if leading.short.len() >= WAITING_MAX {
            leading.short.pop_first();
        }
        let since = *leading.short.entry(id).or_insert(self.now);
        self.now.since(since) < NOTICE_TIME
    }

    /// A changing command: proposed unless it already was.
    fn change(&mut self, to: ReplyTo, id: RequestId, request: Request) {
        if let Some((index, outcome)) = self.state.answer(&id).cloned() {
            let reply = self.outcome_reply(&request, outcome);
            return self.answer_when_durable(index, to, reply);
        }
        let Some(leading) = &mut self.leading else {
            return;
        };
        if let Some((_, waiters)) = leading.waiting.get_mut(&id) {
            waiters.push(to);
            return;
        }
        if self.is_premature(id, &request) {
            return self.not_leader(to);
        }
        match self.admit(&request) {
            Ok(change) => {
                if let Some(leading) = &mut self.leading {
                    leading.waiting.insert(id, (request, vec![to]));
                }
                self.propose(Some(id), change);
            }
            Err(refusal) => self.answer(to, Reply::Refused(refusal)),
        }
    }

    /// Whether a changing command may be proposed, and as what.
    fn admit(&mut self, request: &Request) -> Result<Change, Refusal> {
        let Some(leading) = &mut self.leading else {
            return Err(Refusal::Busy);
        };
        match request {
            Request::PutCommit { files, .. } => {
                let blobs: Vec<BlobId> = files.iter().map(|file| file.blob).collect();
                if let Err(refusal) = leading.uploads.check_commit(files, &self.view) {
                    // Refused for good: a late copy of this request must not succeed.
                    let abandoned = leading.uploads.abort(&blobs);
                    self.drop_abandoned(abandoned);
                    return Err(refusal);
                }
                leading.uploads.committing(&blobs);
                Ok(Change::Catalog(CatalogCommand::Put(files.clone())))
            }
            Request::Delete { name, .. } if name.is_reserved() => {
                Err(Refusal::Reserved(name.clone()))
            }
            Request::Adopt { files, .. } => {
                if self.state.founded != leading.term {
                    let why = "no catalog is being rebuilt, or the coordinator has changed since: \
                               run `rebuild` again";
                    return Err(Refusal::Failed(why.into()));
                }
                if files.len() > PUT_FILES_MAX {
                    return Err(Refusal::Busy);
                }
                Ok(Change::Catalog(CatalogCommand::Adopt(files.clone())))
            }
            // Whether there is such a file is found when the entry is applied, and remembered
            // with the request id: a copy of this request that comes late must not be carried
            // out after its client was refused.
            Request::Delete { name, .. } => {
                Ok(Change::Catalog(CatalogCommand::Delete(name.clone())))
            }
            Request::Keep {
                newest: Some(0), ..
            } => {
                let why = "0 is no number of versions: keep at least 1, or `all`";
                Err(Refusal::BadArgument(why.into()))
            }
            Request::Keep { newest, .. } => Ok(Change::Catalog(CatalogCommand::Keep(*newest))),
            Request::Publish { model, .. } => Ok(Change::Job(JobCommand::Publish(model.clone()))),
            Request::Control { job, control, .. } => {
                if let JobControl::Weight(weight) = control {
                    in_range("weight", *weight, WEIGHT_MAX)?;
                }
                let (job, control) = (*job, *control);
                Ok(Change::Job(JobCommand::Control { job, control }))
            }
            Request::Submit {
                model,
                dataset,
                batch,
                weight,
                ..
            } => {
                in_range("batch size", *batch, BATCH_MAX)?;
                in_range("weight", *weight, WEIGHT_MAX)?;
                // Everything else is judged when the entry is applied, as with a deletion.
                let published = self.state.jobs.model(model);
                let unloadable = published.and_then(|published| self.unloadable(published));
                let model = published.map_or(model.clone(), |it| it.model.name.clone());
                let (dataset, batch, weight) = (dataset.clone(), *batch, *weight);
                let at = self.wall_now();
                Ok(Change::Job(JobCommand::Submit {
                    model,
                    dataset,
                    batch,
                    weight,
                    at,
                    unloadable,
                }))
            }
            _ => Err(Refusal::Busy),
        }
    }

    /// Why no node can run this network, where every live node has said so.
    fn unloadable(&self, published: &Published) -> Option<String> {
        let failed = self
            .leading
            .as_ref()?
            .load_failures(&published.model, published.version);
        let all = !failed.is_empty() && failed.len() == self.view.members.len();
        let (node, why) = failed.first().filter(|_| all)?;
        Some(format!("{node}: {why}"))
    }

    /// An entry was applied; whoever waits for it is answered once it is durable.
    pub(super) fn handle_applied(
        &mut self,
        entry: &Entry,
        outcome: Option<(Option<RequestId>, Outcome)>,
    ) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        if matches!(entry.payload, Payload::Empty) && entry.term == leading.term {
            leading.ready = true;
        }
        leading.scheduler.handle_applied(&self.state.jobs);
        if let Some((_, Outcome::Put(files))) = &outcome {
            let blobs: Vec<BlobId> = files.iter().map(|(_, blob, _)| *blob).collect();
            leading.uploads.finished(&blobs);
        }
        let Some((Some(id), outcome)) = outcome else {
            return;
        };
        let Some((request, waiters)) = leading.waiting.remove(&id) else {
            return;
        };
        let reply = self.outcome_reply(&request, outcome);
        for to in waiters {
            self.answer_when_durable(entry.index, to, reply.clone());
        }
    }

    fn answer_when_durable(&mut self, index: Index, to: ReplyTo, reply: Reply) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        if index <= leading.durable {
            self.answer(to, reply);
        } else {
            leading.answers.push_back((index, to, reply));
        }
    }

    pub(super) fn handle_durable(&mut self, index: Index) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        leading.durable = index;
        let due = leading
            .answers
            .iter()
            .filter(|(at, ..)| *at <= index)
            .cloned()
            .collect::<Vec<_>>();
        leading.answers.retain(|(at, ..)| *at > index);
        for (_, to, reply) in due {
            self.answer(to, reply);
        }
    }

    pub(super) fn handle_read_ready(&mut self, id: ReadId) {
        let reads = self
            .leading
            .as_mut()
            .and_then(|leading| leading.reads.remove(&id));
        // Whoever goes on alone after crashes has all that is durable, and no more: what is
        // shown must be as safe as what is answered.
        let shown = match self.crash_stop {
            true => self.state.applied,
            false => Index(0),
        };
        for (to, request) in reads.unwrap_or_default() {
            let reply = self.read(&request);
            self.answer_when_durable(shown, to, reply);
        }
    }

    pub(super) fn handle_read_failed(&mut self, id: ReadId) {
        let reads = self
            .leading
            .as_mut()
            .and_then(|leading| leading.reads.remove(&id));
        for (to, _) in reads.unwrap_or_default() {
            self.not_leader(to);
        }
    }

    /// Ends a reign that is over, before anything is done in the next one, which may be this
    /// node's too and not announced yet. Whoever waits asks the next leader; request ids keep
    /// that safe.
    pub(super) fn end_reign(&mut self) {
        let (role, term) = (self.consensus.role(), self.consensus.term());
        let is_over = |leading: &mut Leading| role != Role::Leader || leading.term != term;
        let Some(leading) = self.leading.take_if(is_over) else {
            return;
        };
        let waiting = leading
            .waiting
            .into_values()
            .flat_map(|(_, waiters)| waiters);
        let answers = leading.answers.into_iter().map(|(_, to, _)| to);
        let reads = leading
            .reads
            .into_values()
            .flatten()
            .chain(leading.new_reads)
            .map(|(to, _)| to);
        for to in waiting.chain(answers).chain(reads) {
            self.not_leader(to);
        }
    }

    fn not_leader(&mut self, (server, token): ReplyTo) {
        self.send(server, PeerMessage::NotLeader { token });
    }

    fn answer(&mut self, (server, token): ReplyTo, reply: Reply) {
        self.send(
            server,
            PeerMessage::Answer {
                token,
                reply: Box::new(reply),
            },
        );
    }
}

/// What catalog and view say of inputs.
struct LiveHolders<'a> {
    state: &'a State,
    view: &'a View,
}

impl Holders for LiveHolders<'_> {
    fn sources(&self, input: &Input, table: &mut Vec<Target>) -> Vec<u16> {
        let record = self.state.catalog.record(&input.blob);
        let servers = record.into_iter().flat_map(|record| &record.replicas);
        let live = servers.filter_map(|server| self.view.server(server));
        let place = |member: &Member| {
            let is_it = |target: &Target| {
                target.server.node == member.node && target.server.storage == member.storage
            };
            if let Some(at) = table.iter().position(is_it) {
                return u16::try_from(at).ok();
            }
            table.push(placement::target(member));
            u16::try_from(table.len() - 1).ok()
        };
        live.filter_map(place).collect()
    }

    fn holds(&self, node: &NodeId, input: &Input) -> bool {
        let member = self.view.members.get(node);
        let record = self.state.catalog.record(&input.blob);
        let (Some(member), Some(record)) = (member, record) else {
            return false;
        };
        let mut replicas = record.replicas.iter();
        replicas.any(|server| server.node == member.node && server.storage == member.storage)
    }
}

fn in_range(what: &str, value: u32, most: u32) -> Result<(), Refusal> {
    match (1..=most).contains(&value) {
        true => Ok(()),
        false => Err(Refusal::BadArgument(format!(
            "{value} is no {what}: use a whole number from 1 to {most}"
        ))),
    }
}
