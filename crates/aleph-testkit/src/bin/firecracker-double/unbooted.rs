//! What is done before there is a guest: it is configured, and started or loaded.

use crate::action::Action;
use crate::bodies::{BackendType, LoadHugePages, LoadSnapshot, MemoryBackend};
use crate::fault::{About, Fault, os_text};
use crate::guest::{self, Begin, Guest};
use crate::log;
use crate::logger;
use crate::page_faults;
use crate::resources::{self, OpenNic, Resources};
use crate::state_file::State;
use crate::version::Version;
use crate::vmm::{Answer, Phase, Vmm, too_early};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// What the kernel is told where a boot source does not say.
fn default_arguments(version: Version) -> &'static str {
    if version.has(13) {
        "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd \
         swiotlb=noforce"
    } else if version.has(12) {
        "reboot=k panic=1 pci=off nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd"
    } else {
        "reboot=k panic=1 pci=off nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.nopnp \
         i8042.dumbkbd"
    }
}

impl Vmm {
    /// Does what is asked for before there is a guest.
    pub(crate) fn handle_unbooted(&mut self, action: Action) -> Answer {
        let version = self.version;
        let boots = !matches!(
            action,
            Action::SetLogger(_)
                | Action::SetMetrics(_)
                | Action::SetSerial(_)
                | Action::SetCpuConfig
                | Action::Start
                | Action::LoadSnapshot(..)
        );
        let all = &mut self.resources;
        let (about, done) = match action {
            Action::SetLogger(config) => {
                let updated = logger::update(&config, version);
                let updated = updated
                    .map_err(|error| format!("Failed to open target file: {}", os_text(&error)));
                (About::Logger, updated)
            }
            Action::SetMetrics(config) => (
                About::Metrics,
                self.metrics.start(&config, &self.id, version),
            ),
            Action::SetSerial(config) => {
                all.serial = config.serial_out_path;
                (About::Start, Ok(()))
            }
            Action::SetCpuConfig => (About::Start, Ok(())),
            Action::SetBootSource(config) => (About::Boot, all.set_boot_source(config)),
            Action::SetMachine(update) => (About::Machine, all.set_machine(&update, version)),
            Action::SetDrive(config) => (About::Drive, all.set_drive(config)),
            Action::SetNic(config) => (About::Network, all.set_nic(config)),
            Action::SetPmem(config) => (About::Pmem, all.set_pmem(config)),
            Action::SetVsock(config) => (About::Vsock, all.set_vsock(config)),
            Action::SetBalloon(config) => (About::Balloon, all.set_balloon(config, version)),
            Action::SetMmdsConfig(config) => (About::MmdsConfig, all.set_mmds(config)),
            Action::SetHotplugMemory(config) => (About::Hotplug, all.set_hotplug(config)),
            Action::SetEntropy(config) => {
                all.entropy = Some(config);
                (About::Start, Ok(()))
            }
            Action::Start => return self.start(),
            Action::LoadSnapshot(load, memory) => return self.load(&load, &memory),
            _ => return too_early(),
        };
        if boots {
            self.phase = Phase::NotStarted { boot_path: true };
        }
        done.map(|()| None)
            .map_err(|why| about.fault(version, &why))
    }

    /// Boots the guest.
    pub(crate) fn start(&mut self) -> Answer {
        let refuse = |why: &str| Err(About::Start.fault(self.version, why));
        let Some(boot) = &self.resources.boot else {
            return refuse("Cannot start microvm without kernel configuration.");
        };
        let mut magic = [0; 4];
        let read = boot.kernel.read_exact_at(&mut magic, 0);
        if read.is_err() || (magic != *b"\x7fELF" && !self.version.has(17)) {
            return refuse(
                "Cannot load kernel due to invalid memory configuration or invalid kernel image: \
                 Kernel Loader: failed to load ELF kernel image",
            );
        }
        if !self.resources.pmem.is_empty() || self.resources.hotplug.is_some() {
            return refuse("Could not attach device: the double has no such device");
        }
        let mut arguments = boot.config.boot_args.clone();
        let arguments = arguments.get_or_insert_with(|| default_arguments(self.version).to_owned());
        if self.version.has(13) && !self.pci {
            arguments.push_str(" pci=off");
        }
        if let Some(root) = self
            .resources
            .drives
            .first()
            .filter(|d| d.config.is_root_device)
        {
            match &root.config.partuuid {
                Some(uuid) => arguments.push_str(&format!(" root=PARTUUID={uuid}")),
                None => arguments.push_str(" root=/dev/vda"),
            }
            arguments.push_str(if root.read_only() { " ro" } else { " rw" });
        }
        let begin = Begin::Boot(arguments);
        let guest = match Guest::start(&self.resources, &begin, self.events.clone()) {
            Ok(guest) => guest,
            Err(why) => return refuse(&format!("Internal error while starting microVM: {why:#}")),
        };
        self.phase = Phase::Running(guest);
        let _ = self.metrics.flush();
        Ok(None)
    }

    /// Goes on from a snapshot. Where that fails, so does the process.
    fn load(&mut self, load: &LoadSnapshot, memory: &MemoryBackend) -> Answer {
        if matches!(self.phase, Phase::NotStarted { boot_path: true }) {
            let text = "Loading a microVM snapshot not allowed after configuring boot-specific \
                        resources.";
            log!(Info, "{text}");
            return Err(About::Load.fault(self.version, text));
        }
        let began = Instant::now();
        match self.restore(load, memory) {
            Ok(guest) if load.resume_vm => self.phase = Phase::Running(guest),
            Ok(guest) => {
                self.phase = Phase::Paused {
                    guest,
                    frozen: false,
                }
            }
            Err(why) => {
                self.fatal = true;
                return Err(About::Load.fault(self.version, &why));
            }
        }
        self.metrics.took("load_snapshot", began.elapsed());
        let _ = self.metrics.flush();
        let took = began.elapsed().as_micros();
        log!(Info, "'load snapshot' API request took {took} us.");
        Ok(None)
    }

    fn restore(&mut self, load: &LoadSnapshot, memory: &MemoryBackend) -> Result<Guest, String> {
        const PREFIX: &str = "Failed to restore from snapshot: ";
        let from_file =
            |why: String| format!("{PREFIX}Failed to get snapshot state from file: {why}");
        let version = self.version;
        let mut state = State::read(&load.snapshot_path, version)
            .map_err(|error| from_file(error.to_string()))?;
        for other in &load.network_overrides {
            let nic = state
                .nics
                .iter_mut()
                .find(|nic| nic.iface_id == other.iface_id);
            let nic = nic.ok_or_else(|| from_file("Unknown Network Device.".into()))?;
            nic.host_dev_name.clone_from(&other.host_dev_name);
        }
        if let Some(other) = &load.vsock_override {
            let vsock = state.vsock.as_mut();
            let vsock = vsock.ok_or_else(|| from_file("Unknown Vsock Device.".into()))?;
            vsock.uds_path.clone_from(&other.uds_path);
        }
        let of_memory = |why: String| format!("{PREFIX}Failed to load guest memory: {why}");
        let expected = u64::try_from(state.machine.mem_size_mib).unwrap_or(0) << 20;
        let by_faults = memory.backend_type == BackendType::Uffd;
        let huge = state.machine.huge_pages == crate::bodies::HugePages::Hugetlbfs2M;
        if load.huge_pages == LoadHugePages::Hugetlbfs2M
            || (huge && load.huge_pages == LoadHugePages::Snapshot)
        {
            if by_faults {
                let why = "Error creating guest memory from uffd: the double has no huge pages";
                return Err(of_memory(why.into()));
            }
            return Err(of_memory(
                "Error creating guest memory from file: Cannot restore hugetlbfs backed snapshot \
                 by mapping the memory file. Please use uffd."
                    .into(),
            ));
        }
        let path = &memory.backend_path;
        let memory = if by_faults {
            let served = page_faults::memory(path, expected, version).map_err(|why| {
                of_memory(format!("Error creating guest memory from uffd: {why}"))
            })?;
            self.handler = served.1;
            served.0
        } else {
            memory_of_file(path, expected)
                .map_err(|why| of_memory(format!("Error creating guest memory from file: {why}")))?
        };
        let build = |why: String| {
            format!(
                "{PREFIX}Failed to build microVM from snapshot: Failed to restore devices: {why}"
            )
        };
        let devices = std::mem::take(&mut state.devices);
        self.resources = reopen(state, self.resources.serial.take()).map_err(build)?;
        let begin = Begin::Restore {
            memory,
            devices: &devices,
        };
        let guest = Guest::start(&self.resources, &begin, self.events.clone());
        let mut guest = guest.map_err(|why| build(format!("{why:#}")))?;
        if load.resume_vm {
            let resumed = guest.resume();
            resumed.map_err(|why| format!("Failed to resume microVM: {why:#}"))?;
        }
        Ok(guest)
    }

    /// Puts metadata from a file of the command line into the store.
    pub(crate) fn read_metadata(&mut self, path: &std::path::Path) -> Result<(), Fault> {
        let mut text = String::new();
        let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
        read.map_err(|error| Fault::from(os_text(&error)))?;
        let value = serde_json::from_str(&text).map_err(|error| Fault::from(error.to_string()))?;
        self.mmds
            .handle(Action::PutMmds(value), true, self.version)
            .map(drop)
    }
}

/// The memory that a file has.
fn memory_of_file(path: &std::path::Path, expected: u64) -> Result<File, String> {
    let file = File::open(path)
        .map_err(|error| format!("Failed to load guest memory: {}", os_text(&error)))?;
    let size = file.metadata().map_or(0, |file| file.len());
    if size < expected {
        return Err(format!(
            "Failed to restore guest memory: the file has {size} bytes of {expected}"
        ));
    }
    guest::memory_from(&file, expected).map_err(|error| os_text(&error))
}

/// Opens what a snapshot names, at the same paths as there.
fn reopen(state: State, serial: Option<std::path::PathBuf>) -> Result<Resources, String> {
    let mut all = Resources {
        machine: state.machine,
        entropy: state.entropy,
        balloon: state.balloon,
        mmds: state.mmds,
        serial,
        ..Resources::default()
    };
    for config in state.drives {
        all.drives.push(resources::open_drive(config)?);
    }
    for config in state.nics {
        let tap = resources::open_tap(&config.host_dev_name)?;
        all.nics.push(OpenNic { config, tap });
    }
    if let Some(vsock) = state.vsock {
        all.set_vsock(vsock)?;
    }
    Ok(all)
}
