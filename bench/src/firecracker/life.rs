//! VMs of Firecracker by the driver alone.

use aleph_executor::firecracker::FirecrackerDriver;
use aleph_executor::hypervisor::{Driver, Kernel, Launch, Memory, Sockets, Start, Vmm};
use aleph_executor::process::Identity;
use aleph_types::{MiB, Resources, VmId};
use anyhow::{Context, Result};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// How much memory each guest has.
pub(super) const MEMORY: MiB = MiB(128);

/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

/// What is booted.
pub(super) struct Guest {
    dir: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl Guest {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let guest = Self {
            dir: dir.to_owned(),
            kernel: dir.join("kernel"),
            initrd: dir.join("initrd"),
        };
        std::fs::write(&guest.kernel, aleph_testkit::freestanding_kernel())?;
        std::fs::write(&guest.initrd, [0; 4096])?;
        Ok(guest)
    }
}

/// What clones go on from.
pub(super) struct Template {
    /// As the driver writes it.
    packed: PathBuf,
    /// As Firecracker writes it.
    pub(super) state: PathBuf,
    pub(super) memory: PathBuf,
}

impl Template {
    pub(super) async fn make(driver: &FirecrackerDriver, guest: &Guest) -> Result<Self> {
        let names = ["packed", "state", "memory"].map(|name| guest.dir.join(name));
        let [packed, state, memory] = names;
        let file = File::create(&memory)?;
        file.set_len(u64::from(MEMORY.0) << 20)?;
        let boot = guest.boot()?;
        let mut life = Life::begin(driver, guest, boot, Memory::Template(file)).await?;
        life.letters(40).await?;
        let pause = life.vmm.pause().context("no pause")?;
        pause.pause().await?;
        let snapshot = life.vmm.snapshot().context("no snapshots")?;
        snapshot.save(File::create(&packed)?).await?;
        life.end().await?;
        std::os::unix::fs::chown(&memory, Some(0), Some(0))?;
        std::fs::set_permissions(&memory, Permissions::from_mode(0o444))?;
        // Behind a head of 24 bytes that says how long it is.
        let bytes = std::fs::read(&packed)?;
        let length = bytes.get(8..16).context("no head")?.try_into()?;
        let length = usize::try_from(u64::from_le_bytes(length))?;
        std::fs::write(&state, bytes.get(24..24 + length).context("no state")?)?;
        Ok(Self {
            packed,
            state,
            memory,
        })
    }
}

impl Guest {
    fn boot(&self) -> Result<Start> {
        Ok(Start::Boot(Kernel {
            kernel: File::open(&self.kernel)?,
            initrd: File::open(&self.initrd)?,
            command_line: "none".into(),
        }))
    }
}

/// A VMM, and what its guest writes.
pub(super) struct Life {
    vmm: Box<dyn Vmm>,
    run_dir: PathBuf,
    console: UnixStream,
}

/// Where something fails, its VMs end with it.
impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
    }
}

impl Life {
    pub(super) async fn boot(driver: &FirecrackerDriver, guest: &Guest) -> Result<Self> {
        Self::begin(driver, guest, guest.boot()?, Memory::Own).await
    }

    pub(super) async fn go_on(
        driver: &FirecrackerDriver,
        guest: &Guest,
        template: &Template,
    ) -> Result<Self> {
        let state = File::open(&template.packed)?.into();
        let memory = Memory::Clone(File::open(&template.memory)?);
        Self::begin(driver, guest, Start::Restore { state }, memory).await
    }

    async fn begin(
        driver: &FirecrackerDriver,
        guest: &Guest,
        start: Start,
        memory: Memory,
    ) -> Result<Self> {
        let vm = VmId::random();
        let run_dir = guest.dir.join(vm.to_string());
        std::fs::create_dir(&run_dir)?;
        let listen = |name: &str| UnixListener::bind(run_dir.join(name));
        let vmm = driver.launch(Launch {
            vm,
            resources: Resources {
                memory: MEMORY,
                ..Resources::default()
            },
            start,
            memory,
            disks: Vec::new(),
            nics: Vec::new(),
            links: Vec::new(),
            sockets: Sockets {
                control: listen("vmm.sock")?,
                agent: listen("agent.sock")?,
                console: listen("console.sock")?,
            },
            run_dir: run_dir.clone(),
            cgroup: None,
            user: None,
        });
        let vmm = vmm.await?;
        let console = UnixStream::connect(run_dir.join("console.sock")).await?;
        Ok(Self {
            vmm,
            run_dir,
            console,
        })
    }

    pub(super) async fn letter(&mut self) -> Result<()> {
        self.letters(1).await
    }

    /// Waits until its guest has written so many.
    pub(super) async fn letters(&mut self, count: usize) -> Result<()> {
        let mut letters = vec![0; count];
        let read = self.console.read_exact(&mut letters);
        tokio::time::timeout(LIMIT, read).await??;
        Ok(())
    }

    /// Bytes of memory that are its VMM's and its memory server's, what is shared counted in parts.
    pub(super) fn memory(&self) -> Result<f64> {
        let mut pids = vec![self.vmm.identity().pid];
        if let Ok(text) = std::fs::read(self.run_dir.join("memory-server.json")) {
            pids.push(serde_json::from_slice::<Identity>(&text)?.pid);
        }
        let mut all = 0.0;
        for pid in pids {
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kib = line.and_then(|line| line.split_ascii_whitespace().next());
            all += kib.context("no Pss")?.parse::<f64>()? * 1024.0;
        }
        Ok(all)
    }

    pub(super) async fn end(self) -> Result<()> {
        self.vmm.kill()?;
        tokio::time::timeout(LIMIT, self.vmm.wait()).await?;
        std::fs::remove_dir_all(&self.run_dir)?;
        Ok(())
    }
}
