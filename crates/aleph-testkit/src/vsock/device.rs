//! The device as QEMU and the guest's driver see it: features, configuration, rings.

use super::muxer::Muxer;
use super::packet::{BUFFER, FromGuest, HOST, Ports, STREAM, ToGuest};
use std::io;
use std::num::Wrapping;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VringMutex, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::{QueueOwnedT, QueueT};
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// The rings to the guest and from it. QEMU keeps that of events.
const RINGS: usize = 2;
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

/// The event of hosts. Those of rings have the rings' numbers, and the next number is taken.
pub(super) const HOSTS: u64 = RINGS as u64 + 1;

/// Entries of a ring at most; QEMU asks for 128.
const MAX_ENTRIES: usize = 1024;

pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;
type Ring = VringMutex<Memory>;

pub(super) struct Device {
    muxer: Muxer,
    memory: Memory,
    exit: Exit,
}

/// Both ends of what ends the threads of the rings.
struct Exit(EventConsumer, EventNotifier);

impl Device {
    pub(super) fn new(muxer: Muxer, memory: Memory) -> io::Result<Self> {
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let (consumer, notifier) = new_event_consumer_and_notifier(flags)?;
        Ok(Self {
            muxer,
            memory,
            exit: Exit(consumer, notifier),
        })
    }

    /// Takes what the guest sent.
    fn receive(&mut self, ring: &Ring) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut ring = ring.get_mut();
        let mut has_used = false;
        loop {
            let queue = ring.get_queue_mut();
            let Some(mut chain) = queue.pop_descriptor_chain(memory.clone()) else {
                break;
            };
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
            queue
                .add_used(&*memory, head, 0)
                .map_err(io::Error::other)?;
            has_used = true;
        }
        if has_used {
            ring.signal_used_queue()?;
        }
        Ok(())
    }

    /// Sends the guest what there is for it and it has room for.
    fn send(&mut self, ring: &Ring) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut ring = ring.get_mut();
        let mut has_used = false;
        loop {
            let queue = ring.get_queue_mut();
            let Some(mut chain) = queue.pop_descriptor_chain(memory.clone()) else {
                break;
            };
            let head = chain.head_index();
            let mut used = 0;
            if let Ok(mut packet) = VsockPacket::from_rx_virtq_chain(&*memory, &mut chain, BUFFER) {
                let room = packet.data_slice().map_or(0, VolatileSlice::len);
                let Some(next) = self.muxer.next(room) else {
                    queue.go_to_previous_position();
                    break;
                };
                if let Some(slice) = packet.data_slice() {
                    slice.copy_from(&next.data[..]);
                }
                fill(&mut packet, &next, self.muxer.cid());
                used = PKT_HEADER_SIZE + next.data.len();
            }
            let used = u32::try_from(used).map_err(io::Error::other)?;
            queue
                .add_used(&*memory, head, used)
                .map_err(io::Error::other)?;
            has_used = true;
        }
        if has_used {
            ring.signal_used_queue()?;
        }
        Ok(())
    }
}

/// Writes a packet's header.
fn fill<B: BitmapSlice>(packet: &mut VsockPacket<'_, B>, next: &ToGuest, cid: u32) {
    packet
        .set_src_cid(HOST)
        .set_dst_cid(u64::from(cid))
        .set_src_port(next.ports.host)
        .set_dst_port(next.ports.guest)
        .set_len(u32::try_from(next.data.len()).unwrap_or(0))
        .set_type(STREAM)
        .set_op(next.op)
        .set_flags(next.flags)
        .set_buf_alloc(BUFFER)
        .set_fwd_cnt(next.forwarded);
}

fn runs(ring: &Ring) -> bool {
    let ring = ring.get_ref();
    ring.is_enabled() && ring.get_queue().ready()
}

impl VhostUserBackendMut for Device {
    type Bitmap = BitmapMmapRegion;
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        RINGS
    }

    fn max_queue_size(&self) -> usize {
        MAX_ENTRIES
    }

    fn features(&self) -> u64 {
        // Without the last one QEMU writes no guest down that has the device.
        1 << VIRTIO_F_VERSION_1
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::LOG_SHMFD
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn reset_device(&mut self) {
        self.muxer.reset();
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = u64::from(self.muxer.cid()).to_le_bytes();
        let from = offset as usize;
        let to = from.saturating_add(size as usize);
        config.get(from..to).unwrap_or_default().to_vec()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let Exit(consumer, notifier) = &self.exit;
        Some((consumer.try_clone().ok()?, notifier.try_clone().ok()?))
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        rings: &[Ring],
        _thread: usize,
    ) -> io::Result<()> {
        // Hosts wait until the guest's driver is there, and while the guest stands still.
        if !rings.iter().all(runs) {
            return Ok(());
        }
        self.receive(&rings[FROM_GUEST])?;
        self.muxer.take_up();
        self.send(&rings[TO_GUEST])
    }
}
