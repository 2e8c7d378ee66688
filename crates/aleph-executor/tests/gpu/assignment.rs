//! Who gets GPUs and who has them back, on recorded trees: their files take what is written and do
//! nothing. So devices are bound to a driver for guests from the beginning where a test needs that.

use super::{HGX, at, tree};
use aleph_executor::gpu::{
    GpuConfig, GpuState, Gpus, HostTree, Nvml, NvmlError, NvmlGpu, NvmlInstance, Prior, Quarantine,
    Record, Taken, TakenFunction, Tenant,
};
use aleph_testkit::wait_until;
use aleph_types::{Classify, ErrorClass, GpuRequest};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// A host whose files can be changed.
struct Host {
    dir: TempDir,
    tree: HostTree,
}

const LIMIT: Duration = Duration::from_secs(60);

/// The groups of the tests' hosts.
const GROUPS: std::ops::Range<u32> = 0..60;

impl Host {
    /// With the node of each group where `nodes` says so.
    fn new(description: &str, nodes: bool) -> Self {
        let (dir, tree) = tree(description);
        fs::create_dir_all(tree.dev.join("vfio")).unwrap();
        if nodes {
            for group in GROUPS {
                fs::write(tree.dev.join(format!("vfio/{group}")), "").unwrap();
            }
        }
        fs::write(tree.sys.join("bus/pci/drivers_probe"), "").unwrap();
        let host = Self { dir, tree };
        host.boots("first");
        host
    }

    fn boots(&self, id: &str) {
        let dir = self.tree.proc.join("sys/kernel/random");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("boot_id"), id).unwrap();
    }

    fn gpus(&self) -> Gpus {
        self.with_driver("vfio-pci")
    }

    fn with_driver(&self, driver: &str) -> Gpus {
        fs::create_dir_all(self.tree.sys.join("bus/pci/drivers").join(driver)).unwrap();
        let config = GpuConfig {
            enabled: true,
            driver: driver.into(),
            ..GpuConfig::default()
        };
        Gpus::new(self.tree.clone(), config)
    }

    fn function(&self, address: &str) -> PathBuf {
        self.tree.sys.join("bus/pci/devices").join(address)
    }

    fn file(&self, address: &str, name: &str) -> String {
        let text = fs::read_to_string(self.function(address).join(name)).unwrap();
        text.trim().to_owned()
    }

    /// Whether it was reset since this was asked last.
    fn was_reset(&self, address: &str) -> bool {
        let was = self.file(address, "reset") == "1";
        fs::write(self.function(address).join("reset"), "").unwrap();
        was
    }

    /// The same of a process whose first thread has ended.
    fn process_that_ends_with_null(&self) {
        self.process_with_null();
        let (dir, thread) = (self.tree.proc.join("7"), self.tree.proc.join("7/task/8"));
        fs::create_dir_all(&thread).unwrap();
        fs::rename(dir.join("fd"), thread.join("fd")).unwrap();
    }

    /// Has a process open what the kernel knows as `/dev/null`.
    fn process_with_null(&self) {
        let dir = self.tree.proc.join("7/fd");
        fs::create_dir_all(&dir).unwrap();
        symlink("/dev/null", dir.join("3")).unwrap();
        fs::write(self.tree.proc.join("7/comm"), "qemu\n").unwrap();
    }

    fn process_ends(&self) {
        fs::remove_dir_all(self.tree.proc.join("7")).unwrap();
    }

    fn record(&self) -> Record {
        let text = fs::read(self.dir.path().join("gpu/record.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn write_record(&self, record: &Record) {
        fs::create_dir_all(self.dir.path().join("gpu")).unwrap();
        let text = serde_json::to_vec(record).unwrap();
        fs::write(self.dir.path().join("gpu/record.json"), text).unwrap();
    }
}

fn job(name: &str) -> Tenant {
    Tenant::new("node", name, 1)
}

fn ask(text: &str) -> GpuRequest {
    text.parse().unwrap()
}

/// A group of these H100, whose driver of before was NVIDIA's.
fn taken(addresses: &[&str]) -> Taken {
    let functions = addresses.iter().map(|address| TakenFunction {
        address: at(address),
        vendor: 0x10de,
        device: 0x2330,
        prior: Prior {
            driver: Some("nvidia".into()),
            ..Prior::default()
        },
    });
    Taken {
        boot: "first".into(),
        group: 1,
        gpus: addresses.iter().map(|address| at(address)).collect(),
        functions: functions.collect(),
    }
}

const ONE: &str = "0000:01:00.0 root 10de:2330 class=030200 group=1 reset=flr driver=vfio-pci\n";

#[test]
fn jobs_get_none_where_they_are_to_have_none() {
    let host = Host::new(ONE, true);
    let gpus = Gpus::new(host.tree.clone(), GpuConfig::default());
    for error in [
        gpus.assign(&job("a"), &ask("1")).unwrap_err(),
        gpus.admit(&ask("1")).unwrap_err(),
    ] {
        assert_eq!(
            (error.code(), error.class()),
            ("gpu_disabled", ErrorClass::Invalid)
        );
        assert!(error.advice().unwrap().contains("enable_gpu"));
    }
    // What was given before is taken back all the same.
    host.gpus().assign(&job("a"), &ask("1")).unwrap();
    assert_eq!(gpus.release(&job("a")).unwrap().returned, [at("01:00.0")]);
}

#[test]
fn a_vgpu_stays_with_its_driver_and_is_made_anew_for_each_tenant() {
    let host = Host::new(
        "0000:01:00.0 root 10de:2330 class=030200 group=1 driver=nvidia reset=flr vfs=0000:01:00.4\n\
         0000:01:00.4 root 10de:2330 class=030200 group=2 driver=nvidia bars=16M,8G pf=0000:01:00.0 vgpu=1049\n",
        true,
    );
    let vgpu = "0000:01:00.4";
    let kind = || host.file(vgpu, "nvidia/current_vgpu_type");
    let clear = || fs::write(host.function(vgpu).join("nvidia/current_vgpu_type"), "0").unwrap();
    // A crash may come when it is cleared and not made anew: whoever goes on knows what it was.
    for _ in 0..2 {
        let given = host
            .gpus()
            .assign(&job("a"), &ask("type=vgpu-1049"))
            .unwrap();
        assert_eq!(given[0].functions[0].prior.vgpu, Some(1049));
        assert_eq!(kind(), "1049");
        assert_eq!(
            host.file(vgpu, "driver_override"),
            "(null)",
            "it is not bound"
        );
        clear();
    }
    let other = host.gpus().assign(&job("b"), &ask("type=vgpu-1049"));
    assert_eq!(other.unwrap_err().code(), "no_gpu");
    assert_eq!(
        host.gpus().release(&job("a")).unwrap().returned,
        [at("01:00.4")]
    );
    assert_eq!(kind(), "1049");
    assert_eq!(host.record(), Record::default());
}

#[test]
fn a_fault_of_the_host_puts_no_gpu_in_quarantine() {
    let host = Host::new(&HGX.replace("driver=nvidia", "driver=vfio-pci"), false);
    let error = host
        .gpus()
        .assign(&job("a"), &ask("type=h200"))
        .unwrap_err();
    assert_eq!(
        (error.code(), error.class()),
        ("no_vfio_group", ErrorClass::Unavailable)
    );
    assert!(error.to_string().contains("vfio/14,"), "{error}");
    assert_eq!(host.record(), Record::default());
    assert_eq!(host.file("0000:18:00.0", "driver_override"), "");
    assert!(host.gpus().admit(&ask("type=h200,count=8")).is_ok());
}

/// NVIDIA's library, which says of one GPU whether it is divided.
#[derive(Debug)]
struct Divided(AtomicBool);

impl Nvml for Divided {
    fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError> {
        Ok(vec![NvmlGpu {
            address: at("01:00.0"),
            ids: (0x10de, 0x2330),
            uuid: None,
            name: None,
            memory: None,
            mig: Some(self.0.load(Ordering::Relaxed)),
            instances: vec![NvmlInstance {
                index: 0,
                uuid: None,
                profile: None,
                memory: None,
            }],
        }])
    }
}

#[test]
fn a_gpu_that_mig_divides_is_not_given_whole_until_that_ends() {
    let host = Host::new(&ONE.replace("vfio-pci", "nvidia"), true);
    let nvml = Arc::new(Divided(AtomicBool::new(true)));
    let gpus = host.gpus().asking(Arc::clone(&nvml));
    let said = gpus.admit(&ask("1")).unwrap_err().to_string();
    assert!(said.contains("is divided by MIG"), "{said}");
    let part = "; 0000:01:00.0/mig0 (h100-mig) is a MIG instance";
    assert!(said.contains(part), "{said}");
    nvml.0.store(false, Ordering::Relaxed);
    assert!(gpus.inventory().unwrap().instances().is_empty());
    gpus.admit(&ask("1")).unwrap();
    // Its operator divides it again while the daemon runs.
    nvml.0.store(true, Ordering::Relaxed);
    let said = gpus.admit(&ask("1")).unwrap_err().to_string();
    assert!(said.contains("is divided by MIG"), "{said}");
    let said = gpus.assign(&job("a"), &ask("1")).unwrap_err().to_string();
    assert!(said.contains("is divided by MIG"), "{said}");
}

/// A GPU that is reset by its bus alone, and its sound beside it.
const BY_BUS: &str = "0000:01:00.0 root 10de:2330 class=030200 group=1 reset=bus driver=vfio-pci\n\
     0000:01:00.1 root 10de:22ba class=040300 group=1 reset=bus driver=vfio-pci\n\
     0000:02:00.0 root 10de:2330 class=030200 group=2 reset=bus driver=vfio-pci\n\
     0000:02:00.1 root 10de:22ba class=040300 group=2 reset=bus driver=vfio-pci\n";

#[test]
fn a_bus_that_is_not_reset_for_want_of_vfio_puts_no_gpu_in_quarantine() {
    // Without the nodes of groups, and with those alone.
    for (nodes, missing) in [(false, "vfio/1,"), (true, "vfio/vfio,")] {
        let host = Host::new(BY_BUS, nodes);
        let error = host.gpus().assign(&job("a"), &ask("1")).unwrap_err();
        assert_eq!(error.code(), "no_vfio_group", "{error}");
        assert!(error.to_string().contains(missing), "{error}");
        assert_eq!(host.record(), Record::default());
        assert_eq!(host.file("0000:01:00.0", "driver_override"), "");
    }
}

#[test]
fn half_of_a_group_that_is_bound_is_given_back_without_a_reset_of_its_bus() {
    // A daemon died when the first of two was bound, or when the first was given back.
    for half in [
        BY_BUS.replacen(
            "22ba class=040300 group=1 reset=bus driver=vfio-pci",
            "22ba class=040300 group=1 reset=bus",
            1,
        ),
        BY_BUS.replacen(
            "2330 class=030200 group=1 reset=bus driver=vfio-pci",
            "2330 class=030200 group=1 reset=bus",
            1,
        ),
    ] {
        let host = Host::new(&half, true);
        let mut taken = taken(&["01:00.0", "01:00.1"]);
        taken.gpus.pop();
        taken.functions[1].device = 0x22ba;
        for function in &mut taken.functions {
            function.prior = Prior {
                driver: Some("vfio-pci".into()),
                ..Prior::default()
            };
        }
        // The kernel of this host binds nothing, so what was bound stays so.
        for (function, address) in taken
            .functions
            .iter_mut()
            .zip(["0000:01:00.0", "0000:01:00.1"])
        {
            if !host.function(address).join("driver").exists() {
                function.prior.driver = None;
            }
        }
        let mut record = Record::default();
        record.tenants.insert(job("a"), vec![taken]);
        host.write_record(&record);
        let released = host.gpus().recover("node", |_| false).unwrap();
        assert_eq!(released.returned, [at("01:00.0")], "{released:?}");
        assert_eq!(host.record(), Record::default());
    }
}

#[test]
fn a_driver_of_before_that_is_not_loaded_is_no_fault_of_the_device() {
    let bare = "0000:01:00.0 root 10de:2330 class=030200 group=1 reset=flr\n";
    let host = Host::new(bare, true);
    let mut record = Record::default();
    record.tenants.insert(job("a"), vec![taken(&["01:00.0"])]);
    host.write_record(&record);
    fs::write(
        host.function("0000:01:00.0").join("driver_override"),
        "vfio-pci",
    )
    .unwrap();
    let released = host.gpus().release(&job("a")).unwrap();
    assert_eq!(released.returned, [at("01:00.0")]);
    assert_eq!(host.file("0000:01:00.0", "driver_override"), "");
    assert_eq!(host.record(), Record::default());
}

#[test]
fn what_any_driver_for_guests_has_is_looked_at_and_reset() {
    let host = Host::new(ONE, false);
    symlink("/dev/null", host.tree.dev.join("vfio/1")).unwrap();
    host.gpus().assign(&job("a"), &ask("1")).unwrap();
    assert!(host.was_reset("0000:01:00.0"));
    // The node is configured anew while the guest runs.
    let gpus = host.with_driver("nvgrace_gpu_vfio_pci");
    host.process_with_null();
    let error = gpus.release(&job("a")).unwrap_err();
    assert_eq!(error.code(), "gpu_in_use", "{error}");
    assert!(!host.was_reset("0000:01:00.0"));
    host.process_ends();
    host.process_that_ends_with_null();
    let error = gpus.release(&job("a")).unwrap_err();
    assert_eq!(error.code(), "gpu_in_use", "{error}");
    host.process_ends();
    assert_eq!(gpus.release(&job("a")).unwrap().returned.len(), 1);
    assert!(host.was_reset("0000:01:00.0"));
}

#[test]
fn what_a_process_uses_is_left_alone_though_its_tenant_is_recorded() {
    let host = Host::new(ONE, false);
    symlink("/dev/null", host.tree.dev.join("vfio/1")).unwrap();
    let given = host.gpus().assign(&job("a"), &ask("1")).unwrap();
    assert!(host.was_reset("0000:01:00.0"));
    host.process_with_null();
    let error = host.gpus().assign(&job("a"), &ask("1")).unwrap_err();
    assert_eq!(error.code(), "gpu_in_use", "{error}");
    assert!(!host.was_reset("0000:01:00.0"), "below a guest that runs");
    host.process_ends();
    assert_eq!(host.gpus().assign(&job("a"), &ask("1")).unwrap(), given);
    assert!(host.was_reset("0000:01:00.0"));

    // A driver of the host came first, and a program uses it.
    let host = Host::new(&ONE.replace("vfio-pci", "nvidia"), true);
    let mut record = Record::default();
    record.tenants.insert(job("a"), vec![taken(&["01:00.0"])]);
    host.write_record(&record);
    fs::create_dir(host.function("0000:01:00.0").join("nvidia")).unwrap();
    fs::write(host.function("0000:01:00.0").join("nvidia/dev"), "1:3\n").unwrap();
    host.process_with_null();
    let error = host.gpus().assign(&job("a"), &ask("1")).unwrap_err();
    assert_eq!(error.code(), "gpu_in_use", "{error}");
    assert_eq!(host.file("0000:01:00.0", "driver_override"), "(null)");
    // Nor is it taken from that driver to be given back to it.
    let released = host.gpus().release(&job("a")).unwrap();
    assert_eq!(released.returned, [at("01:00.0")]);
    assert!(!host.was_reset("0000:01:00.0"));
}

#[test]
fn who_asks_nvml_uses_no_gpu_for_long() {
    let host = Host::new(&ONE.replace("vfio-pci", "nvidia"), true);
    fs::create_dir(host.function("0000:01:00.0").join("nvidia")).unwrap();
    fs::write(host.function("0000:01:00.0").join("nvidia/dev"), "1:3\n").unwrap();
    host.process_with_null();
    // Whoever asks what the process is waits here until it is told.
    let words = host.tree.proc.join("7/cmdline");
    let (pipe, mode) = (FileType::Fifo, Mode::RUSR | Mode::WUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &words, pipe, mode, 0).unwrap();
    std::thread::scope(|scope| {
        let admitted = scope.spawn(|| host.gpus().admit(&ask("1")));
        let writing = OFlags::WRONLY | OFlags::NONBLOCK;
        let told = wait_until("a look at the process", LIMIT, || {
            let opened = rustix::fs::open(&words, writing, Mode::empty());
            assert!(!admitted.is_finished(), "nobody has looked what it is");
            opened.ok()
        });
        rustix::io::write(&told, b"aleph\0nvml-reader\0").unwrap();
        host.process_ends();
        drop(told);
        admitted.join().unwrap().unwrap();
    });
}

#[test]
fn two_nodes_of_a_host_do_not_give_one_gpu_twice() {
    let host = Host::new(ONE, true);
    let (a, b) = (Tenant::new("a", "job", 1), Tenant::new("b", "job", 1));
    host.gpus().assign(&a, &ask("1")).unwrap();
    let error = host.gpus().assign(&b, &ask("1")).unwrap_err();
    assert_eq!(
        (error.code(), error.class()),
        ("no_gpu", ErrorClass::Capacity)
    );
    let said = error.to_string();
    assert!(
        said.ends_with("(h100, 80 GiB) belongs to another job"),
        "{said}"
    );
    let recovered = host.gpus().recover("b", |_| false).unwrap();
    assert!(recovered.returned.is_empty(), "it is not b's to take back");
    assert!(host.gpus().release(&b).unwrap().returned.is_empty());
    let recovered = host
        .gpus()
        .recover("a", |tenant| tenant.job == "job")
        .unwrap();
    assert!(recovered.returned.is_empty(), "it lives");
    let recovered = host.gpus().recover("a", |_| false).unwrap();
    assert_eq!(recovered.returned, [at("01:00.0")]);
    host.gpus().assign(&b, &ask("1")).unwrap();
    // Where its node is no more, somebody says so.
    let released = host.gpus().release_device(at("01:00.0")).unwrap();
    assert_eq!(released.returned, [at("01:00.0")]);
    let error = host.gpus().release_device(at("01:00.0")).unwrap_err();
    assert_eq!(error.code(), "gpu_not_assigned");
}

#[test]
fn what_was_given_in_an_earlier_boot_is_nobodys_and_groups_are_read_anew() {
    let host = Host::new(ONE, true);
    let before = host.gpus().assign(&job("a"), &ask("1")).unwrap();
    assert_eq!((before[0].group, before[0].boot.as_str()), (1, "first"));
    // A card came, and the kernel numbers its groups differently.
    host.boots("second");
    let link = host.function("0000:01:00.0").join("iommu_group");
    fs::remove_file(&link).unwrap();
    symlink("../../../kernel/iommu_groups/5", &link).unwrap();
    let after = host.gpus().assign(&job("a"), &ask("1")).unwrap();
    assert_eq!((after[0].group, after[0].boot.as_str()), (5, "second"));
    assert_eq!(host.record().quarantines, []);

    // Whichever node it was of, and whether its job will run again.
    host.boots("third");
    let recovered = host.gpus().recover("another", |_| true).unwrap();
    assert_eq!(recovered.returned, [at("01:00.0")]);
    assert_eq!(host.record(), Record::default());

    // Another device at its address is not touched.
    host.gpus().assign(&job("a"), &ask("1")).unwrap();
    host.boots("fourth");
    host.was_reset("0000:01:00.0");
    fs::write(host.function("0000:01:00.0").join("device"), "0x2331").unwrap();
    host.gpus().release(&job("a")).unwrap();
    assert_eq!(host.record(), Record::default(), "it has failed in nothing");
    assert!(!host.was_reset("0000:01:00.0"));
}

#[test]
fn a_part_that_nobody_has_made_again_after_a_boot_is_in_no_quarantine() {
    let host = Host::new(
        "0000:01:00.0 root 10de:2330 class=030200 group=1 driver=nvidia reset=flr vfs=0000:01:00.4\n\
         0000:01:00.4 root 10de:2330 class=030200 group=2 driver=nvidia bars=16M,8G pf=0000:01:00.0 vgpu=1049\n",
        true,
    );
    let (a, part) = (job("a"), "0000:01:00.4");
    host.gpus().assign(&a, &ask("type=vgpu-1049")).unwrap();
    host.boots("second");
    let link = host.function(part);
    let target = fs::read_link(&link).unwrap();
    fs::remove_file(&link).unwrap();
    host.gpus().recover("node", |_| true).unwrap();
    assert_eq!(host.record(), Record::default());
    // Once it is there again, a job can have it.
    symlink(target, &link).unwrap();
    host.gpus().assign(&a, &ask("type=vgpu-1049")).unwrap();
    // Where it falls off while the host runs, it has failed.
    fs::remove_file(&link).unwrap();
    let released = host.gpus().release(&a).unwrap();
    assert_eq!(
        released.quarantined[0].1,
        format!("{part} is gone from the bus")
    );
}

#[test]
fn a_card_that_replaces_one_in_quarantine_is_in_none() {
    let host = Host::new(ONE, true);
    let mut record = Record::default();
    record.quarantines.push(Quarantine {
        taken: taken(&["01:00.0"]),
        reason: "it did not answer".into(),
        since: 0,
    });
    host.write_record(&record);
    let state = || host.gpus().inventory().unwrap().gpus()[0].state.clone();
    assert!(matches!(state(), GpuState::Quarantined { .. }));
    fs::write(host.function("0000:01:00.0").join("device"), "0x2331").unwrap();
    assert_eq!(state(), GpuState::Free);
    // What is not there any more can be forgotten all the same.
    host.gpus().end_quarantine(at("01:00.0")).unwrap();
    assert_eq!(host.record(), Record::default());
    assert!(!host.was_reset("0000:01:00.0"), "it is another one");
}

#[test]
fn the_number_of_a_group_is_looked_for_anew_after_a_boot() {
    let host = Host::new(BY_BUS, true);
    let mut taken = taken(&["01:00.0", "01:00.1"]);
    taken.gpus.pop();
    taken.functions[1].device = 0x22ba;
    let mut record = Record::default();
    record.tenants.insert(job("a"), vec![taken]);
    host.write_record(&record);
    host.boots("second");
    for address in ["0000:01:00.0", "0000:01:00.1"] {
        let link = host.function(address).join("iommu_group");
        fs::remove_file(&link).unwrap();
        symlink("../../../kernel/iommu_groups/5", &link).unwrap();
    }
    // Another device has the number that it had.
    fs::write(host.tree.dev.join("vfio/vfio"), "").unwrap();
    fs::remove_file(host.tree.dev.join("vfio/5")).unwrap();
    let error = host.gpus().recover("node", |_| true).unwrap_err();
    assert!(error.to_string().contains("vfio/5,"), "{error}");
    assert_eq!(host.record(), record);
}

#[test]
fn a_companion_without_a_reset_of_its_own_is_left_as_it_is() {
    let host = Host::new(
        "0000:01:00.0 root 10de:2330 class=030200 group=1 reset=flr driver=vfio-pci\n\
         0000:01:00.1 root 10de:22ba class=040300 group=1 reset=bus driver=vfio-pci\n",
        true,
    );
    host.gpus().assign(&job("a"), &ask("1")).unwrap();
    assert!(host.was_reset("0000:01:00.0"));
    assert!(!host.was_reset("0000:01:00.1"), "the kernel would refuse");
}

#[test]
fn what_is_left_of_a_group_is_checked_before_its_quarantine_ends() {
    let description = "0000:01:00.0 root 10de:2330 class=030200 group=1 reset=flr driver=vfio-pci\n\
         0000:02:00.0 root 10de:2330 class=030200 group=1 reset=flr driver=vfio-pci\n";
    let quarantined = |description: &str| {
        let host = Host::new(description, true);
        let mut record = Record::default();
        let mut taken = taken(&["01:00.0", "02:00.0"]);
        for function in &mut taken.functions {
            function.prior.driver = Some("vfio-pci".into());
        }
        record.quarantines.push(Quarantine {
            taken,
            reason: "it did not answer".into(),
            since: 0,
        });
        host.write_record(&record);
        // One has fallen off the bus.
        fs::remove_file(host.function("0000:01:00.0")).unwrap();
        host
    };
    let host = quarantined(&description.replace(
        "0000:02:00.0 root 10de:2330 class=030200",
        "0000:02:00.0 root 10de:2330 dead class=030200",
    ));
    let error = host.gpus().end_quarantine(at("02:00.0")).unwrap_err();
    assert_eq!(error.code(), "gpu_faulty", "{error}");
    assert_eq!(host.record().quarantines.len(), 1);
    assert!(!host.was_reset("0000:02:00.0"));

    let host = quarantined(description);
    host.gpus().end_quarantine(at("02:00.0")).unwrap();
    assert!(host.was_reset("0000:02:00.0"));
    let inventory = host.gpus().inventory().unwrap();
    assert_eq!(inventory.gpu(at("02:00.0")).unwrap().state, GpuState::Free);
}
