//! The guest agent: PID 1 of every microVM.
//!
//! The crate owns what happens inside a guest between the kernel's start and its power-off: the
//! mounts, the modules, the root filesystem, and then one loop that runs commands, moves files
//! and collects processes for the host. It knows the protocol of `aleph-guest-proto` and nothing
//! of jobs, images or VMMs.
//!
//! | entry point | what it is |
//! | --- | --- |
//! | [`init`] | what PID 1 does from its start to its power-off |
//! | [`Session`] | the loop, on any channel and any [`Machine`]; tests run it on a socket |
//! | `main.rs` | the binary: startup code, heap, panics; built with the feature `pid1` |
//!
//! It has neither a C library nor the standard library nor a runtime: it is emulated on hosts
//! without hardware virtualization, and it is part of every template's memory.
//!
//! # Connections
//! The host speaks first on each connection; the agent answers its `Hello` with `Hello` and
//! `Ready`, and with a `Kept` for each command that outlived the last connection. A `Setup` that
//! comes again changes nothing and is answered with `Ready`.
//!
//! When a host hangs up, half frames and all that was under way are dropped. What it began is
//! given up: files and archives stay as they are, connections close, and commands lose their
//! session as that of a closed terminal does (hang-up, and KILL a second later). A main command
//! that goes that way takes the guest with it. With `poweroff_on_hangup` the guest ends 2 s after
//! the hang-up in any case.
//!
//! Commands with `keep` run on. Their output is read on, up to a window, and told to the next
//! host from the byte on that the last one stored; the end of one is told on each connection
//! until a host has stored that, and until then the guest stays, whatever it was asked to do
//! meanwhile. Input that was under way is lost, but for input whose end was told.
//!
//! When a main command that is not kept has ended, the power stays on until its host has taken
//! the last frames: it shows that by credit (three quarters of each window), by a `Shutdown`, or
//! by hanging up.
//!
//! # Invariants
//! - One thread, and one place where it waits. Setting up is the only thing that holds it.
//! - Nothing from the host is stored beyond its window, and nothing from a command is read that
//!   the host has no window for.
//! - No panic is reachable from bytes of the host; a rule that it breaks ends in `Fatal`.
//! - Nothing that ends the machine is reachable from a process other than PID 1.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod allocator;
mod archive;
mod backlog;
mod census;
mod channel;
mod command;
mod connection;
mod dialogue;
mod ending;
mod failure;
mod file;
mod get;
pub mod init;
mod input;
mod launch;
mod leaving;
mod listener;
mod memory;
mod operations;
mod outlet;
mod put;
mod session;
mod stat;
mod stream;
pub mod sys;
mod terminal;
mod transmit;
mod usage;
mod user;

pub use allocator::Allocator;
pub use channel::Channel;
pub use dialogue::Machine;
pub use failure::Failure;
pub use session::{End, Session};
