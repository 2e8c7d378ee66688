//! Paths that cannot lead out of a folder: each is resolved as if that folder were the root.

use alloc::rc::Rc;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often a path is resolved anew that changed meanwhile.
const TRIES: usize = 8;

/// A folder, and the one below it that was used last.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

/// A path below the tree's root without empty parts, `.` and `..`; none where it has a `..`.
pub(crate) fn clean(name: &[u8]) -> Option<Vec<u8>> {
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return None,
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    Some(path)
}

/// A clean path as its folder's and its last part.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl Tree {
    /// The tree below a folder.
    pub(crate) fn open(path: &[u8]) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { root, last: None })
    }

    /// A folder by its clean path, links on the way followed within the tree.
    pub(crate) fn folder(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            tries += 1;
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => {}
                other => return other,
            }
        }
    }

    /// The same, made where it is missing, with what is missing above it.
    pub(crate) fn ensure_folder(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(folder.clone());
        }
        let folder = match self.folder(path) {
            Err(Errno::NOENT) => {
                let ends = (1..path.len())
                    .filter(|at| path[*at] == b'/')
                    .chain([path.len()]);
                for end in ends {
                    let (above, name) = split(&path[..end]);
                    let above = self.folder(above)?;
                    match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                self.folder(path)?
            }
            other => other?,
        };
        let folder = Rc::new(folder);
        self.last = Some((path.to_vec(), folder.clone()));
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused() {
        for (name, want) in [
            ("a/b", Some("a/b")),
            ("/a//./b/", Some("a/b")),
            ("./", Some("")),
            ("a/../b", None),
            ("..", None),
            ("..a/b..", Some("..a/b..")),
        ] {
            let seen = clean(name.as_bytes());
            assert_eq!(seen.as_deref(), want.map(str::as_bytes), "{name}");
        }
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
    }
}
