//! An archive on its way in.

use super::extended::Extended;
use super::header::{BLOCK, Entry, kind};
use super::tree::{Tree, clean, split};
use crate::failure::{Context, Failure, text};
use aleph_guest_proto::ReceiveWindow;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// The longest name, or header of a name, that is read.
const MAX_TEXT: u64 = 64 * 1024;

/// Folders that get the time of their last change in the end, when nothing changes them any
/// more. Those beyond get the time at which they are unpacked.
const MAX_FOLDERS: usize = 8192;

/// Folders whose time is set in one turn of the loop.
const STEPS: usize = 64;

/// An archive that is unpacked as it arrives.
#[derive(Debug)]
pub(crate) struct Unpack {
    tree: Tree,
    owners: bool,
    window: ReceiveWindow,
    stage: Stage,
    extended: Extended,
    folders: Vec<(Vec<u8>, i64)>,
    is_ending: bool,
}

/// What the next bytes are. `left` bytes of it come yet, and then `padding`.
#[derive(Debug)]
enum Stage {
    Block(Vec<u8>),
    Text {
        kind: u8,
        bytes: Vec<u8>,
        left: u64,
        padding: u64,
    },
    File {
        file: NewFile,
        left: u64,
        padding: u64,
    },
    Skipped {
        left: u64,
    },
    /// After the end there may be anything.
    End,
}

/// A file that goes away again unless it gets whole.
#[derive(Debug)]
struct NewFile {
    file: OwnedFd,
    folder: Rc<OwnedFd>,
    name: Vec<u8>,
    entry: Entry,
    is_whole: bool,
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_whole {
            // It may be gone with its folder.
            let _ = rustix::fs::unlinkat(&*self.folder, &self.name[..], AtFlags::empty());
        }
    }
}

impl Unpack {
    /// Begins below a folder.
    pub(crate) fn open(path: &[u8], owners: bool) -> Result<Self, Failure> {
        let tree = Tree::open(path).context(|| format!("unpacking to {}", text(path)))?;
        Ok(Self {
            tree,
            owners,
            window: ReceiveWindow::default(),
            stage: Stage::Block(Vec::new()),
            extended: Extended::default(),
            folders: Vec::new(),
            is_ending: false,
        })
    }

    /// Counts bytes from the host against the window.
    pub(crate) fn receive(&mut self, n: usize) -> Result<(), Failure> {
        if self.is_ending {
            return Err(Failure::violation("data after the end of an archive"));
        }
        self.window.received(n).map_err(Failure::violation)
    }

    /// Takes the next bytes, and gives the credit to return.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<Option<u32>, Failure> {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.take(rest)?;
        }
        Ok(self.window.passed_on(bytes.len()))
    }

    /// No more bytes come. What is left to do is up to [`Unpack::pump`].
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        match &self.stage {
            Stage::End => {}
            Stage::Block(begun) if begun.is_empty() => {}
            _ => return Err(wrong("it ends within an entry")),
        }
        self.is_ending = true;
        Ok(())
    }

    /// Whether [`Unpack::pump`] has something to do.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// Does a turn's part of what comes last; gives whether that is all.
    pub(crate) fn pump(&mut self) -> bool {
        if !self.is_ending {
            return false;
        }
        for _ in 0..STEPS {
            let Some((path, modified)) = self.folders.pop() else {
                return true;
            };
            // One that has gone meanwhile needs no time.
            if let Ok(folder) = self.tree.folder(&path) {
                let _ = rustix::fs::futimens(&folder, &times(modified));
            }
        }
        false
    }

    /// Takes some of the bytes, and gives the rest.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Failure> {
        match &mut self.stage {
            Stage::Block(block) => {
                let n = bytes.len().min(BLOCK - block.len());
                block.extend_from_slice(&bytes[..n]);
                if let Some(whole) = block.first_chunk() {
                    self.stage = match Entry::read(whole).map_err(wrong)? {
                        Some(entry) => self.begin(entry)?,
                        None => Stage::End,
                    };
                }
                Ok(&bytes[n..])
            }
            Stage::Text {
                kind,
                bytes: read,
                left,
                padding,
            } => {
                let (part, rest) = cut(bytes, *left);
                read.extend_from_slice(part);
                *left -= part.len() as u64;
                if *left == 0 {
                    let (kind, read, padding) = (*kind, core::mem::take(read), *padding);
                    self.stage = skip(padding);
                    self.read_text(kind, &read)?;
                }
                Ok(rest)
            }
            Stage::File {
                file,
                left,
                padding,
            } => {
                let (part, rest) = cut(bytes, *left);
                file.write(part)?;
                *left -= part.len() as u64;
                if *left == 0 {
                    file.finish(self.owners)?;
                    self.stage = skip(*padding);
                }
                Ok(rest)
            }
            Stage::Skipped { left } => {
                let (part, rest) = cut(bytes, *left);
                *left -= part.len() as u64;
                if *left == 0 {
                    self.stage = Stage::Block(Vec::new());
                }
                Ok(rest)
            }
            Stage::End => Ok(&[]),
        }
    }

    /// Takes in what is said of the next entry.
    fn read_text(&mut self, kind: u8, bytes: &[u8]) -> Result<(), Failure> {
        let text = || {
            let end = bytes.iter().position(|byte| *byte == 0);
            bytes[..end.unwrap_or(bytes.len())].to_vec()
        };
        match kind {
            kind::LONG_NAME => self.extended.name = Some(text()),
            kind::LONG_TARGET => self.extended.target = Some(text()),
            _ => self.extended.read(bytes).map_err(wrong)?,
        }
        Ok(())
    }

    /// Makes what an entry says, and gives what comes after its block.
    fn begin(&mut self, mut entry: Entry) -> Result<Stage, Failure> {
        match entry.kind {
            kind::LONG_NAME | kind::LONG_TARGET | kind::EXTENDED => {
                if entry.size > MAX_TEXT {
                    return Err(wrong("a name is too long"));
                }
                if entry.size == 0 {
                    return Ok(Stage::Block(Vec::new()));
                }
                return Ok(Stage::Text {
                    kind: entry.kind,
                    bytes: Vec::new(),
                    left: entry.size,
                    padding: padding_of(entry.size),
                });
            }
            kind::GLOBAL => return skip_all(entry.size),
            _ => {}
        }
        let extended = core::mem::take(&mut self.extended);
        entry.name = extended.name.unwrap_or(entry.name);
        entry.target = extended.target.unwrap_or(entry.target);
        entry.uid = extended.uid.unwrap_or(entry.uid);
        entry.gid = extended.gid.unwrap_or(entry.gid);
        entry.size = extended.size.unwrap_or(entry.size);
        entry.modified = extended.modified.unwrap_or(entry.modified);
        if entry.name.contains(&0) || entry.target.contains(&0) {
            return Err(wrong("a name has a zero in it"));
        }
        let path = clean(&entry.name).ok_or_else(|| outside(&entry.name))?;
        // A file's name may end in a slash in old archives, where it means a folder.
        if entry.kind == kind::OLD_FILE && entry.name.ends_with(b"/") {
            entry.kind = kind::FOLDER;
        }
        if path.is_empty() {
            // The folder that all goes to stays as it is.
            return skip_all(entry.size);
        }
        match entry.kind {
            kind::FILE | kind::OLD_FILE | kind::CONTIGUOUS => {
                let (left, padding) = (entry.size, padding_of(entry.size));
                let mut file = self.create_file(&path, entry)?;
                if left > 0 {
                    return Ok(Stage::File {
                        file,
                        left,
                        padding,
                    });
                }
                file.finish(self.owners)?;
                return Ok(Stage::Block(Vec::new()));
            }
            kind::FOLDER => self.make_folder(&path, &entry)?,
            kind::LINK => self.make_link(&path, &entry)?,
            kind::HARD_LINK => self.make_hard_link(&path, &entry)?,
            kind::SPARSE => return Err(wrong("a file with holes, which is not supported")),
            // Devices, pipes, and what others have invented.
            _ => {}
        }
        skip_all(entry.size)
    }

    /// The folder of a path, and its last part, in whose place nothing but folders is left.
    fn clear(&mut self, path: &[u8]) -> Result<(Rc<OwnedFd>, Vec<u8>), Errno> {
        let (folder, name) = split(path);
        let folder = self.tree.ensure_folder(folder)?;
        match rustix::fs::unlinkat(&*folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((folder, name.to_vec())),
            Err(errno) => Err(errno),
        }
    }

    fn create_file(&mut self, path: &[u8], entry: Entry) -> Result<NewFile, Failure> {
        let (folder, name) = self.clear(path).context(|| unpacking(path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&*folder, &name[..], flags | OFlags::NOFOLLOW, mode)
            .context(|| unpacking(path))?;
        Ok(NewFile {
            file,
            folder,
            name,
            entry,
            is_whole: false,
        })
    }

    fn make_folder(&mut self, path: &[u8], entry: &Entry) -> Result<(), Failure> {
        let make = |unpack: &mut Self| {
            let folder = match unpack.tree.folder(path) {
                // Also one that a link leads to: /lib is one in many images.
                Ok(folder) => folder,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    let (above, name) = unpack.clear(path)?;
                    rustix::fs::mkdirat(&*above, &name[..], Mode::RWXU)?;
                    unpack.tree.folder(path)?
                }
                Err(errno) => return Err(errno),
            };
            if unpack.owners {
                rustix::fs::fchown(&folder, Some(uid(entry)), Some(gid(entry)))?;
            }
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(entry.mode & 0o7777))
        };
        make(self).context(|| unpacking(path))?;
        if self.folders.len() < MAX_FOLDERS {
            self.folders.push((path.to_vec(), entry.modified));
        }
        Ok(())
    }

    fn make_link(&mut self, path: &[u8], entry: &Entry) -> Result<(), Failure> {
        let owners = self.owners;
        let make = |unpack: &mut Self| {
            let (folder, name) = unpack.clear(path)?;
            rustix::fs::symlinkat(&entry.target[..], &*folder, &name[..])?;
            let itself = AtFlags::SYMLINK_NOFOLLOW;
            if owners {
                let (uid, gid) = (uid(entry), gid(entry));
                rustix::fs::chownat(&*folder, &name[..], Some(uid), Some(gid), itself)?;
            }
            rustix::fs::utimensat(&*folder, &name[..], &times(entry.modified), itself)
        };
        make(self).context(|| unpacking(path))
    }

    fn make_hard_link(&mut self, path: &[u8], entry: &Entry) -> Result<(), Failure> {
        let target = clean(&entry.target)
            .filter(|target| !target.is_empty())
            .ok_or_else(|| outside(&entry.target))?;
        if target == path {
            return Ok(());
        }
        let make = |unpack: &mut Self| {
            let (of_target, name_of_target) = split(&target);
            let of_target = unpack.tree.folder(of_target)?;
            let (folder, name) = unpack.clear(path)?;
            rustix::fs::linkat(
                &of_target,
                name_of_target,
                &*folder,
                &name[..],
                AtFlags::empty(),
            )
        };
        make(self).context(|| format!("{} as a link to {}", unpacking(path), text(&target)))
    }
}

impl NewFile {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| unpacking(&self.entry.name)),
            }
        }
        Ok(())
    }

    /// Gives it owner, mode and time. The owner comes first, since changing it takes set-user-id
    /// bits away.
    fn finish(&mut self, owners: bool) -> Result<(), Failure> {
        let entry = &self.entry;
        let finish = || {
            if owners {
                rustix::fs::fchown(&self.file, Some(uid(entry)), Some(gid(entry)))?;
            }
            rustix::fs::fchmod(&self.file, Mode::from_raw_mode(entry.mode & 0o7777))?;
            rustix::fs::futimens(&self.file, &times(entry.modified))
        };
        finish().context(|| unpacking(&entry.name))?;
        self.is_whole = true;
        Ok(())
    }
}

/// The first bytes, up to so many, and the others.
fn cut(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len()))
}

fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// What comes after so many bytes that mean nothing.
fn skip(left: u64) -> Stage {
    match left {
        0 => Stage::Block(Vec::new()),
        left => Stage::Skipped { left },
    }
}

fn skip_all(size: u64) -> Result<Stage, Failure> {
    size.checked_add(padding_of(size))
        .map(skip)
        .ok_or_else(|| wrong("a size is wrong"))
}

fn uid(entry: &Entry) -> Uid {
    Uid::from_raw(entry.uid)
}

fn gid(entry: &Entry) -> Gid {
    Gid::from_raw(entry.gid)
}

fn times(modified: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: modified,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn unpacking(path: &[u8]) -> String {
    format!("unpacking {}", text(path))
}

fn wrong(what: &str) -> Failure {
    Failure::because(format!("the archive is malformed: {what}"), Errno::BADMSG)
}

fn outside(name: &[u8]) -> Failure {
    let what = format!("the archive has a path that leads outside: {}", text(name));
    Failure::because(what, Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;

    fn name() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "a", "b", "out", "..", ".", "", "secret", "outside", "proc", "self", "root",
        ]);
        prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
    }

    fn entry() -> impl Strategy<Value = Entry> {
        (
            prop::sample::select(&b"0122557LKxgS3"[..]),
            name(),
            name(),
            0_u64..1500,
        )
            .prop_map(|(kind, name, target, size)| Entry {
                kind,
                name: name.into_bytes(),
                target: target.into_bytes(),
                mode: 0o644,
                size: if matches!(kind, b'1' | b'2' | b'5') {
                    0
                } else {
                    size
                },
                ..Entry::default()
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever an archive says, cut anywhere and with any byte of it changed: it ends in
        /// files below its folder or in an error.
        #[test]
        fn no_archive_gets_out_of_its_folder(
            entries in prop::collection::vec(entry(), 0..12),
            absolute in any::<bool>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            chunk in 1_usize..2000,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
            std::fs::create_dir(&inside).unwrap();
            std::fs::create_dir(&outside).unwrap();
            let secret = outside.join("secret");
            std::fs::write(&secret, "secret").unwrap();
            let before = std::fs::metadata(&secret).unwrap();
            let mut archive = Vec::new();
            for mut entry in entries {
                if absolute {
                    entry.target = [outside.as_os_str().as_bytes(), b"/", &entry.target].concat();
                }
                let size = usize::try_from(entry.size).unwrap();
                entry.write(&mut archive);
                archive.extend(std::iter::repeat_n(b'7', size));
                super::super::header::pad(&mut archive, size);
            }
            for (at, byte) in changes {
                if !archive.is_empty() {
                    let at = at.index(archive.len());
                    archive[at] = byte;
                }
            }
            let mut unpack = Unpack::open(inside.as_os_str().as_bytes(), false).unwrap();
            let mut failed = false;
            for piece in archive.chunks(chunk) {
                unpack.receive(piece.len()).unwrap();
                if unpack.write(piece).is_err() {
                    failed = true;
                    break;
                }
            }
            if !failed && unpack.end().is_ok() {
                while !unpack.pump() {}
            }
            drop(unpack);
            let after = std::fs::metadata(&secret).unwrap();
            prop_assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
            prop_assert_eq!(
                (after.ino(), after.nlink(), after.mode(), after.mtime_nsec()),
                (before.ino(), before.nlink(), before.mode(), before.mtime_nsec())
            );
            prop_assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        }
    }
}
