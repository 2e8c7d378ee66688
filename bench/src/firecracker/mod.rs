//! VMs of the real Firecracker, jailer included: beside the same by a shell script with curl, what a VM
//! costs its node, and what each way to a template's memory is worth.
//!
//! Its guest is one that every KVM runs, and writes letters to its console from pages of its own. Where
//! the programs (`FIRECRACKER_BIN`, `JAILER_BIN`), `/dev/kvm` or root are missing, each figure is
//! counted as skipped, with the reason.

mod life;
mod script;
mod slot;

use crate::Bench;
use crate::row::Row;
use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::memory::{MEMORY_SERVER, ServerProgram};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver, MemoryMode};
use anyhow::{Context, Result};
use futures_util::stream::{StreamExt, TryStreamExt};
use life::{Guest, Life, Template};
use script::Script;
use slot::Slot;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MILLI: f64 = 1000.0;
const MIB: f64 = 1024.0 * 1024.0;
const PAIRS: usize = 20;
const CLONES: usize = 15;
/// VMs that run at once where their cost is counted.
const AT_ONCE: usize = 40;
/// VMs that are made one beside the other.
const MADE: usize = 60;
const BESIDE: usize = 4;

const BOOT: &str = "VM of Firecracker: asked for to InstanceStart acknowledged";
const RESTORE: &str = "VM of Firecracker: asked for to the first letter of a restored small guest";
const NODE: &str = "memory of the process that drives VMs, for each one";
const RATE: &str = "VMs to InstanceStart acknowledged and paused, four beside each other";
const RATE_COST: &str = "the same: processor time for each, jailer, Firecracker and driver";
const READY: &str = "VMs restored into processes that waited and paused, four beside each other";
const READY_COST: &str = "the same: processor time for each, with its launch ahead";

/// What is there to be measured with.
pub(super) struct Programs {
    pub(super) firecracker: PathBuf,
    pub(super) jailer: PathBuf,
}

fn programs() -> Result<Programs, &'static str> {
    let program = |name| std::env::var_os(name).map(PathBuf::from);
    let opens = File::options().read(true).write(true).open("/dev/kvm");
    if !rustix::process::geteuid().is_root() {
        return Err("needs root");
    }
    opens.map_err(|_| "needs /dev/kvm")?;
    Ok(Programs {
        firecracker: program("FIRECRACKER_BIN").ok_or("needs FIRECRACKER_BIN")?,
        jailer: program("JAILER_BIN").ok_or("needs JAILER_BIN")?,
    })
}

pub(crate) fn firecracker(bench: &Bench) -> Result<Vec<Row>> {
    match programs() {
        Ok(programs) => bench.runtime.block_on(measured(bench, &programs)),
        Err(why) => {
            let modes = modes(bench);
            let clones = modes.iter().flat_map(|(name, _)| clone_names(name));
            let names =
                [BOOT, RESTORE, NODE, RATE, RATE_COST, READY, READY_COST].map(str::to_owned);
            let names = names.into_iter().chain(clones);
            Ok(names.map(|name| skipped(name, why)).collect())
        }
    }
}

fn skipped(name: String, why: &str) -> Row {
    Row {
        reference: format!("skipped: {why}"),
        ..Row::new(name, "", &[])
    }
}

/// The ways to a template's memory.
fn modes(bench: &Bench) -> [(&'static str, MemoryMode); 3] {
    let server = || ServerProgram {
        program: bench.aleph.clone(),
        arguments: vec![MEMORY_SERVER.into()],
    };
    let by_server = |prefetch| MemoryMode::Userfaultfd {
        server: server(),
        prefetch,
    };
    [
        ("file mapping", MemoryMode::File),
        ("userfaultfd", by_server(false)),
        ("userfaultfd with prefetch", by_server(true)),
    ]
}

fn clone_names(mode: &str) -> [String; 2] {
    [
        format!("clone of a small guest by {mode}: asked for to its first letter"),
        format!("clone by {mode}: memory after it, server included"),
    ]
}

async fn measured(bench: &Bench, programs: &Programs) -> Result<Vec<Row>> {
    let dir = bench.root.path().join("firecracker");
    std::fs::create_dir_all(&dir)?;
    let jails = Jails::open(&dir.join("jail"), UidRange::default())?;
    let driver = |memory| {
        FirecrackerDriver::new(DriverConfig {
            program: programs.firecracker.clone(),
            jail: Some((jails.clone(), programs.jailer.clone())),
            memory,
            ..DriverConfig::default()
        })
    };
    let plain = driver(MemoryMode::File);
    let guest = Guest::new(&dir)?;
    let template = Template::make(&plain, &guest).await?;
    let script = Script::new(&dir, programs, &guest, &template)?;
    let mut rows = beside_script(&plain, &guest, &template, &script).await?;
    rows.push(cost(&plain, &guest).await?);
    rows.extend(rate(&plain, &guest).await?);
    rows.extend(ready(&plain, &guest, &template).await?);
    for (name, memory) in modes(bench) {
        rows.extend(clones(&driver(memory), &guest, &template, name).await?);
    }
    Ok(rows)
}

/// Boots and restores, in turn with the script's.
async fn beside_script(
    driver: &FirecrackerDriver,
    guest: &Guest,
    template: &Template,
    script: &Script,
) -> Result<Vec<Row>> {
    let mut samples: [Vec<f64>; 4] = Default::default();
    for _ in 0..PAIRS {
        samples[0].push(script.boots()?.as_secs_f64() * MILLI);
        let began = Instant::now();
        let life = Life::boot(driver, guest).await?;
        samples[1].push(began.elapsed().as_secs_f64() * MILLI);
        life.end().await?;
        samples[2].push(script.restores()?.as_secs_f64() * MILLI);
        let began = Instant::now();
        let life = Life::go_on(driver, guest, template).await?;
        life.letter().await?;
        samples[3].push(began.elapsed().as_secs_f64() * MILLI);
        life.end().await?;
    }
    let [their_boots, boots, their_restores, restores] = samples;
    let peer = "the same by a shell script with curl";
    Ok(vec![
        Row::new(BOOT, "ms", &boots)
            .against(peer, &their_boots)
            .at_most_times(1.10),
        Row::new(RESTORE, "ms", &restores)
            .against(peer, &their_restores)
            .at_most_times(1.10),
    ])
}

/// What each VM adds to the process that drives it.
async fn cost(driver: &FirecrackerDriver, guest: &Guest) -> Result<Row> {
    // What is made once is there by now.
    Life::boot(driver, guest).await?.end().await?;
    let before = resident("self")?;
    let mut lives = Vec::new();
    for _ in 0..AT_ONCE {
        lives.push(Life::boot(driver, guest).await?);
    }
    let grown = resident("self")?.saturating_sub(before);
    for life in lives {
        life.end().await?;
    }
    #[allow(clippy::cast_precision_loss)]
    let each = grown as f64 / AT_ONCE as f64 / MIB;
    let row = Row::new(NODE, "MiB", &[each]);
    Ok(Row {
        reference: format!("{AT_ONCE} at once"),
        ..row.at_most(0.5)
    })
}

/// How fast VMs come to be where several are made at a time. Each stands still once it is there, as
/// what its guest does is not the question.
async fn rate(driver: &FirecrackerDriver, guest: &Guest) -> Result<[Row; 2]> {
    let used = processor_time()?;
    let began = Instant::now();
    let made = futures_util::stream::iter((0..MADE).map(|_| async {
        let life = Life::boot(driver, guest).await?;
        life.pause().await?;
        anyhow::Ok(life)
    }));
    let lives: Vec<Life> = made.buffer_unordered(BESIDE).try_collect().await?;
    let took = began.elapsed();
    end_all(lives).await?;
    rates([RATE, RATE_COST], took, used)
}

/// The same where processes wait: what of it was done ahead is not in the time, but in what it costs.
async fn ready(driver: &FirecrackerDriver, guest: &Guest, template: &Template) -> Result<[Row; 2]> {
    let used = processor_time()?;
    let mut slots = Vec::new();
    for _ in 0..MADE {
        slots.push(Slot::launch(driver, guest).await?);
    }
    let began = Instant::now();
    let made = futures_util::stream::iter(slots.into_iter().map(|slot| async {
        let life = slot.go_on(template).await?;
        life.letter().await?;
        life.pause().await?;
        anyhow::Ok(life)
    }));
    let lives: Vec<Life> = made.buffer_unordered(BESIDE).try_collect().await?;
    let took = began.elapsed();
    end_all(lives).await?;
    rates([READY, READY_COST], took, used)
}

async fn end_all(lives: Vec<Life>) -> Result<()> {
    for life in lives {
        life.end().await?;
    }
    Ok(())
}

/// How many came to be in a second, and what each has cost since so much was used.
fn rates(names: [&str; 2], took: Duration, used: Duration) -> Result<[Row; 2]> {
    #[allow(clippy::cast_precision_loss)]
    let made = MADE as f64;
    let used = processor_time()?.saturating_sub(used).as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let cores = std::thread::available_parallelism()?.get() as f64;
    let [rate, cost] = names;
    let bound = cores * made / used;
    Ok([
        Row {
            reference: format!("{cores} processors that do nothing else"),
            ..Row::new(rate, "VMs/s", &[made / took.as_secs_f64()]).against("", &[bound])
        },
        Row {
            reference: format!("{MADE} in all, to their ends"),
            ..Row::new(cost, "ms", &[used / made * MILLI])
        },
    ])
}

/// Processor time of this process and of its children that have ended.
fn processor_time() -> Result<Duration> {
    // utime, stime, cutime and cstime, in hundredths of a second.
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')').context("stat has another form")?;
    let times = fields.split_ascii_whitespace().skip(11).take(4);
    let ticks: Vec<u64> = times.map(str::parse).collect::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}

/// What a clone's memory costs in time and space, whatever fills it.
async fn clones(
    driver: &FirecrackerDriver,
    guest: &Guest,
    template: &Template,
    name: &str,
) -> Result<[Row; 2]> {
    let (mut times, mut sizes) = (Vec::new(), Vec::new());
    // The first one records what is needed first, where that is recorded.
    for n in 0..=CLONES {
        let began = Instant::now();
        let life = Life::go_on(driver, guest, template).await?;
        life.letter().await?;
        if n > 0 {
            times.push(began.elapsed().as_secs_f64() * MILLI);
        }
        // All of its pages.
        life.letters(40).await?;
        if n > 0 {
            sizes.push(life.memory()? / MIB);
        }
        life.end().await?;
    }
    let [time, size] = clone_names(name);
    Ok([Row::new(time, "ms", &times), Row::new(size, "MiB", &sizes)])
}

/// Bytes that are a process's in memory.
fn resident(process: &str) -> Result<u64> {
    let text = std::fs::read_to_string(Path::new("/proc").join(process).join("statm"))?;
    let pages = text.split(' ').nth(1).context("statm has another form")?;
    Ok(pages.parse::<u64>()? * 4096)
}
