//! A VM by a driver alone: without a node, an executor or an agent.

use aleph_executor::cgroup::Cgroup;
use aleph_executor::hypervisor::{
    Disk, Driver, Kernel, Launch, Link, Machine, Memory, Nic, Sockets, Start, Vmm,
};
use aleph_types::{MiB, Resources, VmId};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

/// What a VM is launched with.
#[derive(Debug)]
pub struct Plan {
    /// Which VM.
    pub vm: VmId,
    /// Which machine it has.
    pub machine: Machine,
    /// What its guest begins with.
    pub start: Start,
    /// Where its memory is.
    pub memory: Memory,
    /// How much of it there is.
    pub size: MiB,
    /// How many CPUs.
    pub cpus: u16,
    /// Block devices in order.
    pub disks: Vec<Disk>,
    /// Network devices in order.
    pub nics: Vec<Nic>,
    /// Further ones, whose other end is a socket.
    pub links: Vec<Link>,
    /// The group that its process joins.
    pub cgroup: Option<Cgroup>,
    /// The user that it runs as: who we are, who may open `/dev/kvm`, where none is said.
    pub user: Option<u32>,
}

impl Plan {
    /// A new VM with 32 MiB of its own and no devices.
    #[must_use]
    pub fn new(start: Start) -> Self {
        Self {
            vm: VmId::random(),
            machine: Machine::MicroVm,
            start,
            memory: Memory::Own,
            size: MiB(32),
            cpus: 1,
            disks: Vec::new(),
            nics: Vec::new(),
            links: Vec::new(),
            cgroup: None,
            user: None,
        }
    }

    /// One that boots [`crate::freestanding_kernel`], whose files are put in this folder.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn freestanding(dir: &Path) -> Result<Self> {
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes)?;
            File::open(path)
        };
        Ok(Self::new(Start::Boot(Kernel {
            kernel: file("kernel", &crate::freestanding_kernel())?,
            initrd: file("initrd", &[0; 4096])?,
            command_line: "none".into(),
        })))
    }

    /// One whose guest goes on from what [`DrivenVm::save`] wrote.
    ///
    /// # Errors
    /// Where that cannot be opened.
    pub fn restore(state: &Path) -> Result<Self> {
        Ok(Self::new(Start::Restore {
            state: File::open(state)?.into(),
        }))
    }
}

/// A VMM, and what its guest writes. The VMM is killed when this is dropped.
#[derive(Debug)]
pub struct DrivenVm {
    /// Which VM.
    pub vm: VmId,
    /// The VMM.
    pub vmm: Arc<dyn Vmm>,
    /// Its runtime folder.
    pub run_dir: PathBuf,
    console: Mutex<UnixStream>,
}

/// Where a test fails, its VMs end with it.
impl Drop for DrivenVm {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
    }
}

impl DrivenVm {
    /// Launches one, with a runtime folder of its own, named as it is, in this folder.
    ///
    /// # Errors
    /// [`LaunchError`](aleph_executor::hypervisor::LaunchError), and those of making the folder.
    pub async fn launch(driver: &dyn Driver, dir: &Path, plan: Plan) -> Result<Self> {
        let Plan {
            vm,
            machine,
            start,
            memory,
            size,
            cpus,
            disks,
            nics,
            links,
            cgroup,
            user,
        } = plan;
        let run_dir = dir.join(vm.to_string());
        std::fs::create_dir(&run_dir)?;
        let listen = |name: &str| UnixListener::bind(run_dir.join(name));
        let launch = Launch {
            vm,
            machine,
            resources: Resources {
                memory: size,
                cpus,
                ..Resources::default()
            },
            start,
            memory,
            disks,
            nics,
            links,
            sockets: Sockets {
                control: listen("vmm.sock")?,
                agent: listen("agent.sock")?,
                console: listen("console.sock")?,
            },
            run_dir: run_dir.clone(),
            cgroup,
            user,
        };
        Self::of(vm, driver.launch(launch).await?.into(), run_dir).await
    }

    /// That of a VMM which somebody else has launched, with this runtime folder.
    ///
    /// # Errors
    /// Where nobody serves its console.
    pub async fn of(vm: VmId, vmm: Arc<dyn Vmm>, run_dir: PathBuf) -> Result<Self> {
        let console = UnixStream::connect(run_dir.join("console.sock")).await;
        let console = match console {
            Ok(console) => Mutex::new(console),
            Err(error) => {
                let _ = vmm.kill();
                return Err(error).context("the console");
            }
        };
        Ok(Self {
            vm,
            vmm,
            run_dir,
            console,
        })
    }

    /// The next letters that its guest writes to its console.
    ///
    /// # Errors
    /// Where it ends, or writes nothing for a minute.
    pub async fn writes(&self, count: usize) -> Result<String> {
        let mut letters = vec![0; count];
        let mut console = self.console.lock().await;
        let read = console.read_exact(&mut letters);
        tokio::time::timeout(LIMIT, read).await??;
        Ok(String::from_utf8(letters)?)
    }

    /// What its guest writes to its console up to this text, with it.
    ///
    /// # Errors
    /// Where it ends, or does not write it within a minute.
    pub async fn says(&self, text: &str) -> Result<String> {
        let mut said = Vec::new();
        let mut console = self.console.lock().await;
        let read = async {
            // By letters, so that what comes after it is not lost. A minute holds fewer than this.
            for _ in 0..1 << 20 {
                said.push(console.read_u8().await?);
                if said.ends_with(text.as_bytes()) {
                    return Ok(());
                }
            }
            bail!("it never stops")
        };
        let read = tokio::time::timeout(LIMIT, read).await;
        let said = String::from_utf8_lossy(&said).into_owned();
        read.with_context(|| format!("no {text:?} after {said}"))?
            .with_context(|| format!("no {text:?} after {said}"))?;
        Ok(said)
    }

    /// Writes to its guest's console.
    ///
    /// # Errors
    /// Where it has ended.
    pub async fn tell(&self, text: &str) -> Result<()> {
        let mut console = self.console.lock().await;
        Ok(console.write_all(text.as_bytes()).await?)
    }

    /// Has its guest stand still.
    ///
    /// # Errors
    /// The VMM's.
    pub async fn pause(&self) -> Result<()> {
        Ok(self.vmm.pause().context("no pause")?.pause().await?)
    }

    /// Lets its guest go on.
    ///
    /// # Errors
    /// The VMM's.
    pub async fn resume(&self) -> Result<()> {
        Ok(self.vmm.pause().context("no pause")?.resume().await?)
    }

    /// Writes its guest, which stands still, to a file, which is made where it is not there.
    ///
    /// # Errors
    /// The VMM's.
    pub async fn save(&self, to: &Path) -> Result<()> {
        let snapshot = self.vmm.snapshot().context("no snapshots")?;
        let mut options = File::options();
        let to = options.write(true).create(true).truncate(false).open(to)?;
        Ok(snapshot.save(to).await?)
    }

    /// Kills its VMM, and waits until that and all that was its is gone.
    ///
    /// # Errors
    /// Where that takes a minute.
    pub async fn end(self) -> Result<()> {
        self.vmm.kill()?;
        tokio::time::timeout(LIMIT, self.vmm.wait()).await?;
        Ok(())
    }
}
