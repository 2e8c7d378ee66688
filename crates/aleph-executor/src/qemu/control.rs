//! The connection to QEMU's own interface, made when it is first needed and anew where it broke; for whole
//! computers also what QEMU tells over it unasked.
//!
//! # What is told
//! - That the machine stands still since a disk of it is full (`BLOCK_IO_ERROR`): no write is lost, and it
//!   is let go on every few seconds, which it does once there is room.
//! - Who ended it (`SHUTDOWN`): QEMU's exit code is 0 also where somebody sent it SIGTERM.
//!
//! What was told while nobody listened is lost, but for a machine that stands still, which is looked for
//! after each connect.
//!
//! QEMU greets once its machine is there. To fill or lock a large memory takes it minutes before that, and nobody
//! may have a command for it later: a computer is listened to from when it greets, however long that takes.

use super::qmp::{Qmp, QmpError, QmpEvent};
use crate::hypervisor::socket_name;
use serde_json::json;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};

/// How long QEMU may take to answer a command.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// How often a machine that stands still is let go on.
const AGAIN: Duration = Duration::from_secs(5);

/// How long to wait before the first tries to listen, and before each later one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long the last that QEMU told may take to arrive after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The connection.
#[derive(Debug)]
pub(super) struct Control {
    run_dir: PathBuf,
    /// Whether it is followed what QEMU tells.
    follows: bool,
    qmp: Mutex<Option<Arc<Qmp>>>,
    told: watch::Sender<Told>,
}

/// What QEMU told.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    is_listened_to: bool,
    /// Whether the machine stands still since a disk is full.
    pub(super) is_disk_full: bool,
    /// Whether the guest ended the machine, where somebody did.
    pub(super) ended_by_guest: Option<bool>,
}

impl Control {
    pub(super) fn new(run_dir: PathBuf, follows: bool) -> Arc<Self> {
        let control = Arc::new(Self {
            run_dir,
            follows,
            qmp: Mutex::new(None),
            told: watch::Sender::default(),
        });
        if follows {
            tokio::spawn(listen(Arc::downgrade(&control), PAUSES));
        }
        control
    }

    /// The connection, a new one where the last one broke.
    pub(super) async fn qmp(&self) -> Result<Arc<Qmp>, QmpError> {
        let mut there = self.qmp.lock().await;
        if let Some(qmp) = there.as_ref().filter(|qmp| !qmp.is_broken()) {
            return Ok(Arc::clone(qmp));
        }
        // QEMU serves one at a time.
        *there = None;
        let socket = self.run_dir.join(socket_name::CONTROL);
        let (qmp, events) = Qmp::connect(&socket, ANSWER).await?;
        let qmp = Arc::new(qmp);
        if self.follows {
            self.told.send_modify(|told| told.is_listened_to = true);
            let (qmp, told) = (Arc::downgrade(&qmp), self.told.clone());
            tokio::spawn(follow(qmp, events, told));
        }
        *there = Some(Arc::clone(&qmp));
        Ok(qmp)
    }

    pub(super) fn told(&self) -> Told {
        self.told.borrow().clone()
    }

    /// Waits for the last that an ended QEMU told.
    pub(super) async fn hear_out(&self) {
        let mut told = self.told.subscribe();
        let silent = told.wait_for(|told| !told.is_listened_to);
        let _ = tokio::time::timeout(LAST_WORDS, silent).await;
    }
}

/// Connects as soon as QEMU greets; it gives up where QEMU has ended, or nobody has to do with it any more. Pauses
/// become twice as long each time.
async fn listen(control: Weak<Control>, (mut pause, longest): (Duration, Duration)) {
    loop {
        let Some(control) = control.upgrade() else {
            return;
        };
        match control.qmp().await {
            Ok(_) => return,
            // The socket was there before QEMU: nobody has it any more.
            Err(QmpError::Io(error)) if has_ended(&error) => return,
            Err(error) => tracing::debug!(%error, "QEMU is not listened to yet"),
        }
        drop(control);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Whether a socket that is not connected to says that its process has ended.
fn has_ended(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(
        kind,
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

async fn follow(qmp: Weak<Qmp>, mut events: mpsc::Receiver<QmpEvent>, told: watch::Sender<Told>) {
    go_on(&qmp, &told).await;
    loop {
        let event = if told.borrow().is_disk_full {
            match tokio::time::timeout(AGAIN, events.recv()).await {
                Ok(event) => event,
                Err(_) => {
                    go_on(&qmp, &told).await;
                    continue;
                }
            }
        } else {
            events.recv().await
        };
        // The connection is gone.
        let Some(event) = event else { break };
        match event.name.as_str() {
            "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
                told.send_modify(|told| told.is_disk_full = true);
            }
            "RESUME" => {
                told.send_modify(|told| told.is_disk_full = false);
            }
            "SHUTDOWN" => {
                // A reset is an end where the machine is told not to begin again.
                let reason = event.data["reason"].as_str();
                let by_guest = matches!(reason, Some("guest-shutdown" | "guest-reset"));
                told.send_modify(|told| told.ended_by_guest = Some(by_guest));
            }
            _ => {}
        }
    }
    told.send_modify(|told| told.is_listened_to = false);
}

/// Lets a machine go on that stands still since a disk was full; one that was paused stays so.
async fn go_on(qmp: &Weak<Qmp>, told: &watch::Sender<Told>) {
    let Some(qmp) = qmp.upgrade() else { return };
    let status = qmp.execute("query-status", json!({}), ANSWER).await;
    let is_disk_full = status.is_ok_and(|status| status["status"] == "io-error");
    told.send_modify(|told| told.is_disk_full = is_disk_full);
    if is_disk_full {
        // Where there still is no room, it stands still again at once, which is told.
        let _ = qmp.execute("cont", json!({}), ANSWER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_machine_that_greets_late_is_listened_to_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(socket_name::CONTROL)).unwrap();
        let (heard, mut commands) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            // Those that came before it greets are given up.
            for _ in 0..2 {
                drop(listener.accept().await.unwrap());
            }
            let (read, mut write) = listener.accept().await.unwrap().0.into_split();
            let greeting = b"{\"QMP\": {\"capabilities\": []}}\r\n";
            write.write_all(greeting).await.unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let command: Value = serde_json::from_str(&line).unwrap();
                let answer = json!({ "id": command["id"], "return": { "status": "io-error" } });
                let answer = format!("{answer}\r\n");
                write.write_all(answer.as_bytes()).await.unwrap();
                let _ = heard.send(command["execute"].as_str().unwrap().to_owned());
            }
        });
        let control = Control::new(dir.path().to_owned(), true);
        for expected in ["qmp_capabilities", "query-status", "cont"] {
            let told = tokio::time::timeout(LIMIT, commands.recv()).await;
            assert_eq!(told.unwrap().as_deref(), Some(expected));
        }
        assert!(control.told().is_disk_full);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_machine_that_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(socket_name::CONTROL);
        let pauses = (Duration::from_millis(1), Duration::from_millis(1));
        let control = Control::new(dir.path().to_owned(), false);
        let ends = listen(Arc::downgrade(&control), pauses);
        tokio::time::timeout(LIMIT, ends).await.unwrap();
        // Its socket stays in the folder of one that was killed.
        drop(UnixListener::bind(&path).unwrap());
        let ends = listen(Arc::downgrade(&control), pauses);
        tokio::time::timeout(LIMIT, ends).await.unwrap();
        // Nor is one waited for that nobody has any more.
        let gone = Arc::downgrade(&control);
        drop(control);
        tokio::time::timeout(LIMIT, listen(gone, pauses))
            .await
            .unwrap();
    }
}
