//! Filesystems on volumes: making them, and looking at what a writer left that did not end in order.
//!
//! | filesystem | its check | what that does |
//! | --- | --- | --- |
//! | ext4 | `e2fsck -p` | replays the journal, and mends what can be mended without asking |
//! | XFS, its log empty | `xfs_repair -n` | looks, and writes nothing |
//! | XFS, its log not empty | none | the mount of its guest replays that: only a kernel can, and without it `xfs_repair` takes what is in there for damage |
//!
//! Of an XFS nothing is mended here: `xfs_repair` without `-n` does all that it can think of, which may be to
//! throw files away, and asks nobody.

use super::disk_fault::found_in;
use super::error::VolumeError;
use super::sandbox::{NO_BOUND, Tool, ToolError, read_path};
use aleph_types::{Filesystem, MiB};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MAKE_TIME: Duration = Duration::from_secs(120);
/// A check reads all metadata.
const CHECK_TIME: Duration = Duration::from_secs(30 * 60);
/// How much is printed of a log at most.
const LOG_PRINTED: u64 = 16 << 20;
/// What an XFS begins with.
const XFS_MAGIC: &[u8; 4] = b"XFSB";
/// Where `xfs_logprint` says how a log is, before it says what is in it.
const LOG_STATE: usize = 1024;

/// The smallest disk that a filesystem is made on. XFS: `mkfs.xfs` refuses less than 300 MiB.
pub(super) fn least(filesystem: Filesystem) -> MiB {
    match filesystem {
        Filesystem::Ext4 => MiB(8),
        Filesystem::Xfs => MiB(300),
        Filesystem::None => MiB(1),
    }
}

/// Makes a filesystem on an empty raw disk.
pub(super) fn make(disk: &File, filesystem: Filesystem, size: MiB) -> Result<(), VolumeError> {
    let (program, mut arguments): (_, Vec<&str>) = match filesystem {
        Filesystem::None => return Ok(()),
        // No reserved blocks: the disk is a user's, not a system's.
        Filesystem::Ext4 => (
            "mke2fs",
            vec![
                "-q",
                "-F",
                "-t",
                "ext4",
                "-m",
                "0",
                "-E",
                "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
            ],
        ),
        Filesystem::Xfs => ("mkfs.xfs", vec!["-q", "-f", "-K"]),
    };
    let disk_path = read_path(0);
    arguments.push(&disk_path);
    let tool = Tool {
        program,
        arguments: arguments.into_iter().map(String::from).collect(),
        reads: Vec::new(),
        writes: Some(disk),
        time: MAKE_TIME,
        output: size.bytes(),
    };
    tool.run().map_err(|source| VolumeError::Tool {
        what: "make a filesystem",
        source,
    })
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checked {
    /// It is in order.
    InOrder,
    /// It is when what its writer had begun is replayed, which the next mount does that may write.
    LeftToMount,
}

/// Whether a check writes to the disk, so that nobody else may have it meanwhile.
pub(super) fn check_writes(filesystem: Filesystem) -> bool {
    filesystem == Filesystem::Ext4
}

/// Looks at the filesystem on a raw disk that nobody writes to. `disk` is open for writing where the check
/// [writes](check_writes), and nobody else has it then.
///
/// # Errors
/// Where it is damaged beyond what is mended without asking, or no program can look at it.
pub(super) fn check(
    disk: &File,
    filesystem: Filesystem,
    size: MiB,
    name: &str,
) -> Result<Checked, VolumeError> {
    match filesystem {
        Filesystem::None => Ok(Checked::InOrder),
        Filesystem::Ext4 => check_ext4(disk, size, name).map(|()| Checked::InOrder),
        Filesystem::Xfs => check_xfs(disk, name),
    }
}

fn check_ext4(disk: &File, size: MiB, name: &str) -> Result<(), VolumeError> {
    let tool = Tool {
        program: "e2fsck",
        arguments: vec!["-p".into(), read_path(0)],
        reads: Vec::new(),
        writes: Some(disk),
        time: CHECK_TIME,
        output: size.bytes(),
    };
    match tool.run() {
        // 1: errors were corrected; 2: the same, for a root filesystem that is mounted (e2fsck(8)).
        Ok(())
        | Err(ToolError::Failed {
            code: Some(1..=3), ..
        }) => Ok(()),
        // 4: errors are left. 8: there is no ext4 on it, as where a guest made something else of it.
        Err(ToolError::Failed {
            code: Some(8),
            said,
            ..
        }) if said.contains("magic number") => {
            tracing::info!(volume = name, "there is no ext4 filesystem on it any more");
            Ok(())
        }
        Err(source) => Err(failed(source, disk, Filesystem::Ext4, name)),
    }
}

fn check_xfs(disk: &File, name: &str) -> Result<Checked, VolumeError> {
    let unread = |source| {
        let program = "xfs_logprint";
        unmade(ToolError::Start { program, source })
    };
    // Without it `xfs_repair` would look for another one of its superblocks on all of the disk.
    if !begins_with(disk, XFS_MAGIC).map_err(unread)? {
        tracing::info!(volume = name, "there is no XFS filesystem on it any more");
        return Ok(Checked::InOrder);
    }
    let looks = |program, word: &str, (reads, writes), output| Tool {
        program,
        arguments: vec![word.to_owned(), read_path(0)],
        reads,
        writes,
        time: CHECK_TIME,
        output,
    };
    // It writes nothing, and opens the disk as one who may.
    let log = looks("xfs_logprint", "-t", (Vec::new(), Some(disk)), LOG_PRINTED);
    let printed = memfd_create("log", MemfdFlags::CLOEXEC).map(File::from);
    let printed = printed.map_err(|error| unread(error.into()))?;
    match log.run_printing(&printed) {
        // What it says of a log goes on behind its state, and may be too much for it or for us.
        Ok(()) | Err(ToolError::Failed { .. }) => {}
        Err(source) => return Err(unmade(source)),
    }
    let left = |why| {
        tracing::info!(volume = name, "its XFS filesystem is not checked: {why}");
        Ok(Checked::LeftToMount)
    };
    match log_of(&printed).map_err(unread)? {
        Log::Empty => {}
        Log::Dirty => return left("its log is replayed when its guest mounts it"),
        Log::Unknown => return left("its log is not on it, or of a kind that is not known here"),
    }
    // It insists on having no bound of its files, and has none to write to.
    let metadata = looks("xfs_repair", "-n", (vec![disk], None), NO_BOUND);
    match metadata.run() {
        Ok(()) => Ok(Checked::InOrder),
        Err(ToolError::Failed { said, .. }) if is_foreign(&said) => {
            left("it has its log elsewhere, or features that are not known here")
        }
        Err(source) => Err(failed(source, disk, Filesystem::Xfs, name)),
    }
}

/// A check that found damage, or a disk that cannot be read. What a check says has names in it that a guest gave:
/// the disk itself is asked.
fn failed(source: ToolError, disk: &File, filesystem: Filesystem, name: &str) -> VolumeError {
    if !matches!(source, ToolError::Failed { .. }) {
        return unmade(source);
    }
    // What cannot be read is not mended, and may be whole once its disk is.
    let fault = source.says_so().then(|| found_in(&[disk], None));
    fault.flatten().unwrap_or_else(|| VolumeError::Damaged {
        name: name.to_owned(),
        filesystem,
        source,
    })
}

/// A check that could not be made.
fn unmade(source: ToolError) -> VolumeError {
    VolumeError::Tool {
        what: "check the filesystem",
        source,
    }
}

/// Whether `xfs_repair` says that it cannot look at a filesystem, which may be whole: it knows a log on another disk
/// alone by an option, and no features that came after it. Lines with names in them begin otherwise.
fn is_foreign(said: &str) -> bool {
    let begins = [
        "This filesystem has an external log.",
        "Found unsupported filesystem features.",
    ];
    let is_one = |line: &str| begins.iter().any(|begin| line.starts_with(begin));
    said.lines().any(is_one)
}

fn begins_with(disk: &File, magic: &[u8; 4]) -> io::Result<bool> {
    let mut found = [0; 4];
    disk.read_exact_at(&mut found, 0)?;
    Ok(found == *magic)
}

/// What is in the log of an XFS filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    Empty,
    Dirty,
    Unknown,
}

/// What `xfs_logprint` says of a log: `log tail: 2 head: 18 state: <DIRTY>`. All that a guest wrote comes after that
/// line.
fn log_of(printed: &File) -> io::Result<Log> {
    let mut head = vec![0; LOG_STATE];
    let length = printed.read_at(&mut head, 0)?;
    let head = String::from_utf8_lossy(&head[..length]);
    let line = head.lines().find(|line| line.contains("state: <"));
    Ok(match line {
        Some(line) if line.ends_with("state: <CLEAN>") => Log::Empty,
        Some(_) => Log::Dirty,
        None => Log::Unknown,
    })
}
