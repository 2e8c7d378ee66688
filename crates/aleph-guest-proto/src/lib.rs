//! The frames that a host and the agent in its guest exchange over one byte channel.
//!
//! The crate owns the encoding and nothing else: no I/O, no clock, no allocation beyond the
//! buffers that its caller hands in and one bounded decoder buffer. It is `no_std`, so that the
//! agent stays small, and every byte from the other side is taken for hostile: sizes are
//! bounded before anything is stored, and what is not exactly of its form is an error.
//!
//! # The channel
//! A frame is a 12-byte header ([`frame`]) and a payload of at most [`MAX_PAYLOAD`] bytes. Stream
//! 0 speaks of the guest as a whole; every other stream is one operation that the host began
//! (a command, a file in, a file out) under a number that it chose. Numbers are little-endian.
//!
//! ```text
//! host                                   guest
//!   Hello{1..=1} ──────────────────────▶        (may be sent before the guest even runs)
//!                ◀────────────────────── Hello{1..=1, times}
//!   Setup{root, time, entropy, …} ─────▶        (after the guest's Hello: it tells the time)
//!   1: Exec{argv, env, …} ─────────────▶
//!                ◀────────────────────── Ready{times}        or Fatal{why}, then the end
//!                ◀────────────────────── 1: Started{pid}     or 1: Failed{errno, why}
//!   1: Data(stdin…) ───────────────────▶
//!                ◀────────────────────── 1: Data(stdout…), 1: ErrorData(stderr…)
//!   1: Credit{n} ──────────────────────▶                     (flow control, both ways)
//!                ◀────────────────────── 1: Exited{code or signal}
//! ```
//!
//! # Versions
//! Both sides open with `Hello` and the range of versions that they speak; the highest common
//! one is used ([`negotiate`]). No common one ends the guest with an error that names both.
//!
//! # Flow control
//! Each direction of each stream has a window of [`WINDOW`] bytes ([`SendWindow`],
//! [`ReceiveWindow`]). The receiver returns credit as it passes bytes on, so neither side ever
//! stores more than a window a stream. Standard output and error share one window.
//!
//! # Failure cases
//! | what | outcome |
//! | --- | --- |
//! | wrong magic, unknown kind, flags set, oversized length, malformed payload | [`ProtocolError`]: the receiver drops the channel; for the host that ends the VM |
//! | more data than the window | [`WindowError`]: likewise |
//! | a frame that starts and never ends | [`Decoder::is_mid_frame`] lets the receiver put a deadline on it |
//! | the channel closes within a frame | the receiver calls [`Decoder::reset`] and goes on with the next connection |

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod frame;
mod list;
mod to_guest;
mod to_host;
mod version;
mod window;
mod wire;

pub use frame::{Decoder, Frame, HEADER, MAX_PAYLOAD, ProtocolError};
pub use list::{List, ListBuf};
pub use to_guest::{Exec, Put, Root, Setup, Terminal, ToGuest, Upper};
pub use to_host::{Exit, FileInfo, ToHost};
pub use version::{VersionMismatch, Versions, negotiate};
pub use window::{ReceiveWindow, SendWindow, WINDOW, WindowError};

/// The stream that speaks of the guest as a whole.
pub const CONTROL: u32 = 0;

/// The name of the virtio-serial port that carries the channel.
pub const PORT_NAME: &str = "aleph.agent.0";
