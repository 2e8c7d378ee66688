//! Work folders: where an object is made before it gets its place in a store.

use crate::disk::{DiskError, Doing, sync_dir};
use crate::lock;
use crate::removal;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = ".tmp-";

/// A work folder in a store, removed when it is dropped and swept when its process died.
///
/// Its name is `.tmp-<pid>-<n>`; the lock on the file `lock` in it tells whether its owner
/// lives, so a pid that is in use again never protects a dead owner's folder.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    store: PathBuf,
    _lock: File,
}

impl Staging {
    /// Sweeps dead work folders of `store` and makes a new one.
    pub(crate) fn create(store: &Path) -> Result<Self, DiskError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        // Both under the folder's lock: a sweep never sees a work folder without its lock.
        let _folder = lock::folder(store)?;
        sweep_locked(store)?;
        let path = loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = store.join(format!("{PREFIX}{}-{n}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => {
                    other.doing("create", &path)?;
                    break path;
                }
            }
        };
        match lock_in(&path) {
            Ok(lock) => Ok(Self {
                path,
                store: store.to_owned(),
                _lock: lock,
            }),
            Err(error) => {
                remove_tree(&path);
                Err(error)
            }
        }
    }

    /// The work folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new, empty folder in the work folder.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, DiskError> {
        let path = self.path.join(name);
        DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .doing("create", &path)?;
        Ok(path)
    }

    /// Makes the files of `object` read-only and durable and gives the folder its `name`.
    ///
    /// `false` if an object of that name is there already; it is left as it is.
    pub(crate) fn commit(&self, object: &Path, name: &str) -> Result<bool, DiskError> {
        self.commit_as(object, name, 0o444)
    }

    /// The same, of files that can be run.
    pub(crate) fn commit_programs(&self, object: &Path, name: &str) -> Result<bool, DiskError> {
        self.commit_as(object, name, 0o555)
    }

    fn commit_as(&self, object: &Path, name: &str, mode: u32) -> Result<bool, DiskError> {
        for entry in fs::read_dir(object).doing("list", object)? {
            let path = entry.doing("list", object)?.path();
            fs::set_permissions(&path, Permissions::from_mode(mode))
                .doing("make read-only", &path)?;
            File::open(&path)
                .and_then(|file| file.sync_all())
                .doing("write", &path)?;
        }
        fs::set_permissions(object, Permissions::from_mode(0o755)).doing("open up", object)?;
        sync_dir(object)?;
        let place = self.store.join(name);
        match fs::rename(object, &place) {
            Ok(()) => sync_dir(&self.store).map(|()| true),
            Err(_) if place.is_dir() => Ok(false),
            Err(error) => Err(error).doing("move an object to", &place),
        }
    }

    /// Makes the file `object` read-only and durable and gives it the name `name`, in place of
    /// what has that name.
    pub(crate) fn commit_file(&self, object: &Path, name: &str) -> Result<PathBuf, DiskError> {
        fs::set_permissions(object, Permissions::from_mode(0o444))
            .doing("make read-only", object)?;
        File::open(object)
            .and_then(|file| file.sync_all())
            .doing("write", object)?;
        let place = self.store.join(name);
        fs::rename(object, &place).doing("move an object to", &place)?;
        sync_dir(&self.store)?;
        Ok(place)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        remove_tree(&self.path);
    }
}

fn lock_in(dir: &Path) -> Result<File, DiskError> {
    let path = dir.join("lock");
    let file = lock::open(&path)?;
    lock::try_exclusive(&file, &path)?;
    Ok(file)
}

/// Removes the work folders of `store` whose owners are gone.
pub(crate) fn sweep(store: &Path) -> Result<(), DiskError> {
    let _folder = lock::folder(store)?;
    sweep_locked(store)
}

fn sweep_locked(store: &Path) -> Result<(), DiskError> {
    for entry in fs::read_dir(store).doing("list", store)? {
        let entry = entry.doing("list", store)?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let lock_path = path.join("lock");
        let dead = match File::open(&lock_path) {
            Ok(file) => lock::try_exclusive(&file, &lock_path)?,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if dead {
            remove_tree(&path);
        }
    }
    Ok(())
}

/// Removes a tree; what cannot be removed now is swept later, so it is no error.
pub(crate) fn remove_tree(path: &Path) {
    if let Err(error) = removal::remove(path) {
        tracing::warn!(path = %path.display(), %error, "a work folder could not be removed");
    }
}

/// Points the symlink `link` at `target`, replacing it in one step.
///
/// The caller holds the folder's lock, so the temporary name is its own.
pub(crate) fn replace_symlink(link: &Path, target: &Path) -> Result<(), DiskError> {
    let parent = link.parent().unwrap_or(Path::new("."));
    let temporary = parent.join(".new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).doing("remove", &temporary);
        }
        _ => {}
    }
    std::os::unix::fs::symlink(target, &temporary).doing("create", &temporary)?;
    if let Err(error) = fs::rename(&temporary, link) {
        remove_tree(&temporary);
        return Err(error).doing("replace", link);
    }
    sync_dir(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_in(store: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(store)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|n| n != ".lock")
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_dropped_work_folder_leaves_nothing() {
        let store = tempfile::tempdir().unwrap();
        let staging = Staging::create(store.path()).unwrap();
        fs::write(staging.folder("object").unwrap().join("f"), "x").unwrap();
        drop(staging);
        assert!(left_in(store.path()).is_empty());
    }

    #[test]
    fn a_sweep_takes_the_dead_and_spares_the_living() {
        let store = tempfile::tempdir().unwrap();
        let living = Staging::create(store.path()).unwrap();
        // What a killed process leaves: a folder whose lock nobody holds.
        for dead in [".tmp-1-0", ".tmp-1-1"] {
            fs::create_dir(store.path().join(dead)).unwrap();
        }
        fs::write(store.path().join(".tmp-1-1/lock"), "").unwrap();
        sweep(store.path()).unwrap();
        let name = living
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        assert_eq!(left_in(store.path()), [name]);
    }

    #[test]
    fn the_first_of_two_equal_objects_stays() {
        let store = tempfile::tempdir().unwrap();
        for (content, first) in [("a", true), ("b", false)] {
            let staging = Staging::create(store.path()).unwrap();
            let object = staging.folder("object").unwrap();
            fs::write(object.join("f"), content).unwrap();
            assert_eq!(staging.commit(&object, "place").unwrap(), first);
        }
        assert_eq!(left_in(store.path()), ["place"]);
        let file = store.path().join("place/f");
        assert_eq!(fs::read_to_string(&file).unwrap(), "a");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o444
        );
    }

    #[test]
    fn a_link_is_replaced_in_place() {
        let store = tempfile::tempdir().unwrap();
        let link = store.path().join("default");
        for target in ["one", "two"] {
            replace_symlink(&link, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        assert_eq!(left_in(store.path()), ["default"]);
    }
}
