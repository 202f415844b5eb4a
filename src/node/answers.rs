//! What clients are told: this node's own answers, and the coordinator's reads.
//!
//! Decides: how state becomes an answer. Changes nothing but what is asked for; every
//! read of the coordinator runs after its leadership was confirmed (`leader`).

use super::io::{Output, RequestToken};
use super::state::Outcome;
use super::{JOIN_PATIENCE, Node};
use crate::consensus;
use crate::schedule::jobs::{Job, Jobs};
use crate::types::{BlobId, FileName, JobId, NodeId};
use crate::wire::client::{
    Explanation, Held, Holding, JobInfo, JobStats, JobStatus, LOCATED_MAX, LogState, MemberInfo,
    ModelState, ROWS_MAX, Receipt, Refusal, Reply, Request, Role, Row, SURVEY_FOLDERS, UNDER_MAX,
    Under, UnderFile,
};
use crate::wire::peer::{Change, Command};
use crate::wire::store::CatalogCommand;

impl Node {
    /// A client's command: answered here, or handed to the gateway.
    pub(super) fn handle_request(&mut self, token: RequestToken, request: Request) {
        let now = self.now;
        match request {
            Request::Join => match &self.joined {
                Some((member, _)) => {
                    let id = member.process_id();
                    self.reply(token, Reply::Identity(id));
                }
                None => {
                    self.joining.push((token, now + JOIN_PATIENCE));
                    self.outputs.push_back(Output::Join);
                }
            },
            Request::Leave => self.leave(token),
            // Asked of the threads around this core, which have the answers.
            Request::Stats
            | Request::Why(_)
            | Request::LocalModels
            | Request::Survey(_)
            | Request::Verify
            | Request::ReadLocalModel { .. } => {
                self.reply(token, Reply::Refused(Refusal::Busy));
            }
            _ if self.joined.is_none() => {
                let waits = self.join_waits.clone();
                let refusal = waits.map_or(Refusal::NotJoined, Refusal::Joining);
                self.reply(token, Reply::Refused(refusal));
            }
            Request::Identity => {
                let id = self
                    .joined
                    .as_ref()
                    .map(|(member, _)| member.process_id())
                    .unwrap_or_default();
                self.reply(token, Reply::Identity(id));
            }
            Request::Members => {
                let members = self.members();
                self.reply(token, Reply::Members(members));
            }
            Request::Holdings => {
                let holdings = self.holdings();
                self.reply(token, Reply::Holdings(holdings));
            }
            Request::LocateStale { name, newest } => {
                let reply = self.locate(&name, newest);
                self.reply(token, reply);
            }
            Request::LogState => {
                let state = self.log_state();
                self.reply(token, Reply::LogState(state));
            }
            Request::FoundAnew => self.found_anew(token),
            Request::Held(folder) => {
                let held = self.held(folder);
                self.reply(token, held);
            }
            request => {
                if !self.gateway.submit(now, token, request) {
                    self.reply(token, Reply::Refused(Refusal::Busy));
                }
            }
        }
    }

    fn members(&self) -> Vec<MemberInfo> {
        let voters = self.consensus.voters();
        let leader = self.consensus.leader();
        let info = |member: &crate::types::Member| {
            let server = member.server();
            let role = if leader == Some(&server) {
                Role::Coordinator
            } else if voters.contains(&server) {
                Role::Standby
            } else {
                Role::Member
            };
            MemberInfo {
                id: member.process_id(),
                name: member.node.clone(),
                addr: member.addr.to_string(),
                state: member.state,
                incarnation: member.incarnation,
                role,
            }
        };
        self.view.members.values().map(info).collect()
    }

    fn log_state(&self) -> LogState {
        let voters = self.consensus.voters().iter();
        let missing = voters.filter(|voter| self.view.server(voter).is_none());
        LogState {
            last_term: self.consensus.last_term(),
            last_index: self.consensus.last_index(),
            files: self.state.catalog.file_count() as u64,
            newest: self.state.catalog.newest_blob(),
            has_quorum: self.consensus.quorum_reachable(self.now),
            missing: missing.map(|voter| voter.node.clone()).collect(),
        }
    }

    /// Goes on without the voters that are gone; where a coordinator is possible, only as the
    /// coordinator of a catalog that has no file.
    fn found_anew(&mut self, token: RequestToken) {
        let founded = Change::Catalog(CatalogCommand::Founded);
        if self.leading.is_some() && !self.state.catalog.has_files() {
            self.propose(None, founded);
        } else if self.consensus.quorum_reachable(self.now) {
            return self.reply(token, Reply::Refused(Refusal::HasQuorum));
        } else {
            let command = Command {
                request: None,
                change: founded,
            };
            self.consensus.found_anew(self.now, command.encode());
        }
        self.founding.push(token);
    }

    /// Answers those who wait for the log to be founded anew, once it is or cannot be.
    pub(super) fn answer_founding(&mut self) {
        if self.founding.is_empty() || self.consensus.is_founding() {
            return;
        }
        let leads = self.consensus.role() == consensus::Role::Leader;
        let reply = match leads {
            true if self.state.founded == self.consensus.term() => Reply::Done,
            true => return,
            false => Reply::Refused(Refusal::NotAgreed),
        };
        for token in std::mem::take(&mut self.founding) {
            self.reply(token, reply.clone());
        }
    }

    fn holdings(&self) -> Vec<Holding> {
        let held = self
            .state
            .catalog
            .held_by(&self.me)
            .filter(|record| record.named);
        let held = held.filter(|record| self.replica.holds(&record.blob));
        let mut holdings: Vec<Holding> = held
            .map(|record| Holding {
                file: record.name.clone(),
                version: record.version,
                bytes: record.bytes,
            })
            .collect();
        holdings.sort_by(|a, b| (&a.file, a.version).cmp(&(&b.file, b.version)));
        holdings
    }

    /// The copies in one folder of this disk.
    fn held(&self, folder: u8) -> Reply {
        let folders = u64::from(SURVEY_FOLDERS);
        let held = self.replica.held();
        let here = held.filter(|blob| blob.counter % folders == u64::from(folder));
        let (mut copies, mut orphaned) = (Vec::new(), 0);
        for blob in here {
            let record = self.state.catalog.record(&blob);
            match record.filter(|record| record.replicas.contains(&self.me)) {
                Some(record) => copies.push((blob, record.bytes)),
                None => orphaned += 1,
            }
        }
        let lost = self.lost;
        Reply::Held(Held {
            copies,
            orphaned,
            lost,
        })
    }

    /// The versions with too few copies.
    fn under(&self) -> Reply {
        let Some(leading) = &self.leading else {
            return Reply::Refused(Refusal::Busy);
        };
        let mut under = Under {
            rate: leading.repair.rate(self.now),
            ..Under::default()
        };
        let short = leading.repair.under(&self.state.catalog, &self.view);
        for (record, copies, wanted) in short {
            under.total += 1;
            // What is nowhere cannot be copied.
            if copies > 0 {
                under.bytes += record.bytes * (wanted - copies) as u64;
            }
            if under.files.len() < UNDER_MAX {
                under.files.push(UnderFile {
                    file: record.name.clone(),
                    version: record.version,
                    copies: copies as u64,
                    wanted: wanted as u64,
                });
            }
        }
        Reply::Under(under)
    }

    fn locate(&self, name: &FileName, newest: u64) -> Reply {
        let versions = self.state.catalog.versions(name, newest);
        if versions.is_empty() {
            if let Some(job) = name.job().and_then(|id| self.state.jobs.job(id))
                && !self.state.catalog.has_been_put(name)
            {
                return Reply::LocatedJob {
                    job: job.id,
                    inputs: job.total() as u32,
                };
            }
            return Reply::Refused(Refusal::NotFound(name.clone()));
        }
        let located: Vec<_> = versions.iter().map(|record| self.located(record)).collect();
        if let Some(at) = located
            .iter()
            .position(|located| located.sources.is_empty())
        {
            let holders = versions[at]
                .replicas
                .iter()
                .map(|server| server.node.clone())
                .collect();
            let (name, version) = (name.clone(), versions[at].version);
            return Reply::Refused(Refusal::NoCopies {
                name,
                version,
                holders,
            });
        }
        Reply::Located(located)
    }

    fn locate_data(&self, dataset: &str, after: Option<&FileName>) -> Reply {
        let found = self.state.catalog.matching_after(dataset, after);
        let found = found.take(LOCATED_MAX).map(|record| self.located(record));
        let located: Vec<_> = found.collect();
        match located.is_empty() && after.is_none() {
            true => Reply::Refused(Refusal::EmptyDataset(dataset.into())),
            false => Reply::Located(located),
        }
    }

    /// The coordinator's answer to a read.
    pub(super) fn read(&self, request: &Request) -> Reply {
        match request {
            Request::Locate { name, newest } => self.locate(name, *newest),
            Request::LocateData { dataset, after } => self.locate_data(dataset, after.as_ref()),
            Request::Replicas(name) => match self.state.catalog.newest(name) {
                Some(record) => Reply::Replicas(record.version, self.process_ids(&record.blob)),
                None => Reply::Refused(Refusal::NotFound(name.clone())),
            },
            Request::Under => self.under(),
            Request::Kept => Reply::Kept(self.state.catalog.kept()),
            Request::ModelStatus(names) => self.model_status(names),
            Request::Jobs => Reply::Jobs(self.job_infos()),
            Request::JobStats => self.job_stats(),
            Request::Rows { job, from, count } => {
                self.rows(*job, |jobs| jobs.rows(*job, *from, (*count).min(ROWS_MAX)))
            }
            Request::Tail { job, count } => {
                self.rows(*job, |jobs| jobs.tail(*job, (*count).min(ROWS_MAX)))
            }
            Request::Explain(job) => self.explain(*job),
            _ => Reply::Refused(Refusal::Busy),
        }
    }

    /// Process ids of the live holders of a blob.
    fn process_ids(&self, blob: &BlobId) -> Vec<String> {
        let Some(record) = self.state.catalog.record(blob) else {
            return Vec::new();
        };
        let live = record
            .replicas
            .iter()
            .filter_map(|server| self.view.server(server));
        live.map(|member| member.process_id()).collect()
    }

    fn model_status(&self, names: &[String]) -> Reply {
        let Some(leading) = &self.leading else {
            return Reply::Refused(Refusal::Busy);
        };
        let mut states = Vec::new();
        for name in names {
            let Some(published) = self.state.jobs.model(name) else {
                return Reply::Refused(self.state.unknown_model(name));
            };
            let model = &published.model;
            let ready = leading
                .scheduler
                .nodes_with_model(&model.name, model.digest);
            let failed = leading.load_failures(model, published.version);
            let told = |node: &&NodeId| {
                ready.contains(node) || failed.iter().any(|(failed, _)| failed == *node)
            };
            let waiting = self
                .view
                .members
                .keys()
                .filter(|node| !told(node))
                .cloned()
                .collect();
            states.push(ModelState {
                model: model.clone(),
                version: published.version,
                ready,
                waiting,
                failed,
            });
        }
        Reply::Models(states)
    }

    fn job_infos(&self) -> Vec<JobInfo> {
        self.state.jobs.infos(&|job| self.has_started(job))
    }

    fn rows(&self, job: JobId, read: impl Fn(&Jobs) -> Option<Vec<Row>>) -> Reply {
        match self.state.jobs.job(job) {
            None => Reply::Refused(Refusal::UnknownJob(job)),
            Some(found) if found.completed.is_some() => Reply::RowsFiled,
            Some(_) => Reply::Rows(read(&self.state.jobs).unwrap_or_default()),
        }
    }

    fn explain(&self, job: JobId) -> Reply {
        let (Some(leading), Some(found)) = (&self.leading, self.state.jobs.job(job)) else {
            return Reply::Refused(Refusal::UnknownJob(job));
        };
        let (nodes, in_flight, weights) = leading.scheduler.profile(job);
        let model = &found.model;
        let newest = self.state.jobs.model(&model.name);
        let publication = newest.map_or(0, |newest| newest.version);
        let able = leading
            .scheduler
            .nodes_with_model(&model.name, model.digest);
        Reply::Explained(Explanation {
            job,
            status: found.status(leading.scheduler.started(job)),
            total: found.total(),
            count: found.counted(),
            errors: found.errors(),
            in_flight,
            weight: found.weight.into(),
            weights,
            batch: found.batch,
            nodes,
            able: able.len() as u64,
            failed: leading.load_failures(model, publication),
        })
    }

    /// That a first task is handed out is known to the leader before the log shows a row.
    fn has_started(&self, job: JobId) -> bool {
        let leading = self.leading.as_ref();
        leading.is_some_and(|leading| leading.scheduler.started(job))
    }

    fn job_stats(&self) -> Reply {
        let Some(leading) = &self.leading else {
            return Reply::Refused(Refusal::Busy);
        };
        let wall = self.wall_now();
        let assigned = |job: &Job| leading.scheduler.assigned_recently(job.id, self.now);
        let stats = |job: &Job| {
            let stats = job.stats(wall, assigned(job));
            let served = leading.scheduler.served(job.id).unwrap_or(stats.count);
            JobStats { served, ..stats }
        };
        Reply::JobStats(self.state.jobs.jobs().map(stats).collect())
    }

    /// The answer to a changing command once it is applied.
    pub(super) fn outcome_reply(&self, request: &Request, outcome: Outcome) -> Reply {
        match (outcome, request) {
            (Outcome::Refused(refusal), _) => Reply::Refused(refusal),
            (Outcome::Deleted(versions), _) => Reply::Deleted(versions),
            (Outcome::Submitted(job), _) => Reply::Submitted(job),
            (Outcome::Controlled(JobStatus::Queued), Request::Control { job, .. })
                if self.has_started(*job) =>
            {
                Reply::Status(JobStatus::InProgress)
            }
            (Outcome::Controlled(status), _) => Reply::Status(status),
            (Outcome::Done, _) => Reply::Done,
            (Outcome::Put(versions), Request::PutCommit { files, .. }) => {
                let receipt =
                    |(file, version): (&crate::wire::store::Upload, crate::types::Version)| {
                        Receipt {
                            file: file.name.clone(),
                            version,
                            blob: file.blob,
                            bytes: file.bytes,
                            digest: file.digest,
                            replicas: file
                                .replicas
                                .iter()
                                .map(|server| self.process_id(server))
                                .collect(),
                        }
                    };
                let versions = versions.into_iter().map(|(_, _, version)| version);
                Reply::Receipts(files.iter().zip(versions).map(receipt).collect())
            }
            (Outcome::Put(_), _) => Reply::Done,
        }
    }

    /// The process id where the server is live, else its name.
    fn process_id(&self, server: &crate::types::Server) -> String {
        self.view
            .server(server)
            .map_or_else(|| server.node.to_string(), |member| member.process_id())
    }
}
