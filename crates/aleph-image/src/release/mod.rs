//! Releases of Firecracker on disk: `firecracker` and `jailer` of one version in one folder, any
//! number of versions side by side.
//!
//! Start at [`Releases::open`] and [`Releases::install`]. An archive comes from a file or from an
//! HTTP server; its SHA-256 has to be the one that is pinned for its version, or for a version
//! without a pin, the one that the caller gives. Only then is it unpacked. A version appears as a
//! whole by a rename, or not at all, and never changes; `default` is a symbolic link to one of them.
//!
//! The crate knows no more of these programs than their names.

mod archive;
mod error;
mod fetch;
mod pins;

pub use error::ReleaseError;

use crate::digest::Digest;
use crate::disk::Doing;
use crate::lock;
use crate::progress::Progress;
use crate::staging::{self, Staging};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where releases are downloaded from by default; below it is `vVERSION/firecracker-vVERSION-ARCH.tgz`.
pub const BASE_URL: &str = "https://github.com/firecracker-microvm/firecracker/releases/download";
/// What is taken out of an archive.
const PROGRAMS: [&str; 2] = ["firecracker", "jailer"];
const FOLDER: &str = "firecracker";
const DEFAULT: &str = "default";
const RECORD: &str = "release.json";

/// A version of Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    major: u16,
    minor: u16,
    patch: u16,
}

impl Version {
    /// What is installed where nobody says which.
    pub const DEFAULT: Self = pins::DEFAULT;

    /// The version that the name of an archive says, such as `firecracker-v1.15.1-x86_64.tgz`.
    ///
    /// # Errors
    /// Where it says none.
    pub fn of_archive(file: &Path) -> Result<Self, ReleaseError> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("firecracker-v")
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(version, _)| version.parse().ok())
            .ok_or_else(|| ReleaseError::Unversioned(name.into_owned()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = ReleaseError;

    /// Reads `1.15.1` and `v1.15.1`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: Option<&str>| {
            let part = part.filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?;
            // One way of writing each: the name of a folder.
            (part == "0" || !part.starts_with('0')).then(|| part.parse().ok())?
        };
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut next = || number(parts.next());
        match (next(), next(), next(), parts.next()) {
            (Some(major), Some(minor), Some(patch), None) => Ok(Self {
                major,
                minor,
                patch,
            }),
            _ => Err(ReleaseError::BadVersion(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Version {
    type Error = ReleaseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

/// Where an archive comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'a> {
    /// A file on this host.
    File(&'a Path),
    /// A server with the layout of [`BASE_URL`].
    Base(&'a str),
}

/// A release that is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Which version.
    pub version: Version,
    /// For which architecture, as `uname -m` says it.
    pub arch: String,
    /// The SHA-256 of the archive that it came from.
    pub archive: Digest,
}

/// The releases of one node.
#[derive(Debug, Clone)]
pub struct Releases {
    dir: PathBuf,
}

impl Releases {
    /// The releases below a node's state folder. Work folders that dead processes left go.
    ///
    /// # Errors
    /// Where the folder cannot be made.
    pub fn open(state: &Path) -> Result<Self, ReleaseError> {
        let dir = state.join(FOLDER);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .doing("create", &dir)?;
        staging::sweep(&dir)?;
        Ok(Self { dir })
    }

    /// Installs a version for this host's architecture, unless it is there already. `sha256` is the
    /// archive's digest as 64 hex digits, which a version without a pinned one needs.
    ///
    /// Blocks while it copies and unpacks.
    ///
    /// # Errors
    /// Where the archive cannot be had, is not the right one, or is no release; all that was
    /// installed before is as it was.
    pub async fn install(
        &self,
        version: Version,
        from: Origin<'_>,
        sha256: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Release, ReleaseError> {
        let arch = std::env::consts::ARCH;
        let wanted = wanted(version, arch, sha256)?;
        if let Some(there) = self.release(version) {
            return same(there, wanted);
        }
        let staging = Staging::create(&self.dir)?;
        let archive = staging.path().join("archive.tgz");
        let (found, name) = match from {
            Origin::File(file) => {
                let found = fetch::copy(file, &archive, progress)?;
                (found, file.display().to_string())
            }
            Origin::Base(base) => {
                let base = base.trim_end_matches('/');
                let url = format!("{base}/v{version}/firecracker-v{version}-{arch}.tgz");
                (fetch::download(&url, &archive, progress).await?, url)
            }
        };
        if found != wanted {
            return Err(ReleaseError::WrongDigest {
                from: name,
                found,
                wanted,
            });
        }
        let object = staging.folder("release")?;
        archive::unpack(&archive, version, arch, &object)?;
        let release = Release {
            version,
            arch: arch.to_owned(),
            archive: wanted,
        };
        let record = object.join(RECORD);
        let json = serde_json::to_vec_pretty(&release)
            .map_err(io::Error::from)
            .doing("write", &record)?;
        fs::write(&record, json).doing("write", &record)?;
        pause_for_tests();
        if staging.commit_programs(&object, &version.to_string())? {
            return Ok(release);
        }
        // Another process was faster.
        match self.release(version) {
            Some(there) => same(there, wanted),
            None => Err(ReleaseError::Installed {
                version,
                installed: "which is not known".into(),
            }),
        }
    }

    /// Makes a version the one that VMs are run by.
    ///
    /// # Errors
    /// Where it is not installed.
    pub fn set_default(&self, version: Version) -> Result<(), ReleaseError> {
        if self.release(version).is_none() {
            return Err(ReleaseError::NotInstalled(version));
        }
        let _folder = lock::folder(&self.dir)?;
        let target = PathBuf::from(version.to_string());
        Ok(staging::replace_symlink(&self.dir.join(DEFAULT), &target)?)
    }

    /// Which version VMs are run by.
    #[must_use]
    pub fn default_version(&self) -> Option<Version> {
        let target = fs::read_link(self.dir.join(DEFAULT)).ok()?;
        target.to_str()?.parse().ok()
    }

    /// The folder of a version, with `firecracker` and `jailer` in it once it is installed.
    #[must_use]
    pub fn folder(&self, version: Version) -> PathBuf {
        self.dir.join(version.to_string())
    }

    /// What is installed of a version.
    #[must_use]
    pub fn release(&self, version: Version) -> Option<Release> {
        let record = fs::read(self.folder(version).join(RECORD)).ok()?;
        serde_json::from_slice(&record).ok()
    }
}

/// The digest that an archive has to have.
fn wanted(
    version: Version,
    arch: &'static str,
    sha256: Option<&str>,
) -> Result<Digest, ReleaseError> {
    let given = sha256
        .map(|hex| {
            let digits = hex.trim().strip_prefix("sha256:").unwrap_or(hex.trim());
            Digest::from_hex(digits).ok_or_else(|| ReleaseError::BadDigest(hex.to_owned()))
        })
        .transpose()?;
    match (pins::pinned(version, arch), given) {
        (Some(pinned), Some(given)) if pinned != given => Err(ReleaseError::PinDiffers {
            version,
            pinned,
            given,
        }),
        (Some(digest), _) | (None, Some(digest)) => Ok(digest),
        (None, None) => Err(ReleaseError::NoPin {
            version,
            arch,
            known: pins::versions(arch),
        }),
    }
}

fn same(there: Release, wanted: Digest) -> Result<Release, ReleaseError> {
    if there.archive == wanted {
        return Ok(there);
    }
    Err(ReleaseError::Installed {
        version: there.version,
        installed: there.archive.to_string(),
    })
}

/// In a build with debug assertions, waits for good before the release gets its name where
/// `ALEPH_RELEASE_PAUSE` names a file, which it makes: a test kills the process then.
fn pause_for_tests() {
    #[cfg(debug_assertions)]
    if let Some(path) = std::env::var_os("ALEPH_RELEASE_PAUSE") {
        let _ = fs::write(path, "");
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_in_one_way() {
        for text in ["1.15.1", "v1.15.1"] {
            assert_eq!(text.parse::<Version>().unwrap(), Version::DEFAULT);
        }
        for text in [
            "", "1", "1.15", "1.15.1.0", "1.15.x", "1.15.-1", "1.015.1", "../x", "1.15.1 ",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
        for (name, version) in [
            ("firecracker-v1.12.0-x86_64.tgz", Some("1.12.0")),
            ("/tmp/firecracker-v1.17.0-aarch64.tgz", Some("1.17.0")),
            ("firecracker.tgz", None),
            ("firecracker-v1.x-x86_64.tgz", None),
        ] {
            let found = Version::of_archive(Path::new(name)).ok();
            assert_eq!(found.map(|v| v.to_string()).as_deref(), version, "{name}");
        }
    }

    #[test]
    fn a_pin_is_not_overruled_and_what_has_none_needs_a_digest() {
        let pin = pins::pinned(Version::DEFAULT, "x86_64").unwrap();
        assert_eq!(wanted(Version::DEFAULT, "x86_64", None).unwrap(), pin);
        let same = wanted(Version::DEFAULT, "x86_64", Some(&pin.hex()));
        assert_eq!(same.unwrap(), pin);
        let other = "0".repeat(64);
        let error = wanted(Version::DEFAULT, "x86_64", Some(&other)).unwrap_err();
        assert!(matches!(error, ReleaseError::PinDiffers { .. }), "{error}");
        let unknown: Version = "1.13.1".parse().unwrap();
        let error = wanted(unknown, "x86_64", None).unwrap_err();
        use aleph_types::Classify;
        assert!(error.advice().unwrap().contains("--sha256 HEX"));
        assert_eq!(
            wanted(unknown, "x86_64", Some(&other)).unwrap().hex(),
            other
        );
        assert!(wanted(unknown, "x86_64", Some("abc")).is_err());
    }
}
