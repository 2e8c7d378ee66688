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
        /// The guest kernel's random id of this boot: the bytes of its UUID.
        boot_id: [u8; 16],
        /// Whether the guest is set up. Then a [`ToHost::Kept`] for each kept command and
        /// [`ToHost::Ready`] follow at once; else the guest waits for a set-up.
        is_ready: bool,
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
    /// A command that outlived the connection that began it, and waits for
    /// [`crate::ToGuest::Attach`].
    Kept(Kept),
    /// The command runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// Standard output of a command, or bytes of a file, an archive or a connection.
    Data(&'a [u8]),
    /// Standard error of a command.
    ErrorData(&'a [u8]),
    /// No more data follows: the last word of a file or an archive.
    Eof,
    /// Returns credit for data that the host sent.
    Credit(u32),
    /// The command ended and all its output was sent: the last word on its stream. A kept one's
    /// is told on each connection until the host has stored it.
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
    /// The file or archive was written, or both directions of a connection have ended: the last
    /// word on its stream.
    Done,
    /// The file that was asked about: the last word on its stream.
    Stat(FileStat<'a>),
    /// What the guest uses: the last word on its stream.
    Usage(Usage),
    /// The connection stands.
    Open,
    /// Somebody in the guest connected to a port that [`crate::ToGuest::Listen`] opened: the first
    /// word on a stream of the guest's own, whose number is [`crate::GUEST_STREAMS`] or more. Data goes
    /// both ways, each until its `Eof`; [`ToHost::Done`] is the end of both.
    ///
    /// Such a connection outlives its host: the next one is told of it again, and again gets what
    /// was said since the last answer.
    Accepted {
        /// The port.
        port: u16,
    },
}

/// A command that outlives connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its process id in the guest.
    pub pid: u32,
    /// Whether the guest powers off when it has ended.
    pub main: bool,
    /// Whether its standard input takes data.
    pub input: bool,
    /// Whether it has ended.
    pub ended: bool,
    /// How many bytes of its output the guest has forgotten, since they were stored.
    pub stored: u64,
    /// How many bytes of output the guest has read of it; those beyond `stored` it still has.
    pub written: u64,
}

/// What kind of file there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A plain file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, socket or pipe.
    Other,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat<'a> {
    /// What kind it is.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed last, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// What a link points to; empty otherwise.
    pub target: &'a [u8],
}

/// What a guest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Memory that its kernel manages, in bytes.
    pub memory_total: u64,
    /// Memory that programs could still get, in bytes.
    pub memory_available: u64,
    /// Size of the filesystem that takes writes, in bytes.
    pub disk_total: u64,
    /// How much of it is used.
    pub disk_used: u64,
    /// Time since its kernel began, pauses of the machine included as far as it sees them, in
    /// microseconds.
    pub uptime_us: u64,
    /// Load over the last minute, in hundredths.
    pub load_hundredths: u32,
    /// Processes, without kernel threads and the agent.
    pub processes: u32,
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
    pub(super) const KEPT: u8 = 0x99;
    pub(super) const STAT: u8 = 0x9a;
    pub(super) const USAGE: u8 = 0x9b;
    pub(super) const OPEN: u8 = 0x9c;
    pub(super) const ACCEPTED: u8 = 0x9d;
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
                boot_id: r.array()?,
                is_ready: r.bool()?,
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
            kind::KEPT => Self::Kept(Kept {
                pid: r.u32()?,
                main: r.bool()?,
                input: r.bool()?,
                ended: r.bool()?,
                stored: r.u64()?,
                written: r.u64()?,
            }),
            kind::STAT => Self::Stat(FileStat {
                kind: match r.u8()? {
                    0 => FileKind::File,
                    1 => FileKind::Folder,
                    2 => FileKind::Link,
                    3 => FileKind::Other,
                    _ => return Err(ProtocolError::Malformed("file kind")),
                },
                size: r.u64()?,
                mode: r.u16()?,
                uid: r.u32()?,
                gid: r.u32()?,
                modified_ns: r.u64()?.cast_signed(),
                target: r.text()?,
            }),
            kind::USAGE => Self::Usage(Usage {
                memory_total: r.u64()?,
                memory_available: r.u64()?,
                disk_total: r.u64()?,
                disk_used: r.u64()?,
                uptime_us: r.u64()?,
                load_hundredths: r.u32()?,
                processes: r.u32()?,
            }),
            kind::OPEN => Self::Open,
            kind::ACCEPTED => Self::Accepted { port: r.u16()? },
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
                boot_id,
                is_ready,
            } => {
                versions.write(w);
                w.u64(*started_us);
                w.u64(*now_us);
                w.raw(boot_id);
                w.bool(*is_ready);
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
            Self::Kept(kept) => {
                w.u32(kept.pid);
                w.bool(kept.main);
                w.bool(kept.input);
                w.bool(kept.ended);
                w.u64(kept.stored);
                w.u64(kept.written);
                kind::KEPT
            }
            Self::Stat(stat) => {
                w.u8(match stat.kind {
                    FileKind::File => 0,
                    FileKind::Folder => 1,
                    FileKind::Link => 2,
                    FileKind::Other => 3,
                });
                w.u64(stat.size);
                w.u16(stat.mode);
                w.u32(stat.uid);
                w.u32(stat.gid);
                w.u64(stat.modified_ns.cast_unsigned());
                w.bytes(stat.target);
                kind::STAT
            }
            Self::Usage(usage) => {
                w.u64(usage.memory_total);
                w.u64(usage.memory_available);
                w.u64(usage.disk_total);
                w.u64(usage.disk_used);
                w.u64(usage.uptime_us);
                w.u32(usage.load_hundredths);
                w.u32(usage.processes);
                kind::USAGE
            }
            Self::Open => kind::OPEN,
            Self::Accepted { port } => {
                w.u16(*port);
                kind::ACCEPTED
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoder, Item};
    use alloc::vec;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = (u32, ToHost<'static>)> {
        static BYTES: [u8; 64] = [0xa5; 64];
        let bytes = (0_usize..=64).prop_map(|n| &BYTES[..n]);
        let stream = 1_u32..;
        prop_oneof![
            (any::<u64>(), any::<u64>(), any::<[u8; 16]>(), any::<bool>()).prop_map(
                |(started_us, now_us, boot_id, is_ready)| {
                    (
                        CONTROL,
                        ToHost::Hello {
                            versions: Versions::OURS,
                            started_us,
                            now_us,
                            boot_id,
                            is_ready,
                        },
                    )
                }
            ),
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
            (
                stream.clone(),
                any::<u32>(),
                any::<[bool; 3]>(),
                any::<u64>()
            )
                .prop_map(|(s, pid, [main, input, ended], n)| {
                    let (stored, written) = (n, !n);
                    let kept = Kept {
                        pid,
                        main,
                        input,
                        ended,
                        stored,
                        written,
                    };
                    (s, ToHost::Kept(kept))
                }),
            (
                stream.clone(),
                0_usize..4,
                any::<i64>(),
                bytes.clone().prop_filter("text", |b| !b.contains(&0))
            )
                .prop_map(|(s, kind, modified_ns, target)| {
                    let kind = [
                        FileKind::File,
                        FileKind::Folder,
                        FileKind::Link,
                        FileKind::Other,
                    ][kind];
                    let (size, mode, uid, gid) = (1 << 40, 0o4755, 7, u32::MAX);
                    (
                        s,
                        ToHost::Stat(FileStat {
                            kind,
                            size,
                            mode,
                            uid,
                            gid,
                            modified_ns,
                            target,
                        }),
                    )
                }),
            (stream.clone(), any::<u64>(), any::<u32>()).prop_map(|(s, n, processes)| {
                let usage = Usage {
                    memory_total: n,
                    memory_available: n / 2,
                    disk_total: n / 3,
                    disk_used: n / 4,
                    uptime_us: n / 5,
                    load_hundredths: processes / 2,
                    processes,
                };
                (s, ToHost::Usage(usage))
            }),
            stream.clone().prop_map(|s| (s, ToHost::Open)),
            (stream.clone(), any::<u16>()).prop_map(|(s, port)| (s, ToHost::Accepted { port })),
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
            let mut wire = [9; 16].to_vec();
            message.encode(stream, &mut wire).unwrap();
            let mut decoder = Decoder::for_host([9; 16]);
            decoder.space()[..wire.len()].copy_from_slice(&wire);
            decoder.filled(wire.len());
            prop_assert_eq!(decoder.next_item(), Ok(Some(Item::Mark)));
            let Ok(Some(Item::Frame(frame))) = decoder.next_item() else {
                panic!("no frame");
            };
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
                prop_assert_eq!(&wire[HEADER..wire.len() - 1], &payload[..]);
            }
        }
    }
}
