//! What a user asked to run.

use crate::{
    Classify, CloudInitSpec, ErrorClass, Firmware, GpuRequest, HealthCheck, InvalidNetwork,
    MAX_VOLUMES, MachineSpec, MiB, NetworkSpec, Resources, RestartPolicy, VolumeMount, signal,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A job as its user described it, in JSON, TOML or YAML.
///
/// Unknown fields are refused, so that a misspelt one is never silently ignored. All but
/// `image` may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// A name that the account has no other job of: a letter or digit, then letters, digits,
    /// `_`, `.` and `-`; at most 63 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(
            min_length = 1,
            max_length = 63,
            pattern = "^(?!0x)[A-Za-z0-9][A-Za-z0-9_.-]*$"
        )
    )]
    pub name: Option<String>,
    /// The image to run, by name or by digest. Of a full VM with `cloud_init` it is the disk image
    /// that its root disk is a copy of.
    #[cfg_attr(
        feature = "schema",
        schema(min_length = 1, max_length = 512, pattern = "^[!-~]+$")
    )]
    pub image: String,
    /// The kernel to boot, by name or by digest, of those that were imported or built; the node's
    /// default when absent. Of a full VM with `cloud_init`, where `machine.firmware` is `kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(
            min_length = 1,
            max_length = 128,
            pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]*$"
        )
    )]
    pub kernel: Option<String>,
    /// The command with its arguments; the image's own where it is empty. A full VM with
    /// `cloud_init` needs none, and runs it as a service.
    #[serde(default)]
    pub command: Vec<String>,
    /// What the command is given to, instead of the image's entrypoint. An empty list takes the
    /// image's away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Environment variables, over those of the image.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory in the guest; the image's, or `/`, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(pattern = "^/"))]
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid` in the guest; the image's, or root, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1))]
    pub user: Option<String>,
    /// The guest's hostname; `job-` and the short job id when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9.-]+$")
    )]
    pub hostname: Option<String>,
    /// CPUs, memory and disk.
    #[serde(default)]
    pub resources: Resources,
    /// Which kind of guest.
    #[serde(default)]
    pub mode: Mode,
    /// Which VMM runs it.
    #[serde(default)]
    pub hypervisor: Hypervisor,
    /// What its machine is like, where it is a full VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSpec>,
    /// What the cloud-init of its guest is told. A full VM that has this boots from its own disk,
    /// and has no agent of the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInitSpec>,
    /// GPUs of the node's host, which its guest has for itself. A job with GPUs is a full VM, whatever
    /// lighter one could run it otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<GpuRequest>,
    /// Whether the command gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether the command's standard input is connected.
    #[serde(default)]
    pub stdin: bool,
    /// When the job starts again after it ended.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How to tell that it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Labels for the user's own use, and for filters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Files that the guest has before the command runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(max_items = 64))]
    pub files: Vec<GuestFile>,
    /// How long the job may run after each start, in seconds; then it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 31_622_400))]
    pub deadline_seconds: Option<u64>,
    /// Whether the job is removed, with its logs, once it has ended for good.
    #[serde(default)]
    pub auto_destroy: bool,
    /// The signal that asks the command to stop, by name or number; the image's, or TERM, when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(max_length = 16, pattern = "^[A-Za-z0-9+]+$")
    )]
    pub stop_signal: Option<String>,
    /// How long the command has between the stop signal and SIGKILL, in seconds.
    #[serde(default = "default_grace")]
    #[cfg_attr(feature = "schema", schema(maximum = 86_400))]
    pub stop_grace_seconds: u32,
    /// When the image is fetched from its registry.
    #[serde(default)]
    pub pull: PullPolicy,
    /// How the guest is connected.
    #[serde(default, skip_serializing_if = "NetworkSpec::is_default")]
    pub network: NetworkSpec,
    /// Volumes that the guest has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(max_items = 16))]
    pub volumes: Vec<VolumeMount>,
}

fn default_grace() -> u32 {
    10
}

/// Which kind of guest runs a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The lightest that can run it.
    #[default]
    Auto,
    /// A microVM.
    Microvm,
    /// A full VM: a machine with firmware, PCI and ACPI.
    Vm,
}

/// Which VMM runs a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Hypervisor {
    /// The best that this node has.
    #[default]
    Auto,
    /// QEMU.
    Qemu,
}

/// When an image is fetched from its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// Where the node does not have it.
    #[default]
    Missing,
    /// Before each start.
    Always,
    /// Never: a job whose image is not there fails.
    Never,
}

/// A file that a guest has before its command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GuestFile {
    /// Its absolute path in the guest. Folders that are missing are made.
    #[cfg_attr(feature = "schema", schema(pattern = "^/"))]
    pub path: String,
    /// Its content, where that is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its content in base64 (RFC 4648, with padding), where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// Permission bits as octal text, such as `0644`.
    #[serde(default = "default_mode")]
    #[cfg_attr(feature = "schema", schema(pattern = "^[0-7]{1,4}$"))]
    pub mode: String,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
}

fn default_mode() -> String {
    "0644".into()
}

/// A job specification that no node could run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJob {
    /// There is nothing to run.
    #[error("the job has no command, and neither has its image")]
    NoCommand,
    /// A VM without a processor.
    #[error("the job asks for {0} CPUs")]
    NoCpus(u16),
    /// Too little memory for any guest.
    #[error("the job asks for {asked} of memory, a guest needs at least {least}")]
    LittleMemory {
        /// What was asked for.
        asked: MiB,
        /// What is needed.
        least: MiB,
    },
    /// A field that the guest's kernel could not take.
    #[error("{field} {value:?} has a NUL byte or is not of its form")]
    BadText {
        /// The field's path.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// More of something than a specification may have.
    #[error("{field} has {there}, at most {most} are taken")]
    TooMuch {
        /// The field's path.
        field: &'static str,
        /// How much there is.
        there: usize,
        /// How much there may be.
        most: usize,
    },
    /// A network that no node could make.
    #[error(transparent)]
    Network(#[from] InvalidNetwork),
    /// Something of full VMs, for a job that is none.
    #[error("the job has {0}, and is no full VM")]
    NotFullVm(&'static str),
    /// A machine that no node could make.
    #[error("{field} {why}")]
    Machine {
        /// The field's path.
        field: &'static str,
        /// What is wrong, to be read after it.
        why: &'static str,
    },
    /// A microVM with GPUs.
    #[error("the job asks for GPUs, and for a microVM, which can have none")]
    GpusOfMicroVm,
    /// Something for which the node would need an agent in the guest.
    #[error("{0} needs an agent of the node's in the guest, and a VM with its own disk has none")]
    NoAgent(&'static str),
}

impl Classify for InvalidJob {
    fn class(&self) -> ErrorClass {
        ErrorClass::Invalid
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoCommand => "no_command",
            Self::NoCpus(_) => "no_cpus",
            Self::LittleMemory { .. } => "little_memory",
            Self::BadText { .. } => "bad_text",
            Self::TooMuch { .. } => "too_much",
            Self::Network(_) => "bad_network",
            Self::NotFullVm(_) => "not_full_vm",
            Self::Machine { .. } => "bad_machine",
            Self::GpusOfMicroVm => "gpus_need_vm",
            Self::NoAgent(_) => "guest_without_agent",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::NoCommand => "Name a command after the image: aleph run IMAGE -- COMMAND.".into(),
            Self::NoCpus(_) => "Ask for 1 or more with --cpus.".into(),
            Self::LittleMemory { least, .. } => format!("Ask for {}m or more with -m.", least.0),
            Self::BadText { field, .. } => format!("Mend {field}."),
            Self::TooMuch { field, most, .. } => format!("Keep {field} within {most}."),
            Self::Network(network) => network.advice(),
            Self::NotFullVm(field) => format!("Set mode to vm, or leave {field} out."),
            Self::Machine { field, .. } => format!("Mend {field}."),
            Self::GpusOfMicroVm => "Set mode to vm, or leave it out.".into(),
            Self::NoAgent(field) => {
                format!("Leave {field} out, and speak with the guest by aleph ssh.")
            }
        })
    }
}

/// Bytes that a job's command, entrypoint and environment may have together: they reach the guest
/// in one message of 64 KiB, with what the image adds.
pub const MAX_WORDS: usize = 48 * 1024;

/// Bytes that all files of a job may have together. They travel in its specification.
pub const MAX_FILES: usize = 1024 * 1024;

/// Whether `name` can be a job's name: a letter or digit, then letters, digits, `_`, `.`, `-`,
/// at most 63 bytes, and nothing that reads as an id.
#[must_use]
pub fn is_job_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 63
        && !name.starts_with("0x")
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether `text` can name a kernel: a letter or digit, then letters, digits, `.`, `_`, `:` and `-`,
/// at most 128 bytes.
fn is_kernel_reference(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

impl JobSpec {
    /// A job that runs `command` from `image`, all else at its default.
    #[must_use]
    pub fn new(image: impl Into<String>, command: Vec<String>) -> Self {
        Self {
            name: None,
            image: image.into(),
            kernel: None,
            command,
            entrypoint: None,
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            hostname: None,
            resources: Resources::default(),
            mode: Mode::Auto,
            hypervisor: Hypervisor::Auto,
            machine: None,
            cloud_init: None,
            gpus: None,
            tty: false,
            stdin: false,
            restart: RestartPolicy::default(),
            health: None,
            labels: BTreeMap::new(),
            files: Vec::new(),
            deadline_seconds: None,
            auto_destroy: false,
            stop_signal: None,
            stop_grace_seconds: default_grace(),
            pull: PullPolicy::Missing,
            network: NetworkSpec::default(),
            volumes: Vec::new(),
        }
    }

    /// The time between the stop signal and SIGKILL.
    #[must_use]
    pub fn stop_grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.stop_grace_seconds))
    }

    /// The number of the job's own stop signal, where it has one.
    #[must_use]
    pub fn stop_signal_number(&self) -> Option<u8> {
        self.stop_signal.as_deref().and_then(signal::number)
    }

    /// Bytes of its command, entrypoint and environment.
    fn words(&self) -> usize {
        let words = self.command.iter().chain(self.entrypoint.iter().flatten());
        let env = self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len());
        words.map(String::len).chain(env).sum()
    }

    /// About how many bytes it takes to keep.
    #[must_use]
    pub fn weight(&self) -> usize {
        let labels = self.labels.iter().map(|(k, v)| k.len() + v.len());
        let files = self.files.iter().map(|file| {
            let content = [&file.text, &file.base64].into_iter().flatten();
            file.path.len() + content.map(String::len).sum::<usize>()
        });
        let told = self.cloud_init.as_ref().map_or(0, CloudInitSpec::weight);
        1024 + self.words() + told + labels.chain(files).sum::<usize>()
    }

    /// Whether its guest boots from a disk of its own, without an agent of the node's.
    #[must_use]
    pub fn has_own_disk(&self) -> bool {
        self.is_full_vm() && self.cloud_init.is_some()
    }

    /// Whether its guest has a whole computer: it asks for one, or for what only those have.
    #[must_use]
    pub fn is_full_vm(&self) -> bool {
        self.mode == Mode::Vm || self.gpus.is_some()
    }

    /// Checks what full VMs have.
    fn validate_machine(&self) -> Result<(), InvalidJob> {
        let parts = [
            ("machine", self.machine.is_some()),
            ("cloud_init", self.cloud_init.is_some()),
        ];
        if let Some(gpus) = &self.gpus {
            gpus.check()?;
            if self.mode == Mode::Microvm {
                return Err(InvalidJob::GpusOfMicroVm);
            }
        }
        if !self.is_full_vm()
            && let Some((field, _)) = parts.into_iter().find(|(_, there)| *there)
        {
            return Err(InvalidJob::NotFullVm(field));
        }
        if let Some(machine) = &self.machine {
            machine.check(&self.resources)?;
        }
        let Some(told) = &self.cloud_init else {
            return Ok(());
        };
        told.check()?;
        let machine = self.machine.as_ref();
        let by_kernel = machine.is_some_and(|it| it.firmware == Firmware::Kernel);
        if self.kernel.is_some() && !by_kernel {
            return Err(InvalidJob::Machine {
                field: "kernel",
                why: "is for the firmware kernel: else a VM with cloud_init starts what is on its disk",
            });
        }
        if self.kernel.is_none() && by_kernel {
            return Err(InvalidJob::Machine {
                field: "machine.firmware",
                why: "kernel takes the name of a kernel: the node's own is not for a VM with cloud_init",
            });
        }
        let asked = [
            ("tty", self.tty),
            ("stdin", self.stdin),
            ("health", self.health.is_some()),
            ("stop_signal", self.stop_signal.is_some()),
        ];
        match asked.into_iter().find(|(_, there)| *there) {
            Some((field, _)) => Err(InvalidJob::NoAgent(field)),
            None => Ok(()),
        }
    }

    /// Checks all that can be known without a node and its images.
    ///
    /// # Errors
    /// The first field that no node could accept.
    pub fn validate(&self) -> Result<(), InvalidJob> {
        let bad = |field, value: &str| {
            Err(InvalidJob::BadText {
                field,
                value: value.to_owned(),
            })
        };
        if let Some(name) = self.name.as_deref().filter(|name| !is_job_name(name)) {
            return bad("name", name);
        }
        if self.image.is_empty() || self.image.len() > 512 || self.image.contains(['\0', '\n', ' '])
        {
            return bad("image", &self.image);
        }
        if let Some(kernel) = self.kernel.as_deref().filter(|k| !is_kernel_reference(k)) {
            return bad("kernel", kernel);
        }
        let entrypoint = self.entrypoint.iter().flatten();
        if let Some(argument) = self
            .command
            .iter()
            .chain(entrypoint)
            .find(|a| a.contains('\0'))
        {
            return bad("command", argument);
        }
        if self.command.first().is_some_and(String::is_empty) && self.entrypoint.is_none() {
            return bad("command", "");
        }
        if self.resources.cpus == 0 {
            return Err(InvalidJob::NoCpus(0));
        }
        if self.resources.memory < Resources::MIN_MEMORY {
            return Err(InvalidJob::LittleMemory {
                asked: self.resources.memory,
                least: Resources::MIN_MEMORY,
            });
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return bad("env", name);
            }
        }
        if let Some(dir) = self
            .workdir
            .as_deref()
            .filter(|d| !d.starts_with('/') || d.contains('\0'))
        {
            return bad("workdir", dir);
        }
        if let Some(user) = self
            .user
            .as_deref()
            .filter(|u| u.is_empty() || u.contains('\0'))
        {
            return bad("user", user);
        }
        // Linux takes at most 64 bytes (sethostname(2)).
        let name_is_bad =
            |h: &&str| h.is_empty() || h.len() > 64 || h.contains(['\0', '/', ' ', '\n']);
        if let Some(hostname) = self.hostname.as_deref().filter(name_is_bad) {
            return bad("hostname", hostname);
        }
        for (key, value) in &self.labels {
            if key.is_empty() || key.len() > 128 || value.len() > 1024 || key.contains(['=', ',']) {
                return bad("labels", key);
            }
        }
        self.network.check()?;
        self.validate_machine()?;
        for (at, volume) in self.volumes.iter().enumerate() {
            volume.check()?;
            let before = self.volumes.iter().take(at);
            // One mounted over another, or one disk mounted twice, is never what is meant.
            let place = volume.mount_point();
            if before.clone().any(|other| other.mount_point() == place) {
                return bad("volumes.path", &volume.path);
            }
            if before.clone().any(|other| other.name == volume.name) {
                return bad("volumes.name", &volume.name);
            }
        }
        self.validate_limits()
    }

    fn validate_limits(&self) -> Result<(), InvalidJob> {
        let limited = [
            ("labels", self.labels.len(), 64),
            ("files", self.files.len(), 64),
            ("env", self.env.len(), 1024),
            ("command", self.command.len(), 4096),
            ("volumes", self.volumes.len(), MAX_VOLUMES),
        ];
        if let Some((field, there, most)) = limited.into_iter().find(|(_, n, most)| n > most) {
            return Err(InvalidJob::TooMuch { field, there, most });
        }
        let words = self.words();
        if words > MAX_WORDS {
            return Err(InvalidJob::TooMuch {
                field: "command and env",
                there: words,
                most: MAX_WORDS,
            });
        }
        let mut bytes = 0;
        for file in &self.files {
            bytes += file.check()?;
        }
        if bytes > MAX_FILES {
            let (field, there, most) = ("files", bytes, MAX_FILES);
            return Err(InvalidJob::TooMuch { field, there, most });
        }
        if let Some(pids) = self.resources.pids.filter(|n| *n < Resources::MIN_PIDS) {
            return Err(InvalidJob::BadText {
                field: "resources.pids",
                value: pids.to_string(),
            });
        }
        // To the kernel, none at all is no limit but an error.
        if self.resources.io_bytes_per_second == Some(0) {
            return Err(InvalidJob::BadText {
                field: "resources.io_bytes_per_second",
                value: "0".into(),
            });
        }
        let zero = |n: Option<u64>| n.is_some_and(|n| n == 0 || n > 366 * 86_400);
        if zero(self.deadline_seconds) {
            return Err(InvalidJob::BadText {
                field: "deadline_seconds",
                value: self.deadline_seconds.unwrap_or(0).to_string(),
            });
        }
        if let Some(name) = self.stop_signal.as_deref()
            && signal::number(name).is_none()
        {
            return Err(InvalidJob::BadText {
                field: "stop_signal",
                value: name.to_owned(),
            });
        }
        if self.stop_grace_seconds > 86_400 {
            return Err(InvalidJob::BadText {
                field: "stop_grace_seconds",
                value: self.stop_grace_seconds.to_string(),
            });
        }
        self.restart.validate()?;
        self.health.as_ref().map_or(Ok(()), HealthCheck::validate)
    }
}

impl GuestFile {
    /// Its permission bits.
    #[must_use]
    pub fn mode_bits(&self) -> Option<u16> {
        u16::from_str_radix(&self.mode, 8)
            .ok()
            .filter(|bits| *bits <= 0o7777)
    }

    /// Checks its form, and gives how many bytes its content takes in the specification.
    fn check(&self) -> Result<usize, InvalidJob> {
        let bad = |field, value: &str| {
            Err(InvalidJob::BadText {
                field,
                value: value.to_owned(),
            })
        };
        let climbs = self.path.split('/').any(|part| part == "..");
        if !self.path.starts_with('/') || climbs || self.path.contains('\0') {
            return bad("files.path", &self.path);
        }
        if self.mode_bits().is_none() {
            return bad("files.mode", &self.mode);
        }
        match (&self.text, &self.base64) {
            (Some(text), None) => Ok(text.len()),
            (None, Some(base64)) => Ok(base64.len() / 4 * 3),
            (None, None) => Ok(0),
            (Some(_), Some(_)) => bad("files", "text and base64 together"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Topology;

    fn job() -> JobSpec {
        JobSpec::new("busybox", vec!["true".into()])
    }

    #[test]
    fn the_smallest_job_is_valid() {
        assert_eq!(job().validate(), Ok(()));
        let json: JobSpec = serde_json::from_str(r#"{"image":"busybox"}"#).unwrap();
        assert_eq!(json.validate(), Ok(()));
        assert_eq!(json, JobSpec::new("busybox", vec![]));
    }

    #[test]
    fn each_wrong_field_is_refused_with_its_own_code() {
        type Spoil = fn(&mut JobSpec);
        let file = |path: &str, mode: &str| GuestFile {
            path: path.into(),
            text: Some("x".into()),
            base64: None,
            mode: mode.into(),
            uid: 0,
            gid: 0,
        };
        let cases: [(&str, Spoil); 17] = [
            ("bad_text", |j| j.command[0].clear()),
            ("no_cpus", |j| j.resources.cpus = 0),
            ("little_memory", |j| j.resources.memory = MiB(63)),
            ("bad_text", |j| j.command.push("a\0b".into())),
            ("bad_text", |j| {
                j.env = BTreeMap::from([("A=B".into(), String::new())]);
            }),
            ("bad_text", |j| j.workdir = Some("tmp".into())),
            ("bad_text", |j| j.hostname = Some("a b".into())),
            ("bad_text", |j| j.user = Some(String::new())),
            ("bad_text", |j| j.name = Some("0xabc".into())),
            ("bad_text", |j| j.name = Some("-x".into())),
            ("bad_text", |j| j.image = "a b".into()),
            ("bad_text", |j| j.deadline_seconds = Some(0)),
            ("bad_text", |j| j.resources.pids = Some(15)),
            ("bad_text", |j| j.resources.io_bytes_per_second = Some(0)),
            ("bad_text", |j| {
                j.labels = BTreeMap::from([("a=".into(), String::new())]);
            }),
            ("bad_text", |j| j.restart.backoff_seconds = 0),
            ("bad_text", |j| j.stop_signal = Some("SIGNONE".into())),
        ];
        for (code, spoil) in cases {
            let mut job = job();
            spoil(&mut job);
            let error = job.validate().unwrap_err();
            assert_eq!((error.code(), error.class()), (code, ErrorClass::Invalid));
            assert!(error.advice().is_some());
        }
        for wrong in [
            file("etc/x", "0644"),
            file("/a/../b", "0644"),
            file("/a", "9"),
        ] {
            let mut job = job();
            job.files.push(wrong);
            assert_eq!(job.validate().unwrap_err().code(), "bad_text");
        }
        let mut job = job();
        job.files = vec![file("/a", "0644"); 65];
        assert_eq!(job.validate().unwrap_err().code(), "too_much");
        job.files.clear();
        job.command.push("x".repeat(MAX_WORDS));
        assert_eq!(job.validate().unwrap_err().code(), "too_much");
    }

    #[test]
    fn what_full_vms_have_is_for_them_alone() {
        let mut disk = JobSpec::new("debian", vec![]);
        (disk.mode, disk.cloud_init) = (Mode::Vm, Some(CloudInitSpec::default()));
        assert_eq!(disk.validate(), Ok(()));
        assert!(disk.has_own_disk());
        type Spoil = fn(&mut JobSpec);
        let machine = |job: &mut JobSpec, spoil: fn(&mut MachineSpec)| {
            spoil(job.machine.get_or_insert_default());
        };
        let cases: [(&str, Spoil); 16] = [
            ("bad_machine", |j| {
                j.machine.get_or_insert_default().room.memory = MiB(100);
            }),
            ("bad_machine", |j| {
                j.machine.get_or_insert_default().firmware = Firmware::Kernel;
            }),
            ("bad_machine", |j| j.kernel = Some("mine".into())),
            ("not_full_vm", |j| j.mode = Mode::Auto),
            ("not_full_vm", |j| {
                (j.mode, j.cloud_init, j.machine) =
                    (Mode::Microvm, None, Some(MachineSpec::default()));
            }),
            ("guest_without_agent", |j| j.tty = true),
            ("guest_without_agent", |j| j.stdin = true),
            ("guest_without_agent", |j| {
                j.stop_signal = Some("INT".into());
            }),
            ("guest_without_agent", |j| {
                j.health = serde_json::from_str(r#"{"probe":{"tcp":{"port":80}}}"#).ok();
                assert!(j.health.is_some());
            }),
            ("too_much", |j| {
                j.cloud_init.get_or_insert_default().packages = vec!["x".into(); 257];
            }),
            ("too_much", |j| {
                let text = "#".repeat(crate::machine::MAX_USER_DATA + 1);
                j.cloud_init.get_or_insert_default().user_data = Some(text);
            }),
            ("bad_machine", |j| {
                let machine = j.machine.get_or_insert_default();
                (machine.firmware, machine.secure_boot) = (Firmware::Bios, true);
            }),
            ("bad_machine", |j| {
                j.machine.get_or_insert_default().cpu_model = Some("max,+x".into());
            }),
            ("bad_machine", |j| {
                let (sockets, cores, threads) = (1, 3, 2);
                j.machine.get_or_insert_default().topology = Some(Topology {
                    sockets,
                    cores,
                    threads,
                });
            }),
            ("bad_machine", |j| {
                j.machine.get_or_insert_default().boot_args = Some("quiet".into());
            }),
            ("bad_machine", |j| {
                j.machine.get_or_insert_default().room.slots = 46;
            }),
        ];
        for (code, spoil) in cases {
            let mut job = disk.clone();
            spoil(&mut job);
            let error = job.validate().unwrap_err();
            assert_eq!(
                (error.code(), error.class()),
                (code, ErrorClass::Invalid),
                "{error}"
            );
            assert!(error.advice().is_some());
        }
        machine(&mut disk, |m| {
            (m.firmware, m.boot_args) = (Firmware::Kernel, Some("root=/dev/vda rw".into()));
            (m.room.cpus, m.room.memory) = (3, MiB(1024));
            m.topology = Some(Topology {
                sockets: 2,
                cores: 2,
                threads: 1,
            });
        });
        disk.resources.cpus = 1;
        disk.kernel = Some("mine".into());
        assert_eq!(disk.validate(), Ok(()));
        disk.kernel = None;
        let told = disk.cloud_init.take();
        assert_eq!(disk.validate(), Ok(()));
        (disk.cloud_init, disk.machine) = (told, None);
        assert_eq!(disk.validate(), Ok(()));
        let json = serde_json::to_string(&disk).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&json).unwrap(), disk);
        disk.cloud_init.get_or_insert_default().user_data = Some("#!secret".into());
        assert!(!format!("{disk:?}").contains("secret"));
    }

    #[test]
    fn gpus_make_a_job_a_full_vm() {
        let json = r#"{"image":"x","gpus":{"gpuType":"h200","gpuVramMiB":81920}}"#;
        let mut job: JobSpec = serde_json::from_str(json).unwrap();
        assert_eq!(job.validate(), Ok(()));
        assert!(job.is_full_vm() && !job.has_own_disk());
        assert_eq!(job.gpus.as_ref().map(|gpus| gpus.count), Some(1));
        job.mode = Mode::Microvm;
        assert_eq!(job.validate().unwrap_err().code(), "gpus_need_vm");
        for wrong in [
            r#"{"count":0}"#,
            r#"{"count":65}"#,
            r#"{"gpuType":"h 200"}"#,
            r#"{"gpuType":""}"#,
            r#"{"gpuVramMiB":0}"#,
        ] {
            job.gpus = Some(serde_json::from_str(wrong).unwrap());
            let error = job.validate().unwrap_err();
            assert_eq!(
                (error.code(), error.class()),
                ("bad_text", ErrorClass::Invalid),
                "{wrong}"
            );
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let json = r#"{"image":"busybox","command":["true"],"comand":["x"]}"#;
        assert!(serde_json::from_str::<JobSpec>(json).is_err());
    }
}
