//! Asking the kernel for changes of its network, by rtnetlink.
//!
//! One socket, one question at a time, each with its acknowledgement. The forms are those of
//! rtnetlink(7) and the kernel's `include/uapi/linux/rtnetlink.h`, in the processor's byte order.

use alloc::vec;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(super) enum Kind {
    /// Changes a link.
    Link = 16,
    /// Adds an address.
    Address = 20,
    /// Takes an address away.
    AddressGone = 21,
    /// Adds a route.
    Route = 24,
    /// Adds a neighbour.
    Neighbour = 28,
}

/// A conversation with the kernel.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

const HEADER: usize = 16;

impl Netlink {
    pub(super) fn open() -> Result<Self, Errno> {
        // Protocol 0 of this family is routing.
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks for a change and waits until it is made. What it is to make may be there already.
    pub(super) fn ask(&mut self, message: Message) -> Result<(), Errno> {
        self.sequence += 1;
        let question = message.finish(self.sequence);
        // Without an address it goes to the kernel.
        rustix::net::send(&self.socket, &question, SendFlags::empty())?;
        // An acknowledgement repeats the question behind its error number.
        let mut answer = vec![0; HEADER + 4 + question.len()];
        loop {
            let n = match rustix::io::read(&self.socket, &mut answer) {
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            if let Some(outcome) = outcome_of(&answer[..n.min(answer.len())], self.sequence) {
                return outcome;
            }
        }
    }
}

/// What an answer says of the question with this number; none where it is another one's.
fn outcome_of(answer: &[u8], sequence: u32) -> Option<Result<(), Errno>> {
    const ERROR: u16 = 2;
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let number = u32::from_ne_bytes(answer.get(8..12)?.try_into().ok()?);
    if kind != ERROR || number != sequence {
        return None;
    }
    let error = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    Some(match error {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno.saturating_neg())),
    })
}

/// A question, as it is put together.
#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A question with its fixed part.
    pub(super) fn new(kind: Kind, fixed: &[&[u8]]) -> Self {
        // Asked, to be acknowledged; made where it is not there, replaced where it is.
        const FLAGS: u16 = 0x1 | 0x4;
        const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;
        let flags = match kind {
            Kind::Link | Kind::AddressGone => FLAGS,
            _ => FLAGS | CREATE_OR_REPLACE,
        };
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&(kind as u16).to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        for part in fixed {
            bytes.extend_from_slice(part);
        }
        Self { bytes }
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.extend_from_slice(&attribute(kind, value));
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// An attribute, which may be the value of another one.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_padded_and_say_how_long_they_are() {
        let message = Message::new(Kind::Neighbour, &[&[2; 12]])
            .with(1, &[10, 0, 0, 1])
            .with(2, &[1, 2, 3, 4, 5, 6]);
        let bytes = message.finish(7);
        assert_eq!(bytes[..4], 48_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 28_u16.to_ne_bytes());
        assert_eq!(bytes[8..12], 7_u32.to_ne_bytes());
        let (first, second) = (8_u16.to_ne_bytes(), 10_u16.to_ne_bytes());
        let attributes = [
            &first[..],
            &1_u16.to_ne_bytes(),
            &[10, 0, 0, 1],
            &second,
            &2_u16.to_ne_bytes(),
            &[1, 2, 3, 4, 5, 6, 0, 0],
        ];
        assert_eq!(bytes[28..], attributes.concat());
    }

    #[test]
    fn only_the_answer_to_this_question_counts() {
        let answer = |kind: u16, sequence: u32, error: i32| {
            let mut bytes = vec![0; 20];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
            bytes[16..].copy_from_slice(&error.to_ne_bytes());
            bytes
        };
        assert_eq!(outcome_of(&answer(2, 5, 0), 5), Some(Ok(())));
        assert_eq!(outcome_of(&answer(2, 5, -1), 5), Some(Err(Errno::PERM)));
        assert_eq!(outcome_of(&answer(2, 4, 0), 5), None);
        assert_eq!(outcome_of(&answer(16, 5, 0), 5), None);
        assert_eq!(outcome_of(&answer(2, 5, 0)[..18], 5), None);
        assert_eq!(outcome_of(&[], 5), None);
    }
}
