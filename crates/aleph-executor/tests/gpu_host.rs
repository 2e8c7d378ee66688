//! What a kernel does with GPUs that are taken from it and given back. Each case runs in a VM with an
//! IOMMU, emulated displays and GPUs, and Debian's kernel.

use aleph_executor::gpu::{
    Gpu, GpuConfig, GpuError, GpuState, Gpus, HostTree, PciAddress, Record, Released, Taken,
    Tenant, VFIO_PCI,
};
use aleph_testkit::{Case, PciHost};
use aleph_types::{Classify, MiB};
use anyhow::{Context, Result, bail, ensure};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::mount::{MountFlags, mount_remount};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};

const CASES: &[Case] = &[
    (
        "gpus_and_their_groups_are_found",
        gpus_and_their_groups_are_found,
    ),
    (
        "a_gpu_is_taken_with_its_companion_and_given_back",
        a_gpu_is_taken_with_its_companion_and_given_back,
    ),
    (
        "what_one_tenant_leaves_is_gone_before_the_next",
        what_one_tenant_leaves_is_gone_before_the_next,
    ),
    (
        "a_gpu_is_reset_with_what_is_beside_it_on_its_bus",
        a_gpu_is_reset_with_what_is_beside_it_on_its_bus,
    ),
    ("half_a_group_is_refused", half_a_group_is_refused),
    (
        "a_group_with_a_device_of_the_host_is_refused",
        a_group_with_a_device_of_the_host_is_refused,
    ),
    (
        "a_device_in_use_is_left_alone",
        a_device_in_use_is_left_alone,
    ),
    (
        "a_device_that_cannot_be_reset_is_quarantined",
        a_device_that_cannot_be_reset_is_quarantined,
    ),
    (
        "a_device_that_is_silent_is_quarantined_and_another_one_given",
        a_device_that_is_silent_is_quarantined_and_another_one_given,
    ),
    (
        "where_sysfs_is_read_only_no_gpu_is_quarantined",
        where_sysfs_is_read_only_no_gpu_is_quarantined,
    ),
    (
        "a_crash_at_any_step_leaves_the_host_as_it_was",
        a_crash_at_any_step_leaves_the_host_as_it_was,
    ),
    (
        "a_crash_in_the_middle_of_a_group_that_its_bus_resets_leaves_the_host_as_it_was",
        a_crash_in_the_middle_of_a_group_that_its_bus_resets_leaves_the_host_as_it_was,
    ),
];

/// Behind ports of their own, at buses 1 to 7: a display without a driver; a GPU with a companion in its
/// slot, both with a driver of the host; two GPUs in one slot; a bridge to conventional PCI, and so in
/// one group a display and a device that a driver of the host has; another display; a third one with
/// another device in its slot, neither of which can be reset alone.
const DEVICES: &[&str] = &[
    "pcie-root-port,id=port1,chassis=1,slot=1,addr=2.0",
    "secondary-vga,bus=port1,addr=0.0",
    "pcie-root-port,id=port2,chassis=2,slot=2,addr=3.0",
    "virtio-gpu-pci,bus=port2,addr=0.0,multifunction=on",
    "nvme,serial=companion,bus=port2,addr=0.1",
    "pcie-root-port,id=port3,chassis=3,slot=3,addr=4.0",
    "virtio-gpu-pci,bus=port3,addr=0.0,multifunction=on",
    "virtio-gpu-pci,bus=port3,addr=0.1",
    "pcie-root-port,id=port4,chassis=4,slot=4,addr=5.0",
    "pcie-pci-bridge,id=bridge,bus=port4,addr=0.0",
    "secondary-vga,bus=bridge,addr=1.0",
    "virtio-rng-pci,bus=bridge,addr=2.0",
    "pcie-root-port,id=port5,chassis=5,slot=5,addr=6.0",
    "secondary-vga,bus=port5,addr=0.0",
    "pcie-root-port,id=port6,chassis=6,slot=6,addr=7.0",
    "secondary-vga,bus=port6,addr=0.0,multifunction=on",
    "edu,bus=port6,addr=0.1",
];
const DISPLAY: &str = "01:00.0";
const GPU: &str = "02:00.0";
const COMPANION: &str = "02:00.1";
const PAIR: [&str; 2] = ["03:00.0", "03:00.1"];
const SHARED: &str = "05:01.0";
const OF_THE_HOST: &str = "05:02.0";
const OTHER_DISPLAY: &str = "06:00.0";
const BESIDE_ANOTHER: &str = "07:00.0";

fn main() -> ExitCode {
    // A part of a case that is to die in it.
    if std::env::var_os(PART).is_some() {
        return match part() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let host = PciHost {
        memory: MiB(768),
        numa_nodes: 1,
        modules: &["virtio_pci", "vfio_iommu_type1", VFIO_PCI],
        devices: DEVICES,
        files: &[],
        node: None,
    };
    host.main(CASES)
}

/// The host's GPUs, as a daemon sees them that has just started.
fn gpus() -> Gpus {
    let config = GpuConfig {
        enabled: true,
        ..GpuConfig::default()
    };
    Gpus::new(HostTree::default(), config)
}

/// A job of the only node, where a case does not say another one.
fn tenant(job: &str) -> Tenant {
    Tenant::new("node", job, 1)
}

fn release(job: &str) -> Result<Released, GpuError> {
    gpus().release(&tenant(job))
}

fn at(address: &str) -> Result<PciAddress> {
    Ok(address.parse()?)
}

fn gpu(address: &str) -> Result<Gpu> {
    let inventory = gpus().inventory()?;
    let gpu = inventory.gpu(at(address)?).cloned();
    gpu.with_context(|| format!("{address} is no GPU"))
}

/// Driver and override of a function.
type Bound = (Option<String>, Option<String>);

fn bound(address: &str) -> Result<Bound> {
    let function = HostTree::default().read(at(address)?);
    let function = function.with_context(|| format!("there is no {address}"))?;
    Ok((function.driver, function.driver_override))
}

fn expect_vfio(address: &str) -> Result<()> {
    let vfio = Some(VFIO_PCI.to_owned());
    let found = bound(address)?;
    ensure!(found == (vfio.clone(), vfio), "{address}: {found:?}");
    Ok(())
}

/// Drivers and overrides of all functions.
fn host() -> Result<BTreeMap<PciAddress, Bound>> {
    let functions = HostTree::default().functions()?;
    let facts = functions
        .into_iter()
        .map(|f| (f.address, (f.driver, f.driver_override)));
    Ok(facts.collect())
}

fn is_recorded_empty() -> Result<bool> {
    let record: Record = serde_json::from_slice(&fs::read("/var/lib/aleph-gpu/record.json")?)?;
    Ok(record == Record::default())
}

fn assign(job: &str, request: &str) -> Result<Vec<Taken>, GpuError> {
    let request = request.parse().map_err(std::io::Error::other);
    gpus().assign(&tenant(job), &request.map_err(GpuError::Inventory)?)
}

fn addresses(taken: &[Taken]) -> Vec<String> {
    let functions = taken.iter().flat_map(|group| &group.functions);
    functions
        .map(|function| function.address.to_string().replace("0000:", ""))
        .collect()
}

fn refused(tenant: &str, request: &str) -> Result<GpuError> {
    match assign(tenant, request) {
        Ok(taken) => bail!("{request} got {:?}", addresses(&taken)),
        Err(error) => Ok(error),
    }
}

fn sysfs(address: &str, file: &str, text: &str) -> Result<()> {
    let path = format!("/sys/bus/pci/devices/0000:{address}/{file}");
    fs::write(&path, text).with_context(|| format!("cannot write {text:?} to {path}"))
}

/// `VFIO_GROUP_GET_STATUS` of `include/uapi/linux/vfio.h`: whether the kernel itself says that all devices
/// of a group are ready to be given away.
#[allow(unsafe_code)]
fn is_viable(group: u32) -> Result<bool> {
    const GET_STATUS: Opcode = opcode::none(b';', 103);
    const VIABLE: u32 = 1;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/dev/vfio/{group}"))?;
    let mut status: [u32; 2] = [8, 0];
    // SAFETY: the operation fills the two numbers, of which the first is their size in bytes.
    unsafe { ioctl(&file, Updater::<GET_STATUS, _>::new(&mut status))? };
    Ok(status[1] & VIABLE != 0)
}

fn gpus_and_their_groups_are_found() -> Result<()> {
    let inventory = gpus().inventory()?;
    let found: Vec<_> = inventory.gpus().iter().map(|gpu| gpu.address).collect();
    let expected = [
        DISPLAY,
        GPU,
        PAIR[0],
        PAIR[1],
        SHARED,
        OTHER_DISPLAY,
        BESIDE_ANOTHER,
    ];
    let expected: Vec<_> = expected.into_iter().map(at).collect::<Result<_>>()?;
    ensure!(found == expected, "{found:?}");

    let display = gpu(DISPLAY)?;
    ensure!(display.ids == "1234:1111" && display.driver.is_none());
    ensure!(display.state == GpuState::Free && display.group_members.is_empty());
    ensure!(display.reset_methods == ["bus"], "{display:?}");
    ensure!(
        display.vram.map(|vram| vram.mib) == Some(MiB(16)),
        "{display:?}"
    );

    let with_companion = gpu(GPU)?;
    ensure!(with_companion.driver.as_deref() == Some("virtio-pci"));
    ensure!(with_companion.state == GpuState::Host);
    ensure!(
        with_companion.companions == [at(COMPANION)?],
        "{with_companion:?}"
    );
    ensure!(with_companion.reset_methods.first().map(String::as_str) == Some("flr"));
    ensure!(gpu(PAIR[0])?.iommu_group == gpu(PAIR[1])?.iommu_group);

    let shared = gpu(SHARED)?;
    let members = [at("04:00.0")?, at(OF_THE_HOST)?];
    ensure!(shared.group_members == members, "{shared:?}");
    ensure!(shared.companions.is_empty(), "it is in another slot");

    // The kernel says that it could reset the bus, and does not by that file.
    ensure!(gpu(BESIDE_ANOTHER)?.reset_methods == ["bus"]);
    ensure!(sysfs(BESIDE_ANOTHER, "reset", "1").is_err());
    Ok(())
}

fn a_gpu_is_reset_with_what_is_beside_it_on_its_bus() -> Result<()> {
    let before = host()?;
    ensure!(horizontal_resolution(BESIDE_ANOTHER, Some(640))? == 640);
    let taken = assign("job-1", "type=1234:1111,count=3")?;
    let beside = taken.iter().find(|group| group.functions.len() == 2);
    let beside = beside.with_context(|| format!("{:?}", addresses(&taken)))?;
    let functions = addresses(std::slice::from_ref(beside));
    ensure!(functions == [BESIDE_ANOTHER, "07:00.1"], "{functions:?}");
    // The group is free again for its guest.
    ensure!(is_viable(beside.group)?);
    let released = release("job-1")?;
    ensure!(released.returned.len() == 3, "{released:?}");
    ensure!(host()? == before, "{:?}", host()?);
    let left = horizontal_resolution(BESIDE_ANOTHER, None)?;
    ensure!(left != 640, "the device was not reset");
    Ok(())
}

fn where_sysfs_is_read_only_no_gpu_is_quarantined() -> Result<()> {
    let before = host()?;
    mount_remount("/sys", MountFlags::RDONLY, "")?;
    let error = refused("job-1", "type=1af4:1050")?;
    ensure!(error.code() == "gpu_denied", "{error}");
    ensure!(
        error.to_string().contains("Read-only file system"),
        "{error}"
    );
    ensure!(is_recorded_empty()?);
    // One that is given by then stays recorded until it can be taken back.
    mount_remount("/sys", MountFlags::empty(), "")?;
    assign("job-1", "type=1af4:1050")?;
    mount_remount("/sys", MountFlags::RDONLY, "")?;
    let Err(error) = release("job-1") else {
        bail!("it was taken back without a reset");
    };
    ensure!(error.code() == "gpu_denied", "{error}");
    mount_remount("/sys", MountFlags::empty(), "")?;
    ensure!(release("job-1")?.returned == [at(GPU)?]);
    ensure!(host()? == before, "{:?}", host()?);
    Ok(())
}

fn a_gpu_is_taken_with_its_companion_and_given_back() -> Result<()> {
    let before = host()?;
    let taken = assign("job-1", "type=1af4:1050")?;
    ensure!(addresses(&taken) == [GPU, COMPANION], "{taken:?}");
    expect_vfio(GPU)?;
    expect_vfio(COMPANION)?;
    ensure!(is_viable(taken[0].group)?);
    let tenant = tenant("job-1");
    ensure!(gpu(GPU)?.state == GpuState::Assigned { tenant });

    ensure!(
        assign("job-1", "type=1af4:1050")? == taken,
        "it has them already"
    );
    let released = release("job-1")?;
    ensure!(released.returned == [at(GPU)?] && released.quarantined.is_empty());
    ensure!(host()? == before, "{:?}", host()?);
    ensure!(is_recorded_empty()?);
    ensure!(!Path::new(&format!("/dev/vfio/{}", taken[0].group)).exists());
    ensure!(
        release("job-1")?.returned.is_empty(),
        "there is nothing any more"
    );

    // One that had no driver has none afterwards, and one that an operator bound stays so.
    let taken = assign("job-2", "type=1234:1111")?;
    ensure!(addresses(&taken) == [DISPLAY], "{taken:?}");
    release("job-2")?;
    ensure!(host()? == before, "{:?}", host()?);
    sysfs(DISPLAY, "driver_override", VFIO_PCI)?;
    fs::write("/sys/bus/pci/drivers_probe", "0000:01:00.0")?;
    assign("job-3", "type=1234:1111")?;
    release("job-3")?;
    expect_vfio(DISPLAY)
}

/// The registers of an emulated display: those of Bochs' VBE begin at 0x500 of its third region (QEMU,
/// `docs/specs/standard-vga.rst`).
#[allow(unsafe_code)]
fn horizontal_resolution(address: &str, set: Option<u16>) -> Result<u16> {
    const XRES: usize = 0x500 + 2;
    sysfs(address, "enable", "1")?;
    let path = format!("/sys/bus/pci/devices/0000:{address}/resource2");
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping of a page of the device's registers, which nothing else refers to.
    let page = unsafe {
        mmap(
            std::ptr::null_mut(),
            4096,
            protection,
            MapFlags::SHARED,
            &file,
            0,
        )?
    };
    // SAFETY: the register is 16 bits wide, aligned, and in the page.
    let value = unsafe {
        let register = page.cast::<u8>().add(XRES).cast::<u16>();
        if let Some(value) = set {
            register.write_volatile(value);
        }
        register.read_volatile()
    };
    // SAFETY: the mapping of above, which is not used any more.
    unsafe { munmap(page, 4096)? };
    sysfs(address, "enable", "0")?;
    Ok(value)
}

fn what_one_tenant_leaves_is_gone_before_the_next() -> Result<()> {
    ensure!(horizontal_resolution(DISPLAY, Some(640))? == 640);
    ensure!(
        horizontal_resolution(DISPLAY, None)? == 640,
        "it stays by itself"
    );
    assign("job-1", "type=1234:1111")?;
    release("job-1")?;
    let left = horizontal_resolution(DISPLAY, None)?;
    ensure!(left != 640, "the device was not reset");
    Ok(())
}

fn half_a_group_is_refused() -> Result<()> {
    assign("job-1", "type=1af4:1050")?;
    let error = refused("job-2", "type=1af4:1050")?;
    ensure!(error.code() == "no_gpu");
    let said = error.to_string();
    ensure!(
        said.contains("02:00.0 (1af4:1050) belongs to another job"),
        "{said}"
    );
    ensure!(
        said.contains("given whole or not at all: it has 2 GPUs"),
        "{said}"
    );
    for address in PAIR {
        ensure!(
            bound(address)? == (Some("virtio-pci".into()), None),
            "{address}"
        );
    }
    let taken = assign("job-2", "type=1af4:1050,count=2")?;
    ensure!(addresses(&taken) == PAIR, "{taken:?}");
    ensure!(is_viable(taken[0].group)?);
    release("job-2")?;
    ensure!(bound(PAIR[1])? == (Some("virtio-pci".into()), None));
    Ok(())
}

fn a_group_with_a_device_of_the_host_is_refused() -> Result<()> {
    let shared = gpu(SHARED)?;
    let group = shared.iommu_group.context("no group")?;
    assign("job-1", "type=1234:1111,count=3")?;
    let said = refused("job-2", "type=1234:1111")?.to_string();
    let why = format!(
        "0000:05:01.0 (1234:1111, 16 MiB) shares IOMMU group {group} with 0000:05:02.0, which the host's \
         driver virtio-pci has"
    );
    ensure!(said.contains(&why), "{said}");

    // The kernel says the same of it.
    sysfs(SHARED, "driver_override", VFIO_PCI)?;
    fs::write("/sys/bus/pci/drivers_probe", "0000:05:01.0")?;
    ensure!(!is_viable(group)?);
    sysfs(OF_THE_HOST, "driver/unbind", "0000:05:02.0")?;
    ensure!(is_viable(group)?);
    Ok(())
}

fn a_device_in_use_is_left_alone() -> Result<()> {
    let before = host()?;
    let disk = File::open("/dev/nvme0")?;
    let said = refused("job-1", "type=1af4:1050")?.to_string();
    ensure!(
        said.contains("02:00.0 (1af4:1050) is in use: init (process 1) has /dev/nvme0 open"),
        "{said}"
    );
    ensure!(host()? == before, "{:?}", host()?);
    drop(disk);

    let taken = assign("job-1", "type=1af4:1050")?;
    let guest = File::open(format!("/dev/vfio/{}", taken[0].group))?;
    let again = refused("job-1", "type=1af4:1050")?;
    ensure!(again.code() == "gpu_in_use", "{again}");
    let error = match release("job-1") {
        Ok(_) => bail!("it was taken from a guest that has it"),
        Err(error) => error,
    };
    ensure!(error.code() == "gpu_in_use", "{error}");
    ensure!(
        error
            .to_string()
            .contains("init (process 1) has /dev/vfio/"),
        "{error}"
    );
    expect_vfio(GPU)?;
    ensure!(gpu(GPU)?.users.len() == 1, "{:?}", gpu(GPU)?);
    drop(guest);
    release("job-1")?;
    ensure!(host()? == before, "{:?}", host()?);
    Ok(())
}

fn a_device_that_cannot_be_reset_is_quarantined() -> Result<()> {
    let before = host()?;
    assign("job-1", "type=1234:1111")?;
    // The kernel forgets all ways to reset it.
    sysfs(DISPLAY, "reset_method", "\n")?;
    let released = release("job-1")?;
    ensure!(released.returned.is_empty());
    let reason = &released.quarantined[0].1;
    ensure!(
        reason.contains("0000:01:00.0 cannot be reset: "),
        "{reason}"
    );
    expect_vfio(DISPLAY).context("a driver of the host must not meet it")?;

    let reason = reason.clone();
    ensure!(
        gpu(DISPLAY)?.state
            == GpuState::Quarantined {
                reason: reason.clone()
            }
    );
    let said = refused("job-2", "type=1234:1111,count=3")?.to_string();
    ensure!(
        said.contains(&format!("is in quarantine: {reason}")),
        "{said}"
    );
    ensure!(addresses(&assign("job-2", "type=1234:1111")?) == [OTHER_DISPLAY]);

    let Err(error) = gpus().end_quarantine(at(DISPLAY)?) else {
        bail!("it is not mended");
    };
    ensure!(error.code() == "gpu_faulty", "{error}");
    sysfs(DISPLAY, "reset_method", "default")?;
    gpus().end_quarantine(at(DISPLAY)?)?;
    ensure!(gpu(DISPLAY)?.state == GpuState::Free);
    ensure!(release("job-2")?.returned == [at(OTHER_DISPLAY)?]);
    ensure!(host()? == before, "{:?}", host()?);
    let again = gpus().end_quarantine(at(DISPLAY)?).err();
    ensure!(again.is_some_and(|error| error.code() == "gpu_not_quarantined"));
    ensure!(addresses(&assign("job-3", "type=1234:1111")?) == [DISPLAY]);
    Ok(())
}

/// Has the port above the display lead to another bus: what is behind it does not answer any more, as a
/// GPU that has fallen off its bus.
fn cut_off(cut: bool) -> Result<()> {
    // Secondary and subordinate bus of a bridge (PCI-to-PCI Bridge Architecture, 3.2.5).
    let buses = if cut { [0xfe, 0xfe] } else { [1, 1] };
    let mut config = OpenOptions::new()
        .write(true)
        .open("/sys/bus/pci/devices/0000:00:02.0/config")?;
    config.seek(SeekFrom::Start(0x19))?;
    config.write_all(&buses[..1])?;
    config.write_all(&buses[1..])?;
    Ok(())
}

fn a_device_that_is_silent_is_quarantined_and_another_one_given() -> Result<()> {
    cut_off(true)?;
    let taken = assign("job-1", "type=1234:1111")?;
    ensure!(addresses(&taken) == [OTHER_DISPLAY], "{taken:?}");
    let GpuState::Quarantined { reason } = gpu(DISPLAY)?.state else {
        bail!("{:?}", gpu(DISPLAY)?);
    };
    ensure!(
        reason == "0000:01:00.0 does not answer: its configuration reads as all ones",
        "{reason}"
    );
    ensure!(bound(DISPLAY)? == (None, None), "it was not touched");
    cut_off(false)?;
    gpus().end_quarantine(at(DISPLAY)?)?;

    // The same after a tenant.
    assign("job-2", "type=1234:1111")?;
    cut_off(true)?;
    let released = release("job-2")?;
    ensure!(released.quarantined.len() == 1, "{released:?}");
    cut_off(false)
}

/// Names the part of a case that a process of its own runs.
const PART: &str = "ALEPH_TEST_PART";

fn part() -> Result<()> {
    match std::env::var(PART)?.as_str() {
        "assign" => assign("job-1", "type=1af4:1050").map(drop)?,
        "assign by bus" => assign("job-1", "type=1234:1111,count=3").map(drop)?,
        _ => release("job-1").map(drop)?,
    }
    Ok(())
}

/// Runs a part in a process that dies at a place. Whether it did: the place may not be on its way.
fn dies(part: &str, place: &str) -> Result<bool> {
    let status = Command::new("/init")
        .env(PART, part)
        .env("ALEPH_FAILPOINT", place)
        .status()?;
    ensure!(
        status.success() || status.signal() == Some(9),
        "{part} {place}: {status}"
    );
    Ok(!status.success())
}

fn a_crash_at_any_step_leaves_the_host_as_it_was() -> Result<()> {
    let before = host()?;
    // Two functions, so each step is passed twice; the reset of releasing too.
    for step in ["record", "override", "unbind", "probe", "reset"] {
        for time in 1..=2 {
            if step == "record" && time == 2 {
                continue;
            }
            let place = format!("gpu.{step}:after:{time}");
            ensure!(dies("assign", &place)?, "it has not died at {place}");
            // A daemon that finds the job alive goes on, one that does not gives back.
            if time == 2 {
                let taken = assign("job-1", "type=1af4:1050")?;
                ensure!(addresses(&taken) == [GPU, COMPANION] && is_viable(taken[0].group)?);
            }
            let kept = gpus().recover("node", |tenant| tenant.job == "job-1")?;
            ensure!(kept.returned.is_empty(), "{place}: it lives");
            let released = gpus().recover("node", |_| false)?;
            ensure!(released.returned == [at(GPU)?], "{place}: {released:?}");
            ensure!(host()? == before, "{place}: {:?}", host()?);
            ensure!(is_recorded_empty()?, "{place}");
        }
    }
    for step in ["reset", "restore", "release"] {
        for time in 1..=2 {
            assign("job-1", "type=1af4:1050")?;
            let place = format!("gpu.{step}:after:{time}");
            ensure!(dies("release", &place)?, "it has not died at {place}");
            release("job-1")?;
            ensure!(host()? == before, "{place}: {:?}", host()?);
            ensure!(is_recorded_empty()?, "{place}");
        }
    }
    Ok(())
}

fn a_crash_in_the_middle_of_a_group_that_its_bus_resets_leaves_the_host_as_it_was() -> Result<()> {
    let before = host()?;
    // The first two displays are alone, and the third one has another device beside it: it is bound third, and
    // that one fourth.
    for (part, place) in [
        ("assign by bus", "gpu.probe:after:3"),
        ("assign by bus", "gpu.override:after:4"),
        ("release", "gpu.release:after:3"),
    ] {
        if part == "release" {
            assign("job-1", "type=1234:1111,count=3")?;
        }
        ensure!(dies(part, place)?, "it has not died at {place}");
        let released = gpus().recover("node", |_| false)?;
        ensure!(released.quarantined.is_empty(), "{place}: {released:?}");
        ensure!(host()? == before, "{place}: {:?}", host()?);
        ensure!(is_recorded_empty()?, "{place}");
    }
    Ok(())
}
