//! An image's layers, unpacked one over another into one tree.

use super::archive::{Budget, read};
use super::archive_error::ArchiveError;
use super::compression;
use super::unpacker::{Rules, Unpacker};
use crate::digest::{Digest, Hasher};
use crate::disk::{DiskError, readable};
use std::cell::Cell;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the layers of one image may come to, all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes when decompressed, what is between and behind the files included.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Bytes of paths that are kept in memory.
    pub(crate) paths: u64,
    /// Bytes of the disk, counted generously: as `bytes`, and something for each file and folder.
    pub(crate) room: u64,
}

/// A tree that layers are laid into.
pub(crate) struct Layers {
    tree: PathBuf,
    unpacker: Unpacker,
    limits: Limits,
    left: Limits,
}

impl Layers {
    /// For the empty folder `tree`.
    pub(crate) fn new(tree: &Path, limits: Limits) -> Result<Self, ArchiveError> {
        Ok(Self {
            tree: tree.to_owned(),
            unpacker: Unpacker::new(tree, Rules::Layers)?,
            limits,
            left: limits,
        })
    }

    /// Lays the next layer, compressed or not, over those before, and tells the digest of what
    /// it is decompressed.
    pub(crate) fn lay(&mut self, layer: impl Read) -> Result<Digest, ArchiveError> {
        let plain = compression::open(layer)?;
        let room = Rc::new(Cell::new(self.left.room));
        let mut plain = Measured {
            inner: plain,
            hash: Hasher::default(),
            left: self.left.bytes,
            room: Rc::clone(&room),
            exceeded: None,
        };
        let mut budget = Budget {
            entries: self.left.entries,
            bytes: self.limits.bytes,
            most_bytes: self.limits.bytes,
            paths: self.limits.paths,
            room: Rc::clone(&room),
        };
        let unpacked = read(&mut plain, &mut self.unpacker, &mut budget).and_then(|()| {
            // The digest is of everything, and so of what follows the end of the archive.
            io::copy(&mut plain, &mut io::sink()).map_err(|source| ArchiveError::Damaged { source })
        });
        match plain.exceeded {
            Some(Exceeded::Room) => {
                return Err(DiskError::full("unpack an image to", &self.tree, None).into());
            }
            Some(Exceeded::Bytes) => {
                return Err(ArchiveError::TooMuch {
                    limit: readable(self.limits.bytes),
                });
            }
            None => {
                unpacked?;
            }
        }
        self.left = Limits {
            bytes: plain.left,
            entries: budget.entries,
            paths: self.limits.paths,
            room: room.get(),
        };
        self.unpacker.next_layer();
        Ok(plain.hash.finish())
    }

    /// Gives folders their times, after the last layer.
    pub(crate) fn finish(self) -> Result<(), ArchiveError> {
        self.unpacker.finish()
    }
}

/// Counts and hashes what passes, up to a limit.
struct Measured<R> {
    inner: R,
    hash: Hasher,
    left: u64,
    room: Rc<Cell<u64>>,
    exceeded: Option<Exceeded>,
}

#[derive(Clone, Copy)]
enum Exceeded {
    Bytes,
    Room,
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let left = self.left.checked_sub(n as u64).ok_or(Exceeded::Bytes);
        let room = self.room.get().checked_sub(n as u64);
        match left.and_then(|left| Ok((left, room.ok_or(Exceeded::Room)?))) {
            Ok((left, room)) => {
                self.left = left;
                self.room.set(room);
            }
            Err(exceeded) => {
                self.exceeded = Some(exceeded);
                return Err(io::Error::other("it is too large"));
            }
        }
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tar::{EntryType, Header};

    const LIMITS: Limits = Limits {
        bytes: 1 << 20,
        entries: 100,
        paths: 1 << 20,
        room: u64::MAX,
    };

    /// `(type, path, link or content)`; a folder's path ends with a slash.
    fn layer(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (kind, path, text) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            let id = |id: rustix::fs::Uid| u64::from(id.as_raw());
            header.set_uid(id(rustix::process::getuid()));
            header.set_gid(u64::from(rustix::process::getgid().as_raw()));
            header.set_mtime(1_000_000_000);
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            let content = if *kind == EntryType::Regular {
                *text
            } else {
                ""
            };
            header.set_size(content.len() as u64);
            if content.is_empty() {
                header.as_gnu_mut().unwrap().linkname[..text.len()]
                    .copy_from_slice(text.as_bytes());
            }
            header.set_cksum();
            tar.append(&header, content.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn laid(layers: &[&[(EntryType, &str, &str)]]) -> (tempfile::TempDir, Vec<String>) {
        let tree = tempfile::tempdir().unwrap();
        let mut stack = Layers::new(tree.path(), LIMITS).unwrap();
        for entries in layers {
            let bytes = layer(entries);
            assert_eq!(stack.lay(&bytes[..]).unwrap(), Digest::of(&bytes));
        }
        stack.finish().unwrap();
        let mut found = Vec::new();
        let mut left = vec![tree.path().to_owned()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let shown = path
                    .strip_prefix(tree.path())
                    .unwrap()
                    .display()
                    .to_string();
                if path.is_dir() && !path.is_symlink() {
                    left.push(path);
                }
                found.push(shown);
            }
        }
        found.sort();
        (tree, found)
    }

    use EntryType::{Directory as D, Link as L, Regular as F, Symlink as S};

    #[test]
    fn whiteouts_hide_what_is_lower_and_nothing_of_their_own_layer() {
        let base: &[_] = &[
            (D, "a/", ""),
            (F, "a/old", "1"),
            (D, "a/deep/", ""),
            (F, "a/deep/er", "1"),
            (F, "b", "1"),
            (S, "link", "a"),
        ];
        let (_, found) = laid(&[base, &[(F, ".wh.b", ""), (F, "a/.wh.deep", "")]]);
        assert_eq!(found, ["a", "a/old", "link"]);
        // Before and after what the layer itself has under that name.
        for order in [[0, 1], [1, 0]] {
            let own = [(F, "b", "2"), (F, ".wh.b", "")];
            let (tree, found) = laid(&[base, &[own[order[0]], own[order[1]]]]);
            assert!(found.contains(&"b".to_owned()), "{found:?}");
            assert_eq!(fs::read_to_string(tree.path().join("b")).unwrap(), "2");
        }
        for order in [[0, 1], [1, 0]] {
            let own = [(F, "a/deep/new", "2"), (F, "a/.wh..wh..opq", "")];
            let (_, found) = laid(&[base, &[own[order[0]], own[order[1]]]]);
            assert_eq!(found, ["a", "a/deep", "a/deep/new", "b", "link"]);
        }
        // A whiteout of a link removes the link; of nothing, nothing; in the first, nothing.
        let (_, found) = laid(&[base, &[(F, ".wh.link", ""), (F, "no/.wh.x", "")]]);
        assert!(found.contains(&"a/old".to_owned()) && !found.contains(&"link".to_owned()));
        let (_, found) = laid(&[&[(F, "x", "1"), (F, ".wh.x", ""), (F, ".wh..wh.aufs", "")]]);
        assert_eq!(found, ["x"]);
    }

    #[test]
    fn an_upper_layer_replaces_a_folder_and_keeps_one() {
        let base: &[_] = &[
            (D, "a/", ""),
            (F, "a/x", "1"),
            (D, "b/", ""),
            (F, "b/y", "1"),
        ];
        let (tree, found) = laid(&[
            base,
            &[(F, "a", "2"), (D, "b/", ""), (F, "b/z", "2")],
            &[(L, "hard", "b/y"), (S, "b/z", "y")],
        ]);
        assert_eq!(found, ["a", "b", "b/y", "b/z", "hard"]);
        assert_eq!(fs::read_to_string(tree.path().join("hard")).unwrap(), "1");
        // The time that the layer gave it, whatever was made in it afterwards.
        let b = fs::metadata(tree.path().join("b"))
            .unwrap()
            .modified()
            .unwrap();
        let since = b.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since.as_secs(), 1_000_000_000);
        // A link that another layer turns elsewhere is followed anew.
        let (_, found) = laid(&[
            &[(D, "one/", ""), (D, "two/", ""), (S, "way", "one")],
            &[(F, "way/a", "1"), (S, "way", "two"), (F, "way/b", "1")],
        ]);
        assert_eq!(found, ["one", "one/a", "two", "two/b", "way"]);
    }

    #[test]
    fn folders_that_no_entry_names_count_too() {
        let refused = |limits: Limits, entries: &[(EntryType, &str, &str)]| {
            let tree = tempfile::tempdir().unwrap();
            let mut layers = Layers::new(tree.path(), limits).unwrap();
            // Over another layer names are kept, too.
            layers.lay(&layer(&[])[..]).unwrap();
            let refused = layers.lay(&layer(entries)[..]).map(drop);
            refused.map_err(|error| {
                (
                    error.to_string(),
                    matches!(&error, ArchiveError::Disk(e) if e.is_full()),
                )
            })
        };
        let deep = ["a/", "b/", "c/"].map(|name| format!("{}f", name.repeat(33)));
        let entries = deep.each_ref().map(|path| (F, path.as_str(), ""));
        // Files and the folders they are in: 34 for each.
        assert_eq!(refused(LIMITS, &entries[..2]), Ok(()));
        let (why, _) = refused(LIMITS, &entries).unwrap_err();
        assert_eq!(why, "it has more than 100 entries in it");

        // Their paths are kept in memory.
        let few = Limits {
            paths: 1000,
            ..LIMITS
        };
        let (why, _) = refused(few, &entries[..1]).unwrap_err();
        assert_eq!(why, "it has more than 1000 bytes of paths in it");

        // Each takes of the disk, whether an entry names it or not.
        let room = Limits {
            room: 64 << 10,
            ..LIMITS
        };
        let names: Vec<String> = (10..40).map(|n| format!("{n}/")).collect();
        let named: Vec<_> = names.iter().map(|name| (D, &**name, "")).collect();
        for entries in [&entries[..1], &named] {
            assert!(matches!(refused(room, entries), Err((_, true))));
        }
        assert_eq!(refused(room, &named[..5]), Ok(()));
    }

    #[test]
    fn what_would_be_too_much_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        let small = layer(&[(F, "a", "1")]);
        let bomb = flate2::read::GzEncoder::new(
            small.as_slice().chain(io::repeat(0).take(1 << 30)),
            flate2::Compression::fast(),
        );
        let refused = Layers::new(tree.path(), LIMITS)
            .unwrap()
            .lay(bomb)
            .unwrap_err();
        assert_eq!(refused.to_string(), "it has more than 1.0 MiB in it");
        let full = Limits {
            room: 100,
            ..LIMITS
        };
        let refused = Layers::new(tree.path(), full).unwrap().lay(&small[..]);
        assert!(matches!(refused, Err(ArchiveError::Disk(error)) if error.is_full()));
        let many = vec![(F, "a", ""); 101];
        let refused = Layers::new(tree.path(), LIMITS)
            .unwrap()
            .lay(&layer(&many)[..]);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "it has more than 100 entries in it"
        );
    }
}
