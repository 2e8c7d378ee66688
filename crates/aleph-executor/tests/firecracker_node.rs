//! A node over Firecracker: what is above the driver knows nothing of it. Guests are real, over what
//! stands for Firecracker, in the open and in jails.

use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver};
use aleph_executor::guest::ExecRequest;
use aleph_executor::logs::LogQuery;
use aleph_executor::node::{CreateOptions, JobFilter, Scope};
use aleph_executor::process::Identity;
use aleph_executor::volumes::Owner;
use aleph_executor::{Node, NodeConfig, NodeError};
use aleph_testkit::{TestImages, TestRoot};
use aleph_types::{
    Classify, ExitStatus, ForkRequest, Incarnation, Job, JobId, JobSpec, JobState, MiB,
    RestoreRequest, VolumeAccess, VolumeCreate, VolumeMount,
};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(120);

/// What the doubles stand for: the one that a node would install, the newest, and one whose guests may
/// hear late of a snapshot.
const VERSION: &str = "1.15.1";
const NEWEST: &str = "1.17.0";
const OLDER: &str = "1.12.1";

/// Counts with a file on its disk, and draws a number of the kernel's with each step.
const COUNTER: &str = "echo kept > /root/file; echo $$ > /root/pid; i=0; while :; do i=$((i+1)); \
     read -r uuid < /proc/sys/kernel/random/uuid; echo count $i $uuid; sleep 0.05; done";

fn main() {
    let root = rustix::process::geteuid().is_root();
    let mut trials = Vec::new();
    let mut add = |name: &str, places: &[Place], test: fn(&Host) -> Result<()>| {
        for &(suffix, version, is_jailed) in places {
            let run = move || {
                let tested = Host::new(version, is_jailed).and_then(|host| test(&host));
                tested.map_err(|error| format!("{error:?}").into())
            };
            let trial = Trial::test(format!("{name}{suffix}"), run);
            trials.push(match is_jailed && !root {
                false => trial,
                true => trial.with_kind("needs root").with_ignored_flag(true),
            });
        }
    };
    let open = ("", VERSION, false);
    let older = ("_of_1_12", OLDER, false);
    let jailed = ("_in_jails", VERSION, true);
    let newest = ("_of_1_17_in_jails", NEWEST, true);
    add(
        "jobs_run_and_their_words_and_codes_come",
        &[open, jailed],
        runs,
    );
    add(
        "jobs_go_on_after_the_daemons_end",
        &[open, jailed],
        is_adopted,
    );
    add(
        "jobs_go_on_from_snapshots",
        &[older, jailed, newest],
        goes_on_from_a_snapshot,
    );
    add(
        "a_further_snapshot_takes_what_has_changed",
        &[open],
        writes_down_what_has_changed,
    );
    add(
        "input_arrives_whole_as_guests_are_written_down",
        &[open, older],
        is_fed,
    );
    add(
        "jobs_are_forked_and_go_on_themselves",
        &[older, jailed],
        forks,
    );
    add(
        "a_vmm_that_is_killed_fails_its_job",
        &[jailed],
        fails_with_its_vmm,
    );
    add(
        "a_guest_that_never_answers_can_be_killed",
        &[jailed],
        is_killed_in_boot,
    );
    add(
        "an_idle_guest_gives_memory_back",
        &[jailed],
        gives_memory_back,
    );
    add(
        "volumes_outlive_their_jobs",
        &[open, jailed],
        mounts_volumes,
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Where a test runs: what its name ends with, the version, and whether in jails.
type Place = (&'static str, &'static str, bool);

/// A root, and what runs its VMs.
struct Host {
    root: TestRoot,
    program: PathBuf,
    jail: Option<(Jails, PathBuf)>,
}

impl Host {
    fn new(version: &str, is_jailed: bool) -> Result<Self> {
        let root = TestRoot::new()?;
        let program = aleph_testkit::firecracker_double(version)?;
        let jail = if is_jailed {
            let jails = Jails::open(&root.path().join("jail"), UidRange::default())?;
            Some((jails, aleph_testkit::jailer_double(version)?))
        } else {
            None
        };
        Ok(Self {
            root,
            program,
            jail,
        })
    }

    async fn open(&self) -> Result<Node> {
        self.open_with(|_| {}, |_| {}).await
    }

    /// The same with other settings.
    async fn open_with(
        &self,
        set: fn(&mut DriverConfig),
        change: fn(&mut NodeConfig),
    ) -> Result<Node> {
        let mut config = DriverConfig {
            program: self.program.clone(),
            jail: self.jail.clone(),
            needs_kvm: false,
            ..DriverConfig::default()
        };
        set(&mut config);
        let driver = Arc::new(FirecrackerDriver::new(config));
        let began = Instant::now();
        loop {
            let mut config = NodeConfig::new(self.root.paths()?);
            config.reserved_memory = MiB(0);
            change(&mut config);
            let images = Arc::new(TestImages::new(&self.root)?);
            match Node::with_driver(config, images, driver.clone()).await {
                // The last tasks of the node before may still hold the lock for a moment.
                Err(NodeError::Owned(_)) if began.elapsed() < LIMIT => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                opened => return Ok(opened?),
            }
        }
    }

    async fn close(&self, node: Node) -> Result<()> {
        for job in node.list(&Scope::All, &JobFilter::default()).jobs {
            node.destroy(job.id, true).await?;
        }
        for snapshot in node.snapshots(&Scope::All) {
            node.remove_snapshot(snapshot.id).await?;
        }
        leave(node).await;
        let began = Instant::now();
        while !self.root.residue()?.is_empty() && began.elapsed() < LIMIT {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.root.residue()?, Vec::<String>::new());
        if let Some((jails, _)) = &self.jail {
            assert!(jails.vms()?.is_empty(), "a jail is left");
        }
        Ok(())
    }

    /// The process of a job's VMM.
    fn vmm(&self, job: &Job) -> Result<Identity> {
        let vm = job.vm.context("no VM")?;
        let record = self.root.paths()?.vm_state(vm).join("vmm.json");
        Ok(serde_json::from_slice(&std::fs::read(record)?)?)
    }
}

async fn leave(node: Node) {
    node.shutdown().await;
    drop(node);
}

fn block_on(test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(test)
}

fn shell(script: &str, disk: u32) -> JobSpec {
    let command = ["sh", "-c", script].map(String::from).to_vec();
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
        let step = line.strip_prefix("count ");
        let step = step.and_then(|rest| rest.split_once(' '));
        let (number, uuid) = step.with_context(|| format!("{line:?}"))?;
        Ok((number.parse()?, uuid.to_owned()))
    });
    let steps: Vec<_> = steps.collect::<Result<_>>()?;
    let is_whole = steps.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1);
    ensure!(is_whole, "lost or doubled: {steps:?}");
    Ok(steps)
}

/// Waits until a job has counted on beyond a number, and gives all that it has counted to.
async fn counted(node: &Node, job: &Job, beyond: u64) -> Result<Vec<(u64, String)>> {
    let began = Instant::now();
    loop {
        let steps = steps(node, job).await?;
        if steps.last().is_some_and(|(last, _)| *last > beyond) {
            return Ok(steps);
        }
        ensure!(began.elapsed() < LIMIT, "{:?} {steps:?}", node.job(job.id));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn said(node: &Node, job: &Job, script: &str) -> Result<String> {
    let request = ExecRequest::new(["sh", "-c", script]);
    let ran = node.exec(job.id, &request)?.collect();
    let (stdout, stderr, status) = tokio::time::timeout(LIMIT, ran).await??;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status == ExitStatus::Code(0), "{stderr}");
    Ok(String::from_utf8(stdout)?)
}

fn runs(host: &Host) -> Result<()> {
    block_on(async {
        let node = host.open().await?;
        let script = "echo out; echo err >&2; echo kept > /root/file && cat /root/file; exit 3";
        let job = create(&node, shell(script, 64)).await?;
        let ended = wait(&node, &job, JobState::Exited).await?;
        assert_eq!(ended.exit, Some(ExitStatus::Code(3)), "{ended:?}");
        assert!(ended.boot_ms.is_some(), "{ended:?}");
        let text = log(&node, &job).await?;
        for line in ["out\n", "err\n", "kept\n"] {
            assert!(text.contains(line), "{text:?}");
        }
        let job = create(&node, shell(COUNTER, 0)).await?;
        counted(&node, &job, 3).await?;
        assert_eq!(said(&node, &job, "cat /root/file").await?, "kept\n");
        node.pause(job.id).await?;
        assert_eq!(node.job(job.id)?.state, JobState::Paused);
        node.resume(job.id).await?;
        let last = steps(&node, &job).await?.len();
        counted(&node, &job, u64::try_from(last)? + 3).await?;
        let stopped = node.stop(job.id, None).await?;
        assert_eq!(stopped.state, JobState::Exited, "{stopped:?}");
        host.close(node).await
    })
}

/// A job that has the volume `data` at `/srv`.
fn with_volume(script: &str, read_only: bool) -> JobSpec {
    let mut spec = shell(script, 0);
    spec.volumes.push(VolumeMount {
        name: "data".into(),
        path: "/srv".into(),
        read_only,
        create: (!read_only).then_some(VolumeCreate {
            size: Some(MiB(64)),
            filesystem: None,
        }),
    });
    spec
}

async fn refused(node: &Node, spec: JobSpec) -> Result<&'static str> {
    match create(node, spec).await {
        Ok(job) => anyhow::bail!("taken: {job:?}"),
        Err(error) => Ok(error.downcast::<NodeError>()?.code()),
    }
}

fn mounts_volumes(host: &Host) -> Result<()> {
    block_on(async {
        let mut node = host.open().await?;
        let script = "echo kept > /srv/file; echo $$ > /root/up; exec sleep 1000";
        let writer = create(&node, with_volume(script, false)).await?;
        assert_eq!(writer.made_volumes.len(), 1, "{writer:?}");
        wait(&node, &writer, JobState::Running).await?;
        let seen = "until [ -e /root/up ]; do sleep 0.1; done; cat /srv/file";
        assert_eq!(said(&node, &writer, seen).await?, "kept\n");
        // A name in a jail and an open file count as locks, whatever the record says.
        assert_eq!(
            refused(&node, with_volume("true", false)).await?,
            "volume_attached"
        );
        let owner = Owner {
            job: JobId::random(),
            incarnation: Incarnation::default(),
        };
        node.volumes().recover(|_| false)?;
        let stolen = node
            .volumes()
            .attach("default", "data", &owner, VolumeAccess::Exclusive);
        let kept = stolen.err().context("it was given to another one")?;
        assert_eq!(kept.code(), "volume_attached");
        // It outlives the node, with its lease.
        leave(node).await;
        node = host.open().await?;
        wait(&node, &writer, JobState::Running).await?;
        assert_eq!(
            refused(&node, with_volume("true", true)).await?,
            "volume_attached"
        );
        assert_eq!(
            said(&node, &writer, "echo more >> /srv/file; cat /srv/file").await?,
            "kept\nmore\n"
        );
        node.stop(writer.id, None).await?;
        let data = node.volumes().named("default", "data")?;
        assert!(data.leases.is_empty(), "{data:?}");

        // Two read at once, and one that ends by itself has written all out.
        let mut readers = Vec::new();
        for _ in 0..2 {
            let script = "cat /srv/file; touch /srv/x || exec sleep 1000";
            readers.push(create(&node, with_volume(script, true)).await?);
        }
        for reader in &readers {
            wait(&node, reader, JobState::Running).await?;
            let began = Instant::now();
            while !log(&node, reader).await?.contains("Read-only") {
                ensure!(began.elapsed() < LIMIT, "{}", log(&node, reader).await?);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(log(&node, reader).await?.contains("kept\nmore\n"));
            node.stop(reader.id, Some(Duration::ZERO)).await?;
        }
        let last = create(&node, with_volume("cat /srv/file; rm /srv/file", false)).await?;
        wait(&node, &last, JobState::Exited).await?;
        assert!(log(&node, &last).await?.contains("more"));
        let data = node.volumes().named("default", "data")?;
        assert!(!data.unclean, "{data:?}");

        // Layers over others are none that Firecracker reads.
        node.volumes().snapshot(data.id, "one")?;
        if node.volumes().depth(data.id)? > 1 {
            assert_eq!(
                refused(&node, with_volume("true", false)).await?,
                "volume_layers"
            );
        }
        host.close(node).await
    })
}

fn is_adopted(host: &Host) -> Result<()> {
    block_on(async {
        let node = host.open().await?;
        let job = create(&node, shell(COUNTER, 64)).await?;
        let last = counted(&node, &job, 3).await?.len();
        leave(node).await;
        let node = host.open().await?;
        wait(&node, &job, JobState::Running).await?;
        // What it wrote while nobody was there is there, too.
        let on = counted(&node, &job, u64::try_from(last)? + 5).await?;
        assert_eq!(on[0].0, 1);
        assert_eq!(said(&node, &job, "cat /root/file").await?, "kept\n");
        node.pause(job.id).await?;
        leave(node).await;
        let node = host.open().await?;
        let began = Instant::now();
        while node.job(job.id)?.state != JobState::Paused {
            ensure!(began.elapsed() < LIMIT, "{:?}", node.job(job.id));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let last = steps(&node, &job).await?.len();
        node.resume(job.id).await?;
        counted(&node, &job, u64::try_from(last)? + 5).await?;
        host.close(node).await
    })
}

fn goes_on_from_a_snapshot(host: &Host) -> Result<()> {
    block_on(async {
        let node = host.open().await?;
        let first = create(&node, shell(COUNTER, 64)).await?;
        counted(&node, &first, 5).await?;
        let snapshot = node.snapshot(first.id, true).await?;
        let ended = node.job(first.id)?;
        assert_eq!(ended.state, JobState::Exited, "{ended:?}");
        let last = steps(&node, &first).await?.last().context("nothing")?.0;
        leave(node).await;
        let node = host.open().await?;
        let again = node.restore(snapshot.id, RestoreRequest::default()).await?;
        let running = wait(&node, &again, JobState::Running).await?;
        assert!(running.boot_ms.is_some() && again.id != first.id);
        let after = counted(&node, &again, last + 5).await?;
        // Where the log of the first one ends, that of the second begins, but for half a line.
        let begins = after[0].0;
        assert!((last + 1..=last + 2).contains(&begins), "{last} {begins}");
        assert_eq!(said(&node, &again, "cat /root/file").await?, "kept\n");
        let name = said(&node, &again, "hostname").await?;
        assert_eq!(name.trim(), again.id.hostname());
        // It is a job as any other: adopted by the next daemon, and its log goes on.
        leave(node).await;
        let node = host.open().await?;
        wait(&node, &again, JobState::Running).await?;
        let on = counted(&node, &again, begins + u64::try_from(after.len())? + 10).await?;
        assert_eq!(on[0].0, begins);
        host.close(node).await
    })
}

/// A job that is fed without a pause, while its guest is written down, hears each line once, and the end.
fn is_fed(host: &Host) -> Result<()> {
    block_on(async {
        let node = host.open().await?;
        let mut spec = shell("while read -r line; do echo count $line; done", 0);
        spec.stdin = true;
        let job = create(&node, spec).await?;
        wait(&node, &job, JobState::Running).await?;
        let began = Instant::now();
        let input = loop {
            if let Some(input) = node.input(job.id)? {
                break input;
            }
            ensure!(began.elapsed() < LIMIT, "it takes no input");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let enough = Arc::new(AtomicBool::new(false));
        let feeding = tokio::spawn({
            let enough = Arc::clone(&enough);
            async move {
                let mut last = 0;
                while !enough.load(Ordering::SeqCst) {
                    last += 1;
                    input.write(format!("{last} x\n").as_bytes()).await?;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                input.close()?;
                Ok::<_, anyhow::Error>(last)
            }
        });
        for _ in 0..2 {
            let last = steps(&node, &job).await?.last().map_or(0, |step| step.0);
            counted(&node, &job, last + 5).await?;
            node.snapshot(job.id, false).await?;
        }
        let last = steps(&node, &job).await?.last().map_or(0, |step| step.0);
        counted(&node, &job, last + 5).await?;
        enough.store(true, Ordering::SeqCst);
        let fed = feeding.await??;
        let ended = wait(&node, &job, JobState::Exited).await?;
        assert_eq!(ended.exit, Some(ExitStatus::Code(0)), "{ended:?}");
        let heard = steps(&node, &job).await?;
        assert_eq!(heard.first().map(|step| step.0), Some(1));
        assert_eq!(heard.last().map(|step| step.0), Some(fed));
        host.close(node).await
    })
}

/// Without a disk: the second snapshot is the guest's memory alone.
fn writes_down_what_has_changed(host: &Host) -> Result<()> {
    block_on(async {
        let tracks = |config: &mut DriverConfig| config.track_dirty_pages = true;
        let node = host.open_with(tracks, |_| {}).await?;
        let job = create(&node, shell(COUNTER, 0)).await?;
        counted(&node, &job, 5).await?;
        let first = node.snapshot(job.id, false).await?;
        said(&node, &job, "echo changed > /root/file").await?;
        let last = steps(&node, &job).await?.last().context("nothing")?.0;
        counted(&node, &job, last + 5).await?;
        let second = node.snapshot(job.id, false).await?;
        // The first one is not touched by what came later.
        for (snapshot, kept) in [(second, "changed\n"), (first, "kept\n")] {
            let again = node.restore(snapshot.id, RestoreRequest::default()).await?;
            wait(&node, &again, JobState::Running).await?;
            assert_eq!(said(&node, &again, "cat /root/file").await?, kept);
            let begins = counted(&node, &again, 0).await?[0].0;
            assert_eq!(begins > last, kept == "changed\n", "{begins} {last}");
        }
        // Told once a minute, of which most is over.
        let began = Instant::now();
        loop {
            let told = node.stats(job.id).await?.vmm.unwrap_or_default();
            let took = ["full", "diff"].map(|kind| {
                let name = format!("latencies_us.{kind}_create_snapshot");
                told.get(&name).copied().unwrap_or(0)
            });
            if took.iter().all(|took| *took > 0) {
                break;
            }
            ensure!(began.elapsed() < LIMIT, "{told:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        host.close(node).await
    })
}

fn forks(host: &Host) -> Result<()> {
    block_on(async {
        let node = host.open().await?;
        let first = create(&node, shell(COUNTER, 64)).await?;
        counted(&node, &first, 5).await?;
        let request = ForkRequest {
            copies: 2,
            ..ForkRequest::default()
        };
        let forked = node.fork(first.id, request).await?;
        assert_eq!(forked.jobs.len(), 2);
        let (mut begins, mut drawn, mut who) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        for job in &forked.jobs {
            wait(&node, job, JobState::Running).await?;
            let from = counted(&node, job, 0).await?[0].0;
            let steps = counted(&node, job, from + 10).await?;
            begins.insert(from);
            // The first may have been drawn before the moment, and be written after it.
            drawn.extend(steps.into_iter().skip(1).map(|(_, uuid)| uuid));
            let script = "cat /etc/hostname /etc/machine-id /run/aleph/generation";
            let said = said(&node, job, script).await?;
            who.extend(said.lines().map(str::to_owned));
        }
        assert_eq!(begins.len(), 1, "they go on from {begins:?}");
        assert_eq!(who.len(), 6, "{who:?}");
        // The first one is what it was, and goes on over another connection.
        let begins = begins.first().copied().context("none")?;
        let all = counted(&node, &first, begins + 10).await?;
        assert_eq!(all[0].0, 1);
        let (before, after) = all.split_at(usize::try_from(begins)?);
        assert!(!before.is_empty());
        drawn.extend(after.iter().map(|(_, uuid)| uuid.clone()));
        let different: BTreeSet<_> = drawn.iter().collect();
        assert_eq!(different.len(), drawn.len(), "two drew the same numbers");
        assert_eq!(said(&node, &first, "cat /root/file").await?, "kept\n");
        // Once more, and its end is that of its command.
        let kept = node.snapshot(first.id, false).await?;
        let last = steps(&node, &first).await?.last().context("nothing")?.0;
        counted(&node, &first, last + 5).await?;
        node.remove_snapshot(kept.id).await?;
        // What kills it ends with it: its own end may not come to be told.
        let kill = ExecRequest::new(["sh", "-c", "kill -9 $(cat /root/pid)"]);
        let _kill = node.exec(first.id, &kill)?;
        let ended = wait(&node, &first, JobState::Exited).await?;
        assert_eq!(ended.exit, Some(ExitStatus::Signal(9)), "{ended:?}");
        host.close(node).await
    })
}

fn fails_with_its_vmm(host: &Host) -> Result<()> {
    block_on(async {
        let node = host.open().await?;
        let job = create(&node, shell(COUNTER, 0)).await?;
        counted(&node, &job, 1).await?;
        let job = node.job(job.id)?;
        let pid = rustix::process::Pid::from_raw(host.vmm(&job)?.pid).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        let failed = wait(&node, &job, JobState::Failed).await?;
        let reason = failed.reason.clone().unwrap_or_default();
        assert!(
            reason.contains("VMM") && reason.contains("signal 9"),
            "{reason}"
        );
        assert!(failed.vm.is_none(), "{failed:?}");
        host.close(node).await
    })
}

/// It hangs before it listens: with no root to go on with, its kernel stops where it panics.
fn is_killed_in_boot(host: &Host) -> Result<()> {
    block_on(async {
        let words = |config: &mut DriverConfig| {
            config.kernel_arguments = "rdinit=/nothing panic=0".into();
        };
        let node = host.open_with(words, |_| {}).await?;
        let job = create(&node, shell(COUNTER, 0)).await?;
        wait(&node, &job, JobState::Starting).await?;
        let began = Instant::now();
        while host.vmm(&node.job(job.id)?).is_err() {
            ensure!(began.elapsed() < LIMIT, "{:?}", node.job(job.id));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Well before its boot has taken too long.
        let limit = NodeConfig::new(host.root.paths()?).executor.timeouts.boot / 2;
        let killed = tokio::time::timeout(limit, node.kill(job.id, 9)).await??;
        assert!(killed.boot_ms.is_none(), "{killed:?}");
        assert!(killed.state.is_over(), "{killed:?}");
        leave(node).await;
        let quick: fn(&mut NodeConfig) =
            |config| config.executor.timeouts.boot = Duration::from_secs(1);
        let node = host.open_with(words, quick).await?;
        let job = create(&node, shell(COUNTER, 0)).await?;
        let failed = wait(&node, &job, JobState::Failed).await?;
        let reason = failed.reason.unwrap_or_default();
        assert!(reason.contains("did not answer"), "{reason}");
        host.close(node).await
    })
}

/// What a guest's kernel keeps of files is the host's again once the guest has nothing to do.
fn gives_memory_back(host: &Host) -> Result<()> {
    block_on(async {
        let often: fn(&mut NodeConfig) =
            |config| config.reclaim_after = Some(Duration::from_secs(3));
        let node = host.open_with(|_| {}, often).await?;
        let script = "dd if=/dev/zero of=/root/file bs=1M count=80 2> /dev/null; sync; \
             cat /root/file | wc -c; exec sleep 1000";
        let mut spec = shell(script, 128);
        spec.resources.memory = MiB(192);
        let job = create(&node, spec).await?;
        let began = Instant::now();
        while !log(&node, &job).await?.contains("83886080") {
            ensure!(began.elapsed() < LIMIT, "{:?}", node.job(job.id));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let vmm = host.vmm(&node.job(job.id)?)?;
        let most = memory_of_guest(vmm.pid)?;
        ensure!(most > MiB(80), "{most:?}");
        // A good part of the file.
        let began = Instant::now();
        while memory_of_guest(vmm.pid)?.0 > most.0 - 40 {
            let now = memory_of_guest(vmm.pid)?;
            ensure!(began.elapsed() < LIMIT, "{now:?} of {most:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // It may have it again: nobody had to die for it.
        assert_eq!(said(&node, &job, "wc -c < /root/file").await?, "83886080\n");
        host.close(node).await
    })
}

/// What the emulator beneath what stands for Firecracker has in memory.
fn memory_of_guest(vmm: i32) -> Result<MiB> {
    let children = std::fs::read_to_string(format!("/proc/{vmm}/task/{vmm}/children"))?;
    let child = children.split_ascii_whitespace().next();
    let child = child.context("it has no guest")?;
    let status = std::fs::read_to_string(format!("/proc/{child}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("RssShmem:"));
    let kib = kib.and_then(|rest| rest.split_ascii_whitespace().next());
    Ok(MiB(kib.context("no figure")?.parse::<u32>()? / 1024))
}
