//! The host's end of a guest's vsock device, in Firecracker's form: a Unix socket.
//!
//! The kernel's `vhost-vsock` wants a module that a host may lack, and knows CIDs where Firecracker
//! has a socket. So this is a device of our own, for a QEMU of any guest: it speaks vhost-user with
//! QEMU, virtio-vsock with the guest, and with hosts what Firecracker speaks
//! (`docs/vsock.md` there):
//!
//! ```text
//! host                          backend                        guest
//!   connect, "CONNECT 1024\n" ───▶   REQUEST to port 1024 ──────▶
//!             "OK 1073741824\n" ◀─────────────────── RESPONSE ◀── somebody listens
//!                   closes ◀─────────────────────────── RST ◀──── nobody does
//! ```
//!
//! A host that connects before the guest's driver runs waits in the queue of the socket. What is
//! not read at once as a `CONNECT` line is closed. Nothing here is timed.
//!
//! # Use
//! ```no_run
//! # use aleph_testkit::VsockBackend;
//! # use std::os::unix::net::UnixListener;
//! let backend = VsockBackend::start(UnixListener::bind("v.sock")?, 3)?;
//! let arguments = backend.qemu_arguments("virtio-bus");
//! # Ok::<_, anyhow::Error>(())
//! ```
//! The device reaches into the guest's memory by descriptor: QEMU must have it shared, such as
//! with `-object memory-backend-memfd,id=ram,size=128M,share=on -machine …,memory-backend=ram`, or
//! in a file with `share=on`. A private mapping of a file (`share=off`) does not work: what the
//! device writes is not what the guest reads.
//!
//! QEMU's `stop`, `cont` and `migrate` work with it: the rings stop with the guest, and what the
//! device writes is logged. Connections do not move with a guest. Where it goes on from a
//! snapshot, with a QEMU and a backend of its own, QEMU tells the guest so (a transport reset),
//! and its end of each connection closes.
//!
//! Guests cannot connect to the host: they are refused.

mod connection;
mod device;
mod muxer;
mod packet;

use anyhow::{Context, Result};
use device::Device;
use muxer::Muxer;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tempfile::TempDir;
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// A vsock device for one guest, until it is dropped.
#[derive(Debug)]
pub struct VsockBackend {
    device: PathBuf,
    serving: Arc<Mutex<Serving>>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

/// How far the conversation with QEMU is.
enum Serving {
    NotYet,
    Connected(ShutdownHandle),
    Over,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotYet => "NotYet",
            Self::Connected(_) => "Connected",
            Self::Over => "Over",
        })
    }
}

impl VsockBackend {
    /// Waits for one QEMU, on a socket of its own, and for hosts on theirs, which stays where it
    /// is. `cid` is the guest's, 3 or more.
    ///
    /// # Errors
    /// The host's: no descriptors, no place for a socket.
    pub fn start(hosts: UnixListener, cid: u32) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("vsock-").tempdir()?;
        let device = dir.path().join("device");
        let mut listener = Listener::new(&device, false)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("listening on {}", device.display()))?;
        let muxer = Muxer::new(hosts, cid)?;
        let events = muxer.events();
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Arc::new(Mutex::new(Device::new(muxer, memory.clone())?));
        let mut daemon = VhostUserDaemon::new("vsock".into(), backend, memory)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        // Told once: a guest that stands still has nothing taken up.
        let once = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for handler in daemon.get_epoll_handlers() {
            handler.register_listener(events.as_raw_fd(), once, device::HOSTS)?;
        }
        let serving = Arc::new(Mutex::new(Serving::NotYet));
        let thread = {
            let serving = Arc::clone(&serving);
            std::thread::Builder::new()
                .name("vsock".into())
                .spawn(move || {
                    if daemon.start(&mut listener).is_ok() {
                        if let Some(handle) = daemon.shutdown_handle() {
                            begin(&serving, handle);
                        }
                        // QEMU's end is the end, however it came.
                        let _ = daemon.wait();
                    }
                    *lock(&serving) = Serving::Over;
                    for handler in daemon.get_epoll_handlers() {
                        handler.send_exit_event();
                    }
                    // The threads of the rings use it.
                    drop((daemon, events));
                })?
        };
        Ok(Self {
            device,
            serving,
            thread: Some(thread),
            _dir: dir,
        })
    }

    /// The socket that QEMU connects to.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// QEMU's arguments for the device, on the bus of this name as QEMU's `-device help` has it:
    /// `virtio-bus` (microvm) or `PCI`.
    #[must_use]
    pub fn qemu_arguments(&self, bus: &str) -> Vec<String> {
        let device = match bus {
            "PCI" => "vhost-user-vsock-pci",
            _ => "vhost-user-vsock-device",
        };
        let socket = format!("socket,id=vsock,path={}", self.device.display());
        [
            "-chardev",
            &socket,
            "-device",
            &format!("{device},chardev=vsock"),
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// Notes that QEMU is there, or sends it away where nobody wants the device any more.
fn begin(serving: &Mutex<Serving>, handle: ShutdownHandle) {
    let mut serving = lock(serving);
    match *serving {
        Serving::NotYet => *serving = Serving::Connected(handle),
        Serving::Connected(_) | Serving::Over => handle.shutdown(),
    }
}

fn lock(serving: &Mutex<Serving>) -> std::sync::MutexGuard<'_, Serving> {
    serving.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for VsockBackend {
    fn drop(&mut self) {
        let before = std::mem::replace(&mut *lock(&self.serving), Serving::Over);
        match before {
            Serving::Connected(handle) => handle.shutdown(),
            // It waits for one connection; where that has come already, this one is not taken.
            Serving::NotYet => _ = UnixStream::connect(&self.device),
            Serving::Over => {}
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
