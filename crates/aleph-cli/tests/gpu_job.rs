//! `aleph run --gpus` with a device that is really given away: in a VM with an IOMMU, a node of this very
//! program has QEMU give a GPU to a job's guest.

use aleph_executor::gpu::{HostTree, VFIO_PCI};
use aleph_testkit::{Case, PciHost};
use aleph_types::MiB;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

const CASES: &[Case] = &[(
    "alone_a_jobs_machine_has_a_gpu",
    alone_a_jobs_machine_has_a_gpu,
)];

const ALEPH: &str = env!("CARGO_BIN_EXE_aleph");
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const CONFIG: &str = "/tmp/aleph.toml";
/// Emulated twice, firmware takes some seconds.
const LIMIT: Duration = Duration::from_secs(120);
const GPU: &str = "0000:01:00.0";

fn main() -> ExitCode {
    let host = PciHost {
        memory: MiB(1536),
        modules: &["virtio_pci", "vfio_iommu_type1", VFIO_PCI],
        devices: &[
            "pcie-root-port,id=port1,chassis=1,slot=1,addr=2.0",
            "virtio-gpu-pci,bus=port1,addr=0.0,multifunction=on",
            "nvme,serial=companion,bus=port1,addr=0.1",
        ],
        files: &[
            ALEPH,
            QEMU,
            "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
            "/usr/share/seabios/bios-256k.bin",
            "/usr/share/qemu/kvmvapic.bin",
            "/usr/share/qemu/linuxboot_dma.bin",
            "/usr/share/qemu/pvh.bin",
        ],
        node: true,
    };
    host.main(CASES)
}

fn aleph(words: &[&str]) -> Result<Output> {
    let mut command = Command::new(ALEPH);
    command.args(["--root", PciHost::NODE]).args(words);
    Ok(command.stdin(Stdio::null()).output()?)
}

fn ok(words: &[&str]) -> Result<String> {
    let output = aleph(words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {said}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn json(words: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&ok(words)?)?)
}

/// The driver of the GPU, and who has it.
fn gpu() -> Result<(Option<String>, Value)> {
    let listed = json(&["gpu", "ls", "--json", "-c", CONFIG])?;
    let gpus = listed.as_array().context("no list")?;
    let gpu = gpus.iter().find(|gpu| gpu["address"] == GPU);
    let driver = HostTree::default().read(GPU.parse()?);
    let driver = driver.context("it is gone")?.driver;
    Ok((driver, gpu.context("it is not listed")?["state"].clone()))
}

/// Polls until a condition gives something. Says what the job and its node say where it never does.
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if let Some(found) = condition() {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let job = aleph(&["inspect", "gpu"])?.stdout;
    let node = fs::read_to_string("/tmp/daemon.log").unwrap_or_default();
    bail!("no {what}: {} {node}", String::from_utf8_lossy(&job));
}

fn up() -> Result<Child> {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open("/tmp/daemon.log")?;
    let words = ["up", "-c", CONFIG, "--no-network"];
    let mut command = Command::new(ALEPH);
    command.args(["--root", PciHost::NODE]).args(words);
    let daemon = command.stdout(log.try_clone()?).stderr(log).spawn()?;
    let socket = Path::new(PciHost::NODE)
        .join("run")
        .join(aleph_control::SOCKET);
    until("daemon", || UnixStream::connect(&socket).ok())?;
    Ok(daemon)
}

/// The job, as its node tells it.
fn job() -> Option<Value> {
    Some(json(&["inspect", "gpu"]).ok()?.get(0)?.clone())
}

/// Vendor and device of all that is behind the ports of a VM's machine, once its firmware has found
/// them, by QEMU's own word. The node speaks with QEMU where it has something to say, and one at a time.
fn behind_ports(vm: &str) -> Option<Vec<(u64, u64)>> {
    let socket = Path::new(PciHost::NODE)
        .join("run/vms")
        .join(vm)
        .join("vmm.sock");
    let mut qmp = UnixStream::connect(socket).ok()?;
    qmp.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    for command in ["qmp_capabilities", "query-pci"] {
        writeln!(qmp, "{{\"execute\": \"{command}\"}}").ok()?;
    }
    // A greeting, two answers, and events between them.
    let lines = BufReader::new(qmp).lines().take(100);
    let answers = lines.map_while(Result::ok);
    let mut answers = answers.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let buses = answers.find_map(|answer| Some(answer["return"].as_array()?.clone()))?;
    let ports = buses.first()?["devices"].as_array()?.clone();
    let behind = ports
        .iter()
        .filter_map(|port| port["pci_bridge"]["devices"].as_array());
    let ids = behind.flatten().filter_map(|device| {
        let id = &device["id"];
        Some((id["vendor"].as_u64()?, id["device"].as_u64()?))
    });
    Some(ids.collect())
}

/// Who the GPU's VMM is, and how much memory it may lock.
fn vmm() -> Result<(u32, u64)> {
    let listed = json(&["gpu", "ls", "--json", "-c", CONFIG])?;
    let gpus = listed.as_array().context("no list")?;
    let gpu = gpus
        .iter()
        .find(|gpu| gpu["address"] == GPU)
        .context("none")?;
    let pid = gpu["users"][0]["pid"]
        .as_u64()
        .context("nobody has it open")?;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let locked = limits
        .lines()
        .find(|line| line.starts_with("Max locked memory"));
    let locked = locked.and_then(|line| line.split_whitespace().nth(3));
    let owner = fs::metadata(format!("/proc/{pid}/fd"))?.uid();
    Ok((owner, locked.context("no limit")?.parse()?))
}

/// Linux would take minutes to boot where its processor is emulated twice, so the guest never answers:
/// its firmware finds what it has.
fn alone_a_jobs_machine_has_a_gpu() -> Result<()> {
    let executor = "[executor]\nboot_timeout_seconds = 86400\n[executor.qemu]\nenable_gpu = true\n";
    fs::write(CONFIG, format!("{executor}program = \"{QEMU}\"\n"))?;
    let mut daemon = up()?;
    ensure!(gpu()? == (Some("virtio-pci".into()), "host".into()));
    let words = [
        "-m",
        "96m",
        "--network=none",
        "busybox",
        "--",
        "sleep",
        "1000",
    ];
    let run = ["run", "-d", "--name", "gpu", "--gpus", "type=1af4:1050"];
    let mut command = Command::new(ALEPH);
    command
        .args(["--root", PciHost::NODE])
        .args(run)
        .args(words);
    let mut running = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let vm = until("machine", || {
        let job = job()?;
        let has_gpu = job["gpus"] == serde_json::json!([GPU]);
        has_gpu.then(|| job["vm"].as_str().map(str::to_owned))?
    })?;
    let found = until("firmware that finds it", || {
        behind_ports(&vm).filter(|found| found.contains(&(0x1af4, 0x1050)))
    })?;
    // What is in its slot goes with it.
    ensure!(found.contains(&(0x1b36, 0x0010)), "{found:x?}");
    let (user, locked) = vmm()?;
    ensure!(user != 0, "its VMM is root");
    ensure!(locked == (96 << 20) + (1 << 30), "it may lock {locked}");

    let job_now = job().context("no job")?;
    ensure!(job_now["migration"]["migratable"] == false, "{job_now}");
    ensure!(gpu()? == (Some(VFIO_PCI.into()), "assigned".into()));
    let table = ok(&["gpu", "ls", "-c", CONFIG])?;
    let id = job_now["id"].as_str().context("no id")?;
    ensure!(table.contains(&format!("of job {}", &id[..10])), "{table}");
    let other = aleph(&[
        "run",
        "--gpus",
        "1",
        "--network=none",
        "busybox",
        "--",
        "true",
    ])?;
    let why = String::from_utf8_lossy(&other.stderr);
    ensure!(other.status.code() == Some(125), "{why}");
    ensure!(why.contains("belongs to another job"), "{why}");

    // The guest outlives its daemon with what it has; who ends it gives it back.
    daemon.kill()?;
    daemon.wait()?;
    running.wait()?;
    let mut daemon = up()?;
    ensure!(job().is_some_and(|job| job["vm"] == vm.as_str()));
    ensure!(gpu()? == (Some(VFIO_PCI.into()), "assigned".into()));
    ok(&["rm", "-f", "gpu"])?;
    ensure!(gpu()? == (Some("virtio-pci".into()), "host".into()));
    daemon.kill()?;
    daemon.wait()?;
    Ok(())
}
