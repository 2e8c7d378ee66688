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
