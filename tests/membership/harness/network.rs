//! Time, datagrams and connections between the processes, from one seed.
//!
//! Decides: when each datagram, exchange and timer happens. A packet is lost with the cluster's
//! `loss`, whatever it belongs to. TCP is modelled by what loss does to it: the handshake has one
//! try within a dialler's 800 ms (the next SYN would follow after 1 s); request and reply are one
//! segment each, sent again after 200 and 600 ms; who has no reply 1 s after the handshake gives
//! up. Leaves to others: congestion, segments of long messages.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::time::Duration;

use dlc::membership::introducer::IntroducerOutput;
use dlc::membership::{ExchangeError, ExchangeId, Output};
use dlc::types::{NodeId, Time};
use dlc::wire::datagram::{
    DATAGRAM_MAX, DATAGRAM_RESERVED, Datagram, MembershipReply, MembershipRequest,
};
use dlc::wire::encode_datagram;

use super::{Cluster, Power};

/// A dialler's patience for the handshake, and after it for the answer.
const CONNECT: Duration = millis(800);
const ANSWER: Duration = millis(1000);
/// When a segment is sent, counted from the first time.
const SENDS: [Duration; 3] = [millis(0), millis(200), millis(600)];

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[derive(Clone, Debug)]
pub(super) enum Happening {
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        datagram: Datagram,
    },
    Request {
        from: SocketAddr,
        to: SocketAddr,
        id: ExchangeId,
        boot: u64,
        request: MembershipRequest,
        /// When the asker gives up.
        patience: Time,
    },
    Result {
        from: SocketAddr,
        to: SocketAddr,
        id: ExchangeId,
        boot: u64,
        result: Result<MembershipReply, ExchangeError>,
    },
    Closed {
        to: SocketAddr,
        node: NodeId,
    },
    Wake(SocketAddr),
}

/// A happening with its time; the earliest is the greatest.
pub(super) struct Planned {
    at: Time,
    tie: u64,
    happening: Box<Happening>,
}

impl Planned {
    fn place(&self) -> (Time, u64) {
        (self.at, self.tie)
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Planned) -> Ordering {
        other.place().cmp(&self.place())
    }
}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Planned) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Planned) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Planned {}

impl Cluster {
    pub(super) fn later(&mut self, delay: Duration, happening: Happening) {
        self.plan(self.now + delay, happening);
    }

    fn plan(&mut self, at: Time, happening: Happening) {
        self.tie += 1;
        self.queue.push(Planned {
            at,
            tie: self.tie,
            happening: Box::new(happening),
        });
    }

    /// Lets the next thing happen; false where nothing does until `end`.
    pub(super) fn step(&mut self, end: Time) -> bool {
        if self.queue.peek().is_none_or(|next| next.at > end) {
            return false;
        }
        let Planned { at, happening, .. } = self.queue.pop().expect("there");
        self.now = self.now.max(at);
        self.at_once = match self.at_once {
            (time, count) if time == self.now => (time, count + 1),
            _ => (self.now, 0),
        };
        let bound = 1000 * (self.nodes.len() as u64 + 100);
        assert!(self.at_once.1 < bound, "time stands still: {happening:?}");
        self.happen(*happening);
        true
    }

    fn happen(&mut self, happening: Happening) {
        let to = match &happening {
            Happening::Datagram { to, .. }
            | Happening::Request { to, .. }
            | Happening::Result { to, .. }
            | Happening::Closed { to, .. }
            | Happening::Wake(to) => *to,
        };
        if self.introducers.contains_key(&to) {
            self.happen_at_introducer(to, happening);
            return;
        }
        let now = self.now;
        let Some(process) = self.nodes.get_mut(&to) else {
            return self.refuse(happening);
        };
        if process.power == Power::On && process.paused_until > now {
            // What came in the meantime is read before timers fire.
            let timer = u64::from(matches!(happening, Happening::Wake(_)));
            let at = process.paused_until + Duration::from_nanos(timer);
            self.plan(at, happening);
            return;
        }
        match (process.power, happening) {
            (Power::On, happening) => self.happen_at_node(to, happening),
            (Power::Crashed, happening) => self.refuse(happening),
            (
                Power::Silent,
                Happening::Request {
                    from,
                    id,
                    boot,
                    patience,
                    ..
                },
            ) => {
                self.time_out(from, id, boot, patience);
            }
            (Power::Silent, _) => {}
        }
    }

    fn happen_at_node(&mut self, to: SocketAddr, happening: Happening) {
        let now = self.now;
        let process = self.nodes.get_mut(&to).expect("node");
        match happening {
            Happening::Datagram { from, datagram, .. } => {
                process.core.handle_datagram(now, from, datagram);
            }
            Happening::Request {
                from,
                id,
                boot,
                request,
                patience,
                ..
            } => {
                let reply = process.core.handle_request(now, request);
                self.answer(to, from, id, boot, reply, patience);
            }
            Happening::Result {
                id, boot, result, ..
            } if boot == process.boot => process.core.handle_exchanged(now, id, result),
            Happening::Closed { node, .. } => {
                process.core.handle_connection_closed(now, &node);
            }
            Happening::Wake(_) if process.wake.is_some_and(|wake| wake <= now) => {
                process.wake = None;
                process.core.handle_timeout(now);
            }
            _ => return,
        }
        self.settle(to);
    }

    fn happen_at_introducer(&mut self, to: SocketAddr, happening: Happening) {
        let now = self.now;
        let meeting = self.introducers.get_mut(&to).expect("introducer");
        if !meeting.up {
            return self.refuse(happening);
        }
        match happening {
            Happening::Datagram { from, datagram, .. } => {
                meeting.core.handle_datagram(now, from, datagram);
            }
            Happening::Request {
                from,
                id,
                boot,
                request,
                ..
            } => {
                meeting.next_token += 1;
                let token = meeting.next_token;
                meeting.tokens.insert(token, (from, id, boot));
                meeting.core.handle_request(now, token, request);
            }
            Happening::Wake(_) => {
                meeting.wake = None;
                meeting.core.handle_timeout(now);
            }
            Happening::Result { .. } | Happening::Closed { .. } => {}
        }
        self.settle_introducer(to);
    }

    /// Nothing runs at the address of `happening`.
    fn refuse(&mut self, happening: Happening) {
        let Happening::Request {
            from, to, id, boot, ..
        } = happening
        else {
            return;
        };
        let result = Happening::Result {
            from: to,
            to: from,
            id,
            boot,
            result: Err(ExchangeError::Refused),
        };
        let delay = self.rng.span(self.delay.0, self.delay.1);
        self.later(delay, result);
    }

    fn settle_introducer(&mut self, addr: SocketAddr) {
        loop {
            let meeting = self.introducers.get_mut(&addr).expect("introducer");
            let Some(output) = meeting.core.poll_output() else {
                break;
            };
            self.trace.note(self.now, addr, &output);
            match output {
                IntroducerOutput::Transmit { to, datagram } => self.send(addr, to, datagram),
                IntroducerOutput::Reply { token, reply } => {
                    let asked = meeting.tokens.remove(&token);
                    let (to, id, boot) = asked.expect("each request is answered once");
                    let patience = self.now + ANSWER;
                    self.answer(addr, to, id, boot, reply, patience);
                }
            }
        }
        let thorough = self.is_thorough();
        let meeting = self.introducers.get_mut(&addr).expect("introducer");
        if thorough {
            meeting.core.check_invariants();
        }
        let due = meeting.core.poll_timeout();
        if let Some(due) = due.filter(|due| meeting.wake.is_none_or(|wake| wake > *due)) {
            meeting.wake = Some(due);
            self.plan(due.max(self.now), Happening::Wake(addr));
        }
    }

    /// Whether this step is one after which invariants are checked; always in small clusters.
    fn is_thorough(&mut self) -> bool {
        self.steps += 1;
        self.metered && (self.nodes.len() <= 16 || self.steps.is_multiple_of(1024))
    }

    /// Drains the outputs of a node and arms its timer: the contract's second half.
    pub(super) fn settle(&mut self, addr: SocketAddr) {
        loop {
            let process = self.nodes.get_mut(&addr).expect("node");
            let Some(output) = process.core.poll_output() else {
                break;
            };
            self.trace.note(self.now, addr, &output);
            match output {
                Output::Transmit { to, datagram } => self.send(addr, to, datagram),
                Output::Exchange { id, to, request } => self.ask(addr, to, id, request),
                Output::ViewChanged => self.compare(addr),
                Output::Joined { cluster, .. } => {
                    process.persisted.cluster = Some(cluster);
                    process.outcome.push(output);
                }
                Output::Incarnation(incarnation) => {
                    assert!(incarnation > process.persisted.incarnation);
                    process.persisted.incarnation = incarnation;
                    process.outcome.push(output);
                }
                Output::Left | Output::Evicted { .. } => {
                    process.power = Power::Crashed;
                    process.outcome.push(output);
                }
                Output::JoinRefused { .. } => process.outcome.push(output),
            }
        }
        let thorough = self.is_thorough();
        let process = self.nodes.get_mut(&addr).expect("node");
        if thorough {
            process.core.check_invariants();
        }
        let due = process.core.poll_timeout();
        if let Some(due) = due.filter(|due| process.wake.is_none_or(|wake| wake > *due)) {
            process.wake = Some(due);
            self.plan(due.max(self.now), Happening::Wake(addr));
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, datagram: Datagram) {
        self.traffic.datagrams += 1;
        if self.metered {
            let size = encode_datagram(&datagram).expect("short enough").len();
            assert!(size <= DATAGRAM_MAX - DATAGRAM_RESERVED, "{size} bytes");
            if let Datagram::Full(full) = &datagram {
                assert!(size <= full.size_bound() + 1, "it is an upper bound");
            }
            self.traffic.bytes += size as u64;
        }
        if self.cut.contains(&(from, to)) || self.rng.chance(self.loss) {
            return;
        }
        let twice = self.rng.chance(self.duplicates);
        if twice {
            let datagram = datagram.clone();
            self.deliver(from, to, datagram);
        }
        self.deliver(from, to, datagram);
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, datagram: Datagram) {
        let delay = self.rng.span(self.delay.0, self.delay.1);
        self.later(delay, Happening::Datagram { from, to, datagram });
    }

    fn ask(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        id: ExchangeId,
        request: MembershipRequest,
    ) {
        self.traffic.exchanges += 1;
        let boot = self.nodes[&from].boot;
        let probe = matches!(request, MembershipRequest::Probe { .. });
        self.connects.tried += u64::from(probe);
        let works = !probe || self.probes_connect;
        if !works || self.is_blocked(from, to) || self.is_lost() || self.is_lost() {
            let patience = self.now + CONNECT;
            return self.time_out(from, id, boot, patience);
        }
        let connected = self.now + self.rng.span(self.delay.0, self.delay.1) * 2;
        let patience = connected + ANSWER;
        match self.segment(connected) {
            Some(at) if at <= patience => {
                let happening = Happening::Request {
                    from,
                    to,
                    id,
                    boot,
                    request,
                    patience,
                };
                self.plan(at, happening);
            }
            _ => self.time_out(from, id, boot, patience),
        }
    }

    fn answer(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        id: ExchangeId,
        boot: u64,
        reply: MembershipReply,
        patience: Time,
    ) {
        let came = self.segment(self.now).filter(|at| *at <= patience);
        match came.filter(|_| !self.is_blocked(from, to)) {
            Some(at) => {
                self.connects.answered += u64::from(reply == MembershipReply::Present);
                let result = Ok(reply);
                let happening = Happening::Result {
                    from,
                    to,
                    id,
                    boot,
                    result,
                };
                self.plan(at, happening);
            }
            None => self.time_out(to, id, boot, patience),
        }
    }

    fn time_out(&mut self, asker: SocketAddr, id: ExchangeId, boot: u64, at: Time) {
        let result = Err(ExchangeError::TimedOut);
        let happening = Happening::Result {
            from: asker,
            to: asker,
            id,
            boot,
            result,
        };
        self.plan(at, happening);
    }

    /// TCP needs both ways of a link.
    fn is_blocked(&self, a: SocketAddr, b: SocketAddr) -> bool {
        self.cut.contains(&(a, b)) || self.cut.contains(&(b, a))
    }

    fn is_lost(&mut self) -> bool {
        self.rng.chance(self.loss)
    }

    /// When a segment that is sent at `start` arrives, where it does.
    fn segment(&mut self, start: Time) -> Option<Time> {
        let sent = SENDS.iter().find(|_| !self.rng.chance(self.loss))?;
        Some(start + *sent + self.rng.span(self.delay.0, self.delay.1))
    }
}
