//! The drivers of a node: the one that starts VMs, and those that take over what a node with another
//! setting had started.
//!
//! | file | what it is | effects |
//! | --- | --- | --- |
//! | [`choice`] | which hypervisor it is, and why | [`choice::Facts::read`] asks programs their version |
//! | [`signature`] | who launched a VMM | a file in the VM's runtime folder |
//!
//! A driver signs for a VMM before it starts it, and only a driver of that kind ever adopts it:
//! [`Drivers::of`]. So a node can be started with another `hypervisor` while its guests run: they go
//! on where they are, and the next ones start on the new one.
//!
//! # Failure cases
//! `hypervisor = "firecracker"` where it cannot be had: [`HypervisorError`], and no node. With `auto`
//! it is QEMU then, and [`Drivers::choice`] says why.

pub mod choice;
pub mod signature;

pub use choice::{Choice, Facts, Hypervisor, HypervisorError};
pub use signature::Signature;

use crate::accel::{self, Accelerator};
use crate::executor::ExecutorConfig;
use crate::firecracker::jail::Jails;
use crate::firecracker::{DriverConfig, FirecrackerDriver};
use crate::host;
use crate::hypervisor::Driver;
use crate::paths::Paths;
use crate::qemu::{QemuConfig, QemuDriver};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The drivers of a node.
pub struct Drivers {
    chosen: Arc<dyn Driver>,
    others: Vec<Arc<dyn Driver>>,
    choice: Option<Choice>,
    jails: Option<Jails>,
}

impl Drivers {
    /// Those of the node in these folders, which start VMs on what its configuration says. Blocks
    /// while programs say their versions.
    ///
    /// # Errors
    /// Where VMs are to be Firecracker's, and cannot.
    pub fn open(paths: &Paths, config: &ExecutorConfig) -> Result<Self, HypervisorError> {
        let kvm = accel::choose(config.accelerator, host::virtualisation()) == Accelerator::Kvm;
        let facts = match config.hypervisor {
            Hypervisor::Firecracker => Facts::read(paths, config),
            Hypervisor::Auto if kvm => Facts::read(paths, config),
            // No program has to be asked for that.
            Hypervisor::Auto | Hypervisor::Qemu => Facts {
                accelerator: config.accelerator,
                ..Facts::default()
            },
        };
        let mut choice = choice::choose(config.hypervisor, &facts)?;
        let base = config.firecracker.base(paths);
        // What an earlier node left in there is swept whatever runs VMs now.
        let wants = choice.hypervisor == Hypervisor::Firecracker && config.firecracker.jailed;
        let mut jails = None;
        if wants || (facts.is_root && base.is_dir()) {
            let claims = paths.state().join("uids");
            match Jails::open_of_node(&base, &claims, config.firecracker.uid_range) {
                Ok(opened) => jails = Some(opened),
                Err(error) if !wants => {
                    tracing::warn!(%error, "jails that were left over are not looked for");
                }
                Err(error) if config.hypervisor == Hypervisor::Firecracker => {
                    return Err(error.into());
                }
                Err(error) => {
                    tracing::warn!(%error, "Firecracker is there, and is not used");
                    choice = Choice::qemu(error.to_string());
                }
            }
        }
        let qemu: Arc<dyn Driver> = Arc::new(qemu(paths, config));
        let firecracker = firecracker(paths, config, jails.clone());
        let (chosen, other): (_, Arc<dyn Driver>) = match choice.hypervisor {
            Hypervisor::Firecracker => {
                config.firecracker.announce();
                (firecracker, qemu)
            }
            Hypervisor::Qemu | Hypervisor::Auto => (qemu, firecracker),
        };
        Ok(Self {
            chosen,
            others: vec![other],
            choice: Some(choice),
            jails,
        })
    }

    /// This driver alone.
    #[must_use]
    pub fn only(driver: Arc<dyn Driver>) -> Self {
        Self {
            chosen: driver,
            others: Vec::new(),
            choice: None,
            jails: None,
        }
    }

    /// The one that starts VMs.
    #[must_use]
    pub fn chosen(&self) -> &Arc<dyn Driver> {
        &self.chosen
    }

    /// The one that starts full VMs, if any does.
    #[must_use]
    pub fn full(&self) -> Option<&Arc<dyn Driver>> {
        let mut all = std::iter::once(&self.chosen).chain(&self.others);
        all.find(|driver| driver.full().is_some())
    }

    /// Why it is that one; `None` where the caller brought it.
    #[must_use]
    pub fn choice(&self) -> Option<&Choice> {
        self.choice.as_ref()
    }

    /// The jails that the node has, or had.
    #[must_use]
    pub fn jails(&self) -> Option<&Jails> {
        self.jails.as_ref()
    }

    /// The driver for a VM's VMM: one of the kind that launched it, where that has signed for it in
    /// the VM's runtime folder, else the one that starts VMs.
    ///
    /// # Errors
    /// Where this node has no such driver, or it is not known who launched it.
    pub fn of(&self, run_dir: &Path) -> Result<Arc<dyn Driver>, NoDriver> {
        let Some(signature) = Signature::read(run_dir)? else {
            // Of a node that knew QEMU alone, or of a driver that does not sign.
            return Ok(self.find(QEMU).unwrap_or_else(|| Arc::clone(&self.chosen)));
        };
        let found = self.find(&signature.driver);
        found.ok_or(NoDriver::Unknown(signature.driver))
    }

    fn find(&self, kind: &str) -> Option<Arc<dyn Driver>> {
        let mut all = std::iter::once(&self.chosen).chain(&self.others);
        let found = all.find(|driver| kind_of(&driver.name()) == kind);
        found.map(Arc::clone)
    }
}

/// A VM whose VMM cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum NoDriver {
    /// Another kind of driver has signed for it.
    #[error("its VMM was launched by {0:?}, which this node does not know")]
    Unknown(String),
    /// What was signed cannot be read.
    #[error("who launched its VMM cannot be read")]
    Signature(#[from] io::Error),
}

/// Kinds of drivers, as they sign.
pub(crate) const QEMU: &str = "qemu";
pub(crate) const FIRECRACKER: &str = "firecracker";

/// That of a driver with this name: what stands before the accelerator.
fn kind_of(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

fn qemu(paths: &Paths, config: &ExecutorConfig) -> QemuDriver {
    QemuDriver::new(QemuConfig {
        program: config.qemu.clone(),
        accelerator: accel::choose(config.accelerator, host::virtualisation()),
        tsc_khz: host::tsc_khz(&paths.run().join("tsc-khz")),
        cache: paths.run().join("qemu.json"),
    })
}

fn firecracker(paths: &Paths, config: &ExecutorConfig, jails: Option<Jails>) -> Arc<dyn Driver> {
    let programs = config.firecracker.programs(paths.state());
    Arc::new(FirecrackerDriver::new(DriverConfig {
        program: programs.firecracker,
        jail: jails
            .filter(|_| config.firecracker.jailed)
            .map(|jails| (jails, programs.jailer)),
        // Only what stands for Firecracker runs guests without it.
        needs_kvm: config.accelerator != Some(Accelerator::Tcg),
        memory: config.firecracker.memory.clone(),
        track_dirty_pages: config.firecracker.track_dirty_pages,
        ..DriverConfig::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firecracker::jail::JailConfig;

    fn names(drivers: &Drivers, run_dir: &Path) -> String {
        let found = drivers.of(run_dir).map(|driver| driver.name());
        found.unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn who_signed_adopts_whatever_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(Some(&dir.path().join("root"))).unwrap();
        std::fs::create_dir_all(paths.run()).unwrap();
        let program = dir.path().join("firecracker");
        std::fs::write(&program, "#!/bin/sh\necho 'Firecracker v1.16.1'\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let config = |hypervisor| ExecutorConfig {
            hypervisor,
            accelerator: Some(Accelerator::Tcg),
            firecracker: JailConfig {
                firecracker: Some(program.clone()),
                jailed: false,
                ..JailConfig::default()
            },
            ..ExecutorConfig::default()
        };
        for (hypervisor, chosen) in [
            (Hypervisor::Qemu, "qemu/tcg"),
            (Hypervisor::Firecracker, "firecracker"),
        ] {
            let drivers = Drivers::open(&paths, &config(hypervisor)).unwrap();
            assert_eq!(drivers.chosen().name(), chosen);
            let run_dir = dir.path().join(format!("run-{hypervisor}"));
            std::fs::create_dir(&run_dir).unwrap();
            assert_eq!(names(&drivers, &run_dir), "qemu/tcg");
            for (signs, adopts) in [
                (FIRECRACKER, "firecracker"),
                (QEMU, "qemu/tcg"),
                ("xen", "launched by \"xen\""),
            ] {
                Signature::of(signs).write(&run_dir).unwrap();
                let found = names(&drivers, &run_dir);
                assert!(found.contains(adopts), "{signs}: {found}");
            }
            // One that cannot be read is nobody's.
            std::fs::write(run_dir.join(signature::FILE), "{").unwrap();
            assert!(names(&drivers, &run_dir).contains("cannot be read"));
        }
    }
}
