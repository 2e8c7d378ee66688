//! What the guest says to the host.

use crate::CONTROL;
use crate::frame::{Frame, HEADER, ProtocolError};
use crate::to_guest::seal;
use crate::version::Versions;
use crate::wire::{Reader, Writer};
use alloc::vec::Vec;

/// A message from the guest. It borrows from the frame that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToHost<'a> {
    /// Opens the conversation (control stream).
    Hello {
        /// What the agent speaks.
        versions: Versions,
        /// Guest time when the agent began, in microseconds since its kernel did.
        started_us: u64,
        /// Guest time when this was sent, on the same clock.
        now_us: u64,
    },
    /// The root is assembled and commands can run (control stream).
    Ready {
        /// Guest time when this was sent, in microseconds since its kernel began.
        now_us: u64,
    },
    /// The guest cannot go on and powers off (control stream).
    Fatal {
        /// What failed, the error number of the failed call or 0.
        errno: u32,
        /// What it was doing, with what.
        message: &'a [u8],
    },
    /// Answers a ping (control stream).
    Pong(u64),
    /// The command runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// Standard output of a command, or bytes of a file.
    Data(&'a [u8]),
    /// Standard error of a command.
    ErrorData(&'a [u8]),
    /// No more data of a file follows.
    Eof,
    /// Returns credit for data that the host sent.
    Credit(u32),
    /// The command ended and all its output was sent: the last word on its stream.
    Exited(Exit),
    /// The operation failed: the last word on its stream.
    Failed {
        /// The error number of the failed call, or 0.
        errno: u32,
        /// What it was doing, with what.
        message: &'a [u8],
    },
    /// The file that was asked for; its bytes follow.
    File(FileInfo),
    /// The file was written: the last word on its stream.
    Done,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// Its size in bytes when it was opened.
    pub size: u64,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

mod kind {
    pub(super) const HELLO: u8 = 0x81;
    pub(super) const READY: u8 = 0x82;
    pub(super) const FATAL: u8 = 0x83;
    pub(super) const PONG: u8 = 0x84;
    pub(super) const STARTED: u8 = 0x90;
    pub(super) const DATA: u8 = 0x91;
    pub(super) const ERROR_DATA: u8 = 0x92;
    pub(super) const EOF: u8 = 0x93;
    pub(super) const CREDIT: u8 = 0x94;
    pub(super) const EXITED: u8 = 0x95;
    pub(super) const FAILED: u8 = 0x96;
    pub(super) const FILE: u8 = 0x97;
    pub(super) const DONE: u8 = 0x98;
}

impl<'a> ToHost<'a> {
    /// Reads a frame that came from the guest.
    ///
    /// # Errors
    /// A [`ProtocolError`] where the frame is not exactly of a known form.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, ProtocolError> {
        let control = frame.kind < kind::STARTED;
        if control != (frame.stream == CONTROL) {
            return Err(ProtocolError::Stream(frame.kind, frame.stream));
        }
        let mut r = Reader::new(frame.payload);
        let message = match frame.kind {
            kind::HELLO => Self::Hello {
                versions: Versions::read(&mut r)?,
                started_us: r.u64()?,
                now_us: r.u64()?,
            },
            kind::READY => Self::Ready { now_us: r.u64()? },
            kind::FATAL => Self::Fatal {
                errno: r.u32()?,
                message: r.bytes()?,
            },
            kind::PONG => Self::Pong(r.u64()?),
            kind::STARTED => Self::Started { pid: r.u32()? },
            kind::DATA => Self::Data(r.rest()),
            kind::ERROR_DATA => Self::ErrorData(r.rest()),
            kind::EOF => Self::Eof,
            kind::CREDIT => Self::Credit(r.u32()?),
            kind::EXITED => Self::Exited(match r.u8()? {
                0 => Exit::Code(r.u8()?),
                1 => Exit::Signal(r.u8()?),
                _ => return Err(ProtocolError::Malformed("exit")),
            }),
            kind::FAILED => Self::Failed {
                errno: r.u32()?,
                message: r.bytes()?,
            },
            kind::FILE => Self::File(FileInfo {
                size: r.u64()?,
                mode: r.u16()?,
                uid: r.u32()?,
                gid: r.u32()?,
            }),
            kind::DONE => Self::Done,
            other => return Err(ProtocolError::Kind(other)),
        };
        r.end()?;
        Ok(message)
    }

    /// Appends the message as a frame.
    ///
    /// # Errors
    /// [`ProtocolError::Oversized`] where it does not fit a frame: `out` is as it was.
    pub fn encode(&self, stream: u32, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let begin = out.len();
        out.extend_from_slice(&[0; HEADER]);
        let kind = self.write(&mut Writer(out));
        seal(out, begin, kind, stream)
    }

    fn write(&self, w: &mut Writer<'_>) -> u8 {
        match self {
            Self::Hello {
                versions,
                started_us,
                now_us,
            } => {
                versions.write(w);
                w.u64(*started_us);
                w.u64(*now_us);
                kind::HELLO
            }
            Self::Ready { now_us } => {
                w.u64(*now_us);
                kind::READY
            }
            Self::Fatal { errno, message } => {
                w.u32(*errno);
                w.bytes(message);
                kind::FATAL
            }
            Self::Pong(number) => {
                w.u64(*number);
                kind::PONG
            }
            Self::Started { pid } => {
                w.u32(*pid);
                kind::STARTED
            }
            Self::Data(bytes) => {
                w.raw(bytes);
                kind::DATA
            }
            Self::ErrorData(bytes) => {
                w.raw(bytes);
                kind::ERROR_DATA
            }
            Self::Eof => kind::EOF,
            Self::Credit(n) => {
                w.u32(*n);
                kind::CREDIT
            }
            Self::Exited(exit) => {
                let (how, number) = match exit {
                    Exit::Code(code) => (0, *code),
                    Exit::Signal(signal) => (1, *signal),
                };
                w.u8(how);
                w.u8(number);
                kind::EXITED
            }
            Self::Failed { errno, message } => {
                w.u32(*errno);
                w.bytes(message);
                kind::FAILED
            }
            Self::File(info) => {
                w.u64(info.size);
                w.u16(info.mode);
                w.u32(info.uid);
                w.u32(info.gid);
                kind::FILE
            }
            Self::Done => kind::DONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Decoder;
    use alloc::vec;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = (u32, ToHost<'static>)> {
        static BYTES: [u8; 64] = [0xa5; 64];
        let bytes = (0_usize..=64).prop_map(|n| &BYTES[..n]);
        let stream = 1_u32..;
        prop_oneof![
            (any::<u64>(), any::<u64>()).prop_map(|(started_us, now_us)| {
                (
                    CONTROL,
                    ToHost::Hello {
                        versions: Versions::OURS,
                        started_us,
                        now_us,
                    },
                )
            }),
            any::<u64>().prop_map(|now_us| (CONTROL, ToHost::Ready { now_us })),
            (any::<u32>(), bytes.clone())
                .prop_map(|(errno, message)| (CONTROL, ToHost::Fatal { errno, message })),
            any::<u64>().prop_map(|n| (CONTROL, ToHost::Pong(n))),
            (stream.clone(), any::<u32>()).prop_map(|(s, pid)| (s, ToHost::Started { pid })),
            (stream.clone(), bytes.clone()).prop_map(|(s, b)| (s, ToHost::Data(b))),
            (stream.clone(), bytes.clone()).prop_map(|(s, b)| (s, ToHost::ErrorData(b))),
            stream.clone().prop_map(|s| (s, ToHost::Eof)),
            stream.clone().prop_map(|s| (s, ToHost::Done)),
            (stream.clone(), any::<u32>()).prop_map(|(s, n)| (s, ToHost::Credit(n))),
            (stream.clone(), any::<u8>()).prop_map(|(s, c)| (s, ToHost::Exited(Exit::Code(c)))),
            (stream.clone(), any::<u8>()).prop_map(|(s, c)| (s, ToHost::Exited(Exit::Signal(c)))),
            (stream.clone(), any::<u32>(), bytes)
                .prop_map(|(s, errno, message)| (s, ToHost::Failed { errno, message })),
            (stream, any::<u64>(), any::<u16>(), any::<u32>()).prop_map(|(s, size, mode, id)| {
                (
                    s,
                    ToHost::File(FileInfo {
                        size,
                        mode,
                        uid: id,
                        gid: !id,
                    }),
                )
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire((stream, message) in message()) {
            let mut wire = Vec::new();
            message.encode(stream, &mut wire).unwrap();
            let mut decoder = Decoder::new();
            decoder.space()[..wire.len()].copy_from_slice(&wire);
            decoder.filled(wire.len());
            let frame = decoder.next_frame().unwrap().unwrap();
            prop_assert_eq!(frame.stream, stream);
            prop_assert_eq!(ToHost::decode(&frame), Ok(message));
        }

        #[test]
        fn decoding_is_strict(kind in 0x80_u8..0xa0, payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let stream = u32::from(kind >= 0x90);
            let frame = Frame { kind, stream, payload: &payload };
            if let Ok(message) = ToHost::decode(&frame) {
                let mut wire = Vec::new();
                message.encode(stream, &mut wire).unwrap();
                prop_assert_eq!(&wire[HEADER..], &payload[..]);
            }
        }
    }
}
