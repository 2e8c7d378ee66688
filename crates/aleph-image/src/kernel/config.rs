//! A kernel's configuration: what it is built with, and whether that is enough for guests (pure).

use crate::kernel::bzimage::ExtractError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;

/// Debian's has 270 KiB.
const MOST_BYTES: u64 = 4 << 20;

/// What stands before and after an embedded configuration, which is gzip (kernel/configs.c).
const START: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";

/// How a feature is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Built {
    In,
    AsModule,
}

/// What is not left out of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Config(BTreeMap<String, Built>);

/// A file that is no kernel's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has no line of the form CONFIG_NAME=y")]
pub(crate) struct NoConfig;

impl Config {
    /// Reads the text that `make oldconfig` writes. Lines that say something else are ignored.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, NoConfig> {
        let mut features = BTreeMap::new();
        for line in String::from_utf8_lossy(text).lines() {
            let Some((name, value)) = line.strip_prefix("CONFIG_").and_then(|l| l.split_once('='))
            else {
                continue;
            };
            let built = match value.trim() {
                "y" => Built::In,
                "m" => Built::AsModule,
                _ => continue,
            };
            features.insert(name.to_owned(), built);
        }
        if features.is_empty() {
            return Err(NoConfig);
        }
        Ok(Self(features))
    }

    /// The configuration that an uncompressed kernel carries, where it was built with one
    /// (`CONFIG_IKCONFIG`).
    pub(crate) fn embedded(vmlinux: &[u8]) -> Result<Option<Self>, ExtractError> {
        let Some(start) = find(vmlinux, START).map(|at| at + START.len()) else {
            return Ok(None);
        };
        let rest = vmlinux.get(start..).unwrap_or_default();
        let Some(packed) = find(rest, END).and_then(|end| rest.get(..end)) else {
            return Ok(None);
        };
        // The words themselves are in the program that looks for them, too.
        if !packed.starts_with(&[0x1f, 0x8b]) {
            return Ok(None);
        }
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(packed)
            .take(MOST_BYTES)
            .read_to_end(&mut text)?;
        Ok(Self::parse(&text).ok())
    }

    fn has(&self, name: &str) -> Option<Built> {
        self.0.get(name).copied()
    }
}

/// Where some bytes are within others.
pub(crate) fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut at = 0;
    loop {
        let rest = bytes.get(at..)?;
        at += rest.iter().position(|byte| *byte == first)?;
        if bytes.get(at..)?.starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
}

/// The kinds of guests that a kernel may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestMode {
    /// A microVM.
    Microvm,
    /// A full VM.
    Vm,
}

impl GuestMode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Microvm, Self::Vm];
}

impl fmt::Display for GuestMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Microvm => "microVMs",
            Self::Vm => "full VMs",
        })
    }
}

/// Something that a kernel needs to be a guest's.
struct Requirement {
    /// Its name in the configuration, without `CONFIG_`.
    name: &'static str,
    /// What it is for.
    what: &'static str,
    /// The module that it may be instead.
    module: Option<&'static str>,
    modes: &'static [GuestMode],
}

const fn built_in(name: &'static str, what: &'static str) -> Requirement {
    Requirement {
        name,
        what,
        module: None,
        modes: &GuestMode::ALL,
    }
}

const fn driver(
    name: &'static str,
    what: &'static str,
    module: &'static str,
    modes: &'static [GuestMode],
) -> Requirement {
    Requirement {
        name,
        what,
        module: Some(module),
        modes,
    }
}

/// What the agent and the machines of QEMU stand on. The network, the balloon and vsock are needed
/// by some jobs alone.
const REQUIRED: [Requirement; 14] = [
    built_in("BLK_DEV_INITRD", "an initramfs"),
    built_in("BINFMT_ELF", "programs"),
    built_in("DEVTMPFS", "device files"),
    built_in("PROC_FS", "/proc"),
    built_in("SYSFS", "/sys"),
    built_in("TMPFS", "what guests write"),
    built_in("TTY", "the console and terminals"),
    built_in("ACPI", "the machine's devices"),
    driver(
        "VIRTIO_MMIO",
        "the bus of microVMs",
        "virtio_mmio",
        &[GuestMode::Microvm],
    ),
    driver(
        "VIRTIO_PCI",
        "the bus of full VMs",
        "virtio_pci",
        &[GuestMode::Vm],
    ),
    driver("VIRTIO_BLK", "disks", "virtio_blk", &GuestMode::ALL),
    driver(
        "VIRTIO_CONSOLE",
        "the channel to the host",
        "virtio_console",
        &GuestMode::ALL,
    ),
    driver(
        "OVERLAY_FS",
        "writes over an image",
        "overlay",
        &GuestMode::ALL,
    ),
    driver("EROFS_FS", "images", "erofs", &GuestMode::ALL),
];

/// What a kernel lacks for guests, by mode, each as a phrase; a mode without an entry lacks nothing.
/// `modules` are those in its initramfs.
pub(crate) fn lacks(
    config: &Config,
    modules: &BTreeSet<String>,
) -> BTreeMap<GuestMode, Vec<String>> {
    let mut lacks: BTreeMap<GuestMode, Vec<String>> = BTreeMap::new();
    for required in &REQUIRED {
        let how = match (config.has(required.name), required.module) {
            (Some(Built::In), _) => continue,
            (Some(Built::AsModule), Some(module)) if modules.contains(module) => continue,
            (Some(Built::AsModule), Some(module)) => {
                format!("is the module {module}, which the initramfs lacks")
            }
            (Some(Built::AsModule), None) => "has to be built in".to_owned(),
            (None, _) => "is left out".to_owned(),
        };
        let phrase = format!("CONFIG_{} ({}) {how}", required.name, required.what);
        for mode in required.modes {
            lacks.entry(*mode).or_default().push(phrase.clone());
        }
    }
    lacks
}

/// What a kernel lacks, as one sentence.
pub(crate) fn sentence(lacks: &BTreeMap<GuestMode, Vec<String>>) -> String {
    let each =
        |(mode, what): (&GuestMode, &Vec<String>)| format!("for {mode}: {}", what.join(", "));
    lacks.iter().map(each).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const WHOLE: &str = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_BINFMT_ELF=y\nCONFIG_DEVTMPFS=y\nCONFIG_PROC_FS=y\n\
        CONFIG_SYSFS=y\nCONFIG_TMPFS=y\nCONFIG_TTY=y\nCONFIG_ACPI=y\nCONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_PCI=y\n\
        CONFIG_VIRTIO_BLK=y\nCONFIG_VIRTIO_CONSOLE=y\nCONFIG_OVERLAY_FS=y\nCONFIG_EROFS_FS=m\n# CONFIG_X is not set\n";

    fn named(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_missing_is_said_for_each_mode() {
        let config = Config::parse(WHOLE.as_bytes()).unwrap();
        assert!(lacks(&config, &named(&["erofs"])).is_empty());
        let without = lacks(&config, &named(&[]));
        assert_eq!(without.len(), 2);
        assert!(
            sentence(&without).contains(
                "CONFIG_EROFS_FS (images) is the module erofs, which the initramfs lacks"
            )
        );
        let text = WHOLE
            .replace("CONFIG_VIRTIO_MMIO=y\n", "")
            .replace("CONFIG_TTY=y", "CONFIG_TTY=m");
        let config = Config::parse(text.as_bytes()).unwrap();
        let lacks = lacks(&config, &named(&["erofs"]));
        assert_eq!(
            lacks[&GuestMode::Vm],
            ["CONFIG_TTY (the console and terminals) has to be built in"]
        );
        assert_eq!(
            lacks[&GuestMode::Microvm],
            [
                "CONFIG_TTY (the console and terminals) has to be built in",
                "CONFIG_VIRTIO_MMIO (the bus of microVMs) is left out"
            ]
        );
        assert!(Config::parse(b"# CONFIG_X is not set\nhello\n").is_err());
    }

    #[test]
    fn an_embedded_configuration_is_found() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(WHOLE.as_bytes()).unwrap();
        let packed = gzip.finish().unwrap();
        let mut vmlinux = b"\x7fELF IKCFG IKCF".to_vec();
        assert_eq!(Config::embedded(&vmlinux).unwrap(), None);
        vmlinux.extend(START);
        assert_eq!(Config::embedded(&vmlinux).unwrap(), None);
        vmlinux.extend(&packed);
        vmlinux.extend(END);
        let config = Config::embedded(&vmlinux).unwrap().unwrap();
        assert_eq!(config.has("EROFS_FS"), Some(Built::AsModule));
        let at = vmlinux.len() - END.len() - 4;
        vmlinux.drain(at - 40..at);
        assert!(Config::embedded(&vmlinux).is_err());
    }
}
