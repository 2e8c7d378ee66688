//! `aleph up`.

use crate::context::Context;
use anyhow::Result;
use std::path::PathBuf;

/// How to run the node.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// The configuration [default: /etc/aleph/aleph.toml, if it is there]
    #[arg(short, long, value_name = "FILE", env = "ALEPH_CONFIG")]
    config: Option<PathBuf>,
}

impl Up {
    pub(super) fn run(self, _: &Context) -> Result<u8> {
        anyhow::bail!("not merged yet")
    }
}
