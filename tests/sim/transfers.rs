//! Put and get, as `dlc` runs them: the driver of the client's machines `Upload` and `Download`.
//!
//! Decides: how their outputs become requests and transfers in the simulation. A broken
//! connection is a refusal that leaves the outcome open. Leaves to others: every rule (the
//! machines), and whether what they were told can be true (`history`).

use std::cell::RefCell;
use std::rc::Rc;

use dlc::store::download::{Download, DownloadOutput, Downloaded};
use dlc::store::upload::{TransferError, Upload, UploadFile, UploadOutput};
use dlc::types::{BlobId, FileName, Time, Version};
use dlc::wire::client::{Receipt, Refusal, Reply, Request};

use crate::clients::Content;
use crate::cluster::Sim;
use crate::history::{PutId, ReadId};
use crate::host::Done;
use crate::network::HostId;

/// What a put came to: its receipts and the ids of the bytes.
pub type PutResult = Option<Vec<(Receipt, BlobId)>>;
/// Hears of the end of a put.
pub type PutDone = Box<dyn FnOnce(&mut Sim, PutResult)>;

struct Putting {
    machine: Upload,
    host: HostId,
    files: Vec<Content>,
    history: Vec<PutId>,
    /// As the last commit names them.
    blobs: Vec<BlobId>,
    armed: Option<Time>,
    done: Option<PutDone>,
}

struct Getting {
    machine: Download,
    host: HostId,
    read: ReadId,
    newest: u64,
    armed: Option<Time>,
    done: Option<Done>,
}

fn broken_off() -> Reply {
    Reply::Refused(Refusal::Failed("the connection broke".into()))
}

impl Sim {
    /// `put` of one or many files.
    pub fn put(&mut self, host: HostId, files: Vec<Content>, done: PutDone) {
        let now = self.now;
        let history = files
            .iter()
            .map(|file| {
                self.clients
                    .histories
                    .put_begins(now, &file.name, file.digest)
            })
            .collect();
        let described = files.iter().map(|file| UploadFile {
            name: file.name.clone(),
            bytes: file.bytes.len() as u64,
        });
        let mut machine = Upload::new(described.collect(), self.request_id(), now);
        for (index, file) in files.iter().enumerate() {
            machine.handle_digest(now, index, file.digest, file.bytes.len() as u64);
        }
        let putting = Putting {
            machine,
            host,
            files,
            history,
            blobs: Vec::new(),
            armed: None,
            done: Some(done),
        };
        self.pump_put(&Rc::new(RefCell::new(putting)));
    }

    fn pump_put(&mut self, putting: &Rc<RefCell<Putting>>) {
        loop {
            let output = putting.borrow_mut().machine.poll_output();
            let Some(output) = output else { break };
            self.obey_upload(putting, output);
        }
        let due = putting.borrow().machine.poll_timeout();
        let armed = putting.borrow().armed;
        if let Some(due) = due.filter(|due| armed.is_none_or(|armed| *due < armed)) {
            putting.borrow_mut().armed = Some(due);
            let putting = putting.clone();
            self.after(due.since(self.now), move |sim| {
                putting.borrow_mut().armed = None;
                putting.borrow_mut().machine.handle_timeout(sim.now);
                sim.pump_put(&putting);
            });
        }
    }

    fn obey_upload(&mut self, putting: &Rc<RefCell<Putting>>, output: UploadOutput) {
        let host = putting.borrow().host;
        match output {
            UploadOutput::Request(request) => {
                if let Request::PutCommit { files, .. } = &request {
                    putting.borrow_mut().blobs = files.iter().map(|file| file.blob).collect();
                }
                let putting = putting.clone();
                self.ask(host, request, move |sim, reply| {
                    let reply = reply.unwrap_or_else(broken_off);
                    putting.borrow_mut().machine.handle_reply(sim.now, reply);
                    sim.pump_put(&putting);
                });
            }
            UploadOutput::Abort(blobs) => self.ask(host, Request::PutAbort(blobs), |_, _| ()),
            UploadOutput::Transfer { id, target, files } => {
                let parcel = |(blob, index): (BlobId, usize)| {
                    let file = &putting.borrow().files[index];
                    (blob, file.bytes.clone(), file.digest)
                };
                let parcels: Vec<_> = files.into_iter().map(parcel).collect();
                let digests = parcels.iter().map(|parcel| parcel.2).collect();
                // Small files are in the kernel's buffers at once.
                putting.borrow_mut().machine.handle_sent(self.now, id);
                let putting = putting.clone();
                self.store_at(host, &target, parcels, move |sim, stored| {
                    let end = if stored {
                        Ok(digests)
                    } else {
                        Err(TransferError::Broken("broke off".into()))
                    };
                    putting.borrow_mut().machine.handle_stored(sim.now, id, end);
                    sim.pump_put(&putting);
                });
            }
            // What is on its way may arrive all the same.
            UploadOutput::Cancel(_) => {}
            UploadOutput::Done(result) => self.end_put(putting, result),
        }
    }

    fn end_put(&mut self, putting: &Rc<RefCell<Putting>>, result: Result<Vec<Receipt>, Refusal>) {
        let now = self.now;
        let mut borrowed = putting.borrow_mut();
        let Some(done) = borrowed.done.take() else {
            return;
        };
        let (history, blobs) = (borrowed.history.clone(), borrowed.blobs.clone());
        let files = std::mem::take(&mut borrowed.files);
        drop(borrowed);
        let receipts = match result {
            Ok(receipts) => receipts,
            Err(refusal) => {
                let refused = matches!(
                    refusal,
                    Refusal::UnknownUpload | Refusal::TooFewCopies { .. }
                );
                let certain = refused || blobs.is_empty();
                for id in &history {
                    self.clients.histories.put_fails(*id, !certain);
                }
                return done(self, None);
            }
        };
        self.trace
            .story(now, "put", || format!("{blobs:?} {receipts:?}"));
        let mut result = Vec::new();
        for (place, receipt) in receipts.into_iter().enumerate() {
            let (id, blob) = (history[place], blobs[place]);
            let told = self
                .clients
                .histories
                .put_answered(id, now, receipt.version, blob);
            self.expect("P4", told);
            self.watch_put(&files[place], blob, id);
            result.push((receipt, blob));
        }
        done(self, Some(result));
    }

    /// `get` of the newest `newest` versions; `done` hears whether it was answered.
    pub fn get(
        &mut self,
        host: HostId,
        name: FileName,
        newest: u64,
        done: impl FnOnce(&mut Sim, bool) + 'static,
    ) {
        let read = self.clients.histories.read_begins(self.now, &name);
        let local = Some(self.hosts[host].name.clone());
        let getting = Getting {
            machine: Download::new(name, newest, false, local, self.now),
            host,
            read,
            newest,
            armed: None,
            done: Some(Box::new(done)),
        };
        self.pump_get(&Rc::new(RefCell::new(getting)));
    }

    fn pump_get(&mut self, getting: &Rc<RefCell<Getting>>) {
        loop {
            let output = getting.borrow_mut().machine.poll_output();
            let Some(output) = output else { break };
            self.obey_download(getting, output);
        }
        let due = getting.borrow().machine.poll_timeout();
        let armed = getting.borrow().armed;
        if let Some(due) = due.filter(|due| armed.is_none_or(|armed| *due < armed)) {
            getting.borrow_mut().armed = Some(due);
            let getting = getting.clone();
            self.after(due.since(self.now), move |sim| {
                getting.borrow_mut().armed = None;
                getting.borrow_mut().machine.handle_timeout(sim.now);
                sim.pump_get(&getting);
            });
        }
    }

    fn obey_download(&mut self, getting: &Rc<RefCell<Getting>>, output: DownloadOutput) {
        let host = getting.borrow().host;
        match output {
            DownloadOutput::Request(request) => {
                let getting = getting.clone();
                self.ask(host, request, move |sim, reply| {
                    let reply = reply.unwrap_or_else(broken_off);
                    getting.borrow_mut().machine.handle_reply(sim.now, reply);
                    sim.pump_get(&getting);
                });
            }
            DownloadOutput::Start(_) | DownloadOutput::Cancel(_) => {}
            DownloadOutput::Complain { source, blob } => self.complain(host, &source, blob),
            DownloadOutput::Read {
                id,
                source,
                blob,
                offset,
            } => {
                let Some((delay, bytes)) = self.read_from(host, &source, blob) else {
                    return;
                };
                let getting = getting.clone();
                self.after(delay, move |sim| {
                    let mut state = getting.borrow_mut();
                    match bytes {
                        Some(bytes) => {
                            let rest = &bytes[offset as usize..];
                            state.machine.handle_chunk(sim.now, id, rest);
                        }
                        None => state.machine.handle_failed(sim.now, id),
                    }
                    drop(state);
                    sim.pump_get(&getting);
                });
            }
            DownloadOutput::Done(result) => self.end_get(getting, result),
        }
    }

    fn end_get(&mut self, getting: &Rc<RefCell<Getting>>, result: Result<Downloaded, Refusal>) {
        let now = self.now;
        let mut borrowed = getting.borrow_mut();
        let Some(done) = borrowed.done.take() else {
            return;
        };
        let (read, newest) = (borrowed.read, borrowed.newest);
        drop(borrowed);
        match result {
            Ok(Downloaded::Versions(versions)) => {
                let numbers: Vec<Version> =
                    versions.iter().map(|located| located.version).collect();
                let falls = numbers.windows(2).all(|pair| pair[0].0 == pair[1].0 + 1);
                if versions.is_empty() || versions.len() as u64 > newest || !falls {
                    let what = format!("the newest {newest} versions of a file are {numbers:?}");
                    return self.violate("P4", what);
                }
                for (place, located) in versions.iter().enumerate() {
                    let (version, digest) = (located.version, located.digest);
                    let histories = &mut self.clients.histories;
                    let told = histories.read_finds(read, now, version, digest, place == 0);
                    self.expect("P4", told);
                }
                done(self, true);
            }
            Ok(Downloaded::Job { .. }) => done(self, true),
            Err(Refusal::NotFound(_)) => {
                let told = self.clients.histories.read_finds_nothing(read, now);
                self.expect("P4", told);
                done(self, true);
            }
            Err(_) => done(self, false),
        }
    }
}
