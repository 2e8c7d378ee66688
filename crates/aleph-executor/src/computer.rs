//! The whole computer of a job whose guest has our agent: what it is to be, as a pure function of the
//! job, and how it is built in a VM's place.
//!
//! It begins with the node's kernel and initramfs, as a microVM does, so it has no firmware that boots
//! from disks. It lasts for one start.

use crate::executor::ExecutorError;
use crate::guest::agent::{IMAGE_SERIAL, SCRATCH_SERIAL};
use crate::hypervisor::{Disk, Driver, HostDevices, LaunchError, Machine, Nic};
use crate::qemu::machine::{
    Device, Firmware, GuestAgent, HugePages, MAX_APIC_ID, MAX_SLOTS, NumaNode, Topology, Wanted,
};
use aleph_types::{HugePages as Pages, InvalidJob, JobSpec, MachineSpec};
use std::path::Path;

/// What its guest's kernel is told beside what all are: its check of the timer compares real time with
/// that of a machine which a busy host may not let run.
pub(crate) const KERNEL_ARGUMENTS: &str = "no_timer_check";

/// Slots that a guest with a disk of its own has for network cards and for what is plugged in later, beside those
/// that its job asks for.
pub(crate) const SPARE_SLOTS: usize = 4;

/// Checks as a job is made what its machine could not be drawn with. A machine that is there is as it was drawn.
pub(crate) fn check(job: &JobSpec) -> Result<(), InvalidJob> {
    if !job.is_full_vm() {
        return Ok(());
    }
    let asked = as_asked(job);
    let largest = asked.topology.map(Topology::largest_apic_id);
    if largest > Some(MAX_APIC_ID) {
        return Err(InvalidJob::Machine {
            field: "machine.topology",
            why: "numbers processors beyond 254, as cores and threads are counted in powers of two: \
                  have more sockets of fewer cores each",
        });
    }
    let own = match job.has_own_disk() {
        // Root and seed.
        true => 2 + SPARE_SLOTS,
        // Image, scratch and a network card.
        false => 3,
    };
    let most = MAX_SLOTS.saturating_sub(own + job.volumes.len());
    match asked.spare_slots > most {
        true => Err(InvalidJob::TooMuch {
            field: "machine.room.slots",
            there: asked.spare_slots,
            most,
        }),
        false => Ok(()),
    }
}

/// As many of these spare slots as a machine with such devices has room for: volumes that were attached before its
/// first start are in some of them.
pub(crate) fn spare_beside(devices: &[Device], spare: usize) -> usize {
    spare.min(MAX_SLOTS.saturating_sub(devices.len()))
}

/// What a computer has of what its job says, whoever is in its guest: processors, memory, how both are
/// arranged, and a TPM.
pub(crate) fn as_asked(job: &JobSpec) -> Wanted {
    let MachineSpec {
        tpm,
        cpu_model,
        topology,
        numa,
        huge_pages,
        room,
        ..
    } = job.machine.clone().unwrap_or_default();
    let nodes = numa.into_iter().map(|node| NumaNode {
        cpus: node.cpus.iter().collect(),
        memory: node.memory,
        host_node: None,
    });
    Wanted {
        cpus: job.resources.cpus,
        memory: job.resources.memory,
        cpu: cpu_model,
        topology: topology.map(|topology| Topology {
            sockets: topology.sockets,
            cores: topology.cores,
            threads: topology.threads,
        }),
        cpu_room: room.cpus,
        memory_room: room.memory,
        numa: nodes.collect(),
        huge_pages: huge_pages.map(|pages| match pages {
            Pages::Mib2 => HugePages::Size2M,
            Pages::Gib1 => HugePages::Size1G,
        }),
        tpm,
        spare_slots: room.slots.into(),
        ..Wanted::default()
    }
}

/// How a job's computer is to be.
pub(crate) fn wanted(job: &JobSpec, nics: &[Nic], volumes: &[Disk]) -> Wanted {
    let mut devices = vec![Device::Disk(IMAGE_SERIAL.into())];
    if job.resources.disk.0 > 0 {
        devices.push(Device::Disk(SCRATCH_SERIAL.into()));
    }
    let volumes = volumes.iter().map(|disk| disk.serial.clone().into_owned());
    devices.extend(volumes.map(Device::Disk));
    devices.extend(nics.iter().map(|nic| Device::Nic(nic.mac)));
    let asked = as_asked(job);
    Wanted {
        firmware: Firmware::Bios,
        display: false,
        agent: GuestAgent::Aleph,
        guest_port: false,
        spare_slots: spare_beside(&devices, asked.spare_slots),
        devices,
        ..asked
    }
}

/// Builds it in a folder that is not there yet.
pub(crate) fn build(
    driver: &dyn Driver,
    folder: &Path,
    wanted: &Wanted,
    devices: HostDevices,
) -> Result<Machine, ExecutorError> {
    let full = driver.full().ok_or(ExecutorError::NoFullVms)?;
    full.create(folder, wanted).map_err(LaunchError::from)?;
    let mut machine = full.open(folder).map_err(LaunchError::from)?;
    machine.devices = devices;
    Ok(Machine::Full(Box::new(machine)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{CloudInitSpec, HotplugRoom, MiB, Mode, Topology as Arranged};

    fn vm(with_disk: bool, volumes: usize) -> JobSpec {
        let mut job = JobSpec::new("x", Vec::new());
        job.mode = Mode::Vm;
        job.cloud_init = with_disk.then(CloudInitSpec::default);
        let volumes = (0..volumes).map(|n| format!("v{n}:/srv/{n}").parse().unwrap());
        job.volumes = volumes.collect();
        job
    }

    #[test]
    fn as_many_slots_as_fit_are_taken_and_no_more() {
        for (with_disk, volumes, most) in [(true, 0, 42), (true, 16, 26), (false, 0, 45)] {
            let mut job = vm(with_disk, volumes);
            let mut refused = |slots| {
                job.machine.get_or_insert_default().room.slots = slots;
                check(&job).err()
            };
            assert_eq!(refused(most), None);
            let there = usize::from(most) + 1;
            assert_eq!(
                refused(most + 1),
                Some(InvalidJob::TooMuch {
                    field: "machine.room.slots",
                    there,
                    most: most.into(),
                })
            );
        }
        assert_eq!(check(&JobSpec::new("x", Vec::new())), Ok(()), "a microVM");
        let disks: Vec<_> = (0..18).map(|n| Device::Disk(format!("v{n}"))).collect();
        assert_eq!(spare_beside(&disks, SPARE_SLOTS + 26), 30);
        assert_eq!(spare_beside(&disks, SPARE_SLOTS + 42), 30);
        assert_eq!(spare_beside(&disks, SPARE_SLOTS), 4);
    }

    #[test]
    fn a_topology_that_has_no_numbers_for_its_processors_is_refused_as_the_job_is_made() {
        let arranged = |sockets, cores| {
            let mut job = vm(true, 0);
            job.resources.cpus = sockets * cores;
            job.machine.get_or_insert_default().topology = Some(Arranged {
                sockets,
                cores,
                threads: 1,
            });
            check(&job).map_err(|error| error.to_string())
        };
        assert_eq!(arranged(165, 1), Ok(()));
        let refused = arranged(5, 33).unwrap_err();
        assert!(refused.starts_with("machine.topology numbers"), "{refused}");
    }

    #[test]
    fn a_computer_has_what_its_job_says() {
        let mut job = JobSpec::new("x", vec!["true".into()]);
        job.mode = Mode::Vm;
        let nic = || Nic {
            mac: [2, 0, 0, 0, 0, 1],
            queues: Vec::new(),
        };
        let least = wanted(&job, &[], &[]);
        assert_eq!(least.devices, [Device::Disk(IMAGE_SERIAL.into())]);
        assert_eq!(
            (least.agent, least.firmware),
            (GuestAgent::Aleph, Firmware::Bios)
        );
        job.resources.cpus = 2;
        (job.resources.memory, job.resources.disk) = (MiB(2048), MiB(1024));
        job.machine = Some(MachineSpec {
            tpm: true,
            cpu_model: Some("EPYC".into()),
            huge_pages: Some(Pages::Gib1),
            numa: ["0-1:1g", "2-3:1g"]
                .map(|node| node.parse().unwrap())
                .into(),
            room: HotplugRoom {
                cpus: 2,
                memory: MiB(1024),
                slots: 3,
            },
            ..MachineSpec::default()
        });
        let null = std::fs::File::open("/dev/null").unwrap();
        let volume = Disk::raw("v1", null, false);
        let all = wanted(&job, &[nic()], &[volume]);
        assert_eq!(all.devices.len(), 4);
        assert_eq!(all.devices[2], Device::Disk("v1".into()));
        assert_eq!(all.devices[3], Device::Nic([2, 0, 0, 0, 0, 1]));
        assert_eq!((all.cpus, all.memory, all.spare_slots), (2, MiB(2048), 3));
        assert_eq!((all.cpu_room, all.memory_room), (2, MiB(1024)));
        assert_eq!(all.huge_pages, Some(HugePages::Size1G));
        assert!(all.tpm && all.cpu.as_deref() == Some("EPYC"));
        let nodes = all.numa.iter().map(|node| (&node.cpus[..], node.memory.0));
        assert!(nodes.eq([(&[0, 1][..], 1024), (&[2, 3], 1024)]));
    }
}
