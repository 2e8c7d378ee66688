//! A small client of QEMU's machine protocol, for one thread.

use crate::vmm::Event;
use anyhow::{Context, Result, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// How long QEMU may take for an answer: the real one gives its processors as long.
const ANSWER: Duration = Duration::from_secs(30);

/// How long QEMU may take to write or read a state.
const STATE: Duration = Duration::from_secs(120);

/// A conversation with a QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: UnixStream,
    answers: Receiver<Value>,
}

impl Qmp {
    /// Negotiates. The end of the QEMU with this number, and what its guest does to its machine,
    /// is told to `events`.
    pub(crate) fn connect(socket: UnixStream, of: u64, events: Sender<Event>) -> Result<Self> {
        let (answer, answers) = channel();
        let reader = BufReader::new(socket.try_clone()?);
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || read(reader, &answer, of, &events))?;
        let mut qmp = Self { socket, answers };
        // The greeting.
        qmp.answer()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Has a command carried out.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.socket.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = self.answer().with_context(|| command.to_owned())?;
        match answer.get("error") {
            None => Ok(answer["return"].take()),
            Some(error) => bail!("{command}: {}", error["desc"].as_str().unwrap_or("refused")),
        }
    }

    /// Gives QEMU a descriptor under a name.
    pub(crate) fn hand_over(&mut self, name: &str, file: impl AsFd) -> Result<Value> {
        self.send(file)?;
        self.execute("getfd", &json!({ "fdname": name }))
    }

    /// Gives QEMU a descriptor, and says in which of its sets it is.
    pub(crate) fn add_fd(&mut self, file: impl AsFd) -> Result<u64> {
        self.send(file)?;
        let added = self.execute("add-fd", &json!({}))?;
        added["fdset-id"].as_u64().context("add-fd gave no set")
    }

    /// Sends a descriptor with a byte that means nothing, for the command after it.
    fn send(&self, file: impl AsFd) -> Result<()> {
        let fds = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let blank = [io::IoSlice::new(b"\n")];
        rustix::net::sendmsg(&self.socket, &blank, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn answer(&self) -> Result<Value> {
        self.answers
            .recv_timeout(ANSWER)
            .context("QEMU does not answer")
    }

    /// Waits until a state is written or read.
    pub(crate) fn migrated(&mut self) -> Result<()> {
        let began = std::time::Instant::now();
        while began.elapsed() < STATE {
            let now = self.execute("query-migrate", &json!({}))?;
            match now["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    bail!(
                        "the state: {}",
                        now["error-desc"].as_str().unwrap_or("failed")
                    )
                }
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        bail!("QEMU takes too long for a state")
    }
}

fn read(
    mut lines: BufReader<UnixStream>,
    answers: &Sender<Value>,
    of: u64,
    events: &Sender<Event>,
) {
    let mut line = String::new();
    loop {
        line.clear();
        if !lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            break;
        }
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            break;
        };
        match message.get("event").and_then(Value::as_str) {
            Some("SHUTDOWN") => {
                let reason = message["data"]["reason"].as_str().unwrap_or_default();
                let _ = events.send(Event::Shutdown(of, reason.to_owned()));
            }
            Some(_) => {}
            None => _ = answers.send(message),
        }
    }
    let _ = events.send(Event::QemuGone(of));
}
