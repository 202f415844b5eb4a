//! The client's side of a put, with the leader's table as its coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{NOBODY, blob, name, server, view};
use crate::store::upload::{ATTEMPTS_MAX, TransferError};
use crate::store::{Catalog, TransferId, Upload, UploadFile, UploadOutput, Uploads};
use crate::types::{BlobId, Digest, RequestId, Server, Term, Time, Version, View};
use crate::wire::client::{Receipt, Refusal, Reply, Request};
use crate::wire::store::{CatalogCommand, Target};

const ID: RequestId = RequestId {
    client: 5,
    sequence: 10,
};

/// A leader, members that store or fail, and a client in virtual time.
struct World {
    upload: Upload,
    names: Vec<&'static str>,
    uploads: Uploads,
    catalog: Catalog,
    view: View,
    now: Time,
    /// Members that never answer, refuse, or store wrong bytes.
    silent: BTreeSet<Server>,
    refusing: BTreeSet<Server>,
    corrupting: BTreeSet<Server>,
    /// What is on the members' disks.
    disks: BTreeMap<Server, BTreeSet<BlobId>>,
    transfers: Vec<(TransferId, Server, usize)>,
    cancelled: usize,
    requests: Vec<Request>,
    aborted: Vec<BlobId>,
    done: Option<Result<Vec<Receipt>, Refusal>>,
}

impl World {
    fn new(names: &[&'static str], live: &[u64]) -> World {
        let file = |text: &&str| UploadFile {
            name: name(text),
            bytes: text.len() as u64,
        };
        let now = Time(1_000_000_000);
        World {
            upload: Upload::new(names.iter().map(file).collect(), ID, now),
            names: names.to_vec(),
            uploads: Uploads::new(Term(1)),
            catalog: Catalog::new(),
            view: view(1, live, &[]),
            now,
            silent: BTreeSet::new(),
            refusing: BTreeSet::new(),
            corrupting: BTreeSet::new(),
            disks: BTreeMap::new(),
            transfers: Vec::new(),
            cancelled: 0,
            requests: Vec::new(),
            aborted: Vec::new(),
            done: None,
        }
    }

    /// The client's own digests come before anything else happens.
    fn read_files(&mut self) {
        for (index, text) in self.names.iter().enumerate() {
            let digest = Digest::of(text.as_bytes());
            self.upload
                .handle_digest(self.now, index, digest, text.len() as u64);
        }
    }

    fn run(&mut self) -> Result<Vec<Receipt>, Refusal> {
        for _ in 0..1000 {
            while let Some(output) = self.upload.poll_output() {
                self.carry_out(output);
            }
            if let Some(done) = self.done.take() {
                assert_eq!(self.upload.poll_timeout(), None);
                return done;
            }
            self.now = self.upload.poll_timeout().expect("waits for something");
            self.upload.handle_timeout(self.now);
        }
        panic!("the upload does not end");
    }

    fn carry_out(&mut self, output: UploadOutput) {
        match output {
            UploadOutput::Request(request) => {
                self.requests.push(request.clone());
                let reply = self.answer(request).unwrap_or_else(Reply::Refused);
                self.upload.handle_reply(self.now, reply);
            }
            UploadOutput::Abort(blobs) => {
                let _ = self.uploads.abort(&blobs);
                self.aborted.extend(blobs);
            }
            UploadOutput::Transfer { id, target, files } => self.store(id, target, files),
            UploadOutput::Cancel(_) => self.cancelled += 1,
            UploadOutput::Done(done) => self.done = Some(done),
        }
    }

    fn store(&mut self, id: TransferId, target: Target, files: Vec<(BlobId, usize)>) {
        let server = target.server;
        self.transfers.push((id, server.clone(), files.len()));
        if self.silent.contains(&server) {
            return;
        }
        if self.refusing.contains(&server) {
            let full = Err(TransferError::Refused("the disk is full".into()));
            return self.upload.handle_stored(self.now, id, full);
        }
        let disk = self.disks.entry(server.clone()).or_default();
        disk.extend(files.iter().map(|(blob, _)| *blob));
        let digest = |index: usize| match self.corrupting.contains(&server) {
            true => Digest::of(b"something else"),
            false => Digest::of(self.names[index].as_bytes()),
        };
        let digests = files.iter().map(|(_, index)| digest(*index)).collect();
        self.upload.handle_stored(self.now, id, Ok(digests));
    }

    fn answer(&mut self, request: Request) -> Result<Reply, Refusal> {
        let (now, view) = (self.now, &self.view);
        match request {
            Request::PutBegin(names) => Ok(Reply::Placements(self.uploads.begin(
                now,
                names,
                &server(0),
                view,
                &NOBODY,
            )?)),
            Request::PutReplace { blobs, failed } => {
                let targets = self.uploads.replace(now, &blobs, &failed, view, &NOBODY)?;
                Ok(Reply::Replacements(targets))
            }
            Request::PutCommit { files, .. } => {
                self.uploads.check_commit(&files, view)?;
                for file in &files {
                    let on_disk = |s: &Server| self.disks[s].contains(&file.blob);
                    assert!(file.replicas.iter().all(on_disk), "named without a copy");
                    assert!(!file.replicas.iter().any(|s| self.corrupting.contains(s)));
                }
                self.catalog.apply(&CatalogCommand::Put(files.clone()));
                let receipt = |file: &crate::wire::store::Upload| Receipt {
                    file: file.name.clone(),
                    version: self.catalog.newest(&file.name).expect("put").version,
                    blob: file.blob,
                    bytes: file.bytes,
                    digest: file.digest,
                    replicas: file.replicas.iter().map(|s| s.node.to_string()).collect(),
                };
                Ok(Reply::Receipts(files.iter().map(receipt).collect()))
            }
            other => panic!("not a client's question in a put: {other:?}"),
        }
    }
}

#[test]
fn a_put_goes_to_four_targets_at_once() {
    let mut world = World::new(&["a"], &[0, 1, 2, 3, 4, 5]);
    world.read_files();
    let receipts = world.run().expect("put");
    assert_eq!(
        (receipts[0].version, receipts[0].replicas.len()),
        (Version(0), 4)
    );
    assert_eq!((world.transfers.len(), world.requests.len()), (4, 2));
    assert_eq!(world.now, Time(1_000_000_000), "nobody is waited for");
}

#[test]
fn many_files_take_one_exchange_for_each_target() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut world = World::new(&names, &[0, 1, 2, 3, 4, 5]);
    world.read_files();
    assert_eq!(world.run().expect("put").len(), 8);
    let targets: BTreeSet<&Server> = world.transfers.iter().map(|(_, s, _)| s).collect();
    assert_eq!(targets.len(), world.transfers.len());
    assert_eq!(world.transfers.iter().map(|(_, _, n)| n).sum::<usize>(), 32);
    assert_eq!(world.requests.len(), 2);
}

#[test]
fn failed_targets_are_replaced() {
    for kind in 0..3 {
        let mut world = World::new(&["a", "b"], &[0, 1, 2, 3, 4, 5]);
        let bad = match kind {
            0 => &mut world.silent,
            1 => &mut world.refusing,
            _ => &mut world.corrupting,
        };
        bad.extend([server(1), server(4)]);
        world.read_files();
        for receipt in world.run().expect("put") {
            let replicas: BTreeSet<&str> = receipt.replicas.iter().map(String::as_str).collect();
            assert_eq!(replicas, ["n0", "n2", "n3", "n5"].into(), "kind {kind}");
        }
        let waited = world.now.since(Time(1_000_000_000));
        assert!(
            waited <= Duration::from_secs(2) * u32::from(kind == 0),
            "{waited:?}"
        );
        assert_eq!(world.cancelled > 0, kind == 0);
    }
}

#[test]
fn what_no_disk_has_room_for_and_a_file_that_changes_are_given_up_at_once() {
    let mut world = World::new(&["a"], &[0, 1, 2, 3, 4]);
    world.refusing.extend([server(1), server(4)]);
    world.read_files();
    let refused = world.run().expect_err("three disks have room");
    assert!(
        matches!(&refused, Refusal::Failed(why) if why.contains("only 3 of 4") && why.contains("full")),
        "{refused:?}"
    );
    assert_eq!(world.now, Time(1_000_000_000), "without waiting");
    let mut world = World::new(&["a"], &[0, 1, 2, 3, 4, 5, 6]);
    world.corrupting.extend((0..5).map(server));
    world.read_files();
    let refused = world.run().expect_err("it changes");
    assert!(
        matches!(&refused, Refusal::Failed(why) if why.contains("changed while it was read")),
        "{refused:?}"
    );
    assert!(world.uploads.is_empty());
}

#[test]
fn with_nobody_left_it_goes_on_with_fewer_or_gives_up() {
    let mut world = World::new(&["a"], &[0, 1, 2, 3]);
    world.silent.insert(server(2));
    world.read_files();
    let refused = world.run().expect_err("three of four");
    assert!(matches!(
        refused,
        Refusal::TooFewCopies {
            stored: 3,
            wanted: 4,
            ..
        }
    ));
    let begins = world
        .requests
        .iter()
        .filter(|r| matches!(r, Request::PutBegin(_)));
    assert_eq!(
        begins.count() as u64,
        ATTEMPTS_MAX,
        "a bounded number of times"
    );
    assert_eq!(world.aborted, [blob(1, 0), blob(1, 1), blob(1, 2)]);
    assert!(world.uploads.is_empty(), "the coordinator may forget them");

    // The membership has shrunk before the commit: three copies are what it promises.
    let mut world = World::new(&["a"], &[0, 1, 2, 3]);
    world.silent.insert(server(2));
    world.read_files();
    let begin = world.upload.poll_output().expect("a question");
    world.carry_out(begin);
    world.view = view(2, &[0, 1, 3], &[]);
    assert_eq!(world.run().expect("put")[0].replicas, ["n0", "n1", "n3"]);
}

#[test]
fn a_change_of_coordinator_starts_it_over_with_a_new_request_id() {
    let mut world = World::new(&["a"], &[0, 1, 2, 3]);
    world.read_files();
    for _ in 0..5 {
        let output = world
            .upload
            .poll_output()
            .expect("begin and four transfers");
        world.carry_out(output);
    }
    world.uploads = Uploads::new(Term(2));
    assert_eq!(world.run().expect("put")[0].version, Version(0));
    let ids: Vec<u64> = world
        .requests
        .iter()
        .filter_map(|request| match request {
            Request::PutCommit { request, .. } => Some(request.sequence),
            _ => None,
        })
        .collect();
    assert_eq!(ids, [10, 11]);
}

#[test]
fn nothing_is_named_before_the_clients_own_digest_is_known() {
    let mut world = World::new(&["a", "b"], &[0, 1, 2, 3, 4]);
    world.corrupting.insert(server(0));
    while let Some(output) = world.upload.poll_output() {
        world.carry_out(output);
    }
    assert_eq!(
        world.requests.len(),
        1,
        "stored everywhere, and not committed"
    );
    assert_eq!(world.upload.poll_timeout(), None);
    world.read_files();
    for receipt in world.run().expect("put") {
        assert!(!receipt.replicas.contains(&"n0".to_string()));
    }
}

#[test]
fn a_local_file_that_changes_is_refused() {
    for (digest, bytes) in [(Digest::of(b"a"), 2), (Digest::of(b"b"), 1)] {
        let mut world = World::new(&["a"], &[0, 1, 2, 3]);
        world.silent.insert(server(0));
        world.read_files();
        while let Some(output) = world.upload.poll_output() {
            world.carry_out(output);
        }
        world.upload.handle_digest(world.now, 0, digest, bytes);
        assert!(matches!(world.run(), Err(Refusal::Failed(_))));
        assert_eq!((world.aborted.len(), world.cancelled), (1, 1));
        assert_eq!(world.catalog.file_count(), 0);
    }
}

#[test]
fn progress_is_waited_for_and_so_is_the_disk_at_the_end() {
    let file = UploadFile {
        name: name("big"),
        bytes: 320 << 20,
    };
    let mut now = Time(0);
    let mut upload = Upload::new(vec![file], ID, now);
    assert!(matches!(
        upload.poll_output(),
        Some(UploadOutput::Request(Request::PutBegin(_)))
    ));
    let begun = Uploads::new(Term(1)).begin(
        now,
        vec![name("big")],
        &server(0),
        &view(1, &[0, 1], &[]),
        &NOBODY,
    );
    upload.handle_reply(now, Reply::Placements(begun.expect("begins")));
    let mut ids = Vec::new();
    while let Some(UploadOutput::Transfer { id, .. }) = upload.poll_output() {
        ids.push(id);
    }
    let nearly = Duration::from_millis(900);
    for _ in 0..10 {
        now = now + nearly;
        upload.handle_progress(now, ids[0]);
        upload.handle_timeout(now);
        if now == Time(0) + nearly {
            assert_eq!(upload.poll_output(), None);
            now = Time(0) + Duration::from_secs(1);
            upload.handle_timeout(now);
            assert_eq!(upload.poll_output(), Some(UploadOutput::Cancel(ids[1])));
            assert!(matches!(
                upload.poll_output(),
                Some(UploadOutput::Request(_))
            ));
            upload.handle_reply(now, Reply::Replacements(vec![None]));
        }
    }
    upload.handle_sent(now, ids[0]);
    upload.handle_timeout(now + Duration::from_secs(10));
    assert_eq!(upload.poll_output(), None, "320 MiB take a disk its time");
    upload.handle_timeout(upload.poll_timeout().expect("a deadline"));
    assert_eq!(upload.poll_output(), Some(UploadOutput::Cancel(ids[0])));
}

#[test]
fn targets_are_not_judged_by_a_pause_of_the_client() {
    let mut world = World::new(&["a"], &[0, 1, 2, 3, 4]);
    world.silent.extend((0..5).map(server));
    world.read_files();
    while let Some(output) = world.upload.poll_output() {
        world.carry_out(output);
    }
    world.now = world.now + Duration::from_secs(60);
    world.upload.handle_timeout(world.now);
    assert_eq!(world.upload.poll_output(), None);
    assert_eq!(
        world.upload.poll_timeout(),
        Some(world.now + Duration::from_secs(1))
    );
    world
        .upload
        .handle_timeout(world.now + Duration::from_secs(1));
    assert!(matches!(
        world.upload.poll_output(),
        Some(UploadOutput::Cancel(_))
    ));
}

#[test]
fn a_busy_node_is_asked_again_and_a_silent_one_is_given_up() {
    let mut world = World::new(&["a"], &[0, 1, 2, 3]);
    world.read_files();
    let _ = world.upload.poll_output();
    world
        .upload
        .handle_reply(world.now, Reply::Refused(Refusal::Busy));
    assert_eq!(world.upload.poll_output(), None, "not at once");
    assert_eq!(world.run().map(|receipts| receipts.len()), Ok(1));

    let mut world = World::new(&["a"], &[0, 1, 2, 3]);
    let _ = world.upload.poll_output();
    assert_eq!(world.run(), Err(Refusal::NoQuorum(Vec::new())));
}

#[test]
fn odd_uploads_end_at_once() {
    assert_eq!(World::new(&[], &[0]).run(), Ok(Vec::new()));
    assert!(matches!(
        World::new(&["a"; 1001], &[0]).run(),
        Err(Refusal::BadArgument(_))
    ));
    let mut reserved = World::new(&["7.csv"], &[0]);
    assert_eq!(reserved.run(), Err(Refusal::Reserved(name("7.csv"))));
    let mut odd = World::new(&["a"], &[0]);
    let _ = odd.upload.poll_output();
    odd.upload.handle_reply(odd.now, Reply::Done);
    odd.upload.handle_reply(odd.now, Reply::Done);
    assert!(matches!(odd.run(), Err(Refusal::Failed(_))));
}

#[test]
fn an_unknown_end_of_a_commit_takes_nothing_back() {
    let mut world = World::new(&["a"], &[0, 1, 2, 3]);
    world.read_files();
    for _ in 0..5 {
        let output = world
            .upload
            .poll_output()
            .expect("begin and four transfers");
        world.carry_out(output);
    }
    assert!(matches!(
        world.upload.poll_output(),
        Some(UploadOutput::Request(Request::PutCommit { .. }))
    ));
    world
        .upload
        .handle_reply(world.now, Reply::Refused(Refusal::NoQuorum(Vec::new())));
    assert_eq!(world.run(), Err(Refusal::NoQuorum(Vec::new())));
    assert_eq!(world.aborted, []);
}
