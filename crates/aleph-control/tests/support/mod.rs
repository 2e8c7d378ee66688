//! A daemon of a test's own, and a client that speaks real HTTP with it.

#![allow(unreachable_pub, reason = "each test program is a crate of its own")]
#![allow(dead_code, reason = "no test program uses all of it")]

pub mod functions;
pub mod nats;

use aleph_control::config::{Config, TlsFiles};
use aleph_control::{Daemon, DaemonError};
use aleph_executor::accel::Accelerator;
use aleph_testkit::TestRoot;
use aleph_types::{Job, MiB, Problem};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// What only a hang exceeds.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A stream to a daemon, of any kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A daemon that runs in this process.
pub struct Server {
    pub socket: PathBuf,
    pub address: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

/// The configuration of a test's daemon.
pub fn config(root: &TestRoot) -> Config {
    let mut config = Config::default();
    config.node.root = Some(root.path().to_owned());
    config.executor.accelerator = Some(Accelerator::Tcg);
    config.limits.reserved_memory = MiB(0);
    // Networks are for tests with a namespace of their own.
    config.network.enabled = Some(false);
    config
}

impl Server {
    pub async fn start(config: &Config) -> Result<Self, DaemonError> {
        let daemon = Box::pin(Daemon::open(config)).await?;
        let (stop, stopped) = oneshot::channel::<()>();
        Ok(Self {
            socket: daemon.socket().to_owned(),
            address: daemon.address(),
            stop,
            running: tokio::spawn(daemon.run(async move {
                let _ = stopped.await;
            })),
        })
    }

    pub fn local(&self) -> Client {
        Client {
            place: Place::Socket(self.socket.clone()),
            token: None,
        }
    }

    /// A client on plain TCP.
    pub fn remote(&self, token: &str) -> Result<Client> {
        Ok(Client {
            place: Place::Address(self.address.context("no address")?, None),
            token: Some(token.to_owned()),
        })
    }

    /// Ends the daemon in order.
    pub async fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.running.await?;
        Ok(())
    }

    /// Removes all jobs, ends the daemon, and looks for what it left.
    pub async fn close(self, root: &TestRoot) -> Result<()> {
        let list: Value = self.local().get("/v1/jobs?limit=1000").await?.json()?;
        for job in list["jobs"].as_array().context("no list")? {
            let id = job["id"].as_str().context("no id")?;
            let path = format!("/v1/jobs/{id}?force=true");
            let gone = self.local().delete(&path).await?;
            ensure!(gone.status == StatusCode::NO_CONTENT, "{gone:?}");
        }
        self.stop().await?;
        until("the host to be clean", async || {
            Ok(root.residue()?.is_empty().then_some(()))
        })
        .await
        .with_context(|| format!("{:?}", root.residue()))
    }
}

#[derive(Clone)]
enum Place {
    Socket(PathBuf),
    Address(SocketAddr, Option<Arc<ClientConfig>>),
}

/// Somebody who asks.
#[derive(Clone)]
pub struct Client {
    place: Place,
    token: Option<String>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("{self:?}"))
    }

    /// The problem that it is.
    pub fn problem(&self) -> Result<Problem> {
        ensure!(!self.status.is_success(), "{self:?}");
        self.json()
    }
}

impl Client {
    /// A client on plain TCP without a token.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            place: Place::Address(address, None),
            token: None,
        }
    }

    /// A client on TLS that trusts this certificate alone.
    pub fn tls(
        address: SocketAddr,
        certificate: CertificateDer<'static>,
        token: &str,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            place: Place::Address(address, Some(Arc::new(config))),
            token: Some(token.to_owned()),
        })
    }

    pub async fn connect(&self) -> Result<Box<dyn Io>> {
        Ok(match &self.place {
            Place::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Place::Address(address, None) => Box::new(TcpStream::connect(address).await?),
            Place::Address(address, Some(config)) => {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost")?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, stream).await?)
            }
        })
    }

    pub fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost");
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends a request on a connection of its own.
    pub async fn begin(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let io = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(tokio::time::timeout(LIMIT, sender.send_request(request)).await??)
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let (parts, body) = self.begin(request).await?.into_parts();
        let body = tokio::time::timeout(LIMIT, body.collect()).await??;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request
                .header(CONTENT_TYPE, "application/json")
                .body(Full::from(body.to_string()))?,
            None => request.body(Full::default())?,
        };
        self.send(request).await
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Posts without a body.
    pub async fn act(&self, path: &str) -> Result<Answer> {
        self.call(Method::POST, path, None).await
    }

    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.call(Method::DELETE, path, None).await
    }

    /// Makes a job that runs a script, and starts it.
    pub async fn run(&self, name: &str, script: &str) -> Result<Job> {
        let spec = json!({"name": name, "image": "busybox", "command": ["sh", "-c", script]});
        let answer = self.post("/v1/jobs", spec).await?;
        ensure!(answer.status == StatusCode::CREATED, "{answer:?}");
        answer.json()
    }

    /// Makes a job and leaves it.
    pub async fn make(&self, name: &str) -> Result<Job> {
        let spec = json!({"name": name, "image": "busybox", "command": ["true"]});
        let answer = self.post("/v1/jobs?start=false", spec).await?;
        ensure!(answer.status == StatusCode::CREATED, "{answer:?}");
        answer.json()
    }

    pub async fn wait(&self, job: &str, state: &str) -> Result<Job> {
        let path = format!("/v1/jobs/{job}/wait?state={state}&timeout=100");
        let answer = self.get(&path).await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        answer.json()
    }

    /// A token for an account.
    pub async fn token(&self, account: &str) -> Result<String> {
        let request = json!({"account": account, "label": "test"});
        let made: Value = self.post("/v1/tokens", request).await?.json()?;
        Ok(made["token"].as_str().context("no token")?.to_owned())
    }
}

/// A certificate for `localhost` in a folder, and what clients have to trust.
pub fn certificate(dir: &Path) -> Result<(TlsFiles, CertificateDer<'static>)> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let files = TlsFiles {
        certificate: dir.join("cert.pem"),
        key: dir.join("key.pem"),
    };
    std::fs::write(&files.certificate, made.cert.pem())?;
    std::fs::write(&files.key, made.signing_key.serialize_pem())?;
    Ok((files, made.cert.der().clone()))
}

/// Waits for a condition, without holding up the daemon in this process.
pub async fn until<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = condition().await? {
            return Ok(found);
        }
        ensure!(began.elapsed() < LIMIT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
