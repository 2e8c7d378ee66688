//! A running Firecracker.

use super::api::{
    Action, BalloonStatistics, BalloonUpdate, Call, InstanceInfo, InstanceState, SnapshotCreate,
    SnapshotType, VmState,
};
pub(super) use super::base::Base;
use super::base::{Bases, Turn};
use super::beginning::ANSWER;
use super::client::advice_of;
use super::figures::Figures;
use super::home::{Home, Way, name};
use super::link::Links;
use super::memory::MemoryServer;
use super::packing::Layer;
use super::serial::Serving;
use super::{Client, ClientError, Version, exit, packing};
use crate::hypervisor::{Balloon, BoxFuture, Pause, Snapshot, Vmm, VmmError, VmmExit};
use crate::process::{Identity, Process};
use crate::tail::Tail;
use crate::vm::chain;
use crate::vsock;
use aleph_guest_proto::VSOCK_PORT;
use aleph_types::MiB;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// How long a guest may take until its agent listens: more than any node gives it to boot, which ends
/// it then.
const BOOT: Duration = Duration::from_secs(2 * 86_400);

/// How long a VMM whose guest's memory is gone may take to be gone itself, and how long who speaks with it
/// may take to hear that it is.
const GOING: Duration = Duration::from_millis(500);

/// How long writing a guest down may take: all of its memory is in it.
const SAVE: Duration = Duration::from_secs(600);

/// How much memory is below the addresses that devices have, and since when diffs of more are right.
const BELOW_GAP: u64 = 3 << 30;
const RIGHT_DIFFS: Version = Version::new(1, 14, 2);

/// What a guest is written to.
const SAVED: [&str; 2] = [name::SAVED_STATE, name::SAVED_MEMORY];

/// What a process of Firecracker was begun with.
pub(super) struct Begun {
    pub(super) process: Process,
    pub(super) home: Home,
    pub(super) version: Version,
    /// What it logs; an adopted one's goes nowhere.
    pub(super) tail: Option<Tail>,
    /// What it counts of itself.
    pub(super) figures: Option<Figures>,
    /// Where the memory of a template is written.
    pub(super) template: Option<Lent>,
    /// What passes its console on.
    pub(super) console: Serving,
    /// What fills its memory.
    pub(super) memory_server: Option<MemoryServer>,
    /// Whether KVM notes which pages its guest writes to.
    pub(super) tracks: bool,
    /// How long its guest may take to end by its keys.
    pub(super) keys: Duration,
}

/// A file that is the VMM's for as long as it lives.
#[derive(Debug)]
pub(super) struct Lent {
    /// As the VMM sees it.
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl Lent {
    /// Takes it back: from now on others read it, and nobody writes to it.
    fn take_back(&self) -> io::Result<()> {
        use rustix::fs::{Mode, fchmod, fchown};
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        fchown(&self.file, Some(user), Some(group))?;
        Ok(fchmod(&self.file, Mode::from_raw_mode(0o444))?)
    }
}

/// A running Firecracker.
#[derive(Debug)]
pub(super) struct FirecrackerVmm {
    pub(super) process: Process,
    pub(super) home: Home,
    version: Version,
    client: OnceLock<(Way, Client)>,
    tail: Option<Tail>,
    figures: Option<Figures>,
    template: Option<Lent>,
    /// Why it was killed, where it does not say so itself.
    failure: Mutex<Option<String>>,
    /// Closed once it is known whether its guest goes on from a state.
    going_on: OnceLock<watch::Receiver<()>>,
    /// Whether its guest runs, or did.
    begun: watch::Sender<bool>,
    /// For as long as this lives.
    _console: Serving,
    /// That of a process which was launched ahead comes late.
    memory_server: OnceLock<MemoryServer>,
    tracks: bool,
    keys: Duration,
    bases: Bases,
    /// Those that are connected.
    links: Mutex<Option<Links>>,
    /// Whether all is taken away that it lived in, once that has begun.
    left: OnceLock<watch::Receiver<bool>>,
}

impl FirecrackerVmm {
    pub(super) fn new(begun: Begun) -> Self {
        let Begun {
            process,
            home,
            version,
            tail,
            figures,
            template,
            console,
            memory_server,
            tracks,
            keys,
        } = begun;
        let is_adopted = tail.is_none();
        Self {
            process,
            home,
            version,
            client: OnceLock::new(),
            tail,
            figures,
            template,
            failure: Mutex::default(),
            going_on: OnceLock::new(),
            begun: watch::Sender::new(is_adopted),
            _console: console,
            memory_server: memory_server.map(OnceLock::from).unwrap_or_default(),
            tracks,
            keys,
            bases: Bases::default(),
            links: Mutex::default(),
            left: OnceLock::new(),
        }
    }

    /// Its API, once there is one.
    pub(super) fn client(&self) -> Result<&Client, ClientError> {
        if let Some((_, client)) = self.client.get() {
            return Ok(client);
        }
        let way = self.home.socket(name::API);
        let way = way.map_err(|source| ClientError::Connect {
            socket: name::API.into(),
            source,
        })?;
        let client = Client::new(way.path.clone(), self.version);
        Ok(&self.client.get_or_init(|| (way, client)).1)
    }

    /// Its guest runs.
    pub(super) fn runs(&self) {
        self.begun.send_replace(true);
    }

    /// Its links last until it has ended.
    pub(super) fn keep(&self, links: Links) {
        let mut kept = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(links);
    }

    /// Its guest is to go on; whether it does is known once what this gives is dropped.
    pub(super) fn goes_on(&self) -> watch::Sender<()> {
        let (done, going_on) = watch::channel(());
        let _ = self.going_on.set(going_on);
        done
    }

    /// Waits until it is known whether its guest goes on, of which its end may be the reason.
    async fn has_gone_on(&self) {
        if let Some(going_on) = self.going_on.get() {
            let mut going_on = going_on.clone();
            let dropped = async { while going_on.changed().await.is_ok() {} };
            let _ = tokio::time::timeout(GOING, dropped).await;
        }
    }

    /// Its guest does not go on: it is killed, and its end says why.
    pub(super) fn fail(&self, why: &io::Error) {
        let mut said = format!("the guest does not go on: {}", chain(why));
        if let Some(advice) = advice_of(why) {
            said.push_str(". ");
            said.push_str(&advice);
        }
        self.end_because(said);
    }

    /// Kills it, and has its end say why, unless something else was first.
    pub(super) fn end_because(&self, why: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(why);
        let _ = self.process.kill();
    }

    /// Its guest's memory is filled by this one. It may have none yet.
    pub(super) fn is_served_by(self: &Arc<Self>, server: MemoryServer) {
        // There is no second one.
        let _ = self.memory_server.set(server);
        self.watch_memory_server();
    }

    /// Has it end with its memory server, where it has one: its guest would wait for ever. And has
    /// the server end with it.
    pub(super) fn watch_memory_server(self: &Arc<Self>) {
        if self.memory_server.get().is_none() {
            return;
        }
        let vmm = Arc::clone(self);
        tokio::spawn(async move {
            let Some(server) = vmm.memory_server.get() else {
                return;
            };
            tokio::select! {
                how = server.ended() => {
                    // A server sees its VMM end before we do: a large guest takes a while to go.
                    let end = tokio::time::timeout(GOING, vmm.process.wait()).await;
                    if end.is_err() {
                        vmm.end_because(format!("its memory server ended: {how}"));
                    }
                }
                _ = vmm.process.wait() => server.end().await,
            }
        });
    }

    /// Whether KVM notes which pages its guest writes to.
    pub(super) fn tracks(&self) -> bool {
        self.tracks
    }

    /// What is noted now is what has changed since its memory was that.
    pub(super) fn differs_from(&self, base: Base) {
        self.bases.set(base);
    }

    /// Its guest was written down, and has not gone on since.
    fn is_written(&self, turn: Turn, base: Base) {
        if self.tracks {
            self.bases.written(turn, base);
        }
    }

    /// Begins to write its guest down; gives what that can be a difference from. The next time that is
    /// something else.
    fn begin(&self, to: &File) -> (Turn, Option<Base>) {
        let (turn, base) = self.bases.begin(to);
        let is_right = |base: &Base| match base.size() {
            None => true,
            // Up to 1.14.1 diffs of more memory than is below the gap for devices were wrong.
            Some(size) => {
                let is_right = size <= BELOW_GAP || self.version >= RIGHT_DIFFS;
                is_right && self.home.keeps_small_holes()
            }
        };
        (turn, base.filter(is_right))
    }

    /// Takes files of its own away: to free as much as a guest's memory takes a while, and blocks.
    pub(super) async fn remove(self: &Arc<Self>, names: &'static [&'static str]) -> io::Result<()> {
        let vmm = Arc::clone(self);
        let removed = tokio::task::spawn_blocking(move || {
            names.iter().try_for_each(|name| vmm.home.remove(name))
        });
        removed.await.map_err(io::Error::other)?
    }

    /// Takes away what it lived in, once it has ended: once, whoever waits for it.
    async fn leave(self: &Arc<Self>) {
        let begin = || {
            let (done, left) = watch::channel(false);
            let vmm = Arc::clone(self);
            tokio::spawn(async move {
                vmm.leave_now().await;
                done.send_replace(true);
            });
            left
        };
        let mut left = self.left.get_or_init(begin).clone();
        let _ = left.wait_for(|left| *left).await;
    }

    async fn leave_now(self: Arc<Self>) {
        if let Some(server) = self.memory_server.get() {
            // It has the same user, whom another VM may get.
            server.end().await;
        }
        let vmm = Arc::clone(&self);
        let links = move || drop(vmm.links.lock().map(|mut links| links.take()));
        let _ = tokio::task::spawn_blocking(links).await;
        self.home.leave().await;
        if let Some(Err(error)) = self.template.as_ref().map(Lent::take_back) {
            tracing::warn!(%error, "a template's memory stays its VMM's");
        }
    }

    /// Presses the guest's keys, and waits for its end.
    async fn ends_by_keys(&self) -> bool {
        // One without a guest that runs has nobody to hear them, nor has one of another architecture.
        if !cfg!(target_arch = "x86_64") || !*self.begun.borrow() {
            return false;
        }
        let ended = async {
            let keys = Call::Action(Action::SendCtrlAltDel);
            match self.client() {
                Ok(client) if client.call(&keys, ANSWER).await.is_ok() => self.process.wait().await,
                _ => return false,
            };
            true
        };
        let ended = tokio::time::timeout(self.keys, ended).await;
        ended.unwrap_or(false)
    }

    async fn call(
        &self,
        command: &'static str,
        call: Call,
        limit: Duration,
    ) -> Result<(), VmmError> {
        let told = async { self.client()?.call(&call, limit).await };
        told.await.map_err(|error| Self::failed(command, error))
    }

    fn failed(command: &'static str, error: ClientError) -> VmmError {
        match error {
            ClientError::Silent { .. } => VmmError::Silent { command },
            ClientError::Connect { source, .. } => VmmError::Io(source),
            ClientError::Broken { .. } => VmmError::Io(io::Error::other(error)),
            refused => VmmError::Refused {
                command,
                why: refused.to_string(),
            },
        }
    }
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

impl Vmm for Arc<FirecrackerVmm> {
    fn identity(&self) -> Identity {
        self.process.identity().clone()
    }

    /// Waits until the guest's agent listens.
    fn channel(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async {
            let reached = async {
                let mut begun = self.begun.subscribe();
                let _ = begun.wait_for(|begun| *begun).await;
                let way = self.home.socket(name::VSOCK)?;
                let reached = vsock::reach(&way.path, VSOCK_PORT, BOOT).await;
                reached.map_err(io::Error::from)
            };
            tokio::select! {
                reached = reached => reached,
                exit = self.wait() => {
                    Err(io::Error::new(io::ErrorKind::BrokenPipe, exit.to_string()))
                }
            }
        })
    }

    fn listen(&self, port: u32) -> io::Result<UnixListener> {
        // Firecracker connects there, as its user (`docs/vsock.md`, "Guest-initiated connections").
        let name = format!("{}_{port}", name::VSOCK);
        let listener = match self.home.listen(&name) {
            // Whoever listened there is gone, such as an earlier process of this node.
            Err(error) if is_taken(&error) && self.home.is_deserted(&name) => {
                self.home.remove(&name)?;
                self.home.listen(&name)?
            }
            listening => listening?,
        };
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    /// Firecracker has no such call, and nothing to do before its end: what its guest has written is
    /// with the host's kernel. So its guest is asked first, by the keys that have a kernel restart its
    /// machine, which ends Firecracker. Then, where the guest does not, Firecracker is told.
    fn quit(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async {
            if !self.ends_by_keys().await {
                self.process.terminate()?;
            }
            Ok(())
        })
    }

    fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    fn kill(&self) -> Result<(), VmmError> {
        Ok(self.process.kill()?)
    }

    fn wait(&self) -> BoxFuture<'_, VmmExit> {
        Box::pin(async {
            let exit = self.process.wait().await;
            self.has_gone_on().await;
            self.leave().await;
            let log = self.tail.as_ref().map(Tail::text).unwrap_or_default();
            let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            let stderr = exit::describe(exit, failure.as_deref(), &log);
            VmmExit { exit, stderr }
        })
    }

    fn figures(&self) -> Option<BTreeMap<String, u64>> {
        self.figures.as_ref().map(Figures::now)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        Some(self)
    }

    fn snapshot(&self) -> Option<&dyn Snapshot> {
        Some(self)
    }
}

impl Pause for Arc<FirecrackerVmm> {
    fn pause(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(self.call("pause", Call::VmState(VmState::Paused), ANSWER))
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(self.call("resume", Call::VmState(VmState::Resumed), ANSWER))
    }

    fn is_paused(&self) -> BoxFuture<'_, Result<bool, VmmError>> {
        Box::pin(async {
            let info = async { self.client()?.get::<InstanceInfo>(ANSWER).await };
            let info = info
                .await
                .map_err(|error| FirecrackerVmm::failed("describe itself", error))?;
            Ok(info.state == InstanceState::Paused)
        })
    }
}

impl Balloon for Arc<FirecrackerVmm> {
    fn ask(&self, memory: MiB) -> BoxFuture<'_, Result<(), VmmError>> {
        let update = BalloonUpdate { amount_mib: memory };
        Box::pin(self.call("balloon", Call::BalloonUpdate(update), ANSWER))
    }

    fn given(&self) -> BoxFuture<'_, Result<MiB, VmmError>> {
        Box::pin(async {
            let told = async { self.client()?.get::<BalloonStatistics>(ANSWER).await };
            let told = told
                .await
                .map_err(|error| FirecrackerVmm::failed("balloon statistics", error))?;
            // It is no more than the guest's memory.
            Ok(MiB(u32::try_from(told.actual_mib).unwrap_or(u32::MAX)))
        })
    }
}

impl Snapshot for Arc<FirecrackerVmm> {
    fn save(&self, state: File) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            let [state_name, memory_name] = SAVED;
            self.remove(&SAVED).await?;
            let memory = self.template.as_ref().map(|lent| lent.path.clone());
            let is_elsewhere = memory.is_some();
            let (turn, base) = self.begin(&state);
            let create = SnapshotCreate {
                snapshot_type: match base {
                    Some(_) => SnapshotType::Diff,
                    None => SnapshotType::Full,
                },
                snapshot_path: self.home.seen(state_name),
                mem_file_path: memory.unwrap_or_else(|| self.home.seen(memory_name)),
            };
            let made = self
                .call("snapshot", Call::SnapshotCreate(create), SAVE)
                .await;
            let packed = match made {
                Ok(()) => {
                    let vmm = Arc::clone(self);
                    let packed = tokio::task::spawn_blocking(move || {
                        let mut from = vmm.home.written(state_name)?;
                        if is_elsewhere {
                            packing::pack(&state, &mut from, &[])?;
                            vmm.is_written(turn, Base::Template);
                            return Ok(());
                        }
                        let memory = vmm.home.written(memory_name)?;
                        let mut layers = Vec::new();
                        if let Some(Base::File { file, offset, .. }) = &base {
                            let offset = *offset;
                            layers.push(Layer { file, offset });
                        }
                        let (file, offset) = (&memory, 0);
                        layers.push(Layer { file, offset });
                        let offset = packing::pack(&state, &mut from, &layers)?;
                        if let Ok(base) = Base::named(&state, offset) {
                            vmm.is_written(turn, base);
                        }
                        Ok(())
                    });
                    match packed.await {
                        Ok(packed) => packed.map_err(VmmError::Io),
                        Err(join) => Err(VmmError::Io(io::Error::other(join))),
                    }
                }
                Err(error) => Err(error),
            };
            // What is packed is not needed twice, nor is what is half written.
            self.remove(&SAVED).await?;
            packed
        })
    }

    /// Its vsock is reset with it.
    fn ends_connections(&self) -> bool {
        true
    }

    /// A snapshot that was asked for comes to its end: Firecracker hears nothing else meanwhile.
    fn cancel(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async {
            let info = async { self.client()?.get::<InstanceInfo>(SAVE).await };
            let info = info.await.map(drop);
            info.map_err(|error| FirecrackerVmm::failed("describe itself", error))?;
            // It has written all of it by now, for nobody.
            Ok(self.remove(&SAVED).await?)
        })
    }
}
