//! The client's side of a get, with sources that fail in every way.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::{blob, member, name, server};
use crate::store::placement::target;
use crate::store::{Download, DownloadOutput, Downloaded, ReadId};
use crate::types::{Digest, JobId, MemberState, Server, Time, Version};
use crate::wire::client::{Refusal, Reply, Request};
use crate::wire::store::Located;

const START: Time = Time(1_000_000_000);

/// How a source behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Good,
    /// Refuses.
    Refuses,
    /// Says nothing.
    Silent,
    /// Breaks off after so many bytes of each reading.
    Breaks(usize),
    /// Gives wrong bytes.
    Wrong,
    /// Gives wrong bytes and breaks off after so many.
    WrongBreaks(usize),
    /// Gives too many bytes.
    TooMany,
}

fn content(version: u64) -> Vec<u8> {
    format!("the bytes of version {version} of a file").into_bytes()
}

fn located(version: u64, sources: &[u64]) -> Located {
    let source = |n: &u64| target(&member(*n, MemberState::Alive));
    Located {
        name: name("f"),
        version: Version(version),
        blob: blob(1, version),
        bytes: content(version).len() as u64,
        digest: Digest::of(&content(version)),
        sources: sources.iter().map(source).collect(),
    }
}

struct World {
    kinds: BTreeMap<Server, Kind>,
    /// Answers to `Locate`, the last one for ever.
    answers: Vec<Reply>,
    files: BTreeMap<u64, Vec<u8>>,
    current: u64,
    now: Time,
    reads: Vec<(Server, u64)>,
    requests: Vec<Request>,
    complaints: Vec<Server>,
}

impl World {
    fn new(kinds: &[Kind], answers: Vec<Reply>) -> World {
        let kinds = kinds.iter().enumerate();
        World {
            kinds: kinds.map(|(n, kind)| (server(n as u64), *kind)).collect(),
            answers,
            files: BTreeMap::new(),
            current: 0,
            now: START,
            reads: Vec::new(),
            requests: Vec::new(),
            complaints: Vec::new(),
        }
    }

    fn get(&mut self, newest: u64, local: Option<u64>) -> Result<Downloaded, Refusal> {
        let local = local.map(|n| server(n).node);
        let mut download = Download::new(name("f"), newest, false, local, self.now);
        for _ in 0..1000 {
            while let Some(output) = download.poll_output() {
                match output {
                    DownloadOutput::Request(request) => {
                        self.requests.push(request);
                        let last = self.answers.len() - 1;
                        let reply = self.answers[last.min(self.requests.len() - 1)].clone();
                        download.handle_reply(self.now, reply);
                    }
                    DownloadOutput::Start(located) => {
                        self.current = located.version.0;
                        self.files.insert(self.current, Vec::new());
                    }
                    DownloadOutput::Read {
                        id, source, offset, ..
                    } => {
                        self.reads.push((source.server.clone(), offset));
                        assert!(self.reads.len() < 100, "the download does not end");
                        self.read(&mut download, id, self.kinds[&source.server], offset);
                    }
                    DownloadOutput::Cancel(_) => {}
                    DownloadOutput::Complain { source, .. } => {
                        self.complaints.push(source.server);
                    }
                    DownloadOutput::Done(done) => {
                        assert_eq!(download.poll_timeout(), None);
                        return done;
                    }
                }
            }
            self.now = download.poll_timeout().expect("waits for something");
            download.handle_timeout(self.now);
        }
        panic!("the download does not end");
    }

    fn read(&mut self, download: &mut Download, id: ReadId, kind: Kind, offset: u64) {
        let file = self.files.get_mut(&self.current).expect("started");
        let offset = usize::try_from(offset).expect("small");
        file.truncate(offset);
        assert_eq!(file.len(), offset, "a gap");
        let mut bytes = content(self.current)[offset..].to_vec();
        match kind {
            Kind::Silent => return,
            Kind::Refuses => bytes.clear(),
            Kind::Good => {}
            Kind::Breaks(n) => bytes.truncate(n),
            Kind::Wrong => bytes[0] ^= 1,
            Kind::WrongBreaks(n) => {
                bytes.truncate(n);
                bytes.iter_mut().for_each(|byte| *byte ^= 1);
            }
            Kind::TooMany => bytes.extend([0; 9]),
        }
        for chunk in bytes.chunks(if kind == Kind::TooMany { 1000 } else { 7 }) {
            assert_eq!(download.offset(), file.len() as u64);
            // The last chunk ends the reading, and a new one may begin within the call.
            let used = download.handle_chunk(self.now, id, chunk);
            file.extend(&chunk[..used]);
        }
        download.handle_failed(self.now, id);
    }
}

fn versions(list: &[Located]) -> Result<Downloaded, Refusal> {
    Ok(Downloaded::Versions(list.to_vec()))
}

#[test]
fn the_local_node_is_read_first() {
    let found = [located(3, &[0, 1, 2])];
    let mut world = World::new(&[Kind::Good; 3], vec![Reply::Located(found.to_vec())]);
    assert_eq!(world.get(1, Some(2)), versions(&found));
    assert_eq!(world.reads, [(server(2), 0)]);
    assert_eq!(world.files[&3], content(3));
}

#[test]
fn another_source_goes_on_at_the_same_offset() {
    let found = [located(0, &[0, 1, 2, 3])];
    let kinds = [Kind::Breaks(9), Kind::Refuses, Kind::Silent, Kind::Good];
    let mut world = World::new(&kinds, vec![Reply::Located(found.to_vec())]);
    assert_eq!(world.get(1, None), versions(&found));
    let offsets = [
        (server(0), 0),
        (server(1), 9),
        (server(2), 9),
        (server(3), 9),
    ];
    assert_eq!(world.reads, offsets);
    assert_eq!(
        world.now.since(START),
        Duration::from_secs(1),
        "a silent one costs a second"
    );
}

#[test]
fn wrong_bytes_are_read_again_from_elsewhere() {
    let found = [located(0, &[0, 1])];
    let mut world = World::new(
        &[Kind::Wrong, Kind::Good],
        vec![Reply::Located(found.to_vec())],
    );
    assert_eq!(world.get(1, None), versions(&found));
    assert_eq!(world.reads, [(server(0), 0), (server(1), 0)]);
    assert_eq!(world.files[&0], content(0));
    assert_eq!(world.complaints, [server(0)]);
    // A mixture of good and wrong bytes: each source alone shows which it is.
    let kinds = [Kind::WrongBreaks(5), Kind::Good];
    let mut world = World::new(&kinds, vec![Reply::Located(found.to_vec())]);
    assert_eq!(world.get(1, None), versions(&found));
    let reads = [
        (server(0), 0),
        (server(1), 5),
        (server(0), 0),
        (server(1), 0),
    ];
    assert_eq!(world.reads, reads);
    // Nothing but wrong copies is never taken for the file.
    let mut world = World::new(&[Kind::Wrong; 2], vec![Reply::Located(found.to_vec())]);
    assert!(matches!(world.get(1, None), Err(Refusal::Failed(_))));
    assert_eq!(world.complaints[..2], [server(0), server(1)]);
}

#[test]
fn where_no_source_is_left_the_file_is_located_anew() {
    let before = located(0, &[0, 1]);
    let after = located(0, &[2]);
    let newer = located(1, &[2]);
    let kinds = [Kind::Refuses, Kind::Breaks(0), Kind::Good];
    let answers = vec![
        Reply::Located(vec![before]),
        Reply::Located(vec![newer, after.clone()]),
    ];
    let mut world = World::new(&kinds, answers);
    assert_eq!(
        world.get(1, None),
        versions(&[after]),
        "the version that was asked for first"
    );
    assert_eq!(world.reads.len(), 5, "each source twice, then the new one");

    let gone = located(0, &[0, 1]);
    let mut world = World::new(&kinds, vec![Reply::Located(vec![gone])]);
    let expected = Refusal::NoCopies {
        name: name("f"),
        version: Version(0),
        holders: vec![server(0).node, server(1).node],
    };
    assert_eq!(world.get(1, None), Err(expected));
    assert_eq!(world.requests.len(), 3, "a bounded number of times");
}

#[test]
fn several_versions_are_read_in_turn() {
    let found: Vec<Located> = [4, 3, 2].map(|v| located(v, &[0, 1])).to_vec();
    let kinds = [Kind::Breaks(20), Kind::Good];
    let mut world = World::new(&kinds, vec![Reply::Located(found.clone())]);
    assert_eq!(world.get(3, None), versions(&found));
    for version in [4, 3, 2] {
        assert_eq!(world.files[&version], content(version));
    }
}

#[test]
fn answers_without_bytes_end_it() {
    let get = |reply| World::new(&[], vec![reply]).get(1, None);
    let missing = Refusal::NotFound(name("f"));
    assert_eq!(get(Reply::Refused(missing.clone())), Err(missing.clone()));
    assert_eq!(get(Reply::Located(Vec::new())), Err(missing));
    let job = Downloaded::Job {
        job: JobId(3),
        inputs: 9,
    };
    let reply = Reply::LocatedJob {
        job: JobId(3),
        inputs: 9,
    };
    assert_eq!(get(reply), Ok(job));
    assert!(matches!(get(Reply::Done), Err(Refusal::Failed(_))));
}

#[test]
fn an_empty_file_needs_no_reading() {
    let mut empty = located(0, &[0]);
    empty.bytes = 0;
    empty.digest = Digest::of(b"");
    let mut world = World::new(&[Kind::Silent], vec![Reply::Located(vec![empty.clone()])]);
    assert_eq!(world.get(1, None), versions(&[empty]));
    assert!(world.reads.is_empty() && world.files[&0].is_empty());
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Good),
        Just(Kind::Refuses),
        Just(Kind::Silent),
        (0usize..40).prop_map(Kind::Breaks),
        Just(Kind::Wrong),
        (0usize..40).prop_map(Kind::WrongBreaks),
        Just(Kind::TooMany),
    ]
}

proptest! {
    /// Whatever the others do: with one good source the right bytes come, and without one
    /// never wrong ones.
    #[test]
    fn one_good_source_is_enough(kinds in prop::collection::vec(kind(), 1..5)) {
        let all: Vec<u64> = (0..kinds.len() as u64).collect();
        let found = [located(0, &all)];
        let mut world = World::new(&kinds, vec![Reply::Located(found.to_vec())]);
        let end = world.get(1, None);
        if kinds.contains(&Kind::Good) {
            prop_assert_eq!(&end, &versions(&found));
        }
        if end.is_ok() {
            prop_assert_eq!(&world.files[&0], &content(0));
        }
    }
}
