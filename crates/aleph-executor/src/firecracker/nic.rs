//! Network devices: TAP interfaces, which Firecracker opens by name.
//!
//! The node has a TAP open, and Firecracker opens it again: with one queue, as its own user, and in
//! its own network namespace. So the TAP is given to that user, the node's queue is closed before the
//! VMM starts, and the VMM starts in the namespace that the TAP is in. The TAP is persistent, and
//! whoever made it removes it. A VM with links alone starts in the namespace of the first.
//!
//! # Failure cases
//! [`NicError`], before anything is started.

use super::api::{NetworkInterface, NetworkOverride};
use super::link::Links;
use crate::hypervisor::{Link, Nic};
use aleph_types::{Classify, ErrorClass, VmId};
use aleph_vm_networking::frames;
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::tap::Interface;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What TAPs are opened by.
const TUN: &str = "/dev/net/tun";

/// A network device that Firecracker cannot have.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// It has another number of queues than one.
    #[error("a network device of Firecracker has one queue, not {0}")]
    Queues(usize),
    /// Its TAP can have several queues, whether it has them or not: such a one cannot be opened as one
    /// that has not.
    #[error("{0} is made for several queues, and Firecracker opens one")]
    ManyQueues(String),
    /// Its TAP goes with the node's queue, so that there is nothing to open.
    #[error("{0} is no persistent TAP, and would go before Firecracker opens it")]
    NotPersistent(String),
    /// A process is in one namespace.
    #[error("{first} and {other} are in different network namespaces, and Firecracker is in one")]
    Namespaces {
        /// A TAP.
        first: String,
        /// One that is elsewhere.
        other: String,
    },
    /// The VMM's user may not open TAPs at all.
    #[error("the user {user}, whom the VMM runs as, may not read and write {}", path.display())]
    Device {
        /// What they are opened by.
        path: PathBuf,
        /// Who may not.
        user: u32,
    },
    /// A link needs a TAP and a network namespace of its own.
    #[error("cannot make a link to a VM of Firecracker")]
    Link(#[source] io::Error),
    /// A call of the operating system failed.
    #[error("cannot connect the VM's network devices")]
    Io(#[from] io::Error),
}

impl Classify for NicError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unavailable
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Queues(_) | Self::ManyQueues(_) => "firecracker_nic_queues",
            Self::NotPersistent(_) => "firecracker_nic_not_persistent",
            Self::Namespaces { .. } => "firecracker_nic_namespaces",
            Self::Device { .. } => "firecracker_nic_device",
            Self::Link(_) => "firecracker_link",
            Self::Io(_) => "firecracker_nic",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Device { path, .. } => Some(format!(
                "Let every user open it (chmod 0666 {}): it gives nobody a TAP that is not theirs. Or \
                 use the jailer, whose VMMs have a device of their own.",
                path.display()
            )),
            Self::Link(source) if source.kind() == io::ErrorKind::PermissionDenied => Some(
                "Run the node as root: functions on Firecracker need CAP_NET_ADMIN and \
                 CAP_SYS_ADMIN."
                    .into(),
            ),
            _ => None,
        }
    }
}

/// The network devices of a VM that is about to be started.
#[derive(Debug)]
pub(super) struct Nics {
    /// The name of each TAP, and its guest's hardware address.
    taps: Vec<(String, Mac)>,
    /// Further ones, whose other end is a socket.
    pub(super) links: Links,
    /// Where they are, where that is not where we are.
    namespace: Option<OwnedFd>,
}

/// Whose they are to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) vm: VmId,
    /// Who the VMM runs as; `None` where that is who we are.
    pub(super) user: Option<u32>,
    /// Whether it has a `/dev/net/tun` of its own.
    pub(super) is_jailed: bool,
}

impl Owner {
    /// Whether it may open TAPs at all.
    fn check(&self) -> Result<(), NicError> {
        match (self.user, self.is_jailed) {
            (Some(user), false) => may_open(Path::new(TUN), user),
            _ => Ok(()),
        }
    }
}

impl Nics {
    /// Where a program is to start whose guest is not known yet, if not here: here, where it is to have
    /// TAPs of queues that were opened here; else where its first link is.
    pub(super) fn place_ahead(
        queues: usize,
        links: &[OwnedFd],
        owner: Owner,
    ) -> Result<Option<OwnedFd>, NicError> {
        if queues > 0 || !links.is_empty() {
            owner.check()?;
        }
        match links.first() {
            Some(link) if queues == 0 => {
                let space = super::link::namespace_of(link);
                space.map(Some).map_err(NicError::Link)
            }
            _ => Ok(None),
        }
    }

    /// Whether a program is where they are that was started in [`Nics::place_ahead`].
    pub(super) fn are_where_they_were_to_be(&self) -> bool {
        self.taps.is_empty() || self.namespace.is_none()
    }

    /// Gives each to the VMM's user, and closes it; makes TAPs for the links.
    pub(super) fn of(nics: Vec<Nic>, links: Vec<Link>, owner: Owner) -> Result<Self, NicError> {
        if !(nics.is_empty() && links.is_empty()) {
            owner.check()?;
        }
        let own = frames::here()?;
        let mut is_in: Option<OwnedFd> = None;
        let mut group = 0;
        let mut taps: Vec<(String, Mac)> = Vec::with_capacity(nics.len());
        for Nic { mac, queues } in nics {
            let [queue] = &queues[..] else {
                return Err(NicError::Queues(queues.len()));
            };
            let tap = Interface::of(queue)?;
            if tap.has_many_queues {
                return Err(NicError::ManyQueues(tap.name));
            }
            if !tap.is_persistent_tap {
                return Err(NicError::NotPersistent(tap.name));
            }
            let space = Interface::namespace(queue)?;
            match (&is_in, taps.first()) {
                (Some(is_in), Some((first, _))) => {
                    if !frames::is_same(is_in.as_fd(), space.as_fd())? {
                        return Err(NicError::Namespaces {
                            first: first.clone(),
                            other: tap.name,
                        });
                    }
                }
                _ => {
                    group = frames::group_of(space.as_fd(), &tap.name)?;
                    is_in = Some(space);
                }
            }
            if let Some(user) = owner.user {
                Interface::set_owner(queue, user)?;
            }
            taps.push((tap.name, Mac(mac)));
        }
        if let Some(space) = &is_in {
            let names: Vec<&str> = taps.iter().map(|(name, _)| name.as_str()).collect();
            frames::wait_until_closed(space.as_fd(), &names)?;
        }
        let links = Links::make(links, owner, is_in.as_ref().map(|space| (space, group)));
        let links = links.map_err(NicError::Link)?;
        let namespace = match is_in {
            Some(space) => Some(space),
            None => links.namespace()?,
        };
        let namespace = match namespace {
            Some(space) if !frames::is_same(space.as_fd(), own.as_fd())? => Some(space),
            _ => None,
        };
        Ok(Self {
            taps,
            links,
            namespace,
        })
    }

    /// Each by its id: a snapshot names that.
    fn all(&self) -> impl Iterator<Item = (String, &str, Mac)> {
        let taps = self.taps.iter().enumerate();
        let taps = taps.map(|(n, (tap, mac))| (format!("net{n}"), tap.as_str(), *mac));
        let links = self.links.taps().enumerate();
        taps.chain(links.map(|(n, (tap, mac))| (format!("link{n}"), tap, mac)))
    }

    /// They, for a guest that boots.
    pub(super) fn interfaces(&self) -> Vec<NetworkInterface> {
        self.all()
            .map(|(id, tap, mac)| NetworkInterface::tap(id, tap, mac))
            .collect()
    }

    /// They, for a guest that goes on: it has its devices, each of which had another TAP.
    pub(super) fn overrides(&self) -> Vec<NetworkOverride> {
        self.all()
            .map(|(iface_id, tap, _)| NetworkOverride {
                iface_id,
                host_dev_name: tap.to_owned(),
            })
            .collect()
    }

    /// Where a program is to start that has them, if not here, and the links, which are to be connected
    /// once the program has them open.
    pub(super) fn apart(self) -> (Option<OwnedFd>, Links) {
        (self.namespace, self.links)
    }
}

/// Has a program start in this network namespace, or where we are. It has to be told before it is told
/// what user it is.
#[allow(unsafe_code)]
pub(super) fn enter(namespace: Option<OwnedFd>, command: &mut Command) {
    if let Some(namespace) = namespace {
        // SAFETY: between fork and exec the closure makes one system call, on a descriptor that
        // was open before the fork; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                let network = Some(LinkNameSpaceType::Network);
                Ok(move_into_link_name_space(namespace.as_fd(), network)?)
            });
        }
    }
}

/// Whether a user that belongs to no group of ours may open the device.
fn may_open(path: &Path, user: u32) -> Result<(), NicError> {
    const OTHERS: u32 = 0o006;
    let meta = std::fs::metadata(path)?;
    let bits = match user {
        0 => OTHERS,
        user if meta.uid() == user => meta.mode() >> 6,
        user if meta.gid() == user => meta.mode() >> 3,
        _ => meta.mode(),
    };
    if bits & OTHERS == OTHERS {
        return Ok(());
    }
    Err(NicError::Device {
        path: path.to_owned(),
        user,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_device_that_others_may_not_open_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tun");
        File::create(&path).unwrap();
        let own = std::fs::metadata(&path).unwrap().uid();
        let other = 300_000;
        for (mode, user, may) in [
            (0o666, other, true),
            (0o600, other, false),
            (0o660, other, false),
            (0o664, other, false),
            (0o600, own, true),
        ] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).unwrap();
            let opens = may_open(&path, user);
            assert_eq!(opens.is_ok(), may, "{mode:o} {user}");
            if let Err(error) = opens {
                assert_eq!(error.code(), "firecracker_nic_device");
                let chmod = format!("chmod 0666 {}", path.display());
                assert!(error.advice().unwrap().contains(&chmod));
            }
        }
    }
}
