//! A guest that was written down goes on, here or where it was: it answers, gets what is its own,
//! and only then its processes run again.
//!
//! # Failure cases
//! A guest that does not answer ends with the deadline of its boot. One that cannot be given what
//! is its own is of no use to anybody: two guests would have the same address and the same random
//! numbers. Its VM ends with the reason.

use super::{Thaw, chain};
use crate::guest::{Agent, AgentError, CloneRequest, ExecHandle, MainPosition, Reattach};
use crate::hypervisor::Vmm;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// Where guests keep their machine id.
const MACHINE_ID: &str = "/etc/machine-id";

/// What a guest says to an order that it has no reason for.
const EPROTO: u32 = 71;

/// A guest whose VMM reads the state that it goes on from.
pub(super) struct Awakening {
    pub(super) socket: UnixStream,
    pub(super) main: MainPosition,
    pub(super) own: CloneRequest,
    pub(super) launched: Instant,
}

impl Awakening {
    /// Waits until it runs as a guest of its own, for as long as it takes.
    ///
    /// # Errors
    /// Why it never will.
    pub(super) async fn done(self) -> Result<(Agent, Option<ExecHandle>), AgentError> {
        let reattach = Reattach {
            main: Some(self.main),
            setup: None,
        };
        let (agent, main) = Agent::reattach(self.socket, reattach).await?;
        agent.resume(&self.own)?.done().await?;
        Ok((agent, main))
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

/// Why a guest never went on: where its VMM ended, in the VMM's words.
pub(super) async fn why(error: AgentError, vmm: &Arc<dyn Vmm>, patience: Duration) -> String {
    let is_silence = matches!(error, AgentError::Closed);
    match tokio::time::timeout(patience, vmm.wait()).await {
        Ok(exit) if is_silence => exit.to_string(),
        _ => chain(&error),
    }
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
