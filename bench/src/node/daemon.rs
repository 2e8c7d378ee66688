//! `aleph up` as a process, on a folder of its own.

use super::at_once;
use super::client::{Client, LIMIT};
use aleph_testkit::TestRoot;
use aleph_types::JobList;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon. Where it is dropped before [`Daemon::end`], all its jobs are removed.
pub(super) struct Daemon {
    root: TestRoot,
    aleph: PathBuf,
    child: Child,
    ended: bool,
}

const CONFIG: &str = r#"
[executor]
accel = "tcg"
boot_timeout_seconds = 180
[limits]
overcommit_cpus = 1000
overcommit_memory = 100
reserved_memory = "0m"
"#;

/// How long to wait before another look: far less than what is measured by it.
const LOOK: Duration = Duration::from_millis(2);

impl Daemon {
    /// Starts the first daemon of a new folder.
    pub(super) fn start(aleph: &Path) -> Result<Self> {
        let root = TestRoot::new()?;
        std::fs::write(root.path().join("aleph.toml"), CONFIG)?;
        let child = spawn(aleph, &root)?;
        let mut daemon = Self {
            root,
            aleph: aleph.to_owned(),
            child,
            ended: false,
        };
        daemon.client()?;
        Ok(daemon)
    }

    pub(super) fn socket(&self) -> Result<PathBuf> {
        Ok(self.root.paths()?.run().join(aleph_control::SOCKET))
    }

    /// A client, as soon as the daemon answers one.
    pub(super) fn client(&mut self) -> Result<Client> {
        let (socket, began) = (self.socket()?, Instant::now());
        loop {
            if let Ok(client) = Client::connect(&socket) {
                return Ok(client);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended: {status}: {}", self.said());
            }
            ensure!(began.elapsed() < LIMIT, "the daemon does not answer");
            std::thread::sleep(LOOK);
        }
    }

    /// SIGKILL, and the next one in the same folder. Gives when that one was executed.
    pub(super) fn kill_and_restart(&mut self) -> Result<Instant> {
        self.child.kill()?;
        self.child.wait()?;
        let began = Instant::now();
        self.child = spawn(&self.aleph, &self.root)?;
        Ok(began)
    }

    /// Its share of the memory that it maps, in bytes.
    pub(super) fn memory(&self) -> Result<u64> {
        share_of_memory(self.child.id())
    }

    /// The same of all its VMMs together, which is what their records name.
    pub(super) fn memory_of_vmms(&self) -> Result<u64> {
        let mut all = 0;
        for entry in std::fs::read_dir(self.root.paths()?.vms())?.flatten() {
            let Ok(record) = std::fs::read(entry.path().join("vmm.json")) else {
                continue;
            };
            let record: serde_json::Value = serde_json::from_slice(&record)?;
            let pid = record["pid"].as_u64().context("a record without a pid")?;
            all += share_of_memory(u32::try_from(pid)?)?;
        }
        Ok(all)
    }

    /// Removes all jobs, ends the daemon and looks for what is left on the host.
    pub(super) fn end(mut self) -> Result<Duration> {
        let began = Instant::now();
        self.remove_all()?;
        let took = began.elapsed();
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("a process number")?;
        kill_process(pid, Signal::TERM)?;
        let status = self.child.wait()?;
        self.ended = true;
        ensure!(status.success(), "the daemon: {status}: {}", self.said());
        // A VMM whose daemon was killed is some other process's child, which buries it.
        let began = Instant::now();
        loop {
            let left = self.root.residue()?;
            if left.is_empty() {
                return Ok(took);
            }
            ensure!(began.elapsed() < LIMIT, "it left {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn remove_all(&mut self) -> Result<()> {
        let list = self.client()?.want(200, "GET", "/v1/jobs?limit=1000", "")?;
        let list: JobList = serde_json::from_slice(&list.body)?;
        let jobs: Vec<String> = list.jobs.iter().map(|job| job.id.to_string()).collect();
        let socket = self.socket()?;
        at_once(
            8,
            &jobs,
            || Client::connect(&socket),
            |client, id| {
                client
                    .want(204, "DELETE", &format!("/v1/jobs/{id}?force=true"), "")
                    .map(drop)
            },
        )
        .map(drop)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.root.path().join("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        eprintln!("the daemon said:\n{}", self.said());
        if self.child.try_wait().is_ok_and(|status| status.is_some())
            && let Ok(child) = spawn(&self.aleph, &self.root)
        {
            self.child = child;
        }
        if let Err(error) = self.remove_all() {
            eprintln!("VMs are left: {error:#}");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(aleph: &Path, root: &TestRoot) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(root.path().join("daemon.log"))?;
    Command::new(aleph)
        .arg("--root")
        .arg(root.path())
        .args(["up", "--no-network", "--config"])
        .arg(root.path().join("aleph.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run {}", aleph.display()))
}

/// The `Pss` of a process in bytes.
fn share_of_memory(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .context("no Pss")?
        .parse()?;
    Ok(kib * 1024)
}
