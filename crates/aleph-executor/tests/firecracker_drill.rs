//! Many VMs of Firecracker that are killed at any moment, in jails: what stands for Firecracker and its
//! jailer runs real guests.

use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver};
use aleph_executor::lifecycle::Timeouts;
use aleph_executor::{Boot, Executor};
use aleph_testkit::TestRoot;
use aleph_types::{JobId, JobSpec, MiB, Resources};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const VMS: u64 = 200;

/// How many are there at a time.
const AT_ONCE: usize = 8;

/// How long one lives at the longest: its kernel boots by then, where the machine has little else to do.
const LIFE_MS: u64 = 3000;

/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(120);

const VERSION: &str = "1.15.1";

fn main() {
    let name = "alone_two_hundred_vms_are_killed_and_nothing_is_left";
    let trial = Trial::test(name, || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let drilled = runtime.block_on(drill());
        Ok(drilled.map_err(|error| format!("{error:?}"))?)
    });
    let trial = match rustix::process::geteuid().is_root() {
        true => trial,
        false => trial.with_kind("needs root").with_ignored_flag(true),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit()
}

/// How a VM ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It is killed by who has it.
    Killed,
    /// Its VMM dies, or what starts that.
    Died,
    /// Whoever had it lets go of it.
    Left,
}

async fn drill() -> Result<()> {
    let root = TestRoot::new()?;
    let jails = Jails::open(&root.path().join("jail"), UidRange::default())?;
    let driver = Arc::new(FirecrackerDriver::new(DriverConfig {
        program: aleph_testkit::firecracker_double(VERSION)?,
        jail: Some((jails.clone(), aleph_testkit::jailer_double(VERSION)?)),
        needs_kvm: false,
        ..DriverConfig::default()
    }));
    let executor = Executor::with_driver(root.paths()?, driver, Timeouts::default()).await?;
    let executor = Arc::new(executor);
    let (bundle, image) = (root.bundle()?, root.busybox()?);
    let (turns, mut lives) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    // The same moments with each run.
    let mut state = 7_u64;
    let mut draw = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    for _ in 0..VMS {
        let turn = Arc::clone(&turns).acquire_owned().await?;
        let boot = Boot {
            kernel: File::open(bundle.vmlinux().context("no uncompressed kernel")?)?,
            initrd: File::open(bundle.initrd())?,
            filesystem: image.filesystem().to_string(),
            image: File::open(image.rootfs())?,
        };
        let life = Duration::from_millis(draw(LIFE_MS));
        let end = [End::Killed, End::Died, End::Left][usize::try_from(draw(3))?];
        let executor = Arc::clone(&executor);
        lives.spawn(async move {
            let lived = live(&executor, boot, life, end).await;
            drop(turn);
            lived.with_context(|| format!("{end:?} after {life:?}"))
        });
    }
    let mut begun = 0;
    while let Some(lived) = lives.join_next().await {
        begun += u64::from(lived??);
    }
    // The drill is none where none was there to be killed.
    ensure!(begun > VMS / 8, "{begun} VMMs were there");
    let began = Instant::now();
    drop(executor);
    // Those that nobody has any more go on their own.
    while !(root.residue()?.is_empty() && jails.vms()?.is_empty()) && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(root.residue()?, Vec::<String>::new());
    assert!(jails.vms()?.is_empty(), "{:?} are left", jails.vms()?);
    Ok(())
}

/// One life; whether there was a VMM at its end.
async fn live(executor: &Executor, boot: Boot, life: Duration, end: End) -> Result<bool> {
    let job = JobSpec {
        resources: Resources {
            memory: MiB(64),
            ..Resources::default()
        },
        ..JobSpec::new("busybox", vec!["true".into()])
    };
    let vm = executor.create(JobId::random(), &job, boot)?;
    let starting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.start(None).await.map(drop) }
    });
    tokio::time::sleep(life).await;
    let vmm = vm.status().vmm;
    match end {
        End::Left => {
            starting.abort();
            return Ok(vmm.is_some());
        }
        End::Died => {
            if let Some(pid) = vmm.as_ref().and_then(|vmm| Pid::from_raw(vmm.pid)) {
                // One that has ended already is no error.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        End::Killed => {}
    }
    let _ = tokio::time::timeout(LIMIT, vm.kill()).await?;
    let _ = starting.await?;
    vm.destroy().await?;
    Ok(vmm.is_some())
}
