//! What writes that broke off leave in a folder.
//!
//! A store that is a folder writes an object as `NAME#1` first (or `#2` and so on, where there is one), renames it, and
//! lists no such names. Whoever has other files in that folder keeps them: only what is named as an object of a
//! repository is, where these are, counts.

use crate::id::Id;
use crate::objects::{CONFIG, DAMAGED, INDEX, LOCKS, PACKS, SNAPSHOTS, TRASH};
use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::path::Path;
use std::time::SystemTime;

/// Removes what was last written before `before`, and says how much it was. What cannot be read or removed
/// stays, with a warning.
pub(crate) fn remove(folder: &Path, before: SystemTime) -> usize {
    let is_config = |name: &str| name == CONFIG;
    let is_id = |name: &str| name.parse::<Id>().is_ok();
    let mut removed = remove_in(folder, before, is_config);
    for kind in [INDEX, SNAPSHOTS, LOCKS, TRASH, DAMAGED] {
        removed += remove_in(&folder.join(kind), before, is_id);
    }
    for packs in entries(&folder.join(PACKS)) {
        let name = packs.file_name();
        let is_prefix = |name: &str| name.len() == 2 && name.bytes().all(|c| c.is_ascii_hexdigit());
        let is_folder = packs.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && name.to_str().is_some_and(is_prefix) {
            removed += remove_in(&packs.path(), before, is_id);
        }
    }
    removed
}

/// What is in a folder; nothing, where it cannot be read.
fn entries(folder: &Path) -> Vec<DirEntry> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.flatten().collect(),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(folder = %folder.display(), %error, "a folder of a repository cannot be read");
            }
            Vec::new()
        }
    }
}

fn remove_in(folder: &Path, before: SystemTime, is_object: impl Fn(&str) -> bool) -> usize {
    let mut removed = 0;
    for entry in entries(folder) {
        // What goes while it is looked at is no business of this.
        let Ok(meta) = entry.metadata() else { continue };
        let is_old = meta.is_file() && meta.modified().is_ok_and(|time| time < before);
        if !is_old || !staged(&entry.file_name()).is_some_and(&is_object) {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(file = %entry.path().display(), %error, "what was half written stays");
            }
        }
    }
    removed
}

/// The object that a file was to become.
fn staged(file: &OsStr) -> Option<&str> {
    let (name, number) = file.to_str()?.rsplit_once('#')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_no_object_stays() {
        let folder = tempfile::tempdir().unwrap();
        let hex = Id::of(b"x").to_string();
        let make = |name: String| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, b"half").unwrap();
            path
        };
        let foreign = [
            "photo#1".to_owned(),
            "notes/config#1".to_owned(),
            format!("{hex}#1"),
            format!("other/{hex}#1"),
            format!("packs/{hex}#1"),
            format!("packs/abc/{hex}#1"),
            "packs/ab/photo#1".to_owned(),
            "index/photo#2".to_owned(),
            format!("index/{hex}#"),
            format!("index/{hex}#1a"),
            format!("index/{hex}"),
            format!("index/deeper/{hex}#1"),
        ]
        .map(make);
        let left = [
            "config#1".to_owned(),
            format!("packs/ab/{hex}#1"),
            format!("index/{hex}#22"),
            format!("snapshots/{hex}#1"),
            format!("locks/{hex}#1"),
            format!("trash/{hex}#1"),
            format!("damaged/{hex}#1"),
        ]
        .map(make);
        // No folder, and none that can be read as one.
        fs::write(folder.path().join("packs/cd"), b"").unwrap();
        std::os::unix::fs::symlink("/proc/self/root", folder.path().join("packs/ef")).unwrap();
        let now = SystemTime::now();
        assert_eq!(remove(folder.path(), now - Duration::from_secs(3600)), 0);
        let later = now + Duration::from_secs(3600);
        assert_eq!(remove(folder.path(), later), left.len());
        assert!(left.iter().all(|path| !path.exists()));
        assert!(foreign.iter().all(|path| path.exists()));
        assert_eq!(remove(&folder.path().join("absent"), later), 0);
    }
}
