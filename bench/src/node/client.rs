//! The least that speaks HTTP/1.1 over a Unix socket: one connection, one request at a time.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::handshake::HandshakeError;
use tokio_tungstenite::tungstenite::{
    ClientHandshake, ClientRequestBuilder, Error, Message, client,
};

/// What only a hang exceeds.
pub(super) const LIMIT: Duration = Duration::from_secs(180);

/// A client with its connection.
pub(super) struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// From the first byte of the request to the last of the answer.
    pub(super) took: Duration,
}

impl Client {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        Ok(Self {
            socket: socket.to_owned(),
            stream: BufReader::new(connect(socket)?),
        })
    }

    /// Sends a request, with a body of JSON if there is one.
    pub(super) fn send(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n");
        if !body.is_empty() {
            let length = body.len();
            request.push_str(&format!(
                "content-type: application/json\r\ncontent-length: {length}\r\n"
            ));
        }
        request.push_str("\r\n");
        request.push_str(body);
        let began = Instant::now();
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (status, body) = self.answer().with_context(|| format!("{method} {path}"))?;
        Ok(Answer {
            status,
            body,
            took: began.elapsed(),
        })
    }

    fn answer(&mut self) -> Result<(u16, Vec<u8>)> {
        let (mut line, mut length) = (String::new(), 0);
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("no answer")?.parse()?;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            ensure!(
                !name.eq_ignore_ascii_case("transfer-encoding"),
                "an answer in chunks"
            );
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, body))
    }

    /// Sends a request that has to be answered with this status.
    pub(super) fn want(
        &mut self,
        status: u16,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<Answer> {
        let answer = self.send(method, path, body)?;
        let said = String::from_utf8_lossy(&answer.body);
        ensure!(
            answer.status == status,
            "{method} {path}: {}: {said}",
            answer.status
        );
        Ok(answer)
    }

    /// Runs `true` in a job's guest over a connection of its own, as every exec has one.
    pub(super) fn exec(&self, job: &str) -> Result<Duration> {
        let began = Instant::now();
        let uri = format!("ws://localhost/v1/jobs/{job}/exec").parse()?;
        let (mut session, _) = client(ClientRequestBuilder::new(uri), connect(&self.socket)?)
            .map_err(|error| anyhow::anyhow!("exec in {job}: {}", refusal(error)))?;
        session.send(Message::text(json!({"command": ["true"]}).to_string()))?;
        loop {
            match session.read()? {
                Message::Text(text) => {
                    let word: serde_json::Value = serde_json::from_str(text.as_str())?;
                    if word.get("started").is_none() {
                        ensure!(
                            word == json!({"exit": {"code": 0}}),
                            "exec in {job}: {word}"
                        );
                        return Ok(began.elapsed());
                    }
                }
                Message::Ping(_) | Message::Pong(_) | Message::Binary(_) => {}
                other => bail!("exec in {job}: {other:?}"),
            }
        }
    }
}

/// What the daemon says where there is no session.
fn refusal(error: HandshakeError<ClientHandshake<UnixStream>>) -> String {
    match error {
        HandshakeError::Failure(Error::Http(answer)) => {
            let body = answer.body().as_deref().unwrap_or_default();
            format!("{}: {}", answer.status(), String::from_utf8_lossy(body))
        }
        other => other.to_string(),
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}
