//! Pulling an image: from a reference to an object in the store.

use super::ParseReferenceError;
use super::blobs::{Blobs, PullLock};
use super::error::RegistryError;
use super::event::{LayerInfo, Listener, PullEvent};
use super::extraction::{Extraction, report};
use super::fetch::{Fetch, blocking};
use super::growth::{growing_file, is_stopped};
use super::plan::Plan;
use super::reference::Reference;
use super::registries::Registries;
use super::remote::Remote;
use crate::digest::Digest;
use crate::disk::{ensure_room, free_bytes};
use crate::error::ImageError;
use crate::filesystem::FORMAT;
use crate::image::{Image, ImageRecord, PULLED_VERSION, Source};
use crate::recipe::{Limits, MOST_PATHS};
use crate::staging::Staging;
use crate::store::{Store, now};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// More at the same time wait. Each has blocking threads of the runtime, one for each layer that
/// it downloads and one that waits for them: these must never be all that there are.
static AT_A_TIME: Semaphore = Semaphore::const_new(8);
const MOST_PARALLEL: usize = 16;

/// How to pull an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullOptions {
    /// Mirrors, plain HTTP, logins.
    pub registries: Registries,
    /// Layers that are downloaded at the same time: 1 to 16.
    pub parallel: usize,
    /// Bytes that all layers may have together when decompressed; more is refused, and so are
    /// layers that are larger than that as they are.
    pub most_bytes: u64,
    /// Files, folders, links and marks that all layers may have together.
    pub most_entries: u64,
    /// How long a registry may take to say what an image is made of. Over every such time it
    /// has to send 4 KiB a second of a layer, or it is given up.
    pub patience: Duration,
}

impl Default for PullOptions {
    /// No mirrors, 3 layers at a time, up to 64 GiB and 4 million entries, a minute's patience.
    fn default() -> Self {
        Self {
            registries: Registries::default(),
            parallel: 3,
            most_bytes: 64 << 30,
            most_entries: 4_000_000,
            patience: Duration::from_secs(60),
        }
    }
}

impl Store {
    /// Pulls an image from its registry, names it by its familiar reference (`debian:12`,
    /// `ghcr.io/org/app:1.0`), and tells `listener` how far it is.
    ///
    /// The registry is asked each time; what it names is only downloaded if it is not here. The
    /// future may be dropped: the download stops, and what has arrived is kept for the next
    /// pull. It needs a tokio runtime with time and I/O. `listener` is called on any thread and
    /// must not block.
    ///
    /// # Errors
    /// When the registry cannot be reached or refuses, the image is none for this host, a digest
    /// or size is wrong, a layer is hostile or too large, or the disk is full. The store is as
    /// before, but for what has arrived of layers.
    pub async fn pull(
        &self,
        reference: &str,
        options: &PullOptions,
        listener: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, ImageError> {
        let parsed = reference.parse();
        let pull = Pull {
            store: self.clone(),
            reference: parsed.map_err(|error: ParseReferenceError| ImageError::BadReference {
                reference: reference.to_owned(),
                why: error.why,
            })?,
            options: options.clone(),
            listener: Arc::new(listener),
        };
        // Files belong to whom the image says.
        if !rustix::process::geteuid().is_root() {
            return Err(ImageError::NeedsRoot {
                what: pull.reference.to_string(),
            });
        }
        Box::pin(pull.run()).await
    }
}

struct Pull {
    store: Store,
    reference: Reference,
    options: PullOptions,
    listener: Listener,
}

impl Pull {
    async fn run(&self) -> Result<Image, ImageError> {
        match self.attempt(&self.options.registries).await {
            // What was damaged here is removed now; what a mirror has wrong, its registry has not.
            Err(ImageError::Registry(error @ RegistryError::Mismatch { .. })) => {
                let RegistryError::Mismatch { host, kept, .. } = &error else {
                    return Err(error.into());
                };
                if !kept && host == self.reference.registry() {
                    return Err(error.into());
                }
                tracing::warn!(%error, "pulling again without mirrors");
                let mut registries = self.options.registries.clone();
                registries.mirrors.clear();
                self.attempt(&registries).await
            }
            other => other,
        }
    }

    async fn attempt(&self, registries: &Registries) -> Result<Image, ImageError> {
        let (remotes, plan) = self.find(registries).await?;
        let layers = plan.manifest.layers.iter();
        (self.listener)(PullEvent::Resolved {
            manifest: plan.digest,
            layers: layers
                .map(|layer| LayerInfo {
                    digest: layer.digest,
                    size: layer.size,
                })
                .collect(),
        });
        let identity = plan.manifest.config.digest;
        if let Some(image) = self.adopt(identity).await? {
            return Ok(image);
        }
        let blobs = Blobs::of(self.store.images());
        let mut told = false;
        let lock = loop {
            match blobs.try_pull(&identity)? {
                Some(lock) => break lock,
                None if !std::mem::replace(&mut told, true) => {
                    (self.listener)(PullEvent::Waiting);
                }
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        // Whoever had the lock before us may have done it.
        if let Some(image) = self.adopt(identity).await? {
            return Ok(image);
        }
        // Never closed.
        let _turn = AT_A_TIME.acquire().await;
        let record = self.record(&plan);
        if let Some(image) = self.share(&record).await? {
            return Ok(image);
        }
        self.fetch_and_extract(remotes, plan, record, lock).await
    }

    /// The first place that has a usable image, with those that come after it.
    async fn find(&self, registries: &Registries) -> Result<(Arc<[Remote]>, Plan), ImageError> {
        let registries = Arc::new(registries.clone());
        let reference = self.reference.clone();
        let patience = self.options.patience;
        let mut remotes = blocking(move || {
            let mut remotes = Vec::new();
            for endpoint in registries.endpoints(&reference) {
                let is_mirror = endpoint.mirror_of.is_some();
                match Remote::new(endpoint, &reference, &registries, patience) {
                    Ok(remote) => remotes.push(remote),
                    Err(error) if is_mirror => tracing::info!(%error, "a mirror is passed over"),
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(remotes)
        })
        .await?;
        loop {
            let remote = &remotes[0];
            let plan = Plan::of(&self.reference, remote, self.options.most_bytes);
            match remote.in_time(plan).await {
                Ok(plan) => return Ok((remotes.into(), plan)),
                Err(error) if remotes.len() > 1 => {
                    tracing::info!(%error, "a mirror is passed over");
                    remotes.remove(0);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn record(&self, plan: &Plan) -> ImageRecord {
        let diff_ids = plan.configuration.diff_ids.iter();
        let chain: Vec<String> = diff_ids.map(ToString::to_string).collect();
        ImageRecord {
            version: PULLED_VERSION,
            digest: plan.manifest.config.digest,
            filesystem: FORMAT,
            size: 0,
            created: now(),
            source: Source::Registry {
                reference: self.reference.to_string(),
                manifest: plan.digest,
                layers: plan.manifest.layers.iter().map(|l| l.digest).collect(),
                chain: Digest::of(chain.join(" ").as_bytes()),
            },
            config: plan.configuration.config.clone(),
        }
    }

    /// Names the image with that identity, if it is here and sound.
    async fn adopt(&self, identity: Digest) -> Result<Option<Image>, ImageError> {
        let (store, name) = (self.store.clone(), self.reference.to_string());
        blocking(move || store.name_existing(identity, &name)).await
    }

    /// Makes the image of another one's file system, if one has the same layers.
    async fn share(&self, record: &ImageRecord) -> Result<Option<Image>, ImageError> {
        let (store, name) = (self.store.clone(), self.reference.to_string());
        let record = record.clone();
        blocking(move || {
            let same = store.list()?.into_iter().find(|image| {
                image.record().filesystem == record.filesystem
                    && same_chain(&image.record().source, &record.source)
                    && image.check().is_ok()
            });
            let Some(same) = same else { return Ok(None) };
            let staging = Staging::create(store.images())?;
            let object = staging.folder("object")?;
            let rootfs = object.join(format!("rootfs.{FORMAT}"));
            if let Err(error) = std::fs::hard_link(same.rootfs(), rootfs) {
                tracing::debug!(%error, "a file system is not shared");
                return Ok(None);
            }
            let record = ImageRecord {
                size: same.record().size,
                ..record
            };
            store.place(&staging, &object, &record, &name).map(Some)
        })
        .await
    }

    async fn fetch_and_extract(
        &self,
        remotes: Arc<[Remote]>,
        plan: Plan,
        record: ImageRecord,
        lock: PullLock,
    ) -> Result<Image, ImageError> {
        let blobs = Blobs::of(self.store.images());
        let mut missing = 0;
        for layer in &plan.manifest.layers {
            if blobs.open(&layer.digest)?.is_none() {
                missing += layer.size;
            }
        }
        let images = self.store.images();
        ensure_room("download an image to", images, missing)?;
        let free = free_bytes(images).unwrap_or(u64::MAX);

        let mut downloads = JoinSet::new();
        let permits = Arc::new(Semaphore::new(
            self.options.parallel.clamp(1, MOST_PARALLEL),
        ));
        let mut layers = Vec::new();
        let described = plan.manifest.layers.into_iter();
        for (index, (layer, diff_id)) in described.zip(plan.configuration.diff_ids).enumerate() {
            let (growing, following) = growing_file();
            let fetch = Fetch {
                blobs: blobs.clone(),
                remotes: Arc::clone(&remotes),
                growing,
                report: report(&self.listener, index, &layer),
                layer: layer.clone(),
            };
            let permits = Arc::clone(&permits);
            downloads.spawn(async move {
                // Never closed: it lives as long as we do.
                let _permit = permits.acquire_owned().await;
                fetch.run().await
            });
            layers.push((layer, diff_id, following));
        }
        let extraction = Extraction {
            store: self.store.clone(),
            name: self.reference.to_string(),
            record,
            layers,
            limits: Limits {
                bytes: self.options.most_bytes,
                entries: self.options.most_entries,
                paths: MOST_PATHS,
                // The tree and its image are there at the same time. So a bomb never takes more
                // than half of the room that others need too.
                room: free.saturating_sub(missing) / 2,
            },
            listener: Arc::clone(&self.listener),
            lock,
        };
        let extracted = blocking(move || extraction.run());
        tokio::pin!(extracted);
        let mut failure = None;
        let extracted = loop {
            tokio::select! {
                ended = &mut extracted => break ended,
                Some(ended) = downloads.join_next() => {
                    if let Some(error) = failure_of(ended) {
                        failure.get_or_insert(error);
                        // The extraction sees that its layers stop, and ends.
                        downloads.abort_all();
                    }
                }
            }
        };
        match extracted {
            Err(error) if is_stopped(&error) => {
                while failure.is_none() {
                    match downloads.join_next().await {
                        Some(ended) => failure = failure_of(ended),
                        None => return Err(error),
                    }
                }
                Err(failure.unwrap_or(error))
            }
            other => other,
        }
    }
}

fn failure_of(ended: Result<Result<(), ImageError>, tokio::task::JoinError>) -> Option<ImageError> {
    match ended {
        Ok(done) => done.err(),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Aborted, by us.
            Err(_) => None,
        },
    }
}

fn same_chain(a: &Source, b: &Source) -> bool {
    match (a, b) {
        (Source::Registry { chain: a, .. }, Source::Registry { chain: b, .. }) => a == b,
        _ => false,
    }
}
