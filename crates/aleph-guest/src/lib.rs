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
//! The agent speaks first on each connection; what streams say waits until the host has said
//! hello too. When a host hangs up, half frames and all that was under way are dropped, files
//! are given up, and commands run on with their windows whole again: unread input is lost, but
//! for input whose end was told, and output waits in pipes. The next connection hears `Hello`,
//! `Ready`, a `Started` for each command whose end was not told yet, under its old stream
//! number, and then what such a command says. Its `Setup` changes nothing and is answered with
//! `Ready`.
//!
//! When the main command has ended, the power stays on until its host has taken the last frames:
//! it shows that by credit (three quarters of each window), by a `Shutdown`, or by hanging up.
//! A host that sees the end of its main command best hangs up.
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
mod channel;
mod command;
mod dialogue;
mod ending;
mod failure;
mod file;
mod get;
pub mod init;
mod input;
mod launch;
mod memory;
mod outlet;
mod put;
mod session;
mod stream;
pub mod sys;
mod terminal;
mod transmit;
mod user;

pub use allocator::Allocator;
pub use channel::Channel;
pub use dialogue::Machine;
pub use failure::Failure;
pub use session::{End, Session};
