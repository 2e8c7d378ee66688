//! A hypervisor without VMs.
//!
//! It has the API of the real one and keeps its rules, and it speaks to the node over the same
//! sockets with the same frames. What its guests and VMMs do, good or bad, is up to a script.

use aleph_executor::hypervisor::{
    self, AdoptError, BoxFuture, Driver, Launch, LaunchError, Pause, VmmError, VmmExit,
};
use aleph_executor::process::{Identity, ProcessExit, boot_id};
use aleph_guest_proto::{Decoder, Exit, ToGuest, ToHost, Versions};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// What a guest does once its host has said hello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Guest {
    /// It boots, and every command prints its arguments and ends with code 0. `exit N` ends
    /// with code N, `sleep` never ends, `nosuch` is not found.
    #[default]
    Works,
    /// It says nothing.
    Silent,
    /// It sends these bytes instead of its hello, and then nothing.
    Sends(Vec<u8>),
    /// It boots, and sends these bytes as soon as a command is asked for.
    SendsLater(Vec<u8>),
    /// It says that it cannot go on.
    Fatal(String),
}

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
#[derive(Debug, Default)]
pub struct ScriptedDriver {
    scripts: Mutex<VecDeque<Script>>,
}

impl ScriptedDriver {
    /// A driver whose VMs follow these scripts in turn.
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::new(scripts.into_iter().collect()),
        })
    }
}

impl Driver for ScriptedDriver {
    fn name(&self) -> String {
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
        let script = self
            .scripts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
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
            let vmm = ScriptedVmm {
                vmm: script.vmm,
                exit: exit.clone(),
                ended,
            };
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

    fn adopt(&self, _: Identity, _: PathBuf) -> Result<Box<dyn hypervisor::Vmm>, AdoptError> {
        Err(AdoptError::Gone)
    }
}

struct ScriptedVmm {
    vmm: Vmm,
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

    fn quit(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        if self.vmm != Vmm::Deaf {
            end(&self.exit, ProcessExit::Code(0));
        }
        self.obey()
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
}

/// Plays a guest on the agent's socket until it powers off.
async fn serve(listener: &UnixListener, guest: Guest) -> io::Result<()> {
    let (mut socket, _) = listener.accept().await?;
    let mut out = Vec::new();
    let hello = ToHost::Hello {
        versions: Versions::OURS,
        started_us: 1000,
        now_us: 2000,
    };
    let first = match &guest {
        Guest::Silent => return std::future::pending().await,
        Guest::Sends(bytes) => {
            out.extend_from_slice(bytes);
            None
        }
        Guest::Fatal(message) => {
            encode(&hello, 0, &mut out)?;
            Some(ToHost::Fatal {
                errno: 5,
                message: message.as_bytes(),
            })
        }
        Guest::Works | Guest::SendsLater(_) => {
            encode(&hello, 0, &mut out)?;
            Some(ToHost::Ready { now_us: 3000 })
        }
    };
    if let Some(first) = first {
        encode(&first, 0, &mut out)?;
    }
    let fatal = matches!(guest, Guest::Fatal(_));
    socket.write_all(&out).await?;
    if fatal {
        return Ok(());
    }
    answer(socket, &guest).await
}

async fn answer(mut socket: UnixStream, guest: &Guest) -> io::Result<()> {
    let mut decoder = Decoder::new();
    loop {
        let n = socket.read(decoder.space()).await?;
        if n == 0 {
            return Ok(());
        }
        decoder.filled(n);
        let (mut out, mut over) = (Vec::new(), false);
        while let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
            let stream = frame.stream;
            match (ToGuest::decode(&frame).map_err(io::Error::other)?, guest) {
                (ToGuest::Exec(_), Guest::SendsLater(bytes)) => out.extend_from_slice(bytes),
                (ToGuest::Exec(exec), _) => {
                    let argv: Vec<&[u8]> = exec.argv.iter().collect();
                    over |= run(&argv, stream, &mut out)? && exec.main;
                }
                (ToGuest::Ping(number), _) => encode(&ToHost::Pong(number), 0, &mut out)?,
                (ToGuest::Signal(signal), _) => {
                    encode(&ToHost::Exited(Exit::Signal(signal)), stream, &mut out)?;
                    over = true;
                }
                (ToGuest::Shutdown { .. }, _) => over = true,
                _ => {}
            }
        }
        socket.write_all(&out).await?;
        if over {
            return Ok(());
        }
    }
}

/// Plays a command; whether it has ended.
fn run(argv: &[&[u8]], stream: u32, out: &mut Vec<u8>) -> io::Result<bool> {
    if let [b"nosuch", ..] = argv {
        encode(
            &ToHost::Failed {
                errno: 2,
                message: b"nosuch: command not found",
            },
            stream,
            out,
        )?;
        return Ok(true);
    }
    encode(&ToHost::Started { pid: 7 }, stream, out)?;
    let code = match argv {
        [b"sleep", ..] => return Ok(false),
        [b"exit", code] => str::from_utf8(code)
            .ok()
            .and_then(|c| c.parse().ok())
            .unwrap_or(255),
        _ => 0,
    };
    encode(&ToHost::Data(&argv.join(&b' ')), stream, out)?;
    encode(&ToHost::Exited(Exit::Code(code)), stream, out)?;
    Ok(true)
}

fn encode(message: &ToHost<'_>, stream: u32, out: &mut Vec<u8>) -> io::Result<()> {
    message.encode(stream, out).map_err(io::Error::other)
}
