//! A whole VM, described at once.

use super::Version;
use super::api::{
    Balloon, Body, BootSource, Call, Check, CpuConfig, CpuTemplate, Drive, EntropyDevice,
    HugePages, Invalid, Logger, MachineConfig, MemoryHotplug, Metrics, MmdsConfig, MmdsData,
    NetworkInterface, Pmem, Problem, Serial, VmConfiguration, Vsock,
};
use super::version::Feature;
use aleph_types::MiB;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The id of the drive that [`FirecrackerConfig::rootfs_path`] becomes.
pub const ROOT_DRIVE: &str = "rootfs";

/// A microVM of Firecracker: what it boots, what it has, what it is attached to.
///
/// Paths are as Firecracker sees them, within its jail. Everything is checked at once and for one
/// version, by [`Body::validate`] and by each of the conversions.
///
/// ```
/// use aleph_executor::firecracker::{FirecrackerConfig, Version};
/// use aleph_types::MiB;
///
/// let config = FirecrackerConfig {
///     rootfs_path: Some("/rootfs.ext4".into()),
///     boot_args: Some("console=ttyS0 reboot=k panic=1".into()),
///     ..FirecrackerConfig::new("/vmlinux", 2, MiB(512))
/// };
/// let calls = config.calls(Version::new(1, 16, 1))?;
/// let paths: Vec<_> = calls.iter().map(|call| call.path()).collect();
/// assert_eq!(paths, ["/machine-config", "/boot-source", "/drives/rootfs"]);
/// # Ok::<(), aleph_executor::firecracker::api::Invalid>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirecrackerConfig {
    /// The kernel: uncompressed ELF, or from 1.17 on a `bzImage` (on arm64 an `Image`).
    pub kernel_image_path: PathBuf,
    /// Its initrd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// Its command line, in the place of Firecracker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// The root file system: a drive with the id [`ROOT_DRIVE`], before all others. For more to say
    /// of it, or for a guest whose initrd finds its root, use [`Self::drives`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs_path: Option<PathBuf>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub rootfs_read_only: bool,
    /// CPUs, 1 to 32; with `smt`, 1 or an even number.
    pub vcpu_count: u8,
    /// Memory; with huge pages, a multiple of 2 MiB.
    pub mem_size_mib: MiB,
    /// Whether two CPUs are threads of one core.
    #[serde(default)]
    pub smt: bool,
    /// Features of the CPU that are hidden from the guest, by a name that Firecracker has for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// The same, one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<CpuConfig>,
    /// Whether KVM notes what the guest writes to, for diff snapshots.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Which pages back its memory.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// Further memory that comes and goes. From 1.14 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<MemoryHotplug>,
    /// A device through which it gives memory back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// Block devices, in the order in which the guest finds them, the root device first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<Drive>,
    /// Files that it maps as memory. From 1.14 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<Pmem>,
    /// Network devices, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The channel to its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// A source of random bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyDevice>,
    /// Who reaches the metadata service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
    /// What it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmds: Option<MmdsData>,
    /// Whether its devices are on PCI rather than MMIO. From 1.13 on. It is said on the command line
    /// ([`Self::arguments`]), and decided by the snapshot where the guest comes from one.
    #[serde(default)]
    pub enable_pci: bool,
    /// Where its console goes. From 1.14 on, and not in a configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Where Firecracker's log goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    /// Where Firecracker's metrics go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
}

/// The form of `--config-file`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigFile {
    /// What is in the file.
    pub configuration: VmConfiguration,
    /// What is in another one, for `--metadata`.
    pub metadata: Option<MmdsData>,
}

impl FirecrackerConfig {
    /// A kernel with so many CPUs and so much memory, and nothing else.
    #[must_use]
    pub fn new(kernel_image_path: impl Into<PathBuf>, vcpu_count: u8, mem_size_mib: MiB) -> Self {
        Self {
            kernel_image_path: kernel_image_path.into(),
            initrd_path: None,
            boot_args: None,
            rootfs_path: None,
            rootfs_read_only: false,
            vcpu_count,
            mem_size_mib,
            smt: false,
            cpu_template: None,
            cpu_config: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            memory_hotplug: None,
            balloon: None,
            drives: Vec::new(),
            pmem: Vec::new(),
            network_interfaces: Vec::new(),
            vsock: None,
            entropy: None,
            mmds_config: None,
            mmds: None,
            enable_pci: false,
            serial: None,
            logger: None,
            metrics: None,
        }
    }

    /// The calls that make it, in an order that Firecracker takes; what is left then is
    /// [`super::api::Action::InstanceStart`].
    ///
    /// The log comes first, so that it has the rest. Memory comes before what is measured by it, and
    /// network interfaces before the metadata service that names them.
    ///
    /// # Errors
    /// [`Invalid`], with all that is wrong with it for that version.
    pub fn calls(&self, version: Version) -> Result<Vec<Call>, Invalid> {
        self.validate(version)?;
        let all = self.clone();
        let configuration = self.configuration();
        let mut calls = Vec::new();
        calls.extend(all.logger.map(Call::Logger));
        calls.extend(all.metrics.map(Call::Metrics));
        calls.extend(all.serial.map(Call::Serial));
        calls.extend(configuration.machine_config.map(Call::MachineConfig));
        calls.extend(all.cpu_config.map(Call::CpuConfig));
        calls.extend(configuration.boot_source.map(Call::BootSource));
        calls.extend(configuration.drives.into_iter().map(Call::Drive));
        calls.extend(all.pmem.into_iter().map(Call::Pmem));
        calls.extend(
            all.network_interfaces
                .into_iter()
                .map(Call::NetworkInterface),
        );
        calls.extend(all.mmds_config.map(Call::MmdsConfig));
        calls.extend(all.mmds.map(Call::MmdsData));
        calls.extend(all.vsock.map(Call::Vsock));
        calls.extend(all.entropy.map(Call::Entropy));
        calls.extend(all.balloon.map(Call::Balloon));
        calls.extend(all.memory_hotplug.map(Call::MemoryHotplug));
        Ok(calls)
    }

    /// The same as a file.
    ///
    /// # Errors
    /// [`Invalid`], as for the calls, and where something has no place in the file: the serial
    /// console, and before 1.13 the CPU's configuration.
    pub fn file(&self, version: Version) -> Result<ConfigFile, Invalid> {
        let mut check = Check::new(version);
        self.check(&mut check);
        check.refuse_if(
            "serial",
            self.serial.is_some(),
            "has no place in a configuration file: the API alone has it",
        );
        if self.cpu_config.is_some() {
            check.uses("cpu_config", Feature::InlineCpuConfig);
        }
        check.end()?;
        Ok(ConfigFile {
            configuration: self.configuration(),
            metadata: self.mmds.clone(),
        })
    }

    /// What of it is said on the program's command line, with calls and with a file.
    #[must_use]
    pub fn arguments(&self) -> Vec<&'static str> {
        let pci = self.enable_pci.then_some("--enable-pci");
        pci.into_iter().collect()
    }

    fn configuration(&self) -> VmConfiguration {
        let all = self.clone();
        VmConfiguration {
            boot_source: Some(BootSource {
                kernel_image_path: all.kernel_image_path,
                initrd_path: all.initrd_path,
                boot_args: all.boot_args,
            }),
            machine_config: Some(self.machine_config()),
            drives: self.all_drives(),
            cpu_config: all.cpu_config,
            balloon: all.balloon,
            network_interfaces: all.network_interfaces,
            vsock: all.vsock,
            logger: all.logger,
            metrics: all.metrics,
            mmds_config: all.mmds_config,
            entropy: all.entropy,
            pmem: all.pmem,
            memory_hotplug: all.memory_hotplug,
        }
    }

    fn machine_config(&self) -> MachineConfig {
        MachineConfig {
            vcpu_count: self.vcpu_count,
            mem_size_mib: self.mem_size_mib,
            smt: self.smt,
            cpu_template: self.cpu_template,
            track_dirty_pages: self.track_dirty_pages,
            huge_pages: self.huge_pages,
        }
    }

    fn all_drives(&self) -> Vec<Drive> {
        let root = self.rootfs_path.as_ref().map(|path| Drive {
            is_root_device: true,
            is_read_only: Some(self.rootfs_read_only),
            ..Drive::file(ROOT_DRIVE, path)
        });
        root.into_iter()
            .chain(self.drives.iter().cloned())
            .collect()
    }

    /// What is wrong between its parts.
    fn check_together(&self, check: &mut Check) {
        let drives = self.all_drives();
        let roots = drives.iter().filter(|drive| drive.is_root_device).count()
            + self.pmem.iter().filter(|pmem| pmem.root_device).count();
        check.refuse_if(
            "drives",
            roots > 1,
            "only one device can be the root device",
        );
        check.refuse_if(
            "rootfs_read_only",
            self.rootfs_read_only && self.rootfs_path.is_none(),
            "needs a rootfs_path",
        );
        check.once("drives", drives.into_iter().map(|drive| drive.drive_id));
        check.once("pmem", self.pmem.iter().map(|pmem| pmem.id.clone()));
        let nics = || self.network_interfaces.iter();
        const NICS: &str = "network_interfaces";
        check.once(NICS, nics().map(|nic| nic.iface_id.clone()));
        check.once(NICS, nics().map(|nic| nic.host_dev_name.clone()));
        let macs = nics().filter_map(|nic| Some(nic.guest_mac?.to_string()));
        check.once(NICS, macs);
        if let Some(mmds) = &self.mmds_config {
            for id in &mmds.network_interfaces {
                if nics().all(|nic| nic.iface_id != *id) {
                    let missing = Problem::Dangling(id.clone());
                    check.fault("mmds_config.network_interfaces", missing);
                }
            }
        }
        check.refuse_if(
            "mmds",
            self.mmds.is_some() && self.mmds_config.is_none(),
            "reaches no guest without an mmds_config",
        );
        check.refuse_if(
            "balloon.amount_mib",
            self.balloon
                .is_some_and(|balloon| balloon.amount_mib > self.mem_size_mib),
            "is more than the guest's memory",
        );
        check.refuse_if(
            "cpu_config",
            self.cpu_config.is_some() && self.cpu_template.is_some(),
            "takes the place of a cpu_template: one of them is needed",
        );
        if self.huge_pages == HugePages::Size2M {
            if self.initrd_path.is_some() {
                check.uses("huge_pages", Feature::HugePagesWithInitrd);
            }
            if self.balloon.is_some() {
                check.uses("huge_pages", Feature::HugePagesWithBalloon);
            }
        }
    }
}

impl Body for FirecrackerConfig {
    fn check(&self, check: &mut Check) {
        fn part(check: &mut Check, field: &str, body: Option<&impl Body>) {
            if let Some(body) = body {
                check.within(field, |check| body.check(check));
            }
        }
        let boot_source = BootSource {
            kernel_image_path: self.kernel_image_path.clone(),
            initrd_path: self.initrd_path.clone(),
            boot_args: self.boot_args.clone(),
        };
        boot_source.check(check);
        if let Some(path) = &self.rootfs_path {
            check.path("rootfs_path", path);
        }
        self.machine_config().check(check);
        part(check, "cpu_config", self.cpu_config.as_ref());
        part(check, "memory_hotplug", self.memory_hotplug.as_ref());
        part(check, "balloon", self.balloon.as_ref());
        check.each("drives", &self.drives, |check, it| it.check(check));
        check.each("pmem", &self.pmem, |check, it| it.check(check));
        check.each(
            "network_interfaces",
            &self.network_interfaces,
            |check, it| {
                it.check(check);
            },
        );
        part(check, "vsock", self.vsock.as_ref());
        part(check, "entropy", self.entropy.as_ref());
        part(check, "mmds_config", self.mmds_config.as_ref());
        part(check, "mmds", self.mmds.as_ref());
        if self.enable_pci {
            check.uses("enable_pci", Feature::Pci);
        }
        part(check, "serial", self.serial.as_ref());
        part(check, "logger", self.logger.as_ref());
        part(check, "metrics", self.metrics.as_ref());
        self.check_together(check);
    }
}

impl ConfigFile {
    /// The text of the file.
    ///
    /// # Errors
    /// None for what [`FirecrackerConfig::file`] made.
    pub fn text(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&self.configuration)
    }
}
