//! What membership says: datagrams over UDP, and requests with their replies over TCP.
//!
//! Decides: which messages there are, what each carries, and how large a datagram
//! can get at most. Leaves to others: the encoding (`wire`), and when to send which
//! and what to make of it (`membership`).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, Incarnation, Member, NodeId, Server, StorageId};

/// Longest datagram on the wire, in bytes, so that it fits one Ethernet frame and
/// the smallest IPv6 path without fragments.
pub const DATAGRAM_MAX: usize = 1200;
/// Part of [`DATAGRAM_MAX`] kept for the version byte and for authentication.
pub const DATAGRAM_RESERVED: usize = 48;
/// Bytes that [`Full::size_bound`] may reach.
pub const DATAGRAM_PAYLOAD: usize = DATAGRAM_MAX - DATAGRAM_RESERVED;

/// Longest encodings under bincode's variable integers.
const U64_MAX: usize = 9;
const U128_MAX: usize = 17;
const TAG: usize = 1;
const ADDR_MAX: usize = TAG + 16 + 3;

/// One piece of news about a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The member with the believed state.
    pub member: Member,
    /// Who says so: the member itself, or who suspected or removed it.
    pub by: NodeId,
}

impl Update {
    /// Bytes that it takes in a datagram, never fewer than its encoding.
    pub fn size_bound(&self) -> usize {
        member_bound(&self.member) + name_bound(&self.by)
    }
}

fn name_bound(name: &NodeId) -> usize {
    1 + name.as_str().len()
}

fn member_bound(member: &Member) -> usize {
    name_bound(&member.node) + U128_MAX + U64_MAX + ADDR_MAX + U64_MAX + TAG
}

/// The member that sent a datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// Its name.
    pub node: NodeId,
    /// Its data directory.
    pub storage: StorageId,
    /// Its life.
    pub incarnation: Incarnation,
}

/// Eight bytes that stand for a member where a datagram must be short: from the BLAKE3 digest
/// of its name and storage id. Among 4,096 members two are equal once in 10^12 clusters; then
/// those two are not told apart in brief datagrams, and the full ones go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tag([u8; 8]);

impl Tag {
    /// The tag of `server`.
    pub fn of(server: &Server) -> Tag {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"member ");
        hasher.update(server.node.as_str().as_bytes());
        hasher.update(&server.storage.0.to_be_bytes());
        Tag(first_bytes(&hasher))
    }
}

/// Four bytes that stand for the cluster and the receiver of a brief datagram, so that a
/// process of another cluster, or on a member's old port, does not answer in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address([u8; 4]);

impl Address {
    /// Of the member `to` of `cluster`, or of an introducer.
    pub fn of(cluster: ClusterId, to: Option<&NodeId>) -> Address {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"receiver ");
        hasher.update(&cluster.0.to_be_bytes());
        hasher.update(to.map_or("", NodeId::as_str).as_bytes());
        Address(first_bytes(&hasher))
    }
}

fn first_bytes<const N: usize>(hasher: &blake3::Hasher) -> [u8; N] {
    let mut first = [0; N];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..N]);
    first
}

/// One UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Datagram {
    /// Says everything in words.
    Full(Full),
    /// What members say each second while nothing changes, in few bytes.
    Brief(Brief),
}

/// A datagram between two that know one another. Whoever does not know the sender answers
/// [`Message::Who`], and is told with [`Message::Announce`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// The receiver.
    pub to: Address,
    /// The sender.
    pub from: Tag,
    /// The sender's life.
    pub incarnation: Incarnation,
    /// What is said.
    pub word: Word,
}

/// What a brief datagram says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// As [`Message::Ping`].
    Ping {
        /// Comes back in the answer.
        sequence: u64,
        /// Digest of the sender's view, big-endian.
        digest: [u8; 8],
    },
    /// As [`Message::Ack`], with the digest that the ping had.
    Same {
        /// Of the ping.
        sequence: u64,
    },
    /// As [`Message::Announce`], to an introducer.
    Announce {
        /// Digest of the sender's view, big-endian.
        digest: [u8; 8],
    },
}

/// A datagram that names its sender and its receiver, and carries news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Full {
    /// The sender's cluster; `None` only from an introducer that knows none.
    pub cluster: Option<ClusterId>,
    /// The sender; `None` for an introducer, which is no member.
    pub from: Option<Sender>,
    /// The member that is meant; `None` for an introducer. Another process that got
    /// that member's old port must not answer in its place.
    pub to: Option<NodeId>,
    /// What is said.
    pub message: Message,
    /// News that ride along.
    pub updates: Vec<Update>,
}

impl Full {
    /// Bytes that it takes as a datagram, never fewer than its encoding. Senders keep it within
    /// [`DATAGRAM_PAYLOAD`] by leaving updates for later datagrams.
    pub fn size_bound(&self) -> usize {
        let from = self.from.as_ref();
        let to = self.to.as_ref();
        let vector_length = 3;
        TAG + TAG
            + U128_MAX
            + TAG
            + from.map_or(0, |sender| name_bound(&sender.node) + U128_MAX + U64_MAX)
            + TAG
            + to.map_or(0, name_bound)
            + self.message.size_bound()
            + vector_length
            + self.updates.iter().map(Update::size_bound).sum::<usize>()
    }
}

/// What a datagram says.
///
/// ```text
/// monitor ── Ping ──▶ target        monitor ── PingReq ──▶ helper ── Ping ──▶ target
///         ◀── Ack ───                       ◀── Ack ─────        ◀── Ack ───
///                                           ◀─ Answered ─
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// "Are you there?"
    Ping {
        /// Comes back in the `Ack`.
        sequence: u64,
        /// Digest of the sender's view.
        digest: u64,
    },
    /// "I am." A helper answers a `PingReq` with it at once, so that the monitor
    /// knows that it hears at all.
    Ack {
        /// Of the `Ping` or `PingReq`.
        sequence: u64,
        /// Digest of the sender's view.
        digest: u64,
    },
    /// "I missed the target: probe it too, and tell me if it answers."
    PingReq {
        /// Comes back in `Ack` and `Answered`.
        sequence: u64,
        /// Whom to probe.
        target: NodeId,
        /// Its connection was refused or closed: connect to it at once too.
        connect: bool,
    },
    /// "The target that you asked about answered me."
    Answered {
        /// Of the `PingReq`.
        sequence: u64,
        /// Who answered.
        target: Server,
    },
    /// Nothing but the updates.
    News,
    /// "Who are you?": the answer to a brief datagram of somebody unknown.
    Who,
    /// "I am a member": to whoever asked. Members tell each introducer each period, in brief.
    Announce {
        /// The sender.
        member: Member,
        /// Digest of its view.
        digest: u64,
    },
}

impl Message {
    fn size_bound(&self) -> usize {
        TAG + match self {
            Message::Ping { .. } | Message::Ack { .. } => 2 * U64_MAX,
            Message::PingReq { target, .. } => U64_MAX + name_bound(target) + TAG,
            Message::Answered { target, .. } => U64_MAX + name_bound(&target.node) + U128_MAX,
            Message::News | Message::Who => 0,
            Message::Announce { member, .. } => member_bound(member) + U64_MAX,
        }
    }
}

/// What membership asks over TCP; each is answered by one [`MembershipReply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembershipRequest {
    /// "Let me in": to an introducer, or to a member known from before.
    Join(JoinRequest),
    /// Full exchange of what two members believe.
    Sync {
        /// The asker's cluster.
        cluster: ClusterId,
        /// The asker.
        from: Sender,
        /// All that it believes, the removed ones included.
        updates: Vec<Update>,
    },
    /// The probe of last resort: "is this member there?"
    Probe {
        /// The asker's cluster.
        cluster: ClusterId,
        /// Who is meant.
        target: Server,
    },
}

/// A wish to become a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The newcomer as it would like to be known.
    pub member: Member,
    /// The cluster that its data directory belongs to, where it does.
    pub cluster: Option<ClusterId>,
    /// The asked introducer is the first in the newcomer's list; only that one may
    /// permit a new cluster.
    pub first: bool,
}

/// The answer to a [`MembershipRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembershipReply {
    /// "You are in."
    Welcome {
        /// The cluster.
        cluster: ClusterId,
        /// The newcomer's incarnation from now on: above all that was ever seen of its name.
        incarnation: Incarnation,
        /// The members, and removed ones.
        updates: Vec<Update>,
    },
    /// "There is no cluster: make its id and be its first member."
    Form {
        /// The newcomer's incarnation from now on.
        incarnation: Incarnation,
    },
    /// "Ask again soon."
    Wait(WaitReason),
    /// "No."
    Refused(JoinRefusal),
    /// What the asked member believes, after it merged the asker's belief.
    Synced {
        /// All that it believes, the removed ones included.
        updates: Vec<Update>,
    },
    /// "The target is here."
    Present,
    /// The asked process is no member, or not the one that was meant.
    Absent,
}

/// Why a join has to wait.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
pub enum WaitReason {
    /// The introducer has just started and gives the members time to announce themselves.
    #[error("it has just started and waits for members to announce themselves")]
    Starting,
    /// Another node is about to make the cluster.
    #[error("another node is forming the cluster")]
    Forming,
    /// No member is known, and this introducer may not permit a new cluster.
    #[error("it knows no member and is not the first introducer, which alone may start a cluster")]
    NoMembers,
    /// A cluster is known, but all its members are silent, and the newcomer is not of it.
    #[error(
        "all members of the cluster are silent; start one of them (or restart the introducer for a new cluster)"
    )]
    MembersSilent,
    /// The holder of the name is being probed.
    #[error("the present holder of the name is being probed")]
    ProbingHolder,
    /// Too many joins at once, or the cluster has as many members as it can have.
    #[error("it is busy")]
    Busy,
}

/// Why a join is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    /// A live process with another data directory has the name.
    #[error(
        "the name is in use by a live node at {holder}: choose another --name, or stop that node"
    )]
    NameInUse {
        /// Where that process listens.
        holder: SocketAddr,
    },
    /// The data directory belongs to another cluster.
    #[error(
        "the data directory belongs to cluster {own:?}, but the introducer serves cluster {served:?}: \
         start an introducer for the members of that cluster; with an empty --data-dir this node would \
         join the other one and leave its files behind"
    )]
    WrongCluster {
        /// The newcomer's.
        own: ClusterId,
        /// The introducer's.
        served: ClusterId,
    },
    /// The newcomer listens on IPv4 and a member on IPv6, or the other way round: their sockets
    /// could not reach one another.
    #[error(
        "this node listens at {own} and a member of the cluster at {member}, and IPv4 and IPv6 do not mix: \
         start it with a --listen address of the members' kind"
    )]
    OtherNetwork {
        /// The newcomer's address.
        own: SocketAddr,
        /// A member's.
        member: SocketAddr,
    },
    /// The request makes no sense to the asked process.
    #[error("the request is not valid")]
    Invalid,
}
