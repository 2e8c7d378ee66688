//! What a file that somebody calls a kernel is (pure). The file is hostile: every length is checked, and
//! nothing is unpacked beyond a bound.

use super::bzimage::{self, ExtractError};
use super::config::{Config, find};
use super::elf;
use object::Endianness;
use object::elf::{EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64};
use object::read::elf::FileHeader;
use serde::{Deserialize, Serialize};

/// Which kind of file a kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelForm {
    /// A bzImage, as `make bzImage` and distributions' `vmlinuz` are.
    Bzimage,
    /// A bzImage that is a program of UEFI as well (EFI stub).
    BzimageEfi,
    /// An uncompressed ELF kernel, `vmlinux`.
    Elf,
    /// The same, compressed with gzip, xz or zstd.
    CompressedElf,
}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelFault {
    /// It is nothing that boots.
    #[error("first bytes {0:02x?}")]
    Unknown(Vec<u8>),
    /// A kernel of other machines.
    #[error("it is for {found}, this node is {}", std::env::consts::ARCH)]
    Architecture {
        /// What it is for.
        found: String,
    },
    /// A program of UEFI without the header of a Linux kernel.
    #[error("it is a program of UEFI, but not a Linux kernel with an EFI stub")]
    OtherEfi,
    /// Its content cannot be had.
    #[error("its content cannot be taken out: {0}")]
    Extract(#[from] ExtractError),
    /// It is an ELF file of another kind.
    #[error("it is an ELF file, but no kernel: {0}")]
    Elf(String),
    /// It does not call itself Linux.
    #[error("it does not say its release")]
    NoRelease,
    /// An ELF kernel that QEMU cannot start.
    #[error("it has no PVH entry point (CONFIG_PVH), and an uncompressed kernel needs one")]
    NoPvh,
}

/// A kernel that was looked into.
#[derive(Debug)]
pub(crate) struct Inspection {
    pub(crate) form: KernelForm,
    /// As `uname -r` prints it.
    pub(crate) release: String,
    pub(crate) pvh: bool,
    /// What it was built with, where it tells.
    pub(crate) config: Option<Config>,
    /// Its uncompressed form, an ELF file.
    pub(crate) vmlinux: Vec<u8>,
}

/// Looks into the bytes of a kernel.
pub(crate) fn inspect(bytes: &[u8]) -> Result<Inspection, KernelFault> {
    let (form, vmlinux) = if bzimage::is_bzimage(bytes) {
        let form = if is_efi(bytes) {
            KernelForm::BzimageEfi
        } else {
            KernelForm::Bzimage
        };
        (form, bzimage::extract(bytes)?)
    } else if bytes.starts_with(b"\x7fELF") {
        (KernelForm::Elf, bytes.to_vec())
    } else if bytes.get(0x38..0x3c) == Some(b"ARM\x64") {
        // Documentation/arch/arm64/booting.rst: a header of its own, with an EFI stub or without.
        return Err(KernelFault::Architecture {
            found: "aarch64".to_owned(),
        });
    } else if is_efi(bytes) {
        return Err(KernelFault::OtherEfi);
    } else {
        match bzimage::decompress_elf(bytes)? {
            Some(vmlinux) => (KernelForm::CompressedElf, vmlinux),
            None => {
                return Err(KernelFault::Unknown(
                    bytes.iter().take(6).copied().collect(),
                ));
            }
        }
    };
    check_elf(&vmlinux)?;
    let pvh = elf::has_pvh_entry(&vmlinux).map_err(|error| KernelFault::Elf(error.to_string()))?;
    if !pvh && matches!(form, KernelForm::Elf | KernelForm::CompressedElf) {
        return Err(KernelFault::NoPvh);
    }
    let release = bzimage::release(bytes)
        .map(str::to_owned)
        .or_else(|| release_in(&vmlinux))
        .ok_or(KernelFault::NoRelease)?;
    let config = Config::embedded(&vmlinux)?;
    Ok(Inspection {
        form,
        release,
        pvh,
        config,
        vmlinux,
    })
}

/// Whether a file is a program of UEFI: `MZ`, and where its header says so, `PE`.
fn is_efi(bytes: &[u8]) -> bool {
    let at = bytes
        .get(0x3c..0x40)
        .and_then(|field| field.try_into().ok())
        .and_then(|field| usize::try_from(u32::from_le_bytes(field)).ok());
    let end = at.and_then(|at| at.checked_add(4));
    bytes.starts_with(b"MZ")
        && at.zip(end).and_then(|(at, end)| bytes.get(at..end)) == Some(b"PE\0\0")
}

/// Looks whether an ELF file is a program for this machine.
fn check_elf(bytes: &[u8]) -> Result<(), KernelFault> {
    let broken = |error: object::read::Error| KernelFault::Elf(error.to_string());
    let header = FileHeader64::<Endianness>::parse(bytes).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let machine = header.e_machine(endian);
    let (found, own) = if machine == EM_X86_64 {
        ("x86_64", cfg!(target_arch = "x86_64"))
    } else if machine == EM_AARCH64 {
        ("aarch64", cfg!(target_arch = "aarch64"))
    } else {
        return Err(KernelFault::Architecture {
            found: format!("machines of ELF number {}", machine.0),
        });
    };
    if !own {
        return Err(KernelFault::Architecture {
            found: found.to_owned(),
        });
    }
    let kind = header.e_type(endian);
    if kind == ET_EXEC || kind == ET_DYN {
        Ok(())
    } else {
        Err(KernelFault::Elf("it is not linked".to_owned()))
    }
}

/// The release in the banner that every kernel has (init/version.c).
fn release_in(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = vmlinux;
    loop {
        let at = find(rest, BANNER)? + BANNER.len();
        rest = rest.get(at..)?;
        let end = rest.iter().take(65).position(|byte| *byte == b' ');
        let release = end.and_then(|end| std::str::from_utf8(rest.get(..end)?).ok());
        // A format text has `%s` there.
        if let Some(release) = release.filter(|text| text.starts_with(|c: char| c.is_ascii_digit()))
            && release.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Some(release.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn vmlinux(machine: u16) -> Vec<u8> {
        let note = [
            &4u32.to_le_bytes()[..],
            &4u32.to_le_bytes(),
            &18u32.to_le_bytes(),
            b"Xen\0",
            &[0, 0, 0, 1],
        ]
        .concat();
        let mut file = elf::tests::elf(b".notes", &note, Some(4));
        file[16] = 2;
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file.extend(b"Linux version %s (x) Linux version 6.9.1-mine (someone) #1");
        file
    }

    #[test]
    fn forms_are_told_apart() {
        let plain = vmlinux(62);
        let found = inspect(&plain).unwrap();
        assert_eq!((found.form, found.pvh), (KernelForm::Elf, true));
        assert_eq!(found.release, "6.9.1-mine");
        assert!(found.config.is_none());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let mut xz = xz2::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&plain).unwrap();
        for packed in [
            gzip.finish().unwrap(),
            xz.finish().unwrap(),
            zstd::encode_all(&plain[..], 1).unwrap(),
        ] {
            let found = inspect(&packed).unwrap();
            assert_eq!(found.form, KernelForm::CompressedElf);
            assert!(found.vmlinux == plain);
        }
    }

    #[test]
    fn each_fault_is_told() {
        let says = |bytes: &[u8]| inspect(bytes).unwrap_err().to_string();
        assert_eq!(
            says(&vmlinux(183)),
            "it is for aarch64, this node is x86_64"
        );
        assert_eq!(
            says(&vmlinux(243)),
            "it is for machines of ELF number 243, this node is x86_64"
        );
        assert_eq!(says(b"#!/bin/sh\n"), "first bytes [23, 21, 2f, 62, 69, 6e]");
        assert_eq!(says(b""), "first bytes []");
        let mut arm = vec![0; 100];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert_eq!(says(&arm), "it is for aarch64, this node is x86_64");
        let mut efi = vec![0; 100];
        efi[..2].copy_from_slice(b"MZ");
        efi[0x3c] = 0x40;
        efi[0x40..0x44].copy_from_slice(b"PE\0\0");
        assert!(says(&efi).starts_with("it is a program of UEFI"));
        let mut object = vmlinux(62);
        object[16] = 1;
        assert_eq!(
            says(&object),
            "it is an ELF file, but no kernel: it is not linked"
        );
        let mut no_pvh = vmlinux(62);
        let at = find(&no_pvh, b"Xen\0").unwrap();
        no_pvh[at] = b'Y';
        assert!(says(&no_pvh).contains("CONFIG_PVH"));
        let silent = elf::tests::elf(b".x", b"", None);
        assert!(!says(&silent).is_empty());
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..700),
            at in 0usize..400,
            value: u8,
            magic in prop_oneof![
                Just(&b"MZ"[..]), Just(&b"\x7fELF\x02\x01\x01"[..]), Just(&b"\x1f\x8b\x08\0"[..]), Just(&b"\xfd7zXZ\0"[..]),
                Just(&b"\x28\xb5\x2f\xfd"[..]), Just(&b""[..])
            ],
        ) {
            let _ = inspect(&[magic, &bytes].concat());
            let mut changed = vmlinux(62);
            let length = changed.len();
            changed[at % length] = value;
            let _ = inspect(&changed);
            changed.truncate(at);
            let _ = inspect(&changed);
        }
    }
}
