//! A client of a node's HTTP API: one connection for each request, over a Unix socket or TCP.
//!
//! | file | what it is |
//! | --- | --- |
//! | `endpoint` | where a node listens, and how to reach it |
//! | `error` | what can go wrong, with advice |
//! | `request` | one request and its answer: JSON, streams, upgrades |
//! | `jobs`, `snapshots`, `volumes`, `images`, `functions`, `node` | the API's routes with their types |
//! | `path` | job and image references as parts of a path, and queries |
//! | `lines` | answers of one JSON value for each line, and server-sent events |
//! | `frames` | the raw form of logs |
//! | `channel` | attach and exec: a command's streams over a WebSocket |
//!
//! Failure cases: nobody listens ([`ClientError::NoNode`]), the socket is closed to this user,
//! the connection breaks, the node refuses ([`ClientError::Refused`] with its own words), or
//! what answers is no node ([`ClientError::Strange`]). Nothing is retried.

mod channel;
mod endpoint;
mod error;
mod frames;
mod functions;
mod images;
mod jobs;
mod lines;
mod node;
mod path;
mod request;
mod snapshots;
mod sources;
mod volumes;

pub(crate) use channel::{Channel, ChannelEvent, ChannelInput, ExecStart};
pub(crate) use endpoint::{Access, Endpoint};
pub(crate) use error::ClientError;
pub(crate) use frames::Frames;
pub(crate) use functions::{Invoke, Invoked};
pub(crate) use images::{ImageInfo, PullLine};
pub(crate) use jobs::{EventQuery, JobQuery, LogsQuery, PathKind, PathStat};
pub(crate) use lines::{Lines, ServerSent};
pub(crate) use node::{NewToken, Prune, Token};
pub(crate) use request::Answer;

/// A node that is reached by its API.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    endpoint: Endpoint,
    access: Access,
}

impl Client {
    /// A client of the node that listens there. Nothing is connected yet.
    pub(crate) fn new(endpoint: Endpoint, access: Access) -> Self {
        Self { endpoint, access }
    }

    /// Looks whether somebody listens.
    pub(crate) async fn reach(&self) -> Result<(), ClientError> {
        let authorities = self.access.authorities.as_deref();
        self.endpoint.connect(authorities).await.map(drop)
    }
}
