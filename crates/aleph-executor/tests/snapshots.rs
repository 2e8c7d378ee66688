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

/// Counts with a file on its disk, and draws a number of the kernel's with each step.
const COUNTER: &str = "echo kept > /root/file; i=0; while :; do i=$((i+1)); \
     read -r uuid < /proc/sys/kernel/random/uuid; echo count $i $uuid; sleep 0.05; done";

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

/// What a job has counted to, and what it drew. Every number has to come once, in order.
async fn steps(node: &Node, job: &Job) -> Result<Vec<(u64, String)>> {
    let text = log(node, job).await?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let steps = whole.lines().map(|line| -> Result<(u64, String)> {
        let step = line
            .strip_prefix("count ")
            .and_then(|rest| rest.split_once(' '));
        let (number, uuid) = step.with_context(|| format!("{line:?}"))?;
        Ok((number.parse()?, uuid.to_owned()))
    });
    let steps: Vec<_> = steps.collect::<Result<_>>()?;
    let in_order = steps.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1);
    ensure!(in_order, "lost or doubled: {steps:?}");
    Ok(steps)
}

async fn counts(node: &Node, job: &Job) -> Result<Vec<u64>> {
    Ok(steps(node, job)
        .await?
        .into_iter()
        .map(|(n, _)| n)
        .collect())
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
    while !log(&node, &again).await?.contains("count 1 ") {
        ensure!(began.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    close(&root, node).await
}

#[tokio::test]
async fn copies_go_on_from_one_moment_and_share_nothing_else() -> Result<()> {
    const COPIES: usize = 3;
    let root = TestRoot::new()?;
    let node = open(&root).await?;
    let mut spec = counter(64);
    spec.hostname = Some("first".into());
    let first = create(&node, spec).await?;
    counted(&node, &first, 5).await?;
    said(
        &node,
        &first,
        "echo 0123456789abcdef0123456789abcdef > /etc/machine-id",
    )
    .await?;
    let request = ForkRequest {
        copies: 3,
        name: Some("copy".into()),
        keep: false,
    };
    let forked = node.fork(first.id, request).await?;
    assert_eq!((forked.jobs.len(), forked.snapshot), (COPIES, None));
    let names: Vec<_> = forked.jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(names, ["copy-1", "copy-2", "copy-3"]);

    let (mut begins, mut drawn, mut seen) = (BTreeSet::new(), 0, BTreeSet::new());
    let mut who = BTreeSet::new();
    for job in &forked.jobs {
        wait(&node, job, JobState::Running).await?;
        let from = counted(&node, job, 0).await?[0];
        counted(&node, job, from + 10).await?;
        let steps = steps(&node, job).await?;
        begins.insert(steps[0].0);
        // The first may have been drawn before the moment, and be written after it.
        for (_, uuid) in steps.into_iter().skip(1) {
            drawn += 1;
            seen.insert(uuid);
        }
        let script = "cat /etc/hostname /etc/machine-id /run/aleph/generation; hostname";
        let said = said(&node, job, script).await?;
        assert!(
            !said.contains("first") && !said.contains("0123456789"),
            "{said}"
        );
        who.extend(said.lines().map(str::to_owned));
    }
    assert_eq!(begins.len(), 1, "they go on from {begins:?}");
    assert!(drawn >= 3 * COPIES);
    assert_eq!(seen.len(), drawn, "copies drew the same numbers");
    // A hostname, which is there twice, a machine id and a generation each.
    assert_eq!(who.len(), 3 * COPIES, "{who:?}");

    // The first one is what it was, and goes on.
    let begins = begins.first().copied().unwrap_or(0);
    let all = counted(&node, &first, begins + 10).await?;
    assert_eq!(all[0], 1);
    let said = said(&node, &first, "hostname; cat /etc/machine-id").await?;
    assert_eq!(said, "first\n0123456789abcdef0123456789abcdef\n");
    // What they went on from goes by itself.
    let began = Instant::now();
    while !folders(root.path())?.is_empty() {
        ensure!(began.elapsed() < LIMIT, "{:?}", folders(root.path())?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(node.snapshots(&Scope::All), []);
    close(&root, node).await
}

#[tokio::test]
async fn a_paused_job_stays_paused_and_its_copy_goes_on() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root).await?;
    let first = create(&node, counter(0)).await?;
    counted(&node, &first, 5).await?;
    node.pause(first.id).await?;
    let request = ForkRequest {
        keep: true,
        ..ForkRequest::default()
    };
    let forked = node.fork(first.id, request).await?;
    let kept = forked.snapshot.context("it was to stay")?;
    assert_eq!(node.job(first.id)?.state, JobState::Paused);
    let copy = &forked.jobs[0];
    let last = *counts(&node, &first).await?.last().context("nothing")?;
    wait(&node, copy, JobState::Running).await?;
    counted(&node, copy, last + 5).await?;
    assert_eq!(
        counts(&node, &first).await?.last(),
        Some(&last),
        "it is paused"
    );
    node.resume(first.id).await?;
    counted(&node, &first, last + 5).await?;
    node.remove_snapshot(kept).await?;
    let gone = node.restore(kept, RestoreRequest::default()).await;
    assert!(
        matches!(gone, Err(NodeError::Snapshot(SnapshotError::Unknown(_)))),
        "{gone:?}"
    );
    close(&root, node).await
}

/// One of another VMM or machine is refused before anything is made for it.
#[tokio::test]
async fn what_was_made_elsewhere_is_refused_with_what_differs() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root).await?;
    let first = create(&node, counter(0)).await?;
    counted(&node, &first, 1).await?;
    let snapshot = node.snapshot(first.id, false).await?;
    leave(node).await;
    let folder = root
        .path()
        .join("snapshots")
        .join(&folders(root.path())?[0]);
    let path = folder.join("snapshot.json");
    let text = std::fs::read_to_string(&path)?;
    let other = text.replace(" microvm ", " microvm-of-another ");
    assert_ne!(text, other);
    std::fs::write(&path, other)?;
    let node = open(&root).await?;
    let jobs = node.list(&Scope::All, &JobFilter::default()).jobs.len();
    let refused = node.restore(snapshot.id, RestoreRequest::default()).await;
    let error = refused.err().context("it was taken")?;
    assert_eq!(
        (error.class(), error.code()),
        (ErrorClass::Conflict, "snapshot_incompatible")
    );
    let said = error.to_string();
    assert!(said.contains("microvm-of-another"), "{said}");
    assert_eq!(
        node.list(&Scope::All, &JobFilter::default()).jobs.len(),
        jobs
    );
    // The first one never noticed.
    wait(&node, &first, JobState::Running).await?;
    let last = *counts(&node, &first).await?.last().context("nothing")?;
    counted(&node, &first, last + 5).await?;
    close(&root, node).await
}

/// Who wants a job to end is heard while it is written down.
#[tokio::test]
async fn a_job_can_be_ended_while_it_is_written_down() -> Result<()> {
    for kill in [false, true] {
        let root = TestRoot::new()?;
        let node = open(&root).await?;
        let first = create(&node, counter(64)).await?;
        counted(&node, &first, 5).await?;
        let writing = {
            let (node, id) = (node.clone(), first.id);
            tokio::spawn(async move { node.snapshot(id, false).await })
        };
        let began = Instant::now();
        while folders(root.path())?.is_empty() {
            ensure!(began.elapsed() < LIMIT && !writing.is_finished());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let busy = node.snapshot(first.id, false).await;
        assert!(matches!(busy, Err(NodeError::Denied { .. })), "{busy:?}");
        let ended = if kill {
            node.kill(first.id, 9).await?
        } else {
            node.stop(first.id, None).await?
        };
        assert_eq!(ended.state, JobState::Exited, "{ended:?}");
        match writing.await? {
            // It was ready just before.
            Ok(snapshot) => node.remove_snapshot(snapshot.id).await?,
            Err(error) => assert_eq!(error.class(), ErrorClass::Conflict, "{error:?}"),
        }
        counts(&node, &first).await?;
        assert_eq!(node.snapshots(&Scope::All), []);
        assert_eq!(folders(root.path())?, Vec::<String>::new());
        close(&root, node).await?;
    }
    Ok(())
}
