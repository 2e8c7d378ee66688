//! Connections to the vsock ports of a guest whose VMM has the other end as a Unix socket, as
//! Firecracker does (its `docs/vsock.md`).
//!
//! ```text
//! host                             VMM
//!   connect, "CONNECT 1024\n" ───▶  asks the guest for a connection to its port 1024
//!           "OK 1073741824\n" ◀───  there is one; the number is the host's own port
//!                    closes  ◀───  nobody listens there
//! ```
//! From the end of that line on the bytes are the guest's, so not one more is read here.
//!
//! A guest that goes on from a snapshot learns only as it runs that its connections are gone. Where
//! the VMM does not wait for that, as Firecracker before 1.16 does not, it may drop one that it has
//! just taken: whoever reaches such a guest begins again where the connection closes before the guest
//! has said a word.
//!
//! Connections that a guest begins go the other way, to whoever listens beside that socket, at its name
//! with `_PORT` behind it ([`Vmm::listen`](crate::hypervisor::Vmm::listen)). Nobody is asked or told
//! anything first: the first byte is the guest's.
//!
//! | failure | what it means | what may come of it |
//! | --- | --- | --- |
//! | [`VsockError::Connect`] | there is no such socket, or no VMM listens on it | nothing |
//! | [`VsockError::Refused`] | nobody in the guest listens on the port | [`reach`] tries again: a guest that boots comes to it |
//! | [`VsockError::Silent`] | the VMM or its guest stands still, or is not up to it yet | nothing: the time is over |
//! | [`VsockError::Answer`] | what answers is no such VMM | nothing |
//!
//! The answer is the VMM's, and a VMM that its guest broke into is as hostile as that: 14 bytes are
//! read of it at most, and it has a time to come in.

use crate::console::visible;
use aleph_types::{Classify, ErrorClass};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

/// How long the first attempt may take to be answered, and any.
const FIRST: Duration = Duration::from_secs(1);
const EACH: Duration = Duration::from_secs(8);

/// How long to wait before a port is tried again that nobody listened on: short beside the boot of a
/// guest, long beside what an attempt costs.
const AGAIN: Duration = Duration::from_millis(5);

/// The longest answer: `OK ` and the digits of a port, with the end of the line.
const MAX_ANSWER: usize = "OK 4294967295\n".len();

/// Why there is no connection to a port of a guest.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The VMM's socket cannot be used.
    #[error("cannot use the VMM's vsock socket")]
    Connect(#[source] io::Error),
    /// The VMM has closed the connection without an answer.
    #[error("nobody in the guest listens on vsock port {port}")]
    Refused {
        /// The port.
        port: u32,
    },
    /// No answer in time.
    #[error("the VMM did not answer for vsock port {port} in time")]
    Silent {
        /// The port.
        port: u32,
    },
    /// Something that is no answer.
    #[error("the VMM answered for vsock port {port} with \"{said}\"")]
    Answer {
        /// The port.
        port: u32,
        /// What it said, as far as it was read.
        said: String,
    },
}

impl Classify for VsockError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Connect(_) | Self::Refused { .. } | Self::Silent { .. } => {
                ErrorClass::Unavailable
            }
            Self::Answer { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Connect(_) => "vsock_socket",
            Self::Refused { .. } => "vsock_refused",
            Self::Silent { .. } => "vsock_silent",
            Self::Answer { .. } => "vsock_answer",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Refused { .. } => Some(
                "The guest's agent does not listen: make a new kernel bundle with aleph kernel \
                 build, or look at the guest's console."
                    .into(),
            ),
            _ => None,
        }
    }
}

impl From<VsockError> for io::Error {
    fn from(error: VsockError) -> Self {
        let kind = match &error {
            VsockError::Connect(source) => source.kind(),
            VsockError::Refused { .. } => io::ErrorKind::ConnectionRefused,
            VsockError::Silent { .. } => io::ErrorKind::TimedOut,
            VsockError::Answer { .. } => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Connects to a port of a guest that may not listen yet, by the VMM's socket, within this time.
///
/// # Errors
/// What the last attempt came to; where the time was over, what it had come to by then.
pub async fn reach(socket: &Path, port: u32, limit: Duration) -> Result<UnixStream, VsockError> {
    let deadline = Instant::now() + limit;
    let mut patience = FIRST;
    loop {
        let until = deadline.min(Instant::now() + patience);
        match connect_until(socket, port, until).await {
            Err(VsockError::Refused { .. }) if Instant::now() + AGAIN < deadline => {
                sleep(AGAIN).await;
            }
            // What is asked of a guest whose driver is not up yet may never be answered.
            Err(VsockError::Silent { .. }) if Instant::now() < deadline => {
                patience = (patience * 2).min(EACH);
            }
            other => return other,
        }
    }
}

/// Connects to a port of a guest that listens, by the VMM's socket, within this time.
///
/// # Errors
/// As the module's table has them.
pub async fn connect(socket: &Path, port: u32, limit: Duration) -> Result<UnixStream, VsockError> {
    connect_until(socket, port, Instant::now() + limit).await
}

async fn connect_until(
    socket: &Path,
    port: u32,
    deadline: Instant,
) -> Result<UnixStream, VsockError> {
    let attempt = async {
        let stream = crate::socket::connect(socket).await;
        shake_hands(stream.map_err(VsockError::Connect)?, port).await
    };
    timeout_at(deadline, attempt)
        .await
        .unwrap_or(Err(VsockError::Silent { port }))
}

/// Asks for a port on a connection to the VMM, and reads the answer and nothing after it.
async fn shake_hands(mut stream: UnixStream, port: u32) -> Result<UnixStream, VsockError> {
    // The VMM reads it in one piece or not at all.
    let line = format!("CONNECT {port}\n");
    match stream.write_all(line.as_bytes()).await {
        Ok(()) => {}
        // It has closed already.
        Err(error) if is_end(&error) => return Err(VsockError::Refused { port }),
        Err(error) => return Err(VsockError::Connect(error)),
    }
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    while answer.len() < MAX_ANSWER && answer.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) if is_end(&error) && answer.is_empty() => {
                return Err(VsockError::Refused { port });
            }
            Err(error) if is_end(&error) => break,
            Err(error) => return Err(VsockError::Connect(error)),
        }
    }
    if host_port(&answer).is_some() {
        return Ok(stream);
    }
    let said = visible(&String::from_utf8_lossy(&answer));
    Err(VsockError::Answer { port, said })
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// The host's port in `OK port\n`, in plain digits.
fn host_port(answer: &[u8]) -> Option<u32> {
    let digits = answer.strip_prefix(b"OK ")?.strip_suffix(b"\n")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tokio::net::UnixListener;

    /// Longer than any of these tests takes.
    const LIMIT: Duration = Duration::from_secs(20);

    /// A VMM that answers each connection with the next of these, and closes it.
    struct Vmm {
        _folder: tempfile::TempDir,
        socket: PathBuf,
        /// What it was asked.
        asked: tokio::task::JoinHandle<Vec<String>>,
    }

    impl Vmm {
        fn answering(answers: &[&'static [u8]]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("v.sock");
            let listener = UnixListener::bind(&socket).unwrap();
            let answers = answers.to_vec();
            let asked = tokio::spawn(async move {
                let mut asked = Vec::new();
                for answer in answers {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut line = vec![0; 64];
                    let n = stream.read(&mut line).await.unwrap();
                    asked.push(String::from_utf8_lossy(&line[..n]).into_owned());
                    // A host that has seen enough may be gone.
                    let _ = stream.write_all(answer).await;
                }
                asked
            });
            Self {
                _folder: folder,
                socket,
                asked,
            }
        }
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        for (answer, port) in [
            (&b"OK 1073741824\nhello"[..], 1024),
            (b"OK 0\nhello", u32::MAX),
            (b"OK 4294967295\nhello", 0),
        ] {
            let vmm = Vmm::answering(&[answer]);
            let mut stream = connect(&vmm.socket, port, LIMIT).await.unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "hello");
            assert_eq!(vmm.asked.await.unwrap(), [format!("CONNECT {port}\n")]);
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_refused_and_shown() {
        for (answer, shown) in [
            (&b"OK 12"[..], "OK 12"),
            (b"OK", "OK"),
            (b"\n", "\n"),
            (b"OK \n", "OK \n"),
            (b"ok 1\n", "ok 1\n"),
            (b"OK 1 \n", "OK 1 \n"),
            (b"OK  1\n", "OK  1\n"),
            (b"OK +1\n", "OK +1\n"),
            (b"OK -1\n", "OK -1\n"),
            (b"OK 1\r\n", "OK 1\r\n"),
            (b"OK 4294967296\n", "OK 4294967296\n"),
            (b"OK 00000000000000000001\n", "OK 00000000000"),
            (b"HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1 400 B"),
            (b"\x1b[2J\xff\xfe\n", "\u{1b}[2J"),
        ] {
            let vmm = Vmm::answering(&[answer]);
            match connect(&vmm.socket, 1024, LIMIT).await {
                Err(VsockError::Answer { port: 1024, said }) => {
                    assert!(said.starts_with(&visible(shown)), "{said:?} for {shown:?}");
                    assert!(!said.contains('\u{1b}'), "{said:?}");
                }
                other => panic!("{other:?} for {shown:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_flood_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("v.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let flood = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sent = 0_u64;
            while stream.write_all(&[b'1'; 4096]).await.is_ok() {
                sent += 4096;
            }
            sent
        });
        let error = connect(&socket, 1024, LIMIT).await.unwrap_err();
        assert!(matches!(&error, VsockError::Answer { said, .. } if said.len() == MAX_ANSWER));
        // What the kernel held for it, and no more.
        assert!(flood.await.unwrap() < 4 << 20);
    }

    #[tokio::test]
    async fn a_guest_that_does_not_listen_yet_is_tried_again() {
        let vmm = Vmm::answering(&[b"", b"", b"OK 5\n"]);
        let error = connect(&vmm.socket, 7, LIMIT).await.unwrap_err();
        assert!(matches!(error, VsockError::Refused { port: 7 }));
        assert_eq!(
            io::Error::from(error).kind(),
            io::ErrorKind::ConnectionRefused
        );
        reach(&vmm.socket, 7, LIMIT).await.unwrap();
        assert_eq!(vmm.asked.await.unwrap().len(), 3);
        // Nobody is there any more, and nobody comes.
        let error = reach(&vmm.socket, 7, LIMIT).await.unwrap_err();
        assert!(matches!(error, VsockError::Connect(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_vmm_that_says_nothing_has_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("v.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        for limit in [Duration::ZERO, Duration::from_millis(20)] {
            let error = reach(&socket, 7, limit).await.unwrap_err();
            assert!(matches!(error, VsockError::Silent { port: 7 }), "{error:?}");
        }
    }

    #[tokio::test]
    async fn what_is_never_answered_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("v.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let vmm = tokio::spawn(async move {
            let (_silent, _) = listener.accept().await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"OK 1\n").await.unwrap();
        });
        reach(&socket, 7, LIMIT).await.unwrap();
        vmm.await.unwrap();
    }
}
