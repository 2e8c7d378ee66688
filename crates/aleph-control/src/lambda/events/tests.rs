use super::*;
use crate::lambda::code::{Task, TaskBuilder};
use crate::lambda::function::{CodeRef, Head, LATEST, Progress, Version};
use crate::lambda::{FunctionParts, FunctionsConfig, UnderWay, model};
use aleph_testkit::{ScriptedRunner, TestRoot};
use aleph_types::Problem;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What only a hang exceeds.
pub(in crate::lambda) const LIMIT: Duration = Duration::from_secs(60);

struct NoTasks;

impl TaskBuilder for NoTasks {
    fn build(&self, _: &[u8], _: &Path) -> Result<Task, Problem> {
        Err(Problem {
            class: aleph_types::ErrorClass::Internal,
            code: "none".into(),
            message: "no code is unpacked here".into(),
            advice: None,
        })
    }
}

pub(in crate::lambda) async fn open(
    root: &TestRoot,
    policy: EventPolicy,
) -> (Functions, Arc<ScriptedRunner>, Journal) {
    let journal = Journal::open(&root.path().join("state.db")).unwrap();
    let runner = Arc::new(ScriptedRunner::default());
    let parts = FunctionParts {
        runner: Arc::clone(&runner) as _,
        tasks: Arc::new(NoTasks),
    };
    let config = FunctionsConfig {
        events: policy,
        ..FunctionsConfig::default()
    };
    let under_way = UnderWay {
        stopping: CancellationToken::new(),
        work: TaskTracker::new(),
    };
    let opened = Functions::open(journal.clone(), root.path(), parts, config, under_way);
    (opened.await.unwrap(), runner, journal)
}

/// A function that serves, and does what its handler is called.
pub(in crate::lambda) async fn function(functions: &Functions, handler: &str) -> Arc<Function> {
    let mut settings = model::default_settings();
    settings.handler = Some(handler.into());
    let mut version = Version {
        version: LATEST.into(),
        revision: "1".into(),
        modified: Timestamp::now(),
        settings,
        code: CodeRef::Image {
            uri: "busybox".into(),
            digest: Some("sha256:1".into()),
        },
        serving: None,
        progress: Progress::Ready,
    };
    version.serving = Some(Arc::new(version.deployment("default", handler)));
    let function = Function {
        account: "default".into(),
        name: handler.into(),
        latest: Arc::new(version),
        versions: BTreeMap::new(),
        head: Head::default(),
    };
    functions.registry.create(function).await.unwrap()
}

fn event(request: &str) -> Invocation {
    Invocation {
        request_id: request.into(),
        payload: Bytes::from_static(b"1"),
        arn: "arn".into(),
        client_context: None,
        trace: None,
    }
}

pub(in crate::lambda) async fn until_empty(journal: &Journal) {
    let empty = async {
        while !journal.function_events_due().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, empty).await.unwrap();
}

pub(in crate::lambda) fn letters(root: &TestRoot) -> Vec<Value> {
    let path = root
        .path()
        .join("functions/dead-letters/default/letters.jsonl");
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const SOON: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_try_that_panics_has_failed() {
    let root = TestRoot::empty().unwrap();
    let policy = EventPolicy {
        pauses: vec![SOON],
        retries: 1,
        ..EventPolicy::default()
    };
    let (functions, runner, journal) = open(&root, policy).await;
    let panics = function(&functions, "panic").await;
    functions.enqueue(&panics, None, event("a")).await.unwrap();
    until_empty(&journal).await;
    assert_eq!(runner.seen(), ["a", "a"]);
    let letters = letters(&root);
    assert_eq!(letters.len(), 1);
    assert_eq!(
        letters[0]["requestContext"]["condition"],
        "RetriesExhausted"
    );
}

#[tokio::test]
async fn what_fails_is_tried_again_under_the_same_id() {
    let root = TestRoot::empty().unwrap();
    let policy = EventPolicy {
        pauses: vec![SOON],
        ..EventPolicy::default()
    };
    let (functions, runner, journal) = open(&root, policy).await;
    let flaky = function(&functions, "flaky").await;
    let trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";
    let traced = Invocation {
        trace: Some(trace.into()),
        ..event("a")
    };
    functions.enqueue(&flaky, None, traced).await.unwrap();
    until_empty(&journal).await;
    assert_eq!(runner.seen(), ["a", "a", "a"]);
    assert_eq!(runner.traces(), vec![Some(trace.to_owned()); 3]);
    assert_eq!(letters(&root), Vec::<Value>::new());
    // One that never works is given up after two more times.
    let fail = function(&functions, "fail").await;
    functions.enqueue(&fail, None, event("b")).await.unwrap();
    until_empty(&journal).await;
    assert_eq!(runner.seen()[3..], ["b", "b", "b"]);
    let [letter] = &letters(&root)[..] else {
        panic!("one letter")
    };
    assert_eq!(letter["requestContext"]["condition"], "RetriesExhausted");
    assert_eq!(letter["requestContext"]["approximateInvokeCount"], 3);
    functions.stopping.cancel();
}

#[tokio::test]
async fn an_event_stays_until_its_letter_is_written() {
    let root = TestRoot::empty().unwrap();
    let policy = EventPolicy {
        retries: 0,
        ..EventPolicy::default()
    };
    let (functions, runner, journal) = open(&root, policy).await;
    // No folder can be made in a file.
    fs::write(root.path().join("functions/dead-letters"), "").unwrap();
    let fail = function(&functions, "fail").await;
    functions.enqueue(&fail, None, event("a")).await.unwrap();
    let waits = async {
        while runner.seen().is_empty() || functions.events.queue.has_room("default", 1, 9) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, waits).await.unwrap();
    assert!(journal.function_event("a").await.unwrap().is_some());
    functions.stopping.cancel();
}

#[tokio::test]
async fn what_cannot_be_run_waits_until_it_is_too_old() {
    let root = TestRoot::empty().unwrap();
    let policy = EventPolicy {
        throttled: SOON,
        age: Duration::from_millis(300),
        ..EventPolicy::default()
    };
    let (functions, runner, journal) = open(&root, policy).await;
    let full = function(&functions, "throttle").await;
    functions.enqueue(&full, None, event("a")).await.unwrap();
    until_empty(&journal).await;
    assert_eq!(runner.seen(), Vec::<String>::new());
    let [letter] = &letters(&root)[..] else {
        panic!("one letter")
    };
    assert_eq!(letter["requestContext"]["condition"], "EventAgeExceeded");
    assert_eq!(letter["requestContext"]["approximateInvokeCount"], 0);
    functions.stopping.cancel();
}

#[tokio::test]
async fn a_function_that_goes_takes_its_events_along() {
    let root = TestRoot::empty().unwrap();
    let policy = EventPolicy {
        throttled: SOON,
        ..EventPolicy::default()
    };
    let (functions, _runner, journal) = open(&root, policy).await;
    let full = function(&functions, "throttle").await;
    functions.enqueue(&full, None, event("a")).await.unwrap();
    functions
        .registry
        .remove("default", "throttle")
        .await
        .unwrap();
    until_empty(&journal).await;
    assert_eq!(letters(&root), Vec::<Value>::new());
    functions.stopping.cancel();
}

#[tokio::test]
async fn one_account_has_so_many_events_wait_and_no_more() {
    let root = TestRoot::empty().unwrap();
    let policy = EventPolicy {
        throttled: LIMIT,
        waiting: 1,
        ..EventPolicy::default()
    };
    let (functions, _runner, journal) = open(&root, policy).await;
    let full = function(&functions, "throttle").await;
    functions.enqueue(&full, None, event("a")).await.unwrap();
    // It waits once it was throttled and is to be tried again.
    let soon = now() + milliseconds(LIMIT) / 2;
    let waits = async {
        loop {
            let waiting = journal.function_event("a").await.unwrap().unwrap();
            if waiting.row.due > soon && !functions.events.queue.has_room("default", 1, 9) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, waits).await.unwrap();
    let refused = functions.enqueue(&full, None, event("b")).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("Too many events wait"), "{refused}");
    let other = Function {
        account: "other".into(),
        ..Function::clone(&full)
    };
    let gone = functions.enqueue(&other, None, event("c")).await;
    assert_eq!(gone.unwrap_err().status(), 404);
    let other = functions.registry.create(other).await.unwrap();
    functions.enqueue(&other, None, event("c")).await.unwrap();
    functions.stopping.cancel();
}

#[tokio::test]
async fn a_batch_needs_room_for_all_of_it() {
    let root = TestRoot::empty().unwrap();
    let policy = EventPolicy {
        waiting: 2,
        ..EventPolicy::default()
    };
    let (functions, runner, journal) = open(&root, policy).await;
    let echo = function(&functions, "echo").await;
    let batch = |ids: &[&str]| ids.iter().map(|id| event(id)).collect();
    let refused = functions.enqueue_all(&echo, None, batch(&["a", "b", "c"]));
    let refused = refused.await.unwrap_err();
    assert_eq!(refused.name(), "TooManyRequestsException");
    assert_eq!(journal.function_events_due().await.unwrap(), []);
    let taken = functions.enqueue_all(&echo, None, batch(&["a", "b"]));
    taken.await.unwrap();
    until_empty(&journal).await;
    let mut seen = runner.seen();
    seen.sort();
    assert_eq!(seen, ["a", "b"]);
    functions.stopping.cancel();
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_is_logged_of_an_invocation_says_to_which_trace_it_belongs() {
    let root = TestRoot::empty().unwrap();
    let (functions, _runner, _journal) = open(&root, EventPolicy::default()).await;
    let fail = function(&functions, "fail").await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let logged = tracing::subscriber::set_default(subscriber);
    let trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";
    let traced = Invocation {
        trace: Some(trace.into()),
        ..event("a")
    };
    functions.carry_out(&fail, None, traced).await.unwrap();
    drop(logged);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let line = text.lines().find(|line| line.contains("has ended"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    for part in [
        "outcome=\"handled\"",
        "request_id=\"a\"",
        "trace_id=\"5759e988bd862e3fe1be46a994272793\"",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    functions.stopping.cancel();
}
