//! Which node a command speaks with: one in this process, or one by its API.

use crate::args::{ApiArgs, NodeArgs};
use crate::client::{Access, Client, ClientError, Endpoint};
use aleph_control::SOCKET;
use aleph_control::config::ExecutorSection;
use aleph_executor::{ExecutorConfig, Paths};
use anyhow::{Context as _, Result};
use std::path::Path;

/// What the flags before a command say.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) node: NodeArgs,
    pub(crate) api: ApiArgs,
}

impl Context {
    /// The folders of a node on this host.
    pub(crate) fn paths(&self) -> Result<Paths> {
        let root = self.node.root.as_deref();
        Paths::new(root).with_context(|| {
            let root = root.unwrap_or(Path::new("/"));
            format!("cannot use {} as the root folder", root.display())
        })
    }

    /// How a node in this process runs VMs.
    pub(crate) fn executor(&self) -> ExecutorConfig {
        let mut section = ExecutorSection::default();
        self.node.go_over(&mut section);
        section.executor_config()
    }

    /// A client of the node that was named, or of this host's.
    pub(crate) fn client(&self) -> Result<Client> {
        let endpoint = match &self.api.host {
            Some(endpoint) => endpoint.clone(),
            None => Endpoint::Unix(self.paths()?.run().join(SOCKET)),
        };
        let access = Access {
            token: self.api.token.clone(),
            account: self.api.account.clone(),
            authorities: self.api.cacert.clone(),
        };
        Ok(Client::new(endpoint, access))
    }

    /// The same, if it runs. Without `--host` a node that does not run is none; one that was
    /// named has to be there.
    pub(crate) async fn daemon(&self) -> Result<Option<Client>> {
        let client = self.client()?;
        if self.api.host.is_some() {
            return Ok(Some(client));
        }
        match client.reach().await {
            Ok(()) => Ok(Some(client)),
            Err(ClientError::NoNode { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
