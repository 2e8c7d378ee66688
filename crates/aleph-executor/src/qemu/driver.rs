//! QEMU behind the hypervisor seam.

use super::argv::{Begin, Machine, Ram, argv, state_uri};
use super::block::{self, Drive};
use super::control::{ANSWER, Control};
use super::machine::{FirmwareFiles, Full};
use super::probe::{self, MICROVM, Qemu};
use super::qmp::{Qmp, QmpError};
use crate::accel::Accelerator;
use crate::cgroup::Cgroup;
use crate::drivers::{QEMU, Signature};
use crate::hypervisor::{
    self, AdoptError, Ahead, Balloon, BoxFuture, Display, Driver, FullMachines, GuestPort, Hotplug,
    Launch, LaunchError, LiveDisks, Memory, Pause, Power, Snapshot, Start, Vmm, VmmError, VmmExit,
    socket_name,
};
use crate::process::{Identity, Process, Spawn, allow_locked_memory, is_world_readable};
use crate::tail::Tail;
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;

/// What only an emulated guest's kernel is told:
/// - `mitigations=off`: what keeps a processor from speculating keeps an emulator from nothing, as
///   all jumps of a guest are jumps of the emulator's own. Of them the second page table costs most:
///   each switch throws translated code away, 2 of 9 ms of an exec. Without the rest a hot function
///   looks up 7 % less of translated code.
/// - `initcall_blacklist`: does not fill `/sys/kernel/tracing` (100 to 250 ms of a boot, 8 MiB of
///   the VMM's memory). A kernel without one of these functions ignores its name.
const EMULATED: &str =
    " mitigations=off initcall_blacklist=tracer_init_tracefs,trace_eval_init,init_kprobe_trace";

/// How QEMU is to be used.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The program, by name or by path.
    pub program: PathBuf,
    /// What runs the guests' instructions.
    pub accelerator: Accelerator,
    /// Frequency of the host's time stamp counter in kHz, where it is known.
    pub tsc_khz: Option<u64>,
    /// Where the answer of the probe is kept.
    pub cache: PathBuf,
}

/// Starts QEMU's `microvm` machines, and whole computers.
#[derive(Debug)]
pub struct QemuDriver {
    config: QemuConfig,
    firmware: FirmwareFiles,
}

impl QemuDriver {
    /// A driver of this configuration. QEMU is looked for when it is first needed.
    #[must_use]
    pub fn new(config: QemuConfig) -> Self {
        let firmware = FirmwareFiles::default();
        Self { config, firmware }
    }

    /// The same, with firmware from elsewhere.
    #[must_use]
    pub fn with_firmware(self, firmware: FirmwareFiles) -> Self {
        Self { firmware, ..self }
    }

    /// What the configured program is.
    ///
    /// # Errors
    /// Where it is missing, or is no QEMU.
    pub fn probe(&self) -> Result<Qemu, LaunchError> {
        probe::probe(&self.config.program, &self.config.cache)
    }

    fn start(&self, mut launch: Launch) -> Result<QemuVmm, LaunchError> {
        if let hypervisor::Machine::Full(machine) = std::mem::take(&mut launch.machine) {
            return self.start_full(launch, *machine);
        }
        let qemu = self.probe()?;
        let signed = Signature::of(QEMU).write(&launch.run_dir);
        signed.map_err(|source| LaunchError::Io {
            what: "sign for the VMM".into(),
            source,
        })?;
        let disks: Vec<Drive<'_>> = launch
            .disks
            .iter()
            .map(Drive::of)
            .collect::<Result<_, _>>()?;
        let nics: Vec<_> = launch
            .nics
            .iter()
            .map(|nic| (nic.mac, nic.queues.len()))
            .collect();
        let links: Vec<_> = launch.links.iter().map(|link| link.mac).collect();
        if nics.iter().any(|(_, queues)| *queues == 0) {
            return Err(LaunchError::Io {
                what: "give the VM a network device without a queue".into(),
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| LaunchError::Io { what, source }
        };
        let mut files: Vec<OwnedFd> = vec![
            launch.sockets.control.into(),
            launch.sockets.agent.into(),
            launch.sockets.console.into(),
        ];
        let command_line;
        let begin = match launch.start {
            Start::Boot(boot) => {
                files.push(readable(boot.kernel).map_err(io("hand the kernel over"))?);
                files.push(readable(boot.initrd).map_err(io("hand the initramfs over"))?);
                command_line = boot.command_line;
                Begin::Boot(&command_line)
            }
            Start::Firmware => {
                return Err(LaunchError::Unsupported {
                    vmm: "QEMU's microvm machine",
                    what: "firmware that boots from disks",
                });
            }
            Start::Restore { state } => {
                files.push(state);
                Begin::Restore
            }
        };
        let (ram, memory) = match launch.memory {
            Memory::Own => (Ram::Own, None),
            Memory::Template(file) => (Ram::Shared, Some(file)),
            Memory::Clone(file) => (Ram::Private, Some(file)),
        };
        let argv = argv(&Machine {
            vm: launch.vm,
            accelerator: self.config.accelerator,
            resources: launch.resources,
            begin,
            ram,
            disks: &disks,
            nics: &nics,
            links: &links,
        });
        drop(disks);
        files.extend(launch.disks.into_iter().flat_map(block::files));
        files.extend(launch.nics.into_iter().flat_map(|nic| nic.queues));
        files.extend(launch.links.into_iter().map(|link| link.socket));
        files.extend(memory.map(OwnedFd::from));
        self.spawn(
            &qemu,
            Program {
                argv,
                files,
                run_dir: launch.run_dir,
                cgroup: launch.cgroup,
                user: launch.user,
                memory_in_file: ram != Ram::Own,
                locked_memory: None,
                full: None,
            },
        )
    }

    pub(super) fn accelerator(&self) -> Accelerator {
        self.config.accelerator
    }

    pub(super) fn firmware(&self) -> &FirmwareFiles {
        &self.firmware
    }

    /// Another one of the same, for a thread that may block.
    pub(super) fn again(&self) -> Self {
        Self::new(self.config.clone()).with_firmware(self.firmware.clone())
    }

    /// Starts QEMU's process.
    pub(super) fn spawn(&self, qemu: &Qemu, program: Program) -> Result<QemuVmm, LaunchError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| LaunchError::Io { what, source }
        };
        let mut command = Command::new(&qemu.program);
        command.args(program.argv).env_clear().current_dir("/");
        if let Some(bytes) = program.locked_memory {
            allow_locked_memory(&mut command, bytes);
        }
        let (tail, stderr) = Tail::new().map_err(io("make a pipe"))?;
        let device_group = match self.config.accelerator {
            // Never root's group; where the device is everybody's, none is needed.
            Accelerator::Kvm => std::fs::metadata("/dev/kvm")
                .ok()
                .filter(|m| m.mode() & 0o006 != 0o006 && m.gid() != 0)
                .map(|m| m.gid()),
            Accelerator::Tcg => None,
        };
        let process = Process::spawn(Spawn {
            command,
            files: program.files,
            user: program.user,
            device_group,
            cgroup: program.cgroup,
            stdout: None,
            stderr,
        })
        .map_err(io(&format!("start {}", qemu.program.display())))?;
        Ok(QemuVmm {
            process,
            control: Control::new(program.run_dir.clone(), program.full.is_some()),
            run_dir: program.run_dir,
            tail: Some(tail),
            memory_in_file: program.memory_in_file,
            full: program.full,
        })
    }
}

/// What QEMU's process is started with.
pub(super) struct Program {
    pub(super) argv: Vec<String>,
    pub(super) files: Vec<OwnedFd>,
    pub(super) run_dir: PathBuf,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) user: Option<u32>,
    /// Whether the guest's memory is in a file, or will be.
    pub(super) memory_in_file: bool,
    /// How many bytes it may keep in memory for good, where that is more than we may.
    pub(super) locked_memory: Option<u64>,
    /// What it has where it is a whole computer.
    pub(super) full: Option<Full>,
}

/// A descriptor whose file QEMU can open again under another user: QEMU takes kernels by path
/// only, so a file that is private to us is copied into anonymous memory first.
pub(super) fn readable(file: File) -> io::Result<OwnedFd> {
    if is_world_readable(&file)? {
        return Ok(file.into());
    }
    let copy = File::from(rustix::fs::memfd_create("boot", MemfdFlags::CLOEXEC)?);
    io::copy(&mut &file, &mut &copy)?;
    rustix::fs::fchmod(&copy, rustix::fs::Mode::from_raw_mode(0o444))?;
    Ok(copy.into())
}

impl Driver for QemuDriver {
    fn name(&self) -> String {
        format!("{QEMU}/{}", self.config.accelerator)
    }

    fn compatibility(&self) -> String {
        let version = self.probe().map(|qemu| qemu.version).unwrap_or_default();
        let processor = match self.config.accelerator {
            Accelerator::Tcg => super::argv::TCG_CPU.to_owned(),
            // The guest sees the host's own.
            Accelerator::Kvm => crate::host::cpu_flags(),
        };
        format!("{} {version} {MICROVM} {processor}", self.name())
    }

    fn kernel_arguments(&self) -> String {
        let mut arguments = "console=ttyS0".to_owned();
        if self.config.accelerator == Accelerator::Tcg {
            arguments.push_str(EMULATED);
            if let Some(khz) = self.config.tsc_khz {
                // The emulated machine has no timer to calibrate the counter against: without
                // this, boots hang at random.
                arguments.push_str(&format!(" tsc_early_khz={khz}"));
                // It is the host's counter, read anew each time. The guest's kernel would hold
                // it against its own ticks, which come late on a busy host, and give it up: for
                // a clock that goes as slow as they do, and 250 ticks a second for ever.
                arguments.push_str(" tsc=reliable");
            }
        }
        arguments
    }

    fn wants_uncompressed_kernel(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), LaunchError> {
        let kvm = crate::host::virtualisation().device;
        if self.config.accelerator == Accelerator::Kvm && kvm != crate::accel::Device::Opens {
            return Err(LaunchError::Accelerator(Accelerator::Kvm));
        }
        self.probe()?.require(MICROVM)
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<Box<dyn Vmm>, LaunchError>> {
        Box::pin(async move {
            let driver = self.again();
            let restores = matches!(launch.start, Start::Restore { .. });
            // Asking QEMU what it is and forking both block.
            let started = tokio::task::spawn_blocking(move || driver.start(launch)).await;
            let vmm = started.map_err(|join| LaunchError::Io {
                what: "start QEMU".into(),
                source: io::Error::other(join),
            })??;
            if restores && let Err(why) = vmm.expect_state().await {
                return Err(vmm.end(why.to_string()).await);
            }
            Ok(Box::new(vmm) as Box<dyn Vmm>)
        })
    }

    fn adopt(&self, identity: Identity, run_dir: PathBuf) -> Result<Box<dyn Vmm>, AdoptError> {
        let process = match Process::adopt(&identity) {
            Ok(process) => process,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                super::machine::bury(&run_dir);
                return Err(AdoptError::Gone);
            }
            Err(error) => return Err(error.into()),
        };
        let full = Full::adopt(&run_dir)?;
        Ok(Box::new(QemuVmm {
            process,
            control: Control::new(run_dir.clone(), full.is_some()),
            run_dir,
            full,
            tail: None,
            // Only functions' guests have their memory in a file, and those are never adopted.
            memory_in_file: false,
        }))
    }

    fn ahead(&self) -> Option<&dyn Ahead> {
        let can_wait = self.probe().is_ok_and(|qemu| qemu.preconfig);
        can_wait.then_some(self)
    }

    fn full(&self) -> Option<&dyn FullMachines> {
        Some(self)
    }
}

/// A running QEMU.
#[derive(Debug)]
pub(super) struct QemuVmm {
    process: Process,
    /// The folder with its sockets.
    pub(super) run_dir: PathBuf,
    /// Its standard error; an adopted one's goes nowhere.
    tail: Option<Tail>,
    memory_in_file: bool,
    /// What it has where it is a whole computer.
    pub(super) full: Option<Full>,
    /// Connected at the first command: a microVM's boot needs none.
    control: Arc<Control>,
}

impl QemuVmm {
    pub(super) async fn qmp(&self) -> Result<Arc<Qmp>, QmpError> {
        self.control.qmp().await
    }

    /// Ends one that does not go on from a snapshot.
    pub(super) async fn end(&self, why: String) -> LaunchError {
        let _ = self.process.kill();
        let said = self.wait().await.to_string();
        LaunchError::Restore { why, said }
    }

    pub(super) async fn command(&self, command: &'static str) -> Result<Value, VmmError> {
        self.command_with(command, json!({})).await
    }

    pub(super) async fn command_with(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, VmmError> {
        self.command_within(command, arguments, ANSWER).await
    }

    /// The same, for what may take longer.
    pub(super) async fn command_within(
        &self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, VmmError> {
        let told = async { self.qmp().await?.execute(command, arguments, limit).await };
        Self::told(command, told.await)
    }

    /// Gives QEMU a descriptor with a command.
    pub(super) async fn hand_over(
        &self,
        command: &'static str,
        arguments: Value,
        fd: OwnedFd,
    ) -> Result<Value, VmmError> {
        let handed = async {
            let qmp = self.qmp().await?;
            qmp.hand_over(command, arguments, fd, ANSWER).await
        };
        Self::told(command, handed.await)
    }

    /// Waits for the end of its process.
    pub(super) async fn ended(&self) {
        self.process.wait().await;
    }

    /// Says whether the memory is in the state that is written or read.
    async fn leave_memory_out(&self) -> Result<(), VmmError> {
        let capability = json!({ "capability": "x-ignore-shared", "state": self.memory_in_file });
        let capabilities = json!({ "capabilities": [capability] });
        self.command_with("migrate-set-capabilities", capabilities)
            .await
            .map(drop)
    }

    /// Has it read the state that it goes on from.
    pub(super) async fn expect_state(&self) -> Result<(), VmmError> {
        self.leave_memory_out().await?;
        let uri = json!({ "uri": state_uri() });
        self.command_with("migrate-incoming", uri).await.map(drop)
    }

    fn told(command: &'static str, told: Result<Value, QmpError>) -> Result<Value, VmmError> {
        match told {
            Ok(answer) => Ok(answer),
            // An ending QEMU closes the connection instead of answering.
            Err(QmpError::Broken(_)) if command == "quit" => Ok(json!({})),
            Err(QmpError::Silent) => Err(VmmError::Silent { command }),
            Err(QmpError::Io(error)) => Err(error.into()),
            // It may have been carried out before that.
            Err(QmpError::Broken(why)) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, why).into())
            }
            Err(refused) => Err(VmmError::Refused {
                command,
                why: refused.to_string(),
            }),
        }
    }
}

impl Vmm for QemuVmm {
    fn identity(&self) -> Identity {
        self.process.identity().clone()
    }

    /// QEMU takes it before the guest runs, and what is said waits for the guest.
    fn channel(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async { crate::socket::connect(&self.run_dir.join(socket_name::AGENT)).await })
    }

    fn quit(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async { self.command("quit").await.map(drop) })
    }

    fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    fn kill(&self) -> Result<(), VmmError> {
        Ok(self.process.kill()?)
    }

    fn wait(&self) -> BoxFuture<'_, VmmExit> {
        Box::pin(async {
            let exit = self.process.wait().await;
            let stderr = self.tail.as_ref().map(Tail::text).unwrap_or_default();
            let mut exit = VmmExit { exit, stderr };
            if let Some(full) = &self.full {
                full.end(&mut exit).await;
                self.control.hear_out().await;
            }
            exit
        })
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn snapshot(&self) -> Option<&dyn Snapshot> {
        // Nothing goes on from one of a whole computer.
        self.full.is_none().then_some(self as _)
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        self.full.is_some().then_some(self as _)
    }

    fn power(&self) -> Option<&dyn Power> {
        self.full.is_some().then_some(self as _)
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        self.full.is_some().then_some(self as _)
    }

    fn live_disks(&self) -> Option<&dyn LiveDisks> {
        self.full.is_some().then_some(self as _)
    }

    fn guest_port(&self) -> Option<&dyn GuestPort> {
        let has_port = self.full.as_ref().and_then(Full::guest_port).is_some();
        has_port.then_some(self as _)
    }

    fn display(&self) -> Option<&dyn Display> {
        let has_display = self.full.as_ref().is_some_and(Full::has_display);
        has_display.then_some(self as _)
    }

    fn impairment(&self) -> Option<String> {
        if self.control.told().is_disk_full {
            return Some("it stands still, as a disk of it has no more room on the host".into());
        }
        self.full.as_ref().and_then(Full::impairment)
    }

    fn ended_by_guest(&self) -> Option<bool> {
        self.control.told().ended_by_guest
    }
}

/// The name of the descriptor that a state goes to.
const STATE: &str = "state";

/// How often it is looked whether a state is written.
const LOOK: Duration = Duration::from_millis(2);

/// How long writing one may take: a guest's whole memory may be in it.
const SAVE: Duration = Duration::from_secs(600);

impl Snapshot for QemuVmm {
    fn save(&self, state: File) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            let name = json!({ "fdname": STATE });
            self.hand_over("getfd", name, state.into()).await?;
            self.leave_memory_out().await?;
            // There is no other guest's traffic to go easy on.
            let parameters = json!({ "max-bandwidth": i64::MAX });
            self.command_with("migrate-set-parameters", parameters)
                .await?;
            let uri = json!({ "uri": format!("fd:{STATE}") });
            self.command_with("migrate", uri).await?;
            let written = tokio::time::timeout(SAVE, async {
                loop {
                    let now = self.command("query-migrate").await?;
                    match now["status"].as_str() {
                        Some("completed") => return Ok(()),
                        Some("failed" | "cancelled") => {
                            let why = now["error-desc"].as_str().unwrap_or("it failed");
                            return Err(VmmError::Refused {
                                command: "migrate",
                                why: crate::console::visible(why),
                            });
                        }
                        _ => tokio::time::sleep(LOOK).await,
                    }
                }
            });
            let silent = VmmError::Silent { command: "migrate" };
            written.await.unwrap_or(Err(silent))
        })
    }

    fn cancel(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            self.command("migrate_cancel").await?;
            let given_up = tokio::time::timeout(ANSWER, async {
                loop {
                    let now = self.command("query-migrate").await?;
                    match now["status"].as_str() {
                        // Nothing was ever begun, or it is over.
                        None | Some("none" | "completed" | "failed" | "cancelled") => return Ok(()),
                        _ => tokio::time::sleep(LOOK).await,
                    }
                }
            });
            let command = "migrate_cancel";
            given_up.await.unwrap_or(Err(VmmError::Silent { command }))
        })
    }
}

impl Pause for QemuVmm {
    fn pause(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async { self.command("stop").await.map(drop) })
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async { self.command("cont").await.map(drop) })
    }

    fn is_paused(&self) -> BoxFuture<'_, Result<bool, VmmError>> {
        Box::pin(async {
            let status = self.command("query-status").await?;
            // One that was written down says so as long as it stands still.
            let status = status.get("status").and_then(|s| s.as_str());
            Ok(matches!(
                status,
                Some("paused" | "postmigrate" | "finish-migrate")
            ))
        })
    }
}
