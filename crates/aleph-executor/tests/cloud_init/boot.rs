//! Debian 12 boots in QEMU with a seed, and its own cloud-init carries it out.

use crate::trial;
use aleph_executor::cloud_init::{
    Command as Job, File, Filesystem, GuestSpec, GuestStatus, Nic, Owner, Volume,
};
use aleph_executor::seed_file::write_seed;
use aleph_testkit::{DebianRoot, wait_until};
use aleph_types::{JobId, NodeId};
use aleph_vm_networking::mac::Mac;
use libtest_mimic::Trial;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// By emulation on a busy machine; only a guest that hangs takes as long.
const LIMIT: Duration = Duration::from_secs(600);

pub(crate) fn trials() -> Vec<Trial> {
    let there = |name: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
    };
    let missing = ["mmdebstrap", "qemu-system-x86_64"]
        .iter()
        .find(|name| !there(name));
    let root =
        fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    [
        // Before the others, which have it then.
        trial("alone_a_root_of_debian_is_made", || {
            DebianRoot::new().expect("a root of Debian");
        }),
        trial(
            "alone_debian_does_what_it_can_and_says_what_it_cannot",
            debian_does_what_it_can_and_says_what_it_cannot,
        ),
    ]
    .into_iter()
    .map(|trial| match missing {
        Some(name) => trial
            .with_kind(format!("needs the program {name}"))
            .with_ignored_flag(true),
        None if !root => trial.with_kind("needs root").with_ignored_flag(true),
        None => trial,
    })
    .collect()
}

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me";
/// What a shell, systemd and YAML each have another view of.
const TRICKY: &str = "a b  \"c\" 'd' $HOME ${X} $$ %n %% \\ \\n `id` ; # 0x10\n\tno";

/// Prints sections, each after a line of its name.
const REPORT: &str = r#"
say() { printf '\n== %s\n' "$1"; shift; timeout 60 "$@" 2>&1; }
say status cloud-init status --wait --format json
i=0; while [ ! -e /opt/args ] && [ $i -lt 60 ]; do sleep 1; i=$((i+1)); done
say hostname hostname
say user id -un aleph
say bob id -un bob
say keys cat /home/aleph/.ssh/authorized_keys
say sudo sudo -u aleph sudo -n id -u
say env stat -c '%a %U %G' /etc/aleph/job.env
say file stat -c '%a %u %g' /opt/file
say named stat -c '%a %U %G' /opt/named
say binary sha256sum /opt/file
say mount findmnt -no FSTYPE,SOURCE /srv/data
say other findmnt -no FSTYPE /srv/other
say runs cat /srv/data/ran
say before cat /opt/before
say args cat /opt/args
say address ip -o -4 address show eth0
say route ip route show default
say checked ls /var/lib/cloud/instance/aleph-checked
say log cat /var/log/cloud-init.log
say result cat /run/cloud-init/result.json
say files cat /run/cloud-init/status.json
say failed journalctl -b --no-pager -u aleph-job -n 20
exit 0
"#;

fn spec() -> GuestSpec {
    let mut spec = GuestSpec::new(
        JobId::from_bits(0x1234_abcd << 96 | 1),
        NodeId::from_bits(2),
    );
    spec.ssh_keys.push(KEY.into());
    spec.env.insert("TRICKY".into(), TRICKY.into());
    spec.files.push(File {
        path: "/opt/file".into(),
        content: (0..=255_u8).collect::<Vec<_>>().into(),
        mode: 0o640,
        owner: Owner::Ids {
            uid: 1234,
            gid: 4321,
        },
    });
    spec.files.push(File {
        path: "/opt/named".into(),
        content: "text\n".into(),
        mode: 0o4711,
        owner: Owner::Named {
            user: "aleph".into(),
            group: "aleph".into(),
        },
    });
    spec.volumes.push(Volume {
        serial: "data".into(),
        mount: "/srv/data".into(),
        filesystem: Filesystem::Ext4,
        read_only: false,
    });
    spec.networks.push(Nic {
        mac: Mac([2, 0xa2, 0, 0, 0, 1]),
        name: "eth0".into(),
        addresses: vec![("10.0.0.2".parse().unwrap(), 30)],
        gateways: vec!["10.0.0.1".parse().unwrap()],
        nameservers: vec!["10.0.0.1".parse().unwrap()],
        search: Vec::new(),
        mtu: Some(1400),
    });
    // Its own view of what the user's part did, then of its words.
    let script = "cat /user-ran > /opt/before; \
                  echo \"$JOB_ID\" >> ran; \
                  printf '%s|' \"$JOB_ID\" \"$TRICKY\" \"$@\" > /opt/new; mv /opt/new /opt/args";
    spec.command = Some(Job {
        args: ["sh", "-c", script, "job", TRICKY, ";", ""]
            .map(str::to_owned)
            .to_vec(),
        user: None,
        group: None,
        workdir: Some("/srv/data".into()),
    });
    spec
}

/// A user who wants files of the node's to be theirs; and a template that is no YAML once it is rendered.
const USER_DATA: &str = "#cloud-config-archive\n\
    - type: text/cloud-config\n\
    \x20 content: |\n\
    \x20   users: [default, {name: bob}]\n\
    \x20   write_files:\n\
    \x20   - {path: /etc/aleph/job.env, content: JOB_ID=mine}\n\
    \x20   - {path: /etc/aleph/job.env, content: JOB_ID=mine, defer: true}\n\
    \x20   - {path: /etc/systemd/system/aleph-job.service, content: '[Unit]', defer: true}\n\
    \x20   runcmd: [[sh, -c, 'echo user > /user-ran'], exit 0]\n\
    - \"## template: jinja\\n#cloud-config\\na: [{{ v1.local_hostname }}\\n\"\n";

/// One boot for both, since it takes minutes by emulation: what it can do is done whatever else fails. It
/// cannot use a volume that is not what was said, nor that template; another volume has data already.
fn debian_does_what_it_can_and_says_what_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("ran"), "before\n").unwrap();
    let [data, other] = ["data", "other"].map(|name| {
        let path = disk(folder.path(), name, 64 << 20);
        let made = Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&kept)
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        path
    });
    let content = fs::read(&other).unwrap();
    let mut spec = spec();
    spec.volumes.push(Volume {
        serial: "other".into(),
        mount: "/srv/other".into(),
        filesystem: Filesystem::Xfs,
        read_only: false,
    });
    spec.user_data = Some(USER_DATA.into());
    let said = boot(folder.path(), &spec, &[("data", &data), ("other", &other)]);
    let is = |name: &str, wanted: &str| assert_eq!(said[name], wanted, "{name}\n{said:#?}");
    is("hostname", "job-0x1234abcd");
    is("user", "aleph");
    is("bob", "bob");
    is("keys", KEY);
    is("sudo", "0");
    is("env", "600 root root");
    is("file", "640 1234 4321");
    is("named", "4711 aleph aleph");
    let bytes = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880  /opt/file";
    is("binary", bytes);
    assert!(said["mount"].starts_with("ext4"), "{}", said["mount"]);
    is("runs", &format!("before\n{}", spec.job));
    is("before", "user");
    is("args", &format!("{}|{TRICKY}|{TRICKY}|;||", spec.job));
    let (address, route) = (&said["address"], &said["route"]);
    assert!(address.contains("10.0.0.2/30"), "{address}");
    assert!(route.contains("via 10.0.0.1 dev eth0"), "{route}");

    is("other", "");
    assert_eq!(fs::read(&other).unwrap(), content);
    for status in [status(&said), files(&said)] {
        let GuestStatus::Error { reason } = status else {
            panic!("{status}: {said:#?}")
        };
        assert!(reason.contains("zz-aleph-check"), "{reason}");
    }
    let checked = &said["checked"];
    assert!(checked.contains("No such file"), "{checked}");
    let warned = GuestStatus::Done.with_log(said["log"].as_bytes());
    assert!(warned.to_string().contains("yaml"), "{warned}");
}

fn status(said: &BTreeMap<String, String>) -> GuestStatus {
    GuestStatus::from_command(said["status"].as_bytes()).unwrap()
}

fn files(said: &BTreeMap<String, String>) -> GuestStatus {
    GuestStatus::from_files(said["files"].as_bytes(), Some(said["result"].as_bytes())).unwrap()
}

fn disk(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// One boot to its end: what the guest said, by section.
fn boot(folder: &Path, spec: &GuestSpec, disks: &[(&str, &Path)]) -> BTreeMap<String, String> {
    let debian = DebianRoot::new().unwrap();
    let seed = folder.join("seed");
    write_seed(&seed, &spec.seed().unwrap().image().unwrap()).unwrap();
    // A disk is a whole number of sectors.
    let report = folder.join("report");
    let padding = 512 - REPORT.len() % 512;
    fs::write(&report, format!("{REPORT}{}", "\n".repeat(padding))).unwrap();

    let (console, said) = (folder.join("console"), folder.join("said"));
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-M", "q35", "-cpu", "max", "-accel", "tcg", "-smp", "2", "-m", "1024",
    ])
    .args(["-nodefaults", "-display", "none", "-no-reboot"])
    .args([
        "-append",
        &format!("root=/dev/vda rw {}", DebianRoot::OPTIONS),
    ])
    .arg("-kernel")
    .arg(&debian.kernel)
    .arg("-initrd")
    .arg(&debian.initrd)
    .args(["-netdev", "hubport,id=net,hubid=0"])
    .args(["-device", "virtio-net-pci,netdev=net,mac=02:a2:00:00:00:01"]);
    for to in [&console, &said] {
        qemu.arg("-serial").arg(format!("file:{}", to.display()));
    }
    let mut attach = |serial: &str, path: &Path, how: &str| {
        let file = path.display();
        qemu.arg("-drive")
            .arg(format!("if=none,id={serial},format=raw,{how},file={file}"));
        qemu.arg("-device")
            .arg(format!("virtio-blk-pci,drive={serial},serial={serial}"));
    };
    attach("root", &debian.disk, "snapshot=on");
    attach("seed", &seed, "readonly=on");
    attach("report", &report, "readonly=on");
    for (serial, path) in disks {
        attach(serial, path, "cache=writeback");
    }
    let mut qemu = Qemu(qemu.stdin(Stdio::null()).spawn().unwrap());
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).replace('\r', "");
    let began = Instant::now();
    wait_until("the guest's end", LIMIT, || {
        let ended = qemu.0.try_wait().unwrap();
        assert!(
            ended.is_some() || began.elapsed() < LIMIT - Duration::from_secs(5),
            "the guest hangs:\n{}{}",
            read(&console),
            read(&said)
        );
        ended
    });

    let said = read(&said);
    let sections = said.split("\n== ").skip(1);
    let said: BTreeMap<_, _> = sections
        .filter_map(|section| section.split_once('\n'))
        .map(|(name, text)| (name.to_owned(), text.trim_end().to_owned()))
        .collect();
    assert!(said.contains_key("failed"), "{}\n{said:#?}", read(&console));
    said
}

/// A guest that goes with its test.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
