//! What a node says of its functions at `/metrics`, after real requests.

mod support;

use aleph_testkit::{ScriptedRunner, TestRoot};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use support::functions::{Lambda, config};
use support::{Client, Server, until};

const FUNCTIONS: &str = "/2015-03-31/functions";

async fn create(client: &Client, name: &str, handler: &str) -> Result<()> {
    let function = json!({
        "FunctionName": name, "Runtime": "python3.11", "Handler": handler,
        "Role": "arn:aws:iam::000000000000:role/any",
        "Code": { "ZipFile": BASE64_STANDARD.encode("PK") },
    });
    let made = client.post(FUNCTIONS, function).await?;
    ensure!(made.status == StatusCode::CREATED, "{made:?}");
    until("a function to be ready", async || {
        let shown = client.get(&format!("{FUNCTIONS}/{name}")).await?;
        let shown: Value = shown.json()?;
        let done = shown["Configuration"]["LastUpdateStatus"] == "Successful";
        Ok(done.then_some(()))
    })
    .await
}

async fn scrape(server: &Server) -> Result<String> {
    let answer = server.local().get("/metrics").await?;
    ensure!(answer.status == StatusCode::OK, "{answer:?}");
    Ok(String::from_utf8(answer.body.to_vec())?)
}

/// The figure of a series, where there is one.
fn figure(text: &str, name: &str, labels: &str) -> Option<f64> {
    let begin = format!("aleph_function_{name}{{account=\"default\",{labels}}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&begin))?;
    line.parse().ok()
}

async fn until_figure(server: &Server, name: &str, labels: &str, wanted: f64) -> Result<()> {
    until(name, async || {
        let found = figure(&scrape(server).await?, name, labels);
        Ok((found == Some(wanted)).then_some(()))
    })
    .await
}

#[tokio::test]
async fn invocations_are_counted_by_function_and_vanish_with_it() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let (client, server) = (&lambda.client, &lambda.server);
    for (name, handler) in [("f", "echo"), ("fail", "fail"), ("full", "throttle")] {
        create(client, name, handler).await?;
    }
    for name in ["f", "f", "fail", "full"] {
        let path = format!("{FUNCTIONS}/{name}/invocations");
        client.post(&path, json!({})).await?;
    }
    client
        .post("/2021-10-31/functions/f/url", json!({"AuthType": "NONE"}))
        .await?;
    let through_url = client.get("/lambda-url/f/").await?;
    assert_eq!(through_url.status, StatusCode::OK);
    let text = scrape(server).await?;
    for (name, labels, wanted) in [
        (
            "invocations_total",
            "function=\"f\",outcome=\"success\"",
            3.0,
        ),
        (
            "invocations_total",
            "function=\"f\",outcome=\"handled\"",
            0.0,
        ),
        (
            "invocations_total",
            "function=\"fail\",outcome=\"handled\"",
            1.0,
        ),
        (
            "invocations_total",
            "function=\"full\",outcome=\"throttled\"",
            1.0,
        ),
        ("starts_total", "function=\"f\",temperature=\"warm\"", 3.0),
        (
            "starts_total",
            "function=\"full\",temperature=\"warm\"",
            0.0,
        ),
        (
            "duration_seconds_count",
            "function=\"f\",part=\"function\"",
            3.0,
        ),
        ("concurrent_executions", "function=\"f\"", 0.0),
        ("events_waiting", "function=\"f\"", 0.0),
    ] {
        let found = figure(&text, name, labels);
        assert_eq!(found, Some(wanted), "{name}{{{labels}}}\n{text}");
    }
    // 2.6 ms are beyond 2.5 ms.
    for (bound, wanted) in [("0.0025", 0), ("0.005", 3), ("900.0", 3)] {
        let labels = "account=\"default\",function=\"f\",part=\"function\"";
        let series = format!("aleph_function_duration_seconds_bucket{{le=\"{bound}\",{labels}}}");
        let line = format!("{series} {wanted}");
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
    let ended = text.matches("# EOF").count();
    assert_eq!(ended, 1);
    client.delete(&format!("{FUNCTIONS}/f")).await?;
    let text = scrape(server).await?;
    ensure!(!text.contains("function=\"f\""), "{text}");
    ensure!(text.contains("function=\"fail\""), "{text}");
    // Another of its name begins at nought.
    create(client, "f", "echo").await?;
    client
        .post(&format!("{FUNCTIONS}/f/invocations"), json!({}))
        .await?;
    let text = scrape(server).await?;
    let labels = "function=\"f\",outcome=\"success\"";
    assert_eq!(figure(&text, "invocations_total", labels), Some(1.0));
    lambda.server.close(&root).await
}

#[tokio::test]
async fn what_waits_is_counted_and_so_is_what_was_in_vain() -> Result<()> {
    let root = TestRoot::empty()?;
    let mut config = config(&root);
    config.api.drain = std::time::Duration::from_millis(100);
    let lambda = Lambda::start(&config, Arc::default()).await?;
    let client = &lambda.client;
    create(client, "held", "hold").await?;
    let event = async |client: &Client, name: &str| -> Result<()> {
        let path = format!("{FUNCTIONS}/{name}/invocations");
        let request = client
            .request(Method::POST, &path)
            .header("x-amz-invocation-type", "Event")
            .body(http_body_util::Full::from("{}"))?;
        let taken = client.send(request).await?;
        ensure!(taken.status == StatusCode::ACCEPTED, "{taken:?}");
        Ok(())
    };
    event(client, "held").await?;
    event(client, "held").await?;
    let of = "function=\"held\"";
    until_figure(&lambda.server, "events_waiting", of, 2.0).await?;
    until_figure(&lambda.server, "concurrent_executions", of, 2.0).await?;
    until("the oldest to have an age", async || {
        let text = scrape(&lambda.server).await?;
        let age = figure(&text, "events_oldest_seconds", of).context("no age")?;
        Ok((age > 0.0).then_some(()))
    })
    .await?;
    // The next daemon finds them in its journal.
    lambda.server.stop().await?;
    let runner = Arc::new(ScriptedRunner::default());
    let lambda = Lambda::start(&config, Arc::clone(&runner)).await?;
    let client = &lambda.client;
    until_figure(&lambda.server, "events_waiting", of, 2.0).await?;
    runner.let_go();
    until_figure(&lambda.server, "events_waiting", of, 0.0).await?;

    create(client, "fail", "fail").await?;
    let path = "/2019-09-25/functions/fail/event-invoke-config";
    let once = json!({"MaximumRetryAttempts": 0});
    client.call(Method::PUT, path, Some(once)).await?;
    event(client, "fail").await?;
    until_figure(
        &lambda.server,
        "dead_letters_total",
        "function=\"fail\"",
        1.0,
    )
    .await?;
    lambda.server.close(&root).await
}

#[tokio::test]
async fn clones_are_counted_by_state_for_all_versions_together() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let (client, server) = (&lambda.client, &lambda.server);
    create(client, "f", "echo").await?;
    for version in ["1", "2"] {
        let memory = json!({"MemorySize": if version == "1" { 256 } else { 512 }});
        let path = format!("{FUNCTIONS}/f/configuration");
        client.call(Method::PUT, &path, Some(memory)).await?;
        let published = until("the change to be there", async || {
            let made = client
                .post(&format!("{FUNCTIONS}/f/versions"), json!({}))
                .await?;
            Ok((made.status == StatusCode::CREATED).then_some(made))
        });
        assert_eq!(published.await?.json::<Value>()?["Version"], version);
        let path = format!("/2019-09-30/functions/f/provisioned-concurrency?Qualifier={version}");
        let two = json!({"ProvisionedConcurrentExecutions": 2});
        let kept = client.call(Method::PUT, &path, Some(two)).await?;
        ensure!(kept.status == StatusCode::ACCEPTED, "{kept:?}");
    }
    until_figure(server, "clones", "function=\"f\",state=\"hot\"", 4.0).await?;
    until_figure(server, "clones", "function=\"f\",state=\"warm\"", 0.0).await?;
    lambda.server.close(&root).await
}

#[tokio::test]
async fn an_account_sees_the_figures_of_its_own_functions() -> Result<()> {
    let root = TestRoot::empty()?;
    let mut config = config(&root);
    config.api.listen = Some(([127, 0, 0, 1], 0).into());
    let lambda = Lambda::start(&config, Arc::default()).await?;
    create(&lambda.client, "f", "echo").await?;
    let path = format!("{FUNCTIONS}/f/invocations");
    lambda.client.post(&path, json!({})).await?;
    let token = lambda.server.local().token("other").await?;
    let other = lambda.server.remote(&token)?;
    let answer = other.get("/metrics").await?;
    assert_eq!(answer.status, StatusCode::OK);
    let text = String::from_utf8(answer.body.to_vec())?;
    ensure!(!text.contains("function=\"f\""), "{text}");
    ensure!(scrape(&lambda.server).await?.contains("function=\"f\""));
    lambda.server.close(&root).await
}
