//! The code of functions on disk: zip archives as they were uploaded, by their SHA-256, and the
//! filesystems that were made of them.
//!
//! ```text
//! STATE/functions/code/<sha256>.zip     what was uploaded
//! STATE/functions/tasks/...             what guests mount, named by the builder
//! ```
//! A file appears whole by a rename, or not at all. One that no version refers to is removed
//! when its last version goes, and at the next start where that did not come about.

use super::error::LambdaError;
use super::function::CodeRef;
use aleph_types::Problem;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{RwLock, Semaphore};

/// The most bytes of an archive that is uploaded in a request.
pub(crate) const MOST_ZIPPED: u64 = 50 * 1024 * 1024;
/// The most bytes of what is in it.
pub(crate) const MOST_UNPACKED: u64 = 250 * 1024 * 1024;
/// How many archives are unpacked at once.
const AT_ONCE: usize = 2;

/// A filesystem made of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The image, a file in the folder that was given.
    pub image: PathBuf,
    /// Names what is in it.
    pub digest: String,
}

/// Makes filesystems of zip archives.
pub trait TaskBuilder: Send + Sync {
    /// Makes the filesystem of an archive in a folder; one that is there is taken. It blocks.
    ///
    /// # Errors
    /// What is wrong with the archive, of the class `Invalid`, or with this host.
    fn build(&self, zip: &[u8], into: &Path) -> Result<Task, Problem>;
}

/// The folders.
pub(crate) struct CodeStore {
    archives: PathBuf,
    tasks: PathBuf,
    builder: Arc<dyn TaskBuilder>,
    turns: Semaphore,
    /// Held shared from an upload until its version is kept, and alone by what removes files.
    pub(crate) uploads: RwLock<()>,
}

impl CodeStore {
    pub(crate) fn open(folder: &Path, builder: Arc<dyn TaskBuilder>) -> io::Result<Self> {
        let (archives, tasks) = (folder.join("code"), folder.join("tasks"));
        fs::create_dir_all(&archives)?;
        fs::create_dir_all(&tasks)?;
        Ok(Self {
            archives: archives.canonicalize()?,
            tasks: tasks.canonicalize()?,
            builder,
            turns: Semaphore::new(AT_ONCE),
            uploads: RwLock::new(()),
        })
    }

    /// Keeps an archive and makes its filesystem. With `dry` only the filesystem stays, until
    /// it is found to belong to nobody.
    pub(crate) async fn add(
        self: &Arc<Self>,
        zip: Vec<u8>,
        dry: bool,
    ) -> Result<CodeRef, LambdaError> {
        let size = u64::try_from(zip.len()).unwrap_or(u64::MAX);
        if size > MOST_ZIPPED {
            return Err(LambdaError::invalid(format!(
                "Zip file must be smaller than {MOST_ZIPPED} bytes"
            )));
        }
        let _turn = self.turns.acquire().await;
        let store = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || store.add_now(&zip, size, dry));
        work.await
            .map_err(|_| LambdaError::internal("the code could not be unpacked"))?
    }

    fn add_now(&self, zip: &[u8], size: u64, dry: bool) -> Result<CodeRef, LambdaError> {
        let sha256 = hex(&Sha256::digest(zip));
        let task = self.builder.build(zip, &self.tasks)?;
        if !dry {
            self.keep(&sha256, zip).map_err(|error| {
                tracing::error!(%error, "the code of a function cannot be kept");
                LambdaError::internal(&format!("the code cannot be kept: {error}"))
            })?;
        }
        Ok(CodeRef::Zip {
            sha256,
            size,
            image: task.image,
            digest: task.digest,
        })
    }

    fn keep(&self, sha256: &str, zip: &[u8]) -> io::Result<()> {
        // A builder renames what it made: that name has to outlive a loss of power, too.
        File::open(&self.tasks)?.sync_all()?;
        let path = self.archive(sha256);
        if path.exists() {
            return Ok(());
        }
        let mut work = tempfile_in(&self.archives, sha256)?;
        let written = work
            .1
            .write_all(zip)
            .and_then(|()| work.1.sync_all())
            .and_then(|()| fs::rename(&work.0, &path));
        if written.is_err() {
            let _ = fs::remove_file(&work.0);
        }
        written.and_then(|()| File::open(&self.archives)?.sync_all())
    }

    fn archive(&self, sha256: &str) -> PathBuf {
        self.archives.join(format!("{sha256}.zip"))
    }

    /// Makes filesystems of `used` again that are missing, from what was uploaded. It blocks.
    pub(crate) fn restore<'a>(&self, used: impl Iterator<Item = &'a CodeRef>) {
        for code in used {
            let CodeRef::Zip { sha256, image, .. } = code else {
                continue;
            };
            if image.exists() {
                continue;
            }
            let path = image.display();
            match self.rebuild(sha256, image) {
                Ok(()) => tracing::warn!(%path, "code was missing and is made again"),
                Err(why) => tracing::error!(%path, why, "code of a function is missing"),
            }
        }
    }

    fn rebuild(&self, sha256: &str, image: &Path) -> Result<(), String> {
        let zip = fs::read(self.archive(sha256)).map_err(|error| error.to_string())?;
        if hex(&Sha256::digest(&zip)) != sha256 {
            return Err("its archive is damaged".into());
        }
        let task = self.builder.build(&zip, &self.tasks);
        let task = task.map_err(|problem| problem.to_string())?;
        // Tools of another version may make another filesystem of it, which no version refers to.
        match task.image == image {
            true => Ok(()),
            false => Err("it does not come out as it was; upload it again".into()),
        }
    }

    /// Removes all files but those of `used`. Nobody may be uploading.
    pub(crate) fn retain<'a>(&self, used: impl Iterator<Item = &'a CodeRef>) {
        let mut kept: HashSet<PathBuf> = HashSet::new();
        for code in used {
            if let CodeRef::Zip { sha256, image, .. } = code {
                kept.extend([self.archive(sha256), image.clone()]);
            }
        }
        for folder in [&self.archives, &self.tasks] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if kept.contains(&path) {
                    continue;
                }
                let removed = match entry.file_type() {
                    Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                    _ => fs::remove_file(&path),
                };
                if let Err(error) = removed {
                    tracing::warn!(%error, path = %path.display(), "code of nobody stays");
                }
            }
        }
    }
}

fn tempfile_in(folder: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    let path = folder.join(format!(".{name}.{}", super::random_id()));
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    Ok((path, file))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes from hex digits.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let pair = |pair: &[u8]| {
        let digit = |b: u8| {
            char::from(b)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        match pair {
            [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
            _ => None,
        }
    };
    digits.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names an image by the archive's length.
    struct ByLength;

    impl TaskBuilder for ByLength {
        fn build(&self, zip: &[u8], into: &Path) -> Result<Task, Problem> {
            let image = into.join(zip.len().to_string());
            fs::write(&image, zip).unwrap();
            let digest = String::new();
            Ok(Task { image, digest })
        }
    }

    #[tokio::test]
    async fn what_is_missing_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(CodeStore::open(dir.path(), Arc::new(ByLength)).unwrap());
        let code = store.add(b"PK one".to_vec(), false).await.unwrap();
        let CodeRef::Zip { sha256, image, .. } = &code else {
            panic!("no archive")
        };
        fs::remove_file(image).unwrap();
        store.restore([&code].into_iter());
        assert_eq!(fs::read(image).unwrap(), b"PK one");
        // What is there is left as it is, and what is damaged is made of nothing.
        fs::write(image, "there").unwrap();
        store.restore([&code].into_iter());
        assert_eq!(fs::read(image).unwrap(), b"there");
        fs::remove_file(image).unwrap();
        fs::write(store.archive(sha256), b"PK two").unwrap();
        store.restore([&code].into_iter());
        assert!(!image.exists());
    }
}
