//! Takes memory back from guests that have nothing to do.
//!
//! What a guest's kernel keeps of files that it has read is memory of the host's, for as long as the
//! guest lives: only the guest knows that it could do without. Where the VMM has a balloon
//! ([`Balloon`]), a guest that has been idle for a while is asked for all that its programs do not
//! need but a reserve, and may have it again at once. Whatever it takes then is new memory; until it
//! does, the host has it. A guest is asked once, and again only after it has done something. A few are
//! asked at a time, each by a task of its own: one that is slow to answer holds up no other for long.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | it gives nothing | it is let be until it has done something |
//! | it gives no answer | it is asked again once it has been idle for as long once more |
//! | its programs want memory meanwhile | its kernel takes it out of the balloon again |
//! | the node ends meanwhile | whoever comes next lets the air out |
//! | its VMM has no balloon | nothing |
//! | its memory is in huge pages | nothing: no other memory can be had of them |

use super::entry::{Entry, lock};
use super::inner::Inner;
use super::stats::cpu_of;
use crate::cgroup::Cgroup;
use crate::hypervisor::{Balloon, Vmm, VmmError};
use crate::lifecycle::State;
use crate::process::Identity;
use crate::vm::Vm;
use aleph_types::{JobSpec, MiB, VmId};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How much of one processor a guest uses that has nothing to do.
const IDLE: f64 = 0.02;

/// What is not worth the trouble.
const LEAST: MiB = MiB(16);

/// How long a guest may take to say what it has, and to give the first or the next of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long it may take for all of it.
const LIMIT: Duration = Duration::from_secs(20);

/// How many guests are asked at a time.
const AT_ONCE: usize = 8;

/// How often it is looked at meanwhile.
const STEP: Duration = Duration::from_millis(50);

/// How long a guest has had nothing to do.
#[derive(Debug, Clone)]
struct Idleness {
    since: Instant,
    /// When it was looked at last, and what it had used then.
    seen: (Instant, u64),
    is_done: bool,
    /// Whether a task is about it.
    is_busy: bool,
    /// Whether its balloon may have air in it that was not let out.
    is_blown: bool,
}

impl Idleness {
    fn new(now: Instant, cpu_usec: u64) -> Self {
        Self {
            since: now,
            seen: (now, cpu_usec),
            is_done: false,
            is_busy: false,
            // A node that ended may have left it so.
            is_blown: true,
        }
    }

    /// Notes what it has used; whether it is to be asked now.
    fn is_due(&mut self, now: Instant, cpu_usec: u64, after: Duration) -> bool {
        let (then, before) = std::mem::replace(&mut self.seen, (now, cpu_usec));
        let used = Duration::from_micros(cpu_usec.saturating_sub(before));
        if used > now.duration_since(then).mul_f64(IDLE) {
            self.since = now;
            self.is_done = false;
        }
        !self.is_done && now.duration_since(self.since) >= after
    }

    /// It has been asked, which was work, too.
    fn done(&mut self, now: Instant, cpu_usec: u64, answered: bool) {
        self.seen = (now, cpu_usec);
        self.is_done = answered;
        if !answered {
            self.since = now;
        }
    }
}

/// Looks at the guests of a node for as long as it is there. Where none is ever to be asked, air that
/// an earlier process left in a balloon is let out all the same.
pub(super) async fn reclaim(inner: Weak<Inner>, after: Option<Duration>) {
    let after = after.unwrap_or(Duration::MAX);
    let step = (after / 4).clamp(Duration::from_millis(100), Duration::from_secs(60));
    let mut known: HashMap<VmId, Idleness> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        tokio::time::sleep(step).await;
        let Some(inner) = inner.upgrade() else { return };
        if *inner.leaving.borrow() {
            return;
        }
        while let Some(ended) = tasks.try_join_next() {
            let Ok(Asked { vm, is_blown, used }) = ended else {
                continue;
            };
            if let Some(idleness) = known.get_mut(&vm) {
                idleness.is_busy = false;
                idleness.is_blown = is_blown;
                if let Some((used, answered)) = used {
                    idleness.done(Instant::now(), used, answered);
                }
            }
        }
        let entries: Vec<Arc<Entry>> = lock(&inner.jobs).all().map(Arc::clone).collect();
        let mut seen = HashMap::new();
        for entry in entries {
            let Some(vm) = entry.live().map(|live| live.vm) else {
                continue;
            };
            let before = known.remove(&vm.id());
            if let Some(busy) = before.as_ref().filter(|before| before.is_busy) {
                seen.insert(vm.id(), busy.clone());
                continue;
            }
            if !runs(&entry) || !may_give(&entry.job().spec) {
                continue;
            }
            let Some(vmm) = vm.vmm().filter(|vmm| vmm.balloon().is_some()) else {
                continue;
            };
            let meter = Meter::of(&inner, &vm, &*vmm);
            let Some(used) = meter.read() else { continue };
            let now = Instant::now();
            let mut idleness = before.unwrap_or_else(|| Idleness::new(now, used));
            let is_due = idleness.is_due(now, used, after);
            if (is_due || idleness.is_blown) && tasks.len() < AT_ONCE {
                idleness.is_busy = true;
                tasks.spawn(ask(entry, vm.clone(), (vmm, meter), is_due));
            }
            seen.insert(vm.id(), idleness);
        }
        // Those that are gone are forgotten.
        known = seen;
    }
}

/// Whether a guest may be asked for memory. One with its own disk gives what it frees back by itself, and keeps its
/// caches. A device may write to any page of a guest that has one, so all of them stay with it. Huge pages that a
/// guest gave would be another one's, and not be there when it wants them back.
fn may_give(spec: &JobSpec) -> bool {
    let machine = spec.machine.as_ref();
    let is_huge = machine.is_some_and(|machine| machine.huge_pages.is_some());
    // The node's choice of pages is for jobs with GPUs alone.
    !spec.has_own_disk() && spec.gpus.is_none() && !is_huge
}

/// What became of a guest that was asked, or of its balloon alone.
struct Asked {
    vm: VmId,
    is_blown: bool,
    /// Where it was asked: what it has used by now, and whether it answered.
    used: Option<(u64, bool)>,
}

/// Lets the air out of a balloon, and asks its guest where that is due.
async fn ask(entry: Arc<Entry>, vm: Vm, of: (Arc<dyn Vmm>, Meter), is_due: bool) -> Asked {
    let (vmm, meter) = of;
    let (id, mut is_blown) = (vm.id(), true);
    let mut used = None;
    if let Some(balloon) = vmm.balloon() {
        if is_due {
            let squeezed = squeeze(&entry, &vm, balloon).await;
            match &squeezed {
                Ok(given) => tracing::debug!(vm = %id, mib = given.0, "memory came back"),
                Err(error) => tracing::debug!(vm = %id, %error, "a guest gives nothing back"),
            }
            used = meter.read().map(|used| (used, squeezed.is_ok()));
        }
        // Whatever became of it; where it fails, the next round does it.
        is_blown = balloon.ask(MiB(0)).await.is_err();
    }
    Asked {
        vm: id,
        is_blown,
        used,
    }
}

/// Whether the VM of a job runs, and its processes do.
fn runs(entry: &Entry) -> bool {
    entry
        .live()
        .is_some_and(|live| live.vm.status().state == State::Running && !live.stands_still)
}

/// Where it is read how much processor time a VM has used.
struct Meter {
    group: Option<Cgroup>,
    vmm: Identity,
}

impl Meter {
    fn of(inner: &Inner, vm: &Vm, vmm: &dyn Vmm) -> Self {
        let tree = inner.executor.cgroups();
        Self {
            group: tree.map(|tree| tree.group(&vm.id().to_string())),
            vmm: vmm.identity(),
        }
    }

    /// In microseconds.
    fn read(&self) -> Option<u64> {
        let of_group = self.group.as_ref().and_then(Cgroup::cpu_usec);
        of_group.or_else(|| cpu_of(&self.vmm))
    }
}

/// Asks a guest for what its programs do not need. Gives how much the host got.
async fn squeeze(entry: &Entry, vm: &Vm, balloon: &dyn Balloon) -> Result<MiB, VmmError> {
    let silent = || VmmError::Silent { command: "usage" };
    let agent = vm.agent().map_err(|_| silent())?;
    let usage = tokio::time::timeout(PATIENCE, agent.usage()).await;
    let usage = usage.ok().and_then(Result::ok).ok_or_else(silent)?;
    let wanted = spare(usage.memory_total, usage.memory_available);
    // One that is about to be written down is written down with all that it has.
    if wanted < LEAST || !runs(entry) {
        return Ok(MiB(0));
    }
    balloon.ask(wanted).await?;
    filled(entry, balloon, wanted).await
}

/// What a guest can do without: what is available, but an eighth of all it has.
fn spare(total: u64, available: u64) -> MiB {
    let spare = available.saturating_sub(total / 8) >> 20;
    MiB(u32::try_from(spare).unwrap_or(0))
}

/// Waits until a balloon has its size, or no longer grows.
async fn filled(entry: &Entry, balloon: &dyn Balloon, wanted: MiB) -> Result<MiB, VmmError> {
    let began = Instant::now();
    let (mut given, mut grew) = (MiB(0), began);
    while given < wanted && grew.elapsed() < PATIENCE && began.elapsed() < LIMIT && runs(entry) {
        tokio::time::sleep(STEP).await;
        let now = balloon.given().await?;
        if now > given {
            (given, grew) = (now, Instant::now());
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{CloudInitSpec, GpuRequest, HugePages, Mode};

    #[test]
    fn a_guest_whose_memory_stays_with_it_is_not_asked() {
        let vm = || {
            let mut job = JobSpec::new("x", Vec::new());
            job.mode = Mode::Vm;
            job.machine.get_or_insert_default().tpm = true;
            job
        };
        assert!(may_give(&JobSpec::new("x", Vec::new())), "a microVM");
        assert!(may_give(&vm()));
        type Change = fn(&mut JobSpec);
        let changes: [Change; 3] = [
            |job| job.machine.get_or_insert_default().huge_pages = Some(HugePages::Mib2),
            |job| job.gpus = Some(GpuRequest::default()),
            |job| job.cloud_init = Some(CloudInitSpec::default()),
        ];
        for change in changes {
            let mut job = vm();
            change(&mut job);
            assert!(!may_give(&job), "{job:?}");
        }
    }

    #[test]
    fn a_guest_is_asked_once_it_was_idle_for_long_enough() {
        let after = Duration::from_secs(60);
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut idleness = Idleness::new(at(0), 1_000_000);
        // A hundredth of a processor is nothing; a tenth is work.
        assert!(!idleness.is_due(at(30), 1_300_000, after));
        assert!(!idleness.is_due(at(59), 1_590_000, after));
        assert!(!idleness.is_due(at(70), 2_690_000, after));
        assert!(!idleness.is_due(at(129), 2_690_000, after));
        assert!(idleness.is_due(at(130), 2_690_000, after));
        // Nothing was asked yet: it still is to be.
        assert!(idleness.is_due(at(131), 2_690_000, after));
        // To give memory is work that does not count.
        idleness.done(at(133), 4_000_000, true);
        assert!(!idleness.is_due(at(300), 4_000_000, after));
        assert!(!idleness.is_due(at(301), 5_000_000, after));
        assert!(!idleness.is_due(at(330), 5_000_000, after));
        assert!(idleness.is_due(at(361), 5_000_000, after));
        // One that said nothing may be busy with something else.
        idleness.done(at(363), 5_000_000, false);
        assert!(!idleness.is_due(at(422), 5_000_000, after));
        assert!(idleness.is_due(at(423), 5_000_000, after));
    }

    #[test]
    fn a_reserve_stays_with_the_guest() {
        let mib = |n: u64| n << 20;
        assert_eq!(spare(mib(256), mib(200)), MiB(168));
        assert_eq!(spare(mib(256), mib(20)), MiB(0));
    }
}
