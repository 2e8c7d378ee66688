//! The path of an archive's entry, made safe.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Linux takes no longer ones (`NAME_MAX`, `PATH_MAX`).
const LONGEST_COMPONENT: usize = 255;
const LONGEST_PATH: usize = 4095;
/// No image is as deep. Each folder on the way may be one that nobody paid for with an entry.
const DEEPEST: usize = 256;

/// Why an archive's path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It has a `..` component, and so could lead out of the image.
    #[error("it has a .. component")]
    Parent,
    /// It has a NUL byte.
    #[error("it has a NUL byte")]
    Nul,
    /// It, or one of its components, is longer than Linux allows.
    #[error("it is longer than Linux allows")]
    Long,
    /// It is below more than 255 folders.
    #[error("it is more than {DEEPEST} levels deep")]
    Deep,
}

/// The path below the image's root that `raw` means: without `/` and `.` in front or between.
///
/// The root itself is the empty path. Symlinks are not looked at here: whoever opens the path
/// has the kernel resolve it below the image's root.
pub(crate) fn below_root(raw: &[u8]) -> Result<PathBuf, PathFault> {
    if raw.len() > LONGEST_PATH {
        return Err(PathFault::Long);
    }
    if raw.contains(&0) {
        return Err(PathFault::Nul);
    }
    let (mut path, mut depth) = (PathBuf::new(), 0);
    for component in raw.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(PathFault::Parent),
            long if long.len() > LONGEST_COMPONENT => return Err(PathFault::Long),
            _ if depth == DEEPEST => return Err(PathFault::Deep),
            name => {
                path.push(OsStr::from_bytes(name));
                depth += 1;
            }
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    #[test]
    fn paths_are_taken_below_the_root() {
        for (raw, expected) in [
            ("./", ""),
            ("/etc/passwd", "etc/passwd"),
            (".//usr/./bin/", "usr/bin"),
            ("...", "..."),
        ] {
            assert_eq!(below_root(raw.as_bytes()), Ok(expected.into()), "{raw}");
        }
    }

    #[test]
    fn paths_that_could_lead_out_or_nowhere_are_refused() {
        for (raw, fault) in [
            ("..", PathFault::Parent),
            ("a/../b", PathFault::Parent),
            ("/../etc", PathFault::Parent),
            ("a\0b", PathFault::Nul),
            (&"x".repeat(256), PathFault::Long),
            (&"x/".repeat(2048), PathFault::Long),
            (&"x/".repeat(257), PathFault::Deep),
        ] {
            assert_eq!(below_root(raw.as_bytes()), Err(fault), "{raw}");
        }
        assert!(below_root("x/".repeat(256).as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_passes_has_normal_components_only(
            raw in proptest::collection::vec(
                prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..64,
            )
        ) {
            if let Ok(path) = below_root(&raw) {
                prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
                prop_assert!(path.is_relative());
                // Once made safe, always safe.
                prop_assert_eq!(below_root(path.as_os_str().as_bytes()), Ok(path));
            }
        }
    }
}
