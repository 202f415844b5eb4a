//! The membership of a node on thread `ping`: where its outputs go.
//!
//! Decides: what is persisted before others hear of it, and that views are conflated.
//! Leaves to others: the protocol (`membership`) and the socket (`ping`).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::Shared;
use super::keep::Keep;
use super::ping::{Command, Core, Exchange, Step, conflate, hand_on};
use crate::membership::{Membership, Output, Stats};
use crate::node::io::Input;
use crate::types::{Time, View};
use crate::wire::datagram::Datagram;

/// How long the disk may take to note the cluster before the node gives up.
const NOTE_PATIENCE: Duration = Duration::from_secs(30);
/// A join that takes longer is spoken of: an introducer that has just started takes 3 s.
const JOIN_SILENCE: Duration = Duration::from_millis(3500);
/// Addresses of members are noted at most this often.
const ADDRESSES_PERIOD: Duration = Duration::from_secs(5);

/// A [`Membership`] and the ways to those who hear of its decisions.
pub(super) struct Member {
    pub(super) membership: Membership,
    pub(super) shared: Arc<Shared>,
    /// To `coord`: joined, refused, left.
    pub(super) events: Sender<Input>,
    /// To `coord`: the newest view.
    pub(super) views: Sender<View>,
    /// The other end of `views`, to take an outdated one back.
    pub(super) outdated: Receiver<View>,
    /// To the disk.
    pub(super) keep: Sender<Keep>,
    /// The view is another than the one handed on last.
    pub(super) view_changed: bool,
    /// When the join under way began, and what was said of it last.
    pub(super) joining: Option<Join>,
    /// How many of the core's events are in the log.
    pub(super) events_logged: u64,
    /// Events that `coord` had no room for.
    pub(super) waiting: VecDeque<Input>,
    /// Notes that the disk had no room for.
    pub(super) notes: VecDeque<Keep>,
    /// When the members' addresses may be noted again; set while the noted ones are old.
    pub(super) addresses_due: Option<Time>,
    /// When they were noted last.
    pub(super) addresses_noted: Option<Time>,
}

/// A join under way.
pub(super) struct Join {
    since: Time,
    /// What `coord` knows that it waits for.
    told: String,
    /// What the log says that it waits for.
    logged: String,
}

impl Member {
    /// Notes `note` before anything that follows it.
    fn keep_now(&mut self, make: impl FnOnce(Sender<()>) -> Keep) -> Result<(), String> {
        let (done, noted) = bounded(1);
        self.keep
            .send_timeout(make(done), NOTE_PATIENCE)
            .map_err(|_| "the disk thread does not take the cluster id".to_string())?;
        noted
            .recv_timeout(NOTE_PATIENCE)
            .map_err(|_| "the disk did not note the cluster id in time".to_string())
    }

    /// Says what a join waits for, where it takes long, and again where that changes.
    fn tell_join(&mut self) {
        let Some(status) = self.membership.status() else {
            self.joining = None;
            return;
        };
        let now = self.shared.clock.now();
        let joining = self.joining.get_or_insert_with(|| Join {
            since: now,
            told: String::new(),
            logged: String::new(),
        });
        if joining.told != status {
            joining.told.clone_from(&status);
            self.waiting.push_back(Input::JoinWaits(status.clone()));
        }
        if now.since(joining.since) >= JOIN_SILENCE && joining.logged != status {
            log::warn!("not joined yet: {status}");
            joining.logged = status;
        }
    }

    /// Logs what has happened to members since the last time.
    fn log_events(&mut self) {
        let recorded = self.membership.events_recorded();
        let fresh = recorded - std::mem::replace(&mut self.events_logged, recorded);
        let events = self.membership.events();
        let skipped = events.len().saturating_sub(fresh as usize);
        for event in events.iter().skip(skipped) {
            log::info!("membership: {event}");
        }
    }

    /// Hands the view on, once for all that changed in a turn.
    fn hand_view(&mut self) {
        if !std::mem::take(&mut self.view_changed) {
            return;
        }
        let view = self.membership.view().clone();
        if self.addresses_due.is_none() {
            let now = self.shared.clock.now();
            let earliest = self.addresses_noted.map_or(now, |at| at + ADDRESSES_PERIOD);
            self.addresses_due = Some(earliest.max(now));
        }
        conflate(&self.views, &self.outdated, view);
    }
}

/// What `stats` shows of membership.
fn counters(stats: &Stats) -> Vec<(&'static str, u64)> {
    let probes = &stats.probes;
    vec![
        ("membership_not_member", stats.not_member),
        ("membership_wrong_cluster", stats.wrong_cluster),
        ("membership_wrong_destination", stats.wrong_destination),
        ("membership_unknown_senders", stats.unknown_senders),
        ("membership_invalid", stats.invalid),
        ("membership_refused_members", stats.refused_members),
        ("pings", probes.probes),
        ("pings_repeated", probes.retried),
        ("pings_unanswered", probes.missed),
        ("pings_for_others_ignored", probes.ignored),
        (
            "round_trip_median_us",
            probes.round_trip_median.as_micros() as u64,
        ),
        (
            "round_trip_max_us",
            probes.round_trip_max.as_micros() as u64,
        ),
        ("accusations", stats.accusations),
        ("refutations", stats.refutations),
        ("removals", stats.removals),
        ("flaps", stats.flaps),
        ("full_exchanges", stats.syncs),
        ("pauses", stats.pauses),
    ]
}

impl Core for Member {
    fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: Datagram) {
        self.membership.handle_datagram(now, from, datagram);
    }

    fn handle_command(&mut self, now: Time, command: Command) {
        match command {
            Command::Join => self.membership.handle_join(now),
            Command::Leave => self.membership.handle_leave(now),
            // Whoever has gone away meanwhile does not read the answers.
            Command::Request { request, reply } => {
                let _ = reply.try_send(self.membership.handle_request(now, request));
            }
            Command::Exchanged { id, result } => self.membership.handle_exchanged(now, id, result),
            Command::ConnectionClosed(node) => {
                self.membership.handle_connection_closed(now, &node);
            }
            Command::Why { name, reply } => {
                let events = self.membership.events().iter();
                let named = events.filter(|event| event.member.as_str() == name);
                let _ = reply.try_send(named.map(ToString::to_string).collect());
            }
            Command::Stats { reply } => {
                let _ = reply.try_send(counters(&self.membership.stats()));
            }
        }
    }

    fn handle_timeout(&mut self, now: Time) {
        self.membership.handle_timeout(now);
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.membership.poll_timeout()
    }

    fn poll_step(&mut self) -> Result<Option<Step>, String> {
        let Some(output) = self.membership.poll_output() else {
            return Ok(None);
        };
        match output {
            Output::Transmit { to, datagram } => return Ok(Some(Step::Transmit(to, datagram))),
            Output::Exchange { id, to, request } => {
                return Ok(Some(Step::Exchange(Exchange { id, to, request })));
            }
            Output::ViewChanged => self.view_changed = true,
            Output::Joined {
                member,
                cluster,
                formed,
            } => {
                self.keep_now(|done| Keep::Cluster {
                    cluster,
                    formed,
                    done,
                })?;
                *self.shared.cluster.write() = Some(cluster);
                log::info!("joined cluster {cluster:?} as {}", member.process_id());
                self.waiting.push_back(Input::Joined {
                    member,
                    cluster,
                    formed,
                });
            }
            Output::JoinRefused { reason } => {
                log::error!("cannot join: {reason}");
                self.waiting
                    .push_back(Input::JoinRefused(reason.to_string()));
            }
            Output::Left => self.waiting.push_back(Input::Left),
            Output::Evicted { reason } => return Err(reason.to_string()),
            Output::Incarnation(incarnation) => {
                self.notes.push_back(Keep::Incarnation(incarnation));
            }
        }
        // At once, and before a view that may follow: `coord` reads events first.
        hand_on(&mut self.waiting, &self.events);
        Ok(Some(Step::Nothing))
    }

    fn retry(&mut self) {
        self.tell_join();
        self.log_events();
        hand_on(&mut self.waiting, &self.events);
        self.hand_view();
        let now = self.shared.clock.now();
        if self.addresses_due.is_some_and(|due| due <= now) && self.membership.is_member() {
            self.addresses_due = None;
            let addresses = self.membership.known_addrs();
            if !addresses.is_empty() {
                self.addresses_noted = Some(now);
                self.notes.push_back(Keep::Members(addresses));
            }
        }
        hand_on(&mut self.notes, &self.keep);
    }
}
