//! Which Firecracker is doubled, and what it therefore knows.

use std::fmt;
use std::path::Path;

/// Says which version is doubled, as `1.16.1`. Where it is not set, the program's name says it
/// (`firecracker-v1.13.2`, `firecracker-v1.13.2-x86_64`) or that of its folder
/// (`1.13.2/firecracker`): a jailer clears the environment.
pub(crate) const VARIABLE: &str = "FIRECRACKER_DOUBLE_VERSION";

/// A version of Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

/// The one that is doubled where nothing says which.
const DEFAULT: Version = Version::new(1, 16, 1);

impl Version {
    const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// The version that the environment or the program's own name says.
    pub(crate) fn doubled() -> Result<Self, String> {
        if let Ok(text) = std::env::var(VARIABLE) {
            return Self::parse(&text).ok_or_else(|| format!("{VARIABLE}={text} is no version"));
        }
        let program = std::env::args().next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default();
        let named = name
            .split('-')
            .filter_map(|word| word.strip_prefix('v'))
            .find_map(Self::parse);
        let folder = std::env::current_exe().ok();
        let folder = folder
            .as_deref()
            .and_then(Path::parent)
            .and_then(Path::file_name);
        let in_folder = || folder.and_then(|name| name.to_str()).and_then(Self::parse);
        Ok(named.or_else(in_folder).unwrap_or(DEFAULT))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('.').map(|part| part.parse().ok());
        let version = Self::new(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }

    /// Whether it is 1.`minor`.0 or later.
    pub(crate) fn has(self, minor: u32) -> bool {
        self >= Self::new(1, minor, 0)
    }

    /// Whether it takes `clock_realtime`, which two minor versions got by a patch.
    pub(crate) fn has_clock_realtime(self) -> bool {
        self.has(16)
            || (self.minor == 14 && self.patch >= 4)
            || (self.minor == 15 && self.patch >= 1)
    }

    /// The format of its snapshots.
    pub(crate) fn snapshots(self) -> &'static str {
        match (self.minor, self.patch) {
            (0..=10, 0) => "3.0.0",
            (0..=10, _) => "4.0.0",
            (11, _) => "5.0.0",
            (12, _) => "6.0.0",
            (13 | 14, _) => "8.0.0",
            (15, _) => "9.0.0",
            (16, _) => "10.0.0",
            _ => "11.0.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}
