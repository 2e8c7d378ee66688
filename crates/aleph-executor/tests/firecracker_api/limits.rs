//! Each wrong value, and what is said of it.

use aleph_executor::firecracker::api::*;
use aleph_executor::firecracker::{FirecrackerConfig, Version};
use aleph_types::{Classify, ErrorClass, MiB};
use aleph_vm_networking::mac::Mac;
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

const NEWEST: Version = Version::NEWEST;

/// What is wrong with something, in words.
fn said(body: &impl Body) -> String {
    match body.validate(NEWEST) {
        Ok(()) => String::new(),
        Err(invalid) => {
            assert_eq!(invalid.class(), ErrorClass::Invalid);
            assert_eq!(invalid.code(), "firecracker_config");
            invalid.to_string()
        }
    }
}

fn drive() -> Drive {
    Drive::file("data", "/data.img")
}

fn nic() -> NetworkInterface {
    NetworkInterface::tap("eth0", "tap0", Mac([2, 0, 0, 0, 0, 1]))
}

fn limited(size: u64, refill_time: Duration) -> TokenBucket {
    TokenBucket::new(size, refill_time)
}

#[test]
fn right_ones_are_right() {
    assert_eq!(said(&drive()), "");
    assert_eq!(said(&Drive::vhost_user("data", "/data.sock")), "");
    assert_eq!(said(&nic()), "");
    assert_eq!(said(&MachineConfig::new(32, MiB(1))), "");
    assert_eq!(said(&MemoryHotplug::up_to(MiB(1024))), "");
    assert_eq!(said(&TokenBucket::OFF), "");
    assert_eq!(said(&limited(1, Duration::from_millis(1))), "");
    assert_eq!(said(&FirecrackerConfig::new("/vmlinux", 1, MiB(128))), "");
}

#[test]
fn ids_and_names() {
    let of = |id: &str| said(&Drive::file(id, "/a"));
    assert_eq!(of(""), "drive_id: is empty");
    assert_eq!(of("a-b"), "drive_id: contains '-'");
    assert_eq!(of("é"), "drive_id: contains 'é'");
    assert_eq!(of("../vm"), "drive_id: contains '.'");
    let of = |name: &str| {
        said(&NetworkInterface {
            host_dev_name: name.into(),
            ..nic()
        })
    };
    assert_eq!(
        of("tap-1234abcd-xyz"),
        "host_dev_name: has 16 bytes, 15 at most"
    );
    assert_eq!(of("tap-1234abcd-xy"), "");
    assert_eq!(of("a b"), "host_dev_name: contains ' '");
    assert_eq!(of(""), "host_dev_name: is empty");
}

#[test]
fn paths() {
    let of = |path: &str| said(&Drive::file("data", path));
    assert_eq!(of(""), "path_on_host: is empty");
    assert_eq!(of("/a\0b"), "path_on_host: contains '\\0'");
    assert_eq!(
        of(&"a".repeat(4096)),
        "path_on_host: has 4096 bytes, 4095 at most"
    );
    let bytes = PathBuf::from(OsString::from_vec(vec![b'/', 0xff]));
    assert_eq!(
        said(&Drive::file("data", bytes)),
        "path_on_host: is not UTF-8"
    );
    let vsock = |path: String| {
        said(&Vsock {
            guest_cid: 3,
            uds_path: path.into(),
        })
    };
    assert_eq!(vsock("a".repeat(107)), "");
    assert_eq!(
        vsock("a".repeat(108)),
        "uds_path: has 108 bytes, 107 at most"
    );
}

#[test]
fn rate_limiters() {
    let second = Duration::from_secs(1);
    let no_limit = "a size without a refill_time, or one without the other, is no limit at all; \
                    say so with both 0";
    assert_eq!(said(&limited(1, Duration::ZERO)), no_limit);
    assert_eq!(said(&limited(0, second)), no_limit);
    assert_eq!(
        said(&limited(1 << 63, second)),
        "size: is 9223372036854775808, and has to be 0 to 9223372036854775807"
    );
    // Firecracker would take this, and have no limit.
    assert_eq!(
        said(&limited(1, Duration::from_millis(u64::MAX / 1_000_000 + 1))),
        "refill_time: is 18446744073710, and has to be 0 to 18446744073709"
    );
    let fine = Duration::from_micros(1500);
    assert_eq!(
        said(&limited(1, fine)),
        "refill_time: has to be whole milliseconds"
    );
    let within = Drive {
        rate_limiter: Some(RateLimiter {
            ops: Some(limited(1, fine)),
            bandwidth: None,
        }),
        ..drive()
    };
    let within = FirecrackerConfig {
        drives: vec![drive(), within],
        ..FirecrackerConfig::new("/vmlinux", 1, MiB(128))
    };
    let said = said(&within);
    assert!(
        said.starts_with("drives[1].rate_limiter.ops.refill_time: "),
        "{said}"
    );
}

#[test]
fn drives() {
    let neither = "path_on_host: either a path_on_host or a vhost-user socket is needed, and not \
                   both";
    let none = Drive {
        path_on_host: None,
        ..drive()
    };
    assert_eq!(said(&none), neither);
    let both = Drive {
        socket: Some("/s".into()),
        ..drive()
    };
    assert_eq!(said(&both), neither);
    let served = Drive {
        is_read_only: Some(false),
        io_engine: Some(IoEngine::Sync),
        rate_limiter: Some(RateLimiter::default()),
        ..Drive::vhost_user("data", "/s")
    };
    assert_eq!(
        said(&served),
        "is_read_only: is not for a vhost-user drive; rate_limiter: is not for a vhost-user drive; \
         io_engine: is not for a vhost-user drive"
    );
    let part = Drive {
        partuuid: Some("0eaa91a0-01".into()),
        ..drive()
    };
    assert_eq!(
        said(&part),
        "partuuid: has no effect on a drive that is not the root device"
    );
}

#[test]
fn machines() {
    let of = |count, memory| said(&MachineConfig::new(count, MiB(memory)));
    assert_eq!(of(0, 1), "vcpu_count: is 0, and has to be 1 to 32");
    assert_eq!(of(33, 1), "vcpu_count: is 33, and has to be 1 to 32");
    assert_eq!(
        of(1, 0),
        "mem_size_mib: is 0, and has to be 1 to 4294967295"
    );
    for huge_pages in [HugePages::Size2M, HugePages::Transparent] {
        let odd = MachineConfig {
            huge_pages,
            ..MachineConfig::new(1, MiB(129))
        };
        assert_eq!(
            said(&odd),
            "mem_size_mib: is 129, and has to be a multiple of 2"
        );
    }
    if cfg!(target_arch = "x86_64") {
        let threads = |vcpu_count| {
            said(&MachineConfig {
                smt: true,
                ..MachineConfig::new(vcpu_count, MiB(1))
            })
        };
        assert_eq!(threads(3), "vcpu_count: has to be 1 or even with smt");
        assert_eq!((threads(1), threads(2)), (String::new(), String::new()));
        let other = MachineConfig {
            cpu_template: Some(CpuTemplate::V1N1),
            ..MachineConfig::new(1, MiB(1))
        };
        assert_eq!(
            said(&other),
            "cpu_template: is for CPUs of another architecture"
        );
    }
}

#[test]
fn boot_sources() {
    let of = |line: &str| {
        said(&BootSource {
            kernel_image_path: "/vmlinux".into(),
            initrd_path: None,
            boot_args: Some(line.into()),
        })
    };
    assert_eq!(of(""), "");
    assert_eq!(of(&"a".repeat(2047)), "");
    assert_eq!(
        of(&"a".repeat(2048)),
        "boot_args: has 2048 bytes, 2047 at most"
    );
    assert_eq!(of("a\nb"), "boot_args: contains '\\n'");
}

#[test]
fn network_interfaces() {
    let mtu = |mtu| {
        said(&NetworkInterface {
            mtu: Some(mtu),
            ..nic()
        })
    };
    assert_eq!(mtu(67), "mtu: is 67, and has to be 68 to 65535");
    assert_eq!((mtu(68), mtu(65535)), (String::new(), String::new()));
    let group = NetworkInterface {
        guest_mac: Some(Mac([1, 0, 0, 0, 0, 1])),
        ..nic()
    };
    assert!(said(&group).starts_with("guest_mac: is an address of a group"));
}

#[test]
fn other_devices() {
    let vsock = |guest_cid| {
        said(&Vsock {
            guest_cid,
            uds_path: "/v".into(),
        })
    };
    assert_eq!(vsock(2), "guest_cid: is 2, and has to be 3 to 4294967294");
    assert!(!vsock(u32::MAX).is_empty());
    let balloon = |amount| {
        said(&Balloon {
            amount_mib: MiB(amount),
            ..Balloon::default()
        })
    };
    assert_eq!(balloon(16_777_215), "");
    assert_eq!(
        balloon(16_777_216),
        "amount_mib: is 16777216, and has to be 0 to 16777215"
    );
    let never = BalloonStatisticsUpdate {
        stats_polling_interval_s: 0,
    };
    assert_eq!(
        said(&never),
        "stats_polling_interval_s: is 0, and has to be 1 to 65535"
    );
    let memory = |total, block, slot| {
        said(&MemoryHotplug {
            total_size_mib: MiB(total),
            block_size_mib: MiB(block),
            slot_size_mib: MiB(slot),
        })
    };
    assert_eq!(memory(256, 2, 128), "");
    assert_eq!(
        memory(256, 1, 128),
        "block_size_mib: is 1, and has to be 2 to 4294967295"
    );
    assert_eq!(
        memory(384, 6, 384),
        "block_size_mib: has to be a power of two"
    );
    assert_eq!(
        memory(256, 2, 64),
        "slot_size_mib: is 64, and has to be 128 to 4294967295"
    );
    assert_eq!(
        memory(130, 4, 130),
        "slot_size_mib: is 130, and has to be a multiple of 4"
    );
    assert_eq!(
        memory(128, 2, 256),
        "total_size_mib: is 128, and has to be 256 to 4294967295; \
         total_size_mib: is 128, and has to be a multiple of 256"
    );
    assert_eq!(
        memory(300, 2, 128),
        "total_size_mib: is 300, and has to be a multiple of 128"
    );
    // Of nothing, nothing is a multiple: no step is by nought.
    assert!(memory(0, 0, 0).contains("block_size_mib: is 0"));
}

#[test]
fn metadata_services() {
    let at = |address: [u8; 4]| {
        said(&MmdsConfig {
            ipv4_address: Some(address.into()),
            ..MmdsConfig::new(vec!["eth0".into()])
        })
    };
    assert_eq!(at([169, 254, 1, 0]), "");
    assert_eq!(at([169, 254, 254, 255]), "");
    for wrong in [[169, 254, 0, 1], [169, 254, 255, 1], [10, 0, 0, 1]] {
        assert_eq!(
            at(wrong),
            "ipv4_address: has to be within 169.254.1.0 to 169.254.254.255"
        );
    }
    assert_eq!(
        said(&MmdsConfig::new(Vec::new())),
        "network_interfaces: has to name one at least"
    );
    assert_eq!(said(&MmdsData(json!([]))), "has to be an object");
    let long = Call::MmdsData(MmdsData(json!({ "a": "b".repeat(51_200) })));
    assert_eq!(
        long.request(NEWEST).unwrap_err().to_string(),
        "has 51208 bytes, 51200 at most"
    );
}

#[test]
fn snapshots() {
    let same = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: "/a".into(),
        mem_file_path: "/a".into(),
    };
    assert_eq!(said(&same), "mem_file_path: is the snapshot_path too");
    let load = SnapshotLoad::new("/state", MemoryBackend::File("/memory".into()));
    let pages = Call::SnapshotLoad(SnapshotLoad {
        huge_pages: LoadHugePages::Size2M,
        ..load.clone()
    });
    assert_eq!(
        said(&pages),
        "huge_pages: of 2M needs memory that comes by userfaultfd"
    );
    let nic = |host: &str| NetworkOverride {
        iface_id: "eth0".into(),
        host_dev_name: host.into(),
    };
    let twice = Call::SnapshotLoad(SnapshotLoad {
        network_overrides: vec![nic("tap0"), nic("tap1")],
        ..load
    });
    assert_eq!(said(&twice), "network_overrides: \"eth0\" is there twice");
    let socket = MemoryBackend::Uffd("a".repeat(108).into());
    let far = Call::SnapshotLoad(SnapshotLoad::new("/state", socket));
    assert_eq!(
        said(&far),
        "mem_backend.backend_path: has 108 bytes, 107 at most"
    );
}

#[test]
fn cpu_configurations() {
    let bits = |text: String| {
        let register = CpuidRegisterModifier {
            register: CpuidRegister::Eax,
            bitmap: Bitmap(text),
        };
        said(&CpuConfig {
            cpuid_modifiers: vec![CpuidLeafModifier {
                leaf: 1,
                subleaf: 0,
                flags: 0,
                modifiers: vec![register],
            }],
            ..CpuConfig::default()
        })
    };
    if cfg!(target_arch = "x86_64") {
        assert_eq!(bits(format!("0b{}", "x_".repeat(32))), "");
        let place = "cpuid_modifiers[0].modifiers[0].bitmap";
        assert_eq!(
            bits("x".repeat(33)),
            format!("{place}: has 33 bytes, 32 at most")
        );
        assert_eq!(bits("012".into()), format!("{place}: contains '2'"));
        assert_eq!(bits("0b".into()), format!("{place}: is empty"));
    } else {
        assert!(bits("x".into()).contains("another architecture"));
    }
    for wrong in ["", "!", "a", "!!1", "4294967296", "+1"] {
        let config = CpuConfig {
            kvm_capabilities: vec![wrong.into()],
            ..CpuConfig::default()
        };
        assert_eq!(
            said(&config),
            "kvm_capabilities[0]: has to be a number, or one after a !",
            "{wrong:?}"
        );
    }
}

/// What is wrong between the parts of a VM.
#[test]
fn parts_that_do_not_fit() {
    let new = || FirecrackerConfig::new("/vmlinux", 1, MiB(128));
    let two_roots = FirecrackerConfig {
        rootfs_path: Some("/root".into()),
        drives: vec![Drive {
            is_root_device: true,
            ..drive()
        }],
        ..new()
    };
    assert_eq!(
        said(&two_roots),
        "drives: only one device can be the root device"
    );
    let same_id = FirecrackerConfig {
        rootfs_path: Some("/root".into()),
        drives: vec![Drive::file("rootfs", "/data")],
        ..new()
    };
    assert_eq!(said(&same_id), "drives: \"rootfs\" is there twice");
    let same_nics = FirecrackerConfig {
        network_interfaces: vec![nic(), nic()],
        ..new()
    };
    assert_eq!(
        said(&same_nics),
        "network_interfaces: \"eth0\" is there twice; network_interfaces: \"tap0\" is there twice; \
         network_interfaces: \"02:00:00:00:00:01\" is there twice"
    );
    let stray = FirecrackerConfig {
        mmds_config: Some(MmdsConfig::new(vec!["eth1".into()])),
        network_interfaces: vec![nic()],
        ..new()
    };
    assert_eq!(
        said(&stray),
        "mmds_config.network_interfaces: there is no \"eth1\""
    );
    let unheard = FirecrackerConfig {
        mmds: Some(MmdsData(json!({}))),
        ..new()
    };
    assert_eq!(
        said(&unheard),
        "mmds: reaches no guest without an mmds_config"
    );
    let balloon = FirecrackerConfig {
        balloon: Some(Balloon {
            amount_mib: MiB(129),
            ..Balloon::default()
        }),
        ..new()
    };
    assert_eq!(
        said(&balloon),
        "balloon.amount_mib: is more than the guest's memory"
    );
    let read_only = FirecrackerConfig {
        rootfs_read_only: true,
        ..new()
    };
    assert_eq!(said(&read_only), "rootfs_read_only: needs a rootfs_path");
    let all_at_once = FirecrackerConfig {
        kernel_image_path: "".into(),
        vcpu_count: 0,
        ..balloon
    };
    assert_eq!(all_at_once.validate(NEWEST).unwrap_err().faults().len(), 3);
}

/// Two settings that one version takes together, and an earlier one does not.
#[test]
fn settings_that_older_versions_do_not_take_together() {
    let pages = FirecrackerConfig {
        huge_pages: HugePages::Size2M,
        ..FirecrackerConfig::new("/vmlinux", 1, MiB(128))
    };
    let with_initrd = FirecrackerConfig {
        initrd_path: Some("/initrd".into()),
        ..pages.clone()
    };
    let with_balloon = FirecrackerConfig {
        balloon: Some(Balloon::default()),
        ..pages
    };
    for (config, last_without, first_with, said) in [
        (
            with_initrd,
            (1, 10, 1),
            (1, 11, 0),
            "huge_pages: Firecracker 1.10.1 does not have huge pages beside an initrd; it came \
             with 1.11.0",
        ),
        (
            with_balloon,
            (1, 13, 2),
            (1, 14, 0),
            "huge_pages: Firecracker 1.13.2 does not have huge pages beside a balloon; it came \
             with 1.14.0",
        ),
    ] {
        let version = |(major, minor, patch)| Version::new(major, minor, patch);
        let refused = config.calls(version(last_without)).unwrap_err();
        assert_eq!(refused.to_string(), said);
        assert_eq!(refused.class(), ErrorClass::Unavailable);
        assert_eq!(refused.code(), "firecracker_too_old");
        config.calls(version(first_with)).unwrap();
    }
}
