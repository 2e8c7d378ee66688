//! Versions of Firecracker, and what each of them brought.
//!
//! [`Version`] is read from what `firecracker --version` prints. [`Feature`] names what not every
//! version from [`Version::OLDEST`] on has; [`Feature::require`] refuses one that is missing, and
//! says which version has it.
//!
//! The facts are from Firecracker's `CHANGELOG.md` and its API description at each tag.

use aleph_types::{Classify, ErrorClass};
use std::fmt;
use std::str::FromStr;

/// A release of Firecracker, such as 1.16.1. A build between two releases (`1.17.0-dev`) counts as
/// the release that it is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number. Each new one can bring features, and a snapshot format of its own.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl Version {
    /// The oldest one that is supported.
    pub const OLDEST: Self = Self::new(1, 10, 0);

    /// The newest one whose API is known. Later patches of it are supported too.
    pub const NEWEST: Self = Self::new(1, 17, 0);

    /// The version of those three numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Reads what `firecracker --version` prints: `Firecracker v1.12.0` in the first line. The
    /// lines after it are log, and ignored.
    ///
    /// # Errors
    /// [`VersionError::NotFirecracker`] where the first line is another. The range is not looked
    /// at: that is [`Version::check_supported`].
    pub fn of_program(output: &str) -> Result<Self, VersionError> {
        Self::after("Firecracker ", output)
    }

    /// Reads what `jailer --version` prints: `Jailer v1.12.0`. A release has both.
    ///
    /// # Errors
    /// As [`Version::of_program`].
    pub fn of_jailer(output: &str) -> Result<Self, VersionError> {
        Self::after("Jailer ", output)
    }

    fn after(word: &str, output: &str) -> Result<Self, VersionError> {
        let first = output.lines().next().unwrap_or_default();
        first
            .strip_prefix(word)
            .and_then(|version| version.trim_end().parse().ok())
            .ok_or_else(|| VersionError::NotFirecracker(first.chars().take(80).collect()))
    }

    /// Checks that it is one of 1.10 to 1.17.
    ///
    /// # Errors
    /// [`VersionError::NotSupported`], which says the range.
    pub fn check_supported(self) -> Result<(), VersionError> {
        let range =
            (Self::OLDEST.major, Self::OLDEST.minor)..=(Self::NEWEST.major, Self::NEWEST.minor);
        if range.contains(&(self.major, self.minor)) {
            Ok(())
        } else {
            Err(VersionError::NotSupported(self))
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Reads `1.16.1`, `v1.16.1` or `1.17.0-dev`.
impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let numbers = text.strip_prefix('v').unwrap_or(text);
        let numbers = numbers.split(['-', '+']).next().unwrap_or_default();
        let mut numbers = numbers.split('.').map(|number| {
            Some(number)
                .filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|n| n.parse::<u32>().ok())
        });
        let mut next = || numbers.next().flatten();
        match (next(), next(), next(), numbers.next()) {
            (Some(major), Some(minor), Some(patch), None) => Ok(Self::new(major, minor, patch)),
            _ => Err(VersionError::NotFirecracker(
                text.chars().take(80).collect(),
            )),
        }
    }
}

/// A program that cannot be driven.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// It does not say a version of Firecracker.
    #[error("{0:?} is no version of Firecracker")]
    NotFirecracker(String),
    /// Its API is not known.
    #[error("Firecracker {0} is not supported: 1.10 to {newest} are", newest = newest_series())]
    NotSupported(Version),
}

fn newest_series() -> String {
    format!("{}.{}", Version::NEWEST.major, Version::NEWEST.minor)
}

impl Classify for VersionError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unavailable
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFirecracker(_) => "firecracker_unknown",
            Self::NotSupported(_) => "firecracker_unsupported",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(format!(
            "Install a Firecracker of 1.10 to {}.",
            newest_series()
        ))
    }
}

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $text:literal since $($since:tt)|+;)*) => {
        /// What some supported versions lack.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Feature {
            $($(#[$doc])* $name,)*
        }

        impl Feature {
            /// All of them, in the order of the versions that brought them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The versions that brought it: one, or one for each series of releases that got it.
            #[must_use]
            pub const fn since(self) -> &'static [Version] {
                match self {
                    $(Self::$name => {
                        const SINCE: &[Version] = &[$(features!(@version $since)),+];
                        SINCE
                    })*
                }
            }
        }

        impl fmt::Display for Feature {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
    (@version ($major:literal, $minor:literal, $patch:literal)) => {
        Version::new($major, $minor, $patch)
    };
}

features! {
    /// `huge_pages` of a guest that boots with an initrd.
    HugePagesWithInitrd = "huge pages beside an initrd" since (1, 11, 0);
    /// `network_overrides` of a load.
    NetworkOverrides = "other network devices at a load (network_overrides)" since (1, 12, 0);
    /// `track_dirty_pages` of a load, by that name. Before, it was `enable_diff_snapshots`: the
    /// older name is written there, so nothing is refused for want of this.
    TrackDirtyPagesOnLoad = "track_dirty_pages at a load" since (1, 13, 0);
    /// `imds_compat` of the MMDS.
    ImdsCompat = "an MMDS that answers as EC2's does (imds_compat)" since (1, 13, 0);
    /// `--enable-pci`: virtio devices on PCI.
    Pci = "PCI (--enable-pci)" since (1, 13, 0);
    /// A CPU configuration within the configuration file, rather than in a file of its own.
    InlineCpuConfig = "a cpu-config inside the configuration file" since (1, 13, 0);
    /// Diff snapshots of a guest whose writes KVM did not track.
    DiffWithoutTracking = "diff snapshots without track_dirty_pages" since (1, 13, 0);
    /// `huge_pages` beside a balloon.
    HugePagesWithBalloon = "huge pages beside a balloon" since (1, 14, 0);
    /// `/pmem`.
    Pmem = "pmem devices" since (1, 14, 0);
    /// `/serial`.
    Serial = "a configurable serial console" since (1, 14, 0);
    /// `/hotplug/memory`.
    MemoryHotplug = "memory hotplug" since (1, 14, 0);
    /// `free_page_hinting` of the balloon, and `/balloon/hinting`.
    FreePageHinting = "free page hinting" since (1, 14, 0);
    /// `free_page_reporting` of the balloon.
    FreePageReporting = "free page reporting" since (1, 14, 0);
    /// `clock_realtime` of a load.
    ClockRealtime = "a clock that goes on at a load (clock_realtime)" since (1, 14, 4) | (1, 15, 1);
    /// Drives, network interfaces and pmem devices that come and go while the guest runs. Needs
    /// [`Feature::Pci`] switched on.
    DeviceHotplug = "devices that are plugged and unplugged after boot" since (1, 16, 0);
    /// `rate_limiter` of a pmem device, and changing it.
    PmemRateLimiter = "rate limiters of pmem devices" since (1, 16, 0);
    /// `mtu` of a network interface.
    Mtu = "an MTU for network interfaces" since (1, 16, 0);
    /// `rate_limiter` of the serial console.
    SerialRateLimiter = "a rate limiter of the serial console" since (1, 16, 0);
    /// `vsock_override` of a load.
    VsockOverride = "another vsock socket at a load (vsock_override)" since (1, 16, 0);
    /// `huge_pages` of `Transparent`.
    TransparentHugePages = "transparent huge pages" since (1, 17, 0);
    /// `huge_pages` of a load.
    HugePagesOnLoad = "a choice of huge pages at a load" since (1, 17, 0);
    /// `emit_id` and `properties` of the metrics.
    MetricsLabels = "metrics that carry an id and properties" since (1, 17, 0);
    /// Kernels as a `bzImage`, beside uncompressed ELF ones.
    BzImage = "kernels in bzImage form" since (1, 17, 0);
}

impl Feature {
    /// Whether a version has it.
    ///
    /// ```
    /// # use aleph_executor::firecracker::{Feature, Version};
    /// assert!(Feature::ClockRealtime.is_in(Version::new(1, 14, 4)));
    /// assert!(!Feature::ClockRealtime.is_in(Version::new(1, 15, 0)));
    /// ```
    #[must_use]
    pub fn is_in(self, version: Version) -> bool {
        let series = |v: Version| (v.major, v.minor);
        let brought = self.since();
        brought
            .iter()
            .any(|since| series(*since) == series(version) && version.patch >= since.patch)
            || brought
                .last()
                .is_some_and(|since| series(version) > series(*since))
    }

    /// Refuses it where a version lacks it.
    ///
    /// # Errors
    /// [`Unsupported`], with the version that has it.
    pub fn require(self, version: Version) -> Result<(), Unsupported> {
        if self.is_in(version) {
            return Ok(());
        }
        Err(Unsupported {
            feature: self,
            version,
        })
    }
}

/// A feature that a version of Firecracker lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Firecracker {version} does not have {feature}; it came with {}", Since(*feature))]
pub struct Unsupported {
    /// What is missing.
    pub feature: Feature,
    /// The version that is there.
    pub version: Version,
}

/// The versions that brought a feature, in words.
struct Since(Feature);

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, since) in self.0.since().iter().enumerate() {
            let between = if i == 0 { "" } else { " and " };
            write!(f, "{between}{since}")?;
        }
        Ok(())
    }
}

impl Classify for Unsupported {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unavailable
    }

    fn code(&self) -> &'static str {
        "firecracker_too_old"
    }

    fn advice(&self) -> Option<String> {
        let newest = self.feature.since().last()?;
        Some(format!(
            "Install Firecracker {newest} or later, or do without."
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_program_is_its_version() {
        let version = |text| Version::of_program(text);
        let output = "Firecracker v1.12.0\n\n2026-01-01T00:00:00 [anonymous-instance:main] \
                      Firecracker exiting successfully. exit_code=0\n";
        assert_eq!(version(output), Ok(Version::new(1, 12, 0)));
        assert_eq!(
            version("Firecracker v1.17.0-dev"),
            Ok(Version::new(1, 17, 0))
        );
        for other in [
            "",
            "Firecracker",
            "Firecracker v1.12",
            "Firecracker v1.12.0.1",
            "Firecracker v1.-2.0",
            "Firecracker v1.+2.0",
            "Firecracker v99999999999.0.0",
            "Jailer v1.12.0",
            "\nFirecracker v1.12.0",
        ] {
            assert!(
                matches!(version(other), Err(VersionError::NotFirecracker(_))),
                "{other:?}"
            );
        }
    }

    #[test]
    fn the_supported_range_ends_where_the_api_is_not_known() {
        for (text, is_supported) in [
            ("1.9.1", false),
            ("1.10.0", true),
            ("1.17.3", true),
            ("1.18.0", false),
            ("2.0.0", false),
            ("0.25.0", false),
        ] {
            let version: Version = text.parse().unwrap();
            assert_eq!(version.check_supported().is_ok(), is_supported, "{text}");
        }
    }

    #[test]
    fn a_missing_feature_names_itself_and_its_versions() {
        let refused = Feature::ClockRealtime.require(Version::new(1, 15, 0));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "Firecracker 1.15.0 does not have a clock that goes on at a load (clock_realtime); \
             it came with 1.14.4 and 1.15.1"
        );
    }

    #[test]
    fn features_are_in_the_versions_that_brought_them_and_after() {
        for feature in Feature::ALL {
            for since in feature.since() {
                assert!(feature.is_in(*since));
                assert!(feature.is_in(Version::new(since.major, since.minor, since.patch + 7)));
            }
            assert!(!feature.is_in(Version::OLDEST), "{feature}: no need for it");
            assert!(feature.is_in(Version::NEWEST), "{feature}");
            assert!(feature.is_in(Version::new(2, 0, 0)), "{feature}");
        }
        assert!(!Feature::ClockRealtime.is_in(Version::new(1, 14, 3)));
        assert!(Feature::ClockRealtime.is_in(Version::new(1, 16, 0)));
    }
}
