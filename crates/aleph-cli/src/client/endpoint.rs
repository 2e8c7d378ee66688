//! Where a node listens, and how to reach it.

use super::ClientError;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// How long a node may take to accept a connection. A busy one queues them.
const CONNECT: Duration = Duration::from_secs(20);

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A socket on this host.
    Unix(PathBuf),
    /// A port of a host, `tls` or in the clear.
    Tcp { host: String, port: u16, tls: bool },
}

/// Who asks, and whom to trust.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    /// A bearer token.
    pub(crate) token: Option<String>,
    /// The account that an operator acts for.
    pub(crate) account: Option<String>,
    /// A file of certificate authorities in PEM, instead of the host's.
    pub(crate) authorities: Option<PathBuf>,
}

/// A byte stream to a node.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl FromStr for Endpoint {
    type Err = ClientError;

    /// Reads `unix:///PATH`, `https://HOST[:PORT]` or `http://HOST[:PORT]`.
    fn from_str(text: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadHost(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return match path {
                path if path.starts_with('/') => Ok(Self::Unix(path.into())),
                _ => Err(bad()),
            };
        }
        let (rest, tls, default) = if let Some(rest) = text.strip_prefix("https://") {
            (rest, true, 443)
        } else if let Some(rest) = text.strip_prefix("http://") {
            (rest, false, 80)
        } else {
            return Err(bad());
        };
        let authority: hyper::http::uri::Authority =
            rest.trim_end_matches('/').parse().map_err(|_| bad())?;
        // An IPv6 address stands in brackets, which are no part of it.
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            // What follows the host is a port that is none.
            None if !authority.as_str().ends_with(authority.host()) => return Err(bad()),
            None => default,
        };
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(bad());
        }
        Ok(Self::Tcp { host, port, tls })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { tls, .. } => {
                write!(
                    f,
                    "{}://{}",
                    if *tls { "https" } else { "http" },
                    self.authority()
                )
            }
        }
    }
}

impl Endpoint {
    /// Whether it is on this host.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// Whether what is sent there can be read on the way.
    pub(super) fn is_in_the_clear(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Tcp { tls: true, .. } => false,
            Self::Tcp { host, .. } => {
                let address = host.parse::<IpAddr>();
                !address.map_or(host.eq_ignore_ascii_case("localhost"), |ip| {
                    ip.to_canonical().is_loopback()
                })
            }
        }
    }

    /// What goes into the `Host` header.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".into(),
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// Connects. `authorities` are whom a TLS server's certificate has to come from.
    pub(super) async fn connect(
        &self,
        authorities: Option<&Path>,
    ) -> Result<Box<dyn Stream>, ClientError> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let failed = |source| ClientError::connecting(self, source);
        match self {
            Self::Unix(path) => {
                let stream = tokio::time::timeout(CONNECT, UnixStream::connect(path));
                let stream = stream.await.unwrap_or_else(|_| Err(late()));
                Ok(Box::new(stream.map_err(failed)?))
            }
            Self::Tcp { host, port, tls } => {
                let stream = TcpStream::connect((host.as_str(), *port));
                let stream = tokio::time::timeout(CONNECT, stream).await;
                let stream = stream.unwrap_or_else(|_| Err(late())).map_err(failed)?;
                // Keys of a terminal are small and must not wait for each other.
                stream.set_nodelay(true).map_err(failed)?;
                if !tls {
                    return Ok(Box::new(stream));
                }
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| ClientError::BadHost(self.to_string()))?;
                let connector = TlsConnector::from(Arc::new(trust(authorities)?));
                let stream = tokio::time::timeout(CONNECT, connector.connect(name, stream));
                let stream = stream.await.unwrap_or_else(|_| Err(late()));
                Ok(Box::new(stream.map_err(failed)?))
            }
        }
    }
}

/// A TLS configuration that trusts the authorities of a file, or those of this host.
fn trust(authorities: Option<&Path>) -> Result<ClientConfig, ClientError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(file) => {
            let bad = |why: String| ClientError::Authorities {
                file: file.to_owned(),
                why,
            };
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|error| bad(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots
                    .add(certificate)
                    .map_err(|error| bad(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(bad("it has no certificate".into()));
            }
        }
        // A host without any is told by the handshake, which then trusts nobody.
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_and_printed() {
        for (text, printed, authority) in [
            ("unix:///run/a.sock", "unix:///run/a.sock", "localhost"),
            ("https://node:8443/", "https://node:8443", "node:8443"),
            ("https://node", "https://node:443", "node:443"),
            ("http://[::1]:80", "http://[::1]:80", "[::1]:80"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), printed);
            assert_eq!(endpoint.authority(), authority);
        }
    }

    #[test]
    fn only_this_host_and_tls_are_no_open_way() {
        for (text, open) in [
            ("http://node:7400", true),
            ("http://10.0.0.1:7400", true),
            ("http://[2001:db8::1]:7400", true),
            ("http://127.0.0.1.example.org", true),
            ("http://localhost:7400", false),
            ("http://127.8.0.1:7400", false),
            ("http://[::1]:7400", false),
            ("https://node:7400", false),
            ("unix:///run/a.sock", false),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.is_in_the_clear(), open, "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "node:8443",
            "unix://relative",
            "tcp://node:1",
            "https://",
            "https://node:99999",
            "https://node:",
            "https://me@node",
            "https://node/path",
        ] {
            assert!(
                matches!(text.parse::<Endpoint>(), Err(ClientError::BadHost(_))),
                "{text}"
            );
        }
    }
}
