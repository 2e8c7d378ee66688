//! Frames of a TAP as messages of a socket, where nothing else sees them.
//!
//! ```text
//!   namespace of the VMM                 a namespace with nothing in it
//!   make: TAP, down ── the VMM opens it ── take ──▶ TAP, up ── packet socket ── whoever has the guest
//! ```
//! A packet socket is of one network namespace, and so is the opening of a TAP by name. So the socket
//! comes with an empty namespace of its own; the TAP is made down where the VMM looks for it, which
//! nothing passes, and moves once it is open. A VMM that is in the socket's namespace itself saves the
//! move, which waits for the kernel's grace periods: 15 to 40 ms.
//!
//! There the link has no address, no route and no IPv6, and asks nobody anything. A frame is as a guest
//! leaves it to its device: as long as an IP packet can be, and its checksum can be half done.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | it is not read | what is beyond [`BUFFER`] is lost, as with any device |
//! | the TAP's queue is full | the same |
//! | nothing was taken yet | `ENXIO` when something is sent |
//! | it was left ([`FrameSocket::leave`]), or is gone | `ENETDOWN` from both ways |
//! | whoever has the socket dies | the namespace goes with its last socket and process, and the TAP with it |
//! | the same before the TAP was taken | it lies in the group of links that it was made in |

#![allow(unsafe_code)] // packet(7), SIOCGSKNS, unshare(2)

use crate::link::Links;
use crate::tap::Tap;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// What a socket holds of frames that are not read yet, in bytes of the kernel's memory.
pub const BUFFER: libc::c_int = 4 << 20;

/// The longest packets that a TAP takes: frames have 65535 bytes.
const MTU: u32 = 65_535 - 14;

/// How long a program may take from its start to its first instruction, and how often that is looked at.
const CLOSING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_micros(200);

/// `SIOCGSKNS` of linux/sockios.h: the network namespace of a socket.
const NAMESPACE_OF: libc::Ioctl = 0x894c;

/// A packet socket in a network namespace of its own.
#[derive(Debug)]
pub struct FrameSocket(OwnedFd);

/// A TAP that waits in its VMM's namespace until it is open there.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// Its name.
    pub name: &'a str,
    /// Who may open it; whoever has `CAP_NET_ADMIN` may in any case.
    pub owner: Option<u32>,
    /// The group of links that it joins.
    pub group: u32,
}

impl FrameSocket {
    /// Makes one, which does not block. It is not connected yet.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN` and `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        elsewhere(|| {
            // SAFETY: only the namespace of the network is left, which no descriptor depends on.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: it takes numbers.
            let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel made this descriptor for us alone.
            let socket = unsafe { OwnedFd::from_raw_fd(socket) };
            // What it sends itself is not for it.
            set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
            set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
            Ok(Self(socket))
        })
    }

    /// That which this descriptor is.
    ///
    /// # Errors
    /// `EINVAL` where it is something else.
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        match rustix::net::sockopt::socket_domain(&socket)? {
            rustix::net::AddressFamily::PACKET => Ok(Self(socket)),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The same socket under another descriptor.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN` there.
    pub fn namespace(&self) -> io::Result<OwnedFd> {
        // SAFETY: this request takes nothing, and the descriptor is open.
        let space = unsafe { libc::ioctl(self.0.as_raw_fd(), NAMESPACE_OF) };
        if space < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made this descriptor for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(space) })
    }

    /// Takes a TAP from the namespace of the VMM, which has it open, and is connected to it.
    ///
    /// # Errors
    /// The kernel's: `ENODEV` where it is not there.
    pub fn take(&self, name: &str, from: BorrowedFd<'_>) -> io::Result<()> {
        let own = self.namespace()?;
        let is_here = is_same(own.as_fd(), from)?;
        elsewhere(|| {
            if !is_here {
                enter(from)?;
                Links::new().move_to(name, own.as_fd())?;
            }
            enter(own.as_fd())?;
            let index = Links::new().set_up_alone(name, MTU)?;
            self.bind(index)
        })
    }

    fn bind(&self, link: u32) -> io::Result<()> {
        // SAFETY: an address of all zeros is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let number = |what: Result<_, std::num::TryFromIntError>| what.map_err(io::Error::other);
        address.sll_family = number(u16::try_from(libc::AF_PACKET))?;
        address.sll_protocol = number(u16::try_from(libc::ETH_P_ALL))?.to_be();
        address.sll_ifindex = i32::try_from(link).map_err(io::Error::other)?;
        let length = u32::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
        let at = (&raw const address).cast::<libc::sockaddr>();
        // SAFETY: the address lives until the call returns, and is as long as said.
        match unsafe { libc::bind(self.0.as_raw_fd(), at, length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes the link down that it is connected to: whoever has the socket sees that.
    ///
    /// # Errors
    /// The kernel's.
    pub fn leave(&self, name: &str) -> io::Result<()> {
        let own = self.namespace()?;
        elsewhere(|| {
            enter(own.as_fd())?;
            Links::new().take_down(name)
        })
    }
}

/// Makes TAPs in a VMM's namespace, down: nothing passes until they are taken.
///
/// # Errors
/// As [`Tap::make`]. None is left then.
pub fn make(namespace: BorrowedFd<'_>, taps: &[Waiting<'_>]) -> io::Result<()> {
    elsewhere(|| {
        enter(namespace)?;
        let made = taps.iter().try_for_each(|tap| {
            // Whoever dies before it is in its group leaves none.
            let join = || Links::new().retire(tap.name, tap.group).map(drop);
            Tap::make_after(tap.name, 1, tap.owner, join).map(drop)
        });
        let made = made.and_then(|()| closed(taps.iter().map(|tap| tap.name)));
        if made.is_err() {
            taps.iter()
                .for_each(|tap| drop(Links::new().delete(tap.name)));
        }
        made
    })
}

/// Waits until nobody has a queue of these TAPs open, as those who have closed them expect: a program
/// that is started elsewhere in this process has all its descriptors until it runs. Not for long: who
/// opens one that is open still is told so.
///
/// # Errors
/// The kernel's.
pub fn wait_until_closed(namespace: BorrowedFd<'_>, names: &[&str]) -> io::Result<()> {
    elsewhere(|| {
        enter(namespace)?;
        closed(names.iter().copied())
    })
}

fn closed<'a>(names: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let deadline = Instant::now() + CLOSING;
    let mut links = Links::new();
    for name in names {
        while links.is_open(name)? && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Removes a TAP that is not taken. One that is gone is no error.
///
/// # Errors
/// The kernel's.
pub fn remove(namespace: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    elsewhere(|| {
        enter(namespace)?;
        Links::new().delete(name)
    })
}

/// The network namespace that this thread is in.
///
/// # Errors
/// Where there is no `/proc`.
pub fn here() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// The group of links that a link is in.
///
/// # Errors
/// The kernel's: [`io::ErrorKind::NotFound`] where it is not there.
pub fn group_of(namespace: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let group = elsewhere(|| {
        enter(namespace)?;
        Links::new().group(name)
    });
    group?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Whether two are one.
///
/// # Errors
/// The kernel's.
pub fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    let network = Some(LinkNameSpaceType::Network);
    Ok(move_into_link_name_space(namespace, network)?)
}

/// Runs something in a thread that may change its namespace, since it ends then.
fn elsewhere<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespace".into());
        let done = thread.spawn_scoped(scope, work)?.join();
        done.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    let length = u32::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    let value = (&raw const value).cast();
    // SAFETY: the value is an int, as these options take, and lives until the call returns.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
