//! The rings between the device and the guest's driver.

use crate::muxer::Muxer;
use crate::packet::{BUFFER, FromGuest, HOST, Ports, STREAM, ToGuest};
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::Wrapping;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, VolatileSlice};

/// The rings to the guest and from it. QEMU keeps that of events.
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

/// Entries of a ring at most; QEMU has 128.
const MAX_ENTRIES: u16 = 1024;

/// What the thread of the device waits for: kicks of rings have their numbers.
pub(crate) enum Event {
    Hosts = 2,
}

pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A ring, and how both sides wake one another.
pub(crate) struct Ring {
    pub(crate) queue: Queue,
    pub(crate) kick: Option<File>,
    pub(crate) call: Option<File>,
}

impl Ring {
    fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Queue::new(MAX_ENTRIES).map_err(io::Error::other)?,
            kick: None,
            call: None,
        })
    }

    /// Takes note of a kick.
    pub(crate) fn forget_kick(&self) {
        // It may have been somebody else's event.
        let _ = self.kick.as_ref().map(|mut kick| kick.read(&mut [0; 8]));
    }

    fn call(&self) -> io::Result<()> {
        let Some(mut call) = self.call.as_ref() else {
            return Ok(());
        };
        call.write_all(&1_u64.to_ne_bytes())
    }
}

/// Both rings, and what goes through them.
pub(crate) struct Rings {
    pub(crate) muxer: Muxer,
    pub(crate) memory: Memory,
    pub(crate) rings: [Ring; 2],
}

impl Rings {
    pub(crate) fn new(muxer: Muxer) -> io::Result<Self> {
        Ok(Self {
            muxer,
            memory: Memory::new(GuestMemoryMmap::new()),
            rings: [Ring::new()?, Ring::new()?],
        })
    }

    /// Lets the rings go on where they stood, or has them stand.
    pub(crate) fn run(&mut self, runs: bool) -> io::Result<()> {
        let memory = self.memory.memory();
        for Ring { queue, .. } in &mut self.rings {
            if runs {
                let used = queue.used_idx(&*memory, Ordering::Relaxed);
                queue.set_next_used(used.map_err(io::Error::other)?.0);
            }
            queue.set_ready(runs);
        }
        Ok(())
    }

    /// Does what there is to do.
    pub(crate) fn turn(&mut self) -> io::Result<()> {
        // Hosts wait until the guest's driver is there, and while the guest stands still.
        if self.rings.iter().all(|ring| ring.queue.ready()) {
            self.receive()?;
            self.muxer.take_up();
            self.send()?;
        }
        Ok(())
    }

    /// Takes what the guest sent.
    fn receive(&mut self) -> io::Result<()> {
        let memory = self.memory.memory();
        let ring = &mut self.rings[FROM_GUEST];
        let mut has_used = false;
        while let Some(mut chain) = ring.queue.pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            // What is no packet is dropped, as Firecracker does.
            if let Ok(packet) = VsockPacket::from_tx_virtq_chain(&*memory, &mut chain, BUFFER) {
                let mut data = vec![0; packet.data_slice().map_or(0, VolatileSlice::len)];
                if let Some(slice) = packet.data_slice() {
                    slice.copy_to(&mut data[..]);
                }
                let from = FromGuest {
                    ports: Ports {
                        host: packet.dst_port(),
                        guest: packet.src_port(),
                    },
                    op: packet.op(),
                    flags: packet.flags(),
                    allocated: packet.buf_alloc(),
                    forwarded: Wrapping(packet.fwd_cnt()),
                };
                self.muxer
                    .accept(&from, packet.type_(), packet.dst_cid(), &data);
            }
            let used = ring.queue.add_used(&*memory, head, 0);
            used.map_err(io::Error::other)?;
            has_used = true;
        }
        if has_used { ring.call() } else { Ok(()) }
    }

    /// Sends the guest what there is for it and it has room for.
    fn send(&mut self) -> io::Result<()> {
        let memory = self.memory.memory();
        let ring = &mut self.rings[TO_GUEST];
        let mut has_used = false;
        while let Some(mut chain) = ring.queue.pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            let mut used = 0;
            if let Ok(mut packet) = VsockPacket::from_rx_virtq_chain(&*memory, &mut chain, BUFFER) {
                let room = packet.data_slice().map_or(0, VolatileSlice::len);
                let Some(next) = self.muxer.next(room) else {
                    ring.queue.go_to_previous_position();
                    break;
                };
                if let Some(slice) = packet.data_slice() {
                    slice.copy_from(&next.data[..]);
                }
                fill(&mut packet, &next, self.muxer.cid());
                used = PKT_HEADER_SIZE + next.data.len();
            }
            let used = u32::try_from(used).map_err(io::Error::other)?;
            let used = ring.queue.add_used(&*memory, head, used);
            used.map_err(io::Error::other)?;
            has_used = true;
        }
        if has_used { ring.call() } else { Ok(()) }
    }
}

/// Writes a packet's header.
fn fill<B: BitmapSlice>(packet: &mut VsockPacket<'_, B>, next: &ToGuest, cid: u64) {
    packet
        .set_src_cid(HOST)
        .set_dst_cid(cid)
        .set_src_port(next.ports.host)
        .set_dst_port(next.ports.guest)
        .set_len(u32::try_from(next.data.len()).unwrap_or(0))
        .set_type(STREAM)
        .set_op(next.op)
        .set_flags(next.flags)
        .set_buf_alloc(BUFFER)
        .set_fwd_cnt(next.forwarded);
}
