//! What is drawn, against a program that reads requests as Firecracker does.

use crate::description::versions;
use crate::strategy;
use aleph_executor::firecracker::Version;
use aleph_executor::firecracker::api::{Call, Request};
use aleph_testkit::{firecracker_double, wait_until};
use anyhow::{Context, Result};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// Calls that are drawn for each version.
const CALLS: usize = 400;

struct Double {
    child: Child,
    stream: UnixStream,
    _dir: tempfile::TempDir,
}

impl Double {
    fn start(version: Version) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let program = firecracker_double(&version.to_string())?;
        // It opens the TAPs that are named to it.
        let mut command = if rustix::process::geteuid().is_root() {
            let mut apart = Command::new("unshare");
            apart.arg("--net").arg(program);
            apart
        } else {
            Command::new(program)
        };
        let child = command
            .args(["--level", "Off", "--api-sock", "api"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let api = dir.path().join("api");
        let stream = wait_until("the API", LIMIT, || UnixStream::connect(&api).ok());
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self {
            child,
            stream,
            _dir: dir,
        })
    }

    /// What it answers: the head and the body.
    fn ask(&mut self, request: &Request) -> Result<String> {
        let body = request.body.clone().unwrap_or_default();
        let mut text = format!("{} {} HTTP/1.1\r\n", request.method, request.path).into_bytes();
        if request.body.is_some() {
            text.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
        }
        text.extend(b"\r\n");
        text.extend(&body);
        self.stream.write_all(&text)?;
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            said.push(byte[0]);
        }
        let head = String::from_utf8(said.clone())?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(Ok(0), str::parse)?];
        self.stream.read_exact(&mut body)?;
        said.extend(body);
        Ok(String::from_utf8(said)?)
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a call is not tried: it would write wherever it was drawn to.
fn writes(call: &Call) -> bool {
    matches!(
        call,
        Call::Logger(_) | Call::Metrics(_) | Call::Vsock(_) | Call::Serial(_)
    )
}

/// Whatever is sent to a version is understood by it: it is done, or refused for what it asks.
#[test]
fn a_version_understands_what_is_sent_to_it() -> Result<()> {
    let mut runner = TestRunner::deterministic();
    for version in versions() {
        let mut double = Double::start(version)?;
        let mut sent = 0;
        for _ in 0..CALLS {
            let drawn = strategy::call().new_tree(&mut runner);
            let call = drawn.map_err(anyhow::Error::msg)?.current();
            let Ok(request) = call.request(version) else {
                continue;
            };
            // A load that is tried ends the process, but for one after something else.
            if writes(&call) || (sent == 0 && matches!(call, Call::SnapshotLoad(_))) {
                continue;
            }
            if sent == 0 {
                double.ask(&forbid_loads())?;
            }
            sent += 1;
            let answer = double
                .ask(&request)
                .with_context(|| format!("{version}: {request:?}"))?;
            let misunderstood = answer.contains("deserializing")
                || answer.contains("Invalid request method")
                || answer.contains("does not match the id")
                || answer.contains("API Resource IDs")
                || answer.contains("Empty P")
                || answer.contains("\"error\"");
            assert!(!misunderstood, "{version}: {request:?}: {answer}");
        }
        assert!(sent > CALLS / 8, "{version}: {sent}");
    }
    Ok(())
}

/// Something that is in vain, after which no snapshot is loaded.
fn forbid_loads() -> Request {
    Request {
        method: aleph_executor::firecracker::api::Method::Put,
        path: "/boot-source".into(),
        body: Some(r#"{"kernel_image_path":"/nonexistent/kernel"}"#.into()),
    }
}
