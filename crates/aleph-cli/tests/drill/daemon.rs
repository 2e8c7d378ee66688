//! A daemon that is started and killed.

use crate::support::namespace::World;
use crate::support::{LIMIT, Node};
use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Daemon {
    child: Option<Child>,
}

impl Daemon {
    /// Starts `aleph up`, which connects its VMs in the node's namespace, and dies at this step of
    /// its work. Without one it is waited for until it answers.
    pub(crate) fn start(node: &Node, world: &World, point: Option<&str>) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(node.root.path().join("daemon.log"))?;
        // Guests that boot side by side, of a daemon that is killed, may take long.
        let config = node.root.path().join("aleph.toml");
        std::fs::write(&config, "[executor]\nboot_timeout_seconds = 600\n")?;
        let mut command = node.command(&["up", "--netns", &world.node, "--config"]);
        command.arg(&config);
        command.env_remove("ALEPH_NO_NETWORK");
        command.stdout(Stdio::null()).stderr(log);
        if let Some(point) = point {
            command.env("ALEPH_FAILPOINT", point);
        }
        let mut child = command.spawn()?;
        wait_until("the daemon to answer", LIMIT, || {
            let ended = child.try_wait().ok().flatten().is_some();
            let answers = node.aleph(&["ps"]).is_ok_and(|ended| ended.code == 0);
            // One that dies at a step may do so before it answers.
            (answers || ended && point.is_some()).then_some(())
        });
        Ok(Self { child: Some(child) })
    }

    /// Whether it has died by itself before this moment.
    pub(crate) fn died_by(&mut self, moment: Instant) -> Result<bool> {
        let child = self.child.as_mut().context("no daemon")?;
        loop {
            if child.try_wait()?.is_some() {
                return Ok(true);
            }
            if Instant::now() >= moment {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait()?;
        }
        Ok(())
    }

    /// Has it end in order.
    pub(crate) fn stop(&mut self, _node: &Node) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = wait_until("the daemon to end", LIMIT, || child.try_wait().ok()?);
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
