//! CPUs and memory: `/machine-config`.

use super::wire::is_false;
use super::{Body, Check};
use crate::firecracker::Feature;
use aleph_types::MiB;
use serde::{Deserialize, Serialize};

/// The most CPUs of a guest.
pub const MAX_VCPUS: u8 = 32;

/// CPUs and memory of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// CPUs: 1 to 32; with `smt`, 1 or an even number.
    pub vcpu_count: u8,
    /// Memory. With huge pages, a multiple of 2 MiB.
    pub mem_size_mib: MiB,
    /// Whether two CPUs are threads of one core. Not on arm64.
    #[serde(default, skip_serializing_if = "is_false")]
    pub smt: bool,
    /// Hides features of the CPU, so that guests can move between hosts. Firecracker has deprecated
    /// these in favour of [`super::CpuConfig`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether KVM notes which pages the guest writes to, as diff snapshots need.
    #[serde(default, skip_serializing_if = "is_false")]
    pub track_dirty_pages: bool,
    /// Which pages back the memory.
    #[serde(default, skip_serializing_if = "HugePages::is_none")]
    pub huge_pages: HugePages,
}

/// A set of features of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuTemplate {
    /// Intel, as EC2's C3.
    C3,
    /// Intel, as EC2's T2.
    T2,
    /// Intel, T2 on every one of its generations.
    T2S,
    /// Intel from Cascade Lake on, as T2.
    T2CL,
    /// AMD Milan, as T2.
    T2A,
    /// Neoverse V1, as N1.
    V1N1,
    /// None.
    None,
}

impl CpuTemplate {
    /// Whether Firecracker for this host's architecture knows it.
    const fn is_of_this_host(self) -> bool {
        match self {
            Self::None => true,
            Self::V1N1 => cfg!(target_arch = "aarch64"),
            _ => cfg!(target_arch = "x86_64"),
        }
    }
}

/// Which pages back a guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// As the host has it.
    #[default]
    None,
    /// Transparent huge pages, by advice to the kernel. From 1.17 on.
    Transparent,
    /// Pages of 2 MiB, which the host has to have set aside (hugetlbfs).
    #[serde(rename = "2M")]
    Size2M,
}

impl HugePages {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde calls it with a reference"
    )]
    pub(crate) const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

impl MachineConfig {
    /// So many CPUs and so much memory, and nothing else.
    #[must_use]
    pub const fn new(vcpu_count: u8, mem_size_mib: MiB) -> Self {
        Self {
            vcpu_count,
            mem_size_mib,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

impl Body for MachineConfig {
    fn check(&self, check: &mut Check) {
        check.range("vcpu_count", self.vcpu_count, 1, u64::from(MAX_VCPUS));
        check.refuse_if(
            "vcpu_count",
            self.smt && self.vcpu_count > 1 && !self.vcpu_count.is_multiple_of(2),
            "has to be 1 or even with smt",
        );
        check.refuse_if(
            "smt",
            self.smt && cfg!(target_arch = "aarch64"),
            "is not there on arm64",
        );
        check.range("mem_size_mib", self.mem_size_mib.0, 1, u64::from(u32::MAX));
        if !self.huge_pages.is_none() {
            check.multiple("mem_size_mib", self.mem_size_mib.0, 2_u32);
        }
        if self.huge_pages == HugePages::Transparent {
            check.uses("huge_pages", Feature::TransparentHugePages);
        }
        check.refuse_if(
            "cpu_template",
            self.cpu_template
                .is_some_and(|template| !template.is_of_this_host()),
            "is for CPUs of another architecture",
        );
    }
}
