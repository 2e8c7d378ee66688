//! TAP devices.
//!
//! A TAP is made anew for each VM, which takes 0.15 ms: nothing of an earlier owner's can be left
//! in it. It is persistent, so that it outlives the daemon and a VMM that ended, and owned by the
//! VMM's user, who can open it by name and nothing else. Removal is what takes long (16 to 19 ms
//! for one, 0.3 ms each for many), and is left to [`crate::link::Links::delete_group`].

#![allow(unsafe_code)] // ioctl(2) on /dev/net/tun

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A TAP with one descriptor for each of its queues.
#[derive(Debug)]
pub struct Tap {
    /// What a VMM reads frames from and writes them to, each with a `virtio_net_hdr`.
    pub queues: Vec<File>,
}

/// The longest name of a network device, `IFNAMSIZ` without its NUL.
pub const MAX_NAME: usize = 15;

impl Tap {
    /// Makes a TAP with so many queues, in the network namespace of this thread.
    ///
    /// # Errors
    /// `EBUSY` where it is there and open, `EPERM` without `CAP_NET_ADMIN`, `ENOENT` where
    /// `/dev/net/tun` is missing.
    pub fn make(name: &str, queues: usize, owner: Option<u32>) -> io::Result<Self> {
        let mut opened = Vec::with_capacity(queues);
        for _ in 0..queues.max(1) {
            opened.push(open(name, queues > 1)?);
        }
        let first = &opened[0];
        if let Some(owner) = owner {
            set(first, libc::TUNSETOWNER, owner)?;
        }
        set(first, libc::TUNSETPERSIST, 1)?;
        Ok(Self { queues: opened })
    }
}

fn open(name: &str, many: bool) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let many = if many { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many;
    // SAFETY: a request of all zeros is valid: its name is empty, its union a number.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open, and the request lives until the call returns.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn set(file: &File, what: libc::c_ulong, value: u32) -> io::Result<()> {
    // SAFETY: these requests take a number, and the descriptor is open.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), what, libc::c_ulong::from(value)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
