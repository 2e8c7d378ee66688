//! A guest that is given a GPU: QEMU in a VM with an IOMMU, whose guest finds the device on its bus.

use aleph_executor::gpu::{GpuConfig, Gpus, HostTree, Passthrough, PciAddress, Tenant, VFIO_PCI};
use aleph_testkit::{Case, PciHost};
use aleph_types::{Classify, GpuRequest, MiB};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const CASES: &[Case] = &[(
    "a_guest_finds_the_gpu_and_its_companion_in_one_slot",
    a_guest_finds_the_gpu_and_its_companion_in_one_slot,
)];

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Emulated twice, firmware takes some seconds.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let host = PciHost {
        memory: MiB(1024),
        modules: &["virtio_pci", "vfio_iommu_type1", VFIO_PCI],
        devices: &[
            "pcie-root-port,id=port1,chassis=1,slot=1,addr=2.0",
            "virtio-gpu-pci,bus=port1,addr=0.0,multifunction=on",
            "nvme,serial=companion,bus=port1,addr=0.1",
        ],
        files: &[
            QEMU,
            "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
            "/usr/share/seabios/bios-256k.bin",
        ],
        node: false,
    };
    host.main(CASES)
}

fn a_guest_finds_the_gpu_and_its_companion_in_one_slot() -> Result<()> {
    let config = GpuConfig {
        enabled: true,
        ..GpuConfig::default()
    };
    let gpus = Gpus::new(HostTree::default(), config);
    let job = Tenant::new("node", "job-1", 1);
    let taken = gpus.assign(&job, &GpuRequest::default())?;
    let mut guest = Guest::start(&Passthrough::default().argv(&taken))?;

    let end = Instant::now() + LIMIT;
    let found = loop {
        let found = guest.functions_behind_bridges()?;
        if !found.is_empty() {
            break found;
        }
        ensure!(
            Instant::now() < end,
            "its firmware finds nothing in {LIMIT:?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    };
    ensure!(
        found == [(0, 0, 0x1af4, 0x1050), (0, 1, 0x1b36, 0x0010)],
        "{found:x?}"
    );

    let error = match gpus.release(&job) {
        Ok(_) => bail!("it was taken from its guest"),
        Err(error) => error,
    };
    ensure!(error.code() == "gpu_in_use", "{error}");
    ensure!(error.to_string().contains("qemu-system-x86"), "{error}");
    guest.end()?;
    let released = gpus.release(&job)?;
    let address: PciAddress = "01:00.0".parse()?;
    ensure!(released.returned == [address], "{released:?}");
    Ok(())
}

/// A QEMU without a disk, which is spoken with over QMP.
struct Guest {
    qemu: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Guest {
    fn start(devices: &[String]) -> Result<Self> {
        let mut qemu = Command::new(QEMU)
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "q35", "-accel", "tcg", "-m", "64M"])
            .args(["-qmp", "stdio"])
            .args(devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = qemu.stdin.take().context("no input")?;
        let output = BufReader::new(qemu.stdout.take().context("no output")?);
        let mut guest = Self {
            qemu,
            input,
            output,
        };
        guest.ask("qmp_capabilities")?;
        Ok(guest)
    }

    fn ask(&mut self, command: &str) -> Result<Value> {
        writeln!(self.input, "{}", json!({ "execute": command }))?;
        // A greeting and events come between.
        for line in (&mut self.output).lines().take(1000) {
            let answer: Value = serde_json::from_str(&line?)?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            ensure!(answer.get("error").is_none(), "{command}: {answer}");
        }
        bail!("QEMU says nothing to {command}")
    }

    /// Slot, function, vendor and device of all that is behind the ports of the guest.
    fn functions_behind_bridges(&mut self) -> Result<Vec<(u64, u64, u64, u64)>> {
        let buses = self.ask("query-pci")?;
        let ports = buses[0]["devices"].as_array().context("no devices")?;
        let behind = ports
            .iter()
            .filter_map(|port| port["pci_bridge"]["devices"].as_array());
        let functions = behind.flatten().filter_map(|device| {
            Some((
                device["slot"].as_u64()?,
                device["function"].as_u64()?,
                device["id"]["vendor"].as_u64()?,
                device["id"]["device"].as_u64()?,
            ))
        });
        let mut functions: Vec<_> = functions.collect();
        functions.sort_unstable();
        Ok(functions)
    }

    fn end(mut self) -> Result<()> {
        self.ask("quit")?;
        let status = self.qemu.wait()?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }
}
