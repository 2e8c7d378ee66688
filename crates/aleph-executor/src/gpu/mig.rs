//! The parts that NVIDIA's MIG divides a GPU into: devices of their own, of which none can be given to a guest.
//!
//! MIG divides the memory and the processors of one PCI function. A part of it (NVML's "MIG device": a compute
//! instance in a GPU instance) has no function, no IOMMU group and no reset of its own, so there is nothing that
//! VFIO could hand over. It reaches a VM only as a vGPU, which the maker's driver of the host makes in a virtual
//! function; that one is listed as a GPU of its own ([`Gpu::vgpu_type`](super::Gpu::vgpu_type)).
//!
//! What is known of parts is what NVML says while the driver has the whole. Nobody knows whether a GPU that
//! another driver has is still divided, so none are listed of such a one.

use super::address::PciAddress;
use super::choice::Misfit;
use super::inventory::{Gpu, Vram};
use super::nvml::{self, NvmlInstance};
use aleph_types::GpuRequest;
use serde::Serialize;
use std::fmt;

/// Who makes what MIG divides, as jobs ask for it.
const MAKER: &str = "nvidia";

/// A part of a GPU that MIG divides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigInstance {
    /// The GPU that it is a part of.
    pub parent: PciAddress,
    /// Its number there, by which `nvidia-smi` calls it, too.
    pub index: u32,
    /// What a job would call it: the type of the whole, and its profile: `h200-1g.18gb`.
    #[serde(rename = "type")]
    pub gpu_type: String,
    /// What its maker calls a part of this size: `1g.18gb`.
    pub profile: Option<String>,
    /// Its name for its maker's tools.
    pub uuid: Option<String>,
    /// Its memory.
    pub vram: Option<Vram>,
    /// The NUMA node that the whole is nearest to.
    pub numa_node: Option<u16>,
    /// The driver that is bound to the whole.
    pub driver: Option<String>,
}

impl MigInstance {
    /// The part of a GPU of which NVML says so.
    pub(super) fn of(gpu: &Gpu, said: &NvmlInstance) -> Self {
        let profile = said.profile.as_deref().unwrap_or("mig");
        Self {
            parent: gpu.address,
            index: said.index,
            gpu_type: format!("{}-{profile}", gpu.gpu_type),
            profile: said.profile.clone(),
            uuid: said.uuid.clone(),
            vram: said.memory.and_then(nvml::vram),
            numa_node: gpu.numa_node,
            driver: gpu.driver.clone(),
        }
    }

    /// What lists call it: the address of the whole, and its number there.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/mig{}", self.parent, self.index)
    }

    /// Why no job gets it. What it is comes before that it cannot be given at all.
    #[must_use]
    pub fn misfit(&self, request: &GpuRequest) -> Misfit {
        let is_meant = |wanted: &str| {
            let wanted = wanted.to_ascii_lowercase();
            [self.gpu_type.as_str(), MAKER].contains(&wanted.as_str())
                || self.profile.as_ref() == Some(&wanted)
        };
        if !request.gpu_type.as_deref().is_none_or(is_meant) {
            return Misfit::Type;
        }
        let vram = self.vram.map(|vram| vram.mib);
        if request.vram.is_some_and(|wanted| vram < Some(wanted)) {
            return Misfit::Vram(vram);
        }
        Misfit::MigInstance
    }
}

/// What it is, in few words.
impl fmt::Display for MigInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.gpu_type)?;
        self.vram.map_or(Ok(()), |vram| write!(f, ", {vram}"))
    }
}

/// How large a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MigSize {
    /// How many slices of the whole its GPU instance has.
    pub(super) slices: u32,
    /// How many of these its compute instance has.
    pub(super) compute_slices: u32,
    /// Its memory in MiB.
    pub(super) memory_mib: u64,
    /// The memory of the whole in bytes.
    pub(super) whole: u64,
}

impl MigSize {
    /// What its maker calls a part of this size, such as `1g.18gb`, or `1c.3g.71gb` where the compute instance
    /// has not all of the GPU instance. Its memory is named by eighths of the whole, and that by what is
    /// printed on its box.
    pub(super) fn profile(self) -> Option<String> {
        let whole_gb = self.whole.div_ceil(1 << 30);
        let memory = self.memory_mib.checked_mul(8 << 20)?;
        let eighths = memory.checked_add(self.whole)?.checked_sub(1)?;
        let eighths = eighths.checked_div(self.whole)?;
        let gb = eighths.checked_mul(whole_gb)?.checked_add(4)? / 8;
        let of_compute = match self.compute_slices == self.slices {
            true => String::new(),
            false => format!("{}c.", self.compute_slices),
        };
        (self.slices > 0).then(|| format!("{of_compute}{}g.{gb}gb", self.slices))
    }
}

/// The profile in a name such as `NVIDIA H200 MIG 1g.18gb`.
pub(super) fn profile_in(name: &str) -> Option<String> {
    let (_, profile) = name.rsplit_once(" MIG ")?;
    let is_one = profile.contains("g.") && !profile.contains(char::is_whitespace);
    is_one.then(|| profile.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_called_as_their_maker_calls_them() {
        // Memory of the whole and of its parts in MiB, as NVML says them.
        for (whole, parts) in [
            (
                143_771_u64,
                [
                    ((1, 1, 16_896), "1g.18gb"),
                    ((3, 3, 71_424), "3g.71gb"),
                    ((7, 7, 143_771), "7g.141gb"),
                ],
            ),
            (
                81_559,
                [
                    ((1, 1, 9_856), "1g.10gb"),
                    ((3, 1, 40_448), "1c.3g.40gb"),
                    ((4, 4, 40_448), "4g.40gb"),
                ],
            ),
            (
                40_960,
                [
                    ((1, 1, 4_864), "1g.5gb"),
                    ((2, 2, 9_984), "2g.10gb"),
                    ((3, 3, 20_096), "3g.20gb"),
                ],
            ),
        ] {
            for ((slices, compute_slices, memory_mib), profile) in parts {
                let size = MigSize {
                    slices,
                    compute_slices,
                    memory_mib,
                    whole: whole << 20,
                };
                assert_eq!(size.profile().as_deref(), Some(profile));
                let nonsense = [
                    MigSize { slices: 0, ..size },
                    MigSize { whole: 0, ..size },
                    MigSize {
                        memory_mib: u64::MAX,
                        ..size
                    },
                ];
                assert_eq!(nonsense.map(MigSize::profile), [None, None, None]);
            }
        }
    }

    #[test]
    fn names_have_profiles() {
        for (name, profile) in [
            ("NVIDIA H200 MIG 1g.18gb", Some("1g.18gb")),
            ("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb", Some("1c.3g.20gb")),
            ("NVIDIA H100 MIG 1g.10gb+me", Some("1g.10gb+me")),
            ("NVIDIA H200", None),
            ("NVIDIA MIG 1g.18gb Device 0", None),
        ] {
            assert_eq!(profile_in(name).as_deref(), profile, "{name}");
        }
    }
}
