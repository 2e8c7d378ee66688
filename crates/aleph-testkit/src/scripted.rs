//! A hypervisor without VMs.
//!
//! It has the API of the real one and keeps its rules, and it speaks to the node over the same
//! sockets with the same frames. What its guests and VMMs do, good or bad, is up to a script.

use crate::scripted_computers::LaunchedComputer;
use crate::scripted_guest::{Guest, serve};
use aleph_executor::hypervisor::{
    self, AdoptError, BoxFuture, Driver, FullMachines, Launch, LaunchError, Pause, VmmError,
    VmmExit, socket_name,
};
use aleph_executor::process::{Identity, ProcessExit, boot_id};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// What a VMM does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Vmm {
    /// What it is told.
    #[default]
    Works,
    /// It does not start.
    Broken,
    /// It starts and ends at once.
    Dies,
    /// It ignores everything but being killed.
    Deaf,
}

/// One VM's script.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// What its VMM does.
    pub vmm: Vmm,
    /// What its guest does.
    pub guest: Guest,
    /// How long its launch takes.
    pub launch_time: Duration,
}

/// Launches scripted VMs: each takes the next script, and works as it should where none is left.
///
/// Its VMMs outlive the node that launched them: another node over the same driver adopts them
/// by their runtime folder.
#[derive(Debug, Default)]
pub struct ScriptedDriver {
    scripts: Mutex<VecDeque<Script>>,
    /// Whether its VMs can be whole computers.
    computers: bool,
    launched: Mutex<Vec<LaunchedComputer>>,
    vmms: Mutex<HashMap<PathBuf, ScriptedVmm>>,
}

impl ScriptedDriver {
    /// A driver whose VMs follow these scripts in turn.
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::new(scripts.into_iter().collect()),
            ..Self::default()
        })
    }

    /// The same, of a driver that has whole computers too.
    pub fn with_computers(scripts: impl IntoIterator<Item = Script>) -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::new(scripts.into_iter().collect()),
            computers: true,
            ..Self::default()
        })
    }
}

impl ScriptedDriver {
    /// The whole computers that were launched, in order.
    pub fn launched(&self) -> Vec<LaunchedComputer> {
        lock(&self.launched).clone()
    }

    /// Ends all VMMs, as a host that loses power does.
    pub fn end_all(&self) {
        for vmm in lock(&self.vmms).values() {
            end(&vmm.exit, ProcessExit::Signal(9));
        }
    }
}

impl Driver for ScriptedDriver {
    fn name(&self) -> String {
        "scripted".into()
    }

    fn compatibility(&self) -> String {
        "scripted".into()
    }

    fn kernel_arguments(&self) -> String {
        String::new()
    }

    fn wants_uncompressed_kernel(&self) -> bool {
        false
    }

    fn check(&self) -> Result<(), LaunchError> {
        Ok(())
    }

    fn launch(
        &self,
        launch: Launch,
    ) -> BoxFuture<'_, Result<Box<dyn hypervisor::Vmm>, LaunchError>> {
        let script = lock(&self.scripts).pop_front();
        lock(&self.launched).extend(LaunchedComputer::of(&launch));
        Box::pin(async move {
            let script = script.unwrap_or_default();
            tokio::time::sleep(script.launch_time).await;
            if script.vmm == Vmm::Broken {
                return Err(LaunchError::Missing {
                    program: "scripted".into(),
                });
            }
            let io = |source| LaunchError::Io {
                what: "serve the guest".into(),
                source,
            };
            launch.sockets.agent.set_nonblocking(true).map_err(io)?;
            let agent = UnixListener::from_std(launch.sockets.agent).map_err(io)?;
            let (exit, ended) = watch::channel(None);
            let run_dir = launch.run_dir;
            let vmm = ScriptedVmm {
                vmm: script.vmm,
                run_dir: run_dir.clone(),
                exit: exit.clone(),
                ended,
            };
            lock(&self.vmms).insert(run_dir, vmm.clone());
            if script.vmm == Vmm::Dies {
                exit.send_replace(Some(ProcessExit::Code(1)));
            } else {
                // The sockets stay open for as long as the VMM lives.
                let kept = (launch.sockets.control, launch.sockets.console);
                tokio::spawn(async move {
                    let mut over = exit.subscribe();
                    let powered_off = tokio::select! {
                        done = serve(&agent, script.guest) => done.is_ok(),
                        // Killed.
                        () = ended_of(&mut over) => false,
                    };
                    if powered_off && script.vmm != Vmm::Deaf {
                        end(&exit, ProcessExit::Code(0));
                    }
                    ended_of(&mut over).await;
                    drop(kept);
                });
            }
            Ok(Box::new(vmm) as Box<dyn hypervisor::Vmm>)
        })
    }

    fn full(&self) -> Option<&dyn FullMachines> {
        self.computers.then_some(self)
    }

    fn adopt(&self, _: Identity, run_dir: PathBuf) -> Result<Box<dyn hypervisor::Vmm>, AdoptError> {
        let vmm = lock(&self.vmms).get(&run_dir).cloned();
        match vmm.filter(|vmm| vmm.ended.borrow().is_none()) {
            Some(vmm) => Ok(Box::new(vmm)),
            None => Err(AdoptError::Gone),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone)]
struct ScriptedVmm {
    vmm: Vmm,
    run_dir: PathBuf,
    exit: watch::Sender<Option<ProcessExit>>,
    ended: watch::Receiver<Option<ProcessExit>>,
}

impl ScriptedVmm {
    fn obey(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async {
            match self.vmm {
                Vmm::Deaf => Err(VmmError::Silent {
                    command: "scripted",
                }),
                _ => Ok(()),
            }
        })
    }
}

/// Ends a VMM, if it has not ended.
fn end(exit: &watch::Sender<Option<ProcessExit>>, how: ProcessExit) {
    exit.send_if_modified(|exit| {
        let first = exit.is_none();
        if first {
            *exit = Some(how);
        }
        first
    });
}

async fn ended_of(exit: &mut watch::Receiver<Option<ProcessExit>>) {
    // Whoever holds the VMM is gone otherwise, and nobody looks any more.
    let _ = exit.wait_for(Option::is_some).await;
}

impl hypervisor::Vmm for ScriptedVmm {
    fn identity(&self) -> Identity {
        // No process has this number: the kernel's limit is 2²².
        Identity {
            pid: i32::MAX,
            start_time: 0,
            boot_id: boot_id().unwrap_or_default(),
        }
    }

    fn channel(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async {
            let folder = File::open(&self.run_dir)?;
            let path = format!(
                "/proc/self/fd/{}/{}",
                folder.as_raw_fd(),
                socket_name::AGENT
            );
            UnixStream::connect(path).await
        })
    }

    fn quit(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        if self.vmm != Vmm::Deaf {
            end(&self.exit, ProcessExit::Code(0));
        }
        self.obey()
    }

    fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    fn kill(&self) -> Result<(), VmmError> {
        end(&self.exit, ProcessExit::Signal(9));
        Ok(())
    }

    fn wait(&self) -> BoxFuture<'_, VmmExit> {
        Box::pin(async {
            let mut ended = self.ended.clone();
            let exit = ended
                .wait_for(Option::is_some)
                .await
                .map_or(ProcessExit::Unknown, |exit| {
                    exit.unwrap_or(ProcessExit::Unknown)
                });
            VmmExit {
                exit,
                stderr: String::new(),
            }
        })
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }
}

impl Pause for ScriptedVmm {
    fn pause(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        self.obey()
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        self.obey()
    }

    fn is_paused(&self) -> BoxFuture<'_, Result<bool, VmmError>> {
        Box::pin(async { Ok(false) })
    }
}
