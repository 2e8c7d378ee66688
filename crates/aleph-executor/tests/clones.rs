//! Templates and clones with real VMs: what a clone has of its template, and what it has alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it cannot go on"
)]

use aleph_executor::accel::Accelerator;
use aleph_executor::executor::COMMAND_LINE;
use aleph_executor::guest::{
    Agent, CloneRequest, ExecEvent, ExecRequest, Reattach, SetupRequest, UpperKind,
};
use aleph_executor::host;
use aleph_executor::hypervisor::{Disk, Driver, Launch, Memory, Start, Vmm, socket_name};
use aleph_executor::lifecycle::Timeouts;
use aleph_executor::place::Place;
use aleph_executor::qemu::{QemuConfig, QemuDriver};
use aleph_executor::vm::{Ending, Vm, VmSpec};
use aleph_testkit::TestRoot;
use aleph_types::{MiB, Resources};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

struct Template {
    root: TestRoot,
    driver: Arc<QemuDriver>,
    memory: PathBuf,
    state: PathBuf,
}

fn resources() -> Resources {
    Resources {
        memory: MiB(128),
        ..Resources::default()
    }
}

impl Template {
    /// Boots a guest, runs `script` in it until it says something, and writes it down.
    async fn make(script: &str) -> Result<Self> {
        let root = TestRoot::new()?;
        let (bundle, image) = (root.bundle()?, root.busybox()?);
        let driver = Arc::new(QemuDriver::new(QemuConfig {
            program: "qemu-system-x86_64".into(),
            accelerator: Accelerator::Tcg,
            tsc_khz: host::tsc_khz(&root.path().join("tsc-khz")),
            cache: root.path().join("qemu.json"),
        }));
        let (memory, state) = (root.path().join("memory"), root.path().join("state"));
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&memory)?;
        file.set_len(resources().memory.bytes())?;
        // The VMM's own user opens it again.
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o666))?;
        let spec = VmSpec {
            resources: resources(),
            kernel: File::open(bundle.vmlinux().context("no uncompressed kernel")?)?,
            initrd: File::open(bundle.initrd())?,
            command_line: COMMAND_LINE.to_owned(),
            image: File::open(image.rootfs())?,
            disks: Vec::new(),
            memory: Memory::Template(file),
            nics: Vec::new(),
            setup: SetupRequest {
                hostname: "template".into(),
                filesystem: image.filesystem().to_string(),
                upper: UpperKind::Memory,
                poweroff_on_hangup: false,
                network: None,
            },
            timeouts: Timeouts::default(),
            ending: Ending {
                kept: false,
                stop_signal: 15,
            },
        };
        let vm = Vm::create(
            Place::create(&root.paths()?, None)?,
            Arc::clone(&driver) as _,
            spec,
        );
        let main = ExecRequest {
            argv: ["sh", "-c", script].map(String::from).to_vec(),
            main: true,
            keep: true,
            ..ExecRequest::default()
        };
        let mut main = vm.start(Some(main)).await?.context("no command")?;
        vm.running().await?;
        loop {
            if let ExecEvent::Stdout(_) = main.next().await? {
                main.stored(main.position())?;
                break;
            }
        }
        let agent = vm.agent()?;
        agent.freeze().await?;
        vm.pause().await?;
        let began = Instant::now();
        vm.save(File::create(&state)?).await?;
        eprintln!("saved in {:?}", began.elapsed());
        vm.kill().await?;
        vm.destroy().await?;
        Ok(Self {
            root,
            driver,
            memory,
            state,
        })
    }

    async fn clone(
        &self,
        n: u64,
    ) -> Result<(
        Place,
        Box<dyn Vmm>,
        Agent,
        aleph_executor::guest::ExecHandle,
    )> {
        let began = Instant::now();
        let place = Place::create(&self.root.paths()?, None)?;
        let sockets = place.listen()?;
        let image = self.root.busybox()?;
        let vmm = self
            .driver
            .launch(Launch {
                vm: place.vm(),
                resources: resources(),
                start: Start::Restore {
                    state: File::open(&self.state)?.into(),
                },
                memory: Memory::Clone(File::options().read(true).write(true).open(&self.memory)?),
                disks: vec![Disk {
                    serial: "rootfs",
                    file: File::open(image.rootfs())?,
                    read_only: true,
                }],
                nics: Vec::new(),
                sockets,
                run_dir: place.run_dir().to_owned(),
                cgroup: None,
                user: rustix::process::geteuid()
                    .is_root()
                    .then(|| place.vm().uid()),
            })
            .await?;
        let socket = place.connect(socket_name::AGENT).await?;
        eprintln!("launched {:?}", began.elapsed());
        let reached = tokio::time::timeout(LIMIT, Agent::reattach(socket, Reattach::default()));
        let (agent, main) = reached.await??;
        eprintln!("reached {:?}", began.elapsed());
        let request = CloneRequest {
            hostname: format!("clone-{n}"),
            generation: n,
            machine_id: [u8::try_from(n)?; 16],
            network: None,
        };
        agent.resume(&request)?.done().await?;
        eprintln!("resumed {:?}", began.elapsed());
        for _ in 0..5 {
            let began = Instant::now();
            agent.ping().await?;
            eprintln!("ping {:?}", began.elapsed());
        }
        Ok((place, vmm, agent, main.context("no command")?))
    }
}

#[tokio::test]
async fn a_clone_goes_on_where_its_template_stood() -> Result<()> {
    let template = Template::make("echo up; read -r _ < /dev/zero; sleep 1000").await?;
    for n in 1..3 {
        let (place, vmm, agent, _main) = template.clone(n).await?;
        let exec = agent.exec(&ExecRequest {
            argv: [
                "sh",
                "-c",
                "hostname; cat /etc/machine-id /run/aleph/generation; date +%s",
            ]
            .map(String::from)
            .to_vec(),
            ..ExecRequest::default()
        })?;
        let (out, _, _) = exec.collect().await?;
        eprintln!("{}", String::from_utf8_lossy(&out));
        vmm.kill()?;
        vmm.wait().await;
        place.remove()?;
    }
    Ok(())
}
