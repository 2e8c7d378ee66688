//! What is read of a host.

use super::{HGX, at, inventory, tree};
use aleph_executor::gpu::{
    GpuConfig, GpuError, GpuState, Gpus, Model, Tenant, VramSource, window_argv,
};
use aleph_types::{Classify, GpuRequest, MiB};

#[test]
fn a_data_centre_host_has_its_eight_gpus() {
    let inventory = inventory(HGX);
    let gpus: Vec<_> = inventory.gpus().iter().filter(|gpu| !gpu.console).collect();
    let addresses: Vec<_> = gpus.iter().map(|gpu| gpu.address.to_string()).collect();
    let expected = ["18", "3a", "4b", "5c", "9a", "ba", "ca", "da"];
    assert_eq!(addresses, expected.map(|bus| format!("0000:{bus}:00.0")));
    for gpu in &gpus {
        assert_eq!(gpu.gpu_type, "h200");
        assert_eq!(
            (gpu.ids.as_str(), gpu.subsystem_ids.as_str()),
            ("10de:2335", "10de:18be")
        );
        let vram = gpu.vram.unwrap();
        assert_eq!(
            (vram.mib, vram.source),
            (MiB(141 * 1024), VramSource::Model)
        );
        assert_eq!(
            (&gpu.state, gpu.driver.as_deref()),
            (&GpuState::Host, Some("nvidia"))
        );
        assert_eq!(gpu.reset_methods, ["flr", "bus"]);
        assert!(gpu.group_members.is_empty() && gpu.companions.is_empty());
        assert_eq!(gpu.total_virtual_functions, 32);
        let function = inventory.function(gpu.address).unwrap();
        assert_eq!(
            function.largest_prefetchable(),
            Some(256 << 30),
            "a huge region"
        );
    }
    let nodes: Vec<_> = gpus.iter().filter_map(|gpu| gpu.numa_node).collect();
    assert_eq!(nodes, [0, 0, 0, 0, 1, 1, 1, 1]);
    let groups: std::collections::BTreeSet<_> = gpus.iter().map(|gpu| gpu.iommu_group).collect();
    assert_eq!(groups.len(), 8);

    let console = inventory.gpu(at("0000:03:00.0")).unwrap();
    assert_eq!(console.gpu_type, "1a03:2000");
    assert_eq!(
        console.vram, None,
        "a window that is not prefetchable says nothing"
    );
    assert_eq!(console.group_members, [at("0000:02:00.0")], "its bridge");
    assert!(console.companions.is_empty(), "a bridge goes nowhere");
    let nvswitch = inventory.function(at("0000:06:00.0")).unwrap();
    assert!(
        !nvswitch.is_gpu() && !nvswitch.is_bridge(),
        "it is an endpoint"
    );
}

#[test]
fn parts_of_a_gpu_are_gpus_of_their_own() {
    let inventory = inventory(
        "0000:01:00.0 root 10de:2330 class=030200 group=1 driver=nvidia reset=flr total-vfs=16 \
         bars=16M,128G vfs=0000:01:00.4,0000:01:00.5 mdev=nvidia-1049/GRID_H100XM-1-10C/3\n\
         0000:01:00.4 root 10de:2330 class=030200 group=2 reset=flr bars=16M,8G pf=0000:01:00.0\n\
         0000:01:00.5 root 10de:2330 class=030200 group=3 reset=flr bars=16M,8G pf=0000:01:00.0\n",
    );
    let whole = inventory.gpu(at("01:00.0")).unwrap();
    assert_eq!(whole.virtual_functions, [at("01:00.4"), at("01:00.5")]);
    let kind = &whole.mediated_types[0];
    assert_eq!((kind.id.as_str(), kind.available), ("nvidia-1049", 3));
    assert_eq!(kind.name.as_deref(), Some("GRID_H100XM-1-10C"));
    assert!(
        whole.companions.is_empty(),
        "what is in another group does not go with it"
    );
    let part = inventory.gpu(at("01:00.4")).unwrap();
    assert_eq!(part.physical_function, Some(at("01:00.0")));
    let vram = part.vram.unwrap();
    assert_eq!(
        (vram.mib, vram.source),
        (MiB(8 * 1024), VramSource::Region),
        "not the whole"
    );
}

#[test]
fn memory_is_what_the_driver_says_or_a_region_where_ids_say_nothing() {
    let inventory = inventory(
        "0000:01:00.0 root 1002:744c class=030000 group=1 driver=amdgpu bars=256M vram=25753026560\n\
         0000:02:00.0 root 10de:ffff class=030000 group=2 bars=256M,32M\n\
         0000:03:00.0 root 1da3:1060 class=120000 group=3\n",
    );
    let vram = |address| {
        inventory
            .gpu(at(address))
            .unwrap()
            .vram
            .map(|v| (v.mib, v.source))
    };
    assert_eq!(vram("01:00.0"), Some((MiB(24560), VramSource::Driver)));
    assert_eq!(vram("02:00.0"), Some((MiB(256), VramSource::Region)));
    assert_eq!(vram("03:00.0"), None);
    assert_eq!(Model::of(0x10de, 0xffff), None);
}

#[test]
fn a_host_that_cannot_give_devices_away_says_what_to_do() {
    let assign = |description: &str, change: &dyn Fn(&std::path::Path)| {
        let (dir, tree) = tree(description);
        change(dir.path());
        let config = GpuConfig {
            enabled: true,
            ..GpuConfig::default()
        };
        let gpus = Gpus::new(tree, config);
        let tenant = Tenant::new("node", "job", 1);
        gpus.assign(&tenant, &GpuRequest::default()).unwrap_err()
    };
    let without_iommu = HGX.replace(" group=", " node=");
    let error = assign(&without_iommu, &|_| ());
    assert_eq!(error.code(), "no_iommu");
    assert!(error.advice().unwrap().contains("VT-d"), "{error}");
    let error = assign(&without_iommu, &|root| {
        std::fs::create_dir_all(root.join("proc")).unwrap();
        std::fs::write(root.join("proc/cpuinfo"), "vendor_id\t: AuthenticAMD\n").unwrap();
    });
    assert!(error.advice().unwrap().contains("AMD-Vi"), "{error}");

    let error = assign(HGX, &|root| {
        std::fs::remove_dir(root.join("sys/bus/pci/drivers/vfio-pci")).unwrap();
    });
    assert!(matches!(error, GpuError::NoVfio { .. }), "{error}");
    assert!(error.advice().unwrap().contains("modprobe vfio-pci"));

    let error = assign(
        "0000:01:00.0 root 15b3:1021 class=020000 group=1\n",
        &|_| (),
    );
    assert_eq!(error.to_string(), "no 1 GPU: this host has no GPU");
}

#[test]
fn huge_regions_get_a_window_that_holds_them() {
    let inventory = inventory(HGX);
    let gpu = inventory.function(at("0000:18:00.0"));
    let expected = [
        "-global",
        "q35-pcihost.pci-hole64-size=1024G",
        "-fw_cfg",
        "name=opt/ovmf/X-PciMmio64Mb,string=1048576",
    ];
    assert_eq!(window_argv(gpu), expected);
    let card = inventory.function(at("0000:19:00.0"));
    assert!(window_argv(card).is_empty(), "32 MiB fit anyway");
}
