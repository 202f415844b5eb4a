//! Which members a name is placed on.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{server, servers, view};
use crate::store::targets;
use crate::types::{Server, ring_position};

fn placed(name: &str, live: &[u64], suspect: &[u64], exclude: &[u64], count: usize) -> Vec<Server> {
    let exclude: BTreeSet<Server> = servers(exclude).into_iter().collect();
    let targets = targets(name, &view(1, live, suspect), &exclude, count);
    targets.into_iter().map(|target| target.server).collect()
}

#[test]
fn ring_positions_are_the_first_bytes_of_blake3() {
    // b3sum of the empty input starts with af1349b9f5f9a1a6.
    assert_eq!(ring_position(""), 0xaf13_49b9_f5f9_a1a6);
}

#[test]
fn members_at_and_after_the_name_are_chosen_round_the_ring() {
    let live = [0, 1, 2, 3, 4, 5, 6];
    let mut ring: Vec<(u64, Server)> = live
        .iter()
        .map(|n| (ring_position(server(*n).node.as_str()), server(*n)))
        .collect();
    ring.sort();
    for name in ["a", "b", "c", "lenet0.png", "n3"] {
        let position = ring_position(name);
        let start = ring.iter().position(|(p, _)| *p >= position).unwrap_or(0);
        let expected: Vec<Server> = (0..4).map(|i| ring[(start + i) % 7].1.clone()).collect();
        assert_eq!(placed(name, &live, &[], &[], 4), expected, "{name}");
    }
    assert_eq!(
        placed("n3", &live, &[], &[], 1),
        [server(3)],
        "at its own position"
    );
}

#[test]
fn suspects_are_chosen_only_where_nobody_else_is_left() {
    let live = [0, 1, 2, 3, 4, 5];
    let chosen = placed("f", &live, &[1, 4], &[], 4);
    assert!(!chosen.contains(&server(1)) && !chosen.contains(&server(4)));
    let chosen = placed("f", &live, &[0, 1, 4], &[], 4);
    assert_eq!(chosen.len(), 4);
    assert!(
        [0, 1, 4].map(server).contains(&chosen[3]),
        "suspects come last"
    );
    assert_eq!(placed("f", &live, &[], &live, 4), []);
    assert_eq!(placed("f", &live, &[], &[0, 1, 2], 4).len(), 3);
    assert_eq!(placed("f", &[], &[], &[], 4), []);
}

proptest! {
    /// A join or a leave moves at most one of the targets of a name.
    #[test]
    fn unrelated_changes_leave_placements_alone(name: String, others in 5u64..40, new in 100u64..200) {
        let mut live: Vec<u64> = (0..others).collect();
        let before = placed(&name, &live, &[], &[], 4);
        live.push(new);
        let after = placed(&name, &live, &[], &[], 4);
        let kept: Vec<&Server> = before.iter().filter(|s| after.contains(s)).collect();
        if after.contains(&server(new)) {
            prop_assert_eq!(kept, before[..3].iter().collect::<Vec<_>>());
        } else {
            prop_assert_eq!(before, after);
        }
    }
}
