//! The command line of a whole computer, as a pure function of its blueprint and what a start adds.
//!
//! As in [`crate::qemu::argv`], every file comes as an open descriptor in a fixed order, which
//! `launch` hands them over in: sockets, that of the guest's own agent, firmware, variables, TPM, kernel and initramfs, disks' layers,
//! queues, links. What QEMU opens by itself is its own: option ROMs, and what `vfio-pci` is.
//!
//! # The root bus
//! | device | what |
//! | --- | --- |
//! | 0 | the host bridge |
//! | 1 | the screen |
//! | 2, 3, 4 | serial ports of virtio, the balloon, the source of entropy |
//! | 5 | USB |
//! | 8 to 13 | the ports of slots, eight functions each |
//! | 6, 7, and from 14 on | the ports of the host's devices |
//! | 31 | the ICH9: LPC, SATA, SMBus |
//!
//! What can be attached and detached is behind a port of its own (QEMU's `docs/pcie.txt`); its I/O window
//! is none, since 16 of them are all that there is, and modern virtio needs none.

use super::blueprint::{Blueprint, CpuModel, Device, Firmware, GuestAgent, HugePages};
use super::error::MachineError;
use crate::accel::Accelerator;
use crate::gpu::{MemoryNode, Passthrough, window_argv};
use crate::hypervisor::HostDevices;
use crate::process::{FIRST_FILE, path_of_file};
use crate::qemu::argv::mac_text;
use crate::qemu::block::Drive;
use aleph_guest_proto::PORT_NAME;
use aleph_types::VmId;

/// The name of the port that QEMU's guest agent looks for.
const QEMU_AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// The device on the root bus whose functions are the first ports.
const FIRST_PORT_DEVICE: usize = 8;

/// What decides the command line, beside the blueprint.
#[derive(Debug)]
pub struct Line<'a> {
    /// Which VM.
    pub vm: VmId,
    /// What runs its instructions.
    pub accelerator: Accelerator,
    /// How it is built.
    pub blueprint: &'a Blueprint,
    /// The kernel's command line, where it boots a kernel that it is given.
    pub kernel: Option<&'a str>,
    /// Its disks: the firmware tries them in this order.
    pub disks: &'a [Drive<'a>],
    /// Hardware address of each network device, and how many queues it has.
    pub nics: &'a [([u8; 6], usize)],
    /// Hardware address of each network device whose other end is a datagram socket.
    pub links: &'a [[u8; 6]],
    /// What it gets of the host's devices.
    pub devices: &'a HostDevices,
}

/// The id of a slot's port.
pub(super) fn port(slot: usize) -> String {
    format!("port{slot}")
}

/// The arguments, without the program's name.
///
/// # Errors
/// [`MachineError::NoSlot`] where there are more devices than slots; [`MachineError::Conflict`] where two
/// are the same; [`MachineError::Gone`] where the processor is the host's own and the host emulates.
pub fn argv(line: &Line<'_>) -> Result<Vec<String>, MachineError> {
    let mut builder = Builder {
        argv: Vec::with_capacity(96),
        next: FIRST_FILE,
        slots: line.blueprint.clone(),
        taken: Vec::new(),
    };
    builder.frame(line);
    builder.processors(line)?;
    builder.memory(line.blueprint, line.devices.memory_node);
    builder.channels(line.blueprint);
    builder.firmware(line);
    builder.ports();
    for (n, disk) in line.disks.iter().enumerate() {
        builder.disk(n, disk)?;
    }
    for (mac, queues) in line.nics {
        builder.nic(*mac, *queues)?;
    }
    for mac in line.links {
        builder.link(*mac)?;
    }
    let passthrough = Passthrough {
        rom_bar: !line.devices.without_rom,
        ..Passthrough::default()
    };
    builder.argv.extend(window_argv(&line.devices.functions));
    builder.argv.extend(passthrough.argv(&line.devices.groups));
    Ok(builder.argv)
}

/// The memory of a part of the machine, or of what is added to it.
pub(super) fn memory_backend(pages: Option<HugePages>) -> (&'static str, String) {
    match pages {
        None => ("memory-backend-ram", String::new()),
        // Taken at once: a guest whose pages run out later is killed by SIGBUS.
        Some(pages) => (
            "memory-backend-memfd",
            format!(",hugetlb=on,hugetlbsize={pages},prealloc=on"),
        ),
    }
}

/// A processor by its name. Its physical addresses have 40 bits, whatever the host's have: neither memory near a
/// TiB nor the window of a GPU with large regions has room there. An emulator has the bits that it has.
fn named_cpu(name: &str, accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Kvm if !name.contains("phys-bits") => format!("{name},host-phys-bits=on"),
        Accelerator::Kvm | Accelerator::Tcg => name.to_owned(),
    }
}

struct Builder {
    argv: Vec<String>,
    next: i32,
    slots: Blueprint,
    taken: Vec<Device>,
}

impl Builder {
    fn add(&mut self, words: &[&str]) {
        self.argv
            .extend(words.iter().map(|word| (*word).to_owned()));
    }

    fn device(&mut self, device: &str) {
        self.add(&["-device", device]);
    }

    fn descriptor(&mut self) -> i32 {
        let descriptor = self.next;
        self.next = self.next.saturating_add(1);
        descriptor
    }

    /// A descriptor under a path at which nodes find it.
    fn set(&mut self, whose: &str) -> String {
        let descriptor = self.descriptor();
        self.add(&[
            "-add-fd",
            &format!("fd={descriptor},set={descriptor},opaque={whose}"),
        ]);
        format!("/dev/fdset/{descriptor}")
    }

    fn node(&mut self, node: &serde_json::Value) {
        self.add(&["-blockdev", &node.to_string()]);
    }

    fn frame(&mut self, line: &Line<'_>) {
        let blueprint = line.blueprint;
        self.add(&["-name", &format!("vm-{}", line.vm)]);
        self.add(&["-uuid", &blueprint.uuid]);
        self.add(&["-nodefaults", "-no-user-config", "-display", "none"]);
        // As for microVMs: the guest is hostile, and so may be a QEMU that it broke into.
        self.add(&[
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        ]);
        if blueprint.agent == GuestAgent::Aleph {
            self.add(&["-no-reboot"]);
        }
        let is_secure = matches!(blueprint.firmware, Firmware::Uefi { secure_boot: true });
        let mut machine = format!(
            "{},usb=off,vmport=off,dump-guest-core=off,smm={}",
            blueprint.machine,
            // What keeps a guest's kernel from writing the variables that it is checked by.
            if is_secure { "on" } else { "off" },
        );
        if matches!(blueprint.firmware, Firmware::Uefi { .. }) {
            machine.push_str(",pflash0=firmware,pflash1=variables");
        }
        if blueprint.numa.is_empty() {
            machine.push_str(",memory-backend=ram");
        }
        self.add(&["-machine", &machine]);
        // One that sleeps looks like one that hangs.
        self.add(&["-global", "ICH9-LPC.disable_s3=1"]);
        self.add(&["-global", "ICH9-LPC.disable_s4=1"]);
        if is_secure {
            self.add(&["-global", "driver=cfi.pflash01,property=secure,value=on"]);
        }
        // Nothing is booted but the disks, in their order.
        self.add(&["-boot", "menu=off,strict=on"]);
        self.add(&["-rtc", "base=utc"]);
    }

    fn processors(&mut self, line: &Line<'_>) -> Result<(), MachineError> {
        let accelerator = match line.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        };
        let cpu = match (&line.blueprint.cpu, line.accelerator) {
            (CpuModel::Named(name), accelerator) => named_cpu(name, accelerator),
            (CpuModel::Host, Accelerator::Kvm) => "host".into(),
            (CpuModel::Host, Accelerator::Tcg) => {
                let wanted = "the host's own processor, by KVM".into();
                return Err(MachineError::Gone { wanted });
            }
        };
        self.add(&["-accel", accelerator, "-cpu", &cpu]);
        let Blueprint { cpus, topology, .. } = line.blueprint;
        let max = line.blueprint.max_cpus();
        self.add(&[
            "-smp",
            &format!(
                "cpus={cpus},sockets={},cores={},threads={},maxcpus={max}",
                topology.sockets, topology.cores, topology.threads
            ),
        ]);
        Ok(())
    }

    fn memory(&mut self, blueprint: &Blueprint, near: Option<MemoryNode>) {
        let (memory, room) = (blueprint.memory.0, blueprint.memory_room.0);
        let mut size = format!("size={memory}M");
        if room > 0 {
            let modules = blueprint.modules();
            let most = u64::from(memory) + u64::from(room);
            size.push_str(&format!(",slots={modules},maxmem={most}M"));
        }
        self.add(&["-m", &size]);
        let (backend, how) = memory_backend(blueprint.huge_pages);
        let near = near.map_or_else(String::new, |near| {
            let policy = if near.strict { "bind" } else { "preferred" };
            format!(",host-nodes={},policy={policy}", near.number)
        });
        if blueprint.numa.is_empty() {
            self.add(&[
                "-object",
                &format!("{backend},id=ram,size={memory}M{how}{near}"),
            ]);
        }
        for (n, node) in blueprint.numa.iter().enumerate() {
            // What was said of a part comes before where its devices are.
            let bound = node.host_node.map_or_else(
                || near.clone(),
                |host| format!(",host-nodes={host},policy=bind"),
            );
            self.add(&[
                "-object",
                &format!("{backend},id=ram{n},size={}M{how}{bound}", node.memory.0),
            ]);
            let cpus: String = node.cpus.iter().map(|cpu| format!(",cpus={cpu}")).collect();
            self.add(&["-numa", &format!("node,nodeid={n},memdev=ram{n}{cpus}")]);
        }
    }

    fn channels(&mut self, blueprint: &Blueprint) {
        let [control, agent, console] = ["control", "agent", "console"].map(|id| {
            let descriptor = self.descriptor();
            self.add(&[
                "-chardev",
                &format!("socket,id={id},fd={descriptor},server=on,wait=off"),
            ]);
            id
        });
        self.add(&["-mon", &format!("chardev={control},mode=control")]);
        self.add(&["-serial", &format!("chardev:{console}")]);
        self.device("virtio-serial-pci,id=channel,addr=2,disable-legacy=on");
        let name = match blueprint.agent {
            GuestAgent::Qemu => QEMU_AGENT_PORT,
            GuestAgent::Reports | GuestAgent::Aleph => PORT_NAME,
        };
        self.device(&format!(
            "virtserialport,bus=channel.0,chardev={agent},name={name}"
        ));
        if blueprint.guest_port {
            let descriptor = self.descriptor();
            let port = format!("socket,id=guest-port,fd={descriptor},server=on,wait=off");
            self.add(&["-chardev", &port]);
            self.device(&format!(
                "virtserialport,bus=channel.0,chardev=guest-port,name={QEMU_AGENT_PORT}"
            ));
        }
        // Huge pages that a guest reports as free would count as free for the host, too: another one would take
        // them, and this guest's next touch of them be SIGBUS.
        let reporting = match blueprint.huge_pages {
            None => ",free-page-reporting=on",
            Some(_) => "",
        };
        self.device(&format!(
            "virtio-balloon-pci,id=balloon,addr=3,disable-legacy=on,deflate-on-oom=on{reporting}"
        ));
        self.add(&["-object", "rng-random,id=entropy,filename=/dev/urandom"]);
        self.device("virtio-rng-pci,rng=entropy,addr=4,disable-legacy=on");
        if blueprint.display {
            self.add(&["-vnc", "none"]);
            self.device("VGA,addr=1");
            // Its pointer is where that of whoever looks is.
            self.device("qemu-xhci,id=usb,addr=5");
            self.device("usb-tablet,bus=usb.0");
        }
    }

    fn firmware(&mut self, line: &Line<'_>) {
        match line.blueprint.firmware {
            Firmware::Bios => {
                let firmware = path_of_file(self.descriptor());
                self.add(&["-bios", &firmware]);
            }
            Firmware::Uefi { .. } => {
                for (name, read_only) in [("firmware", true), ("variables", false)] {
                    let filename = self.set(name);
                    self.node(&serde_json::json!({
                        "driver": "file",
                        "node-name": name,
                        "filename": filename,
                        "read-only": read_only,
                    }));
                }
            }
        }
        if line.blueprint.tpm {
            let descriptor = self.descriptor();
            self.add(&["-chardev", &format!("socket,id=tpm,fd={descriptor}")]);
            self.add(&["-tpmdev", "emulator,id=tpm,chardev=tpm"]);
            self.device("tpm-crb,tpmdev=tpm");
        }
        if let Some(command_line) = line.kernel {
            let (kernel, initrd) = (self.descriptor(), self.descriptor());
            self.add(&["-kernel", &path_of_file(kernel)]);
            self.add(&["-initrd", &path_of_file(initrd)]);
            self.add(&["-append", command_line]);
        }
    }

    fn ports(&mut self) {
        for slot in 0..self.slots.slots.len() {
            let (device, function) = (FIRST_PORT_DEVICE + slot / 8, slot % 8);
            let several = if function == 0 {
                ",multifunction=on"
            } else {
                ""
            };
            self.device(&format!(
                "pcie-root-port,id={},bus=pcie.0,chassis={},addr={device:x}.{function},io-reserve=0{several}",
                port(slot),
                slot + 1,
            ));
        }
    }

    /// A device's id and port.
    fn place(&mut self, device: Device) -> Result<(String, String), MachineError> {
        if self.taken.contains(&device) {
            let what = device.to_string();
            return Err(MachineError::Conflict { what });
        }
        let slot = self.slots.place(&device)?;
        let id = device.id();
        self.taken.push(device);
        Ok((id, port(slot)))
    }

    fn disk(&mut self, n: usize, disk: &Drive<'_>) -> Result<(), MachineError> {
        let serial = disk.serial;
        let (id, port) = self.place(Device::Disk(serial.to_owned()))?;
        let mut files: Vec<String> = disk.layers.iter().map(|_| self.set(&id)).collect();
        files.reverse();
        for secret in disk.secrets(&id) {
            let file = path_of_file(self.descriptor());
            self.add(&["-object", &format!("secret,id={secret},file={file}")]);
        }
        for node in disk.nodes(&id, || files.pop().unwrap_or_default()) {
            self.node(&node);
        }
        self.device(&format!(
            "virtio-blk-pci,id={id},bus={port},drive={id},serial={serial},werror=enospc,rerror=report,bootindex={}",
            n + 1
        ));
        Ok(())
    }

    fn nic(&mut self, mac: [u8; 6], queues: usize) -> Result<(), MachineError> {
        let queues: Vec<String> = (0..queues).map(|_| self.descriptor().to_string()).collect();
        let (queues, multi) = match &queues[..] {
            [one] => (format!("fd={one}"), String::new()),
            several => (
                format!("fds={}", several.join(":")),
                // One for each end of each queue, one for changes, one for control.
                format!(",mq=on,vectors={}", 2 * several.len() + 2),
            ),
        };
        self.virtio_net(mac, &format!("tap,{queues},vhost=off"), &multi)
    }

    fn link(&mut self, mac: [u8; 6]) -> Result<(), MachineError> {
        let descriptor = self.descriptor();
        self.virtio_net(mac, &format!("socket,fd={descriptor}"), "")
    }

    fn virtio_net(&mut self, mac: [u8; 6], end: &str, multi: &str) -> Result<(), MachineError> {
        let (id, port) = self.place(Device::Nic(mac))?;
        self.add(&["-netdev", &format!("{end},id={id}")]);
        // Nothing is booted from a network.
        self.device(&format!(
            "virtio-net-pci,id={id},bus={port},netdev={id},mac={},romfile={multi}",
            mac_text(mac)
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::blueprint::Wanted;
    use super::super::topology::NumaNode;
    use super::*;
    use crate::qemu::block::Kind;
    use aleph_types::MiB;

    fn blueprint(wanted: &Wanted, accelerator: Accelerator) -> Blueprint {
        let uuid = "01234567-89ab-4def-8123-456789abcdef";
        Blueprint::draw(wanted, "pc-q35-7.2", accelerator, uuid).unwrap()
    }

    fn line<'a>(blueprint: &'a Blueprint, devices: &'a HostDevices) -> Line<'a> {
        Line {
            vm: VmId::from_bits(0x0123_4abc).unwrap(),
            accelerator: Accelerator::Tcg,
            blueprint,
            kernel: None,
            disks: &[],
            nics: &[],
            links: &[],
            devices,
        }
    }

    fn lines(line: &Line<'_>) -> String {
        argv(line).unwrap().join("\n").replace("\n-", "\n\n-")
    }

    #[test]
    fn a_small_one_by_seabios() {
        let wanted = Wanted {
            firmware: Firmware::Bios,
            spare_slots: 1,
            ..Wanted::default()
        };
        let blueprint = blueprint(&wanted, Accelerator::Tcg);
        let disks = [Drive::raw("root", false)];
        insta::assert_snapshot!(lines(&Line {
            disks: &disks,
            ..line(&blueprint, &HostDevices::default())
        }));
    }

    #[test]
    fn one_with_everything() {
        let node = |cpus: &[u16], host| NumaNode {
            cpus: cpus.to_vec(),
            memory: MiB(1024),
            host_node: host,
        };
        let mac = [0x52, 0x54, 0, 0xab, 0xcd, 1];
        let wanted = Wanted {
            cpus: 2,
            cpu_room: 2,
            memory: MiB(2048),
            memory_room: MiB(1024),
            numa: vec![node(&[0, 1], Some(0)), node(&[2, 3], None)],
            huge_pages: Some(HugePages::Size2M),
            firmware: Firmware::Uefi { secure_boot: true },
            tpm: true,
            display: true,
            devices: vec![
                Device::Disk("root".into()),
                Device::Nic(mac),
                Device::Disk("data".into()),
            ],
            spare_slots: 6,
            ..Wanted::default()
        };
        let blueprint = blueprint(&wanted, Accelerator::Kvm);
        let kind = |is_qcow2| Kind {
            is_encrypted: false,
            is_qcow2,
            is_device: false,
        };
        let disks = [
            Drive {
                layers: vec![kind(true), kind(false)],
                ..Drive::raw("root", false)
            },
            Drive::raw("seed", true),
            Drive::raw("data", false),
        ];
        let devices = HostDevices::default();
        let line = Line {
            accelerator: Accelerator::Kvm,
            disks: &disks,
            nics: &[(mac, 2)],
            ..line(&blueprint, &devices)
        };
        insta::assert_snapshot!(lines(&line));
        // What was recorded gives the same line, byte for byte.
        let record = serde_json::to_vec(&blueprint).unwrap();
        let replayed: Blueprint = serde_json::from_slice(&record).unwrap();
        let again = Line {
            blueprint: &replayed,
            ..line
        };
        assert_eq!(argv(&again).unwrap(), argv(&line).unwrap());
    }

    #[test]
    fn one_with_our_agent_boots_a_kernel_that_it_is_given() {
        let wanted = Wanted {
            agent: GuestAgent::Aleph,
            firmware: Firmware::Bios,
            spare_slots: 2,
            ..Wanted::default()
        };
        let blueprint = blueprint(&wanted, Accelerator::Tcg);
        let disks = [Drive::raw("rootfs", true)];
        insta::assert_snapshot!(lines(&Line {
            kernel: Some("quiet"),
            disks: &disks,
            links: &[[0x52, 0x54, 0, 0xab, 0xcd, 1]],
            ..line(&blueprint, &HostDevices::default())
        }));
    }

    #[test]
    fn memory_is_on_the_node_of_the_devices() {
        let near = |strict| HostDevices {
            memory_node: Some(MemoryNode { number: 1, strict }),
            ..HostDevices::default()
        };
        let memory = |wanted: &Wanted, devices: &HostDevices| -> Vec<String> {
            let blueprint = blueprint(wanted, Accelerator::Tcg);
            let argv = argv(&line(&blueprint, devices)).unwrap();
            let backends = argv
                .into_iter()
                .filter(|word| word.starts_with("memory-backend"));
            backends.collect()
        };
        let plain = Wanted::default();
        assert_eq!(
            memory(&plain, &near(true)),
            ["memory-backend-ram,id=ram,size=512M,host-nodes=1,policy=bind"]
        );
        assert_eq!(
            memory(&plain, &near(false)),
            ["memory-backend-ram,id=ram,size=512M,host-nodes=1,policy=preferred"]
        );
        let part = |cpus: &[u16], host_node| NumaNode {
            cpus: cpus.to_vec(),
            memory: MiB(256),
            host_node,
        };
        let parted = Wanted {
            cpus: 2,
            huge_pages: Some(HugePages::Size2M),
            numa: vec![part(&[0], Some(0)), part(&[1], None)],
            ..Wanted::default()
        };
        let memory = memory(&parted, &near(true));
        let ends = memory
            .iter()
            .map(|word| word.rsplit_once("prealloc=on,").unwrap().1);
        assert_eq!(
            ends.collect::<Vec<_>>(),
            ["host-nodes=0,policy=bind", "host-nodes=1,policy=bind"]
        );
    }

    #[test]
    fn huge_pages_are_not_reported_as_free() {
        for (huge_pages, reports) in [
            (None, true),
            (Some(HugePages::Size2M), false),
            (Some(HugePages::Size1G), false),
        ] {
            let wanted = Wanted {
                memory: MiB(1024),
                huge_pages,
                ..Wanted::default()
            };
            let blueprint = blueprint(&wanted, Accelerator::Tcg);
            let argv = argv(&line(&blueprint, &HostDevices::default())).unwrap();
            let mut words = argv.iter();
            let balloon = words.find(|word| word.starts_with("virtio-balloon-pci"));
            let balloon = balloon.unwrap();
            assert!(balloon.contains("deflate-on-oom=on"), "{balloon}");
            assert_eq!(
                balloon.contains("free-page-reporting"),
                reports,
                "{huge_pages:?}"
            );
        }
    }

    #[test]
    fn a_named_processor_has_the_addresses_of_the_host() {
        let cpu = |name: &str, accelerator| {
            let wanted = Wanted {
                cpu: Some(name.into()),
                ..Wanted::default()
            };
            let blueprint = blueprint(&wanted, accelerator);
            assert_eq!(blueprint.cpu, CpuModel::Named(name.into()), "as recorded");
            let devices = HostDevices::default();
            let argv = argv(&Line {
                accelerator,
                ..line(&blueprint, &devices)
            })
            .unwrap();
            let mut words = argv.into_iter().skip_while(|word| word != "-cpu");
            words.nth(1).unwrap()
        };
        assert_eq!(cpu("EPYC", Accelerator::Kvm), "EPYC,host-phys-bits=on");
        assert_eq!(cpu("EPYC", Accelerator::Tcg), "EPYC");
        // Who said it otherwise is not overruled.
        let said = "EPYC,phys-bits=43";
        assert_eq!(cpu(said, Accelerator::Kvm), said);
    }

    #[test]
    fn what_cannot_be_built_is_refused_in_words() {
        let wanted = Wanted {
            spare_slots: 1,
            ..Wanted::default()
        };
        let devices = HostDevices::default();
        let own = blueprint(&wanted, Accelerator::Tcg);
        let disks = [Drive::raw("a", true), Drive::raw("b", true)];
        let said = |line: &Line<'_>| argv(line).unwrap_err().to_string();
        let two = Line {
            disks: &disks,
            ..line(&own, &devices)
        };
        assert_eq!(said(&two), "all 1 slots of the machine are taken");
        let same = [Drive::raw("a", true), Drive::raw("a", true)];
        let twice = Line {
            disks: &same,
            ..line(&own, &devices)
        };
        assert_eq!(said(&twice), "the machine has a disk \"a\" already");
        let host = blueprint(&wanted, Accelerator::Kvm);
        assert!(said(&line(&host, &devices)).contains("by KVM"));
    }
}
