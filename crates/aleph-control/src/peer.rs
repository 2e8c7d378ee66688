//! Who is at the other end of a connection.
//!
//! On the Unix socket the kernel says it (unix(7)): `SO_PEERCRED` gives the user and group of
//! the process that connected, and `SO_PEERGROUPS` its other groups, both as they were at that
//! moment. So a process that changed its user since, or passed the connection on, gains nothing.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process of this host, on the Unix socket.
    Local(Credentials),
    /// Somebody on TCP.
    Remote {
        /// Where from.
        address: SocketAddr,
        /// Whether the connection is encrypted.
        tls: bool,
    },
}

/// Whom a local process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group and all its other groups.
    pub groups: Vec<u32>,
}

/// Which local processes are operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operators {
    /// The user that the daemon runs as.
    pub own: u32,
    /// The group of operators, where the host has it.
    pub group: Option<u32>,
}

impl Operators {
    /// Whether somebody is an operator: root, the daemon's own user, and members of the group.
    #[must_use]
    pub fn contain(&self, who: &Credentials) -> bool {
        let member = self.group.is_some_and(|group| who.groups.contains(&group));
        who.uid == 0 || who.uid == self.own || member
    }
}

impl Credentials {
    /// Those of the process that connected a socket.
    ///
    /// # Errors
    /// Where the kernel does not tell them.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(socket)?;
        let mut groups = peer_groups(socket)?;
        groups.push(peer.gid.as_raw());
        Ok(Self {
            uid: peer.uid.as_raw(),
            groups,
        })
    }
}

/// The number of a group of this host, by its name in `/etc/group` or by its number.
#[must_use]
pub fn group_id(name: &str) -> Option<u32> {
    name.parse()
        .ok()
        .or_else(|| find_group(&fs::read_to_string("/etc/group").ok()?, name))
}

/// Finds a group in text of group(5)'s form.
fn find_group(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (found, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
        (found == name).then(|| gid.parse().ok())?
    })
}

/// The supplementary groups of the process that connected a socket.
#[allow(unsafe_code)]
fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // NGROUPS_MAX of Linux, so that one call is enough.
    const MOST: usize = 65_536;
    let mut groups: Vec<libc::gid_t> = vec![0; MOST];
    let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice()))
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open for as long as it is borrowed. The kernel writes at most
    // `bytes` bytes to `groups`, which has as many, and then how many it wrote to `bytes`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    groups.truncate(bytes / size_of::<libc::gid_t>());
    groups.shrink_to_fit();
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_kernel_tells_who_connected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        let who = Credentials::of(server.as_fd()).unwrap();
        assert_eq!(who.uid, rustix::process::geteuid().as_raw());
        let mut own: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        own.push(rustix::process::getegid().as_raw());
        assert_eq!(who.groups, own);
    }

    #[test]
    fn operators_are_root_the_daemon_and_the_group() {
        let operators = Operators {
            own: 1000,
            group: Some(50),
        };
        let who = |uid, groups: &[u32]| Credentials {
            uid,
            groups: groups.to_vec(),
        };
        assert!(operators.contain(&who(0, &[])));
        assert!(operators.contain(&who(1000, &[7])));
        assert!(operators.contain(&who(7, &[7, 50])));
        assert!(!operators.contain(&who(7, &[7])));
        let nobody = Operators {
            group: None,
            ..operators
        };
        assert!(!nobody.contain(&who(7, &[7, 50])));
    }

    #[test]
    fn groups_are_found_by_name_and_by_number() {
        let text = "root:x:0:\nbroken\naleph:x:990:ann,bob\nalephs:x:991:\n";
        assert_eq!(find_group(text, "aleph"), Some(990));
        assert_eq!(find_group(text, "ann"), None);
        assert_eq!(group_id("42"), Some(42));
        assert_eq!(group_id("root"), Some(0));
    }
}
