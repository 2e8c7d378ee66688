//! What can go wrong between a node and a registry.

use crate::digest::Digest;
use crate::program::ProgramError;
use crate::recipe::ArchiveError;
use aleph_types::{Classify, ErrorClass};
use std::io;
use std::path::PathBuf;

/// An image that could not be had from a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry does not answer, or the connection broke.
    #[error("the registry {host} cannot be reached")]
    Unreachable {
        /// The registry's host, or its token service's.
        host: String,
        /// What failed.
        source: reqwest::Error,
    },
    /// The registry sends, but so slowly that it never ends.
    #[error("the registry {host} answers too slowly")]
    Stalled {
        /// The registry's host.
        host: String,
    },
    /// The registry does not let us have it.
    #[error("the registry {host} does not give {repository} to {}{}", if *logged_in { "the login that it has" } else { "those who are not logged in" }, told(message))]
    Unauthorized {
        /// The registry's host.
        host: String,
        /// The repository.
        repository: String,
        /// Whether a login was there and used.
        logged_in: bool,
        /// What the registry said; may be empty.
        message: String,
    },
    /// The registry has no such thing.
    #[error("the registry {host} has no {what}")]
    NotFound {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants us to ask less often.
    #[error("the registry {host} takes no more requests for now{}", told(message))]
    Limited {
        /// The registry's host.
        host: String,
        /// What it said; may be empty.
        message: String,
    },
    /// The registry answers with something else than what the specification says.
    #[error("the registry {host} answers with {status}{}", told(message))]
    Answer {
        /// The registry's host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What it said; may be empty.
        message: String,
    },
    /// The registry's answer has no proper form.
    #[error("the registry {host} gives no proper {what}: {why}")]
    Form {
        /// The registry's host.
        host: String,
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// What arrived is not what was asked for.
    #[error("{host} sent something else for {expected}: {found}")]
    Mismatch {
        /// Where it came from: a registry's host, or this node's store.
        host: String,
        /// What was asked for.
        expected: Digest,
        /// What is different.
        found: String,
        /// Whether a part was from an earlier download; it is removed, so another try helps.
        kept: bool,
    },
    /// It is there and is no image that a node can run.
    #[error("{reference} cannot be used: {why}")]
    Unsupported {
        /// The image.
        reference: String,
        /// What is missing or too much.
        why: String,
    },
    /// The image is not for this host's architecture.
    #[error("{reference} is not for {wanted}, but for {}", if offered.is_empty() { "nothing".into() } else { offered.join(", ") })]
    Platform {
        /// The image.
        reference: String,
        /// What this host is, such as `linux/amd64`.
        wanted: String,
        /// What the image is for.
        offered: Vec<String>,
    },
    /// A layer cannot be unpacked.
    #[error("the layer {layer} cannot be unpacked")]
    Layer {
        /// The layer's digest.
        layer: Digest,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// Docker's configuration file has no login that can be used.
    #[error("cannot get the login from {}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: CredentialError,
    },
    /// A certificate file cannot be used.
    #[error("cannot use the certificates in {}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

/// Why a login could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is not JSON, or not of docker's form.
    #[error("it is not valid JSON of docker's form")]
    Json(#[source] serde_json::Error),
    /// An entry is neither `user:password` in base64 nor anything else that is known.
    #[error("the login of {key:?} cannot be read: it has to be user:password in base64")]
    Auth {
        /// The entry's key.
        key: String,
    },
    /// A helper's name that is more than a name.
    #[error("{name:?} cannot be a credential helper's name")]
    HelperName {
        /// The name.
        name: String,
    },
    /// A helper failed.
    #[error(transparent)]
    Helper(ProgramError),
    /// A helper answered something else than the protocol says.
    #[error("the credential helper gives no proper answer")]
    Answer(#[source] serde_json::Error),
}

impl RegistryError {
    /// Whether asking the same place again may help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } => true,
            Self::Answer { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

impl Classify for RegistryError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::NotFound { .. } => ErrorClass::NotFound,
            Self::Unsupported { .. } | Self::Platform { .. } | Self::Unauthorized { .. } => {
                ErrorClass::Invalid
            }
            Self::Layer { source, .. } => source.class(),
            Self::Unreachable { .. }
            | Self::Stalled { .. }
            | Self::Limited { .. }
            | Self::Answer { .. }
            | Self::Form { .. }
            | Self::Mismatch { .. }
            | Self::Credentials { .. }
            | Self::Certificates { .. } => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "registry_unreachable",
            Self::Stalled { .. } => "registry_stalled",
            Self::Unauthorized { .. } => "registry_unauthorized",
            Self::NotFound { .. } => "registry_not_found",
            Self::Limited { .. } => "registry_limited",
            Self::Answer { .. } => "registry_answer",
            Self::Form { .. } => "registry_form",
            Self::Mismatch { .. } => "digest_mismatch",
            Self::Unsupported { .. } => "image_unsupported",
            Self::Platform { .. } => "image_platform",
            Self::Layer { source, .. } => source.code(),
            Self::Credentials { .. } => "registry_credentials",
            Self::Certificates { .. } => "registry_certificates",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { .. } => {
                "Check the name and the network; try again: what has arrived is kept.".into()
            }
            Self::Stalled { .. } => {
                "Try again later or use a mirror: what has arrived is kept.".into()
            }
            Self::Unauthorized {
                host, logged_in, ..
            } => {
                let check = if *logged_in {
                    "Check the login and the image's name"
                } else {
                    "Check the image's name, and put a login there if it is private"
                };
                format!("{check}: docker login {host} writes it to ~/.docker/config.json.")
            }
            Self::NotFound { .. } => "Check the image's name and tag.".into(),
            Self::Limited { .. } => "Wait, log in, or use a mirror.".into(),
            Self::Answer { .. } | Self::Form { .. } => {
                "Check that a registry is there; try again later or use a mirror.".into()
            }
            Self::Mismatch { kept: true, .. } => "Try again: what was damaged is removed.".into(),
            Self::Mismatch { .. } => "Try again, or use another registry or mirror.".into(),
            Self::Unsupported { .. } => "Use another image.".into(),
            Self::Platform { wanted, .. } => format!("Use an image that is built for {wanted}."),
            Self::Layer { source, .. } if source.class() == ErrorClass::Invalid => {
                "The image itself is broken or hostile: use another one.".into()
            }
            Self::Layer { source, .. } => return source.advice(),
            Self::Credentials { source, .. } => match source {
                CredentialError::Helper(error) => return error.advice(),
                _ => "Mend the file, or log in again with docker login.".into(),
            },
            Self::Certificates { .. } => {
                "Name a file of certificates in PEM form in the configuration.".into()
            }
        })
    }
}

fn told(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}
