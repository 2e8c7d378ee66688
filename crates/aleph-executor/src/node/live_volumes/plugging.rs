//! Disks that a machine gets and gives back while it runs.

use super::{AGAIN, hotplug_of};
use crate::failpoint;
use crate::hypervisor::Vmm;
use crate::journal::{JobRecord, VolumeChange};
use crate::node::NodeError;
use crate::node::inner::Inner;
use crate::node::mounts::{self, GivenUp, disk_of};
use crate::qemu::machine::MachineError;
use crate::vm::chain;
use crate::volumes::{Attachment, Owner, VolumeError};
use aleph_types::{VolumeAccess, VolumeId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;

/// How long a disk that nobody has heard of may take to go.
pub(super) const LEFTOVER: Duration = Duration::from_secs(5);

/// What became of a change of a job's volumes.
#[derive(Debug)]
pub(in crate::node) struct Changed {
    /// Whether the machine has the disk; `None` where that cannot be known yet.
    pub(in crate::node) present: Option<bool>,
    /// Why it is not as was asked for.
    pub(in crate::node) error: Option<NodeError>,
}

impl Changed {
    fn is(present: bool) -> Self {
        Self {
            present: Some(present),
            error: None,
        }
    }

    fn failed(present: Option<bool>, error: impl Into<NodeError>) -> Self {
        Self {
            present,
            error: Some(error.into()),
        }
    }
}

impl Inner {
    /// Gives a machine a disk, or takes one away, as its job's record has it.
    pub(in crate::node) async fn carry_out(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        record: &JobRecord,
        change: &VolumeChange,
        limit: Duration,
    ) -> Changed {
        match change.attach {
            true => self.plug(vmm, record, change).await,
            false => {
                let owner = mounts::owner(record);
                self.unplug(vmm, &owner, change, limit).await
            }
        }
    }

    async fn plug(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        record: &JobRecord,
        change: &VolumeChange,
    ) -> Changed {
        let hotplug = match hotplug_of(&**vmm) {
            Ok(hotplug) => hotplug,
            Err(error) => return Changed::failed(Some(false), error),
        };
        let owner = mounts::owner(record);
        let (account, name) = (record.job.account.clone(), change.name.clone());
        let mut named = record.job.spec.volumes.iter();
        let mount = named.find(|mount| mount.name == name);
        let access = mount.map_or(VolumeAccess::Exclusive, mounts::access);
        let lease = || self.lease_live(change.volume, owner, (&account, &name), access);
        let attached = match lease().await {
            // Its guest kept it when it was to let go, and did so later: the VMM has its files still.
            Err(NodeError::Volume(VolumeError::Locked(_))) => {
                match hotplug.detach_disk(&change.serial, LEFTOVER).await {
                    Ok(()) => lease().await,
                    Err(error) => return Changed::failed(None, error),
                }
            }
            attached => attached,
        };
        let attached = match attached {
            Ok(attached) => attached,
            Err(error) => {
                let freed = self.release_one(change.volume, owner).await.is_ok();
                return Changed::failed(freed.then_some(false), error);
            }
        };
        failpoint::pass("volume.plug", "leased");
        let disk = match disk_of(change.serial.clone(), attached.layers) {
            Ok(disk) => disk,
            Err(error) => {
                let freed = self.release_one(change.volume, owner).await.is_ok();
                return Changed::failed(freed.then_some(false), error);
            }
        };
        let Err(error) = hotplug.attach_disk(disk).await else {
            failpoint::pass("volume.plug", "plugged");
            return Changed::is(true);
        };
        // What was not answered may be carried out yet.
        let gone = hotplug.detach_disk(&change.serial, LEFTOVER).await;
        let freed = match gone {
            Ok(()) => self.release_one(change.volume, owner).await.is_ok(),
            Err(_) => false,
        };
        Changed::failed(freed.then_some(false), error)
    }

    /// Leases a volume for a VM that runs. Its filesystem may be looked at for long: where its VM ends meanwhile,
    /// nobody waits for that, and what is leased is given back.
    async fn lease_live(
        self: &Arc<Self>,
        volume: VolumeId,
        owner: Owner,
        (account, name): (&str, &str),
        access: VolumeAccess,
    ) -> Result<Attachment, NodeError> {
        let while_wanted = GivenUp::default();
        let is_given_up = while_wanted.told();
        let (account, name) = (account.to_owned(), name.to_owned());
        self.with_volumes(move |v| {
            let attached = v.attach(&account, &name, &owner, access);
            if is_given_up.load(Ordering::Acquire) {
                v.release_one(volume, &owner)?;
            }
            attached
        })
        .await
    }

    async fn unplug(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        owner: &Owner,
        change: &VolumeChange,
        limit: Duration,
    ) -> Changed {
        let (hotplug, disks) = match (vmm.hotplug(), vmm.live_disks()) {
            (Some(hotplug), Some(disks)) => (hotplug, disks),
            _ => return Changed::failed(Some(true), NodeError::FixedVolumes),
        };
        match hotplug.detach_disk(&change.serial, limit).await {
            Ok(()) => {
                failpoint::pass("volume.unplug", "unplugged");
                match self.release_one(change.volume, *owner).await {
                    Ok(()) => {
                        failpoint::pass("volume.unplug", "released");
                        Changed::is(false)
                    }
                    Err(error) => Changed::failed(None, error),
                }
            }
            Err(error @ MachineError::Kept { .. }) => Changed::failed(Some(true), error),
            Err(error) => match disks.disk(&change.serial).await {
                Ok(Some(_)) => Changed::failed(Some(true), error),
                Ok(None) | Err(_) => Changed::failed(None, error),
            },
        }
    }

    async fn release_one(self: &Arc<Self>, id: VolumeId, owner: Owner) -> Result<(), NodeError> {
        self.with_volumes(move |v| v.release_one(id, &owner)).await
    }

    /// Looks until it is known whether a machine has a disk that was being attached or detached.
    pub(in crate::node) async fn find_out(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        owner: Owner,
        change: &VolumeChange,
    ) -> Changed {
        while let (false, Some(disks), Ok(hotplug)) =
            (vmm.has_ended(), vmm.live_disks(), hotplug_of(&**vmm))
        {
            match disks.disk(&change.serial).await {
                Ok(Some(_)) => return Changed::is(true),
                Ok(None) => {
                    // Nodes and files of it may be left.
                    let gone = hotplug.detach_disk(&change.serial, LEFTOVER).await;
                    if gone.is_ok() && self.release_one(change.volume, owner).await.is_ok() {
                        return Changed::is(false);
                    }
                }
                Err(error) => {
                    tracing::debug!(job = %owner.job, error = chain(&error), "a disk is looked for again");
                }
            }
            sleep(AGAIN).await;
        }
        // Its end says what the job has.
        Changed {
            present: None,
            error: None,
        }
    }
}
