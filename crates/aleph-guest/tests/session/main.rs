//! Whole sessions, driven over a socket by a host that speaks the protocol.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it cannot go on"
)]

mod accepted;
mod archives;
mod commands;
mod conversation;
mod facts;
mod files;
mod kept;
mod listener;
mod support;
