//! Finds what dead owners left on the host, and removes it.
//!
//! A VM's owner holds the lock in its folder for as long as it lives, so a lock that can be
//! taken is an orphan's. Its VMM is found by the record (process number, start time, boot) and
//! through its cgroup, or by its user, killed, waited for, and then its objects go: its jail first,
//! since the place is the record of it. What cannot be removed is left for the next sweep and told in
//! the log.

use crate::cgroup::CgroupTree;
use crate::drivers::Signature;
use crate::firecracker::jail::{JailError, Jails, UidRange};
use crate::paths::Paths;
use crate::place::{Place, PlaceError, birth_lock};
use crate::process::Process;
use aleph_types::VmId;
use rustix::fs::FlockOperation;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How long a killed VMM may take to vanish.
const LIMIT: Duration = Duration::from_secs(5);

/// Where the objects of a node's VMs are.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    /// Folders.
    pub paths: &'a Paths,
    /// Groups, where the host has them.
    pub cgroups: Option<&'a CgroupTree>,
    /// Jails, where the node has them, or had.
    pub jails: Option<&'a Jails>,
}

/// Removes every orphan of this node, and says which there were.
///
/// VMs that outlive their node's process have no owner while its daemon is away: they are left
/// alone without `owned`. Only that daemon may give it: which VMs are its own whether their locks
/// are held or not. It is asked while nobody is born.
pub async fn sweep(
    grounds: Grounds<'_>,
    owned: Option<&(dyn Fn() -> HashSet<VmId> + Sync)>,
) -> Vec<VmId> {
    let mut swept = Vec::new();
    for place in orphans(grounds, owned) {
        let vm = place.vm();
        match remove(&place, grounds.jails).await {
            Ok(()) => {
                tracing::info!(%vm, "removed what a VM without owner had left");
                swept.push(vm);
            }
            Err(error) => tracing::warn!(%vm, %error, "a VM without owner could not be removed"),
        }
    }
    swept
}

fn orphans(grounds: Grounds<'_>, owned: Option<&(dyn Fn() -> HashSet<VmId> + Sync)>) -> Vec<Place> {
    let Grounds {
        paths,
        cgroups,
        jails,
    } = grounds;
    // Without this folder there has never been a birth.
    if !paths.vms().exists() {
        return Vec::new();
    }
    // Nobody is born or removed while we look, so whoever has no lock is dead.
    let Ok(_births) = birth_lock(&paths.vms(), FlockOperation::LockExclusive) else {
        return Vec::new();
    };
    let mut found = ids_in(&paths.vms());
    found.extend(ids_in(&paths.run().join("vms")));
    let groups = cgroups
        .and_then(|tree| tree.names().ok())
        .unwrap_or_default();
    found.extend(groups.iter().filter_map(|name| name.parse::<VmId>().ok()));
    match jails.map(Jails::vms).transpose() {
        Ok(jailed) => found.extend(jailed.into_iter().flatten()),
        Err(error) => tracing::warn!(%error, "cannot look for jails that were left over"),
    }
    let known = owned.map(|owned| owned());
    found
        .into_iter()
        .filter(|vm| match &known {
            Some(known) => !known.contains(vm),
            None => !Place::is_kept(paths, *vm),
        })
        .filter_map(|vm| match Place::orphan(paths, cgroups, vm) {
            Ok(place) => place,
            Err(error) => {
                tracing::warn!(%vm, %error, "cannot look at a VM's folder");
                None
            }
        })
        .collect()
}

fn ids_in(dir: &Path) -> BTreeSet<VmId> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Ends the VMM of a place whose owner is gone, if it runs, and removes its jail and the place.
///
/// # Errors
/// Where something cannot be removed.
pub async fn remove(place: &Place, jails: Option<&Jails>) -> Result<(), PlaceError> {
    let vmm = place
        .recorded()
        .and_then(|identity| Process::adopt(&identity).ok());
    if let Some(cgroup) = place.cgroup() {
        let _ = cgroup.kill();
    }
    // A node that died between starting the VMM and recording it, on a host without cgroups.
    if rustix::process::geteuid().is_root() {
        for vmm in Process::of_user(place.vm().uid()) {
            let _ = vmm.kill();
            let _ = tokio::time::timeout(LIMIT, vmm.wait()).await;
        }
    }
    if let Some(vmm) = vmm {
        let _ = vmm.kill();
        let _ = tokio::time::timeout(LIMIT, vmm.wait()).await;
    }
    // A killed group empties a moment later than the process is seen to end.
    for _ in 0..500 {
        if !place
            .cgroup()
            .is_some_and(crate::cgroup::Cgroup::is_populated)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let removed = remove_jail(place, jails).await;
    removed.map_err(|error| place.error("remove the jail of", error.into()))?;
    place.remove()
}

/// Removes what a VM has in the node's jails, and where its driver put it when the node's jails were
/// somewhere else.
async fn remove_jail(place: &Place, jails: Option<&Jails>) -> Result<(), JailError> {
    if let Some(jails) = jails {
        jails.end_and_remove(place.vm()).await?;
    }
    // Without one there is no other place to look.
    let signature = Signature::read(place.run_dir()).ok().flatten();
    let base = signature.and_then(|signature| signature.firecracker?.jails);
    match base.filter(|base| jails.is_none_or(|jails| jails.base() != *base) && base.is_dir()) {
        Some(base) => {
            // Which users new ones would get is no matter.
            let jails = Jails::open(&base, UidRange::default())?;
            jails.end_and_remove(place.vm()).await
        }
        None => Ok(()),
    }
}
