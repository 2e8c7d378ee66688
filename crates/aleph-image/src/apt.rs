//! Debian packages: what apt knows of one, and fetching it.

use crate::digest::Digest;
use crate::disk::{DiskError, Doing, ensure_room};
use crate::program::{Program, ProgramError};
use crate::progress::Progress;
use aleph_types::{Classify, ErrorClass};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

const QUERY_LIMIT: Duration = Duration::from_secs(60);
const UPDATE_LIMIT: Duration = Duration::from_secs(300);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);
const UNPACK_LIMIT: Duration = Duration::from_secs(300);
/// More than any package's description has.
const MOST_OUTPUT: u64 = 4 << 20;

/// A package that could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No configured source has it.
    #[error("apt knows no package {name} that can be downloaded")]
    Unknown {
        /// The package.
        name: String,
    },
    /// What was downloaded is not what apt's lists promise.
    #[error("the download of {name} has the digest {found}, apt's lists say {expected}")]
    WrongDigest {
        /// The package.
        name: String,
        /// What the lists say.
        expected: Digest,
        /// What arrived.
        found: Digest,
    },
    /// The package is there and lacks what it should have.
    #[error("the package {name} has no {what}")]
    Lacks {
        /// The package.
        name: String,
        /// What it lacks.
        what: String,
    },
}

impl Classify for PackageError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Program(error) => error.class(),
            Self::Disk(error) => error.class(),
            Self::Unknown { .. } | Self::WrongDigest { .. } => ErrorClass::Unavailable,
            Self::Lacks { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Program(error) => error.code(),
            Self::Disk(error) => error.code(),
            Self::Unknown { .. } => "package_unknown",
            Self::WrongDigest { .. } => "package_digest",
            Self::Lacks { .. } => "package_content",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Program(error @ ProgramError::Missing { .. }) => error.advice(),
            Self::Program(_) => Some(
                "See that the sources in /etc/apt can be reached, then try again: \
                 apt-get update shows what is wrong with them."
                    .into(),
            ),
            Self::Disk(error) => error.advice(),
            Self::Unknown { name } => Some(format!(
                "Add a source that has {name} to /etc/apt/sources.list.d and run apt-get update."
            )),
            Self::WrongDigest { .. } => Some("Run apt-get update and try again.".into()),
            Self::Lacks { .. } => None,
        }
    }
}

/// What apt's lists say of one version of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) depends: String,
    pub(crate) sha256: Digest,
    pub(crate) size: u64,
}

impl Package {
    /// The candidate of `name`, or the version given as `name=version`.
    pub(crate) fn show(name: &str) -> Result<Self, PackageError> {
        let shown = Program::find("apt-cache", "apt", QUERY_LIMIT)?
            .args(["show", "--no-all-versions", "--", name])
            .output(MOST_OUTPUT);
        let text = match shown {
            // apt-cache ends with 100 when it knows no such package.
            Err(ProgramError::Failed { status, .. }) if status.code() == Some(100) => String::new(),
            other => other?,
        };
        parse(&text).ok_or_else(|| PackageError::Unknown {
            name: name.to_owned(),
        })
    }

    /// Downloads it into the empty folder `dir` and checks its digest.
    pub(crate) fn download(
        &self,
        dir: &Path,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, PackageError> {
        ensure_room("download a package to", dir, self.size)?;
        progress.begin(&format!("download {}", self.name), Some(self.size));
        let mut seen = 0;
        let downloaded = Program::find("apt-get", "apt", DOWNLOAD_LIMIT)?
            // Its usual user cannot write to our private work folder.
            .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .arg(format!("{}={}", self.name, self.version))
            .in_dir(dir)
            .run(|| {
                let now = bytes_in(dir).min(self.size);
                progress.advance(now.saturating_sub(seen));
                seen = seen.max(now);
            });
        downloaded.map_err(|error| {
            if error.is_disk_full() {
                DiskError::full("download a package to", dir, Some(self.size)).into()
            } else {
                PackageError::from(error)
            }
        })?;
        progress.end();
        let file = fs::read_dir(dir)
            .doing("list", dir)?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .ok_or_else(|| PackageError::Unknown {
                name: self.name.clone(),
            })?;
        let (found, _) = Digest::of_file(&file, "check the package", progress)?;
        if found != self.sha256 {
            return Err(PackageError::WrongDigest {
                name: self.name.clone(),
                expected: self.sha256,
                found,
            });
        }
        Ok(file)
    }
}

/// Does `work` with apt's lists as they are, and once more with fresh ones if that fails in a
/// way that old or empty lists explain.
pub(crate) fn with_fresh_lists<T, E: From<PackageError>>(
    progress: &mut dyn Progress,
    mut work: impl FnMut(&mut dyn Progress) -> Result<T, E>,
    stale: impl FnOnce(&E) -> bool,
) -> Result<T, E> {
    match work(progress) {
        Err(error) if stale(&error) => {}
        other => return other,
    }
    progress.begin("apt-get update", None);
    Program::find("apt-get", "apt", UPDATE_LIMIT)
        .and_then(|program| program.args(["-q", "update"]).run(|| {}))
        .map_err(PackageError::from)?;
    progress.end();
    work(progress)
}

impl PackageError {
    /// Whether fresh lists may help: nothing known of the package, a file that the mirror no
    /// longer has, or another one than the lists promise.
    pub(crate) fn may_be_stale(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::WrongDigest { .. } => true,
            Self::Program(ProgramError::Failed { program, .. }) => program == "apt-get",
            Self::Program(_) | Self::Disk(_) | Self::Lacks { .. } => false,
        }
    }
}

/// Reads the content of the package in the file `deb` as a tar stream.
pub(crate) fn content<T, E>(
    deb: &Path,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, E>,
) -> Result<T, E>
where
    E: From<ProgramError>,
{
    Program::find("dpkg-deb", "dpkg", UNPACK_LIMIT)?
        .arg("--fsys-tarfile")
        .arg(deb)
        .stream(consume)
}

fn parse(text: &str) -> Option<Package> {
    // Several stanzas: one per source that has the version, or one of an installed package,
    // which has no digest since dpkg wrote it.
    text.split("\n\n").find_map(|stanza| {
        let fields: BTreeMap<&str, &str> = stanza
            .lines()
            .filter(|line| !line.starts_with([' ', '\t']))
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key, value.trim()))
            .collect();
        Some(Package {
            name: (*fields.get("Package")?).to_owned(),
            version: (*fields.get("Version")?).to_owned(),
            depends: fields
                .get("Depends")
                .copied()
                .unwrap_or_default()
                .to_owned(),
            sha256: Digest::from_hex(fields.get("SHA256")?)?,
            size: fields.get("Size")?.parse().ok()?,
        })
    })
}

/// Bytes in all files below `dir`: apt writes into a folder of its own first.
fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "\
Package: linux-image-cloud-amd64
Status: install ok installed
Version: 6.1.1-1

Package: linux-image-cloud-amd64
Version: 6.1.1-1
Depends: linux-image-6.1.0-1-cloud-amd64 (= 6.1.1-1)
Description: Linux for x86-64 cloud
 Version: 9
Size: 1504
SHA256: 00be21c0c17f08ddf26e82d3b53fe7a41efa4a288938da6bb69e89c4b25c281d
";

    #[test]
    fn the_stanza_that_can_be_downloaded_is_the_one() {
        let package = parse(SHOWN).unwrap();
        assert_eq!(package.version, "6.1.1-1");
        assert_eq!(
            package.depends,
            "linux-image-6.1.0-1-cloud-amd64 (= 6.1.1-1)"
        );
        assert_eq!(package.size, 1504);
    }

    #[test]
    fn nothing_downloadable_is_nothing() {
        assert_eq!(parse(""), None);
        assert_eq!(
            parse("Package: x\nVersion: 1\nSize: 3\nSHA256: beef\n"),
            None
        );
    }

    #[test]
    fn an_error_that_fresh_lists_cannot_mend_is_final() {
        let mut calls = 0;
        let refused: Result<(), _> = with_fresh_lists(
            &mut crate::NoProgress,
            |_| {
                calls += 1;
                Err(PackageError::Lacks {
                    name: "x".into(),
                    what: "y".into(),
                })
            },
            PackageError::may_be_stale,
        );
        assert!(matches!(refused, Err(PackageError::Lacks { .. })));
        assert_eq!(calls, 1);
    }
}
