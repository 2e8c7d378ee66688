//! Where clients come in: the Unix socket, and TCP.
//!
//! The socket appears in its place by a rename, with its owner, group and mode already right:
//! there is no moment in which somebody else could connect. One that a daemon left behind when
//! it was killed is replaced; one that answers, and anything that is no socket, never is.

use crate::config::TlsFiles;
use crate::peer::{Credentials, Peer};
use crate::server::connection::{Ending, Slots, refuse, serve};
use aleph_types::{Classify, ErrorClass};
use axum::Router;
use rustix::fs::{Gid, Mode};
use rustix::net::sockopt;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// How long the beginning of TLS may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long nothing is accepted after the host had no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// When a client on TCP that says nothing is looked for.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A place to listen at that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers on the socket.
    #[error("another daemon listens on {}", .0.display())]
    Taken(PathBuf),
    /// Something else is where the socket should be.
    #[error("{} is there and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("cannot use {} for TLS: {why}", path.display())]
    Tls {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Classify for ListenError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Taken(_) | Self::NoSocket(_) => ErrorClass::Conflict,
            Self::Socket { .. } | Self::Address { .. } => ErrorClass::Unavailable,
            Self::Tls { .. } => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Taken(_) => "socket_taken",
            Self::NoSocket(_) => "no_socket",
            Self::Socket { .. } => "socket",
            Self::Address { .. } => "address",
            Self::Tls { .. } => "tls",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Taken(_) => "Stop that daemon, or name another socket in [api].".into(),
            Self::NoSocket(path) => format!("Move {} away.", path.display()),
            Self::Socket { .. } => "Run as root, or name a socket of your own in [api].".into(),
            Self::Address { .. } => "Choose another address for listen in [api].".into(),
            Self::Tls { .. } => "Mend tls_cert and tls_key in [api].".into(),
        })
    }
}

/// The Unix socket. It goes when this is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number, so that nobody else's is removed.
    node: (u64, u64),
}

impl LocalSocket {
    /// Listens on `path`, for its owner and for `group`.
    ///
    /// # Errors
    /// Where somebody listens there, or it cannot be made.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<Self, ListenError> {
        let fail = |source| ListenError::Socket {
            path: path.to_owned(),
            source,
        };
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(ListenError::NoSocket(path.to_owned()));
            }
            // A full queue answers too, with `WouldBlock`.
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => return Err(ListenError::Taken(path.to_owned())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let made = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&made);
        let listener = UnixListener::bind(&made).map_err(fail)?;
        let placed = place(&made, path, group);
        if placed.is_err() {
            let _ = fs::remove_file(&made);
        }
        Ok(Self {
            listener,
            path: path.to_owned(),
            node: placed.map_err(fail)?,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Gives a socket its group and mode, and then its name.
fn place(made: &Path, path: &Path, group: Option<u32>) -> io::Result<(u64, u64)> {
    if let Some(group) = group {
        rustix::fs::chown(made, None, Some(Gid::from_raw(group)))?;
    }
    rustix::fs::chmod(made, Mode::from_raw_mode(0o660))?;
    let there = fs::symlink_metadata(made)?;
    fs::rename(made, path)?;
    Ok((there.dev(), there.ino()))
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let there = fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == self.node) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Certificate and key, which can be read again while they are in use.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// Where they cannot be read, or do not belong together.
    pub fn load(files: TlsFiles) -> Result<Self, ListenError> {
        let config = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, config })
    }

    /// Reads both files again, for connections from now on.
    ///
    /// # Errors
    /// As [`Tls::load`]; then what was read before stays.
    pub fn reload(&self) -> Result<(), ListenError> {
        let new = Arc::new(read(&self.files)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&config))
    }
}

fn read(files: &TlsFiles) -> Result<ServerConfig, ListenError> {
    let wrong = |path: &Path, why: String| ListenError::Tls {
        path: path.to_owned(),
        why,
    };
    let (certificate, key) = (files.certificate.as_path(), files.key.as_path());
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "it has no certificate".into()));
    }
    let secret =
        PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, secret)
        })
        .map_err(|error| wrong(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What a listener needs to serve clients.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    pub(crate) router: Router,
    pub(crate) slots: Slots,
    pub(crate) ending: Ending,
    pub(crate) tracker: TaskTracker,
}

impl Front {
    /// Serves clients of the Unix socket until the node stops.
    pub(crate) async fn local(self, socket: &LocalSocket) {
        while let Some(accepted) = self.next(socket.listener.accept()).await {
            if let Some((stream, _)) = accepted {
                self.welcome_local(stream);
            }
        }
    }

    fn welcome_local(&self, stream: UnixStream) {
        let Ok(who) = Credentials::of(stream.as_fd()) else {
            return;
        };
        let peer = Peer::Local(who);
        let Some(slot) = self.slots.take(&peer) else {
            self.tracker.spawn(refuse(stream));
            return;
        };
        let Self { router, ending, .. } = self.clone();
        self.tracker
            .spawn(Box::pin(serve(stream, peer, slot, router, ending)));
    }

    /// Serves clients on TCP until the node stops.
    pub(crate) async fn remote(self, listener: TcpListener, tls: Option<Arc<Tls>>) {
        while let Some(accepted) = self.next(listener.accept()).await {
            if let Some((stream, address)) = accepted {
                self.welcome_remote(stream, address, tls.as_deref());
            }
        }
    }

    fn welcome_remote(&self, stream: TcpStream, address: SocketAddr, tls: Option<&Tls>) {
        let peer = Peer::Remote {
            address,
            tls: tls.is_some(),
        };
        let Some(slot) = self.slots.take(&peer) else {
            if tls.is_none() {
                self.tracker.spawn(refuse(stream));
            }
            return;
        };
        // A host that vanished is noticed; that these fail is no reason not to serve.
        let _ = stream.set_nodelay(true);
        let _ = sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE);
        let _ = sockopt::set_tcp_keepintvl(&stream, KEEP_ALIVE);
        let _ = sockopt::set_socket_keepalive(&stream, true);
        let Self { router, ending, .. } = self.clone();
        let Some(tls) = tls else {
            self.tracker
                .spawn(Box::pin(serve(stream, peer, slot, router, ending)));
            return;
        };
        let acceptor = tls.acceptor();
        self.tracker.spawn(Box::pin(async move {
            let shaken = tokio::select! {
                shaken = timeout(HANDSHAKE_TIME, acceptor.accept(stream)) => shaken,
                () = ending.stopping.cancelled() => return,
            };
            match shaken {
                Ok(Ok(stream)) => serve(stream, peer, slot, router, ending).await,
                Ok(Err(error)) => tracing::debug!(%error, %address, "TLS did not begin"),
                Err(_) => tracing::debug!(%address, "TLS did not begin in time"),
            }
        }));
    }

    /// The next client: `None` once the node stops, `Some(None)` where there was none.
    async fn next<T>(&self, accept: impl Future<Output = io::Result<T>>) -> Option<Option<T>> {
        tokio::select! {
            accepted = accept => match accepted {
                Ok(accepted) => Some(Some(accepted)),
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    sleep(PAUSE).await;
                    Some(None)
                }
            },
            () = self.ending.stopping.cancelled() => None,
        }
    }
}

/// Listens on a TCP address.
///
/// # Errors
/// Where it cannot be had.
pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Address { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_one_that_answers_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aleph.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = LocalSocket::bind(&path, Some(rustix::process::getegid().as_raw())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        let second = LocalSocket::bind(&path, None);
        assert!(matches!(second, Err(ListenError::Taken(_))), "{second:?}");
        drop(socket);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(&path, "precious").unwrap();
        let third = LocalSocket::bind(&path, None);
        assert!(matches!(third, Err(ListenError::NoSocket(_))), "{third:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn somebody_elses_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aleph.sock");
        let socket = LocalSocket::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn tls_needs_both_files_to_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let files = TlsFiles {
            certificate: dir.path().join("cert.pem"),
            key: dir.path().join("key.pem"),
        };
        assert!(Tls::load(files.clone()).is_err(), "they are not there");
        fs::write(&files.certificate, pair.cert.pem()).unwrap();
        fs::write(&files.key, pair.signing_key.serialize_pem()).unwrap();
        let tls = Tls::load(files.clone()).unwrap();
        fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        assert!(tls.reload().is_err(), "they do not belong together");
        fs::write(&files.certificate, "nothing").unwrap();
        assert!(Tls::load(files).is_err(), "no certificate");
    }
}
