//! `leave`: first the copies and the leadership go to others, then this node.
//!
//! Decides: what has to be elsewhere before this node goes, and how long it waits for that.
//! Leaves to others: making the copies (`store::repair` at the coordinator, which is told again
//! and again), a new leader (`voters`), and telling the members (`membership`).

use std::time::Duration;

use super::Node;
use super::io::{Output, RequestToken};
use crate::types::{REPLICAS, Time};
use crate::wire::client::Reply;
use crate::wire::peer::PeerMessage;
use crate::wire::store::StoreMessage;

/// Without progress for so long, and what the largest file takes, the node just leaves.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes a second that copying a file makes at the very least.
const BYTES_PER_SECOND_MIN: u64 = 4 << 20;
/// Time between two looks at what is left, and between two words to the coordinator.
const LOOK_TIME: Duration = Duration::from_millis(250);
/// A client is told for how many files it waits after so long, and asks again.
const TELL_TIME: Duration = Duration::from_secs(2);

/// `leave` was asked for.
pub(super) struct Leaving {
    /// Who waits, and when they are told how it goes.
    clients: Vec<(RequestToken, Time)>,
    /// Versions that would have too few copies without this node's.
    left: usize,
    look_at: Time,
    /// When the node leaves whatever is left.
    give_up: Time,
    /// Membership has been told to leave.
    told: bool,
}

impl Leaving {
    /// When the next step is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let tell = self.clients.iter().map(|(_, at)| *at).min();
        let steps = [Some(self.look_at), Some(self.give_up), tell];
        steps.into_iter().flatten().min().filter(|_| !self.told)
    }
}

impl Node {
    pub(super) fn leave(&mut self, token: RequestToken) {
        if self.joined.is_none() {
            // Nobody to tell: the process just ends.
            self.reply(token, Reply::Left { short: 0 });
            return self.outputs.push_back(Output::Exit);
        }
        let now = self.now;
        let leaving = self.leaving.get_or_insert(Leaving {
            clients: Vec::new(),
            left: usize::MAX,
            look_at: now,
            give_up: now + PATIENCE,
            told: false,
        });
        leaving.clients.push((token, now + TELL_TIME));
    }

    /// Goes once nothing depends on this node any more, or nothing has moved for long.
    pub(super) fn hand_over(&mut self) {
        let now = self.now;
        let Some(mut leaving) = self.leaving.take_if(|leaving| !leaving.told) else {
            return;
        };
        if leaving.look_at <= now {
            leaving.look_at = now + LOOK_TIME;
            let (left, largest) = self.needed_copies();
            if left < leaving.left {
                let copying = Duration::from_secs(largest / BYTES_PER_SECOND_MIN);
                leaving.give_up = now + PATIENCE + copying;
            }
            leaving.left = left;
            self.tell_leader(PeerMessage::Store(StoreMessage::Leaving));
        }
        let is_late = |(_, at): &mut (RequestToken, Time)| *at <= now;
        for (token, _) in leaving.clients.extract_if(.., is_late) {
            let left = leaving.left as u64;
            self.reply(token, Reply::Leaving { left });
        }
        let leads_others = self.leading.is_some() && self.view.members.len() > 1;
        let is_free = leaving.left == 0 && !leads_others;
        if is_free || leaving.give_up <= now {
            leaving.told = true;
            self.outputs.push_back(Output::Leave);
        }
        self.leaving = Some(leaving);
    }

    /// The members know that this node leaves.
    pub(super) fn handle_left(&mut self) {
        if let Some(leaving) = self.leaving.take() {
            let short = leaving.left as u64;
            for (token, _) in leaving.clients {
                self.reply(token, Reply::Left { short });
            }
        }
        self.joined = None;
        self.outputs.push_back(Output::Exit);
    }

    /// How many versions would have too few live copies without this node's, and the bytes of
    /// the largest of them.
    fn needed_copies(&self) -> (usize, u64) {
        let members = self.view.members.len();
        let wanted = REPLICAS.min(members.saturating_sub(1));
        let held = self.state.catalog.held_by(&self.me);
        let needed = held.filter(|record| {
            let holders = record.replicas.iter();
            let others = holders.filter(|server| **server != self.me);
            others
                .filter(|server| self.view.server(server).is_some())
                .count()
                < wanted
        });
        needed.fold((0, 0), |(count, largest), record| {
            (count + 1, record.bytes.max(largest))
        })
    }
}
