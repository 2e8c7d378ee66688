//! Images for a node under test.

use crate::TestRoot;
use aleph_executor::Boot;
use aleph_executor::hypervisor::BoxFuture;
use aleph_executor::node::{ImageDefaults, Images, Prepared};
use aleph_image::Recipe;
use aleph_types::{ErrorClass, JobSpec, Problem};
use anyhow::{Context, Result};
use std::fs::File;

/// The kernel bundle of a [`TestRoot`], its busybox image, by name or digest, and the images of all
/// other recipes, which are built where they are not there.
#[derive(Debug)]
pub struct TestImages {
    kernel: std::path::PathBuf,
    initrd: std::path::PathBuf,
    image: std::path::PathBuf,
    filesystem: String,
    digest: String,
}

impl TestImages {
    /// The images of this root.
    ///
    /// # Errors
    /// Where they are not there.
    pub fn new(root: &TestRoot) -> Result<Self> {
        let (bundle, image) = (root.bundle()?, root.busybox()?);
        Ok(Self {
            kernel: bundle
                .vmlinux()
                .context("no uncompressed kernel")?
                .to_owned(),
            initrd: bundle.initrd().to_owned(),
            image: image.rootfs(),
            filesystem: image.filesystem().to_string(),
            digest: image.digest().to_string(),
        })
    }

    /// The image of a recipe.
    fn open_recipe(&self, recipe: Recipe) -> Result<Prepared> {
        let image = crate::recipe_image(recipe)?;
        let config = &image.record().config;
        Ok(Prepared {
            kernel: None,
            boot: Boot {
                kernel: File::open(&self.kernel)?,
                initrd: File::open(&self.initrd)?,
                filesystem: image.filesystem().to_string(),
                image: File::open(image.rootfs())?,
            },
            digest: image.digest().to_string(),
            defaults: ImageDefaults {
                entrypoint: config.entrypoint.clone(),
                command: config.cmd.clone(),
                env: config.env.clone(),
                workdir: config.workdir.clone(),
                user: config.user.clone(),
                stop_signal: None,
            },
        })
    }

    fn open(&self) -> std::io::Result<Prepared> {
        Ok(Prepared {
            kernel: None,
            boot: Boot {
                kernel: File::open(&self.kernel)?,
                initrd: File::open(&self.initrd)?,
                filesystem: self.filesystem.clone(),
                image: File::open(&self.image)?,
            },
            digest: self.digest.clone(),
            defaults: ImageDefaults {
                command: vec!["sh".into()],
                ..ImageDefaults::default()
            },
        })
    }
}

impl Images for TestImages {
    fn prepare<'a>(
        &'a self,
        _account: &'a str,
        spec: &'a JobSpec,
        _uncompressed: bool,
    ) -> BoxFuture<'a, Result<Prepared, Problem>> {
        Box::pin(async move {
            if let Ok(recipe) = spec.image.parse::<Recipe>()
                && recipe != Recipe::Busybox
            {
                return self.open_recipe(recipe).map_err(|error| Problem {
                    class: ErrorClass::Unavailable,
                    code: "recipe".into(),
                    message: format!("{error:#}"),
                    advice: None,
                });
            }
            if spec.image != "busybox" && spec.image != self.digest {
                return Err(Problem {
                    class: ErrorClass::NotFound,
                    code: "no_image".into(),
                    message: format!("there is no image {:?}", spec.image),
                    advice: None,
                });
            }
            self.open().map_err(|error| Problem {
                class: ErrorClass::Internal,
                code: "image".into(),
                message: error.to_string(),
                advice: None,
            })
        })
    }
}

/// Images of nothing, for what is scripted; there is none that is called `missing`.
#[derive(Debug, Clone, Copy)]
pub struct NoImages;

impl Images for NoImages {
    fn prepare<'a>(
        &'a self,
        _account: &'a str,
        spec: &'a JobSpec,
        _: bool,
    ) -> BoxFuture<'a, Result<Prepared, Problem>> {
        let problem = |message: String| Problem {
            class: ErrorClass::NotFound,
            code: "no_image".into(),
            message,
            advice: None,
        };
        Box::pin(async move {
            if spec.image == "missing" {
                return Err(problem("there is no image \"missing\"".into()));
            }
            let null = || File::open("/dev/null").map_err(|error| problem(error.to_string()));
            Ok(Prepared {
                kernel: None,
                boot: Boot {
                    kernel: null()?,
                    initrd: null()?,
                    filesystem: "none".into(),
                    image: null()?,
                },
                digest: "sha256:0".into(),
                defaults: ImageDefaults::default(),
            })
        })
    }
}
