//! `aleph run --gpus` with a device that is really given away: in a VM with an IOMMU, a node of this very
//! program has QEMU give a GPU to a job's guest, and that guest says what it finds on its bus.
//!
//! Everything in that VM is emulated, and what is in its VMs twice. So the guest is of some hundred
//! instructions, the node is asked over its socket by this program, which is there already, and `aleph` is
//! run for nothing but what it says itself.

use aleph_executor::gpu::{Gpu, GpuConfig, GpuState, Gpus, HostTree, VFIO_PCI};
use aleph_testkit::{Case, PciHost, pci_lister};
use aleph_types::MiB;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

const CASES: &[Case] = &[
    ("a_jobs_machine_has_a_gpu", a_jobs_machine_has_a_gpu),
    (
        "a_vm_with_a_disk_of_its_own_has_a_gpu_and_huge_pages",
        a_vm_with_a_disk_of_its_own_has_a_gpu_and_huge_pages,
    ),
];

const ALEPH: &str = env!("CARGO_BIN_EXE_aleph");
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const CONFIG: &str = "/tmp/aleph.toml";
/// Emulated twice, firmware takes some seconds.
const LIMIT: Duration = Duration::from_secs(120);
/// How long it is waited before a node is asked again: what is emulated has something else to do.
const PAUSE: Duration = Duration::from_millis(500);
/// Near the second NUMA node.
const GPU: &str = "0000:41:00.0";
/// The memory of its guest.
const MEMORY: MiB = MiB(96);

fn main() -> ExitCode {
    let host = PciHost {
        memory: MiB(1536),
        numa_nodes: 2,
        modules: &["virtio_pci", "vfio_iommu_type1", VFIO_PCI],
        devices: &[
            "pxb-pcie,id=far,bus_nr=64,numa_node=1,bus=pcie.0",
            "pcie-root-port,id=port1,bus=far,chassis=1,slot=1",
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
            // For a machine with a disk and a screen, by UEFI.
            "/usr/bin/qemu-img",
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "/usr/share/OVMF/OVMF_VARS_4M.fd",
            "/usr/share/seabios/vgabios-stdvga.bin",
            "/usr/share/qemu/keymaps/en-us",
        ],
        node: Some(pci_lister),
    };
    host.main(CASES)
}

/// Says how far it is, and when: where it takes too long, its last words tell with what.
fn step(what: &str) -> Result<()> {
    let up = fs::read_to_string("/proc/uptime")?;
    let up = up.split_whitespace().next().unwrap_or_default().to_owned();
    Ok(writeln!(std::io::stdout(), "{up} s: {what}")?)
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(ALEPH);
    command.args(["--root", PciHost::NODE]).args(words);
    command.stdin(Stdio::null());
    command
}

fn aleph(words: &[&str]) -> Result<Output> {
    Ok(command(words).output()?)
}

fn run_folder() -> PathBuf {
    Path::new(PciHost::NODE).join("run")
}

/// What the node answers: status and body.
fn ask(method: &str, path: &str) -> Result<(u16, String)> {
    let mut node = UnixStream::connect(run_folder().join(aleph_control::SOCKET))?;
    node.set_read_timeout(Some(LIMIT))?;
    write!(
        node,
        "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    node.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

/// The job, as its node tells it.
fn job() -> Result<Value> {
    let (status, body) = ask("GET", "/v1/jobs/gpu")?;
    ensure!(status == 200, "{status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

/// What `aleph gpu ls` looks at.
fn gpu() -> Result<Gpu> {
    let inventory = Gpus::new(HostTree::default(), GpuConfig::default()).inventory()?;
    let gpu = inventory.gpu(GPU.parse()?).cloned();
    gpu.context("it is not there")
}

/// Its driver, and whether a job has it.
fn held() -> Result<(Option<String>, bool)> {
    let Gpu { driver, state, .. } = gpu()?;
    Ok((driver, matches!(state, GpuState::Assigned { .. })))
}

/// Polls until a condition gives something. Says what the job and its node say where it never does.
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if let Some(found) = condition() {
            return step(what).map(|()| found);
        }
        std::thread::sleep(PAUSE);
    }
    let node = fs::read_to_string("/tmp/daemon.log").unwrap_or_default();
    bail!("no {what}: {:?} {node}", job());
}

fn up() -> Result<Child> {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open("/tmp/daemon.log")?;
    let mut command = command(&["up", "-c", CONFIG, "--no-network"]);
    let daemon = command.stdout(log.try_clone()?).stderr(log).spawn()?;
    until("daemon", || {
        ask("GET", "/readyz").ok().filter(|it| it.0 == 200)
    })?;
    Ok(daemon)
}

/// What the guest says is on its bus. A node that runs hears what it says by itself; nobody listens now,
/// and it says it again for each byte.
fn bus(vm: &str) -> Result<Vec<String>> {
    let socket = run_folder().join("vms").join(vm).join("console.sock");
    let mut console = UnixStream::connect(socket)?;
    console.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut said = Vec::new();
    until("whole bus", || {
        console.write_all(b"?").ok()?;
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = console.read(&mut bytes) {
            said.extend(&bytes[..length]);
        }
        let text = String::from_utf8_lossy(&said);
        // From the end of one list to that of the next.
        let (_, list) = text.split_once("\n\n")?;
        let (list, _) = list.split_once("\n\n")?;
        Some(list.lines().map(str::to_owned).collect())
    })
}

/// What a VMM is to its host.
struct Seen {
    user: u32,
    /// Bytes that it may lock.
    locked: u64,
    /// Pages of the memory that is bound to the second NUMA node, and those of them that are elsewhere.
    near: (u64, u64),
}

/// The GPU's VMM.
fn vmm() -> Result<Seen> {
    let pid = gpu()?.users.first().context("nobody has it open")?.pid;
    let maps = fs::read_to_string(format!("/proc/{pid}/numa_maps"))?;
    // Ordinary pages come from there as far as they can: kernels have two words for it.
    let words = [" prefer:1 ", " prefer (many):1 "];
    let is_near = |line: &&str| words.iter().any(|word| line.contains(word));
    let preferred = maps.lines().filter(is_near);
    let pages = |node: &str| -> u64 {
        let words = preferred.clone().flat_map(str::split_whitespace);
        words
            .filter_map(|word| word.strip_prefix(node)?.parse::<u64>().ok())
            .sum()
    };
    let near = (pages("N1="), pages("N0="));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let locked = limits
        .lines()
        .find(|line| line.starts_with("Max locked memory"));
    let locked = locked.and_then(|line| line.split_whitespace().nth(3));
    let user = fs::metadata(format!("/proc/{pid}/fd"))?.uid();
    Ok(Seen {
        user,
        locked: locked.context("no limit")?.parse()?,
        near,
    })
}

fn configure(more: &str) -> Result<()> {
    let executor = "[executor]\nboot_timeout_seconds = 86400\n[executor.qemu]\nenable_gpu = true\n";
    fs::write(CONFIG, format!("{executor}program = \"{QEMU}\"\n{more}"))?;
    step("host")
}

/// The VM of the job, once it has the GPU.
fn machine() -> Result<String> {
    until("machine", || {
        let job = job().ok()?;
        let has_gpu = job["gpus"] == serde_json::json!([GPU]);
        has_gpu.then(|| job["vm"].as_str().map(str::to_owned))?
    })
}

fn a_jobs_machine_has_a_gpu() -> Result<()> {
    configure("")?;
    let mut daemon = up()?;
    let of_host = (Some("virtio-pci".to_owned()), false);
    let of_job = (Some(VFIO_PCI.to_owned()), true);
    ensure!(held()? == of_host);
    let run = ["run", "-d", "--name", "gpu", "--gpus", "type=1af4:1050"];
    let words = ["-m", "96m", "--network=none", "busybox", "--", "true"];
    // It never ends: no agent answers.
    let mut running = command(&[&run[..], &words[..]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let vm = machine()?;
    let Seen { user, locked, .. } = until("VMM", || vmm().ok())?;
    ensure!(user != 0, "its VMM is root");
    ensure!(locked == MEMORY.bytes() + (1 << 30), "it may lock {locked}");
    // All of it is there from the start, since the device may write anywhere, and where the device is.
    let whole = |it: &Seen| it.near.0 << 12 >= MEMORY.bytes();
    let near = until("memory", || vmm().ok().filter(whole))?.near;
    ensure!(near.1 == 0, "{near:?}: some is far away");

    let job_now = job()?;
    ensure!(job_now["migration"]["migratable"] == false, "{job_now}");
    ensure!(held()? == of_job);
    let table = aleph(&["gpu", "ls", "-c", CONFIG])?;
    let table = String::from_utf8(table.stdout)?;
    let id = job_now["id"].as_str().context("no id")?;
    ensure!(table.contains(&format!("of job {}", &id[..10])), "{table}");
    step("table")?;
    let other = [
        "run",
        "--gpus",
        "1",
        "--network=none",
        "busybox",
        "--",
        "true",
    ];
    let other = aleph(&other)?;
    let why = String::from_utf8_lossy(&other.stderr);
    ensure!(other.status.code() == Some(125), "{why}");
    ensure!(why.contains("belongs to another job"), "{why}");
    step("refusal")?;

    // The guest outlives its daemon with what it has: what is in the GPU's slot goes with it.
    daemon.kill()?;
    daemon.wait()?;
    running.wait()?;
    let found = bus(&vm)?;
    let has = |ids: &str| found.iter().any(|line| line.ends_with(ids));
    ensure!(has("1af4:1050") && has("1b36:0010"), "{found:?}");
    let mut daemon = up()?;
    ensure!(job()?["vm"] == vm.as_str());
    ensure!(held()? == of_job);
    // Who ends it gives it back.
    let (status, body) = ask("DELETE", "/v1/jobs/gpu?force=true")?;
    ensure!(status == 204, "{status}: {body}");
    ensure!(held()? == of_host);
    step("removal")?;
    daemon.kill()?;
    daemon.wait()?;
    Ok(())
}

/// Huge pages of the GPU's NUMA node: those that are set aside, and those of them that nobody has.
const HUGE: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";
/// How many are set aside: a few more than its guest's memory takes.
const SET_ASIDE: u64 = 56;

fn free_huge_pages() -> Option<u64> {
    let free = fs::read_to_string(Path::new(HUGE).join("free_hugepages")).ok()?;
    free.trim().parse().ok()
}

/// The GPU's regions as the guest's firmware has mapped them, once it has. Nobody else speaks with the VMM now.
fn regions(vm: &str) -> Result<Vec<u64>> {
    let socket = run_folder().join("vms").join(vm).join("vmm.sock");
    let mut control = UnixStream::connect(socket)?;
    control.set_read_timeout(Some(LIMIT))?;
    let mut answers = BufReader::new(control.try_clone()?).lines();
    let mut ask = |command: &str| -> Result<Value> {
        writeln!(
            control,
            "{}",
            serde_json::json!({ "execute": command, "id": command })
        )?;
        // A greeting and events come between.
        for line in answers.by_ref().take(1000) {
            let answer: Value = serde_json::from_str(&line?)?;
            if answer["id"] == command {
                ensure!(answer.get("error").is_none(), "{answer}");
                return Ok(answer["return"].clone());
            }
        }
        bail!("it says nothing to {command}")
    };
    ask("qmp_capabilities")?;
    until("mapped GPU", || {
        let buses = ask("query-pci").ok()?;
        let ports = buses[0]["devices"].as_array()?.iter();
        let behind = ports.filter_map(|port| port["pci_bridge"]["devices"].as_array());
        let mut behind = behind.flatten();
        let gpu = behind.find(|device| {
            (device["id"]["vendor"] == 0x1af4) && (device["id"]["device"] == 0x1050)
        })?;
        let regions = gpu["regions"].as_array()?.iter();
        let at = regions.map(|region| region["address"].as_u64());
        // What is not mapped yet is at -1.
        let at = at.collect::<Option<Vec<u64>>>()?;
        (!at.is_empty() && !at.contains(&u64::MAX)).then_some(at)
    })
}

/// What UEFI finds on its disk is nothing: it is looked at what its host and its firmware do.
fn a_vm_with_a_disk_of_its_own_has_a_gpu_and_huge_pages() -> Result<()> {
    fs::write(Path::new(HUGE).join("nr_hugepages"), SET_ASIDE.to_string())?;
    ensure!(free_huge_pages() == Some(SET_ASIDE), "no huge pages");
    configure("gpu_rom = false\nhuge_pages = \"2m\"\n")?;
    let mut daemon = up()?;
    let image = "/tmp/disk.raw";
    fs::write(image, vec![0; 1 << 20])?;
    let create = ["vm", "create", "gpu", "--image", image, "-m", "96m"];
    let words = ["--gpus", "type=1af4:1050", "--network=none"];
    let made = aleph(&[&create[..], &words].concat())?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "{said}");
    let vm = machine()?;
    let pid = until("VMM", || Some(gpu().ok()?.users.first()?.pid))?;

    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    let devices: Vec<_> = line
        .split(' ')
        .filter(|word| word.starts_with("vfio-pci,"))
        .collect();
    ensure!(
        devices.len() == 2 && devices.iter().all(|device| device.ends_with(",rombar=0")),
        "{devices:?}"
    );
    ensure!(line.contains("pflash0=firmware"), "{line}");
    // All of it in huge pages of the GPU's node, and in no others.
    let maps = fs::read_to_string(format!("/proc/{pid}/numa_maps"))?;
    let memory: Vec<_> = maps
        .lines()
        .filter(|line| line.contains(" huge "))
        .collect();
    let pages = format!(" N1={} ", MEMORY.0 / 2);
    ensure!(
        memory.len() == 1
            && [" bind:1 ", &pages, " kernelpagesize_kB=2048"]
                .iter()
                .all(|words| memory[0].contains(words)),
        "{memory:?}"
    );
    let left = SET_ASIDE - u64::from(MEMORY.0) / 2;
    ensure!(free_huge_pages() == Some(left), "{:?}", free_huge_pages());
    step("memory")?;

    daemon.kill()?;
    daemon.wait()?;
    regions(&vm)?;
    let mut daemon = up()?;
    ensure!(job()?["vm"] == vm.as_str());
    let (status, body) = ask("DELETE", "/v1/jobs/gpu?force=true")?;
    ensure!(status == 204, "{status}: {body}");
    ensure!(held()? == (Some("virtio-pci".to_owned()), false));
    ensure!(free_huge_pages() == Some(SET_ASIDE), "some are kept");
    step("removal")?;
    daemon.kill()?;
    daemon.wait()?;
    Ok(())
}
