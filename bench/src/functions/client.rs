//! A client as quick as one can be: one connection of HTTP/1.1, and nothing around it.

use super::MILLI;
use super::pool::EVENT;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What only a hang exceeds.
pub(super) const LIMIT: Duration = Duration::from_secs(180);

/// A connection to what runs events that are posted to a path.
pub(super) struct Client {
    stream: BufReader<TcpStream>,
    path: &'static str,
}

impl Client {
    /// Connects, as soon as somebody takes it.
    pub(super) fn connect(address: SocketAddr, path: &'static str) -> Result<Self> {
        let began = Instant::now();
        loop {
            match TcpStream::connect(address) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(LIMIT))?;
                    let stream = BufReader::new(stream);
                    return Ok(Self { stream, path });
                }
                Err(error) if began.elapsed() > LIMIT => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Sends a request and waits for its answer.
    pub(super) fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("no status")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            ensure!(
                self.stream.read_line(&mut line)? > 0,
                "the connection closed"
            );
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body)?))
    }

    /// Runs an event through the function; in milliseconds.
    pub(super) fn invoke(&mut self) -> Result<f64> {
        let began = Instant::now();
        let (status, answer) = self.ask("POST", self.path, EVENT)?;
        let took = began.elapsed().as_secs_f64() * MILLI;
        ensure!(status == 200, "invoke: {status} {answer}");
        Ok(took)
    }
}
