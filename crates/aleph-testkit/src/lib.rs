//! What tests stand on.
//!
//! | entry point | what it is |
//! | --- | --- |
//! | [`ScriptedDriver`] | a hypervisor without VMs, whose guests do what a script says |
//! | [`TestRoot`] | a node's folder of a test's own, with the shared kernel bundle and image |
//! | [`TestRoot::residue`] | what a node left on the host: processes, mounts, cgroups, sockets, files |
//! | [`wait_until`] | waits for a condition, instead of sleeping |

mod images;
mod root;
mod scripted;
mod scripted_guest;
mod wait;

pub use images::TestImages;
pub use root::TestRoot;
pub use scripted::{Script, ScriptedDriver, Vmm};
pub use scripted_guest::Guest;
pub use wait::wait_until;
