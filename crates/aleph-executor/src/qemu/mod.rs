//! QEMU as the VMM: its `microvm` machine for microVMs, its q35 for whole computers, with KVM or software
//! emulation.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`argv`] | the command line of a microVM, as a pure function |
//! | [`block`] | disks as block nodes, pure too |
//! | [`machine`] | whole computers |
//! | [`probe`] | what an installed QEMU is and can do, asked once and remembered |
//! | [`qmp`] | QEMU's machine protocol |
//! | `control` | the connection by it, and what is told over it unasked |
//! | [`driver`] | the [`crate::hypervisor::Driver`] over the three |
//! | `late` | what one is told that was launched before it was known what for |
//! | `ahead` | the facet of that: [`crate::hypervisor::Ahead`] |
//!
//! Works with QEMU 7.2 (Debian 12) and later: nothing is used that one of them lacks.

mod ahead;
pub mod argv;
pub mod block;
mod control;
pub mod driver;
mod late;
pub mod machine;
pub mod probe;
pub mod qmp;

pub use driver::{QemuConfig, QemuDriver};
pub use machine::FirmwareFiles;
pub use probe::find;
