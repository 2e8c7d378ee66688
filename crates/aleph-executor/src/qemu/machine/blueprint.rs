//! How a whole computer is built: recorded when it is created, replayed at each start.
//!
//! A guest's system, its drivers and its licences know the machine by its topology, its processor and
//! the slots of its devices. So what a start needs is said once, in terms that stay the same when QEMU is
//! upgraded: a machine type with its version, no alias.
//!
//! How many of its places for processors are taken, and how much of the memory that it can have is there, is
//! what it begins with at a start ([`Blueprint::begin_with`]): places and the sum stay as they were drawn.

use super::error::MachineError;
use super::topology::{MAX_APIC_ID, NumaNode, Topology};
use crate::accel::Accelerator;
use aleph_types::MiB;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the record's form.
pub(super) const VERSION: u32 = 1;

/// Memory is added in units of what Linux takes in at once on x86.
pub(super) const MEMORY_UNIT: MiB = aleph_types::MEMORY_STEP;

/// The most modules that memory can be added as.
const MAX_MODULES: u32 = 32;

/// Slots at most. A port is a function of a device on the root bus, eight of each; those of the host's
/// devices come beside them.
pub const MAX_SLOTS: usize = 48;

/// The most processors of a machine: beyond it the guest needs an interrupt controller of another kind
/// (x2APIC with an IOMMU).
pub const MAX_CPUS: u16 = 255;

/// What a computer is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Processors that are there from the start.
    pub cpus: u16,
    /// Memory that is there from the start.
    pub memory: MiB,
    /// The processor, by QEMU's name; the host's own where it can be had, where nothing is said.
    pub cpu: Option<String>,
    /// Its topology; one socket with a core for each processor, or one for each NUMA node, where nothing is said.
    pub topology: Option<Topology>,
    /// Processors that can be added while it runs.
    pub cpu_room: u16,
    /// Memory that can be added while it runs.
    pub memory_room: MiB,
    /// Its NUMA nodes; none, where that is empty.
    pub numa: Vec<NumaNode>,
    /// Whether its memory is in huge pages, and in which.
    pub huge_pages: Option<HugePages>,
    /// What it boots by.
    pub firmware: Firmware,
    /// Whether it has a TPM 2.0.
    pub tpm: bool,
    /// Whether it has a screen, a keyboard and a mouse.
    pub display: bool,
    /// Who answers on its channel.
    pub agent: GuestAgent,
    /// Whether it has a port for QEMU's guest agent beside that channel.
    pub guest_port: bool,
    /// Its disks and network devices in order, each in the slot of its place.
    pub devices: Vec<Device>,
    /// Slots beside those, for what is attached later.
    pub spare_slots: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: MiB(512),
            cpu: None,
            topology: None,
            cpu_room: 0,
            memory_room: MiB(0),
            numa: Vec::new(),
            huge_pages: None,
            firmware: Firmware::Uefi { secure_boot: false },
            tpm: false,
            display: false,
            agent: GuestAgent::Qemu,
            guest_port: false,
            devices: Vec::new(),
            spare_slots: 8,
        }
    }
}

/// How a computer is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blueprint {
    pub(super) version: u32,
    /// Which machine it is, to its guest (SMBIOS).
    pub uuid: String,
    /// QEMU's machine with its version, such as `pc-q35-7.2`.
    pub machine: String,
    /// Its processor.
    pub cpu: CpuModel,
    /// Processors that are there from the start.
    pub cpus: u16,
    /// Places for processors: as many as it can ever have.
    pub topology: Topology,
    /// Memory that is there from the start.
    pub memory: MiB,
    /// Memory that can be added while it runs.
    pub memory_room: MiB,
    /// Its NUMA nodes, or none.
    pub numa: Vec<NumaNode>,
    /// The pages that its memory is in.
    pub huge_pages: Option<HugePages>,
    /// What it boots by.
    pub firmware: Firmware,
    /// Whether it has a TPM 2.0.
    pub tpm: bool,
    /// Whether it has a screen, a keyboard and a mouse.
    pub display: bool,
    /// Who answers on its channel.
    pub agent: GuestAgent,
    /// Whether it has a port for QEMU's guest agent beside that channel. Records that were made before there
    /// was one say nothing of it, and are replayed without.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest_port: bool,
    /// What is in each slot.
    pub slots: Vec<Option<Device>>,
}

/// A processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuModel {
    /// The host's own, which an emulator does not have.
    Host,
    /// One by QEMU's name, with features.
    Named(String),
}

/// Pages of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Of 2 MiB.
    #[serde(rename = "2M")]
    Size2M,
    /// Of 1 GiB.
    #[serde(rename = "1G")]
    Size1G,
}

impl HugePages {
    pub(super) fn size(self) -> MiB {
        match self {
            Self::Size2M => MiB(2),
            Self::Size1G => MiB(1024),
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.size().0)
    }
}

/// What a computer boots by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF, with variables of the VM's own.
    Uefi {
        /// Whether it boots only what is signed, by the keys that come with the firmware (Microsoft's).
        secure_boot: bool,
    },
}

/// Who answers on a guest's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestAgent {
    /// QEMU's guest agent, where the guest has it.
    Qemu,
    /// A program of ours in a system of the guest's own, which tells how far that is.
    Reports,
    /// Ours, which is the guest's first process: a reset is the machine's end.
    Aleph,
}

/// A device that has a slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// A disk, by its serial number.
    Disk(String),
    /// A network device, by its hardware address.
    Nic([u8; 6]),
}

impl Device {
    /// Its name on QEMU's side.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::Disk(serial) => format!("disk-{serial}"),
            Self::Nic(mac) => format!("nic-{}", mac.map(|b| format!("{b:02x}")).concat()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(serial) => write!(f, "disk {serial:?}"),
            Self::Nic(mac) => write!(f, "network device {}", super::super::argv::mac_text(*mac)),
        }
    }
}

impl Blueprint {
    /// One for this machine type, on a host with this accelerator. `uuid` is one that nobody has.
    ///
    /// # Errors
    /// [`MachineError::Invalid`] where its parts do not fit together.
    pub fn draw(
        wanted: &Wanted,
        machine: &str,
        accelerator: Accelerator,
        uuid: &str,
    ) -> Result<Self, MachineError> {
        let places = wanted.cpus.saturating_add(wanted.cpu_room);
        let cpu = match (&wanted.cpu, accelerator) {
            (Some(name), _) => CpuModel::Named(name.clone()),
            (None, Accelerator::Kvm) => CpuModel::Host,
            (None, Accelerator::Tcg) => CpuModel::Named(super::super::argv::TCG_CPU.into()),
        };
        let devices = wanted.devices.iter().cloned().map(Some);
        let spare = std::iter::repeat_n(None, wanted.spare_slots);
        let blueprint = Self {
            version: VERSION,
            uuid: uuid.to_owned(),
            machine: machine.to_owned(),
            cpu,
            cpus: wanted.cpus,
            topology: wanted
                .topology
                .unwrap_or_else(|| Topology::usual(places, &wanted.numa)),
            memory: wanted.memory,
            memory_room: wanted.memory_room,
            numa: wanted.numa.clone(),
            huge_pages: wanted.huge_pages,
            firmware: wanted.firmware,
            tpm: wanted.tpm,
            display: wanted.display,
            agent: wanted.agent,
            guest_port: wanted.guest_port,
            slots: devices.chain(spare).collect(),
        };
        if blueprint.topology.places() != u64::from(places) {
            return Err(MachineError::Invalid(format!(
                "a topology of {} × {} × {} has not the {places} places for processors that it is to have",
                blueprint.topology.sockets, blueprint.topology.cores, blueprint.topology.threads
            )));
        }
        blueprint.check()?;
        // Of new ones alone: a guest of one that was recorded may do without the processors beyond.
        let largest = blueprint.topology.largest_apic_id();
        if largest > MAX_APIC_ID {
            return Err(MachineError::Invalid(format!(
                "a topology of {} × {} × {} numbers its processors up to {largest}, as cores and threads are \
                 counted in powers of two: at most {MAX_APIC_ID} works",
                blueprint.topology.sockets, blueprint.topology.cores, blueprint.topology.threads
            )));
        }
        Ok(blueprint)
    }

    /// Processors that it can ever have.
    #[must_use]
    pub fn max_cpus(&self) -> u64 {
        self.topology.places()
    }

    /// Memory that it can ever have.
    #[must_use]
    pub fn max_memory(&self) -> MiB {
        MiB(self.memory.0.saturating_add(self.memory_room.0))
    }

    /// How many modules memory can be added as.
    pub(super) fn modules(&self) -> u32 {
        (self.memory_room.0 / MEMORY_UNIT.0).min(MAX_MODULES)
    }

    /// Has it begin with another size than it was drawn with, of what it can ever have.
    ///
    /// # Errors
    /// [`MachineError::NoRoom`] where that is less; [`MachineError::Invalid`] where the parts do not fit
    /// together then.
    pub fn begin_with(&mut self, cpus: u16, memory: MiB) -> Result<(), MachineError> {
        let places = self.max_cpus();
        if u64::from(cpus) > places {
            return Err(MachineError::NoRoom {
                what: "processors",
                left: places.saturating_sub(self.cpus.into()),
                wanted: u64::from(cpus) - u64::from(self.cpus),
            });
        }
        let most = self.max_memory();
        if memory > most {
            let wanted = MiB(memory.0 - self.memory.0);
            return Err(MachineError::no_memory(self.memory_room, wanted));
        }
        (self.cpus, self.memory) = (cpus, memory);
        self.memory_room = MiB(most.0 - memory.0);
        self.check()
    }

    /// Checks that its parts fit together: a record may have been edited.
    pub(super) fn check(&self) -> Result<(), MachineError> {
        let invalid = |why: String| Err(MachineError::Invalid(why));
        let places = self.topology.places();
        if self.cpus == 0 || places > u64::from(MAX_CPUS) || places < u64::from(self.cpus) {
            return invalid(format!(
                "{} processors in {places} places: at least 1 and at most {MAX_CPUS} work",
                self.cpus
            ));
        }
        let is_option = |text: &str| {
            let is_letter = |c: char| c.is_ascii_alphanumeric() || "-_.+=,:".contains(c);
            !text.is_empty() && text.chars().all(is_letter)
        };
        match &self.cpu {
            CpuModel::Named(name) if !is_option(name) => {
                return invalid(format!("{name:?} is no processor's name"));
            }
            _ if !is_option(&self.machine) || self.machine.contains([',', '=']) => {
                return invalid(format!("{:?} is no machine's name", self.machine));
            }
            _ => {}
        }
        let is_uuid = |c: char| c.is_ascii_hexdigit() || c == '-';
        if self.uuid.len() != 36 || !self.uuid.chars().all(is_uuid) {
            return invalid(format!("{:?} is no UUID", self.uuid));
        }
        if self.memory.0 == 0 || !self.memory_room.0.is_multiple_of(MEMORY_UNIT.0) {
            return invalid(format!(
                "its memory is 0, or the room for more no multiple of {} MiB",
                MEMORY_UNIT.0
            ));
        }
        let page = self.huge_pages.map_or(1, |pages| pages.size().0);
        let mut parts = self
            .numa
            .iter()
            .map(|node| node.memory)
            .chain([self.memory]);
        if parts.any(|part| part.0 == 0 || !part.0.is_multiple_of(page)) {
            return invalid(format!(
                "memory of a node that is 0, or no multiple of its pages of {page} MiB"
            ));
        }
        if self.slots.len() > MAX_SLOTS {
            return invalid(format!(
                "{} slots: at most {MAX_SLOTS} work",
                self.slots.len()
            ));
        }
        let mut there: Vec<String> = self.slots.iter().flatten().map(Device::id).collect();
        there.sort_unstable();
        if let Some(twice) = there.windows(2).find(|two| two[0] == two[1]) {
            return invalid(format!("{} is in two slots", twice[0]));
        }
        self.check_numa(places)
    }

    fn check_numa(&self, places: u64) -> Result<(), MachineError> {
        if self.numa.is_empty() {
            return Ok(());
        }
        let memory: u64 = self.numa.iter().map(|node| u64::from(node.memory.0)).sum();
        let mut cpus: Vec<u64> = self
            .numa
            .iter()
            .flat_map(|node| node.cpus.iter().copied().map(u64::from))
            .collect();
        cpus.sort_unstable();
        if memory != u64::from(self.memory.0) || !cpus.iter().copied().eq(0..places) {
            return Err(MachineError::Invalid(
                "its NUMA nodes do not have all of its memory and places for processors, each once"
                    .into(),
            ));
        }
        Ok(())
    }

    /// The slot of a device: its own, or else the first free one, which it has from now on.
    ///
    /// # Errors
    /// [`MachineError::NoSlot`].
    pub fn place(&mut self, device: &Device) -> Result<usize, MachineError> {
        let mut slots = self.slots.iter();
        let own = slots.position(|slot| slot.as_ref() == Some(device));
        let free = || self.slots.iter().position(Option::is_none);
        let slot = own.or_else(free).ok_or(MachineError::NoSlot {
            slots: self.slots.len(),
        })?;
        self.slots[slot] = Some(device.clone());
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "01234567-89ab-4def-8123-456789abcdef";

    fn draw(wanted: &Wanted) -> Result<Blueprint, MachineError> {
        Blueprint::draw(wanted, "pc-q35-7.2", Accelerator::Tcg, UUID)
    }

    #[test]
    fn a_record_is_read_back_as_it_was() {
        let wanted = Wanted {
            cpus: 2,
            cpu_room: 2,
            memory_room: MiB(1024),
            numa: vec![NumaNode {
                cpus: vec![0, 1, 2, 3],
                memory: MiB(512),
                host_node: Some(1),
            }],
            huge_pages: Some(HugePages::Size2M),
            devices: vec![Device::Disk("root".into()), Device::Nic([2, 0, 0, 0, 0, 1])],
            spare_slots: 1,
            ..Wanted::default()
        };
        let blueprint = draw(&wanted).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&blueprint).unwrap());
        let text = serde_json::to_string(&blueprint).unwrap();
        assert_eq!(serde_json::from_str::<Blueprint>(&text).unwrap(), blueprint);
        let foreign = text.replace("\"tpm\"", "\"tpm2\"");
        assert!(serde_json::from_str::<Blueprint>(&foreign).is_err());
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let node = |cpus: &[u16], memory| NumaNode {
            cpus: cpus.to_vec(),
            memory: MiB(memory),
            host_node: None,
        };
        type Change = fn(&mut Wanted);
        let cases: [(&str, Change); 8] = [
            ("topology of 1 × 3 × 1", |w| {
                w.topology = Some(Topology {
                    sockets: 1,
                    cores: 3,
                    threads: 1,
                });
            }),
            ("0 processors", |w| w.cpus = 0),
            ("at most 255", |w| w.cpu_room = 255),
            ("no multiple of 128", |w| w.memory_room = MiB(100)),
            ("no multiple of its pages of 1024 MiB", |w| {
                w.huge_pages = Some(HugePages::Size1G);
            }),
            ("no processor's name", |w| {
                w.cpu = Some("host -daemonize".into());
            }),
            ("at most 48", |w| w.spare_slots = 49),
            ("disk-root is in two slots", |w| {
                w.devices = vec![Device::Disk("root".into()); 2];
            }),
        ];
        for (expected, change) in cases {
            let mut wanted = Wanted::default();
            change(&mut wanted);
            let error = draw(&wanted).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected:?}: {error}");
        }
        for numa in [
            vec![node(&[0], 256), node(&[1], 128)],
            vec![node(&[0], 256), node(&[0], 256)],
            vec![node(&[0, 2], 512)],
        ] {
            let wanted = Wanted {
                cpus: 2,
                numa,
                ..Wanted::default()
            };
            let error = draw(&wanted).unwrap_err().to_string();
            assert!(error.contains("NUMA nodes"), "{error}");
        }
    }

    #[test]
    fn a_topology_has_a_number_for_each_processor() {
        let wanted = |sockets, cores| Wanted {
            cpus: sockets * cores,
            topology: Some(Topology {
                sockets,
                cores,
                threads: 1,
            }),
            ..Wanted::default()
        };
        let error = draw(&wanted(5, 33)).unwrap_err().to_string();
        assert!(
            error.contains("5 × 33 × 1") && error.contains("up to 288"),
            "{error}"
        );
        draw(&wanted(165, 1)).unwrap();
        // One that was recorded before this was asked is what it was.
        let mut recorded = draw(&wanted(1, 165)).unwrap();
        (recorded.topology.sockets, recorded.topology.cores) = (5, 33);
        recorded.begin_with(165, MiB(512)).unwrap();
    }

    #[test]
    fn a_machine_begins_with_another_size_of_what_it_can_have() {
        let mut blueprint = draw(&Wanted {
            cpus: 2,
            cpu_room: 2,
            memory_room: MiB(1024),
            ..Wanted::default()
        })
        .unwrap();
        let drawn = blueprint.clone();
        for (cpus, memory, room) in [(4, 1536, 0), (1, 256, 1280), (3, 640, 896)] {
            blueprint.begin_with(cpus, MiB(memory)).unwrap();
            assert_eq!((blueprint.cpus, blueprint.memory), (cpus, MiB(memory)));
            assert_eq!(blueprint.memory_room, MiB(room));
            assert_eq!(blueprint.topology, drawn.topology);
        }
        blueprint.begin_with(2, MiB(512)).unwrap();
        assert_eq!(blueprint, drawn);
        let mut refused = |cpus, memory| {
            let error = blueprint.begin_with(cpus, MiB(memory)).unwrap_err();
            assert_eq!(blueprint, drawn);
            error.to_string()
        };
        assert!(refused(5, 512).contains("room for 2 more processors, not 3"));
        assert!(refused(2, 1664).contains("room for 1024 more MiB of memory, not 1152"));
        // Not in units of what is added.
        let mut uneven = drawn.clone();
        assert!(uneven.begin_with(2, MiB(600)).is_err());
        let mut parted = draw(&Wanted {
            numa: vec![NumaNode {
                cpus: vec![0],
                memory: MiB(512),
                host_node: None,
            }],
            memory_room: MiB(128),
            ..Wanted::default()
        })
        .unwrap();
        let error = parted.begin_with(1, MiB(640)).unwrap_err().to_string();
        assert!(error.contains("NUMA nodes"), "{error}");
    }

    #[test]
    fn a_device_keeps_its_slot_and_a_new_one_gets_the_first_free() {
        let disk = |name: &str| Device::Disk(name.into());
        let mut blueprint = draw(&Wanted {
            devices: vec![disk("a"), disk("b")],
            spare_slots: 1,
            ..Wanted::default()
        })
        .unwrap();
        assert_eq!(blueprint.place(&disk("b")).unwrap(), 1);
        assert_eq!(blueprint.place(&disk("c")).unwrap(), 2);
        assert_eq!(blueprint.place(&disk("c")).unwrap(), 2);
        let error = blueprint.place(&disk("d")).unwrap_err();
        assert_eq!(error.to_string(), "all 3 slots of the machine are taken");
    }
}
