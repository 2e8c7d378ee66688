//! The link to the guest's device.
//!
//! Sequence numbers of connections that go on from another stack are translated here: those that
//! smoltcp chose become those that the guest knows, and back.

use super::connection::Flow;
use super::frames::Frames;
use super::wire::{self, ETHERNET, Frame, Segment};
use super::{GUEST_ADDRESS, HOST_ADDRESS, MTU};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{IPV4_HEADER_LEN, TcpPacket};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// The longest frame that comes: longer than the MTU where the guest leaves it to its device to cut
/// what it sends.
const FRAME: usize = ETHERNET + u16::MAX as usize;

/// The most frames that wait for the socket. No frame is read while so many do.
pub(super) const MAX_WAITING: usize = 32;

/// This host's end of the link, with what is under way on it.
#[derive(Debug)]
pub(super) struct Link {
    /// The last frame that came.
    frame: Vec<u8>,
    /// The IP packet in it that smoltcp has not had yet.
    packet: Option<Range<usize>>,
    /// How many segments came.
    heard: u64,
    out: Out,
}

#[derive(Debug)]
struct Out {
    socket: Arc<Frames>,
    port: u16,
    frame: Vec<u8>,
    waiting: VecDeque<Vec<u8>>,
    /// By the guest's port.
    flows: HashMap<u16, Flow>,
    /// Whether nothing leaves, as a connection is being taken over.
    is_mute: bool,
    is_broken: bool,
}

impl Link {
    pub(super) fn new(socket: Arc<Frames>, port: u16) -> Self {
        let out = Out {
            socket,
            port,
            frame: Vec::new(),
            waiting: VecDeque::new(),
            flows: HashMap::new(),
            is_mute: false,
            is_broken: false,
        };
        Self {
            frame: vec![0; FRAME],
            packet: None,
            heard: 0,
            out,
        }
    }

    pub(super) fn flows(&mut self) -> &mut HashMap<u16, Flow> {
        &mut self.out.flows
    }

    pub(super) fn flow(&self, port: u16) -> Option<&Flow> {
        self.out.flows.get(&port)
    }

    #[cfg(test)]
    pub(super) fn socket(&self) -> &Arc<Frames> {
        &self.out.socket
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.out.waiting.len()
    }

    /// Lets nothing out until it is told otherwise.
    pub(super) fn mute(&mut self, is_mute: bool) {
        self.out.is_mute = is_mute;
    }

    /// Whether the other end is gone.
    pub(super) fn is_broken(&self) -> bool {
        self.out.is_broken
    }

    /// How many segments came.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// Whether frames wait for the socket.
    pub(super) fn is_blocked(&self) -> bool {
        !self.out.waiting.is_empty()
    }

    /// Whether anything more can be sent.
    pub(super) fn has_room(&self) -> bool {
        self.out.has_room()
    }

    /// Sends what waits, as far as the socket takes it.
    pub(super) fn flush(&mut self) {
        while let Some(frame) = self.out.waiting.pop_front() {
            if !self.out.socket_takes(&frame) {
                self.out.waiting.push_front(frame);
                return;
            }
        }
    }

    /// Reads frames until one is a segment, but no more than so many; `None` where no more frames
    /// have come.
    pub(super) fn read(&mut self, most: &mut usize) -> Option<Segment> {
        while *most > 0 && self.has_room() && !self.is_broken() {
            let length = match self.out.socket.try_recv(&mut self.frame) {
                Ok(length) => length,
                Err(error) => {
                    self.out.is_broken |= breaks(&error);
                    return None;
                }
            };
            *most -= 1;
            match wire::look(&self.frame[..length]) {
                Frame::Segment(segment, packet) => {
                    self.heard += 1;
                    self.translate(&segment, packet.clone());
                    self.packet = Some(packet);
                    return Some(segment);
                }
                Frame::Question(answer) => self.out.send(&answer),
                Frame::Other => {}
            }
        }
        None
    }

    /// Puts a packet where the next one of the guest is expected.
    pub(super) fn place(&mut self, packet: &[u8]) {
        self.frame[..packet.len()].copy_from_slice(packet);
        self.packet = Some(0..packet.len());
    }

    /// Forgets a packet that nobody took.
    pub(super) fn forget(&mut self) {
        self.packet = None;
    }

    fn translate(&mut self, segment: &Segment, packet: Range<usize>) {
        if segment.to != self.out.port {
            return;
        }
        let Some(flow) = self.out.flows.get_mut(&segment.from) else {
            return;
        };
        if !segment.is_ack {
            return;
        }
        flow.window = segment.window;
        if flow.ahead != 0 {
            let mut tcp = TcpPacket::new_unchecked(&mut self.frame[packet][IPV4_HEADER_LEN..]);
            let known = wire::number(tcp.ack_number()).wrapping_sub(flow.ahead);
            tcp.set_ack_number(wire::sequence(known));
        }
    }
}

impl Out {
    fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    /// Makes a segment what the guest expects, and sends it.
    fn finish(&mut self, mut frame: Vec<u8>) {
        let mut tcp = TcpPacket::new_unchecked(&mut frame[ETHERNET + IPV4_HEADER_LEN..]);
        if tcp.src_port() == self.port
            && let Some(flow) = self.flows.get_mut(&tcp.dst_port())
        {
            let number = wire::number(tcp.seq_number()).wrapping_add(flow.ahead);
            if tcp.syn() {
                flow.host_first = number;
            }
            if tcp.ack() {
                flow.acknowledged = wire::number(tcp.ack_number());
            }
            tcp.set_seq_number(wire::sequence(number));
        }
        tcp.fill_checksum(&HOST_ADDRESS.into(), &GUEST_ADDRESS.into());
        if !self.is_mute {
            self.send(&frame);
        }
        self.frame = frame;
    }

    /// Sends a frame, or lets it wait.
    fn send(&mut self, frame: &[u8]) {
        let has_room = self.has_room();
        if self.waiting.is_empty() && self.socket_takes(frame) {
            return;
        }
        if has_room {
            self.waiting.push_back(frame.to_vec());
        }
    }

    /// Whether a frame is done with: the socket took it, or never will.
    fn socket_takes(&mut self, frame: &[u8]) -> bool {
        match self.socket.try_send(frame) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // What the kernel has no memory for is lost, as on any other link.
            Err(error) => {
                self.is_broken |= breaks(&error);
                true
            }
            Ok(_) => true,
        }
    }
}

/// Whether an error means that the other end is gone.
fn breaks(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NetworkDown
    )
}

impl Device for Link {
    type RxToken<'a> = Packet<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Packet<'_>, Room<'_>)> {
        let packet = self.packet.take()?;
        Some((Packet(&self.frame[packet]), Room(&mut self.out)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.has_room().then_some(Room(&mut self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU.into();
        capabilities.checksum = wire::checksums();
        capabilities
    }
}

/// A packet for smoltcp.
#[derive(Debug)]
pub(super) struct Packet<'a>(&'a [u8]);

impl RxToken for Packet<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

/// Room for a packet of smoltcp's.
#[derive(Debug)]
pub(super) struct Room<'a>(&'a mut Out);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = std::mem::take(&mut self.0.frame);
        frame.clear();
        frame.extend_from_slice(&wire::ip_header());
        frame.resize(ETHERNET + length, 0);
        let filled = fill(&mut frame[ETHERNET..]);
        self.0.finish(frame);
        filled
    }
}
