//! Disks that decay, lie, or take no more: bit flips, lost syncs, full disks, writes that fail.
//!
//! Decides: which copies decay or get lost (never so many that a file is), when that is found (by a
//! reader, or by the scrub), and which writes fail. Leaves to others: what the node makes of it.

use std::time::Duration;

use dlc::node::io::Input;
use dlc::types::{BlobId, Time};
use dlc::wire::store::Target;

use crate::cluster::{Life, Sim};
use crate::network::HostId;

/// Every copy on a disk is checked once in such a time.
const SCRUB: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(8));
/// Whole copies that a file keeps on other disks when one decays.
const OTHERS_MIN: usize = 2;

impl Sim {
    /// Up to `count` copies on the disk of `id` decay.
    pub fn decay(&mut self, id: HostId, count: u64) {
        for _ in 0..count {
            let held = self.hosts[id].disk.held();
            if held.is_empty() {
                return;
            }
            let place = self.streams.faults.below(held.len() as u64) as usize;
            if self.may_go(id, held[place], "decay") {
                self.count("copies decayed");
                self.hosts[id].disk.decay(held[place]);
            }
        }
    }

    /// Up to `count` of the newest copies on the disk of `id`, whose process is dead, are not there
    /// though the disk had said that they are safe.
    pub fn lose_syncs(&mut self, id: HostId, count: u64) {
        let held = self.hosts[id].disk.held();
        for blob in held.into_iter().rev().take(count as usize) {
            if self.may_go(id, blob, "lost sync") {
                self.count("copies lost after their sync");
                self.hosts[id].disk.remove_blob(blob);
            }
        }
    }

    /// Whether the copy of `blob` on `id` may go without the file being lost; it counts as burned
    /// then.
    fn may_go(&mut self, id: HostId, blob: BlobId, how: &'static str) -> bool {
        let Some(digest) = self.hosts[id].disk.blob(blob).map(|held| held.digest) else {
            return false;
        };
        let others = (0..self.nodes).filter(|other| *other != id);
        let others = others.filter(|other| {
            let host = &self.hosts[*other];
            !host.retired && host.disk.keeps(blob, digest)
        });
        if others.count() < OTHERS_MIN {
            return false;
        }
        self.trace
            .story(self.now, how, || format!("{blob} on node-{id}"));
        self.watchers.burned_at.push(self.now);
        true
    }

    /// For `span` so many percent of the writes of blobs fail on the disk of `id`.
    pub fn fill_disk(&mut self, id: HostId, percent: u64, span: Duration) {
        self.hosts[id].full = (percent, self.now + span);
    }

    /// Whether a write of a blob fails now.
    pub fn write_fails(&mut self, id: HostId) -> bool {
        let (percent, until): (u64, Time) = self.hosts[id].full;
        let fails = self.now < until && self.streams.devices.chance(percent);
        if fails {
            self.count("writes refused");
        }
        fails
    }

    /// A reader on the machine of `id` has found that its copy of `blob` is not whole.
    pub fn found_decayed(&mut self, id: HostId, blob: BlobId) {
        self.trace
            .note(self.now, id, "decayed", || blob.to_string());
        self.hosts[id].disk.remove_blob(blob);
        if self.hosts[id].process().is_some() {
            let (delay, life) = (self.hop_delay(), self.life(id));
            self.after_in(delay, life, move |sim| {
                sim.handle_coord(id, Input::Corrupt(blob));
            });
        }
    }

    /// A client on `from` tells `source` that it got wrong bytes; that may be lost.
    pub fn complain(&mut self, from: HostId, source: &Target, blob: BlobId) {
        let Some(to) = self.host_at(source.addr) else {
            return;
        };
        if !self.network.is_open_both_ways(from, to) || self.hosts[to].is_paused() {
            return;
        }
        let server = source.server.clone();
        let delay = self.network.segment_delay() + self.network.segment_delay();
        self.after_in(delay, self.life(to), move |sim| {
            let serves = sim.hosts[to]
                .process()
                .is_some_and(|it| it.server == server);
            let held = sim.hosts[to].disk.blob(blob);
            if serves && held.is_some_and(|held| held.decayed) {
                sim.count("decay found by a client");
                sim.found_decayed(to, blob);
            }
        });
    }

    /// The scrub of this life of a node: each copy is read in turn.
    pub fn scrub(&mut self, life: Life) {
        let wait = self.streams.devices.span(SCRUB.0, SCRUB.1);
        self.after_in(wait, life, move |sim| {
            for blob in sim.hosts[life.0].disk.decayed() {
                // As the core lists them: an upload is not known before it is noted.
                let process = sim.hosts[life.0].process().expect("of this life");
                let catalog = &process.node.state().catalog;
                if !catalog.names(&blob, &process.server) {
                    continue;
                }
                sim.count("decay found by the scrub");
                sim.found_decayed(life.0, blob);
            }
            sim.scrub(life);
        });
    }
}
