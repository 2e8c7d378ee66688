//! Specifications of guests, with the texts that YAML, shells and systemd trip over.

use aleph_executor::cloud_init::{
    Command, File, Filesystem, GuestSpec, Nic, Owner, Secret, Volume,
};
use aleph_types::{JobId, NodeId};
use aleph_vm_networking::mac::Mac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Texts that read as something else somewhere.
const TRAPS: [&str; 48] = [
    "no",
    "yes",
    "on",
    "y",
    "~",
    "null",
    "",
    "0x1234",
    "0644",
    "0o644",
    "1_000",
    "1:30",
    "1e3",
    ".inf",
    "2001-01-01",
    "=",
    "<<",
    "a: b",
    "a #b",
    "- a",
    "? a",
    "*a",
    "&a",
    "!!str a",
    "%a",
    "@a",
    "`a`",
    "|",
    ">",
    "{a}",
    "[a]",
    "'",
    "\"",
    "it's \"x\"",
    "\\",
    "\\n",
    "a\nb",
    "\n",
    " a ",
    "a\n  b\n",
    "tab\there",
    "é",
    "\u{1f600}",
    "\u{2028}",
    "\u{feff}",
    "\u{a0}",
    "${HOME} $(id)",
    "--aleph\n%n;",
];

/// Any text.
pub(crate) fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => select(TRAPS.as_slice()).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => "[ -~]{0,200}",
    ]
}

/// Text without characters that move a cursor.
fn line() -> impl Strategy<Value = String> {
    text().prop_map(|text| text.replace(char::is_control, ""))
}

/// Text as systemd takes it.
fn without_noncharacters(text: &str) -> String {
    let kept = |c: &char| {
        let c = u32::from(*c);
        !(0xfdd0..=0xfdef).contains(&c) && c & 0xfffe != 0xfffe
    };
    text.chars().filter(kept).collect()
}

fn variable() -> impl Strategy<Value = (String, Secret)> {
    let value = text().prop_map(|text| {
        without_noncharacters(&text)
            .replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "")
            .into()
    });
    ("V_[A-Za-z0-9_]{0,8}", value)
}

fn content() -> impl Strategy<Value = Secret> {
    prop_oneof![
        text().prop_map(Secret::from),
        vec(any::<u8>(), 0..300).prop_map(Secret::from),
    ]
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        ("[a-z_][a-z0-9_-]{0,8}", "[a-z_][a-z0-9_-]{0,8}")
            .prop_map(|(user, group)| Owner::Named { user, group }),
        any::<(u32, u32)>().prop_map(|(uid, gid)| Owner::Ids { uid, gid }),
    ]
}

fn files() -> impl Strategy<Value = Vec<File>> {
    let file = (line(), content(), 0_u16..=0o7777, owner());
    vec(file, 0..4).prop_map(|files| {
        let files = files.into_iter().enumerate();
        files
            .map(|(i, (name, content, mode, owner))| File {
                // No part is . or ..
                path: format!("/f{i}/x{}x", name.replace("/.", "/x").replace("//", "/y")),
                content,
                mode,
                owner,
            })
            .collect()
    })
}

fn command() -> impl Strategy<Value = Option<Command>> {
    let args = vec(
        text().prop_map(|text| without_noncharacters(&text).replace('\0', "")),
        0..4,
    );
    let command = (
        args,
        proptest::option::of("[a-z_][a-z0-9_-]{0,8}"),
        proptest::option::of("[1-9][0-9]{0,8}"),
        proptest::option::of(line()),
    );
    proptest::option::of(command.prop_map(|(mut args, user, group, workdir)| {
        args.insert(0, "/bin/app".into());
        Command {
            args,
            user,
            group,
            workdir: workdir
                .map(|name| format!("/w{}x", without_noncharacters(&name).replace('/', ""))),
        }
    }))
}

fn volumes() -> impl Strategy<Value = Vec<Volume>> {
    let volume = (
        "[A-Za-z0-9_-]{1,18}",
        line(),
        select(vec![Filesystem::Ext4, Filesystem::Xfs]),
        any::<bool>(),
    );
    vec(volume, 0..3).prop_map(|volumes| {
        let volumes = volumes.into_iter().enumerate();
        volumes
            .map(|(i, (serial, name, filesystem, read_only))| Volume {
                serial: format!("{i}{serial}"),
                mount: format!(
                    "/v{i}{}x",
                    name.replace(|c: char| c.is_whitespace() || "\\#,/".contains(c), "")
                ),
                filesystem,
                read_only,
            })
            .collect()
    })
}

fn nics() -> impl Strategy<Value = Vec<Nic>> {
    let nic = (
        any::<[u8; 4]>(),
        1_u8..=223,
        proptest::option::of(any::<u64>()),
        vec("[a-z0-9]{1,8}\\.test", 0..3),
        proptest::option::of(1280_u16..9000),
    );
    vec(nic, 0..3).prop_map(|nics| {
        let nics = nics.into_iter().enumerate();
        nics.map(|(i, (mac, host, v6, search, mtu))| {
            let [a, b, c, d] = mac;
            let i = u8::try_from(i).unwrap();
            let v4 = |last| IpAddr::V4(Ipv4Addr::new(10, i, host, last));
            let mut nic = Nic {
                mac: Mac([2, i, a, b, c, d]),
                name: format!("eth{i}"),
                addresses: vec![(v4(2), 30)],
                gateways: vec![v4(1)],
                nameservers: vec![v4(1)],
                search,
                mtu,
            };
            if let Some(bits) = v6 {
                let prefix = 0xfd00_0000_0000_0000_0000_0000_0000_0000;
                let address = Ipv6Addr::from_bits(prefix | u128::from(bits | 1));
                nic.addresses.push((address.into(), 64));
                nic.gateways.push("fe80::1".parse().unwrap());
            }
            nic
        })
        .collect()
    })
}

/// A user's cloud-config that wants the same things as the node, and each of its ways to merge.
fn config() -> impl Strategy<Value = String> {
    let how = select(vec![
        None,
        Some(json!("dict(replace)+list()+str()")),
        Some(json!("list(append)+dict(recurse_array)+str(append)")),
        Some(json!([{"name": "list", "settings": ["prepend"]}])),
        Some(json!([["dict", "recurse_list"], ["list", "append"]])),
    ]);
    let keys = vec![
        ("users", json!(["default", {"name": "bob"}])),
        ("users", json!(["bob"])),
        (
            "write_files",
            json!([{"path": "/etc/aleph/job.env", "content": "JOB_ID=mine"}]),
        ),
        ("runcmd", json!(["exit 0", ["false", "no"], "exec sleep 9"])),
        ("bootcmd", json!([["true"]])),
        ("packages", json!(["nginx", ["curl", "1.0"]])),
        ("package_update", json!(false)),
        ("mounts", json!([["/dev/vdz", "/mnt"]])),
        (
            "fs_setup",
            json!([{"device": "/dev/vdz", "filesystem": "ext4"}]),
        ),
        ("growpart", json!({"mode": "off"})),
        ("timezone", json!("no")),
        ("final_message", json!("a: b # c")),
    ];
    let chosen = proptest::sample::subsequence(keys, 1..=10);
    (how, chosen).prop_map(|(how, keys)| {
        let mut text = String::from("#cloud-config\n");
        let mut seen: Vec<&str> = Vec::new();
        for (key, value) in keys {
            if !seen.contains(&key) {
                seen.push(key);
                text.push_str(&format!("{key}: {value}\n"));
            }
        }
        if let Some(how) = how {
            text.push_str(&format!("merge_how: {how}\n"));
        }
        text
    })
}

fn message(config: &str) -> String {
    format!(
        "Content-Type: multipart/mixed; boundary=\"b\"\r\nMIME-Version: 1.0\r\n\r\n\
         --b\r\nContent-Type: text/cloud-config; charset=\"utf-8\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}\r\n\
         --b\r\nContent-Type: text/x-shellscript\r\n\r\n#!/bin/sh\necho hello\r\n",
        BASE64.encode(config)
    )
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(text).unwrap();
    gzip.finish().unwrap()
}

/// User-data of each kind that nobody has anything against.
pub(crate) fn user_data() -> impl Strategy<Value = Vec<u8>> {
    let document = prop_oneof![
        4 => config(),
        1 => text().prop_map(|text| format!("#!/bin/sh\n{text}")),
        1 => text().prop_map(|text| format!("#cloud-boothook\n#!/bin/sh\n{text}")),
        1 => config().prop_map(|text| format!(
            "## template: jinja\n{text}fqdn_of: {{{{ v1.local_hostname }}}}\n"
        )),
        1 => config().prop_map(|text| format!(
            "#cloud-config-archive\n{}",
            json!([text, {"type": "text/x-shellscript", "content": "#!/bin/sh\ntrue"}])
        )),
        1 => Just(
            "#cloud-config-jsonp\n[{\"op\": \"add\", \"path\": \"/timezone\", \"value\": \"no\"}]"
                .to_owned()
        ),
        2 => config().prop_map(|text| message(&text)),
    ];
    (document, 0..4).prop_map(|(text, wrap)| match wrap {
        0 => gzip(text.as_bytes()),
        1 => BASE64.encode(text).into_bytes(),
        _ => text.into_bytes(),
    })
}

/// The beginning of a message whose part is in base64.
const ENCODED: &str = "Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\n\
    Content-Type: text/cloud-config; charset=\"utf-8\"\nContent-Transfer-Encoding: base64";

/// User-data of lines that are meant to do harm; many are no YAML at all.
pub(crate) fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        3 => select(vec![
            "users: default", "users: []", "users:", "users: {bob: {}}", "runcmd: [exit 1]",
            "runcmd: |", "  exit 0", "write_files: []", "write_files: null", "? users", ": a",
            "---", "...", "--- #x", "%YAML 1.1", "a: &a [*a]", "<<: {users: x}", "merge_how: x",
            "merge_how: dict(replace)+list(replace)", "merge_type: []", "merge_how: [[]]",
            "launch-index: 9", "launch-index: x", "hostname: other", "\"\\x75sers\": {}",
            "!!str users: {}", "packages: {a: b}", "mounts: x", "fs_setup: !!set {a}",
            "network: {config: disabled}", "cloud_final_modules: []", "users: !x [a]",
            "1: 2", "null: x", "[a]: b", "{a: b}: c", "a: b", "\ta: b", "a: \u{feff}b", "--aleph",
            "Content-Type: text/plain", "MIME-Version: 1.0", "--b--", "vendor_data: {enabled: false}",
            "# note\u{2028}cloud_final_modules: []", "a: b #\u{85}users: default",
            "user: {name: aleph, sudo: false}", "user: aleph", "user: bob",
            "write_files: [{path: /etc/aleph/job.env, content: x, defer: true}]",
            "- '#cloud-config\n  users: default'", "- {content: \"#cloud-config\\nusers: {}\"}",
            "[{\"op\": \"add\", \"path\": \"/\\u0075sers\", \"value\": 1}]",
            "[{\"op\": \"add\", \"path\": \"/runcmd\", \"value\": {}}]",
        ]).prop_map(str::to_owned),
        1 => text(),
    ];
    let start = select(vec![
        "#cloud-config",
        "#cloud-config",
        "#cloud-config",
        "#CLOUD-CONFIG # x",
        "#cloud-config-x",
        "  \n#cloud-config",
        "## template: jinja\n#cloud-config",
        "#!/bin/sh",
        "#cloud-config-archive",
        "#cloud-config-jsonp",
        "MIME-Version: 1.0",
        "Content-Type: multipart/mixed; boundary=b\n\
         MIME-Version: 1.0\n\n--b\nContent-Type: text/cloud-config\n\n#cloud-config",
        "MIME-Version: 1.0\nContent-Type: message/rfc822\n",
        "From x\nMIME-Version: 1.0",
        ENCODED,
    ]);
    (start, vec(line, 0..6)).prop_map(|(start, lines)| {
        let lines = lines.join("\n");
        let text = match start {
            // As cloud-init devel make-mime writes it.
            ENCODED => format!(
                "{start}\n\n{}\n--b--\n",
                BASE64.encode(format!("#cloud-config\n{lines}\n"))
            ),
            start => format!("{start}\n{lines}\n"),
        };
        text.into_bytes()
    })
}

/// A guest with some of everything, and no user-data.
pub(crate) fn spec() -> impl Strategy<Value = GuestSpec> {
    let texts = (
        any::<(u128, u128, u32)>(),
        proptest::option::of("[a-z]([a-z0-9-]{0,20}[a-z0-9])?"),
        vec("[ -~]{0,20}", 0..3),
        vec(variable(), 0..6),
        vec("[a-z0-9][a-z0-9+.-]{1,12}", 0..4),
    );
    let things = (files(), command(), volumes(), nics(), any::<bool>());
    (texts, things).prop_map(|(texts, things)| {
        let ((job, node, generation), hostname, keys, env, packages) = texts;
        let (files, command, volumes, networks, grow_root) = things;
        GuestSpec {
            generation,
            hostname,
            ssh_keys: keys
                .into_iter()
                .map(|comment| format!("ssh-ed25519 {} {comment}", "A".repeat(68)))
                .collect(),
            env: env.into_iter().collect(),
            files,
            packages,
            command,
            volumes,
            networks,
            grow_root,
            ..GuestSpec::new(JobId::from_bits(job), NodeId::from_bits(node))
        }
    })
}

/// So many values, the same ones in each run but for those that `PROPTEST_RNG_SEED` asks for.
pub(crate) fn samples<T: std::fmt::Debug>(count: usize, of: &impl Strategy<Value = T>) -> Vec<T> {
    let mut runner = match std::env::var("PROPTEST_RNG_SEED") {
        Ok(_) => TestRunner::default(),
        Err(_) => TestRunner::deterministic(),
    };
    (0..count)
        .map(|_| of.new_tree(&mut runner).unwrap().current())
        .collect()
}

/// A value's field that is a list; an empty one where it is not there.
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}
