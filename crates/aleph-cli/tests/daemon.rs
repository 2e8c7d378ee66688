//! Commands over the API of a daemon, with real VMs.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use support::{Daemon, Ended, LIMIT, Terminal, finish, send};

#[test]
fn a_foreground_run_is_as_without_a_daemon() -> Result<()> {
    let daemon = Daemon::up()?;
    let line = "echo out; echo err >&2; exit 42";
    let ran = daemon.aleph(&["run", "--rm", "busybox", "sh", "-c", line])?;
    assert_eq!((ran.code, ran.text().as_str()), (42, "out\n"), "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    let [error, last] = lines[..] else {
        panic!("{ran:?}")
    };
    assert_eq!(error, "err");
    assert!(last.starts_with("aleph: microVM on qemu/"), "{last}");
    assert!(
        last.contains(" · boot ") && last.ends_with(" · exit 42"),
        "{last}"
    );
    let ran = daemon.aleph(&["run", "--rm", "-q", "busybox", "nosuch"])?;
    assert_eq!(ran.code, 127, "{ran:?}");
    assert!(ran.stderr.contains("nosuch"), "{ran:?}");
    let input: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
    let ran = daemon
        .node
        .fed(&["run", "--rm", "-qi", "busybox", "cat"], &input)?;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(
        ran.stdout == input,
        "{} of {}",
        ran.stdout.len(),
        input.len()
    );
    assert_eq!(daemon.ok(&["ps", "-aq"])?, "", "--rm removed all");
    daemon.end()
}

#[test]
fn a_detached_job_lives_by_the_commands() -> Result<()> {
    let daemon = Daemon::up()?;
    let line = "trap 'echo told; exit 7' TERM; echo up; while :; do sleep 0.2; done";
    let id = daemon.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "-l",
        "tier=front",
        "busybox",
        "sh",
        "-c",
        line,
    ])?;
    assert!(id.starts_with("0x") && id.len() == 34, "{id}");
    let short = &id[..10];
    assert_eq!(daemon.ok(&["ps", "-q"])?, short);
    for (filter, found) in [
        ("label=tier=front", true),
        ("label=tier=back", false),
        ("name=we", true),
        ("status=exited", false),
    ] {
        let text = daemon.ok(&["ps", "-q", "--filter", filter])?;
        assert_eq!(!text.is_empty(), found, "{filter}");
    }
    let table = daemon.ok(&["ps"])?;
    assert!(table.contains("Up ") && table.contains(" web"), "{table}");
    assert!(
        !table.contains('\x1b'),
        "colours are for terminals: {table}"
    );

    // By name, by id and by a beginning of it.
    for name in ["web", &id, short, &id[2..8]] {
        let job = daemon.json(&["inspect", name])?;
        assert_eq!(job[0]["id"].as_str(), Some(&*id), "{name}");
        assert_eq!(job[0]["state"], "running");
    }
    let stats = daemon.json(&["stats", "--no-stream", "--json", "web"])?;
    assert_eq!(stats[0]["name"], "web");
    assert!(stats[0]["memory_bytes"].as_u64() > Some(1 << 20), "{stats}");

    daemon.ok(&["pause", "web"])?;
    assert!(daemon.ok(&["ps"])?.contains("(paused)"));
    daemon.ok(&["resume", "web"])?;

    let stopped = daemon.aleph(&["stop", "web", "nosuch"])?;
    assert_eq!((stopped.code, stopped.text().as_str()), (125, "web\n"));
    assert!(stopped.stderr.contains("nosuch"), "{stopped:?}");
    assert_eq!(daemon.ok(&["wait", "web"])?, "7");
    assert_eq!(daemon.ok(&["logs", "web"])?, "up\ntold");
    assert_eq!(daemon.ok(&["ps", "-q"])?, "");
    assert!(daemon.ok(&["ps", "-a"])?.contains("Exited (7)"));

    assert_eq!(daemon.ok(&["start", "web"])?, "web");
    assert_eq!(
        daemon.ok(&["wait", "--state", "running,failed", "web"])?,
        "running"
    );
    let refused = daemon.aleph(&["rm", "web"])?;
    refused.assert_failed_with(&["web"]);
    daemon.ok(&["kill", "web"])?;
    assert_eq!(daemon.ok(&["rm", "web"])?, "web");
    daemon
        .aleph(&["inspect", "web"])?
        .assert_failed_with(&["web"]);
    daemon.end()
}

#[test]
fn commands_run_in_a_guest_that_runs() -> Result<()> {
    let daemon = Daemon::up()?;
    daemon.start("box", "while :; do sleep 1; done")?;
    let line = "echo $COLOUR; pwd; id -u; cat; echo no >&2; exit 5";
    let words = [
        "exec",
        "-i",
        "-e",
        "COLOUR=a b",
        "-w",
        "/tmp",
        "-u",
        "1000",
        "box",
        "sh",
        "-c",
        line,
    ];
    let ran = daemon.node.fed(&words, b"fed\n")?;
    let said = (ran.code, ran.text(), ran.stderr.clone());
    assert_eq!(said, (5, "a b\n/tmp\n1000\nfed\n".into(), "no\n".into()));
    for (command, code) in [("nosuch", 127), ("/etc/passwd", 126)] {
        let ran = daemon.aleph(&["exec", "box", command])?;
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.stderr.contains(command), "{ran:?}");
    }
    let ran = daemon.aleph(&["exec", "nosuch", "true"])?;
    ran.assert_failed_with(&["nosuch"]);

    // A signal goes to the command, and its end is ours.
    let line = "trap 'echo caught; exit 6' INT; echo up; while :; do sleep 0.1; done";
    let mut child = daemon.command(&["exec", "box", "sh", "-c", line]).spawn()?;
    let mut up = [0; 3];
    child
        .stdout
        .as_mut()
        .context("no output")?
        .read_exact(&mut up)?;
    send(child.id(), Signal::INT)?;
    let ran = finish(child)?;
    assert_eq!((ran.code, ran.text().as_str()), (6, "caught\n"), "{ran:?}");

    let mut terminal = Terminal::new()?;
    terminal.size(33, 99)?;
    let mut child = terminal.spawn(daemon.command(&["exec", "-it", "box", "sh"]))?;
    terminal.press(b"stty size; tty\r")?;
    terminal.until("33 99\r\n/dev/pts/")?;
    terminal.press(b"exit 3\r")?;
    assert_eq!(child.wait()?.code(), Some(3));
    daemon.end()
}

#[test]
fn a_terminal_leaves_a_job_and_comes_back() -> Result<()> {
    let daemon = Daemon::up()?;
    let mut terminal = Terminal::new()?;
    terminal.size(30, 100)?;
    let words = ["run", "-it", "--name", "shell", "busybox", "sh"];
    let mut child = terminal.spawn(daemon.command(&words))?;
    terminal.press(b"x=kept; stty size\r")?;
    terminal.until("30 100\r\n")?;
    terminal.size(41, 120)?;
    // The terminal is not aleph's controlling one here, so the kernel tells nobody.
    send(child.id(), Signal::WINCH)?;
    wait_until("the guest's new size", LIMIT, || {
        terminal.press(b"stty size\r").ok()?;
        terminal
            .until("\r\n")
            .ok()?
            .contains("41 120")
            .then_some(())
    });
    terminal.press(b"\x10\x11")?;
    assert_eq!(child.wait()?.code(), Some(0));
    terminal.until("aleph attach shell")?;
    assert_eq!(
        daemon.ok(&["wait", "--state", "running", "shell"])?,
        "running"
    );
    let mut child = terminal.spawn(daemon.command(&["attach", "shell"]))?;
    terminal.press(b"echo still $x\r")?;
    terminal.until("still kept\r\n")?;
    terminal.press(b"exit 4\r")?;
    assert_eq!(child.wait()?.code(), Some(4));
    daemon.end()
}

#[test]
fn signals_of_a_foreground_run_reach_its_job() -> Result<()> {
    let daemon = Daemon::up()?;
    let started = |trap: &str| -> Result<std::process::Child> {
        let line = format!("trap '{trap}' INT TERM; echo up; while :; do sleep 0.1; done");
        let words = ["run", "--rm", "-q", "busybox", "sh", "-c", &line];
        let mut child = daemon.command(&words).spawn()?;
        let mut up = [0; 3];
        child
            .stdout
            .as_mut()
            .context("no output")?
            .read_exact(&mut up)?;
        Ok(child)
    };
    let child = started("echo caught; exit 5")?;
    send(child.id(), Signal::INT)?;
    let ran = finish(child)?;
    assert_eq!((ran.code, ran.text().as_str()), (5, "caught\n"), "{ran:?}");
    let child = started("echo ended; exit 0")?;
    send(child.id(), Signal::TERM)?;
    let ran = finish(child)?;
    assert_eq!((ran.code, ran.text().as_str()), (0, "ended\n"), "{ran:?}");
    let mut child = started("echo caught")?;
    send(child.id(), Signal::INT)?;
    let mut caught = [0; 7];
    child
        .stdout
        .as_mut()
        .context("no output")?
        .read_exact(&mut caught)?;
    send(child.id(), Signal::INT)?;
    assert_eq!(finish(child)?.code, 130);
    // A reader that goes away ends the job as well.
    let mut child = daemon
        .command(&["run", "--rm", "-q", "busybox", "yes"])
        .spawn()?;
    let mut some = [0; 2];
    child
        .stdout
        .take()
        .context("no output")?
        .read_exact(&mut some)?;
    assert_eq!(child.wait()?.code(), Some(141));
    assert_eq!(daemon.ok(&["ps", "-aq"])?, "", "--rm removed all");
    daemon.end()
}

#[test]
fn logs_are_followed_cut_and_stamped() -> Result<()> {
    let daemon = Daemon::up()?;
    let line = "for i in 1 2 3; do echo line $i; done; echo bad >&2; read go; echo last";
    let words = [
        "run", "-d", "-i", "--name", "talker", "busybox", "sh", "-c", line,
    ];
    daemon.ok(&words)?;
    let follower = daemon.command(&["logs", "-f", "talker"]).spawn()?;
    wait_until("the last line", LIMIT, || {
        let logs = daemon.aleph(&["logs", "talker"]).ok()?;
        (logs.text() == "line 1\nline 2\nline 3\n" && logs.stderr == "bad\n").then_some(())
    });
    assert_eq!(
        daemon.aleph(&["logs", "--tail", "2", "talker"])?.text(),
        "line 3\n"
    );
    let stamped = daemon.ok(&["logs", "-t", "--stream", "stdout", "-n1", "talker"])?;
    let (time, rest) = stamped.split_once(' ').context("no time")?;
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    assert_eq!(rest, "line 3");
    let json = daemon.ok(&["logs", "--json", "--stream", "stderr", "talker"])?;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!(
        (&json["stream"], &json["data"]),
        (&"stderr".into(), &"bad\n".into())
    );
    assert_eq!(daemon.ok(&["logs", "--since", "1h", "-n1", "talker"])?, "");
    let ended = daemon.node.fed(&["attach", "talker"], b"go\n")?;
    assert_eq!(
        (ended.code, ended.text().as_str()),
        (0, "last\n"),
        "{ended:?}"
    );
    let followed = finish(follower)?;
    assert_eq!(
        followed.text(),
        "line 1\nline 2\nline 3\nlast\n",
        "{followed:?}"
    );
    assert_eq!(followed.stderr, "bad\n");
    daemon.end()
}

#[test]
fn files_go_both_ways_by_dockers_rules() -> Result<()> {
    let daemon = Daemon::up()?;
    daemon.start("box", "while :; do sleep 1; done")?;
    let here = tempfile::tempdir()?;
    let at = |path: &str| {
        here.path()
            .join(path)
            .to_str()
            .unwrap_or_default()
            .to_owned()
    };
    fs::create_dir_all(at("tree/sub"))?;
    let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    fs::write(at("tree/sub/big"), &bytes)?;
    fs::write(at("one"), "one\n")?;
    std::os::unix::fs::symlink("sub/big", at("tree/link"))?;
    let guest = |line: &str| daemon.ok(&["exec", "box", "sh", "-c", line]);

    daemon.ok(&["cp", &at("one"), "box:/tmp"])?;
    daemon.ok(&["cp", &at("one"), "box:/tmp/renamed"])?;
    daemon.ok(&["cp", &at("tree"), "box:/tmp/new"])?;
    daemon.ok(&["cp", &at("tree/."), "box:/tmp/new"])?;
    daemon.ok(&["cp", &at("tree"), "box:tmp/new"])?;
    assert_eq!(
        guest("cat /tmp/one /tmp/renamed; ls /tmp/new")?,
        "one\none\nlink\nsub\ntree"
    );
    assert_eq!(
        guest("readlink /tmp/new/link; stat -c %u:%s /tmp/new/sub/big")?,
        "sub/big\n0:1048576"
    );

    daemon.ok(&["cp", "box:/tmp/new", &at("back")])?;
    assert_eq!(fs::read(at("back/tree/sub/big"))?, bytes);
    daemon.ok(&["cp", "box:/tmp/one", &at("")])?;
    daemon.ok(&["cp", "-L", "box:/tmp/new/link", &at("followed")])?;
    assert_eq!(fs::read(at("followed"))?, bytes);
    let archive = daemon.aleph(&["cp", "box:/tmp/new/sub", "-"])?;
    let mut archive = tar::Archive::new(archive.stdout.as_slice());
    let names = archive
        .entries()?
        .map(|entry| Ok(entry?.path()?.display().to_string()));
    assert_eq!(names.collect::<Result<Vec<_>>>()?, ["sub/", "sub/big"]);
    let mut packed = tar::Builder::new(Vec::new());
    packed.append_path_with_name(at("one"), "piped")?;
    let piped = daemon
        .node
        .fed(&["cp", "-", "box:/tmp"], &packed.into_inner()?)?;
    assert_eq!(piped.code, 0, "{piped:?}");
    assert_eq!(guest("cat /tmp/piped")?, "one");

    let failed = |words: &[&str], says: &str| -> Result<()> {
        daemon.aleph(words)?.assert_failed_with(&[says]);
        Ok(())
    };
    failed(&["cp", &at("one"), "box:/no/where"], "/no")?;
    failed(&["cp", "box:/no/where", &at("x")], "/no/where")?;
    failed(&["cp", &at("tree"), "box:/tmp/one"], "no folder")?;
    failed(&["cp", &at("one"), "nosuch:/tmp"], "nosuch")?;
    failed(&["cp", &at("one"), &at("two")], "JOB:PATH")?;
    daemon.end()
}

#[test]
fn events_tell_a_jobs_life() -> Result<()> {
    let daemon = Daemon::up()?;
    let mut follower = daemon.command(&["events", "--json", "--since-id", "0"]);
    let mut follower = follower.stdout(Stdio::piped()).spawn()?;
    daemon.ok(&["run", "-d", "--name", "short", "busybox", "true"])?;
    assert_eq!(daemon.ok(&["wait", "short"])?, "0");
    let stored = daemon.ok(&["events", "--no-follow", "--json", "--job", "short"])?;
    let events: Vec<Value> = stored
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let kinds: Vec<&str> = events.iter().filter_map(|e| e["kind"].as_str()).collect();
    for kind in ["job.created", "job.running", "job.exited"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let after = events[0]["id"].to_string();
    let rest = daemon.ok(&[
        "events",
        "--no-follow",
        "--job",
        "short",
        "--since-id",
        &after,
    ])?;
    assert_eq!(rest.lines().count(), events.len() - 1, "{rest}");
    assert!(rest.lines().all(|line| line.contains(" short")), "{rest}");
    let output = follower.stdout.take().context("no output")?;
    let mut lines = BufReader::new(output).lines();
    let followed = lines.any(|line| line.is_ok_and(|line| line.contains("job.exited")));
    assert!(followed);
    send(follower.id(), Signal::TERM)?;
    follower.wait()?;
    daemon.end()
}

#[test]
fn a_job_of_a_file_restarts_and_is_healthy() -> Result<()> {
    let daemon = Daemon::up()?;
    let file = daemon.node.root.path().join("job.yaml");
    let text = "name: web\nimage: busybox\ncommand: [sh, -c, 'cat /etc/motd; sleep 1000']\n\
        files: [{path: /etc/motd, text: \"from a file\\n\"}]\nlabels: {a: b}\n";
    fs::write(&file, text)?;
    let file = file.to_str().context("a path")?;
    daemon.ok(&[
        "run",
        "-d",
        "-f",
        file,
        "--restart",
        "always",
        "--health-cmd",
        "test -e /etc/motd",
        "--health-interval",
        "1s",
    ])?;
    wait_until("a healthy job", LIMIT, || {
        let found = daemon
            .ok(&["ps", "-q", "--filter", "health=healthy"])
            .ok()?;
        (!found.is_empty()).then_some(())
    });
    assert!(daemon.ok(&["ps"])?.contains("(healthy)"));
    assert_eq!(daemon.ok(&["logs", "web"])?, "from a file");
    daemon.ok(&["restart", "-t", "1", "web"])?;
    daemon.ok(&["wait", "--state", "running", "web"])?;
    let job = daemon.json(&["inspect", "web"])?;
    assert_eq!(job[0]["incarnation"], 2, "{job}");
    daemon.end()
}

#[test]
fn what_cannot_run_says_why() -> Result<()> {
    let daemon = Daemon::up()?;
    let ran = daemon.aleph(&["run", "--rm", "--cpus", "9999", "busybox", "true"])?;
    assert_eq!(ran.code, 125);
    assert!(
        ran.stderr.lines().count() >= 2,
        "an error and advice: {ran:?}"
    );
    let ran = daemon.aleph(&["run", "--pull", "never", "--rm", "bussybox", "true"])?;
    ran.assert_failed_with(&["bussybox"]);
    let ran = daemon.aleph(&["run", "-d", "--name", "0xabc", "busybox", "true"])?;
    ran.assert_failed_with(&["0xabc"]);
    daemon.start("twice", "sleep 1000")?;
    let ran = daemon.aleph(&["run", "-d", "--name", "twice", "busybox", "true"])?;
    ran.assert_failed_with(&["twice"]);
    let mut second = daemon.command(&["up"]);
    let ran = Ended::of(second.output()?)?;
    assert_eq!(ran.code, 125, "a second daemon: {ran:?}");
    daemon.end()
}

#[test]
fn a_daemon_that_is_killed_leaves_jobs_that_its_next_has() -> Result<()> {
    let mut daemon = Daemon::up()?;
    daemon.start("keeper", "while :; do sleep 1; done")?;
    let before = daemon.ok(&["exec", "keeper", "cat", "/proc/sys/kernel/random/boot_id"])?;
    daemon.kill_and_restart()?;
    let words = ["exec", "keeper", "cat", "/proc/sys/kernel/random/boot_id"];
    let after = wait_until("the guest's agent", LIMIT, || {
        let ran = daemon.aleph(&words).ok()?;
        (ran.code == 0).then(|| ran.text())
    });
    assert_eq!(before, after.trim_end());
    daemon.end()
}

#[test]
fn without_a_daemon_its_commands_say_how_to_start_it() -> Result<()> {
    let node = support::Node::new()?;
    for words in [
        &["ps"][..],
        &["logs", "x"],
        &["exec", "x", "true"],
        &["run", "-d", "busybox", "true"],
        &["token", "ls"],
        &["prune", "-f"],
    ] {
        node.aleph(words)?.assert_failed_with(&["aleph up"]);
    }
    // A socket that nobody listens at any more is no daemon either.
    let socket = node.root.paths()?.run().join(aleph_control::SOCKET);
    fs::create_dir_all(socket.parent().context("a folder")?)?;
    drop(std::os::unix::net::UnixListener::bind(&socket)?);
    node.aleph(&["ps"])?.assert_failed_with(&["aleph up"]);
    assert_eq!(node.sh("exit 3")?.code, 3, "the node in this process");
    let version = node.aleph(&["version", "--json"])?;
    let version: Value = serde_json::from_str(&version.text())?;
    assert!(version["node"].is_null(), "{version}");
    let images = node.aleph(&["image", "ls", "--json"])?;
    assert!(images.text().contains("\"busybox\""), "{images:?}");
    fs::remove_file(socket)?;
    node.assert_clean()
}

#[test]
fn a_reader_that_has_enough_is_no_failure() -> Result<()> {
    let daemon = Daemon::up()?;
    let mut child = daemon.command(&["events", "--since-id", "0"]).spawn()?;
    // Its reader goes before there is anything to write.
    drop(child.stdout.take());
    daemon.ok(&["run", "-d", "busybox", "true"])?;
    let ended = finish(child)?;
    assert_eq!((ended.code, ended.stderr.as_str()), (141, ""));
    daemon.end()
}
