//! What a Firecracker that was started is told, until its guest runs.
//!
//! # Failure cases
//! A call that is refused or not answered, and a process that ends meanwhile: whoever began it ends it.
//! What fails behind a launch, as a guest goes on, is told by the VMM's end.

use super::api::{Action, Call, MemoryBackend, NetworkOverride, SnapshotLoad, VmState};
use super::home::name;
use super::link::Links;
use super::memory::MemoryServerError;
use super::vmm::{Base, FirecrackerVmm};
use super::{Client, ClientError, packing};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long Firecracker may take to answer a call.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// How long it may take to load a guest whose memory a server fills: parts of it are needed for that.
const LOAD: Duration = Duration::from_secs(20);

/// How long its API may take to be there, and the first pause before it is looked for again.
const COME: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_micros(200);

/// What is to be done once the API answers.
pub(super) enum Beginning {
    Boot(Vec<Call>),
    Restore(Box<Restoring>),
}

/// A guest that goes on.
pub(super) struct Restoring {
    pub(super) state: OwnedFd,
    /// Where its state is put, and its memory, where that comes with it.
    pub(super) files: [File; 2],
    /// Where its memory comes from; with its state where that is not said.
    pub(super) memory: Option<MemoryBackend>,
    /// How much it has.
    pub(super) size: u64,
    /// What its network devices are connected to now.
    pub(super) nics: Vec<NetworkOverride>,
    /// What it was shown as it waited.
    pub(super) shown: Vec<String>,
}

/// Waits for its API, and has its guest begin.
pub(super) async fn bring_up(
    vmm: &Arc<FirecrackerVmm>,
    beginning: Beginning,
    links: Links,
) -> io::Result<()> {
    let client = come(vmm).await.map_err(io::Error::other)?;
    match beginning {
        Beginning::Boot(calls) => {
            for call in &calls {
                let done = client.call(call, ANSWER).await;
                done.map_err(io::Error::other)?;
            }
            connect(vmm, links).await?;
            let start = Call::Action(Action::InstanceStart);
            let started = client.call(&start, ANSWER).await;
            started.map_err(io::Error::other)?;
            vmm.runs();
        }
        Beginning::Restore(restoring) => go_on(vmm, *restoring, links),
    }
    Ok(())
}

/// Has its guest go on as soon as its state has come. What fails from here on is told by its end.
pub(super) fn go_on(vmm: &Arc<FirecrackerVmm>, restoring: Restoring, links: Links) {
    let vmm = Arc::clone(vmm);
    // Its end waits for what is said here.
    let done = vmm.goes_on();
    tokio::spawn(async move {
        if let Err(error) = restore(&vmm, restoring, links).await {
            vmm.fail(&error);
        }
        drop(done);
    });
}

/// Connects a VM's links, whose TAPs the VMM has open.
async fn connect(vmm: &FirecrackerVmm, mut links: Links) -> io::Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    let connected = tokio::task::spawn_blocking(move || links.connect().map(|()| links)).await;
    vmm.keep(connected.map_err(io::Error::other)??);
    Ok(())
}

/// Waits until the API answers, or the process has ended.
pub(super) async fn come(vmm: &FirecrackerVmm) -> Result<&Client, ClientError> {
    let deadline = Instant::now() + COME;
    let mut pause = LOOK;
    loop {
        let come = async {
            let client = vmm.client()?;
            let version = client.get::<super::api::FirecrackerVersion>(ANSWER).await;
            version.map(|_| client)
        };
        match come.await {
            Err(error @ ClientError::Connect { .. }) => {
                let ended = tokio::time::timeout(pause, vmm.process.wait())
                    .await
                    .is_ok();
                if ended || Instant::now() > deadline {
                    return Err(error);
                }
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            come => return come,
        }
    }
}

/// Reads the state that the guest goes on from, and has it go on.
async fn restore(vmm: &Arc<FirecrackerVmm>, restoring: Restoring, links: Links) -> io::Result<()> {
    let Restoring {
        state,
        files,
        memory,
        size,
        nics,
        shown,
    } = restoring;
    let unpacked = tokio::task::spawn_blocking(move || {
        let [to, memory] = files;
        let has_memory = packing::unpack(&mut File::from(state), &to, &memory)?;
        Ok::<_, io::Error>(has_memory.then_some(memory))
    });
    let unpacked = unpacked.await.map_err(io::Error::other)??;
    let memory = match (memory, unpacked) {
        (Some(memory), _) => memory,
        (None, Some(file)) => {
            check_size(&file, size)?;
            if vmm.tracks() {
                vmm.differs_from(Base::of(file, 0)?);
            }
            MemoryBackend::File(vmm.home.seen(name::MEMORY))
        }
        (None, None) => {
            let why = "it has no memory";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    };
    let has_links = !links.is_empty();
    let load = SnapshotLoad {
        // What it sends before its links are connected would be lost.
        resume_vm: !has_links,
        network_overrides: nics,
        track_dirty_pages: vmm.tracks(),
        ..SnapshotLoad::new(vmm.home.seen(name::STATE), memory)
    };
    let limit = match load.mem_backend {
        MemoryBackend::File(_) => ANSWER,
        MemoryBackend::Uffd(_) => LOAD,
    };
    let client = vmm.client().map_err(io::Error::other)?;
    let loaded = client.call(&Call::SnapshotLoad(load), limit).await;
    loaded.map_err(io::Error::other)?;
    if has_links {
        connect(vmm, links).await?;
        let resumed = client.call(&Call::VmState(VmState::Resumed), ANSWER).await;
        resumed.map_err(io::Error::other)?;
    }
    // It is mapped by now, or served.
    vmm.remove(&[name::STATE, name::MEMORY, name::MEMORY_SERVER])
        .await?;
    for name in &shown {
        vmm.home.hide(name);
    }
    vmm.runs();
    Ok(())
}

/// A mapping of a file that is too short faults long after it was made.
pub(super) fn check_size(file: &File, wanted: u64) -> io::Result<()> {
    let there = file.metadata()?.len();
    if there >= wanted {
        return Ok(());
    }
    let why = MemoryServerError::Short {
        file: there,
        wanted,
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}
