//! Frames of the link: which of them are let in, and those that are made here.

use super::{GUEST_ADDRESS, GUEST_MAC, HOST_ADDRESS, HOST_MAC};
use serde::{Deserialize, Serialize};
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    IPV4_HEADER_LEN, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber,
};
use std::ops::Range;

/// The length of an Ethernet header: two addresses and a type.
pub(super) const ETHERNET: usize = 14;

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];

/// What a guest offered as it opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) max_segment: Option<u16>,
    pub(super) window_scale: Option<u8>,
    pub(super) selective_ack: bool,
}

/// What is to be known of a segment before it is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// The guest's port.
    pub(super) from: u16,
    pub(super) to: u16,
    pub(super) sequence: u32,
    pub(super) window: u16,
    pub(super) is_ack: bool,
    /// Where it opens a connection.
    pub(super) offer: Option<Offer>,
}

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A whole TCP segment to this host: where its IP packet lies in the frame.
    Segment(Segment, Range<usize>),
    /// A guest asks for this host's address on the link; this is the answer.
    Question([u8; 42]),
    /// Nothing that concerns this host.
    Other,
}

/// Looks at a frame of the guest.
///
/// IP options and fragments are refused: nobody needs them on a link of one hop. Checksums are not
/// looked at, as nothing on the link could have damaged the frame.
pub(super) fn look(frame: &[u8]) -> Frame {
    let Some((header, content)) = frame.split_at_checked(ETHERNET) else {
        return Frame::Other;
    };
    match &header[12..] {
        kind if kind == IPV4 => segment(content).unwrap_or(Frame::Other),
        kind if kind == ARP => question(content).unwrap_or(Frame::Other),
        _ => Frame::Other,
    }
}

fn segment(content: &[u8]) -> Option<Frame> {
    let packet = Ipv4Packet::new_checked(content).ok()?;
    let is_plain = packet.version() == 4
        && usize::from(packet.header_len()) == IPV4_HEADER_LEN
        && !packet.more_frags()
        && packet.frag_offset() == 0
        && packet.next_header() == IpProtocol::Tcp
        && packet.src_addr() == GUEST_ADDRESS
        && packet.dst_addr() == HOST_ADDRESS;
    if !is_plain {
        return None;
    }
    let end = ETHERNET + usize::from(packet.total_len());
    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
    let read = TcpRepr::parse(
        &tcp,
        &GUEST_ADDRESS.into(),
        &HOST_ADDRESS.into(),
        &ChecksumCapabilities::ignored(),
    )
    .ok()?;
    let opens = read.control == TcpControl::Syn && read.ack_number.is_none();
    let segment = Segment {
        from: read.src_port,
        to: read.dst_port,
        sequence: number(read.seq_number),
        window: read.window_len,
        is_ack: read.ack_number.is_some(),
        offer: opens.then_some(Offer {
            max_segment: read.max_seg_size,
            window_scale: read.window_scale,
            selective_ack: read.sack_permitted,
        }),
    };
    Some(Frame::Segment(segment, ETHERNET..end))
}

/// Answers ARP: RFC 826.
fn question(content: &[u8]) -> Option<Frame> {
    const REQUEST: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 1];
    let content = content.get(..28)?;
    if content[..8] != REQUEST || content[24..] != HOST_ADDRESS.octets() {
        return None;
    }
    let mut answer = [0; 42];
    answer[..ETHERNET].copy_from_slice(&header(ARP));
    answer[14..22].copy_from_slice(&REQUEST);
    answer[21] = 2;
    answer[22..28].copy_from_slice(&HOST_MAC);
    answer[28..32].copy_from_slice(&HOST_ADDRESS.octets());
    // Who asked is who is answered.
    answer[32..42].copy_from_slice(&content[8..18]);
    Some(Frame::Question(answer))
}

/// The Ethernet header of IP packets to the guest.
pub(super) fn ip_header() -> [u8; ETHERNET] {
    header(IPV4)
}

fn header(kind: [u8; 2]) -> [u8; ETHERNET] {
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&GUEST_MAC);
    header[6..12].copy_from_slice(&HOST_MAC);
    header[12..].copy_from_slice(&kind);
    header
}

/// A segment as a guest would send it: its IP packet.
pub(super) fn from_guest(segment: &TcpRepr<'_>) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: GUEST_ADDRESS,
        dst_addr: HOST_ADDRESS,
        next_header: IpProtocol::Tcp,
        payload_len: segment.buffer_len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    let mut packet = vec![0; IPV4_HEADER_LEN + segment.buffer_len()];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &checksums);
    segment.emit(
        &mut TcpPacket::new_unchecked(&mut packet[IPV4_HEADER_LEN..]),
        &IpAddress::Ipv4(GUEST_ADDRESS),
        &IpAddress::Ipv4(HOST_ADDRESS),
        &checksums,
    );
    packet
}

/// What is left to smoltcp of checksums: TCP's are made once a segment is as it leaves.
pub(super) fn checksums() -> ChecksumCapabilities {
    let mut checksums = ChecksumCapabilities::ignored();
    checksums.ipv4 = Checksum::Tx;
    checksums
}

/// A sequence number as it is on the wire.
pub(super) fn number(sequence: TcpSeqNumber) -> u32 {
    sequence.0.cast_unsigned()
}

/// A sequence number of the wire.
pub(super) fn sequence(number: u32) -> TcpSeqNumber {
    TcpSeqNumber(number.cast_signed())
}
