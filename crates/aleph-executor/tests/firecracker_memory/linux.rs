//! A Linux guest under what stands for Firecracker.

use crate::{LIMIT, jail, server_program};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver, MemoryMode};
use aleph_executor::hypervisor::{
    Disk, Driver, Kernel, Launch, Machine, Memory, Sockets, Start, Vmm,
};
use aleph_testkit::TestRoot;
use aleph_types::{MiB, Resources, VmId};
use anyhow::{Context, Result};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

const MEMORY: MiB = MiB(128);

async fn begin(
    driver: &FirecrackerDriver,
    root: &TestRoot,
    dir: &Path,
    (start, memory): (Start, Memory),
) -> Result<Box<dyn Vmm>> {
    let vm = VmId::random();
    let run_dir = dir.join(vm.to_string());
    std::fs::create_dir(&run_dir)?;
    let listen = |name: &str| UnixListener::bind(run_dir.join(name));
    let launch = Launch {
        vm,
        machine: Machine::MicroVm,
        resources: Resources {
            memory: MEMORY,
            ..Resources::default()
        },
        start,
        memory,
        disks: vec![Disk::raw(
            "image",
            File::open(root.busybox()?.rootfs())?,
            true,
        )],
        nics: Vec::new(),
        links: Vec::new(),
        sockets: Sockets {
            control: listen("vmm.sock")?,
            agent: listen("agent.sock")?,
            console: listen("console.sock")?,
        },
        run_dir,
        cgroup: None,
        user: None,
    };
    Ok(driver.launch(launch).await?)
}

/// It goes on in two VMs whose memory is filled by servers, the second ahead of need: their kernels
/// answer, and so does the agent.
pub(crate) async fn goes_on(version: &str, jailed: bool) -> Result<()> {
    let root = TestRoot::new()?;
    let dir = tempfile::tempdir()?;
    let jailer = jailed.then(|| aleph_testkit::jailer_double(version));
    let driver = FirecrackerDriver::new(DriverConfig {
        program: aleph_testkit::firecracker_double(version)?,
        jail: jail(dir.path(), jailer.transpose()?)?,
        needs_kvm: false,
        memory: MemoryMode::Userfaultfd {
            server: server_program(),
            prefetch: true,
        },
        ..DriverConfig::default()
    });
    let (state, memory) = (dir.path().join("state"), dir.path().join("memory"));
    let file = File::create_new(&memory)?;
    file.set_len(u64::from(MEMORY.0) << 20)?;
    let bundle = root.bundle()?;
    let boot = Start::Boot(Kernel {
        kernel: File::open(bundle.vmlinux().context("no uncompressed kernel")?)?,
        initrd: File::open(bundle.initrd())?,
        command_line: driver.kernel_arguments(),
    });
    let first = begin(&driver, &root, dir.path(), (boot, Memory::Template(file))).await?;
    first.channel().await?;
    first.pause().context("no pause")?.pause().await?;
    let snapshot = first.snapshot().context("no snapshots")?;
    snapshot.save(File::create(&state)?).await?;
    first.kill()?;
    first.wait().await;
    if jailed {
        std::os::unix::fs::chown(&memory, Some(0), Some(0))?;
        std::fs::set_permissions(&memory, Permissions::from_mode(0o444))?;
    }
    for _ in 0..2 {
        let restore = Start::Restore {
            state: File::open(&state)?.into(),
        };
        let memory = Memory::Clone(File::open(&memory)?);
        let clone = begin(&driver, &root, dir.path(), (restore, memory)).await?;
        tokio::time::timeout(LIMIT, clone.channel()).await??;
        clone.kill()?;
        clone.wait().await;
    }
    let record = std::fs::read(dir.path().join("memory.working-set"))?;
    assert!(record.starts_with(b"ALEPHWS1"));
    Ok(())
}
