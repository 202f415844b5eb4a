//! Pure: which members are to hold a file, by the position of its name on the ring.
//!
//! Decides: the order in which members are considered for a name (the members at and
//! after the name's position, as Cassandra does). Leaves to others: when copies are made,
//! and the truth of who holds what, which is the catalog's.

use std::collections::BTreeSet;

use crate::types::{Member, MemberState, NodeId, Server, View, ring_position};
use crate::wire::store::Target;

/// The members of a view in ring order. Borrowed from the view; made once for many names.
#[derive(Clone, Debug)]
pub struct Ring<'a> {
    members: Vec<(u64, &'a NodeId, &'a Member)>,
    leaving: &'a BTreeSet<Server>,
}

impl<'a> Ring<'a> {
    /// The ring of all members of `view`, suspects and those that are `leaving` included.
    pub fn new(view: &'a View, leaving: &'a BTreeSet<Server>) -> Ring<'a> {
        let place =
            |(node, member): (&'a NodeId, &'a Member)| (ring_position(node.as_str()), node, member);
        let mut members: Vec<_> = view.members.iter().map(place).collect();
        members.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        Ring { members, leaving }
    }

    /// All members in the order in which they are considered for `name`: those at and
    /// after its position, round the ring once.
    pub fn after<'b>(&'b self, name: &str) -> impl Iterator<Item = &'a Member> + use<'a, 'b> {
        let position = ring_position(name);
        let start = self.members.partition_point(|entry| entry.0 < position);
        let (before, after) = self.members.split_at(start);
        after.iter().chain(before).map(|entry| entry.2)
    }

    /// Up to `count` members for a copy of `name`, none of `exclude` among them. Suspects and
    /// those that are leaving come last, so they are chosen only where nobody else is left.
    pub fn targets(&self, name: &str, exclude: &BTreeSet<Server>, count: usize) -> Vec<Target> {
        let chosen = |last: bool| {
            self.after(name)
                .filter(move |member| self.comes_last(member) == last)
                .map(target)
                .filter(|target| !exclude.contains(&target.server))
        };
        chosen(false).chain(chosen(true)).take(count).collect()
    }

    fn comes_last(&self, member: &Member) -> bool {
        let leaves = || self.leaving.contains(&member.server());
        member.state == MemberState::Suspect || (!self.leaving.is_empty() && leaves())
    }
}

/// Up to `count` members of `view` for a copy of `name`; see [`Ring::targets`].
pub fn targets(name: &str, view: &View, exclude: &BTreeSet<Server>, count: usize) -> Vec<Target> {
    Ring::new(view, &BTreeSet::new()).targets(name, exclude, count)
}

/// Where bytes for `member` are sent.
pub fn target(member: &Member) -> Target {
    Target {
        server: member.server(),
        addr: member.addr,
    }
}
