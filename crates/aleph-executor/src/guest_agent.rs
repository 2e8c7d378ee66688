//! QEMU's guest agent, as far as a host needs it to have a guest's filesystems stand still.
//!
//! A guest may have it (`qemu-guest-agent` in Debian), answering on the port
//! [`GuestPort`]. It speaks JSON, a line for each answer (QEMU's
//! `docs/interop/qemu-ga.rst` and `qga/qapi-schema.json`).
//!
//! The guest is hostile: it may answer anything, nothing, or without end. An answer has a form and a bound,
//! each exchange has a time, and what a guest says of itself is believed of its own data alone.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | nobody answers | [`AgentPortError::Silent`]; there is no agent, as far as anybody can tell |
//! | what answers speaks something else, or too much | [`AgentPortError::Broken`] |
//! | the agent cannot do it | [`AgentPortError::Refused`], with what it said |

use crate::console::visible;
use crate::hypervisor::GuestPort;
use serde::Deserialize;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an agent may take to say that it is there.
const SYNC: Duration = Duration::from_secs(5);

/// How long filesystems may take to stand still: all that is to be written is written first.
const FREEZE: Duration = Duration::from_secs(20);

/// How long they may take to go on.
const THAW: Duration = Duration::from_secs(5);

/// How often it is tried to have them go on.
const TRIES: u32 = 3;

/// The longest answer.
const MAX_ANSWER: u64 = 4096;

/// What may come before the answer to the first question: what an earlier client did not read.
const MAX_STALE: u64 = 256 * 1024;

/// What ends what is stale.
const MARK: u8 = 0xff;

/// What a guest's agent did not do.
#[derive(Debug, thiserror::Error)]
pub enum AgentPortError {
    /// There is no connection.
    #[error("the port of the guest's agent cannot be used")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("the guest's agent does not answer")]
    Silent,
    /// An answer that is none.
    #[error("the guest's agent answers what is no answer: {0}")]
    Broken(String),
    /// It said that it cannot.
    #[error("the guest's agent refuses: {0}")]
    Refused(String),
}

/// An answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Answer {
    Return(u64),
    Error(Refusal),
}

#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

/// Reads an answer that is a number.
fn number(line: &[u8]) -> Result<u64, AgentPortError> {
    match serde_json::from_slice(line) {
        Ok(Answer::Return(number)) => Ok(number),
        Ok(Answer::Error(refusal)) => Err(AgentPortError::Refused(visible(&refusal.desc))),
        // It repeats what the guest said.
        Err(error) => Err(AgentPortError::Broken(visible(&error.to_string()))),
    }
}

/// A connection to an agent that has answered.
#[derive(Debug)]
pub struct GuestAgent<S = UnixStream>(BufReader<S>);

impl GuestAgent<UnixStream> {
    /// Connects, and waits until an agent answers.
    ///
    /// # Errors
    /// Where none does within some seconds.
    pub async fn open(port: &dyn GuestPort) -> Result<Self, AgentPortError> {
        Self::over(port.connect().await?).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuestAgent<S> {
    async fn over(stream: S) -> Result<Self, AgentPortError> {
        let mut agent = Self(BufReader::new(stream));
        // No other question of anybody has it.
        let random = aleph_types::JobId::random().bits().to_le_bytes();
        let id = u32::from_le_bytes([random[0], random[1], random[2], random[3]]);
        timeout(SYNC, agent.sync(id))
            .await
            .unwrap_or(Err(AgentPortError::Silent))?;
        Ok(agent)
    }

    /// Has its answers begin anew, whatever was asked before.
    async fn sync(&mut self, id: u32) -> Result<(), AgentPortError> {
        let question =
            format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{id}}}}}\n");
        let stream = self.0.get_mut();
        stream.write_all(&[MARK]).await?;
        stream.write_all(question.as_bytes()).await?;
        let mut stale = 0;
        while stale < MAX_STALE {
            let mut before = Vec::new();
            let left = MAX_STALE - stale;
            let read = (&mut self.0)
                .take(left)
                .read_until(MARK, &mut before)
                .await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            stale += read as u64;
            if before.last() != Some(&MARK) {
                break;
            }
            // What an earlier question is answered with has its mark, too.
            match self.line().await.and_then(|line| number(&line)) {
                Ok(said) if said == u64::from(id) => return Ok(()),
                Ok(_) | Err(AgentPortError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(AgentPortError::Broken("it does not end".into()))
    }

    async fn line(&mut self) -> Result<Vec<u8>, AgentPortError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.0).take(MAX_ANSWER);
        bounded.read_until(b'\n', &mut line).await?;
        match line.last() {
            Some(b'\n') => Ok(line),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Some(_) => Err(AgentPortError::Broken("it does not end".into())),
        }
    }

    async fn ask(&mut self, command: &str, limit: Duration) -> Result<u64, AgentPortError> {
        let exchange = async {
            let question = format!("{{\"execute\":\"{command}\"}}\n");
            self.0.get_mut().write_all(question.as_bytes()).await?;
            number(&self.line().await?)
        };
        timeout(limit, exchange)
            .await
            .unwrap_or(Err(AgentPortError::Silent))
    }

    /// Has its guest's filesystems written out and stand still; gives how many do. Whatever becomes of it,
    /// [`thaw`] has to follow.
    ///
    /// # Errors
    /// Where it cannot, or takes too long.
    pub async fn freeze(&mut self) -> Result<u64, AgentPortError> {
        self.ask("guest-fsfreeze-freeze", FREEZE).await
    }
}

/// Has a guest's filesystems go on, over a new connection: the answer to another question may still be on its
/// way over the one before.
///
/// # Errors
/// Where the agent answers none of a few tries, or refuses.
pub async fn thaw(port: &dyn GuestPort) -> Result<(), AgentPortError> {
    let mut last = AgentPortError::Silent;
    for _ in 0..TRIES {
        let thawed = match GuestAgent::open(port).await {
            Ok(mut agent) => agent.ask("guest-fsfreeze-thaw", THAW).await,
            Err(error) => Err(error),
        };
        match thawed {
            Ok(_) => return Ok(()),
            Err(error @ AgentPortError::Refused(_)) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    /// A guest that says one of these after each line that it hears, with the question's number for `ID`.
    fn guest(answers: &'static [&'static str]) -> DuplexStream {
        let (host, guest) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let mut guest = BufReader::new(guest);
            for answer in answers {
                let mut line = Vec::new();
                guest.read_until(b'\n', &mut line).await.unwrap();
                let line = String::from_utf8_lossy(&line).into_owned();
                let id: String = line.chars().filter(char::is_ascii_digit).collect();
                // A letter that no UTF-8 has stands for itself.
                let bytes: Vec<u8> = answer
                    .replace("ID", &id)
                    .chars()
                    .map(|letter| u8::try_from(u32::from(letter)).unwrap())
                    .collect();
                if guest.get_mut().write_all(&bytes).await.is_err() {
                    return;
                }
            }
            // It stays, and says nothing more.
            std::future::pending::<()>().await;
        });
        host
    }

    async fn freezes(answers: &'static [&'static str]) -> Result<u64, AgentPortError> {
        GuestAgent::over(guest(answers)).await?.freeze().await
    }

    const SYNCED: &str = "\u{ff}{\"return\": ID}\n";

    #[tokio::test(start_paused = true)]
    async fn an_agent_is_heard_after_what_is_stale() {
        let stale = "{\"return\": 1}\n\u{ff}{\"return\": 5}\n\u{ff}{\"return\": ID}\n";
        for synced in [SYNCED, stale] {
            let answers: &'static [&'static str] = vec![synced, "{\"return\": 2}\n"].leak();
            assert_eq!(freezes(answers).await.unwrap(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_answer_is_refused_and_has_a_bound() {
        let endless: &'static str = "x".repeat(1 << 20).leak();
        let cases: [(&'static [&'static str], &str); 8] = [
            (&[], "does not answer"),
            (&[SYNCED], "does not answer"),
            (&[SYNCED, "{\"return\": -1}\n"], "no answer"),
            (&[SYNCED, "{\"return\": 1, \"error\": {}}\n"], "no answer"),
            (&[SYNCED, "{}\n"], "no answer"),
            (
                &[SYNCED, "{\"error\": {\"desc\": \"no\u{1b}\"}}\n"],
                "no answer",
            ),
            (
                &[
                    SYNCED,
                    "{\"error\": {\"class\": \"X\", \"desc\": \"not here\"}}\n",
                ],
                "refuses: not here",
            ),
            (vec![SYNCED, endless].leak(), "does not end"),
        ];
        for (answers, wanted) in cases {
            let said = freezes(answers).await.unwrap_err().to_string();
            assert!(said.contains(wanted), "{answers:.80?}: {said}");
        }
        // Nor does it write to whoever reads the log.
        let colours = freezes(&[SYNCED, "{\"\\u001b[31mred\": 1}\n"]).await;
        let said = colours.unwrap_err().to_string();
        assert!(said.contains("red") && !said.contains('\u{1b}'), "{said:?}");
        let flood: &'static [&'static str] = vec![endless].leak();
        let said = freezes(flood).await.unwrap_err().to_string();
        assert!(said.contains("does not end"), "{said}");
    }
}
