//! Jobs and their VMs.

use super::{Journal, JournalError, events};
use crate::guest::MountRequest;
use crate::hypervisor::MachineSize;
use aleph_types::{Event, Incarnation, Job, JobId, JobSpec, SnapshotId, Timestamp, VmId, VolumeId};
use aleph_vm_networking::Claim;
use rusqlite::{OptionalExtension, Transaction};
use serde::{Deserialize, Serialize};

/// What a job's user wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// That it runs.
    Run,
    /// That its guest is frozen.
    Pause,
    /// That it does not run.
    Stop,
    /// That it is gone.
    Destroy,
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// What is told of it.
    pub job: Job,
    /// What its user wants.
    pub desired: Desired,
    /// Starts by the restart policy in a row.
    pub in_a_row: u32,
    /// When its back-off is over, where it waits for a new start.
    pub restart_at: Option<Timestamp>,
    /// What it was last started as.
    pub run: Option<RunRecord>,
    /// The snapshot that its next or present start goes on from, until its guest has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SnapshotId>,
    /// Whether the processes of its guest may stand still: it is written down, or begins with a
    /// snapshot. Whoever finds it so after a crash lets them go on.
    #[serde(default)]
    pub frozen: bool,
    /// A volume that its machine is being given, or that is being taken from it. Whoever finds it so after a
    /// crash asks the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changing: Option<VolumeChange>,
    /// What its machine had before it began to grow to the size that its specification has. Whoever finds it
    /// so after a crash asks the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resizing: Option<MachineSize>,
}

/// A volume that a machine which runs is being given, or that is being taken from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeChange {
    /// Whether it is being given.
    pub attach: bool,
    /// Its name.
    pub name: String,
    /// Its id.
    pub volume: VolumeId,
    /// The serial number of its disk.
    pub serial: String,
}

/// What a job was started as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The boot of the host.
    pub host_boot: String,
    /// The specification, completed by what its image says.
    pub effective: JobSpec,
    /// The image's filesystem as mount(2) names it.
    pub filesystem: String,
    /// The signal that asks its command to end.
    pub stop_signal: u8,
    /// How many bytes of its command's output came before this job: those are in the log of the
    /// job that it goes on from.
    #[serde(default)]
    pub log_base: u64,
    /// Its volumes as its guest mounts them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountRequest>,
}

/// A VM that may have objects on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    /// Which VM.
    pub vm: VmId,
    /// Of which job.
    pub job: JobId,
    /// Of which of its starts.
    pub incarnation: Incarnation,
    /// Its address and ports, where it has a network.
    pub network: Option<Claim>,
}

pub(super) fn put(t: &Transaction<'_>, record: &JobRecord) -> Result<(), JournalError> {
    let id = record.job.id.to_string();
    let text = serde_json::to_string(record).map_err(|source| JournalError::Damaged {
        what: format!("job {id}"),
        source,
    })?;
    t.prepare_cached(
        "INSERT INTO jobs VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (id) DO UPDATE SET record = excluded.record",
    )
    .and_then(|mut s| s.execute((id, &record.job.account, &record.job.name, text)))
    .map_err(JournalError::sql("keep a job"))
    .map(drop)
}

pub(super) fn damaged(what: &str) -> JournalError {
    JournalError::Damaged {
        what: what.to_owned(),
        source: serde::de::Error::custom("it is not of its form"),
    }
}

fn lookup(
    t: &Transaction<'_>,
    account: &str,
    key: &str,
) -> Result<Option<([u8; 32], JobId)>, JournalError> {
    let sql = || JournalError::sql("look a request up");
    let known = t
        .prepare_cached("SELECT request, job FROM idempotency WHERE account = ?1 AND key = ?2")
        .map_err(sql())?
        .query_row((account, key), |row| {
            Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, String>(1)?))
        })
        .optional()
        .map_err(sql())?;
    known
        .map(|(hash, job)| Ok((hash, job.parse().map_err(|_| damaged("a request"))?)))
        .transpose()
}

/// An idempotent request: its account, its key, and what it asked for as a hash.
pub(crate) type RequestKey = (String, String, [u8; 32]);

/// What a create came to.
pub(crate) enum Inserted {
    /// The job is new.
    New(Event),
    /// The same request made this job before.
    Before(JobId),
    /// Another request used the key before.
    KeyReused,
}

impl Journal {
    /// The job that a request made before, and the hash of what it asked for.
    pub(crate) async fn request(
        &self,
        account: String,
        key: String,
    ) -> Result<Option<([u8; 32], JobId)>, JournalError> {
        let work = move |t: &Transaction<'_>| lookup(t, &account, &key);
        self.writer.run("request.read", work).await
    }

    /// Keeps a new job with the request that it came by.
    pub(crate) async fn insert_job(
        &self,
        record: JobRecord,
        request: Option<RequestKey>,
        mut event: Event,
    ) -> Result<Inserted, JournalError> {
        let work = move |t: &Transaction<'_>| {
            if let Some((account, key, hash)) = request {
                if let Some((before, job)) = lookup(t, &account, &key)? {
                    return Ok(if before == hash {
                        Inserted::Before(job)
                    } else {
                        Inserted::KeyReused
                    });
                }
                t.execute(
                    "INSERT INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5)",
                    (
                        account,
                        key,
                        hash,
                        record.job.id.to_string(),
                        record.job.created_at.as_second(),
                    ),
                )
                .map_err(JournalError::sql("keep a request"))?;
            }
            put(t, &record)?;
            events::append(t, &mut event)?;
            Ok(Inserted::New(event))
        };
        self.writer.run("job.create", work).await
    }

    /// Keeps a job's record, and what happened with it. `what` names the step for tests.
    pub(crate) async fn update_job(
        &self,
        what: &'static str,
        record: JobRecord,
        event: Option<Event>,
    ) -> Result<Option<Event>, JournalError> {
        let work = move |t: &Transaction<'_>| {
            put(t, &record)?;
            keep(t, event)
        };
        self.writer.run(what, work).await
    }

    /// Before the first object of a VM is made: the job's record, and the VM's row.
    pub(crate) async fn intend_vm(
        &self,
        record: JobRecord,
        row: VmRow,
        event: Option<Event>,
    ) -> Result<Option<Event>, JournalError> {
        let work = move |t: &Transaction<'_>| {
            put(t, &record)?;
            let incarnation = i64::try_from(row.incarnation.get()).unwrap_or(i64::MAX);
            let network = row.network.as_ref().map(serde_json::to_string).transpose();
            let network = network.map_err(|source| JournalError::Damaged {
                what: format!("the network of VM {}", row.vm),
                source,
            })?;
            t.execute(
                "INSERT INTO vms VALUES (?1, ?2, ?3, ?4)",
                (
                    row.vm.to_string(),
                    row.job.to_string(),
                    incarnation,
                    network,
                ),
            )
            .map_err(JournalError::sql("keep a VM"))?;
            keep(t, event)
        };
        self.writer.run("vm.intend", work).await
    }

    /// After the last object of a VM is gone: its row goes, and the job's record says what
    /// follows.
    pub(crate) async fn forget_vm(
        &self,
        vm: VmId,
        record: Option<JobRecord>,
        event: Option<Event>,
    ) -> Result<Option<Event>, JournalError> {
        let work = move |t: &Transaction<'_>| {
            t.execute("DELETE FROM vms WHERE vm = ?1", [vm.to_string()])
                .map_err(JournalError::sql("forget a VM"))?;
            if let Some(record) = record {
                put(t, &record)?;
            }
            keep(t, event)
        };
        self.writer.run("vm.forget", work).await
    }

    /// After all that a job had is gone.
    pub(crate) async fn remove_job(
        &self,
        id: JobId,
        event: Event,
    ) -> Result<Option<Event>, JournalError> {
        let work = move |t: &Transaction<'_>| {
            let id = id.to_string();
            t.execute("DELETE FROM jobs WHERE id = ?1", [&id])
                .and_then(|_| t.execute("DELETE FROM idempotency WHERE job = ?1", [&id]))
                .map_err(JournalError::sql("remove a job"))?;
            keep(t, Some(event))
        };
        self.writer.run("job.remove", work).await
    }

    /// All jobs.
    pub(crate) async fn jobs(&self) -> Result<Vec<JobRecord>, JournalError> {
        let work = |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read jobs");
            let mut statement = t.prepare("SELECT id, record FROM jobs").map_err(sql())?;
            let rows = statement
                .query_map([], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                })
                .map_err(sql())?;
            let mut records = Vec::new();
            for row in rows {
                let (id, text) = row.map_err(sql())?;
                records.push(serde_json::from_str(&text).map_err(|source| {
                    JournalError::Damaged {
                        what: format!("job {id}"),
                        source,
                    }
                })?);
            }
            Ok(records)
        };
        self.writer.run("job.read", work).await
    }

    /// All VMs that may have objects on this host.
    pub(crate) async fn vms(&self) -> Result<Vec<VmRow>, JournalError> {
        let work = |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read VMs");
            let mut statement = t
                .prepare("SELECT vm, job, incarnation, network FROM vms")
                .map_err(sql())?;
            let rows = statement
                .query_map([], |row| {
                    Ok((
                        row.get::<_, String>(0)?,
                        row.get::<_, String>(1)?,
                        row.get::<_, i64>(2)?,
                        row.get::<_, Option<String>>(3)?,
                    ))
                })
                .map_err(sql())?;
            let mut found = Vec::new();
            for row in rows {
                let (vm, job, incarnation, network) = row.map_err(sql())?;
                let wrong = |_| damaged("a VM");
                let network = network.map(|text| serde_json::from_str(&text)).transpose();
                found.push(VmRow {
                    vm: vm.parse().map_err(wrong)?,
                    job: job.parse().map_err(wrong)?,
                    incarnation: Incarnation::from_count(u64::try_from(incarnation).unwrap_or(0)),
                    network: network.map_err(|_| damaged("the network of a VM"))?,
                });
            }
            Ok(found)
        };
        self.writer.run("vm.read", work).await
    }
}

pub(super) fn keep(
    t: &Transaction<'_>,
    event: Option<Event>,
) -> Result<Option<Event>, JournalError> {
    let Some(mut event) = event else {
        return Ok(None);
    };
    events::append(t, &mut event)?;
    Ok(Some(event))
}
