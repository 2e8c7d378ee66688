//! A guest whose every frame a test writes itself, as a hostile one would.

use super::ARRIVES;
use aleph_types::VmId;
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::{Attachment, Claim};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

pub(crate) struct Guest {
    pub(crate) vm: VmId,
    pub(crate) claim: Claim,
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mac: Mac,
    attachment: Attachment,
}

/// A datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) from: (Ipv4Addr, u16),
    pub(crate) to: (Ipv4Addr, u16),
}

/// A datagram of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends6 {
    pub(crate) from: (Ipv6Addr, u16),
    pub(crate) to: (Ipv6Addr, u16),
}

/// `struct virtio_net_hdr`: no checksum is left to do, nothing is to be cut.
const NO_OFFLOAD: [u8; 10] = [0; 10];

impl Guest {
    pub(crate) fn new(vm: VmId, attachment: Attachment, claim: Claim) -> Self {
        let flags = rustix::fs::fcntl_getfl(&attachment.tap.queues[0]).unwrap();
        let flags = flags | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&attachment.tap.queues[0], flags).unwrap();
        Self {
            vm,
            claim,
            address: attachment.network.vm_ip,
            gateway: attachment.network.host_ip,
            mac: attachment.mac,
            attachment,
        }
    }

    pub(crate) fn tap(&self) -> &str {
        &self.attachment.network.tap_name
    }

    /// The guest's end of the cable.
    pub(crate) fn queue(&self) -> File {
        self.attachment.tap.queues[0].try_clone().unwrap()
    }

    pub(crate) fn port(&self, index: usize) -> u16 {
        self.claim.ports[index].host_port
    }

    /// Sends a datagram as an honest guest does.
    pub(crate) fn send(&self, to: (Ipv4Addr, u16), text: &str) {
        self.send_as(self.mac, (self.address, 5000), to, text);
    }

    pub(crate) fn send_as(&self, mac: Mac, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &str) {
        self.frame(mac, 0x0800, &datagram(Ends { from, to }, text));
    }

    /// Its IPv6 address.
    pub(crate) fn address6(&self) -> Ipv6Addr {
        self.attachment.network.vm_ipv6.expect("it has no IPv6")
    }

    pub(crate) fn send6(&self, to: (Ipv6Addr, u16), text: &str) {
        self.send6_as(self.mac, (self.address6(), 5000), to, text);
    }

    pub(crate) fn send6_as(
        &self,
        mac: Mac,
        from: (Ipv6Addr, u16),
        to: (Ipv6Addr, u16),
        text: &str,
    ) {
        self.frame(mac, 0x86dd, &datagram6(Ends6 { from, to }, text));
    }

    pub(crate) fn answer6(&self, ends: Ends6, text: &str) {
        self.send6_as(self.mac, ends.to, ends.from, text);
    }

    /// An ICMPv6 message from this address.
    pub(crate) fn icmp6(&self, from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) {
        let packet = packet6((from, to), (58, 255), message, 2);
        self.frame(self.mac, 0x86dd, &packet);
    }

    pub(crate) fn receive6(&self) -> (String, Ends6) {
        self.received6(ARRIVES)
            .expect("nothing arrives at the guest")
    }

    pub(crate) fn received6(&self, within: Duration) -> Option<(String, Ends6)> {
        let frame = self.next(within, |frame| {
            frame[12..14] == [0x86, 0xdd] && frame.len() >= 62 && frame[20] == 17
        })?;
        assert_eq!(
            (&frame[..6], &frame[6..12]),
            (&self.mac.0[..], &Mac::HOST.0[..])
        );
        let address = |at: usize| {
            let bytes: [u8; 16] = frame[at..at + 16].try_into().unwrap();
            Ipv6Addr::from(bytes)
        };
        let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let ends = Ends6 {
            from: (address(22), number(54)),
            to: (address(38), number(56)),
        };
        let end = 54 + usize::from(number(58));
        Some((String::from_utf8_lossy(&frame[62..end]).into_owned(), ends))
    }

    /// Sends the last part of a datagram whose first part is another's.
    pub(crate) fn fragment(&self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &str) {
        let mut packet = datagram(Ends { from, to }, text);
        // The offset is in units of eight bytes; no more parts follow.
        packet[6..8].copy_from_slice(&[0, 2]);
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum);
        self.frame(self.mac, 0x0800, &packet);
    }

    /// Sends an error of ICMP that reports a datagram.
    pub(crate) fn icmp_error(&self, to: Ipv4Addr, kind: u8, about: Ends) {
        let quoted = datagram(about, "quoted");
        let mut error = [&[kind, ERROR_CODE, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        let sum = checksum(&error);
        error[2..4].copy_from_slice(&sum);
        self.frame(self.mac, 0x0800, &packet(ICMP, self.address, to, &error));
    }

    /// The next error of ICMP that arrives: its kind, and from whom it is.
    pub(crate) fn received_error(&self, within: Duration) -> Option<(u8, Ipv4Addr)> {
        let frame = self.next(within, |frame| {
            frame[12..14] == [8, 0] && frame.len() > 42 && frame[23] == ICMP
        })?;
        let from = Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]);
        Some((frame[34], from))
    }

    /// Answers what it received.
    pub(crate) fn answer(&self, ends: Ends, text: &str) {
        self.send_as(self.mac, ends.to, ends.from, text);
    }

    pub(crate) fn frame(&self, from: Mac, kind: u16, payload: &[u8]) {
        let to: &[u8] = if kind == 0x0806 {
            &[0xff; 6]
        } else {
            &Mac::HOST.0
        };
        let frame = [&NO_OFFLOAD[..], to, &from.0, &kind.to_be_bytes(), payload].concat();
        let mut tap = &self.attachment.tap.queues[0];
        assert_eq!(tap.write(&frame).unwrap(), frame.len());
    }

    /// Asks who has an address.
    pub(crate) fn ask(&self, sender: Ipv4Addr, target: Ipv4Addr) {
        let question = [
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &self.mac.0,
            &sender.octets(),
            &[0; 6],
            &target.octets(),
        ]
        .concat();
        self.frame(self.mac, 0x0806, &question);
    }

    /// The next answer to a question of that kind; `None` where none comes in so long.
    pub(crate) fn answered(&self, within: Duration) -> Option<Ipv4Addr> {
        let frame = self.next(within, |frame| {
            frame[12..14] == [8, 6] && frame[20..22] == [0, 2]
        })?;
        Some(Ipv4Addr::new(frame[28], frame[29], frame[30], frame[31]))
    }

    /// The next datagram that arrives.
    pub(crate) fn receive(&self) -> (String, Ends) {
        self.received(ARRIVES)
            .expect("nothing arrives at the guest")
    }

    pub(crate) fn received(&self, within: Duration) -> Option<(String, Ends)> {
        let frame = self.next(within, |frame| {
            frame[12..14] == [8, 0] && frame.len() > 42 && frame[23] == 17
        })?;
        assert_eq!(
            (&frame[..6], &frame[6..12]),
            (&self.mac.0[..], &Mac::HOST.0[..])
        );
        let address =
            |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let ends = Ends {
            from: (address(26), number(34)),
            to: (address(30), number(36)),
        };
        let end = 34 + usize::from(number(38));
        Some((String::from_utf8_lossy(&frame[42..end]).into_owned(), ends))
    }

    fn next(&self, within: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let end = Instant::now() + within;
        let mut tap = &self.attachment.tap.queues[0];
        loop {
            let left = end.checked_duration_since(Instant::now())?;
            let mut poll_for = [PollFd::new(tap, PollFlags::IN)];
            let left = Timespec::try_from(left).unwrap();
            poll(&mut poll_for, Some(&left)).unwrap();
            let mut bytes = [0; 4096];
            let Ok(n) = tap.read(&mut bytes) else {
                continue;
            };
            let frame = &bytes[NO_OFFLOAD.len()..n];
            if wanted(frame) {
                return Some(frame.to_vec());
            }
        }
    }
}

const ICMP: u8 = 1;
/// "Port unreachable", of kind 3.
const ERROR_CODE: u8 = 3;

/// An IPv4 packet with a UDP datagram, without the latter's checksum, which it may lack.
fn datagram(ends: Ends, text: &str) -> Vec<u8> {
    let length = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let udp = [
        &ends.from.1.to_be_bytes()[..],
        &ends.to.1.to_be_bytes(),
        &length(8 + text.len()),
        &[0, 0],
        text.as_bytes(),
    ]
    .concat();
    packet(17, ends.from.0, ends.to.0, &udp)
}

fn packet(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap();
    let mut header = [
        &[0x45, 0][..],
        &length.to_be_bytes(),
        &[0, 0, 0x40, 0, 64, protocol, 0, 0],
        &from.octets(),
        &to.octets(),
    ]
    .concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&header[..], payload].concat()
}

fn datagram6(ends: Ends6, text: &str) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).unwrap();
    let udp = [
        &ends.from.1.to_be_bytes()[..],
        &ends.to.1.to_be_bytes(),
        &length.to_be_bytes(),
        &[0, 0],
        text.as_bytes(),
    ]
    .concat();
    packet6((ends.from.0, ends.to.0), (17, 64), &udp, 6)
}

/// An IPv6 packet, whose payload has its checksum at this place.
fn packet6(
    (from, to): (Ipv6Addr, Ipv6Addr),
    (protocol, hops): (u8, u8),
    payload: &[u8],
    sum_at: usize,
) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut payload = payload.to_vec();
    let mut summed = [
        &from.octets()[..],
        &to.octets(),
        &u32::from(length).to_be_bytes(),
        &[0, 0, 0, protocol],
        &payload,
    ]
    .concat();
    summed.resize(summed.len().next_multiple_of(2), 0);
    payload[sum_at..sum_at + 2].copy_from_slice(&checksum(&summed));
    [
        &[0x60, 0, 0, 0][..],
        &length.to_be_bytes(),
        &[protocol, hops],
        &from.octets(),
        &to.octets(),
        &payload,
    ]
    .concat()
}

/// The checksum of a header whose own is zero.
fn checksum(header: &[u8]) -> [u8; 2] {
    let pairs = header.chunks(2);
    let number = |pair: &[u8]| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
    let mut sum: u32 = pairs.map(|pair| u32::from(number(pair))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}
