//! Firecracker's API as types: what is sent, what is wrong with it, and what is answered.
//!
//! A file for each resource, named and shaped as the API has it, so that Firecracker's own
//! documents tell what a field does. [`Call`] is one change, [`Answer`] what can be asked for.
//! [`Body::validate`] finds all that is wrong with a body **for one version** before anything is
//! sent: a field that the version lacks ([`Unsupported`](super::Unsupported) says which one has it), a number beyond its
//! limits, two settings that exclude each other, and what Firecracker would take in silence and
//! not do. What a version may not know is left out while it has no meaning, so that the same
//! configuration goes to each version as far as that has it.
//!
//! Everything here is pure. [`super::client`] sends it.
//!
//! Which fields there are, since when, and within which limits is from
//! `src/firecracker/swagger/firecracker.yaml` at each release's tag, and from the types in
//! `src/vmm/src/vmm_config` where that is silent; the test `firecracker_api` holds both together.

mod action;
mod answer;
mod balloon;
mod boot_source;
mod call;
mod cpu_config;
mod drive;
mod entropy;
mod fault;
mod instance;
mod logger;
mod machine_config;
mod memory_hotplug;
mod metrics;
mod mmds;
mod network_interface;
mod pmem;
mod rate_limiter;
mod serial;
mod snapshot;
mod vm_configuration;
mod vsock;
mod wire;

pub use action::{Action, VmState};
pub use answer::Answer;
pub use balloon::{
    Balloon, BalloonHintingStart, BalloonHintingStatus, BalloonStatistics, BalloonStatisticsUpdate,
    BalloonUpdate,
};
pub use boot_source::BootSource;
pub use call::{Call, MAX_PAYLOAD, Method, Request};
pub use cpu_config::{
    ArmRegisterModifier, Bitmap, CpuConfig, CpuidLeafModifier, CpuidRegister,
    CpuidRegisterModifier, MsrModifier, VcpuFeatures,
};
pub use drive::{CacheType, Drive, DriveUpdate, IoEngine};
pub use entropy::EntropyDevice;
pub use fault::{Check, Fault, Invalid, MAX_SOCKET_PATH, Problem};
pub use instance::{FirecrackerVersion, InstanceInfo, InstanceState};
pub use logger::{LogLevel, Logger};
pub use machine_config::{CpuTemplate, HugePages, MAX_VCPUS, MachineConfig};
pub use memory_hotplug::{MemoryHotplug, MemoryHotplugStatus, MemoryHotplugUpdate};
pub use metrics::Metrics;
pub use mmds::{MmdsConfig, MmdsData, MmdsVersion};
pub use network_interface::{NetworkInterface, NetworkInterfaceUpdate};
pub use pmem::{Pmem, PmemUpdate};
pub use rate_limiter::{RateLimiter, TokenBucket};
pub use serial::Serial;
pub use snapshot::{
    LoadHugePages, MemoryBackend, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};
pub use vm_configuration::VmConfiguration;
pub use vsock::Vsock;

use super::Version;

/// What the API takes.
pub trait Body {
    /// Notes all that is wrong with it.
    fn check(&self, check: &mut Check);

    /// Checks it for a version, before anything is sent.
    ///
    /// # Errors
    /// [`Invalid`], with all that is wrong with it.
    fn validate(&self, version: Version) -> Result<(), Invalid> {
        let mut check = Check::new(version);
        self.check(&mut check);
        check.end()
    }
}
