//! Processes that are launched before it is known what for.
//!
//! | by the launch | by [`Waiting::begin`] |
//! | --- | --- |
//! | the jail and its user, the group, the network namespace, limits, the API | the guest's files, its TAPs, its memory server |
//!
//! What cannot come late is decided by the launch. A process is in one network namespace for its life: in
//! ours where its guests have TAPs, which the node opens here, else in that of its first link. Its user is
//! the jail's, to whom late TAPs are given. Mounts that are made once the jailer has run are not seen in
//! the jail: so files come by hard links, into the jail or into [`AheadLaunch::folder`], and are taken away
//! again once the guest is loaded. How long a file it may write is limited where all disks that it will
//! have are read-only, as functions' are: the jailer sets that limit.
//!
//! The names that a snapshot has for its drives lead to them in either way of launching.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | it ends while it starts, or its API does not come | [`LaunchError::Restore`], with what it said; its jail goes |
//! | it dies while it waits | its end says how, and its jail goes, as with any VMM; [`Waiting::begin`] fails with [`LaunchError::Restore`] |
//! | it is given up | whoever has it kills it: the same |
//! | a file is on another filesystem, or has no name any more | [`LaunchError::Late`] |
//! | a file of another shape, or a TAP elsewhere | [`LaunchError::Io`], [`NicError`](super::NicError) |
//! | it does not load what it is given | its end says why, as of any guest that goes on |
//! | the daemon is killed meanwhile | the next one sweeps its place: group, jail and user, folder of files |

use super::api::MemoryBackend;
use super::beginning::{Restoring, come, go_on};
use super::driver::{DriverConfig, FirecrackerDriver};
use super::home::{Use, name};
use super::link::Links;
use super::memory::{MemoryMode, MemoryServer, Serve};
use super::nic::{Nics, Owner};
use super::preparation::{Means, Spawning, base_of, give_up, io, sign, snapshot_files, spawn};
use super::program::{Program, Programs};
use super::quarters::{Housing, Quarters};
use super::vmm::FirecrackerVmm;
use crate::cgroup::Cgroup;
use crate::hypervisor::{
    Ahead, AheadLaunch, BoxFuture, Late, LaunchError, Link, Nic, Shape, Vmm, Waiting,
};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

/// The name of the memory that a guest goes on from.
const MEMORY: &str = "template";

/// The hardware address of a network device whose guest has brought its own.
const ANY_MAC: [u8; 6] = [0; 6];

impl Ahead for FirecrackerDriver {
    fn launch(&self, launch: AheadLaunch) -> BoxFuture<'_, Result<Box<dyn Waiting>, LaunchError>> {
        Box::pin(async move {
            let (programs, housing, settings) = self.parts();
            let started =
                tokio::task::spawn_blocking(move || start(&programs, &housing, settings, launch));
            let waiting = started.await.map_err(|join| LaunchError::Io {
                what: "start Firecracker".into(),
                source: io::Error::other(join),
            })??;
            // From its first answer on it takes a snapshot.
            answers(&waiting.vmm).await?;
            Ok(Box::new(waiting) as Box<dyn Waiting>)
        })
    }
}

/// Waits until it answers. One that does not is ended.
async fn answers(vmm: &Arc<FirecrackerVmm>) -> Result<(), LaunchError> {
    let Err(error) = come(vmm).await else {
        return Ok(());
    };
    let _ = vmm.kill();
    Err(LaunchError::Restore {
        why: error.to_string(),
        said: vmm.wait().await.to_string(),
    })
}

/// A Firecracker that waits.
#[derive(Debug)]
struct FirecrackerAhead {
    vmm: Arc<FirecrackerVmm>,
    settings: Arc<DriverConfig>,
    shape: Shape,
    /// Where the state comes from, and where it is put.
    state: OwnedFd,
    files: [File; 2],
    queues: Vec<OwnedFd>,
    links: Vec<Link>,
    owner: Owner,
    /// Where a memory server is to listen.
    listener: Option<UnixListener>,
    run_dir: PathBuf,
    cgroup: Option<Cgroup>,
}

fn start(
    programs: &Programs,
    housing: &Housing,
    settings: Arc<DriverConfig>,
    launch: AheadLaunch,
) -> Result<FirecrackerAhead, LaunchError> {
    let shape = &launch.shape;
    if launch.queues.len() != shape.nics || launch.links.len() != shape.links.len() {
        return Err(io("give a VMM the queues and links of its shape")(
            io::ErrorKind::InvalidInput.into(),
        ));
    }
    let program = programs.find()?;
    let run_dir = launch.run_dir.clone();
    let quarters = Quarters::make(housing, launch.vm, &run_dir, &program.path, launch.user)?;
    let jail = quarters.home.jailed();
    let started = start_in(quarters, (housing, &program), settings, launch);
    if started.is_err() {
        give_up(None, jail);
    }
    started
}

fn start_in(
    mut quarters: Quarters,
    (housing, program): (&Housing, &Program),
    settings: Arc<DriverConfig>,
    launch: AheadLaunch,
) -> Result<FirecrackerAhead, LaunchError> {
    sign(&quarters, program, &launch.run_dir)?;
    let (owner, shape) = (quarters.owner(launch.vm), launch.shape);
    let namespace = Nics::place_ahead(shape.nics, &launch.links, owner)?;
    let names = shape.disks.iter().map(|(serial, _)| *serial);
    let expected = quarters.expect_late(launch.folder, names);
    expected.map_err(io("prepare for files that come late"))?;
    let files = snapshot_files(&quarters)?;
    let listener = match settings.memory {
        MemoryMode::File => None,
        MemoryMode::Userfaultfd { .. } => {
            let listener = quarters.home.listen(name::MEMORY_SERVER);
            Some(listener.map_err(io("listen for the guest's memory"))?)
        }
    };
    // How long a disk will be that it writes to nobody knows yet.
    let is_known = shape.disks.iter().all(|(_, read_only)| *read_only);
    let spawning = Spawning {
        longest_file: is_known.then(|| quarters.longest_file(shape.resources.memory)),
        means: Means {
            housing,
            program,
            settings: &settings,
        },
        vm: launch.vm,
        run_dir: &launch.run_dir,
        console: launch.sockets.console,
        cgroup: launch.cgroup.clone(),
    };
    let vmm = FirecrackerVmm::new(spawn(quarters, spawning, namespace)?);
    let links = launch.links.into_iter().zip(&shape.links);
    let links = links.map(|(socket, mac)| Link { mac: *mac, socket });
    Ok(FirecrackerAhead {
        vmm: Arc::new(vmm),
        settings,
        links: links.collect(),
        shape,
        state: launch.state,
        files,
        queues: launch.queues,
        owner,
        listener,
        run_dir: launch.run_dir,
        cgroup: launch.cgroup,
    })
}

impl Waiting for FirecrackerAhead {
    fn vmm(&self) -> Arc<dyn Vmm> {
        Arc::new(Arc::clone(&self.vmm))
    }

    fn begin(self: Box<Self>, late: Late) -> BoxFuture<'static, Result<(), LaunchError>> {
        Box::pin(async move {
            let vmm = Arc::clone(&self.vmm);
            // Devices and a process are made.
            let given = tokio::task::spawn_blocking(move || self.give(late)).await;
            let given = given.map_err(|join| LaunchError::Io {
                what: "give a VMM its guest".into(),
                source: io::Error::other(join),
            })??;
            // One that has died meanwhile is told from one that does not go on.
            answers(&vmm).await?;
            go_on(&vmm, given.restoring, given.links);
            Ok(())
        })
    }
}

/// What a guest has that was not there when its process was launched.
struct Given {
    restoring: Restoring,
    links: Links,
}

impl FirecrackerAhead {
    fn give(self, late: Late) -> Result<Given, LaunchError> {
        let Late { memory, disks } = late;
        let there = disks
            .iter()
            .map(|disk| (disk.serial.as_ref(), disk.read_only));
        if !there.eq(self.shape.disks.iter().copied()) {
            return Err(io("give a VMM the disks of its shape")(
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        let size = u64::from(self.shape.resources.memory.0) << 20;
        if let Some(base) = base_of(&memory, size, &self.settings)? {
            self.vmm.differs_from(base);
        }
        let nics = self.queues.into_iter().map(|queue| Nic {
            mac: ANY_MAC,
            queues: vec![queue],
        });
        let nics = Nics::of(nics.collect(), self.links, self.owner)?;
        if !nics.are_where_they_were_to_be() {
            return Err(io("open a TAP in another network namespace")(
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        let home = &self.vmm.home;
        let mut shown = Vec::with_capacity(disks.len() + 1);
        let mut show = |name: &str, file: &File, how| {
            let path = home.show(name, file, how);
            let path = path.map_err(|source| LaunchError::Late {
                what: name.to_owned(),
                source,
            })?;
            shown.push(name.to_owned());
            Ok::<_, LaunchError>(path)
        };
        for disk in &disks {
            let how = if disk.read_only {
                Use::Shared
            } else {
                Use::Own
            };
            show(&disk.serial, &disk.file, how)?;
        }
        let backend = match (&self.settings.memory, self.listener) {
            (
                MemoryMode::Userfaultfd {
                    server: program,
                    prefetch,
                },
                Some(listener),
            ) => {
                let server = MemoryServer::start(Serve {
                    program,
                    prefetch: *prefetch,
                    listener,
                    memory,
                    run_dir: &self.run_dir,
                    user: self.owner.user,
                    cgroup: self.cgroup,
                });
                // Whatever fails from here on, and whoever waits for it, it ends with its VMM.
                let server = server.map_err(io("start the memory server"))?;
                self.vmm.is_served_by(server);
                MemoryBackend::Uffd(home.seen(name::MEMORY_SERVER))
            }
            _ => MemoryBackend::File(show(MEMORY, &memory, Use::Shared)?),
        };
        crate::failpoint::pass("process.begin", "shown");
        let overrides = nics.overrides();
        Ok(Given {
            restoring: Restoring {
                state: self.state,
                files: self.files,
                memory: Some(backend),
                size,
                nics: overrides,
                shown,
            },
            links: nics.apart().1,
        })
    }
}
