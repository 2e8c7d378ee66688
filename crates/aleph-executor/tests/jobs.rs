//! A node over a hypervisor that does what a script says: what becomes of jobs when something
//! fails, when many come at once, and when their daemon goes and comes back.

use aleph_executor::lifecycle::Timeouts;
use aleph_executor::logs::LogQuery;
use aleph_executor::node::{CreateOptions, JobFilter, Scope};
use aleph_executor::{Node, NodeConfig, NodeError};
use aleph_testkit::{Guest, NoImages, Script, ScriptedDriver, TestRoot, Vmm};
use aleph_types::{
    Classify, ErrorClass, ExitStatus, Job, JobId, JobSpec, JobState, MiB, Mode, Restart,
};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

async fn open(state: &Path, driver: &Arc<ScriptedDriver>) -> Result<Node> {
    open_with(state, driver, |_| {}).await
}

/// The same with other settings.
async fn open_with(
    state: &Path,
    driver: &Arc<ScriptedDriver>,
    change: impl FnOnce(&mut NodeConfig),
) -> Result<Node> {
    let mut config = NodeConfig::new(aleph_executor::Paths::new(Some(state))?);
    config.executor.timeouts = Timeouts {
        boot: Duration::from_secs(30),
        quit: Duration::from_millis(300),
        kill: Duration::from_secs(30),
    };
    config.overcommit.cpus = 100_000.0;
    config.overcommit.memory = 1000.0;
    change(&mut config);
    let began = Instant::now();
    loop {
        let driver = Arc::clone(driver);
        match Node::with_driver(config.clone(), Arc::new(NoImages), driver).await {
            // The last tasks of the node before may still hold the lock for a moment.
            Err(NodeError::Owned(_)) if began.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return Ok(opened?),
        }
    }
}

fn spec(argv: &[&str]) -> JobSpec {
    JobSpec::new("x", argv.iter().map(|a| (*a).to_owned()).collect())
}

fn options(key: Option<&str>) -> CreateOptions {
    CreateOptions {
        account: "default".into(),
        start: true,
        idempotency_key: key.map(Into::into),
    }
}

async fn create(node: &Node, spec: JobSpec) -> Result<Job> {
    Ok(node.create(spec, options(None)).await?.job)
}

async fn wait(node: &Node, id: JobId, state: JobState) -> Result<Job> {
    let waited = tokio::time::timeout(LIMIT, node.wait(id, &[state])).await;
    Ok(waited.with_context(|| format!("{:?}", node.job(id)))??)
}

async fn log(node: &Node, id: JobId) -> Result<String> {
    let mut reader = node.logs(id, LogQuery::default()).await?;
    let mut text = Vec::new();
    while let Some(entry) = reader.next().await? {
        text.extend(entry.bytes);
    }
    Ok(String::from_utf8(text)?)
}

async fn leave(node: Node) {
    node.shutdown().await;
    drop(node);
}

async fn close(root: &TestRoot, node: Node) -> Result<()> {
    for job in node.list(&Scope::All, &JobFilter::default()).jobs {
        node.destroy(job.id, true).await?;
    }
    leave(node).await;
    let began = Instant::now();
    while !root.residue()?.is_empty() && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(root.residue()?, Vec::<String>::new());
    let logs = std::fs::read_dir(root.path().join("logs")).map_or(0, Iterator::count);
    assert_eq!(logs, 0, "logs are left");
    Ok(())
}

#[tokio::test]
async fn a_vm_for_more_cpus_than_a_machine_has_places_is_refused_as_it_is_made() -> Result<()> {
    let root = TestRoot::empty()?;
    let node = open(root.path(), &ScriptedDriver::with_computers([])).await?;
    let vm = |room| {
        let mut job = spec(&["true"]);
        (job.mode, job.resources.cpus) = (Mode::Vm, 2);
        let machine = job.machine.get_or_insert_default();
        machine.room.cpus = room;
        job
    };
    for start in [false, true] {
        let options = CreateOptions {
            start,
            ..options(None)
        };
        let refused = node.create(vm(254), options).await.err();
        let error = refused.context("it is made")?;
        assert_eq!(error.code(), "too_many_cpus");
        ensure!(error.to_string().contains("up to 256 CPUs"), "{error}");
        let advice = error.advice().unwrap_or_default();
        ensure!(
            advice.contains("255") && advice.contains("--max-cpus"),
            "{advice}"
        );
    }
    assert!(
        node.list(&Scope::All, &JobFilter::default())
            .jobs
            .is_empty()
    );
    let options = CreateOptions {
        start: false,
        ..options(None)
    };
    node.create(vm(253), options).await?;
    close(&root, node).await
}

#[tokio::test]
async fn every_start_that_fails_says_why_and_leaves_nothing() -> Result<()> {
    let vmm = |vmm| Script {
        vmm,
        ..Script::default()
    };
    let guest = |guest| Script {
        guest,
        ..Script::default()
    };
    for (script, image, argv, words) in [
        (vmm(Vmm::Broken), "x", "true", "is not installed"),
        (vmm(Vmm::Dies), "x", "true", "VMM"),
        (guest(Guest::Silent), "x", "true", "did not answer"),
        (
            guest(Guest::Fatal("no disk".into())),
            "x",
            "true",
            "no disk",
        ),
        (guest(Guest::Sends(vec![0xff; 64])), "x", "true", "protocol"),
        (Script::default(), "missing", "true", "there is no image"),
        (Script::default(), "x", "", "no command"),
    ] {
        let root = TestRoot::empty()?;
        let driver = ScriptedDriver::new([script]);
        let node = open_with(root.path(), &driver, |config| {
            // Who never answers is waited for to the end: not for long.
            if words == "did not answer" {
                config.executor.timeouts.boot = Duration::from_secs(5);
            }
        })
        .await?;
        let mut job = spec(&[argv]);
        job.image = image.into();
        job.command.retain(|word| !word.is_empty());
        let job = create(&node, job).await?;
        let failed = wait(&node, job.id, JobState::Failed).await?;
        let reason = failed.reason.unwrap_or_default();
        assert!(reason.contains(words), "{reason:?} has no {words:?}");
        assert!(failed.vm.is_none());
        assert_eq!(node.info()?.allocated.cpus, 0);
        // It can be started again once that is mended.
        if image == "x" && !argv.is_empty() {
            node.start(job.id).await?;
            wait(&node, job.id, JobState::Exited).await?;
        }
        close(&root, node).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_command_that_is_not_there_is_an_exit_code() -> Result<()> {
    let root = TestRoot::empty()?;
    let node = open(root.path(), &ScriptedDriver::new([])).await?;
    let job = create(&node, spec(&["nosuch"])).await?;
    let ended = wait(&node, job.id, JobState::Exited).await?;
    assert_eq!(ended.exit, Some(ExitStatus::Code(127)));
    assert!(
        ended
            .reason
            .is_some_and(|reason| reason.contains("not found"))
    );
    close(&root, node).await
}

#[tokio::test]
async fn fifty_identical_creates_make_one_job() -> Result<()> {
    let root = TestRoot::empty()?;
    let node = open(root.path(), &ScriptedDriver::new([])).await?;
    let mut same = spec(&["sleep"]);
    same.name = Some("web".into());
    let creates = (0..50).map(|_| {
        let (node, same) = (node.clone(), same.clone());
        tokio::spawn(async move { node.create(same, options(Some("key"))).await })
    });
    let mut made = Vec::new();
    for create in creates.collect::<Vec<_>>() {
        made.push(create.await??);
    }
    assert_eq!(made.iter().filter(|created| created.new).count(), 1);
    assert!(made.iter().all(|created| created.job.id == made[0].job.id));
    let other = node.create(spec(&["sleep"]), options(Some("key"))).await;
    assert_eq!(other.unwrap_err().code(), "idempotency_mismatch");
    // Over a new daemon, too.
    leave(node).await;
    let node = open(root.path(), &ScriptedDriver::new([])).await?;
    let again = node.create(same, options(Some("key"))).await?;
    assert!(!again.new && again.job.id == made[0].job.id);
    close(&root, node).await
}

#[tokio::test]
async fn jobs_go_on_where_they_were_when_their_daemon_comes_back() -> Result<()> {
    let root = TestRoot::empty()?;
    let driver = ScriptedDriver::new([]);
    let node = open(root.path(), &driver).await?;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(create(&node, spec(&["sleep"])).await?.id);
    }
    let mut boots = Vec::new();
    for id in &ids {
        boots.push(wait(&node, *id, JobState::Running).await?.guest_boot_id);
    }
    for _ in 0..3 {
        leave(node.clone()).await;
    }
    drop(node);
    let node = open(root.path(), &driver).await?;
    for (id, boot) in ids.iter().zip(boots) {
        let job = wait(&node, *id, JobState::Running).await?;
        ensure!(boot.is_some() && job.guest_boot_id == boot, "another guest");
    }
    let stopped = node.stop(ids[0], None).await?;
    assert_eq!(stopped.state, JobState::Exited);
    close(&root, node).await
}

#[tokio::test]
async fn a_vm_that_cannot_be_looked_at_is_let_be_until_it_goes_by_force() -> Result<()> {
    let root = TestRoot::empty()?;
    let driver = ScriptedDriver::new([]);
    let node = open(root.path(), &driver).await?;
    let id = create(&node, spec(&["sleep"])).await?.id;
    let vm = wait(&node, id, JobState::Running).await?.vm;
    leave(node).await;
    let vm = vm.context("no VM")?.to_string();
    let signature = root
        .paths()?
        .run()
        .join("vms")
        .join(&vm)
        .join("driver.json");
    std::fs::write(&signature, "torn")?;
    let node = open(root.path(), &driver).await?;
    // Every job is unknown until its node has looked.
    let began = Instant::now();
    loop {
        let held = node.job(id)?;
        let reason = held.reason.clone().unwrap_or_default();
        if held.state == JobState::Unknown && reason.contains("who launched its VMM") {
            break;
        }
        ensure!(began.elapsed() < LIMIT, "{held:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for refused in [
        node.stop(id, None).await.err(),
        node.destroy(id, false).await.err(),
    ] {
        let error = refused.context("it was done")?;
        assert_eq!(error.class(), ErrorClass::Conflict, "{error}");
    }
    // As it was: nobody has touched it.
    std::fs::remove_file(&signature)?;
    leave(node).await;
    let node = open(root.path(), &driver).await?;
    wait(&node, id, JobState::Running).await?;
    leave(node).await;
    std::fs::write(&signature, "torn")?;
    let node = open(root.path(), &driver).await?;
    wait(&node, id, JobState::Unknown).await?;
    node.destroy(id, true).await?;
    close(&root, node).await
}

#[tokio::test]
async fn a_host_that_lost_power_restarts_what_its_policy_says() -> Result<()> {
    let root = TestRoot::empty()?;
    let driver = ScriptedDriver::new([]);
    let node = open(root.path(), &driver).await?;
    let mut kept = spec(&["sleep"]);
    kept.restart.policy = Restart::UnlessStopped;
    let kept = create(&node, kept).await?.id;
    let lost = create(&node, spec(&["sleep"])).await?.id;
    for id in [kept, lost] {
        wait(&node, id, JobState::Running).await?;
    }
    leave(node).await;
    driver.end_all();
    let node = open(root.path(), &driver).await?;
    let failed = wait(&node, lost, JobState::Failed).await?;
    assert!(failed.reason.is_some_and(|r| r.contains("nobody saw")));
    let began = Instant::now();
    while node.job(kept)?.incarnation.get() < 2 && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let running = wait(&node, kept, JobState::Running).await?;
    assert_eq!((running.incarnation.get(), running.restarts), (2, 1));
    close(&root, node).await
}

#[tokio::test]
async fn a_reboot_of_the_host_is_no_restart_of_the_daemon() -> Result<()> {
    let root = TestRoot::empty()?;
    let driver = ScriptedDriver::new([]);
    let node = open(root.path(), &driver).await?;
    let mut kept = spec(&["sleep"]);
    kept.restart.policy = Restart::OnFailure;
    let kept = create(&node, kept).await?.id;
    let lost = create(&node, spec(&["sleep"])).await?.id;
    for id in [kept, lost] {
        wait(&node, id, JobState::Running).await?;
    }
    leave(node).await;
    // What the journal of a host that was rebooted says: another boot.
    let boot = aleph_executor::process::boot_id()?;
    let journal = rusqlite::Connection::open(root.path().join("state.db"))?;
    journal.execute(
        "UPDATE jobs SET record = replace(record, ?1, 'another boot')",
        [boot],
    )?;
    drop(journal);
    driver.end_all();
    let node = open(root.path(), &driver).await?;
    let failed = wait(&node, lost, JobState::Failed).await?;
    assert_eq!(failed.reason.as_deref(), Some("the host was restarted"));
    let began = Instant::now();
    while node.job(kept)?.incarnation.get() < 2 && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wait(&node, kept, JobState::Running).await?;
    close(&root, node).await
}

#[tokio::test]
async fn what_is_over_goes_by_itself_or_by_a_prune() -> Result<()> {
    let root = TestRoot::empty()?;
    let node = open(root.path(), &ScriptedDriver::new([])).await?;
    let mut fleeting = spec(&["exit", "0"]);
    fleeting.auto_destroy = true;
    let fleeting = create(&node, fleeting).await?.id;
    let gone = node.wait(fleeting, &[JobState::Destroyed]).await;
    // It may have gone before it could be waited for.
    assert!(matches!(gone, Ok(_) | Err(NodeError::NoJob(_))), "{gone:?}");
    let over = create(&node, spec(&["exit", "0"])).await?.id;
    wait(&node, over, JobState::Exited).await?;
    let runs = create(&node, spec(&["sleep"])).await?.id;
    wait(&node, runs, JobState::Running).await?;
    let hour = Duration::from_secs(3600);
    assert_eq!(node.prune_jobs(&Scope::All, hour, false).await?.0, []);
    let (would, bytes) = node.prune_jobs(&Scope::All, Duration::ZERO, true).await?;
    assert_eq!(would, [over]);
    assert!(bytes > 0 && node.job(over).is_ok());
    let pruned = node.prune_jobs(&Scope::All, Duration::ZERO, false).await?;
    assert_eq!(pruned, (vec![over], bytes));
    assert!(matches!(node.job(over), Err(NodeError::NoJob(_))));
    close(&root, node).await
}

#[tokio::test]
async fn what_nobody_owns_is_swept_when_a_node_opens() -> Result<()> {
    let root = TestRoot::empty()?;
    let driver = ScriptedDriver::new([]);
    leave(open(root.path(), &driver).await?).await;
    let paths = root.paths()?;
    for stray in [
        paths.vms().join("00000001"),
        paths.run().join("vms/00000002"),
        root.path().join("logs/00000000000000000000000000000003"),
    ] {
        std::fs::create_dir_all(&stray)?;
        std::fs::write(stray.join("kept"), "")?;
    }
    let node = open(root.path(), &driver).await?;
    close(&root, node).await
}

#[tokio::test]
async fn lists_have_filters_parts_and_an_order() -> Result<()> {
    let root = TestRoot::empty()?;
    let node = open(root.path(), &ScriptedDriver::new([])).await?;
    for n in 0..25 {
        let mut spec = spec(&["true"]);
        spec.name = Some(format!("job-{n:02}"));
        spec.labels = [("part".to_owned(), (n % 2).to_string())].into();
        let mut options = options(None);
        options.start = false;
        options.account = if n < 20 { "a" } else { "b" }.into();
        node.create(spec, options).await?;
    }
    let of_a = Scope::Account("a".into());
    let mut filter = JobFilter {
        limit: 7,
        labels: vec![("part".into(), Some("1".into()))],
        ..JobFilter::default()
    };
    let mut names = Vec::new();
    loop {
        let part = node.list(&of_a, &filter);
        names.extend(part.jobs.into_iter().map(|job| job.name));
        filter.cursor = part.cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    let wanted: Vec<_> = (0..20).rev().filter(|n| n % 2 == 1).collect();
    let wanted: Vec<_> = wanted.iter().map(|n| format!("job-{n:02}")).collect();
    assert_eq!(names, wanted);
    assert!(matches!(
        node.find(&of_a, "job-21"),
        Err(NodeError::NoJob(_))
    ));
    assert!(node.find(&Scope::Account("b".into()), "job-21").is_ok());
    close(&root, node).await
}

#[tokio::test]
async fn an_account_has_only_so_many_jobs() -> Result<()> {
    let root = TestRoot::empty()?;
    let mut config = NodeConfig::new(root.paths()?);
    config.jobs_per_account = 2;
    let driver = ScriptedDriver::new([]);
    let node = Node::with_driver(config, Arc::new(NoImages), driver).await?;
    let of = |account: &str| CreateOptions {
        account: account.into(),
        start: false,
        idempotency_key: None,
    };
    let first = node.create(spec(&["true"]), of("a")).await?.job;
    node.create(spec(&["true"]), of("a")).await?;
    let refused = node.create(spec(&["true"]), of("a")).await.unwrap_err();
    assert_eq!(refused.code(), "too_many_jobs");
    node.create(spec(&["true"]), of("b")).await?;
    node.destroy(first.id, false).await?;
    node.create(spec(&["true"]), of("a")).await?;
    close(&root, node).await
}

#[tokio::test]
async fn what_a_host_has_not_is_refused_with_what_is_missing() -> Result<()> {
    let root = TestRoot::empty()?;
    let node = open(root.path(), &ScriptedDriver::new([])).await?;
    let mut large = spec(&["true"]);
    large.resources.memory = MiB(u32::MAX / 2);
    let refused = node.create(large, options(None)).await.unwrap_err();
    assert_eq!(refused.class(), ErrorClass::Capacity);
    assert!(refused.to_string().contains("memory"), "{refused}");
    assert!(
        node.list(&Scope::All, &JobFilter::default())
            .jobs
            .is_empty()
    );
    close(&root, node).await
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_no_damage() -> Result<()> {
    let root = TestRoot::empty()?;
    let state = root.path().join("small");
    std::fs::create_dir(&state)?;
    let mount = |words: &[&str]| -> Result<()> {
        let done = std::process::Command::new(words[0])
            .args(&words[1..])
            .status()?;
        ensure!(done.success(), "{words:?}: {done}");
        Ok(())
    };
    let at = state.to_str().context("a path")?;
    mount(&["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", at])?;
    let tried = Box::pin(full_disk(&state)).await;
    mount(&["umount", "-l", at])?;
    tried
}

async fn full_disk(state: &Path) -> Result<()> {
    let driver = ScriptedDriver::new([]);
    let node = open(state, &driver).await?;
    let before = create(&node, spec(&["sleep"])).await?;
    wait(&node, before.id, JobState::Running).await?;
    let ballast = state.join("ballast");
    let filled = std::fs::write(&ballast, vec![1_u8; 8 << 20]);
    ensure!(filled.is_err(), "the disk is not full");
    let mut codes = Vec::new();
    for _ in 0..200 {
        match create(&node, spec(&["sleep"])).await {
            Ok(_) => {}
            Err(error) => {
                let error = error.downcast::<NodeError>()?;
                assert_eq!(error.class(), ErrorClass::Capacity, "{error}");
                assert!(error.advice().is_some());
                codes.push(error.code());
                break;
            }
        }
    }
    ensure!(!codes.is_empty(), "a full disk was never felt");
    assert_eq!(node.job(before.id)?.state, JobState::Running);
    std::fs::remove_file(&ballast)?;
    let after = create(&node, spec(&["exit", "4"])).await?;
    let ended = wait(&node, after.id, JobState::Exited).await?;
    assert_eq!(ended.exit, Some(ExitStatus::Code(4)));
    assert_eq!(log(&node, after.id).await?, "exit 4");
    leave(node).await;
    // What was promised is there.
    let node = open(state, &driver).await?;
    assert_eq!(node.job(after.id)?.exit, Some(ExitStatus::Code(4)));
    wait(&node, before.id, JobState::Running).await?;
    for job in node.list(&Scope::All, &JobFilter::default()).jobs {
        node.destroy(job.id, true).await?;
    }
    leave(node).await;
    Ok(())
}

/// The group of a VM stays busy for as long as there is another one in it, as it does where a killed process
/// takes its time: that of one VM until its removal is given up, that of the other until its node ends.
#[tokio::test]
async fn what_cannot_be_removed_is_tried_again_before_the_next_sweep() -> Result<()> {
    let root = TestRoot::new()?;
    let driver = ScriptedDriver::new([]);
    let node = open_with(root.path(), &driver, |config| {
        config.sweep_interval = Duration::from_secs(24 * 3600);
    })
    .await?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    let Some(top) = aleph_executor::cgroup::mount_point(&mountinfo) else {
        eprintln!("skipped: this host has no cgroup v2");
        return Ok(());
    };
    let tree = top.join(format!("aleph-{}", root.paths()?.name()));
    let mut held = Vec::new();
    for _ in 0..2 {
        let job = create(&node, spec(&["sleep", "1000"])).await?;
        let vm = wait(&node, job.id, JobState::Running).await?.vm;
        let vm = vm.context("no VM")?;
        let lingering = tree.join(vm.to_string()).join("lingering");
        std::fs::create_dir(&lingering)?;
        held.push((job.id, root.paths()?.vm_state(vm), lingering));
    }
    let [
        (first, first_place, first_group),
        (second, second_place, second_group),
    ] = &held[..]
    else {
        anyhow::bail!("{held:?}");
    };
    let (one, other) = tokio::join!(node.destroy(*first, true), node.destroy(*second, true));
    one?;
    other?;
    ensure!(
        first_place.exists() && second_place.exists(),
        "nothing was in the way"
    );
    std::fs::remove_dir(first_group)?;
    let began = Instant::now();
    while first_place.exists() {
        ensure!(began.elapsed() < LIMIT, "{:?}", root.residue()?);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensure!(second_place.exists(), "a busy group is gone");
    std::fs::remove_dir(second_group)?;
    close(&root, node).await
}
