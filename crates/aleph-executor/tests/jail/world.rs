//! A node's folders for one test: jails and files on one filesystem, other files on another, both
//! mounted in a namespace that nobody else sees.

use aleph_executor::firecracker::jail::{Jail, Jails, UidRange};
use anyhow::{Context, Result, ensure};
use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Says that the program runs in a namespace of its own already.
const UNSHARED: &str = "ALEPH_JAIL_UNSHARED";

static WORLDS: AtomicU32 = AtomicU32::new(1);

/// The first of a hundred users that no other world has: a sweep kills whatever runs as the user of a
/// jail that was left, whichever process has started it. They are above those that other tests name,
/// and below those of VMs on QEMU.
fn first_uid() -> u32 {
    // More than all tests of one process make.
    const OF_A_PROCESS: u32 = 32;
    let world = WORLDS.fetch_add(1, Ordering::Relaxed) % OF_A_PROCESS;
    // Pids are given one after the other: tests that run at once are not so far apart.
    let process = std::process::id() % 400_000;
    400_000 + 100 * (process * OF_A_PROCESS + world)
}

/// What these tests need and is not here.
pub(crate) fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    if !cfg!(target_arch = "x86_64") {
        return Some("needs x86-64");
    }
    for (program, why) in [
        ("unshare", "needs the program unshare"),
        ("setpriv", "needs the program setpriv"),
    ] {
        let said = Command::new(program).arg("--version").output();
        if !said.is_ok_and(|said| said.status.success()) {
            return Some(why);
        }
    }
    None
}

pub(crate) fn is_unshared() -> bool {
    std::env::var_os(UNSHARED).is_some()
}

/// Becomes the same program in a mount namespace of its own.
pub(crate) fn unshare() {
    let error = match std::env::current_exe() {
        Ok(program) => Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(program)
            .args(std::env::args_os().skip(1))
            .env(UNSHARED, "1")
            .exec(),
        Err(error) => error,
    };
    eprintln!("cannot unshare: {error}");
    std::process::exit(1);
}

pub(crate) fn exec_file() -> &'static Path {
    Path::new("/opt/firecracker")
}

#[derive(Debug)]
pub(crate) struct World {
    root: PathBuf,
    dir: Option<tempfile::TempDir>,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?;
        let world = Self {
            root,
            dir: Some(dir),
        };
        fs::set_permissions(&world.root, fs::Permissions::from_mode(0o755))?;
        for name in ["", "far"] {
            let path = world.root.join(name);
            if !path.exists() {
                fs::create_dir(&path)?;
            }
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", "mode=0755", "tmpfs"])
                .arg(&path)
                .status()?;
            ensure!(mounted.success());
        }
        let private = |path: PathBuf| DirBuilder::new().mode(0o700).create(path);
        private(world.base())?;
        fs::create_dir(world.near())?;
        fs::write(world.root.join("first-uid"), first_uid().to_string())?;
        Ok(world)
    }

    /// One that another process made.
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            dir: None,
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.root.join("jail")
    }

    /// Files on the filesystem of the jails.
    pub(crate) fn near(&self) -> PathBuf {
        self.root.join("near")
    }

    /// Files on another.
    pub(crate) fn far(&self) -> PathBuf {
        self.root.join("far")
    }

    pub(crate) fn jails(&self) -> Result<Jails> {
        let first: u32 = fs::read_to_string(self.root.join("first-uid"))?.parse()?;
        Ok(Jails::open(
            &self.base(),
            UidRange::new(first, first + 99)?,
        )?)
    }

    /// What is mounted below the jails.
    pub(crate) fn mounts(&self) -> Result<Vec<String>> {
        let base = self.base();
        let base = base.to_str().context("a path")?;
        let text = fs::read_to_string("/proc/self/mountinfo")?;
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(points
            .filter(|point| point.starts_with(base))
            .map(str::to_owned)
            .collect())
    }

    /// Nothing is mounted, no user is claimed, no jail is there.
    pub(crate) fn assert_empty(&self) -> Result<()> {
        ensure!(self.mounts()?.is_empty(), "{:?}", self.mounts()?);
        for folder in fs::read_dir(self.base())? {
            let folder = folder?.path();
            let left: Vec<_> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
            ensure!(left.is_empty(), "{}: {left:?}", folder.display());
        }
        Ok(())
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(future))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.dir.is_some() {
            let _ = Command::new("umount")
                .args(["-R", "-l"])
                .arg(&self.root)
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A file with these bytes and exactly this mode.
pub(crate) fn file(folder: &Path, name: &str, mode: u32, bytes: &[u8]) -> Result<File> {
    let path = folder.join(name);
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(File::open(path)?)
}

pub(crate) fn chown(file: &File, uid: u32) -> Result<()> {
    std::os::unix::fs::fchown(file, Some(uid), Some(uid))?;
    Ok(())
}

/// A shell that is one user, in a folder that it need not be able to come to by itself.
pub(crate) fn user(uid: u32, folder: &Path, script: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .args(["--clear-groups", "--no-new-privs", "sh", "-c", script])
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

pub(crate) fn as_user(uid: u32, folder: &Path, script: &str) -> Result<ExitStatus> {
    // What it says is shown where the test fails.
    Ok(user(uid, folder, script).status()?)
}

/// The owner and mode that the jailer gives a jail's root.
pub(crate) fn give_root_as_the_jailer_does(jail: &Jail) -> Result<()> {
    let uid = Some(jail.uid());
    std::os::unix::fs::chown(jail.root(), uid, uid)?;
    fs::set_permissions(jail.root(), fs::Permissions::from_mode(0o700))?;
    Ok(())
}

/// Runs a program in a jail as the jailer does, but for its namespaces and device nodes.
pub(crate) fn as_the_jailer(jail: &Jail, program: &Path) -> Result<Command> {
    let copy = jail.root().join("firecracker");
    fs::copy(program, &copy)?;
    give_root_as_the_jailer_does(jail)?;
    let mut command = Command::new("chroot");
    command
        .arg(format!("--userspec={0}:{0}", jail.uid()))
        .arg("--groups=")
        .arg(jail.root())
        .arg("/firecracker");
    Ok(command)
}
