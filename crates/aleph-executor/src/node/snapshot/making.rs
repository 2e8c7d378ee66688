//! Writing a guest down.
//!
//! | step | what | undone |
//! | --- | --- | --- |
//! | 1 | a guest that is paused goes on for a moment | paused again |
//! | 2 | its processes stand still, its network is down, its disk is written out | all go on, with fresh entropy and the time of now |
//! | 3 | what its command wrote until then is stored | |
//! | 4 | its processors stand still | they go on |
//! | 5 | devices and memory are written to a file, by the VMM | given up |
//! | 6 | its disk is copied | with the folder |
//! | 7 | steps 4, 2 and 1 are undone, unless the job is to end here | |
//! | 8 | the folder becomes durable, and gets its name | removed |
//!
//! Where connections to the guest end with 5, it has another one after 7, and its command's output
//! goes on over that; other commands that ran in it for somebody are cut off.
//!
//! Whatever fails, or whoever gives it up, 7 is done and the folder goes. A guest that does not go
//! on is a failure of its job: [`Written::is_lost`].

use super::SnapshotError;
use super::folder::{self, Record, Work};
use crate::guest::{Agent, AgentError, CloneRequest, ExecHandle, MainPosition};
use crate::lifecycle::State;
use crate::vm::{Vm, chain, go_on_as, itself};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a guest may take for what it is asked. Emulated ones on a busy host are slow.
const ANSWER: Duration = Duration::from_secs(30);

/// How long what a command wrote may take to be stored.
const STORE: Duration = Duration::from_secs(30);

/// A guest that is to be written down.
#[derive(Debug)]
pub(in crate::node) struct Making {
    pub(super) vm: Vm,
    pub(super) agent: Agent,
    /// What is known of it before it stands still.
    pub(super) record: Record,
    pub(super) work: Work,
    /// Its disk, where it has one.
    pub(super) scratch: Option<PathBuf>,
    /// What it goes on as.
    pub(super) own: CloneRequest,
    /// The stream of its main command.
    pub(super) main: u32,
    /// How much of that command's output is stored.
    pub(super) stored: watch::Receiver<u64>,
    /// Whether its user paused it.
    pub(super) paused: bool,
    /// Whether it is to end here: it does not go on then.
    pub(super) stop: bool,
    pub(super) given_up: CancellationToken,
    /// Whether it was asked to stand still.
    pub(super) stands_still: bool,
}

/// What became of it.
#[derive(Debug)]
pub(in crate::node) struct Written {
    pub(in crate::node) made: Result<Record, SnapshotError>,
    /// Why the guest does not go on, where it should.
    pub(in crate::node) is_lost: Option<String>,
}

impl Making {
    /// Makes it. The main command is given to `began` where the guest has another connection.
    pub(in crate::node) async fn make(mut self, began: impl Fn(ExecHandle) + Sync) -> Written {
        let given_up = self.given_up.clone();
        let written = tokio::select! {
            biased;
            () = given_up.cancelled() => Err(SnapshotError::GivenUp),
            written = self.write() => written,
        };
        let stays = self.stop && written.is_ok();
        let mut is_lost = match stays {
            true => None,
            false => self.go_on(&began).await,
        };
        let Self {
            vm,
            mut record,
            work,
            own,
            paused,
            ..
        } = self;
        let own = Some(&own);
        let made = match written {
            Ok(main) => {
                record.stands_at(main);
                blocking(move || work.finish(record)).await
            }
            Err(error) => {
                let _ = blocking(move || {
                    drop(work);
                    Ok(())
                })
                .await;
                // Whatever broke then, that is why.
                let lives = matches!(
                    vm.status().state,
                    State::Running | State::Pausing | State::Paused | State::Resuming
                );
                Err(if lives { error } else { SnapshotError::Ended })
            }
        };
        if made.is_err() && stays {
            is_lost = go_on(&vm, own, paused, &began).await;
        }
        Written { made, is_lost }
    }

    async fn write(&mut self) -> Result<MainPosition, SnapshotError> {
        if self.paused {
            self.vm.resume().await?;
        }
        let own = itself(&self.agent, self.own.clone());
        self.own = in_time("say who it is", async { Ok(own.await) }).await?;
        self.stands_still = true;
        in_time("stand still", self.agent.freeze()).await?;
        crate::failpoint::pass("snapshot.frozen", "after");
        // What was written until now has been sent before the answer to this, and what was sent to it
        // has arrived; input that comes later waits, since the connection may end.
        self.agent.hold_input();
        in_time("answer", self.agent.ping()).await?;
        let received = self.agent.received(self.main).ok_or(SnapshotError::Ended)?;
        let stored = self.stored.wait_for(|stored| *stored >= received);
        match tokio::time::timeout(STORE, stored).await {
            Ok(stored) => drop(stored.map_err(|_| SnapshotError::Ended)?),
            Err(_) => return Err(SnapshotError::Unstored(STORE)),
        }
        self.vm.pause().await?;
        let state = self.work.state()?;
        let saved = self.vm.save(state).await;
        crate::failpoint::pass("snapshot.saved", "after");
        saved.map_err(|error| SnapshotError::saving(error, self.work.is_on_a_full_disk()))?;
        if let Some(scratch) = &self.scratch {
            let (from, to) = (scratch.clone(), self.work.scratch());
            blocking(move || folder::copy(&from, &to)).await?;
        }
        Ok(MainPosition {
            stream: self.main,
            received,
        })
    }

    async fn go_on(&self, began: &(impl Fn(ExecHandle) + Sync)) -> Option<String> {
        let own = Some(&self.own).filter(|_| self.stands_still);
        go_on(&self.vm, own, self.paused, began).await
    }
}

/// Has a guest go on, wherever writing it down has stopped; its processes as `own`, where they may
/// stand still. Says why it does not, where it should.
async fn go_on(
    vm: &Vm,
    own: Option<&CloneRequest>,
    paused: bool,
    began: &(impl Fn(ExecHandle) + Sync),
) -> Option<String> {
    let went = async {
        vm.settled().await;
        if vm.status().state == State::Paused {
            // What is under way is given up; where nothing is, there is nothing to say.
            let _ = vm.cancel_save().await;
            vm.resume().await?;
            if let Some(main) = vm.main_again() {
                began(main);
            }
        }
        if let Some(own) = own {
            in_time("go on", go_on_as(&vm.agent()?, own)).await?;
        }
        if paused {
            vm.pause().await?;
        }
        Ok::<_, SnapshotError>(())
    };
    let went = went.await;
    if let Ok(agent) = vm.agent() {
        // One that is closed has nobody who would hear it.
        let _ = agent.release_input();
    }
    match went {
        Ok(()) => None,
        // It has ended, or is about to.
        Err(_) if !matches!(vm.status().state, State::Running | State::Paused) => None,
        Err(error) => Some(chain(&error)),
    }
}

async fn in_time<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, SnapshotError> {
    match tokio::time::timeout(ANSWER, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(SnapshotError::Silent {
            what,
            limit: ANSWER,
        }),
    }
}

/// Work that blocks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(join) => Err(SnapshotError::File {
            what: "work on",
            path: "a snapshot".into(),
            source: std::io::Error::other(join),
        }),
    }
}
