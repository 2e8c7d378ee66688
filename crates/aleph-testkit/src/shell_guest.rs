//! The smallest Linux that can be asked anything: Debian's kernel, and busybox in an initramfs.

use crate::debian::unpacked;
use crate::debian_disk::{signed_partition, system_partition};
use crate::{DrivenVm, TestRoot, pci_host};
use aleph_executor::hypervisor::{Kernel, Start};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What a whole computer has, and what a test looks at in it.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    // The power button, and where it can be read.
    "button",
    "evdev",
    "efivarfs",
];

/// QEMU's guest agent, and what it needs.
const GUEST_AGENT: &[&str] = &[
    "libc6",
    "libglib2.0-0",
    "libnuma1",
    "libpcre2-8-0",
    "libudev1",
    "liburing2",
    "qemu-guest-agent",
];

/// Starts it on its port.
const START_GUEST_AGENT: &str = "mkdir -p /run /var/run /tmp
for port in /sys/class/virtio-ports/*; do
    grep -q org.qemu.guest_agent $port/name &&
        qemu-ga -m virtio-serial -p /dev/${port##*/} >/dev/null 2>&1 &
done
";

/// Runs each line that comes over the serial port, and says how that ended. The terminal gives whole lines: busybox's
/// `read` begins anew where a child ends in the middle of one, and what it had of it is lost.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for name in $(cat /modules/order); do insmod /modules/$name.ko; done
echo 0 >/proc/sys/kernel/printk
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -isig -ixon -icrnl -opost
for event in /sys/class/input/event*; do
    grep -q Power $event/device/name && button=/dev/input/${event##*/}
done
(dd if=$button bs=24 count=1 >/dev/null 2>&1; poweroff -f) &
echo ready
while read -r line; do eval \"$line\"; echo status=$?; done
";

/// The end of what is said to each line.
const STATUS: &str = "status=";

/// What a kernel is told.
const OPTIONS: &str = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off";

/// Makes a filesystem with a kernel and its initramfs.
type Make = fn(&Path, [&PathBuf; 2], &str, &Path) -> Result<()>;

/// A kernel and an initramfs, whose shell is on the first serial port and which powers off when its
/// button is pressed.
#[derive(Debug)]
pub struct ShellGuest {
    kernel: PathBuf,
    /// The same kernel as a program of UEFI.
    stub: PathBuf,
    initrd: PathBuf,
}

impl ShellGuest {
    /// One whose initramfs is made in this folder.
    ///
    /// # Errors
    /// Where its packages cannot be had.
    pub fn new(dir: &Path) -> Result<Self> {
        Self::make(dir, false)
    }

    /// The same with QEMU's guest agent.
    ///
    /// # Errors
    /// Where its packages cannot be had.
    pub fn with_guest_agent(dir: &Path) -> Result<Self> {
        Self::make(dir, true)
    }

    fn make(dir: &Path, has_agent: bool) -> Result<Self> {
        let bundle = TestRoot::new()?.bundle()?;
        let record = bundle.record().context("the kernel has no record")?;
        let (package, version) = (&record.package, &record.package_version);
        let modules = pci_host::modules(package, version, MODULES)?;
        let busybox = unpacked("busybox-static", &["busybox-static"])?.join("bin/busybox");
        let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        files.insert("/bin/busybox".into(), fs::read(busybox)?);
        let mut init = INIT.to_owned();
        if has_agent {
            init = init.replace(
                "exec </dev/ttyS0",
                &format!("{START_GUEST_AGENT}exec </dev/ttyS0"),
            );
            add_guest_agent(&mut files)?;
        }
        files.insert("/init".into(), init.into());
        let order: String = modules
            .iter()
            .map(|(name, _)| format!("{name}\n"))
            .collect();
        files.insert("/modules/order".into(), order.into_bytes());
        for (name, bytes) in modules {
            files.insert(format!("/modules/{name}.ko").into(), bytes);
        }
        let initrd = dir.join("shell.initrd");
        fs::write(&initrd, pci_host::archive(&files)?)?;
        let boot = fs::read_dir(pci_host::unpacked(package, version)?.join("boot"))?;
        let stub = boot
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                let name = path.file_name();
                name.is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
            })
            .context("the package has no kernel")?;
        let kernel = bundle.fastest_kernel().to_owned();
        ensure!(kernel.exists(), "the bundle has no kernel");
        Ok(Self {
            kernel,
            stub,
            initrd,
        })
    }

    /// Its start with the kernel.
    ///
    /// # Errors
    /// Those of opening files.
    pub fn boot(&self, more_options: &str) -> Result<Start> {
        Ok(Start::Boot(Kernel {
            kernel: File::open(&self.kernel)?,
            initrd: File::open(&self.initrd)?,
            command_line: format!("{OPTIONS} {more_options}"),
        }))
    }

    /// Makes a disk that UEFI boots it from, by systemd-boot, and gives it opened for reading and writing.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn disk(&self, path: &Path) -> Result<File> {
        self.disk_by(path, system_partition)
    }

    /// Makes one that UEFI boots with Secure Boot too: by shim and GRUB.
    ///
    /// # Errors
    /// The same.
    pub fn signed_disk(&self, path: &Path) -> Result<File> {
        self.disk_by(path, signed_partition)
    }

    fn disk_by(&self, path: &Path, make: Make) -> Result<File> {
        let work = path.with_extension("work");
        fs::create_dir(&work)?;
        make(path, [&self.stub, &self.initrd], OPTIONS, &work)?;
        Ok(File::options().read(true).write(true).open(path)?)
    }

    /// Waits until its shell listens.
    ///
    /// # Errors
    /// Where that takes three minutes.
    pub async fn ready(vm: &DrivenVm) -> Result<()> {
        vm.says("ready\n").await.map(drop)
    }

    /// Runs a line in it; gives what that wrote.
    ///
    /// # Errors
    /// Where it fails, or takes three minutes.
    pub async fn run(vm: &DrivenVm, line: &str) -> Result<String> {
        vm.tell(&format!("{line}\n")).await?;
        let said = vm.says(STATUS).await?;
        let status = vm.says("\n").await?;
        let said = said.trim_end_matches(STATUS);
        ensure!(status.trim() == "0", "{line:?} ended with {status}: {said}");
        Ok(said.to_owned())
    }
}

/// Puts the agent's program and its libraries where they are looked for.
fn add_guest_agent(files: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let from = unpacked("qemu-guest-agent", GUEST_AGENT)?;
    let program = "usr/sbin/qemu-ga";
    files.insert(Path::new("/").join(program), fs::read(from.join(program))?);
    for folder in ["lib", "usr/lib"] {
        let Ok(entries) = fs::read_dir(from.join(folder).join("x86_64-linux-gnu")) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().context("no name")?;
            let is_library = name.to_string_lossy().contains(".so.");
            // What a link leads to is a file of the same name's beginning.
            if is_library && path.is_file() {
                files.insert(
                    Path::new("/lib/x86_64-linux-gnu").join(name),
                    fs::read(&path)?,
                );
            }
        }
    }
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let own = from.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    files.insert(loader.into(), fs::read(own)?);
    Ok(())
}
