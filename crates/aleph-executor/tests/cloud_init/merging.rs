//! What a guest carries out of a seed, as its cloud-init reads it.

use crate::strategy::{self, list};
use crate::{debian_trial, guest};
use aleph_executor::cloud_init::{CloudInitError, GuestSpec, Owner};
use aleph_testkit::python_with_cloud_init;
use aleph_types::{JobId, NodeId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use libtest_mimic::Trial;
use serde_json::{Value, json};

const SPECS: usize = 96;
const OWN: usize = 192;
const HOSTILE: usize = 800;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        debian_trial(
            "a_guest_is_told_what_was_said",
            a_guest_is_told_what_was_said,
        ),
        debian_trial("both_parts_are_carried_out", both_parts_are_carried_out),
        debian_trial("no_user_data_takes_ours_away", no_user_data_takes_ours_away),
        debian_trial("shells_read_the_environment", shells_read_the_environment),
        debian_trial("the_schema_command_takes_it", the_schema_command_takes_it),
    ]
}

fn a_guest_is_told_what_was_said() {
    let specs = strategy::samples(SPECS, &strategy::spec());
    let seeds: Vec<_> = specs.iter().map(|spec| spec.seed().unwrap()).collect();
    let answers = guest::ask(&seeds.iter().map(guest::seed).collect::<Vec<_>>());
    for (spec, answer) in specs.iter().zip(&answers) {
        assert_eq!(answer["errors"], json!([]), "{spec:#?}");
        assert_eq!(answer["warnings"], json!([]), "{spec:#?}");
        expect_ours(spec, answer);
        expect_networks(spec, answer);
        let mode = if spec.grow_root { "auto" } else { "off" };
        assert_eq!(answer["final"]["growpart"]["mode"], mode);
        assert_eq!(
            answer["meta"]["instance-id"],
            format!("{}-{}", spec.job, spec.generation)
        );
        assert_eq!(answer["meta"]["local-hostname"], spec.hostname());
    }
}

fn both_parts_are_carried_out() {
    let both = (strategy::spec(), strategy::user_data());
    let specs: Vec<_> = strategy::samples(OWN, &both)
        .into_iter()
        .map(|(spec, own)| GuestSpec {
            user_data: Some(own.into()),
            ..spec
        })
        .collect();
    let seeds: Vec<_> = specs.iter().map(|spec| spec.seed().unwrap()).collect();
    let answers = guest::ask(&seeds.iter().map(guest::seed).collect::<Vec<_>>());
    // The same alone is what the user wanted.
    let alone: Vec<Value> = specs
        .iter()
        .zip(&seeds)
        .map(|(spec, seed)| {
            let mut question = guest::seed(seed);
            let own = spec.user_data.as_ref().unwrap().expose();
            let plain = BASE64.decode(own).unwrap_or_else(|_| own.to_vec());
            question["user_data"] = BASE64.encode(plain).into();
            question
        })
        .collect();
    let alone = guest::ask(&alone);
    for ((spec, answer), alone) in specs.iter().zip(&answers).zip(&alone) {
        assert_eq!(answer["errors"], json!([]), "{spec:#?}\n{answer:#}");
        assert_eq!(answer["warnings"], json!([]), "{spec:#?}");
        expect_ours(spec, answer);
        let (merged, wanted) = (&answer["merged"], &alone["merged"]);
        for key in ["users", "packages", "mounts", "fs_setup", "write_files"] {
            assert!(
                list(merged, key).starts_with(list(wanted, key)),
                "{key}: {merged}"
            );
        }
        assert!(
            list(merged, "runcmd").ends_with(list(wanted, "runcmd")),
            "{merged}"
        );
        for key in ["timezone", "final_message", "bootcmd", "growpart"] {
            assert_eq!(merged[key], wanted[key], "{key}");
        }
        let scripts = list(answer, "scripts");
        // The end of a message that has none is where another one goes on.
        let text = |script: &Value| script[2].as_str().map(|text| text.trim().to_owned());
        for script in list(alone, "scripts") {
            assert!(
                scripts.iter().any(|there| text(there) == text(script)),
                "{script} {scripts:?} {answer:#}"
            );
        }
    }
}

/// Whatever is taken leaves the node's part whole; what would not is refused.
fn no_user_data_takes_ours_away() {
    let both = (strategy::spec(), strategy::hostile());
    let (mut taken, mut refused) = (Vec::new(), 0);
    for (spec, own) in strategy::samples(HOSTILE, &both) {
        let spec = GuestSpec {
            user_data: Some(own.into()),
            ..spec
        };
        match spec.seed() {
            Ok(seed) => taken.push((spec, seed)),
            Err(CloudInitError::UserData(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    // A test of refusals alone, or of none, would say little.
    assert!(
        taken.len() > HOSTILE / 20 && refused > HOSTILE / 20,
        "{} {refused}",
        taken.len()
    );
    let answers = guest::ask(
        &taken
            .iter()
            .map(|(_, seed)| guest::seed(seed))
            .collect::<Vec<_>>(),
    );
    for ((spec, _), answer) in taken.iter().zip(&answers) {
        let own = String::from_utf8_lossy(spec.user_data.as_ref().unwrap().expose());
        // A template becomes a document in the guest alone. What it takes away, the script that is
        // always there finds, and without that script's mark nothing is done.
        if own.trim_start().starts_with("## template") {
            expect_check(spec, answer);
        } else {
            println!("{own:?}");
            expect_ours(spec, answer);
        }
    }
}

fn shells_read_the_environment() {
    let specs = strategy::samples(SPECS, &strategy::spec());
    let seeds: Vec<_> = specs.iter().map(|spec| spec.seed().unwrap()).collect();
    let answers = guest::ask(&seeds.iter().map(guest::seed).collect::<Vec<_>>());
    let texts: Vec<Value> = answers
        .iter()
        .map(|answer| {
            let file = &list(&answer["merged"], "write_files")[0];
            json!({"ask": "environment", "text": file["content"]})
        })
        .collect();
    for (spec, read) in specs.iter().zip(guest::ask(&texts)) {
        let mut wanted = json!({"JOB_ID": spec.job, "NODE_ID": spec.node});
        for (name, value) in &spec.env {
            wanted[name] = value.expose_text().unwrap().into();
        }
        assert_eq!(read, wanted);
    }
}

fn the_schema_command_takes_it() {
    let mut spec = GuestSpec::new(JobId::from_bits(1), NodeId::from_bits(2));
    spec.packages.push("nginx".into());
    let seed = spec.seed().unwrap();
    let user_data = seed.user_data.expose_text().unwrap();
    let encoded: String = user_data
        .split("\n\n")
        .nth(3)
        .unwrap()
        .lines()
        .take_while(|line| !line.starts_with("--"))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &[u8]| {
        let file = folder.path().join("config");
        std::fs::write(&file, text).unwrap();
        python_with_cloud_init()
            .unwrap()
            .args(["-m", "cloudinit.cmd.main", "schema", "--config-file"])
            .arg(file)
            .output()
            .unwrap()
    };
    let main = BASE64.decode(encoded).unwrap();
    assert!(main.starts_with(b"#cloud-config\n"));
    for text in [&main, seed.vendor_data.as_bytes()] {
        let ran = check(text);
        assert!(ran.status.success(), "{ran:?}");
    }
    // It tells right from wrong.
    assert!(!check(b"#cloud-config\npackages: no\n").status.success());
}

/// That the node's part is in what the guest carries out, each entry in its place.
fn expect_ours(spec: &GuestSpec, answer: &Value) {
    let merged = &answer["merged"];
    let ours = list(&answer["final"], "users").last().unwrap();
    assert_eq!(ours["name"], "aleph");
    let keys: Vec<Value> = spec
        .ssh_keys
        .iter()
        .map(|key| key.as_str().into())
        .collect();
    assert_eq!(list(ours, "ssh_authorized_keys"), keys);
    assert_eq!(merged["hostname"], spec.hostname());

    let packages: Vec<Value> = spec
        .packages
        .iter()
        .map(|name| name.as_str().into())
        .collect();
    assert!(list(merged, "packages").ends_with(&packages));
    expect_files(spec, list(merged, "write_files"));
    expect_volumes(spec, merged);
    expect_commands(spec, answer);
    expect_check(spec, answer);
}

fn expect_files(spec: &GuestSpec, there: &[Value]) {
    let own = 2 + 2 * usize::from(spec.command.is_some());
    let ours = &there[there.len() - own - spec.files.len()..];
    // Early, and once more after whatever the user's part writes late.
    let env = |entry: &Value| entry["path"] == "/etc/aleph/job.env";
    assert!(env(&ours[0]) && env(&ours[1]), "{ours:?}");
    for (n, entry) in ours[..own].iter().enumerate() {
        assert_eq!(entry["owner"], "root:root");
        assert_eq!(entry["defer"] == true, n % 2 == 1, "{entry}");
    }
    assert_eq!(ours[0]["permissions"], "0600");
    let writes_our_own = there[..there.len() - own - spec.files.len()]
        .iter()
        .any(env);
    assert!(!writes_our_own || ours[1]["content"] == ours[0]["content"]);
    for (file, entry) in spec.files.iter().zip(&ours[own..]) {
        assert_eq!(entry["path"], file.path);
        assert_eq!(entry["defer"], true);
        let mode = u16::from_str_radix(entry["permissions"].as_str().unwrap(), 8);
        assert_eq!(mode, Ok(file.mode));
        let content = entry["content"].as_str().unwrap();
        let content = match entry["encoding"].as_str() {
            None => content.as_bytes().to_vec(),
            Some(_) => BASE64.decode(content).unwrap(),
        };
        assert_eq!(content, file.content.expose());
        let owner = match &file.owner {
            Owner::Named { user, group } => format!("{user}:{group}"),
            Owner::Ids { .. } => "root:root".into(),
        };
        assert_eq!(entry["owner"], owner);
    }
}

fn expect_volumes(spec: &GuestSpec, merged: &Value) {
    let there = list(merged, "mounts");
    let mounts = &there[there.len() - spec.volumes.len()..];
    for (volume, entry) in spec.volumes.iter().zip(mounts) {
        let device = format!("/dev/disk/by-id/virtio-{}", volume.serial);
        assert_eq!(
            (&entry[0], &entry[1]),
            (&json!(device), &json!(volume.mount))
        );
        let formatted = list(merged, "fs_setup")
            .iter()
            .find(|entry| entry["device"] == device);
        match formatted {
            None => assert!(volume.read_only),
            Some(entry) => {
                assert!(!volume.read_only);
                // The only one of cloud-init's words that keeps what is there.
                assert_eq!(
                    (&entry["partition"], &entry["overwrite"]),
                    (&json!("any"), &json!(false))
                );
                assert!(entry.get("replace_fs").is_none());
            }
        }
    }
}

fn expect_commands(spec: &GuestSpec, answer: &Value) {
    let mut wanted = Vec::new();
    for file in &spec.files {
        if let Owner::Ids { uid, gid } = file.owner {
            wanted.push(json!(["chown", format!("{uid}:{gid}"), "--", file.path]));
        }
        if file.mode & 0o6000 != 0 {
            wanted.push(json!([
                "chmod",
                format!("{:04o}", file.mode),
                "--",
                file.path
            ]));
        }
    }
    if spec.command.is_some() {
        let start = ["systemctl", "start", "--no-block", "aleph-job.service"];
        wanted.push(json!(["systemctl", "daemon-reload"]));
        wanted.push(json!(["systemctl", "enable", "aleph-job.service"]));
        wanted.push(json!(start));
    }
    let runcmd = list(&answer["merged"], "runcmd");
    assert!(runcmd.starts_with(&wanted), "{runcmd:?}");
}

fn expect_check(spec: &GuestSpec, answer: &Value) {
    let job = format!("JOB_ID=\"{}\"", spec.job);
    let found = list(answer, "scripts").iter().any(|script| {
        script[0] == "text/x-shellscript"
            && script[1] == "zz-aleph-check"
            && script[2].as_str().is_some_and(|text| text.contains(&job))
    });
    assert!(found, "{answer:#}");
}

fn expect_networks(spec: &GuestSpec, answer: &Value) {
    let there = list(answer, "interfaces");
    assert_eq!(there.len(), spec.networks.len());
    for (nic, entry) in spec.networks.iter().zip(there) {
        assert_eq!(entry["name"], nic.name);
        assert_eq!(entry["mac_address"], nic.mac.to_string());
        let subnets = list(entry, "subnets");
        let found: Vec<_> = subnets
            .iter()
            .map(|net| (net["address"].clone(), net["prefix"].clone()))
            .collect();
        let addresses: Vec<_> = nic
            .addresses
            .iter()
            .map(|(address, prefix)| (json!(address), json!(prefix)))
            .collect();
        assert_eq!(found, addresses, "{entry:#}");
        assert!(subnets.iter().all(|net| net["type"] == "static"));
        for gateway in &nic.gateways {
            let found = subnets.iter().any(|net| {
                let default = list(net, "routes").iter().any(|route| {
                    route["gateway"] == json!(gateway)
                        && route["network"] == "0.0.0.0"
                        && route["prefix"] == 0
                });
                default || net["gateway"] == json!(gateway)
            });
            assert!(found, "{entry:#}");
        }
        assert_eq!(
            list(&entry["dns"], "nameservers"),
            [json!(nic.nameservers[0])]
        );
        let search: Vec<Value> = nic.search.iter().map(|name| json!(name)).collect();
        assert_eq!(list(&entry["dns"], "search"), search);
        if let Some(mtu) = nic.mtu {
            assert_eq!(entry["mtu"], mtu, "{entry:#}");
        }
    }
}
