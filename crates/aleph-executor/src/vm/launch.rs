//! Everything from a VM's first folder to a VMM that runs.

use super::actor::Note;
use super::awakening::{Awakening, Guest};
use super::{Begin, VmSpec};
use crate::cgroup::Limits;
use crate::console::Console;
use crate::guest::ExecRequest;
use crate::hypervisor::{
    Disk, Driver, Kernel, Launch, LaunchError, Start, Vmm, VmmExit, socket_name,
};
use crate::place::{Place, PlaceError};
use aleph_types::MiB;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// A VMM that runs, and the guest that it is to have.
pub(super) struct Launched {
    pub(super) vmm: Arc<dyn Vmm>,
    /// None where nobody is in its guest to speak with.
    pub(super) awakening: Option<Awakening>,
    pub(super) console: JoinHandle<()>,
    pub(super) prepared_in: Duration,
}

/// A launch that did not work out. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchFailure {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Vmm(#[from] LaunchError),
    #[error("cannot reach the VMM")]
    Connect(#[source] std::io::Error),
    #[error("it ended at once: {0}")]
    Died(VmmExit),
}

/// Prepares the place and starts the VMM. The main command goes with the guest: it is handed over
/// as soon as there is a channel, so that it costs no round trip once the guest is up.
pub(super) async fn launch(
    place: &Arc<Place>,
    driver: &dyn Driver,
    spec: VmSpec,
    main: Option<ExecRequest>,
    console: Arc<Console>,
) -> Result<Note, LaunchFailure> {
    let began = Instant::now();
    let VmSpec {
        resources,
        machine,
        begin,
        image,
        disks: others,
        memory,
        nics,
        links,
        ..
    } = spec;
    let tables = machine.page_tables(resources.memory);
    let limits = Limits {
        cpus: resources.cpus,
        memory: MiB(resources.memory.0.saturating_add(tables.0)),
        pids: resources.pids.unwrap_or(DEFAULT_PIDS),
        io_bytes_per_second: resources.io_bytes_per_second,
    };
    // One with disks of its own needs no other.
    let scratch_size = match &begin {
        Begin::Disk(_) => 0,
        Begin::Boot { .. } | Begin::Snapshot(_) => resources.disk.0,
    };
    let prepare = {
        let place = Arc::clone(place);
        let original = match &begin {
            Begin::Boot { .. } | Begin::Disk(_) => None,
            Begin::Snapshot(origin) => origin.scratch.clone(),
        };
        move || -> Result<_, PlaceError> {
            let scratch = match (scratch_size, original) {
                (0, _) => None,
                (_, Some(original)) => Some(place.copy_scratch(&original)?),
                (_, None) => Some(place.make_scratch(resources.disk)?),
            };
            Ok((place.listen()?, place.make_cgroup(&limits)?, scratch))
        }
    };
    let (sockets, cgroup, scratch) = match scratch_size {
        0 => prepare()?,
        // Making or copying a filesystem takes long enough to be done elsewhere.
        _ => tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|join| LaunchFailure::Connect(std::io::Error::other(join)))??,
    };
    let image = image.map(|file| Disk::raw(crate::guest::agent::IMAGE_SERIAL, file, true));
    let mut disks: Vec<Disk> = image.into_iter().collect();
    disks.extend(others);
    disks.extend(scratch.map(|file| Disk::raw(crate::guest::agent::SCRATCH_SERIAL, file, false)));
    let prepared_in = began.elapsed();
    let launched = Instant::now();
    let (start, guest) = match begin {
        Begin::Boot {
            kernel,
            initrd,
            command_line,
            setup,
        } => {
            let command_line = format!("{command_line} {}", driver.kernel_arguments());
            let boot = Kernel {
                kernel,
                initrd,
                command_line,
            };
            (Start::Boot(boot), Some(Guest::New(setup, main)))
        }
        Begin::Snapshot(origin) => {
            let (main, own) = (origin.main, Box::new(origin.own));
            let state = origin.state.into();
            (Start::Restore { state }, Some(Guest::Old(main, own)))
        }
        Begin::Disk(None) => (Start::Firmware, None),
        Begin::Disk(Some(kernel)) => (Start::Boot(*kernel), None),
    };
    let vmm: Arc<dyn Vmm> = driver
        .launch(Launch {
            vm: place.vm(),
            machine,
            resources,
            start,
            memory,
            disks,
            nics,
            links,
            sockets,
            run_dir: place.run_dir().to_owned(),
            cgroup,
            user: rustix::process::geteuid()
                .is_root()
                .then(|| place.vm().uid()),
        })
        .await?
        .into();
    let connected = async {
        place.record(&vmm.identity())?;
        let console_socket = place
            .connect(socket_name::CONSOLE)
            .await
            .map_err(LaunchFailure::Connect)?;
        Ok(tokio::spawn(read_console(console_socket, console)))
    };
    match connected.await {
        Ok(console) => Ok(Note::Launched(Box::new(Launched {
            awakening: guest.map(|guest| Awakening {
                vmm: Arc::clone(&vmm),
                guest,
                launched,
            }),
            vmm,
            console,
            prepared_in,
        }))),
        Err(failure) => {
            // Whoever hears that the launch failed may count on nothing running.
            vmm.kill()
                .map_err(|error| LaunchFailure::Connect(std::io::Error::other(error)))?;
            if let Some(cgroup) = place.cgroup() {
                let _ = cgroup.kill();
            }
            let exit = vmm.wait().await;
            Err(match failure {
                // Refused by a VMM that is no more: its own words say why.
                LaunchFailure::Connect(_) => LaunchFailure::Died(exit),
                other => other,
            })
        }
    }
}

/// Processes and threads that a VMM may have: one for each CPU, and what QEMU has for I/O (at
/// most 64 at once).
const DEFAULT_PIDS: u32 = 512;

/// Reads what the guest writes and writes what it is told, until the VMM closes the console.
pub(super) async fn read_console(socket: tokio::net::UnixStream, console: Arc<Console>) {
    let (mut from, mut to) = socket.into_split();
    let reading = async {
        let mut chunk = vec![0; 4096];
        while let Ok(n @ 1..) = from.read(&mut chunk).await {
            console.push(&chunk[..n]);
            console.tell(&chunk[..n]).await;
        }
    };
    let typing = async {
        while let Some(keys) = console.typed().await {
            if to.write_all(&keys).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = typing => {}
    }
    console.hush();
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
