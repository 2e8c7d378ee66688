//! Which GPUs a job gets.

use super::machines::machine;
use super::{HGX, at, inventory, tree};
use aleph_executor::gpu::{
    Allowed, ChosenGroup, GpuState, Inventory, Misfit, Names, PciAddress, PciFunction, Prior,
    Quarantine, Record, Taken, TakenFunction, Tenant, choose,
};
use aleph_types::{GpuRequest, MiB};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn ask(text: &str) -> GpuRequest {
    text.parse().unwrap()
}

fn gpus_of(groups: &[ChosenGroup]) -> Vec<PciAddress> {
    groups.iter().flat_map(|group| group.gpus.clone()).collect()
}

/// The record of a tenant that has these groups.
fn with_tenant(
    mut record: Record,
    tenant: &str,
    inventory: &Inventory,
    groups: &[ChosenGroup],
) -> Record {
    let groups = groups.iter().map(|group| taken(inventory, group)).collect();
    record
        .tenants
        .insert(Tenant::new("node", tenant, 1), groups);
    record
}

fn taken(inventory: &Inventory, group: &ChosenGroup) -> Taken {
    let functions = group.functions.iter().map(|address| {
        let function = inventory.function(*address).unwrap();
        TakenFunction {
            address: *address,
            vendor: function.vendor,
            device: function.device,
            prior: Prior::default(),
        }
    });
    Taken {
        boot: String::new(),
        group: group.number,
        gpus: group.gpus.clone(),
        functions: functions.collect(),
    }
}

#[test]
fn gpus_come_from_one_numa_node_where_one_has_them() {
    let (_dir, tree) = tree(HGX);
    let mut record = Record::default();
    let mut given = BTreeSet::new();
    // Eight GPUs, four on each node. The second job fits beside the first; the third gets the other node
    // although two of the first would do, since there is no third; the last gets what is left.
    for (tenant, count, nodes) in [
        ("a", 2, [0].as_slice()),
        ("b", 1, &[0]),
        ("c", 4, &[1]),
        ("d", 1, &[0]),
    ] {
        let inventory = Inventory::read(&tree, &Names::none(), &record).unwrap();
        let request = ask(&format!("type=h200,vram=141G,count={count}"));
        let groups = choose(&inventory, &Allowed::default(), &request).unwrap();
        let on: BTreeSet<_> = groups.iter().filter_map(|group| group.numa_node).collect();
        assert_eq!(on, nodes.iter().copied().collect(), "{tenant}");
        for gpu in gpus_of(&groups) {
            assert!(given.insert(gpu), "{gpu} has two tenants");
        }
        record = with_tenant(record, tenant, &inventory, &groups);
    }
    assert_eq!(given.len(), 8);
    let inventory = Inventory::read(&tree, &Names::none(), &record).unwrap();
    let state = &inventory.gpu(at("0000:9a:00.0")).unwrap().state;
    assert_eq!(
        *state,
        GpuState::Assigned {
            tenant: Tenant::new("node", "c", 1)
        }
    );
}

#[test]
fn more_than_a_node_has_comes_from_two() {
    let groups = choose(&inventory(HGX), &Allowed::default(), &ask("count=8")).unwrap();
    assert_eq!(gpus_of(&groups).len(), 8);
}

#[test]
fn a_job_that_gets_none_is_told_which_there_are_and_why_each_does_not_fit() {
    let (_dir, tree) = tree(
        "0000:01:00.0 root 10de:2335 class=030200 group=1 reset=flr\n\
         0000:02:00.0 root 10de:2330 class=030200 group=2 reset=flr driver=nvidia\n\
         0000:03:00.0 root 10de:2330 class=030200 group=3 reset=flr\n\
         0000:04:00.0 root 10de:2330 class=030200 group=4 reset=flr\n\
         0000:04:01.0 root 15b3:1021 class=020000 group=4 driver=mlx5_core\n\
         0000:05:00.0 root 10de:2330 class=030200 group=5\n\
         0000:06:00.0 root 10de:2330 class=030200 group=6 reset=flr vfs=0000:06:00.4\n\
         0000:06:00.4 root 10de:2330 class=030200 group=7 reset=flr bars=8G pf=0000:06:00.0\n\
         0000:07:00.0 root 10de:2330 class=030200 group=8 reset=flr console\n\
         0000:08:00.0 root 10de:2330 class=030200 reset=flr\n\
         0000:09:00.0 root 10de:2330 class=030200 group=9 reset=flr\n\
         0000:09:01.0 root 10de:2330 class=030200 group=9 reset=flr\n\
         0000:0a:00.0 root 10de:2330 class=030200 group=10 reset=flr\n\
         0000:0b:00.0 root 10de:2330 class=030200 group=11 reset=flr\n\
         0000:0b:01.0 root 10de:2330 class=030200 group=11\n\
         0000:0c:00.0 root 10de:2330 class=030200 group=12 reset=bus\n\
         0000:0c:00.1 root 10de:22ba class=040300 group=13\n",
    );
    let group = |number, address| {
        let gpus = vec![at(address)];
        let functions = gpus.clone();
        ChosenGroup {
            number,
            gpus,
            functions,
            numa_node: None,
        }
    };
    let free = Inventory::read(&tree, &Names::none(), &Record::default()).unwrap();
    let of_job = [group(3, "03:00.0")];
    let mut record = with_tenant(Record::default(), "job-1", &free, &of_job);
    record.quarantines.push(Quarantine {
        taken: taken(&free, &group(10, "0a:00.0")),
        reason: "it did not answer".into(),
        since: 0,
    });
    let inventory = Inventory::read(&tree, &Names::none(), &record).unwrap();
    let allowed = Allowed {
        devices: None,
        groups: Some((1..=12).filter(|n| *n != 2).collect()),
    };
    let no_fit = choose(&inventory, &allowed, &ask("type=h100,vram=80G,count=1")).unwrap_err();
    let expected = "no 1 GPU of type h100 with 80 GiB: \
        0000:01:00.0 (h200, 141 GiB) is of another type; \
        0000:02:00.0 (h100, 80 GiB) is not among gpu_devices and iommu_group; \
        0000:03:00.0 (h100, 80 GiB) belongs to another job; \
        0000:04:00.0 (h100, 80 GiB) shares IOMMU group 4 with 0000:04:01.0, which the host's driver \
        mlx5_core has; \
        0000:05:00.0 (h100, 80 GiB) cannot be reset; \
        0000:06:00.0 (h100, 80 GiB) is divided into 1 virtual functions; \
        0000:06:00.4 (h100-vf, 8 GiB) is of another type; \
        0000:07:00.0 (h100, 80 GiB) shows the console of the host; \
        0000:08:00.0 (h100, 80 GiB) is not among gpu_devices and iommu_group; \
        0000:09:00.0 (h100, 80 GiB) shares IOMMU group 9, which is given whole or not at all: it has 2 \
        GPUs; \
        0000:09:01.0 (h100, 80 GiB) shares IOMMU group 9, which is given whole or not at all: it has 2 \
        GPUs; \
        0000:0a:00.0 (h100, 80 GiB) is in quarantine: it did not answer; \
        0000:0b:00.0 (h100, 80 GiB) shares its IOMMU group with 0000:0b:01.0, which cannot be reset; \
        0000:0b:01.0 (h100, 80 GiB) cannot be reset; \
        0000:0c:00.0 (h100, 80 GiB) cannot be reset without 0000:0c:00.1, on its bus";
    assert_eq!(no_fit.to_string(), expected);

    let two = choose(&inventory, &allowed, &ask("type=h100,vram=80G,count=2")).unwrap();
    assert_eq!(
        gpus_of(&two),
        [at("09:00.0"), at("09:01.0")],
        "the whole group"
    );
    let no_fit = choose(&inventory, &Allowed::default(), &ask("count=4,vram=90G")).unwrap_err();
    let fits = no_fit
        .gpus
        .iter()
        .find(|(address, ..)| *address == at("01:00.0"))
        .unwrap();
    assert_eq!(fits.2, None, "it fits, with too few others");
    let too_little = Some(Misfit::Vram(Some(MiB(80 * 1024))));
    assert!(no_fit.gpus.iter().any(|gpu| gpu.2 == too_little));
}

/// A divided GPU, whose parts are of AMD's kind: PCI functions like any other.
const DIVIDED: &str = "0000:01:00.0 root 10de:2330 class=030200 group=1 driver=nvidia reset=flr vfs=0000:01:00.4,0000:01:00.5\n\
     0000:01:00.4 root 10de:2330 class=030200 group=2 reset=flr bars=16M,8G pf=0000:01:00.0\n\
     0000:01:00.5 root 10de:2330 class=030200 group=3 reset=flr bars=16M,8G pf=0000:01:00.0\n";

fn why_not(inventory: &Inventory, request: &str, address: &str) -> String {
    let no_fit = choose(inventory, &Allowed::default(), &ask(request)).unwrap_err();
    let mut gpus = no_fit.gpus.into_iter();
    let found = gpus.find(|(found, ..)| *found == at(address));
    found
        .unwrap()
        .2
        .map_or_else(|| "fits".into(), |why| why.to_string())
}

#[test]
fn parts_of_a_gpu_are_given_one_by_one_and_the_whole_is_not() {
    let inventory = inventory(DIVIDED);
    let two = choose(
        &inventory,
        &Allowed::default(),
        &ask("type=h100-vf,vram=8G,count=2"),
    )
    .unwrap();
    assert_eq!(gpus_of(&two), [at("01:00.4"), at("01:00.5")]);
    assert!(two.iter().all(|group| group.functions.len() == 1));
    // Who asks for a model means the whole.
    assert_eq!(
        why_not(&inventory, "type=h100", "01:00.4"),
        "is of another type"
    );
    assert_eq!(
        why_not(&inventory, "type=h100", "01:00.0"),
        "is divided into 2 virtual functions"
    );
    assert_eq!(
        why_not(&inventory, "type=h100-vf,vram=9G", "01:00.4"),
        "has too little memory"
    );
}

#[test]
fn no_part_is_given_of_a_gpu_that_belongs_to_somebody_as_a_whole() {
    let part = |inventory: &Inventory| why_not(inventory, "type=h100-vf,count=3", "01:00.5");
    assert_eq!(part(&inventory(DIVIDED)), "fits");
    let whole = ChosenGroup {
        number: 1,
        gpus: vec![at("01:00.0")],
        functions: vec![at("01:00.0")],
        numa_node: None,
    };
    let bound = inventory(&DIVIDED.replace("driver=nvidia", "driver=vfio-pci"));
    assert_eq!(
        part(&bound),
        "is a part of 0000:01:00.0, which is bound to vfio-pci as a whole"
    );
    let (_dir, tree) = tree(DIVIDED);
    let read = |record: &Record| Inventory::read(&tree, &Names::none(), record).unwrap();
    let free = read(&Record::default());
    let groups = std::slice::from_ref(&whole);
    let given = with_tenant(Record::default(), "job", &free, groups);
    assert_eq!(
        part(&read(&given)),
        "is a part of 0000:01:00.0, which belongs to another job"
    );
    let mut failed = Record::default();
    failed.quarantines.push(Quarantine {
        taken: taken(&free, &whole),
        reason: "it did not answer".into(),
        since: 0,
    });
    assert_eq!(
        part(&read(&failed)),
        "is a part of 0000:01:00.0, which is in quarantine: it did not answer"
    );
}

#[test]
fn a_vgpu_is_given_where_its_kind_was_chosen() {
    let host = |kind: u32| {
        inventory(&format!(
            "0000:01:00.0 root 10de:2330 class=030200 group=1 driver=nvidia reset=flr vfs=0000:01:00.4\n\
             0000:01:00.4 root 10de:2330 class=030200 group=2 driver=nvidia bars=16M,8G pf=0000:01:00.0 vgpu={kind}\n"
        ))
    };
    assert_eq!(
        why_not(&host(0), "type=h100-vf", "01:00.4"),
        "has no kind of vGPU yet: its nvidia/current_vgpu_type is 0"
    );
    let inventory = host(1049);
    let gpu = inventory.gpu(at("01:00.4")).unwrap();
    assert_eq!(
        (gpu.gpu_type.as_str(), &gpu.state),
        ("vgpu-1049", &GpuState::Free)
    );
    let one = choose(&inventory, &Allowed::default(), &ask("type=vgpu-1049")).unwrap();
    assert_eq!(gpus_of(&one), [at("01:00.4")]);
}

#[test]
fn a_bus_that_goes_to_one_guest_as_a_whole_can_be_reset() {
    let card = "0000:01:00.0 root 10de:2684 class=030000 group=1 driver=nouveau reset=bus\n\
         0000:01:00.1 root 10de:22ba class=040300 group=1 driver=snd_hda_intel reset=bus\n";
    let groups = choose(&inventory(card), &Allowed::default(), &ask("1")).unwrap();
    assert_eq!(groups[0].functions, [at("01:00.0"), at("01:00.1")]);
    let apart = card.replace("040300 group=1", "040300 group=2");
    assert_eq!(
        why_not(&inventory(&apart), "1", "01:00.0"),
        "cannot be reset without 0000:01:00.1, on its bus"
    );
}

#[test]
fn a_gpu_goes_with_its_sound_and_without_its_bridge() {
    let groups = choose(
        &inventory(
            "0000:00:01.0 root 8086:a70d class=060400 group=1 driver=pcieport\n\
             0000:01:00.0 0000:00:01.0 10de:2684 class=030000 group=1 driver=nouveau reset=pm,bus\n\
             0000:01:00.1 0000:00:01.0 10de:22ba class=040300 group=1 driver=snd_hda_intel\n",
        ),
        &Allowed::default(),
        &ask("type=nvidia"),
    );
    let groups = groups.unwrap();
    assert_eq!(groups[0].gpus, [at("01:00.0")]);
    assert_eq!(groups[0].functions, [at("01:00.0"), at("01:00.1")]);
}

/// What a group would give, said again in other words than the code has: its GPUs, where all that is
/// no bridge is a GPU that can be reset, is in the slot of one, or has no driver of the host.
fn oracle(functions: &[PciFunction], group: u32, tenants: &Record, wanted: &str) -> Option<usize> {
    let members: Vec<_> = functions
        .iter()
        .filter(|f| f.iommu_group == Some(group))
        .collect();
    let gpus: Vec<_> = members.iter().filter(|f| f.class >> 16 == 3).collect();
    for f in &members {
        let is_gpu = f.class >> 16 == 3;
        let beside = gpus
            .iter()
            .any(|gpu| gpu.address.slot() == f.address.slot());
        let model = if f.device == 0x2330 || f.device == 0x2331 {
            "h100"
        } else {
            ""
        };
        let bad = match f.class {
            0x06_04_00 => false,
            _ if is_gpu => {
                f.reset_methods.is_empty() || model != wanted || tenants.tenant_of(f).is_some()
            }
            _ => !beside && f.driver.as_deref() == Some("host-driver"),
        };
        if bad {
            return None;
        }
    }
    Some(gpus.len()).filter(|gpus| *gpus > 0)
}

fn subset_sums(sizes: &[usize]) -> BTreeSet<usize> {
    sizes.iter().fold(BTreeSet::from([0]), |sums, size| {
        sums.iter().flat_map(|sum| [*sum, sum + size]).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Jobs come until one gets nothing: no group is ever given in part, no device twice, none that a
    /// driver of the host holds in its group, and a job gets nothing only where nothing would do.
    #[test]
    fn whole_groups_go_to_one_tenant_each(
        functions in machine(),
        counts in prop::collection::vec(1..5_u32, 1..6),
    ) {
        let mut record = Record::default();
        let mut given: BTreeSet<PciAddress> = BTreeSet::new();
        for (n, count) in counts.into_iter().enumerate() {
            let inventory = Inventory::of(functions.clone(), &Names::none(), &record);
            let numbers: BTreeSet<u32> = functions.iter().filter_map(|f| f.iommu_group).collect();
            let whole: Vec<(u32, usize)> = numbers
                .iter()
                .filter_map(|group| Some((*group, oracle(&functions, *group, &record, "h100")?)))
                .collect();
            let node_of = |group: u32| functions
                .iter()
                .find(|f| f.iommu_group == Some(group) && f.is_gpu())
                .and_then(|f| f.numa_node);
            let wanted = count as usize;
            let sizes: Vec<usize> = whole.iter().map(|(_, gpus)| *gpus).collect();
            let request = ask(&format!("type=h100,count={count}"));
            let Ok(groups) = choose(&inventory, &Allowed::default(), &request) else {
                prop_assert!(!subset_sums(&sizes).contains(&wanted), "{whole:?} has {wanted}");
                continue;
            };
            prop_assert_eq!(gpus_of(&groups).len(), wanted);
            for group in &groups {
                let size = whole.iter().find(|(number, _)| *number == group.number).map(|g| g.1);
                prop_assert_eq!(size, Some(group.gpus.len()), "half a group, or one that is not free");
                for function in &group.functions {
                    prop_assert!(given.insert(*function), "{} has two tenants", function);
                }
            }
            let nodes: BTreeSet<_> = groups.iter().map(|group| group.numa_node).collect();
            if nodes.len() > 1 {
                for node in whole.iter().map(|(group, _)| node_of(*group)) {
                    let there: Vec<usize> = whole
                        .iter()
                        .filter(|(group, _)| node_of(*group) == node)
                        .map(|(_, gpus)| *gpus)
                        .collect();
                    prop_assert!(!subset_sums(&there).contains(&wanted), "node {node:?} has {wanted}");
                }
            }
            record = with_tenant(record, &format!("job-{n}"), &inventory, &groups);
        }
    }
}
