//! A file or folder on its way out as an archive.

use super::header::{BLOCK, Entry, kind, pad};
use crate::failure::{Context, Failure, text};
use crate::outlet::{Outlet, Passed};
use aleph_guest_proto::{SendWindow, ToHost};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

/// Bytes that wait to be sent before more is read.
const ENOUGH: usize = 32 * 1024;

/// Entries and reads in one turn of the loop.
const STEPS: usize = 64;

/// Folders within folders; each has a descriptor open.
const MAX_DEPTH: usize = 128;

/// Files with several names that are remembered; what goes beyond is packed again.
const MAX_LINKS: usize = 4096;

/// An archive that is made while it is sent.
#[derive(Debug)]
pub(crate) struct Pack {
    window: SendWindow,
    out: Vec<u8>,
    /// The file that is being read, and how much of it the archive still has to have.
    file: Option<(OwnedFd, u64)>,
    size: u64,
    levels: Vec<Level>,
    /// The name of the innermost folder in the archive.
    name: Vec<u8>,
    device: u64,
    links: Vec<((u64, u64), Vec<u8>)>,
    is_complete: bool,
}

/// A folder whose entries are being packed.
#[derive(Debug)]
struct Level {
    folder: Rc<OwnedFd>,
    /// Names that were read and not packed, a zero behind each.
    names: Vec<u8>,
    at: usize,
    /// The length of the name of the folder above.
    above: usize,
}

impl Pack {
    /// Begins with a file or folder.
    pub(crate) fn open(path: &[u8], name: &[u8]) -> Result<Self, Failure> {
        let what = || format!("packing {}", text(path));
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        if !is_packed(&stat) {
            return Err(Errno::INVAL).context(|| format!("{}, a device or socket", what()));
        }
        let mut pack = Self {
            window: SendWindow::default(),
            out: Vec::new(),
            file: None,
            size: 0,
            levels: Vec::new(),
            name: Vec::new(),
            device: stat.st_dev,
            links: Vec::new(),
            is_complete: false,
        };
        let own = path
            .split(|byte| *byte == b'/')
            .rfind(|part| !part.is_empty())
            .filter(|part| !matches!(*part, b"." | b".."))
            .unwrap_or(b".");
        let name = if name.is_empty() { own } else { name };
        pack.add(CWD, path, name.to_vec(), &stat).context(what)?;
        Ok(pack)
    }

    pub(crate) fn window(&mut self) -> &mut SendWindow {
        &mut self.window
    }

    /// Whether [`Pack::pump`] would pass on something now.
    pub(crate) fn can_go_on(&self, outlet: &Outlet) -> bool {
        outlet.takes(self.window)
    }

    /// Does a turn's part of the work; gives whether the stream has ended.
    pub(crate) fn pump(&mut self, stream: u32, outlet: &mut Outlet) -> bool {
        let mut steps = 0;
        while outlet.takes(self.window) {
            while !self.is_complete && self.out.len() < ENOUGH && steps < STEPS {
                steps += 1;
                if let Err(failure) = self.step(outlet) {
                    outlet.fail(stream, &failure);
                    return true;
                }
            }
            if self.out.is_empty() {
                if self.is_complete {
                    outlet.push(stream, &ToHost::Eof);
                }
                return self.is_complete;
            }
            let n = outlet.chunk_of(self.out.len().min(self.window.available()));
            if self.window.take(n).is_err() {
                // It was cut to the window.
                return false;
            }
            outlet.push(stream, &ToHost::Data(&self.out[..n]));
            self.out.drain(..n);
        }
        false
    }

    /// Adds a part of a file, an entry or the end.
    fn step(&mut self, outlet: &mut Outlet) -> Result<(), Failure> {
        if let Some((file, left)) = &mut self.file {
            let room = usize::try_from(*left).unwrap_or(usize::MAX).min(ENOUGH);
            let out = &mut self.out;
            match outlet.read(file, room, |chunk| out.extend_from_slice(chunk)) {
                Passed::Bytes(n) => *left -= n as u64,
                // It has become shorter, and the archive has told its size.
                Passed::End => {
                    out.resize(out.len() + room, 0);
                    *left -= room as u64;
                }
                Passed::Nothing => {}
                Passed::Failed(errno) => {
                    return Err(Failure::new("reading on", errno));
                }
            }
            if *left == 0 {
                self.end_file();
            }
            return Ok(());
        }
        let Some(level) = self.levels.last_mut() else {
            self.out.resize(self.out.len() + 2 * BLOCK, 0);
            self.is_complete = true;
            return Ok(());
        };
        if level.at == level.names.len() && !level.refill().context(|| reading(&self.name))? {
            let above = level.above;
            self.levels.pop();
            self.name.truncate(above);
            return Ok(());
        }
        let rest = &level.names[level.at..];
        let length = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
        let base = rest[..length].to_vec();
        level.at += length + 1;
        let name = [&self.name, &b"/"[..], &base].concat();
        // What has gone meanwhile is not packed.
        let folder = level.folder.clone();
        match rustix::fs::statat(&*folder, &base[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match self.add(folder.as_fd(), &base, name, &stat) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(errno).context(|| packing(&self.name, &base)),
            },
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).context(|| packing(&self.name, &base)),
        }
    }

    /// Adds what is at a path in a folder.
    fn add(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &[u8],
        name: Vec<u8>,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let mut entry = Entry {
            name,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: stat.st_mtime,
            ..Entry::default()
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.add_file(folder, path, entry, stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, path, Vec::new())?;
                entry.kind = kind::LINK;
                entry.target = target.into_bytes();
                entry.write(&mut self.out);
                Ok(())
            }
            FileType::Directory => {
                if self.levels.len() >= MAX_DEPTH {
                    return Err(Errno::NAMETOOLONG);
                }
                // A path that ends in a slash was followed, and means the folder behind a link.
                let flags = if path.ends_with(b"/") {
                    flags.difference(OFlags::NOFOLLOW)
                } else {
                    flags
                };
                let inner =
                    rustix::fs::openat(folder, path, flags | OFlags::DIRECTORY, Mode::empty())?;
                entry.kind = kind::FOLDER;
                let name = entry.name.clone();
                entry.name.push(b'/');
                entry.write(&mut self.out);
                if stat.st_dev == self.device {
                    let above = self.name.len();
                    self.name = name;
                    self.levels.push(Level {
                        folder: Rc::new(inner),
                        names: Vec::new(),
                        at: 0,
                        above,
                    });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_file(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &[u8],
        mut entry: Entry,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some((_, first)) = self.links.iter().find(|(known, _)| *known == identity) {
                entry.kind = kind::HARD_LINK;
                entry.target.clone_from(first);
                entry.write(&mut self.out);
                return Ok(());
            }
            if self.links.len() < MAX_LINKS {
                self.links.push((identity, entry.name.clone()));
            }
        }
        // Something else may be in its place by now, which must not make the agent wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::openat(folder, path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(());
        }
        entry.kind = kind::FILE;
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.write(&mut self.out);
        self.size = entry.size;
        self.file = Some((file, entry.size));
        if entry.size == 0 {
            self.end_file();
        }
        Ok(())
    }

    fn end_file(&mut self) {
        self.file = None;
        let rest = usize::try_from(self.size % BLOCK as u64).unwrap_or(0);
        pad(&mut self.out, rest);
    }
}

impl Level {
    /// Reads more names, as many as one call gives; whether there were any.
    fn refill(&mut self) -> Result<bool, Errno> {
        self.names.clear();
        self.at = 0;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&*self.folder, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                self.names.extend_from_slice(name.to_bytes_with_nul());
            }
            // The next one would cost another call, unless there is nothing yet.
            if entries.is_buffer_empty() && !self.names.is_empty() {
                break;
            }
        }
        Ok(!self.names.is_empty())
    }
}

fn is_packed(stat: &Stat) -> bool {
    matches!(
        FileType::from_raw_mode(stat.st_mode),
        FileType::RegularFile | FileType::Directory | FileType::Symlink
    )
}

fn reading(folder: &[u8]) -> String {
    format!("reading the folder {}", text(folder))
}

fn packing(folder: &[u8], base: &[u8]) -> String {
    format!("packing {}/{}", text(folder), text(base))
}
