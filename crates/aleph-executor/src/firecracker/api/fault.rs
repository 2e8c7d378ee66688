//! What is wrong with a configuration, found before anything is sent.

use crate::firecracker::version::{Feature, Unsupported, Version};
use aleph_types::{Classify, ErrorClass};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// The longest path that a Unix socket can be bound to, in bytes (`sun_path`, less its end).
pub const MAX_SOCKET_PATH: usize = 107;

/// The longest path that the kernel takes, in bytes, less its end.
const MAX_PATH: usize = 4095;

/// The longest name of a network interface, in bytes (`IFNAMSIZ`, less its end).
const MAX_INTERFACE: usize = 15;

/// The longest id, in bytes. Firecracker's server takes 1024 for the whole line of a request.
const MAX_ID: usize = 512;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, by the API's own names: `drives[1].rate_limiter.ops.size`. Empty where it is the whole.
    pub field: String,
    /// What.
    pub problem: Problem,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}", self.problem)
    }
}

/// What can be wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// This version does not have it.
    #[error(transparent)]
    Lacking(#[from] Unsupported),
    /// Nothing where something is needed.
    #[error("is empty")]
    Empty,
    /// Bytes that JSON cannot carry.
    #[error("is not UTF-8")]
    NotUtf8,
    /// A character that has no place there.
    #[error("contains {0:?}")]
    Character(char),
    /// Too many bytes.
    #[error("has {bytes} bytes, {max} at most")]
    TooLong {
        /// How many there are.
        bytes: usize,
        /// How many there may be.
        max: usize,
    },
    /// A number beyond its limits.
    #[error("is {value}, and has to be {min} to {max}")]
    OutOfRange {
        /// The number.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A number between two steps.
    #[error("is {value}, and has to be a multiple of {step}")]
    NotMultiple {
        /// The number.
        value: u64,
        /// The step.
        step: u64,
    },
    /// The same twice.
    #[error("{0:?} is there twice")]
    Twice(String),
    /// A name of something that is not there.
    #[error("there is no {0:?}")]
    Dangling(String),
    /// Two settings that exclude each other, or one that needs another.
    #[error("{0}")]
    Conflict(&'static str),
}

/// All that is wrong with a configuration; at least one thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    faults: Vec<Fault>,
}

impl Invalid {
    /// What is wrong, in the order of the fields.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// The features that the version lacks.
    pub fn lacking(&self) -> impl Iterator<Item = Unsupported> {
        self.faults.iter().filter_map(|fault| match fault.problem {
            Problem::Lacking(unsupported) => Some(unsupported),
            _ => None,
        })
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            let between = if i == 0 { "" } else { "; " };
            write!(f, "{between}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

impl Classify for Invalid {
    /// [`ErrorClass::Unavailable`] where nothing but the version is in the way.
    fn class(&self) -> ErrorClass {
        if self.lacking().count() == self.faults.len() {
            ErrorClass::Unavailable
        } else {
            ErrorClass::Invalid
        }
    }

    fn code(&self) -> &'static str {
        match self.class() {
            ErrorClass::Unavailable => "firecracker_too_old",
            _ => "firecracker_config",
        }
    }

    fn advice(&self) -> Option<String> {
        let newest = self.lacking().map(|lacking| lacking.feature.since().last());
        newest
            .max()
            .flatten()
            .map(|newest| format!("Install Firecracker {newest} or later, or do without."))
    }
}

/// Collects what is wrong, with where it is; [`super::Body::validate`] makes one.
#[derive(Debug)]
pub struct Check {
    version: Version,
    place: Vec<String>,
    faults: Vec<Fault>,
}

impl Check {
    /// For that version, with nothing found yet.
    pub(crate) const fn new(version: Version) -> Self {
        Self {
            version,
            place: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// What was found.
    pub(crate) fn end(self) -> Result<(), Invalid> {
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(Invalid {
            faults: self.faults,
        })
    }

    /// Looks at what is within a field.
    pub(crate) fn within(&mut self, field: impl Into<String>, look: impl FnOnce(&mut Self)) {
        self.place.push(field.into());
        look(self);
        self.place.pop();
    }

    /// Looks at each one of a list.
    pub(crate) fn each<T>(&mut self, field: &str, list: &[T], look: impl Fn(&mut Self, &T)) {
        for (i, item) in list.iter().enumerate() {
            self.within(format!("{field}[{i}]"), |check| look(check, item));
        }
    }

    pub(crate) fn fault(&mut self, field: &str, problem: impl Into<Problem>) {
        let mut place = self.place.clone();
        place.extend(Some(field.to_owned()).filter(|field| !field.is_empty()));
        self.faults.push(Fault {
            field: place.join("."),
            problem: problem.into(),
        });
    }

    /// Notes a feature that is used.
    pub(crate) fn uses(&mut self, field: &str, feature: Feature) {
        if let Err(unsupported) = feature.require(self.version) {
            self.fault(field, unsupported);
        }
    }

    pub(crate) fn refuse_if(&mut self, field: &str, is_wrong: bool, why: &'static str) {
        if is_wrong {
            self.fault(field, Problem::Conflict(why));
        }
    }

    pub(crate) fn range(&mut self, field: &str, value: impl Into<u64>, min: u64, max: u64) {
        let value = value.into();
        if value < min || value > max {
            self.fault(field, Problem::OutOfRange { value, min, max });
        }
    }

    pub(crate) fn multiple(&mut self, field: &str, value: impl Into<u64>, step: impl Into<u64>) {
        let (value, step) = (value.into(), step.into());
        if value.checked_rem(step).is_some_and(|rest| rest != 0) {
            self.fault(field, Problem::NotMultiple { value, step });
        }
    }

    /// A path as Firecracker opens it, within its jail.
    pub(crate) fn path(&mut self, field: &str, path: &Path) {
        self.path_of(field, path, MAX_PATH);
    }

    /// A path that Firecracker binds a socket to, or connects to.
    pub(crate) fn socket(&mut self, field: &str, path: &Path) {
        self.path_of(field, path, MAX_SOCKET_PATH);
    }

    fn path_of(&mut self, field: &str, path: &Path, max: usize) {
        match path.to_str() {
            None => self.fault(field, Problem::NotUtf8),
            Some(path) => {
                self.text(field, path, max);
                if path.contains('\0') {
                    self.fault(field, Problem::Character('\0'));
                }
            }
        }
    }

    /// A text that may not be empty.
    pub(crate) fn text(&mut self, field: &str, text: &str, max: usize) {
        if text.is_empty() {
            self.fault(field, Problem::Empty);
        } else if text.len() > max {
            let bytes = text.len();
            self.fault(field, Problem::TooLong { bytes, max });
        }
    }

    /// An id of a device: it is part of a path of the API, so letters, digits and underscores.
    ///
    /// Firecracker takes letters of any script. ASCII is all that needs no encoding.
    pub(crate) fn id(&mut self, field: &str, id: &str) {
        self.text(field, id, MAX_ID);
        let is_other = |c: &char| !c.is_ascii_alphanumeric() && *c != '_';
        if let Some(other) = id.chars().find(is_other) {
            self.fault(field, Problem::Character(other));
        }
    }

    /// The name of a network interface of the host.
    pub(crate) fn interface(&mut self, field: &str, name: &str) {
        self.text(field, name, MAX_INTERFACE);
        let is_other = |c: &char| c.is_ascii_whitespace() || matches!(c, '/' | ':' | '\0');
        if let Some(other) = name.chars().find(is_other) {
            self.fault(field, Problem::Character(other));
        }
    }

    /// Names, none of which may be there twice.
    pub(crate) fn once(&mut self, field: &str, names: impl IntoIterator<Item = String>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name.clone()) {
                self.fault(field, Problem::Twice(name));
            }
        }
    }
}
