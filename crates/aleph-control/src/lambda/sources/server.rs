//! Servers of NATS that the node's operator lists, and connections to them.
//!
//! An account names servers; how they are spoken with is the node's alone. What a server tells of
//! others of its cluster is not followed, since nobody has listed those.

use super::mapping::Status;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

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
/// How often a connection that is lost is tried again at each server: a client that nobody has any
/// more ends with that. Whoever still wants one makes another.
const TRIES: usize = 12;
/// How long it may take to send the server all.
pub(super) const FLUSH: Duration = Duration::from_secs(5);
/// How often it is told that messages are lost.
const TELL: Duration = Duration::from_secs(60);
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

/// Whether the node speaks with both servers in one way.
pub(super) fn are_alike(one: &NatsServer, other: &NatsServer) -> bool {
    let tls = |server: &NatsServer| server.tls || server.server.starts_with("tls://");
    let how = |server: &NatsServer| {
        let NatsServer {
            credentials,
            tls_ca,
            tls_cert,
            ..
        } = server.clone();
        (credentials, tls(server), tls_ca, tls_cert)
    };
    how(one) == how(other)
}

/// Waits until the server was sent all, which it is not while the connection is lost.
///
/// # Errors
/// Says why nobody knows.
pub(super) async fn flushed(client: &Client) -> Result<(), String> {
    match timeout(FLUSH, client.flush()).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("the server is away".into()),
    }
}

/// A connection that comes back by itself, for a while.
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
    let client_name = name.to_owned();
    // How often something was lost that nobody was told of, and when somebody was.
    let lost = Mutex::new((0_u64, None::<Instant>));
    let mut options = ConnectOptions::new()
        .name(name)
        .subscription_capacity(CAPACITY)
        .ignore_discovered_servers()
        .max_reconnects(TRIES * servers.len())
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
                    let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
                    lost.0 += 1;
                    if lost.1.is_none_or(|before| before.elapsed() > TELL) {
                        let count = lost.0;
                        tracing::warn!(
                            client = client_name,
                            server = shown,
                            count,
                            "messages of NATS come faster than they are taken, and are lost"
                        );
                        *lost = (0, Some(Instant::now()));
                    }
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
    use crate::lambda::sources::mapping::Phase;
    use async_nats::connection::State;

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_waits_for_a_server_that_is_away() {
        let start = aleph_testkit::NatsServer::start;
        let mut nats = tokio::task::block_in_place(start).unwrap();
        let server = NatsServer {
            server: nats.address(),
            ..NatsServer::default()
        };
        let status = Status::new(Phase::Enabled);
        let connection = connect(&[server], "test", &status).await.unwrap();
        flushed(&connection.client).await.unwrap();
        tokio::task::block_in_place(|| nats.kill()).unwrap();
        let limit = Duration::from_secs(60);
        let lost = async {
            while connection.client.connection_state() == State::Connected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(limit, lost).await.unwrap();
        let told = timeout(limit, flushed(&connection.client)).await.unwrap();
        assert!(told.unwrap_err().contains("away"));
    }

    #[test]
    fn only_servers_that_are_spoken_with_in_one_way_go_together() {
        let plain = NatsServer {
            server: "a:1".into(),
            ..NatsServer::default()
        };
        let other = NatsServer {
            server: "b:1".into(),
            accounts: vec!["team".into()],
            ..NatsServer::default()
        };
        assert!(are_alike(&plain, &other));
        let path = || Some(PathBuf::from("/x"));
        let change: [fn(&mut NatsServer, Option<PathBuf>); 5] = [
            |s, path| s.credentials = path,
            |s, _| s.tls = true,
            |s, path| s.tls_ca = path,
            |s, path| s.tls_cert = path.clone().zip(path),
            |s, _| s.server = "tls://b:1".into(),
        ];
        for change in change {
            let mut changed = other.clone();
            change(&mut changed, path());
            assert!(!are_alike(&plain, &changed), "{changed:?}");
        }
    }

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
