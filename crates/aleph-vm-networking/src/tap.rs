//! TAP devices.
//!
//! A TAP is made anew for each VM, which takes 0.15 ms: nothing of an earlier owner's can be left
//! in it. It is persistent, so that it outlives the daemon and a VMM that ended, and owned by the
//! VMM's user, who can open it by name and nothing else. Removal is what takes long (16 to 19 ms
//! for one, 0.3 ms each for many), and is left to [`crate::link::Links::delete_group`].

#![allow(unsafe_code)] // ioctl(2) on /dev/net/tun

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A TAP with one descriptor for each of its queues.
#[derive(Debug)]
pub struct Tap {
    /// What a VMM reads frames from and writes them to, each with a `virtio_net_hdr`.
    pub queues: Vec<File>,
}

/// The longest name of a network device, `IFNAMSIZ` without its NUL.
pub const MAX_NAME: usize = 15;

/// An open file of `/dev/net/tun` that is no queue of a TAP yet, and can become one of any in the
/// network namespace in which it was opened. Who has a duplicate of it has a queue of that TAP then.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Opens one, in the network namespace of this thread.
    ///
    /// # Errors
    /// `ENOENT` where `/dev/net/tun` is missing.
    pub fn open() -> io::Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/net/tun");
        file.map(Self)
    }

    /// The same open file under another descriptor.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }
}

impl Tap {
    /// Makes a TAP with so many queues, in the network namespace of this thread.
    ///
    /// # Errors
    /// `EBUSY` where it is there and open, `EPERM` without `CAP_NET_ADMIN`, `ENOENT` where
    /// `/dev/net/tun` is missing.
    pub fn make(name: &str, queues: usize, owner: Option<u32>) -> io::Result<Self> {
        let opened = (0..queues.max(1)).map(|_| Tun::open());
        Self::of(name, opened.collect::<io::Result<_>>()?, owner)
    }

    /// The same, which stays only once something else is done to it: a maker that dies before leaves
    /// none.
    ///
    /// # Errors
    /// As [`Tap::make`], and those of what is done. None is left then.
    pub fn make_after(
        name: &str,
        queues: usize,
        owner: Option<u32>,
        first: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Self> {
        let opened = (0..queues.max(1)).map(|_| Tun::open());
        Self::of_after(name, opened.collect::<io::Result<_>>()?, owner, first)
    }

    /// Makes a TAP whose queues are these, in the network namespace in which they were opened.
    ///
    /// # Errors
    /// As [`Tap::make`]; `EINVAL` where there is none, or one is another TAP's already.
    pub fn of(name: &str, queues: Vec<Tun>, owner: Option<u32>) -> io::Result<Self> {
        Self::of_after(name, queues, owner, || Ok(()))
    }

    /// The same, which stays only once something else is done to it.
    ///
    /// # Errors
    /// As [`Tap::make_after`].
    pub fn of_after(
        name: &str,
        queues: Vec<Tun>,
        owner: Option<u32>,
        first_of_all: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Self> {
        let many = queues.len() > 1;
        let queues = queues.into_iter().map(|Tun(file)| {
            become_queue(&file, name, many)?;
            Ok(file)
        });
        let queues: Vec<File> = queues.collect::<io::Result<_>>()?;
        let first = queues.first().ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(owner) = owner {
            set(first, libc::TUNSETOWNER, owner)?;
        }
        first_of_all()?;
        set(first, libc::TUNSETPERSIST, 1)?;
        Ok(Self { queues })
    }
}

fn become_queue(file: &File, name: &str, many: bool) -> io::Result<()> {
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
    Ok(())
}

fn set(file: &impl AsRawFd, what: libc::c_ulong, value: u32) -> io::Result<()> {
    // SAFETY: these requests take a number, and the descriptor is open.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), what, libc::c_ulong::from(value)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What an open queue belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is a TAP and stays when its queues are closed.
    pub is_persistent_tap: bool,
    /// Whether it can have several queues. Such a one cannot be opened as one that has not.
    pub has_many_queues: bool,
}

impl Interface {
    /// That of a queue.
    ///
    /// # Errors
    /// `EBADFD` where it belongs to none.
    pub fn of(queue: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: a request of all zeros is valid: its name is empty, its union a number.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and the request lives until the call returns.
        let done = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let name = request.ifr_name.iter().map(|c| c.to_ne_bytes()[0]);
        let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
        // SAFETY: the kernel wrote this member of the union.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let persistent_tap = libc::IFF_TAP | libc::IFF_PERSIST;
        Ok(Self {
            name: String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData)?,
            is_persistent_tap: flags & persistent_tap == persistent_tap,
            has_many_queues: flags & libc::IFF_MULTI_QUEUE != 0,
        })
    }

    /// Lets a user open a queue's interface by name.
    ///
    /// # Errors
    /// `EBADFD` where it belongs to none.
    pub fn set_owner(queue: &impl AsRawFd, owner: u32) -> io::Result<()> {
        set(queue, libc::TUNSETOWNER, owner)
    }

    /// The network namespace that a queue's interface is in.
    ///
    /// # Errors
    /// `EBADFD` where it belongs to none, `EPERM` without `CAP_NET_ADMIN` there.
    pub fn namespace(queue: &impl AsRawFd) -> io::Result<OwnedFd> {
        // SAFETY: this request takes nothing, and the descriptor is open.
        let space = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETDEVNETNS) };
        if space < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made this descriptor for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(space) })
    }
}
