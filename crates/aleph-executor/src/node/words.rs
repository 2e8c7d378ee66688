//! What a guest without an agent says: of its cloud-init, and on its console, which is its job's log.
//!
//! The guest is hostile. A line has a bound, one that is none is left out, and however much comes, the
//! node looks at it once a second.

use super::actor::{Note, Notes};
use super::launch::{Log, wait_for_room};
use crate::cloud_init::{GuestStatus, MAX_REPORT, SEEN};
use crate::hypervisor::Vmm;
use crate::logs::LogWriter;
use aleph_types::{CloudInit, CloudInitState, Incarnation, LogStream, Timestamp};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

/// How long after each word nobody listens.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells what the guest reports of its cloud-init, until it is over and that is stored.
pub(super) async fn hear_report(vmm: Arc<dyn Vmm>, notes: Notes, incarnation: Incarnation) {
    loop {
        match hear(&*vmm, &notes, incarnation).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "a guest's report is not heard"),
        }
        // Its end is told by itself.
        if vmm.has_ended() {
            return;
        }
        sleep(PAUSE).await;
    }
}

async fn hear(vmm: &dyn Vmm, notes: &Notes, incarnation: Incarnation) -> io::Result<()> {
    let mut channel = vmm.channel().await?;
    let mut rest = Vec::new();
    loop {
        let line = line(&mut channel, &mut rest).await?;
        match GuestStatus::from_report(&line) {
            Ok(status) => {
                let found = told(status);
                let is_over = found.state != CloudInitState::Running;
                let (stored, is_stored) = oneshot::channel();
                let note = Note::CloudInit(found, stored);
                if notes.send((incarnation, note)).is_err() {
                    return Ok(());
                }
                if is_over && is_stored.await.is_ok() {
                    // A guest that does not hear it says it again, to nobody.
                    return channel.write_all(SEEN).await;
                }
            }
            Err(error) => tracing::debug!(%error, "a guest says what is no report"),
        }
        sleep(PAUSE).await;
    }
}

/// The next line, without its end; one that is too long comes to its bound.
async fn line(from: &mut (impl AsyncRead + Unpin), rest: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut is_long = false;
    let mut chunk = vec![0; 16 * 1024];
    loop {
        if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = rest.drain(..=end).collect();
            line.pop();
            if !is_long {
                return Ok(line);
            }
            // What is behind the end of a long one is a line of its own.
            is_long = false;
            continue;
        }
        if rest.len() > MAX_REPORT {
            rest.clear();
            if !is_long {
                tracing::debug!("a guest says a line that is too long");
            }
            is_long = true;
            sleep(PAUSE).await;
        }
        match from.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => rest.extend_from_slice(&chunk[..n]),
        }
    }
}

fn told(status: GuestStatus) -> CloudInit {
    let (state, reason) = match status {
        GuestStatus::Pending => (CloudInitState::Running, None),
        GuestStatus::Done => (CloudInitState::Done, None),
        GuestStatus::Degraded { reason } => (CloudInitState::Degraded, Some(reason)),
        GuestStatus::Error { reason } => (CloudInitState::Error, Some(reason)),
        GuestStatus::Disabled => {
            let why = "the guest's image has cloud-init switched off";
            (CloudInitState::Error, Some(why.into()))
        }
    };
    CloudInit { state, reason }
}

/// Stores what the guest writes to its console. A full disk stops the console, and the guest as far
/// as it waits for that.
pub(super) async fn keep_console(mut heard: mpsc::Receiver<Vec<u8>>, log: Log) {
    let mut writer = loop {
        match LogWriter::open(&log.dir, (log.incarnation, log.base), log.limits) {
            Ok(writer) => break writer,
            Err(error) => wait_for_room(&log, &error).await,
        }
    };
    while let Some(bytes) = heard.recv().await {
        while let Err(error) = writer.append(LogStream::Stdout, Timestamp::now(), &bytes) {
            wait_for_room(&log, &error).await;
        }
        log.entry.tell.send_modify(|tell| tell.pieces += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_bounded_and_a_flood_is_left_out() {
        let (mut guest, mut host) = tokio::io::duplex(1 << 20);
        let flood = tokio::spawn(async move {
            guest.write_all(b"first\nsec").await.unwrap();
            guest.write_all(b"ond\n").await.unwrap();
            for _ in 0..64 {
                guest.write_all(&[b'x'; 16 * 1024]).await.unwrap();
            }
            guest.write_all(b"\nlast\n").await.unwrap();
        });
        let mut rest = Vec::new();
        for wanted in [&b"first"[..], b"second", b"last"] {
            assert_eq!(line(&mut host, &mut rest).await.unwrap(), wanted);
            assert!(rest.capacity() < 2 * MAX_REPORT + 64 * 1024);
        }
        flood.await.unwrap();
        let ended = line(&mut host, &mut rest).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }
}
