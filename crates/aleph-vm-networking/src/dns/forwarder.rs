//! The sockets that guests ask.

use super::admission::Admission;
use super::datagram::{Arrival, receive, send, tell_destination};
use super::message::{LARGEST_QUERY, Received};
use super::upstream::{Resolvers, Transport, read_message, write_message};
use super::{Answer, Names, Upstreams};
use crate::pool;
use aleph_types::Ipv4Network;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// What a forwarder depends on.
#[derive(Debug, Clone)]
pub struct ForwarderConfig {
    /// Where its guests' addresses are from.
    pub pool: Ipv4Network,
    /// Whom it asks.
    pub upstreams: Upstreams,
    /// How much it takes on.
    pub limits: Limits,
}

/// How much a forwarder takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Queries of one guest that wait for an answer.
    pub queries: usize,
    /// Those of all guests. Each needs a file descriptor.
    pub all_queries: usize,
    /// TCP connections of one guest.
    pub connections: usize,
    /// Those of all guests.
    pub all_connections: usize,
    /// How long a connection may be without a whole query, and how long a guest has to take an
    /// answer.
    pub idle: Duration,
    /// How long one resolver has to answer.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queries: 32,
            all_queries: 1024,
            connections: 4,
            all_connections: 256,
            idle: Duration::from_secs(10),
            patience: Duration::from_secs(2),
        }
    }
}

/// Sockets that guests' questions come to once the rules lead them here.
pub struct Forwarder {
    udp: UdpSocket,
    tcp: TcpListener,
    port: u16,
    config: ForwarderConfig,
}

struct Service {
    pool: Ipv4Network,
    names: Arc<dyn Names>,
    resolvers: Resolvers,
    queries: Arc<Admission>,
    connections: Arc<Admission>,
    /// Places to tell the node of addresses, each of which takes a thread.
    telling: Semaphore,
    idle: Duration,
}

/// So many threads at most wait for the node to hear of addresses.
const TELLING: usize = 8;

/// How often another port is tried where the kernel's choice for UDP is in use for TCP.
const ATTEMPTS: usize = 64;

/// How long nothing is received where a socket fails, which it does when descriptors run out.
const BREATH: Duration = Duration::from_millis(100);

/// Datagrams that wait to be read, in bytes; the kernel grants what its own limit allows.
const BACKLOG: usize = 1 << 20;

impl Forwarder {
    /// Binds UDP and TCP to one port that the kernel picks, on all addresses of the network
    /// namespace of this thread. Nothing is answered before [`Forwarder::run`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(config: ForwarderConfig) -> io::Result<Self> {
        let (udp, tcp) = bind_both()?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        tell_destination(udp.as_fd())?;
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&udp, BACKLOG);
        Ok(Self {
            port: udp.local_addr()?.port(),
            udp,
            tcp,
            config,
        })
    }

    /// The port, of UDP and of TCP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers for as long as it is not dropped. Its threads must be of the network namespace
    /// that has the host's resolvers. `names` comes now, since the rules need the port before.
    ///
    /// # Errors
    /// Where the runtime cannot take the sockets.
    pub async fn run(self, names: Arc<dyn Names>) -> io::Result<Infallible> {
        let udp = tokio::net::UdpSocket::from_std(self.udp)?;
        let tcp = tokio::net::TcpListener::from_std(self.tcp)?;
        let ForwarderConfig {
            pool,
            upstreams,
            limits,
        } = self.config;
        let service = Arc::new(Service {
            pool,
            names,
            resolvers: Resolvers::new(upstreams, limits.patience),
            queries: Admission::new(limits.queries, limits.all_queries),
            connections: Admission::new(limits.connections, limits.all_connections),
            telling: Semaphore::new(TELLING),
            idle: limits.idle,
        });
        let mut both = JoinSet::new();
        both.spawn(datagrams(Arc::clone(&service), udp));
        both.spawn(connections(service, tcp));
        match both.join_next().await {
            Some(Ok(never)) => match never {},
            Some(Err(error)) => Err(io::Error::other(error)),
            None => Err(io::Error::other("nothing runs")),
        }
    }
}

fn bind_both() -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, udp.local_addr()?.port())) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

async fn datagrams(service: Arc<Service>, socket: tokio::net::UdpSocket) -> Infallible {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; LARGEST_QUERY];
    let mut asked = JoinSet::new();
    loop {
        let arrival = socket
            .async_io(Interest::READABLE, || receive(socket.as_fd(), &mut buffer))
            .await;
        while asked.try_join_next().is_some() {}
        let Arrival { from, to, length } = match arrival {
            Ok(arrival) => arrival,
            Err(error) => {
                tracing::debug!(%error, "no datagram");
                sleep(BREATH).await;
                continue;
            }
        };
        let guest = *from.ip();
        if pool::gateway_of(service.pool, guest) != Some(to) {
            continue;
        }
        let Some(place) = service.queries.enter(guest) else {
            continue;
        };
        let (service, socket) = (Arc::clone(&service), Arc::clone(&socket));
        let query = buffer[..length].to_vec();
        asked.spawn(async move {
            let answer = service.answer(guest, &query, Transport::Udp).await;
            drop(place);
            // One that cannot be sent at once is lost, as datagrams are: nobody waits for a guest.
            if let Some(answer) = answer
                && let Err(error) = send(socket.as_fd(), &answer, to, from)
            {
                tracing::debug!(%guest, %error, "an answer was lost");
            }
        });
    }
}

async fn connections(service: Arc<Service>, listener: tokio::net::TcpListener) -> Infallible {
    let mut open = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while open.try_join_next().is_some() {}
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "no connection");
                sleep(BREATH).await;
                continue;
            }
        };
        let Some(guest) = service.guest_of(&stream, from) else {
            continue;
        };
        let Some(place) = service.connections.enter(guest) else {
            continue;
        };
        let service = Arc::clone(&service);
        open.spawn(async move {
            if let Err(error) = service.converse(guest, stream).await {
                tracing::debug!(%guest, %error, "a connection ended");
            }
            drop(place);
        });
    }
}

impl Service {
    /// Whose connection it is, where it is a guest's to its own gateway.
    fn guest_of(&self, stream: &TcpStream, from: SocketAddr) -> Option<Ipv4Addr> {
        let (SocketAddr::V4(from), Ok(SocketAddr::V4(to))) = (from, stream.local_addr()) else {
            return None;
        };
        let gateway = pool::gateway_of(self.pool, *from.ip());
        (gateway == Some(*to.ip())).then_some(*from.ip())
    }

    /// One query after another, until the guest closes, is silent or sends what is none.
    async fn converse(&self, guest: Ipv4Addr, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let query = timeout(self.idle, read_message(&mut stream, LARGEST_QUERY)).await??;
            let too_many = || io::Error::other("too many queries");
            let place = self.queries.enter(guest).ok_or_else(too_many)?;
            let answer = self.answer(guest, &query, Transport::Tcp).await;
            drop(place);
            let Some(answer) = answer else {
                return Ok(());
            };
            timeout(self.idle, write_message(&mut stream, &answer)).await??;
        }
    }

    async fn answer(&self, guest: Ipv4Addr, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = match Received::read(bytes) {
            Received::Question(question) => question,
            Received::Refused(answer) => return Some(answer),
            Received::Nothing => return None,
        };
        // One that can be nobody's is asked for as the empty name: a guest may not be allowed to
        // ask elsewhere for anything.
        let name = question.name.as_deref().unwrap_or_default();
        let is_listed = match self.names.of(guest, name) {
            Answer::Addresses(addresses) => return Some(question.addresses(&addresses)),
            Answer::NoSuchName => return Some(question.no_such_name()),
            Answer::Refused => return Some(question.refusal()),
            Answer::Forward => false,
            Answer::ForwardListed => true,
        };
        let Some(reply) = self.resolvers.ask(&question, bytes, transport).await else {
            return Some(question.failure());
        };
        if is_listed
            && !reply.addresses.is_empty()
            && !self.tell(guest, name.to_owned(), reply.addresses).await
        {
            return Some(question.failure());
        }
        Some(reply.bytes)
    }

    /// Tells the node of addresses; says whether it has let the guest reach them.
    async fn tell(
        &self,
        guest: Ipv4Addr,
        name: String,
        addresses: Vec<(IpAddr, Duration)>,
    ) -> bool {
        let names = Arc::clone(&self.names);
        let place = self.telling.acquire().await;
        let told = tokio::task::spawn_blocking(move || {
            let told = names.resolved(guest, &name, &addresses);
            if let Err(error) = &told {
                let error: &dyn std::error::Error = error;
                tracing::warn!(%guest, name, error, "what a name leads to is not let through");
            }
            told.is_ok()
        });
        let told = told.await;
        drop(place);
        told.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkError;
    use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};

    /// Loopback as a pool: 127.0.0.2 is a guest, and 127.0.0.1 its gateway.
    const GUEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::LOCALHOST;

    struct OneName;

    impl Names for OneName {
        fn of(&self, _: Ipv4Addr, name: &str) -> Answer {
            match name {
                "own" => Answer::Addresses(vec![GUEST]),
                _ => Answer::Forward,
            }
        }

        fn resolved(
            &self,
            _: Ipv4Addr,
            _: &str,
            _: &[(IpAddr, Duration)],
        ) -> Result<(), NetworkError> {
            Ok(())
        }
    }

    fn forwarder(upstream: SocketAddr) -> Forwarder {
        let config = ForwarderConfig {
            pool: "127.0.0.0/8".parse().unwrap(),
            upstreams: Upstreams::Given(vec![upstream]),
            limits: Limits {
                queries: 2,
                patience: Duration::from_millis(200),
                ..Limits::default()
            },
        };
        Forwarder::bind(config).unwrap()
    }

    /// It ends with the process.
    fn run(forwarder: Forwarder) {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            let _ = runtime.block_on(forwarder.run(Arc::new(OneName)));
        });
    }

    fn client(at: Ipv4Addr) -> UdpSocket {
        let socket = UdpSocket::bind((at, 0)).unwrap();
        let limit = Duration::from_secs(5);
        socket.set_read_timeout(Some(limit)).unwrap();
        socket
    }

    fn asked(id: u16, name: &str) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn answer(socket: &UdpSocket) -> Message {
        let mut bytes = [0; 512];
        let n = socket.recv(&mut bytes).unwrap();
        Message::from_vec(&bytes[..n]).unwrap()
    }

    /// Even where no rule keeps others away.
    #[test]
    fn a_guest_is_answered_by_its_own_gateway_alone() {
        let forwarder = forwarder((Ipv4Addr::LOCALHOST, 1).into());
        let port = forwarder.port();
        run(forwarder);
        let (guest, stranger) = (client(GUEST), client(Ipv4Addr::new(127, 0, 0, 3)));
        stranger
            .send_to(&asked(1, "own."), (GATEWAY, port))
            .unwrap();
        let elsewhere = Ipv4Addr::new(127, 0, 0, 5);
        guest.send_to(&asked(2, "own."), (elsewhere, port)).unwrap();
        guest.send_to(&asked(3, "own."), (GATEWAY, port)).unwrap();
        assert_eq!(answer(&guest).metadata.id, 3);
        stranger.set_nonblocking(true).unwrap();
        assert!(stranger.recv(&mut [0; 512]).is_err());
    }

    #[test]
    fn a_guest_has_so_many_queries_at_a_time() {
        let silent = client(Ipv4Addr::LOCALHOST);
        let forwarder = forwarder(silent.local_addr().unwrap());
        let port = forwarder.port();
        let guest = client(GUEST);
        // All are there before the first is read.
        for id in 1..=5 {
            guest
                .send_to(&asked(id, "other."), (GATEWAY, port))
                .unwrap();
        }
        run(forwarder);
        for _ in 0..2 {
            let failed = answer(&guest);
            assert!(failed.metadata.id <= 2);
            assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
        }
        guest.send_to(&asked(6, "own."), (GATEWAY, port)).unwrap();
        assert_eq!(answer(&guest).metadata.id, 6);
    }
}
