//! The node's images, for its jobs and for the API.
//!
//! Operators fetch from any registry, with the node's logins. What an account names could make
//! the node ask hosts that only the node can reach, and would show it what the operator's logins
//! open. So accounts fetch only from the registries that `images.account_registries` lists, and
//! without logins; of other images they have those that are here. The account of operators'
//! jobs ([`DEFAULT_ACCOUNT`]) counts as an operator.
//!
//! [`StoreImages`] is the seam between the node, which knows no store, and the store, which
//! knows no jobs. The store blocks, so all that touches it runs in the pool for blocking work.

use crate::accounts::DEFAULT_ACCOUNT;
use crate::config::ImagesSection;
use aleph_executor::Boot;
use aleph_executor::hypervisor::BoxFuture;
use aleph_executor::node::{DiskKernel, ImageDefaults, Images, Prepared};
use aleph_image::oci::{PullEvent, PullOptions, Reference};
use aleph_image::{
    DiskError, GuestMode, Image, ImageError, KernelError, KernelStore, NoProgress, PruneOptions,
    Pruned, Recipe, Removed, Store,
};
use aleph_types::signal;
use aleph_types::{Classify, ErrorClass, JobSpec, Mode, Problem, PullPolicy};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// The images and kernels in a node's state folder.
#[derive(Debug, Clone)]
pub struct StoreImages {
    state: PathBuf,
    options: PullOptions,
    account_registries: Vec<String>,
    /// Held while a runtime's image is looked for or built.
    builds: Arc<tokio::sync::Mutex<()>>,
}

/// An image or kernel that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An account may not fetch it.
    #[error("accounts of this node may not fetch images from {registry}")]
    RegistryNotAllowed {
        /// The registry that it is in.
        registry: String,
    },
    /// The work on it broke off.
    #[error("the work on images panicked")]
    Panicked,
}

impl Classify for ImagesError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Image(error) => error.class(),
            Self::Kernel(error) => error.class(),
            Self::RegistryNotAllowed { .. } => ErrorClass::Forbidden,
            Self::Panicked => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Image(error) => error.code(),
            Self::Kernel(error) => error.code(),
            Self::RegistryNotAllowed { .. } => "registry_not_allowed",
            Self::Panicked => "internal",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Image(error) => error.advice(),
            Self::Kernel(error) => error.advice(),
            Self::RegistryNotAllowed { .. } => Some(
                "Take an image that is here, or ask an operator to pull this one or to list its \
                 registry in images.account_registries."
                    .into(),
            ),
            Self::Panicked => None,
        }
    }
}

impl From<DiskError> for ImagesError {
    fn from(error: DiskError) -> Self {
        Self::Image(error.into())
    }
}

impl StoreImages {
    /// Those in the state folder `state`; `section` says how registries are spoken with, and
    /// for whom.
    #[must_use]
    pub fn new(state: &Path, section: &ImagesSection) -> Self {
        Self {
            state: state.to_owned(),
            options: section.pull_options(),
            account_registries: section.account_registries.clone(),
            builds: Arc::default(),
        }
    }

    /// Looks whether an account may fetch an image. What is no reference has no registry.
    ///
    /// # Errors
    /// [`ImagesError::RegistryNotAllowed`].
    pub fn allow(&self, reference: &str) -> Result<(), ImagesError> {
        let Ok(reference) = reference.parse::<Reference>() else {
            return Ok(());
        };
        let registry = reference.registry();
        if self.account_registries.iter().any(|r| r == registry) {
            return Ok(());
        }
        let registry = registry.to_owned();
        Err(ImagesError::RegistryNotAllowed { registry })
    }

    /// Looks whether an account may have a job with an image: what is here it may have.
    ///
    /// # Errors
    /// [`ImagesError::RegistryNotAllowed`], or where the store cannot be read.
    pub async fn allow_use(&self, reference: &str, policy: PullPolicy) -> Result<(), ImagesError> {
        let Err(refused) = self.allow(reference) else {
            return Ok(());
        };
        match policy {
            PullPolicy::Never => Ok(()),
            PullPolicy::Always => Err(refused),
            PullPolicy::Missing => match self.resolve(reference).await {
                Err(ImagesError::Image(ImageError::NotFound { .. })) => Err(refused),
                found => found.map(drop),
            },
        }
    }

    /// All images.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn list(&self) -> Result<Vec<Image>, ImagesError> {
        self.with_store(Store::list).await
    }

    /// The image that a name or digest means.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn resolve(&self, reference: &str) -> Result<Image, ImagesError> {
        let reference = reference.to_owned();
        self.with_store(move |store| store.resolve(&reference))
            .await
    }

    /// Removes a name, and its image with the last of them.
    ///
    /// # Errors
    /// Where there is none, or it is in use.
    pub async fn remove(&self, reference: &str) -> Result<Removed, ImagesError> {
        let reference = reference.to_owned();
        self.with_store(move |store| store.remove(&reference)).await
    }

    /// Removes what nobody needs.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn prune(&self, options: PruneOptions) -> Result<Pruned, ImagesError> {
        self.with_store(move |store| store.prune(&options)).await
    }

    /// Pulls an image for an operator, or for an `account`. `listener` hears how far it is, and
    /// must not block.
    ///
    /// # Errors
    /// Where it cannot be had, or the account may not have it.
    pub async fn pull(
        &self,
        reference: &str,
        account: bool,
        listener: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, ImagesError> {
        let mut options = self.options.clone();
        if account {
            self.allow(reference)?;
            options.registries.anonymous = true;
        }
        let state = self.state.clone();
        let store = run(move || Store::open(state).map_err(ImagesError::from)).await?;
        Ok(store.pull(reference, &options, listener).await?)
    }

    /// The image of a job, which is fetched where its policy says so.
    async fn fetch(&self, spec: &JobSpec, account: bool) -> Result<Image, ImagesError> {
        let (reference, policy) = (spec.image.as_str(), spec.pull);
        if let Ok(recipe) = reference.parse::<Recipe>()
            && recipe.is_runtime()
        {
            return self.runtime(recipe).await;
        }
        if policy != PullPolicy::Always {
            match self.resolve(reference).await {
                Err(ImagesError::Image(ImageError::NotFound { .. }))
                    if policy == PullPolicy::Missing && reference.parse::<Reference>().is_ok() => {}
                found => return found,
            }
        }
        let name = reference.to_owned();
        let pulled = self.pull(reference, account, move |event| {
            tracing::debug!(image = name, ?event, "pulling");
        });
        pulled.await
    }

    /// The image of a runtime, which is built where it is not there: once, whoever waits for it.
    async fn runtime(&self, recipe: Recipe) -> Result<Image, ImagesError> {
        let _turn = self.builds.lock().await;
        match self.resolve(recipe.name()).await {
            Err(ImagesError::Image(ImageError::NotFound { .. })) => {}
            found => return found,
        }
        tracing::info!(runtime = recipe.name(), "building the image of a runtime");
        self.with_store(move |store| store.build(recipe, &mut NoProgress))
            .await
    }

    async fn open(
        &self,
        account: &str,
        spec: &JobSpec,
        uncompressed: bool,
    ) -> Result<Prepared, ImagesError> {
        let image = self.fetch(spec, account != DEFAULT_ACCOUNT).await?;
        let state = self.state.clone();
        let kernel = spec.kernel.clone();
        let guest = match spec.mode {
            Mode::Vm => GuestMode::Vm,
            Mode::Auto | Mode::Microvm => GuestMode::Microvm,
        };
        run(move || prepare(&state, &image, kernel, guest, uncompressed)).await
    }

    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImagesError> {
        let state = self.state.clone();
        run(move || Ok(work(&Store::open(state)?)?)).await
    }
}

impl Images for StoreImages {
    fn prepare<'a>(
        &'a self,
        account: &'a str,
        spec: &'a JobSpec,
        uncompressed: bool,
    ) -> BoxFuture<'a, Result<Prepared, Problem>> {
        Box::pin(async move {
            let opened = self.open(account, spec, uncompressed).await;
            opened.map_err(|error| Problem::of(&error))
        })
    }

    fn kernel<'a>(
        &'a self,
        reference: &'a str,
        uncompressed: bool,
    ) -> BoxFuture<'a, Result<DiskKernel, Problem>> {
        let (state, reference) = (self.state.clone(), reference.to_owned());
        Box::pin(async move {
            let opened = run(move || {
                let bundle = KernelStore::open(&state)?.resolve(&reference)?;
                let files = bundle.open_for_disk(uncompressed)?;
                Ok(DiskKernel {
                    kernel: files.kernel,
                    initrd: files.initrd,
                    digest: bundle.digest().to_string(),
                })
            });
            opened.await.map_err(|error| Problem::of(&error))
        })
    }
}

async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImagesError> + Send + 'static,
) -> Result<T, ImagesError> {
    spawn_blocking(work)
        .await
        .unwrap_or(Err(ImagesError::Panicked))
}

fn prepare(
    state: &Path,
    image: &Image,
    kernel: Option<String>,
    guest: GuestMode,
    uncompressed: bool,
) -> Result<Prepared, ImagesError> {
    let store = KernelStore::open(state)?;
    let bundle = match &kernel {
        Some(reference) => store.resolve(reference)?,
        None => store.default_bundle()?,
    };
    let files = bundle.open(guest, uncompressed)?;
    let held = image.hold()?;
    let config = &image.record().config;
    Ok(Prepared {
        digest: image.digest().to_string(),
        kernel: kernel.map(|_| bundle.digest().to_string()),
        defaults: ImageDefaults {
            entrypoint: config.entrypoint.clone(),
            command: config.cmd.clone(),
            env: config.env.clone(),
            workdir: config.workdir.clone(),
            user: config.user.clone(),
            stop_signal: config.stop_signal.as_deref().and_then(signal::number),
        },
        boot: Boot {
            kernel: files.kernel,
            initrd: files.initrd,
            filesystem: image.filesystem().to_string(),
            // The lock on the image belongs to the open file, so it lasts as long as its VM.
            image: held.into_file(),
        },
    })
}
