//! Processes that are launched before it is known what for.
//!
//! A process is started with all that does not depend on its guest: its user, its group, its sandbox,
//! its sockets. Then it waits ([`super::late`] says how). What is left to do for a guest is to show it
//! the guest's files and to have it make its machine.
//!
//! Files are shown as hard links in the process's folder, made of the open files, so that no path
//! can lead elsewhere meanwhile. They are taken away again as soon as it has opened them: a process
//! never sees a file of another guest than its own.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | it ends while it starts, or does not greet in time | [`LaunchError::Restore`], with what it said |
//! | it has died since, or refuses a command | the same, of [`Waiting::begin`] |
//! | a file is on another filesystem, or has no name any more | [`LaunchError::Late`] |
//! | the process's user may not open a file | the same, before QEMU is told anything |
//! | we are killed while files are shown | links stay in the folder, and go with it |

use super::argv::{Begin, Machine, Ram, argv};
use super::block::Drive;
use super::driver::{Program, QemuDriver, QemuVmm};
use super::late::{self, Command, MEMORY};
use crate::hypervisor::{
    Ahead, AheadLaunch, BoxFuture, Late, LaunchError, Shape, Vmm, VmmError, Waiting,
};
use crate::process::path_of_file;
use rustix::fs::{AtFlags, CWD};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// The hardware address that each network device has until its state comes, which brings another.
const ANY_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

impl Ahead for QemuDriver {
    fn launch(&self, launch: AheadLaunch) -> BoxFuture<'_, Result<Box<dyn Waiting>, LaunchError>> {
        Box::pin(async move {
            let driver = self.again();
            let started = tokio::task::spawn_blocking(move || driver.start_ahead(launch)).await;
            let waiting = started.map_err(|join| LaunchError::Io {
                what: "start QEMU".into(),
                source: io::Error::other(join),
            })??;
            // From its greeting on it takes commands.
            if let Err(error) = waiting.vmm.qmp().await {
                return Err(waiting.vmm.end(error.to_string()).await);
            }
            Ok(Box::new(waiting) as Box<dyn Waiting>)
        })
    }
}

impl QemuDriver {
    fn start_ahead(&self, launch: AheadLaunch) -> Result<QemuAhead, LaunchError> {
        let qemu = self.probe()?;
        let shape = launch.shape;
        let disks = shape.disks.iter();
        let disks: Vec<_> = disks
            .map(|(serial, read_only)| Drive::raw(serial, *read_only))
            .collect();
        let nics = vec![(ANY_MAC, 1); shape.nics];
        let argv = argv(&Machine {
            vm: launch.vm,
            accelerator: self.accelerator(),
            resources: shape.resources,
            begin: Begin::Ahead,
            ram: Ram::Private,
            disks: &disks,
            nics: &nics,
            links: &shape.links,
        });
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| LaunchError::Io { what, source }
        };
        if launch.queues.len() != shape.nics || launch.links.len() != shape.links.len() {
            return Err(io("give a VMM the queues and links of its shape")(
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        let folder = launch.folder.try_clone().map_err(io("keep a folder"))?;
        let mut files: Vec<OwnedFd> = vec![
            launch.sockets.control.into(),
            launch.sockets.agent.into(),
            launch.sockets.console.into(),
            launch.state,
            launch.folder,
        ];
        files.extend(launch.queues);
        files.extend(launch.links);
        let vmm = self.spawn(
            &qemu,
            Program {
                argv,
                files,
                run_dir: launch.run_dir,
                cgroup: launch.cgroup,
                user: launch.user,
                memory_in_file: true,
                locked_memory: None,
                full: None,
            },
        )?;
        Ok(QemuAhead {
            vmm: Arc::new(vmm),
            shape,
            folder,
            is_other_user: launch.user.is_some(),
        })
    }
}

/// A QEMU that waits.
#[derive(Debug)]
struct QemuAhead {
    vmm: Arc<QemuVmm>,
    shape: Shape,
    folder: OwnedFd,
    is_other_user: bool,
}

impl Waiting for QemuAhead {
    fn vmm(&self) -> Arc<dyn Vmm> {
        Arc::clone(&self.vmm) as _
    }

    fn begin(self: Box<Self>, late: Late) -> BoxFuture<'static, Result<(), LaunchError>> {
        Box::pin(async move {
            self.show(&late)?;
            crate::failpoint::pass("process.begin", "shown");
            let opened = self.tell(late::files(&self.shape)).await;
            self.hide(&late);
            let begun = async {
                opened?;
                self.tell(late::rest(&self.shape)).await?;
                self.vmm.expect_state().await
            };
            match begun.await {
                Ok(()) => Ok(()),
                Err(why) => Err(self.vmm.end(why.to_string()).await),
            }
        })
    }
}

impl QemuAhead {
    async fn tell(&self, commands: Vec<Command>) -> Result<(), VmmError> {
        for (command, arguments) in commands {
            self.vmm.command_with(command, arguments).await?;
        }
        Ok(())
    }

    /// Links a guest's files into the folder, all or none of them.
    fn show(&self, late: &Late) -> Result<(), LaunchError> {
        let shown = files(late).try_for_each(|(name, file, is_written)| {
            self.link(name, file, is_written)
                .map_err(|source| LaunchError::Late {
                    what: name.to_owned(),
                    source,
                })
        });
        if shown.is_err() {
            self.hide(late);
        }
        shown
    }

    fn link(&self, name: &str, file: &File, is_written: bool) -> io::Result<()> {
        let needed = if is_written { 0o006 } else { 0o004 };
        let mode = rustix::fs::fstat(file)?.st_mode;
        if self.is_other_user && mode & needed != needed {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let open = path_of_file(file.as_fd().as_raw_fd());
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(CWD, open, &self.folder, name, follow)?)
    }

    /// Takes them away. What cannot be goes with the folder.
    fn hide(&self, late: &Late) {
        for (name, ..) in files(late) {
            let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}

/// A guest's files, the name of each, and whether QEMU opens it for writing: the memory too, though
/// nothing is written to it.
fn files(late: &Late) -> impl Iterator<Item = (&str, &File, bool)> {
    let disks = late.disks.iter();
    let disks = disks.map(|disk| (disk.serial.as_ref(), &disk.file, !disk.read_only));
    [(MEMORY, &late.memory, true)].into_iter().chain(disks)
}
