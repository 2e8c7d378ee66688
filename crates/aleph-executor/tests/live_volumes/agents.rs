//! Guests whose agents do not do what they are asked, and guests that let go late: none of it holds anything up.

use crate::guest::{ACCOUNT, Guest, all, empty, nothing_is_left, open, until, volume, volumes};
use aleph_executor::Node;
use aleph_executor::volumes::{BackendChoice, GuestState, Owner};
use aleph_testkit::TestRoot;
use aleph_types::{Classify, VolumeAttach, VolumeConsistency};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

const LETS_GO: Duration = Duration::from_secs(120);

/// Ends the guest's agent, and finds its port, which one at a time may have open.
const END_AGENT: &str = "killall qemu-ga; \
    port=$(grep -l org.qemu.guest_agent /sys/class/virtio-ports/*/name); port=${port%/name}; \
    port=/dev/${port##*/}; until (: <>$port) 2>/dev/null; do sleep 0.1; done;";

/// What answers that it is there, and says that one filesystem stands still. Then it is gone.
const VANISHES: &str = r#"touch /stub; (exec 3<>$port; while test -e /stub; do if read -r l <&3; then case "$l" in (*sync-delimited*) i=${l##*:}; i=${i%%\}*}; printf '\377{"return": %s}\n' $i >&3;; (*freeze-freeze*) echo '{"return": 1}' >&3; rm /stub;; esac; else sleep 0.1; fi; done) >/dev/null 2>&1 &"#;

async fn consistency(node: &Node, name: &str) -> Result<VolumeConsistency> {
    let volume = volume(node, "data").await?;
    let mut kept = volume.snapshots.into_iter();
    let kept = kept.find(|snapshot| snapshot.name == name);
    let kept = kept.with_context(|| format!("there is no {name}"))?;
    kept.consistency.context("it says nothing")
}

pub(crate) async fn what_agents_and_guests_do_not_do_holds_nothing_up() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root, BackendChoice::Qcow2).await?;
    empty(&node, "data", 4).await?;
    let mut guest = Guest::boot(&root, &node).await?;
    let job = guest.job;
    let how = VolumeAttach::default;
    node.attach_volume(job, "data", how()).await?;
    let snapshot = async |name: &str| node.snapshot_volume(&all(), "data", name).await;

    // One that is there, and has been told to do nothing of this kind.
    let refuses = "qemu-ga -m virtio-serial -p $port -b guest-fsfreeze-freeze,guest-fsfreeze-thaw \
                   >/dev/null 2>&1 &";
    guest.run(&node, &format!("{END_AGENT} {refuses}")).await?;
    for name in ["first", "second"] {
        snapshot(name).await?;
        ensure!(
            consistency(&node, name).await? == VolumeConsistency::Crash,
            "{name}"
        );
    }
    let record = node.job(job)?;
    let owner = Owner {
        job,
        incarnation: record.incarnation,
    };
    let owed = async || volumes(&node, move |v| Ok(v.thaw_owed(&owner)?)).await;
    ensure!(owed().await? == GuestState::Running, "something is owed");

    // One that is gone as soon as filesystems stand still.
    guest.run(&node, &format!("{END_AGENT} {VANISHES}")).await?;
    snapshot("third").await?;
    ensure!(
        consistency(&node, "third").await? == VolumeConsistency::Filesystem,
        "it said that they stand still"
    );
    ensure!(owed().await? == GuestState::Frozen, "nothing is owed");
    // What follows does not wait for it.
    snapshot("fourth").await?;
    node.detach_volume(job, "data", LETS_GO).await?;
    // It is told as soon as there is one again.
    let begins = "qemu-ga -m virtio-serial -p $port >/dev/null 2>&1 &";
    guest.run(&node, &format!("{END_AGENT} {begins}")).await?;
    until("an agent that is told to go on", async || {
        Ok(owed().await? == GuestState::Running)
    })
    .await?;

    // A guest that has no time to let go does so later.
    let attached = node.attach_volume(job, "data", how()).await?;
    let device = guest.device(&node, &attached.serial).await?;
    guest
        .run(&node, &format!("echo kept | dd of={device} conv=fsync"))
        .await?;
    let soon = Duration::from_millis(1);
    match node.detach_volume(job, "data", soon).await {
        Ok(()) => {}
        Err(error) => {
            ensure!(error.code() == "machine_device_kept", "{error:?}");
            guest.lacks(&node, &attached.serial).await?;
            let has = node.job(job)?.spec.volumes;
            ensure!(has.len() == 1, "its record lost it: {has:?}");
        }
    }
    // Asked for again, it is there again.
    let again = node.attach_volume(job, "data", how()).await?;
    ensure!(again.serial == attached.serial, "{again:?}");
    let device = guest.device(&node, &attached.serial).await?;
    let said = guest.run(&node, &format!("head -n 1 {device}")).await?;
    ensure!(said == "kept", "{said:?}");
    ensure!(volume(&node, "data").await?.account == ACCOUNT, "whose?");

    node.destroy(job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}
