//! Debian 12 with its own cloud-init: what two guests are told, and what becomes of them.
//!
//! Boots take minutes where they are emulated, so two guests boot side by side and each is asked all
//! that it is to be asked in one go:
//!
//! | guest | what it is for |
//! | --- | --- |
//! | `web` | all that a job may say, carried out; the end of its daemon, its machine stopped and started |
//! | `odd` | a user's cloud-config that cannot be read |

use crate::login::Login;
use crate::repository::{CONTENT, FILE, PACKAGE, Repository};
use crate::secrets::{SECRET, are_kept_on_the_host, seen_by};
use crate::support::namespace::World;
use crate::support::{Daemon, Node, Terminal};
use crate::{BOOT, is, screen, told, wait_for};
use aleph_testkit::DebianDisk;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many MiB the root disk of `web` has: its image has half as many.
const DISK: u32 = 4096;

/// What a shell, systemd and YAML each have another view of.
const TRICKY: &str = "a b  \"c\" 'd' $HOME ${X} $$ %n %% \\ \\n `id` ; # 0x10\n\tno";

/// Of a user who has two documents, of which the second adds to the lists of the first, and who wants
/// files of the node's to be theirs.
fn user_data(source: &str) -> String {
    format!(
        r#"#cloud-config-archive
- type: text/cloud-config
  content: |
    apt: {{preserve_sources_list: false, sources_list: '{source}'}}
    users: [default, {{name: bob}}]
    write_files: [{{path: /opt/user, content: of the user}}]
    runcmd: [[sh, -c, 'echo $(cat /opt/user) > /opt/ran']]
- type: text/cloud-config
  content: |
    merge_how: dict(recurse_array)+list(append)+str()
    write_files:
    - {{path: /root/token, content: {SECRET}-token, permissions: '0600'}}
    - {{path: /etc/aleph/job.env, content: JOB_ID=mine}}
    - {{path: /etc/aleph/job.env, content: JOB_ID=mine, defer: true}}
    runcmd: [[sh, -c, 'echo again >> /opt/ran'], exit 0]
"#
    )
}

/// A template that is no YAML once the guest has rendered it, and a document that is as it should be.
const ODD: &str = "#cloud-config-archive\n\
    - \"## template: jinja\\n#cloud-config\\nruncmd: [{{ v1.local_hostname }}\\n\"\n\
    - {type: text/cloud-config, content: 'runcmd: [[touch, /opt/good]]'}\n";

/// What `web` is asked about itself.
fn questions() -> String {
    let as_bob = seen_by("bob");
    format!(
        r#"say() {{ printf '== %s\n' "$1"; }}
        say name; hostname; id -un; id -un bob; sudo -n id -un
        say env; stat -c '%a %U %G' /etc/aleph/job.env; sudo -n grep -c '^JOB_ID' /etc/aleph/job.env
        say ran; cat /srv/data/ran
        say user; cat /opt/ran
        say package; cat {FILE}; dpkg-query -W -f ' ${{Status}}\n' {PACKAGE}
        say files; stat -c '%a %u %g %n' /opt/binary /opt/word; sudo -n sha256sum /opt/binary
        say mounts
        for at in data files; do
            findmnt -no FSTYPE /srv/$at
            for disk in /dev/disk/by-id/virtio-v*; do
                [ "$(findmnt -no SOURCE /srv/$at)" = "$(readlink -f $disk)" ] && echo by serial
            done
        done
        say root; echo $(($(stat -f -c '%b * %S' /) >> 20))
        say secrets; {as_bob}
        say end; echo kept > kept; echo of xfs | sudo -n tee /srv/files/kept; sync"#
    )
}

/// The section of what was said that has this name.
fn section<'a>(said: &'a str, name: &str) -> Result<&'a str> {
    let mut sections = said.split("== ").filter_map(|part| part.split_once('\n'));
    let found = sections.find(|(one, _)| *one == name);
    let (_, text) = found.with_context(|| format!("no {name} in {said}"))?;
    Ok(text.trim_end())
}

fn web(repository: &Repository, login: &Login) -> Result<serde_json::Value> {
    let service = "printf '%s|' \"$JOB_ID\" \"$TRICKY\" \"$@\" > ran; exec sleep infinity";
    // All 256, in base64.
    let every_byte = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7\
        PD0+P0BBQkNERUZHSElKS0xNTk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn+AgYKD\
        hIWGh4iJiouMjY6PkJGSk5SVlpeYmZqbnJ2en6ChoqOkpaanqKmqq6ytrq+wsbKztLW2t7i5uru8vb6/wMHCw8TFxsfIycrL\
        zM3Oz9DR0tPU1dbX2Nna29zd3t/g4eLj5OXm5+jp6uvs7e7v8PHy8/T19vf4+fr7/P3+/w==";
    Ok(json!({
        "name": "web", "image": "debian", "mode": "vm", "hostname": "web-1",
        "command": ["sh", "-c", service, "job", TRICKY, ";", ""], "workdir": "/srv/data",
        "env": {"TRICKY": TRICKY, "TOKEN": format!("{SECRET}-env")},
        "files": [
            {"path": "/opt/binary", "base64": every_byte, "mode": "0640", "uid": 1234, "gid": 4321},
            {"path": "/opt/word", "text": format!("{SECRET}-file\n"), "mode": "4700"},
        ],
        "resources": {"cpus": 2, "memory": 1024, "disk": DISK},
        "machine": {"room": {"memory": 256}},
        "volumes": [
            {"name": "data", "path": "/srv/data"},
            {"name": "files", "path": "/srv/files"},
        ],
        "stop_grace_seconds": 300,
        "cloud_init": {
            "ssh_keys": [login.line()?],
            "packages": [PACKAGE],
            "user_data": user_data(&repository.source()),
        },
    }))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path")
}

#[test]
fn alone_debians_do_as_they_were_told_and_outlive_their_daemon() -> Result<()> {
    let (world, node) = (World::new()?, Node::new()?);
    let root = node.root.path().to_owned();
    let folder = tempfile::tempdir()?;
    let disk = DebianDisk::new()?;
    let mut daemon = Daemon::over(node, "", &["--netns", &world.node])?;
    daemon.ok(&["volume", "import", text(&disk.qcow2)?, "debian"])?;
    // Its guest makes the filesystem of one, and the node that of the other.
    daemon.ok(&["volume", "create", "data", "--size", "64M", "--fs", "none"])?;
    daemon.ok(&["volume", "create", "files", "--size", "300M", "--fs", "xfs"])?;
    let login = Login::new(&world, folder.path())?;
    let repository = Repository::serve(&world, folder.path())?;
    let (job, config) = (folder.path().join("job.json"), folder.path().join("odd"));
    fs::write(&job, serde_json::to_vec(&web(&repository, &login)?)?)?;
    fs::write(&config, ODD)?;
    let id = daemon.ok(&["run", "-d", "-f", text(&job)?])?;
    let (key, config) = (login.public(), text(&config)?);
    let odd = [
        "vm",
        "create",
        "odd",
        "--image",
        "debian",
        "--max-cpus",
        "2",
        "--ssh-key",
    ];
    daemon.ok(&[&odd[..], &[text(&key)?, "--user-data", config]].concat())?;

    // They run as soon as their machines do, and whoever kills the daemon loses nothing.
    let running = wait_for(&daemon, "web", "running");
    assert_eq!(running["cloud_init"]["state"], "running");
    wait_for(&daemon, "odd", "running");
    daemon.kill_and_restart()?;
    let done = told(&daemon, "web");
    assert_eq!(done["state"], "done", "{done}");
    did_as_it_was_told(&daemon, &login, &id)?;
    are_kept_on_the_host(&daemon)?;

    // What could not be read is told, and all else was done.
    let degraded = told(&daemon, "odd");
    assert_eq!(degraded["state"], "degraded", "{degraded}");
    let reason = degraded["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("yaml"), "{degraded}");
    let listed = daemon.ok(&["vm", "ls"])?;
    assert!(
        listed.contains("degraded") && listed.contains("done"),
        "{listed}"
    );
    let said = login.shell(&daemon, "odd", "ls /opt/good; id -un")?;
    assert_eq!(said, "/opt/good\naleph\n");
    // Nobody has to tell the guest to use what it is given.
    daemon.ok(&["vm", "resize", "odd", "--cpus", "2"])?;
    let line = "timeout 120 sh -c 'until [ $(nproc) = 2 ]; do sleep 1; done'; nproc";
    assert_eq!(login.shell(&daemon, "odd", line)?, "2\n");
    daemon.ok(&["vm", "rm", "-f", "odd"])?;

    // Its code is that of the command, and its key is known from now on.
    assert_eq!(login.code(&daemon, "web", "exit 7")?, 7);
    let known = fs::read_to_string(login.known_hosts().join(&id[2..]))?;
    assert!(known.contains(&id), "{known}");
    is_seen(&daemon)?;
    grows(&daemon, &login)?;
    takes_no_agent(&daemon)?;

    // Its power button ends it in order, and its disk is there the next time.
    daemon.ok(&["vm", "stop", "web"])?;
    is(&daemon, "web", "exited").context("it has not stopped")?;
    for volume in ["data", "files"] {
        let volume = daemon.json(&["volume", "inspect", volume])?;
        assert_eq!(volume[0]["leases"], json!([]), "{volume:#}");
        assert_eq!(volume[0]["unclean"], false, "{volume:#}");
    }
    daemon.ok(&["vm", "start", "web"])?;
    wait_for(&daemon, "web", "running");
    let line = "cat kept; hostname; for at in data files; do \
                timeout 120 sh -c \"until mountpoint /srv/$at; do sleep 1; done\" | tail -n 1; done; \
                findmnt -no FSTYPE /srv/files; cat /srv/files/kept";
    let said = login.shell(&daemon, "web", line)?;
    assert_eq!(
        said,
        "kept\nweb-1\n/srv/data is a mountpoint\n/srv/files is a mountpoint\nxfs\nof xfs\n"
    );

    // A guest that powers itself off ends its job, also where its machine was taken over.
    daemon.kill_and_restart()?;
    wait_for(&daemon, "web", "running");
    login.ssh(&daemon, &["web", "sudo -n systemctl poweroff"])?;
    let ended = wait_for(&daemon, "web", "exited");
    assert_eq!(ended["exit"], json!({"code": 0}), "{ended:#}");

    // With it goes its root disk, and nothing else.
    daemon.ok(&["vm", "rm", "web"])?;
    let volumes = daemon.ok(&["volume", "ls", "-q"])?;
    let mut volumes: Vec<&str> = volumes.lines().collect();
    volumes.sort_unstable();
    assert_eq!(volumes, ["data", "debian", "files"]);
    assert_eq!(fs::read_dir(root.join("machines"))?.count(), 0);
    daemon.end()
}

/// Each thing that the job of `web` says, by what its guest says of itself.
fn did_as_it_was_told(daemon: &Daemon, login: &Login, id: &str) -> Result<()> {
    let said = login.shell(daemon, "web", &questions())?;
    let is = |name: &str, wanted: &str| -> Result<()> {
        let found = section(&said, name)?;
        ensure!(
            found == wanted,
            "{name} is {found:?} and not {wanted:?}: {said}"
        );
        Ok(())
    };
    is("name", "web-1\naleph\nbob\nroot")?;
    is("env", "600 root root\n1")?;
    is("ran", &format!("{id}|{TRICKY}|{TRICKY}|;||"))?;
    is("user", "of the user\nagain")?;
    is("package", &format!("{CONTENT} install ok installed"))?;
    is(
        "files",
        "640 1234 4321 /opt/binary\n4700 0 0 /opt/word\n\
         40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880  /opt/binary",
    )?;
    is("mounts", "ext4\nby serial\nxfs\nby serial")?;
    // Its partition and its filesystem have what its disk has beyond the image.
    let root: u32 = section(&said, "root")?.parse()?;
    ensure!(
        (DISK - 512..DISK).contains(&root),
        "its root has {root} of {DISK} MiB"
    );
    is("secrets", "")?;
    let logs = daemon.ok(&["logs", "web"])?;
    ensure!(logs.contains("Cloud-init v."), "{logs}");
    ensure!(!logs.contains(SECRET), "{logs}");
    Ok(())
}

/// Its system takes memory into use that comes while it runs.
fn grows(daemon: &Daemon, login: &Login) -> Result<()> {
    let kib = |said: String| -> Result<u64> { Ok(said.trim().parse()?) };
    let memory = "sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo";
    let before = kib(login.shell(daemon, "web", memory)?)?;
    daemon.ok(&["vm", "resize", "web", "-m", "1280m"])?;
    let more = before + 200 * 1024;
    let wait = format!(
        "timeout 120 sh -c 'until [ $(awk /MemTotal/{{print\\$2}} /proc/meminfo) -ge {more} ]; do sleep 1; done'; {memory}"
    );
    let after = kib(login.shell(daemon, "web", &wait)?)?;
    ensure!(after >= more, "{before} KiB became {after}");
    Ok(())
}

/// Its console lets people log in, and its screen shows what it writes there.
fn is_seen(daemon: &Daemon) -> Result<()> {
    let mut terminal = Terminal::new()?;
    let mut console = terminal.spawn(daemon.command(&["console", "web"]))?;
    let began = Instant::now();
    let seen = loop {
        // What is pressed before it listens is lost.
        terminal.press(b"\r")?;
        match terminal.until_within("web-1 login: ", Duration::from_secs(10)) {
            Ok(seen) => break seen,
            Err(error) => ensure!(began.elapsed() < BOOT, "{error:#}"),
        }
    };
    ensure!(!seen.contains("Cloud-init v."), "{seen}");
    // Who leaves ends nothing.
    terminal.press(b"\x10\x11")?;
    let left = console.wait()?;
    ensure!(left.success(), "aleph console: {left}");
    is(daemon, "web", "running").context("it does not run any more")?;
    let picture = screen::look(daemon, "web")?;
    ensure!(picture.bright > 0, "{picture:?}");
    Ok(())
}

/// What an agent would do is refused, and says what to do instead.
fn takes_no_agent(daemon: &Daemon) -> Result<()> {
    for words in [
        &["exec", "web", "true"][..],
        &["cp", "web:/etc/hostname", "-"],
        &["kill", "-s", "HUP", "web"],
        &["snapshot", "create", "web"],
    ] {
        let refused = daemon.aleph(words)?;
        ensure!(
            refused.code != 0 && refused.stderr.contains("aleph ssh"),
            "{words:?}: {refused:?}"
        );
    }
    Ok(())
}
