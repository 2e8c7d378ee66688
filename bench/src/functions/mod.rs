//! Functions: warm, paused and cold.
//!
//! | file | what it is |
//! | --- | --- |
//! | `pool` | a runtime of functions in this process, with a real node under it |
//!
//! # Failure cases
//! A function that fails, or is served by a clone of another temperature than the figure is of, is
//! an error of the run.

mod pool;

use crate::Bench;
use crate::row::Row;
use aleph_executor::functions::Temperature;
use anyhow::Result;
use pool::{Pool, Runtime};

const MILLI: f64 = 1e3;

/// Samples of each figure.
const ROUNDS: usize = 200;

pub(crate) fn functions(bench: &Bench) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(bench))
}

async fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let native = Runtime::Native;
    let pool = Pool::open(bench, native, false).await?;
    let echo = pool.echoes(ROUNDS).await?;
    pool.invoke().await?;
    for _ in 0..20 {
        pool.invoke().await?;
    }
    let mut hot = Vec::new();
    for _ in 0..ROUNDS {
        let run = pool.invoke_at(Temperature::Hot).await?;
        hot.push(run.as_secs_f64() * MILLI);
    }
    rows.push(
        Row::new("native function, hot: event to answer", "ms", &hot)
            .against("echo over the same channel", &echo)
            .at_most_times(6.0),
    );
    pool.close().await?;
    let pool = Pool::open(bench, native, true).await?;
    let mut cold = Vec::new();
    for _ in 0..ROUNDS / 4 {
        let run = pool.invoke_at(Temperature::Cold).await?;
        cold.push(run.as_secs_f64() * MILLI);
    }
    rows.push(Row::new("native function, cold: event to answer", "ms", &cold).at_most(100.0));
    pool.close().await?;
    Ok(rows)
}
