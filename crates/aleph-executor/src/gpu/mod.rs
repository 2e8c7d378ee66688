//! The host's GPUs, and giving them to guests whole (VFIO passthrough).
//!
//! | file | what it is | effects |
//! | --- | --- | --- |
//! | `address`, `function` | a PCI function, and what is known of it | none |
//! | `model` | the memory and type of data-centre GPUs, by their ids | none |
//! | `sysfs`, `users` | what the kernel shows: functions, and who has their device nodes open | reads |
//! | `nvml` | what NVIDIA's driver says of its GPUs, and that it is asked once | asks through `nvml_reader` |
//! | `nvml_reader` | the process that loads NVIDIA's library | a process that ends |
//! | `mig` | the parts that MIG divides a GPU into | none |
//! | `inventory` | the GPUs of a host, each with its group, companions and state | reads |
//! | `choice` | which GPUs a job gets, or why each does not fit | none: pure |
//! | `record` | who has which: a file, written before anything is changed | one folder |
//! | `binding` | binding one function, giving it back, reset, check | writes to sysfs |
//! | `hot_reset` | resetting a whole bus | through VFIO |
//! | `group` | the same for a whole group | through `binding` |
//! | `memory_node` | the NUMA node that a guest's memory is on | reads |
//! | `passthrough` | the arguments that give devices to a guest of QEMU | none: pure |
//! | `assignment` | [`Gpus`]: gives GPUs to tenants and takes them back | through the others |
//!
//! Start at [`Gpus::inventory`], then [`Gpus::assign`], [`Gpus::release`], and [`Gpus::recover`] where a
//! daemon starts. [`HostTree`] says where the kernel's files are, so that a recorded tree can be read.
//!
//! # What holds
//! - An IOMMU group is given whole or not at all. Bridges in it stay with the host.
//! - A device has one tenant at most: the record is one file of the whole host, changed under a lock.
//! - A device is reset and checked before each tenant and after it. One that fails goes into
//!   quarantine with the reason, which outlives the daemon and the boot of the host, until
//!   [`Gpus::end_quarantine`] finds it mended.
//! - What is recorded says how each function was before, so the host gets back what it had. What a driver
//!   of the host has and a process uses is not touched.
//!
//! # What fails
//! [`GpuError`] where the host cannot give devices away (no IOMMU, no driver for guests), where none fits
//! ([`NoFit`] says why for each GPU), where one is in use. A [`DeviceFault`] is a device's own, and it goes
//! into quarantine; a [`HostFault`] is the host's, and nothing does.
//!
//! # How much memory a GPU has
//! Of data-centre GPUs their ids tell it, as their makers name it, since that is what jobs ask for. Of
//! others it is what NVML says, rounded up to whole GiB, or amdgpu in sysfs; and where neither drives it, the
//! size of its largest prefetchable region.

mod address;
mod assignment;
mod binding;
mod choice;
mod error;
mod function;
mod group;
mod hot_reset;
mod inventory;
mod memory_node;
mod mig;
mod model;
mod nvml;
mod nvml_reader;
mod passthrough;
mod record;
mod sysfs;
mod users;

pub use address::{ParsePciAddressError, PciAddress};
pub use assignment::{GpuConfig, Gpus, Released};
pub use choice::{Allowed, ChosenGroup, Misfit, NoFit, choose, misfits};
pub use error::{DeviceFault, GpuError, HostFault};
pub use function::{Bar, MediatedType, PciFunction};
pub use inventory::{Gpu, GpuState, Inventory, Names, VFIO_PCI, Vram, VramSource, is_for_guests};
pub use memory_node::{MemoryNode, memory_node};
pub use mig::MigInstance;
pub use model::Model;
pub use nvml::{Nvml, NvmlError, NvmlGpu, NvmlInstance};
pub use nvml_reader::{NVML_READER, NvmlReader, read_nvml};
pub use passthrough::{Passthrough, window_argv};
pub use record::{ParseTenantError, Prior, Quarantine, Record, Taken, TakenFunction, Tenant};
pub use sysfs::HostTree;
pub use users::DeviceUser;
