//! Real threads and sockets on 127.0.0.1: what the simulation cannot see.
//!
//! The tests take turns, because they count this process's threads and its connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dlc::models::manifest::Manifest;
use dlc::threads::{self, Classifier, Network, Running, Settings};
use dlc::types::{BlobId, ClusterId, Digest, FileName, NodeId, Server, StorageId, Term};
use dlc::wire::client::{Refusal, Reply, Request};
use dlc::wire::peer::{BlobHeader, BlobReply, BlobRequest, Hello, Purpose};
use dlc::wire::{
    CHUNK_MAX, Frame, PROTOCOL_VERSION, read_frame, read_message, write_chunk, write_message,
};
use tempfile::TempDir;

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct NoNetworks;

impl Classifier for NoNetworks {
    fn load(&mut self, _: &Manifest, _: &[u8], _: Digest) -> Result<Box<dyn Network>, String> {
        Err("no networks in this test".into())
    }
}

fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn start(name: &str, at: &Path, introducers: Vec<SocketAddr>) -> Running {
    let settings = Settings {
        name: NodeId::new(name).expect("a valid name"),
        join: !introducers.is_empty(),
        introducers,
        first_permits: true,
        data_directory: at.to_path_buf(),
        models: at.join("models"),
        scrub: None,
        repair_share: 10,
        crash_stop: false,
    };
    let bound = threads::bind(localhost()).expect("bound");
    threads::start(settings, bound, Box::new(NoNetworks)).expect("started")
}

fn stop(running: Running) {
    running.stopper().stop();
    running.wait().expect("stopped in order");
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn dial(addr: SocketAddr, purpose: Purpose) -> TcpStream {
    let mut stream = TcpStream::connect(addr).expect("connected");
    stream.set_nodelay(true).expect("set");
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).expect("set");
    let version = PROTOCOL_VERSION;
    write_message(&mut stream, &Hello { version, purpose }).expect("sent");
    stream
}

fn ask(stream: &mut TcpStream, request: &Request) -> Reply {
    write_message(stream, request).expect("sent");
    read_message(stream).expect("answered")
}

fn stats(addr: SocketAddr) -> std::collections::BTreeMap<String, u64> {
    match ask(&mut dial(addr, Purpose::Client), &Request::Stats) {
        Reply::Stats(stats) => stats,
        other => panic!("{other:?}"),
    }
}

/// Waits until the counter `name` reaches `wanted`.
fn reaches(addr: SocketAddr, name: &str, wanted: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = stats(addr)[name];
        if found >= wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{name} is {found}, not {wanted}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn blob(counter: u64) -> BlobId {
    let term = Term(1);
    BlobId { term, counter }
}

fn content(counter: u64) -> Vec<u8> {
    let length = [0, 1, 5000, 3_000_000, 70_000][counter as usize % 5];
    (0..length as u64)
        .map(|i| (i * (counter + 3)) as u8)
        .collect()
}

/// Uploads the contents of these blobs in one request, cut into odd chunks.
fn upload(stream: &mut TcpStream, counters: &[u64]) -> BlobReply {
    let header = |counter: &u64| BlobHeader {
        blob: blob(*counter),
        name: FileName::new(&format!("file {counter}")).expect("a valid name"),
        bytes: content(*counter).len() as u64,
    };
    let headers = counters.iter().map(header).collect();
    write_message(stream, &BlobRequest::Store(headers)).expect("sent");
    let all: Vec<u8> = counters.iter().flat_map(|c| content(*c)).collect();
    for chunk in all.chunks(CHUNK_MAX - 77) {
        write_chunk(stream, chunk).expect("sent");
    }
    read_message(stream).expect("answered")
}

fn download(stream: &mut TcpStream) -> Result<Vec<u8>, String> {
    let mut left = match read_message(stream).expect("answered") {
        BlobReply::Sending(bytes) => bytes,
        BlobReply::Refused(reason) => return Err(reason),
        other => panic!("{other:?}"),
    };
    let mut bytes = Vec::new();
    while left > 0 {
        let Frame::Chunk(chunk) = read_frame(stream).expect("a frame") else {
            panic!("a message amid a file");
        };
        left -= chunk.len() as u64;
        bytes.extend(chunk);
    }
    Ok(bytes)
}

#[test]
fn uploaded_bytes_are_read_back_now_and_after_a_restart() {
    let _turn = turn();
    let at = folder();
    let node = start("n1", at.path(), vec![]);
    let mut stream = dial(node.addr(), Purpose::Blobs);
    for counters in [&[0, 1, 2, 3, 4][..], &[8], &[5, 6], &[]] {
        let digests = counters.iter().map(|c| Digest::of(&content(*c))).collect();
        assert_eq!(upload(&mut stream, counters), BlobReply::Stored(digests));
    }
    stop(node);
    let node = start("n1", at.path(), vec![]);
    let mut stream = dial(node.addr(), Purpose::Blobs);
    let wanted = vec![
        (blob(3), 0),
        (blob(99), 0),
        (blob(0), 0),
        (blob(8), 999_999),
    ];
    write_message(&mut stream, &BlobRequest::Read(wanted)).expect("sent");
    assert_eq!(download(&mut stream).expect("there"), content(3));
    let missing = download(&mut stream).expect_err("not there");
    assert!(missing.contains("1-99"), "{missing}");
    assert_eq!(download(&mut stream).expect("there"), content(0));
    assert_eq!(download(&mut stream).expect("there"), content(8)[999_999..]);
    stop(node);
}

#[test]
fn an_upload_that_is_refused_says_why_after_all_bytes_were_sent() {
    let _turn = turn();
    let at = folder();
    let node = start("n1", at.path(), vec![]);
    let mut stream = dial(node.addr(), Purpose::Blobs);
    assert!(matches!(upload(&mut stream, &[3]), BlobReply::Stored(_)));
    // The same id with other bytes, and more bytes behind it than sockets hold.
    let bytes = 40 << 20;
    let header = |counter| BlobHeader {
        blob: blob(counter),
        name: FileName::new("other").expect("a valid name"),
        bytes,
    };
    let store = BlobRequest::Store(vec![header(3), header(4)]);
    write_message(&mut stream, &store).expect("sent");
    let chunk = vec![7; 1 << 18];
    for _ in 0..2 * bytes / chunk.len() as u64 {
        write_chunk(&mut stream, &chunk).expect("taken");
    }
    let reply: BlobReply = read_message(&mut stream).expect("answered");
    let BlobReply::Refused(reason) = reply else {
        panic!("{reply:?}");
    };
    assert!(reason.contains("another content"), "{reason}");
    assert!(matches!(upload(&mut stream, &[6]), BlobReply::Stored(_)));
    assert_eq!(stats(node.addr())["uploads_refused"], 1);
    stop(node);
}

#[test]
fn a_copy_that_a_reader_complains_of_is_checked_and_moved_aside() {
    let _turn = turn();
    let at = folder();
    let node = start("n1", at.path(), vec![]);
    let mut stream = dial(node.addr(), Purpose::Blobs);
    assert!(matches!(upload(&mut stream, &[3, 4]), BlobReply::Stored(_)));
    let file = at.path().join("blobs/03/1-3");
    let mut bytes = std::fs::read(&file).expect("read");
    bytes[1_234_567] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    write_message(&mut stream, &BlobRequest::Read(vec![(blob(3), 0)])).expect("sent");
    let came = download(&mut stream).expect("there");
    assert!(came.len() == content(3).len() && came != content(3));
    assert!(file.exists());
    let complaint = BlobRequest::Check(vec![blob(3), blob(4), blob(99)]);
    write_message(&mut stream, &complaint).expect("sent");
    write_message(&mut stream, &BlobRequest::Read(vec![(blob(3), 0)])).expect("sent");
    let missing = download(&mut stream).expect_err("not there");
    assert!(missing.contains("1-3"), "{missing}");
    assert_eq!(stats(node.addr())["blobs_corrupt"], 1);
    assert!(!file.exists() && at.path().join("corrupt/1-3").exists());
    assert!(
        at.path().join("blobs/04/1-4").exists(),
        "a right copy stays"
    );
    stop(node);
}

#[test]
fn a_port_in_use_is_named_with_the_remedy() {
    let _turn = turn();
    let tcp = TcpListener::bind(localhost()).expect("bound");
    // On a port that is free for TCP: connections of other processes take ports too.
    let udp = (0..100)
        .map(|_| UdpSocket::bind(localhost()).expect("bound"))
        .find(|socket| TcpListener::bind(socket.local_addr().expect("an address")).is_ok())
        .expect("a port that is free for TCP");
    for (protocol, addr) in [
        ("TCP", tcp.local_addr().expect("an address")),
        ("UDP", udp.local_addr().expect("an address")),
    ] {
        let error = threads::bind(addr).expect_err("in use").to_string();
        let port = format!("{protocol} port {} is in use", addr.port());
        assert!(error.starts_with(&port), "{error}");
        assert!(error.contains("--listen"), "{error}");
    }
    for _ in 0..20 {
        let bound = threads::bind(localhost()).expect("free for both");
        assert_ne!(bound.addr().port(), 0);
    }
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let _turn = turn();
    let at = folder();
    let node = start("n1", at.path(), vec![]);
    let settings = Settings {
        name: NodeId::new("n1").expect("a valid name"),
        introducers: vec![],
        first_permits: true,
        data_directory: at.path().to_path_buf(),
        models: at.path().join("models"),
        join: false,
        scrub: None,
        repair_share: 10,
        crash_stop: false,
    };
    let bound = threads::bind(localhost()).expect("bound");
    let refused = threads::start(settings, bound, Box::new(NoNetworks));
    let error = refused.err().expect("in use").to_string();
    assert!(error.contains("another process"), "{error}");
    stop(node);
    stop(start("n1", at.path(), vec![]));
}

#[test]
fn bad_frames_and_datagrams_are_counted_and_dropped() {
    let _turn = turn();
    let at = folder();
    let node = start("n1", at.path(), vec![]);
    let addr = node.addr();
    let closed = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(addr).expect("connected");
        stream.write_all(bytes).expect("sent");
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).expect("set");
        let mut rest = Vec::new();
        // Unread bytes make it a reset instead of an end.
        let _ = stream.read_to_end(&mut rest);
        assert_eq!(rest, b"");
    };
    closed(&[9, 0, 0, 0, 77]);
    closed(&[255, 255, 255, 255, 1]);
    closed(&[3, 0, 0, 0, 1, 1, 2, 3]);
    closed(b"GET / HTTP/1.1\r\n\r\n");
    let mut old = Vec::new();
    let hello = Hello {
        version: PROTOCOL_VERSION + 1,
        purpose: Purpose::Client,
    };
    write_message(&mut old, &hello).expect("encoded");
    closed(&old);
    let mut client = dial(addr, Purpose::Client);
    client.write_all(&[2, 0, 0, 0, 1, 255, 255]).expect("sent");
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    let mut blobs = dial(addr, Purpose::Blobs);
    write_chunk(&mut blobs, b"bytes without a header").expect("sent");
    let _ = blobs.read_to_end(&mut rest);
    reaches(addr, "frames_bad", 7);

    let udp = UdpSocket::bind(localhost()).expect("bound");
    for bytes in [
        &b""[..],
        &[PROTOCOL_VERSION],
        &[99, 1, 2],
        &[1; 1300],
        &[1; 40],
    ] {
        udp.send_to(bytes, addr).expect("sent");
    }
    reaches(addr, "datagrams_bad", 5);
    stop(node);
}

#[test]
fn a_peer_of_another_cluster_is_refused() {
    let _turn = turn();
    let at = folder();
    let node = start("n1", at.path(), vec![]);
    let server = |name: &str| Server {
        node: NodeId::new(name).expect("a valid name"),
        storage: StorageId(1),
    };
    let mut stream = dial(
        node.addr(),
        Purpose::Peer {
            cluster: ClusterId(5),
            from: server("n2"),
            to: server("n1"),
        },
    );
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("closed");
    assert_eq!(stats(node.addr())["peers_refused"], 1);
    stop(node);
}

#[test]
fn too_many_connections_are_refused_and_come_back_when_there_is_room() {
    let _turn = turn();
    let at = folder();
    let node = start("n1", at.path(), vec![]);
    let addr = node.addr();
    let mut clients: Vec<TcpStream> = (0..192).map(|_| dial(addr, Purpose::Client)).collect();
    for client in &mut clients {
        assert!(matches!(ask(client, &Request::Stats), Reply::Stats(_)));
    }
    // Places for members are left, clients get none of them.
    let mut late = dial(addr, Purpose::Client);
    let reply: Reply = read_message(&mut late).expect("answered");
    assert_eq!(reply, Reply::Refused(Refusal::Busy));
    let silent: Vec<TcpStream> = (0..64)
        .map(|_| TcpStream::connect(addr).expect("connected"))
        .collect();
    let mut surplus = TcpStream::connect(addr).expect("connected");
    let patience = Some(Duration::from_secs(10));
    surplus.set_read_timeout(patience).expect("set");
    let mut rest = Vec::new();
    surplus.read_to_end(&mut rest).expect("closed");
    drop((silent, clients.split_off(1)));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !matches!(ask(&mut clients[0], &Request::Stats),
        Reply::Stats(stats) if stats["connections_open"] == 1)
    {
        assert!(Instant::now() < deadline, "places are not freed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(stats(addr)["connections_refused"] >= 1);
    stop(node);
}

fn thread_names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("listed");
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    let mut names: Vec<String> = tasks
        .filter_map(|task| name(task.expect("an entry")).ok())
        .map(|name| name.trim_end().to_string())
        .filter(|name| !name.contains(':') && !name.contains("loopback"))
        .collect();
    names.sort();
    names
}

fn own(names: &[String]) -> Vec<&str> {
    let known = [
        "coord", "dial-", "disk", "fetch-", "files", "infer", "log", "peer-", "ping", "prepare",
    ];
    let names = names.iter().map(String::as_str);
    names
        .filter(|name| known.iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}

#[test]
fn an_ordered_stop_leaves_no_thread_and_is_quick() {
    let _turn = turn();
    let at = folder();
    wait_for("no thread of another test is left", || {
        own(&thread_names()).is_empty()
    });
    let node = start("n1", at.path(), vec![]);
    let addr = node.addr();
    let mut idle = dial(addr, Purpose::Client);
    ask(&mut idle, &Request::Stats);
    let _silent = TcpStream::connect(addr).expect("connected");
    let mut half = dial(addr, Purpose::Blobs);
    let header = BlobHeader {
        blob: blob(1),
        name: FileName::new("half").expect("a valid name"),
        bytes: 100,
    };
    write_message(&mut half, &BlobRequest::Store(vec![header])).expect("sent");
    write_chunk(&mut half, &[1; 50]).expect("sent");
    let wanted = [
        "coord", "disk", "files", "files-0", "infer", "log", "ping", "prepare",
    ];
    // A thread names itself after it has started, and is listed a moment after its end.
    wait_for("all threads have their names", || {
        let running = thread_names();
        wanted
            .iter()
            .all(|name| running.iter().any(|found| found == name))
    });
    let since = Instant::now();
    stop(node);
    assert!(since.elapsed() < Duration::from_secs(3));
    wait_for("no thread is left", || own(&thread_names()).is_empty());
    assert!(TcpStream::connect(addr).is_err());
}

/// Text of the file `identity.json`.
fn identity(at: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(at.join("identity.json")).expect("read");
    serde_json::from_str(&text).expect("JSON")
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nodes_join_one_cluster_and_remember_it() {
    let _turn = turn();
    let (one, two) = (folder(), folder());
    let bound = threads::bind(localhost()).expect("bound");
    let introducer = threads::start_introducer(bound).expect("started");
    let introducers = vec![introducer.addr()];
    let first = start("n1", one.path(), introducers.clone());
    let second = start("n2", two.path(), introducers.clone());
    wait_for("both are members", || {
        let clusters = [identity(one.path()), identity(two.path())].map(|i| i["cluster"].clone());
        clusters[0].is_string() && clusters[0] == clusters[1]
    });
    wait_for("each has noted the other's address", || {
        let members = identity(one.path())["members"].clone();
        members == serde_json::json!([second.addr().to_string()])
    });
    wait_for("control connections are up both ways", || {
        stats(first.addr())["connections_open"] >= 2
            && stats(second.addr())["connections_open"] >= 2
    });
    stop(introducer);
    stop(second);
    stop(first);
    let again = start("n1", one.path(), introducers);
    assert_eq!(identity(one.path())["incarnation"], 2);
    stop(again);
}

/// An executable that is killed when the test ends.
struct Process(Child, BufReader<std::process::ChildStdout>);

impl Process {
    fn introducer(at: &Path, arguments: &[&str]) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_introducer"))
            .args(arguments)
            .arg("--cluster-key")
            .arg(at.join("key"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Process(child, output)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).expect("read");
        line.trim_end().to_string()
    }

    fn end(mut self) -> (Option<i32>, String) {
        let status = self.0.wait().expect("ended");
        let mut errors = String::new();
        let stderr = self.0.stderr.as_mut().expect("piped");
        stderr.read_to_string(&mut errors).expect("read");
        (status.code(), errors)
    }
}

#[test]
fn the_introducer_announces_its_port_and_stops_on_signals() {
    let _turn = turn();
    let at = folder();
    let mut introducer = Process::introducer(at.path(), &["--listen", "127.0.0.1:0"]);
    let line = introducer.line();
    let addr = line.strip_prefix("listening ").expect("the first line");
    let mut other = Process::introducer(at.path(), &["--listen", addr]);
    assert_eq!(other.line(), "");
    let (status, errors) = other.end();
    assert_eq!(status, Some(1));
    assert!(errors.contains("is in use"), "{errors}");
    let mut client = dial(addr.parse().expect("an address"), Purpose::Client);
    let reply: Reply = read_message(&mut client).expect("answered");
    assert!(matches!(reply, Reply::Refused(Refusal::Failed(_))));
    let pid = introducer.0.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(killed.expect("run").success());
    let (status, errors) = introducer.end();
    assert_eq!(status, Some(0), "{errors}");
    let wrong = Process::introducer(at.path(), &["--lsiten", "x"]);
    assert_eq!(wrong.end().0, Some(2));
}
