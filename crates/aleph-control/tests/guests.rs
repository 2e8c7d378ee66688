//! The API of a real daemon with real guests.

mod support;

use aleph_testkit::TestRoot;
use aleph_types::{ExitStatus, Health, Job, JobState};
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Client, Io, LIMIT, Server, config, until};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Message};

type Socket = WebSocketStream<Box<dyn Io>>;

async fn open(client: &Client, path: &str) -> Result<Socket> {
    let io = client.connect().await?;
    let uri = format!("ws://localhost{path}").parse()?;
    let (socket, _) = tokio_tungstenite::client_async(ClientRequestBuilder::new(uri), io).await?;
    Ok(socket)
}

/// What a session told until its end: standard output, standard error, its last word.
async fn session(socket: &mut Socket) -> Result<(String, String, Value)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let message = timeout(LIMIT, socket.next()).await?;
        match message.context("the session ended")?? {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((1, data)) => out.extend(data),
                Some((2, data)) => err.extend(data),
                other => bail!("{other:?}"),
            },
            Message::Text(text) => {
                let word: Value = serde_json::from_str(text.as_str())?;
                if word.get("started").is_none() {
                    return Ok((String::from_utf8(out)?, String::from_utf8(err)?, word));
                }
            }
            other => bail!("{other:?}"),
        }
    }
}

async fn exec(client: &Client, job: &str, start: Value) -> Result<(String, String, Value)> {
    let mut socket = open(client, &format!("/v1/jobs/{job}/exec")).await?;
    socket.send(Message::text(start.to_string())).await?;
    session(&mut socket).await
}

/// The output in docker's form: standard output, standard error.
fn demultiplex(mut bytes: &[u8]) -> Result<(String, String)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at_checked(8).context("half a header")?;
        let length = u32::from_be_bytes(head[4..].try_into()?);
        let (data, rest) = rest
            .split_at_checked(usize::try_from(length)?)
            .context("half a frame")?;
        match head[0] {
            1 => out.extend(data),
            2 => err.extend(data),
            other => bail!("stream {other}"),
        }
        bytes = rest;
    }
    Ok((String::from_utf8(out)?, String::from_utf8(err)?))
}

#[tokio::test]
async fn a_job_lives_its_life_over_the_api() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    let spec = "image: busybox\nname: life\ncommand:\n  - sh\n  - -c\n  - |\n    echo out; echo err >&2; \
                echo half | tr -d '\\n'; trap 'exit 5' TERM; while :; do sleep 0.1; done\n";
    let request = client
        .request(Method::POST, "/v1/jobs")
        .header(CONTENT_TYPE, "application/yaml")
        .body(Full::from(spec))?;
    let answer = client.send(request).await?;
    ensure!(answer.status == StatusCode::CREATED, "{answer:?}");
    let job = client.wait("life", "running").await?;
    ensure!(
        job.state == JobState::Running && job.boot_ms.is_some(),
        "{job:?}"
    );
    let id = job.id.to_string();

    let refused = client.delete("/v1/jobs/life").await?;
    assert_eq!(refused.problem()?.code, "job_live");
    let never = client
        .get("/v1/jobs/life/wait?state=created&timeout=0")
        .await?;
    assert_eq!(never.status, StatusCode::REQUEST_TIMEOUT);

    let logs = until("the output", async || {
        let logs = client.get("/v1/jobs/life/logs").await?;
        let (out, err) = demultiplex(&logs.body)?;
        Ok((out == "out\nhalf" && err == "err\n").then_some(logs))
    })
    .await?;
    assert_eq!(
        logs.headers[CONTENT_TYPE],
        "application/vnd.aleph.raw-stream"
    );
    let stamped = client
        .get("/v1/jobs/life/logs?timestamps=true&stream=stdout")
        .await?;
    let (out, err) = demultiplex(&stamped.body)?;
    let lines: Vec<_> = out
        .lines()
        .filter_map(|line| line.split_once("Z "))
        .collect();
    assert_eq!(
        lines.iter().map(|l| l.1).collect::<Vec<_>>(),
        ["out", "half"],
        "{out}"
    );
    assert_eq!(err, "");
    let request = client
        .request(
            Method::GET,
            &format!("/v1/jobs/{}/logs?stream=stderr", &id[..10]),
        )
        .header(ACCEPT, "application/x-ndjson")
        .body(Full::default())?;
    let line: Value = client.send(request).await?.json()?;
    assert_eq!(
        (&line["stream"], &line["data"]),
        (&json!("stderr"), &json!("err\n"))
    );

    let stats: Value = client.get("/v1/jobs/life/stats").await?.json()?;
    assert!(stats["cpu_usec"].as_u64() > Some(0), "{stats}");
    let all: Vec<Value> = client.get("/v1/stats").await?.json()?;
    assert_eq!(all.len(), 1);
    let metrics = client.get("/metrics").await?;
    assert!(String::from_utf8(metrics.body.to_vec())?.contains(&id));

    let paused: Job = client.act("/v1/jobs/life/pause").await?.json()?;
    assert_eq!(paused.state, JobState::Paused);
    let frozen = client.get("/v1/jobs/life/exec").await?;
    assert!(!frozen.status.is_success());
    let resumed: Job = client.act("/v1/jobs/life/resume").await?.json()?;
    assert_eq!(resumed.state, JobState::Running);

    let stopped: Job = client.act("/v1/jobs/life/stop?timeout=30").await?.json()?;
    assert_eq!(
        (stopped.state, stopped.exit),
        (JobState::Exited, Some(ExitStatus::Code(5)))
    );
    let over = client.get("/v1/jobs/life/wait?state=running").await?;
    assert_eq!(over.problem()?.code, "wait_impossible");
    assert_eq!(
        client.delete("/v1/jobs/life").await?.status,
        StatusCode::NO_CONTENT
    );
    server.close(&root).await
}

#[tokio::test]
async fn commands_run_in_a_guest_with_input_signals_and_terminals() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    client.run("host", "sleep 1000").await?;
    client.wait("host", "running").await?;

    let start = json!({"command": ["sh", "-c", "echo $A; id -un; pwd; echo bad >&2; exit 3"],
        "env": {"A": "b"}, "user": "65534", "workdir": "/tmp"});
    let (out, err, word) = exec(&client, "host", start).await?;
    assert_eq!(
        (out.lines().next(), out.lines().last()),
        (Some("b"), Some("/tmp"))
    );
    assert_eq!(
        (err.as_str(), word),
        ("bad\n", json!({"exit": {"code": 3}}))
    );

    // Input, its end, and much of it: more than all buffers on the way hold.
    let mut socket = open(&client, "/v1/jobs/host/exec").await?;
    let start = json!({"command": ["md5sum"], "stdin": true});
    socket.send(Message::text(start.to_string())).await?;
    let mut piece = vec![0_u8];
    piece.resize(100_001, b'x');
    for _ in 0..30 {
        socket.send(Message::binary(piece.clone())).await?;
    }
    socket.send(Message::text(r#"{"eof":true}"#)).await?;
    let (out, _, word) = session(&mut socket).await?;
    // `head -c 3000000 /dev/zero | tr '\0' x | md5sum` says the same.
    let (want, ..) = exec(
        &client,
        "host",
        json!({"command": ["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x | md5sum"]}),
    )
    .await?;
    assert_eq!((out, word), (want, json!({"exit": {"code": 0}})));

    // A terminal of a size that changes, and a signal.
    let mut socket = open(&client, "/v1/jobs/host/exec").await?;
    let script = "stty size; trap 'stty size; exit 7' WINCH; echo go; while :; do sleep 0.1; done";
    let start = json!({"command": ["sh", "-c", script], "tty": true, "rows": 10, "columns": 20});
    socket.send(Message::text(start.to_string())).await?;
    let mut heard = Vec::new();
    while !heard.ends_with(b"go\r\n") {
        let message = timeout(LIMIT, socket.next()).await?.context("ended")??;
        if let Message::Binary(bytes) = message {
            heard.extend(&bytes[1..]);
        }
    }
    assert_eq!(String::from_utf8(heard)?, "10 20\r\ngo\r\n");
    let resize = r#"{"resize":{"rows":30,"columns":40}}"#;
    socket.send(Message::text(resize)).await?;
    let (out, _, word) = session(&mut socket).await?;
    assert_eq!(
        (out.as_str(), word),
        ("30 40\r\n", json!({"exit": {"code": 7}}))
    );
    let mut socket = open(&client, "/v1/jobs/host/exec").await?;
    let start = json!({"command": ["sleep", "1000"]});
    socket.send(Message::text(start.to_string())).await?;
    timeout(LIMIT, socket.next()).await?.context("ended")??;
    socket.send(Message::text(r#"{"signal":9}"#)).await?;
    let (.., word) = session(&mut socket).await?;
    assert_eq!(word, json!({"exit": {"signal": 9}}));

    // What cannot be run, and what makes no sense.
    let (.., word) = exec(&client, "host", json!({"command": ["absent"]})).await?;
    assert_eq!(word["error"]["class"], "not_found", "{word}");
    let (.., word) = exec(&client, "host", json!({"command": []})).await?;
    assert_eq!(word["error"]["code"], "bad_command", "{word}");
    let (.., word) = exec(&client, "host", json!({"comand": []})).await?;
    assert_eq!(word["error"]["code"], "bad_message", "{word}");

    // A command ends with its client.
    let mut socket = open(&client, "/v1/jobs/host/exec").await?;
    let start = json!({"command": ["sh", "-c", "exec -a marked sleep 500"], "stdin": true});
    let start = start
        .to_string()
        .replace("exec -a marked sleep 500", "sleep 543");
    socket.send(Message::text(start)).await?;
    timeout(LIMIT, socket.next()).await?.context("ended")??;
    drop(socket);
    until("the command to end", async || {
        let look = json!({"command": ["sh", "-c", "ps | grep -c '[s]leep 543'"]});
        let (out, ..) = exec(&client, "host", look).await?;
        Ok((out == "0\n").then_some(()))
    })
    .await?;
    server.close(&root).await
}

#[tokio::test]
async fn who_attaches_before_the_start_hears_all_and_is_heard() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    let spec = json!({"name": "talk", "image": "busybox", "stdin": true, "auto_destroy": true,
        "command": ["sh", "-c", "echo first; read line; echo got $line; cat >/dev/null; exit 4"]});
    let made = client.post("/v1/jobs?start=false", spec).await?;
    ensure!(made.status == StatusCode::CREATED, "{made:?}");
    let path = "/v1/jobs/talk/attach?stdin=true&logs=true";
    let mut socket = open(&client, path).await?;
    socket.send(Message::binary(&b"\0hello\n"[..])).await?;
    socket.send(Message::text(r#"{"eof":true}"#)).await?;
    let started = client.act("/v1/jobs/talk/start").await?;
    ensure!(started.status.is_success(), "{started:?}");
    let (out, _, word) = session(&mut socket).await?;
    // It has removed itself by now, and its end is told all the same.
    assert_eq!(
        (out.as_str(), word),
        ("first\ngot hello\n", json!({"exit": {"code": 4}}))
    );
    until("the job to be gone", async || {
        let answer = client.get("/v1/jobs/talk").await?;
        Ok((answer.status == StatusCode::NOT_FOUND).then_some(()))
    })
    .await?;
    server.close(&root).await
}

#[tokio::test]
async fn files_go_in_and_out_as_archives() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    client.run("files", "sleep 1000").await?;
    client.wait("files", "running").await?;
    let content: Vec<u8> = (0..2_000_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(content.len())?);
    header.set_mode(0o640);
    archive.append_data(&mut header, "dir/file", content.as_slice())?;
    let put = async |path: &str, bytes: Vec<u8>| {
        let path = format!("/v1/jobs/files/archive?path={path}");
        let request = client
            .request(Method::PUT, &path)
            .header(CONTENT_TYPE, "application/x-tar")
            .body(Full::from(bytes))?;
        client.send(request).await
    };
    let bytes = archive.into_inner()?;
    let answer = put("/tmp", bytes.clone()).await?;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
    assert_eq!(put("/absent", bytes).await?.status, StatusCode::NOT_FOUND);
    let garbage = put("/tmp", vec![b'x'; 10_000]).await?;
    assert_eq!(garbage.status, StatusCode::BAD_REQUEST, "{garbage:?}");

    let path = "/v1/jobs/files/archive?path=/tmp/dir/file";
    let head = client.call(Method::HEAD, path, None).await?;
    assert_eq!(head.status, StatusCode::OK);
    let stat: Value = serde_json::from_slice(&STANDARD.decode(&head.headers["x-aleph-stat"])?)?;
    assert_eq!(
        (&stat["name"], &stat["size"], &stat["mode"], &stat["kind"]),
        (
            &json!("file"),
            &json!(2_000_000),
            &json!(0o640),
            &json!("file")
        )
    );
    let answer = client.get(path).await?;
    assert_eq!(answer.headers[CONTENT_TYPE], "application/x-tar");
    assert_eq!(answer.headers["x-aleph-stat"], head.headers["x-aleph-stat"]);
    let mut archive = tar::Archive::new(&answer.body[..]);
    let mut entry = archive.entries()?.next().context("it is empty")??;
    assert_eq!(entry.path()?.to_str(), Some("file"));
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut read)?;
    assert!(read == content);
    let absent = client.get("/v1/jobs/files/archive?path=/absent").await?;
    assert_eq!(absent.status, StatusCode::NOT_FOUND, "{absent:?}");
    server.close(&root).await
}

#[tokio::test]
async fn a_reader_that_stalls_holds_up_neither_the_job_nor_others() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    // More than all buffers on the way hold.
    client
        .run(
            "flood",
            "head -c 20000000 /dev/zero; echo; echo end; sleep 1000",
        )
        .await?;
    let request = client.request(Method::GET, "/v1/jobs/flood/logs?follow=true");
    let stalled = client.begin(request.body(Full::default())?).await?;
    let _attached = open(&client, "/v1/jobs/flood/attach?logs=true").await?;
    until("the end of the flood", async || {
        let logs = client.get("/v1/jobs/flood/logs?tail=1").await?;
        Ok((demultiplex(&logs.body)?.0 == "end\n").then_some(()))
    })
    .await?;
    // When it reads at last, it has missed nothing.
    let mut body = stalled.into_body();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"end\n") {
        let frame = timeout(LIMIT, body.frame()).await?.context("it ended")??;
        bytes.extend(frame.into_data().unwrap_or_default());
    }
    let (out, _) = demultiplex(&bytes)?;
    assert_eq!(out.len(), 20_000_000 + "\nend\n".len());
    server.close(&root).await
}

#[tokio::test]
async fn guests_run_on_when_the_daemon_stops_and_the_next_one_has_them() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    let spec = json!({"name": "stay", "image": "busybox",
        "command": ["sh", "-c", "n=0; while :; do echo $n; n=$((n+1)); sleep 0.2; done"],
        "health": {"probe": {"exec": ["true"]}, "interval_seconds": 1}});
    let made = client.post("/v1/jobs", spec).await?;
    ensure!(made.status == StatusCode::CREATED, "{made:?}");
    let before = client.wait("stay", "running").await?;
    // What waits and what streams ends with the daemon; neither keeps it from stopping.
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.get("/v1/jobs/stay/wait?state=exited").await })
    };
    let request = client.request(Method::GET, "/v1/jobs/stay/logs?follow=true");
    let mut stream = client
        .begin(request.body(Full::default())?)
        .await?
        .into_body();
    timeout(LIMIT, stream.frame())
        .await?
        .context("no output")??;
    let mut socket = open(&client, "/v1/jobs/stay/attach").await?;
    timeout(LIMIT, socket.next())
        .await?
        .context("no output")??;
    server.stop().await?;
    while let Some(frame) = timeout(LIMIT, stream.frame()).await? {
        let _ = frame?;
    }
    loop {
        match timeout(LIMIT, socket.next()).await?.context("no close")?? {
            Message::Close(frame) => {
                let reason = frame.context("no reason")?.reason;
                assert!(reason.contains("shutting down"), "{reason}");
                break;
            }
            other => assert!(other.is_binary(), "{other:?}"),
        }
    }
    let waited = waiting.await??;
    assert_eq!(waited.problem()?.code, "shutting_down");
    assert!(!root.residue()?.is_empty(), "the guest is gone");

    let server = Server::start(&config(&root)).await?;
    let after = server.local().wait("stay", "running").await?;
    assert_eq!((after.id, after.vm), (before.id, before.vm));
    assert!(after.guest_boot_id.is_some() && after.guest_boot_id == before.guest_boot_id);
    let count = async || -> Result<usize> {
        let logs = server.local().get("/v1/jobs/stay/logs").await?;
        let (out, _) = demultiplex(&logs.body)?;
        let want: String = (0..out.lines().count()).map(|n| format!("{n}\n")).collect();
        ensure!(out == want, "lines are lost or twice: {out}");
        Ok(out.lines().count())
    };
    let there = count().await?;
    until("its log to go on", async || {
        Ok((count().await? > there + 3).then_some(()))
    })
    .await?;
    until("it to be healthy", async || {
        let job: Job = server.local().get("/v1/jobs/stay").await?.json()?;
        Ok((job.health == Some(Health::Healthy)).then_some(()))
    })
    .await?;
    let pruned = server
        .local()
        .post("/v1/prune", json!({"jobs": true}))
        .await?;
    assert_eq!(pruned.json::<Value>()?["jobs"], json!([]), "it runs");
    let killed: Job = server.local().act("/v1/jobs/stay/kill").await?.json()?;
    assert!(killed.state.is_over(), "{killed:?}");
    let request = json!({"jobs": true, "logs": true, "images": true, "dry_run": false});
    let pruned: Value = server.local().post("/v1/prune", request).await?.json()?;
    assert_eq!(pruned["jobs"], json!([before.id.to_string()]));
    server.close(&root).await
}
