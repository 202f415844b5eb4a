//! The names that every part of the system shares: identities, time, versions, views.
//!
//! Decides: what a thing is called and how it is ordered and printed. Leaves to
//! others: every rule about how these values change.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};
use serde::{Deserialize, Serialize};

/// Copies that SDFS keeps of every file while that many members are live.
pub const REPLICAS: usize = 4;
/// Active successors that a member monitors on the ring.
pub const SUCCESSORS: usize = 3;

/// Where a name lies on the ring of 64-bit positions: the first 8 bytes of its BLAKE3
/// digest, big-endian. Members and files share the one ring.
pub fn ring_position(name: &str) -> u64 {
    let digest = blake3::hash(name.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// Monotonic time: nanoseconds since this process (or the simulation) started.
///
/// Never compared between nodes. Cores get it as an argument and never read a clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// The latest time there is; stands for "never" in comparisons.
    pub const MAX: Time = Time(u64::MAX);

    /// Nanoseconds from `earlier` to `self`, zero where `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, span: Duration) -> Time {
        Time(self.0.saturating_add(span.as_nanos() as u64))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, span: Duration) -> Time {
        Time(self.0.saturating_sub(span.as_nanos() as u64))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06}s",
            self.0 / 1_000_000_000,
            self.0 / 1_000 % 1_000_000
        )
    }
}

/// Wall-clock milliseconds since the Unix epoch. Shown to people and stored for
/// them; no decision compares the clocks of two nodes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct WallTime(pub u64);

impl WallTime {
    /// `HH:MM:SS`, UTC.
    pub fn clock(self) -> String {
        let seconds = self.0 / 1000 % 86_400;
        format!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        )
    }
}

/// A node's name: `[A-Za-z0-9._-]{1,63}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Longest name, in bytes.
    pub const LENGTH_MAX: usize = 63;

    /// The node name `name`, or why it cannot be one.
    pub fn new(name: &str) -> Result<NodeId, NameError> {
        // Names become names of folders.
        let folder = matches!(name, "." | "..");
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || folder || name.len() > Self::LENGTH_MAX || !name.chars().all(allowed)
        {
            return Err(NameError::Node(name.into()));
        }
        Ok(NodeId(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An SDFS name: 1 to 1,024 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileName(Arc<str>);

impl FileName {
    /// Longest name, in bytes.
    pub const LENGTH_MAX: usize = 1024;

    /// The SDFS name `name`, or why it cannot be one.
    pub fn new(name: &str) -> Result<FileName, NameError> {
        if name.is_empty() || name.len() > Self::LENGTH_MAX || name.chars().any(char::is_control) {
            return Err(NameError::File(name.into()));
        }
        Ok(FileName(name.into()))
    }

    /// The result file of job `job`: a name that only jobs may write.
    pub fn of_job(job: JobId) -> FileName {
        FileName(format!("{job}.csv").into())
    }

    /// The right labels of the data set `dataset`, by file: where there is such a file, jobs over
    /// that data set are compared with it.
    ///
    /// *Errors*: the data set's name is too long for that.
    pub fn of_labels(dataset: &str) -> Result<FileName, NameError> {
        FileName::new(&format!("labels/{dataset}.csv"))
    }

    /// Whether the name belongs to jobs (`[0-9]+.csv`).
    pub fn is_reserved(&self) -> bool {
        self.0
            .strip_suffix(".csv")
            .is_some_and(|stem| !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_digit()))
    }

    /// The job whose result file this is, where it is one (`0.csv`, not `00.csv`).
    pub fn job(&self) -> Option<JobId> {
        let stem = self.0.strip_suffix(".csv")?;
        let job = JobId(stem.parse().ok()?);
        (job.to_string() == stem).then_some(job)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A name that breaks the rules of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not `[A-Za-z0-9._-]{1,63}`.
    #[error("{0:?} is no node name: use 1 to 63 of the characters A-Z a-z 0-9 . _ -")]
    Node(String),
    /// Empty, too long, or with control characters.
    #[error("{0:?} is no SDFS name: use 1 to 1024 bytes of text without control characters")]
    File(String),
}

/// Identity of a data directory, drawn at random when it is made. A node that
/// comes back with an empty disk has a new one and is a new server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StorageId(pub u128);

impl fmt::Debug for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", (self.0 >> 96) as u32)
    }
}

/// Identity of a cluster, drawn at random by its first node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", (self.0 >> 96) as u32)
    }
}

/// Orders the lives of one node name: raised at each start and at each refutation
/// of a suspicion. The higher one wins (SWIM, section 4.2).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

/// A voter, learner or holder of copies: a name together with its disk.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Server {
    /// The node's name.
    pub node: NodeId,
    /// Its data directory.
    pub storage: StorageId,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.node, self.storage)
    }
}

/// What the cluster believes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// Answers its monitors.
    Alive,
    /// A monitor missed it; it has not been removed yet.
    Suspect,
    /// Removed after agreement of its monitors.
    Failed,
    /// Went of its own will.
    Left,
}

/// One process of the cluster as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub node: NodeId,
    /// Its data directory.
    pub storage: StorageId,
    /// Its newest known life.
    pub incarnation: Incarnation,
    /// Where it listens, TCP and UDP.
    pub addr: SocketAddr,
    /// When it joined, by its own clock; part of the shown process id.
    pub joined: WallTime,
    /// What is believed of it.
    pub state: MemberState,
}

impl Member {
    /// Whether a socket of this member can send to `other`: both IPv4, or both IPv6.
    pub fn reaches(&self, other: &Member) -> bool {
        let is_v4 = |member: &Member| member.addr.ip().to_canonical().is_ipv4();
        is_v4(self) == is_v4(other)
    }

    /// The process id as people see it: `NAME:HH:MM:SS`.
    pub fn process_id(&self) -> String {
        format!("{}:{}", self.node, self.joined.clock())
    }

    /// The name together with the disk.
    pub fn server(&self) -> Server {
        Server {
            node: self.node.clone(),
            storage: self.storage,
        }
    }
}

/// The live members (alive or suspect) as one node sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Grows with each change at this node; not comparable between nodes.
    pub number: u64,
    /// Alive and suspect members by name, the node itself included while it is a member.
    pub members: BTreeMap<NodeId, Member>,
}

impl View {
    /// The member `server`, where it is live with that very disk.
    pub fn server(&self, server: &Server) -> Option<&Member> {
        self.members
            .get(&server.node)
            .filter(|member| member.storage == server.storage)
    }
}

/// A leader's reign; at most one leader in each (Raft, section 5.1).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Term(pub u64);

/// Position in the replicated log, from 1; 0 is before the first entry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Index(pub u64);

/// Names the bytes of one upload, from its first byte to its last copy: the term of
/// the leader that gave it and that leader's counter. Unique in a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId {
    /// Term of the leader that gave the id.
    pub term: Term,
    /// That leader's counter.
    pub counter: u64,
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term.0, self.counter)
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number of a file's version, from 0 without gaps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version(pub u64);

/// BLAKE3 digest of a file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Number of a job, from 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names one command of one client, so that a retry is not carried out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Drawn at random by the client when it starts.
    pub client: u128,
    /// The client's counter.
    pub sequence: u64,
}

/// Seeded randomness of a core: ChaCha8, so that a seed replays on every machine.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(ChaCha8Rng::seed_from_u64(seed))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// The next 128 bits.
    pub fn next_u128(&mut self) -> u128 {
        (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())
    }

    /// A number in `0..bound`; 0 where `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A span in `low..high`.
    pub fn span(&mut self, low: Duration, high: Duration) -> Duration {
        let width = high.saturating_sub(low).as_nanos() as u64;
        low + Duration::from_nanos(self.below(width.max(1)))
    }

    /// True with probability `percent` / 100.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
