//! What is done to one function: binding it to a driver for guests and giving it back, resetting
//! and checking it.
//!
//! | step | apply | undo |
//! | --- | --- | --- |
//! | 1 | `driver_override` names the driver for guests | as it was before |
//! | 2 | the driver that has it lets it go (`unbind`) | the same |
//! | 3 | `drivers_probe` has the kernel bind the one that is named | the kernel binds the one of before |
//!
//! Each step looks first whether it is done, so [`apply`] and [`undo`] can follow each other and
//! themselves, after a crash at any point. What was before is in the record by then.
//! Source: the kernel's `ABI/testing/sysfs-bus-pci`.

use super::address::PciAddress;
use super::error::{DeviceFault, HostFault, Trouble};
use super::hot_reset::hot_reset;
use super::inventory::is_for_guests;
use super::record::{Prior, TakenFunction};
use super::sysfs::HostTree;
use crate::failpoint::pass;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Binds a function to the driver `driver`, and to no other. A vGPU stays where it is.
pub(super) fn apply(tree: &HostTree, taken: &TakenFunction, driver: &str) -> Result<(), Trouble> {
    if taken.prior.vgpu.is_some() {
        return Ok(());
    }
    let address = taken.address;
    let function = tree.read(address).ok_or(DeviceFault::Gone { address })?;
    if function.driver_override.as_deref() != Some(driver) {
        let file = tree.function(address).join("driver_override");
        write(address, "reserved for a guest", file, driver)?;
        pass("gpu.override", "after");
    }
    if function.driver.as_deref() == Some(driver) {
        return Ok(());
    }
    if function.driver.is_some() {
        unbind(tree, address)?;
        pass("gpu.unbind", "after");
    }
    probe(tree, address)?;
    pass("gpu.probe", "after");
    Ok(expect_driver(tree, address, driver)?)
}

/// Gives a function back to who had it before. One that the host has already is left with it: after a
/// boot of the host, its drivers came first.
pub(super) fn undo(tree: &HostTree, address: PciAddress, prior: &Prior) -> Result<(), Trouble> {
    let function = tree.read(address).ok_or(DeviceFault::Gone { address })?;
    if function.driver_override != prior.driver_override {
        let file = tree.function(address).join("driver_override");
        // An empty line clears it.
        let name = prior.driver_override.as_deref().unwrap_or_default();
        write(address, "given back", file, name)?;
        pass("gpu.restore", "after");
    }
    let of_host = function
        .driver
        .as_deref()
        .is_some_and(|d| !is_for_guests(d));
    if function.driver == prior.driver || of_host {
        return Ok(());
    }
    if function.driver.is_some() {
        unbind(tree, address)?;
        pass("gpu.release", "after");
    }
    let Some(driver) = &prior.driver else {
        return Ok(());
    };
    // It is the kernel's choice first, as at boot; a driver that was bound by hand is asked after that.
    probe(tree, address)?;
    // One that is not loaded gets it when it is.
    if !tree.driver(driver).is_dir() {
        return Ok(());
    }
    if tree.read(address).and_then(|f| f.driver).is_none() {
        let file = tree.driver(driver).join("bind");
        write(address, "given back", file, &address.to_string())?;
    }
    Ok(expect_driver(tree, address, driver)?)
}

fn unbind(tree: &HostTree, address: PciAddress) -> Result<(), Trouble> {
    let file = tree.function(address).join("driver/unbind");
    match write(address, "taken from its driver", file, &address.to_string()) {
        // It let go meanwhile.
        Err(_) if tree.read(address).is_some_and(|f| f.driver.is_none()) => Ok(()),
        other => other,
    }
}

fn probe(tree: &HostTree, address: PciAddress) -> Result<(), Trouble> {
    let file = tree.sys.join("bus/pci/drivers_probe");
    write(address, "bound", file, &address.to_string())
}

fn expect_driver(tree: &HostTree, address: PciAddress, wanted: &str) -> Result<(), DeviceFault> {
    let function = tree.read(address).ok_or(DeviceFault::Gone { address })?;
    if function.driver.as_deref() == Some(wanted) {
        return Ok(());
    }
    Err(DeviceFault::Driver {
        address,
        wanted: wanted.to_owned(),
        driver: function.driver,
    })
}

/// Resets a function that nobody has open, in the way that the kernel prefers: all that its guest left
/// in it is gone then. A vGPU is none for a moment, and its driver makes it anew (NVIDIA's documentation of
/// vGPU software, "Creating an NVIDIA vGPU on a Linux with KVM Hypervisor That Uses a Vendor-Specific VFIO
/// Framework").
pub(super) fn reset(tree: &HostTree, taken: &TakenFunction) -> Result<(), Trouble> {
    let (address, folder) = (taken.address, tree.function(taken.address));
    let Some(kind) = taken.prior.vgpu else {
        return write(address, "reset", folder.join("reset"), "1");
    };
    let file = folder.join("nvidia/current_vgpu_type");
    write(address, "cleared", file.clone(), "0")?;
    pass("gpu.vgpu", "after");
    write(address, "made anew", file, &kind.to_string())
}

/// Resets all that is on the bus of a function of this group.
pub(super) fn reset_bus(tree: &HostTree, address: PciAddress, group: u32) -> Result<(), Trouble> {
    let done = hot_reset(tree, group, address);
    done.map_err(|(path, source)| bus_trouble(address, path, source))
}

/// Whose fault it is that a bus is not reset: without VFIO's nodes, or where this process may not use them,
/// it would be so with every device.
fn bus_trouble(address: PciAddress, path: PathBuf, source: io::Error) -> Trouble {
    let operation = "reset with its bus";
    match source.kind() {
        io::ErrorKind::NotFound => HostFault::NoGroupNode { path }.into(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ResourceBusy => HostFault::Denied {
            address,
            operation,
            path,
            source,
        }
        .into(),
        _ => DeviceFault::Refused {
            address,
            operation,
            path,
            source,
        }
        .into(),
    }
}

/// Sees that a function answers, as the device that it was.
pub(super) fn check(tree: &HostTree, taken: &TakenFunction) -> Result<(), DeviceFault> {
    let address = taken.address;
    let function = tree.read(address).ok_or(DeviceFault::Gone { address })?;
    let silent = |why: String| DeviceFault::Silent { address, why };
    let mut header = [0; 64];
    let read = File::open(tree.function(address).join("config"))
        .and_then(|mut file| file.read_exact(&mut header));
    read.map_err(|error| silent(format!("its configuration cannot be read: {error}")))?;
    if header.iter().all(|byte| *byte == 0xff) {
        return Err(silent("its configuration reads as all ones".into()));
    }
    // The ids of a virtual function read as ones in itself (SR-IOV 1.1, 3.4.1.1 and 3.4.1.2).
    if function.physical_function.is_some() {
        return Ok(());
    }
    let found = (
        u16::from_le_bytes([header[0], header[1]]),
        u16::from_le_bytes([header[2], header[3]]),
    );
    if found != (taken.vendor, taken.device) {
        return Err(silent(format!(
            "its ids read as {:04x}:{:04x}, not {:04x}:{:04x}",
            found.0, found.1, taken.vendor, taken.device
        )));
    }
    Ok(())
}

/// Writes a line to a file of the kernel's, which is there already.
fn write(
    address: PciAddress,
    operation: &'static str,
    path: PathBuf,
    line: &str,
) -> Result<(), Trouble> {
    // As shells write there: the kernel's files have no length, and recorded ones lose theirs.
    let mut options = OpenOptions::new();
    let written: io::Result<()> = fs::metadata(&path)
        .and_then(|_| options.write(true).truncate(true).open(&path))
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.map_err(|source| match source.kind() {
        // So it is with every device.
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => HostFault::Denied {
            address,
            operation,
            path,
            source,
        }
        .into(),
        _ => DeviceFault::Refused {
            address,
            operation,
            path,
            source,
        }
        .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn a_bus_is_not_reset_by_fault_of_the_host_or_of_the_device() {
        let address: PciAddress = "01:00.0".parse().unwrap();
        for (errno, of_host) in [
            (Errno::NOENT, true),
            (Errno::PERM, true),
            (Errno::ACCESS, true),
            (Errno::BUSY, true),
            (Errno::INVAL, false),
            (Errno::IO, false),
        ] {
            let trouble = bus_trouble(address, "/dev/vfio/1".into(), errno.into());
            assert_eq!(matches!(trouble, Trouble::Host(_)), of_host, "{trouble}");
        }
    }
}
