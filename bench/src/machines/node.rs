//! A VM of ours, by the command line that users have.

use super::space::{Shared, wait_for_ssh};
use aleph_testkit::TestRoot;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const NAME: &str = "bench";
const CONFIG: &str = "[executor]\naccel = \"tcg\"\n[limits]\nreserved_memory = \"0m\"\n";
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(2);

/// `aleph up` in the network namespace of this thread.
pub(super) struct Daemon {
    root: TestRoot,
    aleph: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it, and imports the disk image, as the peer has its own at hand.
    pub(super) fn start(aleph: &Path, shared: &Shared) -> Result<Self> {
        let root = TestRoot::new()?;
        let config = root.path().join("aleph.toml");
        std::fs::write(&config, CONFIG)?;
        let log = File::create(root.path().join("daemon.log"))?;
        let child = Command::new(aleph)
            .arg("--root")
            .arg(root.path())
            .args(["up", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut daemon = Self {
            root,
            aleph: aleph.to_owned(),
            child,
        };
        daemon.wait_until_it_answers()?;
        let image = shared.image.to_str().context("a path")?;
        daemon.ok(&["volume", "import", image, "image"])?;
        Ok(daemon)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let began = Instant::now();
        while !self.run(&["ps"])?.status.success() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended: {status}: {}", self.said());
            }
            ensure!(began.elapsed() < LIMIT, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Creates the VM. Gives when the command began, and how long it was until the VM ran.
    pub(super) fn create(&self, shared: &Shared) -> Result<(Instant, Duration)> {
        let (cpus, memory) = (shared.cpus.to_string(), format!("{}m", shared.memory.0));
        let disk = format!("{}m", shared.disk.0);
        let began = Instant::now();
        self.ok(&[
            "vm", "create", NAME, "--image", "image", "--cpus", &cpus, "-m", &memory, "--disk",
            &disk,
        ])?;
        while self.job()?["state"] != "running" {
            ensure!(began.elapsed() < LIMIT, "it does not run: {}", self.said());
            std::thread::sleep(LOOK);
        }
        Ok((began, began.elapsed()))
    }

    /// Waits until one can log in.
    pub(super) fn wait_for_ssh(&self) -> Result<()> {
        let job = self.job()?;
        let address = job["network"]["vm_ip"].as_str().context("an address")?;
        wait_for_ssh(address.parse::<Ipv4Addr>()?).with_context(|| self.said())
    }

    /// Takes the VM and its disk away.
    pub(super) fn remove(&self) -> Result<()> {
        self.ok(&["rm", "-f", NAME]).map(drop)
    }

    /// Ends the daemon, and looks for what is left on the host.
    pub(super) fn end(mut self) -> Result<()> {
        self.terminate()?;
        let left = self.root.residue()?;
        ensure!(left.is_empty(), "it left {left:?}");
        Ok(())
    }

    fn terminate(&mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }

    fn job(&self) -> Result<serde_json::Value> {
        let said = self.ok(&["inspect", NAME])?;
        let jobs: serde_json::Value = serde_json::from_str(&said)?;
        Ok(jobs[0].clone())
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "aleph {words:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.aleph);
        command.arg("--root").arg(self.root.path()).args(words);
        Ok(command.stdin(Stdio::null()).output()?)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.root.path().join("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        let _ = self.remove();
        let _ = self.terminate();
    }
}
