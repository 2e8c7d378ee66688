//! The key of an encrypted repository, as its owner keeps it: a file.

use crate::error::BackupError;
use crate::id::Id;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The fewest bytes of a key: what `openssl rand -hex 32` writes has twice as many.
const LEAST: usize = 32;

/// The most bytes that are looked at.
const MOST: u64 = 4096;

/// `O_NONBLOCK` of open(2), as on every architecture of Linux that this is built for.
const NO_WAIT: i32 = 0o4000;

/// What opens an encrypted repository. Whoever has lost it has lost the backups.
///
/// It is a random key and no password: nothing makes guessing slow, so it has to be long.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key that these bytes are; a line's end behind them does not count.
    ///
    /// # Errors
    /// Says why they are none: there are too few.
    pub fn new(secret: &[u8]) -> Result<Self, &'static str> {
        let secret = secret.trim_ascii_end();
        if secret.len() < LEAST {
            return Err("it has less than 32 bytes");
        }
        let context = "aleph-backup 2026-11-29 content of a key file";
        Ok(Self(blake3::derive_key(context, secret)))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`BackupError::BadKey`] where it cannot be read, others can read it, or it is too short or too long.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let bad = |why: String| BackupError::BadKey {
            path: path.to_owned(),
            why,
        };
        let read = || {
            // Nobody waits for whoever writes to a pipe of that name.
            let file = File::options()
                .read(true)
                .custom_flags(NO_WAIT)
                .open(path)?;
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Err(std::io::Error::other("it is no regular file"));
            }
            let mut secret = Vec::new();
            file.take(MOST + 1).read_to_end(&mut secret)?;
            Ok::<_, std::io::Error>((meta, secret))
        };
        let (meta, secret) = read().map_err(|error| bad(error.to_string()))?;
        if meta.permissions().mode() & 0o007 != 0 {
            return Err(bad("everybody on this host can read it".to_owned()));
        }
        if u64::try_from(secret.len()).unwrap_or(u64::MAX) > MOST {
            return Err(bad("it is longer than 4096 bytes".to_owned()));
        }
        Self::new(&secret).map_err(|why| bad(why.to_owned()))
    }

    /// What the key of this repository is sealed with.
    pub(crate) fn for_repository(&self, id: &Id) -> [u8; 32] {
        let mut both = [0; 64];
        let (key, of) = both.split_at_mut(32);
        key.copy_from_slice(&self.0);
        of.copy_from_slice(id.as_bytes());
        blake3::derive_key("aleph-backup 2026-11-29 key of a repository's key", &both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    #[test]
    fn a_key_file_is_long_and_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let write = |content: &[u8], mode| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            Key::read(&path)
        };
        let absent = Key::read(&path).unwrap_err().to_string();
        assert!(absent.contains("No such file"), "{absent}");
        let one = write(&[b'a'; 64], 0o600).unwrap();
        assert_eq!(
            write(&[[b'a'; 64].as_slice(), b"\n"].concat(), 0o640).unwrap(),
            one
        );
        assert_ne!(write(&[b'b'; 64], 0o600).unwrap(), one);
        for (content, mode, why) in [
            (&[b'a'; 31][..], 0o600, "less than 32 bytes"),
            (&[b'a'; 5000][..], 0o600, "longer than 4096 bytes"),
            (&[b'a'; 64][..], 0o644, "everybody"),
        ] {
            let error = write(content, mode).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(!format!("{one:?}").contains("97"));
    }

    #[test]
    fn what_is_no_file_is_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [&pipe, folder.path()] {
            let error = Key::read(path).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
    }
}
