//! Runs `aleph` on a node's folder of a test's own.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

mod daemon;
pub(crate) mod namespace;
mod terminal;

pub(crate) use daemon::Daemon;
pub(crate) use terminal::Terminal;

use aleph_testkit::{TestRoot, wait_until};
use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Longer than anything but a hang, on a busy host that emulates.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Node {
    pub(crate) root: TestRoot,
}

/// What a user's shell may say to aleph, and to what would come of a test.
const SAID: [&str; 13] = [
    "ALEPH_ACCEL",
    "ALEPH_ACCOUNT",
    "ALEPH_CACERT",
    "ALEPH_CONFIG",
    "ALEPH_HOST",
    "ALEPH_HYPERVISOR",
    "ALEPH_LOG",
    "ALEPH_QEMU",
    "ALEPH_ROOT",
    "ALEPH_TOKEN",
    "FIRECRACKER_BIN",
    "JAILER_BIN",
    "RUST_BACKTRACE",
];

/// The program under test, whatever the shell of whoever runs the tests says to it.
pub(crate) fn aleph() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aleph"));
    for name in SAID {
        command.env_remove(name);
    }
    command
}

impl Node {
    /// A node with a kernel and the busybox image.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            root: TestRoot::new()?,
        })
    }

    /// A node with nothing.
    pub(crate) fn empty() -> Result<Self> {
        Ok(Self {
            root: TestRoot::empty()?,
        })
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = aleph();
        command.arg("--root").arg(self.root.path()).args(words);
        command
            .env("ALEPH_NO_NETWORK", "true")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs aleph to its end.
    pub(crate) fn aleph(&self, words: &[&str]) -> Result<Ended> {
        Ended::of(self.command(words).output()?)
    }

    /// Runs a command line in the busybox image.
    pub(crate) fn sh(&self, line: &str) -> Result<Ended> {
        self.aleph(&["run", "--rm", "-q", "busybox", "--", "sh", "-c", line])
    }

    /// Runs aleph with bytes on standard input.
    pub(crate) fn fed(&self, words: &[&str], input: &[u8]) -> Result<Ended> {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let input = input.to_vec();
        let feeder = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output()?;
        feeder
            .join()
            .map_err(|_| anyhow::anyhow!("the feeder panicked"))??;
        Ended::of(output)
    }

    /// Checks that nothing of any VM is left.
    pub(crate) fn assert_clean(&self) -> Result<()> {
        assert_eq!(self.root.residue()?, Vec::<String>::new());
        Ok(())
    }

    /// The process number of the one QEMU that runs for this node, once it does.
    pub(crate) fn qemu_pid(&self) -> Result<i32> {
        let vms = self.root.paths()?.vms();
        let record = wait_until("QEMU's record", LIMIT, || {
            let entries = std::fs::read_dir(&vms).ok()?.flatten();
            let mut records = entries.filter_map(|e| std::fs::read(e.path().join("vmm.json")).ok());
            records.find_map(|r| serde_json::from_slice::<serde_json::Value>(&r).ok())
        });
        let pid = record["pid"].as_i64().context("the record has no pid")?;
        Ok(i32::try_from(pid)?)
    }

    /// An initramfs of a test's own: `init` is its `/init`, and busybox is in it.
    pub(crate) fn initrd(&self, init: &str) -> Result<PathBuf> {
        let (tree, file) = (
            self.root.path().join("tree"),
            self.root.path().join("own.cpio"),
        );
        std::fs::create_dir_all(tree.join("bin"))?;
        std::fs::create_dir_all(tree.join("dev"))?;
        std::fs::write(tree.join("init"), init)?;
        // The image has a static one.
        std::fs::write(
            tree.join("bin/busybox"),
            self.sh("cat /bin/busybox")?.stdout,
        )?;
        let script = "chmod 755 init bin/busybox && \
                      find . | cpio --quiet -o -H newc > ../own.cpio";
        let done = Command::new("sh")
            .args(["-c", script])
            .current_dir(&tree)
            .status()?;
        anyhow::ensure!(done.success(), "packing an initramfs: {done}");
        Ok(file)
    }

    /// The kernel of the shared bundle.
    pub(crate) fn kernel(&self) -> Result<PathBuf> {
        let bundle = self.root.bundle()?;
        Ok(bundle
            .vmlinux()
            .context("no uncompressed kernel")?
            .to_owned())
    }
}

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Result<Self> {
        Ok(Self {
            code: output
                .status
                .code()
                .with_context(|| format!("aleph: {}", output.status))?,
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Checks that aleph itself failed, with these words.
    #[track_caller]
    pub(crate) fn assert_failed_with(&self, words: &[&str]) {
        assert_eq!(self.code, 125, "{self:?}");
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no {word:?} in: {}",
                self.stderr
            );
        }
    }
}

/// Waits for a child and gives what it wrote.
pub(crate) fn finish(child: Child) -> Result<Ended> {
    Ended::of(child.wait_with_output()?)
}

/// Sends a signal to a process that a test started.
pub(crate) fn send(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a process number")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}
