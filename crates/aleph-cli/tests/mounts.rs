//! Volumes of microVMs: a real daemon, real guests. What one job wrote the next one reads; who may have
//! a volume at a time; what is made where it is missing; nothing is lost or left, whoever is killed.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Daemon, Ended, LIMIT, send};

const SMALL: &str = "[volumes]\ndefault_size = \"64m\"\nmax_size_per_account = \"200m\"\n";

/// Runs a line in a microVM that has this volume.
fn sh(daemon: &Daemon, mount: &str, line: &str) -> Result<Ended> {
    daemon.aleph(&[
        "run", "--rm", "-q", "-v", mount, "busybox", "--", "sh", "-c", line,
    ])
}

fn volume(daemon: &Daemon, name: &str) -> Result<Value> {
    Ok(daemon.json(&["volume", "inspect", name])?[0].clone())
}

fn names(daemon: &Daemon) -> Result<String> {
    let names = daemon.ok(&["volume", "ls", "-a", "--json"])?;
    let all: Vec<Value> = serde_json::from_str(&names)?;
    let names = all.iter().filter_map(|volume| volume["name"].as_str());
    Ok(names.collect::<Vec<_>>().join(" "))
}

/// Starts a job that writes a line after the other to its volume, and gives its id once it has.
fn writer(daemon: &Daemon, name: &str, mount: &str) -> Result<String> {
    let line = "i=0; while :; do i=$((i+1)); echo $i >> /srv/log; sync; echo $i; sleep 0.1; done";
    let words = [
        "run", "-d", "--name", name, "-v", mount, "busybox", "sh", "-c", line,
    ];
    let id = daemon.ok(&words)?;
    wait_until("the writer's first lines", LIMIT, || {
        daemon
            .ok(&["logs", name])
            .is_ok_and(|log| log.contains("\n3"))
            .then_some(())
    });
    Ok(id)
}

#[test]
fn a_job_reads_what_was_backed_up_of_another_ones_volume() -> Result<()> {
    let daemon = Daemon::configured(SMALL, &[])?;
    let wrote = sh(&daemon, "data:/srv", "echo kept > /srv/file")?;
    assert_eq!(wrote.code, 0, "{wrote:?}\n{}", daemon.log());
    let store = daemon.node.root.path().join("store");
    let url = format!("file://{}", store.display());
    let made = daemon.json(&["volume", "backup", "data", &url, "--json"])?;
    let id = made["id"].as_str().unwrap_or_default();
    daemon.ok(&["volume", "restore-backup", &url, id, "again"])?;
    let again = volume(&daemon, "again")?;
    assert_eq!(again["filesystem"], "ext4", "{again}");
    let read = sh(&daemon, "again:/srv", "cat /srv/file")?;
    assert_eq!((read.code, read.text().as_str()), (0, "kept\n"), "{read:?}");
    daemon.end()
}

#[test]
fn what_a_job_wrote_the_next_one_reads() -> Result<()> {
    let daemon = Daemon::configured(SMALL, &[])?;
    // It is not there, and is made.
    let line = "echo kept > /srv/file; grep ' /srv ' /proc/mounts; df -m /srv | tail -1";
    let wrote = sh(&daemon, "data:/srv", line)?;
    assert_eq!(wrote.code, 0, "{wrote:?}\n{}", daemon.log());
    let made = "made the volume data (64 MiB, ext4)";
    assert!(wrote.stderr.contains(made), "{wrote:?}");
    for option in ["ext4 rw", "nosuid", "nodev"] {
        assert!(wrote.text().contains(option), "{wrote:?}");
    }
    let data = volume(&daemon, "data")?;
    assert_eq!(
        (&data["size"], &data["unclean"], &data["leases"]),
        (&json!(64), &json!(false), &json!([]))
    );

    // A code that is not 0 is an end in order as well.
    let read = sh(
        &daemon,
        "data:/srv",
        "cat /srv/file; echo more >> /srv/file; exit 3",
    )?;
    assert_eq!((read.code, read.text().as_str()), (3, "kept\n"), "{read:?}");
    assert!(!read.stderr.contains("made"), "{read:?}");
    assert_eq!(volume(&daemon, "data")?["unclean"], false);

    // Layers over others are mounted as plain ones are.
    daemon.ok(&["volume", "snapshot", "data", "one"])?;
    let read = sh(
        &daemon,
        "data:/srv",
        "cat /srv/file; rm /srv/file; mkdir /srv/within",
    )?;
    assert_eq!(read.text(), "kept\nmore\n", "{read:?}");

    // One may be mounted within another, whatever the order of the words.
    let words = [
        "run",
        "--rm",
        "-q",
        "-v",
        "inner:/srv/within",
        "-v",
        "data:/srv",
        "busybox",
        "sh",
        "-c",
        "echo x > /srv/within/x; ls /srv; df /srv/within | wc -l",
    ];
    let both = daemon.ok(&words)?;
    assert!(both.contains("within"), "{both}");
    let inner = daemon.ok(&[
        "run",
        "--rm",
        "-q",
        "-v",
        "inner:/i:ro",
        "busybox",
        "ls",
        "/i",
    ])?;
    assert!(inner.contains('x'), "{inner}");
    daemon.end()
}

#[test]
fn many_read_or_one_writes() -> Result<()> {
    let daemon = Daemon::configured(SMALL, &[])?;
    sh(&daemon, "data:/srv", "echo shared > /srv/file")?;
    let read = "cat /srv/file; touch /srv/file 2>&1; exec sleep 1000";
    for name in ["a", "b"] {
        let words = [
            "run",
            "-d",
            "--name",
            name,
            "-v",
            "data:/srv:ro",
            "busybox",
            "sh",
            "-c",
            read,
        ];
        daemon.ok(&words)?;
        wait_until("what it read", LIMIT, || {
            let log = daemon.ok(&["logs", name]).ok()?;
            (log.contains("shared") && log.contains("Read-only file system")).then_some(())
        });
    }
    let leases = volume(&daemon, "data")?["leases"].clone();
    assert_eq!(leases.as_array().map(Vec::len), Some(2), "{leases}");
    sh(&daemon, "data:/srv", "true")?.assert_failed_with(&["\"data\"", "attached to job"]);
    // What its guest knows of a volume cannot be written down.
    let kept = daemon.aleph(&["snapshot", "create", "a"])?;
    kept.assert_failed_with(&["volumes", "aleph volume snapshot"]);
    daemon.ok(&["rm", "-f", "a", "b"])?;

    writer(&daemon, "w", "data:/srv")?;
    for mount in ["data:/srv", "data:/srv:ro"] {
        sh(&daemon, mount, "true")?.assert_failed_with(&["attached to job"]);
    }
    daemon.ok(&["restart", "-t", "60", "w"])?;
    wait_until("the same volume", LIMIT, || {
        let read = daemon.aleph(&["exec", "w", "cat", "/srv/log"]).ok()?;
        (read.code == 0 && read.text().contains("3\n4")).then_some(())
    });
    // A stop lets the guest write out what it has.
    daemon.ok(&["stop", "-t", "60", "w"])?;
    let data = volume(&daemon, "data")?;
    assert_eq!(
        (&data["unclean"], &data["leases"]),
        (&json!(false), &json!([]))
    );
    daemon.end()
}

#[test]
fn what_cannot_be_is_refused_and_makes_nothing() -> Result<()> {
    let daemon = Daemon::configured(SMALL, &[])?;
    daemon.ok(&["volume", "create", "blank", "--size", "8m", "--fs", "none"])?;
    daemon.start("taken", "sleep 1000")?;
    let there = names(&daemon)?;
    for (words, said) in [
        (&["-v", "new:/srv:ro"][..], &["no volume \"new\""][..]),
        (&["-v", "new:/srv:size=300m"], &["bytes of volumes"]),
        (&["-v", "new:/srv:size=1m"], &["at least 8 MiB"]),
        (&["-v", "new:/srv:fs=xfs,size=64m"], &["ext4 alone"]),
        (
            &["-v", "blank:/srv"],
            &["no filesystem", "aleph volume create"],
        ),
        // What was made for a job that came to nothing is gone with it.
        (
            &["-v", "new:/srv", "--name", "taken"],
            &["\"taken\" is taken"],
        ),
        (&["-v", "new:/srv", "-v", "blank:/b"], &["no filesystem"]),
        (&["-d", "-v", "new:/srv", "--memory", "900g"], &["memory"]),
    ] {
        let words = [&["run"], words, &["busybox", "true"]].concat();
        daemon.aleph(&words)?.assert_failed_with(said);
        assert_eq!(names(&daemon)?, there, "{words:?}");
    }
    daemon.end()
}

#[test]
fn a_vmm_that_is_killed_leaves_a_volume_that_is_checked() -> Result<()> {
    let daemon = Daemon::configured(SMALL, &[])?;
    writer(&daemon, "w", "data:/srv")?;
    let pid = u32::try_from(daemon.node.qemu_pid()?)?;
    send(pid, Signal::KILL)?;
    wait_until("the job's end", LIMIT, || {
        let job = daemon.json(&["inspect", "w"]).ok()?[0].clone();
        (job["state"] == "failed").then_some(())
    });
    let log = daemon.ok(&["logs", "w"])?;
    let last: u32 = log.lines().last().context("it wrote nothing")?.parse()?;
    let data = volume(&daemon, "data")?;
    assert_eq!(
        (&data["unclean"], &data["leases"]),
        (&json!(true), &json!([]))
    );
    // Who only reads finds it checked, and all that was acknowledged.
    let read = sh(&daemon, "data:/srv:ro", "tail -1 /srv/log")?;
    assert_eq!(read.code, 0, "{read:?}");
    let found: u32 = read.text().trim().parse()?;
    assert!(found >= last, "{found} of {last} lines");
    assert_eq!(volume(&daemon, "data")?["unclean"], false);
    daemon.end()
}

#[test]
fn a_daemon_that_is_killed_finds_its_guests_and_their_volumes() -> Result<()> {
    let mut daemon = Daemon::configured(SMALL, &[])?;
    let id = writer(&daemon, "w", "data:/srv")?;
    daemon.kill_and_restart()?;
    wait_until("the job", LIMIT, || {
        let job = daemon.json(&["inspect", "w"]).ok()?[0].clone();
        (job["state"] == "running").then_some(())
    });
    assert_eq!(volume(&daemon, "data")?["leases"][0]["job"], id.as_str());
    sh(&daemon, "data:/srv", "true")?.assert_failed_with(&["attached to job"]);
    let lines = |line: &str| -> Result<u32> {
        Ok(daemon
            .ok(&["exec", "w", "sh", "-c", line])?
            .trim()
            .parse()?)
    };
    let before = lines("wc -l < /srv/log")?;
    wait_until("further lines", LIMIT, || {
        (lines("wc -l < /srv/log").ok()? > before).then_some(())
    });
    daemon.ok(&["stop", "-t", "5", "w"])?;
    assert_eq!(volume(&daemon, "data")?["leases"], json!([]));
    let read = sh(&daemon, "data:/srv", "wc -l < /srv/log")?;
    assert!(read.text().trim().parse::<u32>()? > before, "{read:?}");
    assert_eq!(volume(&daemon, "data")?["unclean"], false);
    daemon.end()
}

#[test]
fn a_node_that_dies_between_volume_and_job_leaves_neither() -> Result<()> {
    let mut daemon = Daemon::configured(SMALL, &[])?;
    daemon.kill_and_restart_to_die_at("job.create:before")?;
    let died = sh(&daemon, "data:/srv", "true")?;
    assert_ne!(died.code, 0, "{died:?}");
    daemon.kill_and_restart()?;
    assert_eq!(names(&daemon)?, "");
    assert_eq!(daemon.ok(&["ps", "-aq"])?, "");
    // After the job it is made by its first start.
    daemon.kill_and_restart_to_die_at("volume.ready:before")?;
    let words = [
        "run",
        "-d",
        "--name",
        "j",
        "-v",
        "data:/srv",
        "busybox",
        "sleep",
        "1000",
    ];
    assert_ne!(daemon.aleph(&words)?.code, 0);
    daemon.kill_and_restart()?;
    wait_until("the job", LIMIT, || {
        let job = daemon.json(&["inspect", "j"]).ok()?[0].clone();
        (job["state"] == "running").then_some(())
    });
    assert_eq!(names(&daemon)?, "data");
    daemon.end()
}
