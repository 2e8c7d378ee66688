//! `aleph ssh` into guests.

use crate::BOOT;
use crate::support::namespace::World;
use crate::support::{Daemon, Ended};
use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What ssh itself ends with where it could not do its part.
const FAILED: i32 = 255;

/// Somebody with a key, in the network of the node.
pub(crate) struct Login {
    netns: String,
    key: PathBuf,
}

impl Login {
    /// With a new key in this folder.
    pub(crate) fn new(world: &World, folder: &Path) -> Result<Self> {
        let key = folder.join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status()?;
        ensure!(made.success(), "ssh-keygen: {made}");
        Ok(Self {
            netns: world.node.clone(),
            key,
        })
    }

    /// The file with the public key.
    pub(crate) fn public(&self) -> PathBuf {
        self.key.with_extension("pub")
    }

    /// Where it is kept which keys guests have.
    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.home().join("aleph/known_hosts")
    }

    fn home(&self) -> PathBuf {
        self.key.with_file_name("home")
    }

    /// Runs `aleph ssh` with these words.
    pub(crate) fn ssh(&self, daemon: &Daemon, words: &[&str]) -> Result<Ended> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.netns])
            .arg(env!("CARGO_BIN_EXE_aleph"))
            .arg("--root")
            .arg(daemon.node.root.path())
            .args(["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=120"])
            .arg("-i")
            .arg(&self.key)
            .args(words)
            .env("XDG_STATE_HOME", self.home())
            .stdin(Stdio::null())
            .output()?;
        Ended::of(output)
    }

    /// Runs a line in a guest once that lets us in, and gives what it wrote.
    #[track_caller]
    pub(crate) fn shell(&self, daemon: &Daemon, name: &str, line: &str) -> Result<String> {
        let mut said = None;
        // What keeps us out is worth more than that nobody answered.
        let patience = BOOT - Duration::from_secs(10);
        let began = std::time::Instant::now();
        let answered = wait_until("ssh", BOOT, || {
            let ended = self.ssh(daemon, &[name, line]);
            let refused = ended.as_ref().is_ok_and(|ended| ended.code == FAILED);
            assert!(
                began.elapsed() < patience,
                "{name} lets nobody in: {said:?}, {ended:?}"
            );
            if refused {
                said = ended.ok();
                return None;
            }
            ended.ok()
        });
        ensure!(answered.code == 0, "{line}: {answered:?}");
        Ok(answered.text())
    }

    /// Runs a line in a guest, again where ssh itself fails, and gives its exit code.
    pub(crate) fn code(&self, daemon: &Daemon, name: &str, line: &str) -> Result<i32> {
        wait_until("ssh", BOOT, || match self.ssh(daemon, &[name, line]) {
            Ok(ended) if ended.code == FAILED => None,
            ended => Some(ended.map(|ended| ended.code)),
        })
    }

    /// The key itself, as a line of `authorized_keys`.
    pub(crate) fn line(&self) -> Result<String> {
        let line = std::fs::read_to_string(self.public()).context("no key")?;
        Ok(line.trim_end().to_owned())
    }
}
