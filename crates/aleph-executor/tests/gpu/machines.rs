//! Hosts as they come: groups with GPUs, sound, network cards and bridges in any company.

use aleph_executor::gpu::{PciAddress, PciFunction, VFIO_PCI};
use proptest::prelude::*;

const GPU: u32 = 0x03_02_00;
const SOUND: u32 = 0x04_03_00;
const NETWORK: u32 = 0x02_00_00;
const BRIDGE: u32 = 0x06_04_00;

/// A device of a group: a class, a driver, and whether it can be reset.
type Device = (u32, Option<&'static str>, bool);

fn device() -> impl Strategy<Value = Device> {
    let driver = prop_oneof![
        3 => Just(None),
        3 => Just(Some(VFIO_PCI)),
        1 => Just(Some("host-driver")),
    ];
    let class = prop_oneof![
        5 => Just(GPU),
        1 => Just(SOUND),
        1 => Just(NETWORK),
        1 => Just(BRIDGE),
    ];
    (class, driver, prop::bool::weighted(0.9))
}

/// The devices of each group, whether they share a slot, and the NUMA node of the group.
pub(crate) fn machine() -> impl Strategy<Value = Vec<PciFunction>> {
    let group = (
        prop::collection::vec(device(), 1..4),
        any::<bool>(),
        prop::option::of(0..3_u16),
    );
    prop::collection::vec(group, 0..8).prop_map(|groups| {
        let mut functions = Vec::new();
        for (group, (devices, one_slot, node)) in (0_u8..).zip(groups) {
            for (n, device) in (0_u8..).zip(devices) {
                let (slot, function) = if one_slot { (0, n) } else { (n, 0) };
                let address: PciAddress = format!("0000:{:02x}:{slot:02x}.{function}", group + 1)
                    .parse()
                    .unwrap();
                functions.push(function_of(address, group, node, device));
            }
        }
        functions
    })
}

fn function_of(
    address: PciAddress,
    group: u8,
    numa_node: Option<u16>,
    (class, driver, resets): Device,
) -> PciFunction {
    PciFunction {
        address,
        vendor: 0x10de,
        device: 0x2330 + u16::from(group % 2),
        subsystem_vendor: 0,
        subsystem_device: 0,
        class,
        driver: driver.map(str::to_owned),
        driver_override: None,
        numa_node,
        iommu_group: Some(group.into()),
        bars: Vec::new(),
        boot_vga: false,
        reset_methods: if resets {
            vec!["flr".into()]
        } else {
            Vec::new()
        },
        physical_function: None,
        virtual_functions: Vec::new(),
        total_virtual_functions: 0,
        vgpu_type: None,
        mediated_types: Vec::new(),
        driver_vram: None,
    }
}
