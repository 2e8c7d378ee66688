//! The functions of a real daemon over a runner without VMs, spoken with in plain HTTP. What a
//! real client makes of it is in `lambda_boto3`.

mod support;

use aleph_control::config::Config;
use aleph_testkit::{ScriptedRunner, TestRoot};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use support::functions::{Lambda, config};
use support::{Answer, Client, LIMIT, until};

const FUNCTIONS: &str = "/2015-03-31/functions";

async fn start(root: &TestRoot) -> Result<Lambda> {
    Lambda::start(&config(root), Arc::default()).await
}

fn new(name: &str, handler: &str) -> Value {
    json!({
        "FunctionName": name, "Runtime": "python3.11", "Handler": handler,
        "Role": "arn:aws:iam::000000000000:role/any",
        "Code": { "ZipFile": BASE64_STANDARD.encode(format!("PK {name}")) },
    })
}

async fn create(client: &Client, name: &str, handler: &str) -> Result<Value> {
    let made = client.post(FUNCTIONS, new(name, handler)).await?;
    ensure!(made.status == StatusCode::CREATED, "{made:?}");
    settled(client, name).await
}

/// What a function is once nothing is under way.
async fn settled(client: &Client, name: &str) -> Result<Value> {
    until("a function to settle", async || {
        let shown = client.get(&format!("{FUNCTIONS}/{name}")).await?;
        let shown: Value = shown.json()?;
        let done = shown["Configuration"]["LastUpdateStatus"] != "InProgress";
        Ok(done.then_some(shown))
    })
    .await
}

async fn invoke(client: &Client, name: &str, event: &Value) -> Result<Answer> {
    let path = format!("{FUNCTIONS}/{name}/invocations");
    client.post(&path, event.clone()).await
}

async fn invoke_as(client: &Client, name: &str, kind: &str, body: &[u8]) -> Result<Answer> {
    let path = format!("{FUNCTIONS}/{name}/invocations");
    let request = client
        .request(Method::POST, &path)
        .header("X-Amz-Invocation-Type", kind)
        .body(Full::from(Bytes::copy_from_slice(body)))?;
    client.send(request).await
}

fn text<'a>(answer: &'a Answer, header: &str) -> &'a str {
    let value = answer.headers.get(header);
    value.map_or("", |value| value.to_str().unwrap_or_default())
}

fn refused(answer: &Answer, status: u16, kind: &str) -> Result<()> {
    ensure!(answer.status == status, "{kind}: {answer:?}");
    ensure!(text(answer, "x-amzn-errortype") == kind, "{answer:?}");
    let body: Value = answer.json()?;
    ensure!(
        body["Type"].is_string() && body["Message"].is_string(),
        "{body}"
    );
    ensure!(!text(answer, "x-amzn-requestid").is_empty(), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_function_is_made_runs_and_goes() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    let made = client.post(FUNCTIONS, new("hello", "app.handler")).await?;
    ensure!(made.status == StatusCode::CREATED, "{made:?}");
    let made: Value = made.json()?;
    assert_eq!(
        made["FunctionArn"],
        "arn:aws:lambda:us-east-1:000000000000:function:hello"
    );
    assert_eq!(
        (&made["State"], &made["LastUpdateStatus"]),
        (&json!("Pending"), &json!("InProgress"))
    );
    assert_eq!(made["StateReasonCode"], "Creating");
    assert_eq!(
        (&made["Timeout"], &made["MemorySize"]),
        (&json!(3), &json!(128))
    );
    assert_eq!(made["CodeSize"], 8);
    let shown = settled(client, "hello").await?;
    assert_eq!(shown["Configuration"]["State"], "Active");
    assert_eq!(shown["Configuration"]["LastUpdateStatus"], "Successful");
    assert_eq!(lambda.runner.ready(), ["hello:$LATEST"]);

    let answer = invoke(client, "hello", &json!({"a": [1, "ü"]})).await?;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json::<Value>()?, json!({"a": [1, "ü"]}));
    assert_eq!(text(&answer, "x-amz-executed-version"), "$LATEST");
    assert_eq!(text(&answer, "x-aleph-temperature"), "warm");
    assert_eq!(
        text(&answer, "x-aleph-timings"),
        "queue=0.100,resume=0.000,function=2.600"
    );
    assert_eq!(lambda.runner.seen(), [text(&answer, "x-amzn-requestid")]);

    let gone = client.delete(&format!("{FUNCTIONS}/hello")).await?;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(lambda.runner.ready(), Vec::<String>::new());
    refused(
        &invoke(client, "hello", &json!(1)).await?,
        404,
        "ResourceNotFoundException",
    )?;
    for folder in ["code", "tasks"] {
        let left = std::fs::read_dir(root.path().join("functions").join(folder))?;
        assert_eq!(left.count(), 0, "{folder}");
    }
    lambda.server.close(&root).await
}

#[tokio::test]
async fn every_mistake_has_its_name_and_status() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    create(client, "hello", "app.handler").await?;
    let with = |key: &str, value: Value| {
        let mut all = new("other", "app.handler");
        all[key] = value;
        all
    };
    let invalid = "InvalidParameterValueException";
    for (body, status, kind) in [
        (new("hello", "h"), 409, "ResourceConflictException"),
        (new("he llo", "h"), 400, invalid),
        (new("hello:1", "h"), 400, invalid),
        (with("Runtime", json!("cobol74")), 400, invalid),
        (with("Runtime", Value::Null), 400, invalid),
        (with("Handler", json!("two words")), 400, invalid),
        (with("Handler", Value::Null), 400, invalid),
        (with("Role", Value::Null), 400, invalid),
        (with("Timeout", json!(0)), 400, invalid),
        (with("Timeout", json!(901)), 400, invalid),
        (with("MemorySize", json!(64)), 400, invalid),
        (with("EphemeralStorage", json!({"Size": 1})), 400, invalid),
        (with("Layers", json!(["arn:aws:lambda:x"])), 400, invalid),
        (with("VpcConfig", json!({"SubnetIds": ["s"]})), 400, invalid),
        (with("Architectures", json!(["mips"])), 400, invalid),
        (with("Code", json!({})), 400, invalid),
        (with("Code", json!({"S3Bucket": "b"})), 400, invalid),
        (with("Code", json!({"ZipFile": "%"})), 400, invalid),
        (
            with(
                "Code",
                json!({"ZipFile": BASE64_STANDARD.encode("no archive")}),
            ),
            400,
            invalid,
        ),
        (
            with("Environment", json!({"Variables": {"AWS_REGION": "x"}})),
            400,
            invalid,
        ),
        (
            with("Environment", json!({"Variables": {"A=": "x"}})),
            400,
            invalid,
        ),
        (
            with("Environment", json!({"Variables": {"A": "x".repeat(5000)}})),
            400,
            invalid,
        ),
        (
            with("Timeout", json!("x")),
            400,
            "InvalidRequestContentException",
        ),
        (
            with(
                "DeadLetterConfig",
                json!({"TargetArn": "arn:aws:sqs:a:b:c"}),
            ),
            400,
            invalid,
        ),
    ] {
        let answer = client.post(FUNCTIONS, body).await?;
        refused(&answer, status, kind)?;
    }
    let missing = "ResourceNotFoundException";
    for (method, path, body, status, kind) in [
        ("GET", "/2015-03-31/functions/absent", None, 404, missing),
        ("GET", "/2015-03-31/functions/hello:7", None, 404, missing),
        (
            "GET",
            "/2015-03-31/functions/hello?Qualifier=x",
            None,
            404,
            missing,
        ),
        (
            "GET",
            "/2015-03-31/functions?MaxItems=0",
            None,
            400,
            invalid,
        ),
        (
            "GET",
            "/2015-03-31/functions/hello/aliases/x",
            None,
            404,
            missing,
        ),
        ("DELETE", "/2015-03-31/functions/absent", None, 404, missing),
        (
            "DELETE",
            "/2015-03-31/functions/hello?Qualifier=$LATEST",
            None,
            400,
            invalid,
        ),
        (
            "POST",
            "/2015-03-31/functions/hello/invocations",
            Some("{"),
            400,
            "InvalidRequestContentException",
        ),
        (
            "POST",
            "/2015-03-31/functions/absent/invocations",
            Some("1"),
            404,
            missing,
        ),
        (
            "POST",
            "/2015-03-31/functions/hello/aliases",
            Some(r#"{"Name":"live","FunctionVersion":"9"}"#),
            404,
            missing,
        ),
        (
            "POST",
            "/2015-03-31/functions/hello/aliases",
            Some(r#"{"Name":"12","FunctionVersion":"$LATEST"}"#),
            400,
            invalid,
        ),
        (
            "PUT",
            "/2015-03-31/functions/hello/configuration",
            Some(r#"{"RevisionId":"x"}"#),
            412,
            "PreconditionFailedException",
        ),
        (
            "PUT",
            "/2015-03-31/functions/hello:1/configuration",
            Some("{}"),
            400,
            invalid,
        ),
        (
            "PUT",
            "/2017-10-31/functions/hello/concurrency",
            Some(r#"{"ReservedConcurrentExecutions":901}"#),
            400,
            invalid,
        ),
        (
            "GET",
            "/2019-09-30/functions/hello/provisioned-concurrency",
            None,
            400,
            invalid,
        ),
        (
            "GET",
            "/2019-09-25/functions/hello/event-invoke-config",
            None,
            404,
            missing,
        ),
        ("GET", "/2021-10-31/functions/hello/url", None, 404, missing),
        (
            "POST",
            "/2021-10-31/functions/hello/url",
            Some(r#"{"AuthType":"SOME"}"#),
            400,
            invalid,
        ),
        (
            "POST",
            "/2015-03-31/event-source-mappings",
            Some("{}"),
            400,
            invalid,
        ),
        (
            "PATCH",
            "/2015-03-31/functions",
            None,
            404,
            "UnknownOperationException",
        ),
        (
            "GET",
            "/2015-03-31/nothing",
            None,
            404,
            "UnknownOperationException",
        ),
    ] {
        let body = Full::from(body.unwrap_or_default());
        let request = client.request(method.parse()?, path).body(body)?;
        let answer = client.send(request).await?;
        refused(&answer, status, kind).context(path)?;
    }
    lambda.server.close(&root).await
}

#[tokio::test]
async fn all_names_of_a_function_lead_to_it() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    create(client, "hello", "about").await?;
    let arn = "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Ahello";
    for name in [
        "hello",
        "hello:$LATEST",
        "hello%3A%24LATEST",
        "000000000000:function:hello",
        arn,
        &arn.replace("%3A", ":"),
        &format!("{arn}%3A%24LATEST"),
        // What emulators of one function are asked for.
        "function",
    ] {
        let answer = invoke(client, name, &json!({})).await?;
        ensure!(answer.status == 200, "{name}: {answer:?}");
        assert_eq!(answer.json::<Value>()?["function"], "hello", "{name}");
    }
    create(client, "second", "about").await?;
    let answer = invoke(client, "function", &json!({})).await?;
    refused(&answer, 404, "ResourceNotFoundException")?;
    create(client, "function", "about").await?;
    let answer = invoke(client, "function", &json!({})).await?;
    assert_eq!(answer.json::<Value>()?["function"], "function");
    lambda.server.close(&root).await
}

#[tokio::test]
async fn errors_of_functions_and_of_the_node_are_told_apart() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    for handler in ["fail", "crash", "throttle", "big"] {
        create(client, handler, handler).await?;
    }
    let failed = invoke(client, "fail", &json!(1)).await?;
    assert_eq!(
        (
            failed.status.as_u16(),
            text(&failed, "x-amz-function-error")
        ),
        (200, "Handled")
    );
    assert_eq!(failed.json::<Value>()?["errorMessage"], "it failed");
    let crashed = invoke(client, "crash", &json!(1)).await?;
    assert_eq!(text(&crashed, "x-amz-function-error"), "Unhandled");
    let big = invoke(client, "big", &json!(1)).await?;
    assert_eq!(text(&big, "x-amz-function-error"), "Unhandled");
    assert_eq!(
        big.json::<Value>()?["errorType"],
        "Function.ResponseSizeTooLarge"
    );
    let full = invoke(client, "throttle", &json!(1)).await?;
    refused(&full, 429, "TooManyRequestsException")?;
    assert_eq!(text(&full, "retry-after"), "2");
    assert_eq!(
        full.json::<Value>()?["Reason"],
        "ConcurrentInvocationLimitExceeded"
    );

    let long = format!("\"{}\"", "x".repeat(6 << 20));
    let refusal = invoke_as(client, "fail", "RequestResponse", long.as_bytes()).await?;
    refused(&refusal, 413, "RequestTooLargeException")?;
    let long = &long.as_bytes()[..256 * 1024 + 1];
    let refusal = invoke_as(client, "fail", "Event", long).await?;
    refused(&refusal, 413, "RequestTooLargeException")?;

    let dry = invoke_as(client, "fail", "DryRun", b"{}").await?;
    assert_eq!((dry.status.as_u16(), dry.body.len()), (204, 0));
    let wrong = invoke_as(client, "fail", "Sometimes", b"{}").await?;
    refused(&wrong, 400, "InvalidParameterValueException")?;
    lambda.server.close(&root).await
}

#[tokio::test]
async fn what_cannot_be_prepared_says_why_and_what_served_goes_on() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    let broken = create(client, "broken", "broken.handler").await?;
    let configuration = &broken["Configuration"];
    assert_eq!(configuration["State"], "Failed");
    assert_eq!(
        configuration["StateReason"],
        "Unable to import module 'broken'"
    );
    let answer = invoke(client, "broken", &json!(1)).await?;
    refused(&answer, 409, "ResourceConflictException")?;

    create(client, "hello", "app.handler").await?;
    let path = format!("{FUNCTIONS}/hello/configuration");
    let update = json!({"Handler": "broken.now"});
    let answer = client.call(Method::PUT, &path, Some(update)).await?;
    assert_eq!(answer.json::<Value>()?["LastUpdateStatus"], "InProgress");
    let after = settled(client, "hello").await?;
    let configuration = &after["Configuration"];
    assert_eq!(configuration["State"], "Active");
    assert_eq!(configuration["LastUpdateStatus"], "Failed");
    assert_eq!(
        configuration["LastUpdateStatusReason"],
        "Unable to import module 'broken'"
    );
    assert_eq!(invoke(client, "hello", &json!(5)).await?.body, "5");
    // Nothing else is changed while a change is under way.
    let update = json!({"Handler": "slow.handler"});
    client
        .call(Method::PUT, &path, Some(update.clone()))
        .await?;
    let second = client.call(Method::PUT, &path, Some(update)).await?;
    refused(&second, 409, "ResourceConflictException")?;
    assert_eq!(invoke(client, "hello", &json!(6)).await?.body, "6");
    lambda.runner.let_go();
    let after = settled(client, "hello").await?;
    assert_eq!(after["Configuration"]["LastUpdateStatus"], "Successful");
    lambda.server.close(&root).await
}

#[tokio::test]
async fn versions_and_aliases_lead_where_they_say() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    create(client, "f", "about").await?;
    let publish = async || -> Result<Value> {
        let path = format!("{FUNCTIONS}/f/versions");
        let made: Value = client.post(&path, json!({})).await?.json()?;
        settled(
            client,
            &format!("f:{}", made["Version"].as_str().context("none")?),
        )
        .await?;
        Ok(made)
    };
    assert_eq!(publish().await?["Version"], "1");
    // What has not changed is not published twice.
    assert_eq!(publish().await?["Version"], "1");
    let path = format!("{FUNCTIONS}/f/configuration");
    let update = json!({"MemorySize": 256, "Environment": {"Variables": {"A": "b"}}});
    client.call(Method::PUT, &path, Some(update)).await?;
    settled(client, "f").await?;
    assert_eq!(publish().await?["Version"], "2");
    let versions: Value = client
        .get(&format!("{FUNCTIONS}/f/versions"))
        .await?
        .json()?;
    let versions = versions["Versions"].as_array().context("no list")?;
    let sizes: Vec<_> = versions
        .iter()
        .map(|v| (&v["Version"], &v["MemorySize"]))
        .collect();
    assert_eq!(
        sizes,
        [
            (&json!("$LATEST"), &json!(256)),
            (&json!("1"), &json!(128)),
            (&json!("2"), &json!(256))
        ]
    );

    let aliases = format!("{FUNCTIONS}/f/aliases");
    let live = json!({"Name": "live", "FunctionVersion": "1"});
    let made = client.post(&aliases, live.clone()).await?;
    assert_eq!(made.status, StatusCode::CREATED);
    refused(
        &client.post(&aliases, live).await?,
        409,
        "ResourceConflictException",
    )?;
    let answer = invoke(client, "f:live", &json!({})).await?;
    assert_eq!(text(&answer, "x-amz-executed-version"), "1");
    let about: Value = answer.json()?;
    assert_eq!(about["version"], "1");
    assert_eq!(
        about["arn"],
        "arn:aws:lambda:us-east-1:000000000000:function:f:live"
    );
    // All of its weight goes to the other version.
    let update = json!({"RoutingConfig": {"AdditionalVersionWeights": {"2": 1.0}}});
    let alias = format!("{aliases}/live");
    client.call(Method::PUT, &alias, Some(update)).await?;
    let answer = invoke(client, "f:live", &json!({})).await?;
    assert_eq!(text(&answer, "x-amz-executed-version"), "2");

    let gone = client.delete(&format!("{FUNCTIONS}/f?Qualifier=1")).await?;
    refused(&gone, 409, "ResourceConflictException")?;
    assert_eq!(client.delete(&alias).await?.status, StatusCode::NO_CONTENT);
    let gone = client.delete(&format!("{FUNCTIONS}/f?Qualifier=1")).await?;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(lambda.runner.ready(), ["f:$LATEST", "f:2"]);
    // A number is never used again.
    let update = json!({"MemorySize": 512});
    client.call(Method::PUT, &path, Some(update)).await?;
    settled(client, "f").await?;
    assert_eq!(publish().await?["Version"], "3");
    lambda.server.close(&root).await
}

#[tokio::test]
async fn concurrency_is_reserved_provisioned_and_given_back() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    create(client, "f", "hold").await?;
    let path = "/2017-10-31/functions/f/concurrency";
    let one = json!({"ReservedConcurrentExecutions": 1});
    let kept = client.call(Method::PUT, path, Some(one.clone())).await?;
    assert_eq!(kept.json::<Value>()?, one);
    let shown: Value = client
        .get("/2019-09-30/functions/f/concurrency")
        .await?
        .json()?;
    assert_eq!(shown, one);
    let first = tokio::spawn({
        let client = client.clone();
        async move { invoke(&client, "f", &json!(1)).await }
    });
    until("the first to run", async || {
        Ok((lambda.runner.seen().len() == 1).then_some(()))
    })
    .await?;
    let second = invoke(client, "f", &json!(2)).await?;
    refused(&second, 429, "TooManyRequestsException")?;
    assert_eq!(
        second.json::<Value>()?["Reason"],
        "ReservedFunctionConcurrentInvocationLimitExceeded"
    );
    lambda.runner.let_go();
    assert_eq!(first.await??.body, "1");
    assert_eq!(invoke(client, "f", &json!(3)).await?.body, "3");
    let limits: Value = client.get("/2016-08-19/account-settings").await?.json()?;
    assert_eq!(
        limits["AccountLimit"]["UnreservedConcurrentExecutions"],
        999
    );
    assert_eq!(limits["AccountUsage"]["FunctionCount"], 1);
    assert_eq!(client.delete(path).await?.status, StatusCode::NO_CONTENT);

    client
        .post(&format!("{FUNCTIONS}/f/versions"), json!({}))
        .await?;
    settled(client, "f:1").await?;
    let path = "/2019-09-30/functions/f/provisioned-concurrency?Qualifier=1";
    let wanted = json!({"ProvisionedConcurrentExecutions": 3});
    let answer = client.call(Method::PUT, path, Some(wanted)).await?;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let shown: Value = client.get(path).await?.json()?;
    assert_eq!(shown["Status"], "READY");
    assert_eq!(lambda.runner.kept().get("f:1"), Some(&3));
    // All qualifiers of a function together are kept ready within what it may run.
    let alias = json!({"Name": "live", "FunctionVersion": "1"});
    let made = client
        .post(&format!("{FUNCTIONS}/f/aliases"), alias)
        .await?;
    assert_eq!(made.status, StatusCode::CREATED);
    let live = "/2019-09-30/functions/f/provisioned-concurrency?Qualifier=live";
    let provision = async |clones: u32| {
        let wanted = json!({"ProvisionedConcurrentExecutions": clones});
        client.call(Method::PUT, live, Some(wanted)).await
    };
    let reserve = async |most: u32| {
        let path = "/2017-10-31/functions/f/concurrency";
        let wanted = json!({"ReservedConcurrentExecutions": most});
        client.call(Method::PUT, path, Some(wanted)).await
    };
    let invalid = "InvalidParameterValueException";
    refused(&provision(998).await?, 400, invalid)?;
    refused(&reserve(2).await?, 400, invalid)?;
    assert_eq!(reserve(5).await?.status, StatusCode::OK);
    refused(&provision(3).await?, 400, invalid)?;
    assert_eq!(provision(2).await?.status, StatusCode::ACCEPTED);
    assert_eq!(client.delete(live).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(client.delete(path).await?.status, StatusCode::NO_CONTENT);
    assert!(lambda.runner.kept().is_empty());
    refused(
        &client.get(path).await?,
        404,
        "ProvisionedConcurrencyConfigNotFoundException",
    )?;
    lambda.server.close(&root).await
}

#[tokio::test]
async fn functions_are_listed_in_pages() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    for name in ["c", "a", "e", "b", "d"] {
        create(client, name, "app.handler").await?;
    }
    let mut path = format!("{FUNCTIONS}?MaxItems=2");
    let (mut names, mut pages) = (Vec::new(), 0);
    while pages < 10 {
        let page: Value = client.get(&path).await?.json()?;
        pages += 1;
        for function in page["Functions"].as_array().context("no list")? {
            names.push(
                function["FunctionName"]
                    .as_str()
                    .context("no name")?
                    .to_owned(),
            );
        }
        let Some(marker) = page["NextMarker"].as_str() else {
            break;
        };
        path = format!("{FUNCTIONS}/?MaxItems=2&Marker={marker}");
    }
    assert_eq!((pages, names.concat()), (3, "abcde".into()));
    lambda.server.close(&root).await
}

#[tokio::test]
async fn what_was_answered_is_there_for_the_next_daemon() -> Result<()> {
    let root = TestRoot::empty()?;
    let config = config(&root);
    let lambda = Lambda::start(&config, Arc::default()).await?;
    let client = &lambda.client;
    create(client, "f", "app.handler").await?;
    let slow = client.post(FUNCTIONS, new("slow", "slow.handler")).await?;
    ensure!(slow.status == StatusCode::CREATED, "{slow:?}");
    client
        .post(&format!("{FUNCTIONS}/f/versions"), json!({}))
        .await?;
    settled(client, "f:1").await?;
    let alias = json!({"Name": "live", "FunctionVersion": "1", "Description": "it"});
    client
        .post(&format!("{FUNCTIONS}/f/aliases"), alias)
        .await?;
    let tags = json!({"Tags": {"team": "blue"}});
    let arn = "arn:aws:lambda:us-east-1:000000000000:function:f";
    client
        .post(&format!("/2017-03-31/tags/{arn}"), tags.clone())
        .await?;
    let url = json!({"AuthType": "NONE"});
    client.post("/2021-10-31/functions/f/url", url).await?;
    let before: Value = client.get(&format!("{FUNCTIONS}/f")).await?.json()?;
    lambda.server.stop().await?;

    let runner = Arc::new(ScriptedRunner::default());
    runner.let_go();
    let lambda = Lambda::start(&config, runner).await?;
    let client = &lambda.client;
    let after: Value = client.get(&format!("{FUNCTIONS}/f")).await?.json()?;
    assert_eq!(before, after);
    assert_eq!(after["Tags"], tags["Tags"]);
    // What was being prepared is prepared again.
    let slow = settled(client, "slow").await?;
    assert_eq!(slow["Configuration"]["State"], "Active");
    // A runner that lost what it had is helped.
    let answer = invoke(client, "f:live", &json!("again")).await?;
    assert_eq!(answer.body, "\"again\"");
    let url: Value = client.get("/2021-10-31/functions/f/url").await?.json()?;
    assert_eq!(url["AuthType"], "NONE");
    lambda.server.close(&root).await
}

#[tokio::test]
async fn events_run_later_again_and_after_a_restart() -> Result<()> {
    let root = TestRoot::empty()?;
    let mut config = config(&root);
    config.api.drain = std::time::Duration::from_millis(100);
    let lambda = Lambda::start(&config, Arc::default()).await?;
    let client = &lambda.client;
    create(client, "held", "hold").await?;
    create(client, "once", "app.handler").await?;
    let taken = invoke_as(client, "once", "Event", b"{\"n\":1}").await?;
    assert_eq!((taken.status.as_u16(), taken.body.len()), (202, 0));
    let id = text(&taken, "x-amzn-requestid").to_owned();
    until("the event to run", async || {
        Ok(lambda.runner.seen().contains(&id).then_some(()))
    })
    .await?;
    // One that is under way when the node stops runs again, under the same id.
    let taken = invoke_as(client, "held", "Event", b"2").await?;
    let id = text(&taken, "x-amzn-requestid").to_owned();
    until("the event to begin", async || {
        Ok(lambda.runner.seen().contains(&id).then_some(()))
    })
    .await?;
    lambda.server.stop().await?;
    let runner = Arc::new(ScriptedRunner::default());
    runner.let_go();
    let lambda = Lambda::start(&config, runner).await?;
    until("the event to run again", async || {
        Ok(lambda.runner.seen().contains(&id).then_some(()))
    })
    .await?;
    assert_eq!(
        lambda.runner.seen(),
        [id],
        "what was done is not done again"
    );
    lambda.server.close(&root).await
}

#[tokio::test]
async fn an_event_that_fails_is_told_to_its_destination_and_kept() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    create(client, "crash", "crash").await?;
    create(client, "told", "about").await?;
    let config = json!({
        "MaximumRetryAttempts": 0,
        "DestinationConfig": { "OnFailure": {
            "Destination": "arn:aws:lambda:us-east-1:000000000000:function:told",
        }},
    });
    let path = "/2019-09-25/functions/crash/event-invoke-config";
    let set = client.call(Method::PUT, path, Some(config.clone())).await?;
    ensure!(set.status == 200, "{set:?}");
    let shown: Value = client.get(path).await?.json()?;
    assert_eq!(shown["MaximumRetryAttempts"], 0);
    let taken = invoke_as(client, "crash", "Event", b"{\"n\":1}").await?;
    let id = text(&taken, "x-amzn-requestid").to_owned();
    until("the destination to be told", async || {
        Ok((lambda.runner.seen().len() == 2).then_some(()))
    })
    .await?;
    let letters = std::fs::read_to_string(
        root.path()
            .join("functions/dead-letters/default/letters.jsonl"),
    )?;
    let letter: Value = serde_json::from_str(&letters)?;
    assert_eq!(letter["requestContext"]["requestId"], id);
    assert_eq!(letter["requestContext"]["condition"], "RetriesExhausted");
    assert_eq!(letter["requestContext"]["approximateInvokeCount"], 1);
    assert_eq!(letter["requestPayload"], json!({"n": 1}));
    assert_eq!(letter["responsePayload"]["errorMessage"], "it crashed");
    lambda.server.close(&root).await
}

#[tokio::test]
async fn accounts_have_functions_of_their_own_and_strangers_have_none() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let local = lambda.server.local();
    create(&lambda.client, "f", "about").await?;
    // The node's own API leads to the same functions, for whom it knows.
    let path = format!("/lambda{FUNCTIONS}");
    let all: Value = local.get(&path).await?.json()?;
    assert_eq!(all["Functions"][0]["FunctionName"], "f");
    let token = local.token("team").await?;
    let as_team = |method: Method, path: &str| {
        local
            .request(method, path)
            .header("Authorization", format!("Bearer {token}"))
    };
    let request = as_team(Method::GET, &path).body(Full::default())?;
    let none: Value = local.send(request).await?.json()?;
    assert_eq!(none["Functions"], json!([]));
    let request = as_team(Method::DELETE, &format!("{path}/f")).body(Full::default())?;
    refused(
        &local.send(request).await?,
        404,
        "ResourceNotFoundException",
    )?;
    // A browser's page of somebody else's may not ask.
    let request = lambda
        .client
        .request(Method::GET, FUNCTIONS)
        .header("Origin", "https://example.org")
        .body(Full::default())?;
    refused(
        &lambda.client.send(request).await?,
        403,
        "AccessDeniedException",
    )?;
    lambda.server.close(&root).await
}

#[tokio::test]
async fn with_credentials_only_who_signs_is_heard() -> Result<()> {
    let root = TestRoot::empty()?;
    let keys = "[functions]\ncredentials = [{ access_key_id = 'AK', secret_access_key = 's', \
                account = 'team' }]";
    let mut config = config(&root);
    config.functions.credentials = Config::check(keys)
        .map_err(|problems| anyhow::anyhow!("{problems:?}"))?
        .functions
        .credentials;
    let lambda = Lambda::start(&config, Arc::default()).await?;
    let answer = lambda.client.get(FUNCTIONS).await?;
    refused(&answer, 403, "MissingAuthenticationTokenException")?;
    // One who does not have a key does not even get a body through.
    let request = lambda
        .client
        .request(Method::POST, FUNCTIONS)
        .header(
            "Authorization",
            format!(
                "AWS4-HMAC-SHA256 Credential=OTHER/20261128/us-east-1/lambda/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature={}",
                "0".repeat(64)
            ),
        )
        .header("Content-Length", 1_000_000)
        .body(Full::default())?;
    let answer = lambda.client.send(request).await?;
    refused(&answer, 403, "UnrecognizedClientException")?;
    lambda.server.close(&root).await
}

/// What has been written is with the client before the function goes on, which it does once the
/// client has it.
#[tokio::test]
async fn a_streamed_response_comes_as_it_is_written() -> Result<()> {
    let root = TestRoot::empty()?;
    let lambda = start(&root).await?;
    let client = &lambda.client;
    create(client, "pieces", "pieces").await?;
    let path = "/2021-11-15/functions/pieces/response-streaming-invocations";
    let request = client.request(Method::POST, path).body(Full::from("{}"))?;
    let begun = tokio::time::timeout(LIMIT, client.begin(request)).await??;
    assert_eq!(begun.headers()["x-amz-executed-version"], "$LATEST");
    let mut body = begun.into_body();
    let mut came = Vec::new();
    while !contains(&came, b"first") {
        let frame = tokio::time::timeout(LIMIT, body.frame()).await?;
        let frame = frame.context("it ended early")??;
        came.extend(frame.into_data().unwrap_or_default());
    }
    assert!(!contains(&came, b"InvokeComplete"));
    lambda.runner.let_go();
    while let Some(frame) = tokio::time::timeout(LIMIT, body.frame()).await? {
        came.extend(frame?.into_data().unwrap_or_default());
    }
    assert!(contains(&came, b"last") && contains(&came, b"InvokeComplete"));
    lambda.server.close(&root).await
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|at| at == part)
}
