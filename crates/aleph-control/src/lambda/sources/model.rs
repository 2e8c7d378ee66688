//! Mappings of event sources as clients send and get them.
//!
//! AWS Lambda knows no NATS. A mapping says it in the fields that it has for brokers that its users
//! run themselves, which clients let through as they are:
//!
//! | field | what it says here |
//! | --- | --- |
//! | `SelfManagedEventSource` | `{"Endpoints": {"NATS_SERVERS": ["127.0.0.1:4222"]}}`: servers that the node's operator lists |
//! | `Topics` | one topic, in the words of [`super::topic`] |
//! | `StartingPosition`, `StartingPositionTimestamp` | where a new consumer of a stream begins: `TRIM_HORIZON` where nobody says |
//! | `BatchSize`, `MaximumBatchingWindowInSeconds` | 1 and 0 for subjects where nobody says, 100 and 0 for streams |
//! | `ParallelizationFactor` | events of a stream that are under way at once: 1 to 10 |
//! | `MaximumRetryAttempts`, `MaximumRecordAgeInSeconds` | of streams; -1 is without end |
//! | `FunctionResponseTypes` | of streams: `ReportBatchItemFailures`; of subjects: `Reply`, for requests, with a `BatchSize` of 1 |
//!
//! What would change which messages come, or what becomes of them, and cannot be had here, is
//! refused.

use super::mapping::{Mapping, Start};
use super::topic::Topic;
use crate::lambda::arn::{Identity, Target};
use crate::lambda::error::LambdaError;
use crate::lambda::model::{constraint, parse, within};
use crate::lambda::schedules::seconds;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Under which name servers are listed.
const SERVERS: &str = "NATS_SERVERS";
/// The most of them.
const MOST_SERVERS: usize = 10;
/// How many messages of a stream an event has where nobody says.
const BATCH: u32 = 100;
const PARTIAL: &str = "ReportBatchItemFailures";
/// What AWS Lambda has no word for. Its clients do not look at it.
const REPLY: &str = "Reply";

/// `CreateEventSourceMapping` and `UpdateEventSourceMapping`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SourceInput {
    function_name: Option<String>,
    enabled: Option<bool>,
    batch_size: Option<u32>,
    maximum_batching_window_in_seconds: Option<u32>,
    parallelization_factor: Option<u32>,
    starting_position: Option<String>,
    starting_position_timestamp: Option<f64>,
    maximum_retry_attempts: Option<i64>,
    maximum_record_age_in_seconds: Option<i64>,
    function_response_types: Option<Vec<String>>,
    topics: Option<Vec<String>>,
    self_managed_event_source: Option<SelfManaged>,
    event_source_arn: Option<String>,
    queues: Option<IgnoredAny>,
    filter_criteria: Option<IgnoredAny>,
    destination_config: Option<IgnoredAny>,
    source_access_configurations: Option<Vec<IgnoredAny>>,
    bisect_batch_on_function_error: Option<bool>,
    tumbling_window_in_seconds: Option<u32>,
    #[serde(rename = "KMSKeyArn")]
    kms_key_arn: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SelfManaged {
    #[serde(default)]
    endpoints: BTreeMap<String, Vec<String>>,
}

fn missing(at: &str) -> LambdaError {
    LambdaError::invalid(format!(
        "1 validation error detected: '{at}' must not be null"
    ))
}

/// A number that may be -1, for without end.
fn endless(value: i64, least: u32, most: u32, at: &str) -> Result<Option<u32>, LambdaError> {
    match (value, u32::try_from(value)) {
        (-1, _) => Ok(None),
        (_, Ok(value)) => within(value, &(least..=most), at).map(Some),
        _ => Err(constraint(
            value,
            at,
            &format!("have value between -1 and {most}"),
        )),
    }
}

impl SourceInput {
    pub(crate) fn read(body: &[u8]) -> Result<Self, LambdaError> {
        parse(body)
    }

    fn refuse(&self) -> Result<(), LambdaError> {
        let windows = self.tumbling_window_in_seconds.is_some_and(|s| s > 0);
        let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let access = &self.source_access_configurations;
        let refused = [
            ("EventSourceArn", some(&self.event_source_arn)),
            ("Queues", self.queues.is_some()),
            ("FilterCriteria", self.filter_criteria.is_some()),
            ("DestinationConfig", self.destination_config.is_some()),
            (
                "SourceAccessConfigurations",
                access.as_ref().is_some_and(|all| !all.is_empty()),
            ),
            (
                "BisectBatchOnFunctionError",
                self.bisect_batch_on_function_error == Some(true),
            ),
            ("TumblingWindowInSeconds", windows),
            ("KMSKeyArn", some(&self.kms_key_arn)),
        ];
        match refused.iter().find(|(_, is)| *is) {
            None => Ok(()),
            Some((name, _)) => Err(LambdaError::invalid(format!(
                "{name} cannot be used: this node has event sources of NATS, which are named by \
                 SelfManagedEventSource={{'Endpoints': {{'{SERVERS}': [...]}}}} and Topics"
            ))),
        }
    }

    fn servers(&self) -> Result<Vec<String>, LambdaError> {
        let endpoints = self
            .self_managed_event_source
            .as_ref()
            .map(|s| &s.endpoints);
        let endpoints = endpoints.ok_or_else(|| missing("selfManagedEventSource"))?;
        let servers = endpoints.get(SERVERS).filter(|_| endpoints.len() == 1);
        let few = servers.filter(|all| (1..=MOST_SERVERS).contains(&all.len()));
        few.cloned().ok_or_else(|| {
            LambdaError::invalid(format!(
                "SelfManagedEventSource has to have Endpoints of {SERVERS} alone, one to \
                 {MOST_SERVERS} of them"
            ))
        })
    }

    fn topic(&self) -> Result<Topic, LambdaError> {
        match self.topics.as_deref() {
            Some([topic]) => Topic::parse(topic)
                .map_err(|why| LambdaError::invalid(format!("Invalid topic: {why}"))),
            _ => Err(LambdaError::invalid("Topics has to have one topic")),
        }
    }

    fn start(&self) -> Result<Start, LambdaError> {
        match (
            self.starting_position.as_deref(),
            self.starting_position_timestamp,
        ) {
            (None | Some("TRIM_HORIZON"), None) => Ok(Start::Oldest),
            (Some("LATEST"), None) => Ok(Start::Next),
            (Some("AT_TIMESTAMP"), Some(time)) => SignedDuration::try_from_secs_f64(time)
                .ok()
                .and_then(|span| Timestamp::from_duration(span).ok())
                .map(Start::At)
                .ok_or_else(|| LambdaError::invalid(format!("{time} is no time"))),
            (Some("AT_TIMESTAMP"), None) => Err(missing("startingPositionTimestamp")),
            (Some(other), None) => {
                let what = "satisfy enum value set: [TRIM_HORIZON, LATEST, AT_TIMESTAMP]";
                Err(constraint(other, "startingPosition", what))
            }
            (_, Some(_)) => Err(LambdaError::invalid(
                "StartingPositionTimestamp goes with the StartingPosition AT_TIMESTAMP only",
            )),
        }
    }

    fn target(&self, identity: &Identity, account: &str) -> Result<Option<Target>, LambdaError> {
        let named = self.function_name.as_deref();
        named.map(|name| identity.target(account, name)).transpose()
    }

    /// The mapping that is to be made.
    pub(super) fn created(
        self,
        identity: &Identity,
        account: &str,
    ) -> Result<Mapping, LambdaError> {
        let target = self.target(identity, account)?;
        let target = target.ok_or_else(|| missing("functionName"))?;
        let topic = self.topic()?;
        let mapping = Mapping {
            modified: Timestamp::now(),
            enabled: true,
            function: target.name,
            qualifier: target.qualifier,
            servers: self.servers()?,
            start: self.start()?,
            batch: match &topic {
                Topic::Subject(_) => 1,
                Topic::Stream { .. } => BATCH,
            },
            window: 0,
            parallel: 1,
            retries: None,
            age: None,
            partial: false,
            reply: false,
            topic,
        };
        self.apply(mapping)
    }

    /// The mapping that one is to become. What it listens to stays.
    pub(super) fn updated(
        self,
        identity: &Identity,
        account: &str,
        before: &Mapping,
    ) -> Result<Mapping, LambdaError> {
        let mut mapping = before.clone();
        mapping.modified = Timestamp::now();
        if let Some(target) = self.target(identity, account)? {
            mapping.function = target.name;
            mapping.qualifier = target.qualifier;
        }
        self.apply(mapping)
    }

    fn apply(self, mut mapping: Mapping) -> Result<Mapping, LambdaError> {
        self.refuse()?;
        if let Topic::Subject(subject) = &mapping.topic {
            let of_streams = [
                ("StartingPosition", self.starting_position.is_some()),
                (
                    "ParallelizationFactor",
                    self.parallelization_factor.is_some(),
                ),
                (
                    "MaximumRetryAttempts",
                    self.maximum_retry_attempts.is_some_and(|n| n != -1),
                ),
                (
                    "MaximumRecordAgeInSeconds",
                    self.maximum_record_age_in_seconds.is_some_and(|n| n != -1),
                ),
            ];
            if let Some((name, _)) = of_streams.iter().find(|(_, is)| *is) {
                return Err(LambdaError::invalid(format!(
                    "{name} cannot be used with the subject {subject}: it is for streams. Events \
                     of subjects are tried again as the function's EventInvokeConfig says."
                )));
            }
        }
        if let Some(enabled) = self.enabled {
            mapping.enabled = enabled;
        }
        if let Some(batch) = self.batch_size {
            mapping.batch = within(batch, &(1..=10_000), "batchSize")?;
        }
        if let Some(window) = self.maximum_batching_window_in_seconds {
            let at = "maximumBatchingWindowInSeconds";
            mapping.window = within(window, &(0..=300), at)?;
        }
        if let Some(parallel) = self.parallelization_factor {
            mapping.parallel = within(parallel, &(1..=10), "parallelizationFactor")?;
        }
        if let Some(retries) = self.maximum_retry_attempts {
            mapping.retries = endless(retries, 0, 10_000, "maximumRetryAttempts")?;
        }
        if let Some(age) = self.maximum_record_age_in_seconds {
            mapping.age = endless(age, 60, 604_800, "maximumRecordAgeInSeconds")?;
        }
        let of_subject = matches!(mapping.topic, Topic::Subject(_));
        let word = if of_subject { REPLY } else { PARTIAL };
        let said = match self.function_response_types.as_deref() {
            None => None,
            Some([]) => Some(false),
            Some([one]) if one == word => Some(true),
            Some(_) => {
                return Err(LambdaError::invalid(format!(
                    "FunctionResponseTypes has to be empty or [{word}] here"
                )));
            }
        };
        match said {
            Some(reply) if of_subject => mapping.reply = reply,
            Some(partial) => mapping.partial = partial,
            None => {}
        }
        if mapping.reply && mapping.batch != 1 {
            return Err(LambdaError::invalid(format!(
                "FunctionResponseTypes [{REPLY}] goes with a BatchSize of 1 only: each request has \
                 an answer of its own"
            )));
        }
        Ok(mapping)
    }
}

/// How a mapping is told.
pub(super) struct Shown<'s> {
    pub(super) identity: &'s Identity,
    pub(super) account: &'s str,
    pub(super) id: &'s str,
    pub(super) state: &'s str,
    pub(super) result: String,
}

impl Shown<'_> {
    pub(super) fn of(self, mapping: &Mapping) -> Value {
        let Self {
            identity,
            account,
            id,
            state,
            result,
        } = self;
        let arn = |name: &str| {
            let (region, number) = (&identity.region, identity.account_id(account));
            format!("arn:aws:lambda:{region}:{number}:event-source-mapping:{name}")
        };
        let qualifier = mapping.qualifier.as_deref();
        let mut shown = json!({
            "UUID": id,
            "EventSourceMappingArn": arn(id),
            "FunctionArn": identity.arn(account, &mapping.function, qualifier),
            "State": state,
            "StateTransitionReason": "USER_INITIATED",
            "LastProcessingResult": result,
            "LastModified": seconds(mapping.modified),
            "BatchSize": mapping.batch,
            "MaximumBatchingWindowInSeconds": mapping.window,
            "Topics": [mapping.topic.to_string()],
            "SelfManagedEventSource": { "Endpoints": { SERVERS: mapping.servers } },
        });
        if matches!(mapping.topic, Topic::Subject(_)) {
            let types: &[&str] = if mapping.reply { &[REPLY] } else { &[] };
            shown["FunctionResponseTypes"] = types.into();
            return shown;
        }
        let endless = |value: Option<u32>| value.map_or(-1, i64::from);
        shown["ParallelizationFactor"] = mapping.parallel.into();
        shown["MaximumRetryAttempts"] = endless(mapping.retries).into();
        shown["MaximumRecordAgeInSeconds"] = endless(mapping.age).into();
        let types: &[&str] = if mapping.partial { &[PARTIAL] } else { &[] };
        shown["FunctionResponseTypes"] = types.into();
        match mapping.start {
            Start::Oldest => shown["StartingPosition"] = "TRIM_HORIZON".into(),
            Start::Next => shown["StartingPosition"] = "LATEST".into(),
            Start::At(time) => {
                shown["StartingPosition"] = "AT_TIMESTAMP".into();
                shown["StartingPositionTimestamp"] = seconds(time);
            }
        }
        shown
    }
}
