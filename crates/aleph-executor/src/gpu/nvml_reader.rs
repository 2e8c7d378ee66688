//! The process that asks NVML: this very program, started with [`NVML_READER`]. It loads the library,
//! writes what that says to its standard output as JSON, and ends.

use super::address::PciAddress;
use super::mig::{MigSize, profile_in};
use super::nvml::{LIMIT, Nvml, NvmlError, NvmlGpu, NvmlInstance};
use rustix::fs::{MemfdFlags, memfd_create};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The word that has a program of this project be such a process, [`read_nvml`].
pub const NVML_READER: &str = "nvml-reader";

/// The library's name for programs that are not built with it.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// What it ends with where there is no NVML.
const ABSENT: u8 = 3;
/// More than it has to say of as many GPUs as any host has.
const MOST: u64 = 256 << 10;
/// More parts than any GPU is divided into by MIG, which are 7 today.
const MOST_PARTS: u32 = 64;
/// How long one that is killed may take to be gone; the kernel lets none go that waits for a device.
const GOING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// The whole `main` of the process. It reads the library that a word names, or else NVIDIA's own.
pub fn read_nvml(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let library = words.next().unwrap_or_else(|| LIBRARY.into());
    let written = read(&library).map(|gpus| {
        let written = serde_json::to_writer(io::stdout().lock(), &gpus);
        written.map_err(io::Error::from)
    });
    let (code, why) = match written {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => (1, error.to_string()),
        Err(error) => (ABSENT, error.to_string()),
    };
    let _ = writeln!(io::stderr(), "{why}");
    ExitCode::from(code)
}

/// What the library says. It is closed again when this returns.
fn read(library: &OsStr) -> Result<Vec<NvmlGpu>, nvml_wrapper::error::NvmlError> {
    let nvml = nvml_wrapper::Nvml::builder().lib_path(library).init()?;
    let all = 0..nvml.device_count()?;
    // One that is lost is left out.
    Ok(all.filter_map(|n| gpu(&nvml, n)).collect())
}

fn gpu(nvml: &nvml_wrapper::Nvml, index: u32) -> Option<NvmlGpu> {
    let device = nvml.device_by_index(index).ok()?;
    let pci = device.pci_info().ok()?;
    let address: PciAddress = pci.bus_id.parse().ok()?;
    // The device in the upper half, and the vendor in the lower one (`nvmlPciInfo_t` of nvml.h).
    let [a, b, c, d] = pci.pci_device_id.to_le_bytes();
    let memory = device.memory_info().ok().map(|memory| memory.total);
    // `NVML_DEVICE_MIG_ENABLE` is 1.
    let mig = device.mig_mode().ok().map(|mode| mode.current == 1);
    let parts = match mig {
        Some(true) => device.mig_device_count().unwrap_or(0).min(MOST_PARTS),
        _ => 0,
    };
    Some(NvmlGpu {
        address,
        ids: (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])),
        uuid: device.uuid().ok(),
        name: device.name().ok(),
        memory,
        mig,
        // Numbers that no part has are among them.
        instances: (0..parts)
            .filter_map(|index| instance(&device, index, memory))
            .collect(),
    })
}

/// A part of a GPU with so much memory.
fn instance(
    device: &nvml_wrapper::Device<'_>,
    index: u32,
    whole: Option<u64>,
) -> Option<NvmlInstance> {
    let part = device.mig_device_by_index(index).ok()?;
    let by_size = || {
        let size = part.attributes().ok()?;
        let size = MigSize {
            slices: size.gpu_instance_slice_count,
            compute_slices: size.compute_instance_slice_count,
            memory_mib: size.memory_size_mb,
            whole: whole?,
        };
        size.profile()
    };
    let name = part.name().unwrap_or_default();
    Some(NvmlInstance {
        index,
        uuid: part.uuid().ok(),
        profile: profile_in(&name).or_else(by_size),
        memory: part.memory_info().ok().map(|memory| memory.total),
    })
}

/// Starts such processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmlReader {
    /// A program that calls [`read_nvml`] when its first word is [`NVML_READER`].
    pub program: PathBuf,
    /// The library; NVIDIA's own where it is left out.
    pub library: Option<PathBuf>,
    /// How long it may take.
    pub limit: Duration,
}

impl NvmlReader {
    /// The running program, also where its file was replaced since, and NVIDIA's library.
    #[must_use]
    pub fn this() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            library: None,
            limit: LIMIT,
        }
    }

    /// Waits for the process. One that takes too long is killed; one that cannot be is left to the
    /// kernel, which ends it when the device answers, and to a thread that hears of it.
    fn wait(&self, mut child: Child) -> Result<ExitStatus, NvmlError> {
        if let Some(status) = ended(&mut child, self.limit).map_err(NvmlError::Process)? {
            return Ok(status);
        }
        child.kill().map_err(NvmlError::Process)?;
        if matches!(ended(&mut child, GOING), Ok(None)) {
            let pid = child.id();
            // Else it would stay in the table of processes for as long as this one lives.
            let waits = std::thread::Builder::new().name("nvml-reader".into());
            let _ = waits.spawn(move || child.wait());
            tracing::warn!(
                pid,
                "a process that asks NVML cannot be killed: a device hangs"
            );
        }
        Err(NvmlError::Silent(self.limit))
    }
}

fn ended(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait()? {
            None if Instant::now() < end => std::thread::sleep(LOOK),
            status => return Ok(status),
        }
    }
}

impl Nvml for NvmlReader {
    fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError> {
        // Files, which hold what they get: a pipe that a helper of the library has open never ends.
        let file = |name| memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
        let file = |name| file(name).map_err(|error| NvmlError::Process(error.into()));
        let (mut output, mut errors) = (file("output")?, file("errors")?);
        let theirs = |file: &File| file.try_clone().map_err(NvmlError::Process);
        let mut command = Command::new(&self.program);
        command.arg(NVML_READER).args(&self.library);
        command.current_dir("/").stdin(Stdio::null());
        command.stdout(theirs(&output)?).stderr(theirs(&errors)?);
        let child = command.spawn().map_err(NvmlError::Process)?;
        let status = self.wait(child)?;
        let text = |file: &mut File| -> Result<Vec<u8>, NvmlError> {
            let mut bytes = Vec::new();
            file.rewind().map_err(NvmlError::Process)?;
            let read = file.take(MOST).read_to_end(&mut bytes);
            read.map(|_| bytes).map_err(NvmlError::Process)
        };
        if status.success() {
            return Ok(serde_json::from_slice(&text(&mut output)?)?);
        }
        let said = text(&mut errors)?;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        match status.code() {
            Some(code) if code == i32::from(ABSENT) => Err(NvmlError::Absent(said)),
            _ => Err(NvmlError::Failed {
                how: status.to_string(),
                said,
            }),
        }
    }
}
