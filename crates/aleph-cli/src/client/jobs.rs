//! The routes of jobs.

use super::path::{Query, part};
use super::request::{Answer, Asking, Socket};
use super::{Channel, Client, ClientError, ExecStart, Frames, Lines};
use aleph_types::{Job, JobList, JobResize, JobSpec, JobState, JobStats};
use base64::Engine;
use bytes::Bytes;
use hyper::Method;
use hyper::body::Body;
use hyper::header::ACCEPT;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long one wait is; a longer one is several.
const WAIT: Duration = Duration::from_secs(600);

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobQuery {
    /// In one of these states; in any when empty.
    pub(crate) states: Vec<JobState>,
    /// With these labels, `KEY` or `KEY=VALUE`.
    pub(crate) labels: Vec<String>,
    /// With names that begin so.
    pub(crate) name: Option<String>,
    /// At most so many, the newest; all when absent.
    pub(crate) limit: Option<usize>,
}

/// Which part of a log to read.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogsQuery {
    pub(crate) follow: bool,
    pub(crate) since: Option<String>,
    pub(crate) tail: Option<u64>,
    pub(crate) timestamps: bool,
    pub(crate) streams: Option<String>,
}

impl LogsQuery {
    fn query(&self) -> Query {
        Query::default()
            .flag("follow", self.follow)
            .with_some("since", self.since.as_deref())
            .with_some("tail", self.tail.map(|n| n.to_string()).as_deref())
            .flag("timestamps", self.timestamps)
            .with_some("stream", self.streams.as_deref())
    }
}

/// What a path in a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PathStat {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) kind: PathKind,
    #[serde(default)]
    pub(crate) link_target: Option<String>,
}

/// Which kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PathKind {
    File,
    #[serde(alias = "dir")]
    Directory,
    #[serde(alias = "link")]
    Symlink,
    #[serde(other)]
    Other,
}

/// An action on a job that has no argument but those in its query.
fn action(job: &str, action: &str, query: &Query) -> Asking {
    Asking::post(format!("/v1/jobs/{}/{action}{query}", part(job)))
}

fn seconds(time: Option<Duration>) -> Option<String> {
    time.map(|time| time.as_secs().to_string())
}

impl Client {
    /// Makes a job; `start` also starts it.
    pub(crate) async fn create(&self, spec: &JobSpec, start: bool) -> Result<Job, ClientError> {
        let asking = Asking::post(format!("/v1/jobs?start={start}")).json(spec)?;
        self.ask_json(asking).await
    }

    /// Jobs, the newest first.
    pub(crate) async fn jobs(&self, query: &JobQuery) -> Result<Vec<Job>, ClientError> {
        let states: Vec<_> = query.states.iter().map(|state| state.name()).collect();
        let mut jobs = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let wanted = query
                .limit
                .map_or(1000, |limit| (limit - jobs.len()).min(1000));
            if wanted == 0 {
                return Ok(jobs);
            }
            let mut words = Query::default().with("limit", &wanted.to_string());
            if !states.is_empty() {
                words = words.with("state", &states.join(","));
            }
            for label in &query.labels {
                words = words.with("label", label);
            }
            let words = words
                .with_some("name", query.name.as_deref())
                .with_some("cursor", cursor.as_deref());
            let part: JobList = self
                .ask_json(Asking::get(format!("/v1/jobs{words}")))
                .await?;
            jobs.extend(part.jobs);
            cursor = part.cursor;
            if cursor.is_none() {
                return Ok(jobs);
            }
        }
    }

    /// A job, by its id, a unique beginning of it, or its name.
    pub(crate) async fn job(&self, job: &str) -> Result<Job, ClientError> {
        self.ask_json(Asking::get(format!("/v1/jobs/{}", part(job))))
            .await
    }

    /// Removes a job with its logs; a live one only by `force`.
    pub(crate) async fn remove(&self, job: &str, force: bool) -> Result<(), ClientError> {
        let query = Query::default().flag("force", force);
        let path = format!("/v1/jobs/{}{query}", part(job));
        self.ask(Asking::new(Method::DELETE, path)).await.map(drop)
    }

    pub(crate) async fn start(&self, job: &str) -> Result<Job, ClientError> {
        self.ask_json(action(job, "start", &Query::default())).await
    }

    /// Gives a full VM another size.
    pub(crate) async fn resize(&self, job: &str, size: &JobResize) -> Result<Job, ClientError> {
        let asking = action(job, "resize", &Query::default());
        self.ask_json(asking.json(size)?).await
    }

    /// Ends a job and waits for that; `grace` is the job's own when absent.
    pub(crate) async fn stop(
        &self,
        job: &str,
        grace: Option<Duration>,
    ) -> Result<Job, ClientError> {
        let query = Query::default().with_some("timeout", seconds(grace).as_deref());
        self.ask_json(action(job, "stop", &query)).await
    }

    pub(crate) async fn restart(
        &self,
        job: &str,
        grace: Option<Duration>,
    ) -> Result<Job, ClientError> {
        let query = Query::default().with_some("timeout", seconds(grace).as_deref());
        self.ask_json(action(job, "restart", &query)).await
    }

    /// Ends the VM by KILL, or sends its command another signal.
    pub(crate) async fn kill(&self, job: &str, signal: &str) -> Result<Job, ClientError> {
        let query = Query::default().with("signal", signal);
        self.ask_json(action(job, "kill", &query)).await
    }

    pub(crate) async fn pause(&self, job: &str) -> Result<Job, ClientError> {
        self.ask_json(action(job, "pause", &Query::default())).await
    }

    pub(crate) async fn resume(&self, job: &str) -> Result<Job, ClientError> {
        self.ask_json(action(job, "resume", &Query::default()))
            .await
    }

    /// Waits for one of these states (`ended` is one), for as long as it takes.
    pub(crate) async fn wait(&self, job: &str, states: &str) -> Result<Job, ClientError> {
        let query = Query::default()
            .with("state", states)
            .with("timeout", &WAIT.as_secs().to_string());
        let path = format!("/v1/jobs/{}/wait{query}", part(job));
        loop {
            match self.ask_json(Asking::get(&path)).await {
                Err(error) if error.refusal() == Some("wait_timeout") => {}
                done => return done,
            }
        }
    }

    pub(crate) async fn stats(&self, job: &str) -> Result<JobStats, ClientError> {
        self.ask_json(Asking::get(format!("/v1/jobs/{}/stats", part(job))))
            .await
    }

    pub(crate) async fn all_stats(&self) -> Result<Vec<JobStats>, ClientError> {
        self.ask_json(Asking::get("/v1/stats")).await
    }

    /// What a job wrote.
    pub(crate) async fn logs(&self, job: &str, query: &LogsQuery) -> Result<Frames, ClientError> {
        let path = format!("/v1/jobs/{}/logs{}", part(job), query.query());
        let asking = Asking::get(path).header(ACCEPT, "application/vnd.aleph.raw-stream");
        Ok(Frames::new(self.ask(asking).await?))
    }

    /// The same as lines of JSON.
    pub(crate) async fn log_lines(
        &self,
        job: &str,
        query: &LogsQuery,
    ) -> Result<Lines, ClientError> {
        let path = format!("/v1/jobs/{}/logs{}", part(job), query.query());
        let asking = Asking::get(path).header(ACCEPT, "application/x-ndjson");
        Ok(Lines::new(self.ask(asking).await?))
    }

    /// The streams of a job's command; `logs` begins with what it wrote in this life.
    pub(crate) async fn attach(
        &self,
        job: &str,
        stdin: bool,
        logs: bool,
    ) -> Result<Channel, ClientError> {
        let query = Query::default().flag("stdin", stdin).flag("logs", logs);
        let path = format!("/v1/jobs/{}/attach{query}", part(job));
        Ok(Channel::new(self.open_socket(path).await?))
    }

    /// A full VM's screen: binary messages are a stream of RFB.
    pub(crate) async fn screen(&self, job: &str) -> Result<Socket, ClientError> {
        self.open_socket(format!("/v1/jobs/{}/vnc", part(job)))
            .await
    }

    /// Runs a command in a job's guest.
    pub(crate) async fn exec(&self, job: &str, start: &ExecStart) -> Result<Channel, ClientError> {
        let path = format!("/v1/jobs/{}/exec", part(job));
        Channel::starting(self.open_socket(path).await?, start).await
    }

    /// What a path in a job's guest is; `None` where there is nothing.
    pub(crate) async fn path_stat(
        &self,
        job: &str,
        path: &str,
    ) -> Result<Option<PathStat>, ClientError> {
        match self.ask_head(archive(job, path)).await? {
            Some(answer) => stat_of(&answer).map(Some),
            None => Ok(None),
        }
    }

    /// A path in a job's guest as a tar archive.
    pub(crate) async fn read_archive(
        &self,
        job: &str,
        path: &str,
    ) -> Result<(PathStat, Answer), ClientError> {
        let answer = self.ask(Asking::get(archive(job, path))).await?;
        Ok((stat_of(&answer)?, answer))
    }

    /// Unpacks a tar archive into a folder of a job's guest.
    pub(crate) async fn write_archive<B>(
        &self,
        job: &str,
        folder: &str,
        body: B,
    ) -> Result<(), ClientError>
    where
        B: Body<Data = Bytes, Error = std::io::Error> + Send + 'static,
    {
        let asking = Asking::new(Method::PUT, archive(job, folder));
        let asking = asking.stream("application/x-tar", body);
        self.ask(asking).await.map(drop)
    }

    /// Events after this one, or from now on, while they happen.
    pub(crate) async fn events(
        &self,
        query: &EventQuery,
    ) -> Result<super::ServerSent, ClientError> {
        let asking = Asking::get(format!("/v1/events{}", query.query()));
        let asking = asking.header(ACCEPT, "text/event-stream");
        Ok(super::ServerSent::new(self.ask(asking).await?))
    }

    /// The stored events.
    pub(crate) async fn stored_events(
        &self,
        query: &EventQuery,
    ) -> Result<Vec<aleph_types::Event>, ClientError> {
        let path = format!("/v1/events{}", query.query().with("follow", "false"));
        self.ask_json(Asking::get(path)).await
    }
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventQuery {
    pub(crate) since_id: Option<u64>,
    pub(crate) job: Option<String>,
    pub(crate) kind: Option<String>,
}

impl EventQuery {
    fn query(&self) -> Query {
        Query::default()
            .with_some(
                "since_id",
                self.since_id.map(|id| id.to_string()).as_deref(),
            )
            .with_some("job", self.job.as_deref())
            .with_some("kind", self.kind.as_deref())
    }
}

fn archive(job: &str, path: &str) -> String {
    let query = Query::default().with("path", path);
    format!("/v1/jobs/{}/archive{query}", part(job))
}

fn stat_of(answer: &Answer) -> Result<PathStat, ClientError> {
    let told = answer.header("x-aleph-stat").unwrap_or_default();
    let json = base64::prelude::BASE64_STANDARD.decode(told).ok();
    json.and_then(|json| serde_json::from_slice(&json).ok())
        .ok_or_else(|| ClientError::Strange {
            what: "without saying what the path is".into(),
        })
}
