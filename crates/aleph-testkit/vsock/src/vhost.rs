//! The requests of vhost: what QEMU says of the guest's memory and of the rings in it.

use crate::Ends;
use crate::muxer::Muxer;
use crate::rings::{Event, Memory, Ring, Rings};
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use virtio_bindings::virtio_config::{
    VIRTIO_F_ANY_LAYOUT, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::{Queue, QueueT};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Requests, by the lowest byte of their number.
mod number {
    pub(crate) const FEATURES: u32 = 0x00;
    pub(crate) const SET_OWNER: u32 = 0x01;
    pub(crate) const SET_MEM_TABLE: u32 = 0x03;
    pub(crate) const SET_LOG_BASE: u32 = 0x04;
    pub(crate) const SET_LOG_FD: u32 = 0x07;
    pub(crate) const SET_VRING_NUM: u32 = 0x10;
    pub(crate) const SET_VRING_ADDR: u32 = 0x11;
    pub(crate) const VRING_BASE: u32 = 0x12;
    pub(crate) const SET_VRING_KICK: u32 = 0x20;
    pub(crate) const SET_VRING_CALL: u32 = 0x21;
    pub(crate) const SET_VRING_ERR: u32 = 0x22;
    pub(crate) const SET_GUEST_CID: u32 = 0x60;
    pub(crate) const SET_RUNNING: u32 = 0x61;
}

/// A request that gives something back.
const READS: u32 = 1 << 31;

/// What the device can (notices of used entries by index are no part of it), and the bit without
/// which QEMU writes no guest down that has it.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ANY_LAYOUT
    | 1 << VIRTIO_F_NOTIFY_ON_EMPTY
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VHOST_F_LOG_ALL;
const VHOST_F_LOG_ALL: u32 = 26;

/// `struct vhost_vring_state`, and `struct vhost_vring_file`, whose descriptor may be -1.
#[repr(C)]
#[derive(Clone, Copy)]
struct RingState {
    index: u32,
    number: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RingAddress {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    guest: u64,
    size: u64,
    user: u64,
    flags: u64,
}

/// The device, and where it is in QEMU's memory.
struct Device {
    rings: Rings,
    regions: Vec<Region>,
    events: &'static Epoll,
}

static DEVICE: OnceLock<Mutex<Option<Device>>> = OnceLock::new();

fn device() -> MutexGuard<'static, Option<Device>> {
    let device = DEVICE.get_or_init(|| Mutex::new(None));
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a request is one of vhost's.
pub(crate) fn is_request(request: u32) -> bool {
    request >> 8 & 0xff == 0xaf
}

/// Answers a request, or says with which errno it fails.
///
/// # Safety
/// `argument` must be what the request asks for.
pub(crate) unsafe fn answer(
    ends: &Ends,
    request: u32,
    argument: *mut c_void,
) -> Result<(), c_int> {
    let mut device = device();
    if request & 0xff == number::SET_OWNER && device.is_none() {
        *device = Some(Device::begin(ends).map_err(|error| errno(&error))?);
        return Ok(());
    }
    let device = device.as_mut().ok_or(libc::EPERM)?;
    let is_read = request & READS != 0;
    // SAFETY: the caller vouches for the argument; each request reads and writes what it is of.
    unsafe {
        match (request & 0xff, is_read) {
            (number::FEATURES, true) => argument.cast::<u64>().write_unaligned(FEATURES),
            (number::FEATURES, false) => {
                if argument.cast::<u64>().read_unaligned() & !FEATURES != 0 {
                    return Err(libc::EOPNOTSUPP);
                }
            }
            (number::SET_MEM_TABLE, _) => {
                let count = argument.cast::<u32>().read_unaligned() as usize;
                let first = argument.cast::<u8>().add(8).cast::<Region>();
                let regions = (0..count).map(|n| first.add(n).read_unaligned());
                device
                    .set_memory(regions.collect())
                    .map_err(|error| errno(&error))?;
            }
            // Nothing is written to a guest that stands still, and no other is written down.
            (number::SET_LOG_BASE | number::SET_LOG_FD | number::SET_VRING_ERR, _) => {}
            (number::SET_VRING_NUM, _) => {
                let RingState { index, number } = argument.cast::<RingState>().read_unaligned();
                let size = u16::try_from(number).map_err(|_| libc::EINVAL)?;
                device.queue(index)?.set_size(size);
            }
            (number::SET_VRING_ADDR, _) => {
                device.set_address(&argument.cast::<RingAddress>().read_unaligned())?;
            }
            (number::VRING_BASE, true) => {
                let state = argument.cast::<RingState>();
                let RingState { index, .. } = state.read_unaligned();
                let number = i32::from(device.queue(index)?.next_avail());
                state.write_unaligned(RingState { index, number });
            }
            (number::VRING_BASE, false) => {
                let RingState { index, number } = argument.cast::<RingState>().read_unaligned();
                let next = u16::try_from(number).map_err(|_| libc::EINVAL)?;
                device.queue(index)?.set_next_avail(next);
            }
            (number::SET_VRING_KICK, _) => {
                let RingState { index, number } = argument.cast::<RingState>().read_unaligned();
                device.set_kick(index, duplicate(number)?)?;
            }
            (number::SET_VRING_CALL, _) => {
                let RingState { index, number } = argument.cast::<RingState>().read_unaligned();
                device.ring(index)?.call = duplicate(number)?;
            }
            (number::SET_GUEST_CID, _) => {
                let cid = argument.cast::<u64>().read_unaligned();
                device.rings.muxer.set_cid(cid);
            }
            (number::SET_RUNNING, _) => {
                let runs = argument.cast::<c_int>().read_unaligned() != 0;
                device.run(runs).map_err(|error| errno(&error))?;
            }
            // QEMU goes without the rest.
            _ => return Err(libc::ENOTTY),
        }
    }
    Ok(())
}

fn errno(error: &io::Error) -> c_int {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The same open file once more: QEMU closes its own.
fn duplicate(fd: RawFd) -> Result<Option<File>, c_int> {
    if fd < 0 {
        return Ok(None);
    }
    // SAFETY: QEMU has it open while it tells of it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let fd = fd.try_clone_to_owned().map_err(|error| errno(&error))?;
    Ok(Some(fd.into()))
}

impl Device {
    fn begin(ends: &Ends) -> io::Result<Self> {
        // SAFETY: whoever started QEMU gave it this descriptor for this, and no one else has it.
        let hosts = UnixListener::from(unsafe { OwnedFd::from_raw_fd(ends.listener) });
        let muxer = Muxer::new(hosts, ends.listeners.clone())?;
        let events: &'static Epoll = Box::leak(Box::new(Epoll::new()?));
        let hosts = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, Event::Hosts as u64);
        events.ctl(ControlOperation::Add, muxer.events(), hosts)?;
        // QEMU's signals are for its own threads, and a new thread blocks what this one does.
        let thread = || -> io::Result<()> {
            std::thread::Builder::new()
                .name("vsock".into())
                .spawn(move || serve(events))
                .map(drop)
        };
        without_signals(thread)?;
        Ok(Self {
            rings: Rings::new(muxer)?,
            regions: Vec::new(),
            events,
        })
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring, c_int> {
        let ring = self.rings.rings.get_mut(index as usize);
        ring.ok_or(libc::ENOBUFS)
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue, c_int> {
        Ok(&mut self.ring(index)?.queue)
    }

    fn set_memory(&mut self, regions: Vec<Region>) -> io::Result<()> {
        let mut mapped = Vec::new();
        for region in &regions {
            let size = usize::try_from(region.size).map_err(io::Error::other)?;
            let start = std::ptr::with_exposed_provenance_mut(region.user as usize);
            // SAFETY: it is the guest's memory in this very process, which QEMU keeps until it
            // tells of another.
            let built = unsafe {
                MmapRegionBuilder::new(size)
                    .with_raw_mmap_pointer(start)
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_SHARED)
                    .build()
            };
            let built = built.map_err(io::Error::other)?;
            let guest = GuestRegionMmap::new(built, GuestAddress(region.guest));
            mapped.push(guest.ok_or(io::ErrorKind::InvalidInput)?);
        }
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(io::Error::other)?;
        self.rings.memory = Memory::new(memory);
        self.regions = regions;
        Ok(())
    }

    /// Where the guest has what is there in QEMU.
    fn guest_address(&self, user: u64) -> Result<GuestAddress, c_int> {
        let within = |region: &&Region| user >= region.user && user - region.user < region.size;
        let region = self.regions.iter().find(within).ok_or(libc::EFAULT)?;
        Ok(GuestAddress(region.guest + (user - region.user)))
    }

    fn set_address(&mut self, address: &RingAddress) -> Result<(), c_int> {
        let descriptors = self.guest_address(address.descriptors)?;
        let available = self.guest_address(address.available)?;
        let used = self.guest_address(address.used)?;
        let queue = self.queue(address.index)?;
        let set = queue
            .try_set_desc_table_address(descriptors)
            .and_then(|()| queue.try_set_avail_ring_address(available))
            .and_then(|()| queue.try_set_used_ring_address(used));
        set.map_err(|_| libc::EINVAL)
    }

    fn set_kick(&mut self, index: u32, kick: Option<File>) -> Result<(), c_int> {
        let events = self.events;
        let ring = self.ring(index)?;
        if let Some(before) = ring.kick.take() {
            let none = EpollEvent::default();
            let _ = events.ctl(ControlOperation::Delete, before.as_raw_fd(), none);
        }
        if let Some(kick) = kick {
            let event = EpollEvent::new(EventSet::IN, u64::from(index));
            let added = events.ctl(ControlOperation::Add, kick.as_raw_fd(), event);
            added.map_err(|error| errno(&error))?;
            ring.kick = Some(kick);
        }
        Ok(())
    }

    fn run(&mut self, runs: bool) -> io::Result<()> {
        self.rings.run(runs)?;
        self.rings.turn()
    }
}

/// The thread of the device: takes up what the guest and hosts do, for as long as QEMU lives.
fn serve(events: &Epoll) {
    let mut seen = [EpollEvent::default(); 8];
    loop {
        let count = match events.wait(-1, &mut seen) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let mut device = device();
        let Some(device) = device.as_mut() else {
            continue;
        };
        for event in &seen[..count] {
            if let Some(ring) = device.rings.rings.get(event.data() as usize) {
                ring.forget_kick();
            }
        }
        // A guest that breaks its rings has no device any more.
        if device.rings.turn().is_err() {
            return;
        }
    }
}

/// Does something with all of this thread's signals blocked.
fn without_signals<T>(act: impl FnOnce() -> T) -> T {
    const { assert!(size_of::<libc::sigset_t>() > 0) };
    // SAFETY: sets of signals are plain numbers, and the calls fill and read them.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    };
    let acted = act();
    // SAFETY: the set is what the call before gave.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    acted
}
