//! Debian's server of NATS, for a test of its own: on this host alone, with what it keeps in a
//! folder that goes with it.

use anyhow::{Context, Result, ensure};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Where Debian has it: it is for root, and not in everybody's path.
const PROGRAM: &str = "/usr/sbin/nats-server";
/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);
/// How often another port is tried.
const ATTEMPTS: usize = 5;

/// A server with JetStream, which is killed when it is dropped.
#[derive(Debug)]
pub struct NatsServer {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
    more: Vec<String>,
}

impl NatsServer {
    /// Starts one, and waits until it listens.
    ///
    /// # Errors
    /// Where there is no such program, or it does not come up.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same with more words.
    ///
    /// # Errors
    /// Where there is no such program, or it does not come up.
    pub fn start_with(more: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: setup/packages installs it"
        );
        // A port that is free now may be taken when the server wants it.
        for _ in 1..ATTEMPTS {
            if let Ok(server) = Self::attempt(more) {
                return Ok(server);
            }
        }
        Self::attempt(more)
    }

    fn attempt(more: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let more: Vec<_> = more.iter().map(ToString::to_string).collect();
        let mut server = Self {
            child: spawn(address, folder.path(), &more)?,
            address,
            folder,
            more,
        };
        server.wait()?;
        Ok(server)
    }

    /// Its host and port.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Kills it. What was acknowledged to its clients stays.
    ///
    /// # Errors
    /// Where it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again at the same address, with what it has kept.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.child = spawn(self.address, self.folder.path(), &self.more)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let (address, child) = (self.address, &mut self.child);
        let log = self.folder.path().join("log");
        let up = crate::wait_until("the server of NATS", LIMIT, || {
            let gone = child.try_wait().is_ok_and(|status| status.is_some());
            // Whoever else has the port by now answers, too.
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            match TcpStream::connect(address) {
                _ if gone => Some(Err(())),
                Ok(_) if log.contains("Server is ready") => Some(Ok(())),
                Ok(_) | Err(_) => None,
            }
        });
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        ensure!(up.is_ok(), "the server of NATS ended: {log}");
        Ok(())
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn spawn(address: SocketAddr, folder: &Path, more: &[String]) -> Result<Child> {
    Command::new(PROGRAM)
        .args(["-a", &address.ip().to_string()])
        .args(["-p", &address.port().to_string()])
        .arg("-js")
        .arg("-sd")
        .arg(folder.join("store"))
        .arg("-l")
        .arg(folder.join("log"))
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {PROGRAM}"))
}
