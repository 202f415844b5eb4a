use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::types::{ClusterId, Digest, FileName, Incarnation, NodeId, StorageId, Term};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn name(text: &str) -> FileName {
    FileName::new(text).expect("a valid name")
}

fn blob(counter: u64) -> BlobId {
    let term = Term(3);
    BlobId { term, counter }
}

fn blobs(at: &Path) -> (Blobs, Vec<BlobId>) {
    Blobs::open(at).expect("blobs open")
}

fn store(blobs: &Blobs, id: BlobId, content: &[u8]) -> Digest {
    let mut writer = blobs
        .create(id, &name("a.txt"), content.len() as u64)
        .expect("created");
    for chunk in content.chunks(1000) {
        writer.write(chunk).expect("written");
    }
    writer.finish().expect("finished")
}

/// The one file below `at/blobs`.
fn only_file(at: &Path) -> PathBuf {
    let folders = fs::read_dir(at.join("blobs")).expect("listed");
    let files: Vec<PathBuf> = folders
        .flat_map(|folder| fs::read_dir(folder.expect("entry").path()).expect("listed"))
        .map(|file| file.expect("entry").path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn count(folder: PathBuf) -> usize {
    fs::read_dir(folder).expect("listed").count()
}

#[test]
fn a_stored_blob_is_read_back_after_a_restart() {
    let at = folder();
    let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    {
        let (blobs, held) = blobs(at.path());
        assert_eq!(held, []);
        assert_eq!(store(&blobs, blob(300), &content), Digest::of(&content));
        assert_eq!(store(&blobs, blob(7), b""), Digest::of(b""));
    }
    let (blobs, held) = blobs(at.path());
    assert_eq!(held, [blob(7), blob(300)]);
    assert_eq!(blobs.read(blob(300)).expect("read"), content);
    assert_eq!(blobs.read(blob(7)).expect("read"), b"");
    let mut reader = blobs.open_from(blob(300), 99_990).expect("opened");
    assert_eq!(reader.left(), 10);
    assert_eq!(reader.trailer().name, name("a.txt"));
    let mut buffer = [0; 100];
    assert_eq!(reader.read(&mut buffer).expect("read"), 10);
    assert_eq!(buffer[..10], content[99_990..]);
    assert_eq!(reader.read(&mut buffer).expect("read"), 0);
    blobs.remove(&[blob(7), blob(8)]).expect("removed");
    assert!(matches!(blobs.read(blob(7)), Err(DiskError::NoBlob(id)) if id == blob(7)));
}

#[test]
fn a_batch_appears_as_a_whole_and_leaves_no_temporary_file() {
    let at = folder();
    let (blobs, _) = blobs(at.path());
    let mut batch = blobs.batch();
    for number in 0..20 {
        let mut writer = blobs.create(blob(number), &name("b"), 3).expect("created");
        writer.write(&[number as u8; 3]).expect("written");
        let digest = batch.add(writer).expect("added");
        assert_eq!(digest, Digest::of(&[number as u8; 3]));
    }
    assert!(matches!(blobs.read(blob(4)), Err(DiskError::NoBlob(_))));
    batch.finish().expect("finished");
    for number in 0..20 {
        assert_eq!(blobs.read(blob(number)).expect("read"), [number as u8; 3]);
    }
    assert_eq!(count(at.path().join("incoming")), 0);
    drop(blobs);
    assert_eq!(super::Blobs::open(at.path()).expect("opened").1.len(), 20);
}

#[test]
fn a_blob_that_is_stored_keeps_its_content_for_ever() {
    let at = folder();
    let (blobs, _) = blobs(at.path());
    store(&blobs, blob(1), b"first");
    store(&blobs, blob(1), b"first");
    let again = |finish: &dyn Fn(BlobWriter) -> Result<(), DiskError>| {
        let mut writer = blobs.create(blob(1), &name("b"), 5).expect("created");
        writer.write(b"other").expect("written");
        finish(writer).expect_err("refused").to_string()
    };
    let one = again(&|writer| writer.finish().map(drop));
    assert!(one.contains("another content"), "{one}");
    let many = again(&|writer| {
        let mut batch = blobs.batch();
        batch.add(writer)?;
        batch.finish()
    });
    assert!(many.contains("another content"), "{many}");
    assert_eq!(blobs.read(blob(1)).expect("read"), b"first");
    assert_eq!(count(at.path().join("incoming")), 0);
}

#[test]
fn an_upload_that_is_given_up_leaves_nothing() {
    let at = folder();
    let (blobs, _) = blobs(at.path());
    let mut writer = blobs.create(blob(1), &name("b"), 3).expect("created");
    writer.write(b"abc").expect("written");
    assert_eq!(count(at.path().join("incoming")), 1);
    drop(writer);
    assert_eq!(count(at.path().join("incoming")), 0);
    let mut batch = blobs.batch();
    let writer = blobs.create(blob(2), &name("b"), 0).expect("created");
    batch.add(writer).expect("added");
    drop(batch);
    assert_eq!(count(at.path().join("incoming")), 0);
    assert!(matches!(blobs.read(blob(2)), Err(DiskError::NoBlob(_))));
}

#[test]
fn a_start_removes_leftovers_of_uploads_and_moves_decayed_files_aside() {
    let at = folder();
    drop(blobs(at.path()));
    fs::write(at.path().join("incoming/17"), b"half").expect("written");
    fs::create_dir(at.path().join("blobs/05")).expect("made");
    fs::write(at.path().join("blobs/05/3-5"), b"no trailer").expect("written");
    let (_, held) = blobs(at.path());
    assert_eq!(held, []);
    assert_eq!(count(at.path().join("incoming")), 0);
    assert_eq!(count(at.path().join("blobs/05")), 0);
    assert_eq!(count(at.path().join("corrupt")), 1);
    for number in 0..200 {
        let decayed = at.path().join(format!("blobs/05/3-{number}"));
        fs::write(decayed, b"no trailer").expect("written");
    }
    drop(blobs(at.path()));
    assert_eq!(count(at.path().join("corrupt")), 100, "and no more");
}

#[test]
fn a_file_that_is_cut_anywhere_is_not_held() {
    let at = folder();
    let whole = {
        let (blobs, _) = blobs(at.path());
        store(&blobs, blob(5), b"0123456789");
        fs::read(only_file(at.path())).expect("read")
    };
    let path = at.path().join("blobs/05/3-5");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("written");
        let (blobs, held) = blobs(at.path());
        assert_eq!(held, [], "cut at {length} of {}", whole.len());
        assert!(matches!(blobs.read(blob(5)), Err(DiskError::NoBlob(_))));
    }
    fs::write(&path, &whole).expect("written");
    assert_eq!(blobs(at.path()).1, [blob(5)]);
}

#[test]
fn a_flipped_bit_anywhere_is_never_read_as_the_content() {
    let at = folder();
    let (blobs, _) = blobs(at.path());
    store(&blobs, blob(5), b"0123456789");
    let path = only_file(at.path());
    let whole = fs::read(&path).expect("read");
    for position in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 4;
        fs::write(&path, &bytes).expect("written");
        let error = blobs.read(blob(5)).expect_err("corrupt");
        assert!(
            matches!(&error, DiskError::Corrupt { blob: id, path } if *id == blob(5) && path.exists()),
            "bit at {position}: {error}"
        );
        assert!(matches!(blobs.read(blob(5)), Err(DiskError::NoBlob(_))));
    }
}

#[test]
fn a_blob_under_another_ones_name_is_not_held() {
    let at = folder();
    {
        let (blobs, _) = blobs(at.path());
        store(&blobs, blob(5), b"0123456789");
        fs::create_dir(at.path().join("blobs/06")).expect("made");
        fs::rename(only_file(at.path()), at.path().join("blobs/06/3-6")).expect("renamed");
        assert!(matches!(
            blobs.read(blob(6)),
            Err(DiskError::Corrupt { .. })
        ));
        store(&blobs, blob(5), b"0123456789");
        fs::rename(only_file(at.path()), at.path().join("blobs/06/3-6")).expect("renamed");
    }
    assert_eq!(blobs(at.path()).1, []);
}

#[test]
fn an_upload_that_does_not_fit_is_refused_with_the_path() {
    let at = folder();
    let (blobs, _) = blobs(at.path());
    let error = blobs
        .create(blob(9), &name("huge"), u64::MAX / 2)
        .expect_err("does not fit");
    assert!(error.is_full());
    assert!(error.to_string().contains("3-9"), "{error}");
    let full = super::at("write", Path::new("x"))(io::ErrorKind::StorageFull.into());
    assert!(full.is_full());
    assert!(!super::at("write", Path::new("x"))(io::ErrorKind::NotFound.into()).is_full());
}

fn node(text: &str) -> NodeId {
    NodeId::new(text).expect("a valid name")
}

fn open(at: &Path, node_name: &str) -> Result<DataDirectory, DiskError> {
    DataDirectory::open(at, &node(node_name), StorageId(u128::MAX - 5))
}

#[test]
fn each_start_has_a_higher_incarnation_and_the_rest_is_kept() {
    let at = folder();
    let path = at.path().join("deep/er");
    let mut first = open(&path, "n1").expect("opened");
    assert_eq!(first.identity().incarnation, Incarnation(1));
    first.set_incarnation(Incarnation(9)).expect("saved");
    first.set_incarnation(Incarnation(4)).expect("ignored");
    first.set_cluster(ClusterId(77), true).expect("saved");
    first.set_cluster(ClusterId(77), false).expect("known");
    let members = vec!["127.0.0.1:80".parse().expect("an address")];
    first.set_members(members.clone()).expect("saved");
    drop(first);
    let mut second = DataDirectory::open(&path, &node("n1"), StorageId(1)).expect("opened");
    assert_eq!(
        *second.identity(),
        Identity {
            node: node("n1"),
            storage: StorageId(u128::MAX - 5),
            incarnation: Incarnation(10),
            cluster: Some(ClusterId(77)),
            forming: true,
            members,
        }
    );
    second.set_formed().expect("saved");
    drop(second);
    let mut founded = open(&path, "n1").expect("opened");
    assert!(!founded.identity().forming);
    founded.set_cluster(ClusterId(78), true).expect("saved");
    drop(founded);
    // Without what it promised it is another server, which begins nothing.
    for part in ["log", "format"] {
        fs::remove_file(path.join(part)).expect("removed");
    }
    let third = DataDirectory::open(&path, &node("n1"), StorageId(1)).expect("opened");
    let identity = third.identity();
    assert_eq!((identity.storage, identity.forming), (StorageId(1), false));
}

#[test]
fn two_users_of_one_directory_are_refused() {
    let at = folder();
    let first = open(at.path(), "n1").expect("opened");
    let error = open(at.path(), "n1").expect_err("in use");
    assert!(matches!(error, DiskError::InUse(_)), "{error}");
    drop(first);
    open(at.path(), "n1").expect("free again");
}

#[test]
fn a_directory_of_another_node_or_format_or_damaged_is_refused() {
    let at = folder();
    drop(open(at.path(), "n1").expect("opened"));
    let error = open(at.path(), "n2").expect_err("belongs to n1");
    assert!(error.to_string().contains("belongs to node n1"), "{error}");
    for (file, content) in [
        ("format", "dlc data directory, format 1\n"),
        ("identity.json", "{\"node\": \"n1\""),
    ] {
        let path = at.path().join(file);
        let before = fs::read(&path).expect("read");
        fs::write(&path, content).expect("written");
        let error = open(at.path(), "n1").expect_err("damaged");
        assert!(error.to_string().contains(file), "{error}");
        fs::write(&path, before).expect("written");
    }
    fs::remove_file(at.path().join("identity.json")).expect("removed");
    let error = open(at.path(), "n1").expect_err("identity is gone");
    assert!(
        error.to_string().contains("missing beside older data"),
        "{error}"
    );
}

/// Runs in a child process that the next test kills: stores blobs until it dies, one
/// by one and in batches, and notes each on stdout once it is stored.
#[test]
fn child_that_stores_blobs() {
    let Some(at) = std::env::var_os("DLC_TEST_STORES_BLOBS") else {
        return;
    };
    let (blobs, held) = blobs(Path::new(&at));
    let first = held.last().map_or(0, |last| last.counter + 1);
    for round in (first / 10 * 10 + 10..).step_by(10) {
        store(&blobs, blob(round), &content(round));
        println!("stored {round}");
        let mut batch = blobs.batch();
        for number in round + 1..round + 10 {
            let content = content(number);
            let mut writer = blobs
                .create(blob(number), &name("b"), content.len() as u64)
                .expect("created");
            writer.write(&content).expect("written");
            batch.add(writer).expect("added");
        }
        batch.finish().expect("finished");
        (round + 1..round + 10).for_each(|number| println!("stored {number}"));
    }
}

fn content(number: u64) -> Vec<u8> {
    (0..number * 37 % 20_000)
        .map(|i| (i ^ number) as u8)
        .collect()
}

#[test]
fn what_was_stored_before_a_kill_is_there_and_whole() {
    let at = folder();
    let mut told = 0;
    for round in 0..4u64 {
        let lines = kill_child(
            "disk::tests::child_that_stores_blobs",
            ("DLC_TEST_STORES_BLOBS", at.path()),
            Duration::from_millis(150 + 70 * round),
        );
        let (blobs, held) = blobs(at.path());
        for line in lines {
            let Some(number) = line.split_once("stored ").and_then(|(_, n)| n.parse().ok()) else {
                continue;
            };
            assert!(held.contains(&blob(number)), "{number} was stored");
            told += 1;
        }
        for id in held {
            assert_eq!(blobs.read(id).expect("whole"), content(id.counter));
        }
    }
    assert!(told > 10, "the child stored only {told}");
}

#[test]
fn writes_to_a_blob_file_do_not_reach_other_blobs() {
    let at = folder();
    let (blobs, _) = blobs(at.path());
    store(&blobs, blob(1), b"one");
    let path = only_file(at.path());
    let file = OpenOptions::new().write(true).open(path).expect("opened");
    file.write_all_at(b"X", 0).expect("written");
    store(&blobs, blob(2), b"two");
    assert!(matches!(
        blobs.read(blob(1)),
        Err(DiskError::Corrupt { .. })
    ));
    assert_eq!(blobs.read(blob(2)).expect("read"), b"two");
}

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs the test `test` of this binary in a child, kills it after `span` from its first
/// line of output, and gives the whole lines it printed.
pub(super) fn kill_child(test: &str, variable: (&str, &Path), span: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(variable.0, variable.1)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut lines = Vec::new();
    let mut line = String::new();
    while !line.contains("stored ") {
        line.clear();
        assert_ne!(output.read_line(&mut line).expect("read"), 0, "child ended");
    }
    lines.push(line.trim_end().to_string());
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match output.read_line(&mut line) {
                Ok(count) if count > 0 && line.ends_with('\n') => {
                    lines.push(line.trim_end().to_string());
                }
                _ => return lines,
            }
        }
    });
    std::thread::sleep(span);
    child.kill().expect("killed");
    child.wait().expect("waited");
    lines.extend(reader.join().expect("read to the end"));
    lines
}
