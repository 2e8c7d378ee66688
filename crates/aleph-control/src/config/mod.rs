//! `aleph.toml`: how a node is run.
//!
//! [`Config::check`] is pure: text goes in, and either a configuration or **all** that is wrong
//! with the text comes out, each with its path, its line and, where a key was misspelt, the key
//! that was probably meant. Nothing on the host is looked at, so a file can be checked on
//! another machine than the one it is for.
//!
//! Every key has a default, and an empty file is a valid one.

mod firecracker;
mod nats;
mod problem;
mod reader;
mod table;
mod value;

pub use problem::ConfigProblem;

use crate::lambda::{Credential, FunctionsConfig, Identity, NatsServer};
use aleph_executor::accel::Accelerator;
use aleph_executor::firecracker::jail::JailConfig;
use aleph_executor::functions::PoolConfig;
use aleph_executor::logs::LogLimits;
use aleph_executor::node::Overcommit;
use aleph_executor::{ExecutorConfig, Hypervisor, NodeConfig, Paths};
use aleph_image::oci::{PullOptions, Registries};
use aleph_types::{BothWays, Ipv4Network, MiB, NetworkLimits};
use aleph_vm_networking::{Ipv6Config, NetworkConfig};
use reader::Document;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the file is looked for when nobody says.
pub const DEFAULT_PATH: &str = "/etc/aleph/aleph.toml";

/// How a node is run. Each field is a section of the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[node]`: what it is.
    pub node: NodeSection,
    /// `[api]`: where and how it listens.
    pub api: ApiSection,
    /// `[executor]`: how it runs VMs.
    pub executor: ExecutorSection,
    /// `[network]`: how it connects VMs.
    pub network: NetworkSection,
    /// `[limits]`: what it gives away.
    pub limits: LimitsSection,
    /// `[logs]`: how much output it keeps.
    pub logs: LogsSection,
    /// `[images]`: where images come from.
    pub images: ImagesSection,
    /// `[functions]`: who may call functions, and where.
    pub functions: FunctionsSection,
    /// `[retention]`: how much history it keeps.
    pub retention: RetentionSection,
}

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
    /// `qemu`: the program, by name or path.
    pub qemu: PathBuf,
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
    /// `pids_per_vm`: processes and threads that a VMM may have where its job does not say.
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

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its content is wrong.
    #[error("{} has {} mistakes:{}", path.display(), problems.len(), list(problems))]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// All that is wrong with it.
        problems: Vec<ConfigProblem>,
    },
}

fn list(problems: &[ConfigProblem]) -> String {
    problems.iter().map(|p| format!("\n  {p}")).collect()
}

impl Config {
    /// Reads the configuration in `text`.
    ///
    /// # Errors
    /// All that is wrong with it.
    ///
    /// ```
    /// # use aleph_control::Config;
    /// assert_eq!(Config::check(""), Ok(Config::default()));
    /// let wrong = Config::check("[api]\nlistne = 1\nmax_connections = 0").unwrap_err();
    /// assert_eq!(wrong.len(), 2);
    /// assert_eq!(
    ///     wrong[0].to_string(),
    ///     "api.listne (line 2): there is no such key; did you mean \"listen\"?"
    /// );
    /// assert_eq!(wrong[1].path, "api.max_connections");
    /// ```
    pub fn check(text: &str) -> Result<Self, Vec<ConfigProblem>> {
        let mut document = Document::parse(text)?;
        let config = read(&mut document);
        document.finish(config)
    }

    /// Reads a file. Without `path` it is the default one, which may be missing.
    ///
    /// # Errors
    /// Where it cannot be read or is wrong.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let given = path.is_some();
        let path = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !given => String::new(),
            Err(source) => {
                let path = path.to_owned();
                return Err(ConfigError::Read { path, source });
            }
        };
        Self::check(&text).map_err(|problems| ConfigError::Wrong {
            path: path.to_owned(),
            problems,
        })
    }

    /// How registries are spoken with, for an operator.
    #[must_use]
    pub fn pull_options(&self) -> PullOptions {
        self.images.pull_options()
    }

    /// What the node itself needs of it.
    ///
    /// # Errors
    /// Where the root folder cannot be made.
    pub fn node_config(&self) -> io::Result<NodeConfig> {
        let paths = Paths::new(self.node.root.as_deref())?;
        let mut node = NodeConfig::new(paths);
        node.executor = self.executor.executor_config();
        let root = rustix::process::geteuid().is_root();
        if self.network.enabled.unwrap_or(root) {
            node.network = Some(NetworkConfig {
                name: format!("aleph-{}", node.paths.name()),
                pool: self.network.pool,
                ipv6: self.network.ipv6,
                cool_down: self.network.cool_down,
                connections: self.network.connections,
                limits: NetworkLimits::default()
                    .with_bandwidth(self.network.bandwidth.unwrap_or_default())
                    .with_packet_rate(self.network.packet_rate.unwrap_or_default()),
                dns_port: None,
                run: node.paths.run().to_owned(),
            });
        }
        node.overcommit = self.limits.overcommit;
        node.reserved_memory = self.limits.reserved_memory;
        node.pids = self.limits.pids;
        let reclaim = self.executor.reclaim_after;
        node.reclaim_after = (!reclaim.is_zero()).then_some(reclaim);
        let segments = u64::try_from(self.logs.segments).unwrap_or(1).max(1);
        node.logs = LogLimits {
            segment_bytes: self.logs.max_bytes / segments,
            segments: self.logs.segments,
        };
        node.events_kept = self.retention.events;
        Ok(node)
    }
}

fn read(document: &mut Document<'_>) -> Config {
    let mut config = Config::default();
    document.section("node", |s| {
        s.optional("root", &mut config.node.root, value::absolute);
    });
    document.section("api", |s| {
        let api = &mut config.api;
        s.optional("socket", &mut api.socket, value::absolute);
        s.read("socket_group", &mut api.socket_group, value::group);
        s.optional("listen", &mut api.listen, value::address);
        let (mut certificate, mut key) = (None, None);
        s.optional("tls_cert", &mut certificate, value::absolute);
        s.optional("tls_key", &mut key, value::absolute);
        let connections = value::whole(1..=100_000);
        s.read("max_connections", &mut api.max_connections, connections);
        s.read("drain_seconds", &mut api.drain, value::seconds(0..=3600));
        api.tls = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (Some(_), None) if !s.has("tls_key") => {
                s.problem("tls_cert", "needs tls_key beside it");
                None
            }
            (None, Some(_)) if !s.has("tls_cert") => {
                s.problem("tls_key", "needs tls_cert beside it");
                None
            }
            _ => None,
        };
        let tls = s.has("tls_cert") || s.has("tls_key");
        if let Some(listen) = api.listen.filter(|a| !a.ip().is_loopback() && !tls) {
            let why = format!(
                "{listen} can be reached from other hosts, which needs tls_cert and tls_key"
            );
            s.problem("listen", &why);
        }
        if tls && !s.has("listen") {
            s.problem("listen", "is missing, so that TLS has nowhere to listen");
        }
    });
    document.section("executor", |s| {
        let executor = &mut config.executor;
        s.read("qemu", &mut executor.qemu, value::program);
        s.read("hypervisor", &mut executor.hypervisor, value::hypervisor);
        s.optional("accel", &mut executor.accelerator, value::accelerator);
        let boot = value::seconds(1..=86_400);
        s.read("boot_timeout_seconds", &mut executor.boot_timeout, boot);
        s.read(
            "reclaim_after_seconds",
            &mut executor.reclaim_after,
            value::seconds(0..=86_400),
        );
        s.read(
            "firecracker",
            &mut executor.firecracker,
            firecracker::settings,
        );
    });
    document.section("network", |s| {
        let network = &mut config.network;
        s.optional("enabled", &mut network.enabled, value::boolean);
        s.read("pool", &mut network.pool, value::pool);
        s.read("ipv6", &mut network.ipv6, value::ipv6);
        let rest = value::seconds(5..=86_400);
        s.read("cool_down_seconds", &mut network.cool_down, rest);
        let connections = value::whole(16..=1_000_000);
        s.read(
            "max_connections_per_vm",
            &mut network.connections,
            connections,
        );
        s.optional(
            "max_bandwidth_per_vm",
            &mut network.bandwidth,
            value::bandwidth,
        );
        s.optional(
            "max_packet_rate_per_vm",
            &mut network.packet_rate,
            value::packet_rate,
        );
    });
    document.section("limits", |s| {
        let limits = &mut config.limits;
        s.read("overcommit_cpus", &mut limits.overcommit.cpus, value::ratio);
        s.read(
            "overcommit_memory",
            &mut limits.overcommit.memory,
            value::ratio,
        );
        s.read("overcommit_disk", &mut limits.overcommit.disk, value::ratio);
        s.read("reserved_memory", &mut limits.reserved_memory, value::size);
        s.read("pids_per_vm", &mut limits.pids, value::whole(16..=1 << 22));
    });
    document.section("logs", |s| {
        let logs = &mut config.logs;
        s.read("max_bytes_per_job", &mut logs.max_bytes, value::log_bytes);
        s.read("max_segments", &mut logs.segments, value::whole(2..=1000));
    });
    document.section("images", |s| {
        let images = &mut config.images;
        s.read("mirrors", &mut images.mirrors, value::mirrors);
        s.read("plain_http", &mut images.plain_http, value::registries);
        s.read("max_unpacked", &mut images.max_unpacked, value::size);
        s.optional("docker_config", &mut images.docker_config, value::absolute);
        s.read("certificates", &mut images.certificates, value::files);
        let accounts = &mut images.account_registries;
        s.read("account_registries", accounts, value::named_registries);
        for (key, why) in images.pull_options().registries.faults() {
            // What the library calls insecure.
            let why = why.replace("in insecure", "in plain_http");
            match key.split_once('.') {
                Some((_, registry)) => s.problem_at("mirrors", &format!(".{registry:?}"), &why),
                None => s.problem("plain_http", &why),
            }
        }
    });
    document.section("functions", |s| {
        let functions = &mut config.functions;
        s.optional("listen", &mut functions.listen, value::address);
        s.read("region", &mut functions.region, value::region);
        s.read("account_id", &mut functions.account_id, value::account_id);
        s.read(
            "credentials",
            &mut functions.credentials,
            value::credentials,
        );
        let concurrency = value::whole(1..=1_000_000);
        s.read(
            "account_concurrency",
            &mut functions.account_concurrency,
            concurrency,
        );
        s.read("nats", &mut functions.nats, nats::servers);
        s.optional("memory", &mut functions.memory, value::guest_memory);
        let processes = value::whole(0..=100);
        s.read("processes", &mut functions.processes, processes);
        let pool = &mut functions.pool;
        let day = || value::seconds(0..=86_400);
        s.read("linger_seconds", &mut pool.linger, day());
        s.read("idle_timeout_seconds", &mut pool.idle_timeout, day());
        s.read("min_idle_seconds", &mut pool.shortest, day());
        s.read("break_even_seconds", &mut pool.break_even, day());
        s.read("spares", &mut pool.spares, value::whole(0..=100));
        let keys = s.has("credentials");
        if let Some(listen) = functions.listen.filter(|a| !a.ip().is_loopback() && !keys) {
            let why = format!("{listen} can be reached from other hosts, which needs credentials");
            s.problem("listen", &why);
        }
    });
    document.section("retention", |s| {
        let events = value::whole(100..=100_000_000);
        s.read("events", &mut config.retention.events, events);
    });
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_executor::firecracker::MemoryMode;

    #[test]
    fn every_key_is_read() {
        let text = r#"
            [node]
            root = "/srv/aleph"
            [api]
            socket = "/run/a.sock"
            socket_group = "wheel"
            listen = "0.0.0.0:7400"
            tls_cert = "/etc/c.pem"
            tls_key = "/etc/k.pem"
            max_connections = 10
            drain_seconds = 3
            [executor]
            qemu = "/opt/qemu"
            hypervisor = "firecracker"
            accel = "tcg"
            boot_timeout_seconds = 90
            reclaim_after_seconds = 0
            [executor.firecracker]
            firecracker = "/opt/firecracker"
            jailer = "/opt/jailer"
            jailed = false
            uid_range = "200000-265535"
            chroot_base = "/srv/jail"
            memory = "prefetch"
            [network]
            enabled = false
            pool = "10.7.0.0/16"
            ipv6 = "2001:db8:7::/56"
            cool_down_seconds = 30
            max_connections_per_vm = 100
            max_bandwidth_per_vm = "sent=100M,received=1G"
            max_packet_rate_per_vm = "50k"
            [limits]
            overcommit_cpus = 2
            overcommit_memory = 1.5
            overcommit_disk = 0.5
            reserved_memory = "1g"
            pids_per_vm = 100
            [logs]
            max_bytes_per_job = "20m"
            max_segments = 4
            [images]
            mirrors = { "docker.io" = ["http://127.0.0.1:5000"] }
            plain_http = ["registry.local:5000"]
            max_unpacked = "5g"
            docker_config = "/etc/aleph/docker.json"
            certificates = ["/etc/aleph/registry.pem"]
            account_registries = ["docker.io", "registry.local:5000"]
            [functions]
            listen = "0.0.0.0:9000"
            region = "eu-central-1"
            account_id = "123456789012"
            credentials = [
                { access_key_id = "AKIDEXAMPLE", secret_access_key = "s/e+c", account = "team" },
            ]
            account_concurrency = 50
            nats = [{ server = "127.0.0.1:4222" }]
            memory = "6g"
            processes = 5
            linger_seconds = 3
            idle_timeout_seconds = 120
            min_idle_seconds = 30
            break_even_seconds = 900
            spares = 4
            [retention]
            events = 500
        "#;
        let config = Config::check(text).unwrap();
        let want = Config {
            node: NodeSection {
                root: Some("/srv/aleph".into()),
            },
            api: ApiSection {
                socket: Some("/run/a.sock".into()),
                socket_group: "wheel".into(),
                listen: Some("0.0.0.0:7400".parse().unwrap()),
                tls: Some(TlsFiles {
                    certificate: "/etc/c.pem".into(),
                    key: "/etc/k.pem".into(),
                }),
                max_connections: 10,
                drain: Duration::from_secs(3),
            },
            executor: ExecutorSection {
                qemu: "/opt/qemu".into(),
                hypervisor: Hypervisor::Firecracker,
                accelerator: Some(Accelerator::Tcg),
                boot_timeout: Duration::from_secs(90),
                reclaim_after: Duration::ZERO,
                firecracker: JailConfig {
                    firecracker: Some("/opt/firecracker".into()),
                    jailer: Some("/opt/jailer".into()),
                    jailed: false,
                    uid_range: "200000-265535".parse().unwrap(),
                    chroot_base: Some("/srv/jail".into()),
                    memory: MemoryMode::of_name("prefetch").unwrap(),
                },
            },
            network: NetworkSection {
                enabled: Some(false),
                pool: "10.7.0.0/16".parse().unwrap(),
                ipv6: "2001:db8:7::/56".parse().unwrap(),
                cool_down: Duration::from_secs(30),
                connections: 100,
                bandwidth: Some("sent=100M,received=1G".parse().unwrap()),
                packet_rate: Some("50k".parse().unwrap()),
            },
            limits: LimitsSection {
                overcommit: Overcommit {
                    cpus: 2.0,
                    memory: 1.5,
                    disk: 0.5,
                },
                reserved_memory: MiB(1024),
                pids: 100,
            },
            logs: LogsSection {
                max_bytes: 20 << 20,
                segments: 4,
            },
            images: ImagesSection {
                mirrors: BTreeMap::from([(
                    "docker.io".into(),
                    vec!["http://127.0.0.1:5000".into()],
                )]),
                plain_http: vec!["registry.local:5000".into()],
                max_unpacked: MiB(5 * 1024),
                docker_config: Some("/etc/aleph/docker.json".into()),
                certificates: vec!["/etc/aleph/registry.pem".into()],
                account_registries: vec!["docker.io".into(), "registry.local:5000".into()],
            },
            functions: FunctionsSection {
                listen: Some("0.0.0.0:9000".parse().unwrap()),
                region: "eu-central-1".into(),
                account_id: "123456789012".into(),
                credentials: vec![Credential {
                    access_key_id: "AKIDEXAMPLE".into(),
                    secret_access_key: crate::lambda::Secret::new("s/e+c"),
                    account: "team".into(),
                }],
                account_concurrency: 50,
                nats: vec![NatsServer {
                    server: "127.0.0.1:4222".into(),
                    ..NatsServer::default()
                }],
                memory: Some(MiB(6 * 1024)),
                processes: 5,
                pool: PoolConfig {
                    linger: Duration::from_secs(3),
                    idle_timeout: Duration::from_secs(120),
                    shortest: Duration::from_secs(30),
                    break_even: Duration::from_secs(900),
                    spares: 4,
                },
            },
            retention: RetentionSection { events: 500 },
        };
        assert_eq!(config, want);
        let runtime = config.functions.runtime_config();
        assert_eq!(
            (runtime.memory, runtime.processes, runtime.pool),
            (Some(MiB(6 * 1024)), 5, want.functions.pool)
        );
    }

    #[test]
    fn the_example_is_valid_and_says_the_defaults() {
        let text = include_str!("../../../../packaging/aleph.toml");
        assert_eq!(Config::check(text), Ok(Config::default()));
        // With its comments taken away, each line that shows a key sets its default.
        let keys: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config = Config::check(&keys).unwrap();
        assert_eq!(config.limits, LimitsSection::default());
        assert_eq!(config.logs, LogsSection::default());
        assert_eq!(config.retention, RetentionSection::default());
        assert_eq!(config.executor.boot_timeout, Duration::from_secs(60));
        assert_eq!(config.executor.hypervisor, Hypervisor::Auto);
        let (shown, default) = (config.executor.firecracker, JailConfig::default());
        assert_eq!(shown.jailed, default.jailed);
        assert_eq!(shown.uid_range, default.uid_range);
    }

    #[test]
    fn each_mistake_has_its_path() {
        for (text, path, says) in [
            ("x = 1", "x", "no such key"),
            ("[nod]", "nod", "did you mean \"node\"?"),
            ("node = 1", "node", "is an integer, and has to be a table"),
            ("[node]\nroot = 5", "node.root", "has to be a string"),
            ("[node]\nroot = 'x'", "node.root", "absolute path"),
            ("[api]\nlisten = 'here'", "api.listen", "127.0.0.1:7400"),
            (
                "[api]\nlisten = '0.0.0.0:1'",
                "api.listen",
                "needs tls_cert",
            ),
            (
                "[api]\nlisten = '127.0.0.1:1'\ntls_cert = '/c'",
                "api.tls_cert",
                "needs tls_key",
            ),
            (
                "[api]\ntls_cert = '/c'\ntls_key = '/k'",
                "api.listen",
                "missing",
            ),
            (
                "[api]\nmax_connections = 0",
                "api.max_connections",
                "between 1 and 100000",
            ),
            (
                "[network]\nmax_bandwidth_per_vm = \"fast\"",
                "network.max_bandwidth_per_vm",
                "is no rate; write 100M",
            ),
            (
                "[network]\nmax_packet_rate_per_vm = \"sent=1G\"",
                "network.max_packet_rate_per_vm",
                "from 1 to 100M",
            ),
            (
                "[api]\nmax_connections = 1.5",
                "api.max_connections",
                "is a float",
            ),
            ("[api]\nsocket_group = ''", "api.socket_group", "group"),
            (
                "[executor]\nhypervisor = 'xen'",
                "executor.hypervisor",
                "write auto, qemu or firecracker",
            ),
            (
                "[executor.firecracker]\nuid_range = '1879048192-1879050000'",
                "executor.firecracker.uid_range",
                "VMs on QEMU",
            ),
            (
                "[executor]\naccel = 'magic'",
                "executor.accel",
                "write kvm or tcg",
            ),
            (
                "[executor]\nboot_timeout_seconds = -1",
                "executor.boot_timeout_seconds",
                "between",
            ),
            (
                "[executor.firecracker]\nuid_range = '0-10'",
                "executor.firecracker.uid_range",
                "below 1000",
            ),
            (
                "[executor.firecracker]\nuid_range = 5",
                "executor.firecracker.uid_range",
                "range of user ids",
            ),
            (
                "[executor.firecracker]\njailed = 'no'",
                "executor.firecracker.jailed",
                "true or false",
            ),
            (
                "[executor.firecracker]\nmemory = 'swap'",
                "executor.firecracker.memory",
                "prefetch",
            ),
            (
                "[executor.firecracker]\nchroot_base = 'jail'",
                "executor.firecracker.chroot_base",
                "absolute path",
            ),
            (
                "[executor.firecracker]\nuids = '1000-2000'",
                "executor.firecracker.uids",
                "no such key",
            ),
            (
                "[executor]\nfirecracker = 1",
                "executor.firecracker",
                "a table",
            ),
            (
                "[limits]\novercommit_cpus = 0",
                "limits.overcommit_cpus",
                "between",
            ),
            (
                "[limits]\nreserved_memory = '1x'",
                "limits.reserved_memory",
                "not a size",
            ),
            (
                "[limits]\nreserved_memory = 512",
                "limits.reserved_memory",
                "has to be a string",
            ),
            (
                "[logs]\nmax_bytes_per_job = '0'",
                "logs.max_bytes_per_job",
                "at least",
            ),
            (
                "[images]\nmirrors = { 'docker.io' = 'x' }",
                "images.mirrors.\"docker.io\"",
                "has to be a list",
            ),
            (
                "[images]\nmirrors = { 'docker.io' = ['ftp://x'] }",
                "images.mirrors.\"docker.io\"[0]",
                "http://",
            ),
            (
                "[images]\nplain_http = ['a', 1]",
                "images.plain_http[1]",
                "has to be a string",
            ),
            (
                "[images]\nmirrors = { 'docker.io' = ['http://mirror.example.org'] }",
                "images.mirrors.\"docker.io\"",
                "list its host in plain_http",
            ),
            (
                "[images]\nmirrors = { 'docker.io' = ['https://m.example.org/path'] }",
                "images.mirrors.\"docker.io\"",
                "more than that",
            ),
            (
                "[images]\nplain_http = ['-x']",
                "images.plain_http",
                "is no host",
            ),
            (
                "[images]\naccount_registries = ['docker.io', 'index.docker.io']",
                "images.account_registries[1]",
                "is written \"docker.io\"",
            ),
            (
                "[images]\naccount_registries = ['docker']",
                "images.account_registries[0]",
                "is no registry",
            ),
            (
                "[images]\ncertificates = ['x.pem']",
                "images.certificates[0]",
                "absolute path",
            ),
            (
                "[functions]\nlisten = '0.0.0.0:9000'",
                "functions.listen",
                "needs credentials",
            ),
            (
                "[functions]\nlisten = '0.0.0.0:9000'\ncredentials = []",
                "functions.credentials",
                "at least one",
            ),
            (
                "[functions]\naccount_id = '12'",
                "functions.account_id",
                "12 digits",
            ),
            (
                "[functions]\nmemory = '100m'",
                "functions.memory",
                "at least 128m",
            ),
            (
                "[functions]\nbreak_even_seconds = 86401",
                "functions.break_even_seconds",
                "between 0 and 86400",
            ),
            (
                "[functions]\nprocesses = 101",
                "functions.processes",
                "between 0 and 100",
            ),
            (
                "[functions]\nspares = -1",
                "functions.spares",
                "between 0 and 100",
            ),
            (
                "[functions]\nlinger_seconds = 86401",
                "functions.linger_seconds",
                "between 0 and 86400",
            ),
            (
                "[functions]\nregion = 'here'",
                "functions.region",
                "is no region",
            ),
            (
                "[functions]\ncredentials = [{ access_key_id = 'A', account = 'team' }]",
                "functions.credentials[0].secret_access_key",
                "is missing",
            ),
            (
                "[functions]\ncredentials = [{ access_key_id = 'A', secret_access_key = '', account = 'team' }]",
                "functions.credentials[0].secret_access_key",
                "is empty",
            ),
            (
                "[functions]\ncredentials = [{ access_key_id = 'A', secret_access_key = 's', account = 'Team' }]",
                "functions.credentials[0].account",
                "cannot be an account's name",
            ),
            (
                "[functions]\ncredentials = [{ access_key_id = 'A', secret_access_key = 's', account = 'a', x = 1 }]",
                "functions.credentials[0].x",
                "no such key",
            ),
            (
                "[functions]\ncredentials = [{ access_key_id = 'A', secret_access_key = 's', account = 'a' }, { access_key_id = 'A', secret_access_key = 't', account = 'b' }]",
                "functions.credentials[1].access_key_id",
                "is there twice",
            ),
            ("[retention]\nevents = 1", "retention.events", "between"),
        ] {
            let problems = Config::check(text).unwrap_err();
            let [problem] = problems.as_slice() else {
                panic!("{text}: {problems:?}");
            };
            assert_eq!(problem.path, path, "{text}");
            assert!(problem.to_string().contains(says), "{problem}");
            assert!(problem.line.is_some(), "{text}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "[api]\nlisten = 1\nsokcet = '/x'\n[executr]\n[limits]\npids_per_vm = 'many'\n";
        let problems = Config::check(text).unwrap_err();
        let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(
            paths,
            ["api.listen", "api.sokcet", "executr", "limits.pids_per_vm"]
        );
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        let problems = Config::check("[api]\nlisten = \n\n[node\n").unwrap_err();
        assert_eq!(problems[0].line, Some(2), "{problems:?}");
        assert!(problems.len() >= 2, "{problems:?}");
    }
}
