//! What tests stand on.
//!
//! | entry point | what it is |
//! | --- | --- |
//! | [`ScriptedDriver`] | a hypervisor without VMs, whose guests do what a script says |
//! | [`NoImages`] | images for what is scripted |
//! | [`TestRoot`] | a node's folder of a test's own, with the shared kernel bundle and image |
//! | [`TestRoot::residue`] | what a node left on the host: processes, mounts, cgroups, sockets, files |
//! | [`TestHost`] | a VM as the host of a test, for what this machine lacks |
//! | [`wait_until`] | waits for a condition, instead of sleeping |

mod images;
mod root;
mod scripted;
mod scripted_guest;
mod test_host;
mod wait;

pub use images::{NoImages, TestImages};
pub use root::TestRoot;
pub use scripted::{Script, ScriptedDriver, Vmm};
pub use scripted_guest::Guest;
pub use test_host::{Case, TestHost};
pub use wait::wait_until;
