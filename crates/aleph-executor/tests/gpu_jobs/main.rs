//! Jobs with GPUs on a node over a hypervisor that does what a script says, and the recorded tree of a
//! host with eight data-centre GPUs: who is taken and who is told why not, and that GPUs come back
//! whatever ends a start. A machine that is really given one is in `gpu_job` of `aleph-cli`.

mod own_disk;

use aleph_executor::gpu::{HostTree, Nvml, NvmlError, NvmlGpu, Record};
use aleph_executor::lifecycle::Timeouts;
use aleph_executor::node::{CreateOptions, JobFilter, Scope};
use aleph_executor::volumes::NewVolume;
use aleph_executor::{Node, NodeConfig, NodeError};
use aleph_testkit::{Guest, NoImages, Script, ScriptedDriver, TestRoot, Vmm, expand_pci_tree};
use aleph_types::{
    Classify, CloudInitSpec, ErrorClass, Filesystem, HugePages, Job, JobId, JobResize, JobSpec,
    JobState, MiB, Mode, NetworkMode, Restart,
};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(60);

/// Eight H200, which a driver of the host has.
const HGX: &str = include_str!("../gpu/hgx_h200.txt");

/// A node's root, and the host that it is on.
struct World {
    root: TestRoot,
    tree: HostTree,
}

impl World {
    /// A host whose files take what is written and do nothing. `free`: its GPUs are bound to a driver
    /// for guests, as the kernel would have done.
    fn new(free: bool) -> Result<Self> {
        let root = TestRoot::empty()?;
        let host = root.path().join("host");
        let description = match free {
            true => HGX.replace("driver=nvidia", "driver=vfio-pci"),
            false => HGX.to_owned(),
        };
        expand_pci_tree(&description, &host)?;
        let tree = HostTree::recorded(&host);
        fs::create_dir_all(tree.dev.join("vfio"))?;
        for group in 0..60 {
            fs::write(tree.dev.join(format!("vfio/{group}")), "")?;
        }
        fs::write(tree.sys.join("bus/pci/drivers_probe"), "")?;
        Ok(Self { root, tree })
    }

    async fn open(&self, driver: &Arc<ScriptedDriver>) -> Result<Node> {
        open(self.root.path(), driver, true).await
    }

    /// Who has how many GPUs, and how many are in quarantine.
    fn record(&self) -> Result<(Vec<(String, usize)>, usize)> {
        let Ok(text) = fs::read(self.tree.record.join("record.json")) else {
            return Ok((Vec::new(), 0));
        };
        let record: Record = serde_json::from_slice(&text)?;
        let tenants = record.tenants.iter().map(|(tenant, groups)| {
            let gpus = groups.iter().map(|group| group.gpus.len()).sum();
            (tenant.job.clone(), gpus)
        });
        Ok((tenants.collect(), record.quarantines.len()))
    }

    async fn close(self, node: Node) -> Result<()> {
        for job in node.list(&Scope::All, &JobFilter::default()).jobs {
            node.destroy(job.id, true).await?;
        }
        assert_eq!(self.record()?, (Vec::new(), 0));
        node.shutdown().await;
        drop(node);
        fs::remove_dir_all(self.root.path().join("host"))?;
        let began = Instant::now();
        while !self.root.residue()?.is_empty() && began.elapsed() < LIMIT {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.root.residue()?, Vec::<String>::new());
        Ok(())
    }
}

async fn open(state: &Path, driver: &Arc<ScriptedDriver>, enabled: bool) -> Result<Node> {
    open_as(state, driver, |config| {
        config.executor.gpu.enabled = enabled;
    })
    .await
}

async fn open_as(
    state: &Path,
    driver: &Arc<ScriptedDriver>,
    how: impl FnOnce(&mut NodeConfig),
) -> Result<Node> {
    let mut config = NodeConfig::new(aleph_executor::Paths::new(Some(state))?);
    config.executor.gpu.enabled = true;
    config.executor.timeouts = Timeouts {
        boot: Duration::from_secs(30),
        quit: Duration::from_millis(300),
        kill: Duration::from_secs(30),
    };
    config.overcommit.cpus = 100_000.0;
    config.overcommit.memory = 1000.0;
    config.host_tree = HostTree::recorded(&state.join("host"));
    config.gpu_patience = Duration::from_secs(10);
    how(&mut config);
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

fn spec(word: &str, gpus: &str) -> Result<JobSpec> {
    let mut spec = JobSpec::new("x", vec![word.into()]);
    spec.gpus = Some(gpus.parse()?);
    Ok(spec)
}

async fn create(node: &Node, spec: JobSpec) -> Result<Job, NodeError> {
    let options = CreateOptions {
        account: "default".into(),
        start: true,
        idempotency_key: None,
    };
    Ok(node.create(spec, options).await?.job)
}

async fn refused(node: &Node, gpus: &str) -> Result<NodeError> {
    match create(node, spec("sleep", gpus)?).await {
        Ok(job) => bail!("{job:?}"),
        Err(error) => Ok(error),
    }
}

async fn wait(node: &Node, id: JobId, state: JobState) -> Result<Job> {
    let waited = tokio::time::timeout(LIMIT, node.wait(id, &[state])).await;
    Ok(waited.with_context(|| format!("{:?}", node.job(id)))??)
}

#[tokio::test]
async fn a_job_that_cannot_have_gpus_is_refused_with_the_reason_of_each() -> Result<()> {
    let world = World::new(false)?;
    let driver = ScriptedDriver::with_computers([]);
    let node = open(world.root.path(), &driver, false).await?;
    let error = refused(&node, "1").await?;
    assert_eq!(
        (error.code(), error.class()),
        ("gpu_disabled", ErrorClass::Invalid)
    );
    node.shutdown().await;
    drop(node);

    let node = world.open(&driver).await?;
    let error = refused(&node, "type=h200,vram=140G,count=9").await?;
    assert_eq!(
        (error.code(), error.class()),
        ("no_gpu", ErrorClass::Capacity)
    );
    let said = error.to_string();
    assert!(
        said.starts_with("no 9 GPUs of type h200 with 140 GiB: 0000:03:00.0 (1a03:2000) is of"),
        "{said}"
    );
    for bus in ["18", "3a", "4b", "5c", "9a", "ba", "ca", "da"] {
        let gpu = format!("0000:{bus}:00.0 (h200, 141 GiB) fits, with too few others");
        assert!(said.contains(&gpu), "{said}");
    }
    let said = refused(&node, "type=h100").await?.to_string();
    assert_eq!(
        said.matches("(h200, 141 GiB) is of another type").count(),
        8,
        "{said}"
    );
    let said = refused(&node, "vram=192G").await?.to_string();
    assert_eq!(said.matches("has too little memory").count(), 8, "{said}");
    // Nothing of them was kept.
    assert!(
        node.list(&Scope::All, &JobFilter::default())
            .jobs
            .is_empty()
    );
    assert_eq!(node.info()?.allocated.cpus, 0);
    node.shutdown().await;
    drop(node);

    // What runs VMs has no machine that a GPU could be in.
    let node = world.open(&ScriptedDriver::new([])).await?;
    let error = refused(&node, "type=h200").await?;
    assert_eq!(
        (error.code(), error.class()),
        ("no_full_vms", ErrorClass::Unavailable)
    );
    assert!(error.advice().is_some());
    world.close(node).await
}

#[tokio::test]
async fn a_job_whose_memory_is_in_huge_pages_needs_those_and_little_else() -> Result<()> {
    let world = World::new(true)?;
    let driver = ScriptedDriver::with_computers([]);
    let state = world.root.path();
    let node = open_as(state, &driver, |config| {
        config.executor.gpu.huge_pages = Some(HugePages::Mib2);
    })
    .await?;
    let job = spec("sleep", "type=h200")?;
    let needed = job.resources.memory;
    let error = create(&node, job.clone()).await.err().context("taken")?;
    assert_eq!(error.code(), "huge_pages_exhausted", "{error}");
    assert!(
        error
            .advice()
            .is_some_and(|advice| advice.contains("hugepages-2048kB/nr_hugepages"))
    );
    let folder = world.tree.sys.join("kernel/mm/hugepages/hugepages-2048kB");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("free_hugepages"), format!("{}\n", needed.0 / 2))?;
    let job = create(&node, job).await?;
    wait(&node, job.id, JobState::Running).await?;
    // A job without GPUs has none of them.
    let other = create(&node, JobSpec::new("x", vec!["true".into()])).await?;
    wait(&node, other.id, JobState::Exited).await?;
    world.close(node).await
}

/// Has one size of huge pages be so many MiB.
fn set_aside(world: &World, pages: HugePages, memory: u32) -> Result<()> {
    let size = pages.size();
    let folder = format!("kernel/mm/hugepages/hugepages-{}kB", size.0 << 10);
    let folder = world.tree.sys.join(folder);
    fs::create_dir_all(&folder)?;
    let free = format!("{}\n", memory / size.0);
    Ok(fs::write(folder.join("free_hugepages"), free)?)
}

#[tokio::test]
async fn a_vm_keeps_the_pages_that_its_machine_was_drawn_with() -> Result<()> {
    let world = World::new(true)?;
    let driver = ScriptedDriver::with_computers([]);
    let pages = HugePages::Gib1;
    let with = async |pages| {
        open_as(world.root.path(), &driver, |config| {
            config.executor.gpu.huge_pages = pages;
        })
        .await
    };
    let node = with(Some(pages)).await?;
    let volumes = node.volumes().clone();
    let image = tokio::task::spawn_blocking(move || {
        let new = NewVolume {
            account: "default",
            name: "disk",
            encrypted: None,
        };
        volumes.create(new, MiB(1), Filesystem::None)
    });
    let image = image.await??.id;
    let vm = |memory| -> Result<JobSpec> {
        let mut job = spec("sleep", "type=h200")?;
        (job.image, job.command) = ("disk".into(), Vec::new());
        (job.mode, job.cloud_init) = (Mode::Vm, Some(CloudInitSpec::default()));
        job.network.mode = Some(NetworkMode::None);
        (job.resources.memory, job.resources.disk) = (MiB(memory), MiB(1));
        job.machine.get_or_insert_default().room.memory = MiB(2048);
        Ok(job)
    };
    let size = |memory| JobResize {
        cpus: None,
        memory: Some(MiB(memory)),
    };
    // One whose memory is no number of them, and one whose memory is.
    let small = create(&node, vm(1536)?).await?.id;
    wait(&node, small, JobState::Running).await?;
    set_aside(&world, pages, 2048)?;
    let huge = create(&node, vm(2048)?).await?.id;
    wait(&node, huge, JobState::Running).await?;
    for job in [small, huge] {
        node.kill(job, 9).await?;
    }
    // What becomes a number of them later is in none all the same, and needs none.
    set_aside(&world, pages, 0)?;
    node.resize(small, size(2048)).await?;
    node.start(small).await?;
    wait(&node, small, JobState::Running).await?;
    node.shutdown().await;
    drop(node);

    // Whatever the node's choice is by now, the other one's are huge.
    let node = with(None).await?;
    let error = node.resize(huge, size(2176)).await.err();
    let error = error.context("a size that it cannot start with")?;
    assert_eq!(
        (error.code(), error.class()),
        ("memory_step", ErrorClass::Invalid)
    );
    node.resize(huge, size(3072)).await?;
    set_aside(&world, pages, 2048)?;
    let error = node.start(huge).await.err().context("it starts")?;
    assert_eq!(error.code(), "huge_pages_exhausted", "{error}");
    set_aside(&world, pages, 3072)?;
    node.start(huge).await?;
    wait(&node, huge, JobState::Running).await?;
    for job in [small, huge] {
        node.destroy(job, true).await?;
    }
    let volumes = node.volumes().clone();
    tokio::task::spawn_blocking(move || volumes.remove(image, true)).await??;
    world.close(node).await
}

#[tokio::test]
async fn gpus_are_a_jobs_from_its_launch_to_its_end_and_over_its_daemons() -> Result<()> {
    let world = World::new(true)?;
    let driver = ScriptedDriver::with_computers([]);
    let node = world.open(&driver).await?;
    let two = create(&node, spec("sleep", "type=h200,count=2")?).await?;
    let running = wait(&node, two.id, JobState::Running).await?;
    let has: BTreeSet<_> = running.gpus.iter().cloned().collect();
    assert_eq!(has.len(), 2, "{running:?}");
    let migration = running.migration.context("nothing keeps it")?;
    assert!(!migration.migratable && migration.reason.contains("GPUs"));
    for gpu in &has {
        let reset = world.tree.sys.join(format!("bus/pci/devices/{gpu}/reset"));
        assert_eq!(fs::read_to_string(reset)?.trim(), "1", "{gpu}");
    }
    assert_eq!(world.record()?.0, [(two.id.to_string(), 2)]);

    let said = refused(&node, "type=h200,count=7").await?.to_string();
    assert_eq!(said.matches("belongs to another job").count(), 2, "{said}");
    let six = create(&node, spec("sleep", "type=h200,count=6")?).await?;
    let running = wait(&node, six.id, JobState::Running).await?;
    assert!(running.gpus.iter().all(|gpu| !has.contains(gpu)));
    assert_eq!(refused(&node, "type=h200").await?.code(), "no_gpu");

    node.kill(two.id, 9).await?;
    let ended = wait(&node, two.id, JobState::Exited).await?;
    assert!(ended.gpus.is_empty(), "{ended:?}");
    assert_eq!(world.record()?.0, [(six.id.to_string(), 6)]);

    // Its guest outlives the daemon, and so does what it has.
    node.shutdown().await;
    drop(node);
    let node = world.open(&driver).await?;
    let found = wait(&node, six.id, JobState::Running).await?;
    assert_eq!(found.gpus, running.gpus);
    assert_eq!(world.record()?.0, [(six.id.to_string(), 6)]);
    // One that starts anew may get others.
    node.start(two.id).await?;
    let again = wait(&node, two.id, JobState::Running).await?;
    assert_eq!((again.gpus.len(), again.incarnation.get()), (2, 2));
    node.stop(six.id, None).await?;
    assert_eq!(world.record()?.0, [(two.id.to_string(), 2)]);

    // A host that loses power ends the guest of a daemon that is gone, too.
    node.shutdown().await;
    drop(node);
    driver.end_all();
    let node = world.open(&driver).await?;
    wait(&node, two.id, JobState::Failed).await?;
    assert_eq!(world.record()?, (Vec::new(), 0));
    world.close(node).await
}

#[tokio::test]
async fn whatever_ends_a_start_its_gpus_come_back() -> Result<()> {
    let vmm = |vmm| Script {
        vmm,
        ..Script::default()
    };
    let guest = |guest| Script {
        guest,
        ..Script::default()
    };
    let world = World::new(true)?;
    for (script, image, cpus, words) in [
        (vmm(Vmm::Broken), "x", 1, "is not installed"),
        (vmm(Vmm::Dies), "x", 1, "VMM"),
        (guest(Guest::Silent), "x", 1, "did not answer"),
        (guest(Guest::Fatal("no disk".into())), "x", 1, "no disk"),
        (Script::default(), "missing", 1, "there is no image"),
    ] {
        let driver = ScriptedDriver::with_computers([script]);
        let node = open_as(world.root.path(), &driver, |config| {
            // Who never answers is waited for to the end: not for long.
            if words == "did not answer" {
                config.executor.timeouts.boot = Duration::from_secs(5);
            }
        })
        .await?;
        let mut job = spec("true", "type=h200,count=8")?;
        (job.image, job.resources.cpus) = (image.into(), cpus);
        let job = create(&node, job).await?;
        let failed = wait(&node, job.id, JobState::Failed).await?;
        let reason = failed.reason.unwrap_or_default();
        assert!(reason.contains(words), "{reason:?} has no {words:?}");
        assert!(failed.gpus.is_empty());
        assert_eq!(world.record()?, (Vec::new(), 0), "{words}");
        node.destroy(job.id, true).await?;
        node.shutdown().await;
    }
    // A machine that cannot be built so is refused before they are given.
    let node = world.open(&ScriptedDriver::with_computers([])).await?;
    let mut job = spec("true", "type=h200,count=8")?;
    job.machine = Some(serde_json::from_value(
        serde_json::json!({"room": {"slots": 64}}),
    )?);
    let refused = create(&node, job).await.err().context("taken")?;
    assert_eq!(refused.code(), "bad_machine", "{refused}");
    assert_eq!(world.record()?, (Vec::new(), 0));
    // The last of them goes into quarantine before it is given.
    let config = world.tree.sys.join("bus/pci/devices/0000:18:00.0/config");
    fs::write(&config, [0xff; 256])?;
    let job = create(&node, spec("true", "type=h200,count=8")?).await?;
    let failed = wait(&node, job.id, JobState::Failed).await?;
    let reason = failed.reason.unwrap_or_default();
    assert!(
        reason.contains("is in quarantine: 0000:18:00.0 does not answer"),
        "{reason}"
    );
    assert_eq!(world.record()?, (Vec::new(), 1));
    fs::remove_file(world.tree.record.join("record.json"))?;
    world.close(node).await
}

#[tokio::test]
async fn a_node_is_there_while_another_process_waits_for_a_device() -> Result<()> {
    let world = World::new(true)?;
    let driver = ScriptedDriver::with_computers([]);
    let node = world.open(&driver).await?;
    let job = create(&node, spec("sleep", "type=h200")?).await?;
    wait(&node, job.id, JobState::Running).await?;
    node.shutdown().await;
    drop(node);
    driver.end_all();
    let lock = fs::File::create(world.tree.record.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let node = world.open(&driver).await?;
    // Jobs without GPUs come and go; those with some are told.
    let other = create(&node, JobSpec::new("x", vec!["true".into()])).await?;
    wait(&node, other.id, JobState::Exited).await?;
    let failed = create(&node, spec("sleep", "type=h200")?).await?;
    let failed = wait(&node, failed.id, JobState::Failed).await?;
    assert!(
        failed
            .reason
            .is_some_and(|why| why.contains("does not come to an end"))
    );
    wait(&node, job.id, JobState::Failed).await?;
    assert_eq!(world.record()?.0, [(job.id.to_string(), 1)]);
    drop(lock);
    // Whoever opens the node next takes back what is left.
    node.shutdown().await;
    drop(node);
    let node = world.open(&driver).await?;
    let began = Instant::now();
    while !world.record()?.0.is_empty() && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.close(node).await
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_before_the_next_sweep() -> Result<()> {
    let world = World::new(true)?;
    let (state, driver) = (world.root.path(), ScriptedDriver::with_computers([]));
    let node = open_as(state, &driver, |config| {
        config.sweep_interval = Duration::from_secs(86_400);
        config.gpu_patience = Duration::from_millis(200);
    })
    .await?;
    let job = create(&node, spec("sleep", "type=h200")?).await?;
    wait(&node, job.id, JobState::Running).await?;
    let lock = fs::File::create(world.tree.record.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    node.kill(job.id, 9).await?;
    assert_eq!(world.record()?.0, [(job.id.to_string(), 1)]);
    drop(lock);
    let began = Instant::now();
    while !world.record()?.0.is_empty() && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.close(node).await
}

#[tokio::test]
async fn a_job_answers_while_its_gpus_hang() -> Result<()> {
    let world = World::new(true)?;
    let driver = ScriptedDriver::with_computers([]);
    let node = world.open(&driver).await?;
    let old = create(&node, spec("sleep", "type=h200")?).await?;
    wait(&node, old.id, JobState::Running).await?;
    // Whoever resets a device that hangs has the record for as long.
    let lock = fs::File::create(world.tree.record.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let new = create(&node, spec("sleep", "type=h200,count=2")?).await?;
    wait(&node, new.id, JobState::Starting).await?;
    let jobs = [new.id, old.id];
    for id in jobs {
        let killed = node.clone();
        tokio::spawn(async move { killed.kill(id, 9).await });
        // It hears that it is to end before its GPUs are done with, and says so.
        let heard = wait(&node, id, JobState::Stopping).await;
        assert_eq!(heard?.state, JobState::Stopping);
    }
    assert!(world.record()?.0.contains(&(old.id.to_string(), 1)));
    drop(lock);
    for id in jobs {
        let ended = wait(&node, id, JobState::Exited).await?;
        assert!(ended.gpus.is_empty(), "{ended:?}");
    }
    // What could not be taken back in time is when the node opens next.
    node.shutdown().await;
    drop(node);
    let node = world.open(&driver).await?;
    let began = Instant::now();
    while !world.record()?.0.is_empty() && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.close(node).await
}

/// NVIDIA's library, which answers when it may.
#[derive(Debug)]
struct Gated {
    open: watch::Sender<bool>,
    asked: watch::Sender<usize>,
}

impl Nvml for Gated {
    fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError> {
        self.asked.send_modify(|asked| *asked += 1);
        let mut open = self.open.subscribe();
        // Where the test has ended, it never opens.
        let _ = tokio::runtime::Handle::current().block_on(open.wait_for(|open| *open));
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn a_job_that_waits_for_its_next_start_answers_while_nvml_hangs() -> Result<()> {
    let world = World::new(true)?;
    let (state, driver) = (world.root.path(), ScriptedDriver::with_computers([]));
    let nvml = Arc::new(Gated {
        open: watch::Sender::new(false),
        asked: watch::Sender::new(0),
    });
    let asked = Arc::clone(&nvml);
    let node = open_as(state, &driver, |config| config.nvml = Some(asked)).await?;
    // It ends, and starts again and again.
    let mut job = spec("true", "type=h200")?;
    job.restart.policy = Restart::Always;
    let job = create(&node, job).await?;
    wait(&node, job.id, JobState::Restarting).await?;
    assert_eq!(*nvml.asked.borrow(), 0, "no GPU is its driver's");
    // A GPU gets NVIDIA's driver.
    let display = world.tree.sys.join("bus/pci/devices/0000:03:00.0/driver");
    fs::remove_file(&display)?;
    symlink("../../bus/pci/drivers/nvidia", &display)?;
    let mut hangs = nvml.asked.subscribe();
    tokio::time::timeout(LIMIT, hangs.wait_for(|asked| *asked > 0)).await??;
    let stopped = node.clone();
    let stopped = tokio::spawn(async move { stopped.stop(job.id, None).await });
    // It hears that it is to end while the library hangs, and says so.
    let heard = wait(&node, job.id, JobState::Stopping).await;
    nvml.open.send_replace(true);
    heard?;
    let ended = stopped.await??;
    assert_eq!(ended.state, JobState::Exited);
    world.close(node).await
}

/// Says that this process is a daemon that is to die, and where its root is.
const DAEMON: &str = "ALEPH_TEST_DAEMON";

/// The life of a daemon that is to die.
#[tokio::test]
#[ignore = "another test runs it as a process of its own"]
async fn a_daemon() -> Result<()> {
    let Some(root) = std::env::var_os(DAEMON) else {
        return Ok(());
    };
    let node = open(Path::new(&root), &ScriptedDriver::with_computers([]), true).await?;
    let job = create(&node, spec("true", "type=h200,count=2")?).await?;
    wait(&node, job.id, JobState::Exited).await?;
    bail!("it has lived to the job's end")
}

#[tokio::test]
async fn gpus_come_back_after_a_daemon_died_at_any_step() -> Result<()> {
    for place in [
        "vm.intend:after",
        "gpu.record:after",
        "gpu.override:after:1",
        "gpu.override:after:2",
        "gpu.reset:after:1",
        "gpu.reset:after:2",
        // By now its end is under way.
        "gpu.reset:after:3",
        "gpu.restore:after:1",
        "gpu.restore:after:2",
        "vm.forget:before",
    ] {
        let world = World::new(true)?;
        let status = Command::new(std::env::current_exe()?)
            .args(["--ignored", "--exact", "a_daemon", "--nocapture"])
            .env(DAEMON, world.root.path())
            .env("ALEPH_FAILPOINT", place)
            .output()?;
        ensure!(
            status.status.signal() == Some(9),
            "{place}: {}",
            String::from_utf8_lossy(&status.stdout)
        );
        let node = world.open(&ScriptedDriver::with_computers([])).await?;
        let jobs = node.list(&Scope::All, &JobFilter::default()).jobs;
        let [job] = &jobs[..] else {
            bail!("{place}: {jobs:?}");
        };
        // It starts anew, or had begun and is lost with its VMM; what it had is given back.
        let states = [JobState::Exited, JobState::Failed];
        let over = tokio::time::timeout(LIMIT, node.wait(job.id, &states)).await;
        let over = over.with_context(|| format!("{place}: {:?}", node.job(job.id)))??;
        assert!(over.gpus.is_empty(), "{place}: {over:?}");
        assert_eq!(world.record()?, (Vec::new(), 0), "{place}");
        for bus in ["18", "3a", "4b", "5c", "9a", "ba", "ca", "da"] {
            let dir = world
                .tree
                .sys
                .join(format!("bus/pci/devices/0000:{bus}:00.0"));
            let name = fs::read_to_string(dir.join("driver_override"))?;
            assert!(
                ["", "(null)"].contains(&name.trim()),
                "{place}: {bus} is kept for {name}"
            );
        }
        world.close(node).await?;
    }
    Ok(())
}
