//! A kernel as the guest: a network namespace with a TAP in it, whose frames a loop carries to the
//! stack's link and back.

#![allow(unsafe_code)] // unshare(2)

use super::super::{GUEST_ADDRESS, GUEST_MAC, HOST_ADDRESS, Kept, MTU, PREFIX, Stack};
use crate::hypervisor::LinkEnds;
use aleph_vm_networking::tap::Tap;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, ioctl};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A limit that only a hang exceeds.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// The port of the host that programs in the guest connect to.
pub(super) const PORT: u16 = 9001;

/// What a TAP puts before each frame: `virtio_net_hdr`.
const HEADER: usize = 10;

type Work = Box<dyn FnOnce() + Send>;

/// A stack, and the end of its link for a kernel.
pub(super) fn open(runtime: &Runtime, kept: &[Kept]) -> (Stack, OwnedFd) {
    let ends = LinkEnds::pair().unwrap();
    let _within = runtime.enter();
    (Stack::over(ends.host, PORT, kept).unwrap(), ends.vmm)
}

/// A kernel with nothing but a TAP. It ends when this is dropped.
pub(super) struct Kernel {
    work: Sender<Work>,
    tap: File,
    cable: Option<Cable>,
}

/// What carries frames between the TAP and a stack.
struct Cable {
    carrying: JoinHandle<()>,
    end: OwnedFd,
}

impl Kernel {
    /// `None`, with the reason on standard error, where this process cannot make one.
    pub(super) fn boot() -> Option<Self> {
        let (work, to_do) = channel::<Work>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            // SAFETY: only the network namespace of this one thread changes.
            let _ = tell.send(unsafe { unshare_unsafe(UnshareFlags::NEWNET) });
            to_do.into_iter().for_each(|work| work());
        });
        if let Err(error) = told.recv().unwrap() {
            eprintln!("left out: it needs the right to make network namespaces: {error}");
            return None;
        }
        if let Err(error) = File::open("/dev/net/tun") {
            eprintln!("left out: it needs /dev/net/tun: {error}");
            return None;
        }
        let tap = run(&work, || {
            let mut tap = Tap::make("api0", 1, None).unwrap();
            let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
            ip(&format!("link set api0 address {mac} mtu {MTU} up"));
            ip(&format!("address add {GUEST_ADDRESS}/{PREFIX} dev api0"));
            tap.queues.remove(0)
        });
        Some(Self {
            work,
            tap,
            cable: None,
        })
    }

    /// Runs a closure in the namespace.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        run(&self.work, work)
    }

    /// Connects the TAP to a stack, and loses one frame of so many.
    pub(super) fn plug(&mut self, link: OwnedFd, lossy: Option<u32>) {
        self.unplug();
        let tap = self.tap.try_clone().unwrap();
        let (end, ended) = std::io::pipe().unwrap();
        let link = UnixDatagram::from(link);
        let carrying = std::thread::spawn(move || carry(tap, &link, &end.into(), lossy));
        self.cable = Some(Cable {
            carrying,
            end: ended.into(),
        });
    }

    /// Connects the TAP to another, as a VMM that has that one open: what the kernel leaves to its
    /// device is left to the other. Gives the length of the longest frame that the kernel sends.
    pub(super) fn plug_tap(&mut self, other: File) -> Arc<AtomicUsize> {
        const TUNSETOFFLOAD: Opcode = 0x4004_54d0;
        // Checksums, and segments of TCP over IPv4.
        const OFFLOADS: usize = 1 | 2;
        self.unplug();
        let tap = self.tap.try_clone().unwrap();
        for tap in [&tap, &other] {
            // SAFETY: this request takes a number, and the descriptor is open.
            let offload = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS) };
            // SAFETY: the same.
            unsafe { ioctl(tap, offload) }.unwrap();
        }
        let (end, ended) = std::io::pipe().unwrap();
        let longest = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&longest);
        let carrying = std::thread::spawn(move || pass(tap, other, &end.into(), &seen));
        self.cable = Some(Cable {
            carrying,
            end: ended.into(),
        });
        longest
    }

    /// Takes the stack's end away. What the kernel sends waits.
    pub(super) fn unplug(&mut self) {
        if let Some(cable) = self.cable.take() {
            drop(cable.end);
            cable.carrying.join().unwrap();
        }
    }

    pub(super) fn connect(&self) -> std::io::Result<TcpStream> {
        self.connect_to(PORT)
    }

    pub(super) fn connect_to(&self, port: u16) -> std::io::Result<TcpStream> {
        let stream = self.run(move || TcpStream::connect((HOST_ADDRESS, port)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.unplug();
    }
}

fn run<T: Send + 'static>(thread: &Sender<Work>, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = channel();
    let work = Box::new(move || drop(tell.send(work())));
    thread.send(work).unwrap();
    told.recv().expect("it panicked")
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {said}");
}

fn carry(mut tap: File, link: &UnixDatagram, end: &OwnedFd, lossy: Option<u32>) {
    let mut frame = vec![0; 64 * 1024];
    // Not each so-manieth one: what is sent again could always be the one that is lost.
    let mut state = 1_u32;
    let mut is_lost = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        lossy.is_some_and(|one_in| (state >> 16).is_multiple_of(one_in))
    };
    // As a device does: nothing is taken from the kernel while the link has no room for it.
    let mut has_room = true;
    loop {
        let of_tap = if has_room {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let of_link = if has_room {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        let mut ready = [
            PollFd::new(&tap, of_tap),
            PollFd::new(link, of_link),
            PollFd::new(end, PollFlags::IN),
        ];
        poll(&mut ready, None).unwrap();
        let [of_tap, of_link, of_end] = ready.map(|ready| ready.revents());
        if !of_end.is_empty() {
            return;
        }
        has_room = has_room || of_link.contains(PollFlags::OUT);
        if of_tap.contains(PollFlags::IN) {
            has_room = takes(link);
            if has_room {
                let length = tap.read(&mut frame).unwrap();
                if !is_lost() {
                    // The stack may be gone already.
                    let _ = send(link, &frame[HEADER..length], SendFlags::DONTWAIT);
                }
            }
        }
        if !of_link.difference(PollFlags::OUT).is_empty() {
            // What made it ready may have been an error that sending has told of since.
            let length = match recv(link, &mut frame[HEADER..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => continue,
                Err(_) => return,
            };
            frame[..HEADER].fill(0);
            if !is_lost() {
                tap.write_all(&frame[..HEADER + length]).unwrap();
            }
        }
    }
}

/// Whether a socket has room for a datagram.
fn takes(link: &UnixDatagram) -> bool {
    let mut ready = [PollFd::new(link, PollFlags::OUT)];
    poll(&mut ready, Some(&rustix::event::Timespec::default())).unwrap() > 0
}

fn pass(mut tap: File, mut other: File, end: &OwnedFd, longest: &AtomicUsize) {
    let mut frame = vec![0; 128 * 1024];
    loop {
        let mut ready = [
            PollFd::new(&tap, PollFlags::IN),
            PollFd::new(&other, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        poll(&mut ready, None).unwrap();
        let [of_tap, of_other, of_end] = ready.map(|ready| !ready.revents().is_empty());
        if of_end {
            return;
        }
        if of_tap {
            let length = tap.read(&mut frame).unwrap();
            longest.fetch_max(length - HEADER, Ordering::Relaxed);
            // It may be down.
            let _ = other.write(&frame[..length]);
        }
        if of_other {
            let Ok(length) = other.read(&mut frame) else {
                return;
            };
            tap.write_all(&frame[..length]).unwrap();
        }
    }
}
