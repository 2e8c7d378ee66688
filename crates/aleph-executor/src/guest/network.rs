//! What a guest is told of its network.

use aleph_guest_proto::{Network, NetworkV6};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What a guest gives the network interface that has the hardware address `mac`
/// ([`crate::hypervisor::Nic`]). All of it is static. The bounds are those of
/// [`aleph_guest_proto::Network`]: what is out of them is refused as
/// [`AgentError::Request`](super::AgentError::Request) before the guest hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNetwork {
    /// The interface's hardware address.
    pub mac: [u8; 6],
    /// Its address, which the guest's hostname stands for, too.
    pub address: Ipv4Addr,
    /// How many bits of that name the subnet.
    pub prefix_length: u8,
    /// Where everything else goes.
    pub gateway: Ipv4Addr,
    /// The gateway's hardware address. It is a permanent neighbour, so the guest never asks.
    pub gateway_mac: [u8; 6],
    /// The largest packet in bytes.
    pub mtu: u16,
    /// The name server; without one the image's own `resolv.conf` stays as it is.
    pub resolver: Option<Ipv4Addr>,
    /// The domain that short names are looked up in; none when empty.
    pub search: String,
    /// The same for IPv6.
    pub v6: Option<GuestNetworkV6>,
}

/// A static address of the second family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestNetworkV6 {
    /// The address.
    pub address: Ipv6Addr,
    /// How many bits of it name the subnet.
    pub prefix_length: u8,
    /// Where everything else goes; a link-local address will do.
    pub gateway: Ipv6Addr,
}

impl GuestNetwork {
    pub(super) fn as_message(&self) -> Network<'_> {
        Network {
            mac: self.mac,
            address: self.address.octets(),
            prefix_length: self.prefix_length,
            gateway: self.gateway.octets(),
            gateway_mac: self.gateway_mac,
            mtu: self.mtu,
            resolver: self.resolver.map(|address| address.octets()),
            search: self.search.as_bytes(),
            v6: self.v6.map(|v6| NetworkV6 {
                address: v6.address.octets(),
                prefix_length: v6.prefix_length,
                gateway: v6.gateway.octets(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Agent, AgentError, MountRequest, Reattach, SetupRequest, UpperKind};
    use aleph_guest_proto::{CONTROL, Decoder, Item, ToGuest, ToHost, Versions};
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn setup(network: Option<GuestNetwork>) -> SetupRequest {
        SetupRequest {
            hostname: "old".into(),
            filesystem: "erofs".into(),
            upper: UpperKind::Memory,
            poweroff_on_hangup: false,
            network,
            mounts: Vec::new(),
        }
    }

    fn network() -> GuestNetwork {
        GuestNetwork {
            mac: [2, 0, 0, 0, 0, 1],
            address: [10, 0, 0, 2].into(),
            prefix_length: 30,
            gateway: [10, 0, 0, 1].into(),
            gateway_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            resolver: None,
            search: String::new(),
            v6: None,
        }
    }

    /// A guest of version 2: says hello, and ready once it is set up.
    async fn old_guest(mut socket: UnixStream, is_ready: bool) {
        let mut decoder = Decoder::for_guest();
        loop {
            let n = socket.read(decoder.space()).await.unwrap_or(0);
            if n == 0 {
                return;
            }
            decoder.filled(n);
            let mut answer = Vec::new();
            while let Some(item) = decoder.next_item().unwrap() {
                let Item::Frame(frame) = item else { continue };
                match ToGuest::decode(&frame).unwrap() {
                    ToGuest::Hello { versions, nonce } => {
                        assert!(versions.min <= 2);
                        answer.extend_from_slice(&nonce);
                        let hello = ToHost::Hello {
                            versions: Versions { min: 2, max: 2 },
                            started_us: 1,
                            now_us: 2,
                            boot_id: [7; 16],
                            is_ready,
                        };
                        hello.encode(CONTROL, &mut answer).unwrap();
                        if is_ready {
                            let ready = ToHost::Ready { now_us: 3 };
                            ready.encode(CONTROL, &mut answer).unwrap();
                        }
                    }
                    ToGuest::Setup(setup) => {
                        assert!(setup.network.is_none(), "it cannot read this");
                        let ready = ToHost::Ready { now_us: 3 };
                        ready.encode(CONTROL, &mut answer).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
            socket.write_all(&answer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_guest_of_version_2_lives_on_without_a_network() {
        for network in [None, Some(network())] {
            let has_network = network.is_some();
            let (host, guest) = UnixStream::pair().unwrap();
            tokio::spawn(old_guest(guest, false));
            let agent = Agent::open(host, &setup(network), Instant::now()).unwrap();
            match agent.ready().await {
                Ok(_) => assert!(!has_network),
                Err(AgentError::TooOld { version: 2 }) => assert!(has_network),
                Err(other) => panic!("{other:?}"),
            }
        }
        // One that was set up before is gone on with, whatever it would be set up with.
        let (host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(old_guest(guest, true));
        let reattach = Reattach {
            main: None,
            setup: Some(setup(Some(network()))),
        };
        let (agent, _) = Agent::reattach(host, reattach).await.unwrap();
        agent.ready().await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_mounts_nothing_is_told_of_no_volume() {
        let (host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(old_guest(guest, false));
        let mount = MountRequest {
            serial: "v1".into(),
            filesystem: "ext4".into(),
            target: "/srv".into(),
            read_only: false,
            options: String::new(),
        };
        let setup = SetupRequest {
            mounts: vec![mount],
            ..setup(None)
        };
        let agent = Agent::open(host, &setup, Instant::now()).unwrap();
        let refused = agent.ready().await.unwrap_err();
        assert!(matches!(refused, AgentError::NoMounts { version: 2 }));
    }

    #[tokio::test]
    async fn a_network_that_no_guest_could_have_is_refused_before_it_is_told() {
        let (host, _guest) = UnixStream::pair().unwrap();
        let network = GuestNetwork {
            search: "jobs.internal".into(),
            ..network()
        };
        let refused = Agent::open(host, &setup(Some(network)), Instant::now());
        assert!(
            matches!(refused, Err(AgentError::Request(_))),
            "{refused:?}"
        );
    }
}
