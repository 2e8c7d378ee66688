//! A client of Firecracker's API: HTTP/1.1 over a Unix socket.
//!
//! A [`Client`] belongs to one Firecracker of one version. It keeps one connection, since
//! Firecracker serves ten at most and answers one request at a time, and makes a new one when that is
//! gone. Each call has a deadline.
//!
//! # Failure cases
//! [`ClientError`] tells them apart. Nothing is ever sent twice: after [`ClientError::Silent`],
//! [`ClientError::Broken`] and [`ClientError::Malformed`] nobody knows whether it was done, and whoever
//! called asks ([`super::api::InstanceInfo`]) or gives the VM up. The connection is given up with them,
//! and with a call that is dropped halfway, so that an answer which comes late is never taken for the
//! next one's.
//!
//! The peer is not trusted, since a guest may have taken it over: heads and bodies are bounded,
//! what it says is escaped and cut before anybody is shown it, and a peer that sends without end costs
//! no more than the deadline.

use super::api::{Answer, Call, Invalid, Method, Request};
use super::{Unsupported, Version};
use aleph_types::{Classify, ErrorClass};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// The longest head of an answer, in bytes. Firecracker's have some 200.
const MAX_HEAD: usize = 16 * 1024;

/// The longest body of an answer, in bytes. The longest that Firecracker sends are the MMDS's data
/// and the whole configuration, some 50 KiB each.
const MAX_ANSWER: usize = 1024 * 1024;

/// The longest message that is kept, in characters.
const MAX_MESSAGE: usize = 2048;

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It was not sent: it is wrong for this version.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It was not sent: this version does not have it.
    #[error(transparent)]
    Lacking(#[from] Unsupported),
    /// It was not sent: nobody listens.
    #[error("cannot connect to Firecracker at {}", socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Firecracker refused it.
    #[error("Firecracker refused {method} {path} ({status}): {fault_message}")]
    Refused {
        /// What was to be done.
        method: Method,
        /// To what.
        path: String,
        /// The status of the answer.
        status: u16,
        /// What it said, escaped and cut.
        fault_message: String,
    },
    /// There was no answer in time.
    #[error("Firecracker did not answer {method} {path} within {limit:?}")]
    Silent {
        /// What was to be done.
        method: Method,
        /// To what.
        path: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The connection broke before the answer was there, or what came is not HTTP.
    #[error("the connection to Firecracker broke at {method} {path}")]
    Broken {
        /// What was to be done.
        method: Method,
        /// To what.
        path: String,
        /// How it broke.
        source: hyper::Error,
    },
    /// There was an answer that is none of this API's.
    #[error("Firecracker answered {method} {path} with {status}, and {why}")]
    Malformed {
        /// What was to be done.
        method: Method,
        /// To what.
        path: String,
        /// The status of the answer.
        status: u16,
        /// What is wrong with it.
        why: String,
    },
}

impl ClientError {
    /// Whether Firecracker may have done it all the same.
    #[must_use]
    pub const fn may_have_acted(&self) -> bool {
        matches!(
            self,
            Self::Silent { .. } | Self::Broken { .. } | Self::Malformed { .. }
        )
    }
}

/// What to do about a call that did not succeed, where this is the cause of an error.
pub(crate) fn advice_of(error: &std::io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref::<ClientError>()?.advice()
}

impl Classify for ClientError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Invalid(invalid) => invalid.class(),
            Self::Lacking(lacking) => lacking.class(),
            Self::Refused { .. } => ErrorClass::Internal,
            Self::Connect { .. }
            | Self::Silent { .. }
            | Self::Broken { .. }
            | Self::Malformed { .. } => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Invalid(invalid) => invalid.code(),
            Self::Lacking(lacking) => lacking.code(),
            Self::Connect { .. } => "firecracker_gone",
            Self::Refused { .. } => "firecracker_refused",
            Self::Silent { .. } => "firecracker_silent",
            Self::Broken { .. } => "firecracker_broken",
            Self::Malformed { .. } => "firecracker_malformed",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Invalid(invalid) => invalid.advice(),
            Self::Lacking(lacking) => lacking.advice(),
            Self::Connect { .. } | Self::Broken { .. } => Some(
                "Start the VM again; where Firecracker ends each time, what it wrote says why, or try \
                 another version (aleph setup firecracker)."
                    .into(),
            ),
            Self::Silent { .. } => Some(
                "Look whether the host has processors and memory to spare, then start the VM again."
                    .into(),
            ),
            Self::Refused { .. } | Self::Malformed { .. } => Some(
                "See which versions of Firecracker are supported with aleph doctor, and install one \
                 with: aleph setup firecracker"
                    .into(),
            ),
        }
    }
}

/// A Firecracker's API.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    version: Version,
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl Client {
    /// For the Firecracker of that version that listens on that socket. It is connected to at the
    /// first call.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, version: Version) -> Self {
        Self {
            socket: socket.into(),
            version,
            connection: tokio::sync::Mutex::default(),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The version that calls are checked for.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Makes a change. The limit is for all of it, the wait for an earlier call of the same client
    /// too.
    ///
    /// # Errors
    /// [`ClientError`] of any kind but `Lacking`.
    pub async fn call(&self, call: &Call, limit: Duration) -> Result<(), ClientError> {
        let request = call.request(self.version)?;
        let (status, body) = self.exchange(&request, limit).await?;
        match status {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(refusal(&request, status, &body)),
        }
    }

    /// Asks for something, within the limit as [`Client::call`] has it.
    ///
    /// ```no_run
    /// # use aleph_executor::firecracker::{Client, ClientError, Version, api::InstanceInfo};
    /// # async fn ask(client: &Client) -> Result<(), ClientError> {
    /// let info: InstanceInfo = client.get(std::time::Duration::from_secs(1)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`] of any kind but `Invalid`.
    pub async fn get<T: Answer>(&self, limit: Duration) -> Result<T, ClientError> {
        if let Some(feature) = T::FEATURE {
            feature.require(self.version)?;
        }
        let request = Request {
            method: Method::Get,
            path: T::PATH.to_owned(),
            body: None,
        };
        let (status, body) = self.exchange(&request, limit).await?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map_err(|e| {
                let why = format!("its body is not what it should be: {e}");
                malformed(&request, status, &why)
            }),
            _ => Err(refusal(&request, status, &body)),
        }
    }

    async fn exchange(
        &self,
        request: &Request,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let exchange = async {
            let mut kept = self.connection.lock().await;
            // Taken, and put back only after a whole answer.
            let kept_one = match kept.take() {
                Some(connection) => connection.still_open().await,
                None => None,
            };
            let mut connection = match kept_one {
                Some(connection) => connection,
                None => Connection::open(&self.socket, request).await?,
            };
            let (status, body) = connection.exchange(request).await?;
            if is_in_order(status, &body) {
                *kept = Some(connection);
            }
            Ok((status, body))
        };
        let answer = tokio::time::timeout(limit, exchange).await;
        answer.unwrap_or_else(|_| {
            Err(ClientError::Silent {
                method: request.method,
                path: request.path.clone(),
                limit,
            })
        })
    }
}

/// One connection, with the task that moves its bytes.
#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    async fn open(socket: &Path, request: &Request) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|source| ClientError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| broken(request, source))?;
        // How it ends is told to whoever waits for an answer.
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, task })
    }

    /// Itself, where the peer has not closed it.
    async fn still_open(mut self) -> Option<Self> {
        self.sender.ready().await.is_ok().then_some(self)
    }

    async fn exchange(&mut self, request: &Request) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |source| broken(request, source);
        self.sender.ready().await.map_err(broken)?;
        let answer = self.sender.send_request(http(request));
        let answer = answer.await.map_err(broken)?;
        if answer.headers().contains_key("deprecation") {
            let Request { method, path, .. } = request;
            tracing::debug!("Firecracker calls something in {method} {path} deprecated");
        }
        let status = answer.status();
        Ok((status, whole(request, answer).await?))
    }
}

/// Reads all of a body, or too much of it.
async fn whole(request: &Request, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) => Err(match e.downcast::<hyper::Error>() {
            Ok(source) => broken(request, *source),
            Err(_) => malformed(
                request,
                status,
                &format!("its body has more than {MAX_ANSWER} bytes"),
            ),
        }),
    }
}

fn http(request: &Request) -> hyper::Request<Full<Bytes>> {
    let body = request.body.clone().unwrap_or_default();
    let mut http = hyper::Request::new(Full::new(body));
    *http.method_mut() = match request.method {
        Method::Get => hyper::Method::GET,
        Method::Put => hyper::Method::PUT,
        Method::Patch => hyper::Method::PATCH,
        Method::Delete => hyper::Method::DELETE,
    };
    // A path of a valid request always is one; another would ask for what it is not about.
    *http.uri_mut() = request.path.parse().unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    let headers = http.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(ACCEPT, json.clone());
    if request.body.is_some() {
        headers.insert(CONTENT_TYPE, json);
    }
    http
}

fn broken(request: &Request, source: hyper::Error) -> ClientError {
    ClientError::Broken {
        method: request.method,
        path: request.path.clone(),
        source,
    }
}

fn malformed(request: &Request, status: StatusCode, why: &str) -> ClientError {
    ClientError::Malformed {
        method: request.method,
        path: request.path.clone(),
        status: status.as_u16(),
        why: shown(why),
    }
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// Whether the connection can go on after an answer: not where the server could not read the request,
/// which it says in other words than a fault. What it takes for the next one then is not known.
fn is_in_order(status: StatusCode, body: &[u8]) -> bool {
    status.is_success() || serde_json::from_slice::<Fault>(body).is_ok()
}

/// What an answer means that is not the one of success.
fn refusal(request: &Request, status: StatusCode, body: &[u8]) -> ClientError {
    if !status.is_client_error() && !status.is_server_error() {
        return malformed(
            request,
            status,
            "that is a status that this API does not have there",
        );
    }
    // Errors of HTTP itself come as what looks like JSON, with line breaks in its text.
    let said = serde_json::from_slice(body).map_or_else(
        |_| String::from_utf8_lossy(body).into_owned(),
        |Fault { fault_message }| fault_message,
    );
    ClientError::Refused {
        method: request.method,
        path: request.path.clone(),
        status: status.as_u16(),
        fault_message: shown(&said),
    }
}

/// A foreign text as it can be shown.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (i, c) in text.trim().chars().enumerate() {
        if i == MAX_MESSAGE {
            shown.push('…');
            break;
        }
        match c {
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}
