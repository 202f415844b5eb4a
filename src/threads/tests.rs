//! The devices' threads one at a time; whole processes are in `tests/loopback.rs`.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicUsize;

use super::ask::Ask;
use super::infer::Work;
use super::prepare::Order;
use super::*;
use crate::models::manifest::Manifest;
use crate::models::route::Route;
use crate::node::io::Input;
use crate::types::Version;
use crate::types::{BlobId, Digest, FileName, JobId, Term, Time};
use crate::wire::peer::{Hello, PeerMessage, Purpose};
use crate::wire::read_message;
use crate::wire::schedule::{AssignedInput, Assignment, AssignmentId, Hint, ModelFiles, Outcome};
use crate::wire::store::{Located, Target};

const PATIENCE: Duration = Duration::from_secs(20);

fn server(name: &str) -> Server {
    Server {
        node: NodeId::new(name).expect("a valid name"),
        storage: StorageId(7),
    }
}

fn shared(name: &str) -> (Arc<Shared>, Receiver<Ending>) {
    let clock = Clock::start();
    let (crew, endings) = Crew::new(clock);
    let shared = Shared {
        clock,
        crew,
        counters: Counters::default(),
        busy: Busy::default(),
        connections: Connections::default(),
        me: server(name),
        cluster: RwLock::new(Some(ClusterId(1))),
    };
    (Arc::new(shared), endings)
}

fn blob(counter: u64) -> BlobId {
    let term = Term(2);
    BlobId { term, counter }
}

fn store(blobs: &Blobs, counter: u64, content: &[u8]) {
    let name = FileName::new("f").expect("a valid name");
    let length = content.len() as u64;
    let mut writer = blobs.create(blob(counter), &name, length).expect("room");
    writer.write(content).expect("written");
    writer.finish().expect("stored");
}

struct Holder {
    node: Running,
    _at: tempfile::TempDir,
}

/// A node that holds these blobs.
fn holder(contents: &[(u64, Vec<u8>)]) -> Holder {
    let at = tempfile::tempdir().expect("a temporary directory");
    let (blobs, _) = Blobs::open(at.path()).expect("opened");
    // A directory with blobs needs an identity, and this makes one.
    std::fs::rename(at.path().join("blobs"), at.path().join("aside")).expect("renamed");
    let name = NodeId::new("holder").expect("a valid name");
    drop(DataDirectory::open(at.path(), &name, StorageId(9)).expect("opened"));
    std::fs::rename(at.path().join("aside"), at.path().join("blobs")).expect("renamed");
    for (counter, content) in contents {
        store(&blobs, *counter, content);
    }
    let settings = Settings {
        name,
        introducers: vec![],
        first_permits: false,
        data_directory: at.path().into(),
        models: at.path().join("models"),
        join: false,
        scrub: None,
        repair_share: 10,
        crash_stop: false,
    };
    let bound = bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let node = start(settings, bound, Box::new(Brightest::default())).expect("started");
    Holder { node, _at: at }
}

fn target(name: &str, addr: SocketAddr) -> Target {
    let server = server(name);
    Target { server, addr }
}

/// An address where nothing listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.local_addr().expect("an address")
}

fn located(counter: u64, content: &[u8], sources: Vec<Target>) -> Located {
    Located {
        name: FileName::new("f").expect("a valid name"),
        version: Version(0),
        blob: blob(counter),
        bytes: content.len() as u64,
        digest: Digest::of(content),
        sources,
    }
}

/// Answers with the largest number of each input; fails on a model named `broken`.
#[derive(Default)]
struct Brightest(Arc<AtomicUsize>);

impl Classifier for Brightest {
    fn load(&mut self, m: &Manifest, w: &[u8], _: Digest) -> Result<Box<dyn Network>, String> {
        self.0.fetch_add(1, Ordering::SeqCst);
        match w {
            b"weights" => Ok(Box::new(Answers(m.input.len()))),
            _ => Err("these are no weights".into()),
        }
    }
}

struct Answers(usize);

impl Network for Answers {
    fn classify(
        &mut self,
        numbers: &[f32],
        count: usize,
    ) -> Result<Vec<Option<(u32, f32)>>, String> {
        assert_eq!(numbers.len(), count * self.0);
        let brightest = |input: &[f32]| u32::from(input.iter().any(|n| *n > 0.5));
        // Grey is what this network cannot answer.
        let grey = |input: &[f32]| input.iter().all(|n| (0.2..0.4).contains(n));
        let answer = |input: &[f32]| (!grey(input)).then(|| (brightest(input), 0.75));
        Ok(numbers.chunks(self.0).map(answer).collect())
    }

    fn route(&self) -> Route {
        Route::Plain
    }
}

#[test]
fn copies_come_from_the_first_source_that_has_the_right_bytes() {
    let contents: Vec<(u64, Vec<u8>)> = [(1, 10), (2, 0), (3, 2_000_000), (4, 700)]
        .map(|(counter, length)| (counter, vec![counter as u8; length]))
        .into();
    let good = holder(&contents);
    // The same ids with other bytes: a copy from here must not be accepted.
    let wrong: Vec<(u64, Vec<u8>)> = contents
        .iter()
        .map(|(counter, content)| (*counter, vec![99; content.len()]))
        .collect();
    let bad = holder(&wrong);
    let at = tempfile::tempdir().expect("a temporary directory");
    let (blobs, _) = Blobs::open(at.path()).expect("opened");
    let blobs = Arc::new(blobs);
    let (shared, _endings) = shared("me");
    let sources = vec![
        target("dead", nobody()),
        target("bad", bad.node.addr()),
        target("good", good.node.addr()),
        target("me", nobody()),
    ];
    let mut order: Vec<Located> = contents
        .iter()
        .map(|(counter, content)| located(*counter, content, sources.clone()))
        .collect();
    order.push(located(5, b"nobody has it", sources));
    order.push(located(6, b"no sources", vec![]));
    let (orders, ordered) = bounded(1);
    let (results, done) = bounded(1);
    orders.send(order).expect("taken");
    drop(orders);
    fetch::run(ordered, blobs.clone(), shared, 100, results).expect("ended");
    let Ok(Input::Fetched(fetched)) = done.recv() else {
        panic!("no report");
    };
    let wanted = [
        (1, true),
        (2, true),
        (3, true),
        (4, true),
        (5, false),
        (6, false),
    ];
    assert_eq!(fetched, wanted.map(|(counter, ok)| (blob(counter), ok)));
    for (counter, content) in contents {
        assert_eq!(blobs.read(blob(counter)).expect("here"), content);
    }
    assert!(blobs.read(blob(5)).is_err());
    let incoming = std::fs::read_dir(at.path().join("incoming")).expect("listed");
    assert_eq!(incoming.count(), 0);
}

/// A 2 x 2 grey PNG of one brightness.
fn png(brightness: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_pixel(2, 2, image::Luma([brightness]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("encoded");
    bytes.into_inner()
}

const MANIFEST: &str = r#"
name = "m"
architecture = "torchscript"
weights = "m.pt"
input = { channels = 1, height = 2, width = 2 }
mean = [0.0]
std = [1.0]
labels = ["dark", "bright"]
"#;

struct Workers {
    orders: Sender<Order>,
    results: Receiver<Input>,
    loads: Arc<AtomicUsize>,
    reports: Receiver<Ask>,
    shared: Arc<Shared>,
}

/// Threads `prepare` and `infer` on the disk `blobs`.
fn workers(blobs: Arc<Blobs>) -> Workers {
    let (shared, _) = shared("me");
    let (orders, ordered) = bounded(prepare::ORDERS_MAX);
    let (results, done) = bounded(coord::RESULTS_MAX);
    let (work, batches) = bounded(1);
    let (asks, reports) = bounded(4);
    let copies = Copies {
        blobs,
        shared: shared.clone(),
        asks,
    };
    let preparing = Prepare {
        copies,
        shared: shared.clone(),
        results: results.clone(),
        work,
        manifests: BTreeMap::new(),
        ahead: Default::default(),
    };
    let classifier = Brightest::default();
    let loads = classifier.0.clone();
    let (crew, counted) = (&shared.crew, shared.clone());
    crew.spawn("prepare", move || preparing.run(ordered))
        .expect("started");
    crew.spawn("infer", move || {
        infer::run(Box::new(classifier), batches, results, &counted)
    })
    .expect("started");
    Workers {
        orders,
        results: done,
        loads,
        reports,
        shared,
    }
}

fn assignment(inputs: Vec<AssignedInput>, holders: Vec<Target>) -> Assignment {
    Assignment {
        id: AssignmentId {
            term: Term(1),
            counter: 1,
        },
        token: 1,
        job: JobId(0),
        model: "m".into(),
        digest: Digest::of(b"weights"),
        inputs,
        hints: Vec::new(),
        holders,
    }
}

fn assigned(index: u32, counter: u64, content: &[u8], sources: Vec<u16>) -> AssignedInput {
    AssignedInput {
        index,
        blob: blob(counter),
        bytes: content.len() as u64,
        digest: Digest::of(content),
        sources,
    }
}

fn load(weights: &[u8], counters: (u64, u64)) -> Order {
    let files = ModelFiles {
        name: "m".into(),
        digest: Digest::of(weights),
        manifest: located(counters.0, MANIFEST.as_bytes(), vec![]),
        weights: located(counters.1, weights, vec![]),
    };
    Order::Load(files, Default::default())
}

#[test]
fn networks_stay_for_as_long_as_they_are_wanted() {
    let at = tempfile::tempdir().expect("a temporary directory");
    let (blobs, _) = Blobs::open(at.path()).expect("opened");
    store(&blobs, 1, MANIFEST.as_bytes());
    store(&blobs, 2, b"weights");
    store(&blobs, 10, &png(255));
    store(&blobs, 11, &png(80));
    let workers = workers(Arc::new(blobs));
    let load_beside = |name: &str, keep: &[&str]| {
        let Order::Load(mut files, _) = load(b"weights", (1, 2)) else {
            panic!("a load")
        };
        files.name = name.into();
        let keep = keep.iter().map(|name| (name.to_string(), files.digest));
        let order = Order::Load(files.clone(), keep.collect());
        workers.orders.send(order).expect("taken");
        let loaded = workers.results.recv_timeout(PATIENCE).expect("an answer");
        assert!(matches!(loaded, Input::ModelLoaded { result: Ok(()), .. }));
    };
    let rows = || {
        let inputs = vec![
            assigned(0, 10, &png(255), vec![]),
            assigned(1, 11, &png(80), vec![]),
        ];
        let task = Order::Run(assignment(inputs, vec![]), Time(0));
        workers.orders.send(task).expect("taken");
        match workers.results.recv_timeout(PATIENCE) {
            Ok(Input::BatchDone { rows, .. }) => rows,
            other => panic!("no rows: {other:?}"),
        }
    };
    load_beside("m", &[]);
    for number in 0..100 {
        load_beside(&format!("m{number}"), &["m"]);
    }
    let found = rows();
    assert!(matches!(&found[0].1, Outcome::Label { .. }), "{found:?}");
    // An image without a finite answer has an error of its own, and its neighbour none.
    assert!(
        matches!(&found[1].1, Outcome::Error(why) if why.contains("no finite answer")),
        "{found:?}"
    );
    load_beside("other", &[]);
    let found = rows();
    assert!(
        matches!(&found[0].1, Outcome::Error(why) if why.contains("not loaded")),
        "{found:?}"
    );
}

#[test]
fn a_task_gets_one_row_for_each_input_wherever_its_bytes_are() {
    let remote = holder(&[(30, png(255)), (31, png(0))]);
    let at = tempfile::tempdir().expect("a temporary directory");
    let (blobs, _) = Blobs::open(at.path()).expect("opened");
    store(&blobs, 1, MANIFEST.as_bytes());
    store(&blobs, 2, b"weights");
    store(&blobs, 10, &png(0));
    store(&blobs, 11, b"text, named .png");
    store(&blobs, 12, &png(200));
    let corrupt = at.path().join("blobs/0c/2-12");
    let mut bytes = std::fs::read(&corrupt).expect("read");
    bytes[20] ^= 1;
    std::fs::write(&corrupt, bytes).expect("written");
    let workers = workers(Arc::new(blobs));
    workers
        .orders
        .send(load(b"weights", (1, 2)))
        .expect("taken");
    let loaded = workers.results.recv_timeout(PATIENCE).expect("an answer");
    assert!(
        matches!(&loaded, Input::ModelLoaded { name, result: Ok(()), .. } if name == "m"),
        "{loaded:?}"
    );
    let holders = vec![
        target("dead", nobody()),
        target("holder", remote.node.addr()),
    ];
    let inputs = vec![
        assigned(7, 10, &png(0), vec![]),
        assigned(3, 30, &png(255), vec![0, 1]),
        assigned(4, 11, b"text, named .png", vec![]),
        assigned(5, 12, &png(200), vec![]),
        assigned(6, 99, b"nowhere", vec![0, 1]),
        assigned(8, 31, &png(0), vec![0, 1]),
    ];
    let task = Order::Run(assignment(inputs, holders), Time(0));
    workers.orders.send(task).expect("taken");
    let healed = workers.reports.recv_timeout(PATIENCE).expect("a report");
    assert!(matches!(healed, Ask::Corrupt(id) if id == blob(12)));
    let Ok(Input::BatchDone { rows, .. }) = workers.results.recv_timeout(PATIENCE) else {
        panic!("no rows");
    };
    let label = |text: &str| Outcome::Label {
        label: text.into(),
        confidence: 0.75,
    };
    assert_eq!(rows.len(), 6, "{rows:?}");
    assert_eq!(rows[0], (3, label("bright")));
    assert!(matches!(&rows[1], (4, Outcome::Error(e)) if e.contains("not an image")));
    assert!(matches!(&rows[2], (5, Outcome::Unread(e)) if e.contains("failed its check")));
    assert!(matches!(&rows[3], (6, Outcome::Unread(e)) if e.contains("no copy")));
    assert_eq!(rows[4], (7, label("dark")));
    assert_eq!(rows[5], (8, label("dark")));
}

#[test]
fn what_a_task_may_ask_for_next_is_read_and_decoded_ahead() {
    let at = tempfile::tempdir().expect("a temporary directory");
    let (blobs, _) = Blobs::open(at.path()).expect("opened");
    for (counter, brightness) in [(10, 0), (11, 80), (12, 255)] {
        store(&blobs, counter, &png(brightness));
    }
    let blobs = Arc::new(blobs);
    let (work, batches) = bounded(2);
    let (results, _answers) = bounded(2);
    let (asks, _reports) = bounded(4);
    let (shared, _) = shared("me");
    let manifest = Manifest::parse(MANIFEST.as_bytes(), "m.toml").expect("valid");
    let key = ("m".to_string(), Digest::of(b"weights"));
    let mut prepare = Prepare {
        copies: Copies {
            blobs: blobs.clone(),
            shared: shared.clone(),
            asks,
        },
        shared,
        results,
        work,
        manifests: BTreeMap::from([(key.clone(), Arc::new(manifest))]),
        ahead: Default::default(),
    };
    let mut first = assignment(vec![assigned(0, 10, &png(0), vec![])], vec![]);
    first.hints = vec![Hint {
        model: key.0,
        digest: key.1,
        inputs: vec![
            assigned(1, 11, &png(80), vec![]),
            assigned(2, 12, &png(255), vec![]),
            assigned(3, 99, b"nowhere", vec![]),
        ],
    }];
    assert!(prepare.prepare(first, Time(0)));
    for _ in 0..3 {
        prepare.look_ahead();
    }
    assert!(prepare.ahead.is_idle());
    // Nothing is read again: the copies are gone.
    blobs.remove(&[blob(11), blob(12)]).expect("removed");
    let inputs = vec![
        assigned(2, 12, &png(255), vec![]),
        assigned(3, 99, b"nowhere", vec![]),
        assigned(1, 11, &png(80), vec![]),
    ];
    assert!(prepare.prepare(assignment(inputs, vec![]), Time(0)));
    let batches: Vec<Work> = batches.try_iter().collect();
    let Work::Batch {
        indices,
        numbers,
        errors,
        times,
        ..
    } = &batches[1]
    else {
        panic!("a batch");
    };
    assert_eq!((&indices[..], numbers.len()), (&[2, 1][..], 8));
    assert!(numbers[0] > numbers[4], "{numbers:?}");
    assert!(
        matches!(&errors[..], [(3, Outcome::Unread(_))]),
        "{errors:?}"
    );
    assert!(times.fetch > 0 && times.decode > 0);
}

#[test]
fn a_model_that_cannot_be_loaded_says_why_and_its_tasks_get_error_rows() {
    let at = tempfile::tempdir().expect("a temporary directory");
    let (blobs, _) = Blobs::open(at.path()).expect("opened");
    store(&blobs, 1, MANIFEST.as_bytes());
    store(&blobs, 2, b"rubbish");
    store(&blobs, 10, &png(0));
    let workers = workers(Arc::new(blobs));
    for (order, reason) in [
        (load(b"rubbish", (1, 2)), "these are no weights"),
        (load(b"weights", (1, 3)), "no copy could be read"),
    ] {
        workers.orders.send(order).expect("taken");
        let loaded = workers.results.recv_timeout(PATIENCE).expect("an answer");
        assert!(
            matches!(&loaded, Input::ModelLoaded { result: Err(error), .. } if error.reason().contains(reason)),
            "{loaded:?}"
        );
    }
    assert_eq!(workers.loads.load(Ordering::SeqCst), 1);
    let task = assignment(vec![assigned(0, 10, &png(0), vec![])], vec![]);
    let order = Order::Run(task, Time(0));
    workers.orders.send(order).expect("taken");
    let done = workers.results.recv_timeout(PATIENCE).expect("rows");
    let Input::BatchDone { rows, .. } = done else {
        panic!("{done:?}");
    };
    assert!(matches!(&rows[..], [(0, Outcome::Error(e))] if e.contains("not loaded")));
    workers.shared.crew.set_stopping();
    drop(workers.orders);
    assert_eq!(workers.shared.crew.join("", PATIENCE), [""; 0]);
}

#[test]
fn a_thread_that_dies_ends_the_process_with_its_name() {
    for (name, body, wanted) in [
        (
            "panics",
            (|| panic!("on purpose")) as fn() -> Result<(), String>,
            "panicked",
        ),
        ("fails", || Err("disk on fire".into()), "disk on fire"),
        ("returns", || Ok(()), "ended unasked"),
    ] {
        let (crew, endings) = Crew::new(Clock::start());
        crew.spawn(name, body).expect("started");
        let ending = endings.recv_timeout(PATIENCE).expect("an ending");
        let Ending::Failed(error) = ending else {
            panic!("{ending:?}");
        };
        assert!(error.contains(name) && error.contains(wanted), "{error}");
    }
    let (crew, endings) = Crew::new(Clock::start());
    crew.spawn_passing("passes", || Ok(())).expect("started");
    assert_eq!(crew.join("", PATIENCE), [""; 0]);
    crew.set_stopping();
    crew.spawn("stops", || Ok(())).expect("started");
    assert_eq!(crew.join("", PATIENCE), [""; 0]);
    assert!(endings.try_recv().is_err());
}

#[test]
fn a_peer_gets_messages_in_order_and_its_end_is_told_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let addr = listener.local_addr().expect("an address");
    let (shared, _endings) = shared("me");
    let (commands, told) = bounded(ping::COMMANDS_MAX);
    let waker = Waker::new().expect("an eventfd");
    let ping = Handle { commands, waker };
    let peer =
        peers::Peer::start(1, server("other"), addr, ClusterId(1), ping, &shared).expect("started");
    let (mut stream, _) = listener.accept().expect("accepted");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let hello: Hello = read_message(&mut stream).expect("a hello");
    let wanted = Purpose::Peer {
        cluster: ClusterId(1),
        from: server("me"),
        to: server("other"),
    };
    assert_eq!(hello.purpose, wanted);
    for token in 0..100 {
        peer.send(PeerMessage::NotLeader { token }, &shared);
    }
    for wanted in 0..100 {
        let message: PeerMessage = read_message(&mut stream).expect("a message");
        assert_eq!(message, PeerMessage::NotLeader { token: wanted });
    }
    drop((stream, listener));
    let command = told.recv_timeout(PATIENCE).expect("told");
    assert!(
        matches!(command, ping::Command::ConnectionClosed(node) if node == server("other").node)
    );
    // Down: nothing waits, and nothing that was sent now arrives later.
    for token in 0..2 * peers::MESSAGES_MAX as u64 {
        peer.send(PeerMessage::NotLeader { token }, &shared);
    }
    drop(peer);
    assert_eq!(shared.crew.join("peer", PATIENCE), [""; 0]);
}

#[test]
fn an_unread_view_is_replaced_by_the_newest() {
    let (sender, receiver) = bounded(1);
    for number in 0..5 {
        ping::conflate(&sender, &receiver, number);
    }
    assert_eq!(receiver.try_recv(), Ok(4));
    assert!(receiver.try_recv().is_err());
    let (sender, receiver) = bounded(2);
    let mut queue: VecDeque<i32> = (0..3).collect();
    ping::hand_on(&mut queue, &sender);
    assert_eq!(queue, [2]);
    assert_eq!(receiver.recv(), Ok(0));
    ping::hand_on(&mut queue, &sender);
    assert_eq!(receiver.iter().take(2).collect::<Vec<_>>(), [1, 2]);
}
