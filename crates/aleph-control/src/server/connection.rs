//! One client: how many there may be, and how each is spoken with.
//!
//! A client has a slot for as long as it is connected, sessions over WebSockets included. One
//! user or address gets at most half of them, so that nobody can shut the others out; addresses
//! of one IPv6 network count as one, because each host can take any of them. Who finds no slot
//! is told so and sent away; nothing waits.
//!
//! A client that is slow costs its slot and what one connection holds: a buffer of [`BUFFER`]
//! bytes in each direction and one piece of what it is sent. Head of a request and TLS have
//! deadlines of their own, and so has what a client reads that has shown no token yet
//! (`patience`).

use super::patience::{PATIENCE, Patient};
use super::problem::Refusal;
use crate::metrics::Metrics;
use crate::peer::Peer;
use aleph_types::ErrorClass;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Bytes that a connection holds of what it reads, and of what it writes. The head of a request
/// has to fit.
pub(crate) const BUFFER: usize = 64 * 1024;

/// How long the head of a request may take, and how long a connection may be idle.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// How many headers a request may have.
const MAX_HEADERS: usize = 64;

/// How many clients without a slot are told so at once.
const REFUSALS: usize = 64;
/// How long that may take each.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Whose connections are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    User(u32),
    /// An IPv4 address, or the first address of an IPv6 network (/64).
    Address(IpAddr),
}

impl Owner {
    fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Local(who) => Self::User(who.uid),
            Peer::Remote { address, .. } => Self::Address(match address.ip().to_canonical() {
                IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
                four => four,
            }),
        }
    }
}

/// The slots of one listener. Clones are the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Count>);

#[derive(Debug)]
struct Count {
    most: usize,
    taken: Mutex<HashMap<Owner, usize>>,
    metrics: Metrics,
}

/// A client's slot, given back with its last clone.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    held: Arc<Taken>,
}

impl Slot {
    /// Its client has shown who it is.
    pub(crate) fn know(&self) {
        self.held.known.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_known(&self) -> bool {
        self.held.known.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Taken {
    owner: Owner,
    count: Arc<Count>,
    known: AtomicBool,
}

impl Slots {
    pub(crate) fn new(most: usize, metrics: &Metrics) -> Self {
        Self(Arc::new(Count {
            most,
            taken: Mutex::default(),
            metrics: metrics.clone(),
        }))
    }

    /// A slot for a client, if there is one left for it.
    pub(crate) fn take(&self, peer: &Peer) -> Option<Slot> {
        let owner = Owner::of(peer);
        let count = &self.0;
        let mut taken = count.lock();
        let (all, own): (usize, usize) = (
            taken.values().sum(),
            taken.get(&owner).copied().unwrap_or(0),
        );
        // Root is no stranger who has to be kept at bay.
        let most = match owner {
            Owner::User(0) => count.most,
            _ => count.most.div_ceil(2),
        };
        if all >= count.most || own >= most {
            count.metrics.refused.inc();
            return None;
        }
        *taken.entry(owner).or_default() += 1;
        count.metrics.connections.inc();
        let count = Arc::clone(count);
        Some(Slot {
            held: Arc::new(Taken {
                owner,
                count,
                known: AtomicBool::new(false),
            }),
        })
    }
}

impl Count {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Owner, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.count.lock();
        if let Some(own) = taken.get_mut(&self.owner) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.owner);
            }
        }
        self.count.metrics.connections.dec();
    }
}

/// When connections end.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    /// No further requests.
    pub(crate) stopping: CancellationToken,
    /// At once.
    pub(crate) abort: CancellationToken,
}

/// Speaks HTTP with a client until one of both has enough.
pub(crate) async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    slot: Slot,
    router: Router,
    ending: Ending,
) {
    let io = Patient::new(io, slot.clone(), PATIENCE);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(slot.clone());
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = async {
        tokio::select! {
            done = connection.as_mut() => done,
            () = ending.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    tokio::select! {
        done = served => if let Err(error) = done {
            tracing::debug!(%error, "a connection broke");
        },
        () = ending.abort.cancelled() => {}
    }
}

/// Tells a client that there is no slot for it, once it has asked for something. Few are told at
/// once; the others see their connection closed.
pub(crate) async fn refuse(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    static TURNS: Semaphore = Semaphore::const_new(REFUSALS);
    let Ok(_turn) = TURNS.try_acquire() else {
        return;
    };
    let told = async {
        // A client may take an answer that comes before its question for nonsense.
        let mut asked = [0; 4096];
        let _ = io.read(&mut asked).await?;
        io.write_all(&no_slot()).await?;
        io.shutdown().await
    };
    let _ = timeout(REFUSAL_TIME, told).await;
}

/// The whole answer to a client for whom there is no slot.
fn no_slot() -> Vec<u8> {
    let (status, class) = (StatusCode::SERVICE_UNAVAILABLE, ErrorClass::Unavailable);
    let message = "too many clients are connected";
    let refusal = Refusal::new(status, class, "too_many_connections", message)
        .advise("Close connections, or try again.");
    let body = serde_json::to_string(&refusal.problem).unwrap_or_default();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Credentials;

    fn user(uid: u32) -> Peer {
        Peer::Local(Credentials {
            uid,
            groups: Vec::new(),
        })
    }

    #[test]
    fn nobody_takes_all_slots_but_root() {
        let slots = Slots::new(4, &Metrics::default());
        let first = slots.take(&user(7)).unwrap();
        let second = slots.take(&user(7)).unwrap();
        assert!(slots.take(&user(7)).is_none(), "half of them");
        let third = slots.take(&user(0)).unwrap();
        let _fourth = slots.take(&user(0)).unwrap();
        assert!(slots.take(&user(8)).is_none(), "all are taken");
        drop(third);
        assert!(slots.take(&user(8)).is_some());
        let copy = first.clone();
        drop(first);
        assert!(slots.take(&user(7)).is_none(), "a session holds its slot");
        drop((copy, second));
        assert!(slots.take(&user(7)).is_some());
        assert_eq!(slots.0.metrics.connections.get(), 1);
        assert_eq!(slots.0.metrics.refused.get(), 3);
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let remote = |text: &str| Peer::Remote {
            address: text.parse().unwrap(),
            tls: true,
        };
        let slots = Slots::new(4, &Metrics::default());
        let _first = slots.take(&remote("[2001:db8::1]:1")).unwrap();
        let _second = slots.take(&remote("[2001:db8::ffff:2]:1")).unwrap();
        assert!(slots.take(&remote("[2001:db8::3]:1")).is_none());
        let _third = slots.take(&remote("[2001:db8:0:1::3]:1")).unwrap();
        let four = Owner::of(&remote("[::ffff:192.0.2.1]:1"));
        assert_eq!(four, Owner::of(&remote("192.0.2.1:2")));
        assert_ne!(four, Owner::of(&remote("192.0.2.2:2")));
    }
}
