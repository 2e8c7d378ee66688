//! What a clone costs without anything around it: QEMU over a template's memory, its state, and the
//! guest's first answer.

use super::MILLI;
use super::pool::Pool;
use aleph_executor::accel::Accelerator;
use aleph_executor::guest::{Agent, Reattach};
use aleph_executor::host;
use aleph_executor::hypervisor::{Disk, Driver, Launch, Link, Machine, Memory, Sockets, Start};
use aleph_executor::qemu::{QemuConfig, QemuDriver};
use aleph_types::{MiB, Resources, VmId};
use anyhow::Result;
use std::fs::File;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Instant;

/// Restores a clone of a pool's template and waits for its guest's first answer, in milliseconds.
pub(super) async fn restore_and_answer(pool: &Pool) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let [image, task] = pool.images()?;
    let template = pool.template();
    let driver = QemuDriver::new(QemuConfig {
        program: "qemu-system-x86_64".into(),
        accelerator: Accelerator::Tcg,
        tsc_khz: host::tsc_khz(&pool.root.path().join("tsc-khz")),
        cache: pool.root.path().join("qemu.json"),
    });
    driver.check()?;
    let listen = |name: &str| UnixListener::bind(dir.path().join(name));
    let disk = |serial: &'static str, path| {
        Ok::<_, std::io::Error>(Disk::raw(serial, File::open(path)?, true))
    };
    let (_ours, theirs) = UnixDatagram::pair()?;
    let began = Instant::now();
    let vmm = driver
        .launch(Launch {
            vm: VmId::random(),
            machine: Machine::MicroVm,
            resources: Resources {
                memory: MiB(128),
                ..Resources::default()
            },
            start: Start::Restore {
                state: File::open(template.join("state"))?.into(),
            },
            memory: Memory::Clone(
                File::options()
                    .read(true)
                    .write(true)
                    .open(template.join("memory"))?,
            ),
            disks: vec![disk("rootfs", image)?, disk("task", task)?],
            nics: Vec::new(),
            // The devices are those of the template.
            links: vec![Link {
                mac: [0x52, 0x54, 0, 0xa1, 0, 2],
                socket: theirs.into(),
            }],
            sockets: Sockets {
                control: listen("vmm.sock")?,
                agent: listen("agent.sock")?,
                console: listen("console.sock")?,
            },
            run_dir: dir.path().to_owned(),
            cgroup: None,
            user: None,
        })
        .await?;
    let socket = tokio::net::UnixStream::connect(dir.path().join("agent.sock")).await?;
    let (agent, _main) = Agent::reattach_listening(socket, Reattach::default()).await?;
    agent.ping().await?;
    let took = began.elapsed().as_secs_f64() * MILLI;
    vmm.kill()?;
    vmm.wait().await;
    Ok(took)
}
