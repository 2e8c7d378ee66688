//! `aleph version`.

use crate::context::Context;
use crate::output::{print, print_error, print_json};
use anyhow::Result;
use serde_json::json;

const OWN: &str = env!("CARGO_PKG_VERSION");

/// How to tell the versions.
#[derive(Debug, clap::Args)]
pub(crate) struct Version {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Version {
    /// That no node runs is no failure; that a named one does not answer is.
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let node = async {
            match context.daemon().await? {
                Some(client) => Ok(Some(client.node().await?)),
                None => Ok::<_, anyhow::Error>(None),
            }
        };
        let node = node.await;
        let (node, code) = match node {
            Ok(node) => (node, 0),
            Err(error) => {
                print_error(&error);
                (None, crate::FAILED)
            }
        };
        if self.json {
            print_json(&json!({ "version": OWN, "node": node }))?;
            return Ok(code);
        }
        print(format!("aleph {OWN}"))?;
        if let Some(node) = node {
            print(format!(
                "node {} {} on {} by {}",
                node.version,
                node.id.short(),
                node.hostname,
                node.driver
            ))?;
        }
        Ok(code)
    }
}
