//! Servers of NATS that the node's operator lists, and connections to them.
//!
//! An account names servers; how they are spoken with is the node's alone. What a server tells of
//! others of its cluster is not followed, since nobody has listed those.

use super::mapping::Status;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// A server that accounts may name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatsServer {
    /// Its host and port.
    pub server: String,
    /// The file of what the node shows it (a `.creds` file).
    pub credentials: Option<PathBuf>,
    /// Whether it is spoken with over TLS, whatever it says.
    pub tls: bool,
    /// The file of the certificates that its own has to lead to, instead of the host's.
    pub tls_ca: Option<PathBuf>,
    /// The files of a certificate and of its key, which the node shows.
    pub tls_cert: Option<(PathBuf, PathBuf)>,
    /// Which accounts may name it; all where there are none.
    pub accounts: Vec<String>,
}

/// Messages that wait in memory for a subscription. More of them are dropped, which is told.
const CAPACITY: usize = 512;
/// The longest pause before a connection is tried again.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// The host and port of what somebody calls a server.
pub(crate) fn normal(text: &str) -> Option<String> {
    let text = text
        .strip_prefix("nats://")
        .or(text.strip_prefix("tls://"))
        .unwrap_or(text);
    if text.contains(['/', '@', '?', '#', ' ']) {
        return None;
    }
    let parsed: ServerAddr = text.parse().ok()?;
    let host = parsed.host();
    let host = match host.contains(':') {
        true => format!("[{}]", host.trim_matches(['[', ']'])),
        false => host.to_ascii_lowercase(),
    };
    (!host.is_empty()).then(|| format!("{host}:{}", parsed.port()))
}

/// A connection that comes back by itself.
pub(super) struct Connection {
    pub(super) client: Client,
    /// Counts how often it has come back.
    pub(super) returns: watch::Receiver<u64>,
}

/// Connects to one of these servers.
///
/// # Errors
/// Says why not, for whoever has the mapping.
pub(super) async fn connect(
    servers: &[NatsServer],
    name: &str,
    status: &Status,
) -> Result<Connection, String> {
    let Some(first) = servers.first() else {
        return Err("its servers are no longer listed in [functions] nats".into());
    };
    let (back, returns) = watch::channel(0);
    let (told, shown) = (status.clone(), first.server.clone());
    let mut options = ConnectOptions::new()
        .name(name)
        .subscription_capacity(CAPACITY)
        .ignore_discovered_servers()
        .reconnect_delay_callback(|tries| {
            let delay = Duration::from_millis(100).saturating_mul(1 << tries.min(10));
            delay.min(LONGEST_DELAY)
        })
        .event_callback(move |event| {
            let shown = &shown;
            match event {
                Event::Connected => {
                    told.well();
                    back.send_modify(|count| *count += 1);
                }
                Event::Disconnected => {
                    told.problem(&format!("the connection to NATS at {shown} is lost"));
                }
                Event::SlowConsumer(_) => {
                    told.problem("messages come faster than they are taken; some are lost");
                }
                Event::ServerError(error) => told.problem(&format!("NATS says: {error}")),
                Event::ClientError(error) => tracing::debug!(%error, "a connection to NATS"),
                _ => {}
            }
            std::future::ready(())
        });
    if let Some(file) = &first.credentials {
        let read = options.credentials_file(file).await;
        options = read.map_err(|error| {
            tracing::error!(%error, file = %file.display(), "credentials for NATS cannot be read");
            "the node's credentials for it cannot be read; its log says more".to_owned()
        })?;
    }
    if first.tls {
        options = options.require_tls(true);
    }
    if let Some(file) = &first.tls_ca {
        options = options.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &first.tls_cert {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let addresses: Result<Vec<ServerAddr>, _> = servers.iter().map(|s| s.server.parse()).collect();
    let addresses = addresses.map_err(|error| error.to_string())?;
    let connected = options.connect(addresses).await;
    let client = connected
        .map_err(|error| format!("Cannot connect to NATS at {}: {error}", first.server))?;
    Ok(Connection { client, returns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_called_in_one_way() {
        for (text, want) in [
            ("127.0.0.1:4222", "127.0.0.1:4222"),
            ("nats://127.0.0.1", "127.0.0.1:4222"),
            ("tls://Example.org:4443", "example.org:4443"),
            ("[::1]:4222", "[::1]:4222"),
        ] {
            assert_eq!(normal(text).as_deref(), Some(want), "{text}");
        }
        for text in ["", "http://a/b", "user:password@host", "a b", "host:99999"] {
            assert_eq!(normal(text), None, "{text}");
        }
    }
}
