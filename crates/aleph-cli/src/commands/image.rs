//! `aleph image`: by a node that runs, or directly on this host's store.

use super::completion::images;
use super::each::each;
use crate::boot;
use crate::client::ImageInfo;
use crate::context::Context;
use crate::output::{
    self, Advised, Column, Listing, ago, print, print_error, print_json, print_json_line, size,
};
use crate::progress::{Bars, Pulls};
use aleph_image::{Recipe, Store};
use aleph_types::{PullPolicy, Timestamp};
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Image {
    /// Fetch an image from its registry
    Pull(Pull),
    /// Build an image by a recipe of this program, such as busybox, debian-12 or python3.11
    Build {
        /// Which recipe
        recipe: String,
        /// Print the image as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Make an image of a directory or a tar archive
    Import {
        /// The directory or archive
        source: PathBuf,
        /// The image's name
        #[arg(long)]
        name: String,
        /// Print the image as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// List images
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Remove images
    Rm {
        /// Names or digests
        #[arg(required = true, value_name = "IMAGE", add = ArgValueCompleter::new(images))]
        images: Vec<String>,
        /// Print a line of JSON for each image
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of images, as JSON
    Inspect {
        /// Names or digests
        #[arg(required = true, value_name = "IMAGE", add = ArgValueCompleter::new(images))]
        images: Vec<String>,
    },
}

/// Which image to fetch.
#[derive(Debug, clap::Args)]
pub(crate) struct Pull {
    /// The image, such as debian:12 or registry.example/team/app@sha256:…
    image: String,

    /// Fetch nothing if an image of that name is there
    #[arg(long)]
    missing: bool,

    /// Show no progress
    #[arg(short, long)]
    quiet: bool,

    /// Print the image as a line of JSON
    #[arg(long)]
    json: bool,
}

/// How to list images.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Print digests only
    #[arg(short, long)]
    quiet: bool,

    /// Do not shorten digests
    #[arg(long)]
    no_trunc: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Image {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::Pull(pull) => pull.run(context).await,
            Self::Ls(ls) => ls.run(context).await,
            // The store is shared with a node of this host, which finds what is new in it.
            Self::Build { recipe, json } => {
                let recipe: Recipe = recipe.parse()?;
                let image = local(context)?.build(recipe, &mut Bars::default())?;
                print_made(&told(&image)?, json)
            }
            Self::Import { source, name, json } => {
                let image = local(context)?.import(&source, &name, &mut Bars::default())?;
                print_made(&told(&image)?, json)
            }
            Self::Rm { images, json } => {
                let client = context.daemon().await?;
                let remove = async |reference: &str| {
                    match &client {
                        Some(client) => client.remove_image(reference).await?,
                        None => drop(store(context)?.remove(reference)?),
                    }
                    Ok(json!({ "reference": reference, "removed": true }))
                };
                each(&images, json, remove).await
            }
            Self::Inspect { images } => inspect(context, &images).await,
        }
    }
}

/// Prints an image that is there now.
fn print_made(image: &Value, json: bool) -> Result<u8> {
    if json {
        print_json_line(image)?;
    } else {
        let info = ImageInfo::deserialize(image)?;
        print(format!("{} {}", info.digest, info.names.join(" ")))?;
    }
    Ok(0)
}

async fn inspect(context: &Context, images: &[String]) -> Result<u8> {
    let client = context.daemon().await?;
    let one = async |reference: &String| -> Result<Value> {
        match &client {
            Some(client) => Ok(client.image(reference).await?),
            None => told(&store(context)?.resolve(reference)?),
        }
    };
    let (mut found, mut code) = (Vec::new(), 0);
    for reference in images {
        match one(reference).await {
            Ok(image) => found.push(image),
            Err(error) => {
                print_error(&error);
                code = crate::FAILED;
            }
        }
    }
    print_json(&found)?;
    Ok(code)
}

impl Pull {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let image = match context.daemon().await? {
            Some(client) => {
                let lines = client.pull(&self.image, !self.missing).await?;
                Pulls::new(self.quiet).show(lines).await?
            }
            None => {
                let policy = if self.missing {
                    PullPolicy::Missing
                } else {
                    PullPolicy::Always
                };
                told(&boot::image(&context.paths()?, &self.image, policy, self.quiet).await?)?
            }
        };
        print_made(&image, self.json)
    }
}

impl Ls {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let images = match context.daemon().await? {
            Some(client) => client.images().await?,
            None => store(context)?
                .list()?
                .iter()
                .map(told)
                .collect::<Result<_>>()?,
        };
        if self.json {
            print_json(&images)?;
            return Ok(0);
        }
        let infos = images.into_iter().map(serde_json::from_value);
        let infos: Vec<ImageInfo> = infos.collect::<Result<_, _>>()?;
        if self.quiet {
            for info in &infos {
                print(self.digest(info))?;
            }
        } else {
            print(self.listing(&infos, Timestamp::now()))?;
        }
        Ok(0)
    }

    fn digest(&self, info: &ImageInfo) -> String {
        let length = if self.no_trunc {
            usize::MAX
        } else {
            "sha256:".len() + 12
        };
        info.digest.chars().take(length).collect()
    }

    fn listing(&self, images: &[ImageInfo], now: Timestamp) -> Listing {
        let mut listing = Listing::new(&[
            Column::Text("NAME"),
            Column::Whole("DIGEST"),
            Column::Text("CREATED"),
            Column::Text("FILESYSTEM"),
            Column::Number("SIZE"),
        ]);
        for info in images {
            listing.row([
                output::plain(&info.names.join(", ")),
                self.digest(info),
                info.created_at
                    .map(|then| ago(then, now))
                    .unwrap_or_default(),
                output::plain(&info.filesystem),
                size(info.size),
            ]);
        }
        listing
    }
}

fn store(context: &Context) -> Result<Store> {
    Ok(Store::open(context.paths()?.state())?)
}

/// The store of this host, for what is not asked of a node.
fn local(context: &Context) -> Result<Store> {
    if let Some(host) = context.api.host.as_ref().filter(|host| !host.is_here()) {
        return Err(Advised {
            what: format!("images are made on the node's own host, not by {host}"),
            advice: "Run this there, or push the image to a registry and pull it.".into(),
        }
        .into());
    }
    store(context)
}

/// An image of the store in the form in which a node tells of it.
fn told(image: &aleph_image::Image) -> Result<Value> {
    Ok(serde_json::to_value(aleph_control::ImageInfo::from(image))?)
}
