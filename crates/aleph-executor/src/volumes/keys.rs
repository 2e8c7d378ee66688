//! Keys of encrypted volumes.
//!
//! | what | where | how long |
//! | --- | --- | --- |
//! | the node's key: 256 random bits | a file of mode 0600, `[volumes] key_file` | as long as the node |
//! | a volume's key: 256 random bits | the records, encrypted with the node's (AES-256-GCM) | as long as a layer that it opens |
//! | a layer's own key | LUKS's header in the layer, which the volume's key opens | as long as the layer |
//!
//! A key is a layer's. What a volume goes on in after a snapshot, and a copy of it, have the key of what
//! they are over or a copy of: a copy shares layers, and may be the same bytes. So a key goes with the last
//! layer that has it, and its bytes in the records are overwritten then ([`Records::forget`]): what is left of
//! the layers on a disk, and of older copies of the records, is nobody's without the node's key.
//!
//! QEMU and its tools get a volume's key in a file without a name that only they have
//! ([`Passphrase::file`]): it is in no command line, no environment, no folder and no log.
//!
//! The node's key is made when the first encrypted volume is. It is not made again where there are keys that it
//! opens: then its file is missed, and whoever operates the node has to put it back.
//!
//! # Failure cases
//! [`VolumeError::KeyFile`]: the file cannot be used, or others may read it; [`VolumeError::NoKeyFile`]: it is
//! gone; [`VolumeError::WrongKey`]: it is another one.
//!
//! [`Records::forget`]: super::records::Records

use super::error::{VolumeError, at};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

/// Bytes of a key.
const LENGTH: usize = 32;

/// What opens LUKS's headers: a key in hex digits, as QEMU takes text.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Arc<Zeroizing<String>>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

impl Passphrase {
    /// A new one.
    ///
    /// # Errors
    /// Where the host has no random numbers.
    pub(super) fn random() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; LENGTH]);
        random(&mut *key)?;
        Ok(Self(Arc::new(digits(&*key))))
    }

    /// It in a file without a name, which cannot be changed any more.
    ///
    /// # Errors
    /// Where there is no memory for one.
    pub fn file(&self) -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("key", flags)?);
        file.write_all(self.0.as_bytes())?;
        fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        Ok(file)
    }
}

/// The name of a key in the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyId(pub(super) String);

/// A key, and what the records have of it.
#[derive(Debug)]
pub(super) struct NewKey {
    pub(super) id: KeyId,
    pub(super) wrapped: Vec<u8>,
    pub(super) passphrase: Passphrase,
}

/// The file with the node's key.
#[derive(Debug)]
pub(super) struct KeyFile(PathBuf, Mutex<()>);

impl KeyFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path, Mutex::default())
    }

    /// A key for a new volume. `is_first`: nothing depends on the node's key yet.
    pub(super) fn new_key(&self, is_first: bool) -> Result<NewKey, VolumeError> {
        let node = match self.read() {
            Err(VolumeError::NoKeyFile(_)) if is_first => {
                // One of several makes it, and the others find it.
                let _made = self.1.lock().unwrap_or_else(PoisonError::into_inner);
                match self.read() {
                    Err(VolumeError::NoKeyFile(_)) => {
                        self.make()?;
                        self.read()?
                    }
                    node => node?,
                }
            }
            node => node?,
        };
        let mut id = [0; 16];
        random(&mut id).map_err(VolumeError::Key)?;
        let id = KeyId(digits(&id).to_string());
        let passphrase = Passphrase::random().map_err(VolumeError::Key)?;
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce).map_err(VolumeError::Key)?;
        let mut sealed = passphrase.0.as_bytes().to_vec();
        node.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), about(&id), &mut sealed)
            .map_err(|_| VolumeError::Key(io::ErrorKind::Other.into()))?;
        Ok(NewKey {
            id,
            wrapped: [nonce.as_slice(), &sealed].concat(),
            passphrase,
        })
    }

    /// Unwraps a key.
    pub(super) fn open(&self, id: &KeyId, wrapped: &[u8]) -> Result<Passphrase, VolumeError> {
        let node = self.read()?;
        let wrong = || VolumeError::WrongKey(self.0.clone());
        let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opened = node.open_in_place(nonce, about(id), &mut sealed);
        let text = std::str::from_utf8(opened.map_err(|_| wrong())?).map_err(|_| wrong())?;
        Ok(Passphrase(Arc::new(Zeroizing::new(text.to_owned()))))
    }

    fn read(&self) -> Result<LessSafeKey, VolumeError> {
        let path = &self.0;
        let fault = |why: &'static str| VolumeError::KeyFile {
            path: path.clone(),
            why,
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Err(VolumeError::NoKeyFile(path.clone())),
            Err(rustix::io::Errno::LOOP) => return Err(fault("is a link")),
            file => file.map_err(io::Error::from).map_err(at("read", path))?,
        };
        let file = File::from(file);
        let meta = file.metadata().map_err(at("read", path))?;
        if !meta.is_file() {
            return Err(fault("is no file"));
        }
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(fault("belongs to somebody else"));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(fault("can be read by others: its mode has to be 0600"));
        }
        let mut text = Zeroizing::new(String::with_capacity(2 * LENGTH + 2));
        file.take(1024)
            .read_to_string(&mut text)
            .map_err(at("read", path))?;
        let key = bytes(text.trim_end()).ok_or_else(|| fault("has no 64 hex digits"))?;
        let key = UnboundKey::new(&AES_256_GCM, &*key);
        Ok(LessSafeKey::new(
            key.map_err(|_| fault("has no 64 hex digits"))?,
        ))
    }

    /// Makes the file, whole and durable or not at all. One that somebody else makes meanwhile stays.
    fn make(&self) -> Result<(), VolumeError> {
        let path = &self.0;
        let above = path.parent().unwrap_or(Path::new("/"));
        let mut key = Zeroizing::new([0; LENGTH]);
        random(&mut *key).map_err(VolumeError::Key)?;
        let mut suffix = [0; 8];
        random(&mut suffix).map_err(VolumeError::Key)?;
        let unfinished = path.with_extension(format!("new-{}", *digits(&suffix)));
        let made = || {
            let mut options = File::options();
            let options = options.write(true).create_new(true).mode(0o600);
            let mut file = options.open(&unfinished)?;
            file.write_all(digits(&*key).as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            match fs::hard_link(&unfinished, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => linked?,
            }
            fs::remove_file(&unfinished)?;
            File::open(above)?.sync_all()
        };
        made()
            .inspect_err(|_| {
                // What is half there is nobody's key.
                let _ = fs::remove_file(&unfinished);
            })
            .map_err(at("make", path))?;
        tracing::info!(path = %path.display(), "the key of encrypted volumes is made: keep a copy of it");
        Ok(())
    }
}

fn about(id: &KeyId) -> Aad<String> {
    Aad::from(format!("aleph volume key {}", id.0))
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    let filled = SystemRandom::new().fill(bytes);
    filled.map_err(|_| io::Error::other("the host has no random numbers"))
}

fn digits(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len()));
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn bytes(text: &str) -> Option<Zeroizing<[u8; LENGTH]>> {
    let mut key = Zeroizing::new([0; LENGTH]);
    if text.len() != 2 * LENGTH || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (n, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_key_comes_back_with_the_same_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("key"), dir.path().join("other"));
        let file = KeyFile::new(path.clone());
        assert!(matches!(
            file.new_key(false).unwrap_err(),
            VolumeError::NoKeyFile(_)
        ));
        let key = file.new_key(true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(file.open(&key.id, &key.wrapped).unwrap() == key.passphrase);
        let text = key.passphrase.0.as_bytes();
        assert!(
            !key.wrapped
                .windows(8)
                .any(|window| text.starts_with(window))
        );
        assert_eq!(format!("{:?}", key.passphrase), "Passphrase");
        let mut handed = String::new();
        let mut memory = File::open(crate::process::path_of_file(
            std::os::fd::AsRawFd::as_raw_fd(&key.passphrase.file().unwrap()),
        ));
        if let Ok(memory) = &mut memory {
            memory.read_to_string(&mut handed).unwrap();
            assert_eq!(handed.as_bytes(), text);
        }
        // Another key, another name, and a bit that fell over.
        let stranger = KeyFile::new(other);
        stranger.new_key(true).unwrap();
        let mut spoilt = key.wrapped.clone();
        spoilt[20] ^= 1;
        let cases = [
            stranger.open(&key.id, &key.wrapped),
            file.open(&KeyId("0".into()), &key.wrapped),
            file.open(&key.id, &spoilt),
            file.open(&key.id, &key.wrapped[..5]),
        ];
        for opened in cases {
            assert!(matches!(opened, Err(VolumeError::WrongKey(_))));
        }
    }

    #[test]
    fn one_of_many_at_once_makes_it() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            // As two processes do, and as one does with all its requests.
            let files = [0, 1].map(|_| KeyFile::new(dir.path().join("key")));
            let begin = std::sync::Barrier::new(8);
            let keys: Vec<NewKey> = std::thread::scope(|scope| {
                let make = |n: usize| {
                    let (file, begin) = (&files[n % 2], &begin);
                    scope.spawn(move || {
                        begin.wait();
                        file.new_key(true).unwrap()
                    })
                };
                let all: Vec<_> = (0..8).map(make).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            for key in keys {
                assert!(files[0].open(&key.id, &key.wrapped).unwrap() == key.passphrase);
            }
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = KeyFile::new(path.clone());
        file.new_key(true).unwrap();
        let said = |file: &KeyFile| file.new_key(true).unwrap_err().to_string();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(said(&file).contains("can be read by others"), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        file.new_key(false).unwrap();
        fs::write(&path, "hello").unwrap();
        assert!(said(&file).contains("has no 64 hex digits"));
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(said(&KeyFile::new(link)).contains("is a link"));
        assert!(said(&KeyFile::new(dir.path().into())).contains("is no file"));
    }
}
