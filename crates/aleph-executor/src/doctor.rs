//! What a host lacks for running VMs, and the command that mends it.
//!
//! [`examine`] reads the host; each finding is then a pure function of what was read. Nothing is
//! changed, and nothing is started but `qemu-system-x86_64 -version`, `firecracker --version`,
//! `jailer --version` and `nft list chains`.

use crate::accel::{self, Accelerator, Device, Virtualisation};
use crate::cgroup::mount_point;
use crate::drivers::choice::{self, Choice, Facts, Hypervisor, HypervisorError};
use crate::executor::ExecutorConfig;
use crate::firecracker::program::Program;
use crate::gpu::{self, GpuConfig, GpuError, Gpus, HostTree};
use crate::host;
use crate::hypervisor::LaunchError;
use crate::paths::Paths;
use crate::qemu::probe::{MICROVM, Qemu, find, probe};
use aleph_types::{Classify, MiB};
use aleph_vm_networking::foreign::obstacles;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, with less.
    Warning,
    /// Without this the node can run no microVM.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, as a stable `snake_case` name.
    pub check: &'static str,
    /// How grave it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// The command that mends it, where there is one.
    pub mend: Option<String>,
}

impl Finding {
    /// A finding that is as it should be.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Ok,
            found: found.into(),
            mend: None,
        }
    }

    /// A finding with which the node works less well.
    pub fn warning(check: &'static str, found: impl Into<String>, mend: &str) -> Self {
        let mend = Some(mend.to_owned()).filter(|m| !m.is_empty());
        Self {
            check,
            severity: Severity::Warning,
            found: found.into(),
            mend,
        }
    }

    /// A finding with which the node does not work.
    pub fn failure(check: &'static str, found: impl Into<String>, mend: &str) -> Self {
        Self {
            severity: Severity::Failure,
            ..Self::warning(check, found, mend)
        }
    }
}

/// The least free memory with which a smallest VM starts, with its overhead.
const LEAST_MEMORY: MiB = MiB(192);
/// The least free disk with which images can be built.
const LEAST_DISK: MiB = MiB(1024);

/// Looks at everything but the kernel bundle, which is the caller's to add.
#[must_use]
pub fn examine(paths: &Paths, config: &ExecutorConfig) -> Vec<Finding> {
    let virtualisation = host::virtualisation();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroup = mount_point(&mountinfo).map(|at| {
        let controllers = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
        (at.display().to_string(), controllers.trim().to_owned())
    });
    let cache = paths.run().join("qemu.json");
    let facts = Facts::read(paths, config);
    let choice = choice::choose(config.hypervisor, &facts);
    let runs_qemu = !matches!(
        &choice,
        Ok(Choice {
            hypervisor: Hypervisor::Firecracker,
            ..
        }) | Err(_)
    );
    let mut findings = vec![
        user(rustix::process::geteuid().is_root()),
        cpu(virtualisation),
        kvm(
            virtualisation,
            accel::choose(config.accelerator, virtualisation),
        ),
        hypervisor(&choice),
        qemu(probe(&config.qemu, &cache), runs_qemu),
        firecracker(&facts),
        program("nftables", "nft", installed("nft")),
        tun(Path::new("/dev/net/tun").exists()),
        cgroups(
            cgroup
                .as_ref()
                .map(|(at, controllers)| (at.as_str(), controllers.as_str())),
        ),
    ];
    // Only root may ask; who may not hears of it above.
    findings.extend(obstacles().unwrap_or_default().iter().map(|obstacle| {
        let found = format!("{obstacle}, those of VMs too");
        Finding::warning("firewall", found, &obstacle.mend())
    }));
    let tree = HostTree::default();
    findings.extend(gpus(&tree, &config.gpu));
    match host::capacity(paths.state()) {
        Ok(host) => findings.extend([memory(host.available), disk(host.disk, paths.state())]),
        Err(error) => {
            findings.push(Finding::failure(
                "memory",
                format!("cannot be read: {error}"),
                "",
            ));
        }
    }
    findings
}

fn installed(program: &str) -> bool {
    find(Path::new(program)).is_ok()
}

fn user(root: bool) -> Finding {
    if root {
        Finding::ok(
            "user",
            "root: each VMM gets an unprivileged user of its own",
        )
    } else {
        let found = "not root: VMMs run as this user, without a cgroup";
        Finding::warning("user", found, "sudo aleph …")
    }
}

fn cpu(host: Virtualisation) -> Finding {
    if host.cpu {
        Finding::ok("cpu", "virtualises (vmx or svm)")
    } else {
        let found = "no vmx or svm among the processor's flags: guests are emulated";
        Finding::warning("cpu", found, "")
    }
}

fn kvm(host: Virtualisation, chosen: Accelerator) -> Finding {
    match (host.device, host.cpu, chosen) {
        (Device::Opens, true, Accelerator::Kvm) => Finding::ok("kvm", "/dev/kvm opens: used"),
        (Device::Opens, false, Accelerator::Kvm) => Finding::warning(
            "kvm",
            "/dev/kvm is used because --accel says so; a guest may hang on this processor",
            "",
        ),
        (Device::Opens, false, Accelerator::Tcg) => Finding::warning(
            "kvm",
            "/dev/kvm only opens: on this processor a guest would hang, so it is not used",
            "",
        ),
        (Device::Opens, true, Accelerator::Tcg) => {
            Finding::ok("kvm", "/dev/kvm opens, and --accel says not to use it")
        }
        (Device::Forbidden, ..) => Finding::warning(
            "kvm",
            "/dev/kvm may not be opened by this user",
            "sudo usermod -aG kvm \"$USER\"",
        ),
        (Device::Missing, true, _) => Finding::warning(
            "kvm",
            "there is no /dev/kvm although the processor virtualises",
            "sudo modprobe kvm_intel || sudo modprobe kvm_amd",
        ),
        (Device::Missing, false, _) => Finding::warning("kvm", "there is no /dev/kvm", ""),
    }
}

fn hypervisor(choice: &Result<Choice, HypervisorError>) -> Finding {
    match choice {
        Ok(Choice {
            hypervisor,
            why,
            doubt,
        }) => {
            let name = match hypervisor {
                Hypervisor::Firecracker => "Firecracker",
                Hypervisor::Qemu | Hypervisor::Auto => "QEMU",
            };
            let found = format!("microVMs run on {name}: {why}");
            match doubt {
                None => Finding::ok("hypervisor", found),
                Some(doubt) => {
                    Finding::warning("hypervisor", format!("{found}, although {doubt}"), "")
                }
            }
        }
        Err(error) => {
            let mend = match error {
                HypervisorError::Programs { .. } => SETUP_FIRECRACKER.into(),
                HypervisorError::Kvm { .. } => String::new(),
                HypervisorError::Jail(error) => error.advice().unwrap_or_default(),
            };
            Finding::failure("hypervisor", crate::vm::chain(error), &mend)
        }
    }
}

fn qemu(probed: Result<Qemu, LaunchError>, needed: bool) -> Finding {
    const INSTALL: &str = "sudo apt-get install -y --no-install-recommends qemu-system-x86";
    let missing = |found: String| match needed {
        true => Finding::failure("qemu", found, INSTALL),
        false => Finding::warning("qemu", found, INSTALL),
    };
    match probed {
        Ok(qemu) if qemu.require(MICROVM).is_err() => missing(format!(
            "{} {} lacks the machine microvm",
            qemu.program.display(),
            qemu.version
        )),
        Ok(qemu) => {
            let q35 = qemu.machines.iter().any(|m| m == "q35");
            let machines = if q35 { "microvm, q35" } else { "microvm" };
            Finding::ok("qemu", format!("QEMU {} with {machines}", qemu.version))
        }
        Err(error) => missing(crate::vm::chain(&error)),
    }
}

/// What installs both programs of Firecracker.
const SETUP_FIRECRACKER: &str = "sudo aleph setup firecracker";

fn firecracker(facts: &Facts) -> Finding {
    let said = |program: &Result<Program, LaunchError>, name: &str| match program {
        Ok(program) => format!("{name} {} at {}", program.version, program.path.display()),
        Err(error) => crate::vm::chain(error),
    };
    let found = said(&facts.firecracker, "Firecracker");
    match (&facts.firecracker, &facts.jailer) {
        (Err(_), None) => Finding::warning("firecracker", found, SETUP_FIRECRACKER),
        (Ok(_), None) => {
            let found = format!("{found}, WITHOUT the jailer (jailed = false)");
            Finding::warning("firecracker", found, "")
        }
        (firecracker, Some(jailer)) => {
            let found = format!("{found}, {}", said(jailer, "jailer"));
            match (firecracker, jailer) {
                (Ok(program), Ok(jailer)) if program.version == jailer.version => {
                    Finding::ok("firecracker", found)
                }
                (Ok(_), Ok(_)) => {
                    let found = format!("{found}: the two have to be of one release");
                    Finding::warning("firecracker", found, SETUP_FIRECRACKER)
                }
                _ => Finding::warning("firecracker", found, SETUP_FIRECRACKER),
            }
        }
    }
}

fn program(check: &'static str, name: &str, there: bool) -> Finding {
    if there {
        Finding::ok(check, format!("{name} is installed"))
    } else {
        let mend = format!("sudo apt-get install -y {check}");
        Finding::warning(
            check,
            format!("{name} is not installed: VMs have no network"),
            &mend,
        )
    }
}

fn tun(there: bool) -> Finding {
    if there {
        Finding::ok("tun", "/dev/net/tun is there")
    } else {
        let found = "there is no /dev/net/tun: VMs have no network";
        Finding::warning("tun", found, "sudo modprobe tun")
    }
}

fn cgroups(mount: Option<(&str, &str)>) -> Finding {
    match mount {
        None => Finding::warning(
            "cgroup",
            "cgroup v2 is not mounted: VMMs are neither grouped nor limited",
            "sudo mount -t cgroup2 none /sys/fs/cgroup",
        ),
        Some((at, controllers)) => {
            let there: Vec<&str> = controllers.split_ascii_whitespace().collect();
            let missing: Vec<&str> = ["cpu", "io", "memory", "pids"]
                .into_iter()
                .filter(|c| !there.contains(c))
                .collect();
            if missing.is_empty() {
                return Finding::ok("cgroup", format!("v2 at {at} with {controllers}"));
            }
            let missing = missing.join(", ");
            Finding::warning(
                "cgroup",
                format!("v2 at {at} without {missing}: VMMs are grouped, not limited"),
                "",
            )
        }
    }
}

/// Nothing of a host without GPUs, unless jobs are to have some.
fn gpus(tree: &HostTree, config: &GpuConfig) -> Option<Finding> {
    let warning = |found: String, mend: Option<String>| {
        Finding::warning("gpu", found, &mend.unwrap_or_default())
    };
    let gpus = Gpus::new(tree.clone(), config.clone());
    let inventory = match gpus.inventory() {
        Ok(inventory) => inventory,
        Err(error) => return Some(warning(crate::vm::chain(&error), error.advice())),
    };
    let count = inventory.gpus().len();
    let there = match count {
        0 if !config.enabled => return None,
        0 => {
            return Some(warning(
                "enable_gpu is on, and there is no GPU".into(),
                None,
            ));
        }
        1 => "1 GPU".to_owned(),
        count => format!("{count} GPUs"),
    };
    if !config.enabled {
        let found = format!("{there}, for the host alone: enable_gpu is off");
        return Some(Finding::ok("gpu", found));
    }
    if let Err(error) = gpus.expect_passthrough() {
        let found = format!("{there}, and {}", crate::vm::chain(&error));
        let mend = match &error {
            GpuError::NoVfio { driver } => Some(format!("sudo modprobe {driver}")),
            other => other.advice(),
        };
        return Some(warning(found, mend));
    }
    let misfits = gpu::misfits(&inventory, &config.allowed);
    let Some((address, why)) = misfits.iter().next() else {
        return Some(Finding::ok("gpu", format!("{there} for jobs")));
    };
    let free = count - misfits.len();
    let found = format!("{there}, {free} of them free for jobs; {address} {why}");
    Some(match free {
        0 => warning(found, Some("aleph gpu ls".into())),
        _ => Finding::ok("gpu", found),
    })
}

fn memory(available: MiB) -> Finding {
    let found = format!("{available} available");
    if available < LEAST_MEMORY {
        Finding::failure("memory", format!("{found}, a VM needs {LEAST_MEMORY}"), "")
    } else {
        Finding::ok("memory", found)
    }
}

fn disk(free: MiB, state: &Path) -> Finding {
    let found = format!("{free} free at {}", state.display());
    if free < LEAST_DISK {
        Finding::warning(
            "disk",
            format!("{found}, building images needs {LEAST_DISK}"),
            "",
        )
    } else {
        Finding::ok("disk", found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_only_opens_is_told_from_one_that_works() {
        let lies = Virtualisation {
            cpu: false,
            device: Device::Opens,
        };
        let finding = kvm(lies, Accelerator::Tcg);
        assert!(finding.severity == Severity::Warning && finding.found.contains("only opens"));
        let works = Virtualisation {
            cpu: true,
            device: Device::Opens,
        };
        assert_eq!(kvm(works, Accelerator::Kvm).severity, Severity::Ok);
    }

    #[test]
    fn what_the_node_cannot_do_without_fails() {
        let missing = |needed| {
            let error = LaunchError::Missing {
                program: "qemu".into(),
            };
            qemu(Err(error), needed)
        };
        assert_eq!(missing(false).severity, Severity::Warning);
        let missing = missing(true);
        assert_eq!(missing.severity, Severity::Failure);
        assert!(
            missing
                .mend
                .is_some_and(|mend| mend.contains("apt-get install"))
        );
        assert_eq!(memory(MiB(100)).severity, Severity::Failure);
    }

    #[test]
    fn it_says_which_hypervisor_and_what_of_firecracker_is_there() {
        let program = |name: &str, patch| {
            Ok(Program {
                path: name.into(),
                version: crate::firecracker::Version::new(1, 16, patch),
            })
        };
        let facts = |jailer| Facts {
            virtualisation: Virtualisation {
                cpu: false,
                device: Device::Opens,
            },
            firecracker: program("/opt/firecracker", 1),
            jailer,
            is_root: true,
            ..Facts::default()
        };
        let both = facts(Some(program("/opt/jailer", 1)));
        let finding = firecracker(&both);
        assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
        assert!(
            finding
                .found
                .contains("Firecracker 1.16.1 at /opt/firecracker")
        );
        let finding = hypervisor(&choice::choose(Hypervisor::Auto, &both));
        assert_eq!(finding.severity, Severity::Ok);
        assert!(
            finding.found.contains("on QEMU: Firecracker needs KVM"),
            "{finding:?}"
        );
        let finding = hypervisor(&choice::choose(Hypervisor::Firecracker, &both));
        assert_eq!(finding.severity, Severity::Warning);
        assert!(
            finding
                .found
                .contains("on Firecracker: it is set, although")
        );

        let missing = LaunchError::Missing {
            program: "jailer".into(),
        };
        let half = facts(Some(Err(missing)));
        let finding = firecracker(&half);
        assert_eq!(finding.severity, Severity::Warning);
        assert!(
            finding.found.contains("jailer is not installed"),
            "{finding:?}"
        );
        assert_eq!(finding.mend.as_deref(), Some(SETUP_FIRECRACKER));
        let finding = hypervisor(&choice::choose(Hypervisor::Firecracker, &half));
        assert_eq!(finding.severity, Severity::Failure);
        assert!(
            finding.found.contains("jailer is not installed"),
            "{finding:?}"
        );

        let finding = firecracker(&facts(Some(program("jailer", 0))));
        assert!(finding.found.contains("one release"), "{finding:?}");
        let finding = firecracker(&facts(None));
        assert!(finding.found.contains("WITHOUT"), "{finding:?}");
    }

    #[test]
    fn gpus_are_for_jobs_where_all_that_takes_is_there() {
        const ONE: &str = "0000:01:00.0 root 10de:2335 class=030200 group=1 reset=flr\n";
        let look = |description: &str, enabled, change: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            aleph_testkit::expand_pci_tree(description, dir.path()).unwrap();
            change(dir.path());
            let config = GpuConfig {
                enabled,
                ..GpuConfig::default()
            };
            gpus(&HostTree::recorded(dir.path()), &config)
        };
        let as_it_is = |_: &Path| ();
        assert_eq!(look("", false, &as_it_is), None);
        let none = look("", true, &as_it_is).unwrap();
        assert!(none.found.contains("there is no GPU"), "{none:?}");

        let off = look(ONE, false, &as_it_is).unwrap();
        assert!(off.severity == Severity::Ok && off.found.contains("enable_gpu is off"));
        assert_eq!(look(ONE, true, &as_it_is).unwrap().found, "1 GPU for jobs");
        let no_iommu = look(&ONE.replace("group=1", ""), true, &as_it_is).unwrap();
        assert!(no_iommu.mend.unwrap().contains("intel_iommu=on"));
        let no_vfio = look(ONE, true, &|root| {
            fs::remove_dir(root.join("sys/bus/pci/drivers/vfio-pci")).unwrap();
        });
        assert_eq!(
            no_vfio.unwrap().mend.as_deref(),
            Some("sudo modprobe vfio-pci")
        );
        let all_taken = look(&ONE.replace("reset=flr", ""), true, &as_it_is).unwrap();
        assert_eq!(all_taken.severity, Severity::Warning);
        assert!(
            all_taken.found.contains("0000:01:00.0 cannot be reset"),
            "{all_taken:?}"
        );
    }

    #[test]
    fn missing_controllers_are_named() {
        let finding = cgroups(Some(("/sys/fs/cgroup/unified", "cpu pids")));
        assert!(
            finding.found.contains("without io, memory"),
            "{}",
            finding.found
        );
        assert_eq!(
            cgroups(Some(("/x", "cpuset cpu io memory pids"))).severity,
            Severity::Ok
        );
        assert_eq!(cgroups(None).severity, Severity::Warning);
    }
}
