//! One process that waits, from its launch until it has a guest.

use crate::cgroup::Limits;
use crate::functions::cable::Cable;
use crate::functions::environment::API_PORT;
use crate::functions::host::Host;
use crate::functions::instance::{Body, CloneError, PIDS, Spare};
use crate::functions::peak::Peak;
use crate::functions::stack::Stack;
use crate::functions::template::Template;
use crate::hypervisor::{Ahead, AheadLaunch, Late, Shape, Waiting};
use crate::node::network::Queues;
use crate::place::Place;
use aleph_types::VmId;
use aleph_vm_networking::tap::Tun;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use tokio::net::UnixStream;

/// A process that waits for a guest, with all that it needs and no guest decides. Dropped, it is
/// killed and removed.
#[derive(Debug)]
pub(super) struct PooledProcess {
    pub(super) shape: Shape,
    /// Which VMM it is of, as snapshots have it.
    pub(super) compatibility: String,
    body: Body,
    waiting: Box<dyn Waiting>,
    state: UnixStream,
    link: OwnedFd,
    /// The other descriptor of what it has as its network device.
    tun: Option<Tun>,
}

impl PooledProcess {
    /// Launches one.
    pub(super) async fn launch(
        host: &Host,
        ahead: &dyn Ahead,
        shape: Shape,
    ) -> Result<Self, CloneError> {
        crate::failpoint::pass("process.launch", "before");
        let place = Arc::new(Place::create(&host.paths, host.cgroups.as_ref())?);
        match Self::launch_at(host, ahead, shape, Arc::clone(&place)).await {
            Ok(process) => {
                crate::failpoint::pass("process.launch", "after");
                let vmm = process.waiting.vmm().identity();
                // Where this fails it goes, VMM first.
                place.record(&vmm)?;
                Ok(process)
            }
            Err(error) => {
                // Nothing runs there.
                if let Err(error) = place.remove() {
                    tracing::warn!(vm = %place.vm(), %error, "a process's place stays until the next sweep");
                }
                Err(error)
            }
        }
    }

    async fn launch_at(
        host: &Host,
        ahead: &dyn Ahead,
        shape: Shape,
        place: Arc<Place>,
    ) -> Result<Self, CloneError> {
        // Asked before it is launched: one that is replaced meanwhile is another one afterwards.
        let compatibility = host.driver.compatibility();
        let sockets = place.listen()?;
        let cgroup = place.make_cgroup(&Limits {
            cpus: shape.resources.cpus,
            memory: shape.resources.memory,
            pids: PIDS,
            io_bytes_per_second: None,
        })?;
        let ends = host.driver.link().await?;
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let state = UnixStream::from_std(ours)?;
        // A file that is open in this namespace, as its interface will be.
        let tun = (shape.nics > 0).then(Tun::open).transpose()?;
        let queue = tun.as_ref().map(Tun::duplicate).transpose()?;
        let launched = ahead.launch(AheadLaunch {
            vm: place.vm(),
            shape: shape.clone(),
            state: OwnedFd::from(theirs),
            queues: queue.into_iter().collect(),
            links: vec![ends.vmm],
            folder: place.make_late()?,
            sockets,
            run_dir: place.run_dir().to_owned(),
            cgroup,
            user: rustix::process::geteuid()
                .is_root()
                .then(|| place.vm().uid()),
        });
        let waiting = launched.await?;
        let vmm = waiting.vmm();
        let body = Body {
            cable: Arc::new(Cable::none(place.vm())),
            place,
            peak: Peak::of(&vmm.identity()).ok(),
            vmm,
            burials: host.burials.clone(),
        };
        Ok(Self {
            shape,
            compatibility,
            body,
            waiting,
            state,
            link: ends.host,
            tun,
        })
    }

    pub(super) fn vm(&self) -> VmId {
        self.body.place.vm()
    }

    /// Whether it has not been seen to end.
    pub(super) fn is_alive(&self) -> bool {
        !self.waiting.vmm().has_ended()
    }

    /// Makes it a spare of a template of its shape.
    pub(super) async fn begin(
        self,
        host: &Host,
        template: Arc<Template>,
    ) -> Result<Spare, CloneError> {
        let Self {
            mut body,
            waiting,
            state,
            link,
            tun,
            ..
        } = self;
        if let Some(tun) = tun {
            let (network, vm) = (host.network.as_ref(), body.place.vm());
            let whose = (template.account.as_str(), template.function.as_str());
            let (cable, _) = Cable::lay_by(network, vm, whose, Queues::Opened(tun)).await?;
            body.cable = Arc::new(cable);
        }
        let stack = Stack::over(link, API_PORT, &template.connections)?;
        let late = Late {
            memory: template.memory()?,
            disks: template.disks()?,
        };
        crate::failpoint::pass("process.begin", "before");
        waiting.begin(late).await?;
        crate::failpoint::pass("process.begin", "after");
        Ok(Spare {
            body,
            state,
            stack,
            template,
        })
    }
}
