//! A vsock device for a guest of QEMU's whose other end is a Unix socket, as Firecracker has it.
//!
//! The device is a library that QEMU is started with (`vsock/`, whose `//!` says how it works and
//! what it does). It lives in QEMU's process and ends with it, and needs nothing of the host: no
//! kernel module, no shared memory. QEMU's `stop`, `cont` and, of a guest that stands still,
//! `migrate` work with it, and so do guests whose memory is a private mapping of a file.
//! Connections do not move with a guest: where it goes on from a state, QEMU tells it that all of
//! them are gone.
//!
//! ```no_run
//! # use aleph_testkit::VsockDevice;
//! # use std::os::unix::net::UnixListener;
//! # use std::process::Command;
//! let mut qemu = Command::new("qemu-system-x86_64");
//! qemu.args(["-machine", "microvm"]); // and the rest of the guest
//! VsockDevice::build()?.attach(&mut qemu, UnixListener::bind("v.sock")?, 3)?;
//! let child = qemu.spawn()?;
//! drop(qemu); // has the listener too
//! # Ok::<_, anyhow::Error>(())
//! ```
#![allow(
    unsafe_code,
    reason = "descriptors are handed over between fork and exec"
)]

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library that is the device.
#[derive(Debug, Clone)]
pub struct VsockDevice {
    library: PathBuf,
}

impl VsockDevice {
    /// Builds the library, on first use.
    ///
    /// # Errors
    /// Where cargo cannot.
    pub fn build() -> Result<Self> {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/vsock/Cargo.toml");
        let folder = crate::functions::build(Path::new(manifest), &[])?;
        Ok(Self {
            library: folder.join("libvsock.so"),
        })
    }

    /// One that was built before, for who cannot build it.
    #[must_use]
    pub fn at(library: PathBuf) -> Self {
        Self { library }
    }

    /// The library's file.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Gives the guest of a QEMU that is yet to be started the device, with its CID (3 or more).
    /// Hosts connect to the listener; its path is its maker's. They listen for the guest at that path
    /// with `_PORT` behind it, as long as it is there. It is on the bus that a `microvm` has.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub fn attach(&self, qemu: &mut Command, hosts: UnixListener, cid: u32) -> Result<()> {
        // Any file that QEMU can set flags of: all else on it is the library's.
        let device = File::options().read(true).write(true).open("/dev/null")?;
        let folder = folder_of(&hosts)?;
        let (device, hosts) = (OwnedFd::from(device), OwnedFd::from(hosts));
        let (at, listener) = (device.as_raw_fd(), hosts.as_raw_fd());
        let listeners = folder
            .as_ref()
            .map(|(folder, name)| format!(",/proc/self/fd/{}/{name}", folder.as_raw_fd()));
        let listeners = listeners.unwrap_or_default();
        qemu.env("LD_PRELOAD", &self.library)
            .env("VSOCK_DEVICE", format!("{at},{listener}{listeners}"))
            .arg("-device")
            .arg(format!(
                "vhost-vsock-device,guest-cid={cid},vhostfd={at},event_idx=off"
            ));
        let keep = move || {
            let folder = folder.as_ref().map(|(folder, _)| folder);
            for fd in [&device, &hosts].into_iter().chain(folder) {
                rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: it makes two system calls, which may be made between fork and exec, and takes no
        // memory.
        unsafe { qemu.pre_exec(keep) };
        Ok(())
    }
}

/// The folder of a listener's path, which QEMU may see by another name or not at all, and its name there.
fn folder_of(listener: &UnixListener) -> Result<Option<(OwnedFd, String)>> {
    let address = listener.local_addr()?;
    let Some(path) = address.as_pathname() else {
        return Ok(None);
    };
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.context("a socket without a name")?.to_owned();
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Some((
        rustix::fs::open(folder, flags, Mode::empty())?,
        name,
    )))
}
