//! A runner of functions without VMs.

use aleph_executor::functions::{
    Clones, Code, Completed, Concurrency, Deployment, DeploymentId, FunctionError,
    HTTP_INTEGRATION, HttpPrelude, Invocation, InvokeError, ResponseHead, ResponseSink, Runner,
    Temperature, Throttle, Timings,
};
use aleph_executor::hypervisor::BoxFuture;
use aleph_types::{ErrorClass, Problem};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Runs functions that do what their handlers are called:
///
/// | handler | what it does |
/// | --- | --- |
/// | `broken…` | cannot be prepared |
/// | `slow…` | is prepared once [`ScriptedRunner::let_go`] is called |
/// | `fail` | fails, and says so |
/// | `crash` | crashes |
/// | `panic` | has the runner panic |
/// | `flaky` | fails the first two times that it gets a request |
/// | `hold` | answers once [`ScriptedRunner::let_go`] is called |
/// | `throttle` | is never run: the node is full |
/// | `big` | answers with 7 MB |
/// | `about` | tells what it was given, beside its event |
/// | `pieces` | streamed, writes `first`, and `last` once [`ScriptedRunner::let_go`] is called |
/// | `http` | streamed, the same, with a prelude of status 418 before it |
/// | `break` | streamed, writes `first` and fails |
/// | `body` | answers with the body of its event, which came to a URL |
/// | `say:…` | answers with what follows |
/// | another | answers with its event |
#[derive(Debug)]
pub struct ScriptedRunner {
    state: Mutex<State>,
    open: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    ready: BTreeMap<DeploymentId, Arc<Deployment>>,
    prepared: usize,
    /// Preparations that are under way.
    preparing: usize,
    /// The digests that references of images lead to.
    images: BTreeMap<String, String>,
    provisioned: BTreeMap<DeploymentId, u32>,
    seen: Vec<String>,
    traces: Vec<Option<String>>,
    events: Vec<(String, Bytes)>,
}

impl Default for ScriptedRunner {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            open: watch::Sender::new(false),
        }
    }
}

impl ScriptedRunner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets everything go on that waits for it, now and from now on.
    pub fn let_go(&self) {
        self.open.send_replace(true);
    }

    /// What is ready, as `function:version`.
    #[must_use]
    pub fn ready(&self) -> Vec<String> {
        let name = |d: &Arc<Deployment>| format!("{}:{}", d.function, d.version);
        let mut names: Vec<_> = self.lock().ready.values().map(name).collect();
        names.sort();
        names
    }

    /// The digests of the images that are ready, by `function:version`.
    #[must_use]
    pub fn pinned(&self) -> BTreeMap<String, String> {
        let state = self.lock();
        let images = state.ready.values().filter_map(|d| match &d.code {
            Code::Image { digest, .. } => {
                Some((format!("{}:{}", d.function, d.version), digest.clone()))
            }
            Code::Task { .. } => None,
        });
        images.collect()
    }

    /// How often something was prepared.
    #[must_use]
    pub fn prepared(&self) -> usize {
        self.lock().prepared
    }

    /// How many preparations are under way.
    #[must_use]
    pub fn preparing(&self) -> usize {
        self.lock().preparing
    }

    /// Has the reference of an image lead to a digest from now on.
    pub fn tag(&self, reference: &str, digest: &str) {
        let mut state = self.lock();
        state.images.insert(reference.into(), digest.into());
    }

    /// The clones that are kept ready, as `function:version`.
    #[must_use]
    pub fn kept(&self) -> BTreeMap<String, u32> {
        let state = self.lock();
        let named = state.provisioned.iter().filter_map(|(id, clones)| {
            let deployment = state.ready.get(id)?;
            let name = format!("{}:{}", deployment.function, deployment.version);
            Some((name, *clones))
        });
        named.filter(|(_, clones)| *clones > 0).collect()
    }

    /// The request ids that functions were given, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.lock().seen.clone()
    }

    /// The traces that these requests belonged to.
    #[must_use]
    pub fn traces(&self) -> Vec<Option<String>> {
        self.lock().traces.clone()
    }

    /// What functions were given, with the ids of the requests, in order.
    #[must_use]
    pub fn events(&self) -> Vec<(String, Bytes)> {
        self.lock().events.clone()
    }

    /// Forgets what is ready, as a host does that boots.
    pub fn forget(&self) {
        self.lock().ready.clear();
    }

    /// The deployment with the digest of its image.
    fn pin(&self, deployment: Arc<Deployment>) -> Arc<Deployment> {
        let Code::Image { reference, digest } = &deployment.code else {
            return deployment;
        };
        if !digest.is_empty() {
            return deployment;
        }
        let known = self.lock().images.get(reference).cloned();
        let code = Code::Image {
            reference: reference.clone(),
            digest: known.unwrap_or_else(|| format!("sha256:{}", "0".repeat(64))),
        };
        Arc::new(Deployment {
            code,
            ..Deployment::clone(&deployment)
        })
    }

    async fn gate(&self) {
        // The sender lives as long as this does.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

fn answer(payload: impl Into<Bytes>, error: Option<FunctionError>, request: &str) -> Completed {
    let log = format!("START RequestId: {request} Version: $LATEST\nhello from the log\n");
    Completed {
        payload: payload.into(),
        content_type: "application/json".into(),
        error,
        error_type: None,
        log_tail: log.into_bytes(),
        timings: Timings {
            queue: Duration::from_micros(100),
            resume: Duration::ZERO,
            function: Duration::from_micros(2600),
        },
        temperature: Temperature::Warm,
        memory_peak: None,
    }
}

/// The body of a request to a URL.
fn body(event: &[u8]) -> String {
    let event: serde_json::Value = serde_json::from_slice(event).unwrap_or_default();
    let body = event["body"].as_str();
    body.unwrap_or_default().to_owned()
}

/// Counts a preparation for as long as its future lives.
struct Preparing<'a>(&'a ScriptedRunner);

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        self.0.lock().preparing -= 1;
    }
}

#[allow(clippy::panic, reason = "it is what a test of panics is about")]
fn panics<T>() -> T {
    panic!("as this function wants it")
}

impl Runner for ScriptedRunner {
    fn prepare(
        &self,
        deployment: Arc<Deployment>,
    ) -> BoxFuture<'_, Result<Arc<Deployment>, Problem>> {
        Box::pin(async move {
            self.lock().preparing += 1;
            let _preparing = Preparing(self);
            let deployment = self.pin(deployment);
            if deployment.handler.starts_with("broken") {
                return Err(Problem {
                    class: ErrorClass::Invalid,
                    code: "init".into(),
                    message: "Unable to import module 'broken'".into(),
                    advice: None,
                });
            }
            if deployment.handler.starts_with("slow") {
                self.gate().await;
            }
            let mut state = self.lock();
            state.prepared += 1;
            state.ready.insert(deployment.id(), Arc::clone(&deployment));
            Ok(deployment)
        })
    }

    fn keep<'a>(&'a self, deployments: &'a [DeploymentId]) -> BoxFuture<'a, ()> {
        self.lock().ready.retain(|id, _| deployments.contains(id));
        Box::pin(std::future::ready(()))
    }

    fn invoke(
        &self,
        deployment: Arc<Deployment>,
        concurrency: Concurrency,
        invocation: Invocation,
    ) -> BoxFuture<'_, Result<Completed, InvokeError>> {
        Box::pin(async move {
            let id = &invocation.request_id;
            if !self.lock().ready.contains_key(&deployment.id()) {
                return Err(InvokeError::NotReady("it was never prepared".into()));
            }
            if deployment.handler == "throttle" {
                return Err(InvokeError::Throttled {
                    by: Throttle::Node,
                    retry_after: Duration::from_millis(1500),
                });
            }
            let before = {
                let mut state = self.lock();
                let before = state.seen.iter().filter(|seen| *seen == id).count();
                state.seen.push(id.clone());
                state.traces.push(invocation.trace.clone());
                let event = (id.clone(), invocation.payload.clone());
                state.events.push(event);
                before
            };
            let error = |message: &str, error| {
                let payload = format!(r#"{{"errorType":"Error","errorMessage":"{message}"}}"#);
                Ok(answer(payload, Some(error), id))
            };
            match deployment.handler.as_str() {
                "fail" => error("it failed", FunctionError::Handled),
                "panic" => panics(),
                "crash" => error("it crashed", FunctionError::Unhandled),
                "flaky" if before < 2 => error("not yet", FunctionError::Handled),
                "hold" => {
                    self.gate().await;
                    Ok(answer(invocation.payload.clone(), None, id))
                }
                "big" => Ok(answer(format!("\"{}\"", "x".repeat(7_000_000)), None, id)),
                "about" => {
                    let about = format!(
                        r#"{{"function":{:?},"version":{:?},"arn":{:?},"request":{id:?},"context":{},"provisioned":{},"trace":{:?}}}"#,
                        deployment.function,
                        deployment.version,
                        invocation.arn,
                        invocation.client_context.as_deref().unwrap_or("null"),
                        concurrency.provisioned,
                        invocation.trace.as_deref().unwrap_or_default(),
                    );
                    Ok(answer(about, None, id))
                }
                "body" => Ok(answer(body(&invocation.payload), None, id)),
                handler if handler.starts_with("say:") => {
                    Ok(answer(handler["say:".len()..].to_owned(), None, id))
                }
                _ => Ok(answer(invocation.payload.clone(), None, id)),
            }
        })
    }

    fn invoke_streaming<'a>(
        &'a self,
        deployment: Arc<Deployment>,
        concurrency: Concurrency,
        invocation: Invocation,
        sink: &'a mut ResponseSink,
    ) -> BoxFuture<'a, Result<Completed, InvokeError>> {
        Box::pin(async move {
            let handler = deployment.handler.clone();
            let head = ResponseHead {
                version: deployment.version.clone(),
                content_type: match &*handler {
                    "http" => HTTP_INTEGRATION.into(),
                    _ => "text/plain".into(),
                },
                temperature: Temperature::Warm,
                timings: Timings::default(),
            };
            let mut done = self.invoke(deployment, concurrency, invocation).await?;
            if done.error.is_some() {
                return Ok(done);
            }
            let streams = matches!(&*handler, "pieces" | "http" | "break");
            let content_type = match streams {
                true => head.content_type.clone(),
                false => done.content_type.clone(),
            };
            sink.begin(ResponseHead {
                content_type,
                ..head
            });
            let payload = std::mem::take(&mut done.payload);
            if !streams {
                sink.write(payload).await;
                return Ok(done);
            }
            if handler == "http" {
                let prelude = HttpPrelude {
                    status_code: 418,
                    ..HttpPrelude::default()
                };
                sink.write(prelude.to_bytes()).await;
            }
            sink.write("first".into()).await;
            if handler == "break" {
                done.payload = r#"{"errorType":"Own.Kind","errorMessage":"it broke"}"#.into();
                done.error = Some(FunctionError::Unhandled);
                done.error_type = Some("Own.Kind".into());
                return Ok(done);
            }
            self.gate().await;
            sink.write("last".into()).await;
            Ok(done)
        })
    }

    fn provision(&self, deployment: Arc<Deployment>, clones: u32) {
        self.lock().provisioned.insert(deployment.id(), clones);
    }

    /// What is kept ready is hot.
    fn clones(&self, deployment: &DeploymentId) -> Option<Clones> {
        let state = self.lock();
        let hot = *state.provisioned.get(deployment)?;
        Some(Clones {
            hot: usize::try_from(hot).unwrap_or(usize::MAX),
            ..Clones::default()
        })
    }

    fn retire(&self, deployment: &DeploymentId) -> BoxFuture<'_, ()> {
        let mut state = self.lock();
        state.ready.remove(deployment);
        state.provisioned.remove(deployment);
        Box::pin(std::future::ready(()))
    }
}
