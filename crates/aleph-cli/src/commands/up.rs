//! `aleph up`.

use crate::context::Context;
use crate::output::Advised;
use aleph_control::Config;
use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use std::path::PathBuf;

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
}

impl Up {
    /// Serves until a signal. Guests run on.
    pub(super) fn run(self, context: &Context) -> Result<u8> {
        let config = self.config(context)?;
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
        if let Some(qemu) = &node.qemu {
            config.executor.qemu.clone_from(qemu);
        }
        config.executor.accelerator = node.accel.or(config.executor.accelerator);
        if let Some(socket) = &self.socket {
            config.api.socket = Some(std::path::absolute(socket).context("no such folder")?);
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
