//! A running double, and what is said to it.

use aleph_testkit::TestRoot;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// What only a hang exceeds.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A running double, which is killed when it is dropped.
pub(crate) struct Double {
    pub(crate) child: Child,
    pub(crate) dir: TempDir,
}

/// What came over a connection.
#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Status line and headers.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }

    /// The text of a refusal.
    pub(crate) fn fault(&self) -> Result<String> {
        let fault = self.json()?["fault_message"].as_str().map(str::to_owned);
        fault.with_context(|| format!("{self:?}"))
    }
}

impl Double {
    pub(crate) fn start(version: &str) -> Result<Self> {
        Self::start_with(version, &[])
    }

    pub(crate) fn start_with(version: &str, more: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("aleph-fc-").tempdir()?;
        let program = aleph_testkit::firecracker_double(version)?;
        let child = Self::spawn(Command::new(program), dir.path(), more)?;
        let double = Self { child, dir };
        double.listens()?;
        Ok(double)
    }

    /// One with its API at `api`, its log at `log` and its guest's console at `console`.
    pub(crate) fn spawn(mut command: Command, dir: &Path, more: &[&str]) -> Result<Child> {
        let log = dir.join("log");
        std::fs::File::create(&log)?;
        let console = std::fs::File::create(dir.join("console"))?;
        command
            .args(["--id", "test", "--api-sock"])
            .arg(dir.join("api"))
            .arg("--log-path")
            .arg(log)
            .args(more)
            .stdin(Stdio::null())
            .stdout(console)
            .stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    pub(crate) fn listens(&self) -> Result<()> {
        aleph_testkit::wait_until("the API", LIMIT, || {
            UnixStream::connect(self.path("api")).ok()
        });
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.path(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(self.path("api"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
        let body = body.map(Value::to_string);
        self.ask_text(method, path, body.as_deref())
    }

    pub(crate) fn ask_text(&self, method: &str, path: &str, body: Option<&str>) -> Result<Reply> {
        let mut stream = self.connect()?;
        let body = match body {
            Some(body) => format!("Content-Length: {}\r\n\r\n{body}", body.len()),
            None => "\r\n".into(),
        };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{body}"
        )?;
        read_reply(&mut stream)
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let reply = self.ask("GET", path, None)?;
        ensure!(reply.status == 200, "{reply:?}");
        reply.json()
    }

    /// Something that is to succeed.
    pub(crate) fn put(&self, path: &str, body: &Value) -> Result<()> {
        self.does("PUT", path, body)
    }

    pub(crate) fn does(&self, method: &str, path: &str, body: &Value) -> Result<()> {
        let reply = self.ask(method, path, Some(body))?;
        ensure!(reply.status == 204, "{method} {path} {body}: {reply:?}");
        Ok(())
    }

    /// The text with which something is refused.
    pub(crate) fn refuses(&self, method: &str, path: &str, body: &Value) -> Result<String> {
        let reply = self.ask(method, path, Some(body))?;
        ensure!(reply.status == 400, "{method} {path} {body}: {reply:?}");
        reply.fault()
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        aleph_testkit::wait_until("the end", LIMIT, || child.try_wait().ok().flatten())
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads one response.
pub(crate) fn read_reply(stream: &mut UnixStream) -> Result<Reply> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        ensure!(
            stream.read(&mut byte)? == 1,
            "the connection ended: {head:?}"
        );
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let status = head.get(9..12).context("a status")?.parse()?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(Ok(0), str::parse)?];
    stream.read_exact(&mut body)?;
    Ok(Reply {
        status,
        head,
        body: String::from_utf8(body)?,
    })
}

/// What a guest boots: the kernel, to its first process.
pub(crate) fn boot_source(root: &TestRoot) -> Result<Value> {
    let bundle = root.bundle()?;
    Ok(json!({
        "kernel_image_path": bundle.vmlinux().context("no uncompressed kernel")?,
        "initrd_path": bundle.initrd(),
        "boot_args": "console=ttyS0 reboot=k panic=1",
    }))
}
