//! What a guest is told about itself, and the rest of its mounts.

use super::network;
use crate::failure::Failure;
use crate::file;
use crate::sys;
use aleph_guest_proto::{Network, Setup};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::net::Ipv4Addr;
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::time::{ClockId, Timespec};

/// Random state, clock, name and loopback. A kernel that refuses one of them can still run
/// commands, and all of them that matter are seen from inside.
pub(super) fn apply_facts(setup: &Setup<'_>) {
    add_entropy(setup.entropy);
    set_clock(setup.unix_ns);
    let _ = rustix::system::sethostname(setup.hostname);
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    if let Ok(socket) = socket {
        let _ = sys::bring_up(&socket, b"lo");
    }
}

/// Mixes random bytes into the kernel's pool and has its generator begin anew from that.
pub(super) fn add_entropy(entropy: &[u8]) {
    if let Ok(random) = rustix::fs::open(
        c"/dev/urandom",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        let _ = sys::add_entropy(&random, entropy);
        let _ = sys::reseed(&random);
    }
}

/// Sets the wall clock.
pub(super) fn set_clock(unix_ns: u64) {
    let second = 1_000_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(unix_ns / second).unwrap_or(0),
        tv_nsec: i64::try_from(unix_ns % second).unwrap_or(0),
    };
    let _ = rustix::time::clock_settime(ClockId::Realtime, time);
}

/// What programs expect to find, in the root by now. An image may lack a place for some of it,
/// and go without.
///
/// # Errors
/// Where the name server that the guest is to ask cannot be written down.
pub(super) fn complete(hostname: &[u8], network: Option<&Network<'_>>) -> Result<(), Failure> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount(
        c"/dev/pts",
        c"devpts",
        quiet,
        c"gid=5,mode=620,ptmxmode=666",
    );
    mount(c"/dev/shm", c"tmpfs", plain, c"mode=1777");
    mount(c"/run", c"tmpfs", plain, c"mode=755");
    mount(
        c"/sys/fs/cgroup",
        c"cgroup2",
        quiet | MountFlags::NODEV,
        c"",
    );
    for (target, link) in [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
    ] {
        let _ = rustix::fs::symlink(target, link);
    }
    let _ = rustix::fs::mkdir(c"/etc", Mode::from_raw_mode(0o755));
    let _ = file::write(c"/etc/hostname", &[hostname, b"\n"]);
    let _ = file::write(c"/etc/hosts", &[&hosts(hostname, network)]);
    network.map_or(Ok(()), network::write_resolver)
}

/// What `/etc/hosts` says.
pub(super) fn hosts(hostname: &[u8], network: Option<&Network<'_>>) -> Vec<u8> {
    let loopback = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    // A program that asks for its own address is to get one that others can reach.
    let own = network.map_or([127, 0, 1, 1], |network| network.address);
    let own = Ipv4Addr::from(own).to_string();
    [loopback, own.as_bytes(), b"\t", hostname, b"\n"].concat()
}

fn mount(path: &CStr, kind: &CStr, flags: MountFlags, options: &CStr) {
    let _ = rustix::fs::mkdir(path, Mode::from_raw_mode(0o755));
    let _ = rustix::mount::mount(kind, path, kind, flags, options);
}
