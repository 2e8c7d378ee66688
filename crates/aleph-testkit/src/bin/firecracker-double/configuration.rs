//! The configuration file: a guest that starts by itself.

use crate::action::Action;
use crate::bodies;
use crate::fault::{Fault, os_text};
use crate::gate::{self, Body};
use crate::vmm::Vmm;
use serde_json::{Map, Value};
use std::path::Path;

impl Vmm {
    /// Configures and boots a guest as a file says.
    pub(crate) fn start_from(&mut self, text: &str) -> Result<(), Fault> {
        let all: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| Fault::from(format!("Invalid JSON: {error}")))?;
        for key in ["drives", "boot-source"] {
            if !all.contains_key(key) {
                return Err(format!("Invalid JSON: missing field `{key}`").into());
            }
        }
        if let Some(logger) = self.read(&all, "logger")? {
            self.handle(Action::SetLogger(logger))?;
        }
        if let Some(metrics) = self.read(&all, "metrics")? {
            self.handle(Action::SetMetrics(metrics))?;
        }
        if let Some(boot) = self.read(&all, "boot-source")? {
            self.handle(Action::SetBootSource(boot))?;
        }
        if let Some(machine) = self.read::<bodies::Machine>(&all, "machine-config")? {
            self.handle(Action::SetMachine(machine.into()))?;
        }
        if let Some(Value::String(path)) = all.get("cpu-config") {
            std::fs::metadata(Path::new(path)).map_err(|error| {
                Fault::from(format!("File operation error: {}", os_text(&error)))
            })?;
        }
        for drive in self.read_all(&all, "drives")? {
            self.handle(Action::SetDrive(drive))?;
        }
        for nic in self.read_all(&all, "network-interfaces")? {
            self.handle(Action::SetNic(nic))?;
        }
        if let Some(vsock) = self.read(&all, "vsock")? {
            self.handle(Action::SetVsock(vsock))?;
        }
        if let Some(balloon) = self.read(&all, "balloon")? {
            self.handle(Action::SetBalloon(balloon))?;
        }
        if let Some(mmds) = self.read(&all, "mmds-config")? {
            self.handle(Action::SetMmdsConfig(mmds))?;
        }
        if let Some(entropy) = self.read(&all, "entropy")? {
            self.handle(Action::SetEntropy(entropy))?;
        }
        if self.version.has(14) {
            for pmem in self.read_all(&all, "pmem")? {
                self.handle(Action::SetPmem(pmem))?;
            }
            if let Some(hotplug) = self.read(&all, "memory-hotplug")? {
                self.handle(Action::SetHotplugMemory(hotplug))?;
            }
        }
        self.start().map(drop)
    }

    fn read<T: Body>(&self, all: &Map<String, Value>, key: &str) -> Result<Option<T>, Fault> {
        let found = all.get(key).filter(|value| !value.is_null());
        found.map(|value| self.body(value)).transpose()
    }

    fn read_all<T: Body>(&self, all: &Map<String, Value>, key: &str) -> Result<Vec<T>, Fault> {
        match all.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(|value| self.body(value)).collect(),
            Some(_) => {
                Err(format!("Invalid JSON: invalid type of `{key}`, expected a sequence").into())
            }
        }
    }

    fn body<T: Body>(&self, value: &Value) -> Result<T, Fault> {
        gate::parse(value.to_string().as_bytes(), self.version)
            .map_err(|error| format!("Invalid JSON: {error}").into())
    }
}
