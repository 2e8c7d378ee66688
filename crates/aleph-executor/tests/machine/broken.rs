//! What is missing, edited, or killed.

use crate::{UEFI, World, wanted};
use aleph_executor::hypervisor::{Disk, Driver, LaunchError, Start};
use aleph_executor::process::ProcessExit;
use aleph_executor::qemu::machine::{Firmware, MachineError, Wanted};
use aleph_testkit::{BootDisk, Plan, wait_until};
use aleph_types::{Classify, MiB};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};

async fn refused(world: &World, plan: Plan, why: &str) -> Result<()> {
    let Err(error) = world.launch(plan).await else {
        bail!("started, though {why:?}")
    };
    let error = error
        .downcast::<LaunchError>()
        .context("another error than that of a launch")?;
    ensure!(error.to_string().contains(why), "{why:?}: {error}");
    ensure!(world.processes().is_empty(), "{:?}", world.processes());
    Ok(())
}

pub(crate) async fn what_cannot_be_started_leaves_nothing() -> Result<()> {
    let world = World::without_firmware()?;
    for firmware in [Firmware::Bios, UEFI] {
        let Err(error) = world.plan(&wanted(firmware), Start::Firmware) else {
            bail!("a machine without firmware")
        };
        let error = error.downcast::<MachineError>()?;
        ensure!(error.code() == "machine_file_missing", "{error}");
        let advice = error.advice().unwrap_or_default();
        ensure!(advice.contains("apt-get install"), "{advice}");
    }
    let left: Vec<_> = fs::read_dir(world.dir.path())?.flatten().collect();
    // The answer of QEMU, which was asked.
    ensure!(left.len() == 1, "{left:?}");

    let world = World::new()?;
    let wanted = wanted(Firmware::Bios);
    let mut unwritable = world.boots(&wanted, BootDisk::Listens)?;
    unwritable.disks = vec![Disk::raw("root", File::open(world.path("disk"))?, false)];
    refused(&world, unwritable, "not open for reading and writing").await?;
    let mut twice = world.boots(&wanted, BootDisk::Listens)?;
    let again = File::open(world.path("disk"))?;
    twice.disks.push(Disk::raw("root", again, true));
    refused(&world, twice, "has a disk \"root\" already").await?;
    let other_size = Plan {
        size: MiB(512),
        ..world.boots(&wanted, BootDisk::Listens)?
    };
    refused(&world, other_size, "256 MiB, and its VM 1 and 512").await
}

pub(crate) async fn a_record_that_does_not_fit_is_refused() -> Result<()> {
    let world = World::new()?;
    let wanted = wanted(Firmware::Bios);
    drop(world.plan(&wanted, Start::Firmware)?);
    let record = world.folder().join("blueprint.json");
    let text = fs::read_to_string(&record)?;
    let full = world.driver.full().context("no whole computers")?;
    let again = full.create(&world.folder(), &wanted);
    ensure!(again.is_err(), "a machine was drawn up over another");
    for (from, to, why) in [
        ("\"version\": 1", "\"version\": 2", "of version 2"),
        ("\"tpm\"", "\"tpn\"", "unknown field"),
        ("\"cpus\": 1", "\"cpus\": 2", "2 processors in 1 places"),
        ("pc-q35-", "pc-q35,accel=", "no machine's name"),
        ("\"cpus\": 1", "", "key must be a string"),
    ] {
        ensure!(text.contains(from), "no {from} in {text}");
        fs::write(&record, text.replace(from, to))?;
        let error = full.open(&world.folder()).err().context(why)?;
        ensure!(error.code() == "machine_record", "{error}");
        ensure!(error.to_string().contains(why), "{why:?}: {error}");
    }
    // One of a QEMU that was here once.
    fs::write(&record, text.replace("pc-q35-", "pc-q35-0."))?;
    let plan = world.boots(&wanted, BootDisk::Listens)?;
    refused(&world, plan, "which this host lacks").await
}

pub(crate) async fn a_qemu_that_is_killed_takes_all_with_it() -> Result<()> {
    let world = World::new()?;
    let wanted = Wanted {
        tpm: true,
        ..wanted(Firmware::Bios)
    };
    // As a node starts it: under a user of its own, who has nothing but what it is given.
    let is_root = rustix::process::geteuid().is_root();
    let plan = || -> Result<Plan> {
        let plan = world.boots(&wanted, BootDisk::Listens)?;
        let user = is_root.then(|| plan.vm.uid());
        Ok(Plan { user, ..plan })
    };
    let vm = world.launch(plan()?).await?;
    vm.says("booted\n").await?;
    ensure!(world.processes().len() >= 2, "{:?}", world.processes());
    let qemu = Pid::from_raw(vm.vmm.identity().pid).context("no process")?;
    kill_process(qemu, Signal::KILL)?;
    let exit = vm.vmm.wait().await;
    ensure!(exit.exit == ProcessExit::Signal(9), "{exit}");
    wait_until("the TPM to end, too", crate::LIMIT, || {
        world.processes().is_empty().then_some(())
    });
    ensure!(exit.stderr.is_empty(), "{exit}");
    // Its disk and its TPM can be used again, by another user.
    let vm = world.launch(plan()?).await?;
    vm.says("booted\n").await?;
    crate::powers_off(&vm).await
}
