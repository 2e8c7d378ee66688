//! An archive from a guest to local files.
//!
//! Names are changed on the way: the archive has the guest's name for the copied thing, the user
//! may want another. A thread rewrites the archive into a pipe, a second unpacks what comes out,
//! with the `tar` crate's own checks: no path leaves the folder, through no link either.
//!
//! Long names are entries of their own, which the crate would read into memory whatever their
//! size. So they are read here, and one that is longer than a name can be is an error.

use super::place::LocalTarget;
use bytes::{Buf, Bytes};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Builder, EntryType, PaxExtensions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How much an entry may say about the one behind it. No system has paths of that length.
const LONGEST: u64 = 1 << 20;

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
    let mut long = Long::default();
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        if long.read(&mut entry)? {
            continue;
        }
        let Long { path, link } = std::mem::take(&mut long);
        let Some(path) = renamed(&path.map_or_else(|| own_path(&entry), Ok)?, name)? else {
            continue;
        };
        let link = match link {
            Some(link) => Some(link),
            None => entry.link_name()?.map(std::borrow::Cow::into_owned),
        };
        let mut header = entry.header().clone();
        match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {
                header.set_size(entry.size());
                builder.append_data(&mut header, path, &mut entry)?;
            }
            EntryType::Symlink => {
                if let Some(to) = link {
                    builder.append_link(&mut header, path, to)?;
                }
            }
            EntryType::Link => {
                let to = link.map(|to| renamed(&to, name));
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

fn own_path(entry: &tar::Entry<'_, impl Read>) -> io::Result<PathBuf> {
    entry.path().map(std::borrow::Cow::into_owned)
}

/// What stands before an entry because its header has no room for it.
#[derive(Debug, Default)]
struct Long {
    path: Option<PathBuf>,
    link: Option<PathBuf>,
}

impl Long {
    /// Whether an entry says something about the next one. That is remembered.
    fn read(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<bool> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(path_of(bounded(entry)?)),
            EntryType::GNULongLink => self.link = Some(path_of(bounded(entry)?)),
            EntryType::XHeader => {
                for record in PaxExtensions::new(&bounded(entry)?) {
                    let record = record?;
                    let value = record.value_bytes().to_vec();
                    match record.key_bytes() {
                        b"path" => self.path = Some(path_of(value)),
                        b"linkpath" => self.link = Some(path_of(value)),
                        b"size" => return Err(bad("the archive has a size outside of its header")),
                        _ => {}
                    }
                }
            }
            EntryType::XGlobalHeader => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn bounded(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Vec<u8>> {
    if entry.size() > LONGEST {
        return Err(bad("the archive has a name that is longer than any"));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A name up to the NUL byte that ends it.
fn path_of(mut bytes: Vec<u8>) -> PathBuf {
    let end = bytes.iter().position(|b| *b == 0);
    bytes.truncate(end.unwrap_or(bytes.len()));
    OsString::from_vec(bytes).into()
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn renamed(path: &Path, name: Option<&str>) -> io::Result<Option<PathBuf>> {
    let mut parts = path.components().filter(|part| *part != Component::CurDir);
    let first = parts.next();
    let rest: PathBuf = parts.collect();
    let straight = rest
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !straight || matches!(first, Some(Component::ParentDir)) {
        return Err(bad(&format!("the archive has the path {path:?}")));
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
    fn long_names_arrive_and_endless_ones_do_not() -> io::Result<()> {
        let here = tempfile::tempdir()?;
        let long = format!("tree/{}/{}", "a".repeat(120), "b".repeat(120));
        let mut archive = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        archive.append_data(&mut header, &long, &b"one"[..])?;
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "tree/link", "c".repeat(150))?;
        archive.append_pax_extensions([("path", b"tree/pax".as_slice())])?;
        entry(&mut archive, EntryType::Regular, "tree/short", "two");
        let bytes = archive.into_inner()?;
        unpack(bytes.as_slice(), &target(here.path(), Some("new")))?;
        let new = here.path().join("new");
        let file = new.join("a".repeat(120)).join("b".repeat(120));
        assert_eq!(fs::read(file)?, b"one");
        let link = fs::read_link(new.join("link"))?;
        assert_eq!(link, Path::new(&"c".repeat(150)));
        assert_eq!(fs::read(new.join("pax"))?, b"two");

        for kind in [
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::XHeader,
        ] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 40);
            header.set_cksum();
            // A guest that sends for ever.
            let endless = Read::chain(header.as_bytes().as_slice(), io::repeat(b'a'));
            let refused = unpack(endless, &target(here.path(), Some("new"))).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{kind:?}");
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
