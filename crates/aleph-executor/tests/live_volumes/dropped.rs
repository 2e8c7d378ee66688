//! A guest that lets go of its disk, unasked, over a cover that a node had begun when it was killed: what it wrote
//! by then is in the cover alone.

use crate::guest::{Guest, LIMIT, check, empty, image, nothing_is_left, open, until, volume};
use crate::killed::BACKEND;
use crate::victim::killed_at;
use aleph_testkit::TestRoot;
use aleph_types::VolumeAttach;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

pub(crate) async fn what_a_guest_wrote_is_there_where_it_drops_its_disk() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root, BACKEND).await?;
    empty(&node, "data", 64).await?;
    let mut guest = Guest::boot(&root, &node).await?;
    let how = VolumeAttach::default();
    let attached = node.attach_volume(guest.job, "data", how).await?;
    let device = guest.device(&node, &attached.serial).await?;
    let slot = format!(
        "d=$(readlink -f /sys/block/{}/device); d=${{d%/*}}; d=${{d##*/}}; \
         grep -lx ${{d%.*}} /sys/bus/pci/slots/*/address",
        &device[5..]
    );
    let slot = guest.run(&node, &slot).await?;
    let power = slot.replace("/address", "/power");
    guest.writes(&node, "data", &device, 0).await?;
    let before = guest.goes_on(&node, "data", 2).await?;
    let vm = node.job(guest.job)?.vm.context("no VM")?;
    node.shutdown().await;
    drop(node);
    killed_at(&root, guest.job, "snapshot half".into(), "cover:thawed").await?;

    let console = root.paths()?.vm_run(vm).join("console.sock");
    let told = tokio::task::spawn_blocking(move || drops(&console, &power));
    let durable = told.await??;
    ensure!(durable > before, "nothing was written into the cover");

    let node = open(&root, BACKEND).await?;
    guest.adopted(&node).await?;
    until("the state that was to be kept", async || {
        let kept = volume(&node, "data").await?.snapshots;
        Ok(kept.iter().any(|snapshot| snapshot.name == "half"))
    })
    .await?;
    node.detach_volume(guest.job, "data", LIMIT).await?;
    check(&image(&node, "data", None).await?, "data", durable)?;
    check(&image(&node, "data", Some("half")).await?, "data", before)?;
    node.destroy(guest.job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}

/// Has the guest write for a while and take the power from its disk's slot; the last block that it was told to be
/// durable. No node listens to its console meanwhile.
fn drops(console: &Path, power: &str) -> Result<u64> {
    let mut console = UnixStream::connect(console)?;
    console.set_read_timeout(Some(LIMIT))?;
    console.write_all(format!("sleep 1; echo 0 >{power}; echo power \"is.$?.\"\n").as_bytes())?;
    let (began, mut said, mut piece) = (Instant::now(), Vec::new(), [0; 4096]);
    loop {
        let length = console.read(&mut piece)?;
        said.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&said);
        if text.contains("power is.0.") {
            let numbers = text.split("durable data ").skip(1);
            let numbers = numbers.filter_map(|rest| rest.split_once('.')?.0.parse().ok());
            return numbers.max().context("nothing was written");
        }
        if length == 0 || began.elapsed() > LIMIT {
            bail!("it does not let go of its disk: {text}");
        }
    }
}
