//! When the views of real nodes change, asked of them as any client would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use dlc::console::client::{Client, ClientError};
use dlc::wire::client::{Refusal, Reply, Request};

/// Time between two questions to one node.
const GAP: Duration = Duration::from_millis(5);

/// A node that is asked.
#[derive(Clone)]
pub struct Observer {
    pub name: String,
    pub addr: SocketAddr,
}

/// The names of the members that the node of `client` sees; none before it has joined.
fn members(client: &mut Client) -> Vec<String> {
    match client.request(&Request::Members) {
        Ok(Reply::Members(members)) => members.iter().map(|it| it.name.to_string()).collect(),
        Err(ClientError::Refused(Refusal::NotJoined | Refusal::Joining(_))) => Vec::new(),
        other => panic!("{} does not name its members: {other:?}", client.addr()),
    }
}

/// Lets `fail` happen; how long until each observer has none of `victims` in its view, the
/// slowest one's time. `None`: not within `limit`.
pub fn known_to_all(
    observers: &[Observer],
    victims: &[String],
    limit: Duration,
    fail: impl FnOnce(),
) -> Option<Duration> {
    let ready = Barrier::new(observers.len() + 1);
    let watch = |observer: &Observer| -> Option<Instant> {
        let mut client = Client::new(observer.addr);
        members(&mut client);
        ready.wait();
        let started = Instant::now();
        while started.elapsed() < limit {
            let seen = members(&mut client);
            assert!(seen.contains(&observer.name), "an observer is a member");
            if victims.iter().all(|victim| !seen.contains(victim)) {
                return Some(Instant::now());
            }
            std::thread::sleep(GAP);
        }
        None
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = observers
            .iter()
            .map(|it| scope.spawn(|| watch(it)))
            .collect();
        ready.wait();
        let start = Instant::now();
        fail();
        let times: Option<Vec<Instant>> = handles
            .into_iter()
            .map(|handle| handle.join().expect("the observer answers"))
            .collect();
        let last = times?.into_iter().max()?;
        Some(last.duration_since(start))
    })
}

/// Waits until each observer sees exactly `names`; false where that takes longer than `limit`.
pub fn agree(observers: &[Observer], names: &[String], limit: Duration) -> bool {
    let end = Instant::now() + limit;
    let mut wanted: Vec<String> = names.to_vec();
    wanted.sort();
    observers.iter().all(|observer| {
        let mut client = Client::new(observer.addr);
        loop {
            let mut seen = members(&mut client);
            seen.sort();
            if seen == wanted {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(4 * GAP);
        }
    })
}

/// The counters of a node.
pub fn stats(addr: SocketAddr) -> BTreeMap<String, u64> {
    match Client::new(addr).request(&Request::Stats) {
        Ok(Reply::Stats(stats)) => stats.into_iter().collect(),
        other => panic!("{addr} does not tell its counters: {other:?}"),
    }
}

/// The sum of counter `name` over all observers.
pub fn total(observers: &[Observer], name: &str) -> u64 {
    let values = observers.iter().map(|observer| {
        let stats = stats(observer.addr);
        *stats
            .get(name)
            .unwrap_or_else(|| panic!("no counter {name}"))
    });
    values.sum()
}
