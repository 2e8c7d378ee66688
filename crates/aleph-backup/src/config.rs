//! The `config` object: what a repository is.

use crate::blob::Keys;
use crate::error::BackupError;
use crate::id::Id;
use crate::key::Key;
use crate::objects::{CONFIG, Objects, SMALL};
use crate::seal::Seal;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The newest version of the format: that of encrypted repositories.
pub(crate) const VERSION: u32 = 2;

/// The version of repositories that are not encrypted.
pub(crate) const PLAIN: u32 = 1;

const CIPHER: &str = "xchacha20-poly1305";

/// How large chunks are, in bytes. Fixed when a repository is made: other bounds cut elsewhere and
/// find nothing of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkBounds {
    /// No chunk is smaller, but the last one before a run of zeros or the end of a leaf.
    pub min: usize,
    /// What is aimed at.
    pub average: usize,
    /// No chunk is larger.
    pub max: usize,
}

impl Default for ChunkBounds {
    fn default() -> Self {
        Self {
            min: 16 << 10,
            average: 64 << 10,
            max: 256 << 10,
        }
    }
}

impl ChunkBounds {
    /// Bounds that `fastcdc` takes, and that keep a leaf's list short.
    fn check(&self) -> Result<(), &'static str> {
        let even = |size: usize| size.is_multiple_of(2);
        if !(4096..=self.average).contains(&self.min)
            || !(self.min..=self.max).contains(&self.average)
            || self.max > 2 << 20
            || self.average > 1 << 20
            || self.min > 1 << 20
            || !even(self.min)
            || !even(self.average)
            || !even(self.max)
        {
            return Err("its bounds of chunks are impossible");
        }
        Ok(())
    }
}

/// What a repository is, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) version: u32,
    /// Which repository this is.
    pub(crate) id: Id,
    pub(crate) chunks: ChunkBounds,
    /// What ids of blobs are keyed with, where nothing is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encryption: Option<Encryption>,
}

/// How an encrypted repository is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Encryption {
    cipher: String,
    /// The repository's own key, sealed with its owner's, as hex digits.
    key: String,
}

/// What ids, chunks and seals of an open repository are made with.
pub(crate) struct Secrets {
    pub(crate) ids: Keys,
    pub(crate) seal: Seal,
    /// Moves the places where chunks are cut; 0 where nothing is encrypted.
    pub(crate) cuts: u64,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Config {
    /// A new repository, encrypted where there is a key.
    pub(crate) fn new(chunks: ChunkBounds, key: Option<&Key>) -> Result<Self, BackupError> {
        let random = || Id::random().map_err(|source| BackupError::Random { source });
        let mut config = Self {
            version: if key.is_some() { VERSION } else { PLAIN },
            id: random()?,
            chunks,
            key: None,
            encryption: None,
        };
        let own = random()?;
        match key {
            None => config.key = Some(own),
            Some(key) => {
                let seal = Seal::with_key(&key.for_repository(&config.id));
                let sealed = seal.seal(&config.purpose(), own.as_bytes().to_vec())?;
                config.encryption = Some(Encryption {
                    cipher: CIPHER.to_owned(),
                    key: hex(&sealed),
                });
            }
        }
        Ok(config)
    }

    /// What its key is sealed for: nobody can change what else stands here.
    fn purpose(&self) -> Vec<u8> {
        let mut purpose = b"config".to_vec();
        purpose.extend(self.id.as_bytes());
        let ChunkBounds { min, average, max } = self.chunks;
        for bound in [min, average, max] {
            purpose.extend(crate::wire::count(bound).to_le_bytes());
        }
        purpose
    }

    /// What it is worked with.
    ///
    /// # Errors
    /// Where the key is the wrong one, or there is one for a repository that is not encrypted, or none for
    /// one that is.
    pub(crate) fn secrets(&self, key: Option<&Key>) -> Result<Secrets, BackupError> {
        match (&self.encryption, self.key, key) {
            (None, Some(own), None) => Ok(Secrets {
                ids: Keys::of_repository(&own),
                seal: Seal::default(),
                cuts: 0,
            }),
            // Whoever can write to the store could else have the next backup sent in the clear.
            (None, _, Some(_)) => Err(BackupError::NotEncrypted),
            (Some(_), _, None) => Err(BackupError::KeyNeeded),
            (Some(encryption), None, Some(key)) => {
                if encryption.cipher != CIPHER {
                    let why = format_args!("the cipher {:?} is not known", encryption.cipher);
                    return Err(BackupError::damaged(CONFIG, why));
                }
                let sealed = unhex(&encryption.key)
                    .ok_or_else(|| BackupError::damaged(CONFIG, "its key is no hex digits"))?;
                let own = Seal::with_key(&key.for_repository(&self.id))
                    .open(&self.purpose(), &sealed)
                    .map_err(|_| BackupError::WrongKey)?;
                let own = <[u8; 32]>::try_from(own.as_ref())
                    .map_err(|_| BackupError::damaged(CONFIG, "its key has another length"))?;
                let derived = |what: &str| blake3::derive_key(what, &own);
                let cuts = derived("aleph-backup 2026-11-29 cuts of chunks");
                Ok(Secrets {
                    ids: Keys::of_repository(&Id::from_bytes(derived(
                        "aleph-backup 2026-11-29 ids of blobs",
                    ))),
                    seal: Seal::with_key(&derived("aleph-backup 2026-11-29 encryption")),
                    cuts: cuts
                        .first_chunk()
                        .map_or(1, |bytes| u64::from_le_bytes(*bytes)),
                })
            }
            _ => Err(BackupError::damaged(CONFIG, "it has no key")),
        }
    }

    /// Writes it where there is none; says whether it did.
    pub(crate) async fn create(&self, objects: &Objects) -> Result<bool, BackupError> {
        self.chunks
            .check()
            .map_err(|why| BackupError::damaged(CONFIG, why))?;
        let json = serde_json::to_vec(self).map_err(|error| BackupError::damaged(CONFIG, error))?;
        objects.create(&CONFIG.into(), Bytes::from(json)).await
    }

    /// Reads it; `None` where there is none.
    pub(crate) async fn read(objects: &Objects) -> Result<Option<Self>, BackupError> {
        let bytes = match objects.get(&CONFIG.into(), SMALL).await {
            Ok(bytes) => bytes,
            Err(BackupError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = |error: serde_json::Error| BackupError::damaged(CONFIG, error);
        let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version > VERSION {
            return Err(BackupError::Newer { version });
        }
        let config: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        config
            .chunks
            .check()
            .map_err(|why| BackupError::damaged(CONFIG, why))?;
        Ok(Some(config))
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::Classify;

    #[test]
    fn a_repositorys_key_opens_with_its_owners_alone() {
        let (ours, theirs) = (Key::new(&[1; 32]).unwrap(), Key::new(&[2; 32]).unwrap());
        let config = Config::new(ChunkBounds::default(), Some(&ours)).unwrap();
        let code =
            |config: &Config, key| config.secrets(key).map_or_else(|e| e.code(), |_| "opens");
        assert_eq!(code(&config, Some(&ours)), "opens");
        assert_eq!(code(&config, Some(&theirs)), "backup_key_wrong");
        assert_eq!(code(&config, None), "backup_key_needed");
        let plain = Config::new(ChunkBounds::default(), None).unwrap();
        assert_eq!(code(&plain, None), "opens");
        assert_eq!(code(&plain, Some(&ours)), "backup_not_encrypted");
        assert_eq!((plain.version, config.version), (1, 2));
        // What stands beside the key cannot be changed, nor the key be used for another repository.
        let mut other = config.clone();
        other.chunks.min = 8192;
        assert_eq!(code(&other, Some(&ours)), "backup_key_wrong");
        let mut other = config.clone();
        other.id = plain.id;
        assert_eq!(code(&other, Some(&ours)), "backup_key_wrong");
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn what_was_written_before_there_was_encryption_is_read() {
        let id = "00".repeat(32);
        let old = format!(
            r#"{{"version":1,"id":"{id}","key":"{id}","chunks":{{"min":16384,"average":65536,"max":262144}}}}"#
        );
        let config: Config = serde_json::from_str(&old).unwrap();
        assert!(config.secrets(None).is_ok());
    }
}
