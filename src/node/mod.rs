//! One node's protocol: the only place where the cores meet.
//!
//! A [`Node`] composes `consensus` (the log), the replicated [`State`] (catalog and
//! jobs), this node's `Replica` and `Worker`, and, while it leads, the coordinator's
//! volatile side ([`leader`]). Membership runs on its own thread and comes in as views.
//!
//! Decides: which core hears of what, and that an answer waits for the disks it depends
//! on. Leaves to others: every rule of its own that a core has; all devices (`threads`).
//!
//! Contract: any number of [`Node::handle`] calls, then drain [`Node::poll_output`] to
//! `None`, then read [`Node::poll_timeout`] and wait. All proposals of one such turn
//! share one log write.

mod answers;
mod gateway;
pub mod io;
mod leader;
mod leaving;
mod loader;
mod results;
pub mod state;
mod voters;

use std::collections::VecDeque;
use std::time::Duration;

use crate::consensus::{self, Consensus, Payload, Recovered};
use crate::planted::{self, Bug};
use crate::schedule::worker::{Worker, WorkerOutput};
use crate::store::placement;
use crate::store::replica::Replica;
use crate::types::{BlobId, ClusterId, Digest, Member, Server, Term, Time, View, WallTime};
use crate::wire::client::{Refusal, Reply};
use crate::wire::peer::PeerMessage;
use crate::wire::schedule::{Model, ModelFiles, ScheduleMessage};
use crate::wire::store::{Located, StoreMessage, Target};
use gateway::Gateway;
use io::{Input, LoadFailure, Output, RequestToken, Start};
use leader::Leading;
use leaving::Leaving;
use loader::Loader;
use state::State;

/// How long `join` waits for an answer; the node goes on trying after it.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
/// Most orders that wait for their term to be known; the oldest is dropped, and comes again.
const EARLY_MAX: usize = 64;
/// Time between two reports of copies that should be here and are not, or the other way round.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// One node. See the module.
pub struct Node {
    me: Server,
    /// A moment on both clocks.
    wall: (Time, WallTime),
    now: Time,
    consensus: Consensus,
    state: State,
    view: View,
    joined: Option<(Member, ClusterId)>,
    joining: Vec<(RequestToken, Time)>,
    /// Who wait for this node to found the log anew.
    founding: Vec<RequestToken>,
    /// What the join under way waits for, where it takes long.
    join_waits: Option<String>,
    leaving: Option<Leaving>,
    replica: Replica,
    worker: Worker,
    loader: Loader,
    gateway: Gateway,
    leading: Option<Leading>,
    report_at: Time,
    /// Number of the last question about surplus copies. Another in each life: answers to the
    /// former life may still come.
    ask: u64,
    /// Copies that were found to be wrong or gone in this life.
    lost: u64,
    /// See [`Start::snapshot_bytes`].
    snapshot_bytes: usize,
    /// See [`Start::crash_stop`].
    crash_stop: bool,
    /// See [`Start::forming`].
    forming: bool,
    outputs: VecDeque<Output>,
    /// Messages of this node to itself.
    local: VecDeque<PeerMessage>,
    /// A leader's orders, of terms that this node's log has not heard of.
    early: Vec<(Server, Term, StoreMessage)>,
}

/// The state in a snapshot; one without anything is that of an empty log.
///
/// *Panics* where it is none: it came from this node's disk or its leader, and a node that
/// went on without it would contradict all others.
fn restored(snapshot: &consensus::Snapshot) -> State {
    if snapshot.index.0 == 0 {
        return State::default();
    }
    match State::decode(&snapshot.state) {
        Ok(state) => state,
        Err(error) => panic!(
            "the snapshot of entry {} cannot be read ({error}): move this node's data \
             directory away and let it join anew",
            snapshot.index.0
        ),
    }
}

impl Node {
    /// A node as it starts, before it has joined.
    pub fn new(start: Start, now: Time) -> Node {
        let mut seeds = crate::types::Rng::new(start.seed);
        let config = consensus::Config {
            retained_bytes: start.snapshot_bytes / 4,
            crash_stop: start.crash_stop,
            ..consensus::Config::default()
        };
        // Whatever this disk's log may still commit is of no higher term.
        let last = start
            .recovered
            .entries
            .last()
            .map_or(Term(0), |entry| entry.term);
        let snapshot = start.recovered.snapshot.as_ref();
        let last = last.max(snapshot.map_or(Term(0), |snapshot| snapshot.term));
        let mut guard = start.recovered.hard_state.term.max(last);
        if start.recovered == Recovered::default() {
            // Copies on a disk without a log are of a catalog that is lost: `rebuild` may name them.
            guard = Term(u64::MAX);
        }
        let has_begun = !start.recovered.entries.is_empty() || snapshot.is_some();
        let state = snapshot.map_or_else(State::default, |snapshot| restored(snapshot));
        let mut replica = Replica::new(start.me.clone(), start.held, guard);
        // What the snapshot's catalog does not name with this node may be named by a later entry.
        let orphans = replica.handle_applied(state.term, &state.catalog);
        let outputs = match orphans.is_empty() {
            true => VecDeque::new(),
            false => [Output::Remove(orphans)].into(),
        };
        let mut consensus = Consensus::new(
            config,
            start.me.clone(),
            start.recovered,
            seeds.next_u64(),
            now,
        );
        if start.forming {
            consensus.form_anew();
            if !has_begun {
                log::warn!(
                    "this node formed its cluster and stopped before the log's first entry was \
                     safe: it begins the log again, unless another member has one"
                );
            }
        }
        Node {
            consensus,
            state,
            view: View::default(),
            joined: None,
            joining: Vec::new(),
            founding: Vec::new(),
            join_waits: None,
            leaving: None,
            replica,
            worker: Worker::new(start.me.node.clone(), now),
            loader: Loader::default(),
            gateway: Gateway::new(seeds.next_u64(), now),
            leading: None,
            report_at: now,
            ask: seeds.next_u64(),
            lost: 0,
            snapshot_bytes: start.snapshot_bytes,
            crash_stop: start.crash_stop,
            forming: start.forming,
            outputs,
            local: VecDeque::new(),
            early: Vec::new(),
            me: start.me,
            wall: (now, start.wall),
            now,
        }
    }

    /// Takes in what happened; its effects come with the next [`Node::poll_output`].
    pub fn handle(&mut self, now: Time, input: Input) {
        self.now = self.now.max(now);
        let now = self.now;
        match input {
            Input::Joined {
                member,
                cluster,
                formed,
            } => self.handle_joined(member, cluster, formed),
            Input::JoinWaits(status) => self.join_waits = Some(status),
            Input::JoinRefused(reason) => {
                self.join_waits = Some(reason.clone());
                for (token, _) in std::mem::take(&mut self.joining) {
                    self.reply(token, Reply::Refused(Refusal::JoinRefused(reason.clone())));
                }
            }
            Input::View(view) => self.handle_view(view),
            Input::Left => self.handle_left(),
            Input::Message { from, message } => self.handle_message(from, message),
            Input::Request { token, request } => self.handle_request(token, request),
            Input::Stored { token, blobs } => {
                blobs
                    .into_iter()
                    .for_each(|blob| self.replica.handle_stored(blob));
                let orphans = self.replica.look(&self.state.catalog);
                self.remove(orphans);
                self.outputs.push_back(Output::StoredNoted { token });
            }
            Input::Persisted(ticket) => self.consensus.handle_persisted(now, ticket),
            Input::Fetched(results) => {
                let mut report = self.replica.handle_fetched(results);
                let orphans = self.replica.look(&self.state.catalog);
                self.remove(orphans);
                report.stored.retain(|blob| self.replica.holds(blob));
                self.report(report.stored, report.missing);
            }
            Input::Written { blob, result } => {
                if result.is_ok() {
                    self.replica.handle_stored(blob);
                }
                self.handle_result_written(blob, result);
            }
            Input::Corrupt(_) if planted::is(Bug::DecayIgnored) => {}
            Input::Corrupt(blob) => {
                if self.replica.handle_corrupt(blob) {
                    self.lost += 1;
                    self.report(Vec::new(), vec![blob]);
                }
            }
            Input::Graded { job, accuracy } => self.complete_job(job, accuracy),
            Input::BatchDone { id, rows, times } => {
                self.worker.handle_batch_done(now, id, rows, times);
            }
            Input::ModelLoaded {
                name,
                digest,
                result,
            } => {
                self.handle_loaded(name, digest, result);
            }
            Input::StoodStill(span) => self.consensus.handle_standstill(now, span),
            Input::Timeout => {
                self.consensus.handle_timeout(now);
                self.worker.handle_timeout(now);
            }
        }
    }

    /// What is to be done next, `None` once all is.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.settle();
        }
        self.outputs.pop_front()
    }

    /// When to call [`Node::handle`] with a timeout, at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        let mut times = vec![
            self.consensus.poll_timeout(),
            self.worker.poll_timeout(),
            self.gateway.poll_timeout(),
            self.loader.poll_timeout(),
            self.joining.iter().map(|(_, deadline)| *deadline).min(),
            self.leaving.as_ref().and_then(Leaving::poll_timeout),
        ];
        if self.has_report() {
            times.push(Some(self.report_at));
        }
        if let Some(leading) = &self.leading {
            times.push(leading.poll_timeout());
        }
        times.into_iter().flatten().min()
    }

    /// The replicated state, for watchers and counters.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The log, for watchers and counters.
    pub fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    /// Panics where the state contradicts itself.
    pub fn check_invariants(&self) {
        self.consensus.check_invariants();
        self.state.catalog.check_invariants();
        if let Some(leading) = &self.leading {
            leading.check_invariants(&self.state);
        }
    }

    /// The wall clock, for what is shown to people.
    fn wall_now(&self) -> WallTime {
        WallTime(self.wall.1.0 + self.now.since(self.wall.0).as_millis() as u64)
    }

    /// Runs everything that follows from what was handled, until nothing more does.
    fn settle(&mut self) {
        loop {
            self.turn();
            let mut moved = false;
            while let Some(message) = self.local.pop_front() {
                moved = true;
                self.handle_message(self.me.clone(), message);
            }
            while let Some(output) = self.worker.poll_output() {
                moved = true;
                self.obey_worker(output);
            }
            if moved {
                continue;
            }
            // Last, so that all proposals of the turn share one write.
            while let Some(output) = self.consensus.poll_output() {
                moved = true;
                self.obey_consensus(output);
            }
            if !moved {
                return;
            }
        }
    }

    /// What time and applied entries bring.
    fn turn(&mut self) {
        let now = self.now;
        self.end_reign();
        self.take_early();
        self.forward();
        let late: Vec<RequestToken> = self
            .joining
            .extract_if(.., |(_, deadline)| *deadline <= now)
            .map(|(token, _)| token)
            .collect();
        for token in late {
            let why = self
                .join_waits
                .as_deref()
                .unwrap_or("no introducer has answered yet");
            let why = format!("{why}. This node goes on trying");
            self.reply(token, Reply::Refused(Refusal::JoinRefused(why)));
        }
        if self.report_at <= now && self.has_report() {
            self.report_at = now + REPORT_PERIOD;
            let missing = self.replica.missing();
            self.report(Vec::new(), missing);
            self.ask_of_unnamed();
        }
        if let Some(model) = self.loader.next(now, &self.state) {
            for (name, digest) in self.loader.drop_unwanted(&self.state) {
                self.worker.handle_model_dropped(now, &name, digest);
            }
            self.load(model);
        }
        if self.forming && self.consensus.commit().0 > 0 {
            self.forming = false;
            self.outputs.push_back(Output::Formed);
        }
        self.lead();
        self.answer_founding();
        self.hand_over();
        self.compact();
    }

    /// Puts a snapshot in the place of a log that has grown large. Twice the state: then all
    /// snapshots together are written no faster than the log.
    fn compact(&mut self) {
        let (log, state) = self.consensus.log_bytes();
        if log >= self.snapshot_bytes.max(2 * state) {
            self.consensus
                .compact(self.state.applied, self.state.encode());
        }
    }

    fn handle_joined(&mut self, member: Member, cluster: ClusterId, formed: bool) {
        self.forming |= formed;
        if formed {
            self.consensus.bootstrap(self.now);
        }
        self.worker.handle_life(self.now, member.incarnation);
        for (token, _) in std::mem::take(&mut self.joining) {
            self.reply(token, Reply::Identity(member.process_id()));
        }
        self.join_waits = None;
        self.joined = Some((member, cluster));
    }

    fn handle_view(&mut self, view: View) {
        let live = view.members.values().map(Member::server).collect();
        self.consensus.handle_members(self.now, live);
        if let Some(member) = view.members.get(&self.me.node)
            && let Some((own, _)) = &mut self.joined
        {
            *own = member.clone();
        }
        self.view = view;
        if let Some(leading) = &mut self.leading {
            let abandoned = leading.handle_view(self.now, &self.state.jobs, &self.view);
            self.drop_abandoned(abandoned);
        }
    }

    fn handle_message(&mut self, from: Server, message: PeerMessage) {
        let now = self.now;
        match message {
            PeerMessage::Consensus(message) => self.consensus.handle_message(now, from, message),
            PeerMessage::Store(message) => self.handle_store_message(from, message),
            PeerMessage::Schedule(message) => self.handle_schedule_message(from, message),
            PeerMessage::Forward { token, request } => self.handle_forwarded(from, token, request),
            PeerMessage::Answer { token, reply } => {
                if let Some(client) = self.gateway.handle_answer(token) {
                    self.reply(client, *reply);
                }
            }
            PeerMessage::NotLeader { token } => self.gateway.handle_not_leader(now, token),
        }
    }

    fn handle_store_message(&mut self, from: Server, message: StoreMessage) {
        match message {
            StoreMessage::Pull { term, blobs } if term == self.consensus.term() => {
                let pull = self.replica.handle_pull(term, blobs);
                if !pull.fetch.is_empty() {
                    self.outputs.push_back(Output::Fetch(pull.fetch));
                }
                if !pull.stored.is_empty() {
                    self.send(from, PeerMessage::Store(StoreMessage::Stored(pull.stored)));
                }
            }
            StoreMessage::Drop { term, blobs } if term == self.consensus.term() => {
                let removed = self.replica.handle_drop(term, &blobs);
                self.remove(removed);
            }
            StoreMessage::Release { term, ask, blobs } if term == self.consensus.term() => {
                let removed = self.replica.handle_release(term, ask, &blobs);
                self.remove(removed);
            }
            // Who has just joined may get a leader's orders before its log has heard of the term.
            StoreMessage::Pull { term, .. } if term > self.consensus.term() => {
                if self.early.len() == EARLY_MAX {
                    self.early.remove(0);
                }
                self.early.push((from, term, message));
            }
            // Orders of a deposed leader (fencing, P10), or dropped and given again.
            StoreMessage::Pull { .. }
            | StoreMessage::Drop { .. }
            | StoreMessage::Release { .. } => {}
            StoreMessage::Unnamed { ask, blobs } => self.handle_unnamed(from, ask, &blobs),
            StoreMessage::Stored(blobs) => self.handle_stored_report(from, blobs),
            StoreMessage::Leaving => {
                if let Some(leading) = &mut self.leading {
                    leading.repair.handle_leaving(self.now, from);
                }
            }
            StoreMessage::Missing(blobs) => self.handle_missing_report(from, blobs),
        }
    }

    /// Takes the orders that came before their term.
    fn take_early(&mut self) {
        let known = self.consensus.term();
        let due = self.early.extract_if(.., |(_, term, _)| *term <= known);
        for (from, _, message) in due.collect::<Vec<_>>() {
            self.handle_store_message(from, message);
        }
    }

    fn handle_schedule_message(&mut self, from: Server, message: ScheduleMessage) {
        match message {
            ScheduleMessage::Status(_) | ScheduleMessage::Done { .. } => {
                // Before its reign's first entry is applied a leader may not know the job that
                // is run. Workers repeat what they report.
                if let Some(leading) = &mut self.leading
                    && leading.ready
                    && self.view.server(&from).is_some()
                {
                    leading.handle_worker_report(self.now, &self.state.jobs, &from.node, message);
                }
            }
            order => {
                self.worker.handle_message(self.now, &from.node, order);
            }
        }
    }

    fn obey_worker(&mut self, output: WorkerOutput) {
        match output {
            WorkerOutput::Run(assignment) => self.outputs.push_back(Output::Run(assignment)),
            WorkerOutput::ToLeader { leader, message } => {
                let leader = self.view.members.get(&leader).map(Member::server);
                if let Some(leader) = leader {
                    self.send(leader, PeerMessage::Schedule(message));
                }
            }
        }
    }

    fn obey_consensus(&mut self, output: consensus::Output) {
        match output {
            consensus::Output::Send { to, message } => {
                self.send(to, PeerMessage::Consensus(message))
            }
            consensus::Output::Persist(write) => self.outputs.push_back(Output::Persist(write)),
            consensus::Output::Apply(entry) => {
                let (before, founded) = (self.state.term, self.state.founded);
                let outcome = self.state.apply(&entry);
                if self.state.founded != founded {
                    self.replica.keep_unnamed(entry.term);
                }
                // A reign that begins with its voters has gone on without most of the old ones:
                // its first command may be to keep what the catalog does not name.
                let is_opening = matches!(entry.payload, Payload::Voters(_));
                let term = if is_opening { before } else { entry.term };
                self.sweep(term);
                self.handle_applied(&entry, outcome);
            }
            consensus::Output::Restore(snapshot) => {
                self.state = restored(&snapshot);
                self.loader.handle_restored();
                if snapshot.index.0 == 0 {
                    log::error!(
                        "the cluster has gone on without this node (--crash-stop or `rebuild`) and its \
                         log is another: what this side decided since, if anything, is taken back"
                    );
                    let term = Term(self.consensus.term().0.saturating_sub(1));
                    self.replica.begin_anew(term);
                }
                if self.state.founded == snapshot.term {
                    self.replica.keep_unnamed(snapshot.term);
                }
                self.sweep(snapshot.term);
            }
            consensus::Output::Durable(index) => self.handle_durable(index),
            consensus::Output::ReadReady { id } => self.handle_read_ready(id),
            consensus::Output::ReadFailed { id } => self.handle_read_failed(id),
            consensus::Output::Leader { term, leader } => self.handle_leader(term, leader),
        }
    }

    /// Removes the copies that nothing names any more once an entry of `term` is applied.
    fn sweep(&mut self, term: Term) {
        let orphans = self.replica.handle_applied(term, &self.state.catalog);
        self.remove(orphans);
    }

    fn handle_leader(&mut self, term: Term, leader: Option<Server>) {
        let now = self.now;
        match &leader {
            Some(leader) => log::info!("{} is the coordinator, term {}", leader.node, term.0),
            None => log::info!("no coordinator is known, term {}", term.0),
        }
        self.worker
            .handle_leader(now, term, leader.as_ref().map(|leader| leader.node.clone()));
        if leader.as_ref() == Some(&self.me) && self.leading.is_none() {
            self.leading = Some(Leading::new(term, now, &self.state.jobs, &self.view));
        }
        self.gateway.handle_leader(now, leader.is_some());
    }

    /// Sends what waits for the leader, and ends what waited too long.
    fn forward(&mut self) {
        if let Some(leader) = self.consensus.leader().cloned() {
            for (token, request) in self.gateway.due(self.now) {
                self.send(leader.clone(), PeerMessage::Forward { token, request });
            }
        }
        for token in self.gateway.expired(self.now) {
            // Those that are known to be gone, and those that did not answer a candidate.
            let silent = match self.consensus.leader() {
                Some(_) => Vec::new(),
                None => self.consensus.unreachable(self.now),
            };
            let voters = self.consensus.voters().iter();
            let is_missing =
                |voter: &&Server| self.view.server(voter).is_none() || silent.contains(voter);
            let missing = voters.filter(is_missing);
            let missing = missing.map(|voter| voter.node.clone()).collect();
            self.reply(token, Reply::Refused(Refusal::NoQuorum(missing)));
        }
    }

    fn handle_loaded(&mut self, name: String, digest: Digest, result: Result<(), LoadFailure>) {
        let publication = self.loader.handle_loaded(self.now, &name, digest, &result);
        let result = result.map_err(|failure| failure.reason().to_string());
        if let Err(why) = &result {
            log::warn!("model {name} could not be loaded: {why}");
        }
        let now = self.now;
        let worker = &mut self.worker;
        worker.handle_model_loaded(now, &name, digest, publication, result);
    }

    fn load(&mut self, model: Model) {
        let find = |blob: &BlobId| {
            let record = self.state.catalog.record(blob)?;
            Some(self.located(record))
        };
        match (find(&model.manifest.1), find(&model.weights.1)) {
            (Some(manifest), Some(weights)) => {
                let Model { name, digest, .. } = model;
                let files = ModelFiles {
                    name,
                    digest,
                    manifest,
                    weights,
                };
                let keep = self.loader.loaded().clone();
                self.outputs.push_back(Output::Load { files, keep });
            }
            _ => {
                let why = format!(
                    "its files are gone from SDFS: run `train {}` again",
                    model.name
                );
                let result = Err(LoadFailure::Unread(why));
                let (name, digest) = (model.name, model.digest);
                self.handle_loaded(name, digest, result);
            }
        }
    }

    /// A version and its live holders, this node first.
    fn located(&self, record: &crate::store::catalog::VersionRecord) -> Located {
        Located {
            name: record.name.clone(),
            version: record.version,
            blob: record.blob,
            bytes: record.bytes,
            digest: record.digest,
            sources: live_holders(record, &self.view),
        }
    }

    /// Tells the leader of copies that came to this disk, and of those that did not or are lost.
    fn report(&mut self, stored: Vec<BlobId>, missing: Vec<BlobId>) {
        if !stored.is_empty() {
            self.tell_leader(PeerMessage::Store(StoreMessage::Stored(stored)));
        }
        if !missing.is_empty() {
            self.tell_leader(PeerMessage::Store(StoreMessage::Missing(missing)));
        }
    }

    /// Whether the leader ought to hear of copies that should be here, or should not.
    fn has_report(&self) -> bool {
        self.replica.lost() > 0 || self.replica.has_unnamed()
    }

    fn ask_of_unnamed(&mut self) {
        self.ask = self.ask.wrapping_add(1);
        let blobs = self.replica.ask_of_unnamed(self.ask);
        if !blobs.is_empty() {
            let ask = self.ask;
            self.tell_leader(PeerMessage::Store(StoreMessage::Unnamed { ask, blobs }));
        }
    }

    fn remove(&mut self, blobs: Vec<BlobId>) {
        if !blobs.is_empty() {
            self.outputs.push_back(Output::Remove(blobs));
        }
    }

    fn tell_leader(&mut self, message: PeerMessage) {
        if let Some(leader) = self.consensus.leader().cloned() {
            self.send(leader, message);
        }
    }

    fn send(&mut self, to: Server, message: PeerMessage) {
        if to == self.me {
            self.local.push_back(message);
        } else {
            self.outputs.push_back(Output::Send { to, message });
        }
    }

    fn reply(&mut self, token: RequestToken, reply: Reply) {
        self.outputs.push_back(Output::Reply { token, reply });
    }
}

/// The live holders of a version.
fn live_holders(record: &crate::store::catalog::VersionRecord, view: &View) -> Vec<Target> {
    record
        .replicas
        .iter()
        .filter_map(|server| view.server(server))
        .map(placement::target)
        .collect()
}
