//! Commands in a job's guest.

use super::JobPath;
use super::session::{self, Gone, Held, Output, STDERR, STDOUT, Tell, Upgrade};
use crate::server::extract::Segment;
use crate::server::{Caller, Refusal, Service};
use aleph_executor::guest::{ExecEvent, ExecHandle, ExecRequest};
use aleph_executor::node::NodeError;
use aleph_types::{JobId, Problem};
use axum::extract::State;
use axum::extract::ws::WebSocket;
use axum::response::Response;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(exec))
}

/// How long a client may take to say what it wants to run.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// What to run: the first message of a client.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecStart {
    /// Program and arguments.
    command: Vec<String>,
    /// Environment, over the guest's defaults.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    #[serde(default)]
    workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    #[serde(default)]
    user: Option<String>,
    /// Whether it gets a terminal.
    #[serde(default)]
    tty: bool,
    /// Whether standard input follows.
    #[serde(default)]
    stdin: bool,
    /// Rows of the terminal.
    #[serde(default = "rows")]
    rows: u16,
    /// Columns of the terminal.
    #[serde(default = "columns")]
    columns: u16,
}

fn rows() -> u16 {
    24
}

fn columns() -> u16 {
    80
}

impl ExecStart {
    fn request(self) -> Result<ExecRequest, Refusal> {
        let bad = |what: &str| Err(Refusal::invalid("bad_command", what));
        if self.command.first().is_none_or(String::is_empty) {
            return bad("there is no command to run");
        }
        let mut texts = self.command.iter().chain(self.env.values());
        if texts.any(|text| text.contains('\0')) {
            return bad("an argument or a variable has a NUL byte");
        }
        let name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
        if self.env.keys().any(name) {
            return bad("a variable's name is empty, or has = or a NUL byte");
        }
        Ok(ExecRequest {
            argv: self.command,
            env: self.env.into_iter().collect(),
            workdir: self.workdir.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            terminal: self.tty.then_some((self.rows, self.columns)),
            stdin: self.stdin,
            ..ExecRequest::default()
        })
    }
}

/// Run a command in a job's guest
///
/// A WebSocket. The client's first message is text with JSON: `command` (a list of strings) and,
/// where it is not the default, `env`, `workdir`, `user`, `tty`, `stdin`, `rows` and `columns`.
/// After it, binary messages are a byte for the channel and then data: 0 is standard input from
/// the client, 1 standard output and 2 standard error to it. Text messages are JSON: from the
/// client `{"resize":{"rows":24,"columns":80}}`, `{"signal":15}` and `{"eof":true}`; to it
/// `{"started":{"pid":7}}` and at last `{"exit":{"code":0}}`, `{"exit":{"signal":9}}` or
/// `{"error":Problem}`. A command that cannot be found is a problem of the class `not_found`.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/exec", tag = "sessions", params(JobPath),
    responses((status = 101, description = "The session begins.")),
)]
async fn exec(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    (slot, upgrade): (Held, Upgrade),
) -> Result<Response, Refusal> {
    let id = service.find(&caller, &job)?;
    let upgrade = session::accept(upgrade)?;
    // A job whose guest takes no commands is refused while there is a status to say so with.
    service.agent(id).await?;
    Ok(upgrade.on_upgrade(move |socket| {
        let work = service.work.clone();
        work.track_future(async move {
            run(&service, id, socket).await;
            drop(slot);
        })
    }))
}

async fn run(service: &Service, id: JobId, socket: WebSocket) {
    let (output, mut input) = session::split(socket);
    let Ok(Ok(first)) = timeout(FIRST_WORD, input.text()).await else {
        return output.close().await;
    };
    let begun = begin(service, id, &first);
    let handle = match begun {
        Ok(handle) => handle,
        Err(problem) => return output.fail(problem).await,
    };
    let feed = std::future::ready(Some(handle.input()));
    let mut command = Command(Some(handle));
    let told = async move |output: &mut Output| told(&mut command, output).await;
    session::run(
        output,
        input.feed(feed, true),
        told,
        service.stopping.clone(),
    )
    .await;
}

/// Ends a command when its session ends, however that is.
struct Command(Option<ExecHandle>);

impl Drop for Command {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.hang_up();
        }
    }
}

fn begin(service: &Service, id: JobId, first: &str) -> Result<ExecHandle, Problem> {
    let start: ExecStart = serde_json::from_str(first)
        .map_err(|error| *Refusal::invalid("bad_message", error.to_string()).problem)?;
    let request = start.request().map_err(|refusal| *refusal.problem)?;
    let begun = service.node.exec(id, &request);
    begun.map_err(|error| Problem::of(&error))
}

async fn told(command: &mut Command, output: &mut Output) -> Result<(), Gone> {
    while let Some(handle) = command.0.as_mut() {
        match handle.next().await {
            Ok(ExecEvent::Started(pid)) => output.tell(&Tell::Started { pid }).await?,
            Ok(ExecEvent::Stdout(bytes)) => output.data(STDOUT, &bytes).await?,
            Ok(ExecEvent::Stderr(bytes)) => output.data(STDERR, &bytes).await?,
            Ok(ExecEvent::Exited(status)) => {
                command.0 = None;
                output.tell(&Tell::Exit(status)).await?;
            }
            Err(error) => {
                command.0 = None;
                let problem = Problem::of(&NodeError::Guest(error));
                output.tell(&Tell::Error(problem)).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_read_and_checked() {
        let read = |text: &str| serde_json::from_str::<ExecStart>(text).unwrap().request();
        let all = r#"{"command":["sh","-c","id"],"env":{"A":"b"},"workdir":null,"user":"nobody",
            "tty":true,"stdin":true,"rows":5,"columns":6}"#;
        let want = ExecRequest {
            argv: vec!["sh".into(), "-c".into(), "id".into()],
            env: vec![("A".into(), "b".into())],
            user: "nobody".into(),
            terminal: Some((5, 6)),
            stdin: true,
            ..ExecRequest::default()
        };
        assert_eq!(read(all).unwrap(), want);
        for wrong in [
            r#"{"command":[]}"#,
            r#"{"command":[""]}"#,
            r#"{"command":["a\u0000"]}"#,
            r#"{"command":["a"],"env":{"=":""}}"#,
        ] {
            assert_eq!(read(wrong).unwrap_err().problem.code, "bad_command");
        }
    }
}
