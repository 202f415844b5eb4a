//! What the servers of the replicated log say to each other, and what they log.
//!
//! Decides: the content of each message and of a log entry. Leaves to others: framing,
//! versions and encryption (the rest of `wire`), and what a server does with a message
//! (`consensus`). A message may be lost, repeated, delayed and overtaken.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::{Index, Server, Term};

/// What one place of the log holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// Nothing; a new leader commits its predecessors' entries with it (Raft, section 8).
    Empty,
    /// The voters from here on, sorted and without repeats.
    Voters(Vec<Server>),
    /// A command to the state machines, opaque to consensus.
    Command(#[serde(with = "super::bytes")] Arc<[u8]>),
}

impl Payload {
    /// Roughly the bytes that it takes on the network.
    pub fn size(&self) -> usize {
        match self {
            Payload::Empty => 0,
            Payload::Voters(voters) => voters.iter().map(|v| v.node.as_str().len() + 20).sum(),
            Payload::Command(command) => command.len(),
        }
    }
}

/// One place of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Reign of the leader that made it.
    pub term: Term,
    /// Its place.
    pub index: Index,
    /// What it holds.
    pub payload: Payload,
}

/// The applied state up to an entry, in place of that entry and all before it (Raft, section 7).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last entry that is in it.
    pub index: Index,
    /// Term of that entry.
    pub term: Term,
    /// The voters in force there, sorted.
    pub voters: Vec<Server>,
    /// The state machines, opaque to consensus.
    #[serde(with = "super::bytes")]
    pub state: Arc<[u8]>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Snapshot { index, term, .. } = self;
        let bytes = self.state.len();
        write!(
            f,
            "Snapshot({index:?}, {term:?}, {:?}, {bytes} bytes)",
            self.voters
        )
    }
}

/// What a server promises and must not forget: on disk before any message that shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// The newest term that the server has heard of.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<Server>,
}

/// One message from a server to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The sender's term, on its disk when the message leaves.
    pub term: Term,
    /// What it says.
    pub content: Content,
}

/// What a server that asks for votes says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidacy {
    /// Its last entry.
    pub last_index: Index,
    /// Term of its last entry.
    pub last_term: Term,
    /// It goes on without a majority and lacks nothing that was answered: a longer log of a
    /// server that does not know what was answered is no reason to refuse.
    pub insists: bool,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// "Would you vote for me in the term after `Message::term`?" (thesis, section 9.6)
    PreVote(Candidacy),
    /// The answer to [`Content::PreVote`]; promises nothing.
    PreVoteReply {
        /// The asker's term when it asked.
        asked: Term,
        /// Whether the vote would be given.
        granted: bool,
    },
    /// "Vote for me in `Message::term`." (Raft, section 5.2)
    Vote(Candidacy),
    /// The answer to [`Content::Vote`]. A vote that is granted is on the voter's disk.
    VoteReply {
        /// Whether the vote was given.
        granted: bool,
    },
    /// The leader's entries, or none: then a heartbeat and a probe (Raft, section 5.3).
    Append {
        /// The place before the first entry.
        previous_index: Index,
        /// Term of the entry at `previous_index`, 0 before the first.
        previous_term: Term,
        /// Entries from `previous_index + 1` on, without gap.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
        /// The leader's newest round of confirmation (thesis, section 6.4).
        round: u64,
    },
    /// The log agrees with the leader's.
    Appended {
        /// Up to here the entries are the leader's **and** on the sender's disk.
        matched: Index,
        /// Up to here the entries are the leader's; a crash may still lose some.
        verified: Index,
        /// The newest round seen in this term.
        round: u64,
    },
    /// A part of the leader's snapshot, or none: then a probe. For a server that lacks entries
    /// which the leader has no more (Raft, section 7).
    Snapshot {
        /// The last entry that is in it.
        index: Index,
        /// Term of that entry.
        last_term: Term,
        /// The voters in force there.
        voters: Vec<Server>,
        /// Length of the whole state, in bytes.
        bytes: u64,
        /// Where the part begins.
        offset: u64,
        /// Bytes of the state.
        #[serde(with = "super::bytes")]
        part: Arc<[u8]>,
        /// The leader's newest round of confirmation.
        round: u64,
    },
    /// How much of a snapshot has come; where all of it has, it is on its way to the disk.
    SnapshotReceived {
        /// The last entry that is in it.
        index: Index,
        /// Bytes that have come, from the first on.
        offset: u64,
        /// The newest round seen in this term.
        round: u64,
    },
    /// The sender has no entry like the one before the appended ones, or is in a newer term.
    Rejected {
        /// `previous_index` of the refused append.
        previous_index: Index,
        /// The last place that may agree with the leader's log.
        hint_index: Index,
        /// The sender's term at `hint_index`.
        hint_term: Term,
        /// The newest round seen in this term.
        round: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, StorageId};

    #[test]
    fn an_append_comes_back_from_its_bytes() {
        let voter = Server {
            node: NodeId::new("n1").unwrap(),
            storage: StorageId(7),
        };
        let payloads = [
            Payload::Empty,
            Payload::Voters(vec![voter]),
            Payload::Command(vec![9; 1000].into()),
        ];
        let entries = payloads.into_iter().zip(5..).map(|(payload, index)| Entry {
            term: Term(3),
            index: Index(index),
            payload,
        });
        let message = Message {
            term: Term(4),
            content: Content::Append {
                previous_index: Index(4),
                previous_term: Term(2),
                entries: entries.collect(),
                commit: Index(4),
                round: 8,
            },
        };
        let config = bincode::config::standard();
        let bytes = bincode::serde::encode_to_vec(&message, config).unwrap();
        assert!(bytes.len() < 1100, "{} bytes", bytes.len());
        let (back, used) = bincode::serde::decode_from_slice::<Message, _>(&bytes, config).unwrap();
        assert_eq!((back, used), (message, bytes.len()));
    }
}
