//! A network namespace of a thread.

#![allow(unsafe_code)] // unshare(2)

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::process::Command;

/// Does something in a network namespace of its own, which ends with it.
pub(crate) fn alone<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only the network namespace of this one thread changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .context("a network namespace needs root")?;
            sh("ip link set lo up")?;
            work()
        });
        thread.join().map_err(|_| anyhow!("it panicked"))?
    })
}

/// Runs commands in the namespace of this thread.
pub(crate) fn sh(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-euc", script]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{script}: {said}");
    Ok(())
}
