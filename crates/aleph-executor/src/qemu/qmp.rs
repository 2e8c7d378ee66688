//! A client of QEMU's machine protocol (QMP), <https://www.qemu.org/docs/master/interop/qmp-spec.html>.
//!
//! It negotiates before anything else, gives each command an id, tolerates events and members
//! that it does not know, bounds what it stores, and puts a deadline on every answer.
//!
//! Why not the `qapi` crate: version 0.15 fails on an event or an enum value that its QEMU did
//! not have, and loses the connection with it, so that one new event ends a VM's control.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// The longest line that is read. QEMU's longest answers name all block nodes: some 50 KiB for a disk of 16
/// layers.
const MAX_LINE: u64 = 16 * 1024 * 1024;

/// How many events wait for a reader that does not read; later ones are dropped.
const MAX_EVENTS: usize = 64;

/// A command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU answered with an error.
    #[error("{class}: {description}")]
    Refused {
        /// QEMU's class of error.
        class: String,
        /// What it said.
        description: String,
    },
    /// No answer in time.
    #[error("no answer in time")]
    Silent,
    /// The connection closed, or what came over it is not QMP.
    #[error("the connection is broken: {0}")]
    Broken(String),
    /// The socket could not be used.
    #[error("cannot use the socket")]
    Io(#[from] io::Error),
}

/// Something that QEMU told without being asked.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name, such as `SHUTDOWN`.
    pub name: String,
    /// What it carries.
    pub data: Value,
}

type Answers = Arc<Mutex<Pending>>;

#[derive(Debug, Default)]
struct Pending {
    waiting: HashMap<u64, oneshot::Sender<Result<Value, QmpError>>>,
    next_id: u64,
    broken: Option<String>,
}

/// A negotiated connection.
#[derive(Debug)]
pub struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    answers: Answers,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects and negotiates. Events go to the receiver that is returned beside it.
    ///
    /// # Errors
    /// Where QEMU does not greet within `limit`, or with something else.
    pub async fn connect(
        socket: &Path,
        limit: Duration,
    ) -> Result<(Self, mpsc::Receiver<QmpEvent>), QmpError> {
        let negotiate = async {
            let (read, write) = crate::socket::connect(socket).await?.into_split();
            let mut lines = BufReader::new(read);
            let greeting = next_line(&mut lines).await?;
            if greeting.get("QMP").is_none() {
                return Err(QmpError::Broken(format!(
                    "a greeting without QMP: {greeting}"
                )));
            }
            let (events, receiver) = mpsc::channel(MAX_EVENTS);
            let answers = Answers::default();
            let reader = tokio::spawn(read_all(lines, Arc::clone(&answers), events));
            let qmp = Self {
                writer: tokio::sync::Mutex::new(write),
                answers,
                reader,
            };
            qmp.execute("qmp_capabilities", json!({}), limit).await?;
            Ok((qmp, receiver))
        };
        tokio::time::timeout(limit, negotiate)
            .await
            .unwrap_or(Err(QmpError::Silent))
    }

    /// Whether it is of no use any more.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        lock(&self.answers).broken.is_some()
    }

    /// Gives QEMU a descriptor, by a command that takes one (`getfd`, `add-fd`).
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn hand_over(
        &self,
        command: &str,
        arguments: Value,
        fd: OwnedFd,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, Some(fd), limit).await
    }

    /// Carries a command out and returns what it returns.
    ///
    /// # Errors
    /// Where QEMU refuses, does not answer within `limit`, or goes away.
    pub async fn execute(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, None, limit).await
    }

    async fn exchange(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut pending = lock(&self.answers);
            if let Some(why) = &pending.broken {
                return Err(QmpError::Broken(why.clone()));
            }
            let id = pending.next_id;
            pending.next_id += 1;
            pending.waiting.insert(id, answer);
            id
        };
        let forget = Forget {
            answers: &self.answers,
            id,
        };
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let exchange = async {
            let mut writer = self.writer.lock().await;
            let mut writing = Writing {
                answers: &self.answers,
                is_whole: false,
            };
            let sent = match fd {
                Some(fd) => send_with(&writer, line.as_bytes(), fd).await?,
                None => 0,
            };
            writer.write_all(&line.as_bytes()[sent..]).await?;
            writing.is_whole = true;
            drop(writer);
            answered
                .await
                .unwrap_or_else(|_| Err(QmpError::Broken("closed".into())))
        };
        let outcome = tokio::time::timeout(limit, exchange).await;
        drop(forget);
        outcome.unwrap_or(Err(QmpError::Silent))
    }
}

/// Sends the beginning of a line with a descriptor, which goes with its first byte; gives how much
/// was sent.
async fn send_with(socket: &OwnedWriteHalf, line: &[u8], fd: OwnedFd) -> io::Result<usize> {
    let socket: &UnixStream = socket.as_ref();
    let fds = [fd.as_fd()];
    socket
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            let parts = [io::IoSlice::new(line)];
            Ok(rustix::net::sendmsg(
                socket,
                &parts,
                &mut control,
                SendFlags::NOSIGNAL,
            )?)
        })
        .await
}

/// A line that is being written. Where its caller gives up in the middle of it, the next one would be glued
/// to it: the connection is of no use any more.
struct Writing<'a> {
    answers: &'a Answers,
    is_whole: bool,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            give_up(self.answers, "a command was cut off");
        }
    }
}

/// Takes a command off the list when its caller no longer waits, whyever.
struct Forget<'a> {
    answers: &'a Answers,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.answers).waiting.remove(&self.id);
    }
}

fn lock(answers: &Answers) -> std::sync::MutexGuard<'_, Pending> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn next_line(lines: &mut BufReader<OwnedReadHalf>) -> Result<Value, QmpError> {
    let mut line = Vec::new();
    lines.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        let why = if line.is_empty() {
            "closed"
        } else {
            "cut off, or an endless line"
        };
        return Err(QmpError::Broken(why.into()));
    }
    serde_json::from_slice(&line).map_err(|error| QmpError::Broken(error.to_string()))
}

async fn read_all(
    mut lines: BufReader<OwnedReadHalf>,
    answers: Answers,
    events: mpsc::Sender<QmpEvent>,
) {
    let why = loop {
        match next_line(&mut lines).await {
            Ok(mut message) => {
                if let Some(name) = message.get("event").and_then(Value::as_str) {
                    let event = QmpEvent {
                        name: name.to_owned(),
                        data: message["data"].take(),
                    };
                    tracing::trace!(?event, "qmp");
                    let _ = events.try_send(event);
                } else if let Some(id) = message.get("id").and_then(Value::as_u64) {
                    let waiting = lock(&answers).waiting.remove(&id);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(answer(message));
                    }
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    give_up(&answers, &why);
}

fn give_up(answers: &Answers, why: &str) {
    let mut pending = lock(answers);
    for (_, waiting) in pending.waiting.drain() {
        let _ = waiting.send(Err(QmpError::Broken(why.to_owned())));
    }
    pending.broken.get_or_insert_with(|| why.to_owned());
}

fn answer(mut message: Value) -> Result<Value, QmpError> {
    match message.get_mut("error") {
        None => Ok(message["return"].take()),
        Some(error) => {
            let text = |key: &str| error[key].as_str().unwrap_or("unknown").to_owned();
            Err(QmpError::Refused {
                class: text("class"),
                description: text("desc"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Serves one connection: the greeting, then each line's answer by `script`.
    fn serve(script: fn(&Value) -> Vec<Value>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (read, mut write) = listener.accept().await.unwrap().0.into_split();
            write
                .write_all(b"{\"QMP\": {\"capabilities\": []}}\r\n")
                .await
                .unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                for answer in script(&serde_json::from_str(&line).unwrap()) {
                    write
                        .write_all(format!("{answer}\r\n").as_bytes())
                        .await
                        .unwrap();
                }
            }
        });
        (dir, path)
    }

    #[tokio::test]
    async fn unknown_events_and_stray_answers_do_no_harm() {
        let (_dir, path) = serve(|command| {
            vec![
                json!({ "event": "FROM_THE_FUTURE", "data": { "new": [1, 2] }, "timestamp": {} }),
                json!({ "id": 999, "return": {} }),
                json!({ "id": command["id"], "return": { "status": "running" }, "novel": 1 }),
            ]
        });
        let (qmp, mut events) = Qmp::connect(&path, LIMIT).await.unwrap();
        let status = qmp.execute("query-status", json!({}), LIMIT).await.unwrap();
        assert_eq!(status["status"], "running");
        assert_eq!(events.recv().await.unwrap().name, "FROM_THE_FUTURE");
    }

    #[tokio::test]
    async fn a_refusal_says_what_qemu_said() {
        let (_dir, path) = serve(|command| {
            vec![if command["execute"] == "qmp_capabilities" {
                json!({ "id": command["id"], "return": {} })
            } else {
                let error = json!({ "class": "CommandNotFound", "desc": "no such command" });
                json!({ "id": command["id"], "error": error })
            }]
        });
        let (qmp, _events) = Qmp::connect(&path, LIMIT).await.unwrap();
        let refused = qmp.execute("nosuch", json!({}), LIMIT).await.unwrap_err();
        assert_eq!(refused.to_string(), "CommandNotFound: no such command");
    }

    #[tokio::test]
    async fn a_silent_qemu_runs_into_the_deadline() {
        let (_dir, path) = serve(|_| Vec::new());
        let silent = Qmp::connect(&path, Duration::from_millis(50)).await;
        assert!(matches!(silent, Err(QmpError::Silent)));
    }
}
