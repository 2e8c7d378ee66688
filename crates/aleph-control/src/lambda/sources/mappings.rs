//! What is done with mappings: made, changed, looked at and removed.

use super::mapping::{Mapping, Phase, Status};
use super::model::{Shown, SourceInput};
use super::topic::Topic;
use super::{END, Live, MOST_MAPPINGS, normal, stream, work};
use crate::lambda::error::LambdaError;
use crate::lambda::{Functions, random_id};
use aleph_executor::journal::SourceRow;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::timeout;

/// The servers of a mapping, however they were written.
fn called(mapping: &Mapping) -> BTreeSet<Option<String>> {
    mapping.servers.iter().map(|name| normal(name)).collect()
}

impl Functions {
    pub(in crate::lambda) fn source(&self, account: &str, id: &str) -> Result<Value, LambdaError> {
        let live = self.sources.get(account, id)?;
        Ok(self.shown_source(id, &live, None))
    }

    fn shown_source(&self, id: &str, live: &Live, state: Option<&'static str>) -> Value {
        let (phase, result) = live.status.told();
        let shown = Shown {
            identity: &self.identity,
            account: &live.account,
            id,
            state: state.unwrap_or(phase),
            result,
        };
        shown.of(&live.mapping)
    }

    /// The mappings of an account by their UUIDs; of one function where it is named.
    pub(in crate::lambda) fn list_sources(
        &self,
        account: &str,
        function: Option<(&str, Option<&str>)>,
    ) -> Vec<(String, Value)> {
        let all: Vec<_> = {
            let live = self.sources.lock();
            let own = live.iter().filter(|(_, one)| {
                let mapping = &one.mapping;
                let wanted = function.is_none_or(|(name, qualifier)| {
                    let same = qualifier.is_none() || mapping.qualifier.as_deref() == qualifier;
                    mapping.function == name && same
                });
                one.account == account && wanted
            });
            own.map(|(id, one)| (id.clone(), one.clone())).collect()
        };
        let shown = all.into_iter().map(|(id, live)| {
            let shown = self.shown_source(&id, &live, None);
            (id, shown)
        });
        shown.collect()
    }

    pub(in crate::lambda) async fn create_source(
        &self,
        account: &str,
        input: SourceInput,
    ) -> Result<Value, LambdaError> {
        let _turn = self.sources.turn.lock().await;
        let mapping = input.created(&self.identity, account)?;
        self.sources.named(account, &mapping.servers)?;
        self.check_source(account, &mapping)?;
        let own = self.list_sources(account, None);
        if own.len() >= MOST_MAPPINGS {
            let message = format!("An account has at most {MOST_MAPPINGS} event source mappings");
            return Err(LambdaError::invalid(message));
        }
        let same = |one: &Live| {
            let (a, b) = (&one.mapping, &mapping);
            let same = a.topic == b.topic && called(a) == called(b);
            one.account == account && same && a.function == b.function
        };
        let twin = self
            .sources
            .lock()
            .iter()
            .find(|(_, one)| same(one))
            .map(|(id, _)| id.clone());
        if let Some(twin) = twin {
            return Err(LambdaError::conflict(format!(
                "An event source mapping with this topic and function already exists. Please \
                 update or delete the existing mapping with UUID {twin}"
            )));
        }
        let id = random_id();
        self.keep_source(account, &id, mapping, Phase::Creating)
            .await
    }

    pub(in crate::lambda) async fn update_source(
        &self,
        account: &str,
        id: &str,
        input: SourceInput,
    ) -> Result<Value, LambdaError> {
        let _turn = self.sources.turn.lock().await;
        let before = self.sources.get(account, id)?;
        let mapping = input.updated(&self.identity, account, &before.mapping)?;
        self.sources.named(account, &mapping.servers)?;
        self.check_source(account, &mapping)?;
        let phase = match (before.mapping.enabled, mapping.enabled) {
            (true, true) => Phase::Updating,
            (false, true) => Phase::Enabling,
            (_, false) => Phase::Disabling,
        };
        self.keep_source(account, id, mapping, phase).await
    }

    /// Refuses a function that there is not.
    fn check_source(&self, account: &str, mapping: &Mapping) -> Result<(), LambdaError> {
        let function = self.registry.get(account, &mapping.function);
        let qualifier = mapping.qualifier.as_deref();
        match function.is_some_and(|function| function.resolve(qualifier, || 0.0).is_some()) {
            true => Ok(()),
            false => {
                let arn = self.identity.arn(account, &mapping.function, qualifier);
                Err(LambdaError::no_function(&arn))
            }
        }
    }

    async fn keep_source(
        &self,
        account: &str,
        id: &str,
        mapping: Mapping,
        phase: Phase,
    ) -> Result<Value, LambdaError> {
        let record = serde_json::to_string(&mapping)
            .map_err(|_| LambdaError::internal("an event source cannot be written down"))?;
        let row = SourceRow {
            id: id.to_owned(),
            account: account.to_owned(),
            record,
        };
        self.sources.journal.keep_event_source(row).await?;
        let phase = match (phase, mapping.enabled) {
            (Phase::Creating, false) => Phase::Disabled,
            (phase, _) => phase,
        };
        let before = self.sources.lock().get(id).map(|live| live.tasks.clone());
        let live = Live {
            tasks: before.unwrap_or_default(),
            account: account.to_owned(),
            mapping: Arc::new(mapping),
            status: Status::new(phase),
            stop: self.sources.stopping.child_token(),
        };
        let shown = self.shown_source(id, &live, None);
        let before = self.sources.lock().insert(id.to_owned(), live.clone());
        if let Some(before) = before {
            // What it has taken it carries out; it takes nothing more.
            before.stop.cancel();
        }
        match live.mapping.enabled {
            true => work(self, id, &live),
            false => live.status.phase(Phase::Disabled),
        }
        Ok(shown)
    }

    pub(in crate::lambda) async fn delete_source(
        &self,
        account: &str,
        id: &str,
    ) -> Result<Value, LambdaError> {
        let _turn = self.sources.turn.lock().await;
        let live = self.sources.get(account, id)?;
        self.sources.journal.remove_event_source(id).await?;
        self.sources.lock().remove(id);
        live.stop.cancel();
        if let Topic::Stream { stream, .. } = &live.mapping.topic {
            let servers = self.sources.named(account, &live.mapping.servers);
            let servers = servers.unwrap_or_default();
            let (id, stream, tasks) = (id.to_owned(), stream.clone(), live.tasks.clone());
            tasks.close();
            self.work.spawn(async move {
                // A task that has just begun makes the consumer.
                let _ = timeout(END, tasks.wait()).await;
                stream::forget(&servers, &id, &stream).await;
            });
        }
        Ok(self.shown_source(id, &live, Some("Deleting")))
    }
}
