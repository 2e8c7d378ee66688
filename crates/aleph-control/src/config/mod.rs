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
mod qemu;
mod reader;
mod reading;
mod sections;
mod table;
mod value;

pub use problem::ConfigProblem;
pub use sections::{
    ApiSection, ExecutorSection, FunctionsSection, ImagesSection, LimitsSection, LogsSection,
    NetworkSection, NodeSection, RetentionSection, TlsFiles, VolumesSection,
};

use aleph_executor::logs::LogLimits;
use aleph_executor::{NodeConfig, Paths};
use aleph_image::oci::PullOptions;
use aleph_types::NetworkLimits;
use aleph_vm_networking::NetworkConfig;
use reader::Document;
use std::io;
use std::path::{Path, PathBuf};

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
    /// `[volumes]`: how disks that outlive jobs are kept.
    pub volumes: VolumesSection,
    /// `[functions]`: who may call functions, and where.
    pub functions: FunctionsSection,
    /// `[retention]`: how much history it keeps.
    pub retention: RetentionSection,
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
        let config = reading::read(&mut document);
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
        node.volumes = self.volumes.volumes_config();
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

#[cfg(test)]
mod tests;
