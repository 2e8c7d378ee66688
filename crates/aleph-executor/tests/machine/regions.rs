//! A device with a region larger than firmware has room for by itself. An `ivshmem-plain` stands for a GPU: its
//! region is as large as the file behind it, which is sparse. It comes to the command line of a computer that is
//! told of such a GPU and given none.

use crate::{UEFI, World, wanted};
use aleph_executor::accel::Accelerator;
use aleph_executor::gpu::{Bar, HostTree, PciFunction};
use aleph_executor::hypervisor::Machine;
use aleph_executor::qemu::machine::Firmware;
use aleph_executor::qemu::{QemuConfig, QemuDriver};
use aleph_testkit::{BootDisk, expand_pci_tree};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// More than the 32 GiB that QEMU and OVMF have by themselves.
const SIZE: u64 = 64 << 30;

pub(crate) async fn a_region_is_mapped_however_large_it_is() -> Result<()> {
    for firmware in [Firmware::Bios, UEFI] {
        let mapped = address(firmware, vec![function()?]).await?;
        let at = mapped.with_context(|| format!("{firmware:?} does not map it"))?;
        ensure!(
            at >= 4 << 30 && at.is_multiple_of(SIZE),
            "{firmware:?} maps it at {at:#x}"
        );
    }
    // What the computer is told of it for.
    let untold = address(UEFI, Vec::new()).await?;
    ensure!(untold.is_none(), "it is mapped at {untold:?} anyway");
    Ok(())
}

/// A function of a host with such a region.
fn function() -> Result<PciFunction> {
    let dir = tempfile::tempdir()?;
    let gpu = "0000:01:00.0 root 10de:2335 class=030200 group=1\n";
    expand_pci_tree(gpu, dir.path())?;
    let functions = HostTree::recorded(dir.path()).functions()?;
    let gpu = functions.into_iter().find(PciFunction::is_gpu);
    Ok(PciFunction {
        bars: vec![Bar {
            size: SIZE,
            prefetchable: true,
        }],
        ..gpu.context("no function")?
    })
}

/// Where firmware maps the region in a computer that is told of these functions; `None` where it does not.
async fn address(firmware: Firmware, functions: Vec<PciFunction>) -> Result<Option<u64>> {
    let world = with_the_device()?;
    let mut plan = world.boots(&wanted(firmware), BootDisk::Listens)?;
    let Machine::Full(machine) = &mut plan.machine else {
        bail!("no whole computer");
    };
    machine.devices.functions = functions;
    let vm = world.launch(plan).await?;
    // By then it is done with its buses: SeaBIOS boots from the disk, and OVMF says that it cannot.
    vm.says(match firmware {
        Firmware::Bios => "booted\n",
        Firmware::Uefi { .. } => "BdsDxe: ",
    })
    .await?;
    let buses = ask(&world.path("qmp"), "query-pci")?;
    vm.end().await?;
    let behind = buses[0]["devices"].as_array().into_iter().flatten();
    let behind = behind.filter_map(|device| device["pci_bridge"]["devices"].as_array());
    let mut regions = behind
        .flatten()
        .filter_map(|device| device["regions"].as_array())
        .flatten();
    let region = regions.find(|region| region["size"] == SIZE);
    let region = region.with_context(|| format!("no such region: {buses}"))?;
    // One that is not mapped is at -1.
    Ok(region["address"].as_u64().filter(|at| *at != u64::MAX))
}

/// A QEMU whose computers have the device, in a port as GPUs have one, and which answers on one more socket.
fn with_the_device() -> Result<World> {
    let world = World::new()?;
    let (region, qmp) = (world.path("region"), world.path("qmp"));
    File::create(&region)?.set_len(SIZE)?;
    let more = [
        format!(
            "-object memory-backend-file,id=region,size={SIZE},mem-path={},share=on",
            region.display()
        ),
        "-device pcie-root-port,id=gpu0,bus=pcie.0,chassis=64".into(),
        "-device ivshmem-plain,memdev=region,bus=gpu0".into(),
        format!("-qmp unix:{},server=on,wait=off", qmp.display()),
    ];
    let program = world.path("qemu");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *'-name vm-'*) set -- \"$@\" {};; esac\nexec qemu-system-x86_64 \"$@\"\n",
        more.join(" ")
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let driver = QemuDriver::new(QemuConfig {
        program,
        accelerator: Accelerator::Tcg,
        tsc_khz: None,
        cache: world.path("qemu.json"),
    });
    Ok(World { driver, ..world })
}

/// Asks a QEMU that nobody else speaks with on this socket.
fn ask(socket: &Path, command: &str) -> Result<Value> {
    let mut output = UnixStream::connect(socket)?;
    let input = BufReader::new(output.try_clone()?);
    for command in ["qmp_capabilities", command] {
        writeln!(output, "{}", json!({ "execute": command, "id": command }))?;
    }
    // A greeting and events come between.
    for line in input.lines().take(1000) {
        let answer: Value = serde_json::from_str(&line?)?;
        ensure!(answer.get("error").is_none(), "{command}: {answer}");
        if answer["id"] == command {
            return Ok(answer["return"].clone());
        }
    }
    bail!("QEMU says nothing to {command}")
}
