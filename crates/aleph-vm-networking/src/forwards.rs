//! Which port of the host leads where.
//!
//! A port has one owner. A forward on all addresses claims it on each of them, so it clashes with
//! any other of the same protocol and port. Looking up and changing are O(1) in the number of
//! VMs.

use aleph_types::{ForwardedPort, Protocol, VmId};
use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;

/// One port of the host that leads to a port of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The transport.
    pub protocol: Protocol,
    /// The address of the host; all of them where it is absent.
    pub address: Option<Ipv4Addr>,
    /// Its port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        write!(f, "{address}:{}/{}", self.host_port, self.protocol)
    }
}

impl From<&Forward> for ForwardedPort {
    fn from(forward: &Forward) -> Self {
        Self {
            protocol: forward.protocol,
            host_ip: forward.address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            host_port: forward.host_port,
            vm_port: forward.guest_port,
        }
    }
}

impl From<&ForwardedPort> for Forward {
    fn from(port: &ForwardedPort) -> Self {
        Self {
            protocol: port.protocol,
            address: Some(port.host_ip).filter(|ip| !ip.is_unspecified()),
            host_port: port.host_port,
            guest_port: port.vm_port,
        }
    }
}

/// The owners of all ports that are forwarded.
#[derive(Debug, Default)]
pub struct Forwards(HashMap<(Protocol, u16), Vec<Owner>>);

/// An address, or all of them, and whose the port is there.
type Owner = (Option<Ipv4Addr>, VmId);

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
        let clash = |there: &Option<Ipv4Addr>| match (there, forward.address) {
            (Some(a), Some(b)) => *a == b,
            _ => true,
        };
        owners
            .iter()
            .find(|(there, _)| clash(there))
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
            address: address.map(Into::into),
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
}
