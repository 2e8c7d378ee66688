//! A program that stands for Firecracker's `jailer`, for the program that stands for `firecracker`.
//!
//! It makes what the jailer makes, where the jailer makes it (`docs/jailer.md` there): the chroot
//! with a copy of the program, its devices, `/run`, the pid file, owners and modes; it joins the
//! network namespace, sets limits, makes the group of cgroup v2, clears the environment, changes
//! the user and becomes the program, under its own process number. Like the jailer it removes
//! nothing, and does not enter a chroot twice.
//!
//! # Where it differs
//! - The program in the jail needs more than itself: `/usr` and `/proc` of the host, which are
//!   mounted there for this process alone, so that the folders `usr`, `proc` and links such as
//!   `lib` are in the chroot too.
//! - It uses chroot(2), not pivot_root(2).
//! - No `--daemonize`, no `--new-pid-ns`, no cgroup v1: they are refused.
//! - `FIRECRACKER_DOUBLE_VERSION` is passed on.

mod arguments;
mod chroot;

use anyhow::{Context, Result, ensure};
use arguments::Arguments;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// What is done in a mount namespace of the process's own: `$1` is the chroot, `$2` and `$3` are
/// the user and the group, and the rest is the program with its arguments.
const ENTER: &str = r#"
set -eu
root=$1 user=$2 group=$3
shift 3
mount --bind /usr "$root/usr"
mount --rbind /proc "$root/proc"
mount --bind /dev/null "$root/dev/null"
exec chroot --userspec="$user:$group" --groups= "$root" "$@"
"#;

/// The version that the program doubles, and the library that it looks for.
const KEPT: [&str; 2] = ["FIRECRACKER_DOUBLE_VERSION", "FIRECRACKER_DOUBLE_VSOCK"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "{error:#}\nError: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let own_name = std::env::args().next().unwrap_or_default();
    if words.iter().any(|word| word == "--version") {
        let version = own_name.rsplit("jailer-").next().unwrap_or_default();
        writeln!(std::io::stdout(), "Jailer {version}\n")?;
        return Ok(());
    }
    let arguments = arguments::parse(&words)?;
    let root = chroot::make(&arguments)?;
    if let Some(path) = &arguments.netns {
        let file =
            File::open(path).with_context(|| format!("Failed to open file {}", path.display()))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(file.as_fd(), kind)
            .context("Failed to join network namespace: netns")?;
    }
    for (resource, limit) in [
        (Resource::Fsize, arguments.file_size),
        (Resource::Nofile, Some(arguments.open_files)),
    ] {
        if let Some(limit) = limit {
            let limits = Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            };
            setrlimit(resource, limits).context("Failed to set limits for resource")?;
        }
    }
    join_cgroup(&arguments)?;
    chroot::devices(&root, arguments.uid, arguments.gid)?;
    let name = arguments.name()?;
    let pid_file = root.join(format!("{name}.pid"));
    let mut pid_file = File::create_new(&pid_file)
        .with_context(|| format!("Failed to open file {}", pid_file.display()))?;
    write!(pid_file, "{}", std::process::id())?;
    Err(become_program(&arguments, &root, &name)?.into())
}

/// Becomes the program; gives the error where that fails.
fn become_program(arguments: &Arguments, root: &Path, name: &str) -> Result<std::io::Error> {
    let library = std::env::current_exe()?.with_file_name("libvsock.so");
    let mut command = Command::new("unshare");
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    if let Some(version) = std::env::var_os(KEPT[0]).or_else(|| arguments.version()) {
        command.env(KEPT[0], version);
    }
    if let Ok(library) = File::open(library) {
        // The path is outside; the descriptor goes along.
        fcntl_setfd(&library, FdFlags::empty())?;
        command.env(KEPT[1], format!("/proc/self/fd/{}", library.as_raw_fd()));
        // It stays open, as this process becomes another.
        let _ = std::os::fd::IntoRawFd::into_raw_fd(library);
    }
    command
        .args([
            "--mount",
            "--propagation",
            "slave",
            "--",
            "sh",
            "-c",
            ENTER,
            "sh",
        ])
        .arg(root)
        .args([arguments.uid.to_string(), arguments.gid.to_string()])
        .arg(format!("/{name}"))
        .args(["--id", &arguments.id])
        .args(["--start-time-us", "0", "--start-time-cpu-us", "0"])
        .args(["--parent-cpu-time-us", "0"])
        .args(&arguments.extra);
    Ok(command.exec())
}

/// Makes the group `PARENT/ID`, with its limits, and joins it.
fn join_cgroup(arguments: &Arguments) -> Result<()> {
    if arguments.cgroups.is_empty() {
        return Ok(());
    }
    ensure!(
        arguments.cgroup_version == 2,
        "the double of the jailer has no cgroup v1"
    );
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&"cgroup2"))
        .context("Hierarchy not found: cgroup2")?;
    let mut group = Path::new(mount[1]).to_owned();
    let available = fs::read_to_string(group.join("cgroup.controllers"))?;
    let mut above = vec![group.clone()];
    let parent = match &arguments.parent_cgroup {
        Some(parent) => parent.clone(),
        None => arguments.name()?,
    };
    for part in parent.split('/') {
        group.push(part);
        above.push(group.clone());
    }
    group.push(&arguments.id);
    fs::create_dir_all(&group)?;
    for (file, value) in &arguments.cgroups {
        let controller = file.split('.').next().unwrap_or_default();
        ensure!(
            available
                .split_whitespace()
                .any(|known| known == controller),
            "Controller {controller} is unavailable"
        );
        for group in &above {
            fs::write(
                group.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )?;
        }
        fs::write(group.join(file), value)
            .with_context(|| format!("Failed to write to cgroups file {file}"))?;
    }
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
        .context("Failed to move process to cgroup")
}

/// A path for a call of the system.
pub(crate) fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
