//! Who a command runs as, from the guest's own `/etc/passwd` and `/etc/group`.

use crate::failure::{Failure, text};
use crate::file::read_bounded;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

/// A user and groups as processes have them, and the home that goes with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The user.
    pub(crate) uid: Uid,
    /// The primary group.
    pub(crate) gid: Gid,
    /// The supplementary groups.
    pub(crate) groups: Vec<Gid>,
    /// The home folder that `/etc/passwd` has, if any.
    pub(crate) home: Option<Vec<u8>>,
}

/// Looks up `name`, `uid`, `name:group` or `uid:gid`; root where it is empty. `user` is the
/// request's text. Only the files that the answer needs are read.
pub(crate) fn look_up(user: &[u8]) -> Result<Identity, Failure> {
    let user = if user.is_empty() { b"0" } else { user };
    let passwd = read_bounded(c"/etc/passwd").unwrap_or_default();
    let names_group = user.contains(&b':');
    // An owner of a name can be in groups; a bare number of nobody's cannot.
    let group = if names_group || find_user(&passwd, user).is_some() {
        read_bounded(c"/etc/group").unwrap_or_default()
    } else {
        Vec::new()
    };
    resolve(user, &passwd, &group)
}

/// The same on the files' contents.
fn resolve(user: &[u8], passwd: &[u8], group: &[u8]) -> Result<Identity, Failure> {
    let mut halves = user.splitn(2, |b| *b == b':');
    let (name, group_name) = (halves.next().unwrap_or_default(), halves.next());
    let entry = find_user(passwd, name);
    let uid = entry
        .as_ref()
        .map(|entry| entry.uid)
        .or_else(|| number(name))
        .ok_or_else(|| {
            Failure::because(
                format!("no user {} in /etc/passwd", text(name)),
                Errno::INVAL,
            )
        })?;
    let gid = match group_name {
        Some(wanted) => find_group(group, wanted).ok_or_else(|| {
            Failure::because(
                format!("no group {} in /etc/group", text(wanted)),
                Errno::INVAL,
            )
        })?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    // The primary group is among the others too: else a program that changes its group could
    // escape what is denied to the first one.
    let mut groups = vec![gid];
    if let (Some(entry), None) = (&entry, group_name) {
        groups.extend(
            memberships(group, entry.name)
                .into_iter()
                .filter(|other| *other != gid),
        );
    }
    Ok(Identity {
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups: groups.into_iter().map(Gid::from_raw).collect(),
        home: entry
            .map(|entry| entry.home.to_vec())
            .filter(|home| !home.is_empty()),
    })
}

struct UserEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// The user of this name, or else of this number.
fn find_user<'a>(passwd: &'a [u8], wanted: &[u8]) -> Option<UserEntry<'a>> {
    let wanted_uid = number(wanted);
    let entries = || {
        lines(passwd).filter_map(|line| {
            let mut fields = line.split(|b| *b == b':');
            Some(UserEntry {
                name: fields.next()?,
                uid: number(fields.nth(1)?)?,
                gid: number(fields.next()?)?,
                home: fields.nth(1).unwrap_or_default(),
            })
        })
    };
    entries()
        .find(|entry| entry.name == wanted)
        .or_else(|| entries().find(|entry| Some(entry.uid) == wanted_uid))
}

/// The number of the group of this name, or the number itself.
fn find_group(group: &[u8], wanted: &[u8]) -> Option<u32> {
    groups(group)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| number(wanted))
}

fn memberships(group: &[u8], user: &[u8]) -> Vec<u32> {
    groups(group)
        .filter(|(.., members)| members.split(|b| *b == b',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .collect()
}

fn groups(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        Some((
            fields.next()?,
            number(fields.nth(1)?)?,
            fields.next().unwrap_or_default(),
        ))
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

/// A decimal number without sign. The largest one means "leave it" to the kernel's calls, so it
/// is nobody's.
fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits)
        .ok()?
        .parse()
        .ok()
        .filter(|n| *n != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\n\
        web:x:33:34:www:/var/www:/bin/false\n7:x:1007:1007::/home/seven:/bin/sh\nshort:x:5:6";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:34:\nlog:x:40:web,other\nssl:x:41:other,web\n";

    fn seen(user: &str) -> (u32, u32, Vec<u32>, Option<String>) {
        let identity = resolve(user.as_bytes(), PASSWD, GROUP).unwrap();
        (
            identity.uid.as_raw(),
            identity.gid.as_raw(),
            identity.groups.iter().map(|gid| gid.as_raw()).collect(),
            identity.home.map(|home| String::from_utf8(home).unwrap()),
        )
    }

    #[test]
    fn users_resolve() {
        let home = |path: &str| Some(path.to_owned());
        assert_eq!(seen("0"), (0, 0, vec![0], home("/root")));
        assert_eq!(seen("web"), (33, 34, vec![34, 40, 41], home("/var/www")));
        assert_eq!(seen("33"), (33, 34, vec![34, 40, 41], home("/var/www")));
        assert_eq!(seen("web:log"), (33, 40, vec![40], home("/var/www")));
        assert_eq!(seen("web:9"), (33, 9, vec![9], home("/var/www")));
        assert_eq!(seen("1000:1001"), (1000, 1001, vec![1001], None));
        assert_eq!(seen("1000"), (1000, 0, vec![0], None));
        // A name of digits is a name first.
        assert_eq!(seen("7"), (1007, 1007, vec![1007], home("/home/seven")));
        assert_eq!(seen("short"), (5, 6, vec![6], None));
    }

    #[test]
    fn unknown_ones_are_refused_by_name() {
        for (user, want) in [
            ("nobody", "no user nobody in /etc/passwd"),
            ("", "no user  in /etc/passwd"),
            ("-1", "no user -1 in /etc/passwd"),
            ("4294967295", "no user 4294967295 in /etc/passwd"),
            ("web:none", "no group none in /etc/group"),
        ] {
            let failure = resolve(user.as_bytes(), PASSWD, GROUP).unwrap_err();
            assert_eq!(failure.message, want);
        }
    }
}
