//! VMs of Firecracker by the driver alone.

use aleph_executor::firecracker::FirecrackerDriver;
use aleph_executor::hypervisor::{Kernel, Memory, Start};
use aleph_executor::process::Identity;
use aleph_testkit::{DrivenVm, Plan};
use aleph_types::MiB;
use anyhow::{Context, Result};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// How much memory each guest has.
pub(super) const MEMORY: MiB = MiB(128);

/// What is booted.
pub(super) struct Guest {
    pub(super) dir: PathBuf,
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
    pub(super) packed: PathBuf,
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
        let life = Life::begin(driver, guest, Memory::Template(file)).await?;
        life.letters(40).await?;
        life.0.pause().await?;
        life.0.save(&packed).await?;
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

/// A VMM, and what its guest writes.
pub(super) struct Life(DrivenVm);

impl Life {
    pub(super) fn of(vm: DrivenVm) -> Self {
        Self(vm)
    }

    /// Has its guest stand still: one that runs takes a processor.
    pub(super) async fn pause(&self) -> Result<()> {
        self.0.pause().await
    }

    pub(super) async fn boot(driver: &FirecrackerDriver, guest: &Guest) -> Result<Self> {
        Self::begin(driver, guest, Memory::Own).await
    }

    async fn begin(driver: &FirecrackerDriver, guest: &Guest, memory: Memory) -> Result<Self> {
        let boot = Start::Boot(Kernel {
            kernel: File::open(&guest.kernel)?,
            initrd: File::open(&guest.initrd)?,
            command_line: "none".into(),
        });
        let plan = Plan {
            memory,
            size: MEMORY,
            ..Plan::new(boot)
        };
        DrivenVm::launch(driver, &guest.dir, plan).await.map(Self)
    }

    pub(super) async fn go_on(
        driver: &FirecrackerDriver,
        guest: &Guest,
        template: &Template,
    ) -> Result<Self> {
        let plan = Plan {
            memory: Memory::Clone(File::open(&template.memory)?),
            size: MEMORY,
            ..Plan::restore(&template.packed)?
        };
        DrivenVm::launch(driver, &guest.dir, plan).await.map(Self)
    }

    pub(super) async fn letter(&self) -> Result<()> {
        self.letters(1).await
    }

    /// Waits until its guest has written so many.
    pub(super) async fn letters(&self, count: usize) -> Result<()> {
        self.0.writes(count).await.map(drop)
    }

    /// Bytes of memory that are its VMM's and its memory server's, what is shared counted in parts.
    pub(super) fn memory(&self) -> Result<f64> {
        let mut pids = vec![self.0.vmm.identity().pid];
        if let Ok(text) = std::fs::read(self.0.run_dir.join("memory-server.json")) {
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
        let run_dir = self.0.run_dir.clone();
        self.0.end().await?;
        Ok(std::fs::remove_dir_all(run_dir)?)
    }
}
