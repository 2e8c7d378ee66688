//! QEMU's command line, as a pure function of what a VM is to be.
//!
//! Every file is handed over as an open descriptor, in a fixed order from
//! [`crate::process::FIRST_FILE`] on, so that the process needs no rights to any path and the
//! same VM always gives the same line. What the line leaves out is as much part of it: no
//! default devices, no user configuration, no display, and no network but the queues it is given.

use super::block::Drive;
use crate::accel::Accelerator;
use crate::process::{FIRST_FILE, path_of_file};
use aleph_guest_proto::PORT_NAME;
use aleph_types::{Resources, VmId};

/// The order in which descriptors are handed over: these, what the guest begins with (kernel and
/// initramfs, or a state), disks, the queues of network devices, the sockets of links, and the file
/// of its memory. In the place of disks and memory, one that is launched ahead has the folder in
/// which it finds them.
#[derive(Debug, Clone, Copy)]
enum File {
    Control,
    Agent,
    Console,
    Others,
}

impl File {
    fn descriptor(self) -> i32 {
        FIRST_FILE + self as i32
    }
}

/// What a guest begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin<'a> {
    /// With a kernel that has this command line.
    Boot(&'a str),
    /// With the state of another guest's devices.
    Restore,
    /// The same, once it is known whose: until then QEMU waits, before it makes its machine. What
    /// comes late is said over its monitor.
    Ahead,
}

/// Where a guest's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ram {
    /// With QEMU alone.
    Own,
    /// In a file that takes what the guest writes.
    Shared,
    /// In a file, but for what the guest writes.
    Private,
}

/// Where QEMU finds the state that it restores, as `migrate-incoming` takes it.
#[must_use]
pub fn state_uri() -> String {
    format!("fd:{}", File::Others.descriptor())
}

/// The path of a file in the folder of one that is launched ahead.
pub(super) fn late_path(name: &str) -> String {
    format!("{}/{name}", path_of_file(File::Others.descriptor() + 1))
}

/// The descriptor of a network device's queue of one that is launched ahead.
pub(super) fn late_queue(nic: usize) -> i32 {
    let nic = i32::try_from(nic).unwrap_or(i32::MAX);
    (File::Others.descriptor() + 2).saturating_add(nic)
}

/// What decides the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine<'a> {
    /// Which VM.
    pub vm: VmId,
    /// What runs its instructions.
    pub accelerator: Accelerator,
    /// Its CPUs and memory.
    pub resources: Resources,
    /// What it begins with.
    pub begin: Begin<'a>,
    /// Where its memory is.
    pub ram: Ram,
    /// Its block devices.
    pub disks: &'a [Drive<'a>],
    /// Hardware address of each network device, and how many queues it has.
    pub nics: &'a [([u8; 6], usize)],
    /// Hardware address of each network device whose other end is a datagram socket.
    pub links: &'a [[u8; 6]],
}

/// The emulated processor under TCG: x86-64-v2, and as quick as the plainest. `max` has AVX2 too
/// and takes 160 to 370 ms longer to boot.
///
/// `arat` says that the timer of an idle processor goes on. Without it Linux has no timer that it
/// can set for one moment on this machine, and ticks 250 times a second for ever: 2 % of a core
/// for each VM that does nothing.
pub(super) const TCG_CPU: &str = "Nehalem-v1,+arat";

/// The arguments, without the program's name.
#[must_use]
pub fn argv(machine: &Machine<'_>) -> Vec<String> {
    let Machine {
        vm,
        accelerator,
        resources,
        begin,
        ram,
        disks,
        nics,
        links,
    } = machine;
    let mut argv: Vec<String> = Vec::with_capacity(48);
    let mut add = |words: &[&str]| argv.extend(words.iter().map(|w| (*w).to_owned()));

    add(&["-name", &format!("vm-{vm}")]);
    add(&[
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    // A guest is paused when it is written down; what goes on from that runs at once.
    add(&["-global", "migration.store-global-state=off"]);
    // The guest is hostile, and so may be a QEMU that it broke into: no setuid, no programs
    // started, no priorities changed, no obsolete system calls.
    add(&[
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]);
    // ACPI stays on: Debian's kernel finds virtio-mmio devices by it, and in no other way.
    let is_ahead = *begin == Begin::Ahead;
    let backend = match ram {
        Ram::Shared | Ram::Private if !is_ahead => ",memory-backend=ram",
        _ => "",
    };
    add(&["-machine", &format!("microvm,acpi=on{backend}")]);
    let (accelerator, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg", TCG_CPU),
    };
    add(&["-accel", accelerator, "-cpu", cpu]);
    add(&[
        "-smp",
        &resources.cpus.to_string(),
        "-m",
        &format!("{}M", resources.memory.0),
    ]);
    let mut descriptors = File::Others.descriptor()..;
    let mut next = move || descriptors.next().unwrap_or(i32::MAX);
    match begin {
        Begin::Boot(command_line) => {
            add(&["-kernel", &path_of_file(next())]);
            add(&["-initrd", &path_of_file(next())]);
            add(&["-append", command_line]);
        }
        // What was booted is in the memory. The state is asked for over QMP, once it is said what
        // is in it.
        Begin::Restore => {
            add(&["-incoming", "defer"]);
            next();
        }
        Begin::Ahead => {
            add(&["-preconfig", "-incoming", "defer"]);
            let (_state, _folder) = (next(), next());
        }
    }

    let server = |id: &str, file: File| {
        format!("socket,id={id},fd={},server=on,wait=off", file.descriptor())
    };
    add(&["-chardev", &server("control", File::Control)]);
    add(&["-mon", "chardev=control,mode=control"]);
    add(&[
        "-chardev",
        &server("console", File::Console),
        "-serial",
        "chardev:console",
    ]);
    add(&[
        "-chardev",
        &server("agent", File::Agent),
        "-device",
        "virtio-serial-device",
    ]);
    add(&[
        "-device",
        &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
    ]);

    for disk in *disks {
        let serial = disk.serial;
        if !is_ahead {
            let descriptors: Vec<i32> = disk.layers.iter().map(|_| next()).collect();
            for descriptor in &descriptors {
                add(&["-add-fd", &format!("fd={descriptor},set={descriptor}")]);
            }
            for secret in disk.secrets(serial) {
                let file = path_of_file(next());
                add(&["-object", &format!("secret,id={secret},file={file}")]);
            }
            let mut files = descriptors.iter().map(|set| format!("/dev/fdset/{set}"));
            for node in disk.nodes(serial, || files.next().unwrap_or_default()) {
                add(&["-blockdev", &node.to_string()]);
            }
        }
        add(&[
            "-device",
            &format!("virtio-blk-device,drive={serial},serial={serial}"),
        ]);
    }
    for (n, (mac, queues)) in nics.iter().enumerate() {
        let queues: Vec<String> = (0..*queues).map(|_| next().to_string()).collect();
        // The device has no vectors to name: on this bus all queues share one interrupt.
        let (queues, multi) = match &queues[..] {
            [one] => (format!("fd={one}"), ""),
            several => (format!("fds={}", several.join(":")), ",mq=on"),
        };
        // Without vhost the packets of a hostile guest meet QEMU, which is locked up, and not
        // the host's kernel. It also would take one more descriptor, for a device that only
        // root may open.
        //
        // A device that tells whether its link is up makes Linux wait a second for that, in
        // which IPv6 is not there. Ours always is.
        if !is_ahead {
            add(&["-netdev", &format!("tap,id=net{n},{queues},vhost=off")]);
        }
        add(&[
            "-device",
            &format!(
                "virtio-net-device,netdev=net{n},mac={}{multi},status=off",
                mac_text(*mac)
            ),
        ]);
    }
    for (n, mac) in links.iter().enumerate() {
        add(&["-netdev", &format!("socket,id=link{n},fd={}", next())]);
        add(&[
            "-device",
            &format!(
                "virtio-net-device,netdev=link{n},mac={},status=off",
                mac_text(*mac)
            ),
        ]);
    }
    let share = match ram {
        _ if is_ahead => return argv,
        Ram::Own => return argv,
        Ram::Shared => "on",
        Ram::Private => "off",
    };
    add(&[
        "-object",
        &format!(
            "memory-backend-file,id=ram,size={}M,mem-path={},share={share}",
            resources.memory.0,
            path_of_file(next())
        ),
    ]);
    argv
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::MiB;

    fn lines(machine: &Machine<'_>) -> String {
        argv(machine).join("\n").replace("\n-", "\n\n-")
    }

    fn drives(disks: &'static [(&'static str, bool)]) -> &'static [Drive<'static>] {
        let drives = disks.iter();
        let drives = drives.map(|(serial, read_only)| Drive::raw(serial, *read_only));
        drives.collect::<Vec<_>>().leak()
    }

    fn machine() -> Machine<'static> {
        Machine {
            vm: VmId::from_bits(0x0123_4abc).unwrap(),
            accelerator: Accelerator::Tcg,
            resources: Resources::default(),
            begin: Begin::Boot("quiet"),
            ram: Ram::Own,
            disks: drives(&[("rootfs", true)]),
            nics: &[],
            links: &[],
        }
    }

    #[test]
    fn the_smallest_microvm() {
        insta::assert_snapshot!(lines(&machine()));
    }

    #[test]
    fn a_microvm_with_kvm_cpus_and_a_scratch_disk() {
        insta::assert_snapshot!(lines(&Machine {
            accelerator: Accelerator::Kvm,
            resources: Resources {
                cpus: 4,
                memory: MiB(2048),
                disk: MiB(10_240),
                ..Resources::default()
            },
            disks: drives(&[("rootfs", true), ("scratch", false)]),
            ..machine()
        }));
    }

    #[test]
    fn a_template_and_a_clone_of_it() {
        let template = Machine {
            ram: Ram::Shared,
            ..machine()
        };
        insta::assert_snapshot!(lines(&template));
        insta::assert_snapshot!(lines(&Machine {
            begin: Begin::Restore,
            ram: Ram::Private,
            ..template
        }));
    }

    #[test]
    fn one_that_is_launched_ahead_with_a_network_and_a_link() {
        insta::assert_snapshot!(lines(&Machine {
            begin: Begin::Ahead,
            ram: Ram::Private,
            disks: drives(&[("rootfs", true), ("task", true)]),
            nics: &[([0x52, 0x54, 0, 0, 0, 1], 1)],
            links: &[[0x52, 0x54, 0, 0xab, 0xcd, 1]],
            ..machine()
        }));
        assert_eq!(late_path("memory"), "/proc/self/fd/7/memory");
        assert_eq!(late_queue(0), 8);
    }

    #[test]
    fn a_microvm_with_a_link() {
        insta::assert_snapshot!(lines(&Machine {
            ram: Ram::Shared,
            links: &[[0x52, 0x54, 0, 0xab, 0xcd, 1]],
            ..machine()
        }));
    }

    #[test]
    fn a_microvm_with_networks() {
        insta::assert_snapshot!(lines(&Machine {
            disks: drives(&[("rootfs", true), ("scratch", false)]),
            nics: &[
                ([0x52, 0x54, 0, 0xab, 0xcd, 1], 1),
                ([0x52, 0x54, 0, 0xab, 0xcd, 2], 2),
            ],
            ..machine()
        }));
    }
}
