//! What the guest of a template has: resources, disks, mounts and the runtime's command.

use super::error::{TemplateError, at};
use crate::functions::deployment::{Code, Deployment};
use crate::functions::environment::{TASK_ROOT, environment};
use crate::functions::host::Host;
use crate::functions::stack::GUEST_MAC;
use crate::guest::{ExecRequest, MountRequest};
use crate::hypervisor::{Disk, Shape};
use crate::node::Prepared;
use aleph_types::{MiB, Resources};
use std::fs::File;

/// Serial number of the disk with a function's code.
const TASK_SERIAL: &str = "task";

/// And its filesystem.
const TASK_FILESYSTEM: &str = "erofs";

/// What a kernel and a runtime take of a guest's memory, more or less.
const TAKEN: u32 = 64;

/// What the kernel of a function's guest is told beside what each is: to go without what is of no
/// use where one program of one owner runs, and in the way of each event. These are checks of who may
/// do what beyond the users' own, and the accounts of groups; of groups only the freezer is used.
///
/// Where guests are emulated, a clone translates a thousand of 15,000 blocks less for its first event.
pub(super) const KERNEL: &str = " lsm=capability psi=0 cgroup_disable=cpuset,cpu,cpuacct,io,memory,\
     devices,net_cls,perf_event,net_prio,hugetlb,pids,rdma,misc";

pub(super) fn resources(deployment: &Deployment) -> Resources {
    Resources {
        cpus: 1,
        memory: deployment.memory,
        disk: MiB(0),
        ..Resources::default()
    }
}

pub(super) fn disks(image: File, task: Option<File>) -> Vec<Disk> {
    let task = task.map(|file| Disk::raw(TASK_SERIAL, file, true));
    let image = Disk::raw(crate::guest::agent::IMAGE_SERIAL, image, true);
    [image].into_iter().chain(task).collect()
}

/// What a process that is launched ahead has in common with clones of such a guest.
pub(super) fn shape(resources: Resources, has_task: bool, is_connected: bool) -> Shape {
    let image = (crate::guest::agent::IMAGE_SERIAL, true);
    let task = has_task.then_some((TASK_SERIAL, true));
    Shape {
        resources,
        disks: [image].into_iter().chain(task).collect(),
        nics: usize::from(is_connected),
        links: vec![GUEST_MAC],
    }
}

pub(super) fn task(deployment: &Deployment) -> Result<Option<File>, TemplateError> {
    match &deployment.code {
        Code::Task { image, .. } => Ok(Some(File::open(image).map_err(at("open", image))?)),
        Code::Image { .. } => Ok(None),
    }
}

/// How much `/tmp` holds. It is in the guest's memory: with more than half of what there is beside
/// kernel and runtime, whoever fills it would have the kernel kill the runtime, instead of an error
/// that says so.
fn temporary(deployment: &Deployment) -> MiB {
    let most = deployment.memory.0.saturating_sub(TAKEN) / 2;
    deployment.temporary.min(MiB(most.max(1)))
}

pub(super) fn mounts(deployment: &Deployment) -> Vec<MountRequest> {
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

pub(super) fn runtime(host: &Host, deployment: &Deployment, prepared: &Prepared) -> ExecRequest {
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
