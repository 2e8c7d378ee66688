//! A node in a process of its own that does one thing and is killed on its way.

use aleph_testkit::TestRoot;
use aleph_types::{JobId, VmId};
use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const ROOT: &str = "ALEPH_VICTIM_ROOT";
const JOB: &str = "ALEPH_VICTIM_JOB";
const CHANGE: &str = "ALEPH_VICTIM_CHANGE";

/// Does that one thing, where this is such a process: with the node's root, a job, and what it is. Whether it is one.
pub(crate) fn is_one(change: impl AsyncFnOnce(&TestRoot, JobId, &str) -> Result<()>) -> bool {
    let Some(root) = std::env::var_os(ROOT) else {
        return false;
    };
    let done = || -> Result<()> {
        let (job, what) = (std::env::var(JOB)?, std::env::var(CHANGE)?);
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(change(&TestRoot::over(root.into()), job.parse()?, &what))
    };
    if let Err(error) = done() {
        eprintln!("{error:?}");
        std::process::exit(1);
    }
    true
}

/// Has a process do one thing and die on its way, at this place.
pub(crate) async fn killed_at(
    root: &TestRoot,
    job: JobId,
    change: String,
    place: &'static str,
) -> Result<()> {
    let root = root.path().to_owned();
    let output = tokio::task::spawn_blocking(move || {
        Command::new(std::env::current_exe()?)
            .env(ROOT, root)
            .env(JOB, job.to_string())
            .env(CHANGE, &change)
            .env("ALEPH_FAILPOINT", place)
            .output()
    })
    .await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.signal() == Some(9),
        "{place} is not come by: {} {said}",
        output.status
    );
    Ok(())
}

/// The process of a VM.
pub(crate) fn qemu_of(root: &TestRoot, vm: VmId) -> Result<Pid> {
    let record = root.paths()?.vm_state(vm).join("vmm.json");
    let text = std::fs::read_to_string(&record).with_context(|| record.display().to_string())?;
    let record: serde_json::Value = serde_json::from_str(&text)?;
    let pid = record["pid"].as_i64().context("no pid")?;
    Pid::from_raw(i32::try_from(pid)?).context("no process")
}
