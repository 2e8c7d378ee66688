//! The initramfs: the agent, its modules, and the folders that it mounts on.
//!
//! ```text
//! /init              the agent, 0755
//! /modules/order     one line a module, in the order to load: `STAGE NAME.ko`
//! /modules/NAME.ko
//! /dev/console       what the kernel opens as the agent's standard streams
//! /proc /sys /dev /image /upper /root      empty
//! ```
//! It is a cpio archive in the newc format (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: the kernel
//! unpacks it faster so, and under emulation much faster. Equal input gives equal bytes.

use super::wanted::Stage;
use cpio::newc::{Builder, trailer};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;
/// What bootloaders and VMMs round up to in any case.
const BLOCK: usize = 512;

/// A module's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) stage: Stage,
    pub(crate) bytes: Vec<u8>,
}

impl Module {
    pub(crate) fn file_name(&self) -> String {
        format!("{}.ko", self.name)
    }
}

/// The text of `/modules/order`.
pub(crate) fn order(modules: &[Module]) -> String {
    modules
        .iter()
        .map(|module| format!("{} {}\n", module.stage, module.file_name()))
        .collect()
}

/// Writes the archive.
pub(crate) fn write(agent: &[u8], modules: &[Module]) -> io::Result<Vec<u8>> {
    let mut archive = Archive {
        out: Vec::new(),
        inode: 0,
    };
    for dir in ["dev", "image", "modules", "proc", "root", "sys", "upper"] {
        archive.entry(dir, DIRECTORY | 0o755, 2, &[])?;
    }
    archive.console()?;
    archive.entry("init", REGULAR | 0o755, 1, agent)?;
    archive.entry(
        "modules/order",
        REGULAR | 0o444,
        1,
        order(modules).as_bytes(),
    )?;
    let mut sorted: Vec<&Module> = modules.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for module in sorted {
        let path = format!("modules/{}", module.file_name());
        archive.entry(&path, REGULAR | 0o444, 1, &module.bytes)?;
    }
    let mut out = trailer(archive.out)?;
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    Ok(out)
}

/// An archive with nothing in it, in a file without a name: to the kernel as if there were none.
pub(super) fn empty() -> io::Result<File> {
    let mut archive = trailer(Vec::new())?;
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    let file = rustix::fs::memfd_create("initrd", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(&archive)?;
    Ok(file)
}

struct Archive {
    out: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Owner 0:0, time 0, and a number of its own as the inode.
    fn builder(&mut self, name: &str, mode: u32, links: u32) -> Builder {
        self.inode += 1;
        Builder::new(name).ino(self.inode).mode(mode).nlink(links)
    }

    fn entry(&mut self, name: &str, mode: u32, links: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, name.to_owned()))?;
        let builder = self.builder(name, mode, links);
        let mut writer = builder.write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish().map(drop)
    }

    fn console(&mut self) -> io::Result<()> {
        let builder = self.builder("dev/console", CHARACTER | 0o600, 1);
        let builder = builder.rdev_major(5).rdev_minor(1);
        builder.write(&mut self.out, 0).finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;

    fn modules() -> Vec<Module> {
        [
            ("virtio_ring", Stage::Early, 5),
            ("erofs", Stage::Root, 4096),
            ("a", Stage::Root, 3),
        ]
        .map(|(name, stage, size)| Module {
            name: name.into(),
            stage,
            bytes: vec![7; size],
        })
        .to_vec()
    }

    #[test]
    fn two_archives_of_the_same_are_the_same() {
        let first = write(b"agent", &modules()).unwrap();
        assert!(first == write(b"agent", &modules()).unwrap());
        assert_eq!(first.len() % BLOCK, 0);
        assert!(first != write(b"other", &modules()).unwrap());
    }

    #[test]
    fn the_archive_has_what_the_agent_expects() {
        let bytes = write(b"agent", &modules()).unwrap();
        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        loop {
            let reader = Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0));
            let mut content = Vec::new();
            rest = reader.to_writer(&mut content).unwrap();
            if entry.name() == "dev/console" {
                assert_eq!((entry.rdev_major(), entry.rdev_minor()), (5, 1));
            }
            if entry.name() == "modules/order" {
                let text = String::from_utf8(content.clone()).unwrap();
                assert_eq!(text, "early virtio_ring.ko\nroot erofs.ko\nroot a.ko\n");
            }
            seen.push((
                entry.name().to_owned(),
                format!("{:o}", entry.mode()),
                content.len(),
            ));
        }
        let expected = [
            ("dev", "40755", 0),
            ("image", "40755", 0),
            ("modules", "40755", 0),
            ("proc", "40755", 0),
            ("root", "40755", 0),
            ("sys", "40755", 0),
            ("upper", "40755", 0),
            ("dev/console", "20600", 0),
            ("init", "100755", 5),
            ("modules/order", "100444", 45),
            ("modules/a.ko", "100444", 3),
            ("modules/erofs.ko", "100444", 4096),
            ("modules/virtio_ring.ko", "100444", 5),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(n, m, s)| ((*n).to_owned(), (*m).to_owned(), *s))
            .collect();
        assert_eq!(seen, expected);
    }
}
