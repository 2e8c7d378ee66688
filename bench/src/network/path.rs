//! Packets to a guest and back, with rules and without.

use super::rules::forwards;
use super::space::{alone, sh};
use super::{MICRO, open, spec, vm};
use crate::row::Row;
use aleph_vm_networking::Ipv6Config;
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::nft::Rules;
use aleph_vm_networking::tap::Tap;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;
/// Datagrams of a round, one after the other and in flight together.
const PACKETS: usize = 3000;
const IN_FLIGHT: usize = 32;
const FORWARDS: u16 = 10_000;

/// What a guest's network is like.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A TAP and an address, and no rules in the namespace.
    Bare,
    /// As the node makes it, beside so many forwards.
    Ours(u16),
}

/// One round: microseconds of each round trip, and datagrams per second with many in flight.
struct Round {
    trips: Vec<f64>,
    rate: f64,
}

pub(super) fn path(run: &Path) -> Result<Vec<Row>> {
    let kinds = [Kind::Bare, Kind::Ours(0), Kind::Ours(FORWARDS)];
    let mut rounds: Vec<Vec<Round>> = kinds.iter().map(|_| Vec::new()).collect();
    std::thread::scope(|scope| -> Result<()> {
        let mut hosts: Vec<(Sender<()>, Receiver<Result<Round>>)> = Vec::new();
        for (index, kind) in kinds.into_iter().enumerate() {
            let ((go, told), (tell, done)) = (channel(), channel());
            let run = run.join(format!("path-{index}"));
            scope.spawn(move || {
                let answer = tell.clone();
                let ended = alone(move || {
                    std::fs::create_dir_all(&run)?;
                    host(kind, &run, &told, &answer)
                });
                if let Err(error) = ended {
                    let _ = tell.send(Err(error));
                }
            });
            hosts.push((go, done));
        }
        // In turn, so that a host whose speed drifts slows all of them. The first fills caches.
        for round in 0..=ROUNDS {
            for ((go, done), rounds) in hosts.iter().zip(&mut rounds) {
                go.send(())?;
                let measured = done.recv()??;
                if round > 0 {
                    rounds.push(measured);
                }
            }
        }
        Ok(())
    })?;
    let trips = |kind: usize| -> Vec<f64> {
        rounds[kind]
            .iter()
            .flat_map(|r| r.trips.iter().copied())
            .collect()
    };
    let rates = |kind: usize| -> Vec<f64> { rounds[kind].iter().map(|r| r.rate).collect() };
    let bare = "a bare TAP without any rules";
    let mut rows = Vec::new();
    for (kind, name) in [(1, "with the node's rules"), (2, "and 10,000 forwards")] {
        rows.push(
            Row::new(
                format!("datagram to a guest and back, {name}"),
                "µs",
                &trips(kind),
            )
            .against(bare, &trips(0)),
        );
        rows.push(
            Row::new(
                format!("datagrams echoed, 32 in flight, {name}"),
                "1/s",
                &rates(kind),
            )
            .against(bare, &rates(0)),
        );
    }
    Ok(rows)
}

fn host(kind: Kind, run: &Path, told: &Receiver<()>, tell: &Sender<Result<Round>>) -> Result<()> {
    let guest = Ipv4Addr::new(10, 0, 0, 2);
    let (tap, _network) = match kind {
        Kind::Bare => {
            let tap = Tap::make("tap-bare", 1, None)?;
            sh(&format!(
                "ip link set tap-bare address {host} up
                 ip address add 10.0.0.1/30 dev tap-bare
                 ip neighbour add {guest} lladdr {mac} dev tap-bare",
                host = Mac::HOST,
                mac = Mac::of(vm(1)?)
            ))?;
            (tap, None)
        }
        Kind::Ours(others) => {
            let network = open(run, Ipv6Config::Off)?;
            network.claim(vm(1)?, ("bench", "bench"), &spec(Some(80))?)?;
            let attached = network.attach(vm(1)?, 1, None)?;
            let mut rules = Rules::new(super::rules::base());
            rules.change(&super::rules::add(forwards(1000..1000 + others)))?;
            (attached.tap, Some(network))
        }
    };
    let queue = tap.queues.into_iter().next().context("no queue")?;
    std::thread::spawn(move || echo(&queue));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((guest, 9))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    while told.recv().is_ok() {
        tell.send(round(&socket))?;
    }
    Ok(())
}

fn round(socket: &UdpSocket) -> Result<Round> {
    let mut bytes = [7; 1400];
    let mut trips = Vec::with_capacity(PACKETS);
    for _ in 0..PACKETS {
        let began = Instant::now();
        socket.send(&bytes[..64])?;
        socket.recv(&mut bytes).context("a datagram was lost")?;
        trips.push(began.elapsed().as_secs_f64() * MICRO);
    }
    let began = Instant::now();
    for _ in 0..IN_FLIGHT {
        socket.send(&bytes)?;
    }
    for n in 0..PACKETS {
        socket.recv(&mut bytes).context("a datagram was lost")?;
        if n + IN_FLIGHT < PACKETS {
            socket.send(&bytes)?;
        }
    }
    #[allow(clippy::cast_precision_loss)]
    let rate = PACKETS as f64 / began.elapsed().as_secs_f64();
    Ok(Round { trips, rate })
}

/// The guest: sends every datagram back, until its TAP is gone.
fn echo(mut queue: &File) {
    const HEADER: usize = 10;
    let mut frame = [0; 4096];
    while let Ok(n) = queue.read(&mut frame) {
        let at = |offset: usize| HEADER + offset;
        if n < at(42) || frame[at(12)..at(14)] != [8, 0] || frame[at(23)] != 17 {
            continue;
        }
        // The host's checksum may be left to be done; one of zero says that there is none.
        frame[..HEADER].fill(0);
        frame[at(40)..at(42)].fill(0);
        let (to, from) = (at(0), at(6));
        for offset in 0..6 {
            frame.swap(to + offset, from + offset);
        }
        for offset in 0..4 {
            frame.swap(at(26) + offset, at(30) + offset);
        }
        for offset in 0..2 {
            frame.swap(at(34) + offset, at(36) + offset);
        }
        if queue.write_all(&frame[..n]).is_err() {
            return;
        }
    }
}
