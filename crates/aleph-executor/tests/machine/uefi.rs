//! UEFI with variables of a VM's own, its TPM, and Secure Boot.

use crate::{LIMIT, UEFI, World, powers_off, wanted};
use aleph_executor::hypervisor::{Disk, Start};
use aleph_executor::process::ProcessExit;
use aleph_executor::qemu::machine::{Firmware, Wanted};
use aleph_testkit::{DrivenVm, Plan, ShellGuest};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

const VARIABLE: &str = "/vars/Kept-01234567-89ab-4def-8123-456789abcdef";

fn plan(world: &World, disk: std::fs::File) -> Result<Plan> {
    let wanted = Wanted {
        tpm: true,
        ..wanted(UEFI)
    };
    let mut plan = world.plan(&wanted, Start::Firmware)?;
    plan.disks.push(Disk::raw("root", disk, false));
    Ok(plan)
}

async fn boots(world: &World, disk: &std::fs::File) -> Result<DrivenVm> {
    let vm = world.launch(plan(world, disk.try_clone()?)?).await?;
    ShellGuest::ready(&vm).await?;
    ShellGuest::run(&vm, "mkdir /vars; mount -t efivarfs efivarfs /vars").await?;
    Ok(vm)
}

fn tpm_of(vm: &DrivenVm) -> Result<Pid> {
    let record = std::fs::read(vm.run_dir.join("tpm.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let pid = record["pid"].as_i64().context("no number")?;
    Pid::from_raw(i32::try_from(pid)?).context("no process")
}

pub(crate) async fn what_uefi_and_tpm_remember_is_there_after_a_restart() -> Result<()> {
    let world = World::new()?;
    let guest = ShellGuest::new(world.dir.path())?;
    let disk = guest.disk(&world.path("disk"))?;

    let vm = boots(&world, &disk).await?;
    let version = ShellGuest::run(&vm, "cat /sys/class/tpm/tpm0/tpm_version_major").await?;
    ensure!(version.trim() == "2", "a TPM of version {version}");
    let write = format!(r"printf '\007\000\000\000kept' >{VARIABLE}");
    ShellGuest::run(&vm, &write).await?;
    powers_off(&vm).await?;
    ensure!(world.processes().is_empty(), "{:?}", world.processes());
    let remembered = std::fs::read_dir(world.folder().join("tpm"))?.count();
    ensure!(remembered > 0, "the TPM remembers nothing");

    let vm = boots(&world, &disk).await?;
    let kept = ShellGuest::run(&vm, &format!("tail -c 4 {VARIABLE}; echo")).await?;
    ensure!(kept.trim() == "kept", "{kept:?}");
    ensure!(vm.vmm.impairment().is_none(), "{:?}", vm.vmm.impairment());
    kill_process(tpm_of(&vm)?, Signal::KILL)?;
    aleph_testkit::wait_until("the TPM's end to be said", LIMIT, || vm.vmm.impairment());
    // The guest goes on without it.
    ShellGuest::run(&vm, "true").await?;
    let power = vm.vmm.power().context("no power button")?;
    power.powerdown(LIMIT).await?;
    let exit = vm.vmm.wait().await;
    ensure!(exit.exit == ProcessExit::Code(0), "{exit}");
    ensure!(exit.stderr.contains("TPM"), "{exit}");
    Ok(())
}

/// The loader of Debian that is not signed.
pub(crate) async fn secure_boot_refuses_what_nobody_signed() -> Result<()> {
    let world = World::new()?;
    let guest = ShellGuest::new(world.dir.path())?;
    let disk = guest.disk(&world.path("disk"))?;
    let wanted = wanted(Firmware::Uefi { secure_boot: true });
    let mut plan = world.plan(&wanted, Start::Firmware)?;
    plan.disks.push(Disk::raw("root", disk, false));
    let vm = world.launch(plan).await?;
    vm.says("Access Denied").await?;
    vm.vmm.kill()?;
    let exit = vm.vmm.wait().await;
    ensure!(exit.exit == ProcessExit::Signal(9), "{exit}");
    Ok(())
}
