//! Tests of the store's parts, each alone; `node` and the simulation test them together.

mod catalog;
mod download;
mod names;
mod placement;
mod repair;
mod replica;
mod upload;
mod uploads;

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{
    BlobId, Digest, FileName, Incarnation, Member, MemberState, NodeId, Server, StorageId, Term,
    View, WallTime,
};
use crate::wire::store::{CatalogCommand, Upload};

/// Nobody leaves.
pub static NOBODY: BTreeSet<Server> = BTreeSet::new();

pub fn server(number: u64) -> Server {
    Server {
        node: NodeId::new(&format!("n{number}")).expect("a valid name"),
        storage: StorageId(u128::from(number)),
    }
}

pub fn servers(numbers: &[u64]) -> Vec<Server> {
    numbers.iter().copied().map(server).collect()
}

pub fn member(number: u64, state: MemberState) -> Member {
    let Server { node, storage } = server(number);
    Member {
        node,
        storage,
        incarnation: Incarnation(1),
        addr: ([127, 0, 0, 1], 7000 + number as u16).into(),
        joined: WallTime(0),
        state,
    }
}

/// Members `live`, those of `suspect` under suspicion.
pub fn view(number: u64, live: &[u64], suspect: &[u64]) -> View {
    let state = |n| match suspect.contains(&n) {
        true => MemberState::Suspect,
        false => MemberState::Alive,
    };
    let members = live.iter().map(|n| member(*n, state(*n)));
    View {
        number,
        members: members
            .map(|member| (member.node.clone(), member))
            .collect::<BTreeMap<_, _>>(),
    }
}

pub fn name(text: &str) -> FileName {
    FileName::new(text).expect("a valid name")
}

pub fn blob(term: u64, counter: u64) -> BlobId {
    BlobId {
        term: Term(term),
        counter,
    }
}

pub fn upload(text: &str, blob: BlobId, replicas: &[u64]) -> Upload {
    Upload {
        name: name(text),
        blob,
        bytes: 10,
        digest: Digest::of(text.as_bytes()),
        replicas: servers(replicas),
    }
}

pub fn put(text: &str, blob: BlobId, replicas: &[u64]) -> CatalogCommand {
    CatalogCommand::Put(vec![upload(text, blob, replicas)])
}
