//! `aleph config`.

use crate::context::Context;
use anyhow::Result;
use std::path::PathBuf;

/// What to do with the configuration.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Config {
    /// Look for all that is wrong with it; code 1 where something is
    Check {
        /// The file [default: /etc/aleph/aleph.toml]
        file: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what holds, with the defaults
    Show {
        /// The file [default: /etc/aleph/aleph.toml]
        file: Option<PathBuf>,
    },
}

impl Config {
    pub(super) fn run(self, _: &Context) -> Result<u8> {
        anyhow::bail!("not merged yet")
    }
}
