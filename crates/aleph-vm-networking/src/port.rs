//! A port of the host, held so that no other process takes it.
//!
//! The kernel forwards before it looks for a socket, so a process that listens on a forwarded port
//! would silently get nothing, and a forward over a port in use would silently take it away. A
//! socket that is bound, and does not listen, keeps the port; binding it is the check, so there is
//! no moment between the two. Whoever has the port already is named.

use crate::forwards::Forward;
use crate::ruleset::FIRST_SOURCE_PORT;
use aleph_types::{PortForward, Protocol};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt,
};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

/// A port that is kept for as long as this lives.
#[derive(Debug)]
pub struct HeldPort {
    port: u16,
    /// One for each family.
    _sockets: Vec<OwnedFd>,
}

/// A port that has another owner.
#[derive(Debug, thiserror::Error)]
pub enum PortTaken {
    /// A job of this node.
    #[error("{forward} is forwarded to the job {job} already")]
    Job {
        /// The port.
        forward: Forward,
        /// Its owner.
        job: String,
    },
    /// A process of the host.
    #[error("{forward} is in use by {process}")]
    Process {
        /// The port.
        forward: Forward,
        /// Its owner, as `NAME (process NUMBER)`.
        process: String,
    },
    /// Ports from which the host connects for its guests.
    #[error("{forward} asks for a port from {FIRST_SOURCE_PORT} on, from where guests connect")]
    OfGuests {
        /// What was asked for.
        forward: PortForward,
    },
    /// The host has no such address.
    #[error("this host has no address {address} to forward from")]
    NoAddress {
        /// The address.
        address: IpAddr,
    },
    /// Nothing comes back to the loopback address of IPv6 from another link.
    #[error("{forward} asks for ::1, from which no kernel forwards")]
    Loopback6 {
        /// What was asked for.
        forward: PortForward,
    },
    /// The node's VMs have no IPv6.
    #[error("{forward} asks for an IPv6 address, and VMs of this node have none")]
    NoIpv6 {
        /// What was asked for.
        forward: PortForward,
    },
    /// Anything else.
    #[error("{forward} cannot be kept for the job")]
    Other {
        /// The port.
        forward: Forward,
        /// The kernel's word.
        source: io::Error,
    },
}

impl HeldPort {
    /// Keeps the host's port of a forward; with port 0 one that the kernel picks. On all addresses
    /// it is kept for IPv6 as well where guests have that.
    ///
    /// # Errors
    /// Who has it.
    pub fn hold(forward: &Forward, ipv6: bool) -> Result<Self, PortTaken> {
        let everywhere = [EVERY_V4, IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let addresses = match &forward.address {
            Some(address) => std::slice::from_ref(address),
            None if ipv6 => &everywhere,
            None => &everywhere[..1],
        };
        if forward.host_port > 0 {
            return Self::hold_on(forward, addresses);
        }
        // What is free for one family may be taken for the other, and the host's range may be
        // wider than what is forwarded. Those that will not do are kept meanwhile.
        let mut others = Vec::new();
        for _ in 0..PICKS {
            match Self::hold_on(forward, addresses) {
                Ok(held) if held.port < FIRST_SOURCE_PORT => return Ok(held),
                Ok(held) => others.push(held),
                Err(PortTaken::Process { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(PortTaken::Process {
            forward: *forward,
            process: SOME_PROCESS.into(),
        })
    }

    fn hold_on(forward: &Forward, addresses: &[IpAddr]) -> Result<Self, PortTaken> {
        let (mut port, mut sockets) = (forward.host_port, Vec::new());
        for address in addresses {
            let (picked, socket) = Self::hold_one(forward, SocketAddr::new(*address, port))?;
            port = picked;
            sockets.push(socket);
        }
        Ok(Self {
            port,
            _sockets: sockets,
        })
    }

    fn hold_one(forward: &Forward, on: SocketAddr) -> Result<(u16, OwnedFd), PortTaken> {
        let process = || PortTaken::Process {
            forward: *forward,
            process: SOME_PROCESS.into(),
        };
        match bound(forward.protocol, on, false) {
            // Connections that ended a moment ago keep a port for a minute, without an owner.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if listens(forward.protocol, on.port()) {
                    return Err(process());
                }
                bound(forward.protocol, on, true).map_err(|_| process())
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                Err(PortTaken::NoAddress { address: on.ip() })
            }
            bound => bound.map_err(|source| PortTaken::Other {
                forward: *forward,
                source,
            }),
        }
    }

    /// Which port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

const EVERY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// How often the kernel picks another port.
const PICKS: usize = 16;

fn bound(protocol: Protocol, on: SocketAddr, reuse: bool) -> io::Result<(u16, OwnedFd)> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let family = match on {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if on.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseaddr(&socket, reuse)?;
    bind(&socket, &on)?;
    // With it, others could bind beside us.
    sockopt::set_socket_reuseaddr(&socket, false)?;
    let bound = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((bound.port(), socket))
}

const SOME_PROCESS: &str = "a process of the host";

impl PortTaken {
    /// Looks for the process that has a port: through all files of all processes.
    #[must_use]
    pub fn by_process(forward: Forward) -> Self {
        let found = owner(forward.protocol, forward.host_port);
        Self::Process {
            process: found.unwrap_or_else(|| SOME_PROCESS.into()),
            forward,
        }
    }
}

fn tables(protocol: Protocol) -> [&'static str; 2] {
    match protocol {
        Protocol::Tcp => ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"],
        Protocol::Udp => ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"],
    }
}

/// Inodes of the sockets that have a local port; 0 where one has no owner any more.
fn inodes(protocol: Protocol, port: u16) -> Vec<u64> {
    let texts = tables(protocol).map(|path| fs::read_to_string(path).unwrap_or_default());
    let lines = texts.iter().flat_map(|text| text.lines().skip(1));
    lines
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (_, local) = words.get(1)?.rsplit_once(':')?;
            let local = u16::from_str_radix(local, 16).ok()?;
            (local == port)
                .then(|| words.get(9)?.parse().ok())
                .flatten()
        })
        .collect()
}

fn listens(protocol: Protocol, port: u16) -> bool {
    inodes(protocol, port).iter().any(|inode| *inode != 0)
}

/// The process that has a local port.
fn owner(protocol: Protocol, port: u16) -> Option<String> {
    let wanted: Vec<String> = inodes(protocol, port)
        .into_iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten();
        let has = files.flatten().any(|file| {
            let to = fs::read_link(file.path()).unwrap_or_default();
            wanted
                .iter()
                .any(|socket| to.as_os_str() == socket.as_str())
        });
        if has {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim_end()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    fn forward(protocol: Protocol, host_port: u16) -> Forward {
        Forward {
            protocol,
            address: Some(Ipv4Addr::LOCALHOST.into()),
            host_port,
            guest_port: 1,
        }
    }

    #[test]
    fn a_held_port_is_nobody_elses() {
        let held = HeldPort::hold(&forward(Protocol::Tcp, 0), true).unwrap();
        let address = (Ipv4Addr::LOCALHOST, held.port());
        // The standard library's listeners set SO_REUSEADDR, as most servers do.
        let error = TcpListener::bind(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let again = HeldPort::hold(&forward(Protocol::Tcp, held.port()), true).unwrap_err();
        assert!(again.to_string().contains("in use by"), "{again}");
        drop(held);
        TcpListener::bind(address).unwrap();
    }

    #[test]
    fn the_process_that_has_a_port_is_named() {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ports = [
            (Protocol::Tcp, tcp.local_addr().unwrap().port()),
            (Protocol::Udp, udp.local_addr().unwrap().port()),
        ];
        for (protocol, port) in ports {
            assert!(HeldPort::hold(&forward(protocol, port), true).is_err());
            let error = PortTaken::by_process(forward(protocol, port));
            let me = format!("(process {})", std::process::id());
            assert!(error.to_string().contains(&me), "{error}");
        }
    }

    #[test]
    fn a_port_whose_connections_have_just_ended_can_be_had() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        // The side that closes first is left in TIME_WAIT.
        drop(listener.accept().unwrap());
        drop(listener);
        drop(client);
        HeldPort::hold(&forward(Protocol::Tcp, address.port()), true).unwrap();
    }

    #[test]
    fn an_address_that_the_host_lacks_is_refused() {
        let forward = Forward {
            address: Some(Ipv4Addr::new(192, 0, 2, 1).into()),
            ..forward(Protocol::Tcp, 0)
        };
        let error = HeldPort::hold(&forward, true);
        assert!(
            matches!(error, Err(PortTaken::NoAddress { .. })),
            "{error:?}"
        );
    }

    #[test]
    fn a_port_of_all_addresses_is_held_for_both_families() {
        let all = |host_port| Forward {
            address: None,
            ..forward(Protocol::Tcp, host_port)
        };
        let held = HeldPort::hold(&all(0), true).unwrap();
        let on_v6 = (Ipv6Addr::LOCALHOST, held.port());
        let error = TcpListener::bind(on_v6).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(held);
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        HeldPort::hold(&all(port), true).unwrap_err();
        HeldPort::hold(&all(port), false).unwrap();
    }
}
