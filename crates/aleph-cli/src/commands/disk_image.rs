//! What the root disk of a full VM is a copy of: a volume of the node's, or a file here that becomes one.
//!
//! A file is imported once. The volume that comes of it is called after the file and after what of it
//! changes with its content, so that another create finds it, and a changed file is another image.

use super::volume::read;
use crate::client::Client;
use crate::output::{Advised, plain, say};
use aleph_types::{Classify, DiskImageFormat, ErrorClass};
use anyhow::{Context as _, Result};
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What files of disk images are called.
const ENDS: [&str; 3] = ["qcow2", "raw", "img"];
/// How long the part of a volume's name may be that is the file's; a volume's name has 63 bytes at most.
const STEM: usize = 46;

/// An image by the word for it.
#[derive(Debug)]
pub(super) struct DiskImage {
    volume: String,
    file: Option<PathBuf>,
}

impl DiskImage {
    /// What a word means: the path of a file where it has a `/`, or ends as one of an image and is there;
    /// else a volume.
    ///
    /// # Errors
    /// Where it is the path of something else than a file, or of nothing.
    pub(super) fn of(word: &str) -> Result<Self> {
        let path = Path::new(word);
        let ends = path.extension().is_some_and(|end| {
            let mut known = ENDS.iter();
            known.any(|one| end.eq_ignore_ascii_case(one))
        });
        let is_file = word.contains('/') || (ends && path.is_file());
        if !is_file {
            return Ok(Self {
                volume: word.to_owned(),
                file: None,
            });
        }
        let shown = path.display();
        let found = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
        if !found.is_file() {
            return Err(Advised {
                what: format!("{shown} is no file"),
                advice: "Name the file of a disk image, or a volume.".into(),
            }
            .into());
        }
        Ok(Self {
            volume: volume_name(path, &found),
            file: Some(path.to_owned()),
        })
    }

    /// The name of its volume, which is there once [`DiskImage::bring`] has come back.
    pub(super) fn volume(&self) -> &str {
        &self.volume
    }

    /// Imports a file that the node does not have yet.
    pub(super) async fn bring(&self, client: &Client) -> Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        match client.volume(&self.volume).await {
            Ok(_) => return Ok(()),
            Err(error) if error.class() == ErrorClass::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let shown = plain(&file.display().to_string());
        say(&format!("importing {shown} as the volume {}", self.volume));
        let image = read(file).await?;
        let imported = client.import_volume(&self.volume, (format_of(file), None, None), image);
        match imported.await {
            // Another create brought it in meanwhile.
            Err(error) if error.refusal() == Some("name_taken") => Ok(()),
            imported => Ok(imported.map(drop)?),
        }
    }
}

/// What a file says to be. An `.img` may be either.
fn format_of(file: &Path) -> Option<DiskImageFormat> {
    let end = file.extension()?;
    if end.eq_ignore_ascii_case("raw") {
        return Some(DiskImageFormat::Raw);
    }
    let is_qcow2 = end.eq_ignore_ascii_case("qcow2");
    is_qcow2.then_some(DiskImageFormat::Qcow2)
}

/// What the volume of a file is called. Its content is not read for that: it may be large, and whatever
/// changes it changes the time of its last change, which nobody sets.
fn volume_name(path: &Path, found: &Metadata) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy());
    let stem: String = stem
        .unwrap_or_default()
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' => c,
            _ => '-',
        })
        .take(STEM)
        .collect();
    let stem = stem.trim_matches(['-', '_', '.']);
    // Another release of the standard library may hash in another way: the file is imported once more.
    let mut hasher = DefaultHasher::new();
    let place = (found.dev(), found.ino(), found.size());
    let changed = (found.mtime(), found.mtime_nsec());
    (place, changed, found.ctime(), found.ctime_nsec()).hash(&mut hasher);
    let changes = format!("{:010x}", hasher.finish() >> 24);
    // An id begins with 0x, and no name.
    match stem.is_empty() || stem.starts_with("0x") {
        true => format!("image-{stem}-{changes}"),
        false => format!("{stem}-{changes}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_word_means_a_file_or_a_volume() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "x").unwrap();
            path.to_str().unwrap().to_owned()
        };
        for (name, wanted) in [
            ("debian-12-cloud.qcow2", "debian-12-cloud-"),
            ("0xab.img", "image-0xab-"),
            ("größe 1.raw", "gr--e-1-"),
            ("---", "image--"),
            (&"x".repeat(99), "xxxxx"),
        ] {
            let image = DiskImage::of(&file(name)).unwrap();
            let (volume, is_known) = (image.volume(), |c: char| c.is_ascii_alphanumeric());
            assert!(volume.starts_with(wanted), "{name}: {volume}");
            assert!(volume.len() <= 63, "{volume}");
            assert!(
                volume.chars().all(|c| is_known(c) || "_.-".contains(c)),
                "{volume}"
            );
            assert!(image.file.is_some());
        }
        // It is the same one until its content changes.
        let path = file("disk.img");
        let first = DiskImage::of(&path).unwrap();
        assert_eq!(first.volume(), DiskImage::of(&path).unwrap().volume());
        fs::write(&path, "another").unwrap();
        assert_ne!(first.volume(), DiskImage::of(&path).unwrap().volume());

        for word in ["debian", "nowhere.qcow2", "0xab12"] {
            let image = DiskImage::of(word).unwrap();
            assert_eq!(image.volume(), word);
            assert!(image.file.is_none());
        }
        let folder = folder.path().to_str().unwrap();
        for (word, why) in [
            ("./nowhere", "cannot read ./nowhere"),
            (folder, "is no file"),
        ] {
            let error = format!("{:#}", DiskImage::of(word).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_end_of_a_name_says_what_it_is() {
        for (name, wanted) in [
            ("a.raw", Some(DiskImageFormat::Raw)),
            ("a.QCOW2", Some(DiskImageFormat::Qcow2)),
            ("a.img", None),
            ("a", None),
        ] {
            assert_eq!(format_of(Path::new(name)), wanted, "{name}");
        }
    }
}
