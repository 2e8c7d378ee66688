//! An archive from a guest to local files.
//!
//! Names are changed on the way: the archive has the guest's name for the copied thing, the user
//! may want another. A thread rewrites the archive into a pipe, a second unpacks what comes out,
//! with the `tar` crate's own checks: no path leaves the folder, through no link either.

use super::place::LocalTarget;
use bytes::{Buf, Bytes};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Builder, EntryType};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Unpacks what is sent.
pub(super) fn start(target: LocalTarget) -> (mpsc::Sender<Bytes>, JoinHandle<io::Result<()>>) {
    let (sender, receiver) = mpsc::channel(4);
    let pieces = Pieces {
        receiver,
        piece: Bytes::new(),
    };
    let unpacked = tokio::task::spawn_blocking(move || unpack(pieces, &target));
    (sender, unpacked)
}

struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

fn unpack(archive: impl Read + Send, target: &LocalTarget) -> io::Result<()> {
    let (output, input) = io::pipe()?;
    let name = target.name.as_deref();
    std::thread::scope(|scope| {
        let rewriter = scope.spawn(move || rewrite(archive, name, input));
        let mut archive = Archive::new(output);
        archive.set_overwrite(true);
        let unpacked = archive.unpack(&target.folder);
        // A rewriter whose pipe nobody reads ends as well.
        drop(archive);
        let rewritten = rewriter
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("rewriting the archive broke off")));
        // What was wrong with the archive is seen first by whoever reads it.
        match (rewritten, unpacked) {
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(_)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            (_, unpacked) => unpacked,
        }
    })
}

/// Copies an archive with another name for the first part of all paths, or without it.
fn rewrite(archive: impl Read, name: Option<&str>, output: impl Write) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    let mut builder = Builder::new(output);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(path) = renamed(&entry.path()?, name)? else {
            continue;
        };
        let mut header = entry.header().clone();
        match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {
                header.set_size(entry.size());
                builder.append_data(&mut header, path, &mut entry)?;
            }
            EntryType::Symlink => {
                if let Some(to) = entry.link_name()? {
                    builder.append_link(&mut header, path, to)?;
                }
            }
            EntryType::Link => {
                let to = entry.link_name()?.map(|to| renamed(&to, name));
                if let Some(to) = to.transpose()?.flatten() {
                    builder.append_link(&mut header, path, to)?;
                }
            }
            // Devices and the like mean nothing outside of their machine.
            _ => {}
        }
    }
    builder.into_inner()?.flush()
}

fn renamed(path: &Path, name: Option<&str>) -> io::Result<Option<PathBuf>> {
    let mut parts = path.components().filter(|part| *part != Component::CurDir);
    let first = parts.next();
    let rest: PathBuf = parts.collect();
    let straight = rest
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !straight || matches!(first, Some(Component::ParentDir)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the archive has the path {path:?}"),
        ));
    }
    Ok(match name {
        Some(name) if rest.as_os_str().is_empty() => Some(name.into()),
        Some(name) => Some(Path::new(name).join(rest)),
        None => Some(rest).filter(|rest| !rest.as_os_str().is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tar::Header;

    fn entry(archive: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, content: &str) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        // Past the checks of the library: a guest writes what it wants.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        if kind == EntryType::Symlink || kind == EntryType::Link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            header.set_size(0);
            header.set_cksum();
            archive.append(&header, io::empty()).unwrap();
        } else {
            header.set_size(content.len() as u64);
            header.set_cksum();
            archive.append(&header, content.as_bytes()).unwrap();
        }
    }

    fn target(folder: &Path, name: Option<&str>) -> LocalTarget {
        LocalTarget {
            folder: folder.to_owned(),
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn names_are_the_users() -> io::Result<()> {
        let mut archive = Builder::new(Vec::new());
        entry(&mut archive, EntryType::Directory, "tree/", "");
        entry(&mut archive, EntryType::Regular, "tree/a", "one");
        entry(&mut archive, EntryType::Link, "tree/b", "tree/a");
        entry(&mut archive, EntryType::Symlink, "tree/c", "a");
        entry(&mut archive, EntryType::Char, "tree/null", "");
        let bytes = archive.into_inner()?;
        let here = tempfile::tempdir()?;
        unpack(bytes.as_slice(), &target(here.path(), Some("new")))?;
        for name in ["a", "b", "c"] {
            assert_eq!(fs::read(here.path().join("new").join(name))?, b"one");
        }
        assert!(!here.path().join("new/null").exists());
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(here.path().join("new/a"))?.permissions(),
        );
        assert_eq!(mode & 0o7000, 0, "set-id bits do not come along");
        unpack(bytes.as_slice(), &target(here.path(), None))?;
        assert_eq!(fs::read(here.path().join("a"))?, b"one");
        Ok(())
    }

    #[test]
    fn nothing_is_written_elsewhere() -> io::Result<()> {
        let here = tempfile::tempdir()?;
        let outside = here.path().join("outside");
        let inside = here.path().join("inside");
        fs::create_dir(&outside)?;
        fs::write(outside.join("kept"), "kept")?;
        fs::create_dir(&inside)?;
        let there = outside.to_str().unwrap();
        type Hostile = fn(&mut Builder<Vec<u8>>, &str);
        let hostile: [Hostile; 5] = [
            |a, _| entry(a, EntryType::Regular, "t/../../outside/new", "x"),
            |a, _| entry(a, EntryType::Regular, "../outside/new", "x"),
            |a, there| {
                entry(a, EntryType::Symlink, "t", there);
                entry(a, EntryType::Regular, "t/new", "x");
            },
            |a, there| {
                entry(a, EntryType::Directory, "t/", "");
                entry(a, EntryType::Symlink, "t/l", there);
                entry(a, EntryType::Regular, "t/l/kept", "x");
            },
            |a, there| {
                entry(a, EntryType::Directory, "t/", "");
                entry(a, EntryType::Link, "t/l", &format!("t/../{there}/kept"));
                entry(a, EntryType::Regular, "t/l", "x");
            },
        ];
        for (number, spoil) in hostile.into_iter().enumerate() {
            for name in [Some("t"), None] {
                let mut archive = Builder::new(Vec::new());
                spoil(&mut archive, there);
                let bytes = archive.into_inner()?;
                // Whether it is refused or its place is changed: nothing outside may change.
                let _ = unpack(bytes.as_slice(), &target(&inside, name));
                let names = fs::read_dir(&outside)?.count();
                assert_eq!(names, 1, "archive {number} as {name:?}");
                assert_eq!(fs::read(outside.join("kept"))?, b"kept", "archive {number}");
                fs::remove_dir_all(&inside)?;
                fs::create_dir(&inside)?;
            }
        }
        Ok(())
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() -> io::Result<()> {
        let mut archive = Builder::new(Vec::new());
        entry(&mut archive, EntryType::Regular, "a", &"x".repeat(5000));
        let bytes = archive.into_inner()?;
        let here = tempfile::tempdir()?;
        assert!(unpack(&bytes[..3000], &target(here.path(), Some("a"))).is_err());
        Ok(())
    }
}
