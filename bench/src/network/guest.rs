//! Packets to a real guest and back, with the node's rules and without any.
//!
//! The same guest on the same TAP: between rounds the tables are taken away and written again. Its
//! kernel answers echo requests (ICMP), so no program in it takes part.

use super::rules::{add, base, forwards};
use super::space::{alone, sh};
use super::{MICRO, open, spec, vm};
use crate::Bench;
use crate::row::Row;
use aleph_executor::accel::Accelerator;
use aleph_executor::executor::COMMAND_LINE;
use aleph_executor::guest::{GuestNetwork, SetupRequest, UpperKind};
use aleph_executor::host;
use aleph_executor::hypervisor::{Machine, Memory, Nic};
use aleph_executor::lifecycle::Timeouts;
use aleph_executor::place::Place;
use aleph_executor::qemu::{QemuConfig, QemuDriver};
use aleph_executor::vm::{Begin, Ending, Vm, VmSpec};
use aleph_types::{MiB, Resources};
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::nft::Rules;
use aleph_vm_networking::{Attachment, Ipv6Config, Network};
use anyhow::{Context, Result};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto,
    socket_with, sockopt,
};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 11;
/// Echoes of a round, one after the other, and in flight together.
const ECHOES: u16 = 400;
const IN_FLIGHT: u16 = 16;
const FORWARDS: u16 = 10_000;
const SETTLED: Duration = Duration::from_millis(500);

/// Microseconds of each round trip, and echoes per second with many in flight.
#[derive(Default)]
struct Samples {
    trips: Vec<f64>,
    rates: Vec<f64>,
}

pub(super) fn guest(bench: &Bench) -> Result<Vec<Row>> {
    let (bare, ours) = alone(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(measure(bench))
    })?;
    let reference = "the same guest, no rules at all";
    Ok(vec![
        Row::new(
            "echo of a real guest, with the rules and 10,000 forwards",
            "µs",
            &ours.trips,
        )
        .against(reference, &bare.trips)
        .at_most_times(1.0 / 0.95),
        Row::new(
            "the same, 16 in flight, 1,000 bytes each",
            "1/s",
            &ours.rates,
        )
        .against(reference, &bare.rates)
        .at_least_times(0.95),
    ])
}

async fn measure(bench: &Bench) -> Result<(Samples, Samples)> {
    let network = open(bench.root.path(), Ipv6Config::Off)?;
    network.claim(vm(1)?, ("bench", "bench"), &spec(Some(80))?)?;
    let attached = network.attach(vm(1)?, 1, None)?;
    let address = attached.network.vm_ip;
    let guest = boot(bench, attached).await?;
    guest.running().await?;
    let socket = socket()?;
    let (mut bare, mut ours) = (Samples::default(), Samples::default());
    for round in 0..=ROUNDS {
        for (samples, with_rules) in [(&mut bare, false), (&mut ours, true)] {
            rules(&network, with_rules)?;
            // What it frees and sorts of the tables, the kernel does in a thread of its own.
            tokio::time::sleep(SETTLED).await;
            let (trips, rate) = echoes(&socket, address)?;
            // The first fills caches.
            if round > 0 {
                samples.trips.extend(trips);
                samples.rates.push(rate);
            }
        }
    }
    guest.kill().await?;
    guest.destroy().await?;
    network.remove()?;
    Ok((bare, ours))
}

fn rules(network: &Network, with: bool) -> Result<()> {
    if !with {
        return sh("nft delete table inet aleph-bench; nft delete table arp aleph-bench");
    }
    network.sweep()?;
    Ok(Rules::new(base()).change(&add(forwards(1000..1000 + FORWARDS)))?)
}

async fn boot(bench: &Bench, attached: Attachment) -> Result<Vm> {
    let boot = bench.open_boot()?;
    let place = Place::create(&bench.root.paths()?, None)?;
    let driver = QemuDriver::new(QemuConfig {
        program: "qemu-system-x86_64".into(),
        accelerator: Accelerator::Tcg,
        tsc_khz: host::tsc_khz(&bench.root.path().join("tsc-khz")),
        cache: bench.root.path().join("qemu.json"),
    });
    let queues = attached.tap.queues.into_iter().map(OwnedFd::from);
    let spec = VmSpec {
        resources: Resources {
            memory: MiB(128),
            ..Resources::default()
        },
        begin: Begin::Boot {
            kernel: boot.kernel,
            initrd: boot.initrd,
            command_line: COMMAND_LINE.to_owned(),
            setup: Box::new(SetupRequest {
                hostname: "bench".into(),
                filesystem: boot.filesystem,
                upper: UpperKind::Memory,
                poweroff_on_hangup: true,
                network: Some(GuestNetwork {
                    mac: attached.mac.0,
                    address: attached.network.vm_ip,
                    prefix_length: 30,
                    gateway: attached.network.host_ip,
                    gateway_mac: Mac::HOST.0,
                    mtu: attached.mtu,
                    resolver: None,
                    search: String::new(),
                    v6: None,
                }),
                mounts: Vec::new(),
            }),
        },
        machine: Machine::MicroVm,
        image: Some(boot.image),
        disks: Vec::new(),
        memory: Memory::Own,
        nics: vec![Nic {
            mac: attached.mac.0,
            queues: queues.collect(),
        }],
        links: Vec::new(),
        timeouts: Timeouts::default(),
        ending: Ending {
            kept: false,
            stop_signal: 15,
            durable: false,
        },
    };
    let vm = Vm::create(place, Arc::new(driver), spec);
    vm.start(None).await?;
    Ok(vm)
}

fn socket() -> Result<OwnedFd> {
    let kind = (SocketType::RAW, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::INET, kind.0, kind.1, Some(ipproto::ICMP))?;
    let patience = Some(Duration::from_secs(2));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience)?;
    Ok(socket)
}

fn echoes(socket: &OwnedFd, guest: Ipv4Addr) -> Result<(Vec<f64>, f64)> {
    let mut trips = Vec::with_capacity(usize::from(ECHOES));
    for n in 0..ECHOES {
        let began = Instant::now();
        ask(socket, guest, n, 56)?;
        answer(socket)?;
        trips.push(began.elapsed().as_secs_f64() * MICRO);
    }
    let began = Instant::now();
    for n in 0..IN_FLIGHT {
        ask(socket, guest, n, 1000)?;
    }
    for n in 0..ECHOES {
        answer(socket)?;
        if n + IN_FLIGHT < ECHOES {
            ask(socket, guest, n + IN_FLIGHT, 1000)?;
        }
    }
    Ok((trips, f64::from(ECHOES) / began.elapsed().as_secs_f64()))
}

/// An echo request (RFC 792), type 8.
fn ask(socket: impl AsFd, guest: Ipv4Addr, number: u16, size: usize) -> Result<()> {
    let mut packet = vec![0; 8 + size];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&0xa1e_u16.to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    let pairs = packet.chunks(2);
    let mut sum: u32 = pairs
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[2..4].copy_from_slice(&(!u16::try_from(sum)?).to_be_bytes());
    let to = SocketAddrV4::new(guest, 0);
    sendto(socket, &packet, SendFlags::empty(), &to)?;
    Ok(())
}

/// The next echo reply, type 0, behind an IP header of 20 bytes.
fn answer(socket: impl AsFd) -> Result<()> {
    let mut packet = [0; 2048];
    loop {
        let (n, _) =
            recv(&socket, &mut packet[..], RecvFlags::empty()).context("an echo was lost")?;
        if n >= 28 && packet[20] == 0 {
            return Ok(());
        }
    }
}
