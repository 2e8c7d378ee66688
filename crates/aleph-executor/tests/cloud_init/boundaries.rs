//! What is refused, with which words, and without the secrets.

use crate::trial;
use aleph_executor::cloud_init::{
    CloudInitError, Command, File, Filesystem, GuestSpec, MAX_FILES, MAX_USER_DATA, Nic, Owner,
    UserDataError, UserDataKind, Volume,
};
use aleph_types::{Classify, ErrorClass, JobId, NodeId};
use aleph_vm_networking::mac::Mac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::GzEncoder;
use libtest_mimic::Trial;
use std::io::Write;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_field_out_of_form_is_named", a_field_out_of_form_is_named),
        trial("user_data_is_told_apart", user_data_is_told_apart),
        trial(
            "user_data_is_refused_with_a_reason",
            user_data_is_refused_with_a_reason,
        ),
        trial("nobody_prints_a_secret", nobody_prints_a_secret),
        trial("a_bomb_is_not_unpacked", a_bomb_is_not_unpacked),
    ]
}

fn spec() -> GuestSpec {
    GuestSpec::new(JobId::from_bits(0x1234_abcd << 96), NodeId::from_bits(2))
}

fn file(path: &str) -> File {
    File {
        path: path.into(),
        content: "x".into(),
        mode: 0o644,
        owner: Owner::Ids { uid: 0, gid: 0 },
    }
}

fn volume(serial: &str, mount: &str) -> Volume {
    Volume {
        serial: serial.into(),
        mount: mount.into(),
        filesystem: Filesystem::Ext4,
        read_only: false,
    }
}

fn nic() -> Nic {
    Nic {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        name: "eth0".into(),
        addresses: vec![("10.0.0.2".parse().unwrap(), 30)],
        gateways: vec!["10.0.0.1".parse().unwrap()],
        nameservers: vec!["10.0.0.1".parse().unwrap()],
        search: vec!["example.org".into()],
        mtu: Some(1500),
    }
}

fn command(args: &[&str]) -> Command {
    Command {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        user: None,
        group: None,
        workdir: None,
    }
}

type Change = fn(&mut GuestSpec);

fn a_field_out_of_form_is_named() {
    let mut whole = spec();
    whole.networks.push(nic());
    whole.files.push(file("/a"));
    whole.volumes.push(volume("data", "/srv"));
    whole.command = Some(command(&["app"]));
    whole.ssh_keys.push(format!(
        "from=\"10.0.0.0/8\" ssh-ed25519 {} me",
        "A".repeat(68)
    ));
    assert_eq!(whole.hostname(), "job-0x1234abcd");
    whole.seed().unwrap();

    let cases: &[(&str, Change)] = &[
        ("hostname is not", |s| s.hostname = Some("-a".into())),
        ("hostname is not", |s| s.hostname = Some("a\nb".into())),
        ("hostname is not", |s| s.hostname = Some("a".repeat(65))),
        ("ssh_keys[1] is not a line", |s| {
            s.ssh_keys.push("ssh-ed25519".into());
        }),
        ("ssh_keys[1] is not a line", |s| {
            let key = "A".repeat(68);
            s.ssh_keys.push(format!("ssh-rsa {key}\nssh-rsa {key}"));
        }),
        ("env has a name", |s| {
            drop(s.env.insert("1A".into(), "x".into()));
        }),
        ("env has a name", |s| {
            drop(s.env.insert("A-B".into(), "x".into()));
        }),
        ("env has a name", |s| {
            drop(s.env.insert(String::new(), "x".into()));
        }),
        ("env.JOB_ID is set by the node", |s| {
            drop(s.env.insert("JOB_ID".into(), "x".into()));
        }),
        ("env.A is not UTF-8", |s| {
            drop(s.env.insert("A".into(), vec![0xff].into()));
        }),
        ("env.A has control", |s| {
            drop(s.env.insert("A".into(), "a\rb".into()));
        }),
        ("env.A has control", |s| {
            drop(s.env.insert("A".into(), "a\0b".into()));
        }),
        ("env.A has a character that", |s| {
            drop(s.env.insert("A".into(), "\u{ffff}".into()));
        }),
        ("command.args has a character", |s| {
            s.command = Some(command(&["a", "\u{1fffe}"]));
        }),
        ("the text of env has", |s| {
            drop(s.env.insert("A".into(), "a".repeat(1 << 20).into()));
        }),
        ("files[1].path is not absolute", |s| s.files.push(file("a"))),
        ("files[1].path has . or ..", |s| {
            s.files.push(file("/a/../etc/shadow"));
        }),
        ("files[1].path is a folder's", |s| s.files.push(file("/a/"))),
        ("files[1].path has control", |s| s.files.push(file("/a\nb"))),
        ("files[1].path is that of", |s| s.files.push(file("/a"))),
        ("files[1].path is in /etc/aleph", |s| {
            s.files.push(file("/etc/aleph/job.env"));
        }),
        ("files[1].path has // in it", |s| {
            s.files.push(file("//etc/aleph/job.env"));
        }),
        ("files[1].path has // in it", |s| {
            s.files.push(file("/etc//aleph/job.env"));
        }),
        ("files[1].path is that of the job's unit", |s| {
            s.files.push(file("/etc/systemd/system/aleph-job.service"));
        }),
        ("files[1].path is that of the job's unit", |s| {
            s.files
                .push(file("/etc/systemd/system/aleph-job.service.d/x.conf"));
        }),
        ("files[0].mode has bits", |s| s.files[0].mode = 0o10000),
        ("files[0].owner is not a user", |s| {
            s.files[0].owner = Owner::Named {
                user: "a:b".into(),
                group: "c".into(),
            };
        }),
        ("files[0].owner is not a group", |s| {
            s.files[0].owner = Owner::Named {
                user: "a".into(),
                group: String::new(),
            };
        }),
        ("the content of files has", |s| {
            s.files[0].content = vec![0; MAX_FILES + 1].into();
        }),
        ("packages[0] is not", |s| s.packages.push("-o=x".into())),
        ("packages[0] is not", |s| s.packages.push("a b".into())),
        ("packages has 1025", |s| s.packages = vec!["a".into(); 1025]),
        ("command.args has no program", |s| {
            s.command = Some(command(&[]));
        }),
        ("command.args has no program", |s| {
            s.command = Some(command(&["", "a"]));
        }),
        ("command.args has a NUL", |s| {
            s.command = Some(command(&["a", "\0"]));
        }),
        ("command.user is not", |s| {
            s.command.as_mut().unwrap().user = Some("a\nb".into());
        }),
        ("command.workdir is not absolute", |s| {
            s.command.as_mut().unwrap().workdir = Some("a".into());
        }),
        ("volumes[0].serial is not", |s| {
            s.volumes[0].serial = "a/b".into();
        }),
        ("volumes[0].serial is not", |s| {
            s.volumes[0].serial = "a".repeat(21);
        }),
        ("volumes[1].serial is that", |s| {
            s.volumes.push(volume("data", "/b"));
        }),
        ("volumes[0].serial is another's", |s| {
            s.volumes.push(volume("data1", "/b"));
        }),
        ("volumes[0].serial is another's", |s| {
            s.volumes.push(volume("data-part1", "/b"));
        }),
        ("volumes[1].mount is that", |s| {
            s.volumes.push(volume("b", "/srv/"));
        }),
        ("volumes[0].mount has white", |s| {
            s.volumes[0].mount = "/a b".into();
        }),
        ("volumes[0].mount has white", |s| {
            s.volumes[0].mount = "/a\u{2003}b".into();
        }),
        ("volumes[0].mount is the root", |s| {
            s.volumes[0].mount = "/".into();
        }),
        ("networks[0].mac is no card's", |s| {
            s.networks[0].mac = Mac([1, 0, 0, 0, 0, 0]);
        }),
        ("networks[1].mac is that", |s| s.networks.push(nic())),
        ("networks[0].name is not", |s| {
            s.networks[0].name = "a-very-long-name".into();
        }),
        ("networks[0].name is not", |s| {
            s.networks[0].name = "lo".into();
        }),
        ("networks[0].addresses has a prefix", |s| {
            s.networks[0].addresses[0].1 = 33;
        }),
        ("networks[0].addresses has one", |s| {
            s.networks[0].addresses[0].0 = "224.0.0.1".parse().unwrap();
        }),
        ("networks[0].gateways has several", |s| {
            s.networks[0].gateways.push("10.0.0.3".parse().unwrap());
        }),
        ("networks[0].gateways has one that is in no", |s| {
            s.networks[0].gateways.push("fe80::1".parse().unwrap());
        }),
        ("networks[0].gateways has one that is in no", |s| {
            s.networks[0].gateways[0] = "10.0.0.5".parse().unwrap();
        }),
        ("networks[0].gateways or nameservers", |s| {
            s.networks[0].nameservers.push("0.0.0.0".parse().unwrap());
        }),
        ("networks[0].search has one", |s| {
            s.networks[0].search.push("a b".into());
        }),
        ("networks[0].mtu is less", |s| s.networks[0].mtu = Some(67)),
    ];
    for (said, change) in cases {
        let mut spec = whole.clone();
        change(&mut spec);
        let error = spec.seed().expect_err(said);
        assert!(error.to_string().starts_with(said), "{error}: {said}");
        assert_eq!(error.class(), ErrorClass::Invalid);
        assert!(error.advice().is_some());
    }
}

fn with(own: impl Into<Vec<u8>>) -> Result<Option<UserDataKind>, UserDataError> {
    let mut spec = spec();
    spec.user_data = Some(own.into().into());
    match spec.seed() {
        Ok(seed) => Ok(seed.kind),
        Err(CloudInitError::UserData(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn user_data_is_told_apart() {
    use UserDataKind::{
        Archive, Boothook, CloudConfig, Include, Jinja, JsonPatch, Message, Script,
    };
    let config = "#cloud-config\na: 1\n";
    let cases = [
        ("", None),
        (" \n", None),
        (config, Some(CloudConfig)),
        ("\n  #Cloud-Config\na: 1", Some(CloudConfig)),
        // A comment that would make cloud-init take the whole for a message.
        (
            "#cloud-config\n# MIME-Version: 1.0\na: 1\n",
            Some(CloudConfig),
        ),
        ("#cloud-config-archive\n- '#!/bin/sh'", Some(Archive)),
        ("#cloud-config-jsonp\n[]", Some(JsonPatch)),
        ("## template: jinja\n#cloud-config\na: {{ b }}", Some(Jinja)),
        ("#cloud-boothook\ntrue", Some(Boothook)),
        ("#include\nhttp://localhost/", Some(Include)),
        ("#include-once http://localhost/", Some(Include)),
        ("#!/bin/sh\n", Some(Script)),
        (
            "MIME-Version: 1.0\nContent-Type: text/cloud-config\n\na: 1",
            Some(Message),
        ),
    ];
    for (text, kind) in cases {
        assert_eq!(with(text), Ok(kind), "{text:?}");
        if kind.is_some() {
            assert_eq!(with(gzip(text.as_bytes())), Ok(kind), "{text:?}");
            assert_eq!(with(BASE64.encode(text)), Ok(kind), "{text:?}");
            assert_eq!(with(BASE64.encode(gzip(text.as_bytes()))), Ok(kind));
        }
    }
    // Forms of YAML that only a parser of its own kind would refuse.
    for text in [
        "users:\n- default\n- name: bob\n  passwd: $6$x\n",
        "write_files:\n- path: /a\n  permissions: 0644\n  content: !!binary |\n    AAEC\n",
        "a: 0644\nb: 1:30\nc: 2001-01-01\n1: x\nnull: y\n? [a, b]\n: c\n",
        "---\na: &x [1, 2]\nb: *x\n...\n",
        "a: |\n  text\n\n  more\nb: >-\n  folded\n",
        "merge_how: 'list(append)+dict(recurse_array)+str()'\nruncmd: [a]\n",
        "merge_how:\n- name: list\n  settings: [append]\n- name: dict\n  settings: [no_replace]\n",
    ] {
        assert_eq!(
            with(format!("#cloud-config\n{text}")),
            Ok(Some(CloudConfig)),
            "{text}"
        );
    }
}

fn user_data_is_refused_with_a_reason() {
    use UserDataError as E;
    let config = |text: &str| with(format!("#cloud-config\n{text}"));
    for (text, error) in [
        ("", E::Empty),
        ("# nothing\n", E::Empty),
        ("{}\n", E::Empty),
        ("- a\n", E::NotMapping),
        ("text\n", E::NotMapping),
        ("hostname: x\n", E::Owned("hostname")),
        (
            "\"cloud_final_mod\\x75les\": []\n",
            E::Owned("cloud_final_modules"),
        ),
        ("network: {config: disabled}\n", E::Owned("network")),
        ("users: default\n", E::NotList("users")),
        ("users:\n", E::NotList("users")),
        ("runcmd: {a: b}\n", E::NotList("runcmd")),
        ("users: [aleph]\n", E::OurUser("aleph")),
        ("users: ['bob, aleph']\n", E::OurUser("aleph")),
        ("users: [{name: aleph, sudo: false}]\n", E::OurUser("aleph")),
        ("users: [[aleph]]\n", E::OurUser("aleph")),
        ("user: aleph\n", E::OurUser("aleph")),
        (
            "user: {name: aleph, ssh_authorized_keys: [x], sudo: false}\n",
            E::OurUser("aleph"),
        ),
        (
            "# note\u{2028}cloud_final_modules: []\na: 1\n",
            E::LineBreak,
        ),
        ("a: b #\u{85}users: default\n", E::LineBreak),
        ("a: \"\u{2029}\"\n", E::LineBreak),
        ("a: 1\nmerge_how: nonsense\n", E::MergeHow("merge_how")),
        (
            "a: 1\nmerge_type: [{name: set, settings: []}]\n",
            E::MergeHow("merge_type"),
        ),
    ] {
        assert_eq!(config(text), Err(error), "{text}");
    }
    // Line and column are those of the whole text.
    assert!(
        matches!(config("a: 1\nb: [\n"), Err(E::NotYaml { line: 3.., .. })),
        "{:?}",
        config("a: 1\nb: [\n")
    );
    assert!(matches!(
        config("a: 1\na: 2\n"),
        Err(E::NotYaml { line: 3, .. })
    ));

    for (bytes, error) in [
        (&b"hello"[..], E::Unknown),
        (b"aGVsbG8=", E::Unknown),
        (b"\xff\xfe", E::NotText),
        (b"\x1f\x8b\x08", E::Gzip),
        (b"#part-handler\n", E::PartHandler),
        (
            b"#cloud-config-archive\n- |\n  #part-handler\n",
            E::PartHandler,
        ),
        (
            b"MIME-Version: 1.0\nContent-Type: text/part-handler\n\nx",
            E::PartHandler,
        ),
        (b"MIME-Version: 1.0\n\n\xc3\xa9", E::MimeText),
        (
            b"## template: jinja\n#cloud-config\ncloud_config_modules: []",
            E::Owned("cloud_config_modules"),
        ),
    ] {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(with(bytes), Err(error.clone()), "{text}");
        let error = CloudInitError::from(error);
        assert_eq!(error.code(), "bad_user_data");
        assert!(error.advice().is_some());
    }
    // What is encoded is looked at as what it is.
    let part = |head: &str, text: &str| {
        with(format!(
            "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n{head}\n\
             Content-Transfer-Encoding: base64\n\n{}\n--b--\n",
            BASE64.encode(text)
        ))
    };
    let config = "Content-Type: text/cloud-config; charset=\"utf-8\"";
    let plain = "Content-Type: text/plain";
    for (head, text, error) in [
        (
            config,
            "cloud_final_modules: []",
            E::Owned("cloud_final_modules"),
        ),
        (config, "users: default", E::NotList("users")),
        (plain, "#cloud-config\nuser: aleph", E::OurUser("aleph")),
        (plain, "#part-handler\n", E::PartHandler),
        (plain, "text", E::Unknown),
        ("Content-Type: text/x-part-handler", "x", E::PartHandler),
        (config, "", E::Empty),
        (
            "Content-Type: text/cloud-config-archive",
            "- {content: \"#cloud-config\\n\\x75sers: {}\"}",
            E::NotList("users"),
        ),
        (
            "Content-Type: text/cloud-config\nMerge-Type: set()",
            "a: 1",
            E::MergeHow("Merge-Type"),
        ),
    ] {
        assert_eq!(part(head, text), Err(error), "{head} {text}");
    }
    for head in [
        "Content-Type: application/x-unknown",
        "Content-Type: text/cloud-config; charset=utf-16",
        "Content-Type: text/x-shellscript\nContent-Disposition: attachment; filename=\"../x\"",
    ] {
        assert!(
            matches!(part(head, "#!/bin/sh"), Err(E::Message(_))),
            "{head}"
        );
    }
    assert_eq!(part(config, "runcmd: [a]"), Ok(Some(UserDataKind::Message)));

    for (text, error) in [
        ("#cloud-config-archive\na: b\n", E::NotArchive),
        ("#cloud-config-archive\n- [a]\n", E::NotArchive),
        ("#cloud-config-archive\n- text\n", E::Unknown),
        (
            "#cloud-config-archive\n- type: text/cloud-config\n  content: 'hostname: x'\n",
            E::Owned("hostname"),
        ),
        (
            "#cloud-config-jsonp\n[{\"op\":\"add\",\"path\":\"/cloud_final_mod\\u0075les\",\"value\":[]}]",
            E::Owned("cloud_final_modules"),
        ),
        (
            "#cloud-config-jsonp\n[{\"op\":\"move\",\"from\":\"/users/0\",\"path\":\"/a\"}]",
            E::Owned("users"),
        ),
        (
            "#cloud-config-jsonp\n[{\"op\":\"remove\",\"path\":\"/runcmd\"}]",
            E::NotList("runcmd"),
        ),
        (
            "#cloud-config-jsonp\n[{\"op\":\"replace\",\"path\":\"\",\"value\":{}}]",
            E::NotMapping,
        ),
        ("#cloud-config-jsonp\nx", E::NotPatch { line: 2, column: 1 }),
    ] {
        assert_eq!(with(text), Err(error), "{text}");
    }
    let long = format!("#!{}", "x".repeat(MAX_USER_DATA));
    assert_eq!(with(long), Err(E::TooLong(MAX_USER_DATA)));
}

fn nobody_prints_a_secret() {
    const SECRET: &str = "hunter2-hunter2";
    let mut spec = spec();
    spec.env.insert("PASSWORD".into(), SECRET.into());
    spec.files.push(File {
        content: SECRET.into(),
        ..file("/secret")
    });
    spec.user_data = Some(format!("#!/bin/sh\n{SECRET}").into());
    let seed = spec.seed().unwrap();
    let image = seed.image().unwrap();
    for text in [
        format!("{spec:?}"),
        format!("{seed:#?}"),
        format!("{image:?}"),
    ] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    for own in [
        SECRET.to_owned(),
        format!("#cloud-config\n{SECRET}: [\n"),
        format!("#cloud-config\nusers: {SECRET}\n"),
        format!("#cloud-config\nmerge_how: {SECRET}\na: 1\n"),
        format!("#cloud-config\n{SECRET}: 1\n{SECRET}: 2\n"),
    ] {
        spec.user_data = Some(own.into());
        let error = spec.seed().unwrap_err();
        let advice = error.advice().unwrap();
        assert!(
            !format!("{error} {error:?} {advice}").contains("hunter2"),
            "{error:?}"
        );
    }
    spec.user_data = None;
    spec.env
        .insert("PASSWORD".into(), format!("{SECRET}\0").into());
    let error = spec.seed().unwrap_err();
    assert!(
        !format!("{error} {error:?}").contains("hunter2"),
        "{error:?}"
    );
}

fn a_bomb_is_not_unpacked() {
    let zeros = gzip(&vec![b' '; 64 << 20]);
    assert!(zeros.len() < MAX_USER_DATA);
    assert_eq!(with(zeros), Err(UserDataError::TooLong(MAX_USER_DATA)));
    // Nine of nine of nine: a parser that followed them would not come back.
    let mut laughs = String::from("#cloud-config\na0: &a0 [x]\n");
    for i in 1..12 {
        let before = format!("*a{}, ", i - 1).repeat(9);
        laughs.push_str(&format!("a{i}: &a{i} [{before}]\n"));
    }
    assert!(matches!(with(laughs), Err(UserDataError::NotYaml { .. })));
    let deep = format!("#cloud-config\na: {}", "[".repeat(100_000));
    assert!(matches!(with(deep), Err(UserDataError::NotYaml { .. })));
}
