//! The stack itself: smoltcp's interface, its sockets, and whose they are.
//!
//! ```text
//! (a SYN) ─▶ Opening ── established ─▶ Waiting ── accepted ─▶ Taken ── its stream dropped ─▶ Left
//! ```
//! A socket is made when a SYN comes for it, so that none lies there for nothing.

use super::connection::{Connection, Flow, Phase, discard};
use super::link::Link;
use super::wire::{Offer, Segment};
use super::{HOST_ADDRESS, PREFIX};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::hash::{BuildHasher, RandomState};

/// The most connections at once.
pub(super) const MAX_CONNECTIONS: usize = 128;

/// What a connection holds of what the guest sent. No more than a window without scaling tells, so
/// that connections go on in stacks of other releases, whatever those hold.
const RECEIVE_BUFFER: usize = 0xffff;

/// What a connection holds of what the guest has not acknowledged.
const SEND_BUFFER: usize = 64 * 1024;

/// How long an acknowledgement waits for data to ride on: each that goes alone is one more
/// interrupt for the guest. A client that writes a request in two pieces may wait for it.
const ACK_DELAY: Duration = Duration::from_millis(4);

/// The most rounds of sending at once.
const MAX_ROUNDS: usize = 1024;

/// Everything of a stack that changes.
pub(super) struct Core {
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) link: Link,
    /// In the order in which they were opened.
    pub(super) connections: Vec<Connection>,
    pub(super) port: u16,
    pub(super) began: std::time::Instant,
    /// When whoever drives the stack comes next of itself.
    pub(super) armed: Option<Instant>,
    pub(super) is_over: bool,
}

impl Core {
    pub(super) fn new(mut link: Link, port: u16) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = RandomState::new().hash_one(port);
        let mut interface = Interface::new(config, &mut link, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(HOST_ADDRESS.into(), PREFIX));
        });
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            link,
            connections: Vec::new(),
            port,
            began: std::time::Instant::now(),
            armed: None,
            is_over: false,
        }
    }

    pub(super) fn now(&self) -> Instant {
        let micros = i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX);
        Instant::from_micros(micros)
    }

    /// Reads so many frames at the most, and sends what there is to send. Gives how many were not
    /// read.
    pub(super) fn turn(&mut self, mut frames: usize) -> usize {
        if self.is_over {
            return frames;
        }
        self.link.flush();
        while let Some(segment) = self.link.read(&mut frames) {
            self.prepare(&segment);
            self.take_in();
            self.sort();
        }
        self.send_out();
        self.sort();
        if self.link.is_broken() {
            self.end();
        }
        frames
    }

    /// Gives smoltcp the packet that came.
    pub(super) fn take_in(&mut self) {
        let now = self.now();
        let (interface, link) = (&mut self.interface, &mut self.link);
        interface.poll_ingress_single(now, link, &mut self.sockets);
        link.forget();
    }

    /// Lets smoltcp send what it has to.
    pub(super) fn send_out(&mut self) {
        let now = self.now();
        for _ in 0..MAX_ROUNDS {
            let (interface, link) = (&mut self.interface, &mut self.link);
            if interface.poll_egress(now, link, &mut self.sockets) == PollResult::None {
                break;
            }
        }
    }

    /// Has smoltcp ask the other end of each connection whether it is there (RFC 9293, section
    /// 3.8.4), once it sends; whether there is any.
    pub(super) fn ask(&mut self) -> bool {
        // The first time is now, whatever the interval.
        self.set_keep_alive(Some(Duration::from_secs(3600)))
    }

    /// Has it ask no more.
    pub(super) fn ask_no_more(&mut self) {
        self.set_keep_alive(None);
    }

    fn set_keep_alive(&mut self, interval: Option<Duration>) -> bool {
        let mut any = false;
        for connection in &self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            if socket.state() == State::Established {
                socket.set_keep_alive(interval);
                any = true;
            }
        }
        any
    }

    /// When smoltcp has something to do next, where nothing else happens.
    pub(super) fn next(&mut self) -> Option<Instant> {
        let now = self.now();
        self.interface.poll_at(now, &self.sockets)
    }

    /// Makes a socket for a connection that the guest opens.
    fn prepare(&mut self, segment: &Segment) {
        let Some(offer) = segment.offer else {
            return;
        };
        if segment.to != self.port {
            return;
        }
        self.open_for(segment.from, offer, segment.sequence);
    }

    /// Makes a socket that waits for this SYN. `false` where there is one for that port, or no room:
    /// then smoltcp answers.
    pub(super) fn open_for(&mut self, port: u16, offer: Offer, guest_first: u32) -> bool {
        if let Some(index) = self.connections.iter().position(|old| old.port == port) {
            let old = &self.connections[index];
            let state = self.sockets.get::<tcp::Socket<'_>>(old.handle).state();
            let is_over = matches!(state, State::Closed | State::TimeWait);
            if old.phase != Phase::Left || !is_over {
                return false;
            }
            self.remove(index);
        }
        if self.connections.len() >= MAX_CONNECTIONS && !self.make_room() {
            return false;
        }
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; RECEIVE_BUFFER]),
            tcp::SocketBuffer::new(vec![0; SEND_BUFFER]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        if socket.listen((HOST_ADDRESS, self.port)).is_err() {
            return false;
        }
        self.link
            .flows()
            .insert(port, Flow::new(offer, guest_first));
        self.connections.push(Connection {
            handle: self.sockets.add(socket),
            port,
            phase: Phase::Opening,
            read: 0,
            written: 0,
            unanswered: Some(Vec::new()),
        });
        true
    }

    /// Gives up the oldest connection that nobody here has any more, or that the guest has not
    /// finished opening.
    fn make_room(&mut self) -> bool {
        let oldest = |phase| move |old: &Connection| old.phase == phase;
        let connections = &self.connections;
        let left = connections.iter().position(oldest(Phase::Left));
        let given_up = left.or_else(|| connections.iter().position(oldest(Phase::Opening)));
        if let Some(index) = given_up {
            self.remove(index);
        }
        given_up.is_some()
    }

    fn remove(&mut self, index: usize) {
        let connection = self.connections.remove(index);
        self.sockets.remove(connection.handle);
        self.link.flows().remove(&connection.port);
    }

    /// Looks at what became of each connection.
    pub(super) fn sort(&mut self) {
        let mut index = 0;
        while let Some(connection) = self.connections.get_mut(index) {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            let is_gone = match (connection.phase, socket.state()) {
                // It has been refused, or was never opened.
                (Phase::Opening, State::Listen | State::Closed) => true,
                (Phase::Opening, State::SynReceived) => false,
                (Phase::Opening, _) => {
                    connection.phase = Phase::Waiting;
                    false
                }
                (Phase::Waiting | Phase::Left, State::Closed) => socket.remote_endpoint().is_none(),
                (Phase::Left, _) => {
                    discard(socket);
                    false
                }
                (Phase::Waiting | Phase::Taken, _) => false,
            };
            if is_gone {
                self.remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// The oldest connection that nobody has accepted yet.
    pub(super) fn accept(&mut self) -> Option<(SocketHandle, Vec<u8>)> {
        let waiting = |connection: &&mut Connection| connection.phase == Phase::Waiting;
        let connection = self.connections.iter_mut().find(waiting)?;
        connection.phase = Phase::Taken;
        // What another stack read of it comes first.
        let earlier = connection.unanswered.clone().unwrap_or_default();
        Some((connection.handle, earlier))
    }

    /// The connection of a stream.
    pub(super) fn connection(&mut self, handle: SocketHandle) -> Option<&mut Connection> {
        let mut connections = self.connections.iter_mut();
        connections.find(|connection| connection.handle == handle)
    }

    pub(super) fn is_anyone_waiting(&self) -> bool {
        let mut connections = self.connections.iter();
        connections.any(|connection| connection.phase == Phase::Waiting)
    }

    /// Lets go of a connection: what was written to it still goes out.
    pub(super) fn leave(&mut self, handle: SocketHandle) {
        if let Some(connection) = self.connection(handle) {
            connection.phase = Phase::Left;
            self.sockets.get_mut::<tcp::Socket<'_>>(handle).close();
        }
    }

    /// Ends all connections without a word to the guest.
    pub(super) fn end(&mut self) {
        self.is_over = true;
        for connection in &self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            socket.abort();
        }
    }
}
