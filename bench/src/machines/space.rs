//! What both VMs have in common, and the network in which they are looked for.

use crate::network::sh;
use aleph_executor::cloud_init::{GuestSpec, Nic};
use aleph_executor::seed_file::write_seed;
use aleph_types::{JobId, MiB, NodeId};
use aleph_vm_networking::mac::Mac;
use anyhow::{Result, ensure};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The peer's network.
pub(super) mod address {
    use std::net::Ipv4Addr;

    pub(in super::super) const PEER_HOST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
    pub(in super::super) const PEER_GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
    pub(in super::super) const PEER_MAC: &str = "52:54:00:00:00:01";
}

/// How long a guest may take until it is there, emulated.
const LIMIT: Duration = Duration::from_secs(400);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);
/// How long one look may take.
const TRY: Duration = Duration::from_secs(1);

/// What both are made of.
pub(super) struct Shared {
    /// The disk image, a qcow2.
    pub(super) image: PathBuf,
    /// The peer's seed: our node makes its own.
    pub(super) seed: PathBuf,
    pub(super) cpus: u16,
    pub(super) memory: MiB,
    /// How large its disk is.
    pub(super) disk: MiB,
}

/// Writes what the peer's guest is told of its network, as our node tells its own.
pub(super) fn write_peers_seed(to: &Path) -> Result<()> {
    let mut guest = GuestSpec::new(JobId::random(), NodeId::random());
    guest.networks.push(Nic {
        mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
        name: "eth0".into(),
        addresses: vec![(IpAddr::V4(address::PEER_GUEST), 30)],
        gateways: vec![IpAddr::V4(address::PEER_HOST)],
        nameservers: Vec::new(),
        search: Vec::new(),
        mtu: None,
    });
    write_seed(to, &guest.seed()?.image()?)?;
    Ok(())
}

/// A TAP interface with this address on the host's side.
pub(super) fn tap(name: &str, host: Ipv4Addr) -> Result<()> {
    sh(&format!(
        "ip tuntap add {name} mode tap && ip addr add {host}/30 dev {name} && ip link set {name} up"
    ))
}

/// Waits until a server of SSH greets at an address.
pub(super) fn wait_for_ssh(guest: Ipv4Addr) -> Result<()> {
    let (at, began) = (SocketAddr::from((guest, 22)), Instant::now());
    while began.elapsed() < LIMIT {
        if greets(&at) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    ensure!(began.elapsed() < LIMIT, "nobody greets at {at}");
    Ok(())
}

fn greets(at: &SocketAddr) -> bool {
    let mut greeting = [0; 8];
    let mut read = || {
        let mut stream = TcpStream::connect_timeout(at, TRY)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.read_exact(&mut greeting)
    };
    read().is_ok() && greeting == *b"SSH-2.0-"
}
