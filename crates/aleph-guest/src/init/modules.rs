//! Kernel modules from the initramfs.
//!
//! `/modules/order` has a line for each module, in the order in which they load:
//!
//! ```text
//! early virtio.ko
//! pci virtio_pci.ko
//! serial virtio_console.ko
//! vsock vsock.ko
//! root overlay.ko
//! erofs.ko
//! net virtio_net.ko
//! balloon virtio_balloon.ko
//! ```
//!
//! `early` ones load before the channel opens, `pci` ones right after them where the machine has
//! a PCI bus, then those of the channel: `serial` ones, or `vsock` ones where it is a vsock
//! connection. `root` ones when the root is assembled, `net` ones after them where the guest gets a
//! network, `balloon` ones last, where the machine has such a device; a bare name is early. Empty lines and those that begin with `#` say nothing.

use crate::failure::{Failure, text, words};
use crate::file::read_bounded;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

/// The list, and what went wrong with it so far. Trouble is told only where something else
/// fails after it: a driver whose hardware is missing is no harm.
pub(super) struct Modules {
    order: Vec<u8>,
    trouble: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Early,
    Pci,
    Serial,
    Vsock,
    Root,
    Net,
    Balloon,
}

impl Modules {
    /// Reads the list. A kernel that has everything built in needs none.
    pub(super) fn read() -> Self {
        Self {
            order: read_bounded(c"/modules/order").unwrap_or_default(),
            trouble: None,
        }
    }

    /// Loads what the channel needs: each module costs some 10 ms under emulation, so the PCI
    /// ones only where there is something for them, and those of one kind of channel.
    pub(super) fn load_early(&mut self, is_vsock: bool) {
        self.load(Stage::Early);
        self.load_if(has_entries(c"/sys/bus/pci/devices"), Stage::Pci);
        self.load_if(!is_vsock, Stage::Serial);
        self.load_if(is_vsock, Stage::Vsock);
    }

    /// Loads the others, those of the network and the balloon only where there is one, and removes
    /// what is left of the list.
    pub(super) fn load_rest(&mut self, has_network: bool, has_balloon: bool) {
        self.load(Stage::Root);
        self.load_if(has_network, Stage::Net);
        self.load_if(has_balloon, Stage::Balloon);
        let _ = rustix::fs::unlink(c"/modules/order");
        let _ = rustix::fs::rmdir(c"/modules");
        self.order = Vec::new();
    }

    /// A failure that a module may be to blame for, with that module's.
    pub(super) fn blame(&self, mut failure: Failure) -> Failure {
        if let Some(trouble) = &self.trouble {
            failure.message = format!("{} ({trouble})", failure.message);
        }
        failure
    }

    fn load_if(&mut self, is_wanted: bool, stage: Stage) {
        if is_wanted {
            self.load(stage);
        } else {
            self.leave_out(stage);
        }
    }

    /// Removes the files of a stage, whose memory the guest can use better.
    fn leave_out(&self, unwanted: Stage) {
        for (_, name) in entries(&self.order).filter(|(stage, _)| *stage == unwanted) {
            let _ = rustix::fs::unlink(&path_of(name)[..]);
        }
    }

    fn load(&mut self, wanted: Stage) {
        let mut trouble = None;
        for (_, name) in entries(&self.order).filter(|(stage, _)| *stage == wanted) {
            if let Err(errno) = load(name) {
                trouble = Some(format!("module {}: {}", text(name), words(errno)));
            }
        }
        self.trouble = self.trouble.take().or(trouble);
    }
}

fn entries(order: &[u8]) -> impl Iterator<Item = (Stage, &[u8])> {
    order
        .split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter_map(|line| {
            if line.is_empty() || line.starts_with(b"#") {
                return None;
            }
            let stages = [
                (&b"early "[..], Stage::Early),
                (b"pci ", Stage::Pci),
                (b"serial ", Stage::Serial),
                (b"vsock ", Stage::Vsock),
                (b"root ", Stage::Root),
                (b"net ", Stage::Net),
                (b"balloon ", Stage::Balloon),
            ];
            let marked = stages
                .into_iter()
                .find_map(|(mark, stage)| Some((stage, line.strip_prefix(mark)?.trim_ascii())));
            Some(marked.unwrap_or((Stage::Early, line)))
        })
}

fn path_of(name: &[u8]) -> Vec<u8> {
    [b"/modules/", name].concat()
}

/// Whether a folder is there and has something in it.
fn has_entries(path: &CStr) -> bool {
    let Ok(dir) = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) else {
        return false;
    };
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return true;
        }
    }
    false
}

/// Loads a module and removes its file, whose memory the guest can use better.
fn load(name: &[u8]) -> Result<(), Errno> {
    let path = path_of(name);
    let file = rustix::fs::open(&path[..], OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let loaded = rustix::system::finit_module(&file, c"", 0);
    let _ = rustix::fs::unlink(&path[..]);
    match loaded {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_stage_or_are_early() {
        let order = b"# comment\nvirtio.ko\n\nearly  virtio_ring.ko\r\nroot overlay.ko\nerofs.ko\nnet failover.ko\nvsock vsock.ko\nballoon virtio_balloon.ko";
        let seen: Vec<_> = entries(order)
            .map(|(stage, name)| (stage, core::str::from_utf8(name).unwrap()))
            .collect();
        assert_eq!(
            seen,
            [
                (Stage::Early, "virtio.ko"),
                (Stage::Early, "virtio_ring.ko"),
                (Stage::Root, "overlay.ko"),
                (Stage::Early, "erofs.ko"),
                (Stage::Net, "failover.ko"),
                (Stage::Vsock, "vsock.ko"),
                (Stage::Balloon, "virtio_balloon.ko"),
            ]
        );
    }
}
