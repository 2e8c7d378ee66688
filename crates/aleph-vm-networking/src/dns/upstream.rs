//! The host's resolvers.

use super::message::{Question, Reply};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Which resolvers are asked, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// These.
    Given(Vec<SocketAddr>),
    /// Those of a file as `/etc/resolv.conf`, which is read again when it has changed.
    File(PathBuf),
}

/// The resolvers that a `resolv.conf` names, three at most; the host itself where it names none
/// (resolv.conf(5)).
#[must_use]
pub fn resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        let address: IpAddr = words.next().filter(|_| is_server)?.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    });
    let servers: Vec<_> = servers.take(3).collect();
    if servers.is_empty() {
        return vec![(Ipv4Addr::LOCALHOST, 53).into()];
    }
    servers
}

/// How a question goes on: as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The resolvers, asked one after another.
#[derive(Debug)]
pub(super) struct Resolvers {
    upstreams: Upstreams,
    patience: Duration,
    read: Mutex<Option<(Stamp, Arc<[SocketAddr]>)>>,
}

/// What tells one version of a file from another: its file, its time and its length.
type Stamp = (u64, i64, i64, u64);

const ROUNDS: usize = 2;

/// What is read of a resolver's datagram. Nobody sends more: it would not arrive in one piece.
const LARGEST_REPLY: usize = 4096;

impl Resolvers {
    pub(super) fn new(upstreams: Upstreams, patience: Duration) -> Self {
        Self {
            upstreams,
            patience,
            read: Mutex::default(),
        }
    }

    /// Asks until one has an answer. `None` where none answers; the last refusal where all refuse.
    pub(super) async fn ask(
        &self,
        question: &Question,
        bytes: &[u8],
        transport: Transport,
    ) -> Option<Reply> {
        let resolvers = self.current();
        let mut refusal = None;
        for _ in 0..ROUNDS {
            for at in resolvers.iter() {
                let exchange = async {
                    match transport {
                        Transport::Udp => by_udp(*at, question, bytes).await,
                        Transport::Tcp => by_tcp(*at, question, bytes).await,
                    }
                };
                match timeout(self.patience, exchange).await {
                    Ok(Ok(reply)) if reply.is_failure => refusal = Some(reply),
                    Ok(Ok(reply)) => return Some(reply),
                    Ok(Err(error)) => tracing::debug!(%at, %error, "a resolver failed"),
                    Err(_) => tracing::debug!(%at, "a resolver is silent"),
                }
            }
            if refusal.is_some() {
                break;
            }
        }
        refusal
    }

    /// Those that are named now. Where a file cannot be read, those that it named last.
    fn current(&self) -> Arc<[SocketAddr]> {
        let path = match &self.upstreams {
            Upstreams::Given(given) => return given.as_slice().into(),
            Upstreams::File(path) => path,
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(path);
        if let Some((before, servers)) = &*read
            && now.as_ref().map_or(true, |now| now == before)
        {
            return Arc::clone(servers);
        }
        let text = now.and_then(|now| Ok((now, fs::read_to_string(path)?)));
        match (text, &*read) {
            (Ok((now, text)), _) => {
                let servers: Arc<[SocketAddr]> = resolv_conf(&text).into();
                *read = Some((now, Arc::clone(&servers)));
                servers
            }
            (Err(_), Some((_, servers))) => Arc::clone(servers),
            (Err(error), None) => {
                tracing::debug!(path = %path.display(), %error, "no list of resolvers");
                resolv_conf("").into()
            }
        }
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let found = fs::metadata(path)?;
    Ok((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
}

/// A socket of its own for each question: its port is one more thing to guess for whoever would
/// forge the answer, and being connected it hears the resolver alone.
async fn by_udp(at: SocketAddr, question: &Question, bytes: &[u8]) -> io::Result<Reply> {
    let any: IpAddr = match at {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(at).await?;
    let (id, query) = with_new_id(bytes)?;
    socket.send(&query).await?;
    let mut buffer = vec![0; LARGEST_REPLY];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = question.reply(id, buffer[..length].to_vec()) {
            return Ok(reply);
        }
    }
}

async fn by_tcp(at: SocketAddr, question: &Question, bytes: &[u8]) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(at).await?;
    let (id, query) = with_new_id(bytes)?;
    write_message(&mut stream, &query).await?;
    let answer = read_message(&mut stream, usize::from(u16::MAX)).await?;
    let no_reply = || io::Error::other("what it sent is no answer to the question");
    question.reply(id, answer).ok_or_else(no_reply)
}

/// A message with its length before it (RFC 1035, 4.2.2), in one write.
pub(super) async fn write_message(to: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes(), bytes].concat()).await
}

pub(super) async fn read_message(from: &mut TcpStream, most: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(from.read_u16().await?);
    if length > most {
        return Err(io::Error::other("a message is too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn with_new_id(bytes: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id[..], rustix::rand::GetRandomFlags::empty())?;
    let mut query = bytes.to_vec();
    query
        .get_mut(..2)
        .ok_or(io::ErrorKind::InvalidData)?
        .copy_from_slice(&id);
    Ok((u16::from_be_bytes(id), query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_resolvers() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 127.0.0.53\n\
                    nameserver\t2001:db8::1\nnameserver nonsense\nnameservers 1.1.1.1\n\
                    nameserver 192.0.2.1 # third\nnameserver 192.0.2.2\n";
        let servers: Vec<String> = resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(
            servers,
            ["127.0.0.53:53", "[2001:db8::1]:53", "192.0.2.1:53"]
        );
        assert_eq!(resolv_conf(""), [(Ipv4Addr::LOCALHOST, 53).into()]);
    }

    #[test]
    fn a_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let resolvers = Resolvers::new(Upstreams::File(path.clone()), Duration::ZERO);
        let now = || resolvers.current()[0].ip().to_string();
        assert_eq!(now(), "127.0.0.1");
        fs::write(&path, "nameserver 192.0.2.1").unwrap();
        assert_eq!(now(), "192.0.2.1");
        let other = folder.path().join("other");
        fs::write(&other, "nameserver 192.0.2.2").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(now(), "192.0.2.2");
        fs::remove_file(&path).unwrap();
        assert_eq!(now(), "192.0.2.2");
    }
}
