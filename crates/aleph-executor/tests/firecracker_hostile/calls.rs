//! Something goes wrong at each call.

use crate::LIMIT;
use crate::world::{Parts, World, Written};
use aleph_executor::hypervisor::{LaunchError, VmmExit};
use aleph_executor::process::ProcessExit;
use aleph_testkit::{DrivenVm, Fault, Plan};
use aleph_types::{Classify, MiB, VmId};
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many VMs are there at once, and how many where each waits for most of the time.
const AT_ONCE: usize = 4;
const IDLE_AT_ONCE: usize = 8;

/// A part of a VM's life.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    /// Until its guest's first instruction.
    Launch,
    /// What is asked of it afterwards.
    Life,
    /// Until a guest goes on.
    Restore {
        /// Whether its memory is filled by a server.
        is_served: bool,
    },
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Launch => "launch",
            Self::Life => "life",
            Self::Restore { is_served: false } => "restore",
            Self::Restore { is_served: true } => "served_restore",
        })
    }
}

impl Stage {
    fn parts(self, is_jailed: bool) -> Result<Parts> {
        match self {
            Self::Restore { is_served: true } => Parts::served(),
            _ => Parts::new(is_jailed),
        }
    }

    /// What its VM goes on from, where it does not boot.
    async fn written(self, world: &World<'_>) -> Result<Option<Written>> {
        match self {
            Self::Launch | Self::Life => Ok(None),
            Self::Restore { is_served } => world.written(is_served).await.map(Some),
        }
    }
}

fn plan(world: &World<'_>, written: Option<&Written>) -> Result<Plan> {
    match written {
        Some(written) => written.plan(),
        None => world.boot(),
    }
}

/// What is asked of a VM that runs.
const STEPS: [&str; 6] = [
    "pause", "describe", "snapshot", "resume", "balloon", "given",
];

const SNAPSHOT: &str = "PUT /snapshot/create";

async fn step(world: &World<'_>, vm: &DrivenVm, name: &str) -> Result<()> {
    let pause = vm.vmm.pause().context("no pause")?;
    let balloon = vm.vmm.balloon().context("no balloon")?;
    match name {
        "pause" => pause.pause().await?,
        "describe" => ensure!(pause.is_paused().await?, "it runs"),
        "snapshot" => vm.save(&world.root.path().join("saved")).await?,
        "resume" => pause.resume().await?,
        "balloon" => balloon.ask(MiB(4)).await?,
        "given" => drop(balloon.given().await?),
        other => bail!("no step {other}"),
    }
    Ok(())
}

/// All calls of a VM's life where nothing goes wrong, and how many of them a launch makes.
async fn calls(
    stage: Stage,
    parts: &Parts,
    written: Option<&Written>,
) -> Result<(Vec<String>, usize)> {
    let world = parts.world()?;
    let vm = world.launch(plan(&world, written)?).await?;
    let launched = world.requests(vm.vm)?.len();
    match stage {
        Stage::Launch => {}
        Stage::Life => {
            for name in STEPS {
                step(&world, &vm, name).await.context(name)?;
            }
        }
        Stage::Restore { .. } => {
            // With links it is told to go on once they are connected.
            let began = Instant::now();
            let goes_on = || {
                let requests = world.requests(vm.vm)?;
                Ok::<_, anyhow::Error>(requests.last().is_some_and(|last| last == "PATCH /vm"))
            };
            while !goes_on()? {
                ensure!(began.elapsed() < LIMIT, "it does not go on");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    let requests = world.requests(vm.vm)?;
    let id = vm.vm;
    vm.end().await?;
    world.forget(id).await?;
    ensure!(world.left().await?.is_empty(), "{:?}", world.left().await?);
    Ok((requests, launched))
}

/// One thing that goes wrong.
#[derive(Debug, Clone)]
struct Wrong {
    fault: Fault,
    /// At which request, from 1 on, and what that is.
    at: usize,
    call: String,
}

pub(crate) async fn go_wrong(stage: Stage, is_jailed: bool, faults: &[Fault]) -> Result<()> {
    let parts = stage.parts(is_jailed)?;
    let first = parts.world()?;
    let written = stage.written(&first).await?;
    let (calls, launched) = calls(stage, &parts, written.as_ref()).await?;
    let parts = Arc::new((parts, written));
    let first = match stage {
        Stage::Life => launched,
        Stage::Launch | Stage::Restore { .. } => 0,
    };
    ensure!(calls.len() > first, "it is asked nothing: {calls:?}");
    let at_once = match faults.contains(&Fault::Hangs) {
        true => IDLE_AT_ONCE,
        false => AT_ONCE,
    };
    let (turns, mut lives) = (Arc::new(Semaphore::new(at_once)), JoinSet::new());
    for (index, call) in calls.iter().enumerate().skip(first) {
        for fault in faults {
            let wrong = Wrong {
                fault: *fault,
                at: index + 1,
                call: call.clone(),
            };
            let is_last = index + 1 == calls.len();
            let turn = Arc::clone(&turns).acquire_owned().await?;
            let parts = Arc::clone(&parts);
            lives.spawn(async move {
                let (parts, written) = &*parts;
                let lived = live(stage, parts, written.as_ref(), &wrong, is_last).await;
                drop(turn);
                lived.with_context(|| format!("{wrong:?}"))
            });
        }
    }
    while let Some(lived) = lives.join_next().await {
        lived??;
    }
    Ok(())
}

/// How a VM ended at which something went wrong.
struct Ended {
    /// What failed, with its causes.
    error: Option<anyhow::Error>,
    /// How its VMM ended, where there was one after the launch.
    exit: Option<VmmExit>,
}

async fn live(
    stage: Stage,
    parts: &Parts,
    written: Option<&Written>,
    wrong: &Wrong,
    is_last: bool,
) -> Result<()> {
    let world = parts.world()?;
    world.firecracker.go_wrong(wrong.at, wrong.fault)?;
    let plan = plan(&world, written)?;
    let id = plan.vm;
    let ended = match world.launch(plan).await {
        Err(error) => Ended {
            error: Some(error),
            exit: None,
        },
        Ok(vm) => go_on(stage, &world, vm, wrong).await?,
    };
    ended.is_told(stage, wrong, is_last)?;
    world.forget(id).await?;
    let left = world.left().await?;
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

async fn go_on(stage: Stage, world: &World<'_>, vm: DrivenVm, wrong: &Wrong) -> Result<Ended> {
    let hangs = matches!(wrong.fault, Fault::Hangs | Fault::HangsDone);
    // Of all calls this may take by far the longest: whoever has the VM gives it up before.
    let is_endless = hangs && wrong.call == SNAPSHOT;
    let mut error = None;
    if let Stage::Life = stage {
        for name in STEPS {
            let step = step(world, &vm, name);
            let done = match is_endless && name == "snapshot" {
                true => tokio::select! {
                    done = step => done,
                    () = asked(world, vm.vm, wrong.at) => {
                        vm.vmm.kill()?;
                        break;
                    }
                },
                false => step.await,
            };
            if let Err(failed) = done {
                error = Some(failed.context(name));
                break;
            }
        }
        if let (Fault::DiesAnswered, None) = (wrong.fault, &error) {
            // Nothing was asked of it after its last answer: it ends by itself, in its own time.
            let _ = tokio::time::timeout(LIMIT, vm.vmm.wait()).await;
        }
        vm.vmm.kill()?;
    }
    let exit = tokio::time::timeout(LIMIT, vm.vmm.wait()).await;
    let exit = exit.context("its VMM does not end")?;
    Ok(Ended {
        error,
        exit: Some(exit),
    })
}

/// Waits until so many requests have come.
async fn asked(world: &World<'_>, vm: VmId, count: usize) {
    while !world
        .requests(vm)
        .is_ok_and(|requests| requests.len() >= count)
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Ended {
    /// Checks that what is said of it says what was wrong.
    fn is_told(&self, stage: Stage, wrong: &Wrong, is_last: bool) -> Result<()> {
        let mut said = String::new();
        if let Some(error) = &self.error {
            said.push_str(&format!("{error:#}"));
        }
        if let Some(exit) = &self.exit {
            said.push_str(&format!(" | {exit}"));
        }
        let Wrong { fault, call, .. } = wrong;
        let says = |what: &str| {
            ensure!(said.contains(what), "{what:?} is not in {said:?}");
            Ok(())
        };
        let death = format!("exit {}", Fault::DEATH);
        match fault {
            Fault::Dies | Fault::DiesDone => {
                says(&death)?;
                says(&format!("broke at {call}"))?;
            }
            Fault::DiesAnswered if is_last => {
                let exit = self.exit.as_ref().map(|exit| exit.exit);
                ensure!(exit == Some(ProcessExit::Code(Fault::DEATH)), "{said}");
            }
            // What fails is the next thing that is asked, or nothing before its end is seen.
            Fault::DiesAnswered => says(&death)?,
            Fault::Hangs | Fault::HangsDone if call == SNAPSHOT => {
                says("killed (signal 9)")?;
            }
            Fault::Hangs | Fault::HangsDone => says("did not answer")?,
            Fault::Refuses => says(&format!("refused {call} (400): the test refuses this"))?,
            Fault::Garbles => says(&format!("broke at {call}"))?,
            Fault::Floods => says(&format!("answered {call} with 200, and its body"))?,
            Fault::Deaf => bail!("of no call"),
        }
        match (&self.error, stage) {
            (Some(error), Stage::Launch) | (Some(error), Stage::Restore { .. }) => {
                advises(error)?;
            }
            (None, Stage::Restore { .. }) if *fault != Fault::DiesAnswered => {
                says("the guest does not go on")?;
                says("Start the VM again")
                    .or_else(|_| says("start the VM again"))
                    .or_else(|_| says("aleph setup firecracker"))?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// What to do next is said too.
fn advises(error: &anyhow::Error) -> Result<()> {
    let launch = error.downcast_ref::<LaunchError>();
    let launch = launch.with_context(|| format!("{error:?} is of no launch"))?;
    let advice = launch.advice();
    ensure!(advice.is_some(), "{error:#} without advice");
    Ok(())
}

pub(crate) async fn never_listens(is_jailed: bool) -> Result<()> {
    let parts = Parts::new(is_jailed)?;
    let world = parts.world()?;
    world.firecracker.go_wrong(0, Fault::Deaf)?;
    let plan = world.boot()?;
    let id = plan.vm;
    let error = world.launch(plan).await.err();
    let error = error.context("it was brought up")?;
    let said = format!("{error:#}");
    ensure!(said.contains("cannot connect to Firecracker"), "{said}");
    advises(&error)?;
    world.forget(id).await?;
    let left = world.left().await?;
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}
