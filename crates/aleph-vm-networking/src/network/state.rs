//! What becomes of one VM's network, under the lock.

use super::{Attachment, Claim, State, Vm, forwards_of, tap_name};
use crate::NetworkError;
use crate::conntrack::Flows;
use crate::forwards::Forward;
use crate::ipv6;
use crate::link::Cable;
use crate::mac::Mac;
use crate::nft::Change;
use crate::pool::Slot;
use crate::port::{HeldPort, PortTaken};
use crate::ruleset::{Element, FIRST_SOURCE_PORT, VmRules, elements};
use crate::tap::{Tap, Tun};
use aleph_types::{Egress, NetworkSpec, PortRange, Protocol, VmId, VmNetwork};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

impl State {
    pub(super) fn remove(&mut self) -> Result<(), NetworkError> {
        self.removed = true;
        for group in [self.group, self.group + 1] {
            self.links
                .delete_group(group)
                .map_err(NetworkError::at("remove TAPs"))?;
        }
        self.rules.uninstall()?;
        self.stop_forwarding()
    }

    /// Flows to forget, which are then nobody's business here.
    pub(super) fn take_flows(&mut self) -> Flows {
        let ipv6 = self.flows.ipv6;
        let none = Flows {
            ipv6,
            ..Flows::default()
        };
        std::mem::replace(&mut self.flows, none)
    }

    /// Keeps the ports that a specification asks for.
    pub(super) fn hold(
        &self,
        spec: &NetworkSpec,
    ) -> Result<(Vec<Forward>, Vec<HeldPort>), PortTaken> {
        let (mut forwards, mut held) = (Vec::new(), Vec::new());
        for asked in &spec.ports {
            let host = asked.host.map(PortRange::ports);
            if host.is_some_and(|mut ports| ports.any(|port| port >= FIRST_SOURCE_PORT)) {
                return Err(PortTaken::OfGuests { forward: *asked });
            }
            if asked.address.is_some_and(|ip| ip.is_ipv6()) && self.ipv6.is_none() {
                return Err(PortTaken::NoIpv6 { forward: *asked });
            }
            if asked.address == Some(Ipv6Addr::LOCALHOST.into()) {
                return Err(PortTaken::Loopback6 { forward: *asked });
            }
            for (index, guest_port) in asked.guest.ports().enumerate() {
                let host = asked.host.and_then(|host| host.ports().nth(index));
                let mut forward = Forward {
                    protocol: asked.protocol,
                    address: asked.address,
                    host_port: host.unwrap_or(0),
                    guest_port,
                };
                // A job is a better answer than this process, which holds its ports.
                if let Some(owner) = host.and_then(|_| self.forwards.owner(&forward)) {
                    let job = self.vms.get(&owner).map(|vm| vm.job.clone());
                    let job = job.unwrap_or_else(|| owner.to_string());
                    return Err(PortTaken::Job { forward, job });
                }
                let port = HeldPort::hold(&forward, self.ipv6.is_some())?;
                forward.host_port = port.port();
                forwards.push(forward);
                held.push(port);
            }
        }
        Ok((forwards, held))
    }

    /// Lets the jobs of the same private network know its name.
    pub(super) fn name(&self, claim: &Claim, job: &str) {
        let guest = self.pool.guest(Slot(claim.slot));
        if claim.egress == Egress::Deny {
            self.names.cut_off(guest);
        }
        let listed: Vec<_> = claim.egress.domains().cloned().collect();
        if !listed.is_empty() {
            self.names.list(guest, listed);
        }
        if let Some(private) = &claim.private {
            self.names.insert(guest, private, job);
        }
    }

    /// Takes a claim over from the record of an earlier process.
    pub(super) fn restore(&mut self, vm: VmId, job: String, claim: Claim) {
        let forwards = forwards_of(&claim);
        if !self.pool.claim(Slot(claim.slot)) {
            tracing::error!(%vm, slot = claim.slot, "an address has two owners, or is outside the pool");
        }
        if let Err((forward, owner)) = self.forwards.claim(vm, &forwards) {
            tracing::error!(%vm, %forward, %owner, "a port has two owners");
        }
        let held = forwards.iter().filter_map(|forward| {
            let held = HeldPort::hold(forward, claim.ipv6.is_some());
            if let Err(error) = &held {
                tracing::warn!(%vm, %error, "a forwarded port could not be kept");
            }
            held.ok()
        });
        let held = held.collect();
        self.name(&claim, &job);
        self.let_resolve(vm, &claim);
        let entry = Vm {
            _held: held,
            claim,
            job,
            // Its rules are written with the others'; whoever finds it gone detaches it.
            attached: true,
        };
        self.vms.insert(vm, entry);
    }

    pub(super) fn attach(
        &mut self,
        vm: VmId,
        queues: Vec<Tun>,
        owner: Option<u32>,
    ) -> Result<Attachment, NetworkError> {
        let name = tap_name(vm);
        let claim = self.claim_of(vm)?.clone();
        let network = self.view(vm, &claim);
        // Whoever dies before it is in its group leaves none.
        let join = || self.links.retire(&name, self.group).map(drop);
        let tap = Tap::of_after(&name, queues, owner, join)
            .map_err(NetworkError::at(format!("make the TAP {name}")))?;
        let change = Change {
            add: self.elements(vm, &claim),
            ..Change::default()
        };
        self.change(&change)?;
        self.links
            .set_up(&Cable {
                name: &name,
                group: self.group,
                mtu: self.mtu,
                host: network.host_ip,
                guest: network.vm_ip,
                guest_mac: Mac::of(vm),
                ipv6: claim.ipv6,
                from_loopback: !claim.ports.is_empty(),
            })
            .map_err(NetworkError::at(format!("set {name} up")))?;
        self.attached(vm, &claim)?;
        Ok(Attachment {
            tap,
            mac: Mac::of(vm),
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
            network,
        })
    }

    pub(super) fn adopt(&mut self, vm: VmId) -> Result<(), NetworkError> {
        let claim = self.claim_of(vm)?.clone();
        let change = Change {
            add: self.elements(vm, &claim),
            ..Change::default()
        };
        self.change(&change)?;
        self.attached(vm, &claim)
    }

    /// What follows once traffic may pass.
    pub(super) fn attached(&mut self, vm: VmId, claim: &Claim) -> Result<(), NetworkError> {
        self.let_resolve(vm, claim);
        let was_first = !self.vms.values().any(|vm| vm.attached);
        if let Some(entry) = self.vms.get_mut(&vm) {
            entry.attached = true;
        }
        if was_first {
            self.forward()?;
        }
        // A client that spoke to a port before it led here would go on to speak to the host. TCP
        // begins anew by itself.
        let udp = claim.ports.iter().filter(|p| p.protocol == Protocol::Udp);
        let ports = udp.map(|p| (p.protocol.number(), p.host_port));
        self.flows.ports.extend(ports);
        Ok(())
    }

    /// Lets a guest reach what the names on its list lead to.
    fn let_resolve(&self, vm: VmId, claim: &Claim) {
        if claim.egress.domains().next().is_some() {
            let guest = self.pool.guest(Slot(claim.slot));
            self.resolved.insert(guest, tap_name(vm));
        }
    }

    pub(super) fn detach(&mut self, vm: VmId) -> Result<(), NetworkError> {
        let name = tap_name(vm);
        if let Some(claim) = self.vms.get(&vm).map(|vm| vm.claim.clone()) {
            let remove = self.elements(vm, &claim);
            // All or none of them are there: they came in one transaction.
            let change = Change {
                remove,
                ..Change::default()
            };
            match self.rules.change(&change) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                done => done.map_err(NetworkError::at("change the firewall"))?,
            }
            self.resolved.remove(self.pool.guest(Slot(claim.slot)));
            self.gone.insert(name.clone());
            let address = self.pool.guest(Slot(claim.slot));
            let prefix = claim.ipv6.map(|prefix| IpAddr::V6(prefix.first()));
            let addresses = [IpAddr::V4(address)].into_iter().chain(prefix);
            self.flows.addresses.extend(addresses);
        }
        let was_there = self
            .links
            .retire(&name, self.group + 1)
            .map_err(NetworkError::at(format!("take {name} out of use")))?;
        self.retired += usize::from(was_there);
        if let Some(entry) = self.vms.get_mut(&vm) {
            entry.attached = false;
        }
        if !self.vms.values().any(|vm| vm.attached) {
            // All else is done, and the next end of a VM tries again.
            if let Err(error) = self.stop_forwarding() {
                tracing::warn!(%error, "forwarding is not put back");
            }
        }
        Ok(())
    }

    pub(super) fn release(&mut self, vm: VmId) {
        let Some(entry) = self.vms.remove(&vm) else {
            return;
        };
        self.pool.release(Slot(entry.claim.slot), Instant::now());
        self.names.remove(self.pool.guest(Slot(entry.claim.slot)));
        self.forwards.release(vm, &forwards_of(&entry.claim));
        if let Some(private) = &entry.claim.private
            && !self
                .vms
                .values()
                .any(|vm| vm.claim.private.as_ref() == Some(private))
        {
            self.private.remove(private);
        }
    }

    pub(super) fn claim_of(&self, vm: VmId) -> Result<&Claim, NetworkError> {
        let none = || {
            let none = io::Error::other(format!("{vm} has no address"));
            NetworkError::at("connect a VM")(none)
        };
        self.vms.get(&vm).map(|vm| &vm.claim).ok_or_else(none)
    }

    pub(super) fn view(&self, vm: VmId, claim: &Claim) -> VmNetwork {
        VmNetwork {
            tap_name: tap_name(vm),
            vm_ip: self.pool.guest(Slot(claim.slot)),
            host_ip: self.pool.host(Slot(claim.slot)),
            vm_ipv6: claim.ipv6.map(ipv6::guest),
            ipv6_prefix: claim.ipv6,
            mac: Mac::of(vm).to_string(),
            private_network: claim.private.as_ref().map(|(_, name)| name.clone()),
            forwarded_ports: claim.ports.clone(),
            limits: claim.limits,
        }
    }

    pub(super) fn elements(&mut self, vm: VmId, claim: &Claim) -> Vec<Element> {
        let private = claim.private.as_ref().map(|key| {
            if let Some(known) = self.private.get(key) {
                return *known;
            }
            let free = (1..).find(|n| !self.private.values().any(|used| used == n));
            let number = free.unwrap_or(0);
            self.private.insert(key.clone(), number);
            number
        });
        elements(&VmRules {
            tap: &tap_name(vm),
            guest: self.pool.guest(Slot(claim.slot)),
            host: self.pool.host(Slot(claim.slot)),
            mac: Mac::of(vm),
            ipv6: claim.ipv6,
            is_routed: self.ipv6.is_some_and(|pool| !pool.is_nat()),
            private,
            egress: &claim.egress,
            forwards: &forwards_of(claim),
            limits: claim.limits,
        })
    }

    /// Makes a change. Where somebody has flushed the rules, they are written again first.
    pub(super) fn change(&mut self, change: &Change) -> Result<(), NetworkError> {
        match self.rules.change(change) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.install()?;
                self.rules
                    .change(change)
                    .map_err(NetworkError::at("change the firewall"))
            }
            done => done.map_err(NetworkError::at("change the firewall")),
        }
    }

    /// Writes the rules again where they are gone, and says whether they were.
    pub(super) fn mend(&mut self) -> Result<bool, NetworkError> {
        let gone = !self.removed && !self.rules.are_there()?;
        if gone {
            self.install()?;
        }
        Ok(gone)
    }

    /// Writes the tables and all that is in them. Nobody has looked at what began without them.
    fn install(&mut self) -> Result<(), NetworkError> {
        self.rules.install()?;
        self.flows.bare = Some(self.pool.network());
        self.rewrite()
    }

    /// Replaces all elements by those of the VMs that have claims, in one transaction.
    pub(super) fn rewrite(&mut self) -> Result<(), NetworkError> {
        let attached = self.vms.iter().filter(|(_, entry)| entry.attached);
        let claims: Vec<_> = attached
            .map(|(vm, entry)| (*vm, entry.claim.clone()))
            .collect();
        let mut add = [&self.uplinks[..], &self.dns].concat();
        for (vm, claim) in claims {
            add.extend(self.elements(vm, &claim));
        }
        let change = Change {
            flush: true,
            remove: Vec::new(),
            add,
        };
        self.rules
            .change(&change)
            .and_then(|()| self.resolved.rewrite())
            .map_err(NetworkError::at("write the firewall's elements"))
    }
}
