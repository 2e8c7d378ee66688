//! Templates: guests that were booted once, initialised until their runtime asked for its first
//! event or their server listened, and written down.
//!
//! ```text
//! STATE/templates/<DeploymentId>/memory         the guest's memory, sparse
//!                                state          the state of its devices
//!                                template.json  what it was made of, and with
//! STATE/templates/.tmp-<pid>-<n>/               one that is being made
//! ```
//! | file | what it is |
//! | --- | --- |
//! | this one | [`Template`]: what clones begin from |
//! | `initialisation` | the making of one |
//! | `guest` | what its guest has |
//! | `folder` | where it is written |
//! | `error` | why it could not be made |
//!
//! A template appears whole, by a rename, or not at all. One that was made with another VMM,
//! kernel or processor is made anew, never begun from.

mod error;
mod folder;
mod guest;
mod initialisation;

pub(super) use error::TemplateError;
pub(super) use folder::{remove_unfinished, retain};

use super::contract::Contract;
use super::deployment::{Code, Deployment, DeploymentId};
use super::host::Host;
use super::stack::Kept;
use crate::guest::MainPosition;
use crate::hypervisor::{Disk, Shape};
use crate::node::Prepared;
use aleph_types::{ErrorClass, JobSpec, PullPolicy, Resources};
use bytes::Bytes;
use error::at;
use folder::{Record, read};
use guest::{disks, resources, task};
use initialisation::Making;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// A template that clones can begin from.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) account: String,
    pub(super) function: String,
    pub(super) resources: Resources,
    pub(super) contract: Contract,
    pub(super) main: MainPosition,
    pub(super) state: Bytes,
    /// What its runtime was connected with.
    pub(super) connections: Vec<Kept>,
    memory: File,
    image: File,
    task: Option<File>,
    generation: AtomicU64,
}

impl Template {
    /// The template of a deployment: the one that is there, or a new one.
    ///
    /// Where the future is dropped, a template that is being made is given up.
    pub(super) async fn ensure(
        host: &Arc<Host>,
        deployment: &Arc<Deployment>,
    ) -> Result<Self, TemplateError> {
        let prepared = prepare(host, deployment).await?;
        let dir = host.templates().join(deployment.id().as_str());
        let compatible_with = compatible_with(host, &prepared)?;
        if let Some(record) = read(&dir, &compatible_with, &prepared.digest) {
            return Self::open(&dir, deployment, prepared, &record);
        }
        let given_up = host.closing.child_token();
        let _waiting = given_up.clone().drop_guard();
        let making = Making {
            host: Arc::clone(host),
            deployment: Arc::clone(deployment),
            prepared,
            dir: dir.clone(),
            given_up,
        };
        // A task of its own, so that what was begun is undone when nobody waits any more.
        let made = host.burials.spawn(making.run(compatible_with)).await;
        let (record, prepared) = made.unwrap_or(Err(TemplateError::GivenUp))?;
        Self::open(&dir, deployment, prepared, &record)
    }

    fn open(
        dir: &Path,
        deployment: &Deployment,
        prepared: Prepared,
        record: &Record,
    ) -> Result<Self, TemplateError> {
        let (state, memory) = (dir.join("state"), dir.join("memory"));
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            account: deployment.account.clone(),
            function: deployment.function.clone(),
            resources: resources(deployment),
            contract: record.contract.clone(),
            main: MainPosition {
                stream: record.main_stream,
                received: record.main_received,
            },
            state: fs::read(&state).map_err(at("read", &state))?.into(),
            memory: File::options()
                .read(true)
                .write(true)
                .open(&memory)
                .map_err(at("open", &memory))?,
            connections: record.connections.clone(),
            image: prepared.boot.image,
            task: task(deployment)?,
            // Above those of every clone that an earlier daemon made.
            generation: AtomicU64::new(
                u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX / 2),
            ),
        })
    }

    /// A number that no other clone has.
    pub(super) fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    /// The memory, to be mapped by a clone.
    pub(super) fn memory(&self) -> Result<File, TemplateError> {
        self.again(&self.memory)
    }

    /// An open file once more. They stay open, so that clones can begin while the template goes.
    fn again(&self, file: &File) -> Result<File, TemplateError> {
        let what = Path::new("a file of the template");
        file.try_clone().map_err(at("open again", what))
    }

    /// The disks of a clone.
    pub(super) fn disks(&self) -> Result<Vec<Disk>, TemplateError> {
        let task = self.task.as_ref().map(|file| self.again(file));
        Ok(disks(self.again(&self.image)?, task.transpose()?))
    }

    /// What a process has in common with its clones, on a node that connects its guests or does not.
    pub(super) fn shape(&self, is_connected: bool) -> Shape {
        guest::shape(self.resources, self.task.is_some(), is_connected)
    }

    /// Removes the template of a deployment. Clones that run keep what they have of it.
    pub(super) fn remove(host: &Host, id: &DeploymentId) -> io::Result<()> {
        match fs::remove_dir_all(host.templates().join(id.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

async fn prepare(host: &Host, deployment: &Deployment) -> Result<Prepared, TemplateError> {
    let image = match &deployment.code {
        Code::Task { runtime, .. } => runtime,
        Code::Image { reference, digest } if digest.is_empty() => reference,
        Code::Image { digest, .. } => digest,
    };
    let mut spec = JobSpec::new(image, Vec::new());
    if let Code::Image { digest, .. } = &deployment.code
        && !digest.is_empty()
    {
        // That very image: whatever its reference leads to now is another version's.
        spec.pull = PullPolicy::Never;
    }
    let uncompressed = host.driver.wants_uncompressed_kernel();
    let prepared = host
        .images
        .prepare(&deployment.account, &spec, uncompressed);
    prepared.await.map_err(|problem| match &deployment.code {
        Code::Image { reference, digest }
            if !digest.is_empty() && problem.class == ErrorClass::NotFound =>
        {
            TemplateError::ImageGone {
                reference: reference.clone(),
                digest: digest.clone(),
            }
        }
        _ => TemplateError::Image(problem),
    })
}

/// The deployment with the image that its reference leads to now, where it has none yet.
pub(super) async fn pin(
    host: &Host,
    deployment: Arc<Deployment>,
) -> Result<Arc<Deployment>, TemplateError> {
    let Code::Image { reference, digest } = &deployment.code else {
        return Ok(deployment);
    };
    if !digest.is_empty() {
        return Ok(deployment);
    }
    let code = Code::Image {
        reference: reference.clone(),
        digest: prepare(host, &deployment).await?.digest,
    };
    Ok(Arc::new(Deployment {
        code,
        ..Deployment::clone(&deployment)
    }))
}

/// What a template depends on, beside its deployment: whatever of it changes, it is made anew.
fn compatible_with(host: &Host, prepared: &Prepared) -> Result<String, TemplateError> {
    let mut parts = vec![host.driver.compatibility()];
    // A clone has the devices of its template.
    parts.push(
        if host.network.is_some() {
            "network"
        } else {
            "alone"
        }
        .to_owned(),
    );
    parts.push(host.region.clone());
    for file in [&prepared.boot.kernel, &prepared.boot.initrd] {
        // Kernel bundles never change, so what tells files apart tells bundles apart.
        let meta = file
            .metadata()
            .map_err(at("look at", Path::new("the kernel")))?;
        parts.push(format!("{}:{}:{}", meta.dev(), meta.ino(), meta.size()));
    }
    Ok(parts.join(" "))
}
