//! The guest that microVMs have, on a whole computer.

use crate::{LIMIT, World, wanted};
use aleph_executor::executor::COMMAND_LINE;
use aleph_executor::guest::{Agent, ExecEvent, ExecRequest, SetupRequest, UpperKind};
use aleph_executor::hypervisor::{Disk, Driver, Kernel, Start};
use aleph_executor::process::ProcessExit;
use aleph_executor::qemu::machine::{Firmware, GuestAgent, Wanted};
use aleph_testkit::TestRoot;
use aleph_types::ExitStatus;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::time::{Duration, Instant};

pub(crate) async fn our_agent_runs_on_it() -> Result<()> {
    let world = World::new()?;
    let root = TestRoot::new()?;
    let (bundle, image) = (root.bundle()?, root.busybox()?);
    let wanted = Wanted {
        agent: GuestAgent::Aleph,
        cpus: 2,
        ..wanted(Firmware::Bios)
    };
    let boot = Start::Boot(Kernel {
        kernel: File::open(bundle.fastest_kernel())?,
        initrd: File::open(bundle.initrd())?,
        command_line: format!("{COMMAND_LINE} {}", world.driver.kernel_arguments()),
    });
    let mut plan = world.plan(&wanted, boot)?;
    plan.disks
        .push(Disk::raw("rootfs", File::open(image.rootfs())?, true));
    let launched = Instant::now();
    let vm = world.launch(plan).await?;
    let setup = SetupRequest {
        hostname: "full".into(),
        filesystem: image.filesystem().to_string(),
        upper: UpperKind::Memory,
        poweroff_on_hangup: false,
        network: None,
        mounts: Vec::new(),
    };
    let agent = Agent::open(vm.vmm.channel().await?, &setup, launched)?;
    tokio::time::timeout(LIMIT, agent.ready()).await??;
    let request = ExecRequest {
        main: true,
        ..ExecRequest::new(["sh", "-c", "nproc; ls /sys/bus/pci/devices | wc -l; exit 7"])
    };
    let mut handle = agent.exec(&request)?;
    let mut said = Vec::new();
    let status = loop {
        match tokio::time::timeout(LIMIT, handle.next()).await?? {
            ExecEvent::Stdout(bytes) => said.extend(bytes),
            ExecEvent::Exited(status) => break status,
            _ => {}
        }
    };
    ensure!(status == ExitStatus::Code(7), "{status:?}");
    let said = String::from_utf8(said)?;
    let mut numbers = said.lines();
    ensure!(numbers.next() == Some("2"), "{said:?}");
    let devices: u32 = numbers.next().context("no devices")?.parse()?;
    ensure!(
        devices > 8,
        "a whole computer has more than {devices} PCI devices"
    );
    // The agent's end is the machine's, as in a microVM: a reset does not begin it anew.
    drop(handle);
    agent.shutdown(Duration::ZERO, 15)?;
    let exit = tokio::time::timeout(LIMIT, vm.vmm.wait()).await?;
    ensure!(exit.exit == ProcessExit::Code(0), "{exit}");
    Ok(())
}
