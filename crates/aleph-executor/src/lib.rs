//! The whole life of a VM on one host: launch, supervise, talk to, stop, and clean up after.
//!
//! The crate owns processes, sockets, cgroups and folders of VMs, and the conversation with
//! their guests. It refuses to know tenants, money, networks of hosts, and where images come
//! from: it gets open files.
//!
//! # Where to begin
//! [`Executor::open`] gives a node's executor, [`Executor::create`] a [`Vm`] for a job,
//! [`Vm::start`] launches it with a main command, [`Vm::wait`] tells how it ended and
//! [`Vm::destroy`] leaves nothing behind.
//!
//! | module | what it is | effects |
//! | --- | --- | --- |
//! | [`executor`] | composes the rest | |
//! | [`lifecycle`] | the life as a state machine | none: pure |
//! | [`vm`] | the actor of one VM | through the others |
//! | [`drivers`] | which hypervisor runs VMs, and who adopts which | asks programs their version |
//! | [`hypervisor`] | the seam: a small core, and facets | none: traits |
//! | [`qemu`] | QEMU behind the seam | starts QEMU |
//! | [`firecracker`] | Firecracker behind the seam | starts Firecracker |
//! | [`functions`] | code that runs when an event comes, in clones of a template | through the others |
//! | [`gpu`] | the GPUs of the host, and giving them to guests | sysfs, one file |
//! | [`guest`] | the channel to the guest's agent | one socket |
//! | [`guest_agent`] | QEMU's agent in guests that have it: filesystems that stand still | one socket |
//! | [`vsock`] | connections to a guest's vsock ports | one socket |
//! | [`cloud_init`] | what a full VM's cloud-init is told and answers | none: pure |
//! | [`seed_file`] | the disk that tells it, in a file | one file |
//! | [`volumes`] | disks that outlive jobs | files, `qemu-img`, `mke2fs` |
//! | [`place`] | what the host holds for a VM | folders, sockets, cgroup |
//! | [`sweep`] | removes what dead owners left | the same |
//! | [`process`], [`cgroup`] | host objects | yes |
//! | [`capacity`], [`accel`] | admission, choice of accelerator | none: pure |
//! | [`host`], [`doctor`] | facts of the host, and what to mend | reads |
//! | [`console`] | the end of a guest's serial console | none |

pub mod accel;
pub mod capacity;
pub mod cgroup;
pub mod cloud_init;
mod computer;
pub mod console;
pub mod doctor;
pub mod drivers;
pub mod executor;
mod failpoint;
pub mod firecracker;
pub mod functions;
pub mod gpu;
pub mod guest;
pub mod guest_agent;
pub mod host;
pub mod hypervisor;
pub mod journal;
pub mod lifecycle;
pub mod logs;
pub mod node;
pub mod paths;
pub mod place;
pub mod process;
pub mod qemu;
pub mod seed_file;
mod socket;
pub mod sweep;
mod tail;
pub mod vm;
pub mod volumes;
pub mod vsock;

pub use drivers::Hypervisor;
pub use executor::{Boot, Executor, ExecutorConfig, ExecutorError};
pub use node::{Node, NodeConfig, NodeError};
pub use paths::Paths;
pub use vm::{Status, Vm, VmError, VmSpec};
