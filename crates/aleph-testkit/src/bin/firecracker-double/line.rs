//! QEMU's command line for a guest.
//!
//! What emulation wants on the kernel's command line, Firecracker's does not say; it is added:
//! the frequency of the time stamp counter (the machine has no timer to measure it with, and boots
//! hang at random without), and that nothing is to be done against speculation.

use crate::bodies;
use crate::resources::Resources;
use anyhow::{Context, Result, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How many virtio devices the machine has room for.
const BUSES: usize = 24;

/// What only an emulated guest's kernel is told.
const EMULATED: &str =
    "mitigations=off initcall_blacklist=tracer_init_tracefs,trace_eval_init,init_kprobe_trace";

/// QEMU's command line while it is made, with the files that it is handed.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) words: Vec<String>,
    pub(crate) files: Vec<OwnedFd>,
    buses: usize,
}

impl Line {
    pub(crate) fn add(&mut self, words: &[&str]) {
        self.words
            .extend(words.iter().map(|word| (*word).to_owned()));
    }

    /// Hands a file over, and gives its number there.
    pub(crate) fn hand(&mut self, file: impl AsFd) -> Result<i32> {
        let copy = rustix::io::dup(file)?;
        fcntl_setfd(&copy, FdFlags::empty())?;
        let number = copy.as_raw_fd();
        self.files.push(copy);
        Ok(number)
    }

    /// Adds a virtio device after those that are there: guests find them in this order.
    fn device(&mut self, device: &str) -> Result<()> {
        ensure!(
            self.buses < BUSES,
            "more virtio devices than the machine takes"
        );
        // The guest's kernel finds the last one first.
        let bus = BUSES - 1 - self.buses;
        self.buses += 1;
        self.add(&["-device", &format!("{device},bus=virtio-mmio-bus.{bus}")]);
        Ok(())
    }
}

pub(crate) fn machine(line: &mut Line, machine: &bodies::Machine, memory: &File) -> Result<()> {
    line.add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    // A reset ends the VMM; a guest that powers off stays, as on a machine without ACPI's button.
    line.add(&["-action", "reboot=shutdown,shutdown=pause"]);
    line.add(&["-machine", "microvm,acpi=on,memory-backend=ram"]);
    line.add(&["-accel", "tcg", "-cpu", "Nehalem-v1,+arat"]);
    line.add(&["-smp", &machine.vcpu_count.to_string()]);
    line.add(&["-m", &format!("{}M", machine.mem_size_mib)]);
    let number = line.hand(memory)?;
    let ram = format!(
        "memory-backend-file,id=ram,size={}M,mem-path=/proc/self/fd/{number},share=on",
        machine.mem_size_mib
    );
    line.add(&["-object", &ram, "-device", "i8042"]);
    Ok(())
}

pub(crate) fn serial(line: &mut Line, path: Option<&impl AsRef<Path>>) -> Result<()> {
    let backend = match path {
        None => "stdio,id=serial,signal=off".to_owned(),
        Some(path) => {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            format!(
                "file,id=serial,append=on,path=/proc/self/fd/{}",
                line.hand(&file)?
            )
        }
    };
    line.add(&["-chardev", &backend, "-serial", "chardev:serial"]);
    Ok(())
}

pub(crate) fn devices(line: &mut Line, resources: &Resources) -> Result<()> {
    for drive in &resources.drives {
        let (id, number) = (&drive.config.drive_id, line.hand(&drive.file)?);
        let read_only = if drive.read_only() { "on" } else { "off" };
        line.add(&["-add-fd", &format!("fd={number},set={number}")]);
        let node = format!(
            "driver=file,node-name=drive-{id},filename=/dev/fdset/{number},read-only={read_only}"
        );
        line.add(&["-blockdev", &node]);
        let file = drive.file.metadata()?;
        // The serial number is the file's, and not the drive's name.
        let mut serial = format!("{}{}{}", file.dev(), file.rdev(), file.ino());
        serial.truncate(20);
        line.device(&format!(
            "virtio-blk-device,id=blk-{id},drive=drive-{id},serial={serial}"
        ))?;
    }
    for (n, nic) in resources.nics.iter().enumerate() {
        let number = line.hand(&nic.tap)?;
        line.add(&["-netdev", &format!("tap,id=net{n},fd={number},vhost=off")]);
        let mac = nic.config.guest_mac.map(bodies::mac_text);
        let mac = mac.map(|mac| format!(",mac={mac}")).unwrap_or_default();
        let mtu = nic.config.mtu.map(|mtu| format!(",host_mtu={mtu}"));
        let mtu = mtu.unwrap_or_default();
        line.device(&format!(
            "virtio-net-device,netdev=net{n},status=off{mac}{mtu}"
        ))?;
    }
    if resources.entropy.is_some() {
        line.add(&["-object", "rng-random,id=rng,filename=/dev/urandom"]);
        line.device("virtio-rng-device,rng=rng")?;
    }
    if let Some(balloon) = &resources.balloon {
        let on = |on| if on { "on" } else { "off" };
        line.device(&format!(
            "virtio-balloon-device,id=balloon,deflate-on-oom={},free-page-reporting={}",
            on(balloon.deflate_on_oom),
            on(balloon.free_page_reporting),
        ))?;
    }
    Ok(())
}

pub(crate) fn boot(line: &mut Line, resources: &Resources, arguments: &str) -> Result<()> {
    let boot = resources.boot.as_ref().context("no kernel")?;
    let kernel = line.hand(&boot.kernel)?;
    line.add(&["-kernel", &format!("/proc/self/fd/{kernel}")]);
    if let Some(initrd) = &boot.initrd {
        let initrd = line.hand(initrd)?;
        line.add(&["-initrd", &format!("/proc/self/fd/{initrd}")]);
    }
    let tsc = aleph_executor::host::tsc_khz(Path::new("/dev/null/none"))
        .map(|khz| format!(" tsc_early_khz={khz} tsc=reliable"))
        .unwrap_or_default();
    line.add(&["-append", &format!("{arguments} {EMULATED}{tsc}")]);
    Ok(())
}
