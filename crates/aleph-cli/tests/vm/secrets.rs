//! Who may read what a user told in confidence.

use crate::support::Daemon;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// What every secret of a test begins with.
pub(crate) const SECRET: &str = "hush-5b0c77";

/// Checks that no file of a node has a secret where others than its user could read it, and that
/// at least one has it at all.
pub(crate) fn are_kept_on_the_host(daemon: &Daemon) -> Result<()> {
    let root = daemon.node.root.path();
    let found = Command::new("grep")
        .args(["-rlsaF", SECRET])
        .arg(root)
        .output()?;
    let found = String::from_utf8(found.stdout)?;
    ensure!(!found.is_empty(), "nothing of the node's has the secret");
    for path in found.lines().map(Path::new) {
        ensure!(!is_open(root, path)?, "others may read {}", path.display());
    }
    ensure!(!daemon.log().contains(SECRET), "{}", daemon.log());
    Ok(())
}

/// Whether others get to a file below this folder and may read it. The folder itself is as open as
/// `/var/lib/aleph` may be.
fn is_open(root: &Path, file: &Path) -> Result<bool> {
    let mode =
        |path: &Path| -> Result<u32> { Ok(fs::symlink_metadata(path)?.permissions().mode()) };
    let above = file.parent().context("a folder")?.ancestors();
    for folder in above.take_while(|folder| *folder != root) {
        if mode(folder)? & 0o001 == 0 {
            return Ok(false);
        }
    }
    Ok(mode(file)? & 0o004 != 0)
}

/// A line for a guest's shell: prints whatever a user without rights finds the secret in.
pub(crate) fn seen_by(user: &str) -> String {
    format!(
        "sudo -n -u {user} grep -rlsaF {SECRET} \
         /etc /run /opt /srv /tmp /var/log /var/lib/cloud /proc/cmdline 2>/dev/null; true"
    )
}
