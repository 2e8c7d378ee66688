//! Filesystems on volumes: making them, and mending what a writer left that did not end in order.

use super::error::VolumeError;
use super::sandbox::{Tool, ToolError, read_path};
use aleph_types::{Filesystem, MiB};
use std::fs::File;
use std::time::Duration;

const MAKE_TIME: Duration = Duration::from_secs(120);
/// A check reads all metadata.
const CHECK_TIME: Duration = Duration::from_secs(30 * 60);

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

/// Looks at the filesystem on a raw disk that nobody has, and mends what can be mended without asking.
///
/// XFS replays its own log when it is mounted, and its check refuses a disk whose log is not empty: there
/// is nothing to do.
pub(super) fn check(
    disk: &File,
    filesystem: Filesystem,
    size: MiB,
    name: &str,
) -> Result<(), VolumeError> {
    if filesystem != Filesystem::Ext4 {
        return Ok(());
    }
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
        // What cannot be read is not mended, and may be whole once its disk is.
        Err(source @ ToolError::Failed { .. }) if !source.is_failing() => {
            Err(VolumeError::Damaged {
                name: name.to_owned(),
                filesystem,
                source,
            })
        }
        Err(source) => Err(VolumeError::Tool {
            what: "check the filesystem",
            source,
        }),
    }
}
