//! Schedules: events that nobody sends.
//!
//! ```text
//! due ─▶ journal: the event, and up to when all is accounted for, in one write ─▶ events' queue
//! ```
//! | file | what it is |
//! | --- | --- |
//! | this one | what keeps schedules and looks what is due |
//! | `book` | all schedules, and which is due first |
//! | `schedule` | a schedule as it is kept, and the events that it makes |
//! | `timing` | when it is due, in its time zone (pure) |
//! | `cron` | `cron(…)` |
//! | `model` | JSON as clients of EventBridge Scheduler have it |
//!
//! # What fires, and how often
//! An event and the mark that it was made are one write, and its request id follows from the
//! schedule and the time alone. So after a crash nothing that was due is lost, and nothing is made
//! twice; a function may still get an event again, as any event of the queue.
//!
//! | what | then |
//! | --- | --- |
//! | the daemon was down, or the clock was put forward | of all that was due the last fires, once, if it is not older than an event may be (`MaximumEventAgeInSeconds`, or [`super::EventPolicy::age`]); what is left out is in the log |
//! | the clock is put back by at most three hours | what has fired does not again; what is new waits until the clock shows it |
//! | it is put back by more, as one that was wrong | schedules go by the clock as it is, as `cron` has it, which is in the log; what had fired for later times fires then once more, with the same request id |
//! | too many events of the account wait | it fires as soon as there is room, at most once |
//! | there is no such function | a dead letter, `FunctionNotFound`, for each event |
//! | the schedule is disabled | nothing; once enabled, it goes on from then |
//! | the schedule is changed | what is due from then on; a rate goes on as it began unless it or its start is changed |
//!
//! # Choice of crates
//! Days and times of `cron(…)` are found by `croner` (MIT): of the crates that are kept up it alone
//! knows `L`, `W`, `#` and years. `cron` (MIT or Apache-2.0) knows none of the first three, and
//! `saffron` no years, and is no longer kept. Time zones are `jiff`'s, which the node has anyway, with the zones
//! that the host knows, or its own where the host knows none; `croner` is given a calendar without
//! zones, since what it makes of clocks that are put back is not what EventBridge makes of them.

mod book;
mod cron;
mod model;
mod schedule;
mod timing;

pub(crate) use book::Schedules;
pub(crate) use model::{ScheduleInput, check_group, check_name, seconds};
pub(crate) use schedule::{GROUP, Schedule};

use super::Functions;
use super::error::{Kind, LambdaError};
use super::events::{LONGEST_PAUSE, Made, NO_FUNCTION, milliseconds, now as measured, wall};
use aleph_executor::functions::Invocation;
use aleph_executor::journal::{Fired, Firing, ScheduleRow, Waiting};
use book::Entry;
use bytes::Bytes;
use jiff::Timestamp;
use schedule::Place;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The most schedules of an account.
const MOST_SCHEDULES: usize = 10_000;
/// How many bytes of input the schedules of an account hold in memory.
const MOST_BYTES: usize = 32 * 1024 * 1024;
/// How many fire in one write, and how many bytes of events after which no more do.
const AT_ONCE: usize = 128;
const BYTES_AT_ONCE: usize = 4 * 1024 * 1024;
/// How long nobody looks at the clock: it may be put forward meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long what cannot fire waits.
const PAUSE: Duration = Duration::from_secs(2);

/// Fires what is due until the node stops.
pub(super) fn start(functions: &Functions) {
    let functions = functions.clone();
    tokio::spawn(async move {
        while !functions.stopping.is_cancelled() {
            let firing = functions.clone();
            // A write that has begun is told of, also while the node stops.
            let fired = functions
                .work
                .spawn(async move { firing.fire_due(wall()).await });
            let pause = match fired.await {
                Ok(pause) => pause,
                Err(_) => PAUSE,
            };
            tokio::select! {
                _ = timeout(pause.min(LOOK_AGAIN), functions.schedules.changed()) => {}
                () = functions.stopping.cancelled() => return,
            }
        }
    });
}

impl Functions {
    /// A schedule, if there is one.
    pub(super) fn schedule(&self, account: &str, name: &str) -> Result<Arc<Schedule>, LambdaError> {
        self.schedules
            .get(account, name)
            .ok_or_else(|| no_schedule(name))
    }

    /// Makes a schedule, and gives its ARN.
    pub(super) async fn create_schedule(
        &self,
        account: &str,
        name: &str,
        input: ScheduleInput,
    ) -> Result<String, LambdaError> {
        let arn = self.identity.schedule_arn(account, name);
        let _turn = self.schedules.turn.lock().await;
        if let Some(there) = self.schedules.get(account, name) {
            // A client that has not heard of its success asks again.
            if there.token.is_some() && there.token == input.client_token {
                return Ok(arn);
            }
            return Err(LambdaError::conflict(format!(
                "Schedule {name} already exists."
            )));
        }
        if self.schedules.count(account) >= MOST_SCHEDULES {
            return Err(LambdaError::new(
                Kind::ServiceQuotaExceeded,
                format!("An account has at most {MOST_SCHEDULES} schedules"),
            ));
        }
        let now = Timestamp::now();
        let schedule = input.schedule(&self.identity, account, None, now)?;
        let settled = settled_at_first(&schedule, now);
        self.keep_schedule(account, name, schedule, settled).await?;
        Ok(arn)
    }

    /// Sets a schedule anew, and gives its ARN.
    pub(super) async fn update_schedule(
        &self,
        account: &str,
        name: &str,
        input: ScheduleInput,
    ) -> Result<String, LambdaError> {
        let _turn = self.schedules.turn.lock().await;
        let (before, settled) = self
            .schedules
            .get_settled(account, name)
            .ok_or_else(|| no_schedule(name))?;
        let now = Timestamp::now();
        let schedule = input.schedule(&self.identity, account, Some(&before), now)?;
        let settled = if schedule.is_due_as(&before) && before.enabled {
            settled
        } else if schedule.anchor == before.anchor {
            now.as_millisecond()
        } else {
            settled_at_first(&schedule, now)
        };
        self.keep_schedule(account, name, schedule, settled).await?;
        Ok(self.identity.schedule_arn(account, name))
    }

    async fn keep_schedule(
        &self,
        account: &str,
        name: &str,
        schedule: Schedule,
        settled: i64,
    ) -> Result<(), LambdaError> {
        let record = serde_json::to_string(&schedule)
            .map_err(|_| LambdaError::internal("a schedule cannot be written down"))?;
        let arn = self.identity.schedule_arn(account, name);
        let input = schedule.target.input.as_ref().map_or(0, String::len);
        if self.schedules.bytes(account, name) + input > MOST_BYTES {
            let most = MOST_BYTES / (1024 * 1024);
            return Err(LambdaError::new(
                Kind::ServiceQuotaExceeded,
                format!("The schedules of an account have at most {most} MiB of Input in all"),
            ));
        }
        let entry = Entry::new(schedule, settled, &arn).map_err(LambdaError::invalid)?;
        let row = ScheduleRow {
            account: account.to_owned(),
            name: name.to_owned(),
            settled,
            record,
        };
        self.events.journal().keep_schedule(row).await?;
        self.schedules.set(account, name, entry);
        Ok(())
    }

    /// Removes a schedule. What it has fired stays.
    pub(super) async fn delete_schedule(
        &self,
        account: &str,
        name: &str,
    ) -> Result<(), LambdaError> {
        let _turn = self.schedules.turn.lock().await;
        self.schedule(account, name)?;
        self.events.journal().remove_schedule(account, name).await?;
        self.schedules.remove(account, name);
        Ok(())
    }

    /// Fires what is due, and gives how long nothing is.
    async fn fire_due(&self, now: i64) -> Duration {
        let _turn = self.schedules.turn.lock().await;
        self.go_by_the_clock(now).await;
        let due = self.schedules.due(now, AT_ONCE);
        if due.is_empty() {
            return self.schedules.pause(now);
        }
        let (mut firings, mut bytes) = (Vec::new(), 0);
        for (account, name, entry) in due {
            if bytes > BYTES_AT_ONCE {
                break;
            }
            match self.firing(&account, &name, &entry, now).await {
                Ok(firing) => {
                    bytes += firing.event.as_ref().map_or(0, |event| event.payload.len());
                    firings.push(firing);
                }
                Err(Later) => self
                    .schedules
                    .postpone(&account, &name, now + milliseconds(PAUSE)),
            }
        }
        if firings.is_empty() {
            return Duration::ZERO;
        }
        match self.events.journal().fire_schedules(firings.clone()).await {
            Ok(fired) => {
                for (firing, fired) in firings.iter().zip(fired) {
                    self.note(firing, fired).await;
                }
                Duration::ZERO
            }
            Err(error) => {
                tracing::error!(%error, "what is due cannot be kept");
                for firing in &firings {
                    let again = now + milliseconds(LONGEST_PAUSE);
                    self.schedules
                        .postpone(&firing.account, &firing.name, again);
                }
                PAUSE
            }
        }
    }

    /// Where the clock was far ahead, nothing would come due until it is there again.
    async fn go_by_the_clock(&self, now: i64) {
        let until = now.saturating_add(milliseconds(self.events.put_back()));
        for (account, name, entry) in self.schedules.ahead(until) {
            let arn = self.identity.schedule_arn(&account, &name);
            tracing::warn!(arn, "a schedule goes by the clock, which was far ahead");
            let schedule = Schedule::clone(&entry.schedule);
            if let Err(error) = self.keep_schedule(&account, &name, schedule, now).await {
                tracing::error!(arn, %error, "a schedule cannot be kept");
                self.schedules.put_back(&account, &name, now);
            }
        }
    }

    /// What is due of a schedule.
    async fn firing(
        &self,
        account: &str,
        name: &str,
        entry: &Entry,
        now: i64,
    ) -> Result<Firing, Later> {
        let schedule = &entry.schedule;
        let arn = self.identity.schedule_arn(account, name);
        let Some(time) = entry.latest(now) else {
            // The clock was put back since it was found to be due.
            return Err(Later);
        };
        let mut firing = Firing {
            account: account.to_owned(),
            name: name.to_owned(),
            settled: time * 1000,
            last: schedule.delete_after && entry.is_last(time),
            event: None,
        };
        let accepted = (time + entry.offset) * 1000;
        let age = schedule.age(self.events.age()).saturating_mul(1000);
        if now.saturating_sub(accepted) > age {
            let time = Timestamp::from_second(time).unwrap_or_default();
            tracing::warn!(arn, %time, "an event of a schedule is left out: it is too old");
            return Ok(firing);
        }
        if !self.events.has_room(account) {
            if self.schedules.tells(account, now) {
                tracing::warn!(account, "events of schedules wait: too many events do");
            }
            return Err(Later);
        }
        let request = schedule.request_id(&arn, time);
        let place = Place {
            arn: &arn,
            identity: &self.identity,
            account,
        };
        let payload = Bytes::from(schedule.payload(&place, time, &request));
        let target = &schedule.target;
        let made = Made {
            account,
            function: &target.function,
            qualifier: target.qualifier.clone(),
            retries: target.retries,
            age: target.age,
            on_failure: target.dead_letter.clone(),
            // Its age is measured by a clock that never steps.
            accepted: measured() - now.saturating_sub(accepted),
        };
        let invocation = Invocation {
            request_id: request,
            payload,
            arn: target.arn.clone(),
            client_context: None,
            trace: None,
        };
        if self.registry.get(account, &target.function).is_none() {
            tracing::warn!(
                arn,
                function = target.function,
                "a schedule has no such function"
            );
            self.left(account, &invocation.arn, NO_FUNCTION, &invocation)
                .await
                .map_err(|error| {
                    tracing::error!(arn, %error, "a dead letter cannot be written");
                    Later
                })?;
            return Ok(firing);
        }
        firing.event = Some(made.event(invocation).map_err(|_| Later)?);
        Ok(firing)
    }

    /// Has what was kept seen.
    async fn note(&self, firing: &Firing, fired: Fired) {
        let (account, name) = (&firing.account, &firing.name);
        match (fired, &firing.event) {
            (Fired::Kept, Some(event)) => self.events.push(&event.row, &self.metrics),
            (Fired::NoFunction, Some(Waiting { row, payload })) => {
                // It was deleted just now.
                let arn = self.identity.arn(account, &row.function, None);
                let invocation = Invocation {
                    request_id: row.request.clone(),
                    payload: payload.clone().into(),
                    arn: arn.clone(),
                    client_context: None,
                    trace: None,
                };
                let left = self.left(account, &arn, NO_FUNCTION, &invocation);
                if let Err(error) = left.await {
                    tracing::error!(arn, %error, "a dead letter cannot be written");
                }
            }
            _ => {}
        }
        if firing.last {
            self.schedules.remove(account, name);
        } else {
            self.schedules.settle(account, name, firing.settled);
        }
    }
}

/// What cannot fire now.
#[derive(Debug)]
struct Later;

/// Up to when nothing of a new schedule is due, in milliseconds.
fn settled_at_first(schedule: &Schedule, now: Timestamp) -> i64 {
    let now = now.as_millisecond();
    if schedule.expression.starts_with("at") {
        // What was to be done just now is.
        return now - 60_000;
    }
    match schedule.expression.starts_with("rate") && schedule.start.is_none() {
        // A rate begins at once.
        true => schedule.anchor.as_millisecond() - 1000,
        false => now,
    }
}

fn no_schedule(name: &str) -> LambdaError {
    LambdaError::not_found(format!("Schedule {name} does not exist."))
}

#[cfg(test)]
mod tests;
