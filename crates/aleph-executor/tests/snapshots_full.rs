//! A disk that is too full for a snapshot, with a real VM: the job runs on as if nothing had been
//! asked.

use aleph_executor::accel::Accelerator;
use aleph_executor::logs::LogQuery;
use aleph_executor::node::{CreateOptions, Scope};
use aleph_executor::{Node, NodeConfig};
use aleph_testkit::{TestImages, TestRoot};
use aleph_types::{Classify, ErrorClass, Job, JobSpec, JobState, MiB};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";

fn main() {
    let name = "a_full_disk_leaves_the_job_as_it_is";
    let trial = Trial::test(name, || {
        let runtime = tokio::runtime::Runtime::new()?;
        let tried = runtime.block_on(full());
        Ok(tried.map_err(|error| format!("{error:?}"))?)
    });
    let is_root = rustix::process::geteuid().is_root();
    let trial = if is_root {
        trial
    } else {
        trial.with_kind("needs root").with_ignored_flag(true)
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit()
}

/// A small filesystem, for as long as it is wanted.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Result<Self> {
        std::fs::create_dir(&at)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
            .arg(&at)
            .output()?;
        ensure!(mounted.status.success(), "{mounted:?}");
        Ok(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What a job has counted to, each number once and in order.
async fn counts(node: &Node, job: &Job) -> Result<u64> {
    let mut reader = node.logs(job.id, LogQuery::default()).await?;
    let mut text = Vec::new();
    while let Some(entry) = reader.next().await? {
        text.extend(entry.bytes);
    }
    let text = String::from_utf8(text)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut last = 0;
    for line in whole.lines() {
        let number: u64 = line.parse()?;
        ensure!(number == last + 1, "{number} after {last}");
        last = number;
    }
    Ok(last)
}

async fn counted(node: &Node, job: &Job, beyond: u64) -> Result<u64> {
    let began = Instant::now();
    loop {
        let counts = counts(node, job).await?;
        if counts > beyond {
            return Ok(counts);
        }
        ensure!(began.elapsed() < LIMIT, "{:?}", node.job(job.id));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn full() -> Result<()> {
    let root = TestRoot::new()?;
    let small = Small::mount(root.path().join("snapshots"))?;
    let mut config = NodeConfig::new(root.paths()?);
    config.executor.accelerator = Some(Accelerator::Tcg);
    config.reserved_memory = MiB(0);
    let node = Node::open(config, Arc::new(TestImages::new(&root)?)).await?;
    let command = ["sh", "-c", COUNTER].map(String::from).to_vec();
    let mut spec = JobSpec::new("busybox", command);
    spec.resources.memory = MiB(128);
    let options = CreateOptions {
        account: "default".into(),
        start: true,
        idempotency_key: None,
    };
    let job = node.create(spec, options).await?.job;
    counted(&node, &job, 3).await?;
    for stop in [false, true] {
        let refused = node.snapshot(job.id, stop).await;
        let error = refused.err().context("it was written down")?;
        assert_eq!(error.class(), ErrorClass::Capacity, "{error:?}");
        assert_eq!(error.code(), "disk_full");
        assert_eq!(node.job(job.id)?.state, JobState::Running);
        let last = counts(&node, &job).await?;
        counted(&node, &job, last + 3).await?;
        assert_eq!(node.snapshots(&Scope::All), []);
        assert_eq!(std::fs::read_dir(&small.0)?.count(), 0);
    }
    // Nothing is left that would keep it from being written down where there is room.
    drop(small);
    let snapshot = node.snapshot(job.id, true).await?;
    assert_eq!(node.snapshots(&Scope::All), [snapshot]);
    node.destroy(job.id, true).await?;
    node.shutdown().await;
    Ok(())
}
