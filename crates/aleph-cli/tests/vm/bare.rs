//! Machines without a system: what is theirs alone, in seconds.

use crate::support::{Daemon, LIMIT, send};
use crate::{is, screen, wait_for};
use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;

/// The process of the TPM that a job's machine has.
fn tpm_of(daemon: &Daemon, job: &Value) -> Result<u32> {
    let vm = job["vm"].as_str().context("no VM")?.parse()?;
    let record = daemon.node.root.paths()?.vm_run(vm).join("tpm.json");
    let record: Value = serde_json::from_slice(&fs::read(record)?)?;
    let pid = record["pid"].as_u64().context("the record has no pid")?;
    Ok(u32::try_from(pid)?)
}

/// The command line of the one QEMU that runs.
fn command_line(daemon: &Daemon) -> Result<String> {
    let line = fs::read(format!("/proc/{}/cmdline", daemon.node.qemu_pid()?))?;
    Ok(String::from_utf8_lossy(&line).replace('\0', " "))
}

/// It is as large as it was made to become, and each start begins with it.
#[test]
fn a_machine_grows_while_it_runs() -> Result<()> {
    let mut daemon = Daemon::up()?;
    let image = daemon.node.root.path().join("bare.raw");
    fs::write(&image, vec![0_u8; 4 << 20])?;
    let image = image.to_str().context("a path")?;
    let create = [
        "vm",
        "create",
        "web",
        "--image",
        image,
        "-m",
        "256M",
        "--max-cpus",
        "2",
        "--max-memory",
        "512M",
    ];
    daemon.ok(&create)?;
    wait_for(&daemon, "web", "running");
    let line = command_line(&daemon)?;
    assert!(
        line.contains(" -smp cpus=1,") && line.contains(",maxcpus=2 "),
        "{line}"
    );
    assert!(
        line.contains(" -m size=256M,slots=2,maxmem=512M "),
        "{line}"
    );
    let size = |job: &Value| {
        let resources = &job["spec"]["resources"];
        (resources["cpus"].as_u64(), resources["memory"].as_u64())
    };

    for (words, said) in [
        (&["--cpus", "3"][..], &["at most 2 CPUs", "--max-cpus"][..]),
        (
            &["-m", "1g"],
            &["at most 512 MiB of memory", "--max-memory"],
        ),
        (&["-m", "128m"], &["does not get smaller", "aleph vm stop"]),
        (&["-m", "300m"], &["steps of 128 MiB"]),
    ] {
        daemon.aleph(&resize(words))?.assert_failed_with(said);
    }
    let job = is(&daemon, "web", "running").context("it does not run")?;
    assert_eq!(size(&job), (Some(1), Some(256)), "{job:#}");
    assert_eq!(daemon.ok(&resize(&["--cpus", "2", "-m", "384m"]))?, "web");
    let grown = daemon.json(&resize(&["-m", "512M", "--json"]))?;
    assert_eq!(size(&grown), (Some(2), Some(512)), "{grown:#}");

    // Whoever kills the daemon loses nothing, and the machine begins with what it has become.
    daemon.kill_and_restart()?;
    let job = wait_for(&daemon, "web", "running");
    assert_eq!(size(&job), (Some(2), Some(512)), "{job:#}");
    daemon.ok(&["vm", "stop", "-t", "1", "web"])?;
    daemon.ok(&["vm", "start", "web"])?;
    wait_for(&daemon, "web", "running");
    let line = command_line(&daemon)?;
    assert!(
        line.contains(" -smp cpus=2,") && line.contains(",maxcpus=2 "),
        "{line}"
    );
    assert!(line.contains(" -m size=512M "), "{line}");

    // One that does not run becomes smaller, too, and grows again.
    daemon.ok(&["vm", "stop", "-t", "1", "web"])?;
    daemon.ok(&resize(&["--cpus", "1", "-m", "256m"]))?;
    daemon.ok(&["vm", "start", "web"])?;
    wait_for(&daemon, "web", "running");
    let line = command_line(&daemon)?;
    assert!(
        line.contains(" -smp cpus=1,") && line.contains(",maxcpus=2 "),
        "{line}"
    );
    assert!(
        line.contains(" -m size=256M,slots=2,maxmem=512M "),
        "{line}"
    );
    daemon.ok(&resize(&["--cpus", "2"]))?;
    daemon.ok(&["vm", "rm", "-f", "web"])?;
    daemon.end()
}

/// What a machine is without a guest: firmware that finds nothing to boot.
#[test]
fn a_machine_without_a_system_runs_until_its_power_goes() -> Result<()> {
    let mut daemon = Daemon::up()?;
    let image = daemon.node.root.path().join("bare.raw");
    fs::write(&image, vec![0_u8; 4 << 20])?;
    let image = image.to_str().context("a path")?;
    let create = |name: &str, words: &[&str]| {
        let common = ["vm", "create", name, "--image", image, "-m", "256M"];
        daemon.aleph(&[&common[..], words].concat())
    };
    // A file becomes a volume, once.
    let made = create("web", &["--tpm"])?;
    assert_eq!(made.code, 0, "{made:?}");
    assert!(
        made.stderr.contains("importing") && made.stderr.contains("bare-"),
        "{made:?}"
    );
    let again = create("two", &["--no-start"])?;
    assert_eq!((again.code, &again.stderr[..]), (0, ""));
    daemon.ok(&["rm", "two"])?;
    let id = made.text().trim().to_owned();
    let running = wait_for(&daemon, "web", "running");
    assert_eq!(running["impaired"], Value::Null);
    // What a daemon leaves that is killed while it makes a machine.
    let half = daemon.node.root.path().join("machines/0123.tmp");
    fs::create_dir_all(half.join("tpm"))?;

    daemon.kill_and_restart()?;
    assert!(!half.exists(), "half a machine stays");
    wait_for(&daemon, "web", "running");

    // What breaks of it is said, also of one that is taken over.
    let tpm = tpm_of(&daemon, &running)?;
    send(tpm, Signal::KILL)?;
    wait_until("the TPM's end to be said", LIMIT, || {
        let job = is(&daemon, "web", "running")?;
        let why = job["impaired"].as_str()?;
        assert!(why.contains("TPM"), "{job:#}");
        Some(())
    });
    let listed = daemon.ok(&["vm", "ls"])?;
    assert!(listed.contains("(impaired)"), "{listed}");

    // Its console is its log, over the end of a daemon, and its screen speaks RFB.
    daemon.kill_and_restart()?;
    wait_for(&daemon, "web", "running");
    wait_until("the firmware's words", LIMIT, || {
        daemon
            .ok(&["logs", "web"])
            .ok()?
            .contains("Bds")
            .then_some(())
    });
    let picture = screen::look(&daemon, "web")?;
    assert!(
        picture.width >= 640 && picture.height >= 400 && picture.name.contains("QEMU"),
        "{picture:?}"
    );

    // Nobody listens to its power button.
    daemon.ok(&["vm", "stop", "-t", "1", "web"])?;
    let stopped = is(&daemon, "web", "exited").context("it has not stopped")?;
    assert_eq!(stopped["exit"], Value::Null, "{stopped:#}");
    assert_eq!(stopped["impaired"], Value::Null, "{stopped:#}");

    // Its root disk goes with it, and not before.
    let root = format!("root-{}", &id[2..]);
    daemon.ok(&["volume", "snapshot", &root, "then"])?;
    for words in [
        &["volume", "rm", "--now", &root][..],
        &["volume", "restore", &root, "then"],
    ] {
        let refused = daemon.aleph(words)?;
        refused.assert_failed_with(&["is the root disk of job \"web\""]);
    }

    // Whoever else ends its machine does not end it in order: QEMU's exit code is 0 all the same.
    daemon.ok(&["vm", "start", "web"])?;
    wait_for(&daemon, "web", "running");
    let qemu = u32::try_from(daemon.node.qemu_pid()?)?;
    send(qemu, Signal::TERM)?;
    let failed = wait_for(&daemon, "web", "failed");
    assert_eq!(failed["exit"], Value::Null, "{failed:#}");
    daemon.ok(&["vm", "rm", "web"])?;
    let volumes = daemon.ok(&["volume", "ls", "-q"])?;
    assert!(!volumes.contains("root-"), "{volumes}");
    daemon.end()
}

/// What resizes the VM.
fn resize<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["vm", "resize", "web"], words].concat()
}
