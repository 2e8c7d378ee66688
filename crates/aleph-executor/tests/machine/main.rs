//! Whole computers by the driver alone, with real guests: code of one sector where firmware and power
//! are looked at, and a small Linux where the guest has to see something.

mod agent;
mod broken;
mod encrypted;
mod hotplug;
mod power;
mod regions;
mod topology;
mod uefi;

use aleph_executor::accel::Accelerator;
use aleph_executor::hypervisor::{Disk, Driver, Machine, Start};
use aleph_executor::process::ProcessExit;
use aleph_executor::qemu::machine::{Firmware, Wanted};
use aleph_executor::qemu::{FirmwareFiles, QemuConfig, QemuDriver};
use aleph_testkit::{BootDisk, DrivenVm, Plan, boot_disk};
use aleph_types::MiB;
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(180);

fn main() {
    let trials = vec![
        trial(
            "a_disk_boots_by_seabios",
            None,
            power::a_disk_boots_by_seabios,
        ),
        trial(
            "a_vm_is_taken_over",
            needs(&["/usr/bin/swtpm"]),
            power::a_vm_is_taken_over,
        ),
        trial(
            "the_largest_machine_boots",
            needs(&["/usr/bin/swtpm"]),
            power::the_largest_machine_boots,
        ),
        trial(
            "a_guest_that_ignores_its_power_button_is_said_to",
            None,
            power::a_guest_that_ignores_its_power_button_is_said_to,
        ),
        trial(
            "what_uefi_and_tpm_remember_is_there_after_a_restart",
            needs(&["/usr/share/OVMF", "/usr/bin/swtpm"]),
            uefi::what_uefi_and_tpm_remember_is_there_after_a_restart,
        ),
        trial(
            "secure_boot_boots_what_is_signed_alone",
            needs(&["/usr/share/OVMF"]),
            uefi::secure_boot_boots_what_is_signed_alone,
        ),
        trial(
            "a_guest_sees_its_machine_as_it_was_drawn",
            None,
            topology::a_guest_sees_its_machine_as_it_was_drawn,
        ),
        trial(
            "a_region_is_mapped_however_large_it_is",
            needs(&["/usr/share/OVMF"]),
            regions::a_region_is_mapped_however_large_it_is,
        ),
        trial(
            "a_guest_sees_what_is_added_and_taken_away",
            needs(&["/usr/bin/qemu-img"]).or_else(needs_networks),
            hotplug::a_guest_sees_what_is_added_and_taken_away,
        ),
        trial(
            "what_a_guest_writes_to_an_encrypted_disk_is_not_in_the_clear",
            needs(&["/usr/bin/qemu-img"]),
            encrypted::what_a_guest_writes_to_an_encrypted_disk_is_not_in_the_clear,
        ),
        trial(
            "a_guest_that_keeps_a_disk_is_said_to",
            None,
            hotplug::a_guest_that_keeps_a_disk_is_said_to,
        ),
        trial("our_agent_runs_on_it", None, agent::our_agent_runs_on_it),
        trial(
            "what_cannot_be_started_leaves_nothing",
            None,
            broken::what_cannot_be_started_leaves_nothing,
        ),
        trial(
            "a_record_that_does_not_fit_is_refused",
            None,
            broken::a_record_that_does_not_fit_is_refused,
        ),
        trial(
            "a_qemu_that_is_killed_takes_all_with_it",
            needs(&["/usr/bin/swtpm"]),
            broken::a_qemu_that_is_killed_takes_all_with_it,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial<F>(name: &str, missing: Option<String>, test: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = Result<()>>,
{
    let trial = Trial::test(name, move || {
        let runtime = tokio::runtime::Runtime::new()?;
        Ok(runtime
            .block_on(test())
            .map_err(|error| format!("{error:?}"))?)
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

fn needs(paths: &[&str]) -> Option<String> {
    let missing = paths.iter().find(|path| !Path::new(path).exists());
    missing.map(|path| format!("needs {path}"))
}

fn needs_networks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    needs(&["/dev/net/tun"])
}

/// A driver, and a folder for all that its VMs have.
struct World {
    dir: tempfile::TempDir,
    driver: QemuDriver,
}

impl World {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let driver = QemuDriver::new(QemuConfig {
            program: "qemu-system-x86_64".into(),
            accelerator: Accelerator::Tcg,
            tsc_khz: None,
            cache: dir.path().join("qemu.json"),
        });
        Ok(Self { dir, driver })
    }

    /// One of a host without firmware.
    fn without_firmware() -> Result<Self> {
        let world = Self::new()?;
        let nowhere = FirmwareFiles {
            ovmf: world.path("nowhere"),
            seabios: world.path("nowhere"),
        };
        Ok(Self {
            driver: world.driver.with_firmware(nowhere),
            dir: world.dir,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder of its computer.
    fn folder(&self) -> PathBuf {
        self.path("machine")
    }

    /// A start of its computer, which is drawn up where it is not there.
    fn plan(&self, wanted: &Wanted, start: Start) -> Result<Plan> {
        let full = self.driver.full().context("no whole computers")?;
        if !self.folder().exists() {
            full.create(&self.folder(), wanted)?;
        }
        let machine = full.open(&self.folder())?;
        Ok(Plan {
            size: machine.blueprint.memory,
            cpus: machine.blueprint.cpus,
            machine: Machine::Full(Box::new(machine)),
            ..Plan::new(start)
        })
    }

    /// A start of it from a disk of one sector of code.
    fn boots(&self, wanted: &Wanted, kind: BootDisk) -> Result<Plan> {
        let disk = boot_disk(&self.path("disk"), kind, 1 << 20)?;
        let mut plan = self.plan(wanted, Start::Firmware)?;
        plan.disks.push(Disk::raw("root", disk, false));
        Ok(plan)
    }

    async fn launch(&self, plan: Plan) -> Result<DrivenVm> {
        DrivenVm::launch(&self.driver, self.dir.path(), plan).await
    }

    /// The processes that have its folders open, or are in its VMs.
    fn processes(&self) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let theirs = entries.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let files = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            let mut files = files.filter_map(|file| std::fs::read_link(file.path()).ok());
            let is_ours = pid == i32::try_from(std::process::id()).ok()?;
            let has = files.any(|file| file.display().to_string().starts_with(&dir));
            let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            (has && !is_ours).then(|| format!("{pid} {}", line.replace('\0', " ")))
        });
        theirs.collect()
    }
}

fn wanted(firmware: Firmware) -> Wanted {
    Wanted {
        memory: MiB(256),
        firmware,
        spare_slots: 2,
        ..Wanted::default()
    }
}

const UEFI: Firmware = Firmware::Uefi { secure_boot: false };

async fn powers_off(vm: &DrivenVm) -> Result<()> {
    let power = vm.vmm.power().context("no power button")?;
    power.powerdown(LIMIT).await?;
    ensure!(vm.vmm.has_ended(), "it was said to have ended");
    let exit = vm.vmm.wait().await;
    ensure!(exit.exit == ProcessExit::Code(0), "{exit}");
    ensure!(exit.stderr.is_empty(), "{exit}");
    ensure!(vm.vmm.ended_by_guest() == Some(true), "not by its guest");
    Ok(())
}
