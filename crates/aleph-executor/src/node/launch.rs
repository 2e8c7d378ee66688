//! From an opened image to a command that runs, and its output into its log.

use super::actor::{Note, Notes};
use super::entry::Entry;
use super::inner::Inner;
use super::size::pids_of;
use super::{ImageDefaults, NodeError, Prepared};
use crate::executor::{Boot, Executor, ExecutorError, setup};
use crate::guest::{AgentError, ExecEvent, ExecHandle, GuestNetwork, MountRequest, exit_code_of};
use crate::hypervisor::{Disk, HostDevices, Nic};
use crate::journal::{JobRecord, RunRecord};
use crate::logs::{LogLimits, LogWriter};
use crate::vm::{Vm, VmError};
use aleph_types::{
    ExitStatus, GuestFile, Incarnation, InvalidJob, JobSpec, LogStream, Timestamp, VmId, signal,
};
use base64::Engine;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// What a job is started as: its specification, completed by what its image says.
pub(super) fn resolve(
    spec: &JobSpec,
    prepared: &Prepared,
    mounts: &[MountRequest],
    host_boot: &str,
) -> Result<RunRecord, InvalidJob> {
    let effective = complete(spec, &prepared.defaults);
    if effective.command.first().is_none_or(String::is_empty) {
        return Err(InvalidJob::NoCommand);
    }
    effective.validate()?;
    let stop_signal = spec.stop_signal_number();
    let stop_signal = stop_signal.or(prepared.defaults.stop_signal);
    Ok(RunRecord {
        host_boot: host_boot.to_owned(),
        effective,
        filesystem: prepared.boot.filesystem.clone(),
        stop_signal: stop_signal.unwrap_or(signal::TERM),
        log_base: 0,
        mounts: mounts.to_vec(),
    })
}

/// The specification with what its image says where it says nothing.
fn complete(spec: &JobSpec, image: &ImageDefaults) -> JobSpec {
    let mut effective = spec.clone();
    // A job that brings an entrypoint takes the image's command away with the image's own.
    let (entrypoint, command) = match (&spec.entrypoint, spec.command.is_empty()) {
        (Some(own), _) => (own, &spec.command),
        (None, true) => (&image.entrypoint, &image.command),
        (None, false) => (&image.entrypoint, &spec.command),
    };
    effective.command = entrypoint.iter().chain(command).cloned().collect();
    effective.entrypoint = None;
    effective.env = image.env.clone();
    effective.env.extend(spec.env.clone());
    if spec.tty {
        effective
            .env
            .entry("TERM".into())
            .or_insert_with(|| "xterm".into());
    }
    effective.workdir = spec.workdir.clone().or_else(|| image.workdir.clone());
    effective.user = spec.user.clone().or_else(|| image.user.clone());
    effective
}

impl Inner {
    /// An id that no VM of this node has.
    pub(super) fn free_vm_id(&self) -> VmId {
        loop {
            let vm = VmId::random();
            let network = self.network.as_ref();
            let known = network.is_some_and(|network| network.guest_side(vm).is_some());
            if !known && !self.config.paths.vm_state(vm).exists() {
                return vm;
            }
        }
    }
}

/// A boot, its volumes' disks, how it is connected, and what of the host it is given.
type Devices = (
    Boot,
    Vec<Disk>,
    (Vec<Nic>, Option<GuestNetwork>),
    HostDevices,
);

/// Makes the VM of a start.
pub(super) async fn create(
    inner: &Arc<Inner>,
    record: &JobRecord,
    run: &RunRecord,
    devices: Devices,
) -> Result<Vm, NodeError> {
    if !run.effective.is_full_vm() {
        return make(inner, record, run, devices);
    }
    // A whole computer has files that are synced, which takes its time on a busy disk.
    let (inner, record, run) = (Arc::clone(inner), record.clone(), run.clone());
    beside("make the VM", move || make(&inner, &record, &run, devices)).await
}

/// Does what blocks beside what does not.
pub(super) async fn beside<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|join| ExecutorError::Host {
        what: what.into(),
        source: std::io::Error::other(join),
    })?
}

fn make(
    inner: &Inner,
    record: &JobRecord,
    run: &RunRecord,
    (boot, disks, (nics, network), devices): Devices,
) -> Result<Vm, NodeError> {
    let vm = record.job.vm.unwrap_or_else(VmId::random);
    let mut setup = setup(record.job.id, &run.effective, run.filesystem.clone(), false);
    setup.network = network;
    setup.mounts.clone_from(&run.mounts);
    let devices = (boot, disks, nics, devices);
    let mut job = inner.with_pages(&run.effective);
    job.resources.pids = Some(pids_of(&job, inner.config.pids));
    let created = inner
        .executor
        .create_kept(vm, &job, devices, (setup, run.stop_signal));
    Ok(created?)
}

/// Launches the VM beside the job's actor, and hands its command over.
pub(super) fn start(
    tasks: &mut JoinSet<()>,
    vm: &Vm,
    record: &JobRecord,
    run: &RunRecord,
    notes: &Notes,
) {
    let incarnation = record.job.incarnation;
    watch(tasks, vm, incarnation, notes);
    let (vm, notes, job) = (vm.clone(), notes.clone(), run.effective.clone());
    tasks.spawn(async move {
        let note = match begin(&vm, &job).await {
            Ok(handle) => Note::Began(handle),
            // What ended is told by the VM itself, with more to say.
            Err(VmError::Ended(_) | VmError::Gone | VmError::Denied(_)) => return,
            Err(error) => Note::Unfit(crate::vm::chain(&error)),
        };
        let _ = notes.send((incarnation, note));
    });
}

/// The same of a VM whose guest boots its own disk: what its cloud-init did is heard.
pub(super) fn start_alone(tasks: &mut JoinSet<()>, vm: &Vm, record: &JobRecord, notes: &Notes) {
    let incarnation = record.job.incarnation;
    watch(tasks, vm, incarnation, notes);
    let (vm, notes) = (vm.clone(), notes.clone());
    tasks.spawn(async move {
        match vm.start(None).await {
            Ok(_) => hear_alone(&vm, notes, incarnation).await,
            // What ended is told by the VM itself, with more to say.
            Err(VmError::Ended(_) | VmError::Gone | VmError::Denied(_)) => {}
            Err(error) => {
                let note = Note::Unfit(crate::vm::chain(&error));
                let _ = notes.send((incarnation, note));
            }
        }
    });
}

/// Hears what the guest of a VM that runs says of its cloud-init.
pub(super) async fn hear_alone(vm: &Vm, notes: Notes, incarnation: Incarnation) {
    if let Some(vmm) = vm.vmm() {
        super::words::hear_report(vmm, notes, incarnation).await;
    }
}

/// Without files the command goes over before the guest is up, and costs no round trip.
async fn begin(vm: &Vm, job: &JobSpec) -> Result<ExecHandle, VmError> {
    if job.files.is_empty() {
        return vm
            .start(Some(main_command(job)))
            .await?
            .ok_or(VmError::Gone);
    }
    vm.start(None).await?;
    vm.running().await?;
    hand_over(vm, job).await
}

/// Gives a running guest its files and its command.
pub(super) async fn hand_over(vm: &Vm, job: &JobSpec) -> Result<ExecHandle, VmError> {
    if !job.files.is_empty() {
        let archive = archive(&job.files).map_err(|error| VmError::Agent(error.into()))?;
        let mut sink = vm.agent()?.unpack("/", true)?;
        // Why it broke is what the end of it says.
        let _ = sink.write_all(&archive).await;
        sink.finish().await?;
    }
    vm.exec(&main_command(job))
}

fn main_command(job: &JobSpec) -> crate::guest::ExecRequest {
    let mut request = Executor::main_command(job, None);
    request.keep = true;
    request
}

/// The files of a job as a tar archive.
fn archive(files: &[GuestFile]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let bytes = match (&file.text, &file.base64) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(text)) => base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_err(std::io::Error::other)?,
            (None, None) => Vec::new(),
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len()).map_err(std::io::Error::other)?);
        header.set_mode(u32::from(file.mode_bits().unwrap_or(0o644)));
        header.set_uid(u64::from(file.uid));
        header.set_gid(u64::from(file.gid));
        let path = file.path.trim_start_matches('/');
        archive.append_data(&mut header, path, &bytes[..])?;
    }
    archive.into_inner()
}

/// How often it is looked what of a machine has broken.
const LOOK: Duration = Duration::from_secs(1);

/// Tells what breaks of a whole computer while it runs, and that it is whole again.
async fn tell_impairments(vm: &Vm, notes: &Notes, incarnation: Incarnation) {
    // Of other VMs nothing breaks that they outlive.
    let Some(vmm) = vm.vmm().filter(|vmm| vmm.power().is_some()) else {
        return;
    };
    let mut told = None;
    while !vmm.has_ended() {
        let found = vmm.impairment();
        if told.as_ref() != Some(&found) {
            tokio::time::sleep(LOOK).await;
            // What is so for a moment, such as at its end, is not told.
            if vmm.has_ended() || vmm.impairment() != found {
                continue;
            }
            let note = Note::Impaired(found.clone());
            if notes.send((incarnation, note)).is_err() {
                return;
            }
            told = Some(found);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells when the guest is ready, what of its machine breaks, and how its VM ended.
pub(super) fn watch(tasks: &mut JoinSet<()>, vm: &Vm, incarnation: Incarnation, notes: &Notes) {
    let (vm, notes) = (vm.clone(), notes.clone());
    let (computer, breaks) = (vm.clone(), notes.clone());
    tasks.spawn(async move {
        if computer.running().await.is_ok() {
            tell_impairments(&computer, &breaks, incarnation).await;
        }
    });
    tasks.spawn(async move {
        if let Ok(report) = vm.running().await {
            let note = Note::Ready {
                boot: Some(report.total).filter(|total| !total.is_zero()),
                boot_id: vm.agent().ok().and_then(|agent| agent.boot_id()),
            };
            let _ = notes.send((incarnation, note));
        }
        // A node that lets go of its guests hears no end.
        if let Ok(outcome) = vm.wait().await {
            let _ = notes.send((incarnation, Note::Ended(outcome)));
        }
    });
}

/// Where output goes.
pub(super) struct Log {
    pub(super) dir: PathBuf,
    pub(super) limits: LogLimits,
    pub(super) entry: Arc<Entry>,
    pub(super) incarnation: Incarnation,
    /// How many bytes of output came before it.
    pub(super) base: u64,
    /// How many bytes of output are stored.
    pub(super) stored: watch::Sender<u64>,
}

/// How long to wait for room on a full disk before the next try.
const FULL: Duration = Duration::from_secs(1);

/// Stores what the main command writes. The guest keeps what it was not told to be stored, and
/// stops the command when that is too much.
pub(super) async fn pump(mut handle: ExecHandle, log: Log, notes: Notes) {
    let incarnation = log.incarnation;
    let mut writer = loop {
        match LogWriter::open(&log.dir, (incarnation, log.base), log.limits) {
            Ok(writer) => break writer,
            Err(error) => wait_for_room(&log, &error).await,
        }
    };
    // What an earlier process stored, and the guest was not told of.
    let mut skip = writer.position().saturating_sub(handle.position());
    loop {
        let (stream, bytes) = match handle.next().await {
            Ok(ExecEvent::Started(_)) => continue,
            Ok(ExecEvent::Stdout(bytes)) => (LogStream::Stdout, bytes),
            Ok(ExecEvent::Stderr(bytes)) => (LogStream::Stderr, bytes),
            Ok(ExecEvent::Exited(status)) => {
                return tell_exit(&mut handle, status, incarnation, &notes).await;
            }
            Err(AgentError::Failed { errno, message }) => {
                let _ = notes.send((incarnation, Note::Refused(message)));
                let status = ExitStatus::Code(exit_code_of(errno));
                let (stored, _told) = oneshot::channel();
                let _ = notes.send((incarnation, Note::Exited { status, stored }));
                return;
            }
            // The VM's end says why.
            Err(_) => return,
        };
        let old = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
        skip -= u64::try_from(old).unwrap_or(0);
        let new = &bytes[old..];
        if !new.is_empty() {
            while let Err(error) = writer.append(stream, Timestamp::now(), new) {
                wait_for_room(&log, &error).await;
            }
            log.entry.tell.send_modify(|tell| tell.pieces += 1);
        }
        crate::failpoint::pass("log.append", "after");
        let _ = handle.stored(handle.position());
        log.stored.send_replace(handle.position());
    }
}

/// Tells the end until it is journaled; only then the guest may forget it.
async fn tell_exit(
    handle: &mut ExecHandle,
    status: ExitStatus,
    incarnation: Incarnation,
    notes: &Notes,
) {
    loop {
        let (stored, told) = oneshot::channel();
        if notes
            .send((incarnation, Note::Exited { status, stored }))
            .is_err()
        {
            return;
        }
        if told.await.is_ok() {
            // A channel that is closed is told of by the VM's end.
            let _ = handle.end_stored();
            return;
        }
        tokio::time::sleep(FULL).await;
    }
}

pub(super) async fn wait_for_room(log: &Log, error: &std::io::Error) {
    tracing::warn!(job = %log.entry.id, %error, "a log cannot be written; its command waits");
    tokio::time::sleep(FULL).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageDefaults {
        ImageDefaults {
            entrypoint: vec!["/entry".into()],
            command: vec!["default".into()],
            env: [("A".to_owned(), "image".to_owned())].into(),
            workdir: Some("/srv".into()),
            user: Some("app".into()),
            stop_signal: None,
        }
    }

    #[test]
    fn words_of_a_job_go_over_those_of_its_image() {
        let plain = complete(&JobSpec::new("x", vec![]), &image());
        assert_eq!(plain.command, ["/entry", "default"]);
        assert_eq!(
            (plain.workdir.as_deref(), plain.user.as_deref()),
            (Some("/srv"), Some("app"))
        );
        let own = complete(&JobSpec::new("x", vec!["own".into()]), &image());
        assert_eq!(own.command, ["/entry", "own"]);
        let mut spec = JobSpec::new("x", vec!["own".into()]);
        spec.entrypoint = Some(vec![]);
        spec.env = [("A".to_owned(), "job".to_owned())].into();
        let bare = complete(&spec, &image());
        assert_eq!(bare.command, ["own"]);
        assert_eq!(bare.env["A"], "job");
    }

    #[test]
    fn files_become_an_archive() {
        let file = |path: &str, text: Option<&str>, base64: Option<&str>| GuestFile {
            path: path.into(),
            text: text.map(Into::into),
            base64: base64.map(Into::into),
            mode: "0750".into(),
            uid: 7,
            gid: 8,
        };
        let files = [
            file("/etc/app/x.conf", Some("a = 1"), None),
            file("/bin/y", None, Some("AAEC")),
        ];
        let bytes = archive(&files).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                (
                    entry.path().unwrap().display().to_string(),
                    header.size().unwrap(),
                    header.mode().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("etc/app/x.conf".into(), 5, 0o750),
                ("bin/y".into(), 3, 0o750)
            ]
        );
        assert!(super::archive(&[file("/x", None, Some("%"))]).is_err());
    }
}
