//! The daemon: opens a node, serves its API, and lets go of it in order.
//!
//! ```text
//! open: node (lock, journal, adoption, sweep) ─▶ accounts ─▶ sockets      READY=1
//! run:  clients, until a signal
//! stop: no more clients, streams end ─▶ requests under way, with a deadline
//!       ─▶ the node lets go of its guests, which run on ─▶ the socket goes
//! ```
//! A second signal ends the process at once. That is as safe as `kill -9`: what the daemon had
//! begun is in the journal, and its guests run on.

use crate::config::Config;
use crate::images::StoreImages;
use crate::lambda::{self, FunctionParts, FunctionsError};
use crate::listen::{Front, ListenError, LocalSocket, Tls, bind_tcp};
use crate::peer::{Operators, group_id};
use crate::server::connection::{Ending, Slots};
use crate::server::{Service, router};
use aleph_executor::functions::FunctionRuntime;
use aleph_executor::{Node, NodeError};
use aleph_types::{Classify, ErrorClass};
use rustix::fs::{Gid, Mode};
use sd_notify::NotifyState;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// The name of the socket in the node's run folder.
pub const SOCKET: &str = "aleph.sock";

/// How long connections may take to close once they were told to, at once.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A daemon that could not begin.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its folders cannot be made.
    #[error("cannot make the node's folders")]
    Folders(#[source] io::Error),
    /// Its node cannot be opened.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Its functions cannot be read.
    #[error(transparent)]
    Functions(#[from] FunctionsError),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It cannot hear signals.
    #[error("cannot hear signals")]
    Signals(#[source] io::Error),
}

impl Classify for DaemonError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Node(error) => error.class(),
            Self::Functions(error) => error.class(),
            Self::Listen(error) => error.class(),
            Self::Folders(_) | Self::Signals(_) => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Node(error) => error.code(),
            Self::Functions(error) => error.code(),
            Self::Listen(error) => error.code(),
            Self::Folders(_) => "folders",
            Self::Signals(_) => "signals",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Node(error) => error.advice(),
            Self::Functions(error) => error.advice(),
            Self::Listen(error) => error.advice(),
            Self::Folders(_) => {
                Some("Run as root, or name a folder of your own with --root DIR.".into())
            }
            Self::Signals(_) => None,
        }
    }
}

/// A daemon that listens and does not serve yet.
#[derive(Debug)]
pub struct Daemon {
    service: Service,
    socket: LocalSocket,
    tcp: Option<TcpListener>,
    tls: Option<Arc<Tls>>,
    /// Where clients of functions come in.
    functions: Option<TcpListener>,
    /// What runs functions, where it is this daemon's own.
    runtime: Option<FunctionRuntime>,
    connections: usize,
    drain: Duration,
}

impl Daemon {
    /// Opens the node and listens. From then on clients can connect; they are served by
    /// [`Daemon::run`].
    ///
    /// # Errors
    /// Where the node belongs to another daemon, or something that it needs cannot be had.
    pub async fn open(config: &Config) -> Result<Self, DaemonError> {
        let node_config = config.node_config().map_err(DaemonError::Folders)?;
        // What is cheap to find wrong is found before the node is touched.
        let tls = load_tls(config)?;
        let images = images(config, node_config.paths.state());
        let node = Box::pin(Node::open(node_config, Arc::clone(&images) as _)).await?;
        let runtime_config = config.functions.runtime_config();
        let (runtime, parts) = lambda::node::parts(&node, runtime_config);
        let mut daemon = Self::over(config, node, images, tls, Some(parts)).await?;
        daemon.runtime = Some(runtime);
        Ok(daemon)
    }

    /// The same over a node of the caller's, whose VMs and images may be of another kind. The
    /// API's routes for images work on the store of `config`.
    ///
    /// # Errors
    /// As [`Daemon::open`].
    pub async fn with_node(config: &Config, node: Node) -> Result<Self, DaemonError> {
        let paths = config.node_config().map_err(DaemonError::Folders)?.paths;
        let tls = load_tls(config)?;
        Self::over(config, node, images(config, paths.state()), tls, None).await
    }

    /// The same with what runs functions.
    ///
    /// # Errors
    /// As [`Daemon::open`].
    pub async fn with_functions(
        config: &Config,
        node: Node,
        functions: FunctionParts,
    ) -> Result<Self, DaemonError> {
        let paths = config.node_config().map_err(DaemonError::Folders)?.paths;
        let tls = load_tls(config)?;
        let images = images(config, paths.state());
        Self::over(config, node, images, tls, Some(functions)).await
    }

    async fn over(
        config: &Config,
        node: Node,
        images: Arc<StoreImages>,
        tls: Option<Arc<Tls>>,
        functions: Option<FunctionParts>,
    ) -> Result<Self, DaemonError> {
        let paths = config.node_config().map_err(DaemonError::Folders)?.paths;
        let group = group_id(&config.api.socket_group);
        if group.is_none() {
            let group = &config.api.socket_group;
            tracing::info!(
                group,
                "there is no such group: only root may use the socket"
            );
        }
        let operators = Operators {
            own: rustix::process::geteuid().as_raw(),
            group,
        };
        let opened = Self::listen(config, paths.run(), group).await;
        let (socket, tcp) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                node.shutdown().await;
                return Err(error.into());
            }
        };
        let backup_key = config.volumes.backup_key.clone();
        let service = Service::new(node, images, operators, backup_key).await?;
        let functions = match functions {
            None => {
                if config.functions.listen.is_some() {
                    tracing::warn!("this daemon runs no functions: nobody listens for them");
                }
                None
            }
            Some(parts) => match functions_of(config, &service, paths.state(), parts).await {
                Ok(listener) => listener,
                Err(error) => {
                    service.node.shutdown().await;
                    return Err(error);
                }
            },
        };
        Ok(Self {
            service,
            socket,
            tcp,
            tls,
            functions,
            runtime: None,
            connections: config.api.max_connections,
            drain: config.api.drain,
        })
    }

    async fn listen(
        config: &Config,
        run: &Path,
        group: Option<u32>,
    ) -> Result<(LocalSocket, Option<TcpListener>), ListenError> {
        let path = match &config.api.socket {
            Some(path) => path.clone(),
            None => {
                let open = open_folder(run, group);
                let path = run.join(SOCKET);
                open.map_err(|source| ListenError::Socket {
                    path: path.clone(),
                    source,
                })?;
                path
            }
        };
        let socket = LocalSocket::bind(&path, group)?;
        let tcp = match config.api.listen {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        Ok((socket, tcp))
    }

    /// What the API works on.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The path of the Unix socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// The TCP address, where it has one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// The TCP address for clients of functions, where it has one.
    #[must_use]
    pub fn functions_address(&self) -> Option<SocketAddr> {
        self.functions.as_ref()?.local_addr().ok()
    }

    /// The certificate, to be read again.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Serves clients until `stop`, then ends in order. Guests run on.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let stopping = self.service.stopping.clone();
        let abort = CancellationToken::new();
        let tracker = TaskTracker::new();
        let over = |router| Front {
            router,
            slots: Slots::new(self.connections, &self.service.metrics),
            ending: Ending {
                stopping: stopping.clone(),
                abort: abort.clone(),
            },
            tracker: tracker.clone(),
        };
        let node = || over(router(&self.service));
        let local = node().local(&self.socket);
        let functions = async {
            match (self.functions, self.service.functions()) {
                (Some(listener), Some(functions)) => {
                    over(lambda::guarded(functions))
                        .remote(listener, None)
                        .await;
                }
                _ => stopping.cancelled().await,
            }
        };
        let remote = async {
            match self.tcp {
                Some(listener) => node().remote(listener, self.tls.clone()).await,
                None => stopping.cancelled().await,
            }
        };
        let stop = async {
            stop.await;
            stopping.cancel();
        };
        tokio::join!(local, remote, functions, stop);
        let work = &self.service.work;
        tracker.close();
        work.close();
        let ended = timeout(self.drain, async {
            tracker.wait().await;
            work.wait().await;
        });
        if ended.await.is_err() {
            tracing::warn!("requests under way are broken off");
            abort.cancel();
            let _ = timeout(CLOSE_TIME, tracker.wait()).await;
        }
        if let Some(runtime) = &self.runtime {
            runtime.shutdown().await;
        }
        self.service.node.shutdown().await;
    }
}

/// Opens the node's functions, and listens for their clients where the configuration says so.
async fn functions_of(
    config: &Config,
    service: &Service,
    state: &Path,
    parts: FunctionParts,
) -> Result<Option<TcpListener>, DaemonError> {
    let section = &config.functions;
    service
        .open_functions(state, parts, section.functions_config())
        .await?;
    let Some(address) = section.listen else {
        return Ok(None);
    };
    let listener = bind_tcp(address).await?;
    if let (Some(functions), Ok(address)) = (service.functions(), listener.local_addr()) {
        functions.listen_on(address);
    }
    Ok(Some(listener))
}

/// Members of the group have to get through the run folder to its socket, and nowhere else: the
/// folders in it are closed.
fn open_folder(run: &Path, group: Option<u32>) -> io::Result<()> {
    let Some(group) = group.filter(|group| *group != 0) else {
        return Ok(());
    };
    rustix::fs::chown(run, None, Some(Gid::from_raw(group)))?;
    rustix::fs::chmod(run, Mode::from_raw_mode(0o710))?;
    Ok(())
}

fn load_tls(config: &Config) -> Result<Option<Arc<Tls>>, ListenError> {
    let files = config.api.tls.clone();
    files
        .map(|files| Tls::load(files).map(Arc::new))
        .transpose()
}

fn images(config: &Config, state: &Path) -> Arc<StoreImages> {
    Arc::new(StoreImages::new(state, &config.images))
}

/// Runs a node until SIGTERM or SIGINT, and tells systemd how it is (sd_notify(3)). SIGHUP reads
/// the certificate again. A second SIGTERM or SIGINT ends the process at once.
///
/// # Errors
/// Where it could not begin.
pub async fn up(config: Config) -> Result<(), DaemonError> {
    // Before anything that takes time, so that no signal meets its default.
    let mut signals = Signals::new().map_err(DaemonError::Signals)?;
    let daemon = Box::pin(Daemon::open(&config)).await?;
    let tls = daemon.tls();
    tracing::info!(
        socket = %daemon.socket().display(),
        address = daemon.address().map(tracing::field::display),
        "the node is up"
    );
    notify(&[NotifyState::Ready]);
    let _watchdog = watchdog(daemon.service().clone());
    let stop = async {
        signals.end(tls.as_deref()).await;
        notify(&[NotifyState::Stopping]);
        tracing::info!("the node stops; its guests run on");
        tokio::spawn(async move {
            signals.end(None).await;
            tracing::warn!("ended at once");
            std::process::exit(1);
        });
    };
    daemon.run(stop).await;
    Ok(())
}

struct Signals {
    term: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until the process is asked to end, and reads the certificate again where it is
    /// asked for that.
    async fn end(&mut self, tls: Option<&Tls>) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => match tls.map(Tls::reload) {
                    Some(Ok(())) => tracing::info!("the certificate was read again"),
                    Some(Err(error)) => tracing::error!(%error, "the old certificate stays"),
                    None => {}
                },
            }
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

/// Tells systemd's watchdog, where there is one, that the node answers.
fn watchdog(service: Service) -> Option<AbortOnDropHandle<()>> {
    let period = sd_notify::watchdog_enabled()?;
    let mut ticks = interval((period / 3).max(Duration::from_millis(100)));
    Some(AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            ticks.tick().await;
            match service.node.info() {
                Ok(_) => notify(&[NotifyState::Watchdog]),
                Err(error) => tracing::warn!(%error, "the node does not answer"),
            }
        }
    })))
}
