//! A full VM that boots a disk of its own and is given GPUs.

use crate::{World, create, open_as, wait};
use aleph_executor::qemu::machine::GuestAgent;
use aleph_executor::volumes::NewVolume;
use aleph_testkit::{Script, ScriptedDriver, Vmm};
use aleph_types::{Classify, CloudInitSpec, Filesystem, JobResize, JobSpec, JobState, MiB};
use anyhow::{Context, Result};
use std::collections::BTreeSet;

#[tokio::test]
async fn a_vm_with_a_disk_of_its_own_has_gpus_at_each_start() -> Result<()> {
    let broken = Script {
        vmm: Vmm::Broken,
        ..Script::default()
    };
    let world = World::new(true)?;
    let state = world.root.path();
    let driver = ScriptedDriver::with_computers([Script::default(), broken]);
    let node = open_as(state, &driver, |config| config.executor.gpu.rom = false).await?;
    let volumes = node.volumes().clone();
    tokio::task::spawn_blocking(move || {
        let new = NewVolume {
            account: "default",
            name: "debian",
            encrypted: None,
        };
        volumes.create(new, MiB(16), Filesystem::None)
    })
    .await??;
    let mut spec = JobSpec::new("debian", Vec::new());
    spec.gpus = Some("type=h200,count=2".parse()?);
    spec.cloud_init = Some(CloudInitSpec {
        packages: vec!["nvidia-driver".into()],
        ..CloudInitSpec::default()
    });
    let vm = create(&node, spec).await?;
    let running = wait(&node, vm.id, JobState::Running).await?;
    assert_eq!(world.record()?.0, [(vm.id.to_string(), 2)]);
    let first = driver.launched().pop().context("no computer")?;
    // Its own disk and what its cloud-init is told, beside the GPUs that the job is said to have.
    assert_eq!(first.disks, ["root", "cidata"]);
    let given: BTreeSet<_> = first.devices.iter().map(ToString::to_string).collect();
    assert_eq!(given, running.gpus.iter().cloned().collect());
    assert!(first.without_rom && first.blueprint.agent == GuestAgent::Reports);
    // All of its memory is locked.
    let more = JobResize {
        cpus: None,
        memory: Some(MiB(running.spec.resources.memory.0 + 128)),
    };
    let error = node.resize(vm.id, more).await.err().context("it grew")?;
    assert_eq!(error.code(), "memory_locked", "{error}");
    node.kill(vm.id, 9).await?;
    assert_eq!(world.record()?, (Vec::new(), 0));

    node.start(vm.id).await?;
    let failed = wait(&node, vm.id, JobState::Failed).await?;
    assert!(failed.gpus.is_empty(), "{failed:?}");
    assert_eq!(world.record()?, (Vec::new(), 0));
    node.shutdown().await;
    drop(node);

    // The same machine as before, by the configuration of now.
    let node = world.open(&driver).await?;
    node.start(vm.id).await?;
    wait(&node, vm.id, JobState::Running).await?;
    assert_eq!(world.record()?.0, [(vm.id.to_string(), 2)]);
    let again = driver.launched().pop().context("no computer")?;
    assert_eq!(
        (&again.blueprint, &again.disks),
        (&first.blueprint, &first.disks)
    );
    assert_eq!(again.devices.len(), first.devices.len());
    assert!(!again.without_rom);
    world.close(node).await
}
