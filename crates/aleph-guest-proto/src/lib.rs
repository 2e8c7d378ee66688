//! The frames that a host and the agent in its guest exchange over one byte channel.
//!
//! The crate owns the encoding and nothing else: no I/O, no clock, no allocation beyond the
//! buffers that its caller hands in and one bounded decoder buffer. It is `no_std`, so that the
//! agent stays small, and every byte from the other side is taken for hostile: sizes are
//! bounded before anything is stored, and what is not exactly of its form is an error.
//!
//! # The channel
//! A frame is a 12-byte header ([`frame`]), a payload of at most [`MAX_PAYLOAD`] bytes and a
//! trailer. Stream 0 speaks of the guest as a whole; every other stream is one operation that
//! the host began (a command, a file or an archive in or out, a connection) under a number that
//! it chose. Numbers are little-endian.
//!
//! ```text
//! host                                   guest
//!   MARK, Hello{2..=4, nonce} ─────────▶        (may be sent before the guest even runs)
//!                ◀───────────────────── nonce, Hello{2..=4, times, boot id, ready: no}
//!   Setup{root, time, entropy, …} ─────▶        (after the guest's Hello: it tells the time)
//!   1: Exec{argv, env, keep, …} ───────▶
//!                ◀────────────────────── Ready{times}        or Fatal{why}, then the end
//!                ◀────────────────────── 1: Started{pid}     or 1: Failed{errno, why}
//!   1: Data(stdin…) ───────────────────▶
//!                ◀────────────────────── 1: Data(stdout…), 1: ErrorData(stderr…)
//!   1: Credit{n} ──────────────────────▶                     (flow control, both ways)
//!                ◀────────────────────── 1: Exited{code or signal}
//! ```
//!
//! # Connections
//! A host may vanish at any byte, and the next one may be there before the guest has looked.
//! So a connection begins with bytes that a decoder finds wherever they stand ([`mark`]):
//! everything before them belongs to somebody else. The host speaks first; the guest answers
//! with the nonce of that very `Hello`, and says nothing to a host that has not said hello.
//!
//! What a connection began ends with it, but for commands with `keep`:
//!
//! ```text
//! new host                               guest
//!   MARK, Hello{2..=4, nonce} ─────────▶
//!                ◀───────────────────── nonce, Hello{…, the same boot id, ready: yes}
//!                ◀───────────────────── 1: Kept{pid, stored: 900, written: 5000, …}, Ready
//!   1: Attach{stored: 1200} ───────────▶        (it has 300 more than the guest heard of)
//!                ◀───────────────────── 1: Data(…), 1: ErrorData(…)     (from 1200 on)
//!   1: Stored{total: 5000} ────────────▶        (the guest forgets them)
//!                ◀───────────────────── 1: Exited{…}
//!   1: Stored{total: 5000, end} ───────▶        (only now it forgets the command)
//! ```
//!
//! A new host takes numbers above those of all kept streams.
//!
//! Where the channel is a vsock connection, each connection of the protocol is one of its own: the
//! agent listens ([`VSOCK_PORT`]), speaks with one host at a time, and begins with the next one
//! when that one's connection has ended. All else is the same, marks and nonces too.
//!
//! # Clones
//! A guest that is about to be written down is frozen first, and then all is said that there is to
//! say. Each clone of it begins at that point, with another host:
//!
//! ```text
//! new host                               clone
//!   MARK, Hello{2..=4, nonce} ─────────▶        (before it runs, or as it does)
//!                ◀───────────────────── nonce, Hello{…, ready: yes}, 1: Kept{…}
//!                ◀───────────────────── 2³¹: Accepted{9001}, Data(GET …/next), Ready
//!   2: Resume{entropy, time, …} ───────▶        (before any of its processes runs)
//!   2³¹: Data(200 OK …) ───────────────▶
//!                ◀───────────────────── 2: Done
//! ```
//!
//! # Versions
//! Both sides open with `Hello` and the range of versions that they speak; the highest common
//! one is used ([`negotiate`]). No common one ends the guest with an error that names both.
//!
//! | version | what it adds |
//! | --- | --- |
//! | 1 | was never in a guest that outlives its host, and is spoken no more |
//! | 2 | marks, kept commands |
//! | 3 | a [`Network`] at the end of `Setup`; without one `Setup` is that of version 2 |
//! | 4 | what clones need: `Listen`, `Mount`, `Freeze`, `Resume`, `Clock` and `Accepted` |
//! | 5 | for functions: `Link`, a link to the host that no agent is in the way of, and `Settle` |
//! | 6 | [`Mounts`] in `Setup`, which has a kind of its own then; without them it is as before |
//!
//! So a guest of version 2 is adopted as it is, and one that was not set up yet can be, as long
//! as it is to have no network and no mounts.
//!
//! # Flow control
//! Each direction of each stream has a window of [`WINDOW`] bytes ([`SendWindow`],
//! [`ReceiveWindow`]). The receiver returns credit as it passes bytes on, so neither side ever
//! stores more than a window a stream. Standard output and error share one window. A kept
//! command's output has no credit: what is not [`ToGuest::Stored`] is within a window.
//!
//! # Failure cases
//! | what | outcome |
//! | --- | --- |
//! | wrong magic or trailer, unknown kind, flags set, oversized length, malformed payload | [`ProtocolError`]: the receiver drops the channel; for the host that ends the VM |
//! | more data than the window | [`WindowError`]: likewise |
//! | a frame that starts and never ends | [`Decoder::is_mid_frame`] lets the receiver put a deadline on it |
//! | the channel closes within a frame, seen or not | the next connection's mark drops it; [`Decoder::reset`] where it is seen |
//! | a host that is gone between storing output and saying so | it says so in `Attach` |
//!
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod frame;
mod list;
pub mod mark;
mod mounts;
mod network;
mod to_guest;
mod to_host;
mod version;
mod window;
mod wire;

pub use frame::{Decoder, Frame, HEADER, Item, MAX_PAYLOAD, OVERHEAD, ProtocolError};
pub use list::{List, ListBuf};
pub use mark::{MARK, MARK_SIZE};
pub use mounts::{Mount, Mounts, MountsBuf};
pub use network::{Network, NetworkV6};
pub use to_guest::{Exec, Link, Put, Resume, Root, Setup, Terminal, ToGuest, Upper};
pub use to_host::{Exit, FileInfo, FileKind, FileStat, Kept, ToHost, Usage};
pub use version::{VersionMismatch, Versions, negotiate};
pub use window::{ReceiveWindow, SendWindow, WINDOW, WindowError};

/// The stream that speaks of the guest as a whole.
pub const CONTROL: u32 = 0;

/// Streams from this number on are the guest's to begin; all others are the host's.
pub const GUEST_STREAMS: u32 = 1 << 31;

/// The name of the virtio-serial port that carries the channel.
pub const PORT_NAME: &str = "aleph.agent.0";

/// The vsock port that the agent listens on where its channel is a vsock connection.
pub const VSOCK_PORT: u32 = 1024;

/// The word on the kernel's command line that has the agent listen on [`VSOCK_PORT`], instead of
/// opening the port called [`PORT_NAME`].
pub const VSOCK_ARGUMENT: &str = "aleph.channel=vsock";

/// The beginning of the word on the kernel's command line that says the serial numbers of the guest's
/// disks in their order, with commas between them, where the VMM does not give disks any.
pub const DISKS_ARGUMENT: &str = "aleph.disks=";
