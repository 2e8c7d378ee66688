//! Processes of Firecracker that wait for their guests.

use super::life::{Guest, Life, MEMORY, Template};
use aleph_executor::firecracker::FirecrackerDriver;
use aleph_executor::hypervisor::{AheadLaunch, Driver, Late, Shape, Sockets, Waiting};
use aleph_testkit::DrivenVm;
use aleph_types::{Resources, VmId};
use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// A process that waits, and a folder in which it finds what comes late.
pub(super) struct Slot {
    waiting: Box<dyn Waiting>,
    vm: VmId,
    run_dir: PathBuf,
    late: PathBuf,
    state: UnixStream,
}

impl Slot {
    pub(super) async fn launch(driver: &FirecrackerDriver, guest: &Guest) -> Result<Self> {
        let vm = VmId::random();
        let run_dir = guest.dir.join(vm.to_string());
        let late = guest.dir.join(format!("late-{vm}"));
        for folder in [&run_dir, &late] {
            std::fs::create_dir(folder)?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&late, flags, Mode::empty())?;
        let (state, theirs) = UnixStream::pair()?;
        let listen = |name: &str| UnixListener::bind(run_dir.join(name));
        let ahead = driver.ahead().context("it cannot wait")?;
        let waiting = ahead.launch(AheadLaunch {
            vm,
            shape: Shape {
                resources: Resources {
                    memory: MEMORY,
                    ..Resources::default()
                },
                disks: Vec::new(),
                nics: 0,
                links: Vec::new(),
            },
            state: theirs.into(),
            queues: Vec::new(),
            links: Vec::new(),
            folder,
            sockets: Sockets {
                control: listen("vmm.sock")?,
                agent: listen("agent.sock")?,
                console: listen("console.sock")?,
            },
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
        })
    }

    /// Has a guest go on there.
    pub(super) async fn go_on(self, template: &Template) -> Result<Life> {
        let vmm = self.waiting.vmm();
        let memory = File::open(&template.memory)?;
        let late = Late {
            memory,
            disks: Vec::new(),
        };
        self.waiting.begin(late).await?;
        let (mut to, packed) = (self.state, template.packed.clone());
        let given = tokio::task::spawn_blocking(move || to.write_all(&std::fs::read(packed)?));
        given.await??;
        let vm = DrivenVm::of(self.vm, vmm, self.run_dir).await?;
        std::fs::remove_dir(self.late)?;
        Ok(Life::of(vm))
    }
}
