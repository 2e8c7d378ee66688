//! Links: network devices whose other end is a socket of this process.
//!
//! Firecracker knows TAPs alone. So a link's socket is a packet socket in a network namespace that has
//! nothing else, and its device is a TAP that is there once Firecracker has it open: see
//! [`frames`](aleph_vm_networking::frames). Nothing stands between the two; whoever has the socket reads
//! and writes the guest's frames.
//!
//! | step | made | undone |
//! | --- | --- | --- |
//! | the link's ends | the namespace, by its socket | when both ends are closed |
//! | a launch | a TAP for each, down, where the VMM will be | when the launch fails; by a sweep of the network |
//! | the VMM has it open | the TAP moves into the namespace, up | with the namespace |
//! | the VMM has ended | | the TAP is taken down: whoever reads sees it |
//!
//! # Failure cases
//! Where the daemon dies its sockets go, and with them the namespaces and TAPs: an adopted VM has no
//! links any more.

use super::nic::Owner;
use crate::hypervisor::{Link, LinkEnds};
use aleph_vm_networking::frames::{self, FrameSocket, Waiting};
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::network::link_name;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Makes the two ends of a link. Blocks for about a millisecond.
pub(super) fn ends() -> io::Result<LinkEnds> {
    let socket = FrameSocket::open()?;
    Ok(LinkEnds {
        host: socket.duplicate()?,
        vmm: socket.duplicate()?,
    })
}

/// The network namespace of a link's end.
pub(super) fn namespace_of(socket: &OwnedFd) -> io::Result<OwnedFd> {
    FrameSocket::of(socket.try_clone()?)?.namespace()
}

/// The links of a VM.
#[derive(Debug)]
pub(super) struct Links {
    links: Vec<Wire>,
    /// Where their TAPs are until the VMM has them open; none where there are no links.
    made_in: Option<OwnedFd>,
}

#[derive(Debug)]
struct Wire {
    tap: String,
    mac: Mac,
    socket: FrameSocket,
    is_connected: bool,
}

impl Links {
    /// Makes a TAP for each: in this namespace and group of links, else in the namespace of the first.
    pub(super) fn make(
        links: Vec<Link>,
        owner: Owner,
        place: Option<(&OwnedFd, u32)>,
    ) -> io::Result<Self> {
        let wires = links.into_iter().enumerate().map(|(n, link)| {
            Ok(Wire {
                tap: link_name(owner.vm, n),
                mac: Mac(link.mac),
                socket: FrameSocket::of(link.socket)?,
                is_connected: false,
            })
        });
        let links: Vec<Wire> = wires.collect::<io::Result<_>>()?;
        let Some(first) = links.first() else {
            return Ok(Self {
                links,
                made_in: None,
            });
        };
        let (namespace, group) = match place {
            Some((space, group)) => (space.try_clone()?, group),
            None => (first.socket.namespace()?, 0),
        };
        let taps = links.iter().map(|link| Waiting {
            name: &link.tap,
            owner: owner.user,
            group,
        });
        frames::make(namespace.as_fd(), &taps.collect::<Vec<_>>())?;
        Ok(Self {
            links,
            made_in: Some(namespace),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Where they are made.
    pub(super) fn namespace(&self) -> io::Result<Option<OwnedFd>> {
        self.made_in.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// The name of each TAP, and its guest's hardware address.
    pub(super) fn taps(&self) -> impl Iterator<Item = (&str, Mac)> {
        self.links.iter().map(|link| (link.tap.as_str(), link.mac))
    }

    /// Connects each to its socket, once the VMM has it open. Blocks.
    pub(super) fn connect(&mut self) -> io::Result<()> {
        let Some(made_in) = &self.made_in else {
            return Ok(());
        };
        for link in &mut self.links {
            link.socket.take(&link.tap, made_in.as_fd())?;
            link.is_connected = true;
        }
        Ok(())
    }
}

impl Drop for Links {
    /// The VMM has ended: whoever reads is told, and a TAP that is in nobody's namespace yet goes.
    fn drop(&mut self) {
        for link in &self.links {
            let undone = match &self.made_in {
                Some(made_in) if !link.is_connected => frames::remove(made_in.as_fd(), &link.tap),
                _ => link.socket.leave(&link.tap),
            };
            if let Err(error) = undone {
                tracing::warn!(tap = link.tap, %error, "a link is not undone");
            }
        }
    }
}
