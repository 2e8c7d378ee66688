//! A guest that is written down.

use super::{Actor, Note, Phase};
use crate::journal::{Desired, SnapshotRow};
use crate::lifecycle::Denial;
use crate::node::NodeError;
use crate::node::inner::{event_of, log_journal};
use crate::node::snapshot::{SnapshotError, Subject, Written};
use aleph_types::{Job, JobState};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

type Answer = oneshot::Sender<Result<Arc<Job>, NodeError>>;

/// A snapshot that is under way.
pub(super) struct UnderWay {
    row: SnapshotRow,
    stop: bool,
    answer: Answer,
    /// Cancelled, it is given up.
    pub(super) given_up: CancellationToken,
    /// Cancelled once it is over, one way or the other.
    over: CancellationToken,
}

impl Actor {
    /// Has the guest written down, and answers once that is done.
    pub(super) async fn write_down(&mut self, row: SnapshotRow, stop: bool, answer: Answer) {
        if let Err(error) = self.begin_writing(row, stop).await {
            let _ = answer.send(Err(error));
            return;
        }
        // It was begun by this very task, and nothing of it has been heard yet.
        let (given_up, over) = (CancellationToken::new(), CancellationToken::new());
        let underway = UnderWay {
            row,
            stop,
            answer,
            given_up: given_up.clone(),
            over,
        };
        let made = self
            .subject()
            .and_then(|subject| self.inner.making(row.id, subject, stop, given_up));
        self.snapshot = Some(underway);
        match made {
            Ok(making) => {
                self.entry.with_live(|live| {
                    if let Some(live) = live {
                        live.stands_still = true;
                    }
                });
                let (notes, incarnation) = (self.notes.clone(), self.record.job.incarnation);
                tokio::spawn(async move {
                    let began = |main| {
                        let _ = notes.send((incarnation, Note::Began(main)));
                    };
                    let written = making.make(began).await;
                    let _ = notes.send((incarnation, Note::Written(Box::new(written))));
                });
            }
            Err(error) => self.not_written(error).await,
        }
    }

    /// Journals what is about to be done to the guest.
    async fn begin_writing(&mut self, row: SnapshotRow, stop: bool) -> Result<(), NodeError> {
        drop(self.subject()?);
        let mut record = self.record.clone();
        record.frozen = true;
        record.job.generation += 1;
        tracing::debug!(job = %self.entry.id, snapshot = %row.id, stop, "a guest is written down");
        self.inner
            .journal
            .intend_snapshot(row, record.clone())
            .await?;
        self.record = record;
        self.entry.publish(&self.record);
        Ok(())
    }

    /// The guest, if it is in a state to be written down.
    fn subject(&self) -> Result<Subject<'_>, NodeError> {
        let Phase::Live(run) = &self.phase else {
            return Err(self.denied(Denial::NotRunning));
        };
        match (self.record.job.state, self.record.desired) {
            (JobState::Running, Desired::Run) | (JobState::Paused, Desired::Pause) => {}
            (JobState::Running | JobState::Paused, _) => return Err(self.denied(Denial::Busy)),
            _ => return Err(self.denied(Denial::NotRunning)),
        }
        let (Some(main), Ok(agent), None) = (&run.main, run.vm.agent(), &self.snapshot) else {
            return Err(self.denied(Denial::Busy));
        };
        if !run.vm.can_be_saved() {
            return Err(self.denied(Denial::Impossible));
        }
        if !agent.can_freeze() {
            return Err(SnapshotError::OldGuest.into());
        }
        Ok(Subject {
            record: &self.record,
            vm: run.vm.clone(),
            agent,
            network: self.inner.guest_network(run.vm.id()),
            main: main.clone(),
        })
    }

    /// Gives up what is under way; who waits for what is given hears when it is over.
    pub(super) fn give_up_snapshot(&self) -> Option<CancellationToken> {
        let underway = self.snapshot.as_ref()?;
        underway.given_up.cancel();
        Some(underway.over.clone())
    }

    /// The guest was written down, or not.
    pub(super) async fn written(&mut self, written: Written) {
        let Written { made, is_lost } = written;
        if let (Some(why), Phase::Live(run)) = (is_lost, &mut self.phase) {
            let why = format!("it did not go on after it was written down: {why}");
            run.verdict.get_or_insert(why);
            run.kill();
        }
        let record = match made {
            Ok(record) => record,
            Err(error) => return self.not_written(error.into()).await,
        };
        let Some(underway) = self.snapshot.take() else {
            return;
        };
        let mut job = self.record.clone();
        let id = underway.row.id;
        // One that ends here stands still until it is gone.
        job.frozen = underway.stop;
        job.job.generation += 1;
        if underway.stop && job.desired != Desired::Destroy {
            job.desired = Desired::Stop;
            job.job.state = JobState::Stopping;
            job.job.reason = Some(format!("it was written down as snapshot {id}"));
        }
        let mut event = event_of(&job.job);
        event.kind = "job.snapshot".into();
        event.message = Some(format!("it was written down as snapshot {id}"));
        let kept = self
            .inner
            .journal
            .keep_snapshot(id, job.clone(), event)
            .await;
        match kept {
            Ok(event) => self.inner.told(event.as_ref()),
            Err(error) => {
                self.snapshot = Some(underway);
                return self.not_kept(error.into()).await;
            }
        }
        self.record = job;
        self.inner.keep_snapshot(record);
        self.entry.publish(&self.record);
        if let Phase::Live(run) = &mut self.phase
            && underway.stop
        {
            run.kill();
        }
        self.over(underway, Ok(()));
    }

    /// What was written could not be journaled: it goes, and a guest that was to end there ends
    /// nevertheless, since it may have been told to nobody that it goes on.
    async fn not_kept(&mut self, error: NodeError) {
        let stands = self.snapshot.as_ref().is_some_and(|under| under.stop);
        if let (true, Phase::Live(run)) = (stands, &mut self.phase) {
            let why =
                "it was to end where it is written down, and that could not be kept".to_owned();
            run.verdict.get_or_insert(why);
            run.kill();
        }
        if let Some(id) = self.snapshot.as_ref().map(|under| under.row.id)
            && let Err(error) = self.inner.remove_snapshot(id).await
        {
            tracing::warn!(%id, %error, "a snapshot that does not count stays until the next start");
        }
        self.not_written(error).await;
    }

    /// Nothing of it stays.
    async fn not_written(&mut self, error: NodeError) {
        let Some(underway) = self.snapshot.take() else {
            return;
        };
        self.record.frozen = false;
        self.record.job.generation += 1;
        let record = Some(self.record.clone());
        let forgotten = self
            .inner
            .journal
            .forget_snapshot(underway.row.id, record)
            .await;
        if let Err(error) = forgotten {
            // The next start finds it, and a guest that goes on has nothing to fear from it.
            log_journal(&error);
        }
        self.entry.publish(&self.record);
        self.over(underway, Err(error));
    }

    fn over(&self, underway: UnderWay, done: Result<(), NodeError>) {
        self.entry.with_live(|live| {
            if let Some(live) = live {
                live.stands_still = false;
            }
        });
        underway.over.cancel();
        let _ = underway.answer.send(done.map(|()| self.entry.job()));
    }
}
