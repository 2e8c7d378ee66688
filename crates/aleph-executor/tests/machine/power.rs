//! SeaBIOS, the power button, the screen, and a node that is started anew.

use crate::{LIMIT, World, powers_off, wanted};
use aleph_executor::hypervisor::{Driver, VmmError};
use aleph_executor::process::ProcessExit;
use aleph_executor::qemu::machine::{Firmware, MAX_SLOTS, NumaNode, Topology, Wanted};
use aleph_testkit::BootDisk;
use aleph_types::MiB;
use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) async fn a_disk_boots_by_seabios() -> Result<()> {
    let world = World::new()?;
    let wanted = Wanted {
        display: true,
        ..wanted(Firmware::Bios)
    };
    let vm = world
        .launch(world.boots(&wanted, BootDisk::Listens)?)
        .await?;
    vm.says("booted\n").await?;
    // The guest begins anew, in the same QEMU.
    vm.vmm.power().context("no power")?.reset().await?;
    vm.says("booted\n").await?;

    let display = vm.vmm.display().context("no screen")?;
    for _ in 0..2 {
        let mut screen = display.connect().await?;
        let mut version = [0; 12];
        screen.read_exact(&mut version).await?;
        ensure!(&version == b"RFB 003.008\n", "{version:?}");
        screen.write_all(&version).await?;
        let mut security = [0; 2];
        screen.read_exact(&mut security).await?;
        ensure!(
            security == [1, 1],
            "one kind of security, none: {security:?}"
        );
    }
    let files = std::fs::read_dir(&vm.run_dir)?.flatten();
    let mut names: Vec<_> = files.map(|entry| entry.file_name()).collect();
    names.sort();
    let expected = [
        "agent.sock",
        "console.sock",
        "driver.json",
        "machine.json",
        "vmm.sock",
    ];
    ensure!(names == expected, "{names:?}");
    powers_off(&vm).await?;
    // The same from its record: its slots, its name and its disk are the same.
    let vm = world
        .launch(world.boots(&wanted, BootDisk::Listens)?)
        .await?;
    vm.says("booted\n").await?;
    powers_off(&vm).await
}

/// By a driver that knows of it what is in its folder.
pub(crate) async fn a_vm_is_taken_over() -> Result<()> {
    let world = World::new()?;
    let wanted = Wanted {
        tpm: true,
        ..wanted(Firmware::Bios)
    };
    let plan = world.boots(&wanted, BootDisk::Listens)?;
    let vm = world.launch(plan).await?;
    vm.says("booted\n").await?;
    let adopted = world.driver.adopt(vm.vmm.identity(), vm.run_dir.clone())?;
    ensure!(adopted.snapshot().is_none(), "it is no microVM");
    ensure!(adopted.display().is_none(), "it has no screen");
    ensure!(adopted.impairment().is_none(), "its TPM is taken over, too");
    adopted
        .power()
        .context("no power")?
        .powerdown(LIMIT)
        .await?;
    let exit = adopted.wait().await;
    ensure!(exit.exit == ProcessExit::Code(0), "{exit}");
    Ok(())
}

/// Everything that a blueprint can ask of a host without huge pages.
pub(crate) async fn the_largest_machine_boots() -> Result<()> {
    let world = World::new()?;
    let node = |cpus: &[u16]| NumaNode {
        cpus: cpus.to_vec(),
        memory: MiB(128),
        host_node: None,
    };
    let wanted = Wanted {
        cpus: 2,
        cpu_room: 6,
        topology: Some(Topology {
            sockets: 2,
            cores: 2,
            threads: 2,
        }),
        memory_room: MiB(1024),
        numa: vec![node(&[0, 1, 2, 3]), node(&[4, 5, 6, 7])],
        tpm: true,
        display: true,
        spare_slots: MAX_SLOTS,
        ..wanted(Firmware::Bios)
    };
    let vm = world
        .launch(world.boots(&wanted, BootDisk::Listens)?)
        .await?;
    vm.says("booted\n").await?;
    powers_off(&vm).await
}

pub(crate) async fn a_guest_that_ignores_its_power_button_is_said_to() -> Result<()> {
    let world = World::new()?;
    let plan = world.boots(&wanted(Firmware::Bios), BootDisk::Ignores)?;
    let vm = world.launch(plan).await?;
    vm.says("booted\n").await?;
    let power = vm.vmm.power().context("no power")?;
    match power.powerdown(Duration::from_millis(100)).await {
        Err(VmmError::Silent { command }) => ensure!(command == "system_powerdown", "{command}"),
        other => bail!("{other:?}"),
    }
    ensure!(!vm.vmm.has_ended(), "it goes on");
    vm.vmm.quit().await?;
    let exit = vm.vmm.wait().await;
    ensure!(exit.exit == ProcessExit::Code(0), "{exit}");
    Ok(())
}
