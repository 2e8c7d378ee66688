//! What tests stand on.
//!
//! | entry point | what it is |
//! | --- | --- |
//! | [`ScriptedDriver`] | a hypervisor without VMs, whose guests do what a script says |
//! | [`NoImages`] | images for what is scripted |
//! | [`ScriptedRunner`] | a runner of functions without VMs |
//! | [`TestRoot`] | a node's folder of a test's own, with the shared kernel bundle and image |
//! | [`TestRoot::residue`] | what a node left on the host: processes, mounts, cgroups, sockets, files |
//! | [`recipe_image`] | the image of a recipe, built once for all tests |
//! | [`functions`] | functions for tests, packed as users pack them |
//! | [`python_with_boto3`], [`python_with_cloudevents`] | clients of functions, from PyPI |
//! | [`python_with_moto`] | a server that speaks S3, from PyPI |
//! | [`cargo_lambda`], [`workerd`] | what functions are compared with |
//! | [`python_with_cloud_init`], [`mtools`] | Debian's programs, without installing them |
//! | [`boot_disk`] | a disk that SeaBIOS boots in a moment, and that listens to the power button |
//! | [`ShellGuest`] | a small Linux with a shell on its serial port |
//! | [`DebianRoot`] | Debian 12 with its cloud-init, for a full VM |
//! | [`DebianDisk`] | the same on a disk that firmware boots, as cloud images are |
//! | [`NatsServer`] | a server of NATS, with streams |
//! | [`firecracker_double`], [`jailer_double`] | programs that stand for Firecracker, with real guests behind it, and for its jailer |
//! | [`FaultyFirecracker`] | the first of them, with something wrong at a request of a test's choice |
//! | [`DrivenVm`] | a VM by a driver alone, and what its guest writes |
//! | [`FailingDisk`] | a mounted disk of which a part can be neither read nor written |
//! | [`Namespace`] | a network namespace of a test's own |
//! | [`LoopMount`] | an XFS, or the filesystem in a file, mounted where nobody else sees it |
//! | [`vsock_call`] | a program for guests that begins a connection to its host |
//! | [`freestanding_kernel`] | a guest that every KVM runs |
//! | [`FaultedMemory`] | memory that another process fills, as a VMM hands it over |
//! | [`expand_pci_tree`] | a host's PCI devices from a description, as sysfs shows them |
//! | [`TestHost`] | a VM as the host of a test, for what this machine lacks |
//! | [`PciHost`] | the same with a PCI bus and an IOMMU |
//! | [`pci_lister`] | a kernel that says what is on its PCI bus |
//! | [`VsockDevice`] | a guest's vsock device in Firecracker's form, for a guest of QEMU |
//! | [`wait_until`] | waits for a condition, instead of sleeping |

mod boot_disk;
mod clients;
mod debian;
mod debian_disk;
mod debian_root;
mod driven_vm;
mod failing_disk;
mod faulted_memory;
mod faults;
mod firecracker;
mod freestanding;
pub mod functions;
mod images;
mod loop_mount;
mod namespace;
mod nats;
mod pci_host;
mod pci_lister;
mod pci_tree;
mod root;
mod scripted;
mod scripted_computers;
mod scripted_guest;
mod scripted_runner;
mod shell_guest;
mod test_host;
mod vsock;
mod vsock_call;
mod wait;

pub use boot_disk::{BootDisk, boot_disk};
pub use clients::{
    cargo_lambda, python_with_boto3, python_with_cloudevents, python_with_moto, workerd,
};
pub use debian::{mtools, python_with_cloud_init};
pub use debian_disk::DebianDisk;
pub use debian_root::DebianRoot;
pub use driven_vm::{DrivenVm, Plan};
pub use failing_disk::FailingDisk;
pub use faulted_memory::FaultedMemory;
pub use faults::{Fault, FaultyFirecracker};
pub use firecracker::{firecracker_double, jailer_double};
pub use freestanding::freestanding_kernel;
pub use images::{NoImages, TestImages};
pub use loop_mount::LoopMount;
pub use namespace::Namespace;
pub use nats::NatsServer;
pub use pci_host::PciHost;
pub use pci_lister::pci_lister;
pub use pci_tree::expand_pci_tree;
pub use root::{TestRoot, recipe_image};
pub use scripted::{Script, ScriptedDriver, Vmm};
pub use scripted_computers::LaunchedComputer;
pub use scripted_guest::Guest;
pub use scripted_runner::ScriptedRunner;
pub use shell_guest::ShellGuest;
pub use test_host::{Case, TestHost};
pub use vsock::VsockDevice;
pub use vsock_call::vsock_call;
pub use wait::wait_until;
