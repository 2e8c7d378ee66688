//! From requests to what they ask for.

use crate::action::{Action, Kind};
use crate::bodies::{
    ActionBody, ActionType, BackendType, CpuConfig, Drive, DriveUpdate, Hinting,
    HotplugMemoryUpdate, LoadSnapshot, Machine, MachineUpdate, MemoryBackend, MmdsConfig,
    MmdsVersion, Nic, NicUpdate, Pmem, PmemUpdate, Vm, VmState, Vsock,
};
use crate::gate;
use crate::http::{Method, Request};
use crate::version::Version;
use serde::de::Error as _;

/// A request that is understood.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) action: Action,
    /// What of it is deprecated.
    pub(crate) deprecated: Option<&'static str>,
}

impl From<Action> for Parsed {
    fn from(action: Action) -> Self {
        Self {
            action,
            deprecated: None,
        }
    }
}

/// Why a request is not understood, in the server's words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("The ID cannot be empty.")]
    EmptyId,
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    InvalidId,
    #[error("{0}")]
    Generic(String),
    #[error("Invalid request method and/or path: {1} {0}.")]
    Path(String, Method),
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
}

/// How the log tells of a request.
pub(crate) fn describe(request: &Request) -> String {
    let (method, path) = (request.method, &request.path);
    match &request.body {
        Some(_) if path == "/cpu-config" => format!(
            "{method:?} request on {path:?}. To view the CPU template received by the API, \
             configure log-level to DEBUG"
        ),
        Some(body) if path != "/mmds" => {
            let body = String::from_utf8_lossy(body);
            format!("{method:?} request on {path:?} with body {body:?}")
        }
        _ => format!("{method:?} request on {path:?}"),
    }
}

fn generic<T>(text: &str) -> Result<T, Refused> {
    Err(Refused::Generic(text.to_owned()))
}

fn checked(id: Option<&str>) -> Result<&str, Refused> {
    let id = id.ok_or(Refused::EmptyId)?;
    if id.chars().all(|c| c == '_' || c.is_alphanumeric()) {
        Ok(id)
    } else {
        Err(Refused::InvalidId)
    }
}

fn same(path: &str, body: &str) -> Result<(), Refused> {
    if path == body {
        return Ok(());
    }
    generic("The id from the path does not match the id from the body!")
}

fn same_nic(path: &str, body: &str) -> Result<(), Refused> {
    if path == body {
        return Ok(());
    }
    generic(&format!(
        "The id from the path [{path}] does not match the id from the body [{body}]!"
    ))
}

/// Understands a request as a version does.
pub(crate) fn parse(request: &Request, version: Version) -> Result<Parsed, Refused> {
    let mut words = request.path.trim_start_matches('/').split_terminator('/');
    let first = words.next().unwrap_or("");
    let unknown = || Refused::Path(first.to_owned(), request.method);
    match (request.method, &request.body) {
        (Method::Get, None) => get(first, words, version)?.ok_or_else(unknown),
        (Method::Get, Some(_)) => generic("GET request cannot have a body."),
        (Method::Put, None) => generic("Empty PUT request."),
        (Method::Put, Some(body)) => put(first, words.next(), body, version)?.ok_or_else(unknown),
        (Method::Patch, body) if first == "balloon" => {
            balloon(words.next(), words.next(), body.as_deref(), version)
        }
        (Method::Patch, None) => generic("Empty PATCH request."),
        (Method::Patch, Some(body)) => {
            patch(first, words.next(), body, version)?.ok_or_else(unknown)
        }
        (Method::Delete, None) => {
            let kind = match first {
                "drives" => Kind::Drive,
                "pmem" => Kind::Pmem,
                "network-interfaces" => Kind::Nic,
                _ => return Err(unknown()),
            };
            let id = checked(words.next())?.to_owned();
            Ok(Action::Unplug(kind, id).into())
        }
        (Method::Delete, Some(_)) => generic("Empty Delete request."),
    }
}

fn get<'a>(
    first: &str,
    mut words: impl Iterator<Item = &'a str>,
    version: Version,
) -> Result<Option<Parsed>, Refused> {
    let action = match first {
        "" => Action::Info,
        "version" => Action::Version,
        "machine-config" => Action::MachineConfig,
        "mmds" => Action::Mmds,
        "vm" if words.next() == Some("config") => Action::FullConfig,
        "hotplug" if version.has(14) && words.next() == Some("memory") => Action::HotplugMemory,
        "balloon" => match words.next() {
            None => Action::BalloonConfig,
            Some("statistics") => Action::BalloonStatistics,
            Some("hinting") if version.has(14) => match words.next() {
                Some("status") => Action::HintingStatus,
                other => {
                    let other = other.unwrap_or("");
                    return generic(&format!(
                        "Unrecognized GET request path `/hinting/{other}`."
                    ));
                }
            },
            Some(other) => return generic(&format!("Unrecognized GET request path `{other}`.")),
        },
        _ => return Ok(None),
    };
    Ok(Some(action.into()))
}

fn put(
    first: &str,
    second: Option<&str>,
    body: &[u8],
    version: Version,
) -> Result<Option<Parsed>, Refused> {
    let parsed: Parsed = match first {
        "actions" => match gate::parse::<ActionBody>(body, version)?.action_type {
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::InstanceStart => Action::Start,
            ActionType::SendCtrlAltDel => Action::CtrlAltDel,
        }
        .into(),
        "balloon" => Action::SetBalloon(gate::parse(body, version)?).into(),
        "boot-source" => Action::SetBootSource(gate::parse(body, version)?).into(),
        "cpu-config" => {
            gate::parse::<CpuConfig>(body, version)?;
            Action::SetCpuConfig.into()
        }
        "drives" => {
            let id = checked(second)?;
            let drive: Drive = gate::parse(body, version)?;
            same(id, &drive.drive_id)?;
            Action::SetDrive(drive).into()
        }
        "pmem" if version.has(14) => {
            let id = checked(second)?;
            let pmem: Pmem = gate::parse(body, version)?;
            same(id, &pmem.id)?;
            Action::SetPmem(pmem).into()
        }
        "network-interfaces" => {
            let id = checked(second)?;
            let nic: Nic = gate::parse(body, version)?;
            same_nic(id, &nic.iface_id)?;
            Action::SetNic(nic).into()
        }
        "logger" => Action::SetLogger(gate::parse(body, version)?).into(),
        "metrics" => Action::SetMetrics(gate::parse(body, version)?).into(),
        "serial" if version.has(14) => Action::SetSerial(gate::parse(body, version)?).into(),
        "machine-config" => {
            let machine: Machine = gate::parse(body, version)?;
            let deprecated = machine
                .cpu_template
                .map(|_| "PUT /machine-config: cpu_template field is deprecated.");
            Parsed {
                action: Action::SetMachine(machine.into()),
                deprecated,
            }
        }
        "mmds" => match second {
            None => Action::PutMmds(gate::parse(body, version)?).into(),
            Some("config") => {
                let config: MmdsConfig = gate::parse(body, version)?;
                let deprecated = (config.version == MmdsVersion::V1)
                    .then_some("PUT /mmds/config: V1 is deprecated. Use V2 instead.");
                Parsed {
                    action: Action::SetMmdsConfig(config),
                    deprecated,
                }
            }
            Some(other) => return generic(&format!("Unrecognized PUT request path `{other}`.")),
        },
        "snapshot" => match second {
            Some("create") => Action::CreateSnapshot(gate::parse(body, version)?).into(),
            Some("load") => load(gate::parse(body, version)?)?,
            Some(other) => {
                return Err(Refused::Path(format!("/snapshot/{other}"), Method::Put));
            }
            None => return generic("Missing snapshot operation type."),
        },
        "vsock" => {
            let vsock: Vsock = gate::parse(body, version)?;
            let deprecated = vsock.vsock_id.is_some();
            Parsed {
                action: Action::SetVsock(vsock),
                deprecated: deprecated.then_some("PUT /vsock: vsock_id field is deprecated."),
            }
        }
        "entropy" => Action::SetEntropy(gate::parse(body, version)?).into(),
        "hotplug" if version.has(14) && second == Some("memory") => {
            Action::SetHotplugMemory(gate::parse(body, version)?).into()
        }
        _ => return Ok(None),
    };
    Ok(Some(parsed))
}

fn load(mut load: LoadSnapshot) -> Result<Parsed, Refused> {
    let custom = |text| Err(Refused::Json(serde_json::Error::custom(text)));
    let deprecated = load.mem_file_path.is_some() || load.enable_diff_snapshots;
    let memory = match (load.mem_backend.take(), load.mem_file_path.take()) {
        (Some(_), Some(_)) => {
            return custom(
                "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
            );
        }
        (None, None) => {
            return custom("missing field: either `mem_backend` or `mem_file_path` is required");
        }
        (Some(backend), None) => backend,
        (None, Some(backend_path)) => MemoryBackend {
            backend_path,
            backend_type: BackendType::File,
        },
    };
    Ok(Parsed {
        action: Action::LoadSnapshot(load, memory),
        deprecated: deprecated.then_some(
            "PUT /snapshot/load: mem_file_path and enable_diff_snapshots fields are deprecated.",
        ),
    })
}

fn patch(
    first: &str,
    second: Option<&str>,
    body: &[u8],
    version: Version,
) -> Result<Option<Parsed>, Refused> {
    let parsed: Parsed = match first {
        "drives" => {
            let id = checked(second)?;
            let update: DriveUpdate = gate::parse(body, version)?;
            same(id, &update.drive_id)?;
            Action::UpdateDrive(update).into()
        }
        "machine-config" => {
            let update: MachineUpdate = gate::parse(body, version)?;
            if update == MachineUpdate::default() {
                return generic("Empty PATCH request.");
            }
            let deprecated = update
                .cpu_template
                .map(|_| "PATCH /machine-config: cpu_template field is deprecated.");
            Parsed {
                action: Action::SetMachine(update),
                deprecated,
            }
        }
        "mmds" => Action::PatchMmds(gate::parse(body, version)?).into(),
        "network-interfaces" => {
            let id = checked(second)?;
            let update: NicUpdate = gate::parse(body, version)?;
            same_nic(id, &update.iface_id)?;
            Action::UpdateNic(update).into()
        }
        "pmem" if version.has(16) => {
            let id = checked(second)?;
            let update: PmemUpdate = gate::parse(body, version)?;
            same(id, &update.id)?;
            Action::UpdatePmem(update).into()
        }
        "vm" => match gate::parse::<Vm>(body, version)?.state {
            VmState::Paused => Action::Pause,
            VmState::Resumed => Action::Resume,
        }
        .into(),
        "hotplug" if version.has(14) && second == Some("memory") => {
            gate::parse::<HotplugMemoryUpdate>(body, version)?;
            Action::UpdateHotplugMemory.into()
        }
        _ => return Ok(None),
    };
    Ok(Some(parsed))
}

fn balloon(
    second: Option<&str>,
    third: Option<&str>,
    body: Option<&[u8]>,
    version: Version,
) -> Result<Parsed, Refused> {
    let action = match (second, body) {
        (Some("statistics"), Some(body)) => {
            Action::UpdateBalloonStatistics(gate::parse(body, version)?)
        }
        (Some("hinting"), body) if version.has(14) => match third {
            Some("start") => {
                if let Some(body) = body {
                    gate::parse::<Hinting>(body, version)?;
                }
                Action::StartHinting
            }
            Some("stop") => Action::StopHinting,
            other => {
                let other = other.unwrap_or("");
                return generic(&format!(
                    "Unrecognized PATCH request path `/hinting/{other}`."
                ));
            }
        },
        (Some(other), Some(_)) if !version.has(14) => {
            return generic(&format!("Unrecognized PATCH request path `{other}`."));
        }
        (_, Some(body)) => Action::UpdateBalloon(gate::parse(body, version)?),
        (_, None) => return generic("Empty PATCH request."),
    };
    Ok(action.into())
}
