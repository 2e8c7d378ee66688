//! Resetting a whole bus through VFIO, for a GPU that can be reset in no other way and shares its bus with what
//! goes with it: the sound of many a consumer card, say.
//!
//! The kernel's own file `reset` refuses there (`pci_parent_bus_reset` in its `drivers/pci/pci.c`). VFIO resets
//! the bus for whoever has all that is on it, which is checked by the kernel: the groups are handed over with
//! the request. Numbers and forms: the kernel's `include/uapi/linux/vfio.h`.
#![allow(unsafe_code)]

use super::address::PciAddress;
use super::sysfs::HostTree;
use rustix::ioctl::{IntegerSetter, Ioctl, IoctlOutput, Opcode, Setter, ioctl, opcode};
use std::ffi::{CString, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

const SET_IOMMU: Opcode = opcode::none(b';', 102);
const GROUP_SET_CONTAINER: Opcode = opcode::none(b';', 104);
const GROUP_GET_DEVICE_FD: Opcode = opcode::none(b';', 106);
const DEVICE_PCI_HOT_RESET: Opcode = opcode::none(b';', 113);
/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1V2: usize = 3;

/// Resets the bus of a function, of which all functions are in this group and bound to `vfio-pci`, and
/// nobody has one open.
///
/// # Errors
/// With the node that was asked, where the group has somebody, or something else is on the bus.
pub(super) fn hot_reset(
    tree: &HostTree,
    group: u32,
    address: PciAddress,
) -> Result<(), (PathBuf, io::Error)> {
    let open = |path: PathBuf| match File::options().read(true).write(true).open(&path) {
        Ok(file) => Ok((file, path)),
        Err(error) => Err((path, error)),
    };
    let (container, container_path) = open(tree.dev.join("vfio/vfio"))?;
    let (group, group_path) = open(tree.dev.join("vfio").join(group.to_string()))?;
    let raw: RawFd = container.as_raw_fd();
    // SAFETY: the kernel reads the descriptor that is pointed to.
    let set = unsafe { ioctl(&group, Setter::<GROUP_SET_CONTAINER, RawFd>::new(raw)) };
    set.map_err(|error| (group_path.clone(), io::Error::from(error)))?;
    // SAFETY: the operation takes a number.
    let set = unsafe { ioctl(&container, IntegerSetter::<SET_IOMMU>::new_usize(TYPE1V2)) };
    set.map_err(|error| (container_path, io::Error::from(error)))?;
    reset(&group, address).map_err(|error| (group_path, error))
}

/// Resets the bus of a device of a group, which has a container.
fn reset(group: &File, address: PciAddress) -> io::Result<()> {
    let name = CString::new(address.to_string())?;
    // SAFETY: the kernel reads a text that ends with a NUL, and gives a descriptor.
    let device = unsafe { ioctl(group, DeviceOf(name))? };
    let request = HotReset {
        argsz: u32::try_from(size_of::<HotReset>()).map_err(io::Error::other)?,
        flags: 0,
        count: 1,
        groups: [group.as_raw_fd()],
    };
    // SAFETY: the kernel reads the request, of the size that it says.
    unsafe {
        ioctl(
            &device,
            Setter::<DEVICE_PCI_HOT_RESET, HotReset>::new(request),
        )?;
    };
    Ok(())
}

/// `struct vfio_pci_hot_reset`.
#[repr(C)]
struct HotReset {
    argsz: u32,
    flags: u32,
    count: u32,
    groups: [RawFd; 1],
}

/// Opens the device of a group that has this name.
struct DeviceOf(CString);

// SAFETY: the operation reads the text that the pointer is to, and what it returns is a new descriptor, which is
// nobody else's.
unsafe impl Ioctl for DeviceOf {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        GROUP_GET_DEVICE_FD
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.as_ptr().cast_mut().cast()
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _extract: *mut c_void,
    ) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the kernel has just given it.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}
