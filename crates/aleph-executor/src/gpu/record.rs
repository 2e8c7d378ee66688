//! Who has which GPUs, in a file that outlives the daemon and the host's boot.
//!
//! There is one on a host, however many nodes run on it: its devices are one host's too.
//!
//! It is written before anything on the host is changed, and says what was before: so whoever reads it
//! after a crash at any point can go on or go back.

use super::address::PciAddress;
use super::function::PciFunction;
use super::sysfs::HostTree;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// The version of the file's form.
const VERSION: u32 = 1;

/// Who has which GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// What each tenant has.
    pub tenants: BTreeMap<Tenant, Vec<Taken>>,
    /// What nobody gets any more.
    pub quarantines: Vec<Quarantine>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            version: VERSION,
            tenants: BTreeMap::new(),
            quarantines: Vec::new(),
        }
    }
}

/// Whom GPUs are given to: one start of a job, so that the end of an earlier one takes nothing from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant {
    /// The id of the node that runs the job.
    pub node: String,
    /// The job's id.
    pub job: String,
    /// Which start of it.
    pub incarnation: u64,
}

/// A text that names no tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no start of a job of a node")]
pub struct ParseTenantError(String);

impl Tenant {
    /// A start of a job of a node.
    #[must_use]
    pub fn new(node: impl Into<String>, job: impl Into<String>, incarnation: u64) -> Self {
        Self {
            node: node.into(),
            job: job.into(),
            incarnation,
        }
    }
}

/// `NODE/JOB/START`.
impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.node, self.job, self.incarnation)
    }
}

impl FromStr for Tenant {
    type Err = ParseTenantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (node, rest) = text.split_once('/')?;
            let (job, incarnation) = rest.rsplit_once('/')?;
            Some(Self::new(node, job, incarnation.parse().ok()?))
        };
        parse().ok_or_else(|| ParseTenantError(text.to_owned()))
    }
}

impl TryFrom<String> for Tenant {
    type Error = ParseTenantError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.to_string()
    }
}

/// An IOMMU group that was taken from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// The host's boot in which it was taken, by the kernel's id of it. What is bound to drivers, and
    /// which number a group has, is of that boot alone.
    pub boot: String,
    /// Its number, in that boot.
    pub group: u32,
    /// The GPUs in it.
    pub gpus: Vec<PciAddress>,
    /// All functions of it that go to the guest.
    pub functions: Vec<TakenFunction>,
}

/// A function that was taken from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakenFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Who made it. With `device` it tells whether the address is still that of the same thing.
    pub vendor: u16,
    /// Which device it is.
    pub device: u16,
    /// How it was before.
    pub prior: Prior,
}

/// Who drove a function before it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prior {
    /// The driver that was bound to it.
    pub driver: Option<String>,
    /// The only one that could bind.
    pub driver_override: Option<String>,
    /// The kind of vGPU that it was: it stays with its driver, which makes it anew to clear it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu: Option<u32>,
}

/// A group that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    /// What failed.
    pub taken: Taken,
    /// How.
    pub reason: String,
    /// When, in seconds since 1970.
    pub since: u64,
}

impl Taken {
    /// The device node that its guest opens.
    #[must_use]
    pub fn node(&self, tree: &HostTree) -> PathBuf {
        tree.dev.join("vfio").join(self.group.to_string())
    }

    fn has(&self, is_it: impl Fn(&TakenFunction) -> bool) -> bool {
        self.functions.iter().any(is_it)
    }
}

impl TakenFunction {
    /// Whether it is this very function, and not another device that is at its address by now.
    pub(super) fn is(&self, function: &PciFunction) -> bool {
        let ids = (function.vendor, function.device);
        self.address == function.address && (self.vendor, self.device) == ids
    }
}

impl Record {
    /// Who has a function. Whoever had another device at its address does not.
    #[must_use]
    pub fn tenant_of(&self, function: &PciFunction) -> Option<&Tenant> {
        self.tenant(|taken| taken.is(function))
    }

    /// Who has what is at an address, or was there.
    pub(super) fn tenant_at(
        &self,
        address: PciAddress,
        now: Option<&PciFunction>,
    ) -> Option<&Tenant> {
        let now = now.and_then(|now| self.tenant_of(now));
        now.or_else(|| self.tenant(|taken| taken.address == address))
    }

    fn tenant(&self, is_it: impl Fn(&TakenFunction) -> bool) -> Option<&Tenant> {
        let mut tenants = self.tenants.iter();
        let found = tenants.find(|(_, taken)| taken.iter().any(|taken| taken.has(&is_it)));
        found.map(|(tenant, _)| tenant)
    }

    /// The quarantine that a function is in. One that replaces it at its address is in none.
    #[must_use]
    pub fn quarantine_of(&self, function: &PciFunction) -> Option<&Quarantine> {
        self.quarantine(|taken| taken.is(function))
    }

    /// The quarantine of what is at an address, or was there.
    pub(super) fn quarantine_at(
        &self,
        address: PciAddress,
        now: Option<&PciFunction>,
    ) -> Option<&Quarantine> {
        let now = now.and_then(|now| self.quarantine_of(now));
        now.or_else(|| self.quarantine(|taken| taken.address == address))
    }

    fn quarantine(&self, is_it: impl Fn(&TakenFunction) -> bool) -> Option<&Quarantine> {
        let mut quarantines = self.quarantines.iter();
        quarantines.find(|quarantine| quarantine.taken.has(&is_it))
    }

    /// Takes a group away from a tenant: for quarantine, or for good.
    pub(super) fn remove(&mut self, tenant: &Tenant, group: u32) -> Option<Taken> {
        let groups = self.tenants.get_mut(tenant)?;
        let at = groups.iter().position(|taken| taken.group == group)?;
        let taken = groups.remove(at);
        if groups.is_empty() {
            self.tenants.remove(tenant);
        }
        Some(taken)
    }
}

/// The folder of the record.
#[derive(Debug, Clone)]
pub(super) struct RecordFolder(PathBuf);

impl RecordFolder {
    pub(super) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    fn file(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// What is recorded; nothing where there never was anything.
    pub(super) fn read(&self) -> io::Result<Record> {
        let text = match fs::read(self.file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
            other => other?,
        };
        let record: Record = serde_json::from_slice(&text)?;
        if record.version != VERSION {
            let version = record.version;
            return Err(io::Error::other(format!(
                "it is of version {version}, and only {VERSION} is known"
            )));
        }
        Ok(record)
    }

    /// The record for one who changes it; others wait until it is dropped, with this much patience: who has it
    /// may wait for a device that does not answer, for ever.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where somebody has it for longer.
    pub(super) fn lock(&self, patience: Duration) -> io::Result<OpenRecord> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)?;
        let lock = File::create(self.0.join("lock"))?;
        let end = Instant::now() + patience;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                locked => break locked?,
            }
        }
        Ok(OpenRecord {
            folder: self.clone(),
            record: self.read()?,
            _lock: lock,
        })
    }
}

/// The record in the hands of the only one who may change it.
#[derive(Debug)]
pub(super) struct OpenRecord {
    folder: RecordFolder,
    pub(super) record: Record,
    _lock: File,
}

impl OpenRecord {
    /// Puts what is recorded on disk, whole or not at all.
    pub(super) fn save(&self) -> io::Result<()> {
        let path = self.folder.file();
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(&self.record)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(&self.folder.0)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_outlives_its_writer_and_is_never_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RecordFolder::new(dir.path());
        assert_eq!(folder.read().unwrap(), Record::default());

        let address: PciAddress = "18:00.0".parse().unwrap();
        let job = Tenant::new("node", "job", 1);
        let taken = Taken {
            boot: "first".into(),
            group: 7,
            gpus: vec![address],
            functions: vec![TakenFunction {
                address,
                vendor: 0x10de,
                device: 0x2335,
                prior: Prior {
                    driver: Some("nvidia".into()),
                    ..Prior::default()
                },
            }],
        };
        let mut open = folder.lock(Duration::ZERO).unwrap();
        open.record.tenants.insert(job.clone(), vec![taken]);
        open.save().unwrap();
        let kept = open.record.clone();
        drop(open);
        let mut read = folder.read().unwrap();
        assert_eq!(read, kept);
        assert_eq!(read.tenant_at(address, None), Some(&job));
        assert!(read.remove(&job, 8).is_none() && read.remove(&job, 7).is_some());
        assert!(read.tenants.is_empty());

        fs::write(folder.file(), "{").unwrap();
        assert!(
            folder.lock(Duration::ZERO).is_err(),
            "half a file is not an empty one"
        );
        let newer = serde_json::to_string(&kept)
            .unwrap()
            .replace("\"version\":1", "\"version\":2");
        fs::write(folder.file(), newer).unwrap();
        assert!(folder.read().unwrap_err().to_string().contains("version 2"));
    }
}
