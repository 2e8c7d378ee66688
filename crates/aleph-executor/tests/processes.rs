//! Functions whose cold starts are served by processes that were launched ahead of them.

mod function_world;

use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver};
use aleph_executor::functions::{
    Code, Concurrency, Deployment, FunctionRuntime, FunctionsConfig, Isolation, Runner, Temperature,
};
use aleph_executor::hypervisor::Driver;
use aleph_testkit::{Namespace, TestRoot, wait_until};
use aleph_types::{MiB, NetworkLimits, VmId};
use aleph_vm_networking::{Ipv6Config, NetworkConfig};
use anyhow::{Context, Result, anyhow, ensure};
use function_world::{LIMIT, Program, World, open_over, pool, text};
use libtest_mimic::{Arguments, Trial};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Pid, Signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A runtime in shell that answers with its guest's name, and its address where it has one.
const RUNTIME: &str = r#"
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime
while :; do
  event=$(wget -q -S -O - $api/invocation/next 2>/tmp/headers) || exit 9
  id=$(sed -n 's/^ *[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: *//p' /tmp/headers | tr -d '\r')
  address=$(ip -4 address | sed -n 's/.*inet \(10[0-9.]*\).*/\1/p')
  [ "$event" = '"ask"' ] && address="$address $(nslookup example.test 2>&1)"
  wget -q -O - --post-data "$(hostname) $(cat /var/task/name) $address" $api/invocation/$id/response >/dev/null
done
"#;

/// What the double stands for.
const VERSION: &str = "1.15.1";

/// What runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Qemu,
    Firecracker,
    /// Firecracker in jails.
    Jailed,
}

impl Vmm {
    /// What the names of its tests end with.
    fn suffix(self) -> &'static str {
        match self {
            Self::Qemu => "",
            Self::Firecracker => "_on_firecracker",
            Self::Jailed => "_in_jails",
        }
    }

    fn driver(self, root: &TestRoot) -> Result<Option<Arc<dyn Driver>>> {
        if self == Self::Qemu {
            return Ok(None);
        }
        let jail = match self {
            Self::Jailed => Some((jails(root)?, aleph_testkit::jailer_double(VERSION)?)),
            _ => None,
        };
        Ok(Some(Arc::new(FirecrackerDriver::new(DriverConfig {
            program: aleph_testkit::firecracker_double(VERSION)?,
            jail,
            needs_kvm: false,
            ..DriverConfig::default()
        }))))
    }
}

fn jails(root: &TestRoot) -> Result<Jails> {
    Ok(Jails::open(&root.path().join("jail"), UidRange::default())?)
}

fn main() {
    let is_root = rustix::process::geteuid().is_root();
    let root = (!is_root).then_some("needs root");
    let tun = (!Path::new("/dev/net/tun").exists()).then_some("needs /dev/net/tun");
    let nft = Command::new("nft").arg("-v").output().is_err();
    let nft = nft.then_some("needs the program nft");
    // Where it is not, VMMs in the open cannot have links. Before there is another thread.
    let open_tun = open_tun_to_all().err();
    let open_tun = open_tun.map(|_| "needs a /dev/net/tun that others may open");
    let mut trials = Vec::new();
    for vmm in [Vmm::Qemu, Vmm::Firecracker, Vmm::Jailed] {
        // Links of Firecracker are TAPs.
        let missing = match vmm {
            Vmm::Qemu => None,
            Vmm::Firecracker => root.or(tun).or(open_tun),
            Vmm::Jailed => root.or(tun),
        };
        trials.extend([
            trial(
                "cold_starts_take_processes_of_their_shape",
                vmm,
                missing,
                |vmm| block_on(cold_starts_take_processes_of_their_shape(vmm)),
            ),
            trial("a_process_that_died_is_passed_over", vmm, missing, |vmm| {
                block_on(a_process_that_died_is_passed_over(vmm))
            }),
            trial(
                "files_that_cannot_be_shown_cost_no_event",
                vmm,
                missing,
                |vmm| block_on(files_that_cannot_be_shown_cost_no_event(vmm)),
            ),
            trial(
                "guests_of_such_processes_are_connected",
                vmm,
                missing.or(root).or(tun).or(nft),
                guests_of_such_processes_are_connected,
            ),
        ]);
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Lets every user open `/dev/net/tun`, for this process and what it starts alone.
#[allow(unsafe_code)]
fn open_tun_to_all() -> Result<()> {
    const TUN: &str = "/dev/net/tun";
    let meta = std::fs::metadata(TUN)?;
    if meta.mode() & 0o006 == 0o006 {
        return Ok(());
    }
    // SAFETY: there is no other thread yet, and no descriptor depends on a mount.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?;
    let dir = tempfile::tempdir()?;
    let node = dir.path().join("tun");
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &node, FileType::CharacterDevice, mode, meta.rdev())?;
    std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o666))?;
    mount_bind(&node, TUN)?;
    Ok(())
}

/// A test, or an ignored one that says why it cannot run here.
fn trial(name: &str, vmm: Vmm, missing: Option<&str>, test: fn(Vmm) -> Result<()>) -> Trial {
    let trial = Trial::test(format!("{name}{}", vmm.suffix()), move || {
        Ok(test(vmm).map_err(|error| format!("{error:?}"))?)
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

fn block_on(test: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(test)
}

fn config(processes: usize) -> FunctionsConfig {
    FunctionsConfig {
        pool: pool(),
        processes,
        ..FunctionsConfig::default()
    }
}

/// A world whose function is called so, each of whose events needs a clone of its own.
async fn world(vmm: Vmm, processes: usize, name: &str) -> Result<World> {
    let program = Program {
        files: &[("name", name.as_bytes())],
        command: &["sh", "-c", RUNTIME],
    };
    let root = TestRoot::new()?;
    let driver = vmm.driver(&root)?;
    let mut world = World::over(root, driver, config(processes), &program).await?;
    world.deployment.isolation = Isolation::Invocation;
    Ok(world)
}

/// Waits until as many processes wait as are wanted, and none of those that were there before.
async fn waiting(runtime: &FunctionRuntime, count: usize, gone: &[VmId]) -> Result<Vec<VmId>> {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        let found = runtime.waiting_processes();
        if found.len() == count && !found.iter().any(|vm| gone.contains(vm)) {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(anyhow!("there are {:?}", runtime.waiting_processes()))
}

/// Prepares a function, so that it is known of which shape processes are wanted.
async fn prepare(world: &World, deployment: &Deployment) -> Result<()> {
    let prepared = world.runtime.prepare(Arc::new(deployment.clone())).await;
    prepared.map_err(|problem| anyhow!("{problem:?}"))?;
    Ok(())
}

/// Runs an event; gives the VM that served it, and what else it said.
async fn served(world: &World, deployment: &Deployment, event: &str) -> Result<(VmId, String)> {
    let done = world
        .invoke_as(deployment, Concurrency::default(), event)
        .await?;
    ensure!(done.error.is_none(), "{done:?}");
    ensure!(done.temperature == Temperature::Cold, "{done:?}");
    let answer = text(&done);
    let (host, rest) = answer.split_once(' ').context("two words")?;
    let vm = host.strip_prefix("fn-").and_then(|vm| vm.parse().ok());
    Ok((vm.with_context(|| answer.clone())?, rest.trim().to_owned()))
}

/// The process of a VM.
fn process(root: &TestRoot, vm: VmId) -> Result<Pid> {
    let record = std::fs::read(root.paths()?.vm_state(vm).join("vmm.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let pid = record["pid"].as_i64().and_then(|pid| pid.try_into().ok());
    pid.and_then(Pid::from_raw).context("no process")
}

/// Another function, whose code is an image of its own.
fn function(world: &World, name: &str, dir: &Path) -> Result<Deployment> {
    let task = dir.join(name);
    std::fs::create_dir(&task)?;
    std::fs::write(task.join("name"), name)?;
    let image = dir.join(format!("{name}.erofs"));
    let made = Command::new("mkfs.erofs")
        .args(["--quiet", "-T0"])
        .args([&image, &task])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    Ok(Deployment {
        function: name.into(),
        code: Code::Task {
            image,
            digest: format!("sha256:{name}"),
            runtime: "busybox".into(),
        },
        ..world.deployment.clone()
    })
}

async fn cold_starts_take_processes_of_their_shape(vmm: Vmm) -> Result<()> {
    let world = world(vmm, 2, "first").await?;
    let first = world.deployment.clone();
    assert_eq!(world.runtime.waiting_processes(), [], "no shape is known");
    prepare(&world, &first).await?;
    let ready = waiting(&world.runtime, 2, &[]).await?;
    let (vm, said) = served(&world, &first, "1").await?;
    assert!(ready.contains(&vm), "{vm} of {ready:?}");
    assert_eq!(said, "first");
    // They are of no function: another one of the same shape has them too.
    let second = function(&world, "second", world.root.path())?;
    prepare(&world, &second).await?;
    let ready = waiting(&world.runtime, 2, &[vm]).await?;
    let (vm, said) = served(&world, &second, "1").await?;
    assert!(ready.contains(&vm), "{vm} of {ready:?}");
    assert_eq!(said, "second");
    let shown = world.root.paths()?.vm_state(vm).join("late");
    let left = std::fs::read_dir(shown).map_or(0, Iterator::count);
    assert_eq!(left, 0, "no file stays where it was shown");
    // One of another shape does without, and the next of that shape need not.
    let larger = Deployment {
        memory: MiB(160),
        ..first.clone()
    };
    let ready = waiting(&world.runtime, 2, &[vm]).await?;
    let (vm, _) = served(&world, &larger, "1").await?;
    assert!(!ready.contains(&vm), "{vm} of {ready:?}");
    let began = Instant::now();
    loop {
        let ready = world.runtime.waiting_processes();
        let (vm, _) = served(&world, &larger, "1").await?;
        if ready.contains(&vm) {
            break;
        }
        ensure!(began.elapsed() < LIMIT, "{vm} of {ready:?}");
    }
    // And there still is one for the others.
    let (vm, _) = served(&world, &first, "1").await?;
    assert!(ready.contains(&vm), "{vm} of {ready:?}");
    end(world).await
}

/// Ends a world; then nothing of its processes is there.
async fn end(world: World) -> Result<()> {
    let paths = world.root.paths()?;
    let mut processes = Vec::new();
    for vm in world.runtime.waiting_processes() {
        processes.push(process(&world.root, vm)?);
    }
    let is_jailed = world.root.path().join("jail").exists();
    if is_jailed {
        world.runtime.shutdown().await;
        let jails = jails(&world.root)?;
        wait_until("no jail is left", LIMIT, || {
            jails.vms().is_ok_and(|vms| vms.is_empty()).then_some(())
        });
    }
    world.end().await?;
    for pid in processes {
        ensure!(
            rustix::process::test_kill_process(pid).is_err(),
            "{pid:?} runs"
        );
    }
    let left = std::fs::read_dir(paths.run().join("vms")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "sockets are left");
    Ok(())
}

async fn a_process_that_died_is_passed_over(vmm: Vmm) -> Result<()> {
    let world = world(vmm, 2, "first").await?;
    prepare(&world, &world.deployment).await?;
    let ready = waiting(&world.runtime, 2, &[]).await?;
    // The one that is taken first.
    rustix::process::kill_process(process(&world.root, ready[0])?, Signal::KILL)?;
    let (vm, _) = served(&world, &world.deployment, "1").await?;
    assert_eq!(vm, ready[1]);
    let ready = waiting(&world.runtime, 2, &ready).await?;
    // Where none is left one is launched as if there had been none.
    for vm in &ready {
        rustix::process::kill_process(process(&world.root, *vm)?, Signal::KILL)?;
    }
    let (vm, _) = served(&world, &world.deployment, "2").await?;
    assert!(!ready.contains(&vm), "{vm} of {ready:?}");
    let again = waiting(&world.runtime, 2, &ready).await?;
    let (vm, _) = served(&world, &world.deployment, "3").await?;
    assert!(again.contains(&vm), "{vm} of {again:?}");
    end(world).await
}

async fn files_that_cannot_be_shown_cost_no_event(vmm: Vmm) -> Result<()> {
    let world = world(vmm, 1, "first").await?;
    prepare(&world, &world.deployment).await?;
    let ready = waiting(&world.runtime, 1, &[]).await?;
    let ready = match vmm {
        // Nor does it come into a jail in any other way.
        Vmm::Jailed => ready,
        Vmm::Qemu | Vmm::Firecracker => {
            // A file without a name cannot get another one.
            let gone = function(&world, "gone", world.root.path())?;
            prepare(&world, &gone).await?;
            let Code::Task { image, .. } = &gone.code else {
                anyhow::bail!("no code")
            };
            std::fs::remove_file(image)?;
            let (vm, said) = served(&world, &gone, "1").await?;
            assert!(!ready.contains(&vm), "{vm} of {ready:?}");
            assert_eq!(said, "gone");
            waiting(&world.runtime, 1, &ready).await?
        }
    };
    // One on another filesystem cannot either, and that may be so of all others.
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let elsewhere = function(&world, "elsewhere", memory.path())?;
    prepare(&world, &elsewhere).await?;
    let (vm, said) = served(&world, &elsewhere, "1").await?;
    assert!(!ready.contains(&vm), "{vm} of {ready:?}");
    assert_eq!(said, "elsewhere");
    let (vm, _) = served(&world, &world.deployment, "1").await?;
    assert!(!ready.contains(&vm), "{vm} of {ready:?}");
    assert_eq!(world.runtime.waiting_processes(), [], "it is given up");
    end(world).await
}

fn guests_of_such_processes_are_connected(vmm: Vmm) -> Result<()> {
    let namespace = Namespace::new()?;
    let tried = namespace.run(move || -> Result<()> {
        // Its threads are in the namespace too.
        block_on(connected(vmm))
    })?;
    let links = namespace.ip("-o link")?;
    tried?;
    ensure!(!links.contains("tap-"), "a TAP is left: {links}");
    Ok(())
}

async fn connected(vmm: Vmm) -> Result<()> {
    let world = world(vmm, 2, "first").await?;
    // The same with a network.
    world.runtime.shutdown().await;
    world.node.shutdown().await;
    let World {
        root,
        node,
        runtime,
        deployment,
    } = world;
    drop((node, runtime));
    let driver = vmm.driver(&root)?;
    let opened = open_over(&root, driver, config(2), |node| {
        node.network = Some(NetworkConfig {
            name: "aleph-test".into(),
            pool: aleph_vm_networking::DEFAULT_POOL,
            ipv6: Ipv6Config::Off,
            limits: NetworkLimits::default(),
            cool_down: Duration::from_secs(60),
            connections: 64,
            dns_port: None,
            run: node.paths.run().to_owned(),
        });
    });
    let (node, runtime) = opened.await?;
    let world = World {
        root,
        node,
        runtime,
        deployment,
    };
    let mut addresses = BTreeSet::new();
    prepare(&world, &world.deployment).await?;
    let mut gone = Vec::new();
    for n in 0..3 {
        let ready = waiting(&world.runtime, 2, &gone).await?;
        let (vm, said) = served(&world, &world.deployment, "\"ask\"").await?;
        assert!(ready.contains(&vm), "{vm} of {ready:?}");
        let address = said.split(' ').nth(1).unwrap_or_default();
        // Over its own network the host says that nobody knows the name here.
        let is_answered = said.contains("can't find example.test");
        ensure!(is_answered, "the {n}th is not connected: {said}");
        assert!(addresses.insert(address.to_owned()), "{said} comes twice");
        gone.push(vm);
    }
    end(world).await
}
