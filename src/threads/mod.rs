//! The only module with threads, sockets, clocks and the system's randomness: the cores'
//! driver on real machines.
//!
//! ```text
//! main        waits for a signal or the first thread that ends
//! ping        UDP socket and Membership (or Introducer)      poll(socket, eventfd)
//! dial-N      membership's TCP exchanges
//! coord       Node: log, catalog, jobs, this node's replica and worker
//! log         journal: append, sync
//! disk        identity, blobs that the core writes or removes
//! files       accepts connections; files-N serve one each, and never dial out
//! peer-N      control connection to one other member
//! fetch-N     copy blobs from other nodes
//! scrub       reads this disk's copies again and again, to find those that have decayed
//! prepare     read and decode a task's inputs; fetch models
//! infer       the networks
//! ```
//!
//! | from | to | carries | room | when it is full |
//! |---|---|---|---|---|
//! | ping | coord | events | 16 | ping keeps them |
//! | ping | coord | newest view | 1 | the older one is replaced |
//! | ping | dial-N | exchanges | 64 | counts as not answered |
//! | ping | disk | what to note | 64 | ping keeps it |
//! | any | ping | commands | 256 | coord keeps them, others wait or drop a hint |
//! | files-N | coord | messages of peers | 256 | the connection waits |
//! | files-N, scrub | coord | commands, uploads | 256 | `Busy` after 1 s |
//! | coord | files-N | the answer | 1 each | cannot be |
//! | coord | peer-N | messages | 256 | lost; the core repeats |
//! | coord | log | log writes | 4 | cannot be: at most two are under way |
//! | coord | disk | blobs to write, remove | 64 | refused to the core; removals are kept |
//! | coord | fetch-N | blobs to copy | 64 | refused to the core, which repeats |
//! | coord | prepare | task, models | 8 | refused to the core |
//! | prepare | infer | batch, model | 1 | prepare waits |
//! | devices | coord | results | 64 | the device waits |
//! | any | main | the first end | 1 | only the first one matters |
//!
//! Waiting sends point only toward `coord`, and it never waits: the graph of waits has no
//! cycle. To stop: `files` and its handlers first, while `coord` still answers; then
//! `coord` and `ping`, whose channels end the others.
//!
//! Deliberately not here: rules of any protocol.

mod ahead;
mod ask;
mod busy;
mod clock;
mod coord;
mod copies;
mod counters;
mod crew;
mod dial;
mod fetch;
mod files;
mod grade;
mod infer;
mod introducer;
mod keep;
mod listen;
mod local;
mod member;
mod net;
mod peers;
mod ping;
mod prepare;
mod priority;
mod wake;

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::RwLock;

use crate::config;
use crate::disk::{Blobs, DataDirectory, DiskError, Journal};
use crate::membership::{self, Membership};
use crate::node::Node;
use crate::node::io::{Input, Start};
use crate::types::{ClusterId, NodeId, Server, StorageId};
use crate::wire::client::Request;
use ask::Ask;
use busy::Busy;
use clock::Clock;
use coord::{Coordinator, Devices, Inputs};
use copies::Copies;
use counters::Counters;
use crew::Crew;
use files::Files;
use listen::Connections;
use local::LocalModels;
use member::Member;
use ping::{Handle, Ping};
use prepare::Prepare;
use wake::Waker;

pub use crew::Ending;
#[cfg(feature = "torch")]
pub use infer::torch::Torch;
pub use infer::{Classifier, Network};
pub use introducer::start_introducer;
pub use net::{BindError, Bound, bind};

/// Handlers that are answering may finish within this time.
const HANDLERS: Duration = Duration::from_secs(1);
/// All other threads must end within this time.
const THREADS: Duration = Duration::from_secs(5);

/// What all threads of a process may read.
pub(crate) struct Shared {
    clock: Clock,
    crew: Crew,
    counters: Counters,
    busy: Busy,
    connections: Connections,
    /// This node and its disk; an introducer, which is no member, does not use it.
    me: Server,
    /// The cluster, once this node has joined it.
    cluster: RwLock<Option<ClusterId>>,
}

/// Bytes of the log after which a snapshot takes its place: read back in well under a second.
const SNAPSHOT_BYTES: usize = 16 << 20;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name.
    pub name: NodeId,
    /// Introducers.
    pub introducers: Vec<SocketAddr>,
    /// The first of them may permit a new cluster.
    pub first_permits: bool,
    /// Its data directory.
    pub data_directory: PathBuf,
    /// Its model directory.
    pub models: PathBuf,
    /// Join at once.
    pub join: bool,
    /// Time in which every copy on this disk is checked once; none: never.
    pub scrub: Option<Duration>,
    /// Percent of their time in which the threads that copy files work while this node computes.
    pub repair_share: u32,
    /// Members that are gone have crashed: go on without a majority of them.
    pub crash_stop: bool,
}

impl Settings {
    /// As the command line says.
    ///
    /// *Errors*: no introducer has an address.
    pub fn new(arguments: &config::NodeArguments) -> Result<Settings, clap::Error> {
        let (introducers, first_permits) = arguments.introducers()?;
        Ok(Settings {
            name: arguments.name.clone(),
            introducers,
            first_permits,
            data_directory: arguments.data_directory(),
            models: arguments.models.clone(),
            join: arguments.join,
            scrub: arguments.scrub_period(),
            repair_share: arguments.repair_share,
            crash_stop: arguments.crash_stop,
        })
    }
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A thread, or something else of the system.
    #[error("{0}")]
    System(String),
}

/// A process whose threads run.
pub struct Running {
    shared: Arc<Shared>,
    endings: Receiver<Ending>,
    addr: SocketAddr,
    ping: Waker,
    /// Dropped to end `coord`.
    stop: Option<Sender<()>>,
}

/// Stops a process from another thread: a signal handler, a console.
#[derive(Clone)]
pub struct Stopper(Crew);

impl Stopper {
    /// Asks the process to stop in order.
    pub fn stop(&self) {
        self.0.end(Ending::Asked);
    }
}

/// Lets SIGINT, SIGTERM and SIGHUP stop the process in order, and a second one at once.
pub fn stop_on_signals(stopper: Stopper) -> Result<(), StartError> {
    let seen = AtomicBool::new(false);
    let handler = move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        stopper.stop();
    };
    ctrlc::set_handler(handler)
        .map_err(|error| StartError::System(format!("cannot handle signals: {error}")))
}

impl Running {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its stopper.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.shared.crew.clone())
    }

    /// Waits until the process is to end, and stops its threads in order. An error names
    /// the thread that failed, or those that did not end.
    pub fn wait(mut self) -> Result<(), String> {
        let ending = self.endings.recv().unwrap_or(Ending::Asked);
        let late = self.stop_threads();
        match ending {
            Ending::Failed(error) => Err(error),
            Ending::Asked if late.is_empty() => Ok(()),
            Ending::Asked => Err(format!("threads that did not end: {}", late.join(", "))),
        }
    }

    /// Ends the threads in their order. Those that are late.
    fn stop_threads(&mut self) -> Vec<String> {
        let crew = &self.shared.crew;
        crew.set_stopping();
        // Wakes the accept loop.
        let mut own = self.addr;
        if own.ip().is_unspecified() {
            own.set_ip(match own {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let _ = TcpStream::connect_timeout(&own, Duration::from_secs(1));
        self.shared.connections.end_reading();
        crew.join("files", HANDLERS);
        self.stop = None;
        self.ping.wake();
        // Handlers whose clients still waited tell them that the node stops.
        crew.join("files", HANDLERS);
        self.shared.connections.end();
        crew.join("", THREADS)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stop.is_some() {
            self.stop_threads();
        }
    }
}

/// Random bits from the system.
fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    config::random(&mut bytes)
        .map_err(|error| StartError::System(format!("no randomness from the system: {error}")))?;
    Ok(bytes)
}

/// Starts a node on bound sockets: opens its data directory and starts its threads. It
/// neither waits for a cluster nor for other nodes.
pub fn start(
    settings: Settings,
    bound: Bound,
    classifier: Box<dyn Classifier>,
) -> Result<Running, StartError> {
    let clock = Clock::start();
    let (crew, endings) = Crew::new(clock);
    let fresh = StorageId(u128::from_le_bytes(random()?));
    let directory = DataDirectory::open(&settings.data_directory, &settings.name, fresh)?;
    directory.set_address(bound.addr)?;
    log::info!(
        "node {}: reading log and files in {}",
        settings.name,
        directory.path().display()
    );
    let (journal, recovered) = Journal::open(directory.path())?;
    let (blobs, held) = Blobs::open(directory.path())?;
    let seed = u64::from_le_bytes(random()?);
    log::info!(
        "node {}: {} log entries, {} blobs, seed {seed:#x}",
        settings.name,
        recovered.entries.len(),
        held.len()
    );
    if settings.crash_stop {
        log::warn!(
            "--crash-stop: in a cluster of 2 to 4 nodes this one goes on without a majority. All of \
             them must have the flag; with 5 and more it has no effect"
        );
    }
    let identity = directory.identity().clone();
    let me = Server {
        node: settings.name.clone(),
        storage: identity.storage,
    };
    let shared = Arc::new(Shared {
        clock,
        crew,
        counters: Counters::default(),
        busy: Busy::default(),
        connections: Connections::default(),
        me: me.clone(),
        cluster: RwLock::new(identity.cluster),
    });
    let start = Start {
        me,
        wall: clock.wall(),
        recovered,
        held,
        seed,
        snapshot_bytes: SNAPSHOT_BYTES,
        crash_stop: settings.crash_stop,
        forming: identity.forming,
    };
    let mut node = Node::new(start, clock.now());
    if settings.join {
        // Until membership says what for.
        let joins = Input::JoinWaits("it is joining".into());
        node.handle(clock.now(), joins);
    }
    let membership = {
        let now = clock.now();
        let me = membership::Identity {
            node: settings.name.clone(),
            storage: identity.storage,
            incarnation: identity.incarnation,
            addr: net::reachable(bound.addr, settings.introducers.first().copied()),
            cluster: identity.cluster,
        };
        let config = membership::Config {
            first_permits: settings.first_permits,
            ..membership::Config::default()
        };
        let introducers = settings.introducers.clone();
        let mut core = Membership::new(
            config,
            me,
            introducers,
            seed.rotate_left(32),
            now,
            clock.wall(),
        );
        core.set_known(identity.members);
        core
    };
    let parts = Parts {
        directory,
        journal,
        blobs: Arc::new(blobs),
        node,
        membership,
        classifier,
    };
    spawn(settings, bound, shared, endings, parts).map_err(StartError::System)
}

/// What the threads are given to own.
struct Parts {
    directory: DataDirectory,
    journal: Journal,
    blobs: Arc<Blobs>,
    node: Node,
    membership: Membership,
    classifier: Box<dyn Classifier>,
}

/// Makes every channel and starts every thread of a node.
fn spawn(
    settings: Settings,
    bound: Bound,
    shared: Arc<Shared>,
    endings: Receiver<Ending>,
    parts: Parts,
) -> Result<Running, String> {
    let waker = Waker::new().map_err(|error| format!("no eventfd: {error}"))?;
    let (commands, commanded) = bounded(ping::COMMANDS_MAX);
    let ping = Handle {
        commands,
        waker: waker.clone(),
    };
    let (stop, stopped) = bounded(0);
    let (events, member_events) = bounded(coord::EVENTS_MAX);
    let (views, newest_view) = bounded(1);
    let (results, device_results) = bounded(coord::RESULTS_MAX);
    let (messages, peer_messages) = bounded(coord::MESSAGES_MAX);
    let (asks, asked) = bounded(coord::ASKS_MAX);
    let (log, writes) = bounded(keep::WRITES_MAX);
    let (disk, keeps) = bounded(keep::KEEPS_MAX);
    let (fetch, fetches) = bounded(fetch::FETCHES_MAX);
    let (prepare, orders) = bounded(prepare::ORDERS_MAX);
    let (work, batches) = bounded(1);
    let (exchanges, dialled) = bounded(dial::EXCHANGES_MAX);
    let Parts {
        directory,
        journal,
        blobs,
        node,
        membership,
        classifier,
    } = parts;
    let crew = &shared.crew;

    let (to, own) = (results.clone(), shared.clone());
    crew.spawn("log", move || keep::run_log(journal, writes, &own, to))?;
    let (to, held) = (results.clone(), blobs.clone());
    crew.spawn("disk", move || keep::run_disk(directory, held, keeps, to))?;
    for number in 0..fetch::FETCHERS {
        let share = settings.repair_share;
        let (from, blobs, to) = (fetches.clone(), blobs.clone(), results.clone());
        let shared = shared.clone();
        crew.spawn(&format!("fetch-{number}"), move || {
            fetch::run(from, blobs, shared, share, to)
        })?;
    }
    let copies = Copies {
        blobs: blobs.clone(),
        shared: shared.clone(),
        asks: asks.clone(),
    };
    if let Some(period) = settings.scrub {
        let (copies, [start]) = (copies.clone(), random().map_err(|error| error.to_string())?);
        crew.spawn("scrub", move || copies.scrub(period, start))?;
    }
    let preparing = Prepare {
        copies: copies.clone(),
        shared: shared.clone(),
        results: results.clone(),
        work,
        manifests: BTreeMap::new(),
        ahead: ahead::Ahead::default(),
    };
    crew.spawn("prepare", move || preparing.run(orders))?;
    let (to, counted) = (results.clone(), shared.clone());
    crew.spawn("infer", move || {
        infer::run(classifier, batches, to, &counted)
    })?;
    for number in 0..dial::DIALLERS {
        let (from, ping) = (dialled.clone(), ping.clone());
        crew.spawn(&format!("dial-{number}"), move || dial::run(from, ping))?;
    }
    let core = Member {
        membership,
        shared: shared.clone(),
        events,
        views,
        outdated: newest_view.clone(),
        keep: disk.clone(),
        view_changed: false,
        joining: None,
        events_logged: 0,
        waiting: VecDeque::new(),
        notes: VecDeque::new(),
        addresses_due: None,
        addresses_noted: None,
    };
    let pinging = Ping {
        core,
        socket: bound.socket,
        waker: waker.clone(),
        commands: commanded,
        exchanges,
        stop: stopped.clone(),
        shared: shared.clone(),
    };
    crew.spawn("ping", move || pinging.run())?;
    let inputs = Inputs {
        stop: stopped,
        events: member_events,
        views: newest_view,
        results: device_results,
        messages: peer_messages,
        asks: asked,
    };
    let devices = Devices {
        ping: ping.clone(),
        log,
        disk,
        fetch,
        prepare,
    };
    let coordinator = Coordinator::new(node, shared.clone(), inputs, devices);
    crew.spawn("coord", move || coordinator.run())?;
    if settings.join {
        // Nobody waits for the answer: a refusal is logged, and `list_self` tells the rest.
        let (reply, _) = bounded(1);
        let request = Request::Join;
        let _ = asks.try_send(Ask::Request { request, reply });
    }
    let service = Arc::new(Files {
        shared: shared.clone(),
        ping,
        messages,
        asks,
        blobs,
        copies,
        models: LocalModels(settings.models),
    });
    let (listener, own) = (bound.listener, shared.clone());
    crew.spawn("files", move || listen::run(listener, own, service))?;
    Ok(Running {
        addr: bound.addr,
        shared,
        endings,
        ping: waker,
        stop: Some(stop),
    })
}

#[cfg(test)]
mod tests;
