//! A peer that plays a script over a Unix socket.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What it does once a request has come.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes again and again, until the connection is gone.
    Flood(Vec<u8>),
    /// Waits until [`Peer::go_on`].
    Wait,
    /// Closes the connection.
    Close,
}

/// A success, byte by byte as Firecracker says it.
pub(crate) fn done() -> Act {
    send("HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n")
}

/// Those bytes.
pub(crate) fn send(text: &str) -> Act {
    Act::Send(text.as_bytes().to_vec())
}

/// An answer with a body.
pub(crate) fn answer(status: u16, body: &str) -> Act {
    send(&format!(
        "HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// Requests as they came, and connections.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: Vec<String>,
    pub(crate) connections: usize,
}

/// The peer, which ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    folder: TempDir,
    seen: Arc<Mutex<Seen>>,
    came: Arc<Notify>,
    go_on: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    /// Plays one list of acts for each request, whichever connection it comes over; then the last one
    /// again and again.
    pub(crate) fn play(script: Vec<Vec<Act>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (came, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let task = tokio::spawn({
            let (seen, came) = (Arc::clone(&seen), Arc::clone(&came));
            let (go_on, script) = (Arc::clone(&go_on), Arc::new(script));
            async move {
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    seen.lock().unwrap().connections += 1;
                    let (seen, came) = (Arc::clone(&seen), Arc::clone(&came));
                    let (go_on, script) = (Arc::clone(&go_on), Arc::clone(&script));
                    connections.spawn(async move {
                        // It ends with the connection.
                        let _ = serve(stream, &seen, &came, &go_on, &script).await;
                    });
                }
            }
        });
        Self {
            folder,
            seen,
            came,
            go_on,
            task,
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    /// Lets it go on from [`Act::Wait`].
    pub(crate) fn go_on(&self) {
        self.go_on.notify_one();
    }

    /// Waits for a request.
    pub(crate) async fn request(&self) {
        self.came.notified().await;
    }

    /// The requests that came.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// How many connections came.
    pub(crate) fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

async fn serve(
    mut stream: UnixStream,
    seen: &Mutex<Seen>,
    came: &Notify,
    go_on: &Notify,
    script: &[Vec<Act>],
) -> std::io::Result<()> {
    loop {
        let request = read(&mut stream).await?;
        let turn = {
            let mut seen = seen.lock().unwrap();
            seen.requests.push(request);
            seen.requests.len() - 1
        };
        came.notify_one();
        for act in &script[turn.min(script.len() - 1)] {
            match act {
                Act::Send(bytes) => stream.write_all(bytes).await?,
                Act::Flood(bytes) => loop {
                    stream.write_all(bytes).await?;
                },
                Act::Wait => go_on.notified().await,
                Act::Close => return Ok(()),
            }
        }
    }
}

/// Reads one request, with its body.
async fn read(stream: &mut UnixStream) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, length)| length.trim().parse().unwrap());
            if body.len() >= length {
                return Ok(text.into_owned());
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
