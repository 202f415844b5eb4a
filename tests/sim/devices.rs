//! The slow things around a node's core: log thread, fetchers, inference, uploads that come in.
//!
//! Decides: how long they take and whether they succeed. Simulated inference is a
//! function of the input's bytes, so that a watcher knows every right answer. Leaves to
//! others: what follows (the core) and what a crash takes (`disk`).

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dlc::consensus::LogWrite;
use dlc::node::io::{Input, LoadFailure};
use dlc::types::{BlobId, Digest, NodeId};
use dlc::wire::schedule::{Assignment, ModelFiles, Outcome, TaskTimes};
use dlc::wire::store::{Located, Target};

use crate::cluster::Sim;
use crate::host::Channel;
use crate::network::HostId;

/// A peer that makes no progress for this long has failed.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(1);
/// A client's connection to a holder ends after this without a word.
const GIVE_UP: Duration = Duration::from_secs(3);
/// Batches of blobs that wait for the fetchers; further ones fail at once.
const FETCHES_MAX: usize = 64;

/// What the devices did, for the watchers.
#[derive(Default)]
pub struct Devices {
    /// Nodes on which an input could not be read or classified.
    pub failed_inputs: BTreeMap<BlobId, BTreeSet<NodeId>>,
    /// Assignments that ran.
    pub tasks_run: u64,
    /// Blobs that were fetched.
    pub fetched: u64,
}

/// What the simulated network says of an input.
pub fn classify(digest: Digest) -> Outcome {
    Outcome::Label {
        label: (digest.0[0] % 10).to_string(),
        confidence: 0.5 + f32::from(digest.0[1]) / 512.0,
    }
}

/// Bytes on their way to a target: id, content and digest.
pub type Parcel = (BlobId, Arc<[u8]>, Digest);

impl Sim {
    /// How long a sync takes: mostly a millisecond, seldom much longer.
    fn sync_delay(&mut self) -> Duration {
        let random = &mut self.streams.devices;
        let longest = match random.below(500) {
            0 => Duration::from_millis(400),
            1..=10 => Duration::from_millis(30),
            _ => Duration::from_millis(2),
        };
        random.span(Duration::from_micros(150), longest) * self.plan.disk_slowness
    }

    /// The log thread appends and syncs, one write after the other.
    pub fn write_log(&mut self, id: HostId, write: LogWrite) {
        self.trace
            .note(self.now, id, "persist", || format!("{write:?}"));
        if write.snapshot.is_some() {
            self.count("snapshots written");
        }
        let ticket = write.ticket;
        self.hosts[id].disk.write_log(write);
        let (delay, now) = (self.sync_delay(), self.now);
        let process = self.hosts[id].process_mut().expect("runs");
        process.log_free = process.log_free.max(now) + delay;
        let (wait, life) = (process.log_free.since(now), self.life(id));
        self.after_in(wait, life, move |sim| {
            sim.hosts[id].disk.log_synced(ticket);
            sim.hop_to_coord(id, Channel::LogToCoord, Input::Persisted(ticket));
        });
    }

    /// The bytes of `blob` for a reader on `id`: how long it takes, and what comes of it. A
    /// source that makes no progress is waited for once: it joins `silent`.
    pub fn read_blob(
        &mut self,
        id: HostId,
        blob: BlobId,
        digest: Digest,
        sources: &[Target],
        silent: &mut BTreeSet<HostId>,
    ) -> (Duration, Option<Arc<[u8]>>) {
        let right = |sim: &mut Sim, host: HostId| {
            let held = sim.hosts[host].disk.blob(blob)?;
            if held.decayed {
                sim.found_decayed(host, blob);
                return None;
            }
            (held.digest == digest).then(|| held.bytes.clone())
        };
        if let Some(bytes) = right(self, id) {
            return (Duration::from_micros(50), Some(bytes));
        }
        let mut spent = Duration::ZERO;
        let start = self.streams.hops.below(sources.len().max(1) as u64) as usize;
        for place in 0..sources.len() {
            let source = &sources[(start + place) % sources.len()];
            let Some(host) = self.host_at(source.addr) else {
                continue;
            };
            if !self.network.is_open_both_ways(id, host) || self.hosts[host].is_paused() {
                if silent.insert(host) {
                    spent += PROGRESS_TIMEOUT;
                }
                continue;
            }
            spent += self.network.segment_delay() + self.network.segment_delay();
            let serves = self.hosts[host]
                .process()
                .is_some_and(|p| p.server == source.server);
            if serves && let Some(bytes) = right(self, host) {
                spent += self.network.transfer(bytes.len() as u64);
                return (spent, Some(bytes));
            }
        }
        (spent, None)
    }

    /// The bytes of `located`; see [`Sim::read_blob`].
    fn read_located(
        &mut self,
        id: HostId,
        located: &Located,
        silent: &mut BTreeSet<HostId>,
    ) -> (Duration, Option<Arc<[u8]>>) {
        let Located { blob, digest, .. } = *located;
        self.read_blob(id, blob, digest, &located.sources, silent)
    }

    /// The bytes of `blob` for a client on `from` from `source` alone: what it takes and gives;
    /// `None` where no way is open or the holder is silent.
    pub fn read_from(
        &mut self,
        from: HostId,
        source: &Target,
        blob: BlobId,
    ) -> Option<(Duration, Option<Arc<[u8]>>)> {
        let host = self.host_at(source.addr)?;
        if !self.network.is_open_both_ways(from, host) || self.hosts[host].is_paused() {
            return None;
        }
        let delay = self.network.segment_delay() + self.network.segment_delay();
        let serves = self.hosts[host]
            .process()
            .is_some_and(|p| p.server == source.server);
        let held = self.hosts[host].disk.blob(blob).filter(|_| serves);
        let bytes = held.map(|held| match held.decayed {
            // Who reads it checks it.
            true => held.bytes.iter().map(|byte| byte ^ 1).collect(),
            false => held.bytes.clone(),
        });
        let length = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Some((delay + self.network.transfer(length), bytes))
    }

    /// A fetcher copies blobs to this disk, then syncs them all.
    pub fn fetch(&mut self, id: HostId, blobs: Vec<Located>) {
        self.trace
            .note(self.now, id, "fetch", || format!("{blobs:?}"));
        let life = self.life(id);
        let process = self.hosts[id].process_mut().expect("runs");
        if process.fetching >= FETCHES_MAX {
            let failed = blobs.iter().map(|located| (located.blob, false)).collect();
            let delay = self.hop_delay();
            return self.after_in(delay, life, move |sim| {
                sim.handle_coord(id, Input::Fetched(failed));
            });
        }
        process.fetching += 1;
        let (mut spent, mut silent) = (Duration::ZERO, BTreeSet::new());
        let mut parcels: Vec<Parcel> = Vec::new();
        let mut results = Vec::new();
        for located in &blobs {
            let (delay, bytes) = self.read_located(id, located, &mut silent);
            let bytes = bytes.filter(|_| !self.write_fails(id));
            spent += delay;
            results.push((located.blob, bytes.is_some()));
            if let Some(bytes) = bytes {
                parcels.push((located.blob, bytes, located.digest));
            }
        }
        let sync = self.sync_delay();
        let synced: Vec<BlobId> = parcels.iter().map(|parcel| parcel.0).collect();
        self.after_in(spent, life, move |sim| {
            for (blob, bytes, digest) in parcels {
                sim.hosts[id].disk.write_blob(blob, bytes, digest);
            }
            sim.after_in(sync, life, move |sim| {
                sim.devices.fetched += synced.len() as u64;
                synced
                    .into_iter()
                    .for_each(|blob| sim.hosts[id].disk.blob_synced(blob));
                let hop = sim.hop_delay();
                sim.after_in(hop, life, move |sim| {
                    sim.hosts[id].process_mut().expect("runs").fetching -= 1;
                    sim.handle_coord(id, Input::Fetched(results));
                });
            });
        });
    }

    /// The leader's own copy of a result file.
    pub fn write_result(&mut self, id: HostId, blob: BlobId, bytes: Vec<u8>) {
        self.trace.note(self.now, id, "write", || {
            format!("{blob} {} bytes", bytes.len())
        });
        let digest = Digest::of(&bytes);
        let length = bytes.len() as u64;
        if self.write_fails(id) {
            let result = Err("no space left".into());
            let (delay, life) = (self.hop_delay(), self.life(id));
            return self.after_in(delay, life, move |sim| {
                sim.handle_coord(id, Input::Written { blob, result });
            });
        }
        self.hosts[id].disk.write_blob(blob, bytes.into(), digest);
        let (delay, life) = (self.sync_delay(), self.life(id));
        self.after_in(delay, life, move |sim| {
            sim.hosts[id].disk.blob_synced(blob);
            let hop = sim.hop_delay();
            sim.after_in(hop, life, move |sim| {
                let result = Ok((digest, length));
                sim.handle_coord(id, Input::Written { blob, result });
            });
        });
    }

    /// The infer thread takes a task: reads its inputs, then computes.
    pub fn run_task(&mut self, id: HostId, assignment: Assignment) {
        self.trace
            .note(self.now, id, "run", || format!("{assignment:?}"));
        let process = self.hosts[id].process_mut().expect("runs");
        if let Some(running) = process.running {
            let what = format!(
                "node-{id} was given {:?} while it runs {running:?}",
                assignment.id
            );
            return self.violate("P8", what);
        }
        process.running = Some(assignment.id);
        let network = (assignment.model.clone(), assignment.digest);
        let loaded = process.networks.contains(&network);
        self.watch_run(id, &assignment);
        self.devices.tasks_run += 1;
        let (mut spent, mut silent) = (Duration::ZERO, BTreeSet::new());
        let mut rows = Vec::new();
        for input in &assignment.inputs {
            let source = |place: &u16| assignment.holders[usize::from(*place)].clone();
            let sources: Vec<Target> = input.sources.iter().map(source).collect();
            let (delay, bytes) =
                self.read_blob(id, input.blob, input.digest, &sources, &mut silent);
            spent += delay;
            let outcome = match bytes {
                Some(_) if !loaded => Outcome::Error("the network is not loaded".into()),
                Some(bytes) => classify(Digest::of(&bytes)),
                None => {
                    let node = self.hosts[id].name.clone();
                    self.devices
                        .failed_inputs
                        .entry(input.blob)
                        .or_default()
                        .insert(node);
                    Outcome::Unread("no copy could be read".into())
                }
            };
            rows.push((input.index, outcome));
            let service = self.plan.service * self.hosts[id].slowness as u32 / 100;
            spent += self.streams.devices.span(service, service * 2);
        }
        let (life, task) = (self.life(id), assignment.id);
        self.after_in(spent, life, move |sim| {
            sim.hosts[id].process_mut().expect("runs").running = None;
            let times = TaskTimes::default();
            let done = Input::BatchDone {
                id: task,
                rows,
                times,
            };
            sim.handle_coord(id, done);
        });
    }

    /// Fetches and loads a published model; others than `keep` are forgotten.
    pub fn load_model(&mut self, id: HostId, files: ModelFiles, keep: BTreeSet<(String, Digest)>) {
        self.trace
            .note(self.now, id, "load", || format!("{files:?}"));
        let mut spent = self
            .streams
            .devices
            .span(Duration::from_millis(5), Duration::from_millis(300));
        let (mut whole, mut silent) = (true, BTreeSet::new());
        for located in [&files.manifest, &files.weights] {
            let (delay, bytes) = self.read_located(id, located, &mut silent);
            spent += delay;
            whole &= bytes.is_some();
        }
        let result = if whole {
            Ok(())
        } else {
            Err(LoadFailure::Unread("no copy could be read".to_string()))
        };
        let life = self.life(id);
        self.after_in(spent, life, move |sim| {
            let (name, digest) = (files.name, files.digest);
            let process = sim.hosts[id].process_mut().expect("runs");
            if whole {
                process.networks.retain(|network| keep.contains(network));
                process.networks.insert((name.clone(), digest));
            }
            sim.handle_coord(
                id,
                Input::ModelLoaded {
                    name,
                    digest,
                    result,
                },
            );
        });
    }

    /// A client on `from` streams parcels to `target`; `done` hears whether they are stored there.
    pub fn store_at(
        &mut self,
        from: HostId,
        target: &Target,
        parcels: Vec<Parcel>,
        done: impl FnOnce(&mut Sim, bool) + 'static,
    ) {
        let pending = Rc::new(Cell::new(Some(
            Box::new(done) as Box<dyn FnOnce(&mut Sim, bool)>
        )));
        let finish = move |sim: &mut Sim, stored: bool| {
            if let Some(done) = pending.take() {
                done(sim, stored);
            }
        };
        let late = finish.clone();
        self.after(GIVE_UP, move |sim| late(sim, false));
        let Some(to) = self.host_at(target.addr) else {
            return;
        };
        if !self.network.is_open_both_ways(from, to) {
            return;
        }
        let bytes = parcels.iter().map(|parcel| parcel.1.len() as u64).sum();
        let delay = self.network.segment_delay() + self.network.transfer(bytes);
        let server = target.server.clone();
        self.after(delay, move |sim| {
            if sim.hosts[to]
                .process()
                .is_none_or(|process| process.server != server)
            {
                return finish(sim, false);
            }
            let life = sim.life(to);
            sim.after_in(Duration::ZERO, life, move |sim| {
                sim.receive(from, life, parcels, finish)
            });
        });
    }

    fn receive(
        &mut self,
        from: HostId,
        life: (HostId, u32),
        parcels: Vec<Parcel>,
        finish: impl FnOnce(&mut Sim, bool) + 'static,
    ) {
        let to = life.0;
        let blobs: Vec<BlobId> = parcels.iter().map(|parcel| parcel.0).collect();
        self.trace
            .note(self.now, to, "receive", || format!("{blobs:?}"));
        if self.write_fails(to) {
            if self.network.is_open_both_ways(from, to) {
                let delay = self.network.segment_delay();
                self.after(delay, move |sim| finish(sim, false));
            }
            return;
        }
        for (blob, bytes, digest) in parcels {
            self.hosts[to].disk.write_blob(blob, bytes, digest);
        }
        let sync = self.sync_delay();
        self.after_in(sync, life, move |sim| {
            blobs
                .iter()
                .for_each(|blob| sim.hosts[to].disk.blob_synced(*blob));
            let hop = sim.hop_delay();
            sim.after_in(hop, life, move |sim| {
                let process = sim.hosts[to].process_mut().expect("runs");
                let token = process.token();
                let noted = move |sim: &mut Sim| {
                    if sim.network.is_open_both_ways(from, to) {
                        let delay = sim.network.segment_delay();
                        sim.after(delay, move |sim| finish(sim, true));
                    }
                };
                process.uploads.insert(token, Box::new(noted));
                sim.handle_coord(to, Input::Stored { token, blobs });
            });
        });
    }
}
