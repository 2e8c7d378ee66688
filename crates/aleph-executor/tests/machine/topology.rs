//! What a guest is told of where its processors and its memory are, and which processors they are.

use crate::{World, powers_off, wanted};
use aleph_executor::qemu::machine::{Firmware, NumaNode, Topology, Wanted};
use aleph_testkit::ShellGuest;
use aleph_types::MiB;
use anyhow::{Result, ensure};

pub(crate) async fn a_guest_sees_its_machine_as_it_was_drawn() -> Result<()> {
    let world = World::new()?;
    let guest = ShellGuest::new(world.dir.path())?;
    let node = |cpus: &[u16], memory| NumaNode {
        cpus: cpus.to_vec(),
        memory: MiB(memory),
        host_node: None,
    };
    let wanted = Wanted {
        cpus: 8,
        memory: MiB(384),
        cpu: Some("Westmere".into()),
        topology: Some(Topology {
            sockets: 2,
            cores: 2,
            threads: 2,
        }),
        numa: vec![node(&[0, 1, 2, 3], 256), node(&[4, 5, 6, 7], 128)],
        ..wanted(Firmware::Bios)
    };
    let vm = world.launch(world.plan(&wanted, guest.boot("")?)?).await?;
    ShellGuest::ready(&vm).await?;
    let lists = async |line: &str| -> Result<Vec<String>> {
        let said = ShellGuest::run(&vm, line).await?;
        Ok(said.lines().map(|line| line.trim().to_owned()).collect())
    };
    let nodes =
        lists("cd /sys/devices/system/node; cat online node0/cpulist node1/cpulist").await?;
    ensure!(nodes == ["0-1", "0-3", "4-7"], "{nodes:?}");
    let sizes =
        lists("cat node0/meminfo node1/meminfo | grep MemTotal | sed 's/.*: *//; s/ .*//'").await?;
    let [first, second] = [0, 1].map(|n| sizes.get(n).and_then(|kib| kib.parse::<u32>().ok()));
    // Less what its kernel keeps for itself.
    ensure!(
        first.is_some_and(|kib| (128 << 10..=256 << 10).contains(&kib))
            && second.is_some_and(|kib| (1..=128 << 10).contains(&kib)),
        "{sizes:?}"
    );
    let places = "cd /sys/devices/system/cpu; for n in 0 1 2 3 4 5 6 7; do cd cpu$n/topology; \
         echo $(cat physical_package_id core_id thread_siblings_list); cd ../..; done";
    let places = lists(places).await?;
    let expected = ["0 0 0-1", "0 1 2-3", "1 0 4-5", "1 1 6-7"];
    let expected = expected.iter().flat_map(|place| [*place; 2]);
    ensure!(places.iter().eq(expected), "{places:?}");
    let models = lists("grep '^model name' /proc/cpuinfo | sort -u").await?;
    ensure!(
        models.len() == 1 && models[0].contains("Westmere"),
        "{models:?}"
    );
    powers_off(&vm).await
}
