//! A guest: a QEMU with its memory in a file of ours, which ends with this process.

use crate::line::{self, Line};
use crate::qmp::Qmp;
use crate::resources::Resources;
use crate::vmm::Event;
use aleph_testkit::VsockDevice;
use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use serde_json::json;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

/// Names another QEMU than the one in the path.
const PROGRAM: &str = "FIRECRACKER_DOUBLE_QEMU";

/// Names the library that is a guest's vsock device.
const VSOCK: &str = "FIRECRACKER_DOUBLE_VSOCK";

/// How many were started.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// A running guest.
#[derive(Debug)]
pub(crate) struct Guest {
    number: u64,
    child: Child,
    qmp: Qmp,
    memory: File,
    /// Descriptors that QEMU opens its files by, until it has.
    _kept: Vec<OwnedFd>,
}

/// What a guest begins with.
#[derive(Debug)]
pub(crate) enum Begin<'a> {
    /// With a kernel, and this on its command line.
    Boot(&'a str),
    /// With what another guest was: its memory, which is this one's from now on, and QEMU's state
    /// of its devices.
    Restore { memory: File, devices: &'a [u8] },
}

impl Guest {
    /// Starts one. It runs where it boots, and is paused where it goes on from a state.
    pub(crate) fn start(
        resources: &Resources,
        begin: &Begin<'_>,
        events: Sender<Event>,
    ) -> Result<Self> {
        let mut line = Line::default();
        let size = u64::try_from(resources.machine.mem_size_mib)?
            .checked_mul(1 << 20)
            .context("too much memory")?;
        let memory = match begin {
            Begin::Boot(_) => memory_of(size)?,
            Begin::Restore { memory, .. } => memory.try_clone()?,
        };
        let restores = matches!(begin, Begin::Restore { .. });
        line::machine(&mut line, &resources.machine, &memory)?;
        let (ours, theirs) = UnixStream::pair()?;
        let control = line.hand(&theirs)?;
        line.add(&["-chardev", &format!("socket,id=control,fd={control}")]);
        line.add(&["-mon", "chardev=control,mode=control"]);
        line::serial(&mut line, resources.serial.as_ref())?;
        line::devices(&mut line, resources)?;
        match begin {
            Begin::Boot(arguments) => line::boot(&mut line, resources, arguments)?,
            Begin::Restore { devices, .. } => {
                let mut state = File::from(memfd_create("devices", MemfdFlags::CLOEXEC)?);
                state.write_all(devices)?;
                state.rewind()?;
                line.hand(&state)?;
                line.add(&["-incoming", "defer", "-S"]);
            }
        }
        let child = spawn(&line, resources)?;
        drop(theirs);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let mut guest = Self {
            number,
            child,
            qmp: Qmp::connect(ours, number, events)?,
            memory,
            _kept: Vec::new(),
        };
        if restores {
            let state = line.files.last().context("no state")?.as_raw_fd();
            guest.ignore_memory()?;
            let uri = json!({ "uri": format!("fd:{state}") });
            guest.qmp.execute("migrate-incoming", &uri)?;
            guest.qmp.migrated()?;
        }
        guest._kept = line.files;
        Ok(guest)
    }

    /// Which QEMU of this process it is.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Its memory.
    pub(crate) fn memory(&self) -> io::Result<File> {
        self.memory.try_clone()
    }

    /// Stops its processors.
    pub(crate) fn pause(&mut self) -> Result<()> {
        self.qmp.execute("stop", &json!({})).map(drop)
    }

    /// Lets them go on.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.qmp.execute("cont", &json!({})).map(drop)
    }

    /// Presses the keys.
    pub(crate) fn ctrl_alt_del(&mut self) -> Result<()> {
        let keys = ["ctrl", "alt", "delete"].map(|key| json!({ "type": "qcode", "data": key }));
        self.qmp
            .execute("send-key", &json!({ "keys": keys }))
            .map(drop)
    }

    /// Sets how much of its memory the guest is to give up.
    pub(crate) fn balloon(&mut self, keeps: u64) -> Result<()> {
        self.qmp
            .execute("balloon", &json!({ "value": keeps }))
            .map(drop)
    }

    /// How much of its memory the guest has.
    pub(crate) fn keeps(&mut self) -> Result<u64> {
        let told = self.qmp.execute("query-balloon", &json!({}))?;
        told["actual"].as_u64().context("a balloon without a size")
    }

    /// Gives a drive another file.
    pub(crate) fn change_drive(&mut self, id: &str, file: &File, read_only: bool) -> Result<()> {
        let passed = rustix::io::fcntl_dupfd_cloexec(file, 0)?;
        let set = self.qmp.add_fd(&passed)?;
        let node = format!("drive-{id}-{set}");
        let node_of_file = json!({
            "driver": "file",
            "node-name": node,
            "filename": format!("/dev/fdset/{set}"),
            "read-only": read_only,
        });
        self.qmp.execute("blockdev-add", &node_of_file)?;
        let path = format!("/machine/peripheral/blk-{id}");
        let property = json!({ "path": path, "property": "drive", "value": node });
        self.qmp.execute("qom-set", &property)?;
        if !read_only {
            // Tells the guest how large it is.
            let size = json!({ "node-name": node, "size": file.metadata()?.len() });
            self.qmp.execute("block_resize", &size)?;
        }
        Ok(())
    }

    /// QEMU's state of the devices of a paused guest.
    pub(crate) fn devices(&mut self) -> Result<Vec<u8>> {
        let state = File::from(memfd_create("devices", MemfdFlags::CLOEXEC)?);
        self.qmp.hand_over("state", &state)?;
        self.ignore_memory()?;
        let parameters = json!({ "max-bandwidth": i64::MAX });
        self.qmp.execute("migrate-set-parameters", &parameters)?;
        self.qmp.execute("migrate", &json!({ "uri": "fd:state" }))?;
        self.qmp.migrated()?;
        let (mut state, mut bytes) = (state, Vec::new());
        state.rewind()?;
        state.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes a paused guest's memory to a file, which is then of its size.
    pub(crate) fn write_memory(&self, file: &File) -> io::Result<()> {
        file.set_len(0)?;
        file.set_len(self.memory.metadata()?.len())?;
        copy_sparse(&self.memory, file)?;
        file.sync_all()
    }

    /// The state is of the devices alone: the memory is in a file.
    fn ignore_memory(&mut self) -> Result<()> {
        let capability = json!({ "capability": "x-ignore-shared", "state": true });
        let capabilities = json!({ "capabilities": [capability] });
        self.qmp
            .execute("migrate-set-capabilities", &capabilities)
            .map(drop)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(unsafe_code)]
fn spawn(line: &Line, resources: &Resources) -> Result<Child> {
    let program = std::env::var(PROGRAM).unwrap_or_else(|_| "qemu-system-x86_64".into());
    let mut command = Command::new(&program);
    command.args(&line.words);
    if let Some(vsock) = &resources.vsock {
        let listener = vsock.listener.try_clone()?;
        let device = VsockDevice::at(library()?);
        device.attach(&mut command, listener, vsock.config.guest_cid)?;
    }
    let end_with_us = || {
        let signal = Some(rustix::process::Signal::KILL);
        Ok(rustix::process::set_parent_process_death_signal(signal)?)
    };
    // SAFETY: it makes one system call and touches nothing else.
    unsafe { command.pre_exec(end_with_us) };
    command
        .spawn()
        .with_context(|| format!("cannot start {program}"))
}

/// The library that is a guest's vsock device: beside this program, where nothing says where.
fn library() -> Result<PathBuf> {
    let library = match std::env::var_os(VSOCK) {
        Some(path) => path.into(),
        None => std::env::current_exe()?.with_file_name("libvsock.so"),
    };
    ensure!(library.exists(), "there is no {}", library.display());
    Ok(library)
}

/// Memory of so many bytes, all of them 0.
pub(crate) fn memory_of(size: u64) -> io::Result<File> {
    let memory = File::from(memfd_create("guest-memory", MemfdFlags::CLOEXEC)?);
    memory.set_len(size)?;
    Ok(memory)
}

/// Memory of so many bytes with what a file holds.
pub(crate) fn memory_from(file: &File, size: u64) -> io::Result<File> {
    let memory = memory_of(size)?;
    copy_sparse(file, &memory)?;
    Ok(memory)
}

/// Copies what is not a hole to the same places.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let (mut from, mut to) = (from, to);
    let mut at = 0;
    loop {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(at) => at,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(at))?;
        seek(from, SeekFrom::Start(at))?;
        seek(to, SeekFrom::Start(at))?;
        io::copy(&mut from.take(end - at), &mut to)?;
        at = end;
        from.flush()?;
    }
}
