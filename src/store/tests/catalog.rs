//! The catalog, against a naive model and by example.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{blob, name, put, server, servers, upload};
use crate::store::{Applied, Catalog};
use crate::types::{BlobId, Server, Version};
use crate::wire::store::{CatalogCommand, ReplicaChange};

fn versions(list: &[u64]) -> Applied {
    Applied::Put(list.iter().copied().map(Version).collect())
}

fn change(blob: BlobId, add: &[u64], remove: &[u64]) -> CatalogCommand {
    CatalogCommand::Replicas(vec![ReplicaChange {
        blob,
        add: servers(add),
        remove: servers(remove),
    }])
}

#[test]
fn only_the_newest_versions_are_kept_where_that_is_asked_for() {
    let mut catalog = Catalog::new();
    for number in 0..4 {
        catalog.apply(&put("a", blob(1, number), &[1]));
    }
    catalog.pin(&[blob(1, 1)], |_| ());
    catalog.apply(&CatalogCommand::Keep(Some(2)));
    let kept = |catalog: &Catalog| -> Vec<u64> {
        let versions = catalog.versions(&name("a"), 9).into_iter();
        versions.map(|record| record.version.0).collect()
    };
    assert_eq!((kept(&catalog), catalog.kept()), (vec![3, 2], Some(2)));
    assert_eq!(catalog.record(&blob(1, 0)), None);
    assert!(catalog.record(&blob(1, 1)).is_some(), "a job reads it");
    assert_eq!(catalog.apply(&put("a", blob(1, 9), &[1])), versions(&[4]));
    assert_eq!(kept(&catalog), [4, 3]);
    catalog.check_invariants();
    let again = crate::wire::decode_large::<Catalog>(&crate::wire::encode(&catalog));
    assert_eq!(again.expect("whole").kept(), Some(2));
    catalog.apply(&CatalogCommand::Keep(None));
    catalog.apply(&put("a", blob(1, 10), &[1]));
    assert_eq!(kept(&catalog), [5, 4, 3]);
    catalog.unpin(&[blob(1, 1)]);
    assert_eq!(catalog.record(&blob(1, 1)), None);
}

#[test]
fn versions_are_numbered_when_applied_and_go_on_after_a_delete() {
    let mut catalog = Catalog::new();
    let both = CatalogCommand::Put(vec![
        upload("a", blob(1, 0), &[1]),
        upload("a", blob(1, 1), &[1]),
        upload("b", blob(1, 2), &[1]),
    ]);
    assert_eq!(catalog.apply(&both), versions(&[0, 1, 0]));
    assert_eq!(
        catalog.apply(&both),
        versions(&[0, 1, 0]),
        "repeated: nothing changes"
    );
    assert_eq!(catalog.versions(&name("a"), 9).len(), 2);
    assert_eq!(
        catalog.apply(&CatalogCommand::Delete(name("a"))),
        Applied::Deleted(2)
    );
    assert_eq!(
        catalog.apply(&CatalogCommand::Delete(name("a"))),
        Applied::Deleted(0)
    );
    assert_eq!(
        catalog.apply(&CatalogCommand::Delete(name("z"))),
        Applied::Deleted(0)
    );
    assert_eq!(catalog.newest(&name("a")), None);
    assert_eq!(catalog.record(&blob(1, 0)), None);
    assert_eq!(catalog.apply(&put("a", blob(1, 3), &[2])), versions(&[2]));
    let newest = catalog.newest(&name("a")).expect("put again");
    assert_eq!((newest.version, newest.blob), (Version(2), blob(1, 3)));
    assert_eq!(catalog.file_count(), 2);
    catalog.check_invariants();
}

#[test]
fn versions_are_listed_newest_first() {
    let mut catalog = Catalog::new();
    for i in 0..5 {
        catalog.apply(&put("a", blob(1, i), &[1]));
    }
    let listed = |newest| -> Vec<u64> {
        let records = catalog.versions(&name("a"), newest);
        records.iter().map(|record| record.version.0).collect()
    };
    assert_eq!(listed(2), [4, 3]);
    assert_eq!(listed(u64::MAX), [4, 3, 2, 1, 0]);
    assert_eq!(listed(0), [0; 0]);
}

#[test]
fn a_result_file_is_put_once() {
    let mut catalog = Catalog::new();
    assert_eq!(
        catalog.apply(&put("7.csv", blob(1, 0), &[1])),
        versions(&[0])
    );
    assert_eq!(
        catalog.apply(&put("7.csv", blob(2, 0), &[2])),
        versions(&[0])
    );
    assert_eq!(
        catalog.record(&blob(2, 0)),
        None,
        "the second one is an orphan"
    );
    catalog.apply(&CatalogCommand::Delete(name("7.csv")));
    assert_eq!(
        catalog.apply(&put("7.csv", blob(3, 0), &[2])),
        versions(&[0])
    );
    assert_eq!(catalog.newest(&name("7.csv")), None, "and stays deleted");
    catalog.check_invariants();
}

#[test]
fn replica_changes_reach_known_blobs_only() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[1, 2]));
    let before = catalog.revision();
    catalog.apply(&change(blob(9, 9), &[1], &[]));
    catalog.apply(&change(blob(1, 0), &[1], &[7]));
    assert_eq!(catalog.revision(), before, "nothing changed");
    catalog.apply(&change(blob(1, 0), &[3], &[2]));
    assert!(catalog.names(&blob(1, 0), &server(3)) && !catalog.names(&blob(1, 0), &server(2)));
    assert_eq!(catalog.held_by(&server(3)).count(), 1);
    assert_eq!(catalog.held_by(&server(2)).count(), 0);
    catalog.apply(&change(blob(1, 0), &[], &[1, 3]));
    let record = catalog.newest(&name("a")).expect("listed as lost");
    assert!(record.replicas.is_empty());
    catalog.check_invariants();
}

#[test]
fn each_of_many_is_pinned_once_in_whatever_order_they_came() {
    let mut catalog = Catalog::new();
    let wanted = [3, 4, 5, 9, 0, 1, 7, 6, 20, 2];
    for number in wanted.iter().filter(|number| **number != 7) {
        catalog.apply(&put(&format!("x{number}"), blob(1, *number), &[1]));
    }
    catalog.apply(&put("y", blob(1, 8), &[1]));
    let blobs = wanted.map(|number| blob(1, number));
    let pinned = catalog.pin(&blobs, |record| record.blob.counter);
    assert_eq!(pinned, [3, 4, 5, 9, 0, 1, 6, 20, 2], "7 is unknown");
    let pins = |catalog: &Catalog| -> Vec<u32> { catalog.records().map(|it| it.pins).collect() };
    assert_eq!(pins(&catalog), [1, 1, 1, 1, 1, 1, 1, 0, 1, 1]);
    catalog.apply(&CatalogCommand::Delete(name("x4")));
    catalog.unpin(&blobs);
    assert_eq!(catalog.record(&blob(1, 4)), None);
    assert_eq!(pins(&catalog), [0; 9]);
    catalog.check_invariants();
}

#[test]
fn pinned_bytes_outlive_their_file() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[1, 2]));
    catalog.pin(&[blob(1, 0), blob(8, 8)], |_| ());
    catalog.pin(&[blob(1, 0)], |_| ());
    catalog.apply(&CatalogCommand::Delete(name("a")));
    assert_eq!(catalog.newest(&name("a")), None);
    catalog.apply(&change(blob(1, 0), &[3], &[1]));
    let record = catalog.record(&blob(1, 0)).expect("pinned");
    assert!(!record.named && record.replicas.contains(&server(3)));
    assert_eq!(
        catalog.apply(&put("a", blob(1, 0), &[4])),
        versions(&[0]),
        "not put again"
    );
    assert_eq!(catalog.newest(&name("a")), None);
    catalog.unpin(&[blob(1, 0)]);
    assert!(
        catalog.record(&blob(1, 0)).is_some(),
        "another job reads it"
    );
    catalog.check_invariants();
    catalog.unpin(&[blob(1, 0)]);
    assert_eq!(catalog.record(&blob(1, 0)), None);
    catalog.check_invariants();

    catalog.apply(&put("b", blob(1, 1), &[1]));
    catalog.pin(&[blob(1, 1)], |_| ());
    catalog.unpin(&[blob(1, 1)]);
    catalog.unpin(&[blob(1, 1)]);
    assert!(
        catalog.newest(&name("b")).is_some(),
        "the file still names it"
    );
}

#[test]
fn a_data_set_lists_newest_versions_in_natural_order() {
    let mut catalog = Catalog::new();
    let files = [
        "lenet10.png",
        "lenet2.png",
        "lenet.jpg",
        "len.png",
        "3.csv",
        "30.csv",
        "3x.csv",
    ];
    for (i, file) in files.iter().enumerate() {
        catalog.apply(&put(file, blob(1, i as u64), &[1]));
    }
    catalog.apply(&put("lenet2.png", blob(2, 0), &[1]));
    catalog.apply(&put("lenet3.png", blob(2, 1), &[1]));
    catalog.apply(&CatalogCommand::Delete(name("lenet3.png")));
    let found = |pattern: &str| -> Vec<(String, BlobId)> {
        let blobs = catalog.matching(pattern);
        let name = |blob: &BlobId| catalog.record(blob).expect("known").name.to_string();
        blobs.iter().map(|blob| (name(blob), *blob)).collect()
    };
    let expected = [
        ("lenet2.png".to_string(), blob(2, 0)),
        ("lenet10.png".to_string(), blob(1, 0)),
    ];
    assert_eq!(found("lenet.png"), expected);
    assert_eq!(found("3.csv"), [("3x.csv".to_string(), blob(1, 6))]);
    assert_eq!(found(".png").len(), 3);
    assert_eq!(found("").len(), 5);
    assert_eq!(found("lenet\n.png"), []);
    assert_eq!(found(&"x".repeat(2000)), []);
}

#[test]
fn changes_are_remembered_up_to_a_bound() {
    let mut catalog = Catalog::new();
    catalog.apply(&put("a", blob(1, 0), &[1]));
    let then = catalog.revision();
    catalog.apply(&put("b", blob(1, 1), &[1]));
    catalog.apply(&change(blob(1, 0), &[2], &[]));
    let changed: Vec<BlobId> = catalog.changed_since(then).expect("recent").collect();
    assert_eq!(changed, [blob(1, 1), blob(1, 0)]);
    for i in 0..10_000 {
        catalog.apply(&put("c", blob(2, i), &[1]));
    }
    assert!(catalog.changed_since(then).is_none(), "too long ago");
    assert!(catalog.changed_since(catalog.revision() + 1).is_none());
    assert_eq!(
        catalog
            .changed_since(catalog.revision())
            .map(Iterator::count),
        Some(0)
    );
    catalog.check_invariants();
}

/// What the catalog should be, without indexes or sharing.
#[derive(Default)]
struct Model {
    next: BTreeMap<String, u64>,
    /// Name, version, blob, holders, deleted, pins.
    rows: Vec<(String, u64, BlobId, BTreeSet<Server>, bool, u32)>,
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8, u8),
    Delete(u8),
    Change(u8, u8, u8),
    Pin(u8),
    Unpin(u8),
}

const NAMES: [&str; 4] = ["a", "b", "5.csv", "c.png"];

impl Model {
    fn step(&mut self, step: &Step) -> (Option<CatalogCommand>, Option<Applied>) {
        match *step {
            Step::Put(file, id, holder) => {
                let (file, id) = (NAMES[usize::from(file)], blob(1, u64::from(id)));
                let known = self.rows.iter().find(|row| row.2 == id).map(|row| row.1);
                let next = self.next.entry(file.into()).or_default();
                let version = match known {
                    Some(version) => version,
                    None if file == "5.csv" && *next > 0 => 0,
                    None => {
                        let holders = [server(holder.into())].into();
                        self.rows.push((file.into(), *next, id, holders, false, 0));
                        *next += 1;
                        *next - 1
                    }
                };
                let command = put(file, id, &[holder.into()]);
                (Some(command), Some(versions(&[version])))
            }
            Step::Delete(file) => {
                let file = NAMES[usize::from(file)];
                let mut count = 0;
                for row in self.rows.iter_mut().filter(|row| row.0 == file && !row.4) {
                    row.4 = true;
                    count += 1;
                }
                self.rows.retain(|row| !row.4 || row.5 > 0);
                let command = CatalogCommand::Delete(name(file));
                (Some(command), Some(Applied::Deleted(count)))
            }
            Step::Change(id, add, remove) => {
                let id = blob(1, id.into());
                for row in self.rows.iter_mut().filter(|row| row.2 == id) {
                    row.3.remove(&server(remove.into()));
                    row.3.insert(server(add.into()));
                }
                (
                    Some(change(id, &[add.into()], &[remove.into()])),
                    Some(Applied::Replicas),
                )
            }
            Step::Pin(id) | Step::Unpin(id) => {
                let pin = matches!(step, Step::Pin(_));
                let id = blob(1, id.into());
                for row in self.rows.iter_mut().filter(|row| row.2 == id) {
                    row.5 = if pin {
                        row.5 + 1
                    } else {
                        row.5.saturating_sub(1)
                    };
                }
                if !pin {
                    self.rows.retain(|row| row.2 != id || !row.4 || row.5 > 0);
                }
                (None, None)
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, 0u8..12, 0u8..5).prop_map(|(f, b, s)| Step::Put(f, b, s)),
        1 => (0u8..4).prop_map(Step::Delete),
        2 => (0u8..12, 0u8..5, 0u8..5).prop_map(|(b, a, r)| Step::Change(b, a, r)),
        1 => (0u8..12).prop_map(Step::Pin),
        1 => (0u8..12).prop_map(Step::Unpin),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(steps in prop::collection::vec(step(), 0..80)) {
        let mut catalog = Catalog::new();
        let mut model = Model::default();
        for step in &steps {
            let (command, expected) = model.step(step);
            match (step, command) {
                (_, Some(command)) => prop_assert_eq!(Some(catalog.apply(&command)), expected),
                (Step::Pin(id), None) => drop(catalog.pin(&[blob(1, u64::from(*id))], |_| ())),
                (Step::Unpin(id), None) => catalog.unpin(&[blob(1, u64::from(*id))]),
                _ => unreachable!("only pins are no commands"),
            }
            catalog.check_invariants();
            prop_assert_eq!(catalog.records().count(), model.rows.len());
            for (file, version, id, holders, deleted, pins) in &model.rows {
                let record = catalog.record(id).expect("known to the model");
                prop_assert_eq!((record.name.as_str(), record.version.0), (file.as_str(), *version));
                prop_assert_eq!((!record.named, record.pins), (*deleted, *pins));
                prop_assert!(record.replicas.iter().eq(holders));
            }
            for file in NAMES {
                let listed = model.rows.iter().rev().filter(|row| row.0 == file && !row.4);
                let blobs: Vec<BlobId> = listed.map(|row| row.2).collect();
                let records = catalog.versions(&name(file), u64::MAX);
                prop_assert!(records.iter().map(|record| &record.blob).eq(&blobs));
            }
        }
    }
}
