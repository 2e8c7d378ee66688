//! What can go wrong between a client and a node.

use super::Endpoint;
use aleph_types::{Classify, ErrorClass, Problem};
use std::io;
use std::path::PathBuf;

/// Why a node could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// A text that names no node.
    #[error("{0:?} is no address of a node")]
    BadHost(String),
    /// A token that no header can carry.
    #[error("the token has characters that no token has")]
    BadToken,
    /// A token that everybody on the way could read.
    #[error("a token is not sent to {endpoint} in the clear")]
    InTheClear { endpoint: Endpoint },
    /// A file of authorities that cannot be used.
    #[error("cannot take certificate authorities from {}: {why}", file.display())]
    Authorities { file: PathBuf, why: String },
    /// TLS could not be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// Nobody listens there.
    #[error("no node listens at {endpoint}")]
    NoNode { endpoint: Endpoint },
    /// This user may not use the socket.
    #[error("this user may not use {endpoint}")]
    Closed { endpoint: Endpoint },
    /// The connection could not be made for another reason.
    #[error("cannot connect to {endpoint}")]
    Connect {
        endpoint: Endpoint,
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the node broke while {during}")]
    Broken {
        during: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The node refused.
    #[error(transparent)]
    Refused(#[from] Problem),
    /// What answered is no node, or one of another version.
    #[error("the node answered {what}")]
    Strange { what: String },
}

impl ClientError {
    pub(super) fn connecting(endpoint: &Endpoint, source: io::Error) -> Self {
        let endpoint = endpoint.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NoNode { endpoint },
            io::ErrorKind::PermissionDenied => Self::Closed { endpoint },
            _ => Self::Connect { endpoint, source },
        }
    }

    pub(super) fn broken(
        during: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Broken {
            during,
            source: source.into(),
        }
    }

    /// The stable code of a refusal.
    pub(crate) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused(problem) => Some(&problem.code),
            _ => None,
        }
    }
}

impl Classify for ClientError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::BadHost(_)
            | Self::BadToken
            | Self::InTheClear { .. }
            | Self::Authorities { .. } => ErrorClass::Invalid,
            Self::Closed { .. } => ErrorClass::Forbidden,
            Self::NoNode { .. } | Self::Connect { .. } | Self::Broken { .. } => {
                ErrorClass::Unavailable
            }
            Self::Refused(problem) => problem.class,
            Self::Tls(_) | Self::Strange { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::BadHost(_) => "bad_host",
            Self::BadToken => "bad_token",
            Self::InTheClear { .. } => "token_in_the_clear",
            Self::Authorities { .. } => "authorities",
            Self::Tls(_) => "tls",
            Self::NoNode { .. } => "no_node",
            Self::Closed { .. } => "closed",
            Self::Connect { .. } => "connect",
            Self::Broken { .. } => "broken",
            Self::Refused(_) => "refused",
            Self::Strange { .. } => "strange",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::BadHost(_) => "Write unix:///PATH, or https://HOST:PORT.".into(),
            Self::BadToken => "Look at --token, and at ALEPH_TOKEN.".into(),
            Self::InTheClear { .. } => {
                "Write https://, or forward a port: ssh -L 7400:localhost:7400 NODE".into()
            }
            Self::Authorities { .. } => "Give --cacert a file of certificates in PEM.".into(),
            Self::NoNode {
                endpoint: Endpoint::Unix(_),
            } => "Start it with: aleph up".into(),
            Self::NoNode { .. } | Self::Connect { .. } => {
                "Look whether the node runs there, and at --host.".into()
            }
            Self::Closed { .. } => "Be root, or a member of the group aleph.".into(),
            Self::Broken { .. } => "Look whether the node still runs: aleph version".into(),
            Self::Refused(problem) => return problem.advice.clone(),
            Self::Strange { .. } => {
                "Look at --host, and whether both have one version: aleph version".into()
            }
            Self::Tls(_) => return None,
        })
    }
}
