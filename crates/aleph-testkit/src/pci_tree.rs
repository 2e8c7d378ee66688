//! A host's PCI devices from a description, as the folders and links that sysfs has.
//!
//! A description has a line for each function, after that of the bridge it is behind:
//!
//! ```text
//! # ADDRESS      BEHIND        IDS        what is not as most have it
//! 0000:17:00.0   root          8086:352a  class=060400 group=20 driver=pcieport
//! 0000:18:00.0   0000:17:00.0  10de:2335  class=030200 group=58 driver=nvidia bars=16M,256G,32M
//! ```
//!
//! | key | what it says |
//! | --- | --- |
//! | `class`, `sub` | class, and ids of the board |
//! | `node`, `group`, `driver` | NUMA node, IOMMU group, driver; none where they are left out |
//! | `reset` | its ways to be reset, with commas |
//! | `bars` | sizes of its prefetchable regions, with commas; `window=` is one that is not prefetchable |
//! | `vfs`, `pf` | its virtual functions, or what it is one of |
//! | `total-vfs` | how many virtual functions it could have |
//! | `vgpu` | of a virtual function: the kind of vGPU that it is |
//! | `mdev` | kinds of mediated devices: `ID/NAME/AVAILABLE`, with commas |
//! | `vram` | bytes of memory that its driver says it has |
//! | `console`, `dead` | the host's console is on it; its configuration reads as ones |

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Makes the folder `sys` in `root` of what a description says.
///
/// # Errors
/// Where a line says nothing that is known, or the folder cannot be written.
pub fn expand_pci_tree(description: &str, root: &Path) -> Result<()> {
    let sys = root.join("sys");
    let bus = sys.join("bus/pci");
    for dir in ["devices", "drivers/vfio-pci"] {
        fs::create_dir_all(bus.join(dir))?;
    }
    let mut places: BTreeMap<&str, PathBuf> = BTreeMap::new();
    for line in description.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(behind), Some(ids)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let (domain_and_bus, _) = address.rsplit_once(':').context("no address")?;
        let place = match behind {
            "root" => PathBuf::from(format!("devices/pci{domain_and_bus}")),
            bridge => places
                .get(bridge)
                .with_context(|| format!("{address} is behind {bridge}, which is not above it"))?
                .clone(),
        };
        let place = place.join(address);
        let function = Function {
            sys: &sys,
            place: &place,
            address,
        };
        let values: BTreeMap<&str, &str> = words
            .map(|word| word.split_once('=').unwrap_or((word, "")))
            .collect();
        function
            .write(ids, &values)
            .with_context(|| format!("cannot make {address}"))?;
        places.insert(address, place);
    }
    Ok(())
}

struct Function<'a> {
    sys: &'a Path,
    /// Its folder, in `sys`.
    place: &'a Path,
    address: &'a str,
}

impl Function<'_> {
    fn file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.sys.join(self.place).join(name);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        Ok(fs::write(path, format!("{text}\n"))?)
    }

    /// A link to the function in a folder of sysfs, as the kernel has them: relative.
    fn listed_in(&self, dir: &str) -> Result<()> {
        fs::create_dir_all(self.sys.join(dir))?;
        let up = "../".repeat(dir.split('/').count());
        let target = Path::new(&up).join(self.place);
        Ok(symlink(target, self.sys.join(dir).join(self.address))?)
    }

    /// A link from the function's folder into another one of sysfs.
    fn link(&self, name: &str, target: &str) -> Result<()> {
        let up = "../".repeat(self.place.components().count());
        let target = Path::new(&up).join(target);
        Ok(symlink(target, self.sys.join(self.place).join(name))?)
    }

    fn write(&self, ids: &str, values: &BTreeMap<&str, &str>) -> Result<()> {
        let known: BTreeSet<&str> = KEYS.into_iter().collect();
        if let Some(unknown) = values.keys().find(|key| !known.contains(*key)) {
            bail!("{unknown} is no key");
        }
        let value = |key: &str| values.get(key).copied();
        let (vendor, device) = ids.split_once(':').context("no ids")?;
        let (sub_vendor, sub_device) = value("sub")
            .and_then(|sub| sub.split_once(':'))
            .unwrap_or((vendor, device));
        let class = value("class").context("no class")?;
        for (name, digits) in [
            ("vendor", vendor),
            ("device", device),
            ("subsystem_vendor", sub_vendor),
            ("subsystem_device", sub_device),
            ("class", class),
        ] {
            self.file(name, &format!("0x{digits}"))?;
        }
        self.file("numa_node", value("node").unwrap_or("-1"))?;
        self.file("driver_override", "(null)")?;
        self.file("resource", &resource(value("bars"), value("window"))?)?;
        let config = match value("dead") {
            Some(_) => vec![0xff; 256],
            None => configuration(vendor, device, class)?,
        };
        fs::write(self.sys.join(self.place).join("config"), config)?;
        self.listed_in("bus/pci/devices")?;
        if let Some(group) = value("group") {
            self.listed_in(&format!("kernel/iommu_groups/{group}/devices"))?;
            self.link("iommu_group", &format!("kernel/iommu_groups/{group}"))?;
        }
        if let Some(driver) = value("driver") {
            self.listed_in(&format!("bus/pci/drivers/{driver}"))?;
            self.link("driver", &format!("bus/pci/drivers/{driver}"))?;
        }
        if let Some(methods) = value("reset") {
            self.file("reset_method", &methods.replace(',', " "))?;
            self.file("reset", "")?;
        }
        if value("console").is_some() {
            self.file("boot_vga", "1")?;
        }
        if let Some(bytes) = value("vram") {
            self.file("mem_info_vram_total", bytes)?;
        }
        if let Some(total) = value("total-vfs") {
            self.file("sriov_totalvfs", total)?;
        }
        let dir = self.sys.join(self.place);
        for (n, part) in list(value("vfs")).enumerate() {
            symlink(format!("../{part}"), dir.join(format!("virtfn{n}")))?;
        }
        if let Some(whole) = value("pf") {
            symlink(format!("../{whole}"), dir.join("physfn"))?;
        }
        if let Some(kind) = value("vgpu") {
            self.file("nvidia/current_vgpu_type", kind)?;
        }
        for kind in list(value("mdev")) {
            let mut parts = kind.split('/');
            let id = parts.next().context("no id")?;
            for name in ["name", "available_instances"] {
                let text = parts.next().context("no name or number")?;
                self.file(&format!("mdev_supported_types/{id}/{name}"), text)?;
            }
        }
        Ok(())
    }
}

const KEYS: [&str; 16] = [
    "class",
    "sub",
    "node",
    "group",
    "driver",
    "reset",
    "bars",
    "window",
    "vfs",
    "pf",
    "total-vfs",
    "vgpu",
    "mdev",
    "vram",
    "console",
    "dead",
];

fn list(values: Option<&str>) -> impl Iterator<Item = &str> {
    values.into_iter().flat_map(|values| values.split(','))
}

/// 64-bit regions from 32 TiB on, each of them aligned to its size. Flags are those of
/// `include/linux/ioport.h`.
fn resource(bars: Option<&str>, window: Option<&str>) -> Result<String> {
    let mut lines = Vec::new();
    let mut next: u64 = 32 << 40;
    let mut add = |size: &str, flags: u64| -> Result<()> {
        let size = bytes(size)?;
        let start = next.next_multiple_of(size);
        next = start + size;
        let end = next - 1;
        lines.push(format!("0x{start:016x} 0x{end:016x} 0x{flags:016x}"));
        lines.push("0x0000000000000000 0x0000000000000000 0x0000000000000000".into());
        Ok(())
    };
    for size in list(bars) {
        add(size, 0x0014_220c)?;
    }
    if let Some(size) = window {
        add(size, 0x0010_0204)?;
    }
    Ok(lines.join("\n"))
}

fn bytes(size: &str) -> Result<u64> {
    let unit = size.len() - 1;
    let shift = match &size[unit..] {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        other => bail!("{other} is no unit"),
    };
    Ok(size[..unit].parse::<u64>()? << shift)
}

/// What every header begins with (PCI Local Bus Specification, 6.1).
fn configuration(vendor: &str, device: &str, class: &str) -> Result<Vec<u8>> {
    let mut config = vec![0; 256];
    let number = |digits| u16::from_str_radix(digits, 16);
    config[..2].copy_from_slice(&number(vendor)?.to_le_bytes());
    config[2..4].copy_from_slice(&number(device)?.to_le_bytes());
    let class = u32::from_str_radix(class, 16)?.to_le_bytes();
    config[9..12].copy_from_slice(&class[..3]);
    Ok(config)
}
