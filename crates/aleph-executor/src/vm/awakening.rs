//! The conversation with a guest begins: with one that boots, and with one that was written down and
//! goes on, here or where it was. That one answers, gets what is its own, and only then its processes
//! run again.
//!
//! # Failure cases
//! A guest that does not answer ends with the deadline of its boot. One that cannot be given what
//! is its own is of no use to anybody: two guests would have the same address and the same random
//! numbers. Its VM ends with the reason.
//!
//! A guest that goes on may drop a connection that it has just taken: where connections end with a
//! snapshot, it hears of that only as it runs. So the connection is begun again, and nothing else is:
//! what makes a guest one of its own is said once. Some of those connections end without a word to
//! this side, so one over which nothing comes is given up for another, after longer each time.

use super::{Thaw, chain};
use crate::guest::{
    Agent, AgentError, CloneRequest, ExecHandle, ExecRequest, MainPosition, Reattach, SetupRequest,
};
use crate::hypervisor::{Snapshot, Vmm};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// Where guests keep their machine id.
const MACHINE_ID: &str = "/etc/machine-id";

/// What a guest says to an order that it has no reason for.
const EPROTO: u32 = 71;

/// How long before a guest is tried again that dropped the connection.
const AGAIN: Duration = Duration::from_millis(5);

/// How long the first connection may take to bring an answer, and any, where connections end with a
/// snapshot. A guest that is emulated on a busy host is slow.
const FIRST: Duration = Duration::from_millis(500);
const EACH: Duration = Duration::from_secs(8);

/// A conversation, with the main command where there is one.
pub(crate) type Reached = (Agent, Option<ExecHandle>);

/// Who is at the other end.
pub(super) enum Guest {
    /// One that boots, and what it runs.
    New(Box<SetupRequest>, Option<ExecRequest>),
    /// One whose VMM reads the state that it goes on from.
    Old(MainPosition, Box<CloneRequest>),
}

/// A guest that is launched, and not spoken with yet.
pub(super) struct Awakening {
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) guest: Guest,
    pub(super) launched: Instant,
}

impl Awakening {
    /// Opens the conversation, for as long as it takes. What is said to a guest that boots may
    /// reach it once it is up; one that goes on runs as a guest of its own.
    ///
    /// # Errors
    /// Why it never will.
    pub(super) async fn done(self) -> Result<Reached, AgentError> {
        let vmm = &*self.vmm;
        match self.guest {
            Guest::New(setup, main) => {
                let agent = Agent::open(vmm.channel().await?, &setup, self.launched)?;
                let main = main.map(|main| agent.exec(&main)).transpose()?;
                Ok((agent, main))
            }
            Guest::Old(main, own) => {
                let reattach = Reattach {
                    main: Some(main),
                    setup: None,
                };
                let again = |socket| Agent::reattach(socket, reattach.clone());
                let (agent, main) = reach(vmm, again).await?;
                agent.resume(&own)?.done().await?;
                Ok((agent, main))
            }
        }
    }
}

/// Connects to a guest that ran before, until a connection stays: for as long as it takes.
///
/// # Errors
/// [`AgentError::Closed`] where its VMM ends; others where the guest does not take this host.
pub(crate) async fn reach<R>(
    vmm: &dyn Vmm,
    mut reattach: impl FnMut(UnixStream) -> R,
) -> Result<Reached, AgentError>
where
    R: Future<Output = Result<Reached, AgentError>>,
{
    let ends = ends_connections(vmm);
    let mut patience = FIRST;
    loop {
        let attempt = async {
            let (agent, main) = reattach(vmm.channel().await?).await?;
            if ends {
                // By its answer it has heard that those before are gone.
                agent.ping().await?;
            }
            Ok((agent, main))
        };
        let attempted = if ends {
            let attempted = tokio::time::timeout(patience, attempt).await;
            attempted.unwrap_or(Err(AgentError::Closed))
        } else {
            attempt.await
        };
        patience = (patience * 2).min(EACH);
        match attempted {
            Err(error) if ends && is_passing(&error) => {
                tracing::trace!(%error, "the guest is tried again");
            }
            done => return done,
        }
        tokio::select! {
            biased;
            _ = vmm.wait() => return Err(AgentError::Closed),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Whether a snapshot of this VMM's guest ends the connections to it.
pub(super) fn ends_connections(vmm: &dyn Vmm) -> bool {
    vmm.snapshot().is_some_and(Snapshot::ends_connections)
}

/// Whether another connection may stay.
fn is_passing(error: &AgentError) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, TimedOut, WouldBlock,
    };
    match error {
        AgentError::Closed => true,
        AgentError::Io(error) => matches!(
            error.kind(),
            BrokenPipe
                | ConnectionAborted
                | ConnectionRefused
                | ConnectionReset
                | TimedOut
                | WouldBlock
        ),
        _ => false,
    }
}

/// Lets the processes of a guest go on, if they stand still.
///
/// # Errors
/// Where the guest could not do it.
pub(super) async fn thaw(agent: &Agent, thaw: Thaw) -> Result<(), AgentError> {
    let own = match thaw {
        Thaw::Itself(own) => itself(agent, own).await,
        Thaw::Another(own) => own,
    };
    go_on_as(agent, &own).await
}

/// Gives a guest what is its own, and lets its processes go on, if they stand still.
///
/// # Errors
/// Where the guest could not do it.
pub(crate) async fn go_on_as(agent: &Agent, own: &CloneRequest) -> Result<(), AgentError> {
    match agent.resume(own)?.done().await {
        // It was never asked to stand still.
        Err(AgentError::Failed { errno: EPROTO, .. }) => Ok(()),
        done => done,
    }
}

/// What a guest has of its own, with the machine id that it has now, where it has one.
pub(crate) async fn itself(agent: &Agent, own: CloneRequest) -> CloneRequest {
    // One of its own making, or none at all, is as good as the one that we bring.
    let known = match agent.get(MACHINE_ID, 64).await {
        Ok((_, text)) => parse(&text),
        Err(_) => None,
    };
    CloneRequest {
        machine_id: known.unwrap_or(own.machine_id),
        ..own
    }
}

fn parse(text: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let is_id = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let bits = u128::from_str_radix(text, 16).ok().filter(|_| is_id)?;
    Some(bits.to_be_bytes())
}

/// Why the conversation with a guest never began; nothing where its VMM ended, whose end says more.
pub(super) async fn why(error: AgentError, vmm: &dyn Vmm, patience: Duration) -> Option<String> {
    let is_silence = matches!(error, AgentError::Closed | AgentError::Io(_));
    if is_silence && tokio::time::timeout(patience, vmm.wait()).await.is_ok() {
        return None;
    }
    Some(chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_ids_are_read_as_they_are_written() {
        let id = parse(b"000102030405060708090a0b0c0d0e0f\n").unwrap();
        assert_eq!(id, std::array::from_fn(|n| u8::try_from(n).unwrap()));
        for wrong in [
            "",
            "uninitialized\n",
            "00",
            "+00102030405060708090a0b0c0d0e0f",
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
