//! Messages of a real server of NATS, through a real daemon, to functions without VMs.

mod support;

use aleph_control::lambda::NatsServer as Listed;
use aleph_testkit::NatsServer;
use anyhow::{Context as _, Result, ensure};
use async_nats::ConnectOptions;
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use support::nats::{SOURCES, World};
use support::until;

/// What makes messages of a subject requests.
fn reply() -> Value {
    json!({ "FunctionResponseTypes": ["Reply"] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_answered_by_a_function() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    world.function("fail", "fail").await?;
    world.map("echo", "ask.*", reply()).await?;
    world.map("fail", "fail", reply()).await?;
    let answer = world.client.request("ask.x", "hello".into()).await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    let [record] = &answer["Records"].as_array().context("no records")?[..] else {
        anyhow::bail!("{answer}")
    };
    assert_eq!(
        (&record["subject"], &record["data"]),
        (&json!("ask.x"), &json!("aGVsbG8="))
    );
    ensure!(record["reply"].is_string(), "{record}");
    let answer = world.client.request("fail", "hello".into()).await?;
    let headers = answer.headers.context("no headers")?;
    let code = headers.get("Nats-Service-Error-Code").context("no code")?;
    assert_eq!(code.as_str(), "500");
    let says: Value = serde_json::from_slice(&answer.payload)?;
    assert_eq!(says["errorMessage"], "it failed");
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_subject_are_events_that_are_tried_again() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    world.function("fail", "fail").await?;
    let id = world.map("echo", "orders.>", json!({})).await?;
    for number in 0..200 {
        let subject = format!("orders.{number}");
        world
            .client
            .publish(subject, number.to_string().into())
            .await?;
    }
    let got = until("all messages", async || {
        let numbers = world.numbers()?;
        Ok((numbers.len() >= 200).then_some(numbers))
    });
    let got: BTreeSet<u32> = got.await?.into_iter().collect();
    assert_eq!(got, (0..200).collect());
    world.result(&id, "OK").await?;
    // Of several messages an event is made.
    let more = json!({ "BatchSize": 3, "MaximumBatchingWindowInSeconds": 60 });
    world.map("echo", "many", more).await?;
    let before = world.records()?.len();
    for number in 0..6 {
        world
            .client
            .publish("many", number.to_string().into())
            .await?;
    }
    until("two events", async || {
        let sizes: Vec<_> = world.records()?[before..]
            .iter()
            .map(|(_, r)| r.len())
            .collect();
        Ok((sizes == [3, 3]).then_some(()))
    })
    .await?;
    // An event of a function that is gone is a dead letter.
    let id = world.map("fail", "gone", json!({})).await?;
    world
        .lambda
        .client
        .delete("/2015-03-31/functions/fail")
        .await?;
    world
        .client
        .publish("gone", Bytes::from_static(b"7"))
        .await?;
    world.result(&id, "does not exist").await?;
    until("a dead letter", async || {
        Ok((!world.letters()?.is_empty()).then_some(()))
    })
    .await?;
    let letter = &world.letters()?[0];
    assert_eq!(letter["requestContext"]["condition"], "FunctionNotFound");
    assert_eq!(letter["requestPayload"]["Records"][0]["data"], "Nw==");
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_answered_where_its_mapping_says_so_alone() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    // A stream answers whoever publishes to it, and so must nobody else.
    world.stream("ORDERS", "orders").await?;
    let id = world.map("echo", "orders", json!({})).await?;
    world.put("orders", 0..20).await?;
    let got = until("all messages", async || {
        let numbers = world.numbers()?;
        Ok((numbers.len() >= 20).then_some(numbers))
    });
    let got: BTreeSet<u32> = got.await?.into_iter().collect();
    assert_eq!(got, (0..20).collect());
    let inbox = world.client.new_inbox();
    let mut answers = world.client.subscribe(inbox.clone()).await?;
    let client = &world.client;
    client
        .publish_with_reply("orders", inbox.clone(), "20".into())
        .await?;
    let answer = answers.next().await.context("no answer")?;
    ensure!(answer.payload.starts_with(b"{\"stream\""), "{answer:?}");
    until("the message", async || {
        Ok(world.numbers()?.contains(&20).then_some(()))
    })
    .await?;
    // What is published after it comes after whatever it was answered with.
    world.result(&id, "OK").await?;
    client.publish(inbox, "the end".into()).await?;
    let next = answers.next().await.context("no message")?;
    assert_eq!(next.payload, "the end");
    let twice = json!({ "FunctionResponseTypes": ["Reply"], "BatchSize": 2 });
    let path = format!("{SOURCES}/{id}");
    let refused = world.lambda.client.call(Method::PUT, &path, Some(twice));
    assert_eq!(refused.await?.status, StatusCode::BAD_REQUEST);
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_come_is_an_event_also_where_its_mapping_ends() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    let more = json!({ "BatchSize": 100, "MaximumBatchingWindowInSeconds": 300 });
    let id = world.map("echo", "orders", more).await?;
    for number in 0..3 {
        let payload = number.to_string().into();
        world.client.publish("orders", payload).await?;
    }
    // Once it answers the server has given them, and nobody has asked it yet not to.
    world.client.request("$JS.API.INFO", "".into()).await?;
    world.update(&id, json!({ "Enabled": false })).await?;
    let got = until("what had come", async || {
        let numbers = world.numbers()?;
        Ok((!numbers.is_empty()).then_some(numbers))
    });
    assert_eq!(got.await?, [0, 1, 2]);
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_begins_with_a_wildcard_has_nothing_of_the_servers() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    world.map("echo", ">", json!({})).await?;
    for (subject, number) in [("$JS.x", "1"), ("_INBOX.x", "2"), ("orders.new", "3")] {
        world.client.publish(subject, number.into()).await?;
    }
    let got = until("a message", async || {
        let numbers = world.numbers()?;
        Ok(numbers.contains(&3).then_some(numbers))
    });
    assert_eq!(got.await?, [3]);
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_larger_than_an_event_is_a_dead_letter() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    world.map("echo", "large", json!({})).await?;
    let large = Bytes::from(vec![b'1'; 256 << 10]);
    world.client.publish("large", large).await?;
    until("a dead letter", async || {
        Ok((!world.letters()?.is_empty()).then_some(()))
    })
    .await?;
    let letter = &world.letters()?[0];
    assert_eq!(letter["requestContext"]["condition"], "EventTooLarge");
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_taken_from_its_beginning_and_acknowledged() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    world.stream("ORDERS", "orders.*").await?;
    world.put("orders.new", 0..20).await?;
    world.put("orders.old", 100..110).await?;
    let more = json!({ "BatchSize": 5 });
    let id = world
        .map("echo", "jetstream:ORDERS/orders.new", more)
        .await?;
    world.until_done("ORDERS", &id).await?;
    assert_eq!(world.numbers()?, (0..20).collect::<Vec<_>>());
    let events = world.records()?;
    ensure!(
        events.iter().all(|(_, records)| records.len() <= 5),
        "{events:?}"
    );
    let first = &events[0].1[0];
    assert_eq!(
        (
            &first["stream"],
            &first["sequence"],
            &first["messageId"],
            &first["deliveries"]
        ),
        (&json!("ORDERS"), &json!(1), &json!("1"), &json!(1))
    );
    world.result(&id, "OK").await?;
    // Nothing is taken while it rests, and nothing is left out.
    world.update(&id, json!({ "Enabled": false })).await?;
    world.state(&id, "Disabled").await?;
    world.put("orders.new", 20..25).await?;
    let changed = world
        .update(&id, json!({ "Enabled": true, "BatchSize": 2 }))
        .await?;
    assert_eq!(
        (&changed["State"], &changed["BatchSize"]),
        (&json!("Enabling"), &json!(2))
    );
    world.state(&id, "Enabled").await?;
    world.until_done("ORDERS", &id).await?;
    let got: BTreeSet<_> = world.numbers()?.into_iter().collect();
    assert_eq!(got, (0..25).collect());
    // The consumer goes with the mapping.
    let path = format!("{SOURCES}/{id}");
    let gone: Value = world.lambda.client.delete(&path).await?.json()?;
    assert_eq!(gone["State"], "Deleting");
    assert_eq!(
        world.lambda.client.get(&path).await?.status,
        StatusCode::NOT_FOUND
    );
    until("a consumer to go", async || {
        Ok(world.left("ORDERS", &id).await.err())
    })
    .await?;
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_as_many_messages_as_are_wanted_and_no_more() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    world.stream("MANY", "many").await?;
    world.put("many", 0..700).await?;
    let more = json!({ "BatchSize": 600 });
    let id = world.map("echo", "jetstream:MANY", more).await?;
    world.until_done("MANY", &id).await?;
    let sizes: Vec<_> = world.records()?.iter().map(|(_, r)| r.len()).collect();
    assert_eq!(sizes, [600, 100]);
    assert_eq!(world.numbers()?, (0..700).collect::<Vec<_>>());
    // As much as an event may hold, and the rest in the next one.
    world.stream("LARGE", "large").await?;
    for _ in 0..8 {
        let large = Bytes::from(vec![b'1'; 900_000]);
        let context = async_nats::jetstream::new(world.client.clone());
        context.publish("large", large).await?.await?;
    }
    let before = world.records()?.len();
    let id = world.map("echo", "jetstream:LARGE", json!({})).await?;
    world.until_done("LARGE", &id).await?;
    let events = world.lambda.runner.events().split_off(before);
    ensure!(events.len() > 1, "one event holds all");
    ensure!(
        events.iter().all(|(_, event)| event.len() <= 6 << 20),
        "too large"
    );
    let got: usize = world.records()?[before..]
        .iter()
        .map(|(_, r)| r.len())
        .sum();
    assert_eq!(got, 8);
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_one_function_is_in_the_way_of_no_other() -> Result<()> {
    let world = World::up().await?;
    world.function("throttle", "throttle").await?;
    world.function("echo", "app.echo").await?;
    world.stream("FULL", "full.*").await?;
    // More events than may run at once.
    for n in 0..4 {
        let subject = format!("full.{n}");
        world.put(&subject, 0..10).await?;
        let more = json!({ "BatchSize": 1, "ParallelizationFactor": 10 });
        let topic = format!("jetstream:FULL/{subject}");
        let id = world.map("throttle", &topic, more).await?;
        until("ten events that wait", async || {
            Ok((world.left("FULL", &id).await? == (0, 10)).then_some(()))
        })
        .await?;
    }
    world.stream("ORDERS", "orders").await?;
    world.put("orders", 0..3).await?;
    let id = world.map("echo", "jetstream:ORDERS", json!({})).await?;
    world.until_done("ORDERS", &id).await?;
    assert_eq!(world.numbers()?, [0, 1, 2]);
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_comes_again_under_the_same_id_until_it_is_given_up() -> Result<()> {
    let world = World::up().await?;
    world.function("flaky", "flaky").await?;
    world.function("fail", "fail").await?;
    let rejects = r#"say:{"batchItemFailures":[{"itemIdentifier":"2"}]}"#;
    world.function("picky", rejects).await?;
    for name in ["FLAKY", "FAIL", "PICKY"] {
        world.stream(name, &name.to_lowercase()).await?;
        world.put(&name.to_lowercase(), 0..3).await?;
    }
    let one = json!({ "BatchSize": 1 });
    let flaky = world.map("flaky", "jetstream:FLAKY", one).await?;
    world.until_done("FLAKY", &flaky).await?;
    let mut counts = std::collections::BTreeMap::new();
    for (request, _) in world.records()? {
        *counts.entry(request).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [3, 3, 3]);
    assert_eq!(world.letters()?, Vec::<Value>::new());
    // Tried twice, and then a dead letter.
    let few = json!({ "BatchSize": 1, "MaximumRetryAttempts": 1 });
    let before = world.records()?.len();
    let fail = world.map("fail", "jetstream:FAIL", few).await?;
    world.until_done("FAIL", &fail).await?;
    let tries = world.records()?[before..]
        .iter()
        .map(|(id, _)| id.clone())
        .collect::<Vec<_>>();
    assert_eq!(
        (tries.len(), BTreeSet::from_iter(&tries).len()),
        (6, 3),
        "{tries:?}"
    );
    let letters = world.letters()?;
    let told: BTreeSet<_> = letters
        .iter()
        .map(|letter| {
            assert_eq!(letter["requestContext"]["condition"], "RetriesExhausted");
            letter["requestContext"]["requestId"]
                .as_str()
                .unwrap_or_default()
        })
        .collect();
    assert_eq!(told, tries.iter().map(String::as_str).collect());
    // Of an event that failed in part, that part comes again.
    let partial = json!({
        "BatchSize": 3, "MaximumRetryAttempts": 1,
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
    });
    let before = world.records()?.len();
    let picky = world.map("picky", "jetstream:PICKY", partial).await?;
    world.until_done("PICKY", &picky).await?;
    let numbers = world
        .records()?
        .split_off(before)
        .into_iter()
        .map(|(_, records)| {
            let numbers = records.iter().map(|record| record["sequence"].as_u64());
            numbers.collect::<Option<Vec<_>>>()
        });
    let numbers: Option<Vec<_>> = numbers.collect();
    assert_eq!(numbers, Some(vec![vec![1, 2, 3], vec![2]]));
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_found_again() -> Result<()> {
    let mut world = World::up().await?;
    world.function("echo", "app.echo").await?;
    world.stream("ORDERS", "orders").await?;
    let stream = world
        .map("echo", "jetstream:ORDERS", json!({ "BatchSize": 1 }))
        .await?;
    let subject = world.map("echo", "ask", reply()).await?;
    world.put("orders", 0..5).await?;
    world.until_done("ORDERS", &stream).await?;
    tokio::task::block_in_place(|| world.nats.kill())?;
    for id in [&stream, &subject] {
        world.result(id, "PROBLEM").await?;
        assert_eq!(world.shown(id).await?["State"], "Enabled");
    }
    // A mapping that is made while it is away is told so, and waits.
    let mut wanted = world.wanted("echo", "late");
    wanted["FunctionResponseTypes"] = json!(["Reply"]);
    let late: Value = world.lambda.client.post(SOURCES, wanted).await?.json()?;
    let late = late["UUID"].as_str().context("no id")?;
    world.result(late, "PROBLEM: Cannot connect").await?;
    tokio::task::block_in_place(|| world.nats.restart())?;
    until("a client that is back", async || {
        let answer = world.client.request("ask", "1".into());
        Ok(tokio::time::timeout(Duration::from_secs(1), answer)
            .await
            .is_ok_and(|a| a.is_ok())
            .then_some(()))
    })
    .await?;
    world.put("orders", 5..10).await?;
    world.until_done("ORDERS", &stream).await?;
    let got: BTreeSet<_> = world.numbers()?.into_iter().collect();
    ensure!((0..10).all(|number| got.contains(&number)), "{got:?}");
    world.result(late, "No records processed").await?;
    until("an answer", async || {
        let answer = world.client.request("late", "1".into());
        Ok(tokio::time::timeout(Duration::from_secs(1), answer)
            .await
            .is_ok_and(|a| a.is_ok())
            .then_some(()))
    })
    .await?;
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_spoken_with_as_its_operator_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (c, k) = (text(&certificate), text(&key));
    let words = ["--tls", "--tlscert", &c, "--tlskey", &k];
    let nats = tokio::task::block_in_place(|| NatsServer::start_with(&words))?;
    let options = ConnectOptions::new().add_root_certificates(certificate.clone());
    let client = options.connect(nats.address()).await?;
    // With the certificates of the host, its own leads nowhere.
    let wrong = Listed {
        tls: true,
        ..Listed::default()
    };
    let world = World::with(nats, client.clone(), wrong).await?;
    world.function("echo", "app.echo").await?;
    let wanted = world.wanted("echo", "ask");
    let made: Value = world.lambda.client.post(SOURCES, wanted).await?.json()?;
    let id = made["UUID"].as_str().context("no id")?;
    world.result(id, "PROBLEM: Cannot connect").await?;
    let nats = world.close().await?;
    let right = Listed {
        tls: true,
        tls_ca: Some(certificate),
        ..Listed::default()
    };
    let world = World::with(nats, client, right).await?;
    world.function("echo", "app.echo").await?;
    world.map("echo", "ask", reply()).await?;
    let answer = world.client.request("ask", "hello".into()).await?;
    ensure!(answer.payload.starts_with(b"{\"Records\""), "{answer:?}");
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_go_together_that_are_spoken_with_in_one_way() -> Result<()> {
    let listed = Listed {
        server: "127.0.0.1:1".into(),
        tls: true,
        ..Listed::default()
    };
    let world = World::beside(listed).await?;
    world.function("echo", "app.echo").await?;
    let mut wanted = world.wanted("echo", "orders");
    let servers = json!([world.nats.address(), "127.0.0.1:1"]);
    wanted["SelfManagedEventSource"]["Endpoints"]["NATS_SERVERS"] = servers;
    let refused = world.lambda.client.post(SOURCES, wanted).await?;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    let refused: Value = refused.json()?;
    let message = refused["Message"].as_str().unwrap_or_default();
    ensure!(message.contains("different ways"), "{message}");
    world.close().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_servers_that_are_listed_may_be_named() -> Result<()> {
    let world = World::up().await?;
    world.function("echo", "app.echo").await?;
    let client = &world.lambda.client;
    let not_listed = json!({ "Endpoints": { "NATS_SERVERS": ["127.0.0.1:1"] } });
    let kafka = json!({ "Endpoints": { "KAFKA_BOOTSTRAP_SERVERS": [world.nats.address()] } });
    for (key, value, says) in [
        ("SelfManagedEventSource", not_listed, "[functions] nats"),
        ("SelfManagedEventSource", kafka, "NATS_SERVERS"),
        (
            "SelfManagedEventSource",
            Value::Null,
            "selfManagedEventSource",
        ),
        ("Topics", json!([]), "one topic"),
        ("Topics", json!(["a..b"]), "no subject"),
        ("Topics", json!(["$SYS.>"]), "NATS's own"),
        ("BatchSize", json!(0), "batchSize"),
        (
            "FunctionResponseTypes",
            json!(["ReportBatchItemFailures"]),
            "[Reply]",
        ),
        ("MaximumRetryAttempts", json!(3), "EventInvokeConfig"),
        ("FilterCriteria", json!({}), "FilterCriteria"),
        (
            "EventSourceArn",
            json!("arn:aws:sqs:us-east-1:0:q"),
            "EventSourceArn",
        ),
    ] {
        let mut wanted = world.wanted("echo", "a");
        wanted[key] = value;
        let refused = client.post(SOURCES, wanted).await?;
        assert_eq!(
            refused.status,
            StatusCode::BAD_REQUEST,
            "{key}: {refused:?}"
        );
        let refused: Value = refused.json()?;
        let message = refused["Message"].as_str().unwrap_or_default();
        ensure!(message.contains(says), "{key}: {message}");
    }
    let missing = client.post(SOURCES, world.wanted("none", "a")).await?;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let id = world.map("echo", "a", json!({})).await?;
    let mut twin = world.wanted("echo", "a");
    let other = format!("nats://{}", world.nats.address());
    twin["SelfManagedEventSource"]["Endpoints"]["NATS_SERVERS"] = json!([other]);
    let twin = client.post(SOURCES, twin).await?;
    assert_eq!(twin.status, StatusCode::CONFLICT);
    // A stream that there is not is a problem until there is one.
    let stream = client
        .post(SOURCES, world.wanted("echo", "jetstream:LATE"))
        .await?;
    let stream: Value = stream.json()?;
    let stream = stream["UUID"].as_str().context("no id")?;
    world.result(stream, "PROBLEM: JetStream's LATE").await?;
    world.stream("LATE", "late").await?;
    world.put("late", 0..1).await?;
    world.result(stream, "OK").await?;
    let listed: Value = client
        .get(&format!("{SOURCES}?FunctionName=echo&MaxItems=1"))
        .await?
        .json()?;
    assert_eq!(
        listed["EventSourceMappings"].as_array().map(Vec::len),
        Some(1)
    );
    ensure!(listed["NextMarker"].is_string(), "{listed}");
    let none: Value = client
        .get(&format!("{SOURCES}?FunctionName=other"))
        .await?
        .json()?;
    assert_eq!(none["EventSourceMappings"], json!([]));
    ensure!(!id.is_empty());
    world.close().await.map(drop)
}
