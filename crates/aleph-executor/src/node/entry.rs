//! The table of jobs, and what is known of one.

use super::actor::{Actor, Asked, Begin};
use super::inner::Inner;
use super::size::set_size;
use crate::guest::ExecInput;
use crate::journal::JobRecord;
use crate::logs::Tell;
use crate::vm::Vm;
use aleph_types::{Job, JobId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// One job. Its record is written by its actor alone, which lives while there is something to
/// do; what it last was is read by anybody.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: JobId,
    pub(super) view: watch::Sender<Arc<Job>>,
    /// What followers of its log are told.
    pub(super) tell: watch::Sender<Tell>,
    record: Mutex<JobRecord>,
    mailbox: Mutex<Option<mpsc::UnboundedSender<Asked>>>,
    live: Mutex<Option<Live>>,
}

/// A job that has a VM.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) vm: Vm,
    /// Its main command's input and terminal.
    pub(super) input: Option<ExecInput>,
    /// When processor time was last read, and how much there was then.
    pub(super) seen: Option<(Instant, u64)>,
    /// Whether its processes stand still, so that it can be written down: nothing can be begun in
    /// it until they go on.
    pub(super) stands_still: bool,
}

/// What is told of a job. One whose machine grows has what it had until the machine has more.
fn shown(record: &JobRecord) -> Job {
    let mut job = record.job.clone();
    if let Some(before) = record.resizing {
        set_size(&mut job.spec, before);
    }
    job
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    pub(super) fn new(record: JobRecord) -> Self {
        let tell = Tell {
            pieces: 0,
            over: record.job.state.is_over(),
        };
        Self {
            id: record.job.id,
            view: watch::Sender::new(Arc::new(shown(&record))),
            tell: watch::Sender::new(tell),
            record: Mutex::new(record),
            mailbox: Mutex::new(None),
            live: Mutex::new(None),
        }
    }

    /// The job as it is now.
    pub(super) fn job(&self) -> Arc<Job> {
        Arc::clone(&self.view.borrow())
    }

    pub(super) fn record(&self) -> JobRecord {
        lock(&self.record).clone()
    }

    /// The actor's word.
    pub(super) fn publish(&self, record: &JobRecord) {
        lock(&self.record).clone_from(record);
        let over = record.job.state.is_over();
        self.view.send_replace(Arc::new(shown(record)));
        self.tell.send_if_modified(|tell| {
            let changed = tell.over != over;
            tell.over = over;
            changed
        });
    }

    pub(super) fn live(&self) -> Option<Live> {
        lock(&self.live).clone()
    }

    pub(super) fn with_live<T>(&self, change: impl FnOnce(&mut Option<Live>) -> T) -> T {
        change(&mut lock(&self.live))
    }

    /// Starts the actor with a task, unless it lives.
    pub(super) fn wake(self: &Arc<Self>, inner: &Arc<Inner>, begin: Begin) {
        let mut mailbox = lock(&self.mailbox);
        if mailbox.is_none() {
            *mailbox = Some(Actor::spawn(inner, self, begin));
        }
    }

    /// Asks the actor, which is started where it does not live.
    pub(super) fn send(self: &Arc<Self>, inner: &Arc<Inner>, asked: Asked) {
        let mut mailbox = lock(&self.mailbox);
        let sender = mailbox.get_or_insert_with(|| Actor::spawn(inner, self, Begin::Nothing));
        // Only a node that shuts down has actors that do not listen; the answer's absence tells.
        let _ = sender.send(asked);
    }

    /// Lets the actor go, unless somebody has asked it something meanwhile.
    pub(super) fn retire(&self, inbox: &mpsc::UnboundedReceiver<Asked>) -> bool {
        let mut mailbox = lock(&self.mailbox);
        if inbox.is_empty() {
            *mailbox = None;
            return true;
        }
        false
    }
}

/// All jobs.
#[derive(Debug, Default)]
pub(super) struct Table {
    jobs: BTreeMap<JobId, Arc<Entry>>,
    /// By name and account.
    names: BTreeMap<(String, String), JobId>,
    /// By age.
    ages: BTreeMap<(i128, JobId), ()>,
    /// How many jobs each account has, and about how many bytes they take.
    holdings: BTreeMap<String, (usize, usize)>,
}

impl Table {
    pub(super) fn get(&self, id: JobId) -> Option<Arc<Entry>> {
        self.jobs.get(&id).map(Arc::clone)
    }

    pub(super) fn insert(&mut self, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        let job = entry.job();
        self.names
            .insert((job.name.clone(), job.account.clone()), job.id);
        self.ages
            .insert((job.created_at.as_nanosecond(), job.id), ());
        self.jobs.insert(job.id, Arc::clone(&entry));
        let held = self.holdings.entry(job.account.clone()).or_default();
        *held = (held.0 + 1, held.1 + job.spec.weight());
        entry
    }

    pub(super) fn remove(&mut self, job: &Job) {
        if self.jobs.remove(&job.id).is_some()
            && let Some(held) = self.holdings.get_mut(&job.account)
        {
            held.0 = held.0.saturating_sub(1);
            held.1 = held.1.saturating_sub(job.spec.weight());
            if held.0 == 0 {
                self.holdings.remove(&job.account);
            }
        }
        self.ages.remove(&(job.created_at.as_nanosecond(), job.id));
        self.release(&job.name, &job.account, job.id);
    }

    /// How many jobs an account has, and about how many bytes they take.
    pub(super) fn held(&self, account: &str) -> (usize, usize) {
        self.holdings.get(account).copied().unwrap_or_default()
    }

    /// Takes a name before its job is journaled; gives whose it is where it is taken.
    pub(super) fn reserve(&mut self, name: &str, account: &str, id: JobId) -> Result<(), JobId> {
        match self.names.entry((name.to_owned(), account.to_owned())) {
            std::collections::btree_map::Entry::Occupied(taken) => Err(*taken.get()),
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(id);
                Ok(())
            }
        }
    }

    pub(super) fn release(&mut self, name: &str, account: &str, id: JobId) {
        let key = (name.to_owned(), account.to_owned());
        if self.names.get(&key) == Some(&id) {
            self.names.remove(&key);
        }
    }

    /// Jobs of this name, in all accounts.
    pub(super) fn named<'a>(
        &'a self,
        name: &'a str,
    ) -> impl Iterator<Item = (&'a str, JobId)> + 'a {
        self.names
            .range((name.to_owned(), String::new())..)
            .take_while(move |((found, _), _)| found == name)
            .map(|((_, account), id)| (account.as_str(), *id))
    }

    /// Jobs whose ids lie between these two.
    pub(super) fn between(&self, first: JobId, last: JobId) -> impl Iterator<Item = &Arc<Entry>> {
        self.jobs.range(first..=last).map(|(_, entry)| entry)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.jobs.values()
    }

    /// Jobs by age, the newest first, after this one.
    pub(super) fn newest(&self, after: Option<(i128, JobId)>) -> impl Iterator<Item = &Arc<Entry>> {
        let bound = match after {
            Some(after) => std::ops::Bound::Excluded(after),
            None => std::ops::Bound::Unbounded,
        };
        self.ages
            .range((std::ops::Bound::Unbounded, bound))
            .rev()
            .filter_map(|((_, id), ())| self.jobs.get(id))
    }
}
