//! A VM with a PCI bus and an IOMMU as the host of a test, for what the machine that runs the tests lacks:
//! devices that can be taken from it and given to guests.
//!
//! It is as a [`TestHost`](crate::TestHost) is, with the same kind of `main`, and a q35 of QEMU with
//! `intel-iommu` instead of a microVM. The agent knows no such machine, so the test program itself is
//! the init of the guest: in an initramfs with its shared libraries and modules of Debian's kernel.
//! What it writes comes out of the serial port, and the machine is switched off after the case.

use crate::TestRoot;
use crate::root::target;
use crate::test_host::{CASE, Case, libraries_of, missing};
use aleph_types::MiB;
use anyhow::{Context, Result, bail, ensure};
use cpio::newc::{Builder, trailer};
use libtest_mimic::{Arguments, Trial};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, init_module, reboot};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What a case writes last when all is well.
const PASSED: &str = "the case has passed";
/// Only a case that hangs takes as long.
const LIMIT: Duration = Duration::from_secs(280);
/// Where a guest finds its modules, and in which order they are loaded.
const ORDER: &str = "/modules/order";

/// A VM with these devices as the host of each case of a test program.
#[derive(Debug, Clone, Copy)]
pub struct PciHost {
    /// Memory.
    pub memory: MiB,
    /// NUMA nodes that have a part of it each; the first has the processor. A `pxb-pcie` puts devices near
    /// one.
    pub numa_nodes: u32,
    /// Modules of Debian's cloud kernel that are loaded before the case; those that they need are too.
    pub modules: &'static [&'static str],
    /// What QEMU's `-device` gets, once each.
    pub devices: &'static [&'static str],
    /// Programs and other files of this machine that the guest gets at the same paths, with the shared
    /// libraries of programs.
    pub files: &'static [&'static str],
    /// A kernel: then the guest has a node's root with it and the busybox image, at [`PciHost::NODE`].
    /// Linux would take that node's guests minutes to boot, where the processor is emulated twice.
    pub node: Option<fn() -> Vec<u8>>,
}

impl PciHost {
    /// Where a node's root is in the guest.
    pub const NODE: &str = "/node";

    /// The whole `main` of a test program with these cases.
    pub fn main(self, cases: &'static [Case]) -> ExitCode {
        if let Some(name) = std::env::var_os(CASE) {
            let is_init = rustix::process::getpid().is_init();
            let run = || {
                if is_init {
                    become_a_host()?;
                }
                let case = cases.iter().find(|case| name == case.0);
                case.with_context(|| format!("no case is called {}", name.display()))?
                    .1()
            };
            let result = run();
            let code = match &result {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let _ = writeln!(std::io::stderr(), "{error:?}");
                    ExitCode::FAILURE
                }
            };
            if is_init {
                if result.is_ok() {
                    let _ = writeln!(std::io::stdout(), "{PASSED}");
                }
                let _ = reboot(RebootCommand::PowerOff);
            }
            return code;
        }
        let missing = missing().or_else(|| self.missing());
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

    /// What this host needs beside what every VM needs.
    fn missing(&self) -> Option<String> {
        if !cfg!(target_arch = "x86_64") {
            return Some("needs a machine of x86-64".into());
        }
        let mut files = self.files.iter();
        let missing = files.find(|file| !Path::new(file).exists());
        missing.map(|file| format!("needs the file {file}"))
    }

    /// Runs one case in a guest of its own.
    fn run(self, case: &str) -> Result<()> {
        let root = TestRoot::new()?;
        let bundle = root.bundle()?;
        let record = bundle.record().context("the kernel has no record")?;
        let modules = modules(&record.package, &record.package_version, self.modules)?;
        let initrd = root.path().join("initrd");
        let node = self.node.map(|kernel| node_files(&root, kernel()));
        let node = node.transpose()?;
        let contents = Contents {
            modules,
            files: self.files,
            node: node.unwrap_or_default(),
        };
        fs::write(&initrd, initramfs(&contents)?)?;
        let serial = root.path().join("serial");

        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-machine", "q35", "-accel", "tcg"])
            .args(["-smp", "1", "-m", &format!("{}M", self.memory.0)])
            .args(["-device", "intel-iommu,intremap=on"])
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .arg("-kernel")
            .arg(bundle.fastest_kernel())
            .arg("-initrd")
            .arg(&initrd)
            .arg("-append")
            // The kernel's check that its timer ticks is one in real time, which a busy machine fails.
            .arg(format!(
                "console=ttyS0 quiet panic=-1 no_timer_check intel_iommu=on {CASE}={case}"
            ));
        if self.numa_nodes > 1 {
            for node in 0..self.numa_nodes {
                let size = self.memory.0 / self.numa_nodes;
                let cpu = if node == 0 { ",cpus=0" } else { "" };
                command
                    .args([
                        "-object",
                        &format!("memory-backend-ram,id=node{node},size={size}M"),
                    ])
                    .args([
                        "-numa",
                        &format!("node,nodeid={node},memdev=node{node}{cpu}"),
                    ]);
            }
        }
        for device in self.devices {
            command.args(["-device", device]);
        }
        let mut qemu = command.stdin(Stdio::null()).spawn()?;
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = qemu.try_wait()? {
                break Some(status);
            }
            if Instant::now() > end {
                qemu.kill()?;
                qemu.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = fs::read(&serial).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        std::io::stdout().write_all(said.as_bytes())?;
        match status {
            None => bail!("it has not ended in {LIMIT:?}"),
            Some(status) => ensure!(status.success(), "QEMU ended with {status}"),
        }
        let passed = said.lines().any(|line| line.trim() == PASSED);
        ensure!(passed, "in the guest it failed: {}", last_words(&said));
        Ok(())
    }
}

/// The end of what was said.
fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// What an init does first: the kernel's filesystems, and the modules.
fn become_a_host() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, at, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {kind}"))?;
    }
    for name in fs::read_to_string(ORDER)?.lines() {
        let module = fs::read(format!("/modules/{name}.ko"))?;
        init_module(&module, c"").with_context(|| format!("cannot load {name}"))?;
    }
    Ok(())
}

/// What the guest has beside this program.
struct Contents {
    modules: Vec<(String, Vec<u8>)>,
    /// Paths of this machine.
    files: &'static [&'static str],
    /// Where each is in the guest, and what it is here.
    node: Vec<(PathBuf, Node)>,
}

/// A part of a node's root.
enum Node {
    File(PathBuf),
    Link(PathBuf),
    Bytes(Vec<u8>),
}

/// The busybox image of a root and its kernel bundle, with another kernel, as that of a node in the guest
/// has them.
fn node_files(root: &TestRoot, kernel: Vec<u8>) -> Result<Vec<(PathBuf, Node)>> {
    let mut found = Vec::new();
    let bundle = root.bundle()?;
    let mut record = bundle.record().context("the kernel has no record")?.clone();
    record.pvh = false;
    record.files.retain(|name, _| name == "initrd");
    let of_kernel = BTreeMap::from([
        ("vmlinuz", kernel),
        ("bundle.json", serde_json::to_vec(&record)?),
    ]);
    for link in ["kernels/default", "images/names/busybox"] {
        let at = root.path().join(link);
        let target = fs::read_link(&at).with_context(|| format!("cannot read {link}"))?;
        let dir = fs::canonicalize(&at)?;
        let name = dir.file_name().context("no name")?;
        let store = Path::new(link).iter().next().context("no store")?;
        let to = Path::new(PciHost::NODE).join(store).join(name);
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.context("a name is not UTF-8")?;
            let node = match of_kernel.get(name) {
                Some(bytes) if store == "kernels" => Node::Bytes(bytes.clone()),
                _ if name == "vmlinux" => continue,
                _ => Node::File(path.clone()),
            };
            found.push((to.join(name), node));
        }
        let link = Path::new(PciHost::NODE).join(link);
        found.push((link, Node::Link(target)));
    }
    Ok(found)
}

/// An initramfs with this program as its init.
fn initramfs(contents: &Contents) -> Result<Vec<u8>> {
    let program = std::env::current_exe()?;
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut libraries = libraries_of(&program)?;
    for file in contents.files.iter().map(PathBuf::from) {
        let metadata = fs::metadata(&file);
        let metadata = metadata.with_context(|| format!("cannot read {}", file.display()))?;
        let bytes = match metadata.permissions().mode() & 0o111 {
            0 => fs::read(&file)?,
            _ => {
                libraries.extend(libraries_of(&file)?);
                stripped(&file)?
            }
        };
        files.insert(file, bytes);
    }
    let mut links: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (path, node) in &contents.node {
        match node {
            Node::File(file) => drop(files.insert(path.clone(), fs::read(file)?)),
            Node::Link(target) => drop(links.insert(path.clone(), target.clone())),
            Node::Bytes(bytes) => drop(files.insert(path.clone(), bytes.clone())),
        }
    }
    let modules = &contents.modules;
    for library in libraries {
        files.insert(library.clone(), fs::read(&library)?);
    }
    files.insert("/init".into(), stripped(&program)?);
    let order: String = modules
        .iter()
        .map(|(name, _)| format!("{name}\n"))
        .collect();
    files.insert(ORDER.into(), order.into_bytes());
    for (name, bytes) in modules {
        files.insert(format!("/modules/{name}.ko").into(), bytes.clone());
    }
    archive_with_links(&files, &links)
}

/// An initramfs with these files, all of them programs, and the folders that a system needs.
pub(crate) fn archive(files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<Vec<u8>> {
    archive_with_links(files, &BTreeMap::new())
}

fn archive_with_links(
    files: &BTreeMap<PathBuf, Vec<u8>>,
    links: &BTreeMap<PathBuf, PathBuf>,
) -> Result<Vec<u8>> {
    let paths = files.keys().chain(links.keys());
    let above = paths.flat_map(|path| path.ancestors().skip(1));
    let mut dirs: BTreeSet<&Path> = above.collect();
    dirs.extend(["/proc", "/sys", "/dev", "/tmp", "/state"].map(Path::new));
    dirs.remove(Path::new("/"));

    let mut out = Vec::new();
    let mut inode = 0;
    let mut builder = |path: &Path, mode: u32| -> Result<Builder> {
        inode += 1;
        let name = path.to_str().context("a path is not UTF-8")?;
        let name = name.trim_start_matches('/');
        Ok(Builder::new(name).ino(inode).mode(mode).nlink(1))
    };
    for dir in dirs {
        builder(dir, 0o040_755)?.write(&mut out, 0).finish()?;
    }
    let console = builder(Path::new("/dev/console"), 0o020_600)?;
    let console = console.rdev_major(5).rdev_minor(1);
    console.write(&mut out, 0).finish()?;
    for (path, target) in links {
        let target = target.as_os_str().as_encoded_bytes();
        let size = u32::try_from(target.len())?;
        let mut writer = builder(path, 0o120_777)?.write(&mut out, size);
        writer.write_all(target)?;
        writer.finish()?;
    }
    for (path, bytes) in files {
        let size = u32::try_from(bytes.len())?;
        let mut writer = builder(path, 0o100_755)?.write(&mut out, size);
        writer.write_all(bytes)?;
        writer.finish()?;
    }
    Ok(trailer(out)?)
}

/// The program without what only a debugger reads, which is most of it.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let small = dir.path().join("program");
    let status = Command::new("strip")
        .arg("-o")
        .arg(&small)
        .arg(program)
        .status();
    let path = match status {
        Ok(status) if status.success() => &small,
        _ => program,
    };
    Ok(fs::read(path)?)
}

/// Modules of a kernel package in the order to load, those that they need before them. What the package
/// does not have is built in.
pub(crate) fn modules(
    package: &str,
    version: &str,
    wanted: &[&str],
) -> Result<Vec<(String, Vec<u8>)>> {
    let unpacked = unpacked(package, version)?;
    let mut files = BTreeMap::new();
    find_modules(&unpacked.join("lib/modules"), &mut files)?;
    let mut order: Vec<(String, Vec<u8>)> = Vec::new();
    for name in wanted {
        add(name, &files, &mut order)?;
        let name = canonical(name);
        ensure!(
            order.iter().any(|(n, _)| *n == name),
            "{package} has no module {name}"
        );
    }
    Ok(order)
}

/// A module's name with the one of the two interchangeable letters that the kernel uses.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn find_modules(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if path.is_dir() {
            find_modules(&path, files)?;
        } else if let Some(name) = name.and_then(|name| name.strip_suffix(".ko")) {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let name = canonical(name);
    let Some(path) = files.get(&name) else {
        return Ok(());
    };
    if order.iter().any(|(n, _)| *n == name) {
        return Ok(());
    }
    let bytes = fs::read(path)?;
    // `.modinfo` has texts with a NUL at the end of each.
    let depends = bytes
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .unwrap_or_default();
    for needed in String::from_utf8_lossy(depends).split(',') {
        add(needed, files, order)?;
    }
    order.push((name, bytes));
    Ok(())
}

/// The files of a kernel package, fetched and unpacked once for all tests.
pub(crate) fn unpacked(package: &str, version: &str) -> Result<PathBuf> {
    let dir = target().join("test-root/kernel-packages");
    fs::create_dir_all(&dir)?;
    let lock = File::create(dir.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let whole = dir.join(format!("{package}_{}", version.replace([':', '/'], "_")));
    if whole.is_dir() {
        return Ok(whole);
    }
    let staging = tempfile::tempdir_in(&dir)?;
    let status = Command::new("apt-get")
        .args(["download", "-qq", &format!("{package}={version}")])
        .current_dir(staging.path())
        .status()?;
    ensure!(status.success(), "apt-get cannot fetch {package} {version}");
    let file = fs::read_dir(staging.path())?.next();
    let file = file.context("apt-get has fetched nothing")??.path();
    let files = staging.path().join("files");
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .args([&file, &files])
        .status()?;
    ensure!(status.success(), "dpkg-deb cannot unpack {package}");
    fs::rename(files, &whole)?;
    Ok(whole)
}
