//! Thread `coord`: owns the node's core and carries out what it asks for.
//!
//! Decides: the order in which waiting inputs are taken, and that no device holds this
//! thread up: it only ever `try_send`s. What a full queue does not take is refused to the
//! core at once, or kept here where the core expects no answer. Leaves to others: all
//! protocol (`node`), all waiting (the other threads).

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select_biased};

use super::Shared;
use super::ask::Ask;
use super::counters::{add, count};
use super::crew::Ending;
use super::keep::Keep;
use super::peers::Peer;
use super::ping::{Command, Handle, hand_on};
use super::prepare::Order;
use crate::consensus::LogWrite;
use crate::node::Node;
use crate::node::io::{Input, LoadFailure, Output, RequestToken};
use crate::types::{BlobId, Server, View};
use crate::wire::client::Reply;
use crate::wire::peer::PeerMessage;
use crate::wire::schedule::TaskTimes;
use crate::wire::store::Located;

/// Inputs that are taken in one turn, before outputs are carried out and timers may fire.
const TURN_MAX: usize = 64;
/// Answers from devices that wait; a device that finds no room waits.
pub(super) const RESULTS_MAX: usize = 64;
/// Messages of peers that wait; a connection that finds no room waits.
pub(super) const MESSAGES_MAX: usize = 256;
/// Commands that wait; a client that finds no room is told that the node is busy.
pub(super) const ASKS_MAX: usize = 256;
/// Events of membership that wait; membership keeps the others.
pub(super) const EVENTS_MAX: usize = 16;
const NAP: Duration = Duration::from_secs(1);
/// From this on the core is told how long it took for its work: to apply an entry about a million
/// files takes a large part of an election timeout.
const STANDSTILL: Duration = Duration::from_millis(50);

enum Waiting {
    Reply(Sender<Reply>),
    Noted(Sender<()>),
}

/// Where inputs come from.
pub(super) struct Inputs {
    /// Closed when the thread is to end.
    pub(super) stop: Receiver<()>,
    /// Membership's events.
    pub(super) events: Receiver<Input>,
    /// Membership's newest view.
    pub(super) views: Receiver<View>,
    /// Answers from devices.
    pub(super) results: Receiver<Input>,
    /// Messages of peers.
    pub(super) messages: Receiver<Input>,
    /// Commands and uploads.
    pub(super) asks: Receiver<Ask>,
}

/// Where outputs go.
pub(super) struct Devices {
    pub(super) ping: Handle,
    pub(super) log: Sender<LogWrite>,
    pub(super) disk: Sender<Keep>,
    pub(super) fetch: Sender<Vec<Located>>,
    pub(super) prepare: Sender<Order>,
}

/// The thread's state.
pub(super) struct Coordinator {
    node: Node,
    shared: Arc<Shared>,
    inputs: Inputs,
    devices: Devices,
    waiting: BTreeMap<RequestToken, Waiting>,
    next_token: u64,
    peers: BTreeMap<Server, Peer>,
    next_peer: u64,
    /// Orders that a full queue did not take, on their way back to the core.
    refused: VecDeque<Input>,
    /// Blobs to be removed once the disk thread has room.
    removals: Vec<BlobId>,
    /// Orders to membership that it had no room for.
    commands: VecDeque<Command>,
}

impl Coordinator {
    /// A coordinator thread around `node`.
    pub(super) fn new(
        node: Node,
        shared: Arc<Shared>,
        inputs: Inputs,
        devices: Devices,
    ) -> Coordinator {
        Coordinator {
            node,
            shared,
            inputs,
            devices,
            waiting: BTreeMap::new(),
            next_token: 0,
            peers: BTreeMap::new(),
            next_peer: 0,
            refused: VecDeque::new(),
            removals: Vec::new(),
            commands: VecDeque::new(),
        }
    }

    /// Runs until the process stops.
    pub(super) fn run(mut self) -> Result<(), String> {
        let clock = self.shared.clock;
        let mut woken = clock.now();
        loop {
            self.carry_out()?;
            let now = clock.now();
            let span = now.since(woken);
            if span >= STANDSTILL {
                self.node.handle(now, Input::StoodStill(span));
                self.carry_out()?;
            }
            let next = self.next();
            woken = clock.now();
            match next {
                ControlFlow::Break(()) => return Ok(()),
                ControlFlow::Continue(Some(input)) => self.node.handle(clock.now(), input),
                ControlFlow::Continue(None) => {}
            }
            for _ in 1..TURN_MAX {
                let Some(input) = self.next_waiting() else {
                    break;
                };
                self.node.handle(clock.now(), input);
            }
            let now = clock.now();
            if self.node.poll_timeout().is_some_and(|due| due <= now) {
                self.node.handle(now, Input::Timeout);
            }
        }
    }

    /// Waits for the next input until the core's deadline; breaks when the process stops.
    fn next(&mut self) -> ControlFlow<(), Option<Input>> {
        if let Some(input) = self.refused.pop_front() {
            return ControlFlow::Continue(Some(input));
        }
        let longest = match self.removals.is_empty() && self.commands.is_empty() {
            true => NAP,
            false => Duration::from_millis(20),
        };
        let wait = self.shared.clock.until(self.node.poll_timeout(), longest);
        // A closed channel other than `stop` means that its thread has died, which ends the
        // process anyway; until then it must not keep this loop busy.
        let input = select_biased! {
            recv(self.inputs.stop) -> _ => return ControlFlow::Break(()),
            recv(self.inputs.events) -> event => event.ok(),
            recv(self.inputs.views) -> view => view.ok().map(|view| self.take_view(view)),
            recv(self.inputs.results) -> result => result.ok(),
            recv(self.inputs.messages) -> message => message.ok(),
            recv(self.inputs.asks) -> ask => ask.ok().map(|ask| self.take_ask(ask)),
            default(wait) => return ControlFlow::Continue(None),
        };
        if input.is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        ControlFlow::Continue(input)
    }

    /// The next input that is there already.
    fn next_waiting(&mut self) -> Option<Input> {
        if let Ok(event) = self.inputs.events.try_recv() {
            return Some(event);
        }
        if let Ok(view) = self.inputs.views.try_recv() {
            return Some(self.take_view(view));
        }
        if let Ok(result) = self.inputs.results.try_recv() {
            return Some(result);
        }
        if let Ok(message) = self.inputs.messages.try_recv() {
            return Some(message);
        }
        let ask = self.inputs.asks.try_recv().ok()?;
        Some(self.take_ask(ask))
    }

    fn take_ask(&mut self, ask: Ask) -> Input {
        self.next_token += 1;
        let token = RequestToken(self.next_token);
        match ask {
            Ask::Request { request, reply } => {
                self.waiting.insert(token, Waiting::Reply(reply));
                Input::Request { token, request }
            }
            Ask::Corrupt(blob) => Input::Corrupt(blob),
            Ask::Stored { blobs, noted } => {
                self.waiting.insert(token, Waiting::Noted(noted));
                Input::Stored { token, blobs }
            }
        }
    }

    /// Keeps one connection to each other member of the view.
    fn take_view(&mut self, view: View) -> Input {
        let me = &self.shared.me.node;
        self.peers.retain(|server, peer| {
            view.server(server)
                .is_some_and(|member| member.addr == peer.addr)
        });
        let cluster = *self.shared.cluster.read();
        let others = view.members.iter().filter(|(node, _)| *node != me);
        for member in others.map(|(_, member)| member) {
            let (server, Some(cluster)) = (member.server(), cluster) else {
                continue;
            };
            if self.peers.contains_key(&server) {
                continue;
            }
            self.next_peer += 1;
            let (number, ping) = (self.next_peer, self.devices.ping.clone());
            match Peer::start(
                number,
                server.clone(),
                member.addr,
                cluster,
                ping,
                &self.shared,
            ) {
                Ok(peer) => drop(self.peers.insert(server, peer)),
                // The next view tries again; the others go on.
                Err(error) => log::error!("no connection to {}: {error}", member.node),
            }
        }
        Input::View(view)
    }

    /// Carries out all that the core asks for.
    fn carry_out(&mut self) -> Result<(), String> {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Send { to, message } => self.send(&to, message),
                Output::Reply { token, reply } => {
                    if let Some(Waiting::Reply(client)) = self.waiting.remove(&token) {
                        // A client that has gone does not read it.
                        let _ = client.try_send(reply);
                    }
                }
                Output::StoredNoted { token } => {
                    if let Some(Waiting::Noted(client)) = self.waiting.remove(&token) {
                        let _ = client.try_send(());
                    }
                }
                Output::Persist(write) => {
                    let counters = &self.shared.counters;
                    count(&counters.log_writes);
                    add(&counters.log_entries, write.entries.len() as u64);
                    add(&counters.log_snapshots, write.snapshot.is_some().into());
                    // Consensus bounds its writes below the queue's length.
                    let sent = self.devices.log.try_send(write);
                    sent.map_err(|error| format!("the log thread took no write: {error}"))?;
                }
                Output::Fetch(order) => {
                    if let Err(error) = self.devices.fetch.try_send(order) {
                        let order = error.into_inner();
                        let failed = order.iter().map(|located| (located.blob, false));
                        self.refuse(Input::Fetched(failed.collect()));
                    }
                }
                Output::Write { blob, name, job } => {
                    let order = Keep::Write { blob, name, job };
                    if self.devices.disk.try_send(order).is_err() {
                        let result = Err("the disk is busy".into());
                        self.refuse(Input::Written { blob, result });
                    }
                }
                // Where the queue is full the next start says so again.
                Output::Formed => drop(self.devices.disk.try_send(Keep::Formed)),
                Output::Remove(blobs) => self.removals.extend(blobs),
                Output::Run(assignment) => {
                    let now = self.shared.clock.now();
                    self.order(Order::Run(assignment, now));
                }
                Output::Grade {
                    job,
                    result,
                    labels,
                } => self.order(Order::Grade {
                    job,
                    result,
                    labels,
                }),
                Output::Load { files, keep } => self.order(Order::Load(files, keep)),
                Output::Join => self.commands.push_back(Command::Join),
                Output::Leave => self.commands.push_back(Command::Leave),
                Output::Exit => self.shared.crew.end(Ending::Asked),
            }
        }
        if !self.removals.is_empty() {
            let order = Keep::Remove(std::mem::take(&mut self.removals));
            if let Err(error) = self.devices.disk.try_send(order)
                && let Keep::Remove(blobs) = error.into_inner()
            {
                self.removals = blobs;
            }
        }
        if !self.commands.is_empty() {
            hand_on(&mut self.commands, &self.devices.ping.commands);
            self.devices.ping.waker.wake();
        }
        Ok(())
    }

    fn send(&self, to: &Server, message: PeerMessage) {
        match self.peers.get(to) {
            Some(peer) => peer.send(message, &self.shared),
            None => count(&self.shared.counters.messages_lost),
        }
    }

    fn order(&mut self, order: Order) {
        let Err(error) = self.devices.prepare.try_send(order) else {
            return;
        };
        let busy = || "the node is busy".to_string();
        match error.into_inner() {
            Order::Run(assignment, _) => {
                let row = |index| (index, crate::wire::schedule::Outcome::Error(busy()));
                let rows = assignment.inputs.iter().map(|i| row(i.index)).collect();
                let id = assignment.id;
                let times = TaskTimes::default();
                self.refuse(Input::BatchDone { id, rows, times });
            }
            Order::Grade { job, .. } => {
                let accuracy = None;
                self.refuse(Input::Graded { job, accuracy });
            }
            Order::Load(files, _) => self.refuse(Input::ModelLoaded {
                name: files.name,
                digest: files.digest,
                result: Err(LoadFailure::Unread(busy())),
            }),
        }
    }

    fn refuse(&mut self, input: Input) {
        count(&self.shared.counters.orders_refused);
        self.refused.push_back(input);
    }
}
