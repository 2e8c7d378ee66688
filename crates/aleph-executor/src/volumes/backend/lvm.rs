//! LVM's programs, and what the kernel says of their volumes.
//!
//! They run as the node does, since they change what the whole host has: without a shell, with a bound on their
//! time, and with settings of our own over those of `lvm.conf` ([`Lvm::settings`]), so that a filter there or
//! a file of devices does not decide what is found. No logical volume is looked into for volume groups:
//! a guest can write what it likes into its own. Where `udev` does not run, LVM does not wait for it. A
//! program that is under way ends by itself when the node dies; the next one waits for it.
//!
//! What is a device, and how large, is read from sysfs, which costs no program.

use crate::volumes::error::VolumeError;
use crate::volumes::sandbox::{ToolError, end_of, wait_twice};
use rustix::fs::{Dev, MemfdFlags, makedev, memfd_create};
use serde_json::Value;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

/// LVM waits for others that change the same group.
const TIME: Duration = Duration::from_secs(120);
/// One that is killed in the middle of a change leaves devices suspended: it is asked to end first.
const GRACE: Duration = Duration::from_secs(30);
/// More than a report of ten thousand volumes.
const REPORT: u64 = 16 << 20;

/// A thin pool of LVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinPool {
    /// Its volume group.
    pub group: String,
    /// Its name in it.
    pub name: String,
}

impl fmt::Display for ThinPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.name)
    }
}

impl FromStr for ThinPool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // lvm(8), "Valid Names".
        let is_name = |name: &&str| {
            let is_letter = |c: u8| c.is_ascii_alphanumeric() || b"+_.-".contains(&c);
            !name.starts_with(['-', '.'])
                && (1..=127).contains(&name.len())
                && name.bytes().all(is_letter)
        };
        let parts = text.split_once('/');
        let parts = parts.filter(|(group, name)| is_name(group) && is_name(name));
        let (group, name) =
            parts.ok_or_else(|| format!("{text:?} is not of the form GROUP/POOL"))?;
        Ok(Self {
            group: group.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// A logical volume that is a device now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Active {
    pub(super) device: Dev,
    /// In bytes.
    pub(super) size: u64,
}

/// How LVM's programs are called.
#[derive(Debug)]
pub(super) struct Lvm {
    settings: String,
}

impl Lvm {
    pub(super) fn new() -> Self {
        let udev = Path::new("/run/udev/control").exists();
        Self {
            settings: Self::settings(udev),
        }
    }

    fn settings(udev: bool) -> String {
        let (devices, activation) = match udev {
            true => ("", ""),
            false => (
                " obtain_device_list_from_udev=0 external_device_info_source=\"none\"",
                " udev_sync=0 udev_rules=0 verify_udev_operations=0",
            ),
        };
        format!(
            "devices {{ scan_lvs=0 use_devicesfile=0 filter=[\"a|.*|\"] \
             global_filter=[\"a|.*|\"]{devices} }} activation {{ monitoring=0{activation} }}"
        )
    }

    /// Runs one to its end.
    pub(super) fn run(
        &self,
        what: &'static str,
        word: &str,
        arguments: &[&str],
    ) -> Result<(), VolumeError> {
        let ran = self.output(word, &[&["-qq", "--yes"], arguments].concat());
        ran.map(drop)
            .map_err(|source| VolumeError::Tool { what, source })
    }

    /// The rows of a report of logical volumes.
    pub(super) fn report(
        &self,
        fields: &str,
        arguments: &[&str],
    ) -> Result<Vec<Value>, VolumeError> {
        let form = [
            "--reportformat",
            "json",
            "--units",
            "b",
            "--nosuffix",
            "-o",
            fields,
        ];
        let what = "look at LVM's volumes";
        let tool = |source| VolumeError::Tool { what, source };
        let text = self
            .output("lvs", &[form.as_slice(), arguments].concat())
            .map_err(tool)?;
        let unread = |source| {
            tool(ToolError::Start {
                program: "lvm",
                source,
            })
        };
        let report: Value = serde_json::from_slice(&text).map_err(|error| unread(error.into()))?;
        let rows = report["report"][0]["lv"].as_array().cloned();
        rows.ok_or_else(|| unread(io::Error::other("its report has no volumes")))
    }

    fn output(&self, word: &str, arguments: &[&str]) -> Result<Vec<u8>, ToolError> {
        const PROGRAM: &str = "lvm";
        let start = |source| ToolError::Start {
            program: PROGRAM,
            source,
        };
        let memory = |name: &str| {
            let made = memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
            made.map_err(|error| start(error.into()))
        };
        let (told, said) = (memory("told")?, memory("said")?);
        let paths = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(PROGRAM);
        command
            .args([word, "--config", &self.settings])
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{paths}:/usr/sbin:/sbin:/usr/bin:/bin"))
            .env("LC_ALL", "C.UTF-8")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(told.try_clone().map_err(start)?)
            .stderr(said.try_clone().map_err(start)?);
        let child = command.spawn().map_err(start)?;
        let Some(status) = wait_twice(child, TIME, GRACE).map_err(start)? else {
            return Err(ToolError::Late {
                program: PROGRAM,
                time: TIME,
            });
        };
        if !status.success() {
            return Err(ToolError::Failed {
                program: PROGRAM,
                status: status.to_string(),
                said: end_of(&said),
                code: status.code(),
            });
        }
        let length = told.metadata().map_err(start)?.len().min(REPORT);
        let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
        told.read_exact_at(&mut text, 0).map_err(start)?;
        Ok(text)
    }
}

/// A number in a report, which has them as text.
pub(super) fn number(row: &Value, field: &str) -> Option<f64> {
    row[field].as_str()?.trim().parse().ok()
}

/// A logical volume's device, where it has one.
pub(super) fn active(group: &str, name: &str) -> io::Result<Option<Active>> {
    let doubled = |name: &str| name.replace('-', "--");
    let wanted = format!("{}-{}", doubled(group), doubled(name));
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let folder = entry.path();
        let text = |file: &str| fs::read_to_string(folder.join(file));
        // Others come and go meanwhile.
        if !text("dm/name").is_ok_and(|name| name.trim_end() == wanted) {
            continue;
        }
        let (Ok(device), Ok(sectors)) = (text("dev"), text("size")) else {
            continue;
        };
        let device = device.trim().split_once(':');
        let device =
            device.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        if let (Some((major, minor)), Ok(sectors)) = (device, sectors.trim().parse::<u64>()) {
            return Ok(Some(Active {
                device: makedev(major, minor),
                size: sectors * 512,
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_named_by_group_and_name() {
        let pool: ThinPool = "vg0/thin-pool".parse().unwrap();
        assert_eq!(
            (pool.group.as_str(), pool.name.as_str()),
            ("vg0", "thin-pool")
        );
        assert_eq!(pool.to_string(), "vg0/thin-pool");
        for bad in [
            "", "vg", "/p", "v/", "v/p/q", "-v/p", "v/p q", "v/../x", "v/$(x)",
        ] {
            assert!(bad.parse::<ThinPool>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn without_udev_nobody_waits_for_it() {
        assert!(!Lvm::settings(true).contains("udev_sync"));
        assert!(Lvm::settings(false).contains("udev_sync=0"));
        // What a guest writes into its disk is not looked at, whatever lvm.conf says.
        assert!(Lvm::settings(true).contains("scan_lvs=0"));
    }
}
