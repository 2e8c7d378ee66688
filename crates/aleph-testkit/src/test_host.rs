//! A VM as the host of a test, for what the machine that runs the tests lacks: all controllers
//! of cgroup v2, say, which a hybrid host gives to version 1.
//!
//! A test program without a harness hands its cases to [`TestHost::main`]. On the machine each
//! case is a test that boots a microVM, copies this very program and its shared libraries into
//! it, and runs it there as root; in the guest the same `main` runs the one case that it is
//! asked for. What the case writes is the test's output, and where it fails, so does the test.
//!
//! The guest is what a job gets: busybox, Debian's cloud kernel, no network, no init but the
//! agent. Each case has one of its own and may leave it in any state. A machine that cannot run
//! a VM has the tests ignored, and says why.

use crate::TestRoot;
use aleph_executor::accel::Accelerator;
use aleph_executor::guest::{ExecEvent, ExecRequest, FileMeta};
use aleph_executor::{Boot, Executor, ExecutorConfig, Vm};
use aleph_types::{ExitStatus, JobId, JobSpec, MiB, Resources};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// What is to hold, and the function that sees to it in the guest.
pub type Case = (&'static str, fn() -> Result<()>);

/// Names the case that a guest is to run.
pub(crate) const CASE: &str = "ALEPH_TEST_HOST_CASE";
/// Where this program is in a guest.
const PROGRAM: &str = "/test-program";
/// Only a case that hangs takes as long.
const LIMIT: Duration = Duration::from_secs(200);

/// A VM as the host of each case of a test program, and what it is given.
///
/// ```no_run
/// # use aleph_testkit::TestHost;
/// # use std::process::ExitCode;
/// fn limits_hold() -> anyhow::Result<()> {
///     Ok(()) // runs in the guest, as root
/// }
///
/// fn main() -> ExitCode {
///     TestHost::default().main(&[("limits_hold", limits_hold)])
/// }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TestHost {
    /// Virtual CPUs.
    pub cpus: u16,
    /// Memory.
    pub memory: MiB,
    /// The disk that holds all that is written: `/dev/vdb` in the guest.
    pub disk: MiB,
}

impl Default for TestHost {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: MiB(256),
            disk: MiB(256),
        }
    }
}

impl TestHost {
    /// The whole `main` of a test program with these cases.
    pub fn main(self, cases: &'static [Case]) -> ExitCode {
        if let Some(name) = std::env::var_os(CASE) {
            return match cases.iter().find(|case| name == case.0) {
                Some(case) => ended(case.1()),
                None => ended(Err(anyhow::anyhow!("no case is called {}", name.display()))),
            };
        }
        let missing = missing();
        let trials = cases.iter().map(|(name, _)| {
            let trial = Trial::test(*name, move || {
                self.run(name).map_err(|error| format!("{error:#}").into())
            });
            match &missing {
                None => trial,
                Some(why) => trial.with_kind(why).with_ignored_flag(true),
            }
        });
        libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
    }

    /// Runs one case in a guest of its own.
    fn run(self, case: &str) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let root = TestRoot::new()?;
        runtime.block_on(async {
            let (executor, vm) = self.start(&root).await?;
            let ran = tokio::time::timeout(LIMIT, async {
                copy_this_program(&vm).await?;
                run_in(&vm, case).await
            });
            let ran = ran
                .await
                .unwrap_or_else(|_| bail!("it has not ended in {LIMIT:?}"));
            if ran.is_err() {
                let console = vm.console().last_lines(20).join("\n");
                writeln!(std::io::stderr(), "the guest's console:\n{console}")?;
            }
            vm.kill().await?;
            vm.destroy().await?;
            drop(executor);
            ran
        })?;
        let residue = root.residue()?;
        ensure!(residue.is_empty(), "left on the host: {residue:#?}");
        Ok(())
    }

    async fn start(self, root: &TestRoot) -> Result<(Executor, Vm)> {
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
        let job = JobSpec {
            resources: Resources {
                cpus: self.cpus,
                memory: self.memory,
                disk: self.disk,
                ..Resources::default()
            },
            ..JobSpec::new("busybox", vec!["true".into()])
        };
        let vm = executor.create(JobId::random(), &job, boot)?;
        vm.start(None).await?;
        vm.running().await?;
        Ok((executor, vm))
    }
}

/// Why no VM can run here, if none can.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .collect();
    ["qemu-system-x86_64", "mke2fs", "mkfs.erofs"]
        .into_iter()
        .find(|program| !dirs.iter().any(|dir| dir.join(program).is_file()))
        .map(|program| format!("needs the program {program}"))
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Copies this program and the libraries that it has loaded to the same paths in the guest.
async fn copy_this_program(vm: &Vm) -> Result<()> {
    let program = std::env::current_exe()?;
    let libraries = libraries_of(&program)?;
    let mut mkdir = vec!["mkdir".to_owned(), "-p".to_owned()];
    mkdir.extend(
        libraries
            .iter()
            .filter_map(|path| path.parent())
            .map(|dir| dir.display().to_string()),
    );
    let (_, stderr, status) = vm.exec(&ExecRequest::new(mkdir))?.collect().await?;
    ensure!(
        status == ExitStatus::Code(0),
        "mkdir: {}",
        String::from_utf8_lossy(&stderr)
    );
    let files = libraries.iter().map(|path| (path.as_path(), path.clone()));
    let executable = FileMeta {
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    for (to, from) in files.chain([(Path::new(PROGRAM), program)]) {
        let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let to = to.to_str().context("a path is not UTF-8")?;
        vm.agent()?
            .put(to, executable, &bytes)
            .await
            .with_context(|| format!("cannot copy {} into the guest", from.display()))?;
    }
    Ok(())
}

/// The shared libraries that a program needs, its loader among them: what the loader lists when
/// it is asked to (ld.so(8), `LD_TRACE_LOADED_OBJECTS`). A static program has no loader and runs
/// instead: it finds that no such case is there, and that is an error here.
pub(crate) fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new(program)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .env(CASE, "none: this is no guest")
        .output()?;
    let listed = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "the loader does not list libraries: {listed}"
    );
    // Lines are `name => /path (address)`, `/path (address)`, and a name without a path for
    // what the kernel provides.
    let paths = listed.lines().filter_map(|line| {
        let line = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = line.trim().split(" (").next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}

/// Runs a case of this program in the guest, and passes on what it writes.
async fn run_in(vm: &Vm, case: &str) -> Result<()> {
    let mut command = vm.exec(&ExecRequest {
        env: vec![(CASE.into(), case.into())],
        ..ExecRequest::new([PROGRAM])
    })?;
    loop {
        match command.next().await? {
            ExecEvent::Started(_) => {}
            ExecEvent::Stdout(bytes) => std::io::stdout().write_all(&bytes)?,
            ExecEvent::Stderr(bytes) => std::io::stderr().write_all(&bytes)?,
            ExecEvent::Exited(ExitStatus::Code(0)) => return Ok(()),
            ExecEvent::Exited(status) => bail!("in the guest it ended with {status:?}"),
        }
    }
}
