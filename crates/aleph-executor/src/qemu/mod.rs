//! QEMU as the VMM: its `microvm` machine for microVMs, with KVM or software emulation.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`argv`] | the command line, as a pure function |
//! | [`probe`] | what an installed QEMU is and can do, asked once and remembered |
//! | [`qmp`] | QEMU's machine protocol |
//! | [`driver`] | the [`crate::hypervisor::Driver`] over the three |
//! | `late` | what one is told that was launched before it was known what for |
//! | `ahead` | the facet of that: [`crate::hypervisor::Ahead`] |
//!
//! Works with QEMU 7.2 (Debian 12) and later: nothing is used that one of them lacks.

mod ahead;
pub mod argv;
pub mod driver;
mod late;
pub mod probe;
pub mod qmp;

pub use driver::{QemuConfig, QemuDriver};
pub use probe::find;
