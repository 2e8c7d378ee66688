//! `executor.qemu`: the program, or `[executor.qemu]` with the program and the GPUs of its guests.

use super::value::{self, Fault, Parsed};
use aleph_executor::ExecutorConfig;
use aleph_executor::gpu::{Allowed, GpuConfig, PciAddress, is_for_guests};
use aleph_types::HugePages;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::de::DeValue;
use toml::{Table, Value};

/// Reads either form, with all that is wrong with it.
pub(super) fn settings(value: &DeValue<'_>) -> Parsed<(PathBuf, GpuConfig)> {
    let (mut program, mut gpu) = (ExecutorConfig::default().qemu, GpuConfig::default());
    let Some(table) = value.as_table() else {
        return match value {
            DeValue::String(_) => Ok((value::program(value)?, gpu)),
            _ => Err(vec![Fault::kind(value, "a program or a table")]),
        };
    };
    let mut faults = Vec::new();
    for (name, value) in table {
        let (name, value) = (&**name.get_ref(), value.get_ref());
        let read = match name {
            "program" => value::program(value).map(|path| program = path),
            "enable_gpu" => value::boolean(value).map(|on| gpu.enabled = on),
            "gpu_devices" => devices(value).map(|devices| gpu.allowed.devices = Some(devices)),
            "iommu_group" => groups(value).map(|groups| gpu.allowed.groups = Some(groups)),
            "vfio_driver" => driver(value).map(|driver| gpu.driver = driver),
            "huge_pages" => pages(value).map(|pages| gpu.huge_pages = Some(pages)),
            "gpu_rom" => value::boolean(value).map(|seen| gpu.rom = seen),
            _ => Err(vec![Fault::new("there is no such key")]),
        };
        let at = |fault: Fault| fault.at(&format!(".{name}"));
        faults.extend(read.err().into_iter().flatten().map(at));
    }
    if faults.is_empty() {
        Ok((program, gpu))
    } else {
        Err(faults)
    }
}

/// Each item of a list, with all that is wrong.
fn items<T: Ord>(
    value: &DeValue<'_>,
    wanted: &str,
    read: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
) -> Parsed<BTreeSet<T>> {
    let list = value.as_array();
    let list = list.ok_or_else(|| vec![Fault::kind(value, wanted)])?;
    let (mut items, mut faults) = (BTreeSet::new(), Vec::new());
    for (n, item) in list.iter().enumerate() {
        match read(item.get_ref()) {
            Ok(item) => {
                items.insert(item);
            }
            Err(fault) => faults.push(fault.at(&format!("[{n}]"))),
        }
    }
    if faults.is_empty() {
        Ok(items)
    } else {
        Err(faults)
    }
}

fn devices(value: &DeValue<'_>) -> Parsed<BTreeSet<PciAddress>> {
    items(value, "a list of PCI addresses", |item| {
        let text = item.as_str();
        let text =
            text.ok_or_else(|| Fault::kind(item, "a PCI address, such as \"0000:18:00.0\""))?;
        text.parse::<PciAddress>()
            .map_err(|error| Fault::new(error.to_string()))
    })
}

fn groups(value: &DeValue<'_>) -> Parsed<BTreeSet<u32>> {
    // One group is what most hosts have to name.
    if matches!(value, DeValue::Integer(_)) {
        return Ok([group(value).map_err(|fault| vec![fault])?].into());
    }
    items(value, "a number of an IOMMU group or a list of them", group)
}

fn group(value: &DeValue<'_>) -> Result<u32, Fault> {
    let number = value
        .as_integer()
        .map(|n| u32::from_str_radix(n.as_str(), n.radix()));
    match number {
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(Fault::new("is no number of an IOMMU group")),
        None => Err(Fault::kind(value, "the number of an IOMMU group")),
    }
}

fn driver(value: &DeValue<'_>) -> Parsed<String> {
    let Some(name) = value.as_str() else {
        return Err(vec![Fault::kind(value, "a driver, such as \"vfio-pci\"")]);
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !is_for_guests(name) || !name.bytes().all(plain) {
        let why = "has to be a driver that gives devices to guests, such as \"vfio-pci\"";
        return Err(vec![Fault::new(why)]);
    }
    Ok(name.to_owned())
}

/// As a job's own file has them.
fn pages(value: &DeValue<'_>) -> Parsed<HugePages> {
    match value.as_str() {
        Some("2m") => Ok(HugePages::Mib2),
        Some("1g") => Ok(HugePages::Gib1),
        Some(_) => Err(vec![Fault::new("has to be \"2m\" or \"1g\"")]),
        None => Err(vec![Fault::kind(value, "\"2m\" or \"1g\"")]),
    }
}

/// The table as it is written.
pub(super) fn shown(program: &Path, gpu: &GpuConfig) -> Value {
    let GpuConfig {
        enabled,
        allowed: Allowed { devices, groups },
        driver,
        huge_pages,
        rom,
    } = gpu;
    let mut table = Table::new();
    let program = program.to_string_lossy().into_owned();
    table.insert("program".into(), Value::String(program));
    table.insert("enable_gpu".into(), Value::Boolean(*enabled));
    if let Some(devices) = devices {
        let devices = devices.iter().map(|at| Value::String(at.to_string()));
        table.insert("gpu_devices".into(), Value::Array(devices.collect()));
    }
    if let Some(groups) = groups {
        let groups = groups.iter().map(|group| Value::Integer((*group).into()));
        table.insert("iommu_group".into(), Value::Array(groups.collect()));
    }
    table.insert("vfio_driver".into(), Value::String(driver.clone()));
    if let Some(pages) = huge_pages {
        let pages = match pages {
            HugePages::Mib2 => "2m",
            HugePages::Gib1 => "1g",
        };
        table.insert("huge_pages".into(), Value::String(pages.into()));
    }
    table.insert("gpu_rom".into(), Value::Boolean(*rom));
    Value::Table(table)
}

#[cfg(test)]
mod tests {
    use crate::Config;

    fn problems(text: &str) -> Vec<String> {
        let problems = Config::check(text).unwrap_err();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_program_alone_is_enough() {
        let config = Config::check("[executor]\nqemu = \"/opt/qemu\"").unwrap();
        assert_eq!(config.executor.qemu.to_str(), Some("/opt/qemu"));
        assert!(!config.executor.gpu.enabled && config.executor.gpu.rom);
        let one = Config::check("[executor.qemu]\niommu_group = 14").unwrap();
        assert_eq!(one.executor.gpu.allowed.groups, Some([14].into()));
        assert_eq!(one.executor.qemu.to_str(), Some("qemu-system-x86_64"));
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        let problems = problems(
            "[executor.qemu]\nenable_gpu = 1\ngpu_devices = [\"18:00\", 7]\niommu_group = [-1]\n\
             vfio_driver = \"nouveau\"\nhuge_pages = \"4k\"\ngpu_rom = \"no\"\nenable = true",
        );
        let all = problems.join("\n");
        for (path, why) in [
            ("executor.qemu.enable_gpu", "true or false"),
            ("executor.qemu.gpu_devices[0]", "0000:18:00.0"),
            ("executor.qemu.gpu_devices[1]", "a PCI address"),
            ("executor.qemu.iommu_group[0]", "IOMMU group"),
            ("executor.qemu.vfio_driver", "vfio-pci"),
            ("executor.qemu.huge_pages", "\"2m\" or \"1g\""),
            ("executor.qemu.gpu_rom", "true or false"),
            ("executor.qemu.enable", "no such key"),
        ] {
            let found = problems
                .iter()
                .any(|p| p.starts_with(path) && p.contains(why));
            assert!(found, "{path} {why}:\n{all}");
        }
        assert_eq!(problems.len(), 8, "{all}");
    }
}
