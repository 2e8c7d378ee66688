//! A node with real VMs: jobs from their creation to their removal, and over the end of the
//! daemon that took them.

use aleph_executor::accel::Accelerator;
use aleph_executor::logs::LogQuery;
use aleph_executor::node::{CreateOptions, JobFilter, Scope};
use aleph_executor::{Node, NodeConfig, NodeError};
use aleph_testkit::{TestImages, TestRoot};
use aleph_types::{
    ExitStatus, GuestFile, Health, HealthCheck, Job, JobSpec, JobState, MiB, Mode, Probe, Restart,
};
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::Duration;

/// What only a hang exceeds, where five guests boot at once by emulation.
const LIMIT: Duration = Duration::from_secs(180);

async fn open(root: &TestRoot) -> Result<Node> {
    let mut config = NodeConfig::new(root.paths()?);
    config.executor.accelerator = Some(Accelerator::Tcg);
    config.reserved_memory = MiB(0);
    Ok(Node::open(config, Arc::new(TestImages::new(root)?)).await?)
}

fn options() -> CreateOptions {
    CreateOptions {
        account: "default".into(),
        start: true,
        idempotency_key: None,
    }
}

fn shell(script: &str) -> JobSpec {
    JobSpec::new("busybox", vec!["sh".into(), "-c".into(), script.into()])
}

async fn create(node: &Node, spec: JobSpec) -> Result<Job> {
    Ok(node.create(spec, options()).await?.job)
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

/// Waits for a condition, without holding up the node in this process.
async fn until(mut condition: impl FnMut() -> bool) -> bool {
    let began = std::time::Instant::now();
    while began.elapsed() < LIMIT {
        if condition() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// What a node leaves when it is gone and has no jobs.
async fn close(root: &TestRoot, node: Node) -> Result<()> {
    for job in node.list(&Scope::All, &JobFilter::default()).jobs {
        node.destroy(job.id, true).await?;
    }
    node.shutdown().await;
    drop(node);
    // Its last tasks let go of its folders a moment later.
    until(|| root.residue().is_ok_and(|left| left.is_empty())).await;
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_job_runs_ends_and_is_removed() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root).await?;
    let mut spec = shell("cat /etc/app/x; stat -c %a /etc/app/x; echo bad >&2; exit 3");
    spec.files.push(GuestFile {
        path: "/etc/app/x".into(),
        text: Some("content\n".into()),
        base64: None,
        mode: "0750".into(),
        uid: 0,
        gid: 0,
    });
    spec.name = Some("first".into());
    let job = create(&node, spec.clone()).await?;
    assert!(matches!(
        node.create(spec, options()).await,
        Err(NodeError::NameTaken(..))
    ));
    let ended = wait(&node, &job, JobState::Exited).await?;
    assert_eq!(ended.exit, Some(ExitStatus::Code(3)), "{ended:?}");
    assert_eq!(log(&node, &job).await?, "content\n750\nbad\n");
    assert!(ended.vm.is_none() && ended.boot_ms.is_some());
    assert_eq!(node.find(&Scope::All, "first")?, job.id);
    assert_eq!(node.find(&Scope::All, &job.id.short())?, job.id);
    let other = Scope::Account("other".into());
    assert!(matches!(
        node.find(&other, "first"),
        Err(NodeError::NoJob(_))
    ));
    let kinds: Vec<_> = node
        .stored_events(0, 100)
        .await?
        .into_iter()
        .map(|e| e.kind)
        .collect();
    assert_eq!(
        kinds,
        ["job.created", "job.starting", "job.running", "job.exited"]
    );
    let again = node.start(job.id).await?;
    assert_eq!(again.incarnation.get(), 2);
    wait(&node, &job, JobState::Exited).await?;
    close(&root, node).await
}

/// A q35 with our agent: its disks are found, its console and its end are heard, and it is adopted.
#[tokio::test]
async fn a_job_runs_in_a_whole_computer() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root).await?;
    let mut spec =
        shell("ls /sys/bus/pci/devices | wc -l; echo kept > /x; read -r word; cat /x; exit $word");
    (spec.mode, spec.stdin) = (Mode::Vm, true);
    spec.resources.memory = MiB(192);
    spec.resources.disk = MiB(32);
    let job = create(&node, spec).await?;
    let running = wait(&node, &job, JobState::Running).await?;
    assert_eq!(running.driver.as_deref(), Some("qemu/tcg"));
    let blueprint = root.paths()?.vm_state(running.vm.context("no VM")?);
    assert!(blueprint.join("machine/blueprint.json").exists());
    node.shutdown().await;
    drop(node);
    let node = loop {
        // The first one's last tasks may still hold the lock for a moment.
        match open(&root).await {
            Ok(opened) => break opened,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let after = wait(&node, &job, JobState::Running).await?;
    assert_eq!(
        (after.vm, after.guest_boot_id),
        (running.vm, running.guest_boot_id)
    );
    let input = loop {
        if let Some(input) = node.input(job.id)? {
            break input;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    input.write(b"5\n").await?;
    let ended = wait(&node, &job, JobState::Exited).await?;
    assert_eq!(ended.exit, Some(ExitStatus::Code(5)), "{ended:?}");
    let said = log(&node, &job).await?;
    let (devices, rest) = said.split_once('\n').context("nothing was said")?;
    // The host bridge, the ICH9's three, and what virtio has.
    assert!(devices.trim().parse::<u32>()? >= 8, "{said}");
    assert_eq!(rest, "kept\n");
    close(&root, node).await
}

#[tokio::test]
async fn a_guest_runs_on_over_its_daemons_end() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root).await?;
    let script = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; sleep 0.02; done; read -r x; exit 7";
    let mut spec = shell(script);
    spec.stdin = true;
    let job = create(&node, spec).await?;
    let before = wait(&node, &job, JobState::Running).await?;
    let second = open(&root).await;
    assert!(second.is_err_and(|error| error.to_string().contains("another node")));
    node.shutdown().await;
    drop(node);
    let node = loop {
        // The first one's last tasks may still hold the lock for a moment.
        match open(&root).await {
            Ok(opened) => break opened,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let after = wait(&node, &job, JobState::Running).await?;
    assert_eq!(after.guest_boot_id, before.guest_boot_id);
    assert_eq!(after.vm, before.vm);
    let mut attached = node.attach(job.id, true).await?;
    let mut text = String::new();
    while !text.contains("line 200\n") {
        let next = tokio::time::timeout(LIMIT, attached.output.next()).await??;
        text.push_str(&String::from_utf8_lossy(
            &next.context("the log ends")?.bytes,
        ));
    }
    let wanted: String = (1..=200).map(|n| format!("line {n}\n")).collect();
    assert_eq!(text, wanted);
    // Attached before the guest had answered, there is no input yet.
    let input = loop {
        if let Some(input) = node.input(job.id)? {
            break input;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    input.write(b"\n").await?;
    let ended = wait(&node, &job, JobState::Exited).await?;
    assert_eq!(ended.exit, Some(ExitStatus::Code(7)), "{ended:?}");
    close(&root, node).await
}

#[tokio::test]
async fn policies_health_and_deadlines_are_kept() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root).await?;
    let mut failing = shell("echo run; exit 1");
    failing.restart.policy = Restart::OnFailure;
    failing.restart.max_retries = Some(1);
    let failing = create(&node, failing).await?;
    let mut late = shell("sleep 1000");
    late.deadline_seconds = Some(1);
    late.stop_grace_seconds = 1;
    let late = create(&node, late).await?;
    let mut sick = shell("touch /tmp/ok; sleep 1000");
    sick.health = Some(HealthCheck {
        probe: Probe::Exec(vec!["test".into(), "-e".into(), "/tmp/ok".into()]),
        interval_seconds: 1,
        timeout_seconds: 5,
        retries: 1,
        start_period_seconds: 0,
        restart_unhealthy: false,
    });
    let sick = create(&node, sick).await?;
    let mut serving = shell("mkdir /www; echo hi > /www/up; httpd -f -p 127.0.0.1:80 -h /www");
    serving.health = Some(HealthCheck {
        probe: Probe::Http {
            port: 80,
            path: "/up".into(),
        },
        interval_seconds: 1,
        timeout_seconds: 5,
        retries: 3,
        start_period_seconds: 0,
        restart_unhealthy: false,
    });
    let mut closed = serving.clone();
    closed.health = closed.health.map(|check| HealthCheck {
        probe: Probe::Tcp { port: 81 },
        retries: 1,
        restart_unhealthy: true,
        ..check
    });
    let (serving, closed) = (create(&node, serving).await?, create(&node, closed).await?);
    let healthy = || {
        let job = node.job(serving.id);
        job.is_ok_and(|job| job.health == Some(Health::Healthy))
    };
    assert!(until(healthy).await);
    let ended = wait(&node, &closed, JobState::Failed).await?;
    assert!(ended.reason.is_some_and(|r| r.contains("health")));
    let ended = wait(&node, &failing, JobState::Exited).await?;
    assert_eq!((ended.restarts, ended.incarnation.get()), (1, 2));
    assert_eq!(log(&node, &failing).await?, "run\nrun\n");
    let ended = wait(&node, &late, JobState::Failed).await?;
    assert!(ended.reason.is_some_and(|r| r.contains("deadline")));
    let health = |wanted| {
        let (node, id) = (node.clone(), sick.id);
        move || node.job(id).is_ok_and(|job| job.health == Some(wanted))
    };
    assert!(until(health(Health::Healthy)).await);
    let request = aleph_executor::guest::ExecRequest::new(["rm", "/tmp/ok"]);
    node.exec(sick.id, &request)?.collect().await?;
    assert!(until(health(Health::Unhealthy)).await);
    node.pause(sick.id).await?;
    assert!(matches!(
        node.exec(sick.id, &request),
        Err(NodeError::Denied { .. })
    ));
    node.resume(sick.id).await?;
    assert!(matches!(
        node.destroy(sick.id, false).await,
        Err(NodeError::Live(_))
    ));
    let stopped = node.stop(sick.id, Some(Duration::from_secs(1))).await?;
    assert_eq!(stopped.state, JobState::Exited);
    let stats = node.stats(sick.id).await;
    assert!(matches!(stats, Err(NodeError::Denied { .. })));
    close(&root, node).await
}
