//! Full VMs by the command line: a real daemon, a real Debian with its own cloud-init, a real ssh.

mod support;

use aleph_testkit::{DebianDisk, wait_until};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::namespace::World;
use support::{Daemon, Ended, LIMIT, Node};

/// For a boot by emulation on a busy host.
const BOOT: Duration = Duration::from_secs(900);

fn is(daemon: &Daemon, job: &str, state: &str) -> Option<Value> {
    let job = daemon.json(&["inspect", job]).ok()?[0].clone();
    (job["state"] == state).then_some(job)
}

/// Waits for a state; one that is over is told at once.
fn wait_for(daemon: &Daemon, name: &str, state: &str) -> Value {
    wait_until(state, BOOT, || {
        let job = daemon.json(&["inspect", name]).ok()?[0].clone();
        let failed = job["state"] == "failed" && state != "failed";
        assert!(!failed, "{job:#}\n{}", daemon.log());
        (job["state"] == state).then_some(job)
    })
}

fn ssh(daemon: &Daemon, world: &World, key: &str, words: &[&str]) -> Result<Ended> {
    let home = daemon.node.root.path().join("home");
    let output = Command::new("ip")
        .args(["netns", "exec", &world.node])
        .arg(env!("CARGO_BIN_EXE_aleph"))
        .arg("--root")
        .arg(daemon.node.root.path())
        .args(["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"])
        .args(["-i", key])
        .args(words)
        .env("XDG_STATE_HOME", home)
        .stdin(Stdio::null())
        .output()?;
    Ended::of(output)
}

/// Runs a line in the guest, once ssh answers.
fn shell(daemon: &Daemon, world: &World, key: &str, line: &str) -> Result<String> {
    let mut said = None;
    let answered = wait_until("ssh", BOOT, || {
        let ended = ssh(daemon, world, key, &["web", line]).ok()?;
        // What ssh itself could not do.
        if ended.code == 255 {
            said = Some(ended);
            return None;
        }
        Some(ended)
    });
    anyhow::ensure!(answered.code == 0, "{line}: {answered:?} {said:?}");
    Ok(answered.text())
}

/// Has cloud-init come to its end, and gives what it did.
fn told(daemon: &Daemon, name: &str) -> Value {
    wait_until("the end of cloud-init", BOOT, || {
        let job = daemon.json(&["inspect", name]).ok()?[0].clone();
        // A daemon that has just begun has not found its guests yet.
        if job["state"] == "unknown" {
            return None;
        }
        assert_eq!(
            job["state"],
            "running",
            "{job:#}\n{}",
            daemon
                .aleph(&["logs", name])
                .map(|it| it.text())
                .unwrap_or_default()
        );
        let told = job["cloud_init"].clone();
        (told["state"] != "running").then_some(told)
    })
}

/// The process of the TPM that a job's machine has.
fn tpm_of(daemon: &Daemon, job: &Value) -> Result<u32> {
    let vm = job["vm"].as_str().context("no VM")?.parse()?;
    let record = daemon.node.root.paths()?.vm_run(vm).join("tpm.json");
    let record: Value = serde_json::from_slice(&fs::read(record)?)?;
    let pid = record["pid"].as_u64().context("the record has no pid")?;
    Ok(u32::try_from(pid)?)
}

const USER_DATA: &str = "#cloud-config\n\
    write_files: [{path: /opt/user, content: 'of the user'}]\n\
    runcmd: [[sh, -c, 'cat /opt/user > /opt/ran']]\n";

#[test]
fn alone_a_debian_boots_does_as_it_was_told_and_outlives_its_daemon() -> Result<()> {
    let (world, node) = (World::new()?, Node::new()?);
    let folder = node.root.path().to_owned();
    let mut daemon = Daemon::over(node, "", &["--netns", &world.node])?;
    let disk = DebianDisk::new()?;
    let image = disk.qcow2.to_str().context("a path")?;
    daemon.ok(&["volume", "create", "data", "--size", "64M"])?;
    let key = folder.join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status()?;
    anyhow::ensure!(made.success(), "ssh-keygen: {made}");
    let key = key.to_str().context("a path")?;
    let config = folder.join("cloud.yaml");
    fs::write(&config, USER_DATA)?;
    let config = config.to_str().context("a path")?;

    let public = format!("{key}.pub");
    let service = "echo \"$COLOUR $JOB_ID\" > /srv/ran; exec sleep infinity";
    let id = daemon.ok(&[
        "vm",
        "create",
        "web",
        "--image",
        image,
        "--cpus",
        "2",
        "-m",
        "1G",
        "--ssh-key",
        &public,
        "-v",
        "data:/srv",
        "--user-data",
        config,
        "-e",
        "COLOUR=blue red",
        "--hostname",
        "web-1",
        "--",
        "sh",
        "-c",
        service,
    ])?;
    // It runs as soon as its machine does, and whoever kills the daemon loses nothing.
    let job = wait_for(&daemon, "web", "running");
    assert_eq!(job["cloud_init"]["state"], "running");
    daemon.kill_and_restart()?;
    let told = told(&daemon, "web");
    assert_eq!(told["state"], "done", "{told}");

    let line = "hostname; id -un; cat /srv/ran /opt/ran; echo; findmnt -no FSTYPE /srv; \
                stat -c '%a %U' /etc/aleph/job.env; sudo -n id -un; echo kept > kept; sync";
    let said = shell(&daemon, &world, key, line)?;
    let wanted = format!("web-1\naleph\nblue red {id}\nof the user\next4\n600 root\nroot\n");
    assert_eq!(said, wanted);
    // Its code is that of the command, and its key is known from now on.
    assert_eq!(ssh(&daemon, &world, key, &["web", "exit 7"])?.code, 7);
    let known = folder.join("home/aleph/known_hosts").join(&id[2..]);
    assert!(fs::read_to_string(&known)?.contains(&id));

    // What an agent would do is refused, and says what to do instead.
    for words in [
        &["exec", "web", "true"][..],
        &["cp", "web:/etc/hostname", "-"],
        &["kill", "-s", "HUP", "web"],
        &["snapshot", "create", "web"],
    ] {
        let refused = daemon.aleph(words)?;
        assert_ne!(refused.code, 0, "{words:?}");
        assert!(
            refused.stderr.contains("aleph ssh"),
            "{words:?}: {refused:?}"
        );
    }
    let busy = daemon.aleph(&["vm", "create", "two", "--image", image, "-v", "data:/srv"])?;
    busy.assert_failed_with(&["\"data\"", "attached to job"]);
    let listed = daemon.ok(&["vm", "ls"])?;
    assert!(
        listed.contains("done") && listed.contains("web"),
        "{listed}"
    );
    let logs = daemon.ok(&["logs", "web"])?;
    assert!(logs.contains("Cloud-init v."), "{logs}");

    // Its power button ends it in order, and its disk is there the next time.
    daemon.ok(&["vm", "stop", "web"])?;
    is(&daemon, "web", "exited").context("it has not stopped")?;
    let volume = daemon.json(&["volume", "inspect", "data"])?;
    assert_eq!(volume[0]["leases"], serde_json::json!([]), "{volume:#}");
    daemon.ok(&["vm", "start", "web"])?;
    wait_for(&daemon, "web", "running");
    let said = shell(
        &daemon,
        &world,
        key,
        "cat kept; sudo -n cat /srv/ran; hostname",
    )?;
    assert_eq!(said, format!("kept\nblue red {id}\nweb-1\n"));

    // A guest that powers itself off ends its job, also where its machine was taken over.
    daemon.kill_and_restart()?;
    wait_for(&daemon, "web", "running");
    ssh(&daemon, &world, key, &["web", "sudo -n systemctl poweroff"])?;
    let ended = wait_for(&daemon, "web", "exited");
    assert_eq!(ended["exit"], serde_json::json!({"code": 0}), "{ended:#}");

    // With it goes its root disk, and nothing else.
    daemon.ok(&["vm", "rm", "web"])?;
    let volumes = daemon.ok(&["volume", "ls", "-q"])?;
    let mut volumes: Vec<&str> = volumes.lines().collect();
    volumes.sort_unstable();
    // The image came in once.
    let [data, imported] = volumes[..] else {
        anyhow::bail!("{volumes:?}");
    };
    assert_eq!(data, "data");
    assert!(imported.starts_with("disk-"), "{imported}");
    assert_eq!(fs::read_dir(folder.join("machines"))?.count(), 0);
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
    support::send(tpm, rustix::process::Signal::KILL)?;
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
    let mut vnc = daemon
        .command(&["vnc", "web"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut path = String::new();
    BufReader::new(vnc.stdout.take().context("no output")?).read_line(&mut path)?;
    let mut screen = UnixStream::connect(path.trim())?;
    let mut greeting = [0; 12];
    screen.read_exact(&mut greeting)?;
    assert!(greeting.starts_with(b"RFB 003."), "{greeting:?}");
    support::send(vnc.id(), rustix::process::Signal::TERM)?;
    vnc.wait()?;

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
    support::send(qemu, rustix::process::Signal::TERM)?;
    let failed = wait_for(&daemon, "web", "failed");
    assert_eq!(failed["exit"], Value::Null, "{failed:#}");
    daemon.ok(&["vm", "rm", "web"])?;
    let volumes = daemon.ok(&["volume", "ls", "-q"])?;
    assert!(!volumes.contains("root-"), "{volumes}");
    daemon.end()
}

#[test]
fn a_vm_that_cannot_be_is_refused_at_once() -> Result<()> {
    let daemon = Daemon::up()?;
    let folder = daemon.node.root.path().to_owned();
    let image = folder.join("image");
    fs::write(&image, vec![0_u8; 4 << 20])?;
    let image = image.to_str().context("a path")?;
    daemon.ok(&["volume", "import", image, "small", "--format", "raw"])?;
    let user_data = folder.join("user-data");
    let create = |words: &[&str]| {
        let words = [&["vm", "create", "web"][..], words].concat();
        daemon.aleph(&words)
    };
    create(&["--image", "nowhere"])?.assert_failed_with(&["no volume \"nowhere\""]);
    create(&["--image", "small", "-v", "none:/srv"])?.assert_failed_with(&["no volume \"none\""]);
    let file = user_data.to_str().context("a path")?;
    for (text, why) in [
        ("#cloud-config\na: [\n", "line 2"),
        (
            "#cloud-config\ncloud_final_modules: []\n",
            "cloud_final_modules",
        ),
        ("hello\n", "nothing that cloud-init knows"),
    ] {
        fs::write(&user_data, text)?;
        create(&["--image", "small", "--user-data", file])?.assert_failed_with(&[why]);
    }
    create(&["--image", "small", "--hostname", "a_b"])?.assert_failed_with(&["hostname"]);
    create(&["--image", "small", "-t"])?.assert_failed_with(&["tty", "aleph ssh"]);
    assert_eq!(daemon.ok(&["vm", "ls", "--json"])?, "[]");
    // No agent of the node's is in a microVM's place.
    let microvm = daemon.aleph(&["run", "-d", "--name", "micro", "busybox", "sleep", "99"])?;
    assert_eq!(microvm.code, 0, "{microvm:?}");
    let refused = daemon.aleph(&["console", "micro"])?;
    refused.assert_failed_with(&["aleph attach"]);
    wait_until("a job that runs", LIMIT, || is(&daemon, "micro", "running"));
    daemon.end()
}
