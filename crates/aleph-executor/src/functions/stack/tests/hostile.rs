//! Guests that mean harm: whatever frames come, the stack goes on, what it holds is bounded, what
//! leaves it is well-formed, and no byte of a connection is another one than was said.

use super::super::connection::Phase;
use super::super::core::{Core, MAX_CONNECTIONS};
use super::super::frames::Frames;
use super::super::link::{Link, MAX_WAITING};
use super::super::wire::{ETHERNET, Frame, Offer, from_guest, ip_header, look, number, sequence};
use super::super::{FRAMES, GUEST_ADDRESS, HOST_ADDRESS, Kept, MTU};
use super::kernel::PORT;
use proptest::prelude::*;
use smoltcp::socket::tcp::{self, State};
use smoltcp::wire::{IPV4_HEADER_LEN, Ipv4Packet, TcpControl, TcpPacket, TcpRepr};
use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The byte that stands at a sequence number, in either direction.
fn byte_at(number: u32) -> u8 {
    number.wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

fn bytes_from(first: u32, length: usize) -> Vec<u8> {
    let numbers = (0..length).map(|index| first.wrapping_add(u32::try_from(index).unwrap()));
    numbers.map(byte_at).collect()
}

/// What a segment differs by from the one that is due.
#[derive(Debug, Clone)]
struct Odd {
    sequence: i32,
    acknowledged: i32,
    flags: u8,
    window: u16,
    payload: usize,
    options: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Step {
    Noise(Vec<u8>),
    /// A connection is opened as it should be.
    Open {
        port: u16,
        offer: Offer,
        first: u32,
    },
    Segment {
        port: u16,
        odd: Odd,
    },
    /// The same, with some bytes of its headers changed, and cut off.
    Damaged {
        port: u16,
        odd: Odd,
        changed: Vec<(usize, u8)>,
        left: usize,
    },
    Write {
        which: usize,
        length: usize,
    },
    Read {
        which: usize,
    },
    Shutdown {
        which: usize,
    },
    Leave {
        which: usize,
    },
    Wait(u64),
    Go,
}

fn offer() -> impl Strategy<Value = Offer> {
    let max_segment = prop::option::of(prop_oneof![Just(8960), any::<u16>()]);
    let window_scale = prop::option::of(0..=14_u8);
    (max_segment, window_scale, any::<bool>()).prop_map(
        |(max_segment, window_scale, selective_ack)| Offer {
            max_segment,
            window_scale,
            selective_ack,
        },
    )
}

fn odd() -> impl Strategy<Value = Odd> {
    let near = || prop_oneof![8 => Just(0), 4 => -3..3, 2 => -70_000..70_000, 1 => any::<i32>()];
    // Bits as in the header: FIN, SYN, RST, PSH, ACK, URG.
    let flags = prop_oneof![8 => Just(0x10), 3 => Just(0x11), 1 => Just(0x14), 1 => any::<u8>()];
    let window = prop_oneof![4 => Just(0xffff), 1 => Just(0), 2 => any::<u16>()];
    let payload = prop_oneof![2 => Just(0), 2 => 0..20_usize, 2 => 0..8900_usize];
    let options =
        prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 0..40)];
    (near(), near(), flags, window, payload, options).prop_map(
        |(sequence, acknowledged, flags, window, payload, options)| Odd {
            sequence,
            acknowledged,
            flags,
            window,
            payload,
            options,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let port = || 1..5_u16;
    let which = || 0..4_usize;
    let changed = prop::collection::vec((0..60_usize, any::<u8>()), 0..4);
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Noise),
        4 => (port(), offer(), any::<u32>())
            .prop_map(|(port, offer, first)| Step::Open { port, offer, first }),
        12 => (port(), odd()).prop_map(|(port, odd)| Step::Segment { port, odd }),
        1 => (port(), odd(), changed, 0..9100_usize).prop_map(|(port, odd, changed, left)| {
            Step::Damaged { port, odd, changed, left }
        }),
        4 => (which(), 0..80_000_usize).prop_map(|(which, length)| Step::Write { which, length }),
        4 => which().prop_map(|which| Step::Read { which }),
        1 => which().prop_map(|which| Step::Shutdown { which }),
        1 => which().prop_map(|which| Step::Leave { which }),
        2 => prop_oneof![0..20_u64, 0..100_000_u64].prop_map(Step::Wait),
        1 => Just(Step::Go),
    ]
}

/// A guest, and the stack that it means to harm.
struct World {
    runtime: Runtime,
    core: Core,
    guest: UnixDatagram,
    /// What is due next on each port: the guest's number, and the host's.
    due: HashMap<u16, (u32, u32)>,
    /// Whether the guest may have said something else than it should.
    is_damaged: bool,
}

fn stack(runtime: &Runtime) -> (Core, UnixDatagram) {
    let (ours, guest) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    guest.set_nonblocking(true).unwrap();
    let _within = runtime.enter();
    let socket = Arc::new(Frames::new(ours.into()).unwrap());
    runtime.block_on(socket.writable()).unwrap();
    (Core::new(Link::new(socket, PORT), PORT), guest)
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (core, guest) = stack(&runtime);
        Self {
            runtime,
            core,
            guest,
            due: HashMap::new(),
            is_damaged: false,
        }
    }

    /// Sends a frame, and looks at what comes back.
    fn send(&mut self, frame: &[u8]) {
        // The kernel takes no empty ones from some guests, and from others it does.
        self.guest.send(frame).unwrap();
        let socket = Arc::clone(self.core.link.socket());
        self.runtime.block_on(socket.readable()).unwrap();
        self.turn();
    }

    fn turn(&mut self) {
        self.core.turn(FRAMES);
        self.look();
        assert!(self.core.connections.len() <= MAX_CONNECTIONS);
        assert!(self.core.link.waiting() <= MAX_WAITING);
        assert_eq!(self.core.connections.len(), self.core.link.flows().len());
        assert!(!self.core.is_over);
    }

    /// Reads what the stack sent.
    fn look(&mut self) {
        let mut frame = vec![0; 64 * 1024];
        while let Ok(length) = self.guest.recv(&mut frame) {
            let frame = &frame[..length];
            assert!(length <= ETHERNET + usize::from(MTU));
            if frame[..ETHERNET] != ip_header() {
                continue;
            }
            let packet = Ipv4Packet::new_checked(&frame[ETHERNET..]).unwrap();
            assert!(packet.verify_checksum());
            assert_eq!(usize::from(packet.total_len()), length - ETHERNET);
            assert_eq!(packet.dst_addr(), GUEST_ADDRESS);
            let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
            assert!(tcp.verify_checksum(&HOST_ADDRESS.into(), &GUEST_ADDRESS.into()));
            if tcp.rst() || tcp.src_port() != PORT {
                continue;
            }
            let said = number(tcp.seq_number());
            assert!(
                tcp.payload() == bytes_from(said, tcp.payload().len()),
                "the guest gets other bytes than were written"
            );
            let length = u32::try_from(tcp.segment_len()).unwrap();
            let due = (number(tcp.ack_number()), said.wrapping_add(length));
            self.due.insert(tcp.dst_port(), due);
        }
    }

    fn segment(&self, port: u16, odd: &Odd) -> Vec<u8> {
        let (due, known) = self.due.get(&port).copied().unwrap_or_default();
        let first = due.wrapping_add_signed(odd.sequence);
        let payload = bytes_from(first, odd.payload);
        let mut packet = from_guest(&TcpRepr {
            seq_number: sequence(first),
            ack_number: Some(sequence(known.wrapping_add_signed(odd.acknowledged))),
            window_len: odd.window,
            payload: &[],
            ..syn(port)
        });
        let words = odd.options.len().div_ceil(4);
        packet[IPV4_HEADER_LEN + 12] = u8::try_from(5 + words).unwrap() << 4;
        packet[IPV4_HEADER_LEN + 13] = odd.flags;
        packet.extend_from_slice(&odd.options);
        packet.resize(IPV4_HEADER_LEN + 20 + words * 4, 0);
        packet.extend_from_slice(&payload);
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        framed(&packet)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Noise(frame) => self.send(&frame),
            Step::Open { port, offer, first } => {
                self.send(&framed(&from_guest(&TcpRepr {
                    control: TcpControl::Syn,
                    seq_number: sequence(first),
                    max_seg_size: offer.max_segment,
                    window_scale: offer.window_scale,
                    sack_permitted: offer.selective_ack,
                    ..syn(port)
                })));
                let due = Odd {
                    sequence: 0,
                    acknowledged: 0,
                    flags: 0x10,
                    window: 0xffff,
                    payload: 0,
                    options: Vec::new(),
                };
                let ack = self.segment(port, &due);
                self.send(&ack);
            }
            Step::Segment { port, odd } => {
                let frame = self.segment(port, &odd);
                self.send(&frame);
            }
            Step::Damaged {
                port,
                odd,
                changed,
                left,
            } => {
                self.is_damaged = true;
                let mut frame = self.segment(port, &odd);
                for (index, byte) in changed {
                    if let Some(changed) = frame.get_mut(index) {
                        *changed ^= byte;
                    }
                }
                frame.truncate(left.max(1));
                self.send(&frame);
            }
            Step::Wait(milliseconds) => {
                self.core.began -= Duration::from_millis(milliseconds);
                self.turn();
            }
            Step::Go => self.go(),
            Step::Write { which, length } => self.write(which, length),
            Step::Read { which } => self.read(which),
            Step::Shutdown { which } => {
                if let Some(handle) = self.taken(which) {
                    let socket = self.core.sockets.get_mut::<tcp::Socket<'_>>(handle);
                    socket.close();
                    self.turn();
                }
            }
            Step::Leave { which } => {
                if let Some(handle) = self.taken(which) {
                    self.core.leave(handle);
                    self.turn();
                }
            }
        }
    }

    /// One of the connections that the host has accepted.
    fn taken(&mut self, which: usize) -> Option<smoltcp::iface::SocketHandle> {
        while self.core.accept().is_some() {}
        let mut connections = self.core.connections.iter();
        let taken = connections.by_ref().filter(|one| one.phase == Phase::Taken);
        taken.map(|one| one.handle).nth(which)
    }

    fn write(&mut self, which: usize, length: usize) {
        let Some(handle) = self.taken(which) else {
            return;
        };
        let connection = self.core.connection(handle).unwrap();
        let (port, written) = (connection.port, connection.written);
        let first = self.core.link.flow(port).unwrap().host_first;
        let bytes = bytes_from(first.wrapping_add(1).wrapping_add(written), length);
        let socket = self.core.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if let Ok(length) = socket.send_slice(&bytes)
            && length > 0
        {
            let connection = self.core.connection(handle).unwrap();
            connection.has_written(&bytes[..length]);
        }
        self.turn();
    }

    fn read(&mut self, which: usize) {
        let Some(handle) = self.taken(which) else {
            return;
        };
        let mut bytes = vec![0; 10_000];
        let socket = self.core.sockets.get_mut::<tcp::Socket<'_>>(handle);
        // What comes behind its end is the guest's own affair.
        let is_ended = !matches!(
            socket.state(),
            State::Established | State::FinWait1 | State::FinWait2
        );
        let length = socket.recv_slice(&mut bytes).unwrap_or(0);
        let connection = self.core.connection(handle).unwrap();
        let (port, read) = (connection.port, connection.read);
        connection.has_read(&bytes[..length]);
        let first = self.core.link.flow(port).unwrap().guest_first;
        let expected = bytes_from(first.wrapping_add(1).wrapping_add(read), length);
        let is_whole = bytes[..length] == expected;
        assert!(
            is_whole || self.is_damaged || is_ended,
            "other bytes than the guest said"
        );
        self.turn();
    }

    /// Goes on in another stack.
    fn go(&mut self) {
        let kept = self.core.keep();
        (self.core, self.guest) = stack(&self.runtime);
        for kept in &kept {
            let length = kept.unanswered.len();
            let back = u32::try_from(length).unwrap();
            let expected = bytes_from(kept.guest_next.wrapping_sub(back), length);
            assert!(self.is_damaged || kept.unanswered == expected);
            self.core.take_over(kept);
        }
        assert_eq!(self.core.connections.len(), kept.len());
        // The guest heard nothing of all that.
        assert!(self.guest.recv(&mut [0; 1]).is_err());
        self.turn();
    }
}

fn syn(port: u16) -> TcpRepr<'static> {
    TcpRepr {
        src_port: port,
        dst_port: PORT,
        control: TcpControl::None,
        seq_number: sequence(0),
        ack_number: None,
        window_len: 0xffff,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [ip_header().as_slice(), packet].concat()
}

proptest! {
    #[test]
    fn a_stack_stands_whatever_comes(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
    }

    #[test]
    fn what_is_kept_may_be_anything(
        kept in prop::collection::vec(
            (0..3_u16, offer(), any::<[u32; 2]>(), any::<u16>(), 0..9000_usize),
            0..4,
        ),
    ) {
        let mut world = World::new();
        for (port, offer, [guest_next, host_next], window, length) in kept {
            world.core.take_over(&Kept {
                port,
                offer,
                guest_next,
                host_next,
                window,
                unanswered: vec![0; length],
            });
            world.turn();
        }
    }
}

#[test]
fn connections_that_are_only_begun_are_bounded() {
    let mut world = World::new();
    for port in 1..=3000 {
        world.send(&framed(&from_guest(&TcpRepr {
            control: TcpControl::Syn,
            ..syn(port)
        })));
    }
    assert_eq!(world.core.connections.len(), MAX_CONNECTIONS);
    // The last of them can still be finished.
    let step = Step::Open {
        port: 3001,
        offer: Offer {
            max_segment: None,
            window_scale: None,
            selective_ack: false,
        },
        first: 7,
    };
    world.step(step);
    assert!(world.core.accept().is_some());
}

#[test]
fn a_guest_that_reads_no_frames_is_not_read_either() {
    let mut world = World::new();
    let syn = framed(&from_guest(&TcpRepr {
        control: TcpControl::Syn,
        dst_port: PORT + 1,
        ..syn(1)
    }));
    // Each of them is answered, until nothing more fits.
    let mut sent = 0;
    while world.guest.send(&syn).is_ok() {
        sent += 1;
        assert!(sent < 100_000, "it is read all the same");
        if world.core.link.has_room() {
            let socket = Arc::clone(world.core.link.socket());
            world.runtime.block_on(socket.readable()).unwrap();
        }
        world.core.turn(FRAMES);
        assert!(world.core.link.waiting() <= MAX_WAITING);
    }
    assert!(!world.core.link.has_room());
    // As soon as it reads, it goes on.
    world.look();
    let socket = Arc::clone(world.core.link.socket());
    world.runtime.block_on(socket.writable()).unwrap();
    world.turn();
    assert!(world.core.link.has_room());
}

#[test]
fn only_whole_segments_to_this_host_are_let_in() {
    let good = framed(&from_guest(&syn(5)));
    assert!(matches!(look(&good), Frame::Segment(segment, _) if segment.from == 5));
    // Ethernet pads what is short.
    let padded = [good.as_slice(), &[0; 6]].concat();
    assert!(matches!(look(&padded), Frame::Segment(_, packet) if packet.end == good.len()));
    let changes: [(&str, usize, u8); 9] = [
        ("not IPv4 by its type", 13, 0xdd),
        ("not IPv4 by its version", 14, 0x65),
        ("IP options", 14, 0x46),
        ("longer than its frame", 17, 0xff),
        ("more fragments", 20, 0x20),
        ("a later fragment", 21, 1),
        ("UDP", 23, 17),
        ("not from the guest", 29, 9),
        ("not to this host", 33, 9),
    ];
    for (what, index, byte) in changes {
        let mut frame = good.clone();
        frame[index] = byte;
        assert_eq!(look(&frame), Frame::Other, "{what}");
    }
    for length in 0..good.len() {
        assert_eq!(look(&good[..length]), Frame::Other, "{length} bytes");
    }
}

/// What is read of a guest that sends all the time is what it may send in that time.
#[test]
fn frames_without_end_are_read_by_the_second() {
    use super::super::Stack;
    const RATE: u128 = 50_000;
    const BURST: u128 = 8192;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (guest, host) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let began = std::time::Instant::now();
    let stack = {
        let _entered = runtime.enter();
        Stack::over(host.into(), PORT, &[]).unwrap()
    };
    // Sending waits for who reads.
    guest
        .set_write_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut sent = 0_u128;
    while sent < 4 * BURST {
        guest.send(&[0; 64]).unwrap();
        sent += 1;
    }
    let may = began.elapsed().as_micros() * RATE / 1_000_000 + BURST;
    // What waits in the socket was sent and is not read.
    let waiting = 4096;
    assert!(sent <= may + waiting, "{sent} of {may}");
    drop(stack);
}
