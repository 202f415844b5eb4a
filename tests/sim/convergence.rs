//! The end of a run: after everything is mended the cluster must come to rest, and be right.
//!
//! Decides: what at rest means (views equal, logs equal, every file at min(4, live) safe copies,
//! every job completed) and what must then be found: every answered put (P3), numbering without
//! gaps (P4), and result files with each input exactly once (P7). Leaves to others: everything
//! that can be judged while things break (`watchers`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dlc::types::{BlobId, FileName, JobId, MemberState, REPLICAS, Server, Time, Version};
use dlc::wire::client::{Reply, Request, Row};
use dlc::wire::schedule::{Input as JobInput, Outcome};

use crate::cluster::Sim;
use crate::devices::classify;
use crate::history::PutEnd;
use crate::linearizability::Verdict;
use crate::network::HostId;
use crate::workload::{DEADLINE, END};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(500);

impl Sim {
    /// Looks whether the cluster has come to rest, until it has or the deadline has passed.
    pub fn look_for_convergence(&mut self) {
        match self.restless() {
            None => self.audit(),
            Some((watcher, what)) if self.now > Time(0) + DEADLINE => self.violate(watcher, what),
            Some((watcher, what)) => {
                self.trace
                    .story(self.now, "restless", || format!("{watcher}: {what}"));
                self.after(LOOK, Sim::look_for_convergence);
            }
        }
    }

    /// What is not at rest yet, with the promise that it belongs to.
    fn restless(&self) -> Option<(&'static str, String)> {
        for id in 0..self.nodes {
            let members = self.members_now();
            if !members.contains(&id) {
                return Some(("rejoin", format!("node-{id} is no member")));
            }
            let view = self.watchers.view(id);
            if view.members.len() != self.nodes {
                return Some(("P1", format!("node-{id} sees {:?}", Sim::names(view))));
            }
            for member in view.members.values() {
                let Some(host) = self.host_at(member.addr) else {
                    continue;
                };
                let process = self.hosts[host].process()?;
                let own = process.membership.me();
                if own.server() != member.server() || own.incarnation != member.incarnation {
                    return Some(("P1", format!("node-{id} sees an old life of node-{host}")));
                }
                if member.state != MemberState::Alive {
                    return Some(("P2", format!("node-{id} suspects node-{host}")));
                }
            }
        }
        let Some(leader) = self.leader() else {
            return Some(("P10", "nobody leads".into()));
        };
        self.unreplicated(leader)
            .or_else(|| self.too_few_copies(leader))
            .or_else(|| self.surplus_copies(leader))
            .or_else(|| {
                let jobs = &self.hosts[leader].process()?.node.state().jobs;
                let open = jobs.jobs().find(|job| job.completed.is_none())?;
                Some(("P7", format!("job {} is {:?}", open.id, open.status(true))))
            })
    }

    fn unreplicated(&self, leader: HostId) -> Option<(&'static str, String)> {
        let leading = &self.hosts[leader].process()?.node;
        let (last, state) = (leading.consensus().last_index(), leading.state());
        for id in 0..self.nodes {
            let node = &self.hosts[id].process()?.node;
            if node.state().applied != last {
                let applied = node.state().applied.0;
                return Some((
                    "P10",
                    format!("node-{id} has applied {applied} of {}", last.0),
                ));
            }
            if node.state().encode() != state.encode() {
                let what = format!("node-{id} and the coordinator have two states at one entry");
                return Some(("P10", what));
            }
        }
        None
    }

    fn surplus_copies(&self, leader: HostId) -> Option<(&'static str, String)> {
        let leading = &self.hosts[leader].process()?.node;
        for id in 0..self.nodes {
            let process = self.hosts[id].process()?;
            let catalog = &process.node.state().catalog;
            let surplus = |blob: &BlobId| {
                let known = catalog.record(blob).is_some();
                !catalog.names(blob, &process.server) && (known || !leading.may_name(blob))
            };
            if let Some(blob) = self.hosts[id].disk.held().into_iter().find(surplus) {
                return Some((
                    "P5",
                    format!("node-{id} keeps {blob}, which is not its own"),
                ));
            }
        }
        None
    }

    fn too_few_copies(&self, leader: HostId) -> Option<(&'static str, String)> {
        let catalog = &self.hosts[leader].process()?.node.state().catalog;
        let wanted = REPLICAS.min(self.nodes);
        for record in catalog.records() {
            let safe = record.replicas.iter().filter(|server| {
                self.hosts.iter().any(|host| {
                    host.disk.storage == server.storage
                        && host.disk.keeps(record.blob, record.digest)
                })
            });
            let copies = safe.count();
            // A burned disk may stay named beside enough live ones: it counts for nothing.
            let there = |server: &&Server| {
                let mut hosts = self.hosts.iter();
                hosts.any(|host| host.disk.storage == server.storage)
            };
            let listed = record.replicas.iter().filter(there).count();
            if copies != wanted || listed != wanted {
                let (name, version) = (&record.name, record.version.0);
                return Some((
                    "P5",
                    format!(
                        "{name} version {version} has {copies} safe copies, {listed} listed, {wanted} wanted"
                    ),
                ));
            }
        }
        None
    }

    /// The last checks: the catalog against what clients were told, then every file and job
    /// is read by clients once more.
    fn audit(&mut self) {
        self.trace.story(self.now, "at rest", String::new);
        let Some(leader) = self.leader() else { return };
        if let Some((watcher, what)) = self.wrong_in_catalog(leader) {
            return self.violate(watcher, what);
        }
        for id in 0..self.nodes {
            if let Some(process) = self.hosts[id].process() {
                process.node.check_invariants();
                process.membership.check_invariants();
            }
        }
        let names: Vec<FileName> = self
            .clients
            .histories
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        let jobs: Vec<JobId> = self.hosts[leader]
            .process()
            .map(|process| process.node.state().jobs.jobs().map(|job| job.id).collect())
            .unwrap_or_default();
        self.watchers.auditing = names.len() + jobs.len() + 1;
        for name in names {
            let host = self.some_member().expect("all are");
            self.get(host, name.clone(), 1, move |sim, read| {
                if !read {
                    sim.violate(
                        "P3",
                        format!("{name} cannot be read although all nodes are up"),
                    );
                }
                sim.audited();
            });
        }
        jobs.into_iter().for_each(|job| self.audit_job(job));
        self.audited();
    }

    fn audited(&mut self) {
        self.watchers.auditing -= 1;
        if self.watchers.auditing == 0 {
            self.check_histories();
            let left = (Time(0) + END).since(self.now);
            self.after(left, |sim| sim.finished = true);
        }
    }

    /// P4: what clients were told of each file, and of jobs, has an order that explains it.
    fn check_histories(&mut self) {
        let files = self.clients.histories.iter();
        let named = files.map(|(name, history)| (name.to_string(), history));
        let all = named.chain([("the jobs".into(), &self.clients.submissions)]);
        let verdicts: Vec<(String, Verdict)> =
            all.map(|(name, history)| (name, history.check())).collect();
        for (name, verdict) in verdicts {
            match verdict {
                Verdict::Linearizable => self.count("histories explained"),
                Verdict::Undecided => self.count("histories undecided"),
                Verdict::Broken => {
                    let what = format!("no order of the operations on {name} explains the answers");
                    return self.violate("P4", what);
                }
            }
        }
    }

    /// Every answered put that no delete may have removed is there, and numbers have no gaps.
    fn wrong_in_catalog(&self, leader: HostId) -> Option<(&'static str, String)> {
        let catalog = &self.hosts[leader].process()?.node.state().catalog;
        let mut numbers: BTreeMap<&FileName, BTreeSet<Version>> = BTreeMap::new();
        for record in catalog.records().filter(|record| record.named) {
            numbers
                .entry(&record.name)
                .or_default()
                .insert(record.version);
        }
        for (name, history) in self.clients.histories.iter() {
            let mut answered = BTreeSet::new();
            let mut unknown = 0;
            for put in &history.puts {
                match put.end {
                    PutEnd::Answered(_, version, blob) => {
                        answered.insert(version);
                        let there = catalog.record(&blob).is_some_and(|r| {
                            r.named && r.version == version && r.digest == put.digest
                        });
                        if history.must_exist(put) && !there {
                            return Some(("P3", format!("{name} version {} is lost", version.0)));
                        }
                    }
                    PutEnd::Unknown => unknown += 1,
                    PutEnd::Failed => {}
                }
            }
            let named = numbers.get(name).cloned().unwrap_or_default();
            let all: BTreeSet<Version> = answered.union(&named).copied().collect();
            let next = all.last().map_or(0, |last| last.0 + 1);
            let missing = next - all.len() as u64;
            let unanswered = named.difference(&answered).count() as u64;
            if missing + unanswered > unknown {
                return Some((
                    "P4",
                    format!(
                        "{name} has versions {named:?}, clients know {answered:?} and {unknown} puts of unknown end"
                    ),
                ));
            }
        }
        None
    }

    /// P7: the result file has each input exactly once with the right row.
    fn audit_job(&mut self, job: JobId) {
        let host = self.some_member().expect("all are");
        let request = Request::Locate {
            name: FileName::of_job(job),
            newest: 1,
        };
        self.ask(host, request, move |sim, reply| {
            let Some(Reply::Located(versions)) = reply else {
                return sim.violate("P7", format!("{job}.csv is not there: {reply:?}"));
            };
            let located = &versions[0];
            let (_, bytes) = sim.read_blob(
                host,
                located.blob,
                located.digest,
                &located.sources,
                &mut BTreeSet::new(),
            );
            let Some(bytes) = bytes else {
                return sim.violate("P7", format!("{job}.csv cannot be read"));
            };
            if located.version != Version(0) {
                return sim.violate("P7", format!("{job}.csv has version {}", located.version.0));
            }
            if let Some(what) = sim.wrong_in_result(job, &String::from_utf8_lossy(&bytes)) {
                return sim.violate("P7", what);
            }
            sim.audited();
        });
    }

    fn wrong_in_result(&self, job: JobId, text: &str) -> Option<String> {
        let leader = self.leader()?;
        let record = self.hosts[leader].process()?.node.state().jobs.job(job)?;
        let Some(body) = text.strip_prefix(Row::CSV_HEADER) else {
            return Some(format!("{job}.csv begins with {:?}", text.lines().next()));
        };
        let lines: Vec<&str> = body.lines().collect();
        let (rows, total) = (record.counted(), record.total());
        let found = lines.len() as u64;
        if found != rows || (found != total && !record.is_cancelled()) {
            return Some(format!(
                "{job}.csv has {found} rows, {rows} were counted of {total} inputs",
            ));
        }
        let known = self.watchers.inputs.get(&(job, record.submitted));
        let mut inputs = known.into_iter().flat_map(|list| list.iter());
        for line in lines {
            // A cancelled job has the rows of some of its inputs, in the same order.
            let begins = |input: &&JobInput| line.starts_with(&format!("{},", input.name));
            let Some(input) = inputs.by_ref().find(begins) else {
                return Some(format!(
                    "{job}.csv has {line:?}, out of order or of no input"
                ));
            };
            let right = Row {
                file: input.name.clone(),
                outcome: classify(input.digest),
            };
            if right.to_csv().trim_end() == line {
                continue;
            }
            let failed = self
                .devices
                .failed_inputs
                .get(&input.blob)
                .map_or(0, BTreeSet::len);
            let error = Outcome::Error("no copy could be read".into());
            let excused = Row {
                file: input.name.clone(),
                outcome: error,
            };
            // It was given up with the fifth node that failed while it had it.
            let runs = self.watchers.times_handed(job, input);
            if runs >= 5 && line.contains("nodes failed while they classified it") {
                continue;
            }
            // Only where crashes are gone on from can a copy be away for good.
            if failed == 0 || !self.plan.crash_stop || excused.to_csv().trim_end() != line {
                return Some(format!(
                    "{job}.csv says {line:?} for {}, right is {:?}",
                    input.name,
                    right.to_csv()
                ));
            }
        }
        None
    }
}
