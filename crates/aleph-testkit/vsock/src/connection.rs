//! One connection, between a host's socket and the guest.

use crate::packet::{BUFFER, FromGuest, NO_RECEIVE, NO_SEND, Ports, ToGuest, op};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

/// A connection that a host or the guest asked for.
#[derive(Debug)]
pub(crate) struct Connection {
    ports: Ports,
    stream: UnixStream,
    state: State,
    /// Room that the guest has for what it is sent.
    allocated: u32,
    /// What the guest was sent, and how much of that its program has read.
    sent: Wrapping<u32>,
    read: Wrapping<u32>,
    /// What the guest sent and the host has no room for.
    waiting: VecDeque<u8>,
    /// What the host took, and how much of that the guest knows of.
    taken: Wrapping<u32>,
    told: Wrapping<u32>,
    /// The guest asked how much that is.
    is_asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest is to be asked.
    New,
    /// It was.
    Asked,
    Open,
    /// The guest has said all.
    Ending,
    /// Nothing more comes of it.
    Over,
}

impl Connection {
    pub(crate) fn new(ports: Ports, stream: UnixStream) -> Self {
        Self {
            ports,
            stream,
            state: State::New,
            allocated: 0,
            sent: Wrapping(0),
            read: Wrapping(0),
            waiting: VecDeque::new(),
            taken: Wrapping(0),
            told: Wrapping(0),
            is_asked: false,
        }
    }

    /// One that the guest asked for, and what answers it.
    pub(crate) fn begun(request: &FromGuest, stream: UnixStream) -> (Self, ToGuest) {
        let mut connection = Self {
            state: State::Open,
            allocated: request.allocated,
            read: request.forwarded,
            ..Self::new(request.ports, stream)
        };
        let answer = connection.packet(op::RESPONSE);
        (connection, answer)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Takes a packet, and says what answers it.
    pub(crate) fn accept(&mut self, packet: &FromGuest, data: &[u8]) -> Option<ToGuest> {
        (self.allocated, self.read) = (packet.allocated, packet.forwarded);
        match (packet.op, self.state) {
            (op::RESPONSE, State::Asked) => {
                self.state = State::Open;
                let answer = format!("OK {}\n", self.ports.host);
                self.waiting.extend(answer.as_bytes());
                // It is none of the guest's bytes.
                self.taken -= Wrapping(u32::try_from(answer.len()).unwrap_or(0));
                self.told = self.taken;
                self.drain()
            }
            (op::RW, State::Open) => {
                if self.waiting.len() + data.len() > BUFFER as usize {
                    return Some(self.break_off());
                }
                self.waiting.extend(data);
                self.drain()
            }
            (op::RST, _) => {
                self.state = State::Over;
                None
            }
            (op::SHUTDOWN, State::Open) if packet.flags & NO_SEND != 0 => {
                self.state = State::Ending;
                self.drain()
            }
            (op::CREDIT_REQUEST, _) => {
                self.is_asked = true;
                None
            }
            (op::CREDIT_UPDATE | op::SHUTDOWN, _) => None,
            _ => Some(self.break_off()),
        }
    }

    /// Writes what waits for the host, as far as it takes it.
    pub(crate) fn drain(&mut self) -> Option<ToGuest> {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            match self.stream.write(first) {
                Ok(n) => {
                    self.waiting.drain(..n);
                    self.taken += Wrapping(u32::try_from(n).unwrap_or(u32::MAX));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(self.break_off()),
            }
        }
        (self.state == State::Ending).then(|| self.break_off())
    }

    /// What the guest is to be told next, with at most so many bytes of data.
    pub(crate) fn next(&mut self, room: usize) -> Option<ToGuest> {
        match self.state {
            State::New => {
                self.state = State::Asked;
                return Some(self.packet(op::REQUEST));
            }
            State::Open | State::Ending => {}
            State::Asked | State::Over => return None,
        }
        if let Some(packet) = (self.state == State::Open)
            .then(|| self.pull(room))
            .flatten()
        {
            return Some(packet);
        }
        // The guest sends on where it knows of a quarter more.
        if self.is_asked || (self.taken - self.told).0 >= BUFFER / 4 {
            return Some(self.packet(op::CREDIT_UPDATE));
        }
        None
    }

    /// What the host has said, or that it is gone: what the guest says is of no use then.
    fn pull(&mut self, room: usize) -> Option<ToGuest> {
        let credit = self.allocated.saturating_sub((self.sent - self.read).0) as usize;
        let mut data = vec![0; room.min(credit)];
        if data.is_empty() {
            return None;
        }
        match self.stream.read(&mut data) {
            Ok(0) => {
                self.state = State::Over;
                let mut packet = self.packet(op::SHUTDOWN);
                packet.flags = NO_RECEIVE | NO_SEND;
                Some(packet)
            }
            Ok(n) => {
                data.truncate(n);
                self.sent += Wrapping(u32::try_from(n).unwrap_or(u32::MAX));
                let mut packet = self.packet(op::RW);
                packet.data = data;
                Some(packet)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(_) => Some(self.break_off()),
        }
    }

    fn break_off(&mut self) -> ToGuest {
        self.state = State::Over;
        self.packet(op::RST)
    }

    fn packet(&mut self, op: u16) -> ToGuest {
        (self.told, self.is_asked) = (self.taken, false);
        ToGuest {
            forwarded: self.taken.0,
            ..ToGuest::bare(self.ports, op)
        }
    }
}
