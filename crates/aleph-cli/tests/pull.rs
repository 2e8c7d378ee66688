//! Images from a registry, with real VMs: by a daemon, and without one.

#[path = "../../aleph-image/tests/host/registry.rs"]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it belongs to the tests of another crate"
)]
mod registry;
mod support;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};
use registry::Registry;
use std::path::Path;
use std::process::Command;
use support::{Daemon, Ended, Node};

const TOOLS: [&str; 3] = ["docker-registry", "skopeo", "umoci"];

fn main() {
    let there = |tool: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
    };
    let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| !there(tool)).collect();
    let trial = Trial::test("a_run_fetches_what_is_missing", || {
        a_run_fetches_what_is_missing().map_err(|error| format!("{error:?}").into())
    });
    let trial = match missing.as_slice() {
        [] => trial,
        missing => trial
            .with_kind(format!("needs {}", missing.join(", ")))
            .with_ignored_flag(true),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit()
}

fn done(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?}: {stderr}");
    Ok(output.stdout)
}

/// An OCI layout with an image that has busybox and a configuration of its own.
fn layout(node: &Node, folder: &Path) -> Result<()> {
    let packed = node.aleph(&[
        "run", "--rm", "-q", "busybox", "tar", "-c", "-C", "/", "bin",
    ])?;
    anyhow::ensure!(packed.code == 0, "{packed:?}");
    let tree = folder.join("tree");
    std::fs::create_dir_all(tree.join("tmp"))?;
    tar::Archive::new(packed.stdout.as_slice()).unpack(&tree)?;
    let layout = folder.join("layout");
    let image = format!("{}:tool", layout.display());
    done(
        Command::new("umoci")
            .args(["init", "--layout"])
            .arg(&layout),
    )?;
    done(Command::new("umoci").args(["new", "--image", &image]))?;
    let insert = ["insert", "--rootless", "--image", &image];
    done(Command::new("umoci").args(insert).arg(&tree).arg("/"))?;
    done(Command::new("umoci").args([
        "config",
        "--image",
        &image,
        "--config.env",
        "COLOUR=green",
        "--config.entrypoint=/bin/sh",
        "--config.entrypoint=-c",
        "--config.cmd=echo the image says $COLOUR from $(pwd); exit 3",
        "--config.workingdir=/tmp",
    ]))?;
    Ok(())
}

fn a_run_fetches_what_is_missing() -> Result<()> {
    let registry = Registry::start();
    let folder = tempfile::tempdir()?;
    let config = format!("[images]\nplain_http = [\"{}\"]\n", registry.host);
    let daemon = Daemon::configured(&config, &[])?;
    layout(&daemon.node, folder.path())?;
    registry.push(&folder.path().join("layout"), "tool", "team/tool:1");
    let image = format!("{}/team/tool:1", registry.host);
    let said = "the image says green from /tmp\n";

    let ran = daemon.aleph(&["run", "--rm", "--pull", "never", &image])?;
    ran.assert_failed_with(&[&image]);
    let ran = daemon.aleph(&["run", "--rm", &image])?;
    assert_eq!((ran.code, ran.text().as_str()), (3, said), "{ran:?}");
    assert!(
        ran.stderr.contains("downloading") || ran.stderr.contains("unpack"),
        "{ran:?}"
    );
    let ran = daemon.aleph(&["run", "--rm", &image, "echo $COLOUR"])?;
    assert_eq!((ran.code, ran.text().as_str()), (0, "green\n"), "{ran:?}");
    assert_eq!(
        ran.stderr.lines().count(),
        1,
        "nothing is fetched twice: {ran:?}"
    );
    let words = [
        "run",
        "--rm",
        "-q",
        "--entrypoint",
        "",
        &image,
        "/bin/echo",
        "plain",
    ];
    assert_eq!(daemon.ok(&words)?, "plain");

    let table = daemon.ok(&["image", "ls"])?;
    assert!(table.contains("team/tool:1"), "{table}");
    let told = daemon.json(&["image", "inspect", &image])?;
    assert_eq!(told[0]["config"]["workdir"], "/tmp", "{told}");
    let pulled = daemon.json(&["image", "pull", "--json", &image])?;
    assert_eq!(pulled["digest"], told[0]["digest"]);
    let missing = format!("{}/team/none:1", registry.host);
    daemon
        .aleph(&["image", "pull", &missing])?
        .assert_failed_with(&["team/none"]);
    daemon.ok(&["image", "rm", &image])?;
    daemon
        .aleph(&["image", "inspect", &image])?
        .assert_failed_with(&[&image]);
    daemon.end()?;

    // The same without a daemon.
    let node = Node::new()?;
    let file = node.root.path().join("aleph.toml");
    std::fs::write(&file, config)?;
    let alone = |words: &[&str]| {
        Ended::of(
            node.command(words)
                .env("ALEPH_CONFIG", &file)
                .output()
                .context("aleph")?,
        )
    };
    let ran = alone(&["run", "--rm", &image])?;
    assert_eq!((ran.code, ran.text().as_str()), (3, said), "{ran:?}");
    assert_eq!(alone(&["image", "rm", &image])?.code, 0);
    node.assert_clean()
}
