//! The command line, the log, and how the process ends.

use crate::double::Double;
use anyhow::Result;
use serde_json::json;
use std::process::{Command, Output, Stdio};

fn run(version: &str, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(aleph_testkit::firecracker_double(version)?);
    Ok(command.args(words).stdin(Stdio::null()).output()?)
}

#[test]
fn it_says_which_version_it_is() -> Result<()> {
    for (version, snapshots) in [
        ("1.10.1", "v4.0.0\n"),
        ("1.11.0", "v5.0.0\n"),
        ("1.12.1", "v6.0.0\n"),
        ("1.13.2", "v8.0.0\n"),
        ("1.14.4", "v8.0.0\n"),
        ("1.15.1", "v9.0.0\n"),
        ("1.16.1", "v10.0.0\n"),
        ("1.17.0", "v11.0.0\n"),
    ] {
        let said = String::from_utf8(run(version, &["--version"])?.stdout)?;
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some(&*format!("Firecracker v{version}")));
        assert_eq!(lines.next(), Some(""));
        let last = lines.next().unwrap_or_default();
        assert!(
            last.ends_with(
                "[anonymous-instance:main] Firecracker exiting successfully. exit_code=0"
            ),
            "{last}"
        );
        let said = String::from_utf8(run(version, &["--snapshot-version"])?.stdout)?;
        assert!(said.starts_with(snapshots), "{said}");
    }
    Ok(())
}

#[test]
fn the_environment_may_say_another_version() -> Result<()> {
    let mut command = Command::new(aleph_testkit::firecracker_double("1.16.1")?);
    command.env("FIRECRACKER_DOUBLE_VERSION", "1.12.0");
    let said = command.arg("--version").output()?.stdout;
    assert!(said.starts_with(b"Firecracker v1.12.0\n"));
    Ok(())
}

#[test]
fn wrong_command_lines_have_exit_codes_of_their_own() -> Result<()> {
    let cases: [(&str, &[&str], i32); 7] = [
        ("1.16.1", &["--nonsense"], 153),
        ("1.16.1", &["nonsense"], 153),
        ("1.16.1", &["--id"], 153),
        ("1.16.1", &["--id", "a", "--id", "b"], 153),
        ("1.16.1", &["--no-api"], 153),
        ("1.12.1", &["--enable-pci"], 153),
        ("1.16.1", &["--level", "loud"], 152),
    ];
    for (version, words, code) in cases {
        assert_eq!(run(version, words)?.status.code(), Some(code), "{words:?}");
    }
    // An underscore is no part of an instance's id, and ends the real one in a panic.
    assert_eq!(run("1.16.1", &["--id", "a_b"])?.status.code(), None);
    Ok(())
}

#[test]
fn a_socket_that_is_there_is_not_taken() -> Result<()> {
    let double = Double::start("1.16.1")?;
    let socket = double.path("api").display().to_string();
    let second = run("1.16.1", &["--api-sock", &socket])?;
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stdout)?;
    assert!(said.contains(&format!(
        "Failed to open the API socket at: {socket}. Check that it is not already used."
    )));
    double.get("/")?;
    Ok(())
}

#[test]
fn the_log_tells_of_requests() -> Result<()> {
    let double = Double::start_with("1.16.1", &["--show-level"])?;
    double.put(
        "/machine-config",
        &json!({ "vcpu_count": 1, "mem_size_mib": 128 }),
    )?;
    double.refuses("PATCH", "/vm", &json!({ "state": "Paused" }))?;
    let log = double.text("log");
    for line in [
        "[test:main:INFO] Running Firecracker v1.16.1\n",
        "[test:fc_api:INFO] API server started.\n",
        "[test:fc_api:INFO] The API server received a Put request on \"/machine-config\" with body \
         \"{\\\"mem_size_mib\\\":128,\\\"vcpu_count\\\":1}\".\n",
        "[test:fc_api:INFO] The request was executed successfully. Status code: 204 No Content.\n",
        "[test:fc_api:ERROR] Received Error. Status code: 400 Bad Request. Message: The requested \
         operation is not supported before starting the microVM.\n",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    Ok(())
}

/// A load that fails is answered, and then the process ends; unless nothing was tried.
#[test]
fn a_load_that_fails_ends_the_process() -> Result<()> {
    let load = json!({
        "snapshot_path": "/nonexistent/state",
        "mem_backend": { "backend_type": "File", "backend_path": "/nonexistent/memory" },
    });
    let mut double = Double::start("1.16.1")?;
    // Neither of these is of what is booted.
    double.put("/logger", &json!({ "level": "Debug" }))?;
    double.put("/serial", &json!({}))?;
    assert_eq!(
        double.refuses("PUT", "/snapshot/load", &load)?,
        "Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from \
         file: Failed to open snapshot file: No such file or directory (os error 2)"
    );
    assert_eq!(double.ended().code(), Some(1));
    assert!(
        double
            .text("log")
            .ends_with("Firecracker exiting with error. exit_code=1\n")
    );
    // It tidies nothing up.
    assert!(double.path("api").exists());

    let double = Double::start("1.16.1")?;
    // In vain, and yet it counts.
    double.refuses(
        "PUT",
        "/machine-config",
        &json!({ "vcpu_count": 0, "mem_size_mib": 1 }),
    )?;
    assert_eq!(
        double.refuses("PUT", "/snapshot/load", &load)?,
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring \
         boot-specific resources."
    );
    double.get("/")?;
    Ok(())
}
