//! The double's network devices.

use crate::agent::{boot, said};
use crate::double::Double;
use aleph_testkit::{TestRoot, firecracker_double};
use anyhow::Result;
use serde_json::json;
use std::process::Command;

/// A double in a network namespace of its own.
fn start_apart(version: &str) -> Result<Double> {
    let dir = tempfile::Builder::new().prefix("aleph-fc-").tempdir()?;
    let mut unshare = Command::new("unshare");
    unshare.arg("--net").arg(firecracker_double(version)?);
    let child = Double::spawn(unshare, dir.path(), &[])?;
    let double = Double { child, dir };
    double.listens()?;
    Ok(double)
}

/// A TAP is opened when it is named, and the guest has its other end.
pub(crate) async fn a_guest_has_its_network_devices() -> Result<()> {
    let root = TestRoot::new()?;
    let double = start_apart("1.16.1")?;
    let nic = |id: &str, tap: &str, mac: &str| json!({ "iface_id": id, "host_dev_name": tap, "guest_mac": mac });
    double.put(
        "/network-interfaces/a",
        &nic("a", "tap0", "06:00:ac:10:00:02"),
    )?;
    let taken = double.refuses(
        "PUT",
        "/network-interfaces/b",
        &nic("b", "tap0", "06:00:ac:10:00:03"),
    )?;
    assert_eq!(
        taken,
        "Network config error: Could not create the network device: Open tap device failed: Error \
         while creating ifreq structure: Resource busy (os error 16). Invalid TUN/TAP Backend \
         provided by tap0. Check our documentation on setting up the network devices."
    );
    assert_eq!(
        double.refuses(
            "PUT",
            "/network-interfaces/b",
            &nic("b", "tap1", "06:00:ac:10:00:02")
        )?,
        "Network config error: The MAC address is already in use: 06:00:ac:10:00:02"
    );
    double.put(
        "/network-interfaces/b",
        &nic("b", "tap1", "06:00:ac:10:00:03"),
    )?;
    let agent = boot(&double, &root).await?;
    let macs = said(&agent, &["sh", "-c", "cat /sys/class/net/*/address"]).await?;
    for mac in ["06:00:ac:10:00:02", "06:00:ac:10:00:03"] {
        assert!(macs.contains(mac), "{macs}");
    }
    Ok(())
}
