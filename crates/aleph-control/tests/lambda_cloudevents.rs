//! CloudEvents for functions of a real daemon over a runner without VMs: in plain HTTP, and as the
//! SDK from PyPI sends them.

mod support;

use aleph_testkit::{TestRoot, python_with_cloudevents};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use support::functions::{Lambda, config};
use support::{Answer, Client, until};
use tokio::process::Command;

const FUNCTIONS: &str = "/2015-03-31/functions";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// A function whose events end as dead letters at once: what it was given is in there.
async fn create(client: &Client, name: &str, handler: &str) -> Result<()> {
    let function = json!({
        "FunctionName": name, "Runtime": "python3.11", "Handler": handler,
        "Role": "arn:aws:iam::000000000000:role/any",
        "Code": { "ZipFile": BASE64_STANDARD.encode("PK") },
    });
    let made = client.post(FUNCTIONS, function).await?;
    ensure!(made.status == StatusCode::CREATED, "{made:?}");
    let path = format!("/2019-09-25/functions/{name}/event-invoke-config");
    let once = json!({"MaximumRetryAttempts": 0});
    let set = client.call(Method::PUT, &path, Some(once)).await?;
    ensure!(set.status == StatusCode::OK, "{set:?}");
    until("a function to be ready", async || {
        let shown = client.get(&format!("{FUNCTIONS}/{name}")).await?;
        let shown: Value = shown.json()?;
        let done = shown["Configuration"]["LastUpdateStatus"] == "Successful";
        Ok(done.then_some(()))
    })
    .await
}

async fn send(
    client: &Client,
    to: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Answer> {
    let mut request = client.request(Method::POST, &format!("/cloudevents/{to}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send(request.body(Full::from(body.into()))?).await
}

fn text<'a>(answer: &'a Answer, header: &str) -> &'a str {
    let value = answer.headers.get(header);
    value.map_or("", |value| value.to_str().unwrap_or_default())
}

/// So many dead letters, in the order in which they were written.
async fn letters(root: &TestRoot, count: usize) -> Result<Vec<Value>> {
    let file = root
        .path()
        .join("functions/dead-letters/default/letters.jsonl");
    until("dead letters", async || {
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        // The last line may be half written.
        let whole = written.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines: Vec<&str> = whole.lines().collect();
        if lines.len() < count {
            return Ok(None);
        }
        let letters = lines.iter().map(|line| serde_json::from_str(line));
        Ok(Some(letters.collect::<Result<Vec<Value>, _>>()?))
    })
    .await
}

fn event(id: usize, data: &Value) -> Value {
    json!({"specversion": "1.0", "id": id.to_string(), "source": "/t", "type": "t", "data": data})
}

#[tokio::test]
async fn events_are_queued_in_the_json_format() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "f", "fail").await?;
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "a%20b"),
        ("ce-source", "/t"),
        ("ce-type", "com.example.made"),
        ("ce-myext", "%E2%82%AC"),
        ("content-type", "image/png"),
    ];
    let taken = send(client, "f", &binary, &b"\x00\xff"[..]).await?;
    assert_eq!((taken.status.as_u16(), taken.body.len()), (202, 0));
    let first = letters(&root, 1).await?.remove(0);
    let id = first["requestContext"]["requestId"]
        .as_str()
        .unwrap_or_default();
    assert_eq!(id, text(&taken, "x-amzn-requestid"));
    assert_eq!(
        first["requestPayload"],
        json!({
            "specversion": "1.0", "id": "a b", "source": "/t", "type": "com.example.made",
            "myext": "€", "datacontenttype": "image/png", "data_base64": "AP8=",
        })
    );
    let one = event(1, &json!({"n": [1.5]}));
    let taken = send(
        client,
        "f",
        &[("content-type", STRUCTURED)],
        one.to_string(),
    )
    .await?;
    assert_eq!(taken.status, StatusCode::ACCEPTED);
    assert_eq!(letters(&root, 2).await?[1]["requestPayload"], one);

    let batch = json!([event(2, &json!(2)), event(3, &json!(3))]);
    let taken = send(client, "f", &[("content-type", BATCH)], batch.to_string()).await?;
    assert_eq!(taken.status, StatusCode::ACCEPTED);
    let ids: Value = taken.json()?;
    let ids = ids["RequestIds"].as_array().context("no ids")?.clone();
    assert_eq!(ids.len(), 2);
    let mut ran: Vec<Value> = letters(&root, 4).await?[2..]
        .iter()
        .map(|letter| letter["requestContext"]["requestId"].clone())
        .collect();
    ran.sort_by_key(|id| ids.iter().position(|other| other == id));
    assert_eq!(ran, ids);
    lambda.server.close(&root).await
}

#[tokio::test]
async fn what_is_no_event_is_refused_and_a_batch_is_taken_whole() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "f", "fail").await?;
    let good = event(1, &json!(1));
    let long = event(2, &json!("x".repeat(256 * 1024)));
    let no_id = json!({"specversion": "1.0", "source": "/t", "type": "t"});
    let one = |kind: &'static str| [("content-type", kind)];
    let invalid = "InvalidRequestContentException";
    for (to, kind, body, status, name) in [
        ("f", STRUCTURED, no_id.to_string(), 400, invalid),
        ("f", STRUCTURED, "{".into(), 400, invalid),
        ("f", BATCH, json!([good, no_id]).to_string(), 400, invalid),
        (
            "f",
            STRUCTURED,
            long.to_string(),
            413,
            "RequestTooLargeException",
        ),
        (
            "f",
            BATCH,
            json!([good, long]).to_string(),
            413,
            "RequestTooLargeException",
        ),
        ("f", "application/json", "{}".into(), 400, invalid),
        (
            "f",
            "application/cloudevents+xml",
            String::new(),
            415,
            "UnsupportedMediaTypeException",
        ),
        (
            "absent",
            STRUCTURED,
            good.to_string(),
            404,
            "ResourceNotFoundException",
        ),
        (
            "f:absent",
            STRUCTURED,
            good.to_string(),
            404,
            "ResourceNotFoundException",
        ),
        (
            "f f",
            STRUCTURED,
            good.to_string(),
            400,
            "InvalidParameterValueException",
        ),
    ] {
        let answer = send(client, &to.replace(' ', "%20"), &one(kind), body).await?;
        assert_eq!(answer.status, status, "{kind}: {answer:?}");
        assert_eq!(text(&answer, "x-amzn-errortype"), name, "{answer:?}");
    }
    let said: Value = send(client, "f", &one(STRUCTURED), no_id.to_string())
        .await?
        .json()?;
    assert_eq!(said["Message"], "\"id\" is missing");
    // Pages of browsers are refused, as they are where functions are invoked.
    let page = [
        ("content-type", STRUCTURED),
        ("origin", "https://example.org"),
    ];
    let answer = send(client, "f", &page, good.to_string()).await?;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    // One that asks first hears that it may send.
    let asked = client
        .request(Method::OPTIONS, "/cloudevents/f")
        .header("webhook-request-origin", "events.example.com")
        .body(Full::default())?;
    let allowed = client.send(asked).await?;
    assert_eq!(allowed.status, StatusCode::OK);
    let origin = text(&allowed, "webhook-allowed-origin");
    assert_eq!(origin, "events.example.com");
    // Nothing of all that was queued: the next one is the first.
    let taken = send(
        client,
        "f",
        &one(STRUCTURED),
        event(9, &json!(9)).to_string(),
    )
    .await?;
    assert_eq!(taken.status, StatusCode::ACCEPTED);
    let letters = letters(&root, 1).await?;
    assert_eq!(letters[0]["requestPayload"]["id"], "9");
    assert_eq!(lambda.runner.seen().len(), 1);
    lambda.server.close(&root).await
}

#[tokio::test]
async fn an_event_that_is_sent_again_while_it_is_under_way_runs_once() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "held", "hold").await?;
    let one = event(1, &json!(1)).to_string();
    let kind = [("content-type", STRUCTURED)];
    let first = send(client, "held", &kind, one.clone()).await?;
    until("the event to begin", async || {
        Ok((!lambda.runner.seen().is_empty()).then_some(()))
    })
    .await?;
    let again = send(client, "held", &kind, one.clone()).await?;
    assert_eq!(again.status, StatusCode::ACCEPTED);
    let id = text(&first, "x-amzn-requestid");
    assert_eq!(text(&again, "x-amzn-requestid"), id);
    let other = send(client, "held", &kind, event(2, &json!(1)).to_string()).await?;
    let other = text(&other, "x-amzn-requestid");
    lambda.runner.let_go();
    until("the other event", async || {
        Ok(lambda
            .runner
            .seen()
            .iter()
            .any(|seen| seen == other)
            .then_some(()))
    })
    .await?;
    assert_eq!(lambda.runner.seen(), [id, other]);
    lambda.server.close(&root).await
}

#[tokio::test]
async fn an_event_keeps_its_trace() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "f", "about").await?;
    create(client, "told", "fail").await?;
    let arn = "arn:aws:lambda:us-east-1:000000000000:function:told";
    let path = "/2019-09-25/functions/f/event-invoke-config";
    let to = json!({"DestinationConfig": {"OnSuccess": {"Destination": arn}}});
    client.call(Method::PUT, path, Some(to)).await?;
    let mut one = event(1, &json!(1));
    one["traceparent"] = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01".into();
    // The event's own counts, and not that of the request which carries it.
    let headers = [
        ("content-type", STRUCTURED),
        (
            "traceparent",
            "00-0759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01",
        ),
    ];
    send(client, "f", &headers, one.to_string()).await?;
    let letter = letters(&root, 1).await?.remove(0);
    // The letter tells what the second function was told of the first.
    assert_eq!(
        letter["requestPayload"]["responsePayload"]["trace"],
        "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
    );
    lambda.server.close(&root).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_from_pypi_sends_events() -> Result<()> {
    let python = tokio::task::block_in_place(python_with_cloudevents)?;
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    create(&lambda.client, "f", "fail").await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda_cloudevents.py");
    let ran = Command::new(python)
        .arg(script)
        .arg(format!("{}/cloudevents/f", lambda.endpoint))
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ran = tokio::time::timeout(support::LIMIT, ran).await??;
    let said = String::from_utf8(ran.stdout)?;
    let complained = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{said}\n{complained}");
    // What it sent, as its own JSON has it, is what the function was given.
    let mut sent: Vec<Value> = Vec::new();
    for line in said.lines() {
        sent.push(serde_json::from_str(line)?);
    }
    ensure!(sent.len() >= 4, "{said}");
    let mut given: Vec<Value> = letters(&root, sent.len())
        .await?
        .iter_mut()
        .map(|letter| letter["requestPayload"].take())
        .collect();
    let by_id = |event: &Value| event["id"].as_str().unwrap_or_default().to_owned();
    sent.sort_by_key(by_id);
    given.sort_by_key(by_id);
    assert_eq!(sent, given);
    lambda.server.close(&root).await
}
