//! The real program, launched before its guest is known: with a disk, a link and memory that come late.

use crate::guests::{MEMORY, by_server, is_in_order, save, settings, writes};
use crate::{LIMIT, jail, program};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver, MemoryMode};
use aleph_executor::hypervisor::{
    AheadLaunch, Disk, Driver, Kernel, Late, Launch, LaunchError, Link, Machine, Memory, Shape,
    Sockets, Start, Vmm, Waiting,
};
use aleph_testkit::DrivenVm;
use aleph_types::{Resources, VmId};
use aleph_vm_networking::frames::FrameSocket;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn resources() -> Resources {
    Resources {
        memory: MEMORY,
        ..Resources::default()
    }
}

fn sockets(run_dir: &Path) -> Result<Sockets> {
    let listen = |name: &str| UnixListener::bind(run_dir.join(name));
    Ok(Sockets {
        control: listen("vmm.sock")?,
        agent: listen("agent.sock")?,
        console: listen("console.sock")?,
    })
}

/// A file that everybody may read.
fn shared(path: &Path, bytes: &[u8]) -> Result<File> {
    std::fs::write(path, bytes)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o444))?;
    Ok(File::open(path)?)
}

/// What guests go on from.
struct Template {
    state: Vec<u8>,
    memory: PathBuf,
    disk: PathBuf,
}

impl Template {
    async fn make(driver: &FirecrackerDriver, dir: &Path) -> Result<Self> {
        let (memory, disk) = (dir.join("memory"), dir.join("disk"));
        let run_dir = dir.join("template");
        std::fs::create_dir(&run_dir)?;
        let file = File::create_new(&memory)?;
        file.set_len(u64::from(MEMORY.0) << 20)?;
        let vm = VmId::random();
        let launch = Launch {
            vm,
            machine: Machine::MicroVm,
            resources: resources(),
            start: Start::Boot(Kernel {
                kernel: shared(&dir.join("kernel"), &aleph_testkit::freestanding_kernel())?,
                initrd: shared(&dir.join("initrd"), &[0; 4096])?,
                command_line: "none".into(),
            }),
            memory: Memory::Template(file),
            disks: vec![Disk::raw("image", shared(&disk, &[0; 4096])?, true)],
            nics: Vec::new(),
            links: vec![Link {
                mac: MAC,
                socket: driver.link().await?.vmm,
            }],
            sockets: sockets(&run_dir)?,
            run_dir: run_dir.clone(),
            cgroup: None,
            user: None,
        };
        let life = DrivenVm::of(vm, driver.launch(launch).await?.into(), run_dir).await?;
        writes(&life).await?;
        let state = dir.join("state");
        save(&life, &state).await?;
        life.end().await?;
        std::os::unix::fs::chown(&memory, Some(0), Some(0))?;
        std::fs::set_permissions(&memory, Permissions::from_mode(0o444))?;
        let state = std::fs::read(state)?;
        Ok(Self {
            state,
            memory,
            disk,
        })
    }

    fn late(&self) -> Result<Late> {
        Ok(Late {
            memory: File::open(&self.memory)?,
            disks: vec![Disk::raw("image", File::open(&self.disk)?, true)],
        })
    }
}

/// A process that waits.
struct Process {
    waiting: Box<dyn Waiting>,
    vm: VmId,
    run_dir: PathBuf,
    late: PathBuf,
    state: StdUnixStream,
    link: OwnedFd,
}

impl Process {
    async fn launch(driver: &FirecrackerDriver, dir: &Path) -> Result<Self> {
        let vm = VmId::random();
        let (run_dir, late) = (dir.join(vm.to_string()), dir.join(format!("late-{vm}")));
        for folder in [&run_dir, &late] {
            std::fs::create_dir(folder)?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&late, flags, Mode::empty())?;
        let (state, theirs) = StdUnixStream::pair()?;
        let ends = driver.link().await?;
        let ahead = driver.ahead().context("it cannot wait")?;
        let waiting = ahead.launch(AheadLaunch {
            vm,
            shape: Shape {
                resources: resources(),
                disks: vec![("image", true)],
                nics: 0,
                links: vec![MAC],
            },
            state: theirs.into(),
            queues: Vec::new(),
            links: vec![ends.vmm],
            folder,
            sockets: sockets(&run_dir)?,
            run_dir: run_dir.clone(),
            cgroup: None,
            user: None,
        });
        Ok(Self {
            waiting: waiting.await?,
            vm,
            run_dir,
            late,
            state,
            link: ends.host,
        })
    }

    /// Has a guest go on there.
    async fn go_on(self, template: &Template) -> Result<(DrivenVm, OwnedFd)> {
        let vmm = self.waiting.vmm();
        self.waiting.begin(template.late()?).await?;
        let (mut to, state) = (self.state, template.state.clone());
        tokio::task::spawn_blocking(move || to.write_all(&state)).await??;
        Ok((DrivenVm::of(self.vm, vmm, self.run_dir).await?, self.link))
    }
}

/// Guests go on in processes that were there before, whatever fills their memory.
pub(crate) async fn goes_on(jailed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let jailer = jailed.then(|| program("JAILER_BIN")).flatten();
    let jail = jail(dir.path(), jailer)?;
    let jails = jail.as_ref().map(|(jails, _)| jails.clone());
    let driver = |memory| {
        let settings = settings(jail.clone())?;
        Ok::<_, anyhow::Error>(FirecrackerDriver::new(DriverConfig { memory, ..settings }))
    };
    let template = Template::make(&driver(MemoryMode::File)?, dir.path()).await?;
    let mut written = Vec::new();
    for memory in [MemoryMode::File, by_server(false), by_server(true)] {
        let driver = driver(memory)?;
        let process = Process::launch(&driver, dir.path()).await?;
        let (vm, late) = (process.vm, process.late.clone());
        let (life, link) = process.go_on(&template).await?;
        let letters = writes(&life).await?;
        ensure!(is_in_order(&letters), "{letters}");
        written.push(letters);
        // Its link is up, and nothing stays where it was shown.
        let socket = FrameSocket::of(link)?;
        let tap = aleph_vm_networking::network::link_name(vm, 0);
        let space = socket.namespace()?;
        aleph_vm_networking::frames::group_of(std::os::fd::AsFd::as_fd(&space), &tap)?;
        assert_eq!(std::fs::read_dir(late)?.count(), 0, "a file is shown still");
        if let Some(jails) = &jails {
            let root = jails.base().join("firecracker").join(vm.to_string());
            ensure!(root.join("root/api.sock").exists());
            for name in ["image", "template", "state"] {
                ensure!(!root.join("root").join(name).exists(), "{name} is there");
            }
        }
        life.end().await?;
    }
    written.dedup();
    assert_eq!(written.len(), 1, "from the same moment");
    if let Some(jails) = jails {
        ensure!(jails.vms()?.is_empty(), "a jail is left");
    }
    Ok(())
}

/// Those that get no guest leave nothing, however they end.
pub(crate) async fn ends(jailed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let jailer = jailed.then(|| program("JAILER_BIN")).flatten();
    let jail = jail(dir.path(), jailer)?;
    let jails = jail.as_ref().map(|(jails, _)| jails.clone());
    let driver = FirecrackerDriver::new(settings(jail)?);
    let template = Template::make(&driver, dir.path()).await?;
    let over = async |vmm: Arc<dyn Vmm>| {
        let exit = tokio::time::timeout(LIMIT, vmm.wait()).await?;
        if let Some(jails) = &jails {
            ensure!(jails.vms()?.is_empty(), "a jail is left");
        }
        Ok::<_, anyhow::Error>(exit.to_string())
    };

    // It died as it waited.
    let process = Process::launch(&driver, dir.path()).await?;
    let vmm = process.waiting.vmm();
    vmm.kill()?;
    match process.waiting.begin(template.late()?).await {
        Err(LaunchError::Restore { said, .. }) => ensure!(said.contains("killed"), "{said}"),
        other => bail!("{other:?}"),
    }
    over(vmm).await?;

    // It is given up.
    let process = Process::launch(&driver, dir.path()).await?;
    let vmm = process.waiting.vmm();
    vmm.kill()?;
    drop(process);
    over(vmm).await?;

    // A file on another filesystem, and one without a name.
    let elsewhere = tempfile::tempdir_in("/dev/shm")?;
    let far = shared(&elsewhere.path().join("disk"), &[0; 4096])?;
    let nameless = shared(&dir.path().join("nameless"), &[0; 4096])?;
    std::fs::remove_file(dir.path().join("nameless"))?;
    for (file, kind) in [
        (far, std::io::ErrorKind::CrossesDevices),
        (nameless, std::io::ErrorKind::NotFound),
    ] {
        let process = Process::launch(&driver, dir.path()).await?;
        let vmm = process.waiting.vmm();
        let mut late = template.late()?;
        late.disks[0].file = file;
        match process.waiting.begin(late).await {
            Err(LaunchError::Late { source, .. }) => assert_eq!(source.kind(), kind),
            other => bail!("{other:?}"),
        }
        vmm.kill()?;
        over(vmm).await?;
    }

    // Disks of another shape, and a memory file that is too short.
    let process = Process::launch(&driver, dir.path()).await?;
    let vmm = process.waiting.vmm();
    let late = Late {
        disks: Vec::new(),
        ..template.late()?
    };
    ensure!(process.waiting.begin(late).await.is_err());
    vmm.kill()?;
    over(vmm).await?;
    let process = Process::launch(&driver, dir.path()).await?;
    let vmm = process.waiting.vmm();
    let late = Late {
        memory: shared(&dir.path().join("short"), &[0; 4096])?,
        ..template.late()?
    };
    let refused = process.waiting.begin(late).await.err().context("taken")?;
    ensure!(format!("{refused:?}").contains("file: 4096"), "{refused:?}");
    vmm.kill()?;
    over(vmm).await?;

    // A state that is none.
    let process = Process::launch(&driver, dir.path()).await?;
    let broken = Template {
        state: template.state[..template.state.len() / 2].to_vec(),
        ..template
    };
    let vmm = process.waiting.vmm();
    let (life, _) = process.go_on(&broken).await?;
    let said = over(vmm).await?;
    ensure!(said.contains("does not go on"), "{said}");
    drop(life);

    // What is no Firecracker cannot wait.
    let none = FirecrackerDriver::new(DriverConfig {
        program: "/bin/false".into(),
        ..DriverConfig::default()
    });
    ensure!(none.ahead().is_none());
    Ok(())
}
