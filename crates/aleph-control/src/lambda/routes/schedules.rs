//! Schedules, as clients of EventBridge Scheduler know them
//! (<https://docs.aws.amazon.com/scheduler/latest/APIReference/>).

use super::{Reply, Route, ok};
use crate::lambda::Functions;
use crate::lambda::error::LambdaError;
use crate::lambda::gate::Ask;
use crate::lambda::model::constraint;
use crate::lambda::schedules::{GROUP, ScheduleInput, check_group, check_name};
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};

const SCHEDULES: &str = "/schedules";
const GROUPS: &str = "/schedule-groups";
/// How many things a page has at most.
const MOST_ITEMS: usize = 100;

pub(super) fn routes() -> Vec<Route> {
    vec![
        (SCHEDULES, get(list)),
        (
            "/schedules/{name}",
            get(show).post(create).put(update).delete(delete),
        ),
        (GROUPS, get(groups)),
        (
            "/schedule-groups/{name}",
            get(group).post(change_group).delete(change_group),
        ),
    ]
}

/// Whether a path is one of these.
pub(super) fn has(path: &str) -> bool {
    [SCHEDULES, GROUPS].iter().any(|first| {
        let rest = path.strip_prefix(first);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// What queries say.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Query {
    #[serde(alias = "groupName", alias = "GroupName")]
    schedule_group: Option<String>,
    name_prefix: Option<String>,
    state: Option<String>,
    next_token: Option<String>,
    max_results: Option<String>,
}

/// A request: who asks, for which name, and what its query says.
struct On {
    functions: Functions,
    account: String,
    name: String,
    query: Query,
}

impl FromRequestParts<Functions> for On {
    type Rejection = LambdaError;

    async fn from_request_parts(parts: &mut Parts, state: &Functions) -> Result<Self, LambdaError> {
        let of = LambdaError::of_scheduler;
        let ask = Ask::from_request_parts(parts, state).await.map_err(of)?;
        let query = serde_urlencoded::from_str(parts.uri.query().unwrap_or_default());
        let query = query.map_err(|error| {
            LambdaError::invalid(format!("The query cannot be read: {error}")).of_scheduler()
        })?;
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let name = path.ok().and_then(|Path(pairs)| pairs.into_iter().next());
        let name = name.map(|(_, name)| name).unwrap_or_default();
        Ok(Self {
            functions: state.clone(),
            account: ask.account,
            name,
            query,
        })
    }
}

impl On {
    fn group(&self) -> Result<(), LambdaError> {
        check_group(self.query.schedule_group.as_deref())
    }

    fn arn(&self, name: &str) -> String {
        self.functions.identity.schedule_arn(&self.account, name)
    }
}

/// An answer, or an error as clients of this API know it.
fn said(done: Result<Value, LambdaError>) -> Reply {
    ok(done.map_err(LambdaError::of_scheduler)?)
}

async fn create(on: On, body: Bytes) -> Reply {
    said(set(on, &body, true).await)
}

async fn update(on: On, body: Bytes) -> Reply {
    said(set(on, &body, false).await)
}

async fn set(on: On, body: &[u8], anew: bool) -> Result<Value, LambdaError> {
    check_name(&on.name)?;
    let input = ScheduleInput::read(body)?;
    check_group(input.group_name.as_deref())?;
    let functions = on.functions.clone();
    let work = async move {
        let On { account, name, .. } = &on;
        match anew {
            true => on.functions.create_schedule(account, name, input).await,
            false => on.functions.update_schedule(account, name, input).await,
        }
    };
    let arn = functions.settle(work).await?;
    Ok(json!({ "ScheduleArn": arn }))
}

async fn show(on: On) -> Reply {
    let found = || {
        on.group()?;
        let schedule = on.functions.schedule(&on.account, &on.name)?;
        Ok(schedule.shown(&on.name, &on.arn(&on.name)))
    };
    said(found())
}

async fn delete(on: On) -> Reply {
    let functions = on.functions.clone();
    let work = async move {
        on.group()?;
        on.functions.delete_schedule(&on.account, &on.name).await?;
        Ok(json!({}))
    };
    said(functions.settle(work).await)
}

async fn list(on: On) -> Reply {
    said(page(&on))
}

/// A page of the list; its token is the name of the last one before it.
fn page(on: &On) -> Result<Value, LambdaError> {
    on.group()?;
    let most = match on.query.max_results.as_deref().map(str::parse::<usize>) {
        None => MOST_ITEMS,
        Some(Ok(most @ 1..=MOST_ITEMS)) => most,
        Some(_) => {
            let text = on.query.max_results.as_deref().unwrap_or_default();
            return Err(constraint(
                text,
                "maxResults",
                "have value between 1 and 100",
            ));
        }
    };
    let prefix = on.query.name_prefix.as_deref().unwrap_or_default();
    let after = on.query.next_token.as_deref().unwrap_or_default();
    let all = on.functions.schedules.list(&on.account);
    let mut wanted = all.iter().filter(|(name, schedule)| {
        let state = match schedule.enabled {
            true => "ENABLED",
            false => "DISABLED",
        };
        let state = on.query.state.as_deref().is_none_or(|s| s == state);
        state && name.starts_with(prefix) && name.as_str() > after
    });
    let (mut items, mut last) = (Vec::new(), None);
    for (name, schedule) in wanted.by_ref().take(most) {
        items.push(schedule.summary(name, &on.arn(name)));
        last = Some(name);
    }
    let mut page = json!({ "Schedules": items });
    if let Some(last) = last.filter(|_| wanted.next().is_some()) {
        page["NextToken"] = last.as_str().into();
    }
    Ok(page)
}

fn the_group(on: &On) -> Value {
    let schedule = on.arn("");
    let arn = schedule.replace(":schedule/", ":schedule-group/");
    json!({ "Arn": arn.trim_end_matches('/'), "Name": GROUP, "State": "ACTIVE" })
}

async fn groups(on: On) -> Reply {
    ok(json!({ "ScheduleGroups": [the_group(&on)] }))
}

async fn group(on: On) -> Reply {
    said(check_group(Some(&on.name)).map(|()| the_group(&on)))
}

async fn change_group(on: On) -> Reply {
    let message = format!(
        "Schedule group {} cannot be made or deleted: this node has the group {GROUP} alone.",
        on.name
    );
    Err(LambdaError::invalid(message).of_scheduler())
}
