//! Which accelerator runs a guest's instructions.
//!
//! `/dev/kvm` can lie: on some virtual hosts it opens and even creates a VM, and then a stock
//! kernel hangs in instruction emulation. So KVM is chosen only where the processor itself says
//! that it virtualises (`vmx` or `svm` among its flags; always on arm64) **and** the device
//! opens. Everything else is emulated.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl FromStr for Accelerator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("{text:?} is not an accelerator: write kvm or tcg")),
        }
    }
}

/// What is known of a host's virtualisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Virtualisation {
    /// Whether the processor says that it virtualises.
    pub cpu: bool,
    /// What became of opening `/dev/kvm`.
    pub device: Device,
}

/// What became of opening `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// It is not there.
    Missing,
    /// It is there, and this process may not open it.
    Forbidden,
    /// It opens.
    Opens,
}

/// The accelerator for a host: the one that was asked for, or KVM where it really works.
#[must_use]
pub fn choose(asked: Option<Accelerator>, host: Virtualisation) -> Accelerator {
    asked.unwrap_or(match host {
        Virtualisation {
            cpu: true,
            device: Device::Opens,
        } => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_both_the_processor_and_the_device() {
        for (cpu, device, want) in [
            (true, Device::Opens, Accelerator::Kvm),
            (true, Device::Forbidden, Accelerator::Tcg),
            (true, Device::Missing, Accelerator::Tcg),
            (false, Device::Opens, Accelerator::Tcg),
            (false, Device::Missing, Accelerator::Tcg),
        ] {
            assert_eq!(
                choose(None, Virtualisation { cpu, device }),
                want,
                "{cpu} {device:?}"
            );
        }
    }

    #[test]
    fn what_was_asked_for_overrides() {
        let lies = Virtualisation {
            cpu: false,
            device: Device::Opens,
        };
        assert_eq!(choose(Some(Accelerator::Kvm), lies), Accelerator::Kvm);
        let works = Virtualisation {
            cpu: true,
            device: Device::Opens,
        };
        assert_eq!(choose(Some(Accelerator::Tcg), works), Accelerator::Tcg);
    }
}
