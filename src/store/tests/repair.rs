//! The leader's planner, alone and together with replicas and a catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{blob, name, put, server, servers, upload, view};
use crate::store::repair::{TARGET_BLOBS_MAX, TARGET_BYTES_MAX};
use crate::store::{Catalog, Repair, RepairOutput, Replica};
use crate::types::{BlobId, REPLICAS, Server, Term, Time, View};
use crate::wire::store::{CatalogCommand, Located, ReplicaChange};

const NOW: Time = Time(1_000_000_000);

fn pulls(outputs: &[RepairOutput]) -> BTreeMap<Server, Vec<Located>> {
    let pull = |output: &RepairOutput| match output {
        RepairOutput::Pull { to, blobs } => Some((to.clone(), blobs.clone())),
        RepairOutput::Change(_) => None,
    };
    outputs.iter().filter_map(pull).collect()
}

fn changes(outputs: &[RepairOutput]) -> Vec<ReplicaChange> {
    let change = |output: &RepairOutput| match output {
        RepairOutput::Change(changes) => changes.clone(),
        RepairOutput::Pull { .. } => Vec::new(),
    };
    outputs.iter().flat_map(change).collect()
}

fn apply(catalog: &mut Catalog, changes: Vec<ReplicaChange>) {
    catalog.apply(&CatalogCommand::Replicas(changes));
}

#[test]
fn lost_copies_are_made_again_fewest_first() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("three", blob(1, 0), &[0, 1, 2, 9]));
    catalog.apply(&put("one", blob(1, 1), &[0, 7, 8, 9]));
    catalog.apply(&put("none", blob(1, 2), &[7, 8, 9]));
    catalog.apply(&put("four", blob(1, 3), &[0, 1, 2, 3]));
    let live = view(1, &[0, 1, 2, 3, 4], &[2]);
    let mut repair = Repair::new(Term(1));
    let outputs = repair.plan(NOW, &catalog, &live);
    let pulls = pulls(&outputs);
    let ordered = |id| -> BTreeSet<Server> {
        let got = pulls
            .iter()
            .filter(|(_, blobs)| blobs.iter().any(|l| l.blob == id));
        got.map(|(to, _)| to.clone()).collect()
    };
    assert_eq!(
        ordered(blob(1, 1)),
        servers(&[1, 3, 4]).into_iter().collect(),
        "a suspect only at need"
    );
    assert_eq!(ordered(blob(1, 0)).len(), 1);
    assert!(ordered(blob(1, 2)).is_empty() && ordered(blob(1, 3)).is_empty());
    for located in pulls.values().flatten() {
        let sources: Vec<Server> = located.sources.iter().map(|t| t.server.clone()).collect();
        let expected: &[u64] = if located.blob == blob(1, 0) {
            &[0, 1, 2]
        } else {
            &[0]
        };
        assert_eq!(sources, servers(expected), "live holders, suspects last");
    }
    let first = pulls.values().map(|blobs| blobs[0].blob);
    assert!(
        first.filter(|id| *id == blob(1, 1)).count() == 3,
        "fewest copies first"
    );
    repair.check_invariants();
    assert_eq!(repair.plan(NOW, &catalog, &live), [], "nothing changed");
}

#[test]
fn who_leaves_hands_its_copies_over_and_is_read_meanwhile() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[0, 1, 2, 3]));
    catalog.apply(&put("alone", blob(1, 1), &[0]));
    let live = view(1, &[0, 1, 2, 3, 4], &[]);
    let mut repair = Repair::new(Term(1));
    let _ = repair.plan(NOW, &catalog, &live);
    assert_eq!(repair.under(&catalog, &live).count(), 1);
    repair.handle_leaving(NOW, server(0));
    assert_eq!(repair.under(&catalog, &live).count(), 2);
    let ordered = pulls(&repair.plan(NOW, &catalog, &live));
    let to_spare = &ordered[&server(4)];
    assert!(to_spare.iter().any(|it| it.blob == blob(1, 0)));
    let sources = &to_spare[0].sources;
    assert!(sources.iter().any(|source| source.server == server(0)));
    assert!(!ordered.contains_key(&server(0)), "nothing goes to it");
    let change = repair.handle_stored(NOW, &server(4), &[blob(1, 0)], &catalog, &live);
    apply(&mut catalog, change);
    assert_eq!(
        changes(&repair.plan(NOW, &catalog, &live)),
        [],
        "the fifth copy is none too many yet"
    );
    // It has thought better of it.
    let due = NOW + Duration::from_secs(6);
    let thin = changes(&repair.plan(due, &catalog, &live));
    assert_eq!(thin.len(), 1, "{thin:?}");
    repair.check_invariants();
}

#[test]
fn only_ordered_copies_count_and_a_dead_holder_makes_room() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[0, 1, 2, 9]));
    let live = view(1, &[0, 1, 2, 3], &[]);
    let mut repair = Repair::new(Term(1));
    let id = blob(1, 0);
    let early = repair.handle_stored(NOW, &server(3), &[id], &catalog, &live);
    assert_eq!(early, [], "not ordered");
    let _ = repair.plan(NOW, &catalog, &live);
    let change = repair.handle_stored(NOW, &server(3), &[id], &catalog, &live);
    let expected = ReplicaChange {
        blob: id,
        add: servers(&[3]),
        remove: servers(&[9]),
    };
    assert_eq!(change, [expected]);
    assert_eq!(
        repair.handle_stored(NOW, &server(3), &[id], &catalog, &live),
        [],
        "once"
    );
    assert_eq!(
        repair.plan(NOW, &catalog, &live),
        [],
        "not again while it is proposed"
    );
    apply(&mut catalog, change);
    assert_eq!(repair.plan(NOW, &catalog, &live), []);
    assert_eq!(repair.poll_timeout(), None, "nothing is left to do");
    repair.check_invariants();
}

#[test]
fn a_change_that_does_not_show_is_proposed_again() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[0, 1, 2]));
    let live = view(1, &[0, 1, 2, 3], &[]);
    let mut repair = Repair::new(Term(1));
    let _ = repair.plan(NOW, &catalog, &live);
    let change = repair.handle_stored(NOW, &server(3), &[blob(1, 0)], &catalog, &live);
    assert_eq!(repair.plan(NOW, &catalog, &live), []);
    let due = repair.poll_timeout().expect("a deadline");
    assert!(due > NOW);
    let outputs = repair.plan(due, &catalog, &live);
    assert_eq!(changes(&outputs), change);
    assert!(pulls(&outputs).is_empty());
}

#[test]
fn surplus_copies_go_but_never_below_four_live() {
    let mut catalog = Catalog::new();
    let id = blob(1, 0);
    catalog.apply(&put("a", id, &[0, 1, 2, 3, 4, 5, 9]));
    let live = view(1, &[0, 1, 2, 3, 4, 5], &[]);
    let mut repair = Repair::new(Term(1));
    let thin = changes(&repair.plan(NOW, &catalog, &live));
    assert_eq!((thin.len(), thin[0].remove.len()), (1, 2));
    let ring = crate::store::targets("a", &live, &BTreeSet::new(), REPLICAS);
    assert!(
        ring.iter().all(|t| !thin[0].remove.contains(&t.server)),
        "the first of the ring stay"
    );
    // Before the log has it, one of the four turns out to be missing: 3 would be left.
    let kept = &ring[0].server;
    let lost = repair.handle_missing(NOW, kept, &[id], &catalog, &live);
    assert_eq!(lost.len(), 1);
    assert_eq!(
        changes(&repair.plan(NOW, &catalog, &live)),
        [],
        "and no more of the others"
    );
    apply(&mut catalog, thin);
    apply(&mut catalog, lost);
    let outputs = repair.plan(NOW, &catalog, &live);
    assert_eq!(pulls(&outputs).len(), 1, "back to four");
    let small = view(2, &[0, 1, 2], &[]);
    let mut repair = Repair::new(Term(2));
    assert_eq!(
        changes(&repair.plan(NOW, &catalog, &small)),
        [],
        "dead copies may come back"
    );
}

#[test]
fn a_copy_is_released_only_where_there_are_enough_and_nothing_names_it() {
    let id = blob(1, 0);
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", id, &[0, 1, 2, 3]));
    let (full, less) = (view(1, &[0, 1, 2, 3, 4, 5], &[]), view(2, &[0, 1, 2], &[]));
    let mut repair = Repair::new(Term(1));
    let _ = repair.plan(NOW, &catalog, &full);
    let releases = |repair: &Repair, from, catalog: &Catalog, view: &View| {
        repair.releases(&server(from), &[id, blob(9, 9)], catalog, view)
    };
    assert_eq!(releases(&repair, 4, &catalog, &full), [id]);
    assert_eq!(releases(&repair, 3, &catalog, &full), [], "named");
    let mut short = Catalog::new();
    short.apply(&put("a", id, &[0, 1, 2]));
    assert_eq!(releases(&repair, 4, &short, &full), [], "too few others");
    assert_eq!(
        releases(&repair, 4, &short, &less),
        [id],
        "as many as can be"
    );
    // While it is ordered and until its naming shows, a copy stays.
    let mut repair = Repair::new(Term(1));
    let ordered = pulls(&repair.plan(NOW, &short, &full));
    let to = ordered.keys().next().expect("somebody").clone();
    assert_eq!(repair.releases(&to, &[id], &catalog, &full), []);
    let proposed = repair.handle_stored(NOW, &to, &[id], &short, &full);
    assert_eq!(proposed.len(), 1);
    assert_eq!(repair.releases(&to, &[id], &catalog, &full), []);
}

#[test]
fn suspects_are_the_first_surplus() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[0, 1, 2, 3, 4]));
    let all = [0, 1, 2, 3, 4];
    let first = &crate::store::targets("a", &view(1, &all, &[]), &BTreeSet::new(), 1)[0].server;
    let suspect: Vec<u64> = all.into_iter().filter(|n| server(*n) == *first).collect();
    let thin = Repair::new(Term(1)).plan(NOW, &catalog, &view(1, &all, &suspect));
    assert_eq!(changes(&thin)[0].remove.iter().collect::<Vec<_>>(), [first]);
}

#[test]
fn a_join_moves_nothing_that_has_its_copies() {
    let mut catalog = Catalog::new();
    for i in 0..50 {
        catalog.apply(&put(&format!("f{i}"), blob(1, i), &[0, 1, 2, 3]));
    }
    let mut repair = Repair::new(Term(1));
    assert_eq!(repair.plan(NOW, &catalog, &view(1, &[0, 1, 2, 3], &[])), []);
    assert_eq!(
        repair.plan(NOW, &catalog, &view(2, &[0, 1, 2, 3, 4, 5], &[])),
        []
    );
    let mut few = Catalog::new();
    few.apply(&put("a", blob(1, 0), &[0, 1]));
    assert_eq!(
        Repair::new(Term(1)).plan(NOW, &few, &view(1, &[0, 1], &[])),
        []
    );
    let outputs = Repair::new(Term(1)).plan(NOW, &few, &view(2, &[0, 1, 2], &[]));
    assert_eq!(pulls(&outputs).into_keys().collect::<Vec<_>>(), [server(2)]);
}

#[test]
fn orders_are_bounded_by_blobs_and_by_bytes() {
    let live = view(1, &[0, 1], &[]);
    let mut catalog = Catalog::new();
    for i in 0..200 {
        catalog.apply(&put("a", blob(1, i), &[0]));
    }
    let mut repair = Repair::new(Term(1));
    let first = pulls(&repair.plan(NOW, &catalog, &live));
    assert_eq!(first[&server(1)].len(), TARGET_BLOBS_MAX);
    let done: Vec<BlobId> = first[&server(1)].iter().map(|l| l.blob).collect();
    let (few, others) = done[..TARGET_BLOBS_MAX / 2].split_at(10);
    let change = repair.handle_stored(NOW, &server(1), few, &catalog, &live);
    apply(&mut catalog, change);
    let next = pulls(&repair.plan(NOW, &catalog, &live));
    assert!(next.is_empty(), "not for a few");
    let change = repair.handle_stored(NOW, &server(1), others, &catalog, &live);
    apply(&mut catalog, change);
    let next = pulls(&repair.plan(NOW, &catalog, &live));
    let reported = few.len() + others.len();
    assert_eq!(next[&server(1)].len(), reported, "as many as were reported");
    repair.check_invariants();

    let mut catalog = Catalog::new();
    let mut big = upload("big", blob(1, 0), &[0]);
    big.bytes = 10 * TARGET_BYTES_MAX;
    let mut half = upload("half", blob(1, 1), &[0]);
    half.bytes = TARGET_BYTES_MAX / 2 + 1;
    let mut other = half.clone();
    other.blob = blob(1, 2);
    catalog.apply(&CatalogCommand::Put(vec![big, half, other]));
    let mut repair = Repair::new(Term(1));
    for expected in [blob(1, 0), blob(1, 1), blob(1, 2)] {
        let pull = pulls(&repair.plan(NOW, &catalog, &live));
        let ids: Vec<BlobId> = pull[&server(1)].iter().map(|l| l.blob).collect();
        assert_eq!(ids, [expected], "one at a time");
        repair.check_invariants();
        let change = repair.handle_stored(NOW, &server(1), &ids, &catalog, &live);
        apply(&mut catalog, change);
    }
}

#[test]
fn a_silent_member_loses_its_orders_to_another() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[0, 1, 2]));
    let live = view(1, &[0, 1, 2, 3, 4], &[]);
    let mut repair = Repair::new(Term(1));
    let (first, _) = pulls(&repair.plan(NOW, &catalog, &live))
        .pop_first()
        .expect("ordered");
    let due = repair.poll_timeout().expect("a deadline");
    let (second, _) = pulls(&repair.plan(due, &catalog, &live))
        .pop_first()
        .expect("ordered");
    assert_ne!(first, second);
    // A member that is gone loses them at once.
    let gone: Vec<u64> = (0..5).filter(|n| server(*n) != second).collect();
    let third = pulls(&repair.plan(due, &catalog, &view(2, &gone, &[])));
    assert_eq!(
        third.into_keys().collect::<Vec<_>>(),
        [first],
        "nobody else is left"
    );
    repair.check_invariants();
}

#[test]
fn a_copy_that_cannot_be_made_is_tried_ever_more_rarely() {
    let mut catalog = Catalog::new();
    let id = blob(1, 0);
    catalog.apply(&put("a", id, &[0]));
    let live = view(1, &[0, 1], &[]);
    let mut repair = Repair::new(Term(1));
    let (mut now, mut waits) = (NOW, Vec::new());
    for _ in 0..4 {
        let pull = pulls(&repair.plan(now, &catalog, &live));
        assert_eq!(pull.len(), 1, "at {now} after {waits:?}");
        assert_eq!(
            repair.handle_missing(now, &server(1), &[id], &catalog, &live),
            []
        );
        assert_eq!(repair.plan(now, &catalog, &live), []);
        let due = repair.poll_timeout().expect("a next try");
        waits.push(due.since(now));
        now = due;
    }
    assert_eq!(waits, [1, 2, 4, 8].map(Duration::from_secs));
}

#[test]
fn one_failed_copy_does_not_order_the_others_twice() {
    let mut catalog = Catalog::new();
    let id = blob(1, 0);
    catalog.apply(&put("a", id, &[0]));
    let live = view(1, &[0, 1, 2, 3], &[]);
    let mut repair = Repair::new(Term(1));
    let ordered: Vec<Server> = pulls(&repair.plan(NOW, &catalog, &live))
        .into_keys()
        .collect();
    assert_eq!(ordered.len(), 3);
    let mut now = NOW;
    for failed in &ordered {
        let change = repair.handle_missing(now, failed, &[id], &catalog, &live);
        assert_eq!(
            (change, repair.plan(now, &catalog, &live)),
            (vec![], vec![])
        );
        now = repair.poll_timeout().expect("a next try");
        let again = pulls(&repair.plan(now, &catalog, &live)).into_keys();
        assert!(
            again.eq([failed.clone()]),
            "{failed:?} failed, the others are fetching"
        );
        repair.check_invariants();
    }
}

#[test]
fn a_lost_copy_is_taken_out_unless_it_is_the_last() {
    let mut catalog = Catalog::new();
    let id = blob(1, 0);
    catalog.apply(&put("a", id, &[0, 1, 9]));
    let live = view(1, &[0, 1], &[]);
    let mut repair = Repair::new(Term(1));
    let change = repair.handle_missing(NOW, &server(0), &[id, blob(5, 5)], &catalog, &live);
    assert_eq!((change.len(), &change[0].remove), (1, &servers(&[0])));
    assert_eq!(
        repair.handle_missing(NOW, &server(0), &[id], &catalog, &live),
        [],
        "once"
    );
    let last = repair.handle_missing(NOW, &server(1), &[id], &catalog, &live);
    assert_eq!(last, [], "the last live copy stays named");
    assert_eq!(
        repair.plan(NOW, &catalog, &live),
        [],
        "and nothing is copied from it"
    );
    apply(&mut catalog, change);
    assert_eq!(repair.plan(NOW, &catalog, &live), []);
    let due = repair.poll_timeout().expect("the doubt ends");
    assert_eq!(
        pulls(&repair.plan(due, &catalog, &live)).len(),
        1,
        "perhaps it has it after all"
    );
}

#[test]
fn pinned_blobs_of_deleted_files_are_repaired_and_forgotten_ones_are_not() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[0]));
    catalog.apply(&put("b", blob(1, 1), &[0]));
    catalog.pin(&[blob(1, 0)], |_| ());
    let live = view(1, &[0, 1], &[]);
    let mut repair = Repair::new(Term(1));
    assert_eq!(
        pulls(&repair.plan(NOW, &catalog, &live))[&server(1)].len(),
        2
    );
    catalog.apply(&CatalogCommand::Delete(name("a")));
    catalog.apply(&CatalogCommand::Delete(name("b")));
    let _ = repair.plan(NOW, &catalog, &live);
    assert_eq!(repair.in_flight(), 1);
    let both = [blob(1, 0), blob(1, 1)];
    let change = repair.handle_stored(NOW, &server(1), &both, &catalog, &live);
    assert_eq!(
        change.iter().map(|c| c.blob).collect::<Vec<_>>(),
        [blob(1, 0)]
    );
    repair.check_invariants();
}

/// Members with their disks, a catalog that all share, and a leader's planner.
struct Cluster {
    catalog: Catalog,
    replicas: BTreeMap<Server, Replica>,
    repair: Repair,
    term: Term,
    now: Time,
}

impl Cluster {
    fn apply(&mut self, command: &CatalogCommand) {
        self.catalog.apply(command);
        for replica in self.replicas.values_mut() {
            let _ = replica.handle_applied(self.term, &self.catalog);
        }
    }

    /// Runs until nothing is left to do.
    fn settle(&mut self, live: &View) {
        for _ in 0..1000 {
            let outputs = self.repair.plan(self.now, &self.catalog, live);
            let idle = outputs.is_empty();
            let mut proposed = changes(&outputs);
            for (to, blobs) in pulls(&outputs) {
                proposed.extend(self.pull(&to, blobs, live));
            }
            self.repair.check_invariants();
            self.apply(&CatalogCommand::Replicas(proposed));
            match self.repair.poll_timeout() {
                Some(due) if idle => self.now = self.now.max(due),
                None if idle => return,
                _ => {}
            }
        }
        panic!("repair does not come to an end");
    }

    fn pull(&mut self, to: &Server, blobs: Vec<Located>, live: &View) -> Vec<ReplicaChange> {
        let replica = self.replicas.get_mut(to).expect("a member");
        let answer = replica.handle_pull(self.term, blobs);
        let fetch = answer.fetch.into_iter();
        let has = |located: &Located| {
            located
                .sources
                .iter()
                .any(|t| self.replicas[&t.server].holds(&located.blob))
        };
        let results = fetch.map(|located| (located.blob, has(&located))).collect();
        let replica = self.replicas.get_mut(to).expect("a member");
        let report = replica.handle_fetched(results);
        let stored = [answer.stored, report.stored].concat();
        let (now, catalog) = (self.now, &self.catalog);
        let mut proposed = self.repair.handle_stored(now, to, &stored, catalog, live);
        proposed.extend(
            self.repair
                .handle_missing(now, to, &report.missing, catalog, live),
        );
        proposed
    }

    fn check(&self, live: &View) {
        for record in self.catalog.records() {
            let held =
                |s: &&Server| live.server(s).is_some() && self.replicas[*s].holds(&record.blob);
            let copies = record.replicas.iter().filter(held).count();
            assert_eq!(copies, live.members.len().min(REPLICAS), "{record:?}");
        }
    }
}

/// Three members burn, two come back empty-handed, others join: every file is back at
/// min(4, live) copies, also with a new leader that starts in the middle.
#[test]
fn every_file_comes_back_to_four_copies() {
    let replicas = (0..8).map(|n| (server(n), Replica::new(server(n), Vec::new(), Term(0))));
    let mut cluster = Cluster {
        catalog: Catalog::new(),
        replicas: replicas.collect(),
        repair: Repair::new(Term(1)),
        term: Term(1),
        now: NOW,
    };
    let mut live = view(1, &[0, 1, 2, 3, 4, 5], &[]);
    for i in 0..300 {
        let text = format!("f{i}");
        let targets = crate::store::targets(&text, &live, &BTreeSet::new(), REPLICAS);
        let mut upload = upload(&text, blob(1, i), &[]);
        upload.replicas = targets.into_iter().map(|t| t.server).collect();
        for server in &upload.replicas {
            let replica = cluster.replicas.get_mut(server).expect("a member");
            replica.handle_stored(upload.blob);
        }
        cluster.apply(&CatalogCommand::Put(vec![upload]));
    }
    cluster.settle(&live);
    cluster.check(&live);
    for (number, members) in [
        (2, &[0, 1, 2][..]),
        (3, &[0, 1, 2, 6]),
        (4, &[0, 1, 2, 3, 4, 5, 6, 7]),
        (5, &[3, 4, 5, 6, 7]),
    ] {
        live = view(number, members, &[]);
        // The old leader's orders are under way when the new one takes over.
        let _ = cluster.repair.plan(cluster.now, &cluster.catalog, &live);
        cluster.term = Term(number);
        cluster.repair = Repair::new(cluster.term);
        cluster.settle(&live);
        cluster.check(&live);
    }
    let held: usize = cluster
        .replicas
        .values()
        .map(|replica| replica.held().count())
        .sum();
    let named: usize = cluster
        .catalog
        .records()
        .map(|record| record.replicas.len())
        .sum();
    assert!(held <= named, "{held} copies on disk, {named} named");
}
