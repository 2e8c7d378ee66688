//! `aleph snapshot`, `aleph restore` and `aleph fork` over a daemon, with real VMs, and what becomes
//! of a job whose daemon dies while it is written down.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use support::{Daemon, LIMIT};

/// Counts for as long as it lives.
const COUNTER: &str = "echo kept > /root/file; i=0; while :; do i=$((i+1)); echo count $i; \
     sleep 0.05; done";

/// What a job has counted to, each number once and in order.
fn counts(daemon: &Daemon, job: &str) -> Result<Vec<u64>> {
    let text = daemon.ok(&["logs", job])?;
    let numbers = text.lines().map(|line| -> Result<u64> {
        let number = line.strip_prefix("count ");
        Ok(number.with_context(|| format!("{line:?}"))?.parse()?)
    });
    let numbers: Vec<u64> = numbers.collect::<Result<_>>()?;
    let in_order = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    ensure!(in_order, "lost or doubled: {numbers:?}");
    Ok(numbers)
}

/// Waits until a job counts on beyond what it has counted to.
fn counts_on(daemon: &Daemon, job: &str) -> Result<Vec<u64>> {
    let before = counts(daemon, job)?.last().copied().unwrap_or(0);
    wait_until("a job that counts on", LIMIT, || {
        let found = counts(daemon, job);
        let goes_on = found.as_ref().map_or(true, |found| {
            found.last().is_some_and(|last| *last > before + 3)
        });
        goes_on.then_some(found)
    })
}

fn folders(daemon: &Daemon) -> Vec<String> {
    let dir = daemon.node.root.path().join("snapshots");
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

#[test]
fn a_job_is_suspended_goes_on_and_is_forked() -> Result<()> {
    let mut daemon = Daemon::up()?;
    let words = [
        "run", "-d", "--name", "first", "--disk", "64m", "busybox", "sh", "-c", COUNTER,
    ];
    daemon.ok(&words)?;
    counts_on(&daemon, "first")?;
    let id = daemon.ok(&["snapshot", "first", "--stop"])?;
    assert!(id.starts_with("0x") && id.len() == 34, "{id}");
    assert!(daemon.ok(&["ps", "-a"])?.contains("Exited"));
    let last = counts(&daemon, "first")?
        .last()
        .copied()
        .context("it counted")?;
    daemon.kill_and_restart()?;

    let table = daemon.ok(&["snapshot", "ls"])?;
    assert!(
        table.contains(&id[..10]) && table.contains("first"),
        "{table}"
    );
    assert_eq!(daemon.ok(&["snapshot", "ls", "-q", "--no-trunc"])?, id);
    let told = daemon.json(&["snapshot", "inspect", &id[..10]])?;
    assert_eq!(
        (told[0]["id"].as_str(), told[0]["job_name"].as_str()),
        (Some(&*id), Some("first"))
    );

    let job = daemon.ok(&["restore", "--name", "second", &id[2..10]])?;
    daemon.ok(&["wait", "--state", "running", &job])?;
    let goes_on = counts_on(&daemon, "second")?;
    assert!(
        (last + 1..=last + 2).contains(&goes_on[0]),
        "{last} {}",
        goes_on[0]
    );
    assert_eq!(daemon.ok(&["exec", "second", "cat", "/root/file"])?, "kept");
    let taken = daemon.aleph(&["restore", "--name", "second", &id])?;
    taken.assert_failed_with(&["taken"]);

    let copies = daemon.ok(&["fork", "second", "-n", "2", "--name", "copy"])?;
    assert_eq!(copies.lines().count(), 2, "{copies}");
    let mut hosts = Vec::new();
    for copy in ["copy-1", "copy-2"] {
        daemon.ok(&["wait", "--state", "running", copy])?;
        counts_on(&daemon, copy)?;
        hosts.push(daemon.ok(&["exec", copy, "hostname"])?);
    }
    assert_ne!(hosts[0], hosts[1]);
    counts_on(&daemon, "second")?;
    daemon.ok(&["snapshot", "rm", &id])?;
    daemon
        .aleph(&["restore", &id])?
        .assert_failed_with(&["no snapshot"]);
    daemon
        .aleph(&["snapshot", "first"])?
        .assert_failed_with(&["exited"]);
    wait_until("no snapshot", LIMIT, || {
        folders(&daemon).is_empty().then_some(())
    });
    daemon.end()
}

#[test]
fn a_daemon_that_dies_while_it_writes_leaves_a_guest_that_goes_on() -> Result<()> {
    let mut daemon = Daemon::up()?;
    let words = [
        "run", "-d", "--name", "first", "--disk", "64m", "busybox", "sh", "-c", COUNTER,
    ];
    daemon.ok(&words)?;
    for (place, is_kept) in [
        ("snapshot.intend:after", false),
        ("snapshot.frozen:after", false),
        ("snapshot.saved:after", false),
        ("snapshot.name:before", false),
        ("snapshot.name:after", false),
        ("snapshot.keep:before", false),
        ("snapshot.keep:after", true),
    ] {
        daemon.kill_and_restart_to_die_at(place)?;
        counts_on(&daemon, "first")?;
        let broken = daemon.aleph(&["snapshot", "first"])?;
        assert_eq!(broken.code, 125, "{place}: {broken:?}");
        let _: bool = wait_until("the daemon's end", LIMIT, || {
            daemon.is_gone().ok().filter(|gone| *gone)
        });
        daemon.kill_and_restart()?;
        daemon.ok(&["wait", "--state", "running", "first"])?;
        counts_on(&daemon, "first").context(place)?;
        let found = daemon.ok(&["snapshot", "ls", "-q"])?;
        assert_eq!(
            found.lines().count(),
            usize::from(is_kept),
            "{place}: {found}"
        );
        assert_eq!(folders(&daemon).len(), usize::from(is_kept), "{place}");
        if is_kept {
            daemon.ok(&["snapshot", "rm", &found])?;
        }
    }
    // It was one guest all the time.
    assert_eq!(counts(&daemon, "first")?[0], 1);
    daemon.end()
}

#[test]
fn a_daemon_that_dies_while_a_job_ends_or_begins_with_a_snapshot_finishes_that() -> Result<()> {
    let mut daemon = Daemon::up()?;
    let words = [
        "run", "-d", "--name", "first", "busybox", "sh", "-c", COUNTER,
    ];
    daemon.ok(&words)?;
    daemon.kill_and_restart_to_die_at("snapshot.keep:after")?;
    counts_on(&daemon, "first")?;
    daemon.aleph(&["snapshot", "first", "--stop"])?;
    daemon.kill_and_restart()?;
    daemon.ok(&["wait", "first"])?;
    let id = daemon.ok(&["snapshot", "ls", "-q"])?;
    let last = counts(&daemon, "first")?
        .last()
        .copied()
        .context("it counted")?;
    for (name, place) in [
        ("a", "vm.intend:after"),
        ("b", "job.running:before"),
        ("c", "job.running:after"),
    ] {
        daemon.kill_and_restart_to_die_at(place)?;
        daemon.aleph(&["restore", "--name", name, &id])?;
        let _: bool = wait_until("the daemon's end", LIMIT, || {
            daemon.is_gone().ok().filter(|gone| *gone)
        });
        daemon.kill_and_restart()?;
        daemon.ok(&["wait", "--state", "running", name])?;
        let goes_on = counts_on(&daemon, name)?;
        assert!(
            (last + 1..=last + 2).contains(&goes_on[0]),
            "{place}: {last} {}",
            goes_on[0]
        );
        let host = daemon.ok(&["exec", name, "hostname"])?;
        let job = daemon.json(&["inspect", name])?;
        let short = job[0]["id"].as_str().context("an id")?[..10].to_owned();
        assert_eq!(host, format!("job-{short}"), "{place}");
        // The next daemon is to die for its own job.
        daemon.ok(&["rm", "-f", name])?;
    }
    daemon.ok(&["snapshot", "rm", &id])?;
    daemon.end()
}
