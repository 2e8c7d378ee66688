//! Which port of the host leads where.
//!
//! A port has one owner. A forward on all addresses claims it on each of them, so it clashes with
//! any other of the same protocol and port. Looking up and changing are O(1) in the number of
//! VMs.

use aleph_types::{ForwardedPort, Protocol, VmId, share_an_address};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// One port of the host that leads to a port of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The transport.
    pub protocol: Protocol,
    /// The address of the host, or all of a family; all of them where it is absent.
    pub address: Option<IpAddr>,
    /// Its port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = SocketAddr::new(self.address.unwrap_or(EVERYWHERE), self.host_port);
        write!(f, "{address}/{}", self.protocol)
    }
}

/// What users see for all addresses, of both families.
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl From<&Forward> for ForwardedPort {
    fn from(forward: &Forward) -> Self {
        Self {
            protocol: forward.protocol,
            host_ip: forward.address.unwrap_or(EVERYWHERE),
            host_port: forward.host_port,
            vm_port: forward.guest_port,
        }
    }
}

impl From<&ForwardedPort> for Forward {
    fn from(port: &ForwardedPort) -> Self {
        Self {
            protocol: port.protocol,
            address: Some(port.host_ip).filter(|ip| *ip != EVERYWHERE),
            host_port: port.host_port,
            guest_port: port.vm_port,
        }
    }
}

/// The owners of all ports that are forwarded.
#[derive(Debug, Default)]
pub struct Forwards(HashMap<(Protocol, u16), Vec<Owner>>);

/// An address, or all of them, and whose the port is there.
type Owner = (Option<IpAddr>, VmId);

impl Forwards {
    /// Gives all of these ports to a VM, or none, and names the first that has an owner.
    ///
    /// # Errors
    /// That forward and its owner.
    pub fn claim(&mut self, vm: VmId, forwards: &[Forward]) -> Result<(), (Forward, VmId)> {
        for (index, forward) in forwards.iter().enumerate() {
            if let Some(owner) = self.owner(forward) {
                self.release(vm, &forwards[..index]);
                return Err((*forward, owner));
            }
            self.0
                .entry((forward.protocol, forward.host_port))
                .or_default()
                .push((forward.address, vm));
        }
        Ok(())
    }

    /// Takes these ports of a VM back. Ports that it does not have are left alone.
    pub fn release(&mut self, vm: VmId, forwards: &[Forward]) {
        for forward in forwards {
            let key = (forward.protocol, forward.host_port);
            if let Some(owners) = self.0.get_mut(&key) {
                owners.retain(|owner| *owner != (forward.address, vm));
                if owners.is_empty() {
                    self.0.remove(&key);
                }
            }
        }
    }

    /// Who has a port that this forward would take.
    #[must_use]
    pub fn owner(&self, forward: &Forward) -> Option<VmId> {
        let owners = self.0.get(&(forward.protocol, forward.host_port))?;
        owners
            .iter()
            .find(|(there, _)| share_an_address(*there, forward.address))
            .map(|(_, vm)| *vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(bits: u32) -> VmId {
        VmId::from_bits(bits).unwrap()
    }

    fn forward(address: Option<[u8; 4]>, host_port: u16) -> Forward {
        Forward {
            protocol: Protocol::Tcp,
            address: address.map(IpAddr::from),
            host_port,
            guest_port: 1,
        }
    }

    #[test]
    fn a_port_has_one_owner() {
        let (one, other) = (Some([127, 0, 0, 1]), Some([127, 0, 0, 2]));
        let mut ports = Forwards::default();
        ports
            .claim(vm(1), &[forward(one, 80), forward(None, 81)])
            .unwrap();
        ports.claim(vm(2), &[forward(other, 80)]).unwrap();
        let udp = Forward {
            protocol: Protocol::Udp,
            ..forward(None, 80)
        };
        ports.claim(vm(2), &[udp]).unwrap();
        // All or none.
        let taken = ports.claim(vm(3), &[forward(None, 82), forward(None, 80)]);
        assert_eq!(taken, Err((forward(None, 80), vm(1))));
        assert_eq!(ports.owner(&forward(None, 82)), None);
        assert_eq!(ports.owner(&forward(other, 81)), Some(vm(1)));
        // Another's ports are not released.
        ports.release(vm(3), &[forward(one, 80)]);
        assert_eq!(ports.owner(&forward(one, 80)), Some(vm(1)));
        ports.release(vm(1), &[forward(one, 80), forward(None, 81)]);
        ports.release(vm(2), &[forward(other, 80), udp]);
        assert!(ports.0.is_empty());
    }

    #[test]
    fn a_port_of_all_addresses_is_one_of_each_family() {
        let v6 = |text: &str| Forward {
            address: Some(text.parse().unwrap()),
            ..forward(None, 80)
        };
        let mut ports = Forwards::default();
        ports.claim(vm(1), &[v6("::1")]).unwrap();
        assert_eq!(ports.owner(&v6("::")), Some(vm(1)));
        assert_eq!(ports.owner(&v6("::2")), None);
        assert_eq!(ports.owner(&forward(None, 80)), Some(vm(1)));
        assert_eq!(ports.owner(&forward(Some([127, 0, 0, 1]), 80)), None);
        assert_eq!(v6("::").to_string(), "[::]:80/tcp");
        for forward in [v6("::"), forward(None, 80)] {
            assert_eq!(
                Forward::from(&ForwardedPort::from(&forward)),
                Forward {
                    guest_port: 1,
                    ..forward
                }
            );
        }
    }
}
