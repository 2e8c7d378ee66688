//! The vocabulary of Aleph Compute: ids, sizes, job specifications and error classes.
//!
//! Every other crate speaks in these types, and they are the only ones whose serde form is
//! public. The crate owns no behaviour beyond parsing, printing and validating its values; it
//! knows nothing of hosts, hypervisors or networks, and does no I/O except drawing random ids.
//!
//! | type | what it is |
//! | --- | --- |
//! | [`JobId`], [`SnapshotId`], [`VolumeId`], [`NodeId`] | 128 random bits, printed as `0x` and 32 hex digits |
//! | [`VmId`] | 8 hex digits, unique on one node: names of TAPs, cgroups and folders derive from it |
//! | [`Incarnation`] | how many times a job was started or moved |
//! | [`MiB`] | an amount of memory or disk |
//! | [`Resources`] | what one VM may use |
//! | [`JobSpec`] | what a user asked to run |
//! | [`GpuRequest`] | what a job asks of GPUs |
//! | [`MachineSpec`], [`NumaNode`], [`CloudInitSpec`] | what a full VM is like, and what its guest is told |
//! | [`JobResize`] | another size of a full VM |
//! | [`CloudInit`] | how far that guest's cloud-init is |
//! | [`RestartPolicy`], [`HealthCheck`] | when it starts again, and how to tell that it works |
//! | [`NetworkSpec`], [`VmNetwork`] | what it asks of the network, and what its VM got |
//! | [`Job`], [`Event`], [`JobStats`], [`NodeInfo`] | what a node tells |
//! | [`Snapshot`] | a guest that was written down |
//! | [`Volume`], [`VolumeMount`] | a disk that outlives jobs, and where a job has it |
//! | [`VolumeAttach`], [`VolumeConsistency`] | what becomes of it while its guest runs |
//! | [`VolumeBackup`] | what a volume was, elsewhere |
//! | [`Problem`] | an error as a client gets it |
//! | [`ExitStatus`] | how a command ended |
//! | [`signal`] | signals by name |
//! | [`Classify`] | class, stable code and advice of an error at a boundary |

mod backup;
mod error;
mod exit;
mod gpu;
mod health;
mod id;
mod ipv6;
mod job;
mod live_volume;
mod machine;
mod network;
mod node;
mod numa;
mod resize;
mod resources;
mod restart;
pub mod signal;
mod size;
mod snapshot;
mod view;
mod volume;

pub use backup::{
    BackupForgetRequest, BackupLine, BackupPruneRequest, BackupRetention, BackupVerification,
    BackupsForgotten, BackupsPruned, BackupsVerified, VolumeBackup, VolumeBackupRequest,
    VolumeBackupRestore,
};
pub use error::{Classify, ErrorClass, Problem};
pub use exit::ExitStatus;
pub use gpu::{GpuRequest, ParseGpuRequestError};
pub use health::{Health, HealthCheck, Probe};
pub use id::{Incarnation, JobId, NodeId, ParseIdError, SnapshotId, VmId, VolumeId};
pub use ipv6::Ipv6Network;
pub use job::{
    GuestFile, Hypervisor, InvalidJob, JobSpec, MAX_FILES, MAX_WORDS, Mode, PullPolicy, is_job_name,
};
pub use live_volume::{VolumeAttach, VolumeAttachment, VolumeConsistency};
pub use machine::{
    CloudInit, CloudInitSpec, CloudInitState, Firmware, HotplugRoom, HugePages, MAX_PACKAGES,
    MAX_SSH_KEYS, MAX_USER_DATA, MachineSpec, Topology,
};
pub use network::{
    BothWays, DomainPattern, Egress, EgressTarget, ForwardedPort, InvalidNetwork, InvalidRate,
    Ipv4Network, MAX_PORTS, NetworkLimits, NetworkMode, NetworkSpec, NetworkUsage, PortForward,
    PortRange, Protocol, Rate, RateLimit, VmNetwork, share_an_address,
};
pub use node::{NodeInfo, NodeResources};
pub use numa::{CpuList, NumaNode, ParseNumaNodeError};
pub use resize::{JobResize, MEMORY_STEP};
pub use resources::Resources;
pub use restart::{Restart, RestartPolicy};
pub use size::{MiB, ParseSizeError};
pub use snapshot::{ForkRequest, Forked, MAX_COPIES, RestoreRequest, Snapshot, SnapshotRequest};
pub use view::{
    Event, Job, JobList, JobState, JobStats, LogStream, Migration, ParseStateError, Timestamp,
};
pub use volume::{
    DiskImageFormat, Filesystem, MAX_VOLUMES, MadeVolume, ParseDiskImageFormatError,
    ParseFilesystemError, ParseVolumeMountError, Volume, VolumeAccess, VolumeCreate, VolumeLease,
    VolumeMount, VolumeOrigin, VolumeRequest, VolumeResize, VolumeSnapshot, VolumeSnapshotRequest,
    VolumeState, VolumeUndelete,
};
