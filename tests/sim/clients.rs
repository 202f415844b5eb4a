//! Clients: commands as `dlc` runs them, and what each was told, for the watchers.
//!
//! Decides: what each answer says to the watchers. Leaves to others: put and get
//! (`transfers`), which commands a seed runs (`workload`), whether the answers were right
//! (`history`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dlc::types::{Digest, FileName, JobId, RequestId, Version};
use dlc::wire::client::{Refusal, Reply, Request};
use dlc::wire::schedule::Model;

use crate::cluster::Sim;
use crate::controls::Controls;
use crate::history::{Histories, History};
use crate::host::Waiter;
use crate::linearizability::Told;
use crate::network::HostId;

/// A connection of a client breaks off after this without a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// All clients together.
#[derive(Default)]
pub struct Clients {
    /// What was told about each file.
    pub histories: Histories,
    /// Submissions and `job_info`, as puts and reads of one file whose versions are the jobs.
    pub submissions: History,
    /// Commands begun, by what they do.
    pub begun: BTreeMap<&'static str, u64>,
    /// Commands that succeeded.
    pub succeeded: BTreeMap<&'static str, u64>,
    /// Jobs whose submission was answered, with their data set.
    pub jobs: Vec<(JobId, String)>,
    /// What was done with them.
    pub controls: Controls,
    /// Highest count that was told for each job.
    pub counts: BTreeMap<JobId, u64>,
    next: u64,
    requests: u64,
}

/// One file that a client puts.
#[derive(Clone)]
pub struct Content {
    /// Its name.
    pub name: FileName,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
    /// Their digest.
    pub digest: Digest,
}

impl Content {
    /// A file with these bytes.
    pub fn new(name: FileName, bytes: Vec<u8>) -> Content {
        let digest = Digest::of(&bytes);
        Content {
            name,
            bytes: bytes.into(),
            digest,
        }
    }
}

impl Sim {
    /// Sends `request` to the node on `host`; `then` hears the reply, or `None` where none came.
    pub fn ask(
        &mut self,
        host: HostId,
        request: Request,
        then: impl FnOnce(&mut Sim, Option<Reply>) + 'static,
    ) {
        let pending: Rc<RefCell<Option<Waiter>>> = Rc::new(RefCell::new(Some(Box::new(then))));
        let finish = move |sim: &mut Sim, reply: Option<Reply>| {
            let then = pending.borrow_mut().take();
            if let Some(then) = then {
                then(sim, reply);
            }
        };
        let late = finish.clone();
        self.after(REPLY_TIMEOUT, move |sim| late(sim, None));
        if !self.hosts[host].is_running() {
            let delay = self.hop_delay();
            return self.after(delay, move |sim| finish(sim, None));
        }
        self.submit(host, request, Box::new(finish));
    }

    /// A request id of a client of its own.
    pub fn request_id(&mut self) -> RequestId {
        self.clients.next += 1;
        RequestId {
            client: u128::from(self.clients.next),
            sequence: 1,
        }
    }

    /// Counts a command that began.
    pub fn begin(&mut self, what: &'static str) {
        self.clients.requests += 1;
        *self.clients.begun.entry(what).or_default() += 1;
    }

    /// Counts a command that succeeded.
    pub fn succeed(&mut self, what: &'static str) {
        *self.clients.succeeded.entry(what).or_default() += 1;
    }

    /// A node that is a member, to ask.
    pub fn some_member(&mut self) -> Option<HostId> {
        let nodes = self.active_nodes();
        let joined: Vec<HostId> = nodes
            .into_iter()
            .filter(|id| {
                self.hosts[*id]
                    .process()
                    .is_some_and(|p| p.membership.is_member())
            })
            .collect();
        let at = self.streams.workload.below(joined.len().max(1) as u64) as usize;
        joined.get(at).copied()
    }

    /// `delete`.
    pub fn delete(&mut self, host: HostId, name: FileName) {
        self.begin("delete");
        let id = self.clients.histories.delete_begins(self.now, &name);
        let request = Request::Delete {
            request: self.request_id(),
            name,
        };
        self.ask(host, request, move |sim, reply| match reply {
            Some(Reply::Deleted(count)) => {
                sim.clients.histories.delete_answered(id, sim.now, count);
                sim.succeed("delete");
            }
            Some(Reply::Refused(Refusal::NotFound(_))) => {
                let told = sim.clients.histories.delete_finds_nothing(id, sim.now);
                sim.expect("P4", told);
            }
            _ => {}
        });
    }

    /// `ls`.
    pub fn list(&mut self, host: HostId, name: FileName) {
        self.begin("ls");
        let read = self.clients.histories.read_begins(self.now, &name);
        self.ask(
            host,
            Request::Replicas(name),
            move |sim, reply| match reply {
                Some(Reply::Replicas(version, _)) => {
                    let told = sim
                        .clients
                        .histories
                        .read_finds_version(read, sim.now, version);
                    sim.expect("P4", told);
                    sim.succeed("ls");
                }
                Some(Reply::Refused(Refusal::NotFound(_))) => {
                    let told = sim.clients.histories.read_finds_nothing(read, sim.now);
                    sim.expect("P4", told);
                    sim.succeed("ls");
                }
                _ => {}
            },
        );
    }

    /// `train`, without the waiting: two files, then the publication; tried until it works.
    pub fn publish_model(&mut self, name: &'static str) {
        let Some(host) = self.some_member() else {
            return self.after(Duration::from_millis(300), move |sim| {
                sim.publish_model(name)
            });
        };
        self.begin("train");
        let file = |suffix: &str| {
            let file = FileName::new(&format!("models/{name}.{suffix}")).expect("a name");
            Content::new(file, format!("{name} {suffix}").into_bytes())
        };
        let files = vec![file("toml"), file("safetensors")];
        let digest = files[1].digest;
        let names = (files[0].name.clone(), files[1].name.clone());
        self.put(
            host,
            files,
            Box::new(move |sim, receipts| {
                let Some(receipts) = receipts else {
                    return sim.after(Duration::from_millis(500), move |sim| {
                        sim.publish_model(name)
                    });
                };
                let model = Model {
                    name: name.into(),
                    manifest: (names.0, receipts[0].0.blob),
                    weights: (names.1, receipts[1].0.blob),
                    digest,
                };
                let request = Request::Publish {
                    request: sim.request_id(),
                    model,
                };
                sim.ask(host, request, move |sim, reply| match reply {
                    Some(Reply::Done) => sim.succeed("train"),
                    _ => sim.after(Duration::from_millis(500), move |sim| {
                        sim.publish_model(name)
                    }),
                });
            }),
        );
    }

    /// `infer`.
    pub fn infer(&mut self, host: HostId, model: &str, dataset: String, batch: u32, weight: u32) {
        self.begin("infer");
        let (id, began) = (self.request_id(), self.now);
        let name = Digest::of(format!("{id:?}").as_bytes());
        let submissions = &mut self.clients.submissions;
        let submission = submissions.begin(began, Some(Told::Put(name, None)));
        let request = Request::Submit {
            request: id,
            model: model.into(),
            dataset: dataset.clone(),
            batch,
            weight,
        };
        self.ask(host, request, move |sim, reply| {
            let submissions = &mut sim.clients.submissions;
            if let Some(Reply::Refused(Refusal::UnknownModel { .. } | Refusal::EmptyDataset(_))) =
                reply
            {
                submissions.did_nothing(submission);
            }
            if let Some(Reply::Submitted(job)) = reply {
                let told = Told::Put(name, Some(Version(job.0)));
                submissions.end(submission, began, sim.now, told);
                sim.trace
                    .story(sim.now, "infer", || format!("job {job} on {dataset}"));
                sim.succeed("infer");
                if sim.clients.jobs.iter().any(|(known, _)| *known == job) {
                    return sim.violate("P7", format!("two submissions were told job {job}"));
                }
                sim.clients.jobs.push((job, dataset));
            }
        });
    }

    /// `job_info`: every job that was answered is in it from then on.
    pub fn job_info(&mut self, host: HostId) {
        self.begin("job_info");
        let known: Vec<JobId> = self.clients.jobs.iter().map(|(job, _)| *job).collect();
        let began = self.now;
        let read = self.clients.submissions.begin(began, None);
        let asked = self.clients.controls.clone();
        self.ask(host, Request::Jobs, move |sim, reply| {
            let Some(Reply::Jobs(jobs)) = reply else {
                return;
            };
            let newest = jobs.iter().map(|job| Version(job.job.0)).max();
            let told = newest.map_or(Told::Nothing, |newest| Told::Found(newest, None));
            sim.clients.submissions.end(read, began, sim.now, told);
            sim.succeed("job_info");
            let controls = &sim.clients.controls;
            if let Some(what) = jobs.iter().find_map(|job| controls.wrong_info(&asked, job)) {
                sim.violate("P7", what);
            }
            if let Some(lost) = known
                .iter()
                .find(|id| jobs.iter().all(|job| job.job != **id))
            {
                sim.violate(
                    "P11",
                    format!("job {lost} was answered and is not in job_info"),
                );
            }
        });
    }

    /// `job_stats`: a count never falls and never exceeds the inputs.
    pub fn job_stats(&mut self, host: HostId) {
        self.begin("job_stats");
        let before = self.clients.counts.clone();
        let asked = self.clients.controls.clone();
        self.ask(host, Request::JobStats, move |sim, reply| {
            let Some(Reply::JobStats(jobs)) = reply else {
                return;
            };
            sim.succeed("job_stats");
            for stats in jobs {
                if let Some(what) = sim.clients.controls.wrong_stats(&asked, &stats) {
                    return sim.violate("P7", what);
                }
                let least = before.get(&stats.job).copied().unwrap_or(0);
                if stats.count > stats.total || stats.count < least {
                    let (count, total) = (stats.count, stats.total);
                    return sim.violate(
                        "P7",
                        format!("job {} counts {count} of {total} after {least}", stats.job),
                    );
                }
                let highest = sim.clients.counts.entry(stats.job).or_default();
                *highest = (*highest).max(stats.count);
            }
        });
    }

    /// Turns a broken expectation into a violation.
    pub fn expect(&mut self, watcher: &'static str, told: Result<(), String>) {
        if let Err(what) = told {
            self.violate(watcher, what);
        }
    }
}
