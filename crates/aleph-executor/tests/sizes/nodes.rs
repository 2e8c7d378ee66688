//! A guest that has its machine as its job says: NUMA nodes, each in a socket of its own, and the processor. It
//! has it so at each start, and a processor that comes later comes to its node.

use crate::guest::{Guest, nothing_is_left, open_with, until};
use crate::size;
use aleph_executor::{Node, NodeConfig};
use aleph_testkit::TestRoot;
use aleph_types::{Classify, HotplugRoom, JobResize, JobSpec, MachineSpec, MiB};
use anyhow::{Result, bail, ensure};

/// One that nobody gets who does not ask for it.
const MODEL: &str = "Westmere";

/// A processor, with a place for another; the node of that is the larger one.
fn machine(spec: &mut JobSpec) {
    (spec.resources.cpus, spec.resources.memory) = (1, MiB(384));
    let nodes = ["0:128m", "1:256m"].iter();
    spec.machine = Some(MachineSpec {
        cpu_model: Some(MODEL.into()),
        numa: nodes.filter_map(|node| node.parse().ok()).collect(),
        room: HotplugRoom {
            cpus: 1,
            memory: MiB(0),
            slots: 0,
        },
        ..MachineSpec::default()
    });
}

/// Checks what a guest of so many processors says of its nodes, and of where each processor is.
async fn sees(node: &Node, guest: &mut Guest, cpus: u16) -> Result<()> {
    let nodes = "cd /sys/devices/system/node; echo $(cat online node0/cpulist node1/cpulist)";
    let said = guest.run(node, nodes).await?;
    let expected = if cpus == 1 { "0-1 0" } else { "0-1 0 1" };
    ensure!(said == expected, "its nodes have {said:?}");
    let places = "cd /sys/devices/system/cpu; for cpu in cpu[0-9]; do test -e $cpu/topology || continue; \
         cd $cpu/topology; echo $(cat physical_package_id core_id thread_siblings_list); cd ../..; done";
    let said = guest.run(node, places).await?;
    let expected = if cpus == 1 { "0 0 0" } else { "0 0 0\n1 0 1" };
    ensure!(said == expected, "its processors are at {said:?}");
    let models = guest
        .run(node, "grep '^model name' /proc/cpuinfo | sort -u")
        .await?;
    ensure!(
        models.lines().count() == 1 && models.contains(MODEL),
        "its processors are {models:?}"
    );
    // Less what its kernel keeps for itself.
    let sizes =
        "cd /sys/devices/system/node; awk '/MemTotal/ { print $4 }' node0/meminfo node1/meminfo";
    let said = guest.run(node, sizes).await?;
    let kib = said
        .lines()
        .map(str::parse)
        .collect::<Result<Vec<u32>, _>>()?;
    let [first, second] = kib[..] else {
        bail!("its nodes have {said:?}");
    };
    let half = 128 << 10;
    ensure!(
        (1..=half).contains(&first) && (half..=2 * half).contains(&second),
        "its nodes have {said:?}"
    );
    Ok(())
}

pub(crate) async fn a_guest_has_its_machine_as_its_job_says() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open_with(&root, |_: &mut NodeConfig| ()).await?;
    let mut guest = Guest::boot_as(&root, &node, machine).await?;
    let job = guest.job;
    sees(&node, &mut guest, 1).await?;

    // Memory would be in no node that a later start has.
    let refused = node.resize(job, size(1, 512)).await;
    ensure!(
        refused
            .as_ref()
            .is_err_and(|error| error.code() == "machine_room"),
        "{refused:?}"
    );
    let all = JobResize {
        cpus: Some(2),
        memory: None,
    };
    node.resize(job, all).await?;
    let online = "cd /sys/devices/system/cpu; n=0; until test -e cpu1/online; do n=$((n+1)); \
         test $n -lt 500 || break; sleep 0.1; done; test $(cat cpu1/online) = 1 || echo 1 >cpu1/online";
    guest.run(&node, online).await?;
    sees(&node, &mut guest, 2).await?;

    // Each start has it so.
    node.kill(job, 9).await?;
    let less = node.resize(job, size(2, 256)).await;
    ensure!(
        less.as_ref()
            .is_err_and(|error| error.code() == "bad_machine"),
        "{less:?}"
    );
    node.start(job).await?;
    guest.ready(&node).await?;
    sees(&node, &mut guest, 2).await?;

    node.destroy(job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    drop(node);
    until("a host without anything of it", async || {
        Ok(root.residue()?.is_empty())
    })
    .await
}
