//! Firecracker as the VMM: versions 1.10 to 1.17.
//!
//! | module | what it is | effects |
//! | --- | --- | --- |
//! | [`version`] | which Firecracker this is, and what it lacks | none: pure |
//! | [`api`] | its API as types | none: pure |
//! | [`config`] | a whole VM, as calls of the API or as a configuration file | none: pure |
//! | [`client`] | the API over its Unix socket | one socket |
//! | [`jail`] | what locks a VMM up | users, folders, mounts |
//! | [`memory`] | memory servers: guests' memory, filled as they touch it | starts them |
//! | [`program`] | the program, and which version it is | runs it |
//! | `nic` | network devices: TAPs, by name | gives them to the VMM's user |
//! | `link` | network devices whose other end is a socket here | TAPs, network namespaces |
//! | `base` | what a guest is written down as a difference from | none: pure |
//! | `exit` | why a Firecracker ended, in words | none: pure |
//! | `figures` | what it counts of itself | reads a pipe |
//! | [`driver`] | Firecracker behind the hypervisor seam | starts it |
//! | `ahead` | processes that wait for their guests | starts them |
//! | `preparation` | what a launch prepares, and the process | files, jail, starts it |
//! | `beginning` | what the process is told until its guest runs | calls of the API |
//!
//! # Where to begin
//! [`Version::of_program`] reads what the program says of itself. A [`FirecrackerConfig`] describes
//! a VM; [`FirecrackerConfig::calls`] are what a [`Client`] is to make, in order, before
//! [`api::Action::InstanceStart`], and [`FirecrackerConfig::file`] is the same for `--config-file`.
//! [`api::SnapshotLoad`] begins from a snapshot instead.
//!
//! # Why an own client
//! Of the crates for this API none has `vsock_override`, `clock_realtime` or the removal of devices,
//! and none knows that versions differ: they send a field that a version does not have, and the VM
//! fails to start where it could have been refused at admission. The API is small, and HTTP itself is
//! hyper's.
//!
//! # Failure cases
//! - A version outside the range: [`VersionError`].
//! - A setting that is wrong, or that the version lacks: [`api::Invalid`], with all of them, before
//!   anything is sent.
//! - A Firecracker that refuses, is silent, is gone or speaks something else: [`ClientError`].

mod ahead;
pub mod api;
mod base;
mod beginning;
pub mod client;
pub mod config;
pub mod driver;
mod exit;
mod figures;
mod home;
pub mod jail;
mod link;
pub mod memory;
mod nic;
mod packing;
mod preparation;
pub mod program;
mod quarters;
mod serial;
pub mod version;
mod vmm;

pub use client::{Client, ClientError};
pub use config::{ConfigFile, FirecrackerConfig};
pub use driver::{DriverConfig, FirecrackerDriver};
pub use memory::{MemoryMode, serve_memory};
pub use nic::NicError;
pub use version::{Feature, Unsupported, Version, VersionError};
