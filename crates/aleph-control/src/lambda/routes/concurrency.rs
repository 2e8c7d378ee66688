//! Concurrency: what is reserved for a function, and how many clones of a version are kept ready.

use super::{On, Reply, Route, json, listed, nothing, ok};
use crate::lambda::Functions;
use crate::lambda::error::LambdaError;
use crate::lambda::function::{Function, LATEST, Progress, Provisioned};
use crate::lambda::model::{self, time};
use aleph_types::Timestamp;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::{get, put};
use serde::Deserialize;
use serde_json::{Value, json as value};

pub(super) fn routes() -> Vec<Route> {
    vec![
        (
            "/2017-10-31/functions/{name}/concurrency",
            put(reserve).delete(unreserve),
        ),
        ("/2019-09-30/functions/{name}/concurrency", get(reserved)),
        (
            "/2019-09-30/functions/{name}/provisioned-concurrency",
            get(provisioned).put(provision).delete(unprovision),
        ),
    ]
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reserve {
    reserved_concurrent_executions: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Provision {
    provisioned_concurrent_executions: u32,
}

async fn reserve(on: On, body: Bytes) -> Reply {
    on.unqualified()?;
    let Reserve {
        reserved_concurrent_executions: wanted,
    } = model::parse(&body)?;
    let function = on.function()?;
    let functions = on.functions.clone();
    let changed = on.change(move |function| {
        let own = u64::from(function.head.reserved.unwrap_or(0));
        let others = functions
            .registry
            .reserved(&function.account)
            .saturating_sub(own);
        let all = u64::from(functions.account_concurrency);
        // A tenth stays for functions without a reservation, and what is kept ready of them.
        let ready = functions
            .registry
            .provisioned_of_others(&function.account, &function.name);
        let least = (all / 10).max(ready);
        if others + u64::from(wanted) > all - least {
            return Err(LambdaError::invalid(format!(
                "Specified ReservedConcurrentExecutions for function decreases account's \
                 UnreservedConcurrentExecution below its minimum value of [{least}]."
            )));
        }
        let own_ready = function.head.all_provisioned(None);
        if u64::from(wanted) < own_ready {
            return Err(LambdaError::invalid(format!(
                "ReservedConcurrentExecutions {wanted} should not be lower than function's total \
                 provisioned concurrency [{own_ready}]."
            )));
        }
        function.head.reserved = Some(wanted);
        Ok(())
    });
    drop(function);
    changed.await?;
    ok(value!({ "ReservedConcurrentExecutions": wanted }))
}

async fn unreserve(on: On) -> Reply {
    on.unqualified()?;
    on.change(|function| {
        function.head.reserved = None;
        Ok(())
    })
    .await?;
    nothing()
}

async fn reserved(on: On) -> Reply {
    ok(match on.function()?.head.reserved {
        Some(reserved) => value!({ "ReservedConcurrentExecutions": reserved }),
        None => value!({}),
    })
}

/// The version or alias that clones are kept ready of.
fn qualifier(on: &On, function: &Function) -> Result<String, LambdaError> {
    match on.qualifier() {
        None | Some(LATEST) => Err(LambdaError::invalid(
            "Provisioned Concurrency Configs cannot be applied to unpublished function versions.",
        )),
        Some(qualifier) => {
            on.existing_qualifier(function)?;
            Ok(qualifier.to_owned())
        }
    }
}

impl Functions {
    /// How many clones may be kept ready for a qualifier: what its function has reserved, or
    /// else what the account has left, without what is kept ready already.
    fn may_provision(&self, function: &Function, qualifier: &str) -> u64 {
        let own = function.head.all_provisioned(Some(qualifier));
        let all = function.head.reserved.map_or_else(
            || {
                let (account, name) = (&function.account, &function.name);
                u64::from(self.account_concurrency)
                    .saturating_sub(self.registry.reserved(account))
                    .saturating_sub(self.registry.provisioned_of_others(account, name))
            },
            u64::from,
        );
        all.saturating_sub(own)
    }

    fn provisioned(
        &self,
        function: &Function,
        qualifier: &str,
        provisioned: &Provisioned,
    ) -> Value {
        let version = function.resolve(Some(qualifier), || 1.0);
        let ready = version.and_then(|version| {
            let serving = version.serving.as_ref()?;
            let told = self.runner.provisioned(&serving.id());
            // A runner that does not say keeps what it was asked for.
            Some(told.unwrap_or(provisioned.clones).min(provisioned.clones))
        });
        let failed = version.and_then(|version| match &version.progress {
            Progress::Failed { reason, .. } if version.serving.is_none() => Some(reason),
            _ => None,
        });
        let available = ready.unwrap_or(0);
        let status = match (failed, available) {
            (Some(_), _) => "FAILED",
            (None, available) if available >= provisioned.clones => "READY",
            _ => "IN_PROGRESS",
        };
        let mut all = value!({
            "RequestedProvisionedConcurrentExecutions": provisioned.clones,
            "AvailableProvisionedConcurrentExecutions": available,
            "AllocatedProvisionedConcurrentExecutions": available,
            "Status": status,
            "LastModified": time(provisioned.modified),
        });
        if let Some(reason) = failed {
            all["StatusReason"] = reason.as_str().into();
        }
        all
    }
}

async fn provision(on: On, body: Bytes) -> Reply {
    let Provision {
        provisioned_concurrent_executions: clones,
    } = model::parse(&body)?;
    let before = on.function()?;
    let qualifier = qualifier(&on, &before)?;
    let key = qualifier.clone();
    let functions = on.functions.clone();
    let changed = on.change(move |function| {
        let most = functions.may_provision(function, &key);
        if clones < 1 || u64::from(clones) > most {
            return Err(LambdaError::invalid(format!(
                "Specified ConcurrentExecutions of {clones} must be between 1 and the {most} that \
                 the function may run at once beside what is provisioned already."
            )));
        }
        let provisioned = Provisioned {
            clones,
            modified: Timestamp::now(),
        };
        function.head.provisioned.insert(key, provisioned.clone());
        Ok(provisioned)
    });
    let (function, provisioned) = changed.await?;
    on.functions.provision_again(&before, &function);
    let mut shown = on
        .functions
        .provisioned(&function, &qualifier, &provisioned);
    shown["Status"] = "IN_PROGRESS".into();
    json(StatusCode::ACCEPTED, shown)
}

async fn provisioned(on: On) -> Reply {
    let function = on.function()?;
    if on.query.list.as_deref() == Some("ALL") {
        let all = function.head.provisioned.iter();
        let page = on
            .query
            .page(all.map(|(key, one)| (key.clone(), (key, one))))?;
        let items = page.items.into_iter().map(|(qualifier, provisioned)| {
            let mut shown = on.functions.provisioned(&function, qualifier, provisioned);
            let identity = &on.functions.identity;
            let arn = identity.arn(&function.account, &function.name, Some(qualifier));
            shown["FunctionArn"] = arn.into();
            shown
        });
        return listed("ProvisionedConcurrencyConfigs", items.collect(), page.next);
    }
    let qualifier = qualifier(&on, &function)?;
    match function.head.provisioned.get(&qualifier) {
        Some(provisioned) => ok(on.functions.provisioned(&function, &qualifier, provisioned)),
        None => Err(LambdaError::new(
            crate::lambda::error::Kind::ProvisionedConcurrencyConfigNotFound,
            "No Provisioned Concurrency Config found for this function",
        )),
    }
}

async fn unprovision(on: On) -> Reply {
    let before = on.function()?;
    let qualifier = qualifier(&on, &before)?;
    let changed = on.change(move |function| {
        function.head.provisioned.remove(&qualifier);
        Ok(())
    });
    let (function, ()) = changed.await?;
    on.functions.provision_again(&before, &function);
    nothing()
}
