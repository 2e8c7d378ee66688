//! The making of a template: its guest is booted, its function initialised, and both written down.

use super::error::{TemplateError, at};
use super::folder::{FORM, Record, Work};
use super::guest::{KERNEL, disks, mounts, resources, runtime, task};
use crate::executor::COMMAND_LINE;
use crate::functions::cable::Cable;
use crate::functions::contract::Contract;
use crate::functions::conversation::{Conversation, Initialised};
use crate::functions::deployment::Deployment;
use crate::functions::environment::API_PORT;
use crate::functions::host::Host;
use crate::functions::output::{Output, pump};
use crate::functions::server::Server;
use crate::functions::stack::{self, Kept, Stack};
use crate::guest::{AgentError, ExecHandle, MainPosition, SetupRequest, UpperKind};
use crate::hypervisor::{Link, Machine, Memory};
use crate::node::Prepared;
use crate::place::Place;
use crate::vm::{Begin, Ending, Vm, VmSpec};
use aleph_types::signal;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a runtime may take to initialise. On a host without hardware virtualisation an
/// interpreter with its imports takes many seconds.
const INITIALISE: Duration = Duration::from_secs(120);

/// How long its guest may take to stand still.
const FREEZE: Duration = Duration::from_secs(30);

/// A template that is being made.
pub(super) struct Making {
    pub(super) host: Arc<Host>,
    pub(super) deployment: Arc<Deployment>,
    pub(super) prepared: Prepared,
    pub(super) dir: PathBuf,
    /// Cancelled once nobody waits for it.
    pub(super) given_up: CancellationToken,
}

impl Making {
    /// Makes it, and puts it in the place of one that was there.
    pub(super) async fn run(
        self,
        compatible_with: String,
    ) -> Result<(Record, Prepared), TemplateError> {
        let record = make(&self, compatible_with).await?;
        Ok((record, self.prepared))
    }
}

async fn make(making: &Making, compatible_with: String) -> Result<Record, TemplateError> {
    let Making {
        host,
        deployment,
        prepared,
        dir,
        given_up,
    } = making;
    let _room = host.rooms.take(host.paths.state(), deployment.memory)?;
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
    let ends = host.driver.link().await?;
    let stack = Stack::over(ends.host, API_PORT, &[]).map_err(TemplateError::Link)?;
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
        machine: Machine::MicroVm,
        begin: Begin::Boot {
            kernel,
            initrd,
            command_line: format!("{COMMAND_LINE}{KERNEL}"),
            setup: Box::new(SetupRequest {
                // As long as that of each clone.
                hostname: format!("fn-{}", place.vm()),
                filesystem: boot.filesystem.clone(),
                upper: UpperKind::Memory,
                // A clone whose daemon was killed ends by itself, unless it is paused.
                poweroff_on_hangup: true,
                network: cable.told.clone(),
                mounts: Vec::new(),
            }),
        },
        image: Some(image),
        disks: others,
        memory: template_memory,
        nics,
        links: vec![Link {
            mac: stack::GUEST_MAC,
            socket: ends.vmm,
        }],
        timeouts: host.timeouts,
        ending: Ending {
            kept: false,
            stop_signal: signal::TERM,
            durable: false,
        },
    };
    let vm = Vm::create(place, Arc::clone(&host.driver), spec);
    let made = tokio::select! {
        biased;
        () = given_up.cancelled() => Err(TemplateError::GivenUp),
        made = initialise(host, deployment, prepared, (&vm, stack), &work) => made,
    };
    // Whatever became of it, nothing of the VM stays. Where this fails, a sweep removes it.
    let _ = vm.kill().await;
    let _ = vm.destroy().await;
    cable.undo().await;
    let (main, contract, connections) = made?;
    if given_up.is_cancelled() {
        // Whoever gave it up may have removed what there was of it, and does not come again.
        return Err(TemplateError::GivenUp);
    }
    let record = Record {
        form: FORM,
        compatible_with,
        image_digest: prepared.digest.clone(),
        contract,
        main_stream: main.stream,
        main_received: main.received,
        connections,
    };
    work.finish(&record, dir)?;
    if given_up.is_cancelled() {
        // Given up while it was being named: whoever did that looked before it was there.
        std::fs::remove_dir_all(dir).map_err(at("remove", dir))?;
        return Err(TemplateError::GivenUp);
    }
    Ok(record)
}

/// Boots the guest, starts the runtime, waits until it asks for its first event or listens, and
/// writes the guest down.
async fn initialise(
    host: &Host,
    deployment: &Deployment,
    prepared: &Prepared,
    (vm, stack): (&Vm, Stack),
    work: &Work,
) -> Result<(MainPosition, Contract, Vec<Kept>), TemplateError> {
    vm.start(None).await?;
    vm.running().await?;
    let agent = vm.agent()?;
    for mount in mounts(deployment) {
        agent.mount(&mount).await?;
    }
    agent.link(stack::told()).await?;
    let conversation = Conversation::new(false);
    let output = Arc::new(Output::new());
    let runtime = runtime(host, deployment, prepared);
    let server = Server::of(&runtime.env.iter().cloned().collect());
    let mut main = agent.exec(&runtime)?;
    let stream = main.stream();
    let serve = Arc::clone(&conversation).serve(stack.clone());
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
                        Err(TemplateError::Initialise(explain(&ended.to_string(), &output)))
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
                    let why = output.ended().await.to_string();
                    return Err(TemplateError::Initialise(explain(&why, &output)));
                }
            };
            // What it wrote until it stood still is not written again by its clones.
            let frozen = async {
                agent.freeze().await?;
                agent.ping().await?;
                agent.settle().await?;
                Ok::<_, AgentError>(main_position(&mut main, &output).await)
            };
            let frozen = tokio::time::timeout(FREEZE, frozen).await;
            (frozen.unwrap_or(Err(AgentError::Stalled))?, contract)
        };
        // A connection stays what it is while nobody speaks.
        let connections = stack.kept().await;
        if contract == Contract::RuntimeApi && !connections.iter().any(Kept::has_request) {
            // Whatever happened to it: no clone would ever ask for an event.
            return Err(AgentError::Stalled.into());
        }
        vm.pause().await?;
        let state = work.0.join("state");
        let file = File::create(&state).map_err(at("make", &state))?;
        vm.save(file).await?;
        let main = MainPosition { stream, received };
        Ok((main, contract, connections))
    };
    tokio::select! {
        ready = ready => ready,
        () = serve => Err(AgentError::Closed.into()),
    }
}

/// How much of a frozen runtime's output has come, once all of it has.
async fn main_position(main: &mut ExecHandle, output: &Output) -> u64 {
    // All that it wrote was sent before the answer to the ping, and waits here.
    let _ = tokio::time::timeout(Duration::ZERO, pump(main, output)).await;
    main.position()
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
