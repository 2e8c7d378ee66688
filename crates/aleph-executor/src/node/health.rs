//! Tries whether a job works, in its guest.

use super::actor::{Note, Notes};
use crate::guest::{ExecEvent, ExecRequest};
use crate::vm::Vm;
use aleph_types::{Health, HealthCheck, Incarnation, Probe};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Tries until the task is dropped, and tells each change.
pub(super) async fn watch(check: HealthCheck, vm: Vm, notes: Notes, incarnation: Incarnation) {
    let seconds = |n: u32| Duration::from_secs(u64::from(n));
    let (began, start_period) = (Instant::now(), seconds(check.start_period_seconds));
    let (mut failures, mut told) = (0, Health::Starting);
    loop {
        tokio::time::sleep(seconds(check.interval_seconds)).await;
        // A frozen guest can answer nothing, and is not unhealthy for it.
        if vm.status().state != crate::lifecycle::State::Running {
            continue;
        }
        let works = probe(&vm, &check.probe, seconds(check.timeout_seconds)).await;
        let now = if works {
            failures = 0;
            Health::Healthy
        } else {
            if began.elapsed() >= start_period {
                failures += 1;
            }
            if failures >= check.retries {
                Health::Unhealthy
            } else {
                told
            }
        };
        if now != told {
            told = now;
            if notes.send((incarnation, Note::Health(now))).is_err() {
                return;
            }
        }
    }
}

async fn probe(vm: &Vm, probe: &Probe, limit: Duration) -> bool {
    let tried = match probe {
        Probe::Exec(argv) => return command(vm, argv, limit).await,
        Probe::Tcp { port } => timeout(limit, tcp(vm, *port)).await,
        Probe::Http { port, path } => timeout(limit, http(vm, *port, path)).await,
    };
    matches!(tried, Ok(Ok(true)))
}

/// Runs a command, whose output nobody wants; one that takes too long is ended.
async fn command(vm: &Vm, argv: &[String], limit: Duration) -> bool {
    let Ok(mut handle) = vm.exec(&ExecRequest::new(argv.to_vec())) else {
        return false;
    };
    let end = timeout(limit, async {
        loop {
            match handle.next().await {
                Ok(ExecEvent::Exited(status)) => return status.success(),
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    });
    match end.await {
        Ok(works) => works,
        Err(_) => {
            handle.hang_up();
            false
        }
    }
}

async fn tcp(vm: &Vm, port: u16) -> std::io::Result<bool> {
    let agent = vm.agent().map_err(std::io::Error::other)?;
    let connected = agent.connect(port).await;
    connected.map(|_| true).map_err(std::io::Error::other)
}

/// Asks as a plain HTTP/1.0 client does (RFC 1945), and reads no further than the status.
async fn http(vm: &Vm, port: u16, path: &str) -> std::io::Result<bool> {
    let agent = vm.agent().map_err(std::io::Error::other)?;
    let mut connection = agent.connect(port).await.map_err(std::io::Error::other)?;
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\nUser-Agent: aleph-health\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    // `HTTP/1.1 200`: the status is the second word of a line of at least 12 bytes.
    let mut line = [0; 12];
    connection.read_exact(&mut line).await?;
    let status = std::str::from_utf8(&line[9..])
        .ok()
        .and_then(|s| s.parse::<u16>().ok());
    Ok(line.starts_with(b"HTTP/1.") && status.is_some_and(|s| (200..400).contains(&s)))
}
