//! Which hosts a reference leads to, how they are spoken to, and with whose login.

use super::credentials::Login;
use super::reference::{DOCKER_HUB, Reference, is_host, is_loopback, without_port};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Where Docker Hub's registry really is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// How a node speaks to registries.
///
/// ```toml
/// mirrors = { "docker.io" = ["https://mirror.example.org"] }
/// insecure = ["registry.lan:5000"]
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    /// Addresses that are tried before a registry itself, in their order: `https://HOST[:PORT]`,
    /// or `http://` where plain HTTP is allowed. A mirror that lacks something, or fails, is
    /// passed over.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts, with or without a port, that are spoken to by plain HTTP. Those that are this
    /// machine by name (`localhost`, `127.0.0.0/8`, `::1`) are even when they are not listed.
    pub insecure: BTreeSet<String>,
    /// Speaks TLS with registries on this machine too.
    pub tls_on_loopback: bool,
    /// Files of certificates (PEM) that are trusted beside the system's.
    pub certificates: Vec<PathBuf>,
    /// Docker's configuration with the logins; `$DOCKER_CONFIG/config.json` or
    /// `~/.docker/config.json` when absent. Without a home, as a service, root's home is `/root`.
    pub docker_config: Option<PathBuf>,
    /// Logins by registry, which win over those of the file.
    #[serde(skip)]
    pub logins: BTreeMap<String, Login>,
    /// Uses no login of any kind: for those whom the node's logins are none of.
    #[serde(skip)]
    pub anonymous: bool,
}

/// One place where an image may be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port, as logins are kept.
    pub(crate) host: String,
    /// `https://HOST[:PORT]`.
    pub(crate) base: String,
    /// The registry that it stands in for.
    pub(crate) mirror_of: Option<String>,
}

impl Registries {
    /// What is wrong, each with its key: for the check of a configuration.
    #[must_use]
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        for (registry, mirrors) in &self.mirrors {
            let key = format!("mirrors.{registry}");
            if !is_host(registry) {
                faults.push((key.clone(), format!("{registry:?} is no host")));
            }
            for mirror in mirrors {
                if let Err(why) = self.mirror(registry, mirror) {
                    faults.push((key.clone(), format!("{mirror:?} {why}")));
                }
            }
        }
        for host in &self.insecure {
            if !is_host(host) {
                faults.push(("insecure".into(), format!("{host:?} is no host")));
            }
        }
        faults
    }

    /// Where to look for `reference`, in order: mirrors, then the registry itself.
    ///
    /// Mirrors that [`faults`](Self::faults) finds fault with are left out, with a warning.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        let registry = reference.registry();
        let mut endpoints = Vec::new();
        for mirror in self.mirrors.get(registry).into_iter().flatten() {
            match self.mirror(registry, mirror) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(why) => tracing::warn!(mirror, why, "a mirror is not used"),
            }
        }
        let host = if registry == DOCKER_HUB {
            DOCKER_HUB_HOST
        } else {
            registry
        };
        let scheme = if self.is_plain(registry) {
            "http"
        } else {
            "https"
        };
        endpoints.push(Endpoint {
            host: registry.to_owned(),
            base: format!("{scheme}://{host}"),
            mirror_of: None,
        });
        endpoints
    }

    fn mirror(&self, registry: &str, text: &str) -> Result<Endpoint, &'static str> {
        let (scheme, host) = text
            .split_once("://")
            .ok_or("is no address: https://HOST is one")?;
        let host = host.trim_end_matches('/');
        if !is_host(host) {
            return Err("has no host after ://, or more than that");
        }
        match scheme {
            "https" => {}
            "http" if is_loopback(host) || self.is_listed(host) => {}
            "http" => return Err("is plain HTTP: list its host in insecure to allow that"),
            _ => return Err("has to begin with https:// or http://"),
        }
        Ok(Endpoint {
            host: host.to_owned(),
            base: format!("{scheme}://{host}"),
            mirror_of: Some(registry.to_owned()),
        })
    }

    /// Whether plain HTTP is spoken with `host`, which may have a port.
    pub(crate) fn is_plain(&self, host: &str) -> bool {
        self.is_listed(host) || (is_loopback(host) && !self.tls_on_loopback)
    }

    fn is_listed(&self, host: &str) -> bool {
        self.insecure.contains(host) || self.insecure.contains(without_port(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(registries: &Registries, reference: &str) -> Vec<String> {
        let endpoints = registries.endpoints(&reference.parse().unwrap());
        endpoints.into_iter().map(|e| e.base).collect()
    }

    #[test]
    fn mirrors_come_first_and_plain_http_is_for_those_allowed() {
        let mut registries = Registries {
            mirrors: BTreeMap::from([(
                "docker.io".into(),
                vec![
                    "https://m.example.org/".into(),
                    "http://127.0.0.1:5001".into(),
                ],
            )]),
            insecure: BTreeSet::from(["registry.lan".into()]),
            ..Registries::default()
        };
        assert!(registries.faults().is_empty());
        assert_eq!(
            bases(&registries, "debian"),
            [
                "https://m.example.org",
                "http://127.0.0.1:5001",
                "https://registry-1.docker.io"
            ]
        );
        assert_eq!(
            bases(&registries, "registry.lan:5/x"),
            ["http://registry.lan:5"]
        );
        assert_eq!(bases(&registries, "other.lan:5/x"), ["https://other.lan:5"]);
        assert_eq!(bases(&registries, "localhost:5/x"), ["http://localhost:5"]);
        registries.tls_on_loopback = true;
        assert_eq!(bases(&registries, "localhost:5/x"), ["https://localhost:5"]);
    }

    #[test]
    fn every_fault_is_found_with_its_key() {
        let registries = Registries {
            mirrors: BTreeMap::from([(
                "docker.io".into(),
                vec![
                    "mirror.example.org".into(),
                    "http://mirror.example.org".into(),
                    "ftp://mirror.example.org".into(),
                    "https://mirror.example.org/path".into(),
                ],
            )]),
            insecure: BTreeSet::from(["http://x".into()]),
            ..Registries::default()
        };
        let faults = registries.faults();
        let keys: Vec<&str> = faults.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys[..4], ["mirrors.docker.io"; 4]);
        assert_eq!(keys[4..], ["insecure"]);
        assert_eq!(
            bases(&registries, "debian"),
            ["https://registry-1.docker.io"]
        );
    }
}
