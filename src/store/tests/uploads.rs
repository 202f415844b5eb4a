//! The leader's table of pending uploads.

use super::{NOBODY, blob, name, server, servers, view};
use crate::store::uploads::{PENDING_MAX, UPLOAD_IDLE};
use crate::store::{Abandoned, Uploads};
use crate::types::{BlobId, Digest, Server, Term, Time};
use crate::wire::client::{PUT_FILES_MAX, Placement, Refusal};
use crate::wire::store::Upload;

const NOW: Time = Time(1_000);

fn begin(uploads: &mut Uploads, text: &str, live: &[u64]) -> Placement {
    let begun = uploads.begin(
        NOW,
        vec![name(text)],
        &server(live[0]),
        &view(1, live, &[]),
        &NOBODY,
    );
    begun.expect("begins").remove(0)
}

fn given(placement: &Placement) -> Vec<Server> {
    placement.targets.iter().map(|t| t.server.clone()).collect()
}

fn commit(text: &str, blob: BlobId, replicas: &[Server]) -> Vec<Upload> {
    vec![Upload {
        name: name(text),
        blob,
        bytes: 1,
        digest: Digest([0; 32]),
        replicas: replicas.to_vec(),
    }]
}

fn too_few(text: &str, stored: u64, wanted: u64) -> Result<(), Refusal> {
    Err(Refusal::TooFewCopies {
        name: name(text),
        stored,
        wanted,
    })
}

#[test]
fn ids_are_of_the_term_and_never_repeat() {
    let mut uploads = Uploads::new(Term(7));
    assert_eq!(begin(&mut uploads, "a", &[1, 2]).blob, blob(7, 0));
    assert_eq!(uploads.next_blob(), blob(7, 1));
    assert_eq!(begin(&mut uploads, "a", &[1, 2]).blob, blob(7, 2));
}

#[test]
fn what_cannot_begin_is_refused() {
    let mut uploads = Uploads::new(Term(1));
    let live = view(1, &[1, 2], &[]);
    let reserved = uploads.begin(
        NOW,
        vec![name("a"), name("007.csv")],
        &server(1),
        &live,
        &NOBODY,
    );
    assert_eq!(reserved, Err(Refusal::Reserved(name("007.csv"))));
    assert!(uploads.is_empty(), "nothing of a refused batch begins");
    let many = vec![name("a"); PUT_FILES_MAX + 1];
    assert!(matches!(
        uploads.begin(NOW, many, &server(1), &live, &NOBODY),
        Err(Refusal::BadArgument(_))
    ));
    let nobody = view(1, &[], &[]);
    assert_eq!(
        uploads.begin(NOW, vec![name("a")], &server(1), &nobody, &NOBODY),
        Err(Refusal::Busy)
    );
    for _ in 0..PENDING_MAX / PUT_FILES_MAX {
        let batch = vec![name("a"); PUT_FILES_MAX];
        assert!(
            uploads
                .begin(NOW, batch, &server(1), &live, &NOBODY)
                .is_ok()
        );
    }
    assert_eq!(
        uploads.begin(NOW, vec![name("a")], &server(1), &live, &NOBODY),
        Err(Refusal::Busy)
    );
}

#[test]
fn a_commit_needs_copies_on_four_live_members() {
    let mut uploads = Uploads::new(Term(1));
    let live = [0, 1, 2, 3, 4, 5];
    let placement = begin(&mut uploads, "a", &live);
    let targets = given(&placement);
    let all = view(1, &live, &[]);
    let check =
        |replicas: &[Server]| uploads.check_commit(&commit("a", placement.blob, replicas), &all);
    assert_eq!(check(&targets), Ok(()));
    assert_eq!(check(&targets[..3]), too_few("a", 3, 4));
    let thrice = [&targets[..3], &targets[..1]].concat();
    assert_eq!(
        check(&thrice),
        too_few("a", 3, 4),
        "the same server twice is one copy"
    );

    // One of them dies, and one comes back with another disk: neither counts.
    let mut after = all.clone();
    after.members.remove(&targets[0].node);
    let files = commit("a", placement.blob, &targets);
    assert_eq!(uploads.check_commit(&files, &after), too_few("a", 3, 4));
    let mut wiped = all.clone();
    let member = wiped.members.get_mut(&targets[0].node).expect("live");
    member.storage = crate::types::StorageId(999);
    assert_eq!(uploads.check_commit(&files, &wiped), too_few("a", 3, 4));
}

#[test]
fn the_smallest_membership_since_the_begin_counts() {
    let mut uploads = Uploads::new(Term(1));
    let targets = given(&begin(&mut uploads, "a", &[0, 1, 2, 3, 4]));
    let two: Vec<u64> = (0..5)
        .filter(|n| targets[..2].contains(&server(*n)))
        .collect();
    let all = view(3, &[0, 1, 2, 3, 4], &[]);
    // The same targets, through one of the two.
    uploads = Uploads::new(Term(1));
    let begun = uploads.begin(NOW, vec![name("a")], &targets[0], &all, &NOBODY);
    let placement = begun.expect("begins").remove(0);
    assert_eq!(given(&placement), targets);
    let files = commit("a", placement.blob, &targets[..2]);
    assert_eq!(uploads.check_commit(&files, &all), too_few("a", 2, 4));
    assert_eq!(uploads.handle_view(&view(2, &two, &[])), []);
    assert_eq!(uploads.handle_view(&all), []);
    assert_eq!(
        uploads.check_commit(&files, &all),
        Ok(()),
        "there were two once"
    );
    let later = begin(&mut uploads, "b", &[0, 1, 2, 3, 4]);
    let files = commit("b", later.blob, &given(&later)[..2]);
    assert_eq!(
        uploads.check_commit(&files, &all),
        too_few("b", 2, 4),
        "not since this begin"
    );
    let files = commit("a", placement.blob, &[]);
    assert_eq!(
        uploads.check_commit(&files, &view(4, &[], &[])),
        too_few("a", 0, 1)
    );
}

#[test]
fn what_was_not_begun_here_is_unknown() {
    let mut uploads = Uploads::new(Term(2));
    let live = [0, 1, 2, 3];
    let all = view(1, &live, &[]);
    let placement = begin(&mut uploads, "a", &live);
    let everyone = servers(&live);
    let unknown = Err(Refusal::UnknownUpload);
    assert_eq!(
        uploads.check_commit(&commit("b", placement.blob, &everyone), &all),
        unknown
    );
    assert_eq!(
        uploads.check_commit(&commit("a", blob(1, 0), &everyone), &all),
        unknown
    );
    let invented = [&everyone[..], &[server(9)]].concat();
    assert_eq!(
        uploads.check_commit(&commit("a", placement.blob, &invented), &all),
        unknown
    );
    uploads.finished(&[placement.blob]);
    assert_eq!(
        uploads.check_commit(&commit("a", placement.blob, &everyone), &all),
        unknown
    );
}

#[test]
fn a_failed_target_is_replaced_once_by_somebody_new() {
    let mut uploads = Uploads::new(Term(1));
    let live = [0, 1, 2, 3, 4, 5];
    let all = view(1, &live, &[]);
    let placement = begin(&mut uploads, "a", &live);
    let targets = given(&placement);
    let mut replace = |failed: &Server| {
        let answer = uploads.replace(NOW, &[placement.blob], failed, &all, &NOBODY);
        answer.map(|mut targets| targets.remove(0).map(|target| target.server))
    };
    let fifth = replace(&targets[0])
        .expect("known")
        .expect("somebody is left");
    assert!(!targets.contains(&fifth));
    assert_eq!(
        replace(&targets[0]),
        Ok(Some(fifth.clone())),
        "asked again: the same"
    );
    let sixth = replace(&targets[1])
        .expect("known")
        .expect("somebody is left");
    assert!(!targets.contains(&sixth) && sixth != fifth);
    assert_eq!(replace(&fifth), Ok(None), "everybody was tried");
    assert_eq!(replace(&server(77)), Err(Refusal::UnknownUpload));
    let replicas = [targets[2].clone(), targets[3].clone(), fifth, sixth];
    assert_eq!(
        uploads.check_commit(&commit("a", placement.blob, &replicas), &all),
        Ok(())
    );
    let both = [placement.blob, blob(9, 9)];
    assert_eq!(
        uploads.replace(NOW, &both, &targets[2], &all, &NOBODY),
        Err(Refusal::UnknownUpload)
    );
}

#[test]
fn given_up_uploads_are_dropped_by_all_who_may_have_bytes() {
    let mut uploads = Uploads::new(Term(1));
    let live = [0, 1, 2, 3, 4];
    let placement = begin(&mut uploads, "a", &live);
    let failed = &placement.targets[0].server;
    let _ = uploads.replace(
        NOW,
        &[placement.blob],
        failed,
        &view(1, &live, &[]),
        &NOBODY,
    );
    let drops = uploads.abort(&[placement.blob, blob(9, 9)]);
    let expected = servers(&live).into_iter().map(|to| Abandoned {
        to,
        blobs: vec![placement.blob],
    });
    assert_eq!(drops, expected.collect::<Vec<_>>());
    assert_eq!(uploads.abort(&[placement.blob]), []);
}

#[test]
fn idle_uploads_expire_but_not_those_in_the_log() {
    let mut uploads = Uploads::new(Term(1));
    assert_eq!(uploads.poll_timeout(), None);
    let idle = begin(&mut uploads, "a", &[0]).blob;
    let proposed = begin(&mut uploads, "b", &[0]).blob;
    uploads.committing(&[proposed]);
    assert_eq!(uploads.abort(&[proposed]), [], "it may be named already");
    let due = NOW + UPLOAD_IDLE;
    assert_eq!(uploads.poll_timeout(), Some(due));
    assert_eq!(uploads.handle_timeout(Time(due.0 - 1)), []);
    let drops = uploads.handle_timeout(due);
    assert_eq!(drops.len(), 1);
    assert_eq!(drops[0].blobs, [idle]);
    assert_eq!(uploads.poll_timeout(), None);
    uploads.not_committed(due, &[proposed]);
    assert_eq!(uploads.poll_timeout(), Some(NOW + UPLOAD_IDLE));
    assert_eq!(uploads.handle_timeout(due), [], "its time starts again");
    assert_eq!(uploads.poll_timeout(), Some(due + UPLOAD_IDLE));
    assert_eq!(uploads.handle_timeout(due + UPLOAD_IDLE).len(), 1);
    assert!(uploads.is_empty());
}

#[test]
fn an_upload_ends_with_the_node_of_its_client() {
    let mut uploads = Uploads::new(Term(1));
    let gone = begin(&mut uploads, "a", &[1, 0]).blob;
    let proposed = begin(&mut uploads, "b", &[1, 0]).blob;
    let stays = begin(&mut uploads, "c", &[0, 1]).blob;
    uploads.committing(&[proposed]);
    assert_eq!(uploads.handle_view(&view(2, &[0, 1], &[])), []);
    let mut restarted = view(3, &[0, 1], &[]);
    let member = restarted.members.get_mut(&server(1).node).unwrap();
    member.joined.0 += 1;
    let mut dropped = uploads.handle_view(&restarted);
    dropped.sort_by(|a, b| a.to.cmp(&b.to));
    let drop = |to| Abandoned {
        to: server(to),
        blobs: vec![gone],
    };
    assert_eq!(dropped, [drop(0), drop(1)]);
    assert!(uploads.has(&proposed) && uploads.has(&stays));
    assert_eq!(uploads.handle_view(&view(4, &[1], &[])).len(), 2, "gone");
    assert!(uploads.has(&proposed) && !uploads.has(&stays));
}
