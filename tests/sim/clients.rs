//! Clients: commands as `dlc` runs them, and what each was told, for the watchers.
//!
//! Decides: the client's part of put and get: store at all targets at once, replace a target
//! that fails, commit with who stored, repeat with the same request id; read from any source and
//! check the digest. Leaves to others: which commands a seed runs (`workload`), whether the
//! answers were right (`history`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dlc::types::{BlobId, Digest, FileName, JobId, RequestId, Server, Version};
use dlc::wire::client::{Placement, Receipt, Refusal, Reply, Request};
use dlc::wire::schedule::Model;
use dlc::wire::store::{Located, Target, Upload};

use crate::cluster::Sim;
use crate::devices::Parcel;
use crate::history::{Histories, PutId, ReadId};
use crate::host::{Done, Waiter};
use crate::network::HostId;

/// A connection of a client breaks off after this without a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a command whose outcome is unknown is repeated with its request id.
const REPEATS: u32 = 3;

/// All clients together.
#[derive(Default)]
pub struct Clients {
    /// What was told about each file.
    pub histories: Histories,
    /// Commands begun, by what they do.
    pub begun: BTreeMap<&'static str, u64>,
    /// Commands that succeeded.
    pub succeeded: BTreeMap<&'static str, u64>,
    /// Jobs whose submission was answered, with their data set.
    pub jobs: Vec<(JobId, String)>,
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

/// What a put came to: its receipts and the ids of the bytes.
pub type PutResult = Option<Vec<(Receipt, BlobId)>>;
type PutDone = Box<dyn FnOnce(&mut Sim, PutResult)>;

/// A put under way.
struct Put {
    host: HostId,
    files: Vec<Content>,
    history: Vec<PutId>,
    blobs: Vec<BlobId>,
    stored: BTreeMap<BlobId, Vec<Server>>,
    outstanding: usize,
    replacements: u32,
    done: Option<PutDone>,
    request: RequestId,
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

    /// `put` of one or many files.
    pub fn put(&mut self, host: HostId, files: Vec<Content>, done: PutDone) {
        let now = self.now;
        let history: Vec<PutId> = files
            .iter()
            .map(|file| {
                self.clients
                    .histories
                    .put_begins(now, &file.name, file.digest)
            })
            .collect();
        let names = files.iter().map(|file| file.name.clone()).collect();
        let request = self.request_id();
        let put = Put {
            host,
            files,
            history,
            blobs: Vec::new(),
            stored: BTreeMap::new(),
            outstanding: 0,
            replacements: 0,
            done: Some(done),
            request,
        };
        self.ask(
            host,
            Request::PutBegin(names),
            move |sim, reply| match reply {
                Some(Reply::Placements(placements)) if placements.len() == put.files.len() => {
                    sim.stream(put, placements);
                }
                _ => sim.end_put(put, None, false),
            },
        );
    }

    fn stream(&mut self, mut put: Put, placements: Vec<Placement>) {
        let mut by_target: BTreeMap<Server, (Target, Vec<Parcel>)> = BTreeMap::new();
        for (file, placement) in put.files.iter().zip(&placements) {
            put.blobs.push(placement.blob);
            for target in &placement.targets {
                let entry = by_target.entry(target.server.clone());
                let parcels = &mut entry.or_insert_with(|| (target.clone(), Vec::new())).1;
                parcels.push((placement.blob, file.bytes.clone(), file.digest));
            }
        }
        put.outstanding = by_target.len();
        let put = Rc::new(RefCell::new(Some(put)));
        if by_target.is_empty() {
            return self.commit_if_stored(&put);
        }
        for (target, parcels) in by_target.into_values() {
            self.stream_to(put.clone(), target, parcels);
        }
    }

    fn stream_to(&mut self, put: Rc<RefCell<Option<Put>>>, target: Target, parcels: Vec<Parcel>) {
        let Some(host) = put.borrow().as_ref().map(|put| put.host) else {
            return;
        };
        let kept = parcels.clone();
        let server = target.server.clone();
        self.store_at(host, &target, parcels, move |sim, stored| {
            let mut borrowed = put.borrow_mut();
            let Some(state) = borrowed.as_mut() else {
                return;
            };
            if stored {
                for (blob, ..) in &kept {
                    state.stored.entry(*blob).or_default().push(server.clone());
                }
                state.outstanding -= 1;
                drop(borrowed);
                return sim.commit_if_stored(&put);
            }
            state.replacements += 1;
            if state.replacements > 8 {
                state.outstanding -= 1;
                drop(borrowed);
                return sim.commit_if_stored(&put);
            }
            let blobs = kept.iter().map(|parcel| parcel.0).collect();
            let request = Request::PutReplace {
                blobs,
                failed: server,
            };
            drop(borrowed);
            sim.ask(host, request, move |sim, reply| {
                sim.replaced(put, kept, reply)
            });
        });
    }

    fn replaced(
        &mut self,
        put: Rc<RefCell<Option<Put>>>,
        parcels: Vec<Parcel>,
        reply: Option<Reply>,
    ) {
        let mut by_target: BTreeMap<Server, (Target, Vec<Parcel>)> = BTreeMap::new();
        if let Some(Reply::Replacements(targets)) = reply {
            for (target, parcel) in targets.into_iter().zip(parcels) {
                let Some(target) = target else { continue };
                let entry = by_target.entry(target.server.clone());
                entry.or_insert_with(|| (target, Vec::new())).1.push(parcel);
            }
        }
        if let Some(state) = put.borrow_mut().as_mut() {
            state.outstanding = state.outstanding - 1 + by_target.len();
        }
        for (target, parcels) in by_target.into_values() {
            self.stream_to(put.clone(), target, parcels);
        }
        self.commit_if_stored(&put);
    }

    fn commit_if_stored(&mut self, put: &Rc<RefCell<Option<Put>>>) {
        if put.borrow().as_ref().is_none_or(|put| put.outstanding > 0) {
            return;
        }
        let put = put.borrow_mut().take().expect("looked at");
        let upload = |(file, blob): (&Content, &BlobId)| Upload {
            name: file.name.clone(),
            blob: *blob,
            bytes: file.bytes.len() as u64,
            digest: file.digest,
            replicas: put.stored.get(blob).cloned().unwrap_or_default(),
        };
        let files: Vec<Upload> = put.files.iter().zip(&put.blobs).map(upload).collect();
        let request = Request::PutCommit {
            request: put.request,
            files,
        };
        self.commit(put, request, 0, false);
    }

    fn commit(&mut self, put: Put, request: Request, repeats: u32, doubtful: bool) {
        let again = request.clone();
        self.ask(put.host, request, move |sim, reply| match reply {
            Some(Reply::Receipts(receipts)) => sim.end_put(put, Some(receipts), true),
            None | Some(Reply::Refused(Refusal::NoQuorum(_) | Refusal::Busy))
                if repeats < REPEATS =>
            {
                let mut put = put;
                // Another node serves as well: the request id is what counts.
                if let Some(host) = sim.some_member() {
                    put.host = host;
                }
                sim.commit(put, again, repeats + 1, true);
            }
            // A refusal says that nothing was done by this attempt; an earlier one may have.
            Some(Reply::Refused(
                Refusal::UnknownUpload | Refusal::TooFewCopies { .. } | Refusal::Reserved(_),
            )) => sim.end_put(put, None, doubtful),
            _ => sim.end_put(put, None, true),
        });
    }

    fn end_put(&mut self, mut put: Put, receipts: Option<Vec<Receipt>>, doubtful: bool) {
        let now = self.now;
        let Some(receipts) = receipts else {
            for id in &put.history {
                self.clients.histories.put_fails(*id, doubtful);
            }
            let done = put.done.take().expect("once");
            return done(self, None);
        };
        self.trace
            .story(now, "put", || format!("{:?} {:?}", put.blobs, receipts));
        let mut result = Vec::new();
        for (place, receipt) in receipts.into_iter().enumerate() {
            let (id, blob) = (put.history[place], put.blobs[place]);
            let told = self
                .clients
                .histories
                .put_answered(id, now, receipt.version, blob);
            self.expect("P4", told);
            self.watch_put(&put.files[place], blob, id);
            result.push((receipt, blob));
        }
        let done = put.done.take().expect("once");
        done(self, Some(result));
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

    /// `get` of the newest `newest` versions.
    pub fn get(
        &mut self,
        host: HostId,
        name: FileName,
        newest: u64,
        done: impl FnOnce(&mut Sim, bool) + 'static,
    ) {
        let read = self.clients.histories.read_begins(self.now, &name);
        let request = Request::Locate {
            name: name.clone(),
            newest,
        };
        self.ask(host, request, move |sim, reply| match reply {
            Some(Reply::Located(versions)) => {
                sim.download(host, read, newest, versions, Box::new(done))
            }
            Some(Reply::Refused(Refusal::NotFound(_))) => {
                let told = sim.clients.histories.read_finds_nothing(read, sim.now);
                sim.expect("P4", told);
                done(sim, true);
            }
            _ => done(sim, false),
        });
    }

    fn download(
        &mut self,
        host: HostId,
        read: ReadId,
        newest: u64,
        versions: Vec<Located>,
        done: Done,
    ) {
        let now = self.now;
        if versions.is_empty() || versions.len() as u64 > newest {
            return self.violate(
                "P4",
                format!("{} versions where {newest} were asked for", versions.len()),
            );
        }
        let numbers: Vec<Version> = versions.iter().map(|located| located.version).collect();
        if !numbers.windows(2).all(|pair| pair[0].0 == pair[1].0 + 1) {
            return self.violate(
                "P4",
                format!("{} has versions {numbers:?}", versions[0].name),
            );
        }
        let mut spent = Duration::ZERO;
        let mut whole = true;
        for (place, located) in versions.iter().enumerate() {
            let (delay, bytes) =
                self.read_blob(host, located.blob, located.digest, &located.sources);
            spent += delay;
            whole &= bytes.is_some();
            let newest = place == 0;
            let told = self.clients.histories.read_finds(
                read,
                now,
                located.version,
                located.digest,
                newest,
            );
            self.expect("P4", told);
        }
        self.after(spent, move |sim| done(sim, whole));
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
            Some(Reply::Deleted(_)) => {
                sim.clients.histories.delete_answered(id, sim.now);
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
                    manifest: (names.0, receipts[0].0.version),
                    weights: (names.1, receipts[1].0.version),
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
        let request = Request::Submit {
            request: self.request_id(),
            model: model.into(),
            dataset: dataset.clone(),
            batch,
            weight,
        };
        self.ask(host, request, move |sim, reply| {
            if let Some(Reply::Submitted(job)) = reply {
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
        self.ask(host, Request::Jobs, move |sim, reply| {
            let Some(Reply::Jobs(jobs)) = reply else {
                return;
            };
            sim.succeed("job_info");
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
        self.ask(host, Request::JobStats, move |sim, reply| {
            let Some(Reply::JobStats(jobs)) = reply else {
                return;
            };
            sim.succeed("job_stats");
            for stats in jobs {
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
