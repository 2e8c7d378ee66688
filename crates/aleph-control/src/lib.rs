//! The node as a service: its configuration, its accounts, its HTTP API and its daemon.
//!
//! The crate owns who may ask a node what, and how: sockets, TLS, tokens, HTTP, and the forms of
//! questions and answers. What is done is done by `aleph-executor`, and what is kept is kept in
//! its journal; images are `aleph-image`'s.
//!
//! | entry point | what it does |
//! | --- | --- |
//! | [`Config::check`] | reads `aleph.toml`, or tells all that is wrong with it |
//! | [`up`] | runs a node until a signal |
//! | [`Daemon`] | the same, in parts: for tests and programs of other kinds |
//! | [`router`](server::router) | the API alone, over a [`Service`](server::Service) |
//! | [`Daemon::with_functions`], [`lambda`] | the same with functions, as AWS Lambda's clients know them |
//! | [`openapi::document`] | the document that describes it |
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | a client goes away | what it asked for ends as if it had stayed; its streams end |
//! | a client is slow or silent | it has one slot and bounded buffers; heads, bodies and TLS have deadlines |
//! | too many clients | the next is told so; one user or address gets half of the slots at most |
//! | a wrong request | a [`Problem`](aleph_types::Problem), whatever is wrong with it |
//! | somebody else's job | it is not found |
//! | SIGTERM | no more clients; requests under way have a deadline; guests run on |
//! | a second SIGTERM, or SIGKILL | at once; the next daemon adopts the guests |
//!
//! # Invariants
//! - No handler runs before it is known who asks, but those for everybody (`/healthz`,
//!   `/readyz`, `/openapi.json`).
//! - A secret is never written to disk or to a log.
//! - Side effects are in no future that a client can drop.

pub mod accounts;
mod begun_restores;
pub mod config;
pub mod daemon;
mod images;
pub mod lambda;
pub mod listen;
mod metrics;
pub mod openapi;
pub mod peer;
mod routes;
pub mod server;

pub use config::{Config, ConfigError, ConfigProblem};
pub use daemon::{Daemon, DaemonError, SOCKET, up};
pub use images::{ImagesError, StoreImages};
pub use metrics::Metrics;
pub use routes::{
    ImageConfig, ImageInfo, NewToken, PruneReport, PruneRequest, PullLine, PullRequest, TokenInfo,
    TokenRequest,
};
