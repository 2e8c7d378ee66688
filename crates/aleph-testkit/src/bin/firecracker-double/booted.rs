//! What is done once there is a guest.

use crate::action::{Action, Kind};
use crate::bodies::{CreateSnapshot, DriveUpdate, SnapshotType};
use crate::fault::{About, Fault, os_text};
use crate::guest::{Begin, Guest};
use crate::log;
use crate::resources;
use crate::state_file::{self, State};
use crate::vmm::{Answer, Phase, Vmm, too_late};
use anyhow::Result;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

const NO_DEVICE: &str = "Failed perform action on device: Device not found";

impl Vmm {
    /// Does what is asked for once there is a guest.
    pub(crate) fn handle_booted(&mut self, action: Action) -> Answer {
        let version = self.version;
        match action {
            Action::Pause => self.pause(),
            Action::Resume => self.resume(),
            Action::CreateSnapshot(create) => self.create(&create),
            Action::FlushMetrics => {
                let flushed = self.metrics.flush();
                flushed.map(|()| None).map_err(|error| {
                    About::Vmm.fault(version, &format!("Metrics error: {}", os_text(&error)))
                })
            }
            Action::CtrlAltDel => {
                let pressed = self.guest().map(Guest::ctrl_alt_del);
                match pressed {
                    Some(Err(why)) => {
                        Err(About::Vmm.fault(version, &format!("I8042 error: {why:#}")))
                    }
                    _ => Ok(None),
                }
            }
            Action::UpdateDrive(update) => self.update_drive(&update),
            Action::UpdateNic(update) => {
                let known = |nic: &resources::OpenNic| nic.config.iface_id == update.iface_id;
                match self.resources.nics.iter().any(known) {
                    true => Ok(None),
                    false => {
                        Err(self.unknown(About::Network, "Unable to update the net device: ", ""))
                    }
                }
            }
            Action::UpdatePmem(update) => {
                match self.resources.pmem.iter().any(|pmem| pmem.id == update.id) {
                    true => Ok(None),
                    false => Err(self.unknown(
                        About::Pmem,
                        "Unable to patch the pmem device: ",
                        " Please verify the request arguments.",
                    )),
                }
            }
            Action::UpdateBalloon(update) => self.update_balloon(update.amount_mib),
            Action::UpdateBalloonStatistics(update) => {
                let Some(balloon) = &mut self.resources.balloon else {
                    return Err(About::BalloonUpdate.fault(version, self.no_balloon()));
                };
                let to = update.stats_polling_interval_s;
                if (balloon.stats_polling_interval_s == 0) != (to == 0) {
                    let text = match version.has(14) {
                        true => "Balloon: Statistics cannot be enabled/disabled after activation.",
                        false => "Cannot enable/disable the statistics after boot.",
                    };
                    return Err(About::BalloonUpdate.fault(version, text));
                }
                balloon.stats_polling_interval_s = to;
                Ok(None)
            }
            Action::BalloonStatistics => self.balloon_statistics(),
            Action::HintingStatus | Action::StartHinting | Action::StopHinting => {
                let text = match &self.resources.balloon {
                    None => NO_DEVICE,
                    Some(_) => "Balloon: Attempting to use hinting when not enabled",
                };
                Err(About::BalloonUpdate.fault(version, text))
            }
            Action::HotplugMemory => Err(About::Vmm.fault(version, NO_DEVICE)),
            Action::UpdateHotplugMemory => Err(About::HotplugUpdate.fault(version, NO_DEVICE)),
            Action::Unplug(kind, id) => self.unplug(kind, &id),
            Action::SetDrive(_) | Action::SetNic(_) | Action::SetPmem(_) if version.has(16) => {
                Err(match self.pci {
                    false => "PCI is not enabled".into(),
                    true => "PCI manager error: the double has no PCI".into(),
                })
            }
            _ => too_late(),
        }
    }

    fn guest(&mut self) -> Option<&mut Guest> {
        match &mut self.phase {
            Phase::NotStarted { .. } => None,
            Phase::Running(guest) | Phase::Paused { guest, .. } => Some(guest),
        }
    }

    fn pause(&mut self) -> Answer {
        let began = Instant::now();
        let version = self.version;
        let paused = self.guest().map_or(Ok(()), Guest::pause);
        paused.map_err(|_| About::Vmm.fault(version, "Failed to message the vCPUs."))?;
        let before = std::mem::replace(&mut self.phase, Phase::NotStarted { boot_path: true });
        self.phase = match before {
            Phase::Running(guest) | Phase::Paused { guest, .. } => Phase::Paused {
                guest,
                frozen: true,
            },
            before @ Phase::NotStarted { .. } => before,
        };
        self.metrics.took("pause_vm", began.elapsed());
        log!(
            Info,
            "'pause vm' API request took {} us.",
            began.elapsed().as_micros()
        );
        Ok(None)
    }

    fn resume(&mut self) -> Answer {
        let began = Instant::now();
        let version = self.version;
        let resumed = self.guest().map_or(Ok(()), Guest::resume);
        resumed.map_err(|_| About::Vmm.fault(version, "Failed to message the vCPUs."))?;
        let before = std::mem::replace(&mut self.phase, Phase::NotStarted { boot_path: true });
        self.phase = match before {
            Phase::Running(guest) | Phase::Paused { guest, .. } => Phase::Running(guest),
            before @ Phase::NotStarted { .. } => before,
        };
        self.metrics.took("resume_vm", began.elapsed());
        log!(
            Info,
            "'resume vm' API request took {} us.",
            began.elapsed().as_micros()
        );
        Ok(None)
    }

    fn create(&mut self, create: &CreateSnapshot) -> Answer {
        let began = Instant::now();
        let version = self.version;
        let refuse = |why: String| Err(About::Create.fault(version, &why));
        let diff = create.snapshot_type == SnapshotType::Diff;
        if diff && !version.has(13) && !self.resources.machine.track_dirty_pages {
            return Err(
                "The requested operation is not supported: Diff snapshots are not allowed \
                        on uVMs with dirty page tracking disabled."
                    .into(),
            );
        }
        let all = &self.resources;
        let mut state = State {
            machine: all.machine.clone(),
            drives: all
                .drives
                .iter()
                .map(|drive| drive.config.clone())
                .collect(),
            nics: all.nics.iter().map(|nic| nic.config.clone()).collect(),
            vsock: all.vsock.as_ref().map(|vsock| vsock.config.clone()),
            entropy: all.entropy.clone(),
            balloon: all.balloon.clone(),
            mmds: all.mmds.clone(),
            by: state_file::family(version),
            devices: Vec::new(),
        };
        let Phase::Paused { guest, .. } = &mut self.phase else {
            return refuse(
                "Cannot save the microVM state: Operation not allowed: save/restore unavailable \
                 while running"
                    .into(),
            );
        };
        match guest.devices() {
            Ok(devices) => state.devices = devices,
            Err(why) => return refuse(format!("Cannot save the microVM state: {why:#}")),
        }
        let file = match open(&create.snapshot_path, true) {
            Ok(file) => file,
            Err(why) => {
                return refuse(format!(
                    "Cannot perform open on the snapshot backing file: {why}"
                ));
            }
        };
        if let Err(error) = state.write(&file, version) {
            let why = os_text(&error);
            return refuse(format!("Cannot serialize the microVM state: {why}"));
        }
        let memory = match open(&create.mem_file_path, false) {
            Ok(file) => file,
            Err(why) => {
                return refuse(format!(
                    "Cannot perform open on the memory backing file: {why}"
                ));
            }
        };
        if let Err(error) = guest.write_memory(&memory) {
            return refuse(format!("Cannot write memory file: {}", os_text(&error)));
        }
        let (metric, kind) = match diff {
            true => ("diff_create_snapshot", "create diff snapshot"),
            false => ("full_create_snapshot", "create full snapshot"),
        };
        if self.resources.vsock.is_some()
            && let Err(why) = self.reset_vsock(&state.devices)
        {
            self.fatal = true;
            return refuse(format!("Cannot save the microVM state: {why:#}"));
        }
        self.metrics.took(metric, began.elapsed());
        let took = began.elapsed().as_micros();
        log!(Info, "'{kind}' API request took {took} us.");
        Ok(None)
    }

    /// Ends all connections of vsock, as a snapshot does: the guest goes on in another QEMU, which
    /// tells it so.
    fn reset_vsock(&mut self, devices: &[u8]) -> Result<()> {
        let before = std::mem::replace(&mut self.phase, Phase::NotStarted { boot_path: true });
        let Phase::Paused { guest, frozen } = before else {
            self.phase = before;
            return Ok(());
        };
        let memory = guest.memory()?;
        drop(guest);
        let begin = Begin::Restore { memory, devices };
        let guest = Guest::start(&self.resources, &begin, self.events.clone())?;
        self.phase = Phase::Paused { guest, frozen };
        Ok(())
    }

    fn update_drive(&mut self, update: &DriveUpdate) -> Answer {
        let known = |drive: &resources::OpenDrive| drive.config.drive_id == update.drive_id;
        let Some(at) = self.resources.drives.iter().position(known) else {
            return Err(self.unknown(
                About::Drive,
                "Unable to patch the block device: ",
                " Please verify the request arguments.",
            ));
        };
        let Some(path) = &update.path_on_host else {
            return Ok(None);
        };
        let version = self.version;
        let refuse = |why: String| {
            About::Drive.fault(
                version,
                &format!(
                    "Unable to patch the block device: {why} Please verify the request arguments."
                ),
            )
        };
        let read_only = self.resources.drives[at].read_only();
        let file = resources::open_drive_file(path, read_only).map_err(refuse)?;
        if let Some(guest) = self.guest() {
            let changed = guest.change_drive(&update.drive_id, &file, read_only);
            changed.map_err(|why| refuse(format!("{why:#}")))?;
        }
        let drive = &mut self.resources.drives[at];
        drive.file = file;
        drive.config.path_on_host = Some(path.clone());
        Ok(None)
    }

    fn no_balloon(&self) -> &'static str {
        match self.version.has(13) {
            true => NO_DEVICE,
            false => "No balloon device found.",
        }
    }

    fn update_balloon(&mut self, amount_mib: u32) -> Answer {
        let version = self.version;
        let size = self.resources.machine.mem_size_mib;
        let none = self.no_balloon();
        let Some(balloon) = &mut self.resources.balloon else {
            return Err(About::BalloonUpdate.fault(version, none));
        };
        let amount = usize::try_from(amount_mib).unwrap_or(usize::MAX);
        if amount > size {
            let text = match version.has(14) {
                true => format!("Balloon: Requested memory should be less than {size}MiB"),
                false => "Amount of pages requested is too large.".to_owned(),
            };
            return Err(About::BalloonUpdate.fault(version, &text));
        }
        balloon.amount_mib = amount_mib;
        let keeps = u64::try_from(size - amount).unwrap_or(0) << 20;
        let blown = self.guest().map_or(Ok(()), |guest| guest.balloon(keeps));
        blown.map_err(|why| About::BalloonUpdate.fault(version, &format!("{why:#}")))?;
        Ok(None)
    }

    fn balloon_statistics(&mut self) -> Answer {
        let version = self.version;
        let Some(balloon) = &self.resources.balloon else {
            return Err(match version.has(13) {
                true => About::Vmm.fault(version, NO_DEVICE),
                false => About::Balloon.fault(version, "No balloon device found."),
            });
        };
        if balloon.stats_polling_interval_s == 0 {
            return Err(match version.has(14) {
                true => About::Vmm.fault(
                    version,
                    "Balloon: Received stats query when stats are disabled.",
                ),
                false => About::Balloon
                    .fault(version, "Statistics for the balloon device are not enabled"),
            });
        }
        // The guest's own are left out.
        let (target, all) = (balloon.amount_mib, self.resources.machine.mem_size_mib);
        let keeps = self.guest().map_or(Ok(0), Guest::keeps);
        let keeps = keeps.map_err(|why| About::Vmm.fault(version, &format!("{why:#}")))?;
        let all = u64::try_from(all).unwrap_or(0) << 20;
        let actual = all.saturating_sub(keeps) >> 20;
        let (target_pages, actual_pages) = (u64::from(target) << 8, actual << 8);
        Ok(Some(format!(
            r#"{{"target_pages":{target_pages},"actual_pages":{actual_pages},"target_mib":{target},"actual_mib":{actual}}}"#
        )))
    }

    fn unplug(&self, kind: Kind, id: &str) -> Answer {
        let all = &self.resources;
        if !self.pci {
            return Err("PCI is not enabled".into());
        }
        let root = match kind {
            Kind::Drive => {
                let drive = all.drives.iter().find(|drive| drive.config.drive_id == id);
                drive.map(|drive| drive.config.is_root_device)
            }
            Kind::Pmem => {
                let pmem = all.pmem.iter().find(|pmem| pmem.id == id);
                pmem.map(|pmem| pmem.root_device)
            }
            Kind::Nic => {
                let nic = all.nics.iter().find(|nic| nic.config.iface_id == id);
                nic.map(|_| false)
            }
        };
        Err(match root {
            None => "Device not found".into(),
            Some(true) => "Cannot unplug root device".into(),
            Some(false) => "PCI manager error: the double has no PCI".into(),
        })
    }

    /// A refusal for a device that there is not.
    fn unknown(&self, about: About, before: &str, after: &str) -> Fault {
        let why = match self.version.has(13) {
            true => NO_DEVICE,
            false => "Device manager error: Failed to find the device on the bus.",
        };
        about.fault(self.version, &format!("{before}{why}{after}"))
    }
}

fn open(path: &Path, truncate: bool) -> Result<File, String> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(truncate)
        .open(path)
        .map_err(|error| os_text(&error))
}
