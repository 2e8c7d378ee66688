//! Templates: guests that were booted once, initialised until their runtime asked for its first
//! event or their server listened, and written down.
//!
//! ```text
//! STATE/templates/<DeploymentId>/memory         the guest's memory, sparse
//!                                state          the state of its devices
//!                                template.json  what it was made of, and with
//! STATE/templates/.tmp-<pid>-<n>/               one that is being made
//! ```
//! A template appears whole, by a rename, or not at all. One that was made with another VMM,
//! kernel or processor is made anew, never begun from.

use super::cable::Cable;
use super::contract::Contract;
use super::conversation::{Conversation, Initialised};
use super::deployment::{Code, Deployment, DeploymentId};
use super::environment::{API_PORT, TASK_ROOT, environment};
use super::host::Host;
use super::output::{Ended, Output};
use super::server::Server;
use crate::executor::COMMAND_LINE;
use crate::guest::{
    AgentError, ExecEvent, ExecHandle, ExecRequest, MainPosition, MountRequest, SetupRequest,
    UpperKind,
};
use crate::hypervisor::{Disk, Memory};
use crate::node::Prepared;
use crate::place::{Place, PlaceError};
use crate::vm::{Begin, Ending, Vm, VmError, VmSpec};
use aleph_types::{Classify, ErrorClass, JobSpec, MiB, Problem, Resources, signal};
use aleph_vm_networking::NetworkError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Serial number of the disk with a function's code.
const TASK_SERIAL: &str = "task";

/// And its filesystem.
const TASK_FILESYSTEM: &str = "erofs";

/// The form of what is written: another one is made anew.
const FORM: u32 = 2;

/// How long a runtime may take to initialise. On a host without hardware virtualisation an
/// interpreter with its imports takes many seconds.
const INITIALISE: Duration = Duration::from_secs(120);

/// How long its guest may take to stand still.
const FREEZE: Duration = Duration::from_secs(30);

/// A template that could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum TemplateError {
    /// Its image or code is not there.
    #[error("{}", .0.message)]
    Image(Problem),
    /// It could not be made a moment ago.
    #[error("{}", .0.message)]
    Before(Problem),
    /// Functions have all the memory that they may have.
    #[error("functions have all the memory that they may have: there is no room for a template")]
    Memory,
    /// The runtime or the function did not initialise.
    #[error("the function does not initialise: {0}")]
    Initialise(String),
    /// The VM did not do what it should.
    #[error("the template's VM failed")]
    Vm(#[from] VmError),
    /// The guest did not do what it should.
    #[error("the template's guest failed")]
    Agent(#[from] AgentError),
    /// It could not be connected.
    #[error("the template cannot be connected")]
    Network(#[from] NetworkError),
    /// A place for it could not be made.
    #[error("cannot make room for the template")]
    Place(#[from] PlaceError),
    /// A file could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Classify for TemplateError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Image(problem) | Self::Before(problem) => problem.class,
            Self::Memory => ErrorClass::Capacity,
            Self::Initialise(_) => ErrorClass::Invalid,
            Self::Network(error) => error.class(),
            Self::Vm(_) | Self::Agent(_) | Self::Place(_) | Self::File { .. } => {
                ErrorClass::Unavailable
            }
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Image(_) => "function_image",
            Self::Before(_) => "function_template",
            Self::Memory => "function_memory",
            Self::Initialise(_) => "function_init",
            Self::Network(error) => error.code(),
            Self::Vm(_) | Self::Agent(_) => "template_vm",
            Self::Place(_) | Self::File { .. } => "template_files",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Image(problem) | Self::Before(problem) => problem.advice.clone(),
            Self::Initialise(_) => {
                Some("See that the handler's module loads, and deploy it again.".into())
            }
            Self::Network(error) => error.advice(),
            _ => None,
        }
    }
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TemplateError {
    move |source| TemplateError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What is written beside a template.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    form: u32,
    /// What it depends on: it goes on nowhere else.
    compatible_with: String,
    image_digest: String,
    contract: Contract,
    main_stream: u32,
    main_received: u64,
}

/// A template that clones can begin from.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) account: String,
    pub(super) function: String,
    pub(super) resources: Resources,
    pub(super) contract: Contract,
    pub(super) main: MainPosition,
    pub(super) state: Bytes,
    memory: File,
    image: File,
    task: Option<File>,
    generation: AtomicU64,
}

impl Template {
    /// The template of a deployment: the one that is there, or a new one.
    pub(super) async fn ensure(
        host: &Host,
        deployment: &Deployment,
    ) -> Result<Self, TemplateError> {
        let prepared = prepare(host, deployment).await?;
        let dir = host.templates().join(deployment.id().as_str());
        let compatible_with = compatible_with(host, &prepared)?;
        if let Some(record) = read(&dir, &compatible_with, &prepared.digest) {
            return Self::open(&dir, deployment, prepared, &record);
        }
        let record = make(host, deployment, &prepared, &dir, compatible_with).await?;
        Self::open(&dir, deployment, prepared, &record)
    }

    fn open(
        dir: &Path,
        deployment: &Deployment,
        prepared: Prepared,
        record: &Record,
    ) -> Result<Self, TemplateError> {
        let (state, memory) = (dir.join("state"), dir.join("memory"));
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            account: deployment.account.clone(),
            function: deployment.function.clone(),
            resources: resources(deployment),
            contract: record.contract.clone(),
            main: MainPosition {
                stream: record.main_stream,
                received: record.main_received,
            },
            state: fs::read(&state).map_err(at("read", &state))?.into(),
            memory: File::options()
                .read(true)
                .write(true)
                .open(&memory)
                .map_err(at("open", &memory))?,
            image: prepared.boot.image,
            task: task(deployment)?,
            // Above those of every clone that an earlier daemon made.
            generation: AtomicU64::new(
                u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX / 2),
            ),
        })
    }

    /// A number that no other clone has.
    pub(super) fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    /// The memory, to be mapped by a clone.
    pub(super) fn memory(&self) -> Result<File, TemplateError> {
        self.again(&self.memory)
    }

    /// An open file once more. They stay open, so that clones can begin while the template goes.
    fn again(&self, file: &File) -> Result<File, TemplateError> {
        let what = Path::new("a file of the template");
        file.try_clone().map_err(at("open again", what))
    }

    /// The disks of a clone.
    pub(super) fn disks(&self) -> Result<Vec<Disk>, TemplateError> {
        let task = self.task.as_ref().map(|file| self.again(file));
        Ok(disks(self.again(&self.image)?, task.transpose()?))
    }

    /// Removes the template of a deployment. Clones that run keep what they have of it.
    pub(super) fn remove(host: &Host, id: &DeploymentId) -> io::Result<()> {
        match fs::remove_dir_all(host.templates().join(id.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Removes what was being made when an earlier process ended.
pub(super) fn remove_unfinished(host: &Host) {
    let entries = fs::read_dir(host.templates())
        .into_iter()
        .flatten()
        .flatten();
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".tmp-")
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "a half-made template stays");
        }
    }
}

fn resources(deployment: &Deployment) -> Resources {
    Resources {
        cpus: 1,
        memory: deployment.memory,
        disk: MiB(0),
        ..Resources::default()
    }
}

fn disks(image: File, task: Option<File>) -> Vec<Disk> {
    let task = task.map(|file| Disk {
        serial: TASK_SERIAL,
        file,
        read_only: true,
    });
    let image = Disk {
        serial: crate::guest::agent::IMAGE_SERIAL,
        file: image,
        read_only: true,
    };
    [image].into_iter().chain(task).collect()
}

fn task(deployment: &Deployment) -> Result<Option<File>, TemplateError> {
    match &deployment.code {
        Code::Task { image, .. } => Ok(Some(File::open(image).map_err(at("open", image))?)),
        Code::Image { .. } => Ok(None),
    }
}

async fn prepare(host: &Host, deployment: &Deployment) -> Result<Prepared, TemplateError> {
    let image = match &deployment.code {
        Code::Task { runtime, .. } => runtime.as_str(),
        Code::Image { reference, .. } => reference.as_str(),
    };
    let spec = JobSpec::new(image, Vec::new());
    let uncompressed = host.driver.wants_uncompressed_kernel();
    let prepared = host
        .images
        .prepare(&deployment.account, &spec, uncompressed);
    prepared.await.map_err(TemplateError::Image)
}

/// What a template depends on, beside its deployment: whatever of it changes, it is made anew.
fn compatible_with(host: &Host, prepared: &Prepared) -> Result<String, TemplateError> {
    let mut parts = vec![host.driver.compatibility()];
    // A clone has the devices of its template.
    parts.push(
        if host.network.is_some() {
            "network"
        } else {
            "alone"
        }
        .to_owned(),
    );
    parts.push(host.region.clone());
    for file in [&prepared.boot.kernel, &prepared.boot.initrd] {
        // Kernel bundles never change, so what tells files apart tells bundles apart.
        let meta = file
            .metadata()
            .map_err(at("look at", Path::new("the kernel")))?;
        parts.push(format!("{}:{}:{}", meta.dev(), meta.ino(), meta.size()));
    }
    Ok(parts.join(" "))
}

fn read(dir: &Path, compatible_with: &str, image_digest: &str) -> Option<Record> {
    let record: Record = serde_json::from_slice(&fs::read(dir.join("template.json")).ok()?).ok()?;
    let is_ours = record.form == FORM
        && record.compatible_with == compatible_with
        && record.image_digest == image_digest;
    is_ours.then_some(record)
}

/// Makes a template, and puts it in the place of one that was there.
async fn make(
    host: &Host,
    deployment: &Deployment,
    prepared: &Prepared,
    dir: &Path,
    compatible_with: String,
) -> Result<Record, TemplateError> {
    let work = Work::begin(host)?;
    let memory_path = work.0.join("memory");
    let memory = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&memory_path)
        .map_err(at("make", &memory_path))?;
    // The VMM runs under its VM's own user and opens it by its descriptor; no other way leads
    // into this folder.
    memory
        .set_len(deployment.memory.bytes())
        .and_then(|()| {
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            Ok(rustix::fs::fchmod(&memory, mode)?)
        })
        .map_err(at("size", &memory_path))?;
    let again = |file: &File| file.try_clone().map_err(at("open again", &memory_path));
    let boot = &prepared.boot;
    // All that can fail comes before what would have to be undone.
    let (kernel, initrd) = (again(&boot.kernel)?, again(&boot.initrd)?);
    let image = again(&boot.image)?;
    let others = disks(again(&boot.image)?, task(deployment)?).split_off(1);
    let template_memory = Memory::Template(again(&memory)?);
    let place = Place::create(&host.paths, host.cgroups.as_ref())?;
    let whose = (deployment.account.as_str(), deployment.function.as_str());
    // The device that clones have, and a network for what initialises over it.
    let laid = Cable::lay(host.network.as_ref(), place.vm(), whose).await;
    let (cable, nics) = match laid {
        Ok(laid) => laid,
        Err(error) => {
            place.remove()?;
            return Err(error.into());
        }
    };
    let spec = VmSpec {
        resources: resources(deployment),
        begin: Begin::Boot {
            kernel,
            initrd,
            command_line: COMMAND_LINE.to_owned(),
            setup: Box::new(SetupRequest {
                hostname: "template".into(),
                filesystem: boot.filesystem.clone(),
                upper: UpperKind::Memory,
                // A clone whose daemon was killed ends by itself, unless it is paused.
                poweroff_on_hangup: true,
                network: cable.told.clone(),
            }),
        },
        image,
        disks: others,
        memory: template_memory,
        nics,
        timeouts: host.timeouts,
        ending: Ending {
            kept: false,
            stop_signal: signal::TERM,
        },
    };
    let vm = Vm::create(place, Arc::clone(&host.driver), spec);
    let made = initialise(host, deployment, prepared, &vm, &work).await;
    // Whatever became of it, nothing of the VM stays. Where this fails, a sweep removes it.
    let _ = vm.kill().await;
    let _ = vm.destroy().await;
    cable.undo().await;
    let (main, contract) = made?;
    let record = Record {
        form: FORM,
        compatible_with,
        image_digest: prepared.digest.clone(),
        contract,
        main_stream: main.stream,
        main_received: main.received,
    };
    work.finish(&record, dir)?;
    Ok(record)
}

/// Boots the guest, starts the runtime, waits until it asks for its first event or listens, and
/// writes the guest down.
async fn initialise(
    host: &Host,
    deployment: &Deployment,
    prepared: &Prepared,
    vm: &Vm,
    work: &Work,
) -> Result<(MainPosition, Contract), TemplateError> {
    vm.start(None).await?;
    vm.running().await?;
    let agent = vm.agent()?;
    for mount in mounts(deployment) {
        agent.mount(&mount).await?;
    }
    agent.listen(API_PORT).await?;
    let conversation = Conversation::new(false);
    let output = Arc::new(Output::new());
    let runtime = runtime(host, deployment, prepared);
    let server = Server::of(&runtime.env.iter().cloned().collect());
    let mut main = agent.exec(&runtime)?;
    let stream = main.stream();
    let serve = Arc::clone(&conversation).serve(agent.clone());
    let ready = async {
        let (received, contract) = {
            let pump = pump(&mut main, &output);
            let waited = async {
                tokio::select! {
                    found = Contract::find(&agent, &conversation, server) => match found? {
                        (contract, Initialised::Ready) => Ok(contract),
                        (_, Initialised::Failed(why)) => {
                            let why = String::from_utf8_lossy(&why).into_owned();
                            Err(TemplateError::Initialise(explain(&why, &output)))
                        }
                    },
                    ended = output.ended() => {
                        Err(TemplateError::Initialise(explain(&said(&ended), &output)))
                    }
                    () = tokio::time::sleep(INITIALISE) => {
                        let limit = INITIALISE.as_secs();
                        let why = format!("no first request, and no server, within {limit} s");
                        Err(TemplateError::Initialise(explain(&why, &output)))
                    }
                }
            };
            let contract = tokio::select! {
                waited = waited => waited?,
                () = pump => {
                    let why = said(&output.ended().await);
                    return Err(TemplateError::Initialise(explain(&why, &output)));
                }
            };
            // What it wrote until it stood still is not written again by its clones.
            let frozen = async {
                agent.freeze().await?;
                agent.ping().await?;
                Ok::<_, AgentError>(main_position(&mut main, &output).await)
            };
            let frozen = tokio::time::timeout(FREEZE, frozen).await;
            (frozen.unwrap_or(Err(AgentError::Stalled))?, contract)
        };
        vm.pause().await?;
        let state = work.0.join("state");
        let file = File::create(&state).map_err(at("make", &state))?;
        vm.save(file).await?;
        Ok((MainPosition { stream, received }, contract))
    };
    tokio::select! {
        ready = ready => ready,
        () = serve => Err(AgentError::Closed.into()),
    }
}

/// Takes in what the runtime writes, until it ends.
pub(super) async fn pump(main: &mut ExecHandle, output: &Output) {
    loop {
        let event = tokio::select! {
            biased;
            event = main.next() => event,
            // Nothing waits.
            asked = output.asked() => {
                output.settled(asked);
                continue;
            }
        };
        match event {
            Ok(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => {
                output.push(&bytes);
                let _ = main.stored(main.position());
            }
            Ok(ExecEvent::Started(_)) => {}
            Ok(ExecEvent::Exited(status)) => {
                output.end(Ended::Exited(status));
                return;
            }
            Err(AgentError::Failed { message, .. }) => {
                output.end(Ended::Gone(message));
                return;
            }
            Err(error) => {
                output.end(Ended::Gone(error.to_string()));
                return;
            }
        }
    }
}

/// How much of a frozen runtime's output has come, once all of it has.
async fn main_position(main: &mut ExecHandle, output: &Output) -> u64 {
    // All that it wrote was sent before the answer to the ping, and waits here.
    let _ = tokio::time::timeout(Duration::ZERO, pump(main, output)).await;
    main.position()
}

/// What a kernel and a runtime take of a guest's memory, more or less.
const TAKEN: u32 = 64;

/// How much `/tmp` holds. It is in the guest's memory: with more than half of what there is beside
/// kernel and runtime, whoever fills it would have the kernel kill the runtime, instead of an error
/// that says so.
fn temporary(deployment: &Deployment) -> MiB {
    let most = deployment.memory.0.saturating_sub(TAKEN) / 2;
    deployment.temporary.min(MiB(most.max(1)))
}

fn mounts(deployment: &Deployment) -> Vec<MountRequest> {
    let task = matches!(deployment.code, Code::Task { .. }).then(|| MountRequest {
        serial: TASK_SERIAL.into(),
        filesystem: TASK_FILESYSTEM.into(),
        target: TASK_ROOT.into(),
        read_only: true,
        options: String::new(),
    });
    let temporary = MountRequest {
        serial: String::new(),
        filesystem: "tmpfs".into(),
        target: "/tmp".into(),
        read_only: false,
        options: format!("size={}m,mode=1777", temporary(deployment).0),
    };
    task.into_iter().chain([temporary]).collect()
}

fn runtime(host: &Host, deployment: &Deployment, prepared: &Prepared) -> ExecRequest {
    let defaults = &prepared.defaults;
    let command = if deployment.command.is_empty() {
        &defaults.command
    } else {
        &deployment.command
    };
    let env = environment(deployment, &defaults.env, &host.region);
    ExecRequest {
        argv: defaults.entrypoint.iter().chain(command).cloned().collect(),
        env: env.into_iter().collect(),
        workdir: defaults.workdir.clone().unwrap_or(TASK_ROOT.into()),
        user: defaults.user.clone().unwrap_or_default(),
        main: true,
        keep: true,
        ..ExecRequest::default()
    }
}

/// How a runtime ended, in words.
pub(super) fn said(ended: &Ended) -> String {
    match ended {
        Ended::Exited(status) => format!("the runtime ended with {status}"),
        Ended::Gone(why) => why.clone(),
    }
}

fn explain(why: &str, output: &Output) -> String {
    let tail = output.take();
    let tail = crate::console::visible(String::from_utf8_lossy(&tail).trim());
    if tail.is_empty() {
        why.to_owned()
    } else {
        format!("{why}; it wrote: {tail}")
    }
}

/// A folder in which a template is made. It goes where the template does not become one.
struct Work(PathBuf);

impl Work {
    fn begin(host: &Host) -> Result<Self, TemplateError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let templates = host.templates();
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = templates.join(format!(".tmp-{}-{n}", std::process::id()));
        let private = |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path);
        private(&templates)
            .and_then(|()| private(&path))
            .map_err(at("make", &path))?;
        Ok(Self(path))
    }

    /// Makes it durable, and then a template.
    fn finish(self, record: &Record, dir: &Path) -> Result<(), TemplateError> {
        let path = self.0.join("template.json");
        let json = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        json.and_then(|json| fs::write(&path, json))
            .map_err(at("write", &path))?;
        for name in ["memory", "state", "template.json"] {
            let path = self.0.join(name);
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(at("write out", &path))?;
        }
        // One of an older form or host may be there.
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("replace", dir)(error));
            }
            _ => {}
        }
        fs::rename(&self.0, dir).map_err(at("name", dir))?;
        let parent = dir.parent().unwrap_or(dir);
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(at("write out", parent))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Where it became a template there is nothing of this name.
        let _ = fs::remove_dir_all(&self.0);
    }
}
