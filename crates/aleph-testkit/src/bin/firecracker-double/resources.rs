//! What a guest is to have: configured piece by piece before it boots. Files, sockets and TAPs are
//! opened when they are named, as the real one does.

use crate::bodies::{
    Balloon, BootSource, Drive, Entropy, HotplugMemory, HugePages, Machine, MachineUpdate,
    MmdsConfig, Nic, Pmem, Vsock,
};
use crate::fault::os_text;
use crate::tap;
use crate::version::Version;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// A kernel with its initramfs.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) config: BootSource,
    pub(crate) kernel: File,
    pub(crate) initrd: Option<File>,
}

/// A drive with its file.
#[derive(Debug)]
pub(crate) struct OpenDrive {
    pub(crate) config: Drive,
    pub(crate) file: File,
}

impl OpenDrive {
    pub(crate) fn read_only(&self) -> bool {
        self.config.is_read_only.unwrap_or(false)
    }
}

/// A network device with its TAP.
#[derive(Debug)]
pub(crate) struct OpenNic {
    pub(crate) config: Nic,
    pub(crate) tap: File,
}

/// A vsock device with its socket.
#[derive(Debug)]
pub(crate) struct OpenVsock {
    pub(crate) config: Vsock,
    pub(crate) listener: UnixListener,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    pub(crate) machine: Machine,
    pub(crate) boot: Option<Boot>,
    pub(crate) drives: Vec<OpenDrive>,
    pub(crate) nics: Vec<OpenNic>,
    pub(crate) vsock: Option<OpenVsock>,
    pub(crate) entropy: Option<Entropy>,
    pub(crate) balloon: Option<Balloon>,
    pub(crate) serial: Option<PathBuf>,
    pub(crate) mmds: Option<MmdsConfig>,
    pub(crate) pmem: Vec<Pmem>,
    pub(crate) hotplug: Option<HotplugMemory>,
}

/// What is refused, without the prefix that the API sets before it.
type Configured = Result<(), String>;

fn refuse<T>(text: &str) -> Result<T, String> {
    Err(text.to_owned())
}

impl Resources {
    pub(crate) fn set_boot_source(&mut self, config: BootSource) -> Configured {
        let kernel = File::open(&config.kernel_image_path)
            .map_err(|error| format!("The kernel file cannot be opened: {}", os_text(&error)))?;
        let initrd = config.initrd_path.as_ref().map(File::open).transpose();
        let initrd = initrd.map_err(|error| {
            format!(
                "The initrd file cannot be opened due to invalid path or invalid permissions. {}",
                os_text(&error)
            )
        })?;
        if config.boot_args.as_ref().is_some_and(|all| !all.is_ascii()) {
            return refuse(
                "The kernel command line is invalid: String contains non-printable ASCII character.",
            );
        }
        self.boot = Some(Boot {
            config,
            kernel,
            initrd,
        });
        Ok(())
    }

    pub(crate) fn set_machine(&mut self, update: &MachineUpdate, version: Version) -> Configured {
        let now = &self.machine;
        let next = Machine {
            vcpu_count: update.vcpu_count.unwrap_or(now.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(now.mem_size_mib),
            smt: update.smt.unwrap_or(now.smt),
            cpu_template: update.cpu_template.or(now.cpu_template),
            track_dirty_pages: update.track_dirty_pages.unwrap_or(now.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(now.huge_pages),
        };
        let cpus = next.vcpu_count;
        if cpus == 0 || cpus > 32 || (next.smt && cpus > 1 && cpus % 2 == 1) {
            return refuse(
                "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an \
                 even number if SMT is enabled.",
            );
        }
        let step = match next.huge_pages {
            HugePages::None => 1,
            HugePages::Transparent | HugePages::Hugetlbfs2M => 2,
        };
        if next.mem_size_mib == 0 || !next.mem_size_mib.is_multiple_of(step) {
            return refuse(
                "The memory size (MiB) is either 0, or not a multiple of the configured page size.",
            );
        }
        let target = self
            .balloon
            .as_ref()
            .map_or(0, |balloon| balloon.amount_mib);
        if usize::try_from(target).is_ok_and(|target| next.mem_size_mib < target) {
            return refuse(
                "The memory size (MiB) is smaller than the previously set balloon device target \
                 size.",
            );
        }
        let huge = next.huge_pages == HugePages::Hugetlbfs2M;
        let initrd = self.boot.as_ref().is_some_and(|boot| boot.initrd.is_some());
        if huge && initrd && !version.has(11) {
            return refuse("Firecracker's huge pages support is incompatible with initrds.");
        }
        if huge && self.balloon.is_some() && !version.has(14) {
            return refuse(
                "Firecracker's huge pages support is incompatible with memory ballooning.",
            );
        }
        self.machine = next;
        Ok(())
    }

    pub(crate) fn set_drive(&mut self, config: Drive) -> Configured {
        let at = self
            .drives
            .iter()
            .position(|drive| drive.config.drive_id == config.drive_id);
        let has_root = self
            .drives
            .first()
            .is_some_and(|drive| drive.config.is_root_device);
        if config.is_root_device && self.pmem.iter().any(|pmem| pmem.root_device) {
            return refuse(
                "Attempt to add block as a root device while the root device defined as a pmem \
                 device",
            );
        }
        if config.is_root_device && has_root && at != Some(0) {
            return refuse("A root block device already exists!");
        }
        let root = config.is_root_device;
        let drive = open_drive(config)?;
        match at {
            None if root => self.drives.insert(0, drive),
            None => self.drives.push(drive),
            Some(at) => {
                self.drives[at] = drive;
                if at != 0 && root {
                    self.drives.swap(0, at);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn set_nic(&mut self, config: Nic) -> Configured {
        if let Some(mac) = config.guest_mac {
            let taken = self.nics.iter().any(|nic| {
                nic.config.guest_mac == Some(mac) && nic.config.iface_id != config.iface_id
            });
            if taken {
                let mac = crate::bodies::mac_text(mac);
                return Err(format!("The MAC address is already in use: {mac}"));
            }
        }
        // The old one lets go of its TAP first.
        let old = self
            .nics
            .iter()
            .position(|nic| nic.config.iface_id == config.iface_id);
        old.map(|at| self.nics.swap_remove(at));
        let tap = open_tap(&config.host_dev_name)?;
        self.nics.push(OpenNic { config, tap });
        Ok(())
    }

    pub(crate) fn set_pmem(&mut self, config: Pmem) -> Configured {
        if config.root_device && self.drives.iter().any(|drive| drive.config.is_root_device) {
            return refuse(
                "Attempt to add pmem as a root device while the root device defined as a block \
                 device",
            );
        }
        let at = self.pmem.iter().position(|pmem| pmem.id == config.id);
        let root = self.pmem.iter().position(|pmem| pmem.root_device);
        if config.root_device && root.is_some() && root != at {
            return refuse("A root pmem device already exist");
        }
        let file = File::open(&config.path_on_host).and_then(|file| file.metadata());
        let size = file.map_err(|error| {
            format!(
                "Unable to create the virtio-pmem device: Error accessing backing file: {}",
                os_text(&error)
            )
        })?;
        if size.len() == 0 {
            return refuse("Unable to create the virtio-pmem device: Error backing file size is 0");
        }
        match at {
            Some(at) => self.pmem[at] = config,
            None => self.pmem.push(config),
        }
        Ok(())
    }

    pub(crate) fn set_vsock(&mut self, config: Vsock) -> Configured {
        if let Some(old) = self.vsock.take() {
            let _ = std::fs::remove_file(old.config.uds_path);
        }
        let listener = UnixListener::bind(&config.uds_path).map_err(|error| {
            format!(
                "Cannot create backend for vsock device: Error binding to the host-side Unix \
                 socket: {}",
                os_text(&error)
            )
        })?;
        self.vsock = Some(OpenVsock { config, listener });
        Ok(())
    }

    pub(crate) fn set_balloon(&mut self, config: Balloon, version: Version) -> Configured {
        if usize::try_from(config.amount_mib).is_ok_and(|mib| mib > self.machine.mem_size_mib) {
            return refuse("Amount of pages requested is too large.");
        }
        if self.machine.huge_pages == HugePages::Hugetlbfs2M && !version.has(14) {
            return refuse(
                "Firecracker's huge pages support is incompatible with memory ballooning.",
            );
        }
        self.balloon = Some(config);
        Ok(())
    }

    pub(crate) fn set_mmds(&mut self, config: MmdsConfig) -> Configured {
        if let Some(address) = config.ipv4_address {
            let third = address.octets()[2];
            if !address.is_link_local() || third == 0 || third == 255 {
                return refuse("The MMDS IPv4 address is not link local.");
            }
        }
        if config.network_interfaces.is_empty() {
            return refuse(
                "The list of network interface IDs that allow forwarding MMDS requests is empty.",
            );
        }
        let known = |id: &String| self.nics.iter().any(|nic| nic.config.iface_id == *id);
        if !config.network_interfaces.iter().all(known) {
            return refuse(
                "The list of network interface IDs provided contains at least one ID that does \
                 not correspond to any existing network interface.",
            );
        }
        self.mmds = Some(config);
        Ok(())
    }

    pub(crate) fn set_hotplug(&mut self, config: HotplugMemory) -> Configured {
        let HotplugMemory {
            total_size_mib: total,
            block_size_mib: block,
            slot_size_mib: slot,
        } = config;
        if block < 2 {
            return refuse("Block size must not be lower than 2 MiB");
        }
        if !block.is_power_of_two() {
            return refuse("Block size must be a power of 2");
        }
        if slot < 128 {
            return refuse("Slot size must not be lower than 128 MiB");
        }
        if slot % block != 0 {
            return Err(format!(
                "Slot size must be a multiple of block size ({block} MiB)"
            ));
        }
        if total < slot {
            return Err(format!(
                "Total size must not be lower than slot size ({slot} MiB)"
            ));
        }
        if total % slot != 0 {
            return Err(format!(
                "Total size must be a multiple of slot size ({slot} MiB)"
            ));
        }
        self.hotplug = Some(config);
        Ok(())
    }
}

/// Opens a drive's file.
pub(crate) fn open_drive(config: Drive) -> Result<OpenDrive, String> {
    const PREFIX: &str = "Unable to create the virtio block device: ";
    let Some(path) = config
        .path_on_host
        .clone()
        .filter(|_| config.socket.is_none())
    else {
        let mixed = config.path_on_host.is_some()
            || config.socket.is_none()
            || config.is_read_only.is_some()
            || config.rate_limiter.is_some()
            || config.file_engine_type.is_some();
        return Err(match mixed {
            true => format!("{PREFIX}Invalid block config."),
            false => format!("{PREFIX}the double has no vhost-user drives"),
        });
    };
    let file = open_drive_file(&path, config.is_read_only.unwrap_or(false));
    let file = file.map_err(|why| format!("{PREFIX}{why}"))?;
    let config = Drive {
        is_read_only: Some(config.is_read_only.unwrap_or(false)),
        file_engine_type: Some(config.file_engine_type.unwrap_or_default()),
        ..config
    };
    Ok(OpenDrive { config, file })
}

/// Opens the file behind a drive.
pub(crate) fn open_drive_file(path: &str, read_only: bool) -> Result<File, String> {
    let opened = File::options().read(true).write(!read_only).open(path);
    opened.map_err(|error| {
        format!(
            "Virtio backend error: Error manipulating the backing file: {} {path}",
            os_text(&error)
        )
    })
}

/// Opens a TAP.
pub(crate) fn open_tap(name: &str) -> Result<File, String> {
    tap::open(name).map_err(|error| {
        format!(
            "Could not create the network device: Open tap device failed: Error while creating \
             ifreq structure: {}. Invalid TUN/TAP Backend provided by {name}. Check our \
             documentation on setting up the network devices.",
            os_text(&error)
        )
    })
}
