//! All connections of one guest, and the socket that hosts connect to.

use crate::connection::Connection;
use crate::packet::{FromGuest, HOST, Ports, STREAM, ToGuest, op};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The first of the host's ports.
const FIRST_PORT: u32 = 1 << 30;

/// Bytes of a `CONNECT` line at most, as Firecracker has it.
const MAX_LINE: usize = 32;

/// What hosts and the guest say to one another.
///
/// Sockets report changes alone, once: on any event all of them are tried.
pub(crate) struct Muxer {
    cid: u64,
    hosts: UnixListener,
    /// Where hosts listen for the guest: `_PORT` follows. Without it they do not.
    listeners: Option<String>,
    events: Epoll,
    /// Hosts that have not said which port they want.
    newcomers: Vec<UnixStream>,
    connections: BTreeMap<Ports, Connection>,
    /// The connection after which it is the next one's turn.
    last: Option<Ports>,
    answers: VecDeque<ToGuest>,
    next_port: u32,
}

impl Muxer {
    pub(crate) fn new(hosts: UnixListener, listeners: Option<String>) -> io::Result<Self> {
        hosts.set_nonblocking(true)?;
        let events = Epoll::new()?;
        watch(&events, hosts.as_raw_fd())?;
        Ok(Self {
            cid: 0,
            hosts,
            listeners,
            events,
            newcomers: Vec::new(),
            connections: BTreeMap::new(),
            last: None,
            answers: VecDeque::new(),
            next_port: FIRST_PORT,
        })
    }

    /// The guest's CID.
    pub(crate) fn cid(&self) -> u64 {
        self.cid
    }

    pub(crate) fn set_cid(&mut self, cid: u64) {
        self.cid = cid;
    }

    /// Readable when a host did something.
    pub(crate) fn events(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// Takes up what hosts did.
    pub(crate) fn take_up(&mut self) {
        let mut events = [EpollEvent::default(); 16];
        // What happened is looked for in all of them.
        while let Ok(1..) = self.events.wait(0, &mut events) {}
        while let Ok((stream, _)) = self.hosts.accept() {
            let watched = stream
                .set_nonblocking(true)
                .and_then(|()| watch(&self.events, stream.as_raw_fd()));
            if watched.is_ok() {
                self.newcomers.push(stream);
            }
        }
        for stream in std::mem::take(&mut self.newcomers) {
            match read_line(&stream) {
                Line::Nothing => self.newcomers.push(stream),
                Line::Port(guest) => {
                    let host = self.next_port;
                    self.next_port = self.next_port.wrapping_add(1) & !(1 << 31) | FIRST_PORT;
                    let ports = Ports { host, guest };
                    self.connections
                        .insert(ports, Connection::new(ports, stream));
                }
                Line::Wrong => {}
            }
        }
        for connection in self.connections.values_mut() {
            self.answers.extend(connection.drain());
        }
        self.bury();
    }

    /// Takes a packet of the guest's.
    pub(crate) fn accept(&mut self, packet: &FromGuest, kind: u16, to: u64, data: &[u8]) {
        let connection = self
            .connections
            .get_mut(&packet.ports)
            .filter(|_| kind == STREAM && to == HOST);
        match connection {
            Some(connection) => self.answers.extend(connection.accept(packet, data)),
            None if packet.op == op::RST => {}
            None => {
                let is_request = packet.op == op::REQUEST && kind == STREAM && to == HOST;
                let begun = is_request.then(|| self.begin(packet)).flatten();
                let refused = ToGuest::bare(packet.ports, op::RST);
                self.answers.push_back(begun.unwrap_or(refused));
            }
        }
        self.bury();
    }

    /// Connects the guest to who listens on its host's port, if anybody does.
    fn begin(&mut self, request: &FromGuest) -> Option<ToGuest> {
        let listeners = self.listeners.as_ref()?;
        let stream = UnixStream::connect(format!("{listeners}_{}", request.ports.host)).ok()?;
        stream.set_nonblocking(true).ok()?;
        watch(&self.events, stream.as_raw_fd()).ok()?;
        let (connection, answer) = Connection::begun(request, stream);
        self.connections.insert(request.ports, connection);
        Some(answer)
    }

    /// What the guest is to be told next, with at most so many bytes of data.
    pub(crate) fn next(&mut self, room: usize) -> Option<ToGuest> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        let turns: Vec<Ports> = self.connections.keys().copied().collect();
        let begin = turns.partition_point(|ports| Some(*ports) <= self.last);
        let (before, after) = turns.split_at(begin);
        let mut packets = after.iter().chain(before).filter_map(|ports| {
            let packet = self.connections.get_mut(ports)?.next(room)?;
            Some((*ports, packet))
        });
        let (ports, packet) = packets.next()?;
        self.last = Some(ports);
        self.bury();
        Some(packet)
    }

    fn bury(&mut self) {
        self.connections
            .retain(|_, connection| !connection.is_over());
    }
}

fn watch(events: &Epoll, fd: i32) -> io::Result<()> {
    let wanted = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
    let data = u64::try_from(fd).unwrap_or(0);
    events.ctl(ControlOperation::Add, fd, EpollEvent::new(wanted, data))
}

enum Line {
    /// It has not come.
    Nothing,
    Port(u32),
    Wrong,
}

/// Reads `CONNECT port`, which must come in one piece, and nothing after it.
fn read_line(mut stream: &UnixStream) -> Line {
    let mut line = Vec::with_capacity(MAX_LINE);
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && line.is_empty() => {
                return Line::Nothing;
            }
            Ok(1) if line.len() < MAX_LINE => line.extend(byte),
            _ => return Line::Wrong,
        }
    }
    let text = String::from_utf8_lossy(&line);
    let mut words = text.split_whitespace();
    let is_connect = words
        .next()
        .is_some_and(|word| word.eq_ignore_ascii_case("connect"));
    match words.next().and_then(|port| port.parse().ok()) {
        Some(port) if is_connect => Line::Port(port),
        _ => Line::Wrong,
    }
}
