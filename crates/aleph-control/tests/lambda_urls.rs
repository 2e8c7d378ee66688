//! Functions behind URLs of a real daemon over a runner without VMs, in plain HTTP.

mod support;

use aleph_control::config::Config;
use aleph_testkit::{TestRoot, python_with_boto3};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use support::functions::{Lambda, config};
use support::{Answer, Client, until};
use tokio::process::Command;

const FUNCTIONS: &str = "/2015-03-31/functions";
const URLS: &str = "/2021-10-31/functions";
const TRACEPARENT: &str = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01";

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

/// A URL, and its id.
async fn url(client: &Client, name: &str, settings: Value) -> Result<(String, String)> {
    let made = client.post(&format!("{URLS}/{name}/url"), settings).await?;
    ensure!(made.status == StatusCode::CREATED, "{made:?}");
    let made: Value = made.json()?;
    let url = made["FunctionUrl"].as_str().context("no URL")?.to_owned();
    let host = url.strip_prefix("http://").context("no http")?;
    let id = host.split('.').next().context("no id")?.to_owned();
    Ok((url, id))
}

/// A request to a URL.
struct To<'c> {
    client: &'c Client,
    host: String,
}

impl To<'_> {
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client
            .send(request.body(Full::from(body.into()))?)
            .await
    }
}

fn by_host<'c>(client: &'c Client, url: &str) -> To<'c> {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    To {
        client,
        host: host.to_owned(),
    }
}

fn text<'a>(answer: &'a Answer, header: &str) -> &'a str {
    let value = answer.headers.get(header);
    value.map_or("", |value| value.to_str().unwrap_or_default())
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_url_leads_to_its_function_by_host_and_by_path() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "hello", "echo").await?;
    let (url, id) = url(client, "hello", json!({"AuthType": "NONE"})).await?;
    let port = lambda.endpoint.rsplit(':').next().context("no port")?;
    assert_eq!(
        url,
        format!("http://{id}.lambda-url.us-east-1.localhost:{port}/")
    );

    let to = by_host(client, &url);
    let headers = [("cookie", "a=1"), ("traceparent", TRACEPARENT), JSON];
    let answer = to.send("PATCH", "/a/b%20c?x=1&x=2", &headers, "{}").await?;
    assert_eq!(
        (answer.status.as_u16(), text(&answer, "content-type")),
        (200, "application/json")
    );
    let event: Value = answer.json()?;
    assert_eq!(
        (&event["rawPath"], &event["rawQueryString"]),
        (&json!("/a/b%20c"), &json!("x=1&x=2"))
    );
    assert_eq!(
        (&event["cookies"], &event["body"]),
        (&json!(["a=1"]), &json!("{}"))
    );
    let context = &event["requestContext"];
    assert_eq!(context["http"]["method"], "PATCH");
    assert_eq!(context["http"]["sourceIp"], "127.0.0.1");
    assert_eq!(
        (&context["apiId"], &context["domainPrefix"]),
        (&json!(id), &json!(id))
    );
    assert_eq!(
        context["domainName"],
        format!("{id}.lambda-url.us-east-1.localhost")
    );
    assert_eq!(context["requestId"], text(&answer, "x-amzn-requestid"));
    assert_eq!(event["headers"]["x-forwarded-port"], port);
    assert_eq!(
        event["headers"]["x-amzn-trace-id"],
        "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
    );
    let told = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1";
    assert_eq!(text(&answer, "x-amzn-trace-id"), told);

    let here = To {
        client,
        host: format!("127.0.0.1:{port}"),
    };
    for path in ["/lambda-url/hello/a?b", &format!("/lambda-url/{id}/a?b")] {
        let event: Value = here.send("GET", path, &[], "").await?.json()?;
        assert_eq!(
            (&event["rawPath"], &event["rawQueryString"]),
            (&json!("/a"), &json!("b"))
        );
        assert_eq!(event["requestContext"]["apiId"], json!(id));
    }
    let head = to.send("HEAD", "/", &[], "").await?;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));

    // An API path on the host of a URL is the function's.
    let answer = to.send("GET", "/2015-03-31/functions", &[], "").await?;
    assert_eq!(answer.json::<Value>()?["rawPath"], "/2015-03-31/functions");
    lambda.server.close(&root).await
}

#[tokio::test]
async fn what_a_function_says_is_the_answer() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "says", "body").await?;
    let (says, _) = url(client, "says", json!({"AuthType": "NONE"})).await?;
    let says = by_host(client, &says);
    let said = json!({
        "statusCode": 418, "headers": {"Content-Type": "text/plain", "X-Own": "1"},
        "cookies": ["a=1; Secure", "b=2"], "body": "dGVh", "isBase64Encoded": true,
    });
    let answer = says.send("POST", "/", &[JSON], said.to_string()).await?;
    assert_eq!((answer.status.as_u16(), answer.body), (418, "tea".into()));
    assert_eq!(answer.headers["x-own"], "1");
    let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1; Secure", "b=2"]);
    let wrong = says
        .send("POST", "/", &[JSON], r#"{"statusCode":"x"}"#)
        .await?;
    assert_eq!(
        (wrong.status.as_u16(), wrong.body),
        (502, "Internal Server Error".into())
    );

    for (handler, status) in [
        ("fail", 502),
        ("crash", 502),
        ("throttle", 429),
        ("big", 502),
    ] {
        create(client, handler, handler).await?;
        let (to, _) = url(client, handler, json!({"AuthType": "NONE"})).await?;
        let answer = by_host(client, &to).send("GET", "/", &[], "").await?;
        assert_eq!(answer.status, status, "{handler}");
        ensure!(!text(&answer, "x-amzn-requestid").is_empty(), "{answer:?}");
        if status == 429 {
            assert_eq!(text(&answer, "retry-after"), "2");
        } else {
            assert_eq!(answer.body, "Internal Server Error", "{handler}");
        }
    }
    // The body fits, and the event does not: in base64 it is a third longer.
    let five = vec![b'x'; 5 * 1024 * 1024];
    let binary = says.send("POST", "/", &[], five.clone()).await?;
    assert_eq!(binary.status, StatusCode::PAYLOAD_TOO_LARGE);
    let fits = says
        .send("POST", "/", &[("content-type", "text/plain")], five)
        .await?;
    assert_eq!(
        (fits.status.as_u16(), fits.body.len()),
        (200, 5 * 1024 * 1024)
    );
    let long = says.send("POST", "/", &[], vec![b'x'; 7_000_000]).await?;
    assert_eq!(long.status, StatusCode::PAYLOAD_TOO_LARGE);
    lambda.server.close(&root).await
}

#[tokio::test]
async fn what_is_gone_stops_at_once_and_aliases_have_urls_of_their_own() -> Result<()> {
    let root = TestRoot::empty()?;
    let config = config(&root);
    let lambda = Lambda::start(&config, Arc::default()).await?;
    let client = &lambda.client;
    create(client, "f", "about").await?;
    client
        .post(&format!("{FUNCTIONS}/f/versions"), json!({}))
        .await?;
    let alias = json!({"Name": "live", "FunctionVersion": "1"});
    client
        .post(&format!("{FUNCTIONS}/f/aliases"), alias)
        .await?;
    let none = || json!({"AuthType": "NONE"});
    let (plain, id) = url(client, "f", none()).await?;
    let (live, live_id) = url(client, "f:live", none()).await?;
    assert_ne!(id, live_id);
    let version = async |client: &Client, url: &str| -> Result<Value> {
        until("a version to be ready", async || {
            let answer = by_host(client, url).send("GET", "/", &[], "").await?;
            let ready = answer.status != StatusCode::SERVICE_UNAVAILABLE;
            Ok(ready.then_some(answer.json::<Value>().unwrap_or_default()))
        })
        .await
    };
    assert_eq!(version(client, &plain).await?["version"], "$LATEST");
    let about = version(client, &live).await?;
    assert_eq!(about["version"], "1");
    assert_eq!(
        about["arn"],
        "arn:aws:lambda:us-east-1:000000000000:function:f:live"
    );
    let by_path = client.get("/lambda-url/f:live").await?;
    assert_eq!(by_path.json::<Value>()?["version"], "1");

    // It is found again by the next daemon, at whatever address that listens.
    lambda.server.stop().await?;
    let lambda = Lambda::start(&config, Arc::default()).await?;
    let client = &lambda.client;
    let shown: Value = client.get(&format!("{URLS}/f/url")).await?.json()?;
    let plain = shown["FunctionUrl"].as_str().context("no URL")?.to_owned();
    ensure!(plain.contains(&id), "{plain}");
    assert_eq!(version(client, &plain).await?["version"], "$LATEST");

    let refused = async |client: &Client, host: &str, path: &str| -> Result<()> {
        let to = To {
            client,
            host: host.into(),
        };
        let answer = to.send("GET", path, &[], "").await?;
        ensure!(
            answer.status == StatusCode::FORBIDDEN,
            "{host}{path}: {answer:?}"
        );
        ensure!(
            answer.json::<Value>()?["Message"] == "Forbidden",
            "{answer:?}"
        );
        Ok(())
    };
    refused(client, &format!("{id}.lambda-url.eu-west-3.localhost"), "/").await?;
    refused(client, "0123.lambda-url.us-east-1.localhost", "/").await?;
    for path in [
        "/lambda-url/absent/",
        "/lambda-url/f:1/",
        "/lambda-url/",
        "/lambda-url/%ff",
    ] {
        refused(client, "localhost", path).await?;
    }
    // Names of this node's alone are good for names of functions.
    refused(client, "rebound.example.org", "/lambda-url/f/").await?;

    let live_host = format!("{live_id}.lambda-url.us-east-1.localhost");
    client
        .delete(&format!("{FUNCTIONS}/f/aliases/live"))
        .await?;
    refused(client, &live_host, "/").await?;
    let host = format!("{id}.lambda-url.us-east-1.localhost");
    client.delete(&format!("{URLS}/f/url")).await?;
    refused(client, &host, "/").await?;
    let (_, next) = url(client, "f", none()).await?;
    assert_ne!(next, id, "an id is never used again");
    client.delete(&format!("{FUNCTIONS}/f")).await?;
    refused(
        client,
        &format!("{next}.lambda-url.us-east-1.localhost"),
        "/",
    )
    .await?;
    lambda.server.close(&root).await
}

#[tokio::test]
async fn a_url_that_streams_passes_on_what_comes() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    let streams = || json!({"AuthType": "NONE", "InvokeMode": "RESPONSE_STREAM"});
    create(client, "says", "body").await?;
    let (says, _) = url(client, "says", streams()).await?;
    // It is not looked into, and longer than one that is buffered may be.
    let said = r#"{"statusCode": 418}"#;
    let answer = by_host(client, &says)
        .send("POST", "/", &[JSON], said)
        .await?;
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (200, said.as_bytes())
    );
    assert_eq!(text(&answer, "content-type"), "application/json");
    for (handler, status, length) in [("big", 200, 7_000_002), ("crash", 502, 21)] {
        create(client, handler, handler).await?;
        let (to, _) = url(client, handler, streams()).await?;
        let answer = by_host(client, &to).send("GET", "/", &[], "").await?;
        assert_eq!(
            (answer.status.as_u16(), answer.body.len()),
            (status, length)
        );
    }
    lambda.server.close(&root).await
}

#[tokio::test]
async fn pieces_come_as_they_are_written_and_a_broken_answer_is_not_whole() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    let mut begun = Vec::new();
    for (handler, status) in [("pieces", 200), ("http", 418), ("break", 200)] {
        create(client, handler, handler).await?;
        let streams = json!({"AuthType": "NONE", "InvokeMode": "RESPONSE_STREAM"});
        let (to, _) = url(client, handler, streams).await?;
        let to = by_host(client, &to);
        let request = Request::get("/").header(HOST, &to.host);
        let answer = client.begin(request.body(Full::default())?).await?;
        assert_eq!(answer.status(), status, "{handler}");
        let mut body = answer.into_body();
        let first = body.frame().await.context("no piece")??;
        assert_eq!(first.into_data().ok().as_deref(), Some(&b"first"[..]));
        begun.push((handler, body));
    }
    // Those that wait go on only now.
    lambda.runner.let_go();
    for (handler, body) in begun {
        let rest = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes);
        match handler {
            "break" => ensure!(rest.is_err(), "a whole answer: {rest:?}"),
            _ => assert_eq!(rest?, "last", "{handler}"),
        }
    }
    lambda.server.close(&root).await
}

#[tokio::test]
async fn pages_call_as_cors_says() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "f", "echo").await?;
    let wrong = json!({"AuthType": "NONE", "Cors": {"AllowMethods": ["OPTIONS"]}});
    let refused = client.post(&format!("{URLS}/f/url"), wrong).await?;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let cors = json!({
        "AllowOrigins": ["https://app.example.com"], "AllowMethods": ["GET"],
        "AllowHeaders": ["x-one"], "MaxAge": 60,
    });
    let (to, _) = url(client, "f", json!({"AuthType": "NONE", "Cors": cors})).await?;
    let to = by_host(client, &to);
    let origin = ("origin", "https://app.example.com");
    let asks = ("access-control-request-method", "GET");
    let seen = lambda.runner.seen().len();
    let answer = to.send("OPTIONS", "/x", &[origin, asks], "").await?;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(text(&answer, "access-control-allow-origin"), origin.1);
    assert_eq!(text(&answer, "access-control-allow-methods"), "GET");
    assert_eq!(text(&answer, "access-control-max-age"), "60");
    let other = ("origin", "https://evil.example.com");
    let answer = to.send("OPTIONS", "/", &[other, asks], "").await?;
    assert_eq!(text(&answer, "access-control-allow-origin"), "");
    assert_eq!(
        lambda.runner.seen().len(),
        seen,
        "the node answers preflights"
    );
    // Without the question it is a request like others.
    let event: Value = to.send("OPTIONS", "/", &[], "").await?.json()?;
    assert_eq!(event["requestContext"]["http"]["method"], "OPTIONS");
    let answer = to.send("GET", "/", &[origin], "").await?;
    assert_eq!(text(&answer, "access-control-allow-origin"), origin.1);
    let answer = to.send("GET", "/", &[], "").await?;
    assert_eq!(
        text(&answer, "vary"),
        "Origin",
        "a cache keeps it for nobody else"
    );

    // By its name, which can be guessed, a page of others gets nowhere.
    let here = To {
        client,
        host: "localhost".into(),
    };
    let answer = here.send("GET", "/lambda-url/f/", &[origin], "").await?;
    assert_eq!(answer.status, StatusCode::OK);
    let site = |site| ("sec-fetch-site", site);
    for foreign in [other, site("cross-site"), site("same-site")] {
        let answer = here.send("GET", "/lambda-url/f/", &[foreign], "").await?;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
    // A page of a function shows its own pictures, and does not get to the API beside it.
    let own = [site("same-origin")];
    let answer = here.send("GET", "/lambda-url/f/", &own, "").await?;
    assert_eq!(answer.status, StatusCode::OK);
    for path in [&*format!("{FUNCTIONS}/f"), FUNCTIONS] {
        let answer = here.send("GET", path, &own, "").await?;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
        let answer = here.send("GET", path, &[site("none")], "").await?;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
    }
    lambda.server.close(&root).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_with_iam_takes_who_signed_with_a_key_of_its_account() -> Result<()> {
    let python = tokio::task::block_in_place(python_with_boto3)?;
    let root = TestRoot::empty()?;
    let keys = "[functions]\ncredentials = [\n\
        { access_key_id = 'AKIDTEAM', secret_access_key = 'se/cr+et', account = 'team' },\n\
        { access_key_id = 'AKIDOTHER', secret_access_key = 'secret', account = 'other' }]";
    let keys = Config::check(keys).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let mut config = config(&root);
    config.functions.credentials = keys.functions.credentials;
    let lambda = Lambda::start(&config, Arc::default()).await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda_urls.py");
    let ran = Command::new(python)
        .arg(script)
        .arg(&lambda.endpoint)
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ran = tokio::time::timeout(support::LIMIT, ran).await??;
    ensure!(
        ran.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
    lambda.server.close(&root).await
}

#[tokio::test]
async fn without_credentials_a_url_with_iam_is_for_programs_of_this_host() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "f", "echo").await?;
    let (to, id) = url(client, "f", json!({"AuthType": "AWS_IAM"})).await?;
    let to = by_host(client, &to);
    let answer = to.send("GET", "/", &[], "").await?;
    assert_eq!(answer.status, StatusCode::OK);
    let page = to
        .send("GET", "/", &[("origin", "https://example.org")], "")
        .await?;
    assert_eq!(page.status, StatusCode::FORBIDDEN);
    for site in ["cross-site", "same-site", "same-origin"] {
        let picture = to.send("GET", "/", &[("sec-fetch-site", site)], "").await?;
        assert_eq!(picture.status, StatusCode::FORBIDDEN, "{site}");
    }
    let host = format!("{id}.lambda-url.us-east-1.on.aws");
    let elsewhere = To { client, host };
    let answer = elsewhere.send("GET", "/", &[], "").await?;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    lambda.server.close(&root).await
}

#[tokio::test]
async fn an_invocation_keeps_its_trace() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = Lambda::start(&config(&root), Arc::default()).await?;
    let client = &lambda.client;
    create(client, "f", "about").await?;
    let path = format!("{FUNCTIONS}/f/invocations");
    let invoke = async |headers: &[(&str, &str)]| -> Result<(String, String)> {
        let mut request = client.request(Method::POST, &path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = client.send(request.body(Full::from("{}"))?).await?;
        let about: Value = answer.json()?;
        let trace = about["trace"].as_str().context("no trace")?.to_owned();
        Ok((trace, text(&answer, "x-amzn-trace-id").to_owned()))
    };
    let xray = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";
    let told = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1";
    for header in [("traceparent", TRACEPARENT), ("x-amzn-trace-id", xray)] {
        assert_eq!(invoke(&[header]).await?, (xray.to_owned(), told.to_owned()));
    }
    // One that nobody began begins here, and is recorded where the function says so.
    let (trace, told) = invoke(&[]).await?;
    ensure!(trace.ends_with(";Sampled=0"), "{trace}");
    let root_of = |trace: &str| trace.split(';').next().map(str::to_owned);
    assert_eq!(root_of(&trace), root_of(&told));
    let active = json!({"TracingConfig": {"Mode": "Active"}});
    client
        .call(
            Method::PUT,
            &format!("{FUNCTIONS}/f/configuration"),
            Some(active),
        )
        .await?;
    let (second, _) = invoke(&[]).await?;
    ensure!(second.ends_with(";Sampled=1"), "{second}");
    assert_ne!(root_of(&trace), root_of(&second));
    lambda.server.close(&root).await
}
