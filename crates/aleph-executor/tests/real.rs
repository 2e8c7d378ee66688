//! A node's own interface to a real VM: what the command line does not show.

use aleph_executor::accel::Accelerator;
use aleph_executor::guest::{AgentError, ExecRequest, FileMeta};
use aleph_executor::lifecycle::{Outcome, State};
use aleph_executor::{Boot, Executor, ExecutorConfig, Vm};
use aleph_testkit::TestRoot;
use aleph_types::{ExitStatus, JobId, JobSpec};
use anyhow::{Context, Result};
use std::fs::File;
use std::time::Duration;

const META: FileMeta = FileMeta {
    mode: 0o640,
    uid: 7,
    gid: 8,
};

async fn started(root: &TestRoot) -> Result<(Executor, Vm)> {
    let (executor, vm, _) = booted(root).await?;
    Ok((executor, vm))
}

/// The same, with how long its boot took.
async fn booted(root: &TestRoot) -> Result<(Executor, Vm, Duration)> {
    let config = ExecutorConfig {
        accelerator: Some(Accelerator::Tcg),
        ..ExecutorConfig::default()
    };
    let executor = Executor::open(root.paths()?, config).await?;
    let (bundle, image) = (root.bundle()?, root.busybox()?);
    let boot = Boot {
        kernel: File::open(bundle.vmlinux().context("no uncompressed kernel")?)?,
        initrd: File::open(bundle.initrd())?,
        filesystem: image.filesystem().to_string(),
        image: File::open(image.rootfs())?,
    };
    let job = JobSpec::new("busybox", vec!["true".into()]);
    let vm = executor.create(JobId::random(), &job, boot)?;
    vm.start(None).await?;
    let boot = vm.running().await?;
    Ok((executor, vm, boot.total))
}

async fn ended(root: &TestRoot, executor: Executor, vm: Vm) -> Result<()> {
    vm.destroy().await?;
    drop(executor);
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn files_go_in_and_come_out_unchanged() -> Result<()> {
    let root = TestRoot::new()?;
    let (executor, vm) = started(&root).await?;
    let agent = vm.agent()?;
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    agent.put("/tmp/file", META, &bytes).await?;
    let (stdout, _, status) = vm
        .exec(&ExecRequest::new([
            "stat",
            "-c",
            "%a %u %g %s",
            "/tmp/file",
        ]))?
        .collect()
        .await?;
    assert_eq!(
        (stdout.as_slice(), status),
        (&b"640 7 8 3000000\n"[..], ExitStatus::Code(0))
    );
    let (meta, read) = agent.get("/tmp/file", 4_000_000).await?;
    assert!(meta == META && read == bytes);
    let missing = agent.get("/no/such", 10).await;
    assert!(
        matches!(missing, Err(AgentError::Failed { errno: 2, .. })),
        "{missing:?}"
    );
    assert!(agent.get("/tmp/file", 10).await.is_err(), "it is larger");
    agent.ping().await?;
    assert_eq!(vm.kill().await?, Outcome::Stopped);
    ended(&root, executor, vm).await
}

#[tokio::test]
async fn a_paused_guest_goes_on_and_is_stopped_in_order() -> Result<()> {
    let root = TestRoot::new()?;
    let (executor, vm) = started(&root).await?;
    let mut sleeper = vm.exec(&ExecRequest::new(["sleep", "1000"]))?;
    sleeper.next().await?;
    vm.pause().await?;
    assert_eq!(vm.status().state, State::Paused);
    let silent = tokio::time::timeout(Duration::from_millis(300), vm.agent()?.ping()).await;
    assert!(silent.is_err(), "a frozen guest answered");
    vm.resume().await?;
    vm.agent()?.ping().await?;
    assert_eq!(vm.stop(Duration::from_secs(5)).await?, Outcome::Stopped);
    ended(&root, executor, vm).await
}

fn since_1970() -> Result<f64> {
    let now = std::time::SystemTime::now();
    Ok(now.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64())
}

/// The time that a guest is told is that of when it is up, not that of its launch.
#[tokio::test]
async fn a_guests_clock_is_its_hosts() -> Result<()> {
    const DAY: f64 = 86_400.0;
    let root = TestRoot::new()?;
    let (executor, vm, boot) = booted(&root).await?;
    let before = since_1970()?;
    let line = "touch /tmp/now; stat -c %y /tmp/now";
    let (stdout, ..) = vm
        .exec(&ExecRequest::new(["sh", "-c", line]))?
        .collect()
        .await?;
    let after = since_1970()?;
    let text = String::from_utf8(stdout)?;
    // Like 2026-11-24 01:58:00.123456789 +0000.
    let time = text.split_whitespace().nth(1).context("no time")?;
    let seconds = time
        .split(':')
        .try_fold(0.0, |sum, part| part.parse::<f64>().map(|n| sum * 60.0 + n))?;
    let behind = |now: f64| (now % DAY - seconds + DAY / 2.0).rem_euclid(DAY) - DAY / 2.0;
    // With the time of its launch it would be behind by its boot, as long as that takes on this machine.
    let most = boot.as_secs_f64() / 2.0;
    assert!(
        behind(before) < most && behind(after) > -0.5,
        "the guest is {} to {} s behind after a boot of {boot:?}: {text}",
        behind(before),
        behind(after)
    );
    vm.kill().await?;
    ended(&root, executor, vm).await
}
