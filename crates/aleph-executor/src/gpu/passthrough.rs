//! The arguments that give devices to a guest of QEMU, as a pure function of which.
//!
//! Each slot gets a PCI Express root port of its own: so a device can be reset alone, be hot-plugged, and
//! reach no other one past the guest's IOMMU. What shares a slot on the host shares one in the guest,
//! where a driver looks for a GPU's sound beside it. Sources: QEMU's `docs/pcie.txt`; properties of
//! `vfio-pci` as `qemu-system-x86_64 -device vfio-pci,help` lists them.

use super::address::PciAddress;
use super::function::PciFunction;
use super::record::Taken;
use std::collections::BTreeMap;

/// How devices are given to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passthrough {
    /// Whether the guest's firmware sees the device's ROM. Without it a GPU shows no boot screen, and one
    /// whose ROM is broken or slow does not hold the firmware up.
    pub rom_bar: bool,
    /// The chassis of the first root port: one that no other port of the machine has.
    pub first_chassis: u8,
}

impl Default for Passthrough {
    fn default() -> Self {
        Self {
            rom_bar: true,
            // Those of hot-pluggable disks and network cards come before.
            first_chassis: 64,
        }
    }
}

impl Passthrough {
    /// The arguments for these groups, for the machine q35.
    #[must_use]
    pub fn argv(self, groups: &[Taken]) -> Vec<String> {
        let mut slots: BTreeMap<_, Vec<PciAddress>> = BTreeMap::new();
        for function in groups.iter().flat_map(|group| &group.functions) {
            let address = function.address;
            slots.entry(address.slot()).or_default().push(address);
        }
        let mut argv = Vec::new();
        let mut add = |device: String| argv.extend(["-device".to_owned(), device]);
        for (n, functions) in (0_u8..).zip(slots.values()) {
            let chassis = self.first_chassis.saturating_add(n);
            add(format!(
                "pcie-root-port,id=gpu{n},bus=pcie.0,chassis={chassis}"
            ));
            // Numbered anew: a slot without a function 0 has none at all.
            for (function, host) in (0_u8..).zip(functions) {
                let mut device = format!(
                    "vfio-pci,host={host},id=gpu{n}f{function},bus=gpu{n},addr=0.{function},x-vga=off"
                );
                if function == 0 && functions.len() > 1 {
                    device.push_str(",multifunction=on");
                }
                if !self.rom_bar {
                    device.push_str(",rombar=0");
                }
                add(device);
            }
        }
        argv
    }
}

/// What QEMU and its firmware leave for regions beyond 4 GiB by themselves: 32 GiB
/// (`Q35_PCI_HOST_HOLE64_SIZE_DEFAULT` in QEMU's `hw/pci-host/q35.c`; OVMF's `PcdPciMmio64Size`).
const USUAL_WINDOW: u64 = 32 << 30;

/// The arguments that make a q35's window for 64-bit regions large enough for these functions, where
/// that is more than it is by itself: an H200 has a region of 256 GiB. OVMF is told by `fw_cfg`
/// (`X-PciMmio64Mb`, in its `PlatformInitLib`); other firmware does not look there.
#[must_use]
pub fn window_argv<'a>(functions: impl IntoIterator<Item = &'a PciFunction>) -> Vec<String> {
    let bars = functions.into_iter().flat_map(|function| &function.bars);
    // A region is aligned to its size, so in any order twice the sum is enough.
    let sum = bars.fold(0_u64, |sum, bar| sum.saturating_add(bar.size));
    let window = sum.saturating_mul(2).checked_next_power_of_two();
    let Some(window) = window.filter(|window| *window > USUAL_WINDOW) else {
        return Vec::new();
    };
    let arguments = [
        "-global".into(),
        format!("q35-pcihost.pci-hole64-size={}G", window >> 30),
        "-fw_cfg".into(),
        format!("name=opt/ovmf/X-PciMmio64Mb,string={}", window >> 20),
    ];
    arguments.into()
}

#[cfg(test)]
mod tests {
    use super::super::record::{Prior, TakenFunction};
    use super::*;

    fn group(number: u32, addresses: &[&str]) -> Taken {
        let functions = addresses.iter().map(|address| TakenFunction {
            address: address.parse().unwrap(),
            vendor: 0x10de,
            device: 0x2335,
            prior: Prior::default(),
        });
        Taken {
            boot: String::new(),
            group: number,
            gpus: Vec::new(),
            functions: functions.collect(),
        }
    }

    #[test]
    fn each_slot_has_a_port_of_its_own() {
        let groups = [
            group(14, &["0000:18:00.0"]),
            group(7, &["0000:01:00.0", "0000:01:00.1"]),
            // A virtual function, in a slot whose first function is not given.
            group(9, &["0000:3a:00.4"]),
        ];
        let argv = Passthrough::default().argv(&groups);
        let devices: Vec<_> = argv.iter().filter(|word| *word != "-device").collect();
        assert_eq!(
            devices,
            [
                "pcie-root-port,id=gpu0,bus=pcie.0,chassis=64",
                "vfio-pci,host=0000:01:00.0,id=gpu0f0,bus=gpu0,addr=0.0,x-vga=off,multifunction=on",
                "vfio-pci,host=0000:01:00.1,id=gpu0f1,bus=gpu0,addr=0.1,x-vga=off",
                "pcie-root-port,id=gpu1,bus=pcie.0,chassis=65",
                "vfio-pci,host=0000:18:00.0,id=gpu1f0,bus=gpu1,addr=0.0,x-vga=off",
                "pcie-root-port,id=gpu2,bus=pcie.0,chassis=66",
                "vfio-pci,host=0000:3a:00.4,id=gpu2f0,bus=gpu2,addr=0.0,x-vga=off",
            ]
        );
        let without_rom = Passthrough {
            rom_bar: false,
            ..Passthrough::default()
        };
        let argv = without_rom.argv(&groups[..1]);
        assert!(argv[3].ends_with(",rombar=0"), "{argv:?}");
        assert!(Passthrough::default().argv(&[]).is_empty());
    }
}
