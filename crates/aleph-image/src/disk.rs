//! File operations that failed, and what is known about the disk they failed on.

use aleph_types::{Classify, ErrorClass};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed: what, on which path, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct DiskError {
    /// What was tried, as a verb phrase.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Bytes free on the file system of `path`, where the disk is full and this is known.
    pub free: Option<u64>,
    /// Bytes that the operation needed, where known.
    pub needed: Option<u64>,
    /// What the kernel said.
    pub source: io::Error,
}

impl DiskError {
    pub(crate) fn new(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let full = is_full(&source);
        Self {
            operation,
            path: path.to_owned(),
            free: full.then(|| free_bytes(path)).flatten(),
            needed: None,
            source,
        }
    }

    /// The disk is full, as something other than our own system call has told.
    pub(crate) fn full(operation: &'static str, path: &Path, needed: Option<u64>) -> Self {
        let source = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        Self {
            needed,
            ..Self::new(operation, path, source)
        }
    }

    /// Whether there is no room left, on the disk or in the user's quota.
    #[must_use]
    pub fn is_full(&self) -> bool {
        is_full(&self.source)
    }
}

fn is_full(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Classify for DiskError {
    fn class(&self) -> ErrorClass {
        if self.is_full() {
            ErrorClass::Capacity
        } else if self.source.kind() == io::ErrorKind::PermissionDenied {
            ErrorClass::Unavailable
        } else {
            ErrorClass::Internal
        }
    }

    fn code(&self) -> &'static str {
        if self.is_full() {
            "disk_full"
        } else if self.source.kind() == io::ErrorKind::PermissionDenied {
            "disk_permission"
        } else {
            "disk"
        }
    }

    fn advice(&self) -> Option<String> {
        if self.is_full() {
            let mut figures: Vec<String> = Vec::new();
            figures.extend(self.free.map(|n| format!("{} free", readable(n))));
            figures.extend(self.needed.map(|n| format!("{} needed", readable(n))));
            let figures = if figures.is_empty() {
                String::new()
            } else {
                format!(" ({})", figures.join(", "))
            };
            return Some(format!(
                "Make room on the file system of {}{figures}, or remove images with \
                 aleph image rm.",
                self.path.display()
            ));
        }
        (self.source.kind() == io::ErrorKind::PermissionDenied)
            .then(|| "Run it as root, or name another state folder with --root.".into())
    }
}

/// Names the operation and the path of an I/O error.
pub(crate) trait Doing<T> {
    fn doing(self, operation: &'static str, path: &Path) -> Result<T, DiskError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, operation: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|error| DiskError::new(operation, path, error.into()))
    }
}

/// Bytes free for us on the file system that `path` is on, or would be on.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    path.ancestors()
        .find_map(|p| {
            rustix::fs::statvfs(if p.as_os_str().is_empty() {
                Path::new(".")
            } else {
                p
            })
            .ok()
        })
        .map(|v| v.f_bavail.saturating_mul(v.f_frsize))
}

/// Refuses at once what cannot fit on the file system of `path`.
pub(crate) fn ensure_room(
    operation: &'static str,
    path: &Path,
    needed: u64,
) -> Result<(), DiskError> {
    match free_bytes(path) {
        Some(free) if free < needed => Err(DiskError::full(operation, path, Some(needed))),
        _ => Ok(()),
    }
}

/// Makes an entry's rename or removal last through a power failure.
pub(crate) fn sync_dir(path: &Path) -> Result<(), DiskError> {
    std::fs::File::open(path)
        .and_then(|dir| dir.sync_all())
        .doing("sync", path)
}

/// A size as people read it.
pub(crate) fn readable(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if bytes >= size {
            return format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_a_matter_of_capacity_and_says_how_much() {
        let mut error = DiskError::full("write", Path::new("/"), Some(3 << 20));
        assert_eq!(
            (error.class(), error.code()),
            (ErrorClass::Capacity, "disk_full")
        );
        error.free = Some(1536);
        let advice = error.advice().unwrap();
        assert!(
            advice.contains("(1.5 KiB free, 3.0 MiB needed)"),
            "{advice}"
        );
        assert_eq!(error.to_string(), "cannot write /");
    }

    #[test]
    fn what_cannot_fit_is_refused_before_it_is_written() {
        assert!(ensure_room("write", Path::new("/tmp/not/there"), u64::MAX).is_err());
        assert!(ensure_room("write", Path::new("/tmp/not/there"), 0).is_ok());
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(readable(17), "17 bytes");
        assert_eq!(readable((5 << 30) + (1 << 29)), "5.5 GiB");
    }
}
