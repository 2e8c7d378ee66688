//! What NVIDIA's library says of GPUs: by the process that loads it, from a library that stands for it,
//! since that one needs its driver and a GPU.

use aleph_executor::gpu::{
    Allowed, GpuConfig, Gpus, HostTree, Nvml, NvmlError, NvmlReader, PciAddress, VramSource, choose,
};
use aleph_testkit::{expand_pci_tree, wait_until};
use aleph_types::MiB;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Forms and numbers are those of NVIDIA's nvml.h.
const LIBRARY: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct pci {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
};
struct memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

struct attributes {
    unsigned processors, copy, decoders, encoders, jpeg, flow, slices, compute_slices;
    unsigned long long memory_mb;
};

static unsigned number(void *device) { return (unsigned)(size_t)device - 1; }

/* Handles of parts are those from 0x100 on. */
static int is_part(void *device) { return number(device) >= 0x100; }

int nvmlInit_v2(void) {
#ifdef HANGS
    for (;;) pause();
#endif
#ifdef CRASHES
    abort();
#endif
#ifdef WITHOUT_DRIVER
    return 9;
#endif
    return 0;
}

int nvmlShutdown(void) {
    FILE *file = fopen(DONE, "a");
    fputs("shut down\n", file);
    fclose(file);
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return 0;
}

int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci) {
    if (number(device) == 2) return 15; /* it is lost */
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x18 + number(device);
    pci->id = number(device) ? 0xffff10de : 0x233510de;
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    snprintf(pci->legacy, sizeof pci->legacy, "0000:%02X:00.0", pci->bus);
    return 0;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    if (memory->version != (sizeof *memory | 2 << 24)) return 25;
    memory->total = (number(device) ? 24564ull : 143771ull) << 20;
    if (is_part(device)) memory->total = (number(device) == 0x100 ? 71424ull : 16896ull) << 20;
    return 0;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    if (is_part(device)) snprintf(text, length, "MIG-0000000%u", number(device) - 0x100);
    else snprintf(text, length, "GPU-0000000%u", number(device));
    return 0;
}

int nvmlDeviceGetName(void *device, char *text, unsigned length) {
    snprintf(text, length, "%s", number(device) ? "NVIDIA Unheard Of" : "NVIDIA H200");
    if (is_part(device)) strcpy(text, "NVIDIA H200");
    if (number(device) == 0x105) strcpy(text, "NVIDIA H200 MIG 1g.18gb+me");
    return 0;
}

int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *later) {
    if (number(device)) return 3; /* it has none */
    *now = *later = 1;
    return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { *count = 7; return 0; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **part) {
    if (number(device)) abort(); /* nobody asks one that is not divided */
    if (index != 0 && index != 4 && index != 5) return 6; /* there is none of that number */
    *part = (void *)(size_t)(0x101 + index);
    return 0;
}

int nvmlDeviceGetAttributes_v2(void *device, struct attributes *size) {
    if (!is_part(device)) return 2;
    memset(size, 0, sizeof *size);
    size->slices = size->compute_slices = number(device) == 0x100 ? 3 : 1;
    size->memory_mb = number(device) == 0x100 ? 71424 : 16896;
    return 0;
}
"#;

/// A library that behaves so, and the file that says that it was closed.
fn library(dir: &Path, behaviour: &str) -> Result<(PathBuf, PathBuf)> {
    let (source, library) = (dir.join("nvml.c"), dir.join("libnvidia-ml.so.1"));
    let done = dir.join("done");
    fs::write(&source, LIBRARY)?;
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg(format!("-D{behaviour}"))
        .arg(format!("-DDONE=\"{}\"", done.display()))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok((library, done))
}

fn reader(library: PathBuf, limit: Duration) -> NvmlReader {
    NvmlReader {
        program: env!("CARGO_BIN_EXE_aleph").into(),
        library: Some(library),
        limit,
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn gpus_are_what_the_library_says_even_once_a_guest_has_them() -> Result<()> {
    let dir = TempDir::new()?;
    let (library, done) = library(dir.path(), "ANSWERS")?;
    let root = dir.path().join("host");
    // The first by its ids, the others not. The last two are another device than NVML has there, and
    // one that it has lost.
    expand_pci_tree(
        "0000:18:00.0 root 10de:2335 class=030200 group=1 driver=nvidia reset=flr bars=16M,256G\n\
         0000:19:00.0 root 10de:ffff class=030200 group=2 driver=nvidia reset=flr bars=256M\n\
         0000:1a:00.0 root 10de:fffe class=030200 group=3 driver=nvidia reset=flr bars=256M\n",
        &root,
    )?;
    let tree = HostTree::recorded(&root);
    let gpus = Gpus::new(tree.clone(), GpuConfig::default()).asking(reader(library, LONG));
    let at = |address: &str| -> Result<PciAddress> { Ok(address.parse()?) };
    // What MIG divides the first one into, while its driver has it.
    let inventory = gpus.inventory()?;
    let parts: Vec<_> = inventory
        .instances()
        .iter()
        .map(|part| {
            let gib = part.vram.map(|vram| vram.mib.0 >> 10);
            (part.name(), &part.gpu_type[..], part.uuid.as_deref(), gib)
        })
        .collect();
    let part = |index: u32, name, gib| {
        let address = format!("0000:18:00.0/mig{index}");
        (address, name, gib)
    };
    let wanted = [
        (part(0, "h200-3g.71gb", 70), "MIG-00000000"),
        (part(4, "h200-1g.18gb", 17), "MIG-00000004"),
        (part(5, "h200-1g.18gb+me", 17), "MIG-00000005"),
    ];
    let wanted = wanted.map(|((address, name, gib), uuid)| (address, name, Some(uuid), Some(gib)));
    assert_eq!(parts, wanted);
    let refused = |request: &str| -> Result<String> {
        let refused = choose(&inventory, &Allowed::default(), &request.parse()?);
        Ok(refused.err().context("it is given")?.to_string())
    };
    let said = refused("type=nvidia,vram=60G")?;
    for part in [
        "0000:18:00.0 (h200, 141 GiB) is divided by MIG",
        "0000:18:00.0/mig0 (h200-3g.71gb, 70 GiB) is a MIG instance: it reaches a VM only as a vGPU",
        "0000:18:00.0/mig4 (h200-1g.18gb, 17 GiB) has too little memory",
    ] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    for (request, meant) in [
        (
            "type=h200-1g.18gb",
            "mig4 (h200-1g.18gb, 17 GiB) is a MIG instance",
        ),
        (
            "type=3g.71gb",
            "mig0 (h200-3g.71gb, 70 GiB) is a MIG instance",
        ),
        (
            "type=h200",
            "mig0 (h200-3g.71gb, 70 GiB) is of another type",
        ),
    ] {
        let said = refused(request)?;
        ensure!(said.contains(meant), "{request}: {said}");
    }
    for driver in ["nvidia", "vfio-pci"] {
        let inventory = gpus.inventory()?;
        let gpu = |address| inventory.gpu(at(address)?).context("none");
        let known = gpu("18:00.0")?;
        assert_eq!(known.driver.as_deref(), Some(driver));
        assert_eq!(known.uuid.as_deref(), Some("GPU-00000000"));
        assert_eq!(known.mig, Some(true));
        let vram = known.vram.context("no memory")?;
        assert_eq!((vram.mib, vram.source), (MiB(141 << 10), VramSource::Model));
        let other = gpu("19:00.0")?;
        assert_eq!(
            (other.mig, other.uuid.as_deref()),
            (None, Some("GPU-00000001"))
        );
        let vram = other.vram.context("no memory")?;
        assert_eq!((vram.mib, vram.source), (MiB(24 << 10), VramSource::Nvml));
        let lost = gpu("1a:00.0")?;
        let vram = lost.vram.context("no memory")?;
        assert_eq!(
            (lost.uuid.as_ref(), vram.source),
            (None, VramSource::Region)
        );
        // As a guest has them.
        let functions = tree.sys.join("bus/pci/devices");
        for bus in ["18", "19", "1a"] {
            let link = functions.join(format!("0000:{bus}:00.0/driver"));
            fs::remove_file(&link)?;
            std::os::unix::fs::symlink("../../bus/pci/drivers/vfio-pci", link)?;
        }
    }
    let inventory = gpus.inventory()?;
    ensure!(
        inventory.instances().is_empty(),
        "nobody knows of a guest's GPU"
    );
    // It was asked each time while its driver had one that was divided, and then not again.
    assert_eq!(fs::read_to_string(done)?, "shut down\nshut down\n");
    Ok(())
}

/// The processes of this name that this one started and has not waited for, those that have ended among them.
fn children(name: &str) -> Vec<u32> {
    let me = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_ours = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // PID (NAME) STATE PARENT
        let (of, rest) = stat.rsplit_once(") ").unwrap_or_default();
        of.ends_with(&format!("({name}")) && rest.split(' ').nth(1) == Some(me.as_str())
    };
    pids.filter(is_ours).collect()
}

#[test]
fn a_library_that_fails_hangs_or_crashes_costs_its_process_alone() -> Result<()> {
    let dir = TempDir::new()?;
    let ask = |behaviour: &str, limit| -> Result<NvmlError> {
        let (library, _) = library(dir.path(), behaviour)?;
        let said = reader(library, limit).gpus();
        said.err()
            .with_context(|| format!("{behaviour} says something"))
    };
    let error = ask("WITHOUT_DRIVER", LONG)?;
    assert!(matches!(error, NvmlError::Absent(_)), "{error}");
    let error = ask("CRASHES", LONG)?;
    assert!(error.to_string().contains("signal: 6"), "{error}");
    let error = ask("HANGS", Duration::from_millis(300))?;
    assert!(matches!(error, NvmlError::Silent(_)), "{error}");
    wait_until("the process that hung to be gone", LONG, || {
        children("aleph").is_empty().then_some(())
    });
    let error = reader(dir.path().join("none.so"), LONG).gpus().unwrap_err();
    assert!(matches!(error, NvmlError::Absent(_)), "{error}");
    assert!(error.to_string().contains("none.so"), "{error}");
    let mut none = reader(dir.path().join("none.so"), LONG);
    none.program = dir.path().join("no-program");
    let error = none.gpus().unwrap_err();
    assert!(matches!(error, NvmlError::Process(_)), "{error}");
    Ok(())
}
