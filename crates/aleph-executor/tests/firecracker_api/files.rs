//! A whole VM, as a configuration file and as calls.

use crate::description::{Comparison, DESCRIPTION, versions};
use crate::strategy;
use aleph_executor::firecracker::api::*;
use aleph_executor::firecracker::{FirecrackerConfig, Version};
use aleph_types::MiB;
use aleph_vm_networking::mac::Mac;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use std::time::Duration;

/// A VM with all that version 1.10 has.
fn usual() -> FirecrackerConfig {
    let limiter = RateLimiter {
        bandwidth: Some(TokenBucket {
            one_time_burst: Some(64 << 20),
            ..TokenBucket::new(10 << 20, Duration::from_secs(1))
        }),
        ops: Some(TokenBucket::new(1000, Duration::from_millis(500))),
    };
    FirecrackerConfig {
        boot_args: Some("console=ttyS0 reboot=k panic=1".into()),
        rootfs_path: Some("/rootfs.ext4".into()),
        rootfs_read_only: true,
        track_dirty_pages: true,
        drives: vec![
            Drive {
                cache_type: CacheType::Writeback,
                rate_limiter: Some(limiter),
                ..Drive::file("data", "/data.img")
            },
            Drive::vhost_user("shared", "/shared.sock"),
        ],
        network_interfaces: vec![NetworkInterface {
            rx_rate_limiter: Some(limiter),
            ..NetworkInterface::tap(
                "eth0",
                "tap-1234abcd",
                Mac([2, 0xa2, 0x12, 0x34, 0xab, 0xcd]),
            )
        }],
        vsock: Some(Vsock {
            guest_cid: 3,
            uds_path: "/run/vsock.sock".into(),
        }),
        balloon: Some(Balloon {
            amount_mib: MiB(0),
            deflate_on_oom: true,
            stats_polling_interval_s: 5,
            ..Balloon::default()
        }),
        entropy: Some(EntropyDevice::default()),
        mmds_config: Some(MmdsConfig::new(vec!["eth0".into()])),
        mmds: Some(MmdsData(json!({ "latest": { "meta-data": {} } }))),
        logger: Some(Logger {
            log_path: Some("/log".into()),
            level: Some(LogLevel::Warning),
            ..Logger::default()
        }),
        metrics: Some(Metrics::to("/metrics")),
        ..FirecrackerConfig::new("/vmlinux", 2, MiB(512))
    }
}

/// And with what later versions have, but for what no file holds.
fn latest() -> FirecrackerConfig {
    let usual = usual();
    let nic = NetworkInterface {
        mtu: Some(1420),
        ..usual.network_interfaces[0].clone()
    };
    FirecrackerConfig {
        huge_pages: HugePages::Transparent,
        memory_hotplug: Some(MemoryHotplug::up_to(MiB(1024))),
        enable_pci: true,
        pmem: vec![Pmem {
            id: "pmem0".into(),
            path_on_host: "/pmem.img".into(),
            root_device: false,
            read_only: true,
            rate_limiter: Some(RateLimiter::default()),
        }],
        balloon: Some(Balloon {
            free_page_hinting: true,
            free_page_reporting: true,
            ..usual.balloon.unwrap()
        }),
        cpu_config: Some(CpuConfig {
            kvm_capabilities: vec!["!56".into()],
            ..CpuConfig::default()
        }),
        metrics: Some(Metrics {
            emit_id: true,
            properties: Some([("node".into(), "0x1".into())].into()),
            ..Metrics::to("/metrics")
        }),
        network_interfaces: vec![nic],
        ..usual
    }
}

#[test]
fn the_file_of_a_small_vm() {
    let config = FirecrackerConfig::new("/vmlinux", 1, MiB(128));
    insta::assert_snapshot!(config.file(Version::OLDEST).unwrap().text().unwrap());
}

#[test]
fn the_file_of_the_oldest_version() {
    let file = usual().file(Version::OLDEST).unwrap();
    insta::assert_snapshot!(file.text().unwrap());
    assert_eq!(file.metadata, usual().mmds);
    // What is not said is not in it, so all versions take the same.
    assert_eq!(file, usual().file(Version::NEWEST).unwrap());
}

#[test]
fn the_file_of_the_newest_version() {
    let file = latest().file(Version::NEWEST).unwrap();
    insta::assert_snapshot!(file.text().unwrap());
}

#[test]
fn all_that_an_older_version_lacks_is_said_at_once() {
    let said = latest().file(Version::OLDEST).unwrap_err().to_string();
    insta::assert_snapshot!(said.replace("; ", ";\n").replace(";\nit came", "; it came"));
}

#[test]
fn the_calls_are_in_an_order_that_firecracker_takes() {
    let config = FirecrackerConfig {
        serial: Some(Serial::default()),
        ..latest()
    };
    let calls = config.calls(Version::NEWEST).unwrap();
    let calls: Vec<_> = calls
        .iter()
        .map(|call| format!("{} {}", call.method(), call.path()))
        .collect();
    insta::assert_snapshot!(calls.join("\n"));
}

#[test]
fn pci_is_said_on_the_command_line() {
    assert_eq!(latest().arguments(), ["--enable-pci"]);
    assert_eq!(usual().arguments(), [""; 0]);
}

#[test]
fn what_has_no_place_in_a_file_is_refused() {
    let serial = FirecrackerConfig {
        serial: Some(Serial::default()),
        ..usual()
    };
    assert_eq!(
        serial.file(Version::NEWEST).unwrap_err().to_string(),
        "serial: has no place in a configuration file: the API alone has it"
    );
    let cpu = FirecrackerConfig {
        cpu_config: Some(CpuConfig::default()),
        ..usual()
    };
    assert!(cpu.calls(Version::new(1, 12, 1)).is_ok());
    assert_eq!(
        cpu.file(Version::new(1, 12, 1)).unwrap_err().to_string(),
        "cpu_config: Firecracker 1.12.1 does not have a cpu-config inside the configuration file; \
         it came with 1.13.0"
    );
}

/// What `GET /vm/config` says has a null for each thing that is not there.
#[test]
fn a_whole_configuration_is_read() {
    let said = json!({
        "balloon": null,
        "drives": [{
            "drive_id": "rootfs", "partuuid": null, "is_root_device": true,
            "cache_type": "Unsafe", "is_read_only": false, "path_on_host": "/rootfs.ext4",
            "rate_limiter": null, "io_engine": "Sync", "socket": null,
        }],
        "boot-source": {
            "kernel_image_path": "/vmlinux", "initrd_path": null, "boot_args": null,
        },
        "cpu-config": null,
        "logger": {
            "log_path": "/log", "level": "Warn", "show_level": null, "show_log_origin": null,
            "module": null,
        },
        "machine-config": {
            "vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false,
            "huge_pages": "None",
        },
        "metrics": null,
        "mmds-config": {
            "version": "V2", "network_interfaces": ["eth0"], "ipv4_address": null,
            "imds_compat": false,
        },
        "network-interfaces": [{
            "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02",
            "rx_rate_limiter": null, "tx_rate_limiter": null, "mtu": null,
        }],
        "vsock": { "guest_cid": 3, "uds_path": "/v.sock" },
        "entropy": { "rate_limiter": null },
        "pmem": [],
        "memory-hotplug": null,
    });
    let read: VmConfiguration = serde_json::from_value(said.clone()).unwrap();
    assert_eq!(read.validate(Version::OLDEST), Ok(()));
    assert_eq!(
        read.network_interfaces[0].guest_mac,
        Some(Mac([6, 0, 0xac, 0x10, 0, 2]))
    );
    assert_eq!(read.logger.unwrap().level, Some(LogLevel::Warning));
    for (place, name) in [
        ("", "drive"),
        ("/machine-config", "vcpus"),
        ("/vsock", "uds"),
    ] {
        let mut wrong = said.clone();
        wrong.pointer_mut(place).unwrap()[name] = Value::Bool(true);
        let refused = serde_json::from_value::<VmConfiguration>(wrong).unwrap_err();
        assert!(refused.to_string().contains("unknown field"), "{refused}");
    }
}

/// As a user writes it.
#[test]
fn a_config_is_read_strictly() {
    let text = r#"{ "kernel_image_path": "/vmlinux", "vcpu_count": 1, "mem_size_mib": 128 }"#;
    let read: FirecrackerConfig = serde_json::from_str(text).unwrap();
    assert_eq!(read, FirecrackerConfig::new("/vmlinux", 1, MiB(128)));
    let wrong = text.replace("vcpu_count", "vcpus");
    assert!(serde_json::from_str::<FirecrackerConfig>(&wrong).is_err());
    let all = latest();
    let written = serde_json::to_string(&all).unwrap();
    assert_eq!(
        serde_json::from_str::<FirecrackerConfig>(&written).unwrap(),
        all
    );
}

fn config() -> impl Strategy<Value = FirecrackerConfig> {
    let path = || "/[a-z]{1,9}".prop_map(std::path::PathBuf::from);
    let few = (
        of(path()),
        of("[a-z =]{0,20}"),
        of(path()),
        strategy::machine_config(),
    );
    let devices = (
        vec(strategy::drive(), 0..3),
        vec(strategy::pmem(), 0..2),
        vec(strategy::network_interface(), 0..3),
        of(strategy::vsock()),
        of(strategy::balloon()),
        of(strategy::memory_hotplug()),
        of(strategy::entropy()),
    );
    let around = (
        of(strategy::cpu_config()),
        any::<bool>(),
        of(strategy::mmds_data()),
        of(strategy::logger()),
        of(strategy::metrics()),
        of(strategy::serial()),
    );
    (few, devices, around).prop_map(|(few, devices, around)| {
        let (initrd_path, boot_args, rootfs_path, machine) = few;
        let (drives, pmem, network_interfaces, vsock, balloon, memory_hotplug, entropy) = devices;
        let (cpu_config, has_mmds, mmds, logger, metrics, serial) = around;
        let ids = network_interfaces.iter().map(|nic| nic.iface_id.clone());
        let has_mmds = has_mmds && !network_interfaces.is_empty();
        // What excludes something else is left out where that is there: it is right more often.
        let has_root = rootfs_path.is_some() || drives.iter().any(|drive| drive.is_root_device);
        let pmem = pmem
            .into_iter()
            .map(|pmem| Pmem {
                root_device: pmem.root_device && !has_root,
                ..pmem
            })
            .collect();
        FirecrackerConfig {
            initrd_path,
            boot_args,
            rootfs_path,
            smt: machine.smt,
            cpu_template: machine.cpu_template.filter(|_| cpu_config.is_none()),
            track_dirty_pages: machine.track_dirty_pages,
            huge_pages: machine.huge_pages,
            mmds_config: has_mmds.then(|| MmdsConfig::new(ids.collect())),
            drives,
            pmem,
            network_interfaces,
            vsock,
            balloon,
            memory_hotplug,
            entropy,
            cpu_config,
            mmds: mmds.filter(|_| has_mmds),
            logger,
            metrics,
            serial,
            ..FirecrackerConfig::new("/vmlinux", machine.vcpu_count, machine.mem_size_mib)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    /// A VM that is right for a version is right call by call, and its file is one that the version
    /// takes, says the same and is read back as it was.
    #[test]
    fn a_version_takes_a_whole_vm(config in config(), version in select(versions())) {
        if let Ok(calls) = config.calls(version) {
            for call in calls {
                let request = call.request(version);
                prop_assert!(request.is_ok(), "{:?}", request);
                let mut comparison = Comparison::new(&DESCRIPTION, version);
                comparison.request(&request.unwrap());
                prop_assert_eq!(comparison.mismatches(), []);
            }
        }
        if let Ok(file) = config.file(version) {
            prop_assert!(config.calls(version).is_ok());
            prop_assert_eq!(file.configuration.validate(version), Ok(()));
            let text = file.text().unwrap();
            let mut value: Value = serde_json::from_str(&text).unwrap();
            let read: VmConfiguration = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&read, &file.configuration);
            let mut comparison = Comparison::new(&DESCRIPTION, version);
            comparison.body("FullVmConfiguration", &value);
            prop_assert_eq!(comparison.mismatches(), []);
            // And Firecracker would not begin without these.
            let members = value.as_object_mut().unwrap();
            prop_assert!(members.contains_key("boot-source") && members.contains_key("drives"));
        }
    }
}

/// Enough of what is drawn is right for the property to mean something.
#[test]
fn many_drawn_vms_are_right() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = config();
    let right = (0..2000)
        .filter(|_| {
            let config = strategy.new_tree(&mut runner).unwrap().current();
            config.calls(Version::NEWEST).is_ok()
        })
        .count();
    assert!(right > 200, "{right} of 2000");
}
