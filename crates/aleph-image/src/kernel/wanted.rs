//! The kernel modules that a guest needs, and when.

use crate::filesystem::{FORMAT, Filesystem};
use serde::{Deserialize, Serialize};
use std::fmt;

/// When the agent loads a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Before anything else: without it the agent cannot speak to the host.
    Early,
    /// Right after the early ones, where the machine has a PCI bus.
    Pci,
    /// After those, where the channel to the host is a virtio-serial port.
    Serial,
    /// In their place, where it is a vsock connection.
    Vsock,
    /// Before the root filesystem is mounted.
    Root,
    /// After those, where the guest gets a network.
    Net,
    /// At last, where the host may want memory back.
    Balloon,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Early => "early",
            Self::Pci => "pci",
            Self::Serial => "serial",
            Self::Vsock => "vsock",
            Self::Root => "root",
            Self::Net => "net",
            Self::Balloon => "balloon",
        })
    }
}

/// A module that has to be there, as a file or built into the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) name: &'static str,
    pub(crate) stage: Stage,
}

const fn early(name: &'static str) -> Wanted {
    Wanted {
        name,
        stage: Stage::Early,
    }
}

const fn pci(name: &'static str) -> Wanted {
    Wanted {
        name,
        stage: Stage::Pci,
    }
}

const fn serial(name: &'static str) -> Wanted {
    Wanted {
        name,
        stage: Stage::Serial,
    }
}

const fn vsock(name: &'static str) -> Wanted {
    Wanted {
        name,
        stage: Stage::Vsock,
    }
}

const fn root(name: &'static str) -> Wanted {
    Wanted {
        name,
        stage: Stage::Root,
    }
}

const fn net(name: &'static str) -> Wanted {
    Wanted {
        name,
        stage: Stage::Net,
    }
}

const fn balloon(name: &'static str) -> Wanted {
    Wanted {
        name,
        stage: Stage::Balloon,
    }
}

/// In the order in which they are loaded; what they depend on goes before them by itself.
pub(crate) const WANTED: [Wanted; 9] = [
    // The bus of QEMU's `microvm` machine and of Firecracker.
    early("virtio_mmio"),
    // The bus of every other machine.
    pci("virtio_pci"),
    // The channel between host and agent: with QEMU, and with Firecracker. The second needs vsock
    // and vmw_vsock_virtio_transport_common.
    serial("virtio_console"),
    vsock("vmw_vsock_virtio_transport"),
    // The disks: the image and the overlay.
    root("virtio_blk"),
    // The image is read-only; what the guest writes goes over it.
    root("overlay"),
    root(module_of(FORMAT)),
    // The network, with what it needs: net_failover and failover.
    net("virtio_net"),
    // Memory that the host takes back from a guest that has no use for it: with Firecracker.
    balloon("virtio_balloon"),
];

/// The module that mounts a format.
const fn module_of(format: Filesystem) -> &'static str {
    match format {
        Filesystem::Erofs => "erofs",
        Filesystem::Squashfs => "squashfs",
        Filesystem::Ext4 => "ext4",
    }
}
