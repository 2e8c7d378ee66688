//! What a full VM is like, and what its guest is told at its first boot.

use crate::{InvalidJob, MEMORY_STEP, MiB, NumaNode, Resources, numa};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Keys that may log in to a guest.
pub const MAX_SSH_KEYS: usize = 64;
/// Packages that a guest installs.
pub const MAX_PACKAGES: usize = 256;
/// Bytes of user-data; with the job's files they travel in its specification.
pub const MAX_USER_DATA: usize = 1024 * 1024;
/// Bytes of a kernel's command line (`COMMAND_LINE_SIZE` of x86 Linux).
const MAX_BOOT_ARGS: usize = 2048;
/// Processors that a machine may have, with those that are plugged in later.
const MAX_CPUS: u32 = 1024;
/// Empty slots that a machine may have for what is plugged in later: of 48, those that are left beside the least
/// that it has.
const MAX_SLOTS: u8 = 45;

/// The machine of a full VM, recorded when the job is made and the same at each of its starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct MachineSpec {
    /// What starts the guest.
    pub firmware: Firmware,
    /// Whether the firmware starts only what is signed; with `uefi` alone.
    pub secure_boot: bool,
    /// Whether it has a TPM 2.0.
    pub tpm: bool,
    /// A processor by QEMU's name for it; the best that this node keeps alike everywhere when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")
    )]
    pub cpu_model: Option<String>,
    /// How its processors are arranged; as the cores of one socket when absent, or of a socket for each NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// Its NUMA nodes, which have all of its processors and of its memory; one has all when absent. Its memory
    /// stays as it was made then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(max_items = 64))]
    pub numa: Vec<NumaNode>,
    /// The size of the host's pages that its memory is in; the host's choice when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// What the kernel is told, where `firmware` is `kernel`, such as `root=/dev/vda1 rw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(max_length = 2048))]
    pub boot_args: Option<String>,
    /// Room for what is plugged in while it runs.
    #[serde(skip_serializing_if = "HotplugRoom::is_none")]
    pub room: HotplugRoom,
}

/// What starts a full VM's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// UEFI, with variables of its own.
    #[default]
    Uefi,
    /// A BIOS.
    Bios,
    /// None: a kernel is started at once. In a VM with `cloud_init` it is the one that `kernel` names,
    /// which finds its root by `boot_args`; else the node's, with the node's agent.
    Kernel,
}

/// How processors are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Sockets.
    #[cfg_attr(feature = "schema", schema(minimum = 1))]
    pub sockets: u16,
    /// Cores of each.
    #[cfg_attr(feature = "schema", schema(minimum = 1))]
    pub cores: u16,
    /// Threads of each core.
    #[cfg_attr(feature = "schema", schema(minimum = 1))]
    pub threads: u16,
}

impl Topology {
    /// How many processors that is.
    #[must_use]
    pub fn cpus(self) -> u64 {
        u64::from(self.sockets) * u64::from(self.cores) * u64::from(self.threads)
    }
}

/// The size of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HugePages {
    /// 2 MiB.
    #[serde(rename = "2m")]
    Mib2,
    /// 1 GiB.
    #[serde(rename = "1g")]
    Gib1,
}

impl HugePages {
    /// Its size.
    #[must_use]
    pub fn size(self) -> MiB {
        match self {
            Self::Mib2 => MiB(2),
            Self::Gib1 => MiB(1024),
        }
    }
}

/// Room for what is plugged in while a VM runs, beyond what it has. With that it is what the VM can ever have,
/// and grows smaller as the VM grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct HotplugRoom {
    /// Processors; those of a QEMU VM are at most 255 with what it begins with.
    pub cpus: u16,
    /// Memory, in steps of 128 MiB, or of its huge pages where those are larger.
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub memory: MiB,
    /// Disks and network cards. Each volume that the job has from the start leaves room for one less.
    #[cfg_attr(feature = "schema", schema(maximum = 45))]
    pub slots: u8,
}

impl HotplugRoom {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What a guest's cloud-init is told beside what all jobs have (hostname, environment, files,
/// command, volumes).
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CloudInitSpec {
    /// Who may log in as `aleph`: lines of `authorized_keys`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(max_items = 64))]
    pub ssh_keys: Vec<String>,
    /// Packages of the guest's distribution that it installs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(max_items = 256))]
    pub packages: Vec<String>,
    /// The user's own user-data: a cloud-config, a script, a MIME message or whatever else
    /// cloud-init takes, but part handlers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
}

/// What users tell guests is often secret.
impl fmt::Debug for CloudInitSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudInitSpec")
            .field("ssh_keys", &self.ssh_keys.len())
            .field("packages", &self.packages)
            .field("user_data", &self.user_data.as_ref().map(String::len))
            .finish()
    }
}

/// How far a guest's cloud-init is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CloudInit {
    /// Where it is.
    pub state: CloudInitState,
    /// What the guest said of it, on one line, where not all was done. A guest may say anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a guest's cloud-init is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum CloudInitState {
    /// At work, or not heard of yet.
    Running,
    /// All that the job asked for was done.
    Done,
    /// Something was not done.
    Error,
    /// All was done, with a warning.
    Degraded,
}

impl CloudInitState {
    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Error => "error",
            Self::Degraded => "degraded",
        }
    }
}

impl fmt::Display for CloudInitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl MachineSpec {
    /// What its memory grows by.
    #[must_use]
    pub fn memory_step(&self) -> MiB {
        let page = self.huge_pages.map_or(MiB(0), HugePages::size);
        MEMORY_STEP.max(page)
    }

    /// Checks what can be known without a node. `begins` is what the VM begins with.
    pub(crate) fn check(&self, begins: &Resources) -> Result<(), InvalidJob> {
        let bad = |field, why| Err(InvalidJob::Machine { field, why });
        if self.secure_boot && self.firmware != Firmware::Uefi {
            return bad("machine.secure_boot", "is for the firmware uefi alone");
        }
        if let Some(model) = &self.cpu_model {
            let is_name = (1..=64).contains(&model.len())
                && model
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !is_name {
                return bad("machine.cpu_model", "is not the name of a processor");
            }
        }
        let most = u32::from(begins.cpus) + u32::from(self.room.cpus);
        if most > MAX_CPUS {
            return bad(
                "machine.room.cpus",
                "has more than 1024 with those it begins with",
            );
        }
        if let Some(topology) = self.topology
            && topology.cpus() != u64::from(most)
        {
            let why = "does not multiply to the processors of the VM, room included";
            return bad("machine.topology", why);
        }
        if !self.room.memory.0.is_multiple_of(self.memory_step().0) {
            let why = "is no multiple of 128 MiB, or of its huge pages";
            return bad("machine.room.memory", why);
        }
        if self.room.slots > MAX_SLOTS {
            return bad("machine.room.slots", "is more than 45");
        }
        let page = self.huge_pages.map_or(MiB(1), HugePages::size);
        let memory = (begins.memory, page, self.room.memory);
        numa::check(&self.numa, self.topology, most, memory)?;
        if let Some(args) = &self.boot_args {
            if self.firmware != Firmware::Kernel {
                return bad("machine.boot_args", "is for the firmware kernel alone");
            }
            if args.len() >= MAX_BOOT_ARGS || args.chars().any(char::is_control) {
                return bad("machine.boot_args", "is no command line of a kernel");
            }
        }
        Ok(())
    }
}

impl CloudInitSpec {
    pub(crate) fn check(&self) -> Result<(), InvalidJob> {
        let user_data = self.user_data.as_ref().map_or(0, String::len);
        for (field, there, most) in [
            ("cloud_init.ssh_keys", self.ssh_keys.len(), MAX_SSH_KEYS),
            ("cloud_init.packages", self.packages.len(), MAX_PACKAGES),
            ("cloud_init.user_data", user_data, MAX_USER_DATA),
        ] {
            if there > most {
                return Err(InvalidJob::TooMuch { field, there, most });
            }
        }
        Ok(())
    }

    /// About how many bytes it takes to keep.
    pub(crate) fn weight(&self) -> usize {
        let lists = self.ssh_keys.iter().chain(&self.packages);
        lists.chain(&self.user_data).map(String::len).sum()
    }
}
