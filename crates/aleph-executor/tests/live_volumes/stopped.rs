//! A VM that is stopped and removed while its first start still makes its disks.

use crate::guest::{ACCOUNT, new, open, volumes};
use aleph_executor::node::CreateOptions;
use aleph_executor::volumes::{BackendChoice, Import};
use aleph_testkit::TestRoot;
use aleph_types::{CloudInitSpec, DiskImageFormat, JobSpec, JobState, MiB, Mode, NetworkMode};
use anyhow::{Result, ensure};
use std::fs::File;
use std::path::Path;

pub(crate) async fn a_vm_that_ends_before_its_disks_are_made_leaves_nothing() -> Result<()> {
    let root = TestRoot::new()?;
    let path = root.path().to_owned();
    // All that blocks has ended when this has.
    let _root = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(begin_and_end(&root))?;
        drop(runtime);
        anyhow::Ok(root)
    })
    .await??;
    let left = |folder: &str| -> Result<usize> {
        let entries = std::fs::read_dir(path.join(folder));
        Ok(entries.map_or(0, Iterator::count))
    };
    ensure!(left("machines")? == 0, "a machine stays");
    ensure!(left("volumes/layers")? == 1, "a root disk stays");
    Ok(())
}

async fn begin_and_end(root: &TestRoot) -> Result<()> {
    // A copy takes its time.
    let node = open(root, BackendChoice::Files).await?;
    let image = random(&root.path().join("image"), 256 << 20)?;
    volumes(&node, move |v| {
        let how = Import {
            format: Some(DiskImageFormat::Raw),
            size: None,
        };
        v.import(new(ACCOUNT, "image"), &image, how)?;
        Ok(())
    })
    .await?;
    for is_stopped in [true, false] {
        let mut spec = JobSpec::new("image", Vec::new());
        spec.mode = Mode::Vm;
        spec.cloud_init = Some(CloudInitSpec::default());
        spec.network.mode = Some(NetworkMode::None);
        spec.resources.memory = MiB(256);
        spec.resources.cpus = 1;
        let options = CreateOptions {
            account: ACCOUNT.into(),
            start: true,
            idempotency_key: None,
        };
        let job = node.create(spec, options).await?.job.id;
        if is_stopped {
            let stopped = node.stop(job, None).await?;
            ensure!(stopped.state == JobState::Exited, "{stopped:?}");
        }
        node.destroy(job, true).await?;
    }
    node.shutdown().await;
    Ok(())
}

/// A file that has no holes.
fn random(path: &Path, bytes: u64) -> Result<File> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    let mut source = std::io::Read::take(File::open("/dev/urandom")?, bytes);
    std::io::copy(&mut source, &mut file)?;
    Ok(file)
}
