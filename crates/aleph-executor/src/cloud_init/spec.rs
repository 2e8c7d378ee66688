//! What a VM's job says of its guest.

use super::unit::UNIT_FILE;
use super::{CloudInitError, Secret};
use aleph_types::{JobId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The user that every guest has.
pub const USER: &str = "aleph";
/// Bytes that all files may have together.
pub const MAX_FILES: usize = aleph_types::MAX_FILES;
/// Bytes that the environment may have.
pub const MAX_ENV: usize = 128 * 1024;
/// How many of each thing there may be.
pub const MAX_ENTRIES: usize = 1024;
/// What virtio-blk tells a guest of a serial number, in bytes.
pub const MAX_SERIAL: usize = 20;

/// All that cloud-init is told of one VM.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Whose VM it is.
    pub job: JobId,
    /// Where it runs.
    pub node: NodeId,
    /// Counts the root disks that the job was given. To cloud-init a new one is a new instance, in
    /// which all is done again; with the old one nothing is.
    pub generation: u32,
    /// The hostname; `job-` and the short job id when absent.
    pub hostname: Option<String>,
    /// Who may log in as [`USER`], a line of `authorized_keys` each.
    pub ssh_keys: Vec<String>,
    /// Environment of the command, in `/etc/aleph/job.env`.
    pub env: BTreeMap<String, Secret>,
    /// Files, written after packages are installed and volumes mounted, before the command.
    pub files: Vec<File>,
    /// Packages of the guest's distribution.
    pub packages: Vec<String>,
    /// What runs, in each boot, after all of cloud-init.
    pub command: Option<Command>,
    /// Volumes to mount.
    pub volumes: Vec<Volume>,
    /// Network cards. Without one the guest is told that it has none.
    pub networks: Vec<Nic>,
    /// Whether the root partition and file system grow to the disk's size.
    pub grow_root: bool,
    /// Whether its machine gets processors and memory while it runs, which it is to take into use.
    pub takes_more: bool,
    /// The user's own user-data, in any form that cloud-init takes but part handlers.
    pub user_data: Option<Secret>,
}

/// A file in the guest.
#[derive(Debug, Clone)]
pub struct File {
    /// Absolute, without `..`.
    pub path: String,
    /// Any bytes.
    pub content: Secret,
    /// Permission bits, at most `0o7777`.
    pub mode: u16,
    /// Whose it is.
    pub owner: Owner,
}

/// Whose a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// Users and groups by name, those of the user-data and of packages included.
    Named {
        /// User.
        user: String,
        /// Group.
        group: String,
    },
    /// By number. The file is root's until just before the command.
    Ids {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// The application.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program, looked up in `PATH`, and arguments.
    pub args: Vec<String>,
    /// As whom it runs, by name or number; root when absent.
    pub user: Option<String>,
    /// With which group, by name or number; the user's own when absent.
    pub group: Option<String>,
    /// Where it runs; `/` when absent.
    pub workdir: Option<String>,
}

/// A disk that is mounted.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The serial number that its virtio disk has: letters, digits, `_` and `-`, at most
    /// [`MAX_SERIAL`].
    pub serial: String,
    /// Where.
    pub mount: String,
    /// What it is formatted with where there is nothing on it.
    pub filesystem: Filesystem,
    /// Mounted for reading, and never formatted.
    pub read_only: bool,
}

/// A file system that guests make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    /// ext4.
    Ext4,
    /// XFS; the guest needs `xfsprogs`.
    Xfs,
}

impl Filesystem {
    /// Its name in `mkfs` and `fstab`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A network card with addresses of its own.
#[derive(Debug, Clone)]
pub struct Nic {
    /// By which the guest knows it.
    pub mac: aleph_vm_networking::mac::Mac,
    /// Its name in the guest, at most 15 bytes.
    pub name: String,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where all else is sent, one of each family at most.
    pub gateways: Vec<IpAddr>,
    /// Resolvers.
    pub nameservers: Vec<IpAddr>,
    /// Domains that short names are looked up in.
    pub search: Vec<String>,
    /// Largest packet, 68 bytes or more; 1280 with IPv6.
    pub mtu: Option<u16>,
}

impl GuestSpec {
    /// A guest of this job on this node and nothing else, its root grown.
    #[must_use]
    pub fn new(job: JobId, node: NodeId) -> Self {
        Self {
            job,
            node,
            generation: 0,
            hostname: None,
            ssh_keys: Vec::new(),
            env: BTreeMap::new(),
            files: Vec::new(),
            packages: Vec::new(),
            command: None,
            volumes: Vec::new(),
            networks: Vec::new(),
            grow_root: true,
            takes_more: false,
            user_data: None,
        }
    }

    /// The name that the guest gets.
    #[must_use]
    pub fn hostname(&self) -> String {
        self.hostname
            .clone()
            .unwrap_or_else(|| format!("job-{}", self.job.short()))
    }

    /// Checks all but the user-data.
    pub(super) fn check(&self) -> Result<(), CloudInitError> {
        if let Some(name) = &self.hostname {
            require(is_hostname(name), "hostname", "is not a host's name")?;
        }
        self.check_counts()?;
        for (i, key) in self.ssh_keys.iter().enumerate() {
            require(
                is_ssh_key(key),
                format!("ssh_keys[{i}]"),
                "is not a line of authorized_keys: its type, then base64",
            )?;
        }
        self.check_env()?;
        self.check_files()?;
        for (i, package) in self.packages.iter().enumerate() {
            require(
                is_package(package),
                format!("packages[{i}]"),
                "is not a package's name",
            )?;
        }
        if let Some(command) = &self.command {
            command.check()?;
        }
        self.check_volumes()
    }

    fn check_counts(&self) -> Result<(), CloudInitError> {
        for (field, there, most) in [
            ("ssh_keys", self.ssh_keys.len(), MAX_ENTRIES),
            ("env", self.env.len(), MAX_ENTRIES),
            ("files", self.files.len(), MAX_ENTRIES),
            ("packages", self.packages.len(), MAX_ENTRIES),
            ("volumes", self.volumes.len(), MAX_ENTRIES),
        ] {
            at_most(field, there, most)?;
        }
        let bytes = self.files.iter().map(|file| file.content.len()).sum();
        at_most("the content of files", bytes, MAX_FILES)?;
        let bytes = self.env.iter().map(|(k, v)| k.len() + v.len()).sum();
        at_most("the text of env", bytes, MAX_ENV)
    }

    fn check_env(&self) -> Result<(), CloudInitError> {
        for (name, value) in &self.env {
            // The name is as likely to be a secret as not where it is none.
            require(
                is_variable(name),
                "env",
                "has a name that is not letters, digits and _, or that begins with a digit",
            )?;
            let field = || format!("env.{name}");
            require(
                !matches!(name.as_str(), "JOB_ID" | "NODE_ID"),
                field(),
                "is set by the node",
            )?;
            let text = value
                .expose_text()
                .map_err(|_| CloudInitError::field(field(), "is not UTF-8"))?;
            // systemd leaves such a variable out, and says so nowhere but in its journal.
            require(
                !text
                    .chars()
                    .any(|c| c.is_control() && !matches!(c, '\t' | '\n')),
                field(),
                "has control characters other than tab and newline",
            )?;
            require(!text.chars().any(is_noncharacter), field(), NONCHARACTER)?;
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), CloudInitError> {
        let mut paths = BTreeSet::new();
        for (i, file) in self.files.iter().enumerate() {
            let field = |name: &str| format!("files[{i}].{name}");
            check_path(&file.path, || field("path"))?;
            // To the kernel it is another spelling of a path that may be the node's.
            require(!file.path.contains("//"), field("path"), "has // in it")?;
            require(
                !file.path.ends_with('/'),
                field("path"),
                "is a folder's path",
            )?;
            require(
                !file.path.starts_with("/etc/aleph/"),
                field("path"),
                "is in /etc/aleph, which is the node's",
            )?;
            let drop_ins = format!("{UNIT_FILE}.d/");
            require(
                file.path != UNIT_FILE && !file.path.starts_with(&drop_ins),
                field("path"),
                "is that of the job's unit, which is the node's",
            )?;
            require(
                paths.insert(&file.path),
                field("path"),
                "is that of another file, too",
            )?;
            require(file.mode <= 0o7777, field("mode"), "has bits beyond 0o7777")?;
            if let Owner::Named { user, group } = &file.owner {
                require(is_user(user), field("owner"), "is not a user's name")?;
                require(is_user(group), field("owner"), "is not a group's name")?;
            }
        }
        Ok(())
    }

    fn check_volumes(&self) -> Result<(), CloudInitError> {
        let (mut serials, mut mounts) = (BTreeSet::new(), BTreeSet::new());
        for (i, volume) in self.volumes.iter().enumerate() {
            let field = |name: &str| format!("volumes[{i}].{name}");
            let serial = &volume.serial;
            require(
                !serial.is_empty()
                    && serial.len() <= MAX_SERIAL
                    && serial
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')),
                field("serial"),
                "is not 1 to 20 letters, digits, _ and -",
            )?;
            require(
                serials.insert(serial),
                field("serial"),
                "is that of another volume, too",
            )?;
            // `_get_nth_partition_for_device` of cloud-init's `cc_mounts` tries these endings.
            let partition = ["1", "p1", "-part1"].iter().any(|end| {
                self.volumes
                    .iter()
                    .any(|other| other.serial == format!("{serial}{end}"))
            });
            require(
                !partition,
                field("serial"),
                "is another's without its 1, p1 or -part1, which guests take for a partition",
            )?;
            check_path(&volume.mount, || field("mount"))?;
            // fstab has its own escapes for these, and cloud-init writes none.
            require(
                !volume
                    .mount
                    .chars()
                    .any(|c| c.is_whitespace() || matches!(c, '\\' | '#' | ',')),
                field("mount"),
                "has white space, a backslash, a comma or #",
            )?;
            let mount = volume.mount.trim_end_matches('/');
            require(!mount.is_empty(), field("mount"), "is the root")?;
            require(
                mounts.insert(mount),
                field("mount"),
                "is that of another volume, too",
            )?;
        }
        Ok(())
    }
}

impl Command {
    fn check(&self) -> Result<(), CloudInitError> {
        require(
            self.args.first().is_some_and(|program| !program.is_empty()),
            "command.args",
            "has no program",
        )?;
        require(
            !self.args.iter().any(|arg| arg.contains('\0')),
            "command.args",
            "has a NUL byte",
        )?;
        let mut chars = self.args.iter().flat_map(|arg| arg.chars());
        require(!chars.any(is_noncharacter), "command.args", NONCHARACTER)?;
        let bytes = self.args.iter().map(String::len).sum();
        at_most("the text of command.args", bytes, aleph_types::MAX_WORDS)?;
        for (field, name) in [("command.user", &self.user), ("command.group", &self.group)] {
            if let Some(name) = name {
                let number = name.parse::<u32>().is_ok_and(|id| id != u32::MAX);
                require(number || is_user(name), field, "is not a name or a number")?;
            }
        }
        match &self.workdir {
            Some(path) => {
                let field = "command.workdir";
                require(!path.chars().any(is_noncharacter), field, NONCHARACTER)?;
                check_path(path, || field.into())
            }
            None => Ok(()),
        }
    }
}

pub(super) fn require(
    holds: bool,
    field: impl Into<String>,
    why: &'static str,
) -> Result<(), CloudInitError> {
    if holds {
        Ok(())
    } else {
        Err(CloudInitError::field(field, why))
    }
}

pub(super) fn at_most(
    field: impl Into<String>,
    there: usize,
    most: usize,
) -> Result<(), CloudInitError> {
    if there <= most {
        Ok(())
    } else {
        Err(CloudInitError::TooMuch {
            field: field.into(),
            there,
            most,
        })
    }
}

fn check_path(path: &str, field: impl Fn() -> String) -> Result<(), CloudInitError> {
    require(path.starts_with('/'), field(), "is not absolute")?;
    require(path.len() < 4096, field(), "has 4096 bytes or more")?;
    require(
        !path.split('/').any(|part| matches!(part, ".." | ".")),
        field(),
        "has . or .. in it",
    )?;
    require(
        !path.chars().any(char::is_control),
        field(),
        "has control characters",
    )
}

const NONCHARACTER: &str = "has a character that Unicode keeps from being one";

/// To systemd text with one of these is no UTF-8, and it leaves out the line or the file that it is
/// in (`unichar_is_valid` of `utf8.c`).
fn is_noncharacter(c: char) -> bool {
    let c = u32::from(c);
    (0xfdd0..=0xfdef).contains(&c) || c & 0xfffe == 0xfffe
}

/// RFC 1123, and no longer than Linux takes.
fn is_hostname(name: &str) -> bool {
    name.len() <= 64
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

pub(super) fn is_domain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

fn is_variable(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What `useradd` takes everywhere.
fn is_user(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 32
        && bytes
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

/// Names of Debian's and RPM's kind, a version or an architecture after them.
fn is_package(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-._:~=".contains(&b))
}

/// Options are allowed before the type, as sshd does; a line break never is.
fn is_ssh_key(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    let typed = |word: &str| {
        ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"]
            .iter()
            .any(|start| word.starts_with(start))
    };
    line.len() <= 16 * 1024
        && !line.chars().any(char::is_control)
        && words.windows(2).any(|pair| {
            typed(pair[0])
                && pair[1].len() >= 16
                && pair[1]
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
        })
}
