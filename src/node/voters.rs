//! Who should vote: the next single change of the voters towards the size rule.
//!
//! Decides: which server to add or remove next; pure. Leaves to others: whether a
//! change is safe now (`consensus`). The rule (design, Coordinator and standbys): the
//! largest odd number of voters ≤ min(7, live members), one change at a time. In a crash-stop
//! cluster of up to four members all vote: whoever starts again needs the votes of all that were
//! there at last.

use std::collections::BTreeSet;

use crate::types::Server;

/// Most voters.
const VOTERS_MAX: usize = 7;
/// Most members of a crash-stop cluster.
const ALL_VOTE_MAX: usize = 4;

/// The voters after the next change, or none where they are right.
///
/// `live` are the live members, `caught_up` those of them whose log is complete enough
/// to vote, `me` the leader. The dead are replaced before anyone else is changed; a
/// leader that is `leaving` counts as gone and removes itself last. In a crash-stop cluster the
/// dead are removed first: those that are left have the whole log.
pub fn next(
    voters: &BTreeSet<Server>,
    live: &BTreeSet<Server>,
    caught_up: &dyn Fn(&Server) -> bool,
    me: &Server,
    leaving: bool,
    crash_stop: bool,
) -> Option<BTreeSet<Server>> {
    let stays = |server: &&Server| live.contains(*server) && !(leaving && *server == me);
    let staying = live.iter().filter(stays).count();
    if staying == 0 {
        return None;
    }
    let all_vote = crash_stop && staying <= ALL_VOTE_MAX;
    let size = match all_vote {
        true => staying,
        false => largest_odd(staying.min(VOTERS_MAX)),
    };
    let healthy = voters.iter().filter(stays).count();
    let gone = voters.iter().find(|server| !stays(server) && *server != me);
    let mut changed = voters.clone();
    if healthy < size && !(all_vote && gone.is_some()) {
        // A new voter first where one is ready: a removal first would thin the disks that
        // hold the log.
        if let Some(new) = live
            .iter()
            .filter(stays)
            .find(|server| !voters.contains(*server) && caught_up(server))
        {
            changed.insert(new.clone());
            return Some(changed);
        }
        return None;
    }
    let surplus = (healthy > size)
        .then(|| voters.iter().rev().find(|server| *server != me))
        .flatten();
    let own = (leaving && voters.contains(me)).then_some(me);
    let removed = gone.or(surplus).or(own)?;
    changed.remove(removed);
    Some(changed)
}

fn largest_odd(number: usize) -> usize {
    if number.is_multiple_of(2) {
        number - 1
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, StorageId};

    fn server(number: usize) -> Server {
        Server {
            node: NodeId::new(&format!("n{number}")).unwrap(),
            storage: StorageId(1),
        }
    }

    fn servers(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<Server> {
        numbers.into_iter().map(server).collect()
    }

    /// Changes until the rule is content; gives the voters and asserts single steps.
    fn settle(
        mut voters: BTreeSet<Server>,
        live: &BTreeSet<Server>,
        me: usize,
        leaving: bool,
    ) -> BTreeSet<Server> {
        for _ in 0..50 {
            let Some(changed) = next(&voters, live, &|_| true, &server(me), leaving, false) else {
                return voters;
            };
            assert_eq!(
                changed.symmetric_difference(&voters).count(),
                1,
                "{voters:?} -> {changed:?}"
            );
            voters = changed;
        }
        panic!("never settles: {voters:?}");
    }

    #[test]
    fn grows_and_shrinks_to_the_size_rule() {
        for (live, size) in [
            (1, 1),
            (2, 1),
            (3, 3),
            (4, 3),
            (5, 5),
            (6, 5),
            (7, 7),
            (8, 7),
            (20, 7),
        ] {
            let live = servers(0..live);
            assert_eq!(settle(servers([0]), &live, 0, false).len(), size);
            assert_eq!(
                settle(live.iter().take(7).cloned().collect(), &live, 0, false).len(),
                size
            );
        }
    }

    #[test]
    fn the_dead_are_replaced_and_the_leader_stays() {
        let voters = settle(servers(0..5), &servers([0, 1, 2, 5, 6]), 0, false);
        assert_eq!(voters, servers([0, 1, 2, 5, 6]));
        let voters = settle(servers(0..5), &servers([3, 4]), 4, false);
        assert_eq!(voters, servers([4]));
    }

    #[test]
    fn a_leaving_leader_hands_over_and_goes_last() {
        assert_eq!(
            settle(servers([0]), &servers([0, 1]), 0, true),
            servers([1])
        );
        assert_eq!(
            settle(servers(0..3), &servers(0..4), 0, true),
            servers([1, 2, 3])
        );
        assert_eq!(settle(servers([0]), &servers([0]), 0, true), servers([0]));
    }

    #[test]
    fn all_members_of_a_small_crash_stop_cluster_vote() {
        let next = |voters, live| {
            next(&voters, &live, &|_| true, &server(0), false, true).map(|it| it.len())
        };
        assert_eq!(next(servers([0]), servers(0..2)), Some(2));
        assert_eq!(next(servers(0..3), servers(0..4)), Some(4));
        assert_eq!(next(servers(0..4), servers(0..4)), None);
        // The dead go before the new ones come.
        assert_eq!(next(servers(0..4), servers([0, 1, 2, 5])), Some(3));
        assert_eq!(next(servers(0..4), servers(0..6)), Some(5));
        assert_eq!(next(servers(0..5), servers(0..4)), Some(4));
    }

    #[test]
    fn who_has_not_caught_up_waits() {
        assert_eq!(
            next(
                &servers([0]),
                &servers(0..3),
                &|_| false,
                &server(0),
                false,
                false
            ),
            None
        );
    }
}
