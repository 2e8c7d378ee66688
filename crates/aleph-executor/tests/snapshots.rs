//! Jobs with real VMs that are written down, and go on: here and later, alone and many at once.

use aleph_executor::accel::Accelerator;
use aleph_executor::guest::ExecRequest;
use aleph_executor::logs::LogQuery;
use aleph_executor::node::{CreateOptions, JobFilter, Scope, SnapshotError};
use aleph_executor::{Node, NodeConfig, NodeError};
use aleph_testkit::{TestImages, TestRoot};
use aleph_types::{Classify, ErrorClass, ForkRequest, Job, JobSpec, JobState, MiB, RestoreRequest};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// Counts, with a file on its disk, and says who it is when asked.
const COUNTER: &str = "echo kept > /root/file; i=0; while :; do i=$((i+1)); echo count $i; \
     sleep 0.05; done";

async fn open(root: &TestRoot) -> Result<Node> {
    let began = Instant::now();
    loop {
        let mut config = NodeConfig::new(root.paths()?);
        config.executor.accelerator = Some(Accelerator::Tcg);
        config.reserved_memory = MiB(0);
        match Node::open(config, Arc::new(TestImages::new(root)?)).await {
            // The last tasks of the node before may still hold the lock for a moment.
            Err(NodeError::Owned(_)) if began.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return Ok(opened?),
        }
    }
}

fn counter(disk: u32) -> JobSpec {
    let command = ["sh", "-c", COUNTER].map(String::from).to_vec();
    let mut spec = JobSpec::new("busybox", command);
    spec.resources.memory = MiB(128);
    spec.resources.disk = MiB(disk);
    spec.stop_grace_seconds = 1;
    spec
}

async fn create(node: &Node, spec: JobSpec) -> Result<Job> {
    let options = CreateOptions {
        account: "default".into(),
        start: true,
        idempotency_key: None,
    };
    Ok(node.create(spec, options).await?.job)
}

async fn wait(node: &Node, job: &Job, state: JobState) -> Result<Job> {
    let waited = tokio::time::timeout(LIMIT, node.wait(job.id, &[state])).await;
    Ok(waited.with_context(|| format!("{:?}", node.job(job.id)))??)
}

async fn log(node: &Node, job: &Job) -> Result<String> {
    let mut reader = node.logs(job.id, LogQuery::default()).await?;
    let mut text = Vec::new();
    while let Some(entry) = reader.next().await? {
        text.extend(entry.bytes);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What a job has counted to. Every number has to come once, in order.
async fn counts(node: &Node, job: &Job) -> Result<Vec<u64>> {
    let text = log(node, job).await?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let numbers = whole.lines().map(|line| -> Result<u64> {
        let number = line.strip_prefix("count ");
        Ok(number.with_context(|| format!("{line:?}"))?.parse()?)
    });
    let numbers: Vec<u64> = numbers.collect::<Result<_>>()?;
    let in_order = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    ensure!(in_order, "lost or doubled: {numbers:?}");
    Ok(numbers)
}

/// Waits until a job has counted on beyond a number, and gives all that it has counted to.
async fn counted(node: &Node, job: &Job, beyond: u64) -> Result<Vec<u64>> {
    let began = Instant::now();
    loop {
        let counts = counts(node, job).await?;
        if counts.last().is_some_and(|last| *last > beyond) {
            return Ok(counts);
        }
        ensure!(began.elapsed() < LIMIT, "{:?} {counts:?}", node.job(job.id));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn said(node: &Node, job: &Job, script: &str) -> Result<String> {
    let request = ExecRequest::new(["sh", "-c", script]);
    let (stdout, stderr, status) = node.exec(job.id, &request)?.collect().await?;
    ensure!(
        status == aleph_types::ExitStatus::Code(0),
        "{}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(String::from_utf8(stdout)?)
}

async fn leave(node: Node) {
    node.shutdown().await;
    drop(node);
}

async fn close(root: &TestRoot, node: Node) -> Result<()> {
    for job in node.list(&Scope::All, &JobFilter::default()).jobs {
        node.destroy(job.id, true).await?;
    }
    for snapshot in node.snapshots(&Scope::All) {
        node.remove_snapshot(snapshot.id).await?;
    }
    leave(node).await;
    let began = Instant::now();
    while !root.residue()?.is_empty() && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(root.residue()?, Vec::<String>::new());
    assert_eq!(folders(root.path())?, Vec::<String>::new());
    Ok(())
}

/// What is in the folder of snapshots.
fn folders(root: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(root.join("snapshots"));
    let names = entries.into_iter().flatten().map(|entry| {
        let name = entry?.file_name();
        Ok(name.to_string_lossy().into_owned())
    });
    names.collect()
}

#[tokio::test]
async fn memory_and_disk_are_there_after_the_daemons_end() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root).await?;
    let mut spec = counter(64);
    spec.name = Some("counter".into());
    let first = create(&node, spec).await?;
    counted(&node, &first, 5).await?;
    let snapshot = node.snapshot(first.id, true).await?;
    let ended = node.job(first.id)?;
    assert_eq!(ended.state, JobState::Exited, "{ended:?}");
    let reason = ended.reason.unwrap_or_default();
    assert!(reason.contains(&snapshot.id.to_string()), "{reason}");
    assert!(snapshot.size > 0 && snapshot.job_name == "counter");
    let before = counts(&node, &first).await?;
    let last = *before.last().context("nothing was counted")?;
    leave(node).await;

    let node = open(&root).await?;
    let found = node.find_snapshot(&Scope::All, &snapshot.id.short())?;
    assert_eq!(found, snapshot);
    let other = Scope::Account("other".into());
    assert!(
        node.find_snapshot(&other, &snapshot.id.to_string())
            .is_err()
    );
    let own = RestoreRequest {
        name: Some("again".into()),
        ports: Vec::new(),
    };
    let again = node.restore(snapshot.id, own).await?;
    let running = wait(&node, &again, JobState::Running).await?;
    assert!(running.boot_ms.is_some() && again.id != first.id);
    let after = counted(&node, &again, last + 5).await?;
    // Where the log of the first one ends, that of the second begins, but for half a line.
    let begins = *after.first().context("nothing was counted")?;
    assert!((last + 1..=last + 2).contains(&begins), "{last} {begins}");
    assert_eq!(said(&node, &again, "cat /root/file").await?, "kept\n");
    let name = said(&node, &again, "hostname").await?;
    assert_eq!(name.trim(), again.id.hostname());

    // It is a job as any other: adopted by the next daemon, and its log goes on.
    leave(node).await;
    let node = open(&root).await?;
    wait(&node, &again, JobState::Running).await?;
    let on = counted(&node, &again, after[after.len() - 1] + 20).await?;
    assert_eq!(on[0], begins);
    // A restart boots its image.
    node.restart(again.id, Some(Duration::ZERO)).await?;
    wait(&node, &again, JobState::Running).await?;
    let began = Instant::now();
    while !log(&node, &again).await?.contains("count 1\n") {
        ensure!(began.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    close(&root, node).await
}
