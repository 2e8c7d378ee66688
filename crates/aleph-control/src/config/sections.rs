//! The sections of the file, each with what its keys are by default.

use crate::lambda::{Credential, FunctionsConfig, Identity, NatsServer};
use aleph_executor::accel::Accelerator;
use aleph_executor::firecracker::jail::JailConfig;
use aleph_executor::functions::PoolConfig;
use aleph_executor::gpu::GpuConfig;
use aleph_executor::node::Overcommit;
use aleph_executor::volumes::{BackendChoice, ThinPool, VolumeQuota, VolumesConfig};
use aleph_executor::{ExecutorConfig, Hypervisor};
use aleph_image::oci::{PullOptions, Registries};
use aleph_types::{BothWays, Ipv4Network, MiB};
use aleph_vm_networking::Ipv6Config;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSection {
    /// `root`: keeps all state and sockets under this folder. By default state is in
    /// `/var/lib/aleph` and sockets are in `/run/aleph`.
    pub root: Option<PathBuf>,
}

/// `[api]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSection {
    /// `socket`: the Unix socket; `aleph.sock` in the node's run folder by default.
    pub socket: Option<PathBuf>,
    /// `socket_group`: the group, by name or number, whose members may use the socket as
    /// operators. `aleph` by default; where there is no such group, only root may.
    pub socket_group: String,
    /// `listen`: the TCP address, such as `127.0.0.1:7400`. None by default. An address that is
    /// not of this host alone needs TLS.
    pub listen: Option<SocketAddr>,
    /// `tls_cert` and `tls_key`: PEM files. With them TCP speaks TLS only.
    pub tls: Option<TlsFiles>,
    /// `max_connections`: how many clients may be connected at once to each of the two, and
    /// half as many from one user or address.
    pub max_connections: usize,
    /// `drain_seconds`: how long requests under way may take to end when the daemon stops.
    pub drain: Duration,
}

impl Default for ApiSection {
    fn default() -> Self {
        Self {
            socket: None,
            socket_group: "aleph".into(),
            listen: None,
            tls: None,
            max_connections: 1024,
            drain: Duration::from_secs(10),
        }
    }
}

/// The two files that TLS needs. They are read again at SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, with those that lead to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[executor]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorSection {
    /// `hypervisor`: `auto`, `qemu` or `firecracker`; Firecracker where it works by default.
    pub hypervisor: Hypervisor,
    /// `qemu`: the program, by name or path; or `program` in a table, with `gpu`.
    pub qemu: PathBuf,
    /// `enable_gpu`, `gpu_devices`, `iommu_group`, `vfio_driver`, `huge_pages` and `gpu_rom` in the table `qemu`:
    /// which GPUs jobs may have, and how.
    pub gpu: GpuConfig,
    /// `accel`: `kvm` or `tcg`; KVM where it works by default.
    pub accelerator: Option<Accelerator>,
    /// `boot_timeout_seconds`: how long a guest may take to boot.
    pub boot_timeout: Duration,
    /// `reclaim_after_seconds`: how long a guest has nothing to do before the memory that it could do
    /// without is taken back, where its VMM can; 0 is never.
    pub reclaim_after: Duration,
    /// `firecracker`: a table of how Firecracker is run and locked up.
    pub firecracker: JailConfig,
}

impl ExecutorSection {
    /// What the executor needs of it.
    #[must_use]
    pub fn executor_config(&self) -> ExecutorConfig {
        let mut config = ExecutorConfig {
            hypervisor: self.hypervisor,
            qemu: self.qemu.clone(),
            gpu: self.gpu.clone(),
            accelerator: self.accelerator,
            firecracker: self.firecracker.clone(),
            ..ExecutorConfig::default()
        };
        config.timeouts.boot = self.boot_timeout;
        config
    }
}

impl Default for ExecutorSection {
    fn default() -> Self {
        let executor = ExecutorConfig::default();
        Self {
            hypervisor: executor.hypervisor,
            qemu: executor.qemu,
            gpu: executor.gpu,
            accelerator: executor.accelerator,
            boot_timeout: executor.timeouts.boot,
            reclaim_after: Duration::from_secs(600),
            firecracker: executor.firecracker,
        }
    }
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSection {
    /// `enabled`: whether VMs are connected. By default they are where the daemon runs as root.
    pub enabled: Option<bool>,
    /// `pool`: where their addresses come from, a /30 for each.
    pub pool: Ipv4Network,
    /// `ipv6`: whether they have IPv6 too: `auto`, `off`, `nat`, or a prefix that is routed to
    /// this host.
    pub ipv6: Ipv6Config,
    /// `cool_down_seconds`: how long an address rests before its next owner.
    pub cool_down: Duration,
    /// `max_connections_per_vm`: how many connections a VM may have open.
    pub connections: u32,
    /// `max_bandwidth_per_vm`: how many bits a second a VM may send and receive; its job can ask
    /// for less.
    pub bandwidth: Option<BothWays>,
    /// `max_packet_rate_per_vm`: the same in packets.
    pub packet_rate: Option<BothWays>,
}

impl Default for NetworkSection {
    fn default() -> Self {
        Self {
            enabled: None,
            pool: aleph_vm_networking::DEFAULT_POOL,
            ipv6: Ipv6Config::Auto,
            cool_down: Duration::from_secs(60),
            connections: 4096,
            bandwidth: None,
            packet_rate: None,
        }
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitsSection {
    /// `overcommit_cpus`, `overcommit_memory`, `overcommit_disk`: how many times what the host
    /// has may be given to jobs.
    pub overcommit: Overcommit,
    /// `reserved_memory`: what jobs never get.
    pub reserved_memory: MiB,
    /// `pids_per_vm`: processes and threads that a VMM may have where its job does not say, and its CPUs do not
    /// need more.
    pub pids: u32,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            overcommit: Overcommit::default(),
            reserved_memory: MiB(512),
            pids: 256,
        }
    }
}

/// `[logs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogsSection {
    /// `max_bytes_per_job`: how much of a job's output is kept.
    pub max_bytes: u64,
    /// `max_segments`: in how many files; the oldest is removed as a whole.
    pub segments: usize,
}

impl Default for LogsSection {
    fn default() -> Self {
        Self {
            max_bytes: 50 * 1024 * 1024,
            segments: 5,
        }
    }
}

/// `[images]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesSection {
    /// `mirrors`: for each registry the URLs that are asked before it, in this order.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// `plain_http`: registries, as `host:port`, that are spoken with without TLS.
    pub plain_http: Vec<String>,
    /// `max_unpacked`: how much an image may hold once unpacked.
    pub max_unpacked: MiB,
    /// `docker_config`: docker's file with the logins, which a pull of an operator uses. By
    /// default `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`, or root's.
    pub docker_config: Option<PathBuf>,
    /// `certificates`: PEM files of authorities that are trusted beside the host's.
    pub certificates: Vec<PathBuf>,
    /// `account_registries`: the registries from which accounts may fetch images. None by
    /// default: then their jobs have the images that operators fetched.
    pub account_registries: Vec<String>,
}

impl ImagesSection {
    /// How registries are spoken with, for an operator.
    #[must_use]
    pub fn pull_options(&self) -> PullOptions {
        PullOptions {
            registries: Registries {
                mirrors: self.mirrors.clone(),
                insecure: self.plain_http.iter().cloned().collect(),
                certificates: self.certificates.clone(),
                docker_config: self.docker_config.clone(),
                ..Registries::default()
            },
            most_bytes: self.max_unpacked.bytes(),
            ..PullOptions::default()
        }
    }
}

impl Default for ImagesSection {
    fn default() -> Self {
        Self {
            mirrors: BTreeMap::new(),
            plain_http: Vec::new(),
            max_unpacked: MiB(20 * 1024),
            docker_config: None,
            certificates: Vec::new(),
            account_registries: Vec::new(),
        }
    }
}

/// `[volumes]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumesSection {
    /// `backend`: how new ones are kept: `files`, `qcow2`, `lvm-thin`, or `auto`, which is files where the
    /// filesystem lets them share blocks, else qcow2.
    pub backend: BackendChoice,
    /// `thin_pool`: the pool of those that are thin volumes of LVM, `GROUP/POOL`.
    pub thin_pool: Option<ThinPool>,
    /// `encrypt`: whether new ones are encrypted, where nobody says so.
    pub encrypt: bool,
    /// `key_file`: the file with the node's key, which opens those of encrypted ones. `volumes/key` in the
    /// node's state folder by default.
    pub key_file: Option<PathBuf>,
    /// `grace_seconds`: how long one that was removed can be had back.
    pub grace: Duration,
    /// `max_per_account`: how many an account may have, those that can be had back included. No limit by
    /// default.
    pub count: Option<u64>,
    /// `max_size_per_account`: how much those may hold, with their snapshots. No limit by default.
    pub size: Option<MiB>,
    /// `backup_key_file`: the key of encrypted places for backups. None by default: backups are in the clear.
    pub backup_key: Option<PathBuf>,
    /// `default_size`: the size of one that a job asks for where it is missing, if the job does not say.
    pub default_size: MiB,
}

impl VolumesSection {
    /// What the node needs of it.
    #[must_use]
    pub fn volumes_config(&self) -> VolumesConfig {
        VolumesConfig {
            backend: self.backend,
            thin_pool: self.thin_pool.clone(),
            encrypt: self.encrypt,
            key_file: self.key_file.clone(),
            grace: self.grace,
            quota: VolumeQuota {
                count: self.count,
                bytes: self.size.map(MiB::bytes),
            },
            default_size: self.default_size,
        }
    }
}

impl Default for VolumesSection {
    fn default() -> Self {
        let volumes = VolumesConfig::default();
        Self {
            backend: volumes.backend,
            thin_pool: None,
            encrypt: volumes.encrypt,
            key_file: None,
            grace: volumes.grace,
            count: None,
            size: None,
            backup_key: None,
            default_size: volumes.default_size,
        }
    }
}

/// `[functions]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionsSection {
    /// `listen`: the TCP address for clients of AWS Lambda, such as `127.0.0.1:9000`. None by
    /// default. An address that is not of this host alone needs credentials.
    pub listen: Option<SocketAddr>,
    /// `region`: the region that the node says it is.
    pub region: String,
    /// `account_id`: the number of the account `default`.
    pub account_id: String,
    /// `credentials`: who may sign requests. With none, whoever reaches the address is the account
    /// `default`.
    pub credentials: Vec<Credential>,
    /// `account_concurrency`: how many invocations of an account may run at once.
    pub account_concurrency: u32,
    /// `nats`: the servers whose messages functions may get, each with how it is spoken with. None
    /// by default.
    pub nats: Vec<NatsServer>,
    /// `memory`: how much the guests of all clones may have together, as they see it; what the
    /// host has by default.
    pub memory: Option<MiB>,
    /// `processes`: how many processes of VMMs are launched ahead for cold starts, for all functions
    /// together.
    pub processes: usize,
    /// How clones are kept: `linger_seconds`, `idle_timeout_seconds`, `min_idle_seconds`,
    /// `break_even_seconds`, `spares`.
    pub pool: PoolConfig,
}

impl Default for FunctionsSection {
    fn default() -> Self {
        let functions = FunctionsConfig::default();
        let runtime = aleph_executor::functions::FunctionsConfig::default();
        Self {
            listen: None,
            region: functions.identity.region,
            account_id: functions.identity.account_id,
            credentials: functions.credentials,
            account_concurrency: functions.account_concurrency,
            nats: functions.nats,
            memory: None,
            processes: runtime.processes,
            pool: runtime.pool,
        }
    }
}

impl FunctionsSection {
    /// How they are run.
    #[must_use]
    pub fn runtime_config(&self) -> aleph_executor::functions::FunctionsConfig {
        aleph_executor::functions::FunctionsConfig {
            account_concurrency: usize::try_from(self.account_concurrency).unwrap_or(usize::MAX),
            region: self.region.clone(),
            memory: self.memory,
            processes: self.processes,
            pool: self.pool,
        }
    }

    /// What the node's functions need of it.
    #[must_use]
    pub fn functions_config(&self) -> FunctionsConfig {
        FunctionsConfig {
            identity: Identity {
                region: self.region.clone(),
                account_id: self.account_id.clone(),
            },
            credentials: self.credentials.clone(),
            account_concurrency: self.account_concurrency,
            nats: self.nats.clone(),
            ..FunctionsConfig::default()
        }
    }
}

/// `[retention]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSection {
    /// `events`: how many events are kept.
    pub events: u64,
}

impl Default for RetentionSection {
    fn default() -> Self {
        Self { events: 100_000 }
    }
}
