//! A node with many jobs: what its API costs, and a hundred VMs at once.
//!
//! | file | what it is |
//! | --- | --- |
//! | `api` | the API over a node whose driver launches nothing, with 10,000 jobs in its journal |
//! | `fleet` | real VMs at once under the release build of `aleph up`, and what becomes of them when it is killed |
//! | `daemon` | that daemon, as a process |
//! | `client` | the least that speaks HTTP over a Unix socket, so that little of a figure is its own |
//! | `cores` | which thread runs on which core |
//! | `durable` | what a write that survives the loss of power costs here |
//!
//! # Failure cases
//! A VM that does not boot, does not answer or is lost, a job that changes its guest and anything
//! that is left on the host in the end are errors of the run, and not figures. A run that fails
//! removes its VMs, too.

mod api;
mod client;
mod cores;
mod daemon;
mod durable;
mod fleet;

use crate::Bench;
use crate::row::Row;
use anyhow::{Context, Result};

const MILLI: f64 = 1e3;
const MICRO: f64 = 1e6;

pub(crate) fn node(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = api::api().context("the API")?;
    rows.extend(fleet::fleet(bench).context("many VMs")?);
    Ok(rows)
}

/// Does something with each of `things`, by so many threads at once; `begin` gives each thread
/// what it works with. Gives what came of it, in no order.
fn at_once<T: Sync, W, R: Send>(
    threads: usize,
    things: &[T],
    begin: impl Fn() -> Result<W> + Sync,
    work: impl Fn(&mut W, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let one = || {
        let mut with = begin()?;
        let mut done = Vec::new();
        while let Some(thing) = things.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        {
            done.push(work(&mut with, thing)?);
        }
        Ok(done)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let mut all = Vec::new();
        for thread in threads {
            let done: Result<Vec<R>> = thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            all.extend(done?);
        }
        Ok(all)
    })
}
