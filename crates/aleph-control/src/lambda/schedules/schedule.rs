//! A schedule as it is kept, and the events that it makes.

use super::timing::{Expression, Timing};
use crate::lambda::arn::Identity;
use crate::lambda::uuid_of;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// The group that all schedules are in.
pub(crate) const GROUP: &str = "default";

/// A schedule, as it is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub(crate) created: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) description: String,
    pub(crate) expression: String,
    pub(crate) timezone: String,
    pub(crate) start: Option<Timestamp>,
    pub(crate) end: Option<Timestamp>,
    pub(crate) enabled: bool,
    /// Within how many minutes of its time an event may come.
    pub(crate) window: Option<u32>,
    /// Whether the schedule goes with its last event.
    pub(crate) delete_after: bool,
    pub(crate) target: ScheduleTarget,
    /// When a rate begins.
    pub(crate) anchor: Timestamp,
    /// Names the request that made it, so that the same one makes nothing new.
    pub(crate) token: Option<String>,
}

/// What gets the events of a schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScheduleTarget {
    pub(crate) arn: String,
    pub(crate) function: String,
    pub(crate) qualifier: Option<String>,
    /// Kept, and means nothing here.
    pub(crate) role: String,
    pub(crate) input: Option<String>,
    pub(crate) retries: Option<u32>,
    /// In seconds.
    pub(crate) age: Option<u32>,
    /// Whom to tell of events that failed: the ARN of a function.
    pub(crate) dead_letter: Option<String>,
}

impl Schedule {
    /// When it is due.
    ///
    /// # Errors
    /// Says what of it cannot be.
    pub(super) fn timing(&self) -> Result<Timing, String> {
        let zone = TimeZone::get(&self.timezone).map_err(|_| {
            format!(
                "Invalid ScheduleExpressionTimezone: {:?} is no time zone of the IANA database",
                self.timezone
            )
        })?;
        Ok(Timing {
            expression: Expression::parse(&self.expression)?,
            zone,
            anchor: self.anchor.as_second(),
            start: self.start.map(Timestamp::as_second),
            end: self.end.map(Timestamp::as_second),
        })
    }

    /// Whether two are due at the same times.
    pub(super) fn is_due_as(&self, other: &Self) -> bool {
        let when = |s: &Self| {
            let (expression, zone) = (s.expression.clone(), s.timezone.clone());
            (expression, zone, s.start, s.end, s.window, s.anchor)
        };
        when(self) == when(other)
    }

    /// How much later than its time its events come, in seconds: the same for all of them, so
    /// that they come as far from each other as without. Schedules of one time are spread.
    pub(super) fn offset(&self, arn: &str) -> i64 {
        let window = i64::from(self.window.unwrap_or(0)) * 60;
        let hash = arn.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        match window {
            0 => 0,
            window => i64::try_from(hash % (1 << 32)).unwrap_or(0) % window,
        }
    }

    /// The id of what is due at a time: the same whenever it is made.
    pub(super) fn request_id(&self, arn: &str, time: i64) -> String {
        let created = self.created.as_millisecond();
        uuid_of(&["schedule", arn, &created.to_string(), &time.to_string()])
    }

    /// What its function gets for a time.
    pub(super) fn payload(&self, place: &Place<'_>, time: i64, request: &str) -> String {
        let time = Timestamp::from_second(time).unwrap_or_default();
        let time = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let Some(input) = &self.target.input else {
            let Place {
                arn,
                identity,
                account,
            } = place;
            return json!({
                "version": "0",
                "id": request,
                "detail-type": "Scheduled Event",
                "source": "aws.scheduler",
                "account": identity.account_id(account),
                "time": time,
                "region": identity.region,
                "resources": [arn],
                "detail": "{}",
            })
            .to_string();
        };
        let attributes = [
            ("<aws.scheduler.schedule-arn>", place.arn),
            ("<aws.scheduler.scheduled-time>", &time),
            ("<aws.scheduler.execution-id>", request),
            // An event of a schedule is put into the queue once.
            ("<aws.scheduler.attempt-number>", "1"),
        ];
        let mut input = input.clone();
        for (attribute, value) in attributes {
            input = input.replace(attribute, value);
        }
        input
    }

    /// How old its events may become, where a function does not say.
    pub(super) fn age(&self, otherwise: Duration) -> i64 {
        let age = self.target.age.map(i64::from);
        age.unwrap_or_else(|| i64::try_from(otherwise.as_secs()).unwrap_or(i64::MAX / 2))
    }
}

/// Where a schedule is.
pub(super) struct Place<'p> {
    pub(super) arn: &'p str,
    pub(super) identity: &'p Identity,
    pub(super) account: &'p str,
}

impl Identity {
    /// The ARN of a schedule.
    pub(crate) fn schedule_arn(&self, account: &str, name: &str) -> String {
        let (region, id) = (&self.region, self.account_id(account));
        format!("arn:aws:scheduler:{region}:{id}:schedule/{GROUP}/{name}")
    }
}
