//! What clients were told about each file, and whether all of it can be true (P4).
//!
//! Decides: that versions are unique, that nobody is told an older version than somebody was
//! told before, that what was deleted stays deleted, and that bytes belong to their version.
//! A put whose outcome its client does not know may have happened at any later moment. These are
//! quick rules that name the moment; at the end of a run one order must explain everything that was
//! told (`linearizability`). Leaves to others: gaps in the numbering, which only the end of a run
//! shows (`convergence`).

use std::collections::BTreeMap;

use super::linearizability::{self, Operation, Told};
use dlc::types::{BlobId, Digest, FileName, Time, Version};

/// Names a put.
#[derive(Clone, Copy, Debug)]
pub struct PutId(usize, usize, usize);
/// Names a read.
#[derive(Clone, Copy, Debug)]
pub struct ReadId(usize, Time, usize);
/// Names a delete.
#[derive(Clone, Copy, Debug)]
pub struct DeleteId(usize, usize, usize);

/// How a put ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutEnd {
    /// Under way, or its client does not know.
    Unknown,
    /// It certainly did not happen.
    Failed,
    /// Answered then, with that version of those bytes.
    Answered(Time, Version, BlobId),
}

/// A put.
#[derive(Debug)]
pub struct Put {
    /// When it began.
    pub began: Time,
    /// What it put.
    pub digest: Digest,
    /// How it ended.
    pub end: PutEnd,
}

#[derive(Debug)]
struct Delete {
    began: Time,
    answered: Option<Time>,
    /// It certainly did nothing.
    nothing: bool,
}

/// One file.
#[derive(Debug, Default)]
pub struct History {
    /// Its puts.
    pub puts: Vec<Put>,
    deletes: Vec<Delete>,
    /// When each version was first certain to exist.
    seen: BTreeMap<Version, (Time, Digest)>,
    /// Versions that were told without their bytes.
    told: BTreeMap<Version, Time>,
    /// All operations, in the order in which they began; none where it certainly did nothing, or
    /// is a read that was not answered.
    operations: Vec<Option<Operation>>,
}

/// All files.
#[derive(Debug, Default)]
pub struct Histories {
    names: BTreeMap<FileName, usize>,
    files: Vec<(FileName, History)>,
}

impl History {
    /// An operation begins; `told` is what it may do without its client hearing of it.
    pub fn begin(&mut self, now: Time, told: Option<Told>) -> usize {
        self.operations.push(told.map(|told| Operation {
            began: now,
            ended: None,
            told,
        }));
        self.operations.len() - 1
    }

    /// It was answered.
    pub fn end(&mut self, at: usize, began: Time, now: Time, told: Told) {
        self.operations[at] = Some(Operation {
            began,
            ended: Some(now),
            told,
        });
    }

    /// It certainly did nothing.
    pub fn did_nothing(&mut self, at: usize) {
        self.operations[at] = None;
    }

    /// Whether one order of all operations explains what was told.
    pub fn check(&self) -> linearizability::Verdict {
        let operations: Vec<Operation> = self.operations.iter().flatten().cloned().collect();
        linearizability::check(&operations)
    }

    /// The newest version that was told before `at`.
    fn floor(&self, at: Time) -> Option<Version> {
        let seen = self
            .seen
            .iter()
            .filter(|(_, (when, _))| *when < at)
            .map(|(version, _)| *version);
        let told = self
            .told
            .iter()
            .filter(|(_, when)| **when < at)
            .map(|(version, _)| *version);
        seen.chain(told).max()
    }

    /// The newest version that a delete, answered before `at`, certainly removed.
    fn buried(&self, at: Time) -> Option<Version> {
        let ended = self
            .deletes
            .iter()
            .filter(|delete| delete.answered.is_some_and(|end| end < at));
        ended.filter_map(|delete| self.floor(delete.began)).max()
    }

    fn check_found(&self, began: Time, version: Version) -> Result<(), String> {
        if self.floor(began).is_some_and(|floor| version < floor) {
            return Err(format!(
                "version {} after version {:?} was told",
                version.0,
                self.floor(began)
            ));
        }
        if self.buried(began).is_some_and(|buried| version <= buried) {
            return Err(format!("version {} although it was deleted", version.0));
        }
        Ok(())
    }

    /// Whether a delete may have come between the newest version told before `began` and `now`.
    fn may_be_gone(&self, began: Time, now: Time) -> bool {
        let answered = self.puts.iter().filter_map(|put| match put.end {
            PutEnd::Answered(at, ..) if at < began => Some(put.began),
            _ => None,
        });
        let Some(newest) = answered.max() else {
            return true;
        };
        self.deletes.iter().any(|delete| {
            !delete.nothing
                && delete.began <= now
                && delete.answered.is_none_or(|end| end >= newest)
        })
    }

    fn saw(&mut self, at: Time, version: Version, digest: Digest) -> Result<(), String> {
        match self.seen.get(&version) {
            Some((_, known)) if *known != digest => {
                return Err(format!(
                    "version {} has bytes {known} and {digest}",
                    version.0
                ));
            }
            Some(_) => {}
            None => drop(self.seen.insert(version, (at, digest))),
        }
        if self
            .puts
            .iter()
            .all(|put| put.digest != digest || put.began > at)
        {
            return Err(format!(
                "version {} has bytes {digest} that nobody put",
                version.0
            ));
        }
        Ok(())
    }

    /// Whether `version` was answered and no delete can have removed it.
    pub fn must_exist(&self, put: &Put) -> bool {
        let PutEnd::Answered(..) = put.end else {
            return false;
        };
        self.deletes
            .iter()
            .all(|delete| delete.nothing || delete.answered.is_some_and(|end| end < put.began))
    }

    /// Whether a delete was under way at any time since `since`.
    pub fn deleted_since(&self, since: Time) -> bool {
        let after = |delete: &Delete| delete.answered.is_none_or(|end| end >= since);
        self.deletes
            .iter()
            .any(|delete| !delete.nothing && after(delete))
    }
}

impl Histories {
    fn file(&mut self, name: &FileName) -> usize {
        if let Some(file) = self.names.get(name) {
            return *file;
        }
        self.files.push((name.clone(), History::default()));
        self.names.insert(name.clone(), self.files.len() - 1);
        self.files.len() - 1
    }

    /// All files with their histories.
    pub fn iter(&self) -> impl Iterator<Item = &(FileName, History)> {
        self.files.iter()
    }

    /// The history of `name`.
    pub fn of(&self, name: &FileName) -> Option<&History> {
        self.names.get(name).map(|file| &self.files[*file].1)
    }

    /// When the put began.
    pub fn began(&self, id: PutId) -> Time {
        self.files[id.0].1.puts[id.1].began
    }

    /// A put begins.
    pub fn put_begins(&mut self, now: Time, name: &FileName, digest: Digest) -> PutId {
        let file = self.file(name);
        let history = &mut self.files[file].1;
        let operation = history.begin(now, Some(Told::Put(digest, None)));
        history.puts.push(Put {
            began: now,
            digest,
            end: PutEnd::Unknown,
        });
        PutId(file, history.puts.len() - 1, operation)
    }

    /// A put failed; `doubtful` where it may have happened nevertheless.
    pub fn put_fails(&mut self, id: PutId, doubtful: bool) {
        if !doubtful {
            self.files[id.0].1.puts[id.1].end = PutEnd::Failed;
            self.files[id.0].1.did_nothing(id.2);
        }
    }

    /// A put was answered.
    pub fn put_answered(
        &mut self,
        id: PutId,
        now: Time,
        version: Version,
        blob: BlobId,
    ) -> Result<(), String> {
        let (name, history) = &mut self.files[id.0];
        let (began, digest) = (history.puts[id.1].began, history.puts[id.1].digest);
        let twice = history
            .puts
            .iter()
            .any(|put| matches!(put.end, PutEnd::Answered(_, v, _) if v == version));
        history.puts[id.1].end = PutEnd::Answered(now, version, blob);
        history.end(id.2, began, now, Told::Put(digest, Some(version)));
        let told = if twice {
            Err(format!("two puts were answered with version {}", version.0))
        } else if history.floor(began).is_some_and(|floor| version <= floor) {
            Err(format!(
                "a put was answered with version {} after {:?}",
                version.0,
                history.floor(began)
            ))
        } else {
            history.saw(now, version, digest)
        };
        told.map_err(|why| format!("{name}: {why}"))
    }

    /// A read begins.
    pub fn read_begins(&mut self, now: Time, name: &FileName) -> ReadId {
        let file = self.file(name);
        ReadId(file, now, self.files[file].1.begin(now, None))
    }

    /// A read found a version with these bytes; `newest` where it is the newest one.
    pub fn read_finds(
        &mut self,
        id: ReadId,
        now: Time,
        version: Version,
        digest: Digest,
        newest: bool,
    ) -> Result<(), String> {
        let (name, history) = &mut self.files[id.0];
        if newest {
            history.end(id.2, id.1, now, Told::Found(version, Some(digest)));
        }
        let found = match history.buried(id.1) {
            _ if newest => history.check_found(id.1, version),
            Some(buried) if version <= buried => {
                Err(format!("version {} although it was deleted", version.0))
            }
            _ => Ok(()),
        };
        found
            .and_then(|()| history.saw(now, version, digest))
            .map_err(|why| format!("{name}: a get was told {why}"))
    }

    /// A read was told the newest version only.
    pub fn read_finds_version(
        &mut self,
        id: ReadId,
        now: Time,
        version: Version,
    ) -> Result<(), String> {
        let (name, history) = &mut self.files[id.0];
        history.end(id.2, id.1, now, Told::Found(version, None));
        let found = history.check_found(id.1, version);
        history.told.entry(version).or_insert(now);
        found.map_err(|why| format!("{name}: ls was told {why}"))
    }

    /// A read found no file.
    pub fn read_finds_nothing(&mut self, id: ReadId, now: Time) -> Result<(), String> {
        let (name, history) = &mut self.files[id.0];
        history.end(id.2, id.1, now, Told::Nothing);
        if history.may_be_gone(id.1, now) {
            return Ok(());
        }
        Err(format!(
            "{name}: not found although it was put and nobody deleted it"
        ))
    }

    /// A delete begins.
    pub fn delete_begins(&mut self, now: Time, name: &FileName) -> DeleteId {
        let file = self.file(name);
        let history = &mut self.files[file].1;
        let operation = history.begin(now, Some(Told::Deleted(None)));
        history.deletes.push(Delete {
            began: now,
            answered: None,
            nothing: false,
        });
        DeleteId(file, history.deletes.len() - 1, operation)
    }

    /// A delete was answered.
    pub fn delete_answered(&mut self, id: DeleteId, now: Time, count: u64) {
        let history = &mut self.files[id.0].1;
        let delete = &mut history.deletes[id.1];
        delete.answered = Some(now);
        let began = delete.began;
        history.end(id.2, began, now, Told::Deleted(Some(count)));
    }

    /// A delete found no file.
    pub fn delete_finds_nothing(&mut self, id: DeleteId, now: Time) -> Result<(), String> {
        let (name, history) = &mut self.files[id.0];
        let began = history.deletes[id.1].began;
        history.deletes[id.1].nothing = true;
        history.end(id.2, began, now, Told::Nothing);
        if history.may_be_gone(began, now) {
            return Ok(());
        }
        Err(format!(
            "{name}: delete found no file although it was put and nobody deleted it"
        ))
    }
}
