//! VMs of Firecracker: the driver with real guests over what stands for it, and over the real programs,
//! where they are there (`FIRECRACKER_BIN`, `JAILER_BIN`), with a guest that every KVM runs.

use aleph_executor::executor::COMMAND_LINE;
use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::{DriverConfig, FirecrackerDriver};
use aleph_executor::guest::{ExecRequest, FileMeta};
use aleph_executor::hypervisor::{Driver, Kernel, Link, Nic, Start};
use aleph_executor::lifecycle::{Outcome, State, Timeouts};
use aleph_executor::process::{Identity, ProcessExit};
use aleph_executor::{Boot, Executor, Vm};
use aleph_testkit::{DrivenVm, Namespace, Plan, TestRoot};
use aleph_types::{ExitStatus, JobId, JobSpec, MiB, Resources};
use aleph_vm_networking::frames::{self, FrameSocket};
use aleph_vm_networking::network::link_name;
use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

/// What the doubles stand for.
const VERSION: &str = "1.15.1";

fn main() {
    let root = rustix::process::geteuid().is_root();
    let jailer = || aleph_testkit::jailer_double(VERSION).map(Some);
    let trials = vec![
        trial("a_vm_lives", || lives_with_commands(None), None),
        trial(
            "a_vm_lives_in_a_jail",
            move || lives_with_commands(jailer()?),
            (!root).then_some("needs root"),
        ),
        trial(
            "a_guest_that_nobody_speaks_with_ends_by_its_keys",
            || ends_by_keys(None),
            None,
        ),
        trial(
            "a_guest_in_a_jail_ends_by_its_keys",
            move || ends_by_keys(jailer()?),
            (!root).then_some("needs root"),
        ),
        trial(
            "a_jailer_that_ends_is_told_and_leaves_nothing",
            jailer_ends,
            (!root).then_some("needs root"),
        ),
        trial(
            "a_guest_of_a_few_instructions_lives_in_the_real_one",
            || with_real(false),
            missing(false),
        ),
        trial(
            "a_guest_of_a_few_instructions_lives_in_a_real_jail",
            || with_real(true),
            missing(true),
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn trial(
    name: &str,
    test: impl FnOnce() -> Result<()> + Send + 'static,
    missing: Option<&'static str>,
) -> Trial {
    let trial = Trial::test(name, move || {
        Ok(test().map_err(|error| format!("{error:?}"))?)
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

/// What the tests with the real programs need and do not have.
fn missing(jailed: bool) -> Option<&'static str> {
    let opens = File::options().read(true).write(true).open("/dev/kvm");
    match (program("FIRECRACKER_BIN"), program("JAILER_BIN"), opens) {
        (None, ..) => Some("needs FIRECRACKER_BIN"),
        (_, None, _) if jailed => Some("needs JAILER_BIN"),
        (.., Err(_)) => Some("needs /dev/kvm"),
        _ => None,
    }
}

fn program(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

fn block_on(test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(test)
}

async fn started(root: &TestRoot, driver: Arc<FirecrackerDriver>) -> Result<(Executor, Vm)> {
    let executor = Executor::with_driver(root.paths()?, driver, Timeouts::default()).await?;
    let (bundle, image) = (root.bundle()?, root.busybox()?);
    let boot = Boot {
        kernel: File::open(bundle.vmlinux().context("no uncompressed kernel")?)?,
        initrd: File::open(bundle.initrd())?,
        filesystem: image.filesystem().to_string(),
        image: File::open(image.rootfs())?,
    };
    let job = JobSpec {
        resources: Resources {
            disk: MiB(64),
            ..Resources::default()
        },
        ..JobSpec::new("busybox", vec!["true".into()])
    };
    let vm = executor.create(JobId::random(), &job, boot)?;
    vm.start(None).await?;
    if let Err(error) = vm.running().await {
        let console = vm.console().last_lines(20).join("\n");
        return Err(error).context(console);
    }
    Ok((executor, vm))
}

/// Whether a process is the first one of a namespace of its own.
fn is_first(process: &Identity) -> Result<bool> {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers: Vec<_> = numbers.context("no NSpid")?.split_whitespace().collect();
    let is_elsewhere = namespace(&process.pid.to_string())? != namespace("self")?;
    assert_eq!(is_elsewhere, numbers.len() > 1, "{numbers:?}");
    Ok(is_elsewhere && numbers.last() == Some(&"1"))
}

/// How long a file a process may write, where that is limited.
fn longest_file(process: &Identity) -> Result<Option<u64>> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid))?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max file size"));
    let limit = line.and_then(|line| line.split_whitespace().nth(3));
    Ok(limit.context("no limit")?.parse().ok())
}

/// Waits until the figures of a VMM have this one among its requests.
async fn has_counted(name: &str, figures: impl Fn() -> Option<BTreeMap<String, u64>>) {
    let name = format!("put_api_requests.{name}");
    let counted = async {
        while figures().is_none_or(|figures| !figures.contains_key(&name)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let counted = tokio::time::timeout(LIMIT, counted).await;
    assert!(counted.is_ok(), "{name} is not in {:?}", figures());
}

async fn ended(root: &TestRoot, executor: Executor, vm: Vm) -> Result<()> {
    vm.destroy().await?;
    drop(executor);
    assert_eq!(root.residue()?, Vec::<String>::new());
    Ok(())
}

/// Commands run in a guest, it writes to its disk, stands still, goes on, and is stopped in order.
fn lives_with_commands(jailer: Option<PathBuf>) -> Result<()> {
    block_on(async {
        let root = TestRoot::new()?;
        let jail = match jailer {
            Some(jailer) => {
                let base = root.path().join("jail");
                Some((Jails::open(&base, UidRange::default())?, jailer))
            }
            None => None,
        };
        let jails = jail.as_ref().map(|(jails, _)| jails.clone());
        let driver = Arc::new(FirecrackerDriver::new(DriverConfig {
            program: aleph_testkit::firecracker_double(VERSION)?,
            jail,
            needs_kvm: false,
            ..DriverConfig::default()
        }));
        let (executor, vm) = started(&root, driver).await?;
        let vmm = vm.status().vmm.context("no VMM")?;
        assert_eq!(is_first(&vmm)?, jails.is_some(), "{vmm:?}");
        // Its disk is shorter than its memory.
        let memory = u64::from(Resources::default().memory.0) << 20;
        let longest = jails.is_some().then_some(memory);
        assert_eq!(longest_file(&vmm)?, longest);
        let line = "echo hello > /file && sync && cat /file; exit 3";
        let (stdout, _, status) = vm
            .exec(&ExecRequest::new(["sh", "-c", line]))?
            .collect()
            .await?;
        assert_eq!(
            (stdout.as_slice(), status),
            (&b"hello\n"[..], ExitStatus::Code(3))
        );
        is_called(&vm).await?;
        vm.pause().await?;
        assert_eq!(vm.status().state, State::Paused);
        vm.resume().await?;
        vm.agent()?.ping().await?;
        has_counted("drive_count", || vm.vmm_figures()).await;
        assert_eq!(vm.stop(Duration::from_secs(5)).await?, Outcome::Stopped);
        if let Some(jails) = jails {
            assert!(jails.vms()?.is_empty(), "a jail is left");
        }
        ended(&root, executor, vm).await
    })
}

/// A guest begins a connection to its host; to another port it is refused.
async fn is_called(vm: &Vm) -> Result<()> {
    // Whoever listened before is gone.
    drop(vm.listen(52)?);
    let listener = vm.listen(52)?;
    let taken = vm.listen(52).err().context("it is there twice")?;
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    let answering = tokio::spawn(async move {
        let (mut guest, _) = listener.accept().await?;
        let mut said = Vec::new();
        while said.last() != Some(&b'\n') {
            said.push(guest.read_u8().await?);
        }
        guest.write_all(b"heard ").await?;
        guest.write_all(&said).await?;
        anyhow::Ok(())
    });
    let meta = FileMeta {
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    let program = aleph_testkit::vsock_call()?;
    vm.agent()?.put("/call", meta, &program).await?;
    let call = async |port: &str| {
        let call = vm.exec(&ExecRequest::new(["/call", port, "hello"]))?;
        let (stdout, _, status) = tokio::time::timeout(LIMIT, call.collect()).await??;
        anyhow::Ok((String::from_utf8(stdout)?, status))
    };
    let answered = (String::from("heard hello\n"), ExitStatus::Code(0));
    assert_eq!(call("52").await?, answered);
    tokio::time::timeout(LIMIT, answering).await???;
    let (said, status) = call("53").await?;
    assert_eq!((said.as_str(), status), ("", ExitStatus::Code(3)));
    Ok(())
}

/// A guest whose agent is asked for nothing restarts its machine in order: its VMM ends by itself.
fn ends_by_keys(jailer: Option<PathBuf>) -> Result<()> {
    block_on(async {
        let root = TestRoot::new()?;
        let jail = match jailer {
            Some(jailer) => {
                let base = root.path().join("jail");
                Some((Jails::open(&base, UidRange::default())?, jailer))
            }
            None => None,
        };
        let driver = FirecrackerDriver::new(DriverConfig {
            program: aleph_testkit::firecracker_double(VERSION)?,
            jail,
            needs_kvm: false,
            keys: LIMIT,
            ..DriverConfig::default()
        });
        let bundle = root.bundle()?;
        let boot = Start::Boot(Kernel {
            kernel: File::open(bundle.vmlinux().context("no uncompressed kernel")?)?,
            initrd: File::open(bundle.initrd())?,
            command_line: format!("{COMMAND_LINE} {}", driver.kernel_arguments()),
        });
        let plan = Plan {
            size: Resources::default().memory,
            ..Plan::new(boot)
        };
        let vm = DrivenVm::launch(&driver, root.path(), plan).await?;
        let vmm = &vm.vmm;
        // Its kernel is up, and its agent waits to be spoken with.
        let channel = tokio::time::timeout(LIMIT, vmm.channel()).await??;
        vmm.quit().await?;
        let exit = tokio::time::timeout(LIMIT, vmm.wait()).await?;
        assert_eq!(exit.exit, ProcessExit::Code(0), "{exit}");
        drop(channel);
        Ok(())
    })
}

/// A jailer that never comes to be Firecracker, whose status and words are told.
fn jailer_ends() -> Result<()> {
    block_on(async {
        let root = TestRoot::new()?;
        let jails = Jails::open(&root.path().join("jail"), UidRange::default())?;
        let jailer = root.path().join("jailer");
        std::fs::write(
            &jailer,
            "#!/bin/sh\necho \"number $$ has no jail\" >&2\nexit 7\n",
        )?;
        std::fs::set_permissions(&jailer, std::fs::Permissions::from_mode(0o755))?;
        let driver = Arc::new(FirecrackerDriver::new(DriverConfig {
            program: aleph_testkit::firecracker_double(VERSION)?,
            jail: Some((jails.clone(), jailer)),
            needs_kvm: false,
            ..DriverConfig::default()
        }));
        let error = started(&root, driver).await.err().context("it runs")?;
        let said = format!("{error:?}");
        assert!(said.contains("exit 7: number 1 has no jail"), "{said}");
        assert!(jails.vms()?.is_empty(), "a jail is left");
        Ok(())
    })
}

/// The real program with a guest that every KVM runs: it boots, stands still, is written down, and
/// goes on in another VM where it stood.
fn with_real(jailed: bool) -> Result<()> {
    let firecracker = program("FIRECRACKER_BIN").context("no firecracker")?;
    if !jailed {
        return block_on(lives(firecracker, None));
    }
    let dir = tempfile::tempdir()?;
    let jails = Jails::open(&dir.path().join("jail"), UidRange::default())?;
    let jailer = program("JAILER_BIN").context("no jailer")?;
    block_on(lives(firecracker, Some((jails.clone(), jailer))))?;
    assert!(jails.vms()?.is_empty(), "a jail is left");
    Ok(())
}

async fn lives(program: PathBuf, jail: Option<(Jails, PathBuf)>) -> Result<()> {
    let is_jailed = jail.is_some();
    let driver = FirecrackerDriver::new(DriverConfig {
        program,
        jail,
        // Its guest does not hear them.
        keys: Duration::from_millis(50),
        ..DriverConfig::default()
    });
    driver.check()?;
    let dir = tempfile::tempdir()?;
    let boot = Plan::freestanding(dir.path())?;
    let first = Life::begin(&driver, dir.path(), "first", boot).await?;
    first.writes().await?;
    has_counted("boot_source_count", || first.vm.vmm.figures()).await;
    first.vm.pause().await?;
    let pause = first.vm.vmm.pause().context("no pause")?;
    assert!(pause.is_paused().await?);
    let state = dir.path().join("state");
    first.vm.save(&state).await?;
    first.vm.resume().await?;
    first.writes().await?;

    let restore = || Plan::restore(&state);
    let second = Life::begin(&driver, dir.path(), "second", restore()?).await?;
    let third = Life::begin(&driver, dir.path(), "third", restore()?).await?;
    let (second_goes_on, third_goes_on) = (second.writes().await?, third.writes().await?);
    assert_eq!(second_goes_on, third_goes_on, "from the same moment");
    for life in [first, second, third] {
        assert_eq!(is_first(&life.vm.vmm.identity())?, is_jailed);
        let longest = is_jailed.then_some(64 << 20);
        assert_eq!(longest_file(&life.vm.vmm.identity())?, longest);
        assert!(life.is_connected()?, "{}", life.tap);
        assert!(life.is_linked()?, "{}", life.tap);
        life.vm.vmm.quit().await?;
        let exit = life.vm.vmm.wait().await;
        // The first process of a namespace hears nothing else.
        let signal = if is_jailed { 9 } else { 15 };
        assert_eq!(exit.exit, ProcessExit::Signal(signal), "{exit}");
        assert!(!life.is_connected()?, "{} is open still", life.tap);
        // Whoever has the other end of its link sees that it is down.
        let end = life.link.0.duplicate()?;
        let down = rustix::net::recv(&end, &mut [0_u8; 64], rustix::net::RecvFlags::empty());
        assert_eq!(down.err(), Some(rustix::io::Errno::NETDOWN));
    }
    // A state that is cut is told by the VMM's end.
    File::options().write(true).open(&state)?.set_len(5000)?;
    let cut = Life::begin(&driver, dir.path(), "cut", restore()?).await?;
    let exit = cut.vm.vmm.wait().await;
    assert!(exit.stderr.contains("does not go on"), "{exit}");
    Ok(())
}

/// A VM with a TAP and a link.
struct Life {
    vm: DrivenVm,
    space: Namespace,
    tap: String,
    /// Our end of its link, and the link's device.
    link: (FrameSocket, String),
}

impl Life {
    async fn begin(
        driver: &FirecrackerDriver,
        dir: &Path,
        tap: &str,
        mut plan: Plan,
    ) -> Result<Self> {
        let space = Namespace::new()?;
        let queues = space.tap(tap, 1)?;
        space.ip(&format!("link set {tap} up"))?;
        let ends = driver.link().await?;
        plan.nics = vec![Nic {
            mac: [2, 0, 0, 0, 0, 1],
            queues,
        }];
        plan.links = vec![Link {
            mac: [2, 0, 0, 0, 0, 2],
            socket: ends.vmm,
        }];
        let link = link_name(plan.vm, 0);
        Ok(Self {
            vm: DrivenVm::launch(driver, dir, plan).await?,
            space,
            tap: tap.to_owned(),
            link: (FrameSocket::of(ends.host)?, link),
        })
    }

    /// Whether the device of its link has left where the VMM opened it, and is where it is to be.
    fn is_linked(&self) -> Result<bool> {
        let (socket, tap) = &self.link;
        let left = self.space.ip("-o link")?;
        let there = frames::group_of(socket.namespace()?.as_fd(), tap);
        Ok(!left.contains("lnk-") && there.is_ok())
    }

    /// Whether somebody has its TAP open.
    fn is_connected(&self) -> Result<bool> {
        let link = self.space.ip(&format!("-o link show {}", self.tap))?;
        Ok(link.contains("LOWER_UP"))
    }

    /// The next letters that it writes.
    async fn writes(&self) -> Result<String> {
        self.vm.writes(8).await
    }
}
