//! What a node keeps, fetches, reports and throws away.

use super::{blob, name, put, server, servers, upload};
use crate::store::replica::{FETCHES_MAX, MISSING_MAX};
use crate::store::{Catalog, Replica};
use crate::types::{BlobId, Digest, Term, Version};
use crate::wire::store::{CatalogCommand, Located, ReplicaChange};

const ME: u64 = 1;

/// A node with its own catalog.
struct Node {
    replica: Replica,
    catalog: Catalog,
}

impl Node {
    fn new(held: &[BlobId], guard: u64) -> Node {
        Node {
            replica: Replica::new(server(ME), held.to_vec(), Term(guard)),
            catalog: Catalog::new(),
        }
    }

    /// Applies an entry of `term`; what goes from the disk.
    fn apply(&mut self, term: u64, command: &CatalogCommand) -> Vec<BlobId> {
        self.catalog.apply(command);
        let removed = self.replica.handle_applied(Term(term), &self.catalog);
        self.replica.check_invariants();
        removed
    }

    /// An order of `term` is carried out at once.
    fn fetch(&mut self, term: u64, id: BlobId) {
        let answer = self.replica.handle_pull(Term(term), vec![located(id)]);
        assert_eq!(answer.fetch.len(), 1);
        let report = self.replica.handle_fetched(vec![(id, true)]);
        assert_eq!(report.stored, [id]);
    }
}

fn located(blob: BlobId) -> Located {
    Located {
        name: name("f"),
        version: Version(0),
        blob,
        bytes: 1,
        digest: Digest([0; 32]),
        sources: Vec::new(),
    }
}

fn change(blob: BlobId, add: &[u64], remove: &[u64]) -> CatalogCommand {
    CatalogCommand::Replicas(vec![ReplicaChange {
        blob,
        add: servers(add),
        remove: servers(remove),
    }])
}

const OTHER: CatalogCommand = CatalogCommand::Replicas(Vec::new());

#[test]
fn an_upload_stays_until_a_later_term_or_its_end() {
    let (named, elsewhere, abandoned) = (blob(2, 0), blob(2, 1), blob(2, 2));
    let mut node = Node::new(&[], 0);
    for id in [named, elsewhere, abandoned] {
        node.replica.handle_stored(id);
    }
    assert_eq!(node.apply(2, &put("a", named, &[ME, 2])), []);
    assert_eq!(node.apply(2, &put("b", elsewhere, &[2, 3])), [elsewhere]);
    assert_eq!(node.apply(2, &OTHER), []);
    assert_eq!(node.apply(3, &OTHER), [abandoned]);
    assert_eq!(node.replica.held().collect::<Vec<_>>(), [named]);
}

#[test]
fn a_deleted_file_goes_at_once_and_a_pinned_one_with_its_pin() {
    let mut node = Node::new(&[], 0);
    for id in [blob(2, 0), blob(2, 1)] {
        node.replica.handle_stored(id);
    }
    node.apply(2, &put("a", blob(2, 0), &[ME]));
    node.apply(2, &put("b", blob(2, 1), &[ME]));
    node.catalog.pin(&[blob(2, 1)], |_| ());
    assert_eq!(
        node.apply(2, &CatalogCommand::Delete(name("a"))),
        [blob(2, 0)]
    );
    assert_eq!(node.apply(2, &CatalogCommand::Delete(name("b"))), []);
    node.catalog.unpin(&[blob(2, 1)]);
    assert_eq!(node.apply(2, &OTHER), [blob(2, 1)]);
}

#[test]
fn an_ordered_copy_is_guarded_by_the_ordering_term() {
    let mut node = Node::new(&[], 0);
    node.apply(2, &put("a", blob(2, 0), &[2]));
    node.fetch(4, blob(2, 0));
    assert_eq!(node.apply(3, &OTHER), []);
    assert_eq!(
        node.apply(4, &OTHER),
        [],
        "the leader of term 4 may name it yet"
    );
    let mut other = Node {
        replica: node.replica.clone(),
        catalog: node.catalog.clone(),
    };
    assert_eq!(other.apply(5, &OTHER), [blob(2, 0)]);
    node.apply(4, &change(blob(2, 0), &[ME], &[]));
    assert_eq!(node.apply(5, &OTHER), []);
    assert_eq!(
        node.apply(5, &change(blob(2, 0), &[3], &[ME])),
        [blob(2, 0)]
    );
}

#[test]
fn a_replay_of_the_log_sweeps_nothing_that_comes_to_be_named() {
    let id = blob(1, 0);
    let mut node = Node::new(&[id, blob(1, 9)], 5);
    // Its copy was named, taken away and ordered again before the restart.
    assert_eq!(node.apply(1, &put("a", id, &[ME, 2])), []);
    assert_eq!(node.apply(3, &change(id, &[], &[ME])), []);
    assert_eq!(node.apply(4, &OTHER), []);
    assert_eq!(node.apply(5, &change(id, &[ME], &[])), []);
    assert_eq!(
        node.apply(6, &OTHER),
        [blob(1, 9)],
        "nobody can name that one now"
    );
    assert_eq!(node.apply(6, &change(id, &[], &[ME])), [id]);
}

#[test]
fn a_deleted_file_goes_in_the_replay_too() {
    let mut node = Node::new(&[blob(1, 0)], 5);
    node.apply(1, &put("a", blob(1, 0), &[ME]));
    assert_eq!(
        node.apply(1, &CatalogCommand::Delete(name("a"))),
        [blob(1, 0)]
    );
}

#[test]
fn a_copy_that_was_ordered_twice_waits_for_the_guard() {
    let id = blob(2, 0);
    let mut node = Node::new(&[], 0);
    node.apply(2, &put("a", id, &[2]));
    node.fetch(2, id);
    // The leader has named it, taken it away and ordered it again; this node lags behind.
    let again = node.replica.handle_pull(Term(2), vec![located(id)]);
    assert_eq!((again.stored.as_slice(), again.fetch.len()), (&[id][..], 0));
    assert_eq!(node.apply(2, &change(id, &[ME], &[])), []);
    assert_eq!(
        node.apply(2, &change(id, &[], &[ME])),
        [],
        "it has been promised"
    );
    assert_eq!(node.apply(2, &change(id, &[ME], &[])), []);
    assert_eq!(node.replica.missing(), []);
}

#[test]
fn an_order_for_what_is_named_here_promises_nothing() {
    let id = blob(2, 0);
    let mut node = Node::new(&[], 0);
    node.replica.handle_stored(id);
    node.apply(2, &put("a", id, &[ME, 2]));
    let answer = node.replica.handle_pull(Term(2), vec![located(id)]);
    assert_eq!(answer, Default::default());
    assert_eq!(node.apply(2, &change(id, &[], &[ME])), [id]);
}

#[test]
fn a_copy_that_came_back_goes_when_the_leader_says_so() {
    let (id, other) = (blob(2, 0), blob(2, 1));
    let mut node = Node::new(&[id, other], 2);
    node.apply(2, &put("a", id, &[ME, 2, 3]));
    assert_eq!(node.apply(2, &change(id, &[4], &[ME])), []);
    assert_eq!(node.replica.ask_of_unnamed(7), [id, other]);
    assert_eq!(node.replica.handle_release(Term(2), 6, &[id]), []);
    assert_eq!(node.replica.handle_release(Term(2), 7, &[id]), [id]);
    assert_eq!(node.replica.ask_of_unnamed(8), [other]);
    node.apply(2, &put("b", other, &[ME]));
    assert_eq!(node.replica.handle_release(Term(2), 8, &[other]), []);
    assert!(!node.replica.has_unnamed() && node.replica.holds(&other));
    node.replica.check_invariants();
}

#[test]
fn an_order_outweighs_a_release_that_comes_late() {
    let id = blob(2, 0);
    let mut node = Node::new(&[id], 2);
    node.apply(2, &put("a", id, &[ME, 2]));
    node.apply(2, &change(id, &[3], &[ME]));
    assert_eq!(node.replica.ask_of_unnamed(7), [id]);
    let answer = node.replica.handle_pull(Term(2), vec![located(id)]);
    assert_eq!(answer.stored, [id]);
    assert_eq!(node.replica.handle_release(Term(2), 7, &[id]), []);
    assert_eq!(node.apply(2, &change(id, &[ME], &[])), []);
    assert!(node.replica.holds(&id) && !node.replica.has_unnamed());
}

#[test]
fn all_unnamed_copies_are_asked_about_in_turn() {
    let held: Vec<BlobId> = (0..MISSING_MAX as u64 + 1).map(|i| blob(2, i)).collect();
    let mut node = Node::new(&held, 2);
    for id in &held {
        node.apply(2, &put(&id.to_string(), *id, &[2, 3]));
    }
    assert_eq!(node.replica.ask_of_unnamed(1), held[..MISSING_MAX]);
    assert_eq!(node.replica.ask_of_unnamed(2), held[MISSING_MAX..]);
    assert_eq!(node.replica.ask_of_unnamed(3), held[..MISSING_MAX]);
}

#[test]
fn orders_are_bounded_and_fenced() {
    let mut replica = Replica::new(server(ME), Vec::new(), Term(0));
    let orders: Vec<Located> = (0..FETCHES_MAX as u64 + 5)
        .map(|i| located(blob(1, i)))
        .collect();
    let answer = replica.handle_pull(Term(3), orders.clone());
    assert_eq!((answer.fetch.len(), answer.refused), (FETCHES_MAX, 5));
    let answer = replica.handle_pull(Term(3), orders.clone());
    assert_eq!(
        (answer.fetch.len(), answer.refused),
        (0, 5),
        "in flight already"
    );
    assert_eq!(
        replica.handle_pull(Term(2), orders).refused,
        FETCHES_MAX + 5
    );
    let report = replica.handle_fetched(vec![
        (blob(1, 0), true),
        (blob(1, 1), false),
        (blob(7, 7), true),
    ]);
    assert_eq!(
        (report.stored, report.missing),
        (vec![blob(1, 0)], vec![blob(1, 1)])
    );
    assert!(!replica.holds(&blob(7, 7)), "never ordered");
    replica.check_invariants();
}

#[test]
fn what_comes_late_of_a_dropped_upload_goes_at_once() {
    let mut node = Node::new(&[], 0);
    node.apply(2, &OTHER);
    let (late, other) = (blob(2, 0), blob(2, 1));
    assert_eq!(node.replica.handle_drop(Term(2), &[late]), []);
    node.replica.handle_stored(late);
    node.replica.handle_stored(other);
    assert_eq!(node.replica.look(&node.catalog), [late]);
    assert_eq!(node.replica.held().collect::<Vec<_>>(), [other]);
    node.replica.check_invariants();
}

#[test]
fn dropped_uploads_go_and_named_ones_stay() {
    let mut node = Node::new(&[], 0);
    for i in 0..3 {
        node.replica.handle_stored(blob(2, i));
    }
    node.apply(2, &put("a", blob(2, 0), &[ME]));
    let drop = [blob(2, 0), blob(2, 1), blob(9, 9)];
    assert_eq!(node.replica.handle_drop(Term(2), &drop), [blob(2, 1)]);
    let _ = node.replica.handle_pull(Term(3), Vec::new());
    assert_eq!(
        node.replica.handle_drop(Term(2), &[blob(2, 2)]),
        [],
        "deposed"
    );
    node.replica.check_invariants();
}

#[test]
fn a_fetch_that_outlives_its_file_is_swept() {
    let id = blob(2, 0);
    let mut node = Node::new(&[], 0);
    let answer = node.replica.handle_pull(Term(2), vec![located(id)]);
    assert_eq!(answer.fetch.len(), 1);
    node.apply(2, &put("a", id, &[2]));
    node.apply(2, &CatalogCommand::Delete(name("a")));
    let _ = node.replica.handle_fetched(vec![(id, true)]);
    assert_eq!(node.apply(2, &OTHER), [id]);
}

#[test]
fn what_is_named_here_and_absent_is_reported_in_turn() {
    let mut node = Node::new(&[], 0);
    let count = MISSING_MAX as u64 + 20;
    for i in 0..count {
        node.apply(2, &put("a", blob(2, i), &[ME, 2]));
    }
    let first = node.replica.missing();
    let second = node.replica.missing();
    assert_eq!((first.len(), second.len()), (MISSING_MAX, MISSING_MAX));
    assert_eq!(
        (first[0], second[0]),
        (blob(2, 0), blob(2, 100)),
        "goes on after the first"
    );
    // On its way again: reported no more, and no orphan once it is named again.
    node.fetch(2, blob(2, 0));
    assert!(!node.replica.missing().contains(&blob(2, 0)));
    assert_eq!(node.apply(2, &change(blob(2, 0), &[], &[ME])), []);
    assert_eq!(node.apply(2, &change(blob(2, 0), &[ME], &[])), []);
    assert!(node.replica.holds(&blob(2, 0)));
    node.replica.check_invariants();
}

#[test]
fn a_corrupt_copy_counts_as_missing() {
    let mut node = Node::new(&[], 0);
    node.replica.handle_stored(blob(2, 0));
    node.apply(2, &put("a", blob(2, 0), &[ME, 2]));
    assert!(node.replica.handle_corrupt(blob(2, 0)));
    assert!(!node.replica.handle_corrupt(blob(2, 0)));
    assert_eq!(node.replica.missing(), [blob(2, 0)]);
    node.apply(2, &change(blob(2, 0), &[], &[ME]));
    assert_eq!(node.replica.missing(), []);
}

#[test]
fn a_reign_without_the_old_voters_keeps_what_may_be_named_in_it() {
    let (named, found) = (blob(2, 0), blob(2, 1));
    let mut node = Node::new(&[named, found], 2);
    node.apply(2, &put("a", named, &[ME, 2]));
    node.replica.keep_unnamed(Term(9));
    assert_eq!(node.apply(9, &CatalogCommand::Founded), []);
    assert_eq!(node.apply(9, &OTHER), []);
    let adopted = CatalogCommand::Adopt(vec![upload("b", found, &[ME])]);
    assert_eq!(node.apply(9, &adopted), []);
    assert_eq!(node.apply(10, &OTHER), []);
    // The same without a name for it: the next reign takes it away.
    let mut node = Node::new(&[named, found], 2);
    node.apply(2, &put("a", named, &[ME, 2]));
    node.replica.keep_unnamed(Term(9));
    assert_eq!(node.apply(9, &CatalogCommand::Founded), []);
    assert_eq!(node.apply(10, &OTHER), [found]);
}

#[test]
fn a_catalog_that_begins_anew_takes_nothing_away_until_it_is_whole() {
    let (kept, lost) = (blob(2, 0), blob(3, 0));
    let mut node = Node::new(&[], 0);
    for (term, text, id) in [(2, "a", kept), (3, "b", lost)] {
        node.replica.handle_stored(id);
        node.apply(term, &put(text, id, &[ME, 2]));
    }
    // The leader of term 9 has another log, in which `lost` was never put.
    node.catalog = Catalog::new();
    node.replica.begin_anew(Term(8));
    node.replica.check_invariants();
    assert_eq!(node.apply(2, &put("a", kept, &[ME, 2])), []);
    assert_eq!(node.apply(9, &OTHER), [lost]);
    assert_eq!(node.replica.held().collect::<Vec<_>>(), [kept]);
}
