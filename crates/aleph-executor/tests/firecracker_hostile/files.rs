//! Snapshots and memory files that are not what they should be; what a crash has left.

use crate::LIMIT;
use crate::world::{Parts, World};
use aleph_executor::firecracker::jail::UidRange;
use aleph_executor::hypervisor::{LaunchError, VmmExit};
use aleph_testkit::Plan;
use aleph_types::{Classify, ErrorClass, VmId};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What Firecracker says of a state that is none.
const FOREIGN: &str = "Load snapshot error";

/// How a VM ends that goes on from a file; or why it was not launched.
async fn goes_on(world: &World<'_>, state: &Path) -> Result<Result<VmmExit>> {
    let plan = Plan::restore(state)?;
    let id = plan.vm;
    let ended = match world.launch(plan).await {
        Err(error) => Err(error),
        Ok(vm) => Ok(tokio::time::timeout(LIMIT, vm.vmm.wait())
            .await
            .context("it goes on")?),
    };
    world.forget(id).await?;
    let left = world.left().await?;
    ensure!(left.is_empty(), "{left:#?}");
    Ok(ended)
}

/// Each is told by the end of the VM that was to go on from it, and nothing of that is left.
pub(crate) async fn cut_or_foreign(is_jailed: bool) -> Result<()> {
    let parts = Parts::new(is_jailed)?;
    let world = parts.world()?;
    let written = world.written(false).await?;
    let whole = File::open(&written.state)?;
    let length = whole.metadata()?.len();
    let changed = world.root.path().join("changed");
    let copy = |change: &dyn Fn(&File) -> std::io::Result<()>| {
        fs::copy(&written.state, &changed)?;
        let file = File::options().read(true).write(true).open(&changed)?;
        change(&file)
    };
    for (what, says, change) in [
        (
            "nothing",
            "early",
            &(|file: &File| file.set_len(0)) as &dyn Fn(&File) -> std::io::Result<()>,
        ),
        ("half a head", "early", &|file| file.set_len(11)),
        ("half a state", "ends early", &|file| file.set_len(200)),
        ("half the memory", "ends early", &|file| {
            file.set_len(length / 2)
        }),
        ("all but a byte", "ends early", &|file| {
            file.set_len(length - 1)
        }),
        ("another's", "no guest of Firecracker's", &|file| {
            file.write_all_at(b"QEVM", 0)
        }),
        ("a state of nothing", FOREIGN, &|file| {
            file.write_all_at(&[0; 64], 24)
        }),
        ("less memory than it had", "memory file has", &|file| {
            // The memory is said to be a page.
            file.write_all_at(&4096_u64.to_le_bytes(), 16)
        }),
        ("more memory than any", "longer than any guest", &|file| {
            file.write_all_at(&u64::MAX.to_le_bytes(), 16)
        }),
    ] {
        copy(change).context(what)?;
        let exit = goes_on(&world, &changed).await.context(what)?;
        let exit = exit.with_context(|| format!("{what} is not launched"))?;
        let said = exit.to_string();
        // That one Firecracker sees itself, and may have ended before it is ended.
        ensure!(
            says == FOREIGN || said.contains("does not go on"),
            "{what}: {said}"
        );
        ensure!(said.contains(says), "{what}: {says:?} is not in {said}");
    }
    Ok(())
}

/// A jail of a node that crashed, with a process in it, is in the way of the same VM: it goes.
pub(crate) async fn left_over() -> Result<()> {
    let parts = Parts::new(true)?;
    let world = parts.world()?;
    let jails = world.jails.as_ref().context("no jails")?;
    let plan = world.boot()?;
    let id = plan.vm;
    let jail = jails.create(id, world.firecracker.program())?;
    fs::write(jail.root().join("left"), "by an earlier one")?;
    let uid = jail.uid();
    let mut command = std::process::Command::new("sleep");
    std::os::unix::process::CommandExt::uid(&mut command, uid);
    let mut process = command.arg("1000").spawn()?;
    drop(jail);
    let vm = world.launch(plan).await;
    let vm = match vm {
        Ok(vm) => vm,
        Err(error) => {
            let _ = process.kill();
            return Err(error);
        }
    };
    let there = format!("/proc/{}", process.id());
    ensure!(
        !Path::new(&there).exists(),
        "a process of its user's is left"
    );
    let jail = jails.find(id, world.firecracker.program())?;
    let jail = jail.context("no jail")?;
    ensure!(!jail.root().join("left").exists(), "its file is left");
    drop(jail);
    vm.end().await?;
    world.forget(id).await?;
    let left = world.left().await?;
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

/// It is told by its range before anything is there; others' jails stay.
pub(crate) async fn no_user_left() -> Result<()> {
    let users = UidRange::new(310_000, 310_000)?;
    let parts = Parts::new(true)?;
    let world = World::new(&parts, users)?;
    let jails = world.jails.as_ref().context("no jails")?;
    let other = VmId::random();
    let jail = jails.create(other, world.firecracker.program())?;
    let plan = world.boot()?;
    let id = plan.vm;
    let error = world.launch(plan).await.err().context("there was one")?;
    let launch = error.downcast_ref::<LaunchError>().context("another")?;
    ensure!(
        (launch.class(), launch.code()) == (ErrorClass::Capacity, "jail_uids_exhausted"),
        "{error:#}"
    );
    ensure!(launch.to_string().contains("310000-310000"), "{error:#}");
    let advice = launch.advice().context("no advice")?;
    ensure!(advice.contains("uid_range"), "{advice}");
    world.forget(id).await?;
    ensure!(jail.root().is_dir(), "another's jail is gone");
    drop(jail);
    jails.remove(other)?;
    let left = world.left().await?;
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}
