//! Draws calls: mostly right ones, with fields of every version, and numbers beyond their limits.

use aleph_executor::firecracker::api::*;
use aleph_types::MiB;
use aleph_vm_networking::mac::Mac;
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::strategy::Union;
use std::path::PathBuf;
use std::time::Duration;

fn id() -> impl Strategy<Value = String> {
    prop_oneof![39 => "[A-Za-z0-9_]{1,12}", 1 => "[a-z/% é.]{0,4}"]
}

fn path() -> impl Strategy<Value = PathBuf> {
    prop_oneof![39 => "/[a-z0-9./ é]{0,40}", 1 => "[a\0]{0,2}"].prop_map(PathBuf::from)
}

fn interface() -> impl Strategy<Value = String> {
    prop_oneof![39 => "tap[a-z0-9-]{1,12}", 1 => "[a-z/ ]{0,18}"]
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        38 => (1_u64..1_000_000).prop_map(Duration::from_millis),
        1 => any::<u64>().prop_map(Duration::from_millis),
        1 => any::<u64>().prop_map(Duration::from_nanos),
    ]
}

fn tokens() -> impl Strategy<Value = u64> {
    prop_oneof![39 => 1_u64..1_000_000_000, 1 => any::<u64>()]
}

fn bucket() -> impl Strategy<Value = TokenBucket> {
    let limited = (tokens(), of(tokens()), duration());
    let limited = limited.prop_map(|(size, one_time_burst, refill_time)| TokenBucket {
        size,
        one_time_burst,
        refill_time,
    });
    prop_oneof![30 => limited, 1 => Just(TokenBucket::OFF)]
}

fn limiter() -> impl Strategy<Value = RateLimiter> {
    (of(bucket()), of(bucket())).prop_map(|(bandwidth, ops)| RateLimiter { bandwidth, ops })
}

/// Drives, not all of which make sense.
pub(crate) fn drive() -> impl Strategy<Value = Drive> {
    let cache = prop_oneof![Just(CacheType::Unsafe), Just(CacheType::Writeback)];
    let engine = prop_oneof![Just(IoEngine::Sync), Just(IoEngine::Async)];
    let ends = prop_oneof![
        26 => (path(), of(any::<bool>()), of(engine), of(limiter())).prop_map(|it| (Some(it), None)),
        12 => path().prop_map(|socket| (None, Some(socket))),
        1 => (path(), path()).prop_map(|(a, b)| (Some((a, None, None, None)), Some(b))),
        1 => Just((None, None)),
    ];
    // A partition is of the root device, and else wrong.
    let root = prop_oneof![
        20 => Just((false, None)),
        10 => of("[0-9a-f-]{1,36}").prop_map(|partuuid| (true, partuuid)),
        1 => "[0-9a-f-]{1,36}".prop_map(|partuuid| (false, Some(partuuid))),
    ];
    (id(), root, cache, ends).prop_map(
        |(drive_id, (is_root_device, partuuid), cache_type, (file, socket))| {
            let (path_on_host, is_read_only, io_engine, rate_limiter) = match file {
                Some((path, read_only, engine, limiter)) => {
                    (Some(path), read_only, engine, limiter)
                }
                None => (None, None, None, None),
            };
            Drive {
                drive_id,
                partuuid,
                is_root_device,
                cache_type,
                is_read_only,
                path_on_host,
                rate_limiter,
                io_engine,
                socket,
            }
        },
    )
}

/// Network interfaces.
pub(crate) fn network_interface() -> impl Strategy<Value = NetworkInterface> {
    let mac = prop_oneof![
        39 => any::<[u8; 5]>().prop_map(|[a, b, c, d, e]| Mac([2, a, b, c, d, e])),
        1 => any::<[u8; 6]>().prop_map(Mac),
    ];
    let mtu = prop_oneof![39 => 68..=u16::MAX, 1 => any::<u16>()];
    let limits = (of(limiter()), of(limiter()));
    (id(), interface(), of(mac), of(mtu), limits).prop_map(
        |(iface_id, host_dev_name, guest_mac, mtu, (rx_rate_limiter, tx_rate_limiter))| {
            NetworkInterface {
                iface_id,
                host_dev_name,
                guest_mac,
                mtu,
                rx_rate_limiter,
                tx_rate_limiter,
            }
        },
    )
}

/// pmem devices.
pub(crate) fn pmem() -> impl Strategy<Value = Pmem> {
    (id(), path(), any::<bool>(), any::<bool>(), of(limiter())).prop_map(
        |(id, path_on_host, root_device, read_only, rate_limiter)| Pmem {
            id,
            path_on_host,
            root_device,
            read_only,
            rate_limiter,
        },
    )
}

/// vsocks.
pub(crate) fn vsock() -> impl Strategy<Value = Vsock> {
    let cid = prop_oneof![38 => 3..u32::MAX, 1 => 0..6_u32, 1 => u32::MAX - 2..=u32::MAX];
    (cid, path()).prop_map(|(guest_cid, uds_path)| Vsock {
        guest_cid,
        uds_path,
    })
}

/// Balloons.
pub(crate) fn balloon() -> impl Strategy<Value = Balloon> {
    let amount = prop_oneof![39 => 0..1024_u32, 1 => any::<u32>()];
    (
        amount,
        any::<bool>(),
        any::<u16>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(amount, deflate_on_oom, stats_polling_interval_s, hinting, reporting)| Balloon {
                amount_mib: MiB(amount),
                deflate_on_oom,
                stats_polling_interval_s,
                free_page_hinting: hinting,
                free_page_reporting: reporting,
            },
        )
}

/// CPUs and memory.
pub(crate) fn machine_config() -> impl Strategy<Value = MachineConfig> {
    let template = prop_oneof![
        Just(CpuTemplate::C3),
        Just(CpuTemplate::T2),
        Just(CpuTemplate::T2S),
        Just(CpuTemplate::T2CL),
        Just(CpuTemplate::T2A),
        Just(CpuTemplate::V1N1),
        Just(CpuTemplate::None),
    ];
    let pages = prop_oneof![
        Just(HugePages::None),
        Just(HugePages::Transparent),
        Just(HugePages::Size2M)
    ];
    let count = prop_oneof![
        20 => (1..=16_u8).prop_map(|half| half * 2),
        10 => 1..=32_u8,
        1 => 33..36_u8,
        1 => any::<u8>(),
    ];
    let memory = prop_oneof![
        26 => (1..2048_u32).prop_map(|half| half * 2),
        1 => 0..4_u32,
        1 => any::<u32>(),
    ];
    let more = (any::<bool>(), of(template), any::<bool>(), pages);
    (count, memory, more).prop_map(
        |(vcpu_count, memory, (smt, cpu_template, track_dirty_pages, huge_pages))| MachineConfig {
            vcpu_count,
            mem_size_mib: MiB(memory),
            smt,
            cpu_template,
            track_dirty_pages,
            huge_pages,
        },
    )
}

/// CPU configurations, of this architecture or another.
pub(crate) fn cpu_config() -> impl Strategy<Value = CpuConfig> {
    fn bitmap() -> impl Strategy<Value = Bitmap> {
        let text = prop_oneof![39 => "0b[01x_]{1,32}", 1 => "[01x2]{0,140}"];
        text.prop_map(Bitmap)
    }
    let register = prop_oneof![
        Just(CpuidRegister::Eax),
        Just(CpuidRegister::Ebx),
        Just(CpuidRegister::Ecx),
        Just(CpuidRegister::Edx)
    ];
    let register = (register, bitmap())
        .prop_map(|(register, bitmap)| CpuidRegisterModifier { register, bitmap });
    let flags = prop_oneof![39 => 0..8_u32, 1 => any::<u32>()];
    let leaf = (
        any::<u32>(),
        any::<u32>(),
        flags.clone(),
        vec(register, 0..3),
    )
        .prop_map(|(leaf, subleaf, flags, modifiers)| CpuidLeafModifier {
            leaf,
            subleaf,
            flags,
            modifiers,
        });
    let msr = (any::<u32>(), bitmap()).prop_map(|(addr, bitmap)| MsrModifier { addr, bitmap });
    let features = (flags, bitmap()).prop_map(|(index, bitmap)| VcpuFeatures { index, bitmap });
    let arm =
        (any::<u64>(), bitmap()).prop_map(|(addr, bitmap)| ArmRegisterModifier { addr, bitmap });
    let capability = prop_oneof![39 => "!?[0-9]{1,4}", 1 => "[!0-9a]{0,12}"];
    let x86 = (vec(leaf, 0..3), vec(msr, 0..3));
    let arm = (vec(features, 0..2), vec(arm, 0..2));
    let both = prop_oneof![
        if cfg!(target_arch = "x86_64") { 20 } else { 1 } => x86.prop_map(|(cpuid, msr)| (cpuid, msr, Vec::new(), Vec::new())),
        if cfg!(target_arch = "aarch64") { 20 } else { 1 } => arm.prop_map(|(features, registers)| (Vec::new(), Vec::new(), features, registers)),
    ];
    (vec(capability, 0..3), both).prop_map(|(kvm_capabilities, (cpuid, msr, vcpu, reg))| {
        CpuConfig {
            kvm_capabilities,
            cpuid_modifiers: cpuid,
            msr_modifiers: msr,
            vcpu_features: vcpu,
            reg_modifiers: reg,
        }
    })
}

/// Metadata services.
pub(crate) fn mmds_config() -> impl Strategy<Value = MmdsConfig> {
    let version = prop_oneof![Just(MmdsVersion::V1), Just(MmdsVersion::V2)];
    let address = prop_oneof![
        38 => (any::<u8>(), any::<u8>()).prop_map(|(c, d)| [169, 254, c, d].into()),
        1 => any::<std::net::Ipv4Addr>(),
    ];
    (version, vec(id(), 0..3), of(address), any::<bool>()).prop_map(
        |(version, network_interfaces, ipv4_address, imds_compat)| MmdsConfig {
            version,
            network_interfaces,
            ipv4_address,
            imds_compat,
        },
    )
}

/// Data of a metadata service.
pub(crate) fn mmds_data() -> impl Strategy<Value = MmdsData> {
    let value = prop_oneof![
        39 => btree_map("[a-z]{1,8}", "[a-z]{0,8}", 0..4).prop_map(|map| serde_json::json!(map)),
        1 => any::<u32>().prop_map(serde_json::Value::from),
    ];
    value.prop_map(MmdsData)
}

/// Loggers.
pub(crate) fn logger() -> impl Strategy<Value = Logger> {
    let level = prop_oneof![
        Just(LogLevel::Off),
        Just(LogLevel::Error),
        Just(LogLevel::Warning),
        Just(LogLevel::Info),
        Just(LogLevel::Debug),
        Just(LogLevel::Trace),
    ];
    let shown = (of(any::<bool>()), of(any::<bool>()));
    (of(path()), of(level), shown, of("[a-z:]{0,12}")).prop_map(
        |(log_path, level, (show_level, show_log_origin), module)| Logger {
            log_path,
            level,
            show_level,
            show_log_origin,
            module,
        },
    )
}

/// Metrics.
pub(crate) fn metrics() -> impl Strategy<Value = Metrics> {
    let properties = btree_map("[a-z]{1,8}", "[a-z]{0,8}", 0..3);
    (path(), any::<bool>(), of(properties)).prop_map(|(metrics_path, emit_id, properties)| {
        Metrics {
            metrics_path,
            emit_id,
            properties,
        }
    })
}

/// Serial consoles.
pub(crate) fn serial() -> impl Strategy<Value = Serial> {
    (of(path()), of(bucket())).prop_map(|(serial_out_path, rate_limiter)| Serial {
        serial_out_path,
        rate_limiter,
    })
}

/// Entropy devices.
pub(crate) fn entropy() -> impl Strategy<Value = EntropyDevice> {
    of(limiter()).prop_map(|rate_limiter| EntropyDevice { rate_limiter })
}

/// Hotplugged memory.
pub(crate) fn memory_hotplug() -> impl Strategy<Value = MemoryHotplug> {
    let right = (0..4_u32, 1..4_u32, 1..8_u32).prop_map(|(block, slot, total)| {
        let (block, slot) = (2 << block, 128 * slot);
        (total * slot, block, slot)
    });
    let any = (any::<u32>(), 0..5_u32, 120..140_u32);
    prop_oneof![26 => right, 1 => any].prop_map(|(total, block, slot)| MemoryHotplug {
        total_size_mib: MiB(total),
        block_size_mib: MiB(block),
        slot_size_mib: MiB(slot),
    })
}

fn boot_source() -> impl Strategy<Value = BootSource> {
    let line = prop_oneof![39 => "[a-z=./ ]{0,60}", 1 => "[a-z\né]{0,9}", 1 => "a{2040,2060}"];
    (path(), of(path()), of(line)).prop_map(|(kernel_image_path, initrd_path, boot_args)| {
        BootSource {
            kernel_image_path,
            initrd_path,
            boot_args,
        }
    })
}

fn load() -> impl Strategy<Value = SnapshotLoad> {
    let backend = prop_oneof![
        path().prop_map(MemoryBackend::File),
        path().prop_map(MemoryBackend::Uffd)
    ];
    let nic = (id(), interface()).prop_map(|(iface_id, host_dev_name)| NetworkOverride {
        iface_id,
        host_dev_name,
    });
    let vsock = path().prop_map(|uds_path| VsockOverride { uds_path });
    let pages = prop_oneof![
        4 => Just(LoadHugePages::Snapshot),
        1 => Just(LoadHugePages::None),
        1 => Just(LoadHugePages::Transparent),
        1 => Just(LoadHugePages::Size2M),
    ];
    // What every version has, with one at a time of what not every one has, or with all of them.
    let plain = (path(), backend, any::<bool>(), any::<bool>()).prop_map(
        |(snapshot_path, mem_backend, track_dirty_pages, resume_vm)| SnapshotLoad {
            track_dirty_pages,
            resume_vm,
            ..SnapshotLoad::new(snapshot_path, mem_backend)
        },
    );
    let more = (vec(nic, 0..3), of(vsock), any::<bool>(), pages);
    (plain, more, 0..6_u8).prop_map(|(plain, more, which)| {
        let (network_overrides, vsock_override, clock_realtime, huge_pages) = more;
        let all = SnapshotLoad {
            network_overrides,
            vsock_override,
            clock_realtime,
            huge_pages,
            ..plain.clone()
        };
        match which {
            0 => plain,
            1 => SnapshotLoad {
                network_overrides: all.network_overrides,
                ..plain
            },
            2 => SnapshotLoad {
                vsock_override: all.vsock_override,
                ..plain
            },
            3 => SnapshotLoad {
                clock_realtime: all.clock_realtime,
                ..plain
            },
            4 => SnapshotLoad {
                huge_pages: all.huge_pages,
                ..plain
            },
            _ => all,
        }
    })
}

fn create() -> impl Strategy<Value = SnapshotCreate> {
    let kind = prop_oneof![Just(SnapshotType::Full), Just(SnapshotType::Diff)];
    (kind, path(), path()).prop_map(|(snapshot_type, snapshot_path, mem_file_path)| {
        SnapshotCreate {
            snapshot_type,
            snapshot_path,
            mem_file_path,
        }
    })
}

/// Calls of every kind.
pub(crate) fn call() -> impl Strategy<Value = Call> {
    let drive_update =
        (id(), of(path()), of(limiter())).prop_map(|(drive_id, path_on_host, rate_limiter)| {
            DriveUpdate {
                drive_id,
                path_on_host,
                rate_limiter,
            }
        });
    let nic_update = (id(), of(limiter()), of(limiter())).prop_map(
        |(iface_id, rx_rate_limiter, tx_rate_limiter)| NetworkInterfaceUpdate {
            iface_id,
            rx_rate_limiter,
            tx_rate_limiter,
        },
    );
    let pmem_update =
        (id(), of(limiter())).prop_map(|(id, rate_limiter)| PmemUpdate { id, rate_limiter });
    let amount = any::<u32>().prop_map(|amount| BalloonUpdate {
        amount_mib: MiB(amount >> 6),
    });
    let interval = any::<u16>().prop_map(|interval| BalloonStatisticsUpdate {
        stats_polling_interval_s: interval,
    });
    let hinting = any::<bool>().prop_map(|acknowledge_on_stop| BalloonHintingStart {
        acknowledge_on_stop,
    });
    let requested = any::<u32>().prop_map(|requested| MemoryHotplugUpdate {
        requested_size_mib: MiB(requested),
    });
    let action = prop_oneof![
        Just(Action::FlushMetrics),
        Just(Action::InstanceStart),
        Just(Action::SendCtrlAltDel)
    ];
    let state = prop_oneof![Just(VmState::Paused), Just(VmState::Resumed)];
    Union::new([
        logger().prop_map(Call::Logger).boxed(),
        metrics().prop_map(Call::Metrics).boxed(),
        serial().prop_map(Call::Serial).boxed(),
        machine_config().prop_map(Call::MachineConfig).boxed(),
        cpu_config().prop_map(Call::CpuConfig).boxed(),
        boot_source().prop_map(Call::BootSource).boxed(),
        drive().prop_map(Call::Drive).boxed(),
        drive_update.prop_map(Call::DriveUpdate).boxed(),
        id().prop_map(Call::DriveDelete).boxed(),
        network_interface().prop_map(Call::NetworkInterface).boxed(),
        nic_update.prop_map(Call::NetworkInterfaceUpdate).boxed(),
        id().prop_map(Call::NetworkInterfaceDelete).boxed(),
        pmem().prop_map(Call::Pmem).boxed(),
        pmem_update.prop_map(Call::PmemUpdate).boxed(),
        id().prop_map(Call::PmemDelete).boxed(),
        vsock().prop_map(Call::Vsock).boxed(),
        entropy().prop_map(Call::Entropy).boxed(),
        balloon().prop_map(Call::Balloon).boxed(),
        amount.prop_map(Call::BalloonUpdate).boxed(),
        interval.prop_map(Call::BalloonStatisticsUpdate).boxed(),
        hinting.prop_map(Call::BalloonHintingStart).boxed(),
        Just(Call::BalloonHintingStop).boxed(),
        memory_hotplug().prop_map(Call::MemoryHotplug).boxed(),
        requested.prop_map(Call::MemoryHotplugUpdate).boxed(),
        mmds_config().prop_map(Call::MmdsConfig).boxed(),
        mmds_data().prop_map(Call::MmdsData).boxed(),
        mmds_data().prop_map(Call::MmdsDataUpdate).boxed(),
        action.prop_map(Call::Action).boxed(),
        state.prop_map(Call::VmState).boxed(),
        create().prop_map(Call::SnapshotCreate).boxed(),
        load().prop_map(Call::SnapshotLoad).boxed(),
    ])
}
