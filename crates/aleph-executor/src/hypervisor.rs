//! The seam between a VM's life and the program that runs it.
//!
//! A [`Driver`] has a small core: it launches a VMM, or adopts one that an earlier process left
//! running, and the [`Vmm`] that it returns can be told to quit, killed and waited for.
//! Everything beyond that is a facet, which a driver has or has not: [`Vmm::pause`] returns
//! `None` where the VMM cannot freeze its guest, and whoever wants it is refused beforehand.
//! No facet exists that silently succeeds.
//!
//! A driver knows nothing of jobs, images or the protocol that guest and host speak: it gets
//! open files and listening sockets, and moves bytes.

use crate::accel::Accelerator;
use crate::cgroup::Cgroup;
use crate::firecracker::NicError;
use crate::firecracker::client::advice_of;
use crate::firecracker::jail::JailError;
use crate::process::{Identity, ProcessExit};
use crate::qemu::machine::MachineError;
use aleph_types::{Classify, ErrorClass, MiB, Resources, VmId};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use tokio::net::UnixStream;

mod full;
mod live;

pub(crate) use full::filling;
pub use full::{
    Display, FullMachine, FullMachines, HostDevices, Hotplug, Machine, MachineSize, Power,
};
pub use live::{DiskChain, DiskLayer, GuestPort, LayerOrigin, LiveDisk, LiveDisks};

/// A future that a trait object returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts VMMs of one kind.
pub trait Driver: Send + Sync {
    /// What users see, such as `qemu/tcg`.
    fn name(&self) -> String;

    /// What a snapshot of this VMM's guests depends on, as text: one that was taken where this was
    /// different is not begun from.
    fn compatibility(&self) -> String;

    /// The same for guests of a VMM that runs, by the VM's runtime folder: it may be of another version
    /// than new ones.
    fn compatibility_of(&self, run_dir: &Path) -> String {
        let _ = run_dir;
        self.compatibility()
    }

    /// The part of the kernel command line that this VMM's machine needs.
    fn kernel_arguments(&self) -> String;

    /// Which kernel file this VMM boots fastest.
    fn wants_uncompressed_kernel(&self) -> bool;

    /// How many CPUs a VM can have.
    fn max_cpus(&self) -> u16 {
        u16::MAX
    }

    /// Whether its VMs can have disks in QEMU's format.
    fn takes_chains(&self) -> bool {
        true
    }

    /// How many queues each network device can have.
    fn max_nic_queues(&self) -> usize {
        usize::MAX
    }

    /// Checks that a VMM can be started on this host, before anything is made for it.
    ///
    /// # Errors
    /// What is missing.
    fn check(&self) -> Result<(), LaunchError>;

    /// Makes the two ends of a link to a VM that this driver is to launch.
    ///
    /// # Errors
    /// Where this process may not make what the VMM needs for it.
    fn link(&self) -> BoxFuture<'_, Result<LinkEnds, LaunchError>> {
        Box::pin(async { LinkEnds::pair() })
    }

    /// Starts a VMM. Where it fails, nothing of it is left running.
    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<Box<dyn Vmm>, LaunchError>>;

    /// Takes over a VMM that an earlier process of this node started, with a driver of the same kind:
    /// [`Drivers::of`](crate::drivers::Drivers::of) says which that is.
    fn adopt(&self, identity: Identity, run_dir: PathBuf) -> Result<Box<dyn Vmm>, AdoptError>;

    /// The facet of starting a VMM's process before it is known what its guest goes on from, where
    /// the VMM has it. Asking may block for as long as [`Driver::check`].
    fn ahead(&self) -> Option<&dyn Ahead> {
        None
    }

    /// The facet of building whole computers, where the VMM has it.
    fn full(&self) -> Option<&dyn FullMachines> {
        None
    }
}

/// The facet of starting a VMM's process before it is known what its guest goes on from.
pub trait Ahead: Send + Sync {
    /// Starts a process that can take any guest of its shape, and waits until it can. Where it
    /// fails, nothing of it is left running.
    fn launch(&self, launch: AheadLaunch) -> BoxFuture<'_, Result<Box<dyn Waiting>, LaunchError>>;
}

/// A process that waits to be told what its guest goes on from.
pub trait Waiting: Send + Sync {
    /// Its VMM, which can be told to quit, killed and waited for all the time.
    fn vmm(&self) -> Arc<dyn Vmm>;

    /// Gives it a guest of its shape. It runs as soon as all of the state of its devices has come
    /// over [`AheadLaunch::state`].
    ///
    /// Where this fails the process is of no use any more: whoever has it kills it.
    fn begin(self: Box<Self>, late: Late) -> BoxFuture<'static, Result<(), LaunchError>>;
}

impl std::fmt::Debug for dyn Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Waiting")
            .field(&self.vmm().identity())
            .finish()
    }
}

/// What a process that is launched ahead has in common with the guests that it can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Their CPUs and memory.
    pub resources: Resources,
    /// Their block devices in order: the serial number of each, and whether it may only be read.
    pub disks: Vec<(&'static str, bool)>,
    /// How many network devices they have, each with one queue.
    pub nics: usize,
    /// Hardware addresses of those whose other end is a socket.
    pub links: Vec<[u8; 6]>,
}

/// All that a process is started with ahead of need. The guest's memory is in a file, as in
/// [`Memory::Clone`].
#[derive(Debug)]
pub struct AheadLaunch {
    /// Which VM.
    pub vm: VmId,
    /// Which guests it can take.
    pub shape: Shape,
    /// Gives what [`Snapshot::save`] wrote, once it has a guest.
    pub state: OwnedFd,
    /// The queues of its network devices: open files of `/dev/net/tun` that belong to no interface
    /// yet. By [`Waiting::begin`] they do.
    pub queues: Vec<OwnedFd>,
    /// The VMM's end of each link.
    pub links: Vec<OwnedFd>,
    /// An empty folder, opened with `O_PATH`, in which the VMM's user may open files by name and do
    /// nothing else. What comes late is shown to the VMM there.
    pub folder: OwnedFd,
    /// As in [`Launch`].
    pub sockets: Sockets,
    /// As in [`Launch`].
    pub run_dir: PathBuf,
    /// As in [`Launch`].
    pub cgroup: Option<Cgroup>,
    /// As in [`Launch`].
    pub user: Option<u32>,
}

/// What a process that was launched ahead is given, once it is known.
#[derive(Debug)]
pub struct Late {
    /// The guest's memory, which stays as it is.
    pub memory: File,
    /// Block devices, those of the shape in order.
    pub disks: Vec<Disk>,
}

/// A running VMM.
pub trait Vmm: Send + Sync {
    /// Which process it is.
    fn identity(&self) -> Identity;

    /// A connection to the guest's agent. What is said may wait until the guest hears it, where
    /// the VMM takes connections before the guest is up; else this waits for the guest. One at a
    /// time is served.
    ///
    /// # Errors
    /// Where there is no way to the guest, such as where the VMM has ended.
    fn channel(&self) -> BoxFuture<'_, io::Result<UnixStream>>;

    /// Listens for connections that the guest begins, to this port of its host (CID 2), each of which
    /// is then a connection here. Nobody in the guest is asked who it is: what comes is the guest's, and
    /// as hostile. They end with a snapshot, and those after it come here again.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where a guest of this VMM has no such way, and
    /// [`io::ErrorKind::AddrInUse`] where somebody listens there.
    fn listen(&self, port: u32) -> io::Result<tokio::net::UnixListener> {
        let _ = port;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Asks the VMM, by its own interface, to end at once and in order.
    fn quit(&self) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Whether its process has ended, whatever of it is still being taken away.
    fn has_ended(&self) -> bool;

    /// Kills it with all its threads.
    ///
    /// # Errors
    /// Where the kernel refuses; a process that has already ended is no error.
    fn kill(&self) -> Result<(), VmmError>;

    /// Waits for its end. Any number of callers may.
    fn wait(&self) -> BoxFuture<'_, VmmExit>;

    /// What the VMM counts of itself, by its own names, where it does: those that are not 0.
    fn figures(&self) -> Option<BTreeMap<String, u64>> {
        None
    }

    /// The facet of freezing a guest, where the VMM has it.
    fn pause(&self) -> Option<&dyn Pause> {
        None
    }

    /// The facet of taking memory back from a guest, where the VMM has it.
    fn balloon(&self) -> Option<&dyn Balloon> {
        None
    }

    /// The facet of writing a guest down, where the VMM has it.
    fn snapshot(&self) -> Option<&dyn Snapshot> {
        None
    }

    /// The facet of a power button, where the machine has one.
    fn power(&self) -> Option<&dyn Power> {
        None
    }

    /// The facet of changing a machine that runs, where the VMM has it.
    fn hotplug(&self) -> Option<&dyn Hotplug> {
        None
    }

    /// The facet of disks of a machine that runs, where the VMM has it.
    fn live_disks(&self) -> Option<&dyn LiveDisks> {
        None
    }

    /// The facet of a port for the guest's own agent, where the machine has one.
    fn guest_port(&self) -> Option<&dyn GuestPort> {
        None
    }

    /// The facet of a screen, where the machine has one.
    fn display(&self) -> Option<&dyn Display> {
        None
    }

    /// What of the machine has broken while it runs, as part of a sentence.
    fn impairment(&self) -> Option<String> {
        None
    }

    /// Whether the guest itself ended the machine in order, once [`Vmm::wait`] has returned; `None` where
    /// that is not known. An exit code of 0 says less: a VMM may have it also where it was told to end.
    fn ended_by_guest(&self) -> Option<bool> {
        None
    }
}

impl std::fmt::Debug for dyn Vmm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Vmm").field(&self.identity()).finish()
    }
}

/// The facet of writing a guest down.
pub trait Snapshot: Send + Sync {
    /// Writes the state of a paused guest to a file: of its devices alone where its memory is in a
    /// file ([`Memory::Template`]), else with its memory. The guest stays paused. What its disks
    /// hold is not in it.
    fn save(&self, state: File) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Whether the connections to the guest end with it: those of the guest that goes on, and
    /// those that another one goes on with. [`Vmm::channel`] gives new ones.
    fn ends_connections(&self) -> bool {
        false
    }

    /// Gives up what [`Snapshot::save`] began, whoever began it. None may be under way.
    fn cancel(&self) -> BoxFuture<'_, Result<(), VmmError>>;
}

/// The facet of taking memory back from a guest.
pub trait Balloon: Send + Sync {
    /// Asks the guest to do without so much of its memory, more or less than before. It takes it
    /// again where it would run out of memory.
    fn ask(&self, memory: MiB) -> BoxFuture<'_, Result<(), VmmError>>;

    /// How much it does without now.
    fn given(&self) -> BoxFuture<'_, Result<MiB, VmmError>>;
}

/// The facet of freezing a guest's processors and letting them go on.
pub trait Pause: Send + Sync {
    /// Freezes them.
    fn pause(&self) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Lets them go on.
    fn resume(&self) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Whether they are frozen now.
    fn is_paused(&self) -> BoxFuture<'_, Result<bool, VmmError>>;
}

/// All that a VMM is started with.
#[derive(Debug)]
pub struct Launch {
    /// Which VM.
    pub vm: VmId,
    /// Which machine it has.
    pub machine: Machine,
    /// Its CPUs and memory.
    pub resources: Resources,
    /// What its guest begins with.
    pub start: Start,
    /// Where its memory is.
    pub memory: Memory,
    /// Block devices in order.
    pub disks: Vec<Disk>,
    /// Network devices in order.
    pub nics: Vec<Nic>,
    /// Further ones, whose other end is a socket.
    pub links: Vec<Link>,
    /// The listening sockets that the VMM serves.
    pub sockets: Sockets,
    /// The folder with those sockets, for the VMM's own records.
    pub run_dir: PathBuf,
    /// The group that the VMM's process joins before it runs.
    pub cgroup: Option<Cgroup>,
    /// The unprivileged user and group under which it runs; `None` keeps ours.
    pub user: Option<u32>,
}

/// What a guest begins with.
#[derive(Debug)]
pub enum Start {
    /// With a kernel.
    Boot(Kernel),
    /// With what the firmware of a whole computer finds on its disks, the first of them first.
    Firmware,
    /// Where another left off: it runs as soon as all of the state of its devices has come. Until
    /// then the VMM waits, so one can be started ahead of need.
    Restore {
        /// Gives what [`Snapshot::save`] wrote.
        state: OwnedFd,
    },
}

/// What a guest boots.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel.
    pub kernel: File,
    /// Its initramfs.
    pub initrd: File,
    /// The kernel's whole command line.
    pub command_line: String,
}

/// Where a guest's memory is.
#[derive(Debug, Default)]
pub enum Memory {
    /// With its VMM alone.
    #[default]
    Own,
    /// In a file of its size: what the guest writes is in it.
    Template(File),
    /// As in a file, which stays as it is: what the guest writes is its own.
    Clone(File),
}

/// A block device.
#[derive(Debug)]
pub struct Disk {
    /// The serial number that the guest finds it by, at most 20 bytes.
    pub serial: Cow<'static, str>,
    /// Its file, opened for reading and writing, or for reading where the guest may do no more.
    pub file: File,
    /// What the file holds.
    pub format: DiskFormat,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// A file with what it is encrypted with (LUKS, in QEMU's format), which nobody else has.
    pub key: Option<File>,
    /// Whether it outlives the VM: what the guest flushes has to reach the host's disk.
    pub durable: bool,
}

impl Disk {
    /// A disk that a file holds as it is.
    pub fn raw(serial: impl Into<Cow<'static, str>>, file: File, read_only: bool) -> Self {
        Self {
            serial: serial.into(),
            file,
            format: DiskFormat::Raw,
            read_only,
            key: None,
            durable: false,
        }
    }
}

/// How a file holds a disk.
#[derive(Debug, Default)]
pub enum DiskFormat {
    /// As it is. The file may be a block device.
    #[default]
    Raw,
    /// In QEMU's format. What its header says of other files is not followed.
    Qcow2 {
        /// The layers below, from the next one down; none where it stands alone.
        backing: Vec<Layer>,
    },
}

/// A layer below a disk's own, which nobody writes to.
#[derive(Debug)]
pub struct Layer {
    /// Its file, opened for reading.
    pub file: File,
    /// Whether it is in QEMU's format; else the file holds it as it is, and it is the lowest.
    pub is_qcow2: bool,
    /// A file with what it is encrypted with, as that of a disk.
    pub key: Option<File>,
}

/// A network device: the guest's end of a TAP interface.
///
/// Whoever opens the queues opens them with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`, and with
/// `IFF_MULTI_QUEUE` where there are several. Their network namespace need not be the VMM's. The
/// interface is persistent: a VMM may close the queue and open the interface by name.
#[derive(Debug)]
pub struct Nic {
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// The queues of the TAP interface, one or more. One for each CPU is what a guest can use.
    pub queues: Vec<OwnedFd>,
}

/// A network device: the guest's end of a socket of this process, on which each message is an Ethernet
/// frame. It lasts no longer than this process.
#[derive(Debug)]
pub struct Link {
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// The end that is the VMM's.
    pub socket: OwnedFd,
}

/// The two ends of a link that has no VM yet.
///
/// What is sent before the VM runs may be lost. Frames of a guest come as its kernel leaves them to a
/// device, unless the VMM finishes them: as long as IP packets can be, with checksums of TCP and UDP
/// half done.
#[derive(Debug)]
pub struct LinkEnds {
    /// Ours, which does not block. Once the VMM has ended, reading or writing says that it is broken,
    /// or down.
    pub host: OwnedFd,
    /// What [`Link::socket`] is to be.
    pub vmm: OwnedFd,
}

impl LinkEnds {
    /// How much of frames the sockets hold: the kernel's own limit, where that is less.
    const BUFFER: usize = 512 * 1024;

    /// A connected pair of datagram sockets.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn pair() -> Result<Self, LaunchError> {
        let pair = || {
            let (host, vmm) = std::os::unix::net::UnixDatagram::pair()?;
            for end in [&host, &vmm] {
                // What they hold unasked is enough to work.
                let _ = rustix::net::sockopt::set_socket_send_buffer_size(end, Self::BUFFER);
            }
            host.set_nonblocking(true)?;
            Ok(Self {
                host: host.into(),
                vmm: vmm.into(),
            })
        };
        pair().map_err(|source| LaunchError::Io {
            what: "make a link".into(),
            source,
        })
    }
}

/// The sockets over which a VMM and its node speak. The node listens on them before the VMM
/// runs and hands them over, so that a connection never races with the VMM's start and the
/// VMM needs no rights in the folder.
#[derive(Debug)]
pub struct Sockets {
    /// The VMM's own interface.
    pub control: UnixListener,
    /// The channel to the guest's agent.
    pub agent: UnixListener,
    /// The guest's serial console.
    pub console: UnixListener,
}

/// Names of the sockets in a VM's runtime folder.
pub mod socket_name {
    /// The VMM's own interface.
    pub const CONTROL: &str = "vmm.sock";
    /// The channel to the guest's agent.
    pub const AGENT: &str = "agent.sock";
    /// The guest's serial console.
    pub const CONSOLE: &str = "console.sock";
    /// The port for the guest's own agent, where a machine has it beside the channel to ours.
    pub const GUEST_AGENT: &str = "guest-agent.sock";
}

/// How a VMM's process ended, with what it said on standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmExit {
    /// How the process ended.
    pub exit: ProcessExit,
    /// The end of its standard error, at most a few KiB.
    pub stderr: String,
}

impl std::fmt::Display for VmmExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.exit)?;
        match self.stderr.trim() {
            "" => Ok(()),
            said => write!(f, ": {said}"),
        }
    }
}

/// A VMM that did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program is not there.
    #[error("{program} is not installed")]
    Missing {
        /// What was looked for.
        program: String,
    },
    /// The program is there and lacks something.
    #[error("{program} {version} has no machine {machine:?}")]
    NoMachine {
        /// Which program.
        program: String,
        /// Its version.
        version: String,
        /// What it lacks.
        machine: String,
    },
    /// The accelerator cannot be used.
    #[error("the accelerator {0} cannot be used here")]
    Accelerator(Accelerator),
    /// The program could not be asked what it is.
    #[error("{program} does not say what it is: {why}")]
    Probe {
        /// Which program.
        program: String,
        /// What it did instead.
        why: String,
    },
    /// The program does not take what another wrote.
    #[error("the VMM does not go on from the snapshot: {why} ({said})")]
    Restore {
        /// What it refused.
        why: String,
        /// How it ended.
        said: String,
    },
    /// A file cannot be shown to a process that was launched ahead.
    #[error("a process that was launched ahead cannot be shown the {what}")]
    Late {
        /// Which file.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Firecracker cannot have a network device.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// There is no jail to put the VMM in.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// A whole computer cannot be built so.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The VMM does not do what it was to be launched for.
    #[error("{vmm} has no {what}")]
    Unsupported {
        /// Which VMM, or which of its machines.
        vmm: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// A call of the operating system failed.
    #[error("cannot {what}")]
    Io {
        /// What was to be done, with what.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl Classify for LaunchError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Jail(error) => error.class(),
            Self::Machine(error) => error.class(),
            Self::Unsupported { .. } => ErrorClass::Invalid,
            _ => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "vmm_missing",
            Self::NoMachine { .. } => "vmm_without_machine",
            Self::Accelerator(_) => "accelerator_unusable",
            Self::Probe { .. } => "vmm_unknown",
            Self::Restore { .. } => "vmm_restore",
            Self::Late { .. } => "vmm_late_file",
            Self::Nic(error) => error.code(),
            Self::Jail(error) => error.code(),
            Self::Machine(error) => error.code(),
            Self::Unsupported { .. } => "vmm_unsupported",
            Self::Io { .. } => "vmm_launch",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Missing { program } | Self::Probe { program, .. }
                if is_of_firecracker(program) =>
            {
                Some("Install one with: aleph setup firecracker".into())
            }
            Self::Missing { .. } | Self::NoMachine { .. } | Self::Probe { .. } => Some(
                "Install one with: apt-get install -y --no-install-recommends qemu-system-x86"
                    .into(),
            ),
            Self::Nic(error) => error.advice(),
            Self::Jail(error) => error.advice(),
            Self::Machine(error) => error.advice(),
            Self::Unsupported { .. } => {
                Some("Have it run by QEMU as a full VM, which has everything.".into())
            }
            Self::Accelerator(_) => Some("Leave --accel away, or see aleph doctor.".into()),
            Self::Io { source, .. } => advice_of(source),
            Self::Restore { .. } | Self::Late { .. } => None,
        }
    }
}

/// Whether a program is one of a release of Firecracker, by its name.
fn is_of_firecracker(program: &str) -> bool {
    let name = Path::new(program)
        .file_name()
        .and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("firecracker") || name.starts_with("jailer"))
}

/// A VMM that could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The process is gone, or its number belongs to another one now.
    #[error("the VMM is gone")]
    Gone,
    /// It was ended, as it never got the guest that it was to go on with.
    #[error("the VMM had no guest yet")]
    Unbegun,
    /// It could not be looked at.
    #[error("cannot look at the VMM's process")]
    Io(#[from] io::Error),
}

/// A VMM that did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// It refused.
    #[error("the VMM refused {command}: {why}")]
    Refused {
        /// What it was told.
        command: &'static str,
        /// What it said.
        why: String,
    },
    /// It did not answer in time.
    #[error("the VMM did not answer {command} in time")]
    Silent {
        /// What it was told.
        command: &'static str,
    },
    /// It could not be reached.
    #[error("cannot speak to the VMM")]
    Io(#[from] io::Error),
}

impl VmmError {
    /// Whether what it was told may have happened all the same.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Io(_) => true,
            Self::Refused { .. } => false,
        }
    }
}
