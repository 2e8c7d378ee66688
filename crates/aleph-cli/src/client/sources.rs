//! What brings events to functions: schedules, as EventBridge Scheduler has them, and mappings of
//! event sources, as AWS Lambda has them.

use super::functions::MOST_PAGES;
use super::path::{Query, part};
use super::request::Asking;
use super::{Client, ClientError};
use hyper::Method;
use serde_json::Value;

const SCHEDULES: &str = "/lambda/schedules";
const SOURCES: &str = "/lambda/2015-03-31/event-source-mappings";

fn path(name: &str) -> String {
    format!("{SCHEDULES}/{}", part(name))
}

impl Client {
    /// All schedules, with all that is set for them.
    pub(crate) async fn schedules(&self) -> Result<Vec<Value>, ClientError> {
        let (mut all, mut token) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let query = Query::default().with_some("NextToken", token.as_deref());
            let page: Value = self
                .ask_json(Asking::get(format!("{SCHEDULES}{query}")))
                .await?;
            for one in page["Schedules"].as_array().into_iter().flatten() {
                let name = one["Name"].as_str().unwrap_or_default();
                match self.schedule(name).await {
                    // It was removed since the list was made.
                    Err(error) if is_missing(&error) => {}
                    one => all.push(one?),
                }
            }
            token = page["NextToken"].as_str().map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        Ok(all)
    }

    pub(crate) async fn schedule(&self, name: &str) -> Result<Value, ClientError> {
        self.ask_json(Asking::get(path(name))).await
    }

    /// Makes a schedule, or sets the one there is anew.
    pub(crate) async fn set_schedule(
        &self,
        name: &str,
        wanted: &Value,
    ) -> Result<Value, ClientError> {
        let changed = Asking::new(Method::PUT, path(name)).json(wanted)?;
        match self.ask_json(changed).await {
            Err(error) if is_missing(&error) => {
                self.ask_json(Asking::post(path(name)).json(wanted)?).await
            }
            done => done,
        }
    }

    pub(crate) async fn remove_schedule(&self, name: &str) -> Result<(), ClientError> {
        let asking = Asking::new(Method::DELETE, path(name));
        self.ask(asking).await.map(drop)
    }

    /// All mappings of event sources; of one function where it is named.
    pub(crate) async fn sources(&self, function: Option<&str>) -> Result<Vec<Value>, ClientError> {
        let query = Query::default().with_some("FunctionName", function);
        self.pages_of(SOURCES, query, "EventSourceMappings").await
    }

    pub(crate) async fn create_source(&self, wanted: &Value) -> Result<Value, ClientError> {
        self.ask_json(Asking::post(SOURCES).json(wanted)?).await
    }

    pub(crate) async fn remove_source(&self, id: &str) -> Result<Value, ClientError> {
        let path = format!("{SOURCES}/{}", part(id));
        self.ask_json(Asking::new(Method::DELETE, path)).await
    }
}

fn is_missing(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(problem) if problem.code == "ResourceNotFoundException")
}
