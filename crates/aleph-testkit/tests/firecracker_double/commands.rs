//! Guests that do what they are told over vsock.

use crate::agent::{MIB, boot, reattach, said};
use crate::double::{Double, LIMIT};
use aleph_executor::guest::{Agent, FileMeta};
use aleph_executor::vsock::{self, VsockError};
use aleph_testkit::TestRoot;
use anyhow::Result;
use serde_json::json;
use std::path::Path;
use tokio::time::timeout;

async fn sectors(agent: &Agent, disk: &str) -> Result<u64> {
    let path = format!("/sys/block/{disk}/size");
    Ok(said(agent, &["cat", &path]).await?.parse()?)
}

/// Commands run, disks are in the order in which they were named, a disk can become another, and
/// a clone goes on with what the guest had, behind another socket.
#[tokio::test]
async fn an_agent_does_what_it_is_told() -> Result<()> {
    let root = TestRoot::new()?;
    let double = Double::start("1.16.1")?;
    let agent = boot(&double, &root).await?;
    assert_eq!(said(&agent, &["hostname"]).await?, "fire");
    let image = root.busybox()?;
    let length = std::fs::metadata(image.rootfs())?.len();
    assert_eq!(sectors(&agent, "vda").await?, length / 512);
    assert_eq!(sectors(&agent, "vdb").await?, MIB / 512);
    assert_eq!(
        said(&agent, &["cat", "/sys/block/vda/ro", "/sys/block/vdb/ro"]).await?,
        "1\n0"
    );

    // What the guest writes is in the file.
    said(&agent, &["sh", "-c", "echo written > /dev/vdb; sync"]).await?;
    assert!(std::fs::read(double.path("data"))?.starts_with(b"written\n"));
    std::fs::File::create(double.path("more"))?.set_len(2 * MIB)?;
    let patch = json!({ "drive_id": "data", "path_on_host": double.path("more") });
    double.does("PATCH", "/drives/data", &patch)?;
    assert_eq!(sectors(&agent, "vdb").await?, 2 * MIB / 512);
    let unknown = json!({ "drive_id": "none" });
    assert_eq!(
        double.refuses("PATCH", "/drives/none", &unknown)?,
        "Drive config error: Unable to patch the block device: Failed perform action on device: \
         Device not found Please verify the request arguments."
    );

    // Nobody listens on other ports.
    let refused = vsock::connect(&double.path("vsock"), 9, LIMIT).await;
    assert!(
        matches!(refused, Err(VsockError::Refused { .. })),
        "{refused:?}"
    );

    let meta = FileMeta {
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    agent.put("/tmp/kept", meta, b"what the guest had").await?;
    double.does("PATCH", "/vm", &json!({ "state": "Paused" }))?;
    let (snapshot, memory) = (double.path("state"), double.path("memory"));
    let create = json!({ "snapshot_path": snapshot, "mem_file_path": memory });
    double.put("/snapshot/create", &create)?;
    // The snapshot has ended the connections of the guest that was written down, too.
    timeout(LIMIT, agent.closed()).await?;
    double.does("PATCH", "/vm", &json!({ "state": "Resumed" }))?;
    let agent = reattach(&double.path("vsock")).await?;
    assert_eq!(
        said(&agent, &["cat", "/tmp/kept"]).await?,
        "what the guest had"
    );
    drop(agent);
    // Its files are wanted; it is not.
    let mut double = double;
    double.child.kill()?;
    double.ended();

    let load = |socket: &Path| {
        json!({
            "snapshot_path": snapshot,
            "mem_backend": { "backend_type": "File", "backend_path": memory },
            "resume_vm": true,
            "vsock_override": { "uds_path": socket },
        })
    };
    // The socket of the origin is still there, as it tidies nothing up.
    let mut failed = Double::start("1.16.1")?;
    let fault = failed.refuses("PUT", "/snapshot/load", &load(&double.path("vsock")))?;
    assert!(fault.ends_with("Address in use (os error 98)"), "{fault}");
    assert_eq!(failed.ended().code(), Some(1));
    for _ in 0..2 {
        let clone = Double::start("1.16.1")?;
        let socket = clone.path("other");
        clone.put("/snapshot/load", &load(&socket))?;
        let agent = reattach(&socket).await?;
        assert_eq!(
            said(&agent, &["cat", "/tmp/kept"]).await?,
            "what the guest had"
        );
        agent.put("/tmp/kept", meta, b"what a clone wrote").await?;
        assert_eq!(clone.get("/vm/config")?["vsock"]["uds_path"], json!(socket));
    }
    Ok(())
}
