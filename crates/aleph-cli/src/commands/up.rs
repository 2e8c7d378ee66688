//! `aleph up`.

use crate::context::Context;
use crate::output::Advised;
use aleph_control::Config;
use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// How to run the node. Flags go over the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// The configuration [default: /etc/aleph/aleph.toml, if it is there]
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "ALEPH_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,

    /// Listen on this TCP address too, such as 127.0.0.1:7400
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,

    /// Listen on this Unix socket instead of aleph.sock in the run folder
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Connect no VMs
    #[arg(long, env = "ALEPH_NO_NETWORK", hide_env_values = true)]
    no_network: bool,

    /// Run in this network namespace, by its name (ip netns) or its file
    #[arg(long, value_name = "NAME")]
    netns: Option<PathBuf>,
}

impl Up {
    /// Serves until a signal. Guests run on.
    pub(super) fn run(self, context: &Context) -> Result<u8> {
        let config = self.config(context)?;
        // Before there are threads: each has a namespace of its own.
        if let Some(netns) = &self.netns {
            enter(netns)?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(Box::pin(aleph_control::up(config)))?;
        Ok(0)
    }

    fn config(&self, context: &Context) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        let node = &context.node;
        if let Some(root) = &node.root {
            config.node.root = Some(root.clone());
        }
        node.go_over(&mut config.executor);
        if let Some(socket) = &self.socket {
            config.api.socket = Some(std::path::absolute(socket).context("no such folder")?);
        }
        if self.no_network {
            config.network.enabled = Some(false);
        }
        if let Some(listen) = self.listen {
            // The same rule as the configuration's own.
            if !listen.ip().is_loopback() && config.api.tls.is_none() {
                return Err(Advised {
                    what: format!("{listen} can be reached from other hosts, which needs TLS"),
                    advice: "Set tls_cert and tls_key in the configuration.".into(),
                }
                .into());
            }
            config.api.listen = Some(listen);
        }
        Ok(config)
    }
}

/// Where `ip netns add` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";

fn enter(netns: &Path) -> Result<()> {
    // A name stays within that folder; a path goes anywhere.
    let path = match netns.components().count() {
        1 => Path::new(NAMESPACES).join(netns),
        _ => netns.to_owned(),
    };
    let entered = File::open(&path).and_then(|file| {
        let kind = Some(LinkNameSpaceType::Network);
        Ok(move_into_link_name_space(file.as_fd(), kind)?)
    });
    entered.with_context(|| format!("cannot enter the network namespace {}", path.display()))
}
