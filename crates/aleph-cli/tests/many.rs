//! Many VMs at once, and a daemon that is killed over them. `make bench ONLY=node` does the same
//! with a hundred.

mod support;

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::time::Instant;
use support::{Daemon, LIMIT};

const VMS: usize = 12;

#[test]
fn alone_a_dozen_vms_answer_and_outlive_their_daemon() -> Result<()> {
    // Each has a CPU, on however few there are, and the time that it takes to boot among others.
    let config = "[limits]\novercommit_cpus = 1000\n[executor]\nboot_timeout_seconds = 600\n";
    let mut daemon = Daemon::configured(config, &[])?;
    let starting: Vec<_> = (0..VMS)
        .map(|n| {
            let name = format!("vm-{n}");
            let words = ["run", "-d", "--name", &name, "busybox", "sleep", "100000"];
            daemon.command(&words).spawn()
        })
        .collect::<Result<_, _>>()?;
    for child in starting {
        let ended = support::finish(child)?;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let before = all_running(&daemon)?;
    all_answer(&daemon, &before)?;
    assert_eq!(before.len(), VMS);

    daemon.kill_and_restart()?;
    let after = all_running(&daemon)?;
    assert_eq!(after, before, "a guest is not what it was");
    all_answer(&daemon, &after)?;
    daemon.end()
}

/// The boot that the node knows of each job's guest, once all of them run.
fn all_running(daemon: &Daemon) -> Result<BTreeMap<String, String>> {
    let began = Instant::now();
    loop {
        let mut running = BTreeMap::new();
        for n in 0..VMS {
            let name = format!("vm-{n}");
            let job = daemon.json(&["inspect", &name])?;
            let job = &job[0];
            if job["state"] == "running" {
                let boot = job["guest_boot_id"].as_str().context("no boot id")?;
                running.insert(name, boot.to_owned());
            }
        }
        if running.len() == VMS {
            return Ok(running);
        }
        ensure!(began.elapsed() < LIMIT * 5, "only {running:?} run");
    }
}

/// Asks all guests at once which boot theirs is.
fn all_answer(daemon: &Daemon, boots: &BTreeMap<String, String>) -> Result<()> {
    let asked: Vec<_> = boots
        .iter()
        .map(|(name, boot)| {
            let words = ["exec", name, "cat", "/proc/sys/kernel/random/boot_id"];
            Ok((name, boot, daemon.command(&words).spawn()?))
        })
        .collect::<Result<_>>()?;
    for (name, boot, child) in asked {
        let ended = support::finish(child)?;
        assert_eq!(
            (ended.code, ended.text().trim()),
            (0, boot.as_str()),
            "{name}"
        );
    }
    Ok(())
}
