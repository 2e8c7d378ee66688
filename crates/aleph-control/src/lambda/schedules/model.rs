//! Schedules as clients of EventBridge Scheduler send and get them.
//!
//! What cannot be had here (other targets than functions, queues, keys) is refused, and so is what
//! would never be due.

use super::schedule::{GROUP, Place, Schedule, ScheduleTarget};
use super::timing::{Expression, is_year};
use crate::lambda::arn::Identity;
use crate::lambda::error::LambdaError;
use crate::lambda::invocation::MOST_ASYNCHRONOUS;
use crate::lambda::model::{check_text, constraint, destination, parse, within};
use crate::lambda::uuid_of;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// The longest name of a schedule.
const MOST_NAME: usize = 64;
/// How long ago a time may be that something is to be done once: clocks differ.
const JUST_NOW: SignedDuration = SignedDuration::from_mins(1);

/// `CreateSchedule` and `UpdateSchedule`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ScheduleInput {
    pub(crate) group_name: Option<String>,
    schedule_expression: Option<String>,
    schedule_expression_timezone: Option<String>,
    start_date: Option<Moment>,
    end_date: Option<Moment>,
    description: Option<String>,
    state: Option<String>,
    kms_key_arn: Option<String>,
    target: Option<TargetInput>,
    flexible_time_window: Option<Window>,
    pub(crate) client_token: Option<String>,
    action_after_completion: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TargetInput {
    #[serde(default)]
    arn: String,
    #[serde(default)]
    role_arn: String,
    input: Option<String>,
    retry_policy: Option<Retries>,
    dead_letter_config: Option<DeadLetters>,
    ecs_parameters: Option<IgnoredAny>,
    event_bridge_parameters: Option<IgnoredAny>,
    kinesis_parameters: Option<IgnoredAny>,
    sage_maker_pipeline_parameters: Option<IgnoredAny>,
    sqs_parameters: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Retries {
    maximum_event_age_in_seconds: Option<u32>,
    maximum_retry_attempts: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeadLetters {
    arn: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Window {
    mode: Option<String>,
    maximum_window_in_minutes: Option<u32>,
}

/// Seconds since 1970, or RFC 3339.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Moment {
    Seconds(f64),
    Text(Timestamp),
}

impl Moment {
    fn time(&self) -> Result<Timestamp, LambdaError> {
        let time = match self {
            Self::Text(time) => Some(*time),
            Self::Seconds(seconds) => SignedDuration::try_from_secs_f64(*seconds)
                .ok()
                .and_then(|span| Timestamp::from_duration(span).ok()),
        };
        let named = time.filter(|time| is_year(TimeZone::UTC.to_datetime(*time).year()));
        named.ok_or_else(|| LambdaError::invalid("A date has to be one of the years 1970 to 2199"))
    }
}

/// Refuses all groups but the one there is.
pub(crate) fn check_group(name: Option<&str>) -> Result<(), LambdaError> {
    match name {
        None | Some(GROUP) => Ok(()),
        Some(other) => Err(LambdaError::not_found(format!(
            "Schedule group {other} does not exist. This node has the group {GROUP} alone."
        ))),
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), LambdaError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=MOST_NAME).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    let what = "satisfy regular expression pattern: [0-9a-zA-Z-_.]{1,64}";
    Err(constraint(name, "name", what))
}

fn one_of<'c>(value: &str, choices: [&'c str; 2], at: &str) -> Result<&'c str, LambdaError> {
    let found = choices.into_iter().find(|choice| *choice == value);
    found.ok_or_else(|| {
        let [a, b] = choices;
        constraint(value, at, &format!("satisfy enum value set: [{a}, {b}]"))
    })
}

fn missing(at: &str) -> LambdaError {
    LambdaError::invalid(format!(
        "1 validation error detected: '{at}' must not be null"
    ))
}

impl ScheduleInput {
    pub(crate) fn read(body: &[u8]) -> Result<Self, LambdaError> {
        parse(body)
    }

    /// The schedule that is asked for. `before` is the one there is.
    pub(super) fn schedule(
        self,
        identity: &Identity,
        account: &str,
        before: Option<&Schedule>,
        now: Timestamp,
    ) -> Result<Schedule, LambdaError> {
        if self.kms_key_arn.is_some() {
            return Err(LambdaError::invalid(
                "KmsKeyArn cannot be used: this node has no such keys",
            ));
        }
        let expression = self.schedule_expression;
        let expression = expression.ok_or_else(|| missing("scheduleExpression"))?;
        let texts = [
            (Some(&expression), 256, "scheduleExpression"),
            (
                self.schedule_expression_timezone.as_ref(),
                50,
                "scheduleExpressionTimezone",
            ),
            (self.description.as_ref(), 512, "description"),
            (self.client_token.as_ref(), 64, "clientToken"),
        ];
        for (text, most, at) in texts {
            check_text(text.map_or("", String::as_str), most, at)?;
        }
        let target = self.target.ok_or_else(|| missing("target"))?;
        let window = self.flexible_time_window;
        let window = window
            .ok_or_else(|| missing("flexibleTimeWindow"))?
            .minutes()?;
        let start = self.start_date.map(|date| date.time()).transpose()?;
        let end = self.end_date.map(|date| date.time()).transpose()?;
        if let (Some(start), Some(end)) = (start, end)
            && end <= start
        {
            return Err(LambdaError::invalid(
                "The EndDate has to be after the StartDate",
            ));
        }
        let state = self.state.as_deref().unwrap_or("ENABLED");
        let state = one_of(state, ["ENABLED", "DISABLED"], "state")?;
        let after = self.action_after_completion.as_deref().unwrap_or("NONE");
        let after = one_of(after, ["NONE", "DELETE"], "actionAfterCompletion")?;
        let same = before.filter(|b| b.expression == expression && b.start == start);
        // Rates begin on a second, which is what is told of them.
        let begin = start.unwrap_or(now).as_second();
        let begin = Timestamp::from_second(begin).unwrap_or(now);
        let schedule = Schedule {
            created: before.map_or(now, |before| before.created),
            modified: now,
            description: self.description.unwrap_or_default(),
            timezone: self
                .schedule_expression_timezone
                .unwrap_or_else(|| "UTC".into()),
            start,
            end,
            enabled: state == "ENABLED",
            window,
            delete_after: after == "DELETE",
            target: target.checked(identity, account)?,
            anchor: same.map_or(begin, |same| same.anchor),
            token: self.client_token,
            expression,
        };
        let unchanged = before.is_some_and(|before| before.is_due_as(&schedule));
        schedule.check(now, unchanged)?;
        schedule.check_input(identity, account)?;
        Ok(schedule)
    }
}

impl Window {
    fn minutes(self) -> Result<Option<u32>, LambdaError> {
        let mode = self
            .mode
            .ok_or_else(|| missing("flexibleTimeWindow.mode"))?;
        let mode = one_of(&mode, ["OFF", "FLEXIBLE"], "flexibleTimeWindow.mode")?;
        let at = "flexibleTimeWindow.maximumWindowInMinutes";
        match (mode, self.maximum_window_in_minutes) {
            ("OFF", None) => Ok(None),
            ("OFF", Some(_)) => Err(LambdaError::invalid(format!(
                "{at} goes with the mode FLEXIBLE only"
            ))),
            (_, Some(minutes)) => within(minutes, &(1..=1440), at).map(Some),
            (_, None) => Err(missing(at)),
        }
    }
}

impl TargetInput {
    fn checked(self, identity: &Identity, account: &str) -> Result<ScheduleTarget, LambdaError> {
        let others = [
            ("EcsParameters", &self.ecs_parameters),
            ("EventBridgeParameters", &self.event_bridge_parameters),
            ("KinesisParameters", &self.kinesis_parameters),
            (
                "SageMakerPipelineParameters",
                &self.sage_maker_pipeline_parameters,
            ),
            ("SqsParameters", &self.sqs_parameters),
        ];
        let other = others.iter().find(|(_, value)| value.is_some());
        if let Some((name, _)) = other {
            return Err(LambdaError::invalid(format!(
                "{name} cannot be used: a target of this node is a function"
            )));
        }
        let is_function = self.arn.starts_with("arn:") && self.arn.contains(":function:");
        let named = is_function.then(|| identity.target(account, &self.arn));
        let Some(Ok(function)) = named else {
            return Err(LambdaError::invalid(format!(
                "Invalid Target Arn {:?}: it has to be the ARN of a function of this account, \
                 such as {}",
                self.arn,
                identity.arn(account, "NAME", None)
            )));
        };
        if !(self.role_arn.starts_with("arn:") && self.role_arn.contains(":role/")) {
            return Err(LambdaError::invalid(format!(
                "Invalid RoleArn {:?}: any ARN of a role will do, such as \
                 arn:aws:iam::000000000000:role/any",
                self.role_arn
            )));
        }
        let (mut retries, mut age) = (None, None);
        if let Some(policy) = self.retry_policy {
            let at = |name: &str| format!("target.retryPolicy.{name}");
            if let Some(most) = policy.maximum_retry_attempts {
                retries = Some(within(most, &(0..=185), &at("maximumRetryAttempts"))?);
            }
            if let Some(most) = policy.maximum_event_age_in_seconds {
                age = Some(within(
                    most,
                    &(60..=86_400),
                    &at("maximumEventAgeInSeconds"),
                )?);
            }
        }
        let letters = self.dead_letter_config.and_then(|config| config.arn);
        let dead_letter = destination(letters).map_err(|_| {
            LambdaError::invalid(
                "DeadLetterConfig cannot be used with a queue: this node has none. Name the ARN of \
                 a function, or leave it out: what failed is in the node's dead letters anyway.",
            )
        })?;
        Ok(ScheduleTarget {
            arn: self.arn,
            function: function.name,
            qualifier: function.qualifier,
            role: self.role_arn,
            input: self.input,
            retries,
            age,
            dead_letter,
        })
    }
}

impl Schedule {
    /// Refuses what would never be due.
    fn check(&self, now: Timestamp, unchanged: bool) -> Result<(), LambdaError> {
        let invalid =
            |why: String| LambdaError::invalid(format!("Invalid Schedule Expression: {why}"));
        let timing = self.timing().map_err(invalid)?;
        if let Expression::At(time) = &timing.expression {
            if timing.moment(*time).is_none() {
                return Err(invalid(format!(
                    "no clock in {} ever shows {time}: clocks are put on there",
                    self.timezone
                )));
            }
            let earliest = now.checked_sub(JUST_NOW).unwrap_or(now);
            if !unchanged && timing.next(earliest.as_second()).is_none() {
                return Err(invalid(format!("{time} in {} has passed", self.timezone)));
            }
        }
        if !unchanged && timing.next(now.as_second()).is_none() && !timing.is_once() {
            return Err(invalid(format!(
                "{} never comes, or not before its EndDate",
                self.expression
            )));
        }
        Ok(())
    }

    /// Refuses input that is no JSON, and what makes too large an event.
    fn check_input(&self, identity: &Identity, account: &str) -> Result<(), LambdaError> {
        let Some(input) = &self.target.input else {
            return Ok(());
        };
        let arn = identity.schedule_arn(account, &"x".repeat(MOST_NAME));
        let place = Place {
            arn: &arn,
            identity,
            account,
        };
        let id = uuid_of(&[]);
        if input.len() > MOST_ASYNCHRONOUS || self.payload(&place, 0, &id).len() > MOST_ASYNCHRONOUS
        {
            let what = format!(
                "have length less than or equal to {MOST_ASYNCHRONOUS}, with what stands in it for \
                 other things put in"
            );
            return Err(constraint("…", "target.input", &what));
        }
        // What stands for a context attribute may be of any form.
        let plain = input.replace("<aws.scheduler.attempt-number>", "1");
        serde_json::from_str::<IgnoredAny>(&plain)
            .map(drop)
            .map_err(|error| LambdaError::invalid(format!("Target.Input is no JSON: {error}")))
    }

    fn state(&self) -> &'static str {
        if self.enabled { "ENABLED" } else { "DISABLED" }
    }

    /// All that is set for it.
    pub(crate) fn shown(&self, name: &str, arn: &str) -> Value {
        let target = &self.target;
        let mut shown = json!({
            "Arn": arn,
            "Name": name,
            "GroupName": GROUP,
            "ScheduleExpression": self.expression,
            "ScheduleExpressionTimezone": self.timezone,
            "State": self.state(),
            "Description": self.description,
            "CreationDate": seconds(self.created),
            "LastModificationDate": seconds(self.modified),
            "ActionAfterCompletion": if self.delete_after { "DELETE" } else { "NONE" },
            "FlexibleTimeWindow": match self.window {
                None => json!({ "Mode": "OFF" }),
                Some(minutes) => json!({
                    "Mode": "FLEXIBLE", "MaximumWindowInMinutes": minutes,
                }),
            },
            "Target": { "Arn": target.arn, "RoleArn": target.role },
        });
        let dates = [("StartDate", self.start), ("EndDate", self.end)];
        for (key, date) in dates {
            if let Some(date) = date {
                shown[key] = seconds(date);
            }
        }
        let place = &mut shown["Target"];
        if let Some(input) = &target.input {
            place["Input"] = input.as_str().into();
        }
        if let Some(retries) = target.retries {
            place["RetryPolicy"]["MaximumRetryAttempts"] = retries.into();
        }
        if let Some(age) = target.age {
            place["RetryPolicy"]["MaximumEventAgeInSeconds"] = age.into();
        }
        if let Some(arn) = &target.dead_letter {
            place["DeadLetterConfig"] = json!({ "Arn": arn });
        }
        shown
    }

    /// What a list says of it.
    pub(crate) fn summary(&self, name: &str, arn: &str) -> Value {
        json!({
            "Arn": arn,
            "Name": name,
            "GroupName": GROUP,
            "State": self.state(),
            "CreationDate": seconds(self.created),
            "LastModificationDate": seconds(self.modified),
            "Target": { "Arn": self.target.arn },
        })
    }
}

/// A time as clients of this API get it. Milliseconds are exact in it for a long time to come.
pub(crate) fn seconds(time: Timestamp) -> Value {
    let milliseconds = time.as_millisecond();
    let whole = serde_json::Number::from(milliseconds.div_euclid(1000));
    match milliseconds.rem_euclid(1000) {
        0 => Value::Number(whole),
        part => format!("{whole}.{part:03}")
            .parse::<f64>()
            .map_or(Value::Null, Value::from),
    }
}
