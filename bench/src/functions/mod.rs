//! Functions: hot, warm and cold; many at once; how many there can be.
//!
//! | file | what it is |
//! | --- | --- |
//! | `pool` | a runtime of functions in this process, with a real node under it |
//! | `http` | a function through the HTTP API of the release build |
//! | `client` | who asks for it there |
//! | `peer` | what functions are compared with |
//! | `raw` | what a clone costs without anything around it |
//! | `replay` | a day of many functions against the policy alone, in virtual time |
//!
//! # Failure cases
//! A function that fails, or is served by a clone of another temperature than the figure is of, is
//! an error of the run, and no figure.

mod client;
mod http;
mod peer;
mod pool;
mod raw;
mod replay;

use crate::Bench;
use crate::row::Row;
use aleph_executor::functions::{FunctionsConfig, Isolation, PoolConfig, Temperature};
use aleph_types::{JobId, JobSpec};
use anyhow::Result;
use peer::Peer;
use pool::{Language, Pool};
use std::time::{Duration, Instant};

const MILLI: f64 = 1e3;
const MIB: f64 = 1024.0 * 1024.0;

/// Samples of figures that take milliseconds.
const ROUNDS: usize = 500;
/// Samples of those that take a clone each.
const CLONES: usize = 200;
/// The same for those that take a second each.
const FEW: usize = 50;
/// Cold starts at once.
const AT_ONCE: usize = 50;
/// Clones that are there at once.
const ALIVE: usize = 500;

pub(crate) fn functions(bench: &Bench) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let echo = runtime.block_on(echoes(bench))?;
    let mut rows = through_http(bench, &echo)?;
    rows.extend(runtime.block_on(paused())?);
    rows.extend(runtime.block_on(cold())?);
    rows.extend(runtime.block_on(python())?);
    rows.extend(runtime.block_on(at_once())?);
    rows.extend(runtime.block_on(alive())?);
    rows.extend(replay::replay()?);
    Ok(rows)
}

/// Clones that are paused after that long, so many of them made ahead, and no process ahead of one.
fn clones(linger: Duration, spares: usize) -> FunctionsConfig {
    FunctionsConfig {
        pool: PoolConfig {
            linger,
            spares,
            ..PoolConfig::default()
        },
        processes: 0,
        ..FunctionsConfig::default()
    }
}

/// Clones that stay as they are: none is paused, none made ahead.
fn still() -> FunctionsConfig {
    clones(Duration::from_secs(3600), 0)
}

/// Echoes over an agent's channel, in milliseconds.
async fn echoes(bench: &Bench) -> Result<Vec<f64>> {
    let executor = bench.executor().await?;
    let job = JobSpec::new("busybox", vec!["true".into()]);
    let vm = executor.create(JobId::random(), &job, bench.open_boot()?)?;
    vm.start(None).await?;
    vm.running().await?;
    let agent = vm.agent()?;
    for _ in 0..20 {
        agent.ping().await?;
    }
    let mut echoes = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        agent.ping().await?;
        echoes.push(began.elapsed().as_secs_f64() * MILLI);
    }
    vm.kill().await?;
    vm.destroy().await?;
    Ok(echoes)
}

fn through_http(bench: &Bench, echo: &[f64]) -> Result<Vec<Row>> {
    let daemon = http::Daemon::start(bench, Language::Native)?;
    let (watch, isolate) = (Peer::cargo_lambda()?, Peer::workerd()?);
    let mut clients = [daemon.client()?, watch.client()?, isolate.client()?];
    for client in &mut clients {
        for _ in 0..50 {
            client.invoke()?;
        }
    }
    let [mut hot, mut watched, mut isolated] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let [ours, watch, isolate] = &mut clients;
        hot.push(ours.invoke()?);
        watched.push(watch.invoke()?);
        isolated.push(isolate.invoke()?);
    }
    drop((watch, isolate));
    let (rate, ticks) = daemon.load(8, Duration::from_secs(10))?;
    daemon.end()?;
    #[expect(clippy::cast_precision_loss, reason = "some thousand ticks")]
    let share = 100.0 * ticks.daemon as f64 / (ticks.daemon + ticks.vmms).max(1) as f64;
    let name = "native function, hot, through the HTTP API";
    Ok(vec![
        Row::new(name, "ms", &hot).at_most(1.5),
        Row::new(format!("{name}: the same"), "ms", &hot).p99_at_most(5.0),
        Row::new(format!("{name}: the same"), "ms", &hot)
            .against("echo over the same channel", echo)
            .at_most_times(6.0),
        Row::new(format!("{name}: the same"), "ms", &hot)
            .against(
                "the same handler under `cargo lambda watch`: no VM",
                &watched,
            )
            .at_most_times(1.0),
        Row::new(format!("{name}: the same"), "ms", &hot)
            .against("an isolate of `workerd serve`: no VM", &isolated),
        Row::new(format!("{name}, 8 connections: events"), "1/s", &[rate]),
        Row::new("the same: the daemon's part of the CPU", "%", &[share]).at_most(25.0),
    ])
}

async fn paused() -> Result<Vec<Row>> {
    let config = clones(Duration::ZERO, 0);
    let (pool, _) = Pool::open(Language::Native, Isolation::Deployment, config).await?;
    pool.invoke().await?;
    let mut warm = Vec::new();
    while warm.len() < CLONES {
        // Pools are looked at twice a second.
        tokio::time::sleep(Duration::from_millis(510)).await;
        let (took, temperature) = pool.invoke().await?;
        if temperature == Temperature::Warm {
            warm.push(took.as_secs_f64() * MILLI);
        }
    }
    pool.close().await?;
    let name = "native function, paused clone: event to answer";
    Ok(vec![Row::new(name, "ms", &warm).at_most(5.0)])
}

async fn cold() -> Result<Vec<Row>> {
    let (pool, _) = Pool::open(Language::Native, Isolation::Invocation, still()).await?;
    let (mut cold, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..CLONES {
        cold.push(pool.invoke_at(Temperature::Cold).await?);
        raw.push(raw::restore_and_answer(&pool).await?);
    }
    pool.close().await?;
    let config = FunctionsConfig {
        processes: 1,
        ..still()
    };
    let (pool, _) = Pool::open(Language::Native, Isolation::Invocation, config).await?;
    let mut launched = Vec::new();
    for _ in 0..CLONES {
        launched.push(pool.invoke_in_a_process_that_waits().await?);
    }
    pool.close().await?;
    let config = clones(Duration::ZERO, 1);
    let (pool, _) = Pool::open(Language::Native, Isolation::Invocation, config).await?;
    pool.invoke().await?;
    let mut ahead = Vec::new();
    while ahead.len() < FEW {
        // Until one is there, primed and paused.
        tokio::time::sleep(Duration::from_millis(1700)).await;
        let (took, temperature) = pool.invoke().await?;
        if temperature == Temperature::Warm {
            ahead.push(took.as_secs_f64() * MILLI);
        }
    }
    pool.close().await?;
    let name = "native function, cold: event to answer";
    let raw_name = "QEMU restored from the same template, to its guest's first answer";
    Ok(vec![
        Row::new(name, "ms", &cold).at_most(100.0),
        Row::new(format!("{name}: the same"), "ms", &cold)
            .against(raw_name, &raw)
            .at_most_times(1.3),
        Row::new(
            "native function, cold with a process launched ahead: event to answer",
            "ms",
            &launched,
        )
        .at_most(50.0),
        Row::new(
            "native function, first event of a clone made ahead",
            "ms",
            &ahead,
        ),
    ])
}

async fn python() -> Result<Vec<Row>> {
    let (pool, made) = Pool::open(Language::Python, Isolation::Invocation, still()).await?;
    let mut cold = Vec::new();
    for _ in 0..FEW {
        cold.push(pool.invoke_at(Temperature::Cold).await?);
    }
    pool.close().await?;
    let (pool, _) = Pool::open(Language::Python, Isolation::Deployment, still()).await?;
    for _ in 0..20 {
        pool.invoke().await?;
    }
    let mut hot = Vec::new();
    for _ in 0..ROUNDS {
        hot.push(pool.invoke_at(Temperature::Hot).await?);
    }
    pool.close().await?;
    let boot = [made.as_secs_f64() * MILLI];
    Ok(vec![
        Row::new("Python function, cold: event to answer", "ms", &cold).at_most(100.0),
        Row::new("Python function, cold: the same", "ms", &cold)
            .against("boot, interpreter and imports: its template", &boot),
        Row::new("Python function, hot: event to answer", "ms", &hot),
    ])
}

async fn at_once() -> Result<Vec<Row>> {
    let (pool, _) = Pool::open(Language::Native, Isolation::Invocation, still()).await?;
    let began = Instant::now();
    let runs = (0..AT_ONCE).map(|_| pool.invoke_at(Temperature::Cold));
    let all = futures_util::future::try_join_all(runs).await?;
    let last = [began.elapsed().as_secs_f64() * MILLI];
    pool.close().await?;
    Ok(vec![
        Row::new(
            "native function, 50 cold at once: event to answer",
            "ms",
            &all,
        ),
        Row::new("the same: until the last has answered", "ms", &last),
    ])
}

async fn alive() -> Result<Vec<Row>> {
    let config = clones(Duration::ZERO, 0);
    let (pool, _) = Pool::open(Language::Native, Isolation::Deployment, config).await?;
    let before = available()?;
    pool.provide(ALIVE).await?;
    let vmms = pool.vmms()?;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let each = before.saturating_sub(available()?) as f64 / MIB / vmms.len() as f64;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let count = vmms.len() as f64;
    // The one that was made last may be about to be paused.
    let mut run = pool.invoke().await?;
    for _ in 0..60 {
        if run.1 == Temperature::Warm {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        run = pool.invoke().await?;
    }
    anyhow::ensure!(run.1 == Temperature::Warm, "it was {:?}", run.1);
    let run = run.0.as_secs_f64() * MILLI;
    pool.close().await?;
    Ok(vec![
        Row::new("clones alive at once, paused", "", &[count]),
        Row::new("the same: memory of the host for each", "MiB", &[each]),
        Row::new("the same: event to answer beside them", "ms", &[run]),
    ])
}

/// Memory of the host that can be had, in bytes.
fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .ok_or_else(|| anyhow::anyhow!("no MemAvailable"))?
        .parse()?;
    Ok(kib * 1024)
}
