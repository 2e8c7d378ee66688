//! Which hypervisor runs a node's VMs: what its operator says, or what this host can.
//!
//! [`choose`] is pure; [`Facts::read`] reads the host and asks the programs for their versions.

use super::{FIRECRACKER, QEMU};
use crate::accel::{self, Accelerator, Device, Virtualisation};
use crate::executor::ExecutorConfig;
use crate::firecracker::Version;
use crate::firecracker::jail::JailError;
use crate::firecracker::program::{Program, Programs};
use crate::host;
use crate::hypervisor::LaunchError;
use crate::paths::Paths;
use aleph_types::{Classify, ErrorClass};
use std::fmt;
use std::str::FromStr;

/// What runs VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hypervisor {
    /// Firecracker where it works, else QEMU.
    #[default]
    Auto,
    /// QEMU's microvm machine.
    Qemu,
    /// Firecracker.
    Firecracker,
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Qemu => QEMU,
            Self::Firecracker => FIRECRACKER,
        })
    }
}

impl FromStr for Hypervisor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            QEMU => Ok(Self::Qemu),
            FIRECRACKER => Ok(Self::Firecracker),
            _ => Err(format!(
                "{text:?} is no hypervisor: write auto, qemu or firecracker"
            )),
        }
    }
}

/// What was chosen: QEMU or Firecracker, and the reason in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Never [`Hypervisor::Auto`].
    pub hypervisor: Hypervisor,
    /// A part of a sentence.
    pub why: String,
    /// Why guests may not run on it all the same.
    pub doubt: Option<&'static str>,
}

impl Choice {
    pub(super) fn qemu(why: impl Into<String>) -> Self {
        Self {
            hypervisor: Hypervisor::Qemu,
            why: why.into(),
            doubt: None,
        }
    }
}

/// What the choice depends on.
#[derive(Debug)]
pub struct Facts {
    /// What is known of the host's virtualisation.
    pub virtualisation: Virtualisation,
    /// The accelerator that was asked for.
    pub accelerator: Option<Accelerator>,
    /// Firecracker, of a version that is supported.
    pub firecracker: Result<Program, LaunchError>,
    /// The jailer; `None` where none is to be used.
    pub jailer: Option<Result<Program, LaunchError>>,
    /// Whether this process may make jails.
    pub is_root: bool,
}

impl Facts {
    /// Those of this host. Blocks while the programs say their versions.
    #[must_use]
    pub fn read(paths: &Paths, config: &ExecutorConfig) -> Self {
        let programs = config.firecracker.programs(paths.state());
        let jailer = || Programs::jailer(programs.jailer).find();
        Self {
            virtualisation: host::virtualisation(),
            accelerator: config.accelerator,
            firecracker: Programs::firecracker(programs.firecracker).find(),
            jailer: config.firecracker.jailed.then(jailer),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// What keeps VMs from running on Firecracker, if the accelerator does not.
    fn obstacle(&self) -> Option<Obstacle<'_>> {
        let program = match &self.firecracker {
            Ok(program) => program,
            Err(error) => return Some(Obstacle::Program(error)),
        };
        match &self.jailer {
            None => None,
            Some(Err(error)) => Some(Obstacle::Program(error)),
            Some(Ok(jailer)) if jailer.version != program.version => {
                Some(Obstacle::Versions(program, jailer))
            }
            Some(Ok(_)) if !self.is_root => Some(Obstacle::NotRoot),
            Some(Ok(_)) => None,
        }
    }

    /// What is wrong with this release of Firecracker, where that is known.
    fn defect(&self) -> Option<&'static str> {
        // By Firecracker's changelog the vsock device hangs; it tells of no release before 1.17 that
        // does not.
        let broken = [Version::new(1, 16, 0), Version::new(1, 16, 1)];
        let program = self.firecracker.as_ref().ok()?;
        if program.version < Version::new(1, 12, 0) {
            return Some(
                "guests of Firecracker before 1.12 cannot go on from a snapshot with a network of \
                 their own, as those of functions do: install another release, such as with aleph \
                 setup firecracker",
            );
        }
        broken.contains(&program.version).then_some(
            "Firecracker 1.16.0 and 1.16.1 take no new connection to a guest that was paused, so \
             that a node that is restarted cannot take it over: install another release, such as \
             with aleph setup firecracker",
        )
    }

    /// Why guests cannot run on the processor, or are not to.
    fn without_kvm(&self) -> Option<&'static str> {
        if accel::choose(self.accelerator, self.virtualisation) == Accelerator::Tcg {
            return Some(match self.virtualisation {
                _ if self.accelerator.is_some() => {
                    "guests are to be emulated, which Firecracker cannot"
                }
                Virtualisation {
                    device: Device::Missing,
                    ..
                } => "Firecracker needs KVM, and there is no /dev/kvm",
                Virtualisation {
                    device: Device::Forbidden,
                    ..
                } => "Firecracker needs KVM, and this user may not open /dev/kvm",
                Virtualisation {
                    device: Device::Opens,
                    ..
                } => {
                    "Firecracker needs KVM; /dev/kvm opens, but this processor does not \
                     virtualise, and a guest would hang"
                }
            });
        }
        None
    }
}

/// Of a host where nothing was looked at.
impl Default for Facts {
    fn default() -> Self {
        Self {
            virtualisation: host::virtualisation(),
            accelerator: None,
            firecracker: Err(LaunchError::Missing {
                program: FIRECRACKER.into(),
            }),
            jailer: None,
            is_root: rustix::process::geteuid().is_root(),
        }
    }
}

enum Obstacle<'a> {
    Program(&'a LaunchError),
    Versions(&'a Program, &'a Program),
    NotRoot,
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(error) => f.write_str(&crate::vm::chain(error)),
            Self::Versions(firecracker, jailer) => write!(
                f,
                "firecracker is {}, and its jailer is {}",
                firecracker.version, jailer.version
            ),
            Self::NotRoot => write!(f, "{}", JailError::NotRoot),
        }
    }
}

/// Firecracker was asked for, and cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A program is missing, or is not the right one.
    #[error("VMs are to run on Firecracker (hypervisor = \"firecracker\"), but {why}")]
    Programs {
        /// What is wrong with it.
        why: String,
    },
    /// There is no KVM.
    #[error("VMs are to run on Firecracker (hypervisor = \"firecracker\"), but {why}")]
    Kvm {
        /// What is wrong with it.
        why: &'static str,
    },
    /// There can be no jails.
    #[error("VMs are to run on Firecracker (hypervisor = \"firecracker\"), but cannot be jailed")]
    Jail(#[from] JailError),
}

impl Classify for HypervisorError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unavailable
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Programs { .. } => "hypervisor_missing",
            Self::Kvm { .. } => "accelerator_unusable",
            Self::Jail(error) => error.code(),
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Programs { .. } => Some(
                "Install both with: aleph setup firecracker. Or name firecracker and jailer in \
                 [executor.firecracker] of aleph.toml, or set hypervisor = \"qemu\" in [executor]."
                    .into(),
            ),
            Self::Kvm { .. } => Some(
                "See aleph doctor for the device, or set hypervisor = \"auto\" in [executor]."
                    .into(),
            ),
            Self::Jail(error) => error.advice(),
        }
    }
}

/// What runs VMs on a host.
///
/// # Errors
/// Where Firecracker is asked for, and something of it is missing, or the device that it needs does
/// not open. That guests run is believed then, and doubted in words; with `accel = "tcg"` so is that
/// the program needs no KVM.
pub fn choose(asked: Hypervisor, facts: &Facts) -> Result<Choice, HypervisorError> {
    let firecracker = |why: String, doubt| Choice {
        hypervisor: Hypervisor::Firecracker,
        why,
        doubt,
    };
    let opens = facts.virtualisation.device == Device::Opens;
    match asked {
        Hypervisor::Qemu => Ok(Choice::qemu("it is set")),
        Hypervisor::Firecracker => match facts.obstacle() {
            None => match facts.without_kvm() {
                Some(why) if facts.accelerator.is_none() && !opens => {
                    Err(HypervisorError::Kvm { why })
                }
                doubt => Ok(firecracker("it is set".into(), doubt.or(facts.defect()))),
            },
            Some(Obstacle::NotRoot) => Err(JailError::NotRoot.into()),
            Some(obstacle) => Err(HypervisorError::Programs {
                why: obstacle.to_string(),
            }),
        },
        Hypervisor::Auto => {
            if let Some(why) = facts.without_kvm() {
                return Ok(Choice::qemu(why));
            }
            if let (None, Some(defect)) = (facts.obstacle(), facts.defect()) {
                return Ok(Choice::qemu(defect));
            }
            Ok(match (facts.obstacle(), &facts.firecracker) {
                (None, Ok(program)) => {
                    let why = format!("KVM works, and Firecracker {} is there", program.version);
                    firecracker(why, None)
                }
                (Some(obstacle), _) => Choice::qemu(obstacle.to_string()),
                (None, Err(error)) => Choice::qemu(crate::vm::chain(error)),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKS: Virtualisation = Virtualisation {
        cpu: true,
        device: Device::Opens,
    };
    const LIES: Virtualisation = Virtualisation {
        cpu: false,
        device: Device::Opens,
    };

    fn program(name: &str, patch: u32) -> Result<Program, LaunchError> {
        Ok(Program {
            path: name.into(),
            version: Version::new(1, 15, patch),
        })
    }

    fn defective(name: &str) -> Result<Program, LaunchError> {
        of(name, Version::new(1, 16, 1))
    }

    fn of(name: &str, version: Version) -> Result<Program, LaunchError> {
        let program = program(name, 0)?;
        Ok(Program { version, ..program })
    }

    fn missing(name: &str) -> Result<Program, LaunchError> {
        Err(LaunchError::Missing {
            program: name.into(),
        })
    }

    fn good() -> Facts {
        Facts {
            virtualisation: WORKS,
            accelerator: None,
            firecracker: program("firecracker", 1),
            jailer: Some(program("jailer", 1)),
            is_root: true,
        }
    }

    #[test]
    fn auto_takes_firecracker_only_where_all_of_it_works() {
        let missing = |name| missing(name);
        let bad: [(Facts, &str); 11] = [
            (
                Facts {
                    virtualisation: LIES,
                    ..good()
                },
                "does not virtualise",
            ),
            (
                Facts {
                    virtualisation: Virtualisation {
                        device: Device::Missing,
                        ..WORKS
                    },
                    ..good()
                },
                "no /dev/kvm",
            ),
            (
                Facts {
                    virtualisation: Virtualisation {
                        device: Device::Forbidden,
                        ..WORKS
                    },
                    ..good()
                },
                "may not open",
            ),
            (
                Facts {
                    accelerator: Some(Accelerator::Tcg),
                    ..good()
                },
                "to be emulated",
            ),
            (
                Facts {
                    firecracker: missing("firecracker"),
                    ..good()
                },
                "firecracker is not installed",
            ),
            (
                Facts {
                    jailer: Some(missing("jailer")),
                    ..good()
                },
                "jailer is not installed",
            ),
            (
                Facts {
                    jailer: Some(program("jailer", 0)),
                    ..good()
                },
                "its jailer is 1.15.0",
            ),
            (
                Facts {
                    is_root: false,
                    ..good()
                },
                "need root",
            ),
            (
                Facts {
                    firecracker: Err(LaunchError::Probe {
                        program: "firecracker".into(),
                        why: "Firecracker 1.9.0 is not supported".into(),
                    }),
                    ..good()
                },
                "1.9.0 is not supported",
            ),
            (
                Facts {
                    firecracker: defective("firecracker"),
                    jailer: Some(defective("jailer")),
                    ..good()
                },
                "take no new connection",
            ),
            (
                Facts {
                    firecracker: of("firecracker", Version::new(1, 11, 0)),
                    jailer: Some(of("jailer", Version::new(1, 11, 0))),
                    ..good()
                },
                "before 1.12",
            ),
        ];
        for (facts, why) in bad {
            let choice = choose(Hypervisor::Auto, &facts).unwrap();
            assert_eq!(choice.hypervisor, Hypervisor::Qemu, "{why}");
            assert!(choice.why.contains(why), "{}", choice.why);
        }
        for facts in [
            good(),
            // Without jails nobody has to be root, and there need be no jailer.
            Facts {
                jailer: None,
                is_root: false,
                ..good()
            },
            // Who says that KVM works is believed.
            Facts {
                accelerator: Some(Accelerator::Kvm),
                virtualisation: LIES,
                ..good()
            },
        ] {
            let choice = choose(Hypervisor::Auto, &facts).unwrap();
            assert_eq!(choice.hypervisor, Hypervisor::Firecracker, "{}", choice.why);
            assert!(choice.why.contains("1.15.1"), "{}", choice.why);
        }
    }

    #[test]
    fn what_is_set_is_used_or_refused() {
        let choice = choose(Hypervisor::Qemu, &good()).unwrap();
        assert_eq!(choice.hypervisor, Hypervisor::Qemu);
        // What stands for Firecracker needs no KVM.
        let none = Virtualisation {
            cpu: false,
            device: Device::Missing,
        };
        for (facts, doubt) in [
            (good(), None),
            (
                Facts {
                    virtualisation: LIES,
                    ..good()
                },
                Some("would hang"),
            ),
            (
                Facts {
                    accelerator: Some(Accelerator::Tcg),
                    virtualisation: none,
                    ..good()
                },
                Some("which Firecracker cannot"),
            ),
            (
                Facts {
                    firecracker: defective("firecracker"),
                    jailer: Some(defective("jailer")),
                    ..good()
                },
                Some("take no new connection"),
            ),
        ] {
            let choice = choose(Hypervisor::Firecracker, &facts).unwrap();
            assert_eq!(choice.hypervisor, Hypervisor::Firecracker);
            assert_eq!(choice.doubt.is_some(), doubt.is_some());
            let doubted = choice.doubt.unwrap_or_default();
            assert!(doubted.contains(doubt.unwrap_or_default()), "{doubted}");
        }
        for (facts, code, advice) in [
            (
                Facts {
                    virtualisation: none,
                    ..good()
                },
                "accelerator_unusable",
                "aleph doctor",
            ),
            (
                Facts {
                    firecracker: missing("firecracker"),
                    ..good()
                },
                "hypervisor_missing",
                "aleph setup firecracker",
            ),
            (
                Facts {
                    jailer: Some(missing("jailer")),
                    ..good()
                },
                "hypervisor_missing",
                "aleph setup firecracker",
            ),
            (
                Facts {
                    is_root: false,
                    ..good()
                },
                "jail_not_root",
                "jailed = false",
            ),
        ] {
            let error = choose(Hypervisor::Firecracker, &facts).unwrap_err();
            assert_eq!(error.code(), code);
            assert_eq!(error.class(), ErrorClass::Unavailable);
            assert!(error.advice().unwrap().contains(advice), "{error}");
        }
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for hypervisor in [Hypervisor::Auto, Hypervisor::Qemu, Hypervisor::Firecracker] {
            assert_eq!(hypervisor.to_string().parse(), Ok(hypervisor));
        }
        assert!("Qemu".parse::<Hypervisor>().unwrap_err().contains("auto"));
    }
}
