//! Functions that are HTTP servers, with real VMs and a native program.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it cannot go on"
)]

mod function_world;

use aleph_executor::functions::{
    Deployment, FunctionError, FunctionsConfig, HTTP_INTEGRATION, HttpPrelude, PoolConfig, Runner,
    Temperature,
};
use aleph_testkit::functions::server_program;
use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use function_world::{LIMIT, Program, World, is_told_late, log, pool, text};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

async fn world(pool: PoolConfig) -> Result<World> {
    let config = FunctionsConfig {
        pool,
        ..FunctionsConfig::default()
    };
    let server = tokio::task::block_in_place(server_program)?;
    let program = Program {
        files: &[("server", &server)],
        command: &["/var/task/server"],
    };
    let mut world = World::new(config, &program).await?;
    world.deployment.timeout = Duration::from_secs(40);
    Ok(world)
}

fn http(method: &str, path: &str) -> Value {
    json!({
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "a=1&b=%20",
        "headers": { "host": "own.example", "x-one": "1" },
        "cookies": ["c=2", "d=3"],
        "requestContext": { "http": { "method": method, "path": path }, "requestId": "r-1" },
        "body": "hello",
        "isBase64Encoded": false,
    })
}

async fn ask(world: &World, event: &Value) -> Result<Value> {
    let done = world.invoke(&event.to_string()).await?;
    assert_eq!(done.error, None, "{}", text(&done));
    Ok(serde_json::from_slice(&done.payload)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_a_request_and_its_response_the_answer() -> Result<()> {
    let world = world(pool()).await?;
    let cold = world.invoke("\"served\"").await?;
    assert_eq!((&*text(&cold), cold.temperature), ("1", Temperature::Cold));
    assert_eq!(cold.content_type, "application/json");
    // What it wrote may come too late for its log where the machine is busy.
    let mut is_logged = log(&cold).contains("POST /events\n");
    assert!(
        !log(&cold).contains("listening"),
        "what the template wrote is not written again"
    );
    for served in 2..12 {
        let hot = world.invoke("\"served\"").await?;
        assert_eq!(
            (text(&hot), hot.temperature),
            (served.to_string(), Temperature::Hot)
        );
        eprintln!("{:?}", hot.timings);
    }
    let event = "x".repeat(5_000_000);
    let long = world.invoke(&format!("\"{event}\"")).await?;
    assert_eq!(long.payload.len(), event.len() + 2);

    let answer = ask(&world, &http("PUT", "/some/path")).await?;
    assert_eq!(answer["statusCode"], 201);
    assert_eq!(answer["cookies"], json!(["a=1", "b=2"]));
    assert_eq!(answer["headers"]["content-type"], "text/plain");
    assert_eq!(answer["isBase64Encoded"], false);
    let told = answer["body"].as_str().context("a body")?;
    let (head, body) = told.split_once("\r\n\r\n").context("a head")?;
    assert_eq!(body, "hello");
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("PUT /some/path?a=1&b=%20 HTTP/1.1"));
    let headers: Vec<&str> = lines.collect();
    for want in [
        "host: own.example",
        "x-one: 1",
        "cookie: c=2; d=3",
        "content-length: 5",
    ] {
        assert!(headers.contains(&want), "{want}: {headers:?}");
    }
    let header = |name: &str| {
        let found = headers
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.with_context(|| format!("{name}: {headers:?}"))
    };
    assert!(
        header("x-amzn-request-id")?.starts_with("id-"),
        "{headers:?}"
    );
    let context: Value = serde_json::from_str(header("x-amzn-lambda-context")?)?;
    assert_eq!(context["env_config"]["function_name"], "shell");
    assert_eq!(context["request_id"], header("x-amzn-request-id")?);
    let context: Value = serde_json::from_str(header("x-amzn-request-context")?)?;
    assert_eq!(context["requestId"], "r-1");

    let raw = ask(&world, &http("GET", "/raw")).await?;
    assert_eq!(raw["isBase64Encoded"], true);
    assert_eq!(
        BASE64_STANDARD.decode(raw["body"].as_str().context("a body")?)?,
        [0xff, 0]
    );
    for _ in 0..5 {
        if is_logged {
            break;
        }
        world.invoke("\"exit\"").await?;
        let next = world.invoke("\"served\"").await?;
        assert_eq!((&*text(&next), next.temperature), ("1", Temperature::Cold));
        is_logged = log(&next).contains("POST /events\n");
    }
    assert!(is_logged, "no log has what a cold clone wrote");
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_of_a_server_comes_as_it_is_written() -> Result<()> {
    let world = world(pool()).await?;
    let event = http("GET", "/stream/200/50000").to_string();
    let (mut stream, running) = world.stream(&world.deployment, &event);
    let head = stream.head().await.context("no head")?;
    assert_eq!(head.content_type, HTTP_INTEGRATION);
    let (prelude, begins) = HttpPrelude::read(&mut stream).await?;
    assert_eq!(
        (prelude.status_code, &*prelude.headers["content-type"]),
        (200, "text/plain")
    );
    // It cannot have written all of it: nobody has read that.
    assert!(!running.is_finished());
    let mut body = begins.to_vec();
    while let Some(piece) = tokio::time::timeout(LIMIT, stream.next()).await? {
        body.extend(piece);
    }
    assert_eq!(body.len(), 10_000_000);
    assert!(body.ends_with(b" 199\n"));
    assert_eq!(running.await??.error, None);

    let (mut stream, running) = world.stream(&world.deployment, "\"served\"");
    let head = stream.head().await.context("no head")?;
    assert_eq!(
        (&*head.content_type, head.temperature),
        ("application/json", Temperature::Hot)
    );
    assert_eq!(stream.next().await.as_deref(), Some(&b"2"[..]));
    assert_eq!((stream.next().await, running.await??.error), (None, None));

    let event = http("GET", "/exit").to_string();
    for tries in 1.. {
        let (mut stream, running) = world.stream(&world.deployment, &event);
        HttpPrelude::read(&mut stream).await?;
        let done = running.await??;
        if !is_told_late(&done, tries) {
            assert!(text(&done).contains("Runtime.ExitError"), "{}", text(&done));
            break;
        }
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_costs_its_own_event_alone() -> Result<()> {
    let world = world(pool()).await?;
    let deployment = Deployment {
        timeout: Duration::from_secs(12),
        ..world.deployment.clone()
    };
    let invoke = async |event: &str| {
        world
            .invoke_as(&deployment, Default::default(), event)
            .await
    };
    for (event, kind, temperature) in [
        ("\"fail\"".to_owned(), "HTTP 500", Temperature::Hot),
        (
            "\"close\"".to_owned(),
            "Runtime.TruncatedResponse",
            Temperature::Cold,
        ),
        (
            "\"garbage\"".to_owned(),
            "Runtime.TruncatedResponse",
            Temperature::Cold,
        ),
        (
            http("GET", "/break").to_string(),
            "Runtime.TruncatedResponse",
            Temperature::Cold,
        ),
        (
            "\"exit\"".to_owned(),
            "Runtime.ExitError",
            Temperature::Cold,
        ),
        ("\"hang\"".to_owned(), "Sandbox.Timedout", Temperature::Cold),
    ] {
        let before = invoke("\"served\"").await?;
        assert_eq!(before.error, None, "{event}: {}", text(&before));
        let mut failed = invoke(&event).await?;
        for tries in 1.. {
            if kind != "Runtime.ExitError" || !is_told_late(&failed, tries) {
                break;
            }
            failed = invoke(&event).await?;
        }
        assert_eq!(
            failed.error,
            Some(FunctionError::Unhandled),
            "{event}: {}",
            text(&failed)
        );
        assert!(text(&failed).contains(kind), "{event}: {}", text(&failed));
        let after = invoke("\"served\"").await?;
        assert_eq!(
            (after.temperature, after.error),
            (temperature, None),
            "{event}"
        );
    }
    // One that listens no more is given no event; another clone has it.
    let deaf = invoke("\"deaf\"").await?;
    assert_eq!((&*text(&deaf), deaf.error), ("\"deaf\"", None));
    let next = invoke("\"served\"").await?;
    assert_eq!((&*text(&next), next.temperature), ("1", Temperature::Cold));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_goes_on_and_one_without_a_port_does_not_initialise() -> Result<()> {
    let world = world(PoolConfig {
        linger: Duration::ZERO,
        spares: 0,
        ..PoolConfig::default()
    })
    .await?;
    // The port is what the function says, and so is where its events go.
    let mut deployment = world.deployment.clone();
    deployment.env.insert("PORT".into(), "3000".into());
    deployment
        .env
        .insert("AWS_LWA_PASS_THROUGH_PATH".into(), "/own".into());
    let mut warm = None;
    for _ in 0..1200 {
        let done = world
            .invoke_as(&deployment, Default::default(), "{}")
            .await?;
        assert_eq!(done.error, None, "{}", text(&done));
        assert!(
            text(&done).starts_with("POST /own HTTP/1.1\r\n"),
            "{}",
            text(&done)
        );
        if done.temperature == Temperature::Warm {
            warm = Some(done);
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    warm.context("it was never paused")?;
    // One that listens nowhere fails to initialise.
    let mut nowhere = world.deployment.clone();
    nowhere.env.insert("PORT".into(), "none".into());
    let problem = world.runtime.prepare(Arc::new(nowhere)).await.unwrap_err();
    assert_eq!(problem.code, "function_init", "{problem:?}");
    world.end().await
}
