//! Which thread runs on which core.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The core of the server and that of its clients: the first two that this process may use. On
/// a host with one they share it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cores {
    pub(super) server: usize,
    pub(super) client: usize,
}

impl Cores {
    pub(super) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let server = cores.next().context("no core")?;
        let client = cores.next().unwrap_or(server);
        Ok(Self { server, client })
    }
}

/// Keeps this thread, and all that it starts from now on, on one core.
pub(super) fn pin(core: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(core);
    Ok(sched_setaffinity(None, &only)?)
}
