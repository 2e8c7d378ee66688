//! The data-centre GPUs that are known by their PCI ids.

use aleph_types::MiB;

/// A GPU that is known by its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// What a job calls it (`gpuType`).
    pub gpu_type: &'static str,
    /// Its memory as its maker names it, in GiB. What the driver in the guest reports is less, by up
    /// to 6 %: ECC and the firmware take theirs (an H100 of 80 GB has 81 559 MiB).
    pub vram_gib: u32,
}

impl Model {
    /// Its memory.
    #[must_use]
    pub const fn vram(self) -> MiB {
        MiB(self.vram_gib * 1024)
    }

    /// The model with these ids.
    #[must_use]
    pub fn of(vendor: u16, device: u16) -> Option<Self> {
        let models = match vendor {
            NVIDIA => NVIDIA_MODELS,
            AMD => AMD_MODELS,
            _ => return None,
        };
        let found = models.iter().find(|(id, ..)| *id == device);
        found.map(|&(_, gpu_type, vram_gib)| Self { gpu_type, vram_gib })
    }
}

/// What jobs call a maker.
#[must_use]
pub(super) const fn maker(vendor: u16) -> Option<&'static str> {
    match vendor {
        NVIDIA => Some("nvidia"),
        AMD => Some("amd"),
        0x8086 => Some("intel"),
        _ => None,
    }
}

const NVIDIA: u16 = 0x10de;
const AMD: u16 = 0x1002;

/// Ids and names: the table of supported GPUs in the README of NVIDIA's open kernel modules,
/// version 595.45 (<https://github.com/NVIDIA/open-gpu-kernel-modules>); those of Volta, which that
/// driver does not support, from <https://pci-ids.ucw.cz>. Memory: the names there, and the data sheets at
/// <https://www.nvidia.com/en-us/data-center/> where a name does not say. A16 and A2 have one id
/// and the same memory.
const NVIDIA_MODELS: &[(u16, &str, u32)] = &[
    (0x1db1, "v100", 16),
    (0x1db4, "v100", 16),
    (0x1db5, "v100", 32),
    (0x1db6, "v100", 32),
    (0x1eb8, "t4", 16),
    (0x20b0, "a100", 40),
    (0x20b2, "a100", 80),
    (0x20b3, "a100", 64),
    (0x20b5, "a100", 80),
    (0x20b7, "a30", 24),
    (0x20bd, "a800", 40),
    (0x20f1, "a100", 40),
    (0x20f3, "a800", 80),
    (0x20f5, "a800", 80),
    (0x20f6, "a800", 40),
    (0x2230, "rtx-a6000", 48),
    (0x2235, "a40", 48),
    (0x2236, "a10", 24),
    (0x2237, "a10g", 24),
    (0x2321, "h100-nvl", 94),
    (0x2322, "h800", 80),
    (0x2324, "h800", 80),
    (0x2329, "h20", 96),
    (0x232c, "h20", 141),
    (0x2330, "h100", 80),
    (0x2331, "h100", 80),
    (0x2335, "h200", 141),
    (0x233a, "h800-nvl", 94),
    (0x233b, "h200-nvl", 141),
    (0x2342, "gh200", 96),
    (0x2348, "gh200", 144),
    (0x25b6, "a2", 16),
    (0x26b1, "rtx-6000-ada", 48),
    (0x26b5, "l40", 48),
    (0x26b9, "l40s", 48),
    (0x26ba, "l20", 48),
    (0x27b6, "l2", 24),
    (0x27b8, "l4", 24),
    (0x2901, "b200", 180),
    (0x2bb1, "rtx-pro-6000", 96),
    (0x2bb4, "rtx-pro-6000", 96),
];

/// Ids and names: <https://pci-ids.ucw.cz>. Memory: the data sheets at
/// <https://www.amd.com/en/products/accelerators/instinct.html>. Of the MI250 and MI250X each
/// function is one of two dies, with half of the memory.
const AMD_MODELS: &[(u16, &str, u32)] = &[
    (0x738c, "mi100", 32),
    (0x7408, "mi250x", 64),
    (0x740c, "mi250", 64),
    (0x740f, "mi210", 64),
    (0x74a1, "mi300x", 192),
    (0x74a5, "mi325x", 256),
    (0x75a0, "mi350x", 288),
    (0x75a3, "mi355x", 288),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_there_twice() {
        for models in [NVIDIA_MODELS, AMD_MODELS] {
            assert!(models.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }

    #[test]
    fn models_are_found_by_both_ids() {
        let h200 = Model::of(NVIDIA, 0x2335).unwrap();
        assert_eq!((h200.gpu_type, h200.vram()), ("h200", MiB(141 * 1024)));
        assert_eq!(Model::of(AMD, 0x2335), None);
    }
}
