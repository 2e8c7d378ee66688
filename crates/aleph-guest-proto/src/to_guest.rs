//! What the host says to the guest.

use crate::CONTROL;
use crate::frame::{Frame, HEADER, MAX_PAYLOAD, ProtocolError, TRAILER, header};
use crate::list::List;
use crate::mark::{self, MARK_SIZE};
use crate::mounts::{Mount, Mounts};
use crate::network::Network;
use crate::version::Versions;
use crate::wire::{Reader, Writer, length};
use alloc::vec::Vec;

/// A message from the host. It borrows from the frame that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToGuest<'a> {
    /// Opens the conversation, behind a [`crate::MARK`] (control stream). This form is the same
    /// in every version from 2 on.
    Hello {
        /// What the host speaks.
        versions: Versions,
        /// Random bytes of this connection alone, which the guest's answer begins with.
        nonce: [u8; MARK_SIZE],
    },
    /// Makes the guest ready for commands; once, after `Hello` (control stream).
    Setup(Setup<'a>),
    /// Asks for a [`crate::ToHost::Pong`] with the same number (control stream).
    Ping(u64),
    /// Ends the guest: a signal to all, KILL after so many milliseconds, sync, power off
    /// (control stream).
    Shutdown {
        /// Milliseconds until KILL.
        grace_ms: u32,
        /// What main commands get, by number; all others get TERM.
        signal: u8,
    },
    /// Starts a command on a new stream.
    Exec(Exec<'a>),
    /// Bytes for a command's standard input or for a file.
    Data(&'a [u8]),
    /// No more [`ToGuest::Data`] follows.
    Eof,
    /// Returns credit for data that the guest sent, but on a kept command's stream.
    Credit(u32),
    /// A signal to the command's process group.
    Signal(u8),
    /// A new size of the command's terminal.
    Resize(Terminal),
    /// Writes a file on a new stream: its bytes follow as [`ToGuest::Data`] and
    /// [`ToGuest::Eof`], and [`crate::ToHost::Done`] answers.
    Put(Put<'a>),
    /// Reads a file on a new stream: [`crate::ToHost::File`], data, and `Eof` answer.
    Get {
        /// Its path in the guest.
        path: &'a [u8],
    },
    /// Goes on with a kept command that [`crate::ToHost::Kept`] told of.
    Attach {
        /// How many bytes of its output the host has stored, over all connections.
        stored: u64,
    },
    /// What the host has stored of a kept command for good: the guest forgets it.
    Stored {
        /// How many bytes of its output, over all connections.
        total: u64,
        /// Whether its end, too.
        end: bool,
    },
    /// Streams a file or folder as a tar archive on a new stream: data and
    /// [`crate::ToHost::Eof`] answer.
    Pack {
        /// Its path in the guest. A link at its end is packed, not followed.
        path: &'a [u8],
        /// What it is called in the archive; the last part of its path when empty.
        name: &'a [u8],
    },
    /// Unpacks a tar archive on a new stream: its bytes follow as [`ToGuest::Data`] and
    /// [`ToGuest::Eof`], and [`crate::ToHost::Done`] answers.
    Unpack {
        /// The folder below which all of it goes; it must exist.
        path: &'a [u8],
        /// Whether files get the owners that the archive says, else root.
        owners: bool,
    },
    /// Asks what a file is, on a new stream: [`crate::ToHost::Stat`] answers.
    Stat {
        /// Its path in the guest.
        path: &'a [u8],
        /// Whether a link at its end is followed.
        follow: bool,
    },
    /// Connects to a TCP port of the guest's loopback address on a new stream:
    /// [`crate::ToHost::Open`] answers, and data goes both ways, each until its `Eof`;
    /// [`crate::ToHost::Done`] is the end of both.
    Connect {
        /// The port.
        port: u16,
    },
    /// Asks what the guest uses, on a new stream: [`crate::ToHost::Usage`] answers.
    Usage,
    /// Listens on a TCP port of the guest's loopback address, on a new stream, for as long as the
    /// guest lives: [`crate::ToHost::Done`] answers. Each connection to it is a stream of the
    /// guest's own ([`crate::ToHost::Accepted`]).
    Listen {
        /// The port.
        port: u16,
    },
    /// Mounts a filesystem, on a new stream: [`crate::ToHost::Done`] answers.
    Mount(Mount<'a>),
    /// Sets up the interface of a link to the host, on a new stream: [`crate::ToHost::Done`]
    /// answers. A guest that has one when it is set up has its driver.
    Link(Link),
    /// Stops every process but the agent, so that none runs before [`ToGuest::Resume`], on a new
    /// stream: [`crate::ToHost::Done`] answers once all stand still and nothing waits to be
    /// written.
    Freeze,
    /// Does ahead, in a guest that stands still, what each clone of it would do first, on a new
    /// stream: [`crate::ToHost::Done`] answers once it has nothing left to do.
    Settle,
    /// Makes a guest that was restored from a snapshot one of its own, on a new stream, and lets
    /// its processes go on: [`crate::ToHost::Done`] answers.
    Resume(Resume<'a>),
    /// Sets the clock of a guest that was paused, on the control stream.
    Clock {
        /// The host's wall clock, in nanoseconds since 1970.
        unix_ns: u64,
    },
    /// Gives a stream up: nothing more is said on it. A command's session is ended; a kept
    /// command cannot be given up.
    Cancel,
}

/// What makes a booted guest ready for commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup<'a> {
    /// Its hostname.
    pub hostname: &'a [u8],
    /// The host's wall clock, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Fresh random bytes for the kernel's pool.
    pub entropy: &'a [u8],
    /// Where the root filesystem comes from.
    pub root: Root<'a>,
    /// Whether the guest powers off when its host hangs up, since nobody will come back.
    pub poweroff_on_hangup: bool,
    /// Its network, where it has one; a guest before [`Versions::NETWORK`] cannot be told. Without
    /// one the message is what it was before that version, byte for byte.
    pub network: Option<Network<'a>>,
    /// What is mounted beside the root, and written out before the guest ends; a guest before
    /// [`Versions::MOUNTS`] cannot be told. Where one cannot be mounted the guest does not go on.
    pub mounts: Mounts<'a>,
}

/// A point-to-point link to the host: an interface that has no route to anywhere else, and keeps
/// what it is in clones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The interface's hardware address, which it is found by.
    pub mac: [u8; 6],
    /// Its address.
    pub address: [u8; 4],
    /// How many bits of that name the subnet, the host in it.
    pub prefix_length: u8,
    /// The host's address.
    pub host: [u8; 4],
    /// The host's hardware address: nothing asks for it.
    pub host_mac: [u8; 6],
    /// The largest packet in bytes.
    pub mtu: u16,
}

/// What a restored guest has of its own, so that no two clones share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume<'a> {
    /// Its hostname.
    pub hostname: &'a [u8],
    /// The host's wall clock, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Fresh random bytes for the kernel's pool.
    pub entropy: &'a [u8],
    /// Which clone it is, of all that were ever made of its template.
    pub generation: u64,
    /// What `/etc/machine-id` says from now on.
    pub machine_id: [u8; 16],
    /// Its network, where it has one.
    pub network: Option<Network<'a>>,
}

/// Where the root filesystem comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root<'a> {
    /// Serial number of the block device with the read-only image.
    pub image_serial: &'a [u8],
    /// The image's filesystem as mount(2) names it.
    pub filesystem: &'a [u8],
    /// What writes go to.
    pub upper: Upper<'a>,
}

/// What takes the writes over a read-only image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper<'a> {
    /// The guest's own memory.
    Memory,
    /// A block device with this serial number, already holding an ext4 filesystem.
    Disk(&'a [u8]),
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A command to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exec<'a> {
    /// Program and arguments; the program is looked up in the command's `PATH`.
    pub argv: List<'a>,
    /// `NAME=value` each, over the guest's defaults.
    pub env: List<'a>,
    /// Working directory; `/` when empty.
    pub workdir: &'a [u8],
    /// `name`, `uid`, `name:group`, `uid:gid`; root when empty.
    pub user: &'a [u8],
    /// Size of its terminal, where it gets one.
    pub terminal: Option<Terminal>,
    /// Whether standard input follows as data; else it is `/dev/null`.
    pub stdin: bool,
    /// Whether the guest powers off when this command ends.
    pub main: bool,
    /// Whether it outlives the connection: what it writes and its end are kept until the host
    /// says that they are stored ([`ToGuest::Stored`], which takes the place of credit). Any
    /// other command is ended when the host hangs up.
    pub keep: bool,
}

/// A file to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put<'a> {
    /// Its path in the guest. Its folder must exist.
    pub path: &'a [u8],
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const SETUP: u8 = 0x02;
    pub(super) const PING: u8 = 0x03;
    pub(super) const SHUTDOWN: u8 = 0x04;
    pub(super) const CLOCK: u8 = 0x05;
    pub(super) const SETUP_WITH_MOUNTS: u8 = 0x06;
    pub(super) const EXEC: u8 = 0x10;
    pub(super) const DATA: u8 = 0x11;
    pub(super) const EOF: u8 = 0x12;
    pub(super) const CREDIT: u8 = 0x13;
    pub(super) const SIGNAL: u8 = 0x14;
    pub(super) const RESIZE: u8 = 0x15;
    pub(super) const PUT: u8 = 0x16;
    pub(super) const GET: u8 = 0x17;
    pub(super) const ATTACH: u8 = 0x18;
    pub(super) const STORED: u8 = 0x19;
    pub(super) const PACK: u8 = 0x1a;
    pub(super) const UNPACK: u8 = 0x1b;
    pub(super) const STAT: u8 = 0x1c;
    pub(super) const CONNECT: u8 = 0x1d;
    pub(super) const USAGE: u8 = 0x1e;
    pub(super) const CANCEL: u8 = 0x1f;
    pub(super) const LISTEN: u8 = 0x20;
    pub(super) const MOUNT: u8 = 0x21;
    pub(super) const FREEZE: u8 = 0x22;
    pub(super) const RESUME: u8 = 0x23;
    pub(super) const LINK: u8 = 0x24;
    pub(super) const SETTLE: u8 = 0x25;
}

impl<'a> ToGuest<'a> {
    /// Reads a frame that came from the host.
    ///
    /// # Errors
    /// A [`ProtocolError`] where the frame is not exactly of a known form.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, ProtocolError> {
        let control = frame.kind < kind::EXEC;
        if control != (frame.stream == CONTROL) {
            return Err(ProtocolError::Stream(frame.kind, frame.stream));
        }
        let mut r = Reader::new(frame.payload);
        let message = match frame.kind {
            kind::HELLO => Self::Hello {
                versions: Versions::read(&mut r)?,
                nonce: r.array()?,
            },
            kind::SETUP | kind::SETUP_WITH_MOUNTS => {
                Self::Setup(Setup::read(&mut r, frame.kind == kind::SETUP_WITH_MOUNTS)?)
            }
            kind::PING => Self::Ping(r.u64()?),
            kind::SHUTDOWN => Self::Shutdown {
                grace_ms: r.u32()?,
                signal: r.u8()?,
            },
            kind::EXEC => Self::Exec(Exec {
                argv: List::read(&mut r)?,
                env: List::read(&mut r)?,
                workdir: r.text()?,
                user: r.text()?,
                terminal: if r.bool()? {
                    Some(Terminal::read(&mut r)?)
                } else {
                    None
                },
                stdin: r.bool()?,
                main: r.bool()?,
                keep: r.bool()?,
            }),
            kind::DATA => Self::Data(r.rest()),
            kind::EOF => Self::Eof,
            kind::CREDIT => Self::Credit(r.u32()?),
            kind::SIGNAL => Self::Signal(r.u8()?),
            kind::RESIZE => Self::Resize(Terminal::read(&mut r)?),
            kind::PUT => Self::Put(Put {
                path: r.text()?,
                mode: r.u16()?,
                uid: r.u32()?,
                gid: r.u32()?,
            }),
            kind::GET => Self::Get { path: r.text()? },
            kind::ATTACH => Self::Attach { stored: r.u64()? },
            kind::STORED => Self::Stored {
                total: r.u64()?,
                end: r.bool()?,
            },
            kind::PACK => Self::Pack {
                path: r.text()?,
                name: r.text()?,
            },
            kind::UNPACK => Self::Unpack {
                path: r.text()?,
                owners: r.bool()?,
            },
            kind::STAT => Self::Stat {
                path: r.text()?,
                follow: r.bool()?,
            },
            kind::CONNECT => Self::Connect { port: r.u16()? },
            kind::USAGE => Self::Usage,
            kind::CANCEL => Self::Cancel,
            kind::LISTEN => Self::Listen { port: r.u16()? },
            kind::MOUNT => Self::Mount(Mount::read(&mut r)?),
            kind::LINK => Self::Link(Link {
                mac: r.array()?,
                address: r.array()?,
                prefix_length: r.u8()?,
                host: r.array()?,
                host_mac: r.array()?,
                mtu: r.u16()?,
            }),
            kind::FREEZE => Self::Freeze,
            kind::SETTLE => Self::Settle,
            kind::RESUME => Self::Resume(Resume {
                hostname: r.text()?,
                unix_ns: r.u64()?,
                entropy: r.bytes()?,
                generation: r.u64()?,
                machine_id: r.array()?,
                network: if r.bool()? {
                    Some(Network::read(&mut r)?)
                } else {
                    None
                },
            }),
            kind::CLOCK => Self::Clock { unix_ns: r.u64()? },
            other => return Err(ProtocolError::Kind(other)),
        };
        r.end()?;
        Ok(message)
    }

    /// Appends the message as a frame. Data that has a [`crate::MARK`] in it becomes two, or as
    /// many as it takes.
    ///
    /// # Errors
    /// [`ProtocolError::Oversized`] where it does not fit a frame, and
    /// [`ProtocolError::Malformed`] where anything but data has a mark in it, or a network could
    /// not be set up: `out` is as it was.
    pub fn encode(&self, stream: u32, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let begin = out.len();
        if let Self::Data(bytes) = self {
            let mut rest = *bytes;
            while let Some(at) = mark::GUEST.find(rest) {
                let (head, tail) = rest.split_at(at + MARK_SIZE / 2);
                Self::Data(head)
                    .append(stream, out)
                    .inspect_err(|_| out.truncate(begin))?;
                rest = tail;
            }
            return Self::Data(rest)
                .append(stream, out)
                .inspect_err(|_| out.truncate(begin));
        }
        self.append(stream, out)?;
        if mark::GUEST.find(&out[begin..]).is_some() {
            out.truncate(begin);
            return Err(ProtocolError::Malformed("a mark in a message"));
        }
        Ok(())
    }

    fn append(&self, stream: u32, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let network = match self {
            Self::Setup(setup) => setup.network.as_ref(),
            Self::Resume(resume) => resume.network.as_ref(),
            _ => None,
        };
        if let Some(network) = network {
            network.check()?;
        }
        let begin = out.len();
        out.extend_from_slice(&[0; HEADER]);
        let kind = self.write(&mut Writer(out));
        seal(out, begin, kind, stream)
    }

    fn write(&self, w: &mut Writer<'_>) -> u8 {
        match self {
            Self::Hello { versions, nonce } => {
                versions.write(w);
                w.raw(nonce);
                kind::HELLO
            }
            Self::Setup(setup) => setup.write(w),
            Self::Ping(number) => {
                w.u64(*number);
                kind::PING
            }
            Self::Shutdown { grace_ms, signal } => {
                w.u32(*grace_ms);
                w.u8(*signal);
                kind::SHUTDOWN
            }
            Self::Exec(exec) => {
                exec.argv.write(w);
                exec.env.write(w);
                w.bytes(exec.workdir);
                w.bytes(exec.user);
                w.bool(exec.terminal.is_some());
                if let Some(terminal) = exec.terminal {
                    terminal.write(w);
                }
                w.bool(exec.stdin);
                w.bool(exec.main);
                w.bool(exec.keep);
                kind::EXEC
            }
            Self::Data(bytes) => {
                w.raw(bytes);
                kind::DATA
            }
            Self::Eof => kind::EOF,
            Self::Credit(n) => {
                w.u32(*n);
                kind::CREDIT
            }
            Self::Signal(signal) => {
                w.u8(*signal);
                kind::SIGNAL
            }
            Self::Resize(terminal) => {
                terminal.write(w);
                kind::RESIZE
            }
            Self::Put(put) => {
                w.bytes(put.path);
                w.u16(put.mode);
                w.u32(put.uid);
                w.u32(put.gid);
                kind::PUT
            }
            Self::Get { path } => {
                w.bytes(path);
                kind::GET
            }
            Self::Attach { stored } => {
                w.u64(*stored);
                kind::ATTACH
            }
            Self::Stored { total, end } => {
                w.u64(*total);
                w.bool(*end);
                kind::STORED
            }
            Self::Pack { path, name } => {
                w.bytes(path);
                w.bytes(name);
                kind::PACK
            }
            Self::Unpack { path, owners } => {
                w.bytes(path);
                w.bool(*owners);
                kind::UNPACK
            }
            Self::Stat { path, follow } => {
                w.bytes(path);
                w.bool(*follow);
                kind::STAT
            }
            Self::Connect { port } => {
                w.u16(*port);
                kind::CONNECT
            }
            Self::Usage => kind::USAGE,
            Self::Cancel => kind::CANCEL,
            Self::Listen { port } => {
                w.u16(*port);
                kind::LISTEN
            }
            Self::Mount(mount) => {
                mount.write(w);
                kind::MOUNT
            }
            Self::Link(link) => {
                w.raw(&link.mac);
                w.raw(&link.address);
                w.u8(link.prefix_length);
                w.raw(&link.host);
                w.raw(&link.host_mac);
                w.u16(link.mtu);
                kind::LINK
            }
            Self::Freeze => kind::FREEZE,
            Self::Settle => kind::SETTLE,
            Self::Resume(resume) => {
                w.bytes(resume.hostname);
                w.u64(resume.unix_ns);
                w.bytes(resume.entropy);
                w.u64(resume.generation);
                w.raw(&resume.machine_id);
                w.bool(resume.network.is_some());
                if let Some(network) = &resume.network {
                    network.write(w);
                }
                kind::RESUME
            }
            Self::Clock { unix_ns } => {
                w.u64(*unix_ns);
                kind::CLOCK
            }
        }
    }
}

impl<'a> Setup<'a> {
    fn read(r: &mut Reader<'a>, has_mounts: bool) -> Result<Self, ProtocolError> {
        let setup = Self {
            hostname: r.text()?,
            unix_ns: r.u64()?,
            entropy: r.bytes()?,
            root: Root {
                image_serial: r.text()?,
                filesystem: r.text()?,
                upper: match r.u8()? {
                    0 => Upper::Memory,
                    1 => Upper::Disk(r.text()?),
                    _ => return Err(ProtocolError::Malformed("upper")),
                },
            },
            poweroff_on_hangup: r.bool()?,
            network: None,
            mounts: Mounts::default(),
        };
        // Without mounts the network is what is left; with them it is said whether there is one.
        let has_network = match has_mounts {
            true => r.bool()?,
            false => !r.is_empty(),
        };
        Ok(Self {
            network: match has_network {
                true => Some(Network::read(r)?),
                false => None,
            },
            mounts: match has_mounts {
                true => Mounts::read(r)?,
                false => Mounts::default(),
            },
            ..setup
        })
    }

    fn write(&self, w: &mut Writer<'_>) -> u8 {
        w.bytes(self.hostname);
        w.u64(self.unix_ns);
        w.bytes(self.entropy);
        w.bytes(self.root.image_serial);
        w.bytes(self.root.filesystem);
        match self.root.upper {
            Upper::Memory => w.u8(0),
            Upper::Disk(serial) => {
                w.u8(1);
                w.bytes(serial);
            }
        }
        w.bool(self.poweroff_on_hangup);
        let has_mounts = !self.mounts.is_empty();
        if has_mounts {
            w.bool(self.network.is_some());
        }
        if let Some(network) = &self.network {
            network.write(w);
        }
        if !has_mounts {
            return kind::SETUP;
        }
        self.mounts.write(w);
        kind::SETUP_WITH_MOUNTS
    }
}

impl Terminal {
    fn read(r: &mut Reader<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            rows: r.u16()?,
            columns: r.u16()?,
        })
    }

    fn write(self, w: &mut Writer<'_>) {
        w.u16(self.rows);
        w.u16(self.columns);
    }
}

/// Puts header and trailer around a payload that was appended at `begin`, or takes all away
/// again.
pub(crate) fn seal(
    out: &mut Vec<u8>,
    begin: usize,
    kind: u8,
    stream: u32,
) -> Result<(), ProtocolError> {
    let payload = &out[begin + HEADER..];
    let claimed = length(payload);
    if payload.len() > MAX_PAYLOAD {
        out.truncate(begin);
        return Err(ProtocolError::Oversized(claimed));
    }
    out[begin..begin + HEADER].copy_from_slice(&header(kind, stream, claimed));
    out.push(TRAILER);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoder, Item, ListBuf, MARK, MountsBuf, NetworkV6};
    use proptest::prelude::*;

    fn only_frame<'a>(decoder: &'a mut Decoder, wire: &[u8]) -> Frame<'a> {
        decoder.space()[..wire.len()].copy_from_slice(wire);
        decoder.filled(wire.len());
        assert_eq!(decoder.next_item(), Ok(Some(Item::Mark)));
        let Ok(Some(Item::Frame(frame))) = decoder.next_item() else {
            panic!("no frame");
        };
        frame
    }

    fn round_trip(message: &ToGuest<'_>, stream: u32) {
        let mut wire = MARK.to_vec();
        message.encode(stream, &mut wire).unwrap();
        let mut decoder = Decoder::for_guest();
        let frame = only_frame(&mut decoder, &wire);
        assert_eq!(frame.stream, stream);
        assert_eq!(ToGuest::decode(&frame).as_ref(), Ok(message));
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1_u8.., 0..40)
    }

    #[test]
    fn plain_messages_survive_the_wire() {
        for message in [
            ToGuest::Hello {
                versions: Versions::OURS,
                nonce: [3; 16],
            },
            ToGuest::Ping(u64::MAX),
            ToGuest::Shutdown {
                grace_ms: 7,
                signal: 15,
            },
            ToGuest::Clock { unix_ns: 1 << 60 },
        ] {
            round_trip(&message, CONTROL);
        }
        for message in [
            ToGuest::Eof,
            ToGuest::Credit(70_000),
            ToGuest::Signal(15),
            ToGuest::Resize(Terminal {
                rows: 24,
                columns: 80,
            }),
            ToGuest::Get {
                path: b"/etc/passwd",
            },
            ToGuest::Put(Put {
                path: b"/x",
                mode: 0o755,
                uid: 1,
                gid: u32::MAX,
            }),
            ToGuest::Attach { stored: 1 << 40 },
            ToGuest::Stored {
                total: u64::MAX,
                end: true,
            },
            ToGuest::Pack {
                path: b"/etc",
                name: b"",
            },
            ToGuest::Unpack {
                path: b"/",
                owners: true,
            },
            ToGuest::Stat {
                path: b"/x",
                follow: false,
            },
            ToGuest::Connect { port: 80 },
            ToGuest::Usage,
            ToGuest::Cancel,
            ToGuest::Listen { port: 9001 },
            ToGuest::Mount(Mount {
                serial: b"task",
                filesystem: b"erofs",
                target: b"/var/task",
                read_only: true,
                options: b"",
            }),
            ToGuest::Link(Link {
                mac: [2, 0, 0, 0, 0, 2],
                address: [169, 254, 100, 2],
                prefix_length: 30,
                host: [169, 254, 100, 1],
                host_mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
            }),
            ToGuest::Freeze,
            ToGuest::Settle,
            ToGuest::Resume(Resume {
                hostname: b"clone",
                unix_ns: 7,
                entropy: &[9; 64],
                generation: u64::MAX,
                machine_id: [5; 16],
                network: None,
            }),
        ] {
            round_trip(&message, 7);
        }
    }

    #[test]
    fn a_kind_on_the_wrong_stream_is_refused() {
        let mut wire = MARK.to_vec();
        ToGuest::Eof.encode(CONTROL, &mut wire).unwrap();
        let mut decoder = Decoder::for_guest();
        let frame = only_frame(&mut decoder, &wire);
        assert_eq!(ToGuest::decode(&frame), Err(ProtocolError::Stream(0x12, 0)));
    }

    const SETUP: Setup<'static> = Setup {
        hostname: b"job",
        unix_ns: 1,
        entropy: b"",
        root: Root {
            image_serial: b"r",
            filesystem: b"erofs",
            upper: Upper::Memory,
        },
        poweroff_on_hangup: true,
        network: None,
        mounts: Mounts::NONE,
    };

    #[test]
    fn a_set_up_without_network_is_that_of_version_2() {
        let mut wire = Vec::new();
        ToGuest::Setup(SETUP).encode(CONTROL, &mut wire).unwrap();
        let fields: [&[u8]; 9] = [
            &[3, 0, 0, 0],
            b"job",
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[0; 4],
            &[1, 0, 0, 0],
            b"r",
            &[5, 0, 0, 0],
            b"erofs",
            &[0, 1],
        ];
        assert_eq!(wire[HEADER..wire.len() - 1], fields.concat());
    }

    #[test]
    fn a_network_that_cannot_be_set_up_cannot_be_sent() {
        let mut wire = b"before".to_vec();
        let network = Network {
            mac: [2, 0, 0, 0, 0, 1],
            address: [10, 0, 0, 2],
            prefix_length: 30,
            gateway: [10, 0, 0, 1],
            gateway_mac: [2, 0, 0, 0, 0, 2],
            mtu: 20,
            resolver: None,
            search: b"",
            v6: None,
        };
        let network = Some(network);
        let refused = ToGuest::Setup(Setup { network, ..SETUP }).encode(CONTROL, &mut wire);
        assert_eq!(refused, Err(ProtocolError::Malformed("MTU")));
        assert_eq!(wire, b"before");
    }

    #[test]
    fn a_mark_where_no_data_is_cannot_be_sent() {
        let mut wire = b"before".to_vec();
        let path = [b"/tmp/", &MARK[..]].concat();
        let refused = ToGuest::Get { path: &path }.encode(1, &mut wire);
        assert!(matches!(refused, Err(ProtocolError::Malformed(_))));
        assert_eq!(wire, b"before");
    }

    proptest! {
        #[test]
        fn commands_survive_the_wire(
            argv in prop::collection::vec(text(), 0..8),
            env in prop::collection::vec(text(), 0..8),
            workdir in text(), user in text(),
            size in prop::option::of((any::<u16>(), any::<u16>())),
            stdin in any::<bool>(), main in any::<bool>(), keep in any::<bool>(),
        ) {
            let (argv, env) = (ListBuf::new(argv).unwrap(), ListBuf::new(env).unwrap());
            round_trip(&ToGuest::Exec(Exec {
                argv: argv.as_list(),
                env: env.as_list(),
                workdir: &workdir,
                user: &user,
                terminal: size.map(|(rows, columns)| Terminal { rows, columns }),
                stdin,
                main,
                keep,
            }), 1);
        }

        #[test]
        fn setups_survive_the_wire(
            hostname in text(), unix_ns in any::<u64>(),
            entropy in prop::collection::vec(any::<u8>(), 0..64),
            image_serial in text(), filesystem in text(),
            disk in prop::option::of(text()), poweroff_on_hangup in any::<bool>(),
            address in prop::option::of(any::<[u8; 3]>()), mtu in 1280_u16..,
            resolver in prop::option::of(any::<[u8; 4]>()), v6 in prop::option::of(any::<[u8; 15]>()),
            mounts in prop::collection::vec((text(), text(), text(), any::<bool>(), text()), 0..4),
        ) {
            let mounts = MountsBuf::new(mounts.iter().map(|(serial, filesystem, target, read_only, options)| Mount {
                serial,
                filesystem,
                target,
                read_only: *read_only,
                options,
            })).unwrap();
            let upper = disk.as_deref().map_or(Upper::Memory, Upper::Disk);
            round_trip(&ToGuest::Setup(Setup {
                hostname: &hostname,
                unix_ns,
                entropy: &entropy,
                root: Root { image_serial: &image_serial, filesystem: &filesystem, upper },
                poweroff_on_hangup,
                network: address.map(|[a, b, c]| Network {
                    mac: [0x52, 0x54, 0, a, b, c],
                    address: [10, a, b, c],
                    prefix_length: 30,
                    gateway: [10, a, b, c ^ 3],
                    gateway_mac: [0x52, 0x54, 1, c, b, a],
                    mtu,
                    resolver,
                    search: if resolver.is_some() { b"jobs.internal" } else { b"" },
                    v6: v6.map(|end| {
                        let mut address = [0xfd; 16];
                        address[1..].copy_from_slice(&end);
                        NetworkV6 { address, prefix_length: 64, gateway: [0xfd; 16] }
                    }),
                }),
                mounts: mounts.as_mounts(),
            }), CONTROL);
        }

        /// A setup whose end is cut, or any other byte, is of its form or refused, with mounts too.
        #[test]
        fn a_setup_with_mounts_is_strict(at in 0_usize..80, byte in any::<u8>(), cut in 0_usize..80) {
            let mount = Mount {
                serial: b"v1", filesystem: b"ext4", target: b"/srv", read_only: true, options: b"",
            };
            let mounts = MountsBuf::new([mount, mount]).unwrap();
            let mut wire = Vec::new();
            ToGuest::Setup(Setup { mounts: mounts.as_mounts(), ..SETUP })
                .encode(CONTROL, &mut wire)
                .unwrap();
            let mut payload = wire[HEADER..wire.len() - 1].to_vec();
            let at = at % payload.len();
            payload[at] = byte;
            payload.truncate(payload.len().saturating_sub(cut / 8));
            let frame = Frame { kind: kind::SETUP_WITH_MOUNTS, stream: CONTROL, payload: &payload };
            if let Ok(message) = ToGuest::decode(&frame) {
                let mut wire = Vec::new();
                // A mark that came of it could not be sent.
                if message.encode(CONTROL, &mut wire).is_ok() {
                    prop_assert_eq!(&wire[HEADER..wire.len() - 1], &payload[..]);
                }
            }
        }

        /// Whatever a payload holds, decoding it ends in a message that encodes to the same
        /// bytes, or in an error: never in a panic.
        #[test]
        fn decoding_is_strict(kind in 0_u8..0x30, payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let stream = u32::from(kind >= 0x10);
            let frame = Frame { kind, stream, payload: &payload };
            if let Ok(message) = ToGuest::decode(&frame) {
                let mut wire = Vec::new();
                message.encode(stream, &mut wire).unwrap();
                prop_assert_eq!(&wire[HEADER..wire.len() - 1], &payload[..]);
            }
        }
    }
}
