//! A guest with an agent, which is reached by vsock.

use crate::double::{Double, LIMIT, boot_source};
use aleph_executor::guest::{Agent, ExecRequest, Reattach};
use aleph_executor::vsock;
use aleph_guest_proto::{
    CONTROL, Decoder, Item, MARK, Mounts, Root, Setup, ToGuest, ToHost, Upper, VSOCK_ARGUMENT,
    VSOCK_PORT, Versions,
};
use aleph_testkit::TestRoot;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

const NONCE: [u8; 16] = [7; 16];
pub(crate) const MIB: u64 = 1 << 20;

/// Boots a guest with an image, a disk that it can write to and vsock; gives the conversation with
/// its agent once it is set up.
pub(crate) async fn boot(double: &Double, root: &TestRoot) -> Result<Agent> {
    let image = root.busybox()?;
    let data = std::fs::File::create(double.path("data"))?;
    data.set_len(MIB)?;
    let mut source = boot_source(root)?;
    source["boot_args"] = json!(format!(
        "console=ttyS0 reboot=k panic=1 quiet {VSOCK_ARGUMENT}"
    ));
    double.put("/boot-source", &source)?;
    let drives = [
        ("image", image.rootfs(), true),
        ("data", double.path("data"), false),
    ];
    for (id, path, read_only) in drives {
        let drive = json!({
            "drive_id": id,
            "is_root_device": false,
            "is_read_only": read_only,
            "path_on_host": path,
        });
        double.put(&format!("/drives/{id}"), &drive)?;
    }
    let socket = double.path("vsock");
    double.put("/vsock", &json!({ "guest_cid": 3, "uds_path": socket }))?;
    double.put("/entropy", &json!({}))?;
    double.put("/actions", &json!({ "action_type": "InstanceStart" }))?;
    let stream = vsock::reach(&socket, VSOCK_PORT, LIMIT).await;
    let stream = stream.with_context(|| double.text("console"))?;
    timeout(
        LIMIT,
        set_up(
            stream,
            &image_serial(&image.rootfs())?,
            &image.filesystem().to_string(),
        ),
    )
    .await
    .with_context(|| double.text("console"))??;
    reattach(&socket).await
}

/// What a guest of Firecracker's knows a disk by: its file.
fn image_serial(path: &Path) -> Result<String> {
    let file = std::fs::metadata(path)?;
    let mut serial = format!("{}{}{}", file.dev(), file.rdev(), file.ino());
    serial.truncate(20);
    Ok(serial)
}

/// Sets a guest up by hand: the node's own way names its image otherwise.
async fn set_up(mut stream: UnixStream, serial: &str, filesystem: &str) -> Result<()> {
    let mut said = MARK.to_vec();
    let hello = ToGuest::Hello {
        versions: Versions::OURS,
        nonce: NONCE,
    };
    hello.encode(CONTROL, &mut said)?;
    stream.write_all(&said).await?;
    let mut decoder = Decoder::for_host(NONCE);
    loop {
        let read = stream.read(decoder.space()).await?;
        if read == 0 {
            bail!("the guest hung up");
        }
        decoder.filled(read);
        let mut said = Vec::new();
        while let Some(item) = decoder.next_item()? {
            let Item::Frame(frame) = item else { continue };
            match ToHost::decode(&frame)? {
                ToHost::Hello { .. } => said = setup_message(serial, filesystem)?,
                ToHost::Ready { .. } => return Ok(()),
                ToHost::Fatal { message, .. } => {
                    bail!("{}", String::from_utf8_lossy(message))
                }
                _ => {}
            }
        }
        stream.write_all(&said).await?;
    }
}

fn setup_message(serial: &str, filesystem: &str) -> Result<Vec<u8>> {
    let setup = ToGuest::Setup(Setup {
        hostname: b"fire",
        unix_ns: 1_800_000_000_000_000_000,
        entropy: &[1; 64],
        root: Root {
            image_serial: serial.as_bytes(),
            filesystem: filesystem.as_bytes(),
            upper: Upper::Memory,
        },
        poweroff_on_hangup: false,
        network: None,
        mounts: Mounts::NONE,
    });
    let mut said = Vec::new();
    setup.encode(CONTROL, &mut said)?;
    Ok(said)
}

/// A new conversation. One that a guest takes up before it has heard that its connections are
/// gone, as it goes on from a snapshot, is gone with them.
pub(crate) async fn reattach(socket: &Path) -> Result<Agent> {
    let attempts = async {
        loop {
            let stream = vsock::reach(socket, VSOCK_PORT, LIMIT).await?;
            let reattach = Reattach {
                main: None,
                setup: None,
            };
            let Ok((agent, _)) = Agent::reattach(stream, reattach).await else {
                continue;
            };
            if agent.ping().await.is_ok() {
                return anyhow::Ok(agent);
            }
        }
    };
    timeout(LIMIT, attempts).await?
}

pub(crate) async fn said(agent: &Agent, argv: &[&str]) -> Result<String> {
    let ran = agent.exec(&ExecRequest::new(argv.to_vec()))?.collect();
    let (out, _, _) = timeout(LIMIT, ran).await??;
    Ok(String::from_utf8(out)?.trim().to_owned())
}
