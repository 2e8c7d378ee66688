//! Why a template could not be made.

use crate::guest::AgentError;
use crate::hypervisor::LaunchError;
use crate::place::PlaceError;
use crate::vm::VmError;
use aleph_types::{Classify, ErrorClass, MiB, Problem};
use aleph_vm_networking::NetworkError;
use std::io;
use std::path::{Path, PathBuf};

/// A template that could not be made.
#[derive(Debug, thiserror::Error)]
pub(in crate::functions) enum TemplateError {
    /// Its image or code is not there.
    #[error("{}", .0.message)]
    Image(Problem),
    /// It could not be made a moment ago.
    #[error("{}", .0.message)]
    Before(Problem),
    /// Functions have all the memory that they may have.
    #[error("functions have all the memory that they may have: there is no room for a template")]
    Memory,
    /// The runtime or the function did not initialise.
    #[error("the function does not initialise: {0}")]
    Initialise(String),
    /// The VM did not do what it should.
    #[error("the template's VM failed")]
    Vm(#[from] VmError),
    /// The guest did not do what it should.
    #[error("the template's guest failed")]
    Agent(#[from] AgentError),
    /// It could not be connected.
    #[error("the template cannot be connected")]
    Network(#[from] NetworkError),
    /// Its VMM cannot have what it needs.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A place for it could not be made.
    #[error("cannot make room for the template")]
    Place(#[from] PlaceError),
    /// The image that it was pinned to is not there any more.
    #[error("the image {digest} is gone, which {reference} was when the version was prepared")]
    ImageGone { reference: String, digest: String },
    /// The disk would be nearly full with it.
    #[error("a template takes {needed} of disk, and {free} may be taken yet")]
    Disk { needed: MiB, free: MiB },
    /// Nobody waits for it any more, or the node ends.
    #[error("making the template was given up")]
    GivenUp,
    /// The link to it could not be made.
    #[error("cannot make the link to a template's guest")]
    Link(#[source] io::Error),
    /// A file could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Classify for TemplateError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Image(problem) | Self::Before(problem) => problem.class,
            Self::Memory | Self::Disk { .. } => ErrorClass::Capacity,
            Self::ImageGone { .. } => ErrorClass::NotFound,
            Self::Initialise(_) => ErrorClass::Invalid,
            Self::Network(error) => error.class(),
            Self::Launch(error) => error.class(),
            Self::Vm(_)
            | Self::Agent(_)
            | Self::Place(_)
            | Self::GivenUp
            | Self::Link(_)
            | Self::File { .. } => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Image(_) => "function_image",
            Self::Before(_) => "function_template",
            Self::Memory => "function_memory",
            Self::ImageGone { .. } => "function_image_gone",
            Self::Disk { .. } => "function_disk",
            Self::GivenUp => "template_given_up",
            Self::Initialise(_) => "function_init",
            Self::Network(error) => error.code(),
            Self::Launch(error) => error.code(),
            Self::Vm(_) | Self::Agent(_) => "template_vm",
            Self::Place(_) | Self::Link(_) | Self::File { .. } => "template_files",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Image(problem) | Self::Before(problem) => problem.advice.clone(),
            Self::Initialise(_) => {
                Some("See that the handler's module loads, and deploy it again.".into())
            }
            Self::Network(error) => error.advice(),
            Self::Launch(error) => error.advice(),
            Self::ImageGone { reference, .. } => Some(format!(
                "Fetch that image again, or update the function's code, which then has what \
                 {reference} is now."
            )),
            Self::Disk { .. } => Some(
                "Remove functions, jobs or images that nobody needs (aleph prune), or keep the \
                 node's state on a larger disk."
                    .into(),
            ),
            _ => None,
        }
    }
}

/// An error with a file.
pub(super) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TemplateError {
    move |source| TemplateError::File {
        what,
        path: path.to_owned(),
        source,
    }
}
