//! The network of a job's VM, from the address that is kept for it to the guest that is told.
//!
//! | step | made | undone |
//! | --- | --- | --- |
//! | 1 | an address and ports, in memory, when a start is asked for: who asks hears what is taken | when the start is over |
//! | 2 | the same in the VM's row | with the row |
//! | 3 | TAP and rules, before the VM's place | after it |
//!
//! A node without networks runs jobs that ask for none. A crash between any two steps leaves a
//! row, from which the next process takes the claim, or TAPs that no row names, which the sweep
//! removes.

use super::NodeError;
use super::entry::lock;
use super::inner::Inner;
use crate::guest::{GuestNetwork, GuestNetworkV6};
use crate::hypervisor::Nic;
use crate::journal::{JobRecord, VmRow};
use crate::vm::chain;
use aleph_types::{JobId, JobSpec, NetworkMode, NetworkUsage, Resources, VmId, VmNetwork};
use aleph_vm_networking::conntrack::{limit, shortage};
use aleph_vm_networking::dns::{Answer, Forwarder, ForwarderConfig, Limits, Names, Upstreams};
use aleph_vm_networking::foreign::obstacles;
use aleph_vm_networking::ipv6;
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::network::guest_address;
use aleph_vm_networking::tap::Tun;
use aleph_vm_networking::{Claim, Network, NetworkConfig, NetworkError};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// The network of a node whose journal has these rows, and what answers its guests' questions
/// for names.
pub(super) fn open(
    config: &NetworkConfig,
    rows: &[VmRow],
    records: &[JobRecord],
) -> Result<(Arc<Network>, Forwarder), NetworkError> {
    let forwarder = Forwarder::bind(ForwarderConfig {
        pool: config.pool,
        upstreams: Upstreams::File(RESOLVERS.into()),
        limits: Limits::default(),
    });
    let forwarder = forwarder.map_err(|source| NetworkError::Host {
        what: "listen for questions for names".into(),
        source,
    })?;
    let config = NetworkConfig {
        dns_port: Some(forwarder.port()),
        ..config.clone()
    };
    let names: HashMap<JobId, &str> = records
        .iter()
        .map(|record| (record.job.id, record.job.name.as_str()))
        .collect();
    // Guests keep the addresses that they were told.
    for record in records {
        let row = rows.iter().find(|row| Some(row.vm) == record.job.vm);
        let claim = row.and_then(|row| row.network.as_ref());
        if let (Some(claim), Some(told)) = (claim, &record.job.network)
            && guest_address(config.pool, claim) != told.vm_ip
        {
            return Err(NetworkError::PoolChanged {
                pool: config.pool,
                job: record.job.name.clone(),
                address: told.vm_ip,
            });
        }
    }
    let claims = rows.iter().filter_map(|row| {
        let name = names
            .get(&row.job)
            .map_or_else(|| row.job.short(), |name| (*name).into());
        Some((row.vm, name, row.network.clone()?))
    });
    let network = Network::open(&config, claims.collect())?;
    let obstacles = obstacles().unwrap_or_default().into_iter();
    for obstacle in obstacles.filter(|found| network.has_ipv6() || !found.is_of_ipv6()) {
        tracing::warn!(mend = obstacle.mend(), "{obstacle}, those of VMs too");
    }
    Ok((Arc::new(network), forwarder))
}

/// Where the host's resolvers are named.
const RESOLVERS: &str = "/etc/resolv.conf";

/// What guests are told of names: those of their private networks, and of others what leads to
/// where their egress lets them.
struct JobNames(Arc<Network>);

impl Names for JobNames {
    fn of(&self, guest: Ipv4Addr, name: &str) -> Answer {
        self.0.name(guest, name)
    }

    fn resolved(
        &self,
        guest: Ipv4Addr,
        _: &str,
        addresses: &[(IpAddr, Duration)],
    ) -> Result<(), NetworkError> {
        self.0.resolved(guest, addresses)
    }
}

/// Answers questions for names until the node lets go of its guests.
pub(super) async fn answer(
    forwarder: Forwarder,
    network: Arc<Network>,
    mut leaving: watch::Receiver<bool>,
) {
    let answering = forwarder.run(Arc::new(JobNames(network)));
    tokio::select! {
        Err(error) = answering => tracing::error!(%error, "guests get no answers for names"),
        _ = leaving.wait_for(|leaving| *leaving) => {}
    }
}

impl Inner {
    /// Says so where guests can use up the host's connections: with as many VMs as the node takes
    /// of the smallest that are asked for by default.
    pub(super) fn warn_of_few_connections(&self) {
        let (Some(config), Ok(host)) = (&self.config.network, self.executor.capacity()) else {
            return;
        };
        let (there, one) = (self.allocatable(&host), Resources::default());
        let vms = (there.cpus / u32::from(one.cpus)).min(there.memory.0 / one.memory.0);
        let addresses = 1 << 30_u8.saturating_sub(config.pool.prefix());
        let vms = u64::from(vms.min(addresses));
        let shortage = |limit| shortage(limit, vms, config.connections);
        if let Some((found, mend)) = limit().and_then(shortage) {
            tracing::warn!(mend, "{found}: nobody connects any more when they do");
        }
    }

    /// Keeps an address and ports for the next VM of a job.
    pub(super) fn reserve(
        &self,
        id: JobId,
        (account, name): (&str, &str),
        spec: &JobSpec,
    ) -> Result<(), NodeError> {
        let asked = &spec.network;
        let network = match (&asked.mode, &self.network) {
            (Some(NetworkMode::None), _) => return Ok(()),
            (None, None) if asked.is_default() => return Ok(()),
            (_, None) => return Err(NodeError::NoNetwork),
            (_, Some(network)) => network,
        };
        if lock(&self.reserved).contains_key(&id) {
            return Ok(());
        }
        let vm = self.free_vm_id();
        let claim = network.claim(vm, (account, name), asked)?;
        lock(&self.reserved).insert(id, (vm, claim));
        Ok(())
    }

    /// What is kept for the next VM of a job, to be put into the VM's row.
    pub(super) fn reserved(&self, id: JobId) -> Option<(VmId, Claim)> {
        lock(&self.reserved).remove(&id)
    }

    /// Takes back what a job was given for its next start.
    pub(super) fn take_back(&self, id: JobId) {
        lock(&self.ledger).take(id);
        if let (Some((vm, _)), Some(network)) = (self.reserved(id), &self.network) {
            network.release(vm);
        }
    }

    pub(super) fn view(&self, vm: VmId, claim: &Claim) -> Option<VmNetwork> {
        self.network.as_ref().map(|network| network.view(vm, claim))
    }

    /// Makes a VM's TAP and lets its traffic through.
    pub(super) async fn connect(
        &self,
        vm: VmId,
        cpus: u16,
    ) -> Result<(Vec<Nic>, Option<GuestNetwork>), NetworkError> {
        let Some(network) = self.network.clone() else {
            return Ok((Vec::new(), None));
        };
        let most = self.executor.driver().max_nic_queues().min(MAX_QUEUES);
        let queues = Queues::New(usize::from(cpus).min(most));
        let (nic, told) = connect(network, vm, queues).await?;
        Ok((vec![nic], told))
    }

    /// What the guest of a VM is told.
    pub(super) fn guest_network(&self, vm: VmId) -> Option<GuestNetwork> {
        guest_network(self.network.as_ref()?, vm)
    }

    /// Takes over the network of a VM that an earlier process started.
    pub(super) fn adopt_network(&self, vm: VmId) {
        let Some(network) = &self.network else { return };
        if network.guest_side(vm).is_some()
            && let Err(error) = network.adopt(vm)
        {
            tracing::error!(%vm, error = %chain(&error), "a VM's network is not as it should be");
        }
    }

    /// Undoes [`Inner::connect`]; the VMM has ended. Can be done again.
    pub(super) async fn disconnect(&self, vm: VmId) -> Result<(), String> {
        let Some(network) = self.network.clone() else {
            return Ok(());
        };
        if network.guest_side(vm).is_none() {
            return Ok(());
        }
        crate::failpoint::pass("network.detach", "before");
        let done = blocking(move || network.detach(vm)).await;
        crate::failpoint::pass("network.detach", "after");
        done.map_err(|error| chain(&error))
    }

    /// Gives a VM's address and ports back, once its row is gone.
    pub(super) fn release(&self, vm: VmId) {
        if let Some(network) = &self.network {
            network.release(vm);
        }
    }

    /// What went through the networks of all VMs.
    pub(super) async fn network_usage(&self) -> HashMap<VmId, NetworkUsage> {
        let Some(network) = self.network.clone() else {
            return HashMap::new();
        };
        let counters = blocking(move || network.counters()).await;
        let counters = counters.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "networks cannot be counted");
            HashMap::new()
        });
        let usage = counters.into_iter().map(|(vm, counters)| {
            let drops = counters.drops.into_iter();
            let usage = NetworkUsage {
                sent_bytes: counters.link.rx_bytes,
                sent_packets: counters.link.rx_packets,
                received_bytes: counters.link.tx_bytes,
                received_packets: counters.link.tx_packets,
                overruns: counters.link.tx_dropped,
                dropped: drops
                    .map(|(reason, packets)| (reason.name().to_owned(), packets))
                    .collect(),
            };
            (vm, usage)
        });
        usage.collect()
    }

    /// Leaves the networks of guests that run on, and nothing else.
    pub(super) async fn close_network(&self) {
        let Some(network) = self.network.clone() else {
            return;
        };
        if let Err(error) = blocking(move || network.close()).await {
            tracing::warn!(error = %chain(&error), "the network is not left as it should be");
        }
    }

    /// Removes TAPs without a VM, and writes rules again that are gone.
    pub(super) async fn sweep_network(&self) {
        let Some(network) = self.network.clone() else {
            return;
        };
        match blocking(move || network.sweep()).await {
            Ok(taps) => {
                for tap in taps {
                    tracing::info!(tap, "removed a TAP without a VM");
                }
            }
            Err(error) => tracing::warn!(error = %chain(&error), "the network cannot be swept"),
        }
    }
}

/// The queues of a TAP that is to be made.
pub(crate) enum Queues {
    /// So many, to be opened.
    New(usize),
    /// One that was opened earlier.
    Opened(Tun),
}

/// Makes the TAP of a VM that has a claim, with these queues, and lets its traffic through; gives
/// what its guest is told beside the device.
pub(crate) async fn connect(
    network: Arc<Network>,
    vm: VmId,
    queues: Queues,
) -> Result<(Nic, Option<GuestNetwork>), NetworkError> {
    crate::failpoint::pass("network.attach", "before");
    let user = rustix::process::geteuid();
    let owner = Some(if user.is_root() {
        vm.uid()
    } else {
        user.as_raw()
    });
    let attaching = Arc::clone(&network);
    let attached = blocking(move || match queues {
        Queues::New(queues) => attaching.attach(vm, queues, owner),
        Queues::Opened(tun) => attaching.attach_to(vm, vec![tun], owner),
    });
    let attached = attached.await?;
    crate::failpoint::pass("network.attach", "after");
    let nic = Nic {
        mac: attached.mac.0,
        queues: attached.tap.queues.into_iter().map(OwnedFd::from).collect(),
    };
    Ok((nic, guest_network(&network, vm)))
}

/// What the guest of a VM is told.
fn guest_network(network: &Network, vm: VmId) -> Option<GuestNetwork> {
    let (view, mac, mtu) = network.guest_side(vm)?;
    Some(GuestNetwork {
        mac: mac.0,
        address: view.vm_ip,
        prefix_length: 30,
        gateway: view.host_ip,
        gateway_mac: Mac::HOST.0,
        mtu,
        resolver: Some(view.host_ip),
        search: String::new(),
        v6: view
            .vm_ipv6
            .zip(view.ipv6_prefix)
            .map(|(address, prefix)| GuestNetworkV6 {
                address,
                prefix_length: prefix.prefix(),
                gateway: ipv6::GATEWAY,
            }),
    })
}

/// Queues of one TAP: what the kernel takes.
const MAX_QUEUES: usize = 16;

/// How often TAPs out of use are removed, many in one go.
const REAPING: Duration = Duration::from_secs(1);

/// Removes TAPs that are out of use, for as long as the node is there.
pub(super) async fn reap(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(REAPING).await;
        let Some(network) = inner.upgrade().and_then(|inner| inner.network.clone()) else {
            return;
        };
        if network.waits()
            && let Err(error) = blocking(move || network.reap()).await
        {
            tracing::warn!(error = %chain(&error), "TAPs cannot be removed");
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(join) => Err(NetworkError::Host {
            what: "change a VM's network".into(),
            source: std::io::Error::other(join),
        }),
    }
}
