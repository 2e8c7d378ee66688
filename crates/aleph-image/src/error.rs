//! What can go wrong with an image.

use crate::apt::PackageError;
use crate::digest::Digest;
use crate::disk::DiskError;
use crate::filesystem::Filesystem;
use crate::oci::RegistryError;
use crate::program::ProgramError;
use crate::recipe::{ArchiveError, ClientError, Recipe};
use aleph_types::{Classify, ErrorClass};
use std::path::PathBuf;

/// An operation on images that failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A package could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The client of a language's runtime could not be had.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An image could not be had from a registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The runtime shuts down.
    #[error("the program is about to end")]
    Stopped,
    /// An archive cannot become an image.
    #[error("cannot import {}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// What should be imported is neither a directory nor a file, or has nothing in it.
    #[error("cannot import {}: {why}", path.display())]
    NotImportable {
        /// What should be imported.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name that no image can have.
    #[error("{name:?} cannot be an image's name: {why}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Text that names no image.
    #[error("{reference:?} is no image reference: {why}")]
    BadReference {
        /// The text.
        reference: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no recipe of that name.
    #[error("there is no recipe {name:?}")]
    UnknownRecipe {
        /// The name.
        name: String,
    },
    /// There is no such image.
    #[error("there is no image {reference:?}")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// Names that may have been meant.
        near: Vec<String>,
    },
    /// A digest prefix that more than one image has.
    #[error("{prefix} begins the digests of {} images", digests.len())]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// The digests.
        digests: Vec<Digest>,
    },
    /// The image is held, by a VM for one.
    #[error("the image {reference:?} is in use")]
    InUse {
        /// What should be removed.
        reference: String,
    },
    /// The image has several names, and was asked to be removed by its digest.
    #[error("the image {digest} has {} names: {}", names.len(), names.join(", "))]
    StillNamed {
        /// The image.
        digest: Digest,
        /// Its names.
        names: Vec<String>,
    },
    /// What is stored is not what was stored.
    #[error("the image in {} is damaged: {why}", path.display())]
    Damaged {
        /// The object's folder or file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A record that cannot be read.
    #[error("cannot read {}", path.display())]
    BadRecord {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record of a later version of this program.
    #[error("{} has version {version}, this program reads up to {}", path.display(), crate::image::RECORD_VERSION)]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// No image can be written in that format here.
    #[error("images in the format {filesystem} cannot be made, only used")]
    NoWriter {
        /// The format.
        filesystem: Filesystem,
    },
    /// Owners and device nodes need root.
    #[error("making an image of {what} needs root")]
    NeedsRoot {
        /// What the image should be of.
        what: String,
    },
    /// Another build that runs alone took too long.
    #[error("another build of {recipe} is still running")]
    Busy {
        /// The recipe.
        recipe: Recipe,
    },
}

impl Classify for ImageError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Disk(error) => error.class(),
            Self::Program(error) => error.class(),
            Self::Package(error) => error.class(),
            Self::Client(error) => error.class(),
            Self::Registry(error) => error.class(),
            Self::Archive { source, .. } => source.class(),
            Self::NotImportable { .. }
            | Self::BadName { .. }
            | Self::BadReference { .. }
            | Self::Ambiguous { .. }
            | Self::NoWriter { .. } => ErrorClass::Invalid,
            Self::UnknownRecipe { .. } | Self::NotFound { .. } => ErrorClass::NotFound,
            Self::InUse { .. } | Self::StillNamed { .. } => ErrorClass::Conflict,
            Self::Damaged { .. } | Self::BadRecord { .. } | Self::Newer { .. } => {
                ErrorClass::Internal
            }
            Self::NeedsRoot { .. } | Self::Busy { .. } | Self::Stopped => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Disk(error) => error.code(),
            Self::Program(error) => error.code(),
            Self::Package(error) => error.code(),
            Self::Client(error) => error.code(),
            Self::Registry(error) => error.code(),
            Self::Stopped => "stopped",
            Self::Archive { source, .. } => source.code(),
            Self::NotImportable { .. } => "not_importable",
            Self::BadName { .. } => "bad_image_name",
            Self::BadReference { .. } => "bad_image_reference",
            Self::UnknownRecipe { .. } => "unknown_recipe",
            Self::NotFound { .. } => "image_not_found",
            Self::Ambiguous { .. } => "image_ambiguous",
            Self::InUse { .. } => "image_in_use",
            Self::StillNamed { .. } => "image_still_named",
            Self::Damaged { .. } => "image_damaged",
            Self::BadRecord { .. } => "image_record",
            Self::Newer { .. } => "image_newer",
            Self::NoWriter { .. } => "image_no_writer",
            Self::NeedsRoot { .. } => "needs_root",
            Self::Busy { .. } => "build_busy",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Disk(error) => error.advice(),
            Self::Program(error) => error.advice(),
            Self::Package(error) => error.advice(),
            Self::Client(error) => error.advice(),
            Self::Registry(error) => error.advice(),
            Self::Stopped => Some("Try again.".into()),
            Self::Archive { source, .. } => source.advice(),
            Self::NotImportable { .. } => {
                Some("Name a directory or a tar archive that holds a root file system.".into())
            }
            Self::BadName { .. } => Some("Choose another name, such as my-image.".into()),
            Self::BadReference { .. } => {
                Some("Name an image as aleph image ls shows it, or by its digest.".into())
            }
            Self::UnknownRecipe { .. } => Some(format!("Recipes: {}.", Recipe::names())),
            Self::NotFound { reference, near } => Some(not_found(reference, near)),
            Self::Ambiguous { .. } => Some("Give more digits of the digest.".into()),
            Self::InUse { .. } => {
                Some("Stop the jobs that use it first: aleph ps shows them.".into())
            }
            Self::StillNamed { .. } => {
                Some("Remove its names; the image goes with the last one.".into())
            }
            Self::Damaged { .. } | Self::BadRecord { .. } => {
                Some("Remove it with aleph image rm and build it again.".into())
            }
            Self::Newer { .. } => Some("Use the newer aleph, or build the image again.".into()),
            Self::NoWriter { .. } => None,
            Self::NeedsRoot { .. } => Some("Run it as root.".into()),
            Self::Busy { .. } => Some("Wait for it to end, then try again.".into()),
        }
    }
}

fn not_found(reference: &str, near: &[String]) -> String {
    if reference.parse::<Recipe>().is_ok() {
        return format!("Build it: aleph image build {reference}.");
    }
    let meant = if near.is_empty() {
        String::new()
    } else {
        format!("Did you mean {}? ", near.join(" or "))
    };
    format!(
        "{meant}aleph image ls shows the images that are here; aleph image pull NAME gets one \
         from a registry, aleph image build NAME makes one of {}, aleph image import PATH \
         --name NAME one of your own.",
        Recipe::names()
    )
}
