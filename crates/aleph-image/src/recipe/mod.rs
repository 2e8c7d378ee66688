//! How the tree of an image comes to be.

mod archive;
mod archive_error;
mod busybox;
mod code;
mod compression;
mod debian;
mod entry_path;
mod layers;
mod ledger;
mod pax;
mod root;
mod runtime;
mod sources;
mod unpacker;

pub(crate) use archive::MOST_PATHS;
pub use archive_error::ArchiveError;
pub(crate) use code::{Bounds, unpack as unpack_code};
pub use entry_path::PathFault;
pub(crate) use layers::{Layers, Limits};
pub use runtime::ClientError;

use crate::disk::Doing;
use crate::error::ImageError;
use crate::filesystem::{Survey, Times};
use crate::image::{Config, Source};
use crate::progress::Progress;
use crate::staging::Staging;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An image that this crate knows how to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Recipe {
    /// Debian's static busybox with its applets, and nothing else: 2 MiB, in seconds.
    #[serde(rename = "busybox")]
    Busybox,
    /// A minimal Debian 12, in a minute or two.
    #[serde(rename = "debian-12")]
    Debian12,
    /// What functions that bring a program called `bootstrap` run on: Debian's C and C++
    /// libraries, certificates, a shell and curl.
    #[serde(rename = "provided.al2023")]
    ProvidedAl2023,
    /// Debian's Python 3.11 with the client of AWS Lambda's runtime API.
    #[serde(rename = "python3.11")]
    Python311,
    /// Debian's Node.js 18 with the client of AWS Lambda's runtime API.
    #[serde(rename = "nodejs18.x")]
    Nodejs18,
}

/// A finished tree, ready to be written as an image.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
    pub(crate) times: Times,
    pub(crate) source: Source,
    pub(crate) config: Config,
}

impl Recipe {
    /// Every recipe.
    pub const ALL: [Self; 5] = [
        Self::Busybox,
        Self::Debian12,
        Self::ProvidedAl2023,
        Self::Python311,
        Self::Nodejs18,
    ];

    /// Its name, and the name of the image that it makes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Debian12 => "debian-12",
            Self::ProvidedAl2023 => "provided.al2023",
            Self::Python311 => "python3.11",
            Self::Nodejs18 => "nodejs18.x",
        }
    }

    /// Whether functions run on it.
    #[must_use]
    pub fn is_runtime(self) -> bool {
        matches!(
            self,
            Self::ProvidedAl2023 | Self::Python311 | Self::Nodejs18
        )
    }

    /// The names of all, for a sentence.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    pub(crate) fn prepare(
        self,
        staging: &Staging,
        progress: &mut dyn Progress,
    ) -> Result<Tree, ImageError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ImageError::NeedsRoot {
                what: self.to_string(),
            });
        }
        match self {
            Self::Busybox => busybox::prepare(staging, progress),
            Self::Debian12 => debian::prepare(staging, progress),
            Self::ProvidedAl2023 => runtime::provided(staging, progress),
            Self::Python311 => runtime::python(staging, progress),
            Self::Nodejs18 => runtime::node(staging, progress),
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Recipe {
    type Err = ImageError;

    fn from_str(name: &str) -> Result<Self, ImageError> {
        Self::ALL
            .into_iter()
            .find(|recipe| recipe.name() == name)
            .ok_or_else(|| ImageError::UnknownRecipe {
                name: name.to_owned(),
            })
    }
}

/// The tree of a user's directory, where it is, or archive, unpacked into `staging`.
pub(crate) fn import(
    path: &Path,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Tree, ImageError> {
    let refused = |why| ImageError::NotImportable {
        path: path.to_owned(),
        why,
    };
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refused("there is nothing of that name"));
        }
        other => other.doing("look at", path)?,
    };
    let path = path.canonicalize().doing("find", path)?;
    let (tree, source) = if metadata.is_dir() {
        if staging.path().starts_with(&path) {
            return Err(refused("the image store is in it"));
        }
        (path.clone(), Source::Directory(path.clone()))
    } else if metadata.is_file() {
        let tree = staging.folder("tree")?;
        archive::unpack_file(&path, &tree, progress)?;
        (tree, Source::Archive(path.clone()))
    } else {
        return Err(refused("it is neither a directory nor a regular file"));
    };
    if Survey::of(&tree)?.files == 0 {
        return Err(refused("there are no files in it"));
    }
    Ok(Tree {
        path: tree,
        times: Times::Kept,
        source,
        config: Config::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_is_found_by_its_name_and_stored_under_it() {
        for recipe in Recipe::ALL {
            assert_eq!(recipe.name().parse::<Recipe>().unwrap(), recipe);
            assert_eq!(serde_json::to_value(recipe).unwrap(), recipe.name());
        }
        assert!("debian".parse::<Recipe>().is_err());
    }
}
