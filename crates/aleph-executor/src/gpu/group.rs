//! What is done to a whole IOMMU group: it is made ready for a guest, cleaned, and given back.

use super::address::PciAddress;
use super::binding::{apply, check, reset, reset_bus, undo};
use super::choice::{ChosenGroup, host_owned};
use super::error::{DeviceFault, GpuError, HostFault, Trouble};
use super::function::PciFunction;
use super::inventory::{Inventory, Names};
use super::record::{Record, Taken, TakenFunction, Tenant};
use super::sysfs::HostTree;
use super::users::users;
use crate::failpoint::pass;
use rustix::process::{Gid, Uid};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// Binds, resets and checks a group. What does not answer is not touched at all, and nothing is reset that
/// the kernel would give to nobody: that a node is missing, say, is no fault of a device.
pub(super) fn make_ready(tree: &HostTree, group: &Taken, driver: &str) -> Result<(), Trouble> {
    for function in &group.functions {
        same(tree, function)?;
        check(tree, function)?;
    }
    for function in &group.functions {
        apply(tree, function, driver)?;
    }
    expect_viable(tree, group)?;
    clean(tree, group)?;
    Ok(expect_viable(tree, group)?)
}

/// Checks the functions of a group, and resets those that are bound to a driver for guests; what is not,
/// no guest has touched since the host booted. A device that does not answer is not reset: the kernel
/// would wait a minute for it.
///
/// What goes with a GPU and cannot be reset alone, as its sound may be, is left as it is, unless the GPU
/// cannot be either: then their bus is reset once for all of them. Where only some of them are bound, as after
/// a crash in the middle of that, no guest has had them since they were clean: VFIO gives such a group to
/// nobody, and what is given back is clean before the first is let go.
pub(super) fn clean(tree: &HostTree, group: &Taken) -> Result<(), Trouble> {
    let all = tree.functions().unwrap_or_default();
    let mut buses = BTreeSet::new();
    for function in &group.functions {
        let now = same(tree, function)?;
        // One that is just being made anew is nothing at this moment.
        let is_vgpu = function.prior.vgpu.is_some();
        if !is_vgpu && !now.is_for_guests() {
            continue;
        }
        check(tree, function)?;
        let is_gpu = group.gpus.contains(&function.address);
        let with_bus = !is_vgpu && now.kept_from_reset_by(&all).is_some();
        let resets = !now.reset_methods.is_empty() && !with_bus;
        if is_gpu && with_bus {
            if !is_whole(tree, group, function.address) {
                continue;
            }
            if buses.insert(function.address.bus()) {
                reset_bus(
                    tree,
                    function.address,
                    now.iommu_group.unwrap_or(group.group),
                )?;
            }
        } else if is_gpu || resets {
            reset(tree, function)?;
        } else {
            continue;
        }
        pass("gpu.reset", "after");
        check(tree, function)?;
    }
    Ok(())
}

/// Whether all of a group that is on the bus of a function is bound to a driver for guests.
fn is_whole(tree: &HostTree, group: &Taken, address: PciAddress) -> bool {
    let mut of_bus = group
        .functions
        .iter()
        .filter(|other| other.address.bus() == address.bus());
    of_bus.all(|other| same(tree, other).is_ok_and(|now| now.is_for_guests()))
}

/// Gives the functions of a group back to who had them.
pub(super) fn undo_all(tree: &HostTree, group: &Taken) -> Result<(), Trouble> {
    take_node_back(tree, group);
    let mut functions = group.functions.iter();
    functions.try_for_each(|function| undo(tree, function.address, &function.prior))
}

/// A group without what is gone of it. After a boot that may be all of them: the parts of a GPU are
/// there once somebody has divided it again.
pub(super) fn there(tree: &HostTree, group: &Taken) -> Taken {
    let mut there = group.clone();
    there
        .functions
        .retain(|function| same(tree, function).is_ok());
    let functions: BTreeSet<_> = there.functions.iter().map(|f| f.address).collect();
    there.gpus.retain(|gpu| functions.contains(gpu));
    there
}

/// The functions of a group that are still there, checked.
pub(super) fn remaining(tree: &HostTree, group: &Taken) -> Result<Taken, DeviceFault> {
    let there = there(tree, group);
    let mut functions = there.functions.iter();
    functions.try_for_each(|function| check(tree, function))?;
    Ok(there)
}

/// The node of a group, by the number that it has now: it is recorded as of an earlier boot, in which another
/// one may have had it.
fn node_now(tree: &HostTree, group: &Taken) -> Option<PathBuf> {
    let mut functions = group.functions.iter();
    let number = functions.find_map(|function| same(tree, function).ok()?.iommu_group)?;
    Some(tree.dev.join("vfio").join(number.to_string()))
}

/// The function as it is now. After a boot another device may be at its address.
fn same(tree: &HostTree, taken: &TakenFunction) -> Result<PciFunction, DeviceFault> {
    let now = tree.read(taken.address);
    now.filter(|now| taken.is(now)).ok_or(DeviceFault::Gone {
        address: taken.address,
    })
}

/// Sees that the kernel would give the group to a guest.
fn expect_viable(tree: &HostTree, group: &Taken) -> Result<(), HostFault> {
    let inventory = Inventory::of(
        tree.functions().unwrap_or_default(),
        &Names::none(),
        &Record::default(),
    );
    let passed = ChosenGroup {
        number: group.group,
        gpus: group.gpus.clone(),
        functions: group.functions.iter().map(|f| f.address).collect(),
        numa_node: None,
    };
    if let Some(other) = host_owned(&inventory, &passed) {
        return Err(HostFault::Shared {
            group: group.group,
            with: other.address,
            driver: other.driver.clone().unwrap_or_default(),
        });
    }
    let path = group.node(tree);
    match path.exists() {
        true => Ok(()),
        false => Err(HostFault::NoGroupNode { path }),
    }
}

/// Which functions of a tenant are looked at for users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// All of them: none is to be taken from whoever has it.
    All,
    /// Those bound to a driver for guests. That waits for as long as one has its device open.
    ForGuests,
}

/// Sees that no process uses what a tenant has.
pub(super) fn expect_unused(
    tree: &HostTree,
    record: &Record,
    tenant: &Tenant,
    look: Look,
) -> Result<(), GpuError> {
    let groups = record.tenants.get(tenant).map_or(&[][..], Vec::as_slice);
    expect_nobody(tree, groups, &tenant.to_string(), look)
}

/// Sees that no process uses groups that `owner` has.
pub(super) fn expect_nobody(
    tree: &HostTree,
    groups: &[Taken],
    owner: &str,
    look: Look,
) -> Result<(), GpuError> {
    let in_use = |address, user| GpuError::InUse {
        address,
        tenant: owner.to_owned(),
        user,
    };
    for group in groups {
        let functions = group.functions.iter();
        let there = functions.filter_map(|function| same(tree, function).ok());
        let functions: Vec<_> = there
            .filter(|now| look == Look::All || now.is_for_guests())
            .collect();
        let found = users(tree, &functions);
        let used = found
            .iter()
            .find_map(|(address, users)| Some((*address, users.first()?)));
        if let Some((address, user)) = used {
            return Err(in_use(address, user.to_string()));
        }
        // A process that is about to end shows its files no more, and has them still: the kernel's own
        // word is that one may open a group, or nobody else.
        if let Some(first) = functions.iter().find(|now| now.is_for_guests())
            && let Some(node) = node_now(tree, group)
            && File::options()
                .read(true)
                .write(true)
                .open(&node)
                .is_err_and(|error| is_busy(&error))
        {
            let user = format!("a process has {} open", node.display());
            return Err(in_use(first.address, user));
        }
    }
    Ok(())
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
}

/// Makes the node of a group root's again, where it does not go with what its VMM's user had.
pub(super) fn take_node_back(tree: &HostTree, group: &Taken) {
    let Some(node) = node_now(tree, group) else {
        return;
    };
    let (user, to) = (Uid::ROOT, Gid::ROOT);
    match rustix::fs::chown(node, Some(user), Some(to)) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => {
            tracing::warn!(group = group.group, %error, "a group's node is not taken back");
        }
    }
}
