//! What is drawn, against the tables.

use crate::description::{Comparison, DESCRIPTION, Mismatch, versions};
use crate::strategy;
use aleph_executor::firecracker::api::{
    Answer, Balloon, BalloonHintingStatus, BalloonStatistics, Body, Call, FirecrackerVersion,
    InstanceInfo, MachineConfig, MemoryBackend, MemoryHotplugStatus, MmdsData, Request,
    SnapshotLoad, VmConfiguration,
};
use aleph_executor::firecracker::{Feature, Version};
use aleph_types::{Classify, ErrorClass};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

fn version() -> impl Strategy<Value = Version> {
    select(versions())
}

/// What a version does not take of a request.
fn compare(request: &Request, version: Version) -> Vec<Mismatch> {
    let mut comparison = Comparison::new(&DESCRIPTION, version);
    comparison.request(request);
    comparison.mismatches()
}

/// The call without what is sent to older versions under another name.
fn without_renamed(call: &Call) -> Call {
    let mut call = call.clone();
    if let Call::SnapshotLoad(load) = &mut call {
        load.track_dirty_pages = false;
    }
    call
}

proptest! {
    #![proptest_config(Config { cases: 4096, ..Config::default() })]

    /// Whatever is sent to a version has only fields that the version knows, within their limits.
    #[test]
    fn a_version_takes_what_is_sent_to_it(call in strategy::call(), version in version()) {
        if let Ok(request) = call.request(version) {
            let mismatches = compare(&request, version);
            prop_assert_eq!(mismatches, [], "{:?}", request);
        }
    }

    /// What a version lacks is refused for that and nothing else, with the versions that have it;
    /// and what it does not lack is not refused.
    #[test]
    fn what_a_version_lacks_is_refused(call in strategy::call(), version in version()) {
        let Ok(request) = call.request(Version::NEWEST) else {
            // Wrong for the newest is wrong for all.
            prop_assert!(call.request(version).is_err());
            return Ok(());
        };
        let all = compare(&request, Version::NEWEST);
        prop_assert_eq!(all, []);
        let request = without_renamed(&call).request(Version::NEWEST).unwrap();
        let mismatches = compare(&request, version);
        match call.request(version) {
            Ok(_) => prop_assert_eq!(mismatches, []),
            Err(invalid) => {
                prop_assert_eq!(invalid.lacking().count(), invalid.faults().len());
                prop_assert_eq!(invalid.class(), ErrorClass::Unavailable);
                let lacking: Vec<_> = invalid.lacking().collect();
                prop_assert!(!mismatches.is_empty(), "{} is refused for nothing", invalid);
                for mismatch in mismatches {
                    let Mismatch::Later { since, .. } = &mismatch else {
                        return Err(TestCaseError::fail(format!("{mismatch:?}")));
                    };
                    let is_said = lacking
                        .iter()
                        .any(|it| it.version == version && it.feature.since() == &since[..]);
                    prop_assert!(is_said, "{:?} is not said in {}", mismatch, invalid);
                }
            }
        }
    }
}

/// Nothing of the tables is left out but for a reason: each call, field and value is sent by
/// something.
#[test]
fn all_of_the_description_can_be_sent() {
    let mut newest = Comparison::new(&DESCRIPTION, Version::NEWEST);
    let mut oldest = Comparison::new(&DESCRIPTION, Version::OLDEST);
    let mut runner = TestRunner::deterministic();
    let calls = strategy::call();
    for _ in 0..20_000 {
        let call = calls.new_tree(&mut runner).unwrap().current();
        if let Ok(request) = call.request(Version::NEWEST) {
            newest.request(&request);
        }
        if let Ok(request) = call.request(Version::OLDEST) {
            oldest.request(&request);
        }
    }
    let mut seen = newest.seen() | oldest.seen();
    for path in [
        InstanceInfo::PATH,
        FirecrackerVersion::PATH,
        VmConfiguration::PATH,
        MachineConfig::PATH,
        MmdsData::PATH,
        Balloon::PATH,
        BalloonStatistics::PATH,
        BalloonHintingStatus::PATH,
        MemoryHotplugStatus::PATH,
    ] {
        seen.insert(format!("GET {path}"));
    }
    let endpoints = DESCRIPTION
        .endpoints
        .iter()
        .map(|endpoint| format!("{} {}", endpoint.method, endpoint.path));
    let fields = DESCRIPTION
        .fields
        .iter()
        .filter(|field| field.body != "FullVmConfiguration")
        .map(|field| format!("{}.{}", field.body, field.name));
    let values = DESCRIPTION.fields.iter().flat_map(|field| {
        let values = field.values().map(move |value| (field, value));
        values.map(|(field, value)| format!("{}.{}={value}", field.body, field.name))
    });
    let missing: Vec<_> = endpoints
        .chain(fields)
        .chain(values)
        .filter(|what| !seen.contains(what))
        .filter(|what| !is_left_out(what))
        .collect();
    assert_eq!(missing, [""; 0]);
}

/// What is never sent, and why.
fn is_left_out(what: &str) -> bool {
    let is_for_others = if cfg!(target_arch = "x86_64") {
        what.starts_with("ArmRegisterModifier.")
            || what.starts_with("VcpuFeatures.")
            || what == "CpuConfig.reg_modifiers"
            || what == "CpuConfig.vcpu_features"
            || what == "MachineConfiguration.cpu_template=V1N1"
    } else {
        what.starts_with("Cpuid")
            || what.starts_with("MsrModifier.")
            || what.contains("cpuid_modifiers")
            || what.contains("msr_modifiers")
            || what.starts_with("MachineConfiguration.cpu_template=")
            || what.ends_with("SendCtrlAltDel")
            || what.ends_with("clock_realtime")
    };
    let is_left_out = [
        // A PUT says all of it again.
        "PATCH /machine-config",
        // Deprecated, in favour of nothing and of mem_backend.
        "Vsock.vsock_id",
        "SnapshotLoadParams.mem_file_path",
        // Not sent, being the default.
        "MachineConfiguration.huge_pages=None",
        "SnapshotLoadParams.huge_pages=Snapshot",
    ];
    is_for_others || is_left_out.contains(&what)
}

/// The features that a field or call of the table stands for are as old as the table says. Those
/// without one are of the program or of what files mean, and not of the API's shape.
#[test]
fn features_are_as_old_as_their_fields() {
    for (what, feature) in [
        (
            "SnapshotLoadParams.network_overrides",
            Feature::NetworkOverrides,
        ),
        (
            "SnapshotLoadParams.track_dirty_pages",
            Feature::TrackDirtyPagesOnLoad,
        ),
        ("SnapshotLoadParams.clock_realtime", Feature::ClockRealtime),
        ("SnapshotLoadParams.vsock_override", Feature::VsockOverride),
        ("SnapshotLoadParams.huge_pages", Feature::HugePagesOnLoad),
        ("MmdsConfig.imds_compat", Feature::ImdsCompat),
        ("Pmem.id", Feature::Pmem),
        ("Pmem.rate_limiter", Feature::PmemRateLimiter),
        ("PartialPmem.id", Feature::PmemRateLimiter),
        ("SerialDevice.serial_out_path", Feature::Serial),
        ("SerialDevice.rate_limiter", Feature::SerialRateLimiter),
        ("MemoryHotplugConfig.total_size_mib", Feature::MemoryHotplug),
        ("Balloon.free_page_hinting", Feature::FreePageHinting),
        ("Balloon.free_page_reporting", Feature::FreePageReporting),
        ("NetworkInterface.mtu", Feature::Mtu),
        ("Metrics.emit_id", Feature::MetricsLabels),
        ("Metrics.properties", Feature::MetricsLabels),
    ] {
        let field = DESCRIPTION
            .fields
            .iter()
            .find(|field| format!("{}.{}", field.body, field.name) == what);
        let span = field.unwrap_or_else(|| panic!("{what}")).span();
        assert_eq!(feature.since(), &span.since[..], "{what}");
        for version in versions() {
            assert_eq!(
                feature.is_in(version),
                span.holds(version),
                "{what} {version}"
            );
        }
    }
}

/// One setting has had two names: each version gets the one that it knows, and neither where it is
/// off.
#[test]
fn tracking_goes_by_the_name_that_a_version_has() {
    let memory = MemoryBackend::File("/memory".into());
    for version in versions() {
        for track_dirty_pages in [false, true] {
            let load = SnapshotLoad {
                track_dirty_pages,
                ..SnapshotLoad::new("/state", memory.clone())
            };
            let request = Call::SnapshotLoad(load).request(version).unwrap();
            assert_eq!(compare(&request, version), [], "{version}");
            let body: Value = serde_json::from_slice(&request.body.unwrap()).unwrap();
            let name = if version < Version::new(1, 13, 0) {
                "enable_diff_snapshots"
            } else {
                "track_dirty_pages"
            };
            let found = body.get(name).cloned();
            assert_eq!(
                found,
                track_dirty_pages.then_some(Value::Bool(true)),
                "{version}"
            );
            let backend = json!({ "backend_type": "File", "backend_path": "/memory" });
            assert_eq!(body["mem_backend"], backend);
        }
    }
}

/// A call can be checked without being made.
#[test]
fn a_call_is_checked_like_its_body() {
    let call = Call::DriveDelete("a/b".into());
    let invalid = call.validate(Version::OLDEST).unwrap_err();
    assert_eq!(
        invalid.to_string(),
        "Firecracker 1.10.0 does not have devices that are plugged and unplugged after boot; it \
         came with 1.16.0; drive_id: contains '/'"
    );
    assert_eq!(invalid.class(), ErrorClass::Invalid);
    assert_eq!(
        invalid.advice().unwrap(),
        "Install Firecracker 1.16.0 or later, or do without."
    );
}
