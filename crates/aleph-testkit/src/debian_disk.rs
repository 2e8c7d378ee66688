//! Debian as cloud images have it: a disk that a machine's firmware boots.

use crate::debian::{mtools, run, unpacked};
use crate::{DebianRoot, root::target};
use anyhow::{Context, Result};
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{EFI, LINUX_FS};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Changes with what is made below.
const VERSION: &str = "2";
const MIB: u64 = 1 << 20;
/// Room for the boot loader, the kernel and its initrd.
const ESP: u64 = 64 * MIB;
const LOADER: &str = "timeout 0\ndefault debian\n";
const ROOT: &str = "root=PARTLABEL=root ro";
const FSTAB: &str = "PARTLABEL=root / ext4 errors=remount-ro 0 1\n";

/// [`DebianRoot`] on a disk with a partition table (GPT): shim, GRUB, kernel and initrd in a
/// partition of the firmware's (UEFI), and the root behind it, which can grow. It waits for nobody and
/// stays up.
#[derive(Debug)]
pub struct DebianDisk {
    /// The disk, raw and with holes. No test may write to it.
    pub raw: PathBuf,
    /// The same as qcow2.
    pub qcow2: PathBuf,
}

impl DebianDisk {
    /// The disk of all tests, made at the first call, which takes root's rights and, for the root,
    /// minutes.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new() -> Result<Self> {
        let root = DebianRoot::new()?;
        let folder = target().join("test-root/debian-12-disk");
        fs::create_dir_all(&folder)?;
        let folder = folder.canonicalize()?;
        let lock = File::create(folder.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let disk = Self {
            raw: folder.join("disk.raw"),
            qcow2: folder.join("disk.qcow2"),
        };
        let (done, wanted) = (folder.join("made-of"), made_of(&root)?);
        if fs::read_to_string(&done).is_ok_and(|there| there == wanted) {
            return Ok(disk);
        }
        let work = tempfile::tempdir_in(&folder)?;
        disk.make(&root, work.path())?;
        fs::write(done, wanted)?;
        Ok(disk)
    }

    fn make(&self, root: &DebianRoot, work: &Path) -> Result<()> {
        let own = work.join("root.ext4");
        copy_sparse(&root.disk, &own)?;
        without_report(&own, work)?;
        let esp = work.join("esp.fat");
        let boot = [&root.kernel, &root.initrd];
        let options = format!("{ROOT} {}", DebianRoot::OPTIONS);
        signed_partition(&esp, boot, &options, work)?;
        let length = fs::metadata(&own)?.len();
        // A megabyte before the partitions and one after them is for the tables.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&self.raw)?;
        file.set_len(length + ESP + 2 * MIB)?;
        let blocks = u32::try_from((length + ESP + 2 * MIB) / 512 - 1)?;
        ProtectiveMBR::with_lb_size(blocks).overwrite_lba0(&mut file)?;
        let mut table = gpt::GptConfig::new()
            .writable(true)
            .create_from_device(&mut file, None)?;
        table.add_partition("esp", ESP, EFI, 0, Some(2048))?;
        table.add_partition("root", length, LINUX_FS, 0, Some(2048))?;
        let starts: Vec<u64> = table
            .partitions()
            .values()
            .map(|partition| partition.first_lba * 512)
            .collect();
        table.write()?;
        for (from, at) in [esp, own].iter().zip(starts) {
            let at = format!("seek={at}");
            run(Command::new("dd")
                .args([
                    "bs=1M",
                    "conv=notrunc,sparse",
                    "oflag=seek_bytes",
                    "status=none",
                ])
                .arg(at)
                .arg(format!("if={}", from.display()))
                .arg(format!("of={}", self.raw.display())))?;
        }
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&self.raw, &self.qcow2]))
    }
}

/// What the disk depends on: the root's own record is made anew with it.
fn made_of(root: &DebianRoot) -> Result<String> {
    let folder = root.disk.parent().context("the root has a folder")?;
    let of = fs::read_to_string(folder.join("made-of"))?;
    Ok(format!("{VERSION} {of}"))
}

fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([from, to]))
}

/// Takes away what makes the root report and power off, and has it find itself by its partition.
fn without_report(root: &Path, work: &Path) -> Result<()> {
    let fstab = work.join("fstab");
    fs::write(&fstab, FSTAB)?;
    let requests = format!(
        "rm /etc/systemd/system/cloud-init.target.wants/report.service\n\
         rm /etc/systemd/system/report.service\n\
         rm /etc/fstab\n\
         write {} /etc/fstab\n",
        fstab.display()
    );
    let script = work.join("requests");
    fs::write(&script, requests)?;
    run(Command::new("/sbin/debugfs")
        .args(["-w", "-f"])
        .args([&script, root]))
}

/// A filesystem whose systemd-boot starts this kernel with this initrd, with these options.
pub(crate) fn system_partition(
    esp: &Path,
    [kernel, initrd]: [&PathBuf; 2],
    options: &str,
    work: &Path,
) -> Result<()> {
    let loader = unpacked("systemd-boot-efi", &["systemd-boot-efi"])?
        .join("usr/lib/systemd/boot/efi/systemd-bootx64.efi");
    let (conf, entry) = (work.join("loader.conf"), work.join("debian.conf"));
    fs::write(&conf, LOADER)?;
    let text = format!("title Debian\nlinux /vmlinuz\ninitrd /initrd\noptions {options}\n");
    fs::write(&entry, text)?;
    let files = [
        (&loader, "EFI/BOOT/BOOTX64.EFI"),
        (&conf, "loader/loader.conf"),
        (&entry, "loader/entries/debian.conf"),
        (kernel, "vmlinuz"),
        (initrd, "initrd"),
    ];
    partition_with(esp, &files)
}

/// The same by what Debian has signed: shim, which Microsoft has, GRUB, and the kernel.
pub(crate) fn signed_partition(
    esp: &Path,
    [kernel, initrd]: [&PathBuf; 2],
    options: &str,
    work: &Path,
) -> Result<()> {
    let packages = unpacked("signed-boot", &["shim-signed", "grub-efi-amd64-signed"])?;
    let shim = packages.join("usr/lib/shim/shimx64.efi.signed");
    let grub = packages.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    let conf = work.join("grub.cfg");
    let text = format!("linux /vmlinuz {options}\ninitrd /initrd\nboot\n");
    fs::write(&conf, text)?;
    let files = [
        (&shim, "EFI/BOOT/BOOTX64.EFI"),
        (&grub, "EFI/BOOT/grubx64.efi"),
        (&conf, "EFI/debian/grub.cfg"),
        (kernel, "vmlinuz"),
        (initrd, "initrd"),
    ];
    partition_with(esp, &files)
}

/// A FAT filesystem with these files.
fn partition_with(esp: &Path, files: &[(&PathBuf, &str)]) -> Result<()> {
    File::create(esp)?.set_len(ESP)?;
    let on = |program: &str| -> Result<Command> {
        let mut command = mtools(program)?;
        command.arg("-i").arg(esp);
        Ok(command)
    };
    run(on("mformat")?.args(["-F", "::"]))?;
    let above = files.iter().flat_map(|(_, to)| Path::new(to).ancestors());
    // In the order of their names a folder comes before what is in it.
    let mut folders: BTreeSet<&Path> = above.filter(|path| path.parent().is_some()).collect();
    for (_, to) in files {
        folders.remove(Path::new(to));
    }
    for folder in folders {
        run(on("mmd")?.arg(format!("::/{}", folder.display())))?;
    }
    for (from, to) in files {
        run(on("mcopy")?.arg(from).arg(format!("::/{to}")))?;
    }
    Ok(())
}
