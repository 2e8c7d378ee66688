//! Guests behind the API.

use crate::double::{Double, LIMIT, boot_source};
use aleph_testkit::{TestRoot, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

const LATE: &str = "The requested operation is not supported after starting the microVM.";
const MIB: u64 = 1 << 20;

/// Boots a guest, and waits for what its kernel says last.
fn boot(double: &Double, root: &TestRoot) -> Result<()> {
    double.put(
        "/machine-config",
        &json!({ "vcpu_count": 1, "mem_size_mib": 128 }),
    )?;
    double.put("/boot-source", &boot_source(root)?)?;
    double.put("/actions", &json!({ "action_type": "InstanceStart" }))?;
    says(&double.path("console"), "Run /init as init process");
    Ok(())
}

fn says(console: &Path, what: &str) {
    wait_until(what, LIMIT, || {
        let text = std::fs::read(console).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(what).then_some(())
    });
}

fn state(double: &Double) -> Result<String> {
    Ok(double.get("/")?["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// The processes that are children of another.
fn children(pid: u32) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect())
}

/// A guest boots, is what it was configured to be, stands still and goes on, and its reboot is the
/// end of the process.
#[test]
fn a_guest_lives() -> Result<()> {
    let root = TestRoot::new()?;
    let mut double = Double::start("1.16.1")?;
    double.put(
        "/metrics",
        &json!({ "metrics_path": double.path("metrics") }),
    )?;
    boot(&double, &root)?;
    assert_eq!(state(&double)?, "Running");
    // One line came with the start.
    let lines = |double: &Double| double.text("metrics").lines().count();
    assert_eq!(lines(&double), 1);
    double.put("/actions", &json!({ "action_type": "FlushMetrics" }))?;
    let last = double.text("metrics");
    let last: Value = serde_json::from_str(last.lines().last().context("no metrics")?)?;
    assert!(last["utc_timestamp_ms"].as_u64() > Some(1_700_000_000_000));

    let machine = json!({ "vcpu_count": 1, "mem_size_mib": 128 });
    assert_eq!(double.refuses("PUT", "/machine-config", &machine)?, LATE);
    let start = json!({ "action_type": "InstanceStart" });
    assert_eq!(double.refuses("PUT", "/actions", &start)?, LATE);
    let drive = json!({ "drive_id": "a", "is_root_device": false, "path_on_host": "/none" });
    assert_eq!(
        double.refuses("PUT", "/drives/a", &drive)?,
        "PCI is not enabled"
    );
    let load = json!({ "snapshot_path": "a", "mem_file_path": "b" });
    assert_eq!(double.refuses("PUT", "/snapshot/load", &load)?, LATE);
    let create = json!({ "snapshot_path": "a", "mem_file_path": "b" });
    assert_eq!(
        double.refuses("PUT", "/snapshot/create", &create)?,
        "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore \
         unavailable while running"
    );

    // Twice is as good as once.
    for (to, is) in [
        ("Paused", "Paused"),
        ("Paused", "Paused"),
        ("Resumed", "Running"),
        ("Resumed", "Running"),
    ] {
        double.does("PATCH", "/vm", &json!({ "state": to }))?;
        assert_eq!(state(&double)?, is);
    }
    double.put("/actions", &json!({ "action_type": "SendCtrlAltDel" }))?;
    assert_eq!(double.ended().code(), Some(0));
    assert!(
        double
            .text("log")
            .ends_with("Firecracker exiting successfully. exit_code=0\n")
    );
    assert_eq!(lines(&double), 3);
    Ok(())
}

/// A guest that was written down goes on in other processes, as often as wanted.
#[test]
fn a_guest_goes_on_from_a_snapshot() -> Result<()> {
    let root = TestRoot::new()?;
    let double = Double::start("1.15.1")?;
    boot(&double, &root)?;
    double.does("PATCH", "/vm", &json!({ "state": "Paused" }))?;
    let (snapshot, memory) = (double.path("state"), double.path("memory"));
    double.put(
        "/snapshot/create",
        &json!({ "snapshot_path": snapshot, "mem_file_path": memory }),
    )?;
    assert_eq!(std::fs::metadata(&memory)?.len(), 128 * MIB);
    assert!(std::fs::metadata(&snapshot)?.len() < 10_000_000);
    let written = std::fs::read(&memory)?;
    // What was written down goes on as well, and ends.
    double.does("PATCH", "/vm", &json!({ "state": "Resumed" }))?;
    let mut double = double;
    double.put("/actions", &json!({ "action_type": "SendCtrlAltDel" }))?;
    assert_eq!(double.ended().code(), Some(0));

    let load = |resume: bool| {
        json!({
            "snapshot_path": snapshot,
            "mem_backend": { "backend_type": "File", "backend_path": memory },
            "resume_vm": resume,
        })
    };
    for resumes in [true, false] {
        let mut clone = Double::start("1.15.1")?;
        clone.put("/snapshot/load", &load(resumes))?;
        if !resumes {
            assert_eq!(state(&clone)?, "Paused");
            clone.does("PATCH", "/vm", &json!({ "state": "Resumed" }))?;
        }
        assert_eq!(state(&clone)?, "Running");
        let known = clone.get("/vm/config")?;
        assert_eq!(known["machine-config"]["mem_size_mib"], 128);
        assert_eq!(known["boot-source"]["kernel_image_path"], "");
        clone.put("/actions", &json!({ "action_type": "SendCtrlAltDel" }))?;
        assert_eq!(clone.ended().code(), Some(0));
        ensure!(clone.text("console").contains("Restarting system"));
    }
    assert!(
        std::fs::read(&memory)? == written,
        "a clone wrote to the template's memory"
    );

    // Another version does not understand it, and dies of it.
    for (version, why) in [
        ("1.16.1", "Invalid data version: 9.0.0"),
        ("1.14.4", "Invalid data version: 9.0.0"),
    ] {
        let mut other = Double::start(version)?;
        let fault = other.refuses("PUT", "/snapshot/load", &load(true))?;
        assert_eq!(
            fault,
            format!(
                "Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state \
                 from file: Failed to load snapshot state from file: {why}"
            )
        );
        assert_eq!(other.ended().code(), Some(1));
    }
    // A file with a byte changed is no snapshot.
    let mut bytes = std::fs::read(&snapshot)?;
    bytes[100] ^= 1;
    std::fs::write(&snapshot, bytes)?;
    let mut other = Double::start("1.15.1")?;
    let fault = other.refuses("PUT", "/snapshot/load", &load(true))?;
    ensure!(fault.ends_with("CRC64 validation failed"), "{fault}");
    assert_eq!(other.ended().code(), Some(1));
    Ok(())
}

/// A configuration file boots a guest by itself, with the API in the phase after that, or without.
#[test]
fn a_configuration_file_starts_a_guest() -> Result<()> {
    let root = TestRoot::new()?;
    let file = root.path().join("vm.json");
    let mut config = json!({
        "boot-source": boot_source(&root)?,
        "drives": [],
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 160 },
        "nonsense": "is passed over",
    });
    std::fs::write(&file, config.to_string())?;
    let path = file.display().to_string();
    let double = Double::start_with("1.13.2", &["--config-file", &path])?;
    says(&double.path("console"), "Run /init as init process");
    assert_eq!(state(&double)?, "Running");
    assert_eq!(double.get("/machine-config")?["vcpu_count"], 2);

    config["machine-config"]["nonsense"] = json!(1);
    std::fs::write(&file, config.to_string())?;
    let dir = tempfile::tempdir()?;
    let more = ["--config-file", &path, "--no-api"];
    let program = Command::new(aleph_testkit::firecracker_double("1.13.2")?);
    let mut child = Double::spawn(program, dir.path(), &more)?;
    let status = wait_until("the end", LIMIT, || child.try_wait().ok().flatten());
    assert_eq!(status.code(), Some(1));
    assert!(!dir.path().join("api").exists());
    Ok(())
}

/// Whatever is killed takes its guest with it.
#[test]
fn twenty_guests_leave_nothing() -> Result<()> {
    let root = TestRoot::new()?;
    let source = boot_source(&root)?;
    for _ in 0..5 {
        let mut doubles = Vec::new();
        for _ in 0..4 {
            let double = Double::start("1.16.1")?;
            double.put(
                "/machine-config",
                &json!({ "vcpu_count": 1, "mem_size_mib": 128 }),
            )?;
            double.put("/boot-source", &source)?;
            let socket = double.path("vsock");
            double.put("/vsock", &json!({ "guest_cid": 3, "uds_path": socket }))?;
            double.put("/actions", &json!({ "action_type": "InstanceStart" }))?;
            let guests = children(double.child.id())?;
            assert_eq!(guests.len(), 1);
            doubles.push((double, guests[0]));
        }
        for (double, guest) in doubles {
            drop(double);
            wait_until("the end of a guest", LIMIT, || gone(guest).then_some(()));
        }
    }
    Ok(())
}

/// Whether a process has ended: what waits for the host's init holds nothing.
fn gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z"))
}

/// The console may be a file of its own, and then standard output is not.
#[test]
fn a_console_may_be_a_file() -> Result<()> {
    let root = TestRoot::new()?;
    let double = Double::start("1.14.4")?;
    double.put(
        "/serial",
        &json!({ "serial_out_path": double.path("serial") }),
    )?;
    double.put("/boot-source", &boot_source(&root)?)?;
    double.put("/actions", &json!({ "action_type": "InstanceStart" }))?;
    says(&double.path("serial"), "Linux version");
    assert_eq!(std::fs::metadata(double.path("console"))?.size(), 0);
    Ok(())
}
