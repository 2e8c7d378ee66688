//! Whole computers by the driver alone: firmware, power, screen and what they keep.

use aleph_executor::accel::Accelerator;
use aleph_executor::hypervisor::{Disk, Driver, Machine, Start};
use aleph_executor::qemu::machine::{Firmware, Wanted};
use aleph_executor::qemu::{QemuConfig, QemuDriver};
use aleph_testkit::{BootDisk, DrivenVm, Plan, boot_disk};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn driver(dir: &Path) -> QemuDriver {
    QemuDriver::new(QemuConfig {
        program: "qemu-system-x86_64".into(),
        accelerator: Accelerator::Tcg,
        tsc_khz: None,
        cache: dir.join("qemu.json"),
    })
}

fn wanted(firmware: Firmware) -> Wanted {
    Wanted {
        memory: aleph_types::MiB(128),
        firmware,
        ..Wanted::default()
    }
}

/// A computer of a new folder, as a plan for its first start.
fn plan(driver: &QemuDriver, folder: &Path, wanted: &Wanted) -> Result<Plan> {
    let full = driver.full().context("no whole computers")?;
    if !folder.exists() {
        full.create(folder, wanted)?;
    }
    let machine = full.open(folder)?;
    Ok(Plan {
        size: machine.blueprint.memory,
        cpus: machine.blueprint.cpus,
        machine: Machine::Full(Box::new(machine)),
        ..Plan::new(Start::Firmware)
    })
}

#[tokio::test]
async fn a_disk_boots_and_its_guest_powers_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let driver = driver(dir.path());
    let mut plan = plan(&driver, &dir.path().join("m"), &wanted(Firmware::Bios))?;
    let disk = boot_disk(&dir.path().join("disk"), BootDisk::Listens, 1 << 20)?;
    plan.disks.push(Disk::raw("root", disk, false));
    let vm = DrivenVm::launch(&driver, dir.path(), plan).await?;
    vm.says("booted\n").await?;
    let power = vm.vmm.power().context("no power button")?;
    power.powerdown(LIMIT).await?;
    assert!(vm.vmm.has_ended());
    let exit = vm.vmm.wait().await;
    assert_eq!(exit.to_string(), "exit 0");
    Ok(())
}
