//! The networks of all VMs of one node.
//!
//! A VM's network has two halves. Its [claim](Network::claim) is an address and ports, in memory
//! alone: the owner journals it before anything is made. Its attachment is a TAP and elements of
//! the rules. Everything here blocks for a fraction of a millisecond.

mod forward;
mod resolved;
mod state;

use crate::NetworkError;
use crate::conntrack::{Connections, Earlier, Flows};
use crate::dns;
use crate::forwarding::Forwarding;
use crate::forwarding6::Forwarding6;
use crate::forwards::{Forward, Forwards};
use crate::ipv6::{Ipv6Config, Ipv6Pool};
use crate::link::{Link, LinkCounters, Links};
use crate::mac::Mac;
use crate::names::PrivateNames;
use crate::nft::Rules;
use crate::pool::{Pool, Slot};
use crate::port::{HeldPort, PortTaken};
use crate::ruleset::{self, Base, DropReason, Element};
use crate::tap::{Tap, Tun};
use aleph_types::{
    Egress, ForwardedPort, Ipv4Network, Ipv6Network, NetworkLimits, NetworkMode, NetworkSpec, VmId,
    VmNetwork,
};
use resolved::ResolvedAddresses;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a node connects its VMs.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The node's name on this host, from which its tables and its links' group are named.
    pub name: String,
    /// Where addresses come from.
    pub pool: Ipv4Network,
    /// Whether VMs have IPv6 too.
    pub ipv6: Ipv6Config,
    /// How long an address rests before its next owner.
    pub cool_down: Duration,
    /// Connections that one VM may have open.
    pub connections: u32,
    /// How much each VM may send and receive; a job can ask for less.
    pub limits: NetworkLimits,
    /// Where guests' DNS queries go on this host; nowhere, without a forwarder.
    pub dns_port: Option<u16>,
    /// The node's runtime folder.
    pub run: PathBuf,
}

/// What a VM was given, as its owner keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its /30 in the pool.
    pub slot: u32,
    /// The IPv6 prefix that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Network>,
    /// The ports that lead to it.
    pub ports: Vec<ForwardedPort>,
    /// Its private network: the account and the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private: Option<(String, String)>,
    /// Where it may connect to.
    #[serde(default)]
    pub egress: Egress,
    /// How much it may send and receive, whatever the node's limits become.
    #[serde(default, skip_serializing_if = "NetworkLimits::is_none")]
    pub limits: NetworkLimits,
}

/// A network that a VMM can use.
#[derive(Debug)]
pub struct Attachment {
    /// The open TAP.
    pub tap: Tap,
    /// The guest's hardware address.
    pub mac: Mac,
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// What it is.
    pub network: VmNetwork,
}

/// What went through a VM's network, and what did not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// What went through: received is what came from the guest.
    pub link: LinkCounters,
    /// Packets that were dropped.
    pub drops: Vec<(DropReason, u64)>,
}

/// The networks of all VMs of one node.
pub struct Network {
    state: Mutex<State>,
    /// What takes long, and is taken before the state.
    reaper: Mutex<Reaper>,
    names: Arc<PrivateNames>,
    resolved: Arc<ResolvedAddresses>,
}

struct Reaper {
    links: Links,
    connections: Connections,
}

struct Vm {
    claim: Claim,
    /// For errors that name it.
    job: String,
    _held: Vec<HeldPort>,
    attached: bool,
}

struct State {
    group: u32,
    pool: Pool,
    limits: NetworkLimits,
    forwards: Forwards,
    vms: HashMap<VmId, Vm>,
    /// Numbers of private networks, by account and name.
    private: HashMap<(String, String), u32>,
    rules: Rules,
    links: Links,
    ipv6: Option<Ipv6Pool>,
    forwarding: Forwarding,
    forwarding6: Forwarding6,
    uplinks: Vec<Element>,
    dns: Vec<Element>,
    names: Arc<PrivateNames>,
    resolved: Arc<ResolvedAddresses>,
    mtu: u32,
    /// TAPs that wait for their removal, and flows to forget with them.
    retired: usize,
    gone: HashSet<String>,
    flows: Flows,
    /// Whether its rules are gone for good, and nobody is to write them again.
    removed: bool,
}

/// The address of a guest with this claim in a pool.
#[must_use]
pub fn guest_address(pool: Ipv4Network, claim: &Claim) -> Ipv4Addr {
    Ipv4Addr::from_bits(
        pool.first()
            .to_bits()
            .wrapping_add(claim.slot.wrapping_mul(4))
            + 2,
    )
}

/// The name of a VM's TAP.
#[must_use]
pub fn tap_name(vm: VmId) -> String {
    format!("tap-{vm}")
}

/// The name that the TAP of a VM's link to its node has until the VMM has it open: see
/// [`frames`](crate::frames).
#[must_use]
pub fn link_name(vm: VmId, number: usize) -> String {
    format!("{LINK}{vm}.{number}")
}

const LINK: &str = "lnk-";

/// The VM that a name is of, where it is one of [`link_name`].
fn owner_of_link(name: &str) -> Option<VmId> {
    let (vm, _) = name.strip_prefix(LINK)?.split_once('.')?;
    vm.parse().ok()
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

impl Network {
    /// The network of a node whose VMs have these claims, and may be running. Their rules are
    /// written; TAPs that have no VM any more are left for [`Network::sweep`].
    ///
    /// # Errors
    /// Where the pool is too small or overlaps a route, or the kernel refuses.
    pub fn open(
        config: &NetworkConfig,
        claims: Vec<(VmId, String, Claim)>,
    ) -> Result<Self, NetworkError> {
        let group = group_of(&config.name);
        let last = claims.iter().map(|(_, _, claim)| Slot(claim.slot)).max();
        let pool = Pool::new(config.pool, config.cool_down, last)?;
        let mut links = Links::new();
        let there = links.all().map_err(NetworkError::at("list the links"))?;
        let routes = links
            .routes()
            .map_err(NetworkError::at("list the routes"))?;
        refuse_overlap(config, group, &there, &routes)?;
        let claimed = claims.iter().map(|(_, _, claim)| claim);
        let ipv6 = ipv6_pool(config, claimed, &there, &mut links)?;
        let base = Base {
            table: config.name.clone(),
            group,
            pool: config.pool,
            ipv6,
            connections: config.connections,
        };
        let resolved = Arc::new(ResolvedAddresses::new(base.clone()));
        let rules = Rules::new(base);
        let mtu = uplink_mtu(&there, &routes);
        let forwarding = Forwarding::open(config.run.join("forwarding"));
        let forwarding6 = Forwarding6::open(config.run.join("forwarding6"));
        let mut state = State {
            group,
            pool,
            limits: config.limits,
            forwards: Forwards::default(),
            vms: HashMap::new(),
            private: HashMap::new(),
            rules,
            links,
            ipv6,
            forwarding,
            forwarding6,
            uplinks: Vec::new(),
            names: Arc::default(),
            resolved: Arc::clone(&resolved),
            dns: config.dns_port.map(ruleset::dns).unwrap_or_default(),
            mtu,
            retired: 0,
            gone: HashSet::new(),
            flows: Flows {
                ipv6,
                ..Flows::default()
            },
            removed: false,
        };
        for (vm, job, claim) in claims {
            state.restore(vm, job, claim);
        }
        // Guests still connect to what the names on their lists led to.
        let at = || NetworkError::at("take over what names led to");
        let left = resolved.left().map_err(at())?;
        resolved.take_over(left).map_err(at())?;
        state.uplinks = state.parted(&there)?;
        if !state.mend()? {
            state.rewrite()?;
        }
        match state.vms.is_empty() {
            true => state.stop_forwarding()?,
            false => state.forward()?,
        }
        // What a process that was killed did not come to: TAPs that are out of use, what was
        // dropped for them, and flows of addresses that the next owner must not inherit. Questions
        // that go on from an open socket would go on to that process.
        state
            .links
            .delete_group(group + 1)
            .map_err(NetworkError::at("remove TAPs"))?;
        let counted = state
            .rules
            .drops()
            .map_err(NetworkError::at("read counters"))?;
        let live: HashSet<String> = state.vms.keys().map(|vm| tap_name(*vm)).collect();
        let is_stray = |tap: &String| !live.contains(tap);
        state.gone = counted.into_keys().filter(is_stray).collect();
        let slots = || state.vms.values().map(|vm| Slot(vm.claim.slot));
        let prefixes = state.vms.values().filter_map(|vm| vm.claim.ipv6);
        let prefixes = prefixes.map(|prefix| prefix.first().into());
        let earlier = Flows {
            earlier: Some(Earlier {
                pool: config.pool,
                guests: slots()
                    .map(|slot| state.pool.guest(slot).into())
                    .chain(prefixes)
                    .collect(),
                gateways: slots().map(|slot| state.pool.host(slot).into()).collect(),
            }),
            ipv6,
            ..state.take_flows()
        };
        let mut connections = Connections::new();
        connections
            .forget(&earlier)
            .map_err(NetworkError::at("forget connections"))?;
        Ok(Self {
            names: Arc::clone(&state.names),
            resolved,
            state: Mutex::new(state),
            reaper: Mutex::new(Reaper {
                links: Links::new(),
                connections,
            }),
        })
    }

    /// Gives a VM an address and its ports. Nothing is made on the host but sockets that keep
    /// the ports.
    ///
    /// # Errors
    /// Where no address is free, or a port has an owner, who is named.
    pub fn claim(
        &self,
        vm: VmId,
        (account, job): (&str, &str),
        spec: &NetworkSpec,
    ) -> Result<Claim, NetworkError> {
        match self.try_claim(vm, (account, job), spec) {
            // Looking for it takes a while where there are many processes.
            Err(NetworkError::Port(PortTaken::Process { forward, .. })) => {
                Err(PortTaken::by_process(forward).into())
            }
            claimed => claimed,
        }
    }

    fn try_claim(
        &self,
        vm: VmId,
        (account, job): (&str, &str),
        spec: &NetworkSpec,
    ) -> Result<Claim, NetworkError> {
        let mut state = self.state();
        let state = &mut *state;
        let (forwards, held) = state.hold(spec)?;
        if let Err((forward, owner)) = state.forwards.claim(vm, &forwards) {
            let job = state
                .vms
                .get(&owner)
                .map_or_else(|| owner.to_string(), |vm| vm.job.clone());
            return Err(PortTaken::Job { forward, job }.into());
        }
        let slot = match state.pool.take(Instant::now()) {
            Ok(slot) => slot,
            Err(error) => {
                state.forwards.release(vm, &forwards);
                return Err(error.into());
            }
        };
        let private = match &spec.mode {
            Some(NetworkMode::Private(name)) => Some((account.to_owned(), name.clone())),
            _ => None,
        };
        let claim = Claim {
            slot: slot.0,
            ipv6: state.ipv6.and_then(|pool| pool.at(slot.0)),
            ports: forwards.iter().map(Into::into).collect(),
            private,
            egress: spec.egress.clone(),
            limits: spec.limits.within(state.limits),
        };
        state.name(&claim, job);
        let entry = Vm {
            claim: claim.clone(),
            job: job.to_owned(),
            _held: held,
            attached: false,
        };
        state.vms.insert(vm, entry);
        Ok(claim)
    }

    /// Whether new VMs have IPv6.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.state().ipv6.is_some()
    }

    /// What a claim is, as users see it.
    #[must_use]
    pub fn view(&self, vm: VmId, claim: &Claim) -> VmNetwork {
        self.state().view(vm, claim)
    }

    /// What the guest of a VM is told, and the largest packet in bytes.
    #[must_use]
    pub fn guest_side(&self, vm: VmId) -> Option<(VmNetwork, Mac, u16)> {
        let state = self.state();
        let claim = &state.vms.get(&vm)?.claim;
        let mtu = u16::try_from(state.mtu).unwrap_or(u16::MAX);
        Some((state.view(vm, claim), Mac::of(vm), mtu))
    }

    /// What a guest is told of a name: addresses of the jobs in its own private network. It never
    /// waits for the kernel.
    #[must_use]
    pub fn name(&self, guest: Ipv4Addr, name: &str) -> dns::Answer {
        self.names.of(guest, name)
    }

    /// Lets a guest connect to what a name on its egress list led to, for as long as each address
    /// says. Addresses of the host, of the pool and those that no guest may reach are passed over, as
    /// is a guest that has no such list. It does not wait for VMs that come and go.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resolved(
        &self,
        guest: Ipv4Addr,
        addresses: &[(IpAddr, Duration)],
    ) -> Result<(), NetworkError> {
        let addresses = || addresses.iter().copied();
        let at = || NetworkError::at("let a guest reach what a name led to");
        match self.resolved.resolved(guest, addresses()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.state().mend()?;
                self.resolved.resolved(guest, addresses()).map_err(at())
            }
            done => done.map_err(at()),
        }
    }

    /// Makes the TAP of a VM that has a claim, with so many queues, and lets traffic through.
    /// `owner` may open it by name. Can be done again.
    ///
    /// # Errors
    /// The kernel's. Nothing is left then.
    pub fn attach(
        &self,
        vm: VmId,
        queues: usize,
        owner: Option<u32>,
    ) -> Result<Attachment, NetworkError> {
        let opened = (0..queues.max(1)).map(|_| Tun::open());
        let opened = opened.collect::<std::io::Result<_>>();
        let opened = opened.map_err(NetworkError::at("open /dev/net/tun"))?;
        self.attach_to(vm, opened, owner)
    }

    /// The same where its queues were opened earlier, in the same network namespace.
    ///
    /// # Errors
    /// The kernel's. Nothing is left then.
    pub fn attach_to(
        &self,
        vm: VmId,
        queues: Vec<Tun>,
        owner: Option<u32>,
    ) -> Result<Attachment, NetworkError> {
        let mut state = self.state();
        let attached = state.attach(vm, queues, owner);
        if attached.is_err() {
            let _ = state.detach(vm);
        }
        attached
    }

    /// Takes over the network of a VM that runs: its TAP is there, its rules are written again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn adopt(&self, vm: VmId) -> Result<(), NetworkError> {
        self.state().adopt(vm)
    }

    /// Takes a VM's rules away and its TAP out of use. Its VMM must have ended. Can be done
    /// again, and for a VM that is not known.
    ///
    /// # Errors
    /// The kernel's.
    pub fn detach(&self, vm: VmId) -> Result<(), NetworkError> {
        self.state().detach(vm)
    }

    /// Takes back what a claim gave. The VM must be detached.
    pub fn release(&self, vm: VmId) {
        self.state().release(vm);
    }

    /// Removes TAPs that were taken out of use, and forgets flows that would go to who is not
    /// there any more: in one go, since a removal takes 20 milliseconds however many there are,
    /// and a look at the flows 10. VMs come and go meanwhile. An address rests for longer than a
    /// node waits with this.
    ///
    /// # Errors
    /// The kernel's; what was not done is done the next time.
    pub fn reap(&self) -> Result<(), NetworkError> {
        let mut reaper = self.reaper.lock().unwrap_or_else(PoisonError::into_inner);
        self.resolved
            .forget()
            .map_err(NetworkError::at("forget what names led to"))?;
        let (group, retired, gone, mut flows) = {
            let mut state = self.state();
            let state = &mut *state;
            if !state.gone.is_empty() {
                match state.rules.forget_drops(&state.gone) {
                    // They are gone with the tables.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    done => done.map_err(NetworkError::at("forget drops"))?,
                }
            }
            (
                state.group + 1,
                std::mem::take(&mut state.retired),
                std::mem::take(&mut state.gone),
                state.take_flows(),
            )
        };
        let Reaper { links, connections } = &mut *reaper;
        let mut done = Ok(());
        if retired > 0 {
            done = links
                .delete_group(group)
                .map_err(NetworkError::at("remove TAPs"));
        }
        let own = match flows.ports.is_empty() {
            true => Ok(HashSet::new()),
            false => links.addresses(),
        };
        let forgotten = own.and_then(|own| {
            flows.own = own;
            connections.forget(&flows)
        });
        let forgotten = forgotten.map_err(NetworkError::at("forget connections"));
        if done.is_err() || forgotten.is_err() {
            let mut state = self.state();
            state.retired += retired;
            state.gone.extend(gone);
            state.flows.addresses.extend(flows.addresses);
            state.flows.ports.extend(flows.ports);
            state.flows.bare = state.flows.bare.or(flows.bare);
        }
        done.and(forgotten.map(drop))
    }

    /// Whether there is something for [`Network::reap`] to do.
    #[must_use]
    pub fn waits(&self) -> bool {
        let state = self.state();
        state.retired > 0 || !state.gone.is_empty() || !state.flows.is_empty()
    }

    /// Puts right what a crash or somebody else left: TAPs without a VM go, and the rules are
    /// written again where they are gone. Says which VMs' TAPs went.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sweep(&self) -> Result<Vec<String>, NetworkError> {
        let orphans = {
            let mut state = self.state();
            let state = &mut *state;
            let links = state
                .links
                .all()
                .map_err(NetworkError::at("list the links"))?;
            let live: HashSet<String> = state.vms.keys().map(|vm| tap_name(*vm)).collect();
            let is_live = |name: &str| {
                let link_of = owner_of_link(name);
                live.contains(name) || link_of.is_some_and(|vm| state.vms.contains_key(&vm))
            };
            let group = state.group;
            state.retired += links.iter().filter(|l| l.group == group + 1).count();
            let orphans: Vec<String> = links
                .into_iter()
                .filter(|link| link.group == group && !is_live(&link.name))
                .map(|link| link.name)
                .collect();
            for name in &orphans {
                state
                    .links
                    .retire(name, group + 1)
                    .map_err(NetworkError::at(format!("remove {name}")))?;
                state.retired += 1;
                state.gone.insert(name.clone());
            }
            if state.mend()? {
                tracing::warn!("the firewall's tables were gone, and are written again");
            }
            state.forward()?;
            orphans
        };
        self.reap()?;
        Ok(orphans)
    }

    /// Writes the rules again where they are gone, forgets what guests began meanwhile, and says
    /// whether that was so.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mend(&self) -> Result<bool, NetworkError> {
        let mended = self.state().mend()?;
        if mended {
            self.reap()?;
        }
        Ok(mended)
    }

    /// Counters of all VMs, in one dump of the links and one of each kind of drop.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<HashMap<VmId, Counters>, NetworkError> {
        let mut state = self.state();
        let state = &mut *state;
        let group = state.group;
        let mut links = state
            .links
            .counters(group)
            .map_err(NetworkError::at("read counters"))?;
        let mut drops = state
            .rules
            .drops()
            .map_err(NetworkError::at("read counters"))?;
        let counters = state.vms.keys().map(|vm| {
            let name = tap_name(*vm);
            let counters = Counters {
                link: links.remove(&name).unwrap_or_default(),
                drops: drops.remove(&name).unwrap_or_default(),
            };
            (*vm, counters)
        });
        Ok(counters.collect())
    }

    /// Ends the work of this process: what is out of use goes. Without any VM the tables go as
    /// well, so that nothing is left of a node that has stopped.
    ///
    /// # Errors
    /// The kernel's.
    pub fn close(&self) -> Result<(), NetworkError> {
        self.reap()?;
        let mut state = self.state();
        match state.vms.is_empty() {
            true => state.remove(),
            false => Ok(()),
        }
    }

    /// Removes the node's tables and every TAP, and puts back what it changed: for a node that
    /// goes for good.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self) -> Result<(), NetworkError> {
        self.state().remove()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which IPv6 prefixes the VMs have. Those that run keep theirs, whatever became of the way out.
fn ipv6_pool<'a>(
    config: &NetworkConfig,
    claims: impl Iterator<Item = &'a Claim>,
    there: &[Link],
    links: &mut Links,
) -> Result<Option<Ipv6Pool>, NetworkError> {
    let routes = match Forwarding6::is_possible() {
        true => Some(
            links
                .routes6()
                .map_err(NetworkError::at("list the routes"))?,
        ),
        false => None,
    };
    let earlier: Vec<(u32, Ipv6Network)> = claims
        .filter_map(|claim| Some((claim.slot, claim.ipv6?)))
        .collect();
    let own = || {
        let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Ipv6Pool::unique_local(&format!("{}{}", host.trim(), config.name))
    };
    let way_out = || routes.iter().flatten().any(|(to, _)| to.prefix() == 0);
    let prefix = match config.ipv6 {
        Ipv6Config::Off => None,
        Ipv6Config::Auto => (!earlier.is_empty() || way_out()).then(own),
        Ipv6Config::Nat => Some(own()),
        Ipv6Config::Prefix(prefix) => Some(prefix),
    };
    let pool = prefix.map(|prefix| Ipv6Pool::new(prefix, config.pool));
    let pool = pool.transpose()?;
    let at = |slot| pool.and_then(|pool| pool.at(slot));
    if let Some((_, earlier)) = earlier.iter().find(|(slot, of)| at(*slot) != Some(*of)) {
        let (earlier, to) = (*earlier, config.ipv6);
        return Err(NetworkError::Ipv6Changed { earlier, to });
    }
    let Some(prefix) = prefix else {
        return Ok(None);
    };
    let routes = routes.ok_or(NetworkError::NoIpv6)?;
    let group = group_of(&config.name);
    let is_ours = |index| {
        let link = there.iter().find(|link| link.index == index);
        link.is_some_and(|link| link.group & !1 == group)
    };
    let inside = routes.iter().find(|(to, link)| {
        to.prefix() >= prefix.prefix() && prefix.overlaps(*to) && !is_ours(*link)
    });
    let own = links
        .addresses()
        .map_err(NetworkError::at("list addresses"))?;
    let own = own.into_iter().find_map(|address| match address {
        IpAddr::V6(own) if prefix.contains(own) => Ipv6Network::new(own, 128),
        _ => None,
    });
    // A guest would have the host's address, or that of one of its neighbours.
    if let Some(route) = inside.map(|(route, _)| *route).or(own) {
        return Err(NetworkError::Ipv6Overlap { prefix, route });
    }
    Ok(pool)
}

fn forwards_of(claim: &Claim) -> Vec<Forward> {
    claim.ports.iter().map(Into::into).collect()
}

/// A group of links for this node, and the one above it for TAPs out of use: even, and far above
/// what people number by hand.
fn group_of(name: &str) -> u32 {
    // FNV-1a, which will never change.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    0x4000_0000 | (hash & 0x3fff_fffe)
}

/// Whether VMs in use are in such a group.
fn is_group(group: u32) -> bool {
    group & 0xc000_0001 == 0x4000_0000
}

fn refuse_overlap(
    config: &NetworkConfig,
    group: u32,
    links: &[Link],
    routes: &[crate::link::Route],
) -> Result<(), NetworkError> {
    let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
    for route in routes.iter().filter(|route| route.to.prefix() > 0) {
        let link = by_index.get(&route.link);
        let is_ours = link.is_some_and(|link| link.group == group || link.group == group + 1);
        if !is_ours && route.to.overlaps(config.pool) {
            return Err(NetworkError::Overlap {
                pool: config.pool,
                route: route.to,
                device: link.map_or_else(|| route.link.to_string(), |link| link.name.clone()),
            });
        }
    }
    Ok(())
}

/// What the way out takes; Ethernet's 1500 without one.
fn uplink_mtu(links: &[Link], routes: &[crate::link::Route]) -> u32 {
    let default = routes.iter().find(|route| route.to.prefix() == 0);
    let link = default.and_then(|route| links.iter().find(|link| link.index == route.link));
    link.map_or(1500, |link| link.mtu.clamp(1280, 65_521))
}
