//! A guest that is given a GPU: QEMU in a VM with an IOMMU, whose guest finds the device on its bus.

use aleph_executor::gpu::{GpuConfig, Gpus, HostTree, Passthrough, PciAddress, Tenant, VFIO_PCI};
use aleph_testkit::{Case, PciHost, pci_lister};
use aleph_types::{Classify, GpuRequest, MiB};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const CASES: &[Case] = &[(
    "a_guest_finds_the_gpu_and_its_companion_in_one_slot",
    a_guest_finds_the_gpu_and_its_companion_in_one_slot,
)];

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const KERNEL: &str = "/tmp/kernel";
const SERIAL: &str = "/tmp/serial";
/// Emulated twice, firmware takes some seconds.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let host = PciHost {
        memory: MiB(1024),
        numa_nodes: 1,
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
            "/usr/share/qemu/linuxboot_dma.bin",
        ],
        node: None,
    };
    host.main(CASES)
}

fn a_guest_finds_the_gpu_and_its_companion_in_one_slot() -> Result<()> {
    fs::write(KERNEL, pci_lister())?;
    let without = Guest::start(&[])?;
    let found = without.bus()?;
    // Its host bridge alone answers.
    ensure!(
        found.iter().any(|line| line == "00:00.0 8086:29c0"),
        "{found:?}"
    );
    ensure!(
        !found.iter().any(|line| line.ends_with("1af4:1050")),
        "{found:?}"
    );
    without.end()?;

    let config = GpuConfig {
        enabled: true,
        ..GpuConfig::default()
    };
    let gpus = Gpus::new(HostTree::default(), config);
    let job = Tenant::new("node", "job-1", 1);
    let taken = gpus.assign(&job, &GpuRequest::default())?;
    let guest = Guest::start(&Passthrough::default().argv(&taken))?;
    let found = guest.bus()?;
    let behind: Vec<_> = found
        .iter()
        .filter(|line| !line.starts_with("00:"))
        .collect();
    ensure!(
        behind == ["01:00.0 1af4:1050", "01:00.1 1b36:0010"],
        "{found:?}"
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
            .args(["-qmp", "stdio", "-kernel", KERNEL])
            .args(["-serial", &format!("file:{SERIAL}")])
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

    /// What the guest says is on its bus, once it has said all.
    fn bus(&self) -> Result<Vec<String>> {
        let end = Instant::now() + LIMIT;
        loop {
            let said = fs::read_to_string(SERIAL)?;
            if let Some((list, _)) = said.split_once("\n\n") {
                return Ok(list.lines().map(str::to_owned).collect());
            }
            ensure!(Instant::now() < end, "it says no more than {said:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn end(mut self) -> Result<()> {
        self.ask("quit")?;
        let status = self.qemu.wait()?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }
}
