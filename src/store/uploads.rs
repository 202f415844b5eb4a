//! The leader's table of uploads that have begun and are not named yet.
//!
//! Volatile: made anew in each term, so an upload that a former leader began is unknown
//! here and is started over. Decides: blob ids, targets and their replacements, whether
//! enough copies are on disk for the promise (P3), and when an upload is given up. Leaves
//! to others: the version (the catalog gives it), and commands that are repeated after
//! they were applied (`node` knows their request ids and asks here only for new ones).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::placement::Ring;
use crate::planted::{self, Bug};
use crate::types::{BlobId, FileName, REPLICAS, Server, Term, Time, View, WallTime};
use crate::wire::client::{PUT_FILES_MAX, Placement, Refusal};
use crate::wire::store::{Target, Upload};

/// Most pending uploads; more are refused as `Busy`.
pub const PENDING_MAX: usize = 200_000;
/// An upload of which nothing was heard for so long is given up. The leader hears nothing
/// while the bytes of a large file stream, so this bounds the time of one put.
pub const UPLOAD_IDLE: Duration = Duration::from_secs(3600);
/// Most blobs in one order to drop.
pub const DROP_MAX: usize = 1_000;

/// An order for a member: drop what it has of these abandoned uploads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// Who may have some of the bytes.
    pub to: Server,
    /// The uploads, at most [`DROP_MAX`].
    pub blobs: Vec<BlobId>,
}

/// One upload.
#[derive(Clone, Debug)]
struct Pending {
    name: FileName,
    /// The node through which its client speaks, and when that joined: another life of it has no
    /// clients of this one.
    through: (Server, WallTime),
    /// Everyone that was given as a target, and by whom it was replaced if it failed.
    targets: Vec<(Server, Replacement)>,
    /// Fewest members that there were since the begin.
    smallest: usize,
    /// When it was last heard of.
    active: Time,
    /// Whether an entry that names it has been proposed.
    committing: bool,
}

/// The answer to a `PutReplace`, kept for its repetition.
type Replacement = Option<Target>;

/// The table.
#[derive(Clone, Debug)]
pub struct Uploads {
    term: Term,
    counter: u64,
    pending: BTreeMap<BlobId, Pending>,
    /// No upload is to be given up before this.
    next_expiry: Option<Time>,
}

impl Uploads {
    /// The table of the leader of `term`.
    pub fn new(term: Term) -> Uploads {
        Uploads {
            term,
            counter: 0,
            pending: BTreeMap::new(),
            next_expiry: None,
        }
    }

    /// Uploads that have begun and are not finished.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether this upload has begun and is not finished.
    pub fn has(&self, blob: &BlobId) -> bool {
        self.pending.contains_key(blob)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// A fresh blob id, for bytes that the leader itself writes.
    pub fn next_blob(&mut self) -> BlobId {
        let blob = BlobId {
            term: self.term,
            counter: self.counter,
        };
        self.counter += 1;
        blob
    }

    /// Begins uploads of `names`, of a client of node `through`: an id and up to [`REPLICAS`]
    /// targets for each; members that are `leaving` come last.
    ///
    /// Errors: `Reserved` for a name of a job's result file, `BadArgument` for too many
    /// names at once, `Busy` where too much is pending or `through` is no live member.
    pub fn begin(
        &mut self,
        now: Time,
        names: Vec<FileName>,
        through: &Server,
        view: &View,
        leaving: &BTreeSet<Server>,
    ) -> Result<Vec<Placement>, Refusal> {
        if let Some(name) = names.iter().find(|name| name.is_reserved()) {
            return Err(Refusal::Reserved(name.clone()));
        }
        if names.len() > PUT_FILES_MAX {
            let most = format!("at most {PUT_FILES_MAX} files in one upload: send fewer at once");
            return Err(Refusal::BadArgument(most));
        }
        let member = view.server(through).ok_or(Refusal::Busy)?;
        if self.pending.len() + names.len() > PENDING_MAX {
            return Err(Refusal::Busy);
        }
        let ring = Ring::new(view, leaving);
        let nobody = Default::default();
        let mut placements = Vec::with_capacity(names.len());
        for name in names {
            let blob = self.next_blob();
            let targets = ring.targets(name.as_str(), &nobody, REPLICAS);
            let given = targets.iter().map(|target| (target.server.clone(), None));
            let pending = Pending {
                name,
                through: (through.clone(), member.joined),
                targets: given.collect(),
                smallest: view.members.len(),
                active: now,
                committing: false,
            };
            self.pending.insert(blob, pending);
            placements.push(Placement { blob, targets });
        }
        self.next_expiry.get_or_insert(now + UPLOAD_IDLE);
        Ok(placements)
    }

    /// Another target for each of `blobs` in place of `failed`; `None` where no member is
    /// left that was not tried. The same question gets the same answer.
    ///
    /// Errors: `UnknownUpload` where one of the blobs is not pending, or `failed` is not
    /// one of its targets; nothing has changed then.
    pub fn replace(
        &mut self,
        now: Time,
        blobs: &[BlobId],
        failed: &Server,
        view: &View,
        leaving: &BTreeSet<Server>,
    ) -> Result<Vec<Option<Target>>, Refusal> {
        let given = |blob: &BlobId| {
            let pending = self.pending.get(blob);
            pending.is_some_and(|upload| upload.targets.iter().any(|(s, _)| s == failed))
        };
        if !blobs.iter().all(given) {
            return Err(Refusal::UnknownUpload);
        }
        let ring = Ring::new(view, leaving);
        let mut answers = Vec::with_capacity(blobs.len());
        for blob in blobs {
            let Some(upload) = self.pending.get_mut(blob) else {
                return Err(Refusal::UnknownUpload);
            };
            upload.active = now;
            answers.push(upload.replacement(failed, &ring));
        }
        Ok(answers)
    }

    /// Whether `files` may be named: each is pending under its name, its replicas are
    /// targets that it was given, and as many of them are live with that very disk as the
    /// promise needs: min([`REPLICAS`], the smallest membership since the begin).
    ///
    /// Errors: `UnknownUpload`, `TooFewCopies`; nothing has changed then.
    pub fn check_commit(&self, files: &[Upload], view: &View) -> Result<(), Refusal> {
        for file in files {
            let known = self.pending.get(&file.blob);
            let upload = known
                .filter(|upload| upload.name == file.name)
                .ok_or(Refusal::UnknownUpload)?;
            let given = |server: &Server| upload.targets.iter().any(|(s, _)| s == server);
            if !file.replicas.iter().all(given) {
                return Err(Refusal::UnknownUpload);
            }
            let mut live: Vec<&Server> = file.replicas.iter().collect();
            live.retain(|server| view.server(server).is_some());
            live.sort();
            live.dedup();
            let smallest = upload.smallest.min(view.members.len());
            let wanted = match planted::is(Bug::CommitShort) {
                true => 1,
                false => smallest.clamp(1, REPLICAS),
            };
            if live.len() < wanted {
                return Err(Refusal::TooFewCopies {
                    name: file.name.clone(),
                    stored: live.len() as u64,
                    wanted: wanted as u64,
                });
            }
        }
        Ok(())
    }

    /// The members changed. Gives up the uploads whose clients were told by nobody else than a
    /// node that has gone, or was started again.
    #[must_use]
    pub fn handle_view(&mut self, view: &View) -> Vec<Abandoned> {
        let size = view.members.len();
        let mut cut_off = Vec::new();
        for (blob, upload) in &mut self.pending {
            upload.smallest = upload.smallest.min(size);
            let (server, joined) = &upload.through;
            let member = view.server(server);
            if member.is_none_or(|member| member.joined != *joined) {
                cut_off.push(*blob);
            }
        }
        self.abort(&cut_off)
    }

    /// An entry that names these uploads is proposed: they are not given up any more,
    /// until [`Uploads::finished`] or [`Uploads::not_committed`].
    pub fn committing(&mut self, blobs: &[BlobId]) {
        self.set_committing(blobs, true);
    }

    /// The entry was not taken into the log and never will be: the uploads may be committed
    /// again or given up.
    pub fn not_committed(&mut self, now: Time, blobs: &[BlobId]) {
        self.set_committing(blobs, false);
        for blob in blobs {
            if let Some(upload) = self.pending.get_mut(blob) {
                upload.active = now;
            }
        }
    }

    /// The entry that names these uploads is applied: they are pending no more.
    pub fn finished(&mut self, blobs: &[BlobId]) {
        for blob in blobs {
            self.pending.remove(blob);
        }
    }

    /// The client gives these uploads up. Those that are being committed stay.
    #[must_use]
    pub fn abort(&mut self, blobs: &[BlobId]) -> Vec<Abandoned> {
        let mut drops = BTreeMap::new();
        for blob in blobs {
            self.give_up(*blob, &mut drops);
        }
        in_orders(drops)
    }

    /// Gives up the uploads of which nothing was heard for [`UPLOAD_IDLE`].
    #[must_use]
    pub fn handle_timeout(&mut self, now: Time) -> Vec<Abandoned> {
        if self.next_expiry.is_none_or(|due| now < due) {
            return Vec::new();
        }
        let idle = self.pending.iter().filter(|(_, upload)| !upload.committing);
        let old = idle.filter(|(_, upload)| upload.active + UPLOAD_IDLE <= now);
        let blobs: Vec<BlobId> = old.map(|(blob, _)| *blob).collect();
        let drops = self.abort(&blobs);
        let waiting = self.pending.values().filter(|upload| !upload.committing);
        self.next_expiry = waiting.map(|upload| upload.active + UPLOAD_IDLE).min();
        drops
    }

    /// When [`Uploads::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.next_expiry
    }

    fn set_committing(&mut self, blobs: &[BlobId], committing: bool) {
        for blob in blobs {
            if let Some(upload) = self.pending.get_mut(blob) {
                upload.committing = committing;
                if !committing {
                    let due = upload.active + UPLOAD_IDLE;
                    self.next_expiry = Some(self.next_expiry.map_or(due, |next| next.min(due)));
                }
            }
        }
    }

    fn give_up(&mut self, blob: BlobId, drops: &mut BTreeMap<Server, Vec<BlobId>>) {
        let pending = self.pending.get(&blob);
        if pending.is_none_or(|upload| upload.committing) {
            return;
        }
        let Some(upload) = self.pending.remove(&blob) else {
            return;
        };
        for (server, _) in upload.targets {
            drops.entry(server).or_default().push(blob);
        }
    }
}

impl Pending {
    fn replacement(&mut self, failed: &Server, ring: &Ring<'_>) -> Option<Target> {
        let tried = self
            .targets
            .iter()
            .map(|(server, _)| server.clone())
            .collect();
        let entry = self
            .targets
            .iter_mut()
            .find(|(server, _)| server == failed)?;
        if let Some(answer) = &entry.1 {
            return Some(answer.clone());
        }
        let target = ring.targets(self.name.as_str(), &tried, 1).pop()?;
        entry.1 = Some(target.clone());
        self.targets.push((target.server.clone(), None));
        Some(target)
    }
}

fn in_orders(drops: BTreeMap<Server, Vec<BlobId>>) -> Vec<Abandoned> {
    let mut orders = Vec::new();
    for (to, blobs) in drops {
        for blobs in blobs.chunks(DROP_MAX) {
            orders.push(Abandoned {
                to: to.clone(),
                blobs: blobs.to_vec(),
            });
        }
    }
    orders
}
