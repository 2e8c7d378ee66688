//! Network devices: TAP interfaces, which Firecracker opens by name.
//!
//! The node has a TAP open, and Firecracker opens it again: with one queue, as its own user, and in
//! its own network namespace. So the TAP is given to that user, the node's queue is closed before the
//! VMM starts, and the VMM starts in the namespace that the TAP is in. The TAP is persistent, and
//! whoever made it removes it.
//!
//! # Failure cases
//! Refused before anything is started: a TAP with several queues, one that would go with the node's
//! queue, and TAPs of several namespaces.

use super::api::{NetworkInterface, NetworkOverride};
use crate::hypervisor::Nic;
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::tap::Interface;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The namespace that a thread is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// The network devices of a VM that is about to be started.
#[derive(Debug)]
pub(super) struct Nics {
    /// The name of each TAP, and its guest's hardware address.
    taps: Vec<(String, Mac)>,
    /// Where they are, where that is not where we are.
    namespace: Option<OwnedFd>,
}

impl Nics {
    /// Gives each to the VMM's user, and closes it.
    pub(super) fn of(nics: Vec<Nic>, user: Option<u32>) -> io::Result<Self> {
        let own = std::fs::metadata(OWN)?;
        let mut is_in = None;
        let mut namespace = None;
        let mut taps = Vec::with_capacity(nics.len());
        for Nic { mac, queues } in nics {
            let [queue] = &queues[..] else {
                return Err(refuse(&format!("it takes one queue, not {}", queues.len())));
            };
            let tap = Interface::of(queue)?;
            if tap.has_many_queues {
                return Err(refuse(&format!("{} can have several queues", tap.name)));
            }
            if !tap.is_persistent_tap {
                return Err(refuse(&format!("{} is no persistent TAP", tap.name)));
            }
            let space = File::from(Interface::namespace(queue)?);
            let meta = space.metadata()?;
            let id = (meta.dev(), meta.ino());
            if *is_in.get_or_insert(id) != id {
                return Err(refuse("its TAPs are in several network namespaces"));
            }
            if id != (own.dev(), own.ino()) {
                namespace = Some(space.into());
            }
            if let Some(user) = user {
                Interface::set_owner(queue, user)?;
            }
            taps.push((tap.name, Mac(mac)));
        }
        Ok(Self { taps, namespace })
    }

    /// They, for a guest that boots.
    pub(super) fn interfaces(&self) -> Vec<NetworkInterface> {
        let taps = self.taps.iter().enumerate();
        taps.map(|(n, (tap, mac))| NetworkInterface::tap(id(n), tap, *mac))
            .collect()
    }

    /// They, for a guest that goes on: it has its devices, each of which had another TAP.
    pub(super) fn overrides(&self) -> Vec<NetworkOverride> {
        let taps = self.taps.iter().enumerate();
        taps.map(|(n, (tap, _))| NetworkOverride {
            iface_id: id(n),
            host_dev_name: tap.clone(),
        })
        .collect()
    }

    /// Has a program start where they are. It has to be told before it is told what user it is.
    #[allow(unsafe_code)]
    pub(super) fn enter(self, command: &mut Command) {
        let Some(namespace) = self.namespace else {
            return;
        };
        // SAFETY: between fork and exec the closure makes one system call, on a descriptor that was
        // open before the fork; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                let network = Some(LinkNameSpaceType::Network);
                Ok(move_into_link_name_space(namespace.as_fd(), network)?)
            });
        }
    }
}

/// The id of a device. A snapshot names it.
fn id(n: usize) -> String {
    format!("net{n}")
}

fn refuse(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
