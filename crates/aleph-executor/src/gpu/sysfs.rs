//! Reading PCI functions where the kernel shows them (kernel documentation,
//! `ABI/testing/sysfs-bus-pci`).

use super::address::PciAddress;
use super::function::{Bar, MediatedType, PciFunction};
use aleph_types::MiB;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where the kernel shows the host's devices and processes. A recorded tree can stand in for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTree {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// Who has which of its GPUs: one folder for all nodes of the host.
    pub record: PathBuf,
}

impl Default for HostTree {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            proc: "/proc".into(),
            record: "/var/lib/aleph-gpu".into(),
        }
    }
}

impl HostTree {
    /// A tree that was recorded in the folders `sys`, `dev` and `proc` of `root`. Its GPUs are assigned in
    /// `gpu` there.
    #[must_use]
    pub fn recorded(root: &Path) -> Self {
        Self {
            sys: root.join("sys"),
            dev: root.join("dev"),
            proc: root.join("proc"),
            record: root.join("gpu"),
        }
    }

    /// The kernel's id of this boot; empty where it does not say.
    pub(crate) fn boot(&self) -> String {
        text(&self.proc.join("sys/kernel/random/boot_id")).unwrap_or_default()
    }

    /// The folder of a function.
    pub(crate) fn function(&self, address: PciAddress) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address.to_string())
    }

    /// The folder of a driver of PCI functions.
    pub(crate) fn driver(&self, name: &str) -> PathBuf {
        self.sys.join("bus/pci/drivers").join(name)
    }

    /// All PCI functions, in the order of their addresses. One that goes away meanwhile is left out.
    ///
    /// # Errors
    /// Where the folder of PCI devices cannot be read; a host without PCI has none, and no functions.
    pub fn functions(&self) -> io::Result<Vec<PciFunction>> {
        let entries = match fs::read_dir(self.sys.join("bus/pci/devices")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut functions = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let address = name.to_str().and_then(|name| name.parse().ok());
            functions.extend(address.and_then(|address| self.read(address)));
        }
        functions.sort_by_key(|function| function.address);
        Ok(functions)
    }

    /// One function; `None` where there is none at this address.
    #[must_use]
    pub fn read(&self, address: PciAddress) -> Option<PciFunction> {
        let dir = self.function(address);
        let number = |name: &str| text(&dir.join(name)).and_then(|text| hexadecimal(&text));
        let sixteen = |name: &str| number(name).and_then(|n| u16::try_from(n).ok());
        let decimal = |name: &str| text(&dir.join(name)).and_then(|text| text.parse().ok());
        let link = |name: &str| {
            let target = fs::read_link(dir.join(name)).ok()?;
            Some(target.file_name()?.to_str()?.to_owned())
        };
        Some(PciFunction {
            address,
            vendor: sixteen("vendor")?,
            device: sixteen("device")?,
            subsystem_vendor: sixteen("subsystem_vendor").unwrap_or_default(),
            subsystem_device: sixteen("subsystem_device").unwrap_or_default(),
            class: number("class").and_then(|n| u32::try_from(n).ok())?,
            driver: link("driver"),
            driver_override: text(&dir.join("driver_override"))
                .filter(|name| !name.is_empty() && name != "(null)"),
            // -1 where the firmware does not say.
            numa_node: text(&dir.join("numa_node")).and_then(|text| text.parse().ok()),
            iommu_group: link("iommu_group").and_then(|name| name.parse().ok()),
            bars: text(&dir.join("resource"))
                .map(|text| bars(&text))
                .unwrap_or_default(),
            boot_vga: number("boot_vga") == Some(1),
            reset_methods: reset_methods(&dir),
            physical_function: link("physfn").and_then(|name| name.parse().ok()),
            virtual_functions: virtual_functions(&dir),
            total_virtual_functions: decimal("sriov_totalvfs").unwrap_or_default(),
            vgpu_type: text(&dir.join("nvidia/current_vgpu_type"))
                .and_then(|text| text.parse().ok()),
            mediated_types: mediated_types(&dir),
            driver_vram: text(&dir.join("mem_info_vram_total"))
                .and_then(|text| text.parse().ok())
                .map(MiB::from_bytes),
        })
    }

    /// Whether the kernel drives an IOMMU.
    #[must_use]
    pub fn has_iommu(&self) -> bool {
        let listed = |path: &str| {
            let entries = fs::read_dir(self.sys.join(path));
            entries.is_ok_and(|mut entries| entries.next().is_some())
        };
        listed("class/iommu") || listed("kernel/iommu_groups")
    }

    /// Whether the host's processor is AMD's: its IOMMU has another name.
    pub(crate) fn is_amd(&self) -> bool {
        let cpuinfo = fs::read_to_string(self.proc.join("cpuinfo")).unwrap_or_default();
        cpuinfo.contains("AuthenticAMD")
    }
}

/// More than any of these files has; `resource` of a function with virtual ones has 17 lines of 57 bytes.
const MOST: u64 = 64 * 1024;

/// A file's text without the space around it.
fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(MOST).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// A number with `0x` before it, or without.
fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// Flags of a resource, from the kernel's `include/linux/ioport.h`.
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;
/// After the six of the function itself come its ROM, and the regions of virtual functions.
const BARS: usize = 6;

/// Reads `resource`: first and last address and flags of a region in each line.
fn bars(resource: &str) -> Vec<Bar> {
    let lines = resource.lines().take(BARS);
    let bars = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace().map(hexadecimal);
        let (start, end, flags) = (words.next()??, words.next()??, words.next()??);
        // Of a region that is not used all three are 0.
        (flags & MEMORY != 0 && end > start).then(|| Bar {
            size: (end - start).saturating_add(1),
            prefetchable: flags & PREFETCHABLE != 0,
        })
    });
    bars.collect()
}

fn reset_methods(dir: &Path) -> Vec<String> {
    match text(&dir.join("reset_method")) {
        Some(methods) => methods
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect(),
        None if dir.join("reset").exists() => vec!["default".into()],
        None => Vec::new(),
    }
}

fn virtual_functions(dir: &Path) -> Vec<PciAddress> {
    let links = (0..).map_while(|n| fs::read_link(dir.join(format!("virtfn{n}"))).ok());
    let addresses = links.filter_map(|link| link.file_name()?.to_str()?.parse().ok());
    addresses.collect()
}

fn mediated_types(dir: &Path) -> Vec<MediatedType> {
    let entries = fs::read_dir(dir.join("mdev_supported_types"));
    let types = entries.into_iter().flatten().flatten().filter_map(|entry| {
        let available = text(&entry.path().join("available_instances"))?;
        Some(MediatedType {
            id: entry.file_name().into_string().ok()?,
            name: text(&entry.path().join("name")),
            available: available.parse().ok()?,
        })
    });
    let mut types: Vec<_> = types.collect();
    types.sort_by(|a, b| a.id.cmp(&b.id));
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_those_of_the_function_itself() {
        let resource = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x00000000fa000000 0x00000000fa7fffff 0x0000000000040200\n\
             0x0000219000000000 0x0000219fffffffff 0x000000000014220c\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x0000000000001000 0x000000000000107f 0x0000000000040101\n\
             garbage\n\
             0x00000000fb000000 0x00000000fb07ffff 0x0000000000046200\n";
        let expected = [
            Bar {
                size: 8 << 20,
                prefetchable: false,
            },
            Bar {
                size: 64 << 30,
                prefetchable: true,
            },
        ];
        assert_eq!(bars(resource), expected, "no ports, and no ROM");
        let whole = "0x0 0xffffffffffffffff 0x2200";
        assert_eq!(bars(whole)[0].size, u64::MAX, "no overflow");
    }

    #[test]
    fn a_host_without_pci_has_no_functions() {
        let dir = tempfile::tempdir().unwrap();
        let tree = HostTree::recorded(dir.path());
        assert!(tree.functions().unwrap().is_empty() && !tree.has_iommu());
    }
}
