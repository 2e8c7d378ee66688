//! What is added to a computer that runs, and taken away.

use crate::{LIMIT, World, powers_off, wanted};
use aleph_executor::hypervisor::{Disk, DiskFormat, Hotplug, Layer, Nic};
use aleph_executor::qemu::machine::{Firmware, MachineError, Wanted};
use aleph_testkit::{BootDisk, DrivenVm, Namespace, ShellGuest, wait_until};
use aleph_types::MiB;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0xab, 0xcd, 1];
const MIB: u64 = 1 << 20;

pub(crate) async fn a_guest_sees_what_is_added_and_taken_away() -> Result<()> {
    let world = World::new()?;
    let guest = ShellGuest::new(world.dir.path())?;
    let wanted = Wanted {
        cpu_room: 1,
        memory_room: MiB(256),
        ..wanted(Firmware::Bios)
    };
    let vm = world.launch(world.plan(&wanted, guest.boot("")?)?).await?;
    ShellGuest::ready(&vm).await?;
    let hotplug = vm.vmm.hotplug().context("no hotplug")?;
    disks(&world, &vm, hotplug).await?;
    network(&vm, hotplug).await?;
    full_disk(&world, &vm, hotplug).await?;

    let begins = hotplug.size().await?;
    hotplug.add_cpus(1).await?;
    see(&vm, "test -e /sys/devices/system/cpu/cpu1").await?;
    ShellGuest::run(&vm, "echo 1 >/sys/devices/system/cpu/cpu1/online").await?;
    ensure!(
        ShellGuest::run(&vm, "nproc").await?.trim() == "2",
        "one processor"
    );
    refused(hotplug.add_cpus(1).await, "room for 0 more processors")?;

    let blocks = "ls -d /sys/devices/system/memory/memory[0-9]* | wc -l";
    let before: u32 = ShellGuest::run(&vm, blocks).await?.trim().parse()?;
    hotplug.add_memory(MiB(128)).await?;
    see(&vm, &format!("test $({blocks}) = {}", before + 1)).await?;
    refused(hotplug.add_memory(MiB(256)).await, "room for 128 more MiB")?;
    refused(hotplug.add_memory(MiB(64)).await, "in units of 128 MiB")?;
    let has = hotplug.size().await?;
    let added = (has.cpus - begins.cpus, has.memory.0 - begins.memory.0);
    ensure!(added == (1, 128), "{begins} became {has}");

    // Its guest lets go of the first of two modules, and is given as much again.
    hotplug.add_memory(MiB(128)).await?;
    see(&vm, &format!("test $({blocks}) = {}", before + 2)).await?;
    let eject = "for d in /sys/bus/acpi/devices/PNP0C80:*; do \
                 test $(cat $d/status) = 15 && echo 1 >$d/eject && break; done; true";
    ShellGuest::run(&vm, eject).await?;
    see(&vm, &format!("test $({blocks}) = {}", before + 1)).await?;
    let end = tokio::time::Instant::now() + LIMIT;
    while hotplug.size().await?.memory.0 != begins.memory.0 + 128 {
        ensure!(tokio::time::Instant::now() < end, "the guest keeps it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    hotplug.add_memory(MiB(128)).await?;
    see(&vm, &format!("test $({blocks}) = {}", before + 2)).await?;
    let has = hotplug.size().await?;
    ensure!(
        has.memory.0 == begins.memory.0 + 256,
        "{begins} became {has}"
    );

    let balloon = vm.vmm.balloon().context("no balloon")?;
    balloon.ask(MiB(64)).await?;
    let end = tokio::time::Instant::now() + LIMIT;
    while balloon.given().await? < MiB(64) {
        ensure!(tokio::time::Instant::now() < end, "the guest gives nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    powers_off(&vm).await
}

async fn disks(world: &World, vm: &DrivenVm, hotplug: &dyn Hotplug) -> Result<()> {
    // The lower layer holds what the guest reads, and is not written to.
    let base = world.path("base");
    std::fs::write(&base, [b'a'; 4096])?;
    File::options().write(true).open(&base)?.set_len(4 * MIB)?;
    let top = world.path("top");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        // What the header names is another file, which is not followed.
        .args(["/etc/hostname"])
        .arg(&top)
        .arg("4M")
        .status()?;
    ensure!(made.success(), "qemu-img: {made}");
    let image = || -> Result<Disk> {
        Ok(Disk {
            format: DiskFormat::Qcow2 {
                backing: vec![Layer {
                    file: File::open(&base)?,
                    is_qcow2: false,
                    key: None,
                }],
            },
            ..Disk::raw("data", writable(&top)?, false)
        })
    };
    for _ in 0..2 {
        hotplug.attach_disk(image()?).await?;
        see(vm, "grep -q data /sys/block/vd*/serial").await?;
        let refused_twice = hotplug.attach_disk(image()?).await;
        refused(refused_twice, "has a disk \"data\" already")?;
        let read = ShellGuest::run(vm, "head -c 4 /dev/vda; echo").await?;
        ensure!(read.trim() == "aaaa", "{read:?}");
        ShellGuest::run(vm, "echo written | dd of=/dev/vda bs=512 seek=2 conv=fsync").await?;

        hotplug.resize_disk("data", 8 * MIB).await?;
        see(vm, "test $(cat /sys/block/vda/size) = 16384").await?;
        refused(hotplug.resize_disk("data", MIB).await, "do not get smaller")?;

        hotplug.detach_disk("data", LIMIT).await?;
        see(vm, "! test -e /sys/block/vda").await?;
        ensure!(
            !has_open(vm, &top)? && !has_open(vm, &base)?,
            "a file stays open"
        );
        // One that is gone is taken away already.
        hotplug.detach_disk("data", LIMIT).await?;
        // It stays as large as it was made.
        let qcow2 = writable(&top)?;
        let mut size = [0; 8];
        qcow2.read_exact_at(&mut size, 24)?;
        ensure!(u64::from_be_bytes(size) == 8 * MIB, "{size:?}");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&top)
            .arg("4M")
            .status()?;
        ensure!(made.success(), "qemu-img: {made}");
    }
    let mut lower = [0; 16];
    File::open(&base)?.read_exact_at(&mut lower, 1024)?;
    ensure!(lower == [b'a'; 16], "the lower layer was written to");

    // Two slots, and a third disk.
    for name in ["one", "two", "three"] {
        let path = world.path(name);
        File::create(&path)?.set_len(MIB)?;
        let attached = hotplug
            .attach_disk(Disk::raw(name, writable(&path)?, false))
            .await;
        match name {
            "three" => {
                refused(attached, "all 2 slots of the machine are taken")?;
                ensure!(!has_open(vm, &path)?, "a disk that was refused stays open");
            }
            _ => attached?,
        }
    }
    let unopened = Disk::raw("four", File::open(world.path("one"))?, false);
    refused(
        hotplug.attach_disk(unopened).await,
        "not open for reading and writing",
    )?;
    refused(
        hotplug.resize_disk("four", MIB).await,
        "has no disk \"four\"",
    )?;
    for name in ["one", "two"] {
        hotplug.detach_disk(name, LIMIT).await?;
    }
    Ok(())
}

/// A filesystem of the host, as long as this lives.
struct Small(PathBuf);

impl Small {
    fn mount(&self, options: &str) -> Result<()> {
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]);
        let mounted = mounted.arg(&self.0).status()?;
        ensure!(mounted.success(), "mount: {mounted}");
        Ok(())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The guest stands still, loses nothing, and goes on once there is room.
async fn full_disk(world: &World, vm: &DrivenVm, hotplug: &dyn Hotplug) -> Result<()> {
    let small = Small(world.path("small"));
    std::fs::create_dir(&small.0)?;
    small.mount("size=1m")?;
    let path = small.0.join("disk");
    File::create(&path)?.set_len(4 * MIB)?;
    hotplug
        .attach_disk(Disk::raw("full", writable(&path)?, false))
        .await?;
    see(vm, "grep -q full /sys/block/vd*/serial").await?;
    vm.tell("dd if=/dev/urandom of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null\n")
        .await?;
    let said = wait_until("a full disk to be said", LIMIT, || vm.vmm.impairment());
    ensure!(said.contains("no more room"), "{said}");
    small.mount("remount,size=8m")?;
    let status = "status=0\n";
    ensure!(vm.says(status).await? == status, "the write failed");
    wait_until("the guest to go on", LIMIT, || {
        vm.vmm.impairment().is_none().then_some(())
    });
    hotplug.detach_disk("full", LIMIT).await?;
    Ok(())
}

async fn network(vm: &DrivenVm, hotplug: &dyn Hotplug) -> Result<()> {
    let space = Namespace::new()?;
    let mac = "52:54:00:ab:cd:01";
    for queues in [1, 2] {
        let name = format!("tap{queues}");
        let nic = Nic {
            mac: MAC,
            queues: space.tap(&name, queues)?,
        };
        space.ip(&format!("addr add 10.77.0.1/30 dev {name}"))?;
        space.ip(&format!("link set {name} up"))?;
        hotplug.attach_nic(nic).await?;
        see(vm, &format!("grep -q {mac} /sys/class/net/*/address")).await?;
        let eth = ShellGuest::run(vm, &format!("grep -l {mac} /sys/class/net/*/address")).await?;
        let eth = eth.trim().split('/').nth(4).context("no name")?.to_owned();
        let up = format!("ip addr add 10.77.0.2/30 dev {eth}; ip link set {eth} up");
        ShellGuest::run(vm, &up).await?;
        see(vm, "ping -c 1 -W 1 10.77.0.1 >/dev/null").await?;
        hotplug.detach_nic(MAC, LIMIT).await?;
        see(vm, &format!("! test -e /sys/class/net/{eth}")).await?;
        space.ip(&format!("link del {name}"))?;
    }
    Ok(())
}

/// The code on this disk does not know of slots: nothing in it can let go.
pub(crate) async fn a_guest_that_keeps_a_disk_is_said_to() -> Result<()> {
    let world = World::new()?;
    let plan = world.boots(&wanted(Firmware::Bios), BootDisk::Listens)?;
    let vm = world.launch(plan).await?;
    vm.says("booted\n").await?;
    let hotplug = vm.vmm.hotplug().context("no hotplug")?;
    let limit = Duration::from_millis(100);
    match hotplug.detach_disk("root", limit).await {
        Err(MachineError::Kept { what, .. }) => ensure!(what == "disk \"root\"", "{what}"),
        other => bail!("{other:?}"),
    }
    ensure!(has_open(&vm, &world.path("disk"))?, "its file was closed");
    powers_off(&vm).await
}

/// Asks the guest until it agrees.
pub(crate) async fn see(vm: &DrivenVm, condition: &str) -> Result<()> {
    let line = format!(
        "n=0; until {condition}; do n=$((n+1)); test $n -lt 500 || break; sleep 0.1; done; test $n -lt 500"
    );
    ShellGuest::run(vm, &line).await.map(drop)
}

fn refused<T>(result: Result<T, MachineError>, why: &str) -> Result<()> {
    let Err(error) = result else {
        bail!("not refused with {why:?}")
    };
    ensure!(error.to_string().contains(why), "{error}");
    Ok(())
}

fn writable(path: &Path) -> Result<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}

/// Whether the VMM has a file open.
fn has_open(vm: &DrivenVm, path: &Path) -> Result<bool> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", vm.vmm.identity().pid))?;
    let mut files = files.flatten();
    Ok(files.any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path)))
}
