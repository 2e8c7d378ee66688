//! A daemon of a test's own.

use super::{Ended, LIMIT, Node};
use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A node whose daemon runs as a process of its own. Its jobs are removed and it is stopped by
/// [`Daemon::end`]; a test that fails before leaves that to [`Drop`].
pub(crate) struct Daemon {
    pub(crate) node: Node,
    child: Child,
    words: Vec<String>,
    ended: bool,
}

impl Daemon {
    pub(crate) fn up() -> Result<Self> {
        Self::configured("", &[])
    }

    /// With a configuration and further words.
    pub(crate) fn configured(config: &str, words: &[&str]) -> Result<Self> {
        Self::over(Node::new()?, config, words)
    }

    /// The same over a node's folder that has something in it.
    pub(crate) fn over(node: Node, config: &str, words: &[&str]) -> Result<Self> {
        let file = node.root.path().join("aleph.toml");
        std::fs::write(&file, config)?;
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(&node, &words, None)?;
        let mut daemon = Self {
            node,
            child,
            words,
            ended: false,
        };
        daemon.wait_until_up()?;
        Ok(daemon)
    }

    /// Kills the daemon, and starts the next in the same folder.
    pub(crate) fn kill_and_restart(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.node, &self.words, None)?;
        self.wait_until_up()
    }

    /// The same, with another configuration.
    pub(crate) fn kill_and_restart_with(&mut self, config: &str) -> Result<()> {
        self.configure(config)?;
        self.kill_and_restart()
    }

    /// Gives the next daemon another configuration.
    pub(crate) fn configure(&self, config: &str) -> Result<()> {
        Ok(std::fs::write(
            self.node.root.path().join("aleph.toml"),
            config,
        )?)
    }

    /// The same, with a daemon that kills itself when it passes this place.
    pub(crate) fn kill_and_restart_to_die_at(&mut self, failpoint: &str) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.node, &self.words, Some(failpoint))?;
        self.wait_until_up()
    }

    /// Whether the daemon has ended.
    pub(crate) fn is_gone(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills the daemon; another one with this configuration and these words does not come up.
    /// Says why. [`Daemon::kill_and_restart`] goes on as before.
    pub(crate) fn is_refused(&mut self, config: &str, words: &[&str]) -> Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        let file = self.node.root.path().join("refused.toml");
        std::fs::write(&file, config)?;
        let mut command = self.node.command(&["up", "--config"]);
        command.arg(&file).args(words);
        let log = self.node.root.path().join("refused.log");
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        let mut refused = command.env_remove("ALEPH_NO_NETWORK").spawn()?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = refused.try_wait()? {
                break status;
            }
            if began.elapsed() > LIMIT {
                refused.kill()?;
                break refused.wait()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let said = std::fs::read_to_string(log)?;
        anyhow::ensure!(
            status.code().is_some_and(|code| code != 0),
            "{status}: {said}"
        );
        Ok(said)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let socket = self.node.root.paths()?.run().join(aleph_control::SOCKET);
        wait_until("the daemon's socket", LIMIT, || {
            let gone = self.child.try_wait().is_ok_and(|status| status.is_some());
            assert!(!gone, "the daemon ended: {}", self.log());
            let connection = std::os::unix::net::UnixStream::connect(&socket).ok()?;
            // A process that the killed daemon was about to start has its listener until it is
            // another program: what connects until then is heard by nobody.
            let listener = rustix::net::sockopt::socket_peercred(connection).ok()?;
            (listener.pid.as_raw_nonzero().get().cast_unsigned() == self.pid()).then_some(())
        });
        Ok(())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.node.root.path().join("daemon.log")).unwrap_or_default()
    }

    /// The process number of the daemon.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.node.command(words)
    }

    pub(crate) fn aleph(&self, words: &[&str]) -> Result<Ended> {
        self.node.aleph(words)
    }

    /// Runs aleph, which has to succeed, and gives what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, words: &[&str]) -> Result<String> {
        let ended = self.aleph(words)?;
        assert_eq!(ended.code, 0, "{words:?}: {ended:?}\n{}", self.log());
        Ok(ended.text().trim_end().to_owned())
    }

    /// The same as JSON.
    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.ok(words)?;
        serde_json::from_str(&text).with_context(|| format!("{words:?}: {text}"))
    }

    /// Starts a busybox job that runs on, and gives its id.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, line: &str) -> Result<String> {
        self.ok(&["run", "-d", "--name", name, "busybox", "sh", "-c", line])
    }

    /// Removes all jobs, stops the daemon and checks that nothing is left.
    pub(crate) fn end(mut self) -> Result<()> {
        let jobs = self.ok(&["ps", "-aq", "--no-trunc"])?;
        let jobs: Vec<&str> = jobs.lines().collect();
        if !jobs.is_empty() {
            self.ok(&[&["rm", "-f"][..], &jobs].concat())?;
        }
        super::send(self.child.id(), Signal::TERM)?;
        let status = self.child.wait()?;
        self.ended = true;
        anyhow::ensure!(status.success(), "the daemon: {status}\n{}", self.log());
        // A VMM whose daemon was killed is some other process's child, which buries it.
        let root = &self.node.root;
        wait_until("a host without residue", LIMIT, || {
            root.residue()
                .is_ok_and(|left| left.is_empty())
                .then_some(())
        });
        self.node.assert_clean()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        eprintln!("the daemon said:\n{}", self.log());
        if let Ok(Ended { stdout, .. }) = self.aleph(&["ps", "-aq", "--no-trunc"]) {
            let jobs = String::from_utf8_lossy(&stdout).into_owned();
            let jobs: Vec<&str> = jobs.lines().collect();
            for job in &jobs {
                // Of a guest with a disk of its own that is its console.
                if let Ok(said) = self.aleph(&["logs", "--tail", "60", job]) {
                    eprintln!("{job} said:\n{}", said.text());
                }
            }
            let _ = self.aleph(&[&["rm", "-f"][..], &jobs].concat());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(node: &Node, words: &[String], failpoint: Option<&str>) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(node.root.path().join("daemon.log"))?;
    let file = node.root.path().join("aleph.toml");
    let mut command = node.command(&["up", "--config"]);
    command.arg(&file).args(words).stdout(Stdio::null());
    if let Some(place) = failpoint {
        command.env("ALEPH_FAILPOINT", place);
    }
    // VMs are connected in a namespace of the test's own, and nowhere else.
    if words.iter().any(|word| word == "--netns") {
        command.env_remove("ALEPH_NO_NETWORK");
    }
    Ok(command.stderr(log).spawn()?)
}
